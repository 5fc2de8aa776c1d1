"""Rows prepared for comparison, and exact scores in float64 that depend only on the two rows of a pair.

Elementwise operations give equal rows equal scores, whatever their neighbors, their place in memory, the number of
threads or the device; a sum, a matrix product or PyTorch's square root on the CPU would not. So ties stay ties.

For a device without float64, NumPy computes scores and squared lengths on the CPU, to the same bits. The device holds
them as int64: the bits, in the order of the numbers, are sorted, compared and selected there in their place.
"""

from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from vireid._ops import equalize_columns, has_float64, largest_entries, repeated_rows, rounding, scale_rows

Metric = Literal["cosine", "euclidean", "dot"]

Wide: TypeAlias = Any
"""Float64 in a tensor or, for a device without, in a NumPy array."""

_ALL_BUT_SIGN = 2**63 - 1  # bits of a float64
_FEW = 4  # queries up to which a product on the CPU is bound by reading the gallery


class Rows(NamedTuple):
    """Rows as given, with what products and exact scores need of them."""

    given: Tensor  # (N, d)
    square: Tensor  # (N,) squared lengths, float64 (bits on a device without)
    proposal: Tensor  # (N, d) or (N, d+1), float32 or float64: proposal_q @ proposal_g grows with nearness

    @property
    def length(self) -> Tensor:
        """Lengths of the rows (N,), float64, or float32 on a device without."""
        return to_float(self.square, root=True)

    def select(self, index: slice | Tensor) -> "Rows":
        """Return the rows at ``index``."""
        return Rows(*(x[index] for x in self))


def prepare(x: Tensor, metric: Metric, dtype: torch.dtype, *, gallery: bool) -> Rows:
    """Prepare rows (N, d) for a search, as its gallery or as its queries, with proposals of ``dtype``."""
    if x.dtype == torch.float64 and metric == "cosine":
        largest = largest_entries(x)
        if bool(((largest > 2.0**200) | (largest < 2.0**-200) & (largest > 0)).any()):
            x = scale_rows(x)  # exactly, so that neither squares nor their products leave the range
    step = at_once(x)
    square = torch.empty(len(x), dtype=torch.float64 if has_float64(x.device) else torch.int64, device=x.device)
    proposal = torch.empty(x.shape, dtype=dtype, device=x.device) if metric == "cosine" else x.to(dtype)
    buffer = _wide_buffer((min(step, len(x)), x.shape[1]), x.device)
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        values = _fill(buffer, x[part])
        values *= values
        total = _sum(values)
        square[part] = _stored(total, x.device)
        if metric == "cosine":
            scale = 1 / _root(total + (total == 0))
            values = _fill(buffer, x[part])
            values *= scale[:, None]
            proposal[part] = _narrow(values)
    if metric == "euclidean":  # |q-g|^2 = |q|^2 - 2 (q.g - |g|^2/2), and |q|^2 does not change a query's order
        last = -to_float(square) / 2 if gallery else proposal.new_ones(len(x))
        proposal = torch.cat([proposal, last.to(dtype)[:, None]], dim=1)
    return Rows(x, square, proposal)


def rescore(queries: Rows, gallery: Rows, row: Tensor, column: Tensor, metric: Metric = "cosine") -> Tensor:
    """Return the scores (P,), float64 or their bits, of the pairs (``row``, ``column``), larger = nearer.

    A cosine is ±√(dot² / (|q|² |g|²)), 0 with a zero row: if dot and squares are exact, as for small integers, pairs of
    equal cosine have equal scores. The score of "euclidean" is minus the squared distance.
    """
    step = at_once(queries.given)
    parts = [
        score_lists(queries.select(r), gallery, c[:, None], metric)[:, 0]
        for r, c in zip(row.split(step), column.split(step), strict=True)
    ]
    return torch.cat(parts) if parts else queries.square[:0]


