"""Arguments of neighbors and re-rankers that no caller means, in one table."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from vireid.neighbors import ApproximateIndex, NeighborGraph, topk
from vireid.nn import GFT, H2FT
from vireid.rerank import (
    AIM,
    SIM,
    AfterTransfer,
    GraphTransfer,
    QueryExpansion,
    aim,
    cmkr,
    gnn,
    graph_transfer,
    k_reciprocal,
    mser,
    query_expansion,
    sim,
)

Q, G = (torch.randn(n, 4, generator=torch.Generator().manual_seed(n)) for n in (3, 12))
GRAPH = NeighborGraph.build(G, 3)
PAIR = {"query": Q, "gallery": G}
MODULE = H2FT(4, value=nn.Identity())


def index_topk(**arguments):
    pytest.importorskip("faiss")
    return ApproximateIndex(G, "Flat").topk(**arguments)


# function, valid arguments, those that are features, and counts that may be any
FUNCTIONS = {
    "topk": (topk, PAIR | {"k": 3, "block": 2}, ("query", "gallery"), ("k", "block")),
    "build": (NeighborGraph.build, {"gallery": G, "k": 3}, ("gallery",), ("k",)),
    "extend": (GRAPH.extend, {"gallery": G}, ("gallery",), ()),
    "index": (index_topk, {"query": Q, "k": 2, "candidates": 3}, ("query",), ("candidates",)),
    "aim": (aim, PAIR | {"k1": 3, "k2": 2}, ("query", "gallery"), ("k1", "k2")),
    "gnn": (gnn, PAIR | {"k1": 3, "k2": 2, "top": 3}, ("query", "gallery"), ("k1", "k2", "top")),
    "k_reciprocal": (k_reciprocal, PAIR | {"k1": 3, "k2": 2, "top": 3}, ("query", "gallery"), ("k1", "k2", "top")),
    "cmkr": (cmkr, PAIR | {"k1": 3, "k2": 2, "top": 3}, ("query", "gallery"), ("k1", "k2", "top")),
    "mser": (mser, PAIR | {"k1": 3, "k2": 2, "top": 3}, ("query", "gallery"), ("k1", "k2", "top")),
    "sim": (sim, PAIR | {"k1": 3, "k2": 2}, ("query", "gallery"), ("k1", "k2")),
    "query_expansion": (query_expansion, PAIR | {"n": 2}, ("query", "gallery"), ("n",)),
    "graph_transfer": (graph_transfer, PAIR | {"module": MODULE}, ("query", "gallery"), ()),
    "fit": (lambda gallery: AIM(k1=2, k2=2).fit(gallery).distance(Q), {"gallery": G}, ("gallery",), ()),
    "fitted": (AIM(k1=2, k2=2).fit(G).topk, {"query": Q, "n": 2}, ("query",), ("n",)),
}
FEATURES = [(name, argument) for name, (_, _, features, _) in FUNCTIONS.items() for argument in features]


def call(name, **change):
    function, arguments, *_ = FUNCTIONS[name]
    found = function(**(arguments | change))
    found = found if isinstance(found, tuple) else (found,)
    return [torch.cat([x.values, x.indices], 1) if isinstance(x, NeighborGraph) else torch.as_tensor(x) for x in found]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_counts_beyond_64_bits_are_all(name):
    for argument in FUNCTIONS[name][3]:
        found, wanted = (call(name, **{argument: count}) for count in (10**30, 10**6))
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(("name", "argument"), FEATURES)
def test_features_are_dense_finite_matrices_and_nothing_else(name, argument):
    x = FUNCTIONS[name][1][argument]
    array = x.numpy()
    given = [x.to_sparse(), x.int(), x.bool(), x.to(torch.complex64), x[0], x[None], x * math.nan, x * math.inf]
    given += [x.to(torch.float8_e4m3fn), x.to("meta"), array.astype(np.longdouble), array.astype(object), 3, None, "x"]
    for bad in given:
        with pytest.raises((TypeError, ValueError), match=argument) as error:
            call(name, **{argument: bad})
        assert str(error.value).startswith((argument, "query and gallery"))
    for same in (
        x.clone().requires_grad_(),
        x.T.contiguous().T,
        array.astype(">f4"),
        np.asfortranarray(array),
        array[::-1].copy()[::-1],
    ):
        for mine, right in zip(call(name, **{argument: same}), call(name), strict=True):
            torch.testing.assert_close(mine, right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "argument"), [pair for pair in FEATURES if pair[0] != "extend"])  # one type
def test_half_precision_of_one_argument_is_promoted(name, argument):
    half = FUNCTIONS[name][1][argument].half()
    found, wanted = (call(name, **{argument: x}) for x in (half, half.float()))
    for mine, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-6, atol=1e-6, check_dtype=False)


def test_options_and_modules_are_named():
    for bad in (np.array(["cosine", "dot"]), "l2", None, 1, b"cosine"):
        with pytest.raises((TypeError, ValueError), match=r"^metric must be one of 'cosine'"):
            topk(Q, G, 1, metric=bad)
    for bad in (None, "H2FT", nn.Identity(), H2FT):
        for make in (GraphTransfer, lambda m: graph_transfer(Q, G, m), lambda m: AfterTransfer(m, AIM(k1=1, k2=1))):
            with pytest.raises(TypeError, match=r"^module must be (an H2FT|a transfer of vireid.nn, such as H2FT)"):
                make(bad)
    for bad in (1, "no", None, np.True_):
        with pytest.raises(ValueError, match=r"^use_query_relations must be one of False, True"):
            aim(Q, G, k1=2, k2=2, use_query_relations=bad)
    for bad in (3, "3", None, [1]):
        with pytest.raises((TypeError, ValueError), match=r"^arrays must "):
            NeighborGraph.from_arrays(bad)
        with pytest.raises(TypeError, match=r"^features must be"):
            NeighborGraph.from_arrays(GRAPH.to_arrays() | {"features": bad})
        with pytest.raises(TypeError, match=r"^indices must be"):
            NeighborGraph(G, bad, GRAPH.values)


TIES = {
    "aim-whole": AIM(k1=None, k2=2),
    "aim-whole-released": AIM(k1=None, k2=3, variant="released"),
    "sim": SIM(k1=1000, k2=1000),
    "query-expansion": QueryExpansion(n=3),
    **{f"{kind.__name__}-{k}": lambda q, g, kind=kind, k=k: kind(q.shape[1], k=k, value=nn.Identity()).distance(q, g)
       for kind in (H2FT, GFT) for k in (6, 60)},
    "k-reciprocal": lambda q, g: k_reciprocal(q, g, lambda_value=1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", TIES)
def test_equal_gallery_rows_have_equal_distances_to_the_bit(name):
    for d, ng in ((100, 9), (128, 33), (768, 130)):
        r = torch.Generator().manual_seed(d)
        q, row, others = torch.randn(5, d, generator=r), torch.randn(1, d, generator=r), torch.randn(ng, d, generator=r)
        distance = TIES[name](q, torch.cat([row, others, row.expand(ng, d), 2 * row]))
        assert torch.equal(distance[:, ng + 1 :], distance[:, :1].expand(-1, ng + 1))
