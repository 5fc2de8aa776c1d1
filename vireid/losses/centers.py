"""Losses between images and the centres of identities. Any batch order, any number of images of each identity."""

from typing import Literal

import torch
from torch import Tensor, nn

from vireid._checks import check_at_least_zero, check_integers, check_matrix, check_option, check_positive
from vireid._ops import at_least_float32, masked_mean, normalize_rows

__all__ = ["CenterSeparationLoss", "HCCLoss", "center_separation_loss", "hcc_loss"]

PAPER_MARGIN = {"euclidean": 0.6, "kl": 6.0}


def hcc_loss(
    x: Tensor,
    labels: Tensor,
    modality: Tensor | None = None,
    *,
    margin: float | None = None,
    distance: Literal["euclidean", "kl"] = "euclidean",
    centers: Literal["shared", "cross"] = "shared",
    negatives: Literal["mean", "sum"] = "mean",
    normalize: bool = True,
) -> Tensor:
    """Heterogeneous centre contrastive loss as a function; see `HCCLoss`."""
    check_matrix("x", x)
    check_integers("labels", labels, len(x))
    check_option("distance", distance, ("euclidean", "kl"))
    check_option("centers", centers, ("shared", "cross"))
    check_option("negatives", negatives, ("mean", "sum"))
    if modality is not None:
        check_integers("modality", modality, len(x))
    elif centers == "cross":
        raise ValueError("modality must be given for centers='cross', got None")
    margin = PAPER_MARGIN[distance] if margin is None else margin
    check_positive("margin", margin)
    with torch.autocast(x.device.type, enabled=False):
        return _hcc(at_least_float32(x), labels, modality, margin, distance, centers, negatives, normalize)


def _hcc(
    x: Tensor,
    labels: Tensor,
    modality: Tensor | None,
    margin: float,
    distance: str,
    centers: str,
    negatives: str,
    normalize: bool,
) -> Tensor:
    # A centre for each group of rows: an identity, or an identity in one modality.
    keys = labels[:, None] if centers == "shared" or modality is None else torch.stack([labels, modality], 1)
    groups, member = _groups(keys, x.dtype)
    if distance == "euclidean":
        rows = normalize_rows(x) if normalize else x
        mean = _means(member, rows)
        # Not by the matrix product: near 0 its cancellation is larger than the distance.
        pairs = torch.cdist(rows, mean, compute_mode="donot_use_mm_for_euclid_dist")
    else:
        log_p = x.log_softmax(1)
        # log of the mean probability, in the log domain: where a probability underflows, its logarithm does not.
        log_mean = (log_p + member.log()[..., None]).logsumexp(1) - member.sum(1, keepdim=True).log()  # (M, C)
        p = log_p.exp()
        pairs = (p * log_p).sum(1, keepdim=True) - p @ log_mean.T

    same = labels[:, None] == groups[:, 0]
    allowed = torch.ones_like(same)
    if centers == "cross" and modality is not None:
        allowed = modality[:, None] != groups[:, 1]
    positive, negative = same & allowed, ~same & allowed
    hinge = (margin - pairs).clamp_min(0)
    aggregated = masked_mean(hinge, negative, 1) if negatives == "mean" else torch.where(negative, hinge, 0).sum(1)
    rows_loss = masked_mean(pairs, positive, 1) + aggregated
    return masked_mean(rows_loss, positive.any(1), 0)


class HCCLoss(nn.Module):
    """Heterogeneous centre contrastive loss (CIFT, Eq. 13; supplement Eq. 6).

        L = mean_i { D(I_i, C_pos(i)) + agg_k max(ρ - D(I_i, C_k), 0) },   k over the other identities' centres

    An identity alone in the batch has no negative centre: that term is 0. With ``centers="cross"`` an identity seen in
    one modality has no positive centre: its images drop out of the mean; with none left the loss is 0.

    Args:
        margin: ρ, above 0. Default: the paper's values, 0.6 for ``"euclidean"`` and 6 for ``"kl"``.
        distance: ``"euclidean"``: ‖I - C‖ between rows and their means. ``"kl"``: I are logits, D(I, C) =
            KL(softmax(I) ‖ C), and C is the mean of softmax outputs.
        centers: ``"shared"``: an identity's mean over both modalities (ours). ``"cross"``: its mean over the images of
            the modality that i is not.
        negatives: agg. ``"mean"`` as in the paper's appendix (ours) or ``"sum"`` as in its supplement.
        normalize: L2-normalise the rows before the Euclidean distance (ours: True). Has no effect on ``"kl"``.

    Shape:
        x (B, d) features or logits, labels (B,) integers, modality (B,) integers, needed by ``centers="cross"`` alone;
        the loss is a scalar, at least 0, in at least float32.

    Raises:
        ValueError: if a shape or an option is wrong, or ``modality`` is missing.
        TypeError: if ``x`` is not floating point or ``labels`` hold no integers.
    """

    def __init__(
        self,
        *,
        margin: float | None = None,
        distance: Literal["euclidean", "kl"] = "euclidean",
        centers: Literal["shared", "cross"] = "shared",
        negatives: Literal["mean", "sum"] = "mean",
        normalize: bool = True,
    ) -> None:
        super().__init__()
        check_option("distance", distance, ("euclidean", "kl"))
        check_option("centers", centers, ("shared", "cross"))
        check_option("negatives", negatives, ("mean", "sum"))
        self.margin = PAPER_MARGIN[distance] if margin is None else margin
        check_positive("margin", self.margin)
        self.distance, self.centers = distance, centers
        self.negatives, self.normalize = negatives, normalize

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return (
            f"margin={self.margin}, distance={self.distance!r}, centers={self.centers!r}, "
            f"negatives={self.negatives!r}, normalize={self.normalize}"
        )

    def forward(self, x: Tensor, labels: Tensor, modality: Tensor | None = None) -> Tensor:
        """The loss of a batch."""
        return hcc_loss(
            x,
            labels,
            modality,
            margin=self.margin,
            distance=self.distance,
            centers=self.centers,
            negatives=self.negatives,
            normalize=self.normalize,
        )


