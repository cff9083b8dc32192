"""The Triton kernels compile for GPUs, of which none is needed: as they are launched, and without spills."""

import dataclasses
import os
import re

import numpy as np
import pytest

from anykmeans import _plusplus
from anykmeans.sources.rows import Rows

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
triton = pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET is 1: nothing is compiled", allow_module_level=True)

from benchmarks.gpu import compiled, sass, static  # noqa: E402
from benchmarks.gpu.day import described, scores, sweep, tables, warpgroups  # noqa: E402
from benchmarks.gpu.rows import ROWS  # noqa: E402


@pytest.fixture(params=[80, 90])
def built(request, tmp_path):
    """The kernels compiled so far."""
    with compiled.compile_only(request.param, tmp_path) as launches:
        yield launches
    assert {launch.kernel.metadata.target.arch for launch in launches} == {request.param}


def check(built, d):
    for launch in built:
        name, kernel = launch.name, launch.kernel
        takes = sass.resources(kernel)
        arch = kernel.metadata.target.arch
        assert takes.stack <= (0 if arch == 90 else 8), f"{name} spills"
        scores = name.startswith("screen")
        if scores or name == "resolve":  # compilers write such registers before the product is made
            assert sass.register_products(kernel)[0] == 0
        if scores and d <= 128:
            assert takes.registers <= 128  # two blocks on a multiprocessor
        if scores and arch == 90:
            assert "wgmma" in kernel.asm["ptx"]  # tensor cores
        if scores:  # numbers of tiles make subnormals of scores near zero
            assert not re.search(r"(min|max)\.ftz", kernel.asm["ptx"])
        if name == "accumulate":  # no warp may read what another has written already
            *_, last = re.split(r"bar\.sync", kernel.asm["ptx"])
            assert "st.global" in last
            assert "ld.global" not in last


def names(launches):
    """What is launched; that rows are scored, whichever way suits the GPU."""
    return {"screen" if one.name.startswith("screen") else one.name for one in launches}


PASS = {"prepare", "round_rows", "screen", "resolve", "accumulate", "means", "advance"}
ALL = PASS | {"magnitudes", "own", "cost"}


@pytest.mark.parametrize(
    ("dtype", "d", "k"),
    [
        ("float32", 128, 70),
        ("float16", 128, 70),
        ("bfloat16", 256, 300),
        ("float64", 3, 2),
        ("float32", 40, 130),
        ("float64", 200, 20),
        ("float32", 768, 130),
        ("float32", 1025, 9),
        ("uint8", 17, 1),
    ],
)
def test_all_that_a_fit_launches(built, dtype, d, k):
    x = torch.as_tensor(np.random.default_rng(0).integers(0, 99, size=(200, d)))
    rows = Rows.over(x.to(getattr(torch, dtype)), None, kernel="triton")
    c = rows.rows(slice(0, k))
    run = rows.start(c)
    run.steps(c, 1, 0.0, "relocate")
    rows.stats(torch.zeros(200, dtype=torch.int32), k)
    rows.kernel.cost(rows, run.frame, run.distances(c))
    assert names(built) >= ALL
    check(built, d)


def test_a_batch_with_weights_that_keeps_its_clusters(built):
    x, w = torch.rand(3, 500, 40), torch.rand(3, 500)
    sources = [Rows.over(x[i], w[i], kernel="triton") for i in range(3)]
    starts = [rows.rows(slice(0, 5)) for rows in sources]
    kernel = sources[0].kernel
    kernel.descend(kernel.start(sources, starts), [0.0] * 3, 1, "keep", None)
    assert names(built) >= PASS | {"magnitudes"}
    check(built, 40)


