"""Whole files, and .npz files of every kind of damage."""

import io
import json
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest

from vireid._files import load_arrays, read_npz, save_arrays, written_whole

KIND, VERSION = "vireid test", 3


def arrays():
    r = np.random.default_rng(0)
    return {
        "plain": r.standard_normal((5, 3)).astype(np.float32),
        "columns": np.asfortranarray(r.standard_normal((4, 3))),
        "strided": np.arange(12, dtype=np.int64).reshape(3, 4)[:, ::2],
        "empty": np.zeros((0, 7), dtype=np.float16),
        "single": np.array(9, dtype=np.int64),
    }


def save(path, **settings):
    save_arrays(path, KIND, VERSION, arrays(), settings)
    return path


def equal(left, right):
    return sorted(left) == sorted(right) and all(
        left[n].dtype == right[n].dtype and left[n].shape == right[n].shape and (left[n] == right[n]).all()
        for n in left
    )


def npz(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def npy(x, **options):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(x), **options)
    return stream.getvalue()


HEADER = npy(
    np.frombuffer(
        json.dumps({"kind": KIND, "version": VERSION, "settings": {}, "arrays": ["x"]}).encode(), dtype=np.uint8
    )
)


def test_what_is_saved_is_loaded(tmp_path):
    path = save(tmp_path / "a.npz", k=4, name="ä")
    loaded, settings = load_arrays(path, KIND, VERSION)
    assert equal(loaded, arrays())
    assert settings == {"k": 4, "name": "ä"}
    with np.load(path, allow_pickle=False) as stored:  # a plain .npz for everyone else
        assert equal({n: stored[n] for n in stored.files if n != "header"}, arrays())
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize(("name", "error"), [("a.npy", ValueError), ("a", ValueError), ("no/a.npz", FileNotFoundError)])
def test_paths_that_cannot_be_written_are_named(tmp_path, name, error):
    with pytest.raises(error, match=r"path must .*got .*" + name.split("/")[-1]):
        save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path must be a file, got .*gone\.npz"):
        load_arrays(tmp_path / "gone.npz", KIND, VERSION)
    with pytest.raises(FileNotFoundError, match=r"path must be a file, got .*: is a folder"):
        load_arrays(tmp_path, KIND, VERSION)


def test_another_kind_or_version_is_refused(tmp_path):
    path = save(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"must hold vireid other version 3, got vireid test version 3 in .*a\.npz"):
        load_arrays(path, "vireid other", VERSION)
    with pytest.raises(ValueError, match=r"version 4, got vireid test version 3"):
        load_arrays(path, KIND, 4)


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    whole = save(tmp_path / "a.npz").read_bytes()
    path = tmp_path / "b.npz"
    for length in range(0, len(whole), 61):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"path must .*b\.npz"):
            load_arrays(path, KIND, VERSION)


def test_a_flipped_byte_is_noticed_or_harmless(tmp_path):
    """Zip holds times and other marks that no reader needs: such a byte may pass, a changed array never."""
    whole = save(tmp_path / "a.npz").read_bytes()
    path = tmp_path / "b.npz"
    refused = unnamed = 0
    places = range(0, len(whole), 19)
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 129]) + whole[place + 1 :])
        try:
            loaded, settings = load_arrays(path, KIND, VERSION)
        except ValueError as error:
            refused += 1
            unnamed += "b.npz" not in str(error)
        else:
            assert equal(loaded, arrays())
            assert settings == {}
    assert refused > 0.7 * len(places)
    assert not unnamed


@pytest.mark.parametrize(
    "content", [b"", b"not a zip", npy(np.arange(3)), b"PK\x03\x04" + bytes(60), b"PK\x05\x06" + bytes(18)]
)
def test_files_of_other_formats_are_refused(tmp_path, content):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"path must be a whole vireid test file, cannot read .*a\.npz"):
        load_arrays(path, KIND, VERSION)


def test_foreign_npz_files_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    headers = ("{}", "[]", "3", "nonsense", "[" * 100_000, '{"kind": "vireid test", "version": 3}', '{"kind": []}')
    for text in headers:
        np.savez(path, header=np.frombuffer(text.encode(), dtype=np.uint8), x=np.zeros(3))
        with pytest.raises(ValueError, match=r"path must .*a\.npz"):
            load_arrays(path, KIND, VERSION)
    for header in (np.arange(4.0), np.array("text"), np.zeros((2, 2), dtype=np.uint8)):
        np.savez(path, header=header)
        with pytest.raises(ValueError, match=r"path must .*a\.npz"):
            load_arrays(path, KIND, VERSION)
    np.savez(path, features=np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"path must .*a\.npz"):
        load_arrays(path, KIND, VERSION)


class Trap:
    """Leaves a mark when it is unpickled."""

    opened = False

    def __reduce__(self):
        return (setattr, (Trap, "opened", True))


