"""Feature files: saving and loading, files of other programs, and every kind of bad file."""

import json
import sys

import numpy as np
import pytest
import torch

from vireid.data.features import Features, load_features, save_features

ENDINGS = [".npz", ".safetensors"]
NAMES = ["cam1/0001/0001.jpg", "cam3/0001/0012.jpg", "cam2/0002/Ärger 7.png", "cam6/0003/0001.bmp"]


def arrays(n=4, d=3, dtype=np.float32):
    x = np.random.default_rng(0).normal(size=(n, d)).astype(dtype)
    ids, cameras = np.array([1, 1, 2, 3])[:n], np.array([1, 3, 2, 6])[:n]
    return {"features": x, "ids": ids, "cameras": cameras, "modality": np.isin(cameras, (3, 6)).astype(np.int64)}


def written(path, content):
    """Write a file as users' own code does."""
    if path.suffix == ".npz":
        np.savez(path, **content)
        return path
    from safetensors.numpy import save_file

    metadata = {key: content.pop(key) for key in ("names", "metadata") if isinstance(content.get(key), str)}
    save_file(content, path, metadata)
    return path


# -- Saving and loading --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_saved_is_loaded(ending, dtype, tmp_path):
    given = arrays(dtype=dtype)
    path = tmp_path / f"a{ending}"
    save_features(
        path, **given, names=NAMES, image_numbers=np.array([1, 12, 7, 1]), metadata={"model": "CIFT", "é": "1"}
    )
    found = load_features(str(path))
    for name, x in given.items():
        np.testing.assert_array_equal(getattr(found, name), x)
        assert getattr(found, name).dtype == x.dtype
    assert found.names == NAMES
    assert found.image_numbers.tolist() == [1, 12, 7, 1]
    assert found.metadata == {"model": "CIFT", "é": "1"}
    assert len(found) == 4
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", ENDINGS)
def test_tensors_are_saved_and_options_default_to_none(ending, tmp_path):
    given = {name: torch.from_numpy(x) for name, x in arrays().items()}
    given["features"] = given["features"].bfloat16().T.contiguous().T.requires_grad_()  # columns in memory, a gradient
    given["cameras"] = given["ids"]  # shares its memory
    given["modality"] = given["modality"].to(torch.uint8)
    save_features(tmp_path / f"a{ending}", **given)
    found = load_features(tmp_path / f"a{ending}")
    np.testing.assert_array_equal(found.features, given["features"].detach().float().numpy())
    assert (found.ids.tolist(), found.cameras.tolist()) == ([1, 1, 2, 3], [1, 1, 2, 3])
    assert found.modality.tolist() == [0, 1, 0, 1]
    assert (found.names, found.image_numbers, found.metadata) == (None, None, {})


def test_bfloat16_stays_so_in_safetensors(tmp_path):
    from safetensors import safe_open

    given = arrays() | {"features": torch.randn(4, 3).bfloat16()}
    given = {name: torch.as_tensor(x) for name, x in given.items()}
    save_features(tmp_path / "a.safetensors", **given)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as stored:
        assert torch.equal(stored.get_tensor("features"), given["features"])


@pytest.mark.parametrize("ending", ENDINGS)
def test_files_of_other_programs_are_read(ending, tmp_path):
    """Smaller integers, other arrays beside, no names; a big-endian or Fortran array in an .npz."""
    given = arrays()
    content = given | {"ids": given["ids"].astype(np.uint16), "modality": given["modality"].astype(np.int8)}
    content["logits"] = np.zeros((4, 2))
    if ending == ".npz":
        content["features"] = np.asfortranarray(given["features"].astype(">f4"))
        content["names"] = np.array(NAMES)
    found = load_features(written(tmp_path / f"a{ending}", content))
    np.testing.assert_array_equal(found.features, given["features"])
    assert found.ids.dtype == found.modality.dtype == np.int64
    assert found.modality.tolist() == given["modality"].tolist()
    assert found.names == (NAMES if ending == ".npz" else None)


def test_a_compressed_npz_is_read(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **arrays())
    np.testing.assert_array_equal(load_features(tmp_path / "a.npz").features, arrays()["features"])


def test_image_numbers_from_names():
    given = arrays()
    assert Features(**given, names=NAMES).numbers().tolist() == [1, 12, 7, 1]
    assert Features(**given, names=["c1_7", "3_1_0007", "2", "x/4/5.tiff"]).numbers().tolist() == [7, 7, 2, 5]
    numbers = np.array([9, 8, 7, 6])
    assert Features(**given, names=NAMES, image_numbers=numbers).numbers() is numbers
    with pytest.raises(ValueError, match=r"names must end in the image's number.*got '3/b\.jpg'"):
        Features(**given, names=["1/1.jpg", "3/b.jpg", "3", "4"]).numbers()
    with pytest.raises(ValueError, match="image_numbers or names must be in the feature file, got neither"):
        Features(**given).numbers()


