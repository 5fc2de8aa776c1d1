"""Batch of fused Gromov-Wasserstein problems: their objective, its quadratic term, and their solutions.

Both losses are a sum of one term for a, one for b and one for the two, (a - b)² = a² + b² - 2ab and, for distances,
|a - b| = a + b - 2 min(a, b). The first two depend on no plan, so they join the costs of the nodes, and with
K_ij(T) = Σ_i'j' k(cx_ii', cy_jj') T_i'j', k the product or the minimum,

    D_ot = min_T ⟨linear, T⟩ - 2 (1 - φ) ⟨K(T), T⟩,   linear = φ cost + (1 - φ) (f(cx) u ⊕ f(cy) v),

f the square or the identity. K is linear in T.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import reduce, repeat
from torch import Tensor


class Problems(NamedTuple):
    """One problem per pair of graphs; nothing in it has a gradient.

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
    def build(cls, cost: Tensor, cx: Tensor, cy: Tensor, u: Tensor, v: Tensor, phi: float, loss: str) -> "Problems":
        """Build from the costs between the nodes and the distances within the graphs."""
        present = (u > 0).to(u), (v > 0).to(v)
        cx, cy = (c.clamp_min(0) * p[:, :, None] * p[:, None] for c, p in zip((cx, cy), present, strict=True))
        own_x, own_y = (cx, cy) if loss == "abs" else (cx.square(), cy.square())
        base = own_x @ u[:, :, None] + (own_y @ v[:, :, None]).mT
        return cls(phi * cost + (1 - phi) * base, cx, cy, u, v, phi, loss)

    def select(self, rows: Tensor) -> "Problems":
        """Return the problems ``rows``, which may name one more than once."""
        names = ("linear", "cx", "cy", "u", "v")
        return self._replace(**{name: getattr(self, name).index_select(0, rows) for name in names})

    def assignable(self) -> Tensor:
        """Return (B,) whether a plan can be a permutation: equally many nodes on both sides, all of one weight."""
        if self.u.shape != self.v.shape:
            return torch.zeros_like(self.u[:, 0], dtype=torch.bool)
        uniform = [((w == 0) | (w == w.amax(1, keepdim=True))).all(1) for w in (self.u, self.v)]
        return uniform[0] & uniform[1] & ((self.u > 0).sum(1) == (self.v > 0).sum(1))

    def gradient(self, term: Tensor) -> Tensor:
        """Return the gradient of the objective at T, from ``term`` = K(T)."""
        return self.linear - 4 * (1 - self.phi) * term

    def objective(self, plan: Tensor, term: Tensor) -> Tensor:
        """Return the values (B,) at the plans T, from ``term`` = K(T)."""
        return ((self.linear - 2 * (1 - self.phi) * term) * plan).sum((1, 2))


class Solution(NamedTuple):
    """Plans found by a solver.

    Attributes:
        plan: (B, n, m) plans.
        value: (B,) the objective at them.
        unsettled: (B,) bool: the iterations were used up while steps still gained.
    """

    plan: Tensor
    value: Tensor
    unsettled: Tensor

    def select(self, rows: Tensor) -> "Solution":
        """Return the solutions ``rows``."""
        return Solution(*(x.index_select(0, rows) for x in self))

    def best(self, starts: int) -> "Solution":
        """Return the best of ``starts`` plans for each problem; those of the first start come first."""
        problems = len(self.value) // starts
        index = self.value.view(starts, problems).argmin(0) * problems
        return self.select(index + torch.arange(problems, device=index.device))

    def put(self, rows: Tensor, other: "Solution") -> "Solution":
        """Return the solutions with ``other`` in place of ``rows``."""
        return Solution(*(x.index_copy(0, rows, y) for x, y in zip(self, other, strict=True)))

    def improved(self, rows: Tensor, other: "Solution") -> "Solution":
        """Return the solutions with ``other`` in place of ``rows`` where it is better."""
        lower = (other.value < self.value.index_select(0, rows)).nonzero().flatten()
        return self.put(rows[lower], other.select(lower))


