import numpy as np
import pytest
import torch

from vireid.neighbors import ApproximateIndex, _faiss, approximate, recall, topk

METRICS = ("cosine", "euclidean", "dot")
FACTORIES = ("Flat", "HNSW32", "IVF8,Flat", "PQ4x4", "IVF4,PQ4x4", "SQ8")


@pytest.fixture(autouse=True)
def faiss():
    return pytest.importorskip("faiss")


def points(n, d=16, seed=0, dtype=torch.float32):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def score(q, g, metric):
    a, b = q.double(), g.double()
    if metric == "euclidean":
        return float((a - b).square().sum().sqrt())
    return float(a @ b) / (float(a.norm() * b.norm()) if metric == "cosine" else 1)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("factory", FACTORIES)
def test_found_rows_have_exact_values_and_order(factory, metric):
    g, q = points(400), points(7, seed=1)
    values, indices = ApproximateIndex(g, factory, metric=metric).topk(q, 6)
    assert values.shape == indices.shape == (7, 6)
    assert (values.dtype, indices.dtype) == (torch.float32, torch.int64)
    for i in range(7):
        there = indices[i] >= 0
        assert len(set(indices[i][there].tolist())) == there.sum()
        wanted = torch.tensor([score(q[i], g[j], metric) for j in indices[i][there].tolist()])
        torch.testing.assert_close(values[i][there], wanted, rtol=1e-6, atol=1e-6)
    assert (values.diff(dim=1) >= 0).all() if metric == "euclidean" else (values.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("metric", METRICS)
def test_a_search_that_misses_nothing_equals_topk_to_the_bit(metric):
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        g, q = points(400, dtype=dtype), points(5, seed=1, dtype=dtype)
        g[200:230] = g[:30]  # ties by index
        for factory, parameters in (("Flat", ""), ("IVF8,Flat", "nprobe=8"), ("HNSW32", "efSearch=400")):
            found = ApproximateIndex(g, factory, metric=metric, parameters=parameters).topk(q, 9, candidates=60)
            exact = topk(q, g, 9, metric=metric)
            assert torch.equal(found[0], exact[0])
            assert torch.equal(found[1], exact[1])
            assert recall(found[1], exact[1]) == 1


def test_more_candidates_and_wider_searches_find_more():
    g, q = points(3000, 32), points(40, 32, seed=1)
    exact = topk(q, g, 10)[1]
    coarse = ApproximateIndex(g, "PQ4x4")
    shares = [recall(coarse.topk(q, 10, candidates=c)[1], exact) for c in (10, 100, 1000, 5000)]
    assert shares == sorted(shares)
    assert shares[0] < 0.7
    assert shares[-1] == 1
    narrow, wide = (
        recall(ApproximateIndex(g, "IVF32,Flat", parameters=f"nprobe={n}").topk(q, 10)[1], exact) for n in (1, 8)
    )
    assert narrow < wide < 1


def test_rows_that_are_not_found_are_marked(monkeypatch):
    g, q = points(64), points(6, seed=1)
    for metric, worst in (("cosine", -torch.inf), ("euclidean", torch.inf)):
        index = ApproximateIndex(g, "IVF16,Flat", metric=metric)  # a search looks at one list of 16
        values, indices = index.topk(q, 40)
        missing = indices < 0
        assert missing[:, -1].all()
        assert not missing[:, 0].any()
        assert (indices[missing] == -1).all()
        assert (values[missing] == worst).all()
        assert torch.isfinite(values[~missing]).all()
        assert (missing.int().diff(dim=1) >= 0).all()  # at the end
        monkeypatch.setattr(approximate, "_CANDIDATES", 1)
        again = index.topk(q, 40)
        assert torch.equal(again[1], indices)
        assert torch.equal(again[0], values)


def test_zero_rows_one_row_and_large_k():
    g = points(50)
    g[7] = 0
    values, indices = ApproximateIndex(g, "Flat").topk(torch.zeros(1, 16), 100)
    assert values.tolist() == [[0.0] * 50]
    assert indices.tolist() == [list(range(50))]
    assert ApproximateIndex(g[:1], "HNSW8").topk(g[:1], 3)[1].tolist() == [[0]]
    assert ApproximateIndex(g, "Flat").topk(g[:0], 3)[1].shape == (0, 3)
    assert len(ApproximateIndex(g, "Flat")) == 50


def test_numpy_gives_numpy_and_inputs_stay():
    g, q = points(100).numpy(), points(3, seed=1).numpy()
    kept = g.copy(), q.copy()
    values, indices = ApproximateIndex(g, "Flat").topk(q, 4)
    assert isinstance(values, np.ndarray)
    assert isinstance(indices, np.ndarray)
    np.testing.assert_array_equal(indices, topk(q, g, 4)[1])
    np.testing.assert_array_equal(g, kept[0])
    np.testing.assert_array_equal(q, kept[1])


@pytest.mark.parametrize(
    ("factory", "settings", "text"),
    [
        ("nonsense", {}, r"factory must be an index of faiss for 'cosine' and d = 16, got 'nonsense': could not parse"),
        ("PQ5", {}, r"factory must be .* got 'PQ5': The dimension of the vector"),
        ("HNSW0", {}, r"factory must be .* got 'HNSW0'"),
        ("LSH", {}, r"factory must be .* for 'cosine'"),
        ("Flat", {"parameters": "nprobe=3"}, r"got 'Flat' with parameters 'nprobe=3': .*could not set"),
        ("IVF128,Flat", {}, r"gallery must be fit to train 'IVF128,Flat', got shape \(100, 16\): Number of train"),
        ("PQ8", {}, r"gallery must be fit to train 'PQ8', got shape \(100, 16\): Number of training"),
        ("IVF0,Flat", {}, r"gallery must be fit to train 'IVF0,Flat'"),
        ("Flat", {"metric": "l2"}, r"metric must be one of 'cosine', 'euclidean', 'dot', got 'l2'"),
    ],
)
def test_impossible_indexes_are_refused(factory, settings, text):
    with pytest.raises(ValueError, match=text):
        ApproximateIndex(points(100), factory, **settings)


def test_bad_arguments_are_named():
    for bad, error, text in (
        (torch.randn(0, 3), ValueError, "gallery must hold at least one row"),
        (torch.tensor([[torch.nan]]), ValueError, "gallery must be finite"),
        ([1.0], TypeError, "gallery must be a torch.Tensor"),
    ):
        with pytest.raises(error, match=text):
            ApproximateIndex(bad, "Flat")
    with pytest.raises(TypeError, match="factory must be a str, got int"):
        ApproximateIndex(points(9), 32)
    with pytest.raises(TypeError, match="parameters must be a str, got dict"):
        ApproximateIndex(points(9), "Flat", parameters={})
    index = ApproximateIndex(points(9), "Flat")
    for arguments, text in (
        ((points(2, 4), 3), r"query must have shape \(N, 16\), got \(2, 4\)"),
        ((points(2), 0), "k must be at least 1, got 0"),
        ((points(2) * torch.inf, 1), "query must be finite"),
        ((torch.empty(2, 16, device="meta"), 1), "query must be on the gallery's device, cpu, got meta"),
    ):
        with pytest.raises(ValueError, match=text):
            index.topk(*arguments)
    with pytest.raises(ValueError, match="candidates must be at least k=3, got 2"):
        index.topk(points(2), 3, candidates=2)


def test_recall_by_hand():
    exact = np.array([[1, 2, 3], [4, 5, 6]])
    assert recall(exact, exact) == 1
    assert recall(exact[:, ::-1].copy(), torch.tensor(exact)) == 1  # order does not count
    assert recall(np.array([[3, 9, 8], [-1, -1, -1]]), exact) == pytest.approx(1 / 6)
    assert recall(np.array([[7], [5]]), exact) == pytest.approx(1 / 6)  # fewer found than wanted
    assert recall(np.array([[3, 9, 8, 1, 2], [6, 0, 0, 0, 0]]), exact) == pytest.approx(4 / 6)  # 3 at 5
    assert recall(np.array([[0], [0]]), np.array([[9], [0]])) == 0.5


def test_recall_names_bad_indices():
    good = torch.tensor([[1, 2]])
    for bad in (torch.tensor([1]), torch.zeros(0, 2, dtype=torch.int64), torch.zeros(1, 0, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"approximate must have shape \(Nq, k\)"):
            recall(bad, good)
        with pytest.raises(ValueError, match=r"exact must have shape \(Nq, k\)"):
            recall(good, bad)
    with pytest.raises(ValueError, match="approximate and exact must have one row per query, got 2 and 1"):
        recall(good.repeat(2, 1), good)
    with pytest.raises(TypeError, match=r"approximate must hold integers, got torch\.float32"):
        recall(good.float(), good)


def test_the_flat_proposer_gives_the_largest_products():
    g, q = points(90), points(6, seed=1)
    propose = _faiss.flat_proposer(g, 12)
    values, indices = propose(q)
    wanted = (q @ g.T).topk(12, dim=1)
    torch.testing.assert_close(values, wanted.values)
    assert torch.equal(indices, wanted.indices)


def test_a_missing_faiss_names_the_extra(hidden):
    hidden("faiss")
    x = torch.eye(3)
    with pytest.raises(
        ImportError, match=r"^ApproximateIndex\(gallery, 'HNSW32'\) needs faiss: pip install 'vireid\[faiss\]'"
    ):
        ApproximateIndex(x, "HNSW32")
    with pytest.raises(ImportError, match=r"^backend='faiss' needs faiss: pip install 'vireid\[faiss\]'"):
        topk(x, x, 1, backend="faiss")


def test_tensors_on_a_gpu_need_its_faiss(faiss):
    if hasattr(faiss, "StandardGpuResources"):
        pytest.skip("this faiss has a GPU part")
    with pytest.raises(ImportError, match=r"needs faiss for the GPU .*vireid\[gpu\]"):
        _faiss.flat_proposer(torch.empty(3, 2, device="meta"), 1)


@pytest.mark.gpu
def test_on_the_gpu_faiss_proposes_in_place_and_torch_takes_over_for_large_k(faiss):
    if not hasattr(faiss, "StandardGpuResources"):
        pytest.skip("this faiss has no GPU part")
    g, q = points(5000, 32).cuda(), points(9, 32, seed=1).cuda()
    values, indices = _faiss.flat_proposer(g, 20)(q)
    assert indices.device.type == "cuda"
    torch.testing.assert_close(values, (q @ g.T).topk(20, dim=1).values, rtol=1e-3, atol=1e-3)
    assert _faiss.flat_proposer(g, _faiss.GPU_MAX_K) is not None
    assert _faiss.flat_proposer(g, _faiss.GPU_MAX_K + 1) is None
    for metric in METRICS:
        index = ApproximateIndex(g, "IVF16,Flat", metric=metric, parameters="nprobe=16")
        for k in (5, 1500, 3000):
            exact = topk(q, g, k, metric=metric)
            found = index.topk(q, k)
            assert found[1].device.type == "cuda"
            assert recall(found[1], exact[1]) > 0.99
    with pytest.raises(ValueError, match="factory must be an index of faiss"):
        ApproximateIndex(g, "HNSW32")
