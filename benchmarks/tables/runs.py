"""Rows of a table times trials of RegDB: what trains them, resumes them and reads what they left.

A row is a set of options for one of the training scripts in ``examples``. Each of its trials runs in a process of its
own; what is complete is not run again, and what was interrupted goes on. `cift.py`, `saai.py` and `g2da.py` are made of
this. On the synthetic pedestrians the runs of a row differ by the training's seed instead.
"""

import argparse
import itertools
import json
import math
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import common
import trained
import vireid
from benchmarks.speed.measure import hardware, write_text
from benchmarks.tables.cift_table import MARGIN_IDENTITIES
from vireid._ops import evaluation_mode, normalize_rows
from vireid.data import generate_synthetic
from vireid.metrics import affinity_error_rate, affinity_quality, feature_margin
from vireid.nn import GFT, H2FT
from vireid.protocols import DIRECTIONS, RegDB
from vireid.protocols.report import METRICS


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
Values = dict[str, dict[str, float]]
"""direction -> metric -> percent, of one trial."""


@dataclass(frozen=True)
class Run:
    """One row of one trial, or of one seed of the synthetic data: script, options, and the folder it writes."""

    script: ModuleType
    row: str
    trial: int
    flags: tuple[str, ...]
    arguments: argparse.Namespace

    def __str__(self) -> str:
        kind = "seed" if self.arguments.dataset == "synthetic" else "trial"
        return f"row {self.row}, {kind} {self.trial}"

    @property
    def folder(self) -> Path:
        """Where its checkpoint and metrics are."""
        folder: Path = self.arguments.output
        return folder

    @property
    def config(self) -> dict[str, Any]:
        """What a complete checkpoint of this run says about itself."""
        return {k: v for k, v in vars(self.arguments).items() if k in self.script.SETTINGS and v is not None}


# ---------------------------------------------------------------------------------------------------- training


def add_options(parser: argparse.ArgumentParser, output: str) -> None:
    """Options of every benchmark of this kind; ``output`` is --output's default."""
    parser.add_argument("--root", type=Path, required=True, help="folder of RegDB, or of data in its layout")
    parser.add_argument("--trials", type=int, nargs="+", default=[1, 2, 3], help="1-10")
    add_run_options(parser, output)
    parser.add_argument("--device", default="cpu", help="of the evaluation; training chooses by --accelerator")


def add_run_options(parser: argparse.ArgumentParser, output: str) -> None:
    """Those of them that say how the runs are made, whatever the data."""
    parser.add_argument("--output", type=Path, default=Path(output))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one CPU thread each when above 1")


def add_row_options(parser: argparse.ArgumentParser, rows: Collection[str]) -> None:
    """Options that choose a table's rows."""
    parser.add_argument("--rows", nargs="+", choices=list(rows), default=list(rows))
    parser.add_argument(
        "--variant", action="append", default=[], metavar="NAME=OPTIONS", help="a further row; may be repeated"
    )


def parse(parser: argparse.ArgumentParser, given: Sequence[str], lists: Sequence[str]) -> argparse.Namespace:
    """The options, if they make sense; each of ``lists`` holds nothing twice."""
    arguments = parser.parse_args(given)
    if arguments.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {arguments.jobs}")
    for name in lists:
        values = getattr(arguments, name) or []
        if len(set(values)) < len(values):
            parser.error(f"--{name} must name each once, got {values}")
    return arguments


