"""``vireid draw``: pictures of a trained model, of its data and of reports."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vireid import INFRARED, VISIBLE
from vireid.cli.options import (
    PICTURES,
    Command,
    Data,
    InputFile,
    OutputFile,
    Rules,
    check_device,
    data_options,
    device_option,
)
from vireid.cli.rerankers import Reranking, rerank_options

if TYPE_CHECKING:  # imported where they are used: the help needs no torch
    import numpy as np

    from vireid.cli.graphs import Alignment
    from vireid.training import Checkpoint
    from vireid.training.datasets import Dataset

__all__ = ["draw"]


@click.group()
def draw() -> None:
    """Draw what a trained model does, its data, or reports.

    Images are the test images that the (first) checkpoint was trained for, or those of --dataset. The ending of
    --output chooses the format: png, pdf, svg.
    """


def _picture(name: str, short: str, *examples: str, images: bool = True) -> Callable[[Command], Command]:
    """Add a picture to the group; with ``images`` it has the options that say which ones."""

    def decorate(command: Command) -> Command:
        made: Any = command
        if images:
            made = device_option(made)
            made = click.option("--split", type=click.Choice(["test", "all"]), default="test", show_default=True)(made)
            made = data_options(made)
        output = click.option(
            "--output", type=OutputFile(*PICTURES), default=f"{name}.png", show_default=True, help="Picture to write."
        )
        epilog = "\b\nExamples:\n" + "\n".join(f"  vireid draw {name} {example}".rstrip() for example in examples)
        draw.command(name, short_help=short, epilog=epilog)(output(made))
        return command

    return decorate


_checkpoint = click.argument("checkpoint", type=InputFile(".pt"))
_count = click.option("--images", type=click.IntRange(min=1), default=8, show_default=True, help="Number of images.")


def _open(checkpoint: Path, device: str) -> "Checkpoint":
    check_device(device)
    from vireid.training import load_checkpoint

    return load_checkpoint(checkpoint, device=device)


def _drawn(output: Path) -> None:
    click.echo(f"wrote {output}")


def evenly(values: "np.ndarray", count: int) -> "np.ndarray":
    """Return ``count`` of the values, or all if there are fewer, at even steps from the first to the last."""
    import numpy as np

    return values[np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int)]


def both_kinds(dataset: "Dataset") -> "np.ndarray":
    """Return the people with a visible and an infrared image."""
    import numpy as np

    return np.intersect1d(*(dataset.ids[dataset.modality == kind] for kind in (VISIBLE, INFRARED)))


def read_pairs(dataset: "Dataset", people: Iterable[int], count: int | None = None) -> Any:
    """Return a batch of the first visible and the first infrared image of each of these people, ``count`` in all."""
    import numpy as np
    from torch.utils.data import default_collate

    of = [(dataset.ids == i) & (dataset.modality == kind) for i in people for kind in (VISIBLE, INFRARED)]
    return default_collate([dataset[int(np.flatnonzero(rows)[0])] for rows in of[:count]])


@_picture("attention", "Attention maps of SAAI's prototypes over images (Fig. 6).", "checkpoint.pt --images 6")
@_checkpoint
@_count
@click.option("--scale", type=click.Choice(["common", "map"]), default="common", show_default=True, help="Of colors.")
def attention(checkpoint: Path, images: int, scale: Any, data: Data, split: str, device: str, output: Path) -> None:
    """Draw where each prototype looks in evenly chosen people's images, visible and infrared by turns (SAAI, Fig. 6).

    CHECKPOINT is one of vireid train saai.
    """
    found = _open(checkpoint, device)
    import torch

    from vireid.cli.trained import open_images
    from vireid.data import EvalTransform
    from vireid.plots import attention_maps

    model: Any = found.model
    if getattr(model, "pooling", None) is None:
        raise click.UsageError(
            f"{checkpoint} holds a model without prototypes, which has no attention maps: take one that vireid train "
            "saai trained with its parts."
        )
    _, dataset = open_images(found, data, split)
    shown = read_pairs(dataset, evenly(both_kinds(dataset), (images + 1) // 2), images)
    with torch.no_grad():
        x = EvalTransform()(shown.image.to(device))
        maps = model(x, shown.modality.to(device)).similarity.sigmoid()
        h, w = model.backbone(x).shape[-2:]
    attention_maps(shown.image, maps, output, size=(h, w), modality=shown.modality, scale=scale)
    _drawn(output)


@_picture("tsne", "Features by t-SNE, a panel per checkpoint.", "checkpoint.pt --name CIFT --identities 15")
@click.argument("checkpoints", nargs=-1, required=True, type=InputFile(".pt"))
@click.option("--name", "names", multiple=True, help="Above a panel, one per checkpoint. Default: its folder.")
@click.option("--identities", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--perplexity", type=click.FloatRange(min=0, min_open=True), default=30.0, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def tsne(
    checkpoints: tuple[Path, ...],
    names: tuple[str, ...],
    identities: int,
    perplexity: float,
    seed: int,
    data: Data,
    split: str,
    device: str,
    output: Path,
) -> None:
    """Draw the features of evenly chosen people by t-SNE, a panel for each of the CHECKPOINTS (SAAI, Fig. 5)."""
    names = names or panel_names(checkpoints)
    if not len(set(names)) == len(names) == len(checkpoints):
        raise click.UsageError(f"--name must be given per checkpoint, each another one, got {', '.join(names)}.")
    first = _open(checkpoints[0], device)
    import numpy as np
    from torch.utils.data import Subset

    from vireid.cli.trained import open_images, trained_on
    from vireid.plots import tsne
    from vireid.training import extract_features

    features = {}
    for name, path in zip(names, checkpoints, strict=True):
        found = _open(path, device)
        if split == "test" and trained_on(found.settings) != trained_on(first.settings):
            text = f"{path} was trained on {trained_on(found.settings)}: it may have seen the people that are shown"
            click.echo(f"Note: {text}", err=True)
        _, dataset = open_images(first, data, split, size=found.recipe.size)
        rows = np.flatnonzero(np.isin(dataset.ids, evenly(np.unique(dataset.ids), identities)))
        shown: Any = Subset(dataset, rows.tolist())
        features[name] = extract_features(found.model, shown, workers=data.workers)
    ids, modality = dataset.ids[rows], dataset.modality[rows]
    tsne(features, ids, modality, output, identities=identities, perplexity=perplexity, seed=seed)
    _drawn(output)


def panel_names(paths: tuple[Path, ...]) -> tuple[str, ...]:
    """Return the checkpoints' folders, as much of their paths as tells them apart."""
    for depth in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.resolve().parts[-1 - depth : -1]) for path in paths]
        if len(set(names)) == len(names):
            return tuple(names)
    return tuple(map(str, paths))


