"""Matrices with few entries per row, and their products with each other and into a dense block."""

import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import scipy.sparse
import torch
from torch import Tensor

_ENTRIES = 2**19  # per block: few enough for a cache, enough to keep a GPU busy
_DENSE = 64  # terms of a matrix product, zeros included, that cost as much as one term added by its index


class Sparse(NamedTuple):
    """A matrix by rows: row i has the entries start[i] to start[i + 1], each in another column."""

    start: Tensor  # (rows + 1,) int64
    column: Tensor  # (P,) int64
    value: Tensor  # (P,)
    columns: int

    @classmethod
    def of(cls, row: Tensor, column: Tensor, value: Tensor, shape: tuple[int, ...]) -> "Sparse":
        """Return the matrix with the entries (row, column, value), sorted by row."""
        return cls(_starts(row.bincount(minlength=shape[0])), column, value, shape[1])

    def rows(self) -> Tensor:
        """Return the row of each entry (P,)."""
        count = self.start.diff()
        return torch.arange(len(count), device=count.device).repeat_interleave(count, output_size=len(self.column))

    def select(self, rows: slice) -> "Sparse":
        """Return consecutive rows."""
        start = self.start[rows.start : rows.stop + 1]
        entries = slice(*start[[0, -1]].tolist())
        return Sparse(start - start[0], self.column[entries], self.value[entries], self.columns)

    def rows_at(self, rows: Tensor) -> "Sparse":
        """Return the rows (P,), in this order."""
        _, place = entries(self.start, rows)
        start = _starts(self.start[rows + 1] - self.start[rows])
        return Sparse(start, self.column.index_select(0, place), self.value.index_select(0, place), self.columns)

    def transpose(self) -> "Sparse":
        """Return the transpose, its rows sorted by column."""
        order = self.column.int().argsort(stable=True)
        count = self.column.bincount(minlength=self.columns)
        return Sparse(_starts(count), self.rows()[order], self.value[order], len(self.start) - 1)

    def without_zeros(self) -> "Sparse":
        """Return the matrix without entries of 0, which would fill a product."""
        kept = self.value != 0
        return Sparse(_starts(kept)[self.start], self.column[kept], self.value[kept], self.columns)

    def row_sums(self, value: Tensor) -> Tensor:
        """Return the sums (rows,) of ``value`` (P,), one number per entry, by row."""
        return value.new_zeros(len(self.start) - 1).index_add_(0, self.rows(), value)

    def square_sums(self) -> Tensor:
        """Return the sum (rows,) of the squares of each row."""
        return self.row_sums(self.value.square())

    def largest(self) -> Tensor:
        """Return the largest magnitude (rows,) of each row, 0 for an empty one."""
        zeros = self.value.new_zeros(len(self.start) - 1)
        return zeros.scatter_reduce_(0, self.rows(), self.value.abs(), "amax")

    def scaled(self, factor: Tensor) -> "Sparse":
        """Return the matrix with row i times factor[i]."""
        return self._replace(value=self.value * factor[self.rows()])

    def coo(self, *, ascending: bool = True) -> Tensor:
        """Return PyTorch's COO form; columns that do not ascend within a row are sorted when they have to."""
        shape = len(self.start) - 1, self.columns
        indices = torch.stack([self.rows(), self.column])
        return torch.sparse_coo_tensor(indices, self.value, shape, check_invariants=False, is_coalesced=ascending)

    def scipy(self) -> scipy.sparse.csr_array:
        """Return SciPy's CSR form of a matrix on the CPU, which shares its memory."""
        arrays = (x.numpy() for x in (self.value, self.column, self.start))
        return scipy.sparse.csr_array(tuple(arrays), shape=(len(self.start) - 1, self.columns))

    def csr(self) -> Tensor:
        """Return PyTorch's CSR form; columns must ascend within a row."""
        shape = len(self.start) - 1, self.columns
        return torch.sparse_csr_tensor(self.start, self.column, self.value, shape, check_invariants=False)


