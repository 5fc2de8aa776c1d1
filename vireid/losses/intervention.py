"""Counterfactual relation intervention: supervision of the affinities themselves (CIFT §4.3, Eq. 5-6)."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vireid._checks import check_count, check_flag, check_module, check_option, check_tensor
from vireid._ops import evaluated
from vireid.losses._common import Loss, check_rows
from vireid.losses.query_gallery import query_gallery_cross_entropy
from vireid.nn.transfer import FeatureTransfer, H2FTOutput, propagate

Intervention = Literal["free", "predicted"]

_RHO = 0.5413  # softplus of it is 1


def cri_loss(
    x: Tensor,
    labels: Tensor,
    modality: Tensor,
    *,
    transfer: FeatureTransfer,
    classifier: nn.Module,
    X_mu: Tensor,
    X_sigma: Tensor,
    output: H2FTOutput | None = None,
    samples: int = 1,
    detach_values: bool = False,
) -> Tensor:
    """Compute the cross-entropy of the total indirect effect for given X_μ and X_σ; see `CRILoss`.

    Both are (d,), or (B, d) with one row per image.
    """
    shape = "B d" if isinstance(X_mu, Tensor) and X_mu.ndim == 2 else "d"
    check_tensor("X_mu", X_mu, shape)
    check_tensor("x", x, "B d", d=X_mu.shape[-1])
    for name, value in (("X_mu", X_mu), ("X_sigma", X_sigma)):
        check_tensor(name, value, shape, B=len(x), d=x.shape[1])
    check_rows(len(x), labels=labels, modality=modality)
    samples, detach_values = check_count("samples", samples), check_flag("detach_values", detach_values)
    check_module("classifier", classifier)
    check_module("transfer", transfer, FeatureTransfer)
    if not isinstance(output, H2FTOutput | None):
        raise TypeError(f"output must be a vireid.nn.H2FTOutput, got {type(output).__name__}")
    output = transfer(x, modality) if output is None else output
    factual, counterfactual = (output.affinity_het, output.affinity_hom), []
    for _ in range(samples):
        Z = torch.randn(x.shape, dtype=x.dtype, device=x.device)  # a compiler would merge the draws of `randn_like`
        X_star = (X_sigma * Z + X_mu).to(x.dtype)
        counterfactual.append(transfer.affinities(evaluated(transfer.value)(X_star), modality)[:2])
    effect = _total_indirect_effect(factual, counterfactual, output.values, classifier, detach_values)
    query, gallery = effect.split([len(x), len(output.gallery_index)])
    return query_gallery_cross_entropy(query, labels, gallery=gallery, gallery_index=output.gallery_index)


def _total_indirect_effect(
    factual: tuple[Tensor, Tensor],
    counterfactual: list[tuple[Tensor, Tensor]],
    values: Tensor,
    classifier: nn.Module,
    detach: bool,
) -> Tensor:
    """Compute Y(X, A_X) minus the mean of Y(X, A_X*) over the draws, (B + R, C)."""
    weights: dict[str, Tensor] = dict(classifier.named_parameters())
    if detach:
        values, weights = values.detach(), {name: weight.detach() for name, weight in weights.items()}
    if type(classifier) is nn.Linear:
        # W A v(X) - E[W A* v(X)] = W (A - E[A*]) v(X): one product for any number of samples, and the bias cancels.
        expected = [torch.stack(draws).mean(0) for draws in zip(*counterfactual, strict=True)]
        het, hom = (affinity - mean for affinity, mean in zip(factual, expected, strict=True))
        return F.linear(torch.cat(propagate(het, hom, values)), weights["weight"])

    def logits(affinities: tuple[Tensor, Tensor]) -> Tensor:
        features = torch.cat(propagate(*affinities, values))
        result: Tensor = torch.func.functional_call(classifier, weights, (features,))
        return result

    return logits(factual) - torch.stack([logits(affinities) for affinities in counterfactual]).mean(0)


class CRILoss(Loss):
    """Counterfactual relation intervention: cross-entropy of the affinities' total indirect effect (CIFT, Eq. 5-6).

        Y_TIE = Y(X, A_X) - E_{X*}[Y(X, A_{X*})],   X* = X_σ · Z + X_μ,   Z ~ N(0, I)

    Only the affinities differ between the two terms: the transferred values stay v(X) and the classifier is shared. So
    the loss falls when the affinities of X serve the classification better than those of random features do. X_μ and
    X_σ are learned by the reparameterization trick, from the gradient of this loss only: the paper prints no further
    term, such as a divergence from N(0, I). Z is drawn from the caller's torch generator. Inference does not use any of
    this.

    v sees X* in evaluation mode (our choice): its running statistics are neither changed by X* nor replaced by those of
    X*, which would cancel X_μ and X_σ.

    In several processes its parameters belong in the model's `torch.nn.parallel.DistributedDataParallel`, in one module
    that calls both, as in `vireid.training.fit`. Outside, each process trains its own, and a warning says so.

    Args:
        dim: feature size d.
        samples: draws of X* to average over (our choice: 1; the paper gives no number).
        detach_values: stop the gradients into the values v(X) and the classifier, so that only the affinities learn
            (our choice: False, the paper's equation as it stands).
        intervention: ``"free"``: X_μ and X_σ are parameters, shared by all images (our choice). ``"predicted"``: each
            image has its own, two linear maps of its features, as in a variational autoencoder; the gradient reaches
            the features through them too. The paper only names the reparameterization trick.

    Attributes:
        X_mu: (d,) X_μ, a parameter, 0 at the start, of a free intervention.
        X_rho: (d,) parameter behind X_σ, likewise.
        X_sigma: (d,) X_σ = softplus(X_rho), above 0; 1 at the start.
        predict: the two linear maps of a predicted intervention, x (B, d) -> X_μ and X_rho side by side (B, 2d). They
            start at 0 and at what makes X_σ 1 for every x.
    """

    _needs = "pair"

    def __init__(
        self, dim: int, *, samples: int = 1, detach_values: bool = False, intervention: Intervention = "free"
    ) -> None:
        super().__init__()
        check_option("intervention", intervention, ("free", "predicted"))
        self.intervention = intervention
        self.dim, self.samples = check_count("dim", dim), check_count("samples", samples)
        self.detach_values = check_flag("detach_values", detach_values)
        # either way X* starts as Z
        if intervention == "free":
            self.X_mu, self.X_rho = nn.Parameter(torch.zeros(self.dim)), nn.Parameter(torch.full((self.dim,), _RHO))
        else:
            self.predict = nn.Linear(self.dim, 2 * self.dim)
            nn.init.zeros_(self.predict.weight)
            with torch.no_grad():
                self.predict.bias[: self.dim], self.predict.bias[self.dim :] = 0, _RHO

    def _options(self) -> dict[str, Any]:
        return {"samples": self.samples, "detach_values": self.detach_values}  # those of `cri_loss`

    def extra_repr(self) -> str:
        """Show the options in ``repr``."""
        return f"{super().extra_repr()}, intervention={self.intervention!r}"

    def distribution(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return X_μ and X_σ for the features ``x`` (B, d): both (d,), or (B, d) if predicted. X_σ is above 0."""
        check_tensor("x", x, "B d", d=self.dim)
        if self.intervention == "free":
            return self.X_mu, self.X_sigma
        X_mu, X_rho = self.predict(x.to(self.predict.weight.dtype)).chunk(2, 1)
        return X_mu, F.softplus(X_rho)

    @property
    def X_sigma(self) -> Tensor:
        """Standard deviation of X*, (d,), above 0, of a free intervention."""
        return F.softplus(self.X_rho)

    def forward(
        self,
        x: Tensor,
        labels: Tensor,
        modality: Tensor,
        *,
        transfer: FeatureTransfer,
        classifier: nn.Module,
        output: H2FTOutput | None = None,
    ) -> Tensor:
        """Compute the loss of a batch: the mean over the query rows and that over the gallery rows, each half.

        Args:
            x: (B, d) features that enter the transfer.
            labels: (B,) integers in [0, C).
            modality: (B,) integers, 0 visible, 1 infrared.
            transfer: the graph layer that makes ``output`` from ``x``: `vireid.nn.H2FT` or `vireid.nn.GFT`.
            classifier: module (N, d) -> (N, C), the one that the transferred features are trained with.
            output: ``transfer(x, modality)`` if already computed; saves the second computation, and a second update of
                v's running statistics.
        """
        X_mu, X_sigma = self.distribution(x)
        given = {"transfer": transfer, "classifier": classifier, "output": output}
        return self._compute(cri_loss, x, labels, modality, X_mu=X_mu, X_sigma=X_sigma, **given)
