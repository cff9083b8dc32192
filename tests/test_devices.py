"""Devices without float64: rows there are worked on in host memory, and all goes back, the same bits."""

import re

import numpy as np
import pytest

from anykmeans import KMeans, MiniBatchKMeans, assign, kernels, kmeans, kmeans_plusplus
from anykmeans import _libraries as arrays
from anykmeans._libraries import device_of, dtype_name, has_float64, library_of, where_is

NARROW = ["float32", "float16", "int32", "uint8", "bool"]


class Strict:
    """The device of array-api-strict that has no float64."""

    def __init__(self):
        self.xp = pytest.importorskip("array_api_strict", minversion="2.5")
        if np.lib.NumpyVersion(np.__version__) < "2.0.0":
            pytest.skip("array-api-strict needs NumPy 2")
        self.library, self.device = "array_api_strict", self.xp.Device("no_float64")

    def make(self, a):
        if a.dtype == np.float16:
            pytest.skip("array-api-strict has no float16")
        return self.xp.asarray(a, device=self.device)

    def host(self, a):
        return np.asarray(a.to_device(self.xp.Device("CPU_DEVICE")))


class Tensors:
    """A device of PyTorch that is pretended, see `pretending`."""

    library, device = "torch", "single:0"

    def make(self, a):
        import torch

        return torch.as_tensor(a, device=self.device)

    def host(self, a):
        a = a.cpu()
        return (a.float() if dtype_name(a) == "bfloat16" else a).numpy()


@pytest.fixture
def torch_device():
    pytest.importorskip("torch")
    pytest.importorskip("torch._C._acc", reason="this PyTorch has no devices written in Python")
    from tests.pretending import Device

    with Device(Tensors.device):
        yield Tensors()


@pytest.fixture(params=["array_api_strict", "torch"])
def device(request):
    return (
        Strict() if request.param == "array_api_strict" else request.getfixturevalue("torch_device")
    )


def rows(dtype="float32", shape=(300, 3)):
    x = np.random.default_rng(0).normal(size=shape) * 20
    return (x > 5) if dtype == "bool" else np.abs(x).astype(dtype)


def weights(shape=(300,)):
    return np.linspace(0.1, 1, np.prod(shape)).reshape(shape)  # no float32 has these values


def same(ours, theirs, device):
    """Assert that an array is where it belongs, and what NumPy has, rounded to float32."""
    assert where_is(ours) == f"{device.library} on {device.device}"
    wanted = theirs.astype("float32") if theirs.dtype == np.float64 else theirs
    found = device.host(ours)
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


def test_that_the_devices_are_as_they_should_be(device):
    x = device.make(rows())
    assert not has_float64(x)
    assert library_of(x) == device.library
    assert str(device_of(x)) == str(device.device)
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        device.make(rows("float64"))
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        np.asarray(x)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("init", ["k-means++", "k-means||", "random"])
def test_kmeans(device, dtype, init):
    x = rows(dtype)
    given = device.make(x)
    options = {"sample_weight": weights().tolist(), "init": init, "n_init": 2, "rng": 0}
    ours, theirs = kmeans(given, 4, **options), kmeans(x, 4, **options)
    same(ours.centroids, theirs.centroids, device)
    same(ours.labels, theirs.labels, device)
    assert (ours.inertia, ours.n_iter, ours.converged) == (
        theirs.inertia,
        theirs.n_iter,
        theirs.converged,
    )
    same(given, x, device)  # as it was


def test_bfloat16(torch_device):
    import torch

    x = torch.tensor(rows()).bfloat16()
    ours, theirs = kmeans(x.to(torch_device.device), 4, rng=0), kmeans(x, 4, rng=0)
    same(ours.centroids, theirs.centroids.numpy(), torch_device)
    same(ours.labels, theirs.labels.numpy(), torch_device)


@pytest.mark.parametrize("name", kernels.TABLE)
def test_the_kernel_says_so(device, name):
    x = device.make(rows())
    if name in ("triton", "torch", "cupy"):
        with pytest.raises(ValueError, match=rf"(?s)^`kernel`='{name}' cannot run here"):
            kmeans(x, 4, rng=0, kernel=name)
        return
    if (reason := kernels.why_not(name, x)) is not None:
        pytest.skip(reason)
    result, theirs = (kmeans(a, 4, rng=0, kernel=name) for a in (x, rows()))
    assert (result.kernel, theirs.kernel) == (f"host:{name}", name)
    same(result.labels, theirs.labels, device)
    same(result.centroids, theirs.centroids, device)
    model = MiniBatchKMeans(4, random_state=0, kernel=name)
    assert model.fit(x).kernel_ == f"host:{name}"
    assert model.partial_fit(x).kernel_ == f"host:{name}"


