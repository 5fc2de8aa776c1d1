"""From images to a model of G2DA: the estimator's script on three layouts, then training with what it wrote."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_pose import StandIn, bytes_of, tiny
from torch import nn

import common
import estimate_keypoints
import evaluate
import train_g2da
from places import ROOT
from vireid.data import RegDBDataset, generate_synthetic, load_heatmaps, load_keypoints, pose, save_heatmaps
from vireid.data.keypoints import heatmap_path
from vireid.nn import PERSON_13, gaussian_heatmaps

DRAWN: dict[str, Any] = {"identities": 4, "images_per_camera": 2, "size": (32, 16)}


def run(script: Any, *options: object) -> None:
    """The script's ``main`` with these options, in this process, without its pictures."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("cmc_curves", "ranked_lists"):
            patch.setattr(common, name, lambda *_, **__: None)
        patch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, options)])
        script.main()


def stopped(capsys: pytest.CaptureFixture[str], *options: object) -> str:
    """What the estimator's script ends with."""
    with pytest.raises(SystemExit) as caught:
        run(estimate_keypoints, *options)
    assert caught.value.code  # not 0
    return f"{caught.value.code} {capsys.readouterr().err}"


def llcm(root: Path) -> Path:
    """Two identities to train with and two to test, each seen once by either modality."""
    rng = np.random.default_rng(0)
    (root / "idx").mkdir(parents=True)
    for kind in ("vis", "nir"):
        lines = []
        for identity in (1, 2, 3, 4):
            name = f"{identity:04d}/{identity:04d}_c04_s1_f{identity}_{kind}.jpg"
            name = f"{kind}/{name}" if identity < 3 else f"test_{kind}/cam4/{name}"
            (root / name).parent.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 255, (32, 16, 3), np.uint8)).save(root / name)
            lines += [f"{name} {identity - 1}\n"] if identity < 3 else []
        (root / "idx" / f"train_{kind}.txt").write_text("".join(lines))
    (root / "idx" / "test_id.txt").write_text("3,4")
    return root


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    return {
        "sysu": generate_synthetic(folder / "sysu", **(DRAWN | {"images_per_camera": 1})),
        "regdb": generate_synthetic(folder / "regdb", layout="regdb", **DRAWN),
        "llcm": llcm(folder / "llcm"),
    }


@pytest.fixture
def regdb(drawn: dict[str, Path], tmp_path: Path) -> Path:
    """A copy to write into."""
    return Path(shutil.copytree(drawn["regdb"], tmp_path / "regdb"))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """In place of what transformers would load."""
    model = StandIn()
    monkeypatch.setattr(pose, "_load", lambda *_: model)
    return model


# The script, without transformers


@pytest.mark.parametrize("dataset", ["sysu", "regdb", "llcm"])
def test_all_images_of_a_data_set(dataset, drawn, model, tmp_path, capsys):
    root = Path(shutil.copytree(drawn[dataset], tmp_path / "set"))
    images = sorted(root.rglob("*.jpg"))
    options = ["--dataset", dataset, "--root", root, "--device", "cpu", "--batch", 5, "--score", 0.4]
    run(estimate_keypoints, *options)
    printed, bars = capsys.readouterr()
    count, half = len(images), len(images) // 2
    visible, infrared = (16, 8) if dataset == "sysu" else (half, half)
    kinds = f"{visible} visible, {infrared} infrared"
    assert f"{count} images ({kinds}); heatmaps go into {tmp_path / 'set-heatmaps'}\n" in printed
    assert f"heatmaps of {count} images, {count} made now, 0 there already\n" in printed
    assert f"{count}/{count}" in bars
    assert max(model.batches) == 5
    folder = tmp_path / "set-heatmaps"
    assert sorted(bytes_of(folder)) == [f"{path.relative_to(root).as_posix()}.npz" for path in images]

    low = {"all": np.zeros(13), "visible": np.zeros(13), "infrared": np.zeros(13)}
    for path in images:
        x = load_heatmaps(folder, path, root=root)
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
        expected = pose.estimate_heatmaps(pixels, model=model)[0]
        torch.testing.assert_close(torch.from_numpy(x).float(), expected, atol=1e-3, rtol=0)
        first = path.relative_to(root).parts[0]
        kind = "infrared" if first in ("Thermal", "nir", "test_nir", "cam3", "cam6") else "visible"
        for k in range(13):
            low["all"][k] += x[k].max() < 0.4
            low[kind][k] += x[k].max() < 0.4
    assert "below 0.4:" in printed
    for (name, below), total in zip(low.items(), (count, visible, infrared), strict=True):
        assert 0 < below.sum() < 13 * total
        worst, share = PERSON_13.names[int(below.argmax())], 100 * below.max() / total
        assert f"  {name:8} {100 * below.sum() / total / 13:5.1f} %, most often {worst} ({share:.1f} %)\n" in printed

    before = bytes_of(folder)
    (folder / f"{images[0].relative_to(root)}.npz").unlink()
    (folder / f"{images[1].relative_to(root)}.npz").write_bytes(b"PK")
    run(estimate_keypoints, *options)
    assert f"heatmaps of {count} images, 2 made now, {count - 2} there already\n" in capsys.readouterr().out
    assert bytes_of(folder) == before


