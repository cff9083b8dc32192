"""The rows a user gave, read a few at a time and never written to.

A :class:`Matrix` knows the namespace in which the work is done. On a CPU that is NumPy for every library whose
arrays share memory with it; elsewhere it is the library's own, unless the device has no float64: then it is NumPy, on a
copy in host memory. Whatever can give some of its rows by their numbers is a matrix: two methods and five attributes
make one of rows that are stored or computed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anykmeans._libraries import (
    Array,
    Namespace,
    Selection,
    device_of,
    dtype_name,
    has_float64,
    is_of,
    is_sparse,
    like,
    namespace,
    np_compat,
    on_cpu,
    take,
    to_numpy,
)
from anykmeans._sparse import SparseRows

_SPARSE_BYTES = 1 << 28  # for a copy of sparse rows, unless the user says otherwise
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


class Matrix(ABC):
    """Rows (n, d) that can be read in any order, in floating point.

    JAX's arrays on a CPU are always NumPy's here: XLA divides by multiplying, takes the smallest
    numbers for zero, may have no float64, and compiles each operation for each shape.

    Attributes
    ----------
    source : array
        For the library and device of results: the array as given (detached, CSR), or one like it without rows.
    xp : namespace
        Where the work is done.
    device : object
        The device of the work.
    dtype : str
        Bare name of the dtype of the rows.
    shape : tuple of int
        Rows and columns.
    sparse : bool
        Whether rows are sparse.
    spherical : bool
        Whether all rows have length 1, and all centroids are to have.
    """

    source: Array
    data: Any
    xp: Namespace
    device: Any
    dtype: str
    sparse = False
    spherical = False

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]: ...

    @abstractmethod
    def rows(self, select: Selection, dtype: Any = None) -> Array:
        """Return the selected rows (m, d), dense, in `dtype` (default: `float_dtype`)."""

    @abstractmethod
    def take(self, at: Array, over: Matrix | None = None) -> Matrix:
        """Return the rows numbered `at` (m,) as a matrix of their own, a copy in the dtype of centroids.

        It may be written `over` such a matrix that is not needed any more: to get new memory can take longer than the copy.
        """

    @classmethod
    def of(
        cls,
        x: Array,
        library: str | None,
        *,
        given: np.ndarray | None = None,
        max_bytes: int | None = None,
    ) -> Matrix:
        """Return a matrix over `x` as `library`, which must be able to reach its memory, sees it.

        An `x` (n,) is one column. Sparse rows, if the budget has room for a copy, keep columns alone that have entries, or that the
        centroids `given` (k, d) are not zero in.
        """
        if is_sparse(x):
            return Sparse.over(x, given, (max_bytes or _SPARSE_BYTES) // 2)
        return Dense.over(x, library)

    # -- what follows from the dtype ---------------------------------------------------------

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
        return "int" in self.dtype or self.dtype == "bool"

    @property
    def float_dtype(self) -> Any:
        """The smallest of float32 and float64 that holds every value (int64 rounds past 2^53)."""
        return self.xp.float32 if self.narrow else self.xp.float64

    @property
    def single(self) -> bool:
        """Whether centroids are float32."""
        return self.dtype in _SINGLE_STATE

    @property
    def state_dtype(self) -> Any:
        """The dtype of centroids."""
        return self.xp.float32 if self.single else self.xp.float64

    @property
    def metric(self) -> str:
        """What rows are compared by."""
        return "cosine" if self.spherical else "euclidean"

    # -- what is otherwise for sparse rows ---------------------------------------------------

    @property
    def width(self) -> int:
        """How many numbers a row takes: its features, or, if they are sparse, entries in the mean."""
        return self.shape[1]

    @property
    def features(self) -> int:
        """How many features the user's rows have: sparse ones may have columns for some of them only."""
        return self.shape[1]

    @property
    def terms(self) -> int:
        """How many terms a product with a row has at most."""
        return self.shape[1]

    def tile(self, select: Selection, dtype: Any = None) -> Array | SparseRows:
        """Return what `rows` does; sparse ones stay sparse."""
        return self.rows(select, dtype)

    def columns_of(self, c: np.ndarray) -> np.ndarray:
        """Return the columns of a user's centroids `c` (k, d) that rows here have, in their order."""
        return c

    def spread(self, c: Array) -> Array:
        """Return centroids (k, d) with all of the user's columns, in their order."""
        return c

    @property
    def direct(self) -> bool:
        """Whether compiled code can read all rows where they are."""
        return False

    # -- where the work is done --------------------------------------------------------------

    @property
    def away(self) -> bool:
        """Whether rows are a copy in host memory, because float64 cannot be computed where the user's are."""
        return False

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

    def give(self, a: Array) -> Array:
        """Return a result in the library and on the device of the user's array."""
        if is_of(self.source, "cupy"):
            return namespace(self.source).from_dlpack(a)
        return like(a, self.source)


