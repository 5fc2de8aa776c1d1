"""CMC, mAP and mINP of a distance matrix, with ties broken by gallery index."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Literal

import numpy as np
import torch
from torch import Tensor

from vireid._checks import (
    Array,
    ArrayT,
    check_count,
    check_finite,
    check_option,
    check_values,
    same_kind,
    to_integers,
    to_matrix,
)
from vireid._ops import has_float64

_BLOCK = 2**20  # entries of the distance matrix per block
_PART_BYTES = 2048  # longest row that NumPy sorts by networks, several times faster than a longer one

Exclude = Literal["same_camera", "same_id_same_camera"] | None
CMCOver = Literal["images", "identities"]


@dataclass(frozen=True)
class RankMetrics(Generic[ArrayT]):
    """Result of `rank_metrics`; every number is a share in [0, 1].

    Arrays are float32 in place of float64 on a device without it, such as Apple's.

    Attributes:
        cmc: (R,) float64, ``cmc[r-1]`` = share of the valid queries whose first true match is at rank r or better.
        mAP: mean average precision over the valid queries.
        mINP: mean inverse negative penalty over the valid queries.
        queries: number of queries given.
        valid_queries: number of those with a true match left after the exclusion; only they count.
        average_precision: (Nq,) float64, NaN for a query without a true match.
        inverse_negative_penalty: (Nq,) float64, NaN likewise.
        first_match: (Nq,) int64, rank of the first true match (of its identity with ``cmc_over="identities"``), 0 for
            a query without one.
    """

    cmc: ArrayT
    mAP: float
    mINP: float
    queries: int
    valid_queries: int
    average_precision: ArrayT
    inverse_negative_penalty: ArrayT
    first_match: ArrayT

    @property
    def skipped(self) -> int:
        """Number of queries left out because no true match remained."""
        return self.queries - self.valid_queries

    def rank(self, r: int) -> float:
        """Return the share of the valid queries with a true match up to rank ``r`` (or up to the list's end)."""
        return float(self.cmc[min(check_count("r", r), len(self.cmc)) - 1])


def rank_metrics(
    distance: ArrayT,
    query_ids: Array,
    gallery_ids: Array,
    query_cameras: Array | None = None,
    gallery_cameras: Array | None = None,
    *,
    exclude: Exclude = None,
    cmc_over: CMCOver = "images",
) -> RankMetrics[ArrayT]:
    """Compute CMC, mAP and mINP of a distance matrix (Ye et al., AGW, for AP and INP).

    Each query ranks the gallery by (distance, gallery index). AP is the mean over its true matches of matches so far /
    rank, INP the number of matches / rank of the last one. Only the true matches are ranked; the images ahead of them
    are counted, exactly. Memory beside the input is a few blocks of a million entries.

    Args:
        distance: (Nq, Ng), smaller = nearer, finite.
        query_ids: (Nq,) integers.
        gallery_ids: (Ng,) integers.
        query_cameras: (Nq,) integers, used, and needed, only with ``exclude``.
        gallery_cameras: (Ng,) integers, likewise.
        exclude: gallery images that a query skips: "same_camera" all of its own camera, "same_id_same_camera" only
            those of its own identity among them, None nothing. Give cameras in one place (2 and 3 in SYSU-MM01) one
            number.
        cmc_over: "images", or "identities": the CMC then counts each identity once, at its first image. AP and INP
            are over images in any case.

    Returns:
        A `RankMetrics`, with R = Ng or the number of gallery identities; its arrays are NumPy if ``distance`` is, else
        on the device of ``distance``.

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
    check_values("distance", d)
    nq, ng = d.shape
    check_options(exclude, cmc_over)
    if nq == 0 or ng == 0:
        raise ValueError(f"distance must have at least one query and one gallery image, got shape {tuple(d.shape)}")
    q_ids = to_integers("query_ids", query_ids, nq, d.device)
    g_ids = to_integers("gallery_ids", gallery_ids, ng, d.device)
    q_cameras = check_cameras("query_cameras", query_cameras, exclude, q_ids)
    g_cameras = check_cameras("gallery_cameras", gallery_cameras, exclude, g_ids)
    gallery = Gallery(g_ids, g_cameras, exclude=exclude, cmc_over=cmc_over)
    results = gallery.rank(d, q_ids, q_cameras)
    check_matches(results, exclude)
    return summary(results, gallery.length, distance)


def check_options(exclude: Exclude, cmc_over: CMCOver) -> None:
    """Raise unless both options are known."""
    check_option("exclude", exclude, (None, "same_camera", "same_id_same_camera"))
    check_option("cmc_over", cmc_over, ("images", "identities"))


def check_cameras(name: str, cameras: Array | None, exclude: Exclude, ids: Tensor) -> Tensor | None:
    """Return ``cameras`` as integers like ``ids``; None if there are none, or ``exclude`` does not need them."""
    if cameras is None and exclude is not None:
        raise ValueError(f"exclude={exclude!r} needs {name}, got None")
    found = None if cameras is None else to_integers(name, cameras, len(ids), ids.device)
    return None if exclude is None else found


def check_matches(results: Tensor, exclude: Exclude) -> None:
    """Raise if no query of the ``results`` (Nq, 3) of `Gallery.rank` has a true match; the error names the cause."""
    first = results[:, 0]
    if not bool((first > 0).any()):
        need, why = "query_ids must share an identity with gallery_ids", ""
        if excluded := int((first < 0).sum()):
            need = "query_cameras must differ from gallery_cameras in some true match"
            why = f"exclude={exclude!r} leaves none to the {excluded} queries whose identity the gallery has, "
        raise ValueError(f"{need}: {why}no query has a true match left")


def widest(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on a device without it."""
    return torch.float64 if has_float64(device) else torch.float32


def summary(results: Tensor, length: int, given: ArrayT) -> RankMetrics[ArrayT]:
    """Compute the metrics, with ``length`` entries of the CMC, of the ``results`` (Nq, 3) of `Gallery.rank`.

    They are NaN if no query is valid. Arrays are NumPy if ``given`` is one.
    """
    first, (ap, inp) = results[:, 0].long().clamp_min(0), results[:, 1:].T.contiguous()
    valid = first > 0
    count = int(valid.sum())
    hits = torch.bincount(first[valid] - 1, minlength=length).cumsum(0).to(results.dtype)
    return RankMetrics(
        cmc=same_kind(hits / count, given),
        mAP=float(ap[valid].mean()),
        mINP=float(inp[valid].mean()),
        queries=len(first),
        valid_queries=count,
        average_precision=same_kind(ap, given),
        inverse_negative_penalty=same_kind(inp, given),
        first_match=same_kind(first, given),
    )


class Gallery:
    """Gallery's side of the metrics, made once for any number of blocks of queries. Internal.

    ``ids`` and ``cameras`` (None without ``exclude``) are (Ng,) int64, on one device.
    """

    def __init__(self, ids: Tensor, cameras: Tensor | None, *, exclude: Exclude, cmc_over: CMCOver) -> None:
        self.ids, self.cameras, self.exclude, self.cmc_over = ids, cameras, exclude, cmc_over
        self.sorted_ids, self.order = ids.sort(stable=True)  # the images of an identity are adjacent
        sizes = torch.unique_consecutive(self.sorted_ids, return_counts=True)[1]
        self.starts = sizes.cumsum(0) - sizes
        self.is_sorted = bool((self.order.diff() == 1).all())
        self.length = len(sizes) if cmc_over == "identities" else len(ids)

    def to(self, device: torch.device) -> "Gallery":
        """Return the gallery on ``device``."""
        if device == self.ids.device:
            return self
        cameras = None if self.cameras is None else self.cameras.to(device)
        return Gallery(self.ids.to(device), cameras, exclude=self.exclude, cmc_over=self.cmc_over)

    def rank(self, distance: Tensor, query_ids: Tensor, query_cameras: Tensor | None) -> Tensor:
        """Compute first match, AP and INP of each query, (Nq, 3) of dtype `widest`; NaN without a true match.

        The first match is then 0, or -1 if the gallery has the identity and all its images are excluded.

        Args:
            distance: (Nq, Ng) of any floating-point type, on the gallery's device.
            query_ids: (Nq,) int64.
            query_cameras: (Nq,) int64, needed with ``exclude``.

        Raises:
            ValueError: if ``distance`` holds NaN or an infinity.
        """
        check_finite("distance", distance)
        results = torch.tensor([0, torch.nan, torch.nan], dtype=widest(distance.device), device=distance.device)
        results = results.repeat(len(distance), 1)
        low = torch.searchsorted(self.sorted_ids, query_ids)
        size = torch.searchsorted(self.sorted_ids, query_ids, right=True) - low
        queries = size.argsort()[int((size == 0).sum()) :]  # queries with about as many images share a block
        for rows in queries.split(max(1, _BLOCK // len(self.ids))) if len(queries) else ():
            slot = torch.arange(int(size[rows[-1]]), device=rows.device)
            keep = slot < size[rows, None]
            columns = self.order[(low[rows, None] + slot).clamp_max(len(self.ids) - 1)]
            left_out = None
            if query_cameras is not None and self.cameras is not None:
                same = self.cameras[columns] == query_cameras[rows, None]
                left_out, keep = keep & same, keep & ~same
            x = self._read(distance, rows, query_cameras)
            found, tied = self._rank_block(x, columns, keep, left_out)
            again = tied.nonzero().flatten()
            if len(again):  # values that tie are ranked together with their columns
                x = _distinct(self._read(distance, rows[again], query_cameras))
                if left_out is not None:
                    left_out = left_out[again]
                found[again], _ = self._rank_block(x, columns[again], keep[again], left_out)
            results[rows] = found
        return results

    def _read(self, distance: Tensor, rows: Tensor, query_cameras: Tensor | None) -> Tensor:
        """Return a copy (b, Ng) of ``rows``, in at least float32, with infinity for the cameras that a query skips."""
        x = distance.index_select(0, rows).to(torch.promote_types(distance.dtype, torch.float32))
        if self.exclude != "same_camera" or query_cameras is None:
            return x
        cameras, index = query_cameras[rows].unique(return_inverse=True)
        return torch.where((cameras[:, None] == self.cameras).index_select(0, index), torch.inf, x)

    def _rank_block(self, x: Tensor, columns: Tensor, keep: Tensor, left_out: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute first match, AP and INP (b, 3) of one block, and (b,) whether a tie makes them uncertain.

        Args:
            x: (b, Ng) float or integer.
            columns: (b, w) all images of the query's identity, then padding.
            keep: (b, w) bool, the true matches among them.
            left_out: (b, w) bool, the images among them that the query skips.
        """
        top = torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).max
        own = x.gather(1, columns)
        values, at = own.masked_fill(~keep, top).sort(dim=1)
        count = keep.sum(1)
        values = values[:, : max(1, int(count.max()))].contiguous()
        columns = columns.gather(1, at[:, : values.shape[1]])
        nth = torch.arange(1, values.shape[1] + 1, device=x.device)
        real = nth <= count[:, None]

        minima = self._minima(x) if self.cmc_over == "identities" else None
        ahead, equal = _count_ahead(x, values, columns, top)
        tied = (equal & real).any(1)
        if left_out is not None and self.exclude == "same_id_same_camera":
            skipped = own.masked_fill(~left_out, top).sort(dim=1).values
            ahead -= torch.searchsorted(skipped, values)
        rank = (ahead + 1).to(widest(x.device))
        first = rank[:, 0]
        if minima is not None:  # an identity is ahead if its best image is; the query's own does not count
            identity = torch.searchsorted(self.starts, torch.searchsorted(self.sorted_ids, self.ids[columns[:, :1]]))
            minima.scatter_(1, identity, top)
            first = (minima < values[:, :1]).sum(1).to(rank.dtype) + 1
        last = (count[:, None] - 1).clamp_min(0)
        ap = (nth / rank).cumsum(1).gather(1, last).squeeze(1) / count  # in rank order, whatever the block's width
        inp = count / rank.gather(1, last).squeeze(1)
        found = torch.stack([first, ap, inp], dim=1)
        found[count == 0] = torch.tensor([-1, torch.nan, torch.nan], dtype=found.dtype, device=found.device)
        return found, tied

    def _minima(self, x: Tensor) -> Tensor:
        """Return the smallest entry of each identity (b, identities)."""
        if x.device.type == "cpu":
            ordered = x.numpy() if self.is_sorted else np.take(x.numpy(), self.order.numpy(), axis=1)
            return torch.from_numpy(np.minimum.reduceat(ordered, self.starts.numpy(), axis=1))
        index = torch.searchsorted(self.sorted_ids[self.starts], self.ids)
        out = x.new_empty(len(x), len(self.starts))
        return out.scatter_reduce_(1, index.expand(len(x), -1), x, "amin", include_self=False)


def _count_ahead(x: Tensor, values: Tensor, columns: Tensor, top: float) -> tuple[Tensor, Tensor]:
    """Count the entries of a row below each value, (b, w), and say (b, w) whether a second entry equals it.

    A row is cut into parts, each sorted by itself, and the value is looked up in every part: sorting many short parts
    takes a fraction of the time of one long row. GPUs, and blocks with very many matches per row, sort whole rows.

    Args:
        x: (b, Ng); its order is destroyed.
        values: (b, w), each an entry of its row or ``top``.
        columns: (b, w), the values' columns.
        top: a number above all entries.
    """
    rows, length = x.shape
    part = _PART_BYTES // x.element_size()
    parts = -(-length // part) if x.device.type == "cpu" and values.shape[1] <= part // 4 else 1
    part = -(-length // parts)
    if parts * part > length:
        x = torch.cat([x, x.new_full((rows, parts * part - length), top)], dim=1)
    x = _sort(x.view(rows * parts, part))
    wanted = values[:, None].repeat(1, parts, 1).view(rows * parts, -1)
    place = torch.searchsorted(x, wanted)
    equal = (x.gather(1, place.clamp_max(part - 1)) == wanted).view(rows, parts, -1).sum(1) > 1
    place = place.view(rows, parts, -1)
    # A second one in the value's own part is right behind it. (At the row's end the value meets itself: harmless.)
    own = columns // part
    behind = own * part + place.gather(1, own[:, None]).squeeze(1) + 1
    equal |= x.view(rows, -1).gather(1, behind.clamp_max(parts * part - 1)) == values
    return place.sum(1), equal


def _sort(x: Tensor) -> Tensor:
    """Sort the rows, in place on the CPU, where NumPy's sort of values is many times faster than PyTorch's."""
    if x.device.type != "cpu":
        return x.sort(dim=1).values
    parts = x.numpy()
    threads = min(torch.get_num_threads(), len(parts))
    with ThreadPoolExecutor(threads) as pool:  # NumPy sorts without the GIL
        list(pool.map(lambda part: part.sort(axis=1), np.array_split(parts, threads)))
    return x


def _distinct(x: Tensor) -> Tensor:
    """Return int64 (b, Ng) without ties, in the order of (entry, column)."""
    if x.dtype == torch.float32:  # the bits of a float, as an integer, have its order, or the reverse below 0
        bits = (x + 0.0).view(torch.int32)  # -0 and 0 are equal
        bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
        return (bits << 32) + torch.arange(x.shape[1], device=x.device)
    order = x.argsort(dim=1, stable=True)
    return torch.empty_like(order).scatter_(1, order, torch.arange(x.shape[1], device=x.device).expand_as(order))
