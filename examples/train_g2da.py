"""Train G2DA or a row of its ablation, evaluate it with the exact protocol, and write what was found.

    python examples/train_g2da.py                          # draws synthetic pedestrians, trains, evaluates
    python examples/train_g2da.py --ablation ot --phi 0 --output runs/gw
    python examples/train_g2da.py --dataset regdb --root RegDB --trial 3 --part-grid 4 3
    python examples/train_g2da.py --dataset sysu --root SYSU-MM01 --keypoints SYSU-MM01-heatmaps \
        --backbone torchvision --weights imagenet --size 288 144 --epochs 80 --optimizer sgd --lr 0.1 \
        --schedule steps --milestones 3/8 5/8 --no-normalize-nodes --no-normalize-triplet

Key points are a file of coordinates or a folder of heatmaps (--keypoints, made by vireid keypoints); those of the
synthetic pedestrians are known. --part-grid takes parts of a fixed grid in their place. The report has one row for each
direction: the features rank by cosine distance, no gallery or other query is looked at. Into --output go checkpoint.pt
(whole, after each epoch), TensorBoard logs, metrics.json, cmc.png and ranked.png.
"""

import argparse
import math
from pathlib import Path
from typing import Any

from torch import nn

import common
import training
from vireid.models import G2DA, G2DACriterion
from vireid.nn import SmallBackbone, TwoStream, part_grid

ABLATION = {
    "baseline": "B: L_b alone",
    "ot": "+ O: D_ot",
    "cl": "+ CL: L_c",
    "graph": "+ G: the graph's feature and L_g, heads not fused",
    "g2da": "+ MF: heads fused",
}

# What a checkpoint keeps: the options that decide what is trained, and how.
SETTINGS = (
    *training.SETTINGS,
    *"part_grid two_stream heads threshold normalize_nodes graph_lr".split(),
    *"base normalize_triplet transport phi structure pairs contrastive epsilon graph".split(),
)


def parse_arguments() -> argparse.Namespace:
    """The options, with the defaults of the embedded example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_data_options(parser)
    group = parser.add_argument_group("key points")
    group.add_argument("--keypoints", type=Path, help="file of coordinates or folder of heatmaps of all images")
    group.add_argument(
        "--part-grid", type=int, nargs=2, metavar=("ROWS", "COLUMNS"), help="fixed parts in place of key points"
    )
    group = parser.add_argument_group("model")
    group.add_argument(
        "--ablation", choices=list(ABLATION), default="g2da", help="; ".join(f"{k}: {v}" for k, v in ABLATION.items())
    )
    training.add_backbone_options(group)
    group.add_argument(
        "--two-stream",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="the backbone's first block is each modality's own",
    )
    group.add_argument(
        "--heads", type=int, help="L of the attention (default: the paper's 4; 3 with the small backbone, of size 945)"
    )
    group.add_argument("--threshold", type=float, default=0.02, help="θ of the message fusion")
    group.add_argument(
        "--normalize-nodes",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="bring all nodes to one length before the graph and in L_c; the paper does not say it",
    )
    group = parser.add_argument_group("losses")
    group.add_argument("--base", type=float, default=1.0, help="λ_b, weight of L_b")
    group.add_argument(
        "--normalize-triplet",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="triplets of L_b on features of length 1; the paper does not say it",
    )
    group.add_argument("--transport", type=float, default=1.0, help="λ_o, weight of D_ot")
    group.add_argument("--contrastive", type=float, default=0.1, help="λ_c, weight of L_c")
    group.add_argument("--graph", type=float, default=1.0, help="λ_g, weight of L_g")
    group.add_argument("--epsilon", type=float, default=2.0, help="ε of L_c")
    group.add_argument("--phi", type=float, default=0.5, help="φ of D_ot: 0 structure alone, 1 features alone")
    group.add_argument("--structure", choices=["abs", "square"], default="abs", help="difference of structure in D_ot")
    group.add_argument("--pairs", choices=["all", "one_to_one"], default="all", help="that D_ot aligns")
    training.add_training_options(parser, output=Path("runs/g2da"))
    parser.add_argument(
        "--graph-lr",
        type=float,
        default=0.03,
        help="the graph's share of --lr; 1 in the paper",
    )
    return parser.parse_args()


def build_model(config: dict[str, Any], identities: int) -> tuple[nn.Module, nn.Module]:
    """Model and criterion of a row of the ablation, from the plain values that a checkpoint keeps."""
    if config["ablation"] not in ABLATION:
        raise ValueError(f"ablation must be one of {', '.join(ABLATION)}, got {config['ablation']!r}")
    row = list(ABLATION).index(config["ablation"])
    backbone = common.build_backbone(config["backbone"], config.get("weights"))
    heads = config.get("heads", 3 if isinstance(backbone, SmallBackbone) else 4)
    if config["two_stream"] and isinstance(backbone, SmallBackbone):
        backbone = TwoStream.from_sequential(backbone, shared_from="refinements")
    elif config["two_stream"]:
        backbone = TwoStream.from_resnet(backbone)
    parts, adjacency = part_grid(*config["part_grid"]) if config.get("part_grid") else (None, None)
    model = G2DA(
        backbone,
        identities,
        adjacency=adjacency,
        parts=parts,
        graph=row >= 3,
        heads=heads,
        threshold=config["threshold"] if row >= 4 else -math.inf,
        normalize_nodes=config["normalize_nodes"],
    )
    criterion = G2DACriterion(
        base=config["base"],
        transport=config["transport"] if row >= 1 else 0.0,
        contrastive=config["contrastive"] if row >= 2 else 0.0,
        graph=config["graph"],
        epsilon=config["epsilon"],
        normalize_triplet=config["normalize_triplet"],
        normalize_nodes=config["normalize_nodes"],
        phi=config["phi"],
        loss=config["structure"],
        pairs=config["pairs"],
    )
    return model, criterion


def distances(model: nn.Module, arguments: argparse.Namespace | None = None) -> dict[str, common.Distance | None]:
    """The one way a trained model ranks: by the cosine of its features."""
    return {"backbone" if getattr(model, "attention", None) is None else "graph": None}


METHOD = training.Method("g2da", SETTINGS, build_model, distances)


def main() -> None:
    """Train and evaluate as the command line says."""
    arguments = parse_arguments()
    common.find_keypoints(arguments, arguments.part_grid)
    training.run(arguments, METHOD)


if __name__ == "__main__":
    main()
