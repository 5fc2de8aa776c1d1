"""Training: the loop, its recipes and checkpoints, feature extraction, and the methods that are trained by name."""

from vireid.training.checkpoint import Checkpoint, load_checkpoint, load_model, read_checkpoint
from vireid.training.datasets import open_dataset
from vireid.training.inference import evaluate, extract_features, ranking_ways, write_results
from vireid.training.loop import fit, launch
from vireid.training.methods import METHODS, build, recipe_of, settings_of
from vireid.training.recipe import Recipe
from vireid.training.recipes import RECIPES

__all__ = [
    "METHODS",
    "RECIPES",
    "Checkpoint",
    "Recipe",
    "build",
    "evaluate",
    "extract_features",
    "fit",
    "launch",
    "load_checkpoint",
    "load_model",
    "open_dataset",
    "ranking_ways",
    "read_checkpoint",
    "recipe_of",
    "settings_of",
    "write_results",
]
