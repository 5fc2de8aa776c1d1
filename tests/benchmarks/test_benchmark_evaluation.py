"""The evaluation benchmark on a tiny matrix: the loops agree with ours, and a run prints and records."""

import json
import os
import subprocess
import sys

import pytest

from places import ROOT


@pytest.fixture
def evaluation(monkeypatch):
    from benchmarks.speed import evaluation

    return evaluation


def test_the_loops_agree_with_ours_under_both_rules(evaluation):
    for problem in (evaluation.sysu(10, 8, 40, 200), evaluation.market(20, 30, 400)):
        mine = evaluation.ours(problem, problem.exclude, problem.cmc_over)
        assert evaluation.published_loops(problem) == pytest.approx(mine, abs=1e-12)


def test_what_cannot_be_imported_is_listed(evaluation, monkeypatch):
    def broken():
        raise ImportError("no such tool")

    peer = evaluation.Peer(broken, "none", None)
    monkeypatch.setitem(evaluation.PEERS, "broken", peer)
    ready, missing = evaluation.find_peers(["published loops", "broken"])
    assert list(ready) == ["published loops"]
    assert missing == {"broken": "ImportError: no such tool"}


def test_a_run_prints_and_records(tmp_path):
    output = tmp_path / "evaluation.json"
    options = ["--sizes", "tiny", "--peers", "published loops", "--repeats", "2", "--no-memory"]
    options += ["--output", str(output)]
    command = [sys.executable, "-m", "benchmarks.speed.evaluation", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment())
    assert "published loops" in done.stdout
    assert "yes" in done.stdout
    record = json.loads(output.read_text())
    row = record["sizes"]["tiny"]["results"]["published loops"]
    assert len(row["seconds"]) == 2
    assert row["rule"] == {"exclude": "same_camera", "cmc_over": "identities"}
    assert row["mAP_difference"] < 1e-12
    assert record["versions"]["numpy"]


def environment():

    return os.environ | {"PYTHONPATH": str(ROOT)}
