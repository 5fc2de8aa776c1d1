import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from vireid.losses.triplet import CrossModalityTripletLoss, cross_modality_triplet_loss


def batch(seed: int, size: int, ids: int, dim: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Any identities in any modality in any order: some have one image, some one modality."""
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(size, dim, generator=g, dtype=torch.double),
        torch.randint(ids, (size,), generator=g) * 7 + 3,
        torch.randint(2, (size,), generator=g),
    )


def papers_batch(dim: int = 6, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Four identities with two visible and two infrared images each, in no order."""
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(16, generator=g)
    x = torch.randn(16, dim, generator=g, dtype=torch.double)
    return x, torch.arange(4).repeat(4)[order], torch.arange(2).repeat_interleave(8)[order]


def distance(a: Tensor, b: Tensor) -> Tensor:
    square = sum((p - q) ** 2 for p, q in zip(a, b, strict=True))
    return square.sqrt() if square > 0 else square


def loop(x: Tensor, labels: Tensor, modality: Tensor, margin: float, normalize: bool) -> Tensor:
    """Image by image: the farthest of its identity and the nearest of another, both in the other modality."""
    if normalize and len(x):
        x = torch.stack([row / (row @ row).sqrt() if row.any() else row for row in x])
    identity, kind = labels.tolist(), modality.tolist()
    terms = []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if kind[j] != kind[i]]
        positives = [distance(x[i], x[j]) for j in others if identity[j] == identity[i]]
        negatives = [distance(x[i], x[j]) for j in others if identity[j] != identity[i]]
        if positives and negatives:
            term = margin + max(positives) - min(negatives)
            terms.append(term if term > 0 else term * 0)
    return sum(terms) / len(terms) if terms else torch.zeros(()).double()


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    size=st.integers(1, 12),
    ids=st.integers(1, 5),
    margin=st.sampled_from([0.3, 2.0]),
    normalize=st.booleans(),
)
def test_equals_the_loop(device, seed, size, ids, margin, normalize):
    x, labels, modality = batch(seed, size, ids)
    ours, theirs = x.clone().to(device).requires_grad_(), x.clone().requires_grad_()
    options = {"margin": margin, "normalize": normalize}
    out = cross_modality_triplet_loss(ours, labels.to(device), modality.to(device), **options)
    expected = loop(theirs, labels, modality, **options)
    assert out.shape == ()
    assert out >= 0
    assert_close(out.cpu(), expected.detach(), rtol=1e-10, atol=1e-12)
    assert torch.equal(out, CrossModalityTripletLoss(**options)(ours, labels.to(device), modality.to(device)))
    out.backward()
    gradient = torch.zeros_like(x)
    if expected.requires_grad:
        (gradient,) = torch.autograd.grad(expected, theirs)
    assert_close(ours.grad.cpu(), gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("normalize", [False, True])
def test_gradient_of_the_papers_batch(normalize, device):
    x, labels, modality = papers_batch()
    ours, theirs = x.clone().to(device).requires_grad_(), x.clone().requires_grad_()
    cross_modality_triplet_loss(ours, labels.to(device), modality.to(device), normalize=normalize).backward()
    loop(theirs, labels, modality, 0.3, normalize).backward()
    assert theirs.grad.abs().sum() > 0
    assert_close(ours.grad.cpu(), theirs.grad, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda x: cross_modality_triplet_loss(x, labels, modality, normalize=normalize), (x.requires_grad_(),)
    )


def test_by_hand():
    """On a line: identity 0 at 0 (visible), 3 and 1 (infrared), identity 1 at 0.5 (visible) and at 5 (infrared)."""
    x = torch.tensor([[0.0], [3.0], [1.0], [0.5], [5.0]])
    labels, modality = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, 1, 0, 1])
    # farthest of the own identity: 3, 3, 1, 4.5, 4.5 away; nearest of the other: 5, 2.5, 0.5, 0.5, 5
    terms = [0, 0.3 + 3 - 2.5, 0.3 + 1 - 0.5, 0.3 + 4.5 - 0.5, 0]
    assert_close(cross_modality_triplet_loss(x, labels, modality), torch.tensor(sum(terms) / 5))
    assert CrossModalityTripletLoss().margin == 0.3
    # without the last image nothing infrared is negative for the visible images, nor positive for image 3
    terms = [0.3 + 3 - 2.5, 0.3 + 1 - 0.5]
    assert_close(cross_modality_triplet_loss(x[:4], labels[:4], modality[:4]), torch.tensor(sum(terms) / 2))


def test_images_of_the_own_modality_play_no_part():
    """A negative of the own modality is near, the nearest of the other one is far."""
    x, labels, modality = papers_batch()
    x[:, 0] += 100.0 * modality
    own = (modality[:, None] == modality) & (labels[:, None] != labels)
    assert torch.cdist(x, x)[own].min() < 3
    out = cross_modality_triplet_loss(x, labels, modality)
    assert 0 < out < 10  # farthest and nearest are both about 100 away
    assert_close(out, loop(x, labels, modality, 0.3, False))