def split_options(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """A benchmark's own options, and those after ``--`` for every training run."""
    at = list(given).index("--") if "--" in given else len(given)
    return list(given[:at]), list(given[at + 1 :])


def parse_variants(
    script: ModuleType, variants: Sequence[str], taken: Collection[str]
) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Folder of each ``name=options`` -> its name and its options.

    Raises:
        ValueError: for one that is not ``name=options``, or whose folder is ``taken`` or another variant's.
    """
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for variant in variants:
        name, equals, options = variant.partition("=")
        folder = re.sub(r"\W+", "_", name).strip("_").lower()
        if not equals or not folder or not options.strip():
            raise ValueError(f"a variant must be name=options of {script.__name__}.py, got {variant!r}")
        if folder in found or folder in taken:
            raise ValueError(f"a variant's name must give a folder of its own, got {name!r} for {folder!r} again")
        found[folder] = name.strip(), tuple(shlex.split(options))
    return found


def make_runs(
    script: ModuleType,
    rows: Mapping[str, Sequence[str]],
    extra: Sequence[str],
    *,
    root: Path,
    output: Path,
    trials: Sequence[int],
    synthetic: bool = False,
) -> list[Run]:
    """All runs, trial by trial, each in the folder ``output``/row/trial.

    Args:
        script: `train_cift`, `train_saai` or `train_g2da`.
        rows: options of each row, which also names its folder.
        extra: options of every run.
        root: the data.
        output: where the folders are.
        trials: 1-10; of the synthetic data the seeds.
        synthetic: the data are the synthetic pedestrians: trial 1, trained with each seed.

    Raises:
        ValueError: for an option that is set here.
    """
    fixed = ("--dataset", "synthetic" if synthetic else "regdb", "--root", str(root))
    number = ("--trial", "1", "--seed") if synthetic else ("--trial",)
    taken = ("--dataset", "--root", "--trial", "--output", "--resume", number[-1])
    runs = []
    for trial, (row, own) in itertools.product(trials, rows.items()):
        given = (*extra, *own)
        for option in given:
            if option.split("=")[0] in taken:
                raise ValueError(f"{option} is set by this benchmark; leave it out")
        everything = (*fixed, *number, str(trial), "--output", str(output / row / str(trial)), *given)
        runs.append(Run(script, row, trial, everything, parse_training(script, everything)))
    return runs


def parse_training(script: ModuleType, flags: Sequence[str]) -> argparse.Namespace:
    """The options as the training script itself reads them; a wrong one ends the benchmark before anything runs."""
    saved = sys.argv
    sys.argv = [f"{script.__name__}.py", *flags]
    try:
        arguments: argparse.Namespace = script.parse_arguments()
        return arguments
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
    old = {k: v for k, v in state["config"].items() if k in run.script.SETTINGS}
    old |= {"root": json.loads(source.read_text())["root"] if source.exists() else None}
    old |= {"method": common.method_of(state["config"])}
    new = run.config | source_of(run) | {"method": run.script.METHOD.name}
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if differing:
        changes = ", ".join(f"{key} {old.get(key)!r} -> {new.get(key)!r}" for key in differing)
        raise ValueError(f"{run.folder} holds a run with other settings ({changes}); name another --output")
    finished = state["epoch"] == run.arguments.epochs and metrics.exists()
    return "complete" if finished and metrics.stat().st_mtime >= checkpoint.stat().st_mtime else "interrupted"


def reuse(run: Run, folder: Path) -> Run:
    """The run of equal settings in ``folder``/trial, where it is complete; else the run itself."""
    there = argparse.Namespace(**{**vars(run.arguments), "output": folder / str(run.trial)})
    other = replace(run, arguments=there)
    try:
        return other if state_of(other) == "complete" else run
    except ValueError:  # of other settings
        return run


def source_of(run: Run) -> dict[str, str]:
    """What the checkpoint does not say about the data."""
    return {"root": str(Path(run.arguments.root).resolve())}


def train(run: Run, *, single_thread: bool) -> None:
    """Run the training script; its output goes to log.txt in the run's folder.

    Raises:
        RuntimeError: if it fails; the message has the log's end.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    if single_thread:
        environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, str(EXAMPLES / f"{run.script.__name__}.py"), *run.flags]
    if state_of(run) == "interrupted":
        command.append("--resume")
    run.folder.mkdir(parents=True, exist_ok=True)
    write_text(run.folder / "source.json", json.dumps(source_of(run)) + "\n")
    log = run.folder / "log.txt"
    with open(log, "a", encoding="utf-8") as file:
        result = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False)
    if result.returncode or state_of(run) != "complete":
        end = "".join(log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)[-15:])
        raise RuntimeError(f"{run} failed (exit status {result.returncode}), {log}:\n{end}")


