"""Read nested cell arrays of numbers from MATLAB's format 5; no size in the file is trusted."""

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_MOST_BYTES = 2**24  # of the file, and of what it inflates to; the official permutations have 0.6 MB
_MATRIX, _COMPRESSED, _CELL = 14, 15, 1
_DTYPES = dict(enumerate(("i1", "u1", "i2", "u2", "i4", "u4", "f4", "", "f8", "", "", "i8", "u8"), 1))


def read_mat(path: Path, name: str) -> Any:
    """Return the variable ``name`` of a file that MATLAB or SciPy wrote: an array, or the list of a cell array's cells.

    Raises:
        ValueError: if the file lacks it, is damaged, of another version, or too large.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"it must be of at most {_MOST_BYTES} bytes")
    content = path.read_bytes()
    order = {b"\0\1IM": "<", b"\1\0MI": ">"}.get(content[124:128])
    if order is None:
        raise ValueError("it is no MATLAB 5.0 MAT-file")
    for kind, data in _elements(content[128:], order):
        if kind == _COMPRESSED:
            inflater = zlib.decompressobj()
            try:
                inflated = inflater.decompress(data, _MOST_BYTES)
            except zlib.error as error:
                raise ValueError(f"it is damaged: {error}") from error
            if not inflater.eof:
                raise ValueError(f"it is cut short, or inflates to more than {_MOST_BYTES} bytes")
            kind, data = next(_elements(inflated, order), (0, b""))
        value = _read(data, order, name) if kind == _MATRIX else None
        if value is not None:
            return value
    raise ValueError(f"it must hold {name}")


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Yield the type and the bytes of each element; up to four bytes share a word of eight with their type."""
    word = struct.Struct(f"{order}II").unpack_from
    start, end = 0, len(data)
    while start < end:
        if start + 8 > end:
            raise ValueError("it is cut short, or damaged")
        tag, size = word(data, start)
        start += 8
        if small := tag >> 16:
            start, size = start - 4, small
        if start + size > end or small > 4:
            raise ValueError("it is cut short, or damaged")
        kind = tag & 0xFFFF
        yield kind, data[start : start + size]
        start += 4 if small else size if kind == _COMPRESSED else size + -size % 8


def _read(data: bytes, order: str, name: str | None = None, depth: int = 0) -> Any:
    """Return the value of an array; None if it has not the ``name``."""
    if not data:  # an empty cell
        return np.empty((0, 0))
    elements = _elements(data, order)
    (_, flags), (_, sizes), (_, text) = (next(elements, (0, b"")) for _ in range(3))
    if len(flags) != 8 or not sizes or len(sizes) % 4 or depth > 3:
        raise ValueError("it is cut short, or damaged")
    if name is not None and text != name.encode():
        return None
    shape = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    if flags[0 if order == "<" else 3] == _CELL:
        cells = [_read(part, order, depth=depth + 1) for _, part in elements]
        if len(cells) != math.prod(shape):
            raise ValueError(f"{len(cells)} cells cannot have the shape {shape}")
        return cells
    kind, part = next(elements, (0, b""))
    if not _DTYPES.get(kind):
        raise ValueError(f"it holds an array of type {kind}, which are not numbers")
    return np.frombuffer(part, order + _DTYPES[kind]).reshape(shape, order="F")
