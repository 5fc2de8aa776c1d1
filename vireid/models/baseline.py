"""The baseline that CIFT starts from: one shared backbone, a BNNeck, a classifier, and the backbone's losses."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from vireid._checks import check_count, check_integers, check_module
from vireid._ops import at_least_float32
from vireid.losses import HCCLoss
from vireid.nn import BNNeck


class BaselineOutput(NamedTuple):
    """What `Baseline` returns, in training and in evaluation.

    Attributes:
        features: (B, d) F_b, the features that rank at test time.
        logits: (B, C) Y_b.
        feature_map: (B, c, h, w) of the backbone, for losses on parts; None in an output made without.
    """

    features: Tensor
    logits: Tensor
    feature_map: Tensor | None = None


class Baseline(nn.Module):
    """Backbone, average pooling, BNNeck, classifier without bias (CIFT §4.1).

    Args:
        backbone: any module (B, 3, H, W) -> (B, c, h, w), shared by both modalities.
        num_classes: number C of training identities.
        dim: feature size d, c · rows · columns of the grid. Default: c is the backbone's ``out_channels``.
        grid: (rows, columns) that the map is averaged to before its cells are stacked. Default: the backbone's
            ``grid`` where it has one, else (1, 1), which is global average pooling as in the paper.

    Raises:
        ValueError: if the size is neither given nor known, or, when called, if the backbone returns another one.
        TypeError: if the backbone is not a module, or a size is not an integer.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        dim: int | None = None,
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        check_module("backbone", backbone)
        check_count("num_classes", num_classes)
        self.grid = feature_grid(backbone) if grid is None else grid
        self.dim = feature_size(backbone, grid) if dim is None else dim
        self.backbone = backbone
        self.neck = BNNeck(self.dim)
        self.classifier = classifier(self.dim, num_classes)

    def forward(self, images: Tensor, modality: Tensor) -> BaselineOutput:
        """Embed ``images`` (B, 3, H, W); ``modality`` (B,) is not used: both modalities share every weight."""
        maps = self.backbone(images)
        cells = self.grid[0] * self.grid[1]
        if maps.ndim != 4 or maps.shape[1] * cells != self.dim:
            raise ValueError(f"backbone must return (B, {self.dim // cells}, h, w), got {tuple(maps.shape)}")
        features = self.neck(F.adaptive_avg_pool2d(maps, self.grid).flatten(1))
        return BaselineOutput(features, self.classifier(features), maps)


class BaselineCriterion(nn.Module):
    """L_b = CE(Y_b) + HCC_eu(F_b) + HCC_kl(Y_b), the backbone terms of CIFT's Eq. 7 and 11-14."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_hcc = HCCLoss(margin=0.6)
        self.logit_hcc = HCCLoss(margin=6.0, distance="kl")

    def forward(self, output: BaselineOutput, labels: Tensor, modality: Tensor) -> dict[str, Tensor]:
        """Named losses and their sum ``"total"``; labels (B,), modality (B,)."""
        check_integers("labels", labels, len(output.features))
        losses = {
            "ce": F.cross_entropy(at_least_float32(output.logits), labels.long()),
            "hcc_features": self.feature_hcc(output.features, labels, modality),
            "hcc_logits": self.logit_hcc(output.logits, labels, modality),
        }
        return losses | {"total": sum_losses(losses)}


def classifier(dim: int, num_classes: int) -> nn.Linear:
    """A linear classifier without bias, as the BNNeck wants it, starting near zero."""
    layer = nn.Linear(dim, num_classes, bias=False)
    nn.init.normal_(layer.weight, std=0.001)
    return layer


def feature_grid(backbone: nn.Module) -> tuple[int, int]:
    """The backbone's own ``grid``, or (1, 1)."""
    rows, columns = getattr(backbone, "grid", (1, 1))
    return rows, columns


def feature_size(backbone: nn.Module, grid: tuple[int, int] | None = None) -> int:
    """Size d of the features that a model makes from the backbone's map: its channels times the cells of the grid.

    Args:
        backbone: a module with the attribute ``out_channels``, and ``grid`` if its cells are to be stacked.
        grid: (rows, columns) instead of the backbone's own.

    Raises:
        ValueError: if the backbone does not say its channels.
    """
    channels = getattr(backbone, "out_channels", None)
    if channels is None:
        raise ValueError("dim must be given for a backbone without the attribute out_channels, got None")
    rows, columns = feature_grid(backbone) if grid is None else grid
    return int(channels) * rows * columns


def sum_losses(losses: dict[str, Tensor]) -> Tensor:
    """Sum of the named losses."""
    total = next(iter(losses.values()))
    for loss in list(losses.values())[1:]:
        total = total + loss
    return total
