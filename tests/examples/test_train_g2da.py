"""train_g2da.py as a user runs it, on a few drawn people, and G2DA's alignment in the other scripts."""

import argparse
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_examples import DRAWN, EXAMPLES, assert_same, load, read_metrics, run, tiny
from torch import Tensor
from torch.testing import assert_close

import common
import evaluate
import train_cift
import train_g2da
import train_saai
import training
from vireid.data import EvalTransform, KeypointSample, generate_synthetic, load_keypoints, save_keypoints
from vireid.losses import graph_ot_loss
from vireid.models import BaselineOutput
from vireid.nn import TwoStream, gaussian_heatmaps, part_grid

BASE, FULL = {"ce", "triplet", "total"}, {"ce", "triplet", "transport", "contrastive", "graph", "total"}
GRID = ("--part-grid", 2, 2)


@pytest.fixture(scope="module")
def regdb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_synthetic(tmp_path_factory.mktemp("data") / "regdb", layout="regdb", identities=8, **DRAWN)


@pytest.fixture(scope="module")
def trained(regdb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a run of two epochs with key points; not to be written into."""
    output = tmp_path_factory.mktemp("runs") / "g2da"
    run(train_g2da, *tiny(regdb, output, "--keypoints", regdb / "keypoints.npz"), pictures=True)
    return output


def parsed(script: Any, *options: object) -> argparse.Namespace:
    """The options as a script reads them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, options)])
        return script.parse_arguments()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[training.Step, tuple[Tensor, ...], dict[str, Tensor]]]:
    """What each training step was, was given and found."""
    seen = []
    forward = training.Step.forward

    def recorded(self: Any, *batch: Tensor) -> dict[str, Tensor]:
        found = forward(self, *batch)
        seen.append((self, batch, found))
        return found

    monkeypatch.setattr(training.Step, "forward", recorded)
    return seen


def test_the_command_line_trains_then_evaluates(tmp_path):
    """Both as processes on drawn people, every warning an error; the same bytes."""
    generate_synthetic(tmp_path / "people", layout="regdb", identities=8, **DRAWN)
    sizes = ["--size", "32", "16", "--epochs", "1", "--batches", "2", "--identities", "2", "--per-modality", "2"]
    data = ["--dataset", "regdb", "--root", "people", "--keypoints", "people/keypoints.npz"]
    for script, options in (
        ("train_g2da.py", [*data, *sizes, "--accelerator", "cpu"]),
        ("evaluate.py", ["--checkpoint", "runs/g2da/checkpoint.pt", *data[2:], "--device", "cpu"]),
    ):
        command = [sys.executable, "-W", "error", str(EXAMPLES / script), *options]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert "graph     none" in result.stdout
    metrics = (tmp_path / "runs" / "g2da" / "metrics.json").read_bytes()
    assert (tmp_path / "runs" / "evaluation" / "metrics.json").read_bytes() == metrics


def test_features_are_those_of_each_images_own_key_points(trained, regdb):
    """metrics.json's features anew, image by image."""
    import trained as checkpoints

    model, method, config, epoch = checkpoints.open_model(trained / "checkpoint.pt", "cpu")
    assert (method.name, epoch) == ("g2da", 2)
    arguments = argparse.Namespace(dataset="regdb", root=regdb, trial=1, no_cache=False, workers=0,
                                   keypoints=regdb / "keypoints.npz")  # fmt: skip
    data = common.open_dataset(arguments, "test", (32, 16))
    features = common.extract_features(model, data)
    for i in range(0, len(data), 5):
        sample = data[i]
        assert isinstance(sample, KeypointSample)
        heat = gaussian_heatmaps(sample.keypoints[None], (64, 32), image_size=(32, 16))
        with torch.no_grad():
            own = model(EvalTransform()(sample.image[None]), torch.tensor([sample.modality]), heat).features
        assert_close(features[i], own[0], rtol=1e-4, atol=1e-5)
    rows = read_metrics(trained)["rows"]
    assert [(r["features"], r["rerank"], r["uses"]) for r in rows] == [("graph", "none", "query")] * 2
    assert config["ablation"] == "g2da"


