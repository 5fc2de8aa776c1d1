"""``vireid draw``: pictures of a trained model, of its data and of reports."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from vireid.cli.affinities import CHANGES
from vireid.cli.options import Command, Data, InputFile, OutputFile, Rules, data_options
from vireid.cli.pairs import both_kinds, draw_points, evenly, locate, open_pair, read_pairs
from vireid.cli.rerankers import Reranking, rerank_options
from vireid.protocols.names import DIRECTIONS

__all__ = ["draw"]


_REGDB = "--dataset regdb --root RegDB --keypoints RegDB-heatmaps"


@click.group()
def draw() -> None:
    """Draw what a trained model does, its data, or reports.

    Images are the test images that the (first) checkpoint was trained for, or those of --dataset. The ending of
    --output chooses the format: png, pdf, svg.
    """


def _picture(name: str, short: str, *examples: str, images: bool = True) -> Callable[[Command], Command]:
    """Add a picture to the group; with ``images`` it has the options that say which ones."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def run(output: Path, **given: Any) -> None:
            command(output=output, **given)
            click.echo(f"wrote {output}")

        wrapped: Any = data_options("test", "all")(run) if images else run
        kind, text = OutputFile(".png", ".pdf", ".svg"), "Picture to write."
        wrapped = click.option("--output", type=kind, default=f"{name}.png", help=text)(wrapped)
        epilog = "\b\nExamples:\n" + "\n".join(f"  vireid draw {name} {example}".rstrip() for example in examples)
        draw.command(name, short_help=short, epilog=epilog)(wrapped)
        return command

    return decorate


_checkpoint = click.argument("checkpoint", type=InputFile(".pt"))
_checkpoints = click.argument("checkpoints", nargs=-1, required=True, type=InputFile(".pt"))
_names = click.option("--name", "names", multiple=True, help="One per checkpoint. Default: its folder.")
_count = click.option("--images", type=click.IntRange(min=1), default=8, help="Number of images.")


