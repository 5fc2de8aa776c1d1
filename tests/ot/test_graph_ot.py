import itertools
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import ot
import vireid.ot._functions
import vireid.ot.simplex
from reference.ot import brute_force, distances, objectives, pot
from vireid.ot import GraphOT, graph_ot
from vireid.ot.problem import Problems

LOSSES, SOLVERS, PHI = ("abs", "square"), ("exact", "entropic"), (0.0, 0.3, 1.0)


def shuffled(pairs: int, nodes: int, dim: int, *, noise: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of graphs with the same nodes, seen with noise and in another order; and that order."""
    g = torch.Generator().manual_seed(0)
    draw = torch.randn(3, pairs, nodes, dim, generator=g, dtype=torch.double)
    order = torch.rand(pairs, nodes, generator=g).argsort(1)
    y = (draw[0] + noise * draw[1]).gather(1, order[:, :, None].expand(-1, -1, dim))
    return draw[0] + noise * draw[2], y, order


def unrelated(pairs: int, n: int, m: int, dim: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(pairs, k, dim, generator=g, dtype=torch.double) for k in (n, m))
    return x, y


def correlated(pairs: int, n: int, m: int) -> tuple[Tensor, Tensor]:
    """Nodes that are mixtures of few features, as those pooled from one small feature map are."""
    g = torch.Generator().manual_seed(0)
    sources = torch.rand(2, pairs, 12, 64, generator=g, dtype=torch.double)
    mixing = [(3 * torch.randn(pairs, k, 12, generator=g, dtype=torch.double)).softmax(2) for k in (n, m)]
    return mixing[0] @ sources[0], mixing[1] @ sources[1]


def uniform(n: int) -> Tensor:
    return torch.full((n,), 1 / n, dtype=torch.double)


def random_weights(*shape: int) -> Tensor:
    weights = torch.rand(shape).double() + 0.1
    return weights / weights.sum(-1, keepdim=True)


def best_of_pot(x: Tensor, y: Tensor, phi: float, u: Tensor | None = None, v: Tensor | None = None) -> Tensor:
    """(B,) POT's lowest cost of the squared loss."""
    u, v = (uniform(s.shape[1]).expand(len(s), -1) if w is None else w for s, w in ((x, u), (y, v)))
    return torch.tensor([min(pot(*pair, phi, "square")) for pair in zip(x, y, u, v, strict=True)], dtype=torch.double)


def check_plan(out: GraphOT, u: Tensor, v: Tensor) -> None:
    assert (out.plan >= 0).all()
    assert_close(out.plan.sum(2), u.expand_as(out.plan[:, :, 0]), rtol=0, atol=1e-12)
    assert_close(out.plan.sum(1), v.expand_as(out.plan[:, 0]), rtol=0, atol=1e-12)
    rows, columns = (out.plan.sum(2) - u).abs().sum(1), (out.plan.sum(1) - v).abs().sum(1)
    assert_close(out.marginal_error, torch.maximum(rows, columns), rtol=0, atol=1e-15)


@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**31 - 1),
    n=st.integers(1, 6),
    m=st.integers(1, 6),
    phi=st.sampled_from(PHI),
    loss=st.sampled_from(LOSSES),
    solver=st.sampled_from(SOLVERS),
    weighted=st.booleans(),
)
def test_cost_is_the_definition_at_the_plan_and_the_plan_meets_its_marginals(
    device, seed, n, m, phi, loss, solver, weighted
):
    x, y = unrelated(2, n, m, 3, seed=seed)
    u, v = (random_weights(n), random_weights(m)) if weighted else (uniform(n), uniform(m))
    given = {"weights_x": u.to(device), "weights_y": v.to(device)} if weighted else {}
    out = graph_ot(x.to(device), y.to(device), phi=phi, loss=loss, solver=solver, **given)
    out = GraphOT(*(value.cpu() for value in out))
    check_plan(out, u, v)
    assert_close(out.cost, objectives(x, y, out.plan, phi, loss), rtol=0, atol=1e-12)


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_wasserstein_equals_emd(noise):
    x, y, _ = shuffled(6, 9, 6, noise=noise)
    exact, entropic = (graph_ot(x, y, phi=1, solver=solver) for solver in SOLVERS)
    best = torch.tensor([float(ot.emd2([], [], distances(a, b)[0].numpy())) for a, b in zip(x, y, strict=True)])
    assert not torch.equal(exact.plan.argmax(2), torch.arange(9).expand(6, 9))
    assert_close(exact.cost, best.double(), rtol=0, atol=1e-6)
    assert (entropic.cost >= exact.cost - 1e-12).all()
    assert (entropic.cost <= exact.cost * 1.01).all()
    check_plan(entropic, uniform(9), uniform(9))


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_square_loss_equals_pot(phi):
    x, y, order = shuffled(6, 10, 32, noise=0.5 if phi else 0.2)  # structure says less by itself
    best = best_of_pot(x, y, phi)
    exact = graph_ot(x, y, phi=phi, loss="square", solver="exact", restarts=30)
    assert torch.equal(exact.plan.argmax(2), order.argsort(1))
    assert (exact.cost <= best + 1e-6).all()
    if phi:  # POT finds the optimum too; at 0 its three starts need not
        assert_close(exact.cost, best, rtol=0, atol=1e-6)
        entropic = graph_ot(x, y, phi=phi, loss="square", solver="entropic")
        assert (entropic.cost >= exact.cost - 1e-9).all()
        assert (entropic.cost <= exact.cost * 1.01).all()


