"""The seam for speed: which kernel does the steps here, and why not the others.

A kernel is a module of this package with a `KERNEL`, an instance of a class derived from
`anykmeans.kernels.agnostic.Kernel`, which is the place to read what there is to override. The choice is made
once per call, reported in the result, and can be forced. Adding a kernel is one file and one word in `TABLE`.
"""

from __future__ import annotations

import functools
import importlib

from anykmeans._fork import first_call
from anykmeans._libraries import Array, is_sparse
from anykmeans.kernels.agnostic import Kernel

__all__ = ["SPARSE", "TABLE", "Kernel", "choose", "why_not"]

TABLE = ("numba", "cpu", "triton", "torch", "cupy", "agnostic")  # in order of preference
SPARSE = ("numba", "cpu")  # those that have steps for sparse rows, in files of their own


def why_not(name: str, x: Array, metric: str = "euclidean") -> str | None:
    """Return why the kernel `name` cannot run on the array `x`, or None if it can."""
    if is_sparse(x) and name not in SPARSE:
        return "the rows are sparse, which the Array API does not have"
    kernel = _of(name, x)
    if metric not in kernel.metrics:
        return (
            f"it reads rows as they are, which suits {', '.join(map(repr, kernel.metrics))} alone"
        )
    return kernel.why_not(x)


def choose(x: Array, name: str = "auto", metric: str = "euclidean") -> Kernel:
    """Return the kernel to use on `x` with a `metric`: the first that can run and pays, or the one named.

    Raises
    ------
    ValueError
        If `name` is unknown, or that kernel cannot run on `x`.
    """
    if name == "auto":
        kernels = ((each, _of(each, x)) for each in TABLE if not is_sparse(x) or each in SPARSE)
        return next(
            kernel
            for each, kernel in kernels
            if kernel.pays(x) and why_not(each, x, metric) is None
        )
    if name not in TABLE:
        raise ValueError(
            f"`kernel` must be 'auto' or one of {', '.join(map(repr, TABLE))}; got {name!r}."
        )
    if (reason := why_not(name, x, metric)) is not None:
        others = "\n".join(f"    {each}: {why_not(each, x, metric) or 'can run'}" for each in TABLE)
        raise ValueError(
            f"`kernel`={name!r} cannot run here: {reason}. Use kernel='auto', or one of:\n{others}"
        )
    return type(_of(name, x))(named=True)


def _of(name: str, x: Array) -> Kernel:
    """Return the kernel `name` for rows like `x`."""
    return _kernel(f"sparse.{name}" if is_sparse(x) else name)


@functools.cache
def _kernel(module: str) -> Kernel:
    with first_call:
        kernel: Kernel = importlib.import_module(f"{__name__}.{module}").KERNEL
    return kernel
