"""Time and memory of re-ranking: ours, other packages', dense forms, and the least work that it needs.

On generated features whose identities overlap as in practice. Every figure is of a fresh process, with the same number
of threads for all. AIM is compared with the two bare matrix products q·g and g·g, k-reciprocal and GNN with one exact
top-k pass over queries and gallery together. Where ours and another form both ran, their values are compared too.
A case that exceeds --limit or --memory is stopped and recorded so.

    python -m benchmarks.speed.rerank --output rerank.csv
    python -m benchmarks.speed.rerank --settings regdb sysu --threads 1 --limit 60
    python -m benchmarks.speed.rerank --size 1000 10000 512 --contenders products aim k_reciprocal

``latency`` among the settings: one query at a time against a fitted gallery of 100,000 × 512; ``latency_sysu``: of
3,010 × 2,048, beside the transductive algorithms run anew on each query and the gallery.
"""

import argparse
import contextlib
import statistics
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

from benchmarks.speed import measure, peers
from benchmarks.speed.watch import guarded, say, watched
from vireid._ops import normalize_rows
from vireid.metrics import rank_metrics
from vireid.nn import H2FT
from vireid.rerank import AIM, ECN, GNN, SIM, GraphTransfer, KReciprocal, QueryExpansion

MODULE, WHAT = "benchmarks.speed.rerank", "re-ranking"
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
        """Number of nearest images that is asked for; None: all distances."""
        return None if 4 * self.queries * self.gallery <= DENSE_BYTES else TOP


SETTINGS = {
    "regdb": Setting(2060, 2060, 2048, 1.3),
    "sysu": Setting(3803, 3010, 2048, 1.2),  # multi-shot
    "market": Setting(3368, 15913, 2048, 1.1),
    "msmt17": Setting(11659, 82161, 512, 1.0),
    "large": Setting(3368, 100_000, 2048, 1.0, ("products", "aim", "aim_paper", "dense_aim")),
}
ANEW = ("k_reciprocal_anew", "gnn_anew")
LATENCIES = {
    "latency": Setting(
        *(200, 100_000, 512, 1.0),
        ("search", "aim", "query_expansion", "sim", "graph_transfer", "k_reciprocal", "gnn", "ecn"),
    ),
    "latency_sysu": Setting(20, 3010, 2048, 1.2, ("search", "k_reciprocal", "gnn", *ANEW)),
}
FITTED = {
    "search": "exact search, not fitted",
    "aim": "AIM",
    "query_expansion": "QueryExpansion (αQE)",
    "sim": "SIM",
    "graph_transfer": "GraphTransfer (H2FT)",
    "k_reciprocal": "KReciprocal",
    "gnn": "GNN",
    "ecn": "ECN",
    "k_reciprocal_anew": "k_reciprocal of each query and the gallery",
    "gnn_anew": "gnn of each query and the gallery",
}


class Clustered(NamedTuple):
    """Features and the identities they belong to."""

    query: Tensor
    gallery: Tensor
    query_ids: Tensor
    gallery_ids: Tensor


def clustered_features(queries: int, gallery: int, dim: int, *, noise: float, seed: int = SEED) -> Clustered:
    """Return features of identities with about 25 gallery images each, some images much noisier than others.

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
    """Return identities (Nq,) and (Ng,) of `clustered_features`: each is asked for and held about equally often."""
    people = max(1, gallery // PER_IDENTITY)
    return torch.arange(queries) % people, torch.arange(gallery) % people


# ---------------------------------------------------------------------------------------------------- in the child


def measure_case(name: str, data: Clustered, top: int | None, device: torch.device, keep: Path) -> None:
    """Say seconds and peak bytes of one call of a contender; write the values of its first queries to ``keep``."""
    query, gallery = data.query.to(device), data.gallery.to(device)
    warm_up(name, query, gallery, top)
    say(ready=True)
    result, seconds, peak = timed(name, query, gallery, top, device)
    if result is not None:
        values, indices = result if isinstance(result, tuple) else (result, None)
        first = values[:COMPARED].cpu().numpy()
        chosen: dict[str, Any] = {} if indices is None else {"indices": indices[:COMPARED].cpu().numpy()}
        np.savez(keep, values=first, **chosen)
    say(seconds=seconds, peak_bytes=peak)


def warm_up(name: str, query: Tensor, gallery: Tensor, top: int | None) -> None:
    """Make a small call, so that libraries are loaded and threads are there."""
    peers.run(name, query[:64], gallery[:256], top)


def timed(
    name: str, query: Tensor, gallery: Tensor, top: int | None, device: torch.device
) -> tuple[peers.Result, float, int | None]:
    """Return the contender's answer, its seconds, and its peak bytes beyond the inputs, the answer included."""
    peak = measure.PeakMemory(device) if measure.can_measure_memory(device) else None
    with peak or contextlib.nullcontext():
        measure.synchronize(device)
        start = time.perf_counter()
        result = peers.run(name, query, gallery, top)
        measure.synchronize(device)
        seconds = time.perf_counter() - start
    return result, seconds, peak.bytes if peak else None


