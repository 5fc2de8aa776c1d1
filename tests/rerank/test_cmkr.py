"""CMKR and MSER against plain loops of what their published code computes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from measuring import Sizes
from reference import cmkr as oracle
from vireid.neighbors import _exact
from vireid.rerank import _sparse, cmkr, k_reciprocal, mser

WAYS = ("joint", "constrained", "extended", "divided")


def clustered(nq, ng, d, *, per=10, noise=1.0, gap=1.0, seed=0):
    """Identities of two modalities, the images of each moved in a direction of their own."""
    r = torch.Generator().manual_seed(seed)
    centers = torch.randn(max(1, (nq + ng) // per), d, generator=r)
    x = centers[torch.randint(len(centers), (nq + ng,), generator=r)] + noise * torch.randn(nq + ng, d, generator=r)
    x[:nq] += gap * torch.randn(d, generator=r)
    return x[:nq], x[nq:]


@settings(max_examples=30, deadline=None)
@given(
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**31 - 1),
    nq=st.integers(0, 6),
    ng=st.integers(1, 7),
    neighbors=st.sampled_from(WAYS),
    k1=st.integers(1, 18),
    k2=st.integers(1, 7),
    k3=st.none() | st.integers(0, 7),
    lambda_value=st.sampled_from([0, 0.3]),
)
def test_cmkr_equals_plain_loops(device, dtype, seed, nq, ng, neighbors, k1, k2, k3, lambda_value):
    r = torch.Generator().manual_seed(seed)
    # small integers: many duplicates, ties and zero rows, in the same order for both as their sums are exact
    q, g = (torch.randint(-1, 2, (n, 3), generator=r).to(dtype) for n in (nq, ng))
    how = {"neighbors": neighbors, "k1": k1, "k2": k2, "lambda_value": lambda_value}
    how["k3"] = None if k3 is None or k3 > k2 or neighbors in ("constrained", "divided") else k3
    got = cmkr(q.to(device), g.to(device), **how)
    assert got.dtype == dtype
    wanted = oracle.cmkr(q, g, **how)
    assert_close(got.cpu().double(), wanted, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("neighbors", WAYS)
@pytest.mark.parametrize(("k1", "k2"), [(9, 4), (6, 1), (3, 60)])
def test_cmkr_equals_plain_loops_on_clusters(device, neighbors, k1, k2):
    q, g = (x.double() for x in clustered(17, 23, 8))
    how = {"neighbors": neighbors, "k1": k1, "k2": k2, "lambda_value": 0.3}
    assert_close(cmkr(q.to(device), g.to(device), **how).cpu(), oracle.cmkr(q, g, **how), rtol=0, atol=1e-12)


@pytest.mark.parametrize("k3", [0, 2, 4])
def test_the_multi_modal_expansion_equals_plain_loops(device, k3):
    q, g = (x.double() for x in clustered(17, 23, 8))
    how = {"neighbors": "extended", "k1": 6, "k2": 4, "k3": k3, "lambda_value": 0.1}
    assert_close(cmkr(q.to(device), g.to(device), **how).cpu(), oracle.cmkr(q, g, **how), rtol=0, atol=1e-12)


def test_joint_neighbors_are_k_reciprocal(device):
    q, g = (x.to(device) for x in clustered(60, 240, 16))
    assert_close(cmkr(q, g, neighbors="joint", k1=8, k2=4), k_reciprocal(q, g, k1=8, k2=4), rtol=0, atol=2e-6)


def test_no_option_is_without_effect():
    q, g = clustered(30, 40, 8)
    found = [cmkr(q, g, neighbors=way, k1=6, k2=3) for way in WAYS]
    found += [cmkr(q, g, k1=6, k2=3, k3=k3) for k3 in (0, 1)]
    found += [cmkr(q, g, k1=6, k2=3, lambda_value=0.1), mser(q, g, k1=6, k2=3)]
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(found) for b in found[:i])


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    nq=st.integers(0, 6),
    ng=st.integers(1, 6),
    k1=st.integers(1, 14),
    k2=st.integers(1, 7),
    spectra=st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
def test_mser_equals_plain_loops(device, seed, nq, ng, k1, k2, spectra):
    r = torch.Generator().manual_seed(seed)
    # small integers: many duplicates, ties and zero rows, in the same order for both as their sums are exact
    q, g = (
        [torch.randint(-1, 2, (n, 3), generator=r).double() for _ in range(1 + s)]
        for n, s in zip((nq, ng), spectra, strict=True)
    )
    how = {"k1": k1, "k2": k2, "lambda_value": 0.3}
    on = [[x.to(device) for x in xs] for xs in (q, g)]
    got = mser(on[0][0], on[1][0], **how, query_spectra=on[0][1:], gallery_spectra=on[1][1:])
    wanted = oracle.mser(q[0], g[0], **how, query_spectra=q[1:], gallery_spectra=g[1:])
    assert_close(got.cpu(), wanted, rtol=0, atol=1e-12)


def test_mser_on_clusters_and_its_copies(device):
    q, g = (x.double() for x in clustered(17, 23, 8))
    r = torch.Generator().manual_seed(1)
    others = [g + 0.3 * torch.randn(g.shape, generator=r, dtype=g.dtype) for _ in range(3)]
    how = {"k1": 6, "k2": 4, "lambda_value": 0.3}
    got = mser(q.to(device), g.to(device), **how, gallery_spectra=[x.to(device) for x in others])
    assert_close(got.cpu(), oracle.mser(q, g, **how, gallery_spectra=others), rtol=0, atol=1e-12)
    assert_close(mser(q, g, **how, gallery_spectra=[g, g]), mser(q, g, **how), rtol=0, atol=1e-12)
    values, indices = mser(q, g, **how, gallery_spectra=others, top=5)
    assert torch.equal(values, mser(q, g, **how, gallery_spectra=others).gather(1, indices))


METHODS = [(cmkr, {"neighbors": "constrained"}), (cmkr, {"k3": 2}), (mser, {})]


@pytest.mark.parametrize(("method", "change"), METHODS)
def test_the_size_of_blocks_does_not_matter(monkeypatch, method, change):
    q, g = clustered(30, 80, 16)
    wanted = method(q, g, k1=8, k2=4, **change)
    monkeypatch.setattr(_sparse, "_ENTRIES", 7)
    monkeypatch.setattr(_exact, "_BLOCK_BYTES", 3000)
    monkeypatch.setattr(_exact, "_tile", lambda device, m: 37)
    assert_close(method(q, g, k1=8, k2=4, **change), wanted, rtol=0, atol=1e-6)
    assert_close(method(q, g, k1=8, k2=4, top=5, **change)[0], wanted.sort(1).values[:, :5], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("method", "change"), METHODS)
def test_top_never_makes_all_distances(monkeypatch, method, change):
    monkeypatch.setattr(_sparse, "_ENTRIES", 2**12)
    monkeypatch.setattr(_exact, "_BLOCK_BYTES", 2**16)
    monkeypatch.setattr(_exact, "_tile", lambda device, m: 128)
    q, g = clustered(311, 1009, 8)  # primes: no other tensor has their product as its size
    with Sizes() as sparse:
        method(q, g, k1=6, k2=3, top=10, **change)
    assert 311 * 1009 not in sparse.seen
    assert max(sparse.seen | sparse.sparse) < 311 * 1009 / 2


@pytest.mark.parametrize(
    ("method", "change", "text"),
    [
        (
            cmkr,
            {"neighbors": "both"},
            "neighbors must be one of 'joint', 'constrained', 'extended', 'divided', got 'both'",
        ),
        (cmkr, {"k2": 3, "k3": 4}, "k3 must be at most k2, and goes with .*; got k3 4, k2 3 and 'extended'"),
        (cmkr, {"k3": 1, "neighbors": "divided"}, "k3 must be at most k2, and goes with .*'divided'"),
        (cmkr, {"k3": -1}, "k3 must be at least 0, got -1"),
        (
            mser,
            {"query_spectra": [torch.ones(1, 4)]},
            r"query_spectra\[0\] must have one row per row of query, 2 on cpu",
        ),
        (mser, {"gallery_spectra": [torch.ones(3, 5)]}, r"gallery_spectra\[0\] must have shape \(N, 4\), got \(3, 5\)"),
        (mser, {"gallery_spectra": [torch.full((3, 4), torch.nan)]}, r"gallery_spectra\[0\] must be finite"),
    ],
)
def test_bad_settings_are_named(method, change, text):
    with pytest.raises(ValueError, match=text):
        method(torch.ones(2, 4), torch.ones(3, 4), **change)
