"""Small tensor operations shared by the components. Safe at zero, in half precision and for empty groups."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` in float32, or unchanged in float64: sums over many terms lose too much in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def normalize_rows(x: Tensor) -> Tensor:
    """Scale the rows of ``x`` (…, d) to length 1, whatever their length; a zero row stays zero.

    The largest entry is scaled to 1 first: then no square overflows or vanishes, a nonzero row is at least 1 long, and
    with a lower bound of 1 the gradient of a zero row is no larger than the incoming one.
    """
    largest = x.detach().abs().amax(-1, keepdim=True) if x.shape[-1] else x.new_ones(*x.shape[:-1], 1)
    return F.normalize(x / torch.where(largest > 0, largest, 1), dim=-1, eps=1.0)


def rounding(dim: int, dtype: torch.dtype) -> float:
    """Return the bound on the error of a product of two rows of length 1: below it, a cosine counts as 0."""
    return (dim + 16) * torch.finfo(dtype).eps / 2


def euclidean(x: Tensor, y: Tensor) -> Tensor:
    """Compute the distances (…, a, b) of rows of ``x`` (…, a, d) and ``y`` (…, b, d), with gradient 0 at distance 0.

    The matrix product is avoided: its cancellation exceeds the distance of rows that nearly coincide.
    """
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the mean cross-entropy of ``logits`` (N, C) and integer ``labels`` (N,), in at least float32."""
    return F.cross_entropy(at_least_float32(logits), labels.long())


def masked_mean(x: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Average ``x`` where ``mask`` is True; 0 if it never is. NaN elsewhere is ignored."""
    return torch.where(mask, x, 0).sum(dim) / mask.sum(dim).clamp_min(1)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Set all parts of ``module`` to evaluation mode, and restore the mode of each part afterwards."""
    training = [part for part in module.modules() if part.training]
    try:
        module.eval()
        yield
    finally:
        for part in training:
            part.training = True
