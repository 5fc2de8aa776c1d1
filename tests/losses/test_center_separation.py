import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from vireid.losses.centers import CenterSeparationLoss, center_separation_loss


def length(x: Tensor) -> Tensor:
    """Its gradient at 0 is 0."""
    squares = sum(v * v for v in x)
    return squares**0.5 if squares > 0 else 0 * squares


def loop(x: Tensor, labels: Tensor, *, rho1: float, rho2: float, normalize: bool = False) -> Tensor:
    """SAAI, Eq. 5, image by image and pair by pair."""
    rows = [row / length(row) if normalize and length(row) > 0 else row for row in x]
    identity = labels.tolist()
    centers = {}
    for of in set(identity):
        own = [row for row, y in zip(rows, identity, strict=True) if y == of]
        centers[of] = own[0] if len(own) == 1 else sum(own) / len(own)
    zero = torch.zeros((), dtype=x.dtype)
    pull = sum(torch.maximum(length(row - centers[y]) - rho1, zero) for row, y in zip(rows, identity, strict=True))
    names, push = sorted(centers), zero
    for a, j in enumerate(names):
        for k in names[a + 1 :]:
            push = push + torch.maximum(rho2 - length(centers[j] - centers[k]), zero)
    pairs = len(names) * (len(names) - 1) / 2
    return pull / len(rows) + (push / pairs if pairs else 0)


def batch(seed: int, size: int, ids: int, dim: int = 5) -> tuple[Tensor, Tensor]:
    """Any identities in any order, some with one image."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(size, dim, generator=g, dtype=torch.double), torch.randint(ids, (size,), generator=g) * 7 - 3


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    size=st.integers(1, 10),
    ids=st.integers(1, 5),
    margins=st.sampled_from([(0.01, 0.7), (0.5, 2.0), (1.5, 4.0), (0.2, 0.0)]),
    scale=st.sampled_from([0.3, 1.0]),
    normalize=st.booleans(),
)
def test_equals_the_loop(device, seed, size, ids, margins, scale, normalize):
    x, labels = batch(seed, size, ids)
    x, options = x * scale, {"rho1": margins[0], "rho2": margins[1], "normalize": normalize}
    ours, theirs = x.clone().to(device).requires_grad_(), x.clone().requires_grad_()
    out, expected = center_separation_loss(ours, labels.to(device), **options), loop(theirs, labels, **options)
    assert out.shape == ()
    assert_close(out.cpu(), expected.detach(), rtol=1e-10, atol=1e-12)
    assert torch.equal(out, CenterSeparationLoss(**options)(ours, labels.to(device)))
    out.backward()
    expected.backward()
    assert_close(ours.grad.cpu(), theirs.grad, rtol=1e-8, atol=1e-11)


def test_by_hand():
    """Identity 0 at (0, 0) and (2, 0), identity 1 at (0, 3), identity 2 at (1, 1): centres (1, 0), (0, 3), (1, 1)."""
    x, labels = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0], [1.0, 1.0]]), torch.tensor([0, 0, 1, 2])
    pull = (0.75 + 0.75) / 4
    push = (4 - math.sqrt(10)) + (4 - 1) + (4 - math.sqrt(5))
    assert_close(center_separation_loss(x, labels, rho1=0.25, rho2=4.0), torch.tensor(pull + push / 3))
    # beyond rho2 and within rho1 nothing acts
    assert center_separation_loss(x, labels, rho1=1.0, rho2=1.0) == 0
    assert_close(center_separation_loss(x, labels), torch.tensor(2 * 0.99 / 4))


def test_defaults_are_the_papers_and_each_option_matters():
    x, labels = batch(1, 16, 4)
    x = 0.2 * x
    stated = center_separation_loss(x, labels, rho1=0.01, rho2=0.7, normalize=False)
    assert torch.equal(center_separation_loss(x, labels), stated)
    assert torch.equal(CenterSeparationLoss()(x, labels), stated)
    changes = [{}, {"rho1": 0.1}, {"rho2": 0.8}, {"normalize": True}]
    assert len({round(center_separation_loss(x, labels, **change).item(), 6) for change in changes}) == 4


@pytest.mark.parametrize("normalize", [False, True])
def test_gradcheck(normalize):
    """Three images, two, and one alone; hinges on either side of their corner."""
    x, labels = batch(2, 6, 1)[0].requires_grad_(), torch.tensor([4, 0, 4, 9, 0, 4])
    options = {"rho1": 0.8, "rho2": 1.3 if normalize else 2.5, "normalize": normalize}
    assert torch.autograd.gradcheck(lambda x: center_separation_loss(x, labels, **options), (x,))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16], ids=str)
def test_degenerate_batches_are_finite(normalize, half, device):
    x = batch(4, 6, 1)[0].float()
    zeros, pairs = torch.zeros(6).long(), torch.tensor([0, 0, 1, 1, 2, 2])
    cases = [
        (x, zeros),  # one identity
        (x, torch.arange(6)),  # one image an identity
        (x[:1], zeros[:1]),  # one image
        (x[[0] * 6], pairs),  # one image over and over, across identities
        (x[[0, 0, 1, 1, 2, 2]], pairs),  # every image is its centre
        (x * 0, pairs),
        (x * 1e3, pairs),
    ]
    for rows, labels in cases:
        rows = rows.to(device, half or torch.float32).requires_grad_()
        with torch.autocast(device.type, dtype=half or torch.bfloat16, enabled=half is not None):
            out = center_separation_loss(rows, labels.to(device), normalize=normalize)
        out.backward()
        assert out.dtype == torch.float32
        assert torch.isfinite(rows.grad).all()
        expected = loop(rows.detach().double().cpu(), labels, rho1=0.01, rho2=0.7, normalize=normalize)
        assert_close(out.double().cpu(), expected, rtol=1e-5, atol=1e-6)


def test_a_distance_of_zero_has_no_gradient(device):
    x, labels = torch.randn(3, 4, device=device)[[0, 0, 1, 2]].requires_grad_(), torch.tensor([0, 1, 2, 2])
    center_separation_loss(x[:2], labels[:2].to(device), rho1=0.0).backward()  # two centres that coincide
    assert torch.equal(x.grad, torch.zeros_like(x))
    single = torch.randn(1, 4, device=device).requires_grad_()
    loss = center_separation_loss(single, labels[:1].to(device), rho1=0.0)
    loss.backward()
    assert loss == 0
    assert torch.equal(single.grad, torch.zeros_like(single))
    center_separation_loss(x, labels.to(device)).backward()  # the other two are pulled together all the same
    assert x.grad[2:].abs().sum() > 0


@pytest.mark.parametrize("normalize", [False, True])
def test_small_distances_survive_float32(normalize, device):
    """Images 3e-3 from their centre and centres 2e-2 apart: |a|^2 + |b|^2 - 2ab would lose these distances."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat_interleave(8)
    x = torch.randn(1, 64, generator=g) + 3e-3 * torch.randn(4, 64, generator=g)[labels]
    x = x + 5e-4 * torch.randn(32, 64, generator=g)
    options = {"rho1": 0.0, "rho2": 0.05, "normalize": normalize}
    expected = loop(x.double(), labels, **options)
    assert 1e-4 < expected < 5e-2
    out = center_separation_loss(x.to(device), labels.to(device), **options)
    assert_close(out.cpu().double(), expected, rtol=1e-4, atol=0)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), size=st.integers(1, 12), ids=st.integers(1, 5), normalize=st.booleans())
