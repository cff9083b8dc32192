"""Means of clusters, exact sums forward and gathers backward."""

from __future__ import annotations

from typing import Any

import torch

from anykmeans import _check as check
from anykmeans import _libraries as arrays
from anykmeans._distance import halving_sum
from anykmeans._eager import eager
from anykmeans._inputs import as_array
from anykmeans._stats import segment_mean
from anykmeans.sources.rows import Rows
from anykmeans.torch.pairs import steps, tensor


@eager
def cluster_means(
    x: Any, labels: Any, k: int, sample_weight: Any = None, *, max_bytes: int | None = None
) -> Any:
    """Return the weighted mean of the rows of each cluster, with gradients to rows and weights.

    The means are those of `kmeans`, from exact sums: the same bits on every device, in any order of the rows. A gradient is
    gathered from the clusters', row by row, so it has the same bits everywhere, too.

    Parameters
    ----------
    x : tensor of shape (n, d) or (b, n, d)
        Rows, or b problems of n rows, of any real dtype and strides.
    labels : tensor of shape (n,) or (b, n), integers
        The cluster of each row, 0 to k - 1: a tensor beside `x`, or a list.
    k : int
        Number of clusters, at least 1. There may be more than rows.
    sample_weight : tensor of shape (n,) or (b, n), optional
        Weight of each row, not negative: a tensor beside `x`, or a list. Weights (n,) are those of every problem.
    max_bytes : int, optional
        Budget for memory beyond the arguments, the result and gradients, there and back; gradients of a batch are copied once.
        Default: as for `kmeans`, and 16 MiB on a CPU, 1 GiB elsewhere, on the way back.

    Returns
    -------
    tensor of shape (k, d) or (b, k, d)
        The means: float32 for `x` of half and single precision, else float64. The mean of no rows, or of rows that all have
        weight zero, is zero, and so is its gradient; ``torch.bincount(labels, minlength=k)`` tells which.

    Raises
    ------
    TypeError
        If `x` is not a tensor of real numbers, `labels` are not integers, or `k` is not one.
    ValueError
        If `x` is not a finite matrix, or a batch of such.
    ValueError
        If labels are not one a row, live elsewhere than `x`, or one is not from 0 to k - 1. The first such is named.
    ValueError
        If weights are negative, all zero, not finite or not one a row.
    ValueError
        If `max_bytes` is too small for one row.

    Notes
    -----
    Gradients can be differentiated again, but that way memory is not bounded by `max_bytes`. Autocast has no effect, as it leaves float64 alone.

    Examples
    --------
    >>> import torch
    >>> from anykmeans.torch import cluster_means
    >>> x = torch.tensor([[0.0], [1.0], [4.0]], requires_grad=True)
    >>> means = cluster_means(x, torch.tensor([0, 0, 1]), 2)
    >>> means.detach()
    tensor([[0.5000],
            [4.0000]])
    >>> means.sum().backward()
    >>> x.grad[:, 0]
    tensor([0.5000, 0.5000, 1.0000])
    """
    seen = check.matrix(tensor(x, "x"), batch=True)
    k = check.whole(k, "k", 1)
    labels = _labels(labels, seen, k)
    w = check.weights(sample_weight, seen)
    if isinstance(sample_weight, torch.Tensor):
        w = sample_weight  # with its history
    if w is not None:
        w = w.expand(x.shape[:-1])
    d = x.shape[-1]
    tiles = steps(seen[0] if x.dim() == 3 else seen, 8 * (6 * d + 4), 24 * k * (d + 1), max_bytes)
    if x.dim() == 2:
        return _Means.apply(x, w, labels, k, tiles, max_bytes, "x")[0]
    weights = [None] * len(x) if w is None else w.unbind()
    parts = enumerate(zip(x.unbind(), weights, labels, strict=True))
    return torch.stack(
        [_Means.apply(*each, k, tiles, max_bytes, f"x[{i}]")[0] for i, each in parts]
    )


def _labels(labels: Any, x: Any, k: int) -> Any:
    """Return labels (n,) or (b, n) beside `x`, int64, all from 0 to k - 1."""
    place = arrays.is_array(labels)
    labels = as_array(labels, "labels")
    if "int" not in arrays.dtype_name(labels):
        raise TypeError(
            f"`labels` must be integers; got dtype {arrays.dtype_name(labels)}. Convert them with "
            f"`labels.long()`."
        )
    if not place:
        labels = torch.as_tensor(labels, device=x.device)
    if not arrays.beside(labels, x):
        raise ValueError(
            f"`labels` must live where `x` does; got labels of {arrays.where_is(labels)} and x of "
            f"{arrays.where_is(x)}. Move them first:\n    labels = torch.as_tensor(labels, device={str(x.device)!r})"
        )
    if tuple(labels.shape) != tuple(x.shape[:-1]):
        raise ValueError(
            f"`labels` must have shape {tuple(x.shape[:-1])}, one a row of x; got shape {tuple(labels.shape)}."
        )
    labels = labels.to(torch.int64)
    bad = ((labels < 0) | (labels >= k)).nonzero()
    if bad.shape[0]:
        at = tuple(bad[0].tolist())
        where = ", ".join(map(str, at))
        raise ValueError(
            f"`labels` must be from 0 to k - 1; got labels[{where}]={int(labels[at])} with k={k}. Leave rows out by "
            f"giving them weight 0."
        )
    return labels


class _Means(torch.autograd.Function):
    """Means (k, d) and weights (k,) of clusters, and their gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Any,
        w: Any,
        labels: Any,
        k: int,
        tiles: list[slice],
        max_bytes: int | None,
        name: str,
    ) -> tuple[Any, Any]:
        # Weights may be one number, expanded, which some libraries' views are not made for.
        own = None if w is None else as_array(w.contiguous())
        rows = Rows.over(as_array(x), own, max_bytes=max_bytes, names=check.Names(name))
        # As runs have labels, for which compiled code is there.
        at = arrays.to_numpy(labels.to(torch.int32)) if rows.kernel.host else labels
        with rows.work:
            sums, mass = rows.sums(at, k)
        none = rows.xp.zeros_like(sums, dtype=rows.matrix.state_dtype)
        means = rows.matrix.give(segment_mean(rows.xp, sums, mass, none))
        half = rows.heaviest // 2  # as the power may be out of range that its halves are in
        mass = rows.matrix.give(mass) * 2.0**half * 2.0 ** (rows.heaviest - half)
        ctx.save_for_backward(x, w, labels, means, mass)
        ctx.tiles = tiles
        return means, mass

    @staticmethod
    def backward(ctx: Any, g: Any, g_mass: Any) -> tuple[Any, ...]:
        x, w, labels, means, mass = ctx.saved_tensors
        none = mass == 0
        share = g.to(torch.float64) / torch.where(none, 1.0, mass)[:, None]
        share = torch.where(none[:, None], 0.0, share)
        to_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        to_w = (
            torch.empty_like(w, memory_format=torch.contiguous_format)
            if ctx.needs_input_grad[1]
            else None
        )
        for tile in ctx.tiles:
            at = labels[tile]
            own = share[at]
            if to_w is not None:
                apart = (x[tile].to(torch.float64) - means[at]) * own
                to_w[tile] = halving_sum(arrays.namespace(x), apart) + g_mass[at]
            if to_x is not None:
                to_x[tile] = own if w is None else own * w[tile].to(torch.float64)[:, None]
        return to_x, to_w, None, None, None, None, None
