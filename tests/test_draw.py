"""examples/draw.py: which images and checkpoints it shows, and what it says of those it cannot."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vireid.data import EvalTransform, RegDBDataset, generate_synthetic

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import common  # noqa: E402
import draw  # noqa: E402
import train_saai  # noqa: E402

SIZE = (32, 16)


MAP = (15, 7)


def build(parts: int) -> tuple[nn.Module, dict[str, Any]]:
    """A SAAI as train_saai.py builds it, or its baseline without prototypes, and its settings."""
    with pytest.MonkeyPatch.context() as patch:
        row = "saai" if parts else "baseline"
        options = ["--ablation", row, "--parts", parts, "--size", *SIZE, "--dataset", "regdb"]
        patch.setattr(sys, "argv", ["train_saai.py", *map(str, options)])
        arguments = vars(train_saai.parse_arguments())
    config = {name: arguments[name] for name in train_saai.SETTINGS if arguments[name] is not None}
    model, _ = train_saai.build_model(config, 5)
    return model.eval(), config | {"method": "saai"}


def run(monkeypatch: pytest.MonkeyPatch, *options: object) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What the script hands to the functions that draw."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    for name in ("attention_maps", "tsne"):
        monkeypatch.setattr(draw, name, lambda *given, **named: calls.append((given, named)))
    monkeypatch.setattr(sys, "argv", ["draw.py", *map(str, options), "--device", "cpu"])
    draw.main()
    return calls


@pytest.fixture(scope="module")
def regdb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "regdb"
    return generate_synthetic(root, layout="regdb", identities=10, images_per_camera=2, size=(48, 24))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Checkpoints by their number of prototypes, and trial."""
    paths = {}
    for parts, trial in ((3, 1), (0, 2)):
        torch.manual_seed(parts)
        model, config = build(parts)
        paths[parts] = tmp_path_factory.mktemp("runs") / f"parts{parts}" / "checkpoint.pt"
        config["trial"] = trial
        state = {"config": config, "model": model.state_dict(), "criterion": {}, "optimizer": {}}
        common.save_checkpoint(paths[parts], state | {"epoch": 1, "identities": 5})
    return paths


def test_attention_is_of_pairs_of_one_person_and_of_the_saved_model(regdb, saved, monkeypatch, tmp_path):
    path = tmp_path / "new" / "maps.svg"
    ((given, named),) = run(
        monkeypatch, "attention", "--checkpoint", saved[3], "--root", regdb, "--images", 5, "--output", path
    )
    images, attention, output = given
    assert output == path
    assert path.parent.is_dir()
    assert named["modality"].tolist() == [0, 1, 0, 1, 0]
    assert (named["size"], named["scale"]) == (MAP, "common")
    test = RegDBDataset(regdb, "test", trial=1, size=SIZE)
    rows = [next(i for i in range(len(test)) if torch.equal(test[i].image, image)) for image in images]
    people = np.unique(test.identities)
    assert test.identities[rows].tolist() == [people[0], people[0], people[2], people[2], people[4]]
    assert test.modality[rows].tolist() == [0, 1, 0, 1, 0]
    model, _ = build(3)
    model.load_state_dict(common.load_checkpoint(saved[3])["model"])
    with torch.no_grad():
        expected = model(EvalTransform()(images), named["modality"]).similarity.sigmoid()
    torch.testing.assert_close(attention, expected)


def test_a_model_without_prototypes_is_named(regdb, saved, monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit):
        run(monkeypatch, "attention", "--checkpoint", saved[0], "--root", regdb, "--output", tmp_path / "a.png")
    assert "parts0/checkpoint.pt holds a model without prototypes" in capsys.readouterr().err


def test_tsne_shows_the_same_images_of_each_model(regdb, saved, monkeypatch, capsys, tmp_path):
    pair = ["--checkpoint", saved[3], "--checkpoint", saved[0]]
    options = ["--root", regdb, "--identities", 3, "--perplexity", 4, "--output", tmp_path / "t.png"]
    ((given, named),) = run(monkeypatch, "tsne", *pair, *options)
    features, identities, modality, output = given
    test = RegDBDataset(regdb, "test", trial=1, size=SIZE)
    people = np.unique(test.identities)
    rows = np.flatnonzero(np.isin(test.identities, people[[0, 2, 4]]))
    assert output == tmp_path / "t.png"
    assert (named["perplexity"], named["seed"]) == (4.0, 0)
    np.testing.assert_array_equal(identities, test.identities[rows])
    np.testing.assert_array_equal(modality, test.modality[rows])
    assert list(features) == ["parts3", "parts0"]
    images = EvalTransform()(torch.stack([test[int(i)].image for i in rows]))
    for parts, found in zip((3, 0), features.values(), strict=True):
        model, _ = build(parts)
        model.load_state_dict(common.load_checkpoint(saved[parts])["model"])
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
        run(monkeypatch, *options, "--checkpoint", saved[3], "--root", regdb)
    assert message in capsys.readouterr().err
