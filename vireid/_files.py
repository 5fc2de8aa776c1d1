"""Write files whole or not at all; keep arrays with a small header in one .npz file, no pickle and checksummed."""

import hashlib
import json
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

_HEADER = "header"  # name of the array that holds the JSON text
_BLOCK_BYTES = 2**24  # of an array that is not contiguous, copied at once for its checksum
_DAMAGE = (  # what zipfile, NumPy and JSON raise for a file that is not what it should be
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError, RecursionError),
    *(zipfile.BadZipFile, zlib.error, struct.error, SyntaxError, tokenize.TokenError),  # the last two: array headers
)


def check_file(path: Path, expected: str) -> None:
    """Raise unless there is a file at ``path``; the message begins with what was ``expected``."""
    if not path.is_file():
        fault = "is a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{expected}, got {str(path)!r}: {fault}")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; the file written there replaces ``path`` when the block ends well.

    The bytes are on the disk before the file takes its name, so that not even a crash leaves half a file. If the block
    raises, the temporary file vanishes and ``path`` stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # of a full disk, say, which names no file, or the temporary one
        if error.errno is None:
            raise OSError(f"cannot write {str(path)!r}: {error}") from error
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def save_arrays(
    path: Path, kind: str, version: int, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any] | None = None
) -> None:
    """Write ``arrays`` and JSON ``settings``, with what `load_arrays` checks; arrays are not copied.

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
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for name, x in {_HEADER: text, **arrays}.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(x), allow_pickle=False)


def load_arrays(path: Path, kind: str, version: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What `save_arrays` wrote: arrays and settings. Takes no more memory than the arrays.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or cut short, of another kind or version, or does not match its checksum.
    """
    path = Path(path)
    check_file(path, "path must be a file")
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            header = json.loads(bytes(_read(archive, f"{_HEADER}.npy")))
            found = header["kind"], header["version"]
            if found == (kind, version):
                names = [name for name in archive.namelist() if name != f"{_HEADER}.npy"]
                arrays = {name.removesuffix(".npy"): _read(archive, name) for name in names}
            digest, settings = header.pop("sha256"), header["settings"]
    except _DAMAGE as error:
        raise ValueError(f"path must be a whole {kind} file, cannot read {str(path)!r}: {error}") from error
    if found != (kind, version):
        raise ValueError(f"path must hold {kind} version {version}, got {found[0]} version {found[1]} in {str(path)!r}")
    if digest != _digest(header, arrays):
        raise ValueError(f"path must hold what was saved, but the checksum of {str(path)!r} does not match")
    return arrays, settings


def _read(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of an open file, after a look at its size: a forged one must not make us ask for all memory."""
    entry = archive.getinfo(name)
    with archive.open(entry) as stream:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError(f"{name} is of another format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        size = dtype.itemsize
        for length in shape:
            size *= length
        size += stream.tell()
    stored = Path(str(archive.filename)).stat().st_size
    if dtype.hasobject or entry.compress_type != zipfile.ZIP_STORED or size != entry.file_size or size > stored:
        raise ValueError(f"{name} holds pickled, packed or missing data")
    with archive.open(entry) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _digest(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of the header and of name, type, shape and bytes of every array."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(arrays):
        x = np.asarray(arrays[name])
        digest.update(f"{name} {x.dtype.str} {x.shape}".encode())
        for part in [x] if x.flags.c_contiguous else np.array_split(x, x.nbytes // _BLOCK_BYTES + 1):
            part = np.ascontiguousarray(part)  # a copy of one block, not of the whole
            digest.update(part.data if part.size else b"")
    return digest.hexdigest()
