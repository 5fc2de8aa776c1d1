"""Readers of the published layouts of SYSU-MM01, RegDB and LLCM.

The file lists are read and checked when a dataset is made, the images when they are asked for.
"""

import io
import operator
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vireid import INFRARED, VISIBLE
from vireid._checks import check_count, check_option, check_size
from vireid.data.keypoints import HeatmapFolder, load_keypoints

__all__ = ["KeypointSample", "LLCMDataset", "RegDBDataset", "SYSUMM01Dataset", "Sample"]


class Sample(NamedTuple):
    """One image with its annotations; ``default_collate`` makes it a `Sample` of batched tensors.

    Attributes:
        image: (3, H, W) uint8, RGB.
        label: identity, 0 … C-1.
        modality: 0 visible, 1 infrared.
        camera: number of the camera, from 1.
        index: position in the dataset.
    """

    image: Tensor
    label: int
    modality: int
    camera: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a sample


class KeypointSample(NamedTuple):
    """A `Sample` of a dataset that was given key points.

    Attributes:
        image: (3, H, W) uint8, RGB.
        label: identity, 0 … C-1.
        modality: 0 visible, 1 infrared.
        camera: number of the camera, from 1.
        index: position in the dataset.
        keypoints: float32; coordinates (K, 3) as pixels x, y of ``image`` and a number above 0 where visible, or
            heatmaps (K, h, w) over the image, whichever the dataset was given.
    """

    image: Tensor
    label: int
    modality: int
    camera: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a sample
    keypoints: Tensor


class _Record(NamedTuple):
    path: Path
    identity: int
    modality: int
    camera: int
    number: int


class _ImageDataset(Dataset[Sample | KeypointSample]):
    """What the datasets share once their layout has been read: the arrays, and reading and keeping images."""

    name: str

    def __init__(
        self,
        records: list[_Record],
        root: Path,
        *,
        modality: int | None,
        size: tuple[int, int],
        cache: bool,
        keypoints: str | Path | None,
    ) -> None:
        if modality is not None:
            check_option("modality", modality, (VISIBLE, INFRARED))
        check_size("size", size)
        # Labels are given before the modality is chosen, so that both halves of a split agree on them.
        known = np.unique(np.array([record.identity for record in records], dtype=np.int64))
        records = [record for record in records if modality is None or record.modality == modality]
        if not records:
            kind = "" if modality is None else (" visible", " infrared")[modality]
            raise ValueError(f"no{kind} image found in {root}")
        self.num_classes = len(known)
        self.root = root
        self.paths = [record.path for record in records]
        self.ids, self.modality, self.cameras, self.image_numbers = np.array(
            [record[1:] for record in records], dtype=np.int64
        ).T.copy()
        self.labels = np.searchsorted(known, self.ids)
        self.size = (size[0], size[1])
        self._cache: dict[int, Tensor] | None = {} if cache else None
        self._keypoints: Tensor | HeatmapFolder | None = None
        if keypoints is not None:
            try:
                if Path(keypoints).is_dir():
                    self._keypoints = HeatmapFolder(keypoints, self.paths, root, keep=cache)
                else:
                    names = [path.relative_to(root).as_posix() for path in self.paths]
                    self._keypoints = load_keypoints(keypoints).at(names, self.size)
            except (FileNotFoundError, ValueError) as error:
                raise type(error)(f"keypoints: {error} (keypoints={str(keypoints)!r})") from error

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample | KeypointSample:
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"index must be within the {len(self)} images, got {position}")
        position %= len(self)
        sample = Sample(
            self._image(position),
            int(self.labels[position]),
            int(self.modality[position]),
            int(self.cameras[position]),
            position,
        )
        if self._keypoints is None:
            return sample
        return KeypointSample(*sample, self._keypoints[position].clone())

    def preload(self, progress: bool = False) -> None:
        """Read all images into memory now, N·3·H·W bytes, and keep them, with or without ``cache``.

        Heatmaps, where the dataset was given them, are kept too: 2·N·K·h·w bytes. Call it before a `DataLoader` starts
        its workers: what a worker reads, it keeps for itself alone.

        Args:
            progress: show a bar; needs tqdm, of the extra ``train``.

        Raises:
            ValueError: if an image or its heatmaps cannot be read.
            ImportError: if the bar is wanted and tqdm is not installed.
        """
        if self._cache is None:
            self._cache = {}
        if isinstance(self._keypoints, HeatmapFolder) and self._keypoints.kept is None:
            self._keypoints.kept = {}
        with ThreadPoolExecutor() as pool:  # decoding and resizing let go of the interpreter lock
            done = pool.map(self.__getitem__, range(len(self)))
            if progress:
                try:
                    from tqdm import tqdm
                except ImportError as error:
                    raise ImportError("progress=True needs tqdm: pip install 'vireid[train]'") from error
                done = tqdm(done, total=len(self), desc=f"reading {self.name}")
            for _ in done:
                pass

    def _image(self, position: int) -> Tensor:
        if self._cache is None:
            return _read_image(self.paths[position], self.size)
        if position not in self._cache:
            self._cache[position] = _read_image(self.paths[position], self.size)
        return self._cache[position].clone()  # a caller may write into what it gets


