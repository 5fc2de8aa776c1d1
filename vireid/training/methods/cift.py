"""CIFT and the rows of its ablation from plain settings."""

from dataclasses import dataclass
from typing import Any, Literal

from vireid import models
from vireid._checks import check_option
from vireid.losses import CRILoss
from vireid.nn import GFT, FeatureTransfer, SharedFeatureTransfer
from vireid.training.methods._settings import AlignedSettings, Built, build_backbone

CIFT_ROWS = {
    "baseline": "backbone only",
    "gft": "+ graph feature transfer over the whole batch",
    "ubs": "+ unbalanced scenario simulation: GFT on 1:N groups",
    "h2g": "+ homogeneous and heterogeneous graphs: H2FT",
    "cri": "+ counterfactual relation intervention: CIFT",
    "shared": "shared feature transfer of cm-SSFT on the backbone, in CIFT's place (Table 2)",
}

_READINGS = ("metric_features", "centers", "negatives", "kl_direction", "kl_center", "label_smoothing")


@dataclass(frozen=True, kw_only=True)
class CIFTSettings(AlignedSettings):
    """Settings of CIFT or a row of its ablation.

    Attributes:
        ablation: a key of `CIFT_ROWS`.
        metric_features: the Euclidean HCC's features: before the neck or behind it.
        centers: HCC's centers: of both modalities, or of the one that the image is not of.
        negatives: whether HCC takes the mean over the other identities, or their sum.
        kl_direction: KL of the image's distribution to the center's, or from it.
        kl_center: HCC's center of logits: the mean of the probabilities, or of the logits.
        transferred: what GFT sums: v(X) as in Eq. 1, or X as in the supplement.
        label_smoothing: of the cross-entropies of classes.
    """

    ablation: str = "cri"
    metric_features: Literal["pooled", "neck"] = "pooled"
    centers: Literal["shared", "cross"] = "shared"
    negatives: Literal["mean", "sum"] = "mean"
    kl_direction: Literal["to_center", "from_center"] = "to_center"
    kl_center: Literal["probabilities", "logits"] = "probabilities"
    transferred: Literal["values", "features"] = "values"
    label_smoothing: float = 0.0

    def build(self, num_classes: int, size: tuple[int, int]) -> Built:
        """Return the model and the criterion; images may have any size."""
        check_option("ablation", self.ablation, CIFT_ROWS)
        network = build_backbone(self.backbone, self.weights, self.last_stride)
        readings: dict[str, Any] = {name: getattr(self, name) for name in _READINGS}
        if self.ablation == "baseline":
            return models.Baseline(network, num_classes), self.aligned(models.BaselineCriterion(**readings))
        dim = models.feature_size(network)
        transfer: FeatureTransfer
        cri: CRILoss | None = None
        if self.ablation == "shared":
            transfer = SharedFeatureTransfer(dim, k=self.k)
        elif self.ablation in ("gft", "ubs"):
            unbalanced = self.ablation == "ubs"
            transfer = GFT(dim, k=self.k, tau=self.tau_het, unbalanced=unbalanced, transferred=self.transferred)
        else:
            transfer, cri = self.transfer_of(dim)
        model = models.CIFT(network, num_classes, transfer=transfer)
        criterion = models.CIFTCriterion(model, cri=cri if self.ablation == "cri" else None, **readings)
        return model, self.aligned(criterion)
