"""Stages: kernels that could take the place of the library's `screen`, on the same rows as it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu.day.clock import Clock
from benchmarks.gpu.day.record import Day

ROOM = 222 << 10
"""Bytes of shared memory that tiles may take."""

SHAPES = {"4": (1 << 20, 128, 1024), "5": (1 << 20, 256, 4096), "d64": (1 << 20, 64, 1024)}
"""Rows, features and clusters: those of two rows of the table, and fewer features."""

WIDE = {"9": (1 << 17, 768, 4032)}
"""Some of the rows of row 9, with whole tiles of clusters."""

SMALL = {"small": (140, 32, 128)}


@dataclass(frozen=True)
class Case:
    """Rows and centroids to score, and what is right.

    Attributes
    ----------
    x, c, norms : tensors of shape (n, d), (k, d), (k,)
        Float16 rows and centroids, and squared norms in float32.
    want, gap : tensors of shape (n,), (m,)
        The nearest centroid, and for the first m rows by how much its score is below the next.
    """

    x: torch.Tensor
    c: torch.Tensor
    norms: torch.Tensor
    want: torch.Tensor
    gap: torch.Tensor

    @classmethod
    def of(cls, n: int, d: int, k: int, device: str) -> "Case":
        """Return uniform rows and centroids around zero."""
        generator = torch.Generator(device).manual_seed(0)
        x, c = (
            (torch.rand((m, d), generator=generator, device=device) - 0.5).half() for m in (n, k)
        )
        norms = c.float().square().sum(1)

        def scores(rows: torch.Tensor) -> torch.Tensor:
            return torch.sub(norms, rows.float() @ c.float().T, alpha=2)

        want = torch.cat([scores(rows).argmin(1) for rows in x.split(1 << 16)])
        two = scores(x[:4096]).topk(2, dim=1, largest=False).values
        return cls(x, c, norms, want, two[:, 1] - two[:, 0])

    @property
    def flops(self) -> float:
        """Operations of all products."""
        return 2.0 * self.x.shape[0] * self.x.shape[1] * self.c.shape[0]

    def whole(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return centroids times -2, and norms so large that scores are positive: their bits are in their order."""
        return (-2 * self.c).contiguous(), self.norms + self.x.shape[1]

    def measured(
        self, launch: Callable[[torch.Tensor, torch.Tensor], Any], *, second: bool = True
    ) -> dict[str, Any]:
        """Return how fast a launch is that writes labels and gaps, and how often it is wrong."""
        clock = Clock(self.x.is_cuda)
        on = {"device": self.x.device}
        labels = torch.full((len(self.x),), -1, dtype=torch.int32, **on)
        gaps = torch.full((len(self.x),), torch.nan, dtype=torch.float32, **on)
        kernel = launch(labels, gaps)
        clock.wait()
        wrong = float((labels != self.want).float().mean())
        off = (gaps[: len(self.gap)] - self.gap).abs().max()
        taken = clock.median(lambda: launch(labels, gaps), warm=4, spent=20)
        found = {"ms": taken, "tflops": self.flops / taken / 1e9, "wrong": wrong}
        found |= {"gap_off": float(off)} if second else {}
        return found | {name: getattr(kernel, name, None) for name in ("n_regs", "n_spills")}


def cases(day: Day, shapes: dict[str, tuple[int, int, int]] = SHAPES) -> Iterator[tuple[str, Case]]:
    """Make the shapes one after the other, while time lasts."""
    for name, shape in (SMALL if day.small else shapes).items():
        if day.left < 0:
            day.note(shape=name, skipped="no time is left")
            continue
        yield name, Case.of(*shape, day.device)


def described(day: Day) -> None:
    """Note the kernel with descriptors, tile by tile, and the library's own of the same shape."""
    from benchmarks.gpu.day.described import TILES, launch

    for shape, case in cases(day):
        c, norms = case.whole()
        d = case.x.shape[1]
        with day.guarded(shape=shape, kernel="own"):
            # All of a pass is run for it, which takes the interpreter long.
            found = own(Case.of(60, 16, 8, day.device), 1) if day.small else own(case, 3)
            day.note(shape=shape, kernel="own", **found)
        for tile in TILES[:1] if day.small else TILES:
            if fits(tile["ROWS"], tile["LANES"], tile["STAGES"], d) and day.left > 0:
                with day.guarded(shape=shape, tile=tile):
                    found = case.measured(
                        lambda labels, gaps, x=case.x, c=c, norms=norms, tile=tile: launch(
                            x, c, norms, labels, gaps, **tile
                        )
                    )
                    day.note(shape=shape, tile=tile, **found)


def warpgroups(day: Day) -> None:
    """Note the kernel for warpgroups that alternate, tile by tile; after an error the device is of no use."""
    for shape, case in cases(day):
        _alternating(day, shape, case)


def wide(day: Day) -> None:
    """Note the same for many features, where rows stay in shared memory, and the library's own."""
    for shape, case in cases(day, WIDE):
        with day.guarded(shape=shape, kernel="own"):
            day.note(shape=shape, kernel="own", **own(case, 3))
        _alternating(day, shape, case)


def _alternating(day: Day, shape: str, case: Case) -> None:
    from benchmarks.gpu.day.warpgroups import HELD, TILES, WIDE, launch

    c, norms = case.whole()
    d = case.x.shape[1]
    for lanes, stages, lines in TILES if d <= HELD else WIDE:
        if (d > HELD or fits(256, lanes, stages, d)) and day.left > 0:
            tile = {"N": lanes, "S": stages, "J": lines}
            found = case.measured(
                lambda labels, gaps, tile=tile: launch(case.x, c, norms, labels, gaps, **tile)
            )
            day.note(shape=shape, tile=tile, **found)


def fits(rows: int, lanes: int, stages: int, d: int) -> bool:
    """Return whether rows, and tiles of centroids on their way, fit a block's memory."""
    return 2 * d * (rows + stages * lanes) <= ROOM


def own(case: Case, passes: int) -> dict[str, Any]:
    """Return how fast the library's kernel scores the same rows, within its own passes."""
    from benchmarks.gpu.day.passes import call
    from benchmarks.gpu.day.watch import Watch
    from benchmarks.gpu.rows import Task

    task = Task(case.x[None], len(case.c), case.c[None], passes)
    clock = Clock(case.x.is_cuda)
    if case.x.is_cuda:  # where the first launch compiles
        call(task, 1, None)
        clock.wait()
    watch = Watch(clock)
    with watch.watching():
        call(task, passes, None)
        clock.wait()
    seen = [each["kernels"] for each in watch.summaries(len(case.x)) if "kernels" in each]
    names = [name for name in seen[0] if name.startswith("screen")]
    taken = min(sum(each[name][1] for name in names) for each in seen)
    return {"ms": taken, "tflops": case.flops / taken / 1e9, "kernels": names}
