"""k-means inside PyTorch: modules and functions whose gradients go on."""

from __future__ import annotations

__all__: list[str] = []
