"""Options of the tables' commands: the data, the recipe and the settings of the runs."""

import argparse
import re
import shlex
import sys
import typing
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch

from benchmarks.tables.data import Data
from vireid.cli.train import changed
from vireid.training import METHODS, RECIPES, Recipe, recipe_of
from vireid.training.datasets import SYNTHETIC_ROOT

RECIPE_OPTIONS = {"epochs": int, "batches": int, "identities": int, "per_modality": int, "lr": float, "seed": int}
GRAPH = ("attention", "aggregation")  # layers of G2DA's graph, for --graph-lr
SEEDS = {"sysu": (0,), "synthetic": (0, 1, 2)}  # by default
PAPER = "paper"  # --recipe: each method's own


class Plan(NamedTuple):
    """A row of a table: its name, the method that is trained, and its options."""

    label: str
    method: str
    options: tuple[str, ...] = ()


def options_parser(
    doc: str | None, output: str, *, trials: Sequence[int] = (1, 2, 3), recipe: str = "small"
) -> argparse.ArgumentParser:
    """Return a parser with the options of every table, given some of their defaults."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--root", type=Path, help="folder of the data set, or of data in its layout")
    where.add_argument("--synthetic", type=Path, metavar="FOLDER", help="the synthetic pedestrians, drawn there")
    add("--dataset", choices=("regdb", "sysu", "synthetic"), help="default: sysu if --root holds cam1, else regdb")
    shown = " ".join(map(str, trials))
    add("--trials", type=int, nargs="+", help=f"splits of RegDB, 1-10 (default: {shown})")
    add("--seeds", type=int, nargs="+", help="of the training (default: SYSU-MM01 0, synthetic data 0 1 2)")
    add("--keypoints", type=Path, help="key points of the images, for G2DA (default: a grid of parts)")
    add("--recipe", default=recipe, choices=(*RECIPES, PAPER), help=f"{PAPER}: that of each method (default: {recipe})")
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field of the recipe")
    add("--accelerator", default="auto", help="Lightning Fabric's: cpu, cuda, mps")
    add("--output", type=Path, default=Path(output), help="folder of the runs and the results")
    jobs = 1 if torch.cuda.is_available() else 2
    add("--jobs", type=int, default=jobs, help="runs at a time, of one CPU thread each when above 1")
    parser.set_defaults(default_trials=list(trials))
    return parser


def add_row_options(parser: argparse.ArgumentParser, rows: Collection[str]) -> None:
    """Add the options that choose a table's rows."""
    parser.add_argument("--rows", nargs="+", choices=list(rows), default=list(rows))
    parser.add_argument(
        "--variant", action="append", default=[], metavar="NAME=OPTIONS", help="a further row; may be repeated"
    )


def parse(parser: argparse.ArgumentParser, given: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Return a table's own options, with ``data`` and ``trials``, and those after ``--`` for every training run.

    Numbers of runs must be at least 1, and lists name each entry once.
    """
    given = list(sys.argv[1:] if given is None else given)
    at = given.index("--") if "--" in given else len(given)
    arguments = parser.parse_args(given[:at])
    for name, value in vars(arguments).items():
        if isinstance(value, int) and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
        if isinstance(value, list) and name not in ("variant", "set") and len(set(value)) < len(value):
            parser.error(f"--{name} must name each once, got {value}")
    dataset, root = arguments.dataset, arguments.root or arguments.synthetic
    if arguments.synthetic is not None:
        if dataset not in (None, "synthetic"):
            parser.error(f"--synthetic must be left out with --dataset {dataset}")
        dataset = "synthetic"
    if root is None:
        if dataset != "synthetic":
            parser.error("--root must name the folder of the data set, or --dataset be synthetic")
        root = SYNTHETIC_ROOT
    elif dataset != "synthetic" and not root.is_dir():
        parser.error(f"--root must be a folder, found none at {root}")
    dataset = dataset or ("sysu" if (root / "cam1").is_dir() else "regdb")
    if dataset == "regdb" and arguments.seeds is not None:
        parser.error("--seeds goes with SYSU-MM01 and synthetic data; the runs on RegDB differ by --trials")
    if dataset != "regdb" and arguments.trials is not None:
        parser.error(f"--trials goes with RegDB; the runs on {dataset} differ by --seeds")
    if arguments.keypoints is not None and not arguments.keypoints.exists():
        parser.error(f"--keypoints must be a file or a folder, found none at {arguments.keypoints}")
    arguments.data = Data(dataset, root, arguments.keypoints)
    arguments.trials = arguments.trials or list(arguments.seeds or SEEDS.get(dataset, arguments.default_trials))
    return arguments, given[at + 1 :]


def about_of(arguments: argparse.Namespace) -> dict[str, str]:
    """Return what is written above the results: trials or seeds, the data and a recipe other than the small one."""
    data = arguments.data
    found = {"trials": ", ".join(map(str, arguments.trials))}
    found["data"] = data.dataset if data.dataset == "synthetic" else data.root.resolve().name
    if data.seeded:
        found["runs"] = "seeds"
    return found if arguments.recipe == "small" else found | {"recipe": arguments.recipe}


def read_options(
    method: str, given: Sequence[str], recipe: str = "small", changes: Sequence[str] = ()
) -> tuple[dict[str, Any], Recipe]:
    """Return settings and recipe from options such as ``--tau-hom 0.2 --epochs 40``; a wrong one ends the program.

    ``changes`` are those of --set; the options win over them.
    """
    parser = argparse.ArgumentParser(
        prog=f"options of {method}", add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    kinds = typing.get_type_hints(METHODS[method].settings)
    names = [field.name for field in fields(METHODS[method].settings)]
    for name in names:
        kind = [kind for kind in typing.get_args(kinds[name]) if kind is not type(None)] or [kinds[name]]
        flag = f"--{name.replace('_', '-')}"
        if kind == [bool]:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction)
        elif kind == [Sequence[int]]:
            parser.add_argument(flag, type=int, nargs=2)
        else:
            parser.add_argument(flag, type=kind[0] if kind[0] in (int, float) else str)
    for name, number in RECIPE_OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=number)
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--graph-lr", type=float, help="share of the learning rate for G2DA's graph")
    found = vars(parser.parse_args(list(given)))
    shares = {"lr_shares": dict.fromkeys(GRAPH, found.pop("graph_lr"))} if "graph_lr" in found else {}
    settings = {name: value for name, value in found.items() if name in names}
    fixed = {name: value for name, value in found.items() if name not in names}
    known = recipe_of(method, method if recipe == PAPER else recipe)
    try:
        return settings, changed(known, changes).replace(**fixed, **shares)
    except (click.UsageError, ValueError) as error:
        parser.error(str(error))


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
