"""The Triton kernels: NumPy's bits, on a GPU or, interpreted, on a CPU."""

import dataclasses
import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import referee

from anykmeans import assign, kmeans
from anykmeans._evaluate import evaluate
from anykmeans.kernels import why_not
from anykmeans.sources.rows import Rows

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
triton = pytest.importorskip("triton", reason="Triton is not installed")
tl = triton.language
GPU = torch.cuda.is_available()
if not GPU and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no GPU, and TRITON_INTERPRET is not 1", allow_module_level=True)
from anykmeans.kernels.triton.device import about  # noqa: E402
from anykmeans.kernels.triton.resolve import tile_of  # noqa: E402
from anykmeans.kernels.triton.screen import OPEN, STATES  # noqa: E402

if not GPU:
    import interpreting  # noqa: F401

ON = "cuda" if GPU else "cpu"
PASSES = 40 if GPU else 4  # which take the interpreter half a second each

# Triton's interpreter makes scalars of arrays of one entry, which NumPy 2.4 refuses.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0")
EMPTY = "ignore:Number of distinct clusters"


def tensor(a, dtype=None):
    t = torch.as_tensor(np.ascontiguousarray(a), device=ON)
    return t if dtype is None else t.to(getattr(torch, dtype))


def host(t):
    if isinstance(t, np.ndarray):
        return t
    t = t.cpu()
    return (t.float() if t.dtype == torch.bfloat16 else t).numpy()


def both(x, k, *, dtype=None, **options):
    """The bits of kmeans by the NumPy kernel and by the Triton kernel."""
    there = tensor(x, dtype)
    moved = {
        name: tensor(value) if isinstance(value, np.ndarray) else value
        for name, value in options.items()
    }
    # Without Triton, in half precision, too: on the tensor's own bits.
    theirs = kmeans(
        there.cpu(),
        k,
        kernel="cpu",
        **{n: getattr(v, "cpu", lambda v=v: v)() for n, v in moved.items()},
    )
    ours = kmeans(there, k, kernel="triton", **moved)
    assert ours.kernel == "triton"
    return referee.bits(theirs, host), referee.bits(ours, host)


def search(x, c, **options):
    """What has searched the rows `x` for the nearest of `c`."""
    rows = Rows.over(tensor(x), None, kernel="triton", **options)
    centroids = rows.matrix.asarray(c, rows.matrix.state_dtype)
    run = rows.start(centroids)
    run.labels(centroids)
    return run.search.passes


