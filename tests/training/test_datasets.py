"""Data sets opened by name, and their key points."""

import hashlib
import re

import numpy as np
import pytest
import torch

from vireid.data import LLCMDataset, RegDBDataset, SYSUMM01Dataset, generate_synthetic, load_keypoints, save_keypoints
from vireid.nn import gaussian_heatmaps
from vireid.training import datasets, open_dataset
from vireid.training.datasets import digest_keypoints, draw_heatmaps


def test_every_data_set_opens_by_any_spelling_of_its_name(regdb, sysu, llcm):
    for name, root, kind, split in (
        ("SYSU-MM01", sysu, SYSUMM01Dataset, "trainval"), ("RegDB", regdb, RegDBDataset, "train"),
        ("LLCM", llcm, LLCMDataset, "train"),
    ):  # fmt: skip
        data = open_dataset(name, root=root, size=(32, 16))
        assert type(data) is kind
        assert data.paths == kind(root, split).paths
        assert data.paths != open_dataset(name, "test", root=root).paths
    assert open_dataset("regdb", root=regdb, trial=3).paths != open_dataset("regdb", root=regdb).paths


def test_synthetic_is_drawn_once_where_it_is_looked_for(tmp_path, monkeypatch):
    draw = generate_synthetic
    options = {"identities": 4, "images_per_camera": 1, "size": (32, 16)}
    monkeypatch.setattr(datasets, "generate_synthetic", lambda root, **more: draw(root, **options, **more))
    monkeypatch.setattr(datasets, "SYNTHETIC_ROOT", tmp_path / "runs")
    assert len(open_dataset("synthetic", size=(32, 16), preload=True)) == 4
    stamp = (tmp_path / "runs" / "synthetic.json").stat().st_mtime_ns
    open_dataset("synthetic", "test", size=(32, 16))
    assert (tmp_path / "runs" / "synthetic.json").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("name", "options", "error", "text"),
    [
        ("regdb", {"root": "nowhere"}, FileNotFoundError, "folder nowhere does not exist"),
        ("regdb", {"root": None}, ValueError, "root must name the folder of the data set regdb, got None"),
        ("sysu", {}, FileNotFoundError, "exp/train_id.txt does not exist"),
        ("regdb", {"trial": 11}, ValueError, "trial must be at most 10, got 11"),
        ("regdb", {"trial": 0}, ValueError, "trial must be at least 1, got 0"),
        ("synthetic", {}, FileExistsError, "identities=8, asked for 96"),
        ("market", {}, ValueError, "must be one of 'sysu', 'regdb', 'llcm', 'synthetic'.*got 'market'"),
        ("regdb", {"keypoints": "nowhere.npz"}, FileNotFoundError, r"nowhere\.npz"),
    ],
)
def test_what_cannot_be_opened_is_named(name, options, error, text, regdb):
    with pytest.raises(error, match=text):
        open_dataset(name, **{"root": regdb, **options})


def test_the_other_layout_is_named(sysu):
    with pytest.raises(FileNotFoundError, match=re.escape(f"{sysu / 'idx' / 'train_visible_1.txt'} does not exist")):
        open_dataset("regdb", root=sysu)


def test_seventeen_key_points_are_named(regdb, tmp_path):
    table = load_keypoints(regdb / "keypoints.npz")
    more = np.concatenate([table.keypoints, table.keypoints[:, :4]], 1)
    save_keypoints(tmp_path / "coco.npz", table.paths, more, table.sizes)
    text = r"must be the 13 key points .*, got 17 in .*coco\.npz; .*merge_coco_keypoints"
    with pytest.raises(ValueError, match=text):
        open_dataset("regdb", root=regdb, keypoints=tmp_path / "coco.npz")


def test_a_digest_tells_key_points_apart(regdb, tmp_path):
    path = regdb / "keypoints.npz"
    assert digest_keypoints(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "maps" / "cam1").mkdir(parents=True)
    for name in ("cam1/b.npz", "cam1/a.npz"):
        (tmp_path / "maps" / name).write_bytes(name.encode())
    assert digest_keypoints(tmp_path / "maps") == hashlib.sha256(b"cam1/a.npz").hexdigest()


def test_coordinates_become_heatmaps_and_heatmaps_stay():
    points = torch.rand(2, 13, 3) * 16
    expected = gaussian_heatmaps(points, (64, 32), image_size=(32, 16))
    assert torch.equal(draw_heatmaps(points, (32, 16)), expected)
    assert draw_heatmaps(expected, (32, 16)) is expected
