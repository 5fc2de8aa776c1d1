"""`vireid keypoints` on three layouts, then `vireid train g2da` with what it wrote."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("kornia", reason="needs the extra train")
pytest.importorskip("lightning_fabric", reason="needs the extra train")
pytestmark = pytest.mark.usefixtures("without_pictures")

from click.testing import CliRunner
from PIL import Image

from places import ROOT
from standins import StandIn, bytes_of, tiny
from vireid.cli.app import vireid as command
from vireid.data import RegDBDataset, generate_synthetic, load_heatmaps, load_keypoints, pose, save_heatmaps
from vireid.data.keypoints import heatmap_path
from vireid.data.pose import find_images
from vireid.models import G2DA
from vireid.nn import PERSON_13, gaussian_heatmaps

DRAWN: dict[str, Any] = {"identities": 4, "images_per_camera": 2, "size": (32, 16)}


def estimate(*options: object) -> str:
    """Run `vireid keypoints` and return its output."""
    result = CliRunner().invoke(command, ["keypoints", *map(str, options)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def stopped(*options: object) -> str:
    """Run it and return the error that it ends with."""
    result = CliRunner().invoke(command, ["keypoints", *map(str, options)])
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code in (1, 2)
    return " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def drawn(llcm: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    return {
        "sysu": generate_synthetic(folder / "sysu", **(DRAWN | {"images_per_camera": 1})),
        "regdb": generate_synthetic(folder / "regdb", layout="regdb", **DRAWN),
        "llcm": llcm,
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
def test_all_images_of_a_data_set(dataset, drawn, model, tmp_path):
    root = Path(shutil.copytree(drawn[dataset], tmp_path / "set"))
    images = sorted(root.rglob("*.jpg"))
    options = ["--dataset", dataset, "--root", root, "--device", "cpu", "--batch", 5, "--score", 0.4]
    printed = estimate(*options)
    count, half = len(images), len(images) // 2
    visible, infrared = (16, 8) if dataset == "sysu" else (half, half)
    kinds = f"{visible} visible, {infrared} infrared"
    assert f"{count} images ({kinds}); heatmaps go into {tmp_path / 'set-heatmaps'}\n" in printed
    assert f"heatmaps of {count} images, {count} made now, 0 there already\n" in printed
    assert f"{count}/{count}" in printed  # a bar
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
    assert f"heatmaps of {count} images, 2 made now, {count - 2} there already\n" in estimate(*options)
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
    found = find_images("regdb", regdb)
    assert set(found) == everything
    assert all(kind == (path.relative_to(regdb).parts[0] == "Thermal") for path, kind in found.items())


def test_an_interrupted_run_goes_on(regdb, model, tmp_path, monkeypatch):
    forward = StandIn.forward

    def interrupted(self: StandIn, **inputs: Any) -> Any:
        if len(self.batches) == 2:
            raise KeyboardInterrupt
        return forward(self, **inputs)

    options = ["--dataset", "regdb", "--root", regdb, "--output", tmp_path / "maps", "--device", "cpu", "--batch", 3]
    monkeypatch.setattr(StandIn, "forward", interrupted)
    message = stopped(*options)
    assert f"what was made stays in {tmp_path / 'maps'}, and the same command goes on" in message
    monkeypatch.setattr(StandIn, "forward", forward)
    assert "heatmaps of 16 images, 10 made now, 6 there already\n" in estimate(*options)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (["--root", "nowhere"], "folder nowhere does not exist"),
        (["--dataset", "sysu"], "cam1 does not exist"),
        (["--dataset", "synthetic"], "'synthetic' is not one of sysu, regdb, llcm"),
        (["--score", "1.5"], "Invalid value for '--score'"),
        (["--device", "abacus"], "Invalid value for '--device'"),
        (["--batch", "0"], "Invalid value for '--batch'"),
        (["--output", "ROOT"], "folder must be another one than the data set's"),
        (["--output", "FILE"], "is a file"),
        (["--output", "FILE/maps"], "FILE"),
    ],
)
def test_faults_are_named_in_one_sentence(change, text, regdb, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("text")
    before = bytes_of(regdb)
    change = [value.replace("ROOT", str(regdb)) for value in change]
    message = stopped("--dataset", "regdb", "--root", regdb, "--device", "cpu", *change)
    assert text in message
    assert "Traceback" not in message
    assert model.batches == []
    assert bytes_of(regdb) == before


def test_an_image_that_cannot_be_read_is_named(regdb, model):
    image = sorted(regdb.rglob("*.jpg"))[3]
    image.write_bytes(b"no image")
    message = stopped("--dataset", "regdb", "--root", regdb, "--device", "cpu")
    assert f"cannot read image {image}" in message


def test_without_transformers_the_extra_is_named(regdb, tmp_path, hidden):
    hidden("transformers")
    message = stopped("--dataset", "regdb", "--root", regdb, "--output", tmp_path / "maps", "--device", "cpu")
    assert "needs transformers: pip install 'vireid[pose]'" in message
    assert not (tmp_path / "maps").exists()


# Training and evaluation with a folder of heatmaps


def write_heatmaps(root: Path, folder: Path, count: int = 13) -> Path:
    """Heatmaps as another estimator would give them, drawn around the true key points."""
    data, table = RegDBDataset(root, "all"), load_keypoints(root / "keypoints.npz")
    keypoints = table.at([path.relative_to(root).as_posix() for path in data.paths], (32, 16))
    drawn = gaussian_heatmaps(keypoints, (32, 16), sigma=1.0)
    for path, x in zip(data.paths, torch.cat([drawn, drawn], 1)[:, :count], strict=True):
        save_heatmaps(folder, path, x, root=root)
    return folder


def train(root: Path, output: Path, *options: object) -> Any:
    """The result of a training that takes a moment."""
    small = "size=32,16 epochs=1 batches=1 identities=2 per_modality=2".split()
    base = ["train", "g2da", "--dataset", "regdb", "--root", root, "--output", output, "--accelerator", "cpu"]
    return CliRunner().invoke(command, [*map(str, [*base, *options]), *(x for v in small for x in ("--set", v))])


def assert_trains_and_evaluates(root: Path, folder: Path, output: Path) -> None:
    assert train(root, output / "run", "--keypoints", folder).exit_code == 0
    options = [output / "run" / "checkpoint.pt", "--root", root, "--keypoints", folder, "--output", output / "again"]
    assert CliRunner().invoke(command, ["evaluate", *map(str, options)]).exit_code == 0
    found = [json.loads((output / name / "metrics.json").read_text()) for name in ("run", "again")]
    assert [row["direction"] for row in found[0]["rows"]] == ["visible_to_infrared", "infrared_to_visible"]
    assert {row["features"] for row in found[0]["rows"]} == {"graph"}
    assert found[0] == found[1]


def test_own_heatmaps_train_and_evaluate(regdb, tmp_path, monkeypatch):
    folder, seen, forward = write_heatmaps(regdb, tmp_path / "maps"), [], G2DA.forward

    def watched(self: G2DA, images: Any, modality: Any, heatmaps: Any = None) -> Any:
        seen.append(heatmaps)
        return forward(self, images, modality, heatmaps)

    monkeypatch.setattr(G2DA, "forward", watched)
    assert_trains_and_evaluates(regdb, folder, tmp_path)
    data = RegDBDataset(regdb, "test")
    expected = np.stack([load_heatmaps(folder, path, root=regdb) for path in data.paths]).astype(np.float32)
    assert [len(x) for x in seen] == [8, 8, 8]  # a batch of training, then the test images of either command
    for x in seen[1:]:
        np.testing.assert_array_equal(x.numpy(), expected)
    options = [tmp_path / "run" / "checkpoint.pt", "--root", regdb, "--keypoints", regdb / "keypoints.npz"]
    result = CliRunner().invoke(command, ["evaluate", *map(str, options)])
    assert "does not hold the key points that it was trained with" in result.stderr


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("no folder", "maps"),
        ("missing", "maps holds no heatmaps of 1 of 8 images, first "),
        ("damaged", "path must be a whole vireid heatmaps file, cannot read "),
        ("cut short", "path must be a whole vireid heatmaps file, cannot read "),
        ("changed image", "was made from another image than"),
        ("17 key points", "must be the 13 key points of vireid.nn.PERSON_13, got 17 in "),
        ("damaged coordinates", "keypoints: path must be a whole vireid keypoints file, cannot read "),
    ],
)
def test_faults_are_named_before_training(fault, text, regdb, tmp_path):
    folder, options = tmp_path / "maps", ["--keypoints", tmp_path / "maps"]
    paths = RegDBDataset(regdb, "train").paths
    files = [heatmap_path(folder, path, regdb) for path in paths]
    if fault != "no folder":
        write_heatmaps(regdb, folder, 17 if fault == "17 key points" else 13)
    if fault == "missing":
        files[3].unlink()
        text += str(paths[3])
    elif fault in ("damaged", "cut short"):
        for file in files:
            file.write_bytes(b"PK" if fault == "damaged" else file.read_bytes()[:-30])
    elif fault == "changed image":
        for path in paths:
            Image.new("RGB", (16, 32)).save(path)
    elif fault == "damaged coordinates":
        (regdb / "keypoints.npz").write_bytes(b"PK")
        options = ["--keypoints", regdb / "keypoints.npz"]
    result = train(regdb, tmp_path / "run", *options)
    assert result.exit_code == 1
    assert text in result.stderr.splitlines()[-1]
    if fault in ("damaged", "cut short"):
        assert str(folder) in result.stderr
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


# The real class, with random weights


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers", minversion="4.48")
    folder = tmp_path_factory.mktemp("model") / "vitpose"
    tiny(transformers).save_pretrained(folder)  # type: ignore[operator]
    return folder


def test_from_images_to_metrics(saved, regdb, tmp_path):
    options = ["--dataset", "regdb", "--root", regdb, "--model", saved, "--device", "cpu"]
    folder = tmp_path / "regdb-heatmaps"
    assert f"{folder}: heatmaps of 16 images, 16 made now, 0 there already\n" in estimate(*options)
    data = RegDBDataset(regdb, "all", size=(32, 16), keypoints=folder)  # the size of the files
    expected = pose.estimate_heatmaps(torch.stack([sample.image for sample in data]), model=str(saved), device="cpu")
    found = torch.stack([sample.keypoints for sample in data])
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    assert_trains_and_evaluates(regdb, folder, tmp_path)
    before = bytes_of(folder)
    assert "0 made now, 16 there already\n" in estimate(*options)
    assert bytes_of(folder) == before


@pytest.mark.parametrize("name", ["./nothing", "folder", "usyd-community/vitpose-base-simple"])
def test_weights_that_are_not_there_are_named(name, saved, regdb, tmp_path, monkeypatch):
    """Offline: a folder that is not there, one without weights, a name never downloaded."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    message = stopped("--dataset", "regdb", "--root", regdb, "--model", name, "--device", "cpu")
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
