"""Ranking metrics (CMC, mAP, mINP) and the diagnostics of the CIFT paper, with ties broken by gallery index."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vireid._arrays import Array, same_kind, to_integers, to_matrix
from vireid._checks import check_count, check_finite, check_option

__all__ = ["RankMetrics", "affinity_error_rate", "affinity_quality", "feature_margin", "rank_metrics"]

_BLOCK = 2**21  # entries of the distance matrix worked on at once


@dataclass(frozen=True)
class RankMetrics:
    """What `rank_metrics` found; every number is a share in [0, 1].

    Attributes:
        cmc: (R,) float64, ``cmc[r-1]`` = share of the valid queries whose first true match is at rank r or better.
        mAP: mean average precision over the valid queries.
        mINP: mean inverse negative penalty over the valid queries.
        queries: number of queries given.
        valid_queries: those with a true match left after the exclusion; only they count.
        average_precision: (Nq,) float64, NaN for a query without a true match.
        inverse_negative_penalty: (Nq,) float64, NaN likewise.
        first_match: (Nq,) int64, rank of the first true match (of its identity with ``cmc_over="identities"``), 0 for
            a query without one.
    """

    cmc: Any
    mAP: float
    mINP: float
    queries: int
    valid_queries: int
    average_precision: Any
    inverse_negative_penalty: Any
    first_match: Any

    @property
    def skipped(self) -> int:
        """Number of queries left out because no true match remained."""
        return self.queries - self.valid_queries

    def rank(self, r: int) -> float:
        """Share of the valid queries with a true match at rank ``r`` or better; past the list's end its last value."""
        check_count("r", r)
        return float(self.cmc[min(r, len(self.cmc)) - 1])


