"""CIFT and the rows of its ablation from plain settings."""

from dataclasses import dataclass

from vireid import models
from vireid._checks import check_option
from vireid.nn import GFT
from vireid.training.methods._settings import Built, TransferSettings, build_backbone

CIFT_ROWS = {
    "baseline": "backbone only",
    "gft": "+ graph feature transfer over the whole batch",
    "ubs": "+ unbalanced scenario simulation: GFT on 1:N groups",
    "h2g": "+ homogeneous and heterogeneous graphs: H2FT",
    "cri": "+ counterfactual relation intervention: CIFT",
}


@dataclass(frozen=True, kw_only=True)
class CIFTSettings(TransferSettings):
    """Settings of CIFT or a row of its ablation.

    Attributes:
        ablation: a key of `CIFT_ROWS`.
    """

    ablation: str = "cri"

    def build(self, num_classes: int, size: tuple[int, int]) -> Built:
        """Return the model and the criterion; images may have any size."""
        check_option("ablation", self.ablation, CIFT_ROWS)
        network = build_backbone(self.backbone, self.weights)
        if self.ablation == "baseline":
            return models.Baseline(network, num_classes), self.aligned(models.BaselineCriterion())
        dim = models.feature_size(network)
        if self.ablation in ("gft", "ubs"):
            layer = GFT(dim, k=self.k, tau=self.tau_het, unbalanced=self.ablation == "ubs")
            model, cri = models.CIFT(network, num_classes, transfer=layer), None
        else:
            transfer, cri = self.transfer_of(dim)
            model = models.CIFT(network, num_classes, transfer=transfer)
        return model, self.aligned(models.CIFTCriterion(model, cri=cri if self.ablation == "cri" else None))
