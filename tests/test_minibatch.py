"""Sums of a stream are exact: the order of its batches does not show, nor any grid they are on."""

import copy
import pickle
from fractions import Fraction
from importlib.util import find_spec

import numpy as np
import pytest
import scipy.sparse as sp
from referee import exact_sums, meant, wild

from anykmeans import MiniBatchKMeans, _minibatch

CPU = ("agnostic", "cpu", *(["numba"] if find_spec("numba") else []))


def rounded(sums):
    """Centroids of exact sums: means, whose sum and weight are rounded once."""
    return np.array([[float(v) / float(row[-1]) for v in row[:-1]] for row in sums])


APART = np.array([[0.0, 0.0, 0.0], [1000.0, 0.0, 0.0], [0.0, 1000.0, 0.0]])


def around(n, dtype, seed=0):
    """Rows (n, 3) so near centroids that are so far apart that no order of batches changes a label."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(3, size=n)
    return (APART[labels] + draw.normal(size=(n, 3))).astype(dtype), labels


def streamed(x, w, order, make=np.asarray, size=50, **settings):
    """A model that has seen the rows (n, d) in batches, of which the `order` tells the numbers."""
    km = MiniBatchKMeans(len(APART), reassignment_ratio=0, random_state=0, **settings)
    centers = np.zeros((len(APART), x.shape[1]), x.dtype)
    centers[:, :3] = APART
    km.cluster_centers_ = centers if sp.issparse(x) else make(centers)
    for i in order:
        part = slice(i * size, (i + 1) * size)
        km.partial_fit(
            x[part] if sp.issparse(x) else make(x[part]),
            sample_weight=None if w is None else w[part],
        )
    return km


ORDERS = [range(12), range(11, -1, -1), np.random.default_rng(7).permutation(12)]


@pytest.mark.parametrize("weights", [None, "whole", "any", "of very different batches"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_order_of_batches_does_not_show(backend, kernel, dtype, weights):
    _, labels = around(600, dtype)
    x = (APART[labels] + wild(600, 3)).astype(dtype)
    draw = np.random.default_rng(2)
    w = {
        None: None,
        "whole": draw.integers(1, 5, size=600).astype(np.float64),
        "any": draw.random(600) + 0.01,
        "of very different batches": np.ldexp(draw.random(600) + 0.01, np.arange(600) // 50 * 5),
    }[weights]
    found = [
        streamed(x, w, order, lambda a: backend.make(a, dtype), kernel=kernel) for order in ORDERS
    ]
    sums = exact_sums(x, np.ones(600) if w is None else w, labels, 3)
    for km in found:
        centers = backend.host(km.cluster_centers_)
        np.testing.assert_array_equal(centers, rounded(sums).astype(dtype))
        assert km._seen.weights.tolist() == [float(row[-1]) for row in sums]
        assert km.n_steps_ == 12


@pytest.mark.parametrize("name", CPU[1:])
@pytest.mark.parametrize("d", [40, 3000])
@pytest.mark.parametrize("weighted", [False, True])
def test_nor_that_of_sparse_batches(name, d, weighted):
    """Each of which has columns for some of many features."""
    near, labels = around(600, "float64")
    draw = np.random.default_rng(4)
    x = np.zeros((600, d))
    x[:, :3] = near
    x[np.arange(600), draw.integers(3, d, size=600)] = draw.normal(size=600)
    w = draw.random(600) if weighted else None
    found = [streamed(sp.csr_array(x), w, order, kernel=name) for order in ORDERS]
    wanted = rounded(exact_sums(x, np.ones(600) if w is None else w, labels, 3))
    for km in found:
        np.testing.assert_array_equal(km.cluster_centers_, wanted)
    dense = streamed(x, w, ORDERS[0], kernel=name)
    np.testing.assert_array_equal(dense.cluster_centers_, wanted)


def test_batches_of_every_kind_in_one_stream():
    """With and without weights, of either precision and of whole numbers, sparse and dense, large and small."""
    draw = np.random.default_rng(6)
    x, labels = around(600, "float64", 1)
    x[:200] = x[:200].astype("float32")
    x[200:300] = np.rint(x[200:300])
    w = np.ones(600)
    w[:100] = np.ldexp(draw.random(100) + 0.1, 40)
    w[250:300] = 3
    w[400:] = np.ldexp(draw.random(200) + 0.1, -50)
    batches = [
        (x[:100].astype("float32"), w[:100]),
        (sp.csr_array(x[100:200]), None),
        (x[200:250].astype("int32"), None),
        (x[250:300], [3] * 50),
        (x[300:301], None),
        (x[301:400], None),
        (sp.csr_array(x[400:]), w[400:]),
    ]
    wanted = rounded(exact_sums(x, w, labels, 3))
    for order in (range(7), range(6, -1, -1), [3, 6, 0, 4, 2, 5, 1]):
        km = MiniBatchKMeans(3, reassignment_ratio=0, random_state=0)
        km.cluster_centers_ = APART.copy()
        for i in order:
            km.partial_fit(batches[i][0], sample_weight=batches[i][1])
        dtype = "float32" if order[0] == 0 else "float64"  # of the first
        np.testing.assert_array_equal(km.cluster_centers_, wanted.astype(dtype))


@pytest.mark.parametrize("name", CPU)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_small_batches_leave_no_sum_without_room(name, weighted, size):
    """Values of all bits and one sign, which fill finer grids as fast as can be, on the grids that have least room."""
    draw = np.random.default_rng(size)
    x = np.ldexp(1 - 2.0**-53, draw.integers(-150, 1, size=(300, size)))
    x[::3] = 1 - 2.0**-53
    w = np.ldexp(1 - 2.0**-53, draw.integers(-30, 1, size=(300, size)))
    km = MiniBatchKMeans(1, random_state=0, kernel=name)
    for values, weights in zip(x, w, strict=True):
        km.partial_fit(values[:, None], sample_weight=weights if weighted else None)
    w = w if weighted else np.ones_like(w)
    wanted = exact_sums(
        x.reshape(-1, 1), w.ravel(), np.zeros(x.size, int), 1, km._seen.extent.heaviest
    )
    assert meant(km._seen.stats) == wanted
    assert km.cluster_centers_.tolist() == rounded(wanted).tolist()


def test_a_centroid_set_by_hand_counts_as_so_many_rows_there():
    x, labels = around(200, "float64")
    draw = np.random.default_rng(8)
    for w in (None, draw.random(200)):
        km = streamed(x, w, range(3))
        counts = [Fraction(float(v)) for v in km._seen.weights]
        sums = exact_sums(x[:150], np.ones(150) if w is None else w[:150], labels[:150], 3)
        centers = km.cluster_centers_.copy()
        centers[1], centers[2, 2] = [1000 / 3, 0, 1 / 7], 2.0**-30 / 3
        km.cluster_centers_ = centers
        sums[1][:3] = [counts[1] * Fraction(float(v)) for v in centers[1]]
        sums[2][2] = counts[2] * Fraction(centers[2, 2])
        late = np.array([[400.0, 0, 0], [0, 1000, 0], [1, 0, 0]])
        km.partial_fit(late, sample_weight=None if w is None else [0.3, 0.7, 0.1])
        more = exact_sums(
            late, np.array([1, 1, 1] if w is None else [0.3, 0.7, 0.1]), np.array([1, 2, 0]), 3
        )
        sums = [
            [a + b for a, b in zip(*rows, strict=True)] for rows in zip(sums, more, strict=True)
        ]
        assert meant(km._seen.stats) == sums
        np.testing.assert_array_equal(km.cluster_centers_, rounded(sums))


def test_a_centroid_set_by_hand_where_sparse_rows_have_no_columns():
    x = np.zeros((150, 3000))
    x[:, :3], labels = around(150, "float64")
    km = streamed(sp.csr_array(x), None, [0, 1])
    assert km._seen.centers.shape == (3, 3)
    km.cluster_centers_[2, 2999] = 1 / 3
    sums = exact_sums(x[:100], np.ones(100), labels[:100], 3)
    sums[2][2999] = sums[2][-1] * Fraction(1 / 3)
    more = exact_sums(x[100:], np.ones(50), labels[100:], 3)
    km.partial_fit(sp.csr_array(x[100:]))
    sums = [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(sums, more, strict=True)]
    np.testing.assert_array_equal(km.cluster_centers_, rounded(sums))
    assert km.cluster_centers_[2, 2999] > 0


def test_a_cluster_that_is_moved_counts_as_so_many_rows_there():
    """As many as the smallest of those that stay has seen: scikit-learn's rule."""
    x, _ = around(300, "float32")
    for w in (None, np.random.default_rng(0).random(300)):
        km = MiniBatchKMeans(3, init=np.append(APART[:2], [[9e6] * 3], axis=0), random_state=0)
        km.partial_fit(x, sample_weight=w)
        sums, counts = meant(km._seen.stats)[2], km._seen.counts
        assert counts[2] == counts[:2].min()
        assert (x == km.cluster_centers_[2]).all(axis=1).any()
        wanted = [Fraction(float(v)) * Fraction(counts[2]) for v in km.cluster_centers_[2]]
        assert sums == [*wanted, Fraction(counts[2])]


