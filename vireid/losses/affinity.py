"""Training with the affinities that SAAI's AIM ranks by (our choice; the paper uses them at test time only)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vireid._checks import check_count, check_flag, check_option, check_positive, check_tensor
from vireid._ops import at_least_float32, masked_mean, normalize_rows, rounding
from vireid.losses._common import Loss, check_rows

Variant = Literal["paper", "released"]


def affinity_inference_scores(
    x: Tensor, modality: Tensor, *, k1: int = 8, k2: int = 1, variant: Variant = "paper", amend: bool = True
) -> Tensor:
    """Compute AIM's scores A_qg + d* within a batch, each image in turn the query, with gradients (SAAI, Eq. 6-10).

    Row i is 1 - `vireid.rerank.aim` of image i as the only query, with all images of the other modality as its gallery;
    the other images of its own modality do not matter. As no gallery depends on its query, the groups of a whole batch
    are two masked (B, B) affinities. Entries and neighbors are selected without gradient; the entries kept carry it.

    Args:
        x: (B, d) features, any order.
        modality: (B,) integers, 0 visible, 1 infrared.
        k1: entries kept per row, ties by lowest index; more than the gallery means all of it.
        k2: gallery images averaged over, the image itself first; more than the gallery means all of it.
        variant: "paper": d* = Â_qg Ã_gg. "released", as in the authors' code: the rows of both are scaled to length 1
            first, and the product is with the transpose. Rows of rounding only count as zero rows (our choice).
        amend: False leaves d* out, an ablation: the scores are the cosines A_qg; k1, k2 and variant have no effect.

    Returns:
        (B, B) in at least float32, larger = nearer; -inf between images of one modality, which are not in the gallery.

    Raises:
        ValueError: if a shape or an option is wrong.
        TypeError: if ``x`` is not floating point, or ``modality``, k1 or k2 is not integer.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> affinity_inference_scores(x, torch.tensor([0, 1, 1, 1]), k1=2)[0]  # A + 1.0 Ã_1 + 0.6 Ã_2
        tensor([  -inf, 2.0000, 1.8000, 0.4800])
    """
    scores, gallery = _scores(x, modality, k1, k2, variant, amend)
    return scores.masked_fill(~gallery, -torch.inf)


def affinity_inference_loss(
    x: Tensor,
    labels: Tensor,
    modality: Tensor,
    *,
    k1: int = 8,
    k2: int = 1,
    variant: Variant = "paper",
    temperature: float = 0.3,
    amend: bool = True,
) -> Tensor:
    """Compute the contrastive loss on AIM's scores within a batch; see `AffinityInferenceLoss`."""
    temperature = check_positive("temperature", temperature)
    scores, gallery = _scores(x, modality, k1, k2, variant, amend)
    check_rows(len(x), labels=labels)
    same = labels[:, None] == labels
    positive, negative = gallery & same, gallery & ~same
    scores = scores / temperature
    # The lowest finite number, not -inf: the gradient of logsumexp would be NaN in a row without a negative.
    against = scores.masked_fill(~negative, torch.finfo(scores.dtype).min).logsumexp(1, keepdim=True)
    terms = masked_mean(F.softplus(against - scores), positive, 1)  # -log(e^s / (e^s + Σ e^negative))
    return masked_mean(terms, positive.any(1) & negative.any(1), 0)


def _check_options(k1: int, k2: int, variant: str, amend: bool) -> tuple[int, int]:
    check_flag("amend", amend)
    check_option("variant", variant, ("paper", "released"))
    return check_count("k1", k1), check_count("k2", k2)


