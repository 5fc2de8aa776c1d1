"""The graphs that a trained G2DA makes of two images: where their nodes are, and how one is moved onto the other."""

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:  # imported where they are used: the help needs no torch
    from torch import Tensor, nn


class Alignment(NamedTuple):
    """The graphs of a visible and an infrared image, and the plan between them.

    ``points`` (2, K, 2 or 3) are the places of the nodes, but for the global one, ``nodes`` (2, K + 1, d) their
    features, ``names`` those of all K + 1; ``plan`` is T and ``cost`` D_ot with ``phi`` and ``structure``.
    """

    points: "Tensor"
    nodes: "Tensor"
    names: tuple[str, ...]
    plan: "Tensor"
    cost: float
    phi: float
    structure: Literal["abs", "square"]


def align(
    model: "nn.Module",
    settings: dict[str, Any],
    images: "Tensor",
    modality: "Tensor",
    keypoints: "Tensor | None" = None,
) -> Alignment:
    """Align two images (2, 3, H, W), visible and infrared, as the model's training did.

    ``keypoints`` are coordinates or heatmaps, unless the model has a grid of parts. A node that one of the two images
    lacks is left out of both.
    """
    import torch

    from vireid.data import EvalTransform
    from vireid.nn import PERSON_13
    from vireid.ot import graph_ot
    from vireid.training.datasets import draw_heatmaps

    device, size = next(model.parameters()).device, (images.shape[2], images.shape[3])
    inputs = [EvalTransform()(images.to(device)), modality.to(device)]
    if keypoints is None:
        rows, columns = settings["part_grid"]
        parts = [(i, j) for i in range(rows) for j in range(columns)]
        places = torch.tensor([((j + 0.5) / columns, (i + 0.5) / rows) for i, j in parts])
        points = (places * torch.tensor([size[1], size[0]])).expand(2, -1, -1)
        names = tuple(f"row {i + 1}, column {j + 1}" for i, j in parts)
    else:
        inputs.append(draw_heatmaps(keypoints.to(device), size))
        points, names = locate(keypoints, size), PERSON_13.names
    phi, structure = settings["phi"], settings["structure"]
    with torch.no_grad():
        output = model(*inputs)
        nodes, both = output.nodes.float(), output.mask.all(0)[None]
        found = graph_ot(nodes[:1], nodes[1:], phi=phi, loss=structure, mask_x=both, mask_y=both)
    return Alignment(points, nodes, (*names, "global"), found.plan[0], float(found.cost), phi, structure)


def locate(keypoints: "Tensor", size: tuple[int, int], threshold: float = 0.0) -> "Tensor":
    """Return coordinates (B, K, 3) in images of ``size`` (H, W); of heatmaps the centers of their highest cells.

    A key point is visible where its heatmap (of (B, K, h, w)) rises above ``threshold``; coordinates stay as they are.
    """
    import torch

    if keypoints.ndim == 3:
        return keypoints
    h, w = keypoints.shape[2:]
    peak, cell = keypoints.flatten(2).max(2)
    x, y = (cell % w + 0.5) * size[1] / w, (cell // w + 0.5) * size[0] / h
    return torch.stack([x, y, peak > threshold], -1)
