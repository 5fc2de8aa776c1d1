"""Losses: features or logits, labels and modality in any order -> a scalar.

Each is a module and, where it holds no parameters, also a function in snake case.
"""

from vireid.losses.centers import HCCLoss, hcc_loss
from vireid.losses.intervention import CRILoss, query_gallery_cross_entropy

__all__ = ["CRILoss", "HCCLoss", "hcc_loss", "query_gallery_cross_entropy"]
