import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import metrics as oracle
from vireid.metrics import affinity_error_rate, affinity_quality, diagnostics, feature_margin, rank_metrics, ranking


@pytest.mark.parametrize("cmc_over", ["images", "identities"])
@pytest.mark.parametrize("exclude", [None, "same_camera", "same_id_same_camera"])
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    nq=st.integers(1, 9),
    ng=st.integers(1, 14),
    ids=st.integers(1, 5),
    cams=st.integers(1, 4),
    levels=st.integers(1, 12),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    part=st.sampled_from([8, 16, 64, 2048]),  # parts of 1 to 512 entries; rows of too many matches stay whole
    block=st.sampled_from([1, 40, 2**20]),
)
def test_equals_the_loop_with_many_ties(exclude, cmc_over, seed, nq, ng, ids, cams, levels, dtype, part, block):
    r = np.random.default_rng(seed)
    distance = r.integers(-levels, levels, (nq, ng)).astype(dtype)
    distance[distance == 0] *= r.choice([-1, 1])  # -0 and 0 are equal
    q_ids, g_ids = r.integers(-1, ids, nq), r.integers(0, ids, ng) * 7
    q_ids = q_ids * 7
    q_cams, g_cams = r.integers(cams, size=nq), r.integers(cams, size=ng)
    arguments = (distance, q_ids, g_ids, q_cams, g_cams)
    wanted = oracle.rank_metrics(*(x.tolist() for x in arguments), exclude, cmc_over)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_PART_BYTES", part)
        patch.setattr(ranking, "_BLOCK", block)
        if not wanted:
            with pytest.raises(ValueError, match="no query has a true match"):
                rank_metrics(*arguments, exclude=exclude, cmc_over=cmc_over)
            return
        got = rank_metrics(*arguments, exclude=exclude, cmc_over=cmc_over)
    np.testing.assert_allclose(got.cmc, wanted[0], rtol=0, atol=1e-12)
    assert got.mAP == pytest.approx(wanted[1], rel=0, abs=1e-12)
    assert got.mINP == pytest.approx(wanted[2], rel=0, abs=1e-12)
    assert (got.valid_queries, got.queries, got.skipped) == (wanted[3], nq, nq - wanted[3])
    assert np.isnan(got.average_precision).sum() == np.isnan(got.inverse_negative_penalty).sum() == got.skipped
    assert (got.first_match == 0).sum() == got.skipped


def scene(seed=0, nq=30, ng=50, dtype=torch.float32):
    r = torch.Generator().manual_seed(seed)
    labels = (torch.randint(n, (m,), generator=r) for n, m in ((8, nq), (8, ng), (3, nq), (3, ng)))
    return torch.rand(nq, ng, generator=r, dtype=dtype), *labels


@pytest.mark.parametrize("cmc_over", ["images", "identities"])
def test_blocks_gallery_order_and_monotone_maps_do_not_matter(monkeypatch, cmc_over):
    distance, q, g, qc, gc = scene()
    settings = {"exclude": "same_camera", "cmc_over": cmc_over}
    whole = rank_metrics(distance, q, g, qc, gc, **settings)
    order = torch.randperm(len(g), generator=torch.Generator().manual_seed(1))
    moved = rank_metrics(distance[:, order], q, g[order], qc, gc[order], **settings)
    bent = rank_metrics(distance.double() * 3 - 8, q, g, qc, gc, **settings)
    monkeypatch.setattr(ranking, "_BLOCK", 120)
    blocks = rank_metrics(distance, q, g, qc, gc, **settings)
    for other in (moved, bent, blocks):
        assert torch.equal(other.cmc, whole.cmc)
        assert torch.equal(other.average_precision, whole.average_precision)
        assert torch.equal(other.first_match, whole.first_match)
        assert (other.mAP, other.mINP) == (whole.mAP, whole.mINP)


