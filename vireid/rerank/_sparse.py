"""Matrices with few entries a row, and their product subtracted from a dense block: what the affinity methods need."""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Sparse", "mean_of_rows", "rows_of", "subtract_product"]

_ENTRIES = 2**19  # worked on at once: few enough for a cache, enough to keep a GPU busy
_DENSE = 64  # a matrix product does so many terms, zeros included, in less time than it takes to add one by its place


class Sparse(NamedTuple):
    """A matrix by rows: row i has the entries from start[i] up to start[i + 1]; no place has two."""

    start: Tensor  # (rows + 1,) int64
    column: Tensor  # (P,) int64
    value: Tensor  # (P,)
    columns: int

    def rows(self) -> Tensor:
        """(P,) the row of each entry."""
        count = self.start.diff()
        return torch.arange(len(count), device=count.device).repeat_interleave(count, output_size=len(self.column))

    def transpose(self) -> "Sparse":
        """The transpose, within a row by column again."""
        order = self.column.argsort(stable=True)
        count = torch.bincount(self.column, minlength=self.columns)
        return Sparse(_starts(count), self.rows()[order], self.value[order], len(self.start) - 1)

    def square_sums(self) -> Tensor:
        """(rows,) the sum of the squares of each row."""
        return self.value.new_zeros(len(self.start) - 1).index_add_(0, self.rows(), self.value.square())

    def divided_by(self, length: Tensor) -> "Sparse":
        """Row i divided by length[i], unless that is 0."""
        return self._replace(value=self.value / torch.where(length > 0, length, 1)[self.rows()])


def rows_of(column: Tensor, value: Tensor, columns: int) -> Sparse:
    """The matrix with k entries in each row: ``column`` (N, k) distinct within a row, ``value`` (N, k)."""
    n, k = column.shape
    return Sparse(torch.arange(n + 1, device=column.device) * k, column.reshape(-1), value.reshape(-1), columns)


def mean_of_rows(near: Tensor, column: Tensor, value: Tensor, columns: int) -> Sparse:
    """Row i: the mean of the rows near[i] (N, m) of the matrix with entries ``column`` and ``value`` (N, k)."""
    width = near.shape[1] * column.shape[1]
    counts, all_columns, all_values = [], [], []
    for part in near.split(max(1, _ENTRIES // width)):
        place = column[part].view(len(part), width).sort(dim=1, stable=True)
        weight = (value[part] / near.shape[1]).view(len(part), width).gather(1, place.indices)
        first = torch.ones_like(place.values, dtype=torch.bool)
        first[:, 1:] = place.values[:, 1:] != place.values[:, :-1]  # equal columns stand together: one entry for them
        entry = first.view(-1).cumsum(0) - 1
        all_columns.append(place.values[first])
        all_values.append(weight.new_zeros(len(all_columns[-1])).index_add_(0, entry, weight.view(-1)))
        counts.append(first.sum(1))
    return Sparse(_starts(torch.cat(counts)), torch.cat(all_columns), torch.cat(all_values), columns)


def subtract_product(block: Tensor, left: Sparse, right: Sparse) -> None:
    """``block`` (rows of left, columns of right), contiguous, minus left @ right, in place."""
    if not len(left.column):
        return
    first = right.start[left.column]
    count = right.start[left.column + 1] - first
    end = count.cumsum(0)
    total = int(end[-1])
    if total * _DENSE > block.numel() * (len(right.start) - 1):
        _subtract_dense(block, left, right)
        return
    offset = left.rows() * block.shape[1]
    steps = torch.arange(0, total, _ENTRIES, device=end.device)
    cuts = torch.searchsorted(end, steps, right=True)  # where the entries of the product pass a multiple of _ENTRIES
    for low, high in pairwise([*cuts.unique().tolist(), len(end)]):
        part = slice(low, high)
        entry = torch.arange(high - low, device=end.device).repeat_interleave(count[part])
        shift = first[part] - (end[part] - count[part])
        place = torch.arange(len(entry), device=end.device).add_((end[low] - count[low] + shift).index_select(0, entry))
        target = right.column.index_select(0, place).add_(offset[part].index_select(0, entry))
        value = right.value.index_select(0, place).mul_(left.value[part].index_select(0, entry))
        block.view(-1).index_add_(0, target, value, alpha=-1)


def _subtract_dense(block: Tensor, left: Sparse, right: Sparse) -> None:
    """`subtract_product` where little is zero, as in AIM without removing: rows of right in blocks."""
    rows, inner = len(block), len(right.start) - 1
    dense = block.new_zeros(rows, inner)
    dense[left.rows(), left.column] = left.value
    step = max(1, 8 * _ENTRIES // block.shape[1])
    of_entry = right.rows()
    for low in range(0, inner, step):
        high = min(low + step, inner)
        part = slice(*right.start[[low, high]].tolist())
        chunk = block.new_zeros(high - low, block.shape[1])
        chunk[of_entry[part] - low, right.column[part]] = right.value[part]
        block.addmm_(dense[:, low:high], chunk, alpha=-1)


def _starts(count: Tensor) -> Tensor:
    return torch.cat([count.new_zeros(1), count.cumsum(0)])
