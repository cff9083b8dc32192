"""Namespace, device and dtype of an input; the only importer of ``array_api_compat``.

Everything else in the package works on a :class:`Matrix`: the rows the user gave, read a few at a
time and never written to, together with the namespace in which the work is done. On a CPU that
namespace is NumPy for every library whose arrays share memory with it; elsewhere it is the library's
own.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, cast

import array_api_compat
import numpy as np
from array_api_compat import numpy as np_compat

P = ParamSpec("P")
T = TypeVar("T")
Array = Any  # an array of any library; the Array API has no static type yet
Namespace = Any
Selection = Any  # a slice, or an integer array of row numbers

# Dtypes whose every value is a float32, so that float32 arithmetic starts from exact numbers.
_NARROW = {"float32", "float16", "bfloat16", "bool", "int8", "uint8", "int16", "uint16"}
_WIDE = {"float64", "int32", "uint32", "int64", "uint64"}
# Half and single precision stay single; integers and booleans promote to double, as in scikit-learn.
_SINGLE_STATE = {"float32", "float16", "bfloat16"}


def eager(function: Callable[P, T]) -> Callable[P, T]:
    """Return `function` as one that `torch.compile` calls as it is.

    It would look into it otherwise, and take PyTorch's operations for NumPy's, whose bits are others.
    """

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        dynamo = sys.modules.get("torch._dynamo")
        if dynamo is None:  # nothing is being compiled
            return function(*args, **kwargs)
        left_alone: Callable[P, T] = dynamo.disable(function)
        return left_alone(*args, **kwargs)

    called._torchdynamo_disable = True  # type: ignore[attr-defined]
    return called


def is_sparse(x: object) -> bool:
    """Return whether `x` is a SciPy sparse matrix or array, without importing SciPy."""
    if isinstance(x, np.ndarray):
        return False
    # Another thread may be importing SciPy just now: then `x` cannot be one yet.
    issparse = getattr(sys.modules.get("scipy.sparse"), "issparse", None)
    return issparse is not None and bool(issparse(x))


def as_array(x: Any, name: str = "x") -> Array:
    """Return `x` as an array of its own library: lists and frames become NumPy, tensors detached."""
    if is_sparse(x):
        if len(x.shape) > 2:
            raise ValueError(
                f"`{name}` must have at most 2 dimensions where it is sparse; got shape {tuple(x.shape)}. "
                f"Make it dense with `{name}.toarray()`."
            )
        return x.tocsr()
    if array_api_compat.is_torch_array(x):
        return x.detach().resolve_neg()
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise ValueError(
            f"`{name}` must have no masked values; got {int(np.ma.getmaskarray(x).sum())} of them. Remove or "
            f"impute these rows first."
        )
    if isinstance(x, np.ndarray):
        return np.asarray(x)  # a view: subclasses such as np.matrix have operators of their own
    if array_api_compat.is_array_api_obj(x):
        return x
    if hasattr(x, "__array_namespace__"):
        return x
    if hasattr(x, "to_numpy"):
        return x.to_numpy()
    try:
        return np.asarray(x)
    except ValueError as error:
        raise ValueError(
            f"`{name}` must be an array or rows of equal length; got {type(x).__name__} that "
            f"NumPy cannot read ({error}). Make every row the same length."
        ) from error


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
    if array_api_compat.is_jax_array(x):
        return next(iter(x.devices()))  # its `device` may be a sharding over one
    return array_api_compat.device(x)


def where_is(x: Array) -> str:
    """Return library and device of `x` in words, for messages."""
    return f"{library_of(x)} on {device_of(x)}"


def same_place(a: Array, b: Array) -> bool:
    """Return whether `a` and `b` are of one library and on one device."""
    return library_of(a) == library_of(b) and bool(device_of(a) == device_of(b))


def beside(a: Array, x: Array) -> bool:
    """Return whether `a` can be used with `x` as it is: JAX on a CPU takes NumPy's arrays, too."""
    if isinstance(a, np.ndarray):
        return isinstance(x, np.ndarray) or is_sparse(x) or _jax_on_cpu(x)
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
    if array_api_compat.is_torch_array(x):
        return bool(x.device.type == "cpu")
    return _jax_on_cpu(x)


def _jax_on_cpu(x: Array) -> bool:
    return array_api_compat.is_jax_array(x) and bool(device_of(x).platform == "cpu")


