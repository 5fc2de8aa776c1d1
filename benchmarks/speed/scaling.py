"""Cost against the gallery's size, from 1,000 to 1,000,000 images: time and peak memory, ours and others'.

A fixed number of queries is ranked against each gallery and the nearest 100 are asked for; fitting is included. Every
figure is of a fresh process. A contender that exceeds --budget seconds or --memory GiB at some size is stopped,
recorded so, and not tried at larger ones; nothing is extrapolated.

    python -m benchmarks.speed.scaling --output scaling.csv --figure scaling.png
    python -m benchmarks.speed.scaling --read scaling.csv --figure scaling.svg
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.speed import peers
from benchmarks.speed.cost_plot import cost_curves
from benchmarks.speed.measure import announce, figures, options_parser, parse, read_table, save
from benchmarks.speed.rerank import TOP, clustered_features, timed, warm_up
from benchmarks.speed.watch import guarded, say, watched

MODULE = "benchmarks.speed.scaling"
SIZES = (1_000, 3_162, 10_000, 31_623, 100_000, 316_228, 1_000_000)
CONTENDERS = (
    "search",
    "aim",
    "k_reciprocal",
    "gnn",
    "dense_aim",
    "torchreid_k_reciprocal",
    "fastreid_k_reciprocal",
    "dense_gnn",
)
NOISE = 1.0
Row = dict[str, object]


def measure_case(name: str, size: int, queries: int, dim: int, device: torch.device) -> None:
    """Say the seconds and peak bytes of one call."""
    data = clustered_features(queries, size, dim, noise=NOISE)
    query, gallery = data.query.to(device), data.gallery.to(device)
    warm_up(name, query, gallery, TOP)
    say(ready=True)
    _, seconds, peak = timed(name, query, gallery, TOP, device)
    say(seconds=seconds, peak_bytes=peak or None)  # 0: less than what the process had at hand


def measure_all(arguments: argparse.Namespace) -> list[Row]:
    """Return the rows of each contender and size, up to the size where it was stopped."""
    rows: list[Row] = []
    limits = {"limit": arguments.budget, "memory": arguments.memory}
    for name in arguments.contenders:
        if not peers.installed(name):
            print(f"{peers.LABELS[name]}: not installed", flush=True)
            continue
        for size in tqdm(sorted(arguments.sizes), desc=name, leave=False):
            lines, stopped = watched(
                MODULE, [*arguments.given, "--case", name, str(size)], threads=arguments.threads, **limits
            )
            found = figures("re-ranking", str(size), peers.LABELS[name], **(lines[0] if lines else {}), stopped=stopped)
            rows += found
            print(peers.LABELS[name], size, *(f"{row['metric']} {row['value']}" for row in found), flush=True)
            if stopped:
                break
    return rows


def records(rows: Sequence[Mapping[str, object]]) -> list[dict[str, Any]]:
    """Return a record per contender and size, as `cost_curves` takes them."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows:
        method, size = str(row["method"]), int(str(row["size"]))
        about = {"method": method, "group": method.partition(" (")[0], "size": size}
        record = found.setdefault((method, size), {**about, "seconds": None, "peak_bytes": None, "stopped": None})
        stopped = row["metric"] == "stopped"
        record[str(row["metric"])] = row["value"] if stopped else float(str(row["value"]))
    return list(found.values())


def main(given: Sequence[str] | None = None) -> None:
    """Measure, or read what was measured; write; draw."""
    parser = options_parser(__doc__, repeats=1, threads=2)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="gallery images")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--dim", type=int, default=512, help="size of a feature")
    parser.add_argument("--budget", type=float, default=600, help="seconds after which a contender is stopped")
    parser.add_argument("--memory", type=float, default=16, help="GiB above which a process is stopped")
    parser.add_argument("--figure", type=Path, help="picture to write (png, svg, pdf)")
    parser.add_argument("--read", type=Path, help="draw what --output wrote; nothing is measured")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    arguments = parse(parser, given)
    device = torch.device(arguments.device)
    if arguments.case:
        name, size = arguments.case
        guarded(measure_case, name, int(size), arguments.queries, arguments.dim, device)
        return
    about: Mapping[str, object]
    rows: Sequence[Mapping[str, object]]
    if arguments.read:
        about, rows = read_table(arguments.read)
    else:
        machine = announce(arguments, device, ["numpy", *peers.FILES])
        title = f"{arguments.queries} queries, {arguments.dim} dimensions, {arguments.threads} thread(s); "
        title += f"stopped after {arguments.budget:g} s or at {arguments.memory:g} GiB"
        about = {"title": title, **machine}
        rows = measure_all(arguments)
        save(arguments, MODULE, rows, about)
    if arguments.figure:
        arguments.figure.parent.mkdir(parents=True, exist_ok=True)
        cost_curves(records(rows), arguments.figure, title=str(about["title"]))


if __name__ == "__main__":
    main()