class QuadraticTerm:
    """K(T) for any plan; all that does not depend on the plan is computed once.

    For the minimum, a sum over the nodes j' that are nearer to j than i' is to i is a difference of prefix sums over
    the sorted row of cy, read at the place of cx_ii' in it, without the four-index tensor. The layout is (B, j, i', ·).
    """

    def __init__(self, cx: Tensor, cy: Tensor, sorted_rows: Sequence[Tensor]) -> None:
        self.cx, self.cy = cx, cy
        self.sorted_rows = sorted_rows  # ascending cy, its order, and the places; empty for the product

    @classmethod
    def of(cls, problems: Problems) -> "QuadraticTerm":
        """Prepare the term of ``problems``."""
        cx, cy = problems.cx, problems.cy
        if problems.loss == "square":
            return cls(cx, cy, ())
        ascending, order = cy.sort(dim=2)
        values = repeat(cx, "b i k -> b m (i k)", m=cy.shape[1]).contiguous()
        return cls(cx, cy, (ascending, order, torch.searchsorted(ascending, values).unflatten(2, cx.shape[1:])))

    def __call__(self, plan: Tensor) -> Tensor:
        """Return K (B, n, m) of plans (B, n, m)."""
        if not self.sorted_rows:
            return self.cx @ plan @ self.cy
        n, m = plan.shape[1:]
        ascending, order, place = self.sorted_rows
        mass = plan[:, None].expand(-1, m, -1, -1).gather(3, order[:, :, None].expand(-1, -1, n, -1))  # nearest first
        prefix = F.pad(mass.cumsum(3), (1, 0))
        nearer = F.pad((mass * ascending[:, :, None]).cumsum(3), (1, 0)).gather(3, place)
        farther = prefix[..., -1:] - prefix.gather(3, place)
        return (nearer + farther * self.cx[:, None]).sum(2).mT

    def select(self, rows: Tensor) -> "QuadraticTerm":
        """Return the term of the problems ``rows``."""
        cx, cy, *sorted_rows = (x.index_select(0, rows) for x in (self.cx, self.cy, *self.sorted_rows))
        return QuadraticTerm(cx, cy, sorted_rows)


def structure_cost(cx: Tensor, cy: Tensor, plan: Tensor, problems: Problems) -> Tensor:
    """Return D_gw (B,) = Σ_ii'jj' T_ij T_i'j' L of fixed plans, with a gradient to the distances.

    Sums of products, not contractions, whose gradient would be in half precision where backward runs under autocast.
    """
    compiling = torch.compiler.is_compiling()  # where nothing may depend on values
    if not compiling and bool((plan.amax(2) == problems.u).all()):  # each node has one counterpart: n² differences
        target = plan.argmax(2)
        cy = cy.gather(1, target[:, :, None].expand(-1, -1, cy.shape[2]))
        cy = cy.gather(2, target[:, None].expand(-1, target.shape[1], -1))
        difference = (cx - cy).abs() if problems.loss == "abs" else (cx - cy).square()
        return (problems.u[:, :, None] * problems.u[:, None] * difference).sum((1, 2))
    if problems.loss == "square":
        u, v = plan.sum(2), plan.sum(1)
        own = (u[:, :, None] * u[:, None] * cx.square()).sum((1, 2))
        own = own + (v[:, :, None] * v[:, None] * cy.square()).sum((1, 2))
        return own - 2 * ((cx @ plan @ cy) * plan).sum((1, 2))
    # Σ T T |a - b| = Σ T T sign(a - b) a + Σ T T sign(b - a) b, and the signs change only where a = b
    of_x, of_y = _signs(problems.cx, problems.cy, plan)
    return (of_x * cx).sum((1, 2)) + (of_y * cy).sum((1, 2))


def _signs(cx: Tensor, cy: Tensor, plan: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ_jj' T_ij T_i'j' sign(cx_ii' - cy_jj') (B, n, n) and Σ_ii' T_ij T_i'j' sign(cy_jj' - cx_ii') (B, m, m).

    One node i at a time, without the whole four-index tensor.
    """
    n, m = plan.shape[1:]
    # both laid out as (i', j'), so that the inner loop is long
    of_i, of_j, mass = repeat(cx, "b i k -> b i (k m)", m=m), repeat(cy, "b j l -> b j (n l)", n=n), plan.flatten(1)
    in_x, in_y = torch.empty_like(of_i), torch.zeros_like(of_j)
    for i in range(n):
        sign = torch.sign(of_i[:, i, None] - of_j)
        in_x[:, i] = (plan[:, i, None] @ sign)[:, 0] * mass
        in_y -= sign * plan[:, i, :, None]
    in_y = in_y * mass[:, None]
    return reduce(in_x, "b i (k l) -> b i k", "sum", l=m), reduce(in_y, "b j (k l) -> b j l", "sum", l=m)
