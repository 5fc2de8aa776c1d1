"""Whole files, and .npz files of every kind of damage."""

import errno
import io
import json
import os
import stat
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest
import torch

from measuring import memory_below
from vireid import _files
from vireid._files import (
    check_not_compressed,
    load_arrays,
    parse_json,
    read_npz,
    save_arrays,
    written_whole,
)
from vireid.nn._weights import read_state
from vireid.training import read_checkpoint

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
    contents = [{"header": np.frombuffer(x.encode(), dtype=np.uint8), "x": np.zeros(3)} for x in headers]
    contents += [{"header": x} for x in (np.arange(4.0), np.array("text"), np.zeros((2, 2), dtype=np.uint8))]
    for content in (*contents, {"features": np.zeros((3, 2))}):
        np.savez(path, **content)
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


def test_only_the_arrays_asked_for_are_read(tmp_path):
    npz(tmp_path / "a.npz", {"x.npy": npy(np.arange(3)), "y.npy": b"no array"}, zipfile.ZIP_DEFLATED)
    assert {name: x.tolist() for name, x in read_npz(tmp_path / "a.npz", ["x", "z"]).items()} == {"x": [0, 1, 2]}
    with pytest.raises(ValueError, match="y cannot be read, the file is damaged"):
        read_npz(tmp_path / "a.npz")


def test_saving_and_loading_copy_no_array(tmp_path):
    x = np.zeros((10_000_000, 1), dtype=np.float32)
    for given in (x, np.zeros((20, 1_000_000), dtype=np.float32).T[::2]):
        with memory_below(given.nbytes):  # blocks of it
            save_arrays(tmp_path / "a.npz", KIND, VERSION, {"x": given})
    with memory_below(1.5 * x.nbytes):
        load_arrays(tmp_path / "a.npz", KIND, VERSION)


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


# -- Writers that are many, killed, or led astray --------------------------------------------------------------------


