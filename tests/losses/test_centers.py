import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from batches import any_batch
from reference import cift, saai
from vireid.losses import CenterSeparationLoss, HCCLoss, center_separation_loss, hcc_loss

COMBINATIONS = [
    {"distance": d, "centers": c, "negatives": n, "normalize": z, "margin": 6.0 if d == "kl" else 0.6}
    for d, c, n, z in itertools.product(("euclidean", "kl"), ("shared", "cross"), ("mean", "sum"), (True, False))
] + [
    {
        "distance": "kl",
        "centers": c,
        "negatives": n,
        "normalize": True,
        "margin": 6.0,
        "kl_direction": d,
        "kl_center": k,
    }
    for c, n, (d, k) in itertools.product(
        ("shared", "cross"),
        ("mean", "sum"),
        (("from_center", "probabilities"), ("to_center", "logits"), ("from_center", "logits")),
    )
]


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    size=st.integers(1, 10),
    ids=st.integers(1, 5),
    scale=st.sampled_from([0.3, 1.0, 8.0]),
    options=st.sampled_from(COMBINATIONS),
)
def test_hcc_equals_the_loop(device, seed, size, ids, scale, options):
    x, labels, modality = any_batch(seed, size, ids)
    x = x * scale
    options = options | {"margin": options["margin"] if scale > 1 else 1.5}  # hinges on either side of their corner
    out = hcc_loss(x.to(device), labels.to(device), modality.to(device), **options)
    expected = cift.hcc(x, labels, modality, **options)
    # an image that is its own center has distance 0; a safe square root may be 1e-6 off there
    assert_close(out.cpu(), expected, rtol=1e-9, atol=1e-5 if options["distance"] == "euclidean" else 1e-9)


def test_hcc_by_hand():
    """Identity 0 at (0, 0) and (2, 0), identity 1 at (0, 3): centers (1, 0) and (0, 3)."""
    x, labels = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0]]).double(), torch.tensor([0, 0, 1])
    options = {"normalize": False, "margin": 4.0}
    pushes = (4 - 3) + (4 - math.sqrt(13)) + (4 - math.sqrt(10))
    out = hcc_loss(x, labels, **options)
    assert_close(out.item(), (1 + 1 + 0 + pushes) / 3, rtol=0, atol=1e-6)
    # across: the images of identity 0 have each other as center, the one of identity 1 drops out
    across = hcc_loss(x, labels, torch.tensor([0, 1, 1]), centers="cross", **options)
    assert_close(across.item(), ((2 + 4 - 3) + (2 + 0)) / 2, rtol=0, atol=1e-6)


def test_hcc_of_logits_by_hand():
    """Probabilities (1/2, 1/2) and (1/5, 4/5) of one identity: logits (0, 0) and (0, log 4), mean (0, log 2)."""
    x, labels, log = torch.tensor([[0.0, 0.0], [0.0, math.log(4)]]), torch.tensor([0, 0]), math.log
    rows, centers = ((0.5, 0.5), (0.2, 0.8)), {"probabilities": (0.35, 0.65), "logits": (1 / 3, 2 / 3)}
    for name, c in centers.items():
        to = sum(p * log(p / q) for row in rows for p, q in zip(row, c, strict=True)) / 2
        back = sum(q * log(q / p) for row in rows for p, q in zip(row, c, strict=True)) / 2
        for direction, expected in (("to_center", to), ("from_center", back)):
            out = hcc_loss(x, labels, distance="kl", kl_center=name, kl_direction=direction)
            assert_close(out.item(), expected, rtol=0, atol=1e-6)


