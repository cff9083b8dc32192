"""What a compiled kernel takes, read from its machine code with the programs that come with Triton."""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

SHARED = {80: 164 << 10, 90: 228 << 10}
"""Bytes of shared memory of a multiprocessor; a block takes 1 KiB more than it asks for."""

PIPES = {
    "tensor": r"HGMMA|HMMA|QGMMA|IGMMA|IMMA|DMMA|BGMMA",
    "copy": r"UTMA|UBLKCP|LDGSTS",
    "sync": r"BAR|WARPGROUP|DEPBAR|WARPSYNC|BSYNC|BSSY|LDGDEPBAR|SYNCS|FENCE|MEMBAR|NANOSLEEP|ERRBAR|CCTL|ELECT",
    "atomic": r"ATOM|RED(G|\b)",
    "local": r"LDL|STL",
    "global": r"LDG|STG|LDC|LD\b|ST\b",
    "shared": r"LDS|STS",
    "across": r"SHFL|MOVM|REDUX|VOTE|MATCH",
    "fma": r"FFMA|FMUL|FADD|FSWZADD|HFMA2|HADD2|HMUL2|IMAD|IMUL",
    "fp64": r"DADD|DMUL|DFMA|DSETP|DMNMX",
    "special": r"MUFU|F2F|F2I|I2F|FRND|POPC|FLO|BREV",
    "uniform": r"U|R2UR|S2UR",
    "control": r"BRA|BRX|EXIT|RET|CALL|JMP|BREAK|BMOV|NOP|YIELD|ACQBULK|PREEXIT",
}
"""Where instructions are executed, the first that fits; what is left is for the ALU, at half the rate of issue."""

_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")
_LABEL = re.compile(r"^(\.L_\w+):")
_BACK = re.compile(r"`\((\.L_\w+)\)")
_GROUP = re.compile(r"gsb0")
# Accumulators and a left factor in registers; one in shared memory is a descriptor there.
_LEFT = re.compile(r"HGMMA\.(\d+)x(\d+)x\d+\S*\s+R(\d+), R(\d+), gdesc")
_PRODUCT = re.compile(r"HGMMA\.(\d+)x(\d+)x\d+\S*\s+R(\d+),")
_STORES = re.compile(
    r"ST|RED|BAR|BRA|WARPGROUP|DEPBAR|R2UR|EXIT|[IFDH]SETP|PLOP|SYNCS|FENCE|U|LDGSTS"
)


@dataclass(frozen=True)
class Instruction:
    """One instruction: where it is, its name with modifiers, and all of it, without what it is conditional on."""

    address: int
    name: str
    text: str

    @property
    def pipe(self) -> str:
        """Where it is executed: a key of `PIPES`, or the ALU."""
        return _pipe(self.name)


@dataclass(frozen=True)
class Resources:
    """What a kernel takes: registers and bytes of stack a thread, bytes of memory a block, and how many fit.

    Attributes
    ----------
    registers, stack : int
        Of a thread. What it spills is on the stack.
    shared : int
        Bytes of shared memory of a block.
    warps, stages : int
        Of a block, and of its loops.
    blocks : int
        Blocks that a multiprocessor holds at once.
    """

    registers: int
    stack: int
    shared: int
    warps: int
    stages: int
    blocks: int


@dataclass(frozen=True)
class Cost:
    """Instructions of one warp for a tile of scores, by pipe; how many scores of the tile a thread has; and all others."""

    pipes: Counter[str]
    scores: float
    outside: int

    @property
    def issued(self) -> float:
        """Instructions a score."""
        return sum(self.pipes.values()) / self.scores

    @property
    def alu(self) -> float:
        """Operations of the ALU a score."""
        return self.pipes["alu"] / self.scores

    def cycles(self, warps: int) -> tuple[float, float]:
        """Return for a block the cycles of a multiprocessor to issue them, and those of its ALUs."""
        share = warps / 4  # there are four schedulers
        return sum(self.pipes.values()) * share, 2 * self.pipes["alu"] * share


def resources(kernel: Any) -> Resources:
    """Return what a compiled kernel takes."""
    said = _said("cuobjdump", "--dump-resource-usage", cubin=kernel.asm["cubin"])
    registers, stack = (int(re.search(rf"\b{name}:(\d+)", said)[1]) for name in ("REG", "STACK"))
    about = kernel.metadata
    fit = blocks(registers, about.shared, about.num_warps, about.target.arch)
    return Resources(registers, stack, about.shared, about.num_warps, about.num_stages, fit)