def data(kind, n, d, dtype="float32"):
    """Rows of one of the kinds that have misled others."""
    rng = np.random.default_rng(n + d)
    if kind == "uniform":
        x = rng.random((n, d))
    elif kind == "blobs":
        x = rng.normal(size=(8, d))[rng.integers(8, size=n)] * 10 + rng.normal(size=(n, d))
    elif kind == "offset":
        x = rng.normal(100, 1, (n, d))
    elif kind == "lattice":
        x = rng.integers(0, 3, (n, d)).astype(float)
    elif kind == "duplicates":
        x = rng.normal(size=(max(1, n // 8), d))[rng.integers(max(1, n // 8), size=n)]
    elif kind == "huge":
        x = rng.normal(size=(n, d))
        x[::7] *= 1e4
    else:
        x = rng.normal(size=(n, d)) * 10.0 ** rng.integers(-6, 6, (n, 1))
    return x.astype(dtype)


KINDS = ["uniform", "blobs", "offset", "lattice", "duplicates", "huge", "spread"]


def true_labels(x, c):
    """The labels that float64 differences give, ties to the lowest; see `referee`."""
    return assign(x.astype(np.float64), c.astype(np.float64))[0]


@pytest.fixture
def another_gpu(monkeypatch):
    """A GPU that fetches no tiles by descriptors."""
    from anykmeans.kernels.triton import device

    about = device.about
    monkeypatch.setattr(device, "about", lambda x: about(x)._replace(hopper=False))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("n", "d", "k"),
    [
        *[(1, 3, 1), (63, 17, 9), (123, 128, 70), (200, 24, 150), (100, 200, 20)],
        *([(40, 300, 70)] if GPU else []),  # interpreted, with products as wrong as can be, below
    ],
)
def test_labels_are_those_of_float64(kind, n, d, k):
    x = data(kind, n, d)
    c = x[np.random.default_rng(0).integers(n, size=k)] * np.float32(1 - 2**-12)
    np.testing.assert_array_equal(host(search(x, c).labels[0]), true_labels(x, c))


@pytest.mark.usefixtures("another_gpu")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("d", "k"), [(128, 70), (24, 150)])
def test_labels_on_another_gpu(kind, d, k):
    test_labels_are_those_of_float64(kind, 150, d, k)


@pytest.mark.parametrize("d", [1, 768, 1025])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_number_of_features(d, dtype):
    x = data("offset", 100, d, dtype)
    c = x[:13] + np.asarray(0.25, dtype)
    np.testing.assert_array_equal(host(search(x, c).labels[0]), true_labels(x, c))


def test_many_rows():
    x = data(
        "blobs", 65537 if GPU else 4099, 1
    )  # more than a grid's second axis, which no interpreter minds
    c = data("blobs", 9, 1)
    np.testing.assert_array_equal(host(search(x, c).labels[0]), true_labels(x, c))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int32", "uint8"])
@pytest.mark.parametrize("weighted", [False, True])
def test_bits_of_a_fit(dtype, weighted):
    rng = np.random.default_rng(1)
    x = np.round(
        np.clip(rng.normal(size=(300, 5)) * 20 + rng.choice([20, 60, 90], (300, 1)), 0, 127)
    )
    x = x + rng.integers(0, 4, x.shape) / 4 if "float" in dtype else x
    w = rng.lognormal(0, 2, 300) if weighted else None
    theirs, ours = both(
        x, 9, dtype=dtype, init="random", n_init=1, rng=0, sample_weight=w, max_iter=PASSES
    )
    assert ours == theirs


@pytest.mark.filterwarnings(EMPTY)
@pytest.mark.parametrize("empty", ["relocate", "keep"])
def test_bits_with_empty_clusters(empty):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(200, 2)).astype(np.float32)
    start = (rng.normal(size=(30, 2)) * 4).astype(np.float32)
    theirs, ours = both(x, 30, init=start, empty=empty, tol=0.0, max_iter=2 * PASSES)
    assert ours == theirs


@pytest.mark.parametrize("exponent", [-300, -130, -30, 0, 30, 100, 300])
def test_bits_at_every_scale(exponent):
    x = np.ldexp(data("blobs", 150, 3, "float64"), exponent)
    theirs, ours = both(x, 6, init=x[:6].copy(), max_iter=4)
    assert ours == theirs
    if -120 < exponent < 120:
        theirs, ours = both(x, 6, dtype="float32", init=x[:6].astype(np.float32), max_iter=4)
        assert ours == theirs


