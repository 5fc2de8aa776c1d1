"""Query expansion: a query is replaced by the mean of itself and its nearest gallery images."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vireid._checks import Array, ArrayT, check_at_least_zero, check_count
from vireid._ops import equalize_columns, normalize_rows
from vireid.neighbors._exact import search
from vireid.neighbors._scores import Rows, products, to_float
from vireid.rerank._blocks import uses
from vireid.rerank.fitted import GalleryReranker


class QueryExpansion(GalleryReranker):
    """`query_expansion` fitted to a gallery; see there for the settings.

    Example:
        >>> import torch
        >>> gallery = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> QueryExpansion(n=1).fit(gallery).topk(torch.tensor([[0.8, 0.6]]), 2)[1].tolist()
        [[1, 0]]
    """

    _neighbors = 1  # the gallery's own neighbors are not used

    def __init__(self, *, n: int = 5, alpha: float = 0.0) -> None:
        self.n, self.alpha = check_count("n", n), check_at_least_zero("alpha", alpha)

    def _distance(self, query: Rows) -> Tensor:
        gallery = self.graph.rows
        (found,) = search(query, gallery, min(self.n, len(self.graph)), block=len(query.given))
        weight = to_float(found.scores).clamp_min(0).pow(self.alpha).to(gallery.proposal.dtype)
        neighbors = F.embedding_bag(found.indices, gallery.proposal, mode="sum", per_sample_weights=weight)
        expanded = query.proposal + neighbors
        rounding = 8 * torch.finfo(expanded.dtype).eps * (1 + weight.sum(1))
        expanded[expanded.norm(dim=1) <= rounding] = 0
        product = equalize_columns(products(normalize_rows(expanded), gallery.proposal), self._repeated)
        return product.neg_().add_(1).clamp_(0, 2)


@uses("gallery")
def query_expansion(query: ArrayT, gallery: Array, *, n: int = 5, alpha: float = 0.0) -> ArrayT:
    """Compute the cosine distance of the weighted mean of a query and its n nearest gallery images.

    On features scaled to length 1, the query has weight 1 and a neighbor max(cos, 0)^α, so that α = 0 is the plain
    mean (AQE; Chum et al., ICCV 2007) and α > 0 is αQE (Radenović et al., TPAMI 2019; there α = 3). Our choice:
    the gallery's features stay as they are, so each query is answered by itself; a sum that cancels up to rounding
    counts as a zero row, which has distance 1 from all images.

    Args:
        query: (Nq, d) floating point, tensor or NumPy array. Nq may be 0.
        gallery: (Ng, d), on the query's device. Its dtype, at least float32, is that of the result.
        n: gallery images averaged with the query, at least 1, ties by lowest index; more than Ng means all. Default 5,
            as in fast-reid; image retrieval takes up to 50, which suits only identities with as many images.
        alpha: exponent of the weights, at least 0. Default 0, AQE.

    Returns:
        (Nq, Ng) distance in [0, 2], smaller = nearer. A NumPy array if ``query`` is one.

    Raises:
        ValueError, TypeError: for a bad shape, type or value, an empty gallery, NaN or an infinity, or two devices.

    Example:
        >>> import torch
        >>> gallery = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> query_expansion(torch.tensor([[1.0, 0.0]]), gallery, n=2).round(decimals=2)
        tensor([[0.0400, 0.1900, 0.7100]])
    """
    return QueryExpansion(n=n, alpha=alpha)(query, gallery)
