"""The table of readings: its rows, their pairs, and the share of pairs within HCC's margin."""

import pytest

from benchmarks.tables import readings
from benchmarks.tables.options import read_options
from benchmarks.tables.records import of_table, read_rows
from vireid.training import settings_of


def test_each_reading_changes_one_setting_of_its_row():
    for row, other in readings.PAIRS:
        plans = readings.ROWS[row], readings.ROWS[other]
        changed, default = (settings_of(p.method) | read_options(p.method, p.options)[0] for p in plans)
        assert len([name for name in changed if changed[name] != default[name]]) == 1, row


def test_a_reading_is_trained_and_compared_with_its_row(people, tmp_path, trained_here, tiny):
    given = ["--root", str(people), "--output", str(tmp_path), "--trials", "1", "--jobs", "1"]
    readings.main([*given, "--rows", "baseline", "baseline_neck", "--", *tiny])
    _, rows = read_rows(tmp_path / "results.csv")
    assert [row.key for row in of_table(rows, "accuracy")] == ["baseline/backbone", "baseline_neck/backbone"]
    for row in of_table(rows, "hinge"):
        found = {name: row.numbers("", name)[0] for _, name in row.values}
        assert all(0 <= found[name] <= 100 for name in ("pooled", "neck"))
        assert all(0 < found[f"{name}_distance"] < 2 for name in ("pooled", "neck"))
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| Baseline, HCC behind the neck, backbone features | Baseline, backbone features |" in text


def test_the_hinge_counts_pairs_of_an_image_and_another_center(people, tmp_path, trained_here, tiny):
    given = ["--root", str(people), "--output", str(tmp_path), "--trials", "1", "--jobs", "1", "--rows", "baseline"]
    arguments, extra = readings.parse(_parser(), [*given, "--", *tiny])
    (run,) = readings.runs_of(arguments, {"baseline": readings.ROWS["baseline"]}, extra)
    readings.train_all([run], 1)
    for margin, share in ((0.0, 0.0), (2.1, 100.0)):  # rows and means of rows of length 1
        assert readings.look_at_hinge(run, 2, margin)["pooled"] == pytest.approx(share)


def _parser():
    parser = readings.options_parser("", "runs/readings")
    readings.add_row_options(parser, readings.ROWS)
    return parser
