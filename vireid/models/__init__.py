"""The components wired into whole models: model(images, modality) -> named tensors, each beside its criterion."""

from vireid.models._common import feature_size
from vireid.models.agw import AGW, AGWCriterion, AGWOutput
from vireid.models.aligned import AlignedCriterion
from vireid.models.baseline import Baseline, BaselineCriterion, BaselineOutput
from vireid.models.cift import CIFT, CIFTCriterion, CIFTOutput, graph_losses, shared_losses
from vireid.models.g2da import G2DA, G2DACriterion, G2DAOutput
from vireid.models.saai import SAAI, SAAICriterion, SAAIOutput

__all__ = [
    "AGW",
    "CIFT",
    "G2DA",
    "SAAI",
    "AGWCriterion",
    "AGWOutput",
    "AlignedCriterion",
    "Baseline",
    "BaselineCriterion",
    "BaselineOutput",
    "CIFTCriterion",
    "CIFTOutput",
    "G2DACriterion",
    "G2DAOutput",
    "SAAICriterion",
    "SAAIOutput",
    "feature_size",
    "graph_losses",
    "shared_losses",
]
