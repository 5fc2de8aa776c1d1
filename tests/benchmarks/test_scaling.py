"""The benchmark of cost against the gallery's size: what is recorded, where it stops, what is drawn."""

import json

import pytest

from benchmarks.speed import peers, scaling
from benchmarks.speed.measure import read_table


@pytest.fixture
def fake(monkeypatch):
    """Stand-in for the fresh processes: a second per 1,000 images; other people's stop for memory at 10,000."""
    asked = []

    def watched(script, options, *, threads, limit, memory):
        name, size = options[options.index("--case") + 1 :]
        asked.append((name, int(size), threads, limit, memory))
        if int(size) / 1000 > limit:
            return [], "time"
        if int(size) >= 10_000 and name.startswith("dense"):
            return [], "memory"
        return [{"seconds": int(size) / 1000, "peak_bytes": 1000 * int(size)}], None

    monkeypatch.setattr(scaling, "watched", watched)
    return asked


def test_a_contender_is_not_tried_beyond_the_size_that_stopped_it(fake, tmp_path, capsys):
    options = ["--sizes", "10000", "1000", "100000", "1000000", "--contenders", "aim", "dense_aim"]
    options += ["--budget", "99", "--memory", "3", "--threads", "1", "--output", str(tmp_path / "out.csv")]
    scaling.main(options)
    cases = [("aim", 1000), ("aim", 10_000), ("aim", 100_000), ("dense_aim", 1000), ("dense_aim", 10_000)]
    assert [case[:2] for case in fake] == cases
    assert {case[2:] for case in fake} == {(1, 99.0, 3.0)}
    about, rows = read_table(tmp_path / "out.csv")
    records = scaling.records(rows)
    found = [(r["method"], r["size"], r["seconds"], r["stopped"]) for r in records]
    assert found == [
        (peers.LABELS["aim"], 1000, 1.0, None),
        (peers.LABELS["aim"], 10_000, 10.0, None),
        (peers.LABELS["aim"], 100_000, None, "time"),
        (peers.LABELS["dense_aim"], 1000, 1.0, None),
        (peers.LABELS["dense_aim"], 10_000, None, "memory"),
    ]
    assert {r["group"] for r in records} == {"AIM"}
    assert about["title"].endswith("stopped after 99 s or at 3 GiB")
    assert "stopped memory" in capsys.readouterr().out


def test_a_missing_package_is_left_out(fake, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peers, "installed", lambda name: name == "gnn")
    names = ["gnn", "fastreid_k_reciprocal"]
    scaling.main(["--sizes", "1000", "--contenders", *names, "--output", str(tmp_path / "out.csv")])
    assert {row["method"] for row in read_table(tmp_path / "out.csv")[1]} == {peers.LABELS["gnn"]}
    assert "k-reciprocal (fastreid): not installed" in capsys.readouterr().out


def test_the_figure_can_be_drawn_again_from_the_file(fake, tmp_path):
    pytest.importorskip("matplotlib")
    output = str(tmp_path / "out.csv")
    figures = tmp_path / "images"
    scaling.main(["--sizes", "1000", "10000", "--contenders", "dense_aim", "--output", output])
    count = len(fake)
    scaling.main(["--read", output, "--figure", str(figures / "cost.png")])
    assert len(fake) == count
    assert (figures / "cost.png").read_bytes().startswith(b"\x89PNG")


def test_a_case_measures_one_call(capsys):
    scaling.main(["--case", "aim", "200", "--queries", "8", "--dim", "16", "--threads", "1"])
    ready, found = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert ready == {"ready": True}
    assert found["seconds"] > 0


@pytest.mark.parametrize("options", [["--sizes", "0"], ["--budget", "0"], ["--contenders", "other"]])
def test_bad_options_end_the_benchmark(options, capsys):
    with pytest.raises(SystemExit):
        scaling.main(options)
    assert options[0] in capsys.readouterr().err