def test_square_loss_of_unrelated_graphs_is_never_above_pot():
    x, y = unrelated(10, 8, 8, 5)
    assert (graph_ot(x, y, loss="square", restarts=20).cost <= best_of_pot(x, y, 0.5) + 1e-6).all()


@pytest.mark.parametrize("phi", [0.0, 0.5])
@pytest.mark.parametrize("loss", LOSSES)
def test_exact_with_restarts_equals_brute_force_over_permutations(loss, phi):
    x, y = unrelated(4, 6, 6, 8)
    cost = graph_ot(x, y, phi=phi, loss=loss, restarts=30).cost
    assert_close(cost, brute_force(x, y, phi, loss), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("phi", "mean", "largest"), [(0.3, 0.02, 0.2), (0.5, 0.01, 0.1), (0.9, 0.002, 0.02)])
@pytest.mark.parametrize("loss", LOSSES)
def test_solvers_stay_near_brute_force_without_restarts(loss, phi, mean, largest):
    x, y = unrelated(12, 6, 6, 8)
    best = brute_force(x, y, phi, loss)
    for solver in SOLVERS:
        gap = graph_ot(x, y, phi=phi, loss=loss, solver=solver).cost / best - 1
        assert gap.min() > -1e-9
        assert gap.mean() < mean
        assert gap.max() < largest


@pytest.mark.parametrize("loss", LOSSES)
def test_a_pair_solved_only_from_the_start_of_far_nodes(loss):
    x, y = (side[13:14] for side in unrelated(20, 6, 6, 6))
    assert_close(graph_ot(x, y, phi=0.3, loss=loss).cost, brute_force(x, y, 0.3, loss), rtol=0, atol=1e-9)


# -- weights and unequal counts: the network simplex ----------------------------------------------------------------


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weighted", [False, True])
def test_weights_and_unequal_counts_are_never_above_pot(loss, phi, weighted):
    x, y = unrelated(4, 7, 5, 8)
    u, v = (random_weights(4, 7), random_weights(4, 5)) if weighted else (uniform(7), uniform(5))
    given = {"weights_x": u, "weights_y": v} if weighted else {}
    out = graph_ot(x, y, phi=phi, loss=loss, solver="exact", **given)
    check_plan(out, u, v)
    theirs = [pot(*pair, phi, loss) for pair in zip(x, y, u.expand(4, 7), v.expand(4, 5), strict=True)]
    from_independent, from_features = torch.tensor(theirs, dtype=torch.double).unbind(1)
    assert (out.cost <= from_independent + 1e-6).all()
    if phi:  # at 0 all plans are equally good for the features
        assert (out.cost <= from_features + 1e-6).all()


