"""Draw what a trained model does: SAAI's attention maps, or its features by t-SNE beside those of other models.

    python examples/draw.py attention --checkpoint runs/saai/checkpoint.pt --images 8 --output attention.png
    python examples/draw.py attention --checkpoint runs/saai/checkpoint.pt --scale map    # where maps are nearly flat
    python examples/draw.py tsne --checkpoint runs/baseline/checkpoint.pt --checkpoint runs/saai/checkpoint.pt

Checkpoints of train_saai.py and train_cift.py. Without --dataset and --trial, the images are the test split of what the
(first) checkpoint was trained on. The suffix of --output chooses the format: png, pdf, svg.
"""

import argparse
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.utils.data import Subset

import common
import trained
from vireid import INFRARED, VISIBLE
from vireid.data import EvalTransform
from vireid.plots import attention_maps, tsne


def parse_arguments() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The options of the picture that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    pictures = parser.add_subparsers(dest="picture", required=True)
    attention = pictures.add_parser("attention", help="attention maps of the prototypes over images (SAAI, Fig. 6)")
    attention.add_argument("--checkpoint", type=Path, required=True, help="checkpoint.pt of train_saai.py")
    attention.add_argument("--images", type=int, default=8, help="by turns visible and infrared, two of one person")
    attention.add_argument("--scale", choices=["common", "map"], default="common", help="of the colours")
    attention.add_argument("--output", type=Path, default=Path("attention.png"))
    features = pictures.add_parser("tsne", help="features by t-SNE, a panel for each checkpoint (SAAI, Fig. 5)")
    features.add_argument("--checkpoint", type=Path, required=True, action="append", help="may be given several times")
    features.add_argument(
        "--name", action="append", help="above a panel, one for each --checkpoint (default: its folder)"
    )
    features.add_argument("--identities", type=int, default=20)
    features.add_argument("--perplexity", type=float, default=30.0)
    features.add_argument("--seed", type=int, default=0)
    features.add_argument("--output", type=Path, default=Path("tsne.png"))
    for picture in (attention, features):
        trained.add_options(picture)
    arguments = parser.parse_args()
    chosen = attention if arguments.picture == "attention" else features
    if arguments.output.suffix not in (".png", ".pdf", ".svg"):
        chosen.error(f"--output must end in .png, .pdf or .svg, got {str(arguments.output)!r}")
    count = arguments.images if arguments.picture == "attention" else arguments.identities
    if count < 1:
        chosen.error(
            f"--{'images' if arguments.picture == 'attention' else 'identities'} must be at least 1, got {count}"
        )
    return chosen, arguments


def evenly(values: np.ndarray, count: int) -> np.ndarray:
    """``count`` of the values, or all if there are fewer, at even steps from the first to the last."""
    return values[np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int)]


def choose_pairs(identities: np.ndarray, modality: np.ndarray, count: int) -> np.ndarray:
    """Rows of ``count`` images: of evenly chosen people the first visible and the first infrared one."""
    people = np.intersect1d(identities[modality == VISIBLE], identities[modality == INFRARED])
    chosen = evenly(people, (count + 1) // 2)
    rows = [np.flatnonzero((identities == i) & (modality == kind))[0] for i in chosen for kind in (VISIBLE, INFRARED)]
    return np.array(rows[:count])


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
    rows = choose_pairs(dataset.identities, dataset.modality, arguments.images)
    images = torch.stack([dataset[int(row)].image for row in rows])
    modality = torch.as_tensor(dataset.modality[rows])
    batch = EvalTransform()(images.to(arguments.device))
    attention = model(batch, modality.to(arguments.device)).similarity.sigmoid()
    h, w = cast(nn.Module, model.backbone)(batch).shape[-2:]
    attention_maps(images, attention, arguments.output, size=(h, w), modality=modality, scale=arguments.scale)


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
        rows = np.flatnonzero(np.isin(dataset.identities, evenly(np.unique(dataset.identities), arguments.identities)))
        shown = cast(common.Dataset, Subset(dataset, rows.tolist()))
        features[name] = common.extract_features(model, shown, workers=arguments.workers)
    tsne(
        features,
        dataset.identities[rows],
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


def main() -> None:
    """Draw as the command line says."""
    parser, arguments = parse_arguments()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    (draw_attention if arguments.picture == "attention" else draw_tsne)(parser, arguments)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
