"""Dense, plain forms of the post-processing methods that CIFT is compared with: (query, gallery) -> distance (Nq, Ng).

They are yardsticks for the table of ``benchmarks/tables/cift.py`` and nothing else: whole N × N matrices are kept,
which is fine for RegDB's 4,120 images. The library's re-rankers are sparse, in bounded memory.

All take query (Nq, d) and gallery (Ng, d), L2-normalize them, and raise ValueError or TypeError for a bad shape, type,
value or option, or an empty gallery. "The k nearest" of an image that is in the searched set includes the image itself,
which always comes first; ties go to the lowest index. The attribute ``uses`` of each function: "gallery" (a query's
ranking depends on the gallery only) or "transductive" (on the other queries too).
"""

from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from torch import Tensor

from vireid._checks import check_count, check_finite, check_option, check_tensor
from vireid._ops import at_least_float32, normalize_rows

__all__ = ["aim", "cmkr", "ecn", "gnn", "k_reciprocal", "k_reciprocal_parts", "query_expansion"]

_PAIRS = 1 << 22  # pairs of non-zeros that are worked on at once

Function = TypeVar("Function", bound=Callable[..., object])


def _uses(what: str) -> Callable[[Function], Function]:
    """Give a function the attribute ``uses``."""

    def mark(function: Function) -> Function:
        setattr(function, "uses", what)  # noqa: B010  # a plain assignment is an error to mypy
        return function

    return mark


@_uses("gallery")
def aim(
    query: Tensor, gallery: Tensor, *, k1: int, k2: int, variant: Literal["released", "paper"] = "released"
) -> Tensor:
    """Compute the affinity inference module (SAAI, Algorithm 1, Eq. 6-10): 1 - A_qg - d*.

    Args:
        query: (Nq, d).
        gallery: (Ng, d).
        k1: entries kept in each row of A_qg and A_gg. In the paper 8 for RegDB, 4 and 20 for SYSU-MM01's two settings.
        k2: gallery rows that are averaged, the image's own included. In the paper 2; 1 and 6.
        variant: "paper": d* = Â_qg Ã_gg. "released", as the authors' code does: the rows of both are L2-normalized
            first, and the product is with the transpose.

    Returns:
        (Nq, Ng) distance; it may be negative.
    """
    q, g = _unit_rows(query, gallery)
    check_count("k1", k1)
    check_count("k2", k2)
    check_option("variant", variant, ("released", "paper"))
    affinity_qg, affinity_gg = q @ g.T, g @ g.T
    order = _self_first(affinity_gg)
    kept_qg = torch.where(_nearest(affinity_qg, k1), affinity_qg, 0)
    kept_gg = torch.where(_nearest(order, k1), affinity_gg, 0)
    expanded = _mean_over(_nearest(order, k2), kept_gg)
    if variant == "paper":
        return 1 - affinity_qg - _product(kept_qg, expanded)
    return 1 - affinity_qg - _product(normalize_rows(kept_qg), normalize_rows(expanded).T)


@_uses("transductive")
def k_reciprocal(query: Tensor, gallery: Tensor, *, k1: int = 20, k2: int = 6, lambda_value: float = 0.3) -> Tensor:
    """Compute k-reciprocal encoding (Zhong et al., CVPR 2017): (1 - λ) Jaccard + λ D over queries and gallery together.

    A k-neighborhood is the first k + 1 of the ranking, the image itself included, as in the published code.

    Args:
        query: (Nq, d).
        gallery: (Ng, d).
        k1: size of the reciprocal neighborhoods.
        k2: encodings that are averaged, the image's own included.
        lambda_value: λ in [0, 1].

    Returns:
        (Nq, Ng) distance in [0, 1].
    """
    if not 0 <= lambda_value <= 1:
        raise ValueError(f"lambda_value must be in [0, 1], got {lambda_value}")
    jaccard, distance = k_reciprocal_parts(query, gallery, k1=k1, k2=k2)
    return (1 - lambda_value) * jaccard + lambda_value * distance


