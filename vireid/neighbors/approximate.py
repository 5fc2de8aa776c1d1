"""Approximate nearest neighbors by any index of faiss, and the recall of a search."""

from typing import Any

import torch
from torch import Tensor

from vireid._checks import (
    Array,
    ArrayT,
    check_count,
    check_finite,
    check_option,
    check_tensor,
    same_kind,
    to_matrix,
    to_tensor,
)
from vireid.neighbors._faiss import GPU_MAX_K, import_faiss, on_gpu
from vireid.neighbors._scores import Metric, Rows, infinity, prepare, rescore, to_float
from vireid.neighbors._topk import topk

_CANDIDATES = 1 << 20  # scored at once


class ApproximateIndex:
    """A gallery in one of faiss's indexes: it proposes candidates, whose scores are then computed exactly.

    So the values are those of `topk`, in the same order; only neighbors may be missing, which `recall` measures. On
    the CPU an index pays for galleries far beyond 100,000 images; for smaller ones the exact search is about as fast.

    Threads may search one index at once, but not on a GPU. There the index is faiss's GPU form, which exists for
    "Flat", "IVF…,Flat", "IVF…,PQ…" and "IVF…,SQ…".

    Args:
        gallery: (N, d) floating point, tensor or NumPy array; kept as it is, so do not change it afterwards.
        factory: faiss's name of the index, such as "HNSW32", "IVF1024,Flat" or "PQ32".
        metric: as in `topk`. faiss sees normalized rows for "cosine".
        parameters: faiss's search parameters, such as "nprobe=32" or "efSearch=128": more is slower and misses less.

    Raises:
        ImportError: if faiss is not installed.
        ValueError: for a wrong shape, no row, NaN or an infinity, an unknown option, ``factory`` or ``parameters`` that
            faiss does not know or that do not fit d, or too few rows to train the index.
        TypeError: for anything but a floating-point matrix and str.

    Example:
        >>> gallery = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
        >>> index = ApproximateIndex(gallery, "HNSW32")  # doctest: +SKIP
        >>> values, indices = index.topk(gallery[:3], 5)  # doctest: +SKIP
        >>> recall(indices, topk(gallery[:3], gallery, 5)[1])  # doctest: +SKIP
        1.0
    """

    def __init__(self, gallery: Array, factory: str, *, metric: Metric = "cosine", parameters: str = "") -> None:
        g = to_matrix("gallery", gallery)
        check_option("metric", metric, ("cosine", "euclidean", "dot"))
        for name, text in (("factory", factory), ("parameters", parameters)):
            if not isinstance(text, str):
                raise TypeError(f"{name} must be a str, got {type(text).__name__}")
        if not len(g):
            raise ValueError(f"gallery must hold at least one row, got shape {tuple(g.shape)}")
        check_finite("gallery", g)
        self.metric: Metric = metric
        self.factory = factory
        with torch.no_grad(), torch.autocast(g.device.type, enabled=False):
            rows = _prepare("gallery", g, metric)
            self._index = _build(rows.proposal.contiguous(), factory, metric, parameters)
            self._gallery = rows._replace(proposal=g.new_empty(0))  # the index has its own form of the proposals

    def __len__(self) -> int:
        """Return N, the images of the gallery."""
        return len(self._gallery.given)

    def topk(self, query: ArrayT, k: int, *, candidates: int | None = None) -> tuple[ArrayT, ArrayT]:
        """Return the ``k`` nearest gallery rows that the index finds for each query, nearest first, ties by index.

        Args:
            query: (Nq, d), on the gallery's device.
            k: neighbors wanted, at least 1; more than N means all of them.
            candidates: rows that the index proposes, at least k; the best k by their exact scores are kept. More of
                them make up for a coarse index, such as "PQ32". Default: 2 k.

        Returns:
            values and indices (Nq, k') as of `vireid.neighbors.topk`. If the index found fewer than k' rows, the end
            has index -1, with value -inf (inf for "euclidean"). On a GPU, for k above faiss's limit of 2,048, the
            result is that of an exact search.

        Raises:
            ValueError: for a wrong shape or device, a count that is too small, NaN or an infinity.
            TypeError: for anything but a floating-point matrix and integers.
        """
        g = self._gallery
        q = to_matrix("query", query, columns=g.given.shape[1])
        k = check_count("k", k)
        if candidates is not None:
            candidates = check_count("candidates", candidates)
            if candidates < min(k, len(self)):
                raise ValueError(f"candidates must be at least k={min(k, len(self))}, got {candidates}")
        if q.device != g.given.device:
            raise ValueError(f"query must be on the gallery's device, {g.given.device}, got {q.device}")
        check_finite("query", q)
        k = min(k, len(self))
        m = min(2 * k if candidates is None else candidates, len(self))
        if q.device.type != "cpu":
            if k > GPU_MAX_K:
                values, indices = topk(q, g.given, k, metric=self.metric, backend="torch")
                return same_kind(values, query), same_kind(indices, query)
            m = min(m, GPU_MAX_K)
        dtype = torch.promote_types(torch.promote_types(q.dtype, g.given.dtype), torch.float32)
        with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
            found = [self._nearest(part, k, m) for part in q.split(max(1, _CANDIDATES // m))]
        values, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
        return same_kind(values.to(dtype), query), same_kind(indices, query)

    def _nearest(self, query: Tensor, k: int, m: int) -> tuple[Tensor, Tensor]:
        """Return values in float64 and indices (b, k) of the best of m candidates."""
        q = _prepare("query", query, self.metric)
        if query.device.type == "cpu":
            found = torch.from_numpy(self._index.search(q.proposal.contiguous().numpy(), m)[1])
        else:
            with torch.cuda.device(query.device):
                found = self._index.search(q.proposal.contiguous(), m)[1]
        found = found.sort(dim=1).values  # by gallery index, so that a stable sort by score keeps ties in that order
        row = torch.arange(len(found), device=found.device)[:, None].expand_as(found)
        score = rescore(q, self._gallery, row.reshape(-1), found.clamp_min(0).flatten(), self.metric).view_as(found)
        best = score.masked_fill(found < 0, -infinity(score)).sort(dim=1, descending=True, stable=True)
        values = to_float(best.values[:, :k], root=self.metric == "euclidean")
        return values, found.gather(1, best.indices[:, :k])


def recall(approximate: Array, exact: Array) -> float:
    """Return the share of the true nearest neighbors that an approximate search found, in [0, 1].

    Args:
        approximate: (Nq, n) integer indices found, in any order; -1 for none.
        exact: (Nq, k) integer indices of the true neighbors, from `topk`.

    Returns:
        Mean over the queries of |found ∩ true| / k: recall at k for n = k, "k at n" for larger n.

    Raises:
        ValueError: if a shape is not (Nq, …) with at least one entry, or Nq differs.
        TypeError: for anything but integer matrices.

    Example:
        >>> recall(torch.tensor([[4, 2, 9]]), torch.tensor([[2, 4, 5]]))
        0.6666666666666666
    """
    found, true = to_tensor("approximate", approximate), to_tensor("exact", exact)
    for name, x in (("approximate", found), ("exact", true)):
        check_tensor(name, x, "Nq k", kind="integer")
        if not x.numel():
            raise ValueError(f"{name} must have shape (Nq, k) with at least one entry, got {tuple(x.shape)}")
    if len(found) != len(true):
        raise ValueError(f"approximate and exact must have one row per query, got {len(found)} and {len(true)}")
    ordered = found.to(true.device, torch.int64).sort(dim=1).values
    wanted = true.to(torch.int64)
    place = torch.searchsorted(ordered, wanted).clamp_max(ordered.shape[1] - 1)
    return int((ordered.gather(1, place) == wanted).sum()) / wanted.numel()


def _prepare(name: str, x: Tensor, metric: Metric) -> Rows:
    """Return rows with proposals in float32: as for "dot" an index sees those given, and knows Euclidean distances."""
    rows = prepare(x, "cosine" if metric == "cosine" else "dot", torch.float32, gallery=True)
    if x.dtype == torch.float64 and not bool(rows.proposal.isfinite().all()):
        raise ValueError(f"{name} must be in the range of float32 for metric={metric!r}, got larger float64 numbers")
    return rows


def _build(x: Tensor, factory: str, metric: Metric, parameters: str) -> Any:
    """Return the index over ``x`` (N, d), float32, trained if it needs that."""
    argument = f"ApproximateIndex(gallery, {factory!r})"
    faiss = import_faiss(argument) if x.device.type == "cpu" else on_gpu(argument)
    kind = faiss.METRIC_L2 if metric == "euclidean" else faiss.METRIC_INNER_PRODUCT
    try:
        index = faiss.index_factory(x.shape[1], factory, kind)
        inner = index
        while isinstance(inner, faiss.IndexPreTransform):
            inner = faiss.downcast_index(inner.index)
        if hasattr(inner, "do_polysemous_training"):
            inner.do_polysemous_training = False  # slow, and for a kind of search that is not used here
        hnsw = getattr(inner, "hnsw", None)
        if hnsw is not None and hnsw.nb_neighbors(0) < 2:  # faiss ends the process when it is filled
            raise RuntimeError("each node needs at least one neighbor")
        if x.device.type != "cpu":
            index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), x.device.index, index)
        if parameters:
            space = faiss.ParameterSpace() if x.device.type == "cpu" else faiss.GpuParameterSpace()
            space.set_index_parameters(index, parameters)
    except (RuntimeError, ValueError) as error:
        given = f"{factory!r} with parameters {parameters!r}" if parameters else repr(factory)
        text = f"factory must be an index of faiss for {metric!r} and d = {x.shape[1]}, got {given}: {_reason(error)}"
        raise ValueError(text) from error
    rows: Any = x.numpy() if x.device.type == "cpu" else x
    try:
        if not index.is_trained:
            index.train(rows)
        index.add(rows)
        index.search(rows[:1], 1)  # a factory that asks for 0 lists is noticed here
    except RuntimeError as error:
        text = f"gallery must be fit to train {factory!r}, got shape {tuple(x.shape)}: {_reason(error)}"
        raise ValueError(text) from error
    return index


def _reason(error: Exception) -> str:
    """Return the message of faiss, without the place in its source."""
    return str(error).rsplit("failed: ", 1)[-1].rsplit(".cpp:", 1)[-1].split(": ", 1)[-1].strip()
