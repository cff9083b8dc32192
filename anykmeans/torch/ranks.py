"""The processes that learn one codebook: those of torch.distributed's default group, or this one alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from anykmeans._libraries import Array, to_numpy


class Ranks:
    """How many processes there are, which of them this is, and what they know together.

    Parameters
    ----------
    sync : bool
        Whether to learn together with the others.
    device : torch.device
        Where rows are, and with them what processes tell each other.

    Attributes
    ----------
    size, rank : int
        Number of processes, and the number of this one.
    """

    def __init__(self, sync: bool, device: torch.device) -> None:
        together = sync and dist.is_available() and dist.is_initialized()
        self.device = device
        self.size = dist.get_world_size() if together else 1
        self.rank = dist.get_rank() if together else 0

    def total(self, parts: Sequence[Array]) -> list[Array]:
        """Return the sums over all ranks of float64 arrays, of NumPy or here, by one all-reduce.

        Whole numbers add in any order; so does what is zero on all ranks but one.
        """
        if self.size == 1:
            return list(parts)
        tensors = [torch.as_tensor(part, device=self.device) for part in parts]
        packed = torch.cat([each.reshape(-1) for each in tensors])
        dist.all_reduce(packed)
        found = []
        for part, each in zip(parts, packed.split([t.numel() for t in tensors]), strict=True):
            each = each.reshape(part.shape)
            found.append(each if isinstance(part, Tensor) else to_numpy(each))
        return found

    def own(self, part: np.ndarray) -> np.ndarray:
        """Return an array with a first axis of ranks, zero but for this one's `part`: its total has that of each."""
        found = np.zeros((self.size, *part.shape))
        found[self.rank] = part
        return found

    def rows(self, x: Tensor) -> Tensor:
        """Return the rows (n, ...) of all ranks, one rank's after the other's."""
        if self.size == 1:
            return x
        counts = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        counts[self.rank] = x.shape[0]
        dist.all_reduce(counts)
        padded = x.new_zeros((int(counts.max()), *x.shape[1:]))
        padded[: x.shape[0]] = x
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, counts.tolist(), strict=True)])
