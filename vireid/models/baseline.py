"""The baseline that CIFT starts from: one shared backbone, a BNNeck, a classifier, and the backbone's losses."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from vireid._checks import check_count
from vireid._ops import at_least_float32
from vireid.losses import HCCLoss
from vireid.nn import BNNeck


class BaselineOutput(NamedTuple):
    """What `Baseline` returns, in training and in evaluation.

    Attributes:
        features: (B, d) F_b, the features that rank at test time.
        logits: (B, C) Y_b.
    """

    features: Tensor
    logits: Tensor


class Baseline(nn.Module):
    """Backbone, global average pooling, BNNeck, classifier without bias (CIFT §4.1).

    Args:
        backbone: any module (B, 3, H, W) -> (B, d, h, w), shared by both modalities.
        identities: number C of training identities.
        dim: d; default: the backbone's ``out_channels``.
    """

    def __init__(self, backbone: nn.Module, identities: int, *, dim: int | None = None) -> None:
        super().__init__()
        check_count("identities", identities)
        self.dim = feature_size(backbone, dim)
        self.backbone = backbone
        self.neck = BNNeck(self.dim)
        self.classifier = classifier(self.dim, identities)

    def forward(self, images: Tensor, modality: Tensor) -> BaselineOutput:
        """Embed ``images`` (B, 3, H, W); ``modality`` (B,) is not used: both modalities share every weight."""
        features = self.neck(self.backbone(images).mean((2, 3)))
        return BaselineOutput(features, self.classifier(features))


class BaselineCriterion(nn.Module):
    """L_b = CE(Y_b) + HCC_eu(F_b) + HCC_kl(Y_b), the backbone terms of CIFT's Eq. 7 and 11-14."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_hcc = HCCLoss(margin=0.6)
        self.logit_hcc = HCCLoss(margin=6.0, distance="kl")

    def forward(self, output: BaselineOutput, labels: Tensor, modality: Tensor) -> dict[str, Tensor]:
        """Named losses and their sum ``"total"``; labels (B,), modality (B,)."""
        losses = {
            "ce": F.cross_entropy(at_least_float32(output.logits), labels),
            "hcc_features": self.feature_hcc(output.features, labels, modality),
            "hcc_logits": self.logit_hcc(output.logits, labels, modality),
        }
        return losses | {"total": sum_losses(losses)}


def classifier(dim: int, identities: int) -> nn.Linear:
    """A linear classifier without bias, as the BNNeck wants it, starting near zero."""
    layer = nn.Linear(dim, identities, bias=False)
    nn.init.normal_(layer.weight, std=0.001)
    return layer


def feature_size(backbone: nn.Module, dim: int | None) -> int:
    """``dim``, or the backbone's ``out_channels`` where it is None; ValueError where there is neither."""
    size = getattr(backbone, "out_channels", None) if dim is None else dim
    if size is None:
        raise ValueError("dim must be given for a backbone without the attribute out_channels, got None")
    check_count("dim", size)
    return int(size)


def sum_losses(losses: dict[str, Tensor]) -> Tensor:
    """Sum of the named losses."""
    total = next(iter(losses.values()))
    for loss in list(losses.values())[1:]:
        total = total + loss
    return total
