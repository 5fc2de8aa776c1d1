"""The command line: the figures of the library's own calls, the files it writes, and a message for each bad input."""

import csv
import inspect
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from places import EXAMPLES

pytest.importorskip("click", reason="needs the extra cli")
pytest.importorskip("tqdm", reason="needs the extra cli")

from click.testing import CliRunner

import vireid
from vireid import rerank as rerankers
from vireid.cli.app import vireid as command
from vireid.cli.options import METHODS
from vireid.data.features import load_features, save_features
from vireid.protocols import LLCM, SYSUMM01, RegDB
from vireid.protocols.report import Report

OPTIONS = {
    "aim": {"k1": 4, "k2": 2, "variant": "released"},
    "k_reciprocal": {"k1": 5, "k2": 3, "lambda_value": 0.2},
    "gnn": {"k1": 6, "k2": 3, "layers": 1, "alpha": 1.0},
    "sim": {"k1": 6, "k2": 4, "lambda_value": 0.1},
    "query_expansion": {"n": 3, "alpha": 3.0},
}
DIRECTIONS = ("visible_to_infrared", "infrared_to_visible")


def run(*arguments, code=0):
    """Standard output and error of the command; its exit code must be ``code``."""
    result = CliRunner().invoke(command, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def flags(options):
    return [x for name, value in options.items() for x in ("--" + name.replace("_", "-"), value)]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A SYSU-MM01 in small: 6 people, 6 cameras, 10 images each, in any order."""
    rng = np.random.default_rng(0)
    rows = np.array([(p, c, n) for p in range(1, 7) for c in range(1, 7) for n in range(1, 11)])
    ids, cameras, numbers = rng.permutation(rows).T
    x = rng.normal(size=(7, 16))[ids] + 1.2 * rng.normal(size=(len(ids), 16))
    names = [f"cam{c}/{p:04}/{n:04}.jpg" for p, c, n in zip(ids, cameras, numbers, strict=True)]
    path = tmp_path_factory.mktemp("features") / "strong_features.npz"
    modality = np.isin(cameras, (3, 6)).astype(np.int64)
    save_features(path, x.astype(np.float32), ids, modality, cameras, names=names)
    return path


@pytest.fixture
def changed(file, tmp_path):
    """A function that writes the file with other arrays (None: without)."""

    def write(**arrays):
        with np.load(file) as stored:
            content = {**stored} | arrays
        path = tmp_path / "changed.npz"
        np.savez(path, **{name: x for name, x in content.items() if x is not None})
        return path

    return write


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


# -- The table of methods ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_table_says_what_the_functions_take(method):
    function, entry = getattr(rerankers, method), METHODS[method]
    assert function.uses == ("gallery" if entry.fitted else "transductive")
    forms = [function] + ([getattr(rerankers, entry.fitted)] if entry.fitted else [])
    for form in forms:
        parameters = inspect.signature(form).parameters.values()
        keywords = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        defaults = {name: None if keywords[name] is inspect.Parameter.empty else keywords[name] for name in keywords}
        assert entry.options == {n: d for n, d in defaults.items() if n not in ("top", "use_query_relations")}


def test_the_help_names_every_option_and_default():
    text, _ = run("evaluate", "--help")
    text = " ".join(text.split())
    for method, entry in METHODS.items():
        assert method in text
        for name, default in entry.options.items():
            assert "--" + name.replace("_", "-") in text
            assert default is None or f"{method} [{default}]" in text
    for name in ("evaluate", "rerank"):
        assert name in run("--help")[0]
    assert "Examples:" in run("rerank", "--help")[0]
    assert run("--version")[0].strip() == vireid.__version__


def test_the_examples_of_the_help_are_accepted(file, tmp_path, monkeypatch):
    """Each example line parses: whatever stops it then is a file or the data, no option."""
    monkeypatch.chdir(tmp_path)
    for name in ("features", "trial1", "trial2", "trial3"):
        (tmp_path / f"{name}.npz").write_bytes(file.read_bytes())
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "rand_perm_cam.mat").write_bytes(b"")
    lines = [line.split() for c in (["evaluate"], ["rerank"], []) for line in run(*c, "--help")[0].splitlines()]
    examples = [line[1:] for line in lines if line[:1] == ["vireid"] and line[1] in ("evaluate", "rerank")]
    assert len(examples) > 8
    for example in examples:
        result = CliRunner().invoke(command, example)
        assert result.exit_code == (1 if "--permutations" in example else 0), (example, result.output)


# -- vireid evaluate -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["none", *METHODS])
def test_evaluate_gives_the_figures_of_the_library(method, file, tmp_path):
    f, x, ids, cameras, modality = tensors(file)
    options = OPTIONS.get(method, {})

    def ranked(query, gallery):
        return getattr(rerankers, method)(query, gallery, **options)

    if method != "none":
        ranked.uses = getattr(rerankers, method).uses
    how = {"rerank": None if method == "none" else ranked}
    places = torch.from_numpy(f.places())
    expected = {
        "regdb": Report.merge([RegDB(way).evaluate(x, ids, modality, **how) for way in DIRECTIONS]),
        "sysu-mm01": SYSUMM01(sampling="agw").evaluate(x, ids, modality, cameras, torch.from_numpy(f.numbers()), **how),
        "llcm": LLCM("infrared_to_visible").evaluate(x, ids, modality, cameras, places, **how),
    }
    more = {"regdb": [], "sysu-mm01": ["--sampling", "agw"], "llcm": ["--direction", "infrared_to_visible"]}
    for protocol, report in expected.items():
        output = tmp_path / f"{protocol}.json"
        arguments = [file, "--protocol", protocol, "--rerank", method, *flags(options), "--json", output]
        out, err = run("evaluate", *arguments, *more[protocol])
        assert err == ""
        saved = json.loads(output.read_text())
        assert saved["dataset"] == report.dataset
        assert_rows(saved["rows"], report.to_dict()["rows"])
        for row in saved["rows"]:
            assert (row["features"], row["rerank"]) == ("strong_features", method)
            assert row["parameters"] == options
            assert re.search(rf"{row['direction']} +strong_features +{method}.* {row['uses']} ", out)


@pytest.mark.parametrize("mode", ["all", "indoor"])
@pytest.mark.parametrize("shots", [1, 10])
def test_sysu_settings(mode, shots, file, tmp_path):
    f, x, ids, cameras, modality = tensors(file)
    report = SYSUMM01(mode, shots, "agw").evaluate(x, ids, modality, cameras, torch.from_numpy(f.numbers()))
    options = ["--mode", mode, "--shots", shots, "--sampling", "agw", "--json", tmp_path / "a.json"]
    out, _ = run("evaluate", file, "--protocol", "sysu-mm01", *options)
    saved = json.loads((tmp_path / "a.json").read_text())
    assert saved["dataset"] == report.dataset
    assert report.dataset in out
    assert_rows(saved["rows"], report.to_dict()["rows"])


def test_defaults_are_the_libraries_own(file, tmp_path):
    _, x, ids, _, modality = tensors(file)
    run("evaluate", file, "--protocol", "regdb", "--rerank", "k_reciprocal", "--json", tmp_path / "a.json")
    report = Report.merge([RegDB(w).evaluate(x, ids, modality, rerank=rerankers.k_reciprocal) for w in DIRECTIONS])
    saved = json.loads((tmp_path / "a.json").read_text())
    assert_rows(saved["rows"], report.to_dict()["rows"])
    assert saved["rows"][0]["parameters"] == METHODS["k_reciprocal"].options


def test_directions_csv_and_latex(file, tmp_path):
    base = ["evaluate", file, "--protocol", "llcm"]
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


def test_trials_of_regdb_are_joined(file, changed, tmp_path):
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
    assert "--protocol llcm takes one file, got 2." in run("evaluate", file, other, "--protocol", "llcm", code=2)[1]


def test_files_of_regdb_given_twice_or_of_other_sizes(file, changed):
    _, err = run("evaluate", file, file, *REGDB, code=2)
    assert "a file was given twice" in err
    with np.load(file) as stored:
        path = changed(**{name: x[:300] for name, x in stored.items()})
    _, err = run("evaluate", file, path, *REGDB)
    assert err.startswith("Note: the files hold different numbers of visible and infrared images: ")
    assert f"{file} 240 and 120" in err


def test_the_table_is_printed_before_a_write_that_fails(file, tmp_path, monkeypatch):
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


def test_a_folder_that_cannot_be_written_is_named_at_once(file, tmp_path, monkeypatch):
    access = os.access
    monkeypatch.setattr("os.access", lambda p, mode, **k: p != tmp_path and access(p, mode, **k))
    _, err = run("evaluate", file, *REGDB, "--json", tmp_path / "r.json", code=2)
    assert "must be in a folder that can be written to" in " ".join(err.split())


def test_safetensors_give_the_same(file, tmp_path):
    f = load_features(file)
    save_features(tmp_path / "strong_features.safetensors", f.features, f.ids, f.modality, f.cameras, names=f.names)
    base = ["--protocol", "sysu-mm01", "--sampling", "agw"]
    assert run("evaluate", tmp_path / "strong_features.safetensors", *base) == run("evaluate", file, *base)


def test_image_numbers_go_before_names(file, changed):
    f = load_features(file)
    base = ["--protocol", "sysu-mm01", "--sampling", "agw"]
    from_names, _ = run("evaluate", file, *base)
    from_numbers, _ = run("evaluate", changed(names=None, image_numbers=f.numbers()), *base)
    other, _ = run("evaluate", changed(image_numbers=11 - f.numbers()), *base)
    assert from_numbers.replace("changed", "strong_features").split() == from_names.split()
    assert other.split() != from_numbers.split()


def test_bars_go_to_standard_error_when_asked_for(file, tmp_path):
    base = ["evaluate", file, "--protocol", "llcm"]
    out, err = run(*base, "--progress")
    assert "trials: " in err
    assert "/20" in err
    assert (out, "") == run(*base)
    base = ["rerank", file, "--method", "none", "--output", tmp_path / "a.npz"]
    assert "queries: " in run(*base, "--progress")[1]
    assert run(*base)[1] == run(*base, "--no-progress")[1] == ""


# -- vireid rerank -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["none", *METHODS])
@pytest.mark.parametrize("query", ["infrared", "visible"])
def test_rerank_writes_the_nearest(method, query, file, tmp_path):
    f, x, _, _, modality = tensors(file)
    asked = 1 if query == "infrared" else 0
    rows, others = (modality == asked).nonzero().flatten(), (modality != asked).nonzero().flatten()
    options = OPTIONS.get(method, {})
    if method == "none":
        distance = 1 - torch.nn.functional.cosine_similarity(x[rows][:, None], x[others][None], dim=2)
    else:
        distance = getattr(rerankers, method)(x[rows], x[others], **options)
    order = distance.sort(dim=1, stable=True)

    arguments = ["--method", method, *flags(options), "--query", query, "--top", 7, "--output", tmp_path / "a.npz"]
    out, err = run("rerank", file, *arguments)
    assert err == ""
    assert out.startswith(method)
    assert f"{len(rows)} queries, 7 of {len(others)} gallery images each" in out
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        np.testing.assert_array_equal(found["query"], rows)
        np.testing.assert_allclose(found["distances"], order.values[:, :7], atol=2e-6)
        assert found["indices"].shape == (len(rows), 7)
        # The distance of the images named, looked up in the dense matrix: whatever the order of near ties.
        place = torch.full((len(x),), -1)
        place[others] = torch.arange(len(others))
        named = distance.gather(1, place[torch.from_numpy(found["indices"])])
        np.testing.assert_allclose(found["distances"], named, atol=2e-6)
        assert found["names"].tolist() == f.names


def test_rerank_in_blocks_of_queries(file, tmp_path, monkeypatch):
    base = ["rerank", file, "--method", "aim", "--k1", 4, "--k2", 2, "--output"]
    run(*base, tmp_path / "a.npz")
    monkeypatch.setattr("vireid.cli.rerank._BLOCK", 7)
    run(*base, tmp_path / "b.npz")
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        assert set(a.files) == {"query", "indices", "distances", "names"}
        for name in ("query", "indices", "names"):
            np.testing.assert_array_equal(a[name], b[name])
        np.testing.assert_allclose(a["distances"], b["distances"], atol=1e-6)  # a product's rounding


def test_rerank_as_csv(file, changed, tmp_path):
    base = ["--method", "query_expansion", "--n", 3, "--query", "visible", "--top", 4, "--output"]
    run("rerank", file, *base, tmp_path / "a.npz")
    run("rerank", file, *base, tmp_path / "a.csv")
    names = load_features(file).names
    with np.load(tmp_path / "a.npz") as found, open(tmp_path / "a.csv", newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
        assert [int(line["gallery"]) for line in lines] == found["indices"].flatten().tolist()
        assert [int(line["query"]) for line in lines] == np.repeat(found["query"], 4).tolist()
        assert [int(line["rank"]) for line in lines] == [1, 2, 3, 4] * len(found["query"])
        np.testing.assert_allclose([float(x["distance"]) for x in lines], found["distances"].flatten(), rtol=1e-4)
    for line in lines:
        assert (line["query_name"], line["gallery_name"]) == (names[int(line["query"])], names[int(line["gallery"])])
    run("rerank", changed(names=None), *base, tmp_path / "b.csv")
    assert (tmp_path / "b.csv").read_text().splitlines()[0] == "query,rank,gallery,distance"


def test_rerank_top_beyond_the_gallery_means_all(file, tmp_path):
    gallery = int((load_features(file).modality == 0).sum())
    for method in ("none", "query_expansion", "gnn"):
        run("rerank", file, "--method", method, "--top", 10**6, "--output", tmp_path / "a.npz")
        with np.load(tmp_path / "a.npz") as found:
            assert found["indices"].shape[1] == gallery
            assert (np.sort(found["indices"], axis=1) == np.flatnonzero(load_features(file).modality == 0)).all()


# -- Wrong options: exit code 2 ------------------------------------------------------------------------------------

SYSU, REGDB = ["--protocol", "sysu-mm01"], ["--protocol", "regdb"]


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
        ([*SYSU, "--direction", "both"], "--direction does not go with --protocol sysu-mm01."),
        ([*SYSU, "--shots", 3], "Invalid value for '--shots'"),
        (SYSU, "--sampling official needs --permutations"),
        ([*SYSU, "--sampling", "agw", "--permutations", __file__], "--permutations does not go with --sampling agw."),
        ([*REGDB, "--name", "a\nb"], "it must be text without control characters"),
        ([*SYSU, "--permutations", "nowhere.mat"], "'nowhere.mat' does not exist"),
        ([*REGDB, "--k1", 4], "--k1 does not go with --rerank none: it has no options."),
        ([*REGDB, "--rerank", "aim"], "--rerank aim needs --k1, --k2."),
        ([*REGDB, "--rerank", "aim", "--k1", 4], "--rerank aim needs --k2."),
        ([*REGDB, "--rerank", "aim", "--k1", 4, "--k2", 0], "Invalid value for '--k2'"),
        (
            [*REGDB, "--rerank", "aim", "--k1", 4, "--k2", 1, "--alpha", 1],
            "--alpha does not go with --rerank aim: its options are --k1, --k2, --variant.",
        ),
        ([*REGDB, "--rerank", "gnn", "--lambda-value", 0.3], "--lambda-value does not go with --rerank gnn"),
        ([*REGDB, "--rerank", "k_reciprocal", "--lambda-value", 2], "Invalid value for '--lambda-value'"),
        ([*REGDB, "--json", "report.csv"], "'report.csv' must end in .json."),
        ([*REGDB, "--csv", "none/report.csv"], "'none/report.csv' must be in an existing folder."),
    ],
)
def test_wrong_options_of_evaluate(options, text, file):
    _, err = run("evaluate", file, *options, code=2)
    assert text in " ".join(err.split())
    assert err.startswith("Usage: ")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--output", "a.npz"], "Missing option '--method'"),
        (["--method", "aim", "--k1", 4, "--k2", 1], "Missing option '--output'"),
        (["--method", "aim", "--output", "a.npz"], "--method aim needs --k1, --k2."),
        (["--method", "gnn", "--n", 4, "--output", "a.npz"], "--n does not go with --method gnn"),
        (["--method", "gnn", "--output", "a.txt"], "'a.txt' must end in .npz or .csv."),
        (["--method", "gnn", "--output", "none/a.npz"], "must be in an existing folder."),
        (["--method", "gnn", "--output", "a.npz", "--top", 0], "Invalid value for '--top'"),
        (["--method", "gnn", "--output", "a.npz", "--query", "both"], "Invalid value for '--query'"),
    ],
)
def test_wrong_options_of_rerank(options, text, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, err = run("rerank", file, *options, code=2)
    assert text in " ".join(err.split())
    assert not list(tmp_path.iterdir())


def test_the_feature_file_is_not_overwritten(changed):
    path = changed()
    before = path.read_bytes()
    _, err = run("rerank", path, "--method", "none", "--output", path, code=2)
    assert "is the feature file: name another output." in err
    assert path.read_bytes() == before


def test_a_missing_gpu_is_said(file, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--device cuda needs a GPU" in run("evaluate", file, *REGDB, "--device", "cuda", code=2)[1]


@pytest.mark.gpu
def test_on_a_gpu(file, tmp_path):
    options = ["--rerank", "aim", "--k1", 4, "--k2", 2]
    for protocol in ("regdb", "llcm"):
        for device in ("cpu", "cuda"):
            output = tmp_path / f"{device}.json"
            run("evaluate", file, "--protocol", protocol, *options, "--device", device, "--json", output)
        cpu, gpu = (json.loads((tmp_path / f"{d}.json").read_text())["rows"] for d in ("cpu", "cuda"))
        assert [row["mAP"] for row in gpu] == pytest.approx([row["mAP"] for row in cpu], abs=0.1)


# -- Bad data: exit code 1 and one line ----------------------------------------------------------------------------


def error(*arguments):
    """The one line on standard error."""
    out, err = run(*arguments, code=1)
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("Error: ")
    return err


def test_a_missing_file_is_a_wrong_argument(tmp_path):
    assert "does not exist" in run("evaluate", tmp_path / "a.npz", *REGDB, code=2)[1]


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
            ["--protocol", "llcm"],
            "cameras must be the data set's numbers 1 to 9, got 12",
        ),
        ({"names": None}, SYSU, "image_numbers or names must be in the feature file, got neither"),
        ({"names": None}, ["--protocol", "llcm"], "image_numbers or names must be in the feature file, got neither"),
        ({"names": np.full(360, "x")}, SYSU, "names must end in the image's number"),
        ({"names": np.full(360, "x1")}, SYSU, "changed.npz: image_numbers must be unique within identity and camera"),
        ({"names": np.full(360, "x1")}, SYSU, "no image_numbers, they were taken from its names"),
        ({"names": np.full(360, "x", dtype=object)}, SYSU, "changed.npz: names holds pickled objects"),
        ({"ids": np.arange(360)}, REGDB, "match"),
    ],
)
def test_bad_data_are_one_line(arrays, options, text, changed):
    sampling = ["--sampling", "agw"] if options == SYSU else []
    assert text in error("evaluate", changed(**arrays), *options, *sampling)


def test_other_files_are_one_line(file, tmp_path):
    (tmp_path / "a.npz").write_bytes(file.read_bytes()[:2000])
    assert "a.npz: is no .npz file, or cut short" in error("evaluate", tmp_path / "a.npz", *REGDB)
    (tmp_path / "a.txt").write_text("features")
    arguments = ["rerank", tmp_path / "a.txt", "--method", "none", "--output", tmp_path / "b.npz"]
    assert "path must end in .npz or .safetensors" in error(*arguments)
    (tmp_path / "perm.mat").write_bytes(b"no")
    assert "permutations must be the data set's rand_perm_cam.mat" in error(
        "evaluate", file, *SYSU, "--permutations", tmp_path / "perm.mat"
    )


def test_rerank_needs_both_modalities(changed, tmp_path):
    path = changed(modality=np.ones(360, int))
    text = error("rerank", path, "--method", "none", "--output", tmp_path / "b.npz")
    assert "modality must hold both, got 0 visible (0) and 360 infrared (1) images" in text
    assert not (tmp_path / "b.npz").exists()


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        (MemoryError(), "Error: out of memory\n"),
        (RuntimeError("[enforce fail]\n DefaultCPUAllocator: can't allocate memory: 8 bytes"), "can't allocate memory"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
@pytest.mark.parametrize("name", ["a.npz", "a.csv"])
def test_memory_and_disks(raised, text, name, file, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise raised

    monkeypatch.setattr(np, "savez", fails)
    monkeypatch.setattr("vireid.cli.rerank._write_csv", fails)
    assert text in error("rerank", file, "--method", "none", "--output", tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_mistake_of_ours_is_not_hidden(file, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr("vireid.cli.rerank._ranked", fails)
    with pytest.raises(RuntimeError, match="a bug"):
        run("rerank", file, "--method", "none", "--output", tmp_path / "a.npz")


# -- As a process --------------------------------------------------------------------------------------------------


def process(*arguments, **options):
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_the_module_runs(file, tmp_path):
    result = process("-m", "vireid", "evaluate", file, *REGDB, "--rerank", "query_expansion", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "query_expansion (n=5, alpha=0.0)  gallery" in result.stdout
    assert not list(tmp_path.iterdir())
    code = f"import sys; sys.argv = ['x', 'evaluate', {str(tmp_path)!r}, '--protocol', 'regdb']\n"
    result = process("-c", code + "from vireid.cli import main; main()")
    assert result.returncode == 2
    assert result.stderr.startswith("Usage: vireid evaluate ")


def test_the_help_loads_no_torch():
    code = "from vireid.cli.app import vireid; import sys; assert not {'torch', 'numpy'} & set(sys.modules)"
    result = process("-c", code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("missing", ["click", "tqdm"])
def test_without_the_extra(missing):
    code = f"import sys; sys.modules[{missing!r}] = None\nfrom vireid.cli import main\nmain()"
    result = process("-c", code)
    text = f"Error: the command line needs {missing}: pip install 'vireid[cli]'\n"
    assert (result.returncode, result.stdout, result.stderr) == (1, "", text)


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(
    ("sent", "code_of_exit", "text"), [(signal.SIGINT, 1, "Aborted!"), (signal.SIGTERM, 143, "")], ids=["INT", "TERM"]
)
def test_an_interrupt_leaves_no_file(sent, code_of_exit, text, file, tmp_path):
    """Stopped while the output is being written: nothing half-written stays, neither does the temporary file."""
    code = f"""
import signal, sys, time, numpy as np
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
def slow(stream, **arrays):
    stream.write(b"half")
    stream.flush()
    print("writing", flush=True)
    time.sleep(60)
np.savez = slow
sys.argv = ["vireid", "rerank", {str(file)!r}, "--method", "none", "--output", "a.npz"]
from vireid.cli import main
main()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with child:
        try:
            assert child.stdout.readline() == "writing\n"
            assert len(list(tmp_path.iterdir())) == 1
            child.send_signal(sent)
            _, err = child.communicate(timeout=50)  # it would sleep for 60
        finally:
            child.kill()
    assert child.returncode == code_of_exit
    assert err.strip() == text
    assert not list(tmp_path.iterdir())


# -- From the example's checkpoint to the command line -------------------------------------------------------------


def test_the_example_writes_what_the_command_line_reads(tmp_path, monkeypatch, capsys):
    pytest.importorskip("kornia", reason="needs the extra train")
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import common
    import evaluate
    import train_cift
    from vireid.data import generate_synthetic

    for name in ("cmc_curves", "ranked_lists"):
        monkeypatch.setattr(common, name, lambda *_, **__: None)

    def script(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        module.main()

    drawn = {"identities": 8, "images_per_camera": 3, "size": (48, 24)}
    regdb = generate_synthetic(tmp_path / "regdb", layout="regdb", **drawn)
    sysu = generate_synthetic(tmp_path / "sysu", layout="sysu", seed=5, **drawn)
    script(train_cift, "--dataset", "regdb", "--root", regdb, "--output", tmp_path / "run", "--accelerator", "cpu",
           "--size", 32, 16, "--epochs", 1, "--batches", 1, "--identities", 2, "--per-modality", 2, "--ablation",
           "baseline")  # fmt: skip
    base = ["--checkpoint", tmp_path / "run" / "checkpoint.pt", "--device", "cpu", "--output", tmp_path / "out"]
    permutations = ["--permutations", sysu / "exp" / "rand_perm_cam.mat"]
    for root, given, asked, ending in [
        (regdb, [], REGDB, ".npz"),
        (sysu, ["--sampling", "agw"], [*SYSU, "--sampling", "agw"], ".npz"),
        (sysu, ["--mode", "indoor"], [*SYSU, "--mode", "indoor", *permutations], ".safetensors"),
    ]:
        path = tmp_path / "new" / f"features{ending}"
        script(evaluate, *base, "--dataset", root.name, "--root", root, *given, "--save-features", path)
        expected = json.loads((tmp_path / "out" / "metrics.json").read_text())["rows"]
        run("evaluate", path, *asked, "--json", tmp_path / "a.json")
        assert_rows(json.loads((tmp_path / "a.json").read_text())["rows"], expected)
        found = load_features(path)
        assert found.metadata == {"trained_on": "regdb, trial 1"}
        for name, row in zip(found.names, range(len(found)), strict=True):
            assert (root / name).is_file()
            if root == sysu:
                assert name.startswith(f"cam{found.cameras[row]}/{found.ids[row]:04}/")
        assert (found.numbers() == found.image_numbers).all()
    with pytest.raises(SystemExit) as caught:
        script(evaluate, *base, "--save-features", tmp_path / "features.pt")
    assert caught.value.code == 2
    assert "--save-features must end in .npz or .safetensors" in capsys.readouterr().err
