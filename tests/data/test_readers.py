import pickle
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, default_collate

from places import SHARED
from vireid.data import RegDBDataset, Sample, SYSUMM01Dataset

ROADSCENE = SHARED / "data" / "roadscene-dev"

# camera -> identity -> image numbers: gaps in the numbers, identities missing in cameras, one seen by a single camera
SYSU = {
    1: {2: [1, 3], 5: [2], 9: [1], 12: [4]},
    2: {2: [2], 9: [7, 8]},
    3: {2: [1], 5: [1, 20], 12: [1]},
    4: {7: [1]},
    5: {},
    6: {9: [5], 12: [2]},
}


def save(path, color=(10, 20, 30), size=(6, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


@pytest.fixture
def sysu(tmp_path):
    root = tmp_path / "SYSU-MM01"
    for camera, identities in SYSU.items():
        (root / f"cam{camera}").mkdir(parents=True)
        for identity, numbers in identities.items():
            for number in numbers:
                save(
                    root / f"cam{camera}" / f"{identity:04d}" / f"{number:04d}.jpg",
                    (camera * 30, identity * 10, number),
                )
    (root / "exp").mkdir()
    (root / "exp" / "train_id.txt").write_text("12,2\n")
    (root / "exp" / "val_id.txt").write_text("9")
    (root / "exp" / "test_id.txt").write_text("5, 7\r\n")
    return root


@pytest.fixture
def regdb(tmp_path):
    root = tmp_path / "RegDB"
    (root / "idx").mkdir(parents=True)
    # Labels follow the lists, not the identities: 30 -> 0, 4 -> 1 in training; 11 -> 0 in the test.
    for trial in (1, 10):
        for split, identities in (("train", [30, 4]), ("test", [11])):
            for kind, letter in (("Visible", "v"), ("Thermal", "t")):
                lines = []
                for label, identity in enumerate(identities):
                    for number in (3, 1):
                        name = f"{kind}/{identity}/male {letter}_{number:05d}_{identity}.bmp"
                        save(root / name, (identity, number, 0))
                        lines.append(f"{name} {label}\n")
                (root / "idx" / f"{split}_{kind.lower()}_{trial}.txt").write_text("".join(lines))
    return root


def expected_sysu(identities):
    return [
        (identity, 1 if camera in (3, 6) else 0, camera, number)
        for identity in sorted(identities)
        for camera in sorted(SYSU)
        for number in sorted(SYSU[camera].get(identity, []))
    ]


@pytest.mark.parametrize(
    ("split", "identities"),
    [("train", [2, 12]), ("val", [9]), ("trainval", [2, 9, 12]), ("test", [5, 7]), ("all", [2, 5, 7, 9, 12])],
)
@pytest.mark.parametrize("modality", [None, 0, 1])
def test_sysu_splits(sysu, split, identities, modality):
    wanted = [row for row in expected_sysu(identities) if modality is None or row[1] == modality]
    data = SYSUMM01Dataset(sysu, split, modality=modality, size=(4, 4))
    found = zip(data.ids, data.modality, data.cameras, data.image_numbers, strict=True)
    assert [tuple(map(int, row)) for row in found] == wanted
    assert data.labels.tolist() == [identities.index(row[0]) for row in wanted]
    assert data.num_classes == len(identities)
    assert len(data) == len(wanted)
    assert data.paths == [sysu / f"cam{row[2]}" / f"{row[0]:04d}" / f"{row[3]:04d}.jpg" for row in wanted]
    for array in (data.labels, data.ids, data.modality, data.cameras, data.image_numbers):
        assert isinstance(array, np.ndarray)
        assert array.dtype == np.int64
        assert array.shape == (len(wanted),)
    assert data.name == "sysu"


def test_sysu_default_split_is_train_and_all_reads_no_list(sysu):
    assert SYSUMM01Dataset(sysu).ids.tolist() == SYSUMM01Dataset(str(sysu), "train").ids.tolist()
    shutil.rmtree(sysu / "exp")
    assert SYSUMM01Dataset(sysu, "all").num_classes == 5


def test_files_of_the_operating_system_are_passed_over(sysu):
    for place in (
        "cam1/.DS_Store",
        "cam1/0002/.DS_Store",
        "cam1/0002/Thumbs.db",
        "cam3/Thumbs.db",
        "cam1/0002/._0001.jpg",
    ):
        (sysu / place).write_bytes(b"x")
    assert len(SYSUMM01Dataset(sysu, "all")) == len(expected_sysu([2, 5, 7, 9, 12]))


def test_sample_and_batches(sysu):
    data = SYSUMM01Dataset(sysu, "all", size=(12, 5))
    for index, row in enumerate(expected_sysu([2, 5, 7, 9, 12])):
        sample = data[index]
        assert isinstance(sample, Sample)
        assert sample.image.shape == (3, 12, 5)
        assert sample.image.dtype == torch.uint8
        assert sample[1:] == ([2, 5, 7, 9, 12].index(row[0]), row[1], row[2], index)
        assert all(type(value) is int for value in sample[1:])
        # A plain colour survives JPEG and resizing up to rounding.
        wanted = torch.tensor([row[2] * 30, row[0] * 10, row[3]]).view(3, 1, 1)
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
    # Stripes of one pixel average to grey when shrunk; without antialiasing some would survive.
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


@pytest.mark.parametrize(
    ("spoil", "split", "error", "text"),
    [
        (lambda r: shutil.rmtree(r), "train", FileNotFoundError, "SYSU-MM01 does not exist"),
        (lambda r: shutil.rmtree(r / "cam5"), "train", FileNotFoundError, "cam5 does not exist"),
        (lambda r: (r / "exp/train_id.txt").unlink(), "train", FileNotFoundError, "train_id.txt does not exist"),
        (lambda r: (r / "exp/val_id.txt").unlink(), "trainval", FileNotFoundError, "val_id.txt does not exist"),
        (lambda r: (r / "exp/test_id.txt").write_text(" \n"), "test", ValueError, "test_id.txt is empty"),
        (lambda r: (r / "exp/test_id.txt").write_text("5,x7"), "test", ValueError, "test_id.txt must hold .* got 'x7'"),
        (lambda r: (r / "exp/test_id.txt").write_text("5,7,"), "test", ValueError, "test_id.txt must hold .* got ''"),
        (lambda r: (r / "exp/test_id.txt").write_text("5\n7"), "test", ValueError, "test_id.txt must hold"),
        (lambda r: (r / "exp/test_id.txt").write_text("5,-7"), "test", ValueError, "test_id.txt must hold .* got '-7'"),
        (
            lambda r: (r / "exp/test_id.txt").write_text("5,5"),
            "test",
            ValueError,
            "test_id.txt lists an identity twice",
        ),
        (lambda r: (r / "exp/test_id.txt").write_bytes(b"\xff5"), "test", ValueError, "test_id.txt is not a text file"),
        (lambda r: (r / "exp/val_id.txt").write_text("2"), "trainval", ValueError, "exp: .* share identities"),
        (lambda r: (r / "exp/test_id.txt").write_text("5,88,7"), "test", ValueError, "no image .* 1 listed .* 0088"),
        (lambda r: (r / "cam2/17").mkdir(), "train", ValueError, "cam2/17 must be a folder named by a four-digit"),
        (lambda r: (r / "cam2/0017").write_text(""), "train", ValueError, "cam2/0017 must be a folder"),
        (lambda r: save(r / "cam1/0002/12.jpg"), "train", ValueError, "cam1/0002/12.jpg must be named by"),
        (lambda r: save(r / "cam1/0002/0001.png"), "all", ValueError, "cam1/0002/0001.png must be named by"),
        (
            lambda r: [shutil.rmtree(r / f"cam{c}/{i:04d}") for c in SYSU for i in SYSU[c]],
            "all",
            ValueError,
            "no image",
        ),
    ],
)
def test_sysu_faults_are_named(sysu, spoil, split, error, text):
    spoil(sysu)
    with pytest.raises(error, match=text):
        SYSUMM01Dataset(sysu, split)


def test_a_split_without_the_chosen_modality_says_so(sysu):
    (sysu / "exp" / "test_id.txt").write_text("7")
    with pytest.raises(ValueError, match="no infrared image found in"):
        SYSUMM01Dataset(sysu, "test", modality=1)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"split": "query"}, ValueError, "split must be one of 'train'"),
        ({"modality": 2}, ValueError, "modality must be one of 0, 1, got 2"),
        ({"size": (4,)}, ValueError, re.escape("size must be (H, W), got (4,)")),
        ({"size": (4, 0)}, ValueError, re.escape("size[1] must be at least 1, got 0")),
        ({"size": (4.0, 4)}, TypeError, re.escape("size[0] must be an integer")),
    ],
)
def test_bad_arguments_are_named(sysu, regdb, arguments, error, text):
    for make, root in ((SYSUMM01Dataset, sysu), (RegDBDataset, regdb)):
        with pytest.raises(error, match=text):
            make(root, **arguments)


