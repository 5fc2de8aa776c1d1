"""Jaccard distance of the encodings of expanded k-reciprocal sets (Zhong et al., CVPR 2017), in sparse form.

From reciprocal sets R and narrower ones R':

    R*(i) = R(i) ∪ {R'(c) : c in R(i), |R(i) ∩ R'(c)| > 2/3 |R'(c)|}
    V_i = exp(-D_i) over R*(i), normalized to sum 1
    Jaccard(i, j) = 1 - S / (2 - S), S = Σ_c min(V_ic, V_jc)
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vireid._ops import equalize_columns
from vireid.neighbors._exact import blocks, neighbors_across, neighbors_within
from vireid.neighbors._scores import Rows
from vireid.rerank._sparse import Sparse, accumulate, product, reciprocal, rows_of


def scale_of(lowest: Tensor) -> Tensor:
    """Return s (N,) of D = (1 - cos) s, a row's distances divided by the largest, by its lowest cosine (N,).

    It is 0 for a row whose largest distance is only rounding.
    """
    largest = 2 - 2 * lowest
    return torch.where(largest > 32 * torch.finfo(lowest.dtype).eps, 2 / largest, 0)


Candidates = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes rows (p,) and columns (p, w) of theirs to the columns (p, w, h) in R' of each, and a mask of them."""


def listed(narrow: Tensor, kept: Tensor) -> Candidates:
    """Return the sets R' that are rows of ``narrow`` (M, h), by their mask ``kept`` (M, h)."""
    return lambda _, columns: (narrow[columns], kept[columns])


def members(near: Tensor, kept: Tensor, columns: int, candidates: Candidates) -> tuple[Tensor, Tensor]:
    """Compute the expanded reciprocal sets R* as pairs (row, column), sorted.

    Args:
        near: (N, w) columns, those of a row in R where ``kept`` (N, w) is True; a column may come twice.
        kept: mask of ``near``.
        columns: their number M.
        candidates: the sets R', for many rows `listed`.
    """
    n, w = near.shape
    order = torch.arange(n, device=near.device)
    parts = list(blocks(max(1, n), max(columns, 8 * w * w), 4))
    inside = torch.zeros(parts[0].stop, columns + 1, dtype=torch.bool, device=near.device)  # the last one: no image
    found = []
    for part in parts:
        some, mask = near[part], kept[part]
        start = some.masked_fill(~mask, columns)
        here = inside[: len(some)].scatter_(1, start, True)  # a row marks its R
        here[:, columns] = False
        member, valid = candidates(order[part], some)
        shared = here.gather(1, member.flatten(1)).view_as(valid) & valid
        joins = mask & (3 * shared.sum(2) > 2 * valid.sum(2))
        here.scatter_(1, start, False)
        first = order[part, None] * columns
        added = (first[..., None] + member)[valid & ~shared & joins[..., None]]
        found.append(torch.cat([(first + some)[mask], added]).unique())
    key = torch.cat(found)
    return key // columns, key % columns


def distances(x: Tensor, y: Tensor, row: Tensor, column: Tensor, *, same: bool = False) -> Sparse:
    """Compute 1 - cos (N, M) over the pairs, as `encoding`."""
    pairs = Sparse.of(row, column, x.new_zeros(len(row)), (len(x), len(y)))
    cosine = torch.sparse.sampled_addmm(pairs.csr(), x, y.T, beta=0).values()
    distance = (1 - cosine).clamp_min_(0)
    return pairs._replace(value=distance.masked_fill_(row == column, 0) if same else distance)


def encoding(x: Tensor, y: Tensor, row: Tensor, column: Tensor, scale: Tensor, *, same: bool = False) -> Sparse:
    """Compute V (N, M) over the pairs (``row``, ``column``) of unit rows ``x`` (N, d) and ``y`` (M, d).

    ``same``: both are the same images, whose distance from themselves is 0. A row without pairs is 0.
    """
    pairs = distances(x, y, row, column, same=same)
    value = (pairs.value * scale[row]).neg_().exp_()
    return pairs._replace(value=value / pairs.row_sums(value)[row])


def mean_over(near: Tensor, rows: Sparse) -> Sparse:
    """Compute, per row of ``near`` (N, k), the mean of those ``rows``: local query expansion."""
    near = near.sort(dim=1).values
    share = torch.full_like(near, 1 / near.shape[1], dtype=rows.value.dtype)
    return product(rows_of(near, share, len(rows.start) - 1), rows)


