import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from reference import reranking as oracle
from vireid.rerank import _sparse
from vireid.rerank.aim import AIM, AIM_SETTINGS, aim

VARIANTS = ("paper", "released")


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
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    nq=st.integers(1, 6),
    ng=st.integers(1, 18),
    k1=st.none() | st.integers(1, 20),
    k2=st.integers(1, 20),
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
    torch.testing.assert_close(got.double(), oracle.aim(q, g, **options), rtol=0, atol=tolerance)


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
        torch.testing.assert_close(got.cpu().double(), oracle.aim(x.cpu(), y.cpu(), **options), rtol=0, atol=tolerance)


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
@settings(max_examples=20, deadline=None)
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
            assert_close(aim(q, g, k1=None, **options), aim(q, g, k1=len(g), **options), rtol=0, atol=1e-12)
    fitted = AIM(k1=None, k2=3).fit(g[:15]).extend(g[15:])
    assert_close(fitted.distance(q), oracle.aim(q, g, k1=40, k2=3, variant="paper"), rtol=0, atol=1e-12)
    assert fitted.settings == {"k1": None, "k2": 3, "variant": "paper"}


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


def test_settings():
    assert AIM_SETTINGS["sysu_multi_shot"] == {"k1": 20, "k2": 6}
    assert AIM(**AIM_SETTINGS["regdb"]).settings == {"k1": 8, "k2": 2, "variant": "paper"}


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
    assert_close(
        distance, torch.tensor([[-1.0, 0.0, 1.0]])
    )  # with ties by index only, the released d* of both would be 1


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
