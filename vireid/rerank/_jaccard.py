"""Jaccard distance of the encodings of expanded k-reciprocal sets (Zhong et al., CVPR 2017), in sparse form.

From reciprocal sets R and narrower ones R':

    R*(i) = R(i) ∪ {R'(c) : c in R(i), |R(i) ∩ R'(c)| > 2/3 |R'(c)|}
    V_i = exp(-D_i) over R*(i), normalized to sum 1
    Jaccard(i, j) = 1 - S / (2 - S), S = Σ_c min(V_ic, V_jc)
"""

import torch
from torch import Tensor

from vireid.rerank._sparse import Sparse, accumulate, product, rows_of

_CANDIDATES = 2**20  # neighbors of neighbors per block


def scale_of(lowest: Tensor) -> Tensor:
    """Return s (N,) of D = (1 - cos) s, a row's distances divided by the largest, by its lowest cosine (N,).

    It is 0 for a row whose largest distance is only rounding.
    """
    largest = 2 - 2 * lowest
    return torch.where(largest > 32 * torch.finfo(lowest.dtype).eps, 2 / largest, 0)


def members(near: Tensor, kept: Tensor, narrow: Tensor, in_narrow: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the expanded reciprocal sets R* as pairs (row, column), sorted.

    Args:
        near: (N, w) columns, those of a row in R where ``kept`` (N, w) is True; a column may come twice.
        kept: mask of ``near``.
        narrow: (M, h) columns, those of R' of each column where ``in_narrow`` (M, h) is True.
        in_narrow: mask of ``narrow``.
    """
    (n, w), (m, h) = near.shape, narrow.shape
    narrow_size = in_narrow.sum(1)
    step = max(1, min(_CANDIDATES // (w * h), 2**25 // m))
    inside = torch.zeros(min(step, n), m + 1, dtype=torch.bool, device=near.device)  # the last column: no image
    order = torch.arange(n, device=near.device)[:, None]
    found = []
    for part in order[:, 0].split(step):
        some, mask = near[part], kept[part]
        start = some.masked_fill(~mask, m)
        here = inside[: len(part)].scatter_(1, start, True)  # a row marks its R
        here[:, m] = False
        member, valid = narrow[some].flatten(1), in_narrow[some].flatten(1)
        shared = here.gather(1, member) & valid
        joins = mask & (3 * shared.view(-1, w, h).sum(2) > 2 * narrow_size[some])
        added = valid & ~shared & joins.repeat_interleave(h, dim=1)
        here.scatter_(1, start, False)
        first = order[part] * m
        found.append(torch.cat([(first + some)[mask], (first + member)[added]]).unique())
    key = torch.cat(found)
    return key // m, key % m


def encoding(x: Tensor, y: Tensor, row: Tensor, column: Tensor, scale: Tensor, *, same: bool = False) -> Sparse:
    """Compute V (N, M) over the pairs (``row``, ``column``) of unit rows ``x`` (N, d) and ``y`` (M, d).

    ``same``: both are the same images, whose distance from themselves is 0. A row without pairs is 0.
    """
    pairs = Sparse.of(row, column, x.new_zeros(len(row)), (len(x), len(y)))
    cosine = torch.sparse.sampled_addmm(pairs.csr(), x, y.T, beta=0).values()
    distance = ((1 - cosine) * scale[row]).clamp_min_(0)
    if same:
        distance.masked_fill_(row == column, 0)
    value = distance.neg_().exp_()
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
