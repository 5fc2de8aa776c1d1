import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from reference import cift as ref
from vireid.losses import HCCLoss, hcc_loss

COMBINATIONS = [
    {"distance": d, "centers": c, "negatives": n, "normalize": z, "margin": 6.0 if d == "kl" else 0.6}
    for d, c, n, z in itertools.product(("euclidean", "kl"), ("shared", "cross"), ("mean", "sum"), (True, False))
]


def name_of(options: dict) -> str:
    return "-".join(str(v) for v in options.values())


def batch(seed: int, size: int, ids: int, dim: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Any identities in any modality in any order: some have one image, some one modality."""
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(size, dim, generator=g, dtype=torch.double),
        torch.randint(ids, (size,), generator=g) * 7 + 3,
        torch.randint(2, (size,), generator=g),
    )


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    size=st.integers(1, 10),
    ids=st.integers(1, 5),
    scale=st.sampled_from([0.3, 1.0, 8.0]),
    options=st.sampled_from(COMBINATIONS),
)
def test_hcc_equals_the_loop(device, seed, size, ids, scale, options):
    x, labels, modality = batch(seed, size, ids)
    x = x * scale
    options = options | {"margin": options["margin"] if scale > 1 else 1.5}  # hinges on either side of their corner
    ours, loop = x.clone().to(device).requires_grad_(), x.clone().requires_grad_()
    out = hcc_loss(ours, labels.to(device), modality.to(device), **options)
    expected = ref.hcc(loop, labels, modality, **options)
    assert out.shape == ()
    # an image that is its own centre has distance 0; a safe square root may be 1e-6 off there
    assert_close(out.cpu(), expected.detach(), rtol=1e-9, atol=1e-5 if options["distance"] == "euclidean" else 1e-9)
    class_form = HCCLoss(**options)(ours, labels.to(device), modality.to(device))
    assert torch.equal(out, class_form)


@pytest.mark.parametrize("options", COMBINATIONS, ids=name_of)
def test_hcc_and_its_gradient_equal_the_loop_on_the_papers_batch(options, device):
    """Four identities, two visible and two infrared images each: nothing is degenerate, so it is exact."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(16, 6, generator=g, dtype=torch.double)
    labels, modality = torch.arange(4).repeat(4), torch.arange(2).repeat_interleave(8)
    order = torch.randperm(16, generator=g)
    labels, modality, options = labels[order], modality[order], options | {"margin": 1.2}
    ours, loop = x.clone().to(device).requires_grad_(), x.clone().requires_grad_()
    out = hcc_loss(ours, labels.to(device), modality.to(device), **options)
    expected = ref.hcc(loop, labels, modality, **options)
    out.backward()
    expected.backward()
    assert_close(out.cpu(), expected, rtol=0, atol=1e-9)
    assert_close(ours.grad.cpu(), loop.grad, rtol=0, atol=1e-9)
    assert loop.grad.abs().sum() > 0


@pytest.mark.parametrize("options", COMBINATIONS, ids=name_of)
def test_gradcheck(options):
    x, labels, modality = batch(2, 9, 3)
    labels, modality = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2]), torch.tensor([0, 0, 1] * 3)
    # one image is alone in its modality: across, it is the others' centre and has the other two as its own
    assert torch.autograd.gradcheck(lambda x: hcc_loss(x, labels, modality, **options), (x.requires_grad_(),))


def test_by_hand():
    """Identity 0 at (0, 0) and (2, 0), identity 1 at (0, 3): centres (1, 0) and (0, 3)."""
    x, labels = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0]]).double(), torch.tensor([0, 0, 1])
    options = {"normalize": False, "margin": 4.0}
    pushes = (4 - 3) + (4 - math.sqrt(13)) + (4 - math.sqrt(10))
    out = hcc_loss(x, labels, **options)
    assert_close(out.item(), (1 + 1 + 0 + pushes) / 3, rtol=0, atol=1e-6)
    # across: the images of identity 0 have each other as centre, the one of identity 1 drops out
    across = hcc_loss(x, labels, torch.tensor([0, 1, 1]), centers="cross", **options)
    assert_close(across.item(), ((2 + 4 - 3) + (2 + 0)) / 2, rtol=0, atol=1e-6)


def test_defaults_are_the_papers():
    x, labels, modality = batch(3, 12, 3)
    stated = hcc_loss(x, labels, margin=0.6, distance="euclidean", centers="shared", negatives="mean", normalize=True)
    for out in (hcc_loss(x, labels), HCCLoss()(x, labels), HCCLoss()(x, labels, modality)):
        assert torch.equal(out, stated)


def test_each_option_matters():
    x, labels, modality = batch(3, 16, 4)
    base = {"margin": 1.5, "distance": "euclidean", "centers": "shared", "negatives": "mean", "normalize": True}
    values = [hcc_loss(x, labels, modality, **base).item()]
    for change in (
        {"margin": 1.2},
        {"distance": "kl"},
        {"centers": "cross"},
        {"negatives": "sum"},
        {"normalize": False},
    ):
        values.append(hcc_loss(x, labels, modality, **base | change).item())
    assert len({round(v, 6) for v in values}) == len(values)
    kl = base | {"distance": "kl"}
    assert torch.equal(hcc_loss(x, labels, modality, **kl), hcc_loss(x, labels, modality, **kl | {"normalize": False}))


