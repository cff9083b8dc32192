"""JAX: nothing of it but its arrays, which come in and go out; with and without its dtypes of 64 bits."""

import numpy as np
import pytest

import anykmeans._libraries as arrays
from anykmeans import KMeans, MiniBatchKMeans, assign, kmeans, kmeans_plusplus

pytestmark = pytest.mark.only("jax")
NARROW = ["float32", "bfloat16", "float16", "int32", "uint8"]


def rows(dtype="float32"):
    x = np.random.default_rng(0).normal(size=(200, 3)) * 20
    return np.abs(x).astype("float32" if dtype == "bfloat16" else dtype)


def weights():
    return np.linspace(0.1, 1, 200)  # no float32 has these values


@pytest.fixture
def jax(backend):
    return pytest.importorskip("jax")


@pytest.fixture(params=["cpu", "elsewhere"])
def without_float64(request, jax, monkeypatch):
    """JAX as it comes: float64 and int64 are not there; on a CPU, and as if NumPy could not look at its memory."""
    if request.param == "elsewhere":
        monkeypatch.setattr(arrays, "_jax_on_cpu", lambda x: False)
    with jax.enable_x64(False):
        yield request.param


@pytest.mark.parametrize("dtype", NARROW)
def test_functions_without_float64(without_float64, make, host, dtype):
    given = make(rows(), dtype)
    x = host(given)
    ours = kmeans(given, 4, sample_weight=weights(), rng=0)
    theirs = kmeans(x, 4, sample_weight=weights(), rng=0)
    np.testing.assert_array_equal(ours.centroids, theirs.centroids.astype("float32"))
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert (ours.inertia, ours.n_iter) == (theirs.inertia, theirs.n_iter)
    assert (ours.centroids.dtype, ours.labels.dtype) == ("float32", "int32")
    assert ours.kernel.startswith("host:") == (without_float64 == "elsewhere")
    labels, distances = assign(given, ours.centroids)
    wanted = assign(x, np.asarray(ours.centroids))
    np.testing.assert_array_equal(labels, wanted[0])
    np.testing.assert_array_equal(distances, wanted[1].astype("float32"))
    centers, at = kmeans_plusplus(given, 4, random_state=0)
    np.testing.assert_array_equal(centers, kmeans_plusplus(x, 4, random_state=0)[0])
    assert (centers.device, at.device) == (given.device, given.device)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("cls", [KMeans, MiniBatchKMeans])
def test_estimators_without_float64(without_float64, make, host, cls, dtype):
    """What a fit keeps between its batches is kept in full."""
    given = make(rows(), dtype)
    options = {"random_state": 0, "n_init": 2, "tol": 1e-3, "init": "k-means||"}
    ours = cls(4, **options).fit(given, sample_weight=weights())
    theirs = cls(4, **options).fit(host(given), sample_weight=weights())
    np.testing.assert_array_equal(ours.cluster_centers_, theirs.cluster_centers_.astype("float32"))
    np.testing.assert_array_equal(ours.labels_, theirs.labels_)
    assert (ours.inertia_, ours.n_iter_) == (theirs.inertia_, theirs.n_iter_)
    assert ours.predict(given).dtype == "int32"
    assert ours.transform(given).dtype == "float32"


def test_a_stream_without_float64(without_float64, make):
    ours, theirs = (MiniBatchKMeans(4, random_state=0, reassignment_ratio=0.9) for _ in range(2))
    for batch in np.split(rows(), 10):
        ours.partial_fit(make(batch))
        theirs.partial_fit(batch)
    np.testing.assert_array_equal(ours.cluster_centers_, theirs.cluster_centers_)
    moved = theirs.to("jax").partial_fit(make(rows()))
    np.testing.assert_array_equal(
        moved.cluster_centers_, theirs.partial_fit(rows()).cluster_centers_
    )


def test_nothing_is_compiled(jax, make):
    x, b = make(rows()), make(rows().reshape(4, 50, 3))
    w, init = make(weights()), make(rows()[:4])
    uneven = rows("float64")
    uneven[:2] *= [[1e-80], [1e80]]  # which are measured by themselves
    uneven, far = make(uneven), make(uneven[:4])
    kmeans(x, 4, sample_weight=w, rng=0)  # the namespace is loaded, which compiles
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event)
    )
    try:
        kmeans(x, 4, sample_weight=w, init=init)
        kmeans(b, 4, rng=0)
        assign(x, init)
        assign(b, init)
        assign(uneven, far)
        KMeans(4, init=far, max_iter=2).fit(uneven).transform(uneven)
        for model in (KMeans(4, random_state=0), MiniBatchKMeans(4, random_state=0, tol=1e-3)):
            model.fit(x, sample_weight=w).transform(x)
            model.score(x, sample_weight=w)
            model.predict(x)
        MiniBatchKMeans(4, random_state=0).partial_fit(x)
    finally:
        jax.monitoring.clear_event_listeners()
    assert compiled == []


