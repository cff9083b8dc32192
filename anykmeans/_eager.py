"""How a public function is called: never compiled by PyTorch, never ended by a floating-point error inside."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
T = TypeVar("T")

# How the user wants floating-point errors handled, while a public function is at work.
_errors: ContextVar[Any] = ContextVar("errors", default=None)


class _NoErrors:
    """Has no underflow or overflow inside end a call, whatever the user's `numpy.errstate`."""

    def __enter__(self) -> None:
        self._outermost = _errors.get() is None  # else a public function has called another
        if self._outermost:
            self._users = np.seterr(all="ignore")
            self._before = _errors.set(self._users)

    def __exit__(self, *error: object) -> None:
        if self._outermost:
            _errors.reset(self._before)
            np.seterr(**self._users)


def eager(function: Callable[P, T]) -> Callable[P, T]:
    """Return a public function as one that `torch.compile` calls as it is, and that no errors of NumPy end.

    It would look into it otherwise, and take PyTorch's operations for NumPy's, whose bits are others.
    """

    def handled(*args: P.args, **kwargs: P.kwargs) -> T:
        with _NoErrors():
            return function(*args, **kwargs)

    left_alone: Callable[P, T] | None = None  # once made, which takes longer than some calls

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        nonlocal left_alone
        disable = getattr(sys.modules.get("torch._dynamo"), "disable", None)
        if disable is None:  # nothing is being compiled
            with _NoErrors():
                return function(*args, **kwargs)
        if left_alone is None:
            left_alone = disable(handled)
        return left_alone(*args, **kwargs)

    called._torchdynamo_disable = True  # type: ignore[attr-defined]
    return called


@contextlib.contextmanager
def users_errors() -> Iterator[None]:
    """Handle floating-point errors as the user does, for a function of theirs."""
    errors = _errors.get()
    before = _errors.set(None)
    try:
        with np.errstate(**(errors or {})):
            yield
    finally:
        _errors.reset(before)
