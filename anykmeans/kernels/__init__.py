"""The seam for speed: which kernel does the steps here, and why not the others.

A kernel is a module of this package. It may define

``nearest(xp, y, minus_2c, norms) -> labels, best, second``
    the lowest and second lowest score of each row and where the lowest is;
``segment_sum(xp, values, labels, k) -> sums``
    the sums (k, columns) of whole-number `values` (m, columns) by label;
``interval(xp, y, best, second, bounds) -> upper, lower``
    distances that the true ones to the nearest and second nearest centroid lie between;
``wear(xp, upper, lower, labels, drift, drifts) -> upper, lower, active``
    bounds after the centroids moved, and the rows whose label they no longer prove;
``squared_distances(xp, a, b) -> distances``
    the one distance whose bits are promised, in its one order of addition;
``sieve(frame, work, first, k) -> sieve``
    what rules candidates of k-means++ out: it has ``rows(y)`` and ``against(c)``, what it keeps of rows and
    of candidates, and ``add(c)``, which counts a pick in and returns what `settle` calls it;
``gains(xp, read, c, closest, kept, against, w, scale) -> gains, doubt, won``
    what each candidate would save, how far off that may be, and which rows it may win; ``read()`` is the rows;
``saved(xp, y, c, closest, w, scale, won, j) -> saved``
    what a candidate saves exactly;
``settle(xp, y, c, closest, kept, pick, won, j) -> closest, kept``
    what is closest to each row, and what is kept of it, once a candidate is picked;
``costs(xp, closest, w, scale, block) -> sums, largest``
    the whole-number costs of blocks of rows, to draw from;
``reached(closest, w, scale, total, draw) -> row``
    the first row of a block up to which costs add up to the draw;
``search(frame, work, k, bounds, exact) -> search``
    all that `anykmeans._search.Search` does, in place of the first three steps; it may `leap`, and `settle` may
    return None where it does not know which labels changed;
``together(searches, centroids, passes, tol, w, grids, keep) -> leaps``
    what the `leap` of each search returns, of launches that problems of one shape share; and
``settle_together(searches, centroids)``
    what makes the next `settle` of each search, for the same centroids, find its labels made;
``magnitudes_together(matrices, w) -> high, largest, smallest``,
``variances_together(frames, w, grids) -> costs, weights``,
``costs_together(searches, w) -> costs``
    what is looked up before the passes of such problems, and after them: magnitudes; the cost of all rows being one
    cluster, and their weight; the cost of the labels last made. Each waits for the device as often as for one problem;
``seeds(frame, work, w, first, draws) -> picks``
    all picks of k-means++, or None if it cannot make them at once, in place of these six steps;
``seeds_together(frames, w, first, draws) -> picks``
    those of problems of one shape, whose rows follow each other in memory at one distance, in launches they share;
``magnitudes(matrix, select, w) -> high, largest, smallest``
    what the grid of the sums is planned from, by feature;
``accumulate(matrix, select, w, new, old, grid, k) -> sums``
    rows split on the grid and added by label, in place of `segment_sum`;
``by_label(matrix, work, w, labels, grid, k) -> totals``
    what the sums (k, columns) of all rows mean, where they need not be kept, in place of `accumulate` and `total`;
``total(grid, sums) -> totals``
    the sums (k, columns) that whole numbers mean, in place of `Grid.total`;
``means(sums, mass, c) -> centroids``
    in place of `anykmeans._stats.means`;
``own_distances(matrix, select, unit, wide, labels, distances)``
    written: squared distances of rows to their own centroids, in place of `squared_distances`;
``moves(matrix, a, b) -> distances``
    the same of centroids to centroids, where `squared_distances` has another order;
``cost(distances, w) -> sum``
    the exact sum of weighted distances (n,), in place of `exact_sum`;
``pairwise(frame, wide) -> write``
    what writes distances (m, k) of rows to all centroids, ``write(select, distances)``, for `transform`;

and must define ``why_not(x) -> str | None``, the reason it cannot run on the array `x`, and ``LIBRARY``,
the library whose view of `x` it works on, or None for that of `x`. ``LEAN`` says that its `gains` writes out
but bits a row. What it lacks comes from ``agnostic``. Adding a kernel is one file and one word in `TABLE`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from anykmeans._fork import first_call
from anykmeans._libraries import Array, is_sparse
from anykmeans._work import seconds

TABLE = ("numba", "cpu", "triton", "torch", "cupy", "agnostic")  # in order of preference
SPARSE = ("numba", "cpu")  # those that have steps for sparse rows, in files of their own
# Numbers in `x` from which on a kernel is chosen unasked. One that is compiled already is chosen for less, too, as who
# fits twice gains; one that is not, once small work has taken nearly as long as compiling it.
LEAST = {"numba": 1 << 16}
COMPILING = 5.0  # seconds
_here = Path(__file__).absolute().parent
# The function, of each module that needs a compiler, whose compiled code stands for that of all.
_COMPILED = {"numba": "small.passes", "sparse.numba": "sweep._settle"}


def _module_of(name: str, x: Array) -> str:
    """Return the module of the kernel `name` for rows like `x`."""
    return f"sparse.{name}" if is_sparse(x) else name


def _pays(name: str, x: Array) -> bool:
    """Return whether to choose a kernel unasked for `x`, by its numbers."""
    module, size = _module_of(name, x), x.nnz if is_sparse(x) else math.prod(x.shape)
    if size >= LEAST.get(name, 0) or f"{__name__}.{module}.steps" in sys.modules:
        return True
    loaded = is_sparse(x) and f"{__name__}.{module}" in sys.modules
    return loaded or seconds() >= COMPILING or _is_compiled(module)


def _is_compiled(module: str) -> bool:
    """Return whether code of a module is where Numba will look for it."""
    folder = _compiled_folder(module)
    return folder is not None and any(folder.glob(_compiled_files(module)))


def _compiled_files(module: str) -> str:
    """Return what the file that says what of a module is compiled is called, as a pattern."""
    python = f"py{sys.version_info[0]}{sys.version_info[1]}{getattr(sys, 'abiflags', '')}"
    return f"{_COMPILED[module]}-*.{python}.nbi"


def _compiled_folder(module: str) -> Path | None:
    """Return the folder where Numba keeps compiled code of a module, or None if it has no place: asked without loading it."""
    config = getattr(sys.modules.get("numba"), "config", None)
    chosen = os.environ.get("NUMBA_CACHE_DIR") if config is None else config.CACHE_DIR
    home = _here.joinpath(*module.split("."))
    part = f"{home.name}_{hashlib.sha1(str(home).encode(), usedforsecurity=False).hexdigest()}"
    own = [Path(chosen, part).absolute()] if chosen else []
    return next(filter(_writable, [*own, home / "__pycache__", _user_folder() / part]), None)


def _user_folder() -> Path:
    """Return where Numba keeps what it compiles for a user."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", ""), "numba", "Cache").absolute()
    if sys.platform == "darwin":
        return Path(os.path.expanduser("~/Library/Caches/numba"))
    caches = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
    return Path(caches, "numba").absolute()


