"""The README's tables of SAAI: what SAFL, its losses and AIM bring, and what this library adds to them.

For each trial of RegDB (or of a data set in RegDB's layout) and each row, ``examples/train_saai.py`` trains in a
process of its own; what is complete is not run again, and what was interrupted goes on. Then the features of every
model are ranked without and with AIM.

    python -m benchmarks.tables.saai --root RegDB --output runs/saai_table
    python -m benchmarks.tables.saai --root RegDB --variant "SAAI, 15 parts=--parts 15" -- --epochs 40
    python -m benchmarks.tables.saai sweep --parameter parts --values 1 3 5 7 9 15 --root RegDB --figure parts.png

Options after ``--`` go to every training run. Into --output go <row>/<trial>/ of each run, the features, results.json
and table.md; of ``sweep`` (the paper's Fig. 3 and 4), results.json and the runs that --table does not have already.

AIM ranks with the paper's k1 and k2 for RegDB, and with those that are best on training identities alone: per trial,
one more Baseline, SAAI and CIFT on SAAI is trained on the first half of the training identities (by number) and the
other half validates, by mAP over trials and directions. Every other row takes what was chosen for SAAI.
"""

import argparse
import itertools
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import nn
from tqdm import tqdm

import train_saai
from benchmarks.speed.measure import write_text
from benchmarks.tables.rerank_accuracy import METHODS, Features, cached_features, mean_map, write_validation_split
from benchmarks.tables.runs import (
    Run,
    Values,
    add_options,
    add_row_options,
    add_sweep_options,
    check_features,
    diagnose,
    environment,
    load_model,
    make_runs,
    parse,
    parse_sweep,
    parse_variants,
    read_metrics,
    split_options,
    summarize,
    summary,
    train_all,
    train_values,
    write_json,
    write_sweep,
)
from benchmarks.tables.saai_table import compare, make_table
from vireid.protocols import DIRECTIONS, RegDB
from vireid.rerank import AIM_SETTINGS

AFFINITY = ("--affinity-loss", "0.2")
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "baseline": ("Baseline", ("--ablation", "baseline")),
    "saai_id": ("SAFL, L_id", ("--part-diversity", "0", "--center-separation", "0")),
    "saai_id_pd": ("SAFL, L_id + L_pd", ("--center-separation", "0")),
    "saai_id_cs": ("SAFL, L_id + L_cs", ("--part-diversity", "0")),
    "saai": ("SAFL", ()),
    "saai_affinity": ("SAFL, AffinityInferenceLoss", AFFINITY),
    "saai_affinity_control": ("SAFL, the same loss of cosines alone", (*AFFINITY, "--no-amendment")),
    "saai_cift": ("CIFT ∘ SAAI", ("--transfer",)),
}
FOLDERS = ("validation", "validation_models", "features")  # of --output, beside the rows'
SHARE = 0.5  # of the training identities, to train the choosers on
GRIDS = {method.grid[0]["variant"]: method.grid for method in METHODS if method.name.startswith("AIM")}
QUOTED = Path(__file__).resolve().parents[1] / "results" / "cift.json"

Variant = Literal["paper", "released"]
Kind = Literal["backbone", "transferred"]


class Form(NamedTuple):
    """A form of AIM.

    Attributes:
        choice: whose k1 and k2: "paper", or "chosen" on training identities.
        variant: as in `vireid.rerank.aim`.
        removing: False: k1 is the whole gallery (Table 6).
        expanding: False: k2 is 1.
    """

    choice: Literal["paper", "chosen"]
    variant: Variant
    removing: bool = True
    expanding: bool = True


CHOICES: tuple[Literal["paper", "chosen"], ...] = ("paper", "chosen")
VARIANTS: tuple[Variant, ...] = ("paper", "released")
FORMS = tuple(Form(choice, variant) for choice, variant in itertools.product(CHOICES, VARIANTS))


