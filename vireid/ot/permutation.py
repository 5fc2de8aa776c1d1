"""Plans that send every node to one other: what both solvers do with them."""

import torch
from torch import Tensor

from vireid.ot.structure import Found, Pairs


def permuted_rows(c: Tensor, target: Tensor) -> Tensor:
    """(B, n, m) whose row i is row ``target_i`` (B, n) of ``c``."""
    first = torch.arange(len(c), device=c.device)[:, None] * c.shape[1]
    return c.flatten(0, 1).index_select(0, (first + target).flatten()).unflatten(0, target.shape)


def permutation_together(pairs: Pairs, target: Tensor) -> Tensor:
    """K(T) (B, n, n) of the plan that sends each node i to ``target_i`` (B, n), where all weights are equal."""
    cy = permuted_rows(pairs.cy, target)
    weight = pairs.u.amax(1)[:, None, None]
    if pairs.loss == "square":
        return pairs.cx @ cy * weight
    # min(a, b) = (a + b - |a - b|) / 2
    apart = torch.cdist(pairs.cx, cy.mT.contiguous(), p=1)
    return (pairs.cx.sum(2)[:, :, None] + cy.sum(1)[:, None] - apart) * (weight / 2)


def permutation_plan(target: Tensor, u: Tensor) -> Tensor:
    """The plan (B, n, n) that sends each node i, with all its weight, to ``target_i``."""
    return u.new_zeros(*u.shape, u.shape[1]).scatter_(2, target[:, :, None], u[:, :, None])


def is_permutation(plan: Tensor, u: Tensor) -> Tensor:
    """(B,) whether every node sends all its weight to one node."""
    return (plan.amax(2) >= 0.999 * u).all(1)


def greedy(score: Tensor, pairs: Pairs) -> Tensor:
    """A permutation (B, n) of high ``score`` (B, n, n): the highest first, of what is left; on the device.

    Present nodes go to present ones, of which there must be as many.
    """
    score = score.masked_fill((pairs.u > 0)[:, :, None] != (pairs.v > 0)[:, None], -torch.inf)
    target = torch.zeros_like(score[:, 0], dtype=torch.long)
    nodes = torch.arange(score.shape[1], device=score.device)
    for _ in range(len(nodes)):
        highest = score.flatten(1).argmax(1, keepdim=True)
        row, column = highest // len(nodes), highest % len(nodes)
        target.scatter_(1, row, column)
        score = score.masked_fill((nodes == row)[:, :, None] | (nodes == column)[:, None], -torch.inf)
    return target


def in_order(pairs: Pairs, order: Tensor) -> Tensor:
    """The permutation (B, n) of the present nodes of x, sorted by ``order`` in [0, 1), to those of y as they come."""
    x = (order + (pairs.u <= 0)).argsort(dim=1, stable=True)
    y = (pairs.v <= 0).int().argsort(dim=1, stable=True)
    return torch.empty_like(x).scatter_(1, x, y)


def random_orders(pairs: Pairs, count: int) -> list[Tensor]:
    """``count`` random orders (B, n) for `in_order`, the same in every call; absent nodes play no part in them."""
    draw = torch.rand(pairs.u.shape[1], count, generator=torch.Generator().manual_seed(0)).to(pairs.u.device)
    place = ((pairs.u > 0).cumsum(1) - 1).clamp_min(0)
    return list(draw[place].unbind(2))


def outward(pairs: Pairs) -> Tensor:
    """Costs (B, n, m) of the first step from u vᵀ, for the squared loss: far nodes go to nodes that are far as well."""
    means = [(c @ w[:, :, None])[:, :, 0] for c, w in ((pairs.cx, pairs.u), (pairs.cy, pairs.v))]
    return pairs.linear - 4 * (1 - pairs.phi) * means[0][:, :, None] * means[1][:, None]


def negligible_gain(pairs: Pairs) -> Tensor:
    """(B,) a gain that rounding could have made."""
    scale = pairs.linear.abs().amax((1, 2)) + pairs.cx.square().amax((1, 2)) + pairs.cx.amax((1, 2))
    return 16 * torch.finfo(scale.dtype).eps * scale


def alone(plan: Tensor, starts: int) -> Tensor:
    """Rows of the plans (S B, n, n) that no earlier start of the same pair has come to as well."""
    each = plan.view(starts, -1, plan[0].numel())
    repeated = [torch.zeros_like(each[0, :, 0], dtype=torch.bool)]
    repeated += [((each[:s] - each[s]).abs().amax(2) == 0).any(0) for s in range(1, starts)]
    return (~torch.cat(repeated)).nonzero().flatten()


def exchange(pairs: Pairs, plan: Tensor, both: Tensor, negligible: Tensor, iterations: int, starts: int) -> Found:
    """Where a plan is a permutation, the exchange of two targets that gains most, until none gains.

    (Ours.) The gain of every exchange follows from K(T), without an assignment. A start that has come to where an
    earlier one is has the value inf.
    """
    moving = alone(plan, starts)
    now, at, both = pairs.take(moving), plan.index_select(0, moving), both.index_select(0, moving)
    value = torch.full_like(negligible, torch.inf).index_copy(0, moving, now.objective(at, both))
    unsettled = torch.zeros_like(value, dtype=torch.bool)
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
    else:
        unsettled = unsettled.index_fill(0, moving, True)
    return Found(plan, value, unsettled)
