"""The inner searches: within a set, between two by the same products, and queries block by block with theirs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import neighbors as oracle
from vireid.neighbors import _exact as module
from vireid.neighbors import topk
from vireid.neighbors._exact import neighbors_across, neighbors_within, search
from vireid.neighbors._scores import prepare


def rows(x, gallery=True):
    return prepare(x, "cosine", torch.promote_types(x.dtype, torch.float32), gallery=gallery)


def tiles(monkeypatch, size):
    """Tiles of ``size`` rows, whatever k is."""
    monkeypatch.setattr(module, "_tile", lambda device, m: size)


@pytest.mark.parametrize("size", [3, 7, 1000])
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    n=st.integers(1, 40),
    d=st.integers(1, 6),
    k=st.integers(1, 40),
    top=st.integers(0, 2),
)
def test_integer_rows_with_many_ties_duplicates_and_zeros_equal_a_stable_sort(size, seed, n, d, k, top):
    x = torch.randint(-top, top + 1, (n, d), generator=torch.Generator().manual_seed(seed)).float()
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiles(monkeypatch, size)
        values, indices = neighbors_within(rows(x), min(k, n))
    wanted, order = oracle.graph(x, min(k, n))
    assert torch.equal(indices, order)
    torch.testing.assert_close(values, wanted, rtol=1e-15, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [50, 2048])
def test_real_rows_equal_the_reference_in_every_dtype(monkeypatch, dtype, size):
    x = torch.randn(130, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    tiles(monkeypatch, size)
    values, indices = neighbors_within(rows(x), 12)
    wanted, order = oracle.graph(x, 12)
    assert torch.equal(indices, order)
    torch.testing.assert_close(values, wanted, rtol=0, atol=1e-14)


def test_it_equals_topk_away_from_the_diagonal(device):
    x = torch.randn(500, 64, generator=torch.Generator().manual_seed(1)).to(device)
    values, indices = neighbors_within(rows(x), 9)
    wanted, order = topk(x, x, 9)
    assert torch.equal(indices, order)  # in general position a row is its own nearest
    torch.testing.assert_close(values.float()[:, 1:], wanted[:, 1:], rtol=0, atol=1e-7)
    assert bool((values[:, 0] == 1).all())


def test_visit_sees_every_pair_of_the_upper_triangle_once(monkeypatch):
    x = torch.randn(23, 5, generator=torch.Generator().manual_seed(2))
    seen, cosine = torch.zeros(23, 23), torch.full((23, 23), torch.nan)

    def visit(part, columns, product):
        seen[part, columns] += 1
        cosine[part, columns] = product

    tiles(monkeypatch, 5)
    neighbors_within(rows(x), 3, visit=visit)
    assert torch.equal(seen.triu(), torch.ones(23, 23).triu())
    unit = torch.nn.functional.normalize(x)
    upper = torch.ones(23, 23, dtype=torch.bool).triu()
    torch.testing.assert_close(cosine[upper], (unit @ unit.T)[upper])  # also on the diagonal, before it is marked


@pytest.mark.parametrize("size", [3, 1000])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), n=st.integers(1, 30), m=st.integers(1, 30), k=st.integers(1, 40))
def test_each_of_two_sets_is_ranked_by_the_other(size, seed, n, m, k):
    r = torch.Generator().manual_seed(seed)
    x, y = (torch.randint(-1, 2, (count, 4), generator=r).float() for count in (n, m))
    seen = torch.zeros(n, m)

    def visit(part, columns, product):
        seen[part, columns] += 1 + 0 * product

    with pytest.MonkeyPatch.context() as monkeypatch:
        tiles(monkeypatch, size)
        both = neighbors_across(rows(x), rows(y), k, visit=visit)
    assert torch.equal(seen, torch.ones(n, m))
    for (values, indices), (a, b) in zip(both, ((x, y), (y, x)), strict=True):
        wanted, order = oracle.topk(a, b, min(k, len(b)))
        assert torch.equal(indices, order)
        torch.testing.assert_close(values, wanted, rtol=1e-15, atol=0)


def test_search_returns_products_and_neighbors():
    r = torch.Generator().manual_seed(3)
    q, g = torch.randn(11, 6, generator=r), torch.randn(30, 6, generator=r)
    found = list(search(rows(q, gallery=False), rows(g), 4, block=4))
    assert [f.rows for f in found] == [slice(0, 4), slice(4, 8), slice(8, 11)]
    cosine = torch.nn.functional.normalize(q) @ torch.nn.functional.normalize(g).T
    torch.testing.assert_close(torch.cat([f.product for f in found]), cosine)
    values, indices = topk(q, g, 4)
    assert torch.equal(torch.cat([f.indices for f in found]), indices)
    assert torch.equal(torch.cat([f.scores for f in found]).float(), values)


def test_a_prepared_gallery_in_float32_serves_queries_in_float64():
    r = torch.Generator().manual_seed(4)
    q, g = torch.randn(5, 6, generator=r, dtype=torch.float64), torch.randn(300, 6, generator=r)
    found = next(search(prepare(q, "cosine", torch.float32, gallery=False), rows(g), 7))
    values, indices = topk(q, g.double(), 7)
    assert torch.equal(found.indices, indices)
    torch.testing.assert_close(found.scores, values, rtol=1e-12, atol=1e-12)
