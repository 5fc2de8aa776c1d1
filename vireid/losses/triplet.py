"""Triplet losses on the pairs of a batch, in any order and for any number of images per identity."""

import torch
import torch.nn.functional as F
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


def weighted_regularized_triplet_loss(
    x: Tensor, labels: Tensor, modality: Tensor | None = None, *, normalize: bool = False
) -> Tensor:
    """Compute the weighted regularized triplet loss of a batch; see `WeightedRegularizedTripletLoss`."""
    check_tensor("x", x, "B d")
    check_rows(len(x), optional=["modality"], labels=labels, modality=modality)
    check_flag("normalize", normalize)
    with torch.autocast(x.device.type, enabled=False):
        rows = at_least_float32(x)
        rows = normalize_rows(rows) if normalize else rows
        pairs = euclidean(rows, rows)
        same = labels[:, None] == labels
        positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=same.device)
        farthest = (pairs * _masked_softmax(pairs, positive)).sum(1)
        nearest = (pairs * _masked_softmax(-pairs, ~same)).sum(1)
        return masked_mean(F.softplus(farthest - nearest), positive.any(1) & ~same.all(1), 0)


def _masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Compute the softmax of each row over the entries in ``mask``; 0 elsewhere, and in a row without any."""
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(1) * mask


class WeightedRegularizedTripletLoss(Loss):
    """Weighted regularized triplet loss: a soft margin between weighted means of pairs (AGW, Ye et al., TPAMI 2021).

        L = mean_i log(1 + exp( Σ_p w_ip d_ip - Σ_n w_in d_in ))
        w_ip = exp(d_ip) / Σ_p' exp(d_ip'),   w_in = exp(-d_in) / Σ_n' exp(-d_in'),   d the Euclidean distance

    p are the other images of i's identity and n those of other identities, in both modalities. The weights are
    softmaxes over these sets only, so that they sum to 1 for distances of any size. An image without a positive or
    without a negative drops out of the mean; with none left the loss is 0. The published code counts an image among its
    own positives; here it is not (our choice). The gradient of a distance of 0 is 0.

    Args:
        normalize: L2-normalize the rows first (our choice; off by default, as in the published code).

    Shape:
        x (B, d) features, labels (B,) integers; modality is not used. The loss is a scalar of at least 0, in at least
        float32.
    """

    def __init__(self, *, normalize: bool = False) -> None:
        super().__init__()
        self.normalize = check_flag("normalize", normalize)

    def forward(self, x: Tensor, labels: Tensor, modality: Tensor | None = None) -> Tensor:
        """Compute the loss of a batch."""
        return weighted_regularized_triplet_loss(x, labels, modality, **self._options())
