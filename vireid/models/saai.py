"""SAAI: semantic alignment and affinity inference (Fang et al., ICCV 2023)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vireid._checks import check_at_least_zero, check_count, check_integers, check_module
from vireid.losses import (
    AffinityInferenceLoss,
    CenterSeparationLoss,
    CRILoss,
    MutualIdentityLoss,
    PartDiversityLoss,
)
from vireid.models.baseline import classifier, feature_grid, feature_size, sum_losses
from vireid.models.cift import graph_losses
from vireid.nn import BNNeck, DualBNNeck, H2FTOutput, PrototypePooling
from vireid.nn.transfer import FeatureTransfer


class SAAIOutput(NamedTuple):
    """What `SAAI` returns, in training and in evaluation.

    Attributes:
        features: (B, d) F̃, the features behind the neck: they rank at test time, by `vireid.rerank.aim`.
        pooled: (B, d) F̂, the parts and the global feature before the neck.
        similarity: (B, p, h·w) P(T+E)ᵀ; its sigmoid is the prototypes' attention. p = 0 without prototypes.
        transfer: with CIFT's transfer on top: f_q, F_G and the affinities of this batch; else None.
        query_logits: (B, C) Y_g of f_q, or None.
        gallery_logits: (R, C) Y_g of F_G, or None.
        feature_map: (B, c, h, w) of the backbone, for losses on parts; None in an output made without.
    """

    features: Tensor
    pooled: Tensor
    similarity: Tensor
    transfer: H2FTOutput | None = None
    query_logits: Tensor | None = None
    gallery_logits: Tensor | None = None
    feature_map: Tensor | None = None


class SAAI(nn.Module):
    """Backbone, prototype pooling beside the global feature, dual-branch BNNeck (SAAI §3.2).

        F̂ = [part_1, …, part_p, avg(F)],   F̃ = neck of its modality (F̂)

    Args:
        backbone: any module (B, 3, H, W) -> (B, c, h, w), shared by both modalities.
        num_classes: number C of training identities: of `SAAICriterion`'s classifiers, and of W_g with ``transfer``.
        parts: number p of prototypes; 0 leaves them out (Table 3's baseline).
        channels: c. Default: the backbone's ``out_channels``.
        grid: (rows, columns) that the map is averaged to for the global feature before its cells are stacked. Default:
            the backbone's ``grid`` where it has one, else (1, 1), which is avg(F) as in the paper. (6, 1) makes the
            horizontal parts of the paper's baseline.
        size: (h, w) of the backbone's map, which the position embedding is made for; any other is served as well.
        position_in_values: as in `vireid.nn.PrototypePooling`.
        dual_neck: a BNNeck for each modality; False: one for both (the paper's baseline).
        transfer: CIFT's `H2FT` or `GFT` on the features, of size d; None leaves it out. With it the model is CIFT on
            SAAI's features, which no paper has (ours).

    Attributes:
        dim: d, the size of the features.

    Raises:
        ValueError: if the channels are neither given nor known, the transfer is of another size, or, when called, if
            the backbone returns other channels.
        TypeError: if the backbone is not a module, or a size is not an integer.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        parts: int = 7,
        channels: int | None = None,
        grid: tuple[int, int] | None = None,
        size: tuple[int, int] = (18, 9),
        position_in_values: bool = False,
        dual_neck: bool = True,
        transfer: FeatureTransfer | None = None,
    ) -> None:
        super().__init__()
        check_module("backbone", backbone)
        check_count("num_classes", num_classes)
        check_count("parts", parts, minimum=0)
        self.num_classes = num_classes
        if channels is None:
            if not hasattr(backbone, "out_channels"):
                raise ValueError("channels must be given for a backbone without the attribute out_channels, got None")
            channels = feature_size(backbone, (1, 1))
        check_count("channels", channels)
        self.channels, self.grid = channels, feature_grid(backbone) if grid is None else grid
        check_count("grid[0]", self.grid[0])
        check_count("grid[1]", self.grid[1])
        self.dim = self.channels * (parts + self.grid[0] * self.grid[1])
        self.backbone = backbone
        self.pooling = (
            PrototypePooling(self.channels, parts=parts, size=size, position_in_values=position_in_values)
            if parts
            else None
        )
        self.neck: BNNeck | DualBNNeck = DualBNNeck(self.dim) if dual_neck else BNNeck(self.dim)
        self.transfer = transfer
        self.graph_classifier = None if transfer is None else classifier(self.dim, num_classes)
        if transfer is not None and transfer.dim != self.dim:
            raise ValueError(f"transfer must be of size {self.dim} as the features, got {transfer.dim}")

    def forward(self, images: Tensor, modality: Tensor) -> SAAIOutput:
        """Embed ``images`` (B, 3, H, W) of ``modality`` (B,)."""
        maps = self.backbone(images)
        if maps.ndim != 4 or maps.shape[1] != self.channels:
            raise ValueError(f"backbone must return (B, {self.channels}, h, w), got {tuple(maps.shape)}")
        if self.pooling is None:
            similarity = maps.new_empty(len(maps), 0, maps.shape[2] * maps.shape[3])
            pooled = F.adaptive_avg_pool2d(maps, self.grid).flatten(1)
        else:
            similarity, parts = self.pooling.pool(maps)
            pooled = parts.flatten(1)
            if self.grid != (1, 1):  # the last row of the parts is the mean of the whole map
                cells = F.adaptive_avg_pool2d(maps, self.grid).flatten(1)
                pooled = torch.cat([parts[:, :-1].flatten(1), cells], 1)
        features = self.neck(pooled, modality) if isinstance(self.neck, DualBNNeck) else self.neck(pooled)
        if self.transfer is None or self.graph_classifier is None:
            return SAAIOutput(features, pooled, similarity, feature_map=maps)
        transfer = self.transfer(features, modality)
        query, gallery = self.graph_classifier(transfer.query), self.graph_classifier(transfer.gallery)
        return SAAIOutput(features, pooled, similarity, transfer, query, gallery, maps)


class SAAICriterion(nn.Module):
    """L = L_id + L_cs + λ L_pd (SAAI, Eq. 11), and what may be added to it.

    Args:
        model: whose sizes the classifiers of L_id have; and whose transfer, where it has one, L_tie shares. Not
            registered here: its parameters stay the model's alone. So copy both together, or make a new criterion for a
            copied model.
        part_diversity: λ of L_pd, the paper's 0.5; 0 leaves it out. Without prototypes there is no L_pd.
        center_separation: weight of L_cs on F̂, the paper's 1; 0 leaves it out.
        normalize_centers: L_cs on F̂ scaled to length 1. The paper does not say it; but its margins are lengths, and the
            length of F̂ is the backbone's affair.
        affinity: `AffinityInferenceLoss` on the features (ours), None leaves it out.
        affinity_weight: its weight.
        cri: with ``model.transfer``, CIFT's L_tie; None leaves it out.

    Raises:
        ValueError: if a weight is negative or not finite, or there is ``cri`` and no transfer.
        TypeError: if a weight is not a number.
    """

    def __init__(
        self,
        model: SAAI,
        *,
        part_diversity: float = 0.5,
        center_separation: float = 1.0,
        normalize_centers: bool = False,
        affinity: AffinityInferenceLoss | None = None,
        affinity_weight: float = 1.0,
        cri: CRILoss | None = None,
    ) -> None:
        super().__init__()
        self.weights = {
            "part_diversity": part_diversity,
            "center_separation": center_separation,
            "affinity": affinity_weight,
        }
        for name, weight in self.weights.items():
            check_at_least_zero(name if name != "affinity" else "affinity_weight", weight)
        if cri is not None and model.transfer is None:
            raise ValueError("cri needs a model with a transfer, got one without")
        self._shared = (model.transfer, model.graph_classifier)  # a tuple, so that they are not registered
        self.identity = MutualIdentityLoss(model.dim, model.num_classes)
        self.part_diversity = PartDiversityLoss() if part_diversity and model.pooling is not None else None
        self.center_separation = CenterSeparationLoss(normalize=normalize_centers) if center_separation else None
        self.affinity, self.cri = affinity, cri

    def extra_repr(self) -> str:
        """Show the weights in ``repr``."""
        return f"weights={self.weights}"

    def forward(self, output: SAAIOutput, labels: Tensor, modality: Tensor) -> dict[str, Tensor]:
        """Named losses, as they enter the sum, and that sum ``"total"``; labels (B,), modality (B,)."""
        check_integers("labels", labels, len(output.features))
        losses = self.identity.terms(output.features, labels, modality)
        if self.part_diversity is not None:
            losses["part_diversity"] = self.part_diversity(output.similarity.sigmoid())
        if self.center_separation is not None:
            losses["center_separation"] = self.center_separation(output.pooled, labels)
        if self.affinity is not None:
            losses["affinity"] = self.affinity(output.features, labels, modality)
        for name, weight in self.weights.items():
            if name in losses:
                losses[name] = weight * losses[name]
        if output.transfer is not None and output.query_logits is not None and output.gallery_logits is not None:
            losses |= graph_losses(output.transfer, output.query_logits, output.gallery_logits, labels, modality)
            transfer, graph_classifier = self._shared
            if self.cri is not None and transfer is not None and graph_classifier is not None:
                losses["tie"] = self.cri(
                    output.features,
                    labels,
                    modality,
                    transfer=transfer,
                    classifier=graph_classifier,
                    output=output.transfer,
                )
        return losses | {"total": sum_losses(losses)}
