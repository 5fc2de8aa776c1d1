"""Contract of all re-rankers, as functions and as objects fitted to a gallery."""

import copy
import functools
import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from measuring import LargestTensor
from vireid._files import load_arrays, save_arrays
from vireid.nn import GFT, H2FT
from vireid.rerank import (
    AIM,
    ECN,
    GNN,
    SIM,
    GraphTransfer,
    KReciprocal,
    QueryExpansion,
    aim,
    cmkr,
    ecn,
    gnn,
    graph_transfer,
    k_reciprocal,
    mser,
    query_expansion,
    sim,
)

HUGE = 10**6


@dataclass
class Method:
    """A re-ranker with settings, or with all its counts of neighbors beyond the number of images."""

    function: object
    settings: dict
    kind: object = None
    counts: tuple = ("k1", "k2")

    @property
    def uses(self):
        return self.function.uses

    def __call__(self, query, gallery, **change):
        return self.function(query, gallery, **{**self.settings, **change})

    def large(self, query, gallery, k):
        return self(query, gallery, **dict.fromkeys(self.counts, k))

    def new(self):
        return self.kind(**self.settings)

    def load(self, path):
        return self.kind.load(path)


class Transfer(Method):
    """A transfer without weights, which takes features of any type."""

    def __init__(self, module):
        super().__init__(graph_transfer, {"module": module(8, k=4, value=nn.Identity())}, GraphTransfer)
        self.remade = module

    def large(self, query, gallery, k):
        return self(query, gallery, module=self.remade(8, k=k, value=nn.Identity()))

    def load(self, path):
        return self.kind.load(path, **self.settings)


METHODS = {
    "aim-paper": Method(aim, {"k1": 5, "k2": 3}, AIM),
    "aim-released": Method(aim, {"k1": 3, "k2": 6, "variant": "released"}, AIM),
    "aim-whole": Method(aim, {"k1": None, "k2": 2, "variant": "released"}, AIM, ("k2",)),
    "aim-relations": Method(functools.partial(aim, use_query_relations=True), {"k1": 5, "k2": 3}),
    "sim": Method(sim, {"k1": 6, "k2": 7}, SIM),
    "sim-sets": Method(sim, {"k1": 4, "k2": 5, "lambda_value": 0.0}, SIM),
    "query-expansion": Method(query_expansion, {"n": 3, "alpha": 1.5}, QueryExpansion, ("n",)),
    "h2ft": Transfer(H2FT),
    "gft": Transfer(GFT),
    "k-reciprocal": Method(k_reciprocal, {"k1": 5, "k2": 3}),
    "k-reciprocal-alone": Method(functools.partial(k_reciprocal, queries="alone"), {"k1": 5, "k2": 3}, KReciprocal),
    "gnn": Method(gnn, {"k1": 5, "k2": 3}),
    "gnn-alone": Method(functools.partial(gnn, queries="alone"), {"k1": 5, "k2": 3}, GNN),
    "ecn": Method(ecn, {"t": 2, "q": 3, "k": 8}, counts=("t", "q")),
    "ecn-alone": Method(functools.partial(ecn, queries="alone"), {"t": 2, "q": 3, "k": 8}, ECN, ("t", "q")),
    "ecn-cosine-alone": Method(
        functools.partial(ecn, queries="alone"), {"t": 2, "q": 3, "metric": "cosine"}, ECN, ("t", "q")
    ),
    "cmkr": Method(cmkr, {"k1": 5, "k2": 3}),
    "cmkr-constrained": Method(cmkr, {"k1": 5, "k2": 1, "neighbors": "constrained"}),
    "mser": Method(mser, {"k1": 5, "k2": 3}),
}
METHODS["aim-relations"].function.uses = "transductive"
METHODS["k-reciprocal-alone"].function.uses = METHODS["gnn-alone"].function.uses = "gallery"
METHODS["ecn-alone"].function.uses = METHODS["ecn-cosine-alone"].function.uses = "gallery"
TRANSDUCTIVE = ("k", "gnn", "ecn", "cmkr", "mser")  # first words of their names
every = pytest.mark.parametrize("name", METHODS)
fitted_ones = pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.kind])


