"""Shared helpers of the re-rankers: queries and gallery joined, the nearest of a block."""

from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from vireid._checks import Array, ArrayT, check_count, check_pair, same_kind
from vireid.neighbors._scores import Rows, prepare

Queries = Literal["all", "alone"]
"""Queries that a ranking depends on: all of them, or only the one that is ranked."""

Function = TypeVar("Function", bound=Callable[..., Any])


def joined(query: Array, gallery: Array, top: int | None) -> tuple[Rows, int]:
    """Return queries followed by the gallery, checked and prepared for cosines, and the number of queries."""
    q, g = check_pair(query, gallery)
    if top is not None:
        check_count("top", top)
    x = torch.cat([q, g])
    return prepare(x, "cosine", torch.promote_types(x.dtype, torch.float32), gallery=True), len(q)


def nearest_first(distance: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the ``n`` smallest of each row of ``distance`` (b, Ng), ascending, ties by index: values and indices."""
    more = distance.topk(min(n + 1, distance.shape[1]), dim=1, largest=False)
    values, indices = more.values[:, :n], more.indices[:, :n].clone()
    contested = (more.values[:, n:] == values[:, -1:]).any(1).nonzero().flatten()
    if len(contested):  # the last places are tied with others: the lowest indices win them
        rows, last = distance[contested], values[contested, -1:]
        within, tied = rows < last, rows == last
        within |= tied & (tied.cumsum(1) <= n - within.sum(1, keepdim=True))
        indices[contested] = within.nonzero()[:, 1].view(-1, n)
    indices = indices.sort(dim=1).values
    order = distance.gather(1, indices).sort(dim=1, stable=True)
    return order.values, indices.gather(1, order.indices)


def collect(
    query: ArrayT, out: Tensor, found: Iterable[tuple[slice, Tensor]], top: int | None
) -> ArrayT | tuple[ArrayT, ArrayT]:
    """Fill ``out`` with blocks of distances, or with the ``top`` nearest of each row, and return it (with indices).

    Args:
        query: tensor or array whose kind the answer has.
        out: (Nq, Ng), or (Nq, min(top, Ng)).
        found: rows and their distances (b, Ng).
        top: None for all distances.
    """
    if top is None:
        for part, block in found:
            out[part] = block
        return same_kind(out, query)
    indices = torch.empty(out.shape, dtype=torch.int64, device=out.device)
    for part, block in found:
        out[part], indices[part] = nearest_first(block, out.shape[1])
    return same_kind(out, query), same_kind(indices, query)


def uses(what: str) -> Callable[[Function], Function]:
    """Mark a re-ranker with the data that its rankings depend on besides the query: "gallery" or "transductive"."""

    def mark(function: Function) -> Function:
        vars(function)["uses"] = what
        return function

    return mark
