"""Every error a user can meet, in one voice: the argument, what was wanted, what came, what to do."""

from __future__ import annotations

import math
import operator
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anykmeans import _libraries as arrays
from anykmeans._inputs import as_array
from anykmeans._libraries import Array
from anykmeans._matrix import supported_dtype

INITS = ("k-means++", "random", "k-means||")
EMPTY = ("relocate", "keep", "error")
PRECISIONS = ("exact", "fast")
METRICS = ("euclidean", "cosine")
# What stands between the caller's line and ours: pipelines, searches, and what wraps calls.
_BETWEEN = {"anykmeans", "sklearn", "joblib", "torch", "functools", "contextlib"}


@dataclass(frozen=True)
class Names:
    """What the caller calls the rows, the number of clusters and centroids: errors speak of nothing else."""

    x: str = "x"
    k: str = "k"
    centroids: str = "centroids"


FUNCTIONS = Names()
ESTIMATORS = Names("X", "n_clusters", "cluster_centers_")


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line of the caller, wherever in the package this is."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def matrix(x: Any, name: str = "x", *, batch: bool = False) -> Array:
    """Return `x` as an array of real numbers (n, d), or also (b, n, d) if `batch`, with b, n, d >= 1."""
    advice = "Reshape one feature to (n, 1), one row to (1, d)."
    if hasattr(x, "to_frame"):
        advice = f"Make one feature a frame with `{name}.to_frame()`."
    x = as_array(x, name)
    kind = getattr(getattr(x, "dtype", None), "kind", "")
    if kind == "O" and isinstance(x, np.ndarray):
        raise TypeError(
            f"`{name}` must hold real numbers; got dtype object. Convert it first, for example "
            f"with `{name}.astype(float)`."
        )
    if "complex" in arrays.dtype_name(x):
        raise ValueError(
            f"`{name}` must hold real numbers; got {arrays.dtype_name(x)}. Complex data not "
            f"supported: stack real and imaginary parts as features."
        )
    if not supported_dtype(x):
        raise TypeError(
            f"`{name}` must hold real numbers (float64, float32, float16, bfloat16, integers or "
            f"booleans); got dtype {arrays.dtype_name(x)}. Convert it to one of these."
        )
    dimensions = len(x.shape)
    if dimensions != 2 and not (batch and dimensions == 3):
        more = ", or 3, (problems, rows, features)" if batch else ""
        raise ValueError(
            f"`{name}` must have 2 dimensions, (rows, features){more}; got shape {tuple(x.shape)}. "
            f"{advice}"
        )
    if 0 in x.shape:
        least = "one row and one feature" if dimensions == 2 else "one problem, row and feature"
        raise ValueError(
            f"`{name}` must have at least {least}; got shape {tuple(x.shape)}. "
            f"There is nothing to cluster."
        )
    return x


def finite(values: Any, name: str, dtype: str) -> None:
    """Raise if `values` (host, per feature maxima of magnitude) say that `name` is not finite."""
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        what = "NaN" if np.isnan(values[bad]).any() else "infinity"
        advice = "Remove or impute these rows first."
        if what == "infinity" and dtype == "float16":
            advice = "float16 overflows above 65504: cluster in float32, or scale the data."
        if "*" in name:
            advice = "Scale the weights down: only their proportions move centroids."
        raise ValueError(
            f"`{name}` must be finite; got {what} (NaN or infinity are not allowed) in feature "
            f"{int(bad[0])}. {advice}"
        )


def directed(zero: Any, name: str, each: str) -> None:
    """Raise if `each` row or centroid of these numbers (m,), host, has length 0."""
    if len(zero):
        numbers = ", ".join(map(str, zero[:5].tolist())) + (", ..." if len(zero) > 5 else "")
        advice = "Give others" if each == "centroid" else "Leave such rows out first"
        raise ValueError(
            f"`{name}` must have no {each} of length 0 with `metric`='cosine', as it has no direction; got "
            f"{len(zero)} such, number {numbers}. {advice}, or use `metric`='euclidean'."
        )


