"""`vireid evaluate` on feature files: the library's own figures, the files it writes, a message for each bad input."""

import csv
import functools
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from vireid import rerank as rerankers
from vireid.cli.app import vireid as command
from vireid.cli.rerankers import settings_of
from vireid.data.features import load_features, save_features
from vireid.protocols import DIRECTIONS, LLCM, SYSUMM01, RegDB, Report

SYSU, REGDB, LLCM_ = (["--protocol", name] for name in ("sysu", "regdb", "llcm"))


def tensors(file):
    f = load_features(file)
    x, ids, cameras, modality = (torch.from_numpy(y) for y in (f.features, f.ids, f.cameras, f.modality))
    return f, x, ids, cameras, modality


def assert_rows(found, expected):
    """The saved rows of two reports; their re-rankings may be named differently."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        for key in ("direction", "uses", "rank1", "rank5", "mAP", "mINP", "trials", "per_trial", "interval"):
            assert a[key] == b[key], key


def test_evaluate_gives_the_figures_of_the_library(run, reranking, file, tmp_path):
    f, x, ids, cameras, modality = tensors(file)
    method, settings, options = reranking

    def ranked(query, gallery):
        return getattr(rerankers, method)(query, gallery, **settings)

    if method != "none":
        ranked.uses = "gallery" if settings.get("queries") == "alone" else getattr(rerankers, method).uses
    how = {"rerank": None if method == "none" else ranked}
    places = torch.from_numpy(f.places())
    expected = {
        "regdb": Report.merge([RegDB(way).evaluate(x, ids, modality, **how) for way in DIRECTIONS]),
        "sysu": SYSUMM01(sampling="agw").evaluate(x, ids, modality, cameras, torch.from_numpy(f.numbers()), **how),
        "llcm": LLCM("infrared_to_visible").evaluate(x, ids, modality, cameras, places, **how),
    }
    more = {"regdb": [], "sysu": ["--sampling", "agw"], "llcm": ["--direction", "infrared_to_visible"]}
    for protocol, report in expected.items():
        output = tmp_path / f"{protocol}.json"
        arguments = [file, "--protocol", protocol, "--rerank", method, *options, "--json", output]
        out, err = run("evaluate", *arguments, *more[protocol])
        assert err == ""
        saved = json.loads(output.read_text())
        assert saved["dataset"] == report.dataset
        assert_rows(saved["rows"], report.to_dict()["rows"])
        for row in saved["rows"]:
            assert (row["features"], row["rerank"]) == ("strong_features", method)
            assert row["parameters"] == settings
            way = "strong_features" if method == "none" else rf"strong_features \+ {method} .*"
            assert re.search(rf"{row['direction']}: {way}; uses {row['uses']};", " ".join(out.split()))


@pytest.mark.parametrize(("mode", "shots", "name"), [("all", 10, "SYSU-MM01"), ("indoor", 1, "sysu-mm01")])
def test_settings_of_sysu_in_any_spelling(run, mode, shots, name, file, tmp_path):
    f, x, ids, cameras, modality = tensors(file)
    report = SYSUMM01(mode, shots, "agw").evaluate(x, ids, modality, cameras, torch.from_numpy(f.numbers()))
    options = ["--mode", mode, "--shots", shots, "--sampling", "agw", "--json", tmp_path / "a.json"]
    out, _ = run("evaluate", file, "--protocol", name, *options)
    saved = json.loads((tmp_path / "a.json").read_text())
    assert saved["dataset"] == report.dataset
    assert report.dataset in out
    assert max(map(len, out.splitlines())) <= 80
    assert_rows(saved["rows"], report.to_dict()["rows"])


def test_defaults_are_those_of_the_library_and_of_the_paper(run, file, tmp_path):
    sysu = [*SYSU, "--sampling", "agw"]
    for method, options, expected in (
        ("k_reciprocal", REGDB, settings_of("k_reciprocal")),
        ("aim", REGDB, {"k1": 8, "k2": 2, "variant": "paper"}),
        ("aim", [*LLCM_, "--k2", 3], {"k1": 8, "k2": 3, "variant": "paper"}),
        ("aim", sysu, {"k1": 4, "k2": 1, "variant": "paper"}),
        ("aim", [*sysu, "--shots", 10], {"k1": 20, "k2": 6, "variant": "paper"}),
        ("aim", [*REGDB, "--k1", "all"], {"k1": "all", "k2": 2, "variant": "paper"}),
    ):
        run("evaluate", file, *options, "--rerank", method, "--json", tmp_path / "a.json")
        assert json.loads((tmp_path / "a.json").read_text())["rows"][0]["parameters"] == expected


def test_all_of_the_gallery(run, file, tmp_path):
    """k1 of AIM may be all, and the report says so."""
    _, x, ids, _, modality = tensors(file)
    everything = functools.partial(rerankers.aim, k1=None, k2=2)
    expected = Report.merge([RegDB(way).evaluate(x, ids, modality, rerank=everything) for way in DIRECTIONS])
    out, _ = run("evaluate", file, *REGDB, "--rerank", "aim", "--k1", "all", "--json", tmp_path / "a.json")
    assert "aim (k1=all, k2=2, variant=paper)" in " ".join(out.split())
    assert_rows(json.loads((tmp_path / "a.json").read_text())["rows"], expected.to_dict()["rows"])


def test_directions_csv_and_latex(run, file, tmp_path):
    base = ["evaluate", file, *LLCM_]
    out, _ = run(
        *base, "--direction", "visible_to_infrared", "--csv", tmp_path / "a.csv", "--json", tmp_path / "a.json"
    )
    assert "infrared_to_visible" not in out
    row = json.loads((tmp_path / "a.json").read_text())["rows"][0]
    with open(tmp_path / "a.csv", newline="") as stream:
        (line,) = csv.DictReader(stream)
    assert (line["direction"], line["uses"], float(line["mAP"])) == ("visible_to_infrared", "query", row["mAP"])
    both, _ = run(*base, "--direction", "both")
    assert run(*base)[0] == both
    assert [both.count(way) for way in DIRECTIONS] == [1, 1]
    latex, _ = run(*base, "--latex")
    assert latex.startswith(r"\begin{tabular}")
    assert r"strong\_features & query &" in latex


def test_trials_of_regdb_are_joined(run, wrong, file, changed, tmp_path):
    """Two files become one row a direction, of two trials."""
    _, x, ids, _, modality = tensors(file)
    other = changed(features=x.flip(1).numpy()[torch.randperm(len(x))])
    y = torch.from_numpy(load_features(other).features)
    expected = [
        Report.merge([RegDB(way).evaluate(z, ids, modality, features_name="CIFT") for z in (x, y)])
        for way in DIRECTIONS
    ]
    run("evaluate", file, other, *REGDB, "--name", "CIFT", "--json", tmp_path / "a.json")
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert_rows(rows, [row for report in expected for row in report.to_dict()["rows"]])
    assert [(row["features"], row["trials"]) for row in rows] == [("CIFT", 2)] * 2
    assert "--protocol llcm takes one file, got 2." in wrong("evaluate", file, other, *LLCM_)


def test_files_of_regdb_given_twice_or_of_other_sizes(run, wrong, file, changed):
    assert "a file was given twice" in wrong("evaluate", file, file, *REGDB)
    with np.load(file) as stored:
        path = changed(**{name: x[:300] for name, x in stored.items()})
    _, err = run("evaluate", file, path, *REGDB)
    assert err.startswith("Note: the files hold different numbers of visible and infrared images: ")
    assert f"{file} 240 and 120" in err


def test_the_table_is_printed_before_a_write_that_fails(run, file, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    out, err = run("evaluate", file, *REGDB, "--json", tmp_path / "r.json", code=1)
    assert "visible_to_infrared" in out
    assert err == f"Error: [Errno 28] No space left on device: {str(tmp_path / 'r.json')!r}\n"


def test_the_report_is_written_although_nobody_reads_the_table(file, tmp_path, monkeypatch):
    def gone(*_, **__):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("vireid.cli.evaluate.click.echo", gone)
    CliRunner().invoke(command, ["evaluate", str(file), *REGDB, "--json", str(tmp_path / "r.json")])
    assert len(Report.load(tmp_path / "r.json").rows) == 2


def test_a_folder_that_cannot_be_written_is_named_at_once(wrong, file, tmp_path, monkeypatch):
    access = os.access
    monkeypatch.setattr("os.access", lambda p, mode, **k: p != tmp_path and access(p, mode, **k))
    assert "must be in a folder that can be written to" in wrong(
        "evaluate", file, *REGDB, "--json", tmp_path / "r.json"
    )


def test_safetensors_give_the_same(run, file, tmp_path):
    f = load_features(file)
    save_features(tmp_path / "strong_features.safetensors", f.features, f.ids, f.modality, f.cameras, names=f.names)
    base = [*SYSU, "--sampling", "agw"]
    assert run("evaluate", tmp_path / "strong_features.safetensors", *base) == run("evaluate", file, *base)


def test_image_numbers_go_before_names(run, file, changed):
    f = load_features(file)
    base = [*SYSU, "--sampling", "agw"]
    from_names, _ = run("evaluate", file, *base)
    from_numbers, _ = run("evaluate", changed(names=None, image_numbers=f.numbers()), *base)
    other, _ = run("evaluate", changed(image_numbers=11 - f.numbers()), *base)
    assert from_numbers.replace("changed", "strong_features").split() == from_names.split()
    assert other.split() != from_numbers.split()


def test_bars_go_to_standard_error_when_asked_for(run, file, tmp_path):
    base = ["evaluate", file, *LLCM_]
    out, err = run(*base, "--progress")
    assert "trials: " in err
    assert "/20" in err
    assert (out, "") == run(*base)
    base = ["rerank", file, "--rerank", "none", "--output", tmp_path / "a.npz"]
    assert "queries: " in run(*base, "--progress")[1]
    assert run(*base)[1] == run(*base, "--no-progress")[1] == ""


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "Missing option '--protocol'"),
        (["--protocol", "market"], "Invalid value for '--protocol'"),
        ([*REGDB, "--rerank", "magic"], "Invalid value for '--rerank'"),
        ([*REGDB, "--nonsense"], "No such option"),
        ([*REGDB, "--shots", 1], "--shots does not go with --protocol regdb."),
        ([*REGDB, "--sampling", "agw"], "--sampling does not go with --protocol regdb."),
        (["--protocol", "llcm", "--mode", "all"], "--mode does not go with --protocol llcm."),
        ([*SYSU, "--direction", "both"], "--direction does not go with --protocol sysu."),
        ([*SYSU, "--shots", 3], "Invalid value for '--shots'"),
        (SYSU, "--sampling official needs --permutations"),
        ([*SYSU, "--sampling", "agw", "--permutations", __file__], "--permutations does not go with --sampling agw."),
        ([*REGDB, "--name", "a\nb"], "it must be text without control characters"),
        ([*SYSU, "--permutations", "nowhere.mat"], "'nowhere.mat' does not exist"),
        ([*REGDB, "--k1", 4], "--k1 does not go with --rerank none: it has no options."),
        ([*REGDB, "--dataset", "regdb"], "--dataset does not go with feature files."),
        ([*REGDB, "--split", "all"], "--split does not go with feature files."),
        ([*REGDB, "--flip"], "--flip does not go with feature files."),
        ([*REGDB, "--rerank", "aim", "--k1", 4, "--k2", 0], "Invalid value for '--k2'"),
        (
            [*REGDB, "--rerank", "aim", "--k1", 4, "--k2", 1, "--alpha", 1],
            "--alpha does not go with --rerank aim: its options are --k1, --k2, --variant.",
        ),
        ([*REGDB, "--rerank", "sim", "--k1", "all"], "--k1 all does not go with --rerank sim, only with aim."),
        ([*REGDB, "--rerank", "aim", "--k1", "most"], "Invalid value for '--k1'"),
        ([*REGDB, "--rerank", "gnn", "--lambda-value", 0.3], "--lambda-value does not go with --rerank gnn"),
        ([*REGDB, "--rerank", "k_reciprocal", "--lambda-value", 2], "Invalid value for '--lambda-value'"),
        ([*REGDB, "--json", "report.csv"], "'report.csv' must end in .json."),
        ([*REGDB, "--csv", "none/report.csv"], "'none/report.csv' must be in an existing folder."),
    ],
)
def test_wrong_options_of_evaluate(wrong, options, text, file):
    message = wrong("evaluate", file, *options)
    assert text in message
    assert message.startswith("Usage: ")


def test_a_missing_gpu_is_said(wrong, file, monkeypatch):
    for kind, name in ((torch.cuda, "cuda"), (torch.backends.mps, "mps")):
        monkeypatch.setattr(kind, "is_available", lambda: False)
        assert f"--device {name} needs a GPU" in wrong("evaluate", file, *REGDB, "--device", name)


@pytest.mark.gpu
def test_on_a_gpu(run, file, tmp_path):
    options = ["--rerank", "aim", "--k1", 4, "--k2", 2]
    for protocol in ("regdb", "llcm"):
        for device in ("cpu", "cuda"):
            output = tmp_path / f"{device}.json"
            run("evaluate", file, "--protocol", protocol, *options, "--device", device, "--json", output)
        cpu, gpu = (json.loads((tmp_path / f"{d}.json").read_text())["rows"] for d in ("cpu", "cuda"))
        assert [row["mAP"] for row in gpu] == pytest.approx([row["mAP"] for row in cpu], abs=0.1)


def test_a_missing_file_is_a_wrong_argument(wrong, tmp_path):
    assert "does not exist" in wrong("evaluate", tmp_path / "a.npz", *REGDB)


@pytest.mark.parametrize(
    ("arrays", "options", "text"),
    [
        ({"ids": None}, REGDB, "changed.npz: must hold the arrays features, ids, modality, cameras, misses ids"),
        ({"ids": np.arange(3)}, REGDB, "changed.npz: ids must have shape (360,)"),
        ({"features": np.full((360, 4), np.nan)}, REGDB, "changed.npz: features must be finite"),
        ({"features": np.zeros((0, 4))}, REGDB, "changed.npz: features must hold at least one image"),
        ({"modality": np.full(360, 2)}, REGDB, "changed.npz: modality must be 0 (visible) or 1 (infrared), got 2"),
        (
            {"modality": np.zeros(360, int)},
            REGDB,
            "changed.npz: modality must hold both, got 360 visible (0) and 0 infrared (1)",
        ),
        ({"modality": np.zeros(360, int)}, SYSU, "modality must be 1 (infrared) for SYSU-MM01's cameras 3 and 6"),
        ({"cameras": np.full(360, 7)}, SYSU, "cameras must be the data set's numbers 1 to 6, got 7"),
        (
            {"cameras": np.full(360, 12)},
            LLCM_,
            "cameras must be the data set's numbers 1 to 9, got 12",
        ),
        ({"names": None}, SYSU, "image_numbers or names must be in the feature file, got neither"),
        ({"names": None}, LLCM_, "image_numbers or names must be in the feature file, got neither"),
        ({"names": np.full(360, "x")}, SYSU, "names must end in the image's number"),
        ({"names": np.full(360, "x1")}, SYSU, "changed.npz: image_numbers must be unique within identity and camera"),
        ({"names": np.full(360, "x1")}, SYSU, "no image_numbers, they were taken from its names"),
        ({"names": np.full(360, "x", dtype=object)}, SYSU, "changed.npz: names holds pickled objects"),
        ({"ids": np.arange(360)}, REGDB, "match"),
    ],
)
def test_bad_data_are_one_line(error, arrays, options, text, changed):
    sampling = ["--sampling", "agw"] if options == SYSU else []
    assert text in error("evaluate", changed(**arrays), *options, *sampling)


def test_features_of_another_data_set_are_one_line(run, error, changed):
    known = changed(metadata=np.array('{"dataset": "SYSU-MM01"}'))
    for options, name in ((REGDB, "RegDB"), (LLCM_, "LLCM")):
        assert f"features must be of {name}, got a file of the data set 'SYSU-MM01'" in error(
            "evaluate", known, *options
        )
    run("evaluate", known, *SYSU, "--sampling", "agw")


def test_other_files_are_one_line(error, file, tmp_path):
    (tmp_path / "a.npz").write_bytes(file.read_bytes()[:2000])
    assert "a.npz: is no .npz file, or cut short" in error("evaluate", tmp_path / "a.npz", *REGDB)
    (tmp_path / "a.txt").write_text("features")
    arguments = ["rerank", tmp_path / "a.txt", "--rerank", "none", "--output", tmp_path / "b.npz"]
    assert "path must end in .npz or .safetensors" in error(*arguments)
    (tmp_path / "perm.mat").write_bytes(b"no")
    assert "permutations must be the data set's rand_perm_cam.mat" in error(
        "evaluate", file, *SYSU, "--permutations", tmp_path / "perm.mat"
    )
