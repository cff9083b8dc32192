"""Soft k-means: fuzzy c-means, with gradients of its fixed point by the implicit function theorem."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from anykmeans import _check as check
from anykmeans._eager import eager
from anykmeans._fork import first_call
from anykmeans._init import Init, generator, start
from anykmeans.sources.rows import Rows
from anykmeans.torch.pairs import Pairs, budget, tensor

# How small a residual ends the search for a gradient, against what it began with: below the rounding of its dtype.
_RESIDUAL = {torch.float32: 2.0**-26, torch.float64: 2.0**-36}


@dataclass(frozen=True, eq=False)  # tensors have no single truth to compare by
class SoftKMeansResult:
    """A soft clustering. It unpacks: ``centroids, memberships, *_ = soft_kmeans(x, 3)``.

    Attributes
    ----------
    centroids : tensor of shape (k, d)
        Means of all rows, weighted by memberships to the power of the fuzziness; float32 for half and single precision, else
        float64. With gradients.
    memberships : tensor of shape (n, k)
        How much each row is in each cluster, of the centroids returned, in their dtype. Rows add up to one. With gradients.
    objective : tensor of one number, float64
        Weighted sum of ``memberships**fuzziness`` times squared distances, in squared units of `x`. With gradients.
    n_iter : int
        Passes.
    converged : bool
        Whether it stopped by itself rather than at `max_iter`.

    Examples
    --------
    >>> import torch
    >>> from anykmeans.torch import soft_kmeans
    >>> result = soft_kmeans(torch.tensor([[0.0], [1.0], [9.0], [10.0]]), 2, rng=0)
    >>> centroids, memberships, *_ = result
    >>> centroids.sort(dim=0).values.round(decimals=2)[:, 0]
    tensor([0.5000, 9.5000])
    """

    centroids: Any
    memberships: Any
    objective: Any
    n_iter: int
    converged: bool

    def __iter__(self) -> Iterator[Any]:
        return iter(getattr(self, name) for name in self.__dataclass_fields__)


@eager
def soft_kmeans(
    x: Any,
    k: int,
    *,
    fuzziness: float = 2.0,
    sample_weight: Any = None,
    init: Init = "k-means++",
    max_iter: int = 300,
    tol: float = 1e-6,
    rng: Any = None,
    max_bytes: int | None = None,
) -> SoftKMeansResult:
    """Return the soft k-means clustering of the rows of `x`, fuzzy c-means, with gradients to rows and weights.

    A row's memberships are in proportion to ``|x - c|^(-2 / (fuzziness - 1))``, and centroids are means weighted by
    ``memberships**fuzziness``, in turn, until memberships stay. Gradients are those of that fixed point, whatever led there: memory does
    not grow with the number of passes.

    Parameters
    ----------
    x : tensor of shape (n, d)
        Rows, of any real dtype and strides.
    k : int
        Number of clusters, between 1 and n.
    fuzziness : float
        Bezdek's m, above 1: near 1 memberships are those of k-means, and the larger it is, the more alike.
    sample_weight : tensor of shape (n,), optional
        Weight of each row, not negative: a tensor beside `x`, or a list.
    init : {"k-means++", "k-means||", "random"}, tensor of shape (k, d), or callable
        Initial centroids, or how to draw them, as for `kmeans`. No gradients go to them: a fixed point does not depend on
        where it was looked for from.
    max_iter : int
        Most passes; and most passes, again, that a gradient of the centroids may take.
    tol : float
        The run stops when no membership changed by more than this in a pass. It may be 0.
    rng : None, int, SeedSequence, BitGenerator, Generator or RandomState
        Where draws come from, as for `kmeans`.
    max_bytes : int, optional
        Budget for memory beyond the arguments, the result and gradients, there and back. Default: 16 MiB on a CPU, 1 GiB
        elsewhere, and a dozen copies of the centroids.

    Returns
    -------
    SoftKMeansResult
        Centroids, memberships, objective, and how it went.

    Raises
    ------
    TypeError
        If an argument is of the wrong type.
    ValueError
        If `x` is not a finite matrix with at least `k` rows.
    ValueError
        If `fuzziness` is not above 1, or so large that memberships to its power are zero.
    ValueError
        If weights are negative, all zero, not finite or not one a row.
    ValueError
        If given centroids have the wrong shape or live elsewhere than `x`.
    ValueError
        If `max_bytes` is too small for one row.
    RuntimeError
        On the way back, if `max_iter` passes do not find a gradient of the centroids, or there is none as they are no strict minimum;
        and with ``create_graph=True``.

    Warns
    -----
    ConvergenceWarning
        If gradients are wanted, and the run stopped at `max_iter`: they would be those of a fixed point it has not reached.

    Notes
    -----
    *The stop* is that of Bezdek, Ehrlich and Full, in the norm that does not grow with n: the largest change. (scikit-fuzzy takes the
    root of the sum of all squared changes.)

    *Rows on a centroid* are members of that alone, in equal shares of all that are there. Its pull and that of others vanishes there,
    which is the limit for centroids at any `fuzziness`, and for memberships below 3; at 3 and above memberships have a cusp there, and
    a gradient of zero.

    *Centroids' gradients* solve ``(dr/dc) z = g`` for the residual ``r_j = sum_i w_i u_ij^m (c_j - x_i)``, which is zero at a fixed point and, as
    half of the gradient of the objective, has a symmetric derivative: by conjugate gradients, a pass over the rows for each.
    They are off by as much as the centroids are: relatively, some `tol` over one less the rate of convergence.
    Where the centroids are no strict minimum (two have come to one place, or data is the same after a rotation), they
    may not exist. They cannot be differentiated again.

    *The objective's gradients* need no such passes, as its derivative by centroids is zero there.

    All is computed in float64, from differences, and rounded once; sums are not exact as in `kmeans`, so last bits depend on the
    memory budget and the device. Autocast has no effect, as it leaves float64 alone.

    References
    ----------
    J. C. Dunn, "A fuzzy relative of the ISODATA process and its use in detecting compact well-separated clusters", Journal of
    Cybernetics, 1973.

    J. C. Bezdek, "Pattern recognition with fuzzy objective function algorithms", Plenum Press, 1981.

    J. C. Bezdek, R. Ehrlich and W. Full, "FCM: the fuzzy c-means clustering algorithm", Computers & Geosciences, 1984.

    Examples
    --------
    >>> import torch
    >>> from anykmeans.torch import soft_kmeans
    >>> x = torch.tensor([[0.0], [1.0], [9.0], [10.0]], requires_grad=True)
    >>> result = soft_kmeans(x, 2, rng=0)
    >>> result.memberships.detach().amax(dim=1).round(decimals=2)
    tensor([1., 1., 1., 1.])
    >>> result.centroids.sum().backward()
    >>> x.grad[:, 0].round(decimals=1)
    tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    seen = check.matrix(tensor(x, "x"))
    k = check.clusters(k, seen)
    fuzziness = _fuzziness(fuzziness)
    w = check.weights(sample_weight, seen)
    max_iter = check.whole(max_iter, "max_iter", 1)
    tol = check.tolerance(tol)
    max_bytes = budget(max_bytes, k, seen.shape[1])
    draws = generator(rng)
    init = check.start(init, seen, k)
    rows = Rows.over(seen, w, max_bytes=max_bytes)
    with rows.work:
        c = rows.matrix.give(start(rows, k, init, draws))
    if isinstance(sample_weight, torch.Tensor):
        w = sample_weight.expand(x.shape[:1])  # with its history
    largest = max(rows.largest, float(c.to(torch.float64).abs().max()))
    fuzzy = _Fuzzy(fuzziness, rows.heaviest, largest, max_bytes)
    c, mass, n_iter, converged = fuzzy.descend(
        seen, None if w is None else w.detach(), c, tol, max_iter
    )
    wanted = any(a is not None and a.requires_grad for a in (x, w))
    if wanted and not converged and torch.is_grad_enabled():
        _warn(max_iter, tol)
    c, u, objective = _SoftKMeans.apply(x, w, c, mass, fuzzy, max_iter)
    return SoftKMeansResult(c, u, objective, n_iter, converged)