def test_related_graphs_of_unequal_size_are_solved_as_pot_solves_them():
    x, noise = unrelated(4, 7, 10, 16)
    x[:, :, 0] += 2
    y = x[:, [3, 1, 6, 0, 2, 5, 4, 0, 2, 6]] + 0.3 * noise  # some nodes twice: there is an optimum to be found
    u, v = random_weights(4, 7), random_weights(10).expand(4, 10)
    exact, entropic = (graph_ot(x, y, loss="square", weights_x=u, weights_y=v, solver=s).cost for s in SOLVERS)
    best = best_of_pot(x, y, 0.5, u, v)
    assert (exact <= best + 1e-6).all()
    assert_close(exact[[0, 2, 3]], best[[0, 2, 3]], rtol=0, atol=1e-6)  # POT's two starts miss the optimum of one pair
    assert (entropic >= exact - 1e-9).all()
    assert (entropic <= exact * 1.01).all()


def test_weighted_wasserstein_equals_emd():
    x, y = unrelated(4, 7, 10, 16)
    u, v = random_weights(4, 7), random_weights(10)
    exact, entropic = (graph_ot(x, y, phi=1, weights_x=u, weights_y=v, solver=s) for s in SOLVERS)
    best = [float(ot.emd2(u[i].numpy(), v.numpy(), distances(x[i], y[i])[0].numpy())) for i in range(4)]
    assert_close(exact.cost, torch.tensor(best, dtype=torch.double), rtol=0, atol=1e-9)
    assert (entropic.cost >= exact.cost - 1e-9).all()
    assert (entropic.cost <= exact.cost * 1.01).all()
    check_plan(entropic, u, v)


@pytest.mark.parametrize("phi", [0.0, 0.5])
@pytest.mark.parametrize("loss", LOSSES)
def test_weights_of_sixths_equal_brute_force_over_copies_of_the_nodes(loss, phi):
    """A node of weight 2/6 is two nodes of 1/6, and the best vertex of the plans sends copies to copies."""
    x, y = unrelated(4, 4, 3, 6)
    twice, thrice = torch.tensor([2, 1, 1, 2]), torch.tensor([3, 1, 2])
    best = brute_force(x.repeat_interleave(twice, 1), y.repeat_interleave(thrice, 1), phi, loss)
    cost = graph_ot(x, y, phi=phi, loss=loss, weights_x=twice.double(), weights_y=thrice.double(), restarts=99).cost
    if loss == "square":  # concave: the optimum is a vertex
        assert_close(cost, best, rtol=0, atol=1e-7)
    else:
        assert (cost <= best + 1e-7).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_the_network_simplex_finds_what_assignments_find(loss, monkeypatch):
    x, y, order = shuffled(4, 8, 32)
    for phi in (0.5, 1.0):
        assigned = graph_ot(x, y, phi=phi, loss=loss)
        with monkeypatch.context() as patch:
            patch.setattr(Problems, "assignable", lambda self: torch.zeros(len(self.u), dtype=torch.bool))
            simplex = graph_ot(x, y, phi=phi, loss=loss)
        assert torch.equal(simplex.plan.argmax(2), order.argsort(1))
        assert_close(simplex.plan, assigned.plan, rtol=0, atol=1e-9)
        assert_close(simplex.cost, assigned.cost, rtol=0, atol=1e-9)


