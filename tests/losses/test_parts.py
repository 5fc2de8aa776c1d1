import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from reference import g2da, saai
from vireid.losses import PartContrastiveLoss, PartDiversityLoss, part_contrastive_loss, part_diversity_loss

MAPS = ("sigmoid", "logits")


def batch(seed: int, size: int, ids: int, nodes: int = 3, dim: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Any identities in any modality in any order, and a mask that may leave an image without a node."""
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(size, nodes, dim, generator=g, dtype=torch.double),
        torch.randint(ids, (size,), generator=g) * 7 + 3,
        torch.randint(2, (size,), generator=g),
        torch.rand(size, nodes, generator=g) > 0.4,
    )


def papers_batch(nodes: int = 3, dim: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Three identities with two visible and two infrared images each, in no order."""
    g = torch.Generator().manual_seed(1)
    order = torch.randperm(12, generator=g)
    x = 0.7 * torch.randn(12, nodes, dim, generator=g, dtype=torch.double)
    mask = torch.rand(12, nodes, generator=g) > 0.3
    return x, torch.arange(3).repeat(4)[order], torch.arange(2).repeat_interleave(6)[order], mask


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    size=st.integers(1, 8),
    ids=st.integers(1, 4),
    nodes=st.integers(1, 3),
    masked=st.booleans(),
    epsilon=st.sampled_from([1.0, 2.0, 4.0]),
    normalize=st.booleans(),
)
def test_part_contrastive_equals_the_loop(device, seed, size, ids, nodes, masked, epsilon, normalize):
    x, labels, modality, mask = batch(seed, size, ids, nodes)
    mask = mask if masked else None
    ours, theirs = x.clone().to(device).requires_grad_(), x.clone().requires_grad_()
    options = {"epsilon": epsilon, "normalize": normalize}
    present = None if mask is None else mask.to(device)
    out = part_contrastive_loss(ours, labels.to(device), modality.to(device), mask=present, **options)
    expected = g2da.part_contrastive(theirs, labels, modality, mask=mask, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*compares the modalities")
        stated = PartContrastiveLoss(**options)(ours, labels.to(device), modality.to(device), mask=present)
    assert torch.equal(out, stated)
    assert_close(out.cpu(), expected.detach(), rtol=1e-10, atol=1e-12)
    out.backward()
    gradient = torch.zeros_like(x)
    if expected.requires_grad:
        (gradient,) = torch.autograd.grad(expected, theirs)
    assert_close(ours.grad.cpu(), gradient, rtol=1e-9, atol=1e-12)


def test_part_contrastive_by_hand():
    """One node in the plane: visible at the origin; infrared (3, 4) of its identity, (0, 0.5) and (0, 9) of others."""
    x = torch.tensor([[0.0, 0.0], [3, 4], [0, 0.5], [0, 9]])[:, None]
    labels, modality = torch.tensor([5, 5, 6, 7]), torch.tensor([0, 1, 1, 1])
    assert_close(part_contrastive_loss(x, labels, modality), torch.tensor((25 + 1.5**2 + 0) / 6))
    assert_close(part_contrastive_loss(x, labels, modality, epsilon=1.0), torch.tensor((25 + 0.25) / 6))
    # lengths are gone: (0, 0) stays and (0.6, 0.8) and (0, 1) are 1 away from it
    assert_close(part_contrastive_loss(x, labels, modality, normalize=True), torch.tensor((1 + 1 + 1) / 6))
    # a second node that is the same in all: it attracts nothing and repels the two others by ε²
    two = torch.cat([x, torch.ones_like(x)], 1)
    assert_close(part_contrastive_loss(two, labels, modality), torch.tensor((25 + 1.5**2 + 4 + 4) / 12))
    mask = torch.tensor([[True, True], [True, True], [True, False], [False, True]])
    out = part_contrastive_loss(two, labels, modality, mask=mask)
    assert_close(out, torch.tensor((25 + 0 + 1.5**2 + 4) / (2 * 4)))
    assert PartContrastiveLoss().epsilon == 2.0
    assert not PartContrastiveLoss().normalize


def test_features_of_absent_nodes_are_ignored():
    x, labels, modality, mask = papers_batch()
    expected = part_contrastive_loss(x.masked_fill(~mask[:, :, None], 0), labels, modality, mask=mask)
    for content in (math.nan, math.inf):
        for normalize in (False, True):
            rows = x.masked_fill(~mask[:, :, None], content).requires_grad_()
            out = part_contrastive_loss(rows, labels, modality, mask=mask, normalize=normalize)
            out.backward()
            assert rows.grad[~mask].eq(0).all()
            assert rows.grad[mask].isfinite().all()
            assert rows.grad[mask].any()
            if not normalize:
                assert_close(out, expected)
    everything = part_contrastive_loss(x, labels, modality, mask=torch.ones_like(mask))
    assert_close(everything, part_contrastive_loss(x, labels, modality))


def test_no_node_in_common_costs_nothing():
    x, labels, modality, _ = papers_batch(nodes=2)
    mask = torch.stack([modality == 0, modality == 1], 1)
    x.requires_grad_()
    out = part_contrastive_loss(x, labels, modality, mask=mask)
    out.backward()
    assert out == 0
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_coinciding_parts_of_two_persons_have_no_gradient_between_them():
    x = torch.zeros(3, 1, 2, dtype=torch.double)
    x[2, 0, 0] = 1.5
    x.requires_grad_()
    labels, modality = torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1])
    out = part_contrastive_loss(x, labels, modality)
    out.backward()
    assert_close(out.item(), (4 + 0.25) / 4)
    # of the mean over two pairs, halved: (ε - d) / 2 = 1/4, from the third only
    assert_close(x.grad[:, 0], torch.tensor([[0.25, 0], [0, 0], [-0.25, 0]]).double())


