"""Exact nearest neighbours with a defined order: the same answer from every backend, block size and batch of queries.

A fast float32 product proposes candidates; their scores are then computed again in float64, pair by pair, by
operations whose result depends on nothing but the two rows. A bound on the product's rounding error says which rows
are settled by that; the others (many ties, duplicates, zero rows) get every gallery row the bound cannot rule out.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vireid._checks import Array, check_count, check_option, check_pair, same_kind
from vireid.neighbors._faiss import flat_proposer

__all__ = [
    "Found",
    "Rows",
    "error_bound",
    "nearest_first",
    "neighbours_within",
    "prepare",
    "products",
    "score_pairs",
    "search",
    "topk",
]

Metric = Literal["cosine", "euclidean", "dot"]

_PAD = 8  # candidates beyond k: enough to settle all rows without unusually many near ties
_BLOCK_BYTES = 2**25  # of one block of products
_FEW = 4  # queries up to which a product on the CPU is bound by reading the gallery


class Rows(NamedTuple):
    """Rows as given and what both kinds of score need of them."""

    given: Tensor  # (N, d)
    length: Tensor  # (N,) float64
    proposal: Tensor  # (N, d) or (N, d+1), float32 or float64: proposal_q @ proposal_g grows with nearness


class Found(NamedTuple):
    """What `search` found for a block of b queries."""

    rows: slice  # of the queries
    product: Tensor | None  # (b, Ng) of the proposals, for cosine the cosines; None where another index proposed
    scores: Tensor  # (b, k) float64, descending: cosine, inner product, or minus the squared distance
    indices: Tensor  # (b, k)


def topk(
    query: Array,
    gallery: Array,
    k: int,
    *,
    metric: Metric = "cosine",
    backend: Literal["auto", "torch", "faiss"] = "auto",
    block: int | None = None,
) -> tuple[Any, Any]:
    """The ``k`` nearest gallery rows of each query, nearest first, ties by gallery index.

    Scores are computed in float64 from the rows as given and ordered by (score, gallery index) before they are
    rounded, so the answer is exact: it does not depend on the backend, on ``block``, or on the other queries.
    Memory is O(Nq k) and one block; no (Nq, Ng) matrix is kept. Time is that of the product, unless most rows are
    near-duplicates of each other (collapsed features): then all of them are scored in float64, many times slower.

    Args:
        query: (Nq, d) floating point, tensor or NumPy array. Nq may be 0.
        gallery: (Ng, d), on the query's device.
        k: neighbours wanted, at least 1; more than Ng means all of them.
        metric: "cosine" (similarity in [-1, 1], 0 for a zero row), "dot" (inner product) or "euclidean" (the
            distance itself, not its square).
        backend: what makes the products: "torch", or "faiss", whose product of float32 copies is its own. "auto" is
            "torch", which measured no slower on the whole (``benchmarks/speed/neighbors.py``). The answer is the same.
        block: queries worked on at once. Default: as many as keep a block of products at 32 MiB.

    Returns:
        values (Nq, k') and indices (Nq, k') int64, k' = min(k, Ng). Values descend for "cosine" and "dot" and ascend
        for "euclidean"; they are float64 if either input is, else float32. NumPy arrays if ``query`` is one.

    Raises:
        ValueError: for an empty gallery, sizes or devices that do not match, ``k`` or ``block`` below 1, an unknown
            option, NaN or an infinity, or (not for "cosine") float64 rows whose squares overflow.
        TypeError: for anything but floating-point matrices and integer ``k`` and ``block``.
        ImportError: if ``backend="faiss"`` and faiss is not installed, or not for the GPU that the tensors are on.

    Example:
        >>> values, indices = topk(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0], [3.0, 0.0], [1.0, 0.0]]), 2)
        >>> values.tolist(), indices.tolist()
        ([[1.0, 1.0]], [[1, 2]])
    """
    check_count("k", k)
    check_option("metric", metric, ("cosine", "euclidean", "dot"))
    check_option("backend", backend, ("auto", "torch", "faiss"))
    if block is not None:
        check_count("block", block)
    q, g = check_pair(query, gallery)
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        values, indices = _topk(q, g, min(k, len(g)), metric, backend, block)
    return same_kind(values, query), same_kind(indices, query)


def _topk(q: Tensor, g: Tensor, k: int, metric: Metric, backend: str, block: int | None) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(q.dtype, g.dtype), torch.float32)
    proposal_dtype = torch.float32 if backend == "faiss" else dtype
    queries, rows = prepare(q, metric, proposal_dtype, gallery=False), prepare(g, metric, proposal_dtype, gallery=True)
    for name, x in (("query", queries), ("gallery", rows)):
        if metric != "cosine" and not bool(x.length.isfinite().all()):
            raise ValueError(f"{name} must have finite lengths for metric={metric!r}, got rows whose squares overflow")
    propose = flat_proposer(rows.proposal, min(k + _PAD, len(g))) if backend == "faiss" else None
    values = torch.empty(len(q), k, dtype=dtype, device=q.device)
    indices = torch.empty(len(q), k, dtype=torch.int64, device=q.device)
    for found in search(queries, rows, k, metric, block=block, propose=propose):
        best = found.scores
        values[found.rows] = best.neg().clamp_min(0).sqrt() if metric == "euclidean" else best
        indices[found.rows] = found.indices
    return values, indices


def search(
    queries: Rows,
    gallery: Rows,
    k: int,
    metric: Metric = "cosine",
    *,
    block: int | None = None,
    propose: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    ordered: bool = True,
) -> Iterator[Found]:
    """The exact k nearest of each query, block by block; k is at most the gallery's size.

    Args:
        queries: prepared rows, with proposals of the gallery's dtype.
        gallery: prepared rows.
        k: neighbours wanted.
        metric: as in `topk`.
        block: queries of a block.
        propose: instead of the product, (b, d) proposals -> values and indices of its min(k + 8, Ng) best.
        ordered: False where only the set of the k nearest matters, not their order (cosine, dot). The set is exact;
            the scores may be those of the product. Saves most of the scoring in float64 on the CPU.
    """
    m = min(k + _PAD, len(gallery.given))
    itemsize = gallery.proposal.dtype.itemsize
    block = block or max(1, _BLOCK_BYTES // (len(gallery.given) * itemsize))
    for start in range(0, len(queries.given), block):
        part = slice(start, min(start + block, len(queries.given)))
        some = Rows(*(x[part] for x in queries))
        product = products(some.proposal, gallery.proposal) if propose is None else None
        proposed, candidates = product.topk(m, dim=1) if product is not None else propose(some.proposal)  # type: ignore[misc]
        if ordered or some.given.device.type != "cpu":
            scores, indices = _exact(some, gallery, proposed, candidates, product, k, metric)
        else:
            scores, indices = proposed[:, :k].double(), candidates[:, :k].clone()
            rest = _open_sets(some, gallery, proposed, indices[:, -1], k, metric)
            if len(rest):
                few = Rows(*(x[rest] for x in some))
                again = None if product is None else product[rest]
                scores[rest], indices[rest] = _exact(few, gallery, proposed[rest], candidates[rest], again, k, metric)
        yield Found(part, product, scores, indices)


def _exact(
    queries: Rows,
    gallery: Rows,
    proposed: Tensor,
    candidates: Tensor,
    product: Tensor | None,
    k: int,
    metric: Metric,
) -> tuple[Tensor, Tensor]:
    """Scores (b, k) and indices of the k best: of the candidates, or of all rows where these do not settle it."""
    scores, indices, limit = _settle(queries, gallery, proposed, candidates, k, metric)
    rest = (limit < torch.inf).nonzero().flatten()
    for part in rest.split(_rows_at_once(gallery)):
        few = Rows(*(x[part] for x in queries))
        again = products(few.proposal, gallery.proposal) if product is None else product[part]
        scores[part], indices[part] = _all_within(few, gallery, again, limit[part], k, metric)
    return scores, indices


def _open_sets(queries: Rows, gallery: Rows, proposed: Tensor, kth: Tensor, k: int, metric: Metric) -> Tensor:
    """The queries whose k-th and next proposal are so close that rounding may have swapped them."""
    if proposed.shape[1] == k:  # all of the gallery
        return kth[:0]
    score = score_pairs(queries, gallery, torch.arange(len(kth), device=kth.device), kth, metric)
    bound, finite = error_bound(queries, gallery, metric)
    # TF32 and the like are no part of the bound: the error seen at the k-th of all queries stands in for them
    seen = (score - proposed[:, k - 1]).abs().max()
    gap = proposed[:, k - 1].double() - proposed[:, k]
    return (~finite | ~(gap > 2 * torch.maximum(bound, 4 * seen))).nonzero().flatten()


def neighbours_within(
    rows: Rows, k: int, *, visit: Callable[[slice, slice, Tensor], None] | None = None
) -> tuple[Tensor, Tensor]:
    """The exact k nearest of each row among all rows by cosine, itself first; k is at most their number.

    A product of two blocks of rows serves both, so that half of the N × N products are computed, and none kept.

    Args:
        rows: N rows, prepared for "cosine".
        k: neighbours wanted, the row itself included.
        visit: called with (rows, columns, product) of each block; the blocks cover the upper triangle. ``visit`` must
            leave the product as it is, and not keep it: it is changed after the call.

    Returns:
        Cosines (N, k), float64, 1 for the row itself (also where it is zero), and indices (N, k), by descending
        cosine, ties by index behind the row itself.
    """
    n, device = len(rows.given), rows.proposal.device
    if k == 1 and visit is None:
        return torch.ones(n, 1, dtype=torch.float64, device=device), torch.arange(n, device=device)[:, None]
    m = min(k + _PAD, n)
    step = _tile(device, m)
    # what was found so far: nothing, which is behind everything
    best = torch.full((n, m), -torch.inf, dtype=rows.proposal.dtype, device=device)
    index = torch.zeros((n, m), dtype=torch.int64, device=device)

    def merge(part: slice, product: Tensor, first: int) -> None:
        value, column = product.topk(min(m, product.shape[1]), dim=1)
        value, column = torch.cat([best[part], value], 1), torch.cat([index[part], column + first], 1)
        best[part], chosen = value.topk(m, dim=1)
        index[part] = column.gather(1, chosen)

    for top in range(0, n, step):
        part = slice(top, min(top + step, n))
        for left in range(top, n, step):
            columns = slice(left, min(left + step, n))
            product = rows.proposal[part] @ rows.proposal[columns].T
            if visit is not None:
                visit(part, columns, product)
            if left == top:
                product.fill_diagonal_(torch.inf)
            else:
                merge(columns, product.T.contiguous(), top)
            merge(part, product, left)

    scores = torch.empty(n, k, dtype=torch.float64, device=device)
    indices = torch.empty(n, k, dtype=torch.int64, device=device)
    limit = torch.empty(n, dtype=torch.float64, device=device)
    for start in range(0, n, step):
        part = slice(start, min(start + step, n))
        some = Rows(*(x[part] for x in rows))
        itself = torch.arange(part.start, part.stop, device=device)
        scores[part], indices[part], limit[part] = _settle(some, rows, best[part], index[part], k, "cosine", itself)
    rest = (limit < torch.inf).nonzero().flatten()
    for few in rest.split(_rows_at_once(rows)):
        some = Rows(*(x[few] for x in rows))
        again = some.proposal @ rows.proposal.T
        again[torch.arange(len(few), device=device), few] = torch.inf
        scores[few], indices[few] = _all_within(some, rows, again, limit[few], k, "cosine", few)
    scores[:, 0] = 1
    return scores, indices


def products(queries: Tensor, gallery: Tensor) -> Tensor:
    """``queries @ gallery.T`` (b, Ng) of proposals, also fast for a few queries."""
    few = queries.device.type == "cpu" and len(queries) <= _FEW
    if not few or not len(queries):
        return queries @ gallery.T
    # with the gallery on the left and two columns at least, memory is read at full speed: three times as fast here
    q = queries.repeat(2, 1) if len(queries) == 1 else queries
    return (gallery @ q.T).T[: len(queries)].contiguous()


def nearest_first(distance: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The ``n`` smallest of each row of ``distance`` (b, Ng), ascending, ties by index: values and indices (b, n)."""
    more = distance.topk(min(n + 1, distance.shape[1]), dim=1, largest=False)
    values, indices = more.values[:, :n], more.indices[:, :n].clone()
    contested = (more.values[:, n:] == values[:, -1:]).any(1).nonzero().flatten()
    if len(contested):  # more than one candidate for the last place: the lowest indices have it
        rows, last = distance[contested], values[contested, -1:]
        within, tied = rows < last, rows == last
        within |= tied & (tied.cumsum(1) <= n - within.sum(1, keepdim=True))
        indices[contested] = within.nonzero()[:, 1].view(-1, n)
    indices = indices.sort(dim=1).values
    order = distance.gather(1, indices).sort(dim=1, stable=True)
    return order.values, indices.gather(1, order.indices)


