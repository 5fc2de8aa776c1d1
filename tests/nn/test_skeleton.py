"""The skeleton graph and its aggregation, against plain loops."""

import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vireid.data.synthetic._pedestrian import JOINTS
from vireid.nn import (
    COCO_17,
    PERSON_13,
    Skeleton,
    SkeletonAggregation,
    skeleton_adjacency,
)

# -- The graph -----------------------------------------------------------------------------------------------------


def test_the_thirteen_are_those_of_the_paper_in_the_order_of_the_synthetic_pedestrians():
    parts = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
    assert set(PERSON_13.names) == {"head", *(f"{side}_{part}" for side in ("left", "right") for part in parts)}
    assert PERSON_13.names == JOINTS
    assert COCO_17.names[:5] == ("nose", "left_eye", "right_eye", "left_ear", "right_ear")
    assert COCO_17.names[5:] == PERSON_13.names[1:]


@pytest.mark.parametrize("skeleton", [PERSON_13, COCO_17], ids=["13", "17"])
def test_bones_are_symmetric_and_connected(skeleton):
    bones = {frozenset(bone) for bone in skeleton.bones}
    mirror = skeleton.mirror()
    assert len(bones) == len(skeleton.bones)
    assert {frozenset(mirror[end] for end in bone) for bone in bones} == bones
    assert [mirror[i] for i in mirror] == list(range(len(skeleton.names)))
    swapped = [name.replace("left", "?").replace("right", "left").replace("?", "right") for name in skeleton.names]
    assert [skeleton.names[i] for i in mirror] == swapped
    reached, waiting = set(), [0]
    while waiting:
        node = waiting.pop()
        reached.add(node)
        waiting += [end for bone in bones if node in bone for end in bone if end not in reached]
    assert reached == set(range(len(skeleton.names)))


def test_an_arm_and_a_leg_by_name():
    at = PERSON_13.names.index
    adjacency = PERSON_13.adjacency()
    for chain in (("shoulder", "elbow", "wrist"), ("shoulder", "hip", "knee", "ankle")):
        for a, b in pairwise(chain):
            assert adjacency[at(f"left_{a}"), at(f"left_{b}")]
            assert not adjacency[at(f"left_{a}"), at(f"right_{b}")]
    assert not adjacency[at("left_shoulder"), at("left_wrist")]


@pytest.mark.parametrize("self_loops", [True, False])
def test_adjacency_equals_the_loop(self_loops):
    edges = [(3, 1), (0, 1), (1, 0)]
    adjacency = skeleton_adjacency(edges, 4, self_loops=self_loops)
    for i in range(5):
        for j in range(5):
            bone = (i, j) in edges or (j, i) in edges
            assert adjacency[i, j] == (self_loops if i == j else bone or 4 in (i, j))
    assert adjacency.dtype == torch.bool


def test_adjacency_bad_input():
    for edge in ((0, 3), (-1, 0), (0, 1, 2)):
        with pytest.raises(ValueError, match=r"edges must be pairs of key points from 0 to 2, got \("):
            skeleton_adjacency([edge], 3)
    for edges in ([0, 1], [(0, 1.5)], [(0, 1), None], 1):
        with pytest.raises(TypeError, match=re.escape(f"edges must be pairs of integers, got {edges}")):
            skeleton_adjacency(edges, 3)


def test_adjacency_takes_any_pairs():
    expected = skeleton_adjacency([(0, 1), (2, 1)], 3)
    for edges in (np.array([[0, 1], [2, 1]]), torch.tensor([[0, 1], [2, 1]]), (pair for pair in ([0, 1], [2, 1]))):
        assert torch.equal(skeleton_adjacency(edges, 3), expected)


def test_a_side_without_a_partner_is_named():
    text = "names must hold 'right_a', the partner of 'left_a', got ('left_a', 'b')"
    with pytest.raises(ValueError, match=re.escape(text)):
        Skeleton(("left_a", "b"), ()).mirror()
    assert Skeleton(("left_a", "b", "right_a"), ()).mirror() == [2, 1, 0]


# -- Aggregation ---------------------------------------------------------------------------------------------------


def aggregation(dim: int = 6, nodes: int = 4) -> SkeletonAggregation:
    """A layer that has seen a batch, with parameters other than the initial ones."""
    layer = SkeletonAggregation(dim, nodes).double().train()
    layer(torch.randn(9, dim).double() * 2 + 1, torch.randn(9, nodes, dim).double())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(0.5, 1.5)
    return layer


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 2, 7])
def test_aggregation_equals_the_equation(rows, training, device):
    layer = aggregation().train(training)
    norm = nn.BatchNorm1d(6).double()
    norm.load_state_dict(layer.norm.state_dict())
    norm.train(training and rows > 1)
    pooled, nodes = torch.randn(rows, 6).double(), torch.randn(rows, 4, 6).double()
    with torch.no_grad():
        expected = norm(pooled)
        for i in range(4):
            expected = expected + layer.weight[i] * nodes[:, i]
    layer.to(device)
    assert_close(layer(pooled.to(device), nodes.to(device)).detach().cpu(), expected, rtol=0, atol=1e-12)
    state = {name: t.cpu() for name, t in layer.norm.state_dict().items()}
    assert_close(state, dict(norm.state_dict()))


def test_aggregation_starts_at_the_mean_of_the_nodes_and_learns():
    layer = SkeletonAggregation(6, 14).train()
    pooled, nodes = torch.randn(5, 6), torch.randn(5, 14, 6)
    expected = nn.functional.batch_norm(pooled, None, None, training=True) + nodes.mean(1)
    assert_close(layer(pooled, nodes), expected)
    layer(pooled, nodes).square().sum().backward()
    grads = {name: p.grad for name, p in layer.named_parameters()}
    assert sorted(grads) == ["norm.bias", "norm.weight", "weight"]
    assert all(grad.abs().sum() > 0 for grad in grads.values())


def test_aggregation_bad_input():
    with pytest.raises(ValueError, match=r"nodes must have shape \(2, 4, 6\), got \(2, 3, 6\)"):
        SkeletonAggregation(6, 4)(torch.randn(2, 6), torch.randn(2, 3, 6))
