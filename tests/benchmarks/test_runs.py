"""Runs of the tables: options, folders, states, processes, the options that are refused."""

import os
import re
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.tables import cift, g2da, options, papers, runs, saai
from benchmarks.tables.data import Data
from benchmarks.tables.options import Plan
from vireid.training import METHODS, RECIPES, read_checkpoint


def one(tmp_path, *given, method="cift", row="a", dataset="regdb"):
    where = {"data": Data(dataset, Path("data")), "output": tmp_path, "trials": [1]}
    return runs.make_runs({row: Plan(row, method, given)}, [], **where)[0]


def test_options_are_the_methods_settings_and_the_recipes():
    given = "--ablation gft --tau-het 0.4 --detach-values --alignment 1 --part-grid 6 2"
    settings, recipe = options.read_options("cift", f"{given} --epochs 3 --size 96 48 --seed 5".split())
    expected = {"ablation": "gft", "tau_het": 0.4, "detach_values": True, "alignment": 1.0, "part_grid": [6, 2]}
    assert settings == expected
    assert recipe == METHODS["cift"].recipe.replace(epochs=3, size=(96, 48), seed=5)
    assert options.read_options("saai", ["--no-amend", "--affinity-loss", "1"])[0] == {
        "amend": False,
        "affinity_loss": 1,
    }
    settings, recipe = options.read_options("g2da", ["--no-two-stream", "--graph-lr", "1", "--structure", "square"])
    assert settings == {"two_stream": False, "structure": "square"}
    assert recipe.lr_shares == {"attention": 1, "aggregation": 1}
    assert options.read_options("g2da", [])[1].lr_shares == {"attention": 0.03, "aggregation": 0.03}


def test_runs_are_every_row_of_every_trial_with_its_options(tmp_path):
    variants = options.parse_variants("cift", ["Other τ=--tau-hom 0.2"], cift.ROWS)
    assert variants == {"other_τ": Plan("Other τ", "cift", ("--tau-hom", "0.2"))}
    plans = {row: cift.ROWS[row] for row in ("baseline", "cri")} | variants
    made = runs.make_runs(plans, ["--k", "3"], data=Data("regdb", Path("data")), output=tmp_path, trials=[2, 5])
    assert [(run.trial, run.row) for run in made] == [(trial, row) for trial in (2, 5) for row in plans]
    for run in made:
        assert run.folder == tmp_path / run.row / str(run.trial)
        assert (run.kept["dataset"], run.kept["trial"], run.kept["k"]) == ("regdb", run.trial, 3)
        assert run.kept["tau_hom"] == (0.2 if run.row == "other_τ" else 0.4)
        assert (run.recipe.seed, run.kept["root"]) == (0, str(Path("data").resolve()))
    assert str(made[0]) == "row baseline, trial 2"


def test_every_method_takes_the_recipe_of_its_paper_and_its_settings(tmp_path):
    where = {"data": Data("sysu", tmp_path), "output": tmp_path, "trials": [0], "recipe": "paper"}
    rows = {row: papers.PLANS[row] for row in ("cift", "saai", "saai_id", "g2da", "hc_h2ft")}
    made = {run.row: run for run in runs.make_runs(rows, ["--size", "64", "32"], changes=["lr=0.5"], **where)}
    for row, run in made.items():
        expected = RECIPES[rows[row].method].replace(lr=0.5, size=(64, 32), seed=0)
        assert (run.recipe, run.settings["backbone"], run.settings["weights"]) == (expected, "resnet50", "imagenet")
    weights = {row: made[row].settings["center_separation"] for row in ("saai", "saai_id")}
    assert weights == {"saai": 1.0, "saai_id": 0.0}  # the row's own options win
    assert made["hc_h2ft"].settings["transfer"] == "h2ft"