def test_places_from_names():
    given = arrays()
    assert Features(**given, names=["b10", "a", "b2", "b1"]).places().tolist() == [2, 0, 3, 1]  # sorted as text
    assert Features(**given, names=["b", "a", "b", "a"]).places().tolist() == [1, 0, 1, 0]  # twice stays twice
    numbers = np.array([9, 8, 7, 6])
    assert Features(**given, names=NAMES, image_numbers=numbers).places() is numbers
    with pytest.raises(ValueError, match="image_numbers or names must be in the feature file, got neither"):
        Features(**given).places()


# -- Bad arrays, as files and as arguments -------------------------------------------------------------------------

X = arrays()["features"]
BAD = [
    ({"features": X[0]}, "features must have shape (N, d), got (3,)"),
    ({"features": X[:3]}, "ids must have shape (3,), got (4,)"),
    ({"features": X[:0]}, "features must hold at least one image and one column, got shape (0, 3)"),
    ({"features": X[:, :0]}, "features must hold at least one image and one column, got shape (4, 0)"),
    ({"features": X.astype(np.int32)}, "features must be floating point, got torch.int64"),
    ({"features": np.where(X == X[2, 1], np.nan, X)}, "features must be finite, got NaN or an infinity in 1 of 4 rows"),
    ({"features": np.where(X == X[2, 1], np.inf, X)}, "features must be finite"),
    ({"ids": np.array([1, 1, 2])}, "ids must have shape (4,), got (3,)"),
    ({"ids": np.array([1.0, 1, 2, 3])}, "ids must hold integers, got torch.float64"),
    ({"ids": np.array([1, 1, 2, 2**63], dtype=np.uint64)}, "ids must be below 2**63"),
    ({"cameras": np.array([[1, 1, 2, 2]])}, "cameras must have shape (4,), got (1, 4)"),
    ({"modality": np.array([0, 1, 2, 0])}, "modality must be 0 (visible) or 1 (infrared), got 2"),
    ({"modality": np.array([0, 1, -1, 0])}, "modality must be 0 (visible) or 1 (infrared), got -1"),
    ({"modality": np.array([False, True, True, False])}, "modality must hold "),
    ({"image_numbers": np.array([1, 2])}, "image_numbers must have shape (4,), got (2,)"),
]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(("change", "text"), BAD)
def test_bad_arrays_are_named(change, text, ending, tmp_path):
    path = tmp_path / f"a{ending}"
    with pytest.raises((ValueError, TypeError)) as caught:
        save_features(path, **(arrays() | change))
    assert text in str(caught.value)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"a\.") as caught:
        load_features(written(path, arrays() | change))
    # NumPy's integers reach the checks as int64, safetensors' as what they are
    assert text.replace("torch.int64", "") in str(caught.value).replace("torch.int32", "").replace("torch.int64", "")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name", ["features", "ids", "modality", "cameras"])
def test_a_missing_array_is_named(name, ending, tmp_path):
    content = arrays()
    del content[name]
    with pytest.raises(ValueError, match=f"must hold the arrays features, ids, modality, cameras, misses {name}$"):
        load_features(written(tmp_path / f"a{ending}", content))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"names": NAMES[:3]}, "names must hold 4 names, one per image, got 3"),
        ({"names": [b"1", b"2", b"3", b"4"]}, "names must be a list of str"),
        ({"metadata": {"epoch": 3}}, "metadata must map str to str"),
        ({"metadata": {"names": "x"}}, "metadata must not have the key 'names'"),
        ({"metadata": "3"}, "metadata must map str to str"),
        ({"metadata": 0}, "metadata must map str to str"),
        ({"names": 3}, "names must be a sequence of str, one per image, got int"),
        ({"names": "abcd"}, "names must be a sequence of str, one per image, got str"),
        ({"features": X.tolist()}, "features must be a torch.Tensor or a numpy.ndarray, got list"),
        ({"features": X.astype(np.longdouble)}, "features must hold numbers of at most 64 bits, got float"),
        ({"features": torch.zeros(4, 3, dtype=torch.float8_e5m2)}, "of 16 bits or more, got torch.float8_e5m2"),
    ],
)
def test_bad_arguments_are_named(change, text, tmp_path):
    with pytest.raises((ValueError, TypeError)) as caught:
        save_features(tmp_path / "a.npz", **(arrays() | change))
    assert text in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"names": np.array(NAMES[:3])}, "names must hold 4 names, one per image, got 3"),
        (
            {"names": np.array(NAMES, dtype=object)},
            "names holds pickled objects, which are not read: text is stored as",
        ),
        ({"ids": np.array([1, 1, 2, 3], dtype=object)}, "ids holds pickled objects, which are not read"),
        ({"names": np.array([n.encode() for n in NAMES])}, "names must be a (N,) array of text"),
        ({"names": np.array([NAMES])}, "names must be a (N,) array of text"),
        ({"metadata": np.array("{")}, "metadata must be JSON text"),
        ({"metadata": np.array("[" * 10**5)}, "metadata must be JSON text"),
        ({"metadata": np.array('{"a": 1}')}, "metadata must map str to str"),
        ({"metadata": np.array('["a"]')}, "metadata must map str to str"),
        ({"metadata": np.array([1])}, "metadata must be one JSON text"),
        ({"features": X.astype(np.longdouble)}, "features must hold numbers of at most 64 bits, got float"),
        ({"features": X.astype(complex)}, "features must hold numbers, got complex128"),
    ],
)
def test_bad_arrays_of_an_npz_are_named(change, text, tmp_path):
    with pytest.raises(ValueError, match=r"a\.npz: ") as caught:
        load_features(written(tmp_path / "a.npz", arrays() | change))
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (json.dumps(NAMES[:3]), "names must hold 4 names, one per image, got 3"),
        (json.dumps([1, 2, 3, 4]), "names must be a list of str"),
        (json.dumps("abcd"), "names must be a sequence of str, one per image, got str"),
        ("cam1", "names must be JSON text"),
    ],
)
def test_bad_names_in_safetensors_are_named(names, text, tmp_path):
    with pytest.raises(ValueError, match=r"a\.safetensors: ") as caught:
        load_features(written(tmp_path / "a.safetensors", arrays() | {"names": names}))
    assert text in str(caught.value)


