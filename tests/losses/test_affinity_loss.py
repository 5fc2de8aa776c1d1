import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from reference import cift as ref
from vireid.losses.affinity import AffinityInferenceLoss, affinity_inference_loss, affinity_inference_scores
from vireid.rerank import aim

VARIANTS = ("paper", "released")


def nearest(affinity, members, k, itself=None):
    """The k of ``members`` with the largest values, ties by index; ``itself`` before all others."""
    return sorted(members, key=lambda j: (j != itself, -affinity[j], j))[:k]


def unit(row):
    square = sum(v * v for v in row.values())
    return {j: v / square**0.5 if square > 0 else v for j, v in row.items()}


def score_loop(x, modality, *, k1, k2, variant, amend=True):
    """{(i, j): score} of each image i as a query, alone, with the images of the other modality; spec 2.5."""
    kind, scores = modality.tolist(), {}
    cosines = [[ref.cosine(a, b) for b in x] for a in x]
    plain = [[c.detach().item() for c in row] for row in cosines]
    cosines = cosines if x.requires_grad else plain
    for i in range(len(x)):
        gallery = [j for j in range(len(x)) if kind[j] != kind[i]]
        kept_q = {j: cosines[i][j] for j in nearest(plain[i], gallery, k1)}
        kept = {g: {j: cosines[g][j] for j in nearest(plain[g], gallery, k1, g)} for g in gallery}
        expanded = {}
        for g in gallery:
            near = nearest(plain[g], gallery, k2, g)
            columns = {j for n in near for j in kept[n]}
            expanded[g] = {j: sum(kept[n][j] for n in near if j in kept[n]) / len(near) for j in columns}
        if variant == "released":
            kept_q, expanded = unit(kept_q), {g: unit(row) for g, row in expanded.items()}
        for j in gallery:
            if variant == "paper":
                amended = sum(value * expanded[g].get(j, 0) for g, value in kept_q.items())
            else:
                amended = sum(value * expanded[j].get(g, 0) for g, value in kept_q.items())
            scores[i, j] = cosines[i][j] + (amended if amend else 0)
    return scores


def loss_loop(x, labels, modality, *, temperature, **options):
    scores, y, losses = score_loop(x, modality, **options), labels.tolist(), []
    for i in range(len(x)):
        mine = {j: torch.as_tensor(s / temperature, dtype=torch.double).exp() for (q, j), s in scores.items() if q == i}
        positives, negatives = ([e for j, e in mine.items() if (y[j] == y[i]) is same] for same in (True, False))
        if positives and negatives:
            losses.append(sum(-torch.log(e / (e + sum(negatives))) for e in positives) / len(positives))
    return sum(losses) / len(losses) if losses else x.new_zeros(())


def batch(seed, size, ids=3, dim=5, dtype=torch.double):
    """Any identities in any modality in any order: galleries of any two sizes, some queries without an answer."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(size, dim, generator=g, dtype=dtype)
    return x, torch.randint(ids, (size,), generator=g) * 7 + 3, torch.randint(2, (size,), generator=g)


def tied(seed, size):
    """Rows of four entries -1 or 1, some zero: their cosines are exact, so ties are ties, and there are many."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(2, (size, 4), generator=g).double() * 2 - 1
    return x * torch.tensor([0.0, 0.5, 1.0, 8.0])[torch.randint(4, (size, 1), generator=g)]


def with_one_visible(modality):
    return torch.cat([modality.new_zeros(1), torch.ones_like(modality[1:])])


# -- scores --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    size=st.integers(1, 16),
    k1=st.integers(1, 18),
    k2=st.integers(1, 18),
    ties=st.booleans(),
)
def test_scores_equal_aim_of_each_query_alone_and_the_loop(device, variant, seed, size, k1, k2, ties):
    x, _, modality = batch(seed, size)
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
    for (i, j), score in score_loop(x, modality, **options).items():
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
def test_other_images_of_the_own_modality_have_no_part_in_a_row(variant):
    x, _, modality = batch(0, 12)
    rows = affinity_inference_scores(x, modality, k1=3, k2=2, variant=variant)
    i = 4
    moved = torch.where((modality == modality[i])[:, None] & (torch.arange(12) != i)[:, None], x.roll(1, 1) + 1, x)
    again = affinity_inference_scores(moved, modality, k1=3, k2=2, variant=variant)
    assert_close(again[i], rows[i], rtol=0, atol=1e-12)
    assert not torch.allclose(again, rows)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_the_scores_equal_the_loops(variant):
    x, _, modality = batch(1, 9)
    weights = torch.randn(9, 9, dtype=torch.double)
    ours, loop = x.clone().requires_grad_(), x.clone().requires_grad_()
    scores = affinity_inference_scores(ours, modality, k1=2, k2=2, variant=variant)
    other = modality[:, None] != modality
    (scores[other] * weights[other]).sum().backward()
    sum(s * weights[place] for place, s in score_loop(loop, modality, k1=2, k2=2, variant=variant).items()).backward()
    assert_close(ours.grad, loop.grad, rtol=0, atol=1e-11)


