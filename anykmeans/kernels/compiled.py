"""Whether compiled code is there already, and pays: asked without loading Numba, which takes 0.3 s."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from anykmeans._settings import current
from anykmeans._work import seconds

_here = Path(__file__).absolute().parent
_package = __name__.rpartition(".")[0]
# The function, of each module that needs a compiler, whose compiled code stands for that of all.
_COMPILED = {"numba": "few.passes", "sparse.numba": "sweep._relabel"}


def pays(module: str) -> bool:
    """Return whether to use the compiled code of a module unasked.

    It is if it is loaded, or on disk, where Numba will look for it. Else NumPy begins, and goes on until it has been at work
    for as long as compiling takes: so nobody waits more than twice as long as by the better of the two, whatever is to come.
    """
    return is_loaded(module) or seconds() >= current().compiling or _is_compiled(module)


def is_loaded(module: str) -> bool:
    """Return whether what is compiled of a module is in this process already."""
    loaded = (
        f"{_package}.{module}.sweep" if module == "sparse.numba" else f"{_package}.{module}.steps"
    )
    return loaded in sys.modules


def _is_compiled(module: str) -> bool:
    """Return whether code of a module is where Numba will look for it."""
    there = folder(module)
    return there is not None and any(there.glob(_compiled_files(module)))


def _compiled_files(module: str) -> str:
    """Return what the file that says what of a module is compiled is called, as a pattern."""
    python = f"py{sys.version_info[0]}{sys.version_info[1]}{getattr(sys, 'abiflags', '')}"
    return f"{_COMPILED[module]}-*.{python}.nbi"


def folder(module: str) -> Path | None:
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
