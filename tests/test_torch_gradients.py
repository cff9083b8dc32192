"""Gradients in PyTorch: values by loops in float64, derivatives by finite differences, memory by what operators create."""

import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from anykmeans import kmeans

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch.autograd import gradcheck, gradgradcheck  # noqa: E402
from torch.multiprocessing.reductions import StorageWeakRef  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from anykmeans.torch import SoftKMeansResult, cluster_means, soft_assign, soft_kmeans  # noqa: E402
from anykmeans.torch.fuzzy import _Fuzzy  # noqa: E402
from anykmeans.torch.pairs import Pairs  # noqa: E402

pytestmark = pytest.mark.only("torch", "torch:cuda")
DTYPES = ["float64", "float32", "float16", "bfloat16"]


# -- the referee: loops -------------------------------------------------------------------------


def loop_means(x, labels, k, w):
    """Means (k, d) of clusters, zero where there is no weight."""
    out = np.zeros((k, x.shape[1]))
    for j in range(k):
        own = [i for i in range(len(x)) if labels[i] == j]
        mass = math.fsum(w[i] for i in own)
        for f in range(x.shape[1] if mass else 0):
            out[j, f] = math.fsum(w[i] * x[i, f] for i in own) / mass
    return out


def loop_squared(row, c):
    return [math.fsum((a - b) ** 2 for a, b in zip(row, other, strict=True)) for other in c]


def loop_assign(x, c, temperature):
    """Probabilities (n, k)."""
    out = np.zeros((len(x), len(c)))
    for i, row in enumerate(x):
        squared = loop_squared(row, c)
        shares = [math.exp(-(s - min(squared)) / temperature) for s in squared]
        out[i] = [share / math.fsum(shares) for share in shares]
    return out


def loop_memberships(x, c, m):
    """Memberships (n, k); a row on centroids is shared by these alone."""
    out = np.zeros((len(x), len(c)))
    for i, row in enumerate(x):
        squared = loop_squared(row, c)
        if min(squared) == 0:
            shares = [float(s == 0) for s in squared]
        else:
            shares = [(min(squared) / s) ** (1 / (m - 1)) for s in squared]
        out[i] = [share / math.fsum(shares) for share in shares]
    return out


def loop_soft_kmeans(x, c, w, m, passes):
    """Centroids after so many passes, and of these the memberships and the objective."""
    for _ in range(passes):
        u = loop_memberships(x, c, m) ** m
        c = np.stack(
            [
                np.array([math.fsum(w * u[:, j] * x[:, f]) for f in range(x.shape[1])])
                / math.fsum(w * u[:, j])
                for j in range(len(c))
            ]
        )
    u = loop_memberships(x, c, m)
    cost = [
        w[i] * u[i, j] ** m * s for i in range(len(x)) for j, s in enumerate(loop_squared(x[i], c))
    ]
    return c, u, math.fsum(cost)


def naive_assign(x, c, t):
    """Probabilities with all differences at once, for PyTorch's own derivatives."""
    return torch.softmax(-((x[:, None] - c) ** 2).sum(-1) / t, dim=1)


# -- what is measured ---------------------------------------------------------------------------


class Peak(TorchDispatchMode):
    """The most bytes alive at once of tensors that operators have made, besides those `known`."""

    def __init__(self, *known):
        super().__init__()
        self.known = {t.untyped_storage()._cdata for t in known}
        self.live, self.most, self.largest = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.live = {key: own for key, own in self.live.items() if not own[0].expired()}
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor):
                storage = t.untyped_storage()
                if storage._cdata not in self.known | self.live.keys():
                    self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                    self.largest = max(self.largest, storage.nbytes())
        self.most = max(self.most, sum(bytes_ for _, bytes_ in self.live.values()))
        return out


def tensors(result):
    return [each for each in tree_leaves(tuple(result)) if isinstance(each, torch.Tensor)]


def nbytes(arrays):
    return sum(a.numel() * a.element_size() for a in arrays)


def peaks(function, args):
    """The most bytes of temporaries on the way there and back, beyond results and gradients."""
    with Peak(*args) as there:
        result = function(*args)
    out = tensors(result) if isinstance(result, tuple | SoftKMeansResult) else [result]
    seeds = [torch.ones_like(each) for each in out]
    with Peak(*args, *out, *seeds) as back:
        found = torch.autograd.grad(out, args, seeds)
    return there.most - nbytes(out), back.most - nbytes(found)


def test_the_peak_counts_what_is_alive_and_not_what_is_gone():
    with Peak() as peak:
        a = torch.zeros(1000, dtype=torch.float64)
        b = a + 1
        del a
        b = b * 2
        b.add_(1)
        b.view(10, 100)
    assert peak.most == 16000
    assert peak.largest == 8000


def blobs(make, n=36, d=3, k=4, dtype="float64", seed=0):
    """Overlapping rows around `k` places, the places, and weights."""
    draw = np.random.default_rng(seed)
    places = draw.normal(size=(k, d)) * 3
    x = places[np.arange(n) % k] + draw.normal(size=(n, d))
    return make(x, dtype), make(places, dtype), make(draw.uniform(0.5, 2, n), dtype)


def grad(a):
    return a.clone().requires_grad_()


