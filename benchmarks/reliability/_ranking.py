"""Makers of valid arguments: neighbors, re-rankers, metrics and protocols."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.reliability.calls import call, method
from benchmarks.reliability.draw import Draw
from vireid import metrics, neighbors, protocols, rerank
from vireid.nn import GFT, H2FT

DIM = 6
Made = tuple[Any, dict[str, Any]]


def rows(d: Draw, low: int = 0, high: int = 8) -> Any:
    """Draw features."""
    return d.array(d.floats(d.count(low, high), DIM))


def pair(d: Draw) -> dict[str, Any]:
    """Draw queries and a gallery."""
    return {"query": rows(d), "gallery": rows(d, 1, 30)}


# -- neighbors -----------------------------------------------------------------------------------------------------


@call("neighbors.topk", weight=2, any_size=True)
def topk(d: Draw, world: Path) -> Made:
    """Draw a search."""
    more = {"k": d.count(1, 35), "metric": d.option("cosine", "euclidean", "dot"), "backend": d.option("auto", "torch")}
    return neighbors.topk, pair(d) | more | ({"block": d.count(1, 9)} if d.count(0, 1) else {})


@call("neighbors.recall")
def recall(d: Draw, world: Path) -> Made:
    """Draw two lists of neighbors."""
    n, k = d.count(1, 4), d.count(1, 5)
    lists = [d.array(d.laid(torch.from_numpy(np.stack([d.rng.permutation(9)[:k] for _ in range(n)])))) for _ in "ab"]
    return neighbors.recall, {"approximate": lists[0], "exact": lists[1]}


def graph_settings(d: Draw) -> dict[str, Any]:
    """Draw the settings of a graph."""
    return {"gallery": rows(d, 1, 20), "k": d.count(1, 25)}


def graph(d: Draw, world: Path) -> Made:
    """Draw a graph."""
    return neighbors.NeighborGraph.build, graph_settings(d)


def weighted(d: Draw, graph: Any, world: Path) -> dict[str, Any]:
    """Draw rows to sum."""
    count = len(graph.indices)
    return {"x": d.array(d.floats(count, 3))}


call("neighbors.NeighborGraph.build", any_size=True)(graph)


@call("neighbors.NeighborGraph", weight=0.5, comparable=False)
def graph_of_arrays(d: Draw, world: Path) -> Made:
    """Draw the parts of a graph."""
    x = torch.nn.functional.normalize(d.floats(6, DIM, scale=1.0).float(), dim=1)
    values, indices = neighbors.topk(x, x, 3)
    return neighbors.NeighborGraph, {"features": x, "indices": indices, "values": values}


for name, arguments, weight in (
    ("csr", lambda d, g, w: {"k": d.option(None, d.count(1, g.indices.shape[1]))}, 0.5),
    ("extend", lambda d, g, w: {"gallery": d.array(d.floats(d.count(0, 4), DIM))}, 1),
    ("to", lambda d, g, w: {"device": "cpu"}, 0.2),
    ("to_arrays", lambda d, g, w: {}, 0.1),
    ("weighted_sum", weighted, 1),
    ("save", lambda d, g, w: {"path": w / "out" / "graph.npz"}, 0.3),
):
    method("neighbors", "NeighborGraph", name, graph, arguments, weight=weight)


@call("neighbors.NeighborGraph.load", weight=0.3)
def graph_load(d: Draw, world: Path) -> Made:
    """Name a file."""
    return neighbors.NeighborGraph.load, {"path": world / "graph.npz"}


@call("neighbors.NeighborGraph.from_arrays", weight=0.3)
def graph_arrays(d: Draw, world: Path) -> Made:
    """Draw a graph's arrays."""
    function, given = graph(d, world)
    return neighbors.NeighborGraph.from_arrays, {"arrays": function(**given).to_arrays()}


def index_settings(d: Draw, world: Path) -> Made:
    """Draw an index of faiss."""
    return neighbors.ApproximateIndex, {"gallery": rows(d, 4, 20), "factory": d.option("Flat", "HNSW8"),
                                        "metric": d.option("cosine", "euclidean", "dot")}  # fmt: skip


