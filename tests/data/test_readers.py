"""Contract of all readers: arrays, samples, images read, kept and checked."""

import pickle
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, default_collate

from vireid.data import LLCMDataset, RegDBDataset, Sample, SYSUMM01Dataset

READERS = {"sysu": SYSUMM01Dataset, "regdb": RegDBDataset, "llcm": LLCMDataset}


@pytest.fixture(params=READERS)
def reader(request):
    """A reader and a folder in its layout."""
    return READERS[request.param], request.getfixturevalue(request.param)


def test_arrays_splits_and_labels(reader):
    make, root = reader
    parts = {split: make(root, split, size=(4, 4)) for split in make.splits}
    assert make(str(root)).paths == parts["train"].paths  # the default
    both = parts["all"]
    assert len(both.paths) == len(set(both.paths)) >= len(parts["train"]) + len(parts["test"])
    assert set(parts["train"].ids).isdisjoint(parts["test"].ids)
    for data in parts.values():
        assert (data.name, data.root, data.size) == (make.name, root, (4, 4))
        for array in (data.labels, data.ids, data.modality, data.cameras, data.image_numbers):
            assert array.dtype == np.int64
            assert array.shape == (len(data),) == (len(data.paths),)
        assert np.unique(data.ids)[data.labels].tolist() == data.ids.tolist()
        assert data.num_classes == len(set(data.ids.tolist()))
        keys = np.stack([data.ids, data.cameras, data.modality, data.image_numbers])
        assert len(np.unique(keys, axis=1).T) == len(data)
    for kind in (0, 1):
        half = make(root, "all", modality=kind)
        kept = np.flatnonzero(both.modality == kind)
        assert half.paths == [both.paths[i] for i in kept]
        assert half.labels.tolist() == both.labels[kept].tolist()
        assert half.num_classes == both.num_classes


def test_files_of_the_operating_system_are_passed_over(reader):
    make, root = reader
    before = make(root, "all").paths
    for folder in [path for path in root.rglob("*") if path.is_dir() and path.name != "idx"]:
        for name in (".DS_Store", "Thumbs.db", "._0001.jpg"):
            (folder / name).write_bytes(b"x")
    assert make(root, "all").paths == before


def test_a_missing_root_is_named(reader):
    make, root = reader
    shutil.rmtree(root)
    with pytest.raises(FileNotFoundError, match=f"{root.name} does not exist"):
        make(root)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"split": "query"}, ValueError, "split must be one of 'train'.*, got 'query'"),
        ({"modality": 2}, ValueError, "modality must be one of 0, 1, got 2"),
        ({"size": (4,)}, ValueError, re.escape("size must be (H, W), got (4,)")),
        ({"size": (4, 0)}, ValueError, re.escape("size[1] must be at least 1, got 0")),
        ({"size": (4.0, 4)}, TypeError, re.escape("size[0] must be an integer")),
    ],
)
def test_bad_arguments_are_named(reader, arguments, error, text):
    make, root = reader
    with pytest.raises(error, match=text):
        make(root, **arguments)


def test_sample_and_batches(sysu):
    data = SYSUMM01Dataset(sysu, "all", size=(12, 5))
    for index, path in enumerate(data.paths):
        camera, identity, number = int(path.parts[-3][3:]), int(path.parts[-2]), int(path.stem)
        sample = data[index]
        assert isinstance(sample, Sample)
        assert sample.image.shape == (3, 12, 5)
        assert sample.image.dtype == torch.uint8
        assert sample[1:] == ([2, 5, 7, 9, 12].index(identity), int(camera in (3, 6)), camera, index)
        assert all(type(value) is int for value in sample[1:])
        # A plain color survives JPEG and resizing up to rounding.
        wanted = torch.tensor([camera * 30, identity * 10, number]).view(3, 1, 1)
        assert (sample.image.int() - wanted).abs().max() <= 4
    batch = default_collate([data[3], data[0]])
    assert isinstance(batch, Sample)
    assert batch.image.shape == (2, 3, 12, 5)
    assert batch.index.tolist() == [3, 0]
    assert batch.camera.tolist() == data.cameras[[3, 0]].tolist()
    loaded = list(DataLoader(data, batch_size=5))
    assert torch.cat([part.label for part in loaded]).tolist() == data.labels.tolist()
    assert data[-1].index == len(data) - 1
    assert data[np.int64(2)].index == 2
    for outside in (len(data), -len(data) - 1):
        with pytest.raises(IndexError, match="index must be within the 15 images"):
            data[outside]
    assert pickle.loads(pickle.dumps(data))[1].camera == data[1].camera


