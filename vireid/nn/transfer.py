"""Graph feature transfer: H2FT and GFT of CIFT (Li et al., ECCV 2022), Eq. 2-4 and §9.

An image's feature becomes a weighted mean of its own and its nearest neighbours' features,

    F = A · v(X),   A = D⁻¹ T(S, k),   S_ij = exp(cos(v(x_i), v(x_j)) / τ),

where T keeps the k largest entries of a row. A is computed as a softmax over the kept cosines: the same value, without
overflow at a small τ or in half precision. The two layers differ in who may be whose neighbour.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from vireid._checks import check_count, check_finite, check_integers, check_matrix
from vireid._ops import at_least_float32, evaluation_mode, normalize_rows
from vireid.neighbors import topk
from vireid.nn.necks import BNNeck


class H2FTOutput(NamedTuple):
    """What `H2FT` and `GFT` return for a batch of B images.

    Each image appears as a query and as a gallery image of the 2N simulated groups (§4.2). ``query = affinity_het @
    values`` and ``gallery = affinity_hom @ values``. R is B, except for ``GFT(unbalanced=True)``, where a gallery image
    has one row for each group it belongs to.

    Attributes:
        query: (B, d) f_q, the transferred feature of each image as query.
        gallery: (R, d) F_G, the transferred features as gallery.
        affinity_het: (B, B) rows of A_het; each sums to 1 and has at most k non-zeros.
        affinity_hom: (R, B) rows of A_hom; likewise.
        values: (B, d) v(x).
        gallery_index: (R,) the image that each gallery row belongs to.
    """

    query: Tensor
    gallery: Tensor
    affinity_het: Tensor
    affinity_hom: Tensor
    values: Tensor
    gallery_index: Tensor


class FeatureTransfer(nn.Module, ABC):
    """What H2FT and GFT share: v, the two uses of the affinities, and a query's own transfer at inference."""

    uses = "gallery"  # what the transferred features of a query look at beyond itself; reports print it
    tau_query: float

    def __init__(self, dim: int, *, k: int, value: nn.Module | None) -> None:
        super().__init__()
        check_count("dim", dim)
        check_count("k", k)
        self.dim, self.k = dim, k
        self.value = BNNeck(dim) if value is None else value

    @abstractmethod
    def affinities(self, values: Tensor, modality: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Affinity rows of a batch from its values v(x): (A_het (B, B), A_hom (R, B), gallery_index (R,))."""

    @abstractmethod
    def distance(self, query: Tensor, gallery: Tensor) -> Tensor:
        """Cosine distance (Nq, Ng) of the transferred features, each query alone with the gallery."""

    def forward(self, x: Tensor, modality: Tensor) -> H2FTOutput:
        """Transfer features within a training batch.

        Args:
            x: (B, d) features, any order.
            modality: (B,) integers, 0 visible, 1 infrared.

        Returns:
            `H2FTOutput`; features in the dtype of ``v(x)``, affinities in float32 (float64 for float64 values).

        Raises:
            ValueError: if a shape is wrong.
            TypeError: if ``x`` is not floating point or ``modality`` holds no integers.
        """
        check_matrix("x", x, columns=self.dim)
        check_integers("modality", modality, len(x))
        values = self.value(x)
        het, hom, gallery_index = self.affinities(values, modality)
        return H2FTOutput(*propagate(het, hom, values), het, hom, values, gallery_index)

    @contextmanager
    def _inference(self, query: Tensor, gallery: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Check both, and give v of both as at test time: running statistics, full precision, no gradient."""
        for name, x in (("query", query), ("gallery", gallery)):
            check_matrix(name, x, columns=self.dim)
            check_finite(name, x)
        if not len(gallery):
            raise ValueError("gallery must hold at least one image, got 0 rows")
        if query.device != gallery.device or query.dtype != gallery.dtype:
            kinds = f"{query.dtype} on {query.device} and {gallery.dtype} on {gallery.device}"
            raise ValueError(f"query and gallery must have one dtype and one device, got {kinds}")
        with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
            dtype = next(self.value.parameters(), query).dtype  # without autocast, v takes its own dtype only
            with evaluation_mode(self.value):
                values = self.value(query.to(dtype)), self.value(gallery.to(dtype))
            yield at_least_float32(values[0]), at_least_float32(values[1])

    def _transfer_query(self, query: Tensor, gallery: Tensor) -> Tensor:
        """f_q of each query alone with the gallery (§1.2): itself and its k - 1 nearest gallery images."""
        if self.k == 1:
            return query
        cosine, index = topk(query, gallery, self.k - 1)
        cosine = torch.cat([torch.ones_like(cosine[:, :1]), cosine], 1)
        weights = (cosine / self.tau_query).softmax(1).to(query.dtype)
        return weights[:, :1] * query + weighted_sum(gallery, index, weights[:, 1:])


def propagate(het: Tensor, hom: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Both products of Eq. 2, (A_het v(X), A_hom v(X)), summed in at least float32, in the dtype of ``values``."""
    with torch.autocast(values.device.type, enabled=False):
        v = at_least_float32(values)
        query = (het @ v).to(values.dtype)
        return query, query if hom is het else (hom @ v).to(values.dtype)


def eye(like: Tensor) -> Tensor:
    """Identity mask of the size of ``like`` (B, B)."""
    return torch.eye(len(like), dtype=torch.bool, device=like.device)


def cosine_with_self(values: Tensor) -> Tensor:
    """Cosines of all pairs (B, B); 1 with itself, also for a zero row, so that an image is its own first neighbour."""
    with torch.autocast(values.device.type, enabled=False):
        x = normalize_rows(at_least_float32(values))
        cosine = x @ x.T
    return cosine.masked_fill(eye(cosine), 1.0)


def topk_with_self(cosine: Tensor, allowed: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest allowed cosines of each row and their columns, the image itself first; -inf where too few."""
    scores = cosine.masked_fill(~allowed, -torch.inf)
    index = scores.detach().masked_fill(eye(scores), torch.inf).topk(min(k, len(scores)), dim=1).indices
    return scores.gather(1, index), index


def topk_affinity(cosine: Tensor, allowed: Tensor, k: int, tau: float) -> Tensor:
    """A = D⁻¹ T(S, k) over the allowed pairs (Eq. 4); (B, B), rows sum to 1."""
    kept, index = topk_with_self(cosine, allowed, k)
    return torch.zeros_like(cosine).scatter(1, index, (kept / tau).softmax(1))


def gallery_neighbours(gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosines and indices (Ng, min(k, Ng)) of each gallery image's neighbours in the gallery, itself first."""
    cosine, index = topk(gallery, gallery, k)
    itself = torch.arange(len(gallery), device=gallery.device)[:, None]
    absent = ~(index == itself).any(1)  # pushed out by k duplicates, or a zero row
    index[absent, -1] = itself[absent, 0]
    cosine = torch.where(index == itself, 1.0, cosine)
    order = cosine.masked_fill(index == itself, torch.inf).argsort(dim=1, descending=True, stable=True)
    return cosine.gather(1, order), index.gather(1, order)


def weighted_sum(values: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Σ_j weights_ij · values[index_ij] for (N, k) indices: (N, d), without an (N, k, d) tensor."""
    return embedding_bag(index, values, per_sample_weights=weights.to(values.dtype), mode="sum")
