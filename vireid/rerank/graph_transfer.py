"""CIFT's feature transfer (H2FT or GFT) as a re-ranker, fitted to a gallery."""

import hashlib
import os
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from vireid._checks import Array, ArrayT, check_finite, check_pair, same_kind
from vireid.neighbors import NeighborGraph
from vireid.neighbors._scores import Rows
from vireid.nn.h2ft import H2FT
from vireid.nn.shared_transfer import SharedFeatureTransfer
from vireid.nn.transfer import FeatureTransfer
from vireid.rerank._blocks import uses
from vireid.rerank.fitted import GalleryReranker


class GraphTransfer(GalleryReranker):
    """The distance of a trained `vireid.nn.H2FT`, `GFT` or `SharedFeatureTransfer`, fitted to a gallery.

    `fit` computes v(G) and its graph, and for GFT the sums over it. H2FT's transferred features, normalized to length
    1, are computed for the first query and kept. Every query costs its own transfer and its products with the gallery.
    The distances are those of ``module.distance(query, gallery)``.
    The module's mode does not matter. It is held, not copied: fit again after training it further.

    Args:
        module: a transfer of `vireid.nn`, on the device of the features. `fit` refuses a
            ``GFT(transferred="features")``, as v(G) is what is kept and saved; `graph_transfer` ranks by it.

    Raises:
        TypeError: if ``module`` is no transfer.

    Example:
        >>> from vireid.nn import H2FT
        >>> gallery = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
        >>> distance, index = GraphTransfer(H2FT(2, k=2)).fit(gallery).topk(torch.tensor([[0.0, 2.0]]), 2)
        >>> index.tolist()
        [[2, 1]]
    """

    def __init__(self, module: FeatureTransfer) -> None:
        if not isinstance(module, FeatureTransfer):
            raise TypeError(f"module must be a transfer of vireid.nn, such as H2FT, got {type(module).__name__}")
        self.module = module
        self._neighbors = module.k
        self.__name__ = type(module).__name__  # its name in reports

    @property
    def settings(self) -> dict[str, Any]:
        """K and the temperatures of the module."""
        return _settings(self.module)

    def _saved(self) -> dict[str, Any]:
        return self._fitted_with

    def extend(self, gallery: Array) -> Self:
        """Extend as `GalleryReranker.extend`, without computing v(G) of the fitted images again.

        Raises:
            RuntimeError: before `fit`, or if the module has changed since.
            ValueError, TypeError: as `GalleryReranker.extend`.
        """
        if _identity(self.module) != self._state()._fitted_with:
            raise RuntimeError("module must be as it was when fitted: call fit(gallery) again")
        return super().extend(gallery)

    def _features(self, name: str, x: Tensor) -> Tensor:
        values = self.module.embed(name, x)
        if name == "query":  # a v without weights keeps x's type
            values = values.to(self.graph.features.dtype)
            check_finite(name, values)
        return values

    def _prepare(self, graph: NeighborGraph) -> None:
        self._fitted_with = _identity(self.module)
        self._gallery = self.module.prepare_gallery(graph)

    def _distance(self, query: Rows) -> Tensor:
        return self._gallery.distance(query)

    @classmethod
    def load(cls, path: str | os.PathLike[str], module: FeatureTransfer) -> Self:  # type: ignore[override]
        """Read a saved object, ready for queries, on the module's device; the file holds v(G), but not the module.

        Args:
            path: the file.
            module: one with the settings and weights of the fitted module.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, was not written by this class, or belongs to another module.
            TypeError: if ``module`` is no H2FT or GFT.
        """
        self, (graph, saved) = cls(module), cls._read(path)
        own = _identity(module)
        differ = [name for name in sorted(own.keys() | saved.keys()) if own.get(name) != saved.get(name)]
        if differ:
            raise ValueError(f"module must be the one saved in {str(path)!r}, but it differs in {', '.join(differ)}")
        return self._loaded(graph.to(next(module.parameters(), graph.features).device), path)


@uses("gallery")
def graph_transfer(query: ArrayT, gallery: Array, module: FeatureTransfer) -> ArrayT:
    """Compute the cosine distance after CIFT's feature transfer (§4.2, Eq. 2-4), each query by itself.

    It is ``module.distance(query, gallery)`` for tensors and NumPy arrays; `GraphTransfer` keeps a gallery.

    Args:
        query: (Nq, d) backbone features of one modality. Nq may be 0.
        gallery: (Ng, d) backbone features of the other modality, on the query's device.
        module: a trained transfer of `vireid.nn`, on that device, in any mode.

    Returns:
        (Nq, Ng) in [0, 2], smaller = nearer; a NumPy array if ``query`` is one.

    Raises:
        ValueError: if a shape or device does not fit, the gallery is empty or a feature is not finite.
        TypeError: if a feature is not floating point, or ``module`` is no transfer.
    """
    rerank = GraphTransfer(module)
    if module.transferred == "features":  # of which the graph of a fitted gallery knows nothing
        return same_kind(module.distance(*check_pair(query, gallery)), query)
    return rerank(query, gallery)


class AfterTransfer:
    """Another re-ranker over the transferred features f_q and F_G of an H2FT, in place of the features themselves.

    Args:
        module: a trained `vireid.nn.H2FT`, on the device of the features. (With GFT, F_G depends on the query.)
        rerank: called with (f_q, F_G), such as ``AIM(k1=8, k2=2)``. The object has its ``uses`` ("unknown" without)
            and ``settings``.

    Raises:
        TypeError: if ``module`` is no H2FT or ``rerank`` cannot be called.

    Example:
        >>> from vireid.nn import H2FT
        >>> from vireid.rerank import AIM
        >>> rerank = AfterTransfer(H2FT(2, k=2), AIM(k1=2, k2=1))
        >>> rerank(torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])).argmin(1).tolist()
        [2]
    """

    def __init__(self, module: H2FT, rerank: Callable[[Tensor, Tensor], Tensor]) -> None:
        if not isinstance(module, H2FT):
            raise TypeError(f"module must be an H2FT, got {type(module).__name__}")
        if not callable(rerank) or isinstance(rerank, type):
            raise TypeError(f"rerank must be callable with (query, gallery), got {rerank!r}")
        self.module, self.rerank = module, rerank
        self.uses: str = getattr(rerank, "uses", "unknown")
        self.__name__ = f"{type(module).__name__} + {getattr(rerank, '__name__', type(rerank).__name__)}"

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings of the re-ranker; reports print them."""
        return getattr(self.rerank, "settings", {})

    def __call__(self, query: ArrayT, gallery: Array) -> ArrayT:
        """Compute the distance (Nq, Ng) of features (Nq, d) and (Ng, d)."""
        return same_kind(self.rerank(*self.module.transfer(*check_pair(query, gallery))), query)


def _identity(module: FeatureTransfer) -> dict[str, Any]:
    """Return all that a module's answers depend on, in JSON's types."""
    digest = hashlib.sha256()
    for name, x in sorted(module.state_dict().items()):
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        digest.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    kinds = {"module": type(module).__name__, "value": repr(module.value), "dim": module.dim}
    kinds |= {"activation": module.activation} if isinstance(module, SharedFeatureTransfer) else {}
    return {**kinds, **_settings(module), "weights": digest.hexdigest()}


def _settings(module: FeatureTransfer) -> dict[str, Any]:
    names = [name for name in ("tau", "tau_hom", "tau_het") if hasattr(module, name)]
    return {"k": int(module.k)} | {name: float(getattr(module, name)) for name in names}