@pytest.mark.parametrize("max_bytes", [20_000, 200_000, None])
def test_a_small_budget_halves_rows_a_part_at_a_time(max_bytes):
    x = data("blobs", 500, 20)
    made = search(x, x[:5], max_bytes=max_bytes)
    assert made._kept == (max_bytes is None or max_bytes // 2 >= 500 * 32 * 2)
    theirs, ours = both(x, 5, init=x[:5].copy(), max_bytes=max_bytes, max_iter=3)
    assert ours == theirs


def test_half_precision_rows_are_read_where_they_are():
    x = data("uniform", 200, 16, "float16") - np.float16(0.5)
    made = search(x, x[:5])
    assert made._direct
    assert made._halves.data_ptr() == made._x.data_ptr()
    assert not search(x + np.float16(50), x[:5] + np.float16(50))._direct  # an offset is taken off
    theirs, ours = both(x, 5, init=x[:5].copy(), max_iter=5)
    assert ours == theirs


def test_rows_of_any_strides():
    x = data("blobs", 160, 12)
    wide = tensor(np.repeat(np.ascontiguousarray(x.T), 2, axis=1))[:, ::2].T
    assert wide.stride() == (2, 320)
    ours = kmeans(wide, 4, rng=0, kernel="triton")
    assert referee.bits(ours, host) == referee.bits(kmeans(x, 4, rng=0, kernel="cpu"))


def test_rows_far_apart_in_memory():
    memory = torch.empty(
        (1 << 31) + 16, dtype=torch.uint8, device=ON
    )  # hardly any of it is touched
    x = memory.as_strided((2, 3), (1 << 31, 1))
    x.copy_(tensor(np.asarray([[1, 2, 3], [9, 8, 7]]), "uint8"))
    ours = kmeans(x, 2, rng=0, kernel="triton")
    assert ours.inertia == 0
    assert host(ours.centroids).sum() == 30


def test_nothing_is_left_to_what_memory_held(monkeypatch):
    empty = torch.empty

    def poisoned(*shape, **options):
        made = empty(*shape, **options)
        return made.fill_(torch.nan if made.is_floating_point() else -7)

    x = data("duplicates", 150, 20)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", poisoned)
        theirs, ours = both(x, 12, init=x[:12].copy(), max_iter=4)
        assert ours == theirs


def test_few_rows_need_a_second_look():
    x = data("uniform", 400, 128)
    made = search(x, x[:64].copy())
    assert made._state.cpu()[0, OPEN.value] < 50


@pytest.mark.skipif(GPU, reason="the sums of tensor cores are what they are")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d", "k"), [(120, 60, 40), (120, 60, 80), (40, 300, 70)])
def test_products_as_wrong_as_the_bound_allows_change_no_label(monkeypatch, kind, n, d, k):
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    rng, calls = np.random.default_rng(0), []

    def wrong(self, a, b, d, *options):
        left, right = a.data.astype(np.float64), b.data.astype(np.float64)
        norms = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=0)
        # What products are added to is a partial sum, too; the last rounding is the interpreter's.
        most = (left.shape[1] + 15) * lost * (norms + np.abs(d.data))
        calls.append(1)
        found = left @ right + d.data + rng.choice([-1, 1], size=norms.shape) * most
        return TensorHandle(found.astype(np.float32), d.dtype)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", wrong)
    x = data(kind, n, d)
    lost = about(tensor(x)).lost
    c = x[np.random.default_rng(0).integers(n, size=k)] * np.float32(1 - 2**-12)
    np.testing.assert_array_equal(host(search(x, c).labels[0]), true_labels(x, c))
    assert calls


def test_fast_takes_the_lowest_score():
    x = data("blobs", 300, 8)
    ours = kmeans(tensor(x), 8, init=tensor(x[:8]), precision="fast", kernel="triton")
    exact = kmeans(tensor(x), 8, init=tensor(x[:8]), kernel="triton")
    assert ours.precision == "fast"
    assert ours.inertia == pytest.approx(exact.inertia, rel=1e-4)


def test_why_it_cannot_run():
    assert (
        why_not("triton", np.zeros((3, 2)))
        == "the rows are numpy on cpu, neither a tensor nor a CuPy array"
    )
    assert (
        why_not("triton", torch.zeros((3, 2), dtype=torch.bool, device=ON))
        == "the rows are of dtype bool"
    )
    assert why_not("triton", torch.zeros((1, (1 << 16) + 1), device=ON)) is not None
    assert why_not("triton", torch.zeros((3, 2), device=ON)) is None


def test_a_cpu_tensor_is_not_interpreted_unasked():
    assert kmeans(torch.zeros((3, 2)) + torch.arange(3)[:, None], 2).kernel != "triton"


def each(result):
    """The bits of each problem of a batch."""
    names = ("centroids", "labels", "inertia", "n_iter", "converged")
    return [
        referee.bits(dataclasses.replace(result, **{n: getattr(result, n)[i] for n in names}), host)
        for i in range(len(result.inertia))
    ]


@pytest.fixture
def launched(monkeypatch):
    """How many problems each run of passes was of."""
    from anykmeans.kernels.triton import passes

    found, run = [], passes.Passes._run
    monkeypatch.setattr(
        passes.Passes, "_run", lambda self, n: (found.append(self._b), run(self, n))
    )
    return found


