"""Transport plans and costs between the graphs of a visible and an infrared image (G2DA, Eq. 4-7)."""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from vireid._checks import check_number, check_option
from vireid.plots._drawing import (
    BLUE,
    COLORS,
    GRAY,
    check_images,
    check_limits,
    check_shape,
    finish,
    new_canvas,
    to_numpy,
)
from vireid.plots.skeleton import (
    check_points,
    draw_frame,
    draw_nodes,
    draw_picture,
    show_name,
    side_color,
    text_width,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["cost_matrices", "transport_plan"]

_SAME, _OTHER = COLORS[2], COLORS[1]
_ABSENT = "#e8e8e8"
_SIDE = 2.6  # inches of the longer side of a matrix
_READABLE = 0.16  # inches: a cell below this has no number in it
_BEND = 0.06  # how far a line rises above the straight one, as a share of its length
_ROOM = 0.13  # inches: of two names, the next is this far away at least


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

    The wider and the less transparent a line, the more mass it carries; it is widest where it carries the most that
    could go from one node to another, min(max u, max v) of T's row sums u and column sums v: for uniform weights, all
    of a node. It is green and solid where both ends have one name, orange and dashed where not. Nodes that have no
    place in their image, such as the global one, stand above it if they carry mass. Nodes without mass are grey in the
    matrix.

    Args:
        visible: (3, H, W) RGB, uint8 or floating point in [0, 1]; not normalised.
        infrared: (3, H', W'), likewise.
        plan: (n, m) T, as `vireid.ot.graph_ot` returns it for each pair; at least 0.
        path: where to write the figure as well.
        points_visible: (k, 2) x and y of the first k ≤ n nodes in pixels of the image, or (k, 3) with a third number
            that is above 0 where the node is visible, as `skeleton_graph` takes them: key points, or the centres of a
            grid's cells. The nodes after them have no place.
        points_infrared: (l, 2) or (l, 3) for the infrared image, l ≤ m.
        names: of the n nodes; if None, "1" and on, and "global" for the last, if it is the one without a point. Names
            that begin with ``left_`` and ``right_`` give their nodes the colours of `skeleton_graph`.
        names_infrared: of the m nodes of the infrared image; the same if None.
        kept: lines are drawn from this share of the widest on; 0 draws all that carry mass.
        title: line above the picture.

    Raises:
        TypeError: if the images are neither uint8 nor floating point, or the plan is not floating point.
        ValueError: if shapes or names do not go together, a number of the plan is negative or not finite, an image
            leaves [0, 1] or ``kept`` is not in [0, 1].
        ImportError: if matplotlib is not installed.
    """
    pictures = [check_images("visible", visible, 3), check_images("infrared", infrared, 3)]
    values = _check_plan(plan)
    check_number("kept", kept)
    if not 0 <= kept <= 1:
        raise ValueError(f"kept must lie in [0, 1], got {kept}")
    nodes = [
        _check_nodes("points_visible", points_visible, values.shape[0], pictures[0]),
        _check_nodes("points_infrared", points_infrared, values.shape[1], pictures[1]),
    ]
    labels = _names(names, names_infrared, values.shape, [len(seen) for _, seen in nodes])

    share = values / _most(values)
    homeless = [_without_place(seen, share.sum(1 - i)) for i, (_, seen) in enumerate(nodes)]
    strip = max(0.2, max(map(len, homeless)) * 0.17 + 0.05)
    scales = [min(_SIDE / p.shape[1], _SIDE / 2 / p.shape[2]) for p in pictures]
    widths = [s * p.shape[2] for s, p in zip(scales, pictures, strict=True)]
    # names of nodes without a place may reach beyond their image, the key below both images
    aside = [
        max(0.0, text_width([labels[i][n] for n in homeless[i]], 7) + 0.25 - width) for i, width in enumerate(widths)
    ]
    gap, top = max(0.75, 2.4 - sum(widths)), (0.30 if title else 0.05) + strip
    corners = aside[0], aside[0] + widths[0] + gap
    left = corners[1] + widths[1] + aside[1] + 0.35 + text_width(labels[0], 7)
    cell = _SIDE / max(values.shape)
    below = max(0.52, 0.30 + text_width(labels[1], 7))
    bar = 0.0 if cell >= _READABLE else 0.55
    total_w, total_h = left + max(cell * values.shape[1], 0.5) + bar, top + _SIDE + below
    figure, axes = new_canvas(total_w, total_h)
    if title:
        axes.text(total_w / 2, 0.1, title, ha="center", va="center", fontsize=10)

    places = []
    for i, side in enumerate(("visible", "infrared")):
        x, tall = corners[i], scales[i] * pictures[i].shape[1]
        draw_picture(axes, pictures[i], x, top, widths[i], tall)
        axes.text(x + widths[i] / 2, top + tall + 0.06, side, ha="center", va="top", fontsize=8, color=BLUE)
        place = np.full((values.shape[i], 2), np.nan)
        points, seen = nodes[i]
        place[: len(seen)][seen] = points[seen] * scales[i] + (x, top)
        for row, n in enumerate(homeless[i][::-1]):
            inner = (x + widths[i] - 0.1, x + 0.1)[i]
            place[n] = inner, top - 0.14 - row * 0.17
            ha = ("right", "left")[i]
            name = show_name(labels[i][n])
            axes.text(inner + (-0.09, 0.09)[i], place[n, 1], name, ha=ha, va="center", fontsize=7, color=GRAY)
        places.append(place)
    _draw_lines(axes, share, places, labels, kept)
    for i, place in enumerate(places):
        shown = np.isfinite(place).all(1)
        inside = shown & ~np.isin(np.arange(len(place)), homeless[i])
        draw_nodes(axes, place[inside], [side_color(name) for name in np.array(labels[i])[inside]])
        draw_nodes(axes, place[homeless[i]], [GRAY] * len(homeless[i]), "D")
    middle, y = aside[0] + (sum(widths) + gap) / 2, top + _SIDE + 0.36
    for x, text, same in ((middle - 1.2, "same node", True), (middle + 0.1, "another node", False)):
        axes.plot((x, x + 0.26), (y, y), **_line(same, 0.7))
        axes.text(x + 0.32, y, text, color=GRAY, ha="left", va="center", fontsize=8)

    percent = 100 * values
    limits = (0.0, float(percent.max()))
    absent = (values.sum(1) == 0)[:, None] | (values.sum(0) == 0)
    drawn = np.where(absent, np.nan, percent)
    _draw_matrix(axes, drawn, left, top, cell, limits, labels, ("visible", "infrared"), _percent)
    axes.text(left, top - 0.07, "$T_{ij}$ (%)", ha="left", va="bottom", fontsize=8)
    if bar:
        _draw_bar(figure, left + cell * values.shape[1] + 0.12, top, cell * values.shape[0], limits)
    return finish(figure, path)


def cost_matrices(
    visible: Tensor | np.ndarray,
    infrared: Tensor | np.ndarray,
    plan: Tensor | np.ndarray,
    path: str | os.PathLike[str] | None = None,
    *,
    loss: Literal["abs", "square"] = "abs",
    names: Sequence[str] | None = None,
    names_infrared: Sequence[str] | None = None,
    limits: tuple[float, float] | None = None,
    title: str | None = None,
) -> "Figure":
    """Draw what a plan T pays: the distances c = 1 - cos between and within two graphs, and the structures' difference.

        upper left   c(v_i^R, v_j^I), the cells framed where T is at least half of min(max u, max v), and
                     D_w = Σ_ij T_ij c(v_i^R, v_j^I)
        upper right  E_ii' = Σ_jj' T_ij T_i'j' L_ii'jj' / (u_i u_i'): by how much the distance between two visible nodes
                     differs from that between the infrared ones they go to, in the mean over T; u and v are T's row and
                     column sums, and
                     D_gw = Σ_ii' u_i u_i' E_ii'
        lower left   c(v_i^R, v_i'^R)
        lower right  c(v_j^I, v_j'^I)

    One scale of colours serves all four. Nodes that the plan gives no mass are absent and grey.

    Args:
        visible: (n, d) node features of the visible image, those given to `vireid.ot.graph_ot`.
        infrared: (m, d) those of the infrared image.
        plan: (n, m) T, as `vireid.ot.graph_ot` returns it for each pair; at least 0.
        path: where to write the figure as well.
        loss: L = |c - c'|, "abs" as in the paper, or (c - c')², "square".
        names: of the n nodes; "1" and on if None.
        names_infrared: of the m nodes of the infrared image; the same if None.
        limits: ends of the scale of colours, such as (0, 2), all that c can be; if None, from 0 to the largest value.
        title: line above the picture.

    Raises:
        TypeError: if features or plan are not floating point.
        ValueError: if shapes or names do not go together, a number is not finite, the plan holds a negative number, or
            ``limits`` do not rise.
        ImportError: if matplotlib is not installed.
    """
    check_option("loss", loss, ("abs", "square"))
    values = _check_plan(plan)
    features = [_check_features("visible", visible), _check_features("infrared", infrared)]
    for i, side in enumerate(("visible", "infrared")):
        check_shape(side, features[i], (values.shape[i], features[0].shape[1]))
    labels = _names(names, names_infrared, values.shape, list(values.shape))
    rows, columns = _cosine_rows(features[0]), _cosine_rows(features[1])
    between, first, second = 1 - rows @ columns.T, _within(rows), _within(columns)
    u, v = values.sum(1), values.sum(0)
    there = u > 0, v > 0
    difference = _difference(first, second, values, loss)
    wasserstein, gromov = (values * between).sum(), (u[:, None] * u * difference).sum()
    panels = [
        (between, 0, 1, f"between:  $c(v_i^R, v_j^I)$,  $D_w$ = {wasserstein:.3f}"),
        (difference, 0, 0, f"difference under $T$,  $D_{{gw}}$ = {gromov:.3f}"),
        (first, 0, 0, "within visible:  $c(v_i^R, v_{i'}^R)$"),
        (second, 1, 1, "within infrared:  $c(v_j^I, v_{j'}^I)$"),
    ]
    drawn = [np.where(there[a][:, None] & there[b], matrix, np.nan) for matrix, a, b, _ in panels]
    ends = _check_limits(limits, drawn)

    cell = _SIDE / max(values.shape)
    name_w = [text_width(labels[0], 7), text_width(labels[1], 7)]
    head, top, side_w = 0.24, 0.30 if title else 0.05, 0.20
    lefts = [side_w + name_w[0], 0.0]
    lefts[1] = lefts[0] + cell * max(values.shape) + 0.25 + side_w + max(name_w)
    tops = [top + head, 0.0]
    tops[1] = tops[0] + cell * values.shape[0] + 0.27 + max(name_w) + head
    bar = 0.0 if cell >= _READABLE else 0.55
    total_w, total_h = lefts[1] + _SIDE + bar, tops[1] + _SIDE + 0.27 + max(name_w)
    figure, axes = new_canvas(total_w, total_h)
    if title:
        axes.text(total_w / 2, 0.1, title, ha="center", va="center", fontsize=10)
    for p, ((_, a, b, text), matrix) in enumerate(zip(panels, drawn, strict=True)):
        x, y = lefts[p % 2], tops[p // 2]
        sides = [("visible", "infrared")[s] for s in (a, b)]
        _draw_matrix(axes, matrix, x, y, cell, ends, [labels[a], labels[b]], (sides[0], sides[1]), _distance)
        axes.text(x, y - 0.11, text, ha="left", va="baseline", fontsize=8)
        if p == 0:
            _frame_cells(axes, values, labels, x, y, cell)
    if bar:
        _draw_bar(figure, lefts[1] + _SIDE + 0.12, tops[0], _SIDE, ends)
    return finish(figure, path)


def _check_plan(plan: Any) -> np.ndarray:
    """Checked T (n, m), float64."""
    values = to_numpy(plan)
    if values.dtype.kind != "f":
        raise TypeError(f"plan must be floating point, got {values.dtype}")
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"plan must have shape (n, m), at least one node each, got {values.shape}")
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError("plan must be finite and at least 0")
    if not values.any():
        raise ValueError("plan must carry some mass, got 0 throughout")
    return values.astype(np.float64)


def _check_nodes(name: str, points: Any, count: int, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`check_points` of at most ``count`` nodes."""
    points = to_numpy(points)
    if points.ndim != 2 or len(points) > count:
        raise ValueError(f"{name} must have shape (k, 2) or (k, 3) with k <= {count} nodes, got {points.shape}")
    return check_points(name, points, (len(points),), (image.shape[1], image.shape[2]))


def _check_features(name: str, features: Any) -> np.ndarray:
    values = to_numpy(features)
    if values.dtype.kind != "f":
        raise TypeError(f"{name} must be floating point, got {values.dtype}")
    if values.ndim != 2:
        raise ValueError(f"{name} must have shape (nodes, d), got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite, got NaN or an infinity")
    return values.astype(np.float64)


def _check_limits(limits: Any, matrices: list[np.ndarray]) -> tuple[float, float]:
    """Ends of the scale of all matrices."""
    if limits is None:
        high = max(float(np.nanmax(m)) for m in matrices)
        return 0.0, high if high > 1e-6 else 1.0  # rounding is no distance
    return check_limits("limits", limits)


def _names(first: Any, second: Any, shape: tuple[int, ...], points: list[int]) -> list[list[str]]:
    """Names of the nodes of both images; ``points`` of each have a place."""
    if first is None:
        if second is not None:
            raise ValueError("names must be given where names_infrared are")
        numbered = [[str(i) for i in range(1, n + 1)] for n in shape]
        return [[*n[:-1], "global"] if p == len(n) - 1 else n for n, p in zip(numbered, points, strict=True)]
    lists = [list(first), list(first if second is None else second)]
    for name, given, count in zip(("names", "names_infrared"), lists, shape, strict=True):
        if len(given) != count:
            raise ValueError(f"{name} must hold {count} names, one a node, got {len(given)}")
    return lists


def _most(plan: np.ndarray) -> float:
    """Mass that can go from one node to another at most."""
    return float(min(plan.sum(1).max(), plan.sum(0).max()))


def _without_place(seen: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Nodes that carry mass and have no place in the image."""
    placed = np.zeros(len(mass), dtype=bool)
    placed[: len(seen)] = seen
    return np.flatnonzero(~placed & (mass > 0))


def _cosine_rows(x: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 1e-12, length, 1)


def _within(rows: np.ndarray) -> np.ndarray:
    """Distances of nodes of one graph; of a node from itself 0, though its feature be zero."""
    distance = 1 - rows @ rows.T
    np.fill_diagonal(distance, 0)
    return distance


def _difference(first: np.ndarray, second: np.ndarray, plan: np.ndarray, loss: str) -> np.ndarray:
    """E_ii' (n, n): mean loss between the distance of two visible nodes and those of where T takes them."""
    u = plan.sum(1, keepdims=True)
    share = plan / np.where(u > 0, u, 1)
    result = np.empty_like(first)
    for i in range(len(first)):  # a row at a time: n²m² numbers need not exist at once
        gap = first[i][:, None, None] - second  # (i', j, j')
        gap = np.abs(gap) if loss == "abs" else gap**2
        result[i] = np.einsum("ajb,j,ab->a", gap, share[i], share)
    return result


def _draw_lines(axes: Any, share: np.ndarray, places: list[np.ndarray], labels: list[list[str]], kept: float) -> None:
    """Lines of the plan, the heaviest last, bent upwards so that those between nodes of one level lie apart."""
    t = np.linspace(0, 1, 33)[:, None]
    order = np.argsort(share, axis=None, kind="stable")
    for i, j in zip(*np.unravel_index(order, share.shape), strict=True):
        if share[i, j] == 0 or share[i, j] < kept:
            continue
        same = labels[0][i] == labels[1][j]
        start, end = places[0][i], places[1][j]
        rise = np.array([0, _BEND * np.linalg.norm(end - start)])
        line = start + t * (end - start) - 4 * t * (1 - t) * rise
        axes.plot(*line.T, **_line(same, min(float(share[i, j]), 1)))


def _line(same: bool, share: float) -> dict[str, Any]:
    """How a line looks that carries ``share`` of the most that can go from one node to another."""
    return {
        "color": _SAME if same else _OTHER,
        "linestyle": "-" if same else (0, (3, 1.2)),
        "linewidth": 0.4 + 1.6 * share,
        "alpha": 0.25 + 0.75 * share,
        "zorder": 5,
    }


def _draw_matrix(
    axes: Any,
    values: np.ndarray,
    x: float,
    y: float,
    cell: float,
    limits: tuple[float, float],
    labels: list[list[str]],
    sides: tuple[str, str],
    written: Callable[[float], str],
) -> None:
    """A matrix with its upper left corner at (x, y), names and numbers; grey where ``values`` are NaN."""
    from matplotlib import colormaps

    height, width = (cell * n for n in values.shape)
    colors = colormaps["Blues"].with_extremes(bad=_ABSENT)
    place: dict[str, Any] = {"extent": (x, x + width, y + height, y), "aspect": "auto", "interpolation": "nearest"}
    axes.imshow(values, cmap=colors, vmin=limits[0], vmax=limits[1], **place)
    draw_frame(axes, x, y, width, height)
    step = int(np.ceil(_ROOM / cell)) if cell < _ROOM else 1
    for n in range(0, values.shape[0], step):
        text = show_name(labels[0][n])
        axes.text(x - 0.05, y + (n + 0.5) * cell, text, ha="right", va="center_baseline", fontsize=7)
    for n in range(0, values.shape[1], step):
        text = show_name(labels[1][n])
        axes.text(x + (n + 0.5) * cell, y + height + 0.05, text, ha="center", va="top", fontsize=7, rotation=90)
    aside: dict[str, Any] = {"va": "center", "ha": "center", "fontsize": 8, "color": BLUE}
    axes.text(x - 0.15 - text_width(labels[0], 7), y + height / 2, sides[0], rotation=90, **aside)
    axes.text(x + width / 2, y + height + 0.16 + text_width(labels[1], 7), sides[1], **aside)
    if cell < _READABLE:
        return
    for (i, j), value in np.ndenumerate(values):
        text = written(value)
        if text:
            dark = (value - limits[0]) / (limits[1] - limits[0]) > 0.65
            middle = x + (j + 0.5) * cell, y + (i + 0.5) * cell
            axes.text(*middle, text, ha="center", va="center", fontsize=6, color="white" if dark else "black")


def _percent(value: float) -> str:
    """Three characters; nothing below a twentieth of a percent."""
    if not value >= 0.05:
        return ""
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def _distance(value: float) -> str:
    """Two decimals, without the zero before the point; one decimal from 1 on."""
    if np.isnan(value):
        return ""
    text = f"{abs(value):.2f}"
    return "0" if text == "0.00" else text.removeprefix("0") if text < "1" else f"{value:.1f}"


def _frame_cells(axes: Any, plan: np.ndarray, labels: list[list[str]], x: float, y: float, cell: float) -> None:
    """Frames around cells that carry at least half of what can go from one node to another."""
    from matplotlib.patches import Rectangle

    for i, j in np.argwhere(plan >= _most(plan) / 2):
        color = _SAME if labels[0][i] == labels[1][j] else _OTHER
        frame: dict[str, Any] = {"fill": False, "edgecolor": color, "linewidth": 1.3, "zorder": 3}
        axes.add_patch(Rectangle((x + (j + 0.08) * cell, y + (i + 0.08) * cell), 0.84 * cell, 0.84 * cell, **frame))


def _draw_bar(figure: "Figure", x: float, y: float, height: float, limits: tuple[float, float]) -> None:
    """Colour bar from (x, y) down, in inches of the canvas."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    wide, tall = figure.get_size_inches()  # new_canvas leaves a margin of 0.1 left and 0.05 above
    place = ((x + 0.1) / wide, 1 - (y + height + 0.05) / tall, 0.1 / wide, height / tall)
    bar = figure.colorbar(ScalarMappable(Normalize(*limits), "Blues"), cax=figure.add_axes(place))
    bar.ax.tick_params(labelsize=7, length=2)
