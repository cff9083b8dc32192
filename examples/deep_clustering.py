"""Digits without their labels: k-means on the pixels, and on what an autoencoder makes of them.

An autoencoder learns to put each digit in a few numbers. Then its code is pulled apart: soft assignments of all
digits to the centroids that `kmeans` finds are compared with a sharper copy of themselves, and the gradient of
`soft_assign` moves centroids and network (Xie, Girshick and Farhadi, "Unsupervised deep embedding for clustering
analysis", ICML 2016). The labels are used to score, and for nothing else::

    python examples/deep_clustering.py
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn

from anykmeans import kmeans
from anykmeans.torch import cluster_means, soft_assign

K = 10


def purity(labels, digits):
    """Return the share of rows whose digit is the most frequent one of their cluster."""
    table = torch.bincount(labels.long() * 10 + digits, minlength=10 * K)
    return (table.reshape(K, 10).amax(dim=1).sum() / len(digits)).item()


def sharper(p):
    """Return the target of Xie et al.: confident assignments gain, clusters count alike."""
    q = p**2 / p.sum(dim=0)
    return q / q.sum(dim=1, keepdim=True)


def autoencoder(images, epochs, noise=0.2):
    """Return an encoder and a decoder that restore noisy images through ten numbers."""
    encoder = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
    decoder = nn.Sequential(nn.Linear(10, 128), nn.ReLU(), nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 64))
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(128):
            noisy = images[batch] + noise * torch.randn(len(batch), 64)
            loss = nn.functional.mse_loss(decoder(encoder(noisy)), images[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return encoder, decoder


def pull_apart(encoder, decoder, images, epochs, seed):
    """Train encoder and centroids on soft assignments; return labels and code before and after."""
    with torch.no_grad():
        code = encoder(images)
    start = kmeans(code, K, n_init=10, rng=seed)
    centroids = start.centroids.clone().requires_grad_()
    # The variance within a cluster says what near is.
    temperature = 2 * start.inertia / len(images)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters(), centroids], lr=1e-3)
    for _ in range(epochs):
        with torch.no_grad():
            target = sharper(soft_assign(encoder(images), centroids, temperature))
        for batch in torch.randperm(len(images)).split(256):
            y = encoder(images[batch])
            p = soft_assign(y, centroids, temperature)
            apart = nn.functional.kl_div(p.clamp(min=1e-9).log(), target[batch], reduction="batchmean")
            kept = nn.functional.mse_loss(decoder(y), images[batch])
            optimizer.zero_grad()
            (0.1 * apart + kept).backward()
            optimizer.step()
    with torch.no_grad():
        end = encoder(images)
        labels = soft_assign(end, centroids, temperature).argmax(dim=1)
    return start.labels, labels, code, end