def summable(values: Any, n: int, name: str) -> None:
    """Raise if `n` summands as large as `values` (host, per feature) may add up beyond float64."""
    largest = float(np.max(values))
    if largest * 2.0**-1000 * n > 2.0**22:
        raise ValueError(
            f"`{name}` must add up within float64; got values up to {largest:.1e} in {n} rows. Scale "
            f"the data down."
        )


def whole(value: Any, name: str, least: int) -> int:
    """Return `value` as an int not below `least`; booleans and floats are refused."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number: int = operator.index(value)
    except TypeError:
        raise TypeError(
            f"`{name}` must be a whole number; got {value!r} of type {type(value).__name__}."
        ) from None
    if number < least:
        raise ValueError(f"`{name}` must be at least {least}; got {name}={number}.")
    return number


def is_one_each(value: Any) -> bool:
    """Return whether a value is a list, or an array of one dimension: one for each problem, rather than one for all."""
    return isinstance(value, list | tuple | range) or len(getattr(value, "shape", ())) == 1


def is_number(value: Any) -> bool:
    """Return whether a value is a number, in an array without dimensions or in none."""
    return isinstance(value, int | float) or getattr(value, "shape", None) == ()


def wholes(values: Any, name: str) -> list[int]:
    """Return `values`, one for each problem, as ints of at least 1."""
    if not isinstance(values, list | tuple | range):
        a = arrays.to_numpy(as_array(values, name))
        if a.ndim != 1:
            raise TypeError(
                f"`{name}` must be a list of whole numbers, one for each problem; got {values!r} of type "
                f"{type(values).__name__}."
            )
        values = list(a)
    return [whole(value, f"{name}[{i}]", 1) for i, value in enumerate(values)]


def lengths(values: Any, x: Array, name: str = "x") -> list[int]:
    """Return the numbers of rows of problems that lie end to end in `x` (N, d), as ints."""
    found, n = wholes(values, "lengths"), x.shape[0]
    if sum(found) != n:
        raise ValueError(
            f"`lengths` must add up to the number of rows of {name}, {n}; got {sum(found)}, in {len(found)} problems."
        )
    return found


def clusters(k: Any, x: Array, names: Names = FUNCTIONS) -> int:
    """Return `k` as an int between 1 and the number of rows."""
    number = whole(k, names.k, 1)
    n = x.shape[-2]
    if number > n:
        raise ValueError(
            f"`{names.k}` must be between 1 and the number of rows; got {names.k}={k} with {names.x} of shape "
            f"{tuple(x.shape)} (n_samples={n} should be >= n_clusters={k})."
        )
    return number


def number(value: Any, name: str) -> float:
    """Return `value` as a float."""
    try:
        if isinstance(value, str | bool):
            raise TypeError
        return float(value)
    except TypeError:
        raise TypeError(
            f"`{name}` must be a number; got {value!r} of type {type(value).__name__}."
        ) from None


def tolerance(tol: Any, name: str = "tol") -> float:
    """Return `tol` as a finite float that is not negative."""
    found = number(tol, name)
    if not (math.isfinite(found) and found >= 0):
        raise ValueError(f"`{name}` must be finite and not negative; got {name}={found}.")
    return found


def word(value: Any, name: str, allowed: tuple[str, ...]) -> str:
    """Return `value` if it is one of the `allowed` words."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}; got {value!r}.")
    return value


def budget(max_bytes: Any, row_bytes: int) -> int | None:
    """Return `max_bytes` as an int that holds the work on at least one row, or None."""
    if max_bytes is None:
        return None
    bytes_ = whole(max_bytes, "max_bytes", 1)
    if bytes_ < row_bytes:
        raise ValueError(
            f"`max_bytes` must hold the work on a single row, {row_bytes} bytes here; got "
            f"max_bytes={bytes_}. Leave it at None unless memory is short."
        )
    return bytes_


def threads(value: Any) -> int | None:
    """Return `value` as a whole number of threads, at least one, or None."""
    return None if value is None else whole(value, "threads", 1)


