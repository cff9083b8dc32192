"""Stage: what the machine is, and what it lacks."""

import hashlib
import platform
import shutil
import subprocess
from importlib.util import find_spec
from typing import Any

from benchmarks.gpu.day.record import Day
from benchmarks.report import cores, installed, processor

PACKAGES = (
    *("torch", "triton", "numpy", "cupy-cuda13x", "array-api-compat", "scipy", "scikit-learn"),
    *("pytest", "pytest-xdist", "hypothesis", "flash-kmeans", "flashlib", "fastkmeans"),
)
MODULES = ("array_api_compat", "scipy", "sklearn", "threadpoolctl", "hypothesis", "xdist", "cupy")
ASKED = (
    "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,power.draw,temperature.gpu"
)


def run(day: Day) -> None:
    """Note versions, the device, its clocks, and which programs and modules there are."""
    day.note(
        python=platform.python_version(),
        processor=processor(),
        cores=cores(),
        versions={name: installed(name) for name in PACKAGES},
        missing=[name for name in MODULES if find_spec(name) is None],
        programs={name: shutil.which(name) for name in ("gcc", "ncu", "nvidia-smi")},
    )
    with day.guarded(what="compilers"):
        day.note(**compilers())
    if day.on_gpu:
        with day.guarded(what="device"):
            day.note(**device())


def compilers() -> dict[str, Any]:
    """Return what compiled kernels depend on; the key tells whether those of another machine could be used."""
    import torch

    if find_spec("triton") is None:
        return {"torch": torch.__version__, "cuda": torch.version.cuda, "triton": None}
    import triton
    from triton.runtime.cache import triton_key

    key = hashlib.sha256(triton_key().encode()).hexdigest()[:16]
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "key": key,
    }


def device() -> dict[str, Any]:
    """Return what the driver says of the device."""
    import torch

    about = torch.cuda.get_device_properties(0)
    command = ["nvidia-smi", f"--query-gpu={ASKED}", "--format=csv,noheader"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return {
        "device": about.name,
        "multiprocessors": about.multi_processor_count,
        "cache": about.L2_cache_size,
        "shared": getattr(about, "shared_memory_per_block_optin", None),
        "memory": about.total_memory,
        "driver": dict(zip(ASKED.split(","), asked.strip().split(", "), strict=False)),
    }
