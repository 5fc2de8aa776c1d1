"""Rows of the tables: as CSV, as Markdown, and their differences."""

import pytest

from benchmarks.tables import records
from benchmarks.tables.records import Row
from vireid.protocols import DIRECTIONS


def row(key, *trials, table="accuracy", **about):
    """A row with the same four numbers, plus 0 … 3, in each trial."""
    made = Row(table, key, key.upper(), "query", **about)
    for trial, number in enumerate(trials, 1):
        made.add(trial, {d: {"rank1": number + 2 * n, "mAP": number + 2 * n + 1} for n, d in enumerate(DIRECTIONS)})
    return made


def test_rows_are_read_as_they_were_written(tmp_path):
    rows = [row("a", 50.25, 51.0), row("b, c", 1 / 3), Row("parameters", "a", "A")]
    rows[2].add("all", {"": {"parameters": "k1 4, k2 1"}})
    path = tmp_path / "results.csv"
    records.write_rows(path, rows, {"command": "python", "trials": "1, 2"})
    about, read = records.read_rows(path)
    assert about == {"command": "python", "trials": "1, 2"}
    assert read == rows
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[2] == "table,row,name,uses,trial,direction,metric,value"
    assert len(lines) == 3 + 8 + 4 + 1
    assert lines[3] == "accuracy,a,A,query,1,visible_to_infrared,rank1,50.25"
    assert [r.key for r in records.of_table(read, "accuracy")] == ["a", "b, c"]


def test_cells_and_lines():
    assert records.cell([20, 22]) == "21.00 ± 1.41"
    assert records.cell([3.0], 1) == "3.0"
    assert records.line_of(row("a", 10, 12)) == ["A", "query", *(f"{n}.00 ± 1.41" for n in (11, 12, 13, 14))]
    assert records.head_of(row("a", 10)) == ["V→I rank-1", "V→I mAP", "I→V rank-1", "I→V mAP"]
    sysu = Row("accuracy", "a", "A")
    sysu.add(0, {"all single-shot": {"rank1": 50.0, "rank10": 90.0}})
    text = "\nt:\n\n|  | looks at | all single-shot rank-1 | all single-shot rank-10 |\n"
    assert records.accuracy_section("t", [sysu]).startswith(text)
    assert records.accuracy_section("t", []) == records.section("t", ("", "n"), [], 1) == ""
    assert records.section("t", ("", "n"), [["x", "1"]], 1) == "\nt:\n\n|  | n |\n| --- | ---: |\n| x | 1 |\n"
    assert (
        records.parameters_text({"k1": 4, "lambda_value": 0.3, "alpha": 3, "variant": "paper"}) == "k1 4, λ 0.3, paper"
    )
    assert records.trials_text("1, 2") == "Trials 1, 2; percent, mean ± sample standard deviation over the trials."
    assert records.trials_text("1") == "Trials 1; percent."


def test_differences_are_taken_trial_by_trial():
    found = {"a": row("a", 10, 12, 11), "b": row("b", 9, 13, 9)}
    text = records.difference_section(found, [("a", "b"), ("a", "missing"), ("missing", "b")], "seed")
    assert "seed by seed, and in how many seeds they are above 0" in text
    assert text.splitlines()[-1] == f"| A | B | {' | '.join(['+0.67 ± 1.53, 2/3'] * 4)} |"
    assert "+1.00, 1/1 |" in records.difference_section({"a": row("a", 2), "b": row("b", 1)}, [("a", "b")])
    assert records.difference_section(found, [("a", "missing")]) == ""


def test_diagnostics_that_a_model_lacks_are_dashes():
    plain = Row("diagnostics", "a", "A")
    plain.add(1, {"mean": {"error_rate": 0.5, "Q_A": 20.0, "Q_X": 0.4444}})
    assert records.diagnostic_section("t", [plain]).splitlines()[-1] == "| A | 0.50 | 20.00 | 0.444 | - |"


def test_numbers_of_text_are_refused():
    made = Row("parameters", "a", "A")
    made.add("all", {"": {"parameters": "k1 4"}})
    with pytest.raises(ValueError, match="k1 4"):
        made.numbers("", "parameters")