def names_in(folder):
    return sorted(p.name for p in folder.iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
from vireid._files import written_whole
with written_whole(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_write_removes_what_killed_writers_left(tmp_path):
    path = tmp_path / "a.bin"
    with written_whole(path) as temporary:  # at work while two others are killed
        temporary.write_bytes(b"whole")
        for _ in range(2):
            killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
            assert killed.returncode == -9
            assert len(names_in(tmp_path)) == 2  # the second writer took over what the first one left
    assert names_in(tmp_path) != ["a.bin"]
    with written_whole(path) as temporary:
        temporary.write_bytes(b"new")
        assert len(names_in(tmp_path)) == 2
    assert names_in(tmp_path) == ["a.bin"]
    assert path.read_bytes() == b"new"


def test_threads_and_processes_may_write_one_path(tmp_path):
    path, failed = tmp_path / "a.npz", []

    def write(value):
        try:
            for _ in range(8):
                save_arrays(path, KIND, VERSION, {"x": np.full(1000, value)})
        except Exception as error:
            failed.append(error)

    code = (
        "import sys, numpy as np; from vireid._files import save_arrays\n"
        "for _ in range(8): save_arrays(sys.argv[1], 'vireid test', 3, {'x': np.full(1000, 9)})"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)]) as other:
        threads = [threading.Thread(target=write, args=(value,)) for value in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (failed, other.returncode, names_in(tmp_path)) == ([], 0, ["a.npz"])
    assert len(np.unique(load_arrays(path, KIND, VERSION)[0]["x"])) == 1


def test_a_writer_at_work_is_left_in_peace(tmp_path):
    path = tmp_path / "a.bin"
    with written_whole(path) as first:
        first.write_bytes(b"first")
        with written_whole(path) as second:
            assert first != second
            second.write_bytes(b"second")
        assert path.read_bytes() == b"second"
        assert first.read_bytes() == b"first"
    assert path.read_bytes() == b"first"
    assert names_in(tmp_path) == ["a.bin"]


def test_a_file_that_another_writer_removes_before_it_is_locked_is_made_anew(tmp_path, monkeypatch):
    lock, removed = _files.fcntl.flock, []

    def late(file, how):
        if not removed:
            removed.append(os.path.basename(file.name))
            os.unlink(file.name)
        lock(file, how)

    monkeypatch.setattr(_files.fcntl, "flock", late)
    with written_whole(tmp_path / "a.bin") as temporary:
        assert [temporary.name] == names_in(tmp_path) != removed
    assert names_in(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("kind", ["no locks", "Windows"])
def test_a_system_without_locks_writes_too(kind, tmp_path, monkeypatch):
    if kind == "Windows":
        monkeypatch.setattr(_files, "fcntl", None)
    else:

        def refuse(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(_files.fcntl, "flock", refuse)
    path = save(tmp_path / "a.npz")
    with pytest.raises(KeyError), written_whole(path):
        raise KeyError
    assert equal(load_arrays(path, KIND, VERSION)[0], arrays())
    assert names_in(tmp_path) == ["a.npz"]


def test_links_are_written_through_and_permissions_kept(tmp_path):
    (tmp_path / "real").mkdir()
    target, link, dangling = tmp_path / "real" / "a.npz", tmp_path / "link.npz", tmp_path / "new.npz"
    save(target)
    new = stat.S_IMODE(target.stat().st_mode)
    umask = os.umask(0)
    os.umask(umask)
    assert new == 0o666 & ~umask
    link.symlink_to(target)
    dangling.symlink_to(tmp_path / "real" / "b.npz")
    for mode in (0o600, 0o640, 0o444):
        target.chmod(mode)
        before = target.stat().st_ino
        with written_whole(link) as temporary:
            assert stat.S_IMODE(temporary.stat().st_mode) & ~(mode | 0o600) == 0  # never wider, not even for a moment
            temporary.write_bytes(b"x")
        assert link.is_symlink()
        assert target.stat().st_ino != before
        assert stat.S_IMODE(target.stat().st_mode) == mode
    save(dangling)
    assert dangling.is_symlink()
    assert names_in(tmp_path / "real") == ["a.npz", "b.npz"]


def test_names_of_any_length_are_written_and_too_long_ones_named(tmp_path):
    for name in ("n" * 251 + ".npz", "é" * 125 + ".npz", "a b*?[x]\n.npz"):
        assert equal(load_arrays(save(tmp_path / name), KIND, VERSION)[0], arrays())
    with pytest.raises(OSError, match=r"File name too long: '.*n{252}\.npz'"):
        save(tmp_path / ("n" * 252 + ".npz"))
    assert len(names_in(tmp_path)) == 3


def test_errors_name_the_path_and_not_the_temporary_file(tmp_path, monkeypatch):
    path = tmp_path / "none" / "a.bin"
    with pytest.raises(FileNotFoundError) as caught, written_whole(path):
        pass
    assert caught.value.filename == str(path)
    (tmp_path / "b.bin").mkdir()
    os.mkfifo(tmp_path / "c.bin")
    for name, text in (("b.bin", "Is a folder"), ("c.bin", "Is no regular file")):
        with pytest.raises(OSError, match=f"{text}: '{tmp_path / name}'"), written_whole(tmp_path / name):
            pytest.fail("the block ran for nothing")
    monkeypatch.setattr(_files, "open", lambda *_, **__: (_ for _ in ()).throw(OSError(30, "Read-only")), raising=False)
    with pytest.raises(OSError, match=f"Read-only: '{tmp_path / 'a.bin'}'"), written_whole(tmp_path / "a.bin"):
        pass


def test_planted_links_and_files_are_not_written_to(tmp_path):
    """A stranger may write to a shared folder such as /tmp, under the names of temporary files."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    with written_whole(tmp_path / "a.bin") as temporary:
        pass
    link, folder, pipe = (temporary.with_name(temporary.name.replace(".tmp", f"{i}.tmp")) for i in range(3))
    link.symlink_to(victim)
    folder.mkdir()
    os.mkfifo(pipe)
    with written_whole(tmp_path / "a.bin") as temporary:
        temporary.write_bytes(b"mine")
    assert victim.read_bytes() == b"precious"
    assert (tmp_path / "a.bin").read_bytes() == b"mine"


def test_the_folder_is_synced_after_the_file(tmp_path, monkeypatch):
    synced = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(stat.S_ISDIR(os.fstat(file).st_mode)), sync(file)))
    monkeypatch.setattr(os, "replace", lambda *paths: (synced.append("renamed"), replace(*paths)))
    save(tmp_path / "a.npz")
    assert synced == [False, "renamed", True]


@pytest.mark.parametrize("path", [None, 5, b"a.npz", ["a.npz"], True, 1.5, "a\0.npz"])
@pytest.mark.parametrize("call", [lambda x: save_arrays(x, KIND, VERSION, {}), lambda x: load_arrays(x, KIND, VERSION)])
def test_paths_of_another_type_or_with_a_null_character_are_named(call, path):
    with pytest.raises((TypeError, ValueError), match=r"path must (be a path|hold no null character), got "):
        call(path)


# -- Files that lie about their size ---------------------------------------------------------------------------------


def header(descr, shape, length=None):
    """Return the header of an .npy file as NumPy writes it."""
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    text = text if length is None else text[:-1].ljust(length) + b"\n"
    return b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text


ZEROS = bytes(2**20)


@pytest.mark.parametrize(
    ("member", "text"),
    [
        (header("<U0", (2**60,)), "x cannot be read, .* asks for <U0 "),
        (header("<f8", (10**9,)) + bytes(32), "x cannot be read, .* its header asks for float64 .*0000"),
        (header("<f4", (-2, -2)) + bytes(16), "x cannot be read"),
        (header("<f4", (2**62, 2**62)), "x cannot be read"),
        (header("<f4", (2**62, 0)), "x cannot be read"),
        (header("<f4", (1,) * 1000) + bytes(4), "x cannot be read"),
        (header("<f4", (10**4000,)), "x cannot be read"),
        (header([("a", "<f4")], (2,)) + bytes(8), "x holds records, which are not read"),
        (header(("<f4", (2,)), (2,)) + bytes(16), "x holds records, which are not read"),
        (header("|V0", (2**60,)), "x cannot be read"),
        (header("<f4", (2,), 2**24) + bytes(8), "x cannot be read"),  # 16 MiB of header
    ],
)
def test_headers_that_ask_for_more_than_there_is_are_refused(member, text, tmp_path):
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        npz(tmp_path / "a.npz", {"x.npy": member}, compression)
        with pytest.raises(ValueError, match=text), memory_below(2**20):
            read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("count", [1, 3])
def test_a_small_file_does_not_become_a_large_array(count, tmp_path, monkeypatch):
    """30 MB of zeros, in one array or in three, deflate to 30 kB."""
    monkeypatch.setattr(_files, "_INFLATED_BYTES", 2**24)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for i in range(count):
            with archive.open(f"x{i}.npy", "w") as stream:
                stream.write(header("<f4", (30 // count * 2**18,)))
                for _ in range(30 // count):
                    stream.write(ZEROS)
    with pytest.raises(ValueError, match=r"x\d cannot be read, at most 16777216 bytes"), memory_below(2**22):
        read_npz(tmp_path / "a.npz")


def test_an_array_named_twice_or_of_another_compression_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", npy(np.arange(3)))
        archive.writestr("x", npy(np.arange(4)))
    with pytest.raises(ValueError, match="x must be the name of one array, two have it"):
        read_npz(tmp_path / "a.npz")
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        npz(tmp_path / "a.npz", {"x.npy": npy(np.arange(3))}, method)
        with pytest.raises(ValueError, match=r"x cannot be read, .*its compression must be none or deflate"):
            read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"a": NaN}', "finite number, got NaN"),
        ("[1e999]", "finite number, got 1e999"),
        ("[-Infinity]", "finite number, got -Infinity"),
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ("[" * 100_000, "too many"),
        ("9" * 5000, "digits"),
        ("{", "line 1"),
    ],
)
def test_json_that_is_not_plain_is_refused(text, fault):
    assert parse_json('{"a": [1.5, null, "NaN"]}') == {"a": [1.5, None, "NaN"]}
    with pytest.raises(ValueError, match=fault):
        parse_json(text)


def test_settings_that_json_cannot_hold_are_refused_when_saved(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        save(tmp_path / "a.npz", eps=float("inf"))
    assert not list(tmp_path.iterdir())


def test_tensors_that_would_be_inflated_are_refused(tmp_path):
    """PyTorch inflates what a zip file holds, which its own files never are."""
    plain, packed = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save({"x": torch.zeros(2**20)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    check_not_compressed(plain)
    with pytest.raises(ValueError, match=r"it would take .* bytes, more than its file"):
        check_not_compressed(packed)
    with pytest.raises(ValueError, match=r"b\.pt is not a readable checkpoint: it would take"):
        read_checkpoint(packed)
    with pytest.raises(ValueError, match=r"weights: .*b\.pt is not a state dict"):
        read_state(packed)
