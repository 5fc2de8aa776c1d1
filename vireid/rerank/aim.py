"""AIM, the affinity inference module of SAAI, in sparse form."""

import sys
from typing import Literal

import torch
from torch import Tensor

from vireid._checks import Array, ArrayT, check_count, check_option, check_pair, same_kind
from vireid._ops import equalize_columns, rounding
from vireid.neighbors import NeighborGraph
from vireid.neighbors._exact import SMALL, blocks, neighbors_within, search
from vireid.neighbors._scores import Rows, prepare, products, rescore, to_float
from vireid.rerank._blocks import uses
from vireid.rerank._sparse import Sparse, mean_of_rows, rows_of, subtract_product
from vireid.rerank.fitted import GalleryReranker

Variant = Literal["paper", "released"]

AIM_SETTINGS: dict[str, dict[str, int]] = {
    "sysu_single_shot": {"k1": 4, "k2": 1},
    "sysu_multi_shot": {"k1": 20, "k2": 6},
    "regdb": {"k1": 8, "k2": 2},
    "sysu_indoor_single_shot_released": {"k1": 2, "k2": 2},
}
"""Values of k1 and k2 by protocol, for ``aim(query, gallery, **AIM_SETTINGS["regdb"])``.

The first three are the paper's (Sec. 4.2), for all-search and indoor-search alike. The authors' code uses 2 and 2 for
SYSU-MM01's indoor-search single-shot, where the paper prints 4 and 1.
"""


class AIM(GalleryReranker):
    """`aim` fitted to a gallery; see there for the settings.

    It has no query relations, which depend on all queries together.

    Example:
        >>> gallery = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> reranker = AIM(k1=2, k2=1).fit(gallery)
        >>> distance, index = reranker.topk(torch.tensor([[1.0, 0.0]]), 2)
        >>> index.tolist()
        [[0, 1]]
    """

    def __init__(self, *, k1: int | None, k2: int, variant: Variant = "paper") -> None:
        check_option("variant", variant, ("paper", "released"))
        self.k1, self.k2, self.variant = None if k1 is None else check_count("k1", k1), check_count("k2", k2), variant
        self._neighbors = max(self.k1 or 1, self.k2)

    def _prepare(self, graph: NeighborGraph) -> None:
        if self.k1 is None:
            self._factors = _dense_factors(graph, self.k2, self.variant)
            return
        expanded = _expanded(graph, self.k1, self.k2)
        if self.variant == "released":
            expanded = expanded.scaled(_inverse_lengths(_noise(graph), expanded)).transpose()
        self._right = expanded

    def _distance(self, query: Rows) -> Tensor:
        gallery, noise = self.graph.rows, _noise(self.graph)
        if self.k1 is None:
            affinity = weight = products(query.proposal, gallery.proposal)
            if self.variant == "released":
                exact = _exact_if_small(affinity, query, gallery)
                weight = exact * _inverse_length(exact, noise)
            left, right = self._factors
            return equalize_columns(1 - affinity - weight @ left @ right.T, self._repeated)
        (found,) = search(query, gallery, min(self.k1, len(self.graph)), block=len(query.given), ordered=False)
        block = equalize_columns(found.product, self._repeated).neg_().add_(1)
        value = to_float(found.scores, block.dtype)
        if self.variant == "released":
            value *= _inverse_length(value, noise)
        subtract_product(block, rows_of(found.indices, value, len(self.graph)), self._right)
        return block


@uses("gallery")  # with use_query_relations it is "transductive"
def aim(
    query: ArrayT,
    gallery: Array,
    *,
    k1: int | None,
    k2: int,
    variant: Variant = "paper",
    use_query_relations: bool = False,
) -> ArrayT:
    """Compute the distance 1 - A_qg - d* of the affinity inference module (SAAI, Algorithm 1, Eq. 6-10).

    A_qg and A_gg are cosines. Â keeps the k1 largest of each row, and Ã_gg is the mean of the rows of Â_gg that belong
    to the k2 nearest of each gallery image, itself first. Negative cosines may be kept, and then are not changed. Our
    choices: exactly k1 are kept, ties by lowest index, but a gallery image itself before all others in its own row (of
    three equal images each keeps itself at k1 = 1); a zero row has cosine 0 with all images, itself included; a row
    whose affinities are all below the rounding of the dtype and the dimension counts as a zero row, instead of being
    scaled to length 1.

    No (Ng, Ng) matrix is made unless k1 is a number near Ng, or None with query relations. Beyond the result, memory is
    O((Nq + Ng) k1 k2), or O((Nq + Ng) d) if k1 is None, the unit rows and one block.

    Args:
        query: (Nq, d) floating point, tensor or NumPy array. Nq may be 0.
        gallery: (Ng, d), on the query's device. Its dtype, at least float32, is that of the result.
        k1: entries kept in each row; None, or more than Ng, means all ("without removing", Table 6). The paper's values
            are in ``AIM_SETTINGS``.
        k2: gallery images averaged over, the image itself included; more than Ng means all.
        variant: "paper": d* = Â_qg Ã_gg. "released", as the authors' code does: the rows of both are scaled to length
            1 first, and the product is with the transpose.
        use_query_relations: also use the relations among the queries and from them to the gallery, as a commented-out
            part of the authors' code does. The rows become [Ã_qq, Â_qg] and, for "released", [Â_gq, Ã_gg]. Our
            choices: they are scaled as a whole, and in "paper" queries are represented by the rows of Â_qg as gallery
            images are by those of Ã_gg: d* = Ã_qq Â_qg + Â_qg Ã_gg. The method is then transductive: a query's result
            depends on the others.

    Returns:
        (Nq, Ng) distance, smaller = nearer; it may be negative. A NumPy array if ``query`` is one.

    Raises:
        ValueError, TypeError: for a bad shape, type, value or option, an empty gallery, NaN or an infinity, or two
            devices.

    Example:
        >>> gallery = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> aim(torch.tensor([[1.0, 0.0]]), gallery, k1=2, k2=1).round(decimals=2)  # 1 - A - (1.0 Ã_0 + 0.6 Ã_1)
        tensor([[-1.0000, -0.8000,  0.5200]])
    """
    check_option("use_query_relations", use_query_relations, (False, True))
    ranker = AIM(k1=k1, k2=k2, variant=variant)
    if not use_query_relations:
        return ranker(query, gallery)
    q, g = check_pair(query, gallery)
    k1, k2 = sys.maxsize if ranker.k1 is None else ranker.k1, ranker.k2
    graph = NeighborGraph.build(g, max(k1, k2))
    with torch.no_grad(), torch.autocast(g.device.type, enabled=False):
        return same_kind(_with_query_relations(q, graph, k1, k2, variant), query)


