"""The README's tables of G2DA: its ablation (Table III), and its alignment D_ot added to CIFT and to SAAI.

For each trial of RegDB (or of a data set in RegDB's layout) and each row, a model is trained in a process of its own;
what is complete is not run again, and what was interrupted goes on.

    python -m benchmarks.tables.g2da --root RegDB --output runs/g2da_table
    python -m benchmarks.tables.g2da --synthetic runs/synthetic --seeds 0 1 2 --reuse runs/cift_table runs/saai_table
    python -m benchmarks.tables.g2da --root RegDB --variant "GW only=--phi 0" -- --epochs 40
    python -m benchmarks.tables.g2da sweep --parameter phi --values 0 0.1 0.5 0.8 1 --root RegDB --figure phi.png

With --root the nodes of the graph are the parts of a 4 x 3 grid, in place of key points. With --synthetic they are the
key points of the synthetic pedestrians, which are drawn into that folder first, and the runs of a row differ by the
training's seed. CIFT and SAAI align the parts of the grid in both.

Options after ``--`` go to every training run. Into --output go <row>/<trial or seed>/ of each run, results.csv and
table.md; of ``sweep`` (the paper's Fig. 7), results.csv and the runs that --table does not have already.
"""

import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables.data import evaluate
from benchmarks.tables.options import Plan, about_of, add_row_options, options_parser, parse, parse_variants
from benchmarks.tables.records import (
    Row,
    Values,
    accuracy_section,
    difference_section,
    of_table,
    section,
    trials_text,
)
from benchmarks.tables.runs import Run, accuracy_rows, reuse, runs_of, train_all, ways_of, write_results
from benchmarks.tables.sweep import sweep_main

MODULE = "benchmarks.tables.g2da"
ABLATION = {
    "baseline": "B",
    "ot": "B + O",
    "cl": "B + O + CL",
    "graph": "B + O + CL + G",
    "g2da": "B + O + CL + G + MF",
}
ALIGNED = {"cri_ot": "cri", "saai_ot": "saai"}
ALIGNMENT = ("--alignment", "1")
ROWS = {row: Plan(label, "g2da", ("--ablation", row)) for row, label in ABLATION.items()} | {
    "cri": Plan("CIFT", "cift"),
    "cri_ot": Plan("CIFT + D_ot", "cift", ALIGNMENT),
    "saai": Plan("SAAI", "saai"),
    "saai_ot": Plan("SAAI + D_ot", "saai", ALIGNMENT),
}
SYMBOLS = {"epsilon": "ε", "phi": "φ", "threshold": "θ", "contrastive": r"$\lambda_c$", "transport": r"$\lambda_o$"}


def look_at_graph(run: Run) -> dict[str, float]:
    """Return figures of the graph that a G2DA learned.

    ``replaced``: percent of the channels that message fusion replaces; ``gamma``: smallest and largest scale, which it
    goes by; ``omega``: smallest and largest weight of a node.
    """
    model: Any = run.model
    attention, scale = model.attention, model.attention.norm.weight.detach()
    share = float((~attention.kept()).double().mean()) if attention.heads > 1 else 0.0  # one head has none to ask
    found = {"replaced": 100 * share}
    for name, values in {"gamma": scale, "omega": model.aggregation.weight.detach()}.items():
        found |= {f"{name}_min": float(values.min()), f"{name}_max": float(values.max())}
    return found


def evaluate_all(plans: Mapping[str, Plan], runs: Sequence[Run]) -> list[Row]:
    """Return the rows of all tables, over all trials."""

    def name(run: Run, kind: str) -> str:
        label = plans[run.row].label
        return label.replace("CIFT", "CIFT†") if kind == "backbone" and "transferred" in ways_of(run) else label

    graphs: dict[str, Row] = {}
    for run in runs:
        if "graph" in ways_of(run):
            graph = graphs.setdefault(run.row, Row("graph", run.row, plans[run.row].label))
            graph.add(run.trial, {"": look_at_graph(run)})
    return [*accuracy_rows(runs, name), *graphs.values()]


# -------------------------------------------------------------------------------------------------- table


