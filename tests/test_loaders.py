"""Rows that come batch by batch: the bits of a loop over them, or of all of them in one array."""

import collections
import contextlib
import types

import numpy as np
import pytest
from scipy import sparse

from anykmeans import KMeans, MiniBatchKMeans, assign
from anykmeans._batches import gives_batches
from anykmeans._init import start
from anykmeans._minibatch import EarlyStop
from anykmeans.sources.rows import Rows

SIZES = (70, 50, 50, 30)


def batches(dtype="float32", sizes=SIZES):
    x = (np.random.default_rng(0).normal(size=(sum(sizes), 3)) * 20).astype(dtype)
    return np.split(x, np.cumsum(sizes)[:-1])


class Loader:
    """Gives batches, again and again, as a `DataLoader` does; counts how often."""

    def __init__(self, parts, change=lambda x: x):
        self.parts, self.change, self.passes = parts, change, 0

    def __iter__(self):
        self.passes += 1
        return map(self.change, self.parts)


def same_bits(one, other, host=np.asarray):
    np.testing.assert_array_equal(host(one.cluster_centers_), host(other.cluster_centers_))
    assert one.n_steps_ == other.n_steps_
    np.testing.assert_array_equal(one._seen.counts, other._seen.counts)


def fed(km, parts):
    for x in parts:
        km.partial_fit(x)
    return km


def model(**options):
    return MiniBatchKMeans(5, **{"random_state": 0, "reassignment_ratio": 0.3} | options)


FORMS = {
    "rows": lambda x: x,
    "tuple": lambda x: (x, x[:, 0]),
    "list": lambda x: [x, x[:, 0]],
    "tuple of one": lambda x: (x,),
}


# -- partial_fit --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("labelled", [True, False])
def test_partial_fit_is_a_loop(backend, form, labelled):
    parts = [backend.make(x) for x in batches()]
    whole = fed(model(compute_labels=labelled), parts)
    ours = model(compute_labels=labelled).partial_fit(Loader(parts, FORMS[form]))
    same_bits(whole, ours, backend.host)
    assert hasattr(ours, "labels_") == labelled
    if labelled:
        np.testing.assert_array_equal(backend.host(whole.labels_), backend.host(ours.labels_))
        assert ours.inertia_ == whole.inertia_
    assert ours.kernel_ == whole.kernel_
    same_bits(fed(whole, parts), ours.partial_fit(x for x in parts), backend.host)


def test_sparse_batches_and_frames():
    pandas = pytest.importorskip("pandas")
    for change in (sparse.csr_array, lambda x: pandas.DataFrame(x, columns=["a", "b", "c"])):
        parts = [change(x) for x in batches("float64")]
        same_bits(fed(model(), parts), model().partial_fit(iter(parts)))
    assert model().partial_fit(iter(parts)).feature_names_in_.tolist() == ["a", "b", "c"]


def test_a_batch_that_fails_leaves_the_model_as_it_was():
    parts = batches()
    km = model(random_state=np.random.RandomState(0)).partial_fit(parts[0])
    before, state = dict(vars(km)), km._random_state.get_state(legacy=False)["state"]["pos"]
    parts[-1][3, 1] = np.nan
    with pytest.raises(ValueError, match="finite"):
        km.partial_fit(iter(parts))
    assert vars(km).keys() == before.keys()
    assert all(vars(km)[name] is value for name, value in before.items())
    assert km._random_state.get_state(legacy=False)["state"]["pos"] == state


# -- fit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_fit_is_a_loop_for_so_many_passes(backend, form):
    parts = [backend.make(x) for x in batches()]
    start = backend.make(np.concatenate(batches())[::45])
    options = {"init": start, "n_init": 1, "max_no_improvement": None}
    loader = Loader(parts, FORMS[form])
    ours = model(max_iter=3, **options).fit(loader)
    same_bits(fed(model(**options), parts * 3), ours, backend.host)
    assert (loader.passes, ours.n_iter_, ours.converged_) == (3, 3, False)
    assert not hasattr(ours, "labels_")
    # What it left does not count when it is fitted again.
    same_bits(model(max_iter=3, **options).fit(loader), ours.fit(loader), backend.host)
    same_bits(fed(model(**options), parts * 4), ours.partial_fit(loader), backend.host)


