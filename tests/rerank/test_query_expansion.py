import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import reranking as oracle
from vireid.rerank.query_expansion import QueryExpansion, query_expansion


@settings(max_examples=40, deadline=None)
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
    torch.testing.assert_close(got.double(), oracle.query_expansion(q, g, n=n, alpha=alpha), rtol=0, atol=tolerance)


def test_defaults_are_the_plain_mean_of_five(device):
    q, g = torch.randn(4, 16).to(device), torch.randn(50, 16).to(device)
    got = query_expansion(q, g)
    assert got.device == q.device
    torch.testing.assert_close(
        got.cpu().double(), oracle.query_expansion(q.cpu(), g.cpu(), n=5, alpha=0), rtol=0, atol=1e-5
    )
    assert torch.equal(got, QueryExpansion().fit(g).distance(q))


def test_by_hand():
    q, g = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0], [3.0, 4.0]])
    root = math.sqrt(5)  # q + g_1 = (1.6, 0.8), 4/5 of (2, 1)
    torch.testing.assert_close(query_expansion(q, g, n=1), torch.tensor([[1 - 1 / root, 1 - 2 / root]]))
    weighted = (1 + 0.6**3 * 0.6, 0.6**3 * 0.8)
    length = math.hypot(*weighted)
    wanted = [1 - weighted[1] / length, 1 - (0.6 * weighted[0] + 0.8 * weighted[1]) / length]
    torch.testing.assert_close(query_expansion(q, g, n=2, alpha=3), torch.tensor([wanted]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sum_that_cancels_is_a_zero_row(dtype):
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    for q in x:
        got = query_expansion(q[None], torch.stack([-3.7 * q, -3.7 * q]), n=1)
        assert torch.equal(got, torch.ones(1, 2, dtype=dtype))
    close = torch.tensor([[1.0, 0.0]], dtype=dtype), torch.tensor([[-1.0, 1e-4]], dtype=dtype)  # what is left is real
    assert query_expansion(*close, n=1).item() < 1