def test_regdb_by_hand(regdb):
    data = RegDBDataset(regdb, "train", trial=10, size=(4, 4))
    assert data.ids.tolist() == [30, 30, 4, 4] * 2
    assert data.labels.tolist() == [1, 1, 0, 0] * 2
    assert data.modality.tolist() == [0] * 4 + [1] * 4
    assert data.cameras.tolist() == [1] * 4 + [2] * 4
    assert data.image_numbers.tolist() == [1, 2, 1, 2] * 2
    assert data.paths[0] == regdb / "Visible" / "30" / "male v_00003_30.bmp"
    assert data.paths[7] == regdb / "Thermal" / "4" / "male t_00001_4.bmp"
    assert data.num_classes == 2
    assert data.name == "regdb"
    assert data[2].image[:, 0, 0].tolist() == [4, 3, 0]
    thermal = RegDBDataset(regdb, "all", modality=1)
    assert thermal.ids.tolist() == [30, 30, 4, 4, 11, 11]
    assert thermal.labels.tolist() == [2, 2, 0, 0, 1, 1]
    assert RegDBDataset(regdb, "test").ids.tolist() == [11] * 4


def rewrite(name, change):
    def spoil(root):
        path = root / "idx" / name
        path.write_text(change(path.read_text()))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "error", "text"),
    [
        (lambda r: shutil.rmtree(r), FileNotFoundError, "RegDB does not exist"),
        (lambda r: (r / "idx/train_thermal_1.txt").unlink(), FileNotFoundError, "train_thermal_1.txt does not exist"),
        (
            lambda r: (r / "Thermal/4/male t_00001_4.bmp").unlink(),
            FileNotFoundError,
            "line 4: file .*00001_4.bmp does not",
        ),
        (rewrite("train_visible_1.txt", lambda t: "\n"), ValueError, "train_visible_1.txt is empty"),
        (
            rewrite("train_visible_1.txt", lambda t: t + "Visible/4/x.bmp\n"),
            ValueError,
            "line 5: expected 'path label'",
        ),
        (
            rewrite("train_visible_1.txt", lambda t: t.replace("bmp 1", "bmp one")),
            ValueError,
            "line 3: expected 'path l",
        ),
        (
            rewrite("train_visible_1.txt", lambda t: t.replace("Visible/4", "/Visible/4")),
            ValueError,
            "line 3: .* relative",
        ),
        (rewrite("train_visible_1.txt", lambda t: t.replace("Visible/4", "../4")), ValueError, "line 3: .* relative"),
        (
            rewrite("train_visible_1.txt", lambda t: t.replace("Visible/4", "Visible/..")),
            ValueError,
            "line 3: .* relative",
        ),
        (rewrite("train_visible_1.txt", lambda t: t.replace("/", "\\")), ValueError, "line 1: .* relative"),
        (rewrite("train_visible_1.txt", lambda t: "C:/" + t), ValueError, "line 1: .* relative"),
        (
            rewrite("train_visible_1.txt", lambda t: t.replace("Visible/4", "Thermal/4")),
            ValueError,
            "line 3: expected Vis",
        ),
        (
            rewrite("train_visible_1.txt", lambda t: t.replace("Visible/4", "Visible/a")),
            ValueError,
            "line 3: expected Vis",
        ),
        (
            rewrite("train_visible_1.txt", lambda t: t.replace("4.bmp 1", "4.bmp 0", 1)),
            ValueError,
            "4 has the labels 0 and",
        ),
        (
            rewrite("train_visible_1.txt", lambda t: t.replace(" 1\n", " 0\n")),
            ValueError,
            "one label to several identities",
        ),
        (rewrite("train_visible_1.txt", lambda t: t + t), ValueError, "is listed twice, in .*train_visible_1.txt"),
        (
            rewrite("train_visible_1.txt", lambda t: t.replace(" 1\n", " 5\n")),
            ValueError,
            "thermal_1.txt .* disagree on 1 ",
        ),
        (
            rewrite("train_thermal_1.txt", lambda t: "".join(t.splitlines(keepends=True)[:2])),
            ValueError,
            "disagree on 1 identities or their labels, first identity 4",
        ),
        (
            lambda r: shutil.copy(r / "idx/train_visible_1.txt", r / "idx/test_visible_1.txt"),
            ValueError,
            "listed twice|disag",
        ),
    ],
)
def test_regdb_faults_are_named(regdb, spoil, error, text):
    spoil(regdb)
    with pytest.raises(error, match=text):
        RegDBDataset(regdb, "all")


