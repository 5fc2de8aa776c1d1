"""Readers of the published layouts, each by hand, and every fault of a layout."""

import os
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from layouts import LLCM_TEST, SYSU, llcm_name, save
from places import SHARED
from vireid.data import LLCMDataset, RegDBDataset, SYSUMM01Dataset
from vireid.protocols import LLCM

ROADSCENE = SHARED / "data" / "roadscene-dev"


def rows(data):
    """(identity, modality, camera, number) of each image."""
    columns = (data.ids, data.modality, data.cameras, data.image_numbers)
    return [tuple(map(int, row)) for row in zip(*columns, strict=True)]


def edit(name, *changes):
    """Return a function that replaces text in a file below the data set's folder, or all of it."""

    def spoil(root):
        text = (root / name).read_text()
        for old, new, *count in changes:
            text = text.replace(old, new, *count) if old else new(text) if callable(new) else new
        (root / name).write_text(text)

    return spoil


def absent(name):
    return lambda root: shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()


def check_faults(make, root, spoil, error, text):
    spoil(root)
    with pytest.raises(error, match=text):
        make(root)


def faults(*cases):
    return pytest.mark.parametrize(("spoil", "error", "text"), cases)


# -- SYSU-MM01 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "identities"),
    [("train", [2, 12]), ("val", [9]), ("trainval", [2, 9, 12]), ("test", [5, 7]), ("all", [2, 5, 7, 9, 12])],
)
@pytest.mark.parametrize("modality", [None, 0, 1])
def test_sysu_splits(sysu, split, identities, modality):
    wanted = [
        (identity, int(camera in (3, 6)), camera, number)
        for identity in identities
        for camera in SYSU
        for number in sorted(SYSU[camera].get(identity, []))
        if modality in (None, int(camera in (3, 6)))
    ]
    data = SYSUMM01Dataset(sysu, split, modality=modality)
    assert rows(data) == wanted
    assert data.labels.tolist() == [identities.index(row[0]) for row in wanted]
    assert data.num_classes == len(identities)
    assert data.paths == [sysu / f"cam{row[2]}" / f"{row[0]:04d}" / f"{row[3]:04d}.jpg" for row in wanted]


def test_sysu_all_reads_no_list(sysu):
    shutil.rmtree(sysu / "exp")
    assert SYSUMM01Dataset(sysu, "all").num_classes == 5


TEST, VAL = "exp/test_id.txt", "exp/val_id.txt"


@pytest.mark.parametrize("split", ["test", "trainval", "all"])
@faults(
    (absent("cam5"), FileNotFoundError, "cam5 does not exist"),
    (lambda r: (r / "cam2/17").mkdir(), ValueError, "cam2/17 must be a folder named by a four-digit"),
    (lambda r: (r / "cam2/0017").write_text(""), ValueError, "cam2/0017 must be a folder"),
)
def test_sysu_faults_of_folders(sysu, split, spoil, error, text):
    check_faults(lambda root: SYSUMM01Dataset(root, split), sysu, spoil, error, text)


@faults(
    (absent(TEST), FileNotFoundError, "test_id.txt does not exist"),
    (edit(TEST, ("", " \n")), ValueError, "test_id.txt is empty"),
    (edit(TEST, ("", "5,x7")), ValueError, "test_id.txt must hold .* got 'x7'"),
    (edit(TEST, ("", "5,7,")), ValueError, "test_id.txt must hold .* got ''"),
    (edit(TEST, ("", "5\n7")), ValueError, "test_id.txt must hold"),
    (edit(TEST, ("", "5,-7")), ValueError, "test_id.txt must hold .* got '-7'"),
    (edit(TEST, ("", "5,5")), ValueError, "test_id.txt lists an identity twice"),
    (lambda r: (r / TEST).write_bytes(b"\xff5"), ValueError, "test_id.txt is not a text file"),
    (edit(TEST, ("", "5,88,7")), ValueError, "no image .* 1 listed .* 0088"),
    (lambda r: save(r / "cam1/0005/12.jpg"), ValueError, "cam1/0005/12.jpg must be named by"),
    (lambda r: save(r / "cam1/0005/0001.png"), ValueError, "cam1/0005/0001.png must be named by"),
)
def test_sysu_faults(sysu, spoil, error, text):
    check_faults(lambda root: SYSUMM01Dataset(root, "test"), sysu, spoil, error, text)


