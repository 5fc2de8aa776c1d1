"""GNN re-ranking in sparse form, without an (N, N) matrix."""

from collections.abc import Iterator
from typing import overload

import torch
from torch import Tensor
from torch.nn.functional import pad

from vireid._checks import Array, ArrayT, check_at_least_zero, check_count, check_option
from vireid.neighbors import NeighborGraph
from vireid.neighbors._exact import Found, neighbors_within, search
from vireid.neighbors._scores import Rows, rescore, to_float
from vireid.rerank._alone import Entrance
from vireid.rerank._blocks import Queries, collect, joined, uses
from vireid.rerank._gnn_alone import Block, Lists, both_ways, inverse, prepare
from vireid.rerank._sparse import Sparse, accumulate, parts, product, rows_of
from vireid.rerank.fitted import GalleryReranker, rank_alone

_CHANGES = 2**19  # entries of the gallery's rows that a block of queries may change
_ENTRIES = 2**23  # of the last layer's rows per block
_WIDTH = 16  # queries per block on the CPU: a row of a block fills one line of the cache


class GNN(GalleryReranker):
    """`gnn` for queries alone, fitted to a gallery; see there for the settings.

    A query adds a row and a column to the gallery's graph and takes the last place in the lists of the images that it
    is near to. What follows from this is computed for each query; all else is fitted.

    Example:
        >>> gallery = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.9, 0.1]])
        >>> GNN(k1=2, k2=1).fit(gallery).topk(torch.tensor([[1.0, 0.0]]), 2)[1].tolist()
        [[1, 2]]
    """

    def __init__(self, *, k1: int = 26, k2: int = 7, layers: int = 2, alpha: float = 2.0) -> None:
        self.k1, self.k2, self.layers = check_count("k1", k1), check_count("k2", k2), check_count("layers", layers)
        self.alpha = check_at_least_zero("alpha", alpha)
        self._neighbors = max(self.k1, self.k2)

    def _prepare(self, graph: NeighborGraph) -> None:
        self._entrance = Entrance(graph, (self.k1, self.k2))
        self._layers = prepare(graph, self.k1, self.k2, self.layers, self.alpha)

    def _distance(self, query: Rows) -> Tensor:
        return self._nearest(query, len(self.graph))

    def _nearest(self, query: Rows, n: int) -> Tensor:
        most = min(max(self.k1, self.k2, 2) - 1, len(self.graph))
        (found,) = search(query, self.graph.rows, most, block=len(query.given))
        one, image, enters = self._entrance(found, query, self.graph.rows)
        adjacent, used = (
            self._lists(query, found, k, alpha, one[mask], image[mask])
            for k, alpha, mask in zip((self.k1, self.k2), (0.0, self.alpha), enters.T, strict=True)
        )
        cost = self._layers.reach[adjacent.near[:, 1:]].sum(1)
        cost.index_add_(0, adjacent.query, self._layers.reach[adjacent.image])
        block = found.product
        for part in parts(cost, min(_CHANGES, max(2**10, block.numel() // 4))):
            block[part] = Block(self._layers, adjacent.select(part), used.select(part)).cosine(n)
        return torch.threshold(1 - block, 32 * torch.finfo(block.dtype).eps, 0)

    def _lists(self, query: Rows, found: Found, k: int, alpha: float, one: Tensor, image: Tensor) -> Lists:
        """Return the queries' first k with itself, and the images that have a query among their first k."""
        n, dtype = len(self.graph), found.product.dtype
        near = pad(found.indices[:, : k - 1], (1, 0), value=n)
        cosine = to_float(found.scores[:, : k - 1], dtype)
        cosine = torch.cat([(query.square > 0).to(dtype)[:, None], cosine], dim=1)
        score = to_float(rescore(query, self.graph.rows, one, image), dtype)
        return Lists(near, cosine.abs().pow(alpha), one, image, score.abs().pow(alpha))


@overload
def gnn(
    query: ArrayT,
    gallery: Array,
    *,
    k1: int = ...,
    k2: int = ...,
    layers: int = ...,
    alpha: float = ...,
    top: None = ...,
    queries: Queries = ...,
) -> ArrayT: ...
@overload
def gnn(
    query: ArrayT,
    gallery: Array,
    *,
    k1: int = ...,
    k2: int = ...,
    layers: int = ...,
    alpha: float = ...,
    top: int,
    queries: Queries = ...,
) -> tuple[ArrayT, ArrayT]: ...
@uses("transductive")
def gnn(
    query: ArrayT,
    gallery: Array,
    *,
    k1: int = 26,
    k2: int = 7,
    layers: int = 2,
    alpha: float = 2.0,
    top: int | None = None,
    queries: Queries = "all",
) -> ArrayT | tuple[ArrayT, ArrayT]:
    """Compare the rows of the k1-NN graph, spread over the k2-NN graph: GNN re-ranking (Zhang et al., 2020).

    Over queries and gallery together, A the 0/1 adjacency of the k1 nearest. Each layer takes A + Aᵀ, replaces a row
    by the sum over its k2 nearest of S^α times their rows, S the cosine, and L2-normalizes, as the published code does
    with its two layers and α = 2. The k nearest of an image include the image itself, first. Our choices: a negative S
    counts with its magnitude; neighbors are ranked by the exact cosine, ties by index; a distance that is only rounding
    counts as 0.

    It is transductive: a query's ranking depends on the other queries. With ``queries="alone"`` each query has exactly
    the distances that it has without the other queries; for many sets of queries fit a `GNN` once. Time is that of half
    the product of all images with all, plus little if neighbors have neighbors in common; memory is that of the rows
    after all layers but the last, one block, and the result. Those rows hold at most about (2 k1) (2 k2)^(layers-1)
    entries per image, unless some image is a neighbor of very many: if one is near all, they grow to (Nq + Ng)².

    Args:
        query: (Nq, d) floating point, tensor or NumPy array. Nq may be 0.
        gallery: (Ng, d), on the query's device.
        k1: neighbors of the graph, at least 1, the image itself included; 26 in the published code. More than there
            are images means all.
        k2: neighbors of the propagation, at least 1, the image itself included; 7 in the published code.
        layers: rounds of propagation, at least 1.
        alpha: exponent of the weights, at least 0 and finite.
        top: None for all distances, or the number of nearest gallery images to return, at least 1, without an (Nq, Ng)
            matrix.
        queries: "all" together, or each "alone" with the gallery.

    Returns:
        (Nq, Ng) cosine distance of the rows, in [0, 1], float64 if either input is, else float32; with ``top``
        distances and indices (int64), both (Nq, min(top, Ng)), nearest first, ties by index. NumPy arrays if
        ``query`` is one.

    Raises:
        ValueError, TypeError: for a bad shape, type or value, an empty gallery, NaN or an infinity, or two devices.

    Example:
        >>> query, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.9, 0.1]])
        >>> gnn(query, gallery, k1=2, k2=1, top=2)[1].tolist()
        [[1, 2]]
    """
    ranker = GNN(k1=k1, k2=k2, layers=layers, alpha=alpha)
    check_option("queries", queries, ("all", "alone"))
    if queries == "alone":
        return rank_alone(ranker, query, gallery, top)
    k1, k2, layers, alpha = ranker.k1, ranker.k2, ranker.layers, ranker.alpha
    rows, nq = joined(query, gallery, top)
    ng = len(rows.given) - nq
    with torch.no_grad(), torch.autocast(rows.given.device.type, enabled=False):
        out = rows.proposal.new_empty(nq, ng if top is None else min(top, ng))
        return collect(query, out, _distances(rows, nq, k1, k2, layers, alpha), top)


def _distances(rows: Rows, nq: int, k1: int, k2: int, layers: int, alpha: float) -> Iterator[tuple[slice, Tensor]]:
    """Compute the distances (b, Ng) of blocks of queries."""
    n, dtype, device = len(rows.given), rows.proposal.dtype, rows.given.device
    cosine, index = neighbors_within(rows, min(max(k1, k2), n))
    cosine[:, 0] = (rows.square > 0).to(cosine.dtype)  # a zero row has cosine 0 with all images, itself included
    near = index[:, :k1].sort(dim=1).values
    graph = both_ways(rows_of(near, torch.ones_like(near, dtype=dtype), n))
    near, order = index[:, :k2].sort(dim=1)
    weight = cosine.gather(1, order).abs().pow(alpha).to(dtype)

    def weights(part: slice) -> Sparse:
        return rows_of(near[part], weight[part], n).without_zeros()

    for _ in range(layers - 1):
        spread = product(weights(slice(n)), graph)
        graph = both_ways(spread.scaled(inverse(spread.square_sums())))

    # The last layer is W G, of the weights W and the graph G. Its rows are not kept: G is symmetric, so that the
    # products of queries with the gallery are (W_q G) G W_gᵀ.
    for part in parts((graph.start.diff()[near[nq:]] * (weight[nq:] != 0)).sum(1), _ENTRIES):
        part = slice(nq + part.start, nq + part.stop)
        weight[part] *= inverse(product(weights(part), graph).square_sums())[:, None]
    to_gallery, step_back = weights(slice(nq, n)).csr(), graph.csr()
    width = _WIDTH if device.type == "cpu" else 32 * _WIDTH
    for start in range(0, nq, width):
        part = slice(start, min(start + width, nq))
        block = weight.new_zeros(part.stop - start, n)
        accumulate(block, weights(part), graph)
        block *= inverse(block.square().sum(1, keepdim=True))
        cosine = to_gallery @ (step_back @ block.T.contiguous())  # (Ng, b)
        yield part, torch.threshold(1 - cosine.T, 32 * torch.finfo(dtype).eps, 0)