def index_query(d: Draw, made: Any, world: Path) -> dict[str, Any]:
    """Draw queries of an index."""
    return {"query": rows(d), "k": d.count(1, 4), "candidates": d.option(None, 8)}


call("neighbors.ApproximateIndex", weight=0.5, comparable=False)(index_settings)
method("neighbors", "ApproximateIndex", "topk", index_settings, index_query, weight=0.5, comparable=False)

# -- re-ranking ----------------------------------------------------------------------------------------------------

KS = {"k1": (1, 9), "k2": (1, 5)}


def counts(d: Draw) -> dict[str, Any]:
    """Draw k1 and k2."""
    return {name: d.count(*limits) for name, limits in KS.items()}


def settings(name: str, d: Draw) -> dict[str, Any]:
    """Draw the settings of a re-ranking."""
    if name in ("aim", "AIM"):
        given = counts(d) | {"variant": d.option("paper", "released")}
        return given | ({"use_query_relations": d.option(True, False)} if name == "aim" else {})
    if name in ("query_expansion", "QueryExpansion"):
        return {"n": d.count(1, 5), "alpha": d.share(0, 3)}
    if name in ("ecn", "ECN"):
        given = {"t": d.count(1, 4), "q": d.count(1, 5), "k": d.count(1, 9), "metric": d.option("rank", "cosine")}
        more = {"queries": d.option("all", "alone"), "top": d.option(None, 5)}
        return given | (more if name == "ecn" else {})
    if name in ("gnn", "GNN"):
        given = counts(d) | {"layers": d.count(1, 3), "alpha": d.share(0.5, 3)}
        more = {"queries": d.option("all", "alone"), "top": d.option(None, 5)}
        return given | (more if name == "gnn" else {})
    if name == "k_reciprocal":
        given = {"queries": d.option("all", "alone"), "top": d.option(None, 5)}
        return counts(d) | {"lambda_value": d.share()} | given
    if name == "cmkr":
        how = d.option("joint", "constrained", "extended", "divided")
        given = counts(d) | {"neighbors": how, "lambda_value": d.share(), "top": d.option(None, 5)}
        return given | ({"k3": d.count(0, given["k2"])} if how == "extended" else {})
    if name == "mser":
        return counts(d) | {"lambda_value": d.share(), "top": d.option(None, 5)}
    if name in ("sim", "KReciprocal", "SIM"):
        return counts(d) | {"lambda_value": d.share()}
    kind = H2FT if d.count(0, 1) else GFT
    double = d.exact or d.dtype == torch.float64
    return {"module": kind(DIM, k=d.count(1, 5), value=nn.Identity()).to(torch.float64 if double else torch.float32)}


for name in ("aim", "cmkr", "ecn", "gnn", "graph_transfer", "k_reciprocal", "mser", "query_expansion", "sim"):

    def function(d: Draw, world: Path, name: str = name) -> Made:
        """Draw a re-ranking."""
        return getattr(rerank, name), pair(d) | settings(name, d)

    call(f"rerank.{name}", weight=1.5, any_size=True)(function)

for kind in ("AIM", "ECN", "GNN", "KReciprocal", "SIM", "QueryExpansion", "GraphTransfer"):

    def fresh(d: Draw, world: Path, kind: str = kind) -> Made:
        """Draw a re-ranker's settings."""
        return getattr(rerank, kind), settings(kind, d)

    def fitted(d: Draw, world: Path, kind: str = kind) -> Made:
        """Draw a fitted re-ranker."""
        made = getattr(rerank, kind)(**settings(kind, d))
        return made.fit, {"gallery": d.array(d.floats(d.count(1, 20), DIM))}

    def load(d: Draw, world: Path, kind: str = kind) -> Made:
        """Name a re-ranker's file."""
        more = {"module": H2FT(DIM, k=3, value=nn.Identity())} if kind == "GraphTransfer" else {}
        return getattr(rerank, kind).load, {"path": world / f"{kind}.npz", **more}

    call(f"rerank.{kind}", weight=0.5)(fresh)
    method("rerank", kind, "__call__", fresh, lambda d, m, w: pair(d), any_size=True)
    call(f"rerank.{kind}.fit", weight=0.5)(fitted)
    method("rerank", kind, "distance", fitted, lambda d, m, w: {"query": rows(d)}, any_size=True)
    method("rerank", kind, "topk", fitted, lambda d, m, w: {"query": rows(d), "n": d.count(1, 25)})
    method("rerank", kind, "extend", fitted, lambda d, m, w: {"gallery": rows(d)}, weight=0.5)
    method("rerank", kind, "save", fitted, lambda d, m, w: {"path": w / "out" / "reranker.npz"}, weight=0.2)
    call(f"rerank.{kind}.load", weight=0.2, comparable=False)(load)


