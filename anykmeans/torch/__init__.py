"""k-means inside PyTorch: modules and functions whose gradients go on, and the batches of its loaders."""

from __future__ import annotations

from anykmeans.torch.assignments import soft_assign
from anykmeans.torch.codebook import Codebook, Quantized
from anykmeans.torch.composed import ProductCodebook, ResidualCodebook
from anykmeans.torch.fuzzy import SoftKMeansResult, soft_kmeans
from anykmeans.torch.loaders import Batches
from anykmeans.torch.means import cluster_means

__all__ = [
    "Batches",
    "Codebook",
    "ProductCodebook",
    "Quantized",
    "ResidualCodebook",
    "SoftKMeansResult",
    "cluster_means",
    "soft_assign",
    "soft_kmeans",
]
