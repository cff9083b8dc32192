"""Namespace, device and dtype of an input; the only importer of ``array_api_compat``.

Everything else in the package works on a :class:`Matrix`: the rows the user gave, read a few at a
time and never written to, together with the namespace in which the work is done. On a CPU that
namespace is NumPy for every library whose arrays share memory with it; elsewhere it is the library's
own.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, cast

import array_api_compat
import numpy as np
from array_api_compat import numpy as np_compat

from anykmeans._sparse import SparseRows

P = ParamSpec("P")
T = TypeVar("T")
Array = Any  # an array of any library; the Array API has no static type yet
Namespace = Any
Selection = Any  # a slice, or an integer array of row numbers

_SPARSE_BYTES = 1 << 28  # for a copy of sparse rows, unless the user says otherwise

# What libraries call their arrays.
_CLASSES = {
    "torch": "Tensor",
    "cupy": "ndarray",
    "jax": "Array",
    "dask.array": "Array",
    "sparse": "SparseArray",
}
# Dtypes whose every value is a float32, so that float32 arithmetic starts from exact numbers.
_NARROW = {"float32", "float16", "bfloat16", "bool", "int8", "uint8", "int16", "uint16"}
_WIDE = {"float64", "int32", "uint32", "int64", "uint64"}
# Half and single precision stay single; integers and booleans promote to double, as in scikit-learn.
_SINGLE_STATE = {"float32", "float16", "bfloat16"}
_PRECISION = {
    "bfloat16": (8, -133),
    "float16": (11, -24),
    "float32": (24, -149),
    "float64": (53, -1074),
}


# How the user wants floating-point errors handled, while a public function is at work.
_errors: ContextVar[Any] = ContextVar("errors", default=None)


class _NoErrors:
    """Has no underflow or overflow inside end a call, whatever the user's `numpy.errstate`."""

    def __enter__(self) -> None:
        self._outermost = _errors.get() is None  # else a public function has called another
        if self._outermost:
            self._users = np.seterr(all="ignore")
            self._before = _errors.set(self._users)

    def __exit__(self, *error: object) -> None:
        if self._outermost:
            _errors.reset(self._before)
            np.seterr(**self._users)


def eager(function: Callable[P, T]) -> Callable[P, T]:
    """Return a public function as one that `torch.compile` calls as it is, and that no errors of NumPy end.

    It would look into it otherwise, and take PyTorch's operations for NumPy's, whose bits are others.
    """

    def handled(*args: P.args, **kwargs: P.kwargs) -> T:
        with _NoErrors():
            return function(*args, **kwargs)

    left_alone: list[Callable[P, T]] = []  # once made, which takes longer than some calls

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        disable = getattr(sys.modules.get("torch._dynamo"), "disable", None)
        if disable is None:  # nothing is being compiled
            with _NoErrors():
                return function(*args, **kwargs)
        if not left_alone:
            left_alone.append(disable(handled))
        return left_alone[0](*args, **kwargs)

    called._torchdynamo_disable = True  # type: ignore[attr-defined]
    return called


@contextlib.contextmanager
def users_errors() -> Iterator[None]:
    """Handle floating-point errors as the user does, for a function of theirs."""
    errors = _errors.get()
    before = _errors.set(None)
    try:
        with np.errstate(**(errors or {})):
            yield
    finally:
        _errors.reset(before)


def is_of(x: object, library: str) -> bool:
    """Return whether `x` is an array of a library, one of `_CLASSES`, without importing it."""
    # Another thread may be importing the library just now, or its import be blocked: then `x` cannot be of it.
    kind = getattr(sys.modules.get(library), _CLASSES[library], None)
    return isinstance(kind, type) and isinstance(x, kind)


def is_sparse(x: object) -> bool:
    """Return whether `x` is a SciPy sparse matrix or array, without importing SciPy."""
    if isinstance(x, np.ndarray):
        return False
    issparse = getattr(sys.modules.get("scipy.sparse"), "issparse", None)  # as in `is_of`
    return issparse is not None and bool(issparse(x))


def is_array(x: object) -> bool:
    """Return whether `x` is an array of some library, and not a list, a frame or a sparse matrix."""
    return hasattr(x, "__dlpack__") or hasattr(x, "__array_namespace__")


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
        advice = f"Make it a list first: `list({name})`."
    raise TypeError(
        f"`{name}` must be an array or rows of real numbers; got an object of type {type(x).__name__}. {advice}"
    )


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
    if is_of(x, "torch"):
        return bool(x.device.type == "cpu")
    return _jax_on_cpu(x)


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
    if library == "torch" and is_of(x, "torch"):
        return x.detach().to(device=device or "cpu", copy=True)  # keeps bfloat16, GPU to GPU
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


