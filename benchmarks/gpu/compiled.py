"""What would be launched on a GPU, compiled without one: the kernels, and the grids of a pass.

Triton needs a device only to launch. Told that there is one, it compiles what a call would launch, for the
capability named; results that the host reads on the way are made up, and are those of a pass that ends well.
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu.rows import Row

CARDS = {80: (108, 163 << 10, False, 2.0**-22), 90: (132, 227 << 10, True, 2.0**-24)}
"""What `device.about` tells of an A100, and of an H100 or H200: grids of lists are as large as the device."""

FREE = 75 << 30
"""Bytes of its memory."""


@dataclass(frozen=True)
class Launch:
    """A kernel that would have been launched.

    Attributes
    ----------
    name : str
        Of the kernel.
    grid : tuple of int
        Blocks along each axis.
    kernel : triton.compiler.CompiledKernel
        As it is for this call.
    sizes : dict
        Its arguments that are numbers, and its constants, by their names.
    """

    name: str
    grid: tuple[int, ...]
    kernel: Any
    sizes: dict[str, Any]

    @property
    def blocks(self) -> int:
        """How many there are in its grid."""
        count = 1
        for axis in self.grid:
            count *= axis
        return count


class NoDriver:
    """Just enough of a driver for `JITFunction.warmup`, which compiles what a call would launch."""

    def __init__(self, capability: int) -> None:
        from triton.backends.compiler import GPUTarget

        self._capability, self._target = capability, GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        """Return another number for each capability, as functions remember the kernels of each device."""
        return self._capability

    def get_current_stream(self, device: int) -> int:  # noqa: D102
        return 0

    def get_current_target(self) -> Any:  # noqa: D102
        return self._target


@contextlib.contextmanager
def compile_only(capability: int = 90, cache: Path | None = None) -> Iterator[list[Launch]]:
    """Compile what is launched meanwhile, on tensors of the CPU; give the list it is noted in.

    Triton keeps what it compiles in the folder `cache`, by default where it always does.
    """
    from triton.runtime.jit import JITFunction, driver

    from anykmeans.kernels.triton import device

    made: list[Launch] = []
    run = JITFunction.run

    def only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        named = dict(zip(self.arg_names, arguments, strict=False)) | options
        sizes = {name: value for name, value in named.items() if isinstance(value, int | float)}
        for value in named.values():
            if getattr(value, "block_shape", None):  # a descriptor says how wide rows are
                sizes.setdefault("WIDTH", int(value.shape[-1]))
        made.append(Launch(self.__name__, _shape(grid, named), kernel, sizes))
        if effect := _EFFECTS.get(self.__name__):
            effect(named)

    with contextlib.ExitStack() as stack:

        def patch(where: Any, **names: Any) -> None:
            stack.enter_context(mock.patch.multiple(where, **names))

        patch(JITFunction, run=only)
        stack.enter_context(mock.patch.dict(device._compiled, clear=True))
        patch(driver, _active=NoDriver(capability))
        patch("anykmeans.kernels.triton.Triton", why_not=lambda self, x: None)
        # What no kernel has written must not be read as a label.
        patch(torch, empty=torch.zeros)
        card = device.About(*CARDS[capability])
        patch(device, about=lambda x: card, free=lambda x: FREE)
        if cache is not None:
            stack.enter_context(mock.patch.dict(os.environ, TRITON_CACHE_DIR=str(cache)))
        yield made


def of_row(row: Row, capability: int = 90) -> tuple[list[Launch], list[Launch]]:
    """Return all that a fit of `row` would launch in one iteration, and of that its first pass.

    Rows are as many as the row has, but only centroids are written: memory that nobody touches costs nothing.
    """
    from anykmeans import kmeans
    from anykmeans.kernels.triton import passes

    x = torch.empty((row.b, row.n, row.d), dtype=getattr(torch, row.dtype))
    generator = torch.Generator().manual_seed(0)
    init = torch.rand((row.b, row.k, row.d), generator=generator).to(x.dtype)
    between: list[int] = []

    with compile_only(capability) as made:
        whole = passes.Passes._pass

        def watched(self: Any) -> None:
            between.append(len(made))
            whole(self)
            between.append(len(made))

        batch = row.b > 1
        with mock.patch.multiple(passes.Passes, _pass=watched), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one iteration is few, and all labels are 0
            kmeans(
                x if batch else x[0],
                row.k,
                init=init if batch else init[0],
                max_iter=1,
                tol=0,
                empty="keep",
                kernel="triton",
            )
    first, last = between[:2]
    return made, made[first:last]


def _shape(grid: Any, named: dict[str, Any]) -> tuple[int, ...]:
    """Return how many blocks there are along each axis of a grid, which may be a function."""
    return tuple(int(axis) for axis in (grid(named) if callable(grid) else grid))


def _extents(named: dict[str, Any]) -> None:
    """Find what a million uniform numbers have: one at most, and the smallest, zero apart, of about 1 / n."""
    found, n = named["found"], named["n"]
    one = torch.tensor([1.0, 1.0, 2.0 ** -n.bit_length()], dtype=torch.float64).view(torch.int64)
    found.copy_(one[:, None].expand(found.shape))


def _stop(named: dict[str, Any]) -> None:
    """End after one pass."""
    from anykmeans.kernels.triton import screen

    state = named["state"]
    state[:, screen.PASSES.value] = 1
    state[:, screen.DONE.value] = screen.STOPPED.value


_EFFECTS: dict[str, Callable[[dict[str, Any]], None]] = {"magnitudes": _extents, "advance": _stop}
"""What kernels do that the host looks at, by their names."""
