"""k-means inside PyTorch: modules and functions whose gradients go on."""

from __future__ import annotations

from anykmeans.torch.codebook import Codebook, Quantized
from anykmeans.torch.composed import ProductCodebook, ResidualCodebook

__all__ = ["Codebook", "ProductCodebook", "Quantized", "ResidualCodebook"]
