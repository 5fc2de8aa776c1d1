"""GNN re-ranking against plain loops; tests shared with k-reciprocal encoding are in test_k_reciprocal.py."""

from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from benchmarks.speed import postprocessing
from measuring import Sizes
from reference import reranking as oracle
from vireid.rerank import _gnn_alone
from vireid.rerank.gnn import gnn

module = import_module("vireid.rerank.gnn")  # the package's attribute of this name is the function


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    nq=st.integers(0, 5),
    ng=st.integers(1, 10),
    k1=st.integers(1, 20),
    k2=st.integers(1, 20),
    layers=st.integers(1, 3),
    alpha=st.sampled_from([0, 0.5, 2.0]),
)
def test_equals_plain_loops(device, dtype, seed, nq, ng, k1, k2, layers, alpha):
    r = torch.Generator().manual_seed(seed)
    # small integers: many duplicates, ties and zero rows, in the same order for both as their sums are exact
    q, g = (torch.randint(-1, 2, (n, 3), generator=r).to(dtype) for n in (nq, ng))
    got = gnn(q.to(device), g.to(device), k1=k1, k2=k2, layers=layers, alpha=alpha)
    assert got.dtype == dtype
    assert got.shape == (nq, ng)
    wanted = oracle.gnn(q, g, k1=k1, k2=k2, layers=layers, alpha=alpha)
    assert_close(got.cpu().double(), wanted, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("noise", [0.5, 1.6, 20.0])  # separate identities, realistic, no identities at all
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_dense_form(device, dtype, noise):
    r = torch.Generator().manual_seed(1)
    centers = torch.nn.functional.normalize(torch.randn(30, 64, generator=r), dim=1)
    x = centers[torch.randint(30, (750,), generator=r)] + noise * torch.randn(750, 64, generator=r) / 8
    q, g = x.to(device, dtype).split([150, 600])
    tolerance = 5e-6 if dtype == torch.float32 else 1e-12
    for layers in (1, 2):
        wanted = postprocessing.gnn(q.double(), g.double(), layers=layers)  # in float32 it would mix up near ties
        assert_close(gnn(q, g, layers=layers).double(), wanted, rtol=0, atol=tolerance)


def test_zero_rows_take_no_room():
    """They are all neighbors of the first images, by index; entries of weight 0 must not fill the rows."""
    x = torch.randn(1200, 8, generator=torch.Generator().manual_seed(3))
    x[600:] = 0
    with Sizes() as made:
        gnn(x[:20], x[20:], k1=5, k2=3, top=5)
    entries = max(made.sparse)
    assert 600 * 5 < entries < 1200 * 1200 / 8


# -- each query alone ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    nq=st.integers(0, 4),
    ng=st.integers(1, 12),
    k1=st.integers(1, 15),
    k2=st.integers(1, 15),
    layers=st.integers(1, 3),
    alpha=st.sampled_from([0, 0.5, 2.0]),
)
def test_alone_equals_plain_loops_over_single_queries(device, dtype, seed, nq, ng, k1, k2, layers, alpha):
    r = torch.Generator().manual_seed(seed)
    q, g = (torch.randint(-1, 2, (n, 3), generator=r).to(dtype) for n in (nq, ng))
    given = {"k1": k1, "k2": k2, "layers": layers, "alpha": alpha}
    got = gnn(q.to(device), g.to(device), queries="alone", **given)
    assert got.dtype == dtype
    assert got.shape == (nq, ng)
    wanted = oracle.alone(oracle.gnn, q, g, **given)
    assert_close(got.cpu().double(), wanted, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("noise", [0.5, 1.6, 20.0])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_alone_equals_the_method_on_one_query_and_the_gallery(device, noise, layers):
    r = torch.Generator().manual_seed(1)
    centers = torch.nn.functional.normalize(torch.randn(30, 64, generator=r), dim=1)
    x = centers[torch.randint(30, (260,), generator=r)] + noise * torch.randn(260, 64, generator=r) / 8
    x[3], x[4], x[100] = x[150], 0, 0
    q, g = x.to(device).split([10, 250])
    wanted = torch.cat([gnn(one[None], g.double(), k1=12, k2=4, layers=layers) for one in q.double()])
    for dtype, tolerance in ((torch.float32, 5e-6), (torch.float64, 1e-12)):
        got = gnn(q.to(dtype), g.to(dtype), k1=12, k2=4, layers=layers, queries="alone")
        assert_close(got.double(), wanted, rtol=0, atol=tolerance)
    values, indices = gnn(q.double(), g, k1=12, k2=4, layers=layers, queries="alone", top=7)
    assert_close(values, wanted.sort(dim=1).values[:, :7], rtol=0, atol=1e-12)
    assert_close(wanted.gather(1, indices), values, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_nearest_are_those_of_all_distances(layers):
    """Though for most images only a bound of their row's length is computed."""
    r = torch.Generator().manual_seed(4)
    centers = torch.nn.functional.normalize(torch.randn(40, 64, generator=r), dim=1)
    x = centers[torch.randint(40, (410,), generator=r)] + 1.2 * torch.randn(410, 64, generator=r) / 8
    q, g = x.split([10, 400])
    ranker = module.GNN(k1=6, k2=3, layers=layers).fit(g)
    wanted = ranker.distance(q).sort(dim=1, stable=True)
    for n in (1, 10, 50):
        values, indices = ranker.topk(q, n)
        assert torch.equal(values, wanted.values[:, :n])
        assert torch.equal(indices, wanted.indices[:, :n])


def test_a_query_that_enters_all_rankings_is_answered(device, monkeypatch):
    """The gallery is a sphere and the query its center of mass: it is the first neighbor of all."""
    r = torch.Generator().manual_seed(2)
    g = (torch.nn.functional.normalize(torch.randn(150, 32, dtype=torch.float64, generator=r), dim=1) + 1).to(device)
    q = g.mean(0, keepdim=True).repeat(3, 1)
    wanted = torch.cat([gnn(one[None], g, k1=6, k2=3) for one in q])
    for terms in (_gnn_alone._TERMS, 500):
        monkeypatch.setattr(_gnn_alone, "_TERMS", terms)
        assert_close(gnn(q, g, k1=6, k2=3, queries="alone"), wanted, rtol=0, atol=1e-12)
    nearest, _ = gnn(q, g, k1=6, k2=3, queries="alone", top=20)
    assert_close(nearest, wanted.sort(dim=1).values[:, :20], rtol=0, atol=1e-12)


def test_blocks_of_changes_and_other_products_change_nothing(monkeypatch):
    r = torch.Generator().manual_seed(3)
    q, g = torch.randn(9, 8, generator=r).double(), torch.randn(60, 8, generator=r).double()
    wanted = gnn(q, g, k1=6, k2=3, queries="alone")
    monkeypatch.setattr(module, "_CHANGES", 1)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert_close(gnn(q, g, k1=6, k2=3, queries="alone"), wanted, rtol=0, atol=1e-12)
