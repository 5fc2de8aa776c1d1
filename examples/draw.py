"""Draw what a trained model does: SAAI's attention maps, features by t-SNE, G2DA's graphs and how two are aligned.

    python examples/draw.py attention --checkpoint runs/saai/checkpoint.pt --images 8 --output attention.png
    python examples/draw.py attention --checkpoint runs/saai/checkpoint.pt --scale map    # where maps are nearly flat
    python examples/draw.py tsne --checkpoint runs/baseline/checkpoint.pt --checkpoint runs/saai/checkpoint.pt
    python examples/draw.py skeleton --dataset regdb --root RegDB --keypoints RegDB-heatmaps    # needs no checkpoint
    python examples/draw.py plan --checkpoint runs/g2da/checkpoint.pt --identity 52
    python examples/draw.py costs --checkpoint runs/g2da/checkpoint.pt --identity 52

Checkpoints of train_saai.py for attention, of train_g2da.py for plan and costs, of any training script for tsne.
Without --dataset and --trial, the images are the test split of what the (first) checkpoint was trained on. The suffix
of --output chooses the format: png, pdf, svg.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset, default_collate

import common
import graphs
import trained
from vireid import INFRARED, VISIBLE
from vireid.data import EvalTransform
from vireid.plots import attention_maps, cost_matrices, skeleton_graph, transport_plan, tsne


def parse_arguments() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The options of the picture that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    pictures = parser.add_subparsers(dest="picture", required=True)
    attention = pictures.add_parser("attention", help="attention maps of the prototypes over images (SAAI, Fig. 6)")
    attention.add_argument("--checkpoint", type=Path, required=True, help="checkpoint.pt of train_saai.py")
    attention.add_argument("--images", type=int, default=8, help="by turns visible and infrared, two of one person")
    attention.add_argument("--scale", choices=["common", "map"], default="common", help="of the colours")
    features = pictures.add_parser("tsne", help="features by t-SNE, a panel for each checkpoint (SAAI, Fig. 5)")
    features.add_argument("--checkpoint", type=Path, required=True, action="append", help="may be given several times")
    features.add_argument(
        "--name", action="append", help="above a panel, one for each --checkpoint (default: its folder)"
    )
    features.add_argument("--identities", type=int, default=20)
    features.add_argument("--perplexity", type=float, default=30.0)
    features.add_argument("--seed", type=int, default=0)
    skeleton = pictures.add_parser("skeleton", help="key points and bones over images (G2DA)")
    skeleton.add_argument(
        "--checkpoint", type=Path, help="whose data are shown (default: the synthetic ones, or --dataset's)"
    )
    skeleton.add_argument("--images", type=int, default=8, help="by turns visible and infrared, two of one person")
    skeleton.add_argument("--size", type=int, nargs=2, default=[128, 64], metavar=("H", "W"), help="of the images")
    skeleton.add_argument("--names", action="store_true", help="write the key points' names beside the images")
    skeleton.add_argument("--global-node", action="store_true", help="show the node that all others are joined to")
    skeleton.add_argument(
        "--threshold",
        type=float,
        default=0.0,
        help="with heatmaps, a key point is at its map's highest cell, and shown where that is above this "
        "(default: 0, as the model has it)",
    )
    for name, shows in (("plan", "the plan"), ("costs", "distances and what the plan pays")):
        pair = pictures.add_parser(name, help=f"{shows} between the graphs of two images of one person (G2DA)")
        pair.add_argument("--checkpoint", type=Path, required=True, help="checkpoint.pt of train_g2da.py")
        pair.add_argument(
            "--identity", type=int, help="whose first visible and first infrared image (default: the first person's)"
        )
    for name, picture in pictures.choices.items():
        picture.add_argument("--output", type=Path, default=Path(f"{name}.png"))
        trained.add_options(picture)
    arguments = parser.parse_args()
    chosen = pictures.choices[arguments.picture]
    if arguments.output.suffix not in (".png", ".pdf", ".svg"):
        chosen.error(f"--output must end in .png, .pdf or .svg, got {str(arguments.output)!r}")
    for option in ("images", "identities"):
        if (count := getattr(arguments, option, 1)) < 1:
            chosen.error(f"--{option} must be at least 1, got {count}")
    return chosen, arguments


def evenly(values: np.ndarray, count: int) -> np.ndarray:
    """``count`` of the values, or all if there are fewer, at even steps from the first to the last."""
    return values[np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int)]


def both_kinds(dataset: common.Dataset) -> np.ndarray:
    """People of whom there is a visible and an infrared image."""
    kinds = [dataset.ids[dataset.modality == kind] for kind in (VISIBLE, INFRARED)]
    return np.intersect1d(*kinds)


def choose_pairs(dataset: common.Dataset, people: Iterable[int]) -> list[int]:
    """Rows of the first visible and the first infrared image of each of these people."""
    of = [(dataset.ids == i) & (dataset.modality == kind) for i in people for kind in (VISIBLE, INFRARED)]
    return [int(np.flatnonzero(rows)[0]) for rows in of]


def evenly_paired(dataset: common.Dataset, count: int) -> list[int]:
    """Rows of ``count`` images: those of `choose_pairs` of evenly chosen people."""
    return choose_pairs(dataset, evenly(both_kinds(dataset), (count + 1) // 2))[:count]


def read_batch(dataset: common.Dataset, rows: list[int]) -> Any:
    """These images and what belongs to them, one batch."""
    return default_collate([dataset[row] for row in rows])


@torch.no_grad()
def draw_attention(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Fig. 6 of one checkpoint."""
    model, _, config, _ = trained.open_model(arguments.checkpoint, arguments.device)
    if getattr(model, "pooling", None) is None:
        parser.error(
            f"{arguments.checkpoint} holds a model without prototypes, which has no attention maps: "
            "take one that train_saai.py trained with its parts"
        )
    dataset = trained.open_images(arguments, config, config["size"])
    shown = read_batch(dataset, evenly_paired(dataset, arguments.images))
    images = EvalTransform()(shown.image.to(arguments.device))
    attention = model(images, shown.modality.to(arguments.device)).similarity.sigmoid()
    h, w = cast(nn.Module, model.backbone)(images).shape[-2:]
    attention_maps(
        shown.image, attention, arguments.output, size=(h, w), modality=shown.modality, scale=arguments.scale
    )