@faults(
    (absent(VAL), FileNotFoundError, "val_id.txt does not exist"),
    (edit(VAL, ("", "2")), ValueError, "exp: .* share identities"),
)
def test_sysu_faults_of_two_lists(sysu, spoil, error, text):
    check_faults(lambda root: SYSUMM01Dataset(root, "trainval"), sysu, spoil, error, text)


def test_sysu_without_images(sysu):
    for folder in sysu.glob("cam*/*"):
        shutil.rmtree(folder)
    with pytest.raises(ValueError, match="no image found in"):
        SYSUMM01Dataset(sysu, "all")


def test_a_split_without_the_chosen_modality_is_named(sysu):
    (sysu / TEST).write_text("7")
    with pytest.raises(ValueError, match="no infrared image found in"):
        SYSUMM01Dataset(sysu, "test", modality=1)


# -- RegDB ---------------------------------------------------------------------------------------------------------


def test_regdb_by_hand(regdb):
    data = RegDBDataset(regdb, "train", trial=10, size=(4, 4))
    assert rows(data) == [(i, kind, kind + 1, n) for kind in (0, 1) for i in (30, 4) for n in (1, 2)]
    assert data.labels.tolist() == [1, 1, 0, 0] * 2
    assert data.paths[0] == regdb / "Visible" / "30" / "male v_00003_30.bmp"
    assert data.paths[7] == regdb / "Thermal" / "4" / "male t_00001_4.bmp"
    assert (data.num_classes, data.trial) == (2, 10)
    assert data[2].image[:, 0, 0].tolist() == [4, 3, 0]
    thermal = RegDBDataset(regdb, "all", modality=1)
    assert thermal.ids.tolist() == [30, 30, 4, 4, 11, 11]
    assert thermal.labels.tolist() == [2, 2, 0, 0, 1, 1]
    assert RegDBDataset(regdb, "test").ids.tolist() == [11] * 4


VISIBLE, THERMAL = "idx/train_visible_1.txt", "idx/train_thermal_1.txt"


@faults(
    (absent(THERMAL), FileNotFoundError, "train_thermal_1.txt does not exist"),
    (absent("Thermal/4/male t_00001_4.bmp"), FileNotFoundError, "line 4: file .*00001_4.bmp does not"),
    (edit(VISIBLE, ("", "\n")), ValueError, "train_visible_1.txt is empty"),
    (edit(VISIBLE, ("", lambda t: t + "Visible/4/x.bmp\n")), ValueError, "line 5: expected 'path label'"),
    (edit(VISIBLE, ("bmp 1", "bmp one")), ValueError, "line 3: expected 'path l"),
    (edit(VISIBLE, ("Visible/4", "/Visible/4")), ValueError, "line 3: .* relative"),
    (edit(VISIBLE, ("Visible/4", "../4")), ValueError, "line 3: .* relative"),
    (edit(VISIBLE, ("Visible/4", "Visible/..")), ValueError, "line 3: .* relative"),
    (edit(VISIBLE, ("Visible/4", "\\\\host\\4")), ValueError, "line 3: .* relative"),
    (edit(VISIBLE, ("Visible/4", "Visible\\..")), ValueError, "line 3: .* relative"),
    (edit(VISIBLE, ("3_30.bmp 0", "3_30.bmp \0 0")), ValueError, "not a text file, it holds zero"),
    (edit(VISIBLE, ("", "a" + " " * 10**6 + "b\n")), ValueError, "line 1: expected 'path label'"),
    (edit(VISIBLE, (" 0\n", f" {'9' * 10**6}\n")), ValueError, "line 1: expected 'path label'"),
    (lambda r: os.truncate(r / VISIBLE, 2**33), ValueError, "at most .* bytes, got 8589934592"),
    (edit(VISIBLE, ("", lambda t: "C:/" + t)), ValueError, "line 1: .* relative"),
    (edit(VISIBLE, ("Visible/4", "Thermal/4")), ValueError, "line 3: expected Vis"),
    (edit(VISIBLE, ("Visible/4", "Visible/a")), ValueError, "line 3: expected Vis"),
    (edit(VISIBLE, ("4.bmp 1", "4.bmp 0", 1)), ValueError, "4 has the labels 0 and"),
    (edit(VISIBLE, (" 1\n", " 0\n")), ValueError, "one label to several identities"),
    (edit(VISIBLE, ("", lambda t: t + t)), ValueError, "is listed twice, in .*train_visible_1.txt"),
    (edit(VISIBLE, (" 1\n", " 5\n")), ValueError, "thermal_1.txt .* disagree on 1 "),
    (
        edit(THERMAL, ("", lambda t: "".join(t.splitlines(keepends=True)[:2]))),
        ValueError,
        "disagree on 1 identities or their labels, first identity 4",
    ),
    (lambda r: shutil.copy(r / VISIBLE, r / "idx/test_visible_1.txt"), ValueError, "listed twice|disag"),
)
def test_regdb_faults(regdb, spoil, error, text):
    check_faults(lambda root: RegDBDataset(root, "all"), regdb, spoil, error, text)


