"""The baseline that CIFT starts from: one shared backbone, a BNNeck, a classifier, and the backbone's losses."""

from typing import NamedTuple

from torch import Tensor, nn

from vireid._checks import check_tensor
from vireid._ops import cross_entropy
from vireid.losses import HCCLoss
from vireid.models._common import Embedder, add_total, linear_classifier
from vireid.nn import BNNeck


class BaselineOutput(NamedTuple):
    """Output of `Baseline`, in training and in evaluation.

    Attributes:
        features: (B, d) F_b, the features that rank at test time.
        logits: (B, C) Y_b.
        feature_map: (B, c, h, w) of the backbone, for losses on parts; None if left out.
    """

    features: Tensor
    logits: Tensor
    feature_map: Tensor | None = None


class Baseline(Embedder):
    """Backbone, average pooling, BNNeck, classifier without bias (CIFT §4.1).

    Args:
        backbone: any module (B, 3, H, W) -> (B, c, h, w) shared by both modalities, or `vireid.nn.TwoStream`.
        num_classes: number C of training identities.
        dim: feature size d, c · rows · columns of the grid. Default: c is the backbone's ``out_channels``.
        grid: (rows, columns) that the map is averaged to before its cells are stacked. Default: the backbone's
            ``grid`` where it has one, else (1, 1), global average pooling as in the paper.

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
        super().__init__(backbone, num_classes, grid)
        self.dim = self.feature_size(dim)
        self.neck = BNNeck(self.dim)
        self.classifier = linear_classifier(self.dim, self.num_classes)

    def forward(self, images: Tensor, modality: Tensor) -> BaselineOutput:
        """Embed ``images`` (B, 3, H, W) of ``modality`` (B,), which a `TwoStream` backbone is given too."""
        maps = self.feature_map(images, modality, self.dim // self.cells)
        features = self.neck(self.stack_cells(maps))
        return BaselineOutput(features, self.classifier(features), maps)


class BaselineCriterion(nn.Module):
    """L_b = CE(Y_b) + HCC_eu(F_b) + HCC_kl(Y_b), the backbone terms of CIFT's Eq. 7 and 11-14."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_hcc = HCCLoss(margin=0.6)
        self.logit_hcc = HCCLoss(margin=6.0, distance="kl")

    def terms(self, features: Tensor, logits: Tensor, labels: Tensor, modality: Tensor) -> dict[str, Tensor]:
        """Compute the three named losses of F_b and Y_b."""
        check_tensor("features", features, "B d")
        return {
            "ce": cross_entropy(logits, labels),
            "hcc_features": self.feature_hcc(features, labels, modality),
            "hcc_logits": self.logit_hcc(logits, labels, modality),
        }

    def forward(self, output: BaselineOutput, labels: Tensor, modality: Tensor) -> dict[str, Tensor]:
        """Compute the named losses and their sum ``"total"``; labels (B,), modality (B,)."""
        return add_total(self.terms(output.features, output.logits, labels, modality))