@_picture(
    "attention",
    "Attention maps of SAAI's prototypes over images, or of several models (Fig. 6).",
    "checkpoint.pt --images 6",
    "baseline/checkpoint.pt saai/checkpoint.pt",
)
@_checkpoints
@_names
@_count
@click.option("--scale", type=click.Choice(["common", "map"]), help="Of colors [common; map for several models].")
def attention(
    checkpoints: tuple[Path, ...], names: tuple[str, ...], images: int, scale: Any, data: Data, output: Path
) -> None:
    """Draw where models look in evenly chosen people's images, visible and infrared by turns (SAAI, Fig. 6).

    Of one checkpoint of vireid train saai, a map for each prototype. Of several CHECKPOINTS, a map each: the largest of
    the prototypes' values, or of a model without prototypes the length of the backbone's features (our choice; the
    paper does not say what it shows of its baseline).
    """
    import torch
    import torch.nn.functional as F

    from vireid.cli.trained import open_trained
    from vireid.data import EvalTransform
    from vireid.plots import attention_maps

    shown_names = panel_names(checkpoints, names)
    opened = [open_trained(path, data) for path in checkpoints]
    shown = read_pairs(opened[0].images, evenly(both_kinds(opened[0].images), (images + 1) // 2), images)
    maps = []
    for found in opened:
        pictures = EvalTransform()(shown.image.to(data.device))
        if (size := found.recipe.size) != opened[0].recipe.size:
            raise click.UsageError(f"CHECKPOINTS must be trained on images of one size, got {size} as well.")
        heatmaps = draw_points(found, shown, data.device)
        with torch.no_grad():
            drawn: Any = found.model(pictures, shown.modality.to(data.device), *heatmaps)
        values = drawn.feature_map.float().norm(dim=1, keepdim=True)
        if (similarity := getattr(drawn, "similarity", None)) is not None and similarity.shape[1]:
            values = similarity.float().sigmoid().unflatten(2, values.shape[2:])
        maps.append(values)
    if len(maps) == 1:
        named: dict[str, Any] = {} if maps[0].shape[1] > 1 else {"names": shown_names, "combined": None}
        attention_maps(shown.image, maps[0], output, modality=shown.modality, scale=scale or "common", **named)
        return
    largest = max((m.shape[2:] for m in maps), key=lambda size: size[0] * size[1])
    combined = [F.interpolate(m.amax(1, keepdim=True), size=largest, mode="bilinear") for m in maps]
    style: dict[str, Any] = {"names": shown_names, "combined": None, "scale": scale or "map"}
    attention_maps(shown.image, torch.cat(combined, 1), output, modality=shown.modality, **style)


@_picture("tsne", "Features by t-SNE, a panel per checkpoint.", "checkpoint.pt --name CIFT --identities 15")
@_checkpoints
@_names
@click.option("--identities", type=click.IntRange(min=1), default=20)
@click.option("--perplexity", type=click.FloatRange(min=0, min_open=True), default=30.0)
@click.option("--seed", type=click.IntRange(min=0), default=0)
def tsne(
    checkpoints: tuple[Path, ...],
    names: tuple[str, ...],
    identities: int,
    perplexity: float,
    seed: int,
    data: Data,
    output: Path,
) -> None:
    """Draw the features of evenly chosen people by t-SNE, a panel for each of the CHECKPOINTS (SAAI, Fig. 5)."""
    names = panel_names(checkpoints, names)
    import numpy as np
    from torch.utils.data import Subset

    from vireid.cli.trained import open_images
    from vireid.plots import tsne
    from vireid.training import extract_features, load_checkpoint
    from vireid.training.checkpoint import trained_on

    features = {}
    opened = [load_checkpoint(path, device=data.device) for path in checkpoints]
    first = opened[0]
    for name, path, found in zip(names, checkpoints, opened, strict=True):
        if data.split == "test" and trained_on(found.settings) != trained_on(first.settings):
            text = f"{path} was trained on {trained_on(found.settings)}: it may have seen the people that are shown"
            click.echo(f"Note: {text}", err=True)
        _, dataset = open_images(first.method, first.settings, data, found.recipe.size)
        rows = np.flatnonzero(np.isin(dataset.ids, evenly(np.unique(dataset.ids), identities)))
        shown: Any = Subset(dataset, rows.tolist())
        features[name] = extract_features(found.model, shown, workers=data.workers)
    ids, modality = dataset.ids[rows], dataset.modality[rows]
    tsne(features, ids, modality, output, identities=identities, perplexity=perplexity, seed=seed)


def panel_names(paths: tuple[Path, ...], names: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the names that were given, or the checkpoints' folders, as much of their paths as tells them apart."""
    if names:
        if not len(set(names)) == len(names) == len(paths):
            raise click.UsageError(f"--name must be given per checkpoint, each another one, got {', '.join(names)}.")
        return names
    for depth in range(1, max(len(path.parts) for path in paths)):
        names = tuple("/".join(path.resolve().parts[-1 - depth : -1]) for path in paths)
        if len(set(names)) == len(names):
            return names
    return tuple(map(str, paths))


@_picture("skeleton", "Key points and bones over images (G2DA).", "", _REGDB)
@click.argument("checkpoint", required=False, type=InputFile(".pt"))
@_count
@click.option("--size", type=int, nargs=2, default=(128, 64), metavar="H W", help="Of the images.")
@click.option("--names/--no-names", help="Write the key points' names beside the images.")
@click.option("--global-node/--no-global-node", help="Show the node that all others are joined to.")
@click.option("--threshold", type=float, default=0.0, help="Heatmaps: show peaks above it, as the model does.")
def skeleton(
    checkpoint: Path | None,
    images: int,
    size: tuple[int, int],
    names: bool,
    global_node: bool,
    threshold: float,
    data: Data,
    output: Path,
) -> None:
    """Draw key points and bones over evenly chosen people's images, visible and infrared by turns (G2DA).

    CHECKPOINT says whose data are shown; without it they are the synthetic ones, or those of --dataset.
    """
    from vireid.cli.trained import open_images
    from vireid.plots import skeleton_graph
    from vireid.training import read_checkpoint

    settings = {} if checkpoint is None else dict(read_checkpoint(checkpoint)["settings"])
    if settings.get("part_grid"):
        raise click.UsageError(f"{checkpoint} was trained with --part-grid: it has parts of a grid, no skeleton.")
    _, dataset = open_images("g2da", settings, data, size)
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


_identity = click.option(
    "--identity", type=int, help="Whose first visible and first infrared image. Default: the first person's."
)


@_picture("plan", "Transport plan between two images of a person (G2DA).", "checkpoint.pt --identity 10")
@_checkpoint
@_identity
def plan(checkpoint: Path, identity: int | None, data: Data, output: Path) -> None:
    """Draw the plan T between the graphs of two images of one person (G2DA, Eq. 4 to 7).

    CHECKPOINT is one of vireid train g2da.
    """
    pair = open_pair(checkpoint, identity, data)
    from vireid.plots import transport_plan

    (visible, infrared), points = pair.images, pair.points
    named: dict[str, Any] = {"points_visible": points[0], "points_infrared": points[1], "names": pair.names}
    transport_plan(visible, infrared, pair.plan, output, title=pair.title, **named)


@_picture("costs", "Distances of two images' nodes, and the costs of the plan (G2DA).", "checkpoint.pt --identity 10")
@_checkpoint
@_identity
def costs(checkpoint: Path, identity: int | None, data: Data, output: Path) -> None:
    """Draw the distances within and between the graphs of two images of one person, and the plan's costs (G2DA).

    CHECKPOINT is one of vireid train g2da.
    """
    pair = open_pair(checkpoint, identity, data)
    from vireid.plots import cost_matrices

    visible, infrared = pair.nodes
    cost_matrices(visible, infrared, pair.plan, output, loss=pair.structure, names=pair.names, title=pair.title)


@_picture(
    "ranked",
    "Queries with their ten nearest images (G2DA, Fig. 5).",
    "checkpoint.pt --queries 5 --direction both --cosines",
    "checkpoint.pt --rerank gnn",
)
@_checkpoint
@click.option("--queries", type=click.IntRange(min=1), default=8, help="Number of queries of each modality.")
@click.option(
    "--direction",
    type=click.Choice([*DIRECTIONS, "both"]),
    help="Query to gallery [that of SYSU-MM01's protocol; else visible_to_infrared].",
)
@click.option("--cosines/--no-cosines", help="Write the features' cosines below the images, not the distances.")
@rerank_options(text="[none; of SAAI aim]", without={"queries"})
def ranked(
    checkpoint: Path,
    queries: int,
    direction: str | None,
    cosines: bool,
    reranking: Reranking,
    data: Data,
    output: Path,
) -> None:
    """Draw evenly chosen queries with their ten nearest images of the other modality, in the last way of ranking."""
    from vireid import INFRARED, VISIBLE
    from vireid.cli.trained import open_trained
    from vireid.training import extract_features
    from vireid.training.inference import draw_ranked

    found = open_trained(checkpoint, data)
    features = extract_features(found.model, found.images, workers=data.workers)
    kinds = {"both": [VISIBLE, INFRARED], DIRECTIONS[0]: [VISIBLE], DIRECTIONS[1]: [INFRARED]}
    how: dict[str, Any] = {"queries": queries, "cosines": cosines, "kinds": kinds.get(str(direction))}
    draw_ranked(output, found.images, features, list(found.ways(reranking, Rules()).values())[-1], **how)


@_picture(
    "affinities",
    "Queries with their nearest images by the affinities of two CIFTs (Fig. 4-7).",
    "h2g/checkpoint.pt cri/checkpoint.pt --name H2FT --name CIFT",
    "h2g/checkpoint.pt cri/checkpoint.pt --change hard --queries 6",
)
@_checkpoints
@_names
@click.option("--queries", type=click.IntRange(min=1), default=4, help="Number of queries, two rows each.")
@click.option(
    "--change",
    type=click.Choice(list(CHANGES)),
    default="positives",
    help="Queries shown, those with most of it first. " + "; ".join(f"{n}: {text}" for n, text in CHANGES.items()),
)
def affinities(
    checkpoints: tuple[Path, ...], names: tuple[str, ...], queries: int, change: str, data: Data, output: Path
) -> None:
    """Draw queries with the nearest gallery images in their rows of A_het, and those affinities (CIFT, Fig. 4-7).

    CHECKPOINTS are two models with CIFT's transfer, the second of which is compared with the first, such as without and
    with CRI: vireid train cift --ablation h2g, and vireid train cift. The choice of queries is ours: the paper does not
    say how it chose them.
    """
    from vireid.cli.affinities import draw_affinities

    if len(checkpoints) != 2:
        raise click.UsageError(f"CHECKPOINTS must be two, got {len(checkpoints)}.")
    draw_affinities(checkpoints, panel_names(checkpoints, names), queries, change, data, output)


@_picture("cmc", "CMC curves of reports.", "metrics.json", "report.json other.json --max-rank 50", images=False)
@click.argument("reports", nargs=-1, required=True, type=InputFile(".json"))
@click.option("--max-rank", type=click.IntRange(min=1), default=20, help="Ranks shown.")
def cmc(reports: tuple[Path, ...], max_rank: int, output: Path) -> None:
    """Draw the CMC curve of each row of REPORTS: files of vireid evaluate --json, or metrics.json."""
    from vireid.plots import cmc_curves
    from vireid.protocols import Report

    curves = {}
    for path in reports:
        for name, curve in Report.load(path).curves().items():
            curves[name if len(reports) == 1 else f"{path.stem}: {name}"] = curve
    cmc_curves(curves, output, max_rank=max_rank)