class Ranking(NamedTuple):
    """A line of the tables: a model's features, as they are or transferred, by cosine (None) or by a form of AIM."""

    row: str
    kind: Kind
    form: Form | None


Chosen = Mapping[tuple[str, Kind, Variant], Mapping[str, int]]
"""(chooser, kind of features, variant) -> k1 and k2."""


# -------------------------------------------------------------------------------------------------- ranking


def rank_by(parameters: Mapping[str, Any] | None, kind: Kind, model: nn.Module) -> Any:
    """What ranks: AIM, or without ``parameters`` the cosine distance, of the features or of the transferred ones."""
    transfer: Any = model.transfer if kind == "transferred" else None
    if parameters is None:
        return None if transfer is None else transfer.distance
    return train_saai.AffinityInference(**parameters, transfer=transfer)


def evaluate(data: Features, rerank: Any) -> Values:
    """Direction -> metric -> percent."""
    return {direction: dict(RegDB(direction).evaluate(*data, rerank=rerank).rows[0].mean) for direction in DIRECTIONS}


def kinds_of(model: nn.Module) -> tuple[Kind, ...]:
    """The features that a model has."""
    return ("backbone",) if model.transfer is None else ("backbone", "transferred")


def forms_of(row: str, kind: Kind) -> tuple[Form | None, ...]:
    """What ranks the features of a row; those of SAAI itself also by AIM without one or both of its steps (Table 6)."""
    forms: tuple[Form | None, ...] = (None, *FORMS)
    if row == "saai" and kind == "backbone":
        off = [Form("paper", variant, removing=False, expanding=False) for variant in VARIANTS]
        one = [form._replace(removing=False) for form in FORMS] + [form._replace(expanding=False) for form in FORMS]
        forms = (*forms, *off, *one)
    return forms


def chooser_of(run: Run) -> str:
    """The row on whose validation features k1 and k2 are chosen for a run's."""
    if run.config["transfer"]:
        return "saai_cift"
    return "baseline" if run.config["ablation"] == "baseline" else "saai"


def parameters_of(form: Form | None, kind: Kind, chooser: str, chosen: Chosen) -> dict[str, Any] | None:
    """k1 (None: the whole gallery), k2 and variant; None for the cosine."""
    if form is None:
        return None
    pair = chosen[chooser, kind, form.variant] if form.choice == "chosen" else AIM_SETTINGS["regdb"]
    k1, k2 = pair["k1"] if form.removing else None, pair["k2"] if form.expanding else 1
    return {"k1": k1, "k2": k2, "variant": form.variant}


def choose(
    choosers: Sequence[tuple[Run, Features, nn.Module]],
) -> tuple[dict[tuple[str, Kind, Variant], dict[str, int]], list[dict[str, Any]]]:
    """The best entry of each grid on the validation identities, the first of equals, and what every entry reached."""
    chosen, searched = {}, []
    steps = []
    for row in dict.fromkeys(run.row for run, _, _ in choosers):
        own = [(data, model) for run, data, model in choosers if run.row == row]
        steps += [(row, kind, variant, own) for kind in kinds_of(own[0][1]) for variant in GRIDS]
    for row, kind, variant, own in tqdm(steps, desc="choosing k1 and k2"):
        entries = [
            {**entry, "mAP": mean_map([evaluate(data, rank_by(entry, kind, model)) for data, model in own])}
            for entry in GRIDS[variant]
        ]
        best = max(entries, key=lambda entry: entry["mAP"])
        chosen[row, kind, variant] = {"k1": best["k1"], "k2": best["k2"]}
        searched.append({"row": row, "features": kind, "variant": variant, "grid": entries})
    return chosen, searched


