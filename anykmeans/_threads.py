"""How many threads there may be, one BLAS thread in each, and work spread over them."""

from __future__ import annotations

import _thread
import functools
import math
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

T = TypeVar("T")
R = TypeVar("R")


class _OneBlasThread:
    """Keeps BLAS to one thread while anyone needs it; fits may run in several threads at once."""

    def __init__(self) -> None:
        self._lock, self.users = threading.Lock(), 0
        self._controller: Any = None
        self._modules = 0
        self._limit: Any = None
        self._before = math.inf

    def enter(self) -> None:
        with self._lock:
            if self.users == 0:
                self._find()
                self._before = self._most("blas")
                self._limit = self._controller.limit(limits=1, user_api="blas")
            self.users += 1

    def leave(self) -> None:
        with self._lock:
            self.users -= 1
            if self.users == 0:
                self._limit.restore_original_limits()

    def allowed(self) -> float:
        """Return how many threads BLAS and OpenMP may use, as their user says: what `threadpool_limits` sets."""
        with self._lock:
            self._find()
            blas = self._before if self.users else self._most("blas")  # now it is ours that says
            return min(blas, self._most("openmp"))

    def _find(self) -> None:
        """Find the loaded libraries, which takes milliseconds: they come with modules."""
        if self._controller is None or (self.users == 0 and self._modules != len(sys.modules)):
            self._controller, self._modules = ThreadpoolController(), len(sys.modules)

    def _most(self, api: str) -> float:
        """Return the largest number of threads of the loaded libraries; what has but one by nature is no limit."""
        libraries = [
            each
            for each in self._controller.lib_controllers
            if each.user_api == api
            and each.internal_api != "blis"  # which has one unless told otherwise
            and getattr(each, "threading_layer", None) != "disabled"
        ]
        return max((each.num_threads or math.inf for each in libraries), default=math.inf)

    def forget(self) -> None:
        """Start anew in a forked process: those who held the lock or the limit are not in it."""
        if self.users:
            self._limit.restore_original_limits()
        self._lock, self.users = threading.Lock(), 0


one_blas_thread = _OneBlasThread()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=one_blas_thread.forget)


def cores() -> int:
    """Return how many threads to work in where nobody has said: the least of all that bounds them."""
    if hasattr(os, "process_cpu_count"):
        found = os.process_cpu_count() or 1
    elif hasattr(os, "sched_getaffinity"):
        found = len(os.sched_getaffinity(0))
    else:
        found = os.cpu_count() or 1
    said = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    told = int(said) if said.isdecimal() and int(said) else math.inf
    return max(1, int(min(found, told, _quota(), one_blas_thread.allowed())))


@functools.cache  # a container's share is given to it before it begins
def _quota(groups: str = "/proc/self/cgroup", mounted: str = "/sys/fs/cgroup") -> float:
    """Return how many cores' time the control groups of this process, and those around them, may take."""
    shares = [math.inf]
    for line in _lines(groups):
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2, alone or beside version 1
            for base in (mounted, os.path.join(mounted, "unified")):
                for folder in _up(path):
                    for limits in _lines(f"{base}{folder}/cpu.max"):
                        shares.append(_share(*limits.split()))
        elif "cpu" in controllers.split(","):
            for base in (os.path.join(mounted, controllers), os.path.join(mounted, "cpu")):
                for folder in _up(path):
                    quota = _lines(f"{base}{folder}/cpu.cfs_quota_us")
                    period = _lines(f"{base}{folder}/cpu.cfs_period_us")
                    shares += map(_share, quota, period)
    return min(shares)


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except (OSError, ValueError):
        return []


def _up(path: str) -> list[str]:
    """Return a path, "/a/b", and all above it, "/a" and "": in a container it may be the host's, and only "" be there."""
    parts = [part for part in path.split("/") if part and part != ".."]
    return ["".join(f"/{part}" for part in parts[:i]) for i in range(len(parts), -1, -1)]


def _share(quota: str, period: str = "100000") -> float:
    """Return the cores of a share of so many microseconds in each period; "max" or -1 is all."""
    try:
        return math.ceil(int(quota) / int(period)) if int(quota) > 0 else math.inf
    except (ValueError, ZeroDivisionError):
        return math.inf


def spread(work: Callable[[T], R], items: list[T], threads: int) -> list[R]:
    """Return ``[work(i) for i in items]``, made by so many threads, of which the caller's is one."""
    if threads <= 1:
        return [work(item) for item in items]
    results: dict[int, R] = {}
    waiting, errors = deque(enumerate(items)), deque[BaseException]()

    def take() -> None:
        while waiting:
            try:
                i, item = waiting.popleft()
            except IndexError:  # another thread was faster
                return
            results[i] = work(item)

    def help_out(busy: Any) -> None:
        try:
            with np.errstate(all="ignore"):  # as in `eager`: threads do not inherit it
                take()
        except BaseException as error:  # noqa: BLE001 - raised by the caller's thread
            errors.append(error)
        finally:
            busy.release()

    helpers: list[Any] = []
    try:
        for _ in range(threads - 1):
            busy = _thread.allocate_lock()
            busy.acquire()
            try:  # where `threading` takes 140 microseconds, and a pool 200, this takes 40, each time
                _thread.start_new_thread(help_out, (busy,))
            except RuntimeError:  # there are no more threads to be had
                break
            helpers.append(busy)
        take()
    except BaseException as error:  # noqa: BLE001 - raised below
        errors.appendleft(error)
    waiting.clear()
    for busy in helpers:
        _wait_for(busy, errors)
    if errors:
        raise errors[0]
    return [results[i] for i in range(len(items))]


def _wait_for(busy: Any, errors: deque[BaseException]) -> None:
    """Wait until a thread is done, which writes to what its caller has, whatever interrupts that."""
    while True:
        try:
            busy.acquire()
            return
        except BaseException as error:  # noqa: BLE001 - Ctrl-C: for the caller, in time
            errors.append(error)
