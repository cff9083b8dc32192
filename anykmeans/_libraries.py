"""What a library's arrays are: namespace, device, and the way to NumPy and back; the only importer of ``array_api_compat``."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from typing import Any

import array_api_compat
import array_api_compat.numpy
import numpy as np

Array = Any  # an array of any library; the Array API has no static type yet
Namespace = Any
np_compat: Namespace = array_api_compat.numpy
Selection = Any  # a slice, or an integer array of row numbers
# What libraries call their arrays.
_CLASSES = {
    "torch": "Tensor",
    "cupy": "ndarray",
    "jax": "Array",
    "dask.array": "Array",
    "sparse": "SparseArray",
}


def is_of(x: object, library: str) -> bool:
    """Return whether `x` is an array of a library, one of `_CLASSES`, without importing it."""
    # Another thread may be importing the library just now, or its import be blocked: then `x` cannot be of it.
    kind = getattr(sys.modules.get(library), _CLASSES[library], None)
    return isinstance(kind, type) and isinstance(x, kind)


def is_sparse(x: Any) -> bool:
    """Return whether `x` is a SciPy sparse matrix or array, without importing SciPy."""
    kind: Any = type(x)
    return not isinstance(x, np.ndarray) and _sparse(kind)


@functools.cache  # as it is asked again and again
def _sparse(kind: Any) -> bool:
    module = sys.modules.get("scipy.sparse")  # as in `is_of`
    kinds = getattr(module, "spmatrix", ()), getattr(module, "sparray", ())
    return issubclass(kind, kinds)


def is_array(x: object) -> bool:
    """Return whether `x` is an array of some library, and not a list, a frame or a sparse matrix."""
    return hasattr(x, "__dlpack__") or hasattr(x, "__array_namespace__")


def namespace(x: Array) -> Namespace:
    """Return the Array API namespace of `x` (NumPy's for a sparse matrix)."""
    if isinstance(x, np.ndarray) or is_sparse(x):
        return np_compat
    return array_api_compat.array_namespace(x)


def library_of(x: Array) -> str:
    """Return the name of the library of `x`: ``"numpy"``, ``"torch"``, ``"cupy"``, ``"jax"``, ..."""
    name = str(namespace(x).__name__).removeprefix("array_api_compat.").split(".")[0]
    return name


def device_of(x: Array) -> Any:
    """Return the device of `x` (``"cpu"`` for NumPy and sparse matrices)."""
    if isinstance(x, np.ndarray) or is_sparse(x):
        return "cpu"
    if is_of(x, "jax"):
        return next(iter(x.devices()))  # its `device` may be a sharding over one
    return array_api_compat.device(x)


def where_is(x: Array) -> str:
    """Return library and device of `x` in words, for messages."""
    return f"{library_of(x)} on {device_of(x)}"


def same_place(a: Array, b: Array) -> bool:
    """Return whether `a` and `b` are of one library and on one device."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return True
    return library_of(a) == library_of(b) and bool(device_of(a) == device_of(b))


def beside(a: Array, x: Array) -> bool:
    """Return whether `a` can be used with `x` as it is.

    JAX on a CPU takes NumPy's arrays, too, and so does what is copied to the host: like this no bit of theirs is lost.
    """
    if isinstance(a, np.ndarray):
        near = isinstance(x, np.ndarray) or is_sparse(x) or _jax_on_cpu(x)
        return near or not has_float64(x)
    return same_place(a, x)


def dtype_name(x: Array) -> str:
    """Return the dtype of `x` as a bare word such as ``"float32"``."""
    dtype = x.dtype
    if isinstance(dtype, np.dtype):
        return _name(dtype)
    return str(getattr(dtype, "name", dtype)).removeprefix("torch.").split(".")[-1]


@functools.cache  # as NumPy makes it anew each time
def _name(dtype: np.dtype) -> str:
    return dtype.name


def on_cpu(x: Array) -> bool:
    """Return whether NumPy can look at the memory of `x`."""
    if is_sparse(x) or isinstance(x, np.ndarray):
        return True
    if is_of(x, "torch"):
        return bool(x.device.type == "cpu")
    return _jax_on_cpu(x)


def in_host(x: Array) -> bool:
    """Return whether work on `x` is done in host memory: where it is, or on a copy as its device has no float64."""
    return on_cpu(x) or not has_float64(x)


def _jax_on_cpu(x: Array) -> bool:
    return is_of(x, "jax") and bool(device_of(x).platform == "cpu")


def to_numpy(x: Array) -> Any:
    """Return the values of `x` in host memory as NumPy (or the sparse matrix itself)."""
    if is_sparse(x) or isinstance(x, np.ndarray):
        return x
    if is_of(x, "torch"):
        x = x.detach().cpu()
        return (x.float() if dtype_name(x) == "bfloat16" else x).numpy()
    if is_of(x, "cupy"):
        return x.get()
    if library_of(x) == "array_api_strict":
        # Its pretended devices refuse NumPy on purpose; the sanctioned way is through its CPU.
        return np.asarray(x.to_device(namespace(x).Device("CPU_DEVICE")))
    if is_of(x, "jax"):
        a = np.asarray(x)
        return a.astype(np.float32) if dtype_name(x) == "bfloat16" else a
    return np.from_dlpack(x)


def from_numpy(a: Any, library: str, device: Any = None) -> Array:
    """Return a NumPy array in another library, on `device` or the library's default.

    Where a device has no float64, such numbers become float32 there, as JAX makes them without 64 bits.
    """
    if library == "numpy":
        return a
    if library == "torch":
        import torch

        if _wide(a) and not has_float64(torch.empty(0, device=device)):
            a = a.astype(np.float32)
        return torch.as_tensor(a, device=device)
    if library == "cupy":
        import cupy

        with cupy.cuda.Device(getattr(device, "id", device)):
            return cupy.asarray(a)
    if library == "jax":
        import jax

        return jax.device_put(a, device)
    if library == "array_api_strict":
        import array_api_strict

        there = array_api_strict.empty(0, dtype=array_api_strict.float32, device=device)
        if _wide(a) and not has_float64(there):
            a = a.astype(np.float32)
        return array_api_strict.asarray(a, device=device)
    raise ValueError(
        f"`library` must be one of 'numpy', 'torch', 'cupy', 'jax', 'array_api_strict'; got "
        f'{library!r}. If that is a device, name the library, too: `to("torch", {library!r})`.'
    )


def _wide(a: Any) -> bool:
    """Return whether `a` is of float64 in NumPy; what is of another library already is where it can be."""
    return isinstance(a, np.ndarray) and a.dtype == np.float64


def names_device(word: str, library: str) -> bool:
    """Return whether a word, such as ``"cuda"``, names a device of a library: of PyTorch, as no other goes by words."""
    if library != "torch":
        return False
    import torch

    try:
        return torch.device(word) is not None
    except RuntimeError:
        return False


def move(x: Array, library: str, device: Any = None) -> Array:
    """Return a copy of `x` in another library and on another device."""
    if library == "torch" and is_of(x, "torch"):
        import torch

        x, device = x.detach(), device or "cpu"
        if x.dtype == torch.float64 and not has_float64(torch.empty(0, device=device)):
            x = x.float()
        return x.to(device=device, copy=True)  # keeps bfloat16, GPU to GPU
    return from_numpy(np.array(to_numpy(x)), library, device)


def without_history(a: Any) -> Any:
    """Return `a`, or the values alone of a tensor that a network computed: with its history it cannot be copied."""
    computed = is_of(a, "torch") and a.grad_fn is not None
    return a.detach() if computed else a


def like(a: Any, x: Array) -> Array:
    """Return the NumPy array `a` in the library and on the device of `x`."""
    return from_numpy(a, library_of(x), device_of(x))


def placed(a: Any, x: Array) -> Array:
    """Return the NumPy array `a` as an array to use with `x`, all bits kept."""
    return a if beside(a, x) else like(a, x)


def take(x: Array, select: Any) -> Array:
    """Return rows of `x` by their numbers (m,) or a slice, or a problem of a batch by its number, beside `x`."""
    if is_sparse(x) or isinstance(x, np.ndarray):
        return x[select]
    if _jax_on_cpu(x):  # which would compile this for each shape
        return like(np.asarray(x)[select], x)
    if isinstance(select, int | slice):
        return x[select, ...]
    return namespace(x).take(x, like(select, x), axis=0)


def joined(parts: Sequence[Array], *, ends: bool) -> Array:
    """Return arrays as one: end to end if such `ends` are to meet, else with an axis of their own in front."""
    if ends and len(parts) == 1:
        return parts[0]
    copied = _jax_on_cpu(parts[0])  # as in `take`
    seen = [np.asarray(a) for a in parts] if copied else parts
    xp = namespace(seen[0])
    found = xp.concat(seen) if ends else xp.stack(seen)
    return like(found, parts[0]) if copied else found


def full_float32_products(x: Array) -> bool:
    """Return whether a float32 matrix product on `x` really has 24-bit factors.

    PyTorch, CuPy and JAX can be told to (or do) round the factors to 10 bits on tensor cores; the
    error bounds behind certified labels would not hold then, so such products are made in float64.
    """
    if is_of(x, "torch"):
        import torch

        if torch.is_autocast_enabled(x.device.type):
            return (
                False  # autocast rounds the factors of float32 products, but leaves float64 alone
            )
        try:
            return (
                torch.get_float32_matmul_precision() == "highest"
                and not torch.backends.cuda.matmul.allow_tf32
            )
        except RuntimeError:  # somebody has set the precision by its newer name
            return False
    if is_of(x, "cupy"):
        return os.environ.get("CUPY_TF32", "0") != "1"
    if is_of(x, "jax"):
        return in_host(x)
    return True


def put(xp: Namespace, a: Array, at: Array, values: Array) -> Array:
    """Return `a` (m,) with ``a[at] = values`` for ascending `at`; `a` itself where it can be written."""
    if array_api_compat.is_writeable_array(a) and xp.__name__ != "array_api_strict":
        a[at] = values
        return a
    # The standard has no assignment by index, and JAX none at all: gather instead.
    if at.shape[0] == 0:
        return a
    rows = xp.arange(a.shape[0], dtype=at.dtype, device=device_of(a))
    place = xp.searchsorted(at, rows)
    place = xp.where(place < at.shape[0], place, xp.zeros_like(place))
    return xp.where(xp.take(at, place) == rows, xp.take(values, place), a)


def marked(labels: Array, k: int) -> Array:
    """Return which of 0 to k - 1 are among each row of `labels` (b, n), int64: booleans (b, k)."""
    xp, (b, n) = namespace(labels), labels.shape
    if is_of(labels, "torch"):
        return labels.new_zeros((b, k), dtype=xp.bool).scatter_(1, labels, True)
    at = xp.arange(b, dtype=labels.dtype, device=device_of(labels))[:, None] * k + labels
    at = xp.reshape(at, (b * n,))
    if is_of(labels, "jax") or xp.__name__ == "array_api_strict":
        at = xp.unique_values(at)  # as `put` wants them
    seen = xp.zeros(b * k, dtype=xp.bool, device=device_of(labels))
    return xp.reshape(put(xp, seen, at, xp.ones_like(at, dtype=xp.bool)), (b, k))


def has_float64(x: Array) -> bool:
    """Return whether float64 can be computed where `x` lives, with the roundings that it has everywhere."""
    if on_cpu(x) or is_of(x, "cupy") or (is_of(x, "torch") and x.is_cuda):
        return True
    if is_of(x, "torch"):
        return _tensors_have_float64(x.device)
    if is_of(x, "jax"):
        platform, wide = device_of(x).platform, sys.modules["jax"].config.jax_enable_x64
        # A TPU makes one of several float32, with roundings of its own.
        if platform == "tpu" or not wide:
            return False
        if platform == "gpu":
            return True
    return _computes_float64(namespace(x), device_of(x))


@functools.cache  # as a device is waited for
def _tensors_have_float64(device: Any) -> bool:
    """Return whether a device of PyTorch computes float64."""
    import torch

    return device.type != "xla" and _computes_float64(torch, device)  # which may be a TPU


def _computes_float64(xp: Namespace, device: Any) -> bool:
    """Return whether float64 can be made on a device, added there, and brought back."""
    try:
        one = xp.ones(1, dtype=xp.float64, device=device)
        # Some devices hold such numbers and cannot add them.
        return bool(to_numpy(one + 2.0**-52)[0] > 1)
    except (TypeError, ValueError, RuntimeError):
        return False


def stacked(xp: Namespace, arrays: Sequence[Array]) -> Array:
    """Return arrays with an axis of their own in front; one alone is not copied."""
    return xp.stack(arrays) if len(arrays) > 1 else arrays[0][None, ...]
