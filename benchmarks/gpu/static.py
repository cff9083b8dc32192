"""Read the kernels of the rows without a GPU, and print a table in Markdown.

What a fit of each row would launch is compiled, for the capability named, and its machine code is read:
registers, what is spilled to the stack, shared memory, blocks that a multiprocessor holds, instructions and
operations of the ALU for each score, the launches of a pass. docs/gpu.md says what follows from them. Where
products take a factor from registers, it says whether any of those is written before the product is over.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.gpu import compiled, sass
from benchmarks.gpu.compiled import Launch
from benchmarks.gpu.rows import ROWS, Row

HEAD = (
    "row",
    "kernel",
    "tile",
    "registers (stack)",
    "shared",
    "warps/stages",
    "blocks/SM",
    "instructions a score",
    "ALU a score",
    "cycles of issue, ALU, tensor",
    "outside",
    "launches × grid",
    "remarks",
)
"""Of the table."""

TENSOR = {80: 1024, 90: 2048}
"""Products that the tensor cores of a multiprocessor add in a cycle, of half-precision numbers."""


@dataclass(frozen=True)
class Reading:
    """One kernel of a row.

    Attributes
    ----------
    kernel : str
        Its name.
    launches : int
        Of it in a pass.
    grids : list of tuple of int
        Blocks along each axis, for each grid in use.
    takes : Resources
        Of a multiprocessor.
    sizes : dict
        Numbers that it is given, and its constants.
    tile : tuple of int or None
        Rows and centroids whose scores are made at once, and the features of a product, if it makes any.
    issued, alu : float or None
        Instructions, and those of the ALU, a score.
    cycles : tuple of float or None
        What a block has the multiprocessor do for a tile: to issue, of the ALUs, of the tensor cores.
    outside : int or None
        Instructions of a warp outside the loop over tiles: at the beginning and at the end.
    register_products : int
        Products of a warpgroup with a factor in registers.
    early : list of str
        What writes such a register too early.
    """

    kernel: str
    launches: int
    grids: list[tuple[int, ...]]
    takes: sass.Resources
    sizes: dict[str, Any]
    tile: tuple[int, int, int] | None = None
    issued: float | None = None
    alu: float | None = None
    cycles: tuple[float, float, float] | None = None
    outside: int | None = None
    register_products: int = 0
    early: list[str] = dataclasses.field(default_factory=list)


def read(launches: list[Launch]) -> Reading:
    """Return what is to be known of a kernel of which these are all launches of a pass."""
    one = launches[0]
    kernel, takes = one.kernel, sass.resources(one.kernel)
    found: dict[str, Any] = {}
    if tile := tile_of(one):
        rows, lanes, width = tile
        cost = sass.cost(kernel, rows, lanes, -(-width // one.sizes.get("CHUNK", width)))
        if cost is not None:
            products = rows * lanes * width / TENSOR[kernel.metadata.target.arch]
            count, early = sass.register_products(kernel)
            found = {
                "tile": tile,
                "issued": cost.issued,
                "alu": cost.alu,
                "cycles": (*cost.cycles(takes.warps), products),
                "outside": cost.outside,
                "register_products": count,
                "early": early,
            }
    grids = list(dict.fromkeys(launch.grid for launch in launches))
    return Reading(one.name, len(launches), grids, takes, one.sizes, **found)


def tile_of(launch: Launch) -> tuple[int, int, int] | None:
    """Return the rows, centroids and features that a kernel multiplies at once, if it says so."""
    names = ("ROWS", "LANES", "WIDTH")
    if all(name in launch.sizes for name in names):
        rows, lanes, width = (launch.sizes[name] for name in names)
        return rows, lanes, width
    return None


def readings(row: Row, capability: int = 90) -> list[Reading]:
    """Return what is to be known of the kernels of a pass of `row`, in the order of their first launches."""
    _, made = compiled.of_row(row, capability)
    kinds: dict[tuple[str, str], list[Launch]] = {}
    for launch in made:
        kinds.setdefault((launch.name, launch.kernel.hash), []).append(launch)
    return [read(launches) for launches in kinds.values()]


def cells(row: Row, reading: Reading) -> list[str]:
    """Return one line of the table."""
    takes, tile = reading.takes, reading.tile
    grids = ", ".join(" × ".join(f"{axis:,}" for axis in grid) for grid in reading.grids[:2])
    more = ", ..." if len(reading.grids) > 2 else ""
    remarks = []
    if reading.register_products:
        remarks.append(f"{reading.register_products} products from registers")
        remarks.append("WRITTEN TOO EARLY" if reading.early else "none written early")
    return [
        row.name,
        reading.kernel,
        f"{tile[0]} × {tile[1]}" if tile else "",
        f"{takes.registers} ({takes.stack})",
        f"{takes.shared:,}",
        f"{takes.warps}/{takes.stages}",
        str(takes.blocks),
        "" if reading.issued is None else f"{reading.issued:.2f}",
        "" if reading.alu is None else f"{reading.alu:.2f}",
        "" if reading.cycles is None else ", ".join(f"{each:.0f}" for each in reading.cycles),
        "" if reading.outside is None else str(reading.outside),
        f"{reading.launches} × ({grids}{more})",
        ", ".join(remarks),
    ]


def table(found: Iterable[tuple[Row, list[Reading]]]) -> str:
    """Return all in Markdown: a line for each kernel of each row, then a line for each row."""
    lines, sums = [list(HEAD)], []
    for row, made in found:
        lines += [cells(row, reading) for reading in made]
        launches = sum(reading.launches for reading in made)
        sums.append(f"- row {row.name} ({row}): {launches} launches a pass")
    return "\n".join([report.markdown(lines, left=3), "", *sums])


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return 1 if a register is written too early."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.static",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rows",
        type=lambda text: text.split(","),
        metavar="1,4",
        help="rows to read (default: all)",
    )
    parser.add_argument(
        "--capability",
        type=int,
        choices=sorted(TENSOR),
        default=90,
        help="of the GPU, times ten (default: 90, an H100 or H200)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    options = parser.parse_args(arguments)
    chosen = [row for row in ROWS if options.rows is None or row.name in options.rows]
    found = [(row, readings(row, options.capability)) for row in chosen]
    print(table(found))
    records = [
        {"row": row.name, "kernels": [dataclasses.asdict(reading) for reading in made]}
        for row, made in found
    ]
    report.write(options.json, {"command": "static", "rows": records})
    return int(any(reading.early for _, made in found for reading in made))


if __name__ == "__main__":
    sys.exit(main())
