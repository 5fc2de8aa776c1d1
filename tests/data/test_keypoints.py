"""Key points on disk and in samples."""

import os
import pickle
import re
import shutil
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from vireid._files import load_arrays, save_arrays
from vireid.data import KeypointSample, RegDBDataset, Sample, SYSUMM01Dataset, generate_synthetic
from vireid.data.keypoints import (
    HeatmapFolder,
    heatmap_path,
    load_heatmaps,
    load_keypoints,
    save_heatmaps,
    save_keypoints,
)

NAMES = ["a/1.jpg", "a/2.jpg", "b ü/1.jpg"]


def random_table(count: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 20, (count, 13, 3)).astype(np.float32), np.array([[40, 20], [80, 40], [30, 60]])[:count]


@pytest.fixture
def with_heatmaps(drawn: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A data set and a folder of heatmaps, each filled with the place of its image."""
    folder = tmp_path / "heatmaps"
    for place, path in enumerate(SYSUMM01Dataset(drawn, "all").paths):
        save_heatmaps(folder, path, np.full((13, 8, 4), place / 4), root=drawn, source={"model": "by hand"})
    return drawn, folder


# Files of coordinates


def test_coordinates_are_kept(tmp_path):
    keypoints, sizes = random_table()
    save_keypoints(tmp_path / "k.npz", NAMES, keypoints.astype(np.float64), sizes.astype(np.int32))
    table = load_keypoints(str(tmp_path / "k.npz"))
    assert table.paths == NAMES
    np.testing.assert_array_equal(table.keypoints, keypoints)
    np.testing.assert_array_equal(table.sizes, sizes)
    assert os.listdir(tmp_path) == ["k.npz"]


def test_coordinates_follow_a_change_of_size(tmp_path):
    keypoints, sizes = random_table()
    save_keypoints(tmp_path / "k.npz", NAMES, keypoints, sizes)
    table = load_keypoints(tmp_path / "k.npz")
    scaled = table.at([NAMES[2], NAMES[0]], (60, 10))
    assert scaled.dtype == torch.float32
    for row, image in enumerate((2, 0)):
        for k in range(13):
            x, y, visible = keypoints[image, k].tolist()
            height, width = sizes[image].tolist()
            assert scaled[row, k].tolist() == pytest.approx([x * 10 / width, y * 60 / height, visible])
    np.testing.assert_array_equal(table.keypoints, keypoints)  # not scaled in place
    with pytest.raises(ValueError, match=re.escape("there are no key points of 2 of 3 images, first 'c.jpg'")):
        table.at([NAMES[0], "c.jpg", "d.jpg"], (60, 10))


def test_images_may_be_named_by_paths(tmp_path):
    keypoints, sizes = random_table()
    save_keypoints(tmp_path / "k.npz", [PureWindowsPath("a\\1.jpg"), Path("a") / "2.jpg", NAMES[2]], keypoints, sizes)
    assert load_keypoints(tmp_path / "k.npz").paths == NAMES
    for name in (b"a/1.jpg", 1, None):
        with pytest.raises(TypeError, match=re.escape(f"paths must hold names of images, got {name!r}")):
            save_keypoints(tmp_path / "other.npz", [name, *NAMES[1:]], keypoints, sizes)
    for name in (tmp_path / "1.jpg", str(tmp_path / "1.jpg")):  # what a dataset's `paths` are where its root is
        with pytest.raises(ValueError, match="paths must be relative to the data set's folder, got"):
            save_keypoints(tmp_path / "other.npz", [name, *NAMES[1:]], keypoints, sizes)
    assert os.listdir(tmp_path) == ["k.npz"]


def test_invisible_key_points_may_have_no_coordinates(tmp_path):
    keypoints, sizes = random_table()
    keypoints[0, 3] = np.nan, np.inf, 0
    keypoints[1, 4] = np.nan, 2, np.nan
    save_keypoints(tmp_path / "k.npz", NAMES, keypoints, sizes.astype(np.float64))
    table = load_keypoints(tmp_path / "k.npz")
    np.testing.assert_array_equal(table.keypoints, keypoints)
    np.testing.assert_array_equal(table.sizes, sizes)


def with_a_point(*point: float) -> np.ndarray:
    keypoints = random_table()[0].astype(np.float64)
    keypoints[1, 2] = point
    return keypoints


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"keypoints": np.zeros((2, 13, 3))}, "keypoints must be float32 of shape (3, K, 3)"),
        ({"keypoints": np.zeros((3, 0, 3))}, "one entry for each path, K at least 1, got float32 (3, 0, 3)"),
        ({"keypoints": with_a_point(np.nan, 1, 1)}, "keypoints must be finite where they are visible"),
        ({"keypoints": with_a_point(1, -np.inf, 0.1)}, "keypoints must be finite where they are visible"),
        ({"keypoints": with_a_point(1, 1e39, 1)}, "keypoints must be finite where they are visible"),
        ({"keypoints": with_a_point(1, 1, np.inf)}, "keypoints must be finite where they are visible"),
        ({"sizes": np.full((3, 2), 64.5)}, "sizes must be whole numbers, got 64.5"),
        ({"sizes": np.full((3, 2), np.inf)}, "sizes must be whole numbers, got inf"),
        ({"sizes": np.zeros((3, 2))}, "sizes must be (3, 2) heights and widths of at least 1"),
        ({"paths": ["a", "b", "a"]}, "paths must name an image once"),
        ({"paths": ["a", "b", "c\nd"]}, "paths must hold no line break"),
        ({"path": "k.npy"}, "path must end in .npz"),
    ],
)
def test_bad_coordinates_are_not_written(change, text, tmp_path):
    keypoints, sizes = random_table()
    arguments = {"path": "k.npz", "paths": NAMES, "keypoints": keypoints, "sizes": sizes} | change
    arguments["path"] = tmp_path / arguments["path"]
    with pytest.raises(ValueError, match=re.escape(text)):
        save_keypoints(**arguments)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("damage", ["cut", "kind", "shape", "array", "type"])
def test_damaged_coordinates_are_named(damage, tmp_path):
    path = tmp_path / "k.npz"
    save_keypoints(path, NAMES, *random_table())
    arrays, _ = load_arrays(path, "vireid keypoints", 1)
    if damage == "shape":
        arrays["sizes"] = arrays["sizes"][:2]
    elif damage == "array":
        del arrays["keypoints"]
    elif damage == "type":
        arrays["paths"] = np.full(7, 255, np.uint8)
    save_arrays(path, "vireid features" if damage == "kind" else "vireid keypoints", 1, arrays)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=re.escape(repr(str(path)))):
        load_keypoints(path)


# Files of heatmaps


def make_image(path: Path, color: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 16), (color, 1, 2)).save(path)
    return path


def test_heatmaps_are_kept_in_half_precision(tmp_path):
    root, folder = tmp_path / "set", tmp_path / "maps"
    image = make_image(root / "a.b" / "1.png")
    x = torch.rand(13, 8, 4, dtype=torch.float64, requires_grad=True)
    path = save_heatmaps(folder, image, x, root=root, source={"model": "m", "size": (8, 4)})
    assert path == heatmap_path(folder, str(image), str(root)) == folder / "a.b" / "1.png.npz"
    found = load_heatmaps(folder, image, root=root)
    assert (found.dtype, found.shape) == (np.float16, (13, 8, 4))
    np.testing.assert_array_equal(found, x.detach().numpy().astype(np.float16))
    assert load_heatmaps(folder, image, root=root, source={"model": "m", "size": (8, 4)}).shape == (13, 8, 4)
    assert [p.name for p in folder.rglob("*") if p.is_file()] == ["1.png.npz"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.uint8, torch.bool])
def test_heatmaps_of_any_dtype_are_kept(dtype, tmp_path):
    image = make_image(tmp_path / "1.png")
    x = (torch.rand(13, 8, 4) * 3).to(dtype)
    save_heatmaps(tmp_path, image, x, root=tmp_path)
    np.testing.assert_array_equal(load_heatmaps(tmp_path, image, root=tmp_path), x.to(torch.float16).numpy())


def test_stale_heatmaps_are_refused(tmp_path):
    root, folder = tmp_path / "set", tmp_path / "maps"
    image = make_image(root / "1.png")
    save_heatmaps(folder, image, np.zeros((13, 2, 2)), root=root, source={"model": "one"})
    with pytest.raises(ValueError, match=r"must be made by \{'model': 'two'\}, got \{'model': 'one'\}"):
        load_heatmaps(folder, image, root=root, source={"model": "two"})
    make_image(image, color=9)
    with pytest.raises(ValueError, match=r"was made from another image than .*1\.png is now"):
        load_heatmaps(folder, image, root=root)
    image.unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.png"):
        load_heatmaps(folder, image, root=root)


@pytest.mark.parametrize(
    ("heatmaps", "text"),
    [
        (np.zeros((2, 2)), "heatmaps must have shape (K, h, w), got (2, 2)"),
        (np.zeros((13, 0, 2)), "heatmaps must have shape (K, h, w), got (13, 0, 2)"),
        (np.full((1, 2, 2), np.nan), "heatmaps must be finite"),
        (np.full((1, 2, 2), 1e6), "heatmaps must be finite numbers within float16"),
    ],
)
def test_bad_heatmaps_are_not_written(heatmaps, text, tmp_path):
    image = make_image(tmp_path / "1.png")
    with pytest.raises(ValueError, match=re.escape(text)):
        save_heatmaps(tmp_path, image, heatmaps, root=tmp_path)
    assert os.listdir(tmp_path) == ["1.png"]


def test_heatmaps_stay_inside_their_folder(tmp_path):
    image = make_image(tmp_path / "elsewhere" / "1.png")
    for path in (image, tmp_path / "set" / ".." / "elsewhere" / "1.png"):
        with pytest.raises(ValueError, match="image must lie below root"):
            save_heatmaps(tmp_path / "maps", path, np.zeros((13, 2, 2)), root=tmp_path / "set")
    assert not (tmp_path / "maps").exists()


# Samples


def test_without_key_points_samples_are_as_they_were(drawn):
    sample = SYSUMM01Dataset(drawn, "all")[0]
    assert type(sample) is Sample
    assert sample._fields == ("image", "label", "modality", "camera", "index")


def test_samples_carry_coordinates(drawn, tmp_path):
    data = SYSUMM01Dataset(drawn, "all", size=(64, 48), keypoints=drawn / "keypoints.npz")
    table = load_keypoints(drawn / "keypoints.npz")
    assert data.root == drawn
    for index in (0, 5, len(data) - 1):
        sample = data[index]
        assert isinstance(sample, KeypointSample)
        row = table.paths.index(data.paths[index].relative_to(drawn).as_posix())
        expected = table.keypoints[row] * [48 / 16, 64 / 32, 1]
        np.testing.assert_allclose(sample.keypoints.numpy(), expected, rtol=1e-6)
        sample.keypoints.zero_()  # the caller's own copy
        np.testing.assert_allclose(data[index].keypoints.numpy(), expected, rtol=1e-6)
        assert sample[1:5] == SYSUMM01Dataset(drawn, "all")[index][1:]
    (batch,) = DataLoader(pickle.loads(pickle.dumps(data)), batch_size=len(data))
    assert isinstance(batch, KeypointSample)
    assert batch.keypoints.shape == (len(data), 13, 3)
    assert batch.index.tolist() == list(range(len(data)))


def test_samples_carry_heatmaps(with_heatmaps):
    root, folder = with_heatmaps
    for modality in (0, 1):
        data = SYSUMM01Dataset(root, "all", size=(64, 48), modality=modality, keypoints=folder)
        everything = SYSUMM01Dataset(root, "all").paths
        (batch,) = DataLoader(data, batch_size=len(data))
        assert batch.keypoints.dtype == torch.float32
        assert batch.keypoints.shape == (len(data), 13, 8, 4)
        assert batch.keypoints[:, 3, 2, 1].tolist() == [everything.index(path) / 4 for path in data.paths]


@pytest.mark.parametrize("how", ["cache", "preload"])
def test_heatmaps_are_kept_in_memory_with_the_images(how, with_heatmaps):
    root, folder = with_heatmaps
    data = SYSUMM01Dataset(root, "all", cache=how == "cache", keypoints=folder)
    if how == "preload":
        data.preload()
    else:
        data[1].keypoints.zero_()
    shutil.rmtree(folder)
    assert (data[1].keypoints == 0.25).all()


def test_other_layouts_take_key_points(tmp_path):
    root = generate_synthetic(tmp_path / "r", layout="regdb", identities=4, images_per_camera=1, size=(32, 16))
    data = RegDBDataset(root, "all", size=(32, 16), keypoints=str(root / "keypoints.npz"))
    table = load_keypoints(root / "keypoints.npz")
    for index, path in enumerate(data.paths):
        row = table.paths.index(path.relative_to(root).as_posix())
        np.testing.assert_array_equal(data[index].keypoints.numpy(), table.keypoints[row])


def test_faults_of_key_points_are_named(with_heatmaps, tmp_path):
    root, folder = with_heatmaps
    with pytest.raises(FileNotFoundError, match=r"keypoints: .*nothing\.npz"):
        SYSUMM01Dataset(root, keypoints=tmp_path / "nothing.npz")
    table = load_keypoints(root / "keypoints.npz")
    fewer = [row for row, path in enumerate(table.paths) if not path.startswith("cam2")]
    save_keypoints(
        tmp_path / "fewer.npz", [table.paths[row] for row in fewer], table.keypoints[fewer], table.sizes[fewer]
    )
    with pytest.raises(ValueError, match=r"no key points of 4 of 24 images, first 'cam2/0001/0001\.jpg'"):
        SYSUMM01Dataset(root, "all", keypoints=tmp_path / "fewer.npz")
    (tmp_path / "fewer.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"keypoints: .*fewer\.npz"):
        SYSUMM01Dataset(root, "all", keypoints=tmp_path / "fewer.npz")

    data = SYSUMM01Dataset(root, "all", keypoints=folder)
    file = heatmap_path(folder, data.paths[2], root)
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(ValueError, match=re.escape(str(file))):
        data[2]
    save_heatmaps(folder, data.paths[2], np.zeros((13, 8, 4)), root=root, source={"model": "another"})
    data[0]
    with pytest.raises(ValueError, match=r"one source .*, got those made by \{'model': 'by hand'\}, .* for .*another"):
        data[2]
    file.unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"keypoints: .*no heatmaps of 1 of 24 images, first {re.escape(str(data.paths[2]))}"
    ):
        SYSUMM01Dataset(root, "all", keypoints=folder)
    with pytest.raises(FileNotFoundError, match=r"folder .*none does not exist"):
        HeatmapFolder(tmp_path / "none", data.paths, root)
    assert len(HeatmapFolder(folder, data.paths[:2], root)) == 2
