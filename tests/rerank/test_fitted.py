"""What all fitted re-rankers share, tried on AIM and query expansion."""

import copy
import json

import numpy as np
import pytest
import torch

from vireid._files import load_arrays, save_arrays
from vireid.rerank.aim import AIM, aim
from vireid.rerank.query_expansion import QueryExpansion, query_expansion

RERANKERS = [
    pytest.param(AIM, {"k1": 5, "k2": 3}, aim, id="aim-paper"),
    pytest.param(AIM, {"k1": 3, "k2": 6, "variant": "released"}, aim, id="aim-released"),
    pytest.param(QueryExpansion, {"n": 3, "alpha": 1.5}, query_expansion, id="query-expansion"),
]
each = pytest.mark.parametrize(("kind", "options", "function"), RERANKERS)


def features(nq=7, ng=30, d=8):
    q, g = torch.randn(nq, d), torch.randn(ng, d)
    g[20:22] = g[:2]
    g[23] = 0
    return q, g


def stable(distance, n):
    order = distance.sort(dim=1, stable=True)
    return order.values[:, :n], order.indices[:, :n]


@each
def test_function_call_and_fitted_object_agree(kind, options, function, device):
    q, g = (x.to(device) for x in features())
    wanted = function(q, g, **options)
    fitted = kind(**options).fit(g)
    assert torch.equal(fitted.distance(q), wanted)
    assert wanted.device == q.device
    other = torch.randn(4, 8, device=device)
    assert torch.equal(fitted(q, other), function(q, other, **options))
    assert torch.equal(fitted.distance(q), wanted)  # a call does not touch what is fitted
    assert fitted.fit(other).distance(q).shape == (7, 4)  # fit forgets it


@each
@pytest.mark.parametrize("n", [1, 4, 14, 15, 29, 30, 31, 1000])
def test_topk_is_a_stable_sort_of_distance(kind, options, function, n, device):
    q, g = (x.to(device) for x in features())
    q[1] = 0  # every distance of this query is 1, or nearly
    fitted = kind(**options).fit(g)
    values, indices = fitted.topk(q, n)
    wanted = stable(fitted.distance(q), n)
    assert torch.equal(values, wanted[0])
    assert torch.equal(indices, wanted[1])
    assert indices.dtype == torch.int64


@each
def test_blocks_of_one_query(kind, options, function, monkeypatch):
    q, g = features()
    fitted = kind(**options).fit(g)
    wanted, best = fitted.distance(q), fitted.topk(q, 6)
    monkeypatch.setattr("vireid.rerank._blocks._BLOCK_BYTES", 1)
    torch.testing.assert_close(fitted.distance(q), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(fitted.topk(q, 6)[0], best[0], rtol=0, atol=1e-5)


@each
@pytest.mark.parametrize("parts", [[30], [1, 29], [4, 1, 25], [12, 18], [30, 0]])
def test_extend_is_fit_to_all(kind, options, function, parts):
    q, g = features()
    first, *more = g.split(parts)
    fitted = kind(**options).fit(first)
    for part in more:
        assert fitted.extend(part) is fitted
    once = kind(**options).fit(g)
    torch.testing.assert_close(fitted.distance(q), once.distance(q), rtol=0, atol=1e-6)
    assert torch.equal(fitted.graph.indices, once.graph.indices)
    assert torch.equal(fitted.topk(q[:1], 3)[1], once.topk(q[:1], 3)[1])


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_save_and_load(kind, options, function, dtype, tmp_path):
    q, g = (x.to(dtype) for x in features())
    for size in (30, 2):  # also fewer images than neighbors are wanted
        fitted = kind(**options).fit(g[:size])
        fitted.save(tmp_path / "a.npz")
        back = kind.load(str(tmp_path / "a.npz"))
        assert back.settings == fitted.settings
        assert torch.equal(back.distance(q), fitted.distance(q))
        assert torch.equal(back.topk(q, 5)[1], fitted.topk(q, 5)[1])
        torch.testing.assert_close(back.extend(g[size:]).distance(q), function(q, g, **options), rtol=0, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_load_refuses_what_it_did_not_write(tmp_path):
    q, g = features()
    path = tmp_path / "a.npz"
    fitted = AIM(k1=5, k2=3).fit(g)
    fitted.save(path)
    whole = path.read_bytes()
    with pytest.raises(ValueError, match="must hold vireid QueryExpansion version 1, got vireid AIM version 1"):
        QueryExpansion.load(path)
    for damaged in (whole[:-40], whole[: len(whole) // 2], b"", b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="path must be a whole vireid AIM file"):
            AIM.load(path)
    at = whole.index(g.numpy().tobytes()[:64])
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(ValueError, match="path must"):
        AIM.load(path)
    path.write_bytes(whole)
    assert torch.equal(AIM.load(path).distance(q), fitted.distance(q))
    with pytest.raises(FileNotFoundError, match="no such file"):
        AIM.load(tmp_path / "b.npz")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"k1": 5, "k2": 3, "variant": "other"}, "path must hold settings of AIM.*variant must be one of"),
        ({"k1": 5}, "path must hold settings of AIM"),
        ({"k1": 5, "k2": 3, "k3": 1}, "path must hold settings of AIM"),
        ({"k1": 9, "k2": 3, "variant": "paper"}, "path must hold a graph with 9 neighbors of each image, got 5"),
    ],
)
def test_load_checks_settings_that_a_checksum_cannot(settings, text, tmp_path):
    path = tmp_path / "a.npz"
    AIM(k1=5, k2=3).fit(features()[1]).save(path)
    arrays, _ = load_arrays(path, "vireid AIM", 1)
    save_arrays(path, "vireid AIM", 1, arrays, settings)
    with pytest.raises(ValueError, match=text):
        AIM.load(path)