class SYSUMM01Dataset(_ImageDataset):
    """SYSU-MM01 (Wu et al., ICCV 2017) in its published layout.

    ``root`` holds ``cam1`` … ``cam6``, each with a folder an identity (four digits) and in it the images ``0001.jpg``,
    …. An identity need not be seen by every camera, nor the numbers be complete. Cameras 1, 2, 4, 5 are visible, 3 and
    6 infrared. ``root/exp`` holds the lists of identities, one line of comma-separated numbers.

    | split      | identities                              | official |
    |------------|-----------------------------------------|----------|
    | "train"    | ``exp/train_id.txt``                    | 296      |
    | "val"      | ``exp/val_id.txt``, none of "train"     | 99       |
    | "trainval" | both; **what published results train on** | 395    |
    | "test"     | ``exp/test_id.txt``                     | 96       |
    | "all"      | every folder found, no list is read     | 491      |

    Images are in order of identity, camera, number. Labels belong to the split, not to the ``modality`` that is chosen
    of it.

    Args:
        root: folder of the dataset.
        split: as above.
        modality: 0 or 1 to keep only visible or infrared images; None for both.
        size: (height, width) that images are resized to, bilinear with antialiasing.
        cache: keep an image in memory once it has been read.
        keypoints: a file of coordinates (`save_keypoints`, ``keypoints.npz`` of `generate_synthetic`) or a folder of
            heatmaps (`vireid.data.pose.cache_heatmaps`), which covers every image of the split. Samples are then
            `KeypointSample`. A source that is missing, damaged or lacks an image raises FileNotFoundError or
            ValueError, as it is opened or, for damaged heatmaps, as they are asked for.

    Attributes:
        labels: (N,) int64 identities 0 … C-1, in ascending order of ``ids``.
        ids: (N,) int64 identities as in the folders' names.
        modality: (N,) int64, 0 visible, 1 infrared.
        cameras: (N,) int64, 1 … 6.
        image_numbers: (N,) int64, the number in the file's name, from 1.
        paths: the N files.
        root: folder of the dataset.
        num_classes: C, all identities of the split.
        name: "sysu".

    Raises:
        FileNotFoundError: if the root, a camera's folder or a list is missing.
        ValueError: if a list is empty or malformed, a folder or file is misnamed, or a listed identity has no image;
            when an image is asked for, if it cannot be read.
        ImportError: when an image is asked for, if Pillow, of the extra ``train``, is not installed.
    """

    name = "sysu"

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        modality: int | None = None,
        size: tuple[int, int] = (288, 144),
        cache: bool = False,
        keypoints: str | Path | None = None,
    ) -> None:
        root = Path(root)
        check_option("split", split, ("train", "val", "trainval", "test", "all"))
        _check_folder(root)
        parts = {"trainval": ("train", "val"), "all": ()}.get(split, (split,))
        lists = [_read_identities(root / "exp" / f"{part}_id.txt") for part in parts]
        listed = set().union(*lists)
        if len(listed) < sum(map(len, lists)):
            raise ValueError(f"{root / 'exp'}: train_id.txt and val_id.txt share identities")
        records = []
        for camera in range(1, 7):
            for folder in _visible_entries(root / f"cam{camera}"):
                if not re.fullmatch("[0-9]{4}", folder.name) or not folder.is_dir():
                    raise ValueError(f"{folder} must be a folder named by a four-digit identity")
                identity = int(folder.name)
                if parts and identity not in listed:
                    continue
                for path in _visible_entries(folder):
                    if not re.fullmatch(r"[0-9]{4}\.jpg", path.name):
                        raise ValueError(f"{path} must be named by a four-digit number and .jpg")
                    modality_of_camera = INFRARED if camera in (3, 6) else VISIBLE
                    records.append(_Record(path, identity, modality_of_camera, camera, int(path.stem)))
        if missing := sorted(listed - {record.identity for record in records}):
            raise ValueError(f"{root} holds no image of {len(missing)} listed identities, first {missing[0]:04d}")
        records.sort(key=lambda record: (record.identity, record.camera, record.number))
        super().__init__(records, root, modality=modality, size=size, cache=cache, keypoints=keypoints)


