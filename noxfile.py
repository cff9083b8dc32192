"""Lint, type-check and test with every array library: `nox` alone does all of it.

nox                          everything that can run here; what cannot is skipped with its reason
nox -s "tests(torch)"        one array library; further arguments after -- go to pytest
nox -s tests -- --gpu        the same tests on a GPU
nox -s tests --no-venv -- --gpu
                             the same with what is installed already, nothing downloaded
nox -l                       every session
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
# pip, not uv: the constrained PyTorch may come from a place that only pip is configured for.
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
# Any `--no-venv` run would otherwise refuse programs that no session environment holds.
nox.options.error_on_external_run = False

CONSTRAINTS = ("-c", ".ci/constraints.txt")
# Of pytest-xdist, as one core would do the most; who has nothing left to do takes from the others.
WORKERS = ("-n", "auto", "--maxprocesses", "4", "--dist", "worksteal")
OLDEST = ("tests/test_golden.py", "tests/test_estimator.py", "tests/test_sklearn.py")
README = Path(__file__).with_name("README.md")


@dataclass(frozen=True)
class Backend:
    """One array library: how it is installed, and what the tests call it on each device.

    `cpu` and `gpu` are names that `ANYKMEANS_BACKENDS` takes; None where the library does not
    run there.
    """

    title: str
    module: str
    extra: str | None  # of pyproject.toml, for users
    packages: tuple[str, ...]  # beyond the extra, for the tests
    cpu: str | None
    gpu: str | None


BACKENDS = {
    "numpy": Backend("NumPy", "numpy", None, (), "numpy", None),
    "torch": Backend("PyTorch", "torch", "torch", (), "torch", "torch:cuda"),
    "array-api-strict": Backend(
        "array-api-strict",
        "array_api_strict",
        None,
        ("array-api-strict",),
        "array_api_strict",
        None,
    ),
    "cupy": Backend("CuPy", "cupy", "cupy", (), None, "cupy"),
    "jax": Backend("JAX, eagerly", "jax", None, ("jax",), "jax", None),
}


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting, and that the README's table is up to date."""
    install(session, *CONSTRAINTS, "ruff")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    text = README.read_text(encoding="utf-8")
    if with_table(text) != text:
        session.error("the table in README.md is out of date: run `nox -s readme`")


@nox.session
def types(session: nox.Session) -> None:
    """Type-check the package, strictly."""
    install(session, *CONSTRAINTS, "mypy", "numpy")
    session.run("mypy")


@nox.session
def version(session: nox.Session) -> None:
    """Prove that the wheel, installed with nothing optional, imports and clusters."""
    if session.venv_backend == "none":
        session.skip("it needs an environment of its own")
    install(session, ".")
    session.chdir(session.create_tmp())  # away from the sources: only the installed package counts
    session.run(
        "python",
        "-c",
        "import anykmeans\n"
        "from importlib import metadata, resources\n"
        "assert metadata.version('anykmeans') == anykmeans.__version__\n"
        "assert (resources.files('anykmeans') / 'py.typed').is_file()\n"
        "assert anykmeans.kmeans([[0.0], [1.0], [9.0]], 2, rng=0).inertia == 0.5\n"
        "print('anykmeans', anykmeans.__version__)",
    )


@nox.session
def cpu(session: nox.Session) -> None:
    """Test every array library of the CPU in one environment, and run all examples in it."""
    if session.venv_backend == "none":
        session.skip("it needs an environment of its own: try `nox -s tests examples --no-venv`")
    on_cpu = [backend for backend in BACKENDS.values() if backend.cpu]
    extras = {backend.extra for backend in on_cpu if backend.extra} | {"examples", "test"}
    packages = {package for backend in on_cpu for package in backend.packages} | {"pytest-xdist"}
    packages |= {"onnxruntime", "onnxscript"}  # which codebooks are exported to, and how
    install(session, *CONSTRAINTS, "-e", f".[{','.join(sorted(extras))}]", *sorted(packages))
    names = {"ANYKMEANS_BACKENDS": ",".join(backend.cpu or "" for backend in on_cpu)}
    session.run("python", "-m", "pytest", *WORKERS, *without_gpu(session.posargs), env=names)
    if not without_gpu(session.posargs):
        run_examples(session)
    if reason := why_no_gpu():
        session.log(f"CuPy's arrays, and PyTorch's on a GPU, are not tested: {reason}")
    else:
        session.notify("tests(cupy)")


@nox.session(default=False)
def examples(session: nox.Session) -> None:
    """Run every example and the README's code; the walk-through with each library of the CPU."""
    install(session, *CONSTRAINTS, "-e", ".[examples]", "array-api-strict")
    run_examples(session)


def run_examples(session: nox.Session) -> None:
    """Run every example and the README's code with what is installed."""
    out = ("--out", session.create_tmp())
    for library in ("numpy", "torch", "array_api_strict"):
        session.run("python", "examples/from_scratch.py", "--library", library, *out)
    session.run("python", "examples/photo_colours.py", *out)
    session.run("python", "examples/torch_embeddings.py", *out)
    session.run("python", "examples/image_codebook.py", *out)
    session.run("python", "examples/deep_clustering.py", *out)
    if reason := why_no_model(session):
        session.log(f"examples/sentences.py is not run: {reason}")
    else:
        session.run("python", "examples/sentences.py", *out)
    for code in re.findall(r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.M | re.S):
        session.run("python", "-c", code)


@nox.session(default=False)
@nox.parametrize("backend", [nox.param(name, id=name) for name in BACKENDS])
def tests(session: nox.Session, backend: str) -> None:
    """Test with one array library; `-- --gpu` tests it on a GPU."""
    run_tests(session, BACKENDS[backend])


