"""Files of MATLAB, compared with SciPy's reader, and those that lie about their sizes."""

import io
import struct
import zlib

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from measuring import memory_below
from vireid.protocols import SYSUMM01
from vireid.protocols._mat_file import read_mat


def nested(seed=0):
    """Return cells of cells of matrices, one of them empty, as in the official file."""
    r = np.random.default_rng(seed)
    outer = np.empty((6, 1), dtype=object)
    for i, dtype in enumerate((np.uint8, np.uint16, np.int32, np.int64, np.float32, np.float64)):
        cells = np.empty((3, 1), dtype=object)
        for j, shape in enumerate(((2, 1), (0, 0), (12, 5))):
            cells[j, 0] = r.integers(0, 200, shape).astype(dtype)
        outer[i, 0] = cells
    return outer


def content(x, compressed=True, **others):
    stream = io.BytesIO()
    savemat(stream, others | {"rand_perm_cam": x}, do_compression=compressed)
    return stream.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
def test_cells_of_cells_are_what_scipy_reads(compressed, tmp_path):
    path = tmp_path / "a.mat"
    path.write_bytes(content(nested(), compressed, before=np.arange(3), text="some"))
    expected = loadmat(path)["rand_perm_cam"].ravel()
    found = read_mat(path, "rand_perm_cam")
    assert [len(cells) for cells in found] == [3] * 6
    for ours, theirs in zip(found, expected, strict=True):
        for x, y in zip(ours, theirs.ravel(), strict=True):
            assert x.shape == y.shape
            assert (x == y).all()


def matrix(kind, shape, *parts, swapped=False):
    """Return an array of MATLAB's, big-endian if ``swapped``."""
    order = ">" if swapped else "<"

    def element(number, data):
        return struct.pack(f"{order}II", number, len(data)) + data + bytes(-len(data) % 8)

    head = element(6, struct.pack(f"{order}II", kind, 0)) + element(5, struct.pack(f"{order}{len(shape)}i", *shape))
    return element(14, head + element(1, b"rand_perm_cam" if kind == 1 else b"") + b"".join(parts))


def file(*elements, swapped=False):
    return b"MATLAB 5.0".ljust(124) + (b"\1\0MI" if swapped else b"\0\1IM") + b"".join(elements)


def test_files_of_big_endian_machines_are_read(tmp_path):
    numbers = struct.pack(">II", 4, 4) + struct.pack(">2H", 300, 7) + bytes(4)
    path = tmp_path / "a.mat"
    path.write_bytes(file(matrix(1, (1, 1), matrix(11, (1, 2), numbers, swapped=True), swapped=True), swapped=True))
    assert read_mat(path, "rand_perm_cam")[0].tolist() == [[300, 7]]


def deep(levels):
    found = b""
    for _ in range(levels):
        found = matrix(1, (1, 1), found)
    return found


def packed(data):
    data = zlib.compress(data)
    return struct.pack("<II", 15, len(data)) + data


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (b"", "no MATLAB 5.0 MAT-file"),
        (b"not a matrix" * 50, "no MATLAB 5.0 MAT-file"),
        (file(), "must hold rand_perm_cam"),
        (file(matrix(1, (2**31 - 1, 2**31 - 1))), r"0 cells cannot have the shape \(2147483647, 2147483647\)"),
        (file(matrix(1, (-1, 1))), "cells cannot have the shape"),
        (file(struct.pack("<II", 14, 2**32 - 1)), "cut short, or damaged"),
        (file(struct.pack("<II", 14 | 9 << 16, 0)), "cut short, or damaged"),
        (file(deep(200)), "cut short, or damaged"),
        (file(packed(bytes(2**26))), "inflates to more than"),
        (file(struct.pack("<II", 15, 4) + b"zlib"), "is damaged: Error -3"),
        (file(matrix(1, (1, 1), matrix(4, (1, 1), matrix(6, (1, 1))))), "are not numbers"),
        (bytes(2**24 + 1), "at most 16777216 bytes"),
    ],
)
def test_files_that_lie_are_refused_before_memory_is_taken(bad, text, tmp_path):
    path = tmp_path / "a.mat"
    path.write_bytes(bad)
    expected = rf"permutations must be the data set's rand_perm_cam\.mat.*a\.mat': .*{text}"
    with pytest.raises(ValueError, match=expected), memory_below(2.5 * 2**24):  # what is read, and a copy
        SYSUMM01(permutations=path)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "a.mat"
    for compressed in (False, True):
        whole = content(nested(), compressed)
        for length in range(0, len(whole) - 8, 61):
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match=r"permutations must .*a\.mat"):
                SYSUMM01(permutations=path)


def test_changed_bytes_are_named_or_harmless(tmp_path):
    r, path, unnamed = np.random.default_rng(0), tmp_path / "a.mat", 0
    for compressed in (False, True):
        whole = content(nested(), compressed)
        for _ in range(150):
            changed = bytearray(whole)
            changed[r.integers(0, len(whole))] = r.integers(0, 256)
            path.write_bytes(changed)
            try:
                SYSUMM01(permutations=path, trials=2)
            except ValueError as error:
                unnamed += "permutations must" not in str(error)
    assert not unnamed


@pytest.mark.parametrize("x", [np.arange(6), np.array([["text"]], dtype=object), "text"])
def test_other_contents_are_refused(x, tmp_path):
    (tmp_path / "a.mat").write_bytes(content(x))
    with pytest.raises(ValueError, match=r"permutations must .*a\.mat"):
        SYSUMM01(permutations=tmp_path / "a.mat")