def _with_query_relations(query: Tensor, gallery: NeighborGraph, k1: int, k2: int, variant: Variant) -> Tensor:
    distance = gallery.values.new_empty(len(query), len(gallery))
    if not len(query):
        return distance
    rows = prepare(query, "cosine", distance.dtype, gallery=True)
    values, indices = neighbors_within(rows, min(max(k1, k2), len(query)))
    queries = NeighborGraph(query, indices, values.to(distance.dtype), rows=rows)
    qq, gg = _expanded(queries, k1, k2), _expanded(gallery, k1, k2)
    qg = _kept(queries.rows, gallery.rows, k1, distance)
    if variant == "paper":
        subtract_product(distance, qq, qg)
        subtract_product(distance, qg, gg)
    else:
        gq = _kept(gallery.rows, queries.rows, k1)
        noise = _noise(gallery)
        left, right = _inverse_lengths(noise, qq, qg), _inverse_lengths(noise, gq, gg)
        subtract_product(distance, qq.scaled(left), gq.scaled(right).transpose())
        subtract_product(distance, qg.scaled(left), gg.scaled(right).transpose())
    return distance


def _dense_factors(graph: NeighborGraph, k2: int, variant: Variant) -> tuple[Tensor, Tensor]:
    """Return factors (Ng, d) of d* for all affinities: A = X Gᵀ, with G the unit rows, and Ã = M Gᵀ, M means of G.

    "paper" needs left Rᵀ = M Gᵀ, "released" G Mᵀ with the rows of M scaled so that those of Ã have length 1.
    """
    unit = graph.rows.proposal
    k2 = min(k2, len(graph))
    mean = graph.weighted_sum(unit, unit.new_full((len(graph), k2), 1 / k2))
    if variant == "paper":
        return mean, unit
    for part in blocks(len(graph), len(graph), unit.element_size()):
        mean[part] *= _inverse_length(mean[part] @ unit.T, _noise(graph))
    return unit, mean


def _exact_if_small(affinity: Tensor, query: Rows, gallery: Rows) -> Tensor:
    """Return the affinities (b, Ng), computed exactly in rows so short that scaling them would scale rounding."""
    small = (affinity.norm(dim=1) < SMALL).nonzero().flatten()
    n = len(gallery.given)
    columns = torch.arange(n, device=small.device).repeat(len(small))
    exact = rescore(query, gallery, small.repeat_interleave(n), columns).view(len(small), n)
    return affinity.index_copy(0, small, to_float(exact, affinity.dtype))


def _inverse_length(x: Tensor, noise: float) -> Tensor:
    """Return 1 / length of the rows of ``x`` (b, m), 0 for a row without an entry above ``noise``: (b, 1)."""
    return torch.where(x.abs().amax(1, keepdim=True) > noise, 1 / x.norm(dim=1, keepdim=True), 0)


def _noise(graph: NeighborGraph) -> float:
    return rounding(graph.features.shape[1], graph.values.dtype)


def _inverse_lengths(noise: float, *matrices: Sparse) -> Tensor:
    """Return 1 / length of the rows of all matrices side by side, 0 for a row without an entry above ``noise``."""
    square = torch.stack([x.square_sums() for x in matrices]).sum(0)
    largest = torch.stack([x.largest() for x in matrices]).amax(0)
    return torch.where(largest > noise, square.rsqrt(), 0)


def _expanded(graph: NeighborGraph, k1: int, k2: int) -> Sparse:
    """Compute Ã (N, N) of a set's affinities with itself (Eq. 6-7)."""
    value = graph.values[:, :k1].clone()
    value[:, 0].masked_fill_(graph.rows.square == 0, 0)  # in the graph a zero row has cosine 1 with itself
    return mean_of_rows(graph.indices[:, :k2], graph.indices[:, :k1], value, len(graph))


def _kept(queries: Rows, gallery: Rows, k1: int, distance: Tensor | None = None) -> Sparse:
    """Compute Â (Nq, Ng), Eq. 6, and fill ``distance`` with 1 - A."""
    shape = len(queries.given), min(k1, len(gallery.given))
    index = torch.empty(shape, dtype=torch.int64, device=queries.given.device)
    value = queries.proposal.new_empty(shape)
    for found in search(queries, gallery, shape[1], ordered=False):
        index[found.rows], value[found.rows] = found.indices, to_float(found.scores, value.dtype)
        if distance is not None:
            distance[found.rows] = found.product.neg_().add_(1)
    return rows_of(index, value, len(gallery.given))
