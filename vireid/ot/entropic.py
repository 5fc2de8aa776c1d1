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
    permutation_together,
    random_orders,
)
from vireid.ot.structure import Found, Pairs, Together

EPSILON = 0.1  # of a proximal step, relative to the largest difference in the gradient
SCALINGS = 50  # between two looks at the plans
BALANCED = 1e-3  # a plan whose marginals are this close takes its next proximal step; others are scaled on
SETTLED = 1e-4  # a step that gains less than this, relative, over the best so far is the last
SLOW = 1e-3  # the same in the second half of the iterations, for the few pairs that creep


def solve_entropic(pairs: Pairs, iterations: int, restarts: int, uniform: bool) -> Found:
    """Proximal points from u vᵀ, and then, where a plan can be a permutation, exchanges of two nodes.

    The exchanges go from what came of the proximal points and from 4 + ``restarts`` other permutations; they cost
    little. Where no plan is a permutation, there are 1 + ``restarts`` further starts of the proximal points in their
    place: one near the features' plan, and random ones. ``uniform`` says that n = m and nothing is weighted.
    """
    batch, device = len(pairs.u), pairs.u.device
    can = ((pairs.u > 0).sum(1) == (pairs.v > 0).sum(1)) & uniform
    whole, rest = can.nonzero().flatten(), (~can).nonzero().flatten()
    features = pairs.linear.index_select(0, rest)
    draw = torch.rand(restarts, *features.shape[1:], generator=torch.Generator().manual_seed(0)).to(features)
    costs = torch.cat([torch.zeros_like(pairs.linear), features, *(c.expand_as(features) for c in draw)])
    rows = torch.cat([torch.arange(batch, device=device), rest.repeat(1 + restarts)])
    found = _proximal_points(pairs.take(rows), costs, iterations)
    found, more = Found(*(x[:batch] for x in found)), Found(*(x[batch:] for x in found))
    found = found.improved(rest, more.best(1 + restarts))
    if len(whole):
        found = found.improved(whole, _exchanges(pairs.take(whole), found.plan[whole], iterations, restarts))
    return found


def _exchanges(pairs: Pairs, plan: Tensor, iterations: int, restarts: int) -> Found:
    """The best that exchanges of two nodes come to, from ``plan`` and from other starts."""
    orders = [torch.zeros_like(pairs.u), *random_orders(pairs, 1 + restarts)]
    scores = [plan, -pairs.linear, -outward(pairs)]
    starts, rows = len(scores) + len(orders), torch.arange(len(plan), device=plan.device)
    every = pairs.take(rows.repeat(starts))
    near = greedy(torch.cat(scores), pairs.take(rows.repeat(len(scores))))
    target = torch.cat([near, *(in_order(pairs, order) for order in orders)])
    start, both = permutation_plan(target, every.u), permutation_together(every, target)
    return exchange(every, start, both, negligible_gain(every), iterations, starts).best(starts)


def _proximal_points(pairs: Pairs, costs: Tensor, iterations: int) -> Found:
    """The best plan that each pair has passed, from the plan of ``costs`` (B, n, m) smoothed with ε.

    A step minimises the linearised objective plus ε KL(T ‖ last T) over the plans, which needs Sinkhorn scalings. How
    many, differs from pair to pair: every pair is scaled, and each takes its next step when its own plan is balanced.
    What a pair gets does not depend on how long the others take.
    """
    state = _State.start(pairs, costs).look(SETTLED)
    found, running = state.found(), torch.arange(len(pairs.u), device=pairs.u.device)
    for step in range(iterations):
        state = state.step().look(SETTLED if 2 * step < iterations else SLOW)
        settled = int(state.settled.sum())  # a GPU waits here once in SCALINGS scalings
        if settled == len(running):
            break
        if 2 * settled >= len(running):  # leave those that are done
            found = found.put(running, state.found())
            left = (~state.settled).nonzero().flatten()
            running, state = running[left], state.take(left)
    return found.put(running, state.found())


