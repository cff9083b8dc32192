"""The operators of codebooks, known to `torch.compile` and `torch.export`: with their fakes, and the one that has a gradient with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anykmeans.torch import learning
from anykmeans.torch.learning import State

_BUFFERS = ("codebook", "sums", "exponents", "idle", "seen", "first")


@torch.library.custom_op("anykmeans::nearest_codes", mutates_args=())
def nearest_codes(x: Tensor, codebook: Tensor) -> Tensor:
    """Return the nearest codes (n, heads), int64, of rows `x` (n, heads, d) among `codebook` (heads, k, d), certified."""
    return learning.codes(x, codebook)


@nearest_codes.register_fake
def _(x: Tensor, codebook: Tensor) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=torch.int64)


@torch.library.custom_op("anykmeans::learn_codes", mutates_args=_BUFFERS)
def learn_codes(
    x: Tensor,
    codebook: Tensor,
    sums: Tensor,
    exponents: Tensor,
    idle: Tensor,
    seen: Tensor,
    first: Tensor,
    decay: float,
    restart_after: int,
    seed: int,
    sync: bool,
) -> tuple[Tensor, Tensor]:
    """Return values (n, heads, d) and codes (n, heads) of rows `x` (n, heads, d), and have the buffers learn from them."""
    state = State(codebook, sums, exponents, idle, seen, first)
    return learning.learn(x, state, decay=decay, restart_after=restart_after, seed=seed, sync=sync)


@learn_codes.register_fake
def _(x: Tensor, codebook: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return codebook.new_empty(x.shape), x.new_empty(x.shape[:2], dtype=torch.int64)


@torch.library.custom_op("anykmeans::straight_through", mutates_args=())
def straight_through(x: Tensor, values: Tensor) -> Tensor:
    """Return `values`, in the dtype of `x`, whose gradient is taken for that of `x`.

    Bengio, Leonard and Courville, "Estimating or propagating gradients through stochastic neurons", 2013.
    """
    return values.to(x.dtype, copy=True).contiguous()


@straight_through.register_fake
def _(x: Tensor, values: Tensor) -> Tensor:
    return x.new_empty(x.shape)


straight_through.register_autograd(lambda ctx, grad: (grad, None))
