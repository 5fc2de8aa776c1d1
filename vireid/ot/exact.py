"""Conditional gradient for all pairs at once where a plan can be a permutation: equal counts, uniform weights."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vireid.ot.structure import Pairs, is_permutation, permutation_plan, permutation_together, permuted_rows


def solve_exact(pairs: Pairs, iterations: int, restarts: int) -> Tensor:
    """Plans (B, n, n): linear steps by assignment, then exchanges of two nodes, from 3 + ``restarts`` starts.

    With the squared loss of cosine distances the objective is concave over the plans, so that its minimum is a
    permutation. With the absolute one a step may end between two of them.
    """
    negligible = _negligible(pairs)
    pairs = _forbid(pairs)
    batch, n = pairs.u.shape
    # for φ = 0 all assignments of the features cost the same, and rounding would choose: backwards in its place
    backwards = torch.arange(n, 0, -1, device=pairs.u.device) / (n + 1)
    first = _assign(pairs.linear) if pairs.phi > 0 else _in_order(pairs, backwards.expand(batch, n))
    if pairs.phi == 1 or not batch:
        return permutation_plan(first, pairs.u)
    # the first step from u vᵀ for the squared loss: nodes that lie far from the others go to such nodes
    means = [(c @ w[:, :, None])[:, :, 0] for c, w in ((pairs.cx, pairs.u), (pairs.cy, pairs.v))]
    outward = _assign(pairs.linear - 4 * (1 - pairs.phi) * means[0][:, :, None] * means[1][:, None])
    draw = torch.Generator().manual_seed(0)
    orders = [torch.rand(batch, n, generator=draw).to(first.device) for _ in range(restarts)]
    targets = [first, outward, *(_in_order(pairs, o) for o in (torch.zeros_like(pairs.u), *orders))]
    starts, rows = len(targets), torch.arange(batch, device=first.device)
    every, negligible = pairs.take(rows.repeat(starts)), negligible.repeat(starts)
    plan, both = _conditional_gradient(every, torch.cat(targets), negligible, iterations, starts)
    plan, value = _exchange(every, plan, both, negligible, iterations, starts)
    return plan.view(starts, batch, n, n)[value.view(starts, batch).argmin(0), rows]


def _forbid(pairs: Pairs) -> Pairs:
    """The same problems, where no assignment sends a present node to an absent one: no plan has mass there."""
    present = (pairs.u > 0).to(pairs.u)[:, :, None], (pairs.v > 0).to(pairs.v)[:, None]
    # more than the gradients of n nodes can differ by: K is at most the largest distance, or product of two
    largest = torch.maximum(pairs.cx.amax((1, 2)), pairs.cy.amax((1, 2)))
    range_ = pairs.linear.amax((1, 2)) - pairs.linear.amin((1, 2)) + 4 * (largest + largest.square()) + 1
    worse = pairs.u.shape[1] * range_[:, None, None]
    return pairs._replace(linear=pairs.linear + worse * (present[0] - present[1]).abs())


def _in_order(pairs: Pairs, order: Tensor) -> Tensor:
    """The permutation (B, n) of the present nodes of x, sorted by ``order`` in [0, 1), to those of y as they come."""
    x = (order + (pairs.u <= 0)).argsort(dim=1, stable=True)
    y = (pairs.v <= 0).int().argsort(dim=1, stable=True)
    return torch.empty_like(x).scatter_(1, x, y)


def _assign(cost: Tensor) -> Tensor:
    """The permutation (B, n) of least total cost."""
    target = cost.argmin(2)
    # where the nearest nodes are all different, nothing is left to assign
    taken = torch.zeros_like(target).scatter_(1, target, 1)
    left = (taken.amin(1) == 0).nonzero().flatten()
    solved = [linear_sum_assignment(c)[1] for c in cost.index_select(0, left).double().cpu().numpy()]
    found = torch.from_numpy(np.array(solved, dtype=np.int64).reshape(-1, cost.shape[1]))
    return target.index_copy(0, left, found.to(cost.device))


def _negligible(pairs: Pairs) -> Tensor:
    """(B,) a gain that rounding could have made."""
    scale = pairs.linear.abs().amax((1, 2)) + pairs.cx.square().amax((1, 2)) + pairs.cx.amax((1, 2))
    return 16 * torch.finfo(scale.dtype).eps * scale


def _alone(plan: Tensor, starts: int) -> Tensor:
    """Rows of the plans (S B, n, n) that no earlier start of the same pair has come to as well."""
    each = plan.view(starts, -1, plan[0].numel())
    repeated = [torch.zeros_like(each[0, :, 0], dtype=torch.bool)]
    repeated += [((each[:s] - each[s]).abs().amax(2) == 0).any(0) for s in range(1, starts)]
    return (~torch.cat(repeated)).nonzero().flatten()


def _conditional_gradient(
    pairs: Pairs, target: Tensor, negligible: Tensor, iterations: int, starts: int
) -> tuple[Tensor, Tensor]:
    """Plans and K of them where no linear step gains any more, from permutations ``target``.

    A pair that is done takes part no longer, nor does a start that has come to where an earlier one is.
    """
    plan = permutation_plan(target, pairs.u)
    moving = _alone(plan, starts)
    both = torch.zeros_like(plan)
    both = both.index_copy(0, moving, permutation_together(pairs.take(moving), target.index_select(0, moving)))
    for _ in range(iterations):
        now, at, both_at = pairs.take(moving), plan.index_select(0, moving), both.index_select(0, moving)
        gradient = now.gradient(both_at)
        target = _assign(gradient)
        end = permutation_plan(target, now.u)
        slope = (gradient * (end - at)).sum((1, 2))
        gains = (slope < -negligible.index_select(0, moving)).nonzero().flatten()
        if not len(gains):
            break
        moving, now = moving.index_select(0, gains), now.take(gains)
        at, both_at, end, slope, target = (x.index_select(0, gains) for x in (at, both_at, end, slope, target))
        both_end = permutation_together(now, target)
        # along the step the objective is a parabola: value + γ slope + γ² curvature
        curvature = -2 * (1 - now.phi) * ((both_end - both_at) * (end - at)).sum((1, 2))
        step = torch.where(2 * curvature > -slope, -slope / (2 * curvature), 1.0)[:, None, None]
        plan = plan.index_copy(0, moving, torch.lerp(at, end, step))
        both = both.index_copy(0, moving, torch.lerp(both_at, both_end, step))
        moved = torch.zeros_like(negligible, dtype=torch.bool).index_fill(0, moving, True)
        alone = _alone(plan, starts)
        moving = alone[moved.index_select(0, alone)]
        if not len(moving):
            break
    return plan, both


def _exchange(
    pairs: Pairs, plan: Tensor, both: Tensor, negligible: Tensor, iterations: int, starts: int
) -> tuple[Tensor, Tensor]:
    """Where a plan is a permutation, the exchange of two targets that gains most, until none gains; plans and values.

    (Ours.) The gain of every exchange follows from K(T), without an assignment. A start that has come to where an
    earlier one is has the value inf.
    """
    moving = _alone(plan, starts)
    now, at, both = pairs.take(moving), plan.index_select(0, moving), both.index_select(0, moving)
    value = torch.full_like(negligible, torch.inf).index_copy(0, moving, now.objective(at, both))
    whole = is_permutation(at, now.u).nonzero().flatten()
    moving, now, at, both = moving[whole], now.take(whole), at[whole].argmax(2), both[whole]
    plan = plan.index_copy(0, moving, permutation_plan(at, now.u))
    for _ in range(iterations):
        # moved_ik: the cost of node i in the place where k is now
        moved = now.gradient(both).gather(2, at[:, None].expand_as(both))
        kept = moved.diagonal(dim1=1, dim2=2)
        cy = permuted_rows(now.cy, at).gather(2, at[:, None].expand_as(both))
        shared = torch.minimum(now.cx, cy) if now.loss == "abs" else now.cx * cy
        weight = now.u[:, :, None] * (now.u > 0)[:, None]
        gain = weight * (moved + moved.mT - kept[:, :, None] - kept[:, None] - 8 * (1 - now.phi) * weight * shared)
        best, where = gain.flatten(1).min(1)
        gains = (best < -negligible.index_select(0, moving)).nonzero().flatten()
        if not len(gains):
            break
        moving, at, where, best, now = moving[gains], at[gains], where[gains], best[gains], now.take(gains)
        pair = torch.stack([where // at.shape[1], where % at.shape[1]], 1)
        at = at.scatter(1, pair, at.gather(1, pair.flip(1)))
        both = permutation_together(now, at)
        plan = plan.index_copy(0, moving, permutation_plan(at, now.u))
        value = value.index_add(0, moving, best)
    return plan, value
