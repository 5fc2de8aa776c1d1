"""GNN re-ranking in sparse form, without an (N, N) matrix."""

from collections.abc import Iterator
from typing import overload

import torch
from torch import Tensor

from vireid._checks import Array, ArrayT, check_at_least_zero, check_count
from vireid.neighbors._exact import neighbors_within
from vireid.neighbors._scores import Rows
from vireid.rerank._blocks import collect, joined, uses
from vireid.rerank._sparse import Sparse, accumulate, from_coo, parts, product, rows_of

_ENTRIES = 2**23  # of the last layer's rows per block
_WIDTH = 16  # queries per block on the CPU: a row of a block fills one line of the cache


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
) -> ArrayT: ...
@overload
def gnn(
    query: ArrayT, gallery: Array, *, k1: int = ..., k2: int = ..., layers: int = ..., alpha: float = ..., top: int
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
) -> ArrayT | tuple[ArrayT, ArrayT]:
    """Compare the rows of the k1-NN graph, spread over the k2-NN graph: GNN re-ranking (Zhang et al., 2020).

    Over queries and gallery together, A the 0/1 adjacency of the k1 nearest. Each layer takes A + Aᵀ, replaces a row
    by the sum over its k2 nearest of S^α times their rows, S the cosine, and L2-normalizes, as the published code does
    with its two layers and α = 2. The k nearest of an image include the image itself, first. Our choices: a negative S
    counts with its magnitude; neighbors are ranked by the exact cosine, ties by index; a distance that is only rounding
    counts as 0.

    It is transductive: a query's ranking depends on the other queries. Time is that of half the product of all images
    with all, plus little if neighbors have neighbors in common; memory is that of the rows after all layers but the
    last, one block, and the result. Those rows hold at most about (2 k1) (2 k2)^(layers-1) entries per image, unless
    some image is a neighbor of very many: if one is near all of them, they grow to (Nq + Ng)².

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
    k1, k2, layers = check_count("k1", k1), check_count("k2", k2), check_count("layers", layers)
    alpha = check_at_least_zero("alpha", alpha)
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
    graph = _both_ways(rows_of(near, torch.ones_like(near, dtype=dtype), n))
    near, order = index[:, :k2].sort(dim=1)
    weight = cosine.gather(1, order).abs().pow(alpha).to(dtype)

    def weights(part: slice) -> Sparse:
        return rows_of(near[part], weight[part], n).without_zeros()

    for _ in range(layers - 1):
        spread = product(weights(slice(n)), graph)
        graph = _both_ways(spread.scaled(_inverse(spread.square_sums())))

    # The last layer is W G, of the weights W and the graph G. Its rows are not kept: G is symmetric, so that the
    # products of queries with the gallery are (W_q G) G W_gᵀ.
    for part in parts((graph.start.diff()[near[nq:]] * (weight[nq:] != 0)).sum(1), _ENTRIES):
        part = slice(nq + part.start, nq + part.stop)
        weight[part] *= _inverse(product(weights(part), graph).square_sums())[:, None]
    to_gallery, step_back = weights(slice(nq, n)).csr(), graph.csr()
    width = _WIDTH if device.type == "cpu" else 32 * _WIDTH
    for start in range(0, nq, width):
        part = slice(start, min(start + width, nq))
        block = weight.new_zeros(part.stop - start, n)
        accumulate(block, weights(part), graph)
        block *= _inverse(block.square().sum(1, keepdim=True))
        cosine = to_gallery @ (step_back @ block.T.contiguous())  # (Ng, b)
        yield part, torch.threshold(1 - cosine.T, 32 * torch.finfo(dtype).eps, 0)


def _both_ways(matrix: Sparse) -> Sparse:
    """Return the sum of a square matrix and its transpose."""
    return from_coo(matrix.coo() + matrix.transpose().coo())


def _inverse(square: Tensor) -> Tensor:
    """Return 1 / length of rows by their squared lengths, 0 for a zero row."""
    return torch.where(square > 0, square.rsqrt(), 0)
