import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from reference import g2da
from vireid.losses import GraphOTLoss, graph_ot_loss
from vireid.ot import graph_ot

LOSSES, SOLVERS, PAIRS = ("abs", "square"), ("exact", "entropic"), ("all", "one_to_one")


def people(labels: Tensor, *, nodes: int = 5, dim: int = 8, seed: int = 0) -> Tensor:
    """Graphs (B, n, d) of images: a person's own nodes, each image with noise and in an order of its own."""
    g = torch.Generator().manual_seed(seed)
    persons, place = labels.unique(return_inverse=True)
    base = torch.randn(len(persons), nodes, dim, generator=g, dtype=torch.double)[place]
    order = torch.rand(len(labels), nodes, generator=g).argsort(1)
    noise = 0.5 * torch.randn(len(labels), nodes, dim, generator=g, dtype=torch.double)
    return base.gather(1, order[:, :, None].expand_as(base)) + noise


def batch(seed: int, size: int, ids: int) -> tuple[Tensor, Tensor, Tensor]:
    """Any identities in any modality in any order: some have one image, some one modality."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(ids, (size,), generator=g) * 7 + 3
    return people(labels, nodes=4, seed=seed), labels, torch.randint(2, (size,), generator=g)


def papers_batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Three identities with two visible and two infrared images each, in no order; and a mask."""
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    labels, modality = torch.arange(3).repeat(4)[order], torch.arange(2).repeat_interleave(6)[order]
    mask = torch.rand(12, 5, generator=torch.Generator().manual_seed(2)) > 0.3
    return people(labels), labels, modality, mask


def loop(
    nodes: Tensor, labels: Tensor, modality: Tensor, *, mask: Tensor | None = None, pairs: str = "all", **options
) -> Tensor:
    """Pair by pair, without the nodes that one of the two lacks."""
    costs = []
    for i, j in g2da.pairs(labels, modality, mask, pairs):
        x, y = (nodes[a] if mask is None else nodes[a][mask[i] & mask[j]] for a in (i, j))
        costs.append(graph_ot(x[None], y[None], **options).cost[0])
    return sum(costs) / len(costs) if costs else nodes.sum() * 0


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    size=st.integers(1, 8),
    ids=st.integers(1, 3),
    loss=st.sampled_from(LOSSES),
    pairs=st.sampled_from(PAIRS),
    phi=st.sampled_from([0.0, 0.5, 1.0]),
    solver=st.sampled_from(SOLVERS),
)
def test_equals_graph_ot_pair_by_pair(device, seed, size, ids, loss, pairs, phi, solver):
    nodes, labels, modality = batch(seed, size, ids)
    options = {"loss": loss, "pairs": pairs, "phi": phi, "solver": solver}
    ours, theirs = nodes.clone().to(device).requires_grad_(), nodes.clone().requires_grad_()
    out = graph_ot_loss(ours, labels.to(device), modality.to(device), **options)
    expected = loop(theirs, labels, modality, **options)
    assert_close(out.cpu(), expected.detach(), rtol=1e-9, atol=1e-12)
    out.backward()
    expected.backward()
    assert_close(ours.grad.cpu(), theirs.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("loss", "pairs"), [("abs", "all"), ("square", "one_to_one")])
def test_masked_nodes_are_as_if_removed(loss, pairs, device):
    nodes, labels, modality, mask = papers_batch()
    mask[4] = False  # in no pair
    nodes = nodes.masked_fill(~mask[:, :, None], math.nan)
    ours, theirs = nodes.clone().to(device).requires_grad_(), nodes.clone().requires_grad_()
    options = {"loss": loss, "pairs": pairs, "solver": "entropic"}
    out = graph_ot_loss(ours, labels.to(device), modality.to(device), mask=mask.to(device), **options)
    assert_close(out.cpu(), loop(theirs, labels, modality, mask=mask, **options), rtol=0, atol=1e-9)
    assert len(g2da.pairs(labels, modality, mask, pairs)) == (10 if pairs == "all" else 5)
    module = GraphOTLoss(**options)
    assert torch.equal(out, module(ours, labels.to(device), modality.to(device), mask=mask.to(device)))
    out.backward()
    loop(theirs, labels, modality, mask=mask, **options).backward()
    assert_close(ours.grad.cpu(), theirs.grad.nan_to_num(), rtol=0, atol=1e-6)
    assert ours.grad[~mask].eq(0).all()
    assert ours.grad[4].eq(0).all()