def _writable(folder: Path) -> bool:
    """Return whether files can be made in a folder, which may have to be made itself."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


@functools.cache
def broken(module: str) -> str | None:
    """Return what importing a module that is optional, in whole or for its imports, raised, or None."""
    try:
        with first_call:
            importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - which is all a broken library has in common
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


@dataclass(frozen=True)
class Kernel:
    """The steps chosen for one fit.

    Attributes
    ----------
    name : str
        Its name in `TABLE`.
    library : str or None
        The library whose view of an array it works on; None for the array's own.
    nearest, interval, wear, segment_sum, squared_distances, sieve, gains, saved, settle, costs, reached : callable
        The steps.
    lean : bool
        Whether `gains` writes out but bits a row, so that tiles of seeding may be long.
    one_hot : bool
        Whether `segment_sum` writes out k numbers a row.
    wary : bool
        Whether its `search` and `pairwise` say if a row is not finite, or out of the range of the frame.
    """

    name: str
    library: str | None
    nearest: Callable[..., tuple[Array, Array, Array]]
    interval: Callable[..., tuple[Array, Array]]
    wear: Callable[..., tuple[Array, Array, Array]]
    segment_sum: Callable[..., Array]
    squared_distances: Callable[..., Array]
    sieve: Callable[..., Any]
    gains: Callable[..., tuple[Array, float, Array]]
    saved: Callable[..., Array]
    settle: Callable[..., tuple[Array, Array]]
    costs: Callable[..., tuple[Array, float]]
    reached: Callable[..., int]
    lean: bool
    one_hot: bool
    wary: bool
    search: Callable[..., Any] | None
    together: Callable[..., list[Any]] | None
    settle_together: Callable[..., None] | None
    magnitudes_together: Callable[..., tuple[np.ndarray, ...]] | None
    variances_together: Callable[..., tuple[np.ndarray, np.ndarray]] | None
    costs_together: Callable[..., np.ndarray] | None
    seeds: Callable[..., np.ndarray | None] | None
    seeds_together: Callable[..., np.ndarray | None] | None
    magnitudes: Callable[..., tuple[np.ndarray, ...]] | None
    accumulate: Callable[..., Array] | None
    by_label: Callable[..., Array] | None
    total: Callable[..., Array] | None
    means: Callable[..., Array] | None
    own_distances: Callable[..., None] | None
    moves: Callable[..., Array] | None
    cost: Callable[..., float] | None
    pairwise: Callable[..., Callable[..., int]] | None

    @property
    def host(self) -> bool:
        """Whether it works on NumPy views."""
        return self.library == "numpy"

    @property
    def compiled(self) -> bool:
        """Whether its steps need no room for arrays of their own."""
        return self.accumulate is not None


def why_not(name: str, x: Array) -> str | None:
    """Return why the kernel `name` cannot run on the array `x`, or None if it can."""
    if is_sparse(x) and name not in SPARSE:
        return "the rows are sparse, which the Array API does not have"
    reason: str | None = _module(name).why_not(x)
    return reason


def choose(x: Array, name: str = "auto") -> Kernel:
    """Return the kernel to use on `x`: the first that can run, or the one named.

    Raises
    ------
    ValueError
        If `name` is unknown, or that kernel cannot run on `x`.
    """
    if name == "auto":
        name = next(each for each in TABLE if _pays(each, x) and why_not(each, x) is None)
    elif name not in TABLE:
        raise ValueError(
            f"`kernel` must be 'auto' or one of {', '.join(map(repr, TABLE))}; got {name!r}."
        )
    elif (reason := why_not(name, x)) is not None:
        others = "\n".join(f"    {each}: {why_not(each, x) or 'can run'}" for each in TABLE)
        raise ValueError(
            f"`kernel`={name!r} cannot run here: {reason}. Use kernel='auto', or one of:\n{others}"
        )
    return _made(name, _module_of(name, x))


@functools.cache
def _module(name: str) -> ModuleType:
    with first_call:
        return importlib.import_module(f"{__name__}.{name}")


@functools.cache
def _made(name: str, module: str) -> Kernel:
    agnostic, own = _module("agnostic"), _module(module)

    def step(name: str) -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(own, name, None) or getattr(agnostic, name)
        return found

    return Kernel(
        name,
        own.LIBRARY,
        nearest=step("nearest"),
        interval=step("interval"),
        wear=step("wear"),
        segment_sum=step("segment_sum"),
        squared_distances=step("squared_distances"),
        sieve=step("sieve"),
        gains=step("gains"),
        saved=step("saved"),
        settle=step("settle"),
        costs=step("costs"),
        reached=step("reached"),
        lean=getattr(own, "LEAN", False),
        one_hot=not hasattr(own, "segment_sum") or own is agnostic,
        wary=getattr(own, "WARY", False),
        search=getattr(own, "search", None),
        together=getattr(own, "together", None),
        settle_together=getattr(own, "settle_together", None),
        magnitudes_together=getattr(own, "magnitudes_together", None),
        variances_together=getattr(own, "variances_together", None),
        costs_together=getattr(own, "costs_together", None),
        seeds=getattr(own, "seeds", None),
        seeds_together=getattr(own, "seeds_together", None),
        magnitudes=getattr(own, "magnitudes", None),
        accumulate=getattr(own, "accumulate", None),
        by_label=getattr(own, "by_label", None),
        total=getattr(own, "total", None),
        means=getattr(own, "means", None),
        own_distances=getattr(own, "own_distances", None),
        moves=getattr(own, "moves", None),
        cost=getattr(own, "cost", None),
        pairwise=getattr(own, "pairwise", None),
    )
