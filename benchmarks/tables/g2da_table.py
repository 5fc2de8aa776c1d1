"""The differences and the Markdown tables of `g2da.py`, from the rows of its results.json."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.tables.cift_table import markdown
from benchmarks.tables.saai_table import HEAD, Row, difference_cells, line, subtract

ABLATION = ("baseline", "ot", "cl", "graph", "g2da")
ALIGNED = {"cri_ot": "cri", "saai_ot": "saai"}

Key = tuple[str, str]
"""(row, kind of features)."""


def compare(rows: Sequence[Row], ablation: Mapping[str, str]) -> list[dict[str, Any]]:
    """Differences in points between pairs of rows, trial by trial: whether one is above the other in every trial.

    Args:
        rows: of results.json.
        ablation: which row of the ablation each row that G2DA's script trained is, or is a variant of.
    """
    found = {(row["row"], row["features"]): row for row in rows}
    return [
        {
            "table": table,
            "row": found[first]["name"],
            "minus": found[second]["name"],
            "results": subtract(found[first]["results"], found[second]["results"]),
        }
        for table, first, second in pairs(rows, ablation)
        if first in found and second in found
    ]


def pairs(rows: Sequence[Row], ablation: Mapping[str, str]) -> Iterator[tuple[str, Key, Key]]:
    """Table, and the keys of the two rows that it compares."""
    kinds = {row["row"]: row["features"] for row in rows if row["row"] in ablation}  # these rank in one way each
    steps = [(row, before) for before, row in itertools.pairwise(ABLATION)]
    steps.append((ABLATION[-1], ABLATION[0]))
    for row, other in steps:
        yield "III", (row, kinds.get(row, "")), (other, kinds.get(other, ""))
    for name, kind in ((row["row"], row["features"]) for row in rows):
        if name in ALIGNED:
            yield "alignment", (name, kind), (ALIGNED[name], kind)
    for name in [name for name in kinds if name not in ABLATION]:
        yield "variants", (name, kinds[name]), (ablation[name], kinds.get(ablation[name], ""))


def make_table(content: Mapping[str, Any]) -> str:
    """table.md from the content of results.json."""
    rows = content["rows"]
    synthetic = content["dataset"] == "synthetic"
    run, numbers = ("seed", content["seeds"]) if synthetic else ("trial", content["trials"])
    listed = ", ".join(map(str, numbers))
    spread = f", mean ± sample standard deviation over the {run}s" if len(numbers) > 1 else ""
    which = f"Synthetic pedestrians, seeds {listed} of the training" if synthetic else f"Trials {listed}"
    parts = [f"{which}; percent{spread}.\n"]

    def add(title: str, lines: Sequence[Sequence[str]], head: Sequence[str], words: int) -> None:
        if lines:
            parts.append(f"\n{title}:\n\n{markdown(head, lines, words)}")

    others = {*ALIGNED, *ALIGNED.values()}
    head = ("", "looks at", *HEAD)
    add("The ablation (Table III)", [line(row) for row in rows if row["row"] in ABLATION], head, 2)
    aligned = [line(row) for row in rows if row["row"] in others]
    add("D_ot added to CIFT and to SAAI, which ranks without AIM (ours)", aligned, head, 2)
    add("Further rows", [line(row) for row in rows if row["row"] not in {*ABLATION, *others}], head, 2)
    add(
        f"Differences in points, {run} by {run}, and in how many {run}s they are above 0",
        [[entry["row"], entry["minus"], *difference_cells(entry["results"])] for entry in content["differences"]],
        ("", "minus", *HEAD),
        2,
    )
    add(
        "The graphs: channels that message fusion replaces, γ that it goes by, and the nodes' weights",
        [graph_line(graph) for graph in content["graphs"]],
        ("", run, "replaced %", "γ", "ω"),
        1,
    )
    return "".join(parts)


def graph_line(graph: Mapping[str, Any]) -> list[str]:
    """A line of one run."""
    ranges = (f"{min(values):.3f} to {max(values):.3f}" for values in (graph["gamma"], graph["omega"]))
    return [graph["name"], str(graph["trial"]), f"{graph['replaced']:.2f}", *ranges]