def to_numpy(x: Array) -> Any:
    """Return the values of `x` in host memory as NumPy (or the sparse matrix itself)."""
    if is_sparse(x) or isinstance(x, np.ndarray):
        return x
    if array_api_compat.is_torch_array(x):
        x = x.detach().cpu()
        return (x.float() if dtype_name(x) == "bfloat16" else x).numpy()
    if array_api_compat.is_cupy_array(x):
        return x.get()
    if library_of(x) == "array_api_strict":
        # Its pretended devices refuse NumPy on purpose; the sanctioned way is through its CPU.
        return np.asarray(x.to_device(namespace(x).Device("CPU_DEVICE")))
    if array_api_compat.is_jax_array(x):
        a = np.asarray(x)
        return a.astype(np.float32) if dtype_name(x) == "bfloat16" else a
    return np.from_dlpack(x)


def from_numpy(a: Any, library: str, device: Any = None) -> Array:
    """Return a NumPy array in another library, on `device` or the library's default."""
    if library == "numpy":
        return a
    if library == "torch":
        import torch

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

        return array_api_strict.asarray(a, device=device)
    raise ValueError(
        f"`library` must be one of 'numpy', 'torch', 'cupy', 'jax', 'array_api_strict'; got "
        f"{library!r}."
    )


def move(x: Array, library: str, device: Any = None) -> Array:
    """Return a copy of `x` in another library and on another device."""
    if library == "torch" and array_api_compat.is_torch_array(x):
        return x.detach().to(device=device or "cpu", copy=True)  # keeps bfloat16, GPU to GPU
    return from_numpy(np.array(to_numpy(x)), library, device)


def like(a: Any, x: Array) -> Array:
    """Return the NumPy array `a` in the library and on the device of `x`."""
    return from_numpy(a, library_of(x), device_of(x))


def placed(a: Any, x: Array) -> Array:
    """Return the NumPy array `a` as an array to use with `x`, all bits kept."""
    return a if beside(a, x) else like(a, x)


def part(x: Array, select: Any) -> Array:
    """Return rows of `x` by their numbers (m,), or a problem of a batch by its number, beside `x`."""
    if is_sparse(x) or isinstance(x, np.ndarray):
        return x[select]
    if _jax_on_cpu(x):  # which would compile this for each shape
        return like(np.asarray(x)[select], x)
    if isinstance(select, int):
        return x[select, ...]
    return namespace(x).take(x, like(select, x), axis=0)


def full_float32_products(x: Array) -> bool:
    """Return whether a float32 matrix product on `x` really has 24-bit factors.

    PyTorch, CuPy and JAX can be told to (or do) round the factors to 10 bits on tensor cores; the
    error bounds behind certified labels would not hold then, so such products are made in float64.
    """
    if array_api_compat.is_torch_array(x):
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
    if array_api_compat.is_cupy_array(x):
        return os.environ.get("CUPY_TF32", "0") != "1"
    if array_api_compat.is_jax_array(x):
        return on_cpu(x)
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


