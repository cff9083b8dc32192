"""What is timed: anykmeans and its peers. Add one by adding it to `PEERS`.

A peer is called as its users would call it, on a `Task`, and returns what the referee needs. What it
imports, it imports when it is made: unused peers cost nothing and need not be installed.
"""

import argparse
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_info

from benchmarks.rows import initial_centres


@dataclass(frozen=True)
class Task:
    """One clustering, the same for every peer; None leaves a choice to the peer's defaults.

    Attributes
    ----------
    x : array of shape (n, d)
        The rows, float32 or float64.
    k : int
        Number of clusters.
    init : array of shape (k, d), optional
        Initial centres; by default one draw of k-means++ from `seed`.
    max_iter : int, optional
        Most iterations.
    tol : float, optional
        Tolerance; 0 runs until nothing moves.
    seed : int
        Where draws start.
    """

    x: NDArray
    k: int
    init: NDArray | None = None
    max_iter: int | None = None
    tol: float | None = None
    seed: int = 0

    @classmethod
    def given(cls, x: NDArray, k: int, max_iter: int) -> "Task":
        """Return the task of `max_iter` iterations from given centres."""
        return cls(x, k, init=initial_centres(x, k), max_iter=max_iter, tol=0.0)

    def limits(self) -> dict[str, float]:
        """Return `max_iter` and `tol` where they are not left to the peer."""
        limits = {"max_iter": self.max_iter, "tol": self.tol}
        return {name: value for name, value in limits.items() if value is not None}


@dataclass(frozen=True)
class Outcome:
    """What a peer returned: centroids (k, d), labels (n,), iterations, and its own inertia."""

    centroids: NDArray
    labels: NDArray
    n_iter: int
    inertia: float


Run = Callable[[Task], Outcome]


@dataclass(frozen=True)
class Peer:
    """How to make a run.

    Attributes
    ----------
    make : callable
        Returns it; raises ImportError where it cannot.
    dtypes : tuple of str
        Which it works in.
    exact : bool
        Whether labels are meant to be of the nearest centroids, and centres may be given. Others draw their own, and
        are timed where that is asked for.
    """

    make: Callable[[], Run]
    dtypes: tuple[str, ...] = ("float32", "float64")
    exact: bool = True


def anykmeans(**options: str) -> Run:
    """Return `anykmeans.kmeans` with the given options."""
    from anykmeans import kmeans

    def run(task: Task) -> Outcome:
        # A RandomState is drawn from as scikit-learn does, so that both start from the same picks.
        start = (
            {"rng": np.random.RandomState(task.seed)} if task.init is None else {"init": task.init}
        )
        result = kmeans(task.x, task.k, **start, **task.limits(), **options)
        return Outcome(result.centroids, result.labels, result.n_iter, result.inertia)

    return run


def scikit(module: str, **options: str) -> Run:
    """Return the `KMeans` of scikit-learn, or of a module that has the same."""
    estimator = importlib.import_module(module).KMeans

    def run(task: Task) -> Outcome:
        model = estimator(
            n_clusters=task.k,
            init="k-means++" if task.init is None else task.init,
            n_init=1,
            random_state=task.seed,
            **task.limits(),
            **options,
        ).fit(task.x)
        return Outcome(model.cluster_centers_, model.labels_, model.n_iter_, model.inertia_)

    return run


def faiss() -> Run:
    """Return faiss's `Kmeans` on all rows, then its search for the labels of the last centroids.

    It has no tolerance: it stops at its number of iterations (25 unless told), or where its float32
    objective repeats. Without `init` it draws by k-means++ and not, as is its default, at random.
    Its SuperKMeans prunes by a statistical test, hence it is not exact, and not used.
    """
    import faiss

    def run(task: Task) -> Outcome:
        n, d = task.x.shape
        options = {} if task.max_iter is None else {"niter": task.max_iter}
        if task.init is None:
            options["init_method"] = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
        model = faiss.Kmeans(
            d,
            task.k,
            seed=task.seed,
            # By default it would cluster a sample of 256 rows a centroid, and warn below 39.
            max_points_per_centroid=n,
            min_points_per_centroid=1,
            **options,
        )
        model.train(task.x, init_centroids=task.init)
        squared, labels = model.index.search(task.x, 1)
        inertia = float(squared.sum(dtype=np.float64))
        return Outcome(model.centroids, labels[:, 0], len(model.obj), inertia)

    return run


