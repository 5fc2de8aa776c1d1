import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from measuring import LargestTensor
from reference.neighbors import cosines, nearest
from vireid.rerank import _sparse
from vireid.rerank.aim import AIM, AIM_SETTINGS, aim

VARIANTS = ("paper", "released")


def keep(affinity, k1, *, of_itself=False):
    result = []
    for i, row in enumerate(affinity):
        kept = nearest(row, k1, i if of_itself else None)
        result.append([x if j in kept else 0.0 for j, x in enumerate(row)])
    return result


def expand(affinity, kept, k2):
    result = []
    for i, row in enumerate(affinity):
        near = nearest(row, k2, i)
        result.append([math.fsum(kept[n][j] for n in near) / len(near) for j in range(len(row))])
    return result


def unit(rows, noise=1e-7):
    """Rows scaled to length 1; one whose entries are all rounding is a zero row."""
    lengths = [math.sqrt(math.fsum(x * x for x in row)) if max(map(abs, row)) > noise else 0.0 for row in rows]
    return [[x / length if length else 0.0 for x in row] for row, length in zip(rows, lengths, strict=True)]


def times(a, b):
    return [[math.fsum(x * b[n][j] for n, x in enumerate(row)) for j in range(len(b[0]))] for row in a]


def transpose(a):
    return [list(column) for column in zip(*a, strict=True)]


def reference(query, gallery, *, k1, k2, variant, use_query_relations=False):
    """Spec 2.5 with dense lists and plain loops."""
    a_qg, a_gg = cosines(query, gallery), cosines(gallery, gallery)
    left, right = keep(a_qg, k1), expand(a_gg, keep(a_gg, k1, of_itself=True), k2)
    if use_query_relations:
        a_qq, a_gq = cosines(query, query), transpose(a_qg)
        among = expand(a_qq, keep(a_qq, k1, of_itself=True), k2)
        if variant == "paper":
            right = [*left, *right]
        else:
            right = [[*a, *b] for a, b in zip(keep(a_gq, k1), right, strict=True)]
        left = [[*a, *b] for a, b in zip(among, left, strict=True)]
    amended = times(left, right) if variant == "paper" else times(unit(left), transpose(unit(right)))
    result = [[1 - a - b for a, b in zip(*rows, strict=True)] for rows in zip(a_qg, amended, strict=True)]
    return torch.tensor(result, dtype=torch.float64)


def features(seed, nq=9, ng=40, d=6, dtype=torch.float64):
    """Small integers: cosines tie to the bit in any order of summation. With duplicates and a zero row in both sets."""
    r = torch.Generator().manual_seed(seed)
    q, g = (torch.randint(-2, 3, (n, d), generator=r).to(dtype) for n in (nq, ng))
    for x in (q, g):
        x[-1:] = 0
        x[len(x) // 2 : len(x) // 2 + 2] = x[:1]
    return q, g


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("use_query_relations", [False, True])
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    nq=st.integers(1, 8),
    ng=st.integers(1, 25),
    k1=st.integers(1, 30),
    k2=st.integers(1, 30),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    dense=st.sampled_from([0, 10**9]),
)
def test_equals_the_plain_loops_with_ties_duplicates_and_zero_rows(
    variant, use_query_relations, seed, nq, ng, k1, k2, dtype, dense
):
    q, g = features(seed, nq, ng, dtype=dtype)
    options = {"k1": k1, "k2": k2, "variant": variant, "use_query_relations": use_query_relations}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_sparse, "_DENSE", dense)  # always by entries, or always by a matrix product
        got = aim(q, g, **options)
    assert got.dtype == dtype
    tolerance = 2e-5 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(got.double(), reference(q, g, **options), rtol=0, atol=tolerance)


