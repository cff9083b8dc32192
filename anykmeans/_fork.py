"""Forks that wait for first calls, as a child inherits every lock but not the thread that would release it."""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 - which takes locks before a fork, as logging does: after ours alone
import os
import threading

LONGEST = 60.0  # seconds: should a first call need something that the forking thread holds


class _FirstCalls:
    """The threads that import or compile just now, with the locks of Python, Numba and LLVM that this takes.

    A context manager around what does. No fork begins while another thread is inside, nor does one go in then.
    """

    def __init__(self) -> None:
        self._inside: dict[int, int] = {}  # how deep, by thread
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        me = threading.get_ident()
        with self._changed:
            self._inside[me] = self._inside.get(me, 0) + 1

    def __exit__(self, *error: object) -> None:
        me = threading.get_ident()
        with self._changed:
            depth = self._inside.pop(me, 1) - 1
            if depth:
                self._inside[me] = depth
            self._changed.notify_all()

    def wait(self) -> None:
        """Keep others out until `go_on` or `forget`, once none is inside; not if this thread is, as they may wait for it."""
        self._changed.acquire()
        if threading.get_ident() in self._inside:
            return
        if not self._changed.wait_for(lambda: not self._inside, LONGEST):
            self._inside.clear()  # lest the next fork wait as long

    def go_on(self) -> None:
        """Let others in again."""
        self._changed.release()

    def forget(self) -> None:
        """Start anew in a forked process, where no other thread is."""
        me = threading.get_ident()
        self._inside = {me: self._inside[me]} if me in self._inside else {}
        self._changed = threading.Condition()


first_call = _FirstCalls()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=first_call.wait,
        after_in_parent=first_call.go_on,
        after_in_child=first_call.forget,
    )
