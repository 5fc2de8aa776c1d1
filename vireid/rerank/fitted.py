"""Base of the re-rankers that look at a query and the gallery only: fit once, rank any number of queries."""

import copy
import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from vireid._checks import Array, ArrayT, check_count, check_finite, check_pair, check_path, same_kind, to_matrix
from vireid._files import load_arrays, save_arrays
from vireid._ops import repeated_rows
from vireid.neighbors import NeighborGraph
from vireid.neighbors._exact import blocks
from vireid.neighbors._scores import Rows, prepare
from vireid.rerank._blocks import nearest_first

_VERSION = 1


class GalleryReranker(ABC):
    """A re-ranker that is fitted to a gallery, after which each query is answered by itself.

    Queries and gallery must be on one device and may differ in type; the gallery's, at least float32, is computed in.
    Memory is that of the gallery, its unit rows and its graph, and one block of queries against the gallery.
    All that is fitted is replaced at once: a thread that ranks meanwhile answers for the gallery before or after. Only
    one thread at a time may fit or extend.

    A subclass holds its constructor's arguments under their names and defines the size of the gallery's graph
    (`_neighbors`), its preparation (`_prepare`), and the comparison of a block of queries with the gallery
    (`_distance`). The last two are called without gradients and with autocast off.
    """

    uses: ClassVar[str] = "gallery"
    """Data that a ranking depends on besides the query; reports print it."""

    _fitted: Self | None = None  # a copy of the object that holds what was fitted; only such a copy has a `_graph`
    _graph: NeighborGraph
    _graph_type: ClassVar[type[NeighborGraph]] = NeighborGraph  # of the gallery
    _repeated: tuple[Tensor, Tensor]  # gallery rows of equal directions, as of `repeated_rows`
    _neighbors: int
    """Number of neighbors needed of each gallery image, the image itself included."""

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of the constructor; reports print them."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def _prepare(self, graph: NeighborGraph) -> None:
        """Compute the gallery's share of `_distance` from its graph."""
        return

    @abstractmethod
    def _distance(self, query: Rows) -> Tensor:
        """Compute the distances (b, Ng) of a block of prepared queries."""

    def _nearest(self, query: Rows, n: int) -> Tensor:
        """Compute distances (b, Ng) of which only the ``n`` smallest must be right, if that is cheaper."""
        return self._distance(query)

    def _features(self, name: str, x: Tensor) -> Tensor:
        """Return the features (N, d) to compare for the checked argument ``name``; a subclass may transform them."""
        return x

    @property
    def graph(self) -> NeighborGraph:
        """k-NN graph of the fitted gallery.

        Raises:
            RuntimeError: before `fit`.
        """
        return self._state()._graph

    def _state(self) -> Self:
        """Return the copy that `_distance` and all else about the fitted gallery is called on."""
        state = self if hasattr(self, "_graph") else self._fitted
        if state is None:
            raise RuntimeError(f"{type(self).__name__} must be fitted first: call fit(gallery)")
        return state

    def fit(self, gallery: Array) -> Self:
        """Fit to a copy of ``gallery`` (Ng, d), in place of an earlier one, and return the object itself.

        Raises:
            ValueError, TypeError: if ``gallery`` is empty, not a floating-point matrix, or not finite.
        """
        g = to_matrix("gallery", gallery).clone()
        return self._take(self._graph_type.build(self._features("gallery", g), self._neighbors))

    def extend(self, gallery: Array) -> Self:
        """Append ``gallery`` (M, d) to the fitted one, without a rebuild of its graph.

        Returns:
            The object itself, as after `fit` to both.

        Raises:
            RuntimeError: before `fit`.
            ValueError, TypeError: if ``gallery`` has another size, type or device than the fitted one, or is not
                finite.
        """
        graph = self.graph
        g = to_matrix("gallery", gallery, columns=graph.features.shape[1])
        return self._take(graph.extend(self._features("gallery", g)))

    def distance(self, query: ArrayT) -> ArrayT:
        """Compute the distance of each query from each gallery image.

        Args:
            query: (Nq, d) floating point, tensor or NumPy array. Nq may be 0.

        Returns:
            (Nq, Ng), smaller = nearer; a NumPy array if ``query`` is one.

        Raises:
            RuntimeError: before `fit`.
            ValueError, TypeError: if ``query`` does not fit the gallery's size or device, or is not finite.
        """
        fitted = self._state()
        q = fitted._check(query)
        result = fitted.graph.values.new_empty(len(q), len(fitted.graph))
        for part, block in fitted._blocks(q):
            result[part] = block
        return same_kind(result, query)

    def topk(self, query: ArrayT, n: int) -> tuple[ArrayT, ArrayT]:
        """Return the nearest gallery images of each query, without a matrix (Nq, Ng).

        Args:
            query: (Nq, d), as for `distance`.
            n: number of images, at least 1; more than Ng means all.

        Returns:
            Distances (Nq, n), ascending, and gallery indices (Nq, n), ties by index: the first columns of a stable
            sort of `distance`. NumPy arrays if ``query`` is one.

        Raises:
            RuntimeError, ValueError, TypeError: as `distance`, and if ``n`` is not an integer of at least 1.
        """
        fitted = self._state()
        q = fitted._check(query)
        n = min(check_count("n", n), len(fitted.graph))
        values = fitted.graph.values.new_empty(len(q), n)
        indices = torch.empty(len(q), n, dtype=torch.int64, device=q.device)
        for part, block in fitted._blocks(q, n):
            values[part], indices[part] = nearest_first(block, n)
        return same_kind(values, query), same_kind(indices, query)

    def __call__(self, query: ArrayT, gallery: Array) -> ArrayT:
        """Compute the distance (Nq, Ng) from a gallery that is not kept, in the form of the protocols' ``rerank``.

        It equals ``fit(gallery).distance(query)``, but does not change the object, fitted or not.
        """
        g = check_pair(query, gallery)[1]
        once = copy.copy(self)
        return once._take(self._graph_type.build(self._features("gallery", g), self._neighbors)).distance(query)

    def _take(self, graph: NeighborGraph) -> Self:
        fitted = copy.copy(self)
        with torch.no_grad(), torch.autocast(graph.features.device.type, enabled=False):
            fitted._prepare(graph)
            fitted._graph, fitted._fitted, fitted._repeated = graph, None, repeated_rows(graph.rows.given)
        self._fitted = fitted
        return self

    def _check(self, query: Array) -> Tensor:
        g = self.graph.features
        q = to_matrix("query", query, columns=g.shape[1])
        if q.device != g.device:
            raise ValueError(f"query must be on the gallery's device, {g.device}, got {q.device}")
        check_finite("query", q)
        return self._features("query", q)

    def _blocks(self, query: Tensor, n: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        dtype = self.graph.rows.proposal.dtype
        for part in blocks(len(query), len(self.graph), dtype.itemsize):
            with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
                rows = prepare(query[part], "cosine", dtype, gallery=False)
                block = self._distance(rows) if n is None else self._nearest(rows, n)
            yield part, block

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write settings and gallery to ``path`` (.npz), whole or not at all.

        Raises:
            RuntimeError: before `fit`.
            ValueError: if the ending is not .npz.
            FileNotFoundError: if the folder does not exist.
            OSError: if the disk is full or not writable; an existing file is then untouched.
        """
        fitted = self._state()
        kind = f"vireid {type(self).__name__}"
        save_arrays(check_path("path", path), kind, _VERSION, fitted.graph.to_arrays(), fitted._saved())

    def _saved(self) -> dict[str, Any]:
        """Return the settings that `save` writes beside the graph: the constructor's keyword arguments."""
        return self.settings

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a saved object, ready for queries; it is on the CPU.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged or cut short, was not written by this class, or does not match its checksum.
        """
        graph, settings = cls._read(path)
        try:
            self = cls(**settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f"path must hold settings of {cls.__name__}, got {str(path)!r}: {error}") from error
        return self._loaded(graph, path)

    def _loaded(self, graph: NeighborGraph, path: str | os.PathLike[str]) -> Self:
        wanted = min(self._neighbors, len(graph))
        if graph.k != wanted:
            text = f"path must hold a graph with {wanted} neighbors of each image, got {graph.k} in {str(path)!r}"
            raise ValueError(text)
        return self._take(graph)

    @classmethod
    def _read(cls, path: str | os.PathLike[str]) -> tuple[NeighborGraph, dict[str, Any]]:
        """Return the graph and the settings in a file of this class."""
        kind = f"vireid {cls.__name__}"
        arrays, settings = load_arrays(check_path("path", path), kind, _VERSION)
        try:
            return cls._graph_type.from_arrays(arrays), settings
        except ValueError as error:
            raise ValueError(f"path must hold a {kind}, got {str(path)!r}: {error}") from error


def rank_alone(
    reranker: GalleryReranker, query: ArrayT, gallery: Array, top: int | None
) -> ArrayT | tuple[ArrayT, ArrayT]:
    """Return the distances of each query alone with the gallery, or with ``top`` those and the indices of the nearest.

    ``reranker`` is fitted to the gallery, in the larger type of the two.
    """
    q, g = check_pair(query, gallery)
    if top is not None:
        check_count("top", top)
    reranker.fit(g.to(torch.promote_types(q.dtype, g.dtype)))
    return reranker.distance(query) if top is None else reranker.topk(query, top)
