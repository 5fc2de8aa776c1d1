import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from measuring import LargestTensor
from vireid.rerank.query_expansion import QueryExpansion, query_expansion


def unit(row):
    length = math.sqrt(math.fsum(x * x for x in row))
    return [x / length if length else 0.0 for x in row]


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def cosine(a, b):
    """Of integer rows: ties are ties to the bit."""
    length = math.sqrt(dot(a, a)) * math.sqrt(dot(b, b))
    return dot(a, b) / length if length else 0.0


def reference(query, gallery, *, n, alpha):
    """One query after the other: its n nearest, the weighted mean, the cosine distance."""
    result = []
    for q in query.double().tolist():
        rows = gallery.double().tolist()
        near = sorted(range(len(rows)), key=lambda j: (-cosine(q, rows[j]), j))[:n]
        mean = unit(q)
        for j in near:
            weight = max(cosine(q, rows[j]), 0.0) ** alpha
            mean = [a + weight * b for a, b in zip(mean, unit(rows[j]), strict=True)]
        result.append([1 - dot(unit(mean), unit(g)) for g in rows])
    return torch.tensor(result, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    ng=st.integers(1, 30),
    n=st.integers(1, 35),
    alpha=st.sampled_from([0, 0.5, 1.0, 3.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_equals_the_plain_loops_with_ties_duplicates_and_zero_rows(seed, ng, n, alpha, dtype):
    r = torch.Generator().manual_seed(seed)
    q, g = (torch.randint(1, 4, (rows, 4), generator=r).to(dtype) for rows in (5, ng))  # the mean is never near zero
    g[ng // 2 :: 2, 0] = -1
    g[-1] = 0
    q[-1] = 0 if alpha else 1
    got = query_expansion(q, g, n=n, alpha=alpha)
    assert got.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(got.double(), reference(q, g, n=n, alpha=alpha), rtol=0, atol=tolerance)


def test_defaults_are_the_plain_mean_of_five(device):
    q, g = torch.randn(4, 16).to(device), torch.randn(50, 16).to(device)
    got = query_expansion(q, g)
    assert got.device == q.device
    torch.testing.assert_close(got.cpu().double(), reference(q.cpu(), g.cpu(), n=5, alpha=0), rtol=0, atol=1e-5)
    assert torch.equal(got, QueryExpansion().fit(g).distance(q))


def test_by_hand():
    q, g = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0], [3.0, 4.0]])
    root = math.sqrt(5)  # q + g_1 = (1.6, 0.8), 4/5 of (2, 1)
    torch.testing.assert_close(query_expansion(q, g, n=1), torch.tensor([[1 - 1 / root, 1 - 2 / root]]))
    weighted = (1 + 0.6**3 * 0.6, 0.6**3 * 0.8)
    length = math.hypot(*weighted)
    wanted = [1 - weighted[1] / length, 1 - (0.6 * weighted[0] + 0.8 * weighted[1]) / length]
    torch.testing.assert_close(query_expansion(q, g, n=2, alpha=3), torch.tensor([wanted]))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), chosen=st.lists(st.integers(0, 8), min_size=1, max_size=9))
def test_a_query_is_answered_the_same_whatever_others_are_there(seed, chosen):
    r = torch.Generator().manual_seed(seed)
    q, g = torch.randn(9, 6, generator=r), torch.randn(30, 6, generator=r)
    whole = query_expansion(q, g, n=4, alpha=1.0)
    torch.testing.assert_close(query_expansion(q[chosen], g, n=4, alpha=1.0), whole[chosen], rtol=0, atol=1e-5)


def test_uses_no_query_and_numpy():
    assert query_expansion.uses == QueryExpansion.uses == "gallery"
    got = query_expansion(np.empty((0, 3)), np.ones((4, 3)), n=2)
    assert isinstance(got, np.ndarray)
    assert got.shape == (0, 4)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"n": 0}, ValueError, "n must be at least 1, got 0"),
        ({"n": 2.0}, TypeError, "n must be an integer, got 2.0"),
        ({"alpha": -1}, ValueError, "alpha must be at least 0 and finite, got -1"),
        ({"alpha": float("nan")}, ValueError, "alpha must be at least 0 and finite, got nan"),
        ({"alpha": "3"}, TypeError, "alpha must be a number, got '3'"),
        ({"alpha": True}, TypeError, "alpha must be a number, got True"),
        ({"gallery": torch.empty(0, 3)}, ValueError, "gallery must hold at least one row"),
        ({"query": torch.ones(2, 2)}, ValueError, r"gallery must have shape \(N, 2\), got \(4, 3\)"),
        ({"query": torch.full((2, 3), torch.inf)}, ValueError, "query must be finite.*2 of 2 rows"),
    ],
)
def test_bad_input_is_named(change, error, text):
    with pytest.raises(error, match=text):
        query_expansion(**({"query": torch.ones(2, 3), "gallery": torch.ones(4, 3)} | change))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sum_that_cancels_is_a_zero_row(dtype):
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    for q in x:
        got = query_expansion(q[None], torch.stack([-3.7 * q, -3.7 * q]), n=1)
        assert torch.equal(got, torch.ones(1, 2, dtype=dtype))
    close = torch.tensor([[1.0, 0.0]], dtype=dtype), torch.tensor([[-1.0, 1e-4]], dtype=dtype)  # what is left is real
    assert query_expansion(*close, n=1).item() < 1


def test_no_distance_is_below_zero():
    x = torch.randn(300, 64, generator=torch.Generator().manual_seed(0)).abs()
    for n in (1, 5):
        assert query_expansion(x, x, n=n).min() >= 0


def test_topk_keeps_a_block_and_no_matrix(monkeypatch):
    r = torch.Generator().manual_seed(1)
    q, g = torch.randn(400, 8, generator=r), torch.randn(2000, 8, generator=r)
    fitted = QueryExpansion().fit(g)
    expected = fitted.distance(q).sort(dim=1, stable=True).values
    monkeypatch.setattr("vireid.rerank._blocks._BLOCK_BYTES", 2000 * 4 * 30)
    with LargestTensor() as largest:
        values, _ = fitted.topk(q, 10)
    assert 2000 * 30 <= largest.elements < 400 * 2000 / 4
    torch.testing.assert_close(values, expected[:, :10], rtol=0, atol=1e-5)
