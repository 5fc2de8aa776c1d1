"""Proximal points in the log domain (Xu et al., 2019), for any counts and weights, on the device of the input."""

from typing import NamedTuple

import torch
from torch import Tensor

from vireid.ot.permutation import (
    exchange,
    greedy,
    in_order,
    negligible_gain,
    outward,
    permutation_plan,
    permutation_term,
    random_orders,
)
from vireid.ot.problem import Problems, QuadraticTerm, Solution

EPSILON = 0.1  # of a proximal step, relative to the largest difference in the gradient
SCALINGS = 50  # between two evaluations of the plans
BALANCED = 1e-3  # a plan whose marginals are this close takes its next proximal step; others are scaled on
SETTLED = 1e-4  # a step that gains less than this, relative, over the best so far is the last
SLOW = 1e-3  # the same in the second half of the iterations, for the few pairs that converge slowly


def solve_entropic(problems: Problems, iterations: int, restarts: int) -> Solution:
    """Solve by proximal points from u vᵀ and then, where a plan can be a permutation, by exchanges of two nodes.

    The exchanges start from the result of the proximal points and from 4 + ``restarts`` other permutations; they cost
    little. Where no plan is a permutation, the proximal points have 1 + ``restarts`` further starts instead: one near
    the features' plan, and random ones.
    """
    batch, device = len(problems.u), problems.u.device
    assignable = problems.assignable()
    whole, rest = assignable.nonzero().flatten(), (~assignable).nonzero().flatten()
    features = problems.linear.index_select(0, rest)
    draw = torch.rand(restarts, *features.shape[1:], generator=torch.Generator().manual_seed(0)).to(features)
    costs = torch.cat([torch.zeros_like(problems.linear), features, *(c.expand_as(features) for c in draw)])
    rows = torch.cat([torch.arange(batch, device=device), rest.repeat(1 + restarts)])
    solution = _proximal_points(problems.select(rows), costs, iterations)
    solution, more = Solution(*(x[:batch] for x in solution)), Solution(*(x[batch:] for x in solution))
    solution = solution.improved(rest, more.best(1 + restarts))
    if len(whole):
        exchanged = _exchanges(problems.select(whole), solution.plan[whole], iterations, restarts)
        solution = solution.improved(whole, exchanged)
    return solution


def _exchanges(problems: Problems, plan: Tensor, iterations: int, restarts: int) -> Solution:
    """Return the best result of exchanges of two nodes, from ``plan`` and from other starts."""
    orders = [torch.zeros_like(problems.u), *random_orders(problems, 1 + restarts)]
    scores = [plan, -problems.linear, -outward(problems)]
    starts, rows = len(scores) + len(orders), torch.arange(len(plan), device=plan.device)
    every = problems.select(rows.repeat(starts))
    near = greedy(torch.cat(scores), problems.select(rows.repeat(len(scores))))
    target = torch.cat([near, *(in_order(problems, order) for order in orders)])
    start, term = permutation_plan(target, every.u), permutation_term(every, target)
    return exchange(every, start, term, negligible_gain(every), iterations, starts).best(starts)


def _proximal_points(problems: Problems, costs: Tensor, iterations: int) -> Solution:
    """Return the best plan on the path of each pair, from the plan of ``costs`` (B, n, m) smoothed with ε.

    A step minimizes the linearized objective plus ε KL(T ‖ last T) over the plans, which needs Sinkhorn scalings. Their
    number differs between pairs: all are scaled, and each takes its next step when its own plan is balanced. The
    result of a pair does not depend on the others.
    """
    state = _State.start(problems, costs).look(SETTLED)
    solution, running = state.solution(), torch.arange(len(problems.u), device=problems.u.device)
    for step in range(iterations):
        state = state.descend(state.problems.gradient(state.term)).look(SETTLED if 2 * step < iterations else SLOW)
        settled = int(state.settled.sum())  # a GPU waits here once in SCALINGS scalings
        if settled == len(running):
            break
        if 2 * settled >= len(running):  # drop the settled ones
            solution = solution.put(running, state.solution())
            left = (~state.settled).nonzero().flatten()
            running, state = running[left], state.select(left)
    return solution.put(running, state.solution())


