"""Rows of the accuracy tables: as CSV, one line per (table, row, trial, direction, metric), and as Markdown."""

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.speed.measure import read_table, write_table
from vireid.protocols import DIRECTIONS

COLUMNS = tuple(itertools.product(DIRECTIONS, ("rank1", "mAP")))
HEAD = ("V→I rank-1", "V→I mAP", "I→V rank-1", "I→V mAP")
Values = Mapping[str, Mapping[str, float]]
"""direction -> metric -> percent, of one trial."""


@dataclass
class Row:
    """A row of a table over all trials.

    Attributes:
        table: group of rows that belong together.
        key: names the row within its table, such as "saai/backbone/none".
        name: as shown.
        uses: as `uses` of the re-rankers, such as "gallery".
        values: (direction, metric) -> trial -> number, or text of a choice.
    """

    table: str
    key: str
    name: str
    uses: str = ""
    values: dict[tuple[str, str], dict[str, float | str]] = field(default_factory=dict)

    def add(self, trial: object, values: Mapping[str, Mapping[str, float | str]]) -> None:
        """Add a trial's ``values``, direction -> metric -> number; of the accuracies rank-1 and mAP are kept."""
        for direction, metrics in values.items():
            for metric, value in metrics.items():
                if metric not in ("rank5", "rank10", "rank20", "mINP"):
                    self.values.setdefault((direction, metric), {})[str(trial)] = value

    def numbers(self, direction: str, metric: str) -> list[float]:
        """Return a metric's number in each trial."""
        return [float(value) for value in self.values[direction, metric].values()]


def write_rows(path: Path, rows: Iterable[Row], about: Mapping[str, object]) -> None:
    """Write the rows as CSV, below a comment line per entry of ``about``."""
    lines = [
        {
            "table": row.table,
            "row": row.key,
            "name": row.name,
            "uses": row.uses,
            "trial": trial,
            "direction": direction,
            "metric": metric,
            "value": value,
        }
        for row in rows
        for (direction, metric), trials in row.values.items()
        for trial, value in trials.items()
    ]
    write_table(path, lines, about)


def read_rows(path: Path) -> tuple[dict[str, str], list[Row]]:
    """Read the file of `write_rows`."""
    about, lines = read_table(path)
    rows: dict[tuple[str, str], Row] = {}
    for line in lines:
        identity = line["table"], line["row"]
        row = rows.setdefault(identity, Row(*identity, line["name"], line["uses"]))
        try:
            value: float | str = float(line["value"])
        except ValueError:
            value = line["value"]
        row.add(line["trial"], {line["direction"]: {line["metric"]: value}})
    return about, list(rows.values())


def of_table(rows: Iterable[Row], table: str) -> list[Row]:
    """Return the rows of one table."""
    return [row for row in rows if row.table == table]


# ---------------------------------------------------------------------------------------------------- Markdown


def cell(numbers: Sequence[float], digits: int = 2) -> str:
    """Return mean ± sample standard deviation; only the mean for a single trial."""
    shown = f"{statistics.fmean(numbers):.{digits}f}"
    return shown if len(numbers) < 2 else f"{shown} ± {statistics.stdev(numbers):.{digits}f}"


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]], words: int) -> str:
    """Return a table whose first ``words`` columns are text and whose others are numbers."""
    rule = ["---" if n < words else "---:" for n in range(len(head))]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *lines))


def section(title: str, head: Sequence[str], lines: Sequence[Sequence[str]], words: int) -> str:
    """Return a titled table; nothing without lines."""
    return f"\n{title}:\n\n{markdown(head, lines, words)}" if lines else ""


def line_of(row: Row) -> list[str]:
    """Return name, ``uses`` and the four columns."""
    return [row.name, row.uses, *(cell(row.numbers(*column)) for column in COLUMNS)]


def accuracy_section(title: str, rows: Sequence[Row]) -> str:
    """Return a titled table of accuracies."""
    return section(title, ("", "looks at", *HEAD), [line_of(row) for row in rows], 2)


def difference_section(rows: Mapping[str, Row], pairs: Iterable[tuple[str, str]], run: str = "trial") -> str:
    """Return the differences between pairs of rows, where both are there, such as "+1.25 ± 0.30, 3/3".

    Args:
        rows: by key.
        pairs: keys of a row and of the one that is taken from it.
        run: "trial" or "seed".
    """
    lines = []
    for first, second in pairs:
        if first in rows and second in rows:
            cells = []
            for column in COLUMNS:
                numbers = zip(rows[first].numbers(*column), rows[second].numbers(*column), strict=True)
                differences = [a - b for a, b in numbers]
                above = sum(x > 0 for x in differences)
                shown = f"{statistics.fmean(differences):+.2f}"
                spread = f" ± {statistics.stdev(differences):.2f}" if len(differences) > 1 else ""
                cells.append(f"{shown}{spread}, {above}/{len(differences)}")
            lines.append([rows[first].name, rows[second].name, *cells])
    title = f"Differences in points, {run} by {run}, and in how many {run}s they are above 0"
    return section(title, ("", "minus", *HEAD), lines, 2)


DIAGNOSTICS = {"error_rate": ("affinity error %", 2), "Q_A": ("Q_A %", 2), "Q_X": ("Q_X", 3), "Q_Y": ("Q_Y", 3)}


def diagnostic_section(title: str, rows: Sequence[Row]) -> str:
    """Return the CIFT paper's diagnostics of each model."""
    lines = []
    for row in rows:
        known = {metric: row.numbers("mean", metric) for _, metric in row.values}
        lines.append([row.name, *(cell(known[m], d) if m in known else "-" for m, (_, d) in DIAGNOSTICS.items())])
    return section(title, ("", *(title for title, _ in DIAGNOSTICS.values())), lines, 1)


def parameters_text(parameters: Mapping[str, object]) -> str:
    """Return parameters as shown, such as "k1 8, k2 2, released"."""
    names = {"lambda_value": "λ"}
    shown = {names.get(name, name): value for name, value in parameters.items() if name != "alpha"}  # α is in the name
    return ", ".join(str(value) if name == "variant" else f"{name} {value}" for name, value in shown.items())


def trials_text(trials: str, *, run: str = "trial", which: str = "Trials") -> str:
    """Return the first line of a table of results, for trials such as "1, 2, 3"."""
    spread = f", mean ± sample standard deviation over the {run}s" if "," in trials else ""
    return f"{which} {trials}; percent{spread}."
