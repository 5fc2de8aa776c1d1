"""SIM against plain loops over sets, and what every fitted re-ranker owes: one query alone, save, load, extend."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from measuring import LargestTensor
from reference import cift as ref
from vireid.metrics import rank_metrics
from vireid.rerank.sim import SIM, sim


def nearest(x: Tensor, gallery: Tensor, k: int, itself: int | None = None) -> list[int]:
    """The k nearest gallery images, the image itself first, ties by index."""
    scores = [float(ref.cosine(x, g)) for g in gallery]
    return sorted(range(len(gallery)), key=lambda j: (j != itself, -scores[j], j))[:k]


def loop(query: Tensor, gallery: Tensor, k1: int, k2: int, lambda_value: float) -> Tensor:
    near = [nearest(g, gallery, k2, itself=i) for i, g in enumerate(gallery)]
    mutual = [{j for j in near[i] if i in near[j]} for i in range(len(gallery))]
    out = torch.empty(len(query), len(gallery)).double()
    for i, q in enumerate(query):
        own = set(nearest(q, gallery, k1))
        for j, g in enumerate(gallery):
            jaccard = 1 - len(own & mutual[j]) / len(own | mutual[j])
            out[i, j] = (1 - lambda_value) * jaccard + lambda_value * (1 - ref.cosine(q, g))
    return out


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


@settings(max_examples=60, deadline=None)
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
    expected = loop(q, g, k1, k2, lambda_value)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        ours = sim(q.to(device, dtype), g.to(device, dtype), k1=k1, k2=k2, lambda_value=lambda_value)
        assert ours.dtype == dtype
        assert_close(ours.cpu().double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("k1", "k2"), [(5, 5), (20, 20), (3, 12), (12, 3)])
def test_equals_the_loop_on_clusters(device, k1, k2):
    q, g = (x.double() for x in clustered(1))
    expected = loop(q, g, k1, k2, 0.3)
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


def test_one_sided_neighbours_do_not_count():
    """The outlier has the others among its nearest, they do not have it: alone with itself."""
    gallery = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1], [0.0, 1.0]])
    distance = sim(torch.tensor([[1.0, 0.01]]), gallery, k1=3, k2=3, lambda_value=0.0)
    assert_close(distance, torch.tensor([[0.0, 0.0, 0.0, 1.0]]))


def test_defaults_and_that_each_setting_matters():
    q, g = clustered(2)
    base = sim(q, g)
    assert_close(base, sim(q, g, k1=20, k2=20, lambda_value=0.3), rtol=0, atol=0)
    for change in ({"k1": 10}, {"k2": 10}, {"lambda_value": 0.4}):
        assert not torch.allclose(base, sim(q, g, **change), atol=1e-4)
    assert sim.uses == SIM.uses == "gallery"


def test_neighbours_help_where_the_query_alone_errs():
    """Noisy queries over tight clusters: that is the situation the method is for."""
    r = torch.Generator().manual_seed(5)
    centers = torch.randn(40, 16, generator=r)
    ids = torch.arange(40)
    g = centers.repeat_interleave(8, 0) + 0.3 * torch.randn(320, 16, generator=r)
    q = centers + 0.8 * torch.randn(40, 16, generator=r)
    cosine = 1 - torch.nn.functional.normalize(q) @ torch.nn.functional.normalize(g).T
    ours, plain = (rank_metrics(d, ids, ids.repeat_interleave(8)).mAP for d in (sim(q, g, k1=8, k2=8), cosine))
    assert ours > plain + 0.02


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), nq=st.integers(1, 5), ng=st.integers(1, 12), k=st.integers(1, 6))
def test_a_query_is_answered_as_if_alone(seed, nq, ng, k):
    q, g = features(seed, nq, ng)
    fitted = SIM(k1=k, k2=k).fit(g)
    together = fitted.distance(q)
    for i in range(nq):
        assert_close(fitted.distance(q[i : i + 1])[0], together[i], rtol=0, atol=1e-12)
    order = torch.randperm(nq)
    assert_close(fitted.distance(q[order]), together[order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("lambda_value", [0.0, 0.3])
def test_topk_is_a_stable_sort_of_the_distance(device, lambda_value):
    q, g = features(3, 9, 40)  # at lambda 0 most distances are 1
    fitted = SIM(k1=4, k2=5, lambda_value=lambda_value).fit(g.to(device))
    expected = fitted.distance(q.to(device)).sort(dim=1, stable=True)
    for n in (1, 7, 40, 99):
        values, indices = fitted.topk(q.to(device), n)
        assert_close(values, expected.values[:, :n], rtol=0, atol=0)
        assert torch.equal(indices, expected.indices[:, :n])


@pytest.mark.parametrize("first", [1, 4, 29])  # fewer images than neighbours at first, and more
def test_extend_is_a_refit(first):
    q, g = features(4, 5, 30)
    extended = SIM(k1=6, k2=7).fit(g[:first]).extend(g[first:])
    assert_close(extended.distance(q), sim(q, g, k1=6, k2=7), rtol=0, atol=1e-12)


def test_save_and_load(tmp_path):
    q, g = clustered(3)
    fitted = SIM(k1=6, k2=4, lambda_value=0.2).fit(g)
    fitted.save(tmp_path / "sim.npz")
    loaded = SIM.load(tmp_path / "sim.npz")
    assert (loaded.k1, loaded.k2, loaded.lambda_value) == (6, 4, 0.2)
    assert_close(loaded.distance(q), fitted.distance(q), rtol=0, atol=0)
    assert_close(loaded.extend(g[:3]).distance(q), fitted.extend(g[:3]).distance(q), rtol=0, atol=0)
    content = bytearray((tmp_path / "sim.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "sim.npz").write_bytes(content)
    with pytest.raises(ValueError, match="path must"):
        SIM.load(tmp_path / "sim.npz")


def test_numpy_in_numpy_out_and_inputs_unmodified():
    q, g = clustered(4)
    given = q.numpy().copy(), g.numpy().copy()
    distance = sim(*given)
    assert isinstance(distance, np.ndarray)
    assert all(isinstance(x, np.ndarray) for x in SIM().fit(given[1]).topk(given[0], 3))
    assert_close(torch.from_numpy(distance), sim(q, g), rtol=0, atol=0)
    assert np.array_equal(given[0], q.numpy())
    assert np.array_equal(given[1], g.numpy())


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(device, half):
    q, g = (x.to(device, half) for x in clustered(5))
    ours = sim(q, g, k1=5, k2=5)
    assert ours.dtype == torch.float32
    assert_close(ours.double(), sim(q.double(), g.double(), k1=5, k2=5), rtol=0, atol=1e-6)
    with torch.autocast(device.type, dtype=half):
        assert_close(sim(q.float(), g.float(), k1=5, k2=5), ours, rtol=0, atol=1e-6)


def test_blocks_change_nothing_and_bound_the_memory(monkeypatch):
    q, g = clustered(6, people=400, each=5)  # 400 x 2,000
    fitted = SIM(k1=10, k2=10).fit(g)
    expected = fitted.distance(q).sort(dim=1, stable=True)
    monkeypatch.setattr("vireid.rerank._blocks._BLOCK_BYTES", 2000 * 4 * 30)
    with LargestTensor() as largest:
        values, indices = fitted.topk(q, 10)
    assert 2000 * 30 <= largest.elements < 400 * 2000 / 4
    assert_close(values, expected.values[:, :10], rtol=0, atol=1e-6)
    assert (indices == expected.indices[:, :10]).double().mean() > 0.99  # up to near ties


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k1": 0}, ValueError, "k1 must be at least 1, got 0"),
        ({"k2": 1.5}, TypeError, "k2 must be an integer, got 1.5"),
        ({"lambda_value": 1.1}, ValueError, r"lambda_value must be in \[0, 1\], got 1.1"),
        ({"lambda_value": "a"}, TypeError, "lambda_value must be a number, got 'a'"),
        ({"lambda_value": True}, TypeError, "lambda_value must be a number, got True"),
        ({"lambda_value": float("nan")}, ValueError, r"lambda_value must be in \[0, 1\], got nan"),
    ],
)
def test_bad_settings(change, error, message):
    with pytest.raises(error, match=message):
        SIM(**change)


def test_bad_input():
    q, g = clustered(7)
    broken = g.clone()
    broken[2, 1] = torch.nan
    for arguments, message in (
        ((q, g[:0]), "gallery must hold at least one"),
        ((q, g[:, :3]), "gallery must have shape"),
        ((q, broken), "gallery must be finite"),
        ((broken, g), "query must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            sim(*arguments)
    with pytest.raises(RuntimeError, match="SIM must be fitted first"):
        SIM().distance(q)


def test_no_distance_is_below_zero():
    x = torch.randn(300, 64, generator=torch.Generator().manual_seed(0)).abs()
    for lambda_value in (0.3, 1.0):
        assert sim(x, x, lambda_value=lambda_value).min() >= 0
