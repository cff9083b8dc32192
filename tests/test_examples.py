"""The examples in docstrings: each runs, and comes to what it says."""

import ast
import doctest
import inspect
import pathlib

import pytest

import anykmeans

PACKAGE = pathlib.Path(anykmeans.__file__).parent


def documented(node, name):
    """Every docstring of a module and what is in it, with the dotted name of what it is of."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
        name = f"{name}.{node.name}" if hasattr(node, "name") else name
        yield name, ast.get_docstring(node) or ""
    for child in ast.iter_child_nodes(node):
        yield from documented(child, name)


# Read from the files, for `doctest` overlooks in a module what a decorator has wrapped.
EXAMPLES = {
    name: text
    for path in sorted(PACKAGE.rglob("*.py"))
    for name, text in documented(ast.parse(path.read_text(encoding="utf-8")), path.stem)
    if ">>>" in text
}


def needs_torch(text):
    """Whether an example imports PyTorch, or takes its tensors."""
    return '"torch"' in text or "import torch" in text


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.only("torch") if needs_torch(text) else ())
        for name, text in EXAMPLES.items()
    ],
)
def test_an_example_comes_to_what_it_says(name):
    if needs_torch(EXAMPLES[name]):
        pytest.importorskip("torch", reason="PyTorch is not installed")
    if "anykmeans.constrained" in EXAMPLES[name]:
        pytest.importorskip("ortools", reason="OR-tools is not installed")
    said = []
    test = doctest.DocTestParser().get_doctest(EXAMPLES[name], {}, name, None, 0)
    doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    assert not said, "".join(said)


def test_everything_public_has_an_example():
    public = {name: getattr(anykmeans, name) for name in anykmeans.__all__ if name[0] != "_"}
    for name, kind in list(public.items()):
        public |= {
            f"{name}.{method}": each
            for method, each in inspect.getmembers(kind, inspect.isfunction)
            if method[0] != "_"
            and inspect.isclass(kind)
            and each.__module__.startswith("anykmeans")
        }
    assert "KMeans.predict" in public
    assert not [name for name, each in public.items() if ">>>" not in inspect.getdoc(each)]


@pytest.mark.only("torch")
def test_everything_for_pytorch_has_an_example():
    module = pytest.importorskip("anykmeans.torch", reason="PyTorch is not installed")
    assert "Codebook" in module.__all__
    assert not [
        name for name in module.__all__ if ">>>" not in inspect.getdoc(getattr(module, name))
    ]
