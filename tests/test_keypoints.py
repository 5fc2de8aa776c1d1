"""Key points on disk, in samples, and through augmentation, against plain loops and images that carry marks."""

import os
import pickle
import re
import shutil
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from vireid._store import load_arrays, save_arrays
from vireid.data import generate_synthetic
from vireid.data.keypoints import (
    HeatmapFolder,
    Keypoints,
    heatmap_path,
    load_heatmaps,
    load_keypoints,
    move_heatmaps,
    move_keypoints,
    save_heatmaps,
    save_keypoints,
)
from vireid.data.readers import KeypointSample, RegDBDataset, Sample, SYSUMM01Dataset
from vireid.data.transforms import TrainAugmentation
from vireid.nn.skeleton import COCO_17, PERSON_13, gaussian_heatmaps

OFF: dict[str, Any] = {"padding": 0, "flip": 0.0, "erasing": 0.0, "exchange": "none"}
RAW = OFF | {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
NAMES = ["a/1.jpg", "a/2.jpg", "b ü/1.jpg"]


def random_table(count: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 20, (count, 13, 3)).astype(np.float32), np.array([[40, 20], [80, 40], [30, 60]])[:count]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_synthetic(
        tmp_path_factory.mktemp("data") / "drawn", identities=4, images_per_camera=1, size=(32, 16)
    )


@pytest.fixture
def with_heatmaps(drawn: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A data set and a folder of heatmaps, of which each is one number everywhere: its image's place."""
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


def test_what_is_not_visible_may_be_nowhere(tmp_path):
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
        ({"sizes": np.full((3, 2), np.nan)}, "sizes must be whole numbers, got nan"),
        ({"sizes": np.full((3, 2), np.inf)}, "sizes must be whole numbers, got inf"),
        ({"keypoints": np.zeros((3, 13, 2))}, "keypoints must be float32 of shape (3, K, 3)"),
        ({"sizes": np.ones((3, 3))}, "sizes must be (3, 2)"),
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


@pytest.mark.parametrize("damage", ["cut", "byte", "empty", "text", "pickle", "kind", "shape", "array", "type"])
def test_damaged_coordinates_are_named(damage, tmp_path):
    path = tmp_path / "k.npz"
    keypoints, sizes = random_table()
    save_keypoints(path, NAMES, keypoints, sizes)
    data = path.read_bytes()
    if damage in ("kind", "shape", "array", "type"):
        arrays, _ = load_arrays(path, "vireid keypoints", 1)
        if damage == "shape":
            arrays["sizes"] = arrays["sizes"][:2]
        elif damage == "array":
            del arrays["keypoints"]
        elif damage == "type":
            arrays["paths"] = np.full(7, 255, np.uint8)
        save_arrays(path, "vireid features" if damage == "kind" else "vireid keypoints", 1, arrays)
    elif damage == "pickle":
        np.savez(path, keypoints=np.array([{}], dtype=object))
    else:
        middle = data.index(keypoints.tobytes()) + 5
        spoilt = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        path.write_bytes({"cut": data[:-200], "byte": spoilt, "empty": b"", "text": b"x,y\n1,2\n"}[damage])
    with pytest.raises(ValueError, match=re.escape(repr(str(path)))):
        load_keypoints(path)


def test_a_missing_file_of_coordinates_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.npz"):
        load_keypoints(tmp_path / "nothing.npz")


# Files of heatmaps


def make_image(path: Path, colour: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 16), (colour, 1, 2)).save(path)
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
    make_image(image, colour=9)
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


def test_an_interrupted_write_leaves_what_was_there(tmp_path, monkeypatch):
    image = make_image(tmp_path / "1.png")
    save_heatmaps(tmp_path, image, np.ones((13, 2, 2)), root=tmp_path)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("numpy.lib.format.write_array", stop)
    with pytest.raises(KeyboardInterrupt):
        save_heatmaps(tmp_path, image, np.zeros((13, 2, 2)), root=tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["1.png", "1.png.npz"]
    assert (load_heatmaps(tmp_path, image, root=tmp_path) == 1).all()


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
    with pytest.raises(ValueError, match=r"one source, got those made by \{'model': 'by hand'\} and, for .*another"):
        data[2]
    file.unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"keypoints: .*no heatmaps of 1 of 24 images, first {re.escape(str(data.paths[2]))}"
    ):
        SYSUMM01Dataset(root, "all", keypoints=folder)
    with pytest.raises(FileNotFoundError, match=r"folder .*none does not exist"):
        HeatmapFolder(tmp_path / "none", data.paths, root)
    assert len(HeatmapFolder(folder, data.paths[:2], root)) == 2


# Crop and flip


def crop_by_hand(plane: np.ndarray, corner: list[int], size: tuple[int, int], flipped: bool) -> np.ndarray:
    """One plane cropped, 0 outside, and mirrored, pixel by pixel."""
    out = np.zeros(size, plane.dtype)
    for i in range(size[0]):
        for j in range(size[1]):
            y, x = i + corner[0], (size[1] - 1 - j if flipped else j) + corner[1]
            if 0 <= y < plane.shape[0] and 0 <= x < plane.shape[1]:
                out[i, j] = plane[y, x]
    return out


def random_moves(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, (count, 2), generator=g), torch.rand(count, generator=g) < 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_heatmaps_as_fine_as_the_image_move_pixel_by_pixel(dtype, device):
    corner, flipped = random_moves(12)
    maps = torch.rand(12, 13, 9, 7, dtype=dtype, device=device)
    before = maps.clone()
    moved = move_heatmaps(maps, image_size=(9, 7), corner=corner.to(device), size=(9, 7), flipped=flipped.to(device))
    assert torch.equal(maps, before)
    assert (moved.dtype, moved.device) == (dtype, maps.device)
    assert 0 < flipped.sum() < 12
    for b in range(12):
        for k, name in enumerate(PERSON_13.names):
            if flipped[b]:  # what is left in the mirror was right
                name = name.replace("left", "?").replace("right", "left").replace("?", "right")
            plane = maps[b, PERSON_13.names.index(name)].cpu().numpy()
            expected = crop_by_hand(plane, corner[b].tolist(), (9, 7), bool(flipped[b]))
            np.testing.assert_allclose(
                moved[b, k].cpu().numpy(), expected, atol=1e-5 if dtype == torch.float32 else 1e-12
            )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), crop=st.sampled_from([(40, 24), (36, 30), (50, 20)]))