@pytest.mark.parametrize(
    ("options", "losses"),
    [
        (["--ablation", "baseline"], BASE),
        (["--ablation", "ot"], BASE | {"transport"}),
        (["--ablation", "cl"], BASE | {"transport", "contrastive"}),
        (["--ablation", "graph"], FULL),
        ([], FULL),
        (["--transport", 0], FULL - {"transport"}),
        (["--contrastive", 0, "--graph", 0], FULL - {"contrastive", "graph"}),
        (["--base", 0], FULL - {"ce", "triplet"}),
        (["--heads", 5, "--threshold", 2, "--no-two-stream", "--no-normalize-nodes", "--no-normalize-triplet"], FULL),
        (["--phi", 0.25, "--structure", "square", "--pairs", "one_to_one", "--epsilon", 1.5], FULL),
    ],
)
def test_every_switch_trains_what_it_says(options, losses, regdb, tmp_path, steps):
    run(train_g2da, *tiny(regdb, tmp_path, "--epochs", 1, *GRID, *options))
    step, _, found = steps[-1]
    model, criterion = step.model, step.criterion
    assert set(found) == losses
    graph = "graph" in losses or "--graph" in options
    assert (model.attention is not None) == graph
    assert isinstance(model.backbone, TwoStream) == ("--no-two-stream" not in options)
    assert model.normalize_nodes == criterion.contrastive.normalize == ("--no-normalize-nodes" not in options)
    assert criterion.triplet.normalize == ("--no-normalize-triplet" not in options)
    if graph:
        threshold = -math.inf if "graph" in options[1:] else 2 if "--threshold" in options else 0.02
        assert (model.attention.heads, model.attention.threshold) == (5 if "--heads" in options else 3, threshold)
    if "--phi" in options:
        transport = criterion.transport
        assert (transport.phi, transport.loss, transport.pairs) == (0.25, "square", "one_to_one")
        assert criterion.contrastive.epsilon == 1.5
    config = load(tmp_path)["config"]
    assert config["method"] == "g2da"
    assert config.keys() <= {*train_g2da.SETTINGS, "images", "method"}
    assert read_metrics(tmp_path)["rows"][0]["features"] == ("graph" if graph else "backbone")


def test_key_points_follow_the_augmentation_into_the_model(regdb, tmp_path, steps, monkeypatch):
    """What the model is given are the heatmaps of the key points that the augmentation moved."""
    moved = []
    forward = training.TrainAugmentation.forward

    def recorded(self: Any, *batch: Tensor) -> Any:
        moved.append(forward(self, *batch))
        return moved[-1]

    monkeypatch.setattr(training.TrainAugmentation, "forward", recorded)
    run(train_g2da, *tiny(regdb, tmp_path, "--epochs", 1, "--keypoints", regdb / "keypoints.npz"))
    assert len(moved) == len(steps) == 2
    for (images, keypoints), (_, batch, _) in zip(moved, steps, strict=True):
        assert torch.equal(batch[0], images)
        assert torch.equal(batch[3], gaussian_heatmaps(keypoints, (64, 32), image_size=(32, 16)))
        assert not torch.equal(keypoints[..., :2], keypoints[..., :2].round())


