import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import ot
import vireid.ot.graph
from vireid.ot import GraphOT, graph_ot

LOSSES, SOLVERS, PHI = ("abs", "square"), ("exact", "entropic"), (0.0, 0.3, 1.0)


def shuffled(pairs: int, nodes: int, dim: int, *, noise: float = 0.5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of graphs with the same nodes, seen with noise and in another order; and that order."""
    g = torch.Generator().manual_seed(seed)
    draw = torch.randn(3, pairs, nodes, dim, generator=g, dtype=torch.double)
    order = torch.rand(pairs, nodes, generator=g).argsort(1)
    y = (draw[0] + noise * draw[1]).gather(1, order[:, :, None].expand(-1, -1, dim))
    return draw[0] + noise * draw[2], y, order


def unrelated(pairs: int, n: int, m: int, dim: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(pairs, k, dim, generator=g, dtype=torch.double) for k in (n, m))
    return x, y


def distances(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """1 - cos node by node (n, m), (n, n), (m, m)."""

    def table(a: Tensor, b: Tensor) -> Tensor:
        rows = [[1 - (p @ q) / (p.norm() * q.norm()) if p.any() and q.any() else p.sum() * 0 + 1 for q in b] for p in a]
        return torch.stack([torch.stack(row) for row in rows])

    def within(a: Tensor) -> Tensor:
        return table(a, a) * (1 - torch.eye(len(a), dtype=a.dtype))

    return table(x, y), within(x), within(y)


def objective(x: Tensor, y: Tensor, plan: Tensor, phi: float, loss: str) -> Tensor:
    """The definition, with the four-index cost written out."""
    cost, cx, cy = distances(x, y)
    difference = cx[:, None, :, None] - cy[None, :, None, :]
    four = difference.abs() if loss == "abs" else difference.square()
    return phi * (cost * plan).sum() + (1 - phi) * (four * plan[:, :, None, None] * plan).sum()


def objectives(x: Tensor, y: Tensor, plan: Tensor, phi: float, loss: str) -> Tensor:
    return torch.stack([objective(a, b, t, phi, loss) for a, b, t in zip(x, y, plan, strict=True)])


def pot_best(x: Tensor, y: Tensor, phi: float, p: Tensor | None = None, q: Tensor | None = None) -> float:
    """POT's lowest squared cost from several starts: uvᵀ, the plan of φ = 1 and, for equal counts, the identity."""
    cost, cx, cy = (c.numpy() for c in distances(x, y))
    p, q = (ot.unif(k) if w is None else w.numpy() for k, w in ((len(x), p), (len(y), q)))
    starts = [None, ot.emd(p, q, cost)] + ([np.eye(len(x)) / len(x)] if len(x) == len(y) else [])
    solve = ot.gromov.fused_gromov_wasserstein2
    return min(float(solve(cost, cx, cy, p, q, alpha=1 - phi, G0=start)) for start in starts)


def uniform(n: int) -> Tensor:
    return torch.full((n,), 1 / n, dtype=torch.double)


def check_plan(out: GraphOT, u: Tensor, v: Tensor) -> None:
    assert (out.plan >= 0).all()
    assert_close(out.plan.sum(2), u.expand_as(out.plan[:, :, 0]), rtol=0, atol=1e-12)
    assert_close(out.plan.sum(1), v.expand_as(out.plan[:, 0]), rtol=0, atol=1e-12)
    rows, columns = (out.plan.sum(2) - u).abs().sum(1), (out.plan.sum(1) - v).abs().sum(1)
    assert_close(out.marginal_error, torch.maximum(rows, columns), rtol=0, atol=1e-15)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    n=st.integers(1, 6),
    m=st.integers(1, 6),
    phi=st.sampled_from(PHI),
    loss=st.sampled_from(LOSSES),
    equal=st.booleans(),
)
def test_cost_is_the_definition_at_the_plan_and_the_plan_meets_its_marginals(device, seed, n, m, phi, loss, equal):
    m = n if equal else m
    x, y = unrelated(2, n, m, 3, seed=seed)
    out = graph_ot(x.to(device), y.to(device), phi=phi, loss=loss)
    out = GraphOT(*(value.cpu() for value in out))
    check_plan(out, uniform(n), uniform(m))
    assert_close(out.cost, objectives(x, y, out.plan, phi, loss), rtol=0, atol=1e-12)


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_wasserstein_equals_emd(noise):
    x, y, _ = shuffled(12, 9, 6, noise=noise)
    exact, entropic = (graph_ot(x, y, phi=1, solver=solver) for solver in SOLVERS)
    best = torch.tensor([float(ot.emd2([], [], distances(a, b)[0].numpy())) for a, b in zip(x, y, strict=True)])
    assert not torch.equal(exact.plan.argmax(2), torch.arange(9).expand(12, 9))
    assert_close(exact.cost, best.double(), rtol=0, atol=1e-6)
    assert (entropic.cost >= exact.cost - 1e-12).all()
    assert (entropic.cost <= exact.cost * 1.01).all()
    check_plan(entropic, uniform(9), uniform(9))


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_square_loss_equals_pot(phi):
    x, y, order = shuffled(10, 10, 32, noise=0.5 if phi else 0.2)  # structure alone says less
    best = torch.tensor([pot_best(a, b, phi) for a, b in zip(x, y, strict=True)], dtype=torch.double)
    exact = graph_ot(x, y, phi=phi, loss="square", solver="exact", restarts=30)
    assert torch.equal(exact.plan.argmax(2), order.argsort(1))
    assert (exact.cost <= best + 1e-6).all()
    if phi:  # POT finds the optimum too; at 0 its three starts need not
        assert_close(exact.cost, best, rtol=0, atol=1e-6)
        entropic = graph_ot(x, y, phi=phi, loss="square", solver="entropic")
        assert (entropic.cost >= exact.cost - 1e-9).all()
        assert (entropic.cost <= exact.cost * 1.01).all()