def test_first_centroids_of_the_first_batch():
    """If it holds all the rows that they are chosen among, they are those of `partial_fit`."""
    parts = batches()
    for options in ({"init_size": 70}, {"init_size": 40}, {"init": "random", "init_size": 70}):
        options |= {"n_init": 1, "max_no_improvement": None}
        same_bits(fed(model(**options), parts), model(max_iter=1, **options).fit(iter(parts)))


@pytest.mark.parametrize("init", ["k-means++", "random", "callable"])
def test_first_centroids_of_some_batches(init):
    """Among 120 rows here, which no batch has: of the starts that of the lowest inertia on them goes on."""
    parts, chosen = batches(), []

    def own(x, k, random_state):
        chosen.append(x.shape)
        return x[random_state.permutation(x.shape[0])[:k]]

    def some(n_init):
        how = {"init": own if init == "callable" else init, "init_size": 120, "n_init": n_init}
        return model(max_iter=1, tol=0.0, **how)

    x, rng = np.concatenate(parts[:2]), np.random.RandomState(0)

    def cost(c):
        return assign(x, c)[1].sum()

    if init == "callable":
        starts = [own(x, 5, rng) for _ in range(3)]
    else:
        starts = [start(Rows.over(x), 5, init, rng) for _ in range(3)]
    chosen.clear()
    best = min(starts, key=cost)
    ours = some(3).fit(Loader(parts))
    if init == "callable":
        assert chosen == [(120, 3)] * 3
    given = model(init=best, n_init=1, random_state=rng)
    np.testing.assert_array_equal(fed(given, parts).cluster_centers_, ours.cluster_centers_)


def test_more_clusters_than_a_batch_has_rows():
    parts = batches(sizes=(10,) * 20)
    ours = MiniBatchKMeans(40, random_state=0, max_iter=2).fit(Loader(parts))
    assert ours.cluster_centers_.shape == (40, 3)
    with pytest.raises(ValueError, match=r"^`n_clusters` must be between 1 and.*\(200, 3\)"):
        MiniBatchKMeans(201).fit(Loader(parts))


