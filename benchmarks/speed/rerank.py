"""Time and memory of re-ranking, ours beside other packages' and dense forms, and beside the bare work it needs.

On generated features whose identities overlap as in practice. Every figure is of a fresh process, with the same number
of threads for all. AIM is compared with the two bare matrix products q·g and g·g, k-reciprocal and GNN with one exact
top-k pass over queries and gallery together. Where ours and another form both ran, their values are compared too.
A case that exceeds --limit or --memory is stopped and recorded so.

    python -m benchmarks.speed.rerank --output rerank.json
    python -m benchmarks.speed.rerank --settings regdb sysu --threads 1 --limit 60
    python -m benchmarks.speed.rerank --size 1000 10000 512 --contenders products aim k_reciprocal

``latency`` among the settings: one query at a time against a fitted gallery of 100,000 × 512.
"""

import argparse
import json
import os
import resource
import select
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.speed import peers
from benchmarks.speed.measure import PeakMemory, can_measure_memory, hardware, record, write_json
from vireid._ops import normalize_rows
from vireid.metrics import rank_metrics
from vireid.nn import H2FT
from vireid.rerank import AIM, SIM, GraphTransfer, QueryExpansion

SEED, PER_IDENTITY, FACTORS = 0, 25, 64
TOP = 100
DENSE_BYTES = 2**30  # a larger distance matrix is not asked for: the nearest TOP are
ENOUGH = 120.0  # seconds of all calls after which a contender is not called again
COMPARED = 64  # queries whose values are compared
ALL = tuple(name for name in peers.CONTENDERS if name != "search")
RECORDED = tuple(name for name in ALL if name not in ("sim", "query_expansion"))


@dataclass(frozen=True)
class Setting:
    """Numbers of images, size of the features, their noise, and what is run on them."""

    queries: int
    gallery: int
    dim: int
    noise: float
    contenders: tuple[str, ...] = RECORDED

    @property
    def top(self) -> int | None:
        """What is asked for: all distances, or the nearest so many."""
        return None if 4 * self.queries * self.gallery <= DENSE_BYTES else TOP


SETTINGS = {
    "regdb": Setting(2060, 2060, 2048, 1.3),
    "sysu": Setting(3803, 3010, 2048, 1.2),  # multi-shot
    "market": Setting(3368, 15913, 2048, 1.1),
    "msmt17": Setting(11659, 82161, 512, 1.0),
    "large": Setting(3368, 100_000, 2048, 1.0, ("products", "aim", "aim_paper", "dense_aim")),
}
LATENCY = Setting(200, 100_000, 512, 1.0)
FITTED = {
    "search": "exact search, not fitted",
    "aim": "AIM",
    "query_expansion": "QueryExpansion (αQE)",
    "sim": "SIM",
    "graph_transfer": "GraphTransfer (H2FT)",
}


class Clustered(NamedTuple):
    """Features and the identities they belong to."""

    query: Tensor
    gallery: Tensor
    query_ids: Tensor
    gallery_ids: Tensor


def clustered_features(queries: int, gallery: int, dim: int, *, noise: float, seed: int = SEED) -> Clustered:
    """Features of identities with about 25 gallery images each, some images much noisier than others.

    An identity is a point in 64 dimensions, an image that point plus noise of an own strength between 0.5 and 1.5
    times ``noise``; a random linear map takes all of them to ``dim`` dimensions. The larger the gallery, the less
    noise it takes to confuse identities.

    Args:
        queries: Nq.
        gallery: Ng.
        dim: d.
        noise: 1 is the spread of the identities.
        seed: the same seed, the same features.

    Returns:
        (Nq, d) and (Ng, d), float32, and their identities.
    """
    query_ids, gallery_ids = clustered_identities(queries, gallery)
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(int(gallery_ids.max()) + 1, FACTORS, generator=generator)
    lift = torch.randn(FACTORS, dim, generator=generator)

    def images(ids: Tensor) -> Tensor:
        strength = noise * (0.5 + torch.rand(len(ids), 1, generator=generator))
        return (points[ids] + strength * torch.randn(len(ids), FACTORS, generator=generator)) @ lift

    return Clustered(images(query_ids), images(gallery_ids), query_ids, gallery_ids)