def draw_tsne(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Fig. 5 of one checkpoint or of several side by side."""
    names = arguments.name or panel_names(arguments.checkpoint)
    if not len(set(names)) == len(names) == len(arguments.checkpoint):
        parser.error(f"--name must be given for each --checkpoint, each another one, got {', '.join(names)}")
    features, first = {}, None
    for name, path in zip(names, arguments.checkpoint, strict=True):
        model, _, config, _ = trained.open_model(path, arguments.device)
        first = first or config
        if arguments.split == "test" and (config["dataset"], config["trial"]) != (first["dataset"], first["trial"]):
            print(f"{path} was trained on {common.trained_on(config)}: it may have seen the people that are shown")
        dataset = trained.open_images(arguments, first, config["size"])
        rows = np.flatnonzero(np.isin(dataset.ids, evenly(np.unique(dataset.ids), arguments.identities)))
        shown = cast(common.Dataset, Subset(dataset, rows.tolist()))
        features[name] = common.extract_features(model, shown, workers=arguments.workers)
    tsne(
        features,
        dataset.ids[rows],
        dataset.modality[rows],
        arguments.output,
        identities=arguments.identities,
        perplexity=arguments.perplexity,
        seed=arguments.seed,
    )


def panel_names(paths: list[Path]) -> list[str]:
    """The checkpoints' folders, as much of their paths as tells them apart."""
    for depth in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.resolve().parts[-1 - depth : -1]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def draw_skeleton(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Key points as G2DA gets them."""
    config: dict[str, Any] = {"dataset": "synthetic", "trial": 1}
    if arguments.checkpoint is not None:
        config = common.load_checkpoint(arguments.checkpoint)["config"]
    if config.get("part_grid"):
        parser.error(f"{arguments.checkpoint} was trained with --part-grid: it has parts of a grid, no skeleton")
    if (arguments.dataset or config["dataset"]) != "synthetic" and arguments.keypoints is None:
        parser.error("--keypoints must name the key points of the images (examples/estimate_keypoints.py makes them)")
    dataset = trained.open_images(arguments, config | {"method": "g2da"}, arguments.size)
    shown = read_batch(dataset, evenly_paired(dataset, arguments.images))
    skeleton_graph(
        shown.image,
        graphs.locate(shown.keypoints, dataset.size, arguments.threshold),
        arguments.output,
        modality=shown.modality,
        names=arguments.names,
        global_node=arguments.global_node,
        columns=2 if arguments.names else None,  # two of one person side by side
    )


def open_pair(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> tuple[graphs.Alignment, Tensor, str]:
    """Two images of the person that the options name, aligned; the images (2, 3, H, W); a title."""
    model, method, config, _ = trained.open_model(arguments.checkpoint, arguments.device)
    if method.name != "g2da":
        parser.error(f"{arguments.checkpoint} was written by train_{method.name}.py: take one of train_g2da.py")
    dataset = trained.open_images(arguments, config, config["size"])
    people = both_kinds(dataset)
    identity = people[0] if arguments.identity is None else arguments.identity
    if identity not in people:
        listed = ", ".join(map(str, people[:10])) + (", …" if len(people) > 10 else "")
        parser.error(f"--identity must have a visible and an infrared image, as {listed} have, got {identity}")
    shown = read_batch(dataset, choose_pairs(dataset, [identity]))
    pair = graphs.align(model, config, shown.image, shown.modality, getattr(shown, "keypoints", None))
    return pair, shown.image, f"identity {identity}: $D_{{ot}}$ = {pair.cost:.3f} with φ = {pair.phi:g}"


def draw_plan(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """The plan T between two images."""
    pair, images, title = open_pair(parser, arguments)
    transport_plan(
        images[0],
        images[1],
        pair.plan,
        arguments.output,
        points_visible=pair.points[0],
        points_infrared=pair.points[1],
        names=pair.names,
        title=title,
    )


def draw_costs(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """What that plan pays."""
    pair, _, title = open_pair(parser, arguments)
    visible, infrared = pair.nodes
    cost_matrices(visible, infrared, pair.plan, arguments.output, loss=pair.structure, names=pair.names, title=title)


PICTURES = {
    "attention": draw_attention,
    "tsne": draw_tsne,
    "skeleton": draw_skeleton,
    "plan": draw_plan,
    "costs": draw_costs,
}


def main() -> None:
    """Draw as the command line says."""
    parser, arguments = parse_arguments()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    PICTURES[arguments.picture](parser, arguments)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
