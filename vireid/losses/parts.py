"""Losses on the parts of an image."""

from math import sqrt
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vireid import VISIBLE
from vireid._checks import check_integers, check_mask, check_option, check_positive
from vireid._ops import at_least_float32, masked_mean, normalize_rows

__all__ = ["PartContrastiveLoss", "PartDiversityLoss", "part_contrastive_loss", "part_diversity_loss"]


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

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return f"maps={self.maps!r}"

    def forward(self, attention: Tensor) -> Tensor:
        """The loss of a batch."""
        return part_diversity_loss(attention, maps=self.maps)


def part_contrastive_loss(
    nodes: Tensor,
    labels: Tensor,
    modality: Tensor,
    *,
    mask: Tensor | None = None,
    epsilon: float = 2.0,
    normalize: bool = False,
) -> Tensor:
    """Part contrastive loss as a function; see `PartContrastiveLoss`."""
    check_nodes(nodes, labels, modality, mask)
    check_positive("epsilon", epsilon)
    with torch.autocast(nodes.device.type, enabled=False):
        rows = at_least_float32(nodes)
        rows = rows if mask is None else torch.where(mask[:, :, None], rows, 0)
        rows = normalize_rows(rows.flatten(0, 1)).view_as(rows) if normalize else rows
        # Visible images first. Pairs of all images, masked, would need no wait, but four times the work and memory.
        infrared = modality != VISIBLE
        order, count = infrared.int().argsort(stable=True), len(rows) - int(infrared.sum())
        x, y = rows[order].transpose(0, 1).tensor_split([count], 1)
        # Not by the matrix product: near 0 its cancellation is larger than the distance.
        distance = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")  # (K + 1, visible, infrared)
        x_labels, y_labels = labels[order].tensor_split([count])
        same = x_labels[:, None] == y_labels
        terms = torch.where(same, distance.square(), (epsilon - distance).clamp_min(0).square())
        if mask is None:
            return terms.sum() / max(2 * terms.numel(), 1)
        x_mask, y_mask = mask[order].T.tensor_split([count], 1)
        present = x_mask[:, :, None] & y_mask[:, None]
        return masked_mean(terms.flatten(), present.flatten(), 0) / 2


class PartContrastiveLoss(nn.Module):
    """Pulls the same part of one person together across the modalities, and those of two persons apart (G2DA, Eq. 5).

        L_c = 1/(2 N (K+1)) Σ_n Σ_k (1 - z_n) d²_nk + z_n max(ε - d_nk, 0)²,   d_nk = ‖v_nk^R - v_nk^I‖₂

    z_n is 0 where the images of pair n are of one identity, else 1. The paper takes "every pair" of different
    modalities but calls their number N_t, "the batch size". Here n runs over all pairs of a visible and an infrared
    image, N of them (ours): a mean, the same in any batch order. With P identities of equally many images one pair in P
    attracts. In a batch of one modality there is no pair and the loss is 0.

    Where d is 0 its gradient is 0. On a GPU, finding the images of each modality waits for the device once.

    Args:
        epsilon: ε, the distance beyond which parts of two persons are not pushed apart, above 0. Two unrelated features
            of unit variance are about √(2d) apart, far beyond 2; two of length 1 are never more than 2 apart.
        normalize: L2-normalise each node first (ours; off by default, as the paper does not say that it does).

    Shape:
        nodes (B, K + 1, d) features of the parts and of the whole image, labels (B,) integers, modality (B,) integers,
        0 visible, any other infrared. mask (B, K + 1) bool, True where a node is present: a part counts where both
        images of a pair have it, N (K + 1) becomes the number of those, and what an absent node holds is not looked at
        (ours). The loss is a scalar, at least 0, in at least float32.

    Raises:
        ValueError: if a shape or ε is wrong.
        TypeError: if ``nodes`` is not floating point, ``labels`` or ``modality`` hold no integers, ``mask`` is not
            bool, or ε is no number.
    """

    def __init__(self, *, epsilon: float = 2.0, normalize: bool = False) -> None:
        super().__init__()
        check_positive("epsilon", epsilon)
        self.epsilon, self.normalize = epsilon, normalize

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return f"epsilon={self.epsilon}, normalize={self.normalize}"

    def forward(self, nodes: Tensor, labels: Tensor, modality: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The loss of a batch."""
        return part_contrastive_loss(nodes, labels, modality, mask=mask, epsilon=self.epsilon, normalize=self.normalize)


def check_nodes(nodes: Any, labels: Any, modality: Any, mask: Any) -> None:
    """Raise unless these are the graphs (B, K + 1, d) of a batch, its labels, modality and, if given, mask."""
    if not isinstance(nodes, Tensor):
        raise TypeError(f"nodes must be a torch.Tensor, got {type(nodes).__name__}")
    if nodes.ndim != 3 or 0 in nodes.shape[1:]:
        raise ValueError(f"nodes must have shape (B, K + 1, d), K + 1 and d at least 1, got {tuple(nodes.shape)}")
    if not nodes.is_floating_point():
        raise TypeError(f"nodes must be floating point, got {nodes.dtype}")
    check_integers("labels", labels, len(nodes))
    check_integers("modality", modality, len(nodes))
    if mask is not None:
        check_mask("mask", mask, nodes)
