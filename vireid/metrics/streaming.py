"""Ranking metrics of distances in blocks, or of features in batches, on one process or on many."""

import copy
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, Self

import torch
from torch import Tensor

from vireid import INFRARED, VISIBLE
from vireid._checks import (
    Array,
    ArrayT,
    check_finite,
    check_modality,
    check_option,
    check_tensor,
    to_integers,
    to_matrix,
    to_tensor,
)
from vireid.metrics._rows import gather_rows, stack_rows
from vireid.metrics.ranking import (
    CMCOver,
    Exclude,
    Gallery,
    RankMetrics,
    check_cameras,
    check_matches,
    check_options,
    summary,
    widest,
)
from vireid.neighbors._scores import cosine_distance

if TYPE_CHECKING:
    import torchmetrics

__all__ = ["RankingMetric", "RetrievalMetric"]

_BLOCK = 2**24  # distances at a time
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class _Streaming(Generic[ArrayT]):
    """Base of the metrics: what their updates add, as bytes, and its exchange between processes."""

    _states: ClassVar[tuple[str, ...]]
    _exclude: Exclude
    _given: ArrayT  # arrays of the result are NumPy if this is
    _device: torch.device
    _kept: list[list[Tensor]]

    @property
    def device(self) -> torch.device:
        """Device of the state and of the result: that of the last update, or of `to`."""
        return self._device

    def to(self, device: torch.device | str) -> Self:
        """Move the state to ``device``, as each update does, and return the object."""
        self._device = torch.empty(0, device=device).device  # "cuda" becomes "cuda:0"
        self._kept = [[part.to(self._device) for part in parts] for parts in self._kept]
        return self

    def compute(self) -> RankMetrics[ArrayT]:
        """Compute the metrics of all updates so far, on all processes; more can follow.

        Raises:
            RuntimeError: if nothing to rank was added yet.
            ValueError: if no query has a true match.
        """
        self._kept = [[stack_rows(parts, self._device)] for parts in self._kept]
        results, length = self._results(*(stack_rows(gather_rows(x), self._device) for (x,) in self._kept))
        if len(results) == 0:
            raise RuntimeError("compute() needs queries and a gallery, got none so far: call update() first")
        check_matches(results, self._exclude)
        return summary(results, length, self._given)

    def reset(self) -> None:
        """Forget all updates."""
        self._kept = [[] for _ in self._states]

    def _rows(self, *inputs: Array | None) -> list[Tensor]:
        """Return what an update adds to the states: bytes (n, w) each."""
        raise NotImplementedError

    def _results(self, *states: Tensor) -> tuple[Tensor, int]:
        """Return the results (Nq, 3) of all rows and the number of ranks."""
        raise NotImplementedError

    def _add(self, *inputs: Array | None) -> list[Tensor]:
        rows = self._rows(*inputs)
        for parts, part in zip(self.to(rows[0].device)._kept, rows, strict=True):
            parts.append(part)
        return rows

    def _form(self, name: str) -> "torchmetrics.Metric":
        """Return the form for torchmetrics of that name, of a copy without updates."""
        try:
            forms = importlib.import_module("vireid.metrics._torchmetrics")
        except ImportError as error:
            raise ImportError("as_torchmetrics() needs torchmetrics: pip install torchmetrics") from error
        core = copy.copy(self)
        core.reset()
        form: torchmetrics.Metric = getattr(forms, name)(core)
        return form