def marked(labels: Array, k: int) -> Array:
    """Return which of 0 to k - 1 are among each row of `labels` (b, n), int64: booleans (b, k)."""
    xp, (b, n) = namespace(labels), labels.shape
    at = xp.arange(b, dtype=labels.dtype, device=device_of(labels))[:, None] * k + labels
    at = xp.reshape(at, (b * n,))
    if is_of(labels, "jax") or xp.__name__ == "array_api_strict":
        at = xp.unique_values(at)  # as `put` wants them
    seen = xp.zeros(b * k, dtype=xp.bool, device=device_of(labels))
    return xp.reshape(put(xp, seen, at, xp.ones_like(at, dtype=xp.bool)), (b, k))


def take_rows(xp: Namespace, y: Array | SparseRows, at: Array) -> Array | SparseRows:
    """Return the rows of `y` (m, d) whose numbers are `at`."""
    return y[at] if isinstance(y, SparseRows) else xp.take(y, at, axis=0)


class _Alias:
    """The memory of `x`, said to be writable, as Numba compiles everything once more for read-only arrays."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x  # not to be freed
        about = x.__array_interface__
        self.__array_interface__ = about | {"data": (about["data"][0], False)}


def _aliased(x: Array) -> Array:
    """Return `x`, or a view that is said to be writable of a NumPy array of numbers that is not."""
    if isinstance(x, np.ndarray) and not x.flags.writeable and x.dtype.kind in "biuf":
        return np.asarray(_Alias(x))
    return x


@dataclass(frozen=True)
class Matrix:
    """The rows a user gave, read a few at a time in floating point; nothing is ever written.

    JAX's arrays on a CPU are always NumPy's here: XLA divides by multiplying, takes the smallest
    numbers for zero, may have no float64, and compiles each operation for each shape.

    Attributes
    ----------
    source : array of shape (n, d)
        The array as given (detached, CSR), for the library and device of results.
    data : array of shape (n, d), or SparseRows
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
    def of(
        cls,
        x: Array,
        library: str | None,
        *,
        given: np.ndarray | None = None,
        max_bytes: int | None = None,
    ) -> Matrix:
        """Return a Matrix over `x` as `library`, which must be able to reach its memory, sees it.

        An `x` (n,) is one column. Sparse rows, if the budget has room for a copy, keep columns alone that have entries, or that the
        centroids `given` (k, d) are not zero in.
        """
        dtype = dtype_name(x)
        data = x
        host = library == "numpy" or _jax_on_cpu(x)
        if is_sparse(x):
            rows = SparseRows.of(x, given, (max_bytes or _SPARSE_BYTES) // 2)
            begins, ends = _aliased(rows.begins), _aliased(rows.ends)
            features, values = _aliased(rows.features), _aliased(rows.values)
            data = SparseRows(begins, ends, features, values, rows.halving)
            return cls(x, data, np_compat, "cpu", dtype)
        if host and not isinstance(x, np.ndarray):
            if is_of(x, "torch"):
                import torch

                # NumPy has no bfloat16; its bits are the upper half of a float32's.
                data = (x.view(torch.int16) if dtype == "bfloat16" else x).numpy()
            else:
                data = np.asarray(x)
        elif library == "torch" and is_of(x, "cupy"):
            import torch

            # A tensor has no strides below 0; rows that do are not sent here, but weights may be.
            data = torch.from_dlpack(x if min(x.strides) >= 0 else x.copy())
        data = _aliased(data)
        if len(data.shape) == 1:
            data = data[:, None]
        xp = np_compat if host else namespace(data)
        return cls(x, data, xp, "cpu" if host else device_of(data), dtype)

    def problem(self, i: int) -> Matrix:
        """Return problem `i` of a batch, (b, n, d) or columns (b, n), as a matrix of its own."""
        data = self.data[i, ...]
        data = data[:, None] if len(data.shape) == 1 else data
        source = data if self.source is self.data else take(self.source, i)
        return Matrix(source, data, self.xp, self.device, self.dtype)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.data.shape[0]), int(self.data.shape[1])

    @property
    def narrow(self) -> bool:
        """Whether every value is a float32."""
        return self.dtype in _NARROW

    @property
    def precision(self) -> tuple[int, int]:
        """How many bits a value has at most, and the exponent of the last that any value has."""
        narrow = _PRECISION["float32" if self.narrow else "float64"]  # integers, as they are read
        return _PRECISION.get(self.dtype, narrow)

    @property
    def integral(self) -> bool:
        """Whether every value is an integer; dense ones are asked for their dtype only."""
        return "int" in self.dtype or self.dtype == "bool" or (self.sparse and self.data.integral)

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
        if isinstance(block, SparseRows):
            block = block.dense()
        if self.dtype == "bfloat16" and isinstance(block, np.ndarray) and block.dtype == np.int16:
            block = (block.astype(np.int32) << 16).view(np.float32)
        if block.dtype == dtype:
            return block
        if self.dtype == "bool" and xp is not np_compat:
            return xp.where(block, xp.ones((), dtype=dtype), xp.zeros((), dtype=dtype))
        return xp.astype(block, dtype)

    def tile(self, select: Selection, dtype: Any = None) -> Array | SparseRows:
        """Return what `rows` does; sparse ones stay sparse."""
        if not self.sparse:
            return self.rows(select, dtype)
        rows: SparseRows = self.data[select]
        return rows.astype(self.float_dtype if dtype is None else dtype)

    def take(self, at: Array) -> Matrix:
        """Return the rows numbered `at` (m,) as a matrix of their own, a copy in the dtype of centroids."""
        data = self.tile(at, self.state_dtype)
        return Matrix(data, data, self.xp, self.device, dtype_name(data))

    @property
    def sparse(self) -> bool:
        """Whether rows are sparse."""
        return isinstance(self.data, SparseRows)

    @property
    def width(self) -> int:
        """How many numbers a row takes: its features, or, if they are sparse, entries in the mean."""
        if not self.sparse:
            return self.shape[1]
        return 1 + int(self.data.entries) // self.shape[0]

    @property
    def features(self) -> int:
        """How many features the user's rows have: sparse ones may have columns for some of them only."""
        return int(self.data.halving.d) if self.sparse else self.shape[1]

    @property
    def terms(self) -> int:
        """How many terms a product with a row has at most."""
        return max(1, self.data.longest) if self.sparse else self.shape[1]

    @property
    def direct(self) -> bool:
        """Whether compiled code can read the rows where they are."""
        x = self.data.values if self.sparse else self.data
        return (
            isinstance(x, np.ndarray)
            and x.dtype in (np.float32, np.float64)
            and x.dtype.isnative
            and x.flags.c_contiguous
            and x.flags.aligned
        )

    def readable(self, select: Selection) -> tuple[Any, np.ndarray]:
        """Return float rows that compiled code can read, and the numbers of the selected ones in it.

        Without a copy where the user's array is one, for work in NumPy alone.
        """
        number = np.int32 if self.shape[0] < 1 << 31 else np.int64
        if not self.direct:
            rows = self.tile(select)
            rows = rows if self.sparse else np.ascontiguousarray(rows)
            return rows, np.arange(rows.shape[0], dtype=number)
        if isinstance(select, slice):
            return self.data, np.arange(*select.indices(self.shape[0]), dtype=number)
        return self.data, select.astype(number, copy=False)

    def asarray(self, a: Any, dtype: Any = None) -> Array:
        """Return host numbers as an array where the work is done."""
        return self.xp.asarray(a, dtype=dtype, device=self.device)

    def arange(self, stop: int) -> Array:
        """Return 0, 1, ..., stop - 1 where the work is done."""
        return self.xp.arange(stop, dtype=self.xp.int64, device=self.device)

    def columns_of(self, c: np.ndarray) -> np.ndarray:
        """Return the columns of a user's centroids `c` (k, d) that rows here have, in their order."""
        if not self.sparse or self.data.halving.complete:
            return c
        found: np.ndarray = np.take(c, self.data.halving.columns, axis=1)
        return found

    def spread(self, c: Array) -> Array:
        """Return centroids (k, d) with all of the user's columns, in their order."""
        if not self.sparse or self.data.halving.complete:
            return c
        halving = self.data.halving
        found = np.zeros((c.shape[0], halving.d), c.dtype)
        found[:, halving.columns] = c
        return found

    def give(self, a: Array) -> Array:
        """Return a result in the library and on the device of the user's array."""
        if self.data is self.source:
            return a
        if is_of(self.source, "cupy"):
            return namespace(self.source).from_dlpack(a)
        return like(a, self.source)


def supported_dtype(x: Array) -> bool:
    """Return whether `x` holds real numbers or booleans of a kind the package computes with."""
    return dtype_name(x) in _NARROW | _WIDE


def has_float64(x: Array) -> bool:
    """Return whether float64 can be computed where `x` lives."""
    if on_cpu(x):
        return True
    if is_of(x, "jax") and device_of(x).platform == "tpu":
        return False  # made of several float32, with roundings of its own
    xp = namespace(x)
    try:
        probe = xp.asarray([0.0], dtype=xp.float64, device=device_of(x))
    except (TypeError, ValueError):
        return False
    return cast(bool, probe.dtype == xp.float64)
