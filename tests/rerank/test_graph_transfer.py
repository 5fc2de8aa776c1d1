"""H2FT and GFT as fitted re-rankers: against loops over single queries, the module itself, and a refit."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from reference import cift as ref
from reference.cift import randomized, values_of
from vireid.nn import GFT, H2FT, BNNeck
from vireid.protocols import RegDB
from vireid.rerank import AIM, AfterTransfer, GraphTransfer, graph_transfer

MODULES = {"h2ft": H2FT, "gft": GFT}
EXACT = {"rtol": 0, "atol": 1e-9}
both = pytest.mark.parametrize("name", MODULES)


def loop(module: nn.Module, q: Tensor, g: Tensor) -> Tensor:
    """The distance by plain loops, from v(q) and v(g)."""
    if isinstance(module, H2FT):
        f_q, f_g, _ = ref.h2ft_transfer(q, g, k=module.k, tau_hom=module.tau_hom, tau_het=module.tau_het)
    else:
        f_q, f_g, _, _ = ref.gft_transfer(q, g, k=module.k, tau=module.tau)
    return ref.cosine_distance(f_q, f_g)


def features(seed: int, nq: int, ng: int, d: int = 6) -> tuple[Tensor, Tensor]:
    """With a repeated image and a zero row."""
    x = torch.randn(nq + ng, d, generator=torch.Generator().manual_seed(seed)).double()
    x[-1] = x[len(x) // 2]
    x[seed % len(x)] = 0
    return x[:nq], x[nq:]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), nq=st.integers(1, 4), ng=st.integers(1, 9), k=st.integers(1, 11))
@both
def test_equals_the_loop_over_single_queries(device, name, seed, nq, ng, k):
    q, g = features(seed, nq, ng)
    module = randomized(MODULES[name](6, k=k), seed).eval()
    expected = loop(module, values_of(module, q), values_of(module, g))
    module.to(device)
    q, g = q.to(device), g.to(device)
    fitted = GraphTransfer(module).fit(g)
    for ours in (fitted.distance(q), graph_transfer(q, g, module), module.distance(q, g)):
        assert_close(ours.cpu(), expected, **EXACT)
    together = fitted.distance(q)
    for i in range(nq):
        assert_close(fitted.distance(q[i : i + 1])[0], together[i], **EXACT)


@both
def test_float32_and_half(device, name):
    q, g = (x.to(device) for x in features(1, 20, 60))
    module = randomized(MODULES[name](6)).eval().to(device)
    expected = module.distance(q, g)
    module.float()
    assert_close(graph_transfer(q.float(), g.float(), module).double(), expected, rtol=0, atol=1e-5)
    for half in (torch.float16, torch.bfloat16):
        x, y = q.to(half), g.to(half)
        ours = graph_transfer(x, y, module)
        assert ours.dtype == torch.float32
        assert_close(ours, graph_transfer(x.float(), y.float(), module), rtol=0, atol=1e-6)
        with torch.autocast(device.type, dtype=half):
            again = GraphTransfer(module).fit(y).distance(x)
        assert_close(again, ours, rtol=0, atol=1e-6)


@both
def test_whether_a_query_displaces_a_neighbor_does_not_depend_on_the_others(name):
    """Many cosines within rounding of the k-th neighbor's: a product of other size must not decide otherwise."""
    r = torch.Generator().manual_seed(0)
    g = torch.randint(-2, 3, (200, 4), generator=r).float()
    q = torch.randint(-2, 3, (50, 4), generator=r).float()
    module = MODULES[name](4, k=5, value=nn.Identity()).eval()
    fitted = GraphTransfer(module).fit(g)
    alone = torch.cat([fitted.distance(row[None]) for row in q])
    assert_close(fitted.distance(q), alone, rtol=0, atol=1e-5)
    assert_close(alone.double(), module.distance(q.double(), g.double()), rtol=0, atol=1e-5)


@both
@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_the_size_of_the_features_does_not_matter(name, scale):
    r = torch.Generator().manual_seed(1)
    q, g = torch.randn(7, 6, generator=r), torch.randn(30, 6, generator=r)
    module = MODULES[name](6, value=nn.Identity()).eval()
    assert_close(graph_transfer(q * scale, g * scale, module), graph_transfer(q, g, module), rtol=0, atol=1e-5)


