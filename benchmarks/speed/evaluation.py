"""Time and memory of CMC and mAP of one distance matrix: ours and other tools, on the same arrays.

Three sizes: SYSU-MM01 all-search single-shot (3,803 x 301) and multi-shot (3,803 x 3,010), and Market-1501
(3,368 x 15,913). The features are random around a center for each identity; the distance is the cosine's. Contenders:

- ``vireid``: `rank_metrics`; under each peer's own rule as well, which is what the peer is compared with.
- ``published loops``: query by query, list by list, as the AGW family of VI-ReID code evaluates; written anew here.
- ``fastreid Cython``, ``fastreid Python``, ``torchreid Cython``, ``torchreid Python``: a query skips its own identity
  in its own camera, which is not SYSU-MM01's rule; CMC over images.
- ``torchmetrics``: RetrievalMAP; no camera rule, no CMC.
- ``pytorch-metric-learning``, ``open-metric-learning``: no camera rule; they take features and compute the distance.

Those that cannot be imported are listed as not installed. In an environment of its own, beside torch and vireid:

    pip install cython setuptools torchmetrics pytorch-metric-learning faiss-cpu scikit-learn
    pip install --no-deps fastreid torchreid open-metric-learning
    pip install omegaconf pandas matplotlib tqdm validators
    cd "$(python -c 'import importlib.util as u; print(u.find_spec("fastreid").submodule_search_locations[0])')"
    cd evaluation/rank_cylib && python setup.py build_ext --inplace

PyPI's torchreid has no source of its Cython part; with the repository's ``rank_cy.pyx`` it is built the same way. Only
the modules that evaluate are imported of fastreid, torchreid and open-metric-learning: their packages import much that
no longer runs on today's Python. The Cython peers use one thread, whatever ``--threads`` says.

    python -m benchmarks.speed.evaluation --sizes sysu-multi market --peers "fastreid Cython" --output evaluation.csv

The loops take minutes at the largest size.
"""

import argparse
import contextlib
import importlib
import importlib.util
import io
import os
import sys
import time
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.speed import measure
from vireid.metrics import rank_metrics

Exclude = Literal["same_camera", "same_id_same_camera"] | None
CMCOver = Literal["images", "identities"]
Score = tuple[float | None, float]
"""rank-1 (None where a tool has none) and mAP."""

MODULE = "benchmarks.speed.evaluation"
CPU = torch.device("cpu")
FLOOR = "np.sort of the values"
Row = dict[str, object]
SLOW = 20.0  # seconds; what takes longer is run once


@dataclass(frozen=True)
class Problem:
    """One distance matrix with its features and labels, and the rule of its data set."""

    query: np.ndarray
    gallery: np.ndarray
    distance: np.ndarray
    query_ids: np.ndarray
    gallery_ids: np.ndarray
    query_cameras: np.ndarray
    gallery_cameras: np.ndarray
    exclude: Exclude
    cmc_over: CMCOver


def sysu(shots: int, identities: int = 96, queries: int = 3803, images: int | None = None) -> Problem:
    """Return a problem of the size of SYSU-MM01: four visible cameras, infrared queries of which half share a place."""
    r = np.random.default_rng(0)
    wanted = images or {1: 301, 10: 3010}[shots]
    ids = np.repeat(np.arange(identities), 4 * shots)
    cameras = np.tile(np.repeat([1, 3, 4, 5], shots), identities)  # camera 2 stands where 3 does
    kept = np.sort(r.permutation(len(ids))[:wanted])
    query_ids, query_cameras = r.integers(identities, size=queries), r.choice([3, 6], size=queries)
    return _problem(r, query_ids, ids[kept], query_cameras, cameras[kept], "same_camera", "identities")


