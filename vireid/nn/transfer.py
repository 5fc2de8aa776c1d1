"""Graph feature transfer: H2FT and GFT of CIFT (Li et al., ECCV 2022), Eq. 2-4 and §9.

An image's feature becomes a weighted mean of its own and its nearest neighbours' features,

    F = A · v(X),   A = D⁻¹ T(S, k),   S_ij = exp(cos(v(x_i), v(x_j)) / τ),

where T keeps the k largest entries of a row. A is computed as a softmax over the kept cosines: the same value, without
overflow at a small τ or in half precision. The two layers differ in who may be whose neighbour.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from vireid._checks import check_count, check_finite, check_integers, check_matrix
from vireid._ops import at_least_float32, evaluation_mode, normalize_rows
from vireid.neighbors import NeighborGraph
from vireid.neighbors._exact import Found, Rows, prepare, search
from vireid.nn.necks import BNNeck

_BLOCK = 2**21  # entries of a block of queries with the gallery on the CPU: 8 MiB in float32


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
    def prepare_gallery(self, graph: NeighborGraph) -> Any:
        """What `compare` needs of a gallery, from the graph of its k nearest by v: the same for all queries."""

    @abstractmethod
    def _compare(self, found: Found, query: Rows, f_q: Tensor, graph: NeighborGraph, gallery: Any) -> Tensor:
        """Cosines (b, Ng) of a block's f_q with the gallery's transferred features."""

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

    def embed(self, name: str, x: Tensor) -> Tensor:
        """v(x) (N, d) as at test time: running statistics, at least float32 outside of v, no gradient.

        Raises:
            ValueError: if ``x``, called ``name``, is not (N, d), on another device than v, or if v of it is not finite.
            TypeError: if it is not floating point.
        """
        check_matrix(name, x, columns=self.dim)
        own = next(self.value.parameters(), x)
        if x.device != own.device:
            raise ValueError(f"{name} must be on the module's device, {own.device}, got {x.device}")
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False), evaluation_mode(self.value):
            values = at_least_float32(self.value(x.to(own.dtype)))  # without autocast, v takes its own dtype only
        check_finite(name, values)
        return values

    def distance(self, query: Tensor, gallery: Tensor) -> Tensor:
        """Cosine distance of the transferred features, each query alone with the gallery; exact, in bounded memory.

        Args:
            query: (Nq, d) backbone features of one modality.
            gallery: (Ng, d) backbone features of the other.

        Returns:
            (Nq, Ng) in [0, 2]: 1 - cos(f_q, F_G).

        Raises:
            ValueError: if a shape is wrong, the gallery is empty or a feature is not finite.
            TypeError: if a feature is not floating point.
        """
        with self._inference(query, gallery) as (rows, graph):
            return self.compare(rows, graph, self.prepare_gallery(graph))

    def compare(self, query: Rows, graph: NeighborGraph, gallery: Any) -> Tensor:
        """`distance` (Nq, Ng) of prepared rows v(q) from the gallery whose graph and `prepare_gallery` are given."""
        distance = query.proposal.new_empty(len(query.given), len(graph))
        for found in self._search(query, graph):
            block = Rows(*(x[found.rows] for x in query))
            f_q = self._transfer_query(found, block.given, graph)
            distance[found.rows] = (1 - self._compare(found, block, f_q, graph, gallery)).clamp_(0, 2)
        return distance

    @contextmanager
    def _inference(self, query: Tensor, gallery: Tensor) -> Iterator[tuple[Rows, NeighborGraph]]:
        """Rows v(q) of the queries, and the graph of v of the gallery."""
        q, g = self.embed("query", query), self.embed("gallery", gallery)
        if query.device != gallery.device or query.dtype != gallery.dtype:
            kinds = f"{query.dtype} on {query.device} and {gallery.dtype} on {gallery.device}"
            raise ValueError(f"query and gallery must have one dtype and one device, got {kinds}")
        with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
            yield prepare(q, "cosine", q.dtype, gallery=False), NeighborGraph.build(g, self.k)

    def _search(self, query: Rows, graph: NeighborGraph) -> Iterator[Found]:
        """The k - 1 nearest gallery images of each query, block by block; one where k is 1, not to be used."""
        # GFT holds about ten matrices of a block's size, which a cache should hold
        block = max(1, _BLOCK // len(graph)) if query.proposal.device.type == "cpu" else None
        return search(query, graph.rows, min(max(1, self.k - 1), len(graph)), block=block)

    def _transfer_query(self, found: Found, query: Tensor, graph: NeighborGraph) -> Tensor:
        """f_q of a block of v(q) (§1.2): itself and its k - 1 nearest gallery images."""
        if self.k == 1:
            return query
        cosine = torch.cat([torch.ones_like(found.scores[:, :1]), found.scores], 1)
        weights = (cosine / self.tau_query).softmax(1).to(query.dtype)
        return weights[:, :1] * query + weighted_sum(graph.features, found.indices, weights[:, 1:])


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


def weighted_sum(values: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Σ_j weights_ij · values[index_ij] for (N, k) indices: (N, d), without an (N, k, d) tensor."""
    return embedding_bag(index, values, per_sample_weights=weights.to(values.dtype), mode="sum")