def test_square_loss_of_unrelated_graphs_is_never_above_pot():
    x, y = unrelated(20, 8, 8, 5)
    exact = graph_ot(x, y, loss="square", restarts=20).cost
    best = torch.tensor([pot_best(a, b, 0.5) for a, b in zip(x, y, strict=True)], dtype=torch.double)
    assert (exact <= best + 1e-6).all()


def brute_force(x: Tensor, y: Tensor, phi: float, loss: str) -> Tensor:
    """The lowest cost (B,) of all permutations of 6 nodes."""
    plans = torch.stack([torch.eye(6, dtype=torch.double)[list(p)] for p in itertools.permutations(range(6))]) / 6
    best = []
    for a, b in zip(x, y, strict=True):
        cost, cx, cy = distances(a, b)
        four = (cx[:, None, :, None] - cy[None, :, None, :]).abs()
        four = four if loss == "abs" else four.square()
        quadratic = (plans.flatten(1) @ four.reshape(36, 36) * plans.flatten(1)).sum(1)
        best.append((phi * (plans * cost).sum((1, 2)) + (1 - phi) * quadratic).min())
    return torch.stack(best)


@pytest.mark.parametrize("phi", [0.0, 0.5])
@pytest.mark.parametrize("loss", LOSSES)
def test_exact_with_restarts_equals_brute_force_over_permutations(loss, phi):
    x, y = unrelated(6, 6, 6, 8)
    cost = graph_ot(x, y, phi=phi, loss=loss, restarts=30).cost
    assert_close(cost, brute_force(x, y, phi, loss), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("phi", "mean", "largest"), [(0.3, 0.02, 0.2), (0.5, 0.01, 0.1), (0.9, 0.002, 0.02)])
@pytest.mark.parametrize("loss", LOSSES)
def test_solvers_stay_near_brute_force_without_restarts(loss, phi, mean, largest):
    x, y = unrelated(20, 6, 6, 8)
    best = brute_force(x, y, phi, loss)
    for solver in SOLVERS:
        gap = graph_ot(x, y, phi=phi, loss=loss, solver=solver).cost / best - 1
        assert gap.min() > -1e-9
        assert gap.mean() < mean
        assert gap.max() < largest


