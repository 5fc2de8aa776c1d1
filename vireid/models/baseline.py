"""The baseline that CIFT starts from: one shared backbone, a BNNeck, a classifier, and the backbone's losses."""

from typing import Literal, NamedTuple, Protocol

from torch import Tensor, nn

from vireid._checks import check_fraction, check_option, check_tensor
from vireid._ops import cross_entropy
from vireid.losses import HCCLoss
from vireid.losses.centers import Centers, Direction, KLCenter, Negatives
from vireid.models._common import Embedder, add_total, linear_classifier
from vireid.nn import BNNeck

MetricFeatures = Literal["pooled", "neck"]


class BaselineOutput(NamedTuple):
    """Output of `Baseline`, in training and in evaluation.

    Attributes:
        features: (B, d) F_b, the features that rank at test time.
        logits: (B, C) Y_b.
        feature_map: (B, c, h, w) of the backbone, for losses on parts; None if left out.
        pooled: (B, d) the pooled map, before the neck; None if left out.
    """

    features: Tensor
    logits: Tensor
    feature_map: Tensor | None = None
    pooled: Tensor | None = None


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
        pooled = self.stack_cells(maps)
        features = self.neck(pooled)
        return BaselineOutput(features, self.classifier(features), maps, pooled)


class EmbeddedOutput(Protocol):
    """Output of a model with a neck and a classifier, such as `BaselineOutput` or `CIFTOutput`."""

    @property
    def features(self) -> Tensor:
        """Features (B, d) behind the neck."""

    @property
    def logits(self) -> Tensor:
        """Logits (B, C)."""

    @property
    def pooled(self) -> Tensor | None:
        """Features (B, d) before the neck."""


class BaselineCriterion(nn.Module):
    """L_b = CE(Y_b) + HCC_eu(F_b) + HCC_kl(Y_b), the backbone terms of CIFT's Eq. 7 and 11-14.

    Args:
        metric_features: of HCC_eu: ``"pooled"``, the features before the neck (our choice, the usual place of a metric
            loss beside a BNNeck), or ``"neck"``, those behind it, where other identities are usually farther apart than
            the margin of 0.6.
        centers: as in `vireid.losses.HCCLoss`, of both HCC losses, like the next one.
        negatives: likewise.
        kl_direction: likewise, of HCC_kl, like the next one.
        kl_center: likewise.
        label_smoothing: of CE, in [0, 1]; 0 in the paper.

    Raises:
        ValueError: if an option is unknown, or, when called, if there are no pooled features.
    """

    def __init__(
        self,
        *,
        metric_features: MetricFeatures = "pooled",
        centers: Centers = "shared",
        negatives: Negatives = "mean",
        kl_direction: Direction = "to_center",
        kl_center: KLCenter = "probabilities",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        check_option("metric_features", metric_features, ("pooled", "neck"))
        self.metric_features: MetricFeatures = metric_features
        self.label_smoothing = check_fraction("label_smoothing", label_smoothing)
        self.feature_hcc = HCCLoss(margin=0.6, centers=centers, negatives=negatives)
        self.logit_hcc = HCCLoss(
            margin=6.0,
            distance="kl",
            centers=centers,
            negatives=negatives,
            kl_direction=kl_direction,
            kl_center=kl_center,
        )

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return f"metric_features={self.metric_features!r}, label_smoothing={self.label_smoothing}"

    def terms(self, features: Tensor, logits: Tensor, labels: Tensor, modality: Tensor) -> dict[str, Tensor]:
        """Compute the three named losses of the metric features and Y_b."""
        check_tensor("features", features, "B d")
        return {
            "ce": cross_entropy(logits, labels, self.label_smoothing),
            "hcc_features": self.feature_hcc(features, labels, modality),
            "hcc_logits": self.logit_hcc(logits, labels, modality),
        }

    def forward(self, output: EmbeddedOutput, labels: Tensor, modality: Tensor) -> dict[str, Tensor]:
        """Compute the named losses and their sum ``"total"``; labels (B,), modality (B,)."""
        features = metric_features_of(output, self.metric_features)
        return add_total(self.terms(features, output.logits, labels, modality))


def metric_features_of(output: EmbeddedOutput, which: MetricFeatures) -> Tensor:
    """Return the features before the neck ("pooled") or behind it."""
    features = output.pooled if which == "pooled" else output.features
    if features is None:
        raise ValueError("output must have pooled features for metric_features='pooled', got None")
    return features
