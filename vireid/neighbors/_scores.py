"""Rows prepared for comparison, and exact scores in float64 that depend only on the two rows of a pair.

Elementwise operations give equal rows equal scores, whatever their neighbors, their place in memory, the number of
threads or the device; a sum, a matrix product or PyTorch's square root on the CPU would not. So ties stay ties.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vireid._ops import equalize_columns, has_float64, repeated_rows, rounding, scale_rows

__all__ = [
    "Metric",
    "Rows",
    "at_once",
    "cosine_distance",
    "error_bound",
    "prepare",
    "products",
    "rescore",
    "score_lists",
]

Metric = Literal["cosine", "euclidean", "dot"]

_FEW = 4  # queries up to which a product on the CPU is bound by reading the gallery


class Rows(NamedTuple):
    """Rows as given, with what products and exact scores need of them."""

    given: Tensor  # (N, d)
    square: Tensor  # (N,) float64, squared lengths
    proposal: Tensor  # (N, d) or (N, d+1), float32 or float64: proposal_q @ proposal_g grows with nearness

    @property
    def length(self) -> Tensor:
        """Lengths of the rows (N,), float64."""
        return self.square.sqrt()

    def select(self, index: slice | Tensor) -> "Rows":
        """Return the rows at ``index``."""
        return Rows(*(x[index] for x in self))


def prepare(x: Tensor, metric: Metric, dtype: torch.dtype, *, gallery: bool) -> Rows:
    """Prepare rows (N, d) for a search, as its gallery or as its queries, with proposals of ``dtype``."""
    if x.dtype == torch.float64 and metric == "cosine":
        x = _in_range(x)
    step = at_once(x)
    square = torch.empty(len(x), dtype=torch.float64, device=x.device)
    proposal = torch.empty(x.shape, dtype=dtype, device=x.device) if metric == "cosine" else x.to(dtype)
    buffer = torch.empty(min(step, len(x)), x.shape[1], dtype=torch.float64, device=x.device)
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        values = buffer[: len(x[part])]
        square[part] = _sum(values.copy_(x[part]).square_())
        if metric == "cosine":
            scale = torch.where(square[part] > 0, 1 / square[part].sqrt(), 1)
            proposal[part] = values.copy_(x[part]).mul_(scale[:, None])
    if metric == "euclidean":  # |q-g|^2 = |q|^2 - 2 (q.g - |g|^2/2), and |q|^2 does not change a query's order
        last = -square / 2 if gallery else torch.ones_like(square)
        proposal = torch.cat([proposal, last.to(dtype)[:, None]], dim=1)
    return Rows(x, square, proposal)


def rescore(queries: Rows, gallery: Rows, row: Tensor, column: Tensor, metric: Metric = "cosine") -> Tensor:
    """Return the scores (P,) in float64 of the pairs (``row``, ``column``), larger = nearer.

    A cosine is ±√(dot² / (|q|² |g|²)), 0 with a zero row: if dot and squares are exact, as for small integers, pairs of
    equal cosine have equal scores. The score of "euclidean" is minus the squared distance.
    """
    step = at_once(queries.given)
    parts = [
        score_lists(queries.select(r), gallery, c[:, None], metric)[:, 0]
        for r, c in zip(row.split(step), column.split(step), strict=True)
    ]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64, device=row.device)


def score_lists(queries: Rows, gallery: Rows, columns: Tensor, metric: Metric) -> Tensor:
    """Return the scores (b, m) in float64 of each query with its gallery rows ``columns`` (b, m), as `rescore`."""
    (b, m), d = columns.shape, queries.given.shape[1]
    step = max(1, min(b, at_once(queries.given) // m))
    # one set of buffers for all blocks: fetching fresh memory for each costs more than the arithmetic
    rows = gallery.given.new_empty(step * m, d)
    terms = torch.empty(step, m, d, dtype=torch.float64, device=columns.device)
    score = torch.empty(b, m, dtype=torch.float64, device=columns.device)
    for start in range(0, b, step):
        part = slice(start, min(start + step, b))
        n = part.stop - start
        some = torch.index_select(gallery.given, 0, columns[part].reshape(-1), out=rows[: n * m])
        terms[:n].copy_(some.view(n, m, d))
        mine = queries.given[part].double()[:, None]
        if metric == "euclidean":
            terms[:n].sub_(mine).square_()
        else:
            terms[:n].mul_(mine)
        score[part] = _sum(terms[:n].view(n * m, d)).view(n, m)
    if metric == "euclidean":
        score.neg_()
    if metric == "cosine":
        squares = queries.square[:, None] * gallery.square[columns]
        score = torch.where(squares > 0, _root(score.square() / squares).copysign(score), 0)
    return score


def error_bound(queries: Rows, gallery: Rows, metric: Metric) -> tuple[Tensor, Tensor]:
    """Return bounds (b,) on the error of a product beside its score, and whether (b,) the product must be finite."""
    info = torch.finfo(gallery.proposal.dtype)
    size = gallery.square.max().sqrt()  # for bounds of Σ_i |q_i g_i|, the magnitude that rounding is relative to
    if metric == "cosine":
        magnitude = torch.ones_like(queries.square)
    elif metric == "dot":
        magnitude = queries.length * size
    else:
        magnitude = queries.length * size + size.square() / 2
    dim = queries.given.shape[1]
    bound = rounding(dim, gallery.proposal.dtype) * magnitude + (dim + 16) * info.smallest_normal
    return bound, magnitude < info.max / 4


def products(queries: Tensor, gallery: Tensor) -> Tensor:
    """Return ``queries @ gallery.T`` (b, Ng) of proposals, also fast for a few queries."""
    few = queries.device.type == "cpu" and len(queries) <= _FEW
    if not few or not len(queries):
        return queries @ gallery.T
    # with the gallery on the left and at least two columns, memory is read at full speed
    q = queries.repeat(2, 1) if len(queries) == 1 else queries
    return (gallery @ q.T).T[: len(queries)].contiguous()


def cosine_distance(query: Tensor, gallery: Tensor) -> Tensor:
    """Compute 1 - cos (Nq, Ng) of finite rows, 1 with a zero row, such that equally near rows tie, to the bit.

    So do gallery rows of one direction, and rows whose products are exact, as of small integers or binary codes: rows
    are scaled by powers of two, and products divided by the lengths in float64. Time is that of the product, plus
    little.
    """
    dtype = torch.promote_types(torch.promote_types(query.dtype, gallery.dtype), torch.float32)
    (q, left), (g, right) = (_scaled(x, dtype) for x in (query, gallery))
    block = products(q, g)
    step = max(1, at_once(block) // 8)
    for start in range(0, len(q), step):
        part = slice(start, start + step)
        block[part] = 1 - (block[part] * left[part, None] * right).to(dtype)
    return equalize_columns(block, repeated_rows(g))


def _scaled(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return `scale_rows` of ``x`` in ``dtype``, and 1 / their lengths (N,) in float64, where the device has it."""
    scaled = torch.empty(x.shape, dtype=dtype, device=x.device)
    square = torch.empty(len(x), dtype=dtype, device=x.device)
    step = at_once(x)
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        square[rows] = scale_rows(x[rows].to(dtype), out=scaled[rows]).square().sum(1)  # of small integers it is exact
    wide = square.double() if has_float64(x.device) else square
    return scaled, 1 / wide.clamp_min(1).sqrt()  # also for a zero row


