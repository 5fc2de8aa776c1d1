"""GFT: plain graph feature transfer, which CIFT's ablation starts from (Li et al., ECCV 2022), §9."""

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from vireid._checks import check_positive
from vireid._ops import normalize_rows
from vireid.neighbors import NeighborGraph
from vireid.neighbors._exact import Found, Rows, error_bound, products, score_pairs
from vireid.nn.transfer import (
    FeatureTransfer,
    cosine_with_self,
    eye,
    topk_affinity,
    topk_with_self,
)

_TINY = 1e-30  # below any squared length that is not 0, where the largest of the summed terms is 1 long
_LOWEST = -1e30  # below any logarithm of a weight that is not 0


class GFT(FeatureTransfer):
    """Plain graph feature transfer (CIFT §9, the ablation's GFT): one affinity over all rows, one temperature.

    Args:
        dim: feature size d.
        k: entries kept in each row of the affinity, the image itself included.
        tau: temperature. The paper gives none for GFT; ours is H2FT's for queries.
        unbalanced: False: the graph is the whole batch. True: unbalanced scenario simulation (the ablation's UBS): one
            graph for each image with all images of the other modality, so that a gallery image has a row for each.
        value: v(·) as in `H2FT`.

    The lengths of the features may differ by any factor. Where τ is large and the rows of a sum nearly cancel,
    `distance` loses digits: in float32 it is good to about 1e-7 over the squared length of their mean, as unit rows.
    """

    def __init__(
        self, dim: int, *, k: int = 4, tau: float = 0.2, unbalanced: bool = False, value: nn.Module | None = None
    ) -> None:
        super().__init__(dim, k=k, value=value)
        check_positive("tau", tau)
        self.tau, self.unbalanced = tau, unbalanced
        self.tau_query = tau

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return f"dim={self.dim}, k={self.k}, tau={self.tau}, unbalanced={self.unbalanced}"

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
        with self._inference(query, gallery) as (rows, graph):
            g, parts = graph.features, self.prepare_gallery(graph)
            weights = ((graph.values - 1) / self.tau).exp()
            stay = weights[:, : parts.stay.shape[1]]
            kept = graph.weighted_sum(g, weights) / weights.sum(1, keepdim=True)
            rest, total = graph.weighted_sum(g, stay), stay.sum(1)
            f_q, f_g = g.new_empty(rows.given.shape), g.new_empty(len(query), *g.shape)
            for found in self._search(rows, graph):
                block = Rows(*(x[found.rows] for x in rows))
                cosine, enters = (x.T[..., None] for x in self._query_in_gallery(found, block, graph, parts))
                weight = ((cosine - 1) / self.tau).exp()
                changed = (rest + weight * block.given[:, None]) / (total[:, None] + weight)
                f_q[found.rows] = self._transfer_query(found, block.given, graph)
                f_g[found.rows] = torch.where(enters, changed, kept)
            return f_q, f_g

    def prepare_gallery(self, graph: NeighborGraph) -> "_Gallery":
        """Weights and lengths of the sums over each gallery image's own neighbours."""
        length = graph.rows.length
        longest = length.max()
        unit = torch.where(longest > 0, longest, 1)
        logarithm = (graph.values.double() - 1) / self.tau + (length / unit).log()[graph.indices]
        if len(graph) < self.k:  # room for everyone: q joins every row
            stay, threshold = logarithm, torch.full_like(graph.values[:, 0], -torch.inf)
        elif self.k == 1:  # no room beside the image itself
            stay, threshold = logarithm, torch.full_like(graph.values[:, 0], torch.inf)
        else:
            stay, threshold = logarithm[:, :-1], graph.values[:, -1]
        sizes = [x.amax(1).clamp_min(_LOWEST) for x in (logarithm, stay)]
        kept, rest = ((x - s[:, None]).exp().to(threshold) for x, s in zip((logarithm, stay), sizes, strict=True))
        kept_square, rest_square = (graph.weighted_sum(graph.rows.proposal, w).square().sum(1) for w in (kept, rest))
        return _Gallery(unit, kept, rest, kept_square, rest_square, sizes[1].to(threshold), threshold)

    def _compare(self, found: Found, query: Rows, f_q: Tensor, graph: NeighborGraph, gallery: "_Gallery") -> Tensor:
        """Only rows in which q displaces the k-th neighbour depend on q, and by one term each.

        A cosine needs no transferred rows: their products with f_q and q are sums of the gallery rows' own, so that
        beside the search one matrix product gives every case.
        """
        x, f = query.proposal, normalize_rows(f_q)
        cosine, enters = self._query_in_gallery(found, query, graph, gallery)
        with_f = products(f, graph.rows.proposal).T.contiguous()
        rest_f, rest_x = (graph.weighted_sum(y, gallery.stay) for y in (with_f, cosine))
        joining = (cosine - 1).div_(self.tau).add_((query.length / gallery.unit).log().to(x.dtype))
        # from the limit on, which leaves room for the square, the others' share is lost in rounding
        limit = math.log(torch.finfo(x.dtype).max) / 2 - 5
        joining = joining.sub_(gallery.size[:, None]).clamp_max_(limit).exp_()
        square = gallery.rest_square[:, None] + 2 * joining * rest_x + joining.square()
        square = torch.maximum(square, (1e-12 * gallery.rest_square).clamp_min(_TINY)[:, None])
        changed = (rest_f + joining * (f * x).sum(1)) / square.sqrt()
        kept = graph.weighted_sum(with_f, gallery.weights) / gallery.kept_square.clamp_min(_TINY).sqrt()[:, None]
        return torch.where(enters, changed, kept).T

    def _query_in_gallery(
        self, found: Found, query: Rows, graph: NeighborGraph, gallery: "_Gallery"
    ) -> tuple[Tensor, Tensor]:
        """Cosine of each query with each gallery row, and whether it is among its k neighbours; (Ng, b) both.

        Cosines too near the limit to tell from a product are computed like the neighbours' that they are compared with.
        """
        product, limit = cast(Tensor, found.product), gallery.threshold
        cosine = product.T.contiguous()
        enters = cosine >= limit[:, None]
        seen = 4 * (product.gather(1, found.indices) - found.scores).abs().amax(1)
        error = torch.maximum(seen, error_bound(query, graph.rows, "cosine")[0]).to(cosine.dtype)
        column, row = ((cosine - limit[:, None]).abs() <= error).nonzero().T
        enters[column, row] = score_pairs(query, graph.rows, row, column, "cosine").to(limit.dtype) >= limit[column]
        return cosine, enters


class _Gallery(NamedTuple):
    """Sums over the unit rows of the gallery's own neighbours, of all and of those that stay where a query joins.

    The weights are exp((cos - 1) / τ) · length. Only their ratios in a row matter: they are held divided by its largest
    one, so that sums and squares are in range whatever the features' lengths.
    """

    unit: Tensor  # () what lengths are measured in: that of the longest row
    weights: Tensor  # (Ng, k)
    stay: Tensor  # (Ng, k - 1) of those that stay where a query joins; (Ng, k), all, where there is room for it
    kept_square: Tensor  # (Ng,) squared length of the sum of all
    rest_square: Tensor  # (Ng,) squared length of the sum of those that stay
    size: Tensor  # (Ng,) logarithm of what the weights of those that stay were divided by
    threshold: Tensor  # (Ng,) the cosine from which a query takes the last one's place
