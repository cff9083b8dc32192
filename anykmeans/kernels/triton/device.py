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
_LOST = 2.0**-24
# Compiled kernels take all their arguments, constants too, from this version on.
_TAKES_ALL = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 3)
_MOST = 4096  # kernels and numbers they were launched with that are remembered


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
    lost : float
        What tensor cores lose of each term of a sum at most, in relation to the largest: see ``docs/proofs.md``.
    """

    multiprocessors: int
    shared: int
    hopper: bool
    lost: float


def about(x: Array) -> About:
    """Return what is to be known of the device of `x`: on a CPU, which interprets, a small H100."""
    if not x.is_cuda:
        return About(4, _SHARED, _describes(), _LOST)
    card = torch.cuda.get_device_properties(x.device)
    shared = getattr(card, "shared_memory_per_block_optin", _LEAST)  # old PyTorch does not tell
    hopper = card.major == 9
    lost = _LOST if hopper else 4 * _LOST
    return About(card.multi_processor_count, shared, hopper and _describes(), lost)


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

_compiled: dict[tuple[Any, ...], Any] = {}


def launch(kernel: Any, grid: tuple[int, ...]) -> Callable[..., None]:
    """Return what launches a kernel, as `Launch` says: what ``kernel[grid]`` does, in a fifth of the time."""
    return lambda *arguments, **options: _launched(kernel, grid, arguments, options) and None


def _launched(
    kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """Launch a kernel and return it compiled, or None where it is interpreted.

    Triton chooses what was compiled by dtypes, alignment and divisors, which takes it 40 to 80 microseconds. Whatever is
    launched with the same numbers again, and with pointers of one kind, is the same.
    """
    if not _TAKES_ALL:
        return kernel[grid](*arguments, **options)
    key: list[Any] = [id(kernel), _device()]
    for each in arguments:
        if hasattr(each, "data_ptr"):
            key += each.dtype, each.data_ptr() % 16
        elif hasattr(each, "block_shape"):  # what describes tiles
            key += each.base.dtype, *each.block_shape, *each.shape, *each.strides
        else:
            key.append(each)
    known = *key, *options.values()
    made = _compiled.get(known)
    if made is not None:
        _bound(made, kernel, grid, arguments, options)()
        return made
    made = kernel[grid](*arguments, **options)
    if made is not None:
        if len(_compiled) >= _MOST:
            _compiled.clear()
        _compiled[known] = made
    return made


def _device() -> int:
    """Return the number of the device that kernels are launched on."""
    return torch.cuda.current_device() if torch.cuda.is_initialized() else -1


def _bound(
    made: Any,
    kernel: Any,
    grid: tuple[int, ...],
    arguments: tuple[Any, ...],
    options: dict[str, Any],
) -> Callable[[], None]:
    """Return what launches a kernel again as it has been `made`."""
    # Addresses, as a tensor would be asked for its own each time.
    plain = [each.data_ptr() if hasattr(each, "data_ptr") else each for each in arguments]
    plain += [options[name] for name in kernel.arg_names[len(arguments) :]]
    return functools.partial(made[(*grid, 1, 1)[:3]], *plain)


class Launches:
    """Launches whose arguments are the same each time: they are looked at but once."""

    def __init__(self) -> None:
        self._first: list[Any] = []
        self._again: list[Callable[[], None]] = []

    def __call__(self, make: Callable[[Launch], None]) -> None:
        """Launch what `make` does by what it is given, or what it did the first time."""
        if self._first:  # only now, as the device has something to do
            self._again, self._first = [_bound(*each) for each in self._first], []
        for again in self._again:
            again()
        if self._again:
            return
        first: list[Any] = []

        def noted(kernel: Any, grid: tuple[int, ...]) -> Callable[..., None]:
            def launched(*arguments: Any, **options: Any) -> None:
                made = _launched(kernel, grid, arguments, options)
                first.append((made, kernel, grid, arguments, options))

            return launched

        make(noted)
        if _TAKES_ALL and all(made is not None for made, *_ in first):
            self._first = first


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
