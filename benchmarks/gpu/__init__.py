"""Time kmeans against its peers on a GPU, from the same centres, and print tables in Markdown.

Peers are what can be imported of flash_kmeans, flashlib, fastkmeans, faiss and cuML, and plain PyTorch. Data
are made on the device. A peer that fails or is too slow is named with the reason. Rows may be measured
one by one, each with --json, and become one document with --reports. benchmarks/gpu/measure.py says
when times are not compared.

With --day, all that a device is needed for is recorded, not only times: see benchmarks/gpu/day.
"""

import argparse
import datetime
import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.gpu import day

PACKAGES = ("numpy", "torch", "triton", "flash_kmeans", "flashlib", "fastkmeans")


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument(
        "--rows",
        type=lambda text: text.split(","),
        metavar="1,4",
        help="rows to run (default: all of benchmarks/gpu/rows.py)",
    )
    parser.add_argument(
        "--peers",
        type=lambda text: text.split(","),
        metavar="NAME,NAME",
        help="whom to compare with (default: all that can be imported)",
    )
    parser.add_argument(
        "--data",
        choices=["uniform", "blobs", "offset"],
        help="what fills the rows; offset: blobs with a mean of 50 (default: as the row says)",
    )
    parser.add_argument("--small", action="store_true", help="small rows, to see whether all runs")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (default: cuda)")
    parser.add_argument(
        "--budget",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="about what the rounds of a row may take; peers that take half of it for a round are "
        "left out (default: 120)",
    )
    parser.add_argument(
        "--tflops", type=float, default=790.0, help="products for the floor (default: 790, an H200)"
    )
    parser.add_argument(
        "--bandwidth", type=float, default=4.3, help="TB/s for the floor (default: 4.3, an H200)"
    )
    parser.add_argument(
        "--reports", nargs="+", type=Path, metavar="JSON", help="measure nothing: print these"
    )
    day.options(parser)
    parser.set_defaults(repeats=5)


def run(options: argparse.Namespace) -> int:
    """Run the benchmark; return 1 if ours was at fault somewhere or nothing ran."""
    if options.day or options.stages:
        return day.run(options)
    try:
        import torch

        from benchmarks.gpu import measure, peers, rows, table
    except ImportError as error:
        print(f"this needs PyTorch: {error}", file=sys.stderr)
        return 1
    if options.reports:
        return _printed([json.loads(file.read_text(encoding="utf-8")) for file in options.reports])
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        print("PyTorch finds no GPU here; --device cpu tries the code", file=sys.stderr)
        return 1
    for what, wanted, there in (
        ("row", options.rows, [row.name for row in rows.ROWS]),
        ("peer", options.peers, peers.PEERS),
    ):
        if unknown := [name for name in wanted or () if name not in there]:
            print(f"no {what} is called {' or '.join(unknown)}", file=sys.stderr)
            return 1
    chosen = [row for row in rows.ROWS if options.rows is None or row.name in options.rows]
    runs, reasons = peers.ready(options.peers)
    machine = {"tflops": options.tflops, "bandwidth": options.bandwidth}
    about = environment(options.device)
    print(table.title(about, machine, reasons))

    results: list[Any] = []
    for row in chosen:
        row = row.small() if options.small else row
        row = replace(row, data=options.data or row.data)
        with warnings.catch_warnings():
            # Every run stops at max_iter by design, and small rows may leave clusters empty.
            warnings.simplefilter("ignore")
            result = measure.measure(
                row,
                runs,
                options.device,
                repeats=options.repeats,
                budget=options.budget,
                floor=row.floor(**machine),
            )
        results.append(result)
        print(f"\n{table.section(result)}", flush=True)
        # After each, as the whole table takes long and may be stopped.
        made = {"command": "gpu", "environment": about, "not_run": reasons, "machine": machine}
        report.write(options.json, made | {"results": table.as_json(results)})
    print(f"\n{table.summary(results)}")
    return 0 if all(not result.lines[0].fault for result in results) else 1


def environment(device: str) -> dict[str, str | int | None]:
    """Return what the numbers depend on, the device and the date first."""
    import torch

    on_gpu = torch.device(device).type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else f"{report.processor()} (no GPU)"
    first = {"device": name, "date": datetime.date.today().isoformat()}
    return first | report.environment(PACKAGES) | {"cuda": torch.version.cuda}


def _printed(reports: list[dict[str, Any]]) -> int:
    """Print reports of one machine as one document."""
    from benchmarks.gpu import table

    results = [each for made in reports for each in table.from_json(made["results"])]
    first = reports[0]
    print(table.title(first["environment"], first["machine"], first["not_run"]))
    for result in results:
        print(f"\n{table.section(result)}")
    print(f"\n{table.summary(results)}")
    return 0
