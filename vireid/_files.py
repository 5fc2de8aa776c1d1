"""Write files whole or not at all; read .npz files, the project's own with a small header, executing nothing."""

import json
import math
import os
import struct
import threading
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

_HEADER = "header"  # name of the array that holds the JSON text
_HEADERS = threading.Lock()  # NumPy parses headers as literals, which CPython 3.11 does in one thread at a time only
_BLOCK_BYTES = 2**20  # read at once
_DEFLATE_RATIO = 1032  # a byte of a deflated member stands for no more bytes
_DAMAGE = (  # errors that zipfile and NumPy raise for damaged files
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, struct.error, SyntaxError, tokenize.TokenError),  # the last two: array headers
)


def check_file(path: Path, expected: str) -> None:
    """Raise unless there is a file at ``path``; the message begins with what was ``expected``."""
    if not path.is_file():
        fault = "is a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{expected}, got {str(path)!r}: {fault}")


def check_parent(path: Path) -> None:
    """Raise unless the folder of ``path`` exists."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path must be in an existing folder, got {str(path)!r}")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; the file written there replaces ``path`` if the block succeeds.

    The bytes are on the disk before the file is renamed, so that not even a crash leaves half a file. If the block
    raises, the temporary file is removed and ``path`` stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # such as a full disk's, which names no file or the temporary one
        if error.errno is None:
            raise OSError(f"cannot write {str(path)!r}: {error}") from error
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz file whole or not at all; the arrays are not copied."""
    save: Callable[..., None] = np.savez
    with written_whole(path) as temporary, open(temporary, "wb") as stream:
        save(stream, **arrays)


def read_npz(path: Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz file, all or, of ``names``, those present; nothing in it is executed.

    Raises:
        ValueError: if the file is cut short, or an array does not match its checksum or size or holds pickled objects;
            the message names the array, not the file.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError("is no .npz file, or cut short")
    arrays: dict[str, np.ndarray] = {}
    name = "its list of arrays"
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.removesuffix(".npy"): member for member in archive.namelist()}
            for name in members if names is None else [name for name in names if name in members]:
                arrays[name] = _read_array(archive, archive.getinfo(members[name]))
    except _Pickled:
        hint = "text is stored as numpy.array(list_of_str), numbers as a numeric array"
        raise ValueError(f"{name} holds pickled objects, which are not read: {hint}") from None
    except _DAMAGE as error:
        raise ValueError(f"{name} cannot be read, the file is damaged: {error}") from error
    return arrays


class _Pickled(ValueError):
    """An array of Python objects, which reading would execute."""


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """Read an array, after a comparison of its size with the bytes in the file: before that nothing is allocated."""
    with archive.open(entry) as stream:
        with _HEADERS:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, columns_first, dtype = read(stream)
        if dtype.hasobject:
            raise _Pickled
        count = math.prod(shape)
        size = count * dtype.itemsize + stream.tell()
        ratio = 1 if entry.compress_type == zipfile.ZIP_STORED else _DEFLATE_RATIO
        most = ratio * min(entry.compress_size, Path(str(archive.filename)).stat().st_size)
        if count < 0 or size != entry.file_size or size > most:
            raise ValueError(f"its header asks for {size} bytes, the file holds {min(entry.file_size, most)}")
        array = np.empty(count, dtype)
        content = array.view(np.uint8) if array.nbytes else array
        for start in range(0, array.nbytes, _BLOCK_BYTES):
            block = content[start : start + _BLOCK_BYTES]
            block[:] = np.frombuffer(stream.read(len(block)), np.uint8)
        stream.read(1)  # at the end, and only there, zipfile compares the checksum
    return array.reshape(shape[::-1]).T if columns_first else array.reshape(shape)


def save_arrays(
    path: Path, kind: str, version: int, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any] | None = None
) -> None:
    """Write ``arrays`` and JSON ``settings`` under a kind and a version, which `load_arrays` compares.

    Raises:
        ValueError: if the ending is not .npz.
        FileNotFoundError: if the folder does not exist.
        OSError: if the disk is full or not writable; the old file at ``path`` stays.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"path must end in .npz, got {str(path)!r}")
    check_parent(path)
    header = {"kind": kind, "version": version, "settings": dict(settings or {}), "arrays": sorted(arrays)}
    write_npz(path, {_HEADER: np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **arrays})


def load_arrays(path: Path, kind: str, version: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the arrays and settings that `save_arrays` wrote, in the memory of the arrays.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or cut short, or of another kind or version.
    """
    path = Path(path)
    check_file(path, "path must be a file")
    try:
        header = json.loads(bytes(read_npz(path, [_HEADER])[_HEADER]))
        found, settings = (header["kind"], header["version"]), dict(header["settings"])
        arrays = read_npz(path) if found == (kind, version) else {}
        arrays.pop(_HEADER, None)
        if found == (kind, version) and sorted(arrays) != header.get("arrays", sorted(arrays)):
            raise ValueError(f"it must hold the arrays {header['arrays']}, got {sorted(arrays)}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"path must be a whole {kind} file, cannot read {str(path)!r}: {error}") from error
    if found != (kind, version):
        raise ValueError(f"path must hold {kind} version {version}, got {found[0]} version {found[1]} in {str(path)!r}")
    return arrays, settings
