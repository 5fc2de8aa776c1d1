"""Shared base of the datasets, and readers of the folders and lists of their layouts."""

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
from vireid._checks import check_option, check_size
from vireid.data.keypoints import HeatmapFolder, load_keypoints

__all__ = ["ImageDataset", "KeypointSample", "Sample"]


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
        keypoints: float32; coordinates (K, 3) as pixels x, y of ``image`` and a number above 0 where visible, or
            heatmaps (K, h, w) over the image, whichever the dataset was given.
    """

    image: Tensor
    label: int
    modality: int
    camera: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a sample
    keypoints: Tensor


class Record(NamedTuple):
    """File and annotations of an image, read from a layout."""

    path: Path
    identity: int
    modality: int
    camera: int
    number: int


class ImageDataset(Dataset[Sample | KeypointSample]):
    """Base of `SYSUMM01Dataset`, `RegDBDataset` and `LLCMDataset`; each of them documents what its ``root`` holds.

    The file lists are read and checked when a dataset is made, the images when they are indexed. Labels are those of
    the whole split, whichever ``modality`` is kept.

    Args:
        root: folder of the dataset.
        split: name of the part.
        modality: 0 or 1 to keep only visible or infrared images; None for both.
        size: (height, width) that images are resized to, bilinear with antialiasing.
        cache: keep an image in memory once it has been read.
        keypoints: a file of coordinates (`save_keypoints`, ``keypoints.npz`` of `generate_synthetic`) or a folder of
            heatmaps (`cache_heatmaps`), which covers every image of the split. Samples are then `KeypointSample`. A
            source that is missing, damaged or lacks an image raises FileNotFoundError or ValueError when it is opened
            or, for damaged heatmaps, when they are read.

    Attributes:
        labels: (N,) int64 identities 0 … C-1, in ascending order of ``ids``.
        ids: (N,) int64 identities, the data set's own numbers.
        modality: (N,) int64, 0 visible, 1 infrared.
        cameras: (N,) int64 camera numbers, from 1.
        image_numbers: (N,) int64, from 1; unique within identity, camera and modality.
        paths: the N files.
        root: folder of the dataset.
        num_classes: C, all identities of the split.
        name: of the data set, as `vireid.protocols.dataset_name` spells it.
        splits: names of the parts.

    Raises:
        FileNotFoundError: if the root, or a folder, list or image that the layout asks for, is missing.
        ValueError: if a list is empty or malformed, a folder or file is misnamed, lists contradict each other, or no
            image is left; when an image is indexed, if it cannot be read.
        ImportError: when an image is indexed, if Pillow, of the extra ``train``, is not installed.
    """

    name: str
    splits: tuple[str, ...]

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
        check_option("split", split, self.splits)
        if modality is not None:
            check_option("modality", modality, (VISIBLE, INFRARED))
        check_size("size", size)
        self.root = Path(root)
        check_folder(self.root)
        records = self._records(split)
        # Labels are given before the modality is chosen, so that both halves of a split agree on them.
        known = np.unique(np.array([record.identity for record in records], dtype=np.int64))
        records = [record for record in records if modality is None or record.modality == modality]
        if not records:
            kind = "" if modality is None else (" visible", " infrared")[modality]
            raise ValueError(f"no{kind} image found in {root}")
        self.num_classes = len(known)
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
                    self._keypoints = HeatmapFolder(keypoints, self.paths, self.root, keep=cache)
                else:
                    names = [path.relative_to(self.root).as_posix() for path in self.paths]
                    self._keypoints = load_keypoints(keypoints).at(names, self.size)
            except (FileNotFoundError, ValueError) as error:
                raise type(error)(f"keypoints: {error} (keypoints={str(keypoints)!r})") from error

    def _records(self, split: str) -> list[Record]:
        """Return the images of a split, in order."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample | KeypointSample:
        i = operator.index(index)
        if not -len(self) <= i < len(self):
            raise IndexError(f"index must be within the {len(self)} images, got {i}")
        i %= len(self)
        sample = Sample(self._image(i), int(self.labels[i]), int(self.modality[i]), int(self.cameras[i]), i)
        return sample if self._keypoints is None else KeypointSample(*sample, self._keypoints[i].clone())

    def preload(self, progress: bool = False) -> None:
        """Read all images into memory now, N·3·H·W bytes, and keep them, with or without ``cache``.

        The dataset's heatmaps, if any, are kept too: 2·N·K·h·w bytes. Call it before a `DataLoader` starts its workers,
        which do not share what they read.

        Args:
            progress: show a progress bar (tqdm).

        Raises:
            ValueError: if an image or its heatmaps cannot be read.
            ImportError: with ``progress``, if tqdm, of the extra ``train``, is not installed.
        """
        if progress:
            try:
                from tqdm import tqdm
            except ImportError as error:
                raise ImportError("progress=True needs tqdm: pip install 'vireid[train]'") from error
        if self._cache is None:
            self._cache = {}
        if isinstance(self._keypoints, HeatmapFolder) and self._keypoints.kept is None:
            self._keypoints.kept = {}
        with ThreadPoolExecutor() as pool:  # decoding and resizing release the interpreter lock
            done = pool.map(self.__getitem__, range(len(self)))
            for _ in tqdm(done, total=len(self), desc=f"reading {self.name}") if progress else done:
                pass

    def _image(self, index: int) -> Tensor:
        if self._cache is None:
            return decode_image(self.paths[index], self.paths[index], self.size)
        if index not in self._cache:
            self._cache[index] = decode_image(self.paths[index], self.paths[index], self.size)
        return self._cache[index].clone()  # a caller may write into it


def check_folder(path: Path) -> None:
    """Raise unless there is a folder at ``path``."""
    if not path.is_dir():
        raise FileNotFoundError(f"folder {path} does not exist")


def identity_folders(folder: Path) -> list[tuple[int, Path]]:
    """Return each identity with its folder, named by its four digits."""
    found = []
    for path in visible_entries(folder):
        if not re.fullmatch("[0-9]{4}", path.name) or not path.is_dir():
            raise ValueError(f"{path} must be a folder named by a four-digit identity")
        found.append((int(path.name), path))
    return found


def visible_entries(folder: Path) -> list[Path]:
    """Return the entries of a folder, sorted by name, without the files that operating systems leave behind."""
    check_folder(folder)
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.name != "Thumbs.db")


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"file {path} does not exist")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file") from error


def read_identities(path: Path) -> set[int]:
    """Return the identities of a list of SYSU-MM01 or LLCM: one line, comma-separated."""
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


def read_index(index: Path, root: Path, folder: str) -> list[tuple[Path, int, int]]:
    """Return (path, identity, label) of each line of a list of RegDB or LLCM; a label stands for one identity."""
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
        except OSError as error:  # a name too long for the system
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


def decode_image(file: Path | io.BytesIO, path: Path, size: tuple[int, int] | None) -> Tensor:
    """Decode the image of a file or of its bytes, (3, H, W) uint8 RGB, resized if ``size`` is given."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading images needs Pillow: pip install 'vireid[train]'") from error
    try:
        with Image.open(file) as opened:
            if opened.mode.startswith(("I", "F")):  # convert("RGB") would cut such values off at 255
                raise ValueError(f"expected 8 bits per channel, got mode {opened.mode}")
            image = opened.convert("RGB")
            if size is not None:
                image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read image {path}: {error}") from error
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
