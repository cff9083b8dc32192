"""What is timed on a GPU: anykmeans and its peers. Add one by adding it to `PEERS`.

A peer is called in the way that suits it best, with tensors that are on the device already. What it
imports, it imports when it is made.
"""

import abc
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from benchmarks.gpu.rows import Task
from benchmarks.peers import OURS

FAST = OURS + "-fast"


@dataclass(frozen=True)
class Outcome:
    """What a peer returned.

    Attributes
    ----------
    centroids : tensor of shape (b, k, d)
        On any device, of any dtype.
    labels : tensor of shape (b, n)
        Those of a peer's fit; of which centroids, `Peer.labels` knows.
    n_iter : float
        Iterations, the mean of the problems.
    inertia : float, optional
        Its own.
    """

    centroids: torch.Tensor
    labels: torch.Tensor
    n_iter: float
    inertia: float | None = None


class Peer(abc.ABC):
    """One implementation.

    Attributes
    ----------
    dtypes : tuple of str
        Of rows that it is asked to cluster.
    remarks : dict
        What to say about it, by dtype of the rows.
    """

    dtypes: ClassVar[tuple[str, ...]] = ("float16", "bfloat16", "float32")
    remarks: ClassVar[dict[str, str]] = {}

    @abc.abstractmethod
    def fit(self, task: Task) -> Outcome:
        """Cluster: this is what is timed."""

    def labels(self, task: Task, outcome: Outcome, sample: torch.Tensor) -> torch.Tensor:
        """Return how it labels sampled rows (m,) by the centroids of the outcome: (b, m).

        Most fits end with labels that are one step older than their centroids, where one iteration more
        tells the labels of those.
        """
        again = dataclasses.replace(task, init=outcome.centroids, max_iter=1)
        return self.fit(again).labels[:, sample]


