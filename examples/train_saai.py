"""Train SAAI or a row of its ablation, evaluate it with the exact protocol, and write what was found.

    python examples/train_saai.py                          # draws synthetic pedestrians, trains, evaluates
    python examples/train_saai.py --dataset regdb --root RegDB --trial 3 --ablation baseline
    python examples/train_saai.py --part-diversity 0 --center-separation 0 --output runs/id    # a row of Table 4
    python examples/train_saai.py --resume --no-removing                                       # a row of Table 6
    python examples/train_saai.py --dataset sysu --root SYSU-MM01 --backbone torchvision --weights imagenet \
        --size 288 144 --epochs 160 --identities 16 --optimizer adam --lr 3.5e-4 --schedule steps --milestones 1/2 3/4 \
        --center-separation 1 --no-normalize-centers

The report has a row for the features alone ("backbone", by cosine distance) and one with AIM; with --transfer also one
for CIFT's transferred features, and one with AIM on those. AIM's options are not part of a checkpoint: with others,
--resume only evaluates a trained model again. Into --output go checkpoint.pt (whole, after each epoch), TensorBoard
logs, metrics.json, cmc.png and ranked.png.
"""

import argparse
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import common
import training
from vireid.losses import AffinityInferenceLoss, CRILoss
from vireid.models import SAAI, SAAICriterion, feature_size
from vireid.nn import H2FT
from vireid.rerank import AIM, AIM_SETTINGS, aim

ABLATION = {
    "baseline": "no prototypes, one neck for both modalities, L_id alone; a ResNet-50's map in 6 horizontal parts",
    "saai": "prototypes, a neck for each modality, L_id + L_cs + λ L_pd",
}

# What a checkpoint keeps: the options that decide what is trained, and how.
SETTINGS = (
    *training.SETTINGS,
    *training.TRANSFER_SETTINGS,
    *training.ALIGNMENT_SETTINGS,
    *"parts position_in_values part_diversity center_separation normalize_centers affinity_loss amend transfer".split(),
)

AIM_OPTIONS = "k1 no_removing k2 no_expanding aim_variant".split()


def parse_arguments() -> argparse.Namespace:
    """The options, with the defaults of the embedded example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_data_options(parser)
    add_aim_options(parser)
    group = parser.add_argument_group("model")
    group.add_argument(
        "--ablation", choices=list(ABLATION), default="saai", help="; ".join(f"{k}: {v}" for k, v in ABLATION.items())
    )
    training.add_backbone_options(group)
    group.add_argument("--parts", type=int, default=7, help="p, prototypes; 0 leaves them out, as the baseline does")
    group.add_argument("--position-in-values", action="store_true", help="parts are pooled from T + E instead of T")
    group = parser.add_argument_group("losses")
    group.add_argument("--part-diversity", type=float, default=0.5, help="λ, the weight of L_pd; 0 leaves it out")
    group.add_argument(
        "--center-separation", type=float, default=0.2, help="weight of L_cs, the paper's is 1; 0 leaves it out"
    )
    group.add_argument(
        "--normalize-centers",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="L_cs on rows of length 1; its margins are lengths, and the paper's Eq. 5 does not scale the rows",
    )
    group.add_argument(
        "--affinity-loss", type=float, default=0.0, metavar="W", help="weight of AIM's loss, which is not the paper's"
    )
    group.add_argument(
        "--no-amendment", action="store_false", dest="amend", help="its control: the loss of the cosines alone, no d*"
    )
    group = parser.add_argument_group("CIFT on SAAI's features")
    group.add_argument("--transfer", action="store_true", help="add CIFT's H2FT, the losses of its graph, and CRI")
    training.add_transfer_options(group)
    training.add_alignment_options(parser)
    training.add_training_options(parser, output=Path("runs/saai"))
    return parser.parse_args()


def add_aim_options(parser: argparse.ArgumentParser) -> None:
    """Options of AIM at evaluation."""
    group = parser.add_argument_group("evaluation (AIM)")
    removing = group.add_mutually_exclusive_group()
    removing.add_argument("--k1", type=int, help="affinities kept in a row (default: the paper's for the data set)")
    removing.add_argument("--no-removing", action="store_true", help="k1 is the whole gallery")
    expanding = group.add_mutually_exclusive_group()
    expanding.add_argument("--k2", type=int, help="gallery images averaged over (default: the paper's)")
    expanding.add_argument("--no-expanding", action="store_true", help="k2 is 1")
    group.add_argument("--aim-variant", choices=["paper", "released"], default="paper")


class AffinityInference:
    """`vireid.rerank.aim` of a gallery of any size, on the features or on what CIFT's transfer makes of them.

    Args:
        k1: as in `aim`; None: the whole gallery.
        k2: as in `aim`.
        variant: as in `aim`.
        transfer: ranks by AIM over f_q and F_G, each query alone with the gallery; None: over the features as they are.
    """

    uses = "gallery"

    def __init__(
        self,
        *,
        k1: int | None,
        k2: int,
        variant: Literal["paper", "released"],
        transfer: H2FT | None = None,
    ) -> None:
        AIM(k1=1 if k1 is None else k1, k2=k2, variant=variant)  # says at once what is wrong
        self.k1, self.k2, self.variant, self.transfer = k1, k2, variant, transfer

    @property
    def settings(self) -> dict[str, Any]:
        """What the report says of it."""
        return {"k1": "all" if self.k1 is None else self.k1, "k2": self.k2, "variant": self.variant}

    def __call__(self, query: Tensor, gallery: Tensor) -> Tensor:
        """Distance (Nq, Ng)."""
        if self.transfer is not None:
            query, gallery = self.transfer.transfer(query, gallery)
        k1 = len(gallery) if self.k1 is None else self.k1
        distance: Tensor = aim(query, gallery, k1=k1, k2=self.k2, variant=self.variant)
        return distance


def affinity_inference(arguments: argparse.Namespace, transfer: H2FT | None = None) -> AffinityInference:
    """AIM as the options say, by default with the paper's k1 and k2 for the data set."""
    protocol = "regdb"
    if arguments.dataset == "sysu":
        protocol = "sysu_single_shot" if arguments.shots == 1 else "sysu_multi_shot"
    k1, k2 = AIM_SETTINGS[protocol]["k1"], AIM_SETTINGS[protocol]["k2"]
    k1, k2 = (k1 if arguments.k1 is None else arguments.k1), (k2 if arguments.k2 is None else arguments.k2)
    return AffinityInference(
        k1=None if arguments.no_removing else k1,
        k2=1 if arguments.no_expanding else k2,
        variant=arguments.aim_variant,
        transfer=transfer,
    )


