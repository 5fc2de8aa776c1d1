import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from reference import agw as reference
from vireid.losses import CRILoss
from vireid.models import AGW, AGWCriterion
from vireid.nn import GFT, H2FT, SharedFeatureTransfer, SmallBackbone, TwoStream


def backbone(rows: int = 12, grid: tuple[int, int] | None = None) -> nn.Module:
    net = nn.Sequential(nn.AdaptiveAvgPool2d((rows, 4)), nn.Conv2d(3, 5, 1), nn.ReLU())
    net.out_channels = 5
    if grid is not None:
        net.grid = grid
    return net


def batch(size: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    order = torch.randperm(size)
    return torch.rand(size, 3, 24, 8), (torch.arange(size) % 3)[order], (torch.arange(size) % 2)[order]


@pytest.mark.parametrize("pooling", ["gem", "avg"])
@pytest.mark.parametrize("relu", [False, True])
def test_stripes_are_pooled_reduced_and_classified_each_by_itself(pooling, relu):
    model = AGW(backbone(), 7, pooling=pooling, stripes=3, part_dim=4, relu=relu).eval()
    images, _, modality = batch(5)
    output = model(images, modality)
    maps, pooled, logits = output.feature_map, [], []
    weights = (
        model.reduction.weight.view(3, 4, 5),
        model.reduction.bias.view(3, 4),
        model.classifier.weight.view(3, 7, 4),
    )
    features = model.neck(output.pooled)
    features = features.relu() if relu else features
    for s in range(3):
        stripe = maps[:, :, 4 * s : 4 * s + 4]
        power = 3 if pooling == "gem" else 1
        mean = stripe.clamp_min(1e-6).pow(power).mean((2, 3)).pow(1 / power) if power > 1 else stripe.mean((2, 3))
        pooled.append(mean @ weights[0][s].T + weights[1][s])
        logits.append(features[:, 4 * s : 4 * s + 4] @ weights[2][s].T)
    assert_close(output.pooled, torch.cat(pooled, 1))
    assert_close(output.features, features)
    assert_close(output.logits, torch.stack(logits, 1))
    assert output.features.shape == (5, model.dim)


@pytest.mark.parametrize(
    ("own", "stripes", "grid"), [(None, 6, (6, 1)), ((15, 7), 6, (12, 7)), ((15, 7), 1, (15, 7)), ((4, 2), 6, (6, 2))]
)
def test_the_rows_of_the_grid_are_a_multiple_of_the_stripes(own, stripes, grid):
    model = AGW(backbone(grid=own), 7, stripes=stripes)
    assert (model.grid, model.dim) == (grid, 5 * grid[0] * grid[1])
    images, _, modality = batch(4)
    assert model(images, modality).features.shape == (4, model.dim)


@pytest.mark.parametrize("metric_features", ["pooled", "neck"])
def test_the_losses_are_those_of_the_stripes(metric_features):
    model = AGW(backbone(), 3, stripes=2, part_dim=4)
    images, labels, modality = batch()
    criterion = AGWCriterion(
        model,
        triplet=0.5,
        hetero_center=0.3,
        hetero_center_triplet=0.7,
        stripe_weight=1.5,
        label_smoothing=0.1,
        metric_features=metric_features,
    )
    output = model(images, modality)
    losses = criterion(output, labels, modality)
    rows = (output.pooled if metric_features == "pooled" else output.features).detach().double()
    parts = rows.split(4, 1)
    given = labels, modality
    expected = {
        "ce": sum(F.cross_entropy(output.logits[:, s], labels, label_smoothing=0.1) for s in range(2)),
        "triplet": 0.5 * reference.weighted_triplet(rows, labels, False),
        "hetero_center": 0.3 * sum(reference.hetero_center(part, *given, True, "sum") for part in parts),
        "hetero_center_triplet": 0.7
        * (
            reference.hetero_center_triplet(rows, *given, 0.3, False)
            + 1.5 * sum(reference.hetero_center_triplet(part, *given, 0.3, False) for part in parts)
        ),
    }
    assert losses.keys() == {*expected, "total"}
    for name, value in expected.items():
        assert_close(losses[name].double(), value.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [H2FT, GFT])
def test_cift_stands_on_its_features(layer):
    net = TwoStream.from_sequential(SmallBackbone(), shared_from="refinements")
    model = AGW(net, 3, pooling="avg", transfer=layer(945))
    images, labels, modality = torch.rand(8, 3, 64, 32), torch.arange(8) % 3, torch.arange(8) // 4
    output = model(images, modality)
    assert_close(output.transfer.query, model.transfer(output.features, modality).query, rtol=0.1, atol=0.1)
    losses = AGWCriterion(model, cri=CRILoss(945))(output, labels, modality)
    assert losses.keys() == {"ce", "triplet", "graph_ce", "graph_hcc", "tie", "total"}


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="pooling must be one of 'gem', 'avg', got 'max'"):
        AGW(backbone(), 3, pooling="max")
    with pytest.raises(ValueError, match="transfer must be of size 5 as the features, got 6"):
        AGW(backbone(), 3, transfer=H2FT(6))
    with pytest.raises(ValueError, match="cri needs a model with a transfer, got one without"):
        AGWCriterion(AGW(backbone(), 3), cri=CRILoss(5))
    with pytest.raises(ValueError, match="cri needs a transfer of H2FT or GFT, got SharedFeatureTransfer"):
        AGWCriterion(AGW(backbone(), 3, transfer=SharedFeatureTransfer(5)), cri=CRILoss(5))
    with pytest.raises(ValueError, match="label_smoothing must be at least 0 and at most 1, got 2"):
        AGWCriterion(AGW(backbone(), 3), label_smoothing=2)