def market(identities: int = 750, queries: int = 3368, images: int = 15913) -> Problem:
    """Return a problem of the size of Market-1501: six cameras, gallery in no order."""
    r = np.random.default_rng(0)
    query_ids, gallery_ids = (r.integers(identities, size=n) for n in (queries, images))
    query_cameras, gallery_cameras = (r.integers(6, size=n) for n in (queries, images))
    return _problem(r, query_ids, gallery_ids, query_cameras, gallery_cameras, "same_id_same_camera", "images")


def _problem(
    r: np.random.Generator,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    query_cameras: np.ndarray,
    gallery_cameras: np.ndarray,
    exclude: Exclude,
    cmc_over: CMCOver,
) -> Problem:
    centers = r.standard_normal((max(query_ids.max(), gallery_ids.max()) + 1, 128))
    x, y = (
        (centers[ids] + 1.5 * r.standard_normal((len(ids), 128))).astype(np.float32) for ids in (query_ids, gallery_ids)
    )
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    return Problem(x, y, 1 - x @ y.T, query_ids, gallery_ids, query_cameras, gallery_cameras, exclude, cmc_over)


SIZES: dict[str, Callable[[], Problem]] = {
    "tiny": partial(sysu, 10, 8, 40, 200),  # to try the script
    "sysu-single": partial(sysu, 1),
    "sysu-multi": partial(sysu, 10),
    "market": market,
}


def ours(p: Problem, exclude: Exclude, cmc_over: CMCOver) -> Score:
    """Evaluate by `rank_metrics` under a rule."""
    labels = (p.query_ids, p.gallery_ids, p.query_cameras, p.gallery_cameras)
    m = rank_metrics(p.distance, *labels, exclude=exclude, cmc_over=cmc_over)
    return m.rank(1), m.mAP


def published_loops(p: Problem) -> Score:
    """Evaluate as the AGW family does, under the data set's own rule."""
    order = np.argsort(p.distance, axis=1)
    ranked = p.gallery_ids[order]
    curves, precisions = [], []
    for q in range(len(order)):
        skipped = p.gallery_cameras[order[q]] == p.query_cameras[q]
        if p.exclude == "same_id_same_camera":
            skipped &= ranked[q] == p.query_ids[q]
        left = ranked[q][~skipped]
        hits = (left == p.query_ids[q]).astype(np.int32)
        if not hits.any():
            continue
        listed = left
        if p.cmc_over == "identities":
            listed = left[np.sort(np.unique(left, return_index=True)[1])]
        curve = (listed == p.query_ids[q]).cumsum()
        curve[curve > 1] = 1
        curves.append(curve[:20])
        so_far = [count / (i + 1.0) for i, count in enumerate(hits.cumsum())]
        precisions.append((np.asarray(so_far) * hits).sum() / hits.sum())
    return float(np.mean([curve[0] for curve in curves])), float(np.mean(precisions))


def _alone(name: str) -> Any:
    """Import module ``name`` without what its packages import on their way to it."""
    top, *rest = name.split(".")
    if top not in sys.modules:
        found = importlib.util.find_spec(top)
        if found is None or not found.submodule_search_locations:
            raise ImportError(f"no package {top}")
        path, parent = found.submodule_search_locations[0], top
        for part in ["", *rest[:-1]]:
            if part:
                path, parent = os.path.join(path, part), f"{parent}.{part}"
            package = types.ModuleType(parent)
            package.__path__ = [path]
            sys.modules[parent] = package
    return importlib.import_module(name)


def _reid_package(module: str, cython: bool) -> Callable[[Problem], Score]:
    rank = _alone(module)
    if cython and not rank.IS_CYTHON_AVAI:
        raise ImportError("its Cython part is not built")

    def run(p: Problem) -> Score:
        labels = (p.query_ids, p.gallery_ids, p.query_cameras, p.gallery_cameras)
        cmc, ap, *_ = rank.evaluate_rank(p.distance, *labels, max_rank=20, use_cython=cython)
        return float(cmc[0]), float(np.mean(ap))

    return run


