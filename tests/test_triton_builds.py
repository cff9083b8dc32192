"""The Triton kernels compile for GPUs, of which none is needed: as they are launched, and hardly spill."""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from anykmeans import _rows

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
triton = pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET is 1: nothing is compiled", allow_module_level=True)


class NoDriver:
    """Just enough of a driver for `JITFunction.warmup`, which compiles what a call would launch."""

    def __init__(self, capability):
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", capability, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return self._target


@pytest.fixture(params=[80, 90])
def built(request, monkeypatch, tmp_path):
    """The kernels compiled so far: (name, kernel)."""
    from triton.runtime.jit import JITFunction, driver

    found, run = [], JITFunction.run

    def compile_only(self, *arguments, grid, warmup, **options):
        found.append((self.__name__, run(self, *arguments, grid=grid, warmup=True, **options)))

    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr("anykmeans.kernels.triton.why_not", lambda x: None)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(driver, "_active", NoDriver(request.param))
    return found


def resources(kernel, folder):
    """Registers, and bytes of stack, that a kernel takes a thread."""
    path = folder / "kernel.cubin"
    path.write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    said = subprocess.run(
        [tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True
    ).stdout
    return tuple(int(re.search(rf"{name}:(\d+)", said)[1]) for name in ("REG", "STACK"))


def check(built, folder, d):
    for name, kernel in built:
        registers, stack = resources(kernel, folder)
        if name not in ("again", "resolve"):
            assert stack <= 32, f"{name} spills"
        if name == "screen" and d <= 128:
            assert registers <= 128  # two blocks on a multiprocessor
        if name == "screen" and kernel.metadata.target.arch == 90:
            assert "wgmma" in kernel.asm["ptx"]  # tensor cores
        if name == "screen":  # numbers of tiles make subnormals of scores near zero
            assert not re.search(r"(min|max)\.ftz", kernel.asm["ptx"])
        if name == "accumulate":  # no warp may read what another has written already
            *_, last = re.split(r"bar\.sync", kernel.asm["ptx"])
            assert "st.global" in last
            assert "ld.global" not in last


PASS = {"prepare", "round_rows", "screen", "again", "resolve", "accumulate", "means", "advance"}
ALL = PASS | {"magnitudes", "own", "cost"}


@pytest.mark.parametrize(
    ("dtype", "d", "k"),
    [
        ("float32", 128, 70),
        ("float16", 128, 70),
        ("bfloat16", 256, 9),
        ("float64", 3, 2),
        ("float32", 768, 130),
        ("uint8", 17, 1),
    ],
)
def test_all_that_a_fit_launches(built, tmp_path, dtype, d, k):
    x = torch.as_tensor(np.random.default_rng(0).integers(0, 99, size=(200, d)))
    rows = _rows.Rows.over(x.to(getattr(torch, dtype)), None, kernel="triton")
    c = rows.rows(slice(0, k))
    rows.begin(c)
    rows.leap(c, 1, 0.0, "relocate")
    rows.stats(torch.zeros(200, dtype=torch.int32), k)
    rows.cost(rows.distances(c)[0])
    assert {name for name, _ in built} >= ALL
    check(built, tmp_path, d)


def test_a_batch_with_weights_that_keeps_its_clusters(built, tmp_path):
    x, w = torch.rand(3, 500, 40), torch.rand(3, 500)
    sources = [_rows.Rows.over(x[i], w[i], kernel="triton") for i in range(3)]
    starts = [rows.rows(slice(0, 5)) for rows in sources]
    for rows, c in zip(sources, starts, strict=True):
        rows.begin(c)
    _rows.leap_together(sources, starts, 1, [0.0] * 3, "keep")
    assert {name for name, _ in built} >= PASS | {"magnitudes"}
    check(built, tmp_path, 40)


def test_new_sizes_need_no_new_kernels(built):
    """Within a width of rows, and as few or as many centroids, nothing is compiled again."""
    for n, k in [(200, 70), (333, 75), (1000, 128)]:
        rows = _rows.Rows.over(torch.rand(n, 40), None, kernel="triton")
        c = rows.rows(slice(0, k))
        rows.begin(c)
        rows.leap(c, 1, 0.0, "relocate")
    assert {name for name, _ in built} >= PASS
    for name in PASS:
        assert len({kernel.hash for of, kernel in built if of == name}) == 1, name