def at_once(x: Tensor) -> int:
    """Return the rows of ``x`` per float64 block: it should stay in the cache of a CPU, or fill a GPU."""
    block_bytes = 2**21 if x.device.type == "cpu" else 2**28
    return max(1, block_bytes // (8 * max(1, x.shape[1])))


def _in_range(x: Tensor) -> Tensor:
    """Scale float64 rows (N, d) by powers of two, so that neither squares nor their products leave the range."""
    if not x.numel():
        return x
    power = -torch.frexp(torch.maximum(x.amax(1), -x.amin(1))).exponent
    power = power.where(power.abs() > 200, 0)
    if not power.any():
        return x
    half = power // 2  # 2^power in one step may overflow
    return x * torch.exp2(half.double())[:, None] * torch.exp2((power - half).double())[:, None]


def _sum(x: Tensor) -> Tensor:
    """Sum the rows of ``x`` (N, d) by halving, which overwrites it: elementwise additions only."""
    while x.shape[1] > 1:
        half = x.shape[1] // 2
        x[:, :half] += x[:, -half:]  # an odd middle column waits for the next round
        x = x[:, : x.shape[1] - half]
    return x[:, 0] if x.shape[1] else x.new_zeros(len(x))


def _root(x: Tensor) -> Tensor:
    """Return the correctly rounded square root: NumPy's and CUDA's are, PyTorch's is not on every CPU."""
    return torch.from_numpy(np.sqrt(x.numpy())) if x.device.type == "cpu" else x.sqrt()
