"""CIFT: counterfactual intervention feature transfer (Li et al., ECCV 2022)."""

from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from vireid._checks import check_module
from vireid.losses import CRILoss, query_gallery_cross_entropy, query_gallery_hcc_loss
from vireid.models._common import add_total, check_transfer, linear_classifier
from vireid.models.baseline import Baseline, BaselineCriterion
from vireid.nn import H2FT, H2FTOutput
from vireid.nn.transfer import FeatureTransfer


class CIFTOutput(NamedTuple):
    """Output of `CIFT`, in training and in evaluation.

    Attributes:
        features: (B, d) F_b: CIFT† ranks by them, and `H2FT.distance` turns them into CIFT's distances.
        logits: (B, C) Y_b.
        transfer: f_q, F_G and the affinities of this batch.
        query_logits: (B, C) Y_g of f_q.
        gallery_logits: (R, C) Y_g of F_G.
        feature_map: (B, c, h, w) of the backbone, for losses on parts; None if left out.
    """

    features: Tensor
    logits: Tensor
    transfer: H2FTOutput
    query_logits: Tensor
    gallery_logits: Tensor
    feature_map: Tensor | None = None


class CIFT(nn.Module):
    """`Baseline` with a graph feature transfer on its features and a second classifier W_g (CIFT §4).

    Args:
        backbone: as in `Baseline`.
        num_classes: number C of training identities.
        dim: feature size d, as in `Baseline`.
        grid: of the pooling, as in `Baseline`.
        transfer: `H2FT` (default) or `GFT`, of size d (`feature_size`).

    Raises:
        ValueError: as `Baseline`, or if the transfer is of another size.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        dim: int | None = None,
        grid: tuple[int, int] | None = None,
        transfer: FeatureTransfer | None = None,
    ) -> None:
        super().__init__()
        self.baseline = Baseline(backbone, num_classes, dim=dim, grid=grid)
        self.transfer: FeatureTransfer = H2FT(self.baseline.dim) if transfer is None else transfer
        check_transfer(self.transfer, self.baseline.dim)
        self.graph_classifier = linear_classifier(self.baseline.dim, self.baseline.num_classes)

    def forward(self, images: Tensor, modality: Tensor) -> CIFTOutput:
        """Embed ``images`` (B, 3, H, W) and transfer features between them by ``modality`` (B,)."""
        features, logits, maps = self.baseline(images, modality)
        transfer = self.transfer(features, modality)
        query, gallery = self.graph_classifier(transfer.query), self.graph_classifier(transfer.gallery)
        return CIFTOutput(features, logits, transfer, query, gallery, maps)


class CIFTCriterion(nn.Module):
    """L = L_b + CE(Y_g) + HCC_kl(Y_g) + L_tie (CIFT, Eq. 7, 11-14).

    In several processes model and criterion belong in one module that is wrapped; see `vireid.losses.CRILoss`.

    Args:
        model: the `CIFT` whose transfer and classifier L_tie shares. It is not registered here: its parameters belong
            to the model only. So copy both together, or make a new criterion for a copied model.
        cri: the loss L_tie, trained with the model (it has parameters); None leaves it out.
    """

    def __init__(self, model: CIFT, *, cri: CRILoss | None = None) -> None:
        super().__init__()
        check_module("model", model, CIFT)
        if cri is not None:
            check_module("cri", cri, CRILoss)
        self.backbone_terms = BaselineCriterion()
        self.cri = cri
        # A partial is not a module, so that the model is not registered.
        self._tie = cri if cri is None else partial(cri, transfer=model.transfer, classifier=model.graph_classifier)

    def forward(self, output: CIFTOutput, labels: Tensor, modality: Tensor) -> dict[str, Tensor]:
        """Compute the named losses and their sum ``"total"``; labels (B,), modality (B,)."""
        losses = self.backbone_terms.terms(output.features, output.logits, labels, modality)
        index = output.transfer.gallery_index
        losses |= graph_losses(output.query_logits, labels, gallery=output.gallery_logits, gallery_index=index)
        if self._tie is not None:
            losses["tie"] = self._tie(output.features, labels, modality, output=output.transfer)
        return add_total(losses)


def graph_losses(query: Tensor, labels: Tensor, *, gallery: Tensor, gallery_index: Tensor) -> dict[str, Tensor]:
    """Compute CE(Y_g) and HCC_kl(Y_g) by name from the logits of f_q, (B, C), and of F_G, (R, C)."""
    return {
        "graph_ce": query_gallery_cross_entropy(query, labels, gallery=gallery, gallery_index=gallery_index),
        "graph_hcc": query_gallery_hcc_loss(query, labels, gallery=gallery, gallery_index=gallery_index),
    }