def jaccard(encodings: Sparse, lists: Sparse) -> Tensor:
    """Compute the Jaccard distance (b, M) of encodings (b, C) from those whose transpose (C, M) is ``lists``."""
    shared = lists.value.new_zeros(len(encodings.start) - 1, lists.columns)
    accumulate(shared, encodings, lists, torch.minimum)
    return shared.neg_().add_(2).reciprocal_().mul_(-2).add_(2).clamp_min_(0)  # 1 - S / (2 - S) = 2 - 2 / (2 - S)


def mixed(block: Tensor, shares: Tensor, scale: Tensor, weight: float, repeated: tuple[Tensor, Tensor]) -> Tensor:
    """Compute (1 - λ) ``shares`` + λ D (b, M), in place of the cosines ``block`` and of the Jaccard distances."""
    equalize_columns(block, repeated)
    factor = weight * scale[:, None]
    torch.addcmul(factor, factor, block, value=-1, out=block).clamp_min_(0)  # λ D
    return block.add_(shares.mul_(1 - weight))


class Ranked(NamedTuple):
    """Nearest images of one set, queries or gallery, per image of one, by cosine; an image itself comes first."""

    cosine: Tensor  # (N, k)
    near: Tensor  # (N, k) indices
    lowest: Tensor  # (N,) cosine with the farthest image of the set


Rankings = dict[tuple[int, int], Ranked]
"""By (set of the images, set of their neighbors): 0 the queries, 1 the gallery."""


def rankings(sets: list[Rows], k: int, *, gallery: bool = True, cosines: Tensor | None = None) -> Rankings:
    """Rank queries and gallery by set, with half of the products of all images with all.

    Args:
        sets: prepared queries and gallery.
        k: neighbors wanted.
        gallery: False: the gallery is not ranked for its own images.
        cosines: (Nq, Ng), where those of queries and gallery are written.
    """
    found: Rankings = {}
    for a, b in ((0, 0), (0, 1), (1, 1))[: 3 if gallery else 2]:
        lowest = [x.proposal.new_full((len(x.proposal),), torch.inf) for x in (sets[a], sets[b])]

        def visit(part: slice, columns: slice, cosine: Tensor, lowest: list[Tensor] = lowest, a: int = a) -> None:
            lowest[0][part] = torch.minimum(lowest[0][part], cosine.amin(1))
            lowest[1][columns] = torch.minimum(lowest[1][columns], cosine.amin(0))
            if cosines is not None and lowest[0] is not lowest[1]:
                cosines[part, columns] = cosine

        if a == b:
            lowest[1] = lowest[0]
            within = neighbors_within(sets[a], min(k, len(sets[a].given)), visit=visit)
            found[a, a] = Ranked(*within, lowest[0])
        else:
            forth, back = neighbors_across(sets[a], sets[b], k, visit=visit)
            found[a, b], found[b, a] = Ranked(*forth, lowest[0]), Ranked(*back, lowest[1])
    return found


def within_one(
    sets: list[Rows], found: Rankings, one: int, k: tuple[int, int, int], scales: tuple[Tensor, Tensor]
) -> tuple[Sparse, Sparse]:
    """Compute encodings of queries and gallery over the images of one of the two.

    Args:
        sets: queries and gallery.
        found: their rankings.
        one: the set whose images are the columns.
        k: sizes k1 of R and of R', and k2 of the local query expansion, over images of this set.
        scales: s of D in the rows of this set and of the other.
    """
    (k1, half, k2), other = k, 1 - one
    x, index = sets[one].proposal, found[one, one].near
    wide, narrow = index[:, : k1 + 1], index[:, : half + 1]
    inner = len(x), listed(narrow, reciprocal(narrow))
    own = encoding(x, x, *members(wide, reciprocal(wide), *inner), scales[0], same=True)
    across = found[other, one].near
    if k2 > 1:
        both = mean_over(index[:, :k2], own), mean_over(across[:, :k2], own)
    else:
        near = across[:, : k1 + 1]
        pairs = members(near, reciprocal(near, found[one, other].near[:, : k1 + 1]), *inner)
        both = own, encoding(sets[other].proposal, x, *pairs, scales[1])
    return both if one == 0 else both[::-1]