def test_regdb_is_read_whatever_its_trials_list(regdb):
    lists = {path: path.read_text().splitlines(keepends=True) for path in regdb.glob("idx/*.txt")}
    everything = set(regdb.rglob("*.jpg"))
    for path, lines in lists.items():
        trial = path.stem.rpartition("_")[2]
        if trial not in "123":
            path.unlink()  # of a user who has three trials
        else:  # trial 1 and 2 lack every other image of an identity, 3 those that both have
            path.write_text("".join(lines[0 if trial in "12" else 1 :: 2]))
    found = estimate_keypoints.find_images("regdb", regdb)
    assert set(found) == everything
    assert all(kind == (path.relative_to(regdb).parts[0] == "Thermal") for path, kind in found.items())


def test_an_interrupted_run_goes_on(regdb, model, tmp_path, monkeypatch, capsys):
    forward = StandIn.forward

    def interrupted(self: StandIn, **inputs: Any) -> Any:
        if len(self.batches) == 2:
            raise KeyboardInterrupt
        return forward(self, **inputs)

    options = ["--dataset", "regdb", "--root", regdb, "--output", tmp_path / "maps", "--device", "cpu", "--batch", 3]
    monkeypatch.setattr(StandIn, "forward", interrupted)
    message = stopped(capsys, *options)
    assert f"what was made stays in {tmp_path / 'maps'}, and the same command goes on" in message
    monkeypatch.setattr(StandIn, "forward", forward)
    run(estimate_keypoints, *options)
    assert "heatmaps of 16 images, 10 made now, 6 there already\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (["--root", "nowhere"], "folder nowhere does not exist"),
        (["--dataset", "sysu"], "cam1 does not exist"),
        (["--dataset", "synthetic"], "invalid choice: 'synthetic'"),
        (["--score", "1.5"], "--score must lie between 0 and 1, got 1.5"),
        (["--device", "abacus"], "--device must be one that this machine has, got 'abacus'"),
        (["--batch", "0"], "batch must be at least 1, got 0"),
        (["--output", "ROOT"], "folder must be another one than the data set's"),
        (["--output", "FILE"], "exists"),
        (["--output", "FILE/maps"], "FILE"),
    ],
)
def test_faults_are_named_in_one_sentence(change, text, regdb, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("text")
    before = bytes_of(regdb)
    change = [value.replace("ROOT", str(regdb)) for value in change]
    message = stopped(capsys, "--dataset", "regdb", "--root", regdb, "--device", "cpu", *change)
    assert text in message
    assert "Traceback" not in message
    assert model.batches == []
    assert bytes_of(regdb) == before


def test_an_image_that_cannot_be_read_is_named(regdb, model, capsys):
    image = sorted(regdb.rglob("*.jpg"))[3]
    image.write_bytes(b"no image")
    message = stopped(capsys, "--dataset", "regdb", "--root", regdb, "--device", "cpu")
    assert f"cannot read image {image}" in message


def test_without_transformers_the_extra_is_named(regdb, tmp_path, hidden, capsys):
    hidden("transformers")
    message = stopped(capsys, "--dataset", "regdb", "--root", regdb, "--output", tmp_path / "maps", "--device", "cpu")
    assert "needs transformers: pip install 'vireid[pose]'" in message
    assert not (tmp_path / "maps").exists()


# Training and evaluation with a folder of heatmaps


def tiny_run(root: Path, output: Path, *options: object) -> list[object]:
    """Options of a training that takes a moment."""
    base = ["--dataset", "regdb", "--root", root, "--output", output, "--accelerator", "cpu", "--size", 32, 16]
    return [*base, "--epochs", 1, "--batches", 1, "--identities", 2, "--per-modality", 2, *options]


def write_heatmaps(root: Path, folder: Path, count: int = 13) -> Path:
    """Heatmaps as another estimator would give them, drawn around the true key points."""
    data, table = RegDBDataset(root, "all"), load_keypoints(root / "keypoints.npz")
    keypoints = table.at([path.relative_to(root).as_posix() for path in data.paths], (32, 16))
    drawn = gaussian_heatmaps(keypoints, (32, 16), sigma=1.0)
    for path, x in zip(data.paths, torch.cat([drawn, drawn], 1)[:, :count], strict=True):
        save_heatmaps(folder, path, x, root=root)
    return folder


def read_metrics(output: Path) -> dict[str, Any]:
    return json.loads((output / "metrics.json").read_text())


def assert_trains_and_evaluates(root: Path, folder: Path, output: Path) -> None:
    run(train_g2da, *tiny_run(root, output / "run", "--keypoints", folder))
    options = ["--checkpoint", output / "run" / "checkpoint.pt", "--root", root, "--device", "cpu"]
    run(evaluate, *options, "--keypoints", folder, "--output", output / "evaluation")
    found = read_metrics(output / "run")
    assert [row["direction"] for row in found["rows"]] == ["visible_to_infrared", "infrared_to_visible"]
    assert {row["features"] for row in found["rows"]} == {"graph"}
    assert read_metrics(output / "evaluation") == found


def test_own_heatmaps_train_and_evaluate(regdb, tmp_path, monkeypatch):
    folder, seen, forward = write_heatmaps(regdb, tmp_path / "maps"), [], train_g2da.G2DA.forward

    def watched(self: nn.Module, images: Any, modality: Any, heatmaps: Any = None) -> Any:
        seen.append(heatmaps)
        return forward(self, images, modality, heatmaps)

    monkeypatch.setattr(train_g2da.G2DA, "forward", watched)
    assert_trains_and_evaluates(regdb, folder, tmp_path)
    data = RegDBDataset(regdb, "test")
    expected = np.stack([load_heatmaps(folder, path, root=regdb) for path in data.paths]).astype(np.float32)
    assert [len(x) for x in seen] == [8, 8, 8]  # a batch of training, then the test images of either script
    for x in seen[1:]:
        np.testing.assert_array_equal(x.numpy(), expected)


@pytest.mark.parametrize(
    ("fault", "error", "text"),
    [
        ("no folder", FileNotFoundError, "maps"),
        ("missing", FileNotFoundError, "maps holds no heatmaps of 1 of 8 images, first "),
        ("damaged", ValueError, "path must be a whole vireid heatmaps file, cannot read "),
        ("cut short", ValueError, "path must be a whole vireid heatmaps file, cannot read "),
        ("changed image", ValueError, "was made from another image than"),
        (
            "17 key points",
            ValueError,
            "must hold the 13 key points of vireid.nn.PERSON_13, got 17; vireid.nn.merge_coco_keypoints",
        ),
        ("part grid", ValueError, "--keypoints must be left out with a grid of parts, got "),
        ("nothing given", ValueError, "--keypoints must name the key points of the images"),
        ("damaged coordinates", ValueError, "keypoints: path must be a whole vireid keypoints file, cannot read "),
    ],
)
def test_faults_are_named_before_training(fault, error, text, regdb, tmp_path):
    folder, options = tmp_path / "maps", ["--keypoints", tmp_path / "maps"]
    files = [heatmap_path(folder, path, regdb) for path in RegDBDataset(regdb, "train").paths]
    if fault != "no folder":
        write_heatmaps(regdb, folder, 17 if fault == "17 key points" else 13)
    if fault == "missing":
        files[3].unlink()
        text += re.escape(str(RegDBDataset(regdb, "train").paths[3]))
    elif fault == "damaged":
        for file in files:
            file.write_bytes(b"PK")
    elif fault == "cut short":
        for file in files:
            file.write_bytes(file.read_bytes()[:-30])
    elif fault == "changed image":
        for path in RegDBDataset(regdb, "train").paths:
            Image.new("RGB", (16, 32)).save(path)
    elif fault == "part grid":
        options += ["--part-grid", 2, 2]
    elif fault == "nothing given":
        options = []
    elif fault == "damaged coordinates":
        (regdb / "keypoints.npz").write_bytes(b"PK")
        options = ["--keypoints", regdb / "keypoints.npz"]
    pattern = text if fault == "missing" else re.escape(text)
    with pytest.raises(error, match=pattern) as caught:
        run(train_g2da, *tiny_run(regdb, tmp_path / "run", *options))
    if fault in ("damaged", "cut short"):
        assert str(folder) in str(caught.value)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


# The real class, with random weights


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers", minversion="4.48")
    folder = tmp_path_factory.mktemp("model") / "vitpose"
    tiny(transformers).save_pretrained(folder)  # type: ignore[operator]
    return folder


def test_from_images_to_metrics(saved, regdb, tmp_path, capsys):
    options = ["--dataset", "regdb", "--root", regdb, "--model", saved, "--device", "cpu"]
    run(estimate_keypoints, *options)
    folder = tmp_path / "regdb-heatmaps"
    assert f"{folder}: heatmaps of 16 images, 16 made now, 0 there already\n" in capsys.readouterr().out
    data = RegDBDataset(regdb, "all", size=(32, 16), keypoints=folder)  # the size of the files
    expected = pose.estimate_heatmaps(torch.stack([sample.image for sample in data]), model=str(saved), device="cpu")
    found = torch.stack([sample.keypoints for sample in data])
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    assert_trains_and_evaluates(regdb, folder, tmp_path)
    before = bytes_of(folder)
    run(estimate_keypoints, *options)
    assert "0 made now, 16 there already\n" in capsys.readouterr().out
    assert bytes_of(folder) == before


@pytest.mark.parametrize("name", ["./nothing", "folder", "usyd-community/vitpose-base-simple"])
def test_weights_that_are_not_there_are_named(name, saved, regdb, tmp_path, monkeypatch, capsys):
    """Offline: a folder that is not there, one without weights, a name never downloaded."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    message = stopped(capsys, "--dataset", "regdb", "--root", regdb, "--model", name, "--device", "cpu")
    assert "model must be a folder with a config.json and a model.safetensors, or a name that can be" in message
    assert f"got {name!r}" in message
    assert not (tmp_path / "regdb-heatmaps").exists()


# The page about all this


def test_the_pages_blocks_run(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "key-points.md").read_text("utf-8"), re.M | re.S)
    session: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "key-points.md", "exec"), session)
    assert len(blocks) == 8
    assert len(list((tmp_path / "people-heatmaps").rglob("*.jpg.npz"))) == len(session["data"]) == 16
    assert session["data"][0].keypoints.shape == (13, 64, 48)
    assert session["table"].keypoints.shape == (16, 13, 3)
    assert session["moved"][0, 6].tolist() == [64 - (10 + 2), 50 - 6, 1]
    assert session["moved"][0, 5, 2] == 0
    adjacency = [[1, 1, 1, 1], [1, 1, 0, 1], [1, 0, 1, 1], [1, 1, 1, 1]]
    assert session["upper"].adjacency().int().tolist() == adjacency
    assert session["upper"].mirror() == [0, 2, 1]
    assert session["parts"].shape == (12, 32, 24)
    torch.testing.assert_close(session["parts"].sum(0)[4:-4, 4:-4], torch.ones(24, 16))
    assert session["features"].shape[0] == 4
