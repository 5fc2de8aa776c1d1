"""The components wired into whole models: model(images, modality) -> named tensors, each beside its criterion."""

from vireid.models.baseline import Baseline, BaselineCriterion, BaselineOutput, feature_size
from vireid.models.cift import CIFT, CIFTCriterion, CIFTOutput

__all__ = ["CIFT", "Baseline", "BaselineCriterion", "BaselineOutput", "CIFTCriterion", "CIFTOutput", "feature_size"]
