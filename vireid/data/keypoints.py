"""Key points of images on disk: files that hold their coordinates or their heatmaps.

A coordinate is in pixels, with the image's left and top edge at 0 and its right and bottom edge at its width and
height, as in `vireid.nn.gaussian_heatmaps`. Files are safe (no pickles), carry a checksum, and are written
whole or not at all.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vireid._files import load_arrays, save_arrays
from vireid._ops import at_least_float32

__all__ = [
    "HeatmapFolder",
    "Keypoints",
    "heatmap_path",
    "load_heatmaps",
    "load_keypoints",
    "save_heatmaps",
    "save_keypoints",
]

_COORDINATES, _HEATMAPS, _VERSION = "vireid keypoints", "vireid heatmaps", 1


class Keypoints(NamedTuple):
    """Coordinates of the key points of N images.

    Attributes:
        paths: of the images, relative to the data set's folder, with forward slashes.
        keypoints: (N, K, 3) float32: x, y in pixels, and a number above 0 where the key point is visible.
        sizes: (N, 2) int64: (height, width) of the images that x and y are pixels of.
    """

    paths: list[str]
    keypoints: np.ndarray
    sizes: np.ndarray

    def at(self, paths: Sequence[str], size: tuple[int, int]) -> Tensor:
        """The key points (n, K, 3) of these images, each resized to ``size`` = (height, width).

        Raises:
            ValueError: if an image is not among ``paths``, or the coordinates cannot be pixels of these images: if no
                visible key point of any of them lies inside, or all are shares of 0 to 1.
        """
        place = {path: row for row, path in enumerate(self.paths)}
        if missing := [path for path in paths if path not in place]:
            raise ValueError(f"there are no key points of {len(missing)} of {len(paths)} images, first {missing[0]!r}")
        rows = [place[path] for path in paths]
        scaled, lengths = self.keypoints[rows], self.sizes[rows][:, None, ::-1]
        place_in = scaled[scaled[..., 2] > 0][:, :2]
        inside = ((scaled[..., :2] >= 0) & (scaled[..., :2] <= lengths)).all(2) & (scaled[..., 2] > 0)
        if len(place_in) and (not inside.any() or (place_in.max() <= 1 and lengths.min() > 2)):
            expected = f"pixels of the images, which are {lengths.min()} to {lengths.max()} long"
            got = f"x and y from {place_in.min():.4g} to {place_in.max():.4g}"
            raise ValueError(f"keypoints must be in {expected}, got {got}")
        scaled[..., 0] *= size[1] / self.sizes[rows, None, 1]
        scaled[..., 1] *= size[0] / self.sizes[rows, None, 0]
        return torch.from_numpy(scaled)


def save_keypoints(
    path: str | os.PathLike[str], paths: Sequence[str | PurePath], keypoints: np.ndarray, sizes: np.ndarray
) -> None:
    """Write the coordinates of a data set's key points in one file, as `Keypoints` describes them.

    Args:
        path: the file, ending in .npz.
        paths: of the N images, relative to the data set's folder, with forward slashes.
        keypoints: (N, K, 3), K at least 1. The coordinates of one that is not visible may be NaN.
        sizes: (N, 2) whole numbers, (height, width) of the images.

    Raises:
        ValueError: if a shape or a value does not fit, an image is named twice or by an absolute path, or the ending is
            another.
        TypeError: if ``paths`` holds something else than names.
        FileNotFoundError: if the folder does not exist.
        OSError: if the file cannot be written.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what does not survive is found below
        table = Keypoints(
            [_name(name) for name in paths], np.asarray(keypoints, np.float32), np.asarray(sizes).astype(np.int64)
        )
    if (other := table.sizes != sizes).any():
        raise ValueError(f"sizes must be whole numbers, got {np.asarray(sizes)[other][0]}")
    if fault := _fault(table):
        raise ValueError(fault)
    arrays = {"paths": _encode(table.paths), "keypoints": table.keypoints, "sizes": table.sizes}
    save_arrays(Path(path), _COORDINATES, _VERSION, arrays)