class _State(NamedTuple):
    """Where the pairs that still run are."""

    pairs: Pairs
    together: Together | None  # None for φ = 1, where there is nothing quadratic
    log_plan: Tensor
    plan: Tensor  # rounded: every plan that is looked at meets its marginals
    both: Tensor  # K(T) of it
    best: Tensor
    lowest: Tensor  # (B,) cost of the best plan
    last: Tensor  # (B,) what `lowest` was when the last proximal step was due
    balanced: Tensor  # (B,) bool: a proximal step is due
    settled: Tensor  # (B,) bool: no further one is

    @classmethod
    def start(cls, pairs: Pairs, costs: Tensor) -> "_State":
        tiny = torch.finfo(pairs.u.dtype).tiny
        u, v = (w.clamp_min(tiny).log() for w in (pairs.u, pairs.v))
        plan = pairs.u[:, :, None] * pairs.v[:, None]
        far, no = torch.full_like(pairs.u[:, 0], torch.inf), torch.zeros_like(pairs.u[:, 0], dtype=torch.bool)
        together = Together(pairs) if pairs.phi < 1 else None
        log_plan = u[:, :, None] + v[:, None]
        return cls(pairs, together, log_plan, plan, torch.zeros_like(plan), plan, far, far, ~no, no).move(costs)

    def take(self, index: Tensor) -> "_State":
        together = None if self.together is None else self.together.take(index)
        rest: list[Tensor] = [x.index_select(0, index) for x in self[2:]]
        return _State(self.pairs.take(index), together, *rest)

    def look(self, least: float) -> "_State":
        """The cost of the plans, and with it what is best and what is done: gains below ``least`` do not count."""
        both = self.both if self.together is None else self.together(self.plan)
        cost = self.pairs.objective(self.plan, both)
        lower = (cost < self.lowest) & ~self.settled
        lowest = torch.where(lower, cost, self.lowest)
        return self._replace(
            both=both,
            best=torch.where(lower[:, None, None], self.plan, self.best),
            lowest=lowest,
            last=torch.where(self.balanced, lowest, self.last),
            settled=self.settled | (self.balanced & (self.last - lowest <= least * lowest.abs())),
        )

    def found(self) -> Found:
        return Found(self.best, self.lowest, ~self.settled)

    def step(self) -> "_State":
        """A proximal step where it is due, and scalings for all."""
        return self.move(self.pairs.gradient(self.both))

    def move(self, costs: Tensor) -> "_State":
        """Towards the plan of least ``costs``."""
        pairs = self.pairs
        present = (pairs.u > 0)[:, :, None] & (pairs.v > 0)[:, None]
        costs = _relative(costs, present) / EPSILON
        log_plan = self.log_plan - torch.where(self.balanced[:, None, None], costs, 0)
        log_plan, plan = _scale(log_plan, pairs.u, pairs.v)
        balanced = (plan.sum(2) - pairs.u).abs().sum(1) <= BALANCED
        return self._replace(log_plan=log_plan, plan=_round(plan, pairs.u, pairs.v), balanced=balanced)


def _relative(gradient: Tensor, present: Tensor) -> Tensor:
    """``gradient`` brought to [0, 1] in each pair, so that the unit of the costs plays no part; 0 for absent nodes."""
    low = torch.where(present, gradient, torch.inf).amin((1, 2), keepdim=True)
    high = torch.where(present, gradient, -torch.inf).amax((1, 2), keepdim=True)
    return torch.where(present & (high > low), (gradient - low) / (high - low), 0)


def _scale(log_plan: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns brought to their sums in turn: the logarithm of the plan, and the plan.

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
    # finite, and low enough not to matter: what has no mass now can have some later
    log_plan = (log_plan + left.log() + right.log().mT).clamp_min(-500)
    return log_plan, log_plan.exp()


def _round(plan: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Plans with exact marginals (Altschuler et al., 2017): what is too much is taken away and put where it lacks."""
    tiny = torch.finfo(plan.dtype).tiny
    plan = plan * (u / plan.sum(2).clamp_min(tiny)).clamp(0, 1)[:, :, None]
    plan = plan * (v / plan.sum(1).clamp_min(tiny)).clamp(0, 1)[:, None]
    rows, columns = (u - plan.sum(2)).clamp_min(0), (v - plan.sum(1)).clamp_min(0)
    return plan + rows[:, :, None] * (columns / columns.sum(1, keepdim=True).clamp_min(tiny))[:, None]
