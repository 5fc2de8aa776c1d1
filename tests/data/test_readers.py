"""Contract of all readers: arrays, samples, images read, kept and checked."""

import os
import pickle
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, default_collate

from vireid.data import LLCMDataset, RegDBDataset, Sample, SYSUMM01Dataset


def rows(data):
    """(identity, modality, camera, number) of each image."""
    return np.stack([data.ids, data.modality, data.cameras, data.image_numbers], 1).tolist()


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


def folders_of(root):
    return [path for path in root.rglob("*") if path.is_dir() and path.name not in ("idx", "exp")]


def test_files_of_the_operating_system_are_passed_over(reader):
    make, root = reader
    before = make(root, "all")
    for folder in folders_of(root):
        for name in (".DS_Store", "Thumbs.db", "THUMBS.DB", "ehthumbs.db", "desktop.ini", "._0001.jpg", "Icon\r"):
            (folder / name).write_bytes(b"x")
        for name in ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", "System Volume Information"):
            (folder / name).mkdir()
            (folder / name / "0001.jpg").write_bytes(b"x")
    after = make(root, "all")
    assert (after.paths, rows(after)) == (before.paths, rows(before))


BACKUPS = ("0001.jpg~", "0001.jpg.bak", "0000 (1).jpg", "0000(1).jpg", "Copy of 1.png", "1 - 副本.BMP")


@pytest.mark.parametrize("name", ["notes.txt", "0001.tif", *BACKUPS])
def test_unexpected_files_are_passed_over_and_said_once(llcm, name):
    before = LLCMDataset(llcm, "all")
    for folder in (llcm / "test_vis/cam1/0003", llcm / "test_nir/cam8/0012"):
        (folder / name).write_bytes(b"x")
    with pytest.warns(UserWarning, match="LLCM holds 2 entries that are no images of the data set, first") as found:
        after = LLCMDataset(llcm, "all")
    assert len(found) == 1
    assert repr(f"test_vis/cam1/0003/{name}") in str(found[0].message)
    assert found[0].filename == __file__
    assert (after.paths, rows(after)) == (before.paths, rows(before))


def test_files_beside_folders_and_folders_beside_images_are_said(sysu):
    before = SYSUMM01Dataset(sysu, "all").paths
    (sysu / "cam3" / "copied.txt").write_text("x")
    (sysu / "cam1" / "0002" / "old.jpg").mkdir()
    os.mkfifo(sysu / "cam1" / "0002" / "0009.jpg")  # reading it would never end
    with pytest.warns(UserWarning, match="SYSU-MM01 holds 3 entries"):
        assert SYSUMM01Dataset(sysu, "all").paths == before


def test_endings_of_images_are_read_in_any_case(sysu, llcm):
    image = sysu / "cam1" / "0002" / "0001.jpg"
    numbers = SYSUMM01Dataset(sysu).image_numbers.tolist()
    shutil.copy(image, image.with_suffix(".JPG"))
    with pytest.raises(ValueError, match="cam1/0002 holds two images of one number"):
        SYSUMM01Dataset(sysu)
    image.unlink()
    assert SYSUMM01Dataset(sysu).image_numbers.tolist() == numbers
    count = len(LLCMDataset(llcm, "test"))
    for image in (llcm / "test_vis").rglob("*.jpg"):
        image.rename(image.with_suffix(".JPEG"))
    assert len(LLCMDataset(llcm, "test")) == count


def test_a_link_to_nothing_is_an_image_that_cannot_be_read(sysu):
    image = sysu / "cam1" / "0002" / "0001.jpg"
    image.unlink()
    image.symlink_to("moved.jpg")
    with pytest.raises(ValueError, match=f"cannot read image {re.escape(str(image))}: .*No such file"):
        SYSUMM01Dataset(sysu)[0]


def notepad(text):
    return text.replace("\n", "\r\n")


SAVED_BY = {
    "UTF-8 with a mark": lambda text: notepad(text).encode("utf-8-sig"),
    "UTF-16 of Windows": lambda text: notepad(text).encode("utf-16"),
    "UTF-16, big end first": lambda text: notepad("\ufeff" + text).encode("utf-16-be"),
    "an old Macintosh": lambda text: text.replace("\n", "\r").encode(),
    "DOS": lambda text: notepad(text).encode() + b"\r\n\x1a",
    "a crash": lambda text: text.encode() + bytes(700),
    "two marked files joined": lambda text: b"\xef\xbb\xbf" + text.encode().replace(b"\n", b"\n\xef\xbb\xbf"),
    "no final line end": lambda text: text.strip().encode(),
    "spaces": lambda text: f"\t {text.replace(chr(10), f' {chr(9)}{chr(10)} {chr(10)}')} ".encode(),
}


