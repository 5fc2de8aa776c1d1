"""Accuracy beside speed: every re-ranker on the same features, as in Table 2 of the CIFT paper.

On RegDB or a data set in its layout. Each method's parameters are chosen on training identities alone: per trial, one
more Baseline model is trained on the first half of the training identities (by number) and the other half validates.
The best mean mAP over trials and both directions is taken; then the models that were trained on all training
identities are evaluated on the test identities, once.

    python -m benchmarks.tables.rerank_accuracy --root RegDB --cache runs/rerank_accuracy
    python -m benchmarks.tables.rerank_accuracy --root RegDB --cache runs/rerank_accuracy -- --epochs 40

Options after ``--`` go to every training run (``examples/train_cift.py``). What is in --cache is not computed again:
models/<row>/<trial>/ (a folder of ``benchmarks/tables/cift.py`` serves as well), validation/ and features/.

All rows are on Baseline's features but the last two: CIFT trains its transfer along with the features. Time and
memory are of one call, all queries of trial 1 (visible to infrared) against the gallery, each in a fresh process.
"""

import argparse
import hashlib
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import common
from benchmarks.speed.measure import PeakMemory, can_measure_memory, environment, run_self, write_text
from benchmarks.tables.cift import Method, grid, plan_runs
from benchmarks.tables.cift_table import COLUMNS, cell, markdown, parameters_text
from benchmarks.tables.runs import Run, Values, load_model, summarize, train_all, write_json
from vireid._ops import normalize_rows
from vireid.models import CIFT
from vireid.protocols import DIRECTIONS, RegDB
from vireid.rerank import aim, gnn, graph_transfer, k_reciprocal, query_expansion, sim

Rerank = partial[Any]
"""A re-ranker with its parameters: (query, gallery) -> distance."""

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


class Features(NamedTuple):
    """Features of all images of a split, and whose they are."""

    features: Tensor
    identities: np.ndarray
    modality: np.ndarray


@dataclass(frozen=True)
class Row:
    """A line of the table: a model's features, ranked by a method with the parameters that were chosen for it."""

    name: str
    model: str
    method: Method | None
    parameters: Mapping[str, Any]


# -------------------------------------------------------------------------------------------------- validation split


def write_validation_split(root: Path, folder: Path, trials: Sequence[int], share: float) -> None:
    """Make ``folder`` a data set in RegDB's layout out of the training lists of ``root``; the test lists are not read.

    Of each trial's training identities, in ascending order, the first ``share`` are for training and the others for
    testing. In order, because neighbouring numbers may show one scene: so few scenes are on both sides.

    Raises:
        FileNotFoundError: if a list is missing.
        ValueError: if one side would be empty, or ``folder`` holds another split: models were trained on it.
    """
    for kind in ("Visible", "Thermal"):
        (folder / "idx").mkdir(parents=True, exist_ok=True)
        link = folder / kind
        if not link.exists():
            link.symlink_to((root / kind).resolve(), target_is_directory=True)
    for trial in trials:
        for kind in ("visible", "thermal"):
            lines = (root / "idx" / f"train_{kind}_{trial}.txt").read_text(encoding="utf-8").splitlines()
            numbers = [int(Path(line.split()[0]).parent.name) for line in lines if line.strip()]
            people = sorted(set(numbers))
            first = set(people[: round(share * len(people))])
            if not first or len(first) == len(people):
                raise ValueError(f"share must leave identities on both sides, got {share} of {len(people)}")
            for split, chosen in (("train", True), ("test", False)):
                kept = [line for line, n in zip(lines, numbers, strict=True) if (n in first) == chosen]
                path, text = folder / "idx" / f"{split}_{kind}_{trial}.txt", "\n".join(kept) + "\n"
                if path.exists() and path.read_text(encoding="utf-8") != text:
                    raise ValueError(f"{path} is of another --root or --share; name another --cache")
                write_text(path, text)