def test_synthetic_runs_differ_by_their_seed_and_have_key_points(tmp_path):
    where = {"data": Data("synthetic", Path("people")), "output": tmp_path, "trials": [4, 0]}
    plans = {row: g2da.ROWS[row] for row in ("g2da", "saai_ot")}
    made = runs.make_runs(plans, [], **where)
    assert [(run.row, run.recipe.seed) for run in made] == [(row, seed) for seed in (4, 0) for row in plans]
    assert {(run.data.dataset, run.kept["trial"], run.kept.get("part_grid")) for run in made} == {
        ("synthetic", 1, None)
    }
    assert str(made[0]) == "row g2da, seed 4"
    assert one(tmp_path, method="g2da").kept["part_grid"] == [4, 3]
    assert one(tmp_path, "--part-grid", "6", "2", method="g2da").kept["part_grid"] == [6, 2]
    for option in ("--seed", "--seed=2"):
        with pytest.raises(ValueError, match="--seed is set by this benchmark"):
            runs.make_runs(plans, [option, "2"][: 1 + ("=" not in option)], **where)


def test_the_rows_train_what_they_say(tmp_path):
    def settings(table, *names):
        made = runs.make_runs(table, [], data=Data("regdb", tmp_path), output=tmp_path, trials=[1])
        return {run.row: (run.method, *(run.settings.get(name) for name in names)) for run in made}

    assert settings(cift.ROWS, "ablation") == {row: ("cift", row) for row in ("baseline", "gft", "ubs", "h2g", "cri")}
    names = ("ablation", "part_diversity", "center_separation", "affinity_loss", "amend", "transfer")
    assert settings(saai.ROWS, *names) == {
        "baseline": ("saai", "baseline", 0.5, 0.2, 0, True, False),  # the ablation leaves the losses out
        "saai_id": ("saai", "saai", 0, 0, 0, True, False),
        "saai_id_pd": ("saai", "saai", 0.5, 0, 0, True, False),
        "saai_id_cs": ("saai", "saai", 0, 0.2, 0, True, False),
        "saai": ("saai", "saai", 0.5, 0.2, 0, True, False),
        "saai_affinity": ("saai", "saai", 0.5, 0.2, 0.2, True, False),
        "saai_affinity_control": ("saai", "saai", 0.5, 0.2, 0.2, False, False),
        "saai_cift": ("saai", "saai", 0.5, 0.2, 0, True, True),
    }
    assert settings(g2da.ROWS, "ablation", "part_grid", "alignment") == {
        **{row: ("g2da", row, [4, 3], None) for row in ("baseline", "ot", "cl", "graph", "g2da")},
        "cri": ("cift", "cri", None, None),
        "cri_ot": ("cift", "cri", None, 1.0),
        "saai": ("saai", "saai", None, None),
        "saai_ot": ("saai", "saai", None, 1.0),
    }


def test_states_of_a_run(tmp_path, written):
    run = one(tmp_path, "--epochs", "3")
    checkpoint, features = run.folder / "checkpoint.pt", run.folder / "features.npz"
    assert runs.state_of(run) == "new"
    runs.train(run)
    os.utime(checkpoint, (1, 1))
    assert runs.state_of(run) == "complete"
    os.utime(features, (0, 0))
    assert runs.state_of(run) == "interrupted"  # features older than the checkpoint
    runs.train(run)
    features.unlink()
    assert runs.state_of(run) == "interrupted"
    runs.train(run)
    torch.save(read_checkpoint(checkpoint) | {"epoch": 2}, checkpoint)
    os.utime(checkpoint, (1, 1))
    assert runs.state_of(run) == "interrupted"  # an epoch is missing
    for other, change in (
        (one(tmp_path, "--epochs", "4", "--k", "7"), "epochs 3 -> 4, k 4 -> 7"),
        (one(tmp_path, "--epochs", "3", method="saai"), "method 'cift' -> 'saai'"),
        (one(tmp_path, "--epochs", "3", dataset="synthetic"), "dataset 'regdb' -> 'synthetic', seed 0 -> 1"),
    ):
        with pytest.raises(ValueError, match=f"other settings .*{change}"):
            runs.state_of(other)
        assert runs.reuse(other, [tmp_path / "a"]) is other
    again = one(tmp_path / "new", "--epochs", "3")
    assert runs.reuse(again, [tmp_path / "a"]) is again  # not complete
    runs.train(run)
    assert runs.reuse(again, [tmp_path / "none", tmp_path / "a"]).folder == run.folder