def test_when_it_stops():
    """By the rules of a fit to rows, from the second pass on: `EarlyStop` is told what the batches cost."""
    parts = batches(sizes=(40,) * 5)
    ours = model(max_iter=50, max_no_improvement=3).fit(Loader(parts))
    assert ours.converged_
    assert 1 < ours.n_iter_ < 50
    # By hand: the inertia of each batch before its step.
    stop, why = EarlyStop(200, 40, 0.0, 3), None
    shadow = model(max_iter=1, max_no_improvement=None).fit(Loader(parts))
    while not why:
        if shadow.n_steps_ % 5 == 0:
            costs = []
        x = parts[shadow.n_steps_ % 5]
        costs.append(-shadow.score(x))
        shadow.partial_fit(x)
        why = stop(costs[-1] / 40, 0.0)
    same_bits(shadow, ours)
    assert ours.n_iter_ == -(-shadow.n_steps_ // 5)
    np.testing.assert_allclose(ours.inertia_, np.mean(costs) / 40 * 200, rtol=1e-12)


def test_tol():
    parts = [np.tile(np.asarray([[0.0], [1.0], [9.0], [10.0]]), (5, 1))] * 3
    options = {"max_no_improvement": None, "max_iter": 40, "reassignment_ratio": 0.0}
    ours = MiniBatchKMeans(2, random_state=0, tol=1e-6, **options).fit(Loader(parts))
    assert ours.converged_
    assert ours.n_iter_ == 2
    assert sorted(ours.cluster_centers_[:, 0]) == [0.5, 9.5]
    # The mean of the batch does not move it at all; but without `tol` nobody looks.
    assert not MiniBatchKMeans(2, random_state=0, **options).fit(Loader(parts)).converged_


def test_sparse_fit():
    parts = [sparse.csr_array(np.where(np.abs(x) > 15, x, 0)) for x in batches("float64")]
    dense = [x.toarray() for x in parts]
    ours, theirs = (model(max_iter=3, tol=1e-9).fit(Loader(each)) for each in (parts, dense))
    same_bits(ours, theirs)
    assert ours.inertia_ == theirs.inertia_


def test_verbose(capsys):
    model(verbose=1, max_iter=2).fit(Loader(batches()))
    said = capsys.readouterr().out
    assert "Init 1/1 with method k-means++" in said
    assert "Minibatch step 8: mean batch inertia" in said


# -- KMeans -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_kmeans_gathers(backend, form):
    parts = [backend.make(x) for x in batches()]
    ours = KMeans(5, random_state=0).fit(Loader(parts, FORMS[form]))
    theirs = KMeans(5, random_state=0).fit(backend.make(np.concatenate(batches())))
    for name in ("cluster_centers_", "labels_"):
        a, b = (backend.host(getattr(km, name)) for km in (ours, theirs))
        np.testing.assert_array_equal(a, b)
    assert (ours.inertia_, ours.n_iter_) == (theirs.inertia_, theirs.n_iter_)
    again = KMeans(5, random_state=0).fit_predict(iter(parts))
    np.testing.assert_array_equal(backend.host(again), backend.host(theirs.labels_))


def test_kmeans_gathers_sparse_rows():
    parts = [sparse.csr_matrix(x) for x in batches()]
    ours = KMeans(5, random_state=0).fit(iter(parts))
    theirs = KMeans(5, random_state=0).fit(np.concatenate(batches()))
    np.testing.assert_array_equal(ours.labels_, theirs.labels_)


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fit", [KMeans(2).fit, MiniBatchKMeans(2).fit, MiniBatchKMeans(2).partial_fit]
)
@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ([], ValueError, "^`X` must give one batch at least; got none from Loader"),
        (
            [{"x": 1, "y": 2}],
            ValueError,
            "^`key` must be one of those of a batch, 'x', 'y'; got None",
        ),
        (
            [np.ones(3)],
            ValueError,
            r"^`X` must give batches of 2 dimensions.*got one of shape \(3,\).*`list\(X\)`",
        ),
        ([1.0], ValueError, r"got one of shape \(\)"),
        ([np.ones((0, 3))], ValueError, "must have at least one row|minimum of 1 is required"),
        ([np.ones((3, 2, 2))], ValueError, "must have 2 dimensions|dim 3"),
    ],
)
def test_batches_that_are_refused(fit, parts, error, message):
    with pytest.raises(error, match=message):
        fit(Loader(parts))


@pytest.mark.parametrize(
    "fit", [KMeans(2).fit, MiniBatchKMeans(2).fit, MiniBatchKMeans(2).partial_fit]
)
def test_batches_that_differ(fit):
    with pytest.raises(ValueError, match=r"number of features|expecting 3 features"):
        fit(Loader([np.ones((4, 3)), np.ones((4, 2))]))
    with pytest.raises(ValueError, match=r"^`sample_weight` must be None where `X` gives batches"):
        fit(Loader(batches()), sample_weight=[1.0] * 200)


def test_dtypes_that_differ():
    with pytest.raises(ValueError, match="of one dtype; got float32 and float64"):
        KMeans(2).fit(iter([batches("float32")[0], batches("float64")[1]]))


def test_a_generator_gives_its_batches_once():
    with pytest.raises(
        TypeError, match=r"^`X` must be something that can be iterated over `max_iter`=100 times"
    ):
        model().fit(iter(batches()))

    class Once:
        parts = iter(batches())

        def __iter__(self):
            return (x for x in self.parts)

    km = model(max_no_improvement=None)
    with pytest.raises(ValueError, match=r"got none from Once\. A generator gives"):
        km.fit(Once())
    assert not hasattr(km, "cluster_centers_")


