"""K-means three times over: spelled out in five lines, with anykmeans, with scikit-learn.

All three start from the same centres and must end at the same ones. The five lines are written in
the Array API standard, so they run on any array library::

    python examples/from_scratch.py
    python examples/from_scratch.py --library torch --device cuda
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
from array_api_compat import array_namespace
from matplotlib.figure import Figure
from sklearn.cluster import KMeans

from anykmeans import kmeans, kmeans_plusplus

LIBRARIES = ("numpy", "torch", "array_api_strict", "cupy", "jax")
K = 3


def spelled_out(x, centroids, n_iter=100):
    """Return the centroids after `n_iter` rounds of Lloyd's algorithm.

    For reading, not for use: it makes every distance at once, and a cluster that loses all of its
    rows turns into NaN.
    """
    xp = array_namespace(x)
    for _ in range(n_iter):
        distances = xp.linalg.vector_norm(x[:, None, :] - centroids[None, :, :], axis=2)  # (n, k)
        labels = xp.argmin(distances, axis=1)  # (n,)
        member = xp.astype(xp.stack([labels == j for j in range(K)]), x.dtype)  # (k, n)
        centroids = member @ x / xp.sum(member, axis=1, keepdims=True)  # (k, d)
    return centroids


def two_groups(seed=0):
    """Return two random groups of 50 points each: (100, 2) float64."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(0, 1, (50, 2)), rng.normal(4, 1, (50, 2))])


def in_library(points, library, device):
    """Return the NumPy array `points` as an array of `library` on `device`."""
    xp = import_module(library)
    if library == "jax":
        xp.config.update("jax_enable_x64", True)  # off by default: float64 would become float32
        return xp.device_put(points, xp.devices(device)[0] if device else None)
    if library == "cupy":
        with xp.cuda.Device(int(device or 0)):
            return xp.asarray(points)
    return xp.asarray(points, device=device) if device else xp.asarray(points)


def on_host(array):
    """Return `array` as a NumPy array, for scikit-learn and for the plots."""
    if hasattr(array, "get"):  # CuPy
        return array.get()
    if hasattr(array, "cpu"):  # PyTorch
        array = array.cpu()
    return np.asarray(array)


def plot(points, runs, path):
    """Write scatter plots: the bare points, then each run as (title, labels, centroids)."""
    figure = Figure(figsize=(9, 3.2), layout="tight")
    axes = figure.subplots(1, 1 + len(runs), sharex=True, sharey=True)
    axes[0].scatter(*points.T, s=14, color="0.4", linewidths=0)
    axes[0].set_title("two random groups")
    for ax, (title, labels, centroids) in zip(axes[1:], runs, strict=True):
        ax.scatter(*points.T, s=14, c=labels, cmap="viridis", linewidths=0)
        ax.scatter(*centroids.T, s=110, color="crimson", marker="X", edgecolor="white")
        ax.set_title(title)
    for ax in axes:
        ax.set_aspect("equal")
    figure.savefig(path, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", choices=LIBRARIES, default="numpy")
    parser.add_argument("--device", help="as the library names it; default: the library's own")
    parser.add_argument("--out", type=Path, default=Path("examples/output"), metavar="DIR")
    options = parser.parse_args()

    points = two_groups()
    x = in_library(points, options.library, options.device)

    # 1. Spelled out, from the centres that scikit-learn would pick.
    start, _ = kmeans_plusplus(x, K, random_state=0)
    ours = spelled_out(x, start)

    # 2. The library. A RandomState is drawn from exactly as scikit-learn does.
    result = kmeans(x, K, rng=np.random.RandomState(0))

    # 3. scikit-learn.
    theirs = KMeans(n_clusters=K, random_state=0).fit(points)

    centroids = on_host(result.centroids)
    print(f"{options.library}: {result.n_iter} iterations, inertia {result.inertia:.6f}")
    print(f"scikit-learn: {theirs.n_iter_} iterations, inertia {theirs.inertia_:.6f}")
    print("centroids of kmeans(x, 3):")
    print(centroids)

    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "from_scratch.png"
    plot(
        points,
        [
            (f"kmeans(x, {K})", on_host(result.labels), centroids),
            ("scikit-learn", theirs.labels_, theirs.cluster_centers_),
        ],
        path,
    )
    print(f"wrote {path}")

    # The same start leads to the same clusters in the same order: nothing to sort. The five lines
    # and scikit-learn round in their own ways, in the last of 16 digits.
    differing = [
        f"{name} differs from scikit-learn by up to {difference:.1e}"
        for name, other in (("the five lines", on_host(ours)), ("kmeans", centroids))
        if (difference := np.max(np.abs(other - theirs.cluster_centers_))) > 1e-12
    ]
    if differing:
        sys.exit("; ".join(differing))
    print("The centroids of all three are identical, to 1e-12.")


if __name__ == "__main__":
    main()