# -- Damaged files, other files, disks -----------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_cut_file_is_refused(ending, tmp_path):
    save_features(tmp_path / f"whole{ending}", **arrays(), names=NAMES, metadata={"a": "b"})
    content = (tmp_path / f"whole{ending}").read_bytes()
    for size in [*range(0, len(content), 83), len(content) - 1]:
        (tmp_path / f"cut{ending}").write_bytes(content[:size])
        with pytest.raises(ValueError, match=f"cut{ending}: "):
            load_features(tmp_path / f"cut{ending}")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_flipped_byte_is_named_or_harmless(ending, tmp_path):
    save_features(tmp_path / f"whole{ending}", **arrays(), names=NAMES, metadata={"a": "b"})
    content = (tmp_path / f"whole{ending}").read_bytes()
    refused = 0
    for position in range(0, len(content), 19):
        broken = bytearray(content)
        broken[position] ^= 0x41
        (tmp_path / f"broken{ending}").write_bytes(broken)
        try:
            load_features(tmp_path / f"broken{ending}")
        except ValueError as caught:
            error = caught
        else:
            continue
        assert f"broken{ending}: " in str(error)
        refused += 1
    assert refused > 10


@pytest.mark.parametrize("content", [b"", b"features", b"PK\x05\x06" + bytes(18), b"\x93NUMPY\x01\x00"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_other_files_are_refused(content, ending, tmp_path):
    (tmp_path / f"a{ending}").write_bytes(content)
    with pytest.raises(ValueError, match=f"a{ending}: (is no {ending} file|must hold the arrays)"):
        load_features(tmp_path / f"a{ending}")


@pytest.mark.parametrize("name", ["a.npy", "a", "a.npz.gz", "a.NPZ", "a.pt"])
def test_other_endings_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=r"path must end in \.npz or \.safetensors, got "):
        save_features(tmp_path / name, **arrays())
    with pytest.raises(ValueError, match=r"path must end in \.npz or \.safetensors, got "):
        load_features(tmp_path / name)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path must be a feature file, got '.*a\.npz': no such file"):
        load_features(tmp_path / "a.npz")
    (tmp_path / "a.npz").mkdir()
    with pytest.raises(FileNotFoundError, match=r"a\.npz': is a folder"):
        load_features(tmp_path / "a.npz")
    with pytest.raises(FileNotFoundError, match="path must be in an existing folder, got "):
        save_features(tmp_path / "none" / "a.npz", **arrays())


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_failed_write_leaves_the_old_file(ending, tmp_path, monkeypatch):
    path = tmp_path / f"a{ending}"
    save_features(path, **arrays())
    old = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        save_features(path, **arrays(n=3))
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_missing_safetensors_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.safetensors").write_bytes(b"")
    for name in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    for call in (
        lambda: save_features(tmp_path / "b.safetensors", **arrays()),
        lambda: load_features(tmp_path / "a.safetensors"),
    ):
        with pytest.raises(ImportError, match=r"needs safetensors: pip install 'vireid\[safetensors\]'"):
            call()
    save_features(tmp_path / "a.npz", **arrays())
    assert len(load_features(tmp_path / "a.npz")) == 4