def test_large_plans_do_without_the_four_index_tensor(monkeypatch):
    x, y = unrelated(2, 8, 6, 12)
    expected = graph_ot(x, y)
    monkeypatch.setattr(vireid.ot.simplex, "SMALL", 0)
    out = graph_ot(x, y)
    assert_close(out.cost, expected.cost, rtol=0, atol=1e-12)
    assert_close(out.plan, expected.plan, rtol=0, atol=1e-12)


def test_equal_weights_equal_no_weights(device):
    x, y = (side.to(device) for side in unrelated(4, 9, 9, 12))
    for solver in SOLVERS:
        plain = graph_ot(x, y, phi=0, solver=solver)
        weighted = graph_ot(x, y, phi=0, solver=solver, weights_x=torch.full((9,), 3.0, device=device))
        assert torch.equal(weighted.plan, plain.plan)


@pytest.mark.parametrize(("n", "m"), [(7, 7), (7, 5)])
@pytest.mark.parametrize(("loss", "phi"), [("abs", 0.3), ("square", 0.3), ("square", 1.0)])
@pytest.mark.parametrize("solver", SOLVERS)
def test_masked_nodes_are_as_if_removed(loss, phi, solver, n, m):
    x, y = unrelated(4, n, m, 12)
    present_x, present_y = torch.rand(4, n) > 0.3, torch.rand(4, m) > 0.3
    present_x[0], present_y[0] = True, True
    present_x[1, :3], present_y[1, :3] = True, True
    present_x[1, 3:], present_y[1, 3:] = False, False  # equal counts: by assignments, with others by the simplex
    x, y = x.masked_fill(~present_x[:, :, None], math.nan), y.masked_fill(~present_y[:, :, None], math.nan)
    out = graph_ot(x, y, phi=phi, loss=loss, mask_x=present_x, mask_y=present_y, solver=solver)
    for i in range(4):
        a, b = x[i, present_x[i]][None], y[i, present_y[i]][None]
        if n != m and a.shape == b.shape:  # assignments or exchanges solve it where nothing is masked
            assert out.cost[i] >= brute_force(a, b, phi, loss) - 1e-7
            continue
        removed = graph_ot(a, b, phi=phi, loss=loss, solver=solver)
        assert_close(out.cost[i], removed.cost[0], rtol=0, atol=1e-9)
        assert_close(out.plan[i][present_x[i]][:, present_y[i]], removed.plan[0], rtol=0, atol=1e-6)
        assert out.plan[i][~present_x[i]].eq(0).all()
        assert out.plan[i][:, ~present_y[i]].eq(0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_masks_with_equal_counts_are_solved_by_assignment(loss):
    x, y, _ = shuffled(6, 8, 12)
    present_x, present_y = (torch.rand(6, 8).argsort(1) < torch.tensor([[8], [1], [5], [3], [7], [6]]) for _ in "xy")
    for phi in PHI:
        out = graph_ot(x, y, phi=phi, loss=loss, mask_x=present_x, mask_y=present_y, solver="exact")
        for i in range(6):
            removed = graph_ot(x[i, present_x[i]][None], y[i, present_y[i]][None], phi=phi, loss=loss, solver="exact")
            assert_close(out.cost[i], removed.cost[0], rtol=0, atol=1e-12)
            assert_close(out.plan[i][present_x[i]][:, present_y[i]], removed.plan[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_side_without_nodes_costs_nothing(weighted):
    x, y, _ = shuffled(3, 4, 5)
    x.requires_grad_()
    mask = torch.tensor([[True] * 4, [False] * 4, [True, True, False, False]])
    weights = {"weights_x": random_weights(4)} if weighted else {}
    for options in ({"mask_x": mask}, {"mask_x": mask, "mask_y": mask}):
        out = graph_ot(x, y, **options, **weights)
        assert out.cost[1] == 0
        assert out.plan[1].eq(0).all()
        (gradient,) = torch.autograd.grad(out.cost.sum(), x)
        assert gradient.isfinite().all()
        assert gradient[1].eq(0).all()
        assert gradient[0].any()


def test_the_weight_of_an_absent_node_is_ignored():
    x, y = unrelated(2, 4, 5, 6)
    mask, weights = torch.tensor([[True, True, False, True]] * 2), torch.tensor([1.0, 2, math.nan, 3])
    for solver in SOLVERS:
        out = graph_ot(x, y, mask_x=mask, weights_x=weights, solver=solver)
        assert_close(out.plan.sum(2), torch.tensor([[1, 2, 0, 3]] * 2).double() / 6, rtol=0, atol=1e-7)


# -- the entropic solver -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "mean", "largest"), [("abs", 0.004, 0.02), ("square", 0.001, 0.003)])
def test_entropic_of_correlated_nodes_is_near_exact(loss, mean, largest):
    x, y = correlated(8, 14, 14)
    best = graph_ot(x, y, loss=loss, restarts=20).cost
    gap = graph_ot(x, y, loss=loss, solver="entropic").cost / best - 1
    assert gap.mean() < mean
    assert gap.max() < largest


@pytest.mark.parametrize(("loss", "mean"), [("abs", 0.005), ("square", 0.0025)])
@pytest.mark.parametrize("solver", SOLVERS)
def test_unequal_counts_use_the_built_in_starts_and_the_restarts(loss, mean, solver):
    x, y = correlated(8, 10, 7)
    options = {"phi": 0.1, "loss": loss, "solver": solver}
    plain, more = (graph_ot(x, y, restarts=restarts, **options).cost for restarts in (0, 3))
    assert (more <= plain).all()
    assert (more < plain * (0.995 if solver == "entropic" else 0.9999)).any()
    if solver == "entropic":
        assert (plain / more - 1).mean() < mean
    assert torch.equal(more[3:5], graph_ot(x[3:5], y[3:5], restarts=3, **options).cost)


@pytest.mark.parametrize("loss", LOSSES)
def test_entropic_is_within_one_percent_of_exact(loss):
    x, y, order = shuffled(6, 14, 64, noise=1.0)
    exact, entropic = (graph_ot(x, y, loss=loss, solver=solver) for solver in SOLVERS)
    assert torch.equal(exact.plan.argmax(2), order.argsort(1))
    assert (entropic.cost >= exact.cost - 1e-9).all()
    assert (entropic.cost <= exact.cost * 1.01).all()


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [4, 3])  # by assignments, by the network simplex
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("phi", PHI)
def test_gradient_is_that_of_the_definition_at_the_plan(solver, loss, phi, nodes):
    x, y, _ = shuffled(3, 4, 4)
    y = y[:, :nodes].contiguous()
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
@pytest.mark.parametrize(("phi", "nodes"), [(0.0, 3), (0.3, 3), (1.0, 3), (0.3, 2)])
def test_gradient_by_finite_differences(loss, phi, nodes):
    x, y, _ = shuffled(1, 3, 3)
    inputs = x.requires_grad_(), y[:, :nodes].contiguous().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: graph_ot(x, y, phi=phi, loss=loss).cost, inputs)


@pytest.mark.parametrize("loss", LOSSES)
def test_second_derivative_by_finite_differences(loss):
    x, y, _ = shuffled(1, 3, 2)
    inputs = x.requires_grad_(), y.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x, y: graph_ot(x, y, loss=loss).cost, inputs)