@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16], ids=str)
def test_degenerate_batches_are_finite(half, device):
    x = batch(4, 6, 1)[0]
    zeros, pairs, alternate = torch.zeros(6).long(), torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1] * 3)
    nothing = [
        (x, zeros, alternate),  # one identity: no negative
        (x, torch.arange(6), alternate),  # one image an identity: no positive
        (x, pairs, zeros),  # one modality
        (x[:1], zeros[:1], zeros[:1]),
        (x[:0], zeros[:0], zeros[:0]),
    ]
    something = [
        (x, pairs, torch.tensor([0, 0, 1, 1, 0, 1])),  # two identities in one modality
        (x[[0] * 6], pairs, alternate),  # one image over and over, across identities
        (x[[0, 0, 1, 1, 2, 2]], pairs, alternate),
        (x * 0, pairs, alternate),
        (x * 1e3, pairs, alternate),
    ]
    for normalize in (False, True):
        for rows, labels, modality in nothing + something:
            rows = rows.float().to(device).requires_grad_()
            with torch.autocast(device.type, dtype=half or torch.bfloat16, enabled=half is not None):
                out = cross_modality_triplet_loss(rows, labels.to(device), modality.to(device), normalize=normalize)
            out.backward()
            assert rows.grad.isfinite().all()
            expected = loop(rows.detach().cpu().double(), labels, modality, 0.3, normalize)
            assert_close(out.double().cpu(), expected, rtol=1e-5, atol=1e-5)  # float32 even under autocast
            if half is not None:
                assert cross_modality_triplet_loss(rows.to(half), labels.to(device), modality.to(device)).isfinite()
        for rows, labels, modality in nothing:
            rows = rows.clone().to(device).requires_grad_()
            out = cross_modality_triplet_loss(rows, labels.to(device), modality.to(device), normalize=normalize)
            out.backward()
            assert out == 0
            assert torch.equal(rows.grad, torch.zeros_like(rows))


def test_equally_hard_images_share_the_gradient():
    """Both negatives at distance 1 on either side: their pulls on the image cancel, each gets half."""
    x = torch.tensor([[0.0], [1.0], [-1.0], [3.0]]).double().requires_grad_()
    labels, modality = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 1, 1])
    cross_modality_triplet_loss(x, labels, modality).backward()
    assert_close(x.grad.flatten(), torch.tensor([-1.0, -0.5, 0.5, 1.0]).double())


def test_half_precision_features_are_computed_in_single():
    x, labels, modality = papers_batch(64)
    for half in (torch.bfloat16, torch.float16):
        rows = x.to(half)
        out = cross_modality_triplet_loss(rows, labels, modality)
        assert out.dtype == torch.float32
        assert_close(out.double(), loop(rows.double(), labels, modality, 0.3, False), rtol=1e-5, atol=0)


def test_small_distances_survive_float32():
    """Images 1e-3 from each other: |a|^2 + |b|^2 - 2ab would lose that distance in the rounding of the squares."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 64, generator=g) + 1e-4 * torch.randn(16, 64, generator=g)
    _, labels, modality = papers_batch()
    expected = loop(x.double(), labels, modality, 1e-3, False)
    assert 1e-4 < expected < 1e-2
    assert_close(cross_modality_triplet_loss(x, labels, modality, margin=1e-3).double(), expected, rtol=1e-3, atol=0)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), size=st.integers(1, 12), ids=st.integers(1, 5))
def test_batch_order_and_names_are_irrelevant(seed, size, ids):
    x, labels, modality = batch(seed, size, ids)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    ours, other = x.clone().requires_grad_(), x[order].requires_grad_()
    out = cross_modality_triplet_loss(ours, labels, modality)
    permuted = cross_modality_triplet_loss(other, labels[order], modality[order])
    assert_close(permuted, out)
    out.backward()
    permuted.backward()
    assert_close(other.grad, ours.grad[order])
    assert_close(cross_modality_triplet_loss(x, 1000 - labels, 5 - 3 * modality), out)


def test_inputs_are_not_modified():
    x, labels, modality = papers_batch()
    copies = x.clone(), labels.clone(), modality.clone()
    cross_modality_triplet_loss(x.requires_grad_(), labels, modality, normalize=True).backward()
    for now, before in zip((x, labels, modality), copies, strict=True):
        assert torch.equal(now, before)


X, LABELS = torch.ones(4, 3), torch.zeros(4).long()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: f(X[0], LABELS, LABELS), ValueError, r"x must have shape \(B, d\), got \(3,\)"),
        (lambda f: f(X.long(), LABELS, LABELS), TypeError, "x must be floating point, got torch.int64"),
        (lambda f: f([1.0], LABELS, LABELS), TypeError, "x must be a torch.Tensor, got list"),
        (lambda f: f(X, LABELS[:3], LABELS), ValueError, r"labels must have shape \(4,\).* got \(3,\)"),
        (lambda f: f(X, LABELS, LABELS[:, None]), ValueError, r"modality must have shape \(4,\).* got \(4, 1\)"),
        (lambda f: f(X, LABELS, LABELS > 0), TypeError, "modality must hold integers, got torch.bool"),
        (lambda f: f(X, LABELS, LABELS, margin=0), ValueError, "margin must be above 0 and finite, got 0"),
        (lambda f: f(X, LABELS, LABELS, margin=math.inf), ValueError, "margin must be above 0 and finite, got inf"),
        (lambda f: f(X, LABELS, LABELS, margin="1"), TypeError, "margin must be a number, got '1'"),
    ],
)
def test_bad_input(call, error, message):
    def as_module(x, labels, modality, **options):
        return CrossModalityTripletLoss(**options)(x, labels, modality)

    for form in (cross_modality_triplet_loss, as_module):
        with pytest.raises(error, match=message):
            call(form)
