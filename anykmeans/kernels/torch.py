"""What PyTorch does faster than the standard on its own devices: `index_add_` is a scatter-add."""

from __future__ import annotations

from anykmeans import _libraries as arrays
from anykmeans._libraries import Array, Namespace
from anykmeans.kernels.agnostic import Kernel


class Torch(Kernel):
    """Sums by atomics."""

    name = "torch"

    def why_not(self, x: Array) -> str | None:
        """Return None for tensors where float64 can be computed."""
        if arrays.library_of(x) != "torch":
            return f"the rows are {arrays.where_is(x)}, not a tensor"
        if not arrays.has_float64(x):
            return f"the rows are {arrays.where_is(x)}, which has no float64: they are worked on in host memory"
        return None

    def segment_sum(self, xp: Namespace, values: Array, labels: Array, k: int) -> Array:
        """Return the sums (k, columns) by label; atomics in any order give the same whole numbers."""
        return values.new_zeros((k, values.shape[1])).index_add_(0, labels, values)

    def written_a_row(self, clusters: int) -> int:
        """Return 0: nothing is written but sums."""
        return 0


KERNEL = Torch()
