"""Write files whole or not at all; read .npz files, the project's own with a small header, executing nothing."""

import errno
import hashlib
import io
import json
import math
import os
import secrets
import stat
import threading
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from vireid._checks import check_path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

AnyPath: TypeAlias = str | os.PathLike[str]

_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # a stranger's pipe is not waited for
_HEADER = "header"  # name of the array that holds the JSON text
_HEADERS = threading.Lock()  # NumPy parses headers as literals, which CPython 3.11 does in one thread at a time only
_BLOCK_BYTES = 2**20  # read at once
_HEADER_BYTES = 12 + 10_000  # NumPy reads no longer header
_INFLATED_BYTES, _INFLATED_TIMES = 2**28, 64  # all arrays of a file may hold the larger one, bytes or times its size


def check_file(path: Path, expected: str) -> None:
    """Raise unless there is a file at ``path``; the message begins with what was ``expected``."""
    if not path.is_file():
        fault = "is a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{expected}, got {str(path)!r}: {fault}")


def check_output(path: object, *endings: str) -> Path:
    """Return ``path`` as a path; raise unless it has one of ``endings``, if there are any, and its folder exists."""
    path = check_path("path", path)
    if endings and path.suffix not in endings:
        raise ValueError(f"path must end in {' or '.join(endings)}, got {str(path)!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path must be in an existing folder, got {str(path)!r}")
    return path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; the file written there replaces ``path`` if the block succeeds.

    A link is written through, and an old file's permissions are kept. The bytes are on the disk before the file is
    renamed, the folder after it, so that not even a crash leaves half a file. If the block raises, the temporary file
    is removed and ``path`` stays as it was.

    Threads and processes may write one path at once: the last to finish wins. What a killed process left is removed by
    the next write of that path. It is told by its lock, which ends with the process; without locks, as on Windows and
    some network file systems, it stays.
    """
    try:
        target, mode = Path(os.path.realpath(path)) if path.is_symlink() else path, None
        if target.exists():
            mode = stat.S_IMODE(target.stat().st_mode)
            if not target.is_file():
                raise OSError(errno.EINVAL, "Is a folder" if target.is_dir() else "Is no regular file")
        with claimed(target, 0o666 if mode is None else mode | 0o600) as temporary:
            yield temporary
            with open(temporary, "r+b") as written:
                os.fsync(written.fileno())
            if mode is not None:
                os.chmod(temporary, mode)
            os.replace(temporary, target)
        with suppress(OSError):  # file systems and Windows that cannot
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:  # such as a full disk's, which names no file or the temporary one
        if error.errno is None:
            raise OSError(f"cannot write {str(path)!r}: {error}") from error
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def claimed(path: Path, mode: int) -> Iterator[Path]:
    """Create and lock a temporary file beside ``path``, after those that killed writers of ``path`` left are removed.

    Its name is short, however long that of ``path`` is. If the block raises it is removed.
    """
    prefix = f".vireid-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}."
    for left in path.parent.glob(f"{prefix}*.tmp") if fcntl else ():
        with suppress(OSError), open(left, "r+b", opener=lambda at, flags: os.open(at, flags | _NO_LINK)) as found:
            fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises while its writer lives
            left.unlink()
    while True:
        temporary = path.with_name(f"{prefix}{secrets.token_hex(8)}.tmp")
        file = open(temporary, "xb", opener=lambda at, flags: os.open(at, flags, mode))
        with suppress(OSError, AttributeError):  # without locks; on Windows
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            break
        file.close()  # removed by another writer before it was locked
    with file:
        if fcntl is None:  # Windows renames no open file
            file.close()
        try:
            yield temporary
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz file whole or not at all; the arrays are not copied."""
    save: Callable[..., None] = np.savez
    with written_whole(path) as temporary, open(temporary, "wb") as stream:
        save(stream, **arrays)


