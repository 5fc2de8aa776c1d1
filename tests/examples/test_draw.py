"""examples/draw.py: which images and checkpoints it shows, and what it says of those it cannot."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import common
import draw
import train_g2da
import train_saai
from vireid.data import (
    EvalTransform,
    RegDBDataset,
    generate_synthetic,
    load_keypoints,
    save_heatmaps,
    save_keypoints,
)
from vireid.losses import GraphOTLoss
from vireid.nn import PERSON_13

SIZE = (32, 16)
MAP = (15, 7)
FUNCTIONS = ["attention_maps", "tsne", "skeleton_graph", "transport_plan", "cost_matrices"]
MODELS: dict[str, tuple[Any, ...]] = {
    "parts3": (train_saai, "--parts", 3),
    "parts0": (train_saai, "--ablation", "baseline", "--trial", 2),
    "bones": (train_g2da, "--phi", 0.3, "--structure", "square"),
    "cells": (train_g2da, "--part-grid", 3, 2),
}


def build(script: Any, *options: object) -> tuple[nn.Module, dict[str, Any]]:
    """A model as a training script builds it with these options, and its settings."""
    options = (*options, "--size", *SIZE, "--dataset", "regdb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *map(str, options)])
        arguments = vars(script.parse_arguments())
    config = {name: arguments[name] for name in script.METHOD.settings if arguments[name] is not None}
    model, _ = script.build_model(config, 5)
    return model.eval(), config | {"method": script.METHOD.name}


def run(monkeypatch: pytest.MonkeyPatch, *options: object) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What the script hands to the functions that draw."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    for name in FUNCTIONS:
        monkeypatch.setattr(draw, name, lambda *given, **named: calls.append((given, named)))
    monkeypatch.setattr(sys, "argv", ["draw.py", *map(str, options), "--device", "cpu"])
    draw.main()
    return calls


@pytest.fixture(scope="module")
def regdb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "regdb"
    return generate_synthetic(root, layout="regdb", identities=10, images_per_camera=2, size=(48, 24))


@pytest.fixture(scope="module")
def keypoints(regdb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of the drawn people; the visible images lack their third key point, the infrared ones their fifth."""
    table = load_keypoints(regdb / "keypoints.npz")
    visible = np.array([path.startswith("Visible") for path in table.paths])
    table.keypoints[visible, 2, 2] = 0
    table.keypoints[~visible, 4, 2] = 0
    path = tmp_path_factory.mktemp("keypoints") / "some.npz"
    save_keypoints(path, *table)
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each of `MODELS`."""
    paths = {}
    for number, (name, options) in enumerate(MODELS.items()):
        torch.manual_seed(number)
        model, config = build(*options)
        paths[name] = tmp_path_factory.mktemp("runs") / name / "checkpoint.pt"
        state = {"config": config, "model": model.state_dict(), "criterion": {}, "optimizer": {}}
        common.save_checkpoint(paths[name], state | {"epoch": 1, "identities": 5})
    return paths


def load(saved: dict[str, Path], name: str) -> nn.Module:
    model, _ = build(*MODELS[name])
    model.load_state_dict(common.load_checkpoint(saved[name])["model"])
    return model


def test_attention_is_of_pairs_of_one_person_and_of_the_saved_model(regdb, saved, monkeypatch, tmp_path):
    path = tmp_path / "new" / "maps.svg"
    ((given, named),) = run(
        monkeypatch, "attention", "--checkpoint", saved["parts3"], "--root", regdb, "--images", 5, "--output", path
    )
    images, attention, output = given
    assert output == path
    assert path.parent.is_dir()
    assert named["modality"].tolist() == [0, 1, 0, 1, 0]
    assert (named["size"], named["scale"]) == (MAP, "common")
    test = RegDBDataset(regdb, "test", trial=1, size=SIZE)
    rows = [next(i for i in range(len(test)) if torch.equal(test[i].image, image)) for image in images]
    people = np.unique(test.ids)
    assert test.ids[rows].tolist() == [people[0], people[0], people[2], people[2], people[4]]
    assert test.modality[rows].tolist() == [0, 1, 0, 1, 0]
    model = load(saved, "parts3")
    with torch.no_grad():
        expected = model(EvalTransform()(images), named["modality"]).similarity.sigmoid()
    torch.testing.assert_close(attention, expected)


def test_a_model_without_prototypes_is_named(regdb, saved, monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit):
        run(monkeypatch, "attention", "--checkpoint", saved["parts0"], "--root", regdb, "--output", tmp_path / "a.png")
    assert "parts0/checkpoint.pt holds a model without prototypes" in capsys.readouterr().err


def test_tsne_shows_the_same_images_of_each_model(regdb, saved, monkeypatch, capsys, tmp_path):
    pair = ["--checkpoint", saved["parts3"], "--checkpoint", saved["parts0"]]
    options = ["--root", regdb, "--identities", 3, "--perplexity", 4, "--output", tmp_path / "t.png"]
    ((given, named),) = run(monkeypatch, "tsne", *pair, *options)
    features, identities, modality, output = given
    test = RegDBDataset(regdb, "test", trial=1, size=SIZE)
    people = np.unique(test.ids)
    rows = np.flatnonzero(np.isin(test.ids, people[[0, 2, 4]]))
    assert output == tmp_path / "t.png"
    assert (named["perplexity"], named["seed"]) == (4.0, 0)
    np.testing.assert_array_equal(identities, test.ids[rows])
    np.testing.assert_array_equal(modality, test.modality[rows])
    assert list(features) == ["parts3", "parts0"]
    images = EvalTransform()(torch.stack([test[int(i)].image for i in rows]))
    for name, found in features.items():
        model = load(saved, name)
        with torch.no_grad():
            expected = model(images, torch.as_tensor(modality)).features
        torch.testing.assert_close(found, expected)
    assert "parts0/checkpoint.pt was trained on regdb, trial 2: it may have seen" in capsys.readouterr().out
    ((given, _),) = run(monkeypatch, "tsne", *pair, *options, "--name", "SAAI", "--name", "baseline")
    assert list(given[0]) == ["SAAI", "baseline"]


def test_panels_are_named_by_what_tells_the_checkpoints_apart():
    names = draw.panel_names([Path("/runs/saai/1/checkpoint.pt"), Path("/runs/baseline/1/checkpoint.pt")])
    assert names == ["saai/1", "baseline/1"]
    assert draw.panel_names([Path("/runs/saai/checkpoint.pt")]) == ["saai"]


def rows_of(dataset, images):
    return [next(i for i in range(len(dataset)) if torch.equal(dataset[i].image, image)) for image in images]


def test_skeletons_are_of_pairs_of_one_person_and_need_no_checkpoint(regdb, keypoints, monkeypatch, tmp_path):
    data = ["--dataset", "regdb", "--root", regdb, "--keypoints", keypoints]
    path = tmp_path / "s.png"
    options = ["--images", 3, "--size", 40, 24, "--output", path]
    ((given, named),) = run(monkeypatch, "skeleton", *data, *options)
    images, points, output = given
    assert output == path
    assert named["modality"].tolist() == [0, 1, 0]
    assert (named["names"], named["global_node"], named["columns"]) == (False, False, None)
    test = RegDBDataset(regdb, "test", trial=1, size=(40, 24), keypoints=keypoints)
    rows, people = rows_of(test, images), np.unique(test.ids)
    assert test.ids[rows].tolist() == [people[0], people[0], people[4]]
    torch.testing.assert_close(points, torch.stack([test[i].keypoints for i in rows]), rtol=0, atol=0)
    ((_, named),) = run(monkeypatch, "skeleton", *data, *options, "--names", "--global-node")
    assert (named["names"], named["global_node"], named["columns"]) == (True, True, 2)


def test_skeletons_of_drawn_people_need_nothing(regdb, monkeypatch, tmp_path):
    monkeypatch.setattr(common, "generate_synthetic", lambda *given, **named: None)  # they are there
    ((given, _),) = run(monkeypatch, "skeleton", "--root", regdb, "--images", 2, "--output", tmp_path / "s.png")
    images, points, _ = given
    assert images.shape == (2, 3, 128, 64)
    test = RegDBDataset(regdb, "test", trial=1, size=(128, 64), keypoints=regdb / "keypoints.npz")
    torch.testing.assert_close(points, torch.stack([test[i].keypoints for i in rows_of(test, images)]))


def test_the_highest_cell_of_a_heatmap_is_its_key_point(regdb, saved, monkeypatch, tmp_path):
    heatmaps = np.zeros((13, 8, 4), dtype=np.float32)
    heatmaps[0, 5, 2], heatmaps[0, 1, 1] = 0.9, 0.8
    heatmaps[1, 7, 3] = 0.2
    for image in RegDBDataset(regdb, "test", trial=1).paths:
        save_heatmaps(tmp_path / "maps", image, heatmaps, root=regdb)
    data = ["--checkpoint", saved["bones"], "--root", regdb, "--keypoints", tmp_path / "maps"]
    for options, visible in (((), [1, 1, 0]), (("--threshold", 0.5), [1, 0, 0])):
        ((given, _),) = run(monkeypatch, "skeleton", *data, "--images", 1, *options, "--output", tmp_path / "s.png")
        points = given[1]
        assert points.shape == (1, 13, 3)
        assert points[0, :2, :2].tolist() == [[2.5 * 16, 5.5 * 16], [3.5 * 16, 7.5 * 16]]  # cells of 16 x 16 pixels
        assert points[0, :3, 2].tolist() == visible


def test_the_plan_is_that_of_the_loss(regdb, keypoints, saved, monkeypatch, tmp_path):
    options = ["--checkpoint", saved["bones"], "--root", regdb, "--keypoints", keypoints]
    ((given, named),) = run(monkeypatch, "plan", *options, "--output", tmp_path / "p.svg")
    *images, plan, output = given
    assert output == tmp_path / "p.svg"
    test = RegDBDataset(regdb, "test", trial=1, size=SIZE, keypoints=keypoints)
    rows = rows_of(test, images)
    assert test.ids[rows].tolist() == [test.ids.min()] * 2
    assert test.modality[rows].tolist() == [0, 1]
    assert list(named["names"]) == [*PERSON_13.names, "global"]
    points = torch.stack([test[i].keypoints for i in rows])
    torch.testing.assert_close(torch.stack([named["points_visible"], named["points_infrared"]]), points)

    heatmaps, modality = common.draw_heatmaps(points, SIZE), torch.tensor([0, 1])
    with torch.no_grad():
        seen = load(saved, "bones")(EvalTransform()(torch.stack(images)), modality, heatmaps)
    loss = GraphOTLoss(phi=0.3, loss="square")(seen.nodes, torch.zeros(2).long(), modality, mask=seen.mask)
    assert named["title"] == f"identity {test.ids.min()}: $D_{{ot}}$ = {loss.item():.3f} with φ = 0.3"
    present = torch.tensor([i not in (2, 4) for i in range(14)])  # what one of the two lacks, both do
    torch.testing.assert_close(plan.sum(0), present / 12)
    torch.testing.assert_close(plan.sum(1), present / 12)

    ((given, named),) = run(monkeypatch, "costs", *options, "--output", tmp_path / "c.png")
    *nodes, same, _ = given
    torch.testing.assert_close(torch.stack(nodes), seen.nodes)
    torch.testing.assert_close(same, plan)
    assert (named["loss"], len(named["names"])) == ("square", 14)


def test_parts_of_a_grid_are_at_their_centres(regdb, saved, monkeypatch, tmp_path):
    identity = int(np.unique(RegDBDataset(regdb, "test", trial=1).ids)[2])
    data = ["--checkpoint", saved["cells"], "--root", regdb, "--identity", identity]
    ((given, named),) = run(monkeypatch, "plan", *data, "--output", tmp_path / "p.png")
    test = RegDBDataset(regdb, "test", trial=1, size=SIZE)
    rows = rows_of(test, given[:2])
    assert test.ids[rows].tolist() == [identity] * 2
    assert test.modality[rows].tolist() == [0, 1]
    for side in ("points_visible", "points_infrared"):
        expected = [[x, y] for y in (32 / 6, 16, 160 / 6) for x in (4, 12)]
        torch.testing.assert_close(named[side], torch.tensor(expected))
    assert named["names"][:3] == ("row 1, column 1", "row 1, column 2", "row 2, column 1")
    assert (given[2].shape, named["names"][-1]) == ((7, 7), "global")


@pytest.mark.parametrize("picture", ["skeleton", "plan", "costs"])
def test_pictures_of_graphs_are_written(picture, regdb, keypoints, saved, monkeypatch, tmp_path):
    options = ["--checkpoint", saved["bones"], "--root", regdb, "--keypoints", keypoints]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["draw.py", picture, *map(str, options), "--device", "cpu"])
    draw.main()
    assert (tmp_path / f"{picture}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["skeleton", "--checkpoint", "cells"], "cells/checkpoint.pt was trained with --part-grid"),
        (["skeleton", "--checkpoint", "bones"], "--keypoints must name the key points of the images"),
        (["skeleton", "--dataset", "sysu"], "--keypoints must name the key points of the images"),
        (["plan", "--checkpoint", "parts3"], "parts3/checkpoint.pt was written by train_saai.py"),
        (["costs", "--checkpoint", "cells", "--identity", 999], "--identity must have a visible and an infrared image"),
    ],
)
def test_graphs_that_are_not_there_are_named(options, message, saved, regdb, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run(monkeypatch, *[saved.get(option, option) for option in options], "--root", regdb)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["attention", "--output", "a.jpeg2"], "--output must end in .png, .pdf or .svg, got 'a.jpeg2'"),
        (["attention", "--images", 0], "--images must be at least 1, got 0"),
        (["tsne", "--identities", 0], "--identities must be at least 1, got 0"),
        (["tsne", "--name", "a", "--name", "b"], "--name must be given for each --checkpoint"),
    ],
)
def test_options_are_checked(options, message, saved, regdb, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run(monkeypatch, *options, "--checkpoint", saved["parts3"], "--root", regdb)
    assert message in capsys.readouterr().err