@pytest.mark.parametrize("options", COMBINATIONS, ids=name_of)
@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16], ids=str)
def test_degenerate_batches_are_finite(options, half, device):
    x, _, _ = batch(4, 6, 1)
    zeros, one, pairs = torch.zeros(6).long(), torch.ones(6).long(), torch.tensor([0, 0, 1, 1, 2, 2])
    cases = [
        (x, zeros, pairs % 2),  # one identity
        (x, torch.arange(6), pairs % 2),  # one image an identity
        (x, pairs, torch.tensor([0, 0, 1, 1, 0, 1])),  # identities in one modality
        (x, pairs, one),  # one modality
        (x[:1], zeros[:1], zeros[:1]),  # one image
        (x[[0, 0, 0, 0, 0, 0]], pairs, pairs % 2),  # one image over and over, across identities
        (x[[0, 0, 1, 1, 2, 2]], pairs, torch.tensor([0, 1] * 3)),  # every distance to the own centre is 0
        (x * 0, pairs, torch.tensor([0, 1] * 3)),
        (x * 1e3, pairs, torch.tensor([0, 1] * 3)),
    ]
    for rows, labels, modality in cases:
        expected = ref.hcc(rows.float().double(), labels, modality, **options) if rows.abs().max() < 100 else None
        rows = rows.float().to(device).requires_grad_()
        with torch.autocast(device.type, dtype=half or torch.bfloat16, enabled=half is not None):
            out = hcc_loss(rows, labels.to(device), modality.to(device), **options)
            in_half = hcc_loss(rows.to(half), labels.to(device), modality.to(device), **options) if half else out
        out.backward()
        assert torch.isfinite(rows.grad).all()
        assert torch.isfinite(in_half)
        assert out >= -1e-6
        if expected is not None:  # float32 rows are computed in float32 even under autocast
            assert_close(out.double().cpu(), expected, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("options", COMBINATIONS, ids=name_of)
def test_confident_logits_neither_overflow_nor_lose_their_gradient(options):
    if options["distance"] == "kl":
        x = torch.tensor([[200.0, 0, 0], [190.0, 0, 0], [0, 200.0, 0], [0, 0, 200.0]]).requires_grad_()
        out = hcc_loss(x, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), **options)
        out.backward()
        assert torch.isfinite(out)
        assert torch.isfinite(x.grad).all()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    size=st.integers(1, 12),
    ids=st.integers(1, 5),
    options=st.sampled_from(COMBINATIONS),
)
def test_row_order_and_names_of_identities_are_irrelevant(seed, size, ids, options):
    x, labels, modality = batch(seed, size, ids)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    out = hcc_loss(x, labels, modality, **options)
    assert_close(hcc_loss(x[order], labels[order], modality[order], **options), out)
    assert_close(hcc_loss(x, 1000 - labels, 1 - modality, **options), out)


@pytest.mark.parametrize("options", COMBINATIONS, ids=name_of)
def test_inputs_are_not_modified(options):
    x, labels, modality = batch(5, 9, 3)
    copies = x.clone(), labels.clone(), modality.clone()
    hcc_loss(x.requires_grad_(), labels, modality, **options).backward()
    for now, before in zip((x, labels, modality), copies, strict=True):
        assert torch.equal(now, before)


def test_bad_input():
    x, labels, modality = batch(6, 4, 2)
    for error, message, call in (
        (ValueError, r"x must have shape \(B, d\), got \(5,\)", lambda: hcc_loss(x[0], labels)),
        (TypeError, r"x must be floating point, got torch\.int64", lambda: hcc_loss(x.long(), labels)),
        (ValueError, r"labels must have shape \(4,\).*got \(3,\)", lambda: hcc_loss(x, labels[:3])),
        (TypeError, r"labels must hold integers, got torch\.float64", lambda: hcc_loss(x, labels.double())),
        (ValueError, r"modality must have shape \(4,\).*got \(2,\)", lambda: hcc_loss(x, labels, modality[:2])),
        (ValueError, r"modality .*cross", lambda: hcc_loss(x, labels, centers="cross")),
        (ValueError, r"distance must be one of .*, got 'cosine'", lambda: hcc_loss(x, labels, distance="cosine")),
        (ValueError, r"centers must be one of .*, got 'own'", lambda: hcc_loss(x, labels, centers="own")),
        (ValueError, r"negatives must be one of .*, got 'max'", lambda: hcc_loss(x, labels, negatives="max")),
        (ValueError, r"distance must be one of .*, got 'cosine'", lambda: HCCLoss(distance="cosine")(x, labels)),
    ):
        with pytest.raises(error, match=message):
            call()


def test_small_distances_survive_float32():
    """Images 1e-3 from their centre: |a|^2 + |b|^2 - 2ab would lose that distance in the rounding of the squares."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat_interleave(8)
    x = torch.randn(4, 64, generator=g)[labels] + 1e-3 * torch.randn(32, 64, generator=g)
    options = {"margin": 0.1, "distance": "euclidean", "centers": "shared", "negatives": "mean", "normalize": True}
    expected = ref.hcc(x.double(), labels, **options)
    assert 1e-4 < expected < 1e-2
    assert_close(hcc_loss(x, labels, **options).double(), expected, rtol=1e-3, atol=0)


def test_the_margin_is_the_papers_for_each_distance():
    x, labels = torch.randn(8, 5), torch.arange(4).repeat(2)
    for distance, margin in (("euclidean", 0.6), ("kl", 6.0)):
        assert_close(hcc_loss(x, labels, distance=distance), hcc_loss(x, labels, distance=distance, margin=margin))
        assert HCCLoss(distance=distance).margin == margin


@pytest.mark.parametrize("distance", ["euclidean", "kl"])
def test_an_empty_batch_costs_nothing(distance):
    x = torch.empty(0, 5, requires_grad=True)
    loss = hcc_loss(x, torch.empty(0, dtype=torch.long), distance=distance)
    loss.backward()
    assert loss == 0
