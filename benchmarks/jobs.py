"""What the map measures: data of any size, the calls that people make on them, and whether results agree.

A job is made for a module that has scikit-learn's interface, rows and k, and is then called again and again.
What it needs beforehand, as given centres or a model to predict with, is made once and not timed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import plain
from benchmarks.referee import SAMPLE, strays
from benchmarks.rows import initial_centres
from benchmarks.small import fitted

ITERATIONS = 20
"""Of Lloyd's algorithm from given centres."""

BATCH = 1024
STEPS = 100
"""Rows in a mini-batch, and how many batches a fit takes at least."""

USUAL = 60
"""Iterations that a fit with defaults is taken to need, to tell which are too long to measure."""

SEEDING = 3
"""How many times as long products take in seedings, which are of few columns and read all rows for them."""

OURS_AT_FAULT = "OURS"
"""What begins the words where the mistake is ours."""

SAME = 1e-6
"""Inertias that differ by more, relatively, are of different work."""


def overlapping(n: int, d: int, k: int, dtype: str) -> NDArray:
    """Return Gaussian blobs (n, d), k of them, whose centres are about three widths apart in any d."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((k, d)) * (3 / math.sqrt(2 * d))
    return _blobs(rng, n, centres, dtype)


def separate(n: int, d: int, k: int, dtype: str) -> NDArray:
    """Return Gaussian blobs (n, d) around k different corners of a grid whose lines are twenty widths apart."""
    rng = np.random.default_rng(0)
    some = min(d, 9)  # coordinates that tell the corners apart, the others are drawn
    side = next(side for side in range(2, k + 2) if side**some >= k)
    corners = rng.integers(side, size=(k, d))
    corners[:, :some] = rng.permutation(k)[:, None] // side ** np.arange(some) % side
    return _blobs(rng, n, 20.0 * corners, dtype)


def structureless(n: int, d: int, k: int, dtype: str) -> NDArray:
    """Return uniform rows (n, d)."""
    return np.random.default_rng(0).random((n, d), dtype=np.dtype(dtype).type)


def _blobs(rng: np.random.Generator, n: int, centres: NDArray, dtype: str) -> NDArray:
    """Return rows (n, d) of the given dtype, one width around the centres (k, d)."""
    x = rng.standard_normal((n, centres.shape[1]), dtype=np.dtype(dtype).type)
    x += centres.astype(dtype)[rng.integers(len(centres), size=n)]
    return x


DATA: dict[str, Callable[[int, int, int, str], NDArray]] = {
    "overlapping": overlapping,
    "separate": separate,
    "structureless": structureless,
}
"""n, d, k, dtype -> rows (n, d)"""


Call = Callable[[], Any]


def lloyd(module: Any, x: NDArray, k: int) -> Call:
    """Return 20 iterations from given centres, fewer only where nothing moves any more."""
    c = initial_centres(x, k)
    return lambda: module.KMeans(k, init=c, n_init=1, max_iter=ITERATIONS, tol=0).fit(x)


def trials(k: int) -> int:
    """Return how many candidates a pick is chosen from, which both libraries do by default, too."""
    return 2 + int(math.log(k))


def seeding(module: Any, x: NDArray, k: int) -> Call:
    """Return the picks of greedy k-means++."""
    t = trials(k)
    return lambda: module.kmeans_plusplus(x, k, random_state=0, n_local_trials=t)[1]


def predict(module: Any, x: NDArray, k: int) -> Call:
    """Return the labels of all rows."""
    model = fitted(module, initial_centres(x, k))
    return lambda: model.predict(x)


def transform(module: Any, x: NDArray, k: int) -> Call:
    """Return all distances."""
    model = fitted(module, initial_centres(x, k))
    return lambda: model.transform(x)


def partial_fit(module: Any, x: NDArray, k: int) -> Call:
    """Return a model that has seen all rows, batch by batch, but for a last batch that is not full."""
    c = initial_centres(x, k)
    batches = [x[i : i + BATCH] for i in range(0, max(1, len(x) - BATCH + 1), BATCH)]

    def run() -> Any:
        model = module.MiniBatchKMeans(k, init=c, n_init=1, batch_size=BATCH, random_state=0)
        for batch in batches:
            model.partial_fit(batch)
        return model

    return run


def epochs(n: int) -> int:
    """Return how often a fit by batches sees all rows."""
    return -(-STEPS * min(n, BATCH) // n)


def minibatch(module: Any, x: NDArray, k: int) -> Call:
    """Return a fit by a fixed number of batches from given centres."""
    options: dict[str, Any] = {
        "init": initial_centres(x, k),
        "n_init": 1,
        "batch_size": BATCH,
        "max_iter": epochs(len(x)),
        "max_no_improvement": None,
        "random_state": 0,
    }
    return lambda: module.MiniBatchKMeans(k, **options).fit(x)


def fit(module: Any, x: NDArray, k: int) -> Call:
    """Return a fit with defaults."""
    return lambda: module.KMeans(n_clusters=k, random_state=0).fit(x)


def ends(x: NDArray, k: int, ours: Any, theirs: Any) -> str:
    """Return in what two fits differ: iterations or batches, inertia, labels."""
    sample = np.random.default_rng(0).permutation(len(x))[:SAMPLE]
    if stray := strays(x[sample], ours.cluster_centers_, ours.labels_[sample]):
        return _ours_stray(stray)
    said = []
    steps = [getattr(model, "n_steps_", model.n_iter_) for model in (ours, theirs)]
    if steps[0] != steps[1]:
        said.append(f"{steps[0]} and {steps[1]} iterations")
    mine, other = (plain.inertia(x, m.cluster_centers_, m.labels_) for m in (ours, theirs))
    if apart := _apart(mine, other):
        said.append(apart)
    else:
        same = plain.nearest(theirs.cluster_centers_, ours.cluster_centers_)  # in any order
        if count := _strays(x, ours.cluster_centers_, ours.labels_, same[theirs.labels_])[1]:
            said.append(f"{count} labels")
    return ", ".join(said)


def streams(x: NDArray, k: int, ours: Any, theirs: Any) -> str:
    """Return by how much the inertias of some rows differ for the centroids of two models."""
    some = x[:SAMPLE]
    centroids = (ours.cluster_centers_, theirs.cluster_centers_)
    return _apart(*(plain.inertia(some, c, plain.nearest(some, c)) for c in centroids))


def picks(x: NDArray, k: int, ours: NDArray, theirs: NDArray) -> str:
    """Return from which pick on two seedings differ."""
    apart = np.flatnonzero(ours != theirs)
    return f"picks from number {apart[0]} on" if len(apart) else ""


def labels(x: NDArray, k: int, ours: NDArray, theirs: NDArray) -> str:
    """Return how many labels differ where there is no tie."""
    mine, other = _strays(x, initial_centres(x, k), ours, theirs)
    if mine:
        return _ours_stray(mine)
    return f"{other} labels" if other else ""


def distances(x: NDArray, k: int, ours: NDArray, theirs: NDArray) -> str:
    """Return by how much distances differ, relative to the largest, if by more than rounding."""
    parts = (slice(i, i + SAMPLE) for i in range(0, len(ours), SAMPLE))
    apart = max(float(np.abs(ours[p] - theirs[p]).max()) for p in parts) / float(theirs.max())
    # Of products; a distance is a root, which halves the digits of what is left of large norms.
    rounding = math.sqrt(x.shape[1] * np.finfo(x.dtype).eps)
    return f"distances by {apart:.0e} of the largest" if apart > rounding else ""


def same_work(differ: str) -> bool:
    """Return whether both did the same work, as in what they differ says; a few labels are no other work."""
    return not any(word in differ for word in ("iterations", "inertia"))


def _apart(ours: float, theirs: float) -> str:
    """Return how two inertias differ, if by more than `SAME`."""
    if abs(ours - theirs) <= SAME * max(ours, theirs):
        return ""
    return (
        f"inertia {theirs / ours - 1:+.0e} above ours" if ours else f"inertia {theirs:.0e}, not 0"
    )


def _strays(x: NDArray, centroids: NDArray, *labels: NDArray) -> list[int]:
    """Return of each of two sets of labels how many are wrong, among those that differ."""
    rows = np.flatnonzero(labels[0] != labels[1])
    return [strays(x[rows], centroids, each[rows]) if len(rows) else 0 for each in labels]


def _ours_stray(count: int) -> str:
    return f"{OURS_AT_FAULT}: {count} labels are not of the nearest centroid"


@dataclass(frozen=True)
class Job:
    """A call to time.

    Attributes
    ----------
    name : str
        What a module must have for it.
    make : callable
        Returns the call for a module, rows and k.
    differ : callable
        Returns in what theirs differs from ours, given rows, k and both results; nothing if they agree.
    passes : callable
        Returns about how often, for n and k, all rows meet all centroids in a call.
    """

    name: str
    make: Callable[[Any, NDArray, int], Call]
    differ: Callable[[NDArray, int, Any, Any], str]
    passes: Callable[[int, int], int] = lambda n, k: 1


JOBS = {
    "lloyd": Job("KMeans", lloyd, ends, lambda n, k: ITERATIONS),
    "kmeans++": Job("kmeans_plusplus", seeding, picks, lambda n, k: SEEDING * trials(k)),
    "predict": Job("KMeans", predict, labels),
    "transform": Job("KMeans", transform, distances),
    "partial_fit": Job("MiniBatchKMeans", partial_fit, streams),
    "minibatch": Job("MiniBatchKMeans", minibatch, ends, lambda n, k: 1 + epochs(n)),
    "fit": Job("KMeans", fit, ends, lambda n, k: USUAL + SEEDING * trials(k)),
}
