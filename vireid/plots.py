"""Pictures of a ranking: CMC curves, ranked lists, CIFT's surface of feature and affinity quality, and cost curves.

Every function returns a ``matplotlib.figure.Figure`` that belongs to the caller (no pyplot, no global state, no display
needed) and, where a ``path`` is given, also writes it: the suffix chooses the format (png, pdf, svg, …), and the file
appears whole or not at all. All but `feature_affinity_sweep`, which only counts, need ``pip install 'vireid[plots]'``.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vireid import INFRARED, VISIBLE
from vireid._checks import check_count, check_positive
from vireid._files import written_whole
from vireid.metrics import affinity_quality, feature_margin

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "AffinitySweep",
    "affinity_quality_surface",
    "cmc_curves",
    "cost_curves",
    "feature_affinity_sweep",
    "ranked_lists",
]

_BLUE, _GREEN, _RED, _GREY = "#1f4e9c", "#1a8f3c", "#d1242f", "#57606a"
# Colour-blind safe, and told apart by line and marker in print as well.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_LINES = ("-", "--", "-.", ":")
_MARKERS = "osD^vPX"


def cmc_curves(
    curves: Mapping[str, Tensor | np.ndarray | Sequence[float]],
    path: str | os.PathLike[str] | None = None,
    *,
    max_rank: int = 20,
) -> "Figure":
    """Draw cumulative matching characteristics, one line per method; the legend states each one's rank-1.

    Args:
        curves: name -> (R,) matching rate at rank 1, 2, …, R in [0, 1] (`RankMetrics.cmc`); drawn in the order given.
        path: where to write the figure as well.
        max_rank: ranks shown; a shorter curve ends where it ends.

    Raises:
        ValueError: if there is no curve, or one is not (R,) with R >= 1 and values in [0, 1].
        ImportError: if matplotlib is not installed.
    """
    check_count("max_rank", max_rank)
    if not curves:
        raise ValueError("curves must hold at least one curve, got none")
    values = {name: _array(curve) for name, curve in curves.items()}
    for name, cmc in values.items():
        if cmc.ndim != 1 or len(cmc) == 0:
            raise ValueError(f"curves[{name!r}] must have shape (R,) with R >= 1, got {cmc.shape}")
        if not ((cmc >= 0) & (cmc <= 1)).all():
            raise ValueError(f"curves[{name!r}] must lie in [0, 1], got {cmc.min()} to {cmc.max()}")
    beside = max(map(len, values)) > 24  # names with their parameters would cover the curves
    figure = _figure(7.6 if beside else 4.6, 3.4)
    axes: Any = figure.add_subplot()
    for i, (name, cmc) in enumerate(values.items()):
        shown = 100 * cmc[:max_rank]
        axes.plot(
            np.arange(1, len(shown) + 1),
            shown,
            label=f"{name} ({shown[0]:.1f})",
            color=_COLORS[i % len(_COLORS)],
            linestyle=_LINES[i % len(_LINES)],
            marker=_MARKERS[i % len(_MARKERS)],
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
    return _finish(figure, path)


def ranked_lists(
    queries: Tensor | np.ndarray,
    hits: Tensor | np.ndarray,
    correct: Tensor | np.ndarray,
    path: str | os.PathLike[str] | None = None,
    *,
    distance: Tensor | np.ndarray | None = None,
    modality: Tensor | np.ndarray | None = None,
    title: str | None = None,
) -> "Figure":
    """Draw each query beside the gallery images it ranks first: right ones framed green, wrong ones red and dashed.

    Args:
        queries: (Q, 3, H, W) uint8 query images, RGB.
        hits: (Q, R, 3, H, W) uint8 gallery images, nearest first; the top R = 10 in most papers.
        correct: (Q, R) bool, whether the gallery image shows the query's identity.
        path: where to write the figure as well.
        distance: (Q, R), written below each gallery image.
        modality: (Q,) of the queries, `vireid.VISIBLE` or `vireid.INFRARED`, written beside each.
        title: line above the picture.

    Raises:
        TypeError: if the images are not uint8 or ``correct`` is not bool.
        ValueError: if shapes do not go together, Q or R is 0, or a modality is another number.
        ImportError: if matplotlib is not installed.
    """
    queries, hits, correct = _array(queries), _array(hits), _array(correct)
    for name, images in (("queries", queries), ("hits", hits)):
        if images.dtype != np.uint8:
            raise TypeError(f"{name} must be uint8 images, got {images.dtype}")
    if correct.dtype != np.bool_:
        raise TypeError(f"correct must be bool, got {correct.dtype}")
    if queries.ndim != 4 or queries.shape[1] != 3 or 0 in queries.shape:
        raise ValueError(f"queries must have shape (Q, 3, H, W) with Q >= 1, got {queries.shape}")
    count, _, height, width = queries.shape
    if hits.ndim != 5 or 0 in hits.shape or (hits.shape[0], *hits.shape[2:]) != queries.shape:
        raise ValueError(f"hits must have shape ({count}, R, 3, {height}, {width}) with R >= 1, got {hits.shape}")
    ranks = hits.shape[1]
    _check_shape("correct", correct, (count, ranks))
    if distance is not None:
        distance = _array(distance)
        _check_shape("distance", distance, (count, ranks))
        digits = 3 if np.abs(distance).max() < 10 else 1
    if modality is not None:
        modality = _array(modality)
        _check_shape("modality", modality, (count,))
        if not np.isin(modality, (VISIBLE, INFRARED)).all():
            raise ValueError(f"modality must hold {VISIBLE} (visible) or {INFRARED} (infrared), got {modality}")

    # One axes in units of inches holds everything: image cells are 0.62 wide, as high as the images ask for.
    cell_w, gap, query_gap = 0.62, 0.13, 0.34
    cell_h = cell_w * height / width
    row_h = cell_h + (0.30 if distance is not None else gap)
    left, top, bottom = (0.0 if modality is None else 0.24), (0.50 if title else 0.30), 0.30
    total_w = left + cell_w + query_gap + ranks * (cell_w + gap) - gap
    total_h = top + count * row_h + bottom - (gap if distance is None else 0.06)
    figure = _figure(total_w + 0.2, total_h + 0.1, layout=None)
    axes: Any = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.1, total_w + 0.1), ylim=(total_h + 0.05, -0.05))
    axes.axis("off")
    columns = left + cell_w + query_gap + np.arange(ranks) * (cell_w + gap)
    small: dict[str, Any] = {"ha": "center", "fontsize": 8, "color": _GREY}

    if title:
        axes.text(total_w / 2, 0.12, title, ha="center", va="center", fontsize=10)
    axes.text(left + cell_w / 2, top - 0.07, "query", va="bottom", **small)
    for rank, x in enumerate(columns, start=1):
        axes.text(x + cell_w / 2, top - 0.07, str(rank), va="bottom", **small)
    for q in range(count):
        y = top + q * row_h
        _framed(axes, queries[q], left, y, cell_w, cell_h, _BLUE, "-")
        if modality is not None:
            name = "visible" if modality[q] == VISIBLE else "infrared"
            axes.text(left - 0.07, y + cell_h / 2, name, rotation=90, ha="right", va="center", fontsize=8, color=_BLUE)
        for rank, x in enumerate(columns):
            color, line = (_GREEN, "-") if correct[q, rank] else (_RED, (0, (2.2, 1.1)))
            _framed(axes, hits[q, rank], x, y, cell_w, cell_h, color, line)
            if distance is not None:
                axes.text(x + cell_w / 2, y + cell_h + 0.06, f"{distance[q, rank]:.{digits}f}", va="top", **small)
    y = total_h - 0.1
    middle = (columns[0] + columns[-1] + cell_w) / 2
    axes.text(middle - 0.1, y, "■ same identity", color=_GREEN, ha="right", va="center", fontsize=8)
    axes.text(middle + 0.1, y, "■ another identity", color=_RED, ha="left", va="center", fontsize=8)
    return _finish(figure, path)


@dataclass(frozen=True)
class AffinitySweep:
    """Mean quality of random features, affinities and what is transferred; rows: feature setting, columns: affinity.

    Attributes:
        feature: (S, T) Q_X, margin of the input features.
        affinity: (S, T) Q_A, share of affinity rows that put every positive before every negative.
        transferred: (S, T) Q_Y, margin of Y = A X.
    """

    feature: Tensor
    affinity: Tensor
    transferred: Tensor


def feature_affinity_sweep(
    *,
    identities: int = 8,
    per_identity: int = 8,
    dim: int = 32,
    steps: int = 12,
    repeats: int = 100,
    affinity_signal: float = 6.0,
    generator: torch.Generator | None = None,
) -> AffinitySweep:
    """Quality Q_Y of transferred features over the qualities Q_X and Q_A of what goes in (CIFT, Fig. 3).

    The supplement (section 1) draws random triplets {X, A, Y}, "controls their quality carefully" and averages 100
    draws; how is left open. Ours: x_i = sqrt(1 - t²) c + t n of its identity's centre c and its own noise n, random
    directions both, scaled to length 1, t falling from 1 to 0, so that Q_X rises evenly; A is the softmax of each row
    of s [y_i = y_j] + N(0, 1), s rising from 0 to ``affinity_signal``; Y = A X, rows scaled to length 1. X and A are
    drawn independently.

    Args:
        identities: identities C in a draw.
        per_identity: images of each; N = C times this.
        dim: size d of a feature.
        steps: settings of either quality; S = T = ``steps``.
        repeats: draws averaged **(paper: 100)**.
        affinity_signal: how far positives stand above negatives at the best setting, in standard deviations.
        generator: source of the draws, on the CPU; torch's own when None.

    Returns:
        The three qualities (S, T), float64, worst setting first.

    Raises:
        ValueError: if ``identities``, ``per_identity`` or ``steps`` is below 2, or another number not above 0.
    """
    for name, count in (("identities", identities), ("per_identity", per_identity), ("steps", steps)):
        check_count(name, count, minimum=2)
    check_count("dim", dim)
    check_count("repeats", repeats)
    check_positive("affinity_signal", affinity_signal)
    labels = torch.arange(identities).repeat_interleave(per_identity)
    same = (labels[:, None] == labels).float()
    noise = torch.linspace(1, 0, steps)[:, None, None]
    signal = torch.linspace(0, affinity_signal, steps)[:, None, None]
    total = torch.zeros(3, steps, steps, dtype=torch.float64)
    for _ in range(repeats):
        centers = F.normalize(torch.randn(identities, dim, generator=generator))[labels]
        own = F.normalize(torch.randn(len(labels), dim, generator=generator))
        x = F.normalize((1 - noise.square()).sqrt() * centers + noise * own, dim=2)
        a = (signal * same + torch.randn(len(labels), len(labels), generator=generator)).softmax(2)
        y = F.normalize(a @ x[:, None], dim=3)
        total[0] += torch.tensor([float(feature_margin(row, labels)) for row in x])[:, None]
        total[1] += torch.tensor([float(affinity_quality(row, labels)) for row in a])
        total[2] += torch.tensor([[float(feature_margin(cell, labels)) for cell in row] for row in y])
    return AffinitySweep(*(total / repeats))


def affinity_quality_surface(sweep: AffinitySweep, path: str | os.PathLike[str] | None = None) -> "Figure":
    """Draw Q_Y over (Q_X, Q_A), from above with contours and as a surface (CIFT, Fig. 3 a and b).

    Args:
        sweep: what `feature_affinity_sweep` returns.
        path: where to write the figure as well.

    Raises:
        ValueError: if the three parts are not of one shape (S, T) with S, T >= 2.
        ImportError: if matplotlib is not installed.
    """
    x, a, y = _array(sweep.feature), _array(sweep.affinity), _array(sweep.transferred)
    if y.ndim != 2 or min(y.shape) < 2:
        raise ValueError(f"sweep.transferred must have shape (S, T) with S, T >= 2, got {y.shape}")
    _check_shape("sweep.feature", x, y.shape)
    _check_shape("sweep.affinity", a, y.shape)
    figure = _figure(7.4, 3.3, layout=None)
    flat = figure.add_axes((0.075, 0.155, 0.40, 0.75))
    bar = figure.add_axes((0.495, 0.155, 0.018, 0.75))
    solid: Any = figure.add_axes((0.60, 0.05, 0.38, 0.85), projection="3d")
    colors: dict[str, Any] = {"cmap": "viridis", "vmin": y.min(), "vmax": y.max()}
    picture = flat.contourf(x, a, y, levels=40, **colors)
    lines = flat.contour(x, a, y, levels=6, colors="white", linewidths=0.8)
    flat.set(xlabel="$Q_X$, input features", ylabel="$Q_A$, affinity", title="(a)")
    figure.colorbar(picture, cax=bar, ticks=lines.levels).add_lines(lines)
    bar.set_title("$Q_Y$", fontsize=10)
    solid.plot_surface(x, a, y, rstride=1, cstride=1, linewidth=0.2, edgecolor="white", **colors)
    solid.set(xlabel="$Q_X$", ylabel="$Q_A$")
    figure.text(0.79, 0.93, "(b)", ha="center", fontsize=12)
    for axis in (solid.xaxis, solid.yaxis, solid.zaxis):
        axis.get_major_locator().set_params(nbins=4)
    solid.tick_params(labelsize=8, pad=0)
    solid.view_init(elev=28, azim=-125)
    return _finish(figure, path)


def _array(values: Any) -> np.ndarray:
    if not isinstance(values, Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()  # NumPy has no bfloat16


def _check_shape(name: str, values: np.ndarray, shape: tuple[int, ...]) -> None:
    if values.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {values.shape}")


def _figure(width: float, height: float, layout: Any = "constrained") -> "Figure":
    """Figure of ``width`` × ``height`` inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("vireid.plots needs matplotlib: pip install 'vireid[plots]'") from error
    return Figure(figsize=(width, height), layout=layout, dpi=150)


