"""Time and memory of methods against the gallery's size."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vireid._checks import check_positive
from vireid.plots._drawing import COLORS, LINES, MARKERS, finish, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["cost_curves"]


def cost_curves(
    records: Sequence[Mapping[str, Any]],
    path: str | os.PathLike[str] | None = None,
    *,
    title: str | None = None,
) -> "Figure":
    """Draw time and peak memory against the gallery's size, a panel each, one line per method, on logarithmic axes.

    The line of a method that was stopped ends in a cross at the largest size that it finished; the legend gives the
    reason and the size. A panel without any figure is left out.

    Args:
        records: one per method and size: "method" (name in the legend), "size" (gallery images), "seconds" and
            "peak_bytes" (or None), "stopped" (None, or the reason for no figure, such as "memory"), and perhaps
            "group" (methods of one group share a color).
        path: of the figure to write.
        title: line above the picture.

    Raises:
        ValueError, TypeError: for a record that lacks a key or both a time and a reason, a number that is not above 0
            and finite, one size of a method twice, or no figure at all.
        ImportError: if matplotlib is not installed.
    """
    methods = _cost_lines(records)
    figure = new_figure(9.4, 3.4)
    units = [("seconds", 1.0, "Time (s)"), ("peak_bytes", 2.0**20, "Peak memory (MiB)")]
    units = [unit for unit in units if any(record[unit[0]] is not None for record in records)]
    panels: Any = figure.subplots(1, len(units), squeeze=False)[0]
    groups: dict[Any, int] = {}
    for name, lines in methods.items():
        group = lines[0].get("group", ("alone", name))
        within = groups.get(group, 0)
        groups[group] = within + 1
        color = COLORS[list(groups).index(group) % len(COLORS)]
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
                linestyle=LINES[within % len(LINES)],
                marker=MARKERS[within % len(MARKERS)],
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
    return finish(figure, path)


def _cost_lines(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the checked records of each method, by size."""
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