def after(d: Draw, world: Path) -> Made:
    """Draw a re-ranking after a transfer."""
    double = d.exact or d.dtype == torch.float64
    module = H2FT(DIM, k=d.count(1, 5), value=nn.Identity()).to(torch.float64 if double else torch.float32)
    return rerank.AfterTransfer, {"module": module, "rerank": rerank.AIM(k1=3, k2=2)}


call("rerank.AfterTransfer", weight=0.5)(after)
method("rerank", "AfterTransfer", "__call__", after, lambda d, m, w: pair(d))

# -- metrics -------------------------------------------------------------------------------------------------------


def annotations(d: Draw, n: int, name: str) -> dict[str, Any]:
    """Draw ids and cameras."""
    return {f"{name}_ids": d.array(d.integers(3, n)), f"{name}_cameras": d.array(d.integers(3, n))}


def metric_settings(d: Draw) -> dict[str, Any]:
    """Draw the settings of the metrics."""
    return {"exclude": d.option(None, "same_camera", "same_id_same_camera"),
            "cmc_over": d.option("images", "identities")}  # fmt: skip


def gallery_of(d: Draw, n: int) -> dict[str, Any]:
    """Draw a gallery's annotations and the options; the cameras are looked at only where some are left out."""
    given = {**annotations(d, n, "gallery"), **metric_settings(d)}
    given["gallery_ids"][:3] = d.array(torch.arange(3))
    if given["exclude"] is None:
        del given["gallery_cameras"]
    return given


def query_of(d: Draw, n: int, exclude: str | None) -> dict[str, Any]:
    """Draw the annotations of queries; none is of the first gallery images' cameras."""
    given = annotations(d, n, "query")
    given["query_cameras"] = given["query_cameras"] + 10
    if exclude is None:
        del given["query_cameras"]
    return given


@call("metrics.rank_metrics", weight=2)
def rank_metrics(d: Draw, world: Path) -> Made:
    """Draw distances and annotations."""
    n, m = d.count(1, 6), d.count(4, 14)
    gallery = gallery_of(d, m)
    query = query_of(d, n, gallery["exclude"])
    return metrics.rank_metrics, {"distance": d.array(d.floats(n, m, kind="uniform")), **query, **gallery}


def ranking_metric(d: Draw, world: Path) -> Made:
    """Draw the settings of a metric."""
    return metrics.RankingMetric, gallery_of(d, 12)


def metric_block(d: Draw, made: Any, world: Path) -> dict[str, Any]:
    """Draw a block of distances."""
    n = d.count(1, 5)
    cameras = made._gallery.cameras  # given where some images are left out
    return {"distance": d.array(d.floats(n, 12, kind="uniform")), **query_of(d, n, None if cameras is None else "")}


def updated(d: Draw, world: Path) -> Made:
    """Draw a metric with a block."""

    def make() -> Any:
        function, given = ranking_metric(d, world)
        made = function(**given)
        made.update(**metric_block(d, made, world))
        return made

    return make, {}


call("metrics.RankingMetric", weight=0.5)(ranking_metric)
for name in ("update", "forward", "__call__"):
    method("metrics", "RankingMetric", name, ranking_metric, metric_block, weight=0.7)
for name in ("compute", "reset", "as_torchmetrics"):
    method("metrics", "RankingMetric", name, updated, lambda d, m, w: {}, weight=0.15)
method("metrics", "RankingMetric", "to", updated, lambda d, m, w: {"device": "cpu"}, weight=0.15)


def retrieval_metric(d: Draw, world: Path) -> Made:
    """Draw the settings of a metric of features."""
    return metrics.RetrievalMetric, {"direction": d.option(*protocols.DIRECTIONS), **metric_settings(d)}


