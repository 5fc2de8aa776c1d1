"""Proximal points in the log domain (Xu et al., 2019), for any counts and weights; nothing leaves the device."""

from typing import NamedTuple

import torch
from torch import Tensor

from vireid.ot.structure import Pairs, Together

EPSILON = 0.1  # of a proximal step, relative to the largest difference in the gradient
SCALINGS = 50  # between two looks at the plans
BALANCED = 1e-3  # a plan whose marginals are this close takes its next proximal step; others are scaled on
SETTLED = 1e-4  # a step that changes the cost by less than this, relative, is the last


def solve_entropic(pairs: Pairs, iterations: int) -> Tensor:
    """Plans (B, n, m) that meet their marginals up to rounding; the best that each pair has passed.

    A step minimises the linearised objective plus ε KL(T ‖ last T) over the plans, which needs Sinkhorn scalings. How
    many, differs from pair to pair: every pair is scaled, and each takes its next step when its own plan is balanced.
    What a pair gets does not depend on how long the others take.
    """
    best = pairs.u[:, :, None] * pairs.v[:, None]
    running = torch.arange(len(best), device=best.device)
    state = _State.start(pairs)
    for _ in range(iterations):
        state = state.look()
        settled = int(state.settled.sum())  # the one look at values: a GPU waits here once in SCALINGS scalings
        if settled == len(running):
            break
        if 2 * settled >= len(running):  # leave those that are done
            best = best.index_copy(0, running, state.best)
            left = (~state.settled).nonzero().flatten()
            running, state = running[left], state.take(left)
        state = state.step()
    return best.index_copy(0, running, state.best)


class _State(NamedTuple):
    """Where the pairs that still run are."""

    pairs: Pairs
    together: Together | None  # None for φ = 1, where there is nothing quadratic
    log_plan: Tensor
    plan: Tensor  # rounded: every plan that is looked at meets its marginals
    both: Tensor  # K(T) of it
    best: Tensor
    lowest: Tensor  # (B,) cost of the best plan
    last: Tensor  # (B,) cost before the last proximal step
    balanced: Tensor  # (B,) bool: a proximal step is due
    settled: Tensor  # (B,) bool: no further one is

    @classmethod
    def start(cls, pairs: Pairs) -> "_State":
        tiny = torch.finfo(pairs.u.dtype).tiny
        u, v = (w.clamp_min(tiny).log() for w in (pairs.u, pairs.v))
        plan = pairs.u[:, :, None] * pairs.v[:, None]
        far, no = torch.full_like(pairs.u[:, 0], torch.inf), torch.zeros_like(pairs.u[:, 0], dtype=torch.bool)
        together = Together(pairs) if pairs.phi < 1 else None
        log_plan = u[:, :, None] + v[:, None]
        return cls(pairs, together, log_plan, plan, torch.zeros_like(plan), plan, far, far, ~no, no)

    def take(self, index: Tensor) -> "_State":
        together = None if self.together is None else self.together.take(index)
        rest: list[Tensor] = [x.index_select(0, index) for x in self[2:]]
        return _State(self.pairs.take(index), together, *rest)

    def look(self) -> "_State":
        """The cost of the plans, and with it what is best and what is done."""
        both = self.both if self.together is None else self.together(self.plan)
        cost = self.pairs.objective(self.plan, both)
        lower = (cost < self.lowest) & ~self.settled
        return self._replace(
            both=both,
            best=torch.where(lower[:, None, None], self.plan, self.best),
            lowest=torch.where(lower, cost, self.lowest),
            last=torch.where(self.balanced, cost, self.last),
            settled=self.settled | (self.balanced & ((cost - self.last).abs() <= SETTLED * cost.abs())),
        )

    def step(self) -> "_State":
        """A proximal step where it is due, and scalings for all."""
        pairs = self.pairs
        present = (pairs.u > 0)[:, :, None] & (pairs.v > 0)[:, None]
        gradient = _relative(pairs.gradient(self.both), present) / EPSILON
        log_plan = self.log_plan - torch.where(self.balanced[:, None, None], gradient, 0)
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