# -- cluster_means ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_means_have_the_bits_of_kmeans(make, dtype, weighted):
    x, _, w = blobs(make, 500, dtype=dtype)
    w = w.float() if weighted else None
    result = kmeans(x, 5, sample_weight=w, tol=0.0, rng=0)
    assert result.converged
    means = cluster_means(grad(x), result.labels, 5, w)
    assert means.dtype == result.centroids.dtype
    assert means.device == x.device
    assert torch.equal(means.detach(), result.centroids)
    order = torch.randperm(500, device=x.device)
    again = cluster_means(
        x[order], result.labels[order], 5, None if w is None else w[order], max_bytes=6000
    )
    assert torch.equal(again, result.centroids)


def test_means_are_those_of_loops(make, host):
    x, _, w = blobs(make, 60)
    labels = np.random.default_rng(1).integers(0, 6, 60)
    labels[labels == 2] = 3
    found = cluster_means(x, make(labels), 6, w)
    np.testing.assert_allclose(
        host(found), loop_means(host(x), labels, 6, host(w)), rtol=2e-15, atol=0
    )
    assert not host(found)[2].any()


def test_means_have_gradients(make):
    x, _, w = blobs(make, 20)
    labels = make(np.arange(20) % 3)
    at = (grad(x), grad(w))
    # Nondeterministic by atomics, of second derivatives on a GPU.
    assert gradcheck(lambda x, w: cluster_means(x, labels, 5, w), at)
    assert gradgradcheck(lambda x, w: cluster_means(x, labels, 5, w), at, nondet_tol=1e-12)
    assert gradcheck(lambda x: cluster_means(x, labels, 5), at[:1])
    assert gradcheck(lambda w: cluster_means(x, labels, 5, w, max_bytes=1500), at[1:])


def test_a_batch_is_each_problem_by_itself(make):
    x, _, w = blobs(make, 24)
    labels = make(np.arange(24) % 3)
    batch, each = grad(x.reshape(4, 6, 3)), grad(x.reshape(4, 6, 3))
    of_all, own = grad(w[:6]), grad(w[:6])
    together = cluster_means(batch, labels.reshape(4, 6), 3, of_all)
    alone = [cluster_means(each[i], labels.reshape(4, 6)[i], 3, own) for i in range(4)]
    assert torch.equal(together, torch.stack(alone))
    pull = torch.randn_like(together)
    together.backward(pull)
    torch.stack(alone).backward(pull)
    assert torch.equal(batch.grad, each.grad)
    torch.testing.assert_close(of_all.grad, own.grad, rtol=1e-14, atol=1e-15)
    assert gradcheck(lambda x, w: cluster_means(x, labels.reshape(4, 6), 3, w), (batch, of_all))


def test_the_mean_of_nothing_is_zero_and_pulls_at_nothing(make):
    x = grad(make([[1.0], [2.0], [7.0]]))
    w = grad(make([1.0, 3.0, 0.0]))
    means = cluster_means(x, make([0, 0, 2]), 4, w)
    assert means[:, 0].tolist() == [1.75, 0, 0, 0]
    means.backward(torch.full_like(means, 8.0))
    assert x.grad[:, 0].tolist() == [2.0, 6.0, 0.0]
    assert w.grad.tolist() == [8 * (1 - 1.75) / 4, 8 * (2 - 1.75) / 4, 0.0]


def test_weights_may_be_one_number_a_list_or_huge(make):
    x, _, w = blobs(make, 12)
    labels = make(np.arange(12) % 3)
    plain, weighted = grad(x), grad(x)
    one = grad(make(2.0).reshape(()))
    a, b = cluster_means(plain, labels, 3), cluster_means(weighted, labels, 3, one)
    assert torch.equal(a, b)
    pull = torch.randn_like(a)
    a.backward(pull)
    b.backward(pull)
    torch.testing.assert_close(plain.grad, weighted.grad, rtol=1e-15, atol=0)
    assert abs(one.grad) < 1e-15  # as it weighs all alike
    assert torch.equal(
        cluster_means(x, labels.tolist(), 3, w.tolist()), cluster_means(x, labels, 3, w)
    )
    large = grad(w * 2.0**900)
    means = cluster_means(grad(x), labels, 3, large)
    assert torch.equal(means, cluster_means(x, labels, 3, w))
    means.sum().backward()
    own = grad(w)
    cluster_means(x, labels, 3, own).sum().backward()
    assert torch.equal(large.grad, own.grad * 2.0**-900)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_means_have_the_dtype_of_rows(make, dtype):
    x, _, w = blobs(make, 40, dtype=dtype)
    x = x.T.contiguous().T.requires_grad_()  # not contiguous
    before = x.detach().clone()
    w = grad(w)
    means = cluster_means(x, make(np.arange(40) % 4), 4, w)
    pull = torch.randn_like(means)
    means.backward(pull)
    assert torch.equal(x.detach(), before)
    assert (x.grad.dtype, w.grad.dtype) == (x.dtype, w.dtype)
    wide, weights = (grad(a.detach().double()) for a in (x, w))
    cluster_means(wide, make(np.arange(40) % 4), 4, weights).backward(pull.double())
    assert torch.equal(x.grad, wide.grad.to(x.dtype))
    ulp = torch.finfo(w.dtype).eps
    torch.testing.assert_close(w.grad.double(), weights.grad, rtol=ulp, atol=8 * 2.0**-24)


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"x": np.zeros((3, 1))}, TypeError, r"`x` must be a PyTorch tensor; got ndarray"),
        ({"labels": [0, 1, 5]}, ValueError, r"from 0 to k - 1; got labels\[2\]=5 with k=2"),
        ({"labels": [0, -1, 5]}, ValueError, r"labels\[1\]=-1 with k=2"),
        ({"labels": [0.0, 1.0, 1.0]}, TypeError, r"`labels` must be integers; got dtype float64"),
        ({"labels": [True, False, True]}, TypeError, r"`labels` must be integers; got dtype bool"),
        ({"labels": [0, 1]}, ValueError, r"`labels` must have shape \(3,\).*got shape \(2,\)"),
        ({"labels": np.zeros(3, int)}, ValueError, r"`labels` must live where `x` does"),
        ({"k": 0}, ValueError, r"`k` must be at least 1"),
        ({"k": 2.0}, TypeError, r"`k` must be a whole number"),
        ({"sample_weight": [1.0, -1.0, 1.0]}, ValueError, r"`sample_weight` must not be negative"),
        ({"sample_weight": [0.0] * 3}, ValueError, r"`sample_weight` must not be all zero"),
        ({"max_bytes": 10}, ValueError, r"`max_bytes` must hold the work on a single row"),
    ],
)
def test_errors_of_means_name_the_argument(make, change, kind, says):
    given = {"x": make([[0.0], [1.0], [2.0]]), "labels": make([0, 1, 1]), "k": 2} | change
    with pytest.raises(kind, match=says):
        cluster_means(**given)


