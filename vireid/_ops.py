"""Small tensor operations that several components share. Safe at zero, in half precision and for empty groups."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32, or in float64 if it is that already: sums over many terms lose too much in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def normalize_rows(x: Tensor) -> Tensor:
    """Rows of ``x`` (…, d) scaled to length 1, whatever their length was; a zero row stays zero.

    The largest entry is brought to 1 first: then no square overflows or vanishes, a row that is not zero is at least 1
    long, and a lower bound of 1 gives a zero row a gradient no larger than what comes in.
    """
    largest = x.detach().abs().amax(-1, keepdim=True) if x.shape[-1] else x.new_ones(*x.shape[:-1], 1)
    return F.normalize(x / torch.where(largest > 0, largest, 1), dim=-1, eps=1.0)


def euclidean(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances (…, a, b) between rows of ``x`` (…, a, d) and ``y`` (…, b, d), with gradient 0 at distance 0.

    Not by the matrix product: between rows that nearly coincide its cancellation is larger than the distance.
    """
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of ``logits`` (N, C) and integer ``labels`` (N,), in at least float32."""
    return F.cross_entropy(at_least_float32(logits), labels.long())


def masked_mean(x: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Mean of ``x`` over the places where ``mask`` holds; 0 where there is none, and NaN elsewhere stays out."""
    return torch.where(mask, x, 0).sum(dim) / mask.sum(dim).clamp_min(1)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """``module`` with all its parts in evaluation mode, each part's own mode restored afterwards."""
    training = [part for part in module.modules() if part.training]
    try:
        module.eval()
        yield
    finally:
        for part in training:
            part.training = True
