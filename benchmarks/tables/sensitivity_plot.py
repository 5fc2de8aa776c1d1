"""Metrics against a setting's value (SAAI, Fig. 3 and 4)."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vireid._checks import check_number, check_option
from vireid.plots._drawing import COLORS, GRAY, LINES, MARKERS, finish, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["sensitivity_curves"]


def sensitivity_curves(
    records: Sequence[Mapping[str, Any]],
    path: str | os.PathLike[str] | None = None,
    *,
    parameter: str,
    metrics: Sequence[str] = ("rank1", "mAP"),
    spacing: Literal["equal", "value"] = "equal",
    title: str | None = None,
) -> "Figure":
    """Draw metrics against a parameter's value: mean over the trials, bars of their deviation (SAAI, Fig. 3 and 4).

    One panel per direction. Bars are the sample standard deviation (n - 1), left out for a single trial. A star marks
    the value of the largest mean of each metric (the first of equals), found on the images that are scored.

    Args:
        records: one per value and trial (and direction): "value" (numbers are sorted, names keep their order), the
            ``metrics`` in percent, and in all or none "direction", such as "visible_to_infrared".
        path: of the figure to write.
        parameter: name below the axis, such as "p" or "λ".
        metrics: keys of the records, one line per metric.
        spacing: "equal" steps between values, or steps in proportion to the "value" of numbers.
        title: line above the picture.

    Raises:
        ValueError, TypeError: for no record or metric, a missing key, a metric that is not a number from 0 to 100,
            a direction in only some records, or an option that is unknown or does not fit the values.
        ImportError: if matplotlib is not installed.
    """
    check_option("spacing", spacing, ("equal", "value"))
    panels = _panels(records, metrics)
    values = list(dict.fromkeys(record["value"] for record in records))
    numbers = all(isinstance(value, int | float | np.number) for value in values)
    if numbers:
        values.sort()
    elif spacing == "value":
        raise ValueError(f"spacing='value' needs numbers, got {values}")
    positions: Any = dict(zip(values, values if spacing == "value" else range(len(values)), strict=True))

    figure = new_figure(4.6 if len(panels) == 1 else 3.7 * len(panels), 3.2)
    grid: Any = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (direction, found) in zip(grid, panels.items(), strict=True):
        for i, metric in enumerate(metrics):
            trials = {value: found[value, metric] for value in values if (value, metric) in found}
            x = [positions[value] for value in trials]
            mean = np.array([np.mean(t) for t in trials.values()])
            std = np.array([np.std(t, ddof=1) if len(t) > 1 else np.nan for t in trials.values()])
            color = COLORS[i % len(COLORS)]
            axes.errorbar(
                x,
                mean,
                yerr=None if np.isnan(std).all() else std,
                label=metric.replace("rank", "rank-"),
                color=color,
                linestyle=LINES[i % len(LINES)],
                marker=MARKERS[i % len(MARKERS)],
                markersize=4,
                linewidth=1.6,
                capsize=3,
                elinewidth=1,
            )
            best = int(mean.argmax())
            axes.plot(x[best], mean[best], "*", color=color, markersize=12, label="_best", zorder=4)
        axes.set_title(direction.replace("_", " "), fontsize=10)
        axes.set_xlabel(parameter)
        if spacing == "equal":
            axes.set_xticks(range(len(values)), [f"{value:g}" if numbers else str(value) for value in values])
            axes.set_xlim(-0.4, len(values) - 0.6)
        axes.grid(color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].set_ylabel("%")
    if title:
        figure.suptitle(title, fontsize=10)
    _legend(figure, grid[0], columns=3 if len(panels) == 1 else 5)
    return finish(figure, path)


def _panels(
    records: Sequence[Mapping[str, Any]], metrics: Sequence[str]
) -> dict[str, dict[tuple[Any, str], list[float]]]:
    """Return the checked trials of each direction, by value and metric."""
    if not records:
        raise ValueError("records must hold at least one record, got none")
    if isinstance(metrics, str) or not metrics:
        raise ValueError(f"metrics must hold at least one name, got {metrics!r}")
    directed = "direction" in records[0]
    panels: dict[str, dict[tuple[Any, str], list[float]]] = {}
    for n, record in enumerate(records):
        for key in ("value", *metrics, *(["direction"] if directed else [])):
            if key not in record:
                raise ValueError(f"records[{n}] must have the key {key!r}, got {sorted(record)}")
        if not directed and "direction" in record:
            raise ValueError(f"records[{n}] has a direction, records[0] has none")
        found = panels.setdefault(str(record["direction"]) if directed else "", {})
        for metric in metrics:
            check_number(f"records[{n}][{metric!r}]", record[metric])
            if not 0 <= record[metric] <= 100:
                raise ValueError(f"records[{n}][{metric!r}] must lie in [0, 100] percent, got {record[metric]}")
            found.setdefault((record["value"], metric), []).append(float(record[metric]))
    return panels


def _legend(figure: "Figure", axes: Any, columns: int) -> None:
    """Write below the panels: a line of each metric, and what the star is."""
    from matplotlib.lines import Line2D

    handles, labels = axes.get_legend_handles_labels()
    star = Line2D([], [], linestyle="none", marker="*", markersize=10, color=GRAY)
    entries = [*handles, star]
    figure.legend(
        entries,
        [*labels, "best mean"],
        loc="outside lower center",
        ncols=min(len(entries), columns),
        frameon=False,
        fontsize=9,
    )