class RegDBDataset(_ImageDataset):
    """RegDB (Nguyen et al., Sensors 2017) in its published layout.

    ``root`` holds ``Visible/<identity>/…``, ``Thermal/<identity>/…`` and, for each of ten trials,
    ``idx/{train,test}_{visible,thermal}_<trial>.txt`` with a line ``path label`` an image; the path is relative to
    ``root``. The identity is the folder's number. The lists' own labels are checked (one label an identity, the same in
    the visible and the thermal list) and replaced by the order of the identities.

    Images are in the order of the lists, visible ones first. Labels belong to the split, not to the ``modality`` that
    is chosen of it.

    Args:
        root: folder of the dataset.
        split: "train" or "test", the lists of that name (206 identities each); "all", both together.
        trial: 1 … 10.
        modality: 0 or 1 to keep only visible or infrared images; None for both.
        size: (height, width) that images are resized to, bilinear with antialiasing.
        cache: keep an image in memory once it has been read.
        keypoints: a file of coordinates (`save_keypoints`, ``keypoints.npz`` of `generate_synthetic`) or a folder of
            heatmaps (`vireid.data.pose.cache_heatmaps`), which covers every image of the split. Samples are then
            `KeypointSample`. A source that is missing, damaged or lacks an image raises FileNotFoundError or
            ValueError, as it is opened or, for damaged heatmaps, as they are asked for.

    Attributes:
        labels: (N,) int64 identities 0 … C-1, in ascending order of ``ids``.
        ids: (N,) int64 identities as in the folders' names.
        modality: (N,) int64, 0 visible, 1 infrared (thermal).
        cameras: (N,) int64, 1 visible, 2 thermal.
        image_numbers: (N,) int64, position among the identity's images of this modality in its list, from 1.
        paths: the N files.
        root: folder of the dataset.
        num_classes: C, all identities of the split.
        name: "regdb".

    Raises:
        FileNotFoundError: if the root, a list or a listed file is missing.
        ValueError: if the trial is not 1 … 10, a list is empty or malformed, leaves ``root`` or names a file twice, or
            the visible and the thermal list disagree; when an image is asked for, if it cannot be read.
        ImportError: when an image is asked for, if Pillow, of the extra ``train``, is not installed.
    """

    name = "regdb"

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        trial: int = 1,
        modality: int | None = None,
        size: tuple[int, int] = (288, 144),
        cache: bool = False,
        keypoints: str | Path | None = None,
    ) -> None:
        root = Path(root)
        check_option("split", split, ("train", "test", "all"))
        check_count("trial", trial)
        if trial > 10:
            raise ValueError(f"trial must be 1 … 10, got {trial}")
        _check_folder(root)
        parts = ("train", "test") if split == "all" else (split,)
        seen: dict[Path, Path] = {}
        records: list[_Record] = []
        labels: dict[str, dict[int, int]] = {}
        for folder, kind in (("Visible", VISIBLE), ("Thermal", INFRARED)):
            counts: dict[int, int] = {}
            for part in parts:
                index = root / "idx" / f"{part}_{folder.lower()}_{trial}.txt"
                entries = _read_index(index, root, folder)
                for path, identity, _ in entries:
                    if path in seen:
                        raise ValueError(f"{path} is listed twice, in {seen[path]} and {index}")
                    seen[path] = index
                    counts[identity] = counts.get(identity, 0) + 1
                    records.append(_Record(path, identity, kind, kind + 1, counts[identity]))
                of_identity = {identity: label for _, identity, label in entries}
                if kind == VISIBLE:
                    labels[part] = of_identity
                elif differing := sorted(dict(labels[part].items() ^ of_identity.items())):
                    raise ValueError(
                        f"{index} and the visible list of this trial disagree on {len(differing)} identities "
                        f"or their labels, first identity {differing[0]}"
                    )
        super().__init__(records, root, modality=modality, size=size, cache=cache, keypoints=keypoints)


