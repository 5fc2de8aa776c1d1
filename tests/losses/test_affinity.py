import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from batches import any_batch
from reference import saai
from vireid.losses import AffinityInferenceLoss, affinity_inference_loss, affinity_inference_scores
from vireid.rerank import aim

VARIANTS = ("paper", "released")


def tied(seed, size):
    """Rows of four entries -1 or 1, some zero: their cosines are exact, so ties are ties, and there are many."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(2, (size, 4), generator=g).double() * 2 - 1
    return x * torch.tensor([0.0, 0.5, 1.0, 8.0])[torch.randint(4, (size, 1), generator=g)]


# -- scores --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=7, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    size=st.integers(1, 12),
    k1=st.integers(1, 14),
    k2=st.integers(1, 14),
    ties=st.booleans(),
)
def test_scores_equal_aim_of_each_single_query_and_the_loop(device, variant, seed, size, k1, k2, ties):
    x, _, modality = any_batch(seed, size)
    x = tied(seed, size) if ties else x
    options = {"k1": k1, "k2": k2, "variant": variant}
    scores = affinity_inference_scores(x.to(device), modality.to(device), **options).cpu()
    assert scores.shape == (size, size)
    for i in range(size):
        gallery = modality != modality[i]
        assert (scores[i][~gallery] == -torch.inf).all()
        if gallery.any():
            wanted = 1 - aim(x[i : i + 1], x[gallery], **options)
            assert_close(scores[i : i + 1, gallery], wanted, rtol=0, atol=1e-12)
    for (i, j), score in saai.affinity_scores(x, modality, **options).items():
        assert scores[i, j].item() == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_equal_aim_on_the_papers_batch_in_float32(variant, device):
    g = torch.Generator().manual_seed(0)
    centers = torch.randn(8, 64, generator=g)
    x = (centers.repeat(8, 1) + torch.randn(64, 64, generator=g)).to(device)
    modality = (torch.arange(64, device=device) // 8) % 2
    for k1, k2 in ((4, 1), (20, 6), (8, 2)):
        scores = affinity_inference_scores(x, modality, k1=k1, k2=k2, variant=variant)
        for kind in (0, 1):
            query, gallery = modality == kind, modality != kind
            wanted = 1 - aim(x[query], x[gallery], k1=k1, k2=k2, variant=variant)
            assert_close(scores[query][:, gallery], wanted, rtol=0, atol=2e-5)


def test_a_query_orthogonal_to_its_kept_entries_gains_nothing_by_rounding():
    """Cosines of 1e-8 instead of 0 are not scaled to length 1."""
    g = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(64, 8, generator=g))
    x = torch.cat([basis[:, :1], basis[:, 1:3] @ torch.randn(2, 7, generator=g)], 1).T
    modality = (torch.arange(8) > 0).long()
    assert 0 < (x[:1] @ x[1:].T).abs().max() < 1e-5
    scores = affinity_inference_scores(x, modality, k1=3, variant="released")[0, 1:]
    assert_close(scores, torch.zeros(7), rtol=0, atol=1e-5)
    assert_close(scores[None], 1 - aim(x[:1], x[1:], k1=3, k2=1, variant="released"), rtol=0, atol=1e-5)


def test_scores_by_hand():
    """The gallery's cosines: 0.6 and 0 with the first, 0.8. Â = (1, 0.6, 0), (0, 1, 0.8), (0, 0.8, 1)."""
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.6, 0.8], [0.0, 3.0]])
    modality = torch.tensor([1, 0, 0, 0])
    inf = torch.inf
    got = affinity_inference_scores(x, modality, k1=2, k2=1)[0]
    assert_close(got, torch.tensor([-inf, 1 + 1, 0.6 + 0.6 + 0.6, 0 + 0.6 * 0.8]))
    got = affinity_inference_scores(x, modality, k1=2, k2=2)[0]  # Ã = (0.5, 0.8, 0.4), (0, 0.9, 0.9), (0, 0.9, 0.9)
    assert_close(got, torch.tensor([-inf, 1 + 0.5, 0.6 + 0.8 + 0.54, 0.4 + 0.54]))
    got = affinity_inference_scores(x, modality, k1=2, variant="released")[0]
    long, short = math.sqrt(1.36), math.sqrt(1.64)
    assert_close(got, torch.tensor([-inf, 1 + 1, 0.6 + 0.6 / long / short, 0.48 / long / short]))
    # the other rows have a gallery of one, which is all that they keep
    got = affinity_inference_scores(x, modality, k1=2)[1:, 0]
    assert_close(got, torch.tensor([2.0, 1.2, 0.0]))