def entries(start: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """Return the entries of rows ``row`` (P,) of a matrix by rows (`Sparse.start`): which of ``row``, and place."""
    first = start[row]
    count = start[row + 1] - first
    owner = torch.arange(len(row), device=row.device).repeat_interleave(count)
    shift = first - count.cumsum(0) + count
    return owner, torch.arange(len(owner), device=row.device).add_(shift.index_select(0, owner))


def rows_of(column: Tensor, value: Tensor, columns: int) -> Sparse:
    """Return the matrix with k entries per row: ``column`` (N, k) distinct within a row, ``value`` (N, k)."""
    n, k = column.shape
    return Sparse(torch.arange(n + 1, device=column.device) * k, column.reshape(-1), value.reshape(-1), columns)


def from_coo(matrix: Tensor) -> Sparse:
    """Return PyTorch's COO matrix as a `Sparse`."""
    matrix = matrix.coalesce()
    row, column = matrix.indices()
    return Sparse.of(row, column, matrix.values(), tuple(matrix.shape))


def product(left: Sparse, right: Sparse) -> Sparse:
    """Return the product of two matrices whose columns ascend within a row."""
    return from_coo(torch.sparse.mm(left.coo(), right.coo()))


def product_unsorted(left: Sparse, right: Sparse) -> Sparse:
    """Return the product of two matrices; the columns of a row are distinct, in any order, as they may be in both.

    SciPy's product is several times faster than PyTorch's of COO matrices. PyTorch's of CSR matrices, as fast, loses
    memory at every call.
    """
    if left.value.device.type == "cpu":
        found = left.scipy() @ right.scipy()
        start, column = (torch.from_numpy(x).long() for x in (found.indptr, found.indices))
        return Sparse(start, column, torch.from_numpy(found.data), right.columns)
    return from_coo(torch.sparse.mm(left.coo(ascending=False), right.coo(ascending=False)))


def mean_of_rows(near: Tensor, column: Tensor, value: Tensor, columns: int) -> Sparse:
    """Return the matrix whose row i is the mean of rows near[i] of that with entries ``column``, ``value`` (N, k)."""
    width = near.shape[1] * column.shape[1]
    counts, all_columns, all_values = [], [], []
    for part in near.split(max(1, _ENTRIES // width)):
        place = column[part].view(len(part), width).sort(dim=1, stable=True)
        weight = (value[part] / near.shape[1]).view(len(part), width).gather(1, place.indices)
        first = torch.ones_like(place.values, dtype=torch.bool)
        first[:, 1:] = place.values[:, 1:] != place.values[:, :-1]  # equal columns are adjacent: one entry for them
        entry = first.view(-1).cumsum(0) - 1
        all_columns.append(place.values[first])
        all_values.append(weight.new_zeros(len(all_columns[-1])).index_add_(0, entry, weight.view(-1)))
        counts.append(first.sum(1))
    return Sparse(_starts(torch.cat(counts)), torch.cat(all_columns), torch.cat(all_values), columns)


def accumulate(
    block: Tensor,
    left: Sparse,
    right: Sparse,
    operation: Callable[[Tensor, Tensor], Tensor] = torch.mul,
    *,
    alpha: float = 1,
) -> None:
    """Add alpha · Σ_j operation(left_ij, right_jc), over entries of both, to ``block`` (left's rows, right's columns).

    With `torch.mul` it is the product of the two. ``block`` is contiguous and is changed in place.
    """
    count = right.start[left.column + 1] - right.start[left.column]
    offset = left.rows() * block.shape[1]
    flat = block.view(-1)
    for part in parts(count, _ENTRIES):
        entry, place = entries(right.start, left.column[part])
        target = right.column.index_select(0, place).add_(offset[part].index_select(0, entry))
        value = operation(right.value.index_select(0, place), left.value[part].index_select(0, entry))
        flat.index_add_(0, target, value, alpha=alpha)


def subtract_product(block: Tensor, left: Sparse, right: Sparse) -> None:
    """Subtract left @ right from ``block`` (rows of left, columns of right), contiguous, in place."""
    terms = int((right.start[left.column + 1] - right.start[left.column]).sum())
    inner = len(right.start) - 1
    if terms * _DENSE <= block.numel() * inner:
        accumulate(block, left, right, alpha=-1)
        return
    # few entries are zero: a product with blocks of the rows of right
    dense = block.new_zeros(len(block), inner)
    dense[left.rows(), left.column] = left.value
    step = max(1, 8 * _ENTRIES // block.shape[1])
    for low in range(0, inner, step):
        some = right.select(slice(low, min(low + step, inner)))
        chunk = block.new_zeros(len(some.start) - 1, block.shape[1])
        chunk[some.rows(), some.column] = some.value
        block.addmm_(dense[:, low : low + step], chunk, alpha=-1)


def reciprocal(near: Tensor, other: Tensor | None = None) -> Tensor:
    """Return a mask (N, k) of the entries of the rankings that have the row's image in their own ranking.

    ``other`` (M, l) ranks the N images for each of the M others that ``near`` ranks; by default both are one set.
    """
    n, other = len(near), near if other is None else other
    row, column = (torch.arange(len(x), device=near.device)[:, None] for x in (near, other))
    key, back = (column * n + other).flatten().sort().values, (near * n + row).flatten()
    place = torch.searchsorted(key, back).clamp_max_(len(key) - 1)
    return (key[place] == back).view_as(near)


def parts(cost: Tensor, limit: int) -> Iterator[slice]:
    """Cut ``cost`` (P,), integers, into slices whose entries, all but the first, cost less than ``limit`` together."""
    if len(cost):
        end = cost.cumsum(0)
        steps = limit * torch.arange(1, max(1, -(-int(end[-1]) // limit)), device=cost.device)
        cuts = torch.searchsorted(end, steps, right=True).unique().tolist()
        for low, high in pairwise(dict.fromkeys([0, *cuts, len(cost)])):
            yield slice(low, high)


def _starts(count: Tensor) -> Tensor:
    return torch.nn.functional.pad(count.cumsum(0), (1, 0))


# PyTorch warns once per process that its CSR layout, which it also uses itself, is beta: it does so here, unheard.
# Filters belong to the whole process: threads would lose or leave behind a filter around each use.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    rows_of(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1), 1).csr()
