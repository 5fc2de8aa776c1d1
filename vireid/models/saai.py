"""SAAI: semantic alignment and affinity inference (Fang et al., ICCV 2023)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vireid._checks import check_at_least_zero, check_count, check_flag, check_module, check_option
from vireid.losses import AffinityInferenceLoss, CenterSeparationLoss, CRILoss, MutualIdentityLoss, PartDiversityLoss
from vireid.losses.identity import Means
from vireid.losses.parts import Maps
from vireid.models._common import Embedder, add_total, feature_size, transfer_classifier, transferred
from vireid.models.cift import losses_of_transfer
from vireid.nn import BNNeck, DualBNNeck, H2FTOutput, PrototypePooling
from vireid.nn.transfer import FeatureTransfer


class SAAIOutput(NamedTuple):
    """Output of `SAAI`, in training and in evaluation.

    Attributes:
        features: (B, d) F̃, the features behind the neck: they rank at test time, by `vireid.rerank.aim`.
        pooled: (B, d) F̂, the parts and the global feature before the neck.
        similarity: (B, p, h·w) P(T+E)ᵀ; its sigmoid is the prototypes' attention. p = 0 without prototypes.
        transfer: with CIFT's transfer on top: f_q, F_G and the affinities of this batch; else None.
        query_logits: (B, C) Y_g of f_q, or None.
        gallery_logits: (R, C) Y_g of F_G, or None.
        feature_map: (B, c, h, w) of the backbone, for losses on parts; None if left out.
    """

    features: Tensor
    pooled: Tensor
    similarity: Tensor
    transfer: H2FTOutput | None = None
    query_logits: Tensor | None = None
    gallery_logits: Tensor | None = None
    feature_map: Tensor | None = None


class SAAI(Embedder):
    """Backbone, prototype pooling beside the global feature, dual-branch BNNeck (SAAI §3.2).

        F̂ = [part_1, …, part_p, stripes, avg(F)],   F̃ = neck of its modality (F̂)

    Args:
        backbone: as in `Baseline`.
        num_classes: number C of training identities: of `SAAICriterion`'s classifiers, and of W_g with ``transfer``.
        parts: number p of prototypes; 0 leaves them out (Table 3's baseline).
        channels: c. Default: the backbone's ``out_channels``.
        grid: (rows, columns) that the map is averaged to for the global feature before its cells are stacked. Default:
            the backbone's ``grid`` where it has one, else (1, 1), avg(F) as in the paper.
        size: (h, w) of the backbone's map, for which the position embedding is made; any other works as well.
        position_in_values: as in `vireid.nn.PrototypePooling`.
        dual_neck: one BNNeck per modality; False: one for both (the paper's baseline).
        transfer: as in `AGW`; CIFT's `H2FT` makes the model CIFT on SAAI's features (our choice; in no paper).
        stripes: number of horizontal stripes whose means join F̂. The paper's baseline has "horizontal part features":
            ``parts=0, stripes=6`` (the number is our choice).
        global_feature: whether the global feature joins F̂. The paper has it beside the prototypes' parts, and does not
            say whether the baseline has it beside the stripes.

    Attributes:
        dim: d, the size of the features.

    Raises:
        ValueError: if the channels are neither given nor known, F̂ would be empty, the transfer is of another size, or,
            when called, if the backbone returns other channels.
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
        stripes: int = 0,
        global_feature: bool = True,
    ) -> None:
        super().__init__(backbone, num_classes, grid)
        parts, self.stripes = check_count("parts", parts, minimum=0), check_count("stripes", stripes, minimum=0)
        check_flag("dual_neck", dual_neck)
        self.global_feature = check_flag("global_feature", global_feature)
        if not (parts or stripes or global_feature):
            raise ValueError("global_feature must be True without parts and stripes, got False")
        if channels is None:
            channels = feature_size(backbone, (1, 1), name="channels")
        self.channels = check_count("channels", channels)
        self.dim = self.channels * (parts + self.stripes + (self.cells if global_feature else 0))
        self.pooling: PrototypePooling | None = None
        if parts:
            self.pooling = PrototypePooling(
                self.channels, parts=parts, size=size, position_in_values=position_in_values
            )
        self.neck: BNNeck | DualBNNeck = DualBNNeck(self.dim) if dual_neck else BNNeck(self.dim)
        self.transfer, self.graph_classifier = transfer, transfer_classifier(transfer, self.dim, self.num_classes)

    def forward(self, images: Tensor, modality: Tensor) -> SAAIOutput:
        """Embed ``images`` (B, 3, H, W) of ``modality`` (B,)."""
        maps = self.feature_map(images, modality, self.channels)
        similarity, pooled = self._pool(maps)
        features = self.neck(pooled, modality) if isinstance(self.neck, DualBNNeck) else self.neck(pooled)
        graph = transferred(self.transfer, self.graph_classifier, features, modality)
        return SAAIOutput(features, pooled, similarity, *graph, maps)

    def _pool(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Compute P(T+E)ᵀ (B, p, h·w) and F̂ (B, d)."""
        joined = []
        similarity = maps.new_empty(maps.shape[0], 0, maps.shape[2] * maps.shape[3])
        if self.pooling is not None:
            similarity, parts = self.pooling.pool(maps)
            if self.global_feature and self.cells == 1 and not self.stripes:
                return similarity, parts.flatten(1)  # the last row of the parts is the mean of the whole map
            joined.append(parts[:, :-1].flatten(1))
        if self.stripes:
            joined.append(F.adaptive_avg_pool2d(maps, (self.stripes, 1)).flatten(1))
        if self.global_feature:
            joined.append(self.stack_cells(maps))
        return similarity, torch.cat(joined, 1)


class SAAICriterion(nn.Module):
    """L = L_id + L_cs + λ L_pd (SAAI, Eq. 11), and losses that may be added to it.

    In several processes model and criterion belong in one module that is wrapped; see
    `vireid.losses.MutualIdentityLoss`.

    Args:
        model: the `SAAI` for whose sizes the classifiers of L_id are made, and whose transfer, if it has one, L_tie
            shares. It is not registered here: its parameters belong to the model only. So copy both together, or make a
            new criterion for a copied model.
        part_diversity: λ of L_pd, 0.5 in the paper; 0 leaves it out. Without prototypes there is no L_pd.
        center_separation: weight of L_cs on F̂, 1 in the paper; 0 leaves it out.
        normalize_centers: L_cs on F̂ scaled to length 1 (our choice; off by default, as the paper does not mention it).
            Its margins are lengths, and the length of F̂ depends on the backbone.
        affinity: `AffinityInferenceLoss` on the features (our choice); None leaves it out.
        affinity_weight: its weight.
        cri: CIFT's L_tie, for a model with ``transfer``; None leaves it out.
        maps: of L_pd, as in `vireid.losses.PartDiversityLoss`: of the sigmoid maps S (our choice, as in the authors'
            released model) or of the ``"logits"``, as printed.
        identity_means: of L_id, ``means`` of `vireid.losses.MutualIdentityLoss`.
        shared_weight: of L_id's shared classifier, as there, like the next two.
        specific_weight: likewise.
        mutual_weight: likewise.

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
        maps: Maps = "sigmoid",
        identity_means: Means = "modality",
        shared_weight: float = 1.0,
        specific_weight: float = 1.0,
        mutual_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_module("model", model, SAAI)
        if affinity is not None:
            check_module("affinity", affinity, AffinityInferenceLoss)
        check_option("identity_means", identity_means, ("modality", "batch"))
        check_flag("normalize_centers", normalize_centers)
        self.weights = {
            "part_diversity": check_at_least_zero("part_diversity", part_diversity),
            "center_separation": check_at_least_zero("center_separation", center_separation),
            "affinity": check_at_least_zero("affinity_weight", affinity_weight),
        }
        self.identity = MutualIdentityLoss(
            model.dim,
            model.num_classes,
            means=identity_means,
            shared_weight=shared_weight,
            specific_weight=specific_weight,
            mutual_weight=mutual_weight,
        )
        diversity = PartDiversityLoss(maps=maps)
        self.part_diversity = diversity if part_diversity and model.pooling is not None else None
        self.center_separation = CenterSeparationLoss(normalize=normalize_centers) if center_separation else None
        self.affinity, self.cri = affinity, cri
        self._transfer_losses = losses_of_transfer(model.transfer, model.graph_classifier, cri)

    def extra_repr(self) -> str:
        """Show the weights in ``repr``."""
        return f"weights={self.weights}"

    def forward(self, output: SAAIOutput, labels: Tensor, modality: Tensor) -> dict[str, Tensor]:
        """Compute the named losses, already weighted, and their sum ``"total"``; labels (B,), modality (B,)."""
        losses = self.identity.terms(output.features, labels, modality)
        if self.part_diversity is not None:
            maps = output.similarity.sigmoid() if self.part_diversity.maps == "sigmoid" else output.similarity
            losses["part_diversity"] = self.part_diversity(maps)
        if self.center_separation is not None:
            losses["center_separation"] = self.center_separation(output.pooled, labels)
        if self.affinity is not None:
            losses["affinity"] = self.affinity(output.features, labels, modality)
        return add_total(losses | self._transfer_losses(output, labels, modality), self.weights)
