"""The dense forms of post-processing against plain loops written from the papers."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from benchmarks.speed import postprocessing as pp
from reference import cmkr as cmkr_reference
from reference import ecn as ecn_reference
from reference import postprocessing as ref


@pytest.fixture(params=["random", "clustered", "tiny", "one query"])
def features(request, seed):
    nq, ng = {"random": (7, 11), "clustered": (15, 20), "tiny": (2, 3), "one query": (1, 9)}[request.param]
    q, g = torch.randn(nq, 6, dtype=torch.double), torch.randn(ng, 6, dtype=torch.double)
    if request.param == "clustered":
        centers = 2 * torch.randn(5, 6, dtype=torch.double)
        q, g = q + centers[torch.arange(nq) % 5], g + centers[torch.arange(ng) % 5]
    return q, g


def close(actual, expected):
    assert_close(actual, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("variant", ["released", "paper"])
@pytest.mark.parametrize(("k1", "k2"), [(4, 1), (3, 2), (5, 4), (100, 100)])
def test_aim(features, k1, k2, variant):
    close(pp.aim(*features, k1=k1, k2=k2, variant=variant), ref.aim(*features, k1, k2, variant))


@pytest.mark.parametrize(("k1", "k2", "lambda_value"), [(4, 2, 0.3), (5, 1, 0.0), (7, 3, 0.5), (60, 60, 1.0)])
def test_k_reciprocal(features, k1, k2, lambda_value):
    expected = ref.k_reciprocal(*features, k1, k2, lambda_value)
    close(pp.k_reciprocal(*features, k1=k1, k2=k2, lambda_value=lambda_value), expected)


def test_k_reciprocal_in_small_blocks(features, monkeypatch):
    expected = ref.k_reciprocal(*features, 6, 3, 0.3)
    monkeypatch.setattr(pp, "_PAIRS", 5)
    close(pp.k_reciprocal(*features, k1=6, k2=3), expected)


@pytest.mark.parametrize(
    ("k1", "k2", "layers", "alpha"), [(5, 2, 2, 2.0), (4, 3, 1, 3.0), (6, 1, 3, 0.5), (60, 60, 2, 2.0)]
)
def test_gnn(features, k1, k2, layers, alpha):
    expected = ref.gnn(*features, k1, k2, layers, alpha)
    close(pp.gnn(*features, k1=k1, k2=k2, layers=layers, alpha=alpha), expected)


@pytest.mark.parametrize(("k1", "k2", "k3"), [(4, 3, 1), (5, 1, None), (7, 3, None), (60, 60, 2)])
def test_cmkr(features, k1, k2, k3):
    expected = cmkr_reference.cmkr(*features, neighbors="extended", k1=k1, k2=k2, k3=k3, lambda_value=0.3)
    close(pp.cmkr(*features, k1=k1, k2=k2, k3=k3), expected)


@pytest.mark.parametrize(("t", "q", "k"), [(2, 3, 4), (3, 1, 30), (60, 60, 2)])
def test_ecn(features, t, q, k):
    close(pp.ecn(*features, t=t, q=q, k=k), ecn_reference.ecn(*features, t=t, q=q, k=k))


@pytest.mark.parametrize(("n", "alpha"), [(1, 0.0), (3, 0.0), (3, 3.0), (50, 1.5)])
def test_query_expansion(features, n, alpha):
    close(pp.query_expansion(*features, n=n, alpha=alpha), ref.query_expansion(*features, n, alpha))


METHODS = [
    partial(pp.aim, k1=4, k2=2),
    partial(pp.k_reciprocal, k1=4, k2=2),
    partial(pp.gnn, k1=4, k2=2),
    partial(pp.ecn, t=2, q=2, k=4),
    partial(pp.cmkr, k1=4, k2=2),
    partial(pp.query_expansion, n=2),
]


@pytest.mark.parametrize("method", METHODS)
def test_duplicates_and_zero_rows_stay_finite_and_inputs_unchanged(method):
    q = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    g = torch.tensor([[1.0, 0.0]] * 8 + [[0.0, 1.0], [0.0, 0.0]])
    before = q.clone(), g.clone()
    assert torch.isfinite(method(q, g)).all()
    assert torch.equal(q, before[0])
    assert torch.equal(g, before[1])


@pytest.mark.parametrize("method", METHODS)
def test_gallery_methods_do_not_see_other_queries(method):
    q, g = torch.randn(9, 5, dtype=torch.double), torch.randn(12, 5, dtype=torch.double)
    alone = torch.cat([method(row[None], g) for row in q])
    together = method(q, g)
    if method.func.uses == "gallery":
        close(together, alone)
    else:
        assert method.func.uses == "transductive"
        assert (together - alone).abs().max() > 1e-3


def test_nearest_breaks_ties_by_index():
    similarity = torch.tensor([[1.0, 2.0, 2.0, 2.0], [3.0, 0.0, 0.0, 0.0], [4.0, 3.0, 2.0, 1.0]])
    expected = [[0, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert pp._nearest(similarity, 2).int().tolist() == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q, g: pp.aim(q, g, k1=0, k2=1), "k1 must be at least 1, got 0"),
        (lambda q, g: pp.aim(q, g, k1=1, k2=1, variant="new"), "variant must be one of"),
        (lambda q, g: pp.aim(q, g[:, :2], k1=1, k2=1), "gallery must have shape"),
        (lambda q, g: pp.gnn(q, g[:0]), "gallery must hold at least one image"),
        (lambda q, g: pp.gnn(q * torch.nan, g), "query must be finite"),
        (lambda q, g: pp.k_reciprocal(q, g, lambda_value=1.5), "lambda_value must be in"),
        (lambda q, g: pp.query_expansion(q, g, n=1, alpha=-1), "alpha must be at least 0"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.randn(2, 3), torch.randn(4, 3))
