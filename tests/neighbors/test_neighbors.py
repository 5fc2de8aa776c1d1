import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import neighbors as oracle
from vireid.neighbors import _exact as neighbors
from vireid.neighbors import _scores, _topk, topk

METRICS = ("cosine", "euclidean", "dot")
BACKENDS = ("torch", "faiss")


def same(a, b):
    return all(map(torch.equal, a, b))


def need(backend):
    if backend == "faiss":
        pytest.importorskip("faiss")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    nq=st.integers(1, 7),
    ng=st.integers(1, 60),
    d=st.integers(1, 9),
    k=st.integers(1, 70),
    top=st.integers(0, 3),
)
def test_integer_features_with_many_ties_equal_a_stable_sort(backend, metric, seed, nq, ng, d, k, top):
    need(backend)
    r = torch.Generator().manual_seed(seed)
    q, g = (torch.randint(-top, top + 1, (n, d), generator=r).float() for n in (nq, ng))
    values, indices = topk(q, g, k, metric=metric, backend=backend, block=3)
    wanted, order = oracle.topk(q, g, k, metric)
    assert torch.equal(indices, order)  # integer sums are exact, so even ties of the cosine agree to the bit
    assert torch.equal(values, wanted.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("metric", METRICS)
def test_real_features_equal_the_reference_in_every_dtype(metric, dtype):
    r = torch.Generator().manual_seed(1)
    q, g = (torch.randn(n, 33, generator=r, dtype=torch.float64).to(dtype) for n in (9, 300))
    kept = q.clone(), g.clone()
    values, indices = topk(q, g, 12, metric=metric)
    wanted, order = oracle.topk(q, g, 12, metric)
    assert torch.equal(indices, order)
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert indices.dtype == torch.int64
    torch.testing.assert_close(values.double(), wanted, rtol=1e-12 if dtype == torch.float64 else 1e-6, atol=1e-7)
    assert torch.equal(q, kept[0])
    assert torch.equal(g, kept[1])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_backends_agree_to_the_bit_with_duplicates_zero_rows_and_near_ties(metric, dtype):
    need("faiss")
    r = torch.Generator().manual_seed(2)
    base = torch.randn(40, 65, generator=r, dtype=dtype)
    near = base[:10] * (1 + 1e-7) if dtype == torch.float32 else base[:10] + 1e-12
    g = torch.cat([base, base.flip(0), torch.zeros(15, 65, dtype=dtype), base[:1].repeat(30, 1), near])
    q = torch.cat([base[:5], torch.zeros(2, 65, dtype=dtype), torch.randn(6, 65, generator=r, dtype=dtype)])
    first = topk(q, g, 7, metric=metric, backend="torch")
    second = topk(q, g, 7, metric=metric, backend="faiss")
    assert same(first, second)
    if metric == "euclidean":
        assert first[1][0].tolist() == [0, 79, 95, 96, 97, 98, 99]  # every copy of the query, by index
        assert first[0][0].tolist() == [0.0] * 7
    if metric == "cosine":
        assert first[1][5].tolist() == list(range(7))  # a zero query is at similarity 0 of all: ties by index
        assert first[0][5].tolist() == [0.0] * 7


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_block_sizes_and_other_queries_do_not_matter(metric, backend):
    need(backend)
    r = torch.Generator().manual_seed(3)
    q, g = torch.randn(11, 130, generator=r), torch.randn(90, 130, generator=r)
    g[50:] = g[:40]
    whole = topk(q, g, 5, metric=metric, backend=backend)
    for block in (1, 2, 7, 100):
        again = topk(q, g, 5, metric=metric, backend=backend, block=block)
        assert same(whole, again)
    for i in range(len(q)):
        alone = topk(q[i : i + 1], g, 5, metric=metric, backend=backend)
        assert torch.equal(alone[0][0], whole[0][i])
        assert torch.equal(alone[1][0], whole[1][i])


def test_small_memory_blocks_give_the_same(monkeypatch):
    r = torch.Generator().manual_seed(4)
    q, g = torch.randn(11, 20, generator=r), torch.randn(90, 20, generator=r)
    g[50:] = g[:40]
    whole = topk(q, g, 30)
    monkeypatch.setattr(_scores, "at_once", lambda x: 4)
    monkeypatch.setattr(neighbors, "_BLOCK_BYTES", 1)
    again = topk(q, g, 30)
    assert same(whole, again)


@pytest.mark.parametrize("metric", METRICS)
def test_large_and_small_values_stay_exact(metric):
    r = torch.Generator().manual_seed(5)
    q, g = torch.randn(4, 16, generator=r), torch.randn(50, 16, generator=r)
    wanted = oracle.topk(q, g, 5, metric)[1]
    for scale in (2.0**90, 2.0**-80):  # products leave float32, scaling by a power of two changes no order
        values, indices = topk(q * scale, g * scale, 5, metric=metric)
        assert torch.equal(indices, wanted)
        if metric != "dot":
            assert torch.isfinite(values).all()


def test_a_low_precision_product_is_noticed(monkeypatch):
    """TF32 and bfloat16 products (a GPU setting) err far beyond float32's bound; coarser steps here show it sooner."""
    r = torch.Generator().manual_seed(6)
    q, g = torch.randn(60, 8, generator=r), torch.randn(4000, 8, generator=r)
    wanted = topk(q, g, 5)
    prepare = _topk.prepare

    def coarse(*args, **settings):
        rows = prepare(*args, **settings)
        return rows._replace(proposal=(rows.proposal * 32).round() / 32)

    monkeypatch.setattr(_topk, "prepare", coarse)
    monkeypatch.setattr(neighbors, "PAD", 1)
    got = topk(q, g, 5)
    assert same(got, wanted)


def test_by_hand():
    q = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    g = torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]])
    values, indices = topk(q, g, 9, metric="euclidean")
    assert values.tolist() == [[1.0, 5.0, 10.0], [0.0, pytest.approx(18**0.5), 5.0]]
    assert indices.tolist() == [[1, 0, 2], [0, 1, 2]]
    values, indices = topk(q[1:], g, 2, metric="cosine")
    assert values.tolist() == [[1.0, 1.0]]
    assert indices.tolist() == [[0, 2]]
    values, indices = topk(q[1:], g, 2, metric="dot")
    assert values.tolist() == [[50.0, 25.0]]
    assert indices.tolist() == [[2, 0]]