def blocks(registers: int, shared: int, warps: int, capability: int) -> int:
    """Return how many blocks a multiprocessor holds."""
    rounded = -(-registers // 8) * 8
    return min(
        65536 // (rounded * 32 * warps), SHARED[capability] // (shared + 1024), 64 // warps, 32
    )


def instructions(kernel: Any) -> tuple[list[Instruction], list[tuple[int, int]]]:
    """Return the instructions of a compiled kernel, and the first and last address of each of its loops."""
    return parsed(_said("nvdisasm", "-c", cubin=kernel.asm["cubin"]))


def parsed(listing: str) -> tuple[list[Instruction], list[tuple[int, int]]]:
    """Return what `instructions` does, of a disassembler's listing."""
    found: list[Instruction] = []
    places: dict[str, int] = {}
    waiting: list[str] = []
    for line in listing.splitlines():
        if label := _LABEL.match(line.strip()):
            waiting.append(label[1])
        elif match := _LINE.search(line):
            address = int(match[1], 16)
            text = re.sub(r"^@!?U?P\w+\s+", "", match[2])
            places |= dict.fromkeys(waiting, address)
            waiting.clear()
            found.append(Instruction(address, text.split()[0], text))
    loops = set()
    for one in found:
        if one.name.startswith("BRA") and (to := _BACK.search(one.text)):
            begin = places.get(to[1], one.address)
            if begin < one.address:  # that to itself is how code is padded
                loops.add((begin, one.address))
    return found, sorted(loops)


def cost(kernel: Any, rows: int, lanes: int, chunks: int = 1) -> Cost | None:
    """Return what a tile of `rows` times `lanes` scores costs, or None if no tensor core has to do with it.

    That is the innermost loop with products; where the features are cut into `chunks`, it runs so many times
    inside the loop over tiles. Where there is no loop, it is the whole kernel.
    """
    code, loops = instructions(kernel)
    products = [one.address for one in code if one.pipe == "tensor"]
    if not products:
        return None
    scores = rows * lanes / (32 * kernel.metadata.num_warps)
    around = [loop for loop in loops if any(loop[0] <= at <= loop[1] for at in products)]
    if not around:
        return Cost(_count(code, 0, code[-1].address), scores, 0)
    inner = min(around, key=lambda loop: loop[1] - loop[0])
    pipes = _count(code, *inner)
    outside = len(code) - pipes.total()
    outer = [loop for loop in around if loop[0] <= inner[0] and loop[1] >= inner[1]]
    if chunks > 1 and len(outer) > 1:
        tile = sorted(outer, key=lambda loop: loop[1] - loop[0])[1]
        once = _count(code, *tile)
        outside = len(code) - once.total()
        pipes = Counter({pipe: once[pipe] + (chunks - 1) * pipes[pipe] for pipe in once})
    return Cost(pipes, scores, outside)


def register_products(kernel: Any) -> tuple[int, list[str]]:
    """Return how many products of a warpgroup take a factor from registers, and what writes such a register too early.

    Until the product has been waited for, the tensor cores may still read it.
    """
    code, _ = instructions(kernel)
    return overwritten(code)


def overwritten(code: list[Instruction]) -> tuple[int, list[str]]:
    """Return what `register_products` does, for instructions in the order in which they stand."""
    count = 0
    early: list[str] = []
    groups: list[list[tuple[Instruction, set[int]]]] = [[]]  # the last is not committed yet
    for one in code:
        if one.name.startswith("WARPGROUP.DEPBAR"):
            pending = int(re.search(r"0x([0-9a-f]+)", one.text)[1], 16)
            groups = groups[-1 - pending :]
            continue
        writes = _written(one)
        early += [
            f"{one.address:#x} {one.text} writes what {product.address:#x} {product.text} reads"
            for product, reads in (each for group in groups for each in group)
            if writes & reads
        ]
        if one.name.startswith("HGMMA"):
            if left := _LEFT.match(one.text):
                count += 1
                first = int(left[4])
                groups[-1].append((one, set(range(first, first + 4))))
            if _GROUP.search(one.text):
                groups.append([])
    return count, early


def _written(one: Instruction) -> set[int]:
    """Return about which registers an instruction writes: those that its first operand begins with."""
    if product := _PRODUCT.match(one.text):
        first = int(product[3])
        return set(range(first, first + int(product[2]) // 2))
    if _STORES.match(one.name):
        return set()
    match = re.match(r"\S+\s+(?:!?U?PT?\w*,\s*)*R(\d+)", one.text)
    if not match:
        return set()
    many = 1
    if ".128" in one.name or ".M88.4" in one.name or ".MT88.4" in one.name:
        many = 4
    elif ".64" in one.name or ".WIDE" in one.name or one.name[0] == "D" or ".M88.2" in one.name:
        many = 2
    return set(range(int(match[1]), int(match[1]) + many))


def _count(code: list[Instruction], first: int, last: int) -> Counter[str]:
    """Return how many instructions between two addresses go to each pipe."""
    return Counter(one.pipe for one in code if first <= one.address <= last)


@cache
def _pipe(name: str) -> str:
    """Return where an instruction of that name is executed."""
    return next((pipe for pipe, names in PIPES.items() if re.match(names, name)), "alu")


def _said(program: str, *options: str, cubin: bytes) -> str:
    """Return what one of the programs that come with Triton says of a kernel."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / program
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        run = subprocess.run([tool, *options, file], capture_output=True, text=True, check=True)
    return run.stdout
