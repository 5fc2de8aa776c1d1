"""Shared feature transfer of cm-SSFT (Lu et al., CVPR 2020), with a single query."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from vireid._checks import check_option
from vireid._ops import normalize_rows
from vireid.neighbors import NeighborGraph
from vireid.neighbors._exact import Found, search
from vireid.neighbors._scores import Rows, products, rescore, to_float
from vireid.nn._inference import PreparedGallery
from vireid.nn.transfer import FeatureTransfer, H2FTOutput, check_batch, cosines, propagate, topk_cosines, widened

Activation = Literal["none", "relu"]

_BLOCK = 2**21  # entries of a block on the CPU, of distances or of transferred features (queries, gallery images, d)
_NEAR = 1 - 2.0**-9  # cosine from which the affinity, a square root, shows the rounding of a product


class SharedFeatureTransfer(FeatureTransfer):
    """Shared feature transfer of cm-SSFT (Lu et al., CVPR 2020): one graph of k neighbors in each modality.

        F = σ( D⁻¹ A X W ),   A_ij = d(x_i, x_j) for j among i's k nearest images of either modality, else 0
        d(x, y) = 1 - ½ ‖x/‖x‖ - y/‖y‖‖

    D holds the row sums of A. Each image has k neighbors in its own modality, itself included, and k in the other one.
    In training the graph spans the batch. At inference it spans {q} ∪ G, each query by itself: q has itself and its k
    nearest gallery images, and a gallery image has its k nearest and q, so that F_G depends on the query.

    cm-SSFT also transfers features specific to a modality. CIFT compares with this form, of the shared features only,
    on other backbones (§5.4). We had no access to the text of cm-SSFT: the form of d, the two lists of neighbors and
    the row sums are our choice, as is the linear map without σ, which is that of CIFT's review of it (Eq. 1).

    In float32 `distance` has an error of about 1e-4 where rows nearly coincide, as d is steep there.

    Args:
        dim: feature size d.
        k: entries kept in a row for each modality. CIFT does not print it; 4 is that of H2FT (our choice).
        activation: σ, ``"none"`` or ``"relu"``; with the latter `distance` has to form every pair's feature.

    Attributes:
        map: W, a linear layer without bias. It starts as the identity (our choice).

    Raises:
        ValueError: if a number is out of range or an option unknown.
        TypeError: if a number is not an integer.
    """

    def __init__(self, dim: int, *, k: int = 4, activation: Activation = "none") -> None:
        super().__init__(dim, k=k, value=nn.Identity())
        check_option("activation", activation, ("none", "relu"))
        self.activation: Activation = activation
        self.map = nn.Linear(self.dim, self.dim, bias=False)
        nn.init.eye_(self.map.weight)

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return f"dim={self.dim}, k={self.k}, activation={self.activation!r}"

    def forward(self, x: Tensor, modality: Tensor) -> H2FTOutput:
        """Transfer features within a training batch, as `FeatureTransfer.forward`; ``values`` are X W."""
        check_batch("x", x, modality, self.dim)
        het, hom, index = self.affinities(self.value(x), modality)
        mapped = self.map(x)
        query, gallery = (_activated(rows, self.activation) for rows in propagate(het, hom, mapped))
        return H2FTOutput(query, gallery, het, hom, mapped, index)

    def affinities(self, values: Tensor, modality: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute D⁻¹ A over the batch, (B, B), returned twice as the rows of the queries and of the gallery."""
        check_batch("values", values, modality)
        cosine, itself = cosines(values)
        d, same = _similarity(cosine), modality[:, None] == modality
        affinity = _nearest(d, same, itself, self.k) + _nearest(d, ~same, ~same & itself, self.k)
        affinity = affinity / affinity.sum(1, keepdim=True)
        return affinity, affinity, torch.arange(values.shape[0], device=values.device)

    def prepare_gallery(self, graph: NeighborGraph) -> "SharedGallery":
        """Return the gallery whose k nearest neighbors are given, ready to be compared with queries."""
        return SharedGallery(graph, k=self.k, weight=self.map.weight.detach(), activation=self.activation)


def _activated(rows: Tensor, activation: Activation) -> Tensor:
    return rows.relu() if activation == "relu" else rows


def _nearest(d: Tensor, allowed: Tensor, itself: Tensor, k: int) -> Tensor:
    """Keep the k largest allowed entries of each row of ``d`` (B, B), and zero the rest."""
    scores, kept = topk_cosines(d, allowed, itself, k)
    affinity = widened(torch.zeros_like(d), k).scatter(1, kept, torch.where(scores.isfinite(), scores, 0))
    return affinity if affinity.shape[1] == d.shape[1] else affinity[:, : d.shape[1]]