@pytest.mark.filterwarnings(EMPTY)
@pytest.mark.parametrize("init", ["random", "given"])
def test_a_batch_shares_its_launches(monkeypatch, launched, init):
    from anykmeans.kernels.triton import passes

    x = np.stack([data(kind, 90, 3, "float64") for kind in KINDS[::2]])
    options = {"rng": 0, "n_init": 2, "max_iter": PASSES, "init": init}
    if init == "given":  # far away: clusters are empty at first
        options["init"] = np.stack([rows[:7] for rows in x]) * np.linspace(1, 9, 7)[:, None]
    theirs = kmeans(x, 7, kernel="cpu", **options)
    settled, settle = [], passes.Passes.relabel
    monkeypatch.setattr(
        passes.Passes, "relabel", lambda self, cs: (settled.append(len(cs)), settle(self, cs))
    )
    if init == "given":
        options["init"] = tensor(options["init"])
    ours = kmeans(tensor(x), 7, kernel="triton", **options)
    assert each(ours) == each(theirs)
    assert launched.count(len(x)) >= (2 if init == "random" else 1)
    assert settled.count(len(x)) == (2 if init == "random" else 1)  # at the end of each run


@pytest.mark.filterwarnings(EMPTY)
@pytest.mark.parametrize(("b", "n_init"), [(3, 1), (3, 2), (1, 3)])
@pytest.mark.parametrize("weighted", [False, True])
def test_picks_share_their_launches(monkeypatch, b, n_init, weighted):
    from anykmeans.kernels.triton import seeding

    x = np.stack([data(kind, 70, 3) * (1 + i) for i, kind in enumerate(KINDS[:b])])
    w = np.random.default_rng(0).exponential(size=(b, 70)) if weighted else None
    options = {"rng": 0, "n_init": n_init, "max_iter": 2}
    theirs = kmeans(x, 6, kernel="cpu", sample_weight=w, **options)
    made, run = [], seeding.Seeds.run
    monkeypatch.setattr(seeding.Seeds, "run", lambda self: (made.append(self.b), run(self))[1])
    there = tensor(x), None if w is None else tensor(w)
    if b > 1:
        ours = kmeans(there[0], 6, kernel="triton", sample_weight=there[1], **options)
        assert each(ours) == each(theirs)
        assert made == [b] * n_init
    else:
        own = None if w is None else there[1][0]
        ours = kmeans(there[0][0], 6, kernel="triton", sample_weight=own, **options)
        assert [referee.bits(ours, host)] == each(theirs)
        assert made == [n_init]