def test_exactly_k1_of_ties_are_kept_lowest_index_first_and_a_gallery_image_itself_before_them():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    scores = affinity_inference_scores(x, torch.tensor([0, 1, 1, 1, 1]), k1=2, k2=1)[0]
    assert scores.tolist() == [-torch.inf, 0, 3, 3, 1]  # Â_q: 2 and 3; Â_3: itself and 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_other_images_of_the_same_modality_do_not_affect_a_row(variant):
    x, _, modality = any_batch(0, 12)
    rows = affinity_inference_scores(x, modality, k1=3, k2=2, variant=variant)
    i = 4
    moved = torch.where((modality == modality[i])[:, None] & (torch.arange(12) != i)[:, None], x.roll(1, 1) + 1, x)
    again = affinity_inference_scores(moved, modality, k1=3, k2=2, variant=variant)
    assert_close(again[i], rows[i], rtol=0, atol=1e-12)
    assert not torch.allclose(again, rows)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_the_scores_equal_the_loops(variant):
    x, _, modality = any_batch(1, 9)
    weights = torch.randn(9, 9, dtype=torch.double)
    ours, loop = x.clone().requires_grad_(), x.clone().requires_grad_()
    scores = affinity_inference_scores(ours, modality, k1=2, k2=2, variant=variant)
    other = modality[:, None] != modality
    (scores[other] * weights[other]).sum().backward()
    expected = saai.affinity_scores(loop, modality, k1=2, k2=2, variant=variant)
    sum(s * weights[place] for place, s in expected.items()).backward()
    assert_close(ours.grad, loop.grad, rtol=0, atol=1e-11)


def test_without_the_amendment_the_scores_are_cosines():
    x, _, modality = any_batch(2, 10)
    scores = affinity_inference_scores(x, modality, amend=False)
    cosine = torch.nn.functional.cosine_similarity(x[:, None], x, dim=-1)
    assert_close(scores, cosine.masked_fill(modality[:, None] == modality, -torch.inf))


# -- loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    size=st.integers(1, 12),
    ids=st.integers(1, 4),
    k1=st.integers(1, 6),
    k2=st.integers(1, 3),
    temperature=st.sampled_from([0.1, 1.0]),
    amend=st.booleans(),
    ties=st.booleans(),
)
def test_loss_equals_the_loop(device, variant, seed, size, ids, k1, k2, temperature, amend, ties):
    x, labels, modality = any_batch(seed, size, ids)
    x = tied(seed, size) if ties else x
    options = {"k1": k1, "k2": k2, "variant": variant, "temperature": temperature, "amend": amend}
    ours = [t.to(device) for t in (x, labels, modality)]
    out = affinity_inference_loss(*ours, **options)
    assert_close(out.cpu(), saai.affinity_inference(x, labels, modality, **options), rtol=0, atol=1e-9)


@pytest.mark.parametrize("amend", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_equal_the_loops(variant, amend):
    x, _, _ = any_batch(3, 10)
    labels, modality = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3]), torch.tensor([0, 1, 1, 0, 1, 0, 1, 1, 0, 1])
    options = {"k1": 3, "k2": 2, "variant": variant, "temperature": 0.3, "amend": amend}
    ours, loop = x.clone().requires_grad_(), x.clone().requires_grad_()
    affinity_inference_loss(ours, labels, modality, **options).backward()
    saai.affinity_inference(loop, labels, modality, **options).backward()
    assert_close(ours.grad, loop.grad, rtol=0, atol=1e-11)
    assert ours.grad.abs().sum() > 0


