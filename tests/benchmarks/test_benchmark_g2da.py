"""G2DA's tables: a real run end to end, tables from written runs against numbers by hand, options, resuming, sweeps."""

import itertools
import json
import os
import re
import sys
from pathlib import Path
from statistics import fmean, stdev

import pytest
import torch

import common
import train_cift
import train_g2da
import train_saai
from benchmarks.tables import g2da, runs
from vireid.data import generate_synthetic

TINY = ["--epochs", "1", "--batches", "2", "--identities", "2", "--per-modality", "2", "--accelerator", "cpu"]
DIRECTIONS = ("visible_to_infrared", "infrared_to_visible")
OMEGA = [0.1 * n - 0.2 for n in range(14)]


def mean_ap(row, trial, kind, direction):
    """Any numbers that tell runs apart, not all in one direction."""
    names = [*g2da.ROWS, "gw", "phi_1"]
    base = 30 + 2 * names.index(row) + 5 * (kind == "transferred") + 3 * (direction == DIRECTIONS[1])
    return base + ((7 * names.index(row) + 3) * (trial + 1)) % 5


def write_run(run, *, replaced=0):
    """What a training leaves, without one: a checkpoint of the model as built, and metrics of `mean_ap`."""
    config = {**run.config, "method": run.script.METHOD.name}
    torch.manual_seed(0)
    model, _ = run.script.build_model(config, 4)
    if getattr(model, "attention", None) is not None:
        with torch.no_grad():
            model.attention.norm.weight[: 945 * replaced] = 0.01  # of so many nodes, below θ
            model.aggregation.weight.copy_(torch.tensor(OMEGA[: model.attention.nodes]))
    kinds = {"backbone": "query"}
    if run.script is train_cift:
        kinds["transferred"] = "gallery"
    if run.script is train_g2da and model.attention is not None:
        kinds = {"graph": "query"}
    rows = [
        {
            "features": kind,
            "rerank": rerank,
            "uses": uses,
            "direction": direction,
            **dict.fromkeys(runs.METRICS, 99.0 if rerank == "AIM" else mean_ap(run.row, run.trial, kind, direction)),
        }
        for kind, uses in kinds.items()
        for rerank in ("none", *(["AIM"] if run.script is train_saai else []))
        for direction in DIRECTIONS
    ]
    state = {"model": model.state_dict(), "criterion": {}, "optimizer": {}, "identities": 4, "config": config}
    common.save_checkpoint(run.folder / "checkpoint.pt", state | {"epoch": run.arguments.epochs})
    (run.folder / "source.json").write_text(json.dumps(runs.source_of(run)))
    (run.folder / "metrics.json").write_text(json.dumps({"rows": rows}))


def write_instead(patch):
    """Write runs instead of training them; the list of those that were, and of the synthetic data that were drawn."""
    done = []

    def train(run, **options):
        done.append((run.row, run.trial))
        write_run(run, replaced=run.trial + 1 if run.row == "g2da" else 0)

    patch.setattr(runs, "train", train)
    patch.setattr(runs, "generate_synthetic", lambda root, **options: done.append(("drawn", str(root))))
    return done


@pytest.fixture
def written(monkeypatch):
    """The list of `write_instead`."""
    return write_instead(monkeypatch)


def plan(tmp_path, *given):
    arguments, extra = g2da.parse_table(["--output", str(tmp_path / "out"), *given])
    rows = {row: g2da.ROWS[row] for row in arguments.rows}
    return g2da.plan_runs(rows, extra, g2da.data_of(arguments), arguments.output, arguments.reuse)


# ---------------------------------------------------------------------------------------------------- the rows


def test_the_rows_train_what_they_say(tmp_path):
    planned = plan(tmp_path, "--root", "data", "--trials", "2", "5", "--", "--epochs", "3")
    assert [(run.trial, run.row) for run in planned] == [(trial, row) for trial in (2, 5) for row in g2da.ROWS]
    for run in planned:
        assert run.folder == tmp_path / "out" / run.row / str(run.trial)
        assert (run.config["dataset"], run.config["trial"], run.config["epochs"]) == ("regdb", run.trial, 3)
        assert run.config["seed"] == 0
    g, c, s = train_g2da, train_cift, train_saai
    assert {run.row: (run.script, *map(run.config.get, ("ablation", "part_grid", "alignment"))) for run in planned} == {
        **{row: (g, row, [4, 3], None) for row in ("baseline", "ot", "cl", "graph", "g2da")},
        "cri": (c, "cri", None, None),
        "cri_ot": (c, "cri", None, 1.0),
        "saai": (s, "saai", None, None),
        "saai_ot": (s, "saai", None, 1.0),
    }


