"""The colours of a photograph: cluster its pixels, print a table, write a picture.

The photographs come with scikit-learn::

    python examples/photo_colours.py
    python examples/photo_colours.py --photo flower.jpg --k 16
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_image

from anykmeans import kmeans


def plot(photo, reduced, palette, shares, path):
    """Write the photograph, the same in k colours, and the palette with widths by share."""
    figure = Figure(figsize=(10, 4.2), layout="tight")
    axes = figure.subplot_mosaic(
        [["before", "after"], ["palette", "palette"]], height_ratios=[8, 1]
    )
    axes["before"].imshow(photo)
    axes["before"].set_title("the photograph")
    axes["after"].imshow(reduced)
    axes["after"].set_title(f"in {len(palette)} colours")
    left = np.cumsum(shares) - shares
    axes["palette"].barh(0, shares, left=left, color=palette / 255)
    axes["palette"].set_xlim(0, 1)
    for ax in axes.values():
        ax.set_axis_off()
    figure.savefig(path, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photo", choices=("china.jpg", "flower.jpg"), default="china.jpg")
    parser.add_argument("--k", type=int, default=8, help="how many colours (default: 8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("examples/output"), metavar="DIR")
    options = parser.parse_args()

    photo = load_sample_image(options.photo)  # (height, width, 3) uint8
    pixels = photo.reshape(-1, 3)

    begin = time.perf_counter()
    result = kmeans(pixels, options.k, rng=options.seed)
    seconds = time.perf_counter() - begin

    # The most frequent colour first.
    counts = np.bincount(result.labels, minlength=options.k)
    order = np.argsort(-counts, kind="stable")
    palette = np.rint(result.centroids).astype(np.uint8)
    shares = counts / len(pixels)

    state = "converged" if result.converged else "stopped"
    print(f"{options.photo}: {len(pixels):,} pixels, {len(np.unique(pixels, axis=0)):,} colours")
    print(f"{state} after {result.n_iter} iterations, {seconds:.2f} s, kernel {result.kernel}\n")
    print("colour     red green  blue   share")
    for red, green, blue, share in ((*map(int, palette[j]), shares[j]) for j in order):
        swatch = f"  \x1b[48;2;{red};{green};{blue}m      \x1b[0m" if sys.stdout.isatty() else ""
        print(f"#{red:02x}{green:02x}{blue:02x} {red:6d}{green:6d}{blue:6d} {share:7.1%}{swatch}")

    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{Path(options.photo).stem}_{options.k}_colours.png"
    reduced = palette[result.labels].reshape(photo.shape)
    plot(photo, reduced, palette[order], shares[order], path)
    print(f"\nwrote {path}")


if __name__ == "__main__":
    main()
