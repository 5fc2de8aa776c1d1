"""Losses between images and the centers of identities, in any batch order and for any number of images per identity."""

from typing import Literal

import torch
from torch import Tensor

from vireid._checks import check_at_least_zero, check_flag, check_option, check_positive, check_tensor
from vireid._ops import at_least_float32, euclidean, masked_mean, normalize_rows, norms
from vireid.losses._common import Groups, Loss, check_rows, membership

Distance = Literal["euclidean", "kl"]
Centers = Literal["shared", "cross"]
Negatives = Literal["mean", "sum"]
Direction = Literal["to_center", "from_center"]
KLCenter = Literal["probabilities", "logits"]

_PAPER_MARGIN = {"euclidean": 0.6, "kl": 6.0}


def hcc_loss(
    x: Tensor,
    labels: Tensor,
    modality: Tensor | None = None,
    *,
    margin: float | None = None,
    distance: Distance = "euclidean",
    centers: Centers = "shared",
    negatives: Negatives = "mean",
    normalize: bool = True,
    kl_direction: Direction = "to_center",
    kl_center: KLCenter = "probabilities",
) -> Tensor:
    """Compute the heterogeneous center contrastive loss of a batch; see `HCCLoss`."""
    check_tensor("x", x, "B d")
    check_rows(len(x), optional=["modality"], labels=labels, modality=modality)
    margin = _check_hcc(margin, distance, centers, negatives, normalize, kl_direction, kl_center)
    if modality is None and centers == "cross":
        raise ValueError("modality must be given for centers='cross', got None")
    kind = modality if centers == "cross" else None
    with torch.autocast(x.device.type, enabled=False):
        rows = at_least_float32(x)
        groups = membership(labels, *([] if kind is None else [kind]), dtype=rows.dtype)
        if distance == "euclidean":
            pairs = _to_means(rows, groups, normalize)
        else:
            pairs = _divergences(rows, groups, kl_direction, kl_center)
        same = labels[:, None] == labels[groups.first]
        allowed = groups.real if kind is None else groups.real & (kind[:, None] != kind[groups.first])
        positive, negative = same & allowed, ~same & allowed
        hinge = (margin - pairs).clamp_min(0)
        pushes = masked_mean(hinge, negative, 1) if negatives == "mean" else torch.where(negative, hinge, 0).sum(1)
        return masked_mean(masked_mean(pairs, positive, 1) + pushes, positive.any(1), 0)


def _to_means(x: Tensor, groups: Groups, normalize: bool) -> Tensor:
    """Compute ‖I - C‖ (B, M) between the rows and the means of the groups."""
    rows = normalize_rows(x) if normalize else x
    return euclidean(rows, groups.means(rows))


def _divergences(logits: Tensor, groups: Groups, direction: str, center: str) -> Tensor:
    """Compute KL(softmax(I) ‖ C) or KL(C ‖ softmax(I)) (B, M)."""
    log_p = logits.log_softmax(1)
    log_c = groups.means(logits).log_softmax(1) if center == "logits" else _log_of_means(log_p, groups)
    if direction == "to_center":
        p = log_p.exp()
        return (p * log_p).sum(1, keepdim=True) - p @ log_c.T
    c = log_c.exp()
    return (c * log_c).sum(1) - log_p @ c.T


def _log_of_means(log_p: Tensor, groups: Groups) -> Tensor:
    """Compute the logarithms (M, C) of the mean probabilities of each group."""
    # In the log domain, from each group's largest probability of a class on: where a probability underflows, its
    # logarithm does not.
    own = groups.own[:, None].expand_as(log_p)
    largest = torch.full_like(log_p, -torch.inf).scatter_reduce(0, own, log_p.detach(), "amax")
    return groups.means((log_p - largest[groups.own]).exp()).log() + largest[groups.own[groups.first]]


def _check_hcc(
    margin: float | None,
    distance: str,
    centers: str,
    negatives: str,
    normalize: bool,
    kl_direction: str,
    kl_center: str,
) -> float:
    """Raise unless these are options of the loss; return the margin, by default the paper's."""
    check_flag("normalize", normalize)
    check_option("distance", distance, ("euclidean", "kl"))
    check_option("centers", centers, ("shared", "cross"))
    check_option("negatives", negatives, ("mean", "sum"))
    check_option("kl_direction", kl_direction, ("to_center", "from_center"))
    check_option("kl_center", kl_center, ("probabilities", "logits"))
    return check_positive("margin", _PAPER_MARGIN[distance] if margin is None else margin)


