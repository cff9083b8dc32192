"""Each kernel's steps against plain loops, and the seam that chooses between kernels."""

import itertools
import os
import pathlib
import shutil
import subprocess
import sys

import array_api_compat
import numpy as np
import pytest
import scipy.sparse
from sklearn.utils.fixes import parse_version

from anykmeans import MiniBatchKMeans, _compile, kernels, kmeans
from anykmeans.__main__ import main
from anykmeans._matrix import Matrix
from anykmeans.kernels import compiled
from anykmeans.sources.rows import Rows

SHAPES = [  # rows, features, clusters
    (1, 1, 1),
    (1, 5, 3),
    (63, 1, 2),
    (100, 17, 1),
    (100, 3, 63),
    (123, 100, 7),
    (63, 64, 123),
    (1000, 2, 5),
]


class Steps:
    """A kernel's steps on a backend's arrays, NumPy in and NumPy out."""

    def __init__(self, backend, name):
        self.backend = backend
        self.kernel = kernels.choose(backend.make(np.ones((2, 2))), name)

    def see(self, a, dtype=None):
        """The namespace and the array as the kernel sees it."""
        a = self.backend.make(a, dtype)
        matrix = Matrix.of(a[:, None] if a.ndim == 1 else a, self.kernel.library)
        return matrix.xp, matrix.data[:, 0] if a.ndim == 1 else matrix.data

    def read(self, a):
        return np.asarray(a) if self.kernel.host else self.backend.host(a)


@pytest.fixture
def steps(backend):
    """Every kernel that can run on the backend's arrays."""
    if backend.library == "jax.numpy":
        pytest.skip("to every kernel its arrays are NumPy's")
    x = backend.make(np.ones((2, 2)))
    return [Steps(backend, name) for name in kernels.TABLE if kernels.why_not(name, x) is None]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("m", "d", "k"), SHAPES)
def test_nearest(steps, m, d, k, dtype):
    rng = np.random.default_rng([m, d, k])
    y, c = (np.round(rng.normal(size=(rows, d)) * 8) / 4 for rows in (m, k))  # scores are exact
    scores = np.array([[sum(b * b) - 2 * sum(a * b) for b in c] for a in y])
    runner_up = np.sort(scores, axis=1)[:, 1] if k > 1 else np.full(m, np.inf)
    for each in steps:
        xp, rows = each.see(y, dtype)
        minus_2c, norms = each.see(-2 * c.T, dtype)[1], each.see((c**2).sum(axis=1), dtype)[1]
        labels, best, second = map(each.read, each.kernel.nearest(xp, rows, minus_2c, norms))
        name = each.kernel.name
        np.testing.assert_array_equal(labels, scores.argmin(axis=1), name)  # the first of equals
        np.testing.assert_array_equal(best, scores.min(axis=1), name)
        np.testing.assert_array_equal(second, runner_up, name)
        np.testing.assert_array_equal(each.read(rows), y, name)  # nothing was written


