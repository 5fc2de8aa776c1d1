"""Conditional gradient for all pairs at once where a plan can be a permutation: equal counts, uniform weights."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vireid.ot.permutation import (
    alone,
    exchange,
    in_order,
    negligible_gain,
    outward,
    permutation_plan,
    permutation_together,
    random_orders,
)
from vireid.ot.structure import Found, Pairs


def solve_exact(pairs: Pairs, iterations: int, restarts: int) -> Found:
    """Linear steps by assignment, then exchanges of two nodes, from 3 + ``restarts`` starts; the best for each pair.

    With the squared loss of cosine distances the objective is concave over the plans, so that its minimum is a
    permutation. With the absolute one a step may end between two of them.
    """
    negligible = negligible_gain(pairs)
    pairs = _forbid(pairs)
    batch, n = pairs.u.shape
    # for φ = 0 all assignments of the features cost the same, and rounding would choose: backwards in its place
    backwards = torch.arange(n, 0, -1, device=pairs.u.device) / (n + 1)
    first = _assign(pairs.linear) if pairs.phi > 0 else in_order(pairs, backwards.expand(batch, n))
    if pairs.phi == 1 or not batch:
        plan = permutation_plan(first, pairs.u)
        value = (pairs.linear * plan).sum((1, 2))
        return Found(plan, value, torch.zeros_like(value, dtype=torch.bool))
    orders = [torch.zeros_like(pairs.u), *random_orders(pairs, restarts)]
    targets = [first, _assign(outward(pairs)), *(in_order(pairs, o) for o in orders)]
    starts = len(targets)
    every, negligible = pairs.take(torch.arange(batch, device=first.device).repeat(starts)), negligible.repeat(starts)
    plan, both, stopped = _conditional_gradient(every, torch.cat(targets), negligible, iterations, starts)
    found = exchange(every, plan, both, negligible, iterations, starts)
    return found._replace(unsettled=found.unsettled | stopped).best(starts)


def _forbid(pairs: Pairs) -> Pairs:
    """The same problems, where no assignment sends a present node to an absent one: no plan has mass there."""
    present = (pairs.u > 0).to(pairs.u)[:, :, None], (pairs.v > 0).to(pairs.v)[:, None]
    # more than the gradients of n nodes can differ by: K is at most the largest distance, or product of two
    largest = torch.maximum(pairs.cx.amax((1, 2)), pairs.cy.amax((1, 2)))
    spread = pairs.linear.amax((1, 2)) - pairs.linear.amin((1, 2)) + 4 * (largest + largest.square()) + 1
    worse = pairs.u.shape[1] * spread[:, None, None]
    return pairs._replace(linear=pairs.linear + worse * (present[0] - present[1]).abs())


def _assign(cost: Tensor) -> Tensor:
    """The permutation (B, n) of least total cost.

    Pair by pair: SciPy's solver takes one matrix, and PyTorch has none.
    """
    target = cost.argmin(2)
    # where the nearest nodes are all different, nothing is left to assign
    taken = torch.zeros_like(target).scatter_(1, target, 1)
    left = (taken.amin(1) == 0).nonzero().flatten()
    solved = [linear_sum_assignment(c)[1] for c in cost.index_select(0, left).double().cpu().numpy()]
    found = torch.from_numpy(np.array(solved, dtype=np.int64).reshape(-1, cost.shape[1]))
    return target.index_copy(0, left, found.to(cost.device))


def _conditional_gradient(
    pairs: Pairs, target: Tensor, negligible: Tensor, iterations: int, starts: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Plans where no linear step gains any more, K of them, and where ``iterations`` were not enough, (S B,) bool.

    The start is at permutations ``target``. A pair that is done takes part no longer, nor does a start that has come to
    where an earlier one is.
    """
    plan = permutation_plan(target, pairs.u)
    moving = alone(plan, starts)
    both, stopped = torch.zeros_like(plan), torch.zeros_like(negligible, dtype=torch.bool)
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
        moved = torch.zeros_like(stopped).index_fill(0, moving, True)
        left = alone(plan, starts)
        moving = left[moved.index_select(0, left)]
        if not len(moving):
            break
    else:
        stopped = stopped.index_fill(0, moving, True)
    return plan, both, stopped
