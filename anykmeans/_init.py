"""Initial centroids: k-means++, k-means||, random rows, given ones, or a caller's function.

Every draw is made on the host, in scikit-learn's order, so that a ``RandomState`` starts every
library and device from the rows that scikit-learn picks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from anykmeans import _check as check
from anykmeans import _libraries as arrays
from anykmeans import _plusplus
from anykmeans._eager import users_errors
from anykmeans._libraries import Array, stacked, to_numpy
from anykmeans._matrix import Dense, Matrix
from anykmeans._parallel import parallel
from anykmeans._plusplus import Draws, plus_plus, probabilities
from anykmeans._spherical import at_length_one
from anykmeans.sources.rows import Rows

Init = str | Array | Callable[..., Array]  # an array may be a Matrix already


def generator(rng: Any, name: str = "rng") -> Draws:
    """Return what to draw from: a Generator, or the RandomState given; never the global one.

    Raises
    ------
    TypeError
        If `rng` is not a seed or a NumPy generator.
    """
    if isinstance(rng, np.random.Generator | np.random.RandomState):
        return rng
    try:
        if isinstance(rng, bool | float | str):
            raise TypeError
        return np.random.default_rng(rng)
    except (TypeError, ValueError):
        advice = ""
        if arrays.is_of(rng, "jax"):
            advice = " Of a JAX key make a seed: `int(jax.random.bits(key))`."
        raise TypeError(
            f"`{name}` must be None, a seed (a whole number >= 0) or a NumPy generator; got {rng!r} "
            f"of type {type(rng).__name__}.{advice}"
        ) from None


def given(init: Init, x: Array) -> np.ndarray | None:
    """Return centroids (k, d) whose columns count, besides those of the rows, on the host: all do if a callable makes them."""
    if isinstance(init, str) or not arrays.is_sparse(x):
        return None
    if callable(init):
        return np.ones((1, x.shape[1]))
    c: np.ndarray = check.host(init)
    return c


def start(rows: Rows, k: int, init: Init, rng: Draws) -> Array:
    """Return initial centroids (k, d) in their dtype, where the work is done."""
    matrix = rows.matrix
    if isinstance(init, str):
        if init == "k-means||":
            return parallel(rows, k, rng)
        if init == "random":
            return rows.rows(matrix.asarray(_random(rows, k, rng)))
        return rows.rows(matrix.asarray(plus_plus(rows, k, rng)))
    if callable(init):
        with users_errors():
            init = init(matrix.source, k, rng)
        init = check.centroids(init, matrix.source, "init", k, rows.names)
    return placed(rows, k, init)


def placed(rows: Rows, k: int, init: Array | Matrix) -> Array:
    """Return given centroids (k, d) as `start` does."""
    xp, matrix = rows.xp, rows.matrix
    if matrix.spherical:
        seen = isinstance(init, Matrix)
        host = to_numpy(init.rows(slice(0, k))) if seen else check.host(init)
        c = matrix.columns_of(at_length_one(host, "init", single=matrix.single))
        return matrix.asarray(c, matrix.state_dtype)
    if not isinstance(init, Matrix):
        c = matrix.columns_of(check.host(init)) if matrix.sparse else init
        init = Matrix.of(c, rows.kernel.library)
    # By float64, where that holds more; whether they fit will be seen with all that `begin` looks for.
    return xp.astype(init.rows(slice(0, k)), matrix.state_dtype, copy=rows.kernel.host)


def starts(
    all_rows: list[Rows], k: int, inits: list[Init], runs: int, rng: Draws
) -> list[list[Array]]:
    """Return initial centroids (k, d) for some runs of each source, drawn as one `start` after the other does."""
    if isinstance(inits[0], str) and inits[0] == "k-means++":
        return _plusplus.starts(all_rows, k, runs, rng)
    given, one = [init.data for init in inits if isinstance(init, Dense)], all_rows[0]
    alike = len(given) == len(inits) > 1 and len({c.dtype for c in given}) == 1
    if alike and not one.matrix.spherical:  # which share operations, too
        every = Matrix.of(stacked(one.xp, given), one.kernel.library).rows(slice(0, len(given)))
        return [[c] for c in one.xp.astype(every, one.matrix.state_dtype, copy=False)]
    found = []
    for rows, init in zip(all_rows, inits, strict=True):
        with rows.named():
            found.append([start(rows, k, init, rng) for _ in range(runs)])
    return found


def _random(rows: Rows, k: int, rng: Draws) -> np.ndarray:
    """Return `k` different row numbers, drawn by weight."""
    p = probabilities(rows)
    if np.count_nonzero(p) < k:
        raise ValueError(
            f"`sample_weight` must be positive for at least {rows.names.k}={k} rows with init='random'; got "
            f"{np.count_nonzero(p)} such rows."
        )
    return rng.choice(rows.shape[0], size=k, replace=False, p=p)