def test_masked_pairs_are_solved_exactly():
    """The nodes in common are equally many on both sides."""
    nodes, labels, modality, mask = papers_batch()
    assert len(set(mask.sum(1).tolist())) > 1
    out = graph_ot_loss(nodes, labels, modality, mask=mask)
    assert_close(out, loop(nodes, labels, modality, mask=mask, solver="exact"), rtol=0, atol=1e-12)
    assert torch.equal(out, graph_ot_loss(nodes, labels, modality, mask=mask, solver="exact"))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("phi", [0.0, 0.5, 1.0])
def test_value_and_gradient_of_the_definition(loss, phi):
    nodes, labels, modality, _ = papers_batch()
    nodes = nodes[:, :4]
    ours, theirs = nodes.clone().requires_grad_(), nodes.clone().requires_grad_()
    out = graph_ot_loss(ours, labels, modality, phi=phi, loss=loss, solver="exact", restarts=10)
    assert len(g2da.pairs(labels, modality)) == 12
    expected = g2da.graph_transport(theirs, labels, modality, phi=phi, loss=loss)
    assert_close(out, expected, rtol=0, atol=1e-10)
    out.backward()
    expected.backward()
    assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-10)
    assert theirs.grad.abs().max() > 1e-3


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_of_masked_graphs_by_finite_differences(loss):
    nodes, labels, modality, mask = papers_batch()
    rows = torch.cat([(labels == i).nonzero()[:, 0] for i in (0, 2)])[1:]
    x, labels, modality = nodes[rows, :4, :3], labels[rows], modality[rows]
    # equal counts, for the exact solver: the envelope theorem wants an optimal plan, the entropic one's is near it
    mask = torch.rand(len(rows), 4).argsort(1) < 3
    assert torch.autograd.gradcheck(
        lambda x: graph_ot_loss(x, labels, modality, mask=mask, loss=loss), (x.requires_grad_(),), fast_mode=True
    )


def test_by_hand():
    """Two nodes at a right angle in one image, at 60° in the other, shared out to three images of two persons."""
    right, narrow = torch.eye(2), torch.tensor([[0.5, math.sqrt(0.75)], [2.0, 0.0]])
    nodes, labels = torch.stack([right, narrow, right]), torch.tensor([4, 4, 4])
    apart = 0.5 * (1 - math.sqrt(0.75)) / 2 + 0.5 * 2 * 0.25 * 0.5  # node 0 to node 1 at cost 0
    for modality, expected in (([0, 1, 1], apart / 2), ([1, 0, 1], apart), ([1, 1, 0], apart / 2), ([0, 0, 0], 0.0)):
        out = graph_ot_loss(nodes, labels, torch.tensor(modality))
        assert_close(out.item(), expected, rtol=0, atol=1e-6)
    out = graph_ot_loss(nodes, torch.tensor([4, 5, 4]), torch.tensor([0, 1, 1]))  # only the equal ones are a pair
    assert_close(out.item(), 0.0, rtol=0, atol=1e-6)
    out = graph_ot_loss(nodes, labels, torch.tensor([0, 1, 1]), pairs="one_to_one")  # the first infrared image
    assert_close(out.item(), apart, rtol=0, atol=1e-6)


def test_defaults_are_the_papers():
    nodes, labels, modality, _ = papers_batch()
    stated = graph_ot_loss(nodes, labels, modality, phi=0.5, loss="abs", solver="auto", pairs="all")
    for out in (graph_ot_loss(nodes, labels, modality), GraphOTLoss()(nodes, labels, modality)):
        assert torch.equal(out, stated)