def weights(
    w: Any,
    x: Array,
    names: Names = FUNCTIONS,
    *,
    follow: bool = False,
    name: str = "sample_weight",
) -> Array | None:
    """Return sample weights in the library of `x`: finite, not negative, not all zero.

    Their shape is (n,), or also (b, n) where `x` is (b, n, d). They are moved to `x` if they `follow` it.
    """
    if w is None:
        return None
    w, place = _numbers(w, name)
    if arrays.is_sparse(w):
        raise TypeError(f"`{name}` must be a dense array; got a sparse one. Use its `toarray()`.")
    *b, n, _ = x.shape
    if w.ndim == 0:  # as in scikit-learn, one number weighs every row
        w, place = np.full(n, float(w)), False
    if tuple(w.shape) not in ((n,), (*b, n)):
        every = f" for all problems, or ({b[0]}, {n})" if b else ""
        raise ValueError(
            f"`{name}` must have shape ({n},){every}, one weight a row; got shape {tuple(w.shape)}."
        )
    w = _beside(w, x, name, names, place=place and not follow)
    # One look at those of all problems.
    seen = arrays.to_numpy(w) if arrays.on_cpu(w) else w
    xp = arrays.namespace(seen)
    ends = arrays.to_numpy(xp.stack([xp.max(seen, axis=-1), xp.min(seen, axis=-1)]))
    for i, (high, low) in enumerate(zip(*ends.reshape(2, -1).tolist(), strict=True)):
        _weigh(high, low, name if w.ndim == 1 else f"{name}[{i}]")
    return w


def _weigh(high: float, low: float, name: str) -> None:
    """Raise if weights from `low` to `high` are not finite, negative or all zero."""
    if not (math.isfinite(high) and math.isfinite(low)):
        raise ValueError(f"`{name}` must be finite; got NaN or infinity among the weights.")
    if low < 0:
        raise ValueError(
            f"`{name}` must not be negative; got {float(low)} as the smallest weight. "
            f"Leave rows out by giving them weight 0."
        )
    if high == 0:
        raise ValueError(f"`{name}` must not be all zero; got zero for every sample weight.")


def weigh(w: Array, parts: Sequence[slice]) -> None:
    """Raise if the weights (N,), fine as they are, of a part of the rows are all zero."""
    highs = np.maximum.reduceat(host_float64(w), [part.start for part in parts])
    for part, high in zip(parts, highs.tolist(), strict=True):
        _weigh(high, 0.0, f"sample_weight[{part.start}:{part.stop}]")


def centroids(c: Any, x: Array, name: str, k: int | None = None, names: Names = FUNCTIONS) -> Array:
    """Return given centroids in the library of `x`, finite.

    Their shape is (k, d), or also (b, k, d) where `x` is (b, n, d).
    """
    c, place = _numbers(c, name)
    *b, _, d = x.shape
    shape = tuple(c.shape)
    if (
        len(shape) < 2
        or shape[:-2] not in ((), tuple(b))
        or shape[-1] != d
        or shape[-2] < 1
        or (k is not None and shape[-2] != k)
    ):
        wanted = f"{k if k is not None else 'k'}, {d}"
        every = f" for all problems, or ({b[0]}, {wanted})" if b else ""
        # In the words of scikit-learn, for those who look for them.
        reason = ""
        if k is not None and len(shape) == 2:
            what = f"clusters {k}" if shape[0] != k else f"features of the data {d}"
            reason = (
                f" The shape of the initial centers {shape} does not match the number of {what}."
            )
        raise ValueError(
            f"`{name}` must have shape ({wanted}){every}, (clusters, features of {names.x}); got shape "
            f"{shape}.{reason}"
        )
    c = _beside(c, x, name, names, place=place)
    if not _are_finite(c):
        at = f"[{np.argwhere(~np.isfinite(host(c)))[0, 0]}]" if len(shape) == 3 else ""
        raise ValueError(f"`{name}{at}` must be finite; got NaN or infinity among the centroids.")
    return c


