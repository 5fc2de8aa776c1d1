"""H2FT: homogeneous and heterogeneous feature transfer of CIFT (Li et al., ECCV 2022), Eq. 2-4."""

import torch
from torch import Tensor, nn

from vireid._checks import check_positive
from vireid._ops import normalize_rows
from vireid.neighbors import NeighborGraph
from vireid.neighbors._exact import Found, Rows, products
from vireid.nn.transfer import (
    FeatureTransfer,
    cosine_with_self,
    eye,
    topk_affinity,
)


class H2FT(FeatureTransfer):
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

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return f"dim={self.dim}, k={self.k}, tau_hom={self.tau_hom}, tau_het={self.tau_het}"

    def affinities(self, values: Tensor, modality: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A_het: {self} ∪ other modality; A_hom: own modality. Both (B, B); gallery row i is image i."""
        cosine = cosine_with_self(values)
        same = modality[:, None] == modality
        het = topk_affinity(cosine, ~same | eye(same), self.k, self.tau_het)
        hom = topk_affinity(cosine, same, self.k, self.tau_hom)
        return het, hom, torch.arange(len(values), device=values.device)

    def transfer(self, query: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
        """Inference: each query alone with the gallery, exactly as a loop over single queries (CIFT §3.1, §4.2).

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
        with self._inference(query, gallery) as (rows, graph):
            f_q = [self._transfer_query(x, rows.given[x.rows], graph) for x in self._search(rows, graph)]
            return torch.cat([rows.given[:0], *f_q]), self._transfer_gallery(graph)

    def prepare_gallery(self, graph: NeighborGraph) -> Tensor:
        """F_G (Ng, d) of the gallery whose graph by v is given, its rows scaled to length 1."""
        return normalize_rows(self._transfer_gallery(graph))

    def _transfer_gallery(self, graph: NeighborGraph) -> Tensor:
        """F_G = A_hom · v(X_G) (Ng, d) from the k-nearest neighbours alone."""
        return graph.weighted_sum(graph.features, (graph.values / self.tau_hom).softmax(1))

    def _compare(self, found: Found, query: Rows, f_q: Tensor, graph: NeighborGraph, gallery: Tensor) -> Tensor:
        return products(normalize_rows(f_q), gallery)
