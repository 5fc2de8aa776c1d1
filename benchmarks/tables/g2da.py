"""The README's tables of G2DA: its ablation (Table III), and its alignment D_ot added to CIFT and to SAAI.

For each trial of RegDB (or of a data set in RegDB's layout) and each row, a training script of ``examples`` trains and
evaluates in a process of its own; what is complete is not run again, and what was interrupted goes on. Then each run's
metrics.json is read.

    python -m benchmarks.tables.g2da --root RegDB --output runs/g2da_table
    python -m benchmarks.tables.g2da --synthetic runs/synthetic --seeds 0 1 2 --reuse runs/cift_table runs/saai_table
    python -m benchmarks.tables.g2da --root RegDB --variant "GW alone=--phi 0" -- --epochs 40
    python -m benchmarks.tables.g2da sweep --parameter phi --values 0 0.1 0.5 0.8 1 --root RegDB --figure phi.png

With --root the nodes of the graph are the parts of a 4 x 3 grid, in place of key points. With --synthetic they are the
key points of the synthetic pedestrians, which are drawn into that folder first, and the runs of a row differ by the
training's seed. CIFT and SAAI align the parts of the grid in both.

Options after ``--`` go to every training run. Into --output go <row>/<trial or seed>/ of each run, results.json and
table.md; of ``sweep`` (the paper's Fig. 7), results.json and the runs that --table does not have already.
"""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

import train_cift
import train_g2da
import train_saai
from benchmarks.speed.measure import write_text
from benchmarks.tables.g2da_table import compare, make_table
from benchmarks.tables.runs import (
    Run,
    add_row_options,
    add_run_options,
    add_sweep_options,
    environment,
    load_model,
    make_runs,
    parse,
    parse_sweep,
    parse_variants,
    read_metrics,
    reuse,
    split_options,
    summarize,
    train_all,
    train_values,
    write_json,
    write_sweep,
)
from vireid.protocols import DIRECTIONS


class Row(NamedTuple):
    """A row of the tables: its name, the script that trains it, and its options."""

    label: str
    script: ModuleType
    options: tuple[str, ...]


ALIGNMENT = ("--alignment", "1")
ROWS = {
    "baseline": Row("B", train_g2da, ("--ablation", "baseline")),
    "ot": Row("B + O", train_g2da, ("--ablation", "ot")),
    "cl": Row("B + O + CL", train_g2da, ("--ablation", "cl")),
    "graph": Row("B + O + CL + G", train_g2da, ("--ablation", "graph")),
    "g2da": Row("B + O + CL + G + MF", train_g2da, ("--ablation", "g2da")),
    "cri": Row("CIFT", train_cift, ()),
    "cri_ot": Row("CIFT + D_ot", train_cift, ALIGNMENT),
    "saai": Row("SAAI", train_saai, ()),
    "saai_ot": Row("SAAI + D_ot", train_saai, ALIGNMENT),
}
PART_GRID = ("--part-grid", "4", "3")
SYMBOLS = {"epsilon": "ε", "phi": "φ", "threshold": "θ", "contrastive": r"$\lambda_c$", "transport": r"$\lambda_o$"}


# -------------------------------------------------------------------------------------------------- runs


