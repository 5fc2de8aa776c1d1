"""The README's table of CIFT: its ablation and, on the same features, the post-processing it is compared with.

For each trial of RegDB (or of a data set in RegDB's layout) and each row, ``examples/train_cift.py`` trains and
evaluates in a process of its own; what is complete is not run again, and what was interrupted goes on. Then the
features of Baseline and of CIFT† are post-processed (``postprocessing.py``) and the graphs are looked at.

    python -m benchmarks.tables.cift --root RegDB --output runs/cift_table
    python -m benchmarks.tables.cift --root RegDB --variant "CIFT, other τ=--tau-hom 0.2 --tau-het 0.4" -- --epochs 40

Options after ``--`` go to every run. Into --output go <row>/<trial>/ of each run, results.json and table.md.

Post-processing is reported twice: with the fixed parameters of its paper (for RegDB where it names them), and with the
best of a grid, chosen on the test set itself and for each column by itself: an upper bound in favour of the opponent.
"""

import argparse
import itertools
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from tqdm import tqdm

import common
import train_cift
from benchmarks.speed.measure import write_text
from benchmarks.speed.postprocessing import aim, gnn, k_reciprocal, k_reciprocal_parts, query_expansion
from benchmarks.tables.cift_table import COLUMNS, make_table
from benchmarks.tables.runs import (
    Run,
    Values,
    add_options,
    add_row_options,
    check_features,
    diagnose,
    environment,
    load_model,
    make_runs,
    parse,
    parse_variants,
    read_metrics,
    split_options,
    summarize,
    summary,
    train_all,
    write_json,
)
from vireid.protocols import DIRECTIONS, RegDB

ROWS = {"baseline": "Baseline", "gft": "+ GFT", "ubs": "+ UBS", "h2g": "+ H2G", "cri": "CIFT"}


@dataclass(frozen=True)
class Method:
    """A post-processing method, its paper's parameters (None: none for this task) and the grid that is searched."""

    name: str
    function: Callable[..., Tensor]
    default: dict[str, Any] | None
    grid: tuple[dict[str, Any], ...]


def grid(**values: Sequence[Any]) -> tuple[dict[str, Any], ...]:
    """Every combination, the last name varying fastest."""
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


class SharedJaccard:
    """`k_reciprocal` for one query and gallery whose costly part is computed once for successive λ."""

    uses = "transductive"

    def __init__(self) -> None:
        self._key: tuple[int, int] | None = None
        self._parts: tuple[Tensor, Tensor]

    def __call__(self, query: Tensor, gallery: Tensor, *, k1: int, k2: int, lambda_value: float) -> Tensor:
        """As `k_reciprocal`."""
        if self._key != (k1, k2):
            self._parts = k_reciprocal_parts(query, gallery, k1=k1, k2=k2)
            self._key = (k1, k2)
        jaccard, distance = self._parts
        return (1 - lambda_value) * jaccard + lambda_value * distance


def plan_runs(arguments: argparse.Namespace, extra: Sequence[str]) -> tuple[dict[str, str], list[Run]]:
    """Label of each row (by the name of its folder), and all runs, trial by trial.

    Raises:
        ValueError: for a variant that is not ``name=options`` or whose folder is taken, or an option set here.
    """
    labels = {row: ROWS[row] for row in arguments.rows}
    flags: dict[str, tuple[str, ...]] = {row: ("--ablation", row) for row in arguments.rows}
    for folder, (name, options) in parse_variants(train_cift, arguments.variant, ROWS).items():
        labels[folder], flags[folder] = name, options
    where = {"root": arguments.root, "output": arguments.output, "trials": arguments.trials}
    return labels, make_runs(train_cift, flags, extra, **where)


def post_process(
    features: Tensor, dataset: common.Dataset, methods: Sequence[Method], description: str
) -> dict[str, list[Values]]:
    """Method -> one `Values` for each entry of its grid, in the grid's order."""
    found: dict[str, list[Values]] = {method.name: [{} for _ in method.grid] for method in methods}
    steps = [(direction, method) for direction in DIRECTIONS for method in methods]
    with tqdm(total=sum(len(method.grid) for _, method in steps), desc=description, leave=False) as progress:
        for direction, method in steps:
            function = SharedJaccard() if method.function is k_reciprocal else method.function
            for number, parameters in enumerate(method.grid):
                report = RegDB(direction).evaluate(
                    features, dataset.ids, dataset.modality, rerank=partial(function, **parameters)
                )
                found[method.name][number][direction] = report.rows[0].mean
                progress.update()
    return found


