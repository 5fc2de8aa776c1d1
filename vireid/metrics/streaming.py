"""Ranking metrics of distances in blocks, or of features in batches, on one process or on many."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, Self

import torch
import torch.distributed as dist
from torch import Tensor

from vireid import INFRARED, VISIBLE
from vireid._checks import (
    Array,
    ArrayT,
    check_finite,
    check_modality,
    check_option,
    check_tensor,
    check_values,
    extra,
    to_integers,
    to_matrix,
    to_tensor,
)
from vireid.metrics.ranking import (
    CMCOver,
    Exclude,
    Gallery,
    RankMetrics,
    check_cameras,
    check_matches,
    check_options,
    summary,
)
from vireid.neighbors._scores import cosine_distance

if TYPE_CHECKING:
    import torchmetrics

_BLOCK = 2**24  # distances at a time
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class _Streaming(Generic[ArrayT]):
    """Base of the metrics: rows of bytes, which hold numbers of any dtype and are gathered over processes alike."""

    _form: ClassVar[str]  # for torchmetrics
    _exclude: Exclude
    _given: ArrayT  # arrays of the result are NumPy if this is
    _device: torch.device
    _kept: list[Tensor]  # (n, w) each

    @property
    def device(self) -> torch.device:
        """Device of the state and of the result: that of the last update, or of `to`."""
        return self._device

    def to(self, device: torch.device | str) -> Self:
        """Move the state to ``device``, as each update does, and return the object."""
        self._device = torch.empty(0, device=device).device  # "cuda" becomes "cuda:0"
        self._kept = [part.to(self._device) for part in self._kept]
        return self

    def compute(self) -> RankMetrics[ArrayT]:
        """Compute the metrics of all updates so far, on all processes; more can follow.

        Raises:
            RuntimeError: if nothing to rank was added yet.
            ValueError: if no query has a true match.
        """
        self._kept = [stack_rows(self._kept, self._device)]
        results, length = self._results(stack_rows(_gather(self._kept[0]), self._device))
        if len(results) == 0:
            raise RuntimeError("compute() needs queries and a gallery, got none so far: call update() first")
        check_matches(results, self._exclude)
        return summary(results, length, self._given)

    def reset(self) -> None:
        """Forget all updates."""
        self._kept = []

    def as_torchmetrics(self) -> "torchmetrics.Metric":
        """Return a `torchmetrics.Metric` of the same options, for MetricCollection and Lightning's logging.

        Its ``update`` takes tensors as this class does. Its ``compute`` returns "rank1", "rank5", "rank10", "rank20",
        "mAP" and "mINP", shares in [0, 1], as 0-dimensional tensors on its device: float64, or float32 where the device
        has no float64. They are NaN, where this class raises, if no query has a true match or none was added, as in
        Lightning's sanity check. It starts without updates; torchmetrics synchronizes it.

        Raises:
            ImportError: if torchmetrics is not installed.
        """
        with extra("train", "as_torchmetrics() needs torchmetrics"):
            from vireid.metrics import _torchmetrics
        form: torchmetrics.Metric = getattr(_torchmetrics, self._form)(self)
        return form

    def _add(self, rows: Tensor) -> None:
        self.to(rows.device)._kept.append(rows)

    def _results(self, rows: Tensor) -> tuple[Tensor, int]:
        """Return the results (Nq, 3) of ``rows``, as in `Gallery.rank`, and the number of ranks."""
        raise NotImplementedError


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

    _form = "TorchRankingMetric"

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
        self._add(self._rows(distance, query_ids, query_cameras))

    def forward(self, distance: Array, query_ids: Array, query_cameras: Array | None = None) -> RankMetrics[ArrayT]:
        """Update, and return the metrics of only this block (NaN if none of its queries has a true match)."""
        self.update(distance, query_ids, query_cameras)
        return summary(*self._results(self._kept[-1]), self._given)

    __call__ = forward

    def _rows(self, distance: Array, query_ids: Array, query_cameras: Array | None) -> Tensor:
        """Return the results of a block as bytes."""
        d = to_matrix("distance", distance, columns=len(self._gallery.ids))
        check_values("distance", d)
        q_ids = to_integers("query_ids", query_ids, len(d), d.device)
        q_cameras = check_cameras("query_cameras", query_cameras, self._exclude, q_ids)
        self._gallery = self._gallery.to(d.device)
        return self._gallery.rank(d, q_ids, q_cameras).view(torch.uint8)

    def _results(self, rows: Tensor) -> tuple[Tensor, int]:
        dtype = torch.float32 if rows.shape[1] == 12 else torch.float64
        return rows.view(dtype), self._gallery.length


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

    _form = "TorchRetrievalMetric"

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
        self._add(self._rows(features, labels, modality, cameras))
        self._given = features

    def _rows(self, features: Array, labels: Array, modality: Array, cameras: Array | None) -> Tensor:
        """Return features, then label, modality, camera and number of the dtype in 32 bytes."""
        x = to_matrix("features", features)
        if not x.shape[1]:
            raise ValueError(f"features must have at least one column, got shape {tuple(x.shape)}")
        ids, kinds = (to_integers(n, y, len(x), x.device) for n, y in (("labels", labels), ("modality", modality)))
        places = check_cameras("cameras", cameras, self._exclude, ids)
        check_finite("features", x)
        check_modality("modality", kinds, wait=True)
        dtype = torch.full_like(ids, _DTYPES.index(x.dtype))
        annotations = torch.stack([ids, kinds, ids if places is None else places, dtype], dim=1)
        return torch.cat([part.contiguous().view(torch.uint8) for part in (x, annotations)], dim=1)

    def _results(self, rows: Tensor) -> tuple[Tensor, int]:
        """Rank the queries of all rows against their gallery."""
        ids, modality, places, dtype = rows[:, -32:].contiguous().view(torch.int64).reshape(-1, 4).T
        q, g = ((modality == kind).nonzero().flatten() for kind in (self._query, 1 - self._query))
        if not (len(q) and len(g)):
            return torch.empty(0, 3), 1
        if (dtype != dtype[0]).any():
            raise ValueError("features must have one dtype in all updates and processes, got several")
        queries, images = (rows[:, :-32].index_select(0, x).view(_DTYPES[int(dtype[0])]) for x in (q, g))
        cameras = None if self._exclude is None else places[g]
        gallery = Gallery(ids[g], cameras, exclude=self._exclude, cmc_over=self._cmc_over)
        size = max(1, _BLOCK // len(images))
        blocks = zip(queries.split(size), ids[q].split(size), places[q].split(size), strict=True)
        found = [gallery.rank(self._compare(x, images), labels, at) for x, labels, at in blocks]
        return torch.cat(found), gallery.length

    def _compare(self, query: Tensor, gallery: Tensor) -> Tensor:
        """Return the distance (n, Ng) of a block of queries."""
        if callable(self._distance):
            distance = to_tensor("distance's result", self._distance(query, gallery))
            check_tensor("distance's result", distance, f"{len(query)} {len(gallery)}")
            return distance.to(query.device)
        with torch.autocast(query.device.type, enabled=False):
            return cosine_distance(query, gallery)


def stack_rows(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    """Stack parts (n, w) of one w; those without rows may have another. It is (0, 24) on ``device`` without any row."""
    parts = [part for part in parts if len(part)] or [torch.empty(0, 24, dtype=torch.uint8, device=device)]
    if len({part.shape[1] for part in parts}) > 1:
        raise ValueError("features must have one dimension and dtype in all updates and processes, got several")
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _gather(rows: Tensor) -> list[Tensor]:
    """Gather ``rows`` of all processes, in their order."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return [rows]
    parts = [rows.cpu().numpy()] * dist.get_world_size()
    dist.all_gather_object(parts, parts[0])
    return [torch.from_numpy(part).to(rows.device) for part in parts]
