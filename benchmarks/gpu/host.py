"""Time what the host does in a call whose kernels do nothing, beside plain PyTorch.

The plain loop makes as many operations and launches on one number, so the ratio says how much of the time goes into
deciding what to launch. Rows are those of the table in problems, clusters and dtype; they have few features and are
few, as the host does the same for any.

    python -m benchmarks.gpu.host [--device cpu] [row ...]
"""

import argparse
import contextlib
import dataclasses
import functools
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from anykmeans import kmeans
from anykmeans.kernels.triton import Triton
from benchmarks.gpu.rows import ROWS, Row
from benchmarks.timing import wall

FEATURES = 16
SPARE = 28  # rows of a problem beyond its clusters
LARGE = 1 << 16  # numbers
READS = ("_local_scalar_dense", "nonzero")
"""Operations whose result the host waits for, whatever their arguments."""
FREE = {
    *("empty", "select", "slice", "view", "expand", "unsqueeze", "unbind", "transpose"),
    *("detach", "alias"),
}
"""Operations that launch nothing on a device."""


class Counted(TorchDispatchMode):
    """Counts the operations of PyTorch that are made meanwhile, by name; a copy to the host is a `read`."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and make an operation."""
        name = func.overloadpacket.__name__
        self.seen[name] += 1
        self.seen["read"] += name in READS
        return func(*args, **(kwargs or {}))

    @property
    def operations(self) -> int:
        """How many there were that launch something."""
        return sum(n for name, n in self.seen.items() if name not in FREE | {"read"})

    @contextlib.contextmanager
    def reads(self) -> Iterator[None]:
        """Count what brings a whole tensor to the host, too: on a CPU that is no operation."""
        from anykmeans.kernels.triton.device import Fetched

        with contextlib.ExitStack() as stack:
            for kind, name in (torch.Tensor, "cpu"), (torch.Tensor, "tolist"), (Fetched, "numpy"):
                known = getattr(kind, name)

                def counted(tensor: Any, *, known: Callable[..., Any] = known) -> Any:
                    self.seen["read"] += 1
                    return known(tensor)

                stack.enter_context(mock.patch.object(kind, name, counted))
            yield


def filled(zeros: Callable[..., Any], empty: Callable[..., Any], *shape: Any, **on: Any) -> Any:
    """Return an array as kernels might have left it, but a large one, which only a device fills at no cost, as it comes."""
    made = empty(*shape, **on)
    return zeros(*shape, **on) if made.numel() < LARGE else made


@dataclasses.dataclass(frozen=True)
class Made:
    """A compiled kernel: on any grid, what is done to launch it again."""

    again: Callable[..., None]

    def __getitem__(self, grid: tuple[int, int, int]) -> Callable[..., None]:
        """Return what launches it."""
        return self.again


@contextlib.contextmanager
def idle() -> Iterator[list[str]]:
    """Have Triton's kernels do nothing but enter their names in a list, on any device; all rows seem to be in cluster 0.

    Passes end at once, and rows look as if their largest magnitude were one.
    """
    from triton.runtime.jit import JITFunction

    from anykmeans.kernels.triton import device, passes, screen

    launched: list[str] = []

    def nothing(self: Any, x: Any, w: Any, found: Any, *_: Any, **__: Any) -> Any:
        launched.append(self.__name__)
        if self.__name__ == "magnitudes":
            found.fill_(torch.ones((), dtype=torch.float64).view(torch.int64))
            return None  # as it does something, it has to come here again
        return Made(lambda *_: launched.append(self.__name__))

    def ended(self: Any, made: int) -> None:
        self._pass()
        self._state[:, screen.PASSES.value] = made
        self._state[:, screen.DONE.value] = screen.STOPPED.value

    with (
        mock.patch.object(JITFunction, "run", nothing),
        mock.patch.dict(device._compiled, clear=True),
        mock.patch.object(passes.Passes, "_run", ended),
        mock.patch.object(Triton, "why_not", return_value=None),
        mock.patch.object(torch, "empty", functools.partial(filled, torch.zeros, torch.empty)),
        mock.patch.object(torch, "zeros", functools.partial(filled, torch.zeros, torch.empty)),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield launched


def call(row: Row, device: str, **options: Any) -> Callable[[], Any]:
    """Return a call of `kmeans` on few rows of few features."""
    x = torch.rand((row.b, row.k + SPARE, FEATURES), device=device).to(getattr(torch, row.dtype))
    x = x if row.b > 1 else x[0]
    options = {"init": x[..., : row.k, :].clone(), "tol": 0, "empty": "keep"} | options
    return lambda: kmeans(x, row.k, max_iter=row.max_iter, kernel="triton", **options)


def counted(ours: Callable[[], Any], launched: list[str]) -> tuple[int, int, int]:
    """Return how many operations of PyTorch, launches, and waits for the device a call makes."""
    ours()
    launched.clear()
    with Counted() as seen, seen.reads():
        ours()
    return seen.operations, len(launched), seen.seen["read"]


def main(arguments: list[str] | None = None) -> int:
    """Print a line for each row."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", help="rows of benchmarks/gpu/rows.py (default: all)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args(arguments)
    print("| row | b | k | call, ms | plain, ms | ratio | operations | launches | waits |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in ROWS:
        if not options.rows or row.name in options.rows:
            print(line(row, options.device, options.repeats), flush=True)
    return 0


def line(row: Row, device: str, repeats: int) -> str:
    """Return a line of the table."""
    with idle() as launched:
        ours = call(row, device)
        operations, launches, waits = counted(ours, launched)
        one = torch.ones(1, device=device)

        def plain() -> None:
            for _ in range(operations + launches):
                one.add_(1)
            one.item()

        # The least, as what comes in between is other processes'.
        runs = {"ours": ours, "plain": plain}
        ms = {name: 1e3 * min(wall(f)[0] for _ in range(repeats)) for name, f in runs.items()}
    return (
        f"| {row.name} | {row.b} | {row.k} | {ms['ours']:.2f} | {ms['plain']:.2f} | {ms['ours'] / ms['plain']:.1f} "
        f"| {operations} | {launches} | {waits} |"
    )


if __name__ == "__main__":
    sys.exit(main())
