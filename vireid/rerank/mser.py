"""MSER, the multi-spectral enhanced ranking of MCJA (Liang et al., 2024), in sparse form."""

from collections.abc import Iterator, Sequence
from typing import overload

import torch
from torch import Tensor

from vireid._checks import Array, ArrayT, check_count, check_finite, check_fraction, check_pair, to_matrix
from vireid._ops import repeated_rows
from vireid.neighbors._exact import blocks
from vireid.neighbors._scores import Rows
from vireid.rerank._blocks import collect, joined, uses
from vireid.rerank._jaccard import jaccard, mixed, rankings, scale_of, within_one


@overload
def mser(
    query: ArrayT,
    gallery: Array,
    *,
    k1: int = ...,
    k2: int = ...,
    lambda_value: float = ...,
    query_spectra: Sequence[Array] = ...,
    gallery_spectra: Sequence[Array] = ...,
    top: None = ...,
) -> ArrayT: ...
@overload
def mser(
    query: ArrayT,
    gallery: Array,
    *,
    k1: int = ...,
    k2: int = ...,
    lambda_value: float = ...,
    query_spectra: Sequence[Array] = ...,
    gallery_spectra: Sequence[Array] = ...,
    top: int,
) -> tuple[ArrayT, ArrayT]: ...
@uses("transductive")
def mser(
    query: ArrayT,
    gallery: Array,
    *,
    k1: int = 40,
    k2: int = 20,
    lambda_value: float = 0.3,
    query_spectra: Sequence[Array] = (),
    gallery_spectra: Sequence[Array] = (),
    top: int | None = None,
) -> ArrayT | tuple[ArrayT, ArrayT]:
    """Compute (1 - λ) Jaccard + λ D with neighbors among the queries, averaged over spectra: MSER of MCJA.

    MCJA (Liang et al., TCSVT 2024) compares a visible image in four spectra, as it is and with each of its channels in
    place of all three, and takes the mean of the distances. Over the images of all spectra, with D as of
    `k_reciprocal`:

        V_q = exp(-D_q) over the reciprocal ones of the k1 nearest queries of q, not expanded, normalized to sum 1
        encoding of an image = mean of V over its k2 nearest queries

    and Jaccard is that of `k_reciprocal`. It is transductive. We had the published code, not the paper's equations: it
    has gallery images as nobody's neighbors, and computes in float16 (ours: the features' precision). There a gallery
    image has no encoding at k2 = 1; here that over its reciprocal queries (our choice).

    Time is that of all products of queries with both, those with the gallery twice; memory is O((Nq + Ng) k1), one
    block, and the result.

    Args:
        query: (Nq, d) floating point, tensor or NumPy array. Nq may be 0.
        gallery: (Ng, d), on the query's device.
        k1: size of the reciprocal neighborhoods, at least 1; published code: 40. More than there are queries means all.
        k2: encodings averaged, a query's own included, at least 1; published code: 20.
        lambda_value: λ in [0, 1], the weight of D; published code: 0.3.
        query_spectra: features (Nq, d) of the query images in further spectra.
        gallery_spectra: features (Ng, d) of the gallery images in further spectra. The published code has those of the
            visible images: one of the two.
        top: None for all distances, or the number of nearest gallery images to return, at least 1, without an (Nq, Ng)
            matrix.

    Returns:
        (Nq, Ng) distance in [0, 1], float64 if ``query`` or ``gallery`` is, else float32; with ``top`` distances and
        indices (int64), both (Nq, min(top, Ng)), nearest first, ties by index. NumPy arrays if ``query`` is one.

    Raises:
        ValueError, TypeError: for a bad shape, type or value, an empty gallery, NaN or an infinity, or two devices.

    Example:
        >>> query, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.9, 0.1]])
        >>> mser(query, gallery, k1=1, k2=1, top=2)[1].tolist()
        [[1, 2]]
    """
    k1, k2, lambda_value = check_count("k1", k1), check_count("k2", k2), check_fraction("lambda_value", lambda_value)
    q, g = check_pair(query, gallery)
    nq, ng = len(q), len(g)
    rows, split = joined(_spectra("query", q, query_spectra), _spectra("gallery", g, gallery_spectra), top)
    with torch.no_grad(), torch.autocast(rows.given.device.type, enabled=False):
        out = rows.proposal.new_empty(nq, ng if top is None else min(top, ng))
        sets = [rows.select(slice(split)), rows.select(slice(split, len(rows.given)))]
        found = _distances(sets, nq, ng, min(k1, 2 * len(rows.given)), k2, lambda_value)
        return collect(query, out, found, top)


def _spectra(name: str, x: Tensor, others: Sequence[Array]) -> Tensor:
    """Return the features of all spectra (S N, d), one spectrum after the other."""
    found = [x]
    for i, given in enumerate(others):
        other = to_matrix(f"{name}_spectra[{i}]", given, columns=x.shape[1])
        if len(other) != len(x) or other.device != x.device:
            raise ValueError(
                f"{name}_spectra[{i}] must have one row per row of {name}, {len(x)} on {x.device}, "
                f"got {len(other)} on {other.device}"
            )
        check_finite(f"{name}_spectra[{i}]", other)
        found.append(other)
    return torch.cat(found)


def _distances(
    sets: list[Rows], nq: int, ng: int, k1: int, k2: int, lambda_value: float
) -> Iterator[tuple[slice, Tensor]]:
    """Compute the distances (b, Ng) of blocks of queries."""
    if not nq:
        return
    found = rankings(sets, max(k1 + 1, k2), gallery=False)
    scale = scale_of(torch.minimum(found[0, 0].lowest, found[0, 1].lowest))
    x, y = (rows.proposal for rows in sets)
    of_query, of_gallery = within_one(sets, found, 0, (k1, 0, k2), (scale, scale_of(found[1, 0].lowest)))
    lists, repeated = of_gallery.transpose(), repeated_rows(sets[1].given)
    spectra = len(x) // nq
    for part in blocks(nq, len(y), x.element_size()):
        total = x.new_zeros(part.stop - part.start, ng)
        for first in range(0, len(x), nq):
            rows = slice(first + part.start, first + part.stop)
            block = mixed(x[rows] @ y.T, jaccard(of_query.select(rows), lists), scale[rows], lambda_value, repeated)
            total += block.view(len(total), -1, ng).mean(1)
        yield part, total.div_(spectra)