def test_without_the_amendment_the_scores_are_cosines():
    x, _, modality = batch(2, 10)
    scores = affinity_inference_scores(x, modality, amend=False)
    cosine = torch.nn.functional.cosine_similarity(x[:, None], x, dim=-1)
    assert_close(scores, cosine.masked_fill(modality[:, None] == modality, -torch.inf))


# -- loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=25, deadline=None)
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
    x, labels, modality = batch(seed, size, ids)
    x = tied(seed, size) if ties else x
    options = {"k1": k1, "k2": k2, "variant": variant, "temperature": temperature, "amend": amend}
    ours = [t.to(device) for t in (x, labels, modality)]
    out = affinity_inference_loss(*ours, **options)
    assert out.shape == ()
    assert_close(out.cpu(), loss_loop(x, labels, modality, **options), rtol=0, atol=1e-9)
    assert torch.equal(out, AffinityInferenceLoss(**options)(*ours))


@pytest.mark.parametrize("amend", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_equal_the_loops_and_the_numerical_ones(variant, amend):
    x, _, _ = batch(3, 10)
    labels, modality = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3]), torch.tensor([0, 1, 1, 0, 1, 0, 1, 1, 0, 1])
    options = {"k1": 3, "k2": 2, "variant": variant, "temperature": 0.3, "amend": amend}
    ours, loop = x.clone().requires_grad_(), x.clone().requires_grad_()
    affinity_inference_loss(ours, labels, modality, **options).backward()
    loss_loop(loop, labels, modality, **options).backward()
    assert_close(ours.grad, loop.grad, rtol=0, atol=1e-11)
    assert ours.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda x: affinity_inference_loss(x, labels, modality, **options), (ours,))


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
    """Two equal positives cost what one costs: in a softmax over the whole gallery each would take half."""
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]).double()
    labels, modality = torch.tensor([0, 0, 1, 0]), torch.tensor([0, 1, 1, 1])
    both = affinity_inference_loss(x, labels, modality, amend=False)
    assert_close(both, affinity_inference_loss(x[:3], labels[:3], modality[:3], amend=False))


def test_defaults_and_that_each_option_matters():
    x, labels, modality = batch(4, 20)
    base = {"k1": 8, "k2": 1, "variant": "paper", "temperature": 0.3, "amend": True}
    values = [affinity_inference_loss(x, labels, modality, **base).item()]
    assert affinity_inference_loss(x, labels, modality).item() == values[0]
    assert AffinityInferenceLoss()(x, labels, modality).item() == values[0]
    for change in ({"k1": 2}, {"k2": 2}, {"variant": "released"}, {"temperature": 0.5}, {"amend": False}):
        values.append(affinity_inference_loss(x, labels, modality, **base | change).item())
    assert len({round(v, 6) for v in values}) == len(values)
    assert torch.equal(affinity_inference_scores(x, modality), affinity_inference_scores(x, modality, k1=8, k2=1))


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), size=st.integers(1, 14), k1=st.integers(1, 5), k2=st.integers(1, 3))
def test_row_order_and_the_names_of_identities_and_modalities_are_irrelevant(variant, seed, size, k1, k2):
    x, labels, modality = batch(seed, size)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    options = {"k1": k1, "k2": k2, "variant": variant}
    out = affinity_inference_loss(x, labels, modality, **options)
    assert_close(affinity_inference_loss(x[order], labels[order], modality[order], **options), out)
    assert_close(affinity_inference_loss(x, 1000 - labels, 1 - modality, **options), out)
    scale = torch.rand(size, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.double) + 0.1
    assert_close(affinity_inference_loss(x * scale, labels, modality, **options), out)


