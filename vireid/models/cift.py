"""CIFT: counterfactual intervention feature transfer (Li et al., ECCV 2022)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vireid.losses import CRILoss, hcc_loss, query_gallery_cross_entropy
from vireid.models.baseline import Baseline, BaselineCriterion, BaselineOutput, classifier, sum_losses
from vireid.nn import H2FT, H2FTOutput
from vireid.nn.transfer import FeatureTransfer


class CIFTOutput(NamedTuple):
    """What `CIFT` returns, in training and in evaluation.

    Attributes:
        features: (B, d) F_b: CIFT† ranks by them, and `H2FT.distance` turns them into CIFT's distances.
        logits: (B, C) Y_b.
        transfer: f_q, F_G and the affinities of this batch.
        query_logits: (B, C) Y_g of f_q.
        gallery_logits: (R, C) Y_g of F_G.
        feature_map: (B, c, h, w) of the backbone, for losses on parts; None in an output made without.
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
        backbone: any module (B, 3, H, W) -> (B, c, h, w), shared by both modalities.
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
        if self.transfer.dim != self.baseline.dim:
            raise ValueError(f"transfer must be of size {self.baseline.dim} as the features, got {self.transfer.dim}")
        self.graph_classifier = classifier(self.baseline.dim, num_classes)

    def forward(self, images: Tensor, modality: Tensor) -> CIFTOutput:
        """Embed ``images`` (B, 3, H, W) and transfer features between them by ``modality`` (B,)."""
        features, logits, maps = self.baseline(images, modality)
        transfer = self.transfer(features, modality)
        query, gallery = self.graph_classifier(transfer.query), self.graph_classifier(transfer.gallery)
        return CIFTOutput(features, logits, transfer, query, gallery, maps)


class CIFTCriterion(nn.Module):
    """L = L_b + CE(Y_g) + HCC_kl(Y_g) + L_tie (CIFT, Eq. 7, 11-14).

    Args:
        model: the `CIFT` whose transfer and classifier L_tie shares. It is not registered here: its parameters stay
            the model's alone. So copy both together, or make a new criterion for a copied model.
        cri: the loss L_tie, trained with the model (it has parameters); None leaves it out.
    """

    def __init__(self, model: CIFT, *, cri: CRILoss | None = None) -> None:
        super().__init__()
        self._shared = (model.transfer, model.graph_classifier)  # a tuple, so that they are not registered
        self.backbone_terms = BaselineCriterion()
        self.cri = cri

    def forward(self, output: CIFTOutput, labels: Tensor, modality: Tensor) -> dict[str, Tensor]:
        """Named losses and their sum ``"total"``; labels (B,), modality (B,)."""
        losses = self.backbone_terms(BaselineOutput(output.features, output.logits), labels, modality)
        losses.pop("total")
        losses |= graph_losses(output.transfer, output.query_logits, output.gallery_logits, labels, modality)
        if self.cri is not None:
            transfer, graph_classifier = self._shared
            losses["tie"] = self.cri(
                output.features,
                labels,
                modality,
                transfer=transfer,
                classifier=graph_classifier,
                output=output.transfer,
            )
        return losses | {"total": sum_losses(losses)}


def graph_losses(
    transfer: H2FTOutput, query_logits: Tensor, gallery_logits: Tensor, labels: Tensor, modality: Tensor
) -> dict[str, Tensor]:
    """CE(Y_g) + HCC_kl(Y_g), the losses of a graph's classifier W_g (CIFT, Eq. 11-14), by name.

    Y_g has a row for each image as query and one for it as gallery image; both count alike (ours). Where GFT's
    unbalanced groups give a gallery image many rows, CE takes their mean loss and HCC their mean logits.

    Args:
        transfer: f_q, F_G and the affinities of a batch.
        query_logits: (B, C) Y_g of f_q.
        gallery_logits: (R, C) Y_g of F_G.
        labels: (B,) identities.
        modality: (B,) 0 visible, 1 infrared.
    """
    index = transfer.gallery_index
    gallery, image = _mean_rows(gallery_logits, index)
    return {
        "graph_ce": query_gallery_cross_entropy(query_logits, gallery_logits, labels, index),
        "graph_hcc": hcc_loss(
            torch.cat([query_logits, gallery]),
            torch.cat([labels, labels[image]]),
            torch.cat([modality, modality[image]]),
            margin=6.0,
            distance="kl",
        ),
    }


def _mean_rows(rows: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the rows (R, C) of each image in ``index`` (R,), and the images, ascending."""
    images, place = index.unique(return_inverse=True)
    member = (torch.arange(len(images), device=index.device)[:, None] == place).to(rows.dtype)
    return member @ rows / member.sum(1, keepdim=True), images
