"""Identity classification with mutual learning between the modalities' classifiers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vireid import VISIBLE
from vireid._checks import check_at_least_zero, check_count, check_integers, check_matrix, check_number
from vireid._ops import at_least_float32

__all__ = ["MutualIdentityLoss", "mutual_identity_loss"]


def mutual_identity_loss(
    x: Tensor,
    labels: Tensor,
    modality: Tensor,
    shared: Tensor,
    specific: Tensor,
    averaged: Tensor,
    *,
    specific_weight: float = 1.0,
    mutual_weight: float = 1.0,
) -> Tensor:
    """Sum of `MutualIdentityLoss`'s three terms as a function of the classifiers; it changes none of them.

    Args:
        x: (B, d) features.
        labels: (B,) integers in [0, C).
        modality: (B,) integers, 0 visible, 1 infrared.
        shared: (C, d) weight of the classifier of both modalities.
        specific: (2, C, d) weights of the visible and of the infrared classifier.
        averaged: (2, C, d) moving averages of ``specific``; they get no gradient.
        specific_weight: weight of the modalities' own cross-entropy, at least 0.
        mutual_weight: weight of mutual learning, at least 0.

    Returns:
        Scalar, at least 0, in at least float32.

    Raises:
        ValueError: if a shape or a weight is wrong.
        TypeError: if a tensor has the wrong type or a weight is not a number.
    """
    check_at_least_zero("specific_weight", specific_weight)
    check_at_least_zero("mutual_weight", mutual_weight)
    check_matrix("shared", shared)
    for name, weights in (("specific", specific), ("averaged", averaged)):
        if not isinstance(weights, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(weights).__name__}")
        if weights.shape != (2, *shared.shape):
            expected = f"{(2, *shared.shape)}, two of shared's shape"
            raise ValueError(f"{name} must have shape {expected}, got {tuple(weights.shape)}")
    _check_batch(x, labels, modality, shared.shape[1])
    return _sum(_terms(x, labels, modality, shared, specific, averaged, specific_weight, mutual_weight))


def _terms(
    x: Tensor,
    labels: Tensor,
    modality: Tensor,
    shared: Tensor,
    specific: Tensor,
    averaged: Tensor,
    specific_weight: float,
    mutual_weight: float,
) -> dict[str, Tensor]:
    labels, visible = labels.long(), (modality == VISIBLE)[:, None]
    x = x.to(torch.promote_types(x.dtype, shared.dtype))  # half-precision features, autocast or not
    # All rows through both modalities' classifiers, then each row's choice. Rows sorted by modality would need fewer
    # products, but their number depends on the data: a GPU would wait for it. On a CPU they save about a tenth.
    log_own = _choose(visible, F.linear(x, specific.flatten(0, 1)))
    with torch.no_grad():
        log_target = _choose(~visible, F.linear(x, averaged.flatten(0, 1)))
    rows = max(len(x), 1)
    return {
        "id": _nll(at_least_float32(F.linear(x, shared)).log_softmax(1), labels) / rows,
        "specific": specific_weight * _nll(log_own, labels) / rows,
        "mutual": mutual_weight * F.kl_div(log_own, log_target, reduction="sum", log_target=True) / rows,
    }


def _nll(log_p: Tensor, labels: Tensor) -> Tensor:
    """Sum of -log p of the labels. Unlike `torch.nn.functional.nll_loss` it leaves no label out, such as -100."""
    return -log_p.gather(1, labels[:, None]).sum()


def _choose(first: Tensor, logits: Tensor) -> Tensor:
    """Log-probabilities (B, C) of the first C of ``logits`` (B, 2C) where ``first`` (B, 1), else of the last C."""
    one, other = at_least_float32(logits).chunk(2, dim=1)
    return torch.where(first, one, other).log_softmax(1)


def _sum(terms: dict[str, Tensor]) -> Tensor:
    return terms["id"] + terms["specific"] + terms["mutual"]


def _check_batch(x: Tensor, labels: Tensor, modality: Tensor, dim: int) -> None:
    check_matrix("x", x, columns=dim)
    check_integers("labels", labels, len(x))
    check_integers("modality", modality, len(x))


class MutualIdentityLoss(nn.Module):
    """Identity loss of SAAI: a shared classifier, one classifier a modality, and mutual learning between these two.

        L_id = CE(W x) + w_s CE(W_m x) + w_m KL( softmax(Ā_m' x) ‖ softmax(W_m x) ),   means over the batch

    m is a row's own modality, m' the other one, and Ā the exponential moving averages of the modalities' classifiers.
    The target on the left of KL has no gradient, so each modality's classifier learns what the other one says about the
    same features. The paper leaves this loss to a supplement; what is ours: KL, which has the gradient of the
    cross-entropy with a soft target and is 0 where both agree; the weights of 1; and means over the whole batch, not
    over each modality, so that the mean over processes with batches of one size is that of the joined batch.

    Every forward call in training mode, with gradients or without, first moves the averages,
    Ā ← (1 - rate) Ā + rate W: so the targets already know what the last step of the optimiser changed. They start as
    equals of the weights. Where gradients are accumulated over several calls, each call moves the averages, and a rate
    of 1 - (1 - rate)^(1/calls) gives the same average a step. Evaluation mode leaves them as they are.

    The averages are a buffer: checkpoints hold it, and under `torch.nn.parallel.DistributedDataParallel` it is equal in
    all processes because the weights are. ``forward_sync_buffers=False`` saves sending it at every call. In a torch
    without that argument ``broadcast_buffers=False`` does, but then it is not sent at the start either: the processes
    must start from one seed or one checkpoint.

    Args:
        dim: feature size d.
        num_classes: number C of training identities.
        rate: weight of the current classifiers in a step of the averages, in (0, 1].
        specific_weight: w_s, at least 0.
        mutual_weight: w_m, at least 0.

    Shape:
        x (B, d) features, labels (B,) integers in [0, C), modality (B,) integers, 0 visible, 1 infrared, whose values
        are not read: any other counts as infrared. The loss is a scalar, at least 0, in at least float32. A batch may
        hold one modality: the other one's classifier gets a zero gradient.

    Attributes:
        shared: (C, d) W, a parameter; no classifier has a bias.
        specific: (2, C, d) W_m, visible first, a parameter.
        averaged: (2, C, d) Ā_m, a buffer.

    Raises:
        ValueError: if a shape or a number is wrong.
        TypeError: if ``x`` is not floating point or ``labels`` or ``modality`` hold no integers.
    """

    averaged: Tensor

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        rate: float = 0.2,
        specific_weight: float = 1.0,
        mutual_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_count("dim", dim)
        check_count("num_classes", num_classes)
        check_number("rate", rate)
        if not 0 < rate <= 1:
            raise ValueError(f"rate must be above 0 and at most 1, got {rate}")
        check_at_least_zero("specific_weight", specific_weight)
        check_at_least_zero("mutual_weight", mutual_weight)
        self.rate, self.specific_weight, self.mutual_weight = rate, specific_weight, mutual_weight
        self.shared = nn.Parameter(torch.empty(num_classes, dim).normal_(std=0.001))
        self.specific = nn.Parameter(torch.empty(2, num_classes, dim).normal_(std=0.001))
        self.register_buffer("averaged", self.specific.detach().clone())

    def forward(self, x: Tensor, labels: Tensor, modality: Tensor) -> Tensor:
        """The loss of a batch: the sum of `terms`. In training mode it moves the averages."""
        return _sum(self.terms(x, labels, modality))

    def terms(self, x: Tensor, labels: Tensor, modality: Tensor) -> dict[str, Tensor]:
        """What `forward` adds up, already weighted: ``"id"``, ``"specific"``, ``"mutual"``.

        A call of it counts as a forward call: it moves the averages too.
        """
        _check_batch(x, labels, modality, self.shared.shape[1])
        if self.training:
            with torch.no_grad():  # in place: nothing that waits for its backward pass keeps the averages
                self.averaged.lerp_(self.specific, self.rate)
        return _terms(
            x,
            labels,
            modality,
            self.shared,
            self.specific,
            self.averaged,
            self.specific_weight,
            self.mutual_weight,
        )

    def logits(self, x: Tensor) -> Tensor:
        """Logits (B, C) of ``x`` (B, d) by the shared classifier."""
        check_matrix("x", x, columns=self.shared.shape[1])
        return F.linear(x, self.shared)

    def extra_repr(self) -> str:
        """The settings, for printing."""
        num_classes, dim = self.shared.shape
        return (
            f"{dim}, {num_classes}, rate={self.rate}, specific_weight={self.specific_weight}, "
            f"mutual_weight={self.mutual_weight}"
        )
