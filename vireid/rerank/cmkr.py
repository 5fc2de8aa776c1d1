"""CMKR, the cross-modal k-reciprocal re-ranking of YYDS (Du et al., 2024), in sparse form."""

from collections.abc import Iterator
from typing import Literal, overload

import torch
from torch import Tensor

from vireid._checks import Array, ArrayT, check_count, check_fraction, check_option
from vireid._ops import repeated_rows
from vireid.neighbors._exact import blocks
from vireid.neighbors._scores import Rows
from vireid.rerank._blocks import collect, joined, uses
from vireid.rerank._jaccard import (
    Rankings,
    encoding,
    jaccard,
    listed,
    mean_over,
    members,
    mixed,
    rankings,
    scale_of,
    within_one,
)
from vireid.rerank._sparse import Sparse, reciprocal

Neighbors = Literal["joint", "constrained", "extended", "divided"]


@overload
def cmkr(
    query: ArrayT,
    gallery: Array,
    *,
    neighbors: Neighbors = ...,
    k1: int = ...,
    k2: int = ...,
    k3: int | None = ...,
    lambda_value: float = ...,
    top: None = ...,
) -> ArrayT: ...
@overload
def cmkr(
    query: ArrayT,
    gallery: Array,
    *,
    neighbors: Neighbors = ...,
    k1: int = ...,
    k2: int = ...,
    k3: int | None = ...,
    lambda_value: float = ...,
    top: int,
) -> tuple[ArrayT, ArrayT]: ...
@uses("transductive")
def cmkr(
    query: ArrayT,
    gallery: Array,
    *,
    neighbors: Neighbors = "extended",
    k1: int = 20,
    k2: int = 6,
    k3: int | None = None,
    lambda_value: float = 0.3,
    top: int | None = None,
) -> ArrayT | tuple[ArrayT, ArrayT]:
    """Compute (1 - λ) Jaccard + λ D with neighbors searched per modality: CMKR (YYDS, Du et al., 2024).

    Queries are of one modality, the gallery of the other. An image is nearer to those of its own modality than to
    those of the other, which are the ones that matter; so `k_reciprocal` is changed in two places. With N_S(i, k) the
    first k + 1 of image i's ranking of the set S, D as there, and R(i, k) the reciprocal neighbors over both sets:

        joint:        R(i, k1), which is `k_reciprocal`
        extended:     R(i, k1) ∪ {j of the other set : j in N(i, k1) and i in N(j, k1), each in the other's set}
        constrained:  the mean of two Jaccard distances, one with all sets and encodings within the gallery, a query's
                      R taken across; one within the queries, a gallery image's R taken across. D of a row is divided
                      by its largest within the set.
        divided:      the second of these

    The local query expansion of an image in "constrained" and "divided" is over its k2 nearest of the set, so that R
    across counts at k2 = 1 only. ``k3`` is the multi-modal expansion of the others: the mean over the k2 - k3 nearest
    queries and the k3 nearest gallery images.

    We had the paper's abstract and its published code, not its equations. This is what the code computes, with one
    exception: there, the expansion of "constrained" takes rows at the places of other images, here those of the
    neighbors. "divided" is the code's, whose gallery images have neighbors among the queries only. Computed in the
    features' precision, not in float16 (our choice).

    It is transductive. Time is that of half the product of all images with all, plus little; memory is
    O((Nq + Ng) k1), one block, and the result.

    Args:
        query: (Nq, d) floating point, tensor or NumPy array. Nq may be 0.
        gallery: (Ng, d), on the query's device.
        neighbors: which images may be neighbors of an image.
        k1: size of the reciprocal neighborhoods, at least 1. More than there are images means all.
        k2: encodings averaged, the image's own included, at least 1.
        k3: of these, those of gallery images, from 0 to k2; for "joint" and "extended". None: as they come.
        lambda_value: λ in [0, 1], the weight of D.
        top: None for all distances, or the number of nearest gallery images to return, at least 1, without an (Nq, Ng)
            matrix.

    Returns:
        (Nq, Ng) distance in [0, 1], float64 if either input is, else float32; with ``top`` distances and indices
        (int64), both (Nq, min(top, Ng)), nearest first, ties by index. NumPy arrays if ``query`` is one.

    Raises:
        ValueError, TypeError: for a bad shape, type or value, an empty gallery, NaN or an infinity, or two devices.

    Example:
        >>> query, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.9, 0.1]])
        >>> cmkr(query, gallery, k1=1, k2=1, top=2)[1].tolist()
        [[1, 2]]
    """
    check_option("neighbors", neighbors, ("joint", "constrained", "extended", "divided"))
    k1, k2, lambda_value = check_count("k1", k1), check_count("k2", k2), check_fraction("lambda_value", lambda_value)
    if k3 is not None:
        k3 = check_count("k3", k3, minimum=0)
        if k3 > k2 or neighbors in ("constrained", "divided"):
            raise ValueError(
                f"k3 must be at most k2, and goes with neighbors 'joint' or 'extended'; got k3 {k3}, k2 {k2} and "
                f"{neighbors!r}"
            )
    rows, nq = joined(query, gallery, top)
    ng = len(rows.given) - nq
    with torch.no_grad(), torch.autocast(rows.given.device.type, enabled=False):
        out = rows.proposal.new_empty(nq, ng if top is None else min(top, ng))
        k1 = min(k1, 2 * len(rows.given))  # half of it is all images
        found = _distances(rows, nq, neighbors, (k1, k2, k3), lambda_value, out if top is None else None)
        return collect(query, out, found, top)