def test_the_first_bad_label_of_a_batch_is_named(make):
    with pytest.raises(ValueError, match=r"labels\[1, 0\]=9"):
        cluster_means(make(np.zeros((2, 2, 1))), make([[0, 1], [9, 8]]), 2)
    with pytest.raises(ValueError, match=r"`x\[1\]` must be finite; got NaN"):
        cluster_means(make([[[0.0]], [[np.nan]]]), make([[0], [0]]), 1)


# -- soft_assign --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0.0, 3000.0])
def test_assignments_are_those_of_loops(make, host, dtype, offset):
    x, c, _ = blobs(make, 40, dtype=dtype)
    x, c = x + offset, c + offset
    found = soft_assign(x, c, 2.5)
    assert found.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    wanted = loop_assign(*(host(a).astype(np.float64) for a in (x, c)), 2.5)
    np.testing.assert_allclose(host(found), wanted, rtol=1e-11 if dtype == "float64" else 6.1e-8)


@pytest.mark.parametrize("way", ["products", "differences"])
def test_products_are_taken_where_they_are_as_good(make, host, way, monkeypatch):
    """Clusters a million apart, rows near one of them: a product would lose what is between these."""
    draw = np.random.default_rng(0)
    far = 0.0 if way == "products" else 1e6
    c = np.array([[0.0, 0], [1, 0], [0, 1]]) + np.array([[0.0], [0], [far]])
    x = draw.normal(size=(30, 2))
    taken, cdist = [], torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda *a, **how: taken.append(1) or cdist(*a, **how))
    found = soft_assign(make(x), make(c), 10.0)
    assert bool(taken) == (way == "differences")
    np.testing.assert_allclose(host(found), loop_assign(x, c, 10.0), rtol=1e-12, atol=0)


def test_assignments_have_gradients(make):
    x, c, _ = blobs(make, 12)
    at = tuple(grad(a) for a in (x, c, make(1.7).reshape(())))
    assert gradcheck(soft_assign, at)
    assert gradgradcheck(soft_assign, at)
    assert gradcheck(lambda *a: soft_assign(*a, max_bytes=8000), at)
    one = grad(make([1.7]))  # as a parameter may be
    soft_assign(x, c, one)[:, 0].sum().backward()
    assert one.grad.shape == (1,)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_gradients_in_low_precision_are_those_of_float64_rounded(make, dtype):
    x, c, _ = blobs(make, 60, dtype=dtype)
    x, c = x + 100, c + 100
    x, c, t = x.requires_grad_(), c.requires_grad_(), grad(make(3.0, "float32"))
    p = soft_assign(x, c, t)
    pull = torch.randn_like(p) + 50  # most of which is common to all centroids, and enters nothing
    p.backward(pull)
    wide = [grad(a.detach().double()) for a in (x, c, t)]
    naive_assign(*wide).backward(pull.double())
    for own, other in zip((x, c, t), wide, strict=True):
        assert own.grad.dtype == own.dtype
        eps = torch.finfo(own.dtype).eps
        room = {"rtol": eps, "atol": 1e-6 * float(other.grad.abs().max())}
        torch.testing.assert_close(own.grad.double(), other.grad, **room)