def _scores(x: Tensor, modality: Tensor, k1: int, k2: int, variant: str, amend: bool) -> tuple[Tensor, Tensor]:
    """Compute the scores (B, B) and the mask of each row's gallery; scores outside of it are meaningless."""
    check_tensor("x", x, "B d")
    check_rows(len(x), modality=modality)
    k1, k2 = _check_options(k1, k2, variant, amend)
    gallery = modality[:, None] != modality
    with torch.autocast(x.device.type, enabled=False):
        rows = normalize_rows(at_least_float32(x))
        cosine = rows @ rows.T
        if not amend:
            return cosine, gallery
        itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
        het = _nearest(cosine, gallery)
        hom = _nearest(cosine.masked_fill(itself, torch.inf), ~gallery)
        kept = torch.where(_first(het, k1, gallery), cosine, 0)  # Â_qg
        within = torch.where(_first(hom, k1, ~gallery), cosine, 0)  # Â_gg, of both galleries
        near = _first(hom, k2, ~gallery).to(cosine.dtype)
        expanded = near @ within / near.sum(1, keepdim=True)  # Ã_gg
        if variant == "paper":
            return cosine + kept @ expanded, gallery
        noise = rounding(x.shape[1], cosine.dtype)
        return cosine + _unit(kept, noise) @ _unit(expanded, noise).T, gallery


def _unit(rows: Tensor, noise: float) -> Tensor:
    """Scale ``rows`` to length 1; one without an entry above ``noise``, the rounding of a cosine, becomes 0."""
    return normalize_rows(rows.masked_fill((rows.abs() <= noise).all(1, keepdim=True), 0))


def _nearest(cosine: Tensor, allowed: Tensor) -> Tensor:
    """Sort the columns of each row by descending cosine, ties by index; those not allowed come last."""
    return cosine.detach().masked_fill(~allowed, -torch.inf).sort(dim=1, descending=True, stable=True).indices


def _first(columns: Tensor, k: int, allowed: Tensor) -> Tensor:
    """Mark the first k ``columns`` per row (B, B), or as many as are allowed."""
    return torch.zeros_like(allowed).scatter(1, columns[:, :k], True) & allowed


class AffinityInferenceLoss(Loss):
    """Contrastive loss on the scores that AIM ranks by at test time (our choice; "future work" in SAAI, Sec. 5).

        L = mean_i mean_{p ∈ P_i} -log( e^{s_ip/τ} / (e^{s_ip/τ} + Σ_{n ∈ N_i} e^{s_in/τ}) ),   s = A_qg + d*

    Each image i is the only query of a gallery that holds all images of the other modality, as at test time (the 1 : N
    groups of CIFT, Sec. 4.2); P_i and N_i are its gallery's images of the same and of other identities. The scores s
    are those of `affinity_inference_scores`. Each positive competes with the negatives only, as the order among
    positives does not change an average precision. A query without a positive or without a negative drops out of the
    mean; with none left the loss is 0.

    Args:
        k1: entries kept per row of the affinities, as in `vireid.rerank.aim`; ties by lowest index, and more than the
            gallery means all of it. Take about twice the batch's images per identity and modality, so that the
            affinities hold negatives too.
        k2: gallery images averaged over, the image itself included.
        variant: d* as in the "paper" or as in the "released" code.
        temperature: τ, above 0. The scores reach 1 + k1 ("paper") or 2 ("released"), cosines 1: the best τ differs.
        amend: False leaves d* out, the ablation: the same loss on the cosines A_qg. A fair comparison has a smaller τ
            there, such as 0.1.

    Shape:
        x (B, d) features, labels (B,) integers, modality (B,) integers, 0 visible, 1 infrared. The loss is a scalar of
        at least 0, in at least float32.
    """

    _needs = "triplet"

    def __init__(
        self,
        *,
        k1: int = 8,
        k2: int = 1,
        variant: Variant = "paper",
        temperature: float = 0.3,
        amend: bool = True,
    ) -> None:
        super().__init__()
        self.k1, self.k2 = _check_options(k1, k2, variant, amend)
        self.temperature = check_positive("temperature", temperature)
        self.variant, self.amend = variant, amend

    def forward(self, x: Tensor, labels: Tensor, modality: Tensor) -> Tensor:
        """Compute the loss of a batch."""
        return self._compute(affinity_inference_loss, x, labels, modality)
