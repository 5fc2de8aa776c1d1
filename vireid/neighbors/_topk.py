"""Exact search for the nearest neighbors, for tensors and NumPy arrays."""

from typing import Literal

import torch
from torch import Tensor

from vireid._checks import Array, ArrayT, check_count, check_option, check_pair, same_kind
from vireid._ops import into_range
from vireid.neighbors._exact import PAD, search
from vireid.neighbors._faiss import flat_proposer
from vireid.neighbors._scores import Metric, prepare, to_float


def topk(
    query: ArrayT,
    gallery: Array,
    k: int,
    *,
    metric: Metric = "cosine",
    backend: Literal["auto", "torch", "faiss"] = "auto",
    block: int | None = None,
) -> tuple[ArrayT, ArrayT]:
    """Return the ``k`` nearest gallery rows of each query, nearest first, ties by gallery index.

    Scores are computed in float64 from the rows as given and ordered by (score, gallery index) before they are
    rounded. So the answer is exact: it does not depend on the backend, on ``block``, or on the other queries.
    Memory is O(Nq k) and one block; no (Nq, Ng) matrix is kept. Time is that of the product, unless most rows are
    near-duplicates of each other (collapsed features): then all of them are scored in float64, many times slower.

    Args:
        query: (Nq, d) floating point, tensor or NumPy array. Nq may be 0.
        gallery: (Ng, d), on the query's device.
        k: neighbors wanted, at least 1; more than Ng means all of them.
        metric: "cosine" (similarity in [-1, 1], 0 for a zero row), "dot" (inner product) or "euclidean" (the
            distance itself, not its square).
        backend: library that proposes candidates: "torch", or "faiss", from float32 copies. "auto" is "torch". The
            answer is the same.
        block: queries per block. Default: as many as keep a block of products at 32 MiB.

    Returns:
        values (Nq, k') and indices (Nq, k') int64, k' = min(k, Ng). Values descend for "cosine" and "dot" and ascend
        for "euclidean"; they are float64 if either input is, else float32. NumPy arrays if ``query`` is one.

    Raises:
        ValueError: for an empty gallery, sizes or devices that do not match, ``k`` or ``block`` below 1, an unknown
            option, NaN or an infinity, or (not for "cosine") float64 rows whose values would be infinite.
        TypeError: for anything but floating-point matrices and integer ``k`` and ``block``.
        ImportError: if ``backend="faiss"`` and faiss is not installed, or not for the GPU that the tensors are on.

    Example:
        >>> values, indices = topk(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0], [3.0, 0.0], [1.0, 0.0]]), 2)
        >>> values.tolist(), indices.tolist()
        ([[1.0, 1.0]], [[1, 2]])
    """
    k = check_count("k", k)
    check_option("metric", metric, ("cosine", "euclidean", "dot"))
    check_option("backend", backend, ("auto", "torch", "faiss"))
    if block is not None:
        block = check_count("block", block)
    q, g = check_pair(query, gallery)
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        scales = _scales(q, g, metric)
        if scales != (1, 1):
            q, g = q.double() * scales[0], g.double() * scales[1]
        values, indices = _topk(q, g, min(k, len(g)), metric, backend, block)
        if scales != (1, 1):
            values = values / scales[0] / (scales[1] if metric == "dot" else 1)
            if not values.isfinite().all():
                raise ValueError(f"query and gallery must have a {metric} value in the range of float64, got infinity")
    return same_kind(values, query), same_kind(indices, query)


def _topk(q: Tensor, g: Tensor, k: int, metric: Metric, backend: str, block: int | None) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(q.dtype, g.dtype), torch.float32)
    proposal_dtype = torch.float32 if backend == "faiss" else dtype
    queries, rows = prepare(q, metric, proposal_dtype, gallery=False), prepare(g, metric, proposal_dtype, gallery=True)
    propose = flat_proposer(rows.proposal, min(k + PAD, len(g))) if backend == "faiss" else None
    values = torch.empty(len(q), k, dtype=dtype, device=q.device)
    indices = torch.empty(len(q), k, dtype=torch.int64, device=q.device)
    for found in search(queries, rows, k, metric, block=block, propose=propose):
        values[found.rows] = to_float(found.scores, dtype, root=metric == "euclidean")
        indices[found.rows] = found.indices
    return values, indices


def _scales(q: Tensor, g: Tensor, metric: Metric) -> tuple[float, float]:
    """Return powers of two that take float64 rows of extreme size into the range of squares; 1 for all others."""
    if metric == "cosine" or torch.float64 not in (q.dtype, g.dtype):
        return 1, 1  # a cosine does not depend on them, and the squares of smaller types are in range
    groups = [(q,), (g,)] if metric == "dot" else [(q, g)] * 2
    left, right = (into_range(*group, dtype=torch.float64, wait=True) for group in groups)
    return left, right
