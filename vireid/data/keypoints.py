"""Key points of images on disk: files that hold their coordinates or their heatmaps.

A coordinate is in pixels, with the image's left and top edge at 0 and its right and bottom edge at its width and
height, as in `vireid.nn.gaussian_heatmaps`. Files hold no pickles, are written whole or not at all, and damage is
detected.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from vireid._checks import check_path, check_size, check_tensor
from vireid._files import load_arrays, save_arrays
from vireid._ops import at_least_float32
from vireid.data._layouts import check_folder

AnyPath: TypeAlias = str | os.PathLike[str]

_COORDINATES, _HEATMAPS, _VERSION = "vireid keypoints", "vireid heatmaps", 1
_UTF8 = ("utf-8", "surrogateescape")  # names of files are bytes, not all of them text


class Keypoints(NamedTuple):
    """Coordinates of the key points of N images.

    Attributes:
        paths: of the images, relative to the data set's folder, with forward slashes.
        keypoints: (N, K, 3) float32: x, y in pixels, and a number above 0 where the key point is visible.
        sizes: (N, 2) int64: (height, width) of the images in whose pixels x and y are.
    """

    paths: list[str]
    keypoints: np.ndarray
    sizes: np.ndarray

    def at(self, paths: Sequence[str], size: tuple[int, int]) -> Tensor:
        """Return the key points (n, K, 3) of these images, each resized to ``size`` = (height, width).

        Raises:
            ValueError: if an image is missing, the table is not as described above, or the coordinates cannot be pixels
                of these images: no visible key point lies inside its image, or all of them lie between 0 and 1.
            TypeError: if ``paths`` holds anything but names, or ``size`` anything but integers.
        """
        size, names = check_size("size", size), _names_of(paths)
        place = {path: row for row, path in enumerate(self.check().paths)}
        if missing := [name for name in names if name not in place]:
            raise ValueError(f"there are no key points of {len(missing)} of {len(names)} images, first {missing[0]!r}")
        rows = [place[name] for name in names]
        x, lengths = self.keypoints[rows], self.sizes[rows][:, None, ::-1]  # a copy; width, height
        visible, inside = x[..., 2] > 0, ((x[..., :2] >= 0) & (x[..., :2] <= lengths)).all(2)
        seen = x[visible][:, :2]
        if len(seen) and (not (inside & visible).any() or (seen.max() <= 1 and lengths.min() > 2)):
            expected = f"pixels of the images, which are {lengths.min()} to {lengths.max()} long"
            raise ValueError(f"keypoints must be in {expected}, got x and y from {seen.min():.4g} to {seen.max():.4g}")
        x[..., :2] *= np.array(size[::-1]) / lengths
        return torch.from_numpy(x)

    def check(self) -> "Keypoints":
        """Return the table itself; raise ValueError unless it is as described above."""
        count, shape, dtype = len(self.paths), self.keypoints.shape, self.keypoints.dtype
        if len(shape) != 3 or shape[::2] != (count, 3) or not shape[1] or dtype != np.float32:
            expected = f"float32 of shape ({count}, K, 3), one entry for each path, K at least 1"
            raise ValueError(f"keypoints must be {expected}, got {dtype} {shape}")
        if not np.isfinite(self.keypoints[self.keypoints[..., 2] > 0]).all():
            raise ValueError("keypoints must be finite where they are visible")
        if self.sizes.shape != (count, 2) or self.sizes.dtype != np.int64 or (self.sizes < 1).any():
            raise ValueError(f"sizes must be ({count}, 2) heights and widths of at least 1")
        if len(set(self.paths)) < count:
            raise ValueError("paths must name an image once")
        return self


def _names_of(paths: Sequence[str | PurePath]) -> list[str]:
    """Return names of images below a folder, with forward slashes."""
    if isinstance(paths, str) or not isinstance(paths, Sequence):
        raise TypeError(f"paths must be a list of names of images, got {type(paths).__name__}")
    for name in paths:
        if not isinstance(name, str | PurePath):
            raise TypeError(f"paths must hold names of images, got {name!r}")
        if os.path.isabs(name):
            raise ValueError(f"paths must be relative to the data set's folder, got {str(name)!r}")
        if "\n" in str(name):
            raise ValueError("paths must hold no line break")
    return [name.as_posix() if isinstance(name, PurePath) else name.replace("\\", "/") for name in paths]


def _numbers(name: str, x: object) -> np.ndarray:
    """Return an array, or a tensor on any device and of any floating-point dtype, as an array of real numbers."""
    if isinstance(x, Tensor):
        check_tensor(name, x, " ".join("N" * x.ndim), kind="any")
        x = (at_least_float32(x) if x.is_floating_point() else x).detach().cpu().numpy()
    array = np.asarray(x)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold real numbers, got {array.dtype}")
    return array


def save_keypoints(path: AnyPath, paths: Sequence[str | PurePath], keypoints: np.ndarray, sizes: np.ndarray) -> None:
    """Write the coordinates of a data set's key points in one file.

    Args:
        path: the file, ending in .npz.
        paths: of the N images, relative to the data set's folder, with forward slashes.
        keypoints: (N, K, 3), K at least 1, as in `Keypoints`. Coordinates of invisible key points may be NaN.
        sizes: (N, 2) whole numbers, (height, width) of the images.

    Raises:
        ValueError: if a shape or a value does not fit, an image is named twice or by an absolute path, or the ending is
            another.
        TypeError: if ``paths`` holds anything but names, or an array anything but numbers.
        FileNotFoundError: if the folder does not exist.
        OSError: if the file cannot be written.
    """
    names, given = _names_of(paths), _numbers("sizes", sizes)
    with np.errstate(over="ignore", invalid="ignore"):  # bad values are found below
        whole = given.astype(np.int64)
        table = Keypoints(names, _numbers("keypoints", keypoints).astype(np.float32), whole)
    if (other := whole != given).any():
        raise ValueError(f"sizes must be whole numbers, got {given[other][0]}")
    table.check()
    # One text, a name per line: an array of strings would take the room of the longest one for each.
    text = np.frombuffer("".join(f"{name}\n" for name in names).encode(*_UTF8), dtype=np.uint8)
    arrays = {"paths": text, "keypoints": table.keypoints, "sizes": table.sizes}
    save_arrays(path, _COORDINATES, _VERSION, arrays)


def load_keypoints(path: AnyPath) -> Keypoints:
    """Read what `save_keypoints` wrote, or `vireid.data.generate_synthetic` as ``keypoints.npz``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or holds something else.
    """
    arrays, _ = load_arrays(path, _COORDINATES, _VERSION)
    try:
        names = bytes(arrays["paths"]).decode(*_UTF8).split("\n")[:-1]
        return Keypoints(names, arrays["keypoints"], arrays["sizes"]).check()
    except (KeyError, ValueError) as error:
        raise ValueError(f"path must hold key points, got {str(path)!r}: {error}") from error


def heatmap_path(folder: AnyPath, image: AnyPath, root: AnyPath) -> Path:
    """Return the file in ``folder`` for the heatmaps of ``image``: its path below ``root``, with .npz added.

    Raises:
        ValueError: if the image does not lie below ``root``.
    """
    inside, root, folder = check_path("image", image), check_path("root", root), check_path("folder", folder)
    if not inside.is_relative_to(root) or ".." in inside.relative_to(root).parts:
        raise ValueError(f"image must lie below root {str(root)!r}, got {str(image)!r}")
    return folder / inside.relative_to(root).with_name(f"{inside.name}.npz")


def save_heatmaps(
    folder: AnyPath,
    image: AnyPath,
    heatmaps: np.ndarray | Tensor,
    *,
    root: AnyPath,
    source: Mapping[str, object] | None = None,
    digest: str | None = None,
) -> Path:
    """Write the heatmaps of one image, from any pose estimator; a dataset reads them with ``keypoints=folder``.

    Args:
        folder: of the data set's heatmaps; made if missing.
        image: the image's file. Its SHA-256 goes into the file, so that a changed image is noticed.
        heatmaps: (K, h, w) finite numbers over the whole image, of any resolution; kept in float16.
        root: folder of the data set; the file is named after the image's path below it.
        source: origin of the heatmaps, such as a model and its settings, as JSON values.
        digest: the image's SHA-256 in hexadecimal, if it is known already.

    Returns:
        the file written.

    Raises:
        FileNotFoundError: if there is no such image.
        ValueError: if the heatmaps have another shape or are not finite, or the image lies elsewhere.
        TypeError: if the heatmaps are no real numbers, or ``source`` is not of JSON values.
        OSError: if the file cannot be written.
    """
    x = _numbers("heatmaps", heatmaps)
    if x.ndim != 3 or 0 in x.shape:
        raise ValueError(f"heatmaps must have shape (K, h, w), got {x.shape}")
    with np.errstate(over="ignore"):
        x = x.astype(np.float16)
    if not np.isfinite(x).all():
        raise ValueError("heatmaps must be finite numbers within float16")
    path = heatmap_path(folder, image, root)
    settings = {"image": image_digest(image, digest), "source": _json_of({} if source is None else source)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_arrays(path, _HEATMAPS, _VERSION, {"heatmaps": x}, settings)
    return path


def load_heatmaps(
    folder: AnyPath,
    image: AnyPath,
    *,
    root: AnyPath,
    source: Mapping[str, object] | None = None,
    digest: str | None = None,
) -> np.ndarray:
    """Read the heatmaps of one image that `save_heatmaps` wrote.

    Args:
        folder: as in `save_heatmaps`.
        image: the image's file.
        root: folder of the data set.
        source: expected origin; None accepts any.
        digest: the image's SHA-256 in hexadecimal, if it is known already.

    Returns:
        (K, h, w) float16.

    Raises:
        FileNotFoundError: if there is no such image or it has no heatmaps.
        ValueError: if the file is damaged, was made from another image, or has another ``source``.
    """
    x, found = _read_heatmaps(folder, image, root, digest)
    if source is not None and found != (expected := _json_of(source)):
        raise ValueError(f"{heatmap_path(folder, image, root)} must be made by {expected}, got {found}")
    return x


def _read_heatmaps(folder: AnyPath, image: AnyPath, root: AnyPath, digest: str | None) -> tuple[np.ndarray, Any]:
    """Return the heatmaps of an image and their source."""
    path = heatmap_path(folder, image, root)
    digest = image_digest(image, digest)
    arrays, settings = load_arrays(path, _HEATMAPS, _VERSION)
    x = arrays.get("heatmaps")
    if x is None or x.ndim != 3 or x.dtype != np.float16:
        raise ValueError(f"{path} must hold heatmaps (K, h, w)")
    if settings.get("image") != digest:
        raise ValueError(f"{path} was made from another image than {image} is now: make the heatmaps again")
    return x, settings.get("source")


def _json_of(source: Mapping[str, object]) -> dict[str, Any]:
    """Return an origin as it is read back from a file."""
    try:
        return dict(json.loads(json.dumps(dict(source), allow_nan=False)))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"source must be a dict of JSON values, got {source!r}: {error}") from error


def image_digest(image: AnyPath, digest: str | None = None) -> str:
    """Return the SHA-256 of a file in hexadecimal; ``digest`` if that is given."""
    if digest is not None:
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError(f"digest must be a SHA-256 in lower-case hexadecimal, got {digest!r}")
        return digest
    with check_path("image", image).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class HeatmapFolder:
    """The heatmaps of a dataset's images, read one by one: ``HeatmapFolder(…)[i]`` is (K, h, w) float32 of image i.

    Args:
        folder: of one file per image, written by `vireid.data.cache_heatmaps` or `save_heatmaps`.
        paths: of the N images.
        root: folder of the data set.
        keep: keep heatmaps in memory, in float16, once they have been read.

    Raises:
        FileNotFoundError: if ``folder`` or the heatmaps of an image are missing.
        ValueError: if an image does not lie below ``root``; when heatmaps are indexed, if their file is damaged, was
            made from another image, or differs in source or shape from the first file read.
    """

    def __init__(self, folder: AnyPath, paths: Sequence[Path], root: AnyPath, *, keep: bool = False) -> None:
        if isinstance(paths, str) or not isinstance(paths, Sequence):
            raise TypeError(f"paths must be a list of paths, got {type(paths).__name__}")
        self.folder, self.paths, self.root = check_path("folder", folder), list(paths), check_path("root", root)
        self.keep, self._kept = keep, dict[int, np.ndarray]()
        self._first: dict[str, tuple[Any, tuple[int, ...]]] = {}  # source and shape; a dict is set by one thread only
        check_folder(self.folder)
        if missing := [path for path in self.paths if not heatmap_path(folder, path, root).is_file()]:
            count = f"{len(missing)} of {len(self.paths)} images, first {missing[0]}"
            raise FileNotFoundError(f"{self.folder} holds no heatmaps of {count}")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        x = self._kept.get(index)
        if x is None:
            path = self.paths[index]
            x, source = _read_heatmaps(self.folder, path, self.root, None)
            first = self._first.setdefault("", (source, x.shape))
            if (source, x.shape) != first:  # an update that was interrupted
                got = f"those made by {first[0]}, {first[1]}, and, for {path}, by {source}, {x.shape}"
                raise ValueError(f"{self.folder} must hold heatmaps of one source and shape, got {got}")
            if self.keep:
                self._kept[index] = x
        return torch.from_numpy(x.astype(np.float32))
