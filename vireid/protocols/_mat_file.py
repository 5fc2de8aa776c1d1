"""Read nested cell arrays of numbers from MATLAB's format 5; no size in the file is trusted."""

import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

_MOST_BYTES = 2**24  # of the file, and of what it inflates to; the official permutations have 0.6 MB
_MATRIX, _COMPRESSED, _CELL = 14, 15, 1
_DTYPES = dict(enumerate(("i1", "u1", "i2", "u2", "i4", "u4", "f4", "", "f8", "", "", "i8", "u8"), 1))


def read_mat(path: Path, name: str) -> Any:
    """Return the variable ``name`` of a file that MATLAB or SciPy wrote: an array, or the list of a cell array's cells.

    Raises:
        ValueError: if there is none, or the file is damaged, of another version, or too large.
    """
    with open(path, "rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"it must be of at most {_MOST_BYTES} bytes")
    order = {b"\0\1IM": "<", b"\1\0MI": ">"}.get(content[124:128])
    if order is None:
        raise ValueError("it is no MATLAB 5.0 MAT-file")
    for kind, data in _elements(content[128:], order):
        if kind == _COMPRESSED:
            kind, data = next(_elements(_inflated(data), order), (0, b""))
        if kind == _MATRIX:
            found, value = _read(data, order, name)
            if found:
                return value
    raise ValueError(f"it must hold {name}")


def _inflated(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        content = inflater.decompress(data, _MOST_BYTES)
    except zlib.error as error:
        raise ValueError(f"it is damaged: {error}") from error
    if not inflater.eof:
        raise ValueError(f"it is cut short, or inflates to more than {_MOST_BYTES} bytes")
    return content


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Yield the type and the bytes of each element; up to four bytes share a word of eight with their type."""
    endian: Literal["little", "big"] = "little" if order == "<" else "big"
    start = 0
    while start < len(data):
        tag, size = (int.from_bytes(data[start + i : start + i + 4], endian) for i in (0, 4))
        kind, small = tag & 0xFFFF, tag >> 16
        first, size = (start + 4, small) if small else (start + 8, size)
        if first + size > len(data) or small > 4:
            raise ValueError("it is cut short, or damaged")
        yield kind, data[first : first + size]
        start = start + 8 if small else first + size + (-size % 8 if kind != _COMPRESSED else 0)


def _read(data: bytes, order: str, name: str | None = None, depth: int = 0) -> tuple[bool, Any]:
    """Return whether an array has this ``name``, and its value, which is read only then."""
    if not data:  # an empty cell
        return True, np.empty((0, 0))
    elements = _elements(data, order)
    head = [part for _, part in zip(range(3), elements, strict=False)]
    if len(head) < 3 or len(head[0][1]) != 8 or depth > 3:
        raise ValueError("it is cut short, or damaged")
    (_, flags), (_, sizes), (_, text) = head
    if name is not None and text != name.encode():
        return False, []
    shape = tuple(np.frombuffer(sizes, f"{order}i4").tolist())
    if flags[0 if order == "<" else 3] == _CELL:
        cells = [_read(part, order, depth=depth + 1)[1] for _, part in elements]
        if len(cells) != math.prod(shape):
            raise ValueError(f"{len(cells)} cells cannot have the shape {shape}")
        return True, cells
    kind, part = next(elements, (0, b""))
    if not _DTYPES.get(kind):
        raise ValueError(f"it holds an array of type {kind}, which are not numbers")
    return True, np.frombuffer(part, order + _DTYPES[kind]).reshape(shape, order="F")
