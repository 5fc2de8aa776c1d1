"""The objective of a batch of problems, and the part of it that is quadratic in the plan T.

Both losses are a sum of one term for a, one for b and one for both, (a - b)² = a² + b² - 2ab and, for distances,
|a - b| = a + b - 2 min(a, b). The first two are the same for a given i or j in every plan, so they join the costs of
the nodes, and with K_ij(T) = Σ_i'j' k(cx_ii', cy_jj') T_i'j', k the product or the minimum,

    D_ot = min_T ⟨linear, T⟩ - 2 (1 - φ) ⟨K(T), T⟩,   linear = φ cost + (1 - φ) (f(cx) u ⊕ f(cy) v),

f the square or the identity. K is linear in T.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Pairs(NamedTuple):
    """The problems of a batch; nothing in it has a gradient.

    Attributes:
        linear: (B, n, m) as above.
        cx: (B, n, n) distances within x: symmetric, at least 0, and 0 on the diagonal and for absent nodes.
        cy: (B, m, m) distances within y, likewise.
        u: (B, n) weights of the nodes of x.
        v: (B, m) weights of the nodes of y.
        phi: φ.
        loss: ``"abs"`` or ``"square"``.
    """

    linear: Tensor
    cx: Tensor
    cy: Tensor
    u: Tensor
    v: Tensor
    phi: float
    loss: str

    @classmethod
    def build(cls, cost: Tensor, cx: Tensor, cy: Tensor, u: Tensor, v: Tensor, phi: float, loss: str) -> "Pairs":
        """From the costs between the nodes and the distances within the graphs."""
        present = (u > 0).to(u), (v > 0).to(v)
        cx, cy = (c.clamp_min(0) * p[:, :, None] * p[:, None] for c, p in zip((cx, cy), present, strict=True))
        alone_x, alone_y = (cx, cy) if loss == "abs" else (cx.square(), cy.square())
        base = alone_x @ u[:, :, None] + (alone_y @ v[:, :, None]).mT
        return cls(phi * cost + (1 - phi) * base, cx, cy, u, v, phi, loss)

    def take(self, index: Tensor) -> "Pairs":
        """The problems at ``index``, which may name one more than once."""
        names = ("linear", "cx", "cy", "u", "v")
        return self._replace(**{name: getattr(self, name).index_select(0, index) for name in names})

    def gradient(self, both: Tensor) -> Tensor:
        """Gradient of the objective at T; ``both`` is K(T)."""
        return self.linear - 4 * (1 - self.phi) * both

    def objective(self, plan: Tensor, both: Tensor) -> Tensor:
        """The value (B,) at the plans; ``both`` is K of them."""
        return ((self.linear - 2 * (1 - self.phi) * both) * plan).sum((1, 2))


class Found(NamedTuple):
    """What a solver has come to.

    Attributes:
        plan: (B, n, m) plans.
        value: (B,) the objective at them.
        unsettled: (B,) bool: the iterations were used up before no step gained any more.
    """

    plan: Tensor
    value: Tensor
    unsettled: Tensor

    def best(self, starts: int) -> "Found":
        """The best of ``starts`` plans for each pair; all pairs with the first start come first."""
        pairs = len(self.value) // starts
        rows = torch.arange(pairs, device=self.value.device)
        index = self.value.view(starts, pairs).argmin(0) * pairs + rows
        return Found(*(x.index_select(0, index) for x in self))

    def put(self, rows: Tensor, other: "Found") -> "Found":
        """With ``other`` in place of the pairs ``rows``."""
        return Found(*(x.index_copy(0, rows, y) for x, y in zip(self, other, strict=True)))

    def improved(self, rows: Tensor, other: "Found") -> "Found":
        """With ``other`` in place of the pairs ``rows`` where it is better."""
        lower = (other.value < self.value.index_select(0, rows)).nonzero().flatten()
        return self.put(rows[lower], Found(*(x.index_select(0, lower) for x in other)))


class Together:
    """K(T) for any plan; what does not depend on the plan is computed once."""

    def __init__(self, pairs: Pairs, near: "Near | None" = None) -> None:
        self.pairs = pairs
        self.near = Near.of(pairs.cx, pairs.cy) if pairs.loss == "abs" and near is None else near

    def __call__(self, plan: Tensor) -> Tensor:
        """(B, n, m) for plans (B, n, m)."""
        return self.pairs.cx @ plan @ self.pairs.cy if self.near is None else self.near.minimum(plan)

    def take(self, index: Tensor) -> "Together":
        """That of the problems at ``index``."""
        near = None if self.near is None else Near(*(x.index_select(0, index) for x in self.near))
        return Together(self.pairs.take(index), near)


class Near(NamedTuple):
    """Sums over the nodes j' that are nearer to j than i' is to i, for all j, i' and i, without the four-index tensor.

    The rows of cy are sorted once; then a sum is a difference of prefix sums, read at the place of cx_ii'. The layout
    is (B, j, i', ·).
    """

    cx: Tensor
    ascending: Tensor
    order: Tensor
    place: Tensor

    @classmethod
    def of(cls, cx: Tensor, cy: Tensor) -> "Near":
        """For distances (B, n, n) and (B, m, m)."""
        n, m = cx.shape[1], cy.shape[1]
        ascending, order = cy.sort(dim=2)
        values = cx[:, None].expand(-1, m, -1, -1).flatten(2).contiguous()
        return cls(cx, ascending, order, torch.searchsorted(ascending, values).unflatten(2, (n, n)))

    def minimum(self, plan: Tensor) -> Tensor:
        """Σ_i'j' min(cx_ii', cy_jj') T_i'j' (B, n, m)."""
        n, m = plan.shape[1:]
        order = self.order[:, :, None].expand(-1, -1, n, -1)
        mass = plan[:, None].expand(-1, m, -1, -1).gather(3, order)  # nearest to j first
        prefix = F.pad(mass.cumsum(3), (1, 0))
        nearer = F.pad((mass * self.ascending[:, :, None]).cumsum(3), (1, 0)).gather(3, self.place)
        farther = prefix[..., -1:] - prefix.gather(3, self.place)
        return (nearer + farther * self.cx[:, None]).sum(2).mT


def signs(cx: Tensor, cy: Tensor, plan: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_jj' T_ij T_i'j' sign(cx_ii' - cy_jj') (B, n, n) and Σ_ii' T_ij T_i'j' sign(cy_jj' - cx_ii') (B, m, m).

    One node i at a time: the four-index tensor is never there as a whole.
    """
    n, m = plan.shape[1:]
    # both laid out as (i', j'), so that the inner loop is long
    of_i, of_j, mass = cx.repeat_interleave(m, dim=2), cy.repeat(1, 1, n), plan.flatten(1)
    in_x, in_y = torch.empty_like(of_i), torch.zeros_like(of_j)
    for i in range(n):
        sign = torch.sign(of_i[:, i, None] - of_j)
        in_x[:, i] = (plan[:, i, None] @ sign)[:, 0] * mass
        in_y -= sign * plan[:, i, :, None]
    return in_x.unflatten(2, (n, m)).sum(3), (in_y * mass[:, None]).unflatten(2, (n, m)).sum(2)
