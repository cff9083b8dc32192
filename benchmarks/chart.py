"""Draw the chart of a report that `cpu`, `growth` or `map` has written with --json.

Several reports of `cpu` become one chart. Needs matplotlib.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.peers import OURS

# Okabe and Ito's colours, which colour-blind readers can tell apart, and shapes besides.
STYLES = {
    OURS: ("#000000", "o"),
    "sklearn": ("#0072B2", "s"),
    "sklearn-elkan": ("#56B4E9", "^"),
    "sklearnex": ("#E69F00", "D"),
    "faiss": ("#009E73", "v"),
}
OTHER = ("#CC79A7", "X")
NAMES = {
    "sklearn": "scikit-learn",
    "sklearn-elkan": "scikit-learn, elkan",
    "sklearnex": "scikit-learn-intelex",
    "faiss": "faiss-cpu",
}
TITLES = {
    "given": "How many times as long the peers take: iterations from the same centres",
    "default": "How many times as long the peers take: end to end, with defaults",
}
GREY = "#666666"

EMPTY = "#CFCFCF"
EXTREME = 8
"""Ratio, and one over it, from which on colours grow no stronger."""
EVEN, WANTED = 1.0, 1.5
"""Ratios below which a cell of the map is marked, with the stronger and the weaker mark."""
MEASURES = {"cpu": "CPU time, one thread", "wall": "wall time, all threads"}


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("reports", nargs="+", type=Path, metavar="REPORT.json")
    parser.add_argument("chart", type=Path, metavar="CHART.png")
    parser.add_argument("--mode", default="given", choices=list(TITLES), help="of a report of cpu")
    parser.add_argument(
        "--measure", default="cpu", choices=list(MEASURES), help="of a report of map"
    )
    parser.add_argument("--peer", default="sklearn", help="of a report of map (default: sklearn)")


def run(options: argparse.Namespace) -> int:
    """Draw the chart."""
    reports = [json.loads(file.read_text(encoding="utf-8")) for file in options.reports]
    if reports[0]["command"] == "growth":
        growth(reports[0]["series"], options.chart)
    elif reports[0]["command"] == "map":
        ratios(reports[0], options.chart, options.measure, options.peer)
    else:
        results = [result for report in reports for result in report["results"]]
        speedups(results, options.chart, options.mode)
    return 0


def speedups(results: list[dict[str, Any]], file: Path, mode: str = "given") -> None:
    """Draw, for every row and dtype, how long the peers take relative to ours.

    A bar, with its length on the right, reaches to the best valid peer, or where none is valid, hollow,
    to the best of all; markers are the other peers, and a tick is the matrix product alone.
    """
    shown = [result for result in results if result["mode"] == mode] or results
    mode = shown[0]["mode"]
    dtypes = list(dict.fromkeys(result["dtype"] for result in shown))
    rows = list(dict.fromkeys(result["row"] for result in shown))
    plt = pyplot()
    figure, panels = plt.subplots(
        1,
        len(dtypes),
        figsize=(2 + 4.4 * len(dtypes), 1.7 + 0.34 * len(rows)),
        sharey=True,
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for panel, dtype in zip(panels[0], dtypes, strict=True):
        for result in shown:
            if result["dtype"] == dtype:
                _row(panel, rows.index(result["row"]), result)
        panel.set_xscale("log")
        panel.axvline(1, color="black", linewidth=1.2)
        panel.set_title(dtype, fontsize=10)
        panel.set_xlabel("their seconds / ours", fontsize=9)
        _plain_ticks(panel)
    low, high = panels[0][0].get_xlim()
    panels[0][0].set_xlim(min(low, 0.8), max(high, 4) * 1.15)
    sizes = {r["row"]: f"{r['row']}  ({r['n'] // 1000}k × {r['d']})" for r in shown}
    panels[0][0].set_yticks(range(len(rows)), [sizes[row] for row in rows])
    panels[0][0].set_ylim(len(rows) - 0.4, -0.6)
    figure.suptitle(TITLES[mode], fontsize=11)
    figure.legend(handles=_legend(plt, shown), loc="outside lower center", ncols=3, frameon=False)
    _save(plt, figure, file)


def _row(panel: Any, y: int, result: dict[str, Any]) -> None:
    """Draw one row of the table at height y."""
    lines = {line["peer"]: line for line in result["lines"]}
    best = result["best_valid"] or result["best_of_all"]
    if best is None:
        return
    colour, _ = style(best)
    ratio = lines[best]["ratio"]
    hollow = result["best_valid"] is None
    # Pale, so that the other peers and the product are seen on it.
    face = "none" if hollow else (colour, 0.35)
    panel.barh(y, ratio - 1, left=1, height=0.62, color=face, edgecolor=colour, linewidth=1.2)
    panel.annotate(
        f"{ratio:.1f}" if ratio < 99.5 else f"{ratio:.0f}",
        (1, y),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
        color=GREY if hollow else "black",
        weight="normal" if hollow else "bold",
    )
    for name, line in lines.items():
        if name not in (OURS, best):
            colour, shape = style(name)
            face = "white" if line["fault"] else colour
            panel.plot(line["ratio"], y, shape, color=colour, markerfacecolor=face, markersize=5)
    if result["floor_ratio"]:
        panel.plot(1 / result["floor_ratio"], y, "|", color=GREY, markersize=12, markeredgewidth=2)


def _legend(plt: Any, shown: list[dict[str, Any]]) -> list[Any]:
    """Return a handle for each peer that is there, and for the other signs."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    peers = dict.fromkeys(
        line["peer"] for result in shown for line in result["lines"] if line["peer"] != OURS
    )
    handles = [
        Line2D([], [], color=style(name)[0], marker=style(name)[1], linestyle="", label=label(name))
        for name in peers
    ]
    handles.append(Patch(facecolor=GREY, alpha=0.35, label="bar and number: the best peer"))
    if any(line["fault"] for result in shown for line in result["lines"]):
        handles.append(
            Line2D(
                [],
                [],
                color=GREY,
                marker="s",
                markerfacecolor="white",
                linestyle="",
                label="hollow: ended elsewhere",
            )
        )
    if any(result["floor_ratio"] for result in shown):
        handles.append(
            Line2D(
                [],
                [],
                color=GREY,
                marker="|",
                markersize=11,
                markeredgewidth=2,
                linestyle="",
                label="matrix product alone",
            )
        )
    return handles


