"""How work is cut and spread: tiles within a budget of bytes, threads, one BLAS thread in each."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from anykmeans._array import Matrix

THREADS: int | None = None  # None: by the size of the work and the cores this process may use

_SMALL = 1 << 17  # numbers in `x` below which starting threads costs more than they save
_CPU_BYTES, _DEVICE_BYTES = 1 << 28, 1 << 30
_CACHE = 1 << 16  # numbers of a tile on a CPU: its temporaries stay in the L2 cache

T = TypeVar("T")
R = TypeVar("R")


class _OneBlasThread:
    """Keeps BLAS to one thread while anyone needs it; fits may run in several threads at once."""

    def __init__(self) -> None:
        self._lock, self.users = threading.Lock(), 0
        self._controller: Any = None
        self._limit: Any = None

    def enter(self) -> None:
        with self._lock:
            if self.users == 0:
                if self._controller is None:  # finding the loaded libraries takes milliseconds
                    self._controller = ThreadpoolController()
                self._limit = self._controller.limit(limits=1, user_api="blas")
            self.users += 1

    def leave(self) -> None:
        with self._lock:
            self.users -= 1
            if self.users == 0:
                self._limit.restore_original_limits()

    def forget(self) -> None:
        """Start anew in a forked process: those who held the lock or the limit are not in it."""
        if self.users:
            self._limit.restore_original_limits()
        self._lock, self.users = threading.Lock(), 0


_one_blas_thread = _OneBlasThread()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_one_blas_thread.forget)


def _cores() -> int:
    """Return the cores this process may use; OMP_NUM_THREADS is respected, as joblib sets it."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    limit = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return max(1, min(cores, int(limit))) if limit.isdigit() else cores


_spent = [0.0]


def seconds() -> float:
    """Return how long this process has been at such work."""
    return _spent[0]


class Work:
    """How the work on rows (n, d) is cut and spread.

    Attributes
    ----------
    host : bool
        Whether it is done on a CPU.
    max_bytes : int
        Budget for temporaries and bounds.
    threads : int
        Threads to spread tiles over.
    room : int
        Numbers a thread may work on at once: eight float64 temporaries of each fit the budget.
    tile : int
        Numbers of one piece of elementwise work; on a CPU few enough for the cache.
    """

    def __init__(
        self, n: int, d: int, *, host: bool, max_bytes: int | None, blas: bool = True
    ) -> None:
        self.n, self.d, self.host = n, d, host
        self.max_bytes = max_bytes or (_CPU_BYTES if host else _DEVICE_BYTES)
        threads = 1 if n * d < _SMALL else min(_cores(), self.max_bytes // (1 << 20))
        if THREADS is not None:
            threads = THREADS
        self.threads = max(1, threads) if host else 1
        self.room = max(1, self.max_bytes // self.threads // 64)
        self.tile = min(_CACHE, self.room) if host else self.room
        # One thread that has no use for BLAS is in nobody's way, and small work would feel the limit.
        self._limits = host and (blas or self.threads > 1)
        self._pool: ThreadPoolExecutor | None = None

    def tiles(self, start: int = 0, stop: int | None = None, step: int = 0) -> list[slice]:
        """Return slices of rows, by default all rows in steps that keep float64 copies in the tile."""
        stop = self.n if stop is None else stop
        step = step or self.rows_of(self.d)
        return [slice(i, min(i + step, stop)) for i in range(start, stop, step)]

    def readable(self, matrix: Matrix) -> int:
        """Return how many rows compiled code may read at once: all, or as many as may be copied."""
        return self.n if matrix.direct else max(1, self.room // self.d)

    def rows_of(self, width: int) -> int:
        """Return how many rows of `width` numbers a tile holds, at least one."""
        return max(1, self.tile // width)

    def __enter__(self) -> Work:
        """Keep BLAS to one thread, as the tiles are spread over threads of our own.

        OpenBLAS collapses where its threads wait for a core that another process has.
        """
        if self._limits:
            _one_blas_thread.enter()
        self._since = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        """Give BLAS its threads back, and end ours."""
        _spent[0] += time.perf_counter() - self._since
        if self._limits:
            _one_blas_thread.leave()
        if self._pool is not None:
            self._pool.shutdown()
        self._pool = None

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Return ``[work(i) for i in items]``, spread over threads, of which the caller's is one."""
        items = list(items)
        threads = min(self.threads, len(items))
        if THREADS is None:  # fits at the same time share the cores
            threads = max(1, threads // max(1, _one_blas_thread.users))
        if threads == 1:
            return [work(item) for item in items]
        results: dict[int, R] = {}
        waiting = deque(enumerate(items))

        def take() -> None:
            while waiting:
                try:
                    i, item = waiting.popleft()
                except IndexError:  # another thread was faster
                    return
                results[i] = work(item)

        def help_out() -> None:
            with np.errstate(all="ignore"):  # as in `eager`: threads do not inherit it
                take()

        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads - 1)
        helpers = [self._pool.submit(help_out) for _ in range(threads - 1)]
        try:
            take()
        finally:
            waiting.clear()
            for helper in helpers:
                if not helper.cancel():  # it has begun
                    helper.result()
        return [results[i] for i in range(len(items))]