@_uses("transductive")
def k_reciprocal_parts(query: Tensor, gallery: Tensor, *, k1: int = 20, k2: int = 6) -> tuple[Tensor, Tensor]:
    """Compute the two distances that `k_reciprocal` mixes: Jaccard, and D, both (Nq, Ng) in [0, 1].

    D is the squared Euclidean distance divided by the largest one of the query's row over queries and gallery.
    """
    q, g = _unit_rows(query, gallery)
    check_count("k1", k1)
    check_count("k2", k2)
    x = torch.cat([q, g])
    distance = (2 - 2 * (x @ x.T)).clamp_min(0).fill_diagonal_(0)
    distance /= distance.amax(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    order = _self_first(-distance)

    def reciprocal(k: int) -> Tensor:
        near = _nearest(order, k + 1)
        return near & near.T

    encoding = _mean_over(_nearest(order, k2), _encoded(reciprocal(k1), reciprocal(round(k1 / 2)), distance))
    return _jaccard(encoding, len(q)), distance[: len(q), len(q) :]


@_uses("transductive")
def cmkr(
    query: Tensor, gallery: Tensor, *, k1: int = 20, k2: int = 6, k3: int | None = None, lambda_value: float = 0.3
) -> Tensor:
    """Compute CMKR (YYDS, Du et al., 2024) with extended neighbors and, with ``k3``, multi-modal query expansion.

    Args:
        query: (Nq, d).
        gallery: (Ng, d).
        k1: size of the reciprocal neighborhoods, over both sets and across.
        k2: encodings that are averaged.
        k3: of these, those of gallery images; None: as they come.
        lambda_value: λ in [0, 1].

    Returns:
        (Nq, Ng) distance in [0, 1].
    """
    q, g = _unit_rows(query, gallery)
    n = len(q)
    x = torch.cat([q, g])
    distance = (2 - 2 * (x @ x.T)).clamp_min(0).fill_diagonal_(0)
    distance /= distance.amax(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    order = _self_first(-distance)

    def reciprocal(k: int) -> Tensor:
        near = _nearest(order, k + 1)
        return near & near.T

    start = reciprocal(k1)
    across = _nearest(order[:n, n:], k1 + 1) & _nearest(order[n:, :n], k1 + 1).T
    start[:n, n:] |= across
    start[n:, :n] |= across.T
    encoding = _encoded(start, reciprocal(round(k1 / 2)), distance)
    near = _nearest(order, k2)
    if k3 is not None:
        near = torch.cat([_nearest(order[:, :n], k2 - k3), _nearest(order[:, n:], k3)], 1)
    encoding = _mean_over(near, encoding)
    return (1 - lambda_value) * _jaccard(encoding, n) + lambda_value * distance[:n, n:]


@_uses("transductive")
def ecn(query: Tensor, gallery: Tensor, *, t: int = 3, q: int = 8, k: int = 25) -> Tensor:
    """Compute expanded cross neighborhoods (Sarfraz et al., CVPR 2018) with the distance of rankings.

    Args:
        query: (Nq, d).
        gallery: (Ng, d).
        t: nearest images of an image, without itself.
        q: nearest images of each of these.
        k: places of a ranking that are compared.

    Returns:
        (Nq, Ng) distance in [0, 1].
    """
    rows = _unit_rows(query, gallery)
    for name, value in (("t", t), ("q", q), ("k", k)):
        check_count(name, value)
    x = torch.cat(rows)
    n = len(x)
    near = _self_first(x @ x.T).topk(min(n, max(t + 1, q + 1, k)), dim=1).indices
    weight = (k - torch.arange(near.shape[1], dtype=x.dtype, device=x.device)).clamp_min(0)
    ranks = torch.zeros_like(x[:, :1]).repeat(1, n).scatter_(1, near, weight.expand(n, -1))
    distance = 1 - _product(ranks, ranks.T) / weight.square().sum()
    first, second = near[:, 1 : t + 1], near[:, 1 : q + 1]
    expanded = torch.cat([first, second[first].flatten(1)], 1)
    share = torch.full_like(expanded, 1 / max(1, expanded.shape[1]), dtype=x.dtype)
    mean = _product(torch.zeros_like(distance).scatter_add_(1, expanded, share), distance)
    return (mean[: len(query), len(query) :] + mean[len(query) :, : len(query)].T) / 2


@_uses("transductive")
def gnn(query: Tensor, gallery: Tensor, *, k1: int = 26, k2: int = 7, layers: int = 2, alpha: float = 2.0) -> Tensor:
    """Compute GNN re-ranking (Zhang et al., 2020): the k1-NN graph's rows as features, spread over the k2-NN graph.

    Over queries and gallery together, A the 0/1 adjacency of the k1 nearest (the image included). Each layer takes
    A + Aᵀ, replaces a row by the sum over its k2 nearest of S^α times their rows, S the cosine, and L2-normalizes, as
    the published code does with its two layers and α = 2; a negative S counts with its magnitude.

    Args:
        query: (Nq, d).
        gallery: (Ng, d).
        k1: neighbors of the graph, the image itself included.
        k2: neighbors of the propagation, the image itself included.
        layers: rounds of propagation, at least 1.
        alpha: exponent of the weights.

    Returns:
        (Nq, Ng) cosine distance of the rows, in [0, 1].
    """
    q, g = _unit_rows(query, gallery)
    for name, value in (("k1", k1), ("k2", k2), ("layers", layers)):
        check_count(name, value)
    x = torch.cat([q, g])
    cosine = x @ x.T
    order = _self_first(cosine)
    rows = _nearest(order, k1).to(x.dtype)
    weights = torch.where(_nearest(order, k2), cosine.abs() ** alpha, 0)
    for _ in range(layers):
        rows = normalize_rows(_product(weights, rows + rows.T))
    return 1 - rows[: len(q)] @ rows[len(q) :].T  # no longer sparse


@_uses("gallery")
def query_expansion(query: Tensor, gallery: Tensor, *, n: int, alpha: float = 0.0) -> Tensor:
    """Compute query expansion: cosine distance of the weighted mean of a query and its n nearest gallery images.

    The query has weight 1 and a neighbor max(cos, 0)^α: AQE (Chum et al., 2007) is α = 0, αQE (Radenović et al.,
    2019) α = 3. The gallery's features stay as they are.

    Args:
        query: (Nq, d).
        gallery: (Ng, d).
        n: gallery images that join the query, at least 1.
        alpha: exponent of the weights, at least 0.

    Returns:
        (Nq, Ng) cosine distance in [0, 2].
    """
    q, g = _unit_rows(query, gallery)
    check_count("n", n)
    if not alpha >= 0:
        raise ValueError(f"alpha must be at least 0, got {alpha}")
    cosine = q @ g.T
    weights = torch.where(_nearest(cosine, n), cosine.clamp_min(0) ** alpha, 0)
    return 1 - normalize_rows(q + _product(weights, g)) @ g.T


def _unit_rows(query: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
    """Return both checked and normalized, in at least float32."""
    check_tensor("query", query, "N d")
    check_tensor("gallery", gallery, "N d", d=query.shape[1])
    if not len(gallery):
        raise ValueError("gallery must hold at least one image, got 0 rows")
    for name, x in (("query", query), ("gallery", gallery)):
        check_finite(name, x)
    return normalize_rows(at_least_float32(query)), normalize_rows(at_least_float32(gallery))


def _self_first(similarity: Tensor) -> Tensor:
    """Return a copy of (N, N) in which each image is its own nearest, whatever the rounding."""
    return similarity.clone().fill_diagonal_(torch.inf)


def _nearest(similarity: Tensor, k: int) -> Tensor:
    """Return (N, M) bool: the min(k, M) largest of each row, ties by lowest index; the methods need only sets."""
    k = min(k, similarity.shape[1])
    last = similarity.topk(k, dim=1).values[:, -1:]
    above, tied = similarity > last, similarity == last
    if int(tied.sum()) > len(tied):  # some row has more candidates for its last place than one
        tied &= tied.cumsum(1) <= k - above.sum(1, keepdim=True)
    return above | tied


def _encoded(start: Tensor, narrow: Tensor, distance: Tensor) -> Tensor:
    """Compute V (N, N) over the reciprocal sets ``start``, expanded by the smaller ones ``narrow``: symmetric masks."""
    rows = narrow.to(distance.dtype)
    shared = _product(start.to(distance.dtype), rows)  # |R(i, k1) ∩ R(c, k1/2)| in row i, column c
    joins = start & (3 * shared > 2 * rows.sum(1))
    members = start | (_product(joins.to(distance.dtype), rows) > 0)
    encoding = torch.where(members, (-distance).exp(), 0)
    return encoding / encoding.sum(1, keepdim=True)


def _jaccard(encoding: Tensor, queries: int) -> Tensor:
    """Compute the Jaccard distance (Nq, Ng) of the encodings of queries from those of the gallery."""
    smaller = _sum_of_minima(encoding[:queries], encoding[queries:])
    return (1 - smaller / (2 - smaller)).clamp_min(0)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Compute left @ right where ``left`` has few non-zeros per row."""
    return torch.sparse.mm(left.to_sparse(), right)


def _mean_over(near: Tensor, rows: Tensor) -> Tensor:
    """Compute, in row i, the mean of those ``rows`` that row i of the mask ``near`` names."""
    return _product(near.to(rows.dtype), rows) / near.sum(1, keepdim=True)


def _sum_of_minima(a: Tensor, b: Tensor) -> Tensor:
    """Compute Σ_c min(a_ic, b_jc) as (len(a), len(b)), over the pairs of non-zeros that share a column."""
    row_a, column_a = a.nonzero().T
    column_b, row_b = b.T.nonzero().T  # by column
    value_a, value_b = a[row_a, column_a], b[row_b, column_b]
    per_column = torch.bincount(column_b, minlength=b.shape[1])
    first = per_column.cumsum(0) - per_column
    pairs = per_column[column_a]  # of each non-zero of a
    result = a.new_zeros(len(a) * len(b))
    blocks = (pairs.cumsum(0) // _PAIRS).unique_consecutive(return_counts=True)[1].tolist()
    for block in torch.arange(len(row_a), device=a.device).split(blocks):
        count = pairs[block]
        from_a = block.repeat_interleave(count)
        place = torch.arange(len(from_a), device=a.device) - (count.cumsum(0) - count).repeat_interleave(count)
        from_b = first[column_a[from_a]] + place
        smaller = torch.minimum(value_a[from_a], value_b[from_b])
        result.index_add_(0, row_a[from_a] * len(b) + row_b[from_b], smaller)
    return result.view(len(a), len(b))
