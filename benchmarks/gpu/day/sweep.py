"""Stage: the ways to find the lowest scores, with every tile that fits; what is fastest may then be chosen anywhere."""

import itertools
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import Any

import torch
import triton

from benchmarks.gpu.day import epilogues, scores
from benchmarks.gpu.day.record import Day
from benchmarks.gpu.day.scores import Case
from benchmarks.report import cores

MOST = 220
"""Kernels to compile."""

KINDS = {
    ("places", True): 1.4,
    ("tags", False): 3.0,
    ("lanes", True): 2.3,
    ("parts", True): 2.0,
    ("lanes", False): 2.3,
    ("lowest", False): 2.0,
}
"""Mode, and whether in whole numbers, the likeliest first: numbers that a thread keeps for each of its scores."""

TILES = ((64, 128), (128, 64), (128, 128), (64, 256), (128, 256), (256, 64), (256, 128))
PLAIN = ((128, 64), (128, 128))  # for modes that are only there to compare with


@dataclass(frozen=True)
class Job:
    """One kernel: `d` features and `k` centroids, a mode, a tile, and how a block is made."""

    d: int
    k: int
    mode: str
    whole: bool
    rows: int
    lanes: int
    warps: int
    stages: int
    registers: int | None

    @property
    def lines(self) -> int:
        """Lines that lanes are in, or parts of a tile."""
        if self.mode == "places":
            return max(2, self.lanes // 32)
        return max(2, self.lanes // 64) if self.mode == "parts" else 1

    @property
    def fits(self) -> bool:
        """Whether it is likely to fit a multiprocessor, and worth it."""
        score = self.rows * self.lanes / (self.warps * 32)
        kept = score * KINDS[self.mode, self.whole]
        if self.registers and (kept > 100 or self.warps == 4):
            return False
        plain = self.whole or self.mode == "tags" or (self.rows, self.lanes) in PLAIN
        room = scores.fits(self.rows, self.lanes, self.stages, self.d)
        return plain and room and score >= 32 and kept <= 225 and self.k % self.lanes == 0

    def launch(self, case: Any, labels: torch.Tensor, gaps: torch.Tensor) -> Any:
        """Launch it for rows, centroids and norms."""
        x, c, norms = case
        mask = (1 << max(2, (self.k // self.lanes - 1).bit_length())) - 1
        return epilogues.screen[(triton.cdiv(len(x), self.rows),)](
            *(x, c, norms, labels, gaps, len(x), self.k, mask),
            ROWS=self.rows,
            LANES=self.lanes,
            WIDTH=self.d,
            MODE=self.mode,
            WHOLE=self.whole,
            STAGES=self.stages,
            J=self.lines,
            num_warps=self.warps,
            num_stages=self.stages,
            maxnreg=self.registers,
        )


def jobs(shapes: dict[str, tuple[int, int, int]]) -> list[Job]:
    """Return what is worth a try, the likeliest first, as time may end the list."""
    made = [
        Job(d, k, *kind, rows, lanes, warps, stages, registers)
        for _, d, k in shapes.values()
        for kind, (rows, lanes), warps, stages, registers in itertools.product(
            KINDS, TILES, (4, 8), (2, 3, 4), (None, 128)
        )
    ]
    order = list(KINDS)

    def later(job: Job) -> tuple[int, bool]:
        rank = order.index((job.mode, job.whole)) // 2
        return rank + (job.stages != 3) + 2 * (job.d == 64), job.rows * job.lanes > 16384

    return sorted((job for job in made if job.fits), key=later)[:MOST]


def run(day: Day) -> None:
    """Compile on all cores without the device, then note the time of each kernel, and its errors."""
    shapes = scores.SMALL if day.small else scores.SHAPES
    ready = jobs(shapes)[: 3 if day.small else None]
    if os.environ.get("TRITON_INTERPRET") != "1":
        ready = compiled(day, ready)
    made: dict[int, tuple[str, Case]] = {
        shape[1]: (name, Case.of(*shape, day.device)) for name, shape in shapes.items()
    }
    for job in ready:
        if day.left < 0:
            day.note(stopped=asdict(job))
            return
        name, case = made[job.d]
        c, norms = case.whole() if job.whole else (case.c, case.norms)
        with day.guarded(shape=name, job=asdict(job)):
            found = case.measured(
                lambda labels, gaps, job=job, three=(case.x, c, norms): job.launch(
                    three, labels, gaps
                ),
                second=job.mode != "lowest",
            )
            day.note(shape=name, job=asdict(job), **found)


def compiled(day: Day, wanted: list[Job]) -> list[Job]:
    """Return the jobs that a device can launch, as many as half of the time allows; Triton finds their kernels."""
    begun, until = time.monotonic(), day.left / 2
    ready = []
    workers = max(1, min(cores() - 1, len(wanted)))
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        futures = [pool.submit(built, job) for job in wanted]
        for job, future in zip(wanted, futures, strict=True):
            if day.left < until:
                pool.shutdown(wait=False, cancel_futures=True)
                break
            shared = future.result()
            if isinstance(shared, str) or shared > 227 << 10:
                day.note(job=asdict(job), not_built=shared)
            else:
                ready.append(job)
    day.note(compiled=len(ready), seconds=round(time.monotonic() - begun, 1))
    return ready


def built(job: Job) -> int | str:
    """Compile a kernel for rows as large as they will be; return the bytes of a block's memory, or why not."""
    from benchmarks.gpu.compiled import compile_only

    n = next(n for n, d, k in (*scores.SHAPES.values(), *scores.SMALL.values()) if d == job.d)
    try:
        with compile_only() as made:
            tried(job, n)
    except Exception as error:  # noqa: BLE001 - whatever a compiler has against it
        return f"{type(error).__name__}: {str(error)[:200]}"
    return made[-1].kernel.metadata.shared


def tried(job: Job, n: int) -> Any:
    """Launch a job for `n` rows of no content, where launches only compile."""
    half, single, whole = (
        torch.zeros(1, dtype=dtype) for dtype in (torch.float16, torch.float32, torch.int32)
    )
    case = half.expand(n, job.d), half.expand(job.k, job.d), single.expand(job.k)
    return job.launch(case, whole.expand(n), single.expand(n))
