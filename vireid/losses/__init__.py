"""Losses: features or logits, labels and modality in any order -> a scalar.

Each is a module and also a function in snake case, which `CRILoss` alone is not; `mutual_identity_loss` is given the
classifiers that its module holds.
"""

from vireid.losses.affinity import AffinityInferenceLoss, affinity_inference_loss, affinity_inference_scores
from vireid.losses.centers import CenterSeparationLoss, HCCLoss, center_separation_loss, hcc_loss
from vireid.losses.identity import MutualIdentityLoss, mutual_identity_loss
from vireid.losses.intervention import CRILoss, query_gallery_cross_entropy
from vireid.losses.parts import PartContrastiveLoss, PartDiversityLoss, part_contrastive_loss, part_diversity_loss
from vireid.losses.transport import GraphOTLoss, graph_ot_loss
from vireid.losses.triplet import CrossModalityTripletLoss, cross_modality_triplet_loss

__all__ = [
    "AffinityInferenceLoss",
    "CRILoss",
    "CenterSeparationLoss",
    "CrossModalityTripletLoss",
    "GraphOTLoss",
    "HCCLoss",
    "MutualIdentityLoss",
    "PartContrastiveLoss",
    "PartDiversityLoss",
    "affinity_inference_loss",
    "affinity_inference_scores",
    "center_separation_loss",
    "cross_modality_triplet_loss",
    "graph_ot_loss",
    "hcc_loss",
    "mutual_identity_loss",
    "part_contrastive_loss",
    "part_diversity_loss",
    "query_gallery_cross_entropy",
]
