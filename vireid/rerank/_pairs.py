"""What the re-rankers share that look at queries and gallery together: both joined, and sparse matrices."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from vireid._checks import Array, check_count, check_pair
from vireid.neighbors._exact import Rows, prepare

__all__ = [
    "Lists",
    "blocks",
    "compressed",
    "cosines_of",
    "joined",
    "parts",
    "product",
    "reciprocal",
    "row_sums",
    "sparse",
    "sparse_rows",
    "transposed",
]

_BLOCK_BYTES = 2**25  # of one block of distances
_PAIRS = 2**20  # pairs of entries worked on at once


def joined(query: Array, gallery: Array, top: Any) -> tuple[Rows, int]:
    """Queries with the gallery behind them, checked and prepared for cosines, and the number of queries."""
    q, g = check_pair(query, gallery)
    if top is not None:
        check_count("top", top)
    x = torch.cat([q, g])
    return prepare(x, "cosine", torch.promote_types(x.dtype, torch.float32), gallery=True), len(q)


def blocks(start: int, stop: int, width: int, itemsize: int) -> Iterator[slice]:
    """The rows from ``start`` to ``stop``, as many at once as keep ``width`` entries each in 32 MiB."""
    step = max(1, _BLOCK_BYTES // (itemsize * max(1, width)))
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))


def parts(cost: Tensor, limit: int) -> Iterator[slice]:
    """Consecutive slices of ``cost`` (P,), integers; all entries of one but its first cost less than ``limit``."""
    stop = 0
    for size in (cost.cumsum(0) // limit).unique_consecutive(return_counts=True)[1].tolist():
        yield slice(stop, stop + size)
        stop += size


def sparse(row: Tensor, column: Tensor, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A COO matrix of entries that are sorted by row, then column, with none twice."""
    indices = torch.stack([row, column])
    return torch.sparse_coo_tensor(indices, value, shape, check_invariants=False, is_coalesced=True)


def sparse_rows(column: Tensor, value: Tensor, width: int) -> Tensor:
    """A COO matrix (R, ``width``) whose row r has ``value[r]`` (k,) in the columns ``column[r]`` (k,), ascending.

    Values of 0 are left out: a product must not grow with entries that add nothing to it.
    """
    row, place = value.nonzero().T
    return sparse(row, column[row, place], value[row, place], (len(column), width))


def compressed(matrix: Tensor) -> Tensor:
    """A coalesced COO matrix in CSR layout."""
    return matrix.to_sparse_csr()


def product(left: Tensor, right: Tensor) -> Tensor:
    """Product of two COO matrices, coalesced."""
    return torch.sparse.mm(left, right).coalesce()


def transposed(matrix: Tensor) -> Tensor:
    """Transpose of a coalesced COO matrix, coalesced."""
    row, column = matrix.indices()
    order = column.int().sort(stable=True).indices
    return sparse(column[order], row[order], matrix.values()[order], matrix.shape[::-1])


class Lists(NamedTuple):
    """A sparse matrix (R, C), row by row."""

    first: Tensor  # (R,) where a row's entries start
    length: Tensor  # (R,) how many it has
    column: Tensor
    value: Tensor
    width: int  # C

    @classmethod
    def of(cls, matrix: Tensor) -> Self:
        """Those of a coalesced COO matrix."""
        row, column = matrix.indices()
        length = row.bincount(minlength=len(matrix))
        return cls(length.cumsum(0) - length, length, column, matrix.values(), matrix.shape[1])

    def combined(
        self, height: int, row: Tensor, index: Tensor, value: Tensor, operation: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Sparse times sparse, dense result: entry p adds operation(``value[p]``, list ``index[p]``) to row ``row[p]``.

        With `torch.mul` that is the product of the matrix with the entries (row, index, value) and this one.

        Returns:
            (``height``, C).
        """
        result = value.new_zeros(height * self.width)
        length, first, target = self.length[index], self.first[index], row * self.width
        for some in parts(length, _PAIRS):
            times = length[some]
            place = (first[some] - times.cumsum(0) + times).repeat_interleave(times)
            place += torch.arange(len(place), device=place.device)
            both = operation(value[some].repeat_interleave(times), self.value[place])
            result.index_add_(0, target[some].repeat_interleave(times).add_(self.column[place]), both)
        return result.view(height, self.width)


def reciprocal(near: Tensor) -> Tensor:
    """Which entries of the rankings (N, k) have the row's image in their own ranking; (N, k) bool."""
    n = len(near)
    row = torch.arange(n, device=near.device)[:, None]
    key, back = (row * n + near).flatten().sort().values, (near * n + row).flatten()
    place = torch.searchsorted(key, back).clamp_max_(len(key) - 1)
    return (key[place] == back).view_as(near)


def row_sums(matrix: Tensor, value: Tensor) -> Tensor:
    """Sums of ``value``, one for each entry of a coalesced COO matrix, by row."""
    return value.new_zeros(len(matrix)).index_add_(0, matrix.indices()[0], value)


def cosines_of(x: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """x[row[p]] · x[column[p]] of unit rows ``x`` (N, d), for pairs sorted by row, then column."""
    pairs = compressed(sparse(row, column, x.new_zeros(len(row)), (len(x), len(x))))
    return torch.sparse.sampled_addmm(pairs, x, x.T, beta=0).values()


# PyTorch says once in a process that its CSR layout, which it also uses itself, is beta: here, unheard. A filter around
# each use would be lost or left behind where threads take turns, as filters are the whole process's.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    compressed(sparse_rows(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1), 1))
