"""k-reciprocal encoding in sparse form, with memory linear in the number of images."""

from collections.abc import Iterator
from typing import overload

import torch
from torch import Tensor

from vireid._checks import Array, ArrayT, check_count, check_fraction
from vireid._ops import equalize_columns, repeated_rows
from vireid.neighbors._exact import blocks, neighbors_within
from vireid.neighbors._scores import Rows
from vireid.rerank._blocks import collect, joined, uses
from vireid.rerank._jaccard import encoding, jaccard, mean_over, members, scale_of
from vireid.rerank._sparse import reciprocal


@overload
def k_reciprocal(
    query: ArrayT, gallery: Array, *, k1: int = ..., k2: int = ..., lambda_value: float = ..., top: None = ...
) -> ArrayT: ...
@overload
def k_reciprocal(
    query: ArrayT, gallery: Array, *, k1: int = ..., k2: int = ..., lambda_value: float = ..., top: int
) -> tuple[ArrayT, ArrayT]: ...
@uses("transductive")
def k_reciprocal(
    query: ArrayT, gallery: Array, *, k1: int = 20, k2: int = 6, lambda_value: float = 0.3, top: int | None = None
) -> ArrayT | tuple[ArrayT, ArrayT]:
    """Compute (1 - λ) Jaccard + λ D over queries and gallery together: k-reciprocal encoding (Zhong et al., CVPR 2017).

    D is the squared Euclidean distance of the L2-normalized features, row i divided by its largest entry over queries
    and gallery. A k-neighborhood is the first k + 1 of the ranking, the image itself first, as in the published code.
    R(i, k1) holds the reciprocal neighbors of i; each c in it adds R(c, round(k1/2)) when more than 2/3 of that set
    lies in R(i, k1). V_i = exp(-D_i) over the set, normalized to 1, then the mean of V over the first k2 of i's
    ranking; Jaccard = 1 - S / (2 - S), S the sum of the smaller entries of both encodings.

    It is transductive: a query's ranking depends on the other queries. Neighbors are ranked by the exact cosine, ties
    by index, and rows of D whose largest entry is only rounding (all images alike) count as 0 (our choices). Time is
    that of half the product of all images with all, plus little; memory is O((Nq + Ng) k1), one block, and the result.
    In float32 the error of D is about 1e-7 / (largest 1 - cos): use float64 if all features are close together.

    Args:
        query: (Nq, d) floating point, tensor or NumPy array. Nq may be 0.
        gallery: (Ng, d), on the query's device.
        k1: size of the reciprocal neighborhoods, at least 1; paper: 20. More than there are images means all.
        k2: encodings averaged, the image's own included, at least 1; paper: 6.
        lambda_value: λ in [0, 1], the weight of D; paper: 0.3.
        top: None for all distances, or the number of nearest gallery images to return, at least 1, without an (Nq, Ng)
            matrix.

    Returns:
        (Nq, Ng) distance in [0, 1], float64 if either input is, else float32; with ``top`` distances and indices
        (int64), both (Nq, min(top, Ng)), nearest first, ties by index. NumPy arrays if ``query`` is one.

    Raises:
        ValueError, TypeError: for a bad shape, type or value, an empty gallery, NaN or an infinity, or two devices.

    Example:
        >>> query, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.9, 0.1]])
        >>> k_reciprocal(query, gallery, k1=1, k2=1, top=2)[1].tolist()
        [[1, 2]]
    """
    k1, k2 = check_count("k1", k1), check_count("k2", k2)
    lambda_value = check_fraction("lambda_value", lambda_value)
    rows, nq = joined(query, gallery, top)
    ng = len(rows.given) - nq
    with torch.no_grad(), torch.autocast(rows.given.device.type, enabled=False):
        out = rows.proposal.new_empty(nq, ng if top is None else min(top, ng))
        k1 = min(k1, 2 * len(rows.given))  # half of it is all images
        found = _distances(rows, nq, k1, k2, lambda_value, out if top is None else None)
        return collect(query, out, found, top)


def _distances(
    rows: Rows, nq: int, k1: int, k2: int, lambda_value: float, cosines: Tensor | None
) -> Iterator[tuple[slice, Tensor]]:
    """Compute the distances (b, Ng) of blocks of queries; ``cosines`` (Nq, Ng), if given, is workspace."""
    x, n = rows.proposal, len(rows.proposal)
    lowest = x.new_full((n,), torch.inf)  # cosine of each row

    def visit(part: slice, columns: slice, cosine: Tensor) -> None:
        lowest[part] = torch.minimum(lowest[part], cosine.amin(1))
        lowest[columns] = torch.minimum(lowest[columns], cosine.amin(0))
        if cosines is not None and part.start < nq < columns.stop:
            end, start = min(part.stop, nq), max(columns.start, nq)
            here = cosine[: end - part.start, start - columns.start :]  # queries with gallery
            cosines[part.start : end, start - nq : columns.stop - nq] = here

    index = neighbors_within(rows, min(max(k1 + 1, k2), n), visit=visit)[1]
    scale = scale_of(lowest)
    wide, narrow = index[:, : k1 + 1], index[:, : round(k1 / 2) + 1]
    encodings = encoding(x, x, *members(wide, reciprocal(wide), narrow, reciprocal(narrow)), scale, same=True)
    if k2 > 1:
        encodings = mean_over(index[:, :k2], encodings)
    lists = encodings.select(slice(nq, n)).transpose()
    repeated = repeated_rows(rows.given[nq:])
    for part in blocks(nq, n - nq, x.element_size()):
        shares = jaccard(encodings.select(part), lists)
        block = x[part] @ x[nq:].T if cosines is None else cosines[part]
        equalize_columns(block, repeated)
        weight = lambda_value * scale[part, None]
        torch.addcmul(weight, weight, block, value=-1, out=block).clamp_min_(0)  # λ D
        yield part, block.add_(shares.mul_(1 - lambda_value))
