"""Pictures of a ranking: CMC curves and ranked lists."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from vireid._checks import check_count
from vireid.plots._drawing import (
    COLORS,
    GRAY,
    GREEN,
    LINES,
    MARKERS,
    MODALITIES,
    RED,
    draw_first,
    draw_frame,
    draw_image,
    finish,
    new_canvas,
    new_figure,
    show_numbers,
    to_array,
    to_images,
    to_modality,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def cmc_curves(
    curves: Mapping[str, Tensor | np.ndarray | Sequence[float]],
    path: str | os.PathLike[str] | None = None,
    *,
    max_rank: int = 20,
) -> "Figure":
    """Draw cumulative matching characteristics, one line per method; the legend states its rank-1.

    Args:
        curves: name -> (R,) matching rate at rank 1, 2, …, R in [0, 1] (`RankMetrics.cmc`); drawn in the order given.
        path: where to write the figure as well.
        max_rank: number of ranks shown; a shorter curve ends earlier.

    Raises:
        ValueError: if there is no curve, or one is not (R,) with R >= 1 and values in [0, 1].
    """
    check_count("max_rank", max_rank)
    if not isinstance(curves, Mapping):
        raise TypeError(f"curves must be a mapping of names to curves, got {type(curves).__name__}")
    if not curves:
        raise ValueError("curves must hold at least one curve, got none")
    values = {name: to_array(f"curves[{name!r}]", curve, "R") for name, curve in curves.items()}
    for name, cmc in values.items():
        if not ((cmc >= 0) & (cmc <= 1)).all():
            raise ValueError(f"curves[{name!r}] must lie in [0, 1], got {cmc.min()} to {cmc.max()}")
    beside = max(map(len, values)) > 24  # names with their parameters would cover the curves
    figure = new_figure(7.6 if beside else 4.6, 3.4)
    axes: Any = figure.add_subplot()
    for i, (name, cmc) in enumerate(values.items()):
        shown = 100 * cmc[:max_rank]
        axes.plot(
            np.arange(1, len(shown) + 1),
            shown,
            label=f"{name} ({shown[0]:.1f})",
            color=COLORS[i % len(COLORS)],
            linestyle=LINES[i % len(LINES)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=4,
            markevery=max(1, min(max_rank, len(cmc)) // 10),
            linewidth=1.6,
            clip_on=False,
            zorder=3,
        )
    longest = min(max_rank, max(len(cmc) for cmc in values.values()))
    axes.set(xlabel="Rank", ylabel="Matching rate (%)", xlim=(1, max(longest, 2)))
    axes.set_ylim(top=100)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xticks(sorted({1, *(t for t in map(int, axes.get_xticks()) if 1 < t <= longest)}))
    axes.grid(color="0.9", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.0)} if beside else {"loc": "best"}
    axes.legend(title="Method (rank-1, %)", frameon=True, framealpha=0.95, edgecolor="none", **place)
    return finish(figure, path)


def ranked_lists(
    queries: Tensor | np.ndarray,
    hits: Tensor | np.ndarray,
    correct: Tensor | np.ndarray,
    path: str | os.PathLike[str] | None = None,
    *,
    distance: Tensor | np.ndarray | None = None,
    modality: Tensor | np.ndarray | None = None,
    names: Sequence[str] | None = None,
    title: str | None = None,
) -> "Figure":
    """Draw each query beside the gallery images it ranks first: right ones framed green, wrong ones red and dashed.

    Args:
        queries: (Q, 3, H, W) RGB, uint8 or floating point in [0, 1]; not normalized.
        hits: (Q, R, 3, H, W) gallery images, likewise, nearest first; the top R = 10 in most papers.
        correct: (Q, R) bool, whether the gallery image shows the query's identity.
        path: where to write the figure as well.
        distance: (Q, R), written below the gallery images; cosines or affinities will do as well.
        modality: (Q,) of the queries, `vireid.VISIBLE` or `vireid.INFRARED`, written beside each.
        names: of the Q rows, written beside them in place of the modality, such as those of two models by turns.
        title: line above the picture.

    Raises:
        TypeError: if the images are neither uint8 nor floating point, or ``correct`` is not bool.
        ValueError: if shapes do not go together, Q or R is 0, an image leaves [0, 1], a modality is another number, or
            there are both names and modality.
    """
    queries = to_images("queries", queries, "Q 3 H W")
    count, _, height, width = queries.shape
    hits = to_images("hits", hits, "Q R 3 H W", Q=count, H=height, W=width)
    ranks = hits.shape[1]
    correct = to_array("correct", correct, "Q R", "bool", Q=count, R=ranks)
    if distance is not None:
        distance = to_array("distance", distance, "Q R", Q=count, R=ranks)
        written = show_numbers(distance.ravel().tolist(), 3 if np.abs(distance).max() < 10 else 1)
    if modality is not None:
        modality = to_modality(modality, count)
    beside = None if modality is None else [MODALITIES[int(kind)] for kind in modality]
    if names is not None:
        if beside is not None or len(names) != count:
            raise ValueError(f"names must hold {count} names, one per row, without modality, got {len(names)}")
        beside = list(names)

    # in inches: cells are 0.62 wide, as high as the images ask for
    cell_w, gap, query_gap = 0.62, 0.13, 0.34
    cell_h = cell_w * height / width
    row_h = cell_h + (0.30 if distance is not None else gap)
    left, top, bottom = (0.0 if beside is None else 0.24), (0.50 if title else 0.30), 0.30
    total_w = left + cell_w + query_gap + ranks * (cell_w + gap) - gap
    total_h = top + count * row_h + bottom - (gap if distance is None else 0.06)
    figure, axes = new_canvas(total_w, total_h, title)
    columns = left + cell_w + query_gap + np.arange(ranks) * (cell_w + gap)
    small: dict[str, Any] = {"ha": "center", "fontsize": 8, "color": GRAY}
    axes.text(left + cell_w / 2, top - 0.07, "query", va="bottom", **small)
    for rank, x in enumerate(columns, start=1):
        axes.text(x + cell_w / 2, top - 0.07, str(rank), va="bottom", **small)
    for q in range(count):
        y = top + q * row_h
        draw_first(axes, queries[q], left, y, (cell_w, cell_h), None if beside is None else beside[q])
        for rank, x in enumerate(columns):
            color, line = (GREEN, "-") if correct[q, rank] else (RED, (0, (2.2, 1.1)))
            draw_image(axes, hits[q, rank], x, y, cell_w, cell_h)
            draw_frame(axes, x, y, cell_w, cell_h, color, line)
            if distance is not None:
                axes.text(x + cell_w / 2, y + cell_h + 0.06, written[q * ranks + rank], va="top", **small)
    y = total_h - 0.1
    middle = (columns[0] + columns[-1] + cell_w) / 2
    axes.text(middle - 0.1, y, "■ same identity", color=GREEN, ha="right", va="center", fontsize=8)
    axes.text(middle + 0.1, y, "■ another identity", color=RED, ha="left", va="center", fontsize=8)
    return finish(figure, path)