def test_synthetic_runs_differ_by_their_seed(tmp_path):
    planned = plan(tmp_path, "--synthetic", "people", "--seeds", "4", "0", "--rows", "g2da", "saai_ot")
    assert [(run.row, run.config["seed"]) for run in planned] == [(r, s) for s in (4, 0) for r in ("g2da", "saai_ot")]
    for run in planned:
        assert (run.config["dataset"], run.config["trial"]) == ("synthetic", 1)
        assert (run.arguments.root, run.config.get("part_grid")) == (Path("people"), None)  # key points are known
        assert run.folder == tmp_path / "out" / run.row / str(run.config["seed"])
    assert str(planned[0]) == "row g2da, seed 4"
    assert [run.trial for run in plan(tmp_path, "--synthetic", "people", "--rows", "ot")] == [0, 1, 2]


def test_options_of_all_runs_and_of_a_row(tmp_path):
    given = ["--root", "data", "--trials", "1", "--rows", "g2da", "--", "--part-grid", "6", "2", "--seed", "3"]
    assert (plan(tmp_path, *given)[0].config["part_grid"], plan(tmp_path, *given)[0].config["seed"]) == ([6, 2], 3)
    given[given.index("--")] = "--variant=finer=--part-grid 8 4"
    arguments, extra = g2da.parse_table([*given[:7], "--", "--part-grid", "6", "2"])
    row = g2da.Row("finer", train_g2da, ("--part-grid", "8", "4"))
    assert g2da.plan_runs({"finer": row}, extra, g2da.data_of(arguments), tmp_path, [])[0].config["part_grid"] == [8, 4]


# ------------------------------------------------------------------------------------------------ a real training


