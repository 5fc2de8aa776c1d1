"""CMC, mAP and mINP of distances, at once or in blocks, or of features in batches; diagnostics of the CIFT paper."""

from vireid.metrics.diagnostics import affinity_error_rate, affinity_quality, feature_margin
from vireid.metrics.ranking import RankMetrics, rank_metrics
from vireid.metrics.streaming import RankingMetric, RetrievalMetric

__all__ = [
    "RankMetrics",
    "RankingMetric",
    "RetrievalMetric",
    "affinity_error_rate",
    "affinity_quality",
    "feature_margin",
    "rank_metrics",
]
