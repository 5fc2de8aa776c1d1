"""Transport plans between the graphs of a visible and an infrared image (G2DA, Eq. 4-7)."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from vireid._checks import check_fraction
from vireid.plots._drawing import (
    BLUE,
    GRAY,
    draw_image,
    draw_nodes,
    draw_outline,
    finish,
    new_canvas,
    show_name,
    text_width,
    to_images,
    to_numpy,
    to_points,
)
from vireid.plots._matrix import OTHER, SAME, SIDE, bar_room, check_plan, draw_matrix, draw_matrix_bar, most, node_names
from vireid.plots.skeleton import side_color

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BEND = 0.06  # how far a line rises above the straight one, as a share of its length
_STEP = 0.17  # inches from one node without a place to the next


def transport_plan(
    visible: Tensor | np.ndarray,
    infrared: Tensor | np.ndarray,
    plan: Tensor | np.ndarray,
    path: str | os.PathLike[str] | None = None,
    *,
    points_visible: Tensor | np.ndarray,
    points_infrared: Tensor | np.ndarray,
    names: Sequence[str] | None = None,
    names_infrared: Sequence[str] | None = None,
    kept: float = 0.1,
    title: str | None = None,
) -> "Figure":
    """Draw the plan T between two images: as lines from node to node, and as a matrix in percent, rows visible.

    The wider and the more opaque a line, the more mass it carries; the widest carries the most that can go from one
    node to another, min(max u, max v) of T's row sums u and column sums v: for uniform weights, all of a node. It is
    green and solid if both ends have one name, orange and dashed if not. Nodes that have no
    place in their image, such as the global one, stand above it if they carry mass. Nodes without mass are gray in the
    matrix.

    Args:
        visible: (3, H, W) RGB, uint8 or floating point in [0, 1]; not normalized.
        infrared: (3, H', W'), likewise.
        plan: (n, m) T, as `vireid.ot.graph_ot` returns it for each pair; at least 0.
        path: where to write the figure as well.
        points_visible: (k, 2) x and y of the first k ≤ n nodes in pixels of the image, or (k, 3) with a third number
            that is above 0 where the node is visible, as `skeleton_graph` takes them: key points, or the centers of a
            grid's cells. The nodes after them have no place.
        points_infrared: (l, 2) or (l, 3) for the infrared image, l ≤ m.
        names: of the n nodes; if None, "1" and on, and "global" for the last if only it has no point. Names that
            begin with ``left_`` and ``right_`` give their nodes the colors of `skeleton_graph`.
        names_infrared: of the m nodes of the infrared image; the same if None.
        kept: least mass of a drawn line, as a share of the widest; 0 draws all that carry mass.
        title: line above the picture.

    Raises:
        TypeError: if the images are neither uint8 nor floating point, or the plan is not floating point.
        ValueError: if shapes or names do not go together, a number of the plan is negative or not finite, an image
            leaves [0, 1] or ``kept`` is not in [0, 1].
    """
    pictures = [to_images("visible", visible, "3 H W"), to_images("infrared", infrared, "3 H W")]
    values = check_plan(plan)
    check_fraction("kept", kept)
    given = ("points_visible", points_visible), ("points_infrared", points_infrared)
    nodes = [
        _check_points(name, points, count, image.shape[1:])
        for (name, points), count, image in zip(given, values.shape, pictures, strict=True)
    ]
    labels = node_names(names, names_infrared, values.shape, [len(seen) for _, seen in nodes])

    share = values / most(values)
    homeless = [_without_place(seen, share.sum(1 - i)) for i, (_, seen) in enumerate(nodes)]
    scales = [min(SIDE / image.shape[1], SIDE / 2 / image.shape[2]) for image in pictures]
    widths = [scale * image.shape[2] for scale, image in zip(scales, pictures, strict=True)]
    # names of nodes without a place may reach beyond their image, the key below both images
    beyond = [max(0.0, text_width([labels[i][n] for n in homeless[i]], 7) + 0.25 - widths[i]) for i in range(2)]
    gap = max(0.75, 2.4 - sum(widths))
    top = (0.30 if title else 0.05) + max(0.2, max(map(len, homeless)) * _STEP + 0.05)
    corners = beyond[0], beyond[0] + widths[0] + gap
    left = corners[1] + widths[1] + beyond[1] + 0.35 + text_width(labels[0], 7)
    cell = SIDE / max(values.shape)
    right = left + cell * values.shape[1]
    total_w = max(right, left + 0.5) + bar_room(cell)
    figure, axes = new_canvas(total_w, top + SIDE + max(0.52, 0.30 + text_width(labels[1], 7)), title)

    places = []
    for i, side in enumerate(("visible", "infrared")):
        x, tall = corners[i], scales[i] * pictures[i].shape[1]
        draw_image(axes, pictures[i], x, top, widths[i], tall)
        draw_outline(axes, x, top, widths[i], tall)
        axes.text(x + widths[i] / 2, top + tall + 0.06, side, ha="center", va="top", fontsize=8, color=BLUE)
        points, seen = nodes[i]
        place = np.full((values.shape[i], 2), np.nan)
        place[: len(seen)][seen] = points[seen] * scales[i] + (x, top)
        inside = np.isfinite(place[:, 0])
        draw_nodes(axes, place[inside], [side_color(name) for name in np.array(labels[i])[inside]])
        inner, aside, ha = ((x + widths[i] - 0.1, -0.09, "right"), (x + 0.1, 0.09, "left"))[i]
        for row, n in enumerate(homeless[i][::-1]):
            place[n] = inner, top - 0.14 - row * _STEP
            name = show_name(labels[i][n])
            axes.text(inner + aside, place[n, 1], name, ha=ha, va="center", fontsize=7, color=GRAY)
        draw_nodes(axes, place[homeless[i]], [GRAY] * len(homeless[i]), "D")
        places.append(place)
    _draw_lines(axes, share, places, labels, kept)
    middle, y = beyond[0] + (sum(widths) + gap) / 2, top + SIDE + 0.36
    for x, text, same in ((middle - 1.2, "same node", True), (middle + 0.1, "another node", False)):
        axes.plot((x, x + 0.26), (y, y), **_line(same, 0.7))
        axes.text(x + 0.32, y, text, color=GRAY, ha="left", va="center", fontsize=8)

    absent = (values.sum(1) == 0)[:, None] | (values.sum(0) == 0)
    percent, limits = np.where(absent, np.nan, 100 * values), (0.0, float(100 * values.max()))
    sides = "visible", "infrared"
    draw_matrix(axes, percent, left, top, cell, limits, labels, sides, "$T_{ij}$ (%)", _written)
    if bar_room(cell):
        draw_matrix_bar(axes, right, top, cell * values.shape[0], limits)
    return finish(figure, path)


def _check_points(name: str, points: Any, count: int, size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return `to_points` of at most ``count`` nodes in an image of ``size``."""
    points = to_numpy(name, points)
    if points.ndim != 2 or len(points) > count:
        raise ValueError(f"{name} must have shape (k, 2) or (k, 3) with k <= {count} nodes, got {points.shape}")
    return to_points(name, points, (len(points),), (size[0], size[1]))


