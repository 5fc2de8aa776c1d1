"""Contract of every setting of the layers and models: what is no such value is refused by name, NumPy's are taken."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vireid import nn as layers
from vireid.losses import AffinityInferenceLoss, CRILoss
from vireid.models import (
    CIFT,
    G2DA,
    SAAI,
    AlignedCriterion,
    Baseline,
    CIFTCriterion,
    G2DACriterion,
    SAAICriterion,
    feature_size,
)
from vireid.nn import GFT, H2FT

NOT_NUMBERS = [True, "3", math.nan, [3], np.array([3]), torch.tensor(True), nn.ReLU(), len]
WRONG: dict[str, list[Any]] = {
    "count": [*NOT_NUMBERS, None, 0, -1, 1.5, math.inf, np.float32(2), np.True_],
    "positive": [*NOT_NUMBERS, None, 0, -1.0, math.inf, -math.inf],
    "weight": [*NOT_NUMBERS, None, -1.0, math.inf],
    "number": [*NOT_NUMBERS, None],
    "flag": [None, 1, "no", math.nan, np.True_],
    "size": ["ab", 3, (0, 7), (7, 0), (1,), (1.5, 2), (math.nan, 1), (True, 2), {}, math.nan, len],
    "module": [5, "x", True, math.nan, nn.ReLU],
    "layer": [5, "x", True, math.nan, nn.ReLU, nn.ReLU()],  # a module of one kind
}
WRONG["optional count"] = [value for value in WRONG["count"] if value is not None]
RIGHT: dict[str, list[Any]] = {
    "count": [np.int64(2), np.uint8(2)],
    "positive": [np.float32(0.5), np.int64(1), Fraction(1, 2)],
    "weight": [0, np.float64(0.5)],
    "number": [np.float32(0.5), math.inf, -math.inf, 1],
    "size": [(np.int64(2), 2), [2, 2]],
    "flag": [False, True],
}


def net() -> nn.Module:
    return nn.Conv2d(3, 6, 1)


def cift() -> CIFT:
    return CIFT(net(), 5)


def saai() -> SAAI:
    return SAAI(net(), 5, parts=1, transfer=H2FT(12))


MODEL = {"backbone": net(), "num_classes": 5}
HEATMAPS = {"heatmaps": torch.ones(1, 2, 2, 2)}
SETTINGS: list[tuple[Callable[..., Any], dict[str, Any], dict[str, str]]] = [  # a call's arguments, and those of a kind
    (H2FT, {"dim": 6}, {"count": "dim k", "positive": "tau_hom tau_het", "module": "value"}),
    (GFT, {"dim": 6}, {"count": "dim k", "positive": "tau", "flag": "unbalanced", "module": "value"}),
    (
        layers.PrototypePooling,
        {"channels": 6},
        {"count": "channels parts", "size": "size", "flag": "position_in_values"},
    ),
    (
        layers.MessageFusionAttention,
        {"dim": 6, "heads": 2},
        {
            "count": "dim heads",
            "optional count": "head_dim",
            "number": "threshold",
            "positive": "negative_slope",
            "module": "activation",
            "flag": "magnitude",
        },
    ),
    (layers.SkeletonAggregation, {"dim": 6, "nodes": 3}, {"count": "dim nodes"}),
    (layers.skeleton_adjacency, {"edges": [], "nodes": 2}, {"count": "nodes", "flag": "self_loops"}),
    (layers.part_grid, {"rows": 2, "columns": 1}, {"count": "rows columns"}),
    (
        layers.gaussian_heatmaps,
        {"keypoints": torch.ones(1, 2, 2), "size": (4, 4)},
        {"size": "size image_size", "positive": "sigma"},
    ),
    (layers.present_keypoints, HEATMAPS, {"number": "threshold"}),
    (layers.keypoint_pooling, HEATMAPS | {"feature_map": torch.ones(1, 2, 2, 2)}, {"size": "grid"}),
    (feature_size, {"backbone": net()}, {"module": "backbone", "size": "grid"}),
    (Baseline, MODEL, {"module": "backbone", "count": "num_classes", "size": "grid", "optional count": "dim"}),
    (
        CIFT,
        MODEL,
        {"module": "backbone", "count": "num_classes", "size": "grid", "optional count": "dim", "layer": "transfer"},
    ),
    (
        SAAI,
        MODEL,
        {
            "module": "backbone",
            "count": "num_classes",
            "size": "grid size",
            "optional count": "channels",
            "flag": "position_in_values dual_neck global_feature",
            "layer": "transfer",
        },
    ),
    (
        G2DA,
        MODEL | {"heads": 2},
        {
            "module": "backbone",
            "count": "num_classes heads",
            "optional count": "head_dim",
            "size": "grid",
            "flag": "graph normalize_nodes magnitude",
            "layer": "transfer",
        },
    ),
    (AlignedCriterion, {"criterion": net()}, {"module": "criterion", "positive": "weight", "size": "grid"}),
    (CIFTCriterion, {"model": cift()}, {"layer": "model cri"}),
    (
        SAAICriterion,
        {"model": saai()},
        {
            "layer": "model affinity cri",
            "weight": "part_diversity center_separation affinity_weight shared_weight specific_weight mutual_weight",
            "flag": "normalize_centers",
        },
    ),
    (
        G2DACriterion,
        {},
        {
            "weight": "base transport contrastive graph fusion_sparsity",
            "positive": "margin epsilon",
            "layer": "model cri",
            "flag": "normalize_triplet normalize_nodes",
        },
    ),
]
EACH = [
    pytest.param(call, given, name, kind, id=f"{call.__name__}-{name}")
    for call, given, kinds in SETTINGS
    for kind, names in kinds.items()
    for name in names.split()
]


@pytest.mark.parametrize(("call", "given", "name", "kind"), EACH)
def test_settings_are_checked_by_name(call, given, name, kind):
    for value in WRONG[kind]:
        with pytest.raises((TypeError, ValueError), match=name):
            call(**given | {name: value})
    for value in RIGHT.get(kind, []):
        made = call(**given | {name: value})
        if isinstance(made, nn.Module):
            assert not isinstance(getattr(made, name, None), np.generic)


def test_sizes_that_do_not_fit_the_grid_are_named():
    for kind in (Baseline, CIFT, G2DA):
        with pytest.raises(ValueError, match="dim must be a multiple of the 3 cells of the grid, got 10"):
            kind(net(), 5, dim=10, grid=(3, 1))
    with pytest.raises(ValueError, match="transfer must be of size 6 as the features, got 7"):
        CIFT(net(), 5, transfer=H2FT(7))


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_wrapped_parts_are_taken():
    wrapped = torch.compile(CIFT(net(), 5, transfer=torch.compile(GFT(6), backend="eager")), backend="eager")
    assert CIFTCriterion(wrapped, cri=torch.compile(CRILoss(6), backend="eager")).cri is not None
    assert SAAICriterion(torch.compile(saai()), affinity=AffinityInferenceLoss(k1=2)).affinity is not None
