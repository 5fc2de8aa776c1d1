"""A table of CIFT, SAAI or G2DA by one command: on SYSU-MM01, RegDB, data in their layouts, or synthetic pedestrians.

    python -m benchmarks.tables cift table1 --root SYSU-MM01
    python -m benchmarks.tables saai table2 --root RegDB --rows saai
    python -m benchmarks.tables g2da table3 --root SYSU-MM01 --keypoints keypoints.npz
    python -m benchmarks.tables cift table3 --dataset synthetic --recipe small -- --epochs 5

Every model is trained by the recipe of its paper; on RegDB on its ten trials, on SYSU-MM01 once for all four settings,
whose protocol draws ten galleries. What is complete is not run again and what was interrupted goes on: tables share
their models, so that the second one of a paper trains only what it adds. Options after ``--`` go to every training run.

Into --output, in a folder of the data set, go <row>/<trial or seed>/ of each run, <paper>_<table>.csv and .md. Where a
re-ranker's parameters are chosen, models of half of the training identities go to validation/, and their choice to the
results.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from tqdm import tqdm

from benchmarks.tables.data import Columns, aim_of, evaluate
from benchmarks.tables.diagnose import diagnose
from benchmarks.tables.options import PAPER, about_of, options_parser, parse
from benchmarks.tables.papers import AIM_FORMS, PLANS, RERANKERS, SYSU, TABLES, Line, Table, uses_of
from benchmarks.tables.records import Row, accuracy_section, of_table, parameters_text, section, trials_text
from benchmarks.tables.runs import Run, runs_of, train_all, write_results
from benchmarks.tables.validation import SHARE, choose, write_validation_split
from vireid.rerank import aim

MODULE = "benchmarks.tables"
Chosen = Mapping[tuple[str, str], Mapping[str, Any]]
"""(model, re-ranker) -> parameters."""


def rank(run: Run, way: str, columns: Columns, chosen: Chosen) -> Any:
    """Return how a line's features are ranked, as `evaluate` takes it."""
    if way == "features":
        return None
    if way == "transferred":
        model: Any = run.model
        return model.transfer.distance
    if way in AIM_FORMS:
        removing, expanding = AIM_FORMS[way]
        return {
            column: partial(aim, k1=own["k1"] if removing else None, k2=own["k2"] if expanding else 1)
            for column, own in aim_of(columns).items()
        }
    return partial(RERANKERS[way].function, **chosen[run.row, way])


def evaluate_table(table: Table, lines: Mapping[str, Sequence[Line]], runs: Sequence[Run], chosen: Chosen) -> list[Row]:
    """Return the rows of each block, and of the parameters that were chosen."""
    rows = []
    for block, listed in lines.items():
        for line in tqdm(listed, desc="evaluation"):
            row = Row(block or "accuracy", f"{line.plan}/{line.way}", line.label, uses_of(line.way))
            for run in runs:
                if run.row == line.plan:
                    known = run.data.columns
                    columns = {column: known[column] for column in columns_of(table, known)}
                    if "error_rate" in table.metrics:
                        found = diagnose(run)
                        row.add(run.trial, {column: {m: found[column][m] for m in table.metrics} for column in columns})
                    else:
                        ranked = rank(run, line.way, columns, chosen)
                        row.add(run.trial, evaluate(run.features, ranked, columns, table.metrics))
            rows.append(row)
    for (plan, way), parameters in chosen.items():
        row = Row("parameters", f"{plan}/{way}", f"{PLANS[plan].label} + {way}")
        row.add("all", {"": {"parameters": parameters_text(parameters)}})
        rows.append(row)
    return rows


def columns_of(table: Table, known: Columns) -> list[str]:
    """Return the table's columns on the data: on SYSU-MM01 those of the paper, else all."""
    return [column for column in known if column in table.columns or column not in SYSU]


def make_table(about: Mapping[str, str], rows: Sequence[Row]) -> str:
    """Return the Markdown of a table's rows."""
    blocks = dict.fromkeys(row.table for row in rows if row.table != "parameters")
    seeds = {"run": "seed", "which": "Seeds"} if about.get("runs") == "seeds" else {}
    chosen = [[row.name, str(row.values["", "parameters"]["all"])] for row in of_table(rows, "parameters")]
    return "".join(
        [
            f"{about['title']}, on {about['data']}. {trials_text(about['trials'], **seeds)}\n",
            *(accuracy_section("" if name == "accuracy" else name, of_table(rows, name)) for name in blocks),
            section(f"Chosen on {about.get('chosen_on', '')}", ("", "parameters"), chosen, 2),
        ]
    )


def main(given: Sequence[str] | None = None) -> None:
    """Train what is missing, choose parameters if the table has any, evaluate, and write the table."""
    given = sys.argv[1:] if given is None else given
    parser = options_parser(__doc__, "runs/tables", trials=range(1, 11), recipe=PAPER)
    parser.prog = f"python -m {MODULE}"
    parser.add_argument("paper", choices=TABLES)
    parser.add_argument("table", help="such as table1")
    parser.add_argument("--rows", nargs="+", choices=PLANS, metavar="ROW", help="models of the table (default: all)")
    arguments, extra = parse(parser, given)
    if arguments.table not in TABLES[arguments.paper]:
        parser.error(f"table must be one of {', '.join(TABLES[arguments.paper])}, got {arguments.table!r}")
    table = TABLES[arguments.paper][arguments.table]
    rows = arguments.rows or dict.fromkeys(line.plan for block in table.blocks.values() for line in block)
    blocks = {name: [line for line in block if line.plan in rows] for name, block in table.blocks.items()}
    lines = [line for block in blocks.values() for line in block]
    if missing := [row for row in rows if row not in {line.plan for line in lines}]:
        parser.error(f"--rows must be models of {arguments.paper} {arguments.table}, got {', '.join(missing)}")
    arguments.output = arguments.output / arguments.data.dataset
    plans = {line.plan: PLANS[line.plan] for line in lines}
    runs = runs_of(arguments, plans, extra)
    about = about_of(arguments) | {"title": f"{arguments.paper.upper()}'s {arguments.table}: {table.title}"}
    choosing = dict.fromkeys((line.plan, line.way) for line in lines if line.way in RERANKERS)
    validating = []
    if choosing:
        folder = arguments.output / "validation"
        data, people = write_validation_split(arguments.data, folder / "data", arguments.trials, SHARE)
        about["chosen_on"] = f"{people} training identities, by mean mAP"
        models = {plan: PLANS[plan] for plan, _ in choosing}
        validating = runs_of(arguments, models, extra, data=data, output=folder)
    train_all([*runs, *validating], arguments.jobs)
    chosen = {}
    for plan, way in choosing:
        own = [run for run in validating if run.row == plan]
        chosen[plan, way] = choose(RERANKERS[way], own, columns_of(table, own[0].data.columns))
    found = evaluate_table(table, blocks, runs, chosen)
    names = f"{arguments.paper}_{arguments.table}"
    write_results(arguments.output, MODULE, given, found, make_table(about, found), name=names, **about)


if __name__ == "__main__":
    main()