class HCCLoss(Loss):
    """Heterogeneous center contrastive loss (CIFT, Eq. 13; supplement Eq. 6).

        L = mean_i { D(I_i, C_pos(i)) + agg_k max(ρ - D(I_i, C_k), 0) },   k over the other identities' centers

    The negative term is 0 if the batch has one identity only. With ``centers="cross"``, images whose identity is seen
    in one modality only have no positive center and drop out of the mean; with none left the loss is 0.

    Args:
        margin: ρ, above 0. Default: the paper's values, 0.6 for ``"euclidean"`` and 6 for ``"kl"``.
        distance: ``"euclidean"``: ‖I - C‖ between rows and their means. ``"kl"``: I are logits, D(I, C) =
            KL(softmax(I) ‖ C), and C is the mean of softmax outputs; see ``kl_direction`` and ``kl_center``.
        centers: ``"shared"``: an identity's mean over both modalities (our choice). ``"cross"``: its mean over the
            images of the modality that i does not have.
        negatives: agg, ``"mean"`` as in the paper's appendix (our choice) or ``"sum"`` as in its supplement.
        normalize: L2-normalize the rows before the Euclidean distance (our choice). Has no effect on ``"kl"``.
        kl_direction: ``"to_center"``: KL(softmax(I) ‖ C) (our choice; the paper names the divergence only).
            ``"from_center"``: KL(C ‖ softmax(I)).
        kl_center: C is the mean of the ``"probabilities"`` (our choice), or the softmax of the mean ``"logits"``.

    Shape:
        x (B, d) features or logits, labels (B,) integers, modality (B,) integers, needed by ``centers="cross"`` only.
        The loss is a scalar of at least 0, in at least float32.
    """

    def __init__(
        self,
        *,
        margin: float | None = None,
        distance: Distance = "euclidean",
        centers: Centers = "shared",
        negatives: Negatives = "mean",
        normalize: bool = True,
        kl_direction: Direction = "to_center",
        kl_center: KLCenter = "probabilities",
    ) -> None:
        super().__init__()
        self.margin = _check_hcc(margin, distance, centers, negatives, normalize, kl_direction, kl_center)
        self.distance, self.centers, self.negatives, self.normalize = distance, centers, negatives, normalize
        self.kl_direction, self.kl_center = kl_direction, kl_center
        self._needs = "positive" if centers == "cross" else ""

    def forward(self, x: Tensor, labels: Tensor, modality: Tensor | None = None) -> Tensor:
        """Compute the loss of a batch."""
        if modality is None:
            return hcc_loss(x, labels, **self._options())
        return self._compute(hcc_loss, x, labels, modality)


def center_separation_loss(
    x: Tensor,
    labels: Tensor,
    modality: Tensor | None = None,
    *,
    rho1: float = 0.01,
    rho2: float = 0.7,
    normalize: bool = False,
) -> Tensor:
    """Compute the center separation loss of a batch; see `CenterSeparationLoss`."""
    check_tensor("x", x, "B d")
    check_rows(len(x), optional=["modality"], labels=labels, modality=modality)
    check_flag("normalize", normalize)
    rho1, rho2 = check_at_least_zero("rho1", rho1), check_at_least_zero("rho2", rho2)
    with torch.autocast(x.device.type, enabled=False):
        rows = at_least_float32(x)
        rows = normalize_rows(rows) if normalize else rows
        groups = membership(labels, dtype=rows.dtype)
        centers = groups.means(rows)
        # c_{y_i} by a product with zeros and ones: the gradient of an index adds in no fixed order.
        own = torch.where(groups.real[:, None], groups.member, 0).T @ centers
        pull = (norms(rows - own) - rho1).clamp_min(0).sum() / max(len(rows), 1)
        pairs = (groups.real[:, None] & groups.real).triu(1)
        push = (rho2 - euclidean(centers, centers)).clamp_min(0)
        return pull + masked_mean(push.flatten(), pairs.flatten(), 0)


class CenterSeparationLoss(Loss):
    """Center separation loss: pulls images to their identity's center and pushes centers apart (SAAI, Eq. 5).

        L_cs = 1/N Σ_i [‖F_i - c_{y_i}‖ - ρ1]₊ + 2/(M(M-1)) Σ_{j<k} [ρ2 - ‖c_j - c_k‖]₊

    c is the mean of an identity's images in the batch, over both modalities, and carries gradients; M is the number of
    identities in the batch. The second term is 0 for one identity, the first for one image per identity. The gradient
    of a distance of 0 is 0: two identities whose centers coincide are not pushed apart.

    Both margins are distances between the given features; the paper's F̂ are those that enter the BNNeck. Two unrelated
    features of unit variance are about √(2d) apart, far beyond ρ2 = 0.7: there only the first term acts.

    Args:
        rho1: ρ1, the radius around the center within which an image is not pulled, at least 0.
        rho2: ρ2, the distance beyond which centers are not pushed, at least 0.
        normalize: L2-normalize the rows first (our choice; off by default, as the paper does not mention it).

    Shape:
        x (B, d) features, labels (B,) integers; modality is not used. The loss is a scalar of at least 0, in at least
        float32.
    """

    def __init__(self, *, rho1: float = 0.01, rho2: float = 0.7, normalize: bool = False) -> None:
        super().__init__()
        self.rho1, self.rho2 = check_at_least_zero("rho1", rho1), check_at_least_zero("rho2", rho2)
        self.normalize = check_flag("normalize", normalize)

    def forward(self, x: Tensor, labels: Tensor, modality: Tensor | None = None) -> Tensor:
        """Compute the loss of a batch."""
        return center_separation_loss(x, labels, modality, **self._options())
