"""Accuracy beside cost: every re-ranker on the same features, as in Table 2 of the CIFT paper.

On RegDB or a data set in its layout. Each method's parameters are chosen on training identities only: per trial, one
more Baseline model is trained on the first half of the training identities (by number) and the other half validates.
The best mean mAP over trials and both directions is taken; then the models that were trained on all training
identities are evaluated on the test identities, once.

    python -m benchmarks.tables.rerank_accuracy --root RegDB --output runs/rerank_accuracy
    python -m benchmarks.tables.rerank_accuracy --root RegDB --output runs/rerank_accuracy -- --epochs 40

Options after ``--`` go to every training run. What is in --output is not computed again: <row>/<trial>/ (the output
folder of `cift.py` serves as well) and validation_models/. results.csv and table.md go there too.

All rows are on Baseline's features but the last two: CIFT trains its transfer along with the features. Time and
memory are of one call, all queries of trial 1 (visible to infrared) against the gallery, each in a fresh process.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.speed.measure import PeakMemory, can_measure_memory, measure_in_turns, run_self
from benchmarks.tables.cift import ROWS as CIFT_ROWS
from benchmarks.tables.cift import Method, grid
from benchmarks.tables.data import evaluate
from benchmarks.tables.options import about_of, options_parser, parse
from benchmarks.tables.records import Row, head_of, line_of, markdown, of_table, parameters_text
from benchmarks.tables.runs import Run, runs_of, train_all, write_results
from benchmarks.tables.validation import SHARE, choose, write_validation_split
from vireid._ops import normalize_rows
from vireid.rerank import aim, cmkr, ecn, gnn, graph_transfer, k_reciprocal, query_expansion, sim

MODULE = "benchmarks.tables.rerank_accuracy"
ALONE: dict[str, Any] = {"queries": ("alone",)}
K_RECIPROCAL: dict[str, Any] = {"k1": (10, 20, 30), "k2": (3, 6), "lambda_value": (0.1, 0.3, 0.5)}
GRAPH: dict[str, Any] = {"k1": (10, 26, 40), "k2": (3, 7)}
CROSS: dict[str, Any] = {"t": (3, 5), "q": (4, 8)}
METHODS = (
    Method("k-reciprocal", k_reciprocal, None, grid(**K_RECIPROCAL)),
    Method("k-reciprocal, alone", k_reciprocal, None, grid(**K_RECIPROCAL, **ALONE)),
    Method("GNN", gnn, None, grid(**GRAPH)),
    Method("GNN, alone", gnn, None, grid(**GRAPH, **ALONE)),
    Method("ECN", ecn, None, grid(**CROSS)),
    Method("ECN, alone", ecn, None, grid(**CROSS, **ALONE)),
    Method("CMKR", cmkr, None, grid(**K_RECIPROCAL)),
    Method("SIM", sim, None, grid(k1=(5, 10, 20, 30), k2=(5, 10, 20, 30), lambda_value=(0.1, 0.3, 0.5))),
    Method("AQE", query_expansion, None, grid(n=(3, 5, 10), alpha=(0,))),
    Method("αQE", query_expansion, None, grid(n=(3, 5, 10), alpha=(3,))),
    Method("AIM, paper", aim, None, grid(k1=(4, 8, 12, 20), k2=(1, 2, 4, 6), variant=("paper",))),
    Method("AIM, released", aim, None, grid(k1=(4, 8, 12, 20), k2=(1, 2, 4, 6), variant=("released",))),
)
NONE, OWN_FEATURES, TRANSFER = "none", "CIFT's features, none", "CIFT"


class Entry(NamedTuple):
    """A line of the table: a model's features, ranked by a method with the parameters that were chosen for it."""

    name: str
    model: str
    method: Method | None = None
    parameters: Mapping[str, Any] = {}

    def rerank(self, run: Run) -> Any:
        """Return what ranks; None compares by cosine distance."""
        model: Any = run.model
        if self.method is not None:
            return partial(self.method.function, **self.parameters)
        return partial(graph_transfer, module=model.transfer) if self.name == TRANSFER else None

    @property
    def uses(self) -> str:
        """What a ranking looks at."""
        if self.parameters.get("queries") == "alone" or self.name == TRANSFER:
            return "gallery"
        return "query" if self.method is None else vars(self.method.function)["uses"]


# -------------------------------------------------------------------------------------------------- accuracy


def plan_entries(validation: Sequence[Run]) -> list[Entry]:
    """Return the table's lines with the chosen parameters."""
    chosen = [Entry(method.name, "baseline", method, choose(method, validation)) for method in METHODS]
    return [Entry(NONE, "baseline"), *chosen, Entry(OWN_FEATURES, "cri"), Entry(TRANSFER, "cri")]


# -------------------------------------------------------------------------------------------------- cost


