"""`RankingMetric` as a `torchmetrics.Metric`; imported only where torchmetrics is wanted."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics import Metric

from vireid.metrics.ranking import summary

if TYPE_CHECKING:
    from vireid.metrics.streaming import RankingMetric

__all__ = ["TorchRankingMetric"]


class TorchRankingMetric(Metric):
    """Result of `RankingMetric.as_torchmetrics`."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    results: list[Tensor]

    def __init__(self, metric: "RankingMetric[Any]", **options: Any) -> None:
        super().__init__(**options)
        self.metric = metric
        self.add_state("results", default=[], dist_reduce_fx="cat")

    def update(self, distance: Tensor, query_ids: Tensor, query_cameras: Tensor | None = None) -> None:
        """Add a block of queries, as `RankingMetric.update` does."""
        self.results.append(self.metric._rank(distance, query_ids, query_cameras))

    def compute(self) -> dict[str, Tensor]:
        """Compute the metrics by name; NaN if no query has a true match."""
        parts = self.results if isinstance(self.results, list) else [self.results]  # one tensor once synchronized
        results = torch.cat(parts) if parts else torch.empty(0, 3)
        if len(results) == 0:
            raise RuntimeError("compute() needs queries, got none so far: call update() first")
        m = summary(results, self.metric._gallery.length, results)
        values = {f"rank{r}": m.rank(r) for r in (1, 5, 10, 20)} | {"mAP": m.mAP, "mINP": m.mINP}
        return {name: torch.tensor(value, dtype=torch.float64, device=results.device) for name, value in values.items()}
