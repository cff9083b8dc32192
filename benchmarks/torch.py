"""Time what belongs inside PyTorch: codebooks, clusterings by cosine, and batches of small problems.

Peers are vector-quantize-pytorch, plain loops of torch.cdist, faiss and torch_kmeans, where they are installed. A ratio
is the peer's time divided by ours: above 1 anykmeans is faster. With `--device cuda` all but faiss runs on a GPU.
"""

import argparse
import functools
import importlib
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import anykmeans
from anykmeans.torch import Codebook, ResidualCodebook
from benchmarks import report, rows
from benchmarks.timing import Timings, alternate, busy, wall

OURS, PLAIN, VQ = "anykmeans", "cdist", "vector-quantize-pytorch"

STEPS = [(1024, 16, 64), (3136, 64, 512), (8192, 32, 1024), (16384, 256, 1024), (16384, 8, 8192)]
"""Rows, features and codes of a batch: small latents to those of audio and image models."""

BATCHES = [(4, 256, 16, 8), (64, 256, 16, 8), (512, 64, 8, 4), (4096, 64, 8, 4)]
"""Problems, rows, features and clusters."""

COSINE = [(20_000, 64, 10), (20_000, 384, 100), (100_000, 32, 50)]
"""Rows, features and clusters."""

PASSES = 20
"""Of a clustering by cosine, from given centroids."""