def load_keypoints(path: str | os.PathLike[str]) -> Keypoints:
    """Read what `save_keypoints` wrote, or `vireid.data.generate_synthetic` as ``keypoints.npz``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or holds something else.
    """
    arrays, _ = load_arrays(Path(path), _COORDINATES, _VERSION)
    try:
        table = Keypoints(_decode(arrays["paths"]), arrays["keypoints"], arrays["sizes"])
        fault = _fault(table)
    except (KeyError, ValueError, AttributeError) as error:
        fault = f"{error!r}"
    if fault:
        raise ValueError(f"path must hold key points, got {str(path)!r}: {fault}")
    return table


def _name(path: Any) -> str:
    """An image's name in a file of coordinates."""
    if not isinstance(path, str | PurePath):
        raise TypeError(f"paths must hold names of images, got {path!r}")
    if Path(path).is_absolute():
        raise ValueError(f"paths must be relative to the data set's folder, got {str(path)!r}")
    return path.as_posix() if isinstance(path, PurePath) else path


def _fault(table: Keypoints) -> str | None:
    """What is wrong with a table."""
    count, shape = len(table.paths), table.keypoints.shape
    if len(shape) != 3 or shape[::2] != (count, 3) or not shape[1] or table.keypoints.dtype != np.float32:
        got = f"{table.keypoints.dtype} {shape}"
        return f"keypoints must be float32 of shape ({count}, K, 3), one entry for each path, K at least 1, got {got}"
    if not np.isfinite(table.keypoints[table.keypoints[..., 2] > 0]).all():
        return "keypoints must be finite where they are visible"
    if table.sizes.shape != (count, 2) or table.sizes.dtype != np.int64 or (table.sizes < 1).any():
        return f"sizes must be ({count}, 2) heights and widths of at least 1"
    if len(set(table.paths)) < count:
        return "paths must name an image once"
    return None


def _encode(paths: Sequence[str]) -> np.ndarray:
    """Names as the bytes of a text, one a line: an array of strings would take the longest one's room for each."""
    if any("\n" in path for path in paths):
        raise ValueError("paths must hold no line break")
    return np.frombuffer("".join(f"{path}\n" for path in paths).encode(), dtype=np.uint8)


def _decode(text: np.ndarray) -> list[str]:
    return bytes(text).decode().split("\n")[:-1]


def heatmap_path(folder: str | os.PathLike[str], image: str | os.PathLike[str], root: str | os.PathLike[str]) -> Path:
    """The file in ``folder`` that holds the heatmaps of ``image``: its path below ``root``, with .npz added.

    Raises:
        ValueError: if the image does not lie below ``root``.
    """
    try:
        inside = Path(image).relative_to(root)
    except ValueError as error:
        raise ValueError(f"image must lie below root {str(root)!r}, got {str(image)!r}") from error
    if ".." in inside.parts:
        raise ValueError(f"image must lie below root {str(root)!r}, got {str(image)!r}")
    return Path(folder) / inside.with_name(f"{inside.name}.npz")


def save_heatmaps(
    folder: str | os.PathLike[str],
    image: str | os.PathLike[str],
    heatmaps: np.ndarray | Tensor,
    *,
    root: str | os.PathLike[str],
    source: Mapping[str, Any] | None = None,
    digest: str | None = None,
) -> Path:
    """Write the heatmaps of one image, of whatever pose estimator, for a dataset to read with ``keypoints=folder``.

    Args:
        folder: where the heatmaps of the data set lie; made if missing.
        image: the image's file. Its SHA-256 goes into the file, so that a changed image is noticed.
        heatmaps: (K, h, w) finite numbers over the whole image, of any resolution; kept in float16.
        root: folder of the data set; the file is named after the image's path below it.
        source: what made them, for instance a model and its settings, as JSON values.
        digest: the image's SHA-256 in hexadecimal, if it is known already.

    Returns:
        the file written.

    Raises:
        FileNotFoundError: if there is no such image.
        ValueError: if the heatmaps have another shape or are not finite, or the image lies elsewhere.
        OSError: if the file cannot be written.
    """
    # NumPy knows no bfloat16
    x = at_least_float32(heatmaps.detach().cpu()).numpy() if isinstance(heatmaps, Tensor) else np.asarray(heatmaps)
    if x.ndim != 3 or 0 in x.shape:
        raise ValueError(f"heatmaps must have shape (K, h, w), got {x.shape}")
    with np.errstate(over="ignore"):
        x = x.astype(np.float16)
    if not np.isfinite(x).all():
        raise ValueError("heatmaps must be finite numbers within float16")
    path = heatmap_path(folder, image, root)
    settings = {"image": digest or image_digest(image), "source": dict(source or {})}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_arrays(path, _HEATMAPS, _VERSION, {"heatmaps": x}, settings)
    return path


