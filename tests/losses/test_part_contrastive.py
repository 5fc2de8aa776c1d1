import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from vireid.losses.parts import PartContrastiveLoss, part_contrastive_loss


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


def loop(
    nodes: Tensor, labels: Tensor, modality: Tensor, mask: Tensor | None, epsilon: float, normalize: bool
) -> Tensor:
    """Eq. 5 over every visible with every infrared image, part by part."""
    identity, kind = labels.tolist(), modality.tolist()
    total, count = torch.zeros(()).double(), 0
    for i in range(len(nodes)):
        for j in range(len(nodes)):
            if kind[i] != 0 or kind[j] != 1:
                continue
            for k in range(nodes.shape[1]):
                if mask is not None and not (mask[i, k] and mask[j, k]):
                    continue
                a, b = nodes[i, k], nodes[j, k]
                if normalize:
                    a, b = (v / (v @ v).sqrt() if v.any() else v for v in (a, b))
                square = sum((p - q) ** 2 for p, q in zip(a, b, strict=True))
                d = square.sqrt() if square > 0 else square
                count += 1
                if identity[i] == identity[j]:
                    total = total + square
                elif d < epsilon:
                    total = total + (epsilon - d) ** 2
    return total / (2 * count) if count else total


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    size=st.integers(1, 8),
    ids=st.integers(1, 4),
    nodes=st.integers(1, 3),
    masked=st.booleans(),
    epsilon=st.sampled_from([1.0, 2.0, 4.0]),
    normalize=st.booleans(),
)
def test_equals_the_loop(device, seed, size, ids, nodes, masked, epsilon, normalize):
    x, labels, modality, mask = batch(seed, size, ids, nodes)
    mask = mask if masked else None
    ours, theirs = x.clone().to(device).requires_grad_(), x.clone().requires_grad_()
    options = {"epsilon": epsilon, "normalize": normalize}
    inputs = ours, labels.to(device), modality.to(device)
    out = part_contrastive_loss(*inputs, mask=None if mask is None else mask.to(device), **options)
    expected = loop(theirs, labels, modality, mask, **options)
    assert out.shape == ()
    assert_close(out.cpu(), expected.detach(), rtol=1e-10, atol=1e-12)
    module = PartContrastiveLoss(**options)
    assert torch.equal(out, module(*inputs, mask=None if mask is None else mask.to(device)))
    out.backward()
    gradient = torch.zeros_like(x)
    if expected.requires_grad:
        (gradient,) = torch.autograd.grad(expected, theirs)
    assert_close(ours.grad.cpu(), gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_gradient_of_the_papers_batch(masked, normalize):
    x, labels, modality, mask = papers_batch()
    mask = mask if masked else None
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    part_contrastive_loss(ours, labels, modality, mask=mask, normalize=normalize).backward()
    loop(theirs, labels, modality, mask, 2.0, normalize).backward()
    assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-12)
    assert theirs.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(
        lambda x: part_contrastive_loss(x, labels, modality, mask=mask, normalize=normalize), (ours,)
    )


def test_by_hand():
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


def test_what_an_absent_node_holds_is_not_looked_at():
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


@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_degenerate_batches_are_finite(masked, half, device):
    x = batch(4, 6, 1)[0]
    zeros, pairs, alternate = torch.zeros(6).long(), torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1] * 3)
    mask = torch.ones(6, 3, dtype=torch.bool) if masked else None
    if masked:
        mask[0], mask[3, 1] = False, False
    nothing = [(x, pairs, zeros), (x, pairs, zeros + 1), (x[:1], zeros[:1], zeros[:1]), (x[:0], zeros[:0], zeros[:0])]
    something = [
        (x, zeros, alternate),  # one identity
        (x, torch.arange(6), alternate),  # one image an identity
        (x[:, [0, 0, 0]], pairs, torch.tensor([0, 0, 1, 1, 0, 1])),
        (x[[0] * 6], pairs, alternate),  # one image over and over: every distance is 0
        (x * 0, pairs, alternate),
        (x * 1e3, pairs, alternate),
    ]
    for rows, labels, modality in nothing + something:
        present = mask if mask is None else mask[: len(rows)]
        there = None if present is None else present.to(device)
        for normalize in (False, True):
            leaf = rows.float().to(device).requires_grad_()
            with torch.autocast(device.type, dtype=half or torch.bfloat16, enabled=half is not None):
                inputs = leaf, labels.to(device), modality.to(device)
                out = part_contrastive_loss(*inputs, mask=there, normalize=normalize)
                assert half is None or part_contrastive_loss(leaf.to(half), *inputs[1:], mask=there).isfinite()
            out.backward()
            assert leaf.grad.isfinite().all()
            expected = loop(rows.float().double(), labels, modality, present, 2.0, normalize)
            assert_close(out.double().cpu(), expected, rtol=1e-5, atol=1e-6)  # float32 even under autocast
            if len(rows) < 2 or len(modality.unique()) < 2:
                assert out == 0
                assert torch.equal(leaf.grad, torch.zeros_like(leaf))


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
    expected = loop(x.double(), same, modality, None, 2.0, False)
    assert expected < 1e-7
    assert_close(part_contrastive_loss(x, same, modality).double(), expected, rtol=1e-3, atol=0)
    expected = loop(x.double(), labels, modality, None, 1e-3, False)
    assert_close(part_contrastive_loss(x, labels, modality, epsilon=1e-3).double(), expected, rtol=1e-3, atol=0)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), size=st.integers(1, 9), ids=st.integers(1, 4))