@pytest.mark.parametrize("trial", [0, 11, -1])
def test_regdb_trial_is_one_to_ten(regdb, trial):
    with pytest.raises(ValueError, match=f"trial must be .*, got {trial}"):
        RegDBDataset(regdb, trial=trial)


def test_blank_lines_in_a_list_are_passed_over(regdb):
    edit(VISIBLE, ("\n", "\r\n"), ("", lambda t: f"\n{t}\n"))(regdb)
    assert len(RegDBDataset(regdb)) == 8


@pytest.mark.skipif(not ROADSCENE.is_dir(), reason="roadscene-dev is not here")
def test_roadscene_is_read_as_regdb():
    parts = {split: RegDBDataset(ROADSCENE, split, trial=7, size=(128, 64)) for split in ("train", "test", "all")}
    assert [len(parts[s]) for s in parts] == [4120, 4120, 8240]
    assert [parts[s].num_classes for s in parts] == [206, 206, 412]
    train, test, both = parts.values()
    assert not set(train.ids) & set(test.ids)
    assert both.labels.tolist() == (both.ids - 1).tolist()  # identities are 1 … 412
    assert np.array_equal(np.bincount(train.labels), np.full(206, 20))
    assert set(train.image_numbers) == set(range(1, 11))
    lines = (ROADSCENE / "idx" / "test_thermal_7.txt").read_text().split()
    assert [str(path.relative_to(ROADSCENE)) for path in test.paths[2060:]] == lines[::2]
    thermal = train[4119].image
    assert train[4119].modality == 1
    assert torch.equal(thermal, thermal[:1].expand(3, -1, -1))  # thermal images are gray
    with Image.open(train.paths[5]) as image:
        assert np.array_equal(np.asarray(image).transpose(2, 0, 1), train[5].image.numpy())  # 64×128 already


# -- LLCM ----------------------------------------------------------------------------------------------------------


def frames(data):
    return [int(re.search(r"_f(\d+)_", path.name)[1]) for path in data.paths]


def test_llcm_training_images_are_those_of_the_lists(llcm):
    data = LLCMDataset(llcm, size=(4, 4))
    assert rows(data) == [(7, 0, 1, 2), (7, 0, 1, 1), (2, 0, 9, 1), (2, 1, 4, 1), (7, 1, 5, 1), (7, 1, 3, 1)]
    assert frames(data) == [20, 3, 1, 8, 6, 1]  # numbers go by name within identity and camera
    assert data.labels.tolist() == [1, 1, 0, 0, 1, 1]
    sample = data[0]
    assert sample[1:] == (1, 0, 1, 0)
    assert (sample.image[:, 0, 0].int() - torch.tensor([7, 1, 20])).abs().max() <= 3
    assert LLCMDataset(llcm, modality=1).labels.tolist() == [0, 1, 1]


def test_llcm_test_images_are_those_of_the_cameras_folders(llcm):
    save(llcm / "test_nir" / "cam3" / "0003" / llcm_name(3, 3, 1, "nir"))  # the authors' evaluation leaves it out
    save(llcm / "test_vis" / "cam1" / "0099" / llcm_name(99, 1, 1, "vis"))  # not listed
    shutil.rmtree(llcm / "vis")  # the test needs no training images
    data = LLCMDataset(str(llcm), "test")
    wanted = [
        (identity, kind, camera, number, frame)
        for kind, folder in enumerate(("test_vis", "test_nir"))
        for identity in (3, 5, 12)
        for camera in range(1, 10)
        for number, frame in enumerate(sorted(LLCM_TEST[folder][identity].get(camera, [])), 1)
    ]
    assert [(*row, frame) for row, frame in zip(rows(data), frames(data), strict=True)] == wanted
    assert data.labels.tolist() == [(3, 5, 12).index(row[0]) for row in wanted]
    assert data.paths[0] == llcm / "test_vis" / "cam1" / "0003" / llcm_name(3, 1, 4, "vis")
    assert len(LLCMDataset(llcm, "test", modality=1)) == 6


