"""H2FT: homogeneous and heterogeneous feature transfer of CIFT (Li et al., ECCV 2022), Eq. 2-4."""

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
    weighted_sum,
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
        with self._inference(query, gallery) as (q, g):
            return self._transfer_query(q, g), self._transfer_gallery(g)

    def distance(self, query: Tensor, gallery: Tensor) -> Tensor:
        """Cosine distance 1 - cos(f_q, F_G), (Nq, Ng) in [0, 2], of the features that `transfer` returns."""
        f_q, f_g = self.transfer(query, gallery)
        with torch.autocast(f_q.device.type, enabled=False):
            return 1 - normalize_rows(f_q) @ normalize_rows(f_g).T

    def _transfer_gallery(self, gallery: Tensor) -> Tensor:
        """F_G = A_hom · v(X_G) (Ng, d) from the k-nearest neighbours alone."""
        cosine, index = gallery_neighbours(gallery, self.k)
        return weighted_sum(gallery, index, (cosine / self.tau_hom).softmax(1))
