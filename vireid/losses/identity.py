"""Identity classification with mutual learning between the modalities' classifiers."""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vireid import VISIBLE
from vireid._checks import check_at_least_zero, check_count, check_fraction, check_labels, check_option, check_tensor
from vireid._ops import at_least_float32
from vireid.losses._common import Loss, check_rows

Means = Literal["modality", "batch"]


def mutual_identity_loss(
    x: Tensor,
    labels: Tensor,
    modality: Tensor,
    shared: Tensor,
    specific: Tensor,
    averaged: Tensor,
    *,
    means: Means = "modality",
    shared_weight: float = 1.0,
    specific_weight: float = 1.0,
    mutual_weight: float = 1.0,
) -> Tensor:
    """Compute the sum of `MutualIdentityLoss`'s terms for given classifiers, none of which is changed.

    ``shared`` (C, d), ``specific`` (2, C, d) and ``averaged`` (2, C, d) are W, W_m and Ā_m; Ā_m gets no gradient.
    """
    weights = _check_weights(means, shared_weight, specific_weight, mutual_weight)
    return _sum(_terms(x, labels, modality, (shared, specific, averaged), means, weights))


def _check_weights(means: str, shared: float, specific: float, mutual: float) -> tuple[float, float, float]:
    """Raise unless these are options of the loss; return the weights of its terms."""
    check_option("means", means, ("modality", "batch"))
    return (
        check_at_least_zero("shared_weight", shared),
        check_at_least_zero("specific_weight", specific),
        check_at_least_zero("mutual_weight", mutual),
    )


def _terms(
    x: Tensor,
    labels: Tensor,
    modality: Tensor,
    classifiers: tuple[Tensor, Tensor, Tensor],
    means: str,
    weights: tuple[float, float, float],
) -> dict[str, Tensor]:
    """Compute the weighted terms by name."""
    shared, specific, averaged = classifiers
    check_tensor("shared", shared, "C d")
    for name, classifier in (("specific", specific), ("averaged", averaged)):
        check_tensor(name, classifier, "2 C d", C=shared.shape[0], d=shared.shape[1])
    _check_batch(x, labels, modality, shared.shape)
    labels, visible = labels.long(), (modality == VISIBLE)[:, None]
    x = x.to(torch.promote_types(x.dtype, shared.dtype))  # half-precision features, autocast or not
    # All rows through both modalities' classifiers, then each row's choice. Rows sorted by modality would need fewer
    # products, but their number depends on the data: a GPU would wait for it.
    log_own = _choose(visible, F.linear(x, rearrange(specific, "m c d -> (m c) d")))
    with torch.no_grad():
        log_target = _choose(~visible, F.linear(x, rearrange(averaged, "m c d -> (m c) d")))
    rows = max(len(x), 1)
    # The images that a row's term is averaged over: all, or those of its modality. One without images adds nothing.
    averaged_over = rows if means == "batch" else torch.where(visible, visible.sum(), (~visible).sum())[:, 0]
    return {
        "id": weights[0] * _nll(at_least_float32(F.linear(x, shared)).log_softmax(1), labels).sum() / rows,
        "specific": weights[1] * (_nll(log_own, labels) / averaged_over).sum(),
        "mutual": weights[2] * F.kl_div(log_own, log_target, reduction="sum", log_target=True) / rows,
    }


def _nll(log_p: Tensor, labels: Tensor) -> Tensor:
    """Compute -log p (B,) of the labels. Unlike `torch.nn.functional.nll_loss` it ignores no label, such as -100."""
    return -log_p.gather(1, labels[:, None])[:, 0]


def _choose(first: Tensor, logits: Tensor) -> Tensor:
    """Compute log-probabilities (B, C) of the first half of ``logits`` (B, 2C) where ``first``, else of the second."""
    one, other = at_least_float32(logits).chunk(2, dim=1)
    return torch.where(first, one, other).log_softmax(1)


def _sum(terms: dict[str, Tensor]) -> Tensor:
    return terms["id"] + terms["specific"] + terms["mutual"]


def _check_batch(x: Tensor, labels: Tensor, modality: Tensor, sizes: torch.Size) -> None:
    check_tensor("x", x, "B d", d=sizes[1])
    check_rows(len(x), labels=labels, modality=modality)
    check_labels("labels", labels, sizes[0])