@pytest.mark.parametrize(("decimals", "dtype"), [(2, np.float64), (9, np.float32), (9, np.float64)])
@pytest.mark.parametrize("cmc_over", ["images", "identities"])
@pytest.mark.parametrize("exclude", [None, "same_camera", "same_id_same_camera"])
def test_long_rows_equal_the_loop(exclude, cmc_over, decimals, dtype):
    """Several parts of 512 entries a row, identities of 1 to 300 images, few ties and many."""
    r = np.random.default_rng(decimals)
    g_ids = r.permutation(np.repeat([3, -8, 40, 11, 7, 5, 9], [300, 1, 5, 200, 600, 19, 30]))
    q_ids = np.array([3, 40, -8, 99, 5, 9, 40, 5])
    q_cams, g_cams = r.integers(3, size=len(q_ids)), r.integers(3, size=len(g_ids))
    distance = r.normal(size=(len(q_ids), len(g_ids))).round(decimals).astype(dtype)
    wanted = oracle.rank_metrics(*(x.tolist() for x in (distance, q_ids, g_ids, q_cams, g_cams)), exclude, cmc_over)
    got = rank_metrics(distance, q_ids, g_ids, q_cams, g_cams, exclude=exclude, cmc_over=cmc_over)
    np.testing.assert_allclose(got.cmc, wanted[0], rtol=0, atol=1e-12)
    assert (got.mAP, got.mINP) == (pytest.approx(wanted[1], abs=1e-12), pytest.approx(wanted[2], abs=1e-12))
    assert got.first_match[3] == 0


def test_bfloat16_keeps_its_own_order():
    distance, q, g, _, _ = scene(2)
    half = distance.bfloat16()  # many ties
    wanted = oracle.rank_metrics(half.tolist(), q.tolist(), g.tolist(), None, None, None, "identities")
    got = rank_metrics(half, q, g, cmc_over="identities")
    torch.testing.assert_close(got.cmc, torch.tensor(wanted[0], dtype=torch.float64), rtol=0, atol=1e-12)
    assert got.mAP == pytest.approx(wanted[1], rel=0, abs=1e-12)


def test_by_hand():
    #           rank:   1    2    3    4    5
    distance = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5]])
    ids, cams = torch.tensor([5, 5, 9, 7, 7]), torch.tensor([1, 2, 3, 1, 2])
    m = rank_metrics(distance, torch.tensor([7]), ids)
    assert m.cmc.tolist() == [0, 0, 0, 1, 1]
    assert m.mAP == pytest.approx((1 / 4 + 2 / 5) / 2)
    assert m.mINP == pytest.approx(2 / 5)
    assert (m.rank(1), m.rank(4), m.rank(20)) == (0.0, 1.0, 1.0)
    assert m.first_match.tolist() == [4]
    m = rank_metrics(distance, torch.tensor([7]), ids, cmc_over="identities")
    assert m.cmc.tolist() == [0, 0, 1]  # identities in order: 5, 9, 7
    m = rank_metrics(distance, torch.tensor([7]), ids, torch.tensor([1]), cams, exclude="same_camera")
    assert m.cmc.tolist() == [0, 0, 1, 1, 1]  # left: 5, 9, 7
    assert (m.mAP, m.mINP) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    m = rank_metrics(distance, torch.tensor([7]), ids, torch.tensor([1]), cams, exclude="same_id_same_camera")
    assert m.mAP == pytest.approx(1 / 4)  # left: 5, 5, 9, 7
    m = rank_metrics(torch.zeros(1, 5), torch.tensor([7]), ids)
    assert m.mAP == pytest.approx((1 / 4 + 2 / 5) / 2)  # all tied: gallery index decides