@pytest.mark.filterwarnings(EMPTY)
@pytest.mark.parametrize("init", ["k-means++", "given"])
@pytest.mark.parametrize("weighted", [False, True])
def test_ragged_problems_share_launches_where_neighbours_are_as_large(launched, init, weighted):
    sizes, ks = [40, 40, 25, 25, 25, 40], [5, 5, 3, 3, 4, 5]
    x = data("blobs", sum(sizes), 3)
    ends = np.cumsum(sizes)[:-1]
    w = np.random.default_rng(0).exponential(size=len(x)) if weighted else None
    options = {"rng": 0, "max_iter": 3, "init": init}
    if init == "given":  # of several dtypes, which no launch shares
        cs = [rows[:k] + 0.1 for rows, k in zip(np.split(x, ends), ks, strict=True)]
        options["init"] = [c.astype("float64" if i == 1 else "float32") for i, c in enumerate(cs)]
    theirs = kmeans(x, ks, lengths=sizes, kernel="cpu", sample_weight=w, **options)
    moved = None if w is None else tensor(w)
    if init == "given":
        options["init"] = [tensor(c) for c in options["init"]]
    ours = kmeans(tensor(x), ks, lengths=sizes, kernel="triton", sample_weight=moved, **options)
    assert ours.kernel == "triton"
    np.testing.assert_array_equal(host(ours.labels), theirs.labels)
    for mine, wanted in zip(ours.centroids, theirs.centroids, strict=True):
        assert host(mine).tobytes() == wanted.tobytes()
    for name in ("inertia", "n_iter", "converged"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert set(launched) == {1, 2}
    launched.clear()
    if init == "k-means++":
        apart = [tensor(rows) for rows in np.split(x, ends)]
        weights = None if w is None else [tensor(rows) for rows in np.split(w, ends)]
        listed = kmeans(apart, ks, kernel="triton", sample_weight=weights, **options)
        assert set(launched) == {1}
        np.testing.assert_array_equal(listed.inertia, theirs.inertia)
        assert np.concatenate(list(map(host, listed.labels))).tobytes() == theirs.labels.tobytes()


def test_a_k_for_each_problem_of_a_batch(launched):
    x = np.stack([data(kind, 50, 3) for kind in KINDS[:4]])
    options = {"rng": 0, "max_iter": 2}
    theirs = kmeans(x, [3, 4, 4, 4], kernel="cpu", **options)
    ours = kmeans(tensor(x), [3, 4, 4, 4], kernel="triton", **options)
    np.testing.assert_array_equal(host(ours.labels), theirs.labels)
    for mine, wanted in zip(ours.centroids, theirs.centroids, strict=True):
        assert host(mine).tobytes() == wanted.tobytes()
    assert set(launched) == {1, 3}


@pytest.mark.parametrize(("k", "shift"), [(4, -0.5), (4, 3), (70, -0.5)])  # as they are, or rounded
def test_a_batch_in_half_precision_with_weights(k, shift):
    x = np.stack([data("uniform", 90 + i, 16)[:90] + shift for i in range(3)]).astype(np.float16)
    w = np.random.default_rng(0).random((3, 90))
    options = {"rng": 0, "max_iter": 2, "init": "random", "n_init": 1}
    theirs = kmeans(x, k, kernel="cpu", sample_weight=w, **options)
    ours = kmeans(tensor(x), k, kernel="triton", sample_weight=tensor(w), **options)
    assert each(ours) == each(theirs)


@pytest.mark.parametrize(("room", "parts"), [(None, {5}), (2, {2, 1})])
@pytest.mark.parametrize("weighted", [False, True])
def test_restarts_share_their_launches(launched, room, parts, weighted):
    x = data("offset", 120, 3)
    w = np.random.default_rng(0).lognormal(0, 2, 120) if weighted else None
    theirs, ours = both(
        x,
        4,
        init="random",
        n_init=5,
        rng=0,
        sample_weight=w,
        max_iter=PASSES,
        max_bytes=room and room * (120 * (40 if weighted else 32) + 100 * 4 * 3),
    )
    assert ours == theirs
    assert set(launched) >= parts


def test_of_restarts_as_good_the_first_is_returned(launched):
    x = np.asarray([[0], [1], [10], [11]] * 3, np.float32)
    for seed in range(2):  # all end in one of two orders of the same clusters
        theirs, ours = both(x, 2, init="random", n_init=4, rng=seed)
        assert ours == theirs
    assert 4 in launched


@pytest.mark.filterwarnings(EMPTY)
def test_restarts_that_lie_far_apart():
    x = data("blobs", 60, 2)
    scales = [1, 1e35, 3, 1e-3]  # by which the frames differ

    def init():
        left = iter(scales)
        return lambda rows, k, rng: rows[:k] * next(left)

    theirs, ours = (
        kmeans(rows, 3, init=init(), n_init=4, empty="keep", max_iter=3, kernel=kernel)
        for rows, kernel in ((x, "cpu"), (tensor(x), "triton"))
    )
    assert referee.bits(ours, host) == referee.bits(theirs)


@pytest.mark.filterwarnings(EMPTY)
def test_an_outlier_beyond_reach_is_given_back():
    x = np.stack([data("blobs", 40, 2, "float64"), data("uniform", 40, 2, "float64")])
    c = x[:, :3].copy()
    c[1, 2] = 1e250, -1e200
    theirs = kmeans(x, 3, init=c, empty="keep", max_iter=3, kernel="cpu")
    ours = kmeans(tensor(x), 3, init=tensor(c), empty="keep", max_iter=3, kernel="triton")
    assert each(ours) == each(theirs)
    assert ours.centroids[1, 2, 0] == 1e250


def test_given_centroids_must_fit_their_dtype():
    x = tensor(np.stack([data("blobs", 40, 2)] * 3))
    c = x[:, :3].to(torch.float64)
    c[2, 0, 0] = 1e300
    with pytest.raises(
        ValueError, match=r"^`init` must fit the dtype of the centroids, float32"
    ) as caught:
        kmeans(x, 3, init=c, kernel="triton")
    assert caught.value.__notes__ == ["This was while clustering `x[2]`."]
    c[2, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"^`init\[2\]` must be finite"):
        kmeans(x, 3, init=c, kernel="triton")


@pytest.mark.skipif(not GPU, reason="no GPU: nothing to stream to")
def test_a_stream_of_its_own():
    x = data("blobs", 5000, 16)
    there = tensor(x)
    with torch.cuda.stream(torch.cuda.Stream()):
        ours = kmeans(there * 2, 9, rng=0)  # made on that stream, too
    assert referee.bits(ours, host) == referee.bits(kmeans(x * 2, 9, rng=0))


@pytest.mark.skipif(not GPU, reason="no GPU: nothing to stream to")
def test_two_problems_on_two_streams():
    xs = [data(kind, 20_000, 32) for kind in ("blobs", "uniform")]
    theirs = [referee.bits(kmeans(x, 90, rng=0, max_iter=20)) for x in xs]
    there = [tensor(x) for x in xs]
    torch.cuda.synchronize()

    def clustered(x):
        with torch.cuda.stream(torch.cuda.Stream()):
            return referee.bits(kmeans(x, 90, rng=0, max_iter=20), host)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(clustered, there)) == theirs


