"""Triplet losses on the hardest pairs of a batch. Any batch order, any number of images of each identity."""

import torch
from torch import Tensor, nn

from vireid._checks import check_integers, check_matrix, check_positive
from vireid._ops import at_least_float32, masked_mean, normalize_rows

__all__ = ["CrossModalityTripletLoss", "cross_modality_triplet_loss"]


def cross_modality_triplet_loss(
    x: Tensor, labels: Tensor, modality: Tensor, *, margin: float = 0.3, normalize: bool = False
) -> Tensor:
    """Hard triplet loss across modalities as a function; see `CrossModalityTripletLoss`."""
    check_matrix("x", x)
    check_integers("labels", labels, len(x))
    check_integers("modality", modality, len(x))
    check_positive("margin", margin)
    if not len(x):
        return at_least_float32(x).sum()
    with torch.autocast(x.device.type, enabled=False):
        rows = at_least_float32(x)
        rows = normalize_rows(rows) if normalize else rows
        # Not by the matrix product: near 0 its cancellation is larger than the distance.
        pairs = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
        same, across = labels[:, None] == labels, modality[:, None] != modality
        positive, negative = same & across, ~same & across
        farthest = torch.where(positive, pairs, 0).amax(1)
        nearest = torch.where(negative, pairs, torch.inf).amin(1)
        hinge = (margin + farthest - nearest).clamp_min(0)
        return masked_mean(hinge, positive.any(1) & negative.any(1), 0)


class CrossModalityTripletLoss(nn.Module):
    """Triplet loss whose positives and negatives are of the other modality (G2DA, L_tri of Eq. 1).

        L = mean_i [ρ + max_p ‖x_i - x_p‖ - min_n ‖x_i - x_n‖]₊,   p of i's identity, n of another, both of the modality
                                                                   that i is not

    Every image in turn is i. One without a positive or without a negative drops out of the mean; with none left the
    loss is 0. Of equally hard images each gets an equal share of the gradient. Where a distance is 0 its gradient is 0.

    The distance is the Euclidean one, not squared, of the features as they come in (ours; the paper says neither).

    Args:
        margin: ρ, above 0; 0.3 in the paper.
        normalize: L2-normalise the rows first (ours; off by default).

    Shape:
        x (B, d) features, labels (B,) integers, modality (B,) integers, 0 visible, 1 infrared; not read, so any other
        value is a modality of its own. The loss is a scalar, at least 0, in at least float32.

    Raises:
        ValueError: if a shape or the margin is wrong.
        TypeError: if ``x`` is not floating point, ``labels`` or ``modality`` hold no integers, or the margin is no
            number.
    """

    def __init__(self, *, margin: float = 0.3, normalize: bool = False) -> None:
        super().__init__()
        check_positive("margin", margin)
        self.margin, self.normalize = margin, normalize

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return f"margin={self.margin}, normalize={self.normalize}"

    def forward(self, x: Tensor, labels: Tensor, modality: Tensor) -> Tensor:
        """The loss of a batch."""
        return cross_modality_triplet_loss(x, labels, modality, margin=self.margin, normalize=self.normalize)
