"""Exact nearest neighbors with a defined order: the same answer from every backend, block size and batch of queries.

A fast float32 product proposes candidates; their scores are then computed again in float64, pair by pair, by
operations whose result depends only on the two rows. A bound on the product's rounding error says for which queries
that settles the answer; the others (many ties, duplicates, zero rows) score each gallery row it cannot rule out.

Three doors, for prepared rows: `search` a gallery for queries, `neighbors_within` a set, and `neighbors_across` two.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vireid.neighbors._scores import Metric, Rows, error_bound, infinity, products, rescore, score_lists, to_float

PAD = 8  # candidates beyond k: enough to settle all queries without unusually many near ties
_BLOCK_BYTES = 2**25  # size of one block of products
SMALL = 2**-4  # a query gets exact scores if the row of its k scores is shorter than this


class Found(NamedTuple):
    """The neighbors of a block of b queries, with the block's products."""

    rows: slice  # of the queries
    product: Tensor  # (b, Ng) of the proposals, for cosine the cosines
    scores: Tensor  # (b, k) float64 or their bits, descending: cosine, inner product, or minus the squared distance
    indices: Tensor  # (b, k)

    def error(self, queries: Rows, gallery: Rows) -> Tensor:
        """Return bounds (b,) on the errors of the cosines in ``product``, those of TF32 and the like included."""
        seen = (self.product.gather(1, self.indices) - to_float(self.scores)).abs().amax(1)
        return torch.maximum(error_bound(queries, gallery, "cosine")[0], 4 * seen)


def search(
    queries: Rows,
    gallery: Rows,
    k: int,
    metric: Metric = "cosine",
    *,
    block: int | None = None,
    ordered: bool = True,
    propose: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
) -> Iterator[Found]:
    """Find the exact k nearest of each query, block by block.

    Args:
        queries: prepared rows, with proposals of the gallery's dtype.
        gallery: prepared rows.
        k: neighbors wanted, at most the gallery's size.
        metric: as in `topk`.
        block: queries per block.
        ordered: False if only the set of the k nearest matters, not their order (cosine). The set is exact; the
            scores may be those of the product, unless all of a query's are so small that scaling them to length 1
            would scale rounding. Saves most of the scoring in float64 on the CPU.
        propose: takes proposals (b, d) to the values and indices of their min(k + PAD, Ng) largest products, in place
            of the products, which are then empty.
    """
    m = min(k + PAD, len(gallery.given))
    for part in blocks(len(queries.given), len(gallery.given), gallery.proposal.dtype.itemsize, block):
        some = queries.select(part)
        if propose is None:
            product = products(some.proposal, gallery.proposal)
            proposed, candidates = product.topk(m, dim=1)
        else:
            product, (proposed, candidates) = some.proposal[:0], propose(some.proposal)
        if ordered or some.given.device.type != "cpu" or not some.square.is_floating_point():
            scores, indices = _exact(some, gallery, proposed, candidates, product, k, metric)
        else:
            scores, indices = proposed[:, :k].double(), candidates[:, :k].clone()
            rest = _open_sets(some, gallery, proposed, indices[:, -1], k, metric)
            if len(rest):
                again = proposed[rest], candidates[rest], product[rest]
                scores[rest], indices[rest] = _exact(some.select(rest), gallery, *again, k, metric)
        yield Found(part, product, scores, indices)


def neighbors_within(
    rows: Rows, k: int, *, visit: Callable[[slice, slice, Tensor], None] | None = None
) -> tuple[Tensor, Tensor]:
    """Find the exact k nearest of each row among all rows by cosine, itself first.

    A product of two blocks of rows serves both, so that half of the N × N products are computed; none is kept.

    Args:
        rows: N rows, prepared for "cosine".
        k: neighbors wanted, the row itself included; at most N.
        visit: called with (rows, columns, product) of each block; the blocks cover the upper triangle. It must neither
            change nor keep the product.

    Returns:
        Cosines (N, k), float64 (float32 on a device without), 1 for the row itself (also where it is zero), and
        indices (N, k), by descending cosine, ties by index behind the row itself.
    """
    n, device = len(rows.given), rows.proposal.device
    if k == 1 and visit is None:
        return torch.ones_like(to_float(rows.square[:, None])), torch.arange(n, device=device)[:, None]
    best = _Best(n, min(k + PAD, n), rows.proposal)
    step = _tile(device, best.index.shape[1])
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
                best.merge(columns, product.T.contiguous(), top)
            best.merge(part, product, left)
    scores, indices = best.settled(rows, rows, k, step, within=True)
    scores[:, 0] = 1
    return scores, indices


