"""A photograph in a few bits a pixel: a residual codebook of its patches, learnt in batches.

Each patch of 4 x 4 pixels becomes four bytes: the number of the nearest of 256 patches, of the nearest of 256 to what that has
left, and so on. The first bytes alone give a coarser photograph. The codebook is an `nn.Module`; its state is saved and
read back as that of a model is, and decodes to the same bits::

    python examples/image_codebook.py
    python examples/image_codebook.py --photo flower.jpg
"""

import argparse
import io
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_image

from anykmeans.torch import ResidualCodebook

SIDE, CODES, STAGES = 4, 256, 4


def patches(photo):
    """Return the patches (n, SIDE * SIDE * 3) of a photograph (height, width, 3), from 0 to 1."""
    height, width, _ = photo.shape
    x = torch.tensor(photo, dtype=torch.float32) / 255
    x = x.reshape(height // SIDE, SIDE, width // SIDE, SIDE, 3).transpose(1, 2)
    return x.reshape(-1, SIDE * SIDE * 3)


def image(x, shape):
    """Return the photograph (height, width, 3) whose patches are `x`, the other way round."""
    height, width, _ = shape
    x = x.reshape(height // SIDE, width // SIDE, SIDE, SIDE, 3).transpose(1, 2)
    return (x.reshape(shape).clamp(0, 1) * 255).round().byte().numpy()


def quality(found, photo):
    """Return the peak signal-to-noise ratio of a photograph that came back, in decibels."""
    error = np.mean((found.astype(float) - photo) ** 2)
    return 10 * np.log10(255**2 / error)


def plot(photo, found, codes, path):
    """Write a part of the photograph as it was and as it came back, and the codes of the first stage."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    part = slice(100, 292), slice(200, 456)
    axes[0].imshow(photo[part])
    axes[0].set_title("the photograph: 24 bits a pixel")
    for ax, (stages, back) in zip(axes[1:5], found.items(), strict=True):
        bits = stages * np.log2(CODES) / SIDE**2
        ax.imshow(back[part])
        ax.set_title(f"{stages} of {STAGES} codes: {bits:g} bits, {quality(back, photo):.1f} dB")
    order = np.argsort(codes.mean(axis=1))  # from dark to bright
    tiles = codes[order].reshape(16, 16, SIDE, SIDE, 3)
    tiles = np.pad(tiles, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)), constant_values=1.0)
    axes[5].imshow(tiles.transpose(0, 2, 1, 3, 4).reshape(16 * (SIDE + 1), -1, 3).clip(0, 1))
    axes[5].set_title(f"the {CODES} patches of the first stage")
    for ax in axes:
        ax.set_axis_off()
    figure.savefig(path, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photo", choices=("china.jpg", "flower.jpg"), default="china.jpg")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("examples/output"), metavar="DIR")
    options = parser.parse_args()

    photo = load_sample_image(options.photo)  # (height, width, 3) uint8
    photo = photo[: photo.shape[0] // SIDE * SIDE, : photo.shape[1] // SIDE * SIDE]
    x = patches(photo).to(options.device)

    codebook = ResidualCodebook(CODES, x.shape[1], stages=STAGES, decay=0.9).to(options.device)
    torch.manual_seed(0)  # of the order of patches alone
    begin = time.perf_counter()
    print(f"{options.photo}: {len(x):,} patches of {SIDE} x {SIDE} pixels")
    for epoch in range(1, options.epochs + 1):
        for batch in x[torch.randperm(len(x))].split(4096):
            codebook(batch)
        left = torch.mean((x - codebook.eval()(x).quantized) ** 2)
        codebook.train()
        print(f"epoch {epoch}: {10 * torch.log10(1 / left):.2f} dB")
    print(f"{time.perf_counter() - begin:.1f} s")

    file = io.BytesIO()  # as a checkpoint of a model
    codes = codebook.eval()(x).codes.to(torch.uint8)
    torch.save({"codebook": codebook.state_dict(), "codes": codes}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True, map_location="cpu")
    again = ResidualCodebook(CODES, x.shape[1], stages=STAGES)
    again.load_state_dict(saved["codebook"])

    codes = saved["codes"].long()
    found = {m: image(again.decode(codes[:, :m]), photo.shape) for m in range(1, STAGES + 1)}
    print("\ncodes  bits a pixel   quality  in use")
    for m, back in found.items():
        used = len(codes[:, m - 1].unique())
        print(f"{m:5} {8 * m / SIDE**2:13.2f} {quality(back, photo):6.2f} dB {used:7}")

    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{Path(options.photo).stem}_codebook.png"
    plot(photo, found, again.codebooks[0].codebook[0].numpy(), path)
    print(f"\nwrote {path}")


if __name__ == "__main__":
    main()
