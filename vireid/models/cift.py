"""CIFT: counterfactual intervention feature transfer (Li et al., ECCV 2022)."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias

from torch import Tensor, nn

from vireid._checks import check_fraction, check_module, check_tensor
from vireid._ops import cross_entropy
from vireid.losses import (
    CRILoss,
    cross_modality_triplet_loss,
    query_gallery_cross_entropy,
    query_gallery_hcc_loss,
)
from vireid.losses.centers import Centers, Direction, KLCenter, Negatives
from vireid.models._common import add_total, check_transfer, linear_classifier
from vireid.models.baseline import Baseline, BaselineCriterion, MetricFeatures, metric_features_of
from vireid.nn import H2FT, H2FTOutput, SharedFeatureTransfer
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
        pooled: (B, d) the pooled map, before the neck; None if left out.
    """

    features: Tensor
    logits: Tensor
    transfer: H2FTOutput
    query_logits: Tensor
    gallery_logits: Tensor
    feature_map: Tensor | None = None
    pooled: Tensor | None = None


class TransferOutput(Protocol):
    """Output of a model on whose features there may be a transfer, such as `SAAIOutput` or `G2DAOutput`."""

    @property
    def features(self) -> Tensor:
        """Features (B, d) that enter the transfer."""

    @property
    def transfer(self) -> H2FTOutput | None:
        """f_q, F_G and the affinities of the batch."""

    @property
    def query_logits(self) -> Tensor | None:
        """Logits (B, C) of f_q."""

    @property
    def gallery_logits(self) -> Tensor | None:
        """Logits (R, C) of F_G."""


TransferLosses: TypeAlias = Callable[[TransferOutput, Tensor, Tensor], dict[str, Tensor]]