def test_the_kernel_that_is_chosen(device):
    assert re.fullmatch(r"host:\w+(\+host:\w+)*", kmeans(device.make(rows()), 4, rng=0).kernel)
    assert "worked on in host memory" in kernels.why_not("torch", device.make(rows())) or (
        device.library != "torch"
    )


def test_a_batch(device):
    x, w = rows(shape=(5, 60, 3)), weights((5, 60)).astype("float32")
    options = {"rng": 0, "init": "random"}
    ours = kmeans(device.make(x), 4, sample_weight=device.make(w), **options)
    theirs = kmeans(x, 4, sample_weight=w, **options)
    for name in ("centroids", "labels"):
        same(getattr(ours, name), getattr(theirs, name), device)
    np.testing.assert_array_equal(ours.inertia, theirs.inertia)
    for c in (theirs.centroids, theirs.centroids[0]):
        for found, wanted in zip(assign(device.make(x), device.make(c)), assign(x, c), strict=True):
            same(found, wanted, device)
    given = kmeans(device.make(x), 4, init=device.make(theirs.centroids), max_iter=1)
    wanted = kmeans(x, 4, init=theirs.centroids, max_iter=1)
    same(given.centroids, wanted.centroids, device)


def test_problems_of_any_sizes(device):
    x, w, ks, lengths = rows(), weights().astype("float32"), [4, 2, 5], [100, 30, 170]
    xs, ws = np.split(x, [100, 130]), np.split(w, [100, 130])
    theirs = kmeans(xs, ks, sample_weight=ws, rng=0)
    there = [device.make(a) for a in xs], [device.make(a) for a in ws]
    listed = kmeans(there[0], ks, sample_weight=there[1], rng=0)
    ours = kmeans(device.make(x), ks, lengths=lengths, sample_weight=device.make(w), rng=0)
    same(ours.labels, np.concatenate(theirs.labels), device)
    for i in range(3):
        same(listed.labels[i], theirs.labels[i], device)
        for result in (listed, ours):
            same(result.centroids[i], theirs.centroids[i], device)
    for result in (listed, ours):
        assert result.kernel.startswith("host:")
        np.testing.assert_array_equal(result.inertia, theirs.inertia)
    one = kmeans(device.make(x), 3, lengths=lengths, rng=0)
    same(one.centroids, kmeans(x, 3, lengths=lengths, rng=0).centroids, device)
    cs = theirs.centroids
    wanted = [np.concatenate(each) for each in assign(xs, cs)]
    for found, each in zip(
        assign(device.make(x), [device.make(c) for c in cs], lengths=lengths), wanted, strict=True
    ):
        same(found, each, device)


def test_given_centroids(device):
    """A callable's are looked for where the rows are; those in NumPy keep bits that the device has not."""
    x = rows()
    start = x[:4].astype("float64") + 1e-9
    wide, narrow = (kmeans(x, 4, init=c, max_iter=1) for c in (start, start.astype("float32")))
    same(kmeans(device.make(x), 4, init=start, max_iter=1).centroids, wide.centroids, device)
    seen = []

    def init(x, k, rng):
        seen.append(where_is(x))
        return device.make(start.astype("float32"))

    same(
        kmeans(device.make(x), 4, init=init, n_init=1, max_iter=1).centroids,
        narrow.centroids,
        device,
    )
    assert seen == [f"{device.library} on {device.device}"]


def test_assign(device):
    """Rows far smaller than the largest, too, which are measured by themselves."""
    x = rows()
    x[:50] *= np.float32(1e-37)
    x[50:60] *= np.float32(1e36)
    c = x[40:60:5].copy()
    with np.errstate(over="ignore"):  # squared distances that no float32 holds are infinite
        for found, wanted in zip(assign(device.make(x), device.make(c)), assign(x, c), strict=True):
            same(found, wanted, device)
    model = KMeans(4, init=c, max_iter=1).fit(x)
    moved = model.to(device.make(x))
    same(moved.predict(device.make(x)), model.predict(x), device)


def test_kmeans_plusplus(device):
    x = rows()
    for w in (None, weights().tolist()):
        options = {"random_state": 0, "sample_weight": w}
        ours, theirs = (kmeans_plusplus(a, 5, **options) for a in (device.make(x), x))
        for found, wanted in zip(ours, theirs, strict=True):
            same(found, wanted, device)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("cls", [KMeans, MiniBatchKMeans])