def measure_latency(name: str, setting: Setting, device: torch.device, keep: Path) -> None:
    """Say the seconds of ``topk`` of each query on its own, once the gallery is fitted, and of the fit."""
    data = clustered_features(setting.queries, setting.gallery, setting.dim, noise=setting.noise)
    query, gallery = data.query.to(device), data.gallery.to(device)
    say(ready=True)
    start = time.perf_counter()
    if name == "search":
        unit = torch.nn.functional.normalize(gallery)

        def answer(q: Tensor) -> Any:
            return (torch.nn.functional.normalize(q) @ unit.T).topk(TOP)
    elif name in ANEW:

        def answer(q: Tensor) -> Any:
            return peers.run(name.removesuffix("_anew"), q, gallery, TOP)
    else:
        torch.manual_seed(SEED)
        fitted = {
            "aim": lambda: AIM(**peers.AIM_PARAMETERS),
            "query_expansion": lambda: QueryExpansion(n=5, alpha=3.0),
            "sim": SIM,
            "graph_transfer": lambda: GraphTransfer(H2FT(setting.dim).to(device).eval()),
            "k_reciprocal": lambda: KReciprocal(**peers.K_RECIPROCAL_PARAMETERS),
            "gnn": lambda: GNN(**peers.GNN_PARAMETERS),
            "ecn": lambda: ECN(**peers.ECN_PARAMETERS),
        }[name]()
        fitted.fit(gallery)

        def answer(q: Tensor) -> Any:
            return fitted.topk(q, TOP)

    measure.synchronize(device)
    fit = time.perf_counter() - start
    seconds, values = [], []
    for row in query.split(1):
        start = time.perf_counter()
        found = answer(row)
        measure.synchronize(device)
        seconds.append(time.perf_counter() - start)
        values.append(found[0].cpu().numpy())
    np.savez(keep, values=np.concatenate(values))
    say(median_s=statistics.median(seconds[10:]), fit_s=fit)


# ---------------------------------------------------------------------------------------------------- results


def difference(ours: Path, other: Path) -> float | None:
    """Return the largest difference of the values of two contenders for the same pairs; None if one has none."""
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
    """Return the mAP in percent of the first queries, whose distances these are."""
    query_ids, gallery_ids = clustered_identities(setting.queries, setting.gallery)
    return 100 * rank_metrics(distance, query_ids[: len(distance)], gallery_ids).mAP


def kept_distance(path: Path) -> Tensor | None:
    """Return the distances that `measure_case` kept, if they are to the whole gallery."""
    if not path.exists():
        return None
    with np.load(path) as arrays:
        return None if "indices" in arrays else torch.from_numpy(arrays["values"])


def setting_of(name: str, arguments: argparse.Namespace) -> Setting:
    """Return the setting of that name, or that of --size."""
    return (
        Setting(arguments.size[0], arguments.size[1], arguments.size[2], 1.0, ALL) if name == "size" else SETTINGS[name]
    )