@pytest.mark.parametrize("size", [1e-300, 1e-30, 1.0, 1e30, 1e300])
@pytest.mark.parametrize("temperature", [1e-300, 1e-12, 1.0, 1e12, 1e300])
def test_assignments_are_stable(make, size, temperature):
    x, c = grad(make([[size], [2 * size], [-size]])), grad(make([[size], [-size]]))
    t = grad(make(temperature))
    p = soft_assign(x, c, t)
    assert torch.isfinite(p).all()
    torch.testing.assert_close(p.sum(dim=1), torch.ones_like(p[:, 0]), rtol=1e-15, atol=0)
    assert (p[:2, 0] >= 0.5).all()
    assert p[2, 1] >= 0.5
    p[:, 0].sum().backward()
    for a in (x, c, t):
        assert not a.grad.isnan().any()


def test_low_temperatures_are_the_labels_and_high_ones_are_uniform(make):
    x, c, _ = blobs(make, 50)
    hard = soft_assign(x, c, 1e-6)
    assert torch.equal(hard.argmax(dim=1), torch.cdist(x, c).argmin(dim=1))
    assert hard.max(dim=1).values.min() == 1
    torch.testing.assert_close(soft_assign(x, c, 1e12), torch.full_like(hard, 0.25))


def test_one_of_each_and_all_alike(make):
    assert soft_assign(make([[3.0]]), make([[5.0]])).tolist() == [[1.0]]
    x = grad(make(np.ones((3, 2))))
    p = soft_assign(x, make(np.ones((4, 2))), 0.1)
    assert torch.equal(p, torch.full_like(p, 0.25))
    p.prod().backward()
    assert not x.grad.any()


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"x": [[0.0]]}, TypeError, r"`x` must be a PyTorch tensor; got list"),
        ({"centroids": np.zeros((1, 1))}, TypeError, r"`centroids` must be a PyTorch tensor"),
        ({"temperature": 0.0}, ValueError, r"`temperature` must be positive and finite"),
        ({"temperature": -1}, ValueError, r"`temperature` must be positive"),
        ({"temperature": math.inf}, ValueError, r"`temperature` must be positive and finite"),
        ({"temperature": math.nan}, ValueError, r"`temperature` must be positive and finite"),
        ({"temperature": "1"}, TypeError, r"`temperature` must be a number; got '1'"),
        ({"temperature": True}, TypeError, r"`temperature` must be a number"),
        ({"temperature": None}, TypeError, r"`temperature` must be a number"),
        ({"temperature": torch.ones(2)}, ValueError, r"`temperature` must be one number"),
        ({"max_bytes": 100}, ValueError, r"`max_bytes` must hold the work on a single row"),
        ({"max_bytes": "all"}, TypeError, r"`max_bytes` must be a whole number"),
    ],
)
def test_errors_of_assignments_name_the_argument(make, change, kind, says):
    given = {"x": make([[0.0], [1.0]]), "centroids": make([[0.0]])} | change
    with pytest.raises(kind, match=says):
        soft_assign(**given)


def test_values_that_cannot_be_assigned_are_refused(make):
    good = make([[0.0, 1.0]])
    for bad, says in [
        (make([[0.0, np.nan]]), "must be finite; got NaN"),
        (make([[0.0, np.inf]]), "must be finite; got"),
        (make([0.0]), "dimensions"),
    ]:
        with pytest.raises(ValueError, match=f"`x` must.*|{says}"):
            soft_assign(bad, good)
    with pytest.raises(ValueError, match="`centroids` must be finite"):
        soft_assign(good, make([[0.0, np.nan]]))
    with pytest.raises(ValueError, match=r"`centroids` must have shape \(k, 2\)"):
        soft_assign(good, make([[0.0]]))


# -- soft_kmeans --------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [1.1, 2.0, 3.5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_soft_kmeans_is_that_of_loops(make, host, m, dtype):
    x, c, w = blobs(make, 40, dtype=dtype)
    x[0] = c[1]  # on a centroid
    with_grad = grad(x)
    result = soft_kmeans(
        x, 4, fuzziness=m, sample_weight=w, init=c, max_iter=5, tol=0.0, max_bytes=20000
    )
    assert (result.n_iter, result.converged) == (5, False)
    wide = [host(a).astype(np.float64) for a in (x, c, w)]
    centroids, u, cost = loop_soft_kmeans(*wide, m, 5)
    room = {"rtol": 1e-11, "atol": 1e-12} if dtype == "float64" else {"rtol": 2e-5, "atol": 2e-6}
    for found, wanted in zip(result, (centroids, u, cost), strict=False):
        np.testing.assert_allclose(host(found), wanted, **room)
    assert result.centroids.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    assert result.memberships.dtype == result.centroids.dtype
    assert not result.centroids.requires_grad
    with pytest.warns(ConvergenceWarning, match=r"max_iter=1"):
        assert soft_kmeans(with_grad, 4, init=c, max_iter=1).centroids.requires_grad