def data_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The data and the numbers of the runs, as `make_runs` takes them."""
    if arguments.synthetic is None:
        return {"root": arguments.root, "trials": arguments.trials or [1, 2, 3]}
    return {"root": arguments.synthetic, "trials": arguments.seeds or [0, 1, 2], "synthetic": True}


def parts_of(script: ModuleType, data: Mapping[str, Any]) -> tuple[str, ...]:
    """The grid of parts, for G2DA on data without key points."""
    return PART_GRID if script is train_g2da and not data.get("synthetic") else ()


def plan_runs(
    rows: Mapping[str, Row], extra: Sequence[str], data: Mapping[str, Any], output: Path, folders: Sequence[Path]
) -> list[Run]:
    """All runs, trial by trial; one that is complete with equal settings in one of ``folders`` is taken from there.

    Raises:
        ValueError: for an option that is set here.
    """
    runs = []
    for script in dict.fromkeys(row.script for row in rows.values()):
        flags = {name: row.options for name, row in rows.items() if row.script is script}
        runs += make_runs(script, flags, (*parts_of(script, data), *extra), output=output, **data)
    order = list(rows)
    runs.sort(key=lambda run: (data["trials"].index(run.trial), order.index(run.row)))
    return [found_in(folders, run) for run in runs]


def found_in(folders: Sequence[Path], run: Run) -> Run:
    """The complete run of the same row and equal settings in the first of ``folders`` that has it, else the run."""
    others = (reuse(run, folder / run.row) for folder in folders)
    return next((other for other in others if other is not run), run)


def setting_of(data: Mapping[str, Any], runs: Sequence[Run]) -> dict[str, Any]:
    """What results.json says of the data and the machine."""
    accelerator = runs[0].arguments.accelerator
    cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    numbers = {"seeds" if data.get("synthetic") else "trials": list(data["trials"])}
    dataset = "synthetic" if data.get("synthetic") else "regdb"
    return {"dataset": dataset, **numbers, "accelerator": accelerator, **environment("cuda" if cuda else "cpu")}


# -------------------------------------------------------------------------------------------------- evaluation


def look_at_graph(run: Run) -> dict[str, Any]:
    """What the checkpoint of a G2DA with graph has learned.

    ``replaced``: percent of the channels that message fusion replaces; ``gamma``: smallest and largest scale, which it
    goes by; ``omega``: weight of each node, the global one last.
    """
    model: Any = load_model(run, "cpu")
    attention, scale = model.attention, model.attention.norm.weight.detach()
    share = float((~attention.kept()).double().mean()) if attention.heads > 1 else 0.0  # one head has none to ask
    gamma = [float(scale.min()), float(scale.max())]
    return {"replaced": 100 * share, "gamma": gamma, "omega": model.aggregation.weight.tolist()}


def evaluate_all(labels: Mapping[str, str], runs: Sequence[Run]) -> dict[str, Any]:
    """Every row of the tables over all trials, the differences between rows trial by trial, and the learned graphs."""
    metrics: dict[str, list[dict[str, Any]]] = {row: [] for row in labels}
    graphs = []
    for run in tqdm(runs, desc="evaluation"):
        kinds = read_metrics(run.folder / "metrics.json")
        metrics[run.row].append(kinds)
        if "graph" in kinds:
            graphs.append({"row": run.row, "name": labels[run.row], "trial": run.trial, **look_at_graph(run)})
    rows = []
    for row, label in labels.items():
        for kind, values in metrics[row][0].items():
            dagger = kind == "backbone" and "transferred" in metrics[row][0]
            name = label.replace("CIFT", "CIFT†") if dagger else label
            results = summarize([trial[kind] for trial in metrics[row]])
            rows.append({"row": row, "name": name, "features": kind, "uses": values["uses"], "results": results})
    ablation = {run.row: run.config["ablation"] for run in runs if run.script is train_g2da}
    return {"rows": rows, "differences": compare(rows, ablation), "graphs": graphs}


# -------------------------------------------------------------------------------------------------- sweep


def sweep(given: Sequence[str]) -> None:
    """Train G2DA with each value of one option in each trial; write results.json and draw the figure."""
    arguments, extra = parse_sweep_options(given)
    data = data_of(arguments)
    swept = train_values(train_g2da, arguments, (*parts_of(train_g2da, data), *extra), **data)
    records = []
    for value, run in tqdm(swept, desc="evaluation"):
        kind, values = next(iter(read_metrics(run.folder / "metrics.json").items()))  # it ranks in one way
        record = {"value": value, "seed" if data.get("synthetic") else "trial": run.trial}
        record |= {"replaced": look_at_graph(run)["replaced"]} if kind == "graph" else {}
        records += [{**record, "direction": direction, **values[direction]} for direction in DIRECTIONS]
    option = f"--{arguments.parameter}"
    content = {
        "benchmark": f"G2DA: sensitivity to {option}",
        "command": shlex.join(["python", "-m", "benchmarks.tables.g2da", "sweep", *given]),
        "parameter": arguments.parameter,
        "settings": swept[0][1].config,  # of the first value and trial
        **setting_of(data, [run for _, run in swept]),
        "records": records,
    }
    write_sweep(arguments, content, SYMBOLS.get(arguments.parameter, option), ("rank1", "mAP"))


# -------------------------------------------------------------------------------------------------- command line


def add_options(parser: argparse.ArgumentParser, output: str) -> None:
    """Options of both commands; ``output`` is --output's default."""
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--root", type=Path, help="folder of RegDB, or of data in its layout")
    data.add_argument("--synthetic", type=Path, metavar="FOLDER", help="the synthetic pedestrians, drawn there")
    parser.add_argument("--trials", type=int, nargs="+", help="of --root, 1-10 (default: 1 2 3)")
    parser.add_argument("--seeds", type=int, nargs="+", help="with --synthetic, of the training (default: 0 1 2)")
    add_run_options(parser, output)


