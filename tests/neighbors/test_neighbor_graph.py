import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import neighbors as oracle
from vireid._files import save_arrays
from vireid.neighbors import NeighborGraph, _exact, graph
from vireid.neighbors._scores import prepare


def same(a, b):
    return (
        torch.equal(a.indices, b.indices)
        and torch.equal(a.values, b.values)
        and torch.equal(a.features, b.features)
        and a._wanted == b._wanted
    )


def rows_with_twins(seed, n, d, top):
    """Small integers: sums are exact, and duplicates, parallel rows and zero rows are many."""
    return torch.randint(-top, top + 1, (n, d), generator=torch.Generator().manual_seed(seed)).float()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    n=st.integers(1, 40),
    d=st.integers(1, 6),
    k=st.integers(1, 45),
    top=st.integers(0, 3),
)
def test_build_equals_a_plain_loop(seed, n, d, k, top):
    x = rows_with_twins(seed, n, d, top)
    g = NeighborGraph.build(x, k)
    values, indices = oracle.graph(x, k)
    assert torch.equal(g.indices, indices)
    assert torch.equal(g.values, values.float())
    assert (len(g), g.k) == (n, min(k, n))


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    n=st.integers(1, 40),
    m=st.integers(0, 30),
    d=st.integers(1, 6),
    k=st.integers(1, 50),
    top=st.integers(0, 3),
)
def test_extending_equals_building_with_duplicates_and_zero_rows(seed, n, m, d, k, top):
    x = rows_with_twins(seed, n + m, d, top)
    first = NeighborGraph.build(x[:n], k)
    kept = first.indices.clone(), first.values.clone()
    assert same(first.extend(x[n:]), NeighborGraph.build(x, k))
    assert torch.equal(first.indices, kept[0])
    assert torch.equal(first.values, kept[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_extending_in_steps_equals_building_in_every_dtype(dtype):
    r = torch.Generator().manual_seed(1)
    x = torch.randn(400, 24, generator=r, dtype=torch.float64).to(dtype)
    x[350:360] = x[:10]
    x[5] = x[399] = 0
    whole = NeighborGraph.build(x, 9)
    grown = NeighborGraph.build(x[:4], 9)  # fewer than k: it must still end with k
    assert grown.k == 4
    for start, stop in ((4, 5), (5, 12), (12, 250), (250, 251), (251, 400)):
        grown = grown.extend(x[start:stop])
    assert same(grown, whole)
    assert grown.values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    again = grown.rows  # grown along, not made anew
    fresh = prepare(x, "cosine", grown.values.dtype, gallery=True)
    assert all(torch.equal(a, b) for a, b in zip(again, fresh, strict=True))


@pytest.mark.parametrize("spread", [1e-3, 1e-4, 1e-5])
def test_extending_tells_cosines_apart_that_float32_cannot(spread):
    r = torch.Generator().manual_seed(10)
    x = torch.randn(1, 16, generator=r) + spread * torch.randn(300, 16, generator=r)
    whole = NeighborGraph.build(x, 9)
    assert (whole.values[:, 1:] == whole.values[:, -1:]).any()
    assert same(NeighborGraph.build(x[:200], 9).extend(x[200:]), whole)


@pytest.mark.parametrize("order", ["nearer", "equal"])
def test_extending_takes_many_new_neighbors_in_bounded_steps(monkeypatch, order):
    """Each new image is nearer to every old one than those before, or as near: lists are sorted in again and again."""
    if order == "nearer":
        new = torch.cat([torch.arange(1.0, 61)[:, None].expand(60, 20), torch.full((60, 1), 10.0)], 1)
        x = torch.cat([torch.eye(20, 21), new]).double()
    else:
        x = torch.ones(80, 2).double()
    monkeypatch.setattr(graph, "_PAIRS", 7)
    monkeypatch.setattr(_exact, "_BLOCK_BYTES", 8 * 80 * 3)
    taken = []
    take_in = graph._take_in
    monkeypatch.setattr(graph, "_take_in", lambda *args: (taken.append(1), take_in(*args)))
    assert same(NeighborGraph.build(x[:20], 6).extend(x[20:]), NeighborGraph.build(x, 6))
    assert len(taken) > 5 if order == "nearer" else len(taken) == 1


def test_extending_asks_for_no_product_among_the_old(monkeypatch):
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(2))
    small = NeighborGraph.build(x[:290], 5)
    rows = []
    run = graph.search
    monkeypatch.setattr(graph, "search", lambda q, *args: (rows.append(len(q.given)), run(q, *args))[1])
    monkeypatch.setattr(graph, "neighbors_within", lambda *args: pytest.fail("a rebuild"))
    small.extend(x[290:])
    assert rows == [10]


def test_extend_names_features_that_do_not_fit():
    g = NeighborGraph.build(torch.randn(5, 3), 2)
    with pytest.raises(ValueError, match=r"gallery must have shape \(N, 3\), got \(2, 4\)"):
        g.extend(torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"gallery must be of the graph's dtype .*float32 on cpu, got torch.float64"):
        g.extend(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"gallery must be of the graph's dtype and on its device.*got .* on meta"):
        g.extend(torch.empty(2, 3, device="meta"))
    with pytest.raises(ValueError, match=r"gallery must be finite, got NaN or an infinity in 1 of 2 rows"):
        g.extend(torch.tensor([[1.0, 0, 0], [torch.nan, 0, 0]]))
    with pytest.raises(TypeError, match=r"gallery must be floating point, got torch\.int64"):
        g.extend(np.zeros((2, 3), dtype=np.int64))


def test_build_refuses_bad_input():
    for rows, k, text in (
        (0, 2, r"gallery must hold at least one row, got shape \(0, 3\)"),
        (3, 0, "k must be at least 1"),
    ):
        with pytest.raises(ValueError, match=text):
            NeighborGraph.build(torch.randn(rows, 3), k)


def test_csr_is_the_sparse_matrix_of_the_cosines():
    x = torch.randn(30, 8, generator=torch.Generator().manual_seed(3))
    g = NeighborGraph.build(x, 7)
    unit = torch.nn.functional.normalize(x.double())
    for k in (None, 1, 4):
        indptr, indices, values = g.csr(k)
        assert indptr.dtype == indices.dtype == torch.int64
        dense = scipy.sparse.csr_array((values.numpy(), indices.numpy(), indptr.numpy()), shape=(30, 30)).toarray()
        cosine = unit @ unit.T
        kept = cosine >= cosine.topk(k or 7, dim=1).values[:, -1:]
        np.testing.assert_allclose(dense, torch.where(kept, cosine, 0).numpy(), atol=1e-6)
    assert g.csr()[2].data_ptr() == g.values.data_ptr()
    for bad, text in ((8, "at most the graph's 7, got 8"), (0, "at least 1, got 0")):
        with pytest.raises(ValueError, match=f"k must be {text}"):
            g.csr(bad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weighted_sums_equal_a_loop(dtype):
    r = torch.Generator().manual_seed(4)
    g = NeighborGraph.build(torch.randn(25, 6, generator=r), 5)
    x, w = torch.randn(25, 9, generator=r).to(dtype), torch.rand(25, 5, generator=r).to(dtype)
    for weights in (None, w, w[:, :3], w[:, :1]):
        factor = g.values if weights is None else weights
        wanted = [sum(f.double() * x[j].double() for f, j in zip(*row)) for row in zip(factor, g.indices)]  # noqa: B905
        total = g.weighted_sum(x, weights)
        assert total.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(total.double(), torch.stack(wanted), rtol=1e-5, atol=1e-6)
    as_numpy = g.weighted_sum(x.float().numpy(), w.float().numpy())
    assert isinstance(as_numpy, np.ndarray)
    np.testing.assert_array_equal(as_numpy, g.weighted_sum(x.float(), w.float()).numpy())
    for bad, text in (((x[1:],), r"x must have a row for each of the graph's 25"), ((x, w[1:]), "weights must have")):
        with pytest.raises(ValueError, match=text):
            g.weighted_sum(*bad)
    with pytest.raises(ValueError, match=r"weights must have shape \(25, 1 to 5\), got \(25, 6\)"):
        g.weighted_sum(x, torch.rand(25, 6))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_saved_graphs_come_back_and_grow_on(tmp_path, dtype):
    x = torch.randn(20, 5, generator=torch.Generator().manual_seed(5)).to(dtype)
    for n, k in ((20, 6), (3, 6)):  # also with fewer images than k
        small = NeighborGraph.build(x[:n], k)
        small.save(tmp_path / "g.npz")
        loaded = NeighborGraph.load(str(tmp_path / "g.npz"))
        assert same(loaded, small)
        assert loaded._rows is None  # twice the memory only when they are needed
        assert same(loaded.extend(x[n:]), NeighborGraph.build(x, k))
        assert torch.equal(loaded.rows.proposal, small.rows.proposal)
    assert [p.name for p in tmp_path.iterdir()] == ["g.npz"]


def test_numpy_galleries_and_transposed_ones_are_kept_as_given(tmp_path):
    x = np.random.default_rng(6).standard_normal((5, 12)).astype(np.float32).T
    g = NeighborGraph.build(x, 3)
    assert same(g, NeighborGraph.build(torch.tensor(np.ascontiguousarray(x)), 3))
    g.save(tmp_path / "g.npz")
    assert same(NeighborGraph.load(tmp_path / "g.npz"), g)


def nonsense():
    """Files with a right checksum whose content is no graph."""
    nan = torch.nan
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(7))
    good = NeighborGraph.build(x, 3).to_arrays()
    far, repeated, order = good["indices"].copy(), good["indices"].copy(), good["values"].copy()
    far[2, 1], repeated[2, 1], order[:, 1] = 6, repeated[2, 2], -1
    return {
        "arrays must hold indices, got": {n: a for n, a in good.items() if n != "indices"},
        "arrays must hold indices, k, values, got": {"features": good["features"]},
        r"features must be \(N, d\) floating point, got int64": good | {"features": good["features"].astype(np.int64)},
        r"features must be \(N, d\) floating point, got float32 \(24,\)": good | {"features": good["features"].ravel()},
        r"features must be \(N, d\) floating point, got float32 \(0, 4\)": good | {"features": good["features"][:0]},
        r"features must be \(N, d\) floating point, got <U1": good | {"features": np.full((6, 4), "a")},
        r"features must be \(N, d\) floating point, got >f4": good | {"features": good["features"].astype(">f4")},
        "features must be finite": good | {"features": np.full_like(good["features"], nan)},
        "values must be finite": good | {"values": np.full_like(good["values"], nan)},
        r"values must be float32 \(6, 3\), got float64": good | {"values": good["values"].astype(np.float64)},
        r"values must be float32 \(6, 3\), got float32 \(6, 2\)": good | {"values": good["values"][:, :2]},
        r"indices must be int64 \(6, 3\), got int32": good | {"indices": good["indices"].astype(np.int32)},
        r"indices must be int64 \(6, 3\), got int64 \(5, 3\)": good | {"indices": good["indices"][:5]},
        r"indices must be in \[0, 6\), got 0 to 6": good | {"indices": far},
        r"indices must be in \[0, 6\), got -": good | {"indices": good["indices"] - 1},
        "indices must name the image itself first": good | {"indices": good["indices"][:, ::-1].copy()},
        "itself first, with value 1": good | {"values": good["values"] / 2},
        "indices must name a neighbor once": good | {"indices": repeated},
        r"values must be cosines in \[-1, 1\], got 5": good
        | {"values": np.where(np.arange(3) > 0, np.float32(5), good["values"])},
        "values must descend": good | {"values": order},
        "k must be an int64 of at least 1": good | {"k": np.array(0)},
        "k must be an int64 of at least 1, got array": good | {"k": np.array([3])},
        r"indices must be int64 \(6, 2\)": good | {"k": np.array(2)},
    }


@pytest.mark.parametrize("text", nonsense())
def test_files_that_hold_no_graph_are_refused(tmp_path, text):
    path = tmp_path / "bad.npz"
    save_arrays(path, graph._KIND, graph._VERSION, nonsense()[text])
    with pytest.raises(ValueError, match=rf"path must hold .*bad\.npz.*: .*{text}"):
        NeighborGraph.load(path)


def test_damaged_and_missing_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.npz"):
        NeighborGraph.load(tmp_path / "gone.npz")
    path = tmp_path / "g.npz"
    NeighborGraph.build(torch.randn(9, 4), 3).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"path must .*g\.npz"):
        NeighborGraph.load(path)
    save_arrays(path, "vireid AIM", 1, NeighborGraph.build(torch.randn(9, 4), 3).to_arrays())
    with pytest.raises(ValueError, match="path must hold vireid neighbor graph version 1, got vireid AIM version 1"):
        NeighborGraph.load(path)