def score_lists(queries: Rows, gallery: Rows, columns: Tensor, metric: Metric) -> Tensor:
    """Return the scores (b, m), float64 or their bits, of each query with gallery rows ``columns`` (b, m)."""
    (b, m), d = columns.shape, queries.given.shape[1]
    step = max(1, min(b, at_once(queries.given) // m))
    # one set of buffers for all blocks: fetching fresh memory for each costs more than the arithmetic
    rows = gallery.given.new_empty(step * m, d)
    buffer = _wide_buffer((step, m, d), columns.device)
    score = _wide_buffer((b, m), columns.device)
    for start in range(0, b, step):
        part = slice(start, min(start + step, b))
        n = part.stop - start
        some = torch.index_select(gallery.given, 0, columns[part].reshape(-1), out=rows[: n * m])
        terms = _fill(buffer, some.view(n, m, d))
        mine = _fill(_wide_buffer((n, d), columns.device), queries.given[part])[:, None]
        if metric == "euclidean":
            terms -= mine
            terms *= terms
        else:
            terms *= mine
        score[part] = _sum(terms.reshape(n * m, d)).reshape(n, m)
    if metric == "euclidean":
        score = -score
    if metric == "cosine":
        squares = _unstored(queries.square)[:, None] * _unstored(gallery.square[columns])
        sign = (score > 0) * 1.0 - (score < 0) * 1.0
        score = sign * _root(score * score / (squares + (squares == 0)))
    return _stored(score, columns.device)


def error_bound(queries: Rows, gallery: Rows, metric: Metric) -> tuple[Tensor, Tensor]:
    """Return bounds (b,) on the error of a product beside its score, and whether (b,) the product must be finite."""
    info = torch.finfo(gallery.proposal.dtype)
    # for bounds of Σ_i |q_i g_i|, the magnitude that rounding is relative to
    size = to_float(gallery.square.max(), root=True)
    if metric == "cosine":
        magnitude = torch.ones_like(queries.square, dtype=size.dtype)
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
    are scaled by powers of two, and products divided by the lengths in float64, as in `rescore`. Time is that of the
    product, plus little.
    """
    dtype = torch.promote_types(torch.promote_types(query.dtype, gallery.dtype), torch.float32)
    (q, q_square), (g, g_square) = (_scaled(x, dtype) for x in (query, gallery))
    block = products(q, g)
    step = max(1, at_once(block) // 8)
    for start in range(0, len(q), step):
        part = slice(start, start + step)
        wide = block[part].to(g_square.dtype)
        block[part] = 1 - _root(wide.square() / (q_square[part, None] * g_square)).copysign(wide).to(dtype)
    return equalize_columns(block, repeated_rows(g))


def _scaled(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return `scale_rows` of ``x`` in ``dtype``, and their squares (N,), 1 for a zero row, in float64 if there is."""
    scaled = torch.empty(x.shape, dtype=dtype, device=x.device)
    square = torch.empty(len(x), dtype=dtype, device=x.device)
    step = at_once(x)
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        square[rows] = scale_rows(x[rows].to(dtype), out=scaled[rows]).square().sum(1)  # of small integers it is exact
    square.clamp_min_(1)
    return scaled, square.double() if has_float64(x.device) else square


def at_once(x: Tensor) -> int:
    """Return the rows of ``x`` per float64 block: it should stay in the cache of a CPU, or fill a GPU."""
    block_bytes = 2**21 if x.device.type == "cpu" else 2**28
    return max(1, block_bytes // (8 * max(1, x.shape[1])))


def to_float(x: Tensor, dtype: torch.dtype | None = None, *, root: bool = False) -> Tensor:
    """Return scores or squares, or the roots of their magnitudes, in ``dtype``: float64 by default, or float32."""
    wide = _unstored(x)
    found = _narrow(_root(abs(wide)) if root else wide)
    return found.to(x.device, dtype or found.dtype)


def to_scores(x: Tensor) -> Tensor:
    """Return numbers in the form of scores, float64 or their bits."""
    return _stored(_fill(_wide_buffer(tuple(x.shape), x.device), x), x.device)


def infinity(scores: Tensor) -> float:
    """Return a number above all ``scores``, whose negative is below all."""
    return torch.inf if scores.is_floating_point() else 0x7FF << 52


def _wide_buffer(shape: tuple[int, ...], device: torch.device) -> Wide:
    """Return room for float64: a tensor, or an array for a device without."""
    return torch.empty(shape, dtype=torch.float64, device=device) if has_float64(device) else np.empty(shape)


def _fill(buffer: Wide, x: Tensor) -> Wide:
    """Copy ``x`` to the front of the buffer, and return that part."""
    part = buffer[: len(x)]
    if isinstance(part, Tensor):
        return part.copy_(x)
    part[...] = x.float().cpu().numpy()
    return part


def _stored(x: Wide, device: torch.device) -> Tensor:
    """Return numbers of a buffer on ``device``: as they are, or as bits in the order of the numbers."""
    if isinstance(x, Tensor):
        return x
    bits = (x + 0.0).view(np.int64)  # -0 is 0
    return torch.from_numpy(np.where(bits < 0, bits ^ _ALL_BUT_SIGN, bits)).to(device)


def _unstored(x: Tensor) -> Wide:
    """Return what `_stored` was given."""
    if x.is_floating_point():
        return x
    bits = x.cpu().numpy()
    return np.where(bits < 0, bits ^ _ALL_BUT_SIGN, bits).view(np.float64)


def _narrow(x: Wide) -> Tensor:
    """Return numbers of a buffer as a tensor, in float32 where they are an array."""
    if isinstance(x, Tensor):
        return x
    with np.errstate(over="ignore"):  # infinity beyond the range of float32, as on other devices
        return torch.from_numpy(np.asarray(x, dtype=np.float32))


def _sum(x: Wide) -> Wide:
    """Sum the rows of ``x`` (N, d) by halving, which overwrites it: elementwise additions only."""
    while x.shape[1] > 1:
        half = x.shape[1] // 2
        x[:, :half] += x[:, -half:]  # an odd middle column waits for the next round
        x = x[:, : x.shape[1] - half]
    return x[:, 0] if x.shape[1] else x.sum(1)


def _root(x: Wide) -> Wide:
    """Return the correctly rounded square root: NumPy's and CUDA's are, PyTorch's is not on every CPU."""
    if isinstance(x, Tensor):
        return torch.from_numpy(np.asarray(np.sqrt(x.numpy()))) if x.device.type == "cpu" else x.sqrt()
    return np.sqrt(x)