def best_of_grid(method: Method, trials: Sequence[Sequence[Values]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """For each column the entry with the best mean over the trials: its `summary`, and its parameters."""
    results: dict[str, Any] = {direction: {} for direction in DIRECTIONS}
    parameters: dict[str, Any] = {direction: {} for direction in DIRECTIONS}
    for direction, metric in COLUMNS:
        entries = [summary([trial[n][direction][metric] for trial in trials]) for n in range(len(method.grid))]
        best = max(range(len(entries)), key=lambda n: entries[n]["mean"])
        results[direction][metric], parameters[direction][metric] = entries[best], method.grid[best]
    return results, parameters


def evaluate_all(labels: Mapping[str, str], runs: Sequence[Run], device: str) -> dict[str, Any]:
    """Rows of the table, grids and diagnostics, over all trials."""
    metrics: dict[str, list[dict[str, Any]]] = {row: [] for row in labels}
    diagnostics: dict[str, list[dict[str, float]]] = {row: [] for row in labels}
    processed: dict[str, list[dict[str, list[Values]]]] = {"baseline": [], "cri": []}
    methods = {"baseline": METHODS, "cri": tuple(method for method in METHODS if method.name == "AIM")}
    datasets: dict[tuple[Any, ...], common.Dataset] = {}
    difference = 0.0
    for run in tqdm(runs, desc="evaluation"):
        size = (run.config["size"][0], run.config["size"][1])
        if (run.trial, size) not in datasets:
            datasets = {
                key: value for key, value in datasets.items() if key[0] == run.trial
            }  # images are kept in memory
            datasets[run.trial, size] = common.open_dataset(run.arguments, "test", size)
        dataset = datasets[run.trial, size]
        model = load_model(run, device)
        features = common.extract_features(model, dataset, workers=run.arguments.workers)
        kinds = read_metrics(run.folder / "metrics.json")
        difference = max(difference, check_features(run, kinds, features, dataset.ids, dataset.modality))
        metrics[run.row].append(kinds)
        diagnostics[run.row].append(diagnose(model, features, dataset.ids, dataset.modality))
        if run.row in processed:
            description = f"post-processing, {run.row}, trial {run.trial}"
            processed[run.row].append(post_process(features, dataset, methods[run.row], description))

    rows: list[dict[str, Any]] = []
    for row, label in labels.items():
        for kind, values in metrics[row][0].items():
            name = "CIFT†" if (row, kind) == ("cri", "backbone") else label
            entry = {"row": row, "name": name, "features": kind, "uses": values["uses"], "post_processing": None}
            rows.append({**entry, "results": summarize([trial[kind] for trial in metrics[row]])})
    grids: dict[str, Any] = {}
    for row, trials in processed.items():
        for method in methods[row] if trials else ():
            found = [trial[method.name] for trial in trials]
            name = f"{'CIFT†' if row == 'cri' else labels[row]} + {method.name}"
            entry = {
                "row": row,
                "name": name,
                "features": "backbone",
                "uses": getattr(method.function, "uses"),  # noqa: B009  # unknown to mypy
                "post_processing": method.name,
            }
            if method.default is not None:
                at = method.grid.index(method.default)
                results = summarize([trial[at] for trial in found])
                rows.append({**entry, "choice": "default", "parameters": method.default, "results": results})
            results, parameters = best_of_grid(method, found)
            rows.append({**entry, "choice": "best of the grid", "parameters": parameters, "results": results})
            grids.setdefault(row, {})[method.name] = [
                {"parameters": method.grid[n], "results": summarize([columns_of(trial[n]) for trial in found])}
                for n in range(len(method.grid))
            ]
    diagnosed = {
        row: {name: summary([trial[name] for trial in trials]) for name in trials[0]}
        for row, trials in diagnostics.items()
    }
    return {"rows": rows, "grids": grids, "diagnostics": diagnosed, "largest_recomputation_difference": difference}


def columns_of(values: Values) -> Values:
    """Only what the table shows: the grid has many entries."""
    return {direction: {name: values[direction][name] for name in ("rank1", "mAP")} for direction in DIRECTIONS}


def parse_arguments(given: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Own options, and those after ``--`` for every run."""
    own, extra = split_options(given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "runs/cift_table")
    add_row_options(parser, ROWS)
    return parse(parser, own, ["trials", "rows"]), extra


def main(given: Sequence[str] | None = None) -> None:
    """Train what is missing, evaluate, write results.json and table.md."""
    given = sys.argv[1:] if given is None else given
    arguments, extra = parse_arguments(given)
    labels, runs = plan_runs(arguments, extra)
    train_all(runs, arguments.jobs)
    found = evaluate_all(labels, runs, arguments.device)
    content = {
        "benchmark": "CIFT: ablation and post-processing",
        "command": shlex.join(["python", "-m", "benchmarks.tables.cift", *given]),
        "labels": labels,
        "trials": arguments.trials,
        "settings": {run.row: run.config for run in reversed(runs)},  # of the first trial
        **environment(arguments.device),
        **found,
    }
    table = make_table(content)
    write_json(arguments.output / "results.json", content)
    write_text(arguments.output / "table.md", table)
    print(table)
    print(f"wrote {arguments.output / 'results.json'} and table.md")


if __name__ == "__main__":
    main()