def test_it_stops_when_memberships_stay(make):
    x, c, _ = blobs(make, 60)
    result = soft_kmeans(x, 4, init=c, tol=1e-4)
    assert result.converged
    before, last = (
        soft_kmeans(x, 4, init=c, tol=0.0, max_iter=i).centroids
        for i in (result.n_iter - 2, result.n_iter - 1)
    )
    # Memberships of pass i are those of the centroids of pass i - 1.
    a, b = (soft_kmeans(x, 4, init=each, max_iter=1) for each in (before, last))
    first, second = (
        loop_memberships(x.cpu().numpy(), each.cpu().numpy(), 2.0) for each in (before, last)
    )
    assert np.abs(second - first).max() <= 1e-4
    torch.testing.assert_close(b.centroids, result.centroids, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(a.centroids, last, rtol=1e-12, atol=1e-12)
    exact = soft_kmeans(x, 4, init=c, tol=1e-15, max_iter=5000)
    assert exact.converged
    again = soft_kmeans(x, 4, init=exact.centroids, max_iter=1)
    torch.testing.assert_close(again.centroids, exact.centroids, rtol=1e-12, atol=1e-12)


def test_it_starts_as_kmeans_does(make):
    x, _, w = blobs(make, 200)
    a = soft_kmeans(x, 4, sample_weight=w, rng=7)
    b = soft_kmeans(x, 4, sample_weight=w, rng=7)
    assert all(torch.equal(i, j) for i, j in zip(tensors(a), tensors(b), strict=True))
    seen = []

    def init(x, k, rng):
        seen.append((tuple(x.shape), k))
        return x[:k]

    c = soft_kmeans(x, 4, init=init).centroids
    assert seen == [((200, 3), 4)]
    assert torch.equal(c, soft_kmeans(x, 4, init=x[:4]).centroids)
    centroids, memberships, objective, n_iter, converged = a
    assert isinstance(a, SoftKMeansResult)
    assert (centroids.shape, memberships.shape, objective.shape) == ((4, 3), (200, 4), ())
    assert 1 < n_iter < 300
    assert converged is True


@pytest.mark.parametrize("m", [1.3, 2.0, 3.0, 5.0])
def test_soft_kmeans_has_gradients(make, m):
    x, c, w = blobs(make, 16, 2, 3)
    how = {"init": c, "tol": 1e-13, "max_iter": 3000, "fuzziness": m, "max_bytes": 6000}
    at = (grad(x), grad(w))
    result = soft_kmeans(at[0], 3, sample_weight=at[1], **how)
    assert result.converged
    # So that no two are one, where there are no gradients.
    assert torch.pdist(result.centroids.detach()).min() > 0.5
    assert gradcheck(
        lambda x, w: tuple(soft_kmeans(x, 3, sample_weight=w, **how))[:3], at, atol=1e-6, rtol=1e-4
    )


def test_gradients_are_those_of_unrolled_passes(make):
    x, c, _ = blobs(make, 30)
    mine, other = grad(x), grad(x)
    result = soft_kmeans(mine, 4, init=c, tol=1e-14, max_iter=2000)
    each = c
    for _ in range(result.n_iter):
        squared = ((other[:, None] - each) ** 2).sum(-1)
        u = (1 / squared) / (1 / squared).sum(1, keepdim=True)
        each = (u**2).T @ other / (u**2).sum(0)[:, None]
    pull = torch.randn_like(each)
    result.centroids.backward(pull)
    each.backward(pull)
    torch.testing.assert_close(mine.grad, other.grad, rtol=1e-7, atol=1e-9)


def test_the_objective_alone_needs_no_passes(make, monkeypatch):
    x, c, w = blobs(make, 30)
    x, w = grad(x), grad(w)
    result = soft_kmeans(x, 4, init=c, sample_weight=w, tol=1e-13, max_iter=2000)
    from anykmeans.torch import fuzzy

    def none(*args):
        raise AssertionError("a pass for what is zero")

    monkeypatch.setattr(fuzzy._Fuzzy, "residual_back", none)
    result.objective.backward()
    with torch.no_grad():
        u, c = result.memberships, result.centroids
        apart = x[:, None] - c
        torch.testing.assert_close(
            x.grad, (2 * w[:, None, None] * (u**2)[..., None] * apart).sum(1)
        )
        torch.testing.assert_close(w.grad, (u**2 * (apart**2).sum(-1)).sum(1))


def test_rows_on_centroids_have_finite_gradients(make):
    x = grad(make([[0.0, 0.0], [1.0, 0.0], [5.0, 5.0]]))
    for m in (1.2, 2.0, 3.0, 6.0):
        result = soft_kmeans(x, 3, init=x.detach(), fuzziness=m)
        assert torch.equal(result.memberships, torch.eye(3, dtype=x.dtype, device=x.device))
        assert torch.equal(result.centroids, x)
        pull = torch.arange(6.0, dtype=x.dtype, device=x.device).reshape(3, 2)
        (own,) = torch.autograd.grad(result.centroids, x, pull, retain_graph=True)
        torch.testing.assert_close(own, pull, rtol=1e-14, atol=0)  # each moves with its row
        for each in (result.memberships.sum(), result.objective):
            (own,) = torch.autograd.grad(each, x, retain_graph=True)
            assert not own.any()


def test_duplicates_share_rows_and_have_no_nan(make):
    x = grad(make([[0.0], [0.0], [4.0], [4.0], [4.0]]))
    result = soft_kmeans(x, 4, init=make([[0.0], [0.0], [4.0], [4.0]]))
    assert result.memberships.tolist() == [[0.5, 0.5, 0, 0]] * 2 + [[0, 0, 0.5, 0.5]] * 3
    (result.centroids.sum() + (result.memberships**2).sum() + result.objective).backward()
    torch.testing.assert_close(x.grad[:, 0], make([1.0, 1.0, 2 / 3, 2 / 3, 2 / 3]))
    alone = soft_kmeans(grad(make([[3.0]])), 1)
    assert (alone.centroids.tolist(), alone.memberships.tolist()) == ([[3.0]], [[1.0]])
    same = grad(make(np.ones((6, 2))))
    soft_kmeans(same, 3, rng=0).centroids.sum().backward()
    torch.testing.assert_close(same.grad, torch.full_like(same, 0.5))


def test_one_cluster_is_the_mean(make):
    x, _, w = blobs(make, 20)
    x, w = grad(x), grad(w)
    soft = soft_kmeans(x, 1, sample_weight=w).centroids
    mean = cluster_means(x, torch.zeros(20, dtype=torch.int64, device=x.device), 1, w)
    torch.testing.assert_close(soft, mean, rtol=1e-14, atol=1e-15)
    pull = torch.randn_like(mean)
    for a, b in zip(
        torch.autograd.grad(soft, (x, w), pull),
        torch.autograd.grad(mean, (x, w), pull),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_a_weight_is_a_repetition_and_units_are_free(make):
    x, c, _ = blobs(make, 20)
    twice = make(np.where(np.arange(20) < 7, 2.0, 1.0))
    how = {"tol": 1e-13, "max_iter": 2000}
    a = soft_kmeans(x, 4, init=c, sample_weight=twice, **how)
    b = soft_kmeans(torch.cat([x, x[:7]]), 4, init=c, **how)
    torch.testing.assert_close(a.centroids, b.centroids, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(a.objective, b.objective, rtol=1e-12, atol=0)
    small, weights = grad(x * 2.0**-500), grad(twice * 2.0**700)
    scaled = soft_kmeans(small, 4, init=c * 2.0**-500, sample_weight=weights, **how)
    torch.testing.assert_close(scaled.centroids * 2.0**500, a.centroids, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(scaled.objective * 2.0**300, a.objective, rtol=1e-12, atol=0)
    plain, own = grad(x), grad(twice)
    a = soft_kmeans(plain, 4, init=c, sample_weight=own, **how)
    (a.centroids[0].sum() + a.objective).backward()
    (scaled.centroids[0].sum() * 2.0**500 + scaled.objective * 2.0**300).backward()
    torch.testing.assert_close(small.grad * 2.0**-500, plain.grad, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(weights.grad * 2.0**700, own.grad, rtol=1e-9, atol=1e-10)


def test_pulls_of_near_rows_keep_their_digits(make, host):
    """A pull as large as a distance is small, far from the offset: a product alone would drown it in rounding."""
    y = np.array([[1e-9, 1.0], [3.0, -2.0]])
    c = np.array([[0.0, 1.0], [5.0, 3.0], [-2.0, 8.0]])
    pulls = np.array([[1e18, 2.0, 3.0], [1.0, -1.0, 0.5]])
    near = torch.cdist(make(y), make(c)).argmin(dim=1)
    pairs = Pairs.of(make(y), make(c), 8.0, None)
    to_rows, to_c = pairs.pull(make(pulls), make(y), near)
    rows, centres = np.zeros((2, 2)), np.zeros((3, 2))
    for i in range(2):
        for j in range(3):
            rows[i] += 2 * pulls[i, j] * (y[i] - c[j])
            centres[j] -= 2 * pulls[i, j] * (y[i] - c[j])
    np.testing.assert_allclose(host(to_rows), rows, rtol=1e-14, atol=1e-13)
    np.testing.assert_allclose(host(to_c), centres, rtol=1e-14, atol=1e-13)


def exact_ways_back(x, c, z, g, m, root):
    """What z . dr/dc and -z . dr/dx are, and what gradients `g` of memberships are to x and c: in fractions.

    Memberships are in proportion to one over the `root` of squared distances.
    """
    x, c, z, g = ([[Fraction(value) for value in row] for row in a.tolist()] for a in (x, c, z, g))
    n, k, d = len(x), len(c), len(c[0])
    found = [[[Fraction(0)] * d for _ in range(size)] for size in (k, n, n, k)]
    on_c, on_x, u_x, u_c = found
    power = Fraction(1, m - 1)
    for i in range(n):
        apart = [[c[j][f] - x[i][f] for f in range(d)] for j in range(k)]
        squared = [sum(a * a for a in row) for row in apart]
        u = [1 / root(s) / sum(1 / root(other) for other in squared) for s in squared]
        moves = [u[j] ** m * sum(z[j][f] * apart[j][f] for f in range(d)) for j in range(k)]
        mean = sum(u[j] * g[i][j] for j in range(k))
        for j in range(k):
            pull = -(1 + power) * (moves[j] - u[j] * sum(moves)) / squared[j]
            own = -power * u[j] * (g[i][j] - mean) / squared[j]
            for f in range(d):
                on_c[j][f] += u[j] ** m * z[j][f] + 2 * pull * apart[j][f]
                on_x[i][f] += u[j] ** m * z[j][f] + 2 * pull * apart[j][f]
                u_c[j][f] += 2 * own * apart[j][f]
                u_x[i][f] -= 2 * own * apart[j][f]
    return [np.array([[float(value) for value in row] for row in each]) for each in found]


def check_ways_back(make, host, x, c, m, root):
    draw = np.random.default_rng(0)
    z, g = draw.normal(size=c.shape), draw.normal(size=(len(x), len(c)))
    g += 10  # most of which is common to all memberships
    wanted = exact_ways_back(x, c, z, g, m, root)
    fuzzy = _Fuzzy(float(m), 0, 8.0, None)
    pairs = fuzzy.pairs(make(x), make(c))
    to_x, from_u = torch.zeros_like(pairs.x), torch.zeros_like(pairs.x)
    on_c = fuzzy.residual_back(pairs, None, make(z), to_x)
    u_c = fuzzy.memberships_back(pairs, None, make(g), None, from_u, None)
    for found, exact in zip((on_c, to_x, from_u, u_c), wanted, strict=True):
        np.testing.assert_allclose(host(found), exact, rtol=2e-12, atol=2e-14)


@pytest.mark.parametrize("apart", [0.5, 1e-3, 1e-5, 1e-7, 1e-10])
def test_ways_back_keep_their_digits_near_centroids(make, host, apart):
    x = np.array([[2.0 + apart, 1.0], [3.0, -2.0], [5.0, 4.0]])
    c = np.array([[2.0, 1.0], [5.0, 3.0], [-2.0, 8.0]])
    check_ways_back(make, host, x, c, 2, lambda squared: squared)


@pytest.mark.parametrize("bits", [4, 20, 40])
def test_ways_back_keep_their_digits_where_memberships_are_steep(make, host, bits):
    """At fuzziness 5 memberships go by the root of a distance: distances that are squares have one."""

    def root(squared):
        whole = (
            math.isqrt(math.isqrt(squared.numerator)),
            math.isqrt(math.isqrt(squared.denominator)),
        )
        assert Fraction(*whole) ** 4 == squared
        return Fraction(*whole)

    x, c = np.array([[16.0]]), np.array([[16 + 2.0**-bits], [25.0], [12.0]])
    check_ways_back(make, host, x, c, 5, root)


@pytest.mark.parametrize("apart", [1e-3, 1e-6, 1e-9, 1e-12])
def test_gradients_are_right_for_rows_near_centroids(make, apart):
    """As close as that all but one membership are nearly zero: each centroid moves with its row."""
    rows = np.array([[0.0, 7.0], [3.0, 6.0], [-2.0, 5.0]])
    x = grad(make(np.concatenate([rows, rows + apart])))
    result = soft_kmeans(x, 3, init=make(rows), tol=1e-15)
    result.centroids.sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 0.5), rtol=0, atol=10 * apart**2 + 1e-13)


def test_what_is_no_strict_minimum_has_no_gradient(make):
    x = grad(make([[-1.0], [0.5], [0.75], [1.0], [2.0]]))
    # Two centroids in one place stay there, on a saddle.
    result = soft_kmeans(x, 2, init=make([[0.0], [0.0]]), fuzziness=1.5)
    assert result.converged
    with pytest.raises(RuntimeError, match="no strict minimum"):
        result.centroids[0].sum().backward()
    x, c, _ = blobs(make, 60)
    few = soft_kmeans(grad(x), 4, init=soft_kmeans(x, 4, init=c).centroids, max_iter=2)
    assert few.converged
    with pytest.raises(RuntimeError, match=r"not found in max_iter=2 passes"):
        few.centroids.sum().backward()


def test_gradients_are_not_differentiated_again(make):
    x, c, _ = blobs(make, 20)
    x = grad(x)
    loss = soft_kmeans(x, 4, init=c).centroids.sum()
    with pytest.raises(RuntimeError, match=r"`create_graph=True` is not supported by soft_kmeans"):
        torch.autograd.grad(loss, x, create_graph=True)


def test_without_gradients_there_is_no_graph_and_no_warning(make):
    x, c, _ = blobs(make, 20)
    with torch.no_grad():
        result = soft_kmeans(grad(x), 4, init=c, max_iter=1)
    assert not result.centroids.requires_grad
    whole = soft_kmeans(make(np.arange(12).reshape(6, 2)), 2, rng=0)
    assert whole.centroids.dtype == torch.float64


def test_clusters_without_members_stay(make):
    x = grad(make([[0.0], [1.0], [2.0]]))
    result = soft_kmeans(x, 2, init=make([[1.0], [1e6]]), fuzziness=1.01, max_iter=1000)
    assert result.centroids[1] == 1e6
    result.centroids.sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 1 / 3))
    with pytest.raises(
        ValueError, match=r"`fuzziness` must leave some membership; got fuzziness=5000"
    ):
        soft_kmeans(make([[0.0], [1.0], [3.0]]), 2, init=make([[0.5], [2.0]]), fuzziness=5000)


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"x": [[0.0]]}, TypeError, r"`x` must be a PyTorch tensor; got list"),
        ({"k": 4}, ValueError, r"`k` must be between 1 and the number of rows"),
        (
            {"fuzziness": 1.0},
            ValueError,
            r"`fuzziness` must be finite and above 1; got fuzziness=1.0",
        ),
        ({"fuzziness": math.inf}, ValueError, r"`fuzziness` must be finite and above 1"),
        ({"fuzziness": math.nan}, ValueError, r"`fuzziness` must be finite and above 1"),
        ({"fuzziness": "2"}, TypeError, r"`fuzziness` must be a number; got '2'"),
        ({"sample_weight": [1.0, 1.0]}, ValueError, r"`sample_weight` must have shape \(3,\)"),
        ({"init": "best"}, ValueError, r"`init` must be one of"),
        ({"max_iter": 0}, ValueError, r"`max_iter` must be at least 1"),
        ({"tol": -1.0}, ValueError, r"`tol` must be finite and not negative"),
        ({"rng": "seed"}, TypeError, r"`rng` must be None, a seed"),
        ({"max_bytes": 1}, ValueError, r"`max_bytes` must hold the work on a single row"),
    ],
)
def test_errors_of_soft_kmeans_name_the_argument(make, change, kind, says):
    given = {"x": make([[0.0], [1.0], [2.0]]), "k": 2} | change
    with pytest.raises(kind, match=says):
        soft_kmeans(**given)


