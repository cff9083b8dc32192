"""Models that move: to a device, and through the file of a checkpoint, to go on with the same bits."""

import copy
import json
import pathlib
import pickle
import re

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from anykmeans import KMeans, MiniBatchKMeans
from anykmeans._libraries import is_array, where_is

BOTH = pytest.mark.parametrize("cls", [KMeans, MiniBatchKMeans])


def rows(dtype="float32", n=300):
    return (np.random.default_rng(0).normal(size=(n, 3)) * 20).astype(dtype)


def batches(n=8, size=60):
    return np.split(rows(n=n * size), n)


def through_json(state):
    """What is text goes through JSON, and arrays as they are."""
    return {
        name: each if is_array(each) else json.loads(json.dumps(each))
        for name, each in state.items()
    }


def through_savez(state, tmp_path):
    path = tmp_path / "state.npz"
    np.savez(path, **state)
    with np.load(path, allow_pickle=False) as found:
        return dict(found)


def through_torch(state, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "state.pt"
    torch.save({"model": {"weight": torch.ones(2)}, "clusters": state}, path)
    return torch.load(path, weights_only=True)["clusters"]


def same_bits(one, other, host=np.asarray):
    """Assert that two estimators hold the same, bit for bit."""
    assert one.get_params().keys() == other.get_params().keys()
    for name in one._kept:
        assert hasattr(one, name) == hasattr(other, name), name
    for name in ("cluster_centers_", "labels_"):
        a, b = getattr(one, name), getattr(other, name)
        assert where_is(a) == where_is(b)
        assert host(a).dtype == host(b).dtype
        np.testing.assert_array_equal(host(a), host(b))
    for name in ("inertia_", "n_iter_", "n_steps_", "converged_", "kernel_", "n_features_in_"):
        assert getattr(one, name, None) == getattr(other, name, None), name
        assert type(getattr(one, name, None)) is type(getattr(other, name, None)), name


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_state_is_the_model(backend, cls, dtype):
    x = backend.make(rows(dtype))
    km = cls(5, random_state=0, tol=1e-3, max_bytes=10**6).fit(x)
    again = cls.from_state_dict(through_json(km.state_dict()))
    same_bits(km, again, backend.host)
    assert km.get_params() == again.get_params()
    np.testing.assert_array_equal(backend.host(km.predict(x)), backend.host(again.predict(x)))
    np.testing.assert_array_equal(backend.host(km.transform(x)), backend.host(again.transform(x)))
    assert km.score(x) == again.score(x)
    np.testing.assert_array_equal(backend.host(again.fit(x).labels_), backend.host(km.labels_))


@BOTH
def test_through_files(cls, tmp_path):
    x = rows()
    km = cls(5, random_state=0).fit(x, sample_weight=np.linspace(0.1, 1, 300))
    same_bits(km, cls.from_state_dict(through_savez(km.state_dict(), tmp_path)))


@BOTH
@pytest.mark.only("torch")
def test_through_a_checkpoint_of_a_larger_model(backend, cls, tmp_path):
    x = backend.make(rows())
    km = cls(5, random_state=0).fit(x, sample_weight=np.linspace(0.1, 1, 300))
    same_bits(km, cls.from_state_dict(through_torch(km.state_dict(), tmp_path)), backend.host)
    found = cls.from_state_dict(through_savez(km.state_dict(), tmp_path))
    np.testing.assert_array_equal(found.cluster_centers_, backend.host(km.cluster_centers_))
    same_bits(km, found.to("torch"), backend.host)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("after", [1, 4])
@pytest.mark.parametrize("seed", [0, "generator", "pcg64"])
def test_a_stream_goes_on(backend, weighted, after, seed, tmp_path):
    """With the same bits, draws too: small clusters are moved to rows that are drawn all the time."""

    def random_state():
        if seed == 0:
            return 0
        return np.random.RandomState(0 if seed == "generator" else np.random.PCG64(0))

    def fed(km, some):
        for i, x in some:
            km.partial_fit(
                backend.make(x), sample_weight=np.linspace(0.1, 1 + i, 60) if weighted else None
            )
        return km

    def model():
        return MiniBatchKMeans(5, random_state=random_state(), reassignment_ratio=0.5)

    stream = list(enumerate(batches()))
    whole = fed(model(), stream)
    state = fed(model(), stream[:after]).state_dict()
    for each in (
        state,
        through_json(state),
        *([through_torch(state, tmp_path)] if backend.library == "torch" else ()),
    ):
        again = fed(MiniBatchKMeans.from_state_dict(each), stream[after:])
        same_bits(whole, again, backend.host)
        np.testing.assert_array_equal(whole._seen.counts, again._seen.counts)
    moved = fed(MiniBatchKMeans.from_state_dict(state).to(backend.make(rows())), stream[after:])
    same_bits(whole, moved, backend.host)


def test_a_sparse_stream_goes_on(tmp_path):
    x = sparse.random_array((400, 30), density=0.05, format="csr", rng=np.random.default_rng(0))
    parts = [x[i : i + 100] for i in range(0, 400, 100)]
    whole = MiniBatchKMeans(5, random_state=0)
    for part in parts:
        whole.partial_fit(part)
    half = MiniBatchKMeans(5, random_state=0).partial_fit(parts[0]).partial_fit(parts[1])
    again = MiniBatchKMeans.from_state_dict(through_savez(half.state_dict(), tmp_path))
    for part in parts[2:]:
        again.partial_fit(part)
    same_bits(whole, again)


def test_one_generator_stays_one():
    km = MiniBatchKMeans(5, random_state=np.random.RandomState(3), reassignment_ratio=0.9)
    for x in batches(3):
        km.partial_fit(x)
    again = MiniBatchKMeans.from_state_dict(km.state_dict())
    assert again._random_state is again.random_state
    assert again.random_state is not km.random_state
    assert again.random_state.randint(10**9) == km.random_state.randint(10**9)


def test_everybodys_generator_is_nobodys():
    """Which random_state=None draws from: its state is not the model's to keep."""
    state = MiniBatchKMeans(5).partial_fit(rows()).state_dict()
    assert len(json.dumps(state["fitted"])) < 4000
    assert MiniBatchKMeans.from_state_dict(state)._random_state is np.random.mtrand._rand
    assert (
        json.loads(
            MiniBatchKMeans(5, random_state=np.random).fit(rows()).state_dict()["parameters"]
        )["random_state"]
        is None
    )


@BOTH
def test_a_state_is_a_copy(backend, cls):
    x = backend.make(rows())
    km = cls(5, random_state=0, init=backend.make(rows()[:5])).fit(x)
    state = km.state_dict()
    before = copy.deepcopy({name: each for name, each in state.items() if not is_array(each)})
    centers = backend.host(state["cluster_centers_"]).copy()
    again = cls.from_state_dict(state)
    if cls is MiniBatchKMeans:
        again.partial_fit(x)
        km.partial_fit(x)
    np.testing.assert_array_equal(backend.host(state["cluster_centers_"]), centers)
    assert before == {name: each for name, each in state.items() if not is_array(each)}
    same_bits(cls.from_state_dict(state), cls.from_state_dict(state), backend.host)
    np.testing.assert_array_equal(backend.host(again.init), rows()[:5])
    assert where_is(again.init) == where_is(x)


@pytest.mark.parametrize(
    "init", [[[0.0], [9.0]], np.asarray([[0.0], [9.0]]), "random", "k-means||"]
)
def test_what_init_may_be(init):
    x = [[0.0], [1.0], [9.0], [10.0]]
    km = KMeans(2, init=init, random_state=0, n_init=1).fit(x)
    again = KMeans.from_state_dict(km.state_dict())
    assert type(again.init) is type(init)
    np.testing.assert_array_equal(again.init, init)
    same_bits(km, again)


def test_names_of_features(tmp_path):
    pandas = pytest.importorskip("pandas")
    x = pandas.DataFrame(rows(), columns=["a", "b", "c"])
    km = KMeans(3, random_state=0).fit(x)
    again = KMeans.from_state_dict(through_savez(km.state_dict(), tmp_path))
    assert again.feature_names_in_.tolist() == ["a", "b", "c"]
    assert again.feature_names_in_.dtype == object
    np.testing.assert_array_equal(again.predict(x), km.labels_)
    with pytest.raises(ValueError, match="feature names"):
        again.predict(x[["b", "a", "c"]])


def test_centroids_set_by_hand():
    km = KMeans(2)
    km.cluster_centers_ = [[0.0], [9.0]]
    again = KMeans.from_state_dict(km.state_dict())
    assert again.predict([[1.0], [8.0]]).tolist() == [0, 1]
    assert not hasattr(again, "labels_")


@BOTH
def test_clones_and_pickles_of_it(cls):
    km = cls(5, random_state=0).fit(rows())
    again = cls.from_state_dict(km.state_dict())
    same_bits(km, pickle.loads(pickle.dumps(again)))
    same_bits(km, copy.deepcopy(again))
    assert clone(again).get_params() == km.get_params()
    same_bits(km, clone(again).fit(rows()))


def test_a_subclass():
    class Mine(KMeans):
        pass

    km = Mine(3, random_state=0).fit(rows())
    assert type(Mine.from_state_dict(km.state_dict())) is Mine
    assert type(KMeans.from_state_dict(km.state_dict())) is KMeans


def test_a_parameter_that_came_later_has_its_default():
    state = KMeans(3, random_state=0, threads=1).fit(rows()).state_dict()
    parameters = json.loads(state["parameters"])
    del parameters["threads"]
    assert KMeans.from_state_dict(state | {"parameters": json.dumps(parameters)}).threads is None


def changed(state, text, **entries):
    return state | {text: json.dumps(json.loads(state[text]) | entries)}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: [*s], TypeError, "^`state` must be a dictionary.*got list"),
        (lambda s: {}, ValueError, "missing 'estimator', 'fitted', 'parameters', 'version'"),
        (lambda s: s | {"version": 2}, ValueError, "^`state` must be of version 1; got version 2"),
        (
            lambda s: {"version": 2, "all": 1},
            ValueError,
            "got version 2. Read it with the anykmeans",
        ),
        (lambda s: s | {"version": None}, ValueError, "got version None"),
        (lambda s: s | {"more": 1}, ValueError, "unexpected 'more'"),
        (lambda s: s | {3: 1}, ValueError, "unexpected '3'"),
        (
            lambda s: {name: each for name, each in s.items() if name != "labels_"} | {"x": 1},
            ValueError,
            "missing 'labels_' and unexpected 'x'",
        ),
        (
            lambda s: {f"clusters.{name}": each for name, each in s.items()},
            ValueError,
            "without a prefix",
        ),
        (
            lambda s: s | {"estimator": "MiniBatchKMeans"},
            ValueError,
            r"one of a MiniBatchKMeans. Use `MiniBatchKMeans.from_state_dict\(state\)`",
        ),
        (lambda s: changed(s, "parameters", new=1), ValueError, "got 'new' besides"),
        (
            lambda s: changed(
                s, "parameters", random_state={"generator": {"bit_generator": "rand"}}
            ),
            ValueError,
            "got 'rand'. Update NumPy",
        ),
    ],
)
def test_states_that_are_refused(change, error, message):
    state = KMeans(3, random_state=0).fit(rows()).state_dict()
    with pytest.raises(error, match=message):
        KMeans.from_state_dict(change(state))