def test_a_run_that_fails_shows_the_end_of_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (tmp_path / "python").write_text("#!/bin/sh\necho it went wrong\nexit 3\n")
    (tmp_path / "python").chmod(0o755)
    run = one(tmp_path)
    with pytest.raises(RuntimeError, match=r"row a, trial 1 failed \(exit status 3\)(.|\n)*it went wrong"):
        runs.train_all([run], 1)
    assert (run.folder / "run.json").exists()


SWEEP = ["sweep", "--root", "a", "--parameter"]


@pytest.mark.parametrize(
    ("table", "given", "message"),
    [
        (saai, ["--root", "a", "--jobs", "0"], "--jobs must be at least 1, got 0"),
        (saai, ["--root", "a", "--trials", "1", "1"], r"--trials must name each once, got \[1, 1\]"),
        (saai, ["--root", "a", "--rows", "none"], "invalid choice: 'none'"),
        (saai, ["--root", "a", "--quote", "nowhere.csv"], "--quote must be a file of results, found none at nowhere"),
        (saai, ["--root", "a", "--", "--parts", "x"], "argument --parts: invalid int value: 'x'"),
        (saai, ["--root", "a", "--", "--trial", "2"], "unrecognized arguments: --trial 2"),
        (saai, [*SWEEP, "color", "--values", "1"], "--parameter must be a setting of saai"),
        (saai, [*SWEEP, "parts", "--values", "few"], "--values must be numbers, got 'few'"),
        (saai, [*SWEEP, "parts", "--values", "3", "3"], "--values must name each once"),
        (g2da, ["--root", "nowhere"], "--root must be a folder, found none at nowhere"),
        (g2da, [], "--root must name the folder of the data set, or --dataset be synthetic"),
        (g2da, ["--synthetic", "a", "--dataset", "sysu"], "--synthetic must be left out with --dataset sysu"),
        (g2da, ["--root", "a", "--keypoints", "nowhere"], "--keypoints must be a file or a folder, found none at now"),
        (g2da, ["--root", "a", "--set", "epochs"], "--set takes values such as epochs=20, got 'epochs'"),
        (g2da, ["--root", "a", "--set", "lr=-1"], "--set: lr must be at least 0 and finite, got -1.0"),
        (g2da, ["--root", "a", "--set", "color=1"], "--set takes FIELD=VALUE with a field of size, epochs"),
        (saai, ["--root", "a", "--dataset", "sysu"], "--dataset must be regdb or synthetic"),
        (g2da, ["--root", "a", "--synthetic", "b"], "not allowed with argument"),
        (g2da, ["--root", "a", "--seeds", "0"], "--seeds goes with SYSU-MM01 and synthetic data"),
        (
            g2da,
            ["--synthetic", "a", "--trials", "1"],
            "--trials goes with RegDB; the runs on synthetic differ by --seeds",
        ),
        (g2da, ["--synthetic", "a", "--seeds", "3", "3"], r"--seeds must name each once, got \[3, 3\]"),
        (g2da, ["--root", "a", "--reuse", "nowhere"], "--reuse must name folders, found none at nowhere"),
        (g2da, ["--root", "a", "--", "--phi", "0"], "unrecognized arguments: --phi 0"),  # CIFT has none
        (g2da, ["sweep", "--root", "a", "--seeds", "0", "--parameter", "phi", "--values", "1"], "--seeds goes with"),
        (g2da, [*SWEEP, "phi", "--values", "nan"], "--values must be numbers, got 'nan'"),
    ],
)
def test_wrong_options_end_a_table_before_anything_runs(table, given, message, written, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(saai, "write_validation_split", lambda data, *args: (data, 1))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(SystemExit):
        table.main(given)
    assert re.search(message, capsys.readouterr().err)
    assert written == []


@pytest.mark.parametrize(
    ("table", "variant", "message"),
    [
        (cift, "no options", "a variant must be name=options of cift, got 'no options'"),
        (cift, "CRI=--k 2", "a folder of its own, got 'CRI'"),
        (saai, "Validation=--parts 3", "a folder of its own, got 'Validation'"),
        (g2da, "a=", "a variant must be name=options of g2da"),
    ],
)
def test_wrong_variants(table, variant, message, tmp_path, written):
    with pytest.raises(ValueError, match=message):
        table.main(["--root", str(tmp_path), "--output", str(tmp_path / "out"), "--variant", variant])
    assert written == []
    assert not (tmp_path / "out").exists()
