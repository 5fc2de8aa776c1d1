"""SIM: the Jaccard distance of neighbor sets within the gallery (after Jia et al., IJCAI 2020)."""

import torch
from torch import Tensor

from vireid._checks import Array, ArrayT, check_count, check_fraction
from vireid._ops import equalize_columns
from vireid.neighbors import NeighborGraph
from vireid.neighbors._exact import search
from vireid.neighbors._scores import Rows
from vireid.rerank._blocks import uses
from vireid.rerank._sparse import Sparse, reciprocal, rows_of, subtract_product
from vireid.rerank.fitted import GalleryReranker


class SIM(GalleryReranker):
    """`sim` fitted to a gallery; see there for the settings.

    Example:
        >>> gallery = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> SIM(k1=2, k2=2, lambda_value=0.0).fit(gallery).distance(torch.tensor([[1.0, 0.2]])).tolist()
        [[0.0, 0.0, 1.0]]
    """

    def __init__(self, *, k1: int = 20, k2: int = 20, lambda_value: float = 0.3) -> None:
        self.k1, self.k2 = check_count("k1", k1), check_count("k2", k2)
        self.lambda_value = check_fraction("lambda_value", lambda_value)
        self._neighbors = self.k2

    def _prepare(self, graph: NeighborGraph) -> None:
        index = graph.indices.sort(dim=1).values
        mutual = reciprocal(index)
        row = mutual.nonzero()[:, 0]
        ones = graph.values.new_ones(len(row))
        self._members = Sparse.of(row, index[mutual], ones, (len(graph), len(graph)))
        self._size = self._members.row_sums(ones)

    def _distance(self, query: Rows) -> Tensor:
        (found,) = search(query, self.graph.rows, min(self.k1, len(self.graph)), block=len(query.given))
        block = equalize_columns(found.product, self._repeated)
        common = torch.zeros_like(block)  # minus the number of shared images: R is symmetric, R(g) ∋ h where R(h) ∋ g
        near = rows_of(found.indices, block.new_ones(found.indices.shape), len(self.graph))
        subtract_product(common, near, self._members)
        union = common + (self._size + found.indices.shape[1])
        block.mul_(-self.lambda_value).add_(1).add_(common.div_(union), alpha=1 - self.lambda_value)
        return block.clamp_(0, 1 + self.lambda_value)


@uses("gallery")
def sim(query: ArrayT, gallery: Array, *, k1: int = 20, k2: int = 20, lambda_value: float = 0.3) -> ArrayT:
    """Compute the distance of the similarity inference metric, after Jia et al., IJCAI 2020, per query.

    Images of one modality are easier to compare than images of two. So a gallery image is judged by its mutual
    neighbors in the gallery: are they near the query, too?

        N(q) = the k1 gallery images nearest to q by cosine
        R(g) = the gallery images h with h among the k2 nearest of g and g among the k2 nearest of h, g itself included
        d(q, g) = (1 - λ) (1 - |N(q) ∩ R(g)| / |N(q) ∪ R(g)|) + λ (1 - cos(q, g))

    The formula is our choice (the two sets, their sizes, the term in λ), for we had no access to the paper's text. By
    its abstract and by SAAI's account of it (Sec. 1, 2), it has similarities among gallery images of one modality,
    mutual nearest neighbors, and a Jaccard distance of sets without weights. Its first step, reasoning over a graph of
    similarities, has no counterpart here, nor has any use of other queries. So this does not reproduce its printed
    results.

    Most gallery images share nothing with N(q): their Jaccard distance is 1, and only the term in λ orders them. The
    default of λ is that of k-reciprocal encoding, which mixes the same two kinds of distance.

    No (Ng, Ng) matrix is made; beyond the result, memory is O(Nq k1 + Ng k2), the unit rows and one block.

    Args:
        query: (Nq, d) floating point, tensor or NumPy array. Nq may be 0.
        gallery: (Ng, d), on the query's device. Its dtype, at least float32, is that of the result.
        k1: size of the query's neighbor set, at least 1; more than Ng means all.
        k2: neighbors of a gallery image that may be mutual, at least 1, the image itself included.
        lambda_value: λ in [0, 1], the weight of the cosine distance: many distances tie at 0, only it ranks at 1.

    Returns:
        (Nq, Ng) distance in [0, 1 + λ], smaller = nearer. A NumPy array if ``query`` is one.

    Raises:
        ValueError, TypeError: for a bad shape, type or value, an empty gallery, NaN or an infinity, or two devices.
    """
    return SIM(k1=k1, k2=k2, lambda_value=lambda_value)(query, gallery)
