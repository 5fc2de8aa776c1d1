"""Every example as a user runs it, on a few drawn people."""

import importlib.util
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from places import EXAMPLES
from vireid.data import generate_synthetic
from vireid.rerank import AIM
from vireid.training import (
    METHODS,
    build,
    evaluate,
    extract_features,
    fit,
    launch,
    load_checkpoint,
    open_dataset,
    ranking_ways,
)

needs_lightning = pytest.mark.skipif(
    importlib.util.find_spec("pytorch_lightning") is None, reason="pytorch-lightning is not installed"
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen people, half of them to train on."""
    root = tmp_path_factory.mktemp("data") / "synthetic"
    return generate_synthetic(root, layout="regdb", identities=16, images_per_camera=2, size=(64, 32))


@pytest.fixture
def run(drawn, tmp_path, monkeypatch, capsys):
    """Runs a script in an empty folder and gives what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vireid.data.generate_synthetic", lambda *_, **__: drawn)
    monkeypatch.setattr("vireid.training.datasets.generate_synthetic", lambda *_, **__: drawn)
    monkeypatch.setattr("vireid.training.datasets.SYNTHETIC_ROOT", drawn)

    def script(name, *options):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, options)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return script


def test_minimal_is_short_and_prints_a_row_per_way_to_rank(run):
    assert len((EXAMPLES / "minimal.py").read_text().splitlines()) <= 60
    out = run("minimal")
    assert out.count("visible_to_infrared: backbone") == 2
    assert "H2FT" in out
    assert "epoch 2: ce " in out


def test_a_model_of_ones_own_is_trained_evaluated_and_read_again(run, tmp_path):
    out = run("own_backbone")
    assert out.count("_to_") == 4
    assert (tmp_path / "runs/own_backbone/checkpoint.pt").is_file()


def test_features_of_other_code_are_re_ranked(run):
    out = run("rerank_features")
    assert all(f": mine{name};" in out for name in ("", " + AIM (k1=8, k2=2)", " + k-reciprocal (k1=20, k2=6)"))
    assert "identity 0: its five nearest are of [" in out


def test_features_of_other_code_need_no_extra():
    code = f"""
import runpy, sys
for package in ("PIL", "kornia", "lightning_fabric", "matplotlib", "tqdm", "click"):
    sys.modules[package] = None
runpy.run_path({str(EXAMPLES / "rerank_features.py")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("method", ["cift", "saai", "g2da"])
def test_a_training_script_wires_its_method_and_writes_what_it_found(method, run, drawn, tmp_path):
    """Its model is the one of the method's default settings, and the checkpoint gives the same figures again."""
    out = run(f"train_{method}", "--epochs", 1, "--batches", 2, "--root", drawn, "--output", tmp_path / method)
    found = json.loads((tmp_path / method / "metrics.json").read_text())
    assert {path.name for path in (tmp_path / method).iterdir()} == {
        *("checkpoint.pt", "logs", "metrics.json", "cmc.png", "ranked.png")
    }
    assert (found["dataset"], found["trained_on"]) == ("synthetic", "synthetic, trial 1")
    again = load_checkpoint(tmp_path / method / "checkpoint.pt")
    recipe = METHODS[method].recipe.replace(epochs=1, batches=2)
    assert (again.method, again.recipe) == (method, recipe)
    points = drawn / "keypoints.npz" if method == "g2da" else None
    data = {split: open_dataset("synthetic", split, size=(64, 32), keypoints=points) for split in ("train", "test")}
    features = extract_features(again.model, data["test"])
    ways = ranking_ways(again.model, {"AIM": AIM(k1=8, k2=2)} if method == "saai" else None)
    report = evaluate(data["test"], features, ways)
    assert found["rows"] == report.to_dict()["rows"]
    assert all(row.features in out for row in report.rows)

    fabric = launch(recipe, accelerator="cpu")
    model = fit(*build(method, 8, recipe.size), data["train"], recipe=recipe, fabric=fabric)
    assert torch.equal(extract_features(model, data["test"]), features)


@needs_lightning
@pytest.mark.filterwarnings("ignore:`isinstance")  # of its own use of PyTorch
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_lightnings_trainer_trains(run):
    assert "visible_to_infrared: backbone" in run("lightning_module")
