"""Whether compiled code is there already, and pays: asked without loading Numba, which takes 0.3 s."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from anykmeans._settings import current
from anykmeans._work import seconds

# Numbers in `x` from which on compiled code is used unasked. Where it is compiled already it is used for less, too, as
# who fits twice gains; where it is not, once small work has taken nearly as long as compiling it.
COMPILING = 5.0  # seconds
_here = Path(__file__).absolute().parent
_package = __name__.rpartition(".")[0]
# The function, of each module that needs a compiler, whose compiled code stands for that of all.
_COMPILED = {"numba": "small.passes", "sparse.numba": "sweep._settle"}


def pays(module: str, size: int) -> bool:
    """Return whether to use the compiled code of a module for so many numbers: it is loaded, on disk or worth compiling."""
    if size >= current().compiled or is_loaded(module) or seconds() >= COMPILING:
        return True
    return _is_compiled(module)


def is_loaded(module: str) -> bool:
    """Return whether what is compiled of a module is in this process already."""
    loaded = (
        f"{_package}.{module}.sweep" if module == "sparse.numba" else f"{_package}.{module}.steps"
    )
    return loaded in sys.modules


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