def neighbors_across(
    left: Rows, right: Rows, k: int, *, visit: Callable[[slice, slice, Tensor], None] | None = None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Find the exact min(k, M) nearest of each of N rows among M others by cosine, and the min(k, N) nearest of those.

    A product of two blocks of rows serves both directions; none is kept.

    Args:
        left: N rows, prepared for "cosine", at least 1.
        right: M rows, likewise.
        k: neighbors wanted.
        visit: called with (rows, columns, product) of each block. It must neither change nor keep the product.

    Returns:
        Cosines and indices of the first rows, and of the others, as of `neighbors_within`, by descending cosine, ties
        by index.
    """
    n, m = len(left.given), len(right.given)
    forth, back = _Best(n, min(k + PAD, m), left.proposal), _Best(m, min(k + PAD, n), right.proposal)
    step = _tile(left.proposal.device, k + PAD)
    for top in range(0, n, step):
        part = slice(top, min(top + step, n))
        for start in range(0, m, step):
            columns = slice(start, min(start + step, m))
            product = left.proposal[part] @ right.proposal[columns].T
            if visit is not None:
                visit(part, columns, product)
            forth.merge(part, product, start)
            back.merge(columns, product.T.contiguous(), top)
    return forth.settled(left, right, min(k, m), step), back.settled(right, left, min(k, n), step)


class _Best:
    """The m largest products of each of n rows so far."""

    def __init__(self, n: int, m: int, like: Tensor) -> None:
        self.value = like.new_full((n, m), -torch.inf)  # no neighbor yet: behind every cosine
        self.index = torch.zeros((n, m), dtype=torch.int64, device=like.device)

    def merge(self, part: slice, product: Tensor, first: int) -> None:
        """Take in the products of rows ``part`` with those from ``first`` on."""
        m = self.index.shape[1]
        value, column = product.topk(min(m, product.shape[1]), dim=1)
        value, column = torch.cat([self.value[part], value], 1), torch.cat([self.index[part], column + first], 1)
        self.value[part], chosen = value.topk(m, dim=1)
        self.index[part] = column.gather(1, chosen)

    def settled(self, rows: Rows, others: Rows, k: int, step: int, *, within: bool = False) -> tuple[Tensor, Tensor]:
        """Return exact scores and indices (n, k) among ``others``; ``within``: those are the rows, itself first."""
        n, device = self.index.shape[0], self.index.device
        scores = to_float(rows.square[:0]).new_empty(n, k)
        indices = torch.empty(n, k, dtype=torch.int64, device=device)
        for start in range(0, n, step):
            part = slice(start, min(start + step, n))
            itself = torch.arange(part.start, part.stop, device=device) if within else None
            proposed = self.value[part], self.index[part], self.value[:0]
            found = _exact(rows.select(part), others, *proposed, k, "cosine", itself)
            scores[part], indices[part] = to_float(found[0], scores.dtype), found[1]
        return scores, indices


def best_per_row(score: Tensor, row: Tensor, rows: int, k: int) -> Tensor:
    """Return the places (rows, k) of the k largest of each row's scores, descending, ties in the order given.

    ``score`` (P,) holds at least k scores per row, and ``row`` (P,) the row of each, below ``rows``.
    """
    order = score.argsort(descending=True, stable=True)
    order = order[row[order].argsort(stable=True)]
    count = row.bincount(minlength=rows)
    return order[(count.cumsum(0) - count)[:, None] + torch.arange(k, device=row.device)]


def blocks(n: int, width: int, itemsize: int, step: int | None = None) -> Iterator[slice]:
    """Cut ``n`` rows of ``width`` entries into slices of ``step``, by default of at most 32 MiB or of one row."""
    step = step or max(1, _BLOCK_BYTES // (itemsize * width))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def _tile(device: torch.device, m: int) -> int:
    """Return the rows of a block of products of a set with itself, for m candidates per row.

    A block should fit into the cache of a CPU (16 MiB in float32) and keep a GPU busy, and have many times m columns,
    for that makes the selection of m fast.
    """
    return max(2048 if device.type == "cpu" else 8192, 64 * m)


def _exact(
    queries: Rows,
    gallery: Rows,
    proposed: Tensor,
    candidates: Tensor,
    product: Tensor,
    k: int,
    metric: Metric,
    itself: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return scores and indices (b, k) of the k best: of the candidates, or of all rows if these do not settle it.

    ``proposed`` and ``candidates`` (b, m) are the values and indices of the largest in ``product``, which may be empty.
    """
    order = candidates.sort(dim=1)  # by gallery index, so that a stable sort by score keeps ties in that order
    proposed, candidates = proposed.gather(1, order.indices), order.values.clamp_min(0)
    score = score_lists(queries, gallery, candidates, metric)
    bound, finite = error_bound(queries, gallery, metric)
    proposed = proposed.to(bound.dtype)
    expected = to_float(score, bound.dtype)
    if metric == "euclidean":
        expected = (expected + to_float(queries.square, bound.dtype)[:, None]) / 2
    # the bound leaves out TF32 and the like: the error seen here stands in for them
    difference = (expected - proposed).abs()
    if itself is not None:
        mine = candidates == itself[:, None]
        score, difference = score.masked_fill(mine, infinity(score)), difference.masked_fill(mine, 0)
    error = torch.maximum(bound, 4 * difference.amax(1))
    kth, last = proposed.topk(k, dim=1).values[:, -1], proposed.amin(1)
    best = score.sort(dim=1, descending=True, stable=True)
    scores, indices = best.values[:, :k], candidates.gather(1, best.indices[:, :k])
    if candidates.shape[1] == len(gallery.given):
        return scores, indices
    # from this limit on, a row's product leaves it a chance to be among the k best
    limit = torch.where(finite, kth - 2 * error, -torch.inf)
    rest = (~(last < limit)).nonzero().flatten()
    # all gallery rows may be scored for so many queries: pairs take many times the memory of products
    for part in rest.split(max(1, _BLOCK_BYTES // (32 * len(gallery.given)))):
        few = queries.select(part)
        within = ~((product[part] if len(product) else products(few.proposal, gallery.proposal)) < limit[part, None])
        if itself is not None:
            within.scatter_(1, itself[part, None], True)
        row, column = within.nonzero().T  # row by row, gallery indices ascending: ties stay in that order
        score = rescore(few, gallery, row, column, metric)
        if itself is not None:
            score = score.masked_fill(column == itself[part][row], infinity(score))
        best_of_all = best_per_row(score, row, len(part), k)
        scores[part], indices[part] = score[best_of_all], column[best_of_all]
    return scores, indices


def _open_sets(queries: Rows, gallery: Rows, proposed: Tensor, kth: Tensor, k: int, metric: Metric) -> Tensor:
    """Return the queries whose scores are small, or whose k-th and next proposal rounding may have swapped."""
    small = proposed[:, :k].norm(dim=1) < SMALL
    if proposed.shape[1] == k:  # all of the gallery
        return small.nonzero().flatten()
    score = to_float(rescore(queries, gallery, torch.arange(len(kth), device=kth.device), kth, metric))
    bound, finite = error_bound(queries, gallery, metric)
    # the bound leaves out TF32 and the like: the error seen at the k-th of all queries stands in for them
    seen = (score - proposed[:, k - 1]).abs().max()
    gap = proposed[:, k - 1].double() - proposed[:, k]
    return (small | ~finite | ~(gap > 2 * torch.maximum(bound, 4 * seen))).nonzero().flatten()
