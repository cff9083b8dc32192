"""The array libraries the tests run on.

`ANYKMEANS_BACKENDS` is a comma list of the names below; unset or `all` means every one. One that cannot
run here is skipped with its reason printed, at the top of the run and again at its end. A test that takes
no backend belongs to NumPy and runs when NumPy does; one marked `only` belongs to the backend it names.
"""

import contextlib
import dataclasses
import importlib
import os
import pathlib

import numpy as np
import pytest
from hypothesis import settings

from anykmeans import _settings, kernels

settings.register_profile("anykmeans", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("anykmeans")


@dataclasses.dataclass(frozen=True)
class Backend:
    """One array library on one device: how to make its arrays and how to read them back."""

    name: str
    library: str
    device: str | None = None  # None: the library's default
    # "auto" is what suits its arrays here, "agnostic" what runs on every array library.
    kernels: tuple[str, ...] = ("auto", "agnostic")

    @property
    def xp(self):
        """The library itself."""
        return importlib.import_module(self.library)

    def why_not(self):
        """None, or the reason why this backend cannot run here."""
        try:
            xp = self.xp
        except ImportError as error:
            return str(error)
        if self.library == "cupy":
            try:
                count = xp.cuda.runtime.getDeviceCount()
            except xp.cuda.runtime.CUDARuntimeError as error:
                return f"no CUDA device ({error})"
            return None if count else "no CUDA device"
        if self.library == "torch":
            if self.device == "cuda" and not xp.cuda.is_available():
                return "no CUDA device"
            xp.set_num_threads(
                1
            )  # threads cost small arrays more than they give; one test sets them
        if self.library == "jax.numpy":
            config = importlib.import_module("jax").config
            config.update("jax_enable_x64", True)
            config.update("jax_num_cpu_devices", 2)
        if self.library == "array_api_strict":
            if np.lib.NumpyVersion(np.__version__) < "2.0.0":
                return "it needs NumPy 2"
            # The least that a library may offer: the standard that array-api-compat 1.11 brings to all
            # others, and nothing optional. Shapes that depend on data stay, for `nonzero` finds the rows
            # to certify, and no library whose arrays can be computed with at once lacks it.
            xp.set_array_api_strict_flags(
                api_version="2024.12",
                boolean_indexing=False,
                data_dependent_shapes=True,
                enabled_extensions=(),
            )
        return None

    def make(self, a, dtype=None):
        """This library's array with the values of the NumPy array or list `a`."""
        a = np.asarray(a)
        if self.library == "numpy":
            return a if dtype is None else a.astype(dtype)
        if self.library == "torch":
            torch = self.xp
            out = torch.tensor(np.ascontiguousarray(a), device=self.device)
            return out if dtype is None else out.to(getattr(torch, dtype))
        if self.library == "array_api_strict":
            xp = self.xp
            device = xp.Device(self.device) if self.device else None
            return xp.asarray(
                a, dtype=None if dtype is None else getattr(xp, dtype), device=device, copy=True
            )
        return self.xp.asarray(a, dtype=None if dtype is None else getattr(self.xp, dtype))

    def host(self, a):
        """A NumPy array with the values of `a`; bfloat16 comes back as float32."""
        if self.library == "torch":
            a = a.detach().cpu()
            return (a.float() if a.dtype == self.xp.bfloat16 else a).numpy()
        if self.library == "cupy":
            return self.xp.asnumpy(a)
        if self.library == "array_api_strict" and self.device:
            a = self.xp.asarray(a, device=self.xp.Device("CPU_DEVICE"))
        if self.library == "jax.numpy" and str(a.dtype) == "bfloat16":
            a = a.astype("float32")
        return np.asarray(a)

    def dtype_name(self, a):
        """The name of the dtype of `a`: "float32"."""
        return str(a.dtype).rpartition(".")[2]

    def has_dtype(self, name):
        """Whether arrays of this dtype can be made."""
        return name == "bool" or hasattr(self.xp, name)  # NumPy 1.26 warns of its name

    @property
    def on_cpu(self):
        return self.library != "cupy" and self.device != "cuda"


# Forced, for the tests' arrays are smaller than those it is chosen for unasked; and once more without its way
# with small ones. test_kernels.py prints why where it cannot run.
SKIPPING = "numba-skipping"
COMPILED = ("numba", SKIPPING) if kernels.why_not("numba", np.ones((1, 1))) is None else ()
BACKENDS = [
    Backend("numpy", "numpy", kernels=("cpu", *COMPILED, "agnostic")),
    Backend("torch", "torch", kernels=("auto", "torch", "agnostic")),
    # Not the default device: its arrays refuse those of others, and NumPy, and default to float32. "auto" is agnostic.
    Backend("array_api_strict", "array_api_strict", device="device2", kernels=("auto",)),
    Backend("cupy", "cupy"),
    Backend("torch:cuda", "torch", device="cuda"),
    Backend("jax", "jax.numpy", kernels=("auto",)),  # which sees NumPy's arrays
]


def _selected():
    """The backends asked for, and why each one that cannot run here cannot: {name: reason or None}."""
    asked = os.environ.get("ANYKMEANS_BACKENDS", "all").replace("-", "_").strip() or "all"
    known = {b.name: b for b in BACKENDS}
    if asked == "all":
        chosen = BACKENDS
    else:
        names = [name.strip() for name in asked.split(",") if name.strip()]
        if unknown := [name for name in names if name not in known]:
            raise pytest.UsageError(
                f"ANYKMEANS_BACKENDS names {', '.join(unknown)}; known are {', '.join(known)}"
            )
        chosen = [known[name] for name in names]
    return {b: b.why_not() for b in chosen}


SELECTED = _selected()


def _skipped_lines():
    return [f"{b.name}: skipped, {why}" for b, why in SELECTED.items() if why]


def pytest_report_header(config):
    running = ", ".join(b.name for b, why in SELECTED.items() if not why) or "none"
    return [f"array libraries: {running}", *_skipped_lines()]


def pytest_terminal_summary(terminalreporter):
    for line in _skipped_lines():
        terminalreporter.write_line(f"array library {line}")


def pytest_generate_tests(metafunc):
    """Run a test on every backend, with each of its kernels if it takes one."""
    takes_kernel = "kernel" in metafunc.fixturenames
    if "backend" not in metafunc.fixturenames:
        if takes_kernel:
            metafunc.parametrize("kernel", BACKENDS[0].kernels, indirect=True)
        return
    cases, only = [], metafunc.definition.get_closest_marker("only")
    for backend, why in SELECTED.items():
        if only is not None and backend.name not in only.args:
            continue
        marks = pytest.mark.skip(f"{backend.name}: {why}") if why else ()
        for kernel in backend.kernels if takes_kernel else [None]:
            values = (backend, kernel) if takes_kernel else (backend,)
            name = f"{backend.name}-{kernel}" if takes_kernel else backend.name
            cases.append(pytest.param(*values, id=name, marks=marks))
    if takes_kernel:
        metafunc.parametrize("backend,kernel", cases, indirect=["kernel"])
    else:
        metafunc.parametrize("backend", cases)


def pytest_collection_modifyitems(config, items):
    """Leave out the tests of NumPy, or of one library, without that among the backends."""
    names = {b.name for b in SELECTED}

    def belongs(item):
        only = item.get_closest_marker("only")
        if only is not None:
            return not names.isdisjoint(only.args)
        return "numpy" in names or "backend" in getattr(item, "fixturenames", ())

    keep = [item for item in items if belongs(item)]
    if leave := [item for item in items if item not in set(keep)]:
        config.hook.pytest_deselected(items=leave)
        items[:] = keep


@pytest.fixture
def setting():
    """`setting(spread=0)`: other settings for the rest of the test."""
    with contextlib.ExitStack() as stack:
        yield lambda **changes: stack.enter_context(_settings.settings(**changes))


@pytest.fixture
def kernel(request, setting):
    """The name of a kernel, which is made to take the way that its variant names."""
    if request.param == SKIPPING:
        setting(at_once=0, few=0, first_look=0)
        return "numba"
    return request.param


@pytest.fixture
def xp(backend):
    """The backend's array library."""
    return backend.xp


@pytest.fixture
def make(backend):
    """`make(numpy_array, dtype=None)`: the backend's array with these values."""
    return backend.make


@pytest.fixture
def host(backend):
    """`host(array)`: a NumPy array with its values."""
    return backend.host


@pytest.fixture
def strict():
    """array-api-strict, for tests of devices, of which it pretends to have several."""
    xp = pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    if np.lib.NumpyVersion(np.__version__) < "2.0.0":
        pytest.skip("array-api-strict needs NumPy 2")
    return xp


@pytest.fixture
def rng():
    """A random generator on the host, the same for every test and backend."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def real():
    """`real("s1")`: rows of a shared real data set; skips where the data is not."""
    root = pathlib.Path(__file__).resolve().parents[1]
    folder = pathlib.Path(os.environ.get("ANYKMEANS_DATA", root.parent / "shared" / "data"))

    def load(name):
        path = folder / f"{name}.npz"
        if not path.is_file():
            pytest.skip(f"no {path.name}: set ANYKMEANS_DATA to the folder with the shared data")
        with np.load(path) as arrays:
            return arrays["x"] if "x" in arrays else arrays["X"]

    return load
