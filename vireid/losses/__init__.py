"""Losses: features or logits, labels and modality in any order -> a scalar.

Every loss is called as ``loss(x, labels, modality)`` and is both a module, which holds its settings and parameters, and
a function in snake case. (The two losses of a graph's classifier, whose rows are queries and gallery images, are only
functions.) The module's docstring has the equation; keyword-only arguments of the function are its options.

All of them raise a ``ValueError`` if a shape or an option is wrong, and a ``TypeError`` if features are not floating
point, labels or modality are not integers, a mask is not bool, or an option is not a number. Averages are over the
local batch of a process. The loss of a batch without any pair to compare is 0; a module that compares the modalities
warns if its first batch is such.

Codes of ``modality`` other than 0 and 1, and labels that a classifier lacks, are an error on the CPU at every call. On
other devices only modules look, at the modality of their first call, for which a GPU waits once. All losses compile
with ``torch.compile(fullgraph=True)``, where no values are looked at and no shape depends on them.

Losses of distances want features of about 1e-19 to 1e19 in float32, where squares are finite; on the CPU and outside of
a compiler larger and smaller ones are scaled first.
"""

from vireid.losses.affinity import AffinityInferenceLoss, affinity_inference_loss, affinity_inference_scores
from vireid.losses.centers import CenterSeparationLoss, HCCLoss, center_separation_loss, hcc_loss
from vireid.losses.hetero_center import (
    HeteroCenterLoss,
    HeteroCenterTripletLoss,
    hetero_center_loss,
    hetero_center_triplet_loss,
)
from vireid.losses.identity import MutualIdentityLoss, mutual_identity_loss
from vireid.losses.intervention import CRILoss, cri_loss
from vireid.losses.parts import PartContrastiveLoss, PartDiversityLoss, part_contrastive_loss, part_diversity_loss
from vireid.losses.query_gallery import query_gallery_cross_entropy, query_gallery_hcc_loss
from vireid.losses.transport import GraphOTLoss, graph_ot_loss
from vireid.losses.triplet import (
    CrossModalityTripletLoss,
    WeightedRegularizedTripletLoss,
    cross_modality_triplet_loss,
    weighted_regularized_triplet_loss,
)

__all__ = [
    "AffinityInferenceLoss",
    "CRILoss",
    "CenterSeparationLoss",
    "CrossModalityTripletLoss",
    "GraphOTLoss",
    "HCCLoss",
    "HeteroCenterLoss",
    "HeteroCenterTripletLoss",
    "MutualIdentityLoss",
    "PartContrastiveLoss",
    "PartDiversityLoss",
    "WeightedRegularizedTripletLoss",
    "affinity_inference_loss",
    "affinity_inference_scores",
    "center_separation_loss",
    "cri_loss",
    "cross_modality_triplet_loss",
    "graph_ot_loss",
    "hcc_loss",
    "hetero_center_loss",
    "hetero_center_triplet_loss",
    "mutual_identity_loss",
    "part_contrastive_loss",
    "part_diversity_loss",
    "query_gallery_cross_entropy",
    "query_gallery_hcc_loss",
    "weighted_regularized_triplet_loss",
]
