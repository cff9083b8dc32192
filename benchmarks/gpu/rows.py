"""The rows of the table: shapes, the data that fills them, and the floor. Add one to `ROWS`."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Fill = Callable[[torch.Generator, tuple[int, int], torch.Tensor], torch.Tensor]
"""generator, shape (m, d), centres (k, d) in [-1, 1] -> rows (m, d), float32"""

CHUNK = 1 << 26
"""Numbers made at once."""


def uniform(generator: torch.Generator, shape: tuple[int, int], _: torch.Tensor) -> torch.Tensor:
    """Return uniform numbers: no structure, what the peers measure themselves on."""
    return torch.rand(shape, generator=generator, device=generator.device)


def blobs(
    generator: torch.Generator, shape: tuple[int, int], centres: torch.Tensor, *, mean: float = 0.0
) -> torch.Tensor:
    """Return Gaussian blobs, centres within 10 of the mean and a standard deviation of 2."""
    on = {"generator": generator, "device": generator.device}
    of = torch.randint(len(centres), shape[:1], **on)
    return torch.randn(shape, **on).mul_(2).add_(centres[of], alpha=10).add_(mean)


DATA: dict[str, Fill] = {
    "uniform": uniform,
    "blobs": blobs,
    # What is far from the origin loses digits in a score that squares it.
    "offset": functools.partial(blobs, mean=50.0),
}


@dataclass(frozen=True)
class Row:
    """Clusterings to time at once: b problems of n rows with d features each.

    Attributes
    ----------
    name : str
        What `--rows` calls it.
    b, n, d, k : int
        Problems, rows of each, features, clusters.
    dtype : {"float16", "bfloat16", "float32"}
        Of the rows.
    max_iter : int
        Iterations.
    data : str
        A key of `DATA`, unless `--data` says another.
    """

    name: str
    b: int
    n: int
    d: int
    k: int
    dtype: str
    max_iter: int
    data: str = "uniform"

    def __str__(self) -> str:
        """Return what the table calls it."""
        problems = f"{self.b} × " if self.b > 1 else ""
        return f"{problems}{self.n} × {self.d}, k={self.k}, {self.dtype}, {self.data}"

    @property
    def half(self) -> bool:
        """Whether its numbers have two bytes."""
        return self.dtype != "float32"

    def small(self) -> "Row":
        """Return the row scaled down, to see whether all runs."""
        n = max(self.n >> 10, 256)
        k = min(max(self.k >> 6, 4), n // 8)
        b, max_iter = min(self.b, 2), min(self.max_iter, 6)
        return dataclasses.replace(self, b=b, n=n, k=k, max_iter=max_iter)

    def floor(self, tflops: float, bandwidth: float) -> tuple[float, float]:
        """Return the milliseconds of an iteration's products, and of reading the rows once."""
        numbers = self.b * self.n * self.d
        read = numbers * (2 if self.half else 4)
        return 2e3 * numbers * self.k / (tflops * 1e12), 1e3 * read / (bandwidth * 1e12)

    def task(self, device: str) -> "Task":
        """Return the clusterings: the same rows and the same start whenever asked."""
        dtype = getattr(torch, self.dtype)
        generator = torch.Generator(device).manual_seed(0)
        x = torch.empty((self.b, self.n, self.d), dtype=dtype, device=device)
        for problem in x:
            centres = torch.rand((self.k, self.d), generator=generator, device=device)
            centres.mul_(2).sub_(1)
            for rows in problem.split(max(1, CHUNK // self.d)):
                rows.copy_(DATA[self.data](generator, rows.shape, centres))
        init = torch.stack([x[i, start(self.n, self.k, i)] for i in range(self.b)])
        return Task(x, self.k, init, self.max_iter)


def start(n: int, k: int, seed: int) -> torch.Tensor:
    """Return the rows that a problem starts from, drawn on the host (k,).

    As fastkmeans draws them, which takes no centroids: given the seed it starts from the same.
    """
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:k]


@dataclass(frozen=True)
class Task:
    """Clusterings, the same for every peer.

    Attributes
    ----------
    x : tensor of shape (b, n, d)
        The rows.
    k : int
        Number of clusters.
    init : tensor of shape (b, k, d)
        Initial centroids: rows number ``start(n, k, i)`` of problem i.
    max_iter : int
        Iterations, no fewer unless nothing moves any more.
    """

    x: torch.Tensor
    k: int
    init: torch.Tensor
    max_iter: int

    @functools.cached_property
    def host(self) -> NDArray[np.float32]:
        """The rows in the memory of the host, for those who want them there."""
        return self.x.float().cpu().numpy()


ROWS = [
    Row("1", 32, 131_072, 128, 1000, "float16", 100),
    Row("2", 8, 16_384, 128, 100, "float16", 100),
    Row("3", 64, 37_440, 128, 293, "bfloat16", 20),
    Row("4", 1, 1 << 20, 128, 1024, "bfloat16", 20),
    Row("5", 1, 1 << 20, 256, 4096, "bfloat16", 10),
    Row("6", 1, 10_000_000, 128, 20_000, "bfloat16", 10),
    Row("7", 1, 1 << 20, 128, 4096, "float32", 10),
    Row("8", 1, 10_000_000, 32, 64, "float32", 25, "blobs"),
    Row("9", 1, 1_000_000, 768, 4000, "float32", 10, "blobs"),
]