def test_inputs_stay_and_kinds_are_kept():
    distance, q, g, qc, gc = scene(3)
    kept = distance.clone()
    m = rank_metrics(distance, q, g, qc, gc, exclude="same_camera")
    assert torch.equal(distance, kept)
    assert isinstance(m.cmc, torch.Tensor)
    assert m.cmc.dtype == torch.float64
    n = rank_metrics(distance.numpy(), q.numpy(), g.numpy(), qc.numpy(), gc.numpy(), exclude="same_camera")
    assert isinstance(n.cmc, np.ndarray)
    np.testing.assert_array_equal(n.cmc, m.cmc.numpy())
    assert np.all(np.diff(n.cmc) >= 0)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"distance": torch.ones(2)}, ValueError, "distance must have shape"),
        ({"distance": torch.ones(0, 3), "query_ids": torch.ones(0).long()}, ValueError, "distance must have at least"),
        ({"distance": torch.full((2, 3), float("nan"))}, ValueError, "distance must be finite"),
        ({"distance": torch.tensor([[1, 2, 3], [1, 2, float("inf")]])}, ValueError, "distance must be finite.*row 1"),
        ({"query_ids": torch.tensor([1])}, ValueError, r"query_ids must have shape \(2,\)"),
        ({"gallery_ids": torch.ones(3)}, TypeError, "gallery_ids must hold integers"),
        ({"exclude": "camera"}, ValueError, "exclude must be one of .* got 'camera'"),
        ({"cmc_over": "id"}, ValueError, "cmc_over must be one of .* got 'id'"),
        ({"exclude": "same_camera"}, ValueError, "exclude='same_camera' needs query_cameras, got None"),
        ({"query_ids": torch.tensor([8, 9])}, ValueError, "no query has a true match"),
    ],
)
def test_bad_input_is_named(change, error, text):
    arguments = {
        "distance": torch.ones(2, 3),
        "query_ids": torch.tensor([1, 2]),
        "gallery_ids": torch.tensor([1, 2, 3]),
    } | change
    with pytest.raises(error, match=text):
        rank_metrics(**arguments)


def test_rank_below_one_is_refused():
    m = rank_metrics(torch.ones(1, 1), torch.tensor([1]), torch.tensor([1]))
    with pytest.raises(ValueError, match="r must be at least 1, got 0"):
        m.rank(0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), n=st.integers(3, 12), ids=st.integers(1, 5), block=st.integers(1, 40))
def test_diagnostics_equal_loops(seed, n, ids, block):
    r = np.random.default_rng(seed)
    y, x, a = r.integers(ids, size=n), r.normal(size=(n, 3)), r.integers(0, 6, (n, n)).astype(float)
    z = r.integers(ids, size=n)
    margins, right, wrong = [], [], 0
    for i in range(n):
        positive = [j for j in range(n) if y[j] == y[i] and j != i]
        negative = [j for j in range(n) if y[j] != y[i]]
        if positive and negative:
            away = np.mean([np.linalg.norm(x[i] - x[j]) for j in negative])
            margins.append(away - np.mean([np.linalg.norm(x[i] - x[j]) for j in positive]))
            right.append(min(a[i, j] for j in positive) > max(a[i, j] for j in negative))
        kept = sorted(range(n), key=lambda j: (-a[i, j], j))[:4]
        wrong += sum((j in kept) != (y[i] == z[j]) for j in range(n))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagnostics, "_BLOCK", block)
        assert affinity_error_rate(a, y, z) == pytest.approx(wrong / n**2, abs=1e-12)
        if margins:
            assert feature_margin(x, y) == pytest.approx(np.mean(margins), abs=1e-12)
            assert affinity_quality(a, y) == pytest.approx(np.mean(right), abs=1e-12)
        else:
            for function, values in ((feature_margin, x), (affinity_quality, a)):
                with pytest.raises(ValueError, match="labels must hold an identity with two rows"):
                    function(values, y)