def _without_place(seen: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Return the nodes that carry mass and have no place in the image."""
    placed = np.zeros(len(mass), dtype=bool)
    placed[: len(seen)] = seen
    return np.flatnonzero(~placed & (mass > 0))


def _draw_lines(axes: Any, share: np.ndarray, places: list[np.ndarray], labels: list[list[str]], kept: float) -> None:
    """Draw the plan's lines, the heaviest last, bent upwards to separate those between nodes of one level."""
    t = np.linspace(0, 1, 33)[:, None]
    order = np.argsort(share, axis=None, kind="stable")
    for i, j in zip(*np.unravel_index(order, share.shape), strict=True):
        if share[i, j] == 0 or share[i, j] < kept:
            continue
        start, end = places[0][i], places[1][j]
        rise = np.array([0, _BEND * np.linalg.norm(end - start)])
        line = start + t * (end - start) - 4 * t * (1 - t) * rise
        axes.plot(*line.T, **_line(labels[0][i] == labels[1][j], min(float(share[i, j]), 1)))


def _line(same: bool, share: float) -> dict[str, Any]:
    """Return the style of a line that carries ``share`` of the most mass that can go between two nodes."""
    return {
        "color": SAME if same else OTHER,
        "linestyle": "-" if same else (0, (3, 1.2)),
        "linewidth": 0.4 + 1.6 * share,
        "alpha": 0.25 + 0.75 * share,
        "zorder": 5,
    }


def _written(percent: float) -> str:
    """Return at most three characters; an empty text below 0.05 percent."""
    if not percent >= 0.05:
        return ""
    return f"{percent:.1f}" if percent < 9.95 else f"{percent:.0f}"
