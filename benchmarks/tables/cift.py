"""The README's table of CIFT: its ablation and, on the same features, the post-processing it is compared with.

For each trial of RegDB (or of a data set in RegDB's layout) and each row, a model is trained in a process of its own;
what is complete is not run again, and what was interrupted goes on. Then the features of Baseline and of CIFT† are
post-processed (``speed/postprocessing.py``) and the graphs are looked at.

    python -m benchmarks.tables.cift --root RegDB --output runs/cift_table
    python -m benchmarks.tables.cift --root RegDB --variant "CIFT, other τ=--tau-hom 0.2 --tau-het 0.4" -- --epochs 40

Options after ``--`` go to every run. Into --output go <row>/<trial>/ of each run, results.csv and table.md.

Post-processing is reported twice: with the fixed parameters of its paper (for RegDB where it names them), and with the
best of a grid, chosen on the test set itself and for each column by itself: an upper bound in favor of the opponent.
"""

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from tqdm import tqdm

from benchmarks.speed.postprocessing import aim, gnn, k_reciprocal, k_reciprocal_parts, query_expansion
from benchmarks.tables.data import evaluate
from benchmarks.tables.diagnose import MARGIN_IDENTITIES, diagnostic_rows
from benchmarks.tables.options import Plan, about_of, add_row_options, options_parser, parse, parse_variants
from benchmarks.tables.records import (
    Row,
    Values,
    accuracy_section,
    diagnostic_section,
    head_of,
    line_of,
    markdown,
    of_table,
    parameters_text,
    section,
    trials_text,
)
from benchmarks.tables.runs import Run, accuracy_rows, runs_of, train_all, write_results

MODULE = "benchmarks.tables.cift"
CHOSEN = "best of the grid"  # table of the parameters that were
LABELS = {"baseline": "Baseline", "gft": "+ GFT", "ubs": "+ UBS", "h2g": "+ H2G", "cri": "CIFT"}
ROWS = {row: Plan(label, "cift", ("--ablation", row)) for row, label in LABELS.items()}


@dataclass(frozen=True)
class Method:
    """A post-processing method, its paper's parameters (None: none for this task) and the grid that is searched."""

    name: str
    function: Callable[..., Tensor]
    default: dict[str, Any] | None
    grid: tuple[dict[str, Any], ...]


def grid(**values: Sequence[Any]) -> tuple[dict[str, Any], ...]:
    """Return every combination, the last name varying fastest."""
    return tuple(dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values()))


METHODS = (
    Method("AQE", query_expansion, None, grid(n=(1, 3, 5, 10), alpha=(0,))),
    Method("αQE", query_expansion, None, grid(n=(1, 3, 5, 10), alpha=(3,))),
    Method(
        "AIM",
        aim,
        {"k1": 8, "k2": 2, "variant": "released"},
        grid(k1=(4, 8, 10, 20), k2=(1, 2, 4, 6), variant=("released", "paper")),
    ),
    Method(
        "k-reciprocal",
        k_reciprocal,
        {"k1": 20, "k2": 6, "lambda_value": 0.3},
        grid(k1=(10, 20, 30), k2=(1, 3, 6), lambda_value=(0.1, 0.3, 0.5)),
    ),
    Method("GNN", gnn, {"k1": 26, "k2": 7}, grid(k1=(10, 20, 26), k2=(3, 5, 7))),
)
PROCESSED = {"baseline": METHODS, "cri": tuple(method for method in METHODS if method.name == "AIM")}


class SharedJaccard:
    """`k_reciprocal` for one query and gallery whose costly part is computed once for successive λ."""

    def __init__(self) -> None:
        self._key: tuple[int, int] | None = None
        self._parts: tuple[Tensor, Tensor]

    def __call__(self, query: Tensor, gallery: Tensor, *, k1: int, k2: int, lambda_value: float) -> Tensor:
        """Return what `k_reciprocal` does."""
        if self._key != (k1, k2):
            self._parts = k_reciprocal_parts(query, gallery, k1=k1, k2=k2)
            self._key = (k1, k2)
        jaccard, distance = self._parts
        return (1 - lambda_value) * jaccard + lambda_value * distance