def test_diagnostics_by_hand():
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [3.0, 0.0], [3.0, 1.0]])
    y = torch.tensor([0, 0, 1, 1])
    assert feature_margin(x, y) == pytest.approx((3 + 10**0.5) / 2 - 1)
    same = (y[:, None] == y).float()
    assert affinity_quality(same, y) == 1.0
    assert affinity_quality(1 - same, y) == 0.0
    assert affinity_error_rate(same, y, k=2) == 0.0
    assert affinity_error_rate(same, y, k=99) == 0.5  # all predicted, half of them right
    near = torch.tensor([[1000.0], [1000.0001], [1001.0]], dtype=torch.float64)
    assert feature_margin(near, torch.tensor([0, 0, 1])) == pytest.approx(0.99985, abs=1e-9)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: feature_margin(torch.ones(3, 2), torch.ones(2).long()), ValueError, r"labels must have shape \(3,\)"),
        (lambda: feature_margin(torch.empty(0, 2), torch.empty(0).long()), ValueError, "labels must hold"),
        (lambda: affinity_quality(torch.ones(3, 2), torch.ones(3).long()), ValueError, "affinity must be square"),
        (lambda: affinity_error_rate(torch.ones(3, 2), torch.ones(3).long()), ValueError, "query_labels must have"),
        (lambda: affinity_error_rate(torch.ones(1, 1), torch.ones(1).long(), k=0), ValueError, "k must be at least 1"),
        (
            lambda: affinity_error_rate(torch.ones(0, 1), torch.ones(0).long()),
            ValueError,
            "affinity must have at least",
        ),
        (lambda: affinity_error_rate([[1.0]], torch.ones(1).long()), TypeError, "affinity must be a torch.Tensor or"),
    ],
)
def test_bad_diagnostics_are_named(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_cameras_are_named_where_they_leave_no_match_and_checked_where_they_are_not_used():
    ids, zeros, d = torch.arange(4) % 2, torch.zeros(4, dtype=torch.int64), torch.rand(4, 4)
    for exclude in ("same_camera", "same_id_same_camera"):
        text = f"query_cameras must differ from gallery_cameras .* exclude='{exclude}' leaves none to the 4 queries"
        with pytest.raises(ValueError, match=text):
            rank_metrics(d, ids, ids, zeros, zeros, exclude=exclude)
        text = "query_cameras must differ .* leaves none to the 2 queries"
        with pytest.raises(ValueError, match=text):  # the other two have no identity in the gallery
            rank_metrics(d, ids, ids * 3, zeros, zeros, exclude=exclude)
        with pytest.raises(ValueError, match="query_ids must share an identity with gallery_ids"):
            rank_metrics(d, ids, ids + 9, zeros, zeros, exclude=exclude)
        found = rank_metrics(d, ids, ids, zeros, torch.tensor([0, 0, 1, 0]), exclude=exclude)
        assert (found.valid_queries, found.first_match[1]) == (2, 0)
    with pytest.raises(TypeError, match="query_cameras must hold integers"):
        rank_metrics(d, ids, ids, zeros / 2, zeros)
    with pytest.raises(ValueError, match="gallery_cameras must have shape"):
        rank_metrics(d, ids, ids, zeros, zeros[1:])


def test_identities_beyond_int64_and_views_backwards():
    d, ids = np.random.default_rng(0).random((3, 3)), np.arange(3)
    big = ids.astype(np.uint64) + 2**63
    for wrong in (big, torch.from_numpy(big)):
        with pytest.raises(ValueError, match=r"query_ids must be below 2\*\*63, got 9223372036854775810"):
            rank_metrics(d, wrong, ids)
    assert rank_metrics(d, ids.astype(np.uint64), torch.from_numpy(ids.astype(np.uint64))).valid_queries == 3
    for rows in (slice(None), slice(1)):  # NumPy calls one reversed row contiguous
        a = rank_metrics(d[rows][::-1, ::-1], ids[rows][::-1], ids[::-1])
        b = rank_metrics(d[rows][::-1, ::-1].copy(), ids[rows][::-1].copy(), ids[::-1].copy())
        assert a.mAP == b.mAP


def test_margin_is_that_of_the_scaled_features():
    x, y = torch.randn(12, 3, dtype=torch.float64), torch.arange(12) % 3
    for scale in (2.0**1000, 2.0**-1060):
        assert feature_margin(x * scale, y) / scale == pytest.approx(feature_margin(x, y), rel=1e-3)
    assert feature_margin(x * 0, y) == 0