def _fuzziness(fuzziness: Any) -> float:
    """Return `fuzziness` as a finite float above 1."""
    number = check.number(fuzziness, "fuzziness")
    if not (math.isfinite(number) and number > 1):
        raise ValueError(
            f"`fuzziness` must be finite and above 1; got fuzziness={number}. At 1 it would be `anykmeans.kmeans`."
        )
    return number


def _warn(max_iter: int, tol: float) -> None:
    """Warn of gradients of a run that has not converged."""
    with first_call:
        from sklearn.exceptions import ConvergenceWarning

    check.warn(
        f"Memberships still changed by more than tol={tol} after max_iter={max_iter} passes, and gradients are those of a fixed "
        f"point: they will be as far off. Raise `max_iter` or `tol`.",
        ConvergenceWarning,
    )


@dataclass(frozen=True)
class _Fuzzy:
    """The steps of fuzzy c-means, and how gradients come back through them.

    Attributes
    ----------
    fuzziness : float
        What memberships are raised to.
    heaviest : int
        Weights are taken times ``2**-heaviest``.
    largest : float
        The largest magnitude of rows and initial centroids.
    max_bytes : int or None
        Budget for temporaries.
    """

    fuzziness: float
    heaviest: int
    largest: float
    max_bytes: int | None

    @property
    def power(self) -> float:
        """Memberships are in proportion to squared distances to the power of less this."""
        return 1 / (self.fuzziness - 1)

    def pairs(self, x: Any, c: Any) -> Pairs:
        """Return rows `x` (n, d) and centroids `c` (k, d) in one unit."""
        return Pairs.of(x, c, self.largest, self.max_bytes)

    def relative(self, w: Any, tile: slice) -> Any:
        """Return the weights of a tile as a column (m, 1), or one where there are none."""
        if w is None:
            return 1.0
        return (w[tile].to(torch.float64) * 2.0**-self.heaviest)[:, None]

    def memberships(self, squared: Any) -> Any:
        """Return memberships (m, k) by squared distances (m, k): one, in equal shares, where these are zero."""
        u = squared.amin(dim=1, keepdim=True) / squared
        u.nan_to_num_(nan=1.0).pow_(self.power)
        u /= u.sum(dim=1, keepdim=True)
        return u

    def descend(
        self, x: Any, w: Any, c: Any, tol: float, max_iter: int
    ) -> tuple[Any, Any, int, bool]:
        """Return the centroids (k, d) that passes from `c` end at, their weights (k,), how many passes, and whether they stopped."""
        pairs = self.pairs(x, c)
        before = c.new_empty((x.shape[0], c.shape[0]))
        for n_iter in range(1, max_iter + 1):
            sums, mass = torch.zeros_like(pairs.c), torch.zeros_like(pairs.c[:, 0])
            change = torch.zeros_like(mass[0])
            for tile, y in pairs:
                u = self.memberships(pairs.squared(y))
                now = u.to(before.dtype)
                change = torch.maximum(change, (now - before[tile]).abs_().max())
                before[tile] = now
                u = u.pow_(self.fuzziness).mul_(self.relative(w, tile))
                mass += u.sum(dim=0)
                sums += u.T @ y.sub_(pairs.offset)
            some = (mass > 0)[:, None]
            if not some.any():
                raise ValueError(
                    f"`fuzziness` must leave some membership; got fuzziness={self.fuzziness}, to which all of them are zero "
                    f"with k={c.shape[0]}. Take one nearer to 2."
                )
            new = sums / mass[:, None] + pairs.offset
            pairs = pairs.at(torch.where(some, new, pairs.c))  # who has no members stays
            converged = n_iter > 1 and float(change) <= tol
            if converged:
                break
        return (pairs.c * pairs.unit).to(c.dtype), mass, n_iter, converged

    def residual_back(
        self, pairs: Pairs, w: Any, z: Any, to_x: Any = None, to_w: Any = None
    ) -> Any:
        """Return ``z . dr/dc`` (k, d) of residuals ``r_j = sum_i w_i u_ij^m (c_j - x_i)``, the same as ``dr/dc . z``.

        If they are wanted, ``-z . dr/dx`` and ``-z . dr/dw``, for a `z` per user's unit, are added to `to_x` (n, d) and `to_w` (n,).
        """
        found = torch.zeros_like(pairs.c)
        centred = pairs.c - pairs.offset
        along = (z * centred).sum(dim=1)
        for tile, y in pairs:
            squared = pairs.squared(y)
            near = squared.argmin(dim=1)
            u = self.memberships(squared)
            raised = u.pow(self.fuzziness)
            weight = self.relative(w, tile)
            # What moves with z: z_j . (c_j - x_i), by a product but where that is nearly zero.
            moves = torch.addmm(along, y - pairs.offset, z.T, alpha=-1)
            own = ((pairs.c[near] - y).mul_(z[near])).sum(dim=1, keepdim=True)
            moves.scatter_(1, near[:, None], own).mul_(raised)
            total = moves.sum(dim=1, keepdim=True)
            pulls = (moves - u.mul_(total)).div_(squared).mul_(weight).mul_(-(1 + self.power))
            pulls.masked_fill_(squared == 0, 0.0)
            to_rows, to_c = pairs.pull(pulls, y, near)
            raised.mul_(weight)
            found += to_c.addcmul_(raised.sum(dim=0)[:, None], z)
            if to_x is not None:
                to_x[tile] += (raised @ z).sub_(to_rows)
            if to_w is not None:
                to_w[tile] -= total[:, 0] * pairs.unit * 2.0**-self.heaviest
        return found

    def solved(self, pairs: Pairs, w: Any, mass: Any, g: Any, residual: float, most: int) -> Any:
        """Return the z (k, d) for which ``z . dr/dc = g`` (k, d), by at most so many passes of conjugate gradients.

        They are preconditioned by the weights (k,), which are all of the derivative but for how memberships change. None if g is zero.
        """
        inverse = torch.where(mass > 0, 1 / mass, 0.0)[:, None]  # who has no members stays
        z, left = torch.zeros_like(g), torch.where(mass[:, None] > 0, g, 0.0)
        direction = left * inverse
        first = size = float((left * direction).sum())
        if not first:
            return None
        for _ in range(most):
            pushed = self.residual_back(pairs, w, direction)
            curvature = float((direction * pushed).sum())
            if not curvature > 0:
                raise RuntimeError(
                    "There is no gradient of soft_kmeans' `centroids`: they are no strict minimum of the objective. Have two of "
                    "them come to one place? Use fewer clusters or less fuzziness; or raise `max_iter` if the run had not "
                    "converged."
                )
            z += direction * (size / curvature)
            left -= pushed * (size / curvature)
            scaled = left * inverse
            before, size = size, float((left * scaled).sum())
            if size <= first * residual**2:
                return z
            direction = scaled + direction * (size / before)
        raise RuntimeError(
            f"The gradient of soft_kmeans' `centroids` was not found in max_iter={most} passes. Raise `max_iter`; or the "
            f"centroids are hardly a strict minimum of the objective, and small changes of x move them far."
        )

    def memberships_back(
        self, pairs: Pairs, w: Any, g: Any, g_cost: Any, to_x: Any, to_w: Any
    ) -> Any:
        """Return what gradients `g` (n, k) of memberships and `g_cost` of the objective are to centroids (k, d), per user's unit.

        Those to rows and weights are added to `to_x` (n, d) and `to_w` (n,), where these are wanted.
        """
        unit, heaviest = pairs.unit, 2.0**self.heaviest
        to_c = torch.zeros_like(pairs.c)
        for tile, y in pairs:
            squared = pairs.squared(y)
            near = squared.argmin(dim=1)
            u = self.memberships(squared)
            if g is not None:
                own = g[tile].to(torch.float64)
                own = own - own.gather(1, near[:, None])  # the largest share cancels exactly
                own.sub_((u * own).sum(dim=1, keepdim=True)).mul_(u).mul_(-self.power)
                own.div_(squared).masked_fill_(squared == 0, 0.0)
                to_rows, to_own = pairs.pull(own, y, near)
                to_c += to_own.div_(unit)
                if to_x is not None:
                    to_x[tile] += to_rows.div_(unit)
            if g_cost is not None:  # none to centroids, where its derivative by them is zero
                u.pow_(self.fuzziness)
                if to_w is not None:
                    to_w[tile] += (squared.mul_(u).sum(dim=1) * g_cost).mul_(unit).mul_(unit)
                if to_x is not None:
                    to_rows, _ = pairs.pull(u.mul_(self.relative(w, tile)), y, near)
                    to_x[tile] += (to_rows * g_cost).mul_(unit).mul_(heaviest)
        return to_c