def measure_setting(name: str, arguments: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    """Measure all contenders of a setting, in turns, each call in its own process; return the table's rows."""
    setting = setting_of(name, arguments)
    data = clustered_features(setting.queries, setting.gallery, setting.dim, noise=setting.noise)
    before = mean_ap(1 - normalize_rows(data.query[:COMPARED]) @ normalize_rows(data.gallery).T, setting)
    del data
    kept = {case: folder / f"{name}_{case}.npz" for case in setting.contenders}
    wanted = [case for case in setting.contenders if arguments.contenders is None or case in arguments.contenders]
    stopped = {case: None if peers.installed(case) else "not installed" for case in wanted}
    runs: dict[str, list[dict[str, Any]]] = {case: [] for case in wanted}
    turns = [case for _ in range(arguments.repeats) for case in wanted]  # so that a slow spell hits all of them
    for case in tqdm(turns, desc=name, leave=False):
        if stopped[case] or sum(line["seconds"] for line in runs[case]) > ENOUGH:
            continue
        lines, stopped[case] = watch(["--case", name, case, str(kept[case])], arguments)
        runs[case] += lines
    answer = "distance" if setting.top is None else f"nearest {TOP}"
    size = f"{name}, {setting.queries} x {setting.gallery} x {setting.dim}, noise {setting.noise}, {answer}"
    rows = measure.figures(WHAT, size, "no re-ranking", mAP=before)
    for case in wanted:
        found: dict[str, object] = {"stopped": stopped[case]}
        if runs[case]:
            found["peak_bytes"] = runs[case][0]["peak_bytes"]
        if case in peers.SAME:
            found["difference_to_ours"] = difference(kept[peers.SAME[case]], kept[case])
        distance = kept_distance(kept[case])
        found["mAP"] = None if distance is None else mean_ap(distance, setting)
        rows += measure.figures(WHAT, size, peers.LABELS[case], [line["seconds"] for line in runs[case]], **found)
    measure.show(rows, {peers.LABELS[case]: peers.LABELS[floor] for case, floor in peers.FLOORS.items()})
    return rows


def measure_latencies(name: str, arguments: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    """Measure each re-ranker of a setting in its own process; return the table's rows."""
    rows: list[dict[str, object]] = []
    setting = LATENCIES[name]
    wanted = [case for case in setting.contenders if arguments.contenders is None or case in arguments.contenders]
    kept = {case: folder / f"{name}_{case}.npz" for case in wanted}
    size = f"gallery {setting.gallery} x {setting.dim}, nearest {TOP}"
    for case in tqdm(wanted, desc=name, leave=False):
        lines, stopped = watch(["--case", name, case, str(kept[case])], arguments)
        found: dict[str, Any] = {**(lines[0] if lines else {}), "stopped": stopped}
        if case in ANEW and (ours := kept.get(case.removesuffix("_anew"))) is not None:
            found["difference_to_ours"] = difference(ours, kept[case])
        rows += measure.figures("one query at a time", size, FITTED[case], **found)
    measure.show(rows, dict.fromkeys(FITTED.values(), FITTED["search"]))
    return rows


def watch(options: Sequence[str], arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], str | None]:
    """Run a case in a process of its own."""
    own = ["--threads", str(arguments.threads), "--device", arguments.device]
    own += ["--size", *map(str, arguments.size)] if arguments.size else []
    limits = {"limit": arguments.limit, "memory": arguments.memory}
    return watched(MODULE, [*options, *own], threads=arguments.threads, **limits)


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = measure.options_parser(__doc__, repeats=3, threads=2)
    names = [*SETTINGS, *LATENCIES]
    parser.add_argument("--settings", nargs="+", choices=names, default=names)
    parser.add_argument(
        "--size", nargs=3, type=int, metavar=("QUERIES", "GALLERY", "DIM"), help="in place of the settings"
    )
    parser.add_argument("--contenders", nargs="+", choices=sorted({*ALL, *FITTED}), help="only these")
    parser.add_argument("--limit", type=float, default=900, help="seconds after which a call is stopped")
    parser.add_argument("--memory", type=float, default=16, help="GiB of memory above which a process is stopped")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    arguments = measure.parse(parser, given)
    if arguments.size:
        arguments.settings = ["size"]
    device = torch.device(arguments.device)
    if arguments.case:
        name, case, keep = arguments.case
        if name in LATENCIES:
            guarded(measure_latency, case, LATENCIES[name], device, Path(keep))
        else:
            setting = setting_of(name, arguments)
            data = clustered_features(setting.queries, setting.gallery, setting.dim, noise=setting.noise)
            guarded(measure_case, case, data, setting.top, device, Path(keep))
        return
    about = measure.announce(arguments, device, ["numpy", *peers.FILES])
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.settings:
            measured = measure_latencies if name in LATENCIES else measure_setting
            rows += measured(name, arguments, Path(folder))
    measure.save(arguments, MODULE, rows, {"seed": SEED, **about})


if __name__ == "__main__":
    main()
