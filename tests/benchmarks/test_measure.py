"""The shared helpers of the benchmarks of speed, and the process that is watched."""

import argparse
import json
import time

import pytest
import torch

from benchmarks.speed import measure, watch

CPU = torch.device("cpu")
WATCHED = """
import json, sys, time
print(json.dumps({"ready": True}), flush=True)
exec(sys.argv[1])
"""


def test_a_table_is_read_as_it_was_written(tmp_path):
    rows = measure.figures("search", "3 x 4", "ours, fast", [2.0, 1.0, 4.0], peak_bytes=None)
    rows += measure.figures("search", "3 x 4", "theirs", stopped="time")
    path = tmp_path / "new" / "a.csv"
    measure.write_table(path, rows, {"command": "python -m x: y", "seed": 0})
    about, read = measure.read_table(path)
    assert about == {"command": "python -m x: y", "seed": "0"}
    assert read == [{name: str(value) for name, value in row.items()} for row in rows]
    kept = [(row["metric"], row["value"], row["iqr"]) for row in rows]
    assert kept == [("median_s", 2.0, 3.0), ("stopped", "time", "")]
    assert measure.value_of(read, "median_s", method="ours, fast") == 2.0
    assert measure.value_of(read, "median_s", method="theirs") is None
    assert [p.name for p in path.parent.iterdir()] == ["a.csv"]


def test_a_table_on_the_terminal_has_units_and_ratios(capsys):
    rows = measure.figures("w", "s", "a", [0.4995, 0.5, 0.5], peak_bytes=3 * 2**20)
    rows += measure.figures("w", "s", "b", [0.25], recall=0.51234) + measure.figures("w", "s", "c", stopped="time")
    measure.show(rows, "b", {"b": "a"})
    _, title, head, a, b, c = capsys.readouterr().out.splitlines()
    assert title == "w, s"
    assert head.split() == ["median", "ms", "iqr", "ms", "peak", "MiB", "recall", "stopped", "x", "b", "x", "floor"]
    assert a.split() == ["a", "500.00", "0.50", "3", "-", "-", "2.00", "-"]
    assert b.split() == ["b", "250.00", "-", "-", "0.5123", "-", "1.00", "0.50"]
    assert c.split() == ["c", "-", "-", "-", "-", "time", "-", "-"]


def test_contenders_take_turns_and_the_warm_up_is_not_counted():
    order = []
    cases = {name: (lambda name=name: order.append(name) or time.sleep(0.001)) for name in "ab"}
    seconds = measure.measure_in_turns(cases, 2, CPU, warm_up=1)
    assert order == ["a", "b"] * 3
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}
    assert min(seconds["a"]) >= 0.001


def test_numbers_must_be_above_0(capsys):
    parser = measure.options_parser("doc", repeats=3)
    parser.add_argument("--dims", type=int, nargs="+", default=[1])
    parser.add_argument("--flag", action="store_true")
    threads = torch.get_num_threads()
    arguments = measure.parse(parser, ["--threads", str(threads)])
    assert isinstance(arguments, argparse.Namespace)
    for given in (["--dims", "3", "0"], ["--repeats", "0"], ["--threads", "-1"]):
        with pytest.raises(SystemExit):
            measure.parse(parser, given)
        assert f"{given[0]} must be above 0, got {given[-1]}" in capsys.readouterr().err


def test_the_environment_names_threads_and_installed_packages():
    about = measure.environment(CPU, ["numpy", "no-such-package"])
    assert about["threads"] == torch.get_num_threads()
    assert f"torch {torch.__version__}, " in about["versions"]
    assert "numpy " in about["versions"]
    assert "no-such" not in about["versions"]


@pytest.mark.skipif(not measure.can_measure_memory(CPU), reason="needs Linux's record of the peak")
def test_memory_that_is_taken_is_seen():
    with measure.PeakMemory(CPU) as peak:
        torch.ones(50 * 2**18)
    assert 45 * 2**20 < peak.bytes < 80 * 2**20


# -------------------------------------------------------------------------------------------------- watching


@pytest.fixture
def watched(tmp_path, monkeypatch):
    (tmp_path / "a_case.py").write_text(WATCHED)
    monkeypatch.syspath_prepend(str(tmp_path))
    limits = {"threads": 1, "limit": 60.0, "memory": 4.0}
    return lambda code, **others: watch.watched("a_case", [code], **(limits | others))


def test_watched_returns_the_lines_after_the_first(watched):
    code = "import os\nfor n in range(2): print(json.dumps({'n': n, 'threads': os.environ['OMP_NUM_THREADS']}))"
    assert watched(code) == ([{"n": 0, "threads": "1"}, {"n": 1, "threads": "1"}], None)


def test_watched_stops_what_takes_too_long_and_keeps_what_was_said(watched):
    lines, stopped = watched("print(json.dumps({'n': 1}), flush=True); time.sleep(60)", limit=0.3)
    assert (lines, stopped) == ([{"n": 1}], "time")


def test_watched_stops_what_takes_too_much_memory(watched):
    lines, stopped = watched("x = bytearray(b'1') * 2**29; time.sleep(60)", memory=0.25)
    assert (lines, stopped) == ([], "memory")


def test_watched_says_what_failed(watched, capfd):
    assert watched("raise KeyError('mine')") == ([], "error")
    assert "mine" in capfd.readouterr().err


def test_what_notices_itself_that_memory_does_not_suffice(watched):
    assert watched("print(json.dumps({'stopped': 'memory'}))") == ([], "memory")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9")])
def test_guarded_says_that_memory_does_not_suffice(capsys, error):
    def fail():
        raise error

    watch.guarded(fail)
    assert json.loads(capsys.readouterr().out) == {"stopped": "memory"}


def test_guarded_lets_other_errors_through():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        watch.guarded(lambda: torch.ones(2, 2) @ torch.ones(3, 3))