@pytest.mark.parametrize("amend", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16], ids=str)
def test_degenerate_batches_are_finite_and_right(variant, amend, half, device):
    x, labels, _ = batch(5, 8, dim=4)
    flat, modality = torch.zeros(8).long(), torch.arange(8) % 2
    zero_row = torch.cat([x[:1] * 0, x[1:]])
    unanswerable = [
        (x, flat, modality),  # one identity
        (x, torch.arange(8), modality),  # one image an identity
        (x, labels, flat),  # one modality
        (x[:1], flat[:1], flat[:1]),  # one image
        (x[:0], flat[:0], flat[:0]),
    ]
    others = [
        (x, labels, with_one_visible(modality)),
        (
            x[[0] * 8].sign(),
            torch.arange(4).repeat_interleave(2),
            modality,
        ),  # one image over and over, across identities
        (x.sign(), torch.arange(4).repeat_interleave(2), modality),
        (zero_row, torch.arange(4).repeat_interleave(2), modality),
        (x * 0, torch.arange(4).repeat_interleave(2), modality),
        (x * 1e4, torch.arange(4).repeat_interleave(2), modality),
        (x * 1e-4, torch.arange(4).repeat_interleave(2), modality),
    ]
    options = {"variant": variant, "amend": amend, "k1": 3, "k2": 2}
    for case, (rows, y, kinds) in enumerate([*unanswerable, *others]):
        rows = rows.float().to(half or torch.float32)
        given = rows.to(device).requires_grad_()
        with torch.autocast(device.type, dtype=half or torch.bfloat16, enabled=half is not None):
            out = affinity_inference_loss(given, y.to(device), kinds.to(device), **options)
        with torch.autograd.set_detect_anomaly(True):  # no NaN on the way either
            out.backward()
        assert out.dtype == torch.float32
        assert given.grad.isfinite().all()
        wanted = loss_loop(rows.double(), y, kinds, temperature=0.3, **options)
        assert_close(out.cpu().double(), wanted, rtol=1e-4, atol=1e-4)
        if case < len(unanswerable):
            assert out == 0
            assert not given.grad.any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_small_temperature_does_not_overflow(variant):
    x, labels, modality = batch(6, 12, dtype=torch.float32)
    x.requires_grad_()
    out = affinity_inference_loss(x, labels, modality, variant=variant, temperature=1e-3)
    out.backward()
    assert out.isfinite()
    assert x.grad.isfinite().all()


def test_inputs_are_not_modified_and_any_integers_serve():
    x, labels, modality = batch(7, 9)
    copies = x.clone(), labels.clone(), modality.clone()
    out = affinity_inference_loss(x.requires_grad_(), labels, modality)
    out.backward()
    for now, before in zip((x, labels, modality), copies, strict=True):
        assert torch.equal(now, before)
    assert torch.equal(affinity_inference_loss(x, labels.int(), modality.to(torch.uint8)), out)


def test_it_can_be_learned():
    """Descending the loss raises AIM's own ranking of the batch to perfect."""
    x, _, _ = batch(8, 24, dim=16)
    labels, modality = torch.arange(6).repeat(4), torch.arange(24) // 12
    loss = AffinityInferenceLoss()
    for _ in range(60):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x, labels, modality), x)
        x = (x - 4 * gradient).detach()
    query, gallery = modality == 0, modality == 1
    nearest_two = aim(x[query], x[gallery], k1=4, k2=1).topk(2, largest=False).indices
    assert (labels[gallery][nearest_two] == labels[query][:, None]).all()


def test_bad_input():
    x, labels, modality = batch(9, 4)
    loss, scores = affinity_inference_loss, affinity_inference_scores
    for error, message, call in (
        (ValueError, r"x must have shape \(B, d\), got \(5,\)", lambda: loss(x[0], labels, modality)),
        (ValueError, r"x must have shape \(B, d\), got \(5,\)", lambda: scores(x[0], modality)),
        (TypeError, r"x must be floating point, got torch\.int64", lambda: loss(x.long(), labels, modality)),
        (ValueError, r"labels must have shape \(4,\).*got \(3,\)", lambda: loss(x, labels[:3], modality)),
        (TypeError, r"labels must hold integers, got torch\.float64", lambda: loss(x, labels.double(), modality)),
        (ValueError, r"modality must have shape \(4,\).*got \(2,\)", lambda: loss(x, labels, modality[:2])),
        (TypeError, r"modality must hold integers, got torch\.bool", lambda: scores(x, modality.bool())),
        (ValueError, "k1 must be at least 1, got 0", lambda: loss(x, labels, modality, k1=0)),
        (TypeError, r"k2 must be an integer, got 1\.5", lambda: scores(x, modality, k2=1.5)),
        (
            ValueError,
            "variant must be one of 'paper', 'released', got 'ours'",
            lambda: scores(x, modality, variant="ours"),
        ),
        (ValueError, "temperature must be above 0 and finite, got 0", lambda: loss(x, labels, modality, temperature=0)),
        (ValueError, "k1 must be at least 1, got -1", lambda: AffinityInferenceLoss(k1=-1)),
        (ValueError, "variant must be one of .*, got None", lambda: AffinityInferenceLoss(variant=None)),
        (TypeError, "temperature must be a number, got 'low'", lambda: AffinityInferenceLoss(temperature="low")),
    ):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_one_graph_without_reading_a_value(variant):
    x, labels, modality = batch(10, 12)
    loss = AffinityInferenceLoss(k1=3, k2=2, variant=variant)
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    assert_close(compiled(x, labels, modality), loss(x, labels, modality))