class LLCMDataset(_ImageDataset):
    """LLCM (Zhang and Wang, CVPR 2023) in its published layout.

    ``root`` holds

    - ``vis/<identity>/`` and ``nir/<identity>/`` with images named ``<identity>_c<camera>_….jpg``, and the lists
      ``idx/train_vis.txt`` and ``idx/train_nir.txt`` of those to train on, with a line ``path label`` an image; the
      path is relative to ``root``;
    - ``test_vis/cam<camera>/<identity>/`` and ``test_nir/cam<camera>/<identity>/`` with the test images, and
      ``idx/test_id.txt``, one line of comma-separated identities. Not every camera saw every identity. Infrared
      images are read from cameras 1, 2, 4 … 9, the ones that the authors' evaluation names.

    Officially 713 identities train (16,946 visible, 13,975 infrared images) and 351 test (8,680 and 7,166). The
    training lists' own labels are checked (one label an identity, the same in both) and replaced by the order of the
    identities.

    Images are in the order of the lists in training, and by identity, camera, name in the test, visible ones first.
    Labels belong to the split, not to the ``modality`` that is chosen of it.

    Args:
        root: folder of the dataset.
        split: "train", "test" or "all", both together.
        modality: 0 or 1 to keep only visible or infrared images; None for both.
        size: (height, width) that images are resized to, bilinear with antialiasing.
        cache: keep an image in memory once it has been read.
        keypoints: a file of coordinates (`save_keypoints`, ``keypoints.npz`` of `generate_synthetic`) or a folder of
            heatmaps (`vireid.data.pose.cache_heatmaps`), which covers every image of the split. Samples are then
            `KeypointSample`. A source that is missing, damaged or lacks an image raises FileNotFoundError or
            ValueError, as it is opened or, for damaged heatmaps, as they are asked for.

    Attributes:
        labels: (N,) int64 identities 0 … C-1, in ascending order of ``ids``.
        ids: (N,) int64 identities as in the folders' names.
        modality: (N,) int64, 0 visible, 1 infrared.
        cameras: (N,) int64, 1 … 9.
        image_numbers: (N,) int64, place of the file's name among those of its identity, camera and modality in the
            split, from 1.
        paths: the N files.
        root: folder of the dataset.
        num_classes: C, all identities of the split.
        name: "llcm".

    Raises:
        FileNotFoundError: if the root, a list, ``test_vis`` or ``test_nir``, or a listed file is missing.
        ValueError: if a list is empty or malformed, leaves ``root`` or names a file twice, the two training lists
            disagree, a folder or a listed file is misnamed, a test identity has no image, or an identity is both in
            training and in the test; when an image is asked for, if it cannot be read.
        ImportError: when an image is asked for, if Pillow, of the extra ``train``, is not installed.
    """

    name = "llcm"

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        modality: int | None = None,
        size: tuple[int, int] = (288, 144),
        cache: bool = False,
        keypoints: str | Path | None = None,
    ) -> None:
        root = Path(root)
        check_option("split", split, ("train", "test", "all"))
        _check_folder(root)
        found: dict[str, list[_Record]] = {}
        if split != "test":
            found["train"] = _llcm_train(root)
        if split != "train":
            found["test"] = _llcm_test(root)
        people = [{record.identity for record in records} for records in found.values()]
        if len(people) == 2 and (both := sorted(people[0] & people[1])):
            raise ValueError(f"{root / 'idx'}: {len(both)} identities both train and test, first {both[0]:04d}")
        records = sorted((r for part in found.values() for r in part), key=lambda record: record.modality)
        super().__init__(records, root, modality=modality, size=size, cache=cache, keypoints=keypoints)


def _llcm_train(root: Path) -> list[_Record]:
    records: list[_Record] = []
    labels: dict[int, int] = {}
    for folder, kind in (("vis", VISIBLE), ("nir", INFRARED)):
        index = root / "idx" / f"train_{folder}.txt"
        unnumbered: list[_Record] = []
        for path, identity, label in _read_index(index, root, folder):
            match = re.fullmatch(r"[0-9]+_c0*([1-9])_.+", path.name)
            if match is None:
                raise ValueError(f"{index}: expected a file named <identity>_c<camera 1 … 9>_…, got {path.name!r}")
            if labels.setdefault(identity, label) != label:
                raise ValueError(f"{index}: identity {identity} has the labels {labels[identity]} and {label}")
            unnumbered.append(_Record(path, identity, kind, int(match[1]), 0))
        if len({record.path for record in unnumbered}) < len(unnumbered):
            raise ValueError(f"{index} lists a file twice")
        records += _numbered_by_name(unnumbered)
    if len(set(labels.values())) < len(labels):
        raise ValueError(f"{root / 'idx'}: the training lists give one label to several identities")
    return records