class _Alias:
    """The memory of `x`, said to be writable, as Numba compiles everything once more for read-only arrays."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x  # not to be freed
        about = x.__array_interface__
        self.__array_interface__ = about | {"data": (about["data"][0], False)}


@dataclass(frozen=True)
class Matrix:
    """The rows a user gave, read a few at a time in floating point; nothing is ever written.

    JAX's arrays on a CPU are always NumPy's here: XLA divides by multiplying, takes the smallest
    numbers for zero, may have no float64, and compiles each operation for each shape.

    Attributes
    ----------
    source : array of shape (n, d)
        The array as given (detached, CSR), for the library and device of results.
    data : array of shape (n, d)
        The same memory as the work sees it: a view of another library, or `source` itself.
    xp : namespace
        Where the work is done.
    device : object
        The device of `data`.
    dtype : str
        Bare name of the dtype of `source`.
    """

    source: Array
    data: Array
    xp: Namespace
    device: Any
    dtype: str

    @classmethod
    def of(cls, x: Array, library: str | None) -> Matrix:
        """Return a Matrix over `x` as `library`, which must be able to reach its memory, sees it.

        An `x` (n,) is one column.
        """
        dtype = dtype_name(x)
        data = x
        host = library == "numpy" or _jax_on_cpu(x)
        if host and not isinstance(x, np.ndarray) and not is_sparse(x):
            if array_api_compat.is_torch_array(x):
                import torch

                # NumPy has no bfloat16; its bits are the upper half of a float32's.
                data = (x.view(torch.int16) if dtype == "bfloat16" else x).numpy()
            else:
                data = np.asarray(x)
        elif library == "torch" and array_api_compat.is_cupy_array(x):
            import torch

            # A tensor has no strides below 0; rows that do are not sent here, but weights may be.
            data = torch.from_dlpack(x if min(x.strides) >= 0 else x.copy())
        if isinstance(data, np.ndarray) and not data.flags.writeable and data.dtype.kind in "biuf":
            data = np.asarray(_Alias(data))
        if len(data.shape) == 1:
            data = data[:, None]
        xp = np_compat if host else namespace(data)
        return cls(x, data, xp, "cpu" if host else device_of(data), dtype)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.data.shape[0]), int(self.data.shape[1])

    @property
    def narrow(self) -> bool:
        """Whether every value is a float32."""
        return self.dtype in _NARROW

    @property
    def integral(self) -> bool:
        """Whether every value is an integer."""
        return "int" in self.dtype or self.dtype == "bool"

    @property
    def float_dtype(self) -> Any:
        """The smallest of float32 and float64 that holds every value (int64 rounds past 2^53)."""
        return self.xp.float32 if self.narrow else self.xp.float64

    @property
    def state_dtype(self) -> Any:
        """The dtype of centroids."""
        return self.xp.float32 if self.dtype in _SINGLE_STATE else self.xp.float64

    def rows(self, select: Selection, dtype: Any = None) -> Array:
        """Return the selected rows (m, d), dense, in `dtype` (default: `float_dtype`)."""
        xp = self.xp
        dtype = self.float_dtype if dtype is None else dtype
        if isinstance(select, slice) or xp is np_compat:
            block = self.data[select, :] if isinstance(select, slice) else self.data[select]
        else:
            block = xp.take(self.data, select, axis=0)
        if is_sparse(block):
            block = block.toarray()
        if self.dtype == "bfloat16" and isinstance(block, np.ndarray) and block.dtype == np.int16:
            block = (block.astype(np.int32) << 16).view(np.float32)
        if block.dtype == dtype:
            return block
        if self.dtype == "bool" and xp is not np_compat:
            return xp.where(block, xp.ones((), dtype=dtype), xp.zeros((), dtype=dtype))
        return xp.astype(block, dtype)

    @property
    def direct(self) -> bool:
        """Whether compiled code can read the rows where they are."""
        x = self.data
        return (
            isinstance(x, np.ndarray)
            and x.dtype in (np.float32, np.float64)
            and x.dtype.isnative
            and x.flags.c_contiguous
            and x.flags.aligned
        )

    def readable(self, select: Selection) -> tuple[np.ndarray, np.ndarray]:
        """Return float rows that compiled code can read, and the numbers of the selected ones in it.

        Without a copy where the user's array is one, for work in NumPy alone.
        """
        number = np.int32 if self.shape[0] < 1 << 31 else np.int64
        if not self.direct:
            rows = self.rows(select)
            return np.ascontiguousarray(rows), np.arange(rows.shape[0], dtype=number)
        if isinstance(select, slice):
            return self.data, np.arange(*select.indices(self.shape[0]), dtype=number)
        return self.data, select.astype(number, copy=False)

    def asarray(self, a: Any, dtype: Any = None) -> Array:
        """Return host numbers as an array where the work is done."""
        return self.xp.asarray(a, dtype=dtype, device=self.device)

    def arange(self, stop: int) -> Array:
        """Return 0, 1, ..., stop - 1 where the work is done."""
        return self.xp.arange(stop, dtype=self.xp.int64, device=self.device)

    def give(self, a: Array) -> Array:
        """Return a result in the library and on the device of the user's array."""
        if self.data is self.source:
            return a
        if array_api_compat.is_cupy_array(self.source):
            return namespace(self.source).from_dlpack(a)
        return like(a, self.source)


def supported_dtype(x: Array) -> bool:
    """Return whether `x` holds real numbers or booleans of a kind the package computes with."""
    return dtype_name(x) in _NARROW | _WIDE


def not_at_hand(x: Array) -> str | None:
    """Return what keeps the numbers of `x` from being read where it is, or None."""
    if isinstance(x, np.ndarray):
        return None
    if array_api_compat.is_torch_array(x):
        if str(x.layout) != "torch.strided":
            return f"a tensor of layout {x.layout}; use its to_dense()"
        if x.device.type == "meta":
            return "a tensor on the meta device, which holds no numbers"
    elif array_api_compat.is_jax_array(x):
        import jax

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


def has_float64(x: Array) -> bool:
    """Return whether float64 can be computed where `x` lives."""
    if on_cpu(x):
        return True
    if array_api_compat.is_jax_array(x) and device_of(x).platform == "tpu":
        return False  # made of several float32, with roundings of its own
    xp = namespace(x)
    try:
        probe = xp.asarray([0.0], dtype=xp.float64, device=device_of(x))
    except (TypeError, ValueError):
        return False
    return cast(bool, probe.dtype == xp.float64)
