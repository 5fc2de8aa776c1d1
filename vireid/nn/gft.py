"""GFT: plain graph feature transfer, which CIFT's ablation starts from (Li et al., ECCV 2022), §9."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vireid._checks import check_positive
from vireid._ops import normalize_rows
from vireid.nn.transfer import (
    FeatureTransfer,
    cosine_with_self,
    eye,
    gallery_neighbours,
    topk_affinity,
    topk_with_self,
    weighted_sum,
)

_BLOCK = 1 << 22  # entries of one query-by-gallery block at inference: 16 MiB in float32


class GFT(FeatureTransfer):
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
        cosine = cosine_with_self(values)
        rows = torch.arange(len(values), device=values.device)
        if not self.unbalanced:
            affinity = topk_affinity(cosine, torch.ones_like(cosine, dtype=torch.bool), self.k, self.tau)
            return affinity, affinity, rows
        same = modality[:, None] == modality
        het = topk_affinity(cosine, ~same | eye(same), self.k, self.tau)
        # Row g of the group of q: the k best of {q} ∪ {g's k best in its own modality}; g itself stays first.
        own, index = topk_with_self(cosine, same, self.k)
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
        cosine, index = gallery_neighbours(gallery, self.k)
        weights = ((cosine - 1) / self.tau).exp().to(gallery.dtype)
        kept, kept_total = weighted_sum(gallery, index, weights), weights.sum(1)
        if len(gallery) < self.k:  # room for everyone: q joins every row
            return _GalleryParts(kept, kept_total, kept, kept_total, torch.full_like(kept_total, -torch.inf))
        if self.k == 1:  # no room beside the image itself
            return _GalleryParts(kept, kept_total, kept, kept_total, torch.full_like(kept_total, torch.inf))
        rest = weighted_sum(gallery, index[:, :-1], weights[:, :-1])
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