def test_gradient_equals_pots():
    x, y, _ = shuffled(1, 8, 16)
    ours = x.clone().requires_grad_()
    graph_ot(ours, y, loss="square").cost.sum().backward()
    theirs = x.clone().requires_grad_()
    cost, cx, cy = distances(theirs[0], y[0])
    ot.gromov.fused_gromov_wasserstein2(cost, cx, cy, uniform(8), uniform(8), alpha=0.5).backward()
    assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-9)


@pytest.mark.parametrize("pairs", [1, 2, 3])
def test_pairs_that_do_not_fit_the_cache_together_are_taken_in_groups(monkeypatch, pairs):
    x, y, _ = shuffled(5, 6, 8)
    expected = graph_ot(x, y)
    monkeypatch.setattr(vireid.ot._functions, "_CACHE", pairs * 12 * 8 * 8)
    out = graph_ot(x, y)
    assert_close(out.cost, expected.cost, rtol=0, atol=1e-14)
    assert torch.equal(out.plan, expected.plan)


# -- all solvers -------------------------------------------------------------------------------------------------------


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
    # structure does not see a rotation of one graph, features do
    moved = graph_ot(x, y @ rotation, phi=0, restarts=20, **options).cost
    assert_close(moved, graph_ot(x, y, phi=0, restarts=20, **options).cost, rtol=1e-9, atol=1e-9)
    assert (graph_ot(x, y @ rotation, **options).cost > out.cost + 0.1).all()
    lengths = torch.rand(5, 7, 1).double() + 0.5
    assert_close(graph_ot(x * lengths, y / lengths, **options).cost, out.cost, rtol=1e-9, atol=1e-9)
    nodes, pairs = torch.randperm(7), torch.randperm(5)
    permuted = graph_ot(x[pairs][:, nodes], y[pairs], **options)
    assert_close(permuted.cost, out.cost[pairs], rtol=1e-3, atol=0)
    assert torch.equal(permuted.plan.argmax(2), out.plan[pairs][:, nodes].argmax(2))