@pytest.mark.parametrize("loss", LOSSES)
def test_a_pair_that_only_the_start_of_far_nodes_solves(loss):
    x, y = (side[13:14] for side in unrelated(20, 6, 6, 6))
    assert_close(graph_ot(x, y, phi=0.3, loss=loss).cost, brute_force(x, y, 0.3, loss), rtol=0, atol=1e-9)


def correlated(pairs: int, n: int, m: int) -> tuple[Tensor, Tensor]:
    """Nodes that are mixtures of few features, as those pooled from one small feature map are."""
    g = torch.Generator().manual_seed(0)
    sources = torch.rand(2, pairs, 12, 64, generator=g, dtype=torch.double)
    mixing = [(3 * torch.randn(pairs, k, 12, generator=g, dtype=torch.double)).softmax(2) for k in (n, m)]
    return mixing[0] @ sources[0], mixing[1] @ sources[1]


@pytest.mark.parametrize(("loss", "mean", "largest"), [("abs", 0.004, 0.02), ("square", 0.001, 0.003)])
def test_entropic_of_correlated_nodes_is_near_exact(loss, mean, largest):
    x, y = correlated(16, 14, 14)
    best = graph_ot(x, y, loss=loss, restarts=20).cost
    gap = graph_ot(x, y, loss=loss, solver="entropic").cost / best - 1
    assert gap.mean() < mean
    assert gap.max() < largest


@pytest.mark.parametrize(("loss", "mean"), [("abs", 0.005), ("square", 0.0025)])
def test_entropic_of_unequal_counts_has_a_second_start_and_those_it_is_told(loss, mean):
    x, y = correlated(8, 10, 7)
    plain, more = (graph_ot(x, y, phi=0.1, loss=loss, restarts=restarts).cost for restarts in (0, 3))
    assert (more <= plain).all()
    assert (more < plain * 0.995).any()
    assert (plain / more - 1).mean() < mean
    assert torch.equal(more[3:5], graph_ot(x[3:5], y[3:5], phi=0.1, loss=loss, restarts=3).cost)


@pytest.mark.parametrize("loss", LOSSES)
def test_entropic_is_within_one_percent_of_exact(loss):
    x, y, order = shuffled(10, 14, 64, noise=1.0)
    exact, entropic = (graph_ot(x, y, loss=loss, solver=solver) for solver in SOLVERS)
    assert torch.equal(exact.plan.argmax(2), order.argsort(1))
    assert (entropic.cost >= exact.cost - 1e-9).all()
    assert (entropic.cost <= exact.cost * 1.01).all()