def growth(series: list[dict[str, Any]], file: Path) -> None:
    """Draw seconds over n and over k, a line for each peer."""
    plt = pyplot()
    axes = list(dict.fromkeys(each["axis"] for each in series))
    figure, panels = plt.subplots(
        1,
        len(axes),
        figsize=(4.8 * len(axes), 4.2),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for panel, axis in zip(panels[0], axes, strict=True):
        here = [each for each in series if each["axis"] == axis]
        for each in here:
            colour, shape = style(each["peer"])
            dashed = each["peer"] not in STYLES
            panel.plot(
                [point["size"] for point in each["points"]],
                [point["seconds"] for point in each["points"]],
                color=colour,
                marker=None if dashed else shape,
                markersize=4.5,
                linestyle="--" if dashed else "-",
                linewidth=2.4 if each["peer"] == OURS else 1.2,
                zorder=3 if each["peer"] == OURS else 2,
                label=label(each["peer"]),
            )
        panel.set(yscale="log", xlabel=axis)
        panel.set_xscale("log", base=10 if axis == "n" else 2)
        if axis != "n":
            panel.xaxis.set_major_formatter("{x:.0f}")
        panel.set_title(here[0]["fixed"], fontsize=10)
        panel.grid(True, color="#E5E5E5", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("seconds")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.suptitle("How the cost of the same iterations grows", fontsize=11)
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    _save(plt, figure, file)


def ratios(report: dict[str, Any], file: Path, measure: str = "cpu", peer: str = "sklearn") -> None:
    """Draw the map: for every job and n a block of cells, d downwards and k to the right.

    A cell's colour is the geometric mean over dtypes and kinds of data of the peer's time / ours; its mark says
    whether any of them is below `WANTED` or `EVEN`.
    """
    shown = [r for r in report["results"] if r["measure"] == measure and peer in r["ratios"]]
    if not shown:
        print(f"nothing to draw: no cell of measure {measure} against {peer}", file=sys.stderr)
        return
    large = [r for r in report["left_out"] if r["measure"] == measure]
    axes = {a: sorted({r[a] for r in [*shown, *large]}) for a in ("n", "d", "k")}
    jobs = list(dict.fromkeys(r["job"] for r in shown))
    across = min(2, len(jobs))  # jobs beside each other
    down = -(-len(jobs) // across)

    plt = pyplot()
    size = (
        max(8.5, across * (len(axes["n"]) * (0.19 * len(axes["k"]) + 0.15) + 0.7)),
        down * (0.17 * len(axes["d"]) + 1.0) + 1.7,
    )
    figure = plt.figure(figsize=size, layout="constrained")
    key, body = figure.subfigures(2, 1, height_ratios=(1.7, size[1] - 1.7))
    parts = body.subfigures(down, across, squeeze=False).ravel()
    for part, job in zip(parts, jobs, strict=False):
        mean = geometric_mean(r["ratios"][peer] for r in shown if r["job"] == job)
        part.suptitle(f"{job}: {mean:.2f} on average", fontsize=12, weight="bold")
        panels = part.subplots(1, len(axes["n"]), squeeze=False, sharey=True)[0]
        for panel, n in zip(panels, axes["n"], strict=True):
            here = [[r for r in of if r["job"] == job and r["n"] == n] for of in (shown, large)]
            image = _block(panel, axes["d"], axes["k"], here[0], here[1], peer)
            panel.set_title(f"n = {n:,}", fontsize=9)
        panels[0].set_ylabel("d", rotation=0, labelpad=8)
    key.suptitle(
        f"How many times as long {label(peer)} takes as {OURS}: {MEASURES[measure]}\n"
        "n rows of d features in k clusters, means over data and dtypes",
        fontsize=12,
    )
    _key(key, image, peer)
    _save(plt, figure, file)


def _block(
    panel: Any,
    d: list[int],
    k: list[int],
    shown: list[dict[str, Any]],
    large: list[dict[str, Any]],
    peer: str,
) -> Any:
    """Draw the cells of one job and n, and return the image."""
    import numpy as np
    from matplotlib.colors import LogNorm
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=2, foreground="white")]  # so that marks are seen on dark cells
    found: dict[tuple[int, int], list[float]] = {}
    for r in shown:
        found.setdefault((d.index(r["d"]), k.index(r["k"])), []).append(r["ratios"][peer])
    means = np.full((len(d), len(k)), np.nan)
    for at, values in found.items():
        means[at] = geometric_mean(values)
        if min(values) < WANTED:
            mark = "x" if min(values) < EVEN else "."
            panel.plot(at[1], at[0], mark, color="black", markersize=4, path_effects=halo)
    for at in {(d.index(r["d"]), k.index(r["k"])) for r in large} - set(found):
        panel.plot(at[1], at[0], "_", color=GREY, markersize=4)
    panel.set_facecolor(EMPTY)
    image = panel.imshow(
        means, cmap="RdBu", norm=LogNorm(1 / EXTREME, EXTREME), aspect="auto", interpolation="none"
    )
    panel.set_xticks(range(len(k)), k, fontsize=6.5, rotation=90)
    panel.set_yticks(range(len(d)), d, fontsize=6.5)
    panel.set_xlabel("k", fontsize=9)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    panel.set_xticks([i - 0.5 for i in range(1, len(k))], minor=True)
    panel.set_yticks([i - 0.5 for i in range(1, len(d))], minor=True)
    panel.grid(which="minor", color="white", linewidth=0.8)
    panel.tick_params(which="minor", length=0)
    return image


def _key(part: Any, image: Any, peer: str) -> None:
    """Say what colours and marks mean."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    bar = part.colorbar(
        image, cax=part.add_axes((0.27, 0.5, 0.46, 0.12)), orientation="horizontal", extend="both"
    )
    ticks = {1 / 8: "⅛", 1 / 4: "¼", 1 / 2: "½", 1: "1", 2: "2", 4: "4", 8: "8"}
    bar.set_ticks(list(ticks), labels=list(ticks.values()))
    bar.minorticks_off()
    bar.outline.set_visible(False)
    for x, side, who in ((0.255, "right", label(peer)), (0.745, "left", OURS)):
        part.text(x, 0.56, f"{who} is faster", ha=side, va="center", fontsize=10)
    signs = {
        "x": f"below {EVEN:g} on some data or dtype",
        ".": f"below {WANTED:g} on some",
        "_": "too large to measure",
    }
    handles: list[Any] = [
        Line2D(
            [], [], color=GREY if sign == "_" else "black", marker=sign, linestyle="", label=said
        )
        for sign, said in signs.items()
    ]
    handles.append(Patch(color=EMPTY, label="not measured"))
    part.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=9)


def geometric_mean(ratios: Iterable[float]) -> float:
    """Return the mean that takes twice and half as even."""
    return math.exp(statistics.fmean(map(math.log, ratios)))


def style(name: str) -> tuple[str, str]:
    """Return the colour and the shape of a peer."""
    return STYLES.get(name, OTHER)


def label(name: str) -> str:
    """Return the name that readers know a peer by."""
    return NAMES.get(name, name)


def pyplot() -> Any:
    """Return matplotlib's pyplot, drawing to files alone."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _plain_ticks(panel: Any) -> None:
    """Write ratios as people do, and leave only the grid that helps to read them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.grid(True, axis="x", color="#E5E5E5", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.tick_params(axis="y", length=0)
    panel.spines[["top", "right", "left"]].set_visible(False)


def _save(plt: Any, figure: Any, file: Path) -> None:
    """Write the figure and forget it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    plt.close(figure)
