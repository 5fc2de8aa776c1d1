"""Conditional gradient for all pairs at once where a plan can be a permutation: equal counts, uniform weights."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vireid.ot.structure import Pairs, is_permutation, permutation_plan, permutation_together


def solve_exact(pairs: Pairs, iterations: int, restarts: int) -> Tensor:
    """Plans (B, n, n): linear steps by assignment, then exchanges of two nodes, from 3 + ``restarts`` starts.

    With the squared loss of cosine distances the objective is concave over the plans, so that its minimum is a
    permutation. With the absolute one a step may end between two of them.
    """
    first = _assign(pairs, pairs.linear)
    plan = permutation_plan(first, pairs.u)
    if pairs.phi == 1 or not len(plan):
        return plan
    batch, n = pairs.u.shape
    # the first step from u vᵀ for the squared loss: nodes that lie far from the others go to such nodes
    means = [(c @ w[:, :, None])[:, :, 0] for c, w in ((pairs.cx, pairs.u), (pairs.cy, pairs.v))]
    outward = _assign(pairs, pairs.linear - 4 * (1 - pairs.phi) * means[0][:, :, None] * means[1][:, None])
    draw = torch.Generator().manual_seed(0)
    orders = [torch.rand(batch, n, generator=draw).to(plan.device) for _ in range(restarts)]
    targets = [first, outward, *(_in_order(pairs, o) for o in (plan.new_zeros(batch, n), *orders))]
    starts, rows = len(targets), torch.arange(batch, device=plan.device)
    every, target = pairs.take(rows.repeat(starts)), torch.cat(targets)
    plan, both = permutation_plan(target, every.u), permutation_together(every, target)
    plan, both = _conditional_gradient(every, plan, both, iterations, starts)
    plan, value = _exchange(every, plan, both, iterations, starts)
    return plan.view(starts, batch, n, n)[value.view(starts, batch).argmin(0), rows]


def _in_order(pairs: Pairs, order: Tensor) -> Tensor:
    """The permutation (B, n) of the present nodes of x, sorted by ``order`` in [0, 1), to those of y as they come."""
    x = (order + (pairs.u <= 0)).argsort(dim=1, stable=True)
    y = (pairs.v <= 0).int().argsort(dim=1, stable=True)
    return torch.empty_like(x).scatter_(1, x, y)


def _assign(pairs: Pairs, cost: Tensor) -> Tensor:
    """The permutation (B, n) of least total cost; absent nodes go to absent ones."""
    worse = (cost.amax((1, 2), keepdim=True) - cost.amin((1, 2), keepdim=True) + 1) * cost.shape[1]
    cost = cost + worse * ((pairs.u > 0)[:, :, None] != (pairs.v > 0)[:, None])
    targets = [linear_sum_assignment(c)[1] for c in cost.double().cpu().numpy()]
    return torch.from_numpy(np.array(targets, dtype=np.int64).reshape(cost.shape[:2])).to(cost.device)


def _negligible(pairs: Pairs) -> Tensor:
    """(B,) a gain that rounding could have made."""
    scale = pairs.linear.abs().amax((1, 2)) + pairs.cx.square().amax((1, 2)) + pairs.cx.amax((1, 2))
    return 16 * torch.finfo(scale.dtype).eps * scale


def _repeated(plan: Tensor, starts: int) -> Tensor:
    """Which of the plans (S B, n, n) another start of the same pair has come to as well; one of each stays."""
    each = plan.unflatten(0, (starts, -1))
    found = [torch.zeros_like(each[0, :, 0, 0], dtype=torch.bool)]
    found += [(each[:s] == each[s]).flatten(2).all(2).any(0) for s in range(1, len(each))]
    return torch.cat(found)


def _conditional_gradient(
    pairs: Pairs, plan: Tensor, both: Tensor, iterations: int, starts: int
) -> tuple[Tensor, Tensor]:
    """Plans and K of them where no linear step gains any more; a pair that is done takes part no longer."""
    negligible = _negligible(pairs)
    moving, now = torch.arange(len(plan), device=plan.device), pairs
    for _ in range(iterations):
        gradient = now.gradient(both[moving])
        target = _assign(now, gradient)
        change = permutation_plan(target, now.u) - plan[moving]
        bend = permutation_together(now, target) - both[moving]
        # along the step the objective is a parabola: value + γ slope + γ² curvature
        slope = (gradient * change).sum((1, 2))
        curvature = -2 * (1 - now.phi) * (bend * change).sum((1, 2))
        step = torch.where(2 * curvature > -slope, -slope / (2 * curvature), 1.0)
        gains = slope < -negligible[moving]
        moved, step = moving[gains], step[gains, None, None]
        plan = plan.index_copy(0, moved, torch.lerp(plan[moved], plan[moved] + change[gains], step))
        both = both.index_copy(0, moved, torch.lerp(both[moved], both[moved] + bend[gains], step))
        gains &= ~_repeated(plan, starts)[moving]
        moving, now = moving[gains], now.take(gains)
        if not len(moving):
            break
    return plan, both


def _exchange(pairs: Pairs, plan: Tensor, both: Tensor, iterations: int, starts: int) -> tuple[Tensor, Tensor]:
    """Where a plan is a permutation, the exchange of two targets that gains most, until none gains; plans and values.

    (Ours.) The gain of every exchange follows from K(T), without an assignment.
    """
    value, target, negligible = pairs.objective(plan, both), plan.argmax(2), _negligible(pairs)
    whole = is_permutation(plan, pairs.u)
    moving = (whole & ~_repeated(plan, starts)).nonzero().flatten()
    now, at, both = pairs.take(moving), target[moving], both[moving]
    for _ in range(iterations):
        # moved_ik: the cost of node i in the place where k is now
        moved = now.gradient(both).gather(2, at[:, None].expand_as(both))
        kept = moved.diagonal(dim1=1, dim2=2)
        cy = now.cy.gather(1, at[:, :, None].expand_as(both)).gather(2, at[:, None].expand_as(both))
        shared = torch.minimum(now.cx, cy) if now.loss == "abs" else now.cx * cy
        weight = now.u[:, :, None] * (now.u > 0)[:, None]
        gain = weight * (moved + moved.mT - kept[:, :, None] - kept[:, None] - 8 * (1 - now.phi) * weight * shared)
        best, where = gain.flatten(1).min(1)
        gains = best < -negligible[moving]
        moving, at, where = moving[gains], at[gains], where[gains]
        if not len(moving):
            break
        now = now.take(gains)
        pair = torch.stack([where // at.shape[1], where % at.shape[1]], 1)
        at = at.scatter(1, pair, at.gather(1, pair.flip(1)))
        both = permutation_together(now, at)
        target, value = target.index_copy(0, moving, at), value.index_add(0, moving, best[gains])
    return torch.where(whole[:, None, None], permutation_plan(target, pairs.u), plan), value