def test_unequal_counts_and_weights_equal_pot():
    x, y = unrelated(8, 7, 10, 16)
    x[:, :, 0] += 2
    u, v = torch.rand(8, 7).double() + 0.1, torch.rand(10).double() + 0.1
    p, q = u / u.sum(1, keepdim=True), (v / v.sum()).expand(8, 10)
    linear = graph_ot(x, y, phi=1, weights_x=u, weights_y=v)
    check_plan(linear, p, q)
    for i in range(8):
        best = float(ot.emd2(p[i].numpy(), q[i].numpy(), distances(x[i], y[i])[0].numpy()))
        assert best - 1e-9 <= linear.cost[i] <= best * 1.01
    y = x[:, [3, 1, 6, 0, 2, 5, 4, 0, 2, 6]] + 0.3 * y  # some nodes twice: there is an optimum to be found
    fused = graph_ot(x, y, phi=0.5, loss="square", weights_x=u, weights_y=v)
    check_plan(fused, p, q)
    for i in range(8):
        best = pot_best(x[i], y[i], 0.5, p[i], q[i])
        assert fused.cost[i] <= best * 1.01


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("phi", PHI)
def test_masked_nodes_are_as_if_removed(loss, phi):
    x, y, _ = shuffled(6, 8, 12)
    present_x, present_y = torch.rand(6, 8) > 0.3, torch.rand(6, 8) > 0.3
    present_x[0], present_y[0] = True, True
    x, y = x.masked_fill(~present_x[:, :, None], math.nan), y.masked_fill(~present_y[:, :, None], math.nan)
    out = graph_ot(x, y, phi=phi, loss=loss, mask_x=present_x, mask_y=present_y, solver="entropic")
    mixed = graph_ot(x, y, phi=phi, loss=loss, mask_x=present_x, mask_y=present_y)
    assert torch.equal(out.cost, mixed.cost)
    for i in range(6):
        alone = graph_ot(x[i, present_x[i]][None], y[i, present_y[i]][None], phi=phi, loss=loss, solver="entropic")
        assert_close(out.cost[i], alone.cost[0], rtol=0, atol=1e-9)
        assert_close(out.plan[i][present_x[i]][:, present_y[i]], alone.plan[0], rtol=0, atol=1e-6)
        assert out.plan[i][~present_x[i]].eq(0).all()
        assert out.plan[i][:, ~present_y[i]].eq(0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_masks_with_equal_counts_are_solved_exactly(loss):
    x, y, _ = shuffled(6, 8, 12)
    present_x, present_y = (torch.rand(6, 8).argsort(1) < torch.tensor([[8], [1], [5], [3], [7], [6]]) for _ in "xy")
    for phi in PHI:
        out = graph_ot(x, y, phi=phi, loss=loss, mask_x=present_x, mask_y=present_y, solver="exact")
        for i in range(6):
            alone = graph_ot(x[i, present_x[i]][None], y[i, present_y[i]][None], phi=phi, loss=loss, solver="exact")
            assert_close(out.cost[i], alone.cost[0], rtol=0, atol=1e-12)
            assert_close(out.plan[i][present_x[i]][:, present_y[i]], alone.plan[0], rtol=0, atol=1e-12)


def test_a_side_without_nodes_costs_nothing():
    x, y, _ = shuffled(3, 4, 5)
    x.requires_grad_()
    mask = torch.tensor([[True] * 4, [False] * 4, [True, True, False, False]])
    for options in ({"mask_x": mask}, {"mask_x": mask, "mask_y": mask}):
        out = graph_ot(x, y, **options)
        assert out.cost[1] == 0
        assert out.plan[1].eq(0).all()
        (gradient,) = torch.autograd.grad(out.cost.sum(), x)
        assert gradient.isfinite().all()
        assert gradient[1].eq(0).all()
        assert gradient[0].any()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_invariances(solver, loss):
    x, y, _ = shuffled(5, 7, 16)
    options = {"loss": loss, "solver": solver}
    out = graph_ot(x, y, **options)
    other = graph_ot(y, x, **options)
    assert_close(other.cost, out.cost, rtol=1e-3, atol=0)
    rotation = torch.linalg.qr(torch.randn(16, 16).double()).Q
    assert_close(graph_ot(x @ rotation, y @ rotation, **options).cost, out.cost, rtol=1e-9, atol=1e-9)
    # structure alone does not see a rotation of one graph, features alone do
    moved = graph_ot(x, y @ rotation, phi=0, restarts=20, **options).cost
    assert_close(moved, graph_ot(x, y, phi=0, restarts=20, **options).cost, rtol=1e-9, atol=1e-9)
    assert (graph_ot(x, y @ rotation, **options).cost > out.cost + 0.1).all()
    lengths = torch.rand(5, 7, 1).double() + 0.5
    assert_close(graph_ot(x * lengths, y / lengths, **options).cost, out.cost, rtol=1e-9, atol=1e-9)
    nodes, pairs = torch.randperm(7), torch.randperm(5)
    permuted = graph_ot(x[pairs][:, nodes], y[pairs], **options)
    assert_close(permuted.cost, out.cost[pairs], rtol=1e-3, atol=0)
    assert torch.equal(permuted.plan.argmax(2), out.plan[pairs][:, nodes].argmax(2))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("phi", PHI)
def test_gradient_is_that_of_the_definition_at_the_plan(solver, loss, phi):
    x, y, _ = shuffled(3, 5, 4)
    x.requires_grad_()
    y.requires_grad_()
    out = graph_ot(x, y, phi=phi, loss=loss, solver=solver)
    assert not out.plan.requires_grad
    assert not out.marginal_error.requires_grad
    weights = torch.tensor([1.0, -2.0, 0.5]).double()
    ours = torch.autograd.grad(out.cost @ weights, (x, y))
    loop = torch.autograd.grad(objectives(x, y, out.plan, phi, loss) @ weights, (x, y))
    assert_close(ours, loop, rtol=0, atol=1e-12)
    assert all(g.abs().max() > 1e-3 for g in ours)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("phi", PHI)
def test_gradient_by_finite_differences(loss, phi):
    x, y, _ = shuffled(2, 4, 3)
    assert torch.autograd.gradcheck(
        lambda x, y: graph_ot(x, y, phi=phi, loss=loss).cost, (x.requires_grad_(), y.requires_grad_())
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_second_derivative_by_finite_differences(loss):
    x, y, _ = shuffled(2, 3, 3)
    assert torch.autograd.gradgradcheck(
        lambda x, y: graph_ot(x, y, loss=loss).cost, (x.requires_grad_(), y.requires_grad_())
    )


def test_the_gradient_to_one_side_is_that_of_both_and_autocast_plays_no_part():
    x, y, _ = shuffled(4, 5, 4)
    x, y = x.float().requires_grad_(), y.float().requires_grad_()
    of_x, of_y = torch.autograd.grad(graph_ot(x, y).cost.sum(), (x, y))
    assert torch.equal(torch.autograd.grad(graph_ot(x, y.detach()).cost.sum(), x)[0], of_x)
    assert torch.equal(torch.autograd.grad(graph_ot(x.detach(), y).cost.sum(), y)[0], of_y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(torch.autograd.grad(graph_ot(x, y).cost.sum(), x)[0], of_x)


@pytest.mark.parametrize("pairs", [1, 2, 3, 5])
def test_pairs_that_do_not_fit_the_cache_together_are_taken_in_parts(monkeypatch, pairs):
    x, y, _ = shuffled(5, 6, 8)
    expected = graph_ot(x, y)
    monkeypatch.setattr(vireid.ot.graph, "_CACHE", pairs * 12 * 8 * 8)
    out = graph_ot(x, y)
    assert_close(out.cost, expected.cost, rtol=0, atol=1e-14)
    assert torch.equal(out.plan, expected.plan)


def test_gradient_equals_pots():
    x, y, _ = shuffled(1, 8, 16)
    ours = x.clone().requires_grad_()
    graph_ot(ours, y, loss="square").cost.sum().backward()
    theirs = x.clone().requires_grad_()
    cost, cx, cy = distances(theirs[0], y[0])
    ot.gromov.fused_gromov_wasserstein2(cost, cx, cy, uniform(8), uniform(8), alpha=0.5).backward()
    assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_identical_graphs_zero_rows_and_dtypes(solver, loss, dtype, device):
    x = torch.randn(3, 6, 20).to(device, dtype)
    x[0, 2] = 0
    x[1] = 0
    x = x.requires_grad_()
    before = x.detach().clone()
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        out = graph_ot(x, x.detach(), loss=loss, solver=solver)
    assert out.cost.dtype == out.plan.dtype == torch.promote_types(dtype, torch.float32)
    assert_close(out.cost[2].item(), 0.0, rtol=0, atol=1e-5 if solver == "entropic" else 1e-6)
    # a zero row is at distance 1 from every node of the other graph
    assert out.cost[1] >= 0.5 - 1e-6
    if solver == "exact":
        assert_close(out.cost[1].item(), 0.5, rtol=0, atol=1e-6)
    out.cost.sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad[1].float().norm() < 10
    assert torch.equal(x.detach(), before)


@pytest.mark.parametrize("solver", SOLVERS)
def test_single_precision_is_close_to_double(solver):
    x, y, _ = shuffled(4, 14, 64)
    for loss in LOSSES:
        single = graph_ot(x.float(), y.float(), loss=loss, solver=solver)
        assert_close(single.cost.double(), graph_ot(x, y, loss=loss, solver=solver).cost, rtol=1e-4, atol=0)
        assert single.marginal_error.max() < 1e-5


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_pair_that_is_not_finite_spoils_no_other(solver, bad):
    x, y, _ = shuffled(3, 5, 8)
    expected = graph_ot(x, y, solver=solver).cost
    x[1, 2, 3] = bad
    out = graph_ot(x, y, solver=solver)
    assert out.cost[1].isnan()
    assert_close(out.cost[[0, 2]], expected[[0, 2]])


def test_by_hand():
    """Two nodes at a right angle, two at 60°: c = 1 and 1/2 within, and all between is known."""
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).double()
    y = torch.tensor([[[0.5, math.sqrt(0.75)], [2.0, 0.0]]]).double()
    out = graph_ot(x, y)
    # node 0 goes to node 1 at cost 0, node 1 to node 0 at 1 - cos 30°; both distances differ by 1/2
    assert_close(out.plan[0], torch.tensor([[0, 0.5], [0.5, 0]]).double())
    assert_close(out.cost.item(), 0.5 * (1 - math.sqrt(0.75)) / 2 + 0.5 * 2 * 0.25 * 0.5)
    square = graph_ot(x, y, loss="square", phi=0.25)
    assert_close(square.cost.item(), 0.25 * (1 - math.sqrt(0.75)) / 2 + 0.75 * 2 * 0.25 * 0.25)


def test_restarts_never_cost_more_and_are_the_same_each_time():
    x, y = unrelated(10, 9, 9, 12)
    plain, more = graph_ot(x, y, phi=0).cost, graph_ot(x, y, phi=0, restarts=20).cost
    assert (more <= plain + 1e-12).all()
    assert (more < plain - 1e-3).any()
    assert torch.equal(more, graph_ot(x, y, phi=0, restarts=20).cost)


def test_automatic_choice():
    x, y = unrelated(10, 9, 9, 12)
    exact, entropic = (graph_ot(x, y, phi=0, solver=solver) for solver in SOLVERS)
    assert not torch.equal(exact.plan, entropic.plan)
    assert torch.equal(graph_ot(x, y, phi=0).plan, exact.plan)
    weighted = graph_ot(x, y, phi=0, weights_x=uniform(9), solver="entropic")
    assert torch.equal(graph_ot(x, y, phi=0, weights_x=uniform(9)).plan, weighted.plan)


@pytest.mark.gpu
def test_automatic_choice_on_a_gpu_is_entropic():
    x, y = unrelated(10, 9, 9, 12)
    x, y = x.cuda(), y.cuda()
    assert torch.equal(graph_ot(x, y, phi=0).plan, graph_ot(x, y, phi=0, solver="entropic").plan)
    assert_close(graph_ot(x, y, solver="exact").cost.cpu(), graph_ot(x.cpu(), y.cpu()).cost)


def test_a_plan_that_misses_its_marginals_is_told():
    x, y = unrelated(4, 5, 7, 6)
    with pytest.warns(UserWarning, match=r"misses its marginals by \d\.\de-\d\d, more than the tolerance 1\.0e-30"):
        graph_ot(x, y, tolerance=1e-30)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_plans_that_have_not_settled_are_told(solver, loss):
    x, y = unrelated(12, 9, 9, 6)
    x[0] = y[0]
    with pytest.warns(UserWarning, match=r"(\d+) of 12 transport plans had not settled after iterations=1$") as told:
        one = graph_ot(x, y, loss=loss, solver=solver, iterations=1)
    assert len(told) == 1
    assert 6 <= int(str(told[0].message).split()[0]) < 12  # the first pair is solved at once
    assert one.marginal_error.max() < 1e-12
    assert (graph_ot(x, y, loss=loss, solver=solver).cost < one.cost - 1e-3).any()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("phi", [0.0, 0.5, 1.0])
def test_nothing_is_told_of_ordinary_data(loss, phi):
    u, v = torch.rand(6, 10) + 0.05, torch.rand(7) + 0.05
    mask = torch.rand(6, 10) > 0.3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for x, y in (shuffled(6, 10, 32)[:2], unrelated(6, 10, 10, 32), correlated(6, 10, 10)):
            for solver in SOLVERS:
                graph_ot(x, y, phi=phi, loss=loss, solver=solver)
            graph_ot(x, y[:, :7], phi=phi, loss=loss, weights_x=u, weights_y=v)
            graph_ot(x, y, phi=phi, loss=loss, mask_x=mask)


def test_the_weight_of_an_absent_node_is_not_looked_at():
    x, y = unrelated(2, 4, 5, 6)
    mask, weights = torch.tensor([[True, True, False, True]] * 2), torch.tensor([1.0, 2, math.nan, 3])
    out = graph_ot(x, y, mask_x=mask, weights_x=weights)
    assert_close(out.plan.sum(2), torch.tensor([[1, 2, 0, 3]] * 2).double() / 6, rtol=0, atol=1e-7)


def test_an_empty_batch():
    x, y = torch.zeros(0, 4, 3, requires_grad=True), torch.zeros(0, 4, 3)
    for solver, phi in itertools.product(SOLVERS, PHI):
        out = graph_ot(x, y, solver=solver, phi=phi)
        assert out.cost.shape == out.marginal_error.shape == (0,)
        assert out.plan.shape == (0, 4, 4)
        out.cost.sum().backward()


X, Y = torch.ones(2, 4, 3), torch.ones(2, 5, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: graph_ot(X.numpy(), Y), TypeError, "x must be a torch.Tensor, got ndarray"),
        (lambda: graph_ot(X, Y.long()), TypeError, "y must be floating point, got torch.int64"),
        (lambda: graph_ot(X[0], Y), ValueError, r"x must have shape \(B, nodes, d\), at least one node, got \(4, 3\)"),
        (lambda: graph_ot(X, Y[:, :0]), ValueError, r"y must have shape .* got \(2, 0, 3\)"),
        (lambda: graph_ot(X[:1], Y), ValueError, "one batch size, one feature size and one device"),
        (lambda: graph_ot(X, Y, phi=1.5), ValueError, r"phi must be in \[0, 1\], got 1.5"),
        (lambda: graph_ot(X, Y, phi="1"), TypeError, "phi must be a number"),
        (lambda: graph_ot(X, Y, loss="kl"), ValueError, "loss must be one of 'abs', 'square', got 'kl'"),
        (lambda: graph_ot(X, Y, solver="emd"), ValueError, "solver must be one of 'auto', 'exact', 'entropic'"),
        (lambda: graph_ot(X, Y, tolerance=0), ValueError, "tolerance must be above 0"),
        (lambda: graph_ot(X, Y, iterations=0), ValueError, "iterations must be at least 1, got 0"),
        (lambda: graph_ot(X, Y, restarts=-1), ValueError, "restarts must be at least 0, got -1"),
        (lambda: graph_ot(X, Y, weights_x=[1, 2]), TypeError, "weights_x must be a floating-point tensor"),
        (
            lambda: graph_ot(X, Y, weights_x=torch.tensor([1.0, -1, 1, 1])),
            ValueError,
            "weights_x must be finite and at least 0, got -1.0",
        ),
        (
            lambda: graph_ot(X, Y, weights_y=torch.ones(2, 5).fill_diagonal_(math.nan)),
            ValueError,
            "weights_y must be finite and at least 0, got nan",
        ),
        (lambda: graph_ot(X, Y, weights_y=torch.full((5,), math.inf)), ValueError, "finite and at least 0, got inf"),
        (lambda: graph_ot(X, Y, weights_y=torch.ones(4)), ValueError, r"weights_y must have shape \(5,\) or \(2, 5\)"),
        (lambda: graph_ot(X, Y, mask_x=torch.ones(2, 4)), TypeError, "mask_x must be a bool tensor, got torch.float32"),
        (
            lambda: graph_ot(X, Y, mask_y=torch.ones(5).bool()),
            ValueError,
            r"mask_y must have shape \(2, 5\), got",
        ),
        (lambda: graph_ot(X, Y, solver="exact"), ValueError, "equal counts and uniform weights, got 4 and 5 nodes"),
        (lambda: graph_ot(X, X, solver="exact", weights_x=torch.ones(4)), ValueError, "got weights"),
        (
            lambda: graph_ot(X, X, solver="exact", mask_x=torch.tensor([[True] * 4, [True, False, True, True]])),
            ValueError,
            "got 1 pairs with unequal counts, the first is pair 1",
        ),
        (
            lambda: graph_ot(X, Y, solver="exact", mask_y=torch.tensor([[True] * 4 + [False]] * 2)),
            ValueError,
            "got masks over 4 and 5 nodes",
        ),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
