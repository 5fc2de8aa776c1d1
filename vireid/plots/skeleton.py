"""Skeleton graphs drawn over their images (G2DA, §III-C)."""

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from vireid._checks import check_count
from vireid.nn.skeleton import PERSON_13, Skeleton
from vireid.plots._drawing import (
    BLUE,
    COLORS,
    GRAY,
    MODALITIES,
    draw_image,
    draw_nodes,
    draw_outline,
    finish,
    new_canvas,
    show_name,
    text_width,
    to_images,
    to_modality,
    to_points,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEFT, RIGHT, MIDDLE = COLORS[5], COLORS[4], "white"  # of the person's own left and right
_DARK = "#202020"
_WIDTH, _GAP, _NAME_STEP = 0.8, 0.12, 0.115  # inches: of an image, between images, from one name to the next


def skeleton_graph(
    images: Tensor | np.ndarray,
    keypoints: Tensor | np.ndarray,
    path: str | os.PathLike[str] | None = None,
    *,
    skeleton: Skeleton = PERSON_13,
    modality: Tensor | np.ndarray | None = None,
    names: bool = False,
    global_node: bool = False,
    columns: int | None = None,
    title: str | None = None,
) -> "Figure":
    """Draw the skeleton graph of each image over it: bones and key points, colored by the person's left and right.

    A key point that is not visible, outside the image or NaN is left out with its bones.

    Args:
        images: (B, 3, H, W) RGB, uint8 or floating point in [0, 1]; not normalized.
        keypoints: (B, K, 2) x and y in pixels of the images, or (B, K, 3) with a third number that is above 0 where the
            key point is visible, as `vireid.nn.gaussian_heatmaps` takes them: the edges of an image are at 0, W and H.
        path: where to write the figure as well.
        skeleton: names and bones of the K key points. Those of a fixed grid have no bones: ``Skeleton(names, ())``.
        modality: (B,) `vireid.VISIBLE` or `vireid.INFRARED`, written below each image.
        names: write the name of each key point beside the image.
        global_node: show the global node too, above the image, and its edges to the key points.
        columns: images per row; if None, 8, or 3 with names, which fills the width of a page.
        title: line above the picture.

    Raises:
        TypeError: if the images are neither uint8 nor floating point, or key points are not real numbers.
        ValueError: if shapes do not go together or are empty, an image leaves [0, 1], a modality is another number,
            ``columns`` is below 1, or a bone ends at a key point that is not there.
    """
    pictures = to_images("images", images)
    count, _, height, width = pictures.shape
    if not isinstance(skeleton, Skeleton):
        raise TypeError(f"skeleton must be a Skeleton, got {type(skeleton).__name__}")
    nodes = len(skeleton.names)
    points, seen = to_points("keypoints", keypoints, (count, nodes), (height, width))
    for bone in skeleton.bones:
        if len(bone) != 2 or not all(0 <= end < nodes for end in bone):
            raise ValueError(f"skeleton.bones must be pairs from 0 to {nodes - 1}, got {bone}")
    if modality is not None:
        modality = to_modality(modality, count)
    columns = (3 if names else 8) if columns is None else columns
    check_count("columns", columns)

    beside = text_width(skeleton.names, 6.5) + 0.13 if names else 0.0
    cell_w = _WIDTH + 2 * beside
    cell_h = max(_WIDTH * height / width, (nodes + 1) // 2 * _NAME_STEP if names else 0)
    above, below = (0.26 if global_node else 0.0), (0.0 if modality is None else 0.17)
    columns = min(columns, count)
    rows = -(-count // columns)
    top, row_h, key = (0.28 if title else 0.05), above + cell_h + below + _GAP, 0.2
    sides = sorted({side_color(name) for name in skeleton.names} - {MIDDLE})
    grid_w = columns * (cell_w + _GAP) - _GAP
    total_w = max(grid_w, 1.2, text_width([title or ""], 10))
    total_h = top + rows * row_h + (key if sides else 0)
    _, axes = new_canvas(total_w, total_h, title)
    scale, tall = _WIDTH / width, _WIDTH * height / width
    for b in range(count):
        row, column = divmod(b, columns)
        x = (total_w - grid_w) / 2 + column * (cell_w + _GAP) + beside
        y = top + row * row_h + above + (cell_h - tall) / 2
        draw_image(axes, pictures[b], x, y, _WIDTH, tall)
        draw_outline(axes, x, y, _WIDTH, tall)
        placed = points[b] * scale + (x, y)
        if global_node:
            _draw_global(axes, (x + _WIDTH / 2, y - above / 2), placed[seen[b]])
        _draw_graph(axes, placed, seen[b], skeleton)
        if names:
            _draw_names(axes, placed, seen[b], skeleton.names, x, y, tall)
        if modality is not None:
            name = MODALITIES[int(modality[b])]
            axes.text(x + _WIDTH / 2, y + tall + 0.05, name, ha="center", va="top", fontsize=8, color=BLUE)
    y = total_h - 0.09
    if LEFT in sides:
        axes.text(total_w / 2 - 0.08, y, "● left", color=LEFT, ha="right", va="center", fontsize=8)
    if RIGHT in sides:
        axes.text(total_w / 2 + 0.08, y, "● right", color=RIGHT, ha="left", va="center", fontsize=8)
    return finish(axes.figure, path)


def side_color(*names: str) -> str:
    """Return the color of a key point, or of a bone between two: that of the only side its names begin with."""
    sides = {name.partition("_")[0] for name in names} & {"left", "right"}
    return MIDDLE if len(sides) != 1 else LEFT if "left" in sides else RIGHT


def _draw_graph(axes: Any, places: np.ndarray, seen: np.ndarray, skeleton: Skeleton) -> None:
    """Draw bones, each with a dark rim to show on light and on dark cloth, then the key points."""
    for i, j in skeleton.bones:
        if seen[i] and seen[j]:
            ends, color = places[[i, j]].T, side_color(skeleton.names[i], skeleton.names[j])
            axes.plot(*ends, color=_DARK, linewidth=2.6, solid_capstyle="round", zorder=4)
            axes.plot(*ends, color=color, linewidth=1.5, solid_capstyle="round", zorder=5)
    draw_nodes(axes, places[seen], [side_color(name) for name in np.array(skeleton.names)[seen]])


def _draw_global(axes: Any, place: tuple[float, float], others: np.ndarray) -> None:
    """Draw the global node, a diamond, and its edges."""
    for x, y in others:
        axes.plot((place[0], x), (place[1], y), color="white", linewidth=1.1, alpha=0.7, zorder=3.5)
        axes.plot((place[0], x), (place[1], y), color=GRAY, linewidth=0.6, zorder=3.6)
    draw_nodes(axes, np.array([place]), [GRAY], "D")
    axes.text(place[0] + 0.07, place[1], "global", ha="left", va="center", fontsize=6.5, color=GRAY)


def _draw_names(
    axes: Any, places: np.ndarray, seen: np.ndarray, names: tuple[str, ...], x: float, y: float, tall: float
) -> None:
    """Draw names beside the image, half of them on either side, each joined to its key point by a thin line."""
    order = np.flatnonzero(seen)[np.argsort(places[seen, 0], kind="stable")]
    half = (len(order) + 1) // 2
    for chosen, edge, away, ha in ((order[:half], x, -1, "right"), (order[half:], x + _WIDTH, 1, "left")):
        chosen = chosen[np.argsort(places[chosen, 1], kind="stable")]
        for n, level in zip(chosen, _spread(places[chosen, 1], y + tall / 2, tall), strict=True):
            line = (places[n, 0], edge + away * 0.04, edge + away * 0.09), (places[n, 1], level, level)
            axes.plot(*line, color="white", linewidth=1.1, alpha=0.7, zorder=3.5)
            axes.plot(*line, color=GRAY, linewidth=0.5, zorder=3.6)
            axes.text(edge + away * 0.11, level, show_name(names[n]), ha=ha, va="center", fontsize=6.5, color=GRAY)


def _spread(levels: np.ndarray, middle: float, length: float) -> np.ndarray:
    """Move rising ``levels`` so that each is a name's step below the one before it and all stand beside the image."""
    steps = np.arange(len(levels)) * _NAME_STEP
    room = max(length - _NAME_STEP, steps.max(initial=0))
    # Less its steps, no level may be below the one before it: take the mean of the two ways to achieve that.
    free = np.clip(levels - steps, middle - room / 2, middle + room / 2 - steps.max(initial=0))
    return (np.maximum.accumulate(free) + np.minimum.accumulate(free[::-1])[::-1]) / 2 + steps