def clustered_identities(queries: int, gallery: int) -> tuple[Tensor, Tensor]:
    """Identities (Nq,) and (Ng,) of `clustered_features`: each is asked for and held about equally often."""
    people = max(1, gallery // PER_IDENTITY)
    return torch.arange(queries) % people, torch.arange(gallery) % people


# ---------------------------------------------------------------------------------------------------- in the child


def say(**line: Any) -> None:
    """A line of JSON for the process that watches."""
    print(json.dumps(line), flush=True)


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; nothing to wait for on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_case(name: str, data: Clustered, top: int | None, device: torch.device, keep: Path) -> None:
    """Say seconds and peak bytes of one call of a contender; write what its first queries got to ``keep``."""
    query, gallery = data.query.to(device), data.gallery.to(device)
    warm_up(name, query, gallery, top)
    say(ready=True)
    result, seconds, peak = timed(name, query, gallery, top, device)
    if result is not None:
        values, indices = result if isinstance(result, tuple) else (result, None)
        first = values[:COMPARED].cpu().numpy()
        if indices is None:
            np.savez(keep, values=first)
        else:
            np.savez(keep, values=first, indices=indices[:COMPARED].cpu().numpy())
    say(seconds=seconds, peak_bytes=peak)


def warm_up(name: str, query: Tensor, gallery: Tensor, top: int | None) -> None:
    """A small call, so that libraries are loaded and threads are there."""
    peers.run(name, query[:64], gallery[:256], top)


def timed(
    name: str, query: Tensor, gallery: Tensor, top: int | None, device: torch.device
) -> tuple[peers.Result, float, int | None]:
    """The contender's answer, its seconds, and its peak bytes beyond the inputs, the answer included."""
    if not can_measure_memory(device):
        synchronize(device)
        start = time.perf_counter()
        result = peers.run(name, query, gallery, top)
        synchronize(device)
        return result, time.perf_counter() - start, None
    with PeakMemory(device) as peak:
        synchronize(device)
        start = time.perf_counter()
        result = peers.run(name, query, gallery, top)
        synchronize(device)
        seconds = time.perf_counter() - start
    return result, seconds, peak.bytes


def measure_latency(name: str, device: torch.device) -> None:
    """Say the seconds of ``topk`` of each of 200 queries alone, once the gallery is fitted, and of the fit."""
    data = clustered_features(LATENCY.queries, LATENCY.gallery, LATENCY.dim, noise=LATENCY.noise)
    query, gallery = data.query.to(device), data.gallery.to(device)
    say(ready=True)
    start = time.perf_counter()
    if name == "search":
        unit = torch.nn.functional.normalize(gallery)

        def answer(q: Tensor) -> object:
            return (torch.nn.functional.normalize(q) @ unit.T).topk(TOP)
    else:
        torch.manual_seed(SEED)
        fitted = {
            "aim": lambda: AIM(**peers.AIM_PARAMETERS),
            "query_expansion": lambda: QueryExpansion(n=5, alpha=3.0),
            "sim": SIM,
            "graph_transfer": lambda: GraphTransfer(H2FT(LATENCY.dim).to(device).eval()),
        }[name]()
        fitted.fit(gallery)

        def answer(q: Tensor) -> object:
            return fitted.topk(q, TOP)

    synchronize(device)
    fit = time.perf_counter() - start
    seconds = []
    for row in query.split(1):
        start = time.perf_counter()
        answer(row)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    say(seconds=statistics.median(seconds[10:]), fit_seconds=fit, peak_bytes=None)


# ---------------------------------------------------------------------------------------------------- the watcher


def watched(
    module: str, options: Sequence[str], *, threads: int, limit: float, memory: float
) -> tuple[list[dict[str, Any]], str | None]:
    """Run ``module`` in a fresh process of this interpreter, and stop it when it takes too much.

    Args:
        module: prints a line of JSON now and then: first one with "ready", then one for each measurement.
        options: of the command line.
        threads: CPU threads of torch and NumPy.
        limit: seconds that any line but the first may be waited for.
        memory: GiB that the process may have resident, its inputs included.

    Returns:
        The lines after the first, and why it ended early: "time", "memory", "error" (which was shown), None if it
        did not.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment |= {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
    # its own session, so that stopping it also ends what it may have started
    child = subprocess.Popen(
        [sys.executable, "-m", module, *options], stdout=subprocess.PIPE, env=environment, start_new_session=True
    )
    assert child.stdout is not None
    lines: list[dict[str, Any]] = []
    stopped, deadline, text = None, float("inf"), b""
    try:
        while True:
            if select.select([child.stdout], [], [], 0.02)[0]:
                read = os.read(child.stdout.fileno(), 1 << 16)
                if not read:
                    break
                *whole, text = (text + read).split(b"\n")
                lines += [json.loads(line) for line in whole]
                deadline = time.monotonic() + limit
            elif time.monotonic() > deadline:
                stopped = "time"
            elif resident_bytes(child.pid) > memory * 2**30:
                stopped = "memory"
            if stopped:
                break
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.stdout.close()
        status = child.wait()
    if lines and lines[-1].get("stopped"):  # the process noticed by itself that memory does not suffice
        stopped = lines.pop()["stopped"]
    elif status and not stopped:
        stopped = "error"  # of a contender: the others go on
    return lines[1:], stopped


def resident_bytes(process: int) -> int:
    """Resident bytes of another process; 0 once it has ended, or where the system does not say."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * resource.getpagesize()


def guarded(function: Any, *arguments: Any) -> None:
    """Call a measurement; say "stopped" if it asks for more memory than there is."""
    try:
        function(*arguments)
    except (MemoryError, torch.OutOfMemoryError):
        say(stopped="memory")
    except RuntimeError as error:  # torch's CPU allocator raises nothing more precise
        if "allocate memory" not in str(error):
            raise
        say(stopped="memory")


# ---------------------------------------------------------------------------------------------------- results


def difference(ours: Path, other: Path) -> float | None:
    """Largest absolute difference of the values that two contenders found for the same pairs; None if one has none."""
    if not ours.exists() or not other.exists():
        return None
    with np.load(ours) as a, np.load(other) as b:
        values, expected = a["values"], b["values"]
        if "indices" in a and "indices" not in b:
            expected = np.take_along_axis(expected, a["indices"], 1)
        elif values.shape != expected.shape:
            return None
        return float(np.abs(values - expected).max())


def mean_ap(distance: Tensor, setting: Setting) -> float:
    """The mAP in percent of the first queries, whose distances these are."""
    query_ids, gallery_ids = clustered_identities(setting.queries, setting.gallery)
    return 100 * rank_metrics(distance, query_ids[: len(distance)], gallery_ids).mAP


def kept_distance(path: Path) -> Tensor | None:
    """What `measure_case` kept, if that is distances to the whole gallery."""
    if not path.exists():
        return None
    with np.load(path) as arrays:
        return None if "indices" in arrays else torch.from_numpy(arrays["values"])


def setting_of(name: str, arguments: argparse.Namespace) -> Setting:
    """The setting of that name, or that of --size."""
    return (
        Setting(arguments.size[0], arguments.size[1], arguments.size[2], 1.0, ALL) if name == "size" else SETTINGS[name]
    )


def measure_setting(name: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All contenders of a setting, in turns, each call in its own process."""
    setting = setting_of(name, arguments)
    data = clustered_features(setting.queries, setting.gallery, setting.dim, noise=setting.noise)
    before = mean_ap(1 - normalize_rows(data.query[:COMPARED]) @ normalize_rows(data.gallery).T, setting)
    del data
    kept = {case: folder / f"{name}_{case}.npz" for case in setting.contenders}
    wanted = [case for case in setting.contenders if arguments.contenders is None or case in arguments.contenders]
    cases: dict[str, dict[str, Any]] = {
        case: {"stopped": None if peers.installed(case) else "not installed", "runs": []} for case in wanted
    }
    turns = [case for _ in range(arguments.repeats) for case in wanted]  # so that a slow spell hits all of them
    for case in tqdm(turns, desc=name, leave=False):
        found = cases[case]
        if found["stopped"] or sum(line["seconds"] for line in found["runs"]) > ENOUGH:
            continue
        options = ["--case", name, case, str(kept[case]), *child_options(arguments)]
        limits = {"threads": arguments.threads, "limit": arguments.limit, "memory": arguments.memory}
        lines, found["stopped"] = watched("benchmarks.speed.rerank", options, **limits)
        found["runs"] += lines
    for found in cases.values():
        if found["runs"]:
            found["median_s"] = statistics.median(line["seconds"] for line in found["runs"])
            found["peak_bytes"] = found["runs"][0]["peak_bytes"]
    for case, found in cases.items():
        floor = cases.get(peers.FLOORS.get(case, ""), {}).get("median_s")
        if floor and "median_s" in found:
            found["times_floor"] = found["median_s"] / floor
        if case in peers.SAME:
            found["difference_to_ours"] = difference(kept[peers.SAME[case]], kept[case])
        distance = kept_distance(kept[case])
        found["mAP"] = None if distance is None else mean_ap(distance, setting)
    shape = {"queries": setting.queries, "gallery": setting.gallery, "dim": setting.dim, "noise": setting.noise}
    return {**shape, "mAP": before, "answer": "distance" if setting.top is None else f"nearest {TOP}", "cases": cases}


def measure_latencies(arguments: argparse.Namespace) -> dict[str, Any]:
    """Each fitted re-ranker in its own process."""
    cases = {}
    for name in tqdm(FITTED, desc="latency", leave=False):
        options = ["--case", "latency", name, "-", *child_options(arguments)]
        limits = {"threads": arguments.threads, "limit": arguments.limit, "memory": arguments.memory}
        lines, stopped = watched("benchmarks.speed.rerank", options, **limits)
        cases[name] = {"stopped": stopped, **(lines[0] if lines else {})}
    return {"gallery": LATENCY.gallery, "dim": LATENCY.dim, "answer": f"nearest {TOP}", "cases": cases}


def child_options(arguments: argparse.Namespace) -> list[str]:
    """What a fresh process must know of the command line."""
    size = ["--size", *map(str, arguments.size)] if arguments.size else []
    return ["--threads", str(arguments.threads), "--device", arguments.device, *size]


def show_setting(found: dict[str, Any]) -> str:
    """A setting's table, for the terminal."""
    shape = f"{found['queries']:,} × {found['gallery']:,} × {found['dim']:,}, {found['answer']}, mAP {found['mAP']:.1f}"
    lines = [f"{shape:50}{'median s':>10}{'x floor':>9}{'peak MiB':>10}{'mAP %':>7}{'differs':>10}"]
    for name, case in found["cases"].items():
        line = f"  {peers.LABELS[name]:48}"
        if "median_s" not in case:
            lines.append(f"{line}  stopped: {case['stopped']}")
            continue
        peak = "-" if case["peak_bytes"] is None else f"{case['peak_bytes'] / 2**20:,.0f}"
        ratio = f"{case['times_floor']:.2f}" if "times_floor" in case else "-"
        quality = "-" if case["mAP"] is None else f"{case['mAP']:.1f}"
        off = case.get("difference_to_ours")
        lines.append(
            f"{line}{case['median_s']:10.2f}{ratio:>9}{peak:>10}{quality:>7}{'-' if off is None else f'{off:.0e}':>10}"
        )
    return "\n".join(lines)


def show_latency(found: dict[str, Any]) -> str:
    """The latencies' table, for the terminal."""
    shape = f"one query against {found['gallery']:,} × {found['dim']}, {found['answer']}"
    lines = [f"{shape:50}{'median ms':>10}{'fit s':>9}"]
    for name, case in found["cases"].items():
        line = f"  {FITTED[name]:48}"
        took = f"{1e3 * case['seconds']:10.2f}{case['fit_seconds']:9.1f}" if "seconds" in case else "  stopped: "
        lines.append(line + took + (case["stopped"] or ""))
    return "\n".join(lines)


def parse_arguments(given: Sequence[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*SETTINGS, "latency"]
    parser.add_argument("--settings", nargs="+", choices=names, default=names)
    parser.add_argument(
        "--size", nargs=3, type=int, metavar=("QUERIES", "GALLERY", "DIM"), help="in place of the settings; ours too"
    )
    parser.add_argument("--contenders", nargs="+", choices=ALL, help="only these")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls of each contender")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of every contender")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; NumPy's contenders stay on the CPU")
    parser.add_argument("--limit", type=float, default=900, help="seconds after which a call is stopped")
    parser.add_argument("--memory", type=float, default=16, help="GiB of memory above which a process is stopped")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    for name in ("repeats", "threads", "limit", "memory"):
        if not getattr(arguments, name) > 0:
            parser.error(f"--{name} must be above 0, got {getattr(arguments, name)}")
    if arguments.size and min(arguments.size) < 1:
        parser.error(f"--size must be at least 1, got {arguments.size}")
    if arguments.size:
        arguments.settings = ["size"]
    return arguments


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    given = sys.argv[1:] if given is None else given
    arguments = parse_arguments(given)
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    if arguments.case:
        name, case, keep = arguments.case
        if name == "latency":
            guarded(measure_latency, case, device)
        else:
            setting = setting_of(name, arguments)
            data = clustered_features(setting.queries, setting.gallery, setting.dim, noise=setting.noise)
            guarded(measure_case, case, data, setting.top, device, Path(keep))
        return
    print(f"{hardware(device)}, {arguments.threads} thread(s), torch {torch.__version__}, {arguments.repeats} repeats")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.settings:
            if name == "latency":
                results[name] = measure_latencies(arguments)
                print(show_latency(results[name]), flush=True)
            else:
                results[name] = measure_setting(name, arguments, Path(folder))
                print(show_setting(results[name]), flush=True)
    if arguments.output:
        content: dict[str, Any] = {
            "benchmark": "re-ranking: time and memory",
            "command": shlex.join(["python", "-m", "benchmarks.speed.rerank", *given]),
            **record(device),
            "seed": SEED,
            "limits": {"seconds": arguments.limit, "GiB": arguments.memory},
            "parameters": {
                "AIM": peers.AIM_PARAMETERS,
                "k-reciprocal": peers.K_RECIPROCAL_PARAMETERS,
                "GNN": peers.GNN_PARAMETERS,
                "top-k pass": {"k": peers.PASS_K},
            },
            "results": results,
        }
        content["versions"] |= {"numpy": np.__version__, **peers.versions()}
        write_json(arguments.output, content)


if __name__ == "__main__":
    main()
