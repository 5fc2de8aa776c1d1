"""Triplet losses on the hardest pairs of a batch, in any order and for any number of images per identity."""

import torch
from torch import Tensor

from vireid._checks import check_flag, check_positive, check_tensor
from vireid._ops import at_least_float32, euclidean, masked_mean, normalize_rows
from vireid.losses._common import Loss, check_rows


def cross_modality_triplet_loss(
    x: Tensor, labels: Tensor, modality: Tensor, *, margin: float = 0.3, normalize: bool = False
) -> Tensor:
    """Compute the hard triplet loss across modalities of a batch; see `CrossModalityTripletLoss`."""
    check_tensor("x", x, "B d")
    check_rows(len(x), labels=labels, modality=modality)
    margin, normalize = check_positive("margin", margin), check_flag("normalize", normalize)
    if not len(x):
        return at_least_float32(x).sum()
    with torch.autocast(x.device.type, enabled=False):
        rows = at_least_float32(x)
        rows = normalize_rows(rows) if normalize else rows
        pairs = euclidean(rows, rows)
        same, across = labels[:, None] == labels, modality[:, None] != modality
        positive, negative = same & across, ~same & across
        farthest = torch.where(positive, pairs, 0).amax(1)
        nearest = torch.where(negative, pairs, torch.inf).amin(1)
        hinge = (margin + farthest - nearest).clamp_min(0)
        return masked_mean(hinge, positive.any(1) & negative.any(1), 0)


class CrossModalityTripletLoss(Loss):
    """Triplet loss with positives and negatives of the other modality (G2DA, L_tri of Eq. 1).

        L = mean_i [ρ + max_p ‖x_i - x_p‖ - min_n ‖x_i - x_n‖]₊,   p of i's identity, n of another identity,
                                                                   both of the other modality than i

    Every image in turn is the anchor i. An anchor without a positive or without a negative drops out of the mean; with
    none left the loss is 0. Equally hard images share the gradient. The gradient of a distance of 0 is 0.

    The distance is Euclidean, not squared, and the features are not scaled (our choice; the paper says neither).

    Args:
        margin: ρ, above 0; 0.3 in the paper.
        normalize: L2-normalize the rows first (our choice; off by default).

    Shape:
        x (B, d) features, labels (B,) integers, modality (B,) integers, 0 visible, 1 infrared. The loss is a scalar of
        at least 0, in at least float32.
    """

    _needs = "triplet"

    def __init__(self, *, margin: float = 0.3, normalize: bool = False) -> None:
        super().__init__()
        self.margin, self.normalize = check_positive("margin", margin), check_flag("normalize", normalize)

    def forward(self, x: Tensor, labels: Tensor, modality: Tensor) -> Tensor:
        """Compute the loss of a batch."""
        return self._compute(cross_modality_triplet_loss, x, labels, modality)
