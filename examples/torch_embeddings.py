"""What a network learns, seen by k-means: cluster its activations while it trains.

After every epoch the hidden activations of all digits are clustered where they are, on the tensor's
own device, without a detour through NumPy. Clusters that match the digits better and better show
that the network pulls them apart::

    python examples/torch_embeddings.py
    python examples/torch_embeddings.py --device cuda
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn

from anykmeans import kmeans

K = 10


def purity(labels, digits):
    """Return the share of rows whose digit is the most frequent one of their cluster."""
    table = torch.bincount(labels.long() * 10 + digits, minlength=10 * K)
    return (table.reshape(K, 10).amax(dim=1).sum() / len(digits)).item()


def plane(activations):
    """Return the activations on their first two principal axes: (n, 2)."""
    centred = activations - activations.mean(dim=0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    return centred @ axes[:2].T


def plot(purities, before, after, path):
    """Write the purity by epoch, and the activations before and after with their clusters."""
    figure = Figure(figsize=(11, 3.6), layout="tight")
    curve, *scatters = figure.subplots(1, 3)
    curve.plot(purities, marker="o")
    curve.set(xlabel="epoch", ylabel="purity of the clusters", ylim=(0, 1))
    for ax, title, (points, labels) in zip(
        scatters, ("untrained", "trained"), (before, after), strict=True
    ):
        ax.scatter(*points.T.cpu(), c=labels.cpu(), cmap="tab10", s=5, linewidths=0)
        ax.set(title=f"clusters of the {title} network", xticks=[], yticks=[])
    figure.savefig(path, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("examples/output"), metavar="DIR")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    images, digits = load_digits(return_X_y=True)
    images = torch.asarray(images / 16, dtype=torch.float32, device=options.device)  # (1797, 64)
    digits = torch.asarray(digits, dtype=torch.int64, device=options.device)

    hidden = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)).to(options.device)
    head = nn.Sequential(nn.ReLU(), nn.Linear(32, 10)).to(options.device)
    optimizer = torch.optim.Adam([*hidden.parameters(), *head.parameters()], lr=2e-3)

    print("epoch    loss  purity  iterations      ms")
    purities, snapshots = [], []
    for epoch in range(options.epochs + 1):
        total = 0.0
        for batch in torch.randperm(len(images)).split(64) if epoch else ():
            optimizer.zero_grad()
            error = nn.functional.cross_entropy(head(hidden(images[batch])), digits[batch])
            error.backward()
            optimizer.step()
            total += error.item() * len(batch)

        activations = hidden(images)  # (1797, 32), with its graph: kmeans detaches it
        begin = time.perf_counter()
        result = kmeans(activations, K, n_init=3, rng=options.seed)
        seconds = time.perf_counter() - begin
        purities.append(purity(result.labels, digits))
        snapshots.append((plane(activations.detach()), result.labels))
        loss = f"{total / len(images):7.3f}" if epoch else "      -"
        print(f"{epoch:5d} {loss} {purities[-1]:7.3f} {result.n_iter:11d} {1000 * seconds:7.0f}")

    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "torch_embeddings.png"
    plot(purities, snapshots[0], snapshots[-1], path)
    print(f"wrote {path}")
    if purities[-1] <= purities[0]:
        sys.exit("the clusters match the digits no better than before training")


if __name__ == "__main__":
    main()