def evaluate_all(
    labels: Mapping[str, str], runs: Sequence[Run], chosen: Chosen, folder: Path, device: str
) -> dict[str, Any]:
    """Every row of the tables over all trials, the differences between rows trial by trial, and the diagnostics."""
    found: dict[Ranking, list[Values]] = {}
    ranked_by: dict[Ranking, dict[str, Any] | None] = {}
    diagnostics: dict[str, list[dict[str, float]]] = {row: [] for row in labels}
    difference = 0.0
    for run in tqdm(runs, desc="evaluation"):
        data, model = features_of(run, folder, device), load_model(run, "cpu")
        metrics = read_metrics(run.folder / "metrics.json")
        difference = max(difference, check_features(run, metrics, *data))
        diagnostics[run.row].append(diagnose(model, *data))
        known: dict[tuple[Any, ...], Values] = {}  # two choices may be of the same k1 and k2
        for kind in kinds_of(model):
            for form in forms_of(run.row, kind):
                ranking = Ranking(run.row, kind, form)
                parameters = ranked_by[ranking] = parameters_of(form, kind, chooser_of(run), chosen)
                key = (kind, *(parameters or {}).values())
                if key not in known:
                    known[key] = evaluate(data, rank_by(parameters, kind, model))
                found.setdefault(ranking, []).append(known[key])
    rows = []
    for ranking, trials in found.items():
        uses = "query" if ranking.kind == "backbone" and ranking.form is None else "gallery"
        entry = {"row": ranking.row, "name": labels[ranking.row], "features": ranking.kind, "uses": uses}
        aim = None if ranking.form is None else {**ranking.form._asdict(), **(ranked_by[ranking] or {})}
        rows.append({**entry, "aim": aim, "results": summarize(trials)})
    return {
        "rows": rows,
        "differences": compare(rows),
        "diagnostics": {
            row: {name: summary([trial[name] for trial in trials]) for name in trials[0]}
            for row, trials in diagnostics.items()
        },
        "largest_recomputation_difference": difference,
    }


def features_of(run: Run, folder: Path, device: str) -> Features:
    """Features of the run's test split, computed once for each checkpoint."""
    return cached_features(run, folder / f"{run.row}_{run.trial}.npz", device)


def quote(path: Path, root: Path, trials: Sequence[int]) -> dict[str, Any] | None:
    """Rows of `cift.py` from the file of its results, with where they come from.

    None if they are of other trials, or of data whose folder has another name: they would say nothing beside ours.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    command = shlex.split(content["command"])
    source = command[command.index("--root") + 1] if "--root" in command else ""
    if content["trials"] != list(trials) or Path(source).name != root.resolve().name:
        return None
    wanted = {"Baseline": None, "CIFT†": None, "CIFT": None, "Baseline + AIM": "default"}
    rows = [row for row in content["rows"] if row["name"] in wanted and wanted[row["name"]] == row.get("choice")]
    kept = ("name", "uses", "parameters", "results")
    return {
        "file": path.name,
        "command": content["command"],
        "rows": [{name: row[name] for name in kept if name in row} for row in rows],
    }


# -------------------------------------------------------------------------------------------------- sweep


def sweep(given: Sequence[str]) -> None:
    """Train SAAI with each value of one option in each trial; write results.json and draw the figure."""
    arguments, extra = parse_sweep_options(given)
    option = f"--{arguments.parameter}"
    swept = train_values(train_saai, arguments, extra, root=arguments.root, trials=arguments.trials)
    records = []
    for value, run in tqdm(swept, desc="evaluation"):
        data, model = features_of(run, arguments.output / "features", arguments.device), load_model(run, "cpu")
        check_features(run, read_metrics(run.folder / "metrics.json"), *data)
        plain = evaluate(data, None)
        amended = evaluate(data, rank_by({**AIM_SETTINGS["regdb"], "variant": "paper"}, "backbone", model))
        for direction in DIRECTIONS:
            record = {"value": value, "trial": run.trial, "direction": direction}
            both = {f"{name} + AIM": percent for name, percent in amended[direction].items()}
            records.append({**record, **plain[direction], **both})
    content = {
        "benchmark": f"SAAI: sensitivity to {option}",
        "command": shlex.join(["python", "-m", "benchmarks.tables.saai", "sweep", *given]),
        "parameter": arguments.parameter,
        "trials": arguments.trials,
        "settings": swept[0][1].config,  # of the first value and trial
        "aim": {**AIM_SETTINGS["regdb"], "variant": "paper"},
        **environment(arguments.device),
        "records": records,
    }
    name = {"parts": "p", "part-diversity": "λ"}.get(arguments.parameter, option)
    write_sweep(arguments, content, name, ("rank1", "mAP", "rank1 + AIM", "mAP + AIM"))


# -------------------------------------------------------------------------------------------------- command line


def parse_table(given: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Own options, and those after ``--`` for every run."""
    own, extra = split_options(given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "runs/saai_table")
    add_row_options(parser, ROWS)
    parser.add_argument(
        "--quote", type=Path, default=QUOTED, help="results.json of cift.py, quoted if of the same data and trials"
    )
    arguments = parse(parser, own, ["trials", "rows"])
    if not arguments.quote.is_file():
        parser.error(f"--quote must be a file of results, found none at {arguments.quote}")
    return arguments, extra