# -- all of them --------------------------------------------------------------------------------


def everything(x, c, w, labels):
    """Results and gradients of all functions."""
    x, c, w = grad(x), grad(c), grad(w)
    soft = soft_kmeans(x, c.shape[0], init=c.detach(), sample_weight=w)
    out = [cluster_means(x, labels, c.shape[0], w), soft_assign(x, c, 2.0), *tensors(soft)]
    pull = [
        torch.linspace(-1, 1, a.numel(), dtype=a.dtype, device=a.device).reshape(a.shape)
        for a in out
    ]
    torch.autograd.backward(out, pull)
    return [a.detach() for a in out] + [x.grad, c.grad, w.grad]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_autocast_changes_nothing(make, dtype):
    x, c, w = blobs(make, 64, 8, dtype=dtype)
    labels = make(np.arange(64) % 4)
    plain = everything(x, c, w, labels)
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        assert (x.float() @ c.float().T).dtype == torch.bfloat16  # autocast is at work
        cast = everything(x, c, w, labels)
    for a, b in zip(plain, cast, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_nothing_given_is_changed_whatever_its_strides(make):
    x, c, w = blobs(make, 64, 8)
    labels = make(np.arange(64) % 4)
    wanted = everything(x, c, w, labels)
    strided = [make(np.zeros((64, 16)))[:, ::2], c.T.contiguous().T, make(np.zeros(192))[::3]]
    for a, b in zip(strided, (x, c, w), strict=True):
        a.copy_(b)
    before = [a.clone() for a in strided]
    found = everything(*strided, labels.to(torch.int32))
    for a, b in zip(strided, before, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_torch_compile_leaves_them_alone(make):
    """What is compiled around them calls them as they are."""
    x, c, _ = blobs(make, 30)
    a, b = grad(x), grad(x)

    def loss(x):
        return (soft_assign(x * 1.0, c, 2.0) ** 2).sum()

    loss(a).backward()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what PyTorch itself deprecates meanwhile
        torch.compile(loss, backend="eager")(b).backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("n", "k", "d"), [(3000, 7, 5), (3000, 60, 4), (3000, 5, 90), (2000, 50, 50), (300, 150, 60)]
)
def test_temporaries_stay_within_the_budget(make, n, k, d, dtype):
    """There and back; a budget of which one array of rows and centroids, or of rows and features, would be too much."""
    x, c, w = (grad(a) for a in blobs(make, n, d, k, dtype))
    t, labels = grad(make(2.0, dtype)), make(np.arange(n) % k)
    floor = 8 * 12 * k * (d + 2)
    most = floor + 8 * 14 * max(n * k, n * d) // 10
    assert most < floor + 8 * n * max(k, d) * 1.5  # ten arrays that are not cut would not fit
    for there_and_back in (
        peaks(lambda *a: cluster_means(a[0], labels, k, a[1], max_bytes=most), (x, w)),
        peaks(lambda *a: soft_assign(*a, max_bytes=most), (x, c, t)),
        peaks(
            lambda *a: soft_kmeans(
                a[0], k, sample_weight=a[1], init=c.detach(), fuzziness=1.3, max_iter=900, tol=1e-4,
                max_bytes=most,
            ),
            (x, w),
        ),
    ):  # fmt: skip
        assert max(there_and_back) <= most


def test_means_of_many_clusters_make_no_matrix_of_rows_and_clusters(make):
    n, k = 20000, 3000
    x = make(np.random.default_rng(0).normal(size=(n, 2)), "float32").requires_grad_()
    labels = make(np.arange(n) % k)
    there, back = peaks(lambda x: cluster_means(x, labels, k), (x,))
    assert max(there, back) < n * k / 4


def test_memory_does_not_grow_with_the_passes(make):
    x, c, _ = blobs(make, 400)
    x = grad(x)
    most = []
    for passes in (3, 60):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            with Peak(x, c) as peak:
                result = soft_kmeans(x, 4, init=c, max_iter=passes, tol=0.0)
        assert result.n_iter == passes
        most.append(peak.most)
    assert most[0] == most[1]
