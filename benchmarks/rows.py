"""The rows of the table: data and k. Add one by adding it to `ROWS`."""

import argparse
import fnmatch
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DATA_VARIABLE = "ANYKMEANS_DATA"

Load = Callable[[Path | None], NDArray]
"""data folder -> x (n, d) of any real dtype; raises FileNotFoundError where the data is not there"""


@dataclass(frozen=True)
class Row:
    """One clustering to time.

    Attributes
    ----------
    data : str
        What the rows of x are.
    k : int
        Number of clusters.
    load : callable
        Returns x (n, d), given the data folder.
    max_iter : int
        Iterations from given centres.
    target : float
        How many times as fast as its best peer anykmeans wants to be.
    """

    data: str
    k: int
    load: Load
    max_iter: int = 50
    target: float = 2.0

    @property
    def name(self) -> str:
        """What `--rows` calls it."""
        return f"{self.data}-{self.k}"

    def x(self, data: Path | None, dtype: str) -> NDArray:
        """Return x (n, d), contiguous, in the given dtype."""
        return np.ascontiguousarray(self.load(data), dtype=dtype)


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose rows and say where their data is."""
    parser.add_argument(
        "--rows",
        nargs="+",
        default=["*"],
        metavar="NAME",
        help='rows to run, as "name" or "name-k", * allowed; one of: '
        + ", ".join(row.name for row in ROWS),
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=default_data(),
        metavar="DIR",
        help=f"folder of .npz files (default: ${DATA_VARIABLE}, or ../shared/data if it exists)",
    )
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32", "float64"], choices=["float32", "float64"]
    )


def default_data() -> Path | None:
    """Return the data folder that the environment names, or one beside the checkout, or None."""
    if named := os.environ.get(DATA_VARIABLE):
        return Path(named)
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return beside if beside.is_dir() else None


def chosen(patterns: list[str]) -> list[Row]:
    """Return the rows whose data or name fits one of the patterns, in the order of the table."""
    return [
        row
        for row in ROWS
        if any(fnmatch.fnmatch(name, p) for p in patterns for name in (row.data, row.name))
    ]


def initial_centres(x: NDArray, k: int, seed: int = 0) -> NDArray:
    """Return k distinct rows of x drawn at random: (k, d).

    Not k-means++: its picks would leave fewer iterations to time, and it is timed elsewhere.
    """
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(x))[: 20 * k]
    distinct = np.sort(np.unique(x[rows], axis=0, return_index=True)[1])
    return x[rows[distinct[:k]]]


def from_file(data: Path | None, file: str, *, scale: bool = False) -> NDArray:
    """Return `x` of an .npz file; `scale` to unit variance."""
    if data is None:
        raise FileNotFoundError(f"no data folder: name one with --data or {DATA_VARIABLE}")
    with np.load(data / file) as arrays:
        x = arrays["x" if "x" in arrays.files else "X"]
    return (x - x.mean(axis=0)) / x.std(axis=0) if scale else x


def photo(data: Path | None, name: str, *, side: int = 1) -> NDArray:
    """Return the overlapping patches of side x side pixels of scikit-learn's picture, in [0, 1]."""
    from sklearn.datasets import load_sample_image

    pixels = load_sample_image(name) / np.float32(255)
    patches = np.lib.stride_tricks.sliding_window_view(pixels, (side, side), axis=(0, 1))
    return patches.reshape(-1, 3 * side * side)


def blobs(data: Path | None, n: int, d: int, centres: int) -> NDArray:
    """Return Gaussian blobs (n, d)."""
    from sklearn.datasets import make_blobs

    return make_blobs(n, d, centers=centres, random_state=0)[0]


def normal(data: Path | None, n: int, d: int) -> NDArray:
    """Return standard normal rows (n, d): no structure, the worst case for skipping by bounds."""
    return np.random.default_rng(0).standard_normal((n, d))


def embeddings(data: Path | None, n: int, d: int) -> NDArray:
    """Return rows of unit length (n, d), float32, that are about as hard as embeddings of sentences.

    Topics of many sizes in groups, and variances that fall off slowly. Of 12,000 x 384, 256 clusters explain 0.30 of the
    variance, and the first 64 and 128 principal directions hold 0.6 and 0.8 of it.
    """
    rng = np.random.default_rng(0)
    topics, within = 1500, 0.78
    groups = rng.standard_normal((40, d))
    centres = 0.6 * groups[rng.integers(40, size=topics)] + 0.8 * rng.standard_normal((topics, d))
    share = np.arange(1, topics + 1) ** -0.7
    x = centres[rng.choice(topics, n, p=share / share.sum())].astype(np.float32)
    x *= np.float32(math.sqrt(1 - within**2))
    x += np.float32(within) * rng.standard_normal((n, d), dtype=np.float32)
    spread = (np.arange(1, d + 1) + 3.0) ** -0.45
    x *= spread.astype(np.float32)
    common = 0.4 * np.linalg.norm(spread) / math.sqrt(d) * rng.standard_normal(d)
    x += common.astype(np.float32)
    turn = np.linalg.qr(rng.standard_normal((d, d)))[0]
    x = x @ turn.astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


tycho2 = partial(from_file, file="tycho2_400k.npz")
cities = partial(from_file, file="cities_xyz.npz")
nycflights = partial(from_file, file="nycflights.npz", scale=True)
birch1 = partial(from_file, file="birch1.npz")
fashion = partial(from_file, file="fashion_mnist_20k.npz")
patches = partial(photo, name="flower.jpg", side=8)
pixels = partial(photo, name="china.jpg")

ROWS = [
    Row("tycho2", 100, tycho2),
    Row("cities", 256, cities),
    Row("nycflights", 50, nycflights),
    Row("birch1", 100, birch1),
    Row("fashion", 10, fashion),
    Row("fashion", 100, fashion),
    Row("patches", 64, patches),
    Row("patches", 512, patches),
    Row("pixels", 64, pixels),
    Row("pixels", 256, pixels),
    Row("blobs2", 20, partial(blobs, n=500_000, d=2, centres=20)),
    Row("blobs32", 100, partial(blobs, n=300_000, d=32, centres=100)),
    Row("normal", 256, partial(normal, n=200_000, d=128), target=1.3),
    Row("normal", 1024, partial(normal, n=200_000, d=128), target=1.3),
]
