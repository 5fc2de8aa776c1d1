"""Arrays with a small header in one .npz file: no pickle, a checksum over all of it, written whole or not at all."""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vireid._files import written_whole

__all__ = ["load_arrays", "save_arrays"]

_HEADER = "header"  # name of the array that holds the JSON text


def save_arrays(
    path: Path, kind: str, version: int, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any] | None = None
) -> None:
    """Write ``arrays`` and JSON ``settings``, with what `load_arrays` checks.

    Raises:
        ValueError: if the ending is not .npz.
        FileNotFoundError: if the folder does not exist.
        OSError: if the disk is full or not writable; what stood at ``path`` is then untouched.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"path must end in .npz, got {str(path)!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path must be in an existing folder, got {str(path)!r}")
    header: dict[str, Any] = {"kind": kind, "version": version, "settings": dict(settings or {})}
    header["sha256"] = _digest(header, arrays)
    text = np.frombuffer(json.dumps(header, sort_keys=True).encode(), dtype=np.uint8)
    with written_whole(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, **{_HEADER: text, **arrays})  # type: ignore[arg-type]


def load_arrays(path: Path, kind: str, version: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What `save_arrays` wrote: arrays and settings.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or cut short, of another kind or version, or does not match its checksum.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path must be a file, got {str(path)!r}: no such file")
    damaged = (OSError, EOFError, ValueError, KeyError, TypeError, NotImplementedError, RuntimeError)
    try:
        with np.load(path, allow_pickle=False) as stored:
            header = json.loads(bytes(stored[_HEADER]))
            found = header["kind"], header["version"]
            if found == (kind, version):
                arrays = {name: stored[name] for name in stored.files if name != _HEADER}
            digest, settings = header.pop("sha256"), header["settings"]
    except (*damaged, AttributeError, zipfile.BadZipFile, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"path must be a whole {kind} file, cannot read {str(path)!r}: {error}") from error
    if found != (kind, version):
        raise ValueError(f"path must hold {kind} version {version}, got {found[0]} version {found[1]} in {str(path)!r}")
    if digest != _digest(header, arrays):
        raise ValueError(f"path must hold what was saved, but the checksum of {str(path)!r} does not match")
    return arrays, settings


def _digest(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of the header and of name, type, shape and bytes of every array."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(arrays):
        x = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {x.dtype.str} {x.shape}".encode())
        digest.update(x.data if x.size else b"")
    return digest.hexdigest()
