"""The streaming metrics as `torchmetrics.Metric`s; imported only where torchmetrics is wanted."""

from typing import Any
from uuid import uuid4

import torch
from torch import Tensor
from torchmetrics import Metric

from vireid.metrics._rows import stack_rows
from vireid.metrics.ranking import summary, widest

__all__ = ["TorchMetric", "TorchRankingMetric", "TorchRetrievalMetric"]


class TorchMetric(Metric):
    """Base of the results of ``as_torchmetrics``.

    ``core`` is a metric of `vireid.metrics.streaming` that computes; the states are kept here: bytes, which no cast of
    the framework changes, in lists that are gathered without a reduction.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, core: Any, **options: Any) -> None:
        super().__init__(**options)
        self.core = core
        for name in core._states:
            self.add_state(name, default=[], dist_reduce_fx=None)
        # Metrics of equal states share one of them in a MetricCollection. Only a metric and its clones have this one.
        self.add_state("instance", default=torch.tensor(list(uuid4().bytes), dtype=torch.uint8), dist_reduce_fx="max")

    def _add(self, *inputs: Any) -> None:
        for name, rows in zip(self.core._states, self.core._rows(*inputs), strict=True):
            getattr(self, name).append(rows.to(self.device))

    def sync(self, *args: Any, **options: Any) -> None:
        """Gather the states; every process takes part with one tensor per state, also one without an update."""
        for name in self.core._states:
            setattr(self, name, [stack_rows(getattr(self, name), self.device)])
        super().sync(*args, **options)

    def set_dtype(self, dst_type: str | torch.dtype) -> "TorchMetric":
        """Return the metric unchanged: its state is exact."""
        return self

    def compute(self) -> dict[str, Tensor]:
        """Compute the metrics by name; NaN if no query has a true match, or there is none."""
        rows = [stack_rows(getattr(self, name), self.device) for name in self.core._states]
        results, length = self.core._results(*rows)
        m = summary(results, length, results)
        values = {f"rank{r}": m.rank(r) for r in (1, 5, 10, 20)} | {"mAP": m.mAP, "mINP": m.mINP}
        dtype = widest(self.device)
        return {name: torch.tensor(value, dtype=dtype, device=self.device) for name, value in values.items()}


class TorchRankingMetric(TorchMetric):
    """Result of `RankingMetric.as_torchmetrics`."""

    def update(self, distance: Tensor, query_ids: Tensor, query_cameras: Tensor | None = None) -> None:
        """Add a block of queries, as `RankingMetric.update` does."""
        self._add(distance, query_ids, query_cameras)


class TorchRetrievalMetric(TorchMetric):
    """Result of `RetrievalMetric.as_torchmetrics`."""

    def update(self, features: Tensor, labels: Tensor, modality: Tensor, cameras: Tensor | None = None) -> None:
        """Add a batch of images, as `RetrievalMetric.update` does."""
        self._add(features, labels, modality, cameras)
