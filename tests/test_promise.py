"""The promise: the same data, weights and seed give the same bits, however they are computed."""

import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import warnings
from fractions import Fraction

import numpy as np
import pytest
from referee import bits
from sklearn.exceptions import ConvergenceWarning

from anykmeans import KMeans, MiniBatchKMeans, assign, kmeans, kmeans_plusplus
from anykmeans._matrix import Matrix
from anykmeans.kernels import choose
from anykmeans.sources.rows import Rows

SHAPES = [  # n, d, k
    (1, 1, 1),
    (90, 2, 1),
    (120, 1, 2),
    (301, 2, 8),
    (257, 3, 40),
    (200, 17, 8),
    (150, 17, 40),
    (123, 100, 2),
    (130, 100, 40),
]
INITS = ["k-means++", "random", "k-means||"]


def blobs(n, d, dtype="float64", offset=0.0, seed=0):
    """Overlapping clusters (n, d): they keep Lloyd busy for many iterations."""
    rng = np.random.default_rng([seed, n, d])
    centres = rng.normal(size=(6, d))
    x = centres[rng.integers(6, size=n)] + 0.5 * rng.normal(size=(n, d))
    return (x + offset).astype(dtype)


def sample_weights(n, dtype="float64"):
    """Weights (n,) of very different size, some of them zero."""
    rng = np.random.default_rng(n)
    w = rng.lognormal(0, 2, size=n)
    w[n // 2 + 1 :: 7] = 0
    return w.astype(dtype)


def reference(x, k, w=None, **options):
    return bits(kmeans(x, k, sample_weight=w, kernel="cpu", **options))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
def test_every_library_and_kernel(backend, make, host, kernel, n, d, k, dtype, weighted):
    x = blobs(n, d, dtype)
    w = sample_weights(n, dtype) if weighted else None
    options = {"rng": 3, "max_iter": 40}
    result = kmeans(
        make(x), k, sample_weight=make(w) if weighted else None, kernel=kernel, **options
    )
    assert bits(result, host) == reference(x, k, w, **options)
    assert kernel in ("auto", result.kernel)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "int64", "bool"])
def test_every_library_dtype_and_init(backend, make, host, kernel, dtype, init):
    if not backend.has_dtype(dtype):
        pytest.skip(f"{backend.name} has no {dtype}")
    x = (blobs(200, 5) * 40 + 120).astype(dtype)
    if dtype == "bool":
        x = blobs(200, 5) > 0
    options = {"init": init, "rng": 11, "max_iter": 40, "tol": 0}
    assert bits(kmeans(make(x), 7, kernel=kernel, **options), host) == reference(x, 7, **options)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_library_far_from_the_origin(backend, make, host, kernel, dtype):
    x = blobs(400, 3, dtype, offset=1e6)  # float32 holds sixteenths there: a lattice full of ties
    result = kmeans(make(x), 9, rng=1, kernel=kernel)
    assert bits(result, host) == reference(x, 9, rng=1)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")  # "keep" leaves them
def test_every_library_with_empty_clusters(backend, make, host, kernel):
    x = blobs(150, 2)
    start = np.concatenate([x[:3], np.full((3, 2), 100.0) + np.arange(3)[:, None]])
    for empty in ["relocate", "keep"]:
        result = kmeans(make(x), 6, init=make(start), empty=empty, kernel=kernel)
        assert bits(result, host) == reference(x, 6, init=start, empty=empty)


