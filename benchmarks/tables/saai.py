"""The README's tables of SAAI: SAFL, its losses, AIM, and our additions to them.

For each trial of RegDB (or of a data set in RegDB's layout) and each row, a model is trained in a process of its own;
what is complete is not run again, and what was interrupted goes on. Then the features of every model are ranked without
and with AIM.

    python -m benchmarks.tables.saai --root RegDB --output runs/saai_table
    python -m benchmarks.tables.saai --root RegDB --variant "SAAI, 15 parts=--parts 15" -- --epochs 40
    python -m benchmarks.tables.saai sweep --parameter parts --values 1 3 5 7 9 15 --root RegDB --figure parts.png

Options after ``--`` go to every training run. Into --output go <row>/<trial>/ of each run, results.csv and table.md; of
``sweep`` (the paper's Fig. 3 and 4), results.csv and the runs that --table does not have already.

AIM ranks with the paper's k1 and k2 for RegDB, and with those that are best on training identities only: per trial,
one more Baseline, SAAI and CIFT on SAAI is trained on the first half of the training identities (by number) and the
other half validates, by mAP over trials and directions. Every other row takes what was chosen for SAAI.
"""

import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor
from tqdm import tqdm

from benchmarks.tables.data import aim_of, evaluate
from benchmarks.tables.diagnose import diagnostic_rows
from benchmarks.tables.options import Plan, about_of, add_row_options, options_parser, parse, parse_variants
from benchmarks.tables.records import Row, Values, read_rows
from benchmarks.tables.rerank_accuracy import METHODS
from benchmarks.tables.runs import Run, runs_of, train_all, ways_of, write_results
from benchmarks.tables.saai_table import make_table
from benchmarks.tables.sweep import sweep_main
from benchmarks.tables.validation import SHARE, mean_map, write_validation_split
from vireid.rerank import AIM_SETTINGS, aim

MODULE = "benchmarks.tables.saai"
AFFINITY = ("--affinity-loss", "0.2")
ROWS = {
    "baseline": Plan("Baseline", "saai", ("--ablation", "baseline")),
    "saai_id": Plan("SAFL, L_id", "saai", ("--part-diversity", "0", "--center-separation", "0")),
    "saai_id_pd": Plan("SAFL, L_id + L_pd", "saai", ("--center-separation", "0")),
    "saai_id_cs": Plan("SAFL, L_id + L_cs", "saai", ("--part-diversity", "0")),
    "saai": Plan("SAFL", "saai"),
    "saai_affinity": Plan("SAFL, AffinityInferenceLoss", "saai", AFFINITY),
    "saai_affinity_control": Plan("SAFL, the same loss of cosines alone", "saai", (*AFFINITY, "--no-amend")),
    "saai_cift": Plan("CIFT ∘ SAAI", "saai", ("--transfer",)),
}
FOLDERS = ("validation", "validation_models")  # of --output, beside the rows'
GRIDS = {method.grid[0]["variant"]: method.grid for method in METHODS if method.name.startswith("AIM")}
QUOTED = Path(__file__).resolve().parents[1] / "results" / "cift.csv"

SYMBOLS = {"parts": "p", "part-diversity": "λ"}

Choice = Literal["paper", "chosen"]
Variant = Literal["paper", "released"]


class Form(NamedTuple):
    """A form of AIM.

    Attributes:
        choice: whose k1 and k2: "paper", or "chosen" on training identities.
        variant: as in `vireid.rerank.aim`.
        removing: False: k1 is the whole gallery (Table 6).
        expanding: False: k2 is 1.
    """

    choice: Choice
    variant: Variant
    removing: bool = True
    expanding: bool = True

    @property
    def key(self) -> str:
        """Part of a row's key, such as "paper, released, no expanding"."""
        steps = {"removing": self.removing, "expanding": self.expanding}
        return ", ".join([self.choice, self.variant, *(f"no {step}" for step, on in steps.items() if not on)])


CHOICES: tuple[Choice, ...] = ("paper", "chosen")
VARIANTS: tuple[Variant, ...] = ("paper", "released")
FORMS = tuple(Form(choice, variant) for choice, variant in itertools.product(CHOICES, VARIANTS))
Chosen = Mapping[tuple[str, str, Variant], Mapping[str, int]]
"""(chooser, kind of features, variant) -> k1 and k2."""


