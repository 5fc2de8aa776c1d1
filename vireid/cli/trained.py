"""A trained model on the command line: the images it is looked at with, its evaluation, and the files that hold it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vireid.cli.options import Data, Rules, refuse
from vireid.cli.rerankers import Reranking

if TYPE_CHECKING:  # imported where they are used: the help needs no torch
    from torch import Tensor, nn

    from vireid.protocols import Report
    from vireid.training import Checkpoint
    from vireid.training.datasets import Dataset


def root_of(dataset: str, data: Data) -> Path:
    """Return the folder of a data set; only the synthetic one has a default."""
    from vireid.training.datasets import SYNTHETIC_ROOT

    if data.root is None and dataset != "synthetic":
        raise click.UsageError(f"--root must name the folder of --dataset {dataset}.")
    return SYNTHETIC_ROOT if data.root is None else data.root


def keypoints_of(method: str, settings: dict[str, Any], dataset: str, data: Data) -> Path | None:
    """Return the key points that a model needs, of the synthetic data their own; None if it needs none."""
    if method != "g2da":
        refuse("a model of", method, {"keypoints": data.keypoints})
        return None
    if settings.get("part_grid"):
        if data.keypoints is not None:
            raise click.UsageError(f"--keypoints must be left out with a grid of parts, got {data.keypoints}.")
        return None
    if data.keypoints is None and dataset != "synthetic":
        raise click.UsageError(
            "--keypoints must name the key points of the images (vireid keypoints makes them), or a model trained with "
            "--part-grid ROWS COLUMNS be taken."
        )
    return data.keypoints or root_of(dataset, data) / "keypoints.npz"


def open_images(
    checkpoint: "Checkpoint", data: Data, split: str, *, size: tuple[int, int] | None = None
) -> "tuple[str, Dataset]":
    """Open the images that the options name, by default those that a checkpoint was trained for.

    Args:
        checkpoint: whose recipe's size the images get by default.
        data: that was asked for.
        split: "test", "train" or "all".
        size: (H, W) of the images.

    Returns:
        The name of the data set, and the data set.
    """
    from vireid.training import open_dataset
    from vireid.training.datasets import digest_keypoints

    trained = checkpoint.settings
    own, own_trial = trained.get("dataset", "synthetic"), trained.get("trial", 1)
    dataset = data.dataset or own
    trial = data.trial or (own_trial if dataset == own else 1)
    root, keypoints = root_of(dataset, data), keypoints_of(checkpoint.method, trained, dataset, data)
    images = open_dataset(
        dataset,
        split,
        root=root,
        size=size or checkpoint.recipe.size,
        trial=trial,
        keypoints=keypoints,
        cache=False,
    )
    known = trained.get("keypoints")
    if known and keypoints is not None and dataset == own and digest_keypoints(keypoints) != known:
        click.echo(f"Note: {keypoints} does not hold the key points that it was trained with", err=True)
    if dataset == own and (split == "all" or trial != own_trial):
        text = "if --root holds the data it was trained on, its training identities are among these images"
        click.echo(f"Note: {text}", err=True)
    return dataset, images


def trained_on(settings: dict[str, Any]) -> str:
    """Return the data that a model was trained on, in words."""
    name = str(settings.get("dataset", "unknown"))
    return f"{name}, trial {settings['trial']}" if name in ("regdb", "synthetic") else name


def ways_of(
    model: "nn.Module", method: str, dataset: str, reranking: Reranking, rules: Rules
) -> "dict[str, Callable[[Tensor, Tensor], Tensor] | None]":
    """Return the ways in which a model ranks by name, with a re-ranking of its features: for SAAI AIM by default."""
    from vireid.training import ranking_ways

    chosen = Reranking(reranking.method or ("aim" if method == "saai" else "none"), reranking.given)
    chosen = chosen.completed(dataset, rules)
    if chosen.method == "none":
        return ranking_ways(model)
    return ranking_ways(model, {"AIM" if chosen.method == "aim" else str(chosen.method): chosen.function()})


def evaluate_model(
    model: "nn.Module",
    method: str,
    dataset: str,
    images: "Dataset",
    features: "Tensor",
    rules: Rules,
    reranking: Reranking,
) -> "tuple[Report, Callable[..., Any] | None]":
    """Evaluate ``features`` (N, d) of ``images`` in all `ways_of` a model; returns the report and the last way."""
    from vireid.training import evaluate

    ways = ways_of(model, method, dataset, reranking, rules)
    protocols = rules.protocols(dataset, images.root / "exp" / "rand_perm_cam.mat")
    return evaluate(images, features, ways, protocols), list(ways.values())[-1]


def write_results(
    output: Path,
    report: "Report",
    dataset: str,
    images: "Dataset",
    features: "Tensor",
    distance: Callable[..., Any] | None,
    settings: dict[str, Any],
) -> None:
    """Write metrics.json, cmc.png and ranked.png into a folder."""
    from vireid.training.inference import write_results as write

    write(output, report, images, features, distance, name=dataset, trained_on=trained_on(settings))
    click.echo(f"wrote {output / 'metrics.json'}, cmc.png and ranked.png")
