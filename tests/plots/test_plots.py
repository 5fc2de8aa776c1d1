"""Contract of all pictures: the figure and its file, inputs that stay as they are, and no global state."""

import copy
import sys

import numpy as np
import pytest
import torch

from pictures import draw, inputs
from vireid import plots

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
import matplotlib
from matplotlib.figure import Figure

PICTURES = sorted(inputs())


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_every_picture_is_here():
    assert PICTURES == sorted(plots.__all__)


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_written_whole_and_changes_neither_its_inputs_nor_settings(name, tmp_path, monkeypatch):
    function, given = inputs()[name]
    before, settings = copy.deepcopy(given), dict(matplotlib.rcParams)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # its global state is not needed, nor is a display
    monkeypatch.delattr(matplotlib, "pyplot", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    path = tmp_path / "figure.png"
    assert isinstance(function(**given, path=path), Figure)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [path]
    assert equal(given, before)
    assert dict(matplotlib.rcParams) == settings


@pytest.mark.parametrize("name", [name for name in PICTURES if name != "tsne"])
def test_a_picture_takes_numpy_and_a_gradient(name):
    function, given = inputs()[name]
    arrays = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    tracked = {
        k: v.clone().requires_grad_() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in given.items()
    }
    shown = [[p.get_array() for p in function(**g).axes[0].images] for g in (given, arrays, tracked)]
    for expected, *others in zip(*shown, strict=True):
        for array in others:
            np.testing.assert_array_equal(np.ma.filled(array, np.nan), np.ma.filled(expected, np.nan))


@pytest.mark.parametrize("name", PICTURES)
def test_missing_matplotlib_names_the_extra(name, hidden):
    hidden("matplotlib")
    with pytest.raises(ImportError, match=r"pip install 'vireid\[plots\]'"):
        draw(name)


@pytest.mark.parametrize(("suffix", "start"), [("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_the_suffix_chooses_the_format(suffix, start, tmp_path):
    draw("cmc_curves", tmp_path / f"figure.{suffix}")
    assert (tmp_path / f"figure.{suffix}").read_bytes().startswith(start)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")

    def fail(self, file, **options):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        draw("cmc_curves", path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path must be in an existing folder, got .*missing"):
        draw("cmc_curves", tmp_path / "missing" / "figure.png")
    with pytest.raises(ValueError, match=r"path must end in one of .*png.*, got .*figure\.xyz"):
        draw("cmc_curves", tmp_path / "figure.xyz")
