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
        cx = torch.where((u > 0)[:, :, None] & (u > 0)[:, None], cx.clamp_min(0), 0)
        cy = torch.where((v > 0)[:, :, None] & (v > 0)[:, None], cy.clamp_min(0), 0)
        alone_x, alone_y = (cx, cy) if loss == "abs" else (cx.square(), cy.square())
        base = alone_x @ u[:, :, None] + (alone_y @ v[:, :, None]).mT
        return cls(phi * cost + (1 - phi) * base, cx, cy, u, v, phi, loss)

    def take(self, index: Tensor) -> "Pairs":
        """The problems at ``index``, which may name one more than once."""
        return self._replace(**{name: getattr(self, name)[index] for name in ("linear", "cx", "cy", "u", "v")})

    def gradient(self, both: Tensor) -> Tensor:
        """Gradient of the objective at T; ``both`` is K(T)."""
        return self.linear - 4 * (1 - self.phi) * both

    def objective(self, plan: Tensor, both: Tensor) -> Tensor:
        """The value (B,) at the plans; ``both`` is K of them."""
        return ((self.linear - 2 * (1 - self.phi) * both) * plan).sum((1, 2))


class Together:
    """K(T) for any plan; what does not depend on the plan is computed once."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        self.near = Near(pairs.cx, pairs.cy) if pairs.loss == "abs" else None

    def __call__(self, plan: Tensor) -> Tensor:
        """(B, n, m) for plans (B, n, m)."""
        return self.pairs.cx @ plan @ self.pairs.cy if self.near is None else self.near.minimum(plan)


class Near:
    """Sums over the nodes j' that are nearer to j than i' is to i, for all j, i' and i, without the four-index tensor.

    The rows of cy are sorted once; then a sum is a difference of prefix sums, read at the place of cx_ii'. The layout
    is (B, j, i', ·).
    """

    def __init__(self, cx: Tensor, cy: Tensor) -> None:
        n, m = cx.shape[1], cy.shape[1]
        self.cx = cx
        self.ascending, order = cy.sort(dim=2)
        self.order = order[:, :, None].expand(-1, -1, n, -1)
        self.values = cx[:, None].expand(-1, m, -1, -1).flatten(2).contiguous()
        self.place = self._place(right=False)

    def minimum(self, plan: Tensor) -> Tensor:
        """Σ_i'j' min(cx_ii', cy_jj') T_i'j' (B, n, m)."""
        mass, prefix = self._prefix(plan)
        nearer = F.pad((mass * self.ascending[:, :, None]).cumsum(3), (1, 0)).gather(3, self.place)
        farther = prefix[..., -1:] - prefix.gather(3, self.place)
        return (nearer + farther * self.cx[:, None]).sum(2).mT

    def signs(self, plan: Tensor) -> Tensor:
        """Σ_jj' T_ij T_i'j' sign(cx_ii' - cy_jj') (B, n, n)."""
        _, prefix = self._prefix(plan)
        nearer = prefix.gather(3, self.place)
        farther = prefix[..., -1:] - prefix.gather(3, self._place(right=True))
        return ((nearer - farther) * plan.mT[:, :, None]).sum(1)

    def _place(self, *, right: bool) -> Tensor:
        n = self.cx.shape[1]
        return torch.searchsorted(self.ascending, self.values, right=right).unflatten(2, (n, n))

    def _prefix(self, plan: Tensor) -> tuple[Tensor, Tensor]:
        mass = plan[:, None].expand(-1, plan.shape[2], -1, -1).gather(3, self.order)  # nearest to j first
        return mass, F.pad(mass.cumsum(3), (1, 0))


def permutation_together(pairs: Pairs, target: Tensor) -> Tensor:
    """K(T) (B, n, n) of the plan that sends each node i to ``target_i`` (B, n), where all weights are equal."""
    cy = pairs.cy.gather(1, target[:, :, None].expand_as(pairs.cy))
    weight = pairs.u.amax(1)[:, None, None]
    if pairs.loss == "square":
        return pairs.cx @ cy * weight
    return torch.minimum(pairs.cx[:, :, :, None], cy[:, :, None]).sum(1) * weight


def permutation_plan(target: Tensor, u: Tensor) -> Tensor:
    """The plan (B, n, n) that sends each node i, with all its weight, to ``target_i``."""
    return u.new_zeros(*u.shape, u.shape[1]).scatter_(2, target[:, :, None], u[:, :, None])


def is_permutation(plan: Tensor, u: Tensor) -> Tensor:
    """(B,) whether every node sends all its weight to one node."""
    return (plan.amax(2) >= 0.999 * u).all(1)
