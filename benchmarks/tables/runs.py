"""Rows of a table times trials of RegDB: training, resuming, and reading the runs.

A row is a method of `vireid.training` with settings of its own. Each of its trials is trained in a process of its own
(`train.py`); what is complete is not run again, and what was interrupted goes on. `cift.py`, `saai.py`, `g2da.py` and
`rerank_accuracy.py` are made of this. On the synthetic pedestrians the runs of a row differ by the training's seed.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.speed.measure import child_environment, command_of, environment, write_text
from benchmarks.tables.records import Row, Values, write_rows
from vireid.cli.signatures import keyword_arguments
from vireid.data import generate_synthetic
from vireid.data.features import load_features
from vireid.protocols import DIRECTIONS, RegDB
from vireid.training import METHODS, Recipe, load_model, read_checkpoint, settings_of

RECIPE_OPTIONS = {"epochs": int, "batches": int, "identities": int, "per_modality": int, "lr": float, "seed": int}
GRAPH = ("attention", "aggregation")  # layers of G2DA's graph, for --graph-lr


class Plan(NamedTuple):
    """A row of a table: its name, the method that is trained, and its options."""

    label: str
    method: str
    options: tuple[str, ...] = ()


class Features(NamedTuple):
    """Features of all images of a split, and whose they are."""

    features: Tensor
    ids: Tensor
    modality: Tensor


@dataclass(frozen=True)
class Run:
    """One row of one trial, or of one seed of the synthetic data, and the folder that it writes."""

    row: str
    trial: int
    method: str
    dataset: str
    root: Path
    folder: Path
    settings: dict[str, Any]
    recipe: Recipe

    def __str__(self) -> str:
        return f"row {self.row}, {'seed' if self.dataset == 'synthetic' else 'trial'} {self.trial}"

    @property
    def kept(self) -> dict[str, Any]:
        """Settings in its checkpoint, beside the recipe."""
        trial = 1 if self.dataset == "synthetic" else self.trial
        return {"method": self.method, "dataset": self.dataset, "trial": trial, "root": str(self.root.resolve())} | (
            self.settings
        )

    @cached_property
    def model(self) -> nn.Module:
        """The trained model in evaluation mode, on the CPU."""
        return load_model(self.folder / "checkpoint.pt")

    @cached_property
    def features(self) -> Features:
        """Its features of the test split."""
        found = load_features(self.folder / "features.npz")
        return Features(*map(torch.from_numpy, (found.features, found.ids, found.modality)))


# ---------------------------------------------------------------------------------------------------- options


def options_parser(doc: str | None, output: str) -> argparse.ArgumentParser:
    """Return a parser with the options of every table; ``output`` is --output's default."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(output), help="folder of the runs and the results")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one CPU thread each when above 1")
    return parser


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the trials of RegDB, or of data in its layout."""
    parser.add_argument("--root", type=Path, required=True, help="folder of RegDB, or of data in its layout")
    parser.add_argument("--trials", type=int, nargs="+", default=[1, 2, 3], help="1-10")


def add_row_options(parser: argparse.ArgumentParser, rows: Collection[str]) -> None:
    """Add the options that choose a table's rows."""
    parser.add_argument("--rows", nargs="+", choices=list(rows), default=list(rows))
    parser.add_argument(
        "--variant", action="append", default=[], metavar="NAME=OPTIONS", help="a further row; may be repeated"
    )


