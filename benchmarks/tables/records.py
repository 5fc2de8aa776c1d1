"""Rows of the accuracy tables: as CSV, one line per (table, row, trial, direction, metric), and as Markdown.

A column "direction" holds the setting of the protocol, on SYSU-MM01 such as "all single-shot".
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.speed.measure import read_table, write_table

NAMES = {"visible_to_infrared": "V→I", "infrared_to_visible": "I→V", "rank1": "rank-1", "rank10": "rank-10"}
NAMES |= {"rank20": "rank-20", "error_rate": "affinity error", "Q_A": "Q_A"}
Column = tuple[str, str]
"""A column of the data set's protocols, such as a direction, and a metric."""
Values = Mapping[str, Mapping[str, float]]
"""column -> metric -> percent, of one trial."""


@dataclass
class Row:
    """A row of a table over all trials.

    Attributes:
        table: group of rows that belong together.
        key: names the row within its table, such as "saai/backbone/none".
        name: as shown.
        uses: as `uses` of the re-rankers, such as "gallery".
        values: (column, metric) -> trial -> number, or text of a choice.
    """

    table: str
    key: str
    name: str
    uses: str = ""
    values: dict[Column, dict[str, float | str]] = field(default_factory=dict)

    def add(self, trial: object, values: Mapping[str, Mapping[str, float | str]]) -> None:
        """Add a trial's ``values``, column -> metric -> number."""
        for column, metrics in values.items():
            for metric, value in metrics.items():
                self.values.setdefault((column, metric), {})[str(trial)] = value

    def numbers(self, column: str, metric: str) -> list[float]:
        """Return a metric's number in each trial."""
        return [float(value) for value in self.values[column, metric].values()]


def write_rows(path: Path, rows: Iterable[Row], about: Mapping[str, object]) -> None:
    """Write the rows as CSV, below a comment line per entry of ``about``."""
    lines = [
        {
            "table": row.table,
            "row": row.key,
            "name": row.name,
            "uses": row.uses,
            "trial": trial,
            "direction": column,
            "metric": metric,
            "value": value,
        }
        for row in rows
        for (column, metric), trials in row.values.items()
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
    """Return a table, below its title if it has one; nothing without lines."""
    above = f"\n{title}:\n\n" if title else "\n"
    return above + markdown(head, lines, words) if lines else ""


def head_of(row: Row) -> list[str]:
    """Return the heads of a row's columns, such as "V→I rank-1"."""
    return [f"{NAMES.get(column, column)} {NAMES.get(metric, metric)}" for column, metric in row.values]


def line_of(row: Row) -> list[str]:
    """Return name, ``uses`` and the columns."""
    return [row.name, row.uses, *(cell(row.numbers(*column)) for column in row.values)]


def accuracy_section(title: str, rows: Sequence[Row]) -> str:
    """Return a titled table of accuracies, all of the first row's columns."""
    return section(title, ("", "looks at", *head_of(rows[0])), list(map(line_of, rows)), 2) if rows else ""


def difference_section(rows: Mapping[str, Row], pairs: Iterable[tuple[str, str]], run: str = "trial") -> str:
    """Return the differences between pairs of rows, where both are there, such as "+1.25 ± 0.30, 3/3".

    Args:
        rows: by key.
        pairs: keys of a row and of the one that is taken from it.
        run: "trial" or "seed".
    """
    lines: list[list[str]] = []
    head: list[str] = []
    for first, second in pairs:
        if first in rows and second in rows:
            cells, head = [], head_of(rows[first])
            for column in rows[first].values:
                numbers = zip(rows[first].numbers(*column), rows[second].numbers(*column), strict=True)
                differences = [a - b for a, b in numbers]
                above = sum(x > 0 for x in differences)
                shown = f"{statistics.fmean(differences):+.2f}"
                spread = f" ± {statistics.stdev(differences):.2f}" if len(differences) > 1 else ""
                cells.append(f"{shown}{spread}, {above}/{len(differences)}")
            lines.append([rows[first].name, rows[second].name, *cells])
    title = f"Differences in points, {run} by {run}, and in how many {run}s they are above 0"
    return section(title, ("", "minus", *head), lines, 2)


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
    # α and queries are in the name
    shown = {names.get(name, name): value for name, value in parameters.items() if name not in ("alpha", "queries")}
    return ", ".join(str(value) if name == "variant" else f"{name} {value}" for name, value in shown.items())


def trials_text(trials: str, *, run: str = "trial", which: str = "Trials") -> str:
    """Return the first line of a table of results, for trials such as "1, 2, 3"."""
    spread = f", mean ± sample standard deviation over the {run}s" if "," in trials else ""
    return f"{which} {trials}; percent{spread}."
