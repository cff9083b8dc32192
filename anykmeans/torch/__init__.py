"""k-means inside PyTorch: modules and functions whose gradients go on, and the batches of its loaders."""

from __future__ import annotations

from anykmeans.torch.codebook import Codebook, Quantized
from anykmeans.torch.composed import ProductCodebook, ResidualCodebook
from anykmeans.torch.loaders import Batches

__all__ = ["Batches", "Codebook", "ProductCodebook", "Quantized", "ResidualCodebook"]