def _framed(
    axes: Any, image: np.ndarray, x: float, y: float, width: float, height: float, color: str, line: Any
) -> None:
    """Draw ``image`` (3, H, W) with its upper left corner at (x, y), a frame around it."""
    from matplotlib.patches import Rectangle

    axes.imshow(image.transpose(1, 2, 0), extent=(x, x + width, y + height, y), aspect="auto", interpolation="nearest")
    edge = 0.018  # half the frame's width, so that it lies around the image, not on it
    axes.add_patch(
        Rectangle(
            (x - edge, y - edge),
            width + 2 * edge,
            height + 2 * edge,
            fill=False,
            edgecolor=color,
            linestyle=line,
            linewidth=2 * edge * 72,
            clip_on=False,
            zorder=3,
        )
    )


def _finish(figure: "Figure", path: str | os.PathLike[str] | None) -> "Figure":
    """Write ``figure`` to ``path``, if there is one, through a temporary file in the same folder."""
    if path is None:
        return figure
    target = Path(path)
    formats = figure.canvas.get_supported_filetypes()
    suffix = target.suffix.lstrip(".").lower()
    if suffix not in formats:
        raise ValueError(f"path must end in one of {', '.join(sorted(formats))}, got {target}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path must lie in an existing folder, there is none at {target.parent}")
    with written_whole(target) as temporary:
        figure.savefig(temporary, format=suffix, dpi=200)
    return figure


