"""ECN against a plain loop over pairs of images."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from reference import ecn as reference
from reference import reranking as oracle
from vireid.metrics import rank_metrics
from vireid.rerank.ecn import ECN, ecn


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    nq=st.integers(0, 4),
    ng=st.integers(1, 12),
    t=st.integers(1, 15),
    q=st.integers(1, 15),
    k=st.integers(1, 18),
    metric=st.sampled_from(["rank", "cosine"]),
)
def test_equals_the_loop_over_pairs(device, dtype, seed, nq, ng, t, q, k, metric):
    r = torch.Generator().manual_seed(seed)
    x, y = (torch.randint(-1, 2, (n, 3), generator=r).to(dtype) for n in (nq, ng))
    chosen = {"t": t, "q": q, "k": k, "metric": metric}
    tolerance = 2e-6 if dtype == torch.float32 else 1e-12
    for queries in ("all", "alone"):
        got = ecn(x.to(device), y.to(device), queries=queries, **chosen)
        assert got.dtype == dtype
        assert got.shape == (nq, ng)
        wanted = oracle.alone(reference.ecn, x, y, **chosen) if queries == "alone" else reference.ecn(x, y, **chosen)
        assert_close(got.cpu().double(), wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("metric", ["rank", "cosine"])
def test_alone_equals_the_method_on_one_query_and_the_gallery(device, metric):
    r = torch.Generator().manual_seed(1)
    centers = torch.randn(12, 16, generator=r)
    x = (centers[torch.randint(12, (220,), generator=r)] + torch.randn(220, 16, generator=r)).to(device)
    x[3], x[4], x[100] = x[150], 0, 0
    q, g = x.split([20, 200])
    wanted = torch.cat([ecn(one[None], g.double(), metric=metric) for one in q.double()])
    assert_close(ecn(q, g, metric=metric, queries="alone").double(), wanted, rtol=0, atol=2e-6)
    values, indices = ecn(q.double(), g, metric=metric, queries="alone", top=7)
    assert_close(values, wanted.sort(dim=1).values[:, :7], rtol=0, atol=1e-12)
    assert_close(wanted.gather(1, indices), values, rtol=0, atol=1e-12)


def test_by_hand():
    """On a line of angles, with t = q = 1: the nearest of each and its nearest, by the cosine."""
    angle = torch.tensor([0.0, 0.1, 0.3, 1.0], dtype=torch.float64)
    x = torch.stack([angle.cos(), angle.sin()], dim=1)
    far = 1 - torch.cos(angle[:, None] - angle)
    # image 0: 1, whose nearest is 0; image 1: 0 and 1; image 2: 1 and 0; image 3: 2 and 1
    near = [[1, 0], [0, 1], [1, 0], [2, 1]]
    wanted = torch.stack([(far[near[0], g].mean() + far[near[g], 0].mean()) / 2 for g in (1, 2, 3)])
    assert_close(ecn(x[:1], x[1:], t=1, q=1, metric="cosine")[0], wanted, rtol=0, atol=1e-12)


def test_defaults_and_that_each_setting_matters():
    r = torch.Generator().manual_seed(2)
    q, g = torch.randn(5, 8, generator=r), torch.randn(80, 8, generator=r)
    base = ecn(q, g)
    assert_close(base, ecn(q, g, t=3, q=8, k=25, metric="rank"), rtol=0, atol=0)
    for change in ({"t": 2}, {"q": 7}, {"k": 20}, {"metric": "cosine"}, {"queries": "alone"}):
        assert not torch.allclose(base, ecn(q, g, **change), atol=1e-4)


def test_neighbors_raise_map_of_noisy_queries():
    r = torch.Generator().manual_seed(5)
    centers = torch.randn(40, 16, generator=r)
    ids, g_ids = torch.arange(40), torch.arange(40).repeat_interleave(8)
    g = centers.repeat_interleave(8, 0) + 0.3 * torch.randn(320, 16, generator=r)
    q = centers + 0.8 * torch.randn(40, 16, generator=r)
    cosine = 1 - torch.nn.functional.normalize(q) @ torch.nn.functional.normalize(g).T
    for metric in ("rank", "cosine"):
        ours, plain = (rank_metrics(d, ids, g_ids).mAP for d in (ECN(k=10, metric=metric)(q, g), cosine))
        assert ours > plain + 0.02


def test_bad_options_are_named():
    one = torch.ones(1, 2)
    with pytest.raises(ValueError, match="metric must be one of 'rank', 'cosine', got 'dot'"):
        ECN(metric="dot")
    with pytest.raises(ValueError, match="queries must be one of 'all', 'alone', got 'one'"):
        ecn(one, one, queries="one")