class CIFT(nn.Module):
    """`Baseline` with a graph feature transfer on its features and a second classifier W_g (CIFT §4).

    Args:
        backbone: as in `Baseline`.
        num_classes: number C of training identities.
        dim: feature size d, as in `Baseline`.
        grid: of the pooling, as in `Baseline`.
        transfer: `H2FT` (default), `GFT` or `SharedFeatureTransfer`, of size d (`feature_size`).

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
        embedded = self.baseline(images, modality)
        transfer = self.transfer(embedded.features, modality)
        query, gallery = self.graph_classifier(transfer.query), self.graph_classifier(transfer.gallery)
        maps, pooled = embedded.feature_map, embedded.pooled
        return CIFTOutput(embedded.features, embedded.logits, transfer, query, gallery, maps, pooled)


class CIFTCriterion(nn.Module):
    """L = L_b + CE(Y_g) + HCC_kl(Y_g) + L_tie (CIFT, Eq. 7, 11-14).

    In several processes model and criterion belong in one module that is wrapped; see `vireid.losses.CRILoss`.

    Args:
        model: the `CIFT` whose transfer and classifier L_tie shares. It is not registered here: its parameters belong
            to the model only. So copy both together, or make a new criterion for a copied model.
        cri: the loss L_tie, trained with the model (it has parameters); None leaves it out.
        metric_features: as in `BaselineCriterion`.
        centers: likewise, of the losses of Y_g too, like all that follow.
        negatives: likewise.
        kl_direction: likewise.
        kl_center: likewise.
        label_smoothing: likewise.
    """

    def __init__(
        self,
        model: CIFT,
        *,
        cri: CRILoss | None = None,
        metric_features: MetricFeatures = "pooled",
        centers: Centers = "shared",
        negatives: Negatives = "mean",
        kl_direction: Direction = "to_center",
        kl_center: KLCenter = "probabilities",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        check_module("model", model, CIFT)
        options: dict[str, Any] = {"centers": centers, "negatives": negatives, "label_smoothing": label_smoothing}
        options |= {"kl_direction": kl_direction, "kl_center": kl_center}
        self.backbone_terms = BaselineCriterion(metric_features=metric_features, **options)
        self.cri = cri
        self._transfer_losses = losses_of_transfer(model.transfer, model.graph_classifier, cri, **options)

    def forward(self, output: CIFTOutput, labels: Tensor, modality: Tensor) -> dict[str, Tensor]:
        """Compute the named losses and their sum ``"total"``; labels (B,), modality (B,)."""
        backbone = self.backbone_terms
        features = metric_features_of(output, backbone.metric_features)
        losses = backbone.terms(features, output.logits, labels, modality)
        return add_total(losses | self._transfer_losses(output, labels, modality))


def graph_losses(
    query: Tensor,
    labels: Tensor,
    modality: Tensor | None = None,
    *,
    gallery: Tensor,
    gallery_index: Tensor,
    centers: Centers = "shared",
    negatives: Negatives = "mean",
    kl_direction: Direction = "to_center",
    kl_center: KLCenter = "probabilities",
    label_smoothing: float = 0.0,
) -> dict[str, Tensor]:
    """Compute the losses of a graph's classifier, CE(Y_g) and HCC_kl(Y_g) (CIFT, Eq. 7, 12).

    Args:
        query: (B, C) logits of f_q.
        labels: (B,) integers in [0, C).
        modality: (B,) integers, needed by ``centers="cross"`` only.
        gallery: (R, C) logits of F_G.
        gallery_index: (R,) image that each gallery row belongs to.
        centers: of HCC_kl, as in `vireid.losses.HCCLoss`, like the next three.
        negatives: likewise.
        kl_direction: likewise.
        kl_center: likewise.
        label_smoothing: of CE, in [0, 1].

    Returns:
        ``"graph_ce"`` and ``"graph_hcc"``, scalars.

    Raises:
        ValueError, TypeError: as `vireid.losses.query_gallery_hcc_loss`.
    """
    return {
        "graph_ce": query_gallery_cross_entropy(
            query,
            labels,
            modality,
            gallery=gallery,
            gallery_index=gallery_index,
            label_smoothing=label_smoothing,
        ),
        "graph_hcc": query_gallery_hcc_loss(
            query,
            labels,
            modality,
            gallery=gallery,
            gallery_index=gallery_index,
            centers=centers,
            negatives=negatives,
            kl_direction=kl_direction,
            kl_center=kl_center,
        ),
    }


def shared_losses(
    transferred: Tensor, logits: Tensor, labels: Tensor, modality: Tensor, *, label_smoothing: float = 0.0
) -> dict[str, Tensor]:
    """Compute the losses of cm-SSFT's shared transfer: cross-entropy and triplets of the transferred features.

    The triplets are those of `vireid.losses.CrossModalityTripletLoss` (our choice; we had no access to the paper).

    Args:
        transferred: (B, d) features of `vireid.nn.SharedFeatureTransfer`.
        logits: (B, C) of them.
        labels: (B,) integers in [0, C).
        modality: (B,) integers, 0 visible, 1 infrared.
        label_smoothing: of the cross-entropy, in [0, 1].

    Returns:
        ``"graph_ce"`` and ``"graph_triplet"``, scalars.

    Raises:
        ValueError, TypeError: as `vireid.losses.cross_modality_triplet_loss`.
    """
    smoothing = check_fraction("label_smoothing", label_smoothing)
    check_tensor("transferred", transferred, "B d")
    return {
        "graph_ce": cross_entropy(logits, labels, smoothing),
        "graph_triplet": cross_modality_triplet_loss(transferred, labels, modality),
    }


def losses_of_transfer(
    transfer: FeatureTransfer | None, classifier: nn.Module | None, cri: CRILoss | None, **options: Any
) -> TransferLosses:
    """Return the function from a model's output, labels and modality to the losses of its transfer, none without one.

    They are `graph_losses` and L_tie, or `shared_losses` of a `SharedFeatureTransfer`. A partial is not a module: it
    does not register the model's.
    """
    if cri is not None:
        check_module("cri", cri, CRILoss)
        if transfer is None or classifier is None:
            raise ValueError("cri needs a model with a transfer, got one without")
        if isinstance(transfer, SharedFeatureTransfer):
            raise ValueError("cri needs a transfer of H2FT or GFT, got SharedFeatureTransfer")
    return partial(_losses_of_transfer, transfer=transfer, classifier=classifier, cri=cri, **options)


def _losses_of_transfer(
    output: TransferOutput,
    labels: Tensor,
    modality: Tensor,
    *,
    transfer: FeatureTransfer | None,
    classifier: nn.Module | None,
    cri: CRILoss | None,
    label_smoothing: float = 0.0,
    **options: Any,
) -> dict[str, Tensor]:
    made, query, gallery = output.transfer, output.query_logits, output.gallery_logits
    if made is None or query is None or gallery is None:
        return {}
    if isinstance(transfer, SharedFeatureTransfer):
        return shared_losses(made.query, query, labels, modality, label_smoothing=label_smoothing)
    options |= {"gallery": gallery, "gallery_index": made.gallery_index, "label_smoothing": label_smoothing}
    losses = graph_losses(query, labels, modality, **options)
    if cri is not None and transfer is not None and classifier is not None:
        losses["tie"] = cri(output.features, labels, modality, transfer=transfer, classifier=classifier, output=made)
    return losses
