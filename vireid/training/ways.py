"""The ways in which a model ranks: its features, those of CIFT's transfer, and re-rankings of either."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from vireid.models import G2DA
from vireid.nn import H2FT
from vireid.nn.transfer import FeatureTransfer

__all__ = ["Distance", "ranking_ways"]

Distance = Callable[[Tensor, Tensor], Tensor]
"""(query (Nq, d), gallery (Ng, d)) -> distance (Nq, Ng)."""


class TransferredRerank:
    """A re-ranking of CIFT's transferred features f_q and F_G, each query alone with the gallery.

    Args:
        transfer: a trained transfer.
        rerank: (query, gallery) -> distance (Nq, Ng).
    """

    def __init__(self, transfer: H2FT, rerank: Distance) -> None:
        self.transfer, self.rerank = transfer, rerank
        self.uses: str = getattr(getattr(rerank, "func", rerank), "uses", "unknown")
        self.settings: dict[str, Any] = dict(getattr(rerank, "keywords", None) or getattr(rerank, "settings", {}))

    def __call__(self, query: Tensor, gallery: Tensor) -> Tensor:
        """Return the distance (Nq, Ng)."""
        return self.rerank(*self.transfer.transfer(query, gallery))


def ranking_ways(model: nn.Module, rerank: Mapping[str, Distance] | None = None) -> dict[str, Distance | None]:
    """Return the ways in which a model ranks, by name.

    A name says the features, and the re-ranking if there is one, as in "backbone + AIM". The features are "backbone",
    or "graph" of a `G2DA` with its graph, and "transferred" of a model with CIFT's transfer.

    Args:
        model: any.
        rerank: re-rankings by name, each (query, gallery) -> distance. GFT's transferred features depend on the query,
            so that they cannot be re-ranked.

    Returns:
        Functions (query, gallery) -> distance (Nq, Ng); None is the cosine distance.
    """
    rerank = rerank or {}
    kind = "graph" if isinstance(model, G2DA) and model.attention is not None else "backbone"
    ways: dict[str, Distance | None] = {kind: None}
    ways |= {f"{kind} + {name}": function for name, function in rerank.items()}
    transfer = getattr(model, "transfer", None)
    if isinstance(transfer, FeatureTransfer):
        ways["transferred"] = transfer.distance
        if isinstance(transfer, H2FT):
            ways |= {f"transferred + {name}": TransferredRerank(transfer, f) for name, f in rerank.items()}
    return ways