def load_heatmaps(
    folder: str | os.PathLike[str],
    image: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str],
    source: Mapping[str, Any] | None = None,
    digest: str | None = None,
) -> np.ndarray:
    """Read the heatmaps of one image that `save_heatmaps` wrote.

    Args:
        folder: as it was given to `save_heatmaps`.
        image: the image's file.
        root: folder of the data set.
        source: what must have made them; None: anything.
        digest: the image's SHA-256 in hexadecimal, if it is known already.

    Returns:
        (K, h, w) float16.

    Raises:
        FileNotFoundError: if there is no such image or it has no heatmaps.
        ValueError: if the file is damaged, the image is not the one it was made from, or ``source`` is another.
    """
    x, found = _read_heatmaps(folder, image, root, digest)
    if source is not None and found != json.loads(json.dumps(dict(source))):
        raise ValueError(f"{heatmap_path(folder, image, root)} must be made by {dict(source)}, got {found}")
    return x


def _read_heatmaps(
    folder: str | os.PathLike[str], image: str | os.PathLike[str], root: str | os.PathLike[str], digest: str | None
) -> tuple[np.ndarray, Any]:
    """The heatmaps of an image, and what made them."""
    path = heatmap_path(folder, image, root)
    digest = digest or image_digest(image)
    arrays, settings = load_arrays(path, _HEATMAPS, _VERSION)
    x = arrays.get("heatmaps")
    if x is None or x.ndim != 3 or x.dtype != np.float16 or not isinstance(settings, dict):
        raise ValueError(f"{path} must hold heatmaps (K, h, w)")
    if settings.get("image") != digest:
        raise ValueError(f"{path} was made from another image than {image} is now: make the heatmaps again")
    return x, settings.get("source")


def image_digest(image: str | os.PathLike[str]) -> str:
    """SHA-256 of a file in hexadecimal."""
    return hashlib.sha256(Path(image).read_bytes()).hexdigest()


class HeatmapFolder:
    """The heatmaps of a dataset's images, read one by one: ``HeatmapFolder(…)[i]`` is (K, h, w) float32 of image i.

    Args:
        folder: holds a file an image, written by `vireid.data.pose.cache_heatmaps` or `save_heatmaps`.
        paths: of the N images.
        root: folder of the data set.
        keep: hold on to what was read, in float16.

    Raises:
        FileNotFoundError: if ``folder`` or the heatmaps of an image are missing.
        ValueError: if an image does not lie below ``root``; when heatmaps are asked for, if their file is damaged, was
            made from another image, or by another source than the first file that was read.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        paths: Sequence[Path],
        root: str | os.PathLike[str],
        *,
        keep: bool = False,
    ) -> None:
        self.folder, self.paths, self.root = Path(folder), list(paths), Path(root)
        self.kept: dict[int, np.ndarray] | None = {} if keep else None
        self._source: Any = None
        self._shape: tuple[int, ...] = ()
        if not self.folder.is_dir():
            raise FileNotFoundError(f"folder {self.folder} does not exist")
        if missing := [path for path in self.paths if not heatmap_path(folder, path, root).is_file()]:
            count = f"{len(missing)} of {len(self.paths)} images, first {missing[0]}"
            raise FileNotFoundError(f"{self.folder} holds no heatmaps of {count}")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        x = None if self.kept is None else self.kept.get(index)
        if x is None:
            path = self.paths[index]
            x, source = _read_heatmaps(self.folder, path, self.root, None)
            self._source = source if self._source is None else self._source
            if source != self._source:  # an update that was interrupted
                got = f"{self._source} and, for {path}, by {source}"
                raise ValueError(f"{self.folder} must hold heatmaps of one source, got those made by {got}")
            self._shape = self._shape or x.shape
            if x.shape != self._shape:
                got = f"{self._shape} and, for {path}, {x.shape}"
                raise ValueError(f"{self.folder} must hold heatmaps of one shape, got {got}")
            if self.kept is not None:
                self.kept[index] = x
        return torch.from_numpy(x.astype(np.float32))
