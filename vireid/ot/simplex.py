"""Conditional gradient by POT's network simplex, for any counts and weights."""

from collections.abc import Callable

import numpy as np
import torch

from vireid.ot.problem import Problems, QuadraticTerm, Solution

RANDOM_STARTS = 4  # (our choice)
SMALL = 1024  # cells of a plan, up to which the four-index tensor is faster than `QuadraticTerm`
SETTLED = 1e-9  # a gain below it, absolute or relative, is the last (POT's own setting)


def solve_by_simplex(problems: Problems, iterations: int, restarts: int) -> Solution:
    """Solve pair by pair, in double precision, and return the best of all starts.

    The starts are u vᵀ, the plan that is best for the features, and 4 + ``restarts`` plans halfway between u vᵀ and
    that of random costs.
    """
    plan = torch.zeros_like(problems.linear)
    value, unsettled = torch.zeros_like(plan[:, 0, 0]), torch.zeros_like(plan[:, 0, 0], dtype=torch.bool)
    for b in range(len(plan)):
        i, j = problems.u[b].nonzero().flatten(), problems.v[b].nonzero().flatten()
        if len(i):
            best, value[b], unsettled[b] = _best_plan(_one(problems, b, i, j), iterations, restarts)
            plan[b, i[:, None], j] = torch.from_numpy(best).to(plan)
    return Solution(plan, value, unsettled)


def _one(problems: Problems, b: int, i: torch.Tensor, j: torch.Tensor) -> Problems:
    """Return problem ``b`` of the nodes ``i`` and ``j`` only, in double precision on the CPU."""
    u, v = problems.u[b, i].double().cpu(), problems.v[b, j].double().cpu()
    linear, cx, cy = (
        c[b, rows[:, None], columns].double().cpu()[None]
        for c, rows, columns in ((problems.linear, i, j), (problems.cx, i, i), (problems.cy, j, j))
    )
    return Problems(linear, cx, cy, (u / u.sum())[None], (v / v.sum())[None], problems.phi, problems.loss)


def _best_plan(one: Problems, iterations: int, restarts: int) -> tuple[np.ndarray, float, bool]:
    """Return the best plan (n, m) of a single problem, its value, and whether ``iterations`` were used up."""
    from ot import emd

    linear, u, v = (x[0].numpy() for x in (one.linear, one.u, one.v))
    features = emd(u, v, linear)
    if one.phi == 1:
        return features, float((linear * features).sum()), False
    term, independent = _quadratic_term(one), np.outer(u, v)
    draws = np.random.default_rng(0).random((RANDOM_STARTS + restarts, *linear.shape))
    starts = [independent, features, *((independent + emd(u, v, costs)) / 2 for costs in draws)]
    ends = [_descend(linear, u, v, term, -2 * (1 - one.phi), start, iterations) for start in starts]
    return min(ends, key=lambda end: end[1])


def _quadratic_term(one: Problems) -> Callable[[np.ndarray], np.ndarray]:
    """Return K of a single problem as a function of a plan (n, m)."""
    cx, cy = one.cx[0].numpy(), one.cy[0].numpy()
    if one.loss == "square":
        return lambda plan: cx @ plan @ cy
    shape = len(cx), len(cy)
    if shape[0] * shape[1] > SMALL:
        term = QuadraticTerm.of(one)
        return lambda plan: term(torch.from_numpy(plan)[None])[0].numpy()
    four = np.minimum(cx[:, None, :, None], cy[None, :, None, :]).reshape(shape[0] * shape[1], -1)
    return lambda plan: (four @ plan.ravel()).reshape(shape)


def _descend(
    linear: np.ndarray,
    u: np.ndarray,
    v: np.ndarray,
    term: Callable[[np.ndarray], np.ndarray],
    factor: float,
    start: np.ndarray,
    iterations: int,
) -> tuple[np.ndarray, float, bool]:
    """Minimize ⟨linear, T⟩ + factor ⟨K(T), T⟩ from ``start``, K being ``term``; return as `_best_plan` does."""
    from ot.optim import cg, solve_1d_linesearch_quad

    def quadratic(plan: np.ndarray) -> float:
        return factor * float((term(plan) * plan).sum())

    def slope(plan: np.ndarray) -> np.ndarray:
        gradient = 2 * factor * term(plan)
        return gradient - gradient.min()  # the network simplex takes no costs below 0; a constant changes no plan

    def line_search(
        _objective: object, _plan: object, step: np.ndarray, gradient: np.ndarray, value: float, slope: np.ndarray
    ) -> tuple[float, int, float, np.ndarray]:
        change = 2 * factor * term(step)
        a, b = float((change * step).sum()) / 2, float((gradient * step).sum())
        length = solve_1d_linesearch_quad(a, b)
        slope = slope + length * change
        return length, 1, value + a * length**2 + b * length, slope - slope.min()

    settled = {"stopThr": SETTLED, "stopThr2": SETTLED}
    plan, log = cg(u, v, linear, 1, quadratic, slope, start, line_search, numItermax=iterations, log=True, **settled)
    *_, last, value = log["loss"]
    stopped = bool(len(log["loss"]) > iterations and last - value >= SETTLED * max(1, abs(value)))
    return plan, float((linear * plan).sum()) + quadratic(plan), stopped
