"""A trained model on the command line: the images it is looked at with, its evaluation, and the files that hold it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from vireid.cli.options import Data, Rules, refuse
from vireid.cli.rerankers import Reranking

if TYPE_CHECKING:  # imported where they are used: the help needs no torch
    from torch import Tensor, nn

    from vireid.protocols import Report
    from vireid.training import Recipe
    from vireid.training.datasets import Dataset


class Trained(NamedTuple):
    """A model of a method, the settings and recipe of its training, and the images that it is looked at with."""

    model: "nn.Module"
    method: str
    settings: dict[str, Any]
    recipe: "Recipe"
    epoch: int
    dataset: str
    images: "Dataset"

    def ways(self, reranking: Reranking, rules: Rules) -> "dict[str, Callable[[Tensor, Tensor], Tensor] | None]":
        """Return the ways in which the model ranks by name; by default with the recipe's re-ranking, if it has one."""
        from vireid.training import ranking_ways

        method = reranking.method or self.recipe.rerank
        chosen = Reranking(method, reranking.given).completed(self.dataset, rules.shots)
        name = "AIM" if method == "aim" else method
        return ranking_ways(self.model, {} if method == "none" else {name: chosen.function()})

    def evaluate(
        self, data: Data, rules: Rules, reranking: Reranking, *, flip: bool | None = None, progress: bool | None = None
    ) -> "tuple[dict[str, Report], Callable[[Path], None]]":
        """Evaluate the model in all `ways`; returns a report per table, and what writes their files into a folder.

        ``flip`` None: as the recipe says.
        """
        from vireid.training import evaluate, extract_features, write_results

        flip = self.recipe.flip_test if flip is None else flip
        features = extract_features(self.model, self.images, workers=data.workers, flip=flip, progress=progress)
        reports, last = {}, {}
        for name, each in rules.each().items():
            ways = self.ways(reranking, each)
            protocols = each.protocols(self.dataset, self.images.root / "exp" / "rand_perm_cam.mat")
            reports[name], last[name] = evaluate(self.images, features, ways, protocols), list(ways.values())[-1]

        def write(output: Path) -> None:
            about: Any = {"name": self.dataset, "settings": self.settings, "recipe": self.recipe}
            for name, report in reports.items():
                write_results(output / name, report, self.images, features, last[name], **about)
                click.echo(f"wrote {output / name / 'metrics.json'}, cmc.png and ranked.png")

        return reports, write


def open_trained(path: Path, data: Data, rules: Rules | None = None) -> Trained:
    """Open a checkpoint and the images that the options name; ``rules`` are those of their protocol."""
    from vireid.training import load_checkpoint

    found = load_checkpoint(path, device=data.device)
    if rules is not None:
        rules.check("--dataset", data.dataset or found.settings.get("dataset", "synthetic"))
    dataset, images = open_images(found.method, found.settings, data, found.recipe.size)
    return Trained(found.model, found.method, found.settings, found.recipe, found.epoch, dataset, images)


def open_images(method: str, settings: dict[str, Any], data: Data, size: tuple[int, int]) -> "tuple[str, Dataset]":
    """Open the images that the options name, by default those of the training; returns their data set and its name."""
    from vireid.training import open_dataset
    from vireid.training.datasets import digest_keypoints

    own, own_trial = settings.get("dataset", "synthetic"), settings.get("trial", 1)
    dataset = data.dataset or own
    trial = data.trial or (own_trial if dataset == own else 1)
    root, keypoints = root_of(dataset, data), keypoints_of(method, settings, dataset, data)
    images = open_dataset(dataset, data.split, root=root, size=size, trial=trial, keypoints=keypoints, cache=False)
    known = settings.get("keypoints")
    if known and keypoints is not None and dataset == own and digest_keypoints(keypoints) != known:
        click.echo(f"Note: {keypoints} does not hold the key points that it was trained with", err=True)
    if settings and dataset == own and (data.split == "all" or trial != own_trial):
        text = "if --root holds the data it was trained on, its training identities are among these images"
        click.echo(f"Note: {text}", err=True)
    return dataset, images


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