def _llcm_test(root: Path) -> list[_Record]:
    listed = _read_identities(root / "idx" / "test_id.txt")
    records = []
    for folder, kind in (("test_vis", VISIBLE), ("test_nir", INFRARED)):
        for place in _visible_entries(root / folder):
            match = re.fullmatch("cam([1-9])", place.name)
            if match is None or not place.is_dir():
                raise ValueError(f"{place} must be a folder named cam1 … cam9")
            camera = int(match[1])
            if kind == INFRARED and camera == 3:
                continue
            for person in _visible_entries(place):
                if not re.fullmatch("[0-9]{4}", person.name) or not person.is_dir():
                    raise ValueError(f"{person} must be a folder named by a four-digit identity")
                if int(person.name) in listed:
                    records += [
                        _Record(path, int(person.name), kind, camera, number)
                        for number, path in enumerate(_visible_entries(person), 1)
                    ]
    if missing := sorted(listed - {record.identity for record in records}):
        raise ValueError(f"{root} holds no test image of {len(missing)} listed identities, first {missing[0]:04d}")
    return sorted(records, key=lambda record: (record.modality, record.identity, record.camera, record.number))


def _numbered_by_name(records: list[_Record]) -> list[_Record]:
    """The records in the order given, numbered from 1 by name within identity and camera."""
    counts: dict[tuple[int, int], int] = {}
    numbers: dict[Path, int] = {}
    for record in sorted(records, key=lambda record: record.path.name):
        key = (record.identity, record.camera)
        counts[key] = numbers[record.path] = counts.get(key, 0) + 1
    return [record._replace(number=numbers[record.path]) for record in records]


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise FileNotFoundError(f"folder {path} does not exist")


def _visible_entries(folder: Path) -> list[Path]:
    """What a folder holds, sorted by name, without the files that operating systems leave behind."""
    _check_folder(folder)
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.name != "Thumbs.db")


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"file {path} does not exist")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file") from error


def _read_identities(path: Path) -> set[int]:
    entries = [entry.strip() for entry in _read_text(path).strip().split(",")]
    if entries == [""]:
        raise ValueError(f"{path} is empty, expected comma-separated identities")
    for entry in entries:
        if not re.fullmatch("[0-9]{1,18}", entry):
            raise ValueError(f"{path} must hold comma-separated identities, got {entry[:40]!r}")
    identities = set(map(int, entries))
    if len(identities) < len(entries):
        raise ValueError(f"{path} lists an identity twice")
    return identities


def _read_index(index: Path, root: Path, folder: str) -> list[tuple[Path, int, int]]:
    """(path, identity, label) of each line of a list of RegDB or LLCM; an identity has one label, and a label one."""
    entries = []
    labels: dict[int, int] = {}
    for number, line in enumerate(_read_text(index).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{index}, line {number}"
        match = re.fullmatch(r"\s*(\S.*?)\s+([0-9]{1,18})\s*", line)
        if match is None:
            raise ValueError(f"{where}: expected 'path label', got {line[:80]!r}")
        listed, label = match[1], int(match[2])
        parts = PurePosixPath(listed).parts
        if ".." in parts or PurePosixPath(listed).is_absolute() or "\\" in listed or ":" in listed:
            raise ValueError(f"{where}: the path must be relative and stay inside {root}, got {listed!r}")
        if len(parts) != 3 or parts[0] != folder or not re.fullmatch("[0-9]{1,18}", parts[1]):
            raise ValueError(f"{where}: expected {folder}/<identity number>/<file>, got {listed[:80]!r}")
        path, identity = root.joinpath(*parts), int(parts[1])
        try:
            there = path.is_file()
        except OSError as error:  # a name longer than the system takes
            raise ValueError(f"{where}: cannot look for {listed[:80]!r}: {error.strerror}") from error
        if not there:
            raise FileNotFoundError(f"{where}: file {path} does not exist")
        if labels.setdefault(identity, label) != label:
            raise ValueError(f"{where}: identity {identity} has the labels {labels[identity]} and {label}")
        entries.append((path, identity, label))
    if not entries:
        raise ValueError(f"{index} is empty, expected lines 'path label'")
    if len(set(labels.values())) < len(labels):
        raise ValueError(f"{index} gives one label to several identities")
    return entries


def _read_image(path: Path, size: tuple[int, int]) -> Tensor:
    """(3, H, W) uint8 RGB, resized to (height, width)."""
    return decode_image(path, path, size)


def decode_image(file: Path | io.BytesIO, path: Path, size: tuple[int, int] | None) -> Tensor:
    """(3, H, W) uint8 RGB of an open or closed file, resized to (height, width) if given; ``path`` is for messages."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading images needs Pillow: pip install 'vireid[train]'") from error
    try:
        with Image.open(file) as opened:
            if opened.mode.startswith(("I", "F")):  # convert("RGB") would cut such values off at 255
                raise ValueError(f"expected 8 bits a channel, got mode {opened.mode}")
            image = opened.convert("RGB")
            if size is not None:
                image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read image {path}: {error}") from error
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