def test_pickled_arrays_are_not_opened(tmp_path):
    path = tmp_path / "a.npz"
    trap = npy(np.array([Trap()], dtype=object), allow_pickle=True)
    for members in (
        {"header.npy": trap},
        {"header.npy": HEADER, "x.npy": trap},
        {"header.npy": HEADER, "x": b"\x80\x04cos\nsystem\n."},
    ):
        npz(path, members)
        with pytest.raises(ValueError, match=r"path must .*a\.npz"):
            load_arrays(path, KIND, VERSION)
    assert not Trap.opened


@pytest.mark.parametrize(
    ("old", "new"), [(b"'descr'", b"''descr'"), (b"'shape'", b"'shape("), (b"(4096,)", b"(4096, ")]
)
def test_headers_that_are_no_python_are_refused(old, new, tmp_path):
    """NumPy's parser of headers raises errors of its own."""
    path = save(tmp_path / "a.npz")
    large = npy(np.zeros(4096))
    assert old in large
    npz(path, {"header.npy": HEADER, "x.npy": large.replace(old, new)})
    with pytest.raises(ValueError, match=r"path must be a whole .*a\.npz"):
        load_arrays(path, KIND, VERSION)


def test_sizes_that_contradict_the_header_are_refused(tmp_path):
    path, small = tmp_path / "a.npz", npy(np.zeros(4))
    huge = small.replace(b"(4,)", b"(4" + b"0" * 14 + b",)").replace(b" " * 14 + b"\n", b"\n")
    for member in (huge, small.replace(b"(4,), ", b"(-4,),"), small.replace(b"(4,)", b"(3,)"), small[:-8]):
        assert member != small
        npz(path, {"header.npy": HEADER, "x.npy": member})
        with pytest.raises(ValueError, match=r"path must .*a\.npz.*: x cannot be read, the file is damaged"):
            load_arrays(path, KIND, VERSION)
    npz(path, {"header.npy": HEADER, "y.npy": small})
    with pytest.raises(ValueError, match=r"must hold the arrays \['x'\], got \['y'\]"):
        load_arrays(path, KIND, VERSION)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_forged_header_allocates_nothing(compression, tmp_path, monkeypatch):
    """A header asks for 8 GB where a handful of bytes follows: it must be refused before the array is made."""
    forged = npy(np.zeros(4)).replace(b"(4,)", b"(1" + b"0" * 9 + b",)").replace(b" " * 9 + b"\n", b"\n")
    npz(tmp_path / "a.npz", {"x.npy": forged}, compression)
    monkeypatch.setattr(np, "empty", lambda *_, **__: pytest.fail("the array was made"))
    with pytest.raises(ValueError, match="x cannot be read, the file is damaged: its header asks for 80000001"):
        read_npz(tmp_path / "a.npz")


def test_only_the_arrays_asked_for_are_read(tmp_path):
    npz(tmp_path / "a.npz", {"x.npy": npy(np.arange(3)), "y.npy": b"no array"}, zipfile.ZIP_DEFLATED)
    assert {name: x.tolist() for name, x in read_npz(tmp_path / "a.npz", ["x", "z"]).items()} == {"x": [0, 1, 2]}
    with pytest.raises(ValueError, match="y cannot be read, the file is damaged"):
        read_npz(tmp_path / "a.npz")


def test_saving_and_loading_copy_no_array(tmp_path):
    x = np.zeros((10_000_000, 1), dtype=np.float32)
    for given in (x, np.zeros((20, 1_000_000), dtype=np.float32).T[::2]):
        tracemalloc.start()
        save_arrays(tmp_path / "a.npz", KIND, VERSION, {"x": given})
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < given.nbytes  # blocks of it
    tracemalloc.start()
    load_arrays(tmp_path / "a.npz", KIND, VERSION)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * x.nbytes


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError("broken"), KeyboardInterrupt()])
def test_an_error_while_writing_leaves_the_old_file(error, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def write():
        with written_whole(path) as temporary:
            temporary.write_bytes(b"half")
            raise error

    named = f"(No space left on device|cannot write).*{path}" if isinstance(error, OSError) else None
    with pytest.raises(type(error), match=named):
        write()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_disk_that_fills_leaves_the_old_file(tmp_path):
    """The operating system lets no file grow beyond a limit: early, and in the last bytes; in a process of its own."""
    path = save(tmp_path / "a.npz")
    before = path.read_bytes()
    code = (
        "import resource, sys, numpy as np; from pathlib import Path; from vireid._files import save_arrays\n"
        "path, arrays = Path(sys.argv[1]), {'x': np.ones(30_000, dtype=np.float32)}\n"
        "whole = path.with_name('whole.npz'); save_arrays(whole, 'vireid test', 3, arrays)\n"
        "size = whole.stat().st_size; whole.unlink()\n"
        "for limit in (size - 1, size - 30, size - 300, 50_000, 100):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, size))\n"
        "    try: save_arrays(path, 'vireid test', 3, arrays)\n"
        "    except OSError as error: print('refused', error)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == 5 * f"refused [Errno 27] File too large: {str(path)!r}\n"
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
