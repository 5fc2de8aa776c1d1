"""Conditional gradient by assignments, for all pairs at once, where a plan can be a permutation."""

import numpy as np
import torch
from torch import Tensor

from vireid.ot.permutation import (
    distinct_starts,
    exchange,
    in_order,
    negligible_gain,
    outward,
    permutation_plan,
    permutation_term,
    random_orders,
)
from vireid.ot.problem import Problems, Solution
from vireid.ot.simplex import solve_by_simplex


def solve_exact(problems: Problems, iterations: int, restarts: int) -> Solution:
    """Solve by assignments where a plan can be a permutation, else by the network simplex."""
    assignable = problems.assignable()
    if len(assignable) and assignable.all():
        return _solve_by_assignment(problems, iterations, restarts)
    plan = torch.zeros_like(problems.linear)
    solution = Solution(plan, torch.zeros_like(plan[:, 0, 0]), torch.zeros_like(assignable))
    for chosen, solve in ((assignable, _solve_by_assignment), (~assignable, solve_by_simplex)):
        rows = chosen.nonzero().flatten()
        if len(rows):
            solution = solution.put(rows, solve(problems.select(rows), iterations, restarts))
    return solution


def _solve_by_assignment(problems: Problems, iterations: int, restarts: int) -> Solution:
    """Take linear steps by assignment, then exchange two nodes at a time; return the best of 3 + ``restarts`` starts.

    With the squared loss of cosine distances the objective is concave over the plans, so that its minimum is a
    permutation. With the absolute one a step may end between two of them.
    """
    negligible = negligible_gain(problems)
    problems = _forbid_absent(problems)
    batch, n = problems.u.shape
    # for φ = 0 all assignments of the features cost the same, and rounding would choose: the nodes backwards instead
    backwards = torch.arange(n, 0, -1, device=problems.u.device) / (n + 1)
    first = _assign(problems.linear) if problems.phi > 0 else in_order(problems, backwards.expand(batch, n))
    if problems.phi == 1:
        plan = permutation_plan(first, problems.u)
        value = (problems.linear * plan).sum((1, 2))
        return Solution(plan, value, torch.zeros_like(value, dtype=torch.bool))
    orders = [torch.zeros_like(problems.u), *random_orders(problems, restarts)]
    targets = [first, _assign(outward(problems)), *(in_order(problems, order) for order in orders)]
    starts = len(targets)
    every = problems.select(torch.arange(batch, device=first.device).repeat(starts))
    negligible = negligible.repeat(starts)
    plan, term, stopped = _conditional_gradient(every, torch.cat(targets), negligible, iterations, starts)
    solution = exchange(every, plan, term, negligible, iterations, starts)
    return solution._replace(unsettled=solution.unsettled | stopped).best(starts)


def _forbid_absent(problems: Problems) -> Problems:
    """Return the same problems, where no assignment sends a present node to an absent one: no plan has mass there."""
    present = (problems.u > 0).to(problems.u)[:, :, None], (problems.v > 0).to(problems.v)[:, None]
    # above any difference in the gradients of n nodes: K is at most the largest distance, or product of two
    largest = torch.maximum(problems.cx.amax((1, 2)), problems.cy.amax((1, 2)))
    spread = problems.linear.amax((1, 2)) - problems.linear.amin((1, 2)) + 4 * (largest + largest.square()) + 1
    worse = problems.u.shape[1] * spread[:, None, None]
    return problems._replace(linear=problems.linear + worse * (present[0] - present[1]).abs())


def _assign(cost: Tensor) -> Tensor:
    """Return the permutation (B, n) of least total cost.

    Pair by pair: SciPy's solver takes one matrix, and PyTorch has none.
    """
    from scipy.optimize import linear_sum_assignment

    target = cost.argmin(2)
    # if the nearest nodes are all different, they are the assignment
    taken = torch.zeros_like(target).scatter_(1, target, 1)
    left = (taken.amin(1) == 0).nonzero().flatten()
    solved = [linear_sum_assignment(c)[1] for c in cost.index_select(0, left).double().cpu().numpy()]
    assigned = torch.from_numpy(np.array(solved, dtype=np.int64).reshape(-1, cost.shape[1]))
    return target.index_copy(0, left, assigned.to(cost.device))


def _conditional_gradient(
    problems: Problems, target: Tensor, negligible: Tensor, iterations: int, starts: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return plans that no linear step improves, K at them, and (S B,) bool, where ``iterations`` were used up.

    The starts are the permutations ``target`` (S B, n). A start drops out when it has settled, or when it has reached
    the plan of an earlier one.
    """
    plan = permutation_plan(target, problems.u)
    rows = distinct_starts(plan, starts)
    term, stopped = torch.zeros_like(plan), torch.zeros_like(negligible, dtype=torch.bool)
    term = term.index_copy(0, rows, permutation_term(problems.select(rows), target.index_select(0, rows)))
    for _ in range(iterations):
        active, at, term_at = problems.select(rows), plan.index_select(0, rows), term.index_select(0, rows)
        gradient = active.gradient(term_at)
        target = _assign(gradient)
        end = permutation_plan(target, active.u)
        slope = (gradient * (end - at)).sum((1, 2))
        gains = (slope < -negligible.index_select(0, rows)).nonzero().flatten()
        if not len(gains):
            break
        rows, active = rows.index_select(0, gains), active.select(gains)
        at, term_at, end, slope, target = (x.index_select(0, gains) for x in (at, term_at, end, slope, target))
        term_end = permutation_term(active, target)
        # along the step the objective is a parabola: value + γ slope + γ² curvature
        curvature = -2 * (1 - active.phi) * ((term_end - term_at) * (end - at)).sum((1, 2))
        step = torch.where(2 * curvature > -slope, -slope / (2 * curvature), 1.0)[:, None, None]
        plan = plan.index_copy(0, rows, torch.lerp(at, end, step))
        term = term.index_copy(0, rows, torch.lerp(term_at, term_end, step))
        moved = torch.zeros_like(stopped).index_fill(0, rows, True)
        left = distinct_starts(plan, starts)
        rows = left[moved.index_select(0, left)]
        if not len(rows):
            break
    else:
        stopped = stopped.index_fill(0, rows, True)
    return plan, term, stopped
