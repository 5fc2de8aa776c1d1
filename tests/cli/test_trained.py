"""From images to figures: `vireid train`, `extract`, and `evaluate` of a checkpoint."""

import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("kornia", reason="needs the extra train")
pytestmark = pytest.mark.usefixtures("without_pictures")
pytest.importorskip("lightning_fabric", reason="needs the extra train")

from vireid.cli.train import changed
from vireid.data import generate_synthetic, load_features
from vireid.training import METHODS, RECIPES, Recipe, read_checkpoint

TINY = [
    x for value in ("size=32,16", "epochs=1", "batches=1", "identities=2", "per_modality=1") for x in ("--set", value)
]


@pytest.fixture(scope="module")
def roots(regdb, llcm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    sysu = generate_synthetic(folder / "sysu", layout="sysu", identities=6, images_per_camera=2, size=(48, 24))
    sysu10 = generate_synthetic(folder / "sysu10", layout="sysu", identities=4, images_per_camera=10, size=(32, 16))
    return {"regdb": regdb, "synthetic": regdb, "sysu": sysu, "sysu10": sysu10, "llcm": llcm}


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize(
    ("method", "dataset", "options", "ways"),
    [
        ("cift", "SYSU-MM01", ["--sampling", "agw"], ["backbone", "transferred"]),
        ("cift", "llcm", ["--ablation", "baseline"], ["backbone"]),
        ("saai", "regdb", ["--parts", 2], ["backbone", "backbone + AIM"]),
        ("g2da", "synthetic", [], ["graph"]),
        ("agw", "regdb", ["--ablation", "hct", "--transfer", "shared"], ["backbone", "transferred"]),
    ],
)
def test_each_data_set_is_trained_and_evaluated(run, method, dataset, options, ways, roots, tmp_path, monkeypatch):
    monkeypatch.setattr("vireid.training.datasets.generate_synthetic", lambda *_, **__: None)  # they are there
    name = "sysu" if dataset == "SYSU-MM01" else dataset
    where, rules = ["--root", roots[name]], options if name == "sysu" else []
    arguments = ["--dataset", dataset, *where, *options, *TINY, "--accelerator", "cpu", "--output", tmp_path / "run"]
    out, _ = run("train", method, *arguments)
    assert f"wrote {tmp_path / 'run' / 'metrics.json'}" in out
    found = metrics(tmp_path / "run")
    trained = name if name in ("sysu", "llcm") else f"{name}, trial 1"
    assert (found["dataset"], found["trained_on"]) == (name, trained)
    rows = [row["features"] + (f" + {row['rerank']}" if row["rerank"] != "none" else "") for row in found["rows"]]
    assert list(dict.fromkeys(rows)) == ways
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    state = read_checkpoint(checkpoint)
    expected = METHODS[method].recipe.replace(size=(32, 16), epochs=1, batches=1, identities=2, per_modality=1)
    assert Recipe(**state["recipe"]) == expected
    assert ("keypoints" in state["settings"]) == (method == "g2da")

    run("evaluate", checkpoint, *where, *rules, "--output", tmp_path / "again")
    assert (tmp_path / "again" / "metrics.json").read_bytes() == (tmp_path / "run" / "metrics.json").read_bytes()

    run("extract", checkpoint, *where, "--output", tmp_path / "x.npz")
    protocol = "regdb" if name == "synthetic" else name
    run("evaluate", tmp_path / "x.npz", "--protocol", protocol, *rules, "--json", tmp_path / "x.json")
    saved = json.loads((tmp_path / "x.json").read_text())["rows"]
    bare = [row for row in found["rows"] if row["features"] == ways[0] and row["rerank"] == "none"]
    assert [row["per_trial"] for row in saved] == [row["per_trial"] for row in bare]
    features = load_features(tmp_path / "x.npz")
    assert features.metadata == {"dataset": name, "trained_on": trained, "method": method}
    assert all((roots[name] / image).is_file() or name == "llcm" for image in features.names)


def test_a_run_goes_on_and_is_not_mixed_up(run, error, regdb, tmp_path):
    base = ["train", "cift", "--dataset", "regdb", "--root", regdb, "--ablation", "baseline", "--accelerator", "cpu"]
    base += [*TINY, "--output", tmp_path]
    assert "no checkpoint at" in run(*base, "--resume", code=1)[1]
    run(*base)
    run(*base, "--set", "epochs=2", "--resume", "--precision", "32-true")
    assert read_checkpoint(tmp_path / "checkpoint.pt")["epoch"] == 2
    assert "was trained with other settings (lr 0.001 -> 0.5)" in run(*base, "--set", "lr=0.5", code=1)[1]
    err = run(*base, "--set", "epochs=3", "--resume", "--trial", 2, code=1)[1]
    assert "trial 1 -> 2" in err


def test_a_papers_recipe_brings_its_settings_and_is_recorded(run, regdb, tmp_path):
    """With the small backbone, which the command line names before the recipe's ResNet-50."""
    base = ["train", "saai", "--recipe", "saai", "--backbone", "small", "--weights", "none", "--parts", 2, *TINY]
    base += ["--set", "flip_test=true", "--dataset", "regdb", "--root", regdb, "--accelerator", "cpu"]
    run(*base, "--output", tmp_path)
    state = read_checkpoint(tmp_path / "checkpoint.pt")
    changed = {"size": (32, 16), "epochs": 1, "batches": 1, "identities": 2, "per_modality": 1, "flip_test": True}
    assert Recipe(**state["recipe"]) == RECIPES["saai"].replace(**changed)
    settings = state["settings"]
    assert (settings["parts"], settings["backbone"], settings["weights"]) == (2, "small", "none")
    assert (settings["center_separation"], settings["normalize_centers"]) == (1.0, False)  # the recipe's
    found = metrics(tmp_path)
    assert found["recipe"] == json.loads(json.dumps(state["recipe"]))
    assert (found["recipe"]["name"], found["recipe"]["lr"]) == ("saai", 3.5e-4)
    assert {row["rerank"] for row in found["rows"]} == {"none", "AIM"}
    lines = dict(line.split("  ", 1) for line in run("info", tmp_path / "checkpoint.pt")[0].splitlines())
    assert lines["recipe"].strip().startswith("saai: size=(32, 16), epochs=1")

    again, options = tmp_path / "again", ["--root", regdb, "--output", tmp_path / "again"]
    run("evaluate", tmp_path / "checkpoint.pt", *options)
    assert (again / "metrics.json").read_bytes() == (tmp_path / "metrics.json").read_bytes()
    run("evaluate", tmp_path / "checkpoint.pt", *options, "--no-flip")
    assert (again / "metrics.json").read_bytes() != (tmp_path / "metrics.json").read_bytes()


def test_one_training_gives_all_tables_of_sysu(run, roots, tmp_path):
    rules = ["--mode", "both", "--shots", "both", "--sampling", "agw", "--root", roots["sysu10"]]
    options = ["--accelerator", "cpu", "--parts", 2, *TINY, "--output", tmp_path / "run"]
    out, _ = run("train", "saai", "--dataset", "sysu", *rules, *options)
    found, names = {}, ["all_single", "all_multi", "indoor_single", "indoor_multi"]
    for name in names:
        found[name] = metrics(tmp_path / "run" / name)
        mode, shots = name.split("_")
        assert found[name]["protocol"] == f"SYSU-MM01 {mode} {shots}-shot agw"
        assert out.count(found[name]["protocol"]) == 1
        k = {row["rerank"]: row["parameters"] for row in found[name]["rows"]}["AIM"]
        assert (k["k1"], k["k2"]) == ((20, 6) if shots == "multi" else (4, 1))  # the paper's for each
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    run("extract", checkpoint, "--root", roots["sysu10"], "--output", tmp_path / "x.npz")
    run(
        "evaluate",
        tmp_path / "x.npz",
        "--protocol",
        "sysu",
        *rules[:6],
        "--rerank",
        "aim",
        "--json",
        tmp_path / "b.json",
    )
    for name in names:
        rows = json.loads((tmp_path / f"b_{name}.json").read_text())["rows"]
        expected = [row["per_trial"] for row in found[name]["rows"] if row["rerank"] == "AIM"]
        assert [row["per_trial"] for row in rows] == expected


def test_recipes_are_changed_by_their_fields_types():
    values = ["lr=1/4", "batches=none", "batches=7", "nesterov=false", "milestones=1/2,0.75", "schedule=steps"]
    expected = {"lr": 0.25, "batches": 7, "nesterov": False, "milestones": (0.5, 0.75), "schedule": "steps"}
    shares = {"backbone": 0.1, "criterion.cri": 2.0}
    recipe = changed(Recipe(), (*values, "lr_shares=backbone:0.1,criterion.cri:2", "size=48,24"))
    assert recipe == Recipe(**expected, lr_shares=shares, size=(48, 24))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["cift", "--set", "speed=3"], "--set takes FIELD=VALUE with a field of size, epochs"),
        (["cift", "--set", "name=mine"], "--set takes FIELD=VALUE with a field of size, epochs"),
        (["cift", "--set", "settings=k:3"], "--set takes FIELD=VALUE with a field of size, epochs"),
        (["cift", "--set", "epochs=many"], "--set takes values such as epochs=20, got 'epochs=many'."),
        (["cift", "--set", "lr=-1"], "--set: lr must be at least 0 and finite, got -1.0."),
        (["cift", "--recipe", "secret"], "'secret' is not one of 'small', 'cift'"),
        (["cift", "--dataset", "regdb"], "--root must name the folder of --dataset regdb."),
        (["cift", "--dataset", "market"], "'market' is not one of sysu, regdb, llcm, synthetic"),
        (["cift", "--keypoints", "a"], "--keypoints does not go with a model of cift."),
        (["cift", "--ablation", "all"], "Invalid value for '--ablation'"),
        (["saai", "--dataset", "regdb", "--root", ".", "--shots", 1], "--shots does not go with --dataset regdb."),
        (["g2da", "--dataset", "regdb", "--root", "."], "--keypoints must name the key points of the images"),
        (
            ["g2da", "--part-grid", 4, 3, "--keypoints", "a"],
            "--keypoints must be left out with a grid",
        ),
        (["g2da", "--devices", 0], "Invalid value for '--devices'"),
    ],
)
def test_wrong_options_of_train(options, text, wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert text in wrong("train", *options)
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_named_before_training(error, regdb, tmp_path):
    base = ["train", "g2da", "--dataset", "regdb", *TINY, "--accelerator", "cpu", "--output", tmp_path / "run"]
    assert "nowhere" in error(*base, "--root", "nowhere", "--keypoints", "nowhere.npz")
    copy = Path(shutil.copytree(regdb, tmp_path / "copy"))
    (copy / "idx" / "test_visible_1.txt").unlink()
    assert "test_visible_1.txt does not exist" in error(*base, "--root", copy, "--keypoints", copy / "keypoints.npz")
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_loss_that_is_not_finite_is_one_line(run, regdb, tmp_path):
    base = ["train", "cift", "--dataset", "regdb", "--root", regdb, *TINY, "--accelerator", "cpu", "--output", tmp_path]
    _, err = run(*base, "--set", "lr=1e38", "--set", "optimizer=sgd", "--set", "batches=3", code=1)
    assert "is not finite in epoch 1" in err.splitlines()[-1]


def test_a_checkpoint_ranks_in_all_its_ways(run, saved, regdb, tmp_path):
    def parameters(name, *options):
        run("evaluate", saved[name], "--root", regdb, *options, "--json", tmp_path / "a.json")
        rows = json.loads((tmp_path / "a.json").read_text())["rows"]
        return {(row["features"], row["rerank"]): row["parameters"] for row in rows}

    cift = parameters("cift", "--rerank", "k_reciprocal", "--k1", 5, "--direction", "visible_to_infrared")
    settings = {"k1": 5, "k2": 6, "lambda_value": 0.3, "queries": "all"}
    assert cift["backbone", "k_reciprocal"] == cift["transferred", "k_reciprocal"] == settings
    assert set(cift) == {(x, y) for x in ("backbone", "transferred") for y in ("none", "k_reciprocal")}
    assert parameters("parts3", "--k2", 3)["backbone", "AIM"] == {"k1": 8, "k2": 3, "variant": "paper"}
    assert set(parameters("parts3", "--rerank", "none")) == {("backbone", "none")}


def test_other_images_than_those_of_the_training_are_said(run, saved, regdb, tmp_path):
    out, err = run("evaluate", saved["cift"], "--root", regdb, "--split", "all", "--flip")
    assert f"{saved['cift']}: cift, epoch 1, trained on regdb, trial 1" in out
    assert "its training identities are among these images" in err
    assert "its training identities" in run("evaluate", saved["cift"], "--root", regdb, "--trial", 3)[1]
    flipped, plain = tmp_path / "a.npz", tmp_path / "b.safetensors"
    run("extract", saved["cift"], "--root", regdb, "--flip", "--output", flipped)
    run("extract", saved["cift"], "--root", regdb, "--output", plain)
    a, b = (torch.from_numpy(load_features(path).features) for path in (flipped, plain))
    assert a.shape == b.shape
    assert not torch.allclose(a, b)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--protocol", "regdb"], "--protocol does not go with a checkpoint, whose data set says it."),
        (["--name", "x"], "--name does not go with a checkpoint."),
        ([], "--root must name the folder of --dataset regdb."),
        (["--root", ".", "--sampling", "agw"], "--sampling does not go with --dataset regdb."),
        (["--root", ".", "--keypoints", "x"], "--keypoints does not go with a model of cift."),
        (["--dataset", "sysu", "--direction", "both"], "--direction does not go with --dataset sysu."),
        (["OTHER"], "a checkpoint is evaluated by itself, got 2 files."),
    ],
)
def test_wrong_options_of_a_checkpoint(options, text, wrong, saved):
    assert text in wrong("evaluate", saved["cift"], *[saved["cells"] if x == "OTHER" else x for x in options])


def test_what_is_no_checkpoint_is_named(error, wrong, saved, tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(b"no")
    assert "a.pt is not a readable checkpoint" in error("evaluate", path)
    assert "must end in .npz or .safetensors" in wrong("extract", saved["cift"], "--output", tmp_path / "x.pt")
    state = torch.load(saved["cift"])
    torch.save(state | {"settings": {}}, path)
    assert "got a checkpoint of a model of one's own" in error("extract", path, "--output", tmp_path / "x.npz")
