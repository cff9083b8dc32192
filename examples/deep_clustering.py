"""Digits sorted without their labels: by k-means on their pixels, and by a network that learns to sort them.

A network puts each digit in ten numbers, from which another can draw it again. k-means on these finds ten centroids, and from there
network and centroids learn together: a digit's soft assignment to the centroids shall tell as much as it can about that of one of its
nearest neighbours, both turned and moved a little. `anykmeans.torch.soft_assign` carries the gradient to both. The labels
are used to score, and for nothing else::

    python examples/deep_clustering.py

After J. Xie, R. Girshick and A. Farhadi, "Unsupervised deep embedding for clustering analysis", ICML 2016 (network and
centroids learn together), X. Ji, J. F. Henriques and A. Vedaldi, "Invariant information clustering", ICCV 2019 (what is learned
from pairs), and W. Van Gansbeke et al., "SCAN: learning to classify images without labels", ECCV 2020 (pairs of neighbours).
"""

import argparse
import statistics
import time
from itertools import pairwise
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import affine_grid, grid_sample, mse_loss

from anykmeans import assign, kmeans
from anykmeans.torch import cluster_means, soft_assign

K, NEIGHBOURS, SIDE = 10, 10, 8


def purity(labels, digits):
    """Return the share of rows whose digit is the most frequent one of their cluster."""
    table = torch.bincount(labels.long() * 10 + digits, minlength=10 * K)
    return (table.reshape(K, 10).amax(dim=1).sum() / len(digits)).item()


def moved(images):
    """Return the images, each turned, zoomed and moved a little."""
    m = len(images)
    turn, zoom, shift = (torch.rand(m, s) * 2 - 1 for s in (1, 1, 2))
    turn, zoom, shift = turn * 0.15, 1 + zoom * 0.1, shift * 0.15
    cos, sin = turn.cos() * zoom, turn.sin() * zoom
    maps = torch.stack([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1), shift], 2)
    grid = affine_grid(maps, (m, 1, SIDE, SIDE), align_corners=False)
    return grid_sample(images.reshape(m, 1, SIDE, SIDE), grid, align_corners=False).reshape(m, -1)


def layers(*sizes):
    """Return linear layers of these sizes with rectifiers in between."""
    steps = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    return nn.Sequential(*(part for step in steps for part in (step, nn.ReLU())))[:-1]


def fit(parameters, images, loss, epochs, size):
    """Lower a loss of row numbers."""
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(size):
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()


def information(p, q):
    """Return the mutual information, in nats, of soft assignments (m, k) and those of other views of the same."""
    joint = p.T @ q / len(p)
    joint = ((joint + joint.T) / 2).clamp(min=1e-9)
    return (joint * (joint / (joint.sum(dim=0) * joint.sum(dim=1, keepdim=True))).log()).sum()


def learn(images, seed, epochs):
    """Return the codes (n, 10) of an autoencoder with their clusters, and those that it has learned to sort by."""
    torch.manual_seed(seed)
    encoder, decoder = layers(64, 256, 128, 10), layers(10, 128, 256, 64)
    networks = [*encoder.parameters(), *decoder.parameters()]

    def drawn(batch):
        view = moved(images[batch])
        return mse_loss(decoder(encoder(view)), view)

    fit(networks, images, drawn, epochs, 128)
    before = encoder(images).detach()
    start = kmeans(before, K, n_init=10, rng=seed)

    centroids = start.centroids.clone().requires_grad_()
    temperature = (
        0.2 * start.inertia / len(images)
    )  # a fifth of the squared distance within a cluster
    near = torch.cdist(images, images).topk(NEIGHBOURS + 1, largest=False).indices[:, 1:]

    def told(batch):
        other = near[batch, torch.randint(0, NEIGHBOURS, (len(batch),))]
        view = moved(images[batch])
        y, z = encoder(view), encoder(moved(images[other]))
        p, q = (soft_assign(each, centroids, temperature) for each in (y, z))
        return mse_loss(decoder(y), view) - information(p, q)

    fit([*networks, centroids], images, told, 3 * epochs, 450)
    after = encoder(images).detach()
    return (before, start.labels), (after, assign(after, centroids)[0])


def plane(code):
    """Return the code on its first two principal axes: (n, 2)."""
    centred = code - code.mean(dim=0)
    return centred @ torch.linalg.svd(centred, full_matrices=False)[2][:2].T


