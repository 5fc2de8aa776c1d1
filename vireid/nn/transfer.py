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

from vireid._checks import check_count, check_finite, check_integers, check_matrix, check_positive
from vireid._ops import at_least_float32, evaluation_mode, normalize_rows
from vireid.neighbors import topk
from vireid.nn.necks import BNNeck

_BLOCK = 1 << 22  # entries of one query-by-gallery block at inference: 16 MiB in float32


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


class _Transfer(nn.Module, ABC):
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
        with torch.no_grad():
            with evaluation_mode(self.value):
                values = at_least_float32(self.value(query)), at_least_float32(self.value(gallery))
            with torch.autocast(query.device.type, enabled=False):
                yield values

    def _transfer_query(self, query: Tensor, gallery: Tensor) -> Tensor:
        """f_q of each query alone with the gallery (§1.2): itself and its k - 1 nearest gallery images."""
        if self.k == 1:
            return query
        cosine, index = topk(query, gallery, self.k - 1)
        cosine = torch.cat([torch.ones_like(cosine[:, :1]), cosine], 1)
        weights = (cosine / self.tau_query).softmax(1).to(query.dtype)
        return weights[:, :1] * query + _weighted_sum(gallery, index, weights[:, 1:])


class H2FT(_Transfer):
    """Homogeneous and heterogeneous feature transfer (CIFT §4.2, Eq. 2-4).

    The balanced batch is read as 2N unbalanced groups, one image against all images of the other modality, as at test
    time. A query exchanges features with itself and the other modality (A_het), gallery images only among themselves
    (A_hom). F_G does not depend on the query, so that two masked B × B affinities hold all groups.

    Args:
        dim: feature size d.
        k: entries kept in each row of the affinities, the image itself included.
        tau_hom: temperature of the gallery's affinities. The paper's sentence on the two temperatures contradicts
            itself; ours is the literal order of its symbols.
        tau_het: temperature of the queries' affinities.
        value: v(·), any module (B, d) -> (B, d). Default `BNNeck`: the paper says "a BNNeck with learnable weights";
            without a linear layer is our reading.
    """

    def __init__(
        self, dim: int, *, k: int = 4, tau_hom: float = 0.4, tau_het: float = 0.2, value: nn.Module | None = None
    ) -> None:
        super().__init__(dim, k=k, value=value)
        check_positive("tau_hom", tau_hom)
        check_positive("tau_het", tau_het)
        self.tau_hom, self.tau_het = tau_hom, tau_het
        self.tau_query = tau_het

    def affinities(self, values: Tensor, modality: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A_het: {self} ∪ other modality; A_hom: own modality. Both (B, B); gallery row i is image i."""
        cosine = _cosine(values)
        same = modality[:, None] == modality
        het = _topk_affinity(cosine, ~same | _eye(same), self.k, self.tau_het)
        hom = _topk_affinity(cosine, same, self.k, self.tau_hom)
        return het, hom, torch.arange(len(values), device=values.device)

    def transfer(self, query: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
        """Inference: each query alone with the gallery, exactly as a loop over single queries (spec: CIFT §4.2).

        ``v`` runs on its running statistics whatever the module's mode. Memory is O((Nq + Ng)(d + k)) and one block.

        Args:
            query: (Nq, d) backbone features of one modality.
            gallery: (Ng, d) backbone features of the other.

        Returns:
            f_q (Nq, d) and F_G (Ng, d), in at least float32. Score a pair by their cosine, or see `distance`.

        Raises:
            ValueError: if a shape is wrong, the gallery is empty or a feature is not finite.
            TypeError: if a feature is not floating point.
        """
        with self._inference(query, gallery) as (q, g):
            return self._transfer_query(q, g), _transfer_gallery(g, self.k, self.tau_hom)

    def distance(self, query: Tensor, gallery: Tensor) -> Tensor:
        """Cosine distance 1 - cos(f_q, F_G), (Nq, Ng) in [0, 2], of the features that `transfer` returns."""
        f_q, f_g = self.transfer(query, gallery)
        with torch.autocast(f_q.device.type, enabled=False):
            return 1 - normalize_rows(f_q) @ normalize_rows(f_g).T


class GFT(_Transfer):
    """Plain graph feature transfer (CIFT §9, the ablation's GFT): one affinity over all rows, one temperature.

    Args:
        dim: feature size d.
        k: entries kept in each row of the affinity, the image itself included.
        tau: temperature. The paper gives none for GFT; ours is H2FT's for queries.
        unbalanced: False: the graph is the whole batch. True: unbalanced scenario simulation (the ablation's UBS): one
            graph for each image with all images of the other modality, so that a gallery image has a row for each.
        value: v(·) as in `H2FT`.
    """

    def __init__(
        self, dim: int, *, k: int = 4, tau: float = 0.2, unbalanced: bool = False, value: nn.Module | None = None
    ) -> None:
        super().__init__(dim, k=k, value=value)
        check_positive("tau", tau)
        self.tau, self.unbalanced = tau, unbalanced
        self.tau_query = tau

    def affinities(self, values: Tensor, modality: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Balanced: one affinity over the batch, returned twice. Unbalanced: queries, then a row per (q, g) pair."""
        cosine = _cosine(values)
        rows = torch.arange(len(values), device=values.device)
        if not self.unbalanced:
            affinity = _topk_affinity(cosine, torch.ones_like(cosine, dtype=torch.bool), self.k, self.tau)
            return affinity, affinity, rows
        same = modality[:, None] == modality
        het = _topk_affinity(cosine, ~same | _eye(same), self.k, self.tau)
        # Row g of the group of q: the k best of {q} ∪ {g's k best in its own modality}; g itself stays first.
        own, index = _topk_with_self(cosine, same, self.k)
        q, g = (~same).nonzero(as_tuple=True)
        cosines = torch.cat([own[g], cosine[g, q][:, None]], 1)
        columns = torch.cat([index[g], q[:, None]], 1)
        first = torch.zeros_like(columns, dtype=torch.bool)
        first[:, 0] = True
        position = cosines.detach().masked_fill(first, torch.inf).topk(min(self.k, cosines.shape[1]), dim=1).indices
        weights = (cosines.gather(1, position) / self.tau).softmax(1)
        hom = torch.zeros(len(q), len(values), dtype=weights.dtype, device=weights.device)
        # Rows with fewer neighbours than k repeat a masked column with weight 0: add, never overwrite.
        return het, hom.scatter_add(1, columns.gather(1, position), weights), g

    def transfer(self, query: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
        """Inference: the transferred features of every single-query graph {q} ∪ G.

        The query may enter a gallery image's neighbours, so that the gallery's features depend on it: the result has
        Nq · Ng · d entries. Use `distance` to rank, which never builds them.

        Args:
            query: (Nq, d).
            gallery: (Ng, d).

        Returns:
            f_q (Nq, d) and F_G (Nq, Ng, d), in at least float32.

        Raises:
            ValueError: if a shape is wrong, the gallery is empty or a feature is not finite.
            TypeError: if a feature is not floating point.
        """
        with self._inference(query, gallery) as (q, g):
            parts = self._gallery_parts(g)
            weight, enters = self._query_in_gallery(q, g, parts)
            changed = (parts.rest + weight[..., None] * q[:, None]) / (parts.rest_total + weight)[..., None]
            kept = parts.kept / parts.kept_total[:, None]
            return self._transfer_query(q, g), torch.where(enters[..., None], changed, kept)

    def distance(self, query: Tensor, gallery: Tensor) -> Tensor:
        """Cosine distance (Nq, Ng), in [0, 2], of each query in its own graph {q} ∪ G; exact, in bounded memory.

        Only gallery rows in which q displaces the k-th neighbour depend on q, and by one term each; a cosine needs no
        normalised rows, so that four matrix products give every case.

        Args:
            query: (Nq, d).
            gallery: (Ng, d).

        Raises:
            ValueError: if a shape is wrong, the gallery is empty or a feature is not finite.
            TypeError: if a feature is not floating point.
        """
        with self._inference(query, gallery) as (q, g):
            f_q = normalize_rows(self._transfer_query(q, g))
            parts = self._gallery_parts(g)
            kept, rest_square = normalize_rows(parts.kept), parts.rest.square().sum(1)
            distance = q.new_empty(len(q), len(g))
            step = max(1, _BLOCK // len(g))
            for start in range(0, len(q), step):
                block = slice(start, start + step)
                x, f = q[block], f_q[block]
                weight, enters = self._query_in_gallery(x, g, parts)
                dot = f @ parts.rest.T + weight * (f * x).sum(1, keepdim=True)
                square = rest_square + 2 * weight * (x @ parts.rest.T)
                square = square + weight.square() * x.square().sum(1, keepdim=True)
                changed = dot / square.clamp_min(1e-12).sqrt()
                distance[block] = 1 - torch.where(enters, changed, f @ kept.T)
            return distance

    def _gallery_parts(self, gallery: Tensor) -> "_GalleryParts":
        cosine, index = _gallery_neighbours(gallery, self.k)
        weights = ((cosine - 1) / self.tau).exp().to(gallery.dtype)
        kept, kept_total = _weighted_sum(gallery, index, weights), weights.sum(1)
        if len(gallery) < self.k:  # room for everyone: q joins every row
            return _GalleryParts(kept, kept_total, kept, kept_total, torch.full_like(kept_total, -torch.inf))
        if self.k == 1:  # no room beside the image itself
            return _GalleryParts(kept, kept_total, kept, kept_total, torch.full_like(kept_total, torch.inf))
        rest = _weighted_sum(gallery, index[:, :-1], weights[:, :-1])
        return _GalleryParts(kept, kept_total, rest, weights[:, :-1].sum(1), cosine[:, -1].to(gallery.dtype))

    def _query_in_gallery(self, query: Tensor, gallery: Tensor, parts: "_GalleryParts") -> tuple[Tensor, Tensor]:
        """Weight of each query in each gallery row, and whether it is among that row's k neighbours; (Nq, Ng) both."""
        cosine = normalize_rows(query) @ normalize_rows(gallery).T
        return ((cosine - 1) / self.tau).exp(), cosine >= parts.threshold


class _GalleryParts(NamedTuple):
    """Sums over the gallery's own neighbours, weighted by exp((cos - 1) / τ): all k of them, and all but the last."""

    kept: Tensor  # (Ng, d)
    kept_total: Tensor  # (Ng,)
    rest: Tensor  # (Ng, d)
    rest_total: Tensor  # (Ng,)
    threshold: Tensor  # (Ng,) the cosine from which a query takes the last one's place


def propagate(het: Tensor, hom: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Both products of Eq. 2, (A_het v(X), A_hom v(X)), summed in at least float32, in the dtype of ``values``."""
    with torch.autocast(values.device.type, enabled=False):
        v = at_least_float32(values)
        return (het @ v).to(values.dtype), (hom @ v).to(values.dtype)


def _eye(like: Tensor) -> Tensor:
    return torch.eye(len(like), dtype=torch.bool, device=like.device)


def _cosine(values: Tensor) -> Tensor:
    """Cosines of all pairs (B, B); 1 with itself, also for a zero row, so that an image is its own first neighbour."""
    with torch.autocast(values.device.type, enabled=False):
        x = normalize_rows(at_least_float32(values))
        cosine = x @ x.T
    return cosine.masked_fill(_eye(cosine), 1.0)


def _topk_with_self(cosine: Tensor, allowed: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest allowed cosines of each row and their columns, the image itself first; -inf where too few."""
    scores = cosine.masked_fill(~allowed, -torch.inf)
    index = scores.detach().masked_fill(_eye(scores), torch.inf).topk(min(k, len(scores)), dim=1).indices
    return scores.gather(1, index), index


def _topk_affinity(cosine: Tensor, allowed: Tensor, k: int, tau: float) -> Tensor:
    """A = D⁻¹ T(S, k) over the allowed pairs (Eq. 4); (B, B), rows sum to 1."""
    kept, index = _topk_with_self(cosine, allowed, k)
    return torch.zeros_like(cosine).scatter(1, index, (kept / tau).softmax(1))


def _gallery_neighbours(gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosines and indices (Ng, min(k, Ng)) of each gallery image's neighbours in the gallery, itself always included."""
    cosine, index = topk(gallery, gallery, k)
    itself = torch.arange(len(gallery), device=gallery.device)[:, None]
    absent = ~(index == itself).any(1)  # pushed out by k duplicates, or a zero row
    index[absent, -1] = itself[absent, 0]
    cosine = torch.where(index == itself, 1.0, cosine)
    order = cosine.masked_fill(index == itself, torch.inf).argsort(dim=1, descending=True, stable=True)
    return cosine.gather(1, order), index.gather(1, order)


def _weighted_sum(values: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Σ_j weights_ij · values[index_ij] for (N, k) indices: (N, d), without an (N, k, d) tensor."""
    return embedding_bag(index, values, per_sample_weights=weights.to(values.dtype), mode="sum")


def _transfer_gallery(gallery: Tensor, k: int, tau: float) -> Tensor:
    """F_G = A_hom · v(X_G) (Ng, d) from its k-nearest neighbours only."""
    cosine, index = _gallery_neighbours(gallery, k)
    return _weighted_sum(gallery, index, (cosine / tau).softmax(1))