def post_process(run: Run, methods: Sequence[Method]) -> dict[str, list[Values]]:
    """Return, by method, the accuracies of each entry of its grid, in the grid's order."""
    found: dict[str, list[dict[str, Any]]] = {method.name: [{} for _ in method.grid] for method in methods}
    steps = [(*column, method) for column in run.data.columns.items() for method in methods]
    total = sum(len(method.grid) for *_, method in steps)
    with tqdm(total=total, desc=f"post-processing, {run}", leave=False) as progress:
        for column, protocol, method in steps:
            function = SharedJaccard() if method.function is k_reciprocal else method.function
            for number, parameters in enumerate(method.grid):
                reached = evaluate(run.features, partial(function, **parameters), {column: protocol})
                found[method.name][number] |= reached
                progress.update()
    return {name: list(entries) for name, entries in found.items()}


def post_processing_rows(row: str, name: str, trials: Mapping[int, Mapping[str, Sequence[Values]]]) -> list[Row]:
    """Return the rows of each method: with its paper's parameters, with the best of the grid, and what that was.

    Args:
        row: whose features they are of.
        name: of the row.
        trials: what `post_process` found in each trial.
    """
    rows = []
    for method in PROCESSED[row]:
        uses = getattr(method.function, "uses", "")
        label = f"{name} + {method.name}"
        entries = [Row("", "", "") for _ in method.grid]
        for trial, found in trials.items():
            for entry, values in zip(entries, found[method.name], strict=True):
                entry.add(trial, values)
        if method.default is not None:
            shown = f"{label} ({parameters_text(method.default)})"
            default = entries[method.grid.index(method.default)]
            rows.append(Row("post-processing", f"{row}/{method.name}/default", shown, uses, default.values))
        best = Row("post-processing", f"{row}/{method.name}/best", f"{label}, best of the grid", uses)
        chosen = Row(CHOSEN, f"{row}/{method.name}", label)
        for column in entries[0].values:
            means = [statistics.fmean(entry.numbers(*column)) for entry in entries]
            at = means.index(max(means))
            best.values[column] = entries[at].values[column]
            chosen.values[column] = {"all": parameters_text(method.grid[at])}
        rows += [best, chosen]
    return rows


def evaluate_all(plans: Mapping[str, Plan], runs: Sequence[Run]) -> list[Row]:
    """Return the rows of all tables, over all trials."""

    def name_of(row: str, kind: str) -> str:
        return "CIFT†" if (row, kind) == ("cri", "backbone") else plans[row].label

    rows = accuracy_rows(runs, lambda run, kind: name_of(run.row, kind))
    processed: dict[str, dict[int, dict[str, list[Values]]]] = {}
    for run in runs:
        if run.row in PROCESSED:
            processed.setdefault(run.row, {})[run.trial] = post_process(run, PROCESSED[run.row])
    for model, trials in processed.items():
        rows += post_processing_rows(model, name_of(model, "backbone"), trials)
    return rows + diagnostic_rows({row: plan.label for row, plan in plans.items()}, list(runs))


def make_table(about: Mapping[str, str], rows: Sequence[Row]) -> str:
    """Return table.md."""
    accuracy = of_table(rows, "accuracy")
    graphs = {row.key.split("/")[0] for row in accuracy if row.key.endswith("/transferred")} - {"cri"}
    backbone = [row for row in accuracy if row.key.endswith("/backbone") and row.key.split("/")[0] in graphs]
    main = [row for row in accuracy if row not in backbone] + of_table(rows, "post-processing")
    chosen = [[row.name, *(str(choice["all"]) for choice in row.values.values())] for row in of_table(rows, CHOSEN)]
    head = head_of(accuracy[0])
    return "".join(
        [
            f"{trials_text(about['trials'])}\n\n",
            markdown(("", "looks at", *head), [line_of(row) for row in main], 2),
            accuracy_section("The same models scored with their backbone features", backbone),
            section(
                "Best of the grid: chosen on the test set, for each column by itself. The parameters",
                ("", *head),
                chosen,
                1 + len(head),
            ),
            diagnostic_section(
                "The graphs on the test set, mean of both directions (4 neighbors; margins over "
                f"{MARGIN_IDENTITIES} identities at most)",
                of_table(rows, "diagnostics"),
            ),
        ]
    )


def main(given: Sequence[str] | None = None) -> None:
    """Train what is missing, evaluate, write results.csv and table.md."""
    parser = options_parser(__doc__, "runs/cift_table")
    add_row_options(parser, ROWS)
    arguments, extra = parse(parser, given)
    plans = {row: ROWS[row] for row in arguments.rows} | parse_variants("cift", arguments.variant, ROWS)
    runs = runs_of(arguments, plans, extra)
    train_all(runs, arguments.jobs)
    rows = evaluate_all(plans, runs)
    about = about_of(arguments)
    write_results(arguments.output, MODULE, given, rows, make_table(about, rows), **about)


if __name__ == "__main__":
    main()