def test_where_results_go(jax, make):
    device = jax.devices()[1]
    mesh = jax.sharding.Mesh(np.asarray([device]), ("rows",))
    over = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
    for where in (device, over):
        x = jax.device_put(rows(), where)
        result = kmeans(x, 4, init=jax.device_put(rows()[:4], device))
        assert (result.centroids.device, result.labels.device) == (device, device)
        assert KMeans(4).fit(x).predict(x).device == device
    with pytest.raises(ValueError, match=r"(?s)^`init` must live where.*cpu:0.*cpu:1.*device_put"):
        kmeans(x, 4, init=make(rows()[:4]))


def test_arrays_of_numpy_beside_those_of_jax(make, host):
    """As in JAX's own functions; what is kept is JAX's."""
    x, w, c = make(rows()), weights(), rows()[:4]
    ours = kmeans(x, 4, sample_weight=w, init=c)
    np.testing.assert_array_equal(
        host(ours.centroids), kmeans(rows(), 4, sample_weight=w, init=c).centroids
    )
    assert type(ours.centroids) is type(assign(x, c)[0]) is type(x)
    assert type(KMeans(4, init=c).fit(x, sample_weight=w).cluster_centers_) is type(x)


def test_what_cannot_be_read_is_refused(jax, make):
    x, w, c = make(rows()), make(weights()), make(rows()[:4])
    outside = r"must be a dense array on one device; got a tracer.*outside of jax.jit"
    for name, call in {
        "x": lambda: jax.jit(lambda x: kmeans(x, 4).labels)(x),
        "sample_weight": lambda: jax.jit(lambda w: kmeans(x, 4, sample_weight=w).labels)(w),
        "init": lambda: jax.jit(lambda c: kmeans(x, 4, init=c).labels)(c),
        "centroids": lambda: jax.grad(lambda c: assign(x, c)[1].sum())(c),
        "X": lambda: jax.vmap(lambda x: KMeans(4).fit(x).labels_)(x[None]),
    }.items():
        with pytest.raises(TypeError, match=f"^`{name}` {outside}"):
            call()
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:2]), ("rows",))
    over = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
    with pytest.raises(TypeError, match=r"^`x` .*on 2 devices; gather it with `jax.device_put"):
        kmeans(jax.device_put(rows(), over), 4)
    with jax.enable_x64(False), pytest.raises(TypeError, match=r"^`sample_weight` .*64 bits"):
        kmeans(x, 4, sample_weight=w)


def test_keys_are_no_seeds(jax, make):
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        with pytest.raises(TypeError, match=r"(?s)^`rng` must be None, a seed.*jax.random.bits"):
            kmeans(make(rows()), 4, rng=key)
        assert kmeans(make(rows()), 4, rng=int(jax.random.bits(key))).centroids.shape == (4, 3)


def test_out_of_reach_of_numpy(make, host, monkeypatch):
    """On an accelerator XLA does the work, eagerly: slow to compile, but of the same bits."""
    monkeypatch.setattr(arrays, "_jax_on_cpu", lambda x: False)
    options = {"init": rows()[:4], "tol": 1e-3, "max_iter": 2}
    ours = kmeans(make(rows()), 4, **options | {"init": make(rows()[:4])})
    theirs = kmeans(rows(), 4, **options)
    assert ours.kernel == "agnostic"
    np.testing.assert_array_equal(host(ours.centroids), theirs.centroids)
    np.testing.assert_array_equal(host(ours.labels), theirs.labels)
    assert ours.inertia == theirs.inertia
    ours, theirs = (MiniBatchKMeans(4, batch_size=200, random_state=0, **options) for _ in range(2))
    ours.set_params(init=make(rows()[:4])).fit(make(rows()))
    theirs.fit(rows())
    np.testing.assert_array_equal(host(ours.cluster_centers_), theirs.cluster_centers_)
