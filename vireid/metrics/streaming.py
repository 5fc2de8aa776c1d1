"""Ranking metrics of queries in blocks, on one process or on many."""

from typing import TYPE_CHECKING, Generic, Self

import torch
import torch.distributed as dist
from torch import Tensor

from vireid._checks import Array, ArrayT, to_integers, to_matrix, to_tensor
from vireid.metrics.ranking import CMCOver, Exclude, Gallery, RankMetrics, check_options, summary

if TYPE_CHECKING:
    import torchmetrics

__all__ = ["RankingMetric"]


class RankingMetric(Generic[ArrayT]):
    """`rank_metrics` of a distance matrix that is never held whole: blocks of queries are added one by one.

    Only the first match, AP and INP of each query are kept: 24 bytes per query. The result equals `rank_metrics` of all
    blocks stacked in the order of their updates. Under torch.distributed each process adds its own queries, any number
    of them, and `compute`, called by all processes, returns to each the result of all queries, process by process.

    Args:
        gallery_ids: (Ng,) integers. The arrays of the result are NumPy if this is.
        gallery_cameras: (Ng,) integers, needed (and used) only with ``exclude``.
        exclude: gallery images that a query skips, as in `rank_metrics`.
        cmc_over: "images" or "identities", as in `rank_metrics`.

    Raises:
        ValueError: for an empty gallery, sizes that do not match, an unknown option or ``exclude`` without cameras.
        TypeError: for labels that are not integers.

    Example:
        >>> metric = RankingMetric(torch.tensor([7, 5, 7]))
        >>> metric.update(torch.tensor([[0.2, 0.1, 0.3]]), torch.tensor([7]))
        >>> metric.update(torch.tensor([[0.2, 0.1, 0.3]]), torch.tensor([5]))
        >>> metric.compute().cmc.tolist()
        [0.5, 1.0, 1.0]
    """

    def __init__(
        self,
        gallery_ids: ArrayT,
        gallery_cameras: Array | None = None,
        *,
        exclude: Exclude = None,
        cmc_over: CMCOver = "images",
    ) -> None:
        check_options(exclude, cmc_over)
        ids = to_tensor("gallery_ids", gallery_ids)
        length = len(ids) if ids.ndim else 0
        ids = to_integers("gallery_ids", gallery_ids, length, ids.device)
        if length == 0:
            raise ValueError("gallery_ids must name at least one gallery image, got none")
        cameras = None
        if exclude is not None:
            if gallery_cameras is None:
                raise ValueError(f"exclude={exclude!r} needs gallery_cameras, got None")
            cameras = to_integers("gallery_cameras", gallery_cameras, length, ids.device)
        self._given = gallery_ids
        self._gallery = Gallery(ids, cameras, exclude=exclude, cmc_over=cmc_over)
        self._results: list[Tensor] = []

    @property
    def device(self) -> torch.device:
        """Device of the state and of the result: that of the last block, or of `to`."""
        return self._gallery.ids.device

    def to(self, device: torch.device | str) -> Self:
        """Move the state to ``device``, as each update does, and return the object."""
        self._gallery = self._gallery.to(torch.empty(0, device=device).device)  # "cuda" becomes "cuda:0"
        self._results = [part.to(self.device) for part in self._results]
        return self

    def update(self, distance: Array, query_ids: Array, query_cameras: Array | None = None) -> None:
        """Add a block of queries.

        Args:
            distance: (n, Ng), smaller = nearer, finite; n may be 0.
            query_ids: (n,) integers.
            query_cameras: (n,) integers, needed (and used) only with ``exclude``.

        Raises:
            ValueError: for sizes that do not match, ``exclude`` without cameras, NaN or an infinity. Nothing is added.
            TypeError: for a ``distance`` that is not floating point or labels that are not integers.
        """
        results = self._rank(distance, query_ids, query_cameras)  # first, for it may replace the list
        self._results.append(results)

    def compute(self) -> RankMetrics[ArrayT]:
        """Compute the metrics of all queries so far, on all processes; more can be added afterwards.

        Raises:
            RuntimeError: if no query was added yet.
            ValueError: if no query has a true match.
        """
        results = _gather(self._stacked())
        if len(results) == 0:
            raise RuntimeError("compute() needs queries, got none so far: call update() first")
        metrics = summary(results, self._gallery.length, self._given)
        if metrics.valid_queries == 0:
            raise ValueError("query_ids must share an identity with gallery_ids: no query has a true match left")
        return metrics

    def reset(self) -> None:
        """Forget all queries and keep the gallery."""
        self._results = []

    def forward(self, distance: Array, query_ids: Array, query_cameras: Array | None = None) -> RankMetrics[ArrayT]:
        """Update, and return the metrics of only this block (NaN if none of its queries has a true match)."""
        self.update(distance, query_ids, query_cameras)
        return summary(self._results[-1], self._gallery.length, self._given)

    __call__ = forward

    def as_torchmetrics(self) -> "torchmetrics.Metric":
        """Return a `torchmetrics.Metric` of the same gallery and options, for MetricCollection and Lightning's logging.

        Its ``update`` takes tensors as this class does, its ``compute`` returns 0-dimensional float64 tensors by name:
        "rank1", "rank5", "rank10", "rank20", "mAP", "mINP", shares in [0, 1]. It starts without queries;
        torchmetrics synchronizes it.

        Raises:
            ImportError: if torchmetrics is not installed.
        """
        try:
            from vireid.metrics._torchmetrics import TorchRankingMetric
        except ImportError as error:
            raise ImportError("as_torchmetrics() needs torchmetrics: pip install torchmetrics") from error
        return TorchRankingMetric(self)

    def _rank(self, distance: Array, query_ids: Array, query_cameras: Array | None) -> Tensor:
        """Compute the results (n, 3) of a block, and move the state to its device."""
        d = to_matrix("distance", distance, columns=len(self._gallery.ids))
        q_ids = to_integers("query_ids", query_ids, len(d), d.device)
        q_cameras = None
        if self._gallery.exclude is not None:
            if query_cameras is None:
                raise ValueError(f"exclude={self._gallery.exclude!r} needs query_cameras, got None")
            q_cameras = to_integers("query_cameras", query_cameras, len(d), d.device)
        self.to(d.device)
        return self._gallery.rank(d, q_ids, q_cameras)

    def _stacked(self) -> Tensor:
        if len(self._results) != 1:
            empty = torch.empty(0, 3, dtype=torch.float64, device=self.device)
            self._results = [torch.cat([empty, *self._results])]
        return self._results[0]


def _gather(results: Tensor) -> Tensor:
    """Gather ``results`` (n, 3) of all processes, in their order; n may differ between them."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return results
    # NCCL sends only from GPUs, and the state of a process without queries may still be on the CPU.
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    mine = torch.tensor([len(results)], device=device)
    sizes = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, mine)
    counts = [int(size) for size in sizes]
    padded = torch.zeros(max(counts), 3, dtype=torch.float64, device=device)
    padded[: len(results)] = results
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).to(results.device)