def test_parameters_are_checked_first():
    for options, error in (
        ({"n_clusters": "3"}, TypeError),
        ({"n_clusters": 0}, ValueError),
        ({"max_iter": 0}, ValueError),
        ({"batch_size": 1.5}, TypeError),
        ({"init": "best"}, ValueError),
        ({"max_bytes": 1}, ValueError),
    ):
        (name,) = options
        with pytest.raises(error, match=f"^`{name}` must"):
            MiniBatchKMeans(**options).fit(Loader(batches()))


def test_what_takes_rows_alone():
    km = KMeans(2, random_state=0).fit(batches()[0])
    for work in (km.predict, km.transform, km.score):
        with pytest.raises(TypeError, match="or, if it gives batches, pass them one by one"):
            work(Loader(batches()))


def test_what_gives_batches():
    pandas = pytest.importorskip("pandas")
    x = np.ones((3, 2))
    for rows in (
        x,
        x.tolist(),
        tuple(x.tolist()),
        collections.deque(x.tolist()),
        sparse.csr_array(x),
        pandas.DataFrame(x),
        {"a": x},
        "ab",
        3,
        None,
        range(3),
        np.float64(1),
    ):
        assert not gives_batches(rows)
    for some in (
        iter([x]),
        (x for _ in range(2)),
        Loader([x]),
        zip([x], [x], strict=True),
        map(abs, [x]),
    ):
        assert gives_batches(some)


def test_a_list_is_rows():
    np.testing.assert_array_equal(
        MiniBatchKMeans(2, random_state=0).partial_fit([[0.0], [9.0]]).cluster_centers_,
        MiniBatchKMeans(2, random_state=0).partial_fit(np.asarray([[0.0], [9.0]])).cluster_centers_,
    )


# -- PyTorch's ----------------------------------------------------------------------------------


@pytest.fixture
def torch(backend):
    return pytest.importorskip("torch")


