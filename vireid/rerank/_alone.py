"""A query alone with the gallery, {q} ∪ G: the gallery's rankings that it enters, from the gallery's own graph."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vireid.neighbors import NeighborGraph
from vireid.neighbors._exact import Found
from vireid.neighbors._scores import Rows, infinity, rescore, to_float


class Entrance:
    """Cosines from which a query is among the first of the rankings of gallery images.

    A ranking begins with the image itself; the query comes before gallery images that are equally near.

    Args:
        graph: of the gallery, with at least as many neighbors as the largest of ``widths`` or all images.
        widths: lengths of the parts of the ranking that matter, the image itself included.
    """

    def __init__(self, graph: NeighborGraph, widths: Sequence[int]) -> None:
        rows, itself = graph.rows, torch.arange(len(graph), device=graph.indices.device)
        scores = [rescore(rows, rows, itself, graph.indices[:, min(w, graph.k) - 1]) for w in widths]
        for score, width in zip(scores, widths, strict=True):
            if width == 1 or width > len(graph):  # no room beside the image itself, or room for everyone
                score.fill_(infinity(score) if width == 1 else -infinity(score))
        self._limits = torch.stack(scores, 1)  # (Ng, widths)
        self._rounded = to_float(self._limits, graph.values.dtype)
        self._lowest = self._rounded.amin(1)

    def __call__(self, found: Found, query: Rows, gallery: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rankings that queries enter: query (P,), gallery image (P,), and in which widths (P, widths).

        Pairs are sorted by query, then by image; some enter none of the widths. Products too close to a limit to decide
        are computed again as the graph's neighbors were.
        """
        cosine = found.product
        error = found.error(query, gallery).to(cosine.dtype) + torch.finfo(cosine.dtype).eps
        row, column = (cosine >= self._lowest - error.max()).nonzero().T
        ahead = cosine[row, column, None] - self._rounded[column]
        enters = ahead > 0
        close = (ahead.abs() <= error[row, None]).any(1).nonzero().flatten()
        score = rescore(query, gallery, row[close], column[close])
        enters[close] = score[:, None] >= self._limits[column[close]]
        return row, column, enters


def find(keys: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each of ``wanted`` (P,) is among the sorted ``keys``, and whether it is there at all."""
    if not len(keys):
        return torch.zeros_like(wanted), torch.zeros_like(wanted, dtype=torch.bool)
    place = torch.searchsorted(keys, wanted).clamp_max_(len(keys) - 1)
    return place, keys[place] == wanted
