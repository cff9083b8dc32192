"""Stage: the numbers that the model of a pass needs and that no machine code tells."""

import subprocess
import time

import torch

from anykmeans.kernels.triton.device import about
from benchmarks.gpu.day import probes
from benchmarks.gpu.day.clock import Clock
from benchmarks.gpu.day.record import Day


def run(day: Day) -> None:
    """Note all of them, one a record, what the bound of docs/proofs.md needs first."""
    for part in (errors, memory, multiply, clocks, blocks, launches, graph, atomics, cache):
        with day.guarded(what=part.__name__):
            part(day)
        if day.on_gpu:
            torch.cuda.empty_cache()


def errors(day: Day) -> None:
    """How far sums of products are off, in units of ``|y| |c| 2^-24``: gamma."""
    lost = about(torch.empty(0, device=day.device)).lost * 2.0**24
    m = 128 if day.small else 2048
    for d in (16, 64) if day.small else (16, 32, 64, 128, 256):
        for kind in ("normal", "positive", "alternating"):
            a, b = factors(m, d, kind, day.device)
            got = torch.empty((m, m), dtype=torch.float32, device=day.device)
            probes.products[(m // 128, m // 64)](
                a, b, got, m, ROWS=128, LANES=64, WIDTH=d, num_warps=4
            )
            true = a.double() @ b.double().T
            size = a.double().norm(dim=1)[:, None] * b.double().norm(dim=1)
            worst = float(((got.double() - true).abs() / size).max()) * 2.0**24
            day.note(what="error of a sum", d=d, kind=kind, worst=worst, assumed=(d + 16) * lost)


def factors(m: int, d: int, kind: str, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two matrices (m, d), float16: normal, all positive, or such that nearly all cancels."""
    generator = torch.Generator(device).manual_seed(d)
    a, b = (torch.randn((m, d), generator=generator, device=device) for _ in range(2))
    if kind != "normal":
        a, b = a.abs() + 1, b.abs() + 1
    if kind == "alternating":
        a *= 1 - 2 * (torch.arange(d, device=device) % 2)
        b[:, 1::2] = b[:, ::2] * (1 + 2**-9)
    return a.half(), b.half()


def memory(day: Day) -> None:
    """Bytes read and written a second by a copy."""
    x = torch.empty(1 << (20 if day.small else 31), dtype=torch.uint8, device=day.device)
    y = torch.empty_like(x)
    taken = Clock(day.on_gpu).median(lambda: y.copy_(x))
    day.note(what="copy, TB/s", value=2 * x.nbytes / taken / 1e9)


def multiply(day: Day) -> None:
    """Products a second of the vendor's own multiplication."""
    for n in (64,) if day.small else (4096, 8192):
        a, b = (torch.randn((n, n), device=day.device).half() for _ in range(2))
        taken = Clock(day.on_gpu).median(lambda a=a, b=b: a @ b)
        day.note(what="products of float16, TFLOP/s", n=n, value=2 * n**3 / taken / 1e9)


def clocks(day: Day) -> None:
    """Megahertz of the multiprocessors, which all else follows, while they multiply."""
    if not day.on_gpu:
        day.note(what="clock under products, MHz", skipped="there is no clock to ask without a GPU")
        return
    a = torch.randn((8192, 8192), device=day.device).half()
    for _ in range(600):  # about a second
        a @ a
    command = ["nvidia-smi", "--query-gpu=clocks.sm", "--format=csv,noheader,nounits"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    day.note(what="clock under products, MHz", value=float(said.split()[0]))
    torch.cuda.synchronize()


def blocks(day: Day) -> None:
    """Microseconds of a grid whose blocks have nothing to do."""
    state = torch.zeros(64, dtype=torch.int64, device=day.device)
    for grid in (1, 4) if day.small else (1, 528, 4224, 33792, 135168, 270336):
        for warps in (4, 8):
            run = probes.nothing[(grid,)]
            taken = Clock(day.on_gpu).median(
                lambda run=run, warps=warps: run(state, num_warps=warps)
            )
            day.note(what="empty blocks, us", grid=grid, warps=warps, value=1e3 * taken)


def launches(day: Day) -> None:
    """Microseconds that the host takes to launch a kernel of few arguments."""
    clock, many = Clock(day.on_gpu), 3 if day.small else 500
    state = torch.zeros(64, dtype=torch.int64, device=day.device)
    probes.nothing[(1,)](state)
    clock.wait()
    begun = time.perf_counter()
    for _ in range(many):
        probes.nothing[(1,)](state)
    day.note(what="launch on the host, us", value=(time.perf_counter() - begun) / many * 1e6)
    clock.wait()


def graph(day: Day) -> None:
    """Microseconds of a launch that is replayed in a graph."""
    if not day.on_gpu:
        day.note(what="launch in a graph, us", skipped="there are no graphs without a GPU")
        return
    state, many = torch.zeros(64, dtype=torch.int64, device=day.device), 70
    probes.nothing[(132,)](state)
    replayed = torch.cuda.CUDAGraph()
    with torch.cuda.graph(replayed):
        for _ in range(many):
            probes.nothing[(132,)](state)
    day.note(what="launch in a graph, us", value=1e3 * Clock(True).median(replayed.replay) / many)


def atomics(day: Day) -> None:
    """Additions of 64 bits a second, to the sums of clusters at random."""
    n = 64 if day.small else 1 << 17
    for k in (4,) if day.small else (100, 1000, 20_000):
        for columns in (128, 129, 258):
            to = torch.randint(k, (n,), dtype=torch.int32, device=day.device)
            sums = torch.zeros((k, columns), dtype=torch.int64, device=day.device)
            add = probes.scattered[(n // 16,)]
            taken = Clock(day.on_gpu).median(
                lambda add=add, to=to, sums=sums, columns=columns: add(
                    to, sums, columns, ROWS=16, BLOCK=64
                )
            )
            value = n * columns / taken / 1e6
            day.note(what="atomic additions, G/s", k=k, columns=columns, value=value)


def cache(day: Day) -> None:
    """Bytes a second from the L2 cache to all multiprocessors, by what is in it."""
    block, grid = 4096, 2 if day.small else 264
    for size in (1 << 16,) if day.small else (1 << 18, 1 << 20, 5 << 20, 20 << 20):
        times = 1 if day.small else max(1, (64 << 20) // size)
        # A block begins anywhere and must not read beyond the end.
        x = torch.zeros(size // 4 + block, dtype=torch.float32, device=day.device)
        out = torch.zeros(grid, dtype=torch.float32, device=day.device)
        read = probes.streamed[(grid,)]
        taken = Clock(day.on_gpu).median(
            lambda read=read, x=x, out=out, size=size, times=times: read(
                x, out, size // 4, times, BLOCK=block, num_warps=8
            )
        )
        value = grid * times * size / taken / 1e9
        day.note(what="cache to multiprocessors, TB/s", MiB=size / (1 << 20), value=value)
