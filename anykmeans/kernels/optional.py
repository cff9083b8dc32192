"""Libraries that need not be there: one that cannot be imported, whatever it raises, is not."""

from __future__ import annotations

import functools
import importlib

from anykmeans._fork import first_call


@functools.cache
def broken(module: str) -> str | None:
    """Return what importing a module that is optional, in whole or for its imports, raised, or None."""
    try:
        with first_call:
            importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - which is all a broken library has in common
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None