@pytest.mark.parametrize("program", SAVED_BY)
def test_lists_are_read_however_they_were_saved(reader, program):
    make, root = reader
    before = [make(root, split) for split in make.splits]
    for path in [*root.glob("idx/*.txt"), *root.glob("exp/*.txt")]:
        path.write_bytes(SAVED_BY[program](path.read_text()))
    for data in before:
        again = make(root, make.splits[before.index(data)])
        assert (again.paths, rows(again), again.labels.tolist()) == (data.paths, rows(data), data.labels.tolist())


@pytest.mark.parametrize("reader", ["regdb", "llcm"], indirect=True)
def test_paths_in_lists_may_have_backslashes(reader):
    make, root = reader
    before = make(root).paths
    for path in root.glob("idx/train_*.txt"):
        path.write_text(path.read_text().replace("/", "\\"))
    assert make(root).paths == before


def test_a_list_in_another_encoding_is_named(regdb):
    path = regdb / "idx" / "train_visible_1.txt"
    path.write_bytes(path.read_text().replace("male", "männlich").encode("latin-1"))
    with pytest.raises(ValueError, match=r"train_visible_1\.txt is not a text file in UTF-8"):
        RegDBDataset(regdb)


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
        ({"size": (4, 0)}, ValueError, re.escape("size[1] must be at least 1, got 0")),
        ({"root": b"data"}, TypeError, "root must be a path, got b'data'"),
    ],
)
def test_bad_arguments_are_named(reader, arguments, error, text):
    make, root = reader
    with pytest.raises(error, match=text):
        make(**({"root": root} | arguments))


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


def stored(path, image, form, **options):
    """Store ``image`` in another format under the same name, and return its pixels as they must be read."""
    image.save(path, form, **options)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def test_only_formats_of_the_data_sets_are_opened(sysu, monkeypatch):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 6, 3), np.uint8))
    data = SYSUMM01Dataset(sysu, size=(8, 6))
    for form in ("EPS", "GIF", "TIFF", "WEBP", "PPM", "ICO", "TGA", "PCX", "PDF"):
        image.save(data.paths[0], form)
        with pytest.raises(ValueError, match=f"cannot read image .*{data.paths[0].name}: expected .* JPEG, PNG, BMP"):
            data[0]
    palette = image.quantize(16)
    turned = Image.Exif()
    turned[0x0112] = 6  # the pixels are read as they are stored
    for form, picture, options in (
        ("PNG", image, {"exif": turned}),
        ("PNG", palette, {}),
        ("PNG", palette, {"transparency": bytes(range(16))}),
        ("PNG", palette, {"transparency": 3}),
        ("PNG", image.convert("RGBA"), {}),
        ("PNG", image.convert("LA"), {}),
        ("PNG", image.convert("1"), {}),
        ("PNG", image, {"save_all": True, "append_images": [image.rotate(180)]}),
        ("BMP", image, {}),
        ("BMP", palette, {}),
    ):
        wanted = stored(data.paths[0], picture, form, **options)
        assert torch.equal(data[0].image, wanted), (form, picture.mode, options)
    wanted = stored(data.paths[0], Image.new("CMYK", (6, 8), (20, 90, 160, 40)), "JPEG", quality=100)
    assert (data[0].image.int() - wanted.int()).abs().max() <= 3


def test_pixels_are_counted_before_an_image_is_decoded(sysu, monkeypatch):
    def load(self):
        raise AssertionError("decoded")

    data = SYSUMM01Dataset(sysu, size=(4, 4))
    with monkeypatch.context() as patched:
        patched.setattr("PIL.PngImagePlugin.PngImageFile.load_prepare", load)
        Image.new("1", (9000, 9000)).save(data.paths[0], "PNG")
        with pytest.raises(ValueError, match="expected at most 67108864 pixels, got 9000 × 9000"):
            data[0]
    Image.new("1", (100, 50)).save(data.paths[0], "PNG")
    assert SYSUMM01Dataset(sysu, max_pixels=5000)[0].image.shape == (3, 288, 144)
    with pytest.raises(ValueError, match="expected at most 4999 pixels, got 100 × 50"):
        SYSUMM01Dataset(sysu, max_pixels=4999)[0]


def test_threads_share_one_dataset(sysu):
    plain = SYSUMM01Dataset(sysu, "all", size=(6, 4))
    wanted = [plain[i].image for i in range(len(plain))]
    for _ in range(5):
        data = SYSUMM01Dataset(sysu, "all", size=(6, 4))
        with ThreadPoolExecutor(8) as pool:
            preloaded = [pool.submit(data.preload) for _ in range(2)]
            read = pool.map(data.__getitem__, [*range(len(data))] * 4)
            assert all(torch.equal(x.image, y) for x, y in zip(read, wanted * 4, strict=True))
            assert all(task.result() is None for task in preloaded)
        assert sorted(data._kept) == [*range(len(data))]  # every image is kept, whoever read it


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