def test_heatmaps_and_coordinates_move_alike(seed, crop):
    """Drawing the moved coordinates is moving the drawn ones, at another resolution than the image's."""
    g = torch.Generator().manual_seed(seed)
    corner, flipped = random_moves(4, seed)
    points = torch.rand(4, 13, 3, generator=g, dtype=torch.double) * torch.tensor([10, 20, 0]) + torch.tensor(
        [7, 10, 1.0]
    )
    moved_points = move_keypoints(points, corner=corner, size=crop, flipped=flipped)
    moved_maps = move_heatmaps(
        gaussian_heatmaps(points, (120, 72), image_size=(40, 24), sigma=9.0),
        image_size=(40, 24),
        corner=corner,
        size=crop,
        flipped=flipped,
    )
    assert moved_maps.shape == (4, 13, 120, 72)
    assert (moved_points[..., 2] == 1).all()  # none is near an edge
    # The crop's cells are crop/image as large as the image's, so sigma is that much smaller.
    x, y = moved_points[..., 0] / crop[1], moved_points[..., 1] / crop[0]
    cell_y, cell_x = (torch.arange(n, dtype=torch.double).add(0.5) / n for n in (120, 72))
    sigma_y, sigma_x = 9.0 / 120 * 40 / crop[0], 9.0 / 72 * 24 / crop[1]
    expected = torch.exp(
        -(((cell_y - y[..., None]) / sigma_y) ** 2)[..., :, None] / 2
        - (((cell_x - x[..., None]) / sigma_x) ** 2)[..., None, :] / 2
    )
    known = move_heatmaps(
        torch.ones(4, 13, 120, 72, dtype=torch.double), image_size=(40, 24), corner=corner, size=crop, flipped=flipped
    )
    inside = known > 0.999
    assert inside.float().mean() > 0.5
    assert (moved_maps - expected)[inside].abs().max() < 0.01