def train_all(runs: Sequence[Run], jobs: int) -> None:
    """Run what is not complete, ``jobs`` at a time; the first failure is raised once the running ones have ended.

    Synthetic data are drawn before: the first runs would each do it.
    """
    todo = [run for run in runs if state_of(run) != "complete"]
    for root in {run.arguments.root for run in todo if run.arguments.dataset == "synthetic"}:
        generate_synthetic(root, layout="regdb", progress=True)
    with (
        tqdm(total=len(runs), initial=len(runs) - len(todo), desc="training") as progress,
        ThreadPoolExecutor(jobs) as pool,
    ):
        waiting = {pool.submit(train, run, single_thread=jobs > 1): run for run in todo}
        try:
            for future in as_completed(waiting):
                future.result()
                progress.set_postfix_str(str(waiting[future]))
                progress.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


# -------------------------------------------------------------------------------------------------- evaluation


def load_model(run: Run, device: str) -> nn.Module:
    """The trained model of a run, in evaluation mode."""
    return trained.open_model(run.folder / "checkpoint.pt", device).model


def read_metrics(path: Path) -> dict[str, dict[str, Any]]:
    """Kind of features -> {"uses", direction -> metrics} from a run's metrics.json; what it says of AIM is left out."""
    kinds: dict[str, dict[str, Any]] = {}
    for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
        if row["rerank"] != "none":
            continue
        kind = kinds.setdefault(row["features"], {"uses": row["uses"]})
        kind[row["direction"]] = {name: row[name] for name in METRICS}
    return kinds


def check_features(
    run: Run, kinds: Mapping[str, Any], features: Tensor, identities: np.ndarray, modality: np.ndarray
) -> float:
    """Largest difference, in points, between metrics.json and the features computed anew from the checkpoint.

    Raises:
        RuntimeError: if it is above a point, or above two queries' worth: then one of the two is not of this run.
    """
    worst = 0.0
    for direction in DIRECTIONS:
        anew = RegDB(direction).evaluate(features, identities, modality).rows[0].mean
        worst = max(worst, *(abs(anew[name] - kinds["backbone"][direction][name]) for name in ("rank1", "mAP")))
    if worst > max(1.0, 200 / min(np.bincount(modality, minlength=2))):
        raise RuntimeError(f"{run.folder}: metrics.json and checkpoint.pt disagree by {worst:.2f} points")
    return worst


@torch.no_grad()
def diagnose(model: nn.Module, features: Tensor, identities: np.ndarray, modality: np.ndarray) -> dict[str, float]:
    """The CIFT paper's diagnostics on the test set, each the mean over both directions.

    Of the affinity cos(v(query), v(gallery)): ``error_rate`` (Table 4, 4 neighbours, percent) and ``Q_A``, the share
    of queries (percent) whose weakest true match is above their strongest wrong one. ``Q_X`` and ``Q_Y``: margins of
    v(x) and of the transferred features, rows L2-normalised **[ours]**, over all images of up to 64 evenly chosen
    identities. GFT's gallery features depend on the query; here they are those without it. A model without a
    ``transfer`` has no v and no Q_Y: its rows are the features.
    """
    transfer = getattr(model, "transfer", None)
    rows = features
    graph = transfer if isinstance(transfer, H2FT) else None
    if isinstance(transfer, GFT):
        graph = H2FT(transfer.dim, k=transfer.k, tau_hom=transfer.tau, tau_het=transfer.tau, value=transfer.value)
    if transfer is not None:
        with evaluation_mode(transfer):
            rows = transfer.value(features)
    ids = torch.from_numpy(identities).to(features.device)
    kinds = torch.from_numpy(modality).to(features.device)
    people = ids.unique()
    chosen = people[torch.linspace(0, len(people) - 1, min(MARGIN_IDENTITIES, len(people))).long()]
    found: dict[str, list[float]] = {}
    for kind in (vireid.VISIBLE, vireid.INFRARED):
        q, g = (kinds == kind).nonzero().flatten(), (kinds != kind).nonzero().flatten()
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