@both
def test_a_training_module_answers_as_in_evaluation_and_stays_in_training(name):
    q, g = features(4, 5, 20)
    value = nn.Sequential(BNNeck(6), nn.Dropout(0.5))
    module = MODULES[name](6, value=value).double().eval()
    expected = module.distance(q, g)
    module.train()
    before = {key: x.clone() for key, x in module.state_dict().items()}
    fitted = GraphTransfer(module).fit(g)
    assert_close(fitted.distance(q), expected, rtol=0, atol=0)
    fitted.extend(g[:2])
    assert all(part.training for part in module.modules())
    assert_close(module.state_dict(), before, rtol=0, atol=0)


# -- files ---------------------------------------------------------------------------------------------------------


@both
def test_save_and_load_with_the_same_module(name, tmp_path):
    q, g = features(7, 5, 20)
    make = functools.partial(MODULES[name], 6, k=5)
    module = randomized(make())
    fitted = GraphTransfer(module).fit(g)
    fitted.save(tmp_path / "gallery.npz")
    again = make().double()
    again.load_state_dict(module.state_dict())
    loaded = GraphTransfer.load(tmp_path / "gallery.npz", again)
    assert_close(loaded.distance(q), fitted.distance(q), rtol=0, atol=0)
    assert_close(loaded.extend(g[:3]).distance(q), fitted.extend(g[:3]).distance(q), rtol=0, atol=0)


def test_load_wants_the_module_that_was_saved(tmp_path):
    _, g = features(8, 5, 20)
    module = randomized(H2FT(6))
    path = tmp_path / "gallery.npz"
    GraphTransfer(module).fit(g).save(path)

    def same_weights(other: nn.Module) -> nn.Module:
        other.load_state_dict(module.state_dict())
        return other.double()

    for other, what in (
        (same_weights(H2FT(6, k=5)), "differs in k$"),
        (same_weights(H2FT(6, tau_hom=0.3)), "differs in tau_hom$"),
        (same_weights(H2FT(6, tau_het=0.3)), "differs in tau_het$"),
        (randomized(H2FT(6), 1), "differs in weights$"),
        (same_weights(H2FT(6)).float(), "differs in weights$"),
        (same_weights(GFT(6)), "differs in module, tau, tau_het, tau_hom$"),
        (H2FT(6, value=nn.Identity()), "differs in value, weights$"),
        (same_weights(H2FT(6, value=BNNeck(6, eps=0.1))), "differs in value$"),
    ):
        with pytest.raises(ValueError, match=what):
            GraphTransfer.load(path, other)
    with pytest.raises(TypeError, match=r"module must be a transfer of vireid\.nn, such as H2FT, got Linear"):
        GraphTransfer.load(path, nn.Linear(6, 6))
    GraphTransfer.load(path, same_weights(H2FT(6).double()))


def test_save_stores_the_module_at_the_time_of_fit(tmp_path):
    _, g = features(9, 5, 20)
    module = randomized(H2FT(6))
    fitted = GraphTransfer(module).fit(g)
    module.value.running_mean.add_(1)
    fitted.save(tmp_path / "gallery.npz")
    with pytest.raises(ValueError, match="differs in weights"):
        GraphTransfer.load(tmp_path / "gallery.npz", module)


# -- reports and bad input -----------------------------------------------------------------------------------------


@both
def test_reports_name_the_module_and_what_it_uses(name):
    q, g = features(13, 8, 8)
    module = randomized(MODULES[name](6))
    ids, modality = torch.arange(4).repeat_interleave(2).repeat(2), torch.arange(2).repeat_interleave(8)
    evaluate = functools.partial(RegDB("visible_to_infrared").evaluate, torch.cat([q, g]), ids, modality)
    rows = [evaluate(rerank=form).rows[0] for form in (GraphTransfer(module), module.distance)]
    assert [(row.rerank, row.uses) for row in rows] == [(MODULES[name].__name__, "gallery")] * 2
    assert rows[0].trials == rows[1].trials