def test_load_checks_the_graph(tmp_path):
    path = tmp_path / "a.npz"
    fitted = AIM(k1=5, k2=3).fit(features()[1])
    arrays = fitted.graph.to_arrays()
    arrays["indices"] = arrays["indices"] + 1000
    save_arrays(path, "vireid AIM", 1, arrays, json.loads(json.dumps(fitted.settings)))
    with pytest.raises(ValueError, match=r"path must hold a vireid AIM, got .*a\.npz.*: indices"):
        AIM.load(path)


def test_save_names_a_bad_path_and_leaves_what_is_there(tmp_path, monkeypatch):
    fitted = AIM(k1=5, k2=3).fit(features()[1])
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        fitted.save(tmp_path / "a.pt")
    with pytest.raises(FileNotFoundError, match="existing folder"):
        fitted.save(tmp_path / "none" / "a.npz")
    path = tmp_path / "a.npz"
    fitted.save(path)
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        fitted.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@each
def test_the_callers_arrays_are_left_alone_and_may_change_after_fit(kind, options, function):
    for make in (torch.clone, lambda x: x.numpy().copy()):
        q, g = (make(x) for x in features())
        kept = copy.deepcopy((q, g))
        fitted = kind(**options).fit(g)
        wanted = fitted.distance(q)
        assert bool((q == kept[0]).all())
        assert bool((g == kept[1]).all())
        assert isinstance(wanted, type(q))
        assert all(isinstance(x, type(q)) for x in fitted.topk(q, 3))
        g[:] = 1
        assert bool((fitted.distance(q) == wanted).all())


@each
def test_query_and_gallery_may_differ_in_type_and_gradients_stay_out(kind, options, function):
    q, g = features()
    fitted = kind(**options).fit(g)
    wanted = fitted.distance(q)
    assert torch.equal(fitted.distance(q.double()), wanted)
    assert fitted.distance(q.half()).dtype == torch.float32
    assert torch.equal(torch.as_tensor(fitted.distance(q.numpy())), wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = kind(**options).fit(g).distance(q.clone().requires_grad_())
    assert torch.equal(mixed, wanted)
    assert not mixed.requires_grad
    assert torch.is_grad_enabled()


def test_no_query():
    fitted = AIM(k1=5, k2=3).fit(features()[1])
    assert fitted.distance(torch.empty(0, 8)).shape == (0, 30)
    values, indices = fitted.topk(np.empty((0, 8)), 4)
    assert values.shape == indices.shape == (0, 4)


def test_use_before_fit():
    ranker = AIM(k1=5, k2=3)
    q = torch.ones(1, 8)
    for use in (lambda: ranker.graph, lambda: ranker.distance(q), lambda: ranker.topk(q, 1)):
        with pytest.raises(RuntimeError, match=r"AIM must be fitted first: call fit\(gallery\)"):
            use()
    with pytest.raises(RuntimeError, match="must be fitted first"):
        ranker.extend(q)
    with pytest.raises(RuntimeError, match="must be fitted first"):
        ranker.save("a.npz")
    ranker(q, torch.ones(3, 8))
    with pytest.raises(RuntimeError, match="must be fitted first"):
        ranker.distance(q)


@pytest.mark.parametrize(
    ("use", "error", "text"),
    [
        (lambda m: m.fit(torch.empty(0, 8)), ValueError, "gallery must hold at least one row"),
        (lambda m: m.fit(torch.full((3, 8), torch.nan)), ValueError, "gallery must be finite"),
        (lambda m: m.fit([[1.0]]), TypeError, "gallery must be a torch.Tensor or a numpy.ndarray, got list"),
        (lambda m: m.extend(torch.ones(2, 7)), ValueError, r"gallery must have shape \(N, 8\), got \(2, 7\)"),
        (lambda m: m.extend(torch.full((3, 8), torch.nan)), ValueError, "gallery must be finite"),
        (lambda m: m.extend(torch.ones(2, 8).double()), ValueError, "gallery must be of the graph's dtype"),
        (lambda m: m.distance(torch.ones(2, 7)), ValueError, r"query must have shape \(N, 8\), got \(2, 7\)"),
        (lambda m: m.distance(torch.full((3, 8), torch.inf)), ValueError, "query must be finite"),
        (lambda m: m.distance(torch.ones(2, 8, device="meta")), ValueError, "on the gallery's device, cpu, got meta"),
        (lambda m: m.topk(torch.ones(2, 8), 0), ValueError, "n must be at least 1, got 0"),
        (lambda m: m.topk(torch.ones(2, 8), 1.0), TypeError, "n must be an integer, got 1.0"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(use, error, text):
    q, g = features()
    fitted = AIM(k1=5, k2=3).fit(g)
    wanted = fitted.distance(q)
    with pytest.raises(error, match=text):
        use(fitted)
    assert torch.equal(fitted.distance(q), wanted)


@pytest.mark.gpu
@each
def test_gpu_save_loads_on_the_cpu(kind, options, function, tmp_path):
    q, g = features()
    fitted = kind(**options).fit(g.cuda())
    fitted.save(tmp_path / "a.npz")
    torch.testing.assert_close(kind.load(tmp_path / "a.npz").distance(q), fitted.distance(q.cuda()).cpu())
    with pytest.raises(ValueError, match="query must be on the gallery's device, cuda:0, got cpu"):
        fitted.distance(q)