def test_arrays_of_llcm_suit_its_protocol(llcm):
    data = LLCMDataset(llcm, "test")
    features = np.random.default_rng(0).normal(size=(len(data), 4)).astype(np.float32)
    for direction, valid in (("infrared_to_visible", 5), ("visible_to_infrared", 4)):
        report = LLCM(direction).evaluate(features, data.ids, data.modality, data.cameras, data.image_numbers)
        # identity 12 has no visible image; 5 has infrared ones only in camera 2, where three of its visible ones are
        assert (report.rows[0].queries[0].first_match > 0).sum(1).tolist() == [valid] * 10


VIS, NIR, TEST_IDS = "idx/train_vis.txt", "idx/train_nir.txt", "idx/test_id.txt"


def shared_label(root):
    """Each list holds one identity, and both the same label."""
    edit(VIS, ("", lambda t: t.splitlines(keepends=True)[0]))(root)
    edit(NIR, ("", lambda t: t.splitlines()[0].replace(" 0", " 1")))(root)


def camera_ten(root):
    (root / "vis/0002" / llcm_name(2, 9, 1, "vis")).rename(root / "vis/0002/0002_c10_x.jpg")
    edit(VIS, (llcm_name(2, 9, 1, "vis"), "0002_c10_x.jpg"))(root)


def in_both_parts(root):
    save(root / "test_vis/cam1/0007/a.jpg")
    edit(TEST_IDS, ("", "3,5,7"))(root)


@faults(
    (absent(NIR), FileNotFoundError, "train_nir.txt does not exist"),
    (absent(TEST_IDS), FileNotFoundError, "test_id.txt does not exist"),
    (absent("test_nir"), FileNotFoundError, "test_nir does not exist"),
    (absent("nir"), FileNotFoundError, "train_nir.txt, line 1: file .*_f008_nir.jpg does not"),
    (edit(VIS, ("", "")), ValueError, "train_vis.txt is empty"),
    (edit(VIS, ("vis/0002", "../0002")), ValueError, "line 3: .* relative"),
    (edit(VIS, ("vis/0002", "nir/0002")), ValueError, "line 3: expected vis/"),
    (edit(VIS, ("0002_", "0002_" + "a" * 5000)), ValueError, "line 3: cannot look"),
    (edit(VIS, (" 1\n", f" {'9' * 5000}\n", 1)), ValueError, "vis.txt, line 1: exp"),
    (edit(VIS, ("vis/0002", "vis/" + "9" * 30)), ValueError, "vis.txt, line 3: exp"),
    (edit(TEST_IDS, ("", "3," + "9" * 30)), ValueError, "test_id.txt must hold comma-separated"),
    (edit(VIS, ("", lambda t: t + t)), ValueError, "train_vis.txt lists a file twice"),
    (edit(VIS, (" 1\n", " 2\n", 1)), ValueError, "7 has the labels 2 and 1"),
    (edit(NIR, (" 1\n", " 3\n")), ValueError, "train_nir.txt, line 2: identity 7 has the labels 1 and 3"),
    (edit(VIS, (" 0\n", " 1\n")), ValueError, "one label to several identities"),
    (shared_label, ValueError, "train_nir.txt gives one label to several identities"),
    (edit(TEST_IDS, ("", "3 5")), ValueError, "test_id.txt must hold .* got '3 5'"),
    (edit(TEST_IDS, ("", "3,77")), ValueError, "no test image of 1 listed identities, first 0077"),
    (lambda r: (r / "test_vis/cam10").mkdir(), ValueError, "cam10 must be a folder named cam1"),
    (lambda r: (r / "test_vis/cam8").write_text(""), ValueError, "cam8 must be a folder named cam1"),
    (lambda r: (r / "test_vis/cam1/3").mkdir(), ValueError, "cam1/3 must be a folder named by a four-digit"),
    (camera_ten, ValueError, "expected a file named <identity>_c<camera 1 … 9>_…, got '0002_c10_x.jpg'"),
    (in_both_parts, ValueError, "1 identities both train and test, first 0007"),
)
def test_llcm_faults(llcm, spoil, error, text):
    check_faults(lambda root: LLCMDataset(root, "all"), llcm, spoil, error, text)
