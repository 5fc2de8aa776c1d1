"""Feature files: features with identities, cameras and modality in one .npz or .safetensors file.

A file is plain arrays, so that ``numpy.savez`` writes one as well as `save_features` does; `load_features` checks all.
"""

import json
import os
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vireid import INFRARED, VISIBLE
from vireid._checks import Array, check_finite, to_integers, to_matrix
from vireid._files import check_file, written_whole

__all__ = ["Features", "load_features", "save_features"]

_NEEDED = ("features", "ids", "cameras", "modality")
_INTEGERS = ("ids", "cameras", "modality", "image_numbers")
_NEEDS_SAFETENSORS = "a .safetensors file needs safetensors: pip install 'vireid[safetensors]'"
_DAMAGED = (  # what NumPy and zipfile raise for bytes that are no .npz
    OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError, RuntimeError, MemoryError,
    SyntaxError, tokenize.TokenError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Features:
    """What a feature file holds: N images of one data set, both modalities in any order.

    Attributes:
        features: (N, d) float16, float32 or float64, finite.
        ids: (N,) int64 identities; the data set's own numbers where its protocol asks for them (SYSU-MM01).
        modality: (N,) int64, 0 visible, 1 infrared.
        cameras: (N,) int64 camera numbers.
        names: N names of the images, such as "cam1/0005/0001.jpg", or None.
        image_numbers: (N,) int64, numbers of the images within identity and camera, or None.
        metadata: whatever was noted of the file, text to text.
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
        """(N,) int64: ``image_numbers``, or else the place of each name among all names, sorted.

        LLCM's protocol draws its galleries by the order of the file names.

        Raises:
            ValueError: if there are neither numbers nor names.
        """
        if self.image_numbers is not None:
            return self.image_numbers
        return np.unique(np.array(self._named(), dtype=np.str_), return_inverse=True)[1].astype(np.int64)

    def numbers(self) -> np.ndarray:
        """(N,) int64: ``image_numbers``, or else the number that each name ends in ("cam1/0005/0001.jpg" is 1).

        SYSU-MM01's protocol draws its galleries by them.

        Raises:
            ValueError: if there are neither numbers nor names, or a name does not end in a number.
        """
        if self.image_numbers is not None:
            return self.image_numbers
        names = self._named()
        found = [re.search(r"(\d{1,18})(\.\w+)?$", name, re.ASCII) for name in names]
        for name, number in zip(names, found, strict=True):
            if number is None:
                raise ValueError(f"names must end in the image's number, such as 'cam1/0005/0001.jpg', got {name!r}")
        return np.array([int(number[1]) for number in found if number], dtype=np.int64)

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
        metadata: text to text, such as {"model": "CIFT"}.

    Raises:
        ValueError: for another ending, sizes that do not match, NaN or an infinity, no image, a modality other than
            0 and 1.
        TypeError: for an array of a wrong type.
        FileNotFoundError: if the folder does not exist.
        ImportError: for .safetensors where safetensors is not installed.
        OSError: if the disk is full or not writable; what stood at ``path`` is then untouched.
    """
    path = Path(path)
    _check_ending(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path must be in an existing folder, got {str(path)!r}")
    given = {"features": features, "ids": ids, "cameras": cameras, "modality": modality}
    if image_numbers is not None:
        given["image_numbers"] = image_numbers
    arrays = {name: x.cpu().contiguous() for name, x in _check_arrays(given).items()}
    listed = None if names is None else _check_names(list(names), len(arrays["features"]))
    notes = _check_metadata(dict(metadata or {}))
    if path.suffix == ".npz":
        if arrays["features"].dtype == torch.bfloat16:
            arrays["features"] = arrays["features"].float()
        stored = {name: x.numpy() for name, x in arrays.items()}
        if listed is not None:
            stored["names"] = np.array(listed, dtype=np.str_)
        if notes:
            stored["metadata"] = np.array(json.dumps(notes))
        with written_whole(path) as temporary, open(temporary, "wb") as stream:
            np.savez(stream, **stored)  # type: ignore[arg-type]
    else:
        if listed is not None:
            notes["names"] = json.dumps(listed)
        _write_safetensors(path, arrays, notes)


def load_features(path: str | os.PathLike[str]) -> Features:
    """Read and check a feature file; nothing in it is executed.

    Arrays of other names are left alone. Integers may be of any size, features float16, float32 or float64; bfloat16,
    which safetensors knows, becomes float32.

    Args:
        path: "*.npz" with the arrays ``features``, ``ids``, ``cameras``, ``modality`` and, if wanted, ``names``
            (text), ``image_numbers``, ``metadata`` (a JSON object of texts); or "*.safetensors" with the same arrays,
            the names as a JSON list in its metadata.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for another ending, a file that is damaged or cut short, an array that is missing, of a wrong type
            or size, or holds NaN, pickled objects, no image, or a modality other than 0 and 1. It names the file.
        ImportError: for .safetensors where safetensors is not installed.
    """
    path = Path(path)
    _check_ending(path)
    check_file(path, "path must be a feature file")
    try:
        given, names, metadata = (_read_npz if path.suffix == ".npz" else _read_safetensors)(path)
        missing = [name for name in _NEEDED if name not in given]
        if missing:
            raise ValueError(f"must hold the arrays {', '.join(_NEEDED)}, misses {', '.join(missing)}")
        arrays = {name: x.numpy() for name, x in _check_arrays(given).items()}
        return Features(
            arrays["features"],
            arrays["ids"],
            arrays["modality"],
            arrays["cameras"],
            None if names is None else _check_names(names, len(arrays["features"])),
            arrays.get("image_numbers"),
            _check_metadata(metadata),
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _check_ending(path: Path) -> None:
    if path.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"path must end in .npz or .safetensors, got {str(path)!r}")


def _check_arrays(given: Mapping[str, Any]) -> dict[str, Tensor]:
    """``features`` and the integer arrays of ``given`` as tensors, all checked."""
    features = given["features"]
    if isinstance(features, np.ndarray) and features.dtype.kind == "f" and features.dtype.itemsize > 8:
        raise TypeError(f"features must be float16, bfloat16, float32 or float64, got {features.dtype}")
    x = to_matrix("features", features)
    if x.dtype not in _DTYPES:
        raise TypeError(f"features must be float16, bfloat16, float32 or float64, got {x.dtype}")
    if not x.numel():
        raise ValueError(f"features must hold at least one image and one column, got shape {tuple(x.shape)}")
    check_finite("features", x)
    arrays = {"features": x}
    for name in _INTEGERS:
        if name in given:
            arrays[name] = to_integers(name, given[name], len(x), torch.device("cpu"))
            if str(given[name].dtype).endswith("uint64") and (arrays[name] < 0).any():
                raise ValueError(f"{name} must be below 2**63")
    unknown = set(arrays["modality"].unique().tolist()) - {VISIBLE, INFRARED}
    if unknown:
        raise ValueError(f"modality must be 0 (visible) or 1 (infrared), got {min(unknown)}")
    return arrays


def _check_names(names: Any, length: int) -> list[str]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError("names must be a list of texts, one an image")
    if len(names) != length:
        raise ValueError(f"names must hold {length} names, one an image, got {len(names)}")
    return names


def _check_metadata(metadata: Any) -> dict[str, str]:
    texts = isinstance(metadata, dict) and all(isinstance(x, str) for item in metadata.items() for x in item)
    if not texts:
        raise TypeError("metadata must map texts to texts")
    if "names" in metadata:
        raise ValueError("metadata must not have the key 'names', where .safetensors keeps the names of the images")
    return metadata


def _read_npz(path: Path) -> tuple[dict[str, Any], Any, Any]:
    found, name = {}, "its list of arrays"
    with open(path, "rb") as stream:
        if not zipfile.is_zipfile(stream):
            raise ValueError("is no .npz file, or cut short")
        stream.seek(0)
        try:
            with np.load(stream, allow_pickle=False) as stored:
                for name in (*_NEEDED, "image_numbers", "names", "metadata"):
                    if name in stored.files:
                        found[name] = stored[name]
        except _DAMAGED as error:
            if "allow_pickle" in str(error):
                hint = "text is stored as numpy.array(list_of_str), numbers as a numeric array"
                raise ValueError(f"{name} holds pickled objects, which are not read: {hint}") from None
            raise ValueError(f"{name} cannot be read, the file is damaged: {error}") from error
    names = found.pop("names", None)
    if names is not None:
        if names.dtype.kind != "U" or names.ndim != 1:
            raise TypeError(f"names must be a (N,) array of text (dtype '<U…'), got {names.dtype} {names.shape}")
        names = names.tolist()
    text = found.pop("metadata", None)
    if text is None:
        return found, names, {}
    if text.dtype.kind != "U" or text.ndim:
        raise TypeError(f"metadata must be one JSON text, got an array {text.dtype} {text.shape}")
    return found, names, _json("metadata", str(text))


def _write_safetensors(path: Path, arrays: dict[str, Tensor], metadata: dict[str, str]) -> None:
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise ImportError(_NEEDS_SAFETENSORS) from error
    apart = {name: x if name == "features" else x.clone() for name, x in arrays.items()}  # shared memory is refused
    with written_whole(path) as temporary:
        temporary.write_bytes(save(apart, metadata))


def _read_safetensors(path: Path) -> tuple[dict[str, Any], Any, Any]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(_NEEDS_SAFETENSORS) from error
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = dict(stored.metadata() or {})
            present = set(stored.keys())
            wanted = [name for name in (*_NEEDED, "image_numbers") if name in present]
            found = {name: stored.get_tensor(name) for name in wanted}
    except (SafetensorError, RuntimeError, MemoryError) as error:
        raise ValueError(f"is no .safetensors file, or damaged: {error}") from error
    if "features" in found and found["features"].dtype == torch.bfloat16:
        found["features"] = found["features"].float()
    names = metadata.pop("names", None)
    return found, names if names is None else _json("names", names), metadata


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} must be JSON text: {error}") from error