def test_nearly_equal_parts_survive_float32():
    """Parts 1e-4 apart: |a|^2 + |b|^2 - 2ab would have lost the distance."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 64, generator=g) + 1e-5 * torch.randn(12, 2, 64, generator=g)
    _, labels, modality, _ = papers_batch()
    same = torch.zeros_like(labels)
    expected = g2da.part_contrastive(x.double(), same, modality)
    assert expected < 1e-7
    assert_close(part_contrastive_loss(x, same, modality).double(), expected, rtol=1e-3, atol=0)
    expected = g2da.part_contrastive(x.double(), labels, modality, epsilon=1e-3)
    assert_close(part_contrastive_loss(x, labels, modality, epsilon=1e-3).double(), expected, rtol=1e-3, atol=0)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), size=st.integers(1, 9), ids=st.integers(1, 4))
def test_the_order_of_masked_images_and_nodes_is_irrelevant(seed, size, ids):
    x, labels, modality, mask = batch(seed, size, ids)
    g = torch.Generator().manual_seed(seed)
    order, parts = torch.randperm(size, generator=g), torch.randperm(3, generator=g)
    out = part_contrastive_loss(x, labels, modality, mask=mask)
    permuted = part_contrastive_loss(x[order][:, parts], labels[order], modality[order], mask=mask[order][:, parts])
    assert_close(permuted, out)


# -- Part diversity ------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    size=st.integers(1, 4),
    parts=st.integers(1, 5),
    pixels=st.integers(1, 6),
    maps=st.sampled_from(MAPS),
)
def test_part_diversity_equals_the_loop(device, seed, size, parts, pixels, maps):
    logits = 3 * torch.randn(size, parts, pixels, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    attention = logits.sigmoid() if maps == "sigmoid" else logits
    ours, theirs = attention.clone().to(device).requires_grad_(), attention.clone().requires_grad_()
    out, expected = part_diversity_loss(ours, maps=maps), saai.part_diversity(theirs, maps)
    assert_close(out.cpu(), expected.detach(), rtol=1e-10, atol=1e-12)
    if parts > 1:
        out.backward()
        expected.backward()
        assert_close(ours.grad.cpu(), theirs.grad, rtol=1e-9, atol=1e-12)
        assert theirs.grad.abs().sum() > 0
    if maps == "sigmoid":
        assert -1 <= out <= 0


def test_part_diversity_by_hand():
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
    expected = saai.part_diversity(attention.double())
    assert 1e-5 < -expected < 1e-3
    assert_close(part_diversity_loss(attention.to(device)).cpu().double(), expected, rtol=1e-5, atol=0)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), size=st.integers(1, 4), parts=st.integers(1, 5), maps=st.sampled_from(MAPS))
def test_the_order_of_images_parts_and_pixels_is_irrelevant(seed, size, parts, maps):
    g = torch.Generator().manual_seed(seed)
    attention = torch.rand(size, parts, 6, generator=g, dtype=torch.double)
    shuffled = attention
    for dim in range(3):
        shuffled = shuffled.index_select(dim, torch.randperm(attention.shape[dim], generator=g))
    assert_close(part_diversity_loss(shuffled, maps=maps), part_diversity_loss(attention, maps=maps))