class _State(NamedTuple):
    """State of the pairs that still run."""

    problems: Problems
    quadratic: QuadraticTerm | None  # None for φ = 1, where there is nothing quadratic
    log_plan: Tensor
    plan: Tensor  # rounded: every plan that is evaluated meets its marginals
    term: Tensor  # K(T) of it
    best: Tensor
    lowest: Tensor  # (B,) cost of the best plan
    last: Tensor  # (B,) `lowest` when the last proximal step was due
    balanced: Tensor  # (B,) bool: a proximal step is due
    settled: Tensor  # (B,) bool: no further one is

    @classmethod
    def start(cls, problems: Problems, costs: Tensor) -> "_State":
        tiny = torch.finfo(problems.u.dtype).tiny
        u, v = (w.clamp_min(tiny).log() for w in (problems.u, problems.v))
        plan = problems.u[:, :, None] * problems.v[:, None]
        far = torch.full_like(problems.u[:, 0], torch.inf)
        no = torch.zeros_like(far, dtype=torch.bool)
        quadratic = QuadraticTerm.of(problems) if problems.phi < 1 else None
        log_plan = u[:, :, None] + v[:, None]
        term = torch.zeros_like(plan)
        return cls(problems, quadratic, log_plan, plan, term, plan, far, far, ~no, no).descend(costs)

    def select(self, rows: Tensor) -> "_State":
        quadratic = None if self.quadratic is None else self.quadratic.select(rows)
        rest: list[Tensor] = [x.index_select(0, rows) for x in self[2:]]
        return _State(self.problems.select(rows), quadratic, *rest)

    def look(self, least: float) -> "_State":
        """Evaluate the plans, keep the best, and mark the settled ones; gains below ``least`` do not count."""
        term = self.term if self.quadratic is None else self.quadratic(self.plan)
        cost = self.problems.objective(self.plan, term)
        lower = (cost < self.lowest) & ~self.settled
        lowest = torch.where(lower, cost, self.lowest)
        return self._replace(
            term=term,
            best=torch.where(lower[:, None, None], self.plan, self.best),
            lowest=lowest,
            last=torch.where(self.balanced, lowest, self.last),
            settled=self.settled | (self.balanced & (self.last - lowest <= least * lowest.abs())),
        )

    def solution(self) -> Solution:
        return Solution(self.best, self.lowest, ~self.settled)

    def descend(self, costs: Tensor) -> "_State":
        """Take a proximal step towards the plan of least ``costs`` where it is due, and scale all plans."""
        u, v = self.problems.u, self.problems.v
        present = (u > 0)[:, :, None] & (v > 0)[:, None]
        costs = _relative(costs, present) / EPSILON
        log_plan = self.log_plan - torch.where(self.balanced[:, None, None], costs, 0)
        log_plan, plan = _scale(log_plan, u, v)
        balanced = (plan.sum(2) - u).abs().sum(1) <= BALANCED
        return self._replace(log_plan=log_plan, plan=_round(plan, u, v), balanced=balanced)


def _relative(gradient: Tensor, present: Tensor) -> Tensor:
    """Scale ``gradient`` to [0, 1] in each pair, so that their unit does not matter; 0 for absent nodes."""
    low = torch.where(present, gradient, torch.inf).amin((1, 2), keepdim=True)
    high = torch.where(present, gradient, -torch.inf).amax((1, 2), keepdim=True)
    return torch.where(present & (high > low), (gradient - low) / (high - low), 0)


def _scale(log_plan: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Scale rows and columns to their sums in turn, and return the logarithm of the plan, and the plan.

    The first scaling takes logarithms, after which no row or column is far from its sum: the others can do without.
    """
    tiny = torch.finfo(u.dtype).tiny
    u, v = u.clamp_min(tiny)[:, :, None], v.clamp_min(tiny)[:, :, None]
    log_plan = log_plan + u.log() - log_plan.logsumexp(2, keepdim=True)
    log_plan = log_plan + v.log().mT - log_plan.logsumexp(1, keepdim=True)
    kernel = log_plan.exp()
    transposed, right = kernel.mT.contiguous(), torch.ones_like(v)
    for _ in range(SCALINGS):
        left = u / (kernel @ right).clamp_min(tiny)
        right = v / (transposed @ left).clamp_min(tiny)
    # finite, so that a cell without mass can get some later, and low enough not to matter
    log_plan = (log_plan + left.log() + right.log().mT).clamp_min(-500)
    return log_plan, log_plan.exp()


def _round(plan: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Round to exact marginals (Altschuler et al., 2017): an excess is taken away and spread over the deficits."""
    tiny = torch.finfo(plan.dtype).tiny
    plan = plan * (u / plan.sum(2).clamp_min(tiny)).clamp(0, 1)[:, :, None]
    plan = plan * (v / plan.sum(1).clamp_min(tiny)).clamp(0, 1)[:, None]
    rows, columns = (u - plan.sum(2)).clamp_min(0), (v - plan.sum(1)).clamp_min(0)
    return plan + rows[:, :, None] * (columns / columns.sum(1, keepdim=True).clamp_min(tiny))[:, None]