def _similarity(cosine: Tensor) -> Tensor:
    """Compute d = 1 - ½ ‖x/‖x‖ - y/‖y‖‖ from the cosine, with gradient 0 where x and y coincide."""
    half = (1 - cosine) / 2
    apart = half > 0
    return 1 - torch.where(apart, torch.where(apart, half, 1).sqrt(), 0)


class SharedGallery(PreparedGallery):
    """The gallery of `SharedFeatureTransfer`, each of whose rows is a sum over its neighbors, plus the query's term.

        F_g = σ( r_g + d(g, q) q W ),   r_g = Σ_j d(g, j) x_j W   over g's k nearest gallery images

    up to its length, which the row sum changes and the cosine does not see.

    Attributes:
        mapped: (Ng, d) G W.
        sums: (Ng, d) r.
        total: (Ng,) row sums of A without the query's column.
    """

    def __init__(self, graph: NeighborGraph, *, k: int, weight: Tensor, activation: Activation) -> None:
        super().__init__(graph, k=k, tau=1.0)
        rows = graph.rows.given
        self.weight, self.activation = weight.to(rows), activation
        self.mapped, near = rows @ self.weight.T, _similarity(graph.values)
        self.sums, self.total = graph.weighted_sum(self.mapped, near), near.sum(1)

    def transfer(self, query: Rows, summed: Rows | None = None) -> tuple[Tensor, Tensor]:
        """Compute f_q (Nq, d) and F_G (Nq, Ng, d)."""
        f_q, f_g = self.sums.new_empty(query.given.shape), self.sums.new_empty(len(query.given), *self.sums.shape)
        for found, block, own, transferred in self._blocks(query, summed):
            near = self._similarities(found, block)
            rows = self.sums + near[..., None] * own.given[:, None]
            f_q[found.rows] = transferred
            f_g[found.rows] = _activated(rows / (self.total + near)[..., None], self.activation)
        return f_q, f_g

    def _blocks(self, query: Rows, summed: Rows | None) -> Iterator[tuple[Found, Rows, Rows, Tensor]]:
        """Yield the neighbors of a block of queries, its rows, those with W applied, and its f_q."""
        size = 16 if self.activation == "relu" else max(1, _BLOCK // len(self.graph))
        if query.proposal.device.type != "cpu":
            size *= 16
        for found in search(query, self.graph.rows, min(self.k, len(self.graph)), block=size):
            rows = query.select(found.rows)
            own = rows._replace(given=rows.given @ self.weight.T)
            near = _similarity(to_float(found.scores)).to(self.sums.dtype)
            others = embedding_bag(found.indices, self.mapped, per_sample_weights=near.contiguous(), mode="sum")
            f_q = (own.given + others) / (1 + near.sum(1, keepdim=True))
            yield found, rows, own, _activated(f_q, self.activation)

    def _cosines(self, found: Found, query: Rows, summed: Rows, f_q: Tensor) -> Tensor:
        """Compute the cosines; without σ from three products, else of every pair's feature, block by block."""
        near, f, own = self._similarities(found, query), normalize_rows(f_q), summed.given
        if self.activation == "none":
            dot = products(f, self.sums) + near * (f * own).sum(1, keepdim=True)
            square = self.sums.square().sum(1) + 2 * near * products(own, self.sums)
            square = (square + near.square() * own.square().sum(1, keepdim=True)).clamp_min(0)
            return torch.where(square > 0, dot / torch.where(square > 0, square, 1).sqrt(), 0)
        step = max(1, (_BLOCK if own.device.type == "cpu" else 64 * _BLOCK) // own.numel())
        parts = zip(self.sums.split(step), near.split(step, 1), strict=True)
        return torch.cat([torch.einsum("bd,bnd->bn", f, normalize_rows(_joined(*part, own))) for part in parts], 1)

    def _similarities(self, found: Found, query: Rows) -> Tensor:
        """Compute d (b, Ng) of a block of queries with the gallery; where it is steep, from exact cosines."""
        cosine = found.product.clone()
        row, column = (cosine > _NEAR).nonzero().T
        cosine[row, column] = to_float(rescore(query, self.graph.rows, row, column), cosine.dtype)
        return _similarity(cosine).to(self.sums.dtype)


def _joined(sums: Tensor, near: Tensor, own: Tensor) -> Tensor:
    """Compute relu(r + d · q W) (b, n, d) of n gallery rows ``sums`` and b queries ``own``."""
    return (near[..., None] * own[:, None]).add_(sums).relu_()
