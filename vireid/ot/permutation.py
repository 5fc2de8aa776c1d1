"""Plans that send every node to one other, for both solvers."""

import torch
from torch import Tensor

from vireid.ot.problem import Problems, Solution


def permuted_rows(c: Tensor, target: Tensor) -> Tensor:
    """Return (B, n, m) whose row i is row ``target_i`` (B, n) of ``c``."""
    first = torch.arange(len(c), device=c.device)[:, None] * c.shape[1]
    return c.flatten(0, 1).index_select(0, (first + target).flatten()).unflatten(0, target.shape)


def permutation_term(problems: Problems, target: Tensor) -> Tensor:
    """Return K(T) (B, n, n) of the plan that sends each node i to ``target_i`` (B, n), where all weights are equal."""
    cy = permuted_rows(problems.cy, target)
    weight = problems.u.amax(1)[:, None, None]
    if problems.loss == "square":
        return problems.cx @ cy * weight
    # min(a, b) = (a + b - |a - b|) / 2
    difference = torch.cdist(problems.cx, cy.mT.contiguous(), p=1)
    return (problems.cx.sum(2)[:, :, None] + cy.sum(1)[:, None] - difference) * (weight / 2)


def permutation_plan(target: Tensor, u: Tensor) -> Tensor:
    """Return the plan (B, n, n) that sends each node i, with all its weight, to ``target_i``."""
    return u.new_zeros(*u.shape, u.shape[1]).scatter_(2, target[:, :, None], u[:, :, None])


def greedy(score: Tensor, problems: Problems) -> Tensor:
    """Return a permutation (B, n) of high ``score`` (B, n, n), by picking the highest remaining one; on the device.

    Present nodes go to present ones; both sides must have equally many.
    """
    score = score.masked_fill((problems.u > 0)[:, :, None] != (problems.v > 0)[:, None], -torch.inf)
    target = torch.zeros_like(score[:, 0], dtype=torch.long)
    nodes = torch.arange(score.shape[1], device=score.device)
    for _ in range(len(nodes)):
        highest = score.flatten(1).argmax(1, keepdim=True)
        row, column = highest // len(nodes), highest % len(nodes)
        target.scatter_(1, row, column)
        score = score.masked_fill((nodes == row)[:, :, None] | (nodes == column)[:, None], -torch.inf)
    return target


def in_order(problems: Problems, order: Tensor) -> Tensor:
    """Return the permutation (B, n) of the present nodes of x, sorted by ``order`` in [0, 1), to those of y in turn."""
    x = (order + (problems.u <= 0)).argsort(dim=1, stable=True)
    y = (problems.v <= 0).int().argsort(dim=1, stable=True)
    return torch.empty_like(x).scatter_(1, x, y)


def random_orders(problems: Problems, count: int) -> list[Tensor]:
    """Return ``count`` random orders (B, n) for `in_order`, the same in every call, whichever nodes are absent."""
    draw = torch.rand(problems.u.shape[1], count, generator=torch.Generator().manual_seed(0)).to(problems.u.device)
    place = ((problems.u > 0).cumsum(1) - 1).clamp_min(0)
    return list(draw[place].unbind(2))


def outward(problems: Problems) -> Tensor:
    """Return the costs (B, n, m) of the squared loss' first step from u vᵀ, which takes far nodes to far ones."""
    means = [(c @ w[:, :, None])[:, :, 0] for c, w in ((problems.cx, problems.u), (problems.cy, problems.v))]
    return problems.linear - 4 * (1 - problems.phi) * means[0][:, :, None] * means[1][:, None]


def negligible_gain(problems: Problems) -> Tensor:
    """Return (B,) gains that may be rounding errors."""
    scale = problems.linear.abs().amax((1, 2)) + problems.cx.square().amax((1, 2)) + problems.cx.amax((1, 2))
    return 16 * torch.finfo(scale.dtype).eps * scale


def distinct_starts(plan: Tensor, starts: int) -> Tensor:
    """Return the rows of the plans (S B, n, n) that no earlier start of the same pair has reached."""
    by_start = plan.view(starts, -1, plan[0].numel())
    repeated = [torch.zeros_like(by_start[0, :, 0], dtype=torch.bool)]
    repeated += [((by_start[:s] - by_start[s]).abs().amax(2) == 0).any(0) for s in range(1, starts)]
    return (~torch.cat(repeated)).nonzero().flatten()


def exchange(
    problems: Problems, plan: Tensor, term: Tensor, negligible: Tensor, iterations: int, starts: int
) -> Solution:
    """Exchange, where a plan is a permutation, the two targets that gain most, until none gains (our choice).

    The gain of every exchange follows from ``term`` = K(T), without an assignment. A start at the plan of an earlier
    one gets the value inf.
    """
    rows = distinct_starts(plan, starts)
    active, at, term = problems.select(rows), plan.index_select(0, rows), term.index_select(0, rows)
    value = torch.full_like(negligible, torch.inf).index_copy(0, rows, active.objective(at, term))
    unsettled = torch.zeros_like(value, dtype=torch.bool)
    whole = (at.amax(2) >= 0.999 * active.u).all(1).nonzero().flatten()  # every node sends all its weight to one
    rows, active, target, term = rows[whole], active.select(whole), at[whole].argmax(2), term[whole]
    plan = plan.index_copy(0, rows, permutation_plan(target, active.u))
    for _ in range(iterations):
        best, nodes = exchange_gains(active, target, term).flatten(1).min(1)
        gains = (best < -negligible.index_select(0, rows)).nonzero().flatten()
        if not len(gains):
            break
        rows, target, nodes, best, active = rows[gains], target[gains], nodes[gains], best[gains], active.select(gains)
        two = torch.stack([nodes // target.shape[1], nodes % target.shape[1]], 1)
        target = target.scatter(1, two, target.gather(1, two.flip(1)))
        term = permutation_term(active, target)
        plan = plan.index_copy(0, rows, permutation_plan(target, active.u))
        value = value.index_add(0, rows, best)
    else:
        unsettled = unsettled.index_fill(0, rows, True)
    return Solution(plan, value, unsettled)


def exchange_gains(problems: Problems, target: Tensor, term: Tensor) -> Tensor:
    """Return the change (B, n, n) of the objective where nodes i and k exchange their targets."""
    # moved_ik: the cost of node i at the target of k
    moved = problems.gradient(term).gather(2, target[:, None].expand_as(term))
    kept = moved.diagonal(dim1=1, dim2=2)
    cy = permuted_rows(problems.cy, target).gather(2, target[:, None].expand_as(term))
    shared = torch.minimum(problems.cx, cy) if problems.loss == "abs" else problems.cx * cy
    weight = problems.u[:, :, None] * (problems.u > 0)[:, None]
    change = moved + moved.mT - kept[:, :, None] - kept[:, None] - 8 * (1 - problems.phi) * weight * shared
    return weight * change