def test_moving_to_the_same_device_changes_nothing():
    g = NeighborGraph.build(torch.randn(9, 4), 30)
    assert g.to("cpu") is g
    away = g.to("meta")
    assert {x.device.type for x in (away.features, away.indices, away.values, *away.rows)} == {"meta"}
    assert away.rows.given is away.features
    assert (len(away), away.k, away._wanted) == (9, 9, 30)


@pytest.mark.gpu
def test_a_graph_on_the_gpu_equals_that_on_the_cpu(tmp_path):
    x = torch.randn(3000, 64, generator=torch.Generator().manual_seed(8))
    x[2000:2050] = x[:50]
    cpu, gpu = NeighborGraph.build(x, 12), NeighborGraph.build(x.cuda(), 12)
    assert gpu.indices.device.type == "cuda"
    assert same(gpu.to("cpu"), cpu)
    assert same(NeighborGraph.build(x[:1500].cuda(), 12).extend(x[1500:].cuda()).to("cpu"), cpu)
    gpu.save(tmp_path / "g.npz")
    loaded = NeighborGraph.load(tmp_path / "g.npz").to("cuda")
    assert same(loaded, gpu)
    values = torch.randn(3000, 8, generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(loaded.weighted_sum(values.cuda()).cpu(), cpu.weighted_sum(values), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_float64_features_of_an_extreme_size_have_the_graph_of_others(scale, tmp_path):
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    wanted = NeighborGraph.build(x, 7)
    y = x.clone()
    y[::3] *= scale
    graph = NeighborGraph.build(y[:20], 7).extend(y[20:])
    graph.save(tmp_path / "graph.npz")
    for found in (graph, NeighborGraph.load(tmp_path / "graph.npz"), NeighborGraph.build(y, 7)):
        assert torch.equal(found.indices, wanted.indices)
        torch.testing.assert_close(found.values, wanted.values, rtol=1e-12, atol=0)
        assert torch.equal(found.features, y)
