"""Checks of a transport plan and its node names; drawing of matrices between the nodes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vireid.plots._drawing import (
    BLUE,
    COLORS,
    check_range,
    draw_bar,
    draw_frame,
    draw_image,
    draw_outline,
    show_name,
    text_width,
    to_array,
)

SAME, OTHER = COLORS[2], COLORS[1]  # of lines and cells between nodes of one name, and of two
SIDE = 2.6  # inches of the longer side of a matrix
_ABSENT = "#e8e8e8"
_READABLE = 0.16  # inches: a cell below this has no number in it
_ROOM = 0.13  # inches: least distance between two names


def check_plan(plan: Any) -> np.ndarray:
    """Return checked T (n, m), float64."""
    values = to_array("plan", plan, "n m", "float").astype(np.float64)
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError("plan must be finite and at least 0")
    if not values.any():
        raise ValueError("plan must carry some mass, got 0 throughout")
    check_range("plan", values)
    return values


def node_names(
    names: Sequence[str] | None, infrared: Sequence[str] | None, shape: tuple[int, ...], places: Sequence[int]
) -> list[list[str]]:
    """Return the names of the nodes of both images; in each, the first ``places`` nodes have a point."""
    if names is None:
        if infrared is not None:
            raise ValueError("names must be given where names_infrared are")
        numbered = [[str(i) for i in range(1, n + 1)] for n in shape]
        return [[*n[:-1], "global"] if p == len(n) - 1 else n for n, p in zip(numbered, places, strict=True)]
    lists = [list(names), list(names if infrared is None else infrared)]
    for argument, given, count in zip(("names", "names_infrared"), lists, shape, strict=True):
        if len(given) != count:
            raise ValueError(f"{argument} must hold {count} names, one per node, got {len(given)}")
    return lists


def most(plan: np.ndarray) -> float:
    """Return the most mass that can go from one node to another."""
    return float(min(plan.sum(1).max(), plan.sum(0).max()))


def bar_room(cell: float) -> float:
    """Return the width in inches of the color bar beside matrices of such cells: 0 if they hold numbers."""
    return 0.0 if cell >= _READABLE else 0.55


def draw_matrix(
    axes: Any,
    values: np.ndarray,
    x: float,
    y: float,
    cell: float,
    limits: tuple[float, float],
    names: Sequence[list[str]],
    sides: Sequence[str],
    heading: str,
    written: Callable[[float], str],
) -> None:
    """Draw a matrix with its upper left corner at (x, y), names and numbers; gray where ``values`` are NaN."""
    from matplotlib import colormaps

    height, width = (cell * n for n in values.shape)
    colors = colormaps["Blues"].with_extremes(bad=_ABSENT)
    draw_image(axes, values, x, y, width, height, cmap=colors, vmin=limits[0], vmax=limits[1])
    draw_outline(axes, x, y, width, height)
    axes.text(x, y - 0.09, heading, ha="left", va="baseline", fontsize=8)
    step = int(np.ceil(_ROOM / cell)) if cell < _ROOM else 1
    for n in range(0, values.shape[0], step):
        text = show_name(names[0][n])
        axes.text(x - 0.05, y + (n + 0.5) * cell, text, ha="right", va="center_baseline", fontsize=7)
    for n in range(0, values.shape[1], step):
        text = show_name(names[1][n])
        axes.text(x + (n + 0.5) * cell, y + height + 0.05, text, ha="center", va="top", fontsize=7, rotation=90)
    style: dict[str, Any] = {"va": "center", "ha": "center", "fontsize": 8, "color": BLUE}
    axes.text(x - 0.15 - text_width(names[0], 7), y + height / 2, sides[0], rotation=90, **style)
    axes.text(x + width / 2, y + height + 0.16 + text_width(names[1], 7), sides[1], **style)
    for (i, j), value in np.ndenumerate(values) if cell >= _READABLE else ():
        if text := written(value):
            dark = (value - limits[0]) / (limits[1] - limits[0]) > 0.65
            middle = x + (j + 0.5) * cell, y + (i + 0.5) * cell
            axes.text(*middle, text, ha="center", va="center", fontsize=6, color="white" if dark else "black")


def draw_matrix_bar(axes: Any, x: float, y: float, height: float, limits: tuple[float, float]) -> None:
    """Draw the color bar beside a matrix whose upper right corner is (x, y)."""
    draw_bar(axes.figure, x + 0.12, y, 0.1, height, (*limits, "Blues"))


def frame_cells(axes: Any, plan: np.ndarray, names: Sequence[list[str]], x: float, y: float, cell: float) -> None:
    """Frame the cells with at least half of the most mass that can go from one node to another."""
    for i, j in np.argwhere(plan >= most(plan) / 2):
        color = SAME if names[0][i] == names[1][j] else OTHER
        draw_frame(axes, x + (j + 0.1) * cell, y + (i + 0.1) * cell, 0.8 * cell, 0.8 * cell, color, inches=0.018)