def features(nq=7, ng=30, d=8, dtype=torch.float32, seed=0):
    """Queries and gallery in general position."""
    r = torch.Generator().manual_seed(seed)
    centers = torch.randn(6, d, generator=r, dtype=torch.float64)
    x = centers[torch.randint(6, (nq + ng,), generator=r)] + torch.randn(nq + ng, d, generator=r, dtype=torch.float64)
    return x[:nq].to(dtype), x[nq:].to(dtype)


def with_twins(dtype=torch.float32):
    """With duplicates and zero rows in both."""
    q, g = features(dtype=dtype)
    q[1], q[2] = 0, q[0]
    g[20:22], g[23] = g[:2], 0
    return q, g


# -- functions -----------------------------------------------------------------------------------------------------


@every
def test_inputs_are_unmodified_and_numpy_equals_torch(name, device):
    method = METHODS[name]
    q, g = with_twins()
    kept = q.clone(), g.clone()
    wanted = method(q.to(device), g.to(device))
    assert wanted.device == q.to(device).device
    array = method(q.numpy(), g.numpy())
    assert isinstance(array, np.ndarray)
    assert_close(torch.from_numpy(array), wanted.cpu(), rtol=0, atol=0 if device.type == "cpu" else 1e-5)
    assert torch.equal(q, kept[0])
    assert torch.equal(g, kept[1])


@every
def test_types_autocast_and_gradients(name, device):
    method = METHODS[name]
    q, g = (x.to(device) for x in features())
    wanted = method(q, g)
    assert wanted.dtype == torch.float32
    exact = method(q.double(), g.double())
    assert exact.dtype == torch.float64
    assert_close(wanted.double(), exact, rtol=0, atol=2e-5)
    for half in (torch.float16, torch.bfloat16):
        x, y = q.to(half), g.to(half)
        low = method(x, y)
        assert low.dtype == torch.float32
        assert_close(low, method(x.float(), y.float()), rtol=0, atol=1e-6)
        with torch.autocast(device.type, dtype=half):
            mixed = method(q.clone().requires_grad_(), g.clone().requires_grad_())
        assert torch.equal(mixed, wanted)
        assert not mixed.requires_grad
    assert torch.is_grad_enabled()


@every
def test_distances_follow_the_order_of_queries_and_gallery(name):
    method = METHODS[name]
    q, g = features(dtype=torch.float64)
    wanted = method(q, g)
    rows, columns = torch.randperm(len(q)), torch.randperm(len(g))
    assert_close(method(q[rows], g[columns]), wanted[rows][:, columns], rtol=0, atol=1e-9)


@every
def test_uses_says_whether_queries_depend_on_each_other(name):
    method = METHODS[name]
    assert method.uses == (
        "transductive"
        if (name.split("-")[0] in TRANSDUCTIVE and not name.endswith("-alone")) or name == "aim-relations"
        else "gallery"
    )
    assert method.kind is None or method.kind.uses == method.uses
    for q, g in (features(20), with_twins()):
        whole = method(q, g)
        alone = torch.cat([method(row[None], g) for row in q])
        same = torch.allclose(alone, whole, rtol=0, atol=2e-6)
        assert same == (method.uses == "gallery")


@every
@pytest.mark.parametrize("twins", [False, True])
def test_more_neighbors_than_images_are_all_of_them(name, twins):
    method = METHODS[name]
    q, g = with_twins(torch.float64) if twins else features(dtype=torch.float64)
    # H2FT and GFT count the query among its neighbors
    enough = len(q) + len(g) if method.uses == "transductive" else len(g) + 1
    assert_close(method.large(q, g, HUGE), method.large(q, g, enough), rtol=0, atol=1e-12)


