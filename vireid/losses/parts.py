"""Losses on the parts of an image."""

from math import sqrt
from typing import Literal

import torch
from torch import Tensor, nn

from vireid._checks import check_option
from vireid._ops import at_least_float32

__all__ = ["PartDiversityLoss", "part_diversity_loss"]


def part_diversity_loss(attention: Tensor, *, maps: Literal["sigmoid", "logits"] = "sigmoid") -> Tensor:
    """Part diversity loss as a function; see `PartDiversityLoss`."""
    check_option("maps", maps, ("sigmoid", "logits"))
    if not isinstance(attention, Tensor):
        raise TypeError(f"attention must be a torch.Tensor, got {type(attention).__name__}")
    if attention.ndim != 3 or not attention.shape[1] or not attention.shape[2]:
        raise ValueError(f"attention must have shape (B, p, n), p and n at least 1, got {tuple(attention.shape)}")
    if not attention.is_floating_point():
        raise TypeError(f"attention must be floating point, got {attention.dtype}")
    size, parts, pixels = attention.shape
    with torch.autocast(attention.device.type, enabled=False):
        rows = at_least_float32(attention)
        # Not by the matrix product: between maps that nearly coincide its cancellation is larger than the distance.
        pairs = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")  # (B, p, p), zero diagonal
        if maps == "sigmoid":
            pairs = pairs / sqrt(pixels)
        return -pairs.sum() / max(size * parts * (parts - 1), 1)


class PartDiversityLoss(nn.Module):
    """Keeps the attention maps of an image's parts apart (SAAI, Eq. 4).

        L_pd = - 2/(p(p-1)) Σ_{i<j} ‖M_i - M_j‖₂,   mean over the batch

    A single part (p = 1) has no pair: the loss and its gradient are 0.

    Each pair is pushed apart with a force of the same size, however near its maps are; where two maps coincide there is
    no direction to part them and the pair's gradient is 0. Prototypes that start equal therefore stay equal: start them
    at random.

    Args:
        maps: ``"sigmoid"``: M are the sigmoid maps S, and the norm is divided by √n, so it is the root of the mean
            square over the pixels and the loss lies in [-1, 0] whatever the size of the feature map (ours, as the
            authors' released model does). ``"logits"``: M are P Tᵀ before the sigmoid and the norm is the plain one, as
            the paper prints it; unbounded below.

    Shape:
        attention (B, p, n), p maps of n pixels; the loss is a scalar, at most 0, in at least float32.

    Raises:
        ValueError: if the shape or the option is wrong.
        TypeError: if ``attention`` is not a floating-point tensor.
    """

    def __init__(self, *, maps: Literal["sigmoid", "logits"] = "sigmoid") -> None:
        super().__init__()
        check_option("maps", maps, ("sigmoid", "logits"))
        self.maps = maps

    def forward(self, attention: Tensor) -> Tensor:
        """The loss of a batch."""
        return part_diversity_loss(attention, maps=self.maps)