def test_resuming_gives_the_same_bits(trained, regdb, tmp_path):
    options = tiny(regdb, tmp_path, "--keypoints", regdb / "keypoints.npz")
    calls = []
    forward = training.Step.forward

    def interrupted(self: Any, *batch: Tensor) -> dict[str, Tensor]:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(self, *batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Step, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(train_g2da, *options)
    assert load(tmp_path)["epoch"] == 1
    run(train_g2da, *options, "--resume")
    assert_same(load(tmp_path), load(trained))
    assert read_metrics(tmp_path) == read_metrics(trained)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "--keypoints must name the key points of the images .* or --part-grid ROWS COLUMNS"),
        ([*GRID, "--keypoints", "x.npz"], "--keypoints must be left out with a grid of parts, got x.npz"),
        (["--keypoints", "nowhere.npz"], "nowhere.npz"),
        (["--part-grid", 0, 2], "rows must be at least 1, got 0"),
        ([*GRID, "--phi", 2], "phi must be in .0, 1., got 2"),
        ([*GRID, "--epsilon", 0], "epsilon must be"),
        ([*GRID, "--transport", -1], "transport must be at least 0"),
        ([*GRID, "--heads", 4], "dim must be a multiple of heads = 4, got 945"),
    ],
)
def test_wrong_options_are_named_before_anything_is_trained(options, text, regdb, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        run(train_g2da, *tiny(regdb, tmp_path, *options))
    assert not (tmp_path / "checkpoint.pt").exists()


def test_key_points_of_a_checkpoint_are_asked_for_and_refused_where_they_say_nothing(trained, regdb, tmp_path):
    base = ["--root", regdb, "--device", "cpu", "--output", tmp_path / "out"]
    with pytest.raises(ValueError, match="--keypoints must name the key points"):
        run(evaluate, "--checkpoint", trained / "checkpoint.pt", *base)
    run(train_cift, *tiny(regdb, tmp_path / "cift", "--epochs", 0))
    keypoints = ["--keypoints", regdb / "keypoints.npz"]
    with pytest.raises(ValueError, match=r"--keypoints goes with a checkpoint of train_g2da\.py"):
        run(evaluate, "--checkpoint", tmp_path / "cift" / "checkpoint.pt", *base, *keypoints)
    with pytest.raises(ValueError, match=r"--k1 must be left out: AIM goes with a checkpoint of train_saai\.py"):
        run(evaluate, "--checkpoint", trained / "checkpoint.pt", *base, *keypoints, "--k1", 3)


def test_synthetic_data_bring_their_key_points(tmp_path):
    arguments = parsed(train_g2da, "--root", tmp_path)
    common.find_keypoints(arguments, arguments.part_grid)
    assert arguments.keypoints == tmp_path / "keypoints.npz"
    arguments = parsed(train_g2da, *GRID)
    common.find_keypoints(arguments, arguments.part_grid)
    assert arguments.keypoints is None


# -- G2DA's alignment in the other scripts -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "options", "grid"),
    [
        (train_cift, ["--ablation", "baseline"], (4, 3)),
        (train_cift, ["--part-grid", 3, 1], (3, 1)),
        (train_saai, ["--transfer"], (4, 3)),
        (train_saai, [], (4, 3)),
    ],
)
def test_alignment_adds_one_loss(script, options, grid, regdb, tmp_path, steps):
    run(script, *tiny(regdb, tmp_path, "--epochs", 1, "--alignment", 0.5, *options))
    (step, _, found), count = steps[-1], len(steps)
    assert count == 2
    plain = [loss for name, loss in found.items() if name not in ("total", "transport")]
    assert_close(found["total"], sum(plain) + found["transport"])
    assert found["transport"] > 0
    config = load(tmp_path)["config"]
    assert (config["alignment"], config.get("part_grid", [4, 3])) == (0.5, [*grid])
    assert step.criterion.parts.shape[0] == grid[0] * grid[1]
    run(evaluate, "--checkpoint", tmp_path / "checkpoint.pt", "--root", regdb, "--device", "cpu",
        "--output", tmp_path / "out")  # fmt: skip
    assert read_metrics(tmp_path / "out") == read_metrics(tmp_path)


def test_the_aligned_nodes_are_means_of_the_map_in_the_parts_and_as_a_whole():
    maps, labels, modality = torch.rand(6, 5, 4, 6), torch.arange(6) % 2, torch.arange(6) // 3
    criterion = training.Aligned(
        lambda *_: {"ce": torch.tensor(1.0), "total": torch.tensor(1.0)}, weight=2, grid=(2, 3)
    )
    losses = criterion(BaselineOutput(maps[:, 0, 0], maps[:, 0, 0], maps), labels, modality)
    windows, _ = part_grid(2, 3)
    small = torch.nn.functional.adaptive_avg_pool2d(windows, (4, 6))  # 16 x 24 pixels
    nodes = [
        [sum(maps[b, :, y, x] * w[y, x] for y in range(4) for x in range(6)) / 24 for w in small] for b in range(6)
    ]
    whole = [maps[b].mean((1, 2)) for b in range(6)]
    graphs = torch.stack([torch.stack([*own, last]) for own, last in zip(nodes, whole, strict=True)])
    assert_close(losses["transport"], 2 * graph_ot_loss(graphs, labels, modality))
    assert_close(losses["total"], 1 + losses["transport"])


