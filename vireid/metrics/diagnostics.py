"""Diagnostics of the CIFT paper: the distance between identities, and the correctness of an affinity."""

import math

import torch
from torch import Tensor

from vireid._checks import Array, check_count, check_finite, to_integers, to_matrix
from vireid._ops import euclidean
from vireid.metrics.ranking import widest

_BLOCK = 2**21  # entries of the matrix per block


def feature_margin(x: Array, labels: Array) -> float:
    """Compute the margin between identities (CIFT): Q_X of the features before a transfer, Q_Y of those after it.

    It is the mean over the rows of (mean distance to rows of other identities − mean distance to the other rows of
    the same identity). The distance is Euclidean (our choice), computed in float64 where the device has it; normalize
    ``x`` first to compare features of different scale. Rows without a positive or without a negative are left out.

    Args:
        x: (N, d).
        labels: (N,) integers.

    Returns:
        The margin, in the units of ``x``; larger = better separated.

    Raises:
        ValueError: for sizes that do not match, NaN or an infinity, or if no row has both a positive and a negative.
        TypeError: for anything but floating-point ``x`` and integer ``labels``.

    Example:
        >>> feature_margin(torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([3, 3, 4]))
        3.5
    """
    x = to_matrix("x", x)
    y = to_integers("labels", labels, len(x), x.device)
    check_finite("x", x)
    # No square overflows or vanishes once the largest entry is between 1 and 2; powers of two scale exactly.
    scale = math.ldexp(1.0, math.frexp(float(x.abs().max()) if x.numel() else 1.0)[1] - 1)
    x = x.to(widest(x.device)) / scale
    margins = []
    for start in range(0, len(x), block := max(1, _BLOCK // max(1, len(x)))):
        part = slice(start, start + block)
        d = euclidean(x[part], x)
        same = y[part, None] == y
        positive, negative = same.sum(1) - 1, (~same).sum(1)  # a row's distance of 0 from itself adds nothing
        margin = torch.where(same, 0, d).sum(1) / negative - torch.where(same, d, 0).sum(1) / positive
        margins.append(margin[(positive > 0) & (negative > 0)])
    return scale * _mean_of(margins)


def affinity_quality(affinity: Array, labels: Array, gallery_labels: Array | None = None) -> float:
    """Compute Q_A (CIFT), the share of the rows with the weakest positive above the strongest negative.

    Args:
        affinity: (N, N), larger = more alike, its diagonal not used; or (Nq, Ng) with ``gallery_labels``.
        labels: (N,) integers, of the rows.
        gallery_labels: (Ng,) integers, of the columns; None: the rows are the columns.

    Returns:
        A share in [0, 1] of the rows that have a positive (not themselves) and a negative; others are left out.

    Raises:
        ValueError: for sizes that do not match, NaN or an infinity, or if no row has both.
        TypeError: for anything but floating-point ``affinity`` and integer ``labels``.

    Example:
        >>> affinity_quality(torch.tensor([[1.0, 0.8, 0.1], [0.8, 1.0, 0.9], [0.1, 0.9, 1.0]]), torch.tensor([0, 0, 1]))
        0.5
    """
    a = to_matrix("affinity", affinity)
    if gallery_labels is None and a.shape[0] != a.shape[1]:
        raise ValueError(f"affinity must be square (N, N) without gallery_labels, got shape {tuple(a.shape)}")
    y = to_integers("labels", labels, len(a), a.device)
    columns = y if gallery_labels is None else to_integers("gallery_labels", gallery_labels, a.shape[1], a.device)
    check_finite("affinity", a)
    index = torch.arange(len(a), device=a.device)
    right = []
    for start in range(0, len(a), block := max(1, _BLOCK // max(1, a.shape[1]))):
        part = slice(start, start + block)
        same = y[part, None] == columns
        positive = same & (index[part, None] != index) if gallery_labels is None else same
        weakest = a[part].masked_fill(~positive, torch.inf).amin(1)
        strongest = a[part].masked_fill(same, -torch.inf).amax(1)
        right.append((weakest > strongest)[positive.any(1) & ~same.all(1)])
    return _mean_of(right)


def affinity_error_rate(
    affinity: Array, query_labels: Array, gallery_labels: Array | None = None, *, k: int = 4
) -> float:
    """Compute the share of entries that differ between the predicted and the ideal affinity (CIFT, Table 4).

    Ideal is 1 for the same identity and 0 otherwise; predicted is 1 for the ``k`` largest of a row, ties by gallery
    index, and 0 otherwise. An image compared with itself counts like any other (our choice).

    Args:
        affinity: (Nq, Ng), larger = more alike.
        query_labels: (Nq,) integers.
        gallery_labels: (Ng,) integers; None: the rows are the columns, Nq = Ng.
        k: neighbors kept per row, at least 1; more than Ng means all.

    Returns:
        A share in [0, 1].

    Raises:
        ValueError: for sizes that do not match, ``k`` below 1, an empty matrix, NaN or an infinity.
        TypeError: for anything but floating-point ``affinity`` and integer labels.

    Example:
        >>> affinity_error_rate(torch.tensor([[0.9, 0.8, 0.1]]), torch.tensor([0]), torch.tensor([0, 1, 0]), k=2)
        0.6666666666666666
    """
    a = to_matrix("affinity", affinity)
    k = check_count("k", k)
    if a.numel() == 0:
        raise ValueError(f"affinity must have at least one row and one column, got shape {tuple(a.shape)}")
    q = to_integers("query_labels", query_labels, len(a), a.device)
    name, labels = ("query_labels", query_labels) if gallery_labels is None else ("gallery_labels", gallery_labels)
    g = to_integers(name, labels, a.shape[1], a.device)
    check_finite("affinity", a)
    wrong = 0
    for start in range(0, len(a), block := max(1, _BLOCK // a.shape[1])):
        part = slice(start, start + block)
        kept = a[part].argsort(dim=1, descending=True, stable=True)[:, :k]
        ideal = q[part, None] == g
        predicted = torch.zeros_like(ideal).scatter_(1, kept, True)
        wrong += int((predicted != ideal).sum())
    return wrong / a.numel()


def _mean_of(parts: list[Tensor]) -> float:
    values = torch.cat(parts) if parts else torch.empty(0)
    if len(values) == 0:
        needed = "an identity with two rows and a second identity"
        raise ValueError(f"labels must hold {needed}, else no row has both a positive and a negative")
    return float(values.to(widest(values.device)).mean())