def parse_sweep_options(given: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Own options, and those after ``--`` for every run."""
    own, extra = split_options(given)
    parser = argparse.ArgumentParser(prog="saai.py sweep", description="The paper's Fig. 3 and 4: one option's values.")
    add_options(parser, "runs/saai_sweep")
    add_sweep_options(parser, train_saai, "runs/saai_table", "parts, part-diversity")
    return parse_sweep(parser, own, train_saai, ["trials"]), extra


def main(given: Sequence[str] | None = None) -> None:
    """Train what is missing, choose, evaluate, write results.json and table.md; or a sweep."""
    given = sys.argv[1:] if given is None else given
    if given and given[0] == "sweep":
        sweep(given[1:])
        return
    arguments, extra = parse_table(given)
    output: Path = arguments.output
    rows = {row: ROWS[row] for row in arguments.rows}
    rows |= parse_variants(train_saai, arguments.variant, (*ROWS, *FOLDERS))
    labels = {row: label for row, (label, _) in rows.items()}
    flags = {row: options for row, (_, options) in rows.items()}
    runs = make_runs(train_saai, flags, extra, root=arguments.root, output=output, trials=arguments.trials)
    needed = {row: ROWS[row][1] for row in dict.fromkeys(map(chooser_of, runs))}
    where = {"root": output / "validation", "output": output / "validation_models", "trials": arguments.trials}
    choosers = make_runs(train_saai, needed, extra, **where)
    write_validation_split(arguments.root, output / "validation", arguments.trials, SHARE)
    train_all([*runs, *choosers], arguments.jobs)

    features = output / "features"
    validation = [
        (run, features_of(run, features / "validation", arguments.device), load_model(run, "cpu")) for run in choosers
    ]
    chosen, searched = choose(validation)
    people = len(np.unique(validation[0][1].identities))
    content = {
        "benchmark": "SAAI: SAFL, losses, AIM",
        "command": shlex.join(["python", "-m", "benchmarks.tables.saai", *given]),
        "labels": labels,
        "trials": arguments.trials,
        "settings": {run.row: run.config for run in reversed(runs)},  # of the first trial
        **environment(arguments.device),
        **evaluate_all(labels, runs, chosen, features, arguments.device),
        "chosen_on": f"{people} training identities a trial, by mAP over trials and directions",
        "validation": searched,
        "quoted": quote(arguments.quote, arguments.root, arguments.trials),
    }
    table = make_table(content)
    write_json(output / "results.json", content)
    write_text(output / "table.md", table)
    print(table)
    print(f"wrote {output / 'results.json'} and table.md")


if __name__ == "__main__":
    main()
