"""Losses between the centers of identities in each modality, for any batch order and number of images."""

from typing import Literal

import torch
from torch import Tensor

from vireid._checks import check_flag, check_option, check_positive, check_tensor
from vireid._ops import at_least_float32, euclidean, masked_mean, normalize_rows
from vireid.losses._common import Groups, Loss, check_rows, membership

Reduction = Literal["sum", "mean"]


def hetero_center_loss(
    x: Tensor, labels: Tensor, modality: Tensor, *, normalize: bool = True, reduction: Reduction = "sum"
) -> Tensor:
    """Compute the hetero-center loss of a batch; see `HeteroCenterLoss`."""
    _check(x, labels, modality, normalize)
    check_option("reduction", reduction, ("sum", "mean"))
    with torch.autocast(x.device.type, enabled=False):
        pairs, groups = _center_distances(x, labels, modality, normalize)
        visible_first = modality[groups.first][:, None] < modality[groups.first]  # each pair once
        positive = _positives(groups, labels, modality) & visible_first
        if reduction == "mean":
            return masked_mean(pairs.square().flatten(), positive.flatten(), 0)
        return torch.where(positive, pairs.square(), 0).sum()


def hetero_center_triplet_loss(
    x: Tensor, labels: Tensor, modality: Tensor, *, margin: float = 0.3, normalize: bool = False
) -> Tensor:
    """Compute the hetero-center triplet loss of a batch; see `HeteroCenterTripletLoss`."""
    _check(x, labels, modality, normalize)
    margin = check_positive("margin", margin)
    if not len(x):
        return at_least_float32(x).sum()
    with torch.autocast(x.device.type, enabled=False):
        pairs, groups = _center_distances(x, labels, modality, normalize)
        own = labels[groups.first]
        positive = _positives(groups, labels, modality)
        negative = (own[:, None] != own) & groups.real
        farthest = torch.where(positive, pairs, 0).amax(1)
        nearest = torch.where(negative, pairs, torch.inf).amin(1)
        hinge = (margin + farthest - nearest).clamp_min(0)
        return masked_mean(hinge, positive.any(1) & negative.any(1), 0)


def _check(x: Tensor, labels: Tensor, modality: Tensor, normalize: bool) -> None:
    check_tensor("x", x, "B d")
    check_rows(len(x), labels=labels, modality=modality)
    check_flag("normalize", normalize)


def _center_distances(x: Tensor, labels: Tensor, modality: Tensor, normalize: bool) -> tuple[Tensor, Groups]:
    """Compute the distances (M, M) between the centers of the identities in each modality."""
    rows = at_least_float32(x)
    groups = membership(labels, modality, dtype=rows.dtype)
    centers = groups.means(normalize_rows(rows) if normalize else rows)
    return euclidean(centers, centers), groups


def _positives(groups: Groups, labels: Tensor, modality: Tensor) -> Tensor:
    """Return (M, M) bool, the pairs of one identity's two centers."""
    own, kind = labels[groups.first], modality[groups.first]
    return (own[:, None] == own) & (kind[:, None] != kind) & groups.real[:, None] & groups.real


class HeteroCenterLoss(Loss):
    """Hetero-center loss: draws an identity's two centers together (Zhu et al., Neurocomputing 2020).

        L = Σ_i ‖c_i^v - c_i^t‖²

    c_i^v and c_i^t are the means of identity i's visible and infrared images in the batch. An identity seen in one
    modality only drops out; with none left the loss is 0.

    Args:
        normalize: L2-normalize the rows first, as the published code does (our choice).
        reduction: ``"sum"`` over the identities, as in the equation, or their ``"mean"``.

    Shape:
        x (B, d) features, labels (B,) integers, modality (B,) integers, 0 visible, 1 infrared. The loss is a scalar of
        at least 0, in at least float32.
    """

    _needs = "positive"

    def __init__(self, *, normalize: bool = True, reduction: Reduction = "sum") -> None:
        super().__init__()
        check_option("reduction", reduction, ("sum", "mean"))
        self.normalize, self.reduction = check_flag("normalize", normalize), reduction

    def forward(self, x: Tensor, labels: Tensor, modality: Tensor) -> Tensor:
        """Compute the loss of a batch."""
        return self._compute(hetero_center_loss, x, labels, modality)


class HeteroCenterTripletLoss(Loss):
    """Hetero-center triplet loss: a triplet loss between centers (Liu et al., IEEE Transactions on Multimedia 2020).

        L = mean_c [ρ + ‖c - c⁺‖ - min_n ‖c - n‖]₊,   c⁺ the center of c's identity in the other modality,
                                                      n the centers of other identities, in both modalities

    Every identity's center in each modality is in turn the anchor c. An anchor without a positive or without a negative
    drops out of the mean; with none left the loss is 0. The paper sums over the anchors; the mean is that of its
    published code. The gradient of a distance of 0 is 0.

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
        return self._compute(hetero_center_triplet_loss, x, labels, modality)
