import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from reference import agw
from vireid.nn import SharedFeatureTransfer
from vireid.rerank import GraphTransfer


def layer_of(k: int = 2, activation: str = "none", dim: int = 5) -> SharedFeatureTransfer:
    layer = SharedFeatureTransfer(dim, k=k, activation=activation).double()
    torch.nn.init.normal_(layer.map.weight)
    return layer


def weight_of(layer: SharedFeatureTransfer) -> torch.Tensor:
    return layer.map.weight.detach()


both = pytest.mark.parametrize("activation", ["none", "relu"])


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    size=st.integers(1, 9),
    k=st.integers(1, 5),
    activation=st.sampled_from(["none", "relu"]),
)
def test_a_batch_equals_the_loop(seed, size, k, activation):
    torch.manual_seed(seed)
    layer, x, modality = layer_of(k, activation), torch.randn(size, 5).double(), torch.randint(2, (size,))
    out = layer(x, modality)
    expected = agw.shared_transfer(x, modality, weight_of(layer), k, activation == "relu")
    assert_close(out.query, expected, rtol=1e-9, atol=1e-12)
    assert_close(out.gallery, expected, rtol=1e-9, atol=1e-12)
    assert_close(out.affinity_het.sum(1), torch.ones(size).double())
    assert (out.affinity_het > 0).sum(1).max() <= 2 * k


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    queries=st.integers(1, 20),
    size=st.integers(1, 7),
    k=st.integers(1, 5),
    activation=st.sampled_from(["none", "relu"]),
)
def test_every_query_by_itself_equals_the_loop(seed, queries, size, k, activation):
    torch.manual_seed(seed)
    layer, relu = layer_of(k, activation), activation == "relu"
    query, gallery = torch.randn(queries, 5).double(), torch.randn(size, 5).double()
    query[0] = 3 * gallery[0]  # one that coincides
    expected = agw.shared_distance(query, gallery, weight_of(layer), k, relu)
    assert_close(layer.distance(query, gallery), expected, rtol=0, atol=1e-7)
    f_q, f_g = layer.transfer(query, gallery)
    alone = torch.cat([query[:1], gallery])
    loop = agw.shared_transfer(alone, (torch.arange(size + 1) > 0).long(), weight_of(layer), k, relu)
    assert_close(f_q[0], loop[0], rtol=1e-6, atol=1e-7)
    assert_close(f_g[0], loop[1:], rtol=1e-6, atol=1e-7)
    assert f_g.shape == (queries, size, 5)


@both
def test_float32_is_near_and_a_query_does_not_see_the_others(activation, device):
    layer = layer_of(4, activation, dim=16).float().to(device)
    query, gallery = torch.randn(40, 16, device=device), torch.randn(60, 16, device=device)
    query[:5], gallery[30:32] = gallery[:5], gallery[:1]
    distance = layer.distance(query, gallery)
    expected = layer.double().distance(query.double(), gallery.double())
    assert_close(distance.double(), expected, rtol=0, atol=3e-4)
    layer.float()
    assert_close(torch.cat([layer.distance(q[None], gallery) for q in query]), distance, rtol=0, atol=3e-4)
    assert torch.equal(distance[:, 30], distance[:, 0])


def test_zero_rows_and_an_image_over_and_over():
    layer = layer_of()
    for rows in (torch.zeros(4, 5).double(), torch.ones(4, 5).double()):
        out = layer(rows.requires_grad_(), torch.arange(4) % 2)
        out.query.sum().backward()
        assert rows.grad.isfinite().all()
        assert layer.distance(rows[:2], rows[2:]).isfinite().all()


def test_it_starts_as_the_identity_of_features_and_is_a_re_ranker():
    layer = SharedFeatureTransfer(6, k=1)
    query, gallery = torch.randn(3, 6), torch.randn(8, 6)
    out = layer.transfer(query, gallery)[0]
    near = gallery[(torch.nn.functional.normalize(query) @ torch.nn.functional.normalize(gallery).T).argmax(1)]
    weight = 1 - ((torch.cosine_similarity(query, near) - 1) / -2).sqrt()[:, None]
    assert_close(out, (query + weight * near) / (1 + weight), rtol=1e-4, atol=1e-5)
    fitted = GraphTransfer(layer).fit(gallery)
    assert_close(fitted.distance(query), layer.distance(query, gallery))
    assert layer.uses == "gallery"


def test_an_unknown_activation_is_named():
    with pytest.raises(ValueError, match="activation must be one of 'none', 'relu', got 'elu'"):
        SharedFeatureTransfer(4, activation="elu")