# -------------------------------------------------------------------------------------------------- ranking


def amended(query: Tensor, gallery: Tensor, *, k1: int | None, k2: int, variant: Variant, transfer: Any) -> Tensor:
    """Return AIM's distance, of the features or, with a ``transfer``, of the transferred ones.

    Args:
        query: (Nq, d).
        gallery: (Ng, d).
        k1: as in `aim`; None: the whole gallery.
        k2: as in `aim`.
        variant: as in `aim`.
        transfer: CIFT's, or None.
    """
    if transfer is not None:
        query, gallery = transfer.transfer(query, gallery)
    return aim(query, gallery, k1=len(gallery) if k1 is None else k1, k2=k2, variant=variant)


def rank_by(parameters: Mapping[str, Any] | None, kind: str, run: Run) -> Any:
    """Return the ranking function of a kind of features: AIM, or without ``parameters`` the cosine distance."""
    if parameters is None:
        return ways_of(run)[kind]
    transfer = run.model.transfer if kind == "transferred" else None
    ranked = partial(amended, **parameters, transfer=transfer)
    ranked.uses = "gallery"  # type: ignore[attr-defined]
    return ranked


def forms_of(row: str, kind: str) -> tuple[Form | None, ...]:
    """Return the forms that rank a row; for SAAI's own also AIM without one or both of its steps (Table 6)."""
    forms: tuple[Form | None, ...] = (None, *FORMS)
    if row == "saai" and kind == "backbone":
        off = [Form("paper", variant, removing=False, expanding=False) for variant in VARIANTS]
        one = [form._replace(removing=False) for form in FORMS] + [form._replace(expanding=False) for form in FORMS]
        forms = (*forms, *off, *one)
    return forms


def chooser_of(run: Run) -> str:
    """Return the row on whose validation features k1 and k2 are chosen for a run's."""
    if run.settings["transfer"]:
        return "saai_cift"
    return "baseline" if run.settings["ablation"] == "baseline" else "saai"


def parameters_of(form: Form | None, kind: str, chooser: str, chosen: Chosen) -> dict[str, Any] | None:
    """Return k1 (None: the whole gallery), k2 and variant; None for the cosine."""
    if form is None:
        return None
    pair = chosen[chooser, kind, form.variant] if form.choice == "chosen" else AIM_SETTINGS["regdb"]
    k1, k2 = pair["k1"] if form.removing else None, pair["k2"] if form.expanding else 1
    return {"k1": k1, "k2": k2, "variant": form.variant}


def choose(choosers: Sequence[Run]) -> dict[tuple[str, str, Variant], dict[str, int]]:
    """Return the best entry of each grid on the validation identities, the first of equals."""
    chosen = {}
    steps = []
    for row in dict.fromkeys(run.row for run in choosers):
        own = [run for run in choosers if run.row == row]
        steps += [(row, kind, variant, own) for kind in ways_of(own[0]) for variant in GRIDS]
    for row, kind, variant, own in tqdm(steps, desc="choosing k1 and k2"):
        grid = GRIDS[variant]
        found = [
            mean_map([evaluate(run.features, rank_by(entry, kind, run), run.data.columns) for run in own])
            for entry in grid
        ]
        best = grid[found.index(max(found))]
        chosen[row, kind, variant] = {"k1": best["k1"], "k2": best["k2"]}
    return chosen


def name_of(label: str, kind: str, form: Form | None, parameters: Mapping[str, Any] | None) -> str:
    """Return a row's name, such as "SAFL + AIM (k1 8, k2 2, paper form)"; "chosen" where k1 and k2 were."""
    name = label + (", transferred" if kind == "transferred" else "")
    if form is None or parameters is None:
        return name
    k1 = "all" if parameters["k1"] is None else parameters["k1"]
    chosen = ", chosen" if form.choice == "chosen" else ""
    return f"{name} + AIM (k1 {k1}, k2 {parameters['k2']}, {form.variant} form{chosen})"


