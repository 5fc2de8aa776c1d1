"""k-reciprocal encoding against plain loops of the published algorithm, and tests of both transductive methods."""

import warnings
from functools import partial
from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from benchmarks.speed import postprocessing
from measuring import Sizes
from reference import reranking as oracle
from vireid._files import save_arrays
from vireid.neighbors import _exact
from vireid.protocols._protocol import _describe
from vireid.rerank import _sparse
from vireid.rerank._blocks import nearest_first
from vireid.rerank.gnn import gnn
from vireid.rerank.k_reciprocal import KReciprocal, k_reciprocal

# the package's attributes of these names are the functions
gnn_module, k_reciprocal_module = (import_module(f"vireid.rerank.{name}") for name in ("gnn", "k_reciprocal"))


def clustered(nq, ng, d, *, per=25, noise=1.6, seed=0):
    r = torch.Generator().manual_seed(seed)
    centers = torch.nn.functional.normalize(torch.randn(max(1, (nq + ng) // per), d, generator=r), dim=1)
    x = centers[torch.randint(len(centers), (nq + ng,), generator=r)]
    x = x + noise * torch.randn(nq + ng, d, generator=r) / d**0.5
    return x[:nq], x[nq:]


def exact(n, seed):
    """Rows whose cosines have no rounding error in float32: four entries of ±1 each."""
    r = torch.Generator().manual_seed(seed)
    chosen = torch.rand(n, 6, generator=r).argsort(1)[:, :4]
    return torch.zeros(n, 6).scatter(1, chosen, torch.randint(0, 2, (n, 4), generator=r) * 2.0 - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    nq=st.integers(0, 6),
    ng=st.integers(1, 18),
    k1=st.integers(1, 28),
    k2=st.integers(1, 9),
    lambda_value=st.sampled_from([0, 0.3, 1.0]),
)
def test_equals_plain_loops(device, dtype, seed, nq, ng, k1, k2, lambda_value):
    r = torch.Generator().manual_seed(seed)
    # small integers: many duplicates, ties and zero rows, in the same order for both as their sums are exact
    q, g = (torch.randint(-1, 2, (n, 3), generator=r).to(dtype) for n in (nq, ng))
    got = k_reciprocal(q.to(device), g.to(device), k1=k1, k2=k2, lambda_value=lambda_value)
    assert got.dtype == dtype
    assert got.shape == (nq, ng)
    wanted = oracle.k_reciprocal(q, g, k1=k1, k2=k2, lambda_value=lambda_value)
    assert_close(got.cpu().double(), wanted, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize(("k1", "k2", "lambda_value"), [(20, 6, 0.3), (7, 1, 0.0), (5, 3, 1.0), (3, 60, 0.5)])
def test_equals_plain_loops_on_clusters(device, k1, k2, lambda_value):
    q, g = (x.double() for x in clustered(12, 40, 8, per=10, noise=1.0))
    got = k_reciprocal(q.to(device), g.to(device), k1=k1, k2=k2, lambda_value=lambda_value)
    assert_close(got.cpu(), oracle.k_reciprocal(q, g, k1=k1, k2=k2, lambda_value=lambda_value), rtol=0, atol=1e-12)


@pytest.mark.parametrize("noise", [0.5, 1.6, 20.0])  # separate identities, realistic, no identities at all
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_dense_form(device, dtype, noise):
    q, g = (x.to(device, dtype) for x in clustered(150, 600, 64, noise=noise))
    got = k_reciprocal(q, g)
    wanted = postprocessing.k_reciprocal(q.double(), g.double())  # in float32 it would mix up near ties
    assert_close(got.double(), wanted, rtol=0, atol=2e-6 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("nq", [1, 1000, 2600, 2999])
def test_large_sets_are_worked_on_in_tiles_and_d_is_put_together_right(nq):
    x = torch.randn(3000, 5)
    got = k_reciprocal(x[:nq], x[nq:], k1=1, k2=1, lambda_value=1)
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    wanted = 2 - 2 * unit @ unit.T
    wanted /= wanted.amax(1, keepdim=True)
    assert_close(got.double(), wanted[:nq, nq:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", [k_reciprocal, gnn])
def test_the_size_of_blocks_does_not_matter(monkeypatch, method):
    q, g = clustered(60, 240, 16, per=10)
    wanted = method(q, g, k1=8, k2=4)
    monkeypatch.setattr(_sparse, "_ENTRIES", 7)
    monkeypatch.setattr(_exact, "_BLOCK_BYTES", 3000)
    monkeypatch.setattr(gnn_module, "_ENTRIES", 100)
    monkeypatch.setattr(gnn_module, "_WIDTH", 3)
    assert_close(method(q, g, k1=8, k2=4), wanted, rtol=0, atol=1e-6)
    assert_close(method(q, g, k1=8, k2=4, top=5)[0], wanted.sort(1).values[:, :5], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("method", "change"), [(k_reciprocal, {"lambda_value": 0.0}), (k_reciprocal, {}), (gnn, {})])
def test_top_is_a_stable_sort_of_the_distances(device, method, change):
    q, g = exact(9, 1).to(device), exact(40, 2).to(device)  # 9 + 40 of 240 possible rows, so that there are ties
    g[20:] = g[:20]
    wanted = method(q, g, k1=4, k2=2, **change).sort(dim=1, stable=True)
    for top in (1, 7, 40, 99):
        values, indices = method(q, g, k1=4, k2=2, top=top, **change)
        assert torch.equal(values, wanted.values[:, :top])
        assert torch.equal(indices, wanted.indices[:, :top])
    arrays = method(q.cpu().numpy(), g.cpu().numpy(), k1=4, k2=2, top=4, **change)
    assert all(isinstance(x, np.ndarray) for x in arrays)
    assert [x.dtype for x in arrays] == [np.float32, np.int64]


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    rows=st.integers(0, 4),
    columns=st.integers(1, 12),
    kinds=st.integers(1, 6),
    n=st.integers(1, 12),
)
def test_nearest_first_is_a_stable_sort(seed, rows, columns, kinds, n):
    n = min(n, columns)
    distance = torch.randint(0, kinds, (rows, columns), generator=torch.Generator().manual_seed(seed)).float()
    wanted = distance.sort(dim=1, stable=True)
    values, indices = nearest_first(distance, n)
    assert torch.equal(values, wanted.values[:, :n])
    assert torch.equal(indices, wanted.indices[:, :n])


@pytest.mark.parametrize("method", [k_reciprocal, gnn])
def test_top_never_makes_all_distances(monkeypatch, method):
    for module, name, size in (
        (_sparse, "_ENTRIES", 2**12),
        (_exact, "_BLOCK_BYTES", 2**16),
        (gnn_module, "_ENTRIES", 2**12),
    ):
        monkeypatch.setattr(module, name, size)
    monkeypatch.setattr(_exact, "_tile", lambda device, m: 128)
    q, g = clustered(311, 1009, 8)  # primes: no other tensor has their product as its size
    settings = {"k1": 6, "k2": 3}
    with Sizes() as dense:
        method(q, g, **settings)
    with Sizes() as sparse:
        method(q, g, top=10, **settings)
    assert 311 * 1009 in dense.seen
    assert 311 * 1009 not in sparse.seen
    assert max(sparse.seen | sparse.sparse) < 311 * 1009 / 2


@pytest.mark.parametrize("method", [k_reciprocal, gnn])
def test_few_images(device, method):
    one, none = torch.tensor([[1.0, 2.0]], device=device), torch.empty(0, 2, device=device)
    same = method(one, one)
    assert_close(same, torch.zeros_like(same), rtol=0, atol=1e-6)
    assert method(none, one).shape == (0, 1)
    values, indices = method(none, one, top=3)
    assert values.shape == indices.shape == (0, 1)
    assert indices.dtype == torch.int64
    values, indices = method(one, torch.cat([-one, one]), k1=2, k2=2, top=1)
    assert indices.tolist() == [[1]]


def test_images_that_are_all_alike_have_no_distance():
    x = torch.rand(1, 300).expand(60, -1)
    distance = k_reciprocal(x[:20], x[20:], k1=59)
    assert_close(distance, torch.zeros(20, 40), rtol=0, atol=1e-6)  # D of mere rounding errors would be up to 1


def test_parts_cover_all_in_order():
    cost = torch.tensor([5, 0, 100, 1, 1, 1, 0])
    found = list(_sparse.parts(cost, 10))
    assert [i for part in found for i in range(part.start, part.stop)] == list(range(7))
    assert all(int(cost[part][1:].sum()) < 10 for part in found)
    assert list(_sparse.parts(cost[:0], 10)) == []


@pytest.mark.parametrize("method", [k_reciprocal, gnn])
def test_does_not_touch_the_warning_filters(monkeypatch, method):
    """They are the whole process's: two threads that change and restore them would undo each other's."""

    def fail(*args, **kwargs):
        raise AssertionError("a call must not change the filters")

    monkeypatch.setattr(warnings, "catch_warnings", fail)
    method(*clustered(5, 40, 8), k1=5, k2=3)


# -- each query alone ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**31 - 1),
    nq=st.integers(0, 5),
    ng=st.integers(1, 20),
    k1=st.integers(1, 24),
    k2=st.integers(1, 9),
    lambda_value=st.sampled_from([0, 0.3, 1.0]),
)
def test_alone_equals_plain_loops_over_single_queries(device, dtype, seed, nq, ng, k1, k2, lambda_value):
    r = torch.Generator().manual_seed(seed)
    q, g = (torch.randint(-1, 2, (n, 3), generator=r).to(dtype) for n in (nq, ng))
    got = k_reciprocal(q.to(device), g.to(device), k1=k1, k2=k2, lambda_value=lambda_value, queries="alone")
    assert got.dtype == dtype
    wanted = oracle.alone(oracle.k_reciprocal, q, g, k1=k1, k2=k2, lambda_value=lambda_value)
    assert_close(got.cpu().double(), wanted, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("settings", [{}, {"k1": 7, "k2": 1, "lambda_value": 0.0}, {"k1": 3, "k2": 12}])
@pytest.mark.parametrize("noise", [0.6, 1.6])
def test_alone_equals_the_method_on_one_query_and_the_gallery(device, settings, noise):
    q, g = (x.to(device) for x in clustered(20, 200, 16, per=12, noise=noise))
    q[10:] -= 2 * g.mean(0)  # far from most of the gallery, so that D changes in many rows
    q[15] = g[30] = g[31]
    q[16], g[32] = 0, 0
    got = k_reciprocal(q, g, queries="alone", **settings)
    wanted = torch.cat([k_reciprocal(x[None], g, **settings) for x in q.double()])
    assert_close(got.double(), wanted, rtol=0, atol=1e-6)
    values, indices = k_reciprocal(q, g, queries="alone", top=7, **settings)
    assert torch.equal(values, got.sort(dim=1, stable=True).values[:, :7])
    assert torch.equal(indices, got.sort(dim=1, stable=True).indices[:, :7])


def test_distances_below_the_rounding_of_the_jaccard_part_are_kept():
    angle = (2.0**-22 * torch.arange(9)).sqrt()
    g = torch.cat([torch.stack([angle.cos(), angle.sin()], 1), -torch.eye(2)])
    distance = k_reciprocal(torch.tensor([[1.0, 0.0]]), g, k1=8, k2=1, queries="alone")
    assert float(distance[0, 1:9].diff().min()) > 0


def test_a_query_that_enters_all_rankings_is_answered_in_blocks(monkeypatch):
    """The gallery is a sphere and the query its center of mass: it is the first neighbor of all."""
    g = torch.nn.functional.normalize(torch.randn(200, 32, dtype=torch.float64), dim=1) + 1
    q = g.mean(0, keepdim=True).repeat(3, 1)
    wanted = torch.cat([k_reciprocal(x[None], g, k1=6) for x in q])
    monkeypatch.setattr(k_reciprocal_module, "_PAIRS", 10)
    monkeypatch.setattr(_exact, "_BLOCK_BYTES", 3000)
    assert_close(k_reciprocal(q, g, k1=6, queries="alone"), wanted, rtol=0, atol=1e-12)


def test_a_fitted_gallery_is_extended_by_images_that_are_farther_than_all_others():
    q, g = clustered(10, 120, 8)
    g[100:] -= 3 * g.mean(0)
    fitted = KReciprocal(k1=5).fit(g[:100]).extend(g[100:])
    assert_close(fitted.distance(q), KReciprocal(k1=5)(q, g), rtol=0, atol=1e-6)


def test_alone_is_reported_as_what_it_is():
    uses = [_describe(method)[1] for method in (k_reciprocal, partial(k_reciprocal, queries="alone"), KReciprocal())]
    assert uses == ["transductive", "gallery", "gallery"]
    with pytest.raises(ValueError, match="queries must be one of 'all', 'alone', got 'one'"):
        k_reciprocal(torch.ones(1, 2), torch.ones(1, 2), queries="one")


def test_files_without_the_lowest_cosines_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    fitted = KReciprocal(k1=2).fit(torch.randn(6, 3))
    arrays = fitted.graph.to_arrays()
    for change, got in (({"lowest": arrays["lowest"][:4]}, r"\(4,\)"), ({}, r"\(0,\)")):
        kept = {name: x for name, x in arrays.items() if name != "lowest"}
        save_arrays(path, "vireid KReciprocal", 1, kept | change, fitted.settings)
        with pytest.raises(ValueError, match=rf"lowest must hold a cosine for each of 6 images, got {got}"):
            KReciprocal.load(path)
