"""Costs of a transport plan between the graphs of a visible and an infrared image (G2DA, Eq. 4-7)."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from vireid._checks import check_option
from vireid._ops import normalize_rows
from vireid.plots._drawing import check_limits, finish, new_canvas, text_width, to_array
from vireid.plots._matrix import SIDE, bar_room, check_plan, draw_matrix, draw_matrix_bar, frame_cells, node_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    """Draw the costs of a plan T: distances c = 1 - cos between and within two graphs, and the structures' difference.

        upper left   c(v_i^R, v_j^I), the cells framed where T is at least half of min(max u, max v), and
                     D_w = Σ_ij T_ij c(v_i^R, v_j^I)
        upper right  E_ii' = Σ_jj' T_ij T_i'j' L_ii'jj' / (u_i u_i'): by how much the distance between two visible nodes
                     differs from that between the infrared ones they go to, in the mean over T; u and v are T's row and
                     column sums, and
                     D_gw = Σ_ii' u_i u_i' E_ii'
        lower left   c(v_i^R, v_i'^R)
        lower right  c(v_j^I, v_j'^I)

    The four share one color scale. Nodes without mass are absent and gray.

    Args:
        visible: (n, d) node features of the visible image, those given to `vireid.ot.graph_ot`.
        infrared: (m, d) those of the infrared image.
        plan: (n, m) T, as `vireid.ot.graph_ot` returns it for each pair; at least 0.
        path: where to write the figure as well.
        loss: L = |c - c'|, "abs" as in the paper, or (c - c')², "square".
        names: of the n nodes; "1" and on if None.
        names_infrared: of the m nodes of the infrared image; the same if None.
        limits: ends of the color scale, such as (0, 2), the range of c; if None, 0 and the largest value.
        title: line above the picture.

    Raises:
        TypeError: if features or plan are not floating point.
        ValueError: if shapes or names do not go together, a number is not finite, the plan holds a negative number, or
            ``limits`` do not rise.
    """
    check_option("loss", loss, ("abs", "square"))
    values = check_plan(plan)
    n, m = values.shape
    x = to_array("visible", visible, "n d", "float", finite=True, n=n)
    y = to_array("infrared", infrared, "m d", "float", finite=True, m=m, d=x.shape[1])
    labels = node_names(names, names_infrared, values.shape, values.shape)
    rows, columns = (normalize_rows(torch.from_numpy(side.astype(np.float64))).numpy() for side in (x, y))
    between, first, second = 1 - rows @ columns.T, _within(rows), _within(columns)
    u, v = values.sum(1), values.sum(0)
    difference = _difference(first, second, values, loss)
    wasserstein, gromov = (values * between).sum(), (u[:, None] * u * difference).sum()
    panels = [  # in each, the sides of its rows and columns: 0 visible, 1 infrared
        (between, 0, 1, f"between:  $c(v_i^R, v_j^I)$,  $D_w$ = {wasserstein:.3f}"),
        (difference, 0, 0, f"difference under $T$,  $D_{{gw}}$ = {gromov:.3f}"),
        (first, 0, 0, "within visible:  $c(v_i^R, v_{i'}^R)$"),
        (second, 1, 1, "within infrared:  $c(v_j^I, v_{j'}^I)$"),
    ]
    present = u > 0, v > 0
    drawn = [np.where(present[a][:, None] & present[b], matrix, np.nan) for matrix, a, b, _ in panels]
    if limits is None:
        high = max(float(np.nanmax(matrix)) for matrix in drawn)
        limits = 0.0, high if high > 1e-6 else 1.0  # rounding is no distance
    limits = check_limits("limits", limits)

    cell = SIDE / max(n, m)
    name_w = [text_width(labels[0], 7), text_width(labels[1], 7)]
    head, side_w = 0.24, 0.20
    lefts = [side_w + name_w[0], 0.0]
    lefts[1] = lefts[0] + SIDE + 0.25 + side_w + max(name_w)
    tops = [(0.30 if title else 0.05) + head, 0.0]
    tops[1] = tops[0] + cell * n + 0.27 + max(name_w) + head
    right = lefts[1] + SIDE
    figure, axes = new_canvas(right + bar_room(cell), tops[1] + SIDE + 0.27 + max(name_w), title)
    for p, ((_, a, b, heading), matrix) in enumerate(zip(panels, drawn, strict=True)):
        sides = [("visible", "infrared")[side] for side in (a, b)]
        corner = lefts[p % 2], tops[p // 2]
        draw_matrix(axes, matrix, *corner, cell, limits, (labels[a], labels[b]), sides, heading, _written)
    frame_cells(axes, values, labels, lefts[0], tops[0], cell)
    if bar_room(cell):
        draw_matrix_bar(axes, right, tops[0], SIDE, limits)
    return finish(figure, path)


def _within(rows: np.ndarray) -> np.ndarray:
    """Return the distances of the nodes of one graph; a node's own is 0, even if its feature is zero."""
    distance = 1 - rows @ rows.T
    np.fill_diagonal(distance, 0)
    return distance


def _difference(first: np.ndarray, second: np.ndarray, plan: np.ndarray, loss: str) -> np.ndarray:
    """Return E_ii' (n, n): the mean loss between the distance of two visible nodes and those of their targets."""
    u = plan.sum(1, keepdims=True)
    share = plan / np.where(u > 0, u, 1)
    result = np.empty_like(first)
    for i in range(len(first)):  # a row at a time: n²m² numbers need not exist at once
        gap = first[i][:, None, None] - second  # (i', j, j')
        gap = np.abs(gap) if loss == "abs" else gap**2
        result[i] = np.einsum("ajb,j,ab->a", gap, share[i], share)
    return result


def _written(distance: float) -> str:
    """Return two decimals, without the zero before the point; one decimal from 1 on."""
    if np.isnan(distance):
        return ""
    text = f"{abs(distance):.2f}"
    return "0" if text == "0.00" else text.removeprefix("0") if text < "1" else f"{distance:.1f}"