def test_loss_by_hand():
    """One query with a positive at cosine 1 and negatives at 0 and -1; its gallery's own rows drop out."""
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]).double()
    labels, modality = torch.tensor([5, 5, 6, 7]), torch.tensor([0, 1, 1, 1])
    plain = -math.log(math.exp(2) / (math.exp(2) + 1 + math.exp(-2)))
    # image 1 has a positive and no negative, 2 and 3 have no positive
    out = affinity_inference_loss(x, labels, modality, temperature=0.5, amend=False)
    assert out.item() == pytest.approx(plain, abs=1e-12)
    amended = -math.log(math.exp(4) / (math.exp(4) + 1 + math.exp(-2)))  # k1 = 1: only the positive gains, its own 1
    out = affinity_inference_loss(x, labels, modality, k1=1, temperature=0.5)
    assert out.item() == pytest.approx(amended, abs=1e-12)


def test_positives_do_not_compete_with_each_other():
    """Two equal positives cost as much as one: in a softmax over the whole gallery each would take half."""
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]).double()
    labels, modality = torch.tensor([0, 0, 1, 0]), torch.tensor([0, 1, 1, 1])
    both = affinity_inference_loss(x, labels, modality, amend=False)
    assert_close(both, affinity_inference_loss(x[:3], labels[:3], modality[:3], amend=False))


def test_defaults_and_that_each_option_matters():
    x, labels, modality = any_batch(4, 20)
    base = {"k1": 8, "k2": 1, "variant": "paper", "temperature": 0.3, "amend": True}
    values = [affinity_inference_loss(x, labels, modality, **base).item()]
    assert affinity_inference_loss(x, labels, modality).item() == values[0]
    assert AffinityInferenceLoss()(x, labels, modality).item() == values[0]
    for change in ({"k1": 2}, {"k2": 2}, {"variant": "released"}, {"temperature": 0.5}, {"amend": False}):
        values.append(affinity_inference_loss(x, labels, modality, **base | change).item())
    assert len({round(v, 6) for v in values}) == len(values)
    assert torch.equal(affinity_inference_scores(x, modality), affinity_inference_scores(x, modality, k1=8, k2=1))


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), size=st.integers(1, 14), k1=st.integers(1, 5), k2=st.integers(1, 3))
def test_the_length_of_a_row_is_irrelevant(variant, seed, size, k1, k2):
    x, labels, modality = any_batch(seed, size)
    options = {"k1": k1, "k2": k2, "variant": variant}
    out = affinity_inference_loss(x, labels, modality, **options)
    scale = torch.rand(size, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.double) + 0.1
    assert_close(affinity_inference_loss(x * scale, labels, modality, **options), out)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_small_temperature_does_not_overflow(variant):
    x, labels, modality = any_batch(6, 12, dtype=torch.float32)
    x.requires_grad_()
    out = affinity_inference_loss(x, labels, modality, variant=variant, temperature=1e-3)
    out.backward()
    assert out.isfinite()
    assert x.grad.isfinite().all()


def test_it_can_be_learned():
    """Descending the loss raises AIM's own ranking of the batch to perfect."""
    x, _, _ = any_batch(8, 24, dim=16)
    labels, modality = torch.arange(6).repeat(4), torch.arange(24) // 12
    loss = AffinityInferenceLoss()
    for _ in range(60):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x, labels, modality), x)
        x = (x - 4 * gradient).detach()
    query, gallery = modality == 0, modality == 1
    nearest_two = aim(x[query], x[gallery], k1=4, k2=1).topk(2, largest=False).indices
    assert (labels[gallery][nearest_two] == labels[query][:, None]).all()


def test_bad_input_of_the_scores_is_named():
    x, _, modality = any_batch(9, 4)
    for error, message, change in (
        (ValueError, r"x must have shape \(B, d\), got \(5,\)", {"x": x[0]}),
        (TypeError, r"modality must hold integers, got torch\.bool", {"modality": modality > 0}),
    ):
        with pytest.raises(error, match=message):
            affinity_inference_scores(**{"x": x, "modality": modality} | change)