def test_numpy_in_numpy_out_also_read_only_strided_and_big_endian():
    q = np.random.default_rng(0).normal(size=(4, 6))
    g = np.random.default_rng(1).normal(size=(12, 12))[:, ::2]
    wanted = topk(torch.tensor(q), torch.tensor(g.copy()), 3)
    q.setflags(write=False)
    for a, b in ((q, g), (q.astype(">f8"), g.astype(">f8"))):
        values, indices = topk(a, b, 3)
        assert isinstance(values, np.ndarray)
        assert isinstance(indices, np.ndarray)
        np.testing.assert_array_equal(values, wanted[0].numpy())
        np.testing.assert_array_equal(indices, wanted[1].numpy())


def test_no_query_no_feature_no_gradient_and_autocast():
    g = torch.randn(5, 3)
    values, indices = topk(torch.empty(0, 3), g, 2)
    assert values.shape == indices.shape == (0, 2)
    values, indices = topk(torch.empty(2, 0), torch.empty(5, 0), 2, metric="euclidean")
    assert values.tolist() == [[0.0, 0.0]] * 2
    assert indices.tolist() == [[0, 1]] * 2
    x = torch.randn(3, 3, requires_grad=True)
    plain = topk(x, g, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = topk(x, g, 2)
    assert not plain[0].requires_grad
    assert torch.equal(plain[0], mixed[0])


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"gallery": torch.empty(0, 3)}, ValueError, r"gallery must hold at least one row, got shape \(0, 3\)"),
        ({"gallery": torch.ones(4, 2)}, ValueError, r"gallery must have shape \(N, 3\), got \(4, 2\)"),
        ({"query": torch.ones(3)}, ValueError, r"query must have shape \(N, d\), got \(3,\)"),
        ({"query": [[1.0]]}, TypeError, "query must be a torch.Tensor or a numpy.ndarray, got list"),
        ({"query": torch.ones(2, 3, dtype=torch.int64)}, TypeError, "query must be floating point, got torch.int64"),
        ({"query": np.ones((2, 3), dtype=complex)}, TypeError, "query must hold numbers, got complex128"),
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"k": 1.0}, TypeError, "k must be an integer, got 1.0"),
        ({"block": 0}, ValueError, "block must be at least 1, got 0"),
        ({"metric": "manhattan"}, ValueError, "metric must be one of .* got 'manhattan'"),
        ({"backend": "numpy"}, ValueError, "backend must be one of .* got 'numpy'"),
        ({"query": torch.tensor([[1.0, 2.0, float("nan")]])}, ValueError, "query must be finite.*1 of 1 rows"),
        ({"gallery": torch.tensor([[1.0, 2.0, float("inf")]])}, ValueError, "gallery must be finite.*row 0"),
    ],
)
def test_bad_input_is_named(change, error, text):
    arguments = {"query": torch.ones(2, 3), "gallery": torch.ones(4, 3), "k": 2} | change
    with pytest.raises(error, match=text):
        topk(**arguments)


