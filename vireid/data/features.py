"""Feature files: features with identities, modality and cameras in one .npz or .safetensors file.

A file is plain arrays, which ``numpy.savez`` can write as well as `save_features`; `load_features` checks them.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vireid._checks import Array, check_finite, check_modality, check_path, extra, to_integers, to_matrix
from vireid._files import check_file, check_output, parse_json, read_npz, write_npz, written_whole

__all__ = ["Features", "load_features", "save_features"]

_ENDINGS = (".npz", ".safetensors")
_NEEDED = ("features", "ids", "modality", "cameras")
_NEEDS_SAFETENSORS = "a .safetensors file needs safetensors"


@dataclass(frozen=True)
class Features:
    """Content of a feature file: N images of one data set, both modalities in any order.

    Attributes:
        features: (N, d) float16, float32 or float64, finite.
        ids: (N,) int64 identities; the data set's own numbers where its protocol asks for them (SYSU-MM01).
        modality: (N,) int64, 0 visible, 1 infrared.
        cameras: (N,) int64 camera numbers.
        names: N names of the images, such as "cam1/0005/0001.jpg", or None.
        image_numbers: (N,) int64, numbers of the images within identity, camera and modality, or None.
        metadata: notes about the file, str to str. Protocols refuse a file whose "dataset" is another one's.
    """

    features: np.ndarray
    ids: np.ndarray
    modality: np.ndarray
    cameras: np.ndarray
    names: list[str] | None = None
    image_numbers: np.ndarray | None = None
    metadata: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.features)

    def places(self) -> np.ndarray:
        """Return ``image_numbers`` (N,) int64, or else the place of each name among all names, sorted.

        LLCM's protocol draws its galleries by the order of the file names.

        Raises:
            ValueError: if there are neither numbers nor names.
        """
        if self.image_numbers is not None:
            return self.image_numbers
        return np.unique(np.array(self._named(), dtype=np.str_), return_inverse=True)[1].astype(np.int64)

    def numbers(self) -> np.ndarray:
        """Return ``image_numbers`` (N,) int64, or else the number that each name ends in ("cam1/0005/0001.jpg" is 1).

        SYSU-MM01's protocol draws its galleries by them.

        Raises:
            ValueError: if there are neither numbers nor names, or a name does not end in a number.
        """
        if self.image_numbers is not None:
            return self.image_numbers
        numbers = []
        for name in self._named():
            found = re.search(r"(\d{1,18})(\.\w+)?$", name, re.ASCII)
            if found is None:
                raise ValueError(f"names must end in the image's number, such as 'cam1/0005/0001.jpg', got {name!r}")
            numbers.append(int(found[1]))
        return np.array(numbers, dtype=np.int64)

    def _named(self) -> list[str]:
        if self.names is None:
            raise ValueError("image_numbers or names must be in the feature file, got neither")
        return self.names


def save_features(
    path: str | os.PathLike[str],
    features: Array,
    ids: Array,
    modality: Array,
    cameras: Array,
    *,
    names: Sequence[str] | None = None,
    image_numbers: Array | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a feature file, whole or not at all.

    Args:
        path: "*.npz", or "*.safetensors", which needs the package of that name.
        features: (N, d) floating point, finite. bfloat16 becomes float32 in an .npz, which does not know it.
        ids: (N,) integer identities.
        modality: (N,) 0 visible, 1 infrared.
        cameras: (N,) integer camera numbers.
        names: of the N images.
        image_numbers: (N,) integers, see `Features.numbers`. Not needed where the names end in them.
        metadata: str to str, such as {"model": "CIFT"}.

    Raises:
        ValueError: for another ending, sizes that do not match, NaN or an infinity, no image, a modality other than
            0 and 1.
        TypeError: for an array of a wrong type.
        FileNotFoundError: if the folder does not exist.
        ImportError: for .safetensors where safetensors is not installed.
        OSError: if the disk is full or not writable; the old file at ``path`` stays.
    """
    path = check_output(path, *_ENDINGS)
    given = {"features": features, "ids": ids, "modality": modality, "cameras": cameras}
    if image_numbers is not None:
        given["image_numbers"] = image_numbers
    arrays = {name: x.cpu().contiguous() for name, x in _check_arrays(given).items()}
    listed = None if names is None else _check_names(names, len(arrays["features"]))
    notes = _check_metadata({} if metadata is None else metadata)
    if path.suffix == ".safetensors":
        _write_safetensors(path, arrays, notes if listed is None else notes | {"names": json.dumps(listed)})
        return
    if arrays["features"].dtype == torch.bfloat16:
        arrays["features"] = arrays["features"].float()
    stored = {name: x.numpy() for name, x in arrays.items()}
    if listed is not None:
        stored["names"] = np.array(listed, dtype=np.str_)
    if notes:
        stored["metadata"] = np.array(json.dumps(notes))
    write_npz(path, stored)


