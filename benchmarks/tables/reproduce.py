"""Print the tables of docs/reproduce.md: each row of a paper's table, its command, its printed numbers, expected hours.

python -m benchmarks.tables.reproduce
"""

import argparse
from collections.abc import Sequence

from benchmarks.tables.papers import PLANS, REGDB_COLUMNS, SYSU, TABLES, Table
from benchmarks.tables.records import NAMES, markdown
from vireid.training import RECIPES

MODULE = "benchmarks.tables"
RATE = 400  # images that a GPU trains on in a second: assumed, not measured
IMAGES = {"SYSU-MM01": 2 * 22_258, "RegDB": 10 * 2 * 2_060}  # of an epoch, on RegDB in ten trials
COLUMNS = {"SYSU-MM01": SYSU, "RegDB": REGDB_COLUMNS}


def section(paper: str, name: str, table: Table) -> str:
    """Return a table's lines, of each data set that its paper prints it for."""
    rows, width = [], 0
    for root in table.datasets:
        for line in table.blocks[""]:
            method = PLANS[line.plan].method
            points = f" --keypoints {root}-heatmaps" if method == "g2da" else ""
            command = f"`python -m {MODULE} {paper} {name} --root {root}{points} --rows {line.plan}`"
            values = [line.printed[column] for column in COLUMNS[root] if column in line.printed]
            width = max(width, *map(len, values), 0)
            shown = " · ".join(" / ".join(f"{x:.2f}" for x in value) for value in values) or "-"
            hours = IMAGES[root] * RECIPES[method].epochs / RATE / 3600
            rows.append([line.label, command, shown, f"{hours:.1f}"])
    metrics = " / ".join(NAMES.get(metric, metric) for metric in table.metrics[:width])
    title = f"### {paper.upper()}, {name.replace('table', 'Table ')}: {table.title}"
    return f"{title}\n\n{markdown(('', 'Command', metrics, 'Hours'), rows, 3)}"


def page() -> str:
    """Return the tables of all papers."""
    return "\n".join(section(paper, name, table) for paper, tables in TABLES.items() for name, table in tables.items())


def main(given: Sequence[str] | None = None) -> None:
    """Print the tables."""
    argparse.ArgumentParser(description=__doc__).parse_args(given)
    print(page())


if __name__ == "__main__":
    main()
