"""What users pass for an array: arrays of any library, lists, frames; and what of it cannot be read, and why."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from anykmeans._libraries import (
    _CLASSES,
    Array,
    dtype_name,
    is_of,
    is_sparse,
    library_of,
)


def as_array(x: Any, name: str = "x") -> Array:
    """Return `x` as an array of its own library: lists and frames become NumPy, tensors detached."""
    if type(x) is np.ndarray and x.dtype.kind != "O":  # the most common, and nothing is to be done
        return x
    if is_sparse(x):
        if len(x.shape) > 2:
            raise ValueError(
                f"`{name}` must have at most 2 dimensions where it is sparse; got shape {tuple(x.shape)}. "
                f"Make it dense with `{name}.toarray()`."
            )
        return x.tocsr()
    if (reason := _unreadable(x)) is not None:
        raise TypeError(f"`{name}` must be a dense array on one device; got {reason}.")
    if is_of(x, "torch"):
        return x.detach().resolve_neg()
    if hasattr(x, "__dask_graph__"):
        raise TypeError(
            f"`{name}` must be in memory; got a dask {type(x).__name__}. Load it first: `{name}.compute()`."
        )
    if isinstance(x, np.ndarray):
        _refuse_masked(x, name)
        a = np.asarray(x)  # a view: subclasses such as np.matrix have operators of their own
    elif hasattr(x, "__array_namespace__") or any(is_of(x, library) for library in _CLASSES):
        return x
    else:
        a = _of_frame(x, name) if hasattr(x, "to_numpy") else _of_rows(x, name)
    if a.dtype == object and a.size and _has_rows(a.flat[0]):
        column = f"{name}[{x.columns[0]!r}]" if hasattr(x, "columns") else name
        raise ValueError(
            f"`{name}` must be an array of numbers; got cells that are {type(a.flat[0]).__name__}s. Stack them "
            f"first: `numpy.stack({column})`."
        )
    return a


def matrices(x: Any) -> list[Any] | None:
    """Return the matrices that a list, a tuple or a nested tensor holds, or None: other lists are rows of one."""
    if is_of(x, "torch"):
        return list(x.unbind()) if x.is_nested and x.dim() == 3 else None
    if not isinstance(x, list | tuple):
        return None
    return list(x) if any(len(getattr(each, "shape", ())) == 2 for each in x) else None


def _has_rows(cell: Any) -> bool:
    """Return whether the cell of an array is a vector."""
    return hasattr(cell, "__len__") and not isinstance(cell, str | bytes | Mapping)


def _unreadable(x: Array) -> str | None:
    """Return what keeps the numbers of a tensor or of an array of JAX from being read where it is, or None."""
    if is_of(x, "torch"):
        if sys.modules["torch"]._C._functorch.is_functorch_wrapped_tensor(x):
            return (
                "a tensor inside torch.vmap or torch.func, where its numbers cannot be read. Call it outside of "
                "them: a batch (b, n, d) may be passed itself"
            )
        if x.is_nested:
            return "a nested tensor. Take its parts one by one, as `unbind()` gives them"
        if str(x.layout) != "torch.strided":
            return f"a tensor of layout {x.layout}; use its to_dense()"
        if x.device.type == "meta":
            return "a tensor on the meta device, which holds no numbers"
    elif is_of(x, "jax"):
        jax = sys.modules["jax"]
        if isinstance(x, jax.core.Tracer):
            return (
                "a tracer, which holds no numbers: k-means runs eagerly; call it outside of jax.jit, "
                "jax.vmap and jax.grad"
            )
        if len(x.devices()) > 1:
            return (
                f"an array on {len(x.devices())} devices; gather it with "
                f"`jax.device_put(x, jax.devices()[0])`"
            )
        if x.dtype.itemsize > 4 and not jax.config.jax_enable_x64:
            return (
                f"{dtype_name(x)} while JAX has no dtypes of 64 bits; call "
                f"`jax.config.update('jax_enable_x64', True)` first"
            )
    return None


def _refuse_masked(x: Any, name: str) -> None:
    """Raise if values of the NumPy array `x` are masked."""
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise ValueError(
            f"`{name}` must have no masked values; got {int(np.ma.getmaskarray(x).sum())} of them. Remove or "
            f"impute these rows first."
        )


def _of_frame(x: Any, name: str) -> np.ndarray:
    """Return a frame or a column in NumPy, numbers of several types in one that holds them all."""
    dtypes = list(x.dtypes) if hasattr(x, "columns") else [getattr(x, "dtype", None)]
    for dtype in dtypes:
        if getattr(dtype, "is_temporal", bool)():  # polars gives days or nanoseconds for them
            raise TypeError(
                f"`{name}` must hold real numbers; got dtype {dtype}. Convert it to a number or drop it."
            )
    a: np.ndarray = x.to_numpy()
    if a.dtype != object:
        return a
    missing = sum(map(_is_missing, a.flat))
    if missing:
        raise ValueError(
            f"`{name}` must have no missing values (NaN or NA); got {missing} of them. Remove or impute these "
            f"rows first."
        )
    # What pandas' own types hold; booleans beside floats are numbers as well.
    numbers = [getattr(dtype, "numpy_dtype", dtype) for dtype in dtypes]
    if all(isinstance(dtype, np.dtype) and dtype.kind in "biuf" for dtype in numbers):
        return a.astype(np.result_type(*numbers))
    return a


def _is_missing(value: Any) -> bool:
    """Return whether a cell is None, NaN, NA or NaT."""
    nan = isinstance(value, float) and value != value
    return value is None or nan or type(value).__name__ in ("NAType", "NaTType")


def _of_rows(x: Any, name: str) -> np.ndarray:
    """Return a list of rows, or what else NumPy can read, in NumPy."""
    rows = x if isinstance(x, list | tuple) else []
    for row in rows:
        _refuse_masked(row, name)
    try:
        a = np.asarray(x)
    except (ValueError, TypeError, RuntimeError) as error:
        advice = "Make every row the same length."
        if rows and any(is_of(rows[0], library) for library in _CLASSES):
            advice = f"Stack them first: `{library_of(rows[0])}.stack({name})`."
        raise ValueError(
            f"`{name}` must be an array or rows of equal length; got {type(x).__name__} that "
            f"NumPy cannot read ({error}). {advice}"
        ) from error
    if a.dtype != object or a.ndim:
        return a
    # NumPy has wrapped what it does not know.
    advice = "Pass an array, a frame or a list of rows."
    if isinstance(x, Mapping):
        advice = f"Stack its columns first: `numpy.column_stack(list({name}.values()))`."
    elif hasattr(x, "collect"):
        advice = f"Collect it first: `{name}.collect()`."
    elif isinstance(x, Iterable):
        advice = (
            f"Make it a list first, `list({name})`, or, if it gives batches, pass them one by one."
        )
    raise TypeError(
        f"`{name}` must be an array or rows of real numbers; got an object of type {type(x).__name__}. {advice}"
    )