def _torchmetrics() -> Callable[[Problem], Score]:
    from torchmetrics.retrieval import RetrievalMAP

    def run(p: Problem) -> Score:
        metric = RetrievalMAP(empty_target_action="skip")
        target = torch.from_numpy(p.query_ids)[:, None] == torch.from_numpy(p.gallery_ids)
        index = torch.arange(len(target))[:, None].expand_as(target)
        score = (2.5 - torch.from_numpy(p.distance)).flatten()  # it takes a score of 0 or less for no match
        metric.update(score, target.flatten(), index.flatten())
        return None, float(metric.compute())

    return run


def _pytorch_metric_learning() -> Callable[[Problem], Score]:
    accuracy_calculator = importlib.import_module("pytorch_metric_learning.utils.accuracy_calculator")

    def run(p: Problem) -> Score:
        include = ("precision_at_1", "mean_average_precision")
        calculator = accuracy_calculator.AccuracyCalculator(include=include, k=None, device=CPU)
        arrays = (p.query, p.query_ids, p.gallery, p.gallery_ids)
        found = calculator.get_accuracy(*(torch.from_numpy(x) for x in arrays))
        return float(found["precision_at_1"]), float(found["mean_average_precision"])

    return run


def _open_metric_learning() -> Callable[[Problem], Score]:
    knn, metrics = _alone("oml.functional.knn"), _alone("oml.functional.metrics")

    def run(p: Problem) -> Score:
        length = len(p.gallery_ids)
        sides = {"query": (p.query, p.query_ids), "gallery": (p.gallery, p.gallery_ids)}
        given: dict[str, Any] = {"top_n": length, "verbose": False}
        for side, (features, labels) in sides.items():
            given |= {f"embeddings_{side}": torch.from_numpy(features), f"labels_{side}": torch.from_numpy(labels)}
            given |= {f"ids_{side}": None, f"sequence_ids_{side}": None}
        _, retrieved, truth = knn.batched_knn_qg(**given)
        options = {"cmc_top_k": (1,), "precision_top_k": (), "map_top_k": (length,), "verbose": False}
        found = metrics.calc_retrieval_metrics(retrieved, truth, **options)
        return float(found["cmc"][1]), float(found["map"][length])

    return run


@dataclass(frozen=True)
class Peer:
    """A tool: how it is made ready, its rule ("own": the data set's), and its package."""

    make: Callable[[], Callable[[Problem], Score]]
    rule: Literal["own", "same_id_same_camera", "none"]
    package: str | None


PEERS = {
    "published loops": Peer(lambda: published_loops, "own", None),
    **{
        f"{package} {form}": Peer(
            partial(_reid_package, f"{package}.{module}", form == "Cython"), "same_id_same_camera", package
        )
        for package, module in (("fastreid", "evaluation.rank"), ("torchreid", "reid.metrics.rank"))
        for form in ("Cython", "Python")
    },
    "torchmetrics": Peer(_torchmetrics, "none", "torchmetrics"),
    "pytorch-metric-learning": Peer(_pytorch_metric_learning, "none", "pytorch-metric-learning"),
    "open-metric-learning": Peer(_open_metric_learning, "none", "open-metric-learning"),
}


def rule_of(peer: Peer, p: Problem) -> tuple[Exclude, CMCOver]:
    """Return the rule under which ours is compared with ``peer``."""
    if peer.rule == "own":
        return p.exclude, p.cmc_over
    return (None if peer.rule == "none" else peer.rule), "images"


def find_peers(names: list[str]) -> tuple[dict[str, Callable[[Problem], Score]], dict[str, str]]:
    """Return those of ``names`` that can run, and why the others cannot."""
    ready, missing = {}, {}
    for name in names:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ready[name] = PEERS[name].make()
        except Exception as error:  # a peer that breaks on being imported must not stop the rest
            missing[name] = f"{type(error).__name__}: {error}"
    return ready, missing


