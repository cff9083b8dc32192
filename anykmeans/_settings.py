"""What is decided by size, in one place: how work is cut, spread and skipped. No setting ever changes a bit.

Each number is measured on one machine or another, and right for others to a factor of two; `docs/tuning.md` tells how. What
bounds memory or threads for one call is an argument of that call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Settings:
    """How many threads, which bounds, and the sizes from which on it pays to do a thing one way and not another.

    Attributes
    ----------
    threads : int or None
        Most threads to work in where a call does not say; None for as many as there are cores to be had.
    bounds : {"auto", "off", "hamerly", "groups"}
        How searches skip work: one lower bound a row, one for each group of centroids, or what suits the rows.
    spread : int
        Numbers in `x` from which on threads are started.
    tile : int
        Numbers of a tile on a CPU, whose temporaries are to stay in the L2 cache.
    at_once : int
        Distances of a pick times features (padded, as compiled code takes them): up to so many are all computed, and in one call. And of
        passes some times as many: see `few.suits`.
    few : int
        Clusters below which rows are compared with all of them in every pass, without bounds.
    first_look : int
        Rows from which on a first look at codes or few coordinates pays.
    call : int
        Numbers that take compiled code longer than it takes to call another thread.
    piece : int
        Numbers of a tile of compiled seeding, at least.
    compiling : float
        Seconds of work by NumPy after which compiled code is used unasked where it has to be compiled first: what that takes.
    """

    threads: int | None = None
    bounds: str = "auto"
    spread: int = 1 << 17
    tile: int = 1 << 16
    at_once: int = 1 << 21
    few: int = 32
    first_look: int = 8192
    call: int = 1 << 16
    piece: int = 1 << 18
    compiling: float = 5.0


_now: ContextVar[Settings] = ContextVar("settings", default=Settings())  # noqa: B039 - it is frozen


def current() -> Settings:
    """Return the settings in force."""
    return _now.get()


@contextlib.contextmanager
def settings(**changes: float | str | None) -> Iterator[Settings]:
    """Have other settings within a block, in this thread alone."""
    before = _now.set(replace(_now.get(), **changes))  # type: ignore[arg-type]
    try:
        yield _now.get()
    finally:
        _now.reset(before)
