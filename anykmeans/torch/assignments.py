"""Soft assignments: of each row a probability for every centroid, with gradients, within a budget of memory."""

from __future__ import annotations

import math
from typing import Any

import torch

from anykmeans import _check as check
from anykmeans._eager import eager
from anykmeans.sources.rows import Rows
from anykmeans.torch.pairs import Pairs, budget, state_dtype, tensor

# How far an exponent may be off by a product, rather than by differences: far below the result's own rounding where that
# is float32, and 1e-12 where it is float64.
_ERROR = {torch.float32: 2.0**-32, torch.float64: 2.0**-40}


@eager
def soft_assign(
    x: Any, centroids: Any, temperature: Any = 1.0, *, max_bytes: int | None = None
) -> Any:
    """Return the probability of each centroid for each row: ``softmax(-|x - c|^2 / temperature)``.

    Gradients go to `x`, to `centroids`, and to `temperature` if that is a tensor. All is computed in float64, tile by tile, and
    rounded once: neither way takes an array of rows, centroids and features, nor more of rows and centroids than the result.

    Parameters
    ----------
    x : tensor of shape (n, d)
        Rows, of any real dtype and strides.
    centroids : tensor of shape (k, d)
        Centroids beside `x`.
    temperature : float or tensor of one number
        How soft, in squared units of `x`, positive: the lower, the nearer to the labels of `assign`. For a mixture of equal
        Gaussians it is twice their variance.
    max_bytes : int, optional
        Budget for memory beyond the arguments, the result and gradients, there and back. Default: 16 MiB on a CPU, 1 GiB
        elsewhere, and a dozen copies of the centroids.

    Returns
    -------
    tensor of shape (n, k)
        Probabilities, rows of which add up to one: float32 for `x` of half and single precision, else float64.

    Raises
    ------
    TypeError
        If `x` or `centroids` is not a tensor of real numbers, or `temperature` not a number.
    ValueError
        If `x` or `centroids` is not a finite matrix, their features differ in number, or they live in different places.
    ValueError
        If `temperature` is not positive and finite, or more than one number.
    ValueError
        If `max_bytes` is too small for one row.

    Notes
    -----
    A probability is off, relatively, by what its exponent is off: by ``(d + 8) 2^-53`` of ``|x - c|^2 / temperature`` where distances
    are added up from differences. Matrix products are taken instead where they are proven to be as good: within 2^-32 (float32) or
    2^-40 (float64). So in float32 the result is that of float64 rounded once, for distances up to some 10^6 times the
    temperature.

    Gradients can be differentiated again, but that way memory is not bounded by `max_bytes`. Autocast has no effect, as it leaves float64 alone.

    Examples
    --------
    >>> import torch
    >>> from anykmeans.torch import soft_assign
    >>> x = torch.tensor([[0.0], [1.0], [4.0]], requires_grad=True)
    >>> p = soft_assign(x, torch.tensor([[0.0], [2.0]]), 2.0)
    >>> p.detach().round(decimals=3)
    tensor([[0.8810, 0.1190],
            [0.5000, 0.5000],
            [0.0020, 0.9980]])
    >>> p[:, 1].sum().backward()
    >>> x.grad.shape
    torch.Size([3, 1])
    """
    seen = check.matrix(tensor(x, "x"))
    c = check.centroids(tensor(centroids, "centroids"), seen, "centroids")
    temperature = _temperature(temperature, x)
    max_bytes = budget(max_bytes, *c.shape)
    largest = max(
        Rows.over(seen, max_bytes=max_bytes).largest, float(c.to(torch.float64).abs().max())
    )
    return _Assign.apply(x, centroids, temperature, largest, max_bytes)


def _temperature(value: Any, x: Any) -> Any:
    """Return the temperature as a tensor of one number, float64, where `x` is, with its history."""
    if isinstance(value, torch.Tensor) and value.numel() != 1:
        raise ValueError(
            f"`temperature` must be one number; got a tensor of shape {tuple(value.shape)}. Divide rows and "
            f"centroids by a scale of their own for each feature instead."
        )
    number = check.number(
        value.detach() if isinstance(value, torch.Tensor) else value, "temperature"
    )
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"`temperature` must be positive and finite; got temperature={number}.")
    if isinstance(value, torch.Tensor):
        return value.reshape(()).to(x.device, torch.float64)
    return torch.tensor(number, dtype=torch.float64, device=x.device)


class _Assign(torch.autograd.Function):
    """Probabilities (n, k) of rows (n, d) and centroids (k, d), and their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Any, c: Any, t: Any, largest: float, max_bytes: int | None) -> Any:
        pairs = Pairs.of(x, c, largest, max_bytes)
        p = x.new_empty((x.shape[0], c.shape[0]), dtype=state_dtype(x))
        unit, temperature = pairs.unit, float(t)
        within = _ERROR[p.dtype] * temperature / unit / unit
        for tile, y in pairs:
            e = pairs.squared(y, within)
            # The least first: no exponent overflows then, and factors apart, as their product might.
            e -= e.amin(dim=1, keepdim=True)
            e.div_(-temperature).mul_(unit).mul_(unit).exp_()
            e /= e.sum(dim=1, keepdim=True)
            p[tile] = e
        ctx.save_for_backward(x, c, t, p)
        ctx.how = largest, max_bytes
        return p

    @staticmethod
    def backward(ctx: Any, g: Any) -> tuple[Any, ...]:
        x, c, t, p = ctx.saved_tensors
        pairs = Pairs.of(x, c, *ctx.how)
        to_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        to_c, to_t = torch.zeros_like(pairs.c), torch.zeros_like(t)
        for tile, y in pairs:
            u, pulls = p[tile].to(torch.float64), g[tile].to(torch.float64)
            # What p sums up to is not quite one where it is rounded, and gradients may have much in common.
            mean = (u * pulls).sum(dim=1, keepdim=True) / u.sum(dim=1, keepdim=True)
            pulls = u * (pulls - mean)  # to exponents
            if ctx.needs_input_grad[2]:  # exponents are logarithms of p, but for what is common
                to_t = to_t - (pulls * u.clamp(min=1e-300).log()).sum()
            to_rows, to_own = pairs.pull(pulls, y)
            to_c = to_c - to_own
            if to_x is not None:
                to_x[tile] = to_rows / -t * pairs.unit
        return (
            to_x,
            (to_c / t * pairs.unit).to(c.dtype) if ctx.needs_input_grad[1] else None,
            to_t / t if ctx.needs_input_grad[2] else None,
            None,
            None,
        )
