"""Shared base of H2FT and GFT, the graph feature transfer of CIFT (Li et al., ECCV 2022), Eq. 2-4 and §9.

The feature of an image becomes a weighted mean of its own and its nearest neighbors' features,

    F = A · v(X),   A = D⁻¹ T(S, k),   S_ij = exp(cos(v(x_i), v(x_j)) / τ),

where T keeps the k largest entries of a row and D holds the row sums of what is kept. A is computed as a softmax over
the kept cosines: the same value, without overflow at a small τ or in half precision. The two layers differ in which
images may be neighbors. Inference, each query alone with the gallery, is in `vireid.nn._inference`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vireid._checks import check_count, check_finite, check_modality, check_module, check_tensor
from vireid._ops import at_least_float32, evaluated, largest_entries, normalize_rows
from vireid.neighbors import NeighborGraph
from vireid.neighbors._scores import Rows, prepare
from vireid.nn._inference import PreparedGallery
from vireid.nn.necks import BNNeck

Transferred = Literal["values", "features"]


class H2FTOutput(NamedTuple):
    """Output of `H2FT`, `GFT` and `SharedFeatureTransfer` for a batch of B images.

    Each image appears as a query and as a gallery image of the 2N simulated groups (§4.2). ``query = affinity_het @
    values`` and ``gallery = affinity_hom @ values``. R is B, except for ``GFT(unbalanced=True)``, where a gallery image
    has one row per group it belongs to.

    Attributes:
        query: (B, d) f_q, the transferred feature of each image as query.
        gallery: (R, d) F_G, the transferred features as gallery.
        affinity_het: (B, B) rows of A_het; each sums to 1 and has at most k non-zeros.
        affinity_hom: (R, B) rows of A_hom; likewise.
        values: (B, d) v(x), or x where the features themselves are transferred.
        gallery_index: (R,) the image that each gallery row belongs to.
    """

    query: Tensor
    gallery: Tensor
    affinity_het: Tensor
    affinity_hom: Tensor
    values: Tensor
    gallery_index: Tensor


class FeatureTransfer(nn.Module, ABC):
    """Base of H2FT, GFT and shared feature transfer: v, both products of Eq. 2, and the methods of inference."""

    uses = "gallery"  # a transferred feature depends on the query and the gallery; reports print it
    transferred: Transferred = "values"  # what is summed: v(x), or x itself

    def __init__(self, dim: int, *, k: int, value: nn.Module | None) -> None:
        super().__init__()
        self.dim, self.k = check_count("dim", dim), check_count("k", k)
        if value is not None:
            check_module("value", value)
        self.value = BNNeck(self.dim) if value is None else value

    @abstractmethod
    def affinities(self, values: Tensor, modality: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the affinity rows of a batch from its values v(x) (B, d) and ``modality`` (B,).

        Returns:
            A_het (B, B), A_hom (R, B) and gallery_index (R,); see `H2FTOutput`.

        Raises:
            ValueError, TypeError: as `forward`.
        """

    @abstractmethod
    def prepare_gallery(self, graph: NeighborGraph) -> PreparedGallery:
        """Return the gallery whose k nearest neighbors by v are given, ready to be compared with queries."""

    def forward(self, x: Tensor, modality: Tensor) -> H2FTOutput:
        """Transfer features within a training batch.

        Args:
            x: (B, d) features, any order.
            modality: (B,) integers, 0 visible, 1 infrared.

        Returns:
            `H2FTOutput`; features in the dtype of what is summed, affinities in float32 (float64 for float64 values).

        Raises:
            ValueError: if a shape is wrong, or, on the CPU, if ``modality`` holds another number.
            TypeError: if ``x`` is not floating point or ``modality`` does not hold integers.
        """
        check_batch("x", x, modality, self.dim)
        values = self.value(x)
        het, hom, gallery_index = self.affinities(values, modality)
        values = values if self.transferred == "values" else x
        return H2FTOutput(*propagate(het, hom, values), het, hom, values, gallery_index)

    def transfer(self, query: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
        """Transfer features at inference, each query alone with the gallery (CIFT §3.1, §4.2).

        The result is that of a loop over single queries. ``v`` uses its running statistics whatever the module's mode.
        For all but `H2FT`, a query may be among the neighbors of a gallery image, whose feature then depends on it: use
        `distance` to rank, which does not hold the Nq · Ng features.

        Args:
            query: (Nq, d) backbone features of one modality.
            gallery: (Ng, d) backbone features of the other.

        Returns:
            f_q (Nq, d) and F_G, which is (Ng, d) for `H2FT` and (Nq, Ng, d) for the others, in at least float32. The
            score of a pair is their cosine.

        Raises:
            ValueError: if a shape is wrong, the gallery is empty, a feature is not finite or, in float64, out of the
                range of `embed`.
            TypeError: if a feature is not floating point.
        """
        with self._inference(query, gallery) as (rows, prepared):
            return prepared.transfer(*rows)

    def distance(self, query: Tensor, gallery: Tensor) -> Tensor:
        """Compute the cosine distance of the features of `transfer`, exactly and in bounded memory.

        Args:
            query: (Nq, d) as in `transfer`, which also says what is raised.
            gallery: (Ng, d) likewise.

        Returns:
            (Nq, Ng) in [0, 2]: 1 - cos(f_q, F_G).
        """
        with self._inference(query, gallery) as (rows, prepared):
            return prepared.distance(*rows)

    def embed(self, name: str, x: Tensor) -> Tensor:
        """Compute v(x) (N, d) as at test time: running statistics, at least float32 outside of v, no gradient.

        Raises:
            ValueError: if ``x``, called ``name``, is not (N, d) or on another device than v, or if v(x) is not finite
                or, in float64, the largest entry of a row not 0 and not between 2⁻²⁰⁰ and 2²⁰⁰.
            TypeError: if ``x`` is not floating point.
        """
        check_tensor(name, x, "N d", d=self.dim)
        own = next(self.value.parameters(), x)
        if x.device != own.device:
            raise ValueError(f"{name} must be on the module's device, {own.device}, got {x.device}")
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            # without autocast, v takes its own dtype only
            values = at_least_float32(evaluated(self.value)(x.to(own.dtype)))
        return _check_range(name, values)

    @contextmanager
    def _inference(self, query: Tensor, gallery: Tensor) -> Iterator[tuple[list[Rows], PreparedGallery]]:
        """Yield the rows of the queries and the prepared gallery, in a context without gradient and autocast.

        The rows are v(q) and, where the features themselves are transferred, q.
        """
        q, g = self.embed("query", query), self.embed("gallery", gallery)
        if query.device != gallery.device:
            raise ValueError(f"query and gallery must be on one device, got {query.device} and {gallery.device}")
        dtype = torch.promote_types(q.dtype, g.dtype)  # a v without parameters keeps that of its input
        with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
            rows = [prepare(q.to(dtype), "cosine", dtype, gallery=False)]
            graph = NeighborGraph.build(g.to(dtype), self.k)
            if self.transferred == "values":
                yield rows, self.prepare_gallery(graph)
                return
            own = [_check_range(name, x.to(dtype)) for name, x in (("query", query), ("gallery", gallery))]
            summed = [prepare(x, "cosine", dtype, gallery=False) for x in own]
            yield [*rows, summed[0]], self._prepare_summed(graph, summed[1])

    def _prepare_summed(self, graph: NeighborGraph, summed: Rows) -> PreparedGallery:
        """Return the gallery of which the rows ``summed`` are transferred, not the graph's."""
        raise NotImplementedError


def _check_range(name: str, x: Tensor) -> Tensor:
    """Return ``x`` (N, d); raise unless it is finite and, in float64, in the range of `FeatureTransfer.embed`."""
    check_finite(name, x)
    # in this range the search leaves rows of float64 as they are
    if x.dtype == torch.float64 and (torch.frexp(largest_entries(x)).exponent.abs() > 200).any():
        raise ValueError(f"{name} must have entries from 2**-200 to 2**200 by magnitude, got others")
    return x


def propagate(het: Tensor, hom: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Compute both products of Eq. 2, A_het v(X) and A_hom v(X), in at least float32, in the dtype of ``values``."""
    with torch.autocast(values.device.type, enabled=False):
        v = at_least_float32(values)
        query = (het @ v).to(values.dtype)
        return query, query if hom is het else (hom @ v).to(values.dtype)


def check_batch(name: str, rows: Tensor, modality: Tensor, dim: int | str = "d") -> None:
    """Raise unless ``rows`` are (B, ``dim``) and ``modality`` (B,) holds the codes of their images."""
    check_tensor(name, rows, f"B {dim}")
    check_tensor("modality", modality, "B", kind="integer", B=rows.shape[0])  # `len` would fix B in an export
    check_modality("modality", modality)


def cosines(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosines of all pairs (B, B) and the mask of the diagonal (B, B).

    The cosine of a row with itself is 1, also for a zero row, so that an image is its own first neighbor.
    """
    with torch.autocast(values.device.type, enabled=False):
        x = normalize_rows(at_least_float32(values))
        cosine = x @ x.T
    itself = torch.eye(cosine.shape[0], dtype=torch.bool, device=cosine.device)
    return cosine.masked_fill(itself, 1.0), itself


def topk_cosines(cosine: Tensor, allowed: Tensor, itself: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest allowed cosines per row, (R, k), and their columns; -inf where fewer are allowed.

    Args:
        cosine: (R, B) of the image of each row with all images.
        allowed: (R, B) bool, the images that may be neighbors of a row.
        itself: (R, B) bool, the place of a row's own image, which is always kept and comes first.
        k: number of images that are kept. Columns may be those that `widened` adds.
    """
    scores = widened(cosine, k).masked_fill(~widened(allowed, k), -torch.inf)
    first = scores.detach().masked_fill(widened(itself, k), torch.inf)
    kept = first.topk(min(k, scores.shape[1]), dim=1).indices
    return scores.gather(1, kept), kept


def topk_affinity(cosine: Tensor, allowed: Tensor, itself: Tensor, k: int, tau: float) -> Tensor:
    """Compute A = D⁻¹ T(S, k) (Eq. 4) at temperature ``tau``, (R, B), rows sum to 1; see `topk_cosines`."""
    scores, kept = topk_cosines(cosine, allowed, itself, k)
    affinity = widened(torch.zeros_like(cosine), k).scatter(1, kept, (scores / tau).softmax(1))
    return affinity if affinity.shape[1] == cosine.shape[1] else affinity[:, : cosine.shape[1]]


def widened(x: Tensor, k: int) -> Tensor:
    """Add k columns of zeros to ``x`` (R, B) in a graph that is traced, where min(k, B) would fix the batch size."""
    return F.pad(x, (0, k)) if torch.compiler.is_compiling() else x