def _are_finite(c: Array) -> bool:
    """Return whether all values are finite, without temporaries as large as they are."""
    if arrays.on_cpu(c) and not arrays.dtype_name(c).endswith("float16"):
        values = host(c)
        # A sum reads them once. (A product would, too, but its threads spin on the cores that ours want next.)
        return bool(np.isfinite(values.sum()) or np.isfinite([values.min(), values.max()]).all())
    if "float" not in arrays.dtype_name(c):
        return True
    xp = arrays.namespace(c)  # where they are, as NumPy takes ten times as long for half precision
    return bool(np.isfinite(arrays.to_numpy(xp.stack([xp.min(c), xp.max(c)]))).all())


def squared_norms(norms: Any, x: Array, names: Names) -> None:
    """Raise if given squared norms are not one a row of `x` (n, d)."""
    if norms is None:
        return
    shape, n = tuple(as_array(norms, "x_squared_norms").shape), x.shape[0]
    if shape[:1] != (n,):
        raise ValueError(
            f"`x_squared_norms` must have shape ({n},), one number a row of {names.x}; got shape {shape}. The length "
            f"of x_squared_norms {shape[0] if shape else 1} should be equal to the length of n_samples {n}."
        )


def start(init: Any, x: Array, k: int, names: Names = FUNCTIONS) -> Any:
    """Return `init`: a word, a function, or given centroids (k, d) or (b, k, d)."""
    if isinstance(init, str):
        return word(init, "init", INITS)
    return init if callable(init) else centroids(init, x, "init", k, names)


def _numbers(a: Any, name: str) -> tuple[Array, bool]:
    """Return `a` as an array of real numbers, and whether it has a place of its own, as lists and frames have not."""
    place = arrays.is_sparse(a) or arrays.is_array(a)
    a = as_array(a, name)
    if isinstance(a, np.ndarray) and a.dtype.kind == "O":
        try:
            a = a.astype(np.float64)
        except (TypeError, ValueError):
            raise TypeError(f"`{name}` must hold real numbers; got dtype object.") from None
    if not supported_dtype(a):
        raise TypeError(f"`{name}` must hold real numbers; got dtype {arrays.dtype_name(a)}.")
    return a, place


def host(c: Array) -> Any:
    """Return the values of a small array in host memory, dense."""
    return c.toarray() if arrays.is_sparse(c) else arrays.to_numpy(c)


def host_float64(c: Array) -> Any:
    """Return the values of a small array as float64 in host memory."""
    return np.asarray(host(c), dtype=np.float64)


def _beside(a: Array, x: Array, name: str, names: Names, *, place: bool) -> Array:
    """Return `a` where `x` lives; with a `place` of its own it is never moved behind the user's back."""
    if arrays.beside(a, x):
        return a
    if not place:
        return arrays.placed(np.array(arrays.to_numpy(a)), x)
    raise _misplaced(a, x, name, names.x)


def beside(a: Array, x: Array, name: str, x_name: str) -> None:
    """Raise if the array called `name` is not of the library of `x` and on its device."""
    if not arrays.same_place(a, x):
        raise _misplaced(a, x, name, x_name)


def _misplaced(a: Array, x: Array, name: str, x_name: str) -> ValueError:
    """Return what says where the array called `name` is, where `x` is, and how to move the one to the other."""
    library, device = arrays.library_of(x), arrays.device_of(x)
    fix = {
        "numpy": f"{name} = numpy.asarray({name})",
        "torch": f"{name} = torch.as_tensor({name}, device={str(device)!r})",
        "cupy": f"{name} = cupy.asarray({name})",
        "jax": f"{name} = jax.device_put({name}, {x_name}.device)",
    }.get(library, f"{name} = xp.asarray({name}, device={x_name}.device)")
    return ValueError(
        f"`{name}` must live where `{x_name}` does; got {name} of {arrays.where_is(a)} and {x_name} of "
        f"{arrays.where_is(x)}. Move it first:\n    {fix}"
    )
