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

from benchmarks.speed.measure import PeakMemory, can_measure_memory, measure_in_turns, run_self, write_text
from benchmarks.tables.cift import ROWS as CIFT_ROWS
from benchmarks.tables.cift import Method, grid
from benchmarks.tables.records import HEAD, Row, Values, line_of, markdown, of_table, parameters_text
from benchmarks.tables.runs import (
    Features,
    Run,
    add_data_options,
    evaluate,
    make_runs,
    options_parser,
    parse,
    train_all,
    write_results,
)
from vireid._ops import normalize_rows
from vireid.protocols import DIRECTIONS
from vireid.rerank import aim, gnn, graph_transfer, k_reciprocal, query_expansion, sim

MODULE = "benchmarks.tables.rerank_accuracy"
SHARE = 0.5  # of the training identities, to train the choosers on
METHODS = (
    Method("k-reciprocal", k_reciprocal, None, grid(k1=(10, 20, 30), k2=(3, 6), lambda_value=(0.1, 0.3, 0.5))),
    Method("GNN", gnn, None, grid(k1=(10, 26, 40), k2=(3, 7))),
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


# -------------------------------------------------------------------------------------------------- validation split


def write_validation_split(root: Path, folder: Path, trials: Sequence[int], share: float) -> int:
    """Make ``folder`` a data set in RegDB's layout out of the training lists of ``root``; the test lists are not read.

    Of each trial's training identities, in ascending order, the first ``share`` are for training and the others for
    testing. In order, because neighboring numbers may show one scene: so few scenes are on both sides.

    Returns:
        The number of identities that validate, of the last trial.

    Raises:
        FileNotFoundError: if a list is missing.
        ValueError: if one side would be empty, or ``folder`` holds another split: models were trained on it.
    """
    for kind in ("Visible", "Thermal"):
        (folder / "idx").mkdir(parents=True, exist_ok=True)
        link = folder / kind
        if not link.exists():
            link.symlink_to((root / kind).resolve(), target_is_directory=True)
    left = 0
    for trial in trials:
        for kind in ("visible", "thermal"):
            lines = (root / "idx" / f"train_{kind}_{trial}.txt").read_text(encoding="utf-8").splitlines()
            numbers = [int(Path(line.split()[0]).parent.name) for line in lines if line.strip()]
            people = sorted(set(numbers))
            first = set(people[: round(share * len(people))])
            left = len(people) - len(first)
            if not first or not left:
                raise ValueError(f"share must leave identities on both sides, got {share} of {len(people)}")
            for split, chosen in (("train", True), ("test", False)):
                kept = [line for line, n in zip(lines, numbers, strict=True) if (n in first) == chosen]
                path, text = folder / "idx" / f"{split}_{kind}_{trial}.txt", "\n".join(kept) + "\n"
                if path.exists() and path.read_text(encoding="utf-8") != text:
                    raise ValueError(f"{path} is of another --root or --share; name another --output")
                write_text(path, text)
    return left


# -------------------------------------------------------------------------------------------------- accuracy


def mean_map(trials: Sequence[Values]) -> float:
    """Return the mean mAP over directions and trials."""
    return statistics.fmean(trial[direction]["mAP"] for trial in trials for direction in DIRECTIONS)


def choose(method: Method, validation: Sequence[Features]) -> dict[str, Any]:
    """Return the entry of the grid with the best `mean_map` on the validation identities, the first of equals."""
    found = [
        mean_map([evaluate(data, partial(method.function, **parameters)) for data in validation])
        for parameters in tqdm(method.grid, desc=f"{method.name}: validation", leave=False)
    ]
    return method.grid[found.index(max(found))]


def plan_entries(validation: Sequence[Features]) -> list[Entry]:
    """Return the table's lines with the chosen parameters."""
    chosen = [Entry(method.name, "baseline", method, choose(method, validation)) for method in METHODS]
    return [Entry(NONE, "baseline"), *chosen, Entry(OWN_FEATURES, "cri"), Entry(TRANSFER, "cri")]


# -------------------------------------------------------------------------------------------------- cost


def cosine_distance(query: Tensor, gallery: Tensor) -> Tensor:
    """Rank without re-ranking."""
    return 1 - normalize_rows(query) @ normalize_rows(gallery).T


def measure(rerank: Callable[[Tensor, Tensor], Tensor] | None, data: Features, repeats: int) -> dict[str, float]:
    """Return ms per query, the median of ``repeats`` calls after one that warms up, and the peak bytes of one call."""
    visible = data.modality == 0
    query, gallery = data.features[visible], data.features[~visible]
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
    lines = []
    for row in of_table(rows, "accuracy"):
        name, uses, *accuracies = line_of(row)
        own = {metric: float(values["1"]) for (_, metric), values in cost[row.key].values.items()}
        peak = f"{own['peak_bytes'] / 2**20:.0f}" if "peak_bytes" in own else "-"
        text = str(chosen[row.key].values["", "parameters"]["all"])
        lines.append([name, text, uses, *accuracies, f"{own['ms_per_query']:.2f}", peak])
    return markdown(["", "parameters", "looks at", *HEAD, "ms per query", "peak MiB"], lines, 3)


def text_of(entry: Entry, run: Run) -> str:
    """Return an entry's parameters as shown, "-" without any."""
    if entry.name == TRANSFER:
        return parameters_text({name: run.settings[name] for name in ("k", "tau_hom", "tau_het")})
    text = parameters_text(entry.parameters) or "-"
    return f"{text}, α {entry.parameters['alpha']}" if "alpha" in entry.parameters else text


def main(given: Sequence[str] | None = None) -> None:
    """Train what is missing, choose, evaluate, measure; write results.csv and table.md."""
    parser = options_parser(__doc__, "runs/rerank_accuracy")
    add_data_options(parser)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads where time is measured")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each method")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments, extra = parse(parser, given)
    torch.set_num_threads(arguments.threads)
    output: Path = arguments.output
    plans = {row: CIFT_ROWS[row] for row in ("baseline", "cri")}
    runs = make_runs(plans, extra, root=arguments.root, output=output, trials=arguments.trials)
    if arguments.measure:  # in a fresh process, one line
        wanted = json.loads(arguments.measure)
        method = next((m for m in METHODS if m.name == wanted["name"]), None)
        run = next(run for run in runs if run.row == wanted["model"])
        entry = Entry(wanted["name"], run.row, method, wanted["parameters"])
        print(json.dumps(measure(entry.rerank(run), run.features, arguments.repeats)))
        return

    validation = output / "validation"
    people = write_validation_split(arguments.root, validation, arguments.trials, SHARE)
    choosers = {"baseline": CIFT_ROWS["baseline"]}
    models = output / "validation_models"
    choosing = make_runs(choosers, extra, root=validation, output=models, trials=arguments.trials)
    train_all([*runs, *choosing], arguments.jobs)
    rows = []
    for entry in tqdm(plan_entries([run.features for run in choosing]), desc="test"):
        own = [run for run in runs if run.row == entry.model]
        rerank = entry.rerank(own[0])
        accuracy = Row("accuracy", entry.name, entry.name, "query" if rerank is None else rerank.func.uses)
        for run in own:
            accuracy.add(run.trial, evaluate(run.features, entry.rerank(run)))
        one = json.dumps({"name": entry.name, "model": entry.model, "parameters": entry.parameters})
        options = ["--root", str(arguments.root), "--output", str(output), "--trials", str(own[0].trial)]
        options += ["--threads", str(arguments.threads), "--repeats", str(arguments.repeats)]
        found = json.loads(run_self(MODULE, [*options, "--measure", one, "--", *extra]))
        cost, chosen = (Row(table, entry.name, entry.name) for table in ("cost", "parameters"))
        cost.add(1, {DIRECTIONS[0]: found})
        chosen.add("all", {"": {"parameters": text_of(entry, own[0])}})
        rows += [accuracy, cost, chosen]
    about = {
        "trials": ", ".join(map(str, arguments.trials)),
        "data": arguments.root.resolve().name,
        "chosen_on": f"{people} training identities per trial, by mean mAP",
        "threads": arguments.threads,
    }
    write_results(output, MODULE, given, rows, make_table(rows), **about)


if __name__ == "__main__":
    main()
