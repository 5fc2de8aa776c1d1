"""Contract of every setting of the layers and models: what is no such value is refused by name, NumPy's are taken."""

import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial
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


def model(kind: type[nn.Module], **options: Any) -> nn.Module:
    arguments = {"backbone": net(), "num_classes": 5} | options
    return kind(arguments.pop("backbone"), arguments.pop("num_classes"), **arguments)


def criterion(kind: type[nn.Module], make: Callable[[], nn.Module], **options: Any) -> nn.Module:
    return kind(options.pop("model", None) if "model" in options else make(), **options)


def keypoints(**options: Any) -> torch.Tensor:
    return layers.gaussian_heatmaps(torch.ones(1, 2, 2), **{"size": (4, 4)} | options)


MODEL = {"backbone": "module", "num_classes": "count", "grid": "size"}
SETTINGS: list[tuple[Callable[..., Any], dict[str, Any], dict[str, str]]] = [
    (H2FT, {"dim": 6}, {"dim": "count", "k": "count", "tau_hom": "positive", "tau_het": "positive", "value": "module"}),
    (GFT, {"dim": 6}, {"dim": "count", "k": "count", "tau": "positive", "unbalanced": "flag", "value": "module"}),
    (
        layers.PrototypePooling,
        {"channels": 6},
        {"channels": "count", "parts": "count", "size": "size", "position_in_values": "flag"},
    ),
    (
        layers.MessageFusionAttention,
        {"dim": 6, "heads": 2},
        {
            "dim": "count",
            "heads": "count",
            "threshold": "number",
            "negative_slope": "positive",
            "activation": "module",
        },
    ),
    (layers.SkeletonAggregation, {"dim": 6, "nodes": 3}, {"dim": "count", "nodes": "count"}),
    (layers.skeleton_adjacency, {"edges": [], "nodes": 2}, {"nodes": "count", "self_loops": "flag"}),
    (layers.part_grid, {"rows": 2, "columns": 1}, {"rows": "count", "columns": "count"}),
    (keypoints, {}, {"size": "size", "image_size": "size", "sigma": "positive"}),
    (partial(layers.present_keypoints, torch.ones(1, 2, 2, 2)), {}, {"threshold": "number"}),
    (partial(layers.keypoint_pooling, torch.ones(1, 2, 2, 2), torch.ones(1, 2, 2, 2)), {}, {"grid": "size"}),
    (feature_size, {"backbone": net()}, {"backbone": "module", "grid": "size"}),
    (partial(model, Baseline), {}, MODEL | {"dim": "optional count"}),
    (partial(model, CIFT), {}, MODEL | {"dim": "optional count", "transfer": "layer"}),
    (
        partial(model, SAAI),
        {},
        MODEL
        | {
            "channels": "optional count",
            "size": "size",
            "position_in_values": "flag",
            "dual_neck": "flag",
            "transfer": "layer",
        },
    ),
    (partial(model, G2DA), {"heads": 2}, MODEL | {"heads": "count", "graph": "flag", "normalize_nodes": "flag"}),
    (AlignedCriterion, {"criterion": net()}, {"criterion": "module", "weight": "positive", "grid": "size"}),
    (partial(criterion, CIFTCriterion, cift), {}, {"model": "layer", "cri": "layer"}),
    (
        partial(criterion, SAAICriterion, saai),
        {},
        {
            "model": "layer",
            "part_diversity": "weight",
            "center_separation": "weight",
            "affinity": "layer",
            "affinity_weight": "weight",
            "cri": "layer",
        },
    ),
    (G2DACriterion, {}, dict.fromkeys(("base", "transport", "contrastive", "graph"), "weight")),
]


def name_of(call: Callable[..., Any]) -> str:
    kind = call.args[0] if isinstance(call, partial) and isinstance(call.args[0], type) else call
    return getattr(kind, "func", kind).__name__


EACH = [
    pytest.param(call, given, name, kind, id=f"{name_of(call)}-{name}")
    for call, given, kinds in SETTINGS
    for name, kind in kinds.items()
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