@pytest.mark.parametrize("script", [train_cift, train_saai])
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--alignment", 0], "--alignment must be above 0, got 0"),
        (["--alignment", "nan"], "--alignment must be above 0, got nan"),
        (["--part-grid", 2, 2], "--part-grid goes with --alignment"),
        (["--alignment", 1, "--part-grid", 2, 0], "columns must be at least 1, got 0"),
    ],
)
def test_wrong_options_of_the_alignment_are_named(script, options, text, regdb, tmp_path):
    with pytest.raises(ValueError, match=text):
        run(script, *tiny(regdb, tmp_path, *options))
    assert not (tmp_path / "checkpoint.pt").exists()


# -- What a user may get wrong -------------------------------------------------------------------------------------


def test_other_key_points_are_other_settings(trained, regdb, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    table = load_keypoints(regdb / "keypoints.npz")
    save_keypoints(tmp_path / "other.npz", table.paths, table.keypoints + 1, table.sizes)
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    for resume in ([], ["--resume"]):
        with pytest.raises(ValueError, match=r"was trained with other settings .*keypoints"):
            run(train_g2da, *tiny(regdb, tmp_path / "run", "--keypoints", tmp_path / "other.npz", *resume))
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    run(evaluate, "--checkpoint", trained / "checkpoint.pt", "--root", regdb, "--device", "cpu", "--output",
        tmp_path / "out", "--keypoints", tmp_path / "other.npz")  # fmt: skip
    assert "other.npz does not hold the key points that it was trained with" in capsys.readouterr().out


def test_seventeen_key_points_are_named(regdb, tmp_path):
    table = load_keypoints(regdb / "keypoints.npz")
    more = np.concatenate([table.keypoints, table.keypoints[:, :4]], 1)
    save_keypoints(tmp_path / "coco.npz", table.paths, more, table.sizes)
    with pytest.raises(ValueError, match=r"coco\.npz must hold the 13 key points .* got 17; .*merge_coco_keypoints"):
        run(train_g2da, *tiny(regdb, tmp_path / "run", "--keypoints", tmp_path / "coco.npz"))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--graph-lr", -1], "--graph-lr must be at least 0, got -1"),
        (["--backbone-lr", -1], "--backbone-lr must be at least 0, got -1"),
        (["--heads", 0], "heads must be at least 1, got 0"),
    ],
)
def test_more_wrong_options_are_named(options, text, regdb, tmp_path):
    with pytest.raises(ValueError, match=text):
        run(train_g2da, *tiny(regdb, tmp_path, *GRID, *options))


def test_parameters_that_are_not_finite_are_not_saved(regdb, tmp_path, monkeypatch):
    """The last step of an epoch is seen in no loss of it."""
    forward, calls = training.Step.forward, []

    def poisoned(self: Any, *batch: Tensor) -> dict[str, Tensor]:
        calls.append(1)
        losses = forward(self, *batch)
        weight = self.model.neck.weight
        zero = (weight - weight.detach()).abs().sqrt().sum()  # whose gradient is NaN
        return {**losses, "total": losses["total"] + (zero if len(calls) == 4 else 0)}

    run(train_g2da, *tiny(regdb, tmp_path, *GRID, "--epochs", 1))
    good = (tmp_path / "checkpoint.pt").read_bytes()
    monkeypatch.setattr(training.Step, "forward", poisoned)
    calls += [1, 1]
    with pytest.raises(RuntimeError, match="the loss or a parameter is not finite in epoch 2"):
        run(train_g2da, *tiny(regdb, tmp_path, *GRID, "--epochs", 2, "--resume"))
    assert (tmp_path / "checkpoint.pt").read_bytes() == good
