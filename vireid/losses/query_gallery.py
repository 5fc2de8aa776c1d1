"""Losses of a graph's classifier, whose logits Y_g have a row per query and one or more per gallery image (CIFT).

Both count alike (our choice): an image enters once as query and once as gallery image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vireid._checks import check_fraction, check_labels, check_tensor
from vireid._ops import at_least_float32
from vireid.losses._common import check_rows
from vireid.losses.centers import Centers, Direction, KLCenter, Negatives, hcc_loss


def query_gallery_cross_entropy(
    query: Tensor,
    labels: Tensor,
    modality: Tensor | None = None,
    *,
    gallery: Tensor,
    gallery_index: Tensor,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Compute the cross-entropy of the query rows and that of the gallery rows, each half of the mean.

    The paper does not say how the two are weighed. Our choice is the mean over the 2B rows of H2FT; halves keep that
    weight where GFT's unbalanced groups hold many more gallery rows than queries.

    Args:
        query: (B, C) logits of f_q.
        labels: (B,) integers in [0, C).
        modality: not used.
        gallery: (R, C) logits of F_G. A batch of one modality has none with unbalanced groups: then only queries count.
        gallery_index: (R,) image that each gallery row belongs to.
        label_smoothing: share of the target that is spread over all classes, in [0, 1]; 0 in the paper.
    """
    _check(query, labels, modality, gallery, gallery_index)
    smoothing, labels = check_fraction("label_smoothing", label_smoothing), labels.long()
    loss = F.cross_entropy(at_least_float32(query), labels, label_smoothing=smoothing)
    if not len(gallery):
        return loss
    owners = labels[gallery_index.long()]
    return (loss + F.cross_entropy(at_least_float32(gallery), owners, label_smoothing=smoothing)) / 2


def query_gallery_hcc_loss(
    query: Tensor,
    labels: Tensor,
    modality: Tensor | None = None,
    *,
    gallery: Tensor,
    gallery_index: Tensor,
    margin: float | None = None,
    centers: Centers = "shared",
    negatives: Negatives = "mean",
    kl_direction: Direction = "to_center",
    kl_center: KLCenter = "probabilities",
) -> Tensor:
    """Compute `hcc_loss` with ``distance="kl"`` over the query rows and one gallery row per image.

    Where GFT's unbalanced groups give a gallery image several rows, their mean logits count; where they give it none,
    in a batch of one modality, its query row does (our choice). Arguments and errors are those of
    `query_gallery_cross_entropy`, the others those of `HCCLoss`; ``margin`` is ρ, the paper's 6 by default, and
    ``modality`` is needed by ``centers="cross"`` only.
    """
    _check(query, labels, modality, gallery, gallery_index)
    with torch.autocast(query.device.type, enabled=False):
        query, gallery = at_least_float32(query), at_least_float32(gallery)
        member = (torch.arange(len(query), device=query.device)[:, None] == gallery_index).to(gallery.dtype)
        rows = member.sum(1, keepdim=True)
        means = torch.where(rows > 0, member @ gallery / rows.clamp_min(1), query)
        return hcc_loss(
            torch.cat([query, means]),
            labels.repeat(2),
            modality if modality is None else modality.repeat(2),
            margin=margin,
            distance="kl",
            centers=centers,
            negatives=negatives,
            kl_direction=kl_direction,
            kl_center=kl_center,
        )


def _check(query: Tensor, labels: Tensor, modality: Tensor | None, gallery: Tensor, gallery_index: Tensor) -> None:
    check_tensor("query", query, "B C")
    check_rows(len(query), optional=["modality"], labels=labels, modality=modality)
    check_labels("labels", labels, query.shape[1])
    check_tensor("gallery", gallery, "R C", C=query.shape[1])
    check_rows(len(gallery), gallery_index=gallery_index)
    check_labels("gallery_index", gallery_index, len(query))
