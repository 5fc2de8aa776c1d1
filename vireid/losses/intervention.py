"""Counterfactual relation intervention: supervision for the affinities themselves (CIFT §4.3, Eq. 5-6)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vireid._checks import check_count, check_integers, check_matrix
from vireid._ops import at_least_float32, evaluation_mode
from vireid.nn.transfer import FeatureTransfer, H2FTOutput, propagate


class CRILoss(nn.Module):
    """Cross-entropy of the total indirect effect of the affinities (CIFT, Eq. 5-6).

        Y_TIE = Y(X, A_X) - E_{X*}[Y(X, A_{X*})],   X* = X_σ · Z + X_μ,   Z ~ N(0, I)

    Only the affinities differ between the two terms: the transferred values stay v(X) and the classifier is shared. So
    the loss falls when the affinities of X serve the classification better than those of random features do. X_μ and
    X_σ (``X_mu``, ``X_sigma`` = softplus(``X_rho``), both (d,)) are learned with the re-parameterisation trick. Z is
    drawn from the caller's torch generator. Nothing of this exists at inference.

    v sees X* in evaluation mode (ours): its running statistics are neither changed by X* nor replaced by those of X*,
    which would cancel X_μ and X_σ.

    Args:
        dim: feature size d.
        samples: draws of X* that the expectation is the mean of (the paper gives no number; ours is 1).
        detach_values: stop the gradients into the values v(X) and the classifier, so that only the affinities learn
            (ours: False, the paper's equation as it stands).
    """

    def __init__(self, dim: int, *, samples: int = 1, detach_values: bool = False) -> None:
        super().__init__()
        check_count("dim", dim)
        check_count("samples", samples)
        self.samples, self.detach_values = samples, detach_values
        self.X_mu = nn.Parameter(torch.zeros(dim))
        self.X_rho = nn.Parameter(torch.full((dim,), 0.5413))  # softplus(0.5413) = 1: X* starts as Z

    @property
    def X_sigma(self) -> Tensor:
        """Standard deviation of X*, (d,), above 0."""
        return F.softplus(self.X_rho)

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return f"samples={self.samples}, detach_values={self.detach_values}"

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
        """Mean of the loss over the query rows and over the gallery rows, each half.

        Args:
            x: (B, d) features that enter the transfer.
            labels: (B,) integers in [0, C).
            modality: (B,) integers, 0 visible, 1 infrared.
            transfer: the graph layer that makes ``output`` from ``x``: `vireid.nn.H2FT` or `vireid.nn.GFT`.
            classifier: module (N, d) -> (N, C); the one that the transferred features are trained with.
            output: ``transfer(x, modality)`` where it is at hand; saves computing it again, and an update of v's
                running statistics.

        Returns:
            Scalar.

        Raises:
            ValueError: if a shape is wrong.
            TypeError: if ``x`` is not floating point or ``labels`` or ``modality`` hold no integers.
        """
        check_matrix("x", x, columns=len(self.X_mu))
        check_integers("modality", modality, len(x))
        check_integers("labels", labels, len(x))
        if output is None:
            output = transfer(x, modality)
        values = output.values
        factual, counterfactual = (output.affinity_het, output.affinity_hom), []
        for _ in range(self.samples):
            with evaluation_mode(transfer.value):
                values_star = transfer.value((self.X_sigma * torch.randn_like(x) + self.X_mu).to(x.dtype))
            counterfactual.append(transfer.affinities(values_star, modality)[:2])
        effect = self._effect(factual, counterfactual, values, classifier)
        query, gallery = effect.split([len(x), len(output.gallery_index)])
        return query_gallery_cross_entropy(query, gallery, labels, output.gallery_index)

    def _effect(
        self,
        factual: tuple[Tensor, Tensor],
        counterfactual: list[tuple[Tensor, Tensor]],
        values: Tensor,
        classifier: nn.Module,
    ) -> Tensor:
        """Y_TIE (B + R, C)."""
        weights: dict[str, Tensor] = dict(classifier.named_parameters())
        if self.detach_values:
            values = values.detach()
            weights = {name: weight.detach() for name, weight in weights.items()}
        if type(classifier) is nn.Linear:
            # W A v(X) - E[W A* v(X)] = W (A - E[A*]) v(X): one product, however many samples, and no bias is left.
            het, hom = (
                actual - torch.stack(others).mean(0)
                for actual, others in zip(factual, zip(*counterfactual, strict=True), strict=True)
            )
            return F.linear(torch.cat(propagate(het, hom, values)), weights["weight"])

        def logits(affinities: tuple[Tensor, Tensor]) -> Tensor:
            features = torch.cat(propagate(*affinities, values))
            result: Tensor = torch.func.functional_call(classifier, weights, (features,))
            return result

        return logits(factual) - torch.stack([logits(affinities) for affinities in counterfactual]).mean(0)


def query_gallery_cross_entropy(query: Tensor, gallery: Tensor, labels: Tensor, gallery_index: Tensor) -> Tensor:
    """Cross-entropy over the query rows (B, C) and the gallery rows (R, C), each half of the mean.

    The paper does not say how the two are weighed. Ours is the mean over the 2B rows of H2FT; halves keep that weight
    where GFT's unbalanced groups hold many more gallery rows than queries.
    """
    labels = labels.long()
    loss = F.cross_entropy(at_least_float32(query), labels)
    if len(gallery):  # a batch of one modality has no unbalanced groups, hence no gallery rows
        loss = (loss + F.cross_entropy(at_least_float32(gallery), labels[gallery_index])) / 2
    return loss
