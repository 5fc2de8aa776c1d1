"""SIM against plain loops over sets."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from reference import reranking as oracle
from vireid.metrics import rank_metrics
from vireid.rerank.sim import sim


def features(seed: int, nq: int, ng: int, d: int = 5) -> tuple[Tensor, Tensor]:
    """Small whole numbers, so that equal cosines are equal, with a repeated image and a zero row among them."""
    r = torch.Generator().manual_seed(seed)
    x = torch.randint(-3, 4, (nq + ng, d), generator=r).double()
    x[-1] = x[len(x) // 2]
    x[seed % len(x)] = 0
    return x[:nq], x[nq:]


def clustered(seed: int, people: int = 6, each: int = 5, d: int = 12) -> tuple[Tensor, Tensor]:
    r = torch.Generator().manual_seed(seed)
    centers = torch.randn(people, d, generator=r)
    images = centers.repeat_interleave(each, 0) + 0.4 * torch.randn(people * each, d, generator=r)
    return centers + 0.8 * torch.randn(people, d, generator=r), images


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    nq=st.integers(0, 4),
    ng=st.integers(1, 9),
    k1=st.integers(1, 11),
    k2=st.integers(1, 11),
    lambda_value=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_equals_the_loop_over_sets(device, seed, nq, ng, k1, k2, lambda_value):
    q, g = features(seed, nq, ng)
    expected = oracle.sim(q, g, k1=k1, k2=k2, lambda_value=lambda_value)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        ours = sim(q.to(device, dtype), g.to(device, dtype), k1=k1, k2=k2, lambda_value=lambda_value)
        assert ours.dtype == dtype
        assert_close(ours.cpu().double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("k1", "k2"), [(5, 5), (20, 20), (3, 12), (12, 3)])
def test_equals_the_loop_on_clusters(device, k1, k2):
    q, g = (x.double() for x in clustered(1))
    expected = oracle.sim(q, g, k1=k1, k2=k2, lambda_value=0.3)
    assert (expected < 0.9).any()  # some sets meet
    assert_close(sim(q.to(device), g.to(device), k1=k1, k2=k2).cpu(), expected, rtol=0, atol=1e-12)


def test_by_hand():
    """Two pairs of images; N(q) is {0, 1}. Image 0 and 1 have each other, and 2 and 3."""
    gallery = torch.tensor([[1.0, 0.0], [0.8, 0.6], [-1.0, 0.0], [-0.8, 0.6]])
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    cosine = torch.tensor([[1.0, 0.8, -1.0, -0.8], [0.0, 0.6, 0.0, 0.6]])
    jaccard = torch.tensor([[0.0, 0.0, 1.0, 1.0], [2 / 3, 2 / 3, 2 / 3, 2 / 3]])  # the second finds 1 and 3
    for weight in (0.0, 0.25, 1.0):
        expected = (1 - weight) * jaccard + weight * (1 - cosine)
        assert_close(sim(query, gallery, k1=2, k2=2, lambda_value=weight), expected, rtol=0, atol=1e-6)


def test_one_sided_neighbors_do_not_count():
    """The outlier has the others among its nearest, but is not among theirs: its set holds only itself."""
    gallery = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1], [0.0, 1.0]])
    distance = sim(torch.tensor([[1.0, 0.01]]), gallery, k1=3, k2=3, lambda_value=0.0)
    assert_close(distance, torch.tensor([[0.0, 0.0, 0.0, 1.0]]))


def test_defaults_and_that_each_setting_matters():
    q, g = clustered(2)
    base = sim(q, g)
    assert_close(base, sim(q, g, k1=20, k2=20, lambda_value=0.3), rtol=0, atol=0)
    for change in ({"k1": 10}, {"k2": 10}, {"lambda_value": 0.4}):
        assert not torch.allclose(base, sim(q, g, **change), atol=1e-4)


def test_neighbors_raise_map_of_noisy_queries():
    """Noisy queries over tight clusters are the case for the method."""
    r = torch.Generator().manual_seed(5)
    centers = torch.randn(40, 16, generator=r)
    ids = torch.arange(40)
    g = centers.repeat_interleave(8, 0) + 0.3 * torch.randn(320, 16, generator=r)
    q = centers + 0.8 * torch.randn(40, 16, generator=r)
    cosine = 1 - torch.nn.functional.normalize(q) @ torch.nn.functional.normalize(g).T
    ours, plain = (rank_metrics(d, ids, ids.repeat_interleave(8)).mAP for d in (sim(q, g, k1=8, k2=8), cosine))
    assert ours > plain + 0.02