def test_grids_do_not_change_with_every_batch(monkeypatch):
    changes, found = [], _minibatch._on
    monkeypatch.setattr(_minibatch, "_on", lambda *how: changes.append(how) or found(*how))
    x = np.random.default_rng(0).normal(size=(20_000, 5))
    km = MiniBatchKMeans(4, random_state=0)
    for i in range(0, 20_000, 100):
        km.partial_fit(x[i : i + 100])
    assert len(changes) < 20
    assert km._seen.stats.grid.folds == 2


def test_a_stream_refuses_what_would_leave_the_range():
    x, km = np.full((4, 1), 2.0**1018), MiniBatchKMeans(1, random_state=0)
    for _ in range(3):
        km.partial_fit(x)
        before = pickle.dumps(vars(km))
    with pytest.raises(ValueError, match=r"^`X` must add up within float64"):
        km.partial_fit(x)
    assert pickle.dumps(vars(km)) == before
    assert km.cluster_centers_ == 2.0**1018


def test_counts_are_in_the_units_of_the_weights():
    x, labels = around(100, "float64")
    km = streamed(x, np.full(100, 2.0**40), range(2))
    assert km._seen.weights.tolist() == [2.0**40 * (labels == j).sum() for j in range(3)]
    peer = km.as_sklearn()
    assert peer._counts.tolist() == km._seen.weights.tolist()
    assert peer._n_since_last_reassign == km._seen.since
    peer.partial_fit(x)