@pytest.mark.parametrize("setting", AIM_SETTINGS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_plain_loops_on_clusters_in_the_papers_settings(variant, setting, device):
    r = torch.Generator().manual_seed(1)
    centers = torch.randn(6, 16, generator=r, dtype=torch.float64)
    g = centers.repeat_interleave(12, 0) + torch.randn(72, 16, generator=r, dtype=torch.float64)
    q = centers + torch.randn(6, 16, generator=r, dtype=torch.float64)
    options = {**AIM_SETTINGS[setting], "variant": variant}
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        x, y = q.to(device, dtype), g.to(device, dtype)
        got = aim(x, y, **options)
        assert got.device == x.device
        torch.testing.assert_close(got.cpu().double(), reference(x.cpu(), y.cpu(), **options), rtol=0, atol=tolerance)


def test_by_hand():
    """Cosines of the gallery: 0.6 and 0 with the first image, 0.8 between the others."""
    q, g = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 3.0]])
    # Â_q = (1, 0.6, 0), Â = (1, 0.6, 0), (0, 1, 0.8), (0, 0.8, 1)
    got = aim(q, g, k1=2, k2=1)
    torch.testing.assert_close(got, torch.tensor([[1 - 1 - 1, 1 - 0.6 - (0.6 + 0.6), 1 - 0 - 0.6 * 0.8]]))
    # the two nearest of image 1 are itself and image 2: Ã_1 = (0, 0.9, 0.9)
    got = aim(q, g, k1=2, k2=2)
    torch.testing.assert_close(got, torch.tensor([[-0.5, 0.4 - (0.8 + 0.54), 1 - (0.4 + 0.54)]]))
    long, short = math.sqrt(1.36), math.sqrt(1.64)
    wanted = [0 - 1.0, 0.4 - 0.6 / long / short, 1 - 0.48 / long / short]
    torch.testing.assert_close(aim(q, g, k1=2, k2=1, variant="released"), torch.tensor([wanted]))