@dataclass(frozen=True)
class Dense(Matrix):
    """Rows of an array in memory.

    Attributes
    ----------
    data : array of shape (n, d)
        The memory of `source` as the work sees it: a view of another library, or `source` itself; a copy on
        the host where `source` is on a device without float64.
    """

    source: Array
    data: Array
    xp: Namespace
    device: Any
    dtype: str
    spherical: bool = False

    @classmethod
    def over(cls, x: Array, library: str | None) -> Dense:
        """Return a matrix over `x` as `library` sees it."""
        dtype, data = dtype_name(x), x
        host = library == "numpy" or (is_of(x, "jax") and on_cpu(x)) or not has_float64(x)
        if host and not isinstance(x, np.ndarray):
            if is_of(x, "torch"):
                import torch

                near = x.cpu()  # itself, if it is there
                # NumPy has no bfloat16; its bits are the upper half of a float32's.
                data = (near.view(torch.int16) if dtype == "bfloat16" else near).numpy()
            else:
                data = np.asarray(x) if is_of(x, "jax") else to_numpy(x)
        elif library == "torch" and is_of(x, "cupy"):
            import torch

            # A tensor has no strides below 0; rows that do are not sent here, but weights may be.
            data = torch.from_dlpack(x if min(x.strides) >= 0 else x.copy())
        data = _aliased(data)
        if len(data.shape) == 1:
            data = data[:, None]
        xp = np_compat if host else namespace(data)
        return cls(x, data, xp, "cpu" if host else device_of(data), dtype)

    def problems(self, slices: list[slice] | None = None) -> Iterator[Dense]:
        """Yield the problems of a batch, (b, n, d) or columns (b, n), or those in `slices`, end to end, as matrices of their own."""
        every = self.data
        selects: Sequence[int | slice] = slices or range(every.shape[0])
        if slices is None and len(every.shape) == 2:
            every = every[..., None]
        parts = (every[select, ...] for select in selects)
        if is_of(every, "torch"):  # which makes all views in one operation
            parts = every.split([s.stop - s.start for s in slices]) if slices else every.unbind()
        for select, data in zip(selects, parts, strict=True):
            source = data if self.source is self.data else take(self.source, select)
            yield Dense(source, data, self.xp, self.device, self.dtype)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.data.shape[0]), int(self.data.shape[1])

    def rows(self, select: Selection, dtype: Any = None) -> Array:
        """Return the selected rows (m, d) in `dtype` (default: `float_dtype`)."""
        xp = self.xp
        dtype = self.float_dtype if dtype is None else dtype
        if isinstance(select, slice) or xp is np_compat:
            whole = isinstance(select, slice)
            block = self.data[select, :] if whole else np.take(self.data, select, axis=0)
        else:
            block = xp.take(self.data, select, axis=0)
        if self.dtype == "bfloat16" and isinstance(block, np.ndarray) and block.dtype == np.int16:
            block = (block.astype(np.int32) << 16).view(np.float32)
        if block.dtype == dtype:
            return block
        if self.dtype == "bool" and xp is not np_compat:
            on = {"dtype": dtype, "device": self.device}
            return xp.where(block, xp.ones((), **on), xp.zeros((), **on))
        return xp.astype(block, dtype)

    def take(self, at: Array, over: Matrix | None = None) -> Dense:
        """Return the rows numbered `at` (m,) as a matrix of their own, a copy in the dtype of centroids."""
        if isinstance(over, Dense) and self.direct and over.shape[0] == at.shape[0]:
            # Other modes than this, as no number is out of range, take to a copy first.
            data = np.take(self.data, at, axis=0, out=over.data, mode="clip")
        else:
            data = self.rows(at, self.state_dtype)
        return Dense(data, data, self.xp, self.device, dtype_name(data), self.spherical)

    @property
    def direct(self) -> bool:
        """Whether compiled code can read the rows where they are."""
        return _direct(self.data)

    @property
    def away(self) -> bool:
        """Whether rows are a copy in host memory, because float64 cannot be computed where the user's are."""
        return self.xp is np_compat and not on_cpu(self.source)

    def give(self, a: Array) -> Array:
        """Return a result in the library and on the device of the user's array."""
        return a if self.data is self.source else super().give(a)


