"""SAAI and its baseline from plain settings."""

from dataclasses import dataclass
from typing import Literal

from vireid import models
from vireid._checks import check_at_least_zero, check_count, check_option
from vireid.losses import AffinityInferenceLoss
from vireid.training.methods._settings import AlignedSettings, Built, build_backbone, map_size

SAAI_ROWS = {
    "baseline": "no prototypes, one neck for both modalities, L_id only; a ResNet-50's map in 6 horizontal parts",
    "saai": "prototypes, a neck for each modality, L_id + L_cs + λ L_pd",
}


@dataclass(frozen=True, kw_only=True)
class SAAISettings(AlignedSettings):
    """Settings of SAAI or its baseline.

    Attributes:
        ablation: a key of `SAAI_ROWS`.
        parts: p, prototypes; 0 leaves them out, as the baseline does.
        position_in_values: whether parts are pooled from T + E instead of T.
        global_feature: whether the features hold the map's mean. Default: beside prototypes, not beside the baseline's
            horizontal parts; a backbone that stacks its cells has no such parts.
        part_diversity: λ, the weight of L_pd; 0 leaves it out.
        maps: L_pd's maps: S, as released, or P Tᵀ, as printed.
        center_separation: weight of L_cs, 1 in the paper; 0 leaves it out.
        normalize_centers: L_cs on rows of length 1. Its margins are lengths, and the paper's Eq. 5 does not scale the
            rows.
        identity_means: whether L_id's specific terms are a mean per modality, as released, or one over the batch.
        shared_weight: weight of L_id's cross-entropy of the shared classifier.
        specific_weight: weight of the modalities' own classifiers.
        mutual_weight: weight of L_id's mutual learning.
        affinity_loss: weight of AIM's loss (our choice); 0 leaves it out.
        amend: False: its control, the loss of the cosines only, without d*.
        transfer: add CIFT's H2FT, the losses of its graph, and CRI (our choice).
    """

    ablation: str = "saai"
    parts: int = 7
    position_in_values: bool = False
    global_feature: bool | None = None
    part_diversity: float = 0.5
    maps: Literal["sigmoid", "logits"] = "sigmoid"
    center_separation: float = 0.2
    normalize_centers: bool = True
    identity_means: Literal["modality", "batch"] = "modality"
    shared_weight: float = 1.0
    specific_weight: float = 1.0
    mutual_weight: float = 1.0
    affinity_loss: float = 0.0
    amend: bool = True
    transfer: bool = False

    def build(self, num_classes: int, size: tuple[int, int]) -> Built:
        """Return the model, whose position embedding is made for ``size``, and the criterion."""
        check_option("ablation", self.ablation, SAAI_ROWS)
        check_count("parts", self.parts, minimum=0)
        for name in ("part_diversity", "center_separation", "affinity_loss"):
            check_at_least_zero(name, getattr(self, name))
        if not self.amend and not self.affinity_loss:
            raise ValueError("amend=False goes with affinity_loss, which is 0")
        network = build_backbone(self.backbone, self.weights, self.last_stride)
        baseline = self.ablation == "baseline"
        parts = 0 if baseline else self.parts
        stripes = 6 if baseline and not hasattr(network, "grid") else 0
        with_global = not stripes if self.global_feature is None else self.global_feature
        graph = cri = affinity = None
        if self.transfer:
            dim = (parts + stripes) * models.feature_size(network, (1, 1))
            graph, cri = self.transfer_of(dim + (models.feature_size(network) if with_global else 0))
        if self.affinity_loss:
            # Cosines reach 1, amended scores more: each at the temperature that suited it in rough tries.
            affinity = AffinityInferenceLoss(amend=self.amend, temperature=0.3 if self.amend else 0.1)
        model = models.SAAI(
            network,
            num_classes,
            parts=parts,
            stripes=stripes,
            global_feature=with_global,
            size=map_size(network, size),
            position_in_values=self.position_in_values,
            dual_neck=not baseline,
            transfer=graph,
        )
        criterion = models.SAAICriterion(
            model,
            part_diversity=0.0 if baseline else self.part_diversity,
            center_separation=0.0 if baseline else self.center_separation,
            normalize_centers=self.normalize_centers,
            maps=self.maps,
            identity_means=self.identity_means,
            shared_weight=self.shared_weight,
            specific_weight=self.specific_weight,
            mutual_weight=self.mutual_weight,
            affinity=affinity,
            affinity_weight=self.affinity_loss,
            cri=cri,
        )
        return model, self.aligned(criterion)
