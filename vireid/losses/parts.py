"""Losses on the parts of an image."""

from math import sqrt
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from vireid import INFRARED, VISIBLE
from vireid._checks import check_flag, check_option, check_positive, values_are_free
from vireid._ops import at_least_float32, euclidean, masked_mean, normalize_rows
from vireid.losses._common import Loss, check_graphs, check_parts, check_rows

Maps = Literal["sigmoid", "logits"]
Average = Literal["pairs", "images"]


def part_diversity_loss(
    attention: Tensor, labels: Tensor | None = None, modality: Tensor | None = None, *, maps: Maps = "sigmoid"
) -> Tensor:
    """Compute the part diversity loss of a batch; see `PartDiversityLoss`."""
    check_parts("attention", attention, "B p n")
    check_rows(len(attention), optional=["labels", "modality"], labels=labels, modality=modality)
    check_option("maps", maps, ("sigmoid", "logits"))
    size, parts, pixels = attention.shape
    with torch.autocast(attention.device.type, enabled=False):
        rows = at_least_float32(attention)
        pairs = euclidean(rows, rows)  # (B, p, p), zero diagonal
        if maps == "sigmoid":
            pairs = pairs / sqrt(pixels)
        return -pairs.sum() / max(size * parts * (parts - 1), 1)


class PartDiversityLoss(Loss):
    """Part diversity loss: pushes the attention maps of an image's parts apart (SAAI, Eq. 4).

        L_pd = - 2/(p(p-1)) Σ_{i<j} ‖M_i - M_j‖₂,   mean over the batch

    A single part (p = 1) has no pair: the loss and its gradient are 0.

    The force on a pair does not depend on its distance, but it is 0 where two maps coincide, for lack of a direction.
    Prototypes that start equal therefore stay equal: initialize them at random.

    Args:
        maps: ``"sigmoid"``: M are the sigmoid maps S and the norm is divided by √n, the root of the mean square over
            the pixels, so that the loss lies in [-1, 0] for any size of the feature map (our choice, as in the authors'
            released model). ``"logits"``: M are P Tᵀ before the sigmoid, with the plain norm as printed in the paper;
            unbounded below.

    Shape:
        attention (B, p, n), p maps of n pixels; labels and modality are not used. The loss is a scalar of at most 0, in
        at least float32.
    """

    def __init__(self, *, maps: Maps = "sigmoid") -> None:
        super().__init__()
        check_option("maps", maps, ("sigmoid", "logits"))
        self.maps = maps

    def forward(self, attention: Tensor, labels: Tensor | None = None, modality: Tensor | None = None) -> Tensor:
        """Compute the loss of a batch."""
        return part_diversity_loss(attention, labels, modality, **self._options())


def part_contrastive_loss(
    nodes: Tensor,
    labels: Tensor,
    modality: Tensor,
    *,
    mask: Tensor | None = None,
    epsilon: float = 2.0,
    normalize: bool = False,
    average: Average = "pairs",
) -> Tensor:
    """Compute the part contrastive loss of a batch; see `PartContrastiveLoss`."""
    check_graphs(nodes, labels, modality, mask)
    epsilon, normalize = check_positive("epsilon", epsilon), check_flag("normalize", normalize)
    check_option("average", average, ("pairs", "images"))
    with torch.autocast(nodes.device.type, enabled=False):
        rows = at_least_float32(nodes)
        rows = rows if mask is None else torch.where(mask[:, :, None], rows, 0)
        rows = normalize_rows(rows) if normalize else rows
        every = torch.arange(len(rows), device=rows.device)
        visible, infrared = every, every  # pairs of all images, masked, are four times the work, but no wait on a GPU
        if values_are_free(modality):
            visible, infrared = ((modality == kind).nonzero().flatten() for kind in (VISIBLE, INFRARED))
        x, y = (rearrange(rows[chosen], "b k d -> k b d") for chosen in (visible, infrared))
        distance = euclidean(x, y)  # (K + 1, visible, infrared)
        same = labels[visible][:, None] == labels[infrared]
        terms = torch.where(same, distance.square(), (epsilon - distance).clamp_min(0).square())
        pairs = (modality[visible] == VISIBLE)[:, None] & (modality[infrared] == INFRARED)
        present = pairs.expand_as(terms)
        if mask is not None:
            present = present & mask[visible].T[:, :, None] & mask[infrared].T[:, None]
        if average == "images":
            return torch.where(present, terms, 0).sum() / (2 * max(len(rows), 1) * len(terms))
        return masked_mean(terms.flatten(), present.flatten(), 0) / 2


class PartContrastiveLoss(Loss):
    """Part contrastive loss: pulls a part of one person together across modalities, pushes those of two apart (G2DA).

        L_c = 1/(2 N (K+1)) Σ_n Σ_k (1 - z_n) d²_nk + z_n max(ε - d_nk, 0)²,   d_nk = ‖v_nk^R - v_nk^I‖₂   (Eq. 5)

    z_n is 0 if the images of pair n share an identity, else 1; n runs over all N pairs of a visible and an infrared
    image. With P identities of equally many images, one pair in P attracts. A batch of one modality has no pair and the
    loss is 0.

    The gradient of d = 0 is 0.

    Args:
        epsilon: ε, the distance beyond which parts of two persons are not pushed apart, above 0. Two unrelated features
            of unit variance are about √(2d) apart, far beyond 2; two of length 1 are never more than 2 apart.
        normalize: L2-normalize each node first (our choice; off by default, as the paper does not mention it).
        average: the paper takes "every pair" of different modalities but divides by N_t, "the training batch size".
            ``"pairs"``: by N, the number of pairs (our choice), a mean. ``"images"``: by the number B of images, as
            printed; the loss then grows with the batch.

    Shape:
        nodes (B, K+1, d) features of the parts and of the whole image, labels (B,) integers, modality (B,) integers, 0
        visible, 1 infrared. mask (B, K+1) bool, True where a node is present: a part counts if both images of a
        pair have it, N (K+1) becomes the number of those, and the content of absent nodes is ignored (our choice);
        with ``average="images"`` it stays B (K+1). The loss is a scalar of at least 0, in at least float32.
    """

    _needs = "pair"

    def __init__(self, *, epsilon: float = 2.0, normalize: bool = False, average: Average = "pairs") -> None:
        super().__init__()
        self.epsilon, self.normalize = check_positive("epsilon", epsilon), check_flag("normalize", normalize)
        check_option("average", average, ("pairs", "images"))
        self.average = average

    def forward(self, nodes: Tensor, labels: Tensor, modality: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Compute the loss of a batch."""
        return self._compute(part_contrastive_loss, nodes, labels, modality, mask=mask)