def pairs(keys: Iterable[str], variants: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Return the keys of each two rows that are compared.

    Args:
        keys: row/kind of features of all rows.
        variants: row of the ablation that each further row is a variant of.
    """
    kinds = dict(key.split("/") for key in keys)  # the last one: rows of the ablation rank in one way each
    steps = [(row, before) for before, row in itertools.pairwise(ABLATION)] + [("g2da", "baseline")]
    for row, other in steps:
        yield f"{row}/{kinds.get(row)}", f"{other}/{kinds.get(other)}"
    for key in keys:
        row, kind = key.split("/")
        if row in ALIGNED:
            yield key, f"{ALIGNED[row]}/{kind}"
    for row, other in variants.items():
        yield f"{row}/{kinds.get(row)}", f"{other}/{kinds.get(other)}"


def make_table(about: Mapping[str, str], rows: Sequence[Row]) -> str:
    """Return table.md.

    Args:
        about: "data", "trials" (the seeds of the synthetic data) and "variants", such as "gw: ot, full_rate: g2da".
        rows: of all tables.
    """
    synthetic = about["data"] == "synthetic"
    run = "seed" if synthetic else "trial"
    which = "Synthetic pedestrians, seeds of the training" if synthetic else "Trials"
    found = {row.key: row for row in of_table(rows, "accuracy")}
    models = {key: key.split("/")[0] for key in found}
    others = {*ALIGNED, *ALIGNED.values()}
    variants = dict(text.split(": ") for text in about.get("variants", "").split(", ") if text)
    graphs = [
        (trial, row.name, {metric: float(values[trial]) for (_, metric), values in row.values.items()})
        for row in of_table(rows, "graph")
        for trial in row.values["", "replaced"]
    ]
    trials = list(dict.fromkeys(trial for trial, *_ in graphs))
    lines = [
        [
            name,
            trial,
            f"{graph['replaced']:.2f}",
            *(f"{graph[f'{x}_min']:.3f} to {graph[f'{x}_max']:.3f}" for x in ("gamma", "omega")),
        ]
        for trial, name, graph in sorted(graphs, key=lambda graph: trials.index(graph[0]))
    ]
    return "".join(
        [
            f"{trials_text(about['trials'], run=run, which=which)}\n",
            accuracy_section(
                "The ablation (Table III)", [row for key, row in found.items() if models[key] in ABLATION]
            ),
            accuracy_section(
                "D_ot added to CIFT and to SAAI, which ranks without AIM (our choice)",
                [row for key, row in found.items() if models[key] in others],
            ),
            accuracy_section(
                "Further rows", [row for key, row in found.items() if models[key] not in {*ABLATION, *others}]
            ),
            difference_section(found, pairs(list(found), variants), run),
            section(
                "The graphs: channels that message fusion replaces, γ that it goes by, and the nodes' weights",
                ("", run, "replaced %", "γ", "ω"),
                lines,
                1,
            ),
        ]
    )


# -------------------------------------------------------------------------------------------------- command line


def evaluate_sweep(run: Run) -> Values:
    """Return the accuracies of a run, which ranks in one way."""
    return evaluate(run.features, None, run.data.columns)


def main(given: Sequence[str] | None = None) -> None:
    """Train what is missing, write results.csv and table.md; or a sweep."""
    given = sys.argv[1:] if given is None else given
    if given and given[0] == "sweep":
        sweep_main("g2da", __doc__, MODULE, given, symbols=SYMBOLS, evaluate=evaluate_sweep)
        return
    parser = options_parser(__doc__, "runs/g2da_table")
    add_row_options(parser, ROWS)
    parser.add_argument(
        "--reuse",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="--output of this or another table, whose complete runs of the same row and equal settings are taken",
    )
    arguments, extra = parse(parser, given)
    for folder in arguments.reuse:
        if not folder.is_dir():
            parser.error(f"--reuse must name folders, found none at {folder}")
    output: Path = arguments.output
    variants = parse_variants("g2da", arguments.variant, ROWS)
    plans = {row: ROWS[row] for row in arguments.rows} | variants
    runs = runs_of(arguments, plans, extra)
    runs = [reuse(run, [folder / run.row for folder in arguments.reuse]) for run in runs]
    train_all(runs, arguments.jobs)
    rows = evaluate_all(plans, runs)
    own = {run.row: run.settings["ablation"] for run in runs if run.row in variants}
    about = about_of(arguments)
    about["variants"] = ", ".join(f"{row}: {other}" for row, other in own.items())
    about["reused"] = ", ".join(str(run.folder) for run in runs if output not in run.folder.parents)
    write_results(output, MODULE, given, rows, make_table(about, rows), **about)


if __name__ == "__main__":
    main()
