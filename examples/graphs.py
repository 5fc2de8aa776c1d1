"""The graphs that a trained G2DA makes of two images: where their nodes are, and how one is moved onto the other."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

import common
from vireid.data import EvalTransform
from vireid.nn import PERSON_13
from vireid.ot import graph_ot


class Alignment(NamedTuple):
    """The graphs of a visible and an infrared image, and the plan between them.

    Attributes:
        points: (2, K, 2 or 3) where the nodes are, but for the global one.
        nodes: (2, K + 1, d).
        names: of the K + 1 nodes.
        plan: (K + 1, K + 1) T.
        cost: D_ot.
        phi: φ of D_ot.
        structure: the structure's difference in D_ot.
    """

    points: Tensor
    nodes: Tensor
    names: tuple[str, ...]
    plan: Tensor
    cost: float
    phi: float
    structure: Literal["abs", "square"]


@torch.no_grad()
def align(
    model: nn.Module, config: dict[str, Any], images: Tensor, modality: Tensor, keypoints: Tensor | None = None
) -> Alignment:
    """Align two images (2, 3, H, W), visible and infrared, as the model's training did.

    ``keypoints`` are coordinates or heatmaps, for a model without a grid of parts. A node that one of the two images
    lacks is left out of both.
    """
    device, size = next(model.parameters()).device, (images.shape[2], images.shape[3])
    inputs = [EvalTransform()(images.to(device)), modality.to(device)]
    if keypoints is None:
        rows, columns = config["part_grid"]
        points, names = grid_centres(rows, columns, size)
    else:
        inputs.append(common.draw_heatmaps(keypoints.to(device), size))
        points, names = locate(keypoints, size), PERSON_13.names
    output = model(*inputs)
    nodes, both = output.nodes.float(), output.mask.all(0)[None]
    found = graph_ot(nodes[:1], nodes[1:], phi=config["phi"], loss=config["structure"], mask_x=both, mask_y=both)
    names = (*names, "global")
    return Alignment(
        points.expand(2, -1, -1), nodes, names, found.plan[0], float(found.cost), config["phi"], config["structure"]
    )


def locate(keypoints: Tensor, size: tuple[int, int], threshold: float = 0.0) -> Tensor:
    """Coordinates (B, K, 3) in images of ``size`` (H, W); of heatmaps (B, K, h, w) the centres of their highest cells.

    A key point is visible where its heatmap rises above ``threshold``; coordinates stay as they are.
    """
    if keypoints.ndim == 3:
        return keypoints
    h, w = keypoints.shape[2:]
    peak, cell = keypoints.flatten(2).max(2)
    x, y = (cell % w + 0.5) * size[1] / w, (cell // w + 0.5) * size[0] / h
    return torch.stack([x, y, peak > threshold], -1)


def grid_centres(rows: int, columns: int, size: tuple[int, int]) -> tuple[Tensor, tuple[str, ...]]:
    """Centres (K, 2) of a grid's parts over an image of ``size`` (H, W), each x and y, and their names."""
    parts = [(i, j) for i in range(rows) for j in range(columns)]
    points = torch.tensor([((j + 0.5) * size[1] / columns, (i + 0.5) * size[0] / rows) for i, j in parts])
    return points, tuple(f"row {i + 1}, column {j + 1}" for i, j in parts)
