"""Rows of a table times trials of a data set: training, resuming, and reading the runs.

A row is a method of `vireid.training` with settings of its own. Each of its trials is trained in a process of its own
(`train.py`); what is complete is not run again, and what was interrupted goes on. All tables are made of this. The
trials are RegDB's splits; on SYSU-MM01 and the synthetic pedestrians the runs of a row differ by the training's seed.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from benchmarks.speed.measure import child_environment, command_of, environment, write_text
from benchmarks.tables.data import Data, Features, evaluate
from benchmarks.tables.options import Plan, read_options
from benchmarks.tables.records import Row, write_rows
from vireid.data import generate_synthetic
from vireid.data.features import load_features
from vireid.training import Recipe, load_model, ranking_ways, read_checkpoint, settings_of
from vireid.training.datasets import digest_keypoints


@dataclass(frozen=True)
class Run:
    """One row of one trial, or of one seed, and the folder that it writes."""

    row: str
    trial: int
    method: str
    data: Data
    folder: Path
    settings: dict[str, Any]
    recipe: Recipe
    accelerator: str = "auto"

    def __str__(self) -> str:
        return f"row {self.row}, {'seed' if self.data.seeded else 'trial'} {self.trial}"

    @property
    def kept(self) -> dict[str, Any]:
        """Settings in its checkpoint, beside the recipe."""
        found = {"method": self.method, "dataset": self.data.dataset, "trial": 1 if self.data.seeded else self.trial}
        found |= {"root": str(self.data.root.resolve())} | self.settings
        if self.data.keypoints is not None and self.data.keypoints_of(self.settings) is not None:
            found["keypoints"] = digest_keypoints(self.data.keypoints)
        return found

    @cached_property
    def model(self) -> nn.Module:
        """The trained model in evaluation mode, on the CPU."""
        return load_model(self.folder / "checkpoint.pt")

    @cached_property
    def features(self) -> Features:
        """Its features of the test split."""
        found = load_features(self.folder / "features.npz")
        x, ids, modality, cameras = map(torch.from_numpy, (found.features, found.ids, found.modality, found.cameras))
        numbers = None if found.image_numbers is None else torch.from_numpy(found.image_numbers)
        return Features(x, ids, modality, cameras, numbers)


def make_runs(
    rows: Mapping[str, Plan],
    extra: Sequence[str],
    *,
    data: Data,
    output: Path,
    trials: Sequence[int],
    recipe: str = "small",
    changes: Sequence[str] = (),
    accelerator: str = "auto",
) -> list[Run]:
    """Return all runs, trial by trial, each in the folder ``output``/row/trial.

    Args:
        rows: by folder.
        extra: options of every run; a row's own come after them.
        data: the images.
        output: where the folders are.
        trials: RegDB's splits, 1-10; of other data the seeds of the training.
        recipe: its name, or `PAPER`.
        changes: of its fields, such as "lr=0.05".
        accelerator: Lightning Fabric's.

    Raises:
        ValueError: for an option that is set here.
    """
    names = [option.split("=")[0] for option in (*extra, *changes)]
    if data.seeded and {"--seed", "seed"} & set(names):
        raise ValueError("--seed is set by this benchmark; leave it out")
    runs = []
    for trial in trials:
        for row, plan in rows.items():
            no_points = data.dataset != "synthetic" and data.keypoints is None
            grid = ("--part-grid", "4", "3") if plan.method == "g2da" and no_points else ()
            own, found = read_options(plan.method, (*grid, *extra, *plan.options), recipe, changes)
            settings = settings_of(plan.method, found) | own
            found = found.replace(seed=trial) if data.seeded else found
            runs.append(Run(row, trial, plan.method, data, output / row / str(trial), settings, found, accelerator))
    return runs


def runs_of(arguments: argparse.Namespace, plans: Mapping[str, Plan], extra: Sequence[str], **other: Any) -> list[Run]:
    """Return the runs of ``plans`` with the options of `parse`, of ``other`` data or in another folder if given."""
    given = {name: getattr(arguments, name) for name in ("data", "output", "trials", "recipe", "accelerator")}
    return make_runs(plans, extra, **{**given, "changes": arguments.set, **other})


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
    points = run.data.keypoints_of(run.settings)
    job: dict[str, Any] = {"method": run.method, "folder": str(run.folder), "root": str(run.data.root)}
    job |= {"keypoints": points and str(points), "accelerator": run.accelerator, "kept": run.kept}
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


def draw(data: Data) -> None:
    """Draw the data if they are synthetic and not there yet."""
    if data.dataset == "synthetic":
        generate_synthetic(data.root, layout="regdb", progress=True)


def train_all(runs: Sequence[Run], jobs: int) -> None:
    """Run what is not complete, ``jobs`` at a time; the first failure is raised once the running ones have ended.

    Synthetic data are drawn before: the first runs would each do it.
    """
    todo = [run for run in runs if state_of(run) != "complete"]
    for data in {run.data for run in todo}:
        draw(data)
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


def ways_of(run: Run) -> dict[str, Any]:
    """Return the ranking function of each kind of a run's features; None is the cosine."""
    return dict(ranking_ways(run.model))


def accuracy_rows(runs: Sequence[Run], name: Callable[[Run, str], str]) -> list[Row]:
    """Return a row per model and kind of its features, over all trials; ``name`` gives its name."""
    rows: dict[str, Row] = {}
    for run in tqdm(runs, desc="evaluation"):
        for kind, rerank in ways_of(run).items():
            key, uses = f"{run.row}/{kind}", "gallery" if kind == "transferred" else "query"
            row = rows.setdefault(key, Row("accuracy", key, name(run, kind), uses))
            row.add(run.trial, evaluate(run.features, rerank, run.data.columns))
    return list(rows.values())


def write_results(
    output: Path,
    module: str,
    given: Sequence[str] | None,
    rows: Sequence[Row],
    table: str = "",
    *,
    name: str = "",
    **about: object,
) -> None:
    """Write the rows below the command, the machine and ``about``; write and print the ``table``.

    The files are ``name``.csv and ``name``.md, by default results.csv and table.md.
    """
    machine = environment(torch.device("cpu"), ["numpy"])
    machine.pop("threads")
    path = output / f"{name or 'results'}.csv"
    write_rows(path, rows, {"command": command_of(module, given), **about, **machine})
    print(f"wrote {path}")
    if table:
        write_text(output / f"{name or 'table'}.md", table)
        print(table)
