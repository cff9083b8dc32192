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

from anykmeans._libraries import Array

# Bytes of memory that a block can have on an H100, and on any GPU that these kernels are for.
_SHARED, _LEAST = 227 << 10, 99 << 10
_LOST = 2.0**-24


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
