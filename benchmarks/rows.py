"""The rows of the table: data and k. Add one by adding it to `ROWS`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Row:
    """One clustering to time.

    `load` takes the data folder and returns x (n, d) float32 or float64; it raises
    FileNotFoundError where the data is not there.
    """

    name: str
    k: int
    load: Callable[[Path | None], NDArray]
    max_iter: int = 50


def from_file(data: Path | None, file: str, *, scale: bool = False) -> NDArray:
    """Return `x` of an .npz file, in float32 unless it is float64; `scale` to unit variance."""
    if data is None:
        raise FileNotFoundError("no data folder: name one with --data")
    with np.load(data / file) as arrays:
        x = arrays["x" if "x" in arrays.files else "X"]
    if scale:
        x = (x - x.mean(axis=0)) / x.std(axis=0)
    return np.ascontiguousarray(x, dtype=np.float64 if x.dtype == np.float64 else np.float32)


def photo_pixels(data: Path | None) -> NDArray:
    """Return the pixels of scikit-learn's china.jpg, in [0, 1]: (273280, 3) float32."""
    from sklearn.datasets import load_sample_image

    return load_sample_image("china.jpg").reshape(-1, 3) / np.float32(255)


def photo_patches(data: Path | None) -> NDArray:
    """Return the overlapping 8 x 8 patches of the same photograph: (265860, 192) float32."""
    from sklearn.datasets import load_sample_image

    photo = load_sample_image("china.jpg") / np.float32(255)
    patches = np.lib.stride_tricks.sliding_window_view(photo, (8, 8), axis=(0, 1))
    return patches.reshape(-1, 192)


def digits(data: Path | None) -> NDArray:
    """Return scikit-learn's digits: (1797, 64) float64."""
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)[0]


def file(name: str, **options: bool) -> Callable[[Path | None], NDArray]:
    """Return a loader of one file of the data folder."""
    return partial(from_file, file=name, **options)


ROWS = [
    Row("digits", 10, digits),
    Row("s4", 15, file("s4.npz")),
    Row("dim128", 16, file("dim128.npz")),
    Row("birch1", 100, file("birch1.npz")),
    Row("cities", 256, file("cities_xyz.npz")),
    Row("tycho2", 100, file("tycho2_400k.npz")),
    Row("nycflights", 50, file("nycflights.npz", scale=True)),
    Row("pixels", 16, photo_pixels),
    Row("pixels", 256, photo_pixels),
    Row("fashion", 100, file("fashion_mnist_20k.npz")),
    Row("patches", 64, photo_patches, max_iter=20),
    Row("patches", 512, photo_patches, max_iter=10),
]
