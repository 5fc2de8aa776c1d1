import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from vireid.losses.parts import PartDiversityLoss, part_diversity_loss

MAPS = ("sigmoid", "logits")


def loop(attention: Tensor, maps: str) -> Tensor:
    """SAAI, Eq. 4, pair by pair, pixel by pixel."""
    total = torch.zeros((), dtype=attention.dtype)
    for image in attention:
        parts, pixels = image.shape
        for i in range(parts):
            for j in range(i + 1, parts):
                squares = sum((image[i, n] - image[j, n]) ** 2 for n in range(pixels))
                norm = (squares / pixels if maps == "sigmoid" else squares) ** 0.5
                total = total - 2 / (parts * (parts - 1)) * norm
    return total / len(attention)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    size=st.integers(1, 4),
    parts=st.integers(1, 5),
    pixels=st.integers(1, 6),
    maps=st.sampled_from(MAPS),
)
def test_equals_the_loop(device, seed, size, parts, pixels, maps):
    logits = 3 * torch.randn(size, parts, pixels, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    attention = logits.sigmoid() if maps == "sigmoid" else logits
    ours, theirs = attention.clone().to(device).requires_grad_(), attention.clone().requires_grad_()
    out, expected = part_diversity_loss(ours, maps=maps), loop(theirs, maps)
    assert out.shape == ()
    assert_close(out.cpu(), expected.detach(), rtol=1e-10, atol=1e-12)
    assert torch.equal(out, PartDiversityLoss(maps=maps)(ours))
    if parts > 1:
        out.backward()
        expected.backward()
        assert_close(ours.grad.cpu(), theirs.grad, rtol=1e-9, atol=1e-12)
        assert theirs.grad.abs().sum() > 0
    if maps == "sigmoid":
        assert -1 <= out <= 0


def test_by_hand():
    """Three maps of four pixels: distances 2, 2 and 0, twice that for the second image's logits."""
    first = torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    attention = torch.stack([first, 2 * first])
    assert_close(part_diversity_loss(attention[:1]), torch.tensor(-2 / 3))
    assert_close(part_diversity_loss(attention[:1], maps="logits"), torch.tensor(-4 / 3))
    assert_close(part_diversity_loss(attention, maps="logits"), torch.tensor(-(4 / 3 + 8 / 3) / 2))
    assert torch.equal(part_diversity_loss(attention), part_diversity_loss(attention, maps="sigmoid"))
    assert PartDiversityLoss().maps == "sigmoid"


@pytest.mark.parametrize("maps", MAPS)
def test_one_part_costs_nothing(maps):
    attention = torch.rand(3, 1, 5, requires_grad=True)
    loss = part_diversity_loss(attention, maps=maps)
    loss.backward()
    assert loss == 0
    assert torch.equal(attention.grad, torch.zeros(3, 1, 5))


@pytest.mark.parametrize("maps", MAPS)
def test_maps_that_coincide_have_a_finite_gradient(maps, device):
    """Equal maps have none between them; the pair with a third map keeps its own."""
    g = torch.Generator().manual_seed(0)
    one, other = torch.rand(2, 6, generator=g).to(device)
    for attention in (one.expand(2, 4, 6), torch.zeros(2, 3, 6, device=device)):
        attention = attention.clone().requires_grad_()
        loss = part_diversity_loss(attention, maps=maps)
        loss.backward()
        assert loss == 0
        assert torch.equal(attention.grad, torch.zeros_like(attention))
    attention = torch.stack([one, one, other])[None].requires_grad_()
    part_diversity_loss(attention, maps=maps).backward()
    scale = 1 / math.sqrt(6) if maps == "sigmoid" else 1.0
    away = -(one - other) / (one - other).norm() * scale / 3
    assert_close(attention.grad[0], torch.stack([away, away, -2 * away]))


def test_nearly_equal_maps_survive_float32(device):
    """Maps 1e-4 apart: |a|^2 + |b|^2 - 2ab would be off by a fifth here."""
    g = torch.Generator().manual_seed(0)
    attention = torch.rand(1, 1, 162, generator=g) + 1e-4 * torch.randn(1, 7, 162, generator=g)
    expected = loop(attention.double(), "sigmoid")
    assert 1e-5 < -expected < 1e-3
    assert_close(part_diversity_loss(attention.to(device)).cpu().double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("maps", MAPS)
def test_gradcheck(maps):
    attention = torch.rand(2, 4, 5, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: part_diversity_loss(x, maps=maps), (attention,))


@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_summed_in_float32(maps, dtype, device):
    attention = torch.rand(3, 4, 9).to(device, dtype).requires_grad_()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype != torch.float32):
        out = part_diversity_loss(attention, maps=maps)
    out.backward()
    assert out.dtype == torch.float32
    assert_close(out.double().cpu(), loop(attention.detach().double().cpu(), maps), rtol=1e-5, atol=1e-6)
    assert attention.grad.dtype == dtype
    assert torch.isfinite(attention.grad).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), size=st.integers(1, 4), parts=st.integers(1, 5), maps=st.sampled_from(MAPS))
def test_the_order_of_images_parts_and_pixels_is_irrelevant(seed, size, parts, maps):
    g = torch.Generator().manual_seed(seed)
    attention = torch.rand(size, parts, 6, generator=g, dtype=torch.double)
    shuffled = attention
    for dim in range(3):
        shuffled = shuffled.index_select(dim, torch.randperm(attention.shape[dim], generator=g))
    assert_close(part_diversity_loss(shuffled, maps=maps), part_diversity_loss(attention, maps=maps))


def test_the_input_is_not_modified_and_an_empty_batch_costs_nothing():
    attention = torch.rand(2, 3, 4)
    copy = attention.clone()
    part_diversity_loss(attention.requires_grad_()).backward()
    assert torch.equal(attention, copy)
    empty = torch.empty(0, 3, 4, requires_grad=True)
    loss = part_diversity_loss(empty)
    loss.backward()
    assert loss == 0


def test_bad_input():
    attention = torch.rand(2, 3, 4)
    for error, message, call in (
        (ValueError, r"attention must have shape \(B, p, n\).*got \(3, 4\)", lambda: part_diversity_loss(attention[0])),
        (
            ValueError,
            r"attention must have p and n of at least 1, got shape \(2, 0, 4\)",
            lambda: part_diversity_loss(attention[:, :0]),
        ),
        (
            ValueError,
            r"attention must have p and n of at least 1, got shape \(2, 3, 0\)",
            lambda: part_diversity_loss(attention[..., :0]),
        ),
        (
            TypeError,
            r"attention must be floating point, got torch\.int64",
            lambda: PartDiversityLoss()(attention.long()),
        ),
        (TypeError, r"attention must be a torch\.Tensor, got list", lambda: part_diversity_loss(attention.tolist())),
        (ValueError, r"maps must be one of .*, got 'soft'", lambda: part_diversity_loss(attention, maps="soft")),
        (ValueError, r"maps must be one of .*, got 'soft'", lambda: PartDiversityLoss(maps="soft")),
    ):
        with pytest.raises(error, match=message):
            call()
