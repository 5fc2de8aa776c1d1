"""SAAI wired: outputs recomputed pixel by pixel, losses from the plain loops of the specification."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from reference import cift as ref
from reference import saai as loops
from vireid import INFRARED, VISIBLE
from vireid.losses import AffinityInferenceLoss, CRILoss
from vireid.models import CIFT, SAAI, BaselineOutput, CIFTCriterion, SAAICriterion
from vireid.nn import H2FT, BNNeck, DualBNNeck
from vireid.rerank import aim

CHANNELS, IDENTITIES, PARTS, MAP = 4, 5, 3, (3, 2)


def batch(visible: int = 5, infrared: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Images in float64, labels and modality, in random order."""
    size = visible + infrared
    kind = torch.tensor([VISIBLE] * visible + [INFRARED] * infrared)[torch.randperm(size)]
    return torch.randn(size, 3, 8, 6, dtype=torch.double), torch.arange(size) % IDENTITIES, kind


def saai(**options) -> SAAI:
    """In float64, with parameters large enough for every one of them to be seen in the result."""
    net = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, stride=2), nn.BatchNorm2d(CHANNELS))
    options = {"channels": CHANNELS, "parts": PARTS, "size": MAP} | options
    model = SAAI(net, IDENTITIES, **options).double()
    if model.pooling is not None:
        nn.init.normal_(model.pooling.prototypes)
        nn.init.normal_(model.pooling.position)
    nn.init.uniform_(model.neck.weight, 0.5, 2.0)
    nn.init.normal_(model.neck.running_mean)
    return model


def pooled_by_loops(model: SAAI, maps: Tensor) -> tuple[Tensor, Tensor]:
    """F̂ and the logits of the attention, image by image, prototype by prototype, pixel by pixel (Eq. 1-3)."""
    rows, logits = [], []
    for image in maps:
        pixels = [image[:, i, j] for i in range(image.shape[1]) for j in range(image.shape[2])]
        parts, similarity = [], []
        if model.pooling is not None:
            position = model.pooling.position
            places = [position[:, i, j] for i in range(position.shape[1]) for j in range(position.shape[2])]
            for prototype in model.pooling.prototypes:
                row = [(prototype * (t + e)).sum() for t, e in zip(pixels, places, strict=True)]
                parts.append(sum(t / (1 + torch.exp(-s)) for t, s in zip(pixels, row, strict=True)) / len(pixels))
                similarity.append(torch.stack(row))
        rows.append(torch.cat([*parts, sum(pixels) / len(pixels)]))
        logits.append(torch.stack(similarity) if similarity else maps.new_empty(0, len(pixels)))
    return torch.stack(rows), torch.stack(logits)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("parts", "dual"), [(PARTS, True), (PARTS, False), (0, False)])
def test_saai_is_parts_and_mean_then_one_neck_per_modality(parts, dual, training):
    images, _, modality = batch()
    model = saai(parts=parts, dual_neck=dual).train(training)
    assert model.dim == CHANNELS * (parts + 1)
    state = {name: model.neck.state_dict()[name].clone() for name in ("weight", "running_mean", "running_var")}
    output = model(images, modality)
    pooled, similarity = pooled_by_loops(model, model.backbone(images))
    assert_close(output.pooled, pooled)
    assert_close(output.similarity, similarity)
    assert output.transfer is output.query_logits is output.gallery_logits is None
    if dual:
        assert isinstance(model.neck, DualBNNeck)
        for kind in (VISIBLE, INFRARED):
            own = {name: value[kind] for name, value in state.items()}
            rows = modality == kind
            assert_close(output.features[rows], ref.batch_norm(pooled[rows], **own, training=training))
    else:
        assert isinstance(model.neck, BNNeck)
        assert_close(output.features, ref.batch_norm(pooled, **state, training=training))


def test_a_grid_makes_horizontal_parts():
    images, _, modality = batch()
    model = saai(parts=0, grid=(3, 1), dual_neck=False).eval()
    maps = model.backbone(images)
    stripes = torch.stack([maps[:, c, i].mean(1) for c in range(CHANNELS) for i in range(3)], 1)
    assert_close(model(images, modality).pooled, stripes)


@pytest.mark.parametrize("global_feature", [True, False])
@pytest.mark.parametrize("parts", [0, PARTS])
def test_stripes_stand_between_the_prototypes_and_the_global_feature(parts, global_feature):
    images, _, modality = batch()
    model = saai(parts=parts, stripes=3, global_feature=global_feature, dual_neck=False).eval()
    maps = model.backbone(images)
    stripes = torch.stack([maps[:, c, i].mean(1) for c in range(CHANNELS) for i in range(3)], 1)
    joined, _ = pooled_by_loops(model, maps)
    prototypes, whole = joined.split([parts * CHANNELS, CHANNELS], 1)
    expected = torch.cat([prototypes, stripes, *([whole] if global_feature else [])], 1)
    assert_close(model(images, modality).pooled, expected)
    assert model.dim == expected.shape[1]
    if not parts and not global_feature:  # the same as stripes made by the grid, in the same order
        by_grid = saai(parts=0, grid=(3, 1), dual_neck=False).eval()
        by_grid.load_state_dict(model.state_dict())
        assert torch.equal(by_grid(images, modality).features, model(images, modality).features)


