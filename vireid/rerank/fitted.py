"""What the re-rankers share that look at a query and the gallery alone: fit once, rank any number of queries."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from vireid._arrays import Array, same_kind, to_matrix
from vireid._checks import check_count, check_finite
from vireid._store import load_arrays, save_arrays
from vireid.neighbors import NeighborGraph
from vireid.neighbors.search import Rows, prepare

__all__ = ["GalleryReranker"]

_VERSION = 1
_BLOCK_BYTES = 2**25  # of one block of distances


class GalleryReranker(ABC):
    """A re-ranker that is fitted to a gallery, after which each query is answered alone.

    A subclass holds its settings and says which graph of the gallery it needs (`_neighbours`), what it makes of it
    (`_prepare`), and how a block of queries is compared with the gallery (`_distance`).
    """

    uses: ClassVar[str] = "gallery"
    """What a query's ranking looks at beyond itself; reports print it."""

    _graph: NeighborGraph | None = None

    @property
    @abstractmethod
    def _neighbours(self) -> int:
        """Neighbours of each gallery image that are needed, the image itself included."""

    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """The constructor's keyword arguments, for `save`."""

    @abstractmethod
    def _prepare(self, graph: NeighborGraph) -> None:
        """Compute from the gallery's graph what `_distance` needs."""

    @abstractmethod
    def _distance(self, query: Rows) -> Tensor:
        """Distances (b, Ng) of a block of prepared queries."""

    @property
    def graph(self) -> NeighborGraph:
        """The fitted gallery's k-NN graph.

        Raises:
            RuntimeError: before `fit`.
        """
        if self._graph is None:
            raise RuntimeError(f"{type(self).__name__} must be fitted first: call fit(gallery)")
        return self._graph

    def fit(self, gallery: Array) -> Self:
        """Take ``gallery`` (Ng, d); an earlier one is forgotten. Returns the object itself."""
        return self._take(NeighborGraph.build(gallery, self._neighbours))

    def extend(self, gallery: Array) -> Self:
        """Add ``gallery`` (M, d) behind the images that are there, without a rebuild of their graph."""
        return self._take(self.graph.extend(gallery))

    def distance(self, query: Array) -> Any:
        """Distance (Nq, Ng) of each query from each gallery image, smaller = nearer."""
        q = self._check(query)
        g = self.graph
        result = g.values.new_empty(len(q), len(g))
        for part, block in self._blocks(q):
            result[part] = block
        return same_kind(result, query)

    def topk(self, query: Array, n: int) -> tuple[Any, Any]:
        """The ``n`` nearest gallery images of each query: distances and indices (Nq, n), ties by index; no (Nq, Ng)."""
        q = self._check(query)
        check_count("n", n)
        n = min(n, len(self.graph))
        values, indices = (
            self.graph.values.new_empty(len(q), n),
            torch.empty(len(q), n, dtype=torch.int64, device=q.device),
        )
        for part, block in self._blocks(q):
            order = block.sort(dim=1, stable=True)
            values[part], indices[part] = order.values[:, :n], order.indices[:, :n]
        return same_kind(values, query), same_kind(indices, query)

    def __call__(self, query: Array, gallery: Array) -> Any:
        """``fit(gallery).distance(query)``: the form that the protocols' ``rerank`` takes."""
        return self.fit(gallery).distance(query)

    def _take(self, graph: NeighborGraph) -> Self:
        with torch.no_grad(), torch.autocast(graph.features.device.type, enabled=False):
            self._prepare(graph)
        self._graph = graph
        return self

    def _check(self, query: Array) -> Tensor:
        g = self.graph.features
        q = to_matrix("query", query, columns=g.shape[1])
        if q.device != g.device:
            raise ValueError(f"query must be on the gallery's device, {g.device}, got {q.device}")
        check_finite("query", q)
        return q

    def _blocks(self, query: Tensor) -> Iterator[tuple[slice, Tensor]]:
        gallery = self.graph.rows
        step = max(1, _BLOCK_BYTES // (len(self.graph) * gallery.proposal.dtype.itemsize))
        with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
            for start in range(0, len(query), step):
                part = slice(start, min(start + step, len(query)))
                yield part, self._distance(prepare(query[part], "cosine", gallery.proposal.dtype, gallery=False))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write settings and gallery to ``path`` (.npz), whole or not at all."""
        g = self.graph
        arrays = {name: getattr(g, name).cpu().numpy() for name in ("features", "indices", "values")}
        save_arrays(Path(path), f"vireid {type(self).__name__}", _VERSION, arrays, self._settings())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """What `save` wrote, ready for queries, on the CPU."""
        arrays, settings = load_arrays(Path(path), f"vireid {cls.__name__}", _VERSION)
        graph = NeighborGraph(*(torch.from_numpy(np.array(arrays[n])) for n in ("features", "indices", "values")))
        return cls(**settings)._take(graph)