def timed(function: Callable[[], Any], repeats: int) -> tuple[list[float], Any]:
    """Return the seconds of each call, one call if that is slow, and the last answer."""
    seconds: list[float] = []
    while len(seconds) < repeats and not (seconds and seconds[0] > SLOW):
        with contextlib.redirect_stdout(io.StringIO()):
            start = time.perf_counter()
            answer = function()
            seconds.append(time.perf_counter() - start)
    return seconds, answer


def calls(p: Problem, ready: dict[str, Callable[[Problem], Score]]) -> dict[str, Callable[[], Any]]:
    """Return everything that is measured at one size, by name."""
    rules = {name: rule_of(PEERS[name], p) for name in ready}
    found: dict[str, Callable[[], Any]] = {FLOOR: lambda: np.sort(p.distance, axis=1)}
    for rule in dict.fromkeys([(p.exclude, p.cmc_over), *rules.values()]):
        found[our_name(*rule)] = partial(ours, p, *rule)
    return found | {name: partial(run, p) for name, run in ready.items()}


def our_name(exclude: Exclude, cmc_over: CMCOver) -> str:
    """Return the name of ours under a rule, as a row of the table."""
    return f"vireid ({exclude or 'no'} rule, {cmc_over})"


def measure_size(size: str, arguments: argparse.Namespace, ready: dict[str, Callable[[Problem], Score]]) -> list[Row]:
    """Measure one size; return the rows of each contender."""
    p = SIZES[size]()
    todo = calls(p, ready)
    for name, call in todo.items():  # warm-up of all that is fast
        if name not in ready:
            call()
    rows: list[Row] = []
    scores: dict[str, Score] = {}
    shape = f"{p.distance.shape[0]} x {p.distance.shape[1]}, {size}, {p.exclude}, CMC over {p.cmc_over}"
    for name, call in todo.items():
        seconds, answer = timed(call, arguments.repeats)
        found: dict[str, float | None] = {}
        if not arguments.no_memory and measure.can_measure_memory(CPU):
            found["peak_bytes"] = int(
                measure.run_self(MODULE, [*arguments.given, "--sizes", size, "--peak-memory-of", name])
            )
        if not isinstance(answer, np.ndarray):
            scores[name] = answer
            found |= {"rank1": answer[0], "mAP": answer[1]}
        if name in ready:
            mine = scores[our_name(*rule_of(PEERS[name], p))]
            differences = [abs(a - b) for a, b in zip(answer, mine, strict=True) if a is not None and b is not None]
            found["difference_to_ours"] = max(differences)
        rows += measure.figures("CMC and mAP of a distance matrix", shape, name, seconds, **found)
    own = {name: our_name(*rule_of(PEERS[name], p)) for name in ready}
    measure.show(rows, FLOOR, own)
    return rows


def main(given: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = measure.options_parser(__doc__, repeats=5)
    sizes = [name for name in SIZES if name != "tiny"]
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=sizes, help="default: all but tiny")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), metavar="PEER", help="default: all")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory, a run more of each")
    parser.add_argument("--peak-memory-of", help=argparse.SUPPRESS)
    arguments = measure.parse(parser, given)
    ready, missing = find_peers(arguments.peers)
    if arguments.peak_memory_of:
        p = SIZES[arguments.sizes[0]]()
        warm = SIZES["tiny"]()
        call = calls(p, ready)[arguments.peak_memory_of]
        with contextlib.redirect_stdout(io.StringIO()):
            ours(warm, warm.exclude, warm.cmc_over)  # libraries and threads
            if arguments.peak_memory_of in ready:
                ready[arguments.peak_memory_of](warm)
            with measure.PeakMemory(CPU) as peak:
                call()
        print(peak.bytes)
        return

    packages = [PEERS[name].package or "" for name in ready]
    about = measure.announce(arguments, CPU, ["numpy", *(package for package in packages if package)])
    for name, reason in missing.items():
        print(f"{name}: not installed ({reason})")
    rows = [row for size in arguments.sizes for row in measure_size(size, arguments, ready)]
    measure.save(arguments, MODULE, rows, about)


if __name__ == "__main__":
    main()
