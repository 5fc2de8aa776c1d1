"""The skeleton graph of a person (G2DA, Wan et al., 2021): its key points, its bones, its aggregation."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import index

import torch
from einops import einsum
from torch import Tensor, nn

from vireid._checks import check_count, check_flag, check_tensor
from vireid.nn.necks import BNNeck


@dataclass(frozen=True)
class Skeleton:
    """Key points and the bones between them.

    Attributes:
        names: one per key point; those of a pair begin with ``left_`` and ``right_``.
        bones: pairs of indices into ``names``.
    """

    names: tuple[str, ...]
    bones: tuple[tuple[int, int], ...]

    def mirror(self) -> list[int]:
        """Return the order of the key points in a mirrored image: ``heatmaps.flip(-1)[:, skeleton.mirror()]``.

        Raises:
            ValueError: if a key point of one side has no partner on the other, or a name occurs twice.
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
        """Return `skeleton_adjacency` of the bones."""
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
"""The 13 key points of G2DA (§IV-A), in the order of the synthetic pedestrians. The paper lists no bones, only "natural
body-part adjacency": these are our choice."""

COCO_17 = Skeleton(
    ("nose", "left_eye", "right_eye", "left_ear", "right_ear", *_LIMBS),
    (
        *((0, 1), (0, 2), (1, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
        *((5, 6), (5, 7), (7, 9), (6, 8), (8, 10)),
        *((5, 11), (6, 12), (11, 12), (11, 13), (13, 15), (12, 14), (14, 16)),
    ),
)
"""The 17 key points of the COCO data set, which most pose estimators return, and its bones."""


def skeleton_adjacency(edges: Iterable[Sequence[int]], nodes: int, *, self_loops: bool = True) -> Tensor:
    """Return the adjacency of a skeleton graph (G2DA §III-C, "graph refinement").

    Args:
        edges: pairs (i, j) of key points joined by a bone, in either order; 0 ≤ i, j < ``nodes``.
        nodes: number K of key points.
        self_loops: whether a node is its own neighbor (our choice: it is).

    Returns:
        (K + 1, K + 1) bool, symmetric. The last node is the global one, joined to all others.

    Raises:
        ValueError: if ``nodes`` is below 1, or an edge is not a pair or an end is out of range.
        TypeError: if ``edges`` are not pairs or an end is not an integer.

    Example:
        >>> skeleton_adjacency([(0, 1)], 3).int().tolist()
        [[1, 1, 0, 1], [1, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1]]
    """
    nodes = check_count("nodes", nodes)
    check_flag("self_loops", self_loops)
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

    BN has a learnable scale and shift. Batches of 0 or 1 rows are normalized by the running statistics, as in `BNNeck`.
    In training, the variance of features beyond about 1e19 overflows float32.

    Args:
        dim: feature size d.
        nodes: number of nodes, the global one included: K + 1.

    Attributes:
        weight: (K + 1,) parameter ω. It starts at 1/(K + 1), the mean of the nodes (our choice).

    Raises:
        ValueError: if an argument is below 1.
        TypeError: if an argument is not an integer.
    """

    def __init__(self, dim: int, nodes: int) -> None:
        super().__init__()
        self.dim, nodes = check_count("dim", dim), check_count("nodes", nodes)
        self.norm = BNNeck(self.dim)
        self.norm.bias.requires_grad_(True)
        self.weight = nn.Parameter(torch.full((nodes,), 1 / nodes))

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return f"{self.dim}, nodes={self.weight.shape[0]}"

    def forward(self, pooled: Tensor, nodes: Tensor) -> Tensor:
        """Compute the feature of each graph.

        Args:
            pooled: (B, d) GAP(F), the mean of the map's pixels, not yet normalized.
            nodes: (B, K + 1, d) features of the nodes, from `MessageFusionAttention`.

        Returns:
            (B, d) V_G.

        Raises:
            ValueError: if a shape is wrong.
            TypeError: if a tensor is not floating point.
        """
        check_tensor("pooled", pooled, "B d", d=self.dim)
        check_tensor("nodes", nodes, "B n d", B=pooled.shape[0], n=self.weight.shape[0], d=self.dim)
        return self.norm(pooled) + einsum(self.weight.to(nodes.dtype), nodes, "i, b i d -> b d")