def test_copies_of_a_stream_go_on_alike():
    x, _ = around(300, "float64")
    km = streamed(x, None, range(3))
    copies = [copy.deepcopy(km), pickle.loads(pickle.dumps(km)), km.to("numpy")]
    km.partial_fit(x[150:])
    for other in copies:
        other.partial_fit(x[150:])
        np.testing.assert_array_equal(other.cluster_centers_, km.cluster_centers_)
        assert meant(other._seen.stats) == meant(km._seen.stats)


def test_a_batch_writes_to_nothing_that_was_kept():
    """So that a model, and copies of what it holds, are as before if it fails."""
    x, _ = around(300, "float64")
    km = streamed(x, None, range(3))
    seen = km._seen
    before = copy.deepcopy(seen)
    for centers in (None, km.cluster_centers_ + 1):
        if centers is not None:
            km.cluster_centers_ = centers
            km._seen = seen
        km.set_params(reassignment_ratio=0.99).partial_fit(x[150:])
        np.testing.assert_array_equal(seen.stats.sums, before.stats.sums)
        np.testing.assert_array_equal(seen.centers, before.centers)
        np.testing.assert_array_equal(seen.counts, before.counts)


def test_a_seed_that_is_looked_at_late_draws_as_a_generator_of_it():
    x = np.random.default_rng(0).normal(size=(40, 3))
    far = np.concatenate(
        [x[:2], np.full((2, 3), 1e3)]
    )  # of which two get no row, and are moved to some
    models = [
        MiniBatchKMeans(4, init=far, n_init=1, random_state=seed)
        .partial_fit(x)
        .partial_fit(x[::-1])
        for seed in (7, np.random.RandomState(7))
    ]
    assert np.abs(models[0].cluster_centers_).max() < 100
    np.testing.assert_array_equal(*(model.cluster_centers_ for model in models))


def test_scikit_learn_goes_on_with_a_seed_that_nothing_was_drawn_from():
    x = np.random.default_rng(0).normal(size=(40, 3))
    model = MiniBatchKMeans(2, init=x[:2], n_init=1, reassignment_ratio=0.0, random_state=0)
    peer = model.partial_fit(x).as_sklearn().set_params(reassignment_ratio=0.99)
    peer._n_since_last_reassign = 1000
    assert np.isfinite(peer.partial_fit(x).cluster_centers_).all()


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "seed"])
def test_what_is_no_seed_is_refused_before_anything_is_drawn(seed):
    model = MiniBatchKMeans(2, init=np.zeros((2, 1)) + [[0], [1]], n_init=1, random_state=seed)
    with pytest.raises(ValueError, match=r"[Ss]eed"):
        model.partial_fit([[0.0], [1.0]])
    assert not hasattr(model, "cluster_centers_")


@pytest.mark.parametrize("tol", [0.0, 1e-3])
def test_fits_that_ask_for_no_costs_of_batches_are_the_same(tol, capsys):
    x = np.random.default_rng(0).normal(size=(300, 4))
    how = {
        "max_no_improvement": None,
        "max_iter": 4,
        "batch_size": 50,
        "random_state": 0,
        "tol": tol,
    }
    models = [MiniBatchKMeans(5, verbose=verbose, **how).fit(x) for verbose in (0, 1)]
    assert "mean batch inertia: " in capsys.readouterr().out
    for name in ("cluster_centers_", "labels_", "inertia_", "n_steps_"):
        np.testing.assert_array_equal(*(getattr(model, name) for model in models))
    estimated = MiniBatchKMeans(5, compute_labels=False, **how).fit(x)
    assert np.isfinite(estimated.inertia_)