@pytest.mark.skipif(not GPU, reason="no GPU: `torch.compile` is tested on a CPU with its kernels")
def test_called_by_what_is_compiled():
    x = data("blobs", 3000, 16)

    def clustered(t):
        return kmeans(t + 0.0, 9, rng=0).centroids

    theirs = kmeans(x, 9, rng=0).centroids
    compiled = torch.compile(clustered, backend="eager")
    np.testing.assert_array_equal(host(compiled(tensor(x))), theirs)


@pytest.mark.skipif(not GPU or torch.cuda.device_count() < 2, reason="no second GPU")
def test_a_tensor_of_another_gpu():
    x = data("blobs", 5000, 16)
    ours = kmeans(tensor(x).to("cuda:1"), 9, rng=0)
    assert ours.labels.device.index == 1
    assert torch.cuda.current_device() == 0
    assert referee.bits(ours, host) == referee.bits(kmeans(x, 9, rng=0))


@pytest.mark.skipif(not GPU, reason="no GPU: nothing to wait for")
def test_a_pass_does_not_wait_for_the_host():
    x = data("blobs", 5000, 16)
    rows = Rows.over(tensor(x), None, kernel="triton")
    c = rows.rows(slice(0, 9))
    run = rows.start(c)
    run.steps(c, 2, 0.0, "relocate")
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it does not see all there is to wait for, and says so
        torch.cuda.set_sync_debug_mode("error")
    try:
        run.search.passes._pass()
    finally:
        torch.cuda.set_sync_debug_mode(mode)


@pytest.mark.parametrize("max_iter", [3, PASSES] if GPU else [3])  # launches, and a graph's replay
def test_twice_the_same_bits(max_iter):
    x = tensor(data("uniform", 3000 if GPU else 200, 20))
    runs = [
        kmeans(x, 8, init="random", n_init=1, rng=3, max_iter=max_iter, kernel="triton")
        for _ in range(2)
    ]
    assert referee.bits(runs[0], host) == referee.bits(runs[1], host)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_what_is_not_finite_is_refused(bad, dtype):
    x = data("uniform", 40, 70)
    x[31, 66] = bad
    what = "NaN" if np.isnan(bad) else "infinity"
    with pytest.raises(ValueError, match=rf"`x` must be finite; got {what} .* in feature 66"):
        kmeans(tensor(x, dtype), 2, kernel="triton")


