"""NumPy and SciPy on every array whose memory NumPy can look at: NumPy, CPU torch, CPU JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from anykmeans import _libraries as arrays
from anykmeans._fork import first_call
from anykmeans._libraries import Array, Namespace
from anykmeans._settings import current
from anykmeans._work import seconds
from anykmeans.kernels.agnostic import Kernel

if TYPE_CHECKING:
    from anykmeans.sources.rows import Rows


class Cpu(Kernel):
    """The steps in place, and sums as sparse products."""

    name, library = "cpu", "numpy"

    def stays(self) -> bool:
        """Return whether it has not worked for as long as compiling takes yet."""
        return self.named or seconds() < current().compiling

    def why_not(self, x: Array) -> str | None:
        """Return None for arrays in host memory, or that are copied there, else where they are."""
        return (
            None
            if arrays.in_host(x)
            else f"the rows are {arrays.where_is(x)}, out of NumPy's reach"
        )

    def nearest(
        self, xp: Namespace, y: Array, minus_2c: Array, norms: Array
    ) -> tuple[Array, Array, Array]:
        """Return labels (m,), best and second best score (m,); the score tile is worked in place."""
        scores = y @ minus_2c
        scores += norms
        rows = np.arange(scores.shape[0])
        labels = scores.argmin(axis=1)
        best = scores[rows, labels]
        if scores.shape[1] == 1:
            return labels, best, np.full_like(best, np.inf)
        scores[rows, labels] = np.inf
        return (
            labels,
            best,
            scores[rows, scores.argmin(axis=1)],
        )  # argmin is faster than min in NumPy

    def segment_sum(self, xp: Namespace, values: Array, labels: Array, k: int) -> Array:
        """Return the sums (k, columns) by label, as a sparse product: 10 times faster than one-hot."""
        with first_call:
            from scipy.sparse import csr_array

        m = labels.shape[0]
        picks = csr_array((np.ones(m), labels, np.arange(m + 1)), shape=(m, k))
        return picks.T @ values

    def written_a_row(self, clusters: int) -> int:
        """Return 0: entries of a sparse product are few."""
        return 0


def long_tiles(rows: Rows, m: int, clusters: int) -> list[slice]:
    """Return tiles of `m` rows for sums that need no room but their own, of so many `clusters`, if any."""
    work = rows.work
    results = -(-clusters * rows.shape[1] // work.d)  # rows as large as these
    share = -(-m // (2 * work.threads)) if work.threads > 1 else m
    # Each result is written and added, and each thread called.
    share = max(share, 2 * results, current().call // work.d)
    return work.tiles(0, m, max(1, min(share, work.readable(rows.matrix))))


KERNEL = Cpu()