@pytest.mark.parametrize("trial", [0, 11, -1])
def test_regdb_trial_is_one_to_ten(regdb, trial):
    with pytest.raises(ValueError, match=f"trial must be .*, got {trial}"):
        RegDBDataset(regdb, trial=trial)


def test_blank_lines_in_a_list_are_passed_over(regdb):
    path = regdb / "idx" / "train_visible_1.txt"
    path.write_text("\n" + path.read_text().replace("\n", "\r\n") + "\n")
    assert len(RegDBDataset(regdb)) == 8


def test_a_missing_pillow_is_named(sysu, hidden):
    hidden("PIL")
    data = SYSUMM01Dataset(sysu)  # the lists need no Pillow
    with pytest.raises(ImportError, match=re.escape("pip install 'vireid[train]'")):
        data[0]


def test_a_missing_tqdm_is_named(sysu, hidden):
    hidden("tqdm")
    with pytest.raises(ImportError, match=re.escape("tqdm: pip install 'vireid[train]'")):
        SYSUMM01Dataset(sysu).preload(progress=True)


@pytest.mark.skipif(not ROADSCENE.is_dir(), reason="roadscene-dev is not here")
@pytest.mark.parametrize("trial", [1, 7])
def test_roadscene(trial):
    parts = {split: RegDBDataset(ROADSCENE, split, trial=trial, size=(128, 64)) for split in ("train", "test", "all")}
    assert [len(parts[s]) for s in parts] == [4120, 4120, 8240]
    assert [parts[s].num_classes for s in parts] == [206, 206, 412]
    train, test, both = parts.values()
    assert not set(train.ids) & set(test.ids)
    assert both.labels.tolist() == (both.ids - 1).tolist()  # identities are 1 … 412
    assert np.array_equal(np.bincount(train.labels), np.full(206, 20))
    assert set(train.image_numbers) == set(range(1, 11))
    rows = (ROADSCENE / "idx" / f"test_thermal_{trial}.txt").read_text().split()
    assert [str(path.relative_to(ROADSCENE)) for path in test.paths[2060:]] == rows[::2]
    thermal = train[4119].image
    assert train[4119].modality == 1
    assert torch.equal(thermal, thermal[:1].expand(3, -1, -1))  # thermal images are grey
    with Image.open(train.paths[5]) as image:
        assert np.array_equal(np.asarray(image).transpose(2, 0, 1), train[5].image.numpy())  # 64×128 already