def environment(device: str) -> dict[str, Any]:
    """What the figures of a table must be read with: hardware and versions."""
    return {
        "hardware": hardware(torch.device("cpu")),
        "cpus": os.cpu_count(),
        "device": device if device == "cpu" else hardware(torch.device(device)),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "vireid": vireid.__version__,
        },
    }


# ------------------------------------------------------------------------------------------------------- sweep


def add_sweep_options(parser: argparse.ArgumentParser, script: ModuleType, table: str, parameters: str) -> None:
    """Options of a sweep; ``table`` is the default of --table, ``parameters`` examples of what may be swept."""
    parser.add_argument("--parameter", required=True, help=f"option of {script.__name__}.py: {parameters}, …")
    parser.add_argument("--values", nargs="+", required=True, help="numbers")
    parser.add_argument("--figure", type=Path, help="picture to draw, such as sweep.png")
    parser.add_argument(
        "--table",
        type=Path,
        default=Path(table),
        help=f"whose row {script.METHOD.name} serves for the value it has",
    )


def parse_sweep(
    parser: argparse.ArgumentParser, given: Sequence[str], script: ModuleType, lists: Sequence[str]
) -> argparse.Namespace:
    """As `parse`, of a parser with `add_sweep_options`."""
    arguments = parse(parser, given, lists)
    arguments.parameter = arguments.parameter.lstrip("-").replace("_", "-")
    if arguments.parameter.replace("-", "_") not in script.SETTINGS:
        parser.error(
            f"--parameter must be an option of {script.__name__}.py that decides the model, got {arguments.parameter}"
        )
    for value in arguments.values:
        try:
            finite = math.isfinite(number(value))
        except ValueError:
            finite = False
        if not finite:
            parser.error(f"--values must be numbers, got {value!r}")
    if len({number(value) for value in arguments.values}) < len(arguments.values):
        parser.error(f"--values must name each once, got {arguments.values}")
    return arguments


def number(text: str) -> int | float:
    """An integer where it is one."""
    return int(text) if text.lstrip("+-").isdigit() else float(text)


def train_values(
    script: ModuleType, arguments: argparse.Namespace, extra: Sequence[str], **where: Any
) -> list[tuple[int | float, Run]]:
    """Train the script's method with each value in each trial; each value with its run, trial by trial.

    Args:
        script: whose row in the folder of --table, of its method's name, serves for the value that it has.
        arguments: of `parse_sweep`.
        extra: options of every run.
        where: of `make_runs`.
    """
    values = {f"{arguments.parameter}_{value}": value for value in arguments.values}
    rows = {row: (f"--{arguments.parameter}", value) for row, value in values.items()}
    table = arguments.table / script.METHOD.name
    runs = [reuse(run, table) for run in make_runs(script, rows, extra, output=arguments.output, **where)]
    train_all(runs, arguments.jobs)
    return [(number(values[run.row]), run) for run in runs]


def write_sweep(arguments: argparse.Namespace, content: dict[str, Any], name: str, metrics: Sequence[str]) -> None:
    """Write results.json and draw the figure of its records' ``metrics``, with ``name`` below its axis."""
    write_json(arguments.output / "results.json", content)
    print(f"wrote {arguments.output / 'results.json'}")
    if arguments.figure:
        from benchmarks.tables.sensitivity_plot import sensitivity_curves

        sensitivity_curves(content["records"], arguments.figure, parameter=name, metrics=metrics)
        print(f"wrote {arguments.figure}")