def _tile(device: torch.device, m: int) -> int:
    """Rows of a block of products of a set with itself, for m candidates a row.

    On the CPU a cache should hold it (16 MiB in float32), a GPU it should keep busy; and a selection of m is fast where
    it is from many times as many.
    """
    return max(2048 if device.type == "cpu" else 8192, 64 * m)


def _settle(
    queries: Rows,
    gallery: Rows,
    proposed: Tensor,
    candidates: Tensor,
    k: int,
    metric: Metric,
    itself: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores again the m candidates (b, m) that a product proposed with the values ``proposed``.

    Returns:
        The k best scores (b, k) in float64 and their indices, and (b,) the product from which a gallery row may still
        belong to them: +inf where it is settled that none does, -inf where any may. For those `_all_within` is there.
    """
    m = candidates.shape[1]
    proposed = proposed.double()
    order = candidates.sort(dim=1)  # by gallery index, so that a stable sort by score keeps ties in that order
    proposed, candidates = proposed.gather(1, order.indices), order.values.clamp_min(0)
    score = _score_lists(queries, gallery, candidates, metric)
    bound, finite = error_bound(queries, gallery, metric)
    # TF32 and the like are no part of the bound: the error that is seen here stands in for them
    difference = (_as_proposal(score, queries.length, metric) - proposed).abs()
    if itself is not None:
        mine = candidates == itself[:, None]
        score, difference = score.masked_fill(mine, torch.inf), difference.masked_fill(mine, 0)
    error = torch.maximum(bound, 4 * difference.amax(1))
    kth, last = proposed.topk(k, dim=1).values[:, -1], proposed.amin(1)
    settled = (finite & (last < kth - 2 * error)) if m < len(gallery.given) else torch.ones_like(finite)
    best = score.sort(dim=1, descending=True, stable=True)
    limit = torch.where(finite, kth - 2 * error, -torch.inf).masked_fill(settled, torch.inf)
    return best.values[:, :k], candidates.gather(1, best.indices[:, :k]), limit


def error_bound(queries: Rows, gallery: Rows, metric: Metric) -> tuple[Tensor, Tensor]:
    """How far a product may be from the score it stands for (b,), and whether it is sure to be finite (b,)."""
    info = torch.finfo(gallery.proposal.dtype)
    size = gallery.length.max()  # bounds of sum_i |q_i g_i|, the size of what the product adds up
    if metric == "cosine":
        magnitude = torch.ones_like(queries.length)
    elif metric == "dot":
        magnitude = queries.length * size
    else:
        magnitude = queries.length * size + size.square() / 2
    bound = (queries.given.shape[1] + 16) * (info.eps / 2 * magnitude + info.smallest_normal)
    return bound, magnitude < info.max / 4


def prepare(x: Tensor, metric: Metric, dtype: torch.dtype, *, gallery: bool) -> Rows:
    """Rows (N, d) ready for `search`; ``dtype`` of the proposals, ``gallery`` says on which side they stand."""
    if x.dtype == torch.float64 and metric == "cosine":
        x = _in_range(x)
    step = _pairs_at_once(x)
    length = torch.empty(len(x), dtype=torch.float64, device=x.device)
    proposal = torch.empty(x.shape, dtype=dtype, device=x.device) if metric == "cosine" else x.to(dtype)
    buffer = torch.empty(min(step, len(x)), x.shape[1], dtype=torch.float64, device=x.device)
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        values = buffer[: len(x[part])]
        length[part] = _sum(values.copy_(x[part]).square_()).sqrt()
        if metric == "cosine":
            proposal[part] = values.copy_(x[part]).mul_(torch.where(length[part] > 0, 1 / length[part], 1)[:, None])
    if metric == "euclidean":  # |q-g|^2 = |q|^2 - 2 (q.g - |g|^2/2), and |q|^2 does not change a query's order
        last = -length.square() / 2 if gallery else torch.ones_like(length)
        proposal = torch.cat([proposal, last.to(dtype)[:, None]], dim=1)
    return Rows(x, length, proposal)


def _in_range(x: Tensor) -> Tensor:
    """Float64 rows (N, d) whose squares neither overflow nor vanish, multiplied by powers of two: the same cosines."""
    if not x.numel():
        return x
    power = -torch.frexp(torch.maximum(x.amax(1), -x.amin(1))).exponent
    power = power.where(power.abs() > 400, 0)
    if not power.any():
        return x
    half = power // 2  # 2^power alone may overflow
    return x * torch.exp2(half.double())[:, None] * torch.exp2((power - half).double())[:, None]


def _pairs_at_once(x: Tensor) -> int:
    """Rows of ``x`` in float64 that a block holds: on the CPU it should stay in a cache, a GPU it should keep busy."""
    block_bytes = 2**21 if x.device.type == "cpu" else 2**28
    return max(1, block_bytes // (8 * max(1, x.shape[1])))


def _sum(x: Tensor) -> Tensor:
    """Row sums of ``x`` (N, d) by halving, which it overwrites: elementwise additions only.

    Unlike ``sum`` or a matrix product, the result depends on the row alone, not on its neighbours, its place in
    memory, the number of threads or the device. So equal rows have equal scores, and ties stay ties.
    """
    while x.shape[1] > 1:
        half = x.shape[1] // 2
        x[:, :half] += x[:, -half:]  # an odd middle column waits for the next round
        x = x[:, : x.shape[1] - half]
    return x[:, 0] if x.shape[1] else x.new_zeros(len(x))


def score_pairs(q: Rows, g: Rows, row: Tensor, column: Tensor, metric: Metric) -> Tensor:
    """Scores (P,) in float64 of the pairs (``row``, ``column``), larger = nearer; euclidean: minus the square."""
    step = _pairs_at_once(q.given)
    parts = [
        _score_lists(Rows(*(x[r] for x in q)), g, c[:, None], metric)[:, 0]
        for r, c in zip(row.split(step), column.split(step), strict=True)
    ]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64, device=row.device)


def _score_lists(q: Rows, g: Rows, columns: Tensor, metric: Metric) -> Tensor:
    """Scores (b, m) in float64 of each query with its gallery rows ``columns`` (b, m), as `score_pairs`."""
    (b, m), d = columns.shape, q.given.shape[1]
    step = max(1, min(b, _pairs_at_once(q.given) // m))
    # one set of buffers for all blocks: fetching fresh memory for each costs more than the arithmetic
    rows = g.given.new_empty(step * m, d)
    terms = torch.empty(step, m, d, dtype=torch.float64, device=columns.device)
    score = torch.empty(b, m, dtype=torch.float64, device=columns.device)
    for start in range(0, b, step):
        part = slice(start, min(start + step, b))
        n = part.stop - start
        some = torch.index_select(g.given, 0, columns[part].reshape(-1), out=rows[: n * m])
        terms[:n].copy_(some.view(n, m, d))
        mine = q.given[part].double()[:, None]
        if metric == "euclidean":
            terms[:n].sub_(mine).square_()
        else:
            terms[:n].mul_(mine)
        score[part] = _sum(terms[:n].view(n * m, d)).view(n, m)
    if metric == "euclidean":
        score.neg_()
    if metric == "cosine":
        length = q.length[:, None] * g.length[columns]
        score = torch.where(length > 0, score / length, 0)
    return score


def _as_proposal(score: Tensor, length: Tensor, metric: Metric) -> Tensor:
    return (score + length.square()[:, None]) / 2 if metric == "euclidean" else score


def _rows_at_once(gallery: Rows) -> int:
    """Queries for which all gallery rows may have to be scored: pairs take many times the memory of products."""
    return max(1, _BLOCK_BYTES // (32 * len(gallery.given)))


def _all_within(
    q: Rows, g: Rows, product: Tensor, limit: Tensor, k: int, metric: Metric, itself: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k best of every gallery row whose product is not below ``limit``: exact, for the rows _PAD did not settle."""
    within = ~(product < limit[:, None])  # NaN, from an overflow, stays in
    row, column = within.nonzero().T  # row by row, gallery indices ascending: stable sorts keep that order within ties
    score = score_pairs(q, g, row, column, metric)
    if itself is not None:
        score = score.masked_fill(column == itself[row], torch.inf)
    order = score.argsort(descending=True, stable=True)
    order = order[row[order].argsort(stable=True)]
    count = within.sum(1)
    place = (count.cumsum(0) - count)[:, None] + torch.arange(k, device=count.device)
    return score[order[place]], column[order[place]]
