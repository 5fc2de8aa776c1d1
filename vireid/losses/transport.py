"""Alignment of the graphs of one identity across the modalities by optimal transport."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vireid import INFRARED, VISIBLE
from vireid._checks import check_option
from vireid._ops import at_least_float32
from vireid.losses.parts import check_nodes
from vireid.ot.graph import GraphOT, check_options, graph_ot

__all__ = ["GraphOTLoss", "graph_ot_loss"]


def _solve(*graphs: Tensor, **options: Any) -> GraphOT:
    """Call `graph_ot`, hidden from a compiler, which would unroll its loops: they end when the data say so."""
    if torch.compiler.is_compiling():  # only then: `disable` imports torch._dynamo, which takes as long as torch itself
        return torch.compiler.disable(graph_ot)(*graphs, **options)
    return graph_ot(*graphs, **options)


def graph_ot_loss(
    nodes: Tensor,
    labels: Tensor,
    modality: Tensor,
    *,
    mask: Tensor | None = None,
    phi: float = 0.5,
    loss: Literal["abs", "square"] = "abs",
    solver: Literal["auto", "exact", "entropic"] = "auto",
    pairs: Literal["all", "one_to_one"] = "all",
    iterations: int = 200,
    restarts: int = 0,
) -> Tensor:
    """Graph optimal transport loss as a function; see `GraphOTLoss`."""
    check_nodes(nodes, labels, modality, mask)
    check_options(phi, loss, solver, iterations, restarts)
    check_option("pairs", pairs, ("all", "one_to_one"))
    visible, infrared = _choose_pairs(labels, modality, mask, pairs)
    # before an image is taken into several pairs, so that the gradients of these add up in float32
    graphs = at_least_float32(nodes)
    if not len(visible) and bool(((modality != VISIBLE) & (modality != INFRARED)).any()):
        got = modality.unique().tolist()
        raise ValueError(f"modality must hold {VISIBLE}, visible, and {INFRARED}, infrared, got {got}")
    both = None if mask is None else mask[visible] & mask[infrared]
    costs = _solve(
        _take(graphs, visible),
        _take(graphs, infrared),
        phi=phi,
        loss=loss,
        mask_x=both,
        mask_y=both,
        solver=solver,
        iterations=iterations,
        restarts=restarts,
    ).cost
    return costs.sum() / max(len(costs), 1)


def _choose_pairs(labels: Tensor, modality: Tensor, mask: Tensor | None, pairs: str) -> tuple[Tensor, Tensor]:
    """Rows (P,) of the visible and (P,) of the infrared images of the pairs."""
    first = modality == VISIBLE
    second = ~first
    same = labels[:, None] == labels
    chosen = same & first[:, None] & second
    if mask is not None:
        chosen = chosen & (mask.float() @ mask.float().T > 0)  # a node in common
    if pairs == "one_to_one":
        # how many of its identity and modality stand before an image
        before = torch.ones_like(same).tril(-1)
        place = torch.where(first, (same & first & before).sum(1), (same & second & before).sum(1))
        chosen &= place[:, None] == place
    visible, infrared = chosen.nonzero().unbind(1)
    return visible, infrared


def _take(graphs: Tensor, rows: Tensor) -> Tensor:
    """``graphs[rows]``, whose gradient adds in a fixed order on every device, which that of an index does not."""
    return F.embedding(rows, graphs.flatten(1)).unflatten(1, graphs.shape[1:])


class GraphOTLoss(nn.Module):
    """Optimal transport between the graphs of one identity's visible and infrared images (G2DA, Eq. 4-7).

        L = mean over the pairs of D_ot,   D_ot = min over T of φ Σ_ij T_ij c(v_i, v_j) + (1 - φ) Σ T_ij T_i'j' L_ii'jj'

    All pairs are one batch for `vireid.ot.graph_ot`, which says what D_ot is and how it is solved; its gradient is that
    of the cost at the plan found, held fixed. A batch without a pair costs 0, with gradient 0.

    P identities with K visible and K infrared images each have P K² pairs. The paper aligns "every cross-modality image
    pair", and so does ``pairs="all"``: 128 for its batch of 8 identities with 4 + 4 images, and the same in any order
    of the batch. ``"one_to_one"`` (ours) joins the k-th visible image of an identity, in the order of the batch, to its
    k-th infrared one: P K pairs, 32, at a K-th of the cost, with other partners each time the order is drawn anew.

    On a GPU, choosing the pairs waits for the device once, as their number depends on the data, and the solver does in
    its turn.

    Args:
        phi: φ in [0, 1]: 0 compares structure alone, 1 features alone.
        loss: L is the absolute difference of the distances within the graphs (``"abs"``, the paper's) or its square.
        solver: of `graph_ot`: ``"exact"``, ``"entropic"``, or ``"auto"``, which is exact on the CPU.
        pairs: ``"all"`` or ``"one_to_one"``.
        iterations: steps of the solver at most.
        restarts: further starts of the solver.

    Shape:
        nodes (B, n, d) features, n = K + 1 for a skeleton graph; labels (B,) integers; modality (B,) integers, 0
        visible, any other infrared. mask (B, n) bool, True where a node is present: what one image of a pair lacks has
        no counterpart and is left out of both, and its features are not looked at (ours); two images without a node in
        common are no pair. The loss is a scalar, at least 0 up to rounding, in at least float32.

    Raises:
        ValueError: if a shape, a range or an option is wrong, or there is no pair and ``modality`` holds other numbers.
        TypeError: if ``nodes`` is not floating point, ``labels`` or ``modality`` hold no integers, ``mask`` is not
            bool, or a number is none.

    Warns:
        UserWarning: if a plan misses its marginals or has not settled, as `graph_ot` does.
    """

    def __init__(
        self,
        *,
        phi: float = 0.5,
        loss: Literal["abs", "square"] = "abs",
        solver: Literal["auto", "exact", "entropic"] = "auto",
        pairs: Literal["all", "one_to_one"] = "all",
        iterations: int = 200,
        restarts: int = 0,
    ) -> None:
        super().__init__()
        check_options(phi, loss, solver, iterations, restarts)
        check_option("pairs", pairs, ("all", "one_to_one"))
        self.phi, self.loss, self.solver, self.pairs = phi, loss, solver, pairs
        self.iterations, self.restarts = iterations, restarts

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return f"phi={self.phi}, loss={self.loss!r}, solver={self.solver!r}, pairs={self.pairs!r}"

    def forward(self, nodes: Tensor, labels: Tensor, modality: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The loss of a batch."""
        return graph_ot_loss(
            nodes,
            labels,
            modality,
            mask=mask,
            phi=self.phi,
            loss=self.loss,
            solver=self.solver,
            pairs=self.pairs,
            iterations=self.iterations,
            restarts=self.restarts,
        )