def parse(parser: argparse.ArgumentParser, given: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Return a table's own options, and those after ``--`` for every training run.

    Numbers of runs must be at least 1, and lists name each entry once.
    """
    given = list(sys.argv[1:] if given is None else given)
    at = given.index("--") if "--" in given else len(given)
    arguments = parser.parse_args(given[:at])
    for name, value in vars(arguments).items():
        if isinstance(value, int) and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
        if isinstance(value, list) and name != "variant" and len(set(value)) < len(value):
            parser.error(f"--{name} must name each once, got {value}")
    return arguments, given[at + 1 :]


def read_options(method: str, given: Sequence[str]) -> tuple[dict[str, Any], Recipe]:
    """Return settings and recipe from options such as ``--tau-hom 0.2 --epochs 40``; a wrong one ends the program."""
    parser = argparse.ArgumentParser(
        prog=f"options of {method}", add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    arguments = keyword_arguments(f"training/methods/{method}.py", f"{method.upper()}Settings")
    for argument in arguments.values():
        flag, kind = f"--{argument.name.replace('_', '-')}", argument.kind.removesuffix(" | None")
        if kind == "bool":
            parser.add_argument(flag, action=argparse.BooleanOptionalAction)
        elif kind == "Sequence[int]":
            parser.add_argument(flag, type=int, nargs=2)
        else:
            parser.add_argument(flag, type={"int": int, "float": float}.get(kind, str))
    for name, number in RECIPE_OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=number)
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--graph-lr", type=float, help="share of the learning rate for G2DA's graph")
    found = vars(parser.parse_args(list(given)))
    shares = {"lr_shares": dict.fromkeys(GRAPH, found.pop("graph_lr"))} if "graph_lr" in found else {}
    settings = {name: value for name, value in found.items() if name in arguments}
    recipe = {name: value for name, value in found.items() if name not in arguments}
    return settings, METHODS[method].recipe.replace(**recipe, **shares)


def parse_variants(method: str, variants: Sequence[str], taken: Collection[str]) -> dict[str, Plan]:
    """Return the row of each ``name=options`` by its folder.

    Raises:
        ValueError: for one that is not ``name=options``, or whose folder is ``taken`` or another variant's.
    """
    found: dict[str, Plan] = {}
    for variant in variants:
        name, equals, options = variant.partition("=")
        folder = re.sub(r"\W+", "_", name).strip("_").lower()
        if not equals or not folder or not options.strip():
            raise ValueError(f"a variant must be name=options of {method}, got {variant!r}")
        if folder in found or folder in taken:
            raise ValueError(f"a variant's name must give a folder of its own, got {name!r} for {folder!r} again")
        found[folder] = Plan(name.strip(), method, tuple(shlex.split(options)))
    return found


def make_runs(
    rows: Mapping[str, Plan],
    extra: Sequence[str],
    *,
    root: Path,
    output: Path,
    trials: Sequence[int],
    synthetic: bool = False,
) -> list[Run]:
    """Return all runs, trial by trial, each in the folder ``output``/row/trial.

    Args:
        rows: by folder.
        extra: options of every run; a row's own come after them.
        root: the data.
        output: where the folders are.
        trials: 1-10; of the synthetic data the seeds.
        synthetic: the data are the synthetic pedestrians: trial 1, trained with each seed. G2DA has its key points
            there, and in other data the parts of a 4 x 3 grid.

    Raises:
        ValueError: for an option that is set here.
    """
    runs = []
    for trial in trials:
        for row, plan in rows.items():
            grid = ("--part-grid", "4", "3") if plan.method == "g2da" and not synthetic else ()
            given = (*grid, *extra, *plan.options)
            if synthetic and "--seed" in {option.split("=")[0] for option in given}:
                raise ValueError("--seed is set by this benchmark; leave it out")
            own, recipe = read_options(plan.method, given)
            settings = settings_of(plan.method) | own
            recipe = recipe.replace(seed=trial) if synthetic else recipe
            folder = output / row / str(trial)
            dataset = "synthetic" if synthetic else "regdb"
            runs.append(Run(row, trial, plan.method, dataset, root, folder, settings, recipe))
    return runs


# ---------------------------------------------------------------------------------------------------- training


def state_of(run: Run) -> str:
    """Return "complete", "interrupted" (there is a checkpoint to go on from) or "new".

    Raises:
        ValueError: if what is there was made from other settings or data: it is neither mixed up nor overwritten.
    """
    checkpoint, features = run.folder / "checkpoint.pt", run.folder / "features.npz"
    if not checkpoint.exists():
        return "new"
    state = read_checkpoint(checkpoint)
    old, new = state["recipe"] | state["settings"], run.recipe.to_dict() | run.kept
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if differing:
        changes = ", ".join(f"{key} {old.get(key)!r} -> {new.get(key)!r}" for key in differing)
        raise ValueError(f"{run.folder} holds a run with other settings ({changes}); name another --output")
    finished = state["epoch"] == run.recipe.epochs and features.exists()
    return "complete" if finished and features.stat().st_mtime >= checkpoint.stat().st_mtime else "interrupted"


def reuse(run: Run, folders: Sequence[Path]) -> Run:
    """Return the complete run of equal settings in the first of ``folders``/trial that has it, else the run itself."""
    for folder in folders:
        other = replace(run, folder=folder / str(run.trial))
        try:
            if state_of(other) == "complete":
                return other
        except ValueError:  # of other settings
            continue
    return run


def job_of(run: Run) -> dict[str, Any]:
    """Return the description of a run for `train.py`, ready for JSON."""
    job: dict[str, Any] = {"method": run.method, "folder": str(run.folder), "root": str(run.root), "kept": run.kept}
    return job | {"recipe": run.recipe.to_dict(), "resume": state_of(run) == "interrupted"}


def train(run: Run, *, single_thread: bool) -> None:
    """Train in a fresh process; its output goes to log.txt in the run's folder.

    Raises:
        RuntimeError: if it fails; the message has the log's end.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    write_text(run.folder / "run.json", json.dumps(job_of(run), indent=1) + "\n")
    more = {"OMP_NUM_THREADS": "1"} if single_thread else {}
    command = [sys.executable, "-m", "benchmarks.tables.train", str(run.folder / "run.json")]
    log = run.folder / "log.txt"
    with open(log, "a", encoding="utf-8") as file:
        environment = child_environment() | more
        result = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False)
    if result.returncode or state_of(run) != "complete":
        end = "".join(log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)[-15:])
        raise RuntimeError(f"{run} failed (exit status {result.returncode}), {log}:\n{end}")