def test_prototypes_need_no_global_feature():
    images, _, modality = batch()
    model = saai(global_feature=False).eval()
    joined, similarity = pooled_by_loops(model, model.backbone(images))
    output = model(images, modality)
    assert_close(output.pooled, joined[:, :-CHANNELS])
    assert_close(output.similarity, similarity)


def test_prototypes_stand_before_the_cells_of_a_grid():
    """As with the small backbone, whose cells are stacked: here each cell is the mean of two by two pixels."""
    images, modality = torch.randn(4, 3, 10, 10, dtype=torch.double), torch.tensor([0, 1, 0, 1])
    model = saai(grid=(2, 2), size=(4, 4)).eval()
    maps = model.backbone(images)
    parts, _ = pooled_by_loops(model, maps)
    cells = [
        sum(maps[:, c, 2 * i + a, 2 * j + b] for a in (0, 1) for b in (0, 1)) / 4
        for c in range(CHANNELS)
        for i in (0, 1)
        for j in (0, 1)
    ]
    expected = torch.cat([parts[:, : CHANNELS * PARTS], torch.stack(cells, 1)], 1)
    assert_close(model(images, modality).pooled, expected)


def test_any_map_size_is_served():
    images = torch.randn(3, 3, 20, 10, dtype=torch.double)
    output = saai()(images, torch.tensor([0, 1, 1]))
    assert output.similarity.shape == (3, PARTS, 9 * 4)
    assert output.features.isfinite().all()


def expected_losses(output, criterion, labels, modality, normalize: bool) -> dict[str, Tensor]:
    """Eq. 4, 5 and the identity loss by loops; ``normalize`` the features of L_cs."""
    own = criterion.identity
    terms = loops.mutual_identity(output.features, labels, modality, own.shared, own.specific, own.averaged)
    return dict(zip(("id", "specific", "mutual"), terms, strict=True)) | {
        "part_diversity": 0.5 * loops.part_diversity(1 / (1 + torch.exp(-output.similarity))),
        "center_separation": loops.center_separation(output.pooled, labels, normalize=normalize),
    }


@pytest.mark.parametrize("normalize", [False, True])
def test_the_criterion_by_loops(normalize):
    images, labels, modality = batch()
    model = saai()
    criterion = SAAICriterion(model, normalize_centers=normalize).double().eval()
    for weights in (criterion.identity.shared, criterion.identity.specific, criterion.identity.averaged):
        nn.init.normal_(weights)
    output = model(images, modality)
    losses = criterion(output, labels, modality)
    expected = expected_losses(output, criterion, labels, modality, normalize)
    assert losses.keys() == expected.keys() | {"total"}
    for name, value in expected.items():
        assert_close(losses[name], value, msg=name)
    assert_close(losses["total"], sum(expected.values()))


def test_each_reading_of_the_losses_by_loops():
    images, labels, modality = batch()
    model = saai()
    weights = {"shared_weight": 0.5, "specific_weight": 2.0, "mutual_weight": 3.0}
    criterion = SAAICriterion(model, maps="logits", identity_means="batch", **weights).double().eval()
    own = criterion.identity
    for tensor in (own.shared, own.specific, own.averaged):
        nn.init.normal_(tensor)
    output = model(images, modality)
    losses = criterion(output, labels, modality)
    terms = loops.mutual_identity(output.features, labels, modality, own.shared, own.specific, own.averaged, "batch")
    for name, weight, term in zip(("id", "specific", "mutual"), weights.values(), terms, strict=True):
        assert_close(losses[name], weight * term, msg=name)
    assert_close(losses["part_diversity"], 0.5 * loops.part_diversity(output.similarity, "logits"))
    usual = SAAICriterion(model)
    assert (usual.part_diversity.maps, usual.identity.means) == ("sigmoid", "modality")


def test_each_weight_counts_once_and_0_leaves_its_loss_out():
    images, labels, modality = batch()
    model = saai()
    output = model(images, modality)
    usual = SAAICriterion(model).double().eval()(output, labels, modality)
    weights = {"part_diversity": 2.0, "center_separation": 3.0}
    other = SAAICriterion(model, **weights).double().eval()(output, labels, modality)
    assert_close(other["part_diversity"], 4 * usual["part_diversity"])  # λ is 0.5
    assert_close(other["center_separation"], 3 * usual["center_separation"])
    none = SAAICriterion(model, part_diversity=0, center_separation=0).double()(output, labels, modality)
    assert none.keys() == {"id", "specific", "mutual", "total"}
    bare = saai(parts=0)
    assert "part_diversity" not in SAAICriterion(bare).double()(bare(images, modality), labels, modality)