def test_a_part_that_is_missing():
    state = MiniBatchKMeans(3, random_state=0).fit(rows()).state_dict()
    fitted = json.loads(state["fitted"])
    del fitted["_seen.room"]
    with pytest.raises(ValueError, match=r"missing '_seen\.room'"):
        MiniBatchKMeans.from_state_dict(state | {"fitted": json.dumps(fitted)})


def test_models_that_have_no_state():
    with pytest.raises(NotFittedError):
        KMeans().state_dict()
    init = lambda x, k, random_state: x[:k]  # noqa: E731
    km = KMeans(3, init=init, n_init=1).fit(rows())
    with pytest.raises(TypeError, match=r"(?s)^`init` must be.*set_params\(init="):
        km.state_dict()
    state = km.set_params(init="k-means++").state_dict()
    np.testing.assert_array_equal(KMeans.from_state_dict(state).predict(rows()), km.labels_)
    with pytest.raises(TypeError, match=r"^`verbose` must be a number, a word or a generator"):
        km.set_params(verbose=object()).state_dict()


@pytest.mark.only("torch")
def test_to_a_device(backend):
    """Of the fit's own library, by its name alone."""
    import torch

    x = backend.make(rows())
    km = KMeans(3, random_state=0).fit(x)
    for there in (
        km.to("cpu"),
        km.to(device="cpu"),
        km.to(torch.device("cpu")),
        km.to("torch", "cpu"),
        km.to(x),
    ):
        assert there is not km
        assert there.cluster_centers_.data_ptr() != km.cluster_centers_.data_ptr()
        same_bits(km, there, backend.host)
    host = KMeans(3, random_state=0).fit(rows())
    same_bits(km, host.to(torch.device("cpu")), backend.host)
    assert where_is(km.to("meta").cluster_centers_) == "torch on meta"
    with pytest.raises(ValueError, match=r"`library` must be one of.*to\(\"torch\", 'cuda'\)"):
        host.to("cuda")
    if not torch.cuda.is_available():
        with pytest.raises((AssertionError, RuntimeError)):
            km.to("cuda")


def test_to_where_it_is():
    km = KMeans(3, random_state=0).fit(rows())
    for there in (km.to("cpu"), km.to(), km.to("numpy")):
        assert not np.shares_memory(there.cluster_centers_, km.cluster_centers_)
        same_bits(km, there)


@pytest.mark.only("torch")
def test_a_computed_init_has_no_history_in_a_state(backend):
    import torch

    init = torch.tensor(rows()[:3], requires_grad=True) * 2
    km = KMeans(3, init=init).fit(torch.tensor(rows()))
    again = KMeans.from_state_dict(km.state_dict())
    assert not again.init.requires_grad
    np.testing.assert_array_equal(again.init.numpy(), init.detach().numpy())


@pytest.mark.only("torch")
@pytest.mark.parametrize("section", ["Checkpoints", "Loaders"])
def test_what_the_documentation_shows(backend, section, tmp_path, monkeypatch):
    text = pathlib.Path(__file__).parents[1].joinpath("docs", "pytorch.md").read_text("utf-8")
    (part,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", part, re.M | re.S)
    for code in blocks:
        exec(compile(code, section, "exec"), {})
    assert blocks
