"""Recipes: how a model is trained, in plain values, and the optimizer and the schedule that follow from them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import nn

from vireid._checks import (
    check_at_least_zero,
    check_count,
    check_flag,
    check_fraction,
    check_number,
    check_option,
    check_size,
)
from vireid.data import TrainAugmentation
from vireid.nn import DualBNNeck

_AUGMENTATION = (
    *("crop", "flip", "erasing", "erasing_area", "erasing_aspect"),
    *("grayscale", "exchange", "exchange_visible", "exchange_infrared", "second_view"),
)

EVALUATION = ("flip_test", "rerank")
"""Fields that training does not read."""


@dataclass(frozen=True)
class Recipe:
    """Settings of a training run. All values are plain, so that a checkpoint keeps them: ``Recipe(**to_dict())``.

    The learning rate rises linearly over ``warmup``, then follows ``schedule``. Norms and biases have no weight decay.

    Attributes:
        size: (H, W) of the images.
        epochs: number of epochs; 0 trains nothing.
        identities: P, identities in a batch.
        per_modality: K, images of an identity in each modality.
        batches: batches per epoch and process. Default: every image of the larger modality is seen about once.
        min_batches: batches of all processes together that an epoch then has at least.
        optimizer: "adamw", "adam" or "sgd".
        lr: learning rate.
        momentum: of SGD.
        nesterov: whether SGD's momentum is Nesterov's.
        weight_decay: of weights with two or more axes.
        lr_shares: share of ``lr`` by part of the model. A key is a module's name, such as "backbone" or
            "criterion.cri"; it holds for every parameter in whose dotted name it occurs, the longest key first.
        schedule: "cosine" (to 0), "steps" (times ``gamma`` at each milestone) or "constant".
        milestones: of "steps", as shares of the training between 0 and 1.
        gamma: factor at a milestone.
        warmup: share of the training over which the learning rate rises.
        padding: pixels around an image before the crop. Default: H / 16, at least 2.
        crop, flip, erasing, erasing_area, erasing_aspect, grayscale, exchange, exchange_visible, exchange_infrared,
            second_view: options of `vireid.data.TrainAugmentation`.
        settings: of a method that go with the recipe, by name; see `settings_of`. `fit` does not read them.
        flip_test: whether test features are the mean over an image and its mirror image.
        rerank: "aim" if the evaluation also ranks with AIM at the k1 and k2 of its paper, or "none".
        seed: of the batches and the augmentation.
        precision: Lightning Fabric's: "32-true", "bf16-mixed", "16-mixed" and others.
        name: of the recipe that the values come from; runs record it beside the values.

    Raises:
        ValueError: if a value is out of its range.
        TypeError: if a number is not one.
    """

    size: tuple[int, int] = (64, 32)
    epochs: int = 20
    identities: int = 8
    per_modality: int = 4
    batches: int | None = None
    min_batches: int = 64
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = 1e-3
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    lr_shares: Mapping[str, float] = field(default_factory=dict)
    schedule: Literal["cosine", "steps", "constant"] = "cosine"
    milestones: tuple[float, ...] = (1 / 2, 5 / 6)
    gamma: float = 0.1
    warmup: float = 1 / 12
    padding: int | None = None
    crop: bool = True
    flip: float = 0.5
    erasing: float = 0.5
    erasing_area: tuple[float, float] = (0.02, 0.4)
    erasing_aspect: float = 0.3
    grayscale: float = 0.0
    exchange: str = "caj"
    exchange_visible: float = 0.5
    exchange_infrared: float = 0.5
    second_view: bool = False
    settings: Mapping[str, object] = field(default_factory=dict)
    flip_test: bool = False
    rerank: Literal["none", "aim"] = "none"
    seed: int = 0
    precision: str = "32-true"
    name: str = "small"

    def __post_init__(self) -> None:
        # Plain values: lists, as JSON has them, become tuples, and NumPy's numbers Python's.
        def keep(check: Callable[..., object], *names: str, **options: Any) -> None:
            for name in names:
                object.__setattr__(self, name, check(name, getattr(self, name), **options))

        keep(check_size, "size")
        keep(lambda name, values: tuple(check_number(name, x) for x in values), "milestones", "erasing_area")
        keep(check_count, "epochs", "seed", *["padding"] * (self.padding is not None), minimum=0)
        keep(check_count, "identities", "per_modality", "min_batches", *["batches"] * (self.batches is not None))
        keep(check_at_least_zero, "lr", "momentum", "weight_decay", "gamma", "warmup")
        keep(check_fraction, "flip", "erasing", "grayscale", "exchange_visible", "exchange_infrared")
        keep(check_fraction, "erasing_aspect", zero=False)
        if not isinstance(self.lr_shares, Mapping):
            raise TypeError(f"lr_shares must map parts of the model to numbers, got {self.lr_shares!r}")
        shares = {key: check_at_least_zero(f"lr_shares[{key!r}]", x) for key, x in self.lr_shares.items()}
        object.__setattr__(self, "lr_shares", shares)
        if not isinstance(self.settings, Mapping):
            raise TypeError(f"settings must map names to values, got {self.settings!r}")
        object.__setattr__(self, "settings", dict(self.settings))
        if not isinstance(self.name, str):
            raise TypeError(f"name must be a str, got {self.name!r}")
        for name in ("crop", "second_view", "nesterov", "flip_test"):
            check_flag(name, getattr(self, name))
        check_option("exchange", self.exchange, ("caj", "none"))
        check_option("rerank", self.rerank, ("none", "aim"))
        check_option("optimizer", self.optimizer, ("adamw", "adam", "sgd"))
        check_option("schedule", self.schedule, ("cosine", "steps", "constant"))
        if not all(0 < share < 1 for share in self.milestones):
            raise ValueError(f"milestones must be shares of the training between 0 and 1, got {self.milestones}")
        if self.warmup >= 1:
            raise ValueError(f"warmup must be a share of the training below 1, got {self.warmup}")

    def replace(self, **changes: object) -> "Recipe":
        """Return a copy with other values for the fields that are named."""
        values: dict[str, Any] = changes  # __post_init__ checks them
        return replace(self, **values)

    def to_dict(self) -> dict[str, object]:
        """Return every field by its name."""
        return asdict(self)

    def augmentation(self) -> TrainAugmentation:
        """Return the augmentation of a batch."""
        padding = max(2, self.size[0] // 16) if self.padding is None else self.padding
        return TrainAugmentation(self.size, padding=padding, **{name: getattr(self, name) for name in _AUGMENTATION})

    def factor(self, step: int, total: int) -> float:
        """Return the factor on the learning rate in ``step`` of ``total``."""
        step, total = check_count("step", step, minimum=0), check_count("total", total, minimum=0)
        warmup = max(1, int(total * _exact(self.warmup))) if self.warmup else 0
        if step < warmup:
            return (step + 1) / warmup
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "steps":
            return self.gamma ** sum(step >= total * _exact(share) for share in self.milestones)
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _exact(share: float) -> Fraction:
    """Return the simple fraction that a float such as 5 / 6 stands for, so that no step is lost to rounding."""
    return Fraction(share).limit_denominator(10_000)


def make_optimizer(step: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer for the parameters of ``step``, a model and its criterion.

    Raises:
        ValueError: if a key of ``lr_shares`` is the name of no part.
    """
    for key in recipe.lr_shares:
        first = key.partition(".")[0]
        if not any(hasattr(module, first) for module in step.modules()):
            raise ValueError(f"lr_shares must name parts of the model, got {key!r}")
    dual = {id(part.weight) for part in step.modules() if isinstance(part, DualBNNeck)}  # a norm with two rows
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in step.named_parameters():
        if parameter.requires_grad:
            lr = recipe.lr * _share(name, recipe.lr_shares)
            decay = recipe.weight_decay if parameter.ndim > 1 and id(parameter) not in dual else 0.0
            groups.setdefault((lr, decay), []).append(parameter)
    listed = [{"params": parameters, "lr": lr, "weight_decay": decay} for (lr, decay), parameters in groups.items()]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            listed, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov and recipe.momentum > 0
        )
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(listed, lr=recipe.lr)


def _share(name: str, shares: Mapping[str, float]) -> float:
    """Return the share of the longest key that occurs in a dotted ``name``, part by part; 1 if none does."""
    found = [key for key in shares if f".{key}." in f".{name}."]
    return shares[max(found, key=len)] if found else 1.0