def test_a_negative_cosine_that_is_kept_keeps_its_value():
    q, g = torch.tensor([[-1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    assert aim(q, g, k1=1, k2=1).tolist() == [[1 + 1 + 1]]
    assert aim(q, g, k1=1, k2=1, variant="released").tolist() == [[1 + 1 + 1]]


def test_exactly_k1_are_kept_of_ties_lowest_index_first():
    q, g = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert aim(q, g, k1=2, k2=1).tolist() == [[1.0, -2.0, -2.0, 0.0]]  # Â_q: 1 and 2; Â_2: itself and 1


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), chosen=st.lists(st.integers(0, 8), min_size=1, max_size=9))
def test_a_query_is_answered_the_same_whatever_others_are_there(variant, seed, chosen):
    r = torch.Generator().manual_seed(seed)
    q, g = torch.randn(9, 6, generator=r), torch.randn(30, 6, generator=r)
    whole = aim(q, g, k1=5, k2=3, variant=variant)
    some = aim(q[chosen], g, k1=5, k2=3, variant=variant)
    torch.testing.assert_close(some, whole[chosen], rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    d=st.integers(2, 70),
    k1=st.sampled_from([1, 2, 5, None]),
    k2=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_cosines_that_are_rounding_count_as_zero_in_a_batch_and_alone(variant, seed, d, k1, k2, dtype):
    """Queries orthogonal to all or most of the gallery, up to the rounding of their type, with duplicates and zeros."""
    r = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d, d, generator=r, dtype=torch.float64))[0]
    low = basis[:, : max(1, d // 2)]
    g = torch.randn(7, low.shape[1], generator=r, dtype=torch.float64) @ low.T
    q = torch.randn(6, d - low.shape[1], generator=r, dtype=torch.float64) @ basis[:, low.shape[1] :].T
    g[2], g[3], g[4], q[1], q[2], q[3] = g[0], 0, -g[1], q[0], 0, q[4] + 1e-3 * g[0]
    q, g = q.to(dtype), g.to(dtype)
    fitted = AIM(k1=k1, k2=k2, variant=variant).fit(g)
    together = aim(q, g, k1=k1, k2=k2, variant=variant)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert_close(together[[0, 1, 2, 4, 5]], torch.ones(5, 7, dtype=dtype), rtol=0, atol=tolerance)
    assert torch.equal(together, fitted.distance(q))
    for i in range(6):
        assert_close(fitted.distance(q[i : i + 1])[0], together[i], rtol=0, atol=tolerance)


def test_the_whole_gallery_is_kept_without_removing():
    q, g = features(5)
    for variant in VARIANTS:
        for relations in (False, True):
            options = {"k2": 3, "variant": variant, "use_query_relations": relations}
            assert torch.equal(aim(q, g, k1=None, **options), aim(q, g, k1=len(g), **options))
    fitted = AIM(k1=None, k2=3).fit(g[:15]).extend(g[15:])
    assert_close(fitted.distance(q), reference(q, g, k1=40, k2=3, variant="paper"), rtol=0, atol=1e-12)
    assert fitted.settings == {"k1": None, "k2": 3, "variant": "paper"}


def test_query_relations_make_it_depend_on_the_others():
    q, g = torch.randn(9, 6), torch.randn(30, 6)
    rank = functools.partial(aim, k1=5, k2=3, use_query_relations=True)
    assert not torch.allclose(rank(q, g)[:1], rank(q[:1], g), atol=1e-3)


@pytest.mark.parametrize("dense", [0, 10**9])  # always by entries, always by a matrix product
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("use_query_relations", [False, True])
def test_blocks_of_every_size_give_the_same(monkeypatch, variant, use_query_relations, dense):
    monkeypatch.setattr(_sparse, "_DENSE", dense)
    r = torch.Generator().manual_seed(3)
    q, g = torch.randn(13, 6, generator=r), torch.randn(50, 6, generator=r)
    options = {"k1": 7, "k2": 4, "variant": variant, "use_query_relations": use_query_relations}
    whole = aim(q, g, **options)
    for entries in (1, 5, 100):
        monkeypatch.setattr(_sparse, "_ENTRIES", entries)
        monkeypatch.setattr("vireid.rerank._blocks._BLOCK_BYTES", 50 * 4 * entries)
        monkeypatch.setattr("vireid.neighbors._exact._BLOCK_BYTES", 50 * 4 * entries)
        torch.testing.assert_close(aim(q, g, **options), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dense", [0, 10**9])
@pytest.mark.parametrize("variant", VARIANTS)
def test_sparse_product_equals_the_dense_one_with_empty_rows(monkeypatch, variant, dense):
    monkeypatch.setattr(_sparse, "_DENSE", dense)
    r = torch.Generator().manual_seed(4)
    a, b = (torch.randn(n, m, generator=r) * (torch.rand(n, m, generator=r) < 0.2) for n, m in ((7, 30), (30, 11)))
    b[::3] = 0

    def sparse(x):
        row, column = x.nonzero().T
        start = torch.searchsorted(row, torch.arange(len(x) + 1))
        return _sparse.Sparse(start, column, x[row, column], x.shape[1])

    block = torch.ones(7, 11)
    right = sparse(b) if variant == "paper" else sparse(b.T.contiguous()).transpose()
    _sparse.subtract_product(block, sparse(a), right)
    torch.testing.assert_close(block, 1 - a @ b)
    _sparse.subtract_product(block, sparse(torch.zeros(7, 30)), right)
    _sparse.subtract_product(block, sparse(a), sparse(torch.zeros(30, 11)))
    torch.testing.assert_close(block, 1 - a @ b)


@pytest.mark.parametrize("variant", VARIANTS)
def test_zero_rows_and_one_image_give_no_nan(variant):
    for q, g in ((torch.zeros(2, 3), torch.zeros(4, 3)), (torch.zeros(1, 3), torch.ones(1, 3))):
        for relations in (False, True):
            got = aim(q, g, k1=3, k2=2, variant=variant, use_query_relations=relations)
            assert torch.equal(got, torch.ones(len(q), len(g)))


@pytest.mark.parametrize("relations", [False, True])
def test_no_query(relations):
    got = aim(np.empty((0, 3), np.float32), np.ones((4, 3), np.float32), k1=2, k2=1, use_query_relations=relations)
    assert isinstance(got, np.ndarray)
    assert got.shape == (0, 4)


@pytest.mark.parametrize("relations", [False, True])
def test_half_precision_numpy_autocast_and_gradients(relations):
    q, g = torch.randn(5, 8), torch.randn(20, 8)
    kept = q.clone(), g.clone()
    rank = functools.partial(aim, k1=4, k2=2, use_query_relations=relations)
    wanted = rank(q, g)
    assert torch.equal(q, kept[0])
    assert torch.equal(g, kept[1])
    for half in (torch.float16, torch.bfloat16):
        low = rank(q.to(half), g.to(half))
        assert low.dtype == torch.float32
        torch.testing.assert_close(low, rank(q.to(half).float(), g.to(half).float()), rtol=0, atol=1e-6)
    array = rank(q.numpy(), g.numpy())
    assert isinstance(array, np.ndarray)
    np.testing.assert_array_equal(array, wanted.numpy())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = rank(q.requires_grad_(), g.requires_grad_())
    assert torch.equal(mixed, wanted)
    assert not mixed.requires_grad


def test_uses_and_settings():
    assert aim.uses == AIM.uses == AIM(k1=4, k2=1).uses == "gallery"
    assert AIM_SETTINGS["sysu_multi_shot"] == {"k1": 20, "k2": 6}
    assert AIM(**AIM_SETTINGS["regdb"]).settings == {"k1": 8, "k2": 2, "variant": "paper"}


@pytest.mark.parametrize("relations", [False, True])
@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"gallery": torch.empty(0, 3)}, ValueError, r"gallery must hold at least one row, got shape \(0, 3\)"),
        ({"gallery": torch.ones(4, 2)}, ValueError, r"gallery must have shape \(N, 3\), got \(4, 2\)"),
        ({"query": torch.ones(3)}, ValueError, r"query must have shape \(N, d\), got \(3,\)"),
        ({"query": [[1.0]]}, TypeError, "query must be a torch.Tensor or a numpy.ndarray, got list"),
        ({"query": torch.ones(2, 3, dtype=torch.int64)}, TypeError, "query must be floating point, got torch.int64"),
        ({"query": torch.tensor([[1.0, 2.0, float("nan")]])}, ValueError, "query must be finite.*1 of 1 rows"),
        ({"gallery": torch.tensor([[1.0, 2.0, float("inf")]])}, ValueError, "gallery must be finite.*row 0"),
        ({"gallery": torch.ones(4, 3, device="meta")}, ValueError, "on one device, got cpu and meta"),
        ({"k1": 0}, ValueError, "k1 must be at least 1, got 0"),
        ({"k2": 1.5}, TypeError, "k2 must be an integer, got 1.5"),
        ({"variant": "code"}, ValueError, "variant must be one of 'paper', 'released', got 'code'"),
    ],
)
def test_bad_input_is_named(change, error, text, relations):
    arguments = {"query": torch.ones(2, 3), "gallery": torch.ones(4, 3), "k1": 2, "k2": 1} | change
    with pytest.raises(error, match=text):
        aim(**arguments, use_query_relations=relations)


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("relations", [False, True])
def test_gpu_equals_cpu(variant, relations):
    r = torch.Generator().manual_seed(7)
    centers = torch.randn(30, 64, generator=r)
    g = centers.repeat_interleave(20, 0) + torch.randn(600, 64, generator=r)
    q = centers + torch.randn(30, 64, generator=r)
    rank = functools.partial(aim, k1=20, k2=6, variant=variant, use_query_relations=relations)
    got = rank(q.cuda(), g.cuda())
    assert got.is_cuda
    torch.testing.assert_close(got.cpu(), rank(q, g), rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_of_equal_images_each_keeps_itself(variant):
    gallery = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    distance = aim(torch.tensor([[1.0, 0.0]]), gallery, k1=1, k2=1, variant=variant)
    assert_close(distance, torch.tensor([[-1.0, 0.0, 1.0]]))  # by index alone, the released d* of both would be 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_query_relations_of_queries_beyond_the_range_of_the_gallerys_type(variant):
    r = torch.Generator().manual_seed(8)
    q, g = torch.randn(6, 5, generator=r).double(), torch.randn(20, 5, generator=r)
    options = {"k1": 4, "k2": 2, "variant": variant, "use_query_relations": True}
    for scale in (1e60, 1e-60):
        assert_close(aim(q * scale, g, **options), aim(q, g, **options), rtol=0, atol=1e-6)
    q[2, 1] = torch.nan
    with pytest.raises(ValueError, match="query must be finite"):
        aim(q, g, **options)


@pytest.mark.parametrize("variant", VARIANTS)
def test_topk_keeps_a_block_and_no_matrix(monkeypatch, variant):
    r = torch.Generator().manual_seed(9)
    q, g = torch.randn(400, 8, generator=r), torch.randn(2000, 8, generator=r)
    fitted = AIM(k1=5, k2=2, variant=variant).fit(g)
    expected = fitted.distance(q).sort(dim=1, stable=True).values
    monkeypatch.setattr("vireid.rerank._blocks._BLOCK_BYTES", 2000 * 4 * 30)
    with LargestTensor() as largest:
        values, _ = fitted.topk(q, 10)
    assert 2000 * 30 <= largest.elements < 400 * 2000 / 4
    assert_close(values, expected[:, :10], rtol=0, atol=1e-5)