def test_every_library_assigns_alike(backend, make, host, kernel):
    x, c = blobs(300, 17, "float32"), blobs(12, 17, "float32", seed=1)
    labels, squared = assign(make(x), make(c))
    wanted_labels, wanted_squared = assign(x, c)
    np.testing.assert_array_equal(host(labels), wanted_labels)
    assert host(squared).tobytes() == wanted_squared.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_library_picks_the_same_rows(backend, make, host, dtype):
    x = blobs(300, 3, dtype)
    w = sample_weights(300, dtype)
    for seed in range(5):
        centres, indices = kmeans_plusplus(make(x), 12, sample_weight=make(w), random_state=seed)
        wanted_centres, wanted = kmeans_plusplus(x, 12, sample_weight=w, random_state=seed)
        np.testing.assert_array_equal(host(indices), wanted)
        assert host(centres).tobytes() == wanted_centres.tobytes() == x[wanted].tobytes()


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("n_d_k", [(600, 3, 9), (120, 30, 40)], ids=str)
def test_every_memory_budget(backend, make, host, kernel, n_d_k, init):
    n, d, k = n_d_k
    x, w = blobs(n, d, "float32"), sample_weights(n)
    options = {"rng": 5, "max_iter": 4, "init": init, "n_init": 2}
    wanted = reference(x, k, w, **options)
    for max_bytes in [40_000, 300_000, 10_000_000, None]:
        result = kmeans(
            make(x), k, sample_weight=make(w), max_bytes=max_bytes, kernel=kernel, **options
        )
        assert bits(result, host) == wanted, f"max_bytes={max_bytes}"


def test_smallest_memory_budget():
    x = blobs(60, 4)
    with pytest.raises(ValueError, match=r"\d+ bytes") as caught:
        kmeans(x, 5, rng=0, max_bytes=1)
    least = int(str(caught.value).split(" bytes")[0].split()[-1])
    assert bits(kmeans(x, 5, rng=0, max_bytes=least)) == reference(x, 5, rng=0)
    with pytest.raises(ValueError, match="`max_bytes`"):
        kmeans(x, 5, rng=0, max_bytes=least - 1)


@pytest.mark.parametrize("max_bytes", [60_000, None])
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_every_thread_count(backend, make, host, kernel, setting, threads, max_bytes):
    x, w = blobs(1000, 7, "float32"), sample_weights(1000)
    wanted = reference(x, 20, w, rng=2, max_iter=10)
    setting(spread=0, tile=1 << 11)  # that there be several tiles
    own = None
    if backend.library == "torch" and max_bytes is None:
        own = backend.xp.get_num_threads()
        backend.xp.set_num_threads(threads)
    options = {"rng": 2, "max_iter": 10, "max_bytes": max_bytes, "threads": threads}
    try:
        result = kmeans(make(x), 20, sample_weight=make(w), kernel=kernel, **options)
    finally:
        if own:
            backend.xp.set_num_threads(own)
    assert bits(result, host) == wanted