@every
def test_few_and_odd_images_have_finite_distances(name):
    method = METHODS[name]
    one, none = torch.ones(1, 8), torch.empty(0, 8)
    for q, g in (
        (one, one),
        (one, -one),
        (torch.zeros(2, 8), torch.zeros(3, 8)),
        (torch.zeros(1, 8), one),
        with_twins(),
    ):
        distance = method(q, g)
        assert distance.shape == (len(q), len(g))
        assert distance.isfinite().all()
    for x in (none, none.numpy()):
        assert method(x, np.ones((4, 8), np.float32) if isinstance(x, np.ndarray) else one).shape[0] == 0
    q, g = with_twins()
    distance = method(q, g)
    if method.uses == "gallery":
        assert_close(distance[0], distance[2], rtol=0, atol=1e-6)


@every
def test_the_size_of_the_features_does_not_matter(name):
    if name == "gft":
        pytest.skip("weighs a feature by its length; its own tests have sizes")
    method = METHODS[name]
    q, g = features()
    scale = (1e-15, 1e-15) if name == "h2ft" else (1e-15, 1e15)
    assert_close(method(q * scale[0], g * scale[1]), method(q, g), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in METHODS if not name.startswith("aim")])
def test_no_distance_is_below_zero(name):
    x = features(ng=200)[1].abs()
    assert METHODS[name](x, x).min() >= 0


BAD = {
    "no gallery": (
        {"gallery": torch.empty(0, 8)},
        ValueError,
        r"gallery must hold at least one row, got shape \(0, 8\)",
    ),
    "width": ({"gallery": torch.ones(4, 7)}, ValueError, r"gallery must have shape \(N, 8\), got \(4, 7\)"),
    "axes": ({"query": torch.ones(8)}, ValueError, r"query must have shape \(N, (d|8)\), got \(8,\)"),
    "list": ({"query": [[1.0]]}, TypeError, "query must be a torch.Tensor or a numpy.ndarray, got list"),
    "nan": ({"query": torch.full((2, 8), math.nan)}, ValueError, "query must be finite.*2 of 2 rows"),
    "devices": ({"gallery": torch.ones(4, 8, device="meta")}, ValueError, "on one device, got cpu and meta"),
}


