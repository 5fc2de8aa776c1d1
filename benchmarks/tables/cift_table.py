"""The Markdown tables of `cift.py`, from the content of its results.json."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from vireid.protocols import DIRECTIONS

COLUMNS = tuple(itertools.product(DIRECTIONS, ("rank1", "mAP")))
MARGIN_IDENTITIES = 64  # Q_X and Q_Y look at all images of so many identities: they compare every pair exactly


def cell(values: Mapping[str, Any], digits: int = 2) -> str:
    """Mean ± sample standard deviation; the mean alone for a single trial."""
    shown = f"{values['mean']:.{digits}f}"
    return shown if values["std"] is None else f"{shown} ± {values['std']:.{digits}f}"


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]], words: int) -> str:
    """A table whose first ``words`` columns are text and whose others are numbers."""
    rule = ["---" if n < words else "---:" for n in range(len(head))]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *lines))


def parameters_text(parameters: Mapping[str, Any]) -> str:
    """Such as "k1 8, k2 2, released"."""
    names = {"lambda_value": "λ"}
    shown = {names.get(name, name): value for name, value in parameters.items() if name != "alpha"}  # α is in the name
    return ", ".join(value if name == "variant" else f"{name} {value}" for name, value in shown.items())


def make_table(content: Mapping[str, Any]) -> str:
    """table.md from the content of results.json."""
    labels, rows = content["labels"], content["rows"]
    head = ["", "looks at", "V→I rank-1", "V→I mAP", "I→V rank-1", "I→V mAP"]

    def line(row: Mapping[str, Any], name: str) -> list[str]:
        return [name, row["uses"], *(cell(row["results"][direction][metric]) for direction, metric in COLUMNS)]

    main, backbone, chosen = [], [], []
    for row in rows:
        if row["post_processing"]:
            if row["choice"] == "default":
                main.append(line(row, f"{row['name']} ({parameters_text(row['parameters'])})"))
            else:
                main.append(line(row, f"{row['name']}, best of the grid"))
                texts = [parameters_text(row["parameters"][direction][metric]) for direction, metric in COLUMNS]
                chosen.append([row["name"], *texts])
        elif row["features"] == "backbone" and row["row"] not in ("baseline", "cri") and has_graph(rows, row["row"]):
            backbone.append(line(row, row["name"]))
        else:
            main.append(line(row, row["name"]))
    trials = ", ".join(map(str, content["trials"]))
    spread = ", mean ± sample standard deviation over the trials" if len(content["trials"]) > 1 else ""
    parts = [f"Trials {trials}; percent{spread}.\n\n", markdown(head, main, 2)]
    if backbone:
        parts += ["\nThe same models scored with their backbone features:\n\n", markdown(head, backbone, 2)]
    if chosen:
        parts += [
            "\nBest of the grid: chosen on the test set, for each column by itself. The parameters:\n\n",
            markdown(["", *head[2:]], chosen, 5),
        ]
    names = {"error_rate": "affinity error %", "Q_A": "Q_A %", "Q_X": "Q_X", "Q_Y": "Q_Y"}
    diagnostics = [
        [labels[row], *(cell(found[n], 2 if "%" in names[n] else 3) if n in found else "-" for n in names)]
        for row, found in content["diagnostics"].items()
    ]
    parts += [
        f"\nThe graphs on the test set, mean of both directions (4 neighbours; margins over {MARGIN_IDENTITIES} "
        "identities at most):\n\n",
        markdown(["", *names.values()], diagnostics, 1),
    ]
    return "".join(parts)


def has_graph(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether a row also has transferred features."""
    return any(row["row"] == name and row["features"] == "transferred" for row in rows)
