"""Alignment of the graphs of one identity across the modalities by optimal transport."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vireid import VISIBLE
from vireid._checks import check_option
from vireid._ops import at_least_float32
from vireid.losses._common import Loss, check_graphs
from vireid.losses.parts import Average
from vireid.ot.graph import check_options, graph_ot

Structure = Literal["abs", "square"]
Solver = Literal["auto", "exact", "entropic"]
PairChoice = Literal["all", "one_to_one"]


def graph_ot_loss(
    nodes: Tensor,
    labels: Tensor,
    modality: Tensor,
    *,
    mask: Tensor | None = None,
    phi: float = 0.5,
    loss: Structure = "abs",
    solver: Solver = "auto",
    pairs: PairChoice = "all",
    iterations: int = 200,
    restarts: int = 0,
    average: Average = "pairs",
) -> Tensor:
    """Compute the graph optimal transport loss of a batch; see `GraphOTLoss`."""
    check_graphs(nodes, labels, modality, mask)
    check_option("pairs", pairs, ("all", "one_to_one"))
    check_option("average", average, ("pairs", "images"))
    visible, infrared, chosen = _choose_pairs(labels, modality, mask, pairs)
    graphs = at_least_float32(nodes)  # before an image enters several pairs, whose gradients then add up in float32
    both = None if mask is None else mask[visible] & mask[infrared]
    if chosen is not None:
        both = chosen[:, None].expand(-1, nodes.shape[1]) if both is None else both & chosen[:, None]
    x, y = _select(graphs, visible), _select(graphs, infrared)
    options: dict[str, Any] = {"solver": solver, "iterations": iterations, "restarts": restarts}
    costs = graph_ot(x, y, phi=phi, loss=loss, mask_x=both, mask_y=both, **options).cost
    if average == "images":
        return costs.sum() / max(len(labels), 1)
    return costs.sum() / (max(len(costs), 1) if chosen is None else chosen.sum().clamp_min(1))


def _choose_pairs(
    labels: Tensor, modality: Tensor, mask: Tensor | None, pairs: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the rows (P,) of the visible and (P,) of the infrared images of the pairs, and which pairs count.

    A compiler gets as many pairs as a batch of this size can have, and (P,) bool which of them count; else all do.
    """
    first = modality == VISIBLE
    second = ~first
    same = labels[:, None] == labels
    chosen = same & first[:, None] & second
    if mask is not None:
        chosen = chosen & (mask.float() @ mask.float().T > 0)  # a node in common
    if pairs == "one_to_one":
        # Number of images of its identity and modality before each image.
        before = torch.ones_like(same).tril(-1)
        place = torch.where(first, (same & first & before).sum(1), (same & second & before).sum(1))
        chosen &= place[:, None] == place
    if not torch.compiler.is_compiling():
        visible, infrared = chosen.nonzero().unbind(1)
        return visible, infrared, None
    most = len(labels) // 2 if pairs == "one_to_one" else (len(labels) // 2) * ((len(labels) + 1) // 2)
    cells = chosen.flatten().int().argsort(descending=True, stable=True)[:most]
    return cells // len(labels), cells % len(labels), chosen.flatten()[cells]


def _select(graphs: Tensor, rows: Tensor) -> Tensor:
    """Return ``graphs[rows]``, with a gradient summed in a fixed order on every device, unlike that of an index."""
    return rearrange(F.embedding(rows, graphs.flatten(1)), "p (n d) -> p n d", n=graphs.shape[1])


class GraphOTLoss(Loss):
    """Optimal transport between the graphs of one identity's visible and infrared images (G2DA, Eq. 4-7).

        L = mean over the pairs of D_ot,   D_ot = min over T of φ Σ_ij T_ij c(v_i, v_j) + (1 - φ) Σ T_ij T_i'j' L_ii'jj'

    All pairs form one batch for `vireid.ot.graph_ot`, which defines D_ot and says how it is solved; the gradient is
    that of the cost with the plan found held fixed. A batch without a pair costs 0, with gradient 0. Under
    torch.compile the solver is one opaque operator, and shapes are those of the most pairs a batch can have.

    P identities with K visible and K infrared images each have P K² pairs. The paper aligns "every cross-modality image
    pair", and so does ``pairs="all"``, in any order of the batch. ``"one_to_one"`` (our choice) joins the k-th visible
    image of an identity, in the order of the batch, to its k-th infrared one: P K pairs, at a K-th of the cost, with
    new partners whenever the order changes.

    On a GPU, choosing the pairs waits for the device once, as their number depends on the data; the solver also waits.

    Args:
        phi: φ in [0, 1]: 0 compares structure only, 1 features only.
        loss: L is the absolute difference of the distances within the graphs (``"abs"``, as in the paper) or its
            square.
        solver: of `graph_ot`: ``"exact"``, ``"entropic"``, or ``"auto"``, which is exact on the CPU.
        pairs: ``"all"`` or ``"one_to_one"``.
        iterations: steps of the solver at most.
        restarts: further starts of the solver.
        average: the sum over the pairs is divided by the number of ``"pairs"`` (our choice; Eq. 7 is of one pair), or
            by that of the ``"images"`` of the batch, the N_t of L_c (Eq. 5).

    Shape:
        nodes (B, K+1, d) features of a graph's nodes, labels (B,) integers, modality (B,) integers, 0 visible, 1
        infrared. mask (B, K+1) bool, True where a node is present: a node absent from one image of a pair has no
        counterpart and is left out of both, and its features are ignored (our choice); two images without a node in
        common are not a pair. The loss is a scalar of at least 0 up to rounding, in at least float32.

    Warns:
        UserWarning: if a plan misses its marginals or has not settled, as `graph_ot` does.
    """

    _needs = "positive"

    def __init__(
        self,
        *,
        phi: float = 0.5,
        loss: Structure = "abs",
        solver: Solver = "auto",
        pairs: PairChoice = "all",
        iterations: int = 200,
        restarts: int = 0,
        average: Average = "pairs",
    ) -> None:
        super().__init__()
        self.phi, self.iterations, self.restarts = check_options(phi, loss, solver, iterations, restarts)
        check_option("pairs", pairs, ("all", "one_to_one"))
        check_option("average", average, ("pairs", "images"))
        self.loss, self.solver, self.pairs, self.average = loss, solver, pairs, average

    def forward(self, nodes: Tensor, labels: Tensor, modality: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Compute the loss of a batch."""
        return self._compute(graph_ot_loss, nodes, labels, modality, mask=mask)