class AnyKMeans(Peer):
    """The library itself: `kernel="triton"`, and "torch" where there is no GPU.

    An empty cluster keeps its centroid, as with most peers. By default it would take the farthest row, which
    ends at a lower inertia, so that no peer had solved the same problem.
    """

    def __init__(self, precision: str = "exact", empty: str = "keep") -> None:
        from anykmeans import kmeans

        self._kmeans, self._precision, self._empty = kmeans, precision, empty
        if precision == "fast":
            self.dtypes = ("float16", "bfloat16")

    def fit(self, task: Task) -> Outcome:  # noqa: D102
        x, init = task.x, task.init
        batch = len(x) > 1
        result = self._kmeans(
            x if batch else x[0],
            task.k,
            init=init if batch else init[0],
            max_iter=task.max_iter,
            tol=0,
            empty=self._empty,
            precision=self._precision,
            kernel="triton" if x.is_cuda else "torch",
        )
        centroids, labels = result.centroids, result.labels
        return Outcome(
            centroids if batch else centroids[None],
            labels if batch else labels[None],
            float(np.mean(result.n_iter)),
            float(np.sum(result.inertia)),
        )

    def labels(self, task: Task, outcome: Outcome, sample: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return outcome.labels[:, sample]


class FlashKMeans(Peer):
    """flash-kmeans, called as its own benchmark calls it. It takes batches."""

    remarks: ClassVar = {"float32": "products in TF32"}

    def __init__(self) -> None:
        # Not from the package, which falls back to plain PyTorch where anything cannot be imported.
        from flash_kmeans.kmeans_triton_impl import batch_kmeans_Euclid

        self._fit = batch_kmeans_Euclid

    def fit(self, task: Task) -> Outcome:  # noqa: D102
        labels, centroids, n_iter = self._fit(
            task.x, task.k, max_iters=task.max_iter, tol=-1.0, init_centroids=task.init
        )
        return Outcome(centroids, labels, n_iter)


class FlashLib(Peer):
    """FlashLib as it comes: without nvidia-cutlass-dsl that is Triton. It takes batches."""

    remarks: ClassVar = {"float32": "products in TF32"}

    def __init__(self) -> None:
        from flashlib import flash_kmeans

        self._fit = flash_kmeans

    def fit(self, task: Task) -> Outcome:  # noqa: D102
        # It writes to the centroids that it is given, in its second iteration.
        start = task.init.clone()
        labels, centroids, n_iter = self._fit(
            task.x, task.k, max_iters=task.max_iter, tol=0.0, init_centroids=start
        )
        return Outcome(centroids, labels, n_iter)


class FastKMeans(Peer):
    """fastkmeans, problem by problem, by the function that its `train` calls.

    `train` takes NumPy arrays and moves them to the device piece by piece in every iteration: it is
    spared that. It draws its own start, which is ours.
    """

    remarks: ClassVar = dict.fromkeys(("bfloat16", "float32"), "products in float16")

    def __init__(self) -> None:
        from fastkmeans import FastKMeans
        from fastkmeans.kmeans import _kmeans_torch_double_chunked

        self._model, self._fit = FastKMeans, _kmeans_torch_double_chunked

    def fit(self, task: Task) -> Outcome:  # noqa: D102
        model = self._model(task.x.shape[-1], task.k, device=task.x.device)
        centroids, labels = [], []
        for seed, x in enumerate(task.x):
            torch.manual_seed(seed)
            found = self._fit(
                x,
                torch.linalg.vector_norm(x, dim=1, dtype=torch.float32).square_(),
                task.k,
                x.device,
                max_iters=task.max_iter,
                tol=-1.0,
                chunk_size_data=model.chunk_size_data,
                chunk_size_centroids=model.chunk_size_centroids,
                max_points_per_centroid=model.max_points_per_centroid,
                use_triton=model.use_triton,
            )
            centroids.append(found[0])
            labels.append(found[1])
        return Outcome(torch.stack(centroids), torch.stack(labels), task.max_iter)

    def labels(self, task: Task, outcome: Outcome, sample: torch.Tensor) -> torch.Tensor:  # noqa: D102
        model = self._model(task.x.shape[-1], task.k, device=task.x.device)
        labels = []
        for x, centroids in zip(task.x, outcome.centroids, strict=True):
            model.centroids = centroids.numpy()
            labels.append(torch.from_numpy(model.predict(x[sample].float().cpu().numpy())))
        return torch.stack(labels)


class Torch(Peer):
    """Plain PyTorch, all problems at once: products of a part of the rows, argmin, index_add_."""

    part = 1 << 28
    """Scores written at once, float32."""

    def __init__(self, precision: str = "highest") -> None:
        self._precision = precision
        if precision == "high":
            self.dtypes, self.remarks = ("float32",), {"float32": "products in TF32"}

    def fit(self, task: Task) -> Outcome:  # noqa: D102
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self._precision)
        try:
            return self._lloyd(task)
        finally:
            torch.set_float32_matmul_precision(before)

    def _lloyd(self, task: Task) -> Outcome:
        x, c = task.x, task.init
        b, k, d = c.shape
        first = torch.arange(b, device=x.device)[:, None] * k  # each problem's own clusters
        parts = x.split(max(1, self.part // (b * k)), dim=1)
        ones = torch.ones(parts[0].shape[0] * parts[0].shape[1], device=x.device)
        for _ in range(task.max_iter):
            sums, counts = x.new_zeros((b * k, d), dtype=torch.float32), ones.new_zeros(b * k)
            norms = c.float().square().sum(dim=-1)
            labels = []
            for part in parts:
                labels.append(self._scores(part, c, norms).argmin(dim=-1))
                clusters = (labels[-1] + first).flatten()
                sums.index_add_(0, clusters, part.reshape(-1, d).float())
                counts.index_add_(0, clusters, ones[: len(clusters)])
            means = (sums / counts[:, None]).reshape(c.shape).to(c.dtype)
            c = torch.where(counts.reshape(b, k, 1) > 0, means, c)
        return Outcome(c, torch.cat(labels, dim=1), task.max_iter)

    @staticmethod
    def _scores(x: torch.Tensor, c: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        """Return |c|² - 2 x.c of rows (b, m, d): (b, m, k) float32, whatever the operands."""
        if x.dtype == torch.float32:
            return torch.baddbmm(norms[:, None], x, c.mT, alpha=-2)
        if x.is_cuda:
            products = torch.bmm(x, c.mT, out_dtype=torch.float32)
        else:  # where products of half precision cannot be had in float32
            products = x.float() @ c.float().mT
        return torch.sub(norms[:, None], products, alpha=2, out=products)


class Faiss(Peer):
    """faiss on a GPU, problem by problem. It takes NumPy arrays, which are ready."""

    dtypes: ClassVar = ("float32",)

    def __init__(self) -> None:
        import faiss

        if not hasattr(faiss, "StandardGpuResources"):
            raise ImportError("this faiss is built without GPUs")
        self._faiss = faiss

    def fit(self, task: Task) -> Outcome:  # noqa: D102
        centroids, labels = [], []
        for x, init in zip(task.host, task.init.cpu().numpy(), strict=True):
            n, d = x.shape
            model = self._faiss.Kmeans(
                d,
                task.k,
                niter=task.max_iter,
                gpu=True,
                # By default it would cluster a sample of 256 rows a centroid, and warn below 39.
                max_points_per_centroid=n,
                min_points_per_centroid=1,
            )
            model.train(x, init_centroids=init)
            centroids.append(torch.from_numpy(model.centroids))
            labels.append(torch.from_numpy(model.index.search(x, 1)[1][:, 0]))
        return Outcome(torch.stack(centroids), torch.stack(labels), task.max_iter)

    def labels(self, task: Task, outcome: Outcome, sample: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return outcome.labels[:, sample]


class CuML(Peer):
    """cuML, problem by problem."""

    dtypes: ClassVar = ("float32",)

    def __init__(self) -> None:
        from cuml.cluster import KMeans

        self._model = KMeans

    def fit(self, task: Task) -> Outcome:  # noqa: D102
        on = {"device": task.x.device}
        centroids, labels, passes = [], [], []
        for x, init in zip(task.x, task.init, strict=True):
            model = self._model(
                n_clusters=task.k,
                init=init,
                n_init=1,
                max_iter=task.max_iter,
                tol=1e-30,  # not 0, which it may refuse
                output_type="cupy",
            ).fit(x)
            centroids.append(torch.as_tensor(model.cluster_centers_, **on))
            labels.append(torch.as_tensor(model.labels_, **on))
            passes.append(model.n_iter_)
        return Outcome(torch.stack(centroids), torch.stack(labels), float(np.mean(passes)))

    def labels(self, task: Task, outcome: Outcome, sample: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return outcome.labels[:, sample]


PEERS: dict[str, Callable[[], Peer]] = {
    OURS: AnyKMeans,
    FAST: lambda: AnyKMeans("fast"),
    OURS + "-relocate": lambda: AnyKMeans(empty="relocate"),
    "flash_kmeans": FlashKMeans,
    "flashlib": FlashLib,
    "fastkmeans": FastKMeans,
    "torch": Torch,
    "torch-tf32": lambda: Torch("high"),
    "faiss": Faiss,
    "cuml": CuML,
}


def ready(names: list[str] | None) -> tuple[dict[str, Peer], dict[str, str]]:
    """Return ours and the named peers that can be imported, and why the others cannot.

    By default all but further variants of ours.
    """
    if names is None:
        names = [name for name in PEERS if not name.startswith(OURS)]
    peers: dict[str, Peer] = {}
    reasons: dict[str, str] = {}
    for name in (OURS, FAST, *names):
        try:
            peers[name] = PEERS[name]()
        except ImportError as error:
            reasons[name] = str(error)
    return peers, reasons
