"""What a clustering is returned as."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from anykmeans._libraries import (
    Array,
)


@dataclass(frozen=True, eq=False)  # arrays have no single truth to compare by
class KMeansResult:
    """A clustering, or one of each of several problems. It unpacks: ``centroids, labels, *_ = kmeans(x, 3)``.

    Of b problems all but `kernel` and `precision` have b entries, in the form that the rows came in: of a batch, arrays with an axis in front;
    of a list, lists of arrays; of rows end to end, labels end to end. Where `k` is one of each, centroids are a list. Counts and inertia stay with
    the host, as Python's numbers do: in NumPy arrays, whatever the library of `x`.

    Attributes
    ----------
    centroids : array of shape (k, d) or (b, k, d), or list of b arrays of shape (k_i, d_i)
        Means of their rows, from exact sums, in the library and on the device of `x`; float32 for
        half and single precision, float64 otherwise (float32 on a device that has no float64). With `metric` ``"cosine"`` they have
        length 1.
    labels : array of shape (n,), (b, n) or (N,), or list of b arrays of shape (n_i,), int64
        The nearest centroid of each row, of the centroids returned.
    inertia : float, or NumPy array of shape (b,), float64
        Weighted sum of the rows' squared distances to their centroid, in squared units of `x` (``2 - 2 cos`` with `metric` ``"cosine"``)
        (infinite where float64 cannot hold it).
    n_iter : int, or NumPy array of shape (b,), int64
        Passes of the best run.
    converged : bool, or NumPy array of shape (b,), bool
        Whether that run stopped by itself rather than at `max_iter`.
    kernel : str
        The kernel that did the work, or kernels, one after the other: ``"cpu+numba"``. Each is ``"host:..."`` where
        rows were copied to host memory, as their device has no float64.
    precision : str
        ``"exact"``, or ``"fast"`` where labels were not certified.

    Examples
    --------
    >>> from anykmeans import kmeans
    >>> result = kmeans([[0.0], [1.0], [9.0], [10.0]], 2, rng=0)
    >>> result.inertia, result.converged, result.precision
    (1.0, True, 'exact')
    >>> centroids, labels, *_ = result
    >>> sorted(centroids[:, 0].tolist())
    [0.5, 9.5]
    """

    centroids: Array
    labels: Array
    inertia: float | np.ndarray
    n_iter: int | np.ndarray
    converged: bool | np.ndarray
    kernel: str
    precision: str

    def __iter__(self) -> Iterator[Any]:
        return iter(getattr(self, name) for name in self.__dataclass_fields__)