class RankingMetric(_Streaming[ArrayT]):
    """`rank_metrics` of a distance matrix that is never held whole: blocks of queries are added one by one.

    Only the first match, AP and INP of each query are kept: 24 bytes per query. The result equals `rank_metrics` of all
    blocks stacked in the order of their updates. Under torch.distributed each process adds its own queries, any number
    of them, and `compute`, called by all processes, returns to each the result of all queries, process by process.

    Args:
        gallery_ids: (Ng,) integers. The arrays of the result are NumPy if this is.
        gallery_cameras: (Ng,) integers, used, and needed, only with ``exclude``.
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

    _states = ("ranks",)

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
        check_tensor("gallery_ids", ids, "N", kind="integer")
        ids = to_integers("gallery_ids", ids, len(ids), ids.device)
        if not len(ids):
            raise ValueError("gallery_ids must name at least one gallery image, got none")
        cameras = check_cameras("gallery_cameras", gallery_cameras, exclude, ids)
        self._given, self._exclude, self._device = gallery_ids, exclude, ids.device
        self._gallery = Gallery(ids, cameras, exclude=exclude, cmc_over=cmc_over)
        self.reset()

    def update(self, distance: Array, query_ids: Array, query_cameras: Array | None = None) -> None:
        """Add a block of queries.

        Args:
            distance: (n, Ng), smaller = nearer, finite; n may be 0.
            query_ids: (n,) integers.
            query_cameras: (n,) integers, used, and needed, only with ``exclude``.

        Raises:
            ValueError: for sizes that do not match, ``exclude`` without cameras, NaN or an infinity. Nothing is added.
            TypeError: for a ``distance`` that is not floating point or labels that are not integers.
        """
        self._add(distance, query_ids, query_cameras)

    def forward(self, distance: Array, query_ids: Array, query_cameras: Array | None = None) -> RankMetrics[ArrayT]:
        """Update, and return the metrics of only this block (NaN if none of its queries has a true match)."""
        return summary(*self._results(*self._add(distance, query_ids, query_cameras)), self._given)

    __call__ = forward

    def as_torchmetrics(self) -> "torchmetrics.Metric":
        """Return a `torchmetrics.Metric` of the same gallery and options, for MetricCollection and Lightning's logging.

        Its ``update`` takes tensors as this class does. Its ``compute`` returns "rank1", "rank5", "rank10", "rank20",
        "mAP" and "mINP", shares in [0, 1], as 0-dimensional tensors on its device: float64, or float32 where the device
        has no float64. They are NaN, where this class raises, if no query has a true match or none was added, as in
        Lightning's sanity check. It starts without queries; torchmetrics synchronizes it.

        Raises:
            ImportError: if torchmetrics is not installed.
        """
        return self._form("TorchRankingMetric")

    def _rows(self, *inputs: Array | None) -> list[Tensor]:
        """Return the results of a block as bytes."""
        distance, query_ids, query_cameras = inputs
        d = to_matrix("distance", distance, columns=len(self._gallery.ids))
        q_ids = to_integers("query_ids", query_ids, len(d), d.device)
        q_cameras = check_cameras("query_cameras", query_cameras, self._exclude, q_ids)
        self._gallery = self._gallery.to(d.device)
        return [self._gallery.rank(d, q_ids, q_cameras).view(torch.uint8)]

    def _results(self, *states: Tensor) -> tuple[Tensor, int]:
        """Return all results and the number of ranks."""
        (ranks,) = states
        if not len(ranks):
            return _nothing(ranks.device), self._gallery.length
        return ranks.view(torch.float32 if ranks.shape[1] == 12 else torch.float64), self._gallery.length


class RetrievalMetric(_Streaming[Array]):
    """`rank_metrics` of features in batches of both modalities, in any order: queries of one, a gallery of the other.

    Only features and annotations are kept, and ranked by `compute`, a block of distances at a time. The result equals
    `rank_metrics` of all images in the order of their updates. Under torch.distributed each process adds its own
    images, any number of them (an image added by two counts twice), and `compute`, called by all processes, returns to
    each the result of all images, process by process.

    Args:
        direction: "visible_to_infrared" or "infrared_to_visible", query to gallery.
        exclude: gallery images that a query skips, as in `rank_metrics`.
        cmc_over: "images" or "identities", as in `rank_metrics`.
        distance: "cosine", or a function (query (n, d), gallery (Ng, d)) -> distance (n, Ng), smaller = nearer. It is
            called for blocks of queries, each of which it must rank by itself: not a re-ranker that uses other queries.

    Raises:
        ValueError: for an unknown option, or a re-ranker whose ``uses`` is "transductive".

    Example:
        >>> metric = RetrievalMetric("visible_to_infrared")
        >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> metric.update(x, labels=torch.tensor([4, 4, 5]), modality=torch.tensor([0, 1, 1]))
        >>> metric.compute().mAP
        1.0
    """

    _states = ("features", "annotations")

    def __init__(
        self,
        direction: Literal["visible_to_infrared", "infrared_to_visible"] = "visible_to_infrared",
        *,
        exclude: Exclude = None,
        cmc_over: CMCOver = "images",
        distance: Literal["cosine"] | Callable[[Tensor, Tensor], Array] = "cosine",
    ) -> None:
        check_option("direction", direction, ("visible_to_infrared", "infrared_to_visible"))
        check_options(exclude, cmc_over)
        if isinstance(distance, type) or not callable(distance):
            check_option("distance", distance, ("cosine", "a function"))
        if getattr(distance, "uses", None) == "transductive":
            raise ValueError(f"distance must rank each query by itself, got {distance!r}, which is transductive")
        self._cmc_over, self._distance = cmc_over, distance
        self._query = VISIBLE if direction == "visible_to_infrared" else INFRARED
        self._exclude, self._given = exclude, torch.empty(0)
        self._device = self._given.device
        self.reset()

    def update(self, features: Array, labels: Array, modality: Array, cameras: Array | None = None) -> None:
        """Add a batch of images.

        Args:
            features: (n, d), finite, of one d and dtype in all updates; n may be 0. The arrays of the result are NumPy
                if the last ones are.
            labels: (n,) integers, the identities.
            modality: (n,) 0 visible, 1 infrared.
            cameras: (n,) integers, used, and needed, only with ``exclude``.

        Raises:
            ValueError: for sizes that do not match, another modality, ``exclude`` without cameras, NaN or an infinity.
                Nothing is added.
            TypeError: for ``features`` that are not floating point or other arrays that are not integers.
        """
        self._add(features, labels, modality, cameras)
        self._given = features

    def as_torchmetrics(self) -> "torchmetrics.Metric":
        """Return a `torchmetrics.Metric` of the same options; its results are those of `RankingMetric.as_torchmetrics`.

        They are also NaN as long as one modality is missing. ``forward`` ranks the images of its batch.

        Raises:
            ImportError: if torchmetrics is not installed.
        """
        return self._form("TorchRetrievalMetric")

    def _rows(self, *inputs: Array | None) -> list[Tensor]:
        """Return features and annotations as bytes."""
        features, labels, modality, cameras = inputs
        x = to_matrix("features", features)
        if not x.shape[1]:
            raise ValueError(f"features must have at least one column, got shape {tuple(x.shape)}")
        given = [to_integers(name, y, len(x), x.device) for name, y in (("labels", labels), ("modality", modality))]
        places = check_cameras("cameras", cameras, self._exclude, given[0])
        given.append(given[0] if places is None else places)
        given.append(torch.full_like(given[0], _DTYPES.index(x.dtype)))
        check_finite("features", x)
        check_modality("modality", given[1].cpu())
        kept = (
            x.clone(memory_format=torch.contiguous_format),
            torch.stack(given, dim=1),
        )  # x may be a buffer of the caller
        return [y.view(torch.uint8) for y in kept]

    def _results(self, *states: Tensor) -> tuple[Tensor, int]:
        """Rank the queries of all rows against their gallery."""
        features, annotations = states
        if not len(features):
            return _nothing(features.device), 1
        ids, modality, cameras, dtypes = annotations.view(torch.int64).T
        if bool((dtypes != dtypes[0]).any()):
            raise ValueError("features must have one dtype in all updates and processes, got several")
        x, query = features.view(_DTYPES[int(dtypes[0])]), modality == self._query
        if bool(query.all()) or not bool(query.any()):
            return _nothing(features.device), 1
        queries, places = x[query], cameras[query]
        images = x[~query]
        gallery = Gallery(
            ids[~query],
            None if self._exclude is None else cameras[~query],
            exclude=self._exclude,
            cmc_over=self._cmc_over,
        )
        blocks = torch.arange(len(queries), device=x.device).split(max(1, _BLOCK // len(images)))
        found = [gallery.rank(self._compare(queries[b], images), ids[query][b], places[b]) for b in blocks]
        return torch.cat(found), gallery.length

    def _compare(self, query: Tensor, gallery: Tensor) -> Tensor:
        """Return the distance (n, Ng) of a block of queries."""
        if callable(self._distance):
            distance = to_matrix("distance's result", self._distance(query, gallery), columns=len(gallery))
            check_tensor("distance's result", distance, "n Ng", n=len(query))
            return distance.to(query.device)
        with torch.autocast(query.device.type, enabled=False):
            return cosine_distance(query, gallery)


def _nothing(device: torch.device) -> Tensor:
    """Return the results (0, 3) of no query."""
    return torch.empty(0, 3, dtype=widest(device), device=device)
