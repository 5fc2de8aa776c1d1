"""Ranking metrics (CMC, mAP, mINP), at once or block by block, and the diagnostics of the CIFT paper."""

from vireid.metrics.diagnostics import affinity_error_rate, affinity_quality, feature_margin
from vireid.metrics.ranking import RankMetrics, rank_metrics
from vireid.metrics.streaming import RankingMetric

__all__ = [
    "RankMetrics",
    "RankingMetric",
    "affinity_error_rate",
    "affinity_quality",
    "feature_margin",
    "rank_metrics",
]
