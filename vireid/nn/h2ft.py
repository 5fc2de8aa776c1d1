"""H2FT: homogeneous and heterogeneous feature transfer of CIFT (Li et al., ECCV 2022), Eq. 2-4."""

import torch
from torch import Tensor, nn

from vireid._checks import check_positive
from vireid.neighbors import NeighborGraph
from vireid.nn._inference import H2FTGallery
from vireid.nn.transfer import FeatureTransfer, check_batch, cosines, topk_affinity


class H2FT(FeatureTransfer):
    """Homogeneous and heterogeneous feature transfer (CIFT §4.2, Eq. 2-4).

        f_q = A_het · [v(x_q), v(X_G)]    a query: itself and the other modality
        F_G = A_hom · v(X_G)              the gallery: its own modality
        A = D⁻¹ T(S, k),   S_ij = exp(cos(v(x_i), v(x_j)) / τ)    τ_het for f_q, τ_hom for F_G

    The balanced batch is read as 2N unbalanced groups, one image against all images of the other modality, as at test
    time. F_G does not depend on the query, so that two masked B × B affinities hold all groups.

    Args:
        dim: feature size d.
        k: entries kept in each row of the affinities, the image itself included.
        tau_hom: temperature of the gallery's affinities. The paper's sentence on the two temperatures contradicts
            itself; we follow the literal order of its symbols (our choice).
        tau_het: temperature of the queries' affinities.
        value: v(·), any module (B, d) -> (B, d). Default `BNNeck`: the paper says "a BNNeck with learnable weights";
            without a linear layer (our choice).

    Raises:
        ValueError: if a number is out of range.
        TypeError: if an argument is not a number, or ``value`` not a module.
    """

    def __init__(
        self, dim: int, *, k: int = 4, tau_hom: float = 0.4, tau_het: float = 0.2, value: nn.Module | None = None
    ) -> None:
        super().__init__(dim, k=k, value=value)
        self.tau_hom, self.tau_het = check_positive("tau_hom", tau_hom), check_positive("tau_het", tau_het)

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return f"dim={self.dim}, k={self.k}, tau_hom={self.tau_hom}, tau_het={self.tau_het}"

    def affinities(self, values: Tensor, modality: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute A_het over {itself} ∪ other modality and A_hom over the own modality, both (B, B)."""
        check_batch("values", values, modality)
        cosine, itself = cosines(values)
        same = modality[:, None] == modality
        het = topk_affinity(cosine, ~same | itself, itself, self.k, self.tau_het)
        hom = topk_affinity(cosine, same, itself, self.k, self.tau_hom)
        return het, hom, torch.arange(values.shape[0], device=values.device)

    def prepare_gallery(self, graph: NeighborGraph) -> H2FTGallery:
        """Return the gallery whose k nearest neighbors by v are given, ready to be compared with queries."""
        return H2FTGallery(graph, k=self.k, tau_het=self.tau_het, tau_hom=self.tau_hom)