def superkmeans(quantizer: str) -> Run:
    """Return SuperKMeans (CWI), which prunes by a statistical test, of float32 or of codes of 8 bits.

    It begins with rows of its own choice, and has its own faster way to label the rows that it was trained on, all of them. Its wheel is built for AVX2. With all rows and iterations that are told it
    does just those; by default it makes ten of 30 % of the rows, and of more than 100,000 in two levels.
    """
    import superkmeans

    def run(task: Task) -> Outcome:
        options = {}
        if task.max_iter is not None:
            options = {
                "iters": task.max_iter,
                "hierarchical": False,
                "sampling_fraction": 1.0,
                "max_points_per_cluster": len(task.x),
                "early_termination": False,
            }
        model = superkmeans.SuperKMeans(
            task.k,
            task.x.shape[1],
            quantizer=quantizer,
            n_threads=threads(),
            seed=task.seed,
            **options,
        )
        centroids = np.asarray(model.train(task.x))
        label = model.assign if task.max_iter is None else model.assign_training_points
        labels = np.asarray(label(task.x, centroids)).astype(np.int64)
        return Outcome(centroids, labels, task.max_iter or 10, float("nan"))

    return run


def faiss_super() -> Run:
    """Return faiss's own SuperKMeans, which begins with rows of its own choice, then its search for labels."""
    import faiss

    if not hasattr(faiss, "SuperKmeans"):
        raise ImportError("this faiss is older than 1.15")

    def run(task: Task) -> Outcome:
        n, d = task.x.shape
        options = {}
        if task.max_iter is not None:
            options = {"niter": task.max_iter, "max_points_per_centroid": n}
        model = faiss.SuperKmeans(
            d, task.k, seed=task.seed + 1, min_points_per_centroid=1, **options
        )
        model.train(task.x)
        index = faiss.IndexFlatL2(d)
        index.add(model.centroids)
        _, labels = index.search(task.x, 1)
        return Outcome(model.centroids, labels[:, 0], len(model.obj), float("nan"))

    return run


def threads() -> int:
    """Return how many threads OpenMP may start here."""
    found = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "openmp"]
    return min(found, default=0)


OURS = "anykmeans"
PEERS = {
    OURS: Peer(anykmeans),
    "anykmeans-cpu": Peer(lambda: anykmeans(kernel="cpu")),
    "anykmeans-agnostic": Peer(lambda: anykmeans(kernel="agnostic")),
    "sklearn": Peer(lambda: scikit("sklearn.cluster", algorithm="lloyd")),
    "sklearn-elkan": Peer(lambda: scikit("sklearn.cluster", algorithm="elkan")),
    "sklearnex": Peer(lambda: scikit("sklearnex.cluster")),
    "faiss": Peer(faiss, dtypes=("float32",)),
    "faiss-super": Peer(faiss_super, dtypes=("float32",), exact=False),
    "superkmeans": Peer(lambda: superkmeans("f32"), dtypes=("float32",), exact=False),
    "superkmeans-sq8": Peer(lambda: superkmeans("sq8"), dtypes=("float32",), exact=False),
}


def options(parser: argparse.ArgumentParser, *, approximate: bool = False) -> None:
    """Add the option that chooses peers, of those that are exact or of `approximate` ones, too."""
    names = [name for name in PEERS if name != OURS and (approximate or PEERS[name].exact)]
    parser.add_argument(
        "--peers",
        nargs="+",
        default=[name for name in names if not name.startswith(OURS)],
        choices=names,
        metavar="NAME",
        help="whom to compare with (default: all but variants of ours); one of: "
        + ", ".join(names),
    )


def ready(names: Iterable[str]) -> tuple[dict[str, Run], dict[str, str]]:
    """Return anykmeans and the named peers that can be imported, and why the others cannot."""
    runs: dict[str, Run] = {}
    reasons: dict[str, str] = {}
    for name in (OURS, *names):
        try:
            runs[name] = PEERS[name].make()
        except ImportError as error:
            reasons[name] = str(error)
    return runs, reasons
