"""Codebooks: against plain loops, as bits on any number of processes, and through what PyTorch does with a module."""

import copy
import io
import math
import multiprocessing

import numpy as np
import pytest
import referee

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from anykmeans import _evaluate, _problems, kernels, kmeans  # noqa: E402
from anykmeans.sources import rows as source  # noqa: E402
from anykmeans.torch import (  # noqa: E402
    Codebook,
    ProductCodebook,
    ResidualCodebook,
    learning,
)

pytestmark = pytest.mark.only("torch", "torch:cuda")


@pytest.fixture
def device(backend):
    return torch.device(backend.device or "cpu")


def batches(number, n, d, *, seed=0, clusters=6, dtype=torch.float32):
    """Batches of rows around a few points."""
    rng = np.random.default_rng(seed)
    centers = 4 * rng.normal(size=(clusters, d))
    found = centers[rng.integers(clusters, size=(number, n))] + rng.normal(size=(number, n, d))
    return list(torch.asarray(found).to(dtype))


def same_state(a, b):
    """Whether two modules have learnt the same bits."""
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name].cpu(), b[name].cpu()) for name in a)


class Loops:
    """The rules of a codebook in float64: labels, decaying sums, and codes that are moved."""

    def __init__(self, c, counts, sums, decay, restart_after):
        self.c, self.counts, self.sums = c.copy(), counts.copy(), sums.copy()
        self.decay, self.restart_after = decay, restart_after
        self.idle = np.zeros(len(c), int)

    def __call__(self, x):
        labels, distances = referee.nearest(x, self.c)
        self.counts *= self.decay
        self.sums *= self.decay
        won = np.zeros(len(self.c), bool)
        for row, label in zip(x, labels, strict=True):
            self.counts[label] += 1
            self.sums[label] += row
            won[label] = True
        self.idle = np.where(won, 0, self.idle + 1)
        far = sorted(np.flatnonzero(distances), key=lambda i: (-distances[i], i))[:64]
        apart = {i: distances[i] for i in far}
        vacant = np.flatnonzero(self.idle >= self.restart_after)
        for j in sorted(vacant, key=lambda j: -self.idle[j]):
            i = max(far, key=apart.get)  # the first of equal ones
            if apart[i] == 0:
                break
            apart = {m: min(apart[m], referee.distances(x[[m]], x[[i]])[0, 0]) for m in far}
            self.counts[labels[i]] -= 1
            self.sums[labels[i]] -= x[i]
            self.counts[j], self.sums[j], self.idle[j], won[j] = 1, x[i], 0, True
        for j in np.flatnonzero(won & (self.counts > 0)):
            self.c[j] = self.sums[j] / self.counts[j]
        return labels


# -- what is learnt -----------------------------------------------------------------------------