def retrieval_batch(d: Draw, made: Any, world: Path) -> dict[str, Any]:
    """Draw features of both modalities."""
    n = d.count(1, 8)
    given = {"features": d.array(d.floats(n, DIM)), "labels": d.array(d.integers(3, n))}
    return given | {"modality": d.array(d.modality(n)), "cameras": d.array(d.integers(4, n))}


def retrieved(d: Draw, world: Path) -> Made:
    """Draw a metric with features, each identity in both modalities."""

    def make() -> Any:
        made = metrics.RetrievalMetric(d.option(*protocols.DIRECTIONS), cmc_over=d.option("images", "identities"))
        modality = d.modality(12)
        made.update(d.array(d.floats(12, DIM)), d.array(d.labels(modality, 3)), d.array(modality))
        return made

    return make, {}


call("metrics.RetrievalMetric", weight=0.5)(retrieval_metric)
method("metrics", "RetrievalMetric", "update", retrieval_metric, retrieval_batch, weight=0.7)
method("metrics", "RetrievalMetric", "compute", retrieved, lambda d, m, w: {}, weight=0.5)
method("metrics", "RetrievalMetric", "to", retrieved, lambda d, m, w: {"device": "cpu"}, weight=0.1)


@call("metrics.feature_margin")
def margin(d: Draw, world: Path) -> Made:
    """Draw features of some identities."""
    n = d.count(4, 10)
    return metrics.feature_margin, {"x": d.array(d.floats(n, DIM)), "labels": d.array(d.laid(torch.arange(n) % 2))}


@call("metrics.affinity_quality", "metrics.affinity_error_rate")
def affinity(d: Draw, world: Path, name: str) -> Made:
    """Draw an affinity."""
    n = d.count(4, 10)
    x, y = d.array(d.floats(n, n, kind="uniform")), d.array(d.laid(torch.arange(n) % 2))
    if name == "affinity_quality":
        return metrics.affinity_quality, {"affinity": x, "labels": y, "gallery_labels": d.option(None, y)}
    return metrics.affinity_error_rate, {"affinity": x, "query_labels": y, "gallery_labels": d.option(None, y),
                                         "k": d.count(1, 5)}  # fmt: skip


# -- protocols -----------------------------------------------------------------------------------------------------

PROTOCOLS: dict[str, Any] = {
    "SYSUMM01": lambda d: {"mode": d.option("all", "indoor"), "shots": d.option(1, 10), "sampling": "agw",
                           "trials": d.count(1, 2)},
    "RegDB": lambda d: {"direction": d.option(*protocols.DIRECTIONS)},
    "LLCM": lambda d: {"direction": d.option(*protocols.DIRECTIONS), "trials": d.count(1, 3)},
}  # fmt: skip


def test_set(d: Draw) -> dict[str, Any]:
    """Draw annotations that suit every data set."""
    table = np.array([(i, c in (3, 6), c, n) for i in range(3) for c in range(1, 7) for n in range(1, 11)])
    columns = [d.array(d.laid(torch.from_numpy(x))) for x in d.rng.permutation(table).T]
    return dict(zip(("ids", "modality", "cameras", "image_numbers"), columns, strict=True))


def evaluation(d: Draw, protocol: Any, world: Path) -> dict[str, Any]:
    """Draw features to evaluate."""
    about = test_set(d)
    ways: tuple[Any, ...] = (None, rerank.AIM(k1=3, k2=2), rerank.SIM(k1=3, k2=2))
    return {"features": d.array(d.floats(len(about["ids"]), DIM)), **about, "rerank": d.option(*ways),
            "features_name": "backbone"}  # fmt: skip


def query_set(d: Draw, protocol: Any, world: Path) -> dict[str, Any]:
    """Draw what tells queries apart."""
    return {name: x for name, x in test_set(d).items() if name in ("modality", "cameras")}


for name in PROTOCOLS:

    def protocol(d: Draw, world: Path, name: str = name) -> Made:
        """Draw a protocol."""
        return getattr(protocols, name), PROTOCOLS[name](d)

    call(f"protocols.{name}", weight=0.5)(protocol)
    method("protocols", name, "evaluate", protocol, evaluation, weight=0.7)
    method("protocols", name, "gallery", protocol, lambda d, m, w: {"trial": 0, **test_set(d)}, weight=0.5)
    method("protocols", name, "query", protocol, query_set, weight=0.5)