@pytest.mark.filterwarnings("ignore:.*had not settled")
def test_each_option_matters():
    nodes, labels, modality, _ = papers_batch()
    nodes += torch.randn(nodes.shape, dtype=torch.double)  # so hard that solvers differ
    base = {"solver": "exact", "phi": 0.1}
    changes = ({}, {"phi": 0.2}, {"loss": "square"}, {"solver": "entropic"}, {"pairs": "one_to_one"}, {"restarts": 20})
    changes += ({"solver": "entropic", "iterations": 1},)
    values = [graph_ot_loss(nodes, labels, modality, **base | change).item() for change in changes]
    assert all(abs(v - values[0]) > 1e-9 for v in values[1:])
    modules = [GraphOTLoss(**base | change)(nodes, labels, modality).item() for change in changes]
    assert modules == values


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), size=st.integers(2, 9))
def test_one_to_one_depends_on_the_order_within_a_group_only(seed, size):
    nodes, labels, modality = batch(seed, size, 2)
    order = (2 * labels + modality).argsort(stable=True)
    out = graph_ot_loss(nodes, labels, modality, pairs="one_to_one")
    assert_close(graph_ot_loss(nodes[order], labels[order], modality[order], pairs="one_to_one"), out)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("masked", [False, True])
def test_a_batch_without_a_pair_costs_nothing(masked, pairs, solver, device):
    labels, zeros = torch.tensor([0, 0, 1, 1]), torch.zeros(4).long()
    nodes = people(labels).to(device)
    cases = [
        (nodes, labels, zeros, None),  # one modality
        (nodes, labels, zeros + 1, None),
        (nodes, torch.arange(4), torch.tensor([0, 1, 0, 1]), None),  # one image per identity
        (nodes, labels, torch.tensor([0, 0, 1, 1]), None),  # one modality per identity
        (nodes[:1], labels[:1], zeros[:1], None),
        (nodes[:0], labels[:0], zeros[:0], None),
        (nodes, labels, torch.tensor([0, 1, 0, 1]), torch.tensor([True, False, False, True])),  # no node
    ]
    for x, label, modality, present in cases:
        mask = None
        if masked or present is not None:
            mask = torch.ones(x.shape[:2], dtype=torch.bool, device=device)
            mask = mask if present is None else mask & present[:, None].to(device)
        x = x.clone().requires_grad_()
        out = graph_ot_loss(x, label.to(device), modality.to(device), mask=mask, pairs=pairs, solver=solver)
        out.backward()
        assert out.shape == ()
        assert out == 0
        assert torch.equal(x.grad, torch.zeros_like(x))


def test_gradient_of_an_image_in_many_pairs_is_the_same_each_time():
    labels, modality = torch.zeros(16).long(), torch.arange(16) % 2
    nodes = people(labels, nodes=14, dim=2048).float()  # so many that threads share the work
    threads = torch.get_num_threads()
    gradients = []
    try:
        torch.set_num_threads(2)
        for _ in range(3):
            leaf = nodes.clone().requires_grad_()
            graph_ot_loss(leaf, labels, modality, phi=1.0).backward()
            gradients.append(leaf.grad)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(gradients[0], g) for g in gradients[1:])


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_the_gradient_of_many_pairs_adds_up_in_full_precision(half, device):
    """Each image is in 8 pairs, whose gradients half precision would round one by one."""
    labels, modality = torch.zeros(16, dtype=torch.int64, device=device), torch.arange(16, device=device) % 2
    rows = people(labels.cpu()).to(device, half).requires_grad_()
    full = rows.detach().float().requires_grad_()
    graph_ot_loss(rows, labels, modality).backward()
    graph_ot_loss(full, labels, modality).backward()
    assert torch.equal(rows.grad, full.grad.to(half))


def test_a_lower_loss_aligns_the_graphs():
    """Steps along the gradient bring a person's images together, and leave images without a partner as they are."""
    nodes, labels, modality, _ = papers_batch()
    labels[labels == 2] += modality[labels == 2]
    x = nodes.clone().requires_grad_()
    optimizer = torch.optim.SGD([x], lr=5.0)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = graph_ot_loss(x, labels, modality)
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.5 * values[0]
    single = labels >= 2
    assert torch.equal(x[single], nodes[single])
