"""The README's table of CIFT: its ablation and, on the same features, the post-processing it is compared with.

For each trial of RegDB (or of a data set in RegDB's layout) and each row, ``examples/train_cift.py`` trains and
evaluates in a process of its own; what is complete is not run again, and what was interrupted goes on. Then the
features of Baseline and of CIFT† are post-processed (``postprocessing.py``) and the graphs are looked at.

    python benchmarks/cift.py --root RegDB --output runs/cift_table
    python benchmarks/cift.py --root RegDB --variant "CIFT, other τ=--tau-hom 0.2 --tau-het 0.4" -- --epochs 40

Options after ``--`` go to every run. Into --output go <row>/<trial>/ of each run, results.json and table.md.

Post-processing is reported twice: with the fixed parameters of its paper (for RegDB where it names them), and with the
best of a grid, chosen on the test set itself and for each column by itself: an upper bound in favour of the opponent.
"""

import argparse
import itertools
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import common  # noqa: E402
import train_cift  # noqa: E402
import vireid  # noqa: E402
from cift_table import COLUMNS, DIRECTIONS, MARGIN_IDENTITIES, make_table  # noqa: E402
from measure import hardware, write_json, write_text  # noqa: E402
from postprocessing import aim, gnn, k_reciprocal, k_reciprocal_parts, query_expansion  # noqa: E402
from vireid._ops import evaluation_mode, normalize_rows  # noqa: E402
from vireid.metrics import affinity_error_rate, affinity_quality, feature_margin  # noqa: E402
from vireid.models import CIFT  # noqa: E402
from vireid.nn import GFT, H2FT  # noqa: E402
from vireid.protocols import RegDB  # noqa: E402
from vireid.report import METRICS  # noqa: E402

ROWS = {"baseline": "Baseline", "gft": "+ GFT", "ubs": "+ UBS", "h2g": "+ H2G", "cri": "CIFT"}


Values = dict[str, dict[str, float]]
"""direction -> metric -> percent, of one trial."""


@dataclass(frozen=True)
class Run:
    """One row of one trial: the example's options, and the folder it writes."""

    row: str
    trial: int
    flags: tuple[str, ...]
    arguments: argparse.Namespace

    @property
    def folder(self) -> Path:
        """Where its checkpoint and metrics are."""
        folder: Path = self.arguments.output
        return folder

    @property
    def config(self) -> dict[str, Any]:
        """What a complete checkpoint of this run says about itself."""
        return {k: v for k, v in vars(self.arguments).items() if k in train_cift.SETTINGS and v is not None}


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


# ---------------------------------------------------------------------------------------------------- training


def plan_runs(arguments: argparse.Namespace, extra: Sequence[str]) -> tuple[dict[str, str], list[Run]]:
    """Label of each row (by the name of its folder), and all runs, trial by trial.

    Raises:
        ValueError: for a variant that is not ``name=options`` or whose folder is taken, or an option set here.
    """
    labels = {row: ROWS[row] for row in arguments.rows}
    flags: dict[str, tuple[str, ...]] = {row: ("--ablation", row) for row in arguments.rows}
    for variant in arguments.variant:
        name, equals, options = variant.partition("=")
        folder = re.sub(r"\W+", "_", name).strip("_").lower()
        if not equals or not folder or not options.strip():
            raise ValueError(f"a variant must be name=options of train_cift.py, got {variant!r}")
        if folder in labels or folder in ROWS:
            raise ValueError(f"a variant's name must give a folder of its own, got {name!r} for {folder!r} again")
        labels[folder], flags[folder] = name.strip(), tuple(shlex.split(options))
    runs = []
    for trial, (row, own) in itertools.product(arguments.trials, flags.items()):
        given = (*extra, *own)
        for option in given:
            if option.split("=")[0] in ("--dataset", "--root", "--trial", "--output", "--resume"):
                raise ValueError(f"{option} is set by this benchmark; leave it out")
        fixed = ("--dataset", "regdb", "--root", str(arguments.root), "--trial", str(trial))
        everything = (*fixed, "--output", str(arguments.output / row / str(trial)), *given)
        runs.append(Run(row, trial, everything, parse_training(everything)))
    return labels, runs


def parse_training(flags: Sequence[str]) -> argparse.Namespace:
    """The options as train_cift.py itself reads them; a wrong one ends the benchmark before anything runs."""
    saved = sys.argv
    sys.argv = ["train_cift.py", *flags]
    try:
        return train_cift.parse_arguments()
    finally:
        sys.argv = saved


