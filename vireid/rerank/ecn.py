"""ECN, expanded cross neighborhood re-ranking (Sarfraz et al., CVPR 2018), without an (N, N) matrix."""

from collections.abc import Iterator
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

from vireid._checks import Array, ArrayT, check_count, check_option
from vireid.neighbors import NeighborGraph
from vireid.neighbors._exact import blocks, neighbors_within, search
from vireid.neighbors._scores import Rows
from vireid.rerank._alone import Entrance, find
from vireid.rerank._blocks import Queries, collect, joined, uses
from vireid.rerank._sparse import rows_of
from vireid.rerank.fitted import GalleryReranker, rank_alone


class ECN(GalleryReranker):
    """`ecn` with ``queries="alone"``, fitted to a gallery; see there for the settings.

    Example:
        >>> gallery = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.9, 0.1]])
        >>> ECN(t=1, q=1, k=2).fit(gallery).topk(torch.tensor([[1.0, 0.0]]), 2)[1].tolist()
        [[1, 2]]
    """

    def __init__(self, *, t: int = 3, q: int = 8, k: int = 25, metric: Literal["rank", "cosine"] = "rank") -> None:
        check_option("metric", metric, ("rank", "cosine"))
        self.t, self.q, self.metric = check_count("t", t), check_count("q", q), metric
        self.k = check_count("k", k, maximum=2**31)
        self._neighbors = max(self.t + 1, self.q + 1, self.k if metric == "rank" else 1)

    def _prepare(self, graph: NeighborGraph) -> None:
        n = len(graph)
        width = min(self._neighbors, n + 1)
        near = pad(graph.indices, (0, width - graph.k), value=n)  # where there is room, the query enters all rankings
        self._expansion = self._expanded(near, n + 1, graph.values.dtype)
        self._entrance = Entrance(graph, range(2, width + 1))

    def _expanded(self, near: Tensor, n: int, dtype: torch.dtype) -> "Expansion":
        return Expansion.of(near, n, self.t, self.q, self.k if self.metric == "rank" else None, dtype)

    def _distance(self, query: Rows) -> Tensor:
        expansion, rows = self._expansion, self.graph.rows
        n, width = expansion.n, expansion.near.shape[1]
        (found,) = search(query, rows, width - 1, block=len(query.given))
        one, image, enters = self._entrance(found, query, rows)
        first = torch.arange(len(query.given), device=one.device) * n
        # a query moves the images behind it in a ranking by one place
        place = width - enters.sum(1)
        kept = (place < width).nonzero().flatten()
        one, image, place = one[kept], image[kept], place[kept, None]
        column = torch.arange(width, device=one.device)
        ranking = expansion.near[image].gather(1, column - (column > place).long())
        ranking = ranking.masked_fill_(column == place, n - 1)
        own = pad(found.indices, (1, 0), value=n - 1)
        node, order = torch.cat([first[one] + image, first + n - 1]).sort()
        rankings = Rankings(expansion, node, torch.cat([ranking, own])[order])
        return rankings.distance(first + n - 1, found.product, query.proposal, rows.proposal)[:, :-1]


class Expansion(NamedTuple):
    """Rankings of n images, the image itself first, and the matrices that they make, in CSR form."""

    near: Tensor  # (≤ n, w)
    n: int
    first: tuple[Tensor, Tensor]  # neighbors: the entries of a row, by place in the ranking, and the matrix
    further: tuple[Tensor, Tensor]  # neighbors of neighbors
    ranks: tuple[Tensor, Tensor] | None  # [k + 1 - place]₊

    @classmethod
    def of(cls, near: Tensor, n: int, t: int, q: int, k: int | None, dtype: torch.dtype) -> "Expansion":
        """Return the matrices of rankings ``near``; without ``k`` images are compared by their cosine."""
        place = torch.arange(near.shape[1], device=near.device)

        def matrix(value: Tensor) -> tuple[Tensor, Tensor]:
            column, order = near[:, value > 0].sort(dim=1)
            rows = rows_of(column, value[value > 0][order], n)
            return value, rows._replace(start=pad(rows.start, (0, n - len(near)), value=len(rows.column))).csr()

        first, further = (matrix(((place > 0) & (place <= min(count, n))).to(dtype)) for count in (t, q))
        return cls(near, n, first, further, None if k is None else matrix((k - place).clamp_min(0).to(dtype)))