def evaluate_all(plans: Mapping[str, Plan], runs: Sequence[Run], chosen: Chosen) -> list[Row]:
    """Return the rows of all tables, over all trials."""
    rows: dict[str, Row] = {}
    for run in tqdm(runs, desc="evaluation"):
        known: dict[tuple[Any, ...], Values] = {}  # two choices may be of the same k1 and k2
        for kind in ways_of(run):
            for form in forms_of(run.row, kind):
                parameters = parameters_of(form, kind, chooser_of(run), chosen)
                same = (kind, *(parameters or {}).values())
                if same not in known:
                    known[same] = evaluate(run.features, rank_by(parameters, kind, run), run.data.columns)
                key = f"{run.row}/{kind}/{'none' if form is None else form.key}"
                uses = "query" if kind == "backbone" and form is None else "gallery"
                name = name_of(plans[run.row].label, kind, form, parameters)
                rows.setdefault(key, Row("accuracy", key, name, uses)).add(run.trial, known[same])
    order = {row: n for n, row in enumerate(plans)}
    listed = sorted(rows.values(), key=lambda row: order[row.key.split("/")[0]])
    return listed + diagnostic_rows({row: plan.label for row, plan in plans.items()}, list(runs))


def quote(path: Path, data: str, trials: str) -> list[Row]:
    """Return rows of `cift.py` from its results; none if they are of other data or trials: else they do not compare."""
    about, rows = read_rows(path)
    if (about["data"], about["trials"]) != (data, trials):
        return []
    wanted = ("baseline/backbone", "cri/backbone", "cri/transferred", "baseline/AIM/default")
    found = [row for row in rows if row.key in wanted and row.table in ("accuracy", "post-processing")]
    return [replace(row, name=row.name.replace("released)", "released form)")) for row in found]


def evaluate_sweep(run: Run) -> Values:
    """Return the accuracies of a run without AIM and, named so, with the paper's."""
    columns = run.data.columns
    plain = evaluate(run.features, None, columns)
    aims: dict[str, Any] = {column: partial(aim, k1=own["k1"], k2=own["k2"]) for column, own in aim_of(columns).items()}
    both = evaluate(run.features, aims, columns)
    return {d: {**plain[d], **{f"{name} + AIM": both[d][name] for name in ("rank1", "mAP")}} for d in plain}


def main(given: Sequence[str] | None = None) -> None:
    """Train what is missing, choose, evaluate, write results.csv and table.md; or a sweep."""
    given = sys.argv[1:] if given is None else given
    if given and given[0] == "sweep":
        sweep_main("saai", __doc__, MODULE, given, symbols=SYMBOLS, evaluate=evaluate_sweep)
        return
    parser = options_parser(__doc__, "runs/saai_table")
    add_row_options(parser, ROWS)
    parser.add_argument("--quote", type=Path, default=QUOTED, help="results of cift.py, quoted if of the same trials")
    arguments, extra = parse(parser, given)
    if not arguments.quote.is_file():
        parser.error(f"--quote must be a file of results, found none at {arguments.quote}")
    if arguments.data.dataset == "sysu":
        parser.error("--dataset must be regdb or synthetic; the tables of SYSU-MM01 are in benchmarks.tables")
    output: Path = arguments.output
    plans = {row: ROWS[row] for row in arguments.rows} | parse_variants("saai", arguments.variant, (*ROWS, *FOLDERS))
    runs = runs_of(arguments, plans, extra)
    needed = {row: ROWS[row] for row in dict.fromkeys(map(chooser_of, runs))}
    validation = output / "validation"
    data, people = write_validation_split(arguments.data, validation, arguments.trials, SHARE)
    choosers = runs_of(arguments, needed, extra, data=data, output=output / "validation_models")
    train_all([*runs, *choosers], arguments.jobs)
    rows = evaluate_all(plans, runs, choose(choosers))
    about = about_of(arguments)
    about["chosen_on"] = f"{people} training identities per trial, by mAP over trials and directions"
    quoted = quote(arguments.quote, about["data"], about["trials"])
    write_results(output, MODULE, given, rows, make_table(about, rows, quoted), **about)


if __name__ == "__main__":
    main()