def train_all(runs: Sequence[Run], jobs: int) -> None:
    """Run what is not complete, ``jobs`` at a time; the first failure is raised once the running ones have ended.

    Synthetic data are drawn before: the first runs would each do it.
    """
    todo = [run for run in runs if state_of(run) != "complete"]
    for root in {run.root for run in todo if run.dataset == "synthetic"}:
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


# ---------------------------------------------------------------------------------------------------- results


def evaluate(data: Features, rerank: Any = None) -> Values:
    """Return direction -> metric -> percent, ranked by the cosine or by ``rerank``: (query, gallery) -> distance."""
    return {direction: dict(RegDB(direction).evaluate(*data, rerank=rerank).rows[0].mean) for direction in DIRECTIONS}


def ways_of(run: Run) -> dict[str, Any]:
    """Return the ranking function of each kind of a run's features; None is the cosine."""
    transfer: Any = getattr(run.model, "transfer", None)
    graph = run.method == "g2da" and run.model.attention is not None
    ways: dict[str, Any] = {"graph" if graph else "backbone": None}
    return ways if transfer is None else ways | {"transferred": transfer.distance}


def uses_of(kind: str) -> str:
    """Return ``uses`` of a kind of features: "gallery" if transferred, else "query"."""
    return "gallery" if kind == "transferred" else "query"


def write_results(
    output: Path, module: str, given: Sequence[str] | None, rows: Sequence[Row], table: str = "", **about: object
) -> None:
    """Write results.csv: the rows below the command, the machine and ``about``; write and print the ``table``."""
    machine = environment(torch.device("cpu"), ["numpy"])
    machine.pop("threads")
    write_rows(output / "results.csv", rows, {"command": command_of(module, given), **about, **machine})
    print(f"wrote {output / 'results.csv'}")
    if table:
        write_text(output / "table.md", table)
        print(table)