def test_the_affinity_loss_has_weight_1_unless_another_is_given():
    images, labels, modality = batch()
    model = saai()
    output = model(images, modality)
    losses = [
        SAAICriterion(model, affinity=AffinityInferenceLoss(), **weight).double()(output, labels, modality)["affinity"]
        for weight in ({}, {"affinity_weight": 3.0})
    ]
    assert_close(losses[0], AffinityInferenceLoss()(output.features, labels, modality))
    assert_close(losses[1], 3 * losses[0])


def test_the_affinity_loss_is_of_the_features_aim_ranks():
    images, _, modality = batch(6, 6)
    labels = torch.arange(12) % 3
    model = saai()
    loss = AffinityInferenceLoss(k1=2, k2=2, temperature=0.5)
    criterion = SAAICriterion(model, affinity=loss, affinity_weight=0.25).double()
    output = model(images, modality)
    expected = []
    for i in range(12):
        gallery = (modality != modality[i]).nonzero().flatten()
        query, others = output.features[i : i + 1].detach(), output.features[gallery].detach()
        scores = ((1 - aim(query, others, k1=2, k2=2)[0]) / 0.5).exp()
        same = labels[gallery] == labels[i]
        if same.any() and not same.all():
            expected.append(-(scores[same] / (scores[same] + scores[~same].sum())).log().mean())
    assert_close(criterion(output, labels, modality)["affinity"], 0.25 * sum(expected) / len(expected))


class Embedded(nn.Module):
    """CIFT's baseline replaced by SAAI, whose transfer it leaves to CIFT."""

    def __init__(self, model: SAAI) -> None:
        super().__init__()
        self.model = model

    def forward(self, images, modality):
        pooled = self.model(images, modality).pooled
        features = self.model.neck(pooled, modality)
        return BaselineOutput(features, features.new_zeros(len(images), IDENTITIES), pooled=pooled)


def test_with_transfer_it_is_cift_on_saais_features():
    images, labels, modality = batch()
    dim = CHANNELS * (PARTS + 1)
    model = saai(transfer=H2FT(dim, k=3)).eval()
    nn.init.normal_(model.graph_classifier.weight)
    cri = CRILoss(dim).double()
    twin = CIFT(nn.Conv2d(3, dim, 1), IDENTITIES, transfer=model.transfer).eval()
    twin.baseline, twin.graph_classifier = Embedded(model), model.graph_classifier
    ours, theirs = SAAICriterion(model, cri=cri).double(), CIFTCriterion(twin, cri=cri)
    torch.manual_seed(1)
    losses = ours(model(images, modality), labels, modality)
    torch.manual_seed(1)
    expected = theirs(twin(images, modality), labels, modality)
    for name in ("graph_ce", "graph_hcc", "tie"):
        assert_close(losses[name], expected[name], msg=name)
    terms = [value for name, value in losses.items() if name != "total"]
    assert_close(losses["total"], sum(terms))
    assert "tie" not in SAAICriterion(model).double()(model(images, modality), labels, modality)
    assert not {id(p) for p in ours.parameters()} & {id(p) for p in model.parameters()}


def test_the_averages_are_saved_with_the_criterion():
    images, labels, modality = batch()
    model = saai()
    criterion = SAAICriterion(model).double()
    nn.init.normal_(criterion.identity.specific)
    criterion(model(images, modality), labels, modality)
    again = SAAICriterion(model).double()
    again.load_state_dict(criterion.state_dict())
    assert_close(again.identity.averaged, criterion.identity.averaged, rtol=0, atol=0)
    assert (criterion.identity.averaged - criterion.identity.specific).abs().max() > 0.1


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: SAAI(nn.ReLU(), 5), "channels must be given for a backbone without the attribute out_channels"),
        (lambda: saai(parts=-1), "parts must be at least 0, got -1"),
        (lambda: saai(stripes=-1), "stripes must be at least 0, got -1"),
        (lambda: saai(parts=0, global_feature=False), "global_feature must be True without parts and stripes"),
        (lambda: SAAICriterion(saai(), maps="tanh"), "maps must be one of 'sigmoid', 'logits', got 'tanh'"),
        (lambda: SAAICriterion(saai(), identity_means="all"), "identity_means must be one of 'modality', 'batch'"),
        (lambda: SAAICriterion(saai(), cri=CRILoss(16)), "cri needs a model with a transfer"),
        (lambda: saai(transfer=H2FT(7)), "transfer must be of size 16 as the features, got 7"),
        (lambda: saai(channels=5)(*batch()[::2]), r"backbone must return \(B, 5, h, w\), got \(9, 4, 3, 2\)"),
    ],
)
def test_bad_arguments_are_named(make, text):
    with pytest.raises(ValueError, match=text):
        make()