def test_row_order_and_names_of_identities_are_irrelevant(seed, size, ids, normalize):
    x, labels = batch(seed, size, ids)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    out = center_separation_loss(x, labels, rho2=3.0, normalize=normalize)
    assert_close(center_separation_loss(x[order], labels[order], rho2=3.0, normalize=normalize), out)
    assert_close(center_separation_loss(x, 1000 - labels, rho2=3.0, normalize=normalize), out)


def test_inputs_are_not_modified_and_an_empty_batch_costs_nothing():
    x, labels = batch(5, 9, 3)
    copies = x.clone(), labels.clone()
    center_separation_loss(x.requires_grad_(), labels, normalize=True).backward()
    assert torch.equal(x, copies[0])
    assert torch.equal(labels, copies[1])
    empty = torch.empty(0, 5, requires_grad=True)
    loss = center_separation_loss(empty, torch.empty(0, dtype=torch.long))
    loss.backward()
    assert loss == 0


def test_bad_input():
    x, labels = batch(6, 4, 2)
    loss = center_separation_loss
    for error, message, call in (
        (ValueError, r"x must have shape \(B, d\), got \(5,\)", lambda: loss(x[0], labels)),
        (TypeError, r"x must be floating point, got torch\.int64", lambda: loss(x.long(), labels)),
        (ValueError, r"labels must have shape \(4,\).*got \(3,\)", lambda: loss(x, labels[:3])),
        (TypeError, r"labels must hold integers, got torch\.float64", lambda: loss(x, labels.double())),
        (ValueError, r"rho1 must be at least 0 and finite, got -0\.1", lambda: loss(x, labels, rho1=-0.1)),
        (ValueError, r"rho2 must be at least 0 and finite, got nan", lambda: loss(x, labels, rho2=math.nan)),
        (ValueError, r"rho2 must be at least 0 and finite, got inf", lambda: CenterSeparationLoss(rho2=math.inf)),
        (TypeError, r"rho1 must be a number, got '0\.1'", lambda: CenterSeparationLoss(rho1="0.1")),
    ):
        with pytest.raises(error, match=message):
            call()


def test_distances_of_many_nearly_equal_centres_do_not_cancel():
    """Beyond 25 rows torch.cdist goes by the matrix product unless told otherwise; here that loses every digit."""
    labels = torch.arange(30)
    x = 100 + 1e-3 * torch.randn(30, 8)
    expected = center_separation_loss(x.double(), labels)
    assert_close(center_separation_loss(x, labels).double(), expected, rtol=1e-5, atol=1e-5)