def rank_metrics(
    distance: Array,
    query_ids: Array,
    gallery_ids: Array,
    query_cameras: Array | None = None,
    gallery_cameras: Array | None = None,
    *,
    exclude: Literal["same_camera", "same_id_same_camera"] | None = None,
    cmc_over: Literal["images", "identities"] = "images",
) -> RankMetrics:
    """CMC, mAP and mINP of a distance matrix (Ye et al., AGW, for AP and INP).

    Each query ranks the gallery by (distance, gallery index). AP is the mean over its true matches of matches so far /
    rank, INP the number of matches / rank of the last one. The values of a row are sorted, not its indices, and the
    true matches are then found in them; rows in which a true match is tied are sorted stably in full. Besides the
    input a few blocks of 2 million entries are held.

    Args:
        distance: (Nq, Ng), smaller = nearer, finite.
        query_ids: (Nq,) integers.
        gallery_ids: (Ng,) integers.
        query_cameras: (Nq,) integers, needed (and looked at) with ``exclude`` only.
        gallery_cameras: (Ng,) integers, likewise.
        exclude: gallery images a query skips: "same_camera" all of its own camera, "same_id_same_camera" only those
            that also show its identity, None nothing. Cameras in one place (2 and 3 in SYSU-MM01) get one number.
        cmc_over: "images", or "identities": the CMC then counts each identity once, at its first image. AP and INP
            are over images in any case.

    Returns:
        A `RankMetrics`, with R = Ng or the number of gallery identities; its arrays are NumPy if ``distance`` is, and
        on the device of ``distance`` otherwise.

    Raises:
        ValueError: for sizes that do not match, an unknown option, ``exclude`` without cameras, an empty gallery, NaN
            or an infinity, or if no query has a true match.
        TypeError: for a ``distance`` that is not floating point or labels that are not integers.

    Example:
        >>> m = rank_metrics(torch.tensor([[0.2, 0.1, 0.3]]), torch.tensor([7]), torch.tensor([7, 5, 7]))
        >>> m.cmc.tolist(), round(m.mAP, 4), round(m.mINP, 4)
        ([0.0, 1.0, 1.0], 0.5833, 0.6667)
    """
    d = to_matrix("distance", distance)
    check_option("exclude", exclude, (None, "same_camera", "same_id_same_camera"))
    check_option("cmc_over", cmc_over, ("images", "identities"))
    nq, ng = d.shape
    if nq == 0 or ng == 0:
        raise ValueError(f"distance must have at least one query and one gallery image, got shape {tuple(d.shape)}")
    q_ids = to_integers("query_ids", query_ids, nq, d.device)
    g_ids = to_integers("gallery_ids", gallery_ids, ng, d.device)
    q_cameras = g_cameras = None
    if exclude is not None:
        if query_cameras is None or gallery_cameras is None:
            raise ValueError(f"exclude={exclude!r} needs query_cameras and gallery_cameras, got None")
        q_cameras = to_integers("query_cameras", query_cameras, nq, d.device)
        g_cameras = to_integers("gallery_cameras", gallery_cameras, ng, d.device)
    check_finite("distance", d)

    identities = g_ids.unique(return_inverse=True) if cmc_over == "identities" else None
    block = max(1, _BLOCK // ng)
    parts = []
    for start in range(0, nq, block):
        part = slice(start, start + block)
        match = q_ids[part, None] == g_ids
        keep = None
        if q_cameras is not None and g_cameras is not None:
            keep = q_cameras[part, None] != g_cameras
            if exclude == "same_id_same_camera":
                keep |= ~match
            match &= keep
        parts.append(_block_metrics(d[part], match, keep, None if identities is None else identities[1]))
    first, ap, inp = (torch.cat(x) for x in zip(*parts, strict=True))

    valid = first > 0
    count = int(valid.sum())
    if count == 0:
        raise ValueError("query_ids must share an identity with gallery_ids: no query has a true match left")
    length = ng if identities is None else len(identities[0])
    cmc = torch.bincount(first[valid] - 1, minlength=length).cumsum(0).double() / count
    return RankMetrics(
        cmc=same_kind(cmc, distance),
        mAP=float(ap[valid].mean()),
        mINP=float(inp[valid].mean()),
        queries=nq,
        valid_queries=count,
        average_precision=same_kind(ap, distance),
        inverse_negative_penalty=same_kind(inp, distance),
        first_match=same_kind(first, distance),
    )


def _block_metrics(
    distance: Tensor, match: Tensor, keep: Tensor | None, identity: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """First match (b,), AP (b,), INP (b,) of one block of queries; queries are independent of each other.

    Args:
        distance: (b, Ng) finite.
        match: (b, Ng) bool, true matches that are kept.
        keep: (b, Ng) bool, None for all.
        identity: (Ng,) index of each image's identity, to count identities for the first match; None to count images.
    """
    distance = distance.to(torch.promote_types(distance.dtype, torch.float32))  # keeps the order of half precision
    if keep is not None:
        distance = distance.masked_fill(~keep, torch.inf)
    count = match.sum(1)
    width = max(1, int(count.max()))
    row, column = match.nonzero().T
    slot = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]

    # (b, width): each query's true matches by gallery index, the rest of the row filled
    values = distance.new_full((len(distance), width), torch.inf)
    values[row, slot] = distance[row, column]
    columns = torch.zeros_like(values, dtype=torch.int64)
    columns[row, slot] = column
    real = torch.arange(width, device=row.device) < count[:, None]

    ordered = _sort_values(distance)
    rank = torch.searchsorted(ordered, values) + 1
    tied = ((torch.searchsorted(ordered, values, right=True) > rank) & real).any(1).nonzero().flatten()
    if len(tied):  # the value alone does not say which comes first
        order = distance[tied].argsort(dim=1, stable=True)
        place = torch.empty_like(order)
        place.scatter_(1, order, torch.arange(1, order.shape[1] + 1, device=order.device).expand_as(order))
        rank[tied] = place.gather(1, columns[tied])

    rank = rank.masked_fill(~real, distance.shape[1] + 1)
    first, at = rank.min(1)
    if identity is not None:
        first = 1 + _identities_ahead(distance, values.gather(1, at[:, None]), columns.gather(1, at[:, None]), identity)
    so_far = torch.arange(1, width + 1, device=row.device)
    share = (so_far / rank.sort(dim=1).values.double()).masked_fill(~real, 0)
    none = count == 0
    ap = (share.sum(1) / count).masked_fill(none, torch.nan)
    inp = (count / rank.masked_fill(~real, 0).amax(1).double()).masked_fill(none, torch.nan)
    return first.masked_fill(none, 0), ap, inp


def _sort_values(x: Tensor) -> Tensor:
    if x.device.type == "cpu":  # NumPy's vectorised sort of values is several times faster than sorting with indices
        return torch.from_numpy(np.sort(x.numpy(), axis=1))
    return x.sort(dim=1).values


def _identities_ahead(distance: Tensor, value: Tensor, column: Tensor, identity: Tensor) -> Tensor:
    """Number of identities (b,) with an image before the one at ``value``, ``column`` (b, 1)."""
    index = torch.arange(distance.shape[1], device=distance.device)
    ahead = (distance < value) | ((distance == value) & (index < column))
    size = torch.bincount(identity)
    upto = ahead[:, identity.argsort()].cumsum(1, dtype=torch.int32)[:, size.cumsum(0) - 1]
    return torch.diff(upto, dim=1, prepend=torch.zeros_like(upto[:, :1])).count_nonzero(1)


def feature_margin(x: Array, labels: Array) -> float:
    """How far identities stand apart: Q_X of the features that enter a transfer, Q_Y of those that leave it (CIFT).

    Mean over the rows i of [mean distance to the rows of other identities − mean distance to the other rows of its
    own]. The distance D is Euclidean **[ours: the paper does not say]**, computed in float64; normalise ``x`` first to
    compare features of different scale. Rows without a positive or without a negative are left out.

    Args:
        x: (N, d).
        labels: (N,) integers.

    Returns:
        The margin, in the units of ``x``; larger = better separated.

    Raises:
        ValueError: for sizes that do not match, NaN or an infinity, or if no row has both a positive and a negative.
        TypeError: for anything but floating-point ``x`` and integer ``labels``.

    Example:
        >>> feature_margin(torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([3, 3, 4]))
        3.5
    """
    x = to_matrix("x", x)
    y = to_integers("labels", labels, len(x), x.device)
    check_finite("x", x)
    x = x.double()
    margins = []
    for start in range(0, len(x), block := max(1, _BLOCK // max(1, len(x)))):
        part = slice(start, start + block)
        d = torch.cdist(x[part], x, compute_mode="donot_use_mm_for_euclid_dist")  # exact for near rows
        same = y[part, None] == y
        positive, negative = same.sum(1) - 1, (~same).sum(1)  # an image is at distance 0 of itself: adds nothing
        margin = torch.where(same, 0, d).sum(1) / negative - torch.where(same, d, 0).sum(1) / positive
        margins.append(margin[(positive > 0) & (negative > 0)])
    return _mean_of(margins, "labels must hold an identity with two rows and a second identity")


def affinity_quality(affinity: Array, labels: Array, gallery_labels: Array | None = None) -> float:
    """Q_A (CIFT): share of the rows whose weakest positive is above their strongest negative.

    Args:
        affinity: (N, N), larger = more alike, its diagonal not looked at; or (Nq, Ng) with ``gallery_labels``.
        labels: (N,) integers, of the rows.
        gallery_labels: (Ng,) integers, of the columns; None: the rows are the columns.

    Returns:
        A share in [0, 1] of the rows that have a positive (not themselves) and a negative; others are left out.

    Raises:
        ValueError: for sizes that do not match, NaN or an infinity, or if no row has both.
        TypeError: for anything but floating-point ``affinity`` and integer ``labels``.

    Example:
        >>> affinity_quality(torch.tensor([[1.0, 0.8, 0.1], [0.8, 1.0, 0.9], [0.1, 0.9, 1.0]]), torch.tensor([0, 0, 1]))
        0.5
    """
    a = to_matrix("affinity", affinity)
    if gallery_labels is None and a.shape[0] != a.shape[1]:
        raise ValueError(f"affinity must be square (N, N) without gallery_labels, got shape {tuple(a.shape)}")
    y = to_integers("labels", labels, len(a), a.device)
    columns = y if gallery_labels is None else to_integers("gallery_labels", gallery_labels, a.shape[1], a.device)
    check_finite("affinity", a)
    index = torch.arange(len(a), device=a.device)
    right = []
    for start in range(0, len(a), block := max(1, _BLOCK // max(1, a.shape[1]))):
        part = slice(start, start + block)
        same = y[part, None] == columns
        positive = same & (index[part, None] != index) if gallery_labels is None else same
        weakest = a[part].masked_fill(~positive, torch.inf).amin(1)
        strongest = a[part].masked_fill(same, -torch.inf).amax(1)
        right.append((weakest > strongest)[positive.any(1) & ~same.all(1)])
    return _mean_of(right, "labels must hold an identity with two rows and a second identity")


def affinity_error_rate(
    affinity: Array, query_labels: Array, gallery_labels: Array | None = None, *, k: int = 4
) -> float:
    """Affinity error rate (CIFT, Table 4): share of the entries in which predicted and ideal affinity differ.

    Ideal is 1 for the same identity and 0 otherwise; predicted is 1 for the ``k`` largest of a row, ties by gallery
    index, and 0 otherwise. A row is not special: an image compared with itself counts like any other **[ours]**.

    Args:
        affinity: (Nq, Ng), larger = more alike.
        query_labels: (Nq,) integers.
        gallery_labels: (Ng,) integers; None: the rows are the columns, Nq = Ng.
        k: neighbours kept in a row, at least 1; more than Ng means all.

    Returns:
        A share in [0, 1].

    Raises:
        ValueError: for sizes that do not match, ``k`` below 1, an empty matrix, NaN or an infinity.
        TypeError: for anything but floating-point ``affinity`` and integer labels.

    Example:
        >>> affinity_error_rate(torch.tensor([[0.9, 0.8, 0.1]]), torch.tensor([0]), torch.tensor([0, 1, 0]), k=2)
        0.6666666666666666
    """
    a = to_matrix("affinity", affinity)
    check_count("k", k)
    if a.numel() == 0:
        raise ValueError(f"affinity must have at least one row and one column, got shape {tuple(a.shape)}")
    q = to_integers("query_labels", query_labels, len(a), a.device)
    g = to_integers(
        "gallery_labels" if gallery_labels is not None else "query_labels",
        gallery_labels if gallery_labels is not None else query_labels,
        a.shape[1],
        a.device,
    )
    check_finite("affinity", a)
    wrong = 0
    for start in range(0, len(a), block := max(1, _BLOCK // a.shape[1])):
        part = slice(start, start + block)
        kept = a[part].argsort(dim=1, descending=True, stable=True)[:, :k]
        ideal = q[part, None] == g
        predicted = torch.zeros_like(ideal).scatter_(1, kept, True)
        wrong += int((predicted != ideal).sum())
    return wrong / a.numel()


def _mean_of(parts: list[Tensor], needed: str) -> float:
    values = torch.cat(parts) if parts else torch.empty(0)
    if len(values) == 0:
        raise ValueError(f"{needed}, else no row has both a positive and a negative")
    return float(values.double().mean())