CAP = 20.0
"""Seconds after which no further round of a line begins."""


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--device", default="cpu", help="of the tensors (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch")
    parser.add_argument(
        "--measure",
        choices=("wall", "cpu"),
        default="wall",
        help="seconds on the clock, or of all threads of this process, in which work of others does not count",
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each autoencoder")
    rows.options(parser)
    parser.set_defaults(repeats=31)


def run(options: argparse.Namespace) -> int:
    """Run the parts that were asked for; return 0."""
    torch.set_num_threads(options.threads)
    packages = ("torch", "numpy", "numba", "vector-quantize-pytorch", "faiss-cpu", "torch_kmeans")
    about = report.environment(packages) | {
        "device": options.device,
        "threads": options.threads,
        "measured": options.measure,
    }
    print(report.heading(about))
    records: list[dict[str, Any]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peers
        for part in options.parts:
            print(f"\n{PARTS[part].__doc__}\n")
            lines = list(PARTS[part](options))
            print(
                report.markdown(
                    [list(lines[0]), *(list(map(str, line.values())) for line in lines)]
                )
            )
            records += [{"part": part} | line for line in lines]
            report.write(
                options.json, {"command": "torch", "environment": about, "results": records}
            )
    return 0


Line = dict[str, Any]


def peer(module: str, name: str) -> Any | None:
    """Return a class or function of a peer, or None where it is not installed, which is said."""
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        report.absent({module: str(error)})
        return None


def compared(
    on: str, runs: dict[str, Callable[[], Any]], options: argparse.Namespace
) -> tuple[Line, Timings[Any]]:
    """Return a line of medians and of the ratios of peers to us, and what was timed."""

    def clock(call: Callable[[], Any]) -> tuple[float, Any]:
        def done() -> Any:
            result = call()
            if options.device != "cpu":
                torch.cuda.synchronize()
            return result

        if options.measure == "wall":
            return wall(done)
        begin = time.process_time()
        result = done()
        return time.process_time() - begin, result

    for call in runs.values():
        for _ in range(3):
            clock(call)
    timings = alternate(runs, options.repeats, CAP, clock)
    line: Line = {"on": on}
    for name in runs:
        line[f"{name} ms"] = f"{timings.median(name) * 1e3:.2f}"
        if name != OURS:
            line[f"{name} / {OURS}"] = f"{timings.ratio(name, OURS):.2f}"
    return line | {"rounds": timings.rounds, "note": busy(timings.others)}, timings


# -- codebooks ----------------------------------------------------------------------------------


class PlainCodebook(nn.Module):
    """What people write by hand: torch.cdist, one-hot sums, moving averages, no k-means, no restarts."""

    def __init__(self, k: int, d: int, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("codebook", torch.randn(k, d))
        self.register_buffer("mass", torch.ones(k))
        self.register_buffer("sums", self.codebook.clone())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the quantized rows, codes and loss, and move the codes."""
        rows = x.reshape(-1, x.shape[-1])
        codes = torch.cdist(rows, self.codebook).argmin(dim=1)
        values = self.codebook[codes]
        if self.training:
            with torch.no_grad():
                won = F.one_hot(codes, len(self.codebook)).to(rows.dtype)
                self.mass.lerp_(won.sum(dim=0), 1 - self.decay)
                self.sums.lerp_(won.T @ rows, 1 - self.decay)
                self.codebook.copy_(self.sums / self.mass.clamp(min=1e-5)[:, None])
        loss = 0.25 * F.mse_loss(rows, values)
        quantized = (rows + (values - rows).detach()).reshape(x.shape)
        return quantized, codes.reshape(x.shape[:-1]), loss


Make = Callable[[int, int], nn.Module]
"""what makes a layer of k codes of d features"""


def quantisers() -> dict[str, Make]:
    """Return what makes single codebooks, ours and those of peers that are installed."""
    makes: dict[str, Make] = {OURS: Codebook, PLAIN: PlainCodebook}
    if (vq := peer("vector_quantize_pytorch", "VectorQuantize")) is not None:
        how = {"decay": 0.99, "kmeans_init": True, "commitment_weight": 0.25}
        makes[VQ] = lambda k, d: vq(dim=d, codebook_size=k, threshold_ema_dead_code=2, **how)
    return makes


def residuals(stages: int) -> dict[str, Make]:
    """Return what makes residual codebooks, likewise."""
    makes: dict[str, Make] = {OURS: lambda k, d: ResidualCodebook(k, d, stages=stages)}
    if (vq := peer("vector_quantize_pytorch", "ResidualVQ")) is not None:
        how = {"decay": 0.99, "kmeans_init": True, "commitment_weight": 0.25}
        how |= {"num_quantizers": stages, "threshold_ema_dead_code": 2}
        makes[VQ] = lambda k, d: vq(dim=d, codebook_size=k, **how)
    return makes


def steps(makes: dict[str, Make], n: int, d: int, k: int, options: argparse.Namespace) -> Line:
    """Return what a step in training takes, on rows around as many points as there are codes."""
    torch.manual_seed(0)
    centers = 2 * torch.randn(k, d)
    x = (centers[torch.randint(k, (1, n))] + torch.randn(1, n, d)).to(options.device)
    layers = {name: make(k, d).to(options.device).train() for name, make in makes.items()}
    for layer in layers.values():
        for _ in range(1 + 8 * k // n):  # as many as the first codes are made of
            layer(x)
    runs = {name: functools.partial(layer, x) for name, layer in layers.items()}
    return compared(f"{n} x {d}, {k}", runs, options)[0]


def step(options: argparse.Namespace) -> Iterator[Line]:
    """A step of a codebook in training: rows x features, codes."""
    makes = quantisers()
    for shape in STEPS:
        yield steps(makes, *shape, options)


def residual(options: argparse.Namespace) -> Iterator[Line]:
    """A step of a residual codebook of eight stages in training: rows x features, codes."""
    makes = residuals(8)
    for shape in STEPS[1:3]:
        yield steps(makes, *shape, options)


@dataclass
class Trained:
    """What a training of an autoencoder ended with."""

    error: float
    in_use: int
    seconds: float


class Autoencoder(nn.Module):
    """28 x 28 pixels to 7 x 7 latents of `d` features, quantised, and back."""

    def __init__(self, quantiser: nn.Module, d: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(64, d, 1),
        )
        self.quantiser = quantiser
        self.decoder = nn.Sequential(
            nn.Conv2d(d, 64, 1), nn.ReLU(), nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(32, 1, 4, 2, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the pixels (n, 1, 28, 28) that come back, codes and the loss of the quantiser."""
        latents = self.encoder(x).movedim(1, -1)
        n = latents.shape[0]
        quantized, codes, loss = self.quantiser(latents.reshape(n, 49, -1))
        back = self.decoder(quantized.reshape(latents.shape).movedim(-1, 1))
        return back, codes, loss.sum()


def trained(make: Make, x: Tensor, held: Tensor, k: int, d: int, seed: int) -> Trained:
    """Return what 600 steps of 64 images come to on those `held` out."""
    torch.manual_seed(seed)
    model = Autoencoder(make(k, d), d).to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def once(batch: Tensor) -> None:
        back, _, loss = model(batch)
        optimizer.zero_grad()
        (F.mse_loss(back, batch) + loss).backward()
        optimizer.step()

    order = torch.randint(len(x), (600, 64), generator=torch.Generator().manual_seed(seed))
    spent = [wall(functools.partial(once, x[at]))[0] for at in order]
    model.eval()
    with torch.no_grad():
        back, codes, _ = model(held)
    stages = codes.reshape(len(held) * 49, -1).unbind(dim=1)
    in_use = sum(each.unique().numel() for each in stages)
    return Trained(float(F.mse_loss(back, held)), in_use, float(np.median(spent)))


def autoencoder(options: argparse.Namespace) -> Iterator[Line]:
    """An autoencoder of Fashion-MNIST: squared error a pixel of 2,000 images held out, codes in use, time a step; medians over seeds."""
    x = torch.from_numpy(rows.from_file(options.data, file="fashion_mnist_20k.npz"))
    x = x.reshape(-1, 1, 28, 28).to(options.device, torch.float32) / 255
    x, held = x[:-2000], x[-2000:]
    for title, makes in (("one", quantisers()), ("residual of 4", residuals(4))):
        for k, d in ((256, 16), (1024, 32)):
            for name, make in makes.items():
                found = [trained(make, x, held, k, d, seed) for seed in range(options.seeds)]
                error, in_use, seconds = (
                    float(np.median([getattr(each, what) for each in found]))
                    for what in ("error", "in_use", "seconds")
                )
                yield {
                    "codebooks": title,
                    "codes, features": f"{k}, {d}",
                    "by": name,
                    "error x 1000": f"{1e3 * error:.2f}",
                    "codes in use": int(in_use),
                    "ms a step": f"{1e3 * seconds:.1f}",
                }


# -- clusterings --------------------------------------------------------------------------------


def batches(options: argparse.Namespace) -> Iterator[Line]:
    """Batches of small problems, ten passes from given centroids: problems x rows x features, clusters."""
    theirs = peer("torch_kmeans", "KMeans")
    for b, n, d, k in BATCHES:
        rng = torch.Generator().manual_seed(0)
        centers = 3 * torch.randn(b, k, d, generator=rng)
        at = torch.randint(k, (b, n, 1), generator=rng).expand(b, n, d)
        x = (centers.gather(1, at) + torch.randn(b, n, d, generator=rng)).to(options.device)
        c = x[:, :k].contiguous()
        fit = functools.partial(anykmeans.kmeans, max_iter=10, tol=0.0)
        runs: dict[str, Callable[[], Any]] = {
            OURS: functools.partial(fit, x, k, init=c),
            "loop": functools.partial(looped, fit, x, c),
        }
        if theirs is not None:
            model = theirs(n_clusters=k, max_iter=10, tol=0.0, num_init=1, verbose=False)
            runs["torch_kmeans"] = functools.partial(model, x, k=k, centers=c)
        line, timings = compared(f"{b} x {n} x {d}, {k}", runs, options)
        same = bool((timings.results[OURS].labels == torch.stack(timings.results["loop"])).all())
        yield line | {"note": line["note"] or ("" if same else "LABELS DIFFER FROM THE LOOP'S")}


def looped(fit: Callable[..., Any], x: Tensor, c: Tensor) -> list[Tensor]:
    """Return the labels of all problems, one after the other."""
    return [fit(one, len(first), init=first).labels for one, first in zip(x, c, strict=True)]


def cosine(options: argparse.Namespace) -> Iterator[Line]:
    """Clusterings by cosine, twenty passes from given centroids: rows x features, clusters. An objective is the sum of cosines, by how much above ours."""
    theirs = peer("faiss", "Kmeans")
    for n, d, k in COSINE:
        lengths = np.random.default_rng(0).lognormal(0, 0.3, (n, 1)).astype(np.float32)
        x = torch.from_numpy(rows.embeddings(None, n, d) * lengths)
        c = torch.from_numpy(rows.initial_centres(x.numpy(), k))
        there = x.to(options.device), c.to(options.device)
        runs: dict[str, Callable[[], Any]] = {
            OURS: functools.partial(spherical, *there, options),
            "by hand, Euclid": functools.partial(by_hand, *there, options),
        }
        if theirs is not None:
            runs["faiss"] = functools.partial(by_faiss, theirs, x, c, options)
        line, timings = compared(f"{n} x {d}, {k}", runs, options)
        found = {name: objective(x, each[0].cpu()) for name, each in timings.results.items()}
        note = line.pop("note")
        for name in list(runs)[1:]:
            line[f"objective of {name}"] = f"{found[name] / found[OURS] - 1:+.1e}"
        passes = ", ".join(str(each[2]) for each in timings.results.values())
        yield line | {"mean cosine": f"{found[OURS] / n:.4f}", "passes": passes, "note": note}


Clustered = tuple[Tensor, Tensor, int]
"""centroids (k, d), labels (n,) and passes"""


def spherical(x: Tensor, c: Tensor, options: argparse.Namespace) -> Clustered:
    """Return our clustering by cosine."""
    fit = {"max_iter": PASSES, "tol": 0.0, "threads": options.threads}
    found = anykmeans.kmeans(x, len(c), init=c, metric="cosine", **fit)
    return found.centroids, found.labels, found.n_iter


def by_hand(x: Tensor, c: Tensor, options: argparse.Namespace) -> Clustered:
    """Return what is done without a metric: rows of length 1 clustered by Euclid, whose means are shorter."""
    fit = {"max_iter": PASSES, "tol": 0.0, "threads": options.threads}
    found = anykmeans.kmeans(F.normalize(x), len(c), init=F.normalize(c), **fit)
    return found.centroids, found.labels, found.n_iter


def by_faiss(make: Any, x: Tensor, c: Tensor, options: argparse.Namespace) -> Clustered:
    """Return faiss's clustering of all rows, which it wants at length 1."""
    importlib.import_module("faiss").omp_set_num_threads(options.threads)
    every = {"max_points_per_centroid": len(x), "min_points_per_centroid": 1}
    model = make(x.shape[1], len(c), niter=PASSES, spherical=True, **every)
    unit = F.normalize(x).numpy()
    model.train(unit, init_centroids=F.normalize(c).numpy())
    labels = model.index.search(unit, 1)[1][:, 0]
    return torch.from_numpy(model.centroids), torch.from_numpy(labels), len(model.obj)


def objective(x: Tensor, centroids: Tensor) -> float:
    """Return the sum of the cosines of rows (n, d) with the nearest of the centroids' directions, in float64."""
    directions = F.normalize(centroids.double()).T
    largest = [(F.normalize(part.double()) @ directions).amax(dim=1) for part in x.split(1 << 14)]
    return float(torch.cat(largest).sum())


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Line]]] = {
    "step": step,
    "residual": residual,
    "autoencoder": autoencoder,
    "batches": batches,
    "cosine": cosine,
}