def test_resizing_is_bilinear_with_antialiasing(sysu):
    # Stripes of one pixel average to gray when shrunk; without antialiasing some would survive.
    stripes = np.zeros((16, 16, 3), np.uint8)
    stripes[:, ::2] = 255
    path = sysu / "cam1" / "0002" / "0001.jpg"
    Image.fromarray(stripes).save(path, quality=100, subsampling=0)
    image = SYSUMM01Dataset(sysu, size=(16, 4))[0].image
    assert (image[:, :, 1:3].int() - 127).abs().max() < 20
    # And rows differ from columns: (height, width), red first.
    flag = np.zeros((8, 8, 3), np.uint8)
    flag[:4, :, 0] = 200
    Image.fromarray(flag).save(path, quality=100, subsampling=0)
    image = SYSUMM01Dataset(sysu, size=(8, 8))[0].image.int()
    assert (image[0, :3] > 150).all()
    assert (image[0, 5:] < 50).all()
    assert (image[2] < 50).all()


@pytest.mark.parametrize("how", ["cache", "preload", "preload of a cache", "progress"])
def test_cache_keeps_images(sysu, how):
    plain = SYSUMM01Dataset(sysu, "all", size=(6, 4))
    wanted = [plain[i].image for i in range(len(plain))]
    data = SYSUMM01Dataset(sysu, "all", size=(6, 4), cache=how in ("cache", "preload of a cache"))
    if how == "cache":
        for i in range(len(data)):
            data[i].image.zero_()  # the first reader's copy is its own
    else:
        data.preload(progress=how == "progress")
    shutil.rmtree(sysu)
    for i in range(len(data)):
        assert torch.equal(data[i].image, wanted[i])
        data[i].image.zero_()
        assert torch.equal(data[i].image, wanted[i])
    with pytest.raises(ValueError, match="cannot read image"):
        plain[0]


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "16 bit"])
@pytest.mark.parametrize("preload", [False, True])
def test_damaged_image_is_named_when_read(sysu, damage, preload):
    path = sysu / "cam3" / "0005" / "0020.jpg"
    if damage == "truncated":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 32, 3), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:900])
    elif damage == "16 bit":
        Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(path, format="PNG")
    else:
        path.write_bytes(b"no image" if damage == "text" else b"")
    data = SYSUMM01Dataset(sysu, "test")
    with pytest.raises(ValueError, match=f"cannot read image {re.escape(str(path))}: ."):
        data.preload() if preload else data[data.paths.index(path)]


def test_image_of_absurd_size_is_named(sysu, monkeypatch):
    data = SYSUMM01Dataset(sysu)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8)  # the images have 48
    with pytest.raises(ValueError, match=f"cannot read image {re.escape(str(data.paths[0]))}: .*decompression bomb"):
        data[0]


def test_a_missing_pillow_is_named(sysu, hidden):
    hidden("PIL")
    data = SYSUMM01Dataset(sysu)  # the lists need no Pillow
    with pytest.raises(ImportError, match=re.escape("pip install 'vireid[train]'")):
        data[0]


def test_a_missing_tqdm_is_named_before_an_image_is_read(sysu, hidden, monkeypatch):
    read = []
    monkeypatch.setattr("vireid.data.dataset.decode_image", lambda path, *_: read.append(path))
    hidden("tqdm")
    with pytest.raises(ImportError, match=re.escape("tqdm: pip install 'vireid[train]'")):
        SYSUMM01Dataset(sysu).preload(progress=True)
    assert read == []