def cosine_distance(query: Tensor, gallery: Tensor) -> Tensor:
    """Rank without re-ranking."""
    return 1 - normalize_rows(query) @ normalize_rows(gallery).T


def measure(rerank: Callable[[Tensor, Tensor], Tensor] | None, run: Run, repeats: int) -> dict[str, float]:
    """Return ms per query, the median of ``repeats`` calls after one that warms up, and the peak bytes of one call."""
    query, gallery = (run.features.features[rows] for rows in run.features.split(next(iter(run.data.columns.values()))))
    rank = rerank or cosine_distance
    rank(query[:8], gallery[:64])  # libraries and threads
    found = {}
    device = torch.device("cpu")
    if can_measure_memory(device):
        with PeakMemory(device) as peak:
            rank(query, gallery)
        found["peak_bytes"] = peak.bytes
    seconds = measure_in_turns({"": lambda: rank(query, gallery)}, repeats, device, warm_up=0)[""]
    return {"ms_per_query": 1e3 * statistics.median(seconds) / len(query), **found}


# -------------------------------------------------------------------------------------------------- table, command line


def make_table(rows: Sequence[Row]) -> str:
    """Return the Markdown table."""
    cost, chosen = ({row.key: row for row in of_table(rows, table)} for table in ("cost", "parameters"))
    lines, accuracy = [], of_table(rows, "accuracy")
    for row in accuracy:
        name, uses, *accuracies = line_of(row)
        own = {metric: float(values["1"]) for (_, metric), values in cost[row.key].values.items()}
        peak = f"{own['peak_bytes'] / 2**20:.0f}" if "peak_bytes" in own else "-"
        text = str(chosen[row.key].values["", "parameters"]["all"])
        lines.append([name, text, uses, *accuracies, f"{own['ms_per_query']:.2f}", peak])
    return markdown(["", "parameters", "looks at", *head_of(accuracy[0]), "ms per query", "peak MiB"], lines, 3)


def text_of(entry: Entry, run: Run) -> str:
    """Return an entry's parameters as shown, "-" without any."""
    if entry.name == TRANSFER:
        return parameters_text({name: run.settings[name] for name in ("k", "tau_hom", "tau_het")})
    text = parameters_text(entry.parameters) or "-"
    return f"{text}, α {entry.parameters['alpha']}" if "alpha" in entry.parameters else text


def main(given: Sequence[str] | None = None) -> None:
    """Train what is missing, choose, evaluate, measure; write results.csv and table.md."""
    parser = options_parser(__doc__, "runs/rerank_accuracy")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads where time is measured")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each method")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments, extra = parse(parser, given)
    torch.set_num_threads(arguments.threads)
    output: Path = arguments.output
    plans = {row: CIFT_ROWS[row] for row in ("baseline", "cri")}
    runs = runs_of(arguments, plans, extra)
    if arguments.measure:  # in a fresh process, one line
        wanted = json.loads(arguments.measure)
        method = next((m for m in METHODS if m.name == wanted["name"]), None)
        run = next(run for run in runs if run.row == wanted["model"])
        entry = Entry(wanted["name"], run.row, method, wanted["parameters"])
        print(json.dumps(measure(entry.rerank(run), run, arguments.repeats)))
        return

    validation = output / "validation"
    data, people = write_validation_split(arguments.data, validation, arguments.trials, SHARE)
    choosers = {"baseline": CIFT_ROWS["baseline"]}
    choosing = runs_of(arguments, choosers, extra, data=data, output=output / "validation_models")
    train_all([*runs, *choosing], arguments.jobs)
    rows = []
    shared = ["--dataset", arguments.data.dataset, "--root", str(arguments.data.root)]
    number = "--seeds" if arguments.data.seeded else "--trials"
    for entry in tqdm(plan_entries(choosing), desc="test"):
        own = [run for run in runs if run.row == entry.model]
        accuracy = Row("accuracy", entry.name, entry.name, entry.uses)
        for run in own:
            accuracy.add(run.trial, evaluate(run.features, entry.rerank(run), run.data.columns))
        one = json.dumps({"name": entry.name, "model": entry.model, "parameters": entry.parameters})
        options = [*shared, "--output", str(output), number, str(own[0].trial)]
        options += ["--threads", str(arguments.threads), "--repeats", str(arguments.repeats)]
        found = json.loads(run_self(MODULE, [*options, "--measure", one, "--", *extra]))
        cost, chosen = (Row(table, entry.name, entry.name) for table in ("cost", "parameters"))
        cost.add(1, {next(iter(own[0].data.columns)): found})
        chosen.add("all", {"": {"parameters": text_of(entry, own[0])}})
        rows += [accuracy, cost, chosen]
    about = about_of(arguments) | {"chosen_on": f"{people} training identities per trial, by mean mAP"}
    about["threads"] = str(arguments.threads)
    write_results(output, MODULE, given, rows, make_table(rows), **about)


if __name__ == "__main__":
    main()