def cached_features(run: Run, path: Path, device: str) -> Features:
    """Features of the run's test split, from ``path`` if that was computed from the same checkpoint."""
    digest = hashlib.sha256((run.folder / "checkpoint.pt").read_bytes()).hexdigest()
    if path.exists():
        with np.load(path) as arrays:
            if str(arrays["checkpoint"]) == digest:
                return Features(torch.from_numpy(arrays["features"]), arrays["identities"], arrays["modality"])
    size = (run.config["size"][0], run.config["size"][1])
    dataset = common.open_dataset(run.arguments, "test", size)
    features = common.extract_features(load_model(run, device), dataset, workers=run.arguments.workers).cpu()
    found = Features(features, dataset.ids, dataset.modality)
    path.parent.mkdir(parents=True, exist_ok=True)
    common.write_whole(
        path,
        lambda file: np.savez(
            file, features=features.numpy(), identities=found.identities, modality=found.modality, checkpoint=digest
        ),
    )
    return found


# -------------------------------------------------------------------------------------------------- accuracy


def evaluate(data: Features, rerank: Rerank | None) -> Values:
    """Direction -> metric -> percent."""
    return {direction: dict(RegDB(direction).evaluate(*data, rerank=rerank).rows[0].mean) for direction in DIRECTIONS}


def mean_map(trials: Sequence[Values]) -> float:
    """mAP, mean over directions and trials."""
    return statistics.fmean(trial[direction]["mAP"] for trial in trials for direction in DIRECTIONS)


def search_grid(method: Method, validation: Sequence[Features]) -> list[dict[str, Any]]:
    """Each entry of the grid with its `mean_map` on the validation identities, the best one first, then the earlier."""
    entries = []
    for parameters in tqdm(method.grid, desc=f"{method.name}: validation", leave=False):
        trials = [evaluate(data, partial(method.function, **parameters)) for data in validation]
        entries.append({"parameters": parameters, "mAP": mean_map(trials)})
    return sorted(entries, key=lambda entry: -entry["mAP"])


def plan_rows(validation: Sequence[Features]) -> tuple[list[Row], dict[str, list[dict[str, Any]]]]:
    """The table's rows with the chosen parameters, and what was found on the validation identities."""
    rows, searched = [Row(NONE, "baseline", None, {})], {}
    for method in METHODS:
        searched[method.name] = search_grid(method, validation)
        rows.append(Row(method.name, "baseline", method, searched[method.name][0]["parameters"]))
    return [*rows, Row(OWN_FEATURES, "cri", None, {}), Row(TRANSFER, "cri", None, {})], searched


def distance_of(row: Row, transfer: Rerank | None) -> Rerank | None:
    """What ranks in a row; None compares by cosine distance."""
    if row.method is not None:
        return partial(row.method.function, **row.parameters)
    return transfer if row.name == TRANSFER else None


# -------------------------------------------------------------------------------------------------- speed


def cosine_distance(query: Tensor, gallery: Tensor) -> Tensor:
    """What ranks where there is no re-ranking."""
    return 1 - normalize_rows(query) @ normalize_rows(gallery).T


def measure(rerank: Rerank | None, data: Features, repeats: int) -> dict[str, Any]:
    """Seconds of each of ``repeats`` calls after one that warms up, and the bytes of one call at its peak."""
    visible = torch.from_numpy(data.modality == 0)
    query, gallery = data.features[visible], data.features[~visible]
    rank: Callable[[Tensor, Tensor], Tensor] = rerank or cosine_distance
    device = torch.device("cpu")
    rank(query[:8], gallery[:64])  # libraries and threads
    peak = PeakMemory(device)
    if can_measure_memory(device):
        with peak:
            rank(query, gallery)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        rank(query, gallery)
        seconds.append(time.perf_counter() - start)
    return {
        "queries": len(query),
        "gallery": len(gallery),
        "seconds": seconds,
        "ms_per_query": 1e3 * statistics.median(seconds) / len(query),
        "peak_bytes": peak.bytes if can_measure_memory(device) else None,
    }


# -------------------------------------------------------------------------------------------------- table, command line


def make_table(content: Mapping[str, Any]) -> str:
    """The Markdown table from the content of the JSON file."""
    head = ["", "parameters", "looks at", "V→I rank-1", "V→I mAP", "I→V rank-1", "I→V mAP", "ms a query", "peak MiB"]
    lines = []
    for row in content["rows"]:
        cost = row["cost"]
        peak = "-" if cost["peak_bytes"] is None else f"{cost['peak_bytes'] / 2**20:.0f}"
        alpha = row["parameters"].get("alpha")
        text = parameters_text(row["parameters"]) or "-"
        lines.append(
            [
                row["name"],
                text if alpha is None else f"{text}, α {alpha}",
                row["uses"],
                *(cell(row["results"][direction][metric]) for direction, metric in COLUMNS),
                f"{cost['ms_per_query']:.2f}",
                peak,
            ]
        )
    return markdown(head, lines, 3)


