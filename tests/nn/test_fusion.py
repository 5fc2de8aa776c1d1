import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from reference import g2da as ref
from vireid.nn.fusion import MessageFusionAttention
from vireid.nn.skeleton import PERSON_13, skeleton_adjacency

CHAIN = skeleton_adjacency([(0, 1), (1, 2)], 3)  # four nodes, the last one global


def layer(
    dim: int = 8, *, heads: int = 4, adjacency: Tensor = CHAIN, seen: int = 9, **options
) -> MessageFusionAttention:
    """A layer that has seen a batch and whose γ are on both sides of θ."""
    attention = MessageFusionAttention(dim, heads=heads, adjacency=adjacency, **options).double().train()
    attention(torch.randn(seen, len(adjacency), dim).double() * 2 + 1)
    with torch.no_grad():
        attention.project.weight.normal_(std=dim**-0.5)
        attention.norm.weight.uniform_(-0.2, 0.3)
        attention.norm.bias.normal_()
    return attention


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 2, 5])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_it_equals_the_loop(heads, rows, training, device):
    net = layer(heads=heads).train(training)
    kept = net.kept()
    assert kept.any()
    assert not kept.all()
    nodes = torch.randn(rows, 4, 8).double()
    expected = ref.message_fusion(net, nodes, training)
    assert_close(net.to(device)(nodes.to(device)).cpu(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("magnitude", [True, False])
@pytest.mark.parametrize("head_dim", [1, 2, 8, 3])
def test_heads_of_any_size_equal_the_loop(head_dim, magnitude, training, device):
    net = layer(head_dim=head_dim, magnitude=magnitude).train(training)
    assert net.scales().shape == net.kept().shape == (4, 4, head_dim)
    assert (net.out is None) == (head_dim == 2)
    if net.out is not None:
        nn.init.normal_(net.out.weight)
    nodes = torch.randn(5, 4, 8).double()
    expected = ref.message_fusion(net, nodes, training)
    assert_close(net.to(device)(nodes.to(device)).cpu(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("head_dim", [2, 8, 3, 1])
def test_heads_of_any_size_start_without_mixing_the_channels(head_dim):
    """A channel is the mean of the heads it was given to; of 8 channels, 4 heads of size 1 leave out half."""
    net = MessageFusionAttention(8, head_dim=head_dim, adjacency=torch.eye(3, dtype=torch.bool)).double().eval()
    nodes = torch.randn(5, 3, 8).double()
    expected = nn.functional.elu(nodes) / (1 + 1e-5) ** 0.5
    if head_dim == 1:
        expected[..., 4:] = 0
    assert_close(net(nodes), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_its_gradients_equal_the_loops(training):
    net, nodes = layer().train(training), torch.randn(3, 4, 8).double().requires_grad_()
    wanted, grad = [nodes, *net.parameters()], torch.randn(3, 4, 8).double()
    expected = torch.autograd.grad(ref.message_fusion(net, nodes, training), wanted, grad)
    assert_close(torch.autograd.grad(net(nodes), wanted, grad), expected, rtol=0, atol=1e-9)


def test_heads_start_with_their_share_of_the_nodes_own_channels():
    """Before training, and if a node has no neighbor but itself, v_i^l is its own l-th share behind σ."""
    net = MessageFusionAttention(8, heads=4, adjacency=torch.eye(3, dtype=torch.bool)).double().eval()
    nodes = torch.randn(5, 3, 8).double()
    assert_close(net(nodes), nn.functional.elu(nodes) / (1 + 1e-5) ** 0.5, rtol=0, atol=1e-12)


def test_the_papers_graph_is_the_default():
    net = MessageFusionAttention(16).double().eval()
    assert (net.heads, net.threshold) == (4, 0.02)
    assert torch.equal(net.adjacency, PERSON_13.adjacency())
    nodes = torch.randn(2, 14, 16).double()
    assert_close(net(nodes), ref.message_fusion(net, nodes, training=False), rtol=0, atol=1e-10)
    at = PERSON_13.names.index
    attention = net.attention(nodes)
    assert attention.shape == (2, 4, 14, 14)
    assert (attention[:, :, at("left_wrist"), [at("left_wrist"), at("left_elbow"), 13]] > 0).all()
    assert (attention[:, :, at("left_wrist")] > 0).sum() == 2 * 4 * 3
    assert (attention[:, :, 13] > 0).all()
    assert_close(attention.sum(-1), torch.ones(2, 4, 14).double())


# -- Fusion --------------------------------------------------------------------------------------------------------


def fused(gamma: float, *, heads: int = 4, threshold: float = 0.02, **options) -> tuple[Tensor, Tensor]:
    """The output where channel 1 of head 2 of node 3 has the scale ``gamma``, and where nothing is ever replaced."""
    net = MessageFusionAttention(8, heads=heads, adjacency=CHAIN, threshold=threshold, **options).double().train()
    with torch.no_grad():
        net.norm.weight.uniform_(0.5, 1.5)
        net.norm.bias.normal_()
        net.norm.weight.view(4, heads, 8 // heads)[3, 2 % heads, 1] = gamma
    plain, nodes = copy.deepcopy(net), torch.randn(6, 4, 8).double()
    plain.threshold = -math.inf
    return net(nodes).unflatten(2, (heads, -1)), plain(nodes).unflatten(2, (heads, -1))


@pytest.mark.parametrize(
    ("gamma", "magnitude"), [(0.02, True), (-0.02, True), (0.0, True), (0.02, False), (0.019, False), (-1.0, False)]
)
def test_a_channel_is_replaced_at_or_below_the_threshold(gamma, magnitude):
    ours, plain = fused(gamma, magnitude=magnitude)
    expected = plain.clone()
    expected[:, 3, 2, 1] = (plain[:, 3, 0, 1] + plain[:, 3, 1, 1] + plain[:, 3, 3, 1]) / 3
    assert_close(ours, expected)
    assert (ours[:, 3, 2, 1] - plain[:, 3, 2, 1]).abs().min() > 0  # it changed, and no other did
    assert (ours != plain).sum() == 6


def test_a_channel_is_kept_above_the_threshold():
    for gamma, threshold, magnitude in (
        (0.021, 0.02, True),
        (-0.021, 0.02, True),
        (-1e-9, 0.0, True),  # a threshold of 0 removes the fusion
        (0.0, -1.0, True),
        (0.02, 0.019, False),
        (-1.0, -1.1, False),
    ):
        ours, plain = fused(gamma, threshold=threshold, magnitude=magnitude)
        assert torch.equal(ours, plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_large_head_does_not_drown_the_others_in_half_precision(dtype, device):
    """The mean of the others is a difference of sums, which half precision would cancel to nothing."""
    net = MessageFusionAttention(8, adjacency=CHAIN, threshold=math.inf).to(device, dtype).train()
    with torch.no_grad():
        net.norm.bias.view(4, 4, 2)[:, 1] = 1000
    plain, nodes = copy.deepcopy(net), torch.randn(6, 4, 8, device=device).to(dtype)
    plain.threshold = -math.inf
    own = plain(nodes).unflatten(2, (4, 2)).double()
    out = net(nodes).unflatten(2, (4, 2))
    assert_close(out[:, :, 1].double(), own[:, :, [0, 2, 3]].mean(2), rtol=2 * torch.finfo(dtype).eps, atol=1e-3)


def test_with_one_head_all_is_kept():
    ours, plain = fused(-1.0, heads=1)
    assert torch.equal(ours, plain)
    assert torch.isfinite(ours).all()


def test_a_replaced_channel_learns_only_through_those_that_borrow_from_it():
    net, nodes = MessageFusionAttention(8, adjacency=CHAIN).train(), torch.randn(6, 4, 8)
    gamma = net.norm.weight
    with torch.no_grad():
        gamma.view(4, 4, 2)[0, 1, 0] = 0.01  # replaced, and lent to no other head
        gamma.view(4, 4, 2)[1, :2, 1] = 0.01  # both are replaced, each by a mean with the other in it
    (net(nodes) * torch.randn(6, 4, 8)).sum().backward()
    grad = gamma.grad.view(4, 4, 2)
    assert grad[0, 1, 0] == 0
    assert (grad[1, :2, 1] != 0).all()
    assert (grad[2] != 0).all()


# -- Neighbors and masks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_masked_nodes_equal_the_loop(training, device):
    net, nodes = layer().train(training), torch.randn(4, 4, 8).double()
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0]]).bool()
    expected = ref.message_fusion(net, nodes, training, mask)
    assert_close(net.to(device)(nodes.to(device), mask.to(device)).cpu(), expected, rtol=0, atol=1e-10)
    attention = net.attention(nodes.to(device), mask.to(device))
    assert (attention.cpu() * ~mask[:, None, None]).abs().sum() == 0
    assert_close(attention.sum(-1)[:3], torch.ones(3, 4, 4, device=device).double())
    assert (attention[3] == 0).all()


@pytest.mark.parametrize("training", [True, False])
def test_features_of_absent_nodes_are_ignored(training):
    net, nodes = layer().train(training), torch.randn(5, 4, 8).double()
    mask = torch.ones(5, 4, dtype=torch.bool)
    mask[1, 2] = False
    expected = copy.deepcopy(net)(nodes, mask)
    nodes[1, 2] = math.nan
    assert torch.equal(net(nodes, mask), expected)
    assert net.norm.running_mean.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_an_isolated_node_is_finite(training, device):
    """Without self-loops and with no edge, a node receives nothing: its output is the normalization of 0."""
    adjacency = torch.zeros(3, 3, dtype=torch.bool)
    adjacency[0, 1] = True
    net = layer(adjacency=adjacency, threshold=-math.inf).to(device).train(training)
    nodes = torch.randn(5, 3, 8, device=device).double().requires_grad_()
    out = net(nodes)
    out.square().sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(nodes.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())
    zero = torch.zeros_like(out[0]) if training else -net.norm.running_mean.view(3, 8)
    scale = net.norm.weight.view(3, 8) / (1e-5 + (zero if training else net.norm.running_var.view(3, 8))).sqrt()
    assert_close(out[:, 1:], (zero * scale + net.norm.bias.view(3, 8))[1:].expand(5, 2, 8))


@settings(max_examples=4)
@given(seed=st.integers(0, 2**31 - 1), images=st.integers(2, 6))
def test_order_of_nodes_is_irrelevant(seed, images):
    torch.manual_seed(seed)
    net, nodes = layer(), torch.randn(images, 4, 8).double()
    out, order = net(nodes), torch.randperm(4)
    moved = copy.deepcopy(net)
    moved.adjacency = net.adjacency[order][:, order]
    with torch.no_grad():
        for theirs, own in zip(moved.norm.parameters(), net.norm.parameters(), strict=True):
            theirs.copy_(own.view(4, 8)[order].flatten())
    assert_close(moved(nodes[:, order]), out[:, order], rtol=0, atol=1e-7)


# -- As a layer ----------------------------------------------------------------------------------------------------


def test_the_activation_is_exchangeable():
    net = MessageFusionAttention(8, adjacency=CHAIN, activation=nn.Identity(), threshold=-math.inf).double().eval()
    nodes = torch.randn(2, 4, 8).double()
    values = net.project(nodes).unflatten(2, (4, 2))
    expected = torch.einsum("blij,bjlc->bilc", net.attention(nodes), values).flatten(2) / (1 + 1e-5) ** 0.5
    assert_close(net(nodes), expected)


def test_changing_the_callers_adjacency_does_not_change_the_layer():
    adjacency = CHAIN.clone()
    net = MessageFusionAttention(8, adjacency=adjacency).eval()
    nodes = torch.randn(2, 4, 8)
    before = net(nodes)
    adjacency.fill_(False)
    assert torch.equal(net.adjacency, CHAIN)
    assert torch.equal(net(nodes), before)


def test_learned_parameters():
    names = [name for name, p in layer().named_parameters() if p.requires_grad]
    assert sorted(names) == ["norm.bias", "norm.weight", "project.weight", "score"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dim": 6}, ValueError, "dim must be a multiple of heads = 4, got 6"),
        ({"head_dim": 0}, ValueError, "head_dim must be at least 1, got 0"),
        ({"magnitude": 1}, ValueError, "magnitude must be one of True, False, got 1"),
        ({"adjacency": CHAIN.long()}, TypeError, r"adjacency must be bool, got torch\.int64"),
        ({"adjacency": CHAIN.tolist()}, TypeError, r"adjacency must be a torch\.Tensor, got list"),
        ({"adjacency": CHAIN[:3]}, ValueError, r"adjacency must be square, one row per node, got \(3, 4\)"),
    ],
)
def test_bad_settings(options, error, message):
    with pytest.raises(error, match=message):
        MessageFusionAttention(**{"dim": 8} | options)


def test_a_batch_that_does_not_fit_is_named():
    net, nodes = MessageFusionAttention(8, adjacency=CHAIN), torch.randn(2, 4, 8)
    with pytest.raises(ValueError, match=r"nodes must have shape \(B, 4, 8\), got \(2, 5, 8\)"):
        net(torch.randn(2, 5, 8))
    with pytest.raises(ValueError, match=r"mask must have shape \(2, 4\), got \(2, 3\)"):
        net(nodes, torch.ones(2, 3).bool())
    with pytest.raises(ValueError, match="mask must be on cpu like the other arguments, got meta"):
        net(nodes, torch.ones(2, 4, device="meta").bool())