def test_the_gradient_of_one_side_is_that_of_both_and_autocast_has_no_effect():
    x, y, _ = shuffled(4, 5, 4)
    x, y = x.float().requires_grad_(), y.float().requires_grad_()
    of_x, of_y = torch.autograd.grad(graph_ot(x, y).cost.sum(), (x, y))
    assert torch.equal(torch.autograd.grad(graph_ot(x, y.detach()).cost.sum(), x)[0], of_x)
    assert torch.equal(torch.autograd.grad(graph_ot(x.detach(), y).cost.sum(), y)[0], of_y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(torch.autograd.grad(graph_ot(x, y).cost.sum(), x)[0], of_x)


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
    x, y = unrelated(6, 9, 9, 12)
    plain, more = graph_ot(x, y, phi=0).cost, graph_ot(x, y, phi=0, restarts=20).cost
    assert (more <= plain + 1e-12).all()
    assert (more < plain - 1e-3).any()
    assert torch.equal(more, graph_ot(x, y, phi=0, restarts=20).cost)


@pytest.mark.gpu
def test_automatic_choice_on_a_gpu_is_entropic():
    x, y = unrelated(6, 9, 9, 12)
    x, y = x.cuda(), y.cuda()
    assert torch.equal(graph_ot(x, y, phi=0).plan, graph_ot(x, y, phi=0, solver="entropic").plan)
    assert_close(graph_ot(x, y, solver="exact").cost.cpu(), graph_ot(x.cpu(), y.cpu()).cost)


@pytest.mark.parametrize("m", [14, 9])
@pytest.mark.parametrize("solver", SOLVERS)
def test_single_precision_is_close_to_double(solver, m):
    x, y, _ = shuffled(2, 14, 64)
    y = y[:, :m]
    for loss in LOSSES:
        single = graph_ot(x.float(), y.float(), loss=loss, solver=solver)
        assert_close(single.cost.double(), graph_ot(x, y, loss=loss, solver=solver).cost, rtol=1e-4, atol=0)
        assert single.marginal_error.max() < (1e-6 if solver == "exact" else 1e-5)


def test_automatic_choice_on_the_cpu_is_exact():
    x, y = unrelated(3, 8, 8, 12)
    for options in ({"phi": 0}, {"weights_x": random_weights(8)}, {"mask_x": torch.rand(3, 8) > 0.3}):
        exact, entropic = (graph_ot(x, y, solver=solver, **options).plan for solver in SOLVERS)
        assert not torch.equal(exact, entropic)
        assert torch.equal(graph_ot(x, y, **options).plan, exact)


def test_a_plan_that_misses_its_marginals_gives_a_warning():
    x, y = unrelated(4, 5, 7, 6)
    for solver in SOLVERS:
        with pytest.warns(UserWarning, match=r"misses its marginals by \d\.\de-\d\d, more than the tolerance 1\.0e-30"):
            graph_ot(x, y, tolerance=1e-30, solver=solver)


@pytest.mark.parametrize("m", [9, 7])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_unsettled_plans_give_a_warning(solver, loss, m):
    x, y = unrelated(12, 9, m, 6)
    x[0, :m] = y[0]
    x[0, m:] = y[0, 0]
    with pytest.warns(UserWarning, match=r"(\d+) of 12 transport plans had not settled after iterations=1$") as told:
        one = graph_ot(x, y, loss=loss, solver=solver, iterations=1)
    assert len(told) == 1
    assert 6 <= int(str(told[0].message).split()[0]) < 12 + (m < 9)  # the first pair is solved at once if equal
    assert one.marginal_error.max() < 1e-12
    assert (graph_ot(x, y, loss=loss, solver=solver).cost < one.cost - 1e-3).any()


@pytest.mark.parametrize(("loss", "phi"), [("abs", 0.0), ("square", 0.0), ("abs", 0.5), ("square", 0.5), ("abs", 1.0)])
def test_ordinary_data_gives_no_warning(loss, phi):
    u, v = torch.rand(2, 7) + 0.05, torch.rand(5) + 0.05
    mask = torch.rand(2, 7) > 0.3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for x, y in (shuffled(2, 7, 32)[:2], unrelated(2, 7, 7, 32), correlated(2, 7, 7)):
            for solver in SOLVERS:
                graph_ot(x, y, phi=phi, loss=loss, solver=solver)
                graph_ot(x, y[:, :5], phi=phi, loss=loss, weights_x=u, weights_y=v, solver=solver)
            graph_ot(x, y, phi=phi, loss=loss, mask_x=mask)


def test_an_empty_batch():
    for solver, phi, m in itertools.product(SOLVERS, PHI, (4, 5)):
        x, y = torch.zeros(0, 4, 3, requires_grad=True), torch.zeros(0, m, 3)
        out = graph_ot(x, y, solver=solver, phi=phi)
        assert out.cost.shape == out.marginal_error.shape == (0,)
        assert out.plan.shape == (0, 4, m)
        out.cost.sum().backward()


X, Y = torch.ones(2, 4, 3), torch.ones(2, 5, 3)


@pytest.mark.parametrize(
    ("x", "y", "options", "error", "message"),
    [
        (X.numpy(), Y, {}, TypeError, "x must be a torch.Tensor, got ndarray"),
        (X, Y.long(), {}, TypeError, "y must be floating point, got torch.int64"),
        (X[0], Y, {}, ValueError, r"x must have shape \(B, n, d\), got \(4, 3\)"),
        (X, Y[:, :0], {}, ValueError, r"y must have at least one node and one feature, got shape \(2, 0, 3\)"),
        (X[..., :0], Y[..., :0], {}, ValueError, "x must have at least one node and one feature"),
        (X[:1], Y, {}, ValueError, r"y must have shape \(1, m, 3\), got \(2, 5, 3\)"),
        (X, Y[:, :, :2], {}, ValueError, r"y must have shape \(2, m, 3\), got \(2, 5, 2\)"),
        (X, Y.to("meta"), {}, ValueError, "y must be on cpu like the other arguments, got meta"),
        (X, Y, {"mask_y": torch.ones(2, 5, dtype=torch.bool, device="meta")}, ValueError, "mask_y must be on cpu"),
        (X, Y, {"weights_y": torch.ones(5, device="meta")}, ValueError, "weights_y must be on cpu"),
        (X, Y, {"phi": 1.5}, ValueError, r"phi must be at least 0 and at most 1, got 1\.5"),
        (X, Y, {"phi": "1"}, TypeError, "phi must be a number"),
        (X, Y, {"loss": "kl"}, ValueError, "loss must be one of 'abs', 'square', got 'kl'"),
        (X, Y, {"solver": "emd"}, ValueError, "solver must be one of 'auto', 'exact', 'entropic'"),
        (X, Y, {"tolerance": 0}, ValueError, "tolerance must be above 0"),
        (X, Y, {"iterations": 0}, ValueError, "iterations must be at least 1, got 0"),
        (X, Y, {"restarts": -1}, ValueError, "restarts must be at least 0, got -1"),
        (X, Y, {"weights_x": [1, 2]}, TypeError, "weights_x must be a torch.Tensor, got list"),
        (X, Y, {"weights_x": torch.ones(4).int()}, TypeError, "weights_x must be floating point, got torch.int32"),
        (X, Y, {"weights_x": torch.tensor([1.0, -1, 1, 1])}, ValueError, "weights_x must be finite and .* got -1.0"),
        (X, Y, {"weights_y": torch.ones(2, 5).fill_diagonal_(math.nan)}, ValueError, "at least 0, got nan"),
        (X, Y, {"weights_y": torch.full((5,), math.inf)}, ValueError, "finite and at least 0, got inf"),
        (X, Y, {"weights_y": torch.ones(4)}, ValueError, r"weights_y must have shape \(5,\), got \(4,\)"),
        (X, Y, {"weights_y": torch.ones(2, 4)}, ValueError, r"weights_y must have shape \(2, 5\), got \(2, 4\)"),
        (X, Y, {"mask_x": torch.ones(2, 4)}, TypeError, "mask_x must be bool, got torch.float32"),
        (X, Y, {"mask_y": torch.ones(5).bool()}, ValueError, r"mask_y must have shape \(2, 5\), got \(5,\)"),
    ],
)
def test_bad_arguments_are_named(x, y, options, error, message):
    with pytest.raises(error, match=message):
        graph_ot(x, y, **options)


@pytest.mark.parametrize("scale", [1e300, 1e-300, 1e-305])
def test_weights_of_any_size_count_by_their_ratio(scale):
    """Weights of float64 do not overflow or vanish next to features of float32."""
    x, y, w = torch.randn(1, 3, 4), torch.randn(1, 3, 4), torch.tensor([1.0, 2.0, 3.0]).double()
    expected = graph_ot(x, y, weights_x=w)
    assert_close(graph_ot(x, y, weights_x=w * scale).plan, expected.plan)
    for near in (1e38, 1e-38):
        assert_close(graph_ot(x, y, weights_x=w.float() * near).cost, expected.cost)


@pytest.mark.parametrize("scale", [1e150, 1e30, 1e20, 1e-13, 1e-30, 1e-150])
@pytest.mark.parametrize("solver", ["exact", "entropic"])
def test_costs_do_not_depend_on_the_size_of_all_features(scale, solver):
    x, y = torch.randn(2, 3, 4).double(), torch.randn(2, 3, 4).double()
    ours, theirs = (x * scale).requires_grad_(), x.requires_grad_()
    out, expected = graph_ot(ours, y * scale, solver=solver), graph_ot(theirs, y, solver=solver)
    assert_close(out.cost, expected.cost)
    assert_close(out.plan, expected.plan)
    out.cost.sum().backward()
    expected.cost.sum().backward()
    assert_close(ours.grad * scale, theirs.grad)
    if 1e-37 < scale < 1e37:
        narrow = graph_ot(ours.float(), (y * scale).float(), solver=solver).cost
        assert_close(narrow.double(), expected.cost, rtol=1e-5, atol=1e-5)
