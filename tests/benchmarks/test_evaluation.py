"""The evaluation benchmark on a tiny matrix: the loops agree with ours, and a run prints and records."""

import pytest

from benchmarks.speed import evaluation
from benchmarks.speed.measure import read_table, value_of


def test_the_loops_agree_with_ours_under_both_rules():
    for problem in (evaluation.sysu(10, 8, 40, 200), evaluation.market(20, 30, 400)):
        mine = evaluation.ours(problem, problem.exclude, problem.cmc_over)
        assert evaluation.published_loops(problem) == pytest.approx(mine, abs=1e-12)


def test_what_cannot_be_imported_is_listed(monkeypatch):
    def broken():
        raise ImportError("no such tool")

    peer = evaluation.Peer(broken, "none", None)
    monkeypatch.setitem(evaluation.PEERS, "broken", peer)
    ready, missing = evaluation.find_peers(["published loops", "broken"])
    assert list(ready) == ["published loops"]
    assert missing == {"broken": "ImportError: no such tool"}


def test_a_run_prints_and_records(tmp_path, capsys):
    output = tmp_path / "evaluation.csv"
    options = ["--sizes", "tiny", "--peers", "published loops", "--repeats", "2", "--no-memory"]
    evaluation.main([*options, "--output", str(output)])
    assert "40 x 200, tiny, same_camera, CMC over identities" in capsys.readouterr().out
    about, rows = read_table(output)
    mine = "vireid (same_camera rule, identities)"
    assert [row["method"] for row in rows if row["metric"] == "median_s"] == [evaluation.FLOOR, mine, "published loops"]
    assert value_of(rows, "difference_to_ours", method="published loops") < 1e-12
    assert value_of(rows, "mAP", method="published loops") == pytest.approx(value_of(rows, "mAP", method=mine))
    assert all(row["iqr"] for row in rows if row["metric"] == "median_s")
    assert "numpy " in about["versions"]


def test_the_memory_of_a_contender_is_one_number(capsys):
    if not evaluation.measure.can_measure_memory(evaluation.CPU):
        pytest.skip("the system does not say")
    options = ["--sizes", "tiny", "--peers", "published loops"]
    evaluation.main([*options, "--peak-memory-of", "published loops"])
    assert int(capsys.readouterr().out) >= 0
