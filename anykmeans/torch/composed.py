"""Codebooks put together: side by side over the parts of a row, or one after the other over what is left of it."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anykmeans import _check as check
from anykmeans.torch.codebook import Codebook, Quantized, checked, passed_on


class ProductCodebook(nn.Module):
    """Product quantisation: a row is cut into parts of equal length, each of which has a codebook of its own.

    Parameters
    ----------
    num_codes : int
        Codes in each codebook.
    dim : int
        Features of a row.
    parts : int
        How many codebooks there are; `dim` must be a multiple of it.
    **how
        As for `Codebook`, whose `heads` the parts are.

    Attributes
    ----------
    codebooks : Codebook
        One, whose heads are the parts.

    Raises
    ------
    TypeError
        If a number is not one, or not whole.
    ValueError
        If `dim` is no multiple of `parts`, or another number is out of range.

    References
    ----------
    H. Jegou, M. Douze and C. Schmid, "Product quantization for nearest neighbor search", IEEE Transactions on Pattern
    Analysis and Machine Intelligence, 2011.

    Examples
    --------
    >>> import torch
    >>> from anykmeans.torch import ProductCodebook
    >>> codebook = ProductCodebook(num_codes=4, dim=6, parts=3)
    >>> quantized, codes, loss = codebook(torch.randn(10, 6))
    >>> quantized.shape, codes.shape
    (torch.Size([10, 6]), torch.Size([10, 3]))
    """

    def __init__(self, num_codes: int, dim: int, *, parts: int, **how: Any) -> None:
        super().__init__()
        self.dim = check.whole(dim, "dim", 1)
        self.parts = check.whole(parts, "parts", 1)
        if self.dim % self.parts:
            raise ValueError(f"`dim` must be a multiple of `parts`; got dim={dim}, parts={parts}.")
        self.codebooks = Codebook(num_codes, self.dim // self.parts, heads=self.parts, **how)

    def forward(self, x: Tensor) -> Quantized:
        """Return the nearest codes of rows `x` (..., dim), of shape (..., parts); see `Codebook.forward`."""
        rows = checked(x, (self.dim,), self.codebooks.codebook.device).unflatten(
            -1, (self.parts, -1)
        )
        quantized, codes, loss = self.codebooks(rows[..., 0, :] if self.parts == 1 else rows)
        return Quantized(quantized.reshape(x.shape), codes.reshape(*x.shape[:-1], -1), loss)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the rows (..., dim) that codes (..., parts) stand for; see `Codebook.decode`."""
        found: Tensor = self.codebooks.decode(codes[..., 0] if self.parts == 1 else codes)
        return found.reshape(*codes.shape[:-1], self.dim)


class ResidualCodebook(nn.Module):
    """Residual quantisation: each codebook quantises what the ones before have left of a row.

    Parameters
    ----------
    num_codes : int
        Codes in each codebook.
    dim : int
        Features of a row.
    stages : int
        How many codebooks there are.
    **how
        As for `Codebook`. With several `heads`, `x` has shape (..., heads, dim) and codes (..., heads, stages).

    Attributes
    ----------
    codebooks : nn.ModuleList of Codebook
        One a stage.

    Raises
    ------
    TypeError
        If a number is not one, or not whole.
    ValueError
        If a number is out of range.

    References
    ----------
    Y. Chen, T. Guan and C. Wang, "Approximate nearest neighbor search by residual vector quantization", Sensors, 2010;
    N. Zeghidour et al., "SoundStream: an end-to-end neural audio codec", IEEE/ACM TASLP, 2021.

    Examples
    --------
    >>> import torch
    >>> from anykmeans.torch import ResidualCodebook
    >>> codebook = ResidualCodebook(num_codes=4, dim=6, stages=3)
    >>> quantized, codes, loss = codebook(torch.randn(10, 6))
    >>> quantized.shape, codes.shape
    (torch.Size([10, 6]), torch.Size([10, 3]))
    >>> torch.equal(codebook.decode(codes), quantized)
    True
    """

    def __init__(self, num_codes: int, dim: int, *, stages: int, **how: Any) -> None:
        super().__init__()
        self.dim = check.whole(dim, "dim", 1)
        self.stages = check.whole(stages, "stages", 1)
        self.codebooks = nn.ModuleList(
            Codebook(num_codes, self.dim, **how) for _ in range(self.stages)
        )

    def forward(self, x: Tensor) -> Quantized:
        """Return codes (..., stages) of rows `x` (..., dim), and the sum of their values and of losses; see `Codebook.forward`."""
        first = self.codebooks[0].codebook
        left = checked(x, (self.dim,), first.device).to(first.dtype)
        found = []
        for codebook in self.codebooks:
            found.append(codebook(left))
            left = left - found[-1].quantized.detach()
        values, codes, losses = zip(*found, strict=True)
        quantized = passed_on(x, _sum([each.detach() for each in values]))
        return Quantized(quantized, torch.stack(codes, dim=-1), _sum(losses))

    def decode(self, codes: Tensor) -> Tensor:
        """Return the rows (..., dim) that codes (..., stages) stand for, or the first stages' codes alone.

        Raises
        ------
        IndexError
            If a code is out of range.
        ValueError
            If there are more codes than stages, or none.
        """
        stages = codes.shape[-1] if codes.ndim else 0
        if not 1 <= stages <= self.stages:
            raise ValueError(
                f"`codes` must have shape (..., m), m from 1 to {self.stages} stages; got shape {tuple(codes.shape)}."
            )
        pairs = zip(self.codebooks, codes.unbind(-1), strict=False)
        return _sum([codebook.decode(code) for codebook, code in pairs])


def _sum(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of tensors, added in their order."""
    return functools.reduce(operator.add, parts)
