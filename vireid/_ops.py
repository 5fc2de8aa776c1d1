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
    """Rows of ``x`` (N, d) scaled to length 1; a zero row stays zero, and its gradient stays moderate."""
    return F.normalize(x, dim=1, eps=1e-6)


def masked_mean(x: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Mean of ``x`` over the places where ``mask`` holds; 0 where there is none, and NaN elsewhere stays out."""
    return torch.where(mask, x, 0).sum(dim) / mask.sum(dim).clamp_min(1)


def identity_centers(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean feature of each identity, for any order and any count, by one matrix product (no scatter atomics).

    Args:
        features: (B, d).
        labels: (B,) integers.

    Returns:
        ids (M,) in ascending order, index (B,) of each row's identity in ``ids``, centres (M, d).
    """
    ids, index = labels.unique(return_inverse=True)
    member = F.one_hot(index, len(ids)).to(features.dtype)
    return ids, index, (member.T @ features) / member.sum(0)[:, None]


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