@every
@pytest.mark.parametrize("case", BAD)
def test_bad_features_are_named(name, case):
    change, error, text = BAD[case]
    with pytest.raises(error, match=text):
        METHODS[name](**({"query": torch.ones(2, 8), "gallery": torch.ones(4, 8)} | change))


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("aim-paper", {"k1": 0}, "k1 must be at least 1, got 0"),
        ("aim-paper", {"variant": "code"}, "variant must be one of 'paper', 'released', got 'code'"),
        ("sim", {"k1": 0}, "k1 must be at least 1, got 0"),
        ("sim", {"lambda_value": 1.1}, r"lambda_value must be at least 0 and at most 1, got 1.1"),
        ("sim", {"lambda_value": math.nan}, r"lambda_value must be at least 0 and at most 1, got nan"),
        ("query-expansion", {"n": 0}, "n must be at least 1, got 0"),
        ("query-expansion", {"alpha": -1}, "alpha must be at least 0 and finite, got -1"),
        ("k-reciprocal", {"k2": 0}, "k2 must be at least 1, got 0"),
        ("k-reciprocal", {"lambda_value": -0.1}, r"lambda_value must be at least 0 and at most 1, got -0.1"),
        ("k-reciprocal", {"top": 0}, "top must be at least 1, got 0"),
        ("cmkr", {"k1": 0}, "k1 must be at least 1, got 0"),
        ("mser", {"k2": 0}, "k2 must be at least 1, got 0"),
        ("mser", {"lambda_value": 2}, "lambda_value must be at least 0 and at most 1, got 2"),
        ("gnn", {"k1": 0}, "k1 must be at least 1, got 0"),
        ("gnn", {"k2": 0}, "k2 must be at least 1, got 0"),
        ("gnn", {"layers": 0}, "layers must be at least 1, got 0"),
        ("gnn", {"alpha": math.nan}, "alpha must be at least 0 and finite, got nan"),
        ("gnn", {"top": 0}, "top must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_named(name, change, text):
    method = METHODS[name]
    with pytest.raises(ValueError, match=text):
        method(torch.ones(2, 8), torch.ones(4, 8), **change)
    if method.kind:
        with pytest.raises(ValueError, match=text):
            method.kind(**{**method.settings, **change})


# -- objects fitted to a gallery -----------------------------------------------------------------------------------


@fitted_ones
def test_function_call_and_fitted_object_agree(name, device):
    method = METHODS[name]
    q, g = (x.to(device) for x in with_twins())
    wanted = method(q, g)
    fitted = method.new().fit(g)
    assert torch.equal(fitted.distance(q), wanted)
    other = torch.randn(4, 8, device=device)
    assert torch.equal(fitted(q, other), method(q, other))
    assert torch.equal(fitted.distance(q), wanted)  # a call does not touch what is fitted
    assert fitted.fit(other).distance(q).shape == (7, 4)  # fit forgets it


@fitted_ones
def test_topk_is_a_stable_sort_of_distance(name, device):
    q, g = (x.to(device) for x in with_twins())
    fitted = METHODS[name].new().fit(g)
    wanted = fitted.distance(q).sort(dim=1, stable=True)
    for n in (1, 4, 14, 29, 30, 1000):
        values, indices = fitted.topk(q, n)
        assert torch.equal(values, wanted.values[:, :n])
        assert torch.equal(indices, wanted.indices[:, :n])
        assert indices.dtype == torch.int64


@fitted_ones
def test_blocks_change_nothing_and_bound_the_memory(name, monkeypatch):
    q, g = features(150, 700, seed=1)
    fitted = METHODS[name].new().fit(g)
    expected = fitted.distance(q)
    monkeypatch.setattr("vireid.neighbors._exact._BLOCK_BYTES", 700 * 4 * 15)
    with LargestTensor() as largest:
        values, _ = fitted.topk(q, 10)
    assert 700 * 15 <= largest.elements < 150 * 700 / 4
    assert_close(values, expected.sort(dim=1).values[:, :10], rtol=0, atol=1e-5)
    monkeypatch.setattr("vireid.neighbors._exact._BLOCK_BYTES", 1)
    assert_close(fitted.distance(q[:20]), expected[:20], rtol=0, atol=1e-5)


@fitted_ones
@pytest.mark.parametrize("parts", [[30], [1, 29], [4, 1, 25], [12, 18], [30, 0]])
def test_extend_is_fit_to_all(name, parts):
    method = METHODS[name]
    q, g = with_twins()
    first, *more = g.split(parts)
    fitted = method.new().fit(first)
    for part in more:
        assert fitted.extend(part) is fitted
    once = method.new().fit(g)
    assert_close(fitted.distance(q), once.distance(q), rtol=0, atol=1e-6)
    assert torch.equal(fitted.graph.indices, once.graph.indices)
    assert torch.equal(fitted.topk(q[:1], 3)[1], once.topk(q[:1], 3)[1])


@fitted_ones
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_save_and_load(name, dtype, tmp_path):
    method = METHODS[name]
    q, g = with_twins(dtype)
    for size in (30, 2):  # also fewer images than neighbors are wanted
        fitted = method.new().fit(g[:size])
        fitted.save(tmp_path / "a.npz")
        back = method.load(str(tmp_path / "a.npz"))
        assert back.settings == fitted.settings
        assert torch.equal(back.distance(q), fitted.distance(q))
        assert torch.equal(back.topk(q, 5)[1], fitted.topk(q, 5)[1])
        assert_close(back.extend(g[size:]).distance(q), fitted.extend(g[size:]).distance(q), rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


@fitted_ones
def test_damaged_files_and_those_of_others_are_refused(name, tmp_path):
    method, path = METHODS[name], tmp_path / "a.npz"
    q, g = features()
    fitted = method.new().fit(g)
    fitted.save(path)
    whole, kind = path.read_bytes(), method.kind.__name__
    for damaged in (whole[:-40], whole[: len(whole) // 2], b"", b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"path must be a whole vireid {kind} file"):
            method.load(path)
    at = whole.index(g.numpy().tobytes()[:64])
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(ValueError, match="path must"):
        method.load(path)
    path.write_bytes(whole)
    assert torch.equal(method.load(path).distance(q), fitted.distance(q))
    with pytest.raises(FileNotFoundError, match="no such file"):
        method.load(tmp_path / "b.npz")
    save_arrays(path, "vireid Other", 1, fitted.graph.to_arrays())
    with pytest.raises(ValueError, match=f"must hold vireid {kind} version 1, got vireid Other version 1"):
        method.load(path)


@fitted_ones
def test_the_callers_arrays_are_unmodified_and_may_change_after_fit(name):
    for make in (torch.clone, lambda x: x.numpy().copy()):
        q, g = (make(x) for x in features())
        kept = copy.deepcopy((q, g))
        fitted = METHODS[name].new().fit(g)
        wanted = fitted.distance(q)
        assert bool((q == kept[0]).all() and (g == kept[1]).all())
        assert all(isinstance(x, type(q)) for x in (wanted, *fitted.topk(q, 3)))
        g[:] = 1
        assert bool((fitted.distance(q) == wanted).all())


@fitted_ones
def test_queries_may_differ_in_type_from_the_gallery(name):
    q, g = features()
    fitted = METHODS[name].new().fit(g)
    wanted = fitted.distance(q)
    assert_close(fitted.distance(q.double()), wanted, rtol=0, atol=1e-6)
    assert fitted.distance(q.half()).dtype == torch.float32
    empty = fitted.topk(np.empty((0, 8)), 4)
    assert [x.shape for x in empty] == [(0, 4), (0, 4)]
    assert fitted.distance(q[:0]).shape == (0, 30)


@fitted_ones
def test_use_before_fit_is_named(name):
    ranker, kind = METHODS[name].new(), METHODS[name].kind.__name__
    q = torch.ones(1, 8)
    uses = [lambda: ranker.graph, lambda: ranker.distance(q), lambda: ranker.topk(q, 1), lambda: ranker.extend(q)]
    for use in (*uses, lambda: ranker.save("a.npz")):
        with pytest.raises(RuntimeError, match=rf"{kind} must be fitted first: call fit\(gallery\)"):
            use()
    ranker(q, torch.ones(3, 8))
    with pytest.raises(RuntimeError, match="must be fitted first"):
        ranker.distance(q)


@fitted_ones
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
def test_bad_input_is_named_and_changes_nothing(name, use, error, text):
    q, g = features()
    fitted = METHODS[name].new().fit(g)
    wanted = fitted.distance(q)
    with pytest.raises(error, match=text):
        use(fitted)
    assert torch.equal(fitted.distance(q), wanted)


@pytest.mark.gpu
@fitted_ones
def test_gpu_save_loads_on_the_cpu(name, tmp_path):
    q, g = features()
    fitted = METHODS[name].new().fit(g.cuda())
    fitted.save(tmp_path / "a.npz")
    assert_close(METHODS[name].load(tmp_path / "a.npz").distance(q), fitted.distance(q.cuda()).cpu())
    with pytest.raises(ValueError, match="query must be on the gallery's device, cuda:0, got cpu"):
        fitted.distance(q)


# -- files, with AIM as the example --------------------------------------------------------------------------------


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


def test_save_names_a_bad_path(tmp_path):
    fitted = AIM(k1=5, k2=3).fit(features()[1])
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        fitted.save(tmp_path / "a.pt")
    with pytest.raises(FileNotFoundError, match="existing folder"):
        fitted.save(tmp_path / "none" / "a.npz")
