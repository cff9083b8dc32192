"""The golden file: bits of today that tomorrow's must be, on every library, kernel and machine.

All other tests of the promise compare two ways of computing today. `golden.json` remembers, so that bits do not
change unnoticed between versions. Where they are to change, say so in CHANGELOG.md, in a line that begins with "Bits:",
and write the file anew from the repository's root, which tells what changes:

    python -m tests.test_golden

Rows and weights come from `RandomState`, whose numbers NumPy keeps for ever, and from single operations that IEEE 754
rounds in one way. Their digests are in the file, too: should they differ, the rows do, and not what is made of them.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.random import Generator, Philox, RandomState

from anykmeans import KMeans, MiniBatchKMeans, assign, kmeans, kmeans_plusplus

GOLDEN = pathlib.Path(__file__).with_name("golden.json")
pytestmark = pytest.mark.filterwarnings("ignore:Number of distinct clusters")  # some fits leave few


# Rows


def rows(n, d, seed=0, scale=1.0, offset=0.0):
    """Overlapping clusters (n, d) whose values have all the bits of float64."""
    draw = RandomState([n, d, seed])
    centres = draw.randint(-8, 9, size=(6, d), dtype=np.int64)
    around = 8 * draw.random_sample((n, d)) - 4
    return (centres[draw.randint(6, size=n, dtype=np.int64)] + around) * scale + offset


def whole(n, d, low, high, dtype):
    """Whole numbers (n, d) from `low` to `high`: rows that are often equally far from two centroids."""
    draw = RandomState([n, d])
    return draw.randint(low, high + 1, size=(n, d), dtype=np.int64).astype(dtype)


def weights(n):
    """Weights (n,) of very different size, some of them zero."""
    draw = RandomState(n)
    w = np.ldexp(draw.random_sample(n), draw.randint(-12, 13, size=n, dtype=np.int64))
    w[::7] = 0
    return w


def counts(n):
    """Whole weights (n,) from 0 to 3."""
    return RandomState(n).randint(0, 4, size=n, dtype=np.int64)


def hollow(x, k):
    """Centroids (k, d) half of which no row is near to."""
    c = x[:k].copy()
    c[k // 2 :] = 1000 + np.arange(k - k // 2)[:, None]
    return c


def entries(n, d, dtype="float64"):
    """Sparse rows (n, d), one value in nine of them there, and some rows without any."""
    draw = RandomState([n, d])
    x = np.where(draw.randint(9, size=(n, d), dtype=np.int64) == 0, rows(n, d), 0)
    x[: n // 9] = 0
    return sp.csr_array(x.astype(dtype))


# What is asked of them


def clustered(x, k, **options):
    result = kmeans(x, k, **options)
    names = ("centroids", "labels", "inertia", "n_iter", "converged")
    return {name: getattr(result, name) for name in names}


def assigned(x, centroids, **how):
    labels, distances = assign(x, centroids, **how)
    return {"labels": labels, "squared_distances": distances}


def picked(x, k, **options):
    centers, indices = kmeans_plusplus(x, k, **options)
    return {"centroids": centers, "indices": indices}


def fitted(x, k, *, cls, sample_weight=None, **settings):
    model = cls(k, **settings).fit(x, sample_weight=sample_weight)
    labels = model.labels_ if hasattr(model, "labels_") else model.predict(x)
    found = {"centroids": model.cluster_centers_, "labels": labels}
    return {**found, "inertia": model.inertia_, "n_iter": model.n_iter_}


def streamed(x, k, *, size, sample_weight=None, **settings):
    model = MiniBatchKMeans(k, **settings)
    for start in range(0, x.shape[0], size):
        some = slice(start, start + size)
        w = None if sample_weight is None else sample_weight[some]
        model.partial_fit(x[some, :], sample_weight=w)
    found = {"centroids": model.cluster_centers_, "labels": model.predict(x)}
    return {**found, "inertia": -model.score(x), "n_iter": model.n_steps_}


@dataclasses.dataclass(frozen=True)
class Fit:
    """Something to compute of rows: what, of which, and how."""

    what: Callable[..., dict[str, Any]]
    x: Any
    of: Any  # the number of clusters, or centroids
    how: dict[str, Any]
    # Of half the bits, for libraries that have it: the values are float32 as well, and so are the answers.
    half: str | None = None

    def data(self):
        """The digest of all arrays that go in."""
        x = self.x.toarray() if sp.issparse(self.x) else self.x
        others = (self.of, *self.how.values())
        return digest(x, *(a for a in others if isinstance(a, np.ndarray)))

    def bits(self, backend=None, **how):
        """All that is found, by field, as the golden file has it."""

        def given(value):
            if callable(value) and not isinstance(value, type):  # a generator, new for each run
                return value()
            if backend is None or not isinstance(value, np.ndarray):
                return value
            half = self.half if value is self.x and backend.has_dtype(str(self.half)) else None
            return backend.make(value, half)

        options = {name: given(value) for name, value in self.how.items()}
        found = self.what(given(self.x), given(self.of), **options, **how)
        host = np.asarray if backend is None else backend.host
        return {name: written(name, value, host) for name, value in found.items()}


def fit(x, k, **how):
    return Fit(clustered, x, k, how)


def half(dtype, x, k, **how):
    return Fit(clustered, x, k, how, half=dtype)


def estimator(cls, x, k, **how):
    return Fit(fitted, x, k, {"cls": cls, **how})


OVERLAPPING, SINGLE = rows(300, 3), rows(301, 17).astype("float32")
SCALES = np.ldexp(np.ones(5), [-40, -3, 0, 11, 40])

DENSE = {
    # dtypes
    "float64": fit(OVERLAPPING, 8, rng=0),
    "float32": fit(SINGLE, 8, rng=0),
    "float16": half("float16", rows(250, 5).astype("float16").astype("float32"), 7, rng=1),
    "bfloat16": half("bfloat16", whole(250, 6, -128, 127, "float32"), 7, rng=2),
    "int8": fit(whole(200, 4, -100, 100, "int8"), 5, rng=3),
    "uint8": fit(whole(400, 3, 0, 255, "uint8"), 20, rng=4),
    "int64": fit(whole(200, 2, -(1 << 61), 1 << 61, "int64"), 6, rng=5),
    "bool": fit(whole(200, 13, 0, 1, "bool"), 6, rng=6),
    # Sizes
    "1 feature": fit(rows(300, 1), 5, rng=7),
    "1 cluster": fit(rows(90, 13), 1, rng=8),
    "1 row": fit(rows(1, 2), 1, rng=9),
    "130 features": fit(rows(180, 130).astype("float32"), 10, rng=10),
    "2 features, 300 clusters": fit(rows(2500, 2), 300, rng=11, max_iter=30),
    "40 features, 300 clusters": fit(rows(1200, 40).astype("float32"), 300, rng=12, max_iter=8),
    "9000 rows": fit(rows(9000, 24), 20, rng=13, max_iter=8),
    # Weights
    "whole weights": fit(OVERLAPPING, 8, sample_weight=counts(300), rng=14),
    "arbitrary weights": fit(OVERLAPPING, 8, sample_weight=weights(300), rng=15),
    "arbitrary weights, float32": fit(SINGLE, 8, sample_weight=weights(301), rng=16, tol=0),
    # Starts and seeds
    "k-means||": fit(rows(500, 4), 12, init="k-means||", rng=17),
    "k-means||, weights, RandomState": fit(
        SINGLE, 9, init="k-means||", sample_weight=weights(301), rng=partial(RandomState, 18)
    ),
    "random": fit(OVERLAPPING, 8, init="random", rng=19),
    "random, weights": fit(OVERLAPPING, 8, init="random", sample_weight=weights(300), rng=20),
    "given": fit(SINGLE, 9, init=SINGLE[::34]),
    "RandomState": fit(OVERLAPPING, 20, rng=partial(RandomState, 21), n_init=3),
    "Generator": fit(OVERLAPPING, 20, rng=lambda: Generator(Philox(22))),
    "best of 5": fit(SINGLE, 8, rng=23, n_init=5),
    # Ways to end
    "empty clusters, relocated": fit(OVERLAPPING, 8, init=hollow(OVERLAPPING, 8)),
    "empty clusters, kept": fit(OVERLAPPING, 8, init=hollow(OVERLAPPING, 8), empty="keep"),
    "empty clusters, relocated, weights": fit(
        SINGLE, 6, init=hollow(SINGLE, 6), sample_weight=weights(301)
    ),
    "2 passes": fit(OVERLAPPING, 20, rng=24, max_iter=2),
    "tol=0": fit(rows(600, 4), 12, rng=25, tol=0),
    "tol=0.1": fit(rows(600, 4), 12, rng=25, tol=0.1),
    # Places and scales
    "far from the origin": fit(rows(400, 3, offset=1e9), 9, rng=26),
    "far from the origin, float32": fit(rows(400, 3, offset=1e6).astype("float32"), 9, rng=27),
    "tiny": fit(rows(200, 3, scale=2.0**-480), 6, rng=28),
    "huge": fit(rows(200, 3, scale=2.0**480), 6, rng=29),
    "features of different scales": fit(rows(300, 5, scale=SCALES), 8, rng=30),
    "duplicates": fit(np.repeat(rows(40, 3), 9, axis=0)[::-1], 30, rng=31),
    "ties but for rounding": fit(whole(400, 3, 0, 9, "float64") / 10, 20, rng=47),
    "fewer distinct rows than clusters": fit(whole(60, 2, 0, 1, "float64"), 6, rng=32),
    # A batch
    "a batch": fit(rows(360, 3).reshape(4, 90, 3), 6, rng=33),
    "a batch, float32, weights, best of 2": fit(
        rows(360, 20).astype("float32").reshape(3, 120, 20),
        5,
        sample_weight=weights(360).reshape(3, 120),
        rng=34,
        n_init=2,
    ),
    # Other functions, and estimators
    "assign": Fit(assigned, SINGLE, rows(12, 17, 1).astype("float32"), {}),
    "assign, ties but for rounding": Fit(
        assigned, whole(400, 4, 0, 9, "float64") / 10, whole(30, 4, 0, 9, "float64") / 10, {}
    ),
    "assign a batch": Fit(assigned, rows(360, 3).reshape(4, 90, 3), rows(7, 3, 1), {}),
    "kmeans_plusplus": Fit(picked, OVERLAPPING, 20, {"random_state": 35}),
    "kmeans_plusplus, weights": Fit(
        picked,
        SINGLE,
        13,
        {"sample_weight": weights(301), "random_state": 36, "n_local_trials": 9},
    ),
    "KMeans": estimator(KMeans, SINGLE, 8, random_state=37),
    "KMeans, random, weights": estimator(
        KMeans, OVERLAPPING, 8, init="random", sample_weight=counts(300), random_state=38
    ),
    "MiniBatchKMeans": estimator(
        MiniBatchKMeans, rows(1000, 5), 12, batch_size=100, n_init=3, random_state=39
    ),
    "MiniBatchKMeans, float32, weights, random": estimator(
        MiniBatchKMeans,
        SINGLE,
        6,
        init="random",
        batch_size=64,
        tol=1e-3,
        compute_labels=False,  # so that the inertia is that of batches, smoothed
        sample_weight=weights(301),
        random_state=40,
    ),
    "partial_fit": Fit(
        streamed, OVERLAPPING, 6, {"size": 60, "random_state": 41, "reassignment_ratio": 0.5}
    ),
    "partial_fit, float32, weights": Fit(
        streamed, SINGLE, 6, {"size": 43, "sample_weight": counts(301), "random_state": 42}
    ),
    # By cosine
    "cosine": fit(OVERLAPPING, 8, rng=48, metric="cosine"),
    "cosine, float32, weights, k-means||": fit(
        SINGLE, 8, init="k-means||", sample_weight=weights(301), rng=49, metric="cosine"
    ),
    "cosine, float16": half(
        "float16", rows(250, 5).astype("float16").astype("float32"), 7, rng=50, metric="cosine"
    ),
    "cosine, int8": fit(whole(200, 4, 1, 100, "int8"), 5, rng=51, metric="cosine", tol=0),
    "cosine, rows of all lengths": fit(
        rows(200, 3) * np.ldexp(1.0, np.arange(-900, 900, 9))[:, None], 6, rng=52, metric="cosine"
    ),
    "cosine, given, empty clusters": fit(
        np.abs(SINGLE), 6, init=hollow(-np.abs(SINGLE), 6), metric="cosine"
    ),
    "cosine, a batch": fit(rows(360, 3).reshape(4, 90, 3), 6, rng=53, metric="cosine"),
    "cosine, assign": Fit(
        assigned, SINGLE, rows(12, 17, 1).astype("float32"), {"metric": "cosine"}
    ),
    "cosine, MiniBatchKMeans": estimator(
        MiniBatchKMeans, rows(1000, 5), 12, batch_size=100, random_state=54, metric="cosine"
    ),
    "cosine, partial_fit, float32, weights": Fit(
        streamed,
        SINGLE,
        6,
        {"size": 43, "sample_weight": counts(301), "random_state": 55, "metric": "cosine"},
    ),
}
SPARSE = {
    "sparse": fit(entries(200, 50), 8, rng=43),
    "sparse, float32, weights, k-means||": fit(
        entries(150, 700, "float32"), 6, init="k-means||", sample_weight=weights(150), rng=44
    ),
    "sparse, whole numbers": fit(entries(250, 12, "int64"), 9, rng=45, empty="keep"),
    "sparse, MiniBatchKMeans": estimator(
        MiniBatchKMeans, entries(300, 80), 7, batch_size=50, random_state=46
    ),
    "sparse, cosine": fit(entries(200, 700)[22:], 8, rng=56, metric="cosine"),
}
FITS = {**DENSE, **SPARSE}


# The file


def digest(*arrays):
    """What tells arrays apart: their dtypes, shapes and bytes, little-endian and row after row."""
    found = hashlib.sha256()
    for a in arrays:
        found.update(f"{a.dtype.name} {a.shape}\n".encode())
        found.update(a.astype(a.dtype.newbyteorder("<"), order="C").tobytes())
    return found.hexdigest()[:16]


def written(name, value, host):
    """A field of a result as JSON holds it: numbers to be read, arrays as digests."""
    if name in ("n_iter", "converged"):
        return np.asarray(value).tolist()
    if name == "inertia":
        parts = [float(each).hex() for each in np.ravel(value)]
        return parts if np.ndim(value) else parts[0]
    return digest(host(value))


def read():
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def compare(name, found):
    """Fail with the fields that differ, and what to do."""
    golden = read().get(name, {})
    data = FITS[name].data()
    assert golden.get("data") == data, (
        f"the rows, weights or centroids of the fit {name!r} are not those that {GOLDEN.name} was written of "
        f"({data} instead of {golden.get('data')}): nothing can be said of its bits. If you changed them, or have "
        f"added the fit, run `python -m tests.test_golden`."
    )
    differ = [field for field in found if found[field] != golden.get(field)]
    assert not differ, (
        f"the bits of the fit {name!r} changed in "
        + ", ".join(f"{field} ({golden.get(field)} before, {found[field]} now)" for field in differ)
        + ". The same seed must give the same bits in the next version. If other kernels and libraries pass this "
        f"test, this one errs. If all fail, and it is meant, say so in CHANGELOG.md, in a line that begins with 'Bits:', "
        f"and write {GOLDEN.name} anew: `python -m tests.test_golden`."
    )


@pytest.mark.parametrize("name", DENSE)
def test_every_library_and_kernel_gives_the_bits_of_the_file(backend, kernel, name):
    compare(name, DENSE[name].bits(backend, kernel=kernel))


@pytest.mark.parametrize("by", ["cpu", *(["numba"] if find_spec("numba") else [])])
@pytest.mark.parametrize("name", SPARSE)
def test_sparse_rows_give_the_bits_of_the_file(by, name):
    compare(name, SPARSE[name].bits(kernel=by))


@pytest.mark.parametrize("how", [{"threads": 1}, {"threads": 2}, {"max_bytes": 50_000}], ids=str)
@pytest.mark.parametrize("name", ["float32", "arbitrary weights", "k-means||", "MiniBatchKMeans"])
def test_neither_threads_nor_memory_show(backend, kernel, setting, name, how):
    setting(spread=0)  # else so few rows are one thread's
    compare(name, DENSE[name].bits(backend, kernel=kernel, **how))


def test_the_file_has_these_fits_and_no_others():
    assert list(read()) == list(FITS), "run `python -m tests.test_golden`"


def test_a_digest_sees_dtype_shape_and_each_bit():
    a = np.arange(6.0).reshape(2, 3)
    others = [a.astype("float32"), a.reshape(3, 2), np.nextafter(a, 9), -a, a[::-1], a.T]
    assert len({digest(a), *map(digest, others)}) == 7
    for same in (a.astype(">f8"), np.asfortranarray(a), np.repeat(a, 2, axis=1)[:, ::2]):
        assert digest(same) == digest(a)


def main():
    """Write the file by plain NumPy, and tell what changes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Number of distinct clusters")
        fresh = {
            name: {"data": each.data(), **each.bits(kernel="cpu" if name in SPARSE else "agnostic")}
            for name, each in FITS.items()
        }
    before = {}
    with contextlib.suppress(FileNotFoundError):
        before = read()
    for name in [*before, *(name for name in fresh if name not in before)]:
        old, new = before.get(name, {}), fresh.get(name, {})
        if fields := [field for field in {**old, **new} if old.get(field) != new.get(field)]:
            print(
                f"{name}: {', '.join(fields)}"
                if old and new
                else f"{name}: {'new' if new else 'gone'}"
            )
    lines = [f"{json.dumps(name)}: {json.dumps(fields)}" for name, fields in fresh.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{GOLDEN.name}: {len(fresh)} fits")


if __name__ == "__main__":
    main()
