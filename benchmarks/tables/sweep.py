"""Accuracy against one setting of a method: the runs, results.csv and the picture."""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.tables.options import Plan, about_of, options_parser, parse
from benchmarks.tables.records import Row, Values, read_rows
from benchmarks.tables.runs import Run, reuse, runs_of, train_all, write_results
from benchmarks.tables.sensitivity_plot import sensitivity_curves
from vireid.training import settings_of


def check_sweep(parser: argparse.ArgumentParser, arguments: argparse.Namespace, method: str) -> None:
    """End the program unless the parameter is a setting of the method and the values are different numbers."""
    arguments.parameter = arguments.parameter.lstrip("-").replace("_", "-")
    if arguments.parameter.replace("-", "_") not in settings_of(method):
        parser.error(f"--parameter must be a setting of {method}, got {arguments.parameter}")
    for value in arguments.values:
        try:
            finite = math.isfinite(float(value))
        except ValueError:
            finite = False
        if not finite:
            parser.error(f"--values must be numbers, got {value!r}")
    if len({float(value) for value in arguments.values}) < len(arguments.values):
        parser.error(f"--values must name each once, got {arguments.values}")


def sweep_main(
    method: str,
    doc: str | None,
    module: str,
    given: Sequence[str],
    *,
    symbols: Mapping[str, str],
    evaluate: Callable[[Run], Values],
) -> None:
    """Run the command "sweep" of a method's module.

    Args:
        method: whose settings are swept.
        doc: of the module, for its help.
        module: in which the command is.
        given: "sweep" and its options.
        symbols: names below the figure's axis, by parameter.
        evaluate: as in `sweep`.
    """
    parser = options_parser(doc, f"runs/{method}_sweep")
    parser.add_argument("--parameter", required=True, help=f"setting of {method}: {', '.join(symbols)}, …")
    parser.add_argument("--values", nargs="+", required=True, help="numbers")
    parser.add_argument("--figure", type=Path, help="picture to draw, such as sweep.png")
    table = Path(f"runs/{method}_table")
    parser.add_argument("--table", type=Path, default=table, help=f"whose row {method} serves for the value it has")
    arguments, extra = parse(parser, given[1:])
    check_sweep(parser, arguments, method)
    symbol = symbols.get(arguments.parameter, f"--{arguments.parameter}")
    sweep(method, arguments, extra, command=(module, given), symbol=symbol, evaluate=evaluate)


def sweep(
    method: str,
    arguments: argparse.Namespace,
    extra: Sequence[str],
    *,
    command: tuple[str, Sequence[str] | None],
    symbol: str,
    evaluate: Callable[[Run], Values],
) -> None:
    """Train the method with each value in each trial, evaluate, write results.csv and draw the figure.

    Args:
        method: whose row in the folder of --table serves for the value that it has.
        arguments: of `check_sweep`.
        extra: options of every run.
        command: module and options.
        symbol: name of the parameter below the figure's axis.
        evaluate: direction -> metric -> percent of a run.
    """
    option = f"--{arguments.parameter}"
    folders = {f"{arguments.parameter}_{value}": value for value in arguments.values}
    plans = {folder: Plan(f"{option} {value}", method, (option, value)) for folder, value in folders.items()}
    table = [arguments.table / method]
    runs = [reuse(run, table) for run in runs_of(arguments, plans, extra)]
    train_all(runs, arguments.jobs)
    rows = {folder: Row("sweep", value, f"{option} {value}") for folder, value in folders.items()}
    for run in tqdm(runs, desc="evaluation"):
        rows[run.row].add(run.trial, evaluate(run))
    about = about_of(arguments) | {"parameter": arguments.parameter}
    write_results(arguments.output, *command, list(rows.values()), **about)
    if arguments.figure:
        draw(list(rows.values()), arguments.figure, symbol)
        print(f"wrote {arguments.figure}")


def draw(rows: Sequence[Row], figure: Path, symbol: str) -> None:
    """Draw the metrics of each value over its trials."""
    records: dict[tuple[str, str, str], dict[str, object]] = {}
    for row in rows:
        value = int(row.key) if row.key.lstrip("+-").isdigit() else float(row.key)
        for (direction, metric), trials in row.values.items():
            for trial, number in trials.items():
                record = records.setdefault((row.key, trial, direction), {"value": value, "direction": direction})
                record[metric] = number
    metrics = list(dict.fromkeys(metric for row in rows for _, metric in row.values))
    sensitivity_curves(list(records.values()), figure, parameter=symbol, metrics=metrics)


def main(given: Sequence[str] | None = None) -> None:
    """Draw a recorded sweep again."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("results", type=Path, help="results.csv of a sweep")
    parser.add_argument("figure", type=Path, help="picture to draw")
    parser.add_argument("--symbol", default="", help="name of the parameter below the axis")
    arguments = parser.parse_args(given)
    about, rows = read_rows(arguments.results)
    draw(rows, arguments.figure, arguments.symbol or about["parameter"])


if __name__ == "__main__":
    main()