@given(seed=st.integers(0, 2**31 - 1))
@settings(max_examples=20, deadline=None)
def test_coordinates_by_hand(seed):
    corner, flipped = random_moves(5, seed)
    points = torch.rand(5, 13, 3, generator=torch.Generator().manual_seed(seed)) * torch.tensor([20.0, 40.0, 1.0])
    before = points.clone()
    moved = move_keypoints(points, corner=corner, size=(36, 18), flipped=flipped)
    assert torch.equal(points, before)
    for b in range(5):
        for k, name in enumerate(PERSON_13.names):
            side, _, part = name.partition("_")
            source = {"left": f"right_{part}", "right": f"left_{part}"}.get(side, name) if flipped[b] else name
            x, y, seen = points[b, PERSON_13.names.index(source)].tolist()
            x, y = x - corner[b, 1].item(), y - corner[b, 0].item()
            x = 18 - x if flipped[b] else x
            if not (0 <= x <= 18 and 0 <= y <= 36):
                seen = 0
            assert moved[b, k].tolist() == pytest.approx([x, y, seen], abs=1e-5)


def marked(count: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images with one bright pixel a channel, and key points on them: red left and green right shoulder, blue head."""
    g = torch.Generator().manual_seed(1)
    images, points = torch.zeros(count, 3, height, width), torch.zeros(count, 13, 3)
    for b in range(count):
        left, right = sorted(torch.randperm(width, generator=g)[:2].tolist())
        rows = torch.randint(height, (3,), generator=g).tolist()
        for channel, k, column in ((0, 1, left), (1, 2, right), (2, 0, (left + right) // 2)):
            images[b, channel, rows[channel], column] = 1
            points[b, k] = torch.tensor([column + 0.5, rows[channel] + 0.5, 1])
    return images, points


@pytest.mark.parametrize(("size", "padding"), [((12, 8), 0), ((12, 8), 3), ((9, 6), 0), ((16, 12), 2), ((10, 11), 3)])
@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
def test_key_points_stay_on_their_marks(size, padding, flip, device):
    images, points = marked(60, 12, 8)
    modality = torch.arange(60) % 2
    augment = TrainAugmentation(size, **(RAW | {"padding": padding, "flip": flip}))
    moved, followed = augment(images.to(device), modality.to(device), points.to(device))
    moved, followed = moved.cpu(), followed.cpu()
    assert moved.shape == (60, 3, *size)
    flips = found = 0
    for b in range(60):
        marks = [moved[b, channel].nonzero() for channel in range(3)]
        if not len(marks[0]) or not len(marks[1]):
            assert (followed[b, 1:3, 2] == 0).any()
            continue
        flipped = marks[0][0, 1] > marks[1][0, 1]  # red was left of green
        flips, found = flips + int(flipped), found + 1
        for mark, k in ((marks[0], 2 if flipped else 1), (marks[1], 1 if flipped else 2), (marks[2], 0)):
            if len(mark):
                assert followed[b, k].tolist() == [mark[0, 1] + 0.5, mark[0, 0] + 0.5, 1]
            else:
                assert followed[b, k, 2] == 0
    assert found > 15
    assert (flips == 0) if flip == 0 else (flips == found) if flip == 1 else (0 < flips < found)


def test_heatmaps_stay_on_their_marks(device):
    images, _ = marked(40, 12, 8)
    maps = torch.zeros(40, 13, 12, 8)
    maps[:, [1, 2, 0]] = images
    augment = TrainAugmentation((12, 8), **(RAW | {"padding": 3, "flip": 0.5}))
    moved, followed = augment(images.to(device), torch.zeros(40, dtype=torch.int64, device=device), maps.to(device))
    swapped = followed[:, [2, 1, 0]]
    same = [(followed[b, [1, 2, 0]] - moved[b]).abs().max() < 1e-5 for b in range(40)]
    other = [(swapped[b] - moved[b]).abs().max() < 1e-5 for b in range(40)]
    assert all(a or b for a, b in zip(same, other, strict=True))
    assert 5 < sum(bool(a and not b) for a, b in zip(same, other, strict=True)) < 35  # both kinds, told apart
    assert 5 < sum(bool(b and not a) for a, b in zip(same, other, strict=True)) < 35


@pytest.mark.parametrize("keypoints", [torch.rand(16, 13, 3), torch.rand(16, 13, 6, 4)])
def test_images_are_the_same_with_and_without_key_points(keypoints):
    images, modality = torch.randint(256, (16, 3, 24, 12), dtype=torch.uint8), torch.arange(16) % 2
    augment = TrainAugmentation((24, 12), padding=2, grayscale=0.3)
    torch.manual_seed(3)
    alone = augment(images, modality)
    after = torch.rand(1)
    torch.manual_seed(3)
    together, followed = augment(images, modality, keypoints)
    assert torch.equal(alone, together)
    assert torch.equal(after, torch.rand(1))  # nothing more was drawn
    assert followed.shape == keypoints.shape


@pytest.mark.parametrize("count", [0, 1])
def test_tiny_batches(count):
    augment = TrainAugmentation((8, 6), padding=1)
    images, modality = torch.zeros(count, 3, 8, 6), torch.zeros(count, dtype=torch.int64)
    for keypoints in (torch.ones(count, 13, 3), torch.ones(count, 13, 5, 4), torch.ones(count, 13, 1, 1)):
        out, followed = augment(images, modality, keypoints)
        assert out.shape == (count, 3, 8, 6)
        assert followed.shape == keypoints.shape
        assert followed.isfinite().all()


def test_another_skeleton_and_half_precision():
    augment = TrainAugmentation((8, 6), **(OFF | {"flip": 1.0}), skeleton=COCO_17)
    images, modality = torch.zeros(2, 3, 8, 6), torch.zeros(2, dtype=torch.int64)
    maps = torch.zeros(2, 17, 4, 3, dtype=torch.float16)
    maps[:, 1, 0, 0] = 1  # the left eye
    _, followed = augment(images, modality, maps)
    assert followed.dtype == torch.float32
    assert followed.nonzero().tolist() == [[0, 2, 0, 2], [1, 2, 0, 2]]
    points = torch.zeros(2, 17, 3, dtype=torch.bfloat16)
    points[:, 15] = torch.tensor([1.0, 2.0, 1.0])  # the left ankle
    _, followed = augment(images, modality, points)
    assert followed.dtype == torch.bfloat16
    assert followed[:, 16].tolist() == [[5.0, 2.0, 1.0]] * 2


def test_an_image_that_padding_brings_to_the_size_is_padded():
    augment = TrainAugmentation((8, 10), **(RAW | {"padding": 2}))
    out, followed = augment(torch.ones(3, 3, 4, 6), torch.zeros(3, dtype=torch.int64), torch.ones(3, 13, 3))
    assert out.shape == (3, 3, 8, 10)
    assert out.sum() == 3 * 3 * 4 * 6
    assert (followed == torch.tensor([3.0, 3.0, 1.0])).all()


def test_bad_key_points_are_named():
    augment = TrainAugmentation((8, 6), padding=1)
    images, modality = torch.zeros(2, 3, 8, 6), torch.zeros(2, dtype=torch.int64)
    for keypoints, error, text in (
        (torch.zeros(3, 13, 3), ValueError, "keypoints must be those of 2 images, got 3"),
        (torch.zeros(2, 17, 3), ValueError, "keypoints must have shape (B, 13, 3), got (2, 17, 3)"),
        (torch.zeros(2, 13, 2), ValueError, "keypoints must have shape (B, K, 3), got (2, 13, 2)"),
        (torch.zeros(2, 13), ValueError, "keypoints must have shape (B, 13, 3), got (2, 13)"),
        (torch.zeros(2, 12, 4, 4), ValueError, "heatmaps must have shape (B, 13, h, w), got (2, 12, 4, 4)"),
        (torch.zeros(2, 13, 3).long(), TypeError, "keypoints must be floating point, got torch.int64"),
        (torch.zeros(2, 13, 4, 4).byte(), TypeError, "heatmaps must be floating point, got torch.uint8"),
        (np.zeros((2, 13, 3)), TypeError, "keypoints must be a torch.Tensor, got ndarray"),
    ):
        with pytest.raises(error, match=re.escape(text)):
            augment(images, modality, keypoints)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"corner": torch.zeros(2)}, ValueError, "corner must have shape (2, 2), got (2,)"),
        ({"corner": torch.zeros(3, 2)}, ValueError, "corner must have shape (2, 2), got (3, 2)"),
        ({"corner": torch.zeros(1, 2)}, ValueError, "corner must have shape (2, 2), got (1, 2)"),
        ({"corner": (0, 0)}, TypeError, "corner must be a torch.Tensor, got tuple"),
        ({"flipped": torch.tensor([True])}, ValueError, "flipped must have shape (2,), got (1,)"),
        ({"flipped": torch.zeros(2, 1).bool()}, ValueError, "flipped must have shape (2,), got (2, 1)"),
        ({"flipped": torch.zeros(2).long()}, TypeError, "flipped must be a tensor of bool, got torch.int64"),
        ({"flipped": [True, False]}, TypeError, "flipped must be a torch.Tensor, got list"),
        ({"size": (0, 6)}, ValueError, "size must be at least 1, got 0"),
        ({"size": (8, 6, 3)}, ValueError, "size must be (H, W), got (8, 6, 3)"),
        ({"size": (8, 6.5)}, TypeError, "size must be an integer, got 6.5"),
        ({"image_size": (0, 4)}, ValueError, "image_size must be at least 1, got 0"),
        ({"image_size": 8}, ValueError, "image_size must be (H, W), got 8"),
    ],
)
def test_bad_moves_are_named(change, error, text):
    moves = {"corner": torch.zeros(2, 2).long(), "size": (8, 6), "flipped": torch.tensor([True, False])} | change
    with pytest.raises(error, match=re.escape(text)):
        move_heatmaps(torch.ones(2, 13, 4, 4), **({"image_size": (8, 6)} | moves))
    if "image_size" not in change:
        with pytest.raises(error, match=re.escape(text)):
            move_keypoints(torch.ones(2, 13, 3), **moves)


@pytest.mark.parametrize("change", [lambda k: k / 100, lambda k: k + 1000, lambda k: -k - 1])
def test_coordinates_in_another_unit_are_refused(change):
    """Shares in place of pixels, or places that no image has."""
    keypoints = np.random.default_rng(0).uniform(5, 60, (3, 13, 3)).astype(np.float32)
    keypoints[..., 2] = 1
    moved = keypoints.copy()
    moved[..., :2] = change(keypoints[..., :2])
    sizes, names = np.full((3, 2), 64), ["a", "b", "c"]
    assert Keypoints(names, keypoints, sizes).at(names, (32, 32)).shape == (3, 13, 3)
    with pytest.raises(ValueError, match="keypoints must be in pixels of the images, which are 64 to 64 long, got x"):
        Keypoints(names, moved, sizes).at(names, (32, 32))
