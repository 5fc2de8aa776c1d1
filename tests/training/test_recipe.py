"""Recipes: their values, the schedule of the learning rate, the optimizer's groups."""

import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn

from vireid.training import METHODS, RECIPES, Recipe, build
from vireid.training.loop import Step
from vireid.training.recipe import make_optimizer


def optimizer_of(method="cift", settings=None, **changes):
    step = Step(*build(method, 3, (32, 16), settings))
    return step, make_optimizer(step, Recipe(**{"lr": 1e-2, **changes}))


def groups(step, optimizer):
    """Learning rate and weight decay by the name of a parameter; every trained one is in one group."""
    setting = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert setting.keys() == {id(p) for p in step.parameters() if p.requires_grad}
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(setting)
    return {name: setting[id(p)] for name, p in step.named_parameters() if id(p) in setting}


def test_a_recipe_survives_json_and_a_checkpoint(tmp_path):
    recipe = Recipe(milestones=(1 / 3, 0.5), lr_shares={"backbone": 0.1}, batches=3, grayscale=0.2)
    assert Recipe(**json.loads(json.dumps(recipe.to_dict()))) == recipe
    torch.save(recipe.to_dict(), tmp_path / "recipe.pt")
    assert Recipe(**torch.load(tmp_path / "recipe.pt", weights_only=True)) == recipe
    numpys = Recipe(
        epochs=np.int64(3),
        seed=np.int64(1),
        lr=np.float32(0.5),
        lr_shares={"backbone": np.float64(1)},
        size=(np.int64(8), 8),
        milestones=np.array([0.5]),
    )
    torch.save(numpys.to_dict(), tmp_path / "recipe.pt")
    assert Recipe(**torch.load(tmp_path / "recipe.pt", weights_only=True)) == numpys
    assert recipe.replace(seed=2) == Recipe(**recipe.to_dict() | {"seed": 2}) != recipe
    full = RECIPES["g2da"]
    torch.save(full.to_dict(), tmp_path / "recipe.pt")
    assert Recipe(**torch.load(tmp_path / "recipe.pt", weights_only=True)) == full
    assert Recipe(**json.loads(json.dumps(full.to_dict()))) == full
    assert Recipe() == RECIPES["small"] == METHODS["cift"].recipe
    assert METHODS["g2da"].recipe.lr_shares == {"attention": 0.03, "aggregation": 0.03}


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"epochs": -1}, ValueError, "epochs must be at least 0, got -1"),
        ({"identities": 0}, ValueError, "identities must be at least 1, got 0"),
        ({"size": (0, 16)}, ValueError, r"size\[0\] must be at least 1, got 0"),
        ({"lr": float("nan")}, ValueError, "lr must be at least 0 and finite, got nan"),
        ({"lr_shares": {"backbone": -1}}, ValueError, r"lr_shares\['backbone'\] must be at least 0 and finite, got -1"),
        ({"optimizer": "lion"}, ValueError, "optimizer must be one of 'adamw', 'adam', 'sgd', got 'lion'"),
        ({"schedule": "step"}, ValueError, "schedule must be one of 'cosine', 'steps', 'constant', got 'step'"),
        ({"milestones": (1 / 2, 3 / 2)}, ValueError, "milestones must be shares of the training between 0 and 1"),
        ({"warmup": 1}, ValueError, "warmup must be a share of the training below 1, got 1"),
        ({"epoch": 3}, TypeError, "epoch"),
        ({"erasing_aspect": float("nan")}, ValueError, "erasing_aspect must be above 0 and at most 1, got nan"),
        ({"padding": 1j}, TypeError, "padding must be an integer, got 1j"),
        ({"exchange_visible": b"1"}, TypeError, "exchange_visible must be a number, got b'1'"),
        ({"name": 3}, TypeError, "name must be a str, got 3"),
        ({"settings": [("k", 4)]}, TypeError, "settings must map names to values, got"),
        ({"rerank": "gnn"}, ValueError, "rerank must be one of 'none', 'aim', got 'gnn'"),
        ({"exchange": "swap"}, ValueError, "exchange must be one of 'caj', 'none', got 'swap'"),
        ({"crop": 2}, ValueError, "crop must be one of True, False, got 2"),
    ],
)
def test_wrong_values_are_named(changes, error, text):
    with pytest.raises(error, match=text):
        Recipe(**changes)