def strip(ax, images, labels, digits, title):
    """Draw the mean image of each cluster, with the digit it has most of and that digit's share."""
    means = cluster_means(images, labels, K)  # (10, 64)
    table = torch.bincount(labels * 10 + digits, minlength=10 * K).reshape(K, 10)
    own = table.argmax(dim=1)
    order = own.argsort(stable=True)
    gap = torch.ones(SIDE, 1)
    tiles = [part for j in order for part in (means[j].reshape(SIDE, SIDE), gap * 0)]
    ax.imshow(torch.cat(tiles[:-1], dim=1).numpy(), cmap="gray_r", vmin=0, vmax=1)
    shares = table.amax(dim=1) / table.sum(dim=1)
    for place, j in enumerate(order):
        colour = "black" if shares[j] >= 0.7 else "tab:red"
        text = f"{own[j]}: {shares[j]:.0%}"
        ax.text(place * (SIDE + 1) + 3.5, SIDE + 0.6, text, ha="center", va="center", color=colour)
    ax.set_title(title)
    ax.set(ylim=(SIDE + 1.2, -0.5))
    ax.set_axis_off()


def plot(images, digits, pixels, before, after, scores, path):
    """Write the codes before and after, the purity of every seed, and what the clusters look like."""
    figure = Figure(figsize=(12, 7.6), layout="constrained")
    axes = figure.subplot_mosaic(
        [["before", "after", "scores"], ["pixels"] * 3, ["learned"] * 3],
        height_ratios=[4, 1.45, 1.45],
    )
    for name, (code, _), title in (
        ("before", before, "code of the autoencoder, by true digit"),
        ("after", after, "the same network after it learned to sort"),
    ):
        ax = axes[name]
        y = plane(code).numpy()
        dots = ax.scatter(
            *y.T, c=digits.numpy(), cmap="tab10", vmin=-0.5, vmax=9.5, s=5, linewidths=0
        )
        ax.set(title=title, xticks=[], yticks=[], xlabel="first principal axis", ylabel="second")
    bar = figure.colorbar(dots, ax=[axes["before"], axes["after"]], ticks=range(10), pad=0.02)
    bar.set_label("true digit, never shown to the network")
    ax = axes["scores"]
    for place, values in enumerate(scores.values()):
        ax.plot([place] * len(values), values, "o", color="tab:gray", markersize=6, alpha=0.7)
        middle = statistics.median(values)
        ax.plot([place - 0.2, place + 0.2], [middle, middle], color="tab:blue", linewidth=2.5)
        ax.text(place + 0.24, middle, f"{middle:.2f}", va="center", color="tab:blue")
    ax.set_xticks(range(len(scores)), list(scores))
    ax.set(xlim=(-0.5, len(scores) - 0.25), ylim=(0.6, 1), ylabel="purity")
    ax.set_title(f"{len(values)} seeds, and their median")
    ax.grid(axis="y", alpha=0.3)
    strip(
        axes["pixels"],
        images,
        pixels,
        digits,
        "k-means on pixels: the mean of each cluster, its most frequent digit and that digit's share",
    )
    strip(axes["learned"], images, after[1], digits, "the learned clusters of the same seed")
    first, *_, last = (statistics.median(values) for values in scores.values())
    figure.suptitle(
        f"1,797 digits sorted without labels: purity {first:.2f} by k-means on pixels, {last:.2f} learned",
        fontsize=15,
    )
    figure.savefig(path, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("examples/output"), metavar="DIR")
    options = parser.parse_args()

    torch.set_num_threads(1)  # tensors this small gain nothing from threads, and may wait for them
    data, target = load_digits(return_X_y=True)
    images = torch.asarray(data / 16, dtype=torch.float32)  # (1797, 64)
    digits = torch.asarray(target, dtype=torch.int64)
    scores, runs = {"pixels": [], "code": [], "learned": []}, []

    print("purity\nseed  pixels    code  learned  seconds")
    for seed in range(options.seeds):
        begin = time.perf_counter()
        pixels = kmeans(images, K, n_init=10, rng=seed).labels
        before, after = learn(images, seed, options.epochs)
        for values, labels in zip(scores.values(), (pixels, before[1], after[1]), strict=True):
            values.append(purity(labels, digits))
        runs.append((pixels, before, after))
        row = "{:8.3f}{:8.3f}{:9.3f}".format(*(values[-1] for values in scores.values()))
        print(f"{seed:4d}{row}{time.perf_counter() - begin:9.1f}")
    medians = {name: statistics.median(values) for name, values in scores.items()}
    print("median" + "{:6.3f}{:8.3f}{:9.3f}".format(*medians.values()))

    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "deep_clustering.png"
    middle = sorted(range(options.seeds), key=scores["learned"].__getitem__)[options.seeds // 2]
    plot(images, digits, *runs[middle], scores, path)
    print(f"wrote {path}, of seed {middle}")


if __name__ == "__main__":
    main()