def plan(
    arguments: argparse.Namespace, extra: Sequence[str], root: Path, rows: Sequence[str], output: Path
) -> list[Run]:
    """Training runs of the named rows of CIFT's ablation, all trials."""
    options = {"root": root, "rows": list(rows), "output": output, "variant": [], "trials": arguments.trials}
    return plan_runs(argparse.Namespace(**options), extra)[1]


def parse_arguments(given: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Own options, and those after ``--`` for every training run."""
    at = list(given).index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of RegDB, or of data in its layout")
    parser.add_argument("--cache", type=Path, default=Path("runs/rerank_accuracy"), help="models and features")
    parser.add_argument("--trials", type=int, nargs="+", default=[1, 2, 3], help="1-10")
    parser.add_argument("--share", type=float, default=0.5, help="of the training identities, to train the chooser on")
    parser.add_argument("--jobs", type=int, default=2, help="training runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads where time is measured")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each method")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args(given[:at])
    for name in ("jobs", "threads", "repeats"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    return arguments, list(given[at + 1 :])


def main(given: Sequence[str] | None = None) -> None:
    """Train what is missing, choose, evaluate, measure; print the table and write the JSON file."""
    given = sys.argv[1:] if given is None else given
    arguments, extra = parse_arguments(given)
    torch.set_num_threads(arguments.threads)
    cache: Path = arguments.cache
    runs = plan(arguments, extra, arguments.root, ("baseline", "cri"), cache / "models")
    choosers = plan(arguments, extra, cache / "validation", ("baseline",), cache / "validation_models")

    def test_features(run: Run) -> Features:
        return cached_features(run, cache / "features" / f"{run.row}_{run.trial}.npz", "cpu")

    def transfer_of(run: Run) -> Rerank | None:
        model = load_model(run, "cpu")
        return partial(graph_transfer, module=model.transfer) if isinstance(model, CIFT) else None

    if arguments.measure:  # in a fresh process, one row
        wanted = json.loads(arguments.measure)
        method = next((m for m in METHODS if m.name == wanted["name"]), None)
        run = next(r for r in runs if r.row == wanted["model"])
        rerank = distance_of(Row(wanted["name"], run.row, method, wanted["parameters"]), transfer_of(run))
        print(json.dumps(measure(rerank, test_features(run), arguments.repeats)))
        return

    write_validation_split(arguments.root, cache / "validation", arguments.trials, arguments.share)
    train_all([*runs, *choosers], arguments.jobs)
    validation = [cached_features(run, cache / "features" / f"validation_{run.trial}.npz", "cpu") for run in choosers]
    rows, searched = plan_rows(validation)
    shown = []
    for row in tqdm(rows, desc="test"):
        own = [run for run in runs if run.row == row.model]
        results = [evaluate(test_features(run), distance_of(row, transfer_of(run))) for run in own]
        rerank = distance_of(row, transfer_of(own[0]))
        uses = "query" if rerank is None else getattr(rerank.func, "uses")  # noqa: B009  # unknown to mypy
        one = json.dumps({"name": row.name, "model": row.model, "parameters": row.parameters})
        split = list(given).index("--") if "--" in given else len(given)
        cost = json.loads(
            run_self("benchmarks.tables.rerank_accuracy", [*given[:split], "--measure", one, *given[split:]])
        )
        parameters = dict(row.parameters)
        if row.name == TRANSFER:
            parameters = {name: own[0].config[name] for name in ("k", "tau_hom", "tau_het")}
        shown.append(
            {
                "name": row.name,
                "features": row.model,
                "uses": uses,
                "parameters": parameters,
                "results": summarize(results),
                "cost": cost,
            }
        )
    content = {
        "benchmark": "accuracy beside speed of the re-rankers",
        "command": shlex.join(["python", "-m", "benchmarks.tables.rerank_accuracy", *given]),
        "trials": arguments.trials,
        "chosen_on": f"{len(np.unique(validation[0].identities))} training identities a trial, by mean mAP",
        **{k: str(v) for k, v in environment(torch.device("cpu")).items()},
        "rows": shown,
        "validation": searched,
    }
    print(make_table(content))
    if arguments.output:
        write_json(arguments.output, content)


if __name__ == "__main__":
    main()