def _distances(
    rows: Rows,
    nq: int,
    neighbors: Neighbors,
    k: tuple[int, int, int | None],
    lambda_value: float,
    cosines: Tensor | None,
) -> Iterator[tuple[slice, Tensor]]:
    """Compute the distances (b, Ng) of blocks of queries; ``cosines`` (Nq, Ng), if given, is workspace."""
    if not nq:
        return
    n, (k1, k2, _) = len(rows.given), k
    sets = [rows.select(slice(nq)), rows.select(slice(nq, n))]
    found = rankings(sets, max(k1 + 1, k2), gallery=neighbors != "divided", cosines=cosines)
    scale = scale_of(torch.minimum(found[0, 0].lowest, found[0, 1].lowest))
    sizes = k1, round(k1 / 2), k2
    if neighbors in ("joint", "extended"):
        both = _over_both(rows.proposal, nq, found, k, extended=neighbors == "extended")
        encodings = [(both.select(slice(nq)), both.select(slice(nq, n)))]
    else:
        ones = (0, 1) if neighbors == "constrained" else (0,)
        scales = [(scale_of(found[one, one].lowest), scale_of(found[1 - one, one].lowest)) for one in ones]
        encodings = [within_one(sets, found, one, sizes, s) for one, s in zip(ones, scales, strict=True)]
    pairs = [(of_query, of_gallery.transpose()) for of_query, of_gallery in encodings]
    x, repeated = rows.proposal, repeated_rows(sets[1].given)
    for part in blocks(nq, n - nq, x.element_size()):
        shares = jaccard(pairs[0][0].select(part), pairs[0][1])
        for of_query, lists in pairs[1:]:
            shares.add_(jaccard(of_query.select(part), lists)).div_(2)
        block = x[part] @ x[nq:].T if cosines is None else cosines[part]
        yield part, mixed(block, shares, scale[part], lambda_value, repeated)


def _over_both(x: Tensor, nq: int, found: Rankings, k: tuple[int, int, int | None], *, extended: bool) -> Sparse:
    """Compute the encodings (N, N) of queries and gallery, whose reciprocal sets are over both."""
    (k1, k2, k3), n = k, len(x)
    index = torch.cat([_merged(found, one, nq)[:, : max(k1 + 1, k2)] for one in (0, 1)])
    lowest = [torch.minimum(found[one, 0].lowest, found[one, 1].lowest) for one in (0, 1)]
    near, narrow = index[:, : k1 + 1], index[:, : round(k1 / 2) + 1]
    kept, in_narrow = reciprocal(near), reciprocal(narrow)
    if extended:
        wide = min(k1 + 1, max(nq, n - nq))
        across, mutual = near.new_zeros(n, wide), kept.new_zeros(n, wide)
        for rows, one, first in ((slice(nq), 0, nq), (slice(nq, n), 1, 0)):
            forth, back = (found[a, 1 - a].near[:, : k1 + 1] for a in (one, 1 - one))
            across[rows, : forth.shape[1]] = forth + first
            mutual[rows, : forth.shape[1]] = reciprocal(forth, back)
        near, kept = torch.cat([near, across], 1), torch.cat([kept, mutual], 1)
    encodings = encoding(
        x, x, *members(near, kept, len(near), listed(narrow, in_narrow)), scale_of(torch.cat(lowest)), same=True
    )
    if k3 is not None:
        queries, gallery = (torch.cat([found[one, s].near for one in (0, 1)]) for s in (0, 1))
        index = torch.cat([queries[:, : k2 - k3], gallery[:, :k3] + nq], 1)
    return mean_over(index[:, :k2], encodings) if k2 > 1 else encodings


def _merged(found: Rankings, one: int, nq: int) -> Tensor:
    """Return the ranking of both sets by the images of one, from the rankings of each."""
    scores = [found[one, s].cosine for s in (0, 1)]
    scores[one] = torch.cat([torch.full_like(scores[one][:, :1], torch.inf), scores[one][:, 1:]], 1)  # itself first
    order = torch.cat(scores, 1).sort(dim=1, descending=True, stable=True).indices
    return torch.cat([found[one, 0].near, found[one, 1].near + nq], 1).gather(1, order)