@_picture(
    "skeleton",
    "Key points and bones over images (G2DA).",
    "",
    "--dataset regdb --root RegDB --keypoints RegDB-heatmaps",
)
@click.argument("checkpoint", required=False, type=InputFile(".pt"))
@_count
@click.option("--size", type=int, nargs=2, default=(128, 64), show_default=True, metavar="H W", help="Of the images.")
@click.option("--names/--no-names", help="Write the key points' names beside the images.")
@click.option("--global-node/--no-global-node", help="Show the node that all others are joined to.")
@click.option(
    "--threshold", type=float, default=0.0, show_default=True, help="Heatmaps: show peaks above it, as the model does."
)
def skeleton(
    checkpoint: Path | None,
    images: int,
    size: tuple[int, int],
    names: bool,
    global_node: bool,
    threshold: float,
    data: Data,
    split: str,
    device: str,
    output: Path,
) -> None:
    """Draw key points and bones over evenly chosen people's images, visible and infrared by turns (G2DA).

    CHECKPOINT says whose data are shown; without it they are the synthetic ones, or those of --dataset.
    """
    from vireid.cli.graphs import locate
    from vireid.cli.trained import keypoints_of, open_images
    from vireid.plots import skeleton_graph
    from vireid.training import Checkpoint, Recipe, read_checkpoint

    settings = {} if checkpoint is None else dict(read_checkpoint(checkpoint)["settings"])
    if settings.get("part_grid"):
        raise click.UsageError(f"{checkpoint} was trained with --part-grid: it has parts of a grid, no skeleton.")
    nobody: Any = None
    found = Checkpoint(nobody, "g2da", settings, Recipe(), 0, 0)
    keypoints_of("g2da", settings, data.dataset or settings.get("dataset", "synthetic"), data)
    _, dataset = open_images(found, data, split, size=size)
    shown = read_pairs(dataset, evenly(both_kinds(dataset), (images + 1) // 2), images)
    skeleton_graph(
        shown.image,
        locate(shown.keypoints, dataset.size, threshold),
        output,
        modality=shown.modality,
        names=names,
        global_node=global_node,
        columns=2 if names else None,  # two of one person side by side
    )
    _drawn(output)


def _pair(checkpoint: Path, identity: int | None, data: Data, split: str, device: str) -> "tuple[Alignment, Any, str]":
    """Return two images of a person, aligned; the images (2, 3, H, W); a title."""
    found = _open(checkpoint, device)
    from vireid.cli.graphs import align
    from vireid.cli.trained import open_images

    if found.method != "g2da":
        raise click.UsageError(f"{checkpoint} is of vireid train {found.method}: take one of vireid train g2da.")
    _, dataset = open_images(found, data, split)
    people = both_kinds(dataset)
    identity = int(people[0]) if identity is None else identity
    if identity not in people:
        listed = ", ".join(map(str, people[:10])) + (", …" if len(people) > 10 else "")
        raise click.UsageError(
            f"--identity must have a visible and an infrared image, as {listed} have, got {identity}."
        )
    shown = read_pairs(dataset, [identity])
    pair = align(found.model, found.settings, shown.image, shown.modality, getattr(shown, "keypoints", None))
    return pair, shown.image, f"identity {identity}: $D_{{ot}}$ = {pair.cost:.3f} with φ = {pair.phi:g}"


_identity = click.option(
    "--identity", type=int, help="Whose first visible and first infrared image. Default: the first person's."
)


@_picture("plan", "Transport plan between two images of a person (G2DA).", "checkpoint.pt --identity 10")
@_checkpoint
@_identity
def plan(checkpoint: Path, identity: int | None, data: Data, split: str, device: str, output: Path) -> None:
    """Draw the plan T between the graphs of two images of one person (G2DA, Eq. 4 to 7).

    CHECKPOINT is one of vireid train g2da.
    """
    pair, images, title = _pair(checkpoint, identity, data, split, device)
    from vireid.plots import transport_plan

    visible, infrared = pair.points
    transport_plan(
        images[0],
        images[1],
        pair.plan,
        output,
        points_visible=visible,
        points_infrared=infrared,
        names=pair.names,
        title=title,
    )
    _drawn(output)


@_picture("costs", "Distances of two images' nodes, and the costs of the plan (G2DA).", "checkpoint.pt --identity 10")
@_checkpoint
@_identity
def costs(checkpoint: Path, identity: int | None, data: Data, split: str, device: str, output: Path) -> None:
    """Draw the distances within and between the graphs of two images of one person, and the plan's costs (G2DA).

    CHECKPOINT is one of vireid train g2da.
    """
    pair, _, title = _pair(checkpoint, identity, data, split, device)
    from vireid.plots import cost_matrices

    visible, infrared = pair.nodes
    cost_matrices(visible, infrared, pair.plan, output, loss=pair.structure, names=pair.names, title=title)
    _drawn(output)


@_picture("ranked", "Queries with their ten nearest images.", "checkpoint.pt --queries 5", "checkpoint.pt --rerank gnn")
@_checkpoint
@click.option("--queries", type=click.IntRange(min=1), default=8, show_default=True, help="Number of queries.")
@rerank_options(text="[none; of SAAI aim]")
def ranked(
    checkpoint: Path, queries: int, reranking: Reranking, data: Data, split: str, device: str, output: Path
) -> None:
    """Draw evenly chosen queries with their ten nearest images of the other modality, in the last way of ranking."""
    found = _open(checkpoint, device)
    from vireid.cli.trained import open_images, ways_of
    from vireid.training import extract_features
    from vireid.training.inference import draw_ranked

    name, dataset = open_images(found, data, split)
    ways = ways_of(found.model, found.method, name, reranking, Rules(None, None, None, None))
    features = extract_features(found.model, dataset, workers=data.workers)
    draw_ranked(output, dataset, features, list(ways.values())[-1], queries=queries)
    _drawn(output)


@_picture("cmc", "CMC curves of reports.", "metrics.json", "report.json other.json --max-rank 50", images=False)
@click.argument("reports", nargs=-1, required=True, type=InputFile(".json"))
@click.option("--max-rank", type=click.IntRange(min=1), default=20, show_default=True, help="Ranks shown.")
def cmc(reports: tuple[Path, ...], max_rank: int, output: Path) -> None:
    """Draw the CMC curve of each row of REPORTS: files of vireid evaluate --json, or metrics.json."""
    from vireid.plots import cmc_curves
    from vireid.protocols import Report

    curves = {}
    for path in reports:
        for row in Report.load(path).rows:
            way = row.features if row.rerank == "none" else f"{row.features} + {row.method}"
            name = f"{row.direction.replace('_', ' ')}, {way}"
            curves[name if len(reports) == 1 else f"{path.stem}: {name}"] = row.cmc
    cmc_curves(curves, output, max_rank=max_rank)
    _drawn(output)
