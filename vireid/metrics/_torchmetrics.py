"""The streaming metrics as `torchmetrics.Metric`s; imported only where torchmetrics is wanted."""

import copy
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor
from torchmetrics import Metric

from vireid.metrics.ranking import summary, widest
from vireid.metrics.streaming import stack_rows


class _Form(Metric):
    """Base of the results of ``as_torchmetrics``: a metric that computes, whose rows are a state of this one.

    The state is bytes, which no cast of the framework changes, in a list that is gathered without a reduction.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    rows: list[Tensor]

    def __init__(self, metric: Any, **options: Any) -> None:
        super().__init__(**options)
        self.metric = copy.copy(metric)
        self.metric.reset()
        self.add_state("rows", default=[], dist_reduce_fx=None)
        # Metrics of equal states share one of them in a MetricCollection. Only a metric and its clones have this one.
        self.add_state("instance", default=torch.tensor(list(uuid4().bytes), dtype=torch.uint8), dist_reduce_fx="max")

    def sync(self, *args: Any, **options: Any) -> None:
        """Gather the state; every process takes part with one tensor, also one without an update."""
        self.rows = [stack_rows(self.rows, self.device)]
        super().sync(*args, **options)

    def set_dtype(self, dst_type: str | torch.dtype) -> "_Form":
        """Return the metric unchanged: its state is exact."""
        return self

    def compute(self) -> dict[str, Tensor]:
        """Compute the metrics by name; NaN without a query, or if none has a true match."""
        results, length = self.metric._results(stack_rows(self.rows, self.device))
        m = summary(results, length, results)
        values = {f"rank{r}": m.rank(r) for r in (1, 5, 10, 20)} | {"mAP": m.mAP, "mINP": m.mINP}
        dtype = widest(self.device)
        return {name: torch.tensor(value, dtype=dtype, device=self.device) for name, value in values.items()}


class TorchRankingMetric(_Form):
    """Result of `RankingMetric.as_torchmetrics`."""

    def update(self, distance: Tensor, query_ids: Tensor, query_cameras: Tensor | None = None) -> None:
        """Add a block of queries, as `RankingMetric.update` does."""
        self.rows.append(self.metric._rows(distance, query_ids, query_cameras).to(self.device))


class TorchRetrievalMetric(_Form):
    """Result of `RetrievalMetric.as_torchmetrics`."""

    def update(self, features: Tensor, labels: Tensor, modality: Tensor, cameras: Tensor | None = None) -> None:
        """Add a batch of images, as `RetrievalMetric.update` does."""
        self.rows.append(self.metric._rows(features, labels, modality, cameras).to(self.device))
