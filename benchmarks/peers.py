"""What is timed: anykmeans and its peers. Add one by adding it to `PEERS`.

A peer runs Lloyd's algorithm from the given centres with tol=0, as its users would call it, and
returns what the referee needs. What it imports, it imports when it is made: unused peers cost
nothing and need not be installed.
"""

from collections.abc import Callable
from dataclasses import dataclass

from numpy.typing import NDArray


@dataclass(frozen=True)
class Outcome:
    """What a peer returned: centroids (k, d), labels (n,) and the number of iterations."""

    centroids: NDArray
    labels: NDArray
    n_iter: int


Run = Callable[[NDArray, NDArray, int], Outcome]
"""x (n, d), initial centres (k, d), max_iter -> Outcome"""


def anykmeans(**options: str) -> Run:
    """Return `anykmeans.kmeans` with the given options."""
    from anykmeans import kmeans

    def run(x: NDArray, centres: NDArray, max_iter: int) -> Outcome:
        result = kmeans(x, len(centres), init=centres, tol=0, max_iter=max_iter, **options)
        return Outcome(result.centroids, result.labels, result.n_iter)

    return run


def scikit_learn(algorithm: str) -> Run:
    """Return scikit-learn's `KMeans` with one of its algorithms."""
    from sklearn.cluster import KMeans

    def run(x: NDArray, centres: NDArray, max_iter: int) -> Outcome:
        model = KMeans(
            n_clusters=len(centres),
            init=centres,
            n_init=1,
            tol=0,
            max_iter=max_iter,
            algorithm=algorithm,
        ).fit(x)
        return Outcome(model.cluster_centers_, model.labels_, model.n_iter_)

    return run


OURS = "anykmeans"
PEERS: dict[str, Callable[[], Run]] = {
    OURS: anykmeans,
    "anykmeans-agnostic": lambda: anykmeans(kernel="agnostic"),
    "sklearn": lambda: scikit_learn("lloyd"),
    "sklearn-elkan": lambda: scikit_learn("elkan"),
}
