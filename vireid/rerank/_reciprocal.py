"""Reciprocal neighbors: the expanded sets of k-reciprocal encoding, and what a query alone changes in them.

In {q} ∪ G the query is node n, behind the n gallery images, and a pair of query b and node i has the key b (n + 1) + i.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vireid._checks import Array
from vireid.neighbors import NeighborGraph
from vireid.neighbors._exact import blocks, neighbors_within
from vireid.neighbors._scores import Rows
from vireid.rerank._alone import find
from vireid.rerank._sparse import Sparse, entries, reciprocal


class SpannedGraph(NeighborGraph):
    """A k-NN graph that also holds the lowest cosine of each image with all (N,)."""

    lowest: Tensor

    @classmethod
    def _of(cls, gallery: Tensor, rows: Rows, k: int) -> Self:
        lowest = rows.proposal.new_full((len(gallery),), torch.inf)

        def visit(part: slice, columns: slice, cosine: Tensor) -> None:
            lowest[part] = torch.minimum(lowest[part], cosine.amin(1))
            lowest[columns] = torch.minimum(lowest[columns], cosine.amin(0))

        values, indices = neighbors_within(rows, min(k, len(gallery)), visit=visit)
        return cls(gallery, indices, values.to(lowest.dtype), k=k, rows=rows)._with(lowest)

    def _with(self, lowest: Tensor) -> Self:
        self.lowest = lowest
        return self

    def extend(self, gallery: Array) -> Self:
        """Extend as `NeighborGraph.extend`."""
        graph = super().extend(gallery)
        if hasattr(graph, "lowest"):  # built anew
            return graph
        n, x = len(self), graph.rows.proposal
        lowest = torch.cat([self.lowest, self.lowest.new_full((len(x) - n,), torch.inf)])
        for part in blocks(len(x) - n, len(x), x.element_size()):
            part = slice(n + part.start, n + part.stop)
            product = x[part] @ x.T
            lowest[part] = product.amin(1)
            lowest[:n] = torch.minimum(lowest[:n], product[:, :n].amin(0))
        return graph._with(lowest)

    def to_arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the arrays of `NeighborGraph.to_arrays` and "lowest" (N,)."""
        return super().to_arrays() | {"lowest": self.lowest.cpu().numpy()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Self:
        """Return the graph of the arrays that `to_arrays` returned."""
        graph = super().from_arrays(arrays)
        lowest = torch.from_numpy(arrays.get("lowest", np.empty(0)))
        if lowest.shape != graph.values.shape[:1] or lowest.dtype != graph.values.dtype:
            raise ValueError(f"lowest must hold a cosine for each of {len(graph)} images, got {tuple(lowest.shape)}")
        return graph._with(lowest)


class Sets(NamedTuple):
    """The sets R(i, k) of all images of a gallery, with room for a query behind the m images of each ranking."""

    near: Tensor  # (n, m + 1) the first k + 1 of each ranking, or all n images, and the query
    kept: Tensor  # (n, m + 1) whether they are reciprocal; False for the query
    full: bool  # a query that is among the first k + 1 displaces the last one

    @classmethod
    def of(cls, index: Tensor, width: int) -> "Sets":
        """Return the sets of the first ``width`` of rankings ``index``."""
        near, n = index[:, :width], len(index)
        return cls(F.pad(near, (0, 1), value=n), F.pad(reciprocal(near), (0, 1)), width <= n)

    @property
    def images(self) -> tuple[Tensor, Tensor]:
        """Rankings and masks (n, m) without the room for a query."""
        return self.near[:, :-1], self.kept[:, :-1]

    def with_queries(self, enters: Tensor, nearest: Tensor) -> "QuerySets":
        """Return the sets of b queries' {q} ∪ G.

        Args:
            enters: (E,) sorted keys of the gallery images with the query among the first k + 1 of their rankings.
            nearest: (b, ≥ k or n) gallery images nearest to the queries.
        """
        n, m = len(self.near), self.near.shape[1] - 1
        nodes = n + 1
        first = nodes * torch.arange(len(nearest), device=nearest.device)[:, None]
        mine = nearest[:, : m - self.full]
        mutual = find(enters, (first + mine).flatten())[1].view_as(mine)
        joined = (first + mine)[mutual]
        lost = enters[self.kept[enters % nodes, m - 1]] if self.full else enters[:0]
        last = self.near[lost % nodes, m - 1]
        alone = lost - lost % nodes + last
        keys = torch.cat([joined, lost, alone]).unique()
        kept = self.kept[keys % nodes]
        kept[torch.searchsorted(keys, joined), m] = True
        kept[torch.searchsorted(keys, lost), m - 1] = False
        kept[torch.searchsorted(keys, alone), (self.near[last] == (lost % nodes)[:, None]).nonzero()[:, 1]] = False
        own = (
            F.pad(F.pad(mine, (0, self.full)), (0, 1), value=n),
            F.pad(F.pad(mutual, (0, self.full)), (0, 1), value=True),
        )
        return QuerySets(self, keys, kept, *own)


class QuerySets(NamedTuple):
    """The sets R(i, k) in {q} ∪ G of b queries, of which only those that differ from the gallery's are held."""

    gallery: Sets
    keys: Tensor  # (C,) sorted: images whose sets differ
    kept: Tensor  # (C, m + 1) whether gallery images, and last the query, are reciprocal
    own_near: Tensor  # (b, m + 1) the query's
    own_kept: Tensor

    def rows(self, query: Tensor, node: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nodes (…, m + 1) and whether they are reciprocal, of pairs of query and node (…)."""
        n = len(self.gallery.near)
        image = node.clamp_max(n - 1)
        near, kept = self.gallery.near[image], self.gallery.kept[image]
        place, differs = find(self.keys, query * (n + 1) + node)
        kept[differs] = self.kept[place[differs]]
        itself = node == n
        query = query.expand_as(node)[itself]
        near[itself], kept[itself] = self.own_near[query], self.own_kept[query]
        return near, kept


class ChangedRows(NamedTuple):
    """The rows of a matrix (n + 1, n + 1) in {q} ∪ G of b queries, of which only those that may differ are held."""

    gallery: Sparse
    keys: Tensor  # (C,) sorted, of the rows that may differ
    rows: Sparse  # (C, n + 1)

    def entries(self, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the entries of rows by their keys (P,): place in ``key``, column and value."""
        place, differs = find(self.keys, key)
        found = []
        for some, matrix, row in ((differs, self.rows, place), (~differs, self.gallery, key % self.gallery.columns)):
            owner, entry = entries(matrix.start, row[some])
            found.append((some.nonzero()[owner, 0], matrix.column[entry], matrix.value[entry]))
        owner, column, value = (torch.cat(x) for x in zip(*found, strict=True))
        return owner, column, value
