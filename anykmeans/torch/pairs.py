"""Rows against centroids in float64, tile by tile: their squared distances, and how gradients come back from these."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from anykmeans import _check as check
from anykmeans._frame import power_of_two

_CPU_BYTES, _DEVICE_BYTES = 1 << 24, 1 << 30  # tiles that stay in a cache, and that fill a device


def tensor(x: Any, name: str) -> Any:
    """Return `x` if it is a tensor: gradients go to nothing else."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(
            f"`{name}` must be a PyTorch tensor; got {type(x).__name__}. Make it one with `torch.as_tensor({name})`."
        )
    return x


def state_dtype(x: Any) -> Any:
    """Return the dtype of centroids of rows `x`: float32 for half and single precision, else float64."""
    single = (torch.float32, torch.float16, torch.bfloat16)
    return torch.float32 if x.dtype in single else torch.float64


def budget(max_bytes: Any, k: int, d: int) -> int | None:
    """Return `max_bytes` if they hold the work on one row of `d` features and `k` centroids."""
    return check.budget(max_bytes, sum(_bytes(k, d)))


def _bytes(k: int, d: int) -> tuple[int, int]:
    """Return what a row and what all centroids take while they are worked on."""
    return 8 * (6 * (d + k) + 16), 8 * 12 * k * (d + 2)


def steps(x: Any, row: int, fixed: int, max_bytes: int | None) -> list[slice]:
    """Return tiles of the rows `x` (n, ...): a row of them takes `row` bytes, beside `fixed` ones; as many as the budget holds."""
    given = check.budget(max_bytes, fixed + row)
    bytes_ = given or fixed + (_CPU_BYTES if x.device.type == "cpu" else _DEVICE_BYTES)
    step, n = max(1, (bytes_ - fixed) // row), x.shape[0]
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Rows and centroids in one unit, a power of two, in which no square leaves the range.

    Attributes
    ----------
    x : tensor of shape (n, d)
        Rows, as given.
    c : tensor of shape (k, d), float64
        Centroids in the unit.
    offset : tensor of shape (d,), float64
        Their mean, around which products cancel less.
    unit : float
        What one is in the user's units.
    tiles : list of slice
        Rows that are worked on at once.
    """

    x: Any
    c: Any
    offset: Any
    unit: float
    tiles: list[slice]

    @classmethod
    def of(cls, x: Any, c: Any, largest: float, max_bytes: int | None) -> Pairs:
        """Return the pairs of rows `x` (n, d) and centroids `c` (k, d), which are up to the `largest` in magnitude."""
        (k, d), unit = c.shape, 2.0 ** min(max(power_of_two(largest), -1000), 1000)
        c = c.to(torch.float64) / unit
        tiles = steps(x, *_bytes(k, d), max_bytes)
        return cls(x, c, c.detach().mean(dim=0), unit, tiles)

    def at(self, c: Any) -> Pairs:
        """Return the same rows with other centroids `c` (k, d), in the unit."""
        return replace(self, c=c)

    def __iter__(self) -> Iterator[tuple[slice, Any]]:
        """Yield tiles and their rows (m, d) in the unit, exact, and copies."""
        for tile in self.tiles:
            yield tile, self.x[tile].to(torch.float64, copy=True).div_(self.unit)

    def squared(self, y: Any, within: float = 0.0) -> Any:
        """Return squared distances (m, k) of rows `y` (m, d): from differences, or a product that errs `within` so much."""
        if within > 0:
            y_, c = y - self.offset, self.c - self.offset
            norms, own = (y_ * y_).sum(dim=1), (c * c).sum(dim=1)
            reach = float(norms.max()) ** 0.5 + float(own.max()) ** 0.5
            # Rounding of the offset, of d + 2 terms and of their sum.
            if (y.shape[1] + 8) * 2.0**-52 * reach * reach <= within:
                found = torch.addmm(own, y_, c.T, alpha=-2)
                return found.add_(norms[:, None]).clamp_(min=0)
        found = torch.cdist(y, self.c, compute_mode="donot_use_mm_for_euclid_dist")
        return found.square_()

    def pull(self, pulls: Any, y: Any, near: Any = None) -> tuple[Any, Any]:
        """Return the gradients to rows `y` (m, d) and to centroids (k, d), of those `pulls` (m, k) to squared distances.

        They are sums of differences, made by products. Where a pull may be as large as a distance is small, `near` (m,) names
        each row's nearest centroid, whose difference is taken. Then `pulls` are overwritten.
        """
        if near is not None:
            own = pulls.gather(1, near[:, None])
            pulls.scatter_(1, near[:, None], 0.0)
        y_, c = y - self.offset, self.c - self.offset
        to_rows = torch.addmm(y_ * pulls.sum(dim=1)[:, None], pulls, c, alpha=-1)
        to_c = torch.addmm(c * pulls.sum(dim=0)[:, None], pulls.T, y_, alpha=-1)
        if near is not None:
            apart = (y - self.c[near]) * own
            to_rows += apart
            # As a product: sums of atomics would have other bits each time.
            to_c -= pulls.zero_().scatter_(1, near[:, None], 1.0).T @ apart
        return 2 * to_rows, 2 * to_c