def test_first_codes_are_those_of_kmeans(device):
    x = batches(1, 200, 5)[0].to(device)
    codebook = Codebook(6, 5, device=device, seed=3)
    quantized, codes, loss = codebook(x)
    found = kmeans(x, 6, rng=np.random.default_rng(3), init="k-means++")
    rows = x[torch.arange(48, device=device) * 200 // 48]
    assert codebook.seen == 48 == 8 * 6
    found = kmeans(rows, 6, rng=np.random.default_rng(3))
    assert torch.equal(codebook.codebook[0], found.centroids)
    labels, distances = referee.nearest(
        x.cpu().double().numpy(), found.centroids.cpu().double().numpy()
    )
    assert np.array_equal(codes.cpu(), labels)
    assert torch.equal(quantized, found.centroids[codes])
    assert float(loss) == pytest.approx(0.25 * distances.mean() / 5)


@pytest.mark.parametrize("decay", [0.0, 0.8, 0.99, 1.0])
def test_codes_move_as_in_plain_loops(device, decay):
    first, *rest = batches(30, 40, 3, dtype=torch.float64)
    codebook = Codebook(
        9, 3, decay=decay, restart_after=4, init_rows=40, device=device, dtype=torch.float64
    )
    codes = codebook(first.to(device)).codes.cpu().numpy()
    (stats,) = codebook.stats
    sums, mass = (torch.as_tensor(a).cpu().numpy() for a in stats.totals())
    for j in range(9):
        assert mass[j] == (codes == j).sum()
        assert sums[j] == pytest.approx(first.numpy()[codes == j].sum(axis=0))
    loops = Loops(codebook.codebook[0].cpu().numpy(), mass, sums, decay, 4)
    moved = 0
    for i, x in enumerate(rest):
        x += 100 * (i > 8)  # not as before: codes fall idle
        found = codebook(x.to(device))
        assert np.array_equal(found.codes.cpu(), loops(x.numpy()))
        assert np.array_equal(codebook.idle[0].cpu(), loops.idle)
        np.testing.assert_allclose(codebook.codebook[0].cpu(), loops.c, rtol=1e-12)
        moved += int(loops.idle.max() >= 3)
    assert moved, "no code fell idle: the rule was not tried"
    share = loops.counts / loops.counts.sum()
    np.testing.assert_allclose(codebook.usage[0].cpu(), share, rtol=1e-12)


def test_without_decay_codes_are_the_exact_means_of_all_rows_they_won(device):
    codebook = Codebook(5, 2, decay=1, init_rows=30, device=device)
    won = [[] for _ in range(5)]
    for i, x in enumerate(batches(20, 30, 2)):
        x = x * 10.0 ** (i % 5 - 2)  # sums in float32, or float64, would lose digits
        for row, code in zip(x.tolist(), codebook(x.to(device)).codes.tolist(), strict=True):
            won[code].append(row)
    for j, rows in enumerate(won):
        mean = [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]
        assert codebook.codebook[0, j].tolist() == np.float32(mean).tolist()


def test_the_order_of_rows_does_not_show(device):
    a, b = (Codebook(7, 4, device=device, init_rows=8) for _ in range(2))
    first, *rest = batches(6, 300, 4)
    for codebook in (a, b):
        codebook(first.to(device))
    for x in rest:
        a(x.to(device))
        b(x.flip(0).to(device))
        assert same_state(a, b)


def test_every_head_is_a_codebook_of_its_own(device):
    heads = Codebook(6, 3, heads=2, device=device, restart_after=3)
    alone = [Codebook(6, 3, device=device, restart_after=3) for _ in range(2)]
    rng = np.random.default_rng(0)  # as one generator draws for all heads
    rows = batches(12, 60, 6)
    c = [
        kmeans(rows[0].reshape(60, 2, 3)[torch.arange(48) * 60 // 48, h], 6, rng=rng)
        for h in (0, 1)
    ]
    for x in rows:
        x = x.reshape(4, 15, 2, 3).to(device)
        quantized, codes, loss = heads(x)
        if x is not None and int(heads.idle.max()) == 0 and c:
            for h, each in enumerate(alone):
                assert torch.equal(heads.codebook[h].cpu(), c[h].centroids)
                each.load_state_dict(
                    {
                        name: v if v.ndim == 0 else v[h : h + 1]
                        for name, v in heads.state_dict().items()
                    }
                )
            c = None
            continue
        found = [each(x[..., h, :]) for h, each in enumerate(alone)]
        assert codes.shape == (4, 15, 2)
        for h, each in enumerate(found):
            assert torch.equal(codes[..., h], each.codes)
            assert torch.equal(quantized[..., h, :], each.quantized)
            assert torch.equal(heads.codebook[h], alone[h].codebook[0])
        assert float(loss) == pytest.approx(float(found[0].loss + found[1].loss) / 2)
    quantized, codes, _ = heads.eval()(x)
    assert torch.equal(heads.decode(codes), quantized)


# -- the first batches --------------------------------------------------------------------------


def test_few_rows_at_a_time_are_clustered_together(device):
    rows = batches(6, 5, 3)
    codebook = Codebook(8, 3, init_rows=20, device=device)
    for i, x in enumerate(rows[:4]):
        quantized, _, _ = codebook(x.to(device))
        assert codebook.seen == 5 * (i + 1)
        if i == 0:  # fewer rows than codes: each is one
            assert torch.equal(quantized.cpu(), x)
    x = torch.cat(rows[:4])
    found = kmeans(x, 8, rng=np.random.default_rng(0))
    assert torch.equal(codebook.codebook[0].cpu(), found.centroids)
    codebook(rows[4].to(device))
    assert codebook.seen == 20
    assert not torch.equal(codebook.codebook[0].cpu(), found.centroids)
    assert codebook.train().first.numel() == 0


def test_fewer_distinct_rows_than_codes(device, recwarn):
    x = torch.tensor([[0.0, 1.0], [2.0, 3.0]], device=device).repeat(20, 1)
    codebook = Codebook(4, 2, device=device, restart_after=2)
    for _ in range(5):
        quantized, codes, loss = codebook(x)
        assert torch.equal(quantized, x)
        assert loss == 0
        assert set(codes.tolist()) == {0, 1}
    assert not recwarn.list
    codebook(x + 10)  # idle codes move to new rows
    assert len(set(codebook(x + 10).codes.tolist())) == 2
    assert torch.equal(codebook(x + 10).quantized, x + 10)


def test_given_codes(device):
    init = torch.tensor([[0.0], [1e-30], [5.0]], device=device)
    codebook = Codebook(3, 1, init=init, decay=0.5, device=device)
    assert codebook.eval()(init).codes.tolist() == [0, 1, 2]
    codebook.train()(torch.full((4, 1), 3e-30, device=device))  # tiny numbers have a grid as well
    assert codebook.codebook.flatten().tolist() == [0.0, np.float32(3e-30), 5.0]
    codebook(torch.full((4, 1), 1e30, device=device))  # as far from all codes, for float64
    assert codebook.codebook.flatten().tolist() == [np.float32(1e30), np.float32(3e-30), 5.0]
    heads = Codebook(3, 1, heads=2, init=init)
    assert torch.equal(heads.codebook, init.expand(2, 3, 1))
    assert torch.equal(init.flatten().cpu(), torch.tensor([0.0, 1e-30, 5.0]))  # never written to


@pytest.mark.parametrize("scale", [1e-35, 1e-20, 1.0, 1e20, 1e35])
def test_rows_of_any_size(device, scale):
    codebook = Codebook(4, 2, device=device)
    for x in batches(3, 50, 2, clusters=4):
        x = (x * 0.1 * scale).to(device)
        _, codes, _ = codebook(x)
    assert set(codes.tolist()) == {0, 1, 2, 3}
    plain = Codebook(4, 2, device=device, dtype=torch.float64)
    for x in batches(3, 50, 2, clusters=4):
        plain((x * 0.1 * scale).to(device).double() / scale)
    found = codebook.codebook.double() / scale
    torch.testing.assert_close(found, plain.codebook, rtol=1e-5, atol=1e-6)


def test_growing_rows_need_room(device):
    a, b = (Codebook(5, 2, device=device, decay=1) for _ in range(2))
    first, *rest = batches(6, 50, 2)
    for codebook in (a, b):
        codebook(first.to(device))
    b.exponents += 24  # room from the beginning
    b.sums.copy_(torch.as_tensor(a.stats[0].on(learning.State(*b._learnt).grid(0)).sums)[None])
    before = int(a.exponents)
    for i, x in enumerate(rest):
        x = (x * 2.0 ** (5 * i)).to(device)
        a(x)
        b(x)
    assert int(a.exponents) > before
    assert torch.equal(a.codebook, b.codebook)


# -- precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_change_no_code(device, dtype):
    half, single, cast = (Codebook(6, 4, device=device) for _ in range(3))
    for x in batches(8, 100, 4, dtype=dtype):
        x = x.to(device)
        found, expected = half(x), single(x.float())
        with torch.autocast(device.type, dtype=torch.bfloat16):
            beside = cast(x.float())
        assert torch.equal(found.codes, expected.codes)
        assert torch.equal(beside.codes, expected.codes)
        assert torch.equal(beside.quantized, expected.quantized)
        assert found.quantized.dtype == dtype
        assert torch.equal(found.quantized, expected.quantized.to(dtype))
        assert found.loss.dtype == torch.float32
        assert found.loss == expected.loss
    assert same_state(half, single)
    assert same_state(cast, single)


def test_conversions_of_a_model_do_not_touch_the_sums(device):
    codebook = Codebook(6, 4, device=device)
    rows = [x.to(device) for x in batches(3, 100, 4)]
    codebook(rows[0])
    before = codebook.sums.clone()
    codebook.half()
    assert codebook.codebook.dtype == torch.float16
    assert torch.equal(codebook.sums, before)
    found = codebook(rows[1].half())
    assert found.quantized.dtype == torch.float16
    codebook.double()
    codebook(rows[2].double())
    assert codebook.codebook.dtype == torch.float64


# -- gradients ----------------------------------------------------------------------------------


def test_gradients_go_straight_through(device):
    codebook = Codebook(4, 3, commitment_weight=0.5, device=device)
    x = batches(1, 50, 3)[0].to(device).requires_grad_()
    quantized, codes, loss = codebook(x.reshape(5, 10, 3))
    g = torch.randn(5, 10, 3, device=device)
    (straight,) = torch.autograd.grad(quantized, x, g, retain_graph=True)
    assert torch.equal(straight, g.reshape(50, 3))
    (drawn,) = torch.autograd.grad(loss, x)
    expected = 0.5 * 2 * (x - quantized.reshape(50, 3)).detach() / 150
    torch.testing.assert_close(drawn, expected)
    assert not codes.requires_grad
    assert not codebook.codebook.requires_grad


def test_nothing_is_learnt_in_evaluation(device):
    codebook = Codebook(4, 3, device=device)
    x = batches(1, 50, 3)[0].to(device)
    codebook(x)
    before = copy.deepcopy(codebook)
    codebook.eval()
    with torch.no_grad():
        quantized, codes, _ = codebook(x + 1)
    assert same_state(codebook, before)
    assert torch.equal(codebook.decode(codes), quantized)
    assert codebook.eval()(x[:0]).codes.shape == (0,)
    codebook.train()(x[:0])
    assert torch.equal(codebook.codebook, before.codebook)


# -- codebooks put together ---------------------------------------------------------------------


def test_product(device):
    product = ProductCodebook(5, 6, parts=3, device=device)
    heads = Codebook(5, 2, heads=3, device=device)
    for x in batches(4, 60, 6):
        x = x.reshape(2, 30, 6).to(device)
        quantized, codes, loss = product(x)
        other = heads(x.reshape(2, 30, 3, 2))
        assert torch.equal(codes, other.codes)
        assert torch.equal(quantized, other.quantized.reshape(2, 30, 6))
        assert loss == other.loss
    quantized, codes, _ = product.eval()(x)
    assert torch.equal(product.decode(codes), quantized)
    one = ProductCodebook(5, 6, parts=1, device=device)
    quantized, codes, _ = one(x)
    assert codes.shape == (2, 30, 1)
    assert torch.equal(one.decode(codes), quantized)


def test_residual(device):
    residual = ResidualCodebook(5, 4, stages=3, device=device)
    alone = [Codebook(5, 4, device=device) for _ in range(3)]
    errors = []
    for x in batches(10, 80, 4):
        x = x.to(device).requires_grad_()
        quantized, codes, loss = residual(x)
        left, losses = x.detach(), []
        for i, each in enumerate(alone):
            found = each(left)
            assert torch.equal(codes[:, i], found.codes)
            left = left - found.quantized
            losses.append(found.loss)
        torch.testing.assert_close(loss.detach(), sum(losses))
        torch.testing.assert_close(x - left, quantized)
        (grad,) = torch.autograd.grad(quantized.sum(), x)
        assert torch.equal(grad, torch.ones_like(x))  # once, not once a stage
    quantized, codes, _ = residual.eval()(x)
    assert torch.equal(residual.decode(codes), quantized)
    errors = [
        float((x - residual.decode(codes[:, :m])).square().mean().detach()) for m in (1, 2, 3)
    ]
    assert errors[0] > errors[1] > errors[2]
    half = residual(x.detach().half())
    assert half.quantized.dtype == torch.float16
    heads = ResidualCodebook(5, 2, stages=2, heads=2, device=device)
    quantized, codes, _ = heads(x.detach().reshape(80, 2, 2))
    assert codes.shape == (80, 2, 2)
    assert torch.equal(heads.decode(codes), quantized)


# -- what PyTorch does with a module ------------------------------------------------------------


def saved(codebook):
    """The state after a round trip through a checkpoint that is read as data alone."""
    file = io.BytesIO()
    torch.save({"model": codebook.state_dict()}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)["model"]


def test_a_checkpoint_goes_on_to_the_last_bit(device):
    rows = [x.to(device) for x in batches(20, 50, 3)]
    a = Codebook(6, 3, device=device, restart_after=3)
    for x in rows[:10]:
        a(x)
    b = Codebook(6, 3, device=device, restart_after=3)
    b.load_state_dict(saved(a))
    c = copy.deepcopy(a)
    for x in rows[10:]:
        codes = a(x).codes
        assert torch.equal(b(x).codes, codes)
        assert torch.equal(c(x).codes, codes)
    assert same_state(a, b)
    assert same_state(a, c)


def test_a_checkpoint_of_the_first_batches_collects_anew(device):
    rows = [x.to(device) for x in batches(4, 8, 3)]
    a = Codebook(4, 3, init_rows=16, device=device)
    a(rows[0])
    b = Codebook(4, 3, init_rows=16, device=device)
    b.load_state_dict(saved(a))
    assert torch.equal(b.codebook, a.codebook)
    b(rows[0])
    for x in rows[1:]:
        a(x)
        b(x)
    assert same_state(a, b)


class Net(torch.nn.Module):
    """A layer before a codebook, and one after it."""

    def __init__(self, codebook):
        super().__init__()
        torch.manual_seed(0)
        self.before, self.codebook = torch.nn.Linear(6, 4), codebook
        self.after = torch.nn.Linear(4, 6)

    def forward(self, x):
        quantized, codes, loss = self.codebook(self.before(x))
        return self.after(quantized), codes, loss


CODEBOOKS = {
    "codebook": lambda: Codebook(8, 4, init_rows=64),
    "product": lambda: ProductCodebook(8, 4, parts=2, init_rows=64),
    "residual": lambda: ResidualCodebook(8, 4, stages=2, init_rows=64),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", CODEBOOKS)
def test_compiled_as_one_graph(device, kind):
    plain = Net(CODEBOOKS[kind]()).to(device)
    compiled = copy.deepcopy(plain)
    step = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for x in batches(5, 40, 6):
        found, expected = step(x.to(device)), plain(x.to(device))
        for out in (found, expected):
            (out[0].sum() + out[2]).backward()
        assert torch.equal(found[1], expected[1])
    assert same_state(compiled, plain)
    torch.testing.assert_close(compiled.before.weight.grad, plain.before.weight.grad)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", CODEBOOKS)
def test_exported(device, kind):
    net, x = Net(CODEBOOKS[kind]()).to(device), batches(1, 40, 6)[0].to(device)
    net(x)
    net.eval()
    n = torch.export.Dim("n", min=2)
    program = torch.export.export(net, (x,), dynamic_shapes={"x": {0: n}})
    for rows in (x, x[:7]):
        found, expected = program.module()(rows), net(rows)
        assert torch.equal(found[1], expected[1])
        torch.testing.assert_close(found[0], expected[0])


@pytest.mark.filterwarnings("ignore")  # of the exporter's own making
@pytest.mark.parametrize("kind", CODEBOOKS)
def test_onnx(kind, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    net, x = Net(CODEBOOKS[kind]()), batches(1, 40, 6)[0]
    net(x)
    net.eval()
    path = str(tmp_path / "net.onnx")
    n = torch.export.Dim("n", min=2)
    torch.onnx.export(net, (x,), path, dynamo=True, dynamic_shapes={"x": {0: n}}, verbose=False)
    session = runtime.InferenceSession(path)
    for rows in (x, x[:7]):
        found = session.run(None, {session.get_inputs()[0].name: rows.numpy()})
        out, codes, loss = net(rows)
        assert np.array_equal(found[1], codes.numpy())
        np.testing.assert_allclose(found[0], out.detach().numpy(), atol=1e-5)
        np.testing.assert_allclose(found[2], loss.detach().numpy(), rtol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_operators_are_what_they_say(device):
    codebook = Codebook(5, 3, device=device)
    x = batches(1, 50, 3)[0].to(device)[:, None, :]
    codebook(x[:, 0])
    operators, check = torch.ops.anykmeans, torch.library.opcheck
    check(operators.nearest_codes.default, (x, codebook.codebook))
    check(operators.straight_through.default, (x.clone().requires_grad_(), x + 1))
    check(operators.straight_through.default, (x.half().requires_grad_(), x + 1))
    buffers = [
        getattr(codebook, name)
        for name in ("codebook", "sums", "exponents", "idle", "seen", "first")
    ]
    check(operators.learn_codes.default, (x, *buffers, 0.9, 5, 0, True))


# -- processes ----------------------------------------------------------------------------------

SHARES = ((0, 20), (20, 55), (55, 55), (55, 60))  # of 60 rows, by rank; one has none


def learnt_by_rank(rank, size, path, queue):
    """What one of several processes ends with, or how it fails."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{path}", rank=rank, world_size=size)
    start, stop = SHARES[rank]
    codebook = Codebook(8, 3, heads=2, restart_after=3, init_rows=90)
    codes = [codebook(x[start:stop].reshape(-1, 2, 3)).codes for x in rows_for_ranks()]
    bad = torch.zeros(4, 2, 3)
    if rank == 1:
        bad[2, 1, 0] = math.nan
    try:
        codebook(bad)
        failure = ""
    except ValueError as error:
        failure = str(error)
    state = {name: value.numpy() for name, value in codebook.state_dict().items()}
    queue.put((rank, state, torch.cat(codes, dim=0).numpy(), failure))
    torch.distributed.destroy_process_group()


def rows_for_ranks():
    """Batches that fall idle, and that grow out of their grid."""
    found = batches(14, 60, 6)
    return [x * (1000.0 if i == 9 else 1.0) + 20 * (i > 5) for i, x in enumerate(found)]


def test_every_process_learns_the_same_codebook(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue, size = context.Queue(), len(SHARES)
    processes = [
        context.Process(target=learnt_by_rank, args=(rank, size, tmp_path / "store", queue))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    found = sorted((queue.get(timeout=300) for _ in processes), key=lambda each: each[0])
    for process in processes:
        process.join()
    alone = Codebook(8, 3, heads=2, restart_after=3, init_rows=90)
    codes = [alone(x.reshape(-1, 2, 3)).codes for x in rows_for_ranks()]
    for rank, state, own, failure in found:
        assert all(np.array_equal(state[name], value) for name, value in alone.state_dict().items())
        start, stop = SHARES[rank]
        assert np.array_equal(own, torch.cat([each[start:stop] for each in codes]))
        assert "`x` must be finite" in failure
        assert ("another rank" in failure) == (rank != 1)
    # A state goes on in another number of processes.
    other = Codebook(8, 3, heads=2, restart_after=3, init_rows=90)
    other.load_state_dict({name: torch.as_tensor(value) for name, value in found[2][1].items()})
    x = batches(1, 60, 6, seed=1)[0].reshape(-1, 2, 3)
    assert torch.equal(other(x).codes, alone(x).codes)
    assert same_state(other, alone)


def test_work_on_a_device_comes_to_the_bits_of_work_in_numpy(monkeypatch):
    """Where tensors are added up as they are: here those of the CPU, by PyTorch's kernel."""

    def learnt():
        codebook = Codebook(8, 3, heads=2, restart_after=3, init_rows=90)
        found = [codebook(x.reshape(-1, 2, 3)) for x in rows_for_ranks()]
        found.append(codebook.eval()(found[0].quantized))
        return codebook, torch.cat([each.codes for each in found])

    plain, codes = learnt()
    by_torch = kernels.choose(torch.zeros(1, 1), "torch")
    asked = []

    def choose(x, name="auto", metric="euclidean"):
        asked.append(name)
        return by_torch

    for module in (_problems, _evaluate, source):
        monkeypatch.setattr(module, "choose", choose)
    monkeypatch.setattr(learning, "on_cpu", lambda tensor: False)
    placed, found = learnt()
    assert len(asked) > 20
    assert isinstance(placed.stats[0].sums, torch.Tensor)
    assert torch.equal(found, codes)
    assert same_state(placed, plain)


# -- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({"num_codes": 0}, ValueError, "`num_codes` must be at least 1"),
        ({"num_codes": 2.5}, TypeError, "`num_codes` must be a whole number"),
        ({"dim": "3"}, TypeError, "`dim` must be a whole number"),
        ({"heads": 0}, ValueError, "`heads` must be at least 1"),
        ({"decay": 1.1}, ValueError, "`decay` must be between 0 and 1"),
        ({"decay": None}, TypeError, "`decay` must be a number"),
        (
            {"commitment_weight": -1},
            ValueError,
            "`commitment_weight` must be finite and not negative",
        ),
        ({"restart_after": 0}, ValueError, "`restart_after` must be at least 1"),
        ({"init_rows": 3}, ValueError, "`init_rows` must be at least 4"),
        ({"seed": -1}, ValueError, "`seed` must be at least 0"),
        ({"init": torch.zeros(3, 3)}, ValueError, r"`init` must have shape \(4, 3\)"),
        ({"init": "random"}, TypeError, "`init` must be codes, or None"),
        ({"init": np.zeros((4, 3))}, ValueError, "`init` must live where `x` does"),
        ({"dtype": torch.int64}, TypeError, "`dtype` must be a floating dtype of PyTorch"),
        ({"init": torch.full((4, 3), math.nan)}, ValueError, "`init` must be finite"),
    ],
)
def test_arguments_that_make_no_sense(how, error, words):
    with pytest.raises(error, match=words):
        Codebook(**({"num_codes": 4, "dim": 3} | how))


def test_rows_that_make_no_sense():
    codebook = Codebook(4, 3)
    with pytest.raises(RuntimeError, match="no codes yet"):
        codebook.eval()(torch.zeros(2, 3))
    codebook.train()
    for x, error, words in (
        (torch.zeros(2, 4), ValueError, r"`x` must have shape \(..., 3\); got shape \(2, 4\)"),
        (torch.tensor(1.0), ValueError, r"got shape \(\)"),
        (torch.zeros(2, 3, dtype=torch.int64), TypeError, "floating tensor; got dtype torch.int64"),
        (np.zeros((2, 3)), TypeError, "floating tensor; got an object of type ndarray"),
        (
            torch.zeros(2, 3, device="meta"),
            ValueError,
            "where the codebook does, on cpu; got x on meta",
        ),
        (torch.full((2, 3), math.inf), ValueError, "`x` must be finite; got infinity"),
    ):
        with pytest.raises(error, match=words):
            codebook(x)
    codebook(batches(1, 50, 3)[0])
    before = copy.deepcopy(codebook)
    with pytest.raises(ValueError, match="`x` must be finite; got NaN"):
        codebook(torch.full((2, 3), math.nan))
    assert same_state(codebook, before)
    with pytest.raises(IndexError):
        codebook.decode(torch.tensor([4]))
    with pytest.raises(IndexError):
        codebook.decode(torch.tensor([-1]))
    with pytest.raises(TypeError, match=r"`codes` must be a tensor of int64 or int32; got dtype"):
        codebook.decode(torch.tensor([1.5]))
    with pytest.raises(TypeError, match="got an object of type list"):
        codebook.decode([1])
    with pytest.raises(ValueError, match=r"`codes` must have shape \(..., 2\)"):
        Codebook(4, 3, heads=2).decode(torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="`dim` must be a multiple of `parts`"):
        ProductCodebook(4, 7, parts=2)
    with pytest.raises(ValueError, match="`stages` must be at least 1"):
        ResidualCodebook(4, 7, stages=0)
    with pytest.raises(ValueError, match=r"m from 1 to 2 stages; got shape \(3, 5\)"):
        ResidualCodebook(4, 7, stages=2).decode(torch.zeros(3, 5, dtype=torch.int64))