def results(d: Draw, world: Path) -> Made:
    """Draw the results of some queries."""
    n = d.count(2, 6)
    first = 1 + d.rng.integers(0, 9, (2, n))
    return protocols.QueryResults, {"first_match": first, "average_precision": d.rng.random((2, n)),
                                    "inverse_negative_penalty": d.rng.random((2, n))}  # fmt: skip


def row(d: Draw, world: Path) -> Made:
    """Draw a row of a report."""
    function, given = results(d, world)
    trials = tuple({m: 100 * d.share() for m in ("rank1", "rank5", "rank10", "rank20", "mAP", "mINP")} for _ in "ab")
    names = {"direction": "infrared_to_visible", "features": "backbone", "rerank": "none", "uses": "query"}
    return protocols.ReportRow, {**names, "trials": trials, "cmcs": ((0.5, 1.0),) * 2, "queries": (function(**given),)}


def report(d: Draw, world: Path) -> Made:
    """Draw a report."""
    function, given = row(d, world)
    return protocols.Report, {"dataset": "SYSU-MM01", "rows": (function(**given),)}


call("protocols.QueryResults", weight=0.2, holder=True)(results)
method("protocols", "QueryResults", "to_dict", results, lambda d, m, w: {}, weight=0.1)
call("protocols.ReportRow", weight=0.2, holder=True)(row)
call("protocols.Report", weight=0.2, holder=True)(report)
latex = lambda d, m, w: {"metrics": d.option(("rank1", "mAP"), ("mINP",)), "std": d.option(True, False)}
for kind, make in (("ReportRow", row), ("Report", report)):
    method("protocols", kind, "to_dict", make, lambda d, m, w: {"per_query": d.option(True, False)}, weight=0.2)
    method("protocols", kind, "to_latex", make, latex, weight=0.4)
method("protocols", "ReportRow", "interval", row, lambda d, m, w: {
    "metric": d.option("mAP", "rank1"), "level": d.share(0.5, 0.99), "resamples": d.count(1, 50), "seed": d.count(0, 9),
}, weight=0.5)  # fmt: skip
method("protocols", "Report", "curves", report, lambda d, m, w: {}, weight=0.1)
method("protocols", "Report", "save", report, lambda d, m, w: {"path": w / "out" / d.option("r.json", "r.csv")},
       weight=0.3)  # fmt: skip


@call("protocols.Report.load", weight=0.3)
def report_load(d: Draw, world: Path) -> Made:
    """Name a report's file."""
    return protocols.Report.load, {"path": world / "report.json"}


@call("protocols.Report.from_metrics", weight=0.3)
def from_metrics(d: Draw, world: Path) -> Made:
    """Draw the metrics of trials."""
    n, m = d.count(1, 4), d.count(4, 9)
    found = metrics.rank_metrics(d.floats(n, m).float(), torch.arange(n) % 3, torch.arange(m) % 3)
    return protocols.Report.from_metrics, {"metrics": [found] * d.count(1, 3)}


@call("protocols.Report.merge", weight=0.3)
def merge(d: Draw, world: Path) -> Made:
    """Draw reports to merge."""
    function, given = report(d, world)
    return protocols.Report.merge, {"reports": [function(**given)]}


def metrics_result(d: Draw, world: Path) -> Made:
    """Draw the fields of a result."""
    f = d.array(d.floats(3, kind="uniform"))
    return metrics.RankMetrics, {"cmc": f, "mAP": 0.5, "mINP": 0.4, "queries": 3, "valid_queries": 3,
                                 "average_precision": f, "inverse_negative_penalty": f, "first_match": f}  # fmt: skip


method("metrics", "RankMetrics", "rank", metrics_result, lambda d, m, w: {"r": d.count(1, 3)}, weight=0.5)


@call("protocols.dataset_name", weight=0.3)
def dataset_name(d: Draw, world: Path) -> Made:
    """Draw a name."""
    return protocols.dataset_name, {"name": d.option("sysu", "regdb", "llcm", "synthetic")}
