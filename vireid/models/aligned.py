"""Any criterion with G2DA's alignment of parts added to it."""

from typing import Protocol

import torch
from torch import Tensor, nn

from vireid._checks import check_module, check_positive, check_size
from vireid.losses import GraphOTLoss
from vireid.nn import keypoint_pooling, part_grid


class MappedOutput(Protocol):
    """Output of a model that keeps its backbone's map, as those of all models here do."""

    @property
    def feature_map(self) -> Tensor | None:
        """Feature map (B, c, h, w)."""


class AlignedCriterion(nn.Module):
    """A criterion plus G2DA's alignment of the parts of the backbone's map (our choice; G2DA, Eq. 4-7).

        L = criterion(output) + λ_o D_ot

    The nodes are the means of the map in the cells of a fixed grid, `vireid.nn.part_grid`, and in the whole of it, so
    that no key points are needed. It adds to a ``"transport"`` that the criterion has itself, as G2DA's between key
    points.

    Args:
        criterion: module (output, labels, modality) -> dict of named losses with their ``"total"``.
        weight: λ_o, above 0.
        grid: (rows, columns) of the parts.

    Raises:
        ValueError: if the weight or the grid is out of its range, or, when called, if the output has no feature map.
        TypeError: if the criterion is not a module or a number is not one.
    """

    parts: Tensor

    def __init__(self, criterion: nn.Module, *, weight: float = 1.0, grid: tuple[int, int] = (4, 3)) -> None:
        super().__init__()
        check_module("criterion", criterion)
        self.criterion, self.weight, self.transport = criterion, check_positive("weight", weight), GraphOTLoss()
        self.register_buffer("parts", part_grid(*check_size("grid", grid))[0], persistent=False)

    def extra_repr(self) -> str:
        """Show the weight in ``repr``."""
        return f"weight={self.weight}"

    def forward(self, output: MappedOutput, labels: Tensor, modality: Tensor) -> dict[str, Tensor]:
        """Return the criterion's losses and the weighted ``"transport"``, both in the sum ``"total"``."""
        maps = output.feature_map
        if maps is None:
            raise ValueError("output must have a feature_map, got None")
        losses: dict[str, Tensor] = self.criterion(output, labels, modality)
        local = keypoint_pooling(maps, self.parts.expand(maps.shape[0], -1, -1, -1))
        nodes = torch.cat([local, maps.mean((2, 3))[:, None]], 1)
        aligned = self.weight * self.transport(nodes, labels, modality)
        own = losses.get("transport", 0.0)
        return losses | {"transport": own + aligned, "total": losses["total"] + aligned}