@pytest.mark.parametrize(
    ("changes", "fall"),
    [
        ({"schedule": "steps"}, [1.0] * 50 + [0.1] * 40 + [0.01] * 20),  # CIFT's: 1/2 and 5/6
        ({"schedule": "steps", "milestones": (1 / 2, 3 / 4)}, [1.0] * 50 + [0.1] * 30 + [0.01] * 30),
        ({"schedule": "steps", "milestones": (1 / 3,), "gamma": 0.5}, [1.0] * 30 + [0.5] * 80),
        ({"schedule": "constant"}, [1.0] * 110),
        ({"schedule": "cosine"}, [0.5 * (1 + np.cos(np.pi * i / 110)) for i in range(110)]),
    ],
)
def test_learning_rate_warms_up_then_falls(changes, fall):
    recipe = Recipe(**changes)
    factors = [recipe.factor(step, 120) for step in range(120)]
    assert factors[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert factors[10:] == pytest.approx(fall)
    if recipe.schedule == "cosine":
        assert all(a > b for a, b in itertools.pairwise(factors[10:]))
        assert 0 < factors[-1] < 1e-3
    assert recipe.replace(warmup=0).factor(0, 120) == 1


def test_optimizer_spares_norms_from_decay_and_slows_the_parts_that_are_named():
    shares = {"backbone": 0.1, "backbone.norm": 0.2, "transfer": 0.3, "criterion.cri": 0.4, "absent": 1}
    with pytest.raises(ValueError, match="lr_shares must name parts of the model, got 'absent'"):
        optimizer_of(lr_shares=shares)
    named = groups(*optimizer_of(lr_shares={k: v for k, v in shares.items() if k != "absent"}, optimizer="sgd"))
    assert named["model.graph_classifier.weight"] == (1e-2, 5e-4)
    assert named["model.transfer.value.weight"] == (pytest.approx(3e-3), 0)
    assert named["criterion.cri.X_mu"] == (pytest.approx(4e-3), 0)
    assert named["model.baseline.backbone.norm.weight"] == (pytest.approx(2e-3), 0)  # the longer name
    assert named["model.baseline.backbone.refinements.0.branch.0.weight"] == (pytest.approx(1e-3), 5e-4)


def test_a_part_that_a_row_of_the_ablation_lacks_may_be_named():
    shares = METHODS["g2da"].recipe.lr_shares
    named = groups(*optimizer_of("g2da", lr_shares=shares))
    slow = {name for name, (lr, _) in named.items() if lr == pytest.approx(3e-4)}
    assert slow == {name for name in named if name.startswith(("model.attention.", "model.aggregation."))} != set()
    lrs = {lr for lr, _ in groups(*optimizer_of("g2da", {"ablation": "baseline"}, lr_shares=shares)).values()}
    assert lrs == {1e-2}


def test_the_scales_of_both_necks_are_spared_from_decay():
    """The scale of the neck for each modality has two rows, and is a norm's all the same."""
    for ablation in ("baseline", "saai"):
        named = groups(*optimizer_of("saai", {"ablation": ablation}))
        assert named["model.neck.weight"][1] == 0
        assert named["criterion.identity.shared"][1] == 5e-4


@pytest.mark.parametrize(
    ("changes", "kind", "expected"),
    [
        ({"optimizer": "adam"}, torch.optim.Adam, {}),
        ({"optimizer": "adamw"}, torch.optim.AdamW, {}),
        ({"optimizer": "sgd"}, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        ({"optimizer": "sgd", "nesterov": False}, torch.optim.SGD, {"momentum": 0.9, "nesterov": False}),
        ({"optimizer": "sgd", "momentum": 0}, torch.optim.SGD, {"momentum": 0, "nesterov": False}),
    ],
)
def test_the_optimizer_is_the_one_named(changes, kind, expected):
    made = make_optimizer(Step(nn.Linear(2, 2), nn.Identity()), Recipe(**changes))
    assert type(made) is kind
    assert {key: made.defaults[key] for key in expected} == expected


def test_augmentation_is_the_recipes():
    augment = Recipe(size=(64, 32), flip=0, erasing=0, exchange="none").augmentation()
    assert (augment.size, augment.padding, augment.flip, augment.erasing, augment.exchange) == (
        (64, 32), 4, None, None, None,
    )  # fmt: skip
    assert Recipe(size=(16, 8)).augmentation().padding == 2
    assert augment.crop is True
    views = Recipe(crop=False, second_view=True).augmentation()
    assert (views.crop, views.second_view) == (False, True)
    full = Recipe(padding=3, grayscale=0.25, exchange_visible=1.0, exchange_infrared=0.0).augmentation()
    assert (full.padding, full.exchange.visible, full.exchange.infrared) == (3, 1.0, 0.0)
    assert full.grayscale is not None
    assert full.flip is not None