@pytest.mark.parametrize("labels_dtype", ["int32", "int64"])
@pytest.mark.parametrize(("m", "columns", "k"), SHAPES)
def test_segment_sum(steps, m, columns, k, labels_dtype):
    rng = np.random.default_rng([m, columns, k])
    high = 2**52 // m  # as large as sums of whole numbers can be exact
    values = rng.integers(-high, high, size=(m, columns)).astype(np.float64)
    labels = rng.integers(k, size=m) // 2  # some clusters stay empty
    wanted = [
        [sum(int(v) for v in values[labels == j, f]) for f in range(columns)] for j in range(k)
    ]
    for each in steps:
        xp, rows = each.see(values)
        got = each.kernel.segment_sum(xp, rows, each.see(labels, labels_dtype)[1], k)
        assert each.read(got).tolist() == wanted, each.kernel.name


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("t", [1, 3, 11])
@pytest.mark.parametrize("max_bytes", [None, 20_000])  # tiles of many rows, of several, of one
@pytest.mark.parametrize(("m", "d"), [(1, 1), (90, 2), (200, 3), (70, 16), (150, 33), (40, 300)])
@pytest.mark.parametrize("sieve", [None, "Coded", "Everything"])
def test_steps_of_seeding(steps, sieve, m, d, max_bytes, t, dtype, weighted, monkeypatch):
    """What candidates save and win, what a pick changes, and costs, against plain loops."""
    if sieve:
        steps = [each for each in steps if each.kernel.name == "numba"]
        if not steps:
            pytest.skip("no compiled code for these arrays")
        if sieve == "Coded":
            monkeypatch.setattr("anykmeans.kernels.numba.sieves.pay", lambda y, n, k: True)
        else:
            for name, least in (("_FEW", 100), ("_BARE", 1)):
                monkeypatch.setattr(f"anykmeans.kernels.numba.sieves.{name}", least)
    rng = np.random.default_rng([m, d, t])
    y = np.round(rng.normal(size=(m, d)) * 8) / 4  # distances are exact, and often equal
    picks, c = y[rng.integers(m, size=2)] + 0.25, y[rng.integers(m, size=t)]
    to_picks, to_c = (((y[:, None] - b[None]) ** 2).sum(axis=2) for b in (picks, c))
    closest = to_picks.min(axis=1)
    w = np.round(rng.exponential(size=m) * 4) if weighted else None
    weights = np.ones(m) if w is None else w
    cost, scale = weights * closest, 0.5
    left = np.rint(weights[:, None] * np.minimum(to_c, closest[:, None]) * scale)
    saved = np.rint(cost * scale).sum() - left.sum(axis=0)
    free = scale * (cost - (weights[:, None] * np.minimum(to_c, closest[:, None])).T).sum(axis=1)
    so_far = np.rint(cost * scale).cumsum()
    after = np.minimum(closest, to_c[:, t - 1])
    draws = [0.0, so_far[-1] / 3, so_far[m // 2], so_far[-1]]
    for each in steps:
        name, kernel = each.kernel.name, each.kernel
        matrix = Matrix.of(each.backend.make(y, dtype), kernel.library)
        heavy = None if w is None else Matrix.of(each.backend.make(w), kernel.library)
        rows = Rows(matrix, heavy, kernel, max_bytes=max_bytes)
        first, second, wide = (each.see(a, "float64")[1] for a in (picks[:1], picks[1:], c))
        seeds = kernel.seeds(rows, first, 3, t)
        seeds.count_in(second, 0)
        old = np.concatenate([each.read(tile.closest) for tile in seeds.tiles])
        np.testing.assert_array_equal(old, closest, name)
        against, seeds.scale = seeds.against(wide), scale
        got, doubt = map(sum, zip(*gained(each, seeds, wide, against), strict=True))
        assert (np.abs(got - free) <= doubt).all(), name  # nothing was rounded
        assert doubt <= 1e-4 * scale * (weights * (closest + (y**2).sum(axis=1))).sum() + 1e-9, name
        exact = [
            sum(float(seeds.saved(tile, wide[j : j + 1, :], j)) for tile in seeds.tiles)
            for j in range(t)
        ]
        assert exact == saved.tolist(), name
        found = [seeds.costs(tile) for tile in seeds.tiles]
        parts = [tile.at for tile in seeds.tiles]
        wanted = [np.rint(cost[at] * scale).sum() for at in parts]  # a block each
        assert [sums.tolist() for sums, _ in found] == [[each] for each in wanted], name
        assert max(largest for _, largest in found) == cost.max(), name
        for draw in draws if len(parts) == 1 else []:
            row = seeds.reached(seeds.tiles[0], slice(0, m), so_far[-1], draw)
            assert row == so_far.searchsorted(draw), name
        for tile in seeds.tiles:
            seeds.shorten(tile, wide[t - 1 :, :], 2, t - 1)
        old = np.concatenate([each.read(tile.closest) for tile in seeds.tiles])
        np.testing.assert_array_equal(old, after, name)


def gained(each, seeds, wide, against):
    for tile in seeds.tiles:
        got, doubt = seeds.gains(tile, wide, against)
        yield each.read(got), doubt


def test_the_choice_is_reported_and_can_be_forced(backend, make, monkeypatch, tmp_path):
    x = make(np.arange(24.0).reshape(12, 2))
    can_run = [name for name in kernels.TABLE if kernels.why_not(name, x) is None]
    assert "agnostic" in can_run
    monkeypatch.delitem(sys.modules, "anykmeans.kernels.numba.steps", raising=False)
    monkeypatch.setattr(compiled, "folder", lambda module: tmp_path)
    monkeypatch.setattr(compiled, "seconds", lambda: 0.0)
    at_once = next(name for name in can_run if name != "numba")
    assert kernels.choose(x).name == at_once  # nothing is compiled
    monkeypatch.setattr(compiled, "seconds", lambda: 1e9)  # but so much small work pays for it
    assert kernels.choose(x).name == can_run[0]
    monkeypatch.setattr(compiled, "seconds", lambda: 0.0)
    assert kmeans(x, 2, rng=0).kernel == kernels.choose(x).name == at_once
    (tmp_path / "few.passes-80.py27.nbi").touch()  # by another Python
    assert kernels.choose(x).name == at_once
    (tmp_path / f"few.passes-80.py{sys.version_info[0]}{sys.version_info[1]}.nbi").touch()
    assert kmeans(x, 2, rng=0).kernel == can_run[0]
    for name in can_run:
        assert kmeans(x, 2, rng=0, kernel=name).kernel == name
    for name in set(kernels.TABLE) - set(can_run):
        reason = kernels.why_not(name, x)
        with pytest.raises(ValueError, match=r"^`kernel`") as caught:
            kmeans(x, 2, rng=0, kernel=name)
        assert reason in str(caught.value)


def test_the_table_names_every_kernel_file():
    folder = pathlib.Path(kernels.__file__).parent
    files = [path for path in folder.rglob("*.py") if "\nKERNEL" in path.read_text("utf-8")]
    names = {
        str(path.relative_to(folder)).split(".")[0].removesuffix("/__init__") for path in files
    }
    assert names == set(kernels.TABLE) | {f"sparse/{name}" for name in kernels.SPARSE}


def run(code, *, package=None, env=(), before=()):
    """What a fresh interpreter prints, line by line, of the package in this folder or the one at hand."""
    package = package or pathlib.Path(kernels.__file__).parents[2]
    program = [*before, sys.executable, "-P", "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(package), "NUMBA_CACHE_DIR": "", **dict(env)}
    done = subprocess.run(program, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def locked(tmp_path):
    """`locked(code, env)` runs code as one who can write neither the package nor a home, unless `env` says where."""
    before = []
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # whom no mode keeps out
        before = ["setpriv", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]
        if shutil.which("setpriv") is None:
            pytest.skip("root can write everywhere, and there is no setpriv")
    package, home = tmp_path / "locked", tmp_path / "locked" / "home"
    shutil.copytree(pathlib.Path(kernels.__file__).parents[1], package / "anykmeans")
    home.mkdir()
    for path in [package, *package.rglob("*")]:
        if path.name.endswith((".nbi", ".nbc")):
            path.unlink()
        else:
            path.chmod(0o555 if path.is_dir() else 0o444)

    def run_locked(code, env=()):
        nowhere = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "none")}
        return run(code, package=package, env={**nowhere, **dict(env)}, before=before)

    yield run_locked
    for path in [package, *package.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


DISTANCES = """
import numpy as np
from anykmeans import kernels, kmeans
x = np.ones((2, 3))
kernels.choose(x, "numba")
from anykmeans.kernels.numba import steps
print(*steps.distances(x, 0 * x))
"""
PLACES = """
import inspect, sys
from anykmeans.kernels import compiled
found = compiled.folder("MODULE")
assert "numba" not in sys.modules
from numba.core.caching import FunctionCache
from FOLDER import FILE
try:
    cache = FunctionCache(FILE.FUNCTION.py_func)
except RuntimeError as error:
    print(found, None)
else:
    print(found, cache.cache_path)
    print(cache._impl.filename_base)
print(compiled.folder("MODULE") == found)
"""
needs_numba = pytest.mark.skipif(
    kernels.why_not("numba", np.ones((1, 1))) is not None, reason="Numba cannot run"
)


@needs_numba
@pytest.mark.parametrize(
    ("module", "folder"), [("numba", "kernels.numba"), ("sparse.numba", "kernels.sparse.numba")]
)
def test_compiled_code_is_sought_where_numba_keeps_it(tmp_path, locked, module, folder):
    file, function = compiled._COMPILED[module].split(".")
    code = PLACES.replace("MODULE", module).replace("FOLDER", f"anykmeans.{folder}")
    code = code.replace("FILE", file).replace("FUNCTION", function)
    places = [
        run(code),
        run(code, env={"NUMBA_CACHE_DIR": str(tmp_path / "mine")}),
        run(code, env={"NUMBA_CACHE_DIR": str(tmp_path / "mine")}),  # it is there now
        locked(code, {"NUMBA_CACHE_DIR": str(tmp_path / "mine")}),
        locked(code, {"XDG_CACHE_HOME": str(tmp_path / "caches")}),
        locked(code, {"NUMBA_CACHE_DIR": "/proc/none", "XDG_CACHE_HOME": str(tmp_path)}),
        locked(code),
    ]
    for first, *more, same in places:
        ours, numbas = first.split()
        assert ours == numbas
        assert same == "True"
        for base in more:
            assert pathlib.PurePath(base + ".nbi").match(compiled._compiled_files(module))
    assert places[-1][0] == "None None"
    assert len({first for first, *_ in places}) == 6


@needs_numba
def test_without_a_place_for_compiled_code_it_is_compiled_each_time(locked):
    assert locked(DISTANCES) == ["3.0 3.0"]


@needs_numba
@pytest.mark.parametrize(
    "damage", [b"", b"no pickle", None], ids=["empty", "garbage", "unreadable"]
)
def test_damaged_compiled_code_is_compiled_anew(tmp_path, damage):
    env = {"NUMBA_CACHE_DIR": str(tmp_path)}
    assert run(DISTANCES, env=env) == ["3.0 3.0"]
    kept = list(tmp_path.rglob("*.nb[ic]"))
    assert kept
    for path in kept:
        path.unlink()
        path.mkdir() if damage is None else path.write_bytes(damage)
    assert run(DISTANCES, env=env) == ["3.0 3.0"]


def test_small_data_load_no_numba_that_has_compiled_nothing(tmp_path):
    code = "import sys, anykmeans; print(anykmeans.kmeans([[0.0], [1.0]], 2, rng=0).kernel, 'numba' in sys.modules)"
    assert run(code, env={"NUMBA_CACHE_DIR": str(tmp_path)}) == ["cpu False"]


LARGE = """
import numpy as np
from anykmeans import KMeans, kmeans
x = np.random.default_rng(0).normal(size=(40000, 2))
print(kmeans(x, 3, rng=0, max_iter=2).kernel)
print(KMeans(3, random_state=0, max_iter=2).fit(x).kernel_)
try:
    kmeans(x, 3, kernel="numba")
except ValueError as error:
    print(str(error).splitlines()[0])
"""


def test_numba_told_not_to_compile_is_not_chosen():
    *chosen, refusal = run(LARGE, env={"NUMBA_DISABLE_JIT": "1"})
    assert chosen == ["cpu", "cpu"]
    assert "cannot run here: Numba is told not to compile" in refusal


@pytest.mark.parametrize(
    ("module", "body"),
    [
        ("numba", "raise ImportError('Numba needs NumPy 1.0 or less')"),
        ("numba", "raise RuntimeError('no such symbol: PyABI')"),
        ("numba", "import no_such_module"),
        ("numba", "njit = None"),
        ("llvmlite", "raise OSError('libLLVM.so: cannot open')"),
    ],
)
def test_a_library_that_cannot_be_imported_is_absent(tmp_path, module, body):
    (tmp_path / module).mkdir()
    (tmp_path / module / "__init__.py").write_text(body)
    package = pathlib.Path(kernels.__file__).parents[2]
    *chosen, refusal = run(LARGE, package=f"{tmp_path}{os.pathsep}{package}")
    assert chosen == ["cpu", "cpu"]
    said = body.split("'")[1] if "'" in body else "Error"
    assert said in refusal
    assert refusal.startswith("`kernel`='numba' cannot run here")


ARRAYS = ("numba", "triton", "torch", "cupy", "jax", "dask", "dask.array", "sparse")
OTHERS = (*ARRAYS, "pandas", "polars")


@pytest.mark.parametrize(
    "block",
    [
        f"import sklearn.cluster\nfor name in {OTHERS}: sys.modules[name] = None",
        f"import sklearn.cluster\nfor name in {ARRAYS}: sys.modules[name] = types.ModuleType(name)",
        f"""
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name in {OTHERS}:
            raise ImportError(name + " is not allowed here")
sys.meta_path.insert(0, Blocked())""",
    ],
    ids=["none", "half", "hook"],
)
def test_other_libraries_may_be_blocked(block):
    if "import sklearn" in block and parse_version(array_api_compat.__version__) < parse_version(
        "1.12"
    ):
        pytest.skip("array-api-compat itself looked into what is half imported before 1.12")
    code = """
import numpy as np
from anykmeans import KMeans, MiniBatchKMeans, assign, kernels, kmeans, kmeans_plusplus
x = np.random.default_rng(0).normal(size=(40000, 2))
for rows in (x, x[:50], x[:50].tolist()):
    c = kmeans(rows, 3, rng=0, max_iter=2).centroids
    assign(rows, c)
    kmeans_plusplus(rows, 3, random_state=0)
for kernel in ("cpu", "agnostic"):
    kmeans(x[:500], 3, rng=0, kernel=kernel)
for Model in (KMeans, MiniBatchKMeans):
    Model(3, random_state=0).fit(x).predict(x)
print(kernels.why_not("numba", x))
"""
    (reason,) = run("import sys, types\n" + block + code)
    assert reason.startswith(("Numba cannot be imported", "its code does not suit"))


class Clock:
    """Seconds of work that pass from one asking to the next, so that compiled code pays from one of them on."""

    def __init__(self, after):
        self.left = after

    def __call__(self):
        self.left -= 1
        return 0.0 if self.left > 0 else 1e9


@needs_numba
@pytest.mark.parametrize("after", [2, 3, 5, 8, 12, 19, 40])
@pytest.mark.parametrize("kind", ["dense", "weighted", "sparse", "batch", "n_init", "wide"])
def test_the_kernel_may_change_between_two_passes_or_picks(monkeypatch, kind, after):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 70 if kind == "wide" else 5)) + 4 * rng.integers(3, size=(400, 1))
    options = {"rng": 0, "tol": 0.0, "n_init": 3 if kind == "n_init" else 1}
    if kind == "weighted":
        options["sample_weight"] = rng.exponential(size=400)
    if kind == "sparse":
        x = scipy.sparse.csr_array(np.where(rng.random(x.shape) < 0.3, x, 0))
    if kind == "batch":
        x = x.reshape(4, 100, 5)
    module = "sparse.numba.sweep" if kind == "sparse" else "numba.steps"
    kernels.choose(x, "numba")  # so that loading it is no part of this
    monkeypatch.delitem(sys.modules, f"anykmeans.kernels.{module}", raising=False)
    monkeypatch.setattr(compiled, "_is_compiled", lambda module: False)
    wanted = kmeans(x, 9, kernel="cpu", **options)
    clock = Clock(after)
    for where in ("compiled", "cpu"):
        monkeypatch.setattr(f"anykmeans.kernels.{where}.seconds", clock)
    found = kmeans(x, 9, **options)
    assert found.kernel in ("cpu", "numba", "cpu+numba")
    assert found.kernel != "cpu" or clock.left > 0
    for one, other in zip(found, wanted, strict=True):
        if not isinstance(one, str):
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@needs_numba
@pytest.mark.parametrize("after", [2, 5, 11, 30])
def test_the_kernel_may_change_between_two_batches(monkeypatch, after):
    x = np.random.default_rng(0).normal(size=(600, 5))
    settings = {"n_clusters": 7, "batch_size": 60, "random_state": 0}
    wanted = MiniBatchKMeans(kernel="cpu", **settings).fit(x)
    monkeypatch.delitem(sys.modules, "anykmeans.kernels.numba.steps", raising=False)
    monkeypatch.setattr(compiled, "_is_compiled", lambda module: False)
    clock = Clock(after)
    for where in ("compiled", "cpu"):
        monkeypatch.setattr(f"anykmeans.kernels.{where}.seconds", clock)
    found = MiniBatchKMeans(**settings).fit(x)
    assert clock.left <= 0
    assert found.kernel_ in ("numba", "cpu+numba")
    assert found.cluster_centers_.tobytes() == wanted.cluster_centers_.tobytes()
    assert found.labels_.tolist() == wanted.labels_.tolist()


@needs_numba
def test_a_kernel_that_was_named_makes_way_for_no_other(monkeypatch):
    for where in ("compiled", "cpu"):
        monkeypatch.setattr(f"anykmeans.kernels.{where}.seconds", lambda: 1e9)
    assert kmeans(np.arange(24.0).reshape(12, 2), 2, rng=0, kernel="cpu").kernel == "cpu"


@needs_numba
def test_compile_makes_its_calls_and_says_where_the_code_is(monkeypatch, capsys):
    calls = list(itertools.islice(_compile._calls(), 3))
    monkeypatch.setattr(_compile, "_calls", lambda: iter(calls))
    assert main(["compile"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("compiled by 3 calls in ")
    assert str(compiled.folder("numba")) in out


def test_compile_says_why_it_cannot(monkeypatch, capsys):
    monkeypatch.setattr("anykmeans.kernels.numba.Numba.why_not", lambda self, x: "no compiler here")
    assert main(["compile"]) == 1
    assert "no compiler here" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["compose"])
