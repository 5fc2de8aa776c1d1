"""Visible and infrared images of the same people, and the graphs that a trained G2DA makes of such a pair."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import click

from vireid import INFRARED, VISIBLE
from vireid.cli.options import Data

if TYPE_CHECKING:  # imported where they are used: the help needs no torch
    import numpy as np
    from torch import Tensor

    from vireid.cli.trained import Trained
    from vireid.training.datasets import Dataset


def evenly(values: "np.ndarray", count: int) -> "np.ndarray":
    """Return ``count`` of the values, or all if there are fewer, at even steps from the first to the last."""
    import numpy as np

    return values[np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int)]


def both_kinds(dataset: "Dataset") -> "np.ndarray":
    """Return the people with a visible and an infrared image."""
    import numpy as np

    return np.intersect1d(*(dataset.ids[dataset.modality == kind] for kind in (VISIBLE, INFRARED)))


def read_pairs(dataset: "Dataset", people: Iterable[int], count: int | None = None) -> Any:
    """Return a batch of the first visible and the first infrared image of each of these people, ``count`` in all."""
    import numpy as np
    from torch.utils.data import default_collate

    of = [(dataset.ids == i) & (dataset.modality == kind) for i in people for kind in (VISIBLE, INFRARED)]
    return default_collate([dataset[int(np.flatnonzero(rows)[0])] for rows in of[:count]])


def draw_points(found: "Trained", shown: Any, device: str) -> "list[Tensor]":
    """Return the heatmaps (B, K, h, w) of a batch's key points in a list, empty for a model that needs none."""
    from vireid.training.datasets import draw_heatmaps

    if not hasattr(shown, "keypoints"):
        return []
    return [draw_heatmaps(shown.keypoints.to(device), found.recipe.size)]


class Pair(NamedTuple):
    """A visible and an infrared image of a person, ``images`` (2, 3, H, W), their graphs, and the plan between them.

    ``points`` (2, K, 2 or 3) are the places of the nodes, but for the global one, ``nodes`` (2, K + 1, d) their
    features, ``names`` those of all K + 1; ``plan`` is T with ``structure``, and ``title`` states its cost D_ot.
    """

    images: "Tensor"
    points: "Tensor"
    nodes: "Tensor"
    names: tuple[str, ...]
    plan: "Tensor"
    structure: Literal["abs", "square"]
    title: str


def open_pair(checkpoint: Path, identity: int | None, data: Data) -> Pair:
    """Align two images of a person, by default the first one, as the training of a G2DA did.

    A node that one of the two images lacks is left out of both.
    """
    import torch

    from vireid.cli.trained import open_trained
    from vireid.data import EvalTransform
    from vireid.nn import PERSON_13
    from vireid.ot import graph_ot
    from vireid.training import settings_of
    from vireid.training.datasets import draw_heatmaps

    found = open_trained(checkpoint, data)
    if found.method != "g2da":
        raise click.UsageError(f"{checkpoint} is of vireid train {found.method}: take one of vireid train g2da.")
    people = both_kinds(found.images)
    identity = int(people[0]) if identity is None else identity
    if identity not in people:
        listed = ", ".join(map(str, people[:10])) + (", …" if len(people) > 10 else "")
        raise click.UsageError(
            f"--identity must have a visible and an infrared image, as {listed} have, got {identity}."
        )
    shown, (height, width) = read_pairs(found.images, [identity]), found.images.size
    inputs = [EvalTransform()(shown.image.to(data.device)), shown.modality.to(data.device)]
    settings: dict[str, Any] = settings_of("g2da") | found.settings
    if settings["part_grid"]:
        rows, columns = settings["part_grid"]
        parts = [(i, j) for i in range(rows) for j in range(columns)]
        places = [((j + 0.5) * width / columns, (i + 0.5) * height / rows) for i, j in parts]
        points = torch.tensor(places).expand(2, -1, -1)
        names: tuple[str, ...] = tuple(f"row {i + 1}, column {j + 1}" for i, j in parts)
    else:
        inputs.append(draw_heatmaps(shown.keypoints.to(data.device), (height, width)))
        points, names = locate(shown.keypoints, (height, width)), PERSON_13.names
    phi, structure = settings["phi"], settings["structure"]
    with torch.no_grad():
        output = found.model(*inputs)
        nodes, both = output.nodes.float(), output.mask.all(0)[None]
        solved = graph_ot(nodes[:1], nodes[1:], phi=phi, loss=structure, mask_x=both, mask_y=both)
    title = f"identity {identity}: $D_{{ot}}$ = {float(solved.cost):.3f} with φ = {phi:g}"
    return Pair(shown.image, points, nodes, (*names, "global"), solved.plan[0], structure, title)


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
