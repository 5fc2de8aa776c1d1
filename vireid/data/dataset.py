"""Shared base of the datasets."""

import operator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from vireid import INFRARED, VISIBLE
from vireid._checks import check_count, check_option, check_path, check_size, extra
from vireid.data._layouts import MAX_PIXELS, check_folder, decode_image, warn_of_passed_over
from vireid.data.keypoints import HeatmapFolder, load_keypoints


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

    An image is a file that ends in .jpg, .jpeg, .png or .bmp, in any case, and is of one of these formats, with 8 bits
    per channel. Its pixels are read as they are stored: EXIF's orientation is not applied (our choice), transparency is
    ignored; gray, palettes and CMYK become RGB. Files that operating systems leave in folders, such as ``Thumbs.db``,
    ``desktop.ini``, ``__MACOSX`` and all whose name begins with a dot, are passed over. So are other files that are no
    images, such as notes and backups, with one UserWarning that counts them. Lists are in UTF-8, or in UTF-16 with a
    byte order mark, with any line ends, and slashes or backslashes in their paths.

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
        max_pixels: largest image that is decoded, by its header; 8192 × 8192 pixels by default. Pillow's own limit,
            ``PIL.Image.MAX_IMAGE_PIXELS``, holds as well.

    Attributes:
        labels: (N,) int64 identities 0 … C-1, in ascending order of ``ids``.
        ids: (N,) int64 identities, the data set's own numbers.
        modality: (N,) int64, 0 visible, 1 infrared.
        cameras: (N,) int64 camera numbers, from 1.
        image_numbers: (N,) int64, from 1; unique within identity, camera and modality.
        paths: the N files.
        root: folder of the dataset.
        num_classes: C, all identities of the split.
        size: (height, width) of the samples' images.
        name: of the data set, as `vireid.protocols.dataset_name` spells it.
        splits: names of the parts.

    Raises:
        FileNotFoundError: if the root, or a folder, list or image that the layout asks for, is missing.
        ValueError: if a list is empty or malformed, a folder or image is misnamed, lists contradict each other, or no
            image is left; when an image is indexed, if it cannot be read.
        TypeError: if an argument is of another type.
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
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        check_option("split", split, self.splits)
        if modality is not None:
            modality = check_count("modality", modality, minimum=0)
            check_option("modality", modality, (VISIBLE, INFRARED))
        self.size = check_size("size", size)
        self.max_pixels = check_count("max_pixels", max_pixels)
        self.root = check_path("root", root)
        check_folder(self.root)
        passed: list[Path] = []
        records = self._records(split, passed)
        warn_of_passed_over(self.root, passed)
        # Labels are given before the modality is chosen, so that both halves of a split agree on them.
        known = np.unique(np.array([record.identity for record in records], dtype=np.int64))
        records = [record for record in records if modality is None or record.modality == modality]
        if not records:
            kind = "" if modality is None else (" visible", " infrared")[modality]
            raise ValueError(f"no{kind} image found in {root}")
        self.num_classes = len(known)
        self.paths = [record.path for record in records]
        columns = np.array([record[1:] for record in records], dtype=np.int64).T.copy()
        self.ids, self.modality, self.cameras, self.image_numbers = columns
        self.labels = np.searchsorted(known, self.ids)
        self._keep, self._kept = bool(cache), dict[int, Tensor]()
        self._keypoints: Tensor | HeatmapFolder | None = None
        if keypoints is not None:
            keypoints = check_path("keypoints", keypoints)
            try:
                if keypoints.is_dir():
                    self._keypoints = HeatmapFolder(keypoints, self.paths, self.root, keep=cache)
                else:
                    names = [path.relative_to(self.root).as_posix() for path in self.paths]
                    self._keypoints = load_keypoints(keypoints).at(names, self.size)
            except (FileNotFoundError, ValueError) as error:
                raise type(error)(f"keypoints: {error} (keypoints={str(keypoints)!r})") from error

    def _records(self, split: str, passed: list[Path]) -> list[Record]:
        """Return the images of a split, in order; add unexpected files to ``passed``."""
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
            with extra("train", "progress=True needs tqdm"):
                from tqdm import tqdm
        self._keep = True
        if isinstance(self._keypoints, HeatmapFolder):
            self._keypoints.keep = True
        with ThreadPoolExecutor() as pool:  # decoding and resizing release the interpreter lock
            done = pool.map(self.__getitem__, range(len(self)))
            for _ in tqdm(done, total=len(self), desc=f"reading {self.name}") if progress else done:
                pass

    def _image(self, index: int) -> Tensor:
        image = self._kept.get(index)
        if image is None:
            image = decode_image(self.paths[index], self.size, self.max_pixels)
            if not self._keep:
                return image
            self._kept[index] = image
        return image.clone()  # a caller may write into it