def state_of(run: Run) -> str:
    """``"complete"``, ``"interrupted"`` (there is a checkpoint to go on from) or ``"new"``.

    Raises:
        ValueError: if what is there was made from other settings or other data: it is neither mixed up nor overwritten.
    """
    checkpoint, metrics, source = (run.folder / name for name in ("checkpoint.pt", "metrics.json", "source.json"))
    if not checkpoint.exists():
        return "new"
    state = common.load_checkpoint(checkpoint)
    old = {k: v for k, v in state["config"].items() if k in train_cift.SETTINGS}
    old |= {"root": json.loads(source.read_text())["root"] if source.exists() else None}
    new = run.config | source_of(run)
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if differing:
        changes = ", ".join(f"{key} {old.get(key)!r} -> {new.get(key)!r}" for key in differing)
        raise ValueError(f"{run.folder} holds a run with other settings ({changes}); name another --output")
    finished = state["epoch"] == run.arguments.epochs and metrics.exists()
    return "complete" if finished and metrics.stat().st_mtime >= checkpoint.stat().st_mtime else "interrupted"


def source_of(run: Run) -> dict[str, str]:
    """What the checkpoint does not say about the data."""
    return {"root": str(Path(run.arguments.root).resolve())}


def train(run: Run, *, single_thread: bool) -> None:
    """Run train_cift.py; its output goes to log.txt in the run's folder.

    Raises:
        RuntimeError: if it fails; the message has the log's end.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    if single_thread:
        environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, str(EXAMPLES / "train_cift.py"), *run.flags]
    if state_of(run) == "interrupted":
        command.append("--resume")
    run.folder.mkdir(parents=True, exist_ok=True)
    write_text(run.folder / "source.json", json.dumps(source_of(run)) + "\n")
    log = run.folder / "log.txt"
    with open(log, "a", encoding="utf-8") as file:
        result = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False)
    if result.returncode or state_of(run) != "complete":
        end = "".join(log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)[-15:])
        raise RuntimeError(f"row {run.row}, trial {run.trial} failed (exit status {result.returncode}), {log}:\n{end}")


def train_all(runs: Sequence[Run], jobs: int) -> None:
    """Run what is not complete, ``jobs`` at a time; the first failure is raised once the running ones have ended."""
    todo = [run for run in runs if state_of(run) != "complete"]
    with (
        tqdm(total=len(runs), initial=len(runs) - len(todo), desc="training") as progress,
        ThreadPoolExecutor(jobs) as pool,
    ):
        waiting = {pool.submit(train, run, single_thread=jobs > 1): run for run in todo}
        try:
            for future in as_completed(waiting):
                future.result()
                progress.set_postfix_str(f"{waiting[future].row}, trial {waiting[future].trial}")
                progress.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


# -------------------------------------------------------------------------------------------------- evaluation


def read_metrics(path: Path) -> dict[str, dict[str, Any]]:
    """Kind of features -> {"uses", direction -> metrics} from a run's metrics.json."""
    kinds: dict[str, dict[str, Any]] = {}
    for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
        kind = kinds.setdefault(row["features"], {"uses": row["uses"]})
        kind[row["direction"]] = {name: row[name] for name in METRICS}
    return kinds


def check_features(run: Run, kinds: Mapping[str, Any], features: Tensor, dataset: common.Dataset) -> float:
    """Largest difference, in points, between metrics.json and the features computed anew from the checkpoint.

    Raises:
        RuntimeError: if it is above a point, or above two queries' worth: then one of the two is not of this run.
    """
    worst = 0.0
    for direction in DIRECTIONS:
        anew = RegDB(direction).evaluate(features, dataset.identities, dataset.modality).rows[0].mean
        worst = max(worst, *(abs(anew[name] - kinds["backbone"][direction][name]) for name in ("rank1", "mAP")))
    if worst > max(1.0, 200 / min(np.bincount(dataset.modality, minlength=2))):
        raise RuntimeError(f"{run.folder}: metrics.json and checkpoint.pt disagree by {worst:.2f} points")
    return worst


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
                    features, dataset.identities, dataset.modality, rerank=partial(function, **parameters)
                )
                found[method.name][number][direction] = report.rows[0].mean
                progress.update()
    return found