@pytest.mark.only("torch")
class TestTorch:
    def loader(self, torch, *, named=False, **how):
        from torch.utils.data import DataLoader, TensorDataset

        x = torch.tensor(np.concatenate(batches()))
        if named:
            rows = [{"image": row, "label": i} for i, row in enumerate(x)]
            return DataLoader(rows, batch_size=64, **how)
        return DataLoader(TensorDataset(x, torch.arange(len(x))), batch_size=64, **how)

    @pytest.fixture
    def parts(self, torch):
        return list(torch.tensor(np.concatenate(batches())).split(64))

    def test_a_data_loader(self, torch, parts):
        loader = self.loader(torch)
        assert gives_batches(loader)
        same_bits(fed(model(), parts), model().partial_fit(loader))
        start = parts[0][:5]
        options = {"init": start, "max_no_improvement": None, "max_iter": 2}
        same_bits(fed(model(**options), parts * 2), model(**options).fit(loader))
        ours = KMeans(5, random_state=0).fit(loader)
        theirs = KMeans(5, random_state=0).fit(torch.cat(parts))
        assert torch.equal(ours.labels_, theirs.labels_)

    def test_a_stream_of_pytorch(self, torch, parts):
        class Stream(torch.utils.data.IterableDataset):
            def __iter__(self):
                return iter(parts)

        assert gives_batches(Stream())
        assert not gives_batches(torch.utils.data.TensorDataset(parts[0]))
        loader = torch.utils.data.DataLoader(Stream(), batch_size=None)
        same_bits(fed(model(), parts), model().partial_fit(loader))

    def test_dictionaries(self, torch, parts):
        from anykmeans.torch import Batches

        loader = self.loader(torch, named=True)
        with pytest.raises(
            ValueError, match=r"'image', 'label'; got None. Name the rows: .*Batches\(loader, key"
        ):
            model().partial_fit(loader)
        with pytest.raises(ValueError, match=r"'image', 'label'; got 'images'"):
            model().partial_fit(Batches(loader, key="images"))
        same_bits(fed(model(), parts), model().partial_fit(Batches(loader, key="image")))

    def test_keys_of_tuples(self, torch, parts):
        from anykmeans.torch import Batches

        pairs = Loader(parts, lambda x: (x[:, 0], x))
        same_bits(fed(model(), parts), model().partial_fit(Batches(pairs, key=1)))
        same_bits(fed(model(), parts), model().partial_fit(Batches(pairs, key=-1)))
        for key in (2, "x", 1.0):
            with pytest.raises(ValueError, match=r"^`key` must be a number from 0 to 1 where"):
                model().partial_fit(Batches(pairs, key=key))
        with pytest.raises(
            ValueError, match=r"^`key` must be None where batches are rows themselves; got 0"
        ):
            model().partial_fit(Batches(parts, key=0))
        with pytest.raises(TypeError, match=r"^`loader` must give batches.*got TensorDataset"):
            Batches(torch.utils.data.TensorDataset(parts[0]))

    @pytest.mark.parametrize(
        "make", [lambda x: x, lambda x: x.numpy(), lambda x: x.requires_grad_()]
    )
    def test_a_device(self, torch, parts, make):
        from anykmeans.torch import Batches

        found = list(Batches([make(x.clone()) for x in parts], device="cpu"))
        assert all(isinstance(x, torch.Tensor) and not x.requires_grad for x in found)
        assert all(torch.equal(x, y) for x, y in zip(found, parts, strict=True))
        options = {"init": parts[0][:5], "max_no_improvement": None, "max_iter": 2}
        ours = model(**options).fit(Batches(parts, device="cpu"))
        same_bits(fed(model(**options), parts * 2), ours)

    def test_one_ahead(self, torch, parts, monkeypatch):
        """With streams that only tell what is asked of them: each copy is on its way before the batch before it is used."""
        from anykmeans.torch import loaders

        told = []

        class Stream:
            def __init__(self, device):
                self.name = device if isinstance(device, str) else "copies"

            def record_event(self):
                return "event"

            def wait_event(self, event):
                told.append(f"{self.name} waits")

        class Tensor:
            is_cuda, is_pinned = False, lambda self: False

            def contiguous(self):
                return self

            def __init__(self, number):
                self.number, self.device = number, "cuda:0"

            def pin_memory(self):
                told.append(f"pin {self.number}")
                return self

            def to(self, device, *, non_blocking):
                told.append(f"copy {self.number}")
                assert non_blocking
                return self

            def record_stream(self, stream):
                assert stream.name == "current"

        cuda = types.SimpleNamespace(
            Stream=Stream,
            stream=lambda stream: contextlib.nullcontext(),
            current_stream=lambda device: Stream("current"),
        )
        monkeypatch.setattr(loaders, "torch", types.SimpleNamespace(cuda=cuda, Tensor=Tensor))
        for tensor in loaders._ahead(iter([Tensor(i) for i in range(3)]), "cuda"):
            told.append(f"use {tensor.number}")
        assert told == [
            "pin 0",
            "copy 0",
            "pin 1",
            "copy 1",
            "current waits",
            "use 0",
            "pin 2",
            "copy 2",
            "current waits",
            "use 1",
            "current waits",
            "use 2",
        ]
        assert list(loaders._ahead(iter([]), "cuda")) == []

    def test_on_a_gpu(self, torch, parts):
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        from anykmeans.torch import Batches

        for named in (False, True):
            loader = self.loader(torch, named=named)
            rows = Batches(loader, key="image" if named else None, device="cuda")
            found = list(rows)
            assert all(x.is_cuda for x in found)
            assert all(torch.equal(x.cpu(), y) for x, y in zip(found, parts, strict=True))
            ours = model().partial_fit(rows)
            theirs = fed(model(), parts)
            assert torch.equal(ours.cluster_centers_.cpu(), theirs.cluster_centers_)