@pytest.mark.parametrize(
    ("dtype", "d"), [("float32", 5), ("float16", 64), ("float32", 128), ("float64", 300)]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_picks_of_two_problems(built, dtype, d, weighted):
    x, w = torch.rand(2, 500, d).to(getattr(torch, dtype)), torch.rand(2, 500)
    sources = [Rows.over(x[i], w[i] if weighted else None, kernel="triton") for i in range(2)]
    _plusplus.starts(sources, 9, 1, np.random.default_rng(0))
    picking = [one for one in built if one.name in ("draw", "reach", "gains", "count_in", "costs")]
    assert len({one.name for one in picking}) == 5
    # A few bytes outside of loops are the price of one more block, which hides that memory is slow.
    assert max(sass.resources(one.kernel).stack for one in picking) <= 24


def test_new_sizes_need_no_new_kernels(built):
    """Within a width of rows, and as few or as many centroids, nothing is compiled again."""
    for n, k in [(200, 70), (333, 75), (1000, 128)]:
        rows = Rows.over(torch.rand(n, 40), None, kernel="triton")
        c = rows.rows(slice(0, k))
        rows.start(c).steps(c, 1, 0.0, "relocate")
    assert names(built) >= PASS
    for name in {launch.name for launch in built}:
        assert len({launch.kernel.hash for launch in built if launch.name == name}) == 1, name


def test_the_table_of_a_row(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert static.main(["--rows", "2"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"\| 2 \| screen\w* \| 128 × \d+ \|", out)
    assert "6 launches a pass" in out


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


WIDTHS = [
    dataclasses.replace(ROWS[3], name=f"{d} features", d=d, dtype=dtype)
    for d, dtype in ((64, "float32"), (100, "float64"), (200, "float16"))
]


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("row", ROWS + WIDTHS, ids=lambda row: row.name)
def test_what_a_pass_costs(row):
    """Bars that were set before the kernels met them: see `docs/gpu.md`."""
    found = static.readings(row)
    assert sum(one.launches for one in found) <= 7
    assert all(one.takes.stack == 0 for one in found)
    assert all(one.register_products == 0 for one in found)
    ((blocks,),) = next(one.grids for one in found if one.kernel == "resolve")
    assert blocks <= 2 * 132  # for all problems
    (scores,) = (one for one in found if one.kernel.startswith("screen"))
    if scores.tile[1] == 128:
        assert scores.kernel == "screen_by_marginals"
        most = {128: 4.8, 768: 26}.get(row.d, 5.5)
        assert scores.issued <= most
        assert scores.alu <= (2.6 if row.d <= 256 else 3.0)
    if row.d <= 128:
        assert scores.takes.registers <= 128  # two blocks on a multiprocessor


@pytest.mark.usefixtures("cache")
def test_launches_of_a_pass_are_those_of_the_rows_sizes():
    row = next(row for row in ROWS if row.name == "2")
    _, made = compiled.of_row(row)
    assert names(made) == PASS - {"round_rows"}
    grids = {launch.name.partition("_")[0]: launch.grid for launch in made}
    assert grids["means"] == (row.k, row.b)
    assert grids["screen"] == (row.n // 128, row.b)


LISTING = """
.L_x_0:
        /*0010*/                   HGMMA.64x32x16.F32 R24, R4, gdesc[UR8], R24 ;
        /*0020*/                   HGMMA.64x32x16.F32 R24, R8, gdesc[UR8], R24, gsb0 ;
        /*0030*/                   {early} ;
        /*0040*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*0050*/                   IADD3 R4, R4, 0x1, RZ ;
        /*0060*/              @!P0 BRA `(.L_x_0) ;
.L_x_1:
        /*0070*/                   BRA `(.L_x_1) ;
"""


@pytest.mark.parametrize(
    ("early", "found"),
    [("IADD3 R5, R4, 0x1, RZ", 1), ("LDS.128 R8, [R2]", 1), ("IADD3 R2, R4, 0x1, RZ", 0)],
)
def test_what_writes_a_factor_too_early_is_found(early, found):
    code, loops = sass.parsed(LISTING.format(early=early))
    count, writes = sass.overwritten(code)
    assert (count, len(writes)) == (2, found)
    assert loops == [(0x10, 0x60)]


def test_candidates_fetch_by_descriptors(tmp_path):
    """Those of the day with a GPU, of which those for warpgroups cannot be interpreted."""
    x = torch.zeros((512, 128), dtype=torch.float16)
    numbers, labels = torch.zeros(512), torch.zeros(512, dtype=torch.int32)
    with compiled.compile_only(90, tmp_path) as made:
        described.launch(x, x, numbers, labels, numbers, **described.TILES[1])
        warpgroups.launch(x, x, numbers, labels, numbers, *warpgroups.TILES[1])
        wide = torch.zeros((512, 768), dtype=torch.float16)
        warpgroups.launch(wide, wide, numbers, labels, numbers, *warpgroups.WIDE[0])
    for launch in made:
        for name in ("wgmma", "cp.async.bulk.tensor"):
            assert name in launch.kernel.asm["ptx"]
        assert sass.resources(launch.kernel).stack == 0
    assert all("setmaxnreg" in launch.kernel.asm["ptx"] for launch in made[1:])
    assert sass.resources(made[2].kernel).shared <= 227 << 10
    tile = described.TILES[1]
    read = static.read(made[:1])
    assert read.tile == (tile["ROWS"], tile["LANES"], 128)
    assert read.alu < 2.5  # what it is for: tags take twice as many


def test_a_job_of_the_sweep_is_built(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    job = sweep.jobs(scores.SMALL)[0]
    assert 2 * job.d * job.rows <= sweep.built(job) <= scores.ROOM
    spoilt = dataclasses.replace(job, stages="many")
    assert "Error" in sweep.built(spoilt)
    assert len(sweep.jobs(scores.SHAPES)) == sweep.MOST


def test_times_by_the_rule_give_the_rule(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    jobs = [job for job in sweep.jobs(scores.SHAPES) if job.d == 128 and job.stages == 2][:4]
    n, d, k = scores.SHAPES["4"]
    records = []
    with compiled.compile_only() as made:
        for job in jobs:
            sweep.tried(job, n)
            cost = sass.cost(made[-1].kernel, job.rows, job.lanes)
            tile = cost.cycles(job.warps)[1] + job.rows * job.lanes * d / 2048
            cycles = n / job.rows * (k / job.lanes * tile + cost.outside * job.warps / 4)
            ms = 1e3 * cycles / (tables.MULTIPROCESSORS * tables.HERTZ)
            records.append(
                {"stage": "sweep", "shape": "4", "job": dataclasses.asdict(job), "ms": ms}
            )
    ((factors, off, many),) = tables.rule(records).values()
    assert many == len(jobs)
    assert off < 1e-6
    assert factors == pytest.approx({"issue": 0, "alu": 1, "tensor": 1}, abs=1e-6)
