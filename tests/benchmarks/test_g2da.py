"""G2DA's tables: a real run end to end, tables of written runs, reuse, sweeps."""

import itertools
import os
import re
from dataclasses import replace

import pytest
import torch

from benchmarks.tables import g2da, options, runs
from benchmarks.tables.data import Data
from benchmarks.tables.records import cell, line_of, read_rows
from vireid.protocols import RegDB
from vireid.training import read_checkpoint


def test_a_real_run_end_to_end(people, tmp_path, trained_here, tiny, capsys):
    output = tmp_path / "out"
    given = ["--root", str(people), "--output", str(output), "--trials", "1", "--jobs", "1", "--rows", "g2da"]
    g2da.main([*given, "--", *tiny])
    about, (row, graph) = read_rows(output / "results.csv")
    assert (row.key, row.uses, about["data"], about["trials"]) == ("g2da/graph", "query", "data", "1")
    state = read_checkpoint(output / "g2da" / "1" / "checkpoint.pt")
    assert state["settings"]["part_grid"] == [4, 3]
    gamma, omega = state["model"]["attention.norm.weight"], state["model"]["aggregation.weight"]
    found = {metric: float(values["1"]) for (_, metric), values in graph.values.items()}
    assert found["replaced"] == pytest.approx(100 * float((gamma <= 0.02).double().mean()))
    for name, values in (("gamma", gamma), ("omega", omega)):
        assert [found[f"{name}_min"], found[f"{name}_max"]] == pytest.approx([float(values.min()), float(values.max())])
    table = (output / "table.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    assert table.startswith("Trials 1; percent.\n")


def test_key_points_of_the_synthetic_people_are_the_nodes(people, tmp_path, trained_here, tiny):
    where = {"data": Data("synthetic", people), "output": tmp_path / "out", "trials": [3]}
    run = runs.make_runs({"g2da": g2da.ROWS["g2da"]}, tiny, **where)[0]
    points = people / "keypoints.npz"
    run = replace(run, data=Data("regdb", people, points))  # or else all 96 people are drawn
    runs.train(run)
    assert (run.model.attention.nodes, run.recipe.seed) == (14, 3)


# -------------------------------------------------------------------------------------------- tables of written runs


@pytest.fixture(scope="module")
def table(tmp_path_factory, writing, tiny):
    """Return the folder of all rows and a variant, and the options that were given."""
    folder = tmp_path_factory.mktemp("g2da")
    (folder / "data").mkdir()
    given = ["--root", str(folder / "data"), "--output", str(folder / "out"), "--jobs", "1"]
    given += ["--variant", "GW=--phi 0"]
    with writing() as written:
        g2da.main([*given, "--", *tiny])
    assert sorted(written) == sorted((row, trial) for row in (*g2da.ROWS, "gw") for trial in (1, 2, 3))
    return folder / "out", given


def test_rows_are_what_the_runs_say(table, tiny):
    output, given = table
    about, rows = read_rows(output / "results.csv")
    accuracy = [row for row in rows if row.table == "accuracy"]
    assert [(row.name, row.key.split("/")[1], row.uses) for row in accuracy] == [
        ("B", "backbone", "query"),
        ("B + O", "backbone", "query"),
        ("B + O + CL", "backbone", "query"),
        ("B + O + CL + G", "graph", "query"),
        ("B + O + CL + G + MF", "graph", "query"),
        ("CIFT†", "backbone", "query"),
        ("CIFT", "transferred", "gallery"),
        ("CIFT† + D_ot", "backbone", "query"),
        ("CIFT + D_ot", "transferred", "gallery"),
        ("SAAI", "backbone", "query"),
        ("SAAI + D_ot", "backbone", "query"),
        ("GW", "graph", "query"),
    ]
    plans = g2da.ROWS | options.parse_variants("g2da", ["GW=--phi 0"], ())
    made = runs.make_runs(plans, tiny, data=Data("regdb", runs.Path(given[1])), output=output, trials=[1, 2, 3])
    for row in accuracy:
        model, kind = row.key.split("/")
        own = [run for run in made if run.row == model]
        assert len(row.values) == 4
        for direction, metric in row.values:
            rerank = own[0].model.transfer.distance if kind == "transferred" else None
            values = [RegDB(direction).evaluate(*run.features, rerank=rerank).rows[0].mean[metric] for run in own]
            assert row.numbers(direction, metric) == pytest.approx(values, abs=1e-6)
    assert about["command"].startswith("python -m benchmarks.tables.g2da --root ")
    assert (about["reused"], about["variants"]) == ("", "gw: g2da")
    assert {"hardware", "cpus", "device", "versions"} <= about.keys()


def test_a_variant_is_compared_with_its_own_row_of_the_ablation():
    ladder = ["baseline/backbone", "ot/backbone", "cl/backbone", "graph/graph", "g2da/graph"]
    others = ["cri/backbone", "cri/transferred", "cri_ot/backbone", "cri_ot/transferred", "saai/backbone"]
    others += ["saai_ot/backbone", "gw/graph", "b/backbone"]
    expected = [(row, minus) for minus, row in itertools.pairwise(ladder)] + [(ladder[4], ladder[0])]
    expected += [(f"{row}_ot/{kind}", f"{row}/{kind}") for row, kind in (("cri", "backbone"), ("cri", "transferred"))]
    expected += [("saai_ot/backbone", "saai/backbone"), ("gw/graph", ladder[4]), ("b/backbone", ladder[1])]
    assert list(g2da.pairs([*ladder, *others], {"gw": "g2da", "b": "ot"})) == expected


def test_graphs(table):
    output, _ = table
    graphs = {row.key: row for row in read_rows(output / "results.csv")[1] if row.table == "graph"}
    assert graphs.keys() == {"graph", "g2da", "gw"}
    for key, row in graphs.items():
        for trial in (1, 2, 3):
            found = {metric: values[str(trial)] for (_, metric), values in row.values.items()}
            nodes = trial + 1 if key == "g2da" else 0  # of 13
            assert found["replaced"] == pytest.approx(100 * nodes / 13)
            assert [found["gamma_min"], found["gamma_max"]] == pytest.approx([0.01 if nodes else 1.0, 1.0])
            assert [found["omega_min"], found["omega_max"]] == pytest.approx([-0.2, 1.0])


def test_one_head_replaces_nothing(tmp_path, written):
    where = {"data": Data("regdb", tmp_path), "output": tmp_path, "trials": [1]}
    run = runs.make_runs({"g2da": g2da.ROWS["g2da"]}, ["--heads", "1"], **where)[0]
    runs.train(run)
    assert g2da.look_at_graph(run)["replaced"] == 0


def test_the_text_of_the_table(table):
    output, _ = table
    text = (output / "table.md").read_text(encoding="utf-8")
    about, rows = read_rows(output / "results.csv")
    assert g2da.make_table(about, rows) == text
    assert text.startswith("Trials 1, 2, 3; percent, mean ± sample standard deviation over the trials.\n")
    titles = re.findall(r"^(\S.*):\n\n\|", text, flags=re.MULTILINE)
    assert [re.split(r"[ ,]", title)[0] for title in titles] == ["The", "D_ot", "Further", "Differences", "The"]
    found = {row.key: row for row in rows if row.table == "accuracy"}
    assert f"\n| {' | '.join(line_of(found['cri/transferred']))} |\n" in text
    own, other = found["g2da/graph"], found["baseline/backbone"]
    cells = []
    for column in own.values:
        differences = [a - b for a, b in zip(own.numbers(*column), other.numbers(*column), strict=True)]
        shown = cell(differences)
        cells.append(f"{'' if shown.startswith('-') else '+'}{shown}, {sum(x > 0 for x in differences)}/3")
    assert f"\n| B + O + CL + G + MF | B | {' | '.join(cells)} |\n" in text
    assert "\n| B + O + CL + G + MF | 2 | 23.08 | 0.010 to 1.000 | -0.200 to 1.000 |" in text


def test_text_of_synthetic_data(tmp_path, written, tiny):
    people = str(tmp_path / "people")
    given = ["--synthetic", people, "--output", str(tmp_path / "out"), "--seeds", "0", "1", "--rows", "baseline"]
    g2da.main([*given, "--jobs", "1", "--", *tiny])
    assert written == [("drawn", people), ("baseline", 0), ("baseline", 1)]
    text = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    start = (
        "Synthetic pedestrians, seeds of the training 0, 1; percent, mean ± sample standard deviation over the seeds"
    )
    assert text.startswith(start + ".")
    assert "Differences" not in text


# --------------------------------------------------------------------------------------- run again, reuse, sweep


def test_run_again_does_what_is_missing(table, written, tiny):
    output, given = table
    before = (output / "results.csv").read_bytes(), (output / "table.md").read_bytes()
    for name in ("results.csv", "table.md"):
        (output / name).unlink()  # as if stopped before the tables
    (output / "cri_ot" / "2" / "features.npz").unlink()  # before the evaluation
    os.utime(output / "ot" / "1" / "features.npz", (1, 1))  # of an older checkpoint
    (output / "saai" / "3" / "checkpoint.pt").unlink()  # before the first epoch's end
    g2da.main([*given, "--", *tiny])
    assert sorted(written) == [("cri_ot", 2), ("ot", 1), ("saai", 3)]
    assert ((output / "results.csv").read_bytes(), (output / "table.md").read_bytes()) == before
    written.clear()
    with pytest.raises(ValueError, match=r"holds a run with other settings \(lr 0\.001 -> 0\.002\)"):
        g2da.main([*given, "--", *tiny, "--lr", "2e-3"])
    assert written == []
    assert (output / "results.csv").read_bytes() == before[0]


def test_reuse_takes_complete_runs_of_equal_settings(table, tmp_path, written, tiny):
    output, options = table
    (tmp_path / "empty").mkdir()
    new = tmp_path / "new"
    given = [*options[:2], "--output", str(new), "--rows", "cri", "saai", "--jobs", "1"]
    given += ["--reuse", str(tmp_path / "empty"), str(output)]
    missing = output / "cri" / "2" / "features.npz"
    kept = missing.read_bytes()
    missing.unlink()
    g2da.main([*given, "--", *tiny])
    missing.write_bytes(kept)
    assert written == [("cri", 2)]
    assert not (new / "saai").exists()
    about, rows = read_rows(new / "results.csv")
    assert rows == [row for row in read_rows(output / "results.csv")[1] if row.key.split("/")[0] in ("cri", "saai")]
    reused = [str(output / r / str(t)) for t in (1, 2, 3) for r in ("cri", "saai") if (r, t) != ("cri", 2)]
    assert about["reused"] == ", ".join(reused)
    written.clear()
    given[given.index(str(new))] = str(tmp_path / "other")
    g2da.main([*given, "--", *tiny, "--lr", "2e-3"])
    assert sorted(written) == [(row, trial) for row in ("cri", "saai") for trial in (1, 2, 3)]


def test_sweep_of_synthetic_data(tmp_path, written, tiny):
    pytest.importorskip("matplotlib")
    given = ["--synthetic", str(tmp_path / "data"), "--seeds", "1", "2", "--jobs", "1"]
    g2da.main([*given, "--output", str(tmp_path / "table"), "--rows", "g2da", "--", *tiny])
    expected = next(row for row in read_rows(tmp_path / "table" / "results.csv")[1] if row.table == "accuracy")
    written.clear()
    given += ["--output", str(tmp_path / "sweep"), "--table", str(tmp_path / "table")]
    given += ["--figure", str(tmp_path / "phi.svg")]
    g2da.main(["sweep", "--parameter", "phi", "--values", "0.5", "1", *given, "--", *tiny])
    assert [run for run in written if run[0] != "drawn"] == [("phi_1", 1), ("phi_1", 2)]  # 0.5 is the default
    about, rows = read_rows(tmp_path / "sweep" / "results.csv")
    assert (about["parameter"], about["trials"], [row.key for row in rows]) == ("phi", "1, 2", ["0.5", "1"])
    assert rows[0].values == expected.values
    assert rows[1].values.keys() == expected.values.keys()
    assert (tmp_path / "phi.svg").stat().st_size > 1000
    assert sorted(os.listdir(tmp_path / "sweep")) == ["phi_1", "results.csv"]


def test_a_sweep_can_be_drawn_again(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks.tables import sweep

    torch.manual_seed(0)
    results = runs.Path(sweep.__file__).parents[1] / "results" / "saai_parts.csv"
    sweep.main([str(results), str(tmp_path / "parts.png"), "--symbol", "p"])
    assert (tmp_path / "parts.png").read_bytes().startswith(b"\x89PNG")