@pytest.mark.parametrize(
    "imports", [pytest.param("faiss, torch, vireid.neighbors", marks=pytest.mark.slow), "torch, vireid.neighbors"]
)
def test_faiss_and_torch_live_in_one_process_in_either_order(imports):
    need("faiss")
    script = f"""
import sys
import warnings
import {imports}
from vireid.neighbors import topk
assert ("faiss" in sys.modules) == {imports.startswith("faiss")}  # loaded on use only
with warnings.catch_warnings():  # the re-rankers' sparse matrices are quiet
    warnings.simplefilter("error")
    from vireid.rerank import gnn, k_reciprocal
    gnn(torch.eye(4), torch.eye(4)), k_reciprocal(torch.eye(4), torch.eye(4))
import faiss
torch.set_num_threads(2)
faiss.omp_set_num_threads(2)
q, g = torch.randn(300, 64), torch.randn(500, 64)
for _ in range(3):
    a, b = topk(q, g, 5, backend="faiss"), topk(q, g, 5)
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
print("same")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["same"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("metric", METRICS)
def test_gpu_equals_cpu(metric):
    r = torch.Generator().manual_seed(7)
    q, g = torch.randn(50, 257, generator=r), torch.randn(900, 257, generator=r)
    g[450:] = g[:450]
    wanted = topk(q, g, 9, metric=metric)
    got = topk(q.cuda(), g.cuda(), 9, metric=metric)
    assert got[0].is_cuda
    assert torch.equal(got[1].cpu(), wanted[1])
    torch.testing.assert_close(got[0].cpu(), wanted[0], rtol=1e-7, atol=0)


@pytest.mark.parametrize("scale", [1e-308, 1e-200, 1e-100, 1e160, 1e300])
def test_float64_rows_of_any_size_keep_their_cosines(scale):
    r = torch.Generator().manual_seed(9)
    q, g = (torch.randn(n, 8, generator=r, dtype=torch.float64) for n in (3, 40))
    wanted, order = topk(q, g, 6)
    g[::2] *= scale  # a multiple of a row has its cosine
    values, indices = topk(q * scale, g, 6)
    assert torch.equal(indices, order)
    torch.testing.assert_close(values, wanted, rtol=1e-9, atol=0)


@pytest.mark.parametrize("metric", ["dot", "euclidean"])
@pytest.mark.parametrize("scale", [2.0**-1000, 2.0**-530, 2.0**500, 2.0**1000])
def test_float64_rows_of_any_size_keep_their_order_and_values(scale, metric):
    r = torch.Generator().manual_seed(9)
    q, g = (torch.randn(n, 8, generator=r, dtype=torch.float64) for n in (3, 40))
    g[20:30] = g[:10]
    wanted, order = topk(q, g, 40, metric=metric)
    values, indices = topk(q * scale, g * (scale if metric == "euclidean" else 1), 40, metric=metric)
    assert torch.equal(indices, order)
    torch.testing.assert_close(values, wanted * scale, rtol=1e-12, atol=0)


@pytest.mark.parametrize("metric", ["dot", "euclidean"])
def test_float64_values_that_are_infinite_are_named(metric):
    x = torch.full((2, 8), 1.7e308, dtype=torch.float64)
    with pytest.raises(ValueError, match=f"query and gallery must have a {metric} value in the range of float64"):
        topk(x, -x, 1, metric=metric)


def test_collapsed_features_are_solved_in_small_parts(monkeypatch):
    """All rows alike: every row is a candidate of every query, and is scored in parts of a bounded size."""
    x = torch.ones(40, 5)
    scored = []
    score = neighbors.rescore
    monkeypatch.setattr(
        neighbors, "rescore", lambda q, g, row, *rest: scored.append(len(row)) or score(q, g, row, *rest)
    )
    monkeypatch.setattr(neighbors, "_BLOCK_BYTES", 32 * 40 * 7)
    values, indices = topk(x, x, 3, block=40)
    assert max(scored) == 7 * 40
    assert indices.tolist() == [[0, 1, 2]] * 40
    torch.testing.assert_close(values, torch.ones(40, 3))