class _SoftKMeans(torch.autograd.Function):
    """Centroids (k, d) as they are, their memberships (n, k) and objective, and the gradients of all three."""

    @staticmethod
    def forward(
        ctx: Any, x: Any, w: Any, c: Any, mass: Any, fuzzy: _Fuzzy, most: int
    ) -> tuple[Any, Any, Any]:
        pairs = fuzzy.pairs(x, c)
        u = c.new_empty((x.shape[0], c.shape[0]))
        cost = torch.zeros_like(mass[0])
        for tile, y in pairs:
            squared = pairs.squared(y)
            own = fuzzy.memberships(squared)
            u[tile] = own
            cost += own.pow_(fuzzy.fuzziness).mul_(squared).mul_(fuzzy.relative(w, tile)).sum()
        ctx.save_for_backward(x, w, c, mass)
        ctx.fuzzy, ctx.most = fuzzy, most
        ctx.set_materialize_grads(False)
        return c.clone(), u, cost * pairs.unit * pairs.unit * 2.0**fuzzy.heaviest

    @staticmethod
    def backward(ctx: Any, g_c: Any, g_u: Any, g_cost: Any) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "`create_graph=True` is not supported by soft_kmeans: its gradients cannot be differentiated again."
            )
        x, w, c, mass = ctx.saved_tensors
        fuzzy, (on_x, on_w, *_) = ctx.fuzzy, ctx.needs_input_grad
        pairs = fuzzy.pairs(x, c)
        to_x = torch.zeros_like(x) if on_x else None
        # Weights may be one number, expanded.
        to_w = torch.zeros_like(w, memory_format=torch.contiguous_format) if on_w else None
        to_c = torch.zeros_like(pairs.c) if g_c is None else g_c.to(torch.float64)
        if g_u is not None or g_cost is not None:
            to_c = to_c + fuzzy.memberships_back(pairs, w, g_u, g_cost, to_x, to_w)
        z = fuzzy.solved(pairs, w, mass, to_c, _RESIDUAL[c.dtype], ctx.most)
        if z is not None:
            fuzzy.residual_back(pairs, w, z, to_x, to_w)
        return to_x, to_w, None, None, None, None
