"""Cost against the gallery's size, from 1,000 to 1,000,000 images: time and peak memory, ours and others'.

A fixed number of queries is ranked against each gallery and the nearest 100 are asked for; fitting is included. Every
figure is of a fresh process. A contender that exceeds --budget seconds or --memory GiB at some size is stopped,
recorded so, and not tried at larger ones; nothing is extrapolated.

    python -m benchmarks.speed.scaling --output scaling.json --figure scaling.png
    python -m benchmarks.speed.scaling --from-json scaling.json --figure scaling.svg
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.speed import peers
from benchmarks.speed.cost_plot import cost_curves
from benchmarks.speed.measure import hardware, record, write_json
from benchmarks.speed.rerank import TOP, clustered_features, guarded, say, timed, warm_up, watched

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


def measure_case(name: str, size: int, queries: int, dim: int, device: torch.device) -> None:
    """Say seconds and peak bytes of one call."""
    data = clustered_features(queries, size, dim, noise=NOISE)
    query, gallery = data.query.to(device), data.gallery.to(device)
    warm_up(name, query, gallery, TOP)
    say(ready=True)
    _, seconds, peak = timed(name, query, gallery, TOP, device)
    say(seconds=seconds, peak_bytes=peak or None)  # 0: less than what the process had at hand


def measure_all(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A record for each contender and size, up to the size where it was stopped."""
    records = []
    for name in arguments.contenders:
        if not peers.installed(name):
            print(f"{peers.LABELS[name]}: not installed", flush=True)
            continue
        for size in tqdm(sorted(arguments.sizes), desc=name, leave=False):
            lines, stopped = watched(
                "benchmarks.speed.scaling",
                ["--case", name, str(size), *child_options(arguments)],
                threads=arguments.threads,
                limit=arguments.budget,
                memory=arguments.memory,
            )
            found = lines[0] if lines else {"seconds": None, "peak_bytes": None}
            label = peers.LABELS[name]
            about = {"method": label, "group": label.partition(" (")[0], "size": size}
            records.append({**about, **found, "stopped": stopped})
            print(show(records[-1]), flush=True)
            if stopped:
                break
    return records


def show(found: dict[str, Any]) -> str:
    """A record as a line, for the terminal."""
    line = f"{found['method']:30}{found['size']:>12,}"
    if found["stopped"]:
        return f"{line}  stopped: {found['stopped']}"
    peak = "-" if found["peak_bytes"] is None else f"{found['peak_bytes'] / 2**20:,.0f}"
    return f"{line}{found['seconds']:12.3f} s{peak:>10} MiB"


def child_options(arguments: argparse.Namespace) -> list[str]:
    """What a fresh process must know of the command line."""
    names = ("queries", "dim", "threads", "device")
    return [word for name in names for word in (f"--{name}", str(getattr(arguments, name)))]


def parse_arguments(given: Sequence[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="gallery images")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--dim", type=int, default=512, help="size of a feature")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of every contender")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; NumPy's contenders stay on the CPU")
    parser.add_argument("--budget", type=float, default=600, help="seconds after which a contender is stopped")
    parser.add_argument("--memory", type=float, default=16, help="GiB above which a process is stopped")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--figure", type=Path, help="picture to write (png, svg, pdf)")
    parser.add_argument("--from-json", type=Path, help="draw what --output wrote; nothing is measured")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    for name in ("queries", "dim", "threads", "budget", "memory"):
        if not getattr(arguments, name) > 0:
            parser.error(f"--{name} must be above 0, got {getattr(arguments, name)}")
    if min(arguments.sizes) < 1:
        parser.error(f"--sizes must be at least 1, got {min(arguments.sizes)}")
    return arguments


def main(given: Sequence[str] | None = None) -> None:
    """Measure, or read what was measured; write; draw."""
    given = sys.argv[1:] if given is None else given
    arguments = parse_arguments(given)
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    if arguments.case:
        name, size = arguments.case
        guarded(measure_case, name, int(size), arguments.queries, arguments.dim, device)
        return
    if arguments.from_json:
        content = json.loads(arguments.from_json.read_text(encoding="utf-8"))
    else:
        print(f"{hardware(device)}, {arguments.threads} thread(s), torch {torch.__version__}")
        content = {
            "benchmark": "re-ranking: cost against the gallery's size",
            "command": shlex.join(["python", "-m", "benchmarks.speed.scaling", *given]),
            **record(device),
            "queries": arguments.queries,
            "dim": arguments.dim,
            "answer": f"nearest {TOP}",
            "limits": {"seconds": arguments.budget, "GiB": arguments.memory},
        }
        content["versions"] |= {"numpy": np.__version__, **peers.versions()}
        content["records"] = measure_all(arguments)
        if arguments.output:
            write_json(arguments.output, content)
    if arguments.figure:
        arguments.figure.parent.mkdir(parents=True, exist_ok=True)
        title = (
            f"{content['queries']} queries, {content['dim']} dimensions, {content['threads']} thread(s); "
            f"stopped after {content['limits']['seconds']:g} s or at {content['limits']['GiB']:g} GiB"
        )
        cost_curves(content["records"], arguments.figure, title=title)


if __name__ == "__main__":
    main()
