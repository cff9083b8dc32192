"""The house: what an import costs, which way imports point, and what is public."""

import ast
import inspect
import pathlib
import subprocess
import sys

import pytest

import anykmeans

PACKAGE = pathlib.Path(anykmeans.__file__).parent
HEAVY = [
    "torch",
    "cupy",
    "sklearn",
    "numba",
    "jax",
    "matplotlib",
    "scipy",
    "pandas",
    "polars",
    "dask",
    "ortools",
]


def fresh(code):
    """What a fresh interpreter prints."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=PACKAGE.parent,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


def module_name(path):
    """`kernels.cpu` for anykmeans/kernels/cpu.py, `kernels` for its `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(path):
    """Every module imported anywhere in the file, full names; functions and TYPE_CHECKING included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                inside = full.removeprefix("anykmeans.") in MODULES
                found.add(full if inside and full.startswith("anykmeans.") else node.module)
    return found


INTEGRATIONS = {"cli", "dask", "plot", "torch"}  # which may import what they integrate at their top


def test_import_loads_nothing_heavy():
    code = f"import sys, anykmeans; print(*(m for m in {HEAVY} if m in sys.modules))"
    assert fresh(code) == []


def test_functions_load_neither_estimators_nor_other_libraries():
    heavy = [m for m in HEAVY if m not in ("scipy", "sklearn", "numba")]  # Numba where it pays
    code = (
        "import sys, numpy as np; from anykmeans import kmeans;"
        "kmeans(np.arange(8.0).reshape(4, 2), 2, rng=0);"
        f"print(*(m for m in {heavy} + ['anykmeans.estimators'] if m in sys.modules))"
    )
    assert fresh(code) == []


def test_mini_batches_are_an_algorithm_without_scikit_learn():
    assert fresh("import sys, anykmeans._minibatch; print('sklearn' in sys.modules)") == ["False"]


def test_import_changes_no_global_state():
    code = (
        "import warnings, random, numpy as np, os, sklearn; w = list(warnings.filters);"
        "s = np.random.get_state()[1].tolist(); e = dict(os.environ); p = np.geterr();"
        "import anykmeans; anykmeans.kmeans; anykmeans.KMeans;"
        "print(s == np.random.get_state()[1].tolist(), e == dict(os.environ), p == np.geterr())"
    )
    assert fresh(code) == ["True"] * 3


def test_imports_point_one_way():
    """As pyproject.toml says, for this test and for people."""
    cli = pytest.importorskip("importlinter.cli", reason="import-linter is not installed")
    assert cli.lint_imports(str(PACKAGE.parent / "pyproject.toml"), no_cache=True) == 0


def test_only_one_module_knows_array_api_compat():
    users = {
        name
        for name, path in MODULES.items()
        if any(m.split(".")[0].startswith("array_api") for m in imported(path))
    }
    assert users == {"_libraries"}


def test_plain_numpy_is_no_namespace():
    """Before NumPy 2 it lacks names of the standard: `np_compat` has them."""
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            given = (
                [*node.args, *(each.value for each in node.keywords)]
                if isinstance(node, ast.Call)
                else []
            )
            handed = [
                each.lineno for each in given if isinstance(each, ast.Name) and each.id == "np"
            ]
            assert not handed, f"{name}, line {handed}"


def test_only_one_module_warns():
    """The one that finds the caller's line."""
    assert {name for name, path in MODULES.items() if "warnings" in imported(path)} == {"_check"}


def test_optional_libraries_are_imported_where_they_are_used():
    """No module but an integration or a kernel imports an optional library at its top."""
    optional = {
        "torch",
        "cupy",
        "numba",
        "jax",
        "triton",
        "matplotlib",
        "dask",
        "pandas",
        "polars",
        "ortools",
    }
    for name, path in MODULES.items():
        if name.split(".")[0] in INTEGRATIONS | {"kernels"}:
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            for inside in [node] if isinstance(node, ast.Import | ast.ImportFrom) else []:
                names = [a.name for a in inside.names] + [getattr(inside, "module", None) or ""]
                assert not optional & {n.split(".")[0] for n in names}, f"{name} imports {names}"


def test_all_is_what_is_public():
    assert set(anykmeans.__all__) - {"__version__"} == {
        "KMeans",
        "KMeansResult",
        "MiniBatchKMeans",
        "assign",
        "kmeans",
        "kmeans_plusplus",
    }
    assert set(dir(anykmeans)) >= set(anykmeans.__all__)
    public = {
        name
        for name in dir(anykmeans)
        if not name.startswith("_") and not inspect.ismodule(getattr(anykmeans, name))
    }
    assert public == set(anykmeans.__all__) - {"__version__"}
    assert list(anykmeans.__all__) == sorted(anykmeans.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        anykmeans.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", [n for n in anykmeans.__all__ if n != "__version__"])
def test_public_names_are_documented(name):
    public = getattr(anykmeans, name)
    assert public.__name__ == name
    text = inspect.getdoc(public)
    assert text.splitlines()[0].endswith(".")
    if inspect.isfunction(public):
        for parameter in inspect.signature(public).parameters:
            assert f"\n{parameter} : " in text or f"\n{parameter}, " in text, (
                f"{parameter} is not documented"
            )
        assert "Returns\n---" in text
        assert "Raises\n---" in text


def test_modules_say_what_they_are():
    for name, path in MODULES.items():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), name


def test_no_machine_paths_and_no_asserts_for_users():
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        asserts = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
        assert not asserts, f"{name} asserts at lines {asserts}"