@torch.no_grad()
def diagnose(model: nn.Module, features: Tensor, dataset: common.Dataset) -> dict[str, float]:
    """The CIFT paper's diagnostics on the test set, each the mean over both directions.

    Of the affinity cos(v(query), v(gallery)): ``error_rate`` (Table 4, 4 neighbours, percent) and ``Q_A``, the share
    of queries (percent) whose weakest true match is above their strongest wrong one. ``Q_X`` and ``Q_Y``: margins of
    v(x) and of the transferred features, rows L2-normalised **[ours]**, over all images of up to 64 evenly chosen
    identities. GFT's gallery features depend on the query; here they are those without it. A baseline has no v and no
    transfer: its rows are the backbone features.
    """
    transfer = model.transfer if isinstance(model, CIFT) else None
    rows = features
    graph = transfer if isinstance(transfer, H2FT) else None
    if isinstance(transfer, GFT):
        graph = H2FT(transfer.dim, k=transfer.k, tau_hom=transfer.tau, tau_het=transfer.tau, value=transfer.value)
    if transfer is not None:
        with evaluation_mode(transfer):
            rows = transfer.value(features)
    ids = torch.from_numpy(dataset.identities).to(features.device)
    modality = torch.from_numpy(dataset.modality).to(features.device)
    people = ids.unique()
    chosen = people[torch.linspace(0, len(people) - 1, min(MARGIN_IDENTITIES, len(people))).long()]
    found: dict[str, list[float]] = {}
    for kind in (vireid.VISIBLE, vireid.INFRARED):
        q, g = (modality == kind).nonzero().flatten(), (modality != kind).nonzero().flatten()
        affinity = normalize_rows(rows[q]) @ normalize_rows(rows[g]).T
        results = {
            "error_rate": 100 * affinity_error_rate(affinity, ids[q], ids[g]),
            "Q_A": 100 * affinity_quality(affinity, ids[q], ids[g]),
        }
        names = torch.cat([ids[q], ids[g]])
        few = torch.isin(names, chosen)
        both = torch.cat([rows[q], rows[g]])[few]
        results["Q_X"] = feature_margin(normalize_rows(both), names[few])
        if graph is not None:
            moved = torch.cat(graph.transfer(features[q], features[g]))[few]
            results["Q_Y"] = feature_margin(normalize_rows(moved), names[few])
        for name, value in results.items():
            found.setdefault(name, []).append(value)
    return {name: statistics.fmean(values) for name, values in found.items()}


def summary(per_trial: Sequence[float]) -> dict[str, Any]:
    """Values, mean and sample standard deviation (None for a single trial)."""
    values = list(per_trial)
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"per_trial": values, "mean": statistics.fmean(values), "std": std}


def summarize(trials: Sequence[Values]) -> dict[str, dict[str, Any]]:
    """Direction -> metric -> `summary` over the trials."""
    return {
        direction: {name: summary([trial[direction][name] for trial in trials]) for name in trials[0][direction]}
        for direction in DIRECTIONS
    }


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
        config = {**run.config, "weights": None}  # the checkpoint holds the weights
        size = (config["size"][0], config["size"][1])
        if (run.trial, size) not in datasets:
            datasets = {
                key: value for key, value in datasets.items() if key[0] == run.trial
            }  # images are kept in memory
            datasets[run.trial, size] = common.open_dataset(run.arguments, "test", size)
        dataset = datasets[run.trial, size]
        state = common.load_checkpoint(run.folder / "checkpoint.pt")
        model, _ = train_cift.build_model(config, state["identities"])
        model.load_state_dict(state["model"])
        features = common.extract_features(model.to(device).eval(), dataset, workers=run.arguments.workers)
        kinds = read_metrics(run.folder / "metrics.json")
        difference = max(difference, check_features(run, kinds, features, dataset))
        metrics[run.row].append(kinds)
        diagnostics[run.row].append(diagnose(model, features, dataset))
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
    own = list(given)
    extra: list[str] = []
    if "--" in own:
        at = own.index("--")
        own, extra = own[:at], own[at + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of RegDB, or of data in its layout")
    parser.add_argument("--output", type=Path, default=Path("runs/cift_table"))
    parser.add_argument("--trials", type=int, nargs="+", default=[1, 2, 3], help="1-10")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument(
        "--variant", action="append", default=[], metavar="NAME=OPTIONS", help="a further row; may be repeated"
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one CPU thread each when above 1")
    parser.add_argument("--device", default="cpu", help="of the evaluation; training chooses by --accelerator")
    arguments = parser.parse_args(own)
    if arguments.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {arguments.jobs}")
    for name in ("trials", "rows"):
        if len(set(getattr(arguments, name))) < len(getattr(arguments, name)):
            parser.error(f"--{name} must name each once, got {getattr(arguments, name)}")
    return arguments, extra


def main(given: Sequence[str] | None = None) -> None:
    """Train what is missing, evaluate, write results.json and table.md."""
    given = sys.argv[1:] if given is None else given
    arguments, extra = parse_arguments(given)
    labels, runs = plan_runs(arguments, extra)
    train_all(runs, arguments.jobs)
    found = evaluate_all(labels, runs, arguments.device)
    content = {
        "benchmark": "CIFT: ablation and post-processing",
        "command": shlex.join(["python", "benchmarks/cift.py", *given]),
        "labels": labels,
        "trials": arguments.trials,
        "settings": {run.row: run.config for run in reversed(runs)},  # of the first trial
        "hardware": hardware(torch.device("cpu")),
        "cpus": os.cpu_count(),
        "device": arguments.device if arguments.device == "cpu" else hardware(torch.device(arguments.device)),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "vireid": vireid.__version__,
        },
        **found,
    }
    table = make_table(content)
    write_json(arguments.output / "results.json", content)
    write_text(arguments.output / "table.md", table)
    print(table)
    print(f"wrote {arguments.output / 'results.json'} and table.md")


if __name__ == "__main__":
    main()