@nox.session
def triton(session: nox.Session) -> None:
    """Test the Triton kernels: on a GPU if there is one, else interpreted; and compiled for some."""
    if session.venv_backend == "none" and find_spec("triton") is None:
        session.skip("triton is not installed, and --no-venv installs nothing")
    run = ["pytest", *without_gpu(session.posargs)]
    interpreted = why_no_gpu() is not None
    if interpreted:
        # Triton's interpreter does what NumPy 2.4 refuses.
        packages = ("triton==3.6.0", "numpy<2.4", "pytest-xdist")
        install(session, *CONSTRAINTS, "-e", ".[test,torch]", *packages)
        run += WORKERS
    else:
        install(session, "-e", ".[test,torch]")
    python = sys.executable if session.venv_backend == "none" else "python"
    kernels, others = ("", "_seeding"), ("_builds", "_host")
    for tests, mode in ((kernels, interpreted), (others, False)):
        paths = [f"tests/test_triton{name}.py" for name in tests]
        if tests == others:  # which starts a process that interprets
            paths += ["tests/test_benchmarks_gpu.py::test_stages_that_run_kernels"]
        session.run(python, "-m", *run, *paths, env={"TRITON_INTERPRET": str(int(mode))})


@nox.session
def oldest(session: nox.Session) -> None:
    """Test bits, estimators and scikit-learn's checks, or what is named after --, with the oldest versions of all."""
    if sys.version_info >= (3, 13):
        session.skip("NumPy 1.26 is not made for this Python")
    if session.venv_backend == "none":
        session.skip("it needs an environment of its own")
    project = nox.project.load_toml("pyproject.toml")["project"]
    required = project["dependencies"] + project["optional-dependencies"]["test"]
    pins = (requirement.replace(">=", "==", 1) for requirement in required)
    install(session, "-e", ".[test]", "pytest-xdist", *pins)
    names = {"ANYKMEANS_BACKENDS": "numpy"}
    tests = without_gpu(session.posargs) or OLDEST
    session.run("python", "-m", "pytest", *WORKERS, *tests, env=names)


@nox.session(default=False, venv_backend="none")
def readme(session: nox.Session) -> None:
    """Write the README's table from the backends listed here."""
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")


def run_tests(session: nox.Session, backend: Backend) -> None:
    """Install one backend and run the tests with it, or skip with the reason why not."""
    on_gpu = "--gpu" in session.posargs
    name = (None if on_gpu else backend.cpu) or backend.gpu
    if name is None:
        session.skip(f"{backend.title} arrays live on the CPU alone")
    # Asked before the install, for CuPy's wheels are large.
    if name == backend.gpu and (reason := why_no_gpu()):
        session.skip(f"{backend.title} is tested on a GPU here: {reason}")

    if session.venv_backend == "none" and find_spec(backend.module) is None:
        session.skip(f"{backend.module} is not installed, and --no-venv installs nothing")
    extras = ",".join(filter(None, ("test", backend.extra)))
    # The constraints hold a PyTorch for CPU tests; for a GPU pip finds the fitting one.
    constraints = () if on_gpu else CONSTRAINTS
    workers = () if on_gpu or session.venv_backend == "none" else WORKERS
    packages = ("pytest-xdist",) if workers else ()
    install(session, *constraints, "-e", f".[{extras}]", *backend.packages, *packages)
    run = [sys.executable if session.venv_backend == "none" else "python", "-m", "pytest", *workers]
    session.run(*run, *without_gpu(session.posargs), env={"ANYKMEANS_BACKENDS": name})


def why_no_model(session: nox.Session) -> str | None:
    """Return why the model of the sentences is not installed, or None."""
    if session.venv_backend == "none":
        return None if find_spec("wordllama") else "wordllama, with its model, is not installed"
    return None if sys.version_info < (3, 14) else "wordllama has no wheel for this Python"


def without_gpu(arguments: Iterable[str]) -> list[str]:
    """Return the arguments after -- that go to pytest."""
    return [argument for argument in arguments if argument != "--gpu"]


def install(session: nox.Session, *arguments: str) -> None:
    """Install with pip, or nothing at all under `--no-venv`."""
    if session.venv_backend != "none":
        # Most modules are never imported, and compiling them takes longer than to unpack them.
        session.install("--no-compile", *arguments)
        # Those that are, are compiled once, and not by each of many processes, whatever the machine says.
        session.env["PYTHONDONTWRITEBYTECODE"] = ""


def why_no_gpu() -> str | None:
    """Return why no CUDA device can be used, or None; asks the driver alone."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return "no NVIDIA driver was found"
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "the NVIDIA driver reports no usable GPU"
    return None


def with_table(text: str) -> str:
    """Return the README's `text` with the table of backends between its markers."""
    begin, end = "<!-- backends: begin -->\n", "<!-- backends: end -->"
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    lines = ["| arrays | CPU | GPU (CUDA) | install | tests |", "|---|---|---|---|---|"]
    for name, backend in BACKENDS.items():
        extra = f"`.[{backend.extra}]`" if backend.extra else "`.`"
        packages = "".join(f" `{package}`" for package in backend.packages)
        session = f'`nox -s "tests({name})"`'
        gpu = ", with `-- --gpu`" if backend.cpu and backend.gpu else ""
        lines.append(
            f"| {backend.title} | {'yes' if backend.cpu else ''} | {'yes' if backend.gpu else ''} "
            f"| {extra}{packages} | {session}{gpu} |"
        )
    return f"{before}{begin}" + "\n".join(lines) + f"\n{end}{after}"
