"""How work is cut: tiles within a budget of bytes; and spread over threads."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from anykmeans._matrix import Matrix
from anykmeans._settings import current
from anykmeans._threads import cores, one_blas_thread, spread

_CPU_BYTES, _DEVICE_BYTES = 1 << 28, 1 << 30
T = TypeVar("T")
R = TypeVar("R")


class _Spent:
    """How long this process has been at such work, whatever number of threads or calls were."""

    def __init__(self) -> None:
        self._lock, self._inside, self._since, self._before = threading.Lock(), 0, 0.0, 0.0

    def begin(self) -> None:
        with self._lock:
            if not self._inside:
                self._since = time.perf_counter()
            self._inside += 1

    def end(self) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._before += time.perf_counter() - self._since

    def seconds(self) -> float:
        """Return how long, to this moment; no lock, as it is asked in every pass."""
        now = time.perf_counter() - self._since if self._inside else 0.0
        return self._before + now

    def forget(self) -> None:
        """Go on in a forked process, where those who held the lock are not."""
        self._before, self._inside, self._lock = self.seconds(), 0, threading.Lock()


_spent = _Spent()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_spent.forget)
seconds = _spent.seconds


class Work:
    """How the work on rows (n, d) is cut and spread, numbers that take `effort` times as long as dense ones.

    Attributes
    ----------
    host : bool
        Whether it is done on a CPU.
    max_bytes : int
        Budget for temporaries and bounds.
    bounded : bool
        Whether it is the caller's.
    most : int or None
        Threads that the caller wants at most.
    threads : int
        Threads to spread tiles over.
    room : int
        Numbers a thread may work on at once: eight float64 temporaries of each fit the budget.
    tile : int
        Numbers of one piece of elementwise work; on a CPU few enough for the cache.
    """

    def __init__(
        self,
        n: int,
        d: int,
        *,
        host: bool,
        max_bytes: int | None,
        threads: int | None = None,
        blas: bool = True,
        effort: int = 1,
    ) -> None:
        threads = current().threads if threads is None else threads
        self.n, self.d, self.host, self.most = n, d, host, threads
        # Large rows have a copy in float32 with their norms beside them, as other libraries have, and as much again.
        usual = max(_CPU_BYTES, 8 * n * (d + 1)) if host else _DEVICE_BYTES
        self.max_bytes = max_bytes or usual
        self.bounded = max_bytes is not None
        alone = n * d * effort < current().spread
        if alone or not host:
            self.threads = 1
        else:
            self.threads = threads or max(1, min(cores(), self.max_bytes // (1 << 20)))
        self.room = max(1, self.max_bytes // self.threads // 64)
        self.tile = min(current().tile, self.room) if host else self.room
        # One thread that has no use for BLAS is in nobody's way, and small work would feel the limit.
        self._limits = host and (blas or self.threads > 1)
        if threads is not None and not alone:  # of NumPy's products, too, whoever asks for them
            self._limits = True

    def tiles(self, start: int = 0, stop: int | None = None, step: int = 0) -> list[slice]:
        """Return slices of rows, by default all rows in steps that keep float64 copies in the tile."""
        stop = self.n if stop is None else stop
        step = step or self.rows_of(self.d)
        return [slice(i, min(i + step, stop)) for i in range(start, stop, step)]

    def readable(self, matrix: Matrix) -> int:
        """Return how many rows compiled code may read at once: all, or as many as may be copied."""
        return self.n if matrix.direct else max(1, self.room // self.d)

    @property
    def copied(self) -> int:
        """How many bytes a copy of all rows may take: half of a caller's budget, and what is usual on a CPU, which is 8 a number."""
        return self.max_bytes // (1 if self.host and not self.bounded else 2)

    def beside(self, bytes_: int) -> int:
        """Return the budget that is left beside such a copy: what small rows have, at least, where it is not a caller's."""
        left = self.max_bytes - bytes_
        return max(left, _CPU_BYTES) if self.host and not self.bounded else left

    def rows_of(self, width: int) -> int:
        """Return how many rows of `width` numbers a tile holds, at least one."""
        return max(1, self.tile // width)

    def __enter__(self) -> Work:
        """Keep BLAS to one thread, as the tiles are spread over threads of our own.

        OpenBLAS collapses where its threads wait for a core that another process has.
        """
        if self._limits:
            one_blas_thread.enter()
        _spent.begin()
        return self

    def __exit__(self, *error: object) -> None:
        """Give BLAS its threads back."""
        _spent.end()
        if self._limits:
            one_blas_thread.leave()

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Return ``[work(i) for i in items]``, spread over threads, of which the caller's is one."""
        items = list(items)
        threads = min(self.threads, len(items))
        if self.most is None:  # fits at the same time share the cores
            threads = max(1, threads // max(1, one_blas_thread.users))
        return spread(work, items, threads)

    def reduce(self, work: Callable[[T], R], items: Sequence[T], add: Callable[[R, R], R]) -> R:
        """Return the results of `work` on the items, put together by `add` in any order as they come."""
        if len(items) == 1:
            return work(items[0])
        runs = [items[i :: self.threads] for i in range(min(self.threads, len(items)))]
        return functools.reduce(
            add, self.map(lambda run: functools.reduce(add, map(work, run)), runs)
        )