def center_separation_loss(
    x: Tensor, labels: Tensor, *, rho1: float = 0.01, rho2: float = 0.7, normalize: bool = False
) -> Tensor:
    """Center separation loss as a function; see `CenterSeparationLoss`."""
    check_matrix("x", x)
    check_integers("labels", labels, len(x))
    check_at_least_zero("rho1", rho1)
    check_at_least_zero("rho2", rho2)
    with torch.autocast(x.device.type, enabled=False):
        rows = at_least_float32(x)
        rows = normalize_rows(rows) if normalize else rows
        identities, member = _groups(labels[:, None], rows.dtype)
        centers = _means(member, rows)
        # Each row's own centre by a product with zeros and ones: the gradient of an index adds in no fixed order.
        to_own = torch.linalg.vector_norm(rows - member.T @ centers, dim=1)  # its gradient at 0 is 0, as cdist's is
        pull = (to_own - rho1).clamp_min(0).sum() / max(len(rows), 1)
        # Not by the matrix product, as in `_hcc`.
        pairs = torch.cdist(centers, centers, compute_mode="donot_use_mm_for_euclid_dist")
        count = len(identities) * (len(identities) - 1) // 2
        push = (rho2 - pairs).clamp_min(0).triu(1).sum() / max(count, 1)
        return pull + push


class CenterSeparationLoss(nn.Module):
    """Pulls images to their identity's centre and pushes the centres apart (SAAI, Eq. 5).

        L_cs = 1/N Σ_i [‖F_i - c_{y_i}‖ - ρ1]₊ + 2/(M(M-1)) Σ_{j<k} [ρ2 - ‖c_j - c_k‖]₊

    c is the mean of an identity's images in the batch, of both modalities, and carries gradients; M is the number of
    identities in the batch. With one identity the second term is 0, with one image an identity the first is. Where a
    distance is 0 its gradient is 0: two identities whose centres coincide are not pushed apart.

    Both margins are distances between features as they come in; the paper's F̂ are those that enter the BNNeck. Two
    unrelated features of unit variance are about √(2d) apart, far beyond ρ2 = 0.7: there only the first term acts.

    Args:
        rho1: ρ1, the radius around the centre within which an image is not pulled, at least 0.
        rho2: ρ2, the distance beyond which centres are not pushed, at least 0.
        normalize: L2-normalise the rows first (ours; off by default, as the paper does not say that it does).

    Shape:
        x (B, d) features, labels (B,) integers; the loss is a scalar, at least 0, in at least float32.

    Raises:
        ValueError: if a shape or a margin is wrong.
        TypeError: if ``x`` is not floating point, ``labels`` hold no integers, or a margin is not a number.
    """

    def __init__(self, *, rho1: float = 0.01, rho2: float = 0.7, normalize: bool = False) -> None:
        super().__init__()
        check_at_least_zero("rho1", rho1)
        check_at_least_zero("rho2", rho2)
        self.rho1, self.rho2, self.normalize = rho1, rho2, normalize

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return f"rho1={self.rho1}, rho2={self.rho2}, normalize={self.normalize}"

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch."""
        return center_separation_loss(x, labels, rho1=self.rho1, rho2=self.rho2, normalize=self.normalize)


def _groups(keys: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The distinct rows (M, k) of ``keys`` (B, k), and (M, B) with 1 where a row of the batch is of that group, else 0.

    No group is empty.
    """
    groups, index = keys.unique(dim=0, return_inverse=True)
    return groups, (torch.arange(len(groups), device=keys.device)[:, None] == index).to(dtype)


def _means(member: Tensor, rows: Tensor) -> Tensor:
    """Mean of the rows (B, d) of each group of ``member`` (M, B)."""
    return member @ rows / member.sum(1, keepdim=True)
