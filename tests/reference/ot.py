"""Transport between graphs from its definition (G2DA, Eq. 4-7): the four-index cost, all permutations, POT's solvers.

A pair is x (n, d) and y (m, d). Nothing here imports vireid.
"""

import itertools

import numpy as np
import torch
from torch import Tensor

import ot


def distances(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """1 - cos node by node (n, m), (n, n), (m, m)."""

    def table(a: Tensor, b: Tensor) -> Tensor:
        rows = [[1 - (p @ q) / (p.norm() * q.norm()) if p.any() and q.any() else p.sum() * 0 + 1 for q in b] for p in a]
        return torch.stack([torch.stack(row) for row in rows])

    def within(a: Tensor) -> Tensor:
        return table(a, a) * (1 - torch.eye(len(a), dtype=a.dtype))

    return table(x, y), within(x), within(y)


def four_index(cx: Tensor, cy: Tensor, loss: str) -> Tensor:
    """L (n, m, n, m), the difference of every two distances."""
    difference = cx[:, None, :, None] - cy[None, :, None, :]
    return difference.abs() if loss == "abs" else difference.square()


def objective(x: Tensor, y: Tensor, plan: Tensor, phi: float, loss: str) -> Tensor:
    """φ D_w + (1 - φ) D_gw at a plan."""
    cost, cx, cy = distances(x, y)
    quadratic = four_index(cx, cy, loss) * plan[:, :, None, None] * plan
    return phi * (cost * plan).sum() + (1 - phi) * quadratic.sum()


def objectives(x: Tensor, y: Tensor, plan: Tensor, phi: float, loss: str) -> Tensor:
    """`objective` of every pair of a batch."""
    return torch.stack([objective(a, b, t, phi, loss) for a, b, t in zip(x, y, plan, strict=True)])


def brute_force(x: Tensor, y: Tensor, phi: float, loss: str) -> Tensor:
    """The lowest cost (B,) of all permutations of the n nodes of each pair."""
    n = x.shape[1]
    plans = torch.stack([torch.eye(n, dtype=x.dtype)[list(p)] for p in itertools.permutations(range(n))]) / n
    best = []
    for a, b in zip(x, y, strict=True):
        cost, cx, cy = distances(a, b)
        four = four_index(cx, cy, loss).reshape(n * n, n * n)
        quadratic = (plans.flatten(1) @ four * plans.flatten(1)).sum(1)
        best.append((phi * (plans * cost).sum((1, 2)) + (1 - phi) * quadratic).min())
    return torch.stack(best)


def pot(x: Tensor, y: Tensor, u: Tensor, v: Tensor, phi: float, loss: str) -> list[float]:
    """POT's cost from u vᵀ, from the plan of φ = 1 and, for equal uniform nodes, from the nodes in their order.

    The squared loss is that of `ot.gromov`; the absolute one has no solver there, so its four-index cost is given to
    POT's conditional gradient.
    """
    cost, cx, cy = (c.numpy() for c in distances(x, y))
    p, q = u.numpy(), v.numpy()
    starts = [np.outer(p, q), ot.emd(p, q, cost)]
    if len(p) == len(q) and np.ptp(p) == np.ptp(q) == 0:
        starts.append(np.diag(p))
    if loss == "square":
        solve = ot.gromov.fused_gromov_wasserstein2
        return [float(solve(cost, cx, cy, p, q, alpha=1 - phi, G0=start)) for start in starts]
    four = four_index(*map(torch.from_numpy, (cx, cy)), loss).numpy()

    def gradient(plan: np.ndarray) -> np.ndarray:
        return 2 * np.tensordot(four, plan)

    def line_search(f, plan, step, slopes, value, slope):
        a, b = (gradient(step) * step).sum() * (1 - phi) / 2, (slopes * step).sum()
        length = ot.optim.solve_1d_linesearch_quad(a, b)
        return length, 1, value + a * length**2 + b * length

    def value(plan: np.ndarray) -> float:
        return (gradient(plan) * plan).sum() / 2

    plans = [ot.optim.cg(p, q, phi * cost, 1 - phi, value, gradient, s, line_search) for s in starts]
    return [phi * (cost * plan).sum() + (1 - phi) * value(plan) for plan in plans]