class MutualIdentityLoss(Loss):
    """Identity loss of SAAI: a shared classifier, one classifier per modality, and mutual learning between these two.

        L_id = λ₁ CE(W x) + λ₂ Σ_m CE(W_m x_m) + λ₃ KL( softmax(Ā_m' x) ‖ softmax(W_m x) )

    m is a row's own modality, m' the other one, and Ā the exponential moving averages of the modalities' classifiers.
    CE(W_m x_m) is the mean over the images of modality m, 0 without any; the two other terms are means over the batch.
    The target on the left of KL has no gradient, so each modality's classifier learns the other one's answer for the
    same features. The paper leaves this loss to a supplement: this is the sum of the authors' released model, whose
    weights are 1. KL is our choice: it has the gradient of their cross-entropy with a soft target, and is 0 where both
    agree.

    Every forward call in training mode, with gradients or without, first moves the averages,
    Ā ← (1 - rate) Ā + rate W, so that the targets know the last step of the optimizer. They start equal to the
    weights. Where gradients are accumulated over several calls, each call moves the averages, and a rate of
    1 - (1 - rate)^(1/calls) gives the same average per step. Evaluation mode leaves them as they are.

    The averages are a buffer: checkpoints hold it, and under `torch.nn.parallel.DistributedDataParallel` it is equal in
    all processes because the weights are. ``forward_sync_buffers=False`` saves sending it at every call. In a torch
    without that argument ``broadcast_buffers=False`` does, but then it is not sent at the start either: the processes
    must start from one seed or one checkpoint.

    In several processes its parameters belong in the model's `torch.nn.parallel.DistributedDataParallel`, in one module
    that calls both, as in `vireid.training.fit`. Outside, each process trains its own, and a warning says so.

    Args:
        dim: feature size d.
        num_classes: number C of training identities.
        rate: weight of the current classifiers in a step of the averages, in (0, 1].
        means: of the modalities' cross-entropies: one per ``"modality"``, so that their sum is twice a mean over a
            balanced batch, or one over the ``"batch"``.
        shared_weight: λ₁, at least 0.
        specific_weight: λ₂, at least 0.
        mutual_weight: λ₃, at least 0.

    Shape:
        x (B, d) features, labels (B,) integers in [0, C), modality (B,) integers, 0 visible, 1 infrared. The loss
        is a scalar of at least 0, in at least float32. In a batch of one modality the other one's classifier gets a
        zero gradient.

    Attributes:
        shared: (C, d) W, a parameter; no classifier has a bias.
        specific: (2, C, d) W_m, visible first, a parameter.
        averaged: (2, C, d) Ā_m, a buffer.
    """

    averaged: Tensor

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        rate: float = 0.2,
        means: Means = "modality",
        shared_weight: float = 1.0,
        specific_weight: float = 1.0,
        mutual_weight: float = 1.0,
    ) -> None:
        super().__init__()
        dim, num_classes = check_count("dim", dim), check_count("num_classes", num_classes)
        self.rate = check_fraction("rate", rate, zero=False)
        weights = _check_weights(means, shared_weight, specific_weight, mutual_weight)
        self.means, (self.shared_weight, self.specific_weight, self.mutual_weight) = means, weights
        self.shared = nn.Parameter(torch.empty(num_classes, dim).normal_(std=0.001))
        self.specific = nn.Parameter(torch.empty(2, num_classes, dim).normal_(std=0.001))
        self.register_buffer("averaged", self.specific.detach().clone())

    def forward(self, x: Tensor, labels: Tensor, modality: Tensor) -> Tensor:
        """Compute the loss of a batch, the sum of `terms`. In training mode this moves the averages."""
        return _sum(self.terms(x, labels, modality))

    def terms(self, x: Tensor, labels: Tensor, modality: Tensor) -> dict[str, Tensor]:
        """Compute the summands of `forward`, already weighted: ``"id"``, ``"specific"``, ``"mutual"``.

        It counts as a forward call: it moves the averages too.
        """
        _check_batch(x, labels, modality, self.shared.shape)
        self._look(labels, modality)
        if self.training:
            with torch.no_grad():  # in place: nothing that waits for its backward pass keeps the averages
                self.averaged.lerp_(self.specific, self.rate)
        classifiers = self.shared, self.specific, self.averaged
        weights = self.shared_weight, self.specific_weight, self.mutual_weight
        return _terms(x, labels, modality, classifiers, self.means, weights)

    def logits(self, x: Tensor) -> Tensor:
        """Compute the logits (B, C) of ``x`` (B, d) by the shared classifier."""
        check_tensor("x", x, "B d", d=self.shared.shape[1])
        return F.linear(x, self.shared)

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        num_classes, dim = self.shared.shape
        return f"{dim}, {num_classes}, {super().extra_repr()}"