def test_a_real_run_end_to_end(tmp_path, monkeypatch, capsys):
    root, output = tmp_path / "data", tmp_path / "out"
    generate_synthetic(root, layout="regdb", identities=8, images_per_camera=4, size=(64, 32))

    def train_here(run, *, single_thread):
        monkeypatch.setattr(sys, "argv", ["train_g2da.py", *run.flags])
        run.folder.mkdir(parents=True)
        (run.folder / "source.json").write_text(json.dumps(runs.source_of(run)))
        train_g2da.main()
        assert runs.state_of(run) == "complete"

    monkeypatch.setattr(runs, "train", train_here)
    monkeypatch.setattr(common, "cmc_curves", lambda *args: None)  # pictures take longer than the training
    monkeypatch.setattr(common, "draw_ranked", lambda *args: None)
    given = ["--root", str(root), "--output", str(output), "--trials", "1", "--jobs", "1", "--rows", "g2da"]
    g2da.main([*given, "--", *TINY])
    content = json.loads((output / "results.json").read_text(encoding="utf-8"))
    (row,) = content["rows"]
    assert (row["row"], row["features"], row["uses"]) == ("g2da", "graph", "query")
    metrics = json.loads((output / "g2da" / "1" / "metrics.json").read_text(encoding="utf-8"))
    assert len(metrics["rows"]) == 2
    for found in metrics["rows"]:
        assert row["results"][found["direction"]]["mAP"] == {
            "per_trial": [found["mAP"]],
            "mean": found["mAP"],
            "std": None,
        }
    state = torch.load(output / "g2da" / "1" / "checkpoint.pt", weights_only=True)["model"]
    (graph,) = content["graphs"]
    gamma = state["attention.norm.weight"]
    assert graph["replaced"] == pytest.approx(100 * sum(float(g) <= 0.02 for g in gamma) / len(gamma))
    assert graph["gamma"] == pytest.approx([min(gamma.tolist()), max(gamma.tolist())])
    assert graph["omega"] == pytest.approx(state["aggregation.weight"].tolist())
    assert (content["trials"], content["dataset"], content["accelerator"]) == ([1], "regdb", "cpu")
    assert content["settings"]["g2da"]["part_grid"] == [4, 3]
    table = (output / "table.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    assert table.startswith("Trials 1; percent.\n")


# -------------------------------------------------------------------------------------------- tables of written runs


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """What all rows and a variant leave: (folder, its content, the options that were given)."""
    folder = tmp_path_factory.mktemp("g2da")
    given = ["--root", str(folder / "data"), "--output", str(folder / "out"), "--variant", "GW=--phi 0"]
    with pytest.MonkeyPatch.context() as patch:
        done = write_instead(patch)
        g2da.main([*given, "--", *TINY])
    assert sorted(done) == sorted((row, trial) for row in (*g2da.ROWS, "gw") for trial in (1, 2, 3))
    return folder / "out", json.loads((folder / "out" / "results.json").read_text(encoding="utf-8")), given


def test_rows_are_what_the_runs_say(table):
    _, content, _ = table
    assert [(row["name"], row["features"], row["uses"]) for row in content["rows"]] == [
        ("B", "backbone", "query"),
        ("B + O", "backbone", "query"),
        ("B + O + CL", "backbone", "query"),
        ("B + O + CL + G", "graph", "query"),
        ("B + O + CL + G + MF", "graph", "query"),
        ("CIFT†", "backbone", "query"),
        ("CIFT", "transferred", "gallery"),
        ("CIFT† + D_ot", "backbone", "query"),
        ("CIFT + D_ot", "transferred", "gallery"),
        ("SAAI", "backbone", "query"),  # without AIM, of 99
        ("SAAI + D_ot", "backbone", "query"),
        ("GW", "graph", "query"),
    ]
    for row in content["rows"]:
        for direction in DIRECTIONS:
            values = [mean_ap(row["row"], trial, row["features"], direction) for trial in (1, 2, 3)]
            for metric in ("rank1", "mAP"):
                found = row["results"][direction][metric]
                assert found["per_trial"] == values
                assert (found["mean"], found["std"]) == (pytest.approx(fmean(values)), pytest.approx(stdev(values)))
    assert content["command"].startswith("python -m benchmarks.tables.g2da --root ")
    assert content["settings"]["gw"]["phi"] == 0
    assert content["settings"]["g2da"]["trial"] == 1
    assert {"hardware", "cpus", "device", "versions"} <= content.keys()
    assert content["reused"] == []


def test_differences(table):
    _, content, _ = table
    ladder = ["B", "B + O", "B + O + CL", "B + O + CL + G", "B + O + CL + G + MF"]
    expected = [("III", row, minus) for minus, row in itertools.pairwise(ladder)]
    expected += [("III", ladder[4], "B")]
    expected += [("alignment", f"{name} + D_ot", name) for name in ("CIFT†", "CIFT", "SAAI")]
    expected += [("variants", "GW", ladder[4])]
    assert [(e["table"], e["row"], e["minus"]) for e in content["differences"]] == expected
    rows = {row["name"]: row for row in content["rows"]}
    signs = set()
    for entry in content["differences"]:
        a, b = rows[entry["row"]], rows[entry["minus"]]
        for direction in DIRECTIONS:
            own = [
                mean_ap(a["row"], trial, a["features"], direction) - mean_ap(b["row"], trial, b["features"], direction)
                for trial in (1, 2, 3)
            ]
            found = entry["results"][direction]["mAP"]
            assert found["per_trial"] == own
            assert found["above"] == len([x for x in own if x > 0])
            assert found["std"] == pytest.approx(stdev(own))
            signs.add(found["above"])
    assert len(signs) > 1


def test_a_variant_is_compared_with_its_own_row_of_the_ablation(tmp_path, written):
    given = ["--root", str(tmp_path), "--output", str(tmp_path / "out"), "--trials", "1", "--rows", "ot", "g2da"]
    g2da.main([*given, "--variant", "GW=--ablation ot --phi 0", "--", *TINY])
    content = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert [(e["row"], e["minus"]) for e in content["differences"]] == [("GW", "B + O")]


def test_graphs(table):
    _, content, _ = table
    found = {(graph["row"], graph["trial"]): graph for graph in content["graphs"]}
    assert found.keys() == {(row, trial) for row in ("graph", "g2da", "gw") for trial in (1, 2, 3)}
    for (row, trial), graph in found.items():
        nodes = trial + 1 if row == "g2da" else 0  # of 13
        assert graph["replaced"] == pytest.approx(100 * nodes / 13)
        assert graph["gamma"] == pytest.approx([0.01 if nodes else 1.0, 1.0])
        assert graph["omega"] == pytest.approx(OMEGA[:13])


def test_one_head_replaces_nothing(tmp_path):
    run = plan(tmp_path, "--root", "data", "--trials", "1", "--rows", "g2da", "--", "--heads", "1")[0]
    write_run(run, replaced=1)
    assert g2da.look_at_graph(run)["replaced"] == 0


def test_the_text_of_the_table(table):
    output, _, _ = table
    text = (output / "table.md").read_text(encoding="utf-8")
    assert text.startswith("Trials 1, 2, 3; percent, mean ± sample standard deviation over the trials.\n")
    titles = re.findall(r"^(\S.*):\n\n\|", text, flags=re.MULTILINE)
    assert [re.split(r"[ ,]", title)[0] for title in titles] == ["The", "D_ot", "Further", "Differences", "The"]
    values = [mean_ap("cri", trial, "transferred", DIRECTIONS[0]) for trial in (1, 2, 3)]
    cell = f"{fmean(values):.2f} ± {stdev(values):.2f}"
    assert f"\n| CIFT | gallery | {cell} | {cell} |" in text
    own = [mean_ap("g2da", t, "graph", DIRECTIONS[0]) - mean_ap("baseline", t, "", DIRECTIONS[0]) for t in (1, 2, 3)]
    cell = f"{fmean(own):+.2f} ± {stdev(own):.2f}, {len([x for x in own if x > 0])}/3"
    assert f"\n| B + O + CL + G + MF | B | {cell} | {cell} |" in text
    assert "\n| B + O + CL + G + MF | 2 | 23.08 | 0.010 to 1.000 | -0.200 to 1.000 |" in text


def test_text_of_synthetic_data(tmp_path, written):
    people = str(tmp_path / "people")
    given = ["--synthetic", people, "--output", str(tmp_path / "out"), "--seeds", "0", "1", "--rows", "baseline"]
    g2da.main([*given, "--jobs", "1", "--", *TINY])
    assert written == [("drawn", people), ("baseline", 0), ("baseline", 1)]
    text = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    start = (
        "Synthetic pedestrians, seeds 0, 1 of the training; percent, mean ± sample standard deviation over the seeds.\n"
    )
    assert text.startswith(start)
    assert "Differences" not in text
    content = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert (content["dataset"], content["seeds"], "trials" in content) == ("synthetic", [0, 1], False)


# --------------------------------------------------------------------------------------- run again, reuse, sweep


def test_run_again_does_what_is_missing(table, written):
    output, _, given = table
    before = (output / "results.json").read_bytes(), (output / "table.md").read_bytes()
    for name in ("results.json", "table.md"):
        (output / name).unlink()  # as if stopped before the tables
    (output / "cri_ot" / "2" / "metrics.json").unlink()  # before the evaluation
    os.utime(output / "ot" / "1" / "metrics.json", (1, 1))  # of an older checkpoint
    (output / "saai" / "3" / "checkpoint.pt").unlink()  # before the first epoch's end
    g2da.main([*given, "--", *TINY])
    assert sorted(written) == [("cri_ot", 2), ("ot", 1), ("saai", 3)]
    assert ((output / "results.json").read_bytes(), (output / "table.md").read_bytes()) == before
    written.clear()
    with pytest.raises(ValueError, match=r"holds a run with other settings \(lr 0\.001 -> 0\.002\)"):
        g2da.main([*given, "--", *TINY, "--lr", "2e-3"])
    assert written == []
    assert (output / "results.json").read_bytes() == before[0]


def test_reuse_takes_complete_runs_of_equal_settings(table, tmp_path, written):
    output, content, options = table
    (tmp_path / "empty").mkdir()
    new = tmp_path / "new"
    given = [*options[:2], "--output", str(new), "--rows", "cri", "saai", "--jobs", "1"]
    given += ["--reuse", str(tmp_path / "empty"), str(output)]
    missing = output / "cri" / "2" / "metrics.json"
    text = missing.read_text()
    missing.unlink()
    g2da.main([*given, "--", *TINY])
    missing.write_text(text)
    assert written == [("cri", 2)]
    assert not (new / "saai").exists()
    found = json.loads((new / "results.json").read_text(encoding="utf-8"))
    assert found["rows"] == [row for row in content["rows"] if row["row"] in ("cri", "saai")]
    assert found["reused"] == [
        str(output / r / str(t)) for t in (1, 2, 3) for r in ("cri", "saai") if (r, t) != ("cri", 2)
    ]
    written.clear()
    given[given.index(str(new))] = str(tmp_path / "other")
    g2da.main([*given, "--", *TINY, "--lr", "2e-3"])
    assert sorted(written) == [(row, trial) for row in ("cri", "saai") for trial in (1, 2, 3)]


def test_a_run_of_another_script_is_not_this_ones(tmp_path, written):
    """A CIFT baseline's settings are all among SAAI's."""
    where = {"root": tmp_path, "output": tmp_path / "out", "trials": [1]}
    other = runs.make_runs(train_saai, {"baseline": ("--ablation", "baseline")}, TINY, **where)[0]
    write_run(other)
    run = runs.make_runs(train_cift, {"baseline": ("--ablation", "baseline")}, TINY, **where)[0]
    with pytest.raises(ValueError, match=r"other settings \(method 'saai' -> 'cift'\)"):
        runs.state_of(run)
    assert runs.reuse(run, tmp_path / "out" / "baseline") is run


@pytest.mark.parametrize("data", ["root", "synthetic"])
def test_sweep(tmp_path, written, data):
    numbers = {"root": ["--trials", "1", "2"], "synthetic": ["--seeds", "1", "2"]}[data]
    given = [f"--{data}", str(tmp_path / "data"), *numbers, "--jobs", "1"]
    g2da.main([*given, "--output", str(tmp_path / "table"), "--rows", "g2da", "--", *TINY])
    written.clear()
    given += ["--output", str(tmp_path / "sweep"), "--table", str(tmp_path / "table")]
    given += ["--figure", str(tmp_path / "phi.svg")]
    g2da.main(["sweep", "--parameter", "phi", "--values", "0.5", "1", *given, "--", *TINY])
    expected = [
        (value, trial, direction, mean_ap(row, trial, "graph", direction))
        for trial in (1, 2)
        for value, row in ((0.5, "g2da"), (1, "phi_1"))
        for direction in DIRECTIONS
    ]
    assert [run for run in written if run[0] != "drawn"] == [("phi_1", 1), ("phi_1", 2)]  # 0.5 is the default
    content = json.loads((tmp_path / "sweep" / "results.json").read_text(encoding="utf-8"))
    name = "trial" if data == "root" else "seed"
    assert [(r["value"], r[name], r["direction"], r["mAP"]) for r in content["records"]] == expected
    assert content["records"][0]["replaced"] == pytest.approx(100 * 2 / (13 if data == "root" else 14))
    assert content["settings"]["part_grid"] == [4, 3] if data == "root" else "part_grid" not in content["settings"]
    assert content["parameter"] == "phi"
    assert (tmp_path / "phi.svg").stat().st_size > 1000
    assert sorted(os.listdir(tmp_path / "sweep")) == ["phi_1", "results.json"]


# ------------------------------------------------------------------------------------------------ wrong options


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "one of the arguments --root --synthetic is required"),
        (["--root", "a", "--synthetic", "b"], "not allowed with argument"),
        (["--root", "a", "--seeds", "0"], "--seeds goes with --synthetic"),
        (["--synthetic", "a", "--trials", "1"], "--trials goes with --root"),
        (["--root", "a", "--trials", "1", "1"], r"--trials must name each once, got \[1, 1\]"),
        (["--synthetic", "a", "--seeds", "3", "3"], r"--seeds must name each once, got \[3, 3\]"),
        (["--root", "a", "--rows", "none"], "invalid choice: 'none'"),
        (["--root", "a", "--reuse", "nowhere"], "--reuse must name folders, found none at nowhere"),
        (["--root", "a", "--", "--phi", "0"], "unrecognized arguments: --phi 0"),  # CIFT has none
        (["sweep", "--root", "a", "--seeds", "0", "--parameter", "phi", "--values", "1"], "--seeds goes with"),
        (["sweep", "--root", "a", "--parameter", "colour", "--values", "1"], "must be an option of train_g2da.py"),
        (["sweep", "--root", "a", "--parameter", "phi", "--values", "nan"], "--values must be numbers, got 'nan'"),
    ],
)
def test_bad_options(capsys, given, message, written):
    with pytest.raises(SystemExit):
        g2da.main(given)
    assert re.search(message, capsys.readouterr().err)
    assert written == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--root", "a", "--variant", "CRI=--phi 0"], "a folder of its own, got 'CRI'"),
        (["--root", "a", "--variant", "a name"], "a variant must be name=options of train_g2da.py"),
        (["--root", "a", "--", "--trial", "2"], "--trial is set by this benchmark"),
        (["--synthetic", "a", "--", "--seed=2"], "--seed=2 is set by this benchmark"),
    ],
)
def test_bad_rows(tmp_path, given, message, written):
    with pytest.raises(ValueError, match=message):
        g2da.main([*given[:2], "--output", str(tmp_path / "out"), *given[2:]])
    assert written == []
    assert not (tmp_path / "out").exists()