def test_magnitudes_and_costs_are_those_of_the_standard():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(3000, 3)) * [1e-200, 1, 1e200], rng.lognormal(0, 5, 3000)
    x[rng.random(x.shape) < 0.3] = 0
    w[::3] = 0
    there = Rows.over(tensor(x), tensor(w), kernel="triton")
    here = Rows.over(x, w, kernel="cpu")
    assert (here.grid.scale == there.grid.scale).all()
    assert (here.grid.folds, here.largest) == (there.grid.folds, there.largest)

    def cost(rows, distances):
        return float(rows.kernel.cost(rows, rows.frame(), distances))

    weights = there.weights, here.weights
    for scale in (1.0, 1e-20, 1e-300, 1e-318, 0.0):
        distances = rng.random(3000) ** 9 * scale
        assert cost(there, tensor(distances)) == cost(here, distances)
        there.weights, here.weights = None, None
        assert cost(there, tensor(distances)) == cost(here, distances)
        there.weights, here.weights = weights


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_given_centroids_keep_their_digits(dtype):
    x = data("offset", 300, 3, dtype)
    c = x[:20].astype(np.float64) + 1 / 3
    theirs = evaluate(x, c, kernel="cpu")
    ours = evaluate(tensor(x), tensor(c), kernel="triton")
    np.testing.assert_array_equal(host(ours[0]), theirs[0])
    np.testing.assert_array_equal(host(ours[1]), theirs[1])
    assert ours[2] == theirs[2]


@pytest.mark.parametrize("max_bytes", [200_000, 2_000_000])
def test_memory_is_labels_lists_and_a_workspace(max_bytes):
    n, d, k = 4000, 30, 40
    rows = Rows.over(tensor(data("uniform", n, d)), None, kernel="triton", max_bytes=max_bytes)
    c = rows.rows(slice(0, k))
    run = rows.start(c)
    run.steps(c, 1, 0.0, "relocate")
    held = [a for a in vars(run.search.passes).values() if isinstance(a, torch.Tensor)]
    used = sum(a.nbytes for a in held if a.data_ptr() != rows.matrix.data.data_ptr())
    centroids = k * d * 100  # in two halves, two buffers, and sums by fold
    assert used < max_bytes + 24 * n + centroids  # n x k scores in half precision would be 80 n


def test_equal_centroids_go_by_the_lowest_label():
    x = data("blobs", 90, 5)
    c = np.repeat(x[:4], [1, 2, 3, 12], axis=0)  # as many as are listed that tie, and more
    np.testing.assert_array_equal(host(search(x, c).labels[0]), true_labels(x, c))
    assert set(host(search(x, c).labels[0]).tolist()) <= {0, 1, 3, 6}


@pytest.mark.parametrize("n", [1, 2, 3])
def test_sums_of_few_rows_with_all_their_digits(n):
    x = np.ldexp(np.random.default_rng(n).random((n, 3)) + 1, [0, 20, -40])
    theirs, ours = both(x, 1, init=x[:1].copy(), sample_weight=np.full(n, 1 + 2.0**-52))
    assert ours == theirs


@triton.jit
def find(counts, b, found, ROWS: tl.constexpr):
    """Write which problem, and which place of its list, a tile begins with."""
    tile = tl.program_id(0)
    problem, start = tile_of(counts, b, tile, ROWS)
    tl.store(found + 2 * tile, problem)
    tl.store(found + 2 * tile + 1, start)


def test_lists_of_many_problems_end_to_end():
    b = 300
    counts = np.random.default_rng(0).integers(0, 5, b) * 20
    counts[[0, 127, 128, 299]] = 0, 0, 64, 33
    states = torch.zeros((b, STATES.value), dtype=torch.int64, device=ON)
    states[:, 0] = torch.as_tensor(counts, device=ON)
    tiles = [(i, start) for i in range(b) for start in range(0, counts[i], 64)]
    found = torch.zeros((len(tiles) + 1, 2), dtype=torch.int32, device=ON)
    find[(len(tiles) + 1,)](states, b, found, ROWS=64)
    assert [tuple(row) for row in found[:-1].tolist()] == tiles
    assert found[-1, 0] == b