@pytest.mark.parametrize("n_d_k", [(800, 2, 30), (900, 20, 60), (300, 5, 12)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_with_and_without_bounds(backend, make, host, kernel, setting, n_d_k, dtype):
    n, d, k = n_d_k
    x, w = blobs(n, d, dtype), sample_weights(n)
    setting(bounds="off")
    wanted = reference(x, k, w, rng=4, tol=0)
    assert wanted["n_iter"] > 5  # else bounds skip nothing
    for bounds in ["off", "hamerly", "groups", "auto"]:
        setting(bounds=bounds)
        result = kmeans(make(x), k, sample_weight=make(w), rng=4, tol=0, kernel=kernel)
        assert bits(result, host) == wanted, bounds


@pytest.mark.parametrize("step", [2.0**-27, 2.0**-24, 2.0**-20, 1e-3, 0.3])
@pytest.mark.parametrize("n_d_k", [(600, 2, 10), (300, 20, 60)], ids=str)
def test_bounds_survive_long_walks(setting, n_d_k, step):
    """Steps below float32's resolution must still wear a bound down."""
    n, d, k = n_d_k
    rng = np.random.default_rng(9)
    x = np.round(rng.normal(size=(n, d)) * 64) / 64
    c = np.round(rng.normal(size=(k, d)) * 64) / 64  # many rows start near a tie
    moves = rng.normal(size=(k, d)) * step  # always the same way: nothing cancels
    matrix = Matrix.of(x, "numpy")

    def source(bounds, c):
        setting(bounds=bounds)
        return Rows(matrix, None, choose(x, "cpu")).start(c)

    skipping = {bounds: source(bounds, c) for bounds in ["hamerly", "groups"]}
    for _ in range(80):
        full = source("off", c)
        wanted = full.sweep(c).sums
        for bounds, run in skipping.items():
            setting(bounds=bounds)
            np.testing.assert_array_equal(run.sweep(c).sums, wanted, err_msg=bounds)
        c = c + moves


@pytest.mark.parametrize("bounds", ["hamerly", "groups"])
def test_bounds_survive_a_jump_after_many_tiny_steps(setting, bounds):
    """A float32 bound of 1 cannot hold a step of 2**-26, yet a thousand of them count."""
    x = np.array([[0.0], [0.5], [0.5], [0.5], [2.0]])  # ties, so that scores turn to float64
    path = [[0.0, 1.0], [1e-6, 1e-6]]
    path += [[1e-6, 1 - step * 2.0**-26] for step in range(1001)]
    path += [[1e-6, 5e-7]]  # now the centroid that crept up is the nearest to the first row
    sums = {}
    for which in ["off", bounds]:
        setting(bounds=which)
        rows = Rows(Matrix.of(x, "numpy"), None, choose(x, "cpu"))
        run = rows.start(np.array(path[0])[:, None])
        sums[which] = [run.sweep(np.array(c)[:, None]).sums for c in path][-1]
    np.testing.assert_array_equal(sums[bounds], sums["off"])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_order_of_rows(backend, make, host, kernel, dtype, weighted):
    x, w = blobs(500, 6, dtype), sample_weights(500)
    start = x[:9].copy()
    wanted = reference(x, 9, w if weighted else None, init=start)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(500)
        weight = make(w[order]) if weighted else None
        result = kmeans(make(x[order]), 9, sample_weight=weight, init=make(start), kernel=kernel)
        got = bits(result, host)
        labels = np.empty(500, dtype=np.int64)
        labels[order] = got.pop("labels")
        assert {**got, "labels": labels.tolist()} == wanted


def test_runs_repeat(backend, make, host, kernel):
    x = make(blobs(400, 4))
    first, second = (bits(kmeans(x, 6, rng=8, n_init=3, kernel=kernel), host) for _ in range(2))
    assert first == second
    draws = np.random.get_state()[1].tolist()
    kmeans(x, 6, rng=8, kernel=kernel)
    assert np.random.get_state()[1].tolist() == draws  # no global seed is touched


def test_an_int_and_its_generator_are_one_seed():
    x = blobs(300, 2)
    assert reference(x, 5, rng=3) == reference(x, 5, rng=np.random.default_rng(3))


LAYOUTS = {
    "fortran": np.asfortranarray,
    "every other row": lambda x: np.repeat(x, 2, axis=0)[::2],
    "every other column": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "backwards": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "transposed": lambda x: x.T.copy().T,
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "unaligned": lambda x: (
        np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape)
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["cpu", "agnostic"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_memory_layout(layout, name, dtype):
    x = blobs(200, 5, dtype)
    w = LAYOUTS[layout](np.stack([sample_weights(200)] * 2, axis=1))[:, 0]
    other = LAYOUTS[layout](x)
    np.testing.assert_array_equal(other, x)
    other.flags.writeable = False
    result = kmeans(other, 6, sample_weight=w, rng=0, kernel=name)
    assert bits(result) == reference(x, 6, sample_weights(200), rng=0)


def test_real_data(backend, make, host, real):
    x = real("cities_xyz")[::40]
    result = kmeans(make(x), 64, rng=0, max_iter=20)
    assert bits(result, host) == reference(x, 64, rng=0, max_iter=20)


def test_autocast_does_not_reach_the_labels():
    """Products in bfloat16 would break the bound behind certified labels."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = torch.as_tensor(blobs(600, 20, "float32"))
    plain = kmeans(x, 8, init=x[:8], kernel="torch", max_iter=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = kmeans(x, 8, init=x[:8], kernel="torch", max_iter=5)
    assert torch.equal(cast.centroids, plain.centroids)
    assert torch.equal(cast.labels, plain.labels)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:os.fork\\(\\) was called")  # by JAX, if it is there
def test_forking_while_another_thread_fits():
    """A child must not wait for a lock whose holder was not forked."""
    x = blobs(300, 3, "float64")
    wanted = kmeans(x, 4, rng=0).inertia
    stop = threading.Event()

    def fit_for_ever():
        while not stop.is_set():
            kmeans(x, 4, rng=0)

    thread = threading.Thread(target=fit_for_ever)
    thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                signal.alarm(30)  # a deadlock ends as a signal, not as a test that never ends
                os._exit(0 if kmeans(x, 4, rng=0).inertia == wanted else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("seconds", [0.05, 0.4, 1.2])
def test_forking_while_another_thread_is_in_its_first_call(tmp_path, seconds):
    """It imports first, then compiles; the child does both itself, from where the fork has found it."""
    code = f"""
import os, signal, threading, time
import anykmeans

def first_call():
    wanted = anykmeans.kmeans([[0.0], [2.0], [4.0]], 1, rng=0).inertia
    if anykmeans.kernels.why_not("numba", np.zeros((1, 1))) is None:
        from anykmeans.kernels.numba import steps
        steps.distances(np.zeros((2, 3)), np.zeros((2, 3)))
    return wanted

import numpy as np
thread = threading.Thread(target=first_call)
thread.start()
time.sleep({seconds})
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit(first_call() != 8)
print(os.waitpid(child, 0)[1])
thread.join()
"""
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert (done.stdout.split(), done.stderr) == (["0"], "")


def squared(a, b):
    """The squared distance of two rows, exact."""
    return sum((Fraction(float(u)) - Fraction(float(v))) ** 2 for u, v in zip(a, b, strict=True))


@pytest.mark.parametrize("span", [20, 130, 200, 290])
def test_an_answer_does_not_depend_on_the_company(backend, make, host, kernel, span):
    rng = np.random.default_rng(span)

    def wide(n):
        return rng.normal(size=(n, 2)) * 10.0 ** rng.uniform(-span, min(span, 150), size=(n, 1))

    for turn in range(6):
        x, c = wide(6), wide(4)
        x[0], x[1] = c[3] * 1.25, c[2] * 0.75
        if turn % 2:
            x[2], c[1] = 0.0, 0.0
        model = KMeans(4, kernel=kernel)
        model.cluster_centers_, model.n_features_in_ = make(c), 2
        together = [host(f(make(x))) for f in (model.predict, model.transform)]
        inertia = []
        for i, row in enumerate(x):
            one = make(row[None, :])
            alone = [host(f(one))[0] for f in (model.predict, model.transform)]
            assert alone[0] == together[0][i]
            np.testing.assert_allclose(together[1][i], alone[1], rtol=1e-6, atol=0)
            wanted = [squared(row, each) for each in c]
            assert wanted[alone[0]] <= min(wanted) * (1 + Fraction(1, 10**12))
            for found, each in zip(alone[1], wanted, strict=True):
                root = Fraction(math.isqrt(int(each * 10**680)), 10**340)
                assert abs(Fraction(float(found)) - root) <= root / 10**6
            inertia.append(float(min(wanted)))
            labels, distances = assign(one, make(c))
            assert host(labels)[0] == alone[0]
            np.testing.assert_allclose(host(distances)[0], inertia[-1], rtol=1e-9)
            assert -model.score(one) == host(distances)[0]
        np.testing.assert_allclose(-model.score(make(x)), math.fsum(inertia), rtol=1e-9)
        weighs = (np.abs(x).max(axis=1) < 1) * 1.0  # what is far has no say
        if weighs.any():
            wanted = math.fsum(w * each for w, each in zip(weighs, inertia, strict=True))
            score = model.score(make(x), sample_weight=make(weighs))
            np.testing.assert_allclose(-score, wanted, rtol=1e-9, atol=5e-324)


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e130])
def test_initial_centroids_of_any_size(backend, make, host, kernel, scale):
    """Out of reach of all rows, they are empty clusters; or all are, and the least far is nearest."""
    x = blobs(60, 3) * scale
    init = x[[0, 20, 40]].copy()
    plain = kmeans(make(x), 3, init=make(init), rng=0, kernel=kernel)
    init = np.concatenate([init, np.full((1, 3), 1e290)])
    with pytest.warns(ConvergenceWarning, match=r"\(3\) found smaller"):
        kept = kmeans(make(x), 4, init=make(init), empty="keep", kernel=kernel)
    np.testing.assert_array_equal(host(kept.centroids)[:3], host(plain.centroids))
    np.testing.assert_array_equal(host(kept.centroids)[3], init[3])
    np.testing.assert_array_equal(host(kept.labels), host(plain.labels))
    assert kept.inertia == plain.inertia
    moved = kmeans(make(x), 4, init=make(init), kernel=kernel)
    near = np.concatenate([init[:3], np.full((1, 3), 1e9 * scale)])
    assert bits(moved, host) == reference(x, 4, init=near)
    with pytest.raises(ValueError, match=r"^`empty`='error' and cluster 3"):
        kmeans(make(x), 4, init=make(init), empty="error", kernel=kernel)
    far = np.asarray([[1e200] * 3, [1e280] * 3])
    assert not host(assign(make(x), make(far))[0]).any()


@pytest.mark.parametrize(
    "columns", [(1.0, 1.0), (1e-200, 1e-200), (1.0, 1e-170), (1e140, 1e-300)], ids=str
)
def test_what_is_out_of_range_inside_is_no_error(kernel, columns, setting):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(90, 2)), np.exp(-rng.random((90, 2)) * 700)], axis=1)
    x[:, :2] *= columns
    w = np.exp(-rng.random(90) * 700)
    setting(spread=0)
    how = {"kernel": kernel, "threads": 3}

    def fit(init):
        result = kmeans(x, 4, init=init, rng=0, n_init=1, sample_weight=w, **how)
        model = KMeans(4, random_state=0, **how).fit(x)
        batches = MiniBatchKMeans(4, random_state=0, batch_size=20, **how).fit(x)
        batches.partial_fit(x, sample_weight=w)
        return [
            bits(result),
            *(m.transform(x).tobytes() for m in (model, batches)),
            *(m.predict(x).tobytes() for m in (model, batches)),
            *(m.score(x, sample_weight=w) for m in (model, batches)),
            model.as_sklearn().cluster_centers_.tobytes(),
            *(a.tobytes() for a in assign(x, x[:5], threads=3)),
            kmeans_plusplus(x, 4, random_state=0, threads=3)[1].tobytes(),
        ]

    for init in ("k-means++", "k-means||", "random"):
        wanted = fit(init)
        with np.errstate(all="raise"), warnings.catch_warnings():
            warnings.simplefilter("error")
            assert fit(init) == wanted
            assert set(np.geterr().values()) == {"raise"}
        with np.errstate(all="warn"), warnings.catch_warnings():
            warnings.simplefilter("error")
            assert fit(init) == wanted


def test_a_callable_runs_under_its_callers_errstate():
    x = blobs(50, 2)

    def init(x, k, rng):
        kmeans(x * 1e-200, k, init=x[:k] * 1e-200)  # public functions keep their word in there, too
        seen.append(np.geterr()["under"])
        np.float64(1e-200) * np.float64(1e-200)
        return x[:k]

    for under, error in [("ignore", None), ("raise", FloatingPointError)]:
        seen = []
        with np.errstate(under=under):
            with pytest.raises(error) if error else contextlib.nullcontext():
                kmeans(x, 3, init=init, n_init=1)
            assert np.geterr()["under"] == under
        assert seen == [under]
