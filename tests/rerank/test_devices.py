"""Neighbors and re-ranking on a device without float64: the same rankings, ties included."""

import pytest
import torch

from devices import NoFloat64
from vireid.neighbors import ApproximateIndex, NeighborGraph, _exact, recall, topk
from vireid.nn import GFT, H2FT
from vireid.protocols._protocol import compare
from vireid.rerank import (
    AIM,
    ECN,
    GNN,
    SIM,
    GraphTransfer,
    KReciprocal,
    QueryExpansion,
    aim,
    cmkr,
    gnn,
    graph_transfer,
    k_reciprocal,
    mser,
    query_expansion,
)
from vireid.rerank import sim as similarity


def features(dtype):
    """Return 9 queries and 70 gallery rows with duplicates, scaled copies, zero rows and rows of small integers."""
    generator = torch.Generator().manual_seed(0)
    q, g = (torch.randn(n, 24, generator=generator) for n in (9, 70))
    g[40:50], g[50:60] = g[:10], 2 * g[:10]
    q[4:], g[60:] = q[4:].round(), g[60:].round()
    q[7] = g[20]
    q[2] = g[[5, 33]] = 0
    return q.to(dtype), g.to(dtype)


def lists(graph):
    return graph.values, graph.indices


def fitted(reranker):
    return lambda q, g: reranker.fit(g[:50]).extend(g[50:]).topk(q, 12)


def approximate(q, g):
    pytest.importorskip("faiss")
    return [x for metric in ("cosine", "euclidean") for x in ApproximateIndex(g, "Flat", metric=metric).topk(q, 5)]


RANKINGS = {
    **{f"topk {m}": lambda q, g, m=m: topk(q, g, 20, metric=m) for m in ("cosine", "euclidean", "dot")},
    "topk of all": lambda q, g: topk(q, g, 70, metric="euclidean"),
    "build": lambda q, g: lists(NeighborGraph.build(g, 6)),
    "extend": lambda q, g: lists(NeighborGraph.build(g[:40], 6).extend(g[40:])),
    "approximate": approximate,
    "recall": lambda q, g: (torch.tensor(recall(torch.arange(9)[None], torch.arange(5, 9)[None])), torch.arange(1)),
    "compare": lambda q, g: (compare(q, g),),
    "aim": lambda q, g: (aim(q, g, k1=5, k2=2),),
    "aim of all": lambda q, g: (aim(q, g, k1=None, k2=2, variant="released"),),
    "aim with queries": lambda q, g: (aim(q, g, k1=5, k2=2, use_query_relations=True),),
    "gnn": lambda q, g: gnn(q, g, k1=6, k2=3, top=10),
    "k_reciprocal": lambda q, g: k_reciprocal(q, g, k1=6, k2=3, top=10),
    "cmkr": lambda q, g: cmkr(q, g, k1=6, k2=3, top=10),
    "cmkr constrained": lambda q, g: cmkr(q, g, k1=6, k2=3, neighbors="constrained", top=10),
    "mser": lambda q, g: mser(q, g, k1=6, k2=3, top=10),
    "sim": lambda q, g: (similarity(q, g, k1=6, k2=6),),
    "query_expansion": lambda q, g: (query_expansion(q, g, n=4),),
    "AIM": fitted(AIM(k1=5, k2=2, variant="released")),
    "SIM": fitted(SIM()),
    "ECN": fitted(ECN()),
    "ECN of cosines": fitted(ECN(metric="cosine")),
    "GNN": fitted(GNN(k1=6, k2=3)),
    "KReciprocal": fitted(KReciprocal(k1=6, k2=3)),
    "QueryExpansion": fitted(QueryExpansion(alpha=3.0)),
    "H2FT": lambda q, g: (H2FT(24).distance(q, g),),
    "GFT": lambda q, g: (graph_transfer(q, g, GFT(24)),),
    "GraphTransfer": lambda q, g: (GraphTransfer(H2FT(24)).fit(g[:50]).extend(g[50:]).distance(q),),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", RANKINGS)
def test_rankings_are_the_same_without_float64(name, dtype, monkeypatch):
    monkeypatch.setattr(_exact, "PAD", 1)  # leaves rows to settle
    q, g = features(dtype)
    wanted = RANKINGS[name](q, g)
    with NoFloat64():
        found = RANKINGS[name](q, g)
    assert len(found) == len(wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == theirs.dtype
        if mine.dtype == torch.int64:
            assert torch.equal(mine, theirs)
        else:
            torch.testing.assert_close(mine, theirs, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
@pytest.mark.parametrize("scale", [1e-40, 1e-22, 1.0, 1e15])
def test_values_are_the_same_to_the_bit_at_any_scale(scale, metric):
    q, g = (x * scale for x in features(torch.float32))
    wanted = topk(q, g, 70, metric=metric)
    with NoFloat64():
        found = topk(q, g, 70, metric=metric)
    assert torch.equal(found[1], wanted[1])
    assert torch.equal(found[0], wanted[0])
