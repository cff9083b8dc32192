# mypy: allow-untyped-defs, allow-untyped-calls, allow-incomplete-defs
"""The device of a tensor: what is to be known of it, and how it is given work."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
import triton

from anykmeans._libraries import Array

# Bytes of memory that a block can have on an H100, and on any GPU that these kernels are for.
_SHARED, _LEAST = 227 << 10, 99 << 10
# Compiled kernels take all their arguments, constants too, from this version on.
_TAKES_ALL = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 3)


@functools.cache  # looking for a module takes longer than a launch
def _describes() -> bool:
    """Return whether Triton makes descriptors of tiles."""
    return find_spec("triton.tools.tensor_descriptor") is not None


class About(NamedTuple):
    """What is to be known of a device.

    Attributes
    ----------
    multiprocessors : int
        Which lists of unknown length are spread over.
    shared : int
        Bytes of memory that a block can have.
    hopper : bool
        Whether tensor cores take both operands from shared memory, and tiles are fetched by descriptors that Triton makes.
        Later GPUs have as much, but for them the compiler spills what these kernels keep in registers.
    """

    multiprocessors: int
    shared: int
    hopper: bool


def about(x: Array) -> About:
    """Return what is to be known of the device of `x`: on a CPU, which interprets, a small H100."""
    if not x.is_cuda:
        return About(4, _SHARED, _describes())
    card = torch.cuda.get_device_properties(x.device)
    shared = getattr(card, "shared_memory_per_block_optin", _LEAST)  # old PyTorch does not tell
    return About(card.multi_processor_count, shared, card.major == 9 and _describes())


def free(x: Array) -> int:
    """Return how many bytes of memory nobody uses on the device of `x`: on a CPU none."""
    if not x.is_cuda:
        return 0
    unused, _ = torch.cuda.mem_get_info(x.device)
    held = torch.cuda.memory_reserved(x.device) - torch.cuda.memory_allocated(x.device)
    return int(unused + held)


def placed(a: np.ndarray, x: Array) -> Array:
    """Return a few numbers of the host where `x` is, without waiting for what is under way there."""
    return torch.from_numpy(a).to(x.device, non_blocking=True)


def strides(xs: list[Array]) -> tuple[int, int, int]:
    """Return how many numbers apart problems `xs`, (n, d) each, their rows and their features are in memory.

    Problems must be of one shape and follow each other in memory at one distance, which may be 0.
    """
    apart = 0
    if len(xs) > 1:
        apart = (xs[1].data_ptr() - xs[0].data_ptr()) // xs[0].element_size()
    return (apart, *xs[0].stride())


class Fetched:
    """A few numbers of a device on their way to the host, which goes on meanwhile."""

    def __init__(self, a: Array) -> None:
        self._event: Any = None
        if a.is_cuda:
            self._seen = torch.empty(a.shape, dtype=a.dtype, pin_memory=True)
            self._seen.copy_(a, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._seen = a.clone()

    @property
    def there(self) -> bool:
        """Whether there is nothing to wait for."""
        return self._event is None or bool(self._event.query())

    def numpy(self) -> np.ndarray:
        """Return the numbers once they are there."""
        if self._event is not None:
            self._event.synchronize()
        found: np.ndarray = self._seen.numpy()
        return found


Launch = Callable[[Any, tuple[int, ...]], Callable[..., None]]
"""kernel, grid -> what launches it with some arguments"""


def launched(kernel: Any, grid: tuple[int, ...]) -> Callable[..., None]:
    """Return what launches a kernel, as `Launch` says."""
    launch: Callable[..., None] = kernel[grid]
    return launch


class Launches:
    """Launches whose arguments are the same each time, so that Triton looks at them but once: that takes it longer than a launch."""

    def __init__(self) -> None:
        self._known: list[Callable[..., None]] = []

    def __call__(self, make: Callable[[Launch], None]) -> None:
        """Launch what `make` does by what it is given, or what it did the first time."""
        if self._known:
            for again in self._known:
                again()
            return
        known: list[Callable[..., None] | None] = []

        def launch(kernel: Any, grid: tuple[int, ...]) -> Callable[..., None]:
            def launched(*arguments: Any, **options: Any) -> None:
                made = kernel[grid](*arguments, **options)
                known.append(_bound(made, kernel, grid, arguments, options))

            return launched

        make(launch)
        self._known = [again for again in known if again] if all(known) else []


def _bound(
    made: Any, kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], options: Any
) -> Callable[..., None] | None:
    """Return what launches a kernel again as it has been `made`, or None if it was interpreted."""
    if made is None or not _TAKES_ALL:
        return None
    every = (*arguments, *(options[name] for name in kernel.arg_names[len(arguments) :]))
    # Addresses, as a tensor would be asked for its own each time.
    plain = [each.data_ptr() if isinstance(each, torch.Tensor) else each for each in every]
    return functools.partial(made[(*grid, 1, 1)[:3]], *plain)


def captured(launch: Callable[[], None]) -> Callable[[], None]:
    """Return what replays the launches that `launch` makes, all kernels of which have run before."""
    graph = torch.cuda.CUDAGraph()
    stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            launch()
        finally:
            graph.capture_end()
    current.wait_stream(stream)
    replay: Callable[[], None] = graph.replay
    return replay


def on_device(x: Array) -> Any:
    """Return a context in which kernels are launched where `x` is."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
