"""The methods that are trained by name: model and criterion from plain settings."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from vireid._checks import check_option
from vireid.training.methods._settings import Built, Settings
from vireid.training.methods.agw import AGWSettings
from vireid.training.methods.cift import CIFTSettings
from vireid.training.methods.g2da import G2DASettings
from vireid.training.methods.saai import SAAISettings
from vireid.training.recipe import Recipe
from vireid.training.recipes import RECIPES


class Method(NamedTuple):
    """A method that is trained by name: the class of its settings, and a recipe that suits it on two CPU cores."""

    settings: type[Settings]
    recipe: Recipe


METHODS = {
    "cift": Method(CIFTSettings, RECIPES["small"]),
    "saai": Method(SAAISettings, RECIPES["small"].replace(rerank="aim")),
    # The graph learns at a share of the rate (our choice; 1 in the paper).
    "g2da": Method(G2DASettings, RECIPES["small"].replace(lr_shares={"attention": 0.03, "aggregation": 0.03})),
    "agw": Method(AGWSettings, RECIPES["small"]),
}
"""The methods by name."""


def recipe_of(method: str, name: str = "small") -> Recipe:
    """Return a recipe by its name, "small" as it suits the method."""
    check_option("method", method, METHODS)
    check_option("name", name, RECIPES)
    return METHODS[method].recipe if name == "small" else RECIPES[name]


def settings_of(method: str, recipe: Recipe | None = None) -> dict[str, object]:
    """Return all settings of a method: a recipe's where it has them, else the defaults, which go with "small"."""
    check_option("method", method, METHODS)
    if not isinstance(recipe, Recipe | None):
        raise TypeError(f"recipe must be a Recipe, got {type(recipe).__name__}; recipe_of gives one by its name")
    given = {} if recipe is None else recipe.settings
    return {field.name: given.get(field.name, field.default) for field in fields(METHODS[method].settings)}


def build(method: str, num_classes: int, size: tuple[int, int], settings: Mapping[str, object] | None = None) -> Built:
    """Build the model and the criterion of a method; its weights come from PyTorch's generator.

    Args:
        method: "cift", "saai", "g2da" or "agw".
        num_classes: number of training identities.
        size: (H, W) of the images.
        settings: those that differ from `settings_of`.

    Raises:
        ValueError: if a value is out of its range.
        TypeError: if the method has no such setting.
    """
    check_option("method", method, METHODS)
    values: dict[str, Any] = dict(settings or {})
    return METHODS[method].settings(**values).build(num_classes, size)