def load_features(path: str | os.PathLike[str]) -> Features:
    """Read and check a feature file; nothing in it is executed.

    Arrays of other names are ignored. Integers may be of any size, features float16, float32 or float64; bfloat16,
    which safetensors knows, becomes float32.

    Args:
        path: "*.npz" with the arrays ``features``, ``ids``, ``modality``, ``cameras`` and, if wanted, ``names``
            (text), ``image_numbers``, ``metadata`` (a JSON object of str); or "*.safetensors" with the same arrays,
            the names as a JSON list in its metadata.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for another ending, a file that is damaged or cut short, an array that is missing, of a wrong type
            or size, or holds NaN, pickled objects, no image, or a modality other than 0 and 1.
        ImportError: for .safetensors where safetensors is not installed.
    """
    path = check_path("path", path)
    if path.suffix not in _ENDINGS:
        raise ValueError(f"path must end in {' or '.join(_ENDINGS)}, got {str(path)!r}")
    check_file(path, "path must be a feature file")
    try:
        given, names, metadata = (_read_npz if path.suffix == ".npz" else _read_safetensors)(path)
        missing = [name for name in _NEEDED if name not in given]
        if missing:
            raise ValueError(f"must hold the arrays {', '.join(_NEEDED)}, misses {', '.join(missing)}")
        arrays = {name: x.numpy() for name, x in _check_arrays(given).items()}
        listed = None if names is None else _check_names(names, len(arrays["features"]))
        return Features(**arrays, names=listed, metadata=_check_metadata(metadata))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _check_arrays(given: Mapping[str, Array]) -> dict[str, Tensor]:
    """Return ``features`` and the integer arrays of ``given`` as tensors, all checked."""
    x = to_matrix("features", given["features"])
    if not x.numel():
        raise ValueError(f"features must hold at least one image and one column, got shape {tuple(x.shape)}")
    check_finite("features", x)
    arrays = {
        name: to_integers(name, y, len(x), torch.device("cpu")) for name, y in given.items() if name != "features"
    }
    check_modality("modality", arrays["modality"])
    return arrays | {"features": x}


def _check_names(names: object, length: int) -> list[str]:
    if isinstance(names, str) or not isinstance(names, Sequence | np.ndarray) or getattr(names, "ndim", 1) != 1:
        raise TypeError(f"names must be a sequence of str, one per image, got {type(names).__name__}")
    if len(names) != length:
        raise ValueError(f"names must hold {length} names, one per image, got {len(names)}")
    if not all(isinstance(name, str) for name in names):
        raise TypeError("names must be a list of str, one per image")
    return [str(name) for name in names]


def _check_metadata(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, Mapping) or not all(isinstance(x, str) for item in metadata.items() for x in item):
        raise TypeError("metadata must map str to str")
    if "names" in metadata:
        raise ValueError("metadata must not have the key 'names', where .safetensors keeps the names of the images")
    return dict(metadata)


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], object, object]:
    """Return the arrays, the names and the metadata of a file, not yet checked."""
    found = read_npz(path, (*_NEEDED, "image_numbers", "names", "metadata"))
    names, text = found.pop("names", None), found.pop("metadata", None)
    if names is not None and (names.dtype.kind != "U" or names.ndim != 1):
        raise TypeError(f"names must be a (N,) array of text (dtype '<U…'), got {names.dtype} {names.shape}")
    if text is not None and (text.dtype.kind != "U" or text.ndim):
        raise TypeError(f"metadata must be one JSON text, got an array {text.dtype} {text.shape}")
    return found, names, {} if text is None else _json("metadata", str(text))


def _write_safetensors(path: Path, arrays: dict[str, Tensor], metadata: dict[str, str]) -> None:
    with extra("safetensors", _NEEDS_SAFETENSORS):
        from safetensors.torch import save
    apart = {name: x if name == "features" else x.clone() for name, x in arrays.items()}  # shared memory is refused
    with written_whole(path) as temporary:
        temporary.write_bytes(save(apart, metadata))


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], object, object]:
    """Return the arrays, the names and the metadata of a file, not yet checked."""
    with extra("safetensors", _NEEDS_SAFETENSORS):
        from safetensors import SafetensorError, safe_open
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = dict(stored.metadata() or {})
            names = set(stored.keys())
            found = {name: stored.get_tensor(name) for name in (*_NEEDED, "image_numbers") if name in names}
    except (SafetensorError, RuntimeError, MemoryError) as error:
        raise ValueError(f"is no .safetensors file, or damaged: {error}") from error
    if "features" in found and found["features"].dtype == torch.bfloat16:
        found["features"] = found["features"].float()
    listed = metadata.pop("names", None)
    return found, listed if listed is None else _json("names", listed), metadata


def _json(name: str, text: str) -> object:
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{name} must be JSON text: {error}") from error