def build_model(config: dict[str, Any], identities: int) -> tuple[nn.Module, nn.Module]:
    """Model and criterion of a row of the ablation, from the plain values that a checkpoint keeps."""
    backbone = common.build_backbone(config["backbone"], config.get("weights"))
    if config["ablation"] not in ABLATION:
        raise ValueError(f"ablation must be one of {', '.join(ABLATION)}, got {config['ablation']!r}")
    for name in ("parts", "part_diversity", "center_separation", "affinity_loss"):
        if not config[name] >= 0:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 0, got {config[name]}")
    baseline = config["ablation"] == "baseline"
    parts = 0 if baseline else config["parts"]
    grid = (6, 1) if baseline and not hasattr(backbone, "grid") else None
    transfer = cri = affinity = None
    if config["transfer"]:
        dim = feature_size(backbone, grid) + parts * feature_size(backbone, (1, 1))
        transfer = H2FT(dim, k=config["k"], tau_hom=config["tau_hom"], tau_het=config["tau_het"])
        cri = CRILoss(dim, samples=config["samples"], detach_values=config["detach_values"])
    if config["affinity_loss"]:
        # Cosines reach 1, amended scores more: each at the temperature that suited it in rough tries.
        affinity = AffinityInferenceLoss(amend=config["amend"], temperature=0.3 if config["amend"] else 0.1)
    model = SAAI(
        backbone,
        identities,
        parts=parts,
        grid=grid,
        size=map_size(backbone, config["size"]),
        position_in_values=config["position_in_values"],
        dual_neck=not baseline,
        transfer=transfer,
    )
    criterion = SAAICriterion(
        model,
        part_diversity=0.0 if baseline else config["part_diversity"],
        center_separation=0.0 if baseline else config["center_separation"],
        normalize_centers=config["normalize_centers"],
        affinity=affinity,
        affinity_weight=config["affinity_loss"],
        cri=cri,
    )
    return model, training.with_alignment(criterion, config)


@torch.no_grad()
def map_size(backbone: nn.Module, size: list[int]) -> tuple[int, int]:
    """(h, w) of the backbone's map of images of ``size`` (H, W)."""
    maps = backbone.eval()(torch.zeros(1, 3, *size))
    backbone.train()
    return maps.shape[2], maps.shape[3]


def distances(model: nn.Module, arguments: argparse.Namespace) -> dict[str, common.Distance | None]:
    """The ways a trained model ranks: by its features and, with --transfer, by transferred ones; then AIM on each."""
    ways: dict[str, common.Distance | None] = {"backbone": None, "backbone + AIM": affinity_inference(arguments)}
    if isinstance(model, SAAI) and isinstance(model.transfer, H2FT):
        ways["transferred"] = model.transfer.distance
        ways["transferred + AIM"] = affinity_inference(arguments, model.transfer)
    return ways


METHOD = training.Method("saai", SETTINGS, build_model, distances)


def main() -> None:
    """Train and evaluate as the command line says."""
    arguments = parse_arguments()
    affinity_inference(arguments)  # a wrong option of AIM is named before anything is trained
    if not arguments.amend and not arguments.affinity_loss:
        raise ValueError("--no-amendment goes with --affinity-loss, which is 0")
    training.run(arguments, METHOD)


if __name__ == "__main__":
    main()
