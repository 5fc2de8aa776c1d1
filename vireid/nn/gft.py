"""GFT: plain graph feature transfer, the starting point of CIFT's ablation (Li et al., ECCV 2022), §9."""

import torch
from torch import Tensor, nn

from vireid._checks import check_option, check_positive
from vireid.neighbors import NeighborGraph
from vireid.neighbors._scores import Rows
from vireid.nn._inference import GFTGallery
from vireid.nn.transfer import (
    FeatureTransfer,
    Transferred,
    check_batch,
    cosines,
    topk_affinity,
    topk_cosines,
    widened,
)


class GFT(FeatureTransfer):
    """Plain graph feature transfer (CIFT §9, the ablation's GFT): one affinity over all rows, one temperature.

        F = A · v(X),   A = D⁻¹ T(S, k),   S_ij = exp(cos(v(x_i), v(x_j)) / τ)

    Args:
        dim: feature size d.
        k: entries kept in each row of the affinity, the image itself included.
        tau: temperature. The paper gives none for GFT; 0.2 is that of H2FT's queries (our choice).
        unbalanced: False: X is the whole batch. True: unbalanced scenario simulation (the ablation's UBS): one graph
            per image, with all images of the other modality, so that a gallery image has one row per graph.
        value: v(·) as in `H2FT`.
        transferred: ``"values"``: F = A · v(X) as in Eq. 1 and as in H2FT (our choice). ``"features"``: F = A · X as
            printed in the supplement, where v is inside S only.

    Raises:
        ValueError: if a number is out of range or an option unknown.
        TypeError: if an argument is not a number, or ``value`` not a module.

    The lengths of the features may differ by any factor. For a large τ, and rows of a sum that nearly cancel,
    `distance` loses digits: in float32 its error is about 1e-7 over the squared length of the mean of the unit rows.
    """

    def __init__(
        self,
        dim: int,
        *,
        k: int = 4,
        tau: float = 0.2,
        unbalanced: bool = False,
        value: nn.Module | None = None,
        transferred: Transferred = "values",
    ) -> None:
        super().__init__(dim, k=k, value=value)
        check_option("unbalanced", unbalanced, (False, True))
        check_option("transferred", transferred, ("values", "features"))
        self.transferred = transferred
        self.tau, self.unbalanced = check_positive("tau", tau), unbalanced

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        options = f"unbalanced={self.unbalanced}, transferred={self.transferred!r}"
        return f"dim={self.dim}, k={self.k}, tau={self.tau}, {options}"

    def affinities(self, values: Tensor, modality: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute A over the batch, returned twice; if unbalanced, over the groups: rows of the queries, of the pairs.

        The group of query q is {q} ∪ other modality. A pair (q, g) stands for the row of gallery image g in that group,
        whose neighbors are the images of g's modality and q.
        """
        check_batch("values", values, modality)
        cosine, itself = cosines(values)
        if not self.unbalanced:
            affinity = topk_affinity(cosine, torch.ones_like(itself), itself, self.k, self.tau)
            return affinity, affinity, torch.arange(values.shape[0], device=values.device)
        same = modality[:, None] == modality
        het = topk_affinity(cosine, ~same | itself, itself, self.k, self.tau)
        q, g = (~same).nonzero(as_tuple=True)
        # Only q can displace one of g's k nearest images of its own modality: those and q, (R, k + 1), are enough.
        own, near = topk_cosines(cosine, same, itself, self.k)
        candidates, columns = torch.cat([own[g], cosine[g, q][:, None]], 1), torch.cat([near[g], q[:, None]], 1)
        first = torch.arange(candidates.shape[1], device=g.device).expand_as(candidates) == 0
        weights = topk_affinity(candidates, torch.ones_like(first), first, self.k, self.tau)
        # Added, as a column whose weight is 0 may occur twice.
        hom = widened(cosine.new_zeros(g.shape[0], values.shape[0]), self.k).scatter_add(1, columns, weights)
        return het, hom[:, : values.shape[0]], g

    def prepare_gallery(self, graph: NeighborGraph) -> GFTGallery:
        """Return the gallery whose k nearest neighbors by v are given, ready to be compared with queries.

        Raises:
            ValueError: with ``transferred="features"``, of which a graph of v(G) knows nothing: use `distance`.
        """
        if self.transferred == "features":
            raise ValueError("transferred='features' needs the features, and a graph holds v of them: use distance()")
        return GFTGallery(graph, k=self.k, tau=self.tau)

    def _prepare_summed(self, graph: NeighborGraph, summed: Rows) -> GFTGallery:
        return GFTGallery(graph, k=self.k, tau=self.tau, summed=summed)