def test_order_of_images_and_nodes_and_names_are_irrelevant(seed, size, ids):
    x, labels, modality, mask = batch(seed, size, ids)
    g = torch.Generator().manual_seed(seed)
    order, parts = torch.randperm(size, generator=g), torch.randperm(3, generator=g)
    ours, other = x.clone().requires_grad_(), x[order][:, parts].requires_grad_()
    out = part_contrastive_loss(ours, labels, modality, mask=mask)
    permuted = part_contrastive_loss(other, labels[order], modality[order], mask=mask[order][:, parts])
    assert_close(permuted, out)
    out.backward()
    permuted.backward()
    assert_close(other.grad, ours.grad[order][:, parts])
    assert_close(part_contrastive_loss(x, 1000 - labels, 1 - modality, mask=mask), out)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_features_are_computed_in_single(half):
    x, labels, modality, _ = papers_batch(dim=64)
    rows = (0.1 * x).to(half)
    out = part_contrastive_loss(rows, labels, modality)
    assert out.dtype == torch.float32
    assert_close(out.double(), loop(rows.double(), labels, modality, None, 2.0, False), rtol=1e-5, atol=0)


def test_inputs_are_not_modified():
    inputs = papers_batch()
    copies = [t.clone() for t in inputs]
    x, labels, modality, mask = inputs
    part_contrastive_loss(x.requires_grad_(), labels, modality, mask=mask, normalize=True).backward()
    for now, before in zip(inputs, copies, strict=True):
        assert torch.equal(now, before)


X, LABELS = torch.ones(4, 3, 2), torch.zeros(4).long()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: f(X.numpy(), LABELS, LABELS), TypeError, "nodes must be a torch.Tensor, got ndarray"),
        (lambda f: f(X[0], LABELS, LABELS), ValueError, r"nodes must have shape \(B, K\+1, d\).* got \(3, 2\)"),
        (
            lambda f: f(X[:, :0], LABELS, LABELS),
            ValueError,
            r"nodes must have K.1 and d of at least 1, got shape \(4, 0, 2\)",
        ),
        (lambda f: f(X.long(), LABELS, LABELS), TypeError, "nodes must be floating point, got torch.int64"),
        (lambda f: f(X, LABELS[:3], LABELS), ValueError, r"labels must have shape \(4,\).* got \(3,\)"),
        (lambda f: f(X, LABELS, LABELS.double()), TypeError, "modality must hold integers, got torch.float64"),
        (lambda f: f(X, LABELS, LABELS, mask=[True]), TypeError, "mask must be a torch.Tensor, got list"),
        (lambda f: f(X, LABELS, LABELS, mask=X[..., 0]), TypeError, "mask must be bool, got torch.float32"),
        (lambda f: f(X, LABELS, LABELS, mask=X > 0), ValueError, r"mask must have shape \(4, 3\), got \(4, 3, 2\)"),
    ],
)
def test_bad_input(call, error, message):
    for form in (part_contrastive_loss, PartContrastiveLoss()):
        with pytest.raises(error, match=message):
            call(form)


def test_bad_epsilon():
    for epsilon, error in ((0, ValueError), (math.inf, ValueError), ("2", TypeError)):
        with pytest.raises(error, match="epsilon must be"):
            part_contrastive_loss(X, LABELS, LABELS, epsilon=epsilon)
        with pytest.raises(error, match="epsilon must be"):
            PartContrastiveLoss(epsilon=epsilon)