def check_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Trials go with data that have some, seeds with those that are drawn."""
    if arguments.synthetic is not None and arguments.trials is not None:
        parser.error("--trials goes with --root; the runs with --synthetic differ by --seeds")
    if arguments.root is not None and arguments.seeds is not None:
        parser.error("--seeds goes with --synthetic; the runs with --root differ by --trials")


def parse_table(given: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Own options, and those after ``--`` for every run."""
    own, extra = split_options(given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "runs/g2da_table")
    add_row_options(parser, ROWS)
    parser.add_argument(
        "--reuse",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="--output of this or another table, whose complete runs of the same row and equal settings are taken",
    )
    arguments = parse(parser, own, ["trials", "seeds", "rows"])
    check_options(parser, arguments)
    for folder in arguments.reuse:
        if not folder.is_dir():
            parser.error(f"--reuse must name folders, found none at {folder}")
    return arguments, extra


def parse_sweep_options(given: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Own options, and those after ``--`` for every run."""
    own, extra = split_options(given)
    parser = argparse.ArgumentParser(prog="g2da.py sweep", description="The paper's Fig. 7: one option's values.")
    add_options(parser, "runs/g2da_sweep")
    add_sweep_options(parser, train_g2da, "runs/g2da_table", "epsilon, phi, threshold, contrastive")
    arguments = parse_sweep(parser, own, train_g2da, ["trials", "seeds"])
    check_options(parser, arguments)
    return arguments, extra


def main(given: Sequence[str] | None = None) -> None:
    """Train what is missing, write results.json and table.md; or a sweep."""
    given = sys.argv[1:] if given is None else given
    if given and given[0] == "sweep":
        sweep(given[1:])
        return
    arguments, extra = parse_table(given)
    output: Path = arguments.output
    rows = {row: ROWS[row] for row in arguments.rows}
    variants = parse_variants(train_g2da, arguments.variant, ROWS)
    rows |= {row: Row(name, train_g2da, options) for row, (name, options) in variants.items()}
    labels = {row: own.label for row, own in rows.items()}
    data = data_of(arguments)
    runs = plan_runs(rows, extra, data, output, arguments.reuse)
    train_all(runs, arguments.jobs)
    content = {
        "benchmark": "G2DA: ablation, and its alignment added to CIFT and SAAI",
        "command": shlex.join(["python", "-m", "benchmarks.tables.g2da", *given]),
        "labels": labels,
        "settings": {run.row: run.config for run in reversed(runs)},  # of the first trial
        **setting_of(data, runs),
        **evaluate_all(labels, runs),
        "reused": [str(run.folder) for run in runs if run.folder != output / run.row / str(run.trial)],
    }
    table = make_table(content)
    write_json(output / "results.json", content)
    write_text(output / "table.md", table)
    print(table)
    print(f"wrote {output / 'results.json'} and table.md")


if __name__ == "__main__":
    main()
