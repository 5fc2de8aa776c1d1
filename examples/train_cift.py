"""Train CIFT or a row of its ablation, evaluate it with the exact protocol, and write what was found.

    python examples/train_cift.py                          # draws synthetic pedestrians, trains, evaluates
    python examples/train_cift.py --dataset regdb --root RegDB --trial 3 --ablation baseline
    python examples/train_cift.py --dataset sysu --root SYSU-MM01 --backbone torchvision --weights imagenet \
        --size 288 144 --epochs 120 --optimizer sgd --lr 0.1 --backbone-lr 0.1 --schedule steps --precision 16-mixed

Into --output go checkpoint.pt (whole, after each epoch), TensorBoard logs, metrics.json, cmc.png and ranked.png.
"""

import argparse
from pathlib import Path
from typing import Any

from torch import nn

import common
import training
from vireid.losses import CRILoss
from vireid.models import CIFT, Baseline, BaselineCriterion, CIFTCriterion, feature_size
from vireid.nn import GFT, H2FT, FeatureTransfer

ABLATION = {
    "baseline": "backbone alone",
    "gft": "+ graph feature transfer over the whole batch",
    "ubs": "+ unbalanced scenario simulation: GFT on 1:N groups",
    "h2g": "+ homogeneous and heterogeneous graphs: H2FT",
    "cri": "+ counterfactual relation intervention: CIFT",
}

# What a checkpoint keeps: the options that decide what is trained, and how.
SETTINGS = (*training.SETTINGS, *training.TRANSFER_SETTINGS, *training.ALIGNMENT_SETTINGS)


def parse_arguments() -> argparse.Namespace:
    """The options, with the defaults of the embedded example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_data_options(parser)
    group = parser.add_argument_group("model")
    group.add_argument(
        "--ablation", choices=list(ABLATION), default="cri", help="; ".join(f"{k}: {v}" for k, v in ABLATION.items())
    )
    training.add_backbone_options(group)
    training.add_transfer_options(group)
    training.add_alignment_options(parser)
    training.add_training_options(parser, output=Path("runs/cift"))
    return parser.parse_args()


def build_model(config: dict[str, Any], identities: int) -> tuple[nn.Module, nn.Module]:
    """Model and criterion of a row of the ablation, from the plain values that a checkpoint keeps."""
    backbone = common.build_backbone(config["backbone"], config.get("weights"))
    row, dim, k = config["ablation"], feature_size(backbone), config["k"]
    if row not in ABLATION:
        raise ValueError(f"ablation must be one of {', '.join(ABLATION)}, got {row!r}")
    if row == "baseline":
        return Baseline(backbone, identities), training.with_alignment(BaselineCriterion(), config)
    if row in ("gft", "ubs"):
        transfer: FeatureTransfer = GFT(dim, k=k, tau=config["tau_het"], unbalanced=row == "ubs")
    else:
        transfer = H2FT(dim, k=k, tau_hom=config["tau_hom"], tau_het=config["tau_het"])
    model = CIFT(backbone, identities, transfer=transfer)
    cri = CRILoss(dim, samples=config["samples"], detach_values=config["detach_values"]) if row == "cri" else None
    return model, training.with_alignment(CIFTCriterion(model, cri=cri), config)


def distances(model: nn.Module, arguments: argparse.Namespace | None = None) -> dict[str, common.Distance | None]:
    """The ways a trained model ranks: by its backbone features, and by transferred ones; no option changes them."""
    ways: dict[str, common.Distance | None] = {"backbone": None}
    if isinstance(model, CIFT):
        ways["transferred"] = model.transfer.distance
    return ways


METHOD = training.Method("cift", SETTINGS, build_model, distances)


def main() -> None:
    """Train and evaluate as the command line says."""
    training.run(parse_arguments(), METHOD)


if __name__ == "__main__":
    main()
