import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from batches import any_batch
from reference import agw, g2da
from vireid.losses import CrossModalityTripletLoss, cross_modality_triplet_loss, weighted_regularized_triplet_loss


def papers_batch(dim: int = 6, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Four identities with two visible and two infrared images each, in no order."""
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(16, generator=g)
    x = torch.randn(16, dim, generator=g, dtype=torch.double)
    return x, torch.arange(4).repeat(4)[order], torch.arange(2).repeat_interleave(8)[order]


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    size=st.integers(1, 12),
    ids=st.integers(1, 5),
    margin=st.sampled_from([0.3, 2.0]),
    normalize=st.booleans(),
)
def test_equals_the_loop(device, seed, size, ids, margin, normalize):
    x, labels, modality = any_batch(seed, size, ids)
    ours, theirs = x.clone().to(device).requires_grad_(), x.clone().requires_grad_()
    options = {"margin": margin, "normalize": normalize}
    out = cross_modality_triplet_loss(ours, labels.to(device), modality.to(device), **options)
    expected = g2da.triplet(theirs, labels, modality, **options)
    assert out >= 0
    assert_close(out.cpu(), expected.detach(), rtol=1e-10, atol=1e-12)
    out.backward()
    expected.backward()
    assert_close(ours.grad.cpu(), theirs.grad, rtol=1e-9, atol=1e-12)


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


def test_images_of_the_same_modality_have_no_effect():
    """A negative of the own modality is near, the nearest of the other one is far."""
    x, labels, modality = papers_batch()
    x[:, 0] += 100.0 * modality
    own = (modality[:, None] == modality) & (labels[:, None] != labels)
    assert torch.cdist(x, x)[own].min() < 3
    out = cross_modality_triplet_loss(x, labels, modality)
    assert 0 < out < 10  # farthest and nearest are both about 100 away
    assert_close(out, g2da.triplet(x, labels, modality))


def test_equally_hard_images_share_the_gradient():
    """Both negatives at distance 1 on either side: their pulls on the image cancel, each gets half."""
    x = torch.tensor([[0.0], [1.0], [-1.0], [3.0]]).double().requires_grad_()
    labels, modality = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 1, 1])
    cross_modality_triplet_loss(x, labels, modality).backward()
    assert_close(x.grad.flatten(), torch.tensor([-1.0, -0.5, 0.5, 1.0]).double())


def test_small_distances_survive_float32():
    """Images 1e-3 from each other: |a|^2 + |b|^2 - 2ab would lose that distance in the rounding of the squares."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 64, generator=g) + 1e-4 * torch.randn(16, 64, generator=g)
    _, labels, modality = papers_batch()
    expected = g2da.triplet(x.double(), labels, modality, margin=1e-3)
    assert 1e-4 < expected < 1e-2
    assert_close(cross_modality_triplet_loss(x, labels, modality, margin=1e-3).double(), expected, rtol=1e-3, atol=0)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), size=st.integers(1, 12), ids=st.integers(1, 5), normalize=st.booleans())
def test_weighted_triplets_equal_the_loop(device, seed, size, ids, normalize):
    x, labels, _ = any_batch(seed, size, ids)
    out = weighted_regularized_triplet_loss(x.to(device), labels.to(device), normalize=normalize)
    assert_close(out.cpu(), agw.weighted_triplet(x, labels, normalize), rtol=1e-10, atol=1e-12)


def test_weights_of_far_negatives_sum_to_1():
    """With a maximum over zeros in place of the masked set, the negatives, 20 away, would count for nearly nothing."""
    x, labels = torch.tensor([[0.0], [1.0], [20.0], [22.0]]), torch.tensor([0, 0, 1, 1])
    terms = []
    for positive, *negatives in ((1.0, 20.0, 22.0), (1.0, 19.0, 21.0), (2.0, 20.0, 19.0), (2.0, 22.0, 21.0)):
        n = torch.tensor(negatives)
        terms.append(positive - (-n).softmax(0) @ n)
    expected = torch.nn.functional.softplus(torch.stack(terms)).mean()
    assert_close(weighted_regularized_triplet_loss(x, labels), expected, rtol=1e-4, atol=0)