def read_npz(path: Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz file, all or, of ``names``, those present; nothing in it is executed.

    An array's header is compared with the bytes in the file before memory is taken and anything inflated.

    Raises:
        ValueError: if the file is cut short, names an array twice, or an array does not match its checksum or size or
            holds pickled objects or records; if the arrays take more than 256 MiB and more than 64 times the file's
            size (our choice), which no features come near; the message names the array, not the file.
    """
    arrays: dict[str, np.ndarray] = {}
    members: dict[str, zipfile.ZipInfo] = {}
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # whatever zipfile makes of a damaged file
        raise ValueError(f"is no .npz file, or cut short: {error}") from error
    with archive:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if name in members:
                raise ValueError(f"{name} must be the name of one array, two have it")
            members[name] = entry
        wanted = {name: entry for name, entry in members.items() if names is None or name in names}
        most = max(_INFLATED_BYTES, _INFLATED_TIMES * path.stat().st_size)
        if sum(entry.file_size for entry in wanted.values()) > most:
            hint = "numpy.savez stores arrays that are almost constant, without compression"
            listed = ", ".join(wanted)
            raise ValueError(f"{listed[:99]} cannot be read, at most {most} bytes are inflated in all: {hint}")
        for name, entry in wanted.items():
            with _damage(name):
                shape, columns_first, dtype, offset = _read_header(archive, entry)
            if dtype.hasobject or dtype.kind == "V":
                hint = "text is stored as numpy.array(list_of_str), numbers as a numeric array"
                what = "pickled objects" if dtype.hasobject else "records"
                raise ValueError(f"{name} holds {what}, which are not read: {hint}")
            with _damage(name), archive.open(entry) as stream:
                stream.read(offset)
                array = np.empty(math.prod(shape), dtype)
                content = array.view(np.uint8)
                for start in range(0, array.nbytes, _BLOCK_BYTES):
                    block = content[start : start + _BLOCK_BYTES]
                    block[:] = np.frombuffer(stream.read(len(block)), np.uint8)
                stream.read(1)  # at the end, and only there, zipfile compares the checksum
                arrays[name] = array.reshape(shape, order="F" if columns_first else "C")
    return arrays


def check_not_compressed(path: Path) -> None:
    """Raise if ``path``, of `torch.save`, has members that take more than the file: it compresses none."""
    if zipfile.is_zipfile(path):
        with _damage("its list of tensors"), zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > path.stat().st_size:
            raise ValueError(f"it would take {size} bytes, more than its file")


@contextmanager
def _damage(name: str) -> Iterator[None]:
    """Raise ValueError, which names an array, for whatever zipfile and NumPy raise in the block."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{name} cannot be read, the file is damaged: {error}") from error


def _read_header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return an array's shape, whether columns come first, its dtype and the bytes of its header, which must fit."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"its compression must be none or deflate, got method {entry.compress_type}")
    with archive.open(entry) as member:
        stream = io.BytesIO(member.read(_HEADER_BYTES))
    with _HEADERS:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, columns_first, dtype = read(stream)
    size = math.prod(shape) * dtype.itemsize + stream.tell()
    wrong = min(shape, default=0) < 0 or not dtype.itemsize or size != entry.file_size
    if wrong and not dtype.hasobject:  # which has the size of its pickle
        raise ValueError(f"its header asks for {dtype} {str(shape)[:99]}, the file holds {entry.file_size} bytes")
    return shape, columns_first, dtype, stream.tell()


def parse_json(text: str | bytes) -> Any:
    """Return the content of a JSON text.

    Raises:
        ValueError: for anything else, a number that is not finite, a key given twice, or too many levels.
    """
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("its levels are too many") from error


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number, got {text}")
    return number


def _unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(items)
    if len(content) < len(items):
        raise ValueError(f"a key of {', '.join(map(repr, content))[:60]} is given twice")
    return content


def save_arrays(
    path: AnyPath, kind: str, version: int, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any] | None = None
) -> None:
    """Write ``arrays`` and JSON ``settings`` under a kind and a version, which `load_arrays` compares.

    Raises:
        ValueError: if the ending is not .npz, or a setting not finite.
        FileNotFoundError: if the folder does not exist.
        OSError: if the disk is full or not writable; the old file at ``path`` stays.
    """
    path = check_output(path, ".npz")
    header = {"kind": kind, "version": version, "settings": dict(settings or {}), "arrays": sorted(arrays)}
    write_npz(path, {_HEADER: np.frombuffer(json.dumps(header, allow_nan=False).encode(), dtype=np.uint8), **arrays})


def load_arrays(path: AnyPath, kind: str, version: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the arrays and settings that `save_arrays` wrote, in the memory of the arrays.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or cut short, or of another kind or version.
    """
    path = check_path("path", path)
    check_file(path, "path must be a file")
    try:
        arrays = read_npz(path)
        header = parse_json(bytes(arrays.pop(_HEADER)))
        found, settings = (header["kind"], header["version"]), dict(header["settings"])
        if found == (kind, version) and sorted(arrays) != header.get("arrays", sorted(arrays)):
            raise ValueError(f"it must hold the arrays {header['arrays']}, got {sorted(arrays)}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"path must be a whole {kind} file, cannot read {str(path)!r}: {error}") from error
    if found != (kind, version):
        raise ValueError(f"path must hold {kind} version {version}, got {found[0]} version {found[1]} in {str(path)!r}")
    return arrays, settings