def test_features_that_overflow_in_v_are_named():
    module = H2FT(6)
    with torch.no_grad():
        next(module.parameters()).fill_(1e38)
    with pytest.raises(ValueError, match="gallery must be finite"):
        GraphTransfer(module).fit(torch.full((5, 6), 1e3))


def test_a_v_without_weights_takes_either_type():
    q, g = features(12, 5, 20)
    fitted = GraphTransfer(H2FT(6, value=nn.Identity())).fit(g.float())
    assert_close(fitted.distance(q), fitted.distance(q.float()), rtol=0, atol=1e-5)


@both
def test_extend_refuses_a_module_that_was_trained_further(name, tmp_path):
    q, g = (x.float() for x in features(12, 5, 20))
    module = MODULES[name](6, value=nn.Linear(6, 6))
    fitted = GraphTransfer(module).fit(g[:15])
    with torch.no_grad():
        module.value.weight.add_(1.0)
    with pytest.raises(RuntimeError, match=r"module must be as it was when fitted: call fit\(gallery\) again"):
        fitted.extend(g[15:])
    assert_close(fitted.fit(g[:15]).extend(g[15:]).distance(q), module.distance(q, g), rtol=0, atol=1e-5)
    with pytest.raises(RuntimeError, match="GraphTransfer must be fitted first"):
        GraphTransfer(module).extend(g)


@both
def test_a_query_too_large_for_the_type_of_the_gallery_is_named(name):
    q, g = features(13, 5, 20)
    q[1:] *= 1e50
    for value in (nn.Identity(), None):  # without weights, and with those of a type
        with pytest.raises(ValueError, match=r"query must be finite.* 4 of 5 rows, first in row 1"):
            graph_transfer(q, g.float(), MODULES[name](6, value=value))
    with pytest.raises(ValueError, match="gallery must be finite"):
        graph_transfer(g[:2].float(), q, MODULES[name](6))


@pytest.mark.parametrize("k", [1, 3, 25])
@pytest.mark.parametrize("scale", [1e-36, 1e-16, 1e20, 1e35])
def test_gft_with_features_of_very_different_size(k, scale):
    r = torch.Generator().manual_seed(14)
    q, g = torch.randn(5, 6, generator=r), torch.randn(20, 6, generator=r)
    module = GFT(6, k=k, value=nn.Identity())
    half = g.clone()
    half[::2] *= scale
    half[4] = 0
    for x, y in ((q * scale, g), (q, half), (q * scale, half)):
        f_q, f_g = module.transfer(x.double(), y.double())
        assert_close(graph_transfer(x, y, module).double(), ref.cosine_distance(f_q, f_g), rtol=0, atol=2e-6)


def test_features_that_are_transferred_themselves_are_ranked_but_not_fitted():
    module, x = GFT(6, k=3, transferred="features").eval(), torch.randn(12, 6)
    distance = graph_transfer(x[:4].numpy(), x[4:].numpy(), module)
    assert isinstance(distance, np.ndarray)
    assert_close(torch.from_numpy(distance), module.distance(x[:4], x[4:]))
    with pytest.raises(ValueError, match="transferred='features' needs the features"):
        GraphTransfer(module).fit(x[4:])


def test_another_re_ranker_after_the_transfer():
    q, g = features(15, 5, 20)
    module, aim = randomized(H2FT(6)), AIM(k1=4, k2=2)
    f_q, f_g = module.transfer(q, g)
    after = AfterTransfer(module, aim)
    assert_close(after(q, g), aim(f_q, f_g), rtol=0, atol=0)
    assert isinstance(after(q.numpy(), g.numpy()), np.ndarray)
    assert (after.uses, after.settings, after.__name__) == ("gallery", aim.settings, "H2FT + AIM")
    plain = AfterTransfer(module, lambda q, g: torch.cdist(q, g))
    assert (plain.uses, plain.settings) == ("unknown", {})
    with pytest.raises(TypeError, match="module must be an H2FT, got GFT"):
        AfterTransfer(GFT(6), aim)
    for bad in (AIM, 3):
        with pytest.raises(TypeError, match=r"rerank must be callable with \(query, gallery\), got"):
            AfterTransfer(module, bad)