def test_estimators(device, cls, dtype):
    x = rows(dtype)
    given = device.make(x)
    options = {"random_state": 0, "n_init": 2, "tol": 1e-3, "init": "random"}
    ours = cls(4, **options).fit(given, sample_weight=weights())
    theirs = cls(4, **options).fit(x, sample_weight=weights())
    same(ours.cluster_centers_, theirs.cluster_centers_, device)
    same(ours.labels_, theirs.labels_, device)
    assert (ours.inertia_, ours.n_iter_) == (theirs.inertia_, theirs.n_iter_)
    # From here on by the centroids that the device has.
    theirs.cluster_centers_ = device.host(ours.cluster_centers_)
    same(ours.predict(given), theirs.predict(x), device)
    np.testing.assert_allclose(
        device.host(ours.transform(given)), theirs.transform(x), rtol=1e-5, atol=1e-4
    )
    assert ours.score(given) == theirs.score(x)


def test_a_stream(device):
    ours, theirs = (MiniBatchKMeans(4, random_state=0, reassignment_ratio=0.9) for _ in range(2))
    for i, batch in enumerate(np.split(rows(), 10)):
        w = weights()[i * 30 : i * 30 + 30]
        ours.partial_fit(device.make(batch), sample_weight=w)
        theirs.partial_fit(batch, sample_weight=w)
    same(ours.cluster_centers_, theirs.cluster_centers_, device)
    same(ours.labels_, theirs.labels_, device)


def test_models_move_there_and_back(device):
    model = KMeans(4, random_state=0).fit(rows("float64"))
    there = model.to(device.make(rows()))
    same(there.cluster_centers_, model.cluster_centers_, device)
    back = there.to("numpy")
    np.testing.assert_array_equal(back.cluster_centers_, model.cluster_centers_.astype("float32"))


@pytest.mark.parametrize("cls", [KMeans, MiniBatchKMeans])
def test_states_of_models_there(device, cls):
    """The sums of a stream, which are float64, stay in host memory."""
    x = device.make(rows())
    model = cls(4, random_state=0).fit(x)
    again = cls.from_state_dict(model.state_dict())
    for name in ("cluster_centers_", "labels_"):
        same(getattr(again, name), device.host(getattr(model, name)), device)
    if cls is MiniBatchKMeans:
        same(again.partial_fit(x).labels_, device.host(model.partial_fit(x).labels_), device)


def test_a_tensor_moves_there(torch_device):
    import torch

    model = KMeans(4, random_state=0).fit(torch.tensor(rows("float64")))
    there = model.to("torch", torch_device.device)
    same(there.cluster_centers_, model.cluster_centers_.numpy(), torch_device)


def test_rows_are_copied_once(torch_device):
    from tests.pretending import Elsewhere

    x = torch_device.make(rows())
    c = x[:4]
    for work in (
        lambda: kmeans(x, 4, rng=0, n_init=3),
        lambda: assign(x, c),
        lambda: kmeans_plusplus(x, 4, random_state=0),
        lambda: MiniBatchKMeans(4, random_state=0).fit(x),
    ):
        before = Elsewhere.copied
        work()
        assert Elsewhere.copied - before < 1.1 * rows().nbytes


def test_what_lives_elsewhere_is_refused(device):
    x = device.make(rows())
    other = KMeans(4, random_state=0).fit(rows())
    with pytest.raises(ValueError, match=r"(?s)Move the estimator:\n    km = km.to"):
        other.predict(x)
    if device.library == "torch":
        import torch

        with pytest.raises(ValueError, match=r"^`init` must live where `x` does"):
            kmeans(x, 4, init=torch.tensor(rows()[:4]))


def test_values_that_are_not_finite(device):
    x = rows()
    x[7, 1] = np.nan
    with pytest.raises(ValueError, match=r"^`x` must be finite; got NaN"):
        kmeans(device.make(x), 4, rng=0)


@pytest.mark.parametrize("adds", [True, False])
def test_float64_that_is_held_but_not_added(adds):
    """Some of Intel's devices take such numbers and raise when they are to compute."""

    class Held(np.ndarray):
        def __add__(self, other):
            if not adds:
                raise RuntimeError("Required aspect fp64 is not supported on the device")
            return np.asarray(self) + other

    class Library:
        float64 = np.float64

        def ones(self, n, dtype, device):
            return np.ones(n, dtype).view(Held)

    assert arrays._computes_float64(Library(), "xpu") is adds


def test_float64_that_is_rounded_to_float32():
    class Library:
        float64 = np.float64

        def ones(self, n, dtype, device):
            return np.ones(n, np.float32)

    assert not arrays._computes_float64(Library(), "any")