def cost_curves(
    records: Sequence[Mapping[str, Any]],
    path: str | os.PathLike[str] | None = None,
    *,
    title: str | None = None,
) -> "Figure":
    """Draw time and peak memory against the gallery's size, one line per method, on logarithmic axes.

    Two panels; if no record has a peak (or none a time), the other panel alone.

    Where a method was stopped, its line ends in a cross at the largest size that it finished; the legend says why it
    went no further, and at which size. Nothing is drawn beyond.

    Args:
        records: one for each method and size, in any order of the sizes, with the keys

            - "method": name in the legend; methods are drawn in the order in which they first appear;
            - "size": gallery images;
            - "seconds" and "peak_bytes": what was measured, None if nothing was;
            - "stopped": why there is no figure ("time", "memory", …), None where there is one;
            - "group" (may be left out): methods of one group share a colour and differ in line and marker.
        path: where to write the figure as well.
        title: line above the picture.

    Raises:
        ValueError: if there is no record or none with a figure, a key is missing, a number is not above 0 and finite,
            a record has neither a time nor a reason, or a method has one size twice.
        TypeError: if a number is something else.
        ImportError: if matplotlib is not installed.
    """
    methods = _cost_lines(records)
    figure = _figure(9.4, 3.4)
    units = [("seconds", 1.0, "Time (s)"), ("peak_bytes", 2.0**20, "Peak memory (MiB)")]
    units = [unit for unit in units if any(record[unit[0]] is not None for record in records)]
    panels: Any = figure.subplots(1, len(units), squeeze=False)[0]
    groups: dict[Any, int] = {}
    for name, lines in methods.items():
        group = lines[0].get("group", ("alone", name))
        within = groups.get(group, 0)
        groups[group] = within + 1
        color = _COLORS[list(groups).index(group) % len(_COLORS)]
        ends = [line for line in lines if line["stopped"] is not None]
        label = f"{name}  × {ends[0]['stopped']} at {ends[0]['size']:,}" if ends else name
        for axes, (key, unit, _) in zip(panels, units, strict=True):
            shown = [(line["size"], line[key] / unit) for line in lines if line[key] is not None]
            x, y = zip(*shown, strict=True) if shown else ((), ())
            axes.plot(
                x,
                y,
                label=label,
                color=color,
                linestyle=_LINES[within % len(_LINES)],
                marker=_MARKERS[within % len(_MARKERS)],
                markersize=4,
                linewidth=1.6,
                zorder=3,
            )
            if shown and ends:
                axes.plot(x[-1], y[-1], "x", color=color, markersize=9, markeredgewidth=2, zorder=4, label="_end")
    for axes, (_, _, label) in zip(panels, units, strict=True):
        axes.set(xscale="log", yscale="log", xlabel="Gallery images", ylabel=label)
        axes.grid(color="0.9", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False)
    return _finish(figure, path)


def _cost_lines(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Checked records of each method, by size."""
    if not records:
        raise ValueError("records must hold at least one record, got none")
    methods: dict[str, list[Mapping[str, Any]]] = {}
    for n, record in enumerate(records):
        if missing := {"method", "size", "seconds", "peak_bytes", "stopped"} - record.keys():
            raise ValueError(f"records[{n}] must have the key {sorted(missing)[0]!r}, got {sorted(record)}")
        for key in ("size", "seconds", "peak_bytes"):
            if key == "size" or record[key] is not None:
                check_positive(f"records[{n}][{key!r}]", record[key])
        if record["seconds"] is None and record["stopped"] is None:
            raise ValueError(f"records[{n}] must have a time or a reason why it was stopped, got neither")
        methods.setdefault(record["method"], []).append(record)
    if all(record["seconds"] is None and record["peak_bytes"] is None for record in records):
        raise ValueError("records must hold at least one time or peak, all were stopped")
    for name, lines in methods.items():
        lines.sort(key=lambda record: record["size"])
        sizes = [record["size"] for record in lines]
        if len(set(sizes)) < len(sizes):
            raise ValueError(f"records must hold each size of a method once, got {sizes} for {name!r}")
    return methods
