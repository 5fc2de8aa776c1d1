"""Inference of H2FT and GFT: each query alone with the gallery, {q} ∪ G, as in a loop over single queries.

A gallery is prepared once, from the graph of its k nearest neighbors by v; then any number of queries is compared with
it, block by block. A query never sees another one, and only nearest neighbors are ever held: memory is
O((Nq + Ng)(d + k)) and one block.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from vireid._ops import equalize_columns, normalize_rows, repeated_rows
from vireid.neighbors import NeighborGraph
from vireid.neighbors._exact import Found, search
from vireid.neighbors._scores import Rows, products, rescore, to_float

_BLOCK = 2**21  # entries of a block of queries with the gallery on the CPU: 8 MiB in float32
_TINY = 1e-30  # below any squared length that is not 0, where the largest of the summed terms is 1 long
_LOWEST = -1e30  # below any logarithm of a weight that is not 0


class PreparedGallery(ABC):
    """A gallery of values v(G) and the transfer of queries to it.

    Args:
        graph: its k nearest neighbors by v.
        k: entries kept in a row of the affinities.
        tau: temperature of the queries' rows.
        summed: what is transferred, by default v(G), the graph's own rows.
    """

    def __init__(self, graph: NeighborGraph, *, k: int, tau: float, summed: Rows | None = None) -> None:
        if not isinstance(graph, NeighborGraph):
            raise TypeError(f"graph must be a NeighborGraph, got {type(graph).__name__}")
        self.graph, self.k, self.tau = graph, k, tau
        self.summed = graph.rows if summed is None else summed
        alike = graph.rows.given if summed is None else torch.cat([graph.rows.given, summed.given], 1)
        self.repeated = repeated_rows(alike)  # their transferred features are alike, too

    @abstractmethod
    def transfer(self, query: Rows, summed: Rows | None = None) -> tuple[Tensor, Tensor]:
        """Compute f_q (Nq, d) and F_G from the rows v(q); ``summed`` are transferred in their place, if given."""

    @abstractmethod
    def _cosines(self, found: Found, query: Rows, summed: Rows, f_q: Tensor) -> Tensor:
        """Compute the cosines (b, Ng) of a block's f_q with the gallery's transferred features."""

    def distance(self, query: Rows, summed: Rows | None = None) -> Tensor:
        """Compute 1 - cos(f_q, F_G) (Nq, Ng) of the features of `transfer`."""
        distance = query.proposal.new_empty(len(query.given), len(self.graph))
        for found, block, own, f_q in self._blocks(query, summed):
            part = (1 - self._cosines(found, block, own, f_q)).clamp_(0, 2)
            distance[found.rows] = equalize_columns(part, self.repeated)
        return distance

    def _blocks(self, query: Rows, summed: Rows | None) -> Iterator[tuple[Found, Rows, Rows, Tensor]]:
        """Yield the neighbors of a block of queries, its rows v(q), those that are summed, and its f_q.

        f_q is a sum of the query itself and k - 1 gallery images.
        """
        # GFT needs about ten matrices of a block's size, which should fit a cache
        size = max(1, _BLOCK // len(self.graph)) if query.proposal.device.type == "cpu" else None
        for found in search(query, self.graph.rows, min(max(1, self.k - 1), len(self.graph)), block=size):
            rows = query.select(found.rows)
            own = rows if summed is None else summed.select(found.rows)
            f_q = own.given
            if self.k > 1:  # else the one neighbor found is not used
                cosine = to_float(found.scores)
                cosine = torch.cat([torch.ones_like(cosine[:, :1]), cosine], 1)
                weights = (cosine / self.tau).softmax(1).to(f_q.dtype)
                # no (b, k, d) tensor
                others = embedding_bag(
                    found.indices, self.summed.given, per_sample_weights=weights[:, 1:].contiguous(), mode="sum"
                )
                f_q = weights[:, :1] * f_q + others
            yield found, rows, own, f_q


class H2FTGallery(PreparedGallery):
    """The gallery of H2FT, whose transferred features are the same for all queries."""

    def __init__(self, graph: NeighborGraph, *, k: int, tau_het: float, tau_hom: float) -> None:
        super().__init__(graph, k=k, tau=tau_het)
        self.tau_hom = tau_hom

    def transfer(self, query: Rows, summed: Rows | None = None) -> tuple[Tensor, Tensor]:
        """Compute f_q (Nq, d) and F_G (Ng, d)."""
        return torch.cat([query.given[:0], *(f_q for *_, f_q in self._blocks(query, summed))]), self._features()

    def _features(self) -> Tensor:
        """Compute F_G = A_hom · v(X_G) (Ng, d)."""
        return self.graph.weighted_sum(self.graph.features, (self.graph.values / self.tau_hom).softmax(1))

    @cached_property
    def _unit_features(self) -> Tensor:
        return normalize_rows(self._features())

    def _cosines(self, found: Found, query: Rows, summed: Rows, f_q: Tensor) -> Tensor:
        return products(normalize_rows(f_q), self._unit_features)


class GFTGallery(PreparedGallery):
    """The gallery of GFT. Only rows in which q displaces the k-th neighbor depend on q, and by one term each.

    Row g is a sum over g's k neighbors or, where q joins, over those that stay, plus q's term. The weights of the unit
    rows are exp((cos - 1) / τ) · length. Only their ratios in a row matter: they are stored divided by the largest one,
    so that sums and squares are in range for features of any length.

    Attributes:
        unit: () unit of the lengths, that of the longest row.
        kept: (Ng, k) weights of all neighbors.
        stay: (Ng, k - 1) weights of those that stay; (Ng, k), all, where there is room for q.
        kept_square: (Ng,) squared length of the sum of all.
        stay_square: (Ng,) squared length of the sum of those that stay.
        size: (Ng,) logarithm of the divisor of the weights of those that stay.
        threshold: (Ng,) cosine from which a query takes the last one's place.
    """

    def __init__(self, graph: NeighborGraph, *, k: int, tau: float, summed: Rows | None = None) -> None:
        super().__init__(graph, k=k, tau=tau, summed=summed)
        length = self.summed.length
        longest = length.max()
        self.unit = torch.where(longest > 0, longest, 1)
        logarithm = (graph.values.to(length.dtype) - 1) / tau + (length / self.unit).log()[graph.indices]
        if len(graph) < k:  # room for everyone: q joins every row
            stay, self.threshold = logarithm, torch.full_like(graph.values[:, 0], -torch.inf)
        elif k == 1:  # no room beside the image itself
            stay, self.threshold = logarithm, torch.full_like(graph.values[:, 0], torch.inf)
        else:
            stay, self.threshold = logarithm[:, :-1], graph.values[:, -1]
        self.kept, self.kept_square, _ = self._weights(logarithm)
        self.stay, self.stay_square, self.size = self._weights(stay)

    def _weights(self, logarithm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weights (Ng, m) of the given logarithms, the squared length of their sum, and the divisor's."""
        size = logarithm.amax(1).clamp_min(_LOWEST)
        weights = (logarithm - size[:, None]).exp().to(self.threshold)
        square = self.graph.weighted_sum(self.summed.proposal, weights).square().sum(1)
        return weights, square, size.to(self.threshold)

    def transfer(self, query: Rows, summed: Rows | None = None) -> tuple[Tensor, Tensor]:
        """Compute f_q (Nq, d) and F_G (Nq, Ng, d)."""
        g = self.summed.given
        weights = ((self.graph.values - 1) / self.tau).exp()
        kept = self.graph.weighted_sum(g, weights) / weights.sum(1, keepdim=True)
        stay = weights[:, : self.stay.shape[1]]
        rest, total = self.graph.weighted_sum(g, stay), stay.sum(1)
        f_q, f_g = g.new_empty(query.given.shape), g.new_empty(len(query.given), *g.shape)
        for found, block, own, transferred in self._blocks(query, summed):
            f_q[found.rows] = transferred
            cosine, enters = (x.T[..., None] for x in self._query_in_gallery(found, block))
            weight = ((cosine - 1) / self.tau).exp()
            changed = (rest + weight * own.given[:, None]) / (total[:, None] + weight)
            f_g[found.rows] = torch.where(enters, changed, kept)
        return f_q, f_g

    def _cosines(self, found: Found, query: Rows, summed: Rows, f_q: Tensor) -> Tensor:
        """Compute the cosines without any transferred row: its products with f_q and q are sums of its neighbors'.

        So one matrix product beside that of the search is enough, or two if others than v(q) are summed.
        """
        x, f = summed.proposal, normalize_rows(f_q)
        cosine, enters = self._query_in_gallery(found, query)
        with_x = cosine if summed is query else products(x, self.summed.proposal).T.contiguous()
        with_f = products(f, self.summed.proposal).T.contiguous()
        stay_f, stay_x = (self.graph.weighted_sum(y, self.stay) for y in (with_f, with_x))
        joining = (cosine - 1).div_(self.tau).add_((summed.length / self.unit).log().to(x.dtype))
        # from the limit on, which leaves room for the square, the others' share is lost in rounding
        limit = math.log(torch.finfo(x.dtype).max) / 2 - 5
        joining = joining.sub_(self.size[:, None]).clamp_max_(limit).exp_()
        square = self.stay_square[:, None] + 2 * joining * stay_x + joining.square()
        square = torch.maximum(square, (1e-12 * self.stay_square).clamp_min(_TINY)[:, None])
        changed = (stay_f + joining * (f * x).sum(1)) / square.sqrt()
        kept = self.graph.weighted_sum(with_f, self.kept) / self.kept_square.clamp_min(_TINY).sqrt()[:, None]
        return torch.where(enters, changed, kept).T

    def _query_in_gallery(self, found: Found, query: Rows) -> tuple[Tensor, Tensor]:
        """Return the cosine of each query with each gallery row, and whether it is among its k neighbors; (Ng, b) both.

        A product too close to the limit to decide is computed again as the neighbors' cosines were.
        """
        cosine, limit = found.product.T.contiguous(), self.threshold
        enters = cosine >= limit[:, None]
        error = found.error(query, self.graph.rows).to(cosine.dtype)
        column, row = ((cosine - limit[:, None]).abs() <= error).nonzero().T
        exact = to_float(rescore(query, self.graph.rows, row, column), limit.dtype)
        enters[column, row] = exact >= limit[column]
        return cosine, enters