@dataclass(frozen=True)
class Sparse(Matrix):
    """Rows of a CSR matrix, in NumPy.

    Attributes
    ----------
    data : SparseRows
        Its entries, aliased, with columns for the features that count.
    """

    source: Array
    data: SparseRows
    dtype: str
    xp: Namespace = np_compat
    device: Any = "cpu"
    spherical: bool = False
    sparse = True

    @classmethod
    def over(cls, x: Array, given: np.ndarray | None, room: int) -> Sparse:
        """Return a matrix over CSR `x`, with columns for all features where there is no `room` for others."""
        rows = SparseRows.of(x, given, room)
        begins, ends = _aliased(rows.begins), _aliased(rows.ends)
        features, values = _aliased(rows.features), _aliased(rows.values)
        return cls(x, SparseRows(begins, ends, features, values, rows.halving), dtype_name(x))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.data.shape[0]), int(self.data.shape[1])

    def rows(self, select: Selection, dtype: Any = None) -> Array:
        """Return the selected rows (m, d), dense, in `dtype` (default: `float_dtype`)."""
        dtype = self.float_dtype if dtype is None else dtype
        return self.data[select].dense().astype(dtype, copy=False)

    def tile(self, select: Selection, dtype: Any = None) -> SparseRows:
        """Return the selected rows, sparse."""
        rows: SparseRows = self.data[select]
        return rows.astype(self.float_dtype if dtype is None else dtype)

    def take(self, at: Array, over: Matrix | None = None) -> Sparse:
        """Return the rows numbered `at` (m,) as a matrix of their own, a copy in the dtype of centroids."""
        data = self.tile(at, self.state_dtype)
        return Sparse(data, data, dtype_name(data), spherical=self.spherical)

    @property
    def width(self) -> int:
        """How many numbers a row takes: entries in the mean."""
        return 1 + int(self.data.entries) // self.shape[0]

    @property
    def features(self) -> int:
        """How many features the user's rows have."""
        return int(self.data.halving.d)

    @property
    def terms(self) -> int:
        """How many terms a product with a row has at most."""
        return max(1, self.data.longest)

    @property
    def integral(self) -> bool:
        """Whether every value is an integer."""
        return super().integral or self.data.integral

    @property
    def direct(self) -> bool:
        """Whether compiled code can read the rows where they are."""
        return _direct(self.data.values)

    def columns_of(self, c: np.ndarray) -> np.ndarray:
        """Return the columns of a user's centroids `c` (k, d) that rows here have, in their order."""
        if self.data.halving.complete:
            return c
        found: np.ndarray = np.take(c, self.data.halving.columns, axis=1)
        return found

    def spread(self, c: Array) -> Array:
        """Return centroids (k, d) with all of the user's columns, in their order."""
        halving = self.data.halving
        if halving.complete:
            return c
        found = np.zeros((c.shape[0], halving.d), c.dtype)
        found[:, halving.columns] = c
        return found

    def give(self, a: Array) -> Array:
        """Return a result: in NumPy, as it is."""
        return a


def _direct(x: Any) -> bool:
    """Return whether compiled code can read an array where it is."""
    if not isinstance(x, np.ndarray):
        return False
    flags = x.flags
    return x.dtype.char in "fd" and x.dtype.isnative and flags.c_contiguous and flags.aligned


def supported_dtype(x: Array) -> bool:
    """Return whether `x` holds real numbers or booleans of a kind the package computes with."""
    return dtype_name(x) in _NARROW | _WIDE