def test_small_distances_of_hcc_survive_float32():
    """Images 1e-3 from their center: |a|^2 + |b|^2 - 2ab would lose that distance in the rounding of the squares."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat_interleave(8)
    x = torch.randn(4, 64, generator=g)[labels] + 1e-3 * torch.randn(32, 64, generator=g)
    options = {"margin": 0.1, "distance": "euclidean", "centers": "shared", "negatives": "mean", "normalize": True}
    expected = cift.hcc(x.double(), labels, **options)
    assert 1e-4 < expected < 1e-2
    assert_close(hcc_loss(x, labels, **options).double(), expected, rtol=1e-3, atol=0)


def test_defaults_of_hcc_are_the_papers_and_each_option_matters():
    x, labels, modality = any_batch(3, 16, 4)
    base = {"margin": 0.6, "distance": "euclidean", "centers": "shared", "negatives": "mean", "normalize": True}
    assert torch.equal(hcc_loss(x, labels), hcc_loss(x, labels, **base))
    for distance, margin in (("euclidean", 0.6), ("kl", 6.0)):
        stated = hcc_loss(x, labels, distance=distance, margin=margin)
        assert torch.equal(hcc_loss(x, labels, distance=distance), stated)
        assert HCCLoss(distance=distance).margin == margin
    base, values = base | {"margin": 1.5}, []
    changes = {"margin": 1.2, "distance": "kl", "centers": "cross", "negatives": "sum", "normalize": False}
    for change in ({}, *({name: value} for name, value in changes.items())):
        values.append(hcc_loss(x, labels, modality, **base | change).item())
    assert len({round(v, 6) for v in values}) == len(values)
    kl = base | {"distance": "kl"}
    assert torch.equal(hcc_loss(x, labels, **kl), hcc_loss(x, labels, **kl | {"normalize": False}))
    assert torch.equal(
        hcc_loss(x, labels, **kl), hcc_loss(x, labels, **kl, kl_direction="to_center", kl_center="probabilities")
    )
    readings = {"kl_direction": "from_center", "kl_center": "logits"}
    for name, value in readings.items():
        assert (hcc_loss(x, labels, **kl, **{name: value}) - hcc_loss(x, labels, **kl)).abs() > 1e-3
    assert torch.equal(hcc_loss(x, labels, **base), hcc_loss(x, labels, **base, **readings))  # of KL only


@pytest.mark.parametrize("options", [o for o in COMBINATIONS if o["distance"] == "kl"], ids=str)
def test_confident_logits_neither_overflow_nor_lose_their_gradient(options):
    x = torch.tensor([[200.0, 0, 0], [190.0, 0, 0], [0, 200.0, 0], [0, 0, 200.0]]).requires_grad_()
    out = hcc_loss(x, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), **options)
    out.backward()
    assert torch.isfinite(out)
    assert torch.isfinite(x.grad).all()


def test_cross_centers_need_the_modality():
    x, labels, _ = any_batch(6, 4, 2)
    with pytest.raises(ValueError, match="modality must be given for centers='cross', got None"):
        hcc_loss(x, labels, centers="cross")


# -- Center separation ---------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    size=st.integers(1, 10),
    ids=st.integers(1, 5),
    margins=st.sampled_from([(0.01, 0.7), (0.5, 2.0), (1.5, 4.0), (0.2, 0.0)]),
    scale=st.sampled_from([0.3, 1.0]),
    normalize=st.booleans(),
)
def test_center_separation_equals_the_loop(device, seed, size, ids, margins, scale, normalize):
    x, labels, _ = any_batch(seed, size, ids)
    x, options = x * scale, {"rho1": margins[0], "rho2": margins[1], "normalize": normalize}
    ours, theirs = x.clone().to(device).requires_grad_(), x.clone().requires_grad_()
    out = center_separation_loss(ours, labels.to(device), **options)
    expected = saai.center_separation(theirs, labels, **options)
    assert_close(out.cpu(), expected.detach(), rtol=1e-10, atol=1e-12)
    out.backward()
    expected.backward()
    assert_close(ours.grad.cpu(), theirs.grad, rtol=1e-8, atol=1e-11)


def test_center_separation_by_hand():
    """Identity 0 at (0, 0) and (2, 0), identity 1 at (0, 3), identity 2 at (1, 1): centers (1, 0), (0, 3), (1, 1)."""
    x, labels = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0], [1.0, 1.0]]), torch.tensor([0, 0, 1, 2])
    pull = (0.75 + 0.75) / 4
    push = (4 - math.sqrt(10)) + (4 - 1) + (4 - math.sqrt(5))
    assert_close(center_separation_loss(x, labels, rho1=0.25, rho2=4.0), torch.tensor(pull + push / 3))
    # beyond rho2 and within rho1 nothing acts
    assert center_separation_loss(x, labels, rho1=1.0, rho2=1.0) == 0
    assert_close(center_separation_loss(x, labels), torch.tensor(2 * 0.99 / 4))


def test_defaults_of_center_separation_are_the_papers_and_each_option_matters():
    x, labels, _ = any_batch(1, 16, 4)
    x = 0.2 * x
    stated = center_separation_loss(x, labels, rho1=0.01, rho2=0.7, normalize=False)
    assert torch.equal(center_separation_loss(x, labels), stated)
    assert torch.equal(CenterSeparationLoss()(x, labels), stated)
    changes = [{}, {"rho1": 0.1}, {"rho2": 0.8}, {"normalize": True}]
    assert len({round(center_separation_loss(x, labels, **change).item(), 6) for change in changes}) == 4


def test_a_distance_of_zero_has_no_gradient(device):
    x, labels = torch.randn(3, 4, device=device)[[0, 0, 1, 2]].requires_grad_(), torch.tensor([0, 1, 2, 2])
    center_separation_loss(x[:2], labels[:2].to(device), rho1=0.0).backward()  # two centers that coincide
    assert torch.equal(x.grad, torch.zeros_like(x))
    single = torch.randn(1, 4, device=device).requires_grad_()
    loss = center_separation_loss(single, labels[:1].to(device), rho1=0.0)
    loss.backward()
    assert loss == 0
    assert torch.equal(single.grad, torch.zeros_like(single))
    center_separation_loss(x, labels.to(device)).backward()  # the other two are pulled together all the same
    assert x.grad[2:].abs().sum() > 0


@pytest.mark.parametrize("normalize", [False, True])
def test_small_distances_of_center_separation_survive_float32(normalize, device):
    """Images 3e-3 from their center and centers 2e-2 apart: |a|^2 + |b|^2 - 2ab would lose these distances."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat_interleave(8)
    x = torch.randn(1, 64, generator=g) + 3e-3 * torch.randn(4, 64, generator=g)[labels]
    x = x + 5e-4 * torch.randn(32, 64, generator=g)
    options = {"rho1": 0.0, "rho2": 0.05, "normalize": normalize}
    expected = saai.center_separation(x.double(), labels, **options)
    assert 1e-4 < expected < 5e-2
    out = center_separation_loss(x.to(device), labels.to(device), **options)
    assert_close(out.cpu().double(), expected, rtol=1e-4, atol=0)


def test_distances_of_many_nearly_equal_centers_do_not_cancel():
    """Beyond 25 rows torch.cdist by default takes the matrix product; here that loses every digit."""
    labels = torch.arange(30)
    x = 100 + 1e-3 * torch.randn(30, 8)
    expected = center_separation_loss(x.double(), labels)
    assert_close(center_separation_loss(x, labels).double(), expected, rtol=1e-5, atol=1e-5)