class Rankings(NamedTuple):
    """Rankings of the images of b sets, one per query, node i of set b having the number b n + i."""

    expansion: Expansion
    changed: Tensor  # (C,) nodes, ascending, whose ranking is another than in the expansion
    ranking: Tensor  # (C, w)

    def distance(self, query: Tensor, cosine: Tensor, x: Tensor, rows: Tensor) -> Tensor:
        """Compute the distances (b, n) of the nodes ``query`` (b,) from all images of their sets.

        ``cosine`` (b, m) and the unit rows x (b, d) of the queries and ``rows`` (m, d) are read without ranks only; the
        query is image m where m < n.
        """
        n, ranks = self.expansion.n, self.expansion.ranks
        base = query - query % n
        t, q = (x[0] > 0 for x in (self.expansion.first, self.expansion.further))
        near = self._rows(query)[:, t]
        far = self._rows((base[:, None] + near).view(-1))[:, q].reshape(len(query), -1)
        near = torch.cat([near, far], dim=1)  # (b, t + t q)
        count = near.shape[1]
        if ranks is None:
            own = near == len(rows)
            weight = (~own).to(rows.dtype)
            mean = embedding_bag(near.clamp_max(len(rows) - 1), rows, per_sample_weights=weight, mode="sum")
            mean += own.sum(1, keepdim=True) * x
            room = (0, n - len(rows))
            both = pad(mean @ rows.T, room)
            affinity = torch.cat([cosine, x.square().sum(1, keepdim=True)], dim=1)[:, :n].contiguous()
            largest = 1.0
        else:
            among = ranks[0] > 0
            value = ranks[0][among]
            affinity = value.new_zeros(len(query), n).scatter_(
                1, self._rows(query)[:, among], value.expand(len(query), -1)
            )
            affinity = self._times(ranks, affinity)
            column = self._rows((base[:, None] + near).view(-1))[:, among].reshape(len(query), -1)
            both = torch.zeros_like(affinity).scatter_add_(1, column, value.repeat(len(query), count))
            both = self._times(ranks, both)
            largest = float(value.square().sum())
        near_query = affinity + self._times(self.expansion.further, affinity)
        both = both + self._times(self.expansion.first, near_query)
        return both.mul_(-0.5 / (count * largest)).add_(1).clamp_min_(0)

    def _rows(self, node: Tensor) -> Tensor:
        near = self.expansion.near[(node % self.expansion.n).clamp_max(len(self.expansion.near) - 1)]
        place, differs = find(self.changed, node)
        differs = differs.nonzero().flatten()
        near[differs] = self.ranking[place[differs]]
        return near

    def _times(self, matrix: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
        value, rows = matrix
        out = (rows @ x.T.contiguous()).T.contiguous()
        base = self.changed - self.changed % self.expansion.n
        terms = x.view(-1)[base[:, None] + self.ranking[:, value > 0]]
        out.view(-1)[self.changed] = terms @ value[value > 0]
        return out


@overload
def ecn(
    query: ArrayT,
    gallery: Array,
    *,
    t: int = ...,
    q: int = ...,
    k: int = ...,
    metric: Literal["rank", "cosine"] = ...,
    queries: Queries = ...,
    top: None = ...,
) -> ArrayT: ...
@overload
def ecn(
    query: ArrayT,
    gallery: Array,
    *,
    t: int = ...,
    q: int = ...,
    k: int = ...,
    metric: Literal["rank", "cosine"] = ...,
    queries: Queries = ...,
    top: int,
) -> tuple[ArrayT, ArrayT]: ...
@uses("transductive")  # with queries="alone" it is "gallery"
def ecn(
    query: ArrayT,
    gallery: Array,
    *,
    t: int = 3,
    q: int = 8,
    k: int = 25,
    metric: Literal["rank", "cosine"] = "rank",
    queries: Queries = "all",
    top: int | None = None,
) -> ArrayT | tuple[ArrayT, ArrayT]:
    """Compute the expanded cross neighborhood distance (Sarfraz et al., CVPR 2018).

        N(i) = the t nearest of i, and the q nearest of each of these: t + t q images, some of them several times
        D(p, g) = ½ (mean of d(n, g) over n in N(p) + mean of d(n, p) over n in N(g))

    The ranking of an image begins with the image itself, which is not among its own t or q nearest. d is 1 - cosine, or
    compares rankings: d(i, j) = 1 - R_ij / R_ii, R_ij = Σ_m [k - L_i(m)]₊ [k - L_j(m)]₊, with L_i(m) the place of m in
    the ranking of i, from 0. The published Python code takes -R, which ranks alike, and its MATLAB code scales each row
    of R to [0, 1]. We had the published code, not the paper's text. Our choices: neighbors are ranked by the exact
    cosine, ties by index.

    D is linear in d, so that only products of a query's vector with the matrices of the t, q and k nearest are needed.
    Memory is O((Nq + Ng) max(t, q, k)), one block, and the result.

    Args:
        query: (Nq, d) floating point, tensor or NumPy array. Nq may be 0.
        gallery: (Ng, d), on the query's device.
        t: nearest images, at least 1; 3 in the published code. More than there are means all.
        q: nearest of each of these, at least 1; 8 in the published code. More than there are means all.
        k: places of a ranking that are compared, at least 1; 25 in the published code. Unused by ``metric="cosine"``.
        metric: d, of the rankings ("rank", as published) or of the features ("cosine").
        queries: "all": neighbors are searched among queries and gallery together. "alone": each query has exactly the
            distances that it has without the other queries; for many sets of queries fit an `ECN` once.
        top: None for all distances, or the number of nearest gallery images to return, at least 1, without an (Nq, Ng)
            matrix.

    Returns:
        (Nq, Ng) distance, smaller = nearer, in [0, 1], for "cosine" in [0, 2]; float64 if either input is, else
        float32. With ``top`` distances and indices (int64), both (Nq, min(top, Ng)), nearest first, ties by index.
        NumPy arrays if ``query`` is one.

    Raises:
        ValueError, TypeError: for a bad shape, type or value, an empty gallery, NaN or an infinity, or two devices.

    Example:
        >>> query, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.9, 0.1]])
        >>> ecn(query, gallery, t=1, q=1, k=2, top=2)[1].tolist()
        [[1, 2]]
    """
    ranker = ECN(t=t, q=q, k=k, metric=metric)
    check_option("queries", queries, ("all", "alone"))
    if queries == "alone":
        return rank_alone(ranker, query, gallery, top)
    rows, nq = joined(query, gallery, top)
    ng = len(rows.given) - nq
    with torch.no_grad(), torch.autocast(rows.given.device.type, enabled=False):
        out = rows.proposal.new_empty(nq, ng if top is None else min(top, ng))
        return collect(query, out, _distances(rows, nq, ranker), top)


def _distances(rows: Rows, nq: int, ranker: ECN) -> Iterator[tuple[slice, Tensor]]:
    """Compute the distances (b, Ng) of blocks of queries."""
    x, n = rows.proposal, len(rows.given)
    near = neighbors_within(rows, min(ranker._neighbors, n))[1]
    expansion = ranker._expanded(near, n, x.dtype)
    none = Rankings(expansion, near[:0, 0], near[:0])
    for part in blocks(nq, n, x.element_size()):
        node = torch.arange(part.stop - part.start, device=x.device) * (n + 1) + part.start
        cosine = x[part] @ x.T if ranker.metric == "cosine" else x[:0]
        yield part, none.distance(node, cosine, x[part], x)[:, nq:]
