"""The skeleton graph of a person (G2DA, Wan et al., 2021): its key points, its bones, its aggregation."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vireid._checks import check_count, check_matrix
from vireid.nn.necks import BNNeck

__all__ = [
    "COCO_17",
    "PERSON_13",
    "Skeleton",
    "SkeletonAggregation",
    "skeleton_adjacency",
]


@dataclass(frozen=True)
class Skeleton:
    """Key points and the bones between them.

    Attributes:
        names: one of each key point; a pair has names that begin with ``left_`` and ``right_``.
        bones: pairs of indices into ``names``.
    """

    names: tuple[str, ...]
    bones: tuple[tuple[int, int], ...]

    def mirror(self) -> list[int]:
        """Where each key point is found in a mirrored image's: ``heatmaps.flip(-1)[:, skeleton.mirror()]``.

        Raises:
            ValueError: if a key point of one side has no partner on the other, or a name is there twice.
        """
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"names must name each key point once, got {self.names}")
        other = {"left": "right", "right": "left"}
        sides = [name.partition("_") for name in self.names]
        partners = [other.get(side, side) + gap + part for side, gap, part in sides]
        for name, partner in zip(self.names, partners, strict=True):
            if partner not in self.names:
                raise ValueError(f"names must hold {partner!r}, the partner of {name!r}, got {self.names}")
        return [self.names.index(partner) for partner in partners]

    def adjacency(self) -> Tensor:
        """`skeleton_adjacency` of the bones."""
        return skeleton_adjacency(self.bones, len(self.names))


_LIMBS = tuple(f"{side}_{joint}" for joint in ("shoulder", "elbow", "wrist") for side in ("left", "right")) + tuple(
    f"{side}_{joint}" for joint in ("hip", "knee", "ankle") for side in ("left", "right")
)
PERSON_13 = Skeleton(
    ("head", *_LIMBS),
    (
        *((0, 1), (0, 2), (1, 2), (1, 3), (3, 5), (2, 4), (4, 6)),  # head, shoulders, arms
        *((1, 7), (2, 8), (7, 8), (7, 9), (9, 11), (8, 10), (10, 12)),  # trunk, hips, legs
    ),
)
"""The 13 key points of G2DA (§IV-A), in the order in which the synthetic pedestrians have theirs. The paper lists no
bones, "natural body-part adjacency": these are ours."""

COCO_17 = Skeleton(
    ("nose", "left_eye", "right_eye", "left_ear", "right_ear", *_LIMBS),
    (
        *((0, 1), (0, 2), (1, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
        *((5, 6), (5, 7), (7, 9), (6, 8), (8, 10)),
        *((5, 11), (6, 12), (11, 12), (11, 13), (13, 15), (12, 14), (14, 16)),
    ),
)
"""The 17 key points of the COCO data set, which most pose estimators give, and its bones."""


def skeleton_adjacency(edges: Iterable[Sequence[int]], nodes: int, *, self_loops: bool = True) -> Tensor:
    """Which nodes of a skeleton graph are joined (G2DA §III-C, "graph refinement").

    Args:
        edges: pairs (i, j) of key points that a bone joins, either way round; 0 ≤ i, j < ``nodes``.
        nodes: number K of key points.
        self_loops: a node is its own neighbour too (ours).

    Returns:
        (K + 1, K + 1) bool, symmetric. The last node is the global one, joined to all others.

    Raises:
        ValueError: if ``nodes`` is below 1, or an edge is not a pair or has an end out of range.
        TypeError: if ``edges`` are not pairs or an end is not an integer.

    Example:
        >>> skeleton_adjacency([(0, 1)], 3).int().tolist()
        [[1, 1, 0, 1], [1, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1]]
    """
    check_count("nodes", nodes)
    try:
        bones = [tuple(index(end) for end in edge) for edge in edges]
    except TypeError as error:
        raise TypeError(f"edges must be pairs of integers, got {edges!r}") from error
    adjacency = torch.zeros(nodes + 1, nodes + 1, dtype=torch.bool)
    adjacency[-1, :-1] = adjacency[:-1, -1] = True
    for bone in bones:
        if len(bone) != 2 or not all(0 <= end < nodes for end in bone):
            raise ValueError(f"edges must be pairs of key points from 0 to {nodes - 1}, got {bone}")
        i, j = bone
        adjacency[i, j] = adjacency[j, i] = True
    return adjacency.fill_diagonal_(self_loops)


class SkeletonAggregation(nn.Module):
    """One feature from the pooled map and the nodes of the skeleton graph (G2DA, Eq. 12).

        V_G = BN(GAP(F)) + Σ_i ω_i v̄_i

    BN has a learnable scale and shift. Batches of 0 or 1 rows are normalised by the running statistics, as in `BNNeck`.

    Args:
        dim: feature size d.
        nodes: number of nodes, the global one included: K + 1.

    Attributes:
        weight: (K + 1,) parameter ω. It starts at 1/(K + 1), the mean of the nodes (ours).

    Raises:
        ValueError: if an argument is below 1.
        TypeError: if one is not an integer.
    """

    def __init__(self, dim: int, nodes: int) -> None:
        super().__init__()
        check_count("dim", dim)
        check_count("nodes", nodes)
        self.dim = dim
        self.norm = BNNeck(dim)
        self.norm.bias.requires_grad_(True)
        self.weight = nn.Parameter(torch.full((nodes,), 1 / nodes))

    def extra_repr(self) -> str:
        """What `print` shows of the layer beside its parts."""
        return f"{self.dim}, nodes={self.weight.shape[0]}"

    def forward(self, pooled: Tensor, nodes: Tensor) -> Tensor:
        """The graph's feature.

        Args:
            pooled: (B, d) GAP(F), the mean of the map's pixels, not yet normalised.
            nodes: (B, K + 1, d) the nodes' features, from `MessageFusionAttention`.

        Returns:
            (B, d) V_G.

        Raises:
            ValueError: if a shape is wrong.
            TypeError: if a tensor is not floating point.
        """
        check_matrix("pooled", pooled, columns=self.dim)
        check_nodes("nodes", nodes, self.weight.shape[0], self.dim)
        if pooled.shape[0] != nodes.shape[0]:
            raise ValueError(f"pooled must have a row for each of the {nodes.shape[0]} graphs, got {pooled.shape[0]}")
        return F.linear(nodes.mT, self.weight) + self.norm(pooled)


def check_nodes(name: str, x: Any, nodes: int, dim: int) -> None:
    """Raise unless ``x`` is a floating-point tensor of shape (B, ``nodes``, ``dim``)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.ndim != 3 or x.shape[1:] != (nodes, dim):
        raise ValueError(f"{name} must have shape (B, {nodes}, {dim}), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}")
