"""Tiny data sets in the published layouts, written once and copied for each test; drawn pedestrians."""

import shutil
from pathlib import Path

import pytest

import layouts
from vireid.data import generate_synthetic


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layouts")
    layouts.write_sysu(folder / "SYSU-MM01")
    layouts.write_regdb(folder / "RegDB")
    layouts.write_llcm(folder / "LLCM")
    return folder


@pytest.fixture
def sysu(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written / "SYSU-MM01", tmp_path / "SYSU-MM01"))


@pytest.fixture
def regdb(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written / "RegDB", tmp_path / "RegDB"))


@pytest.fixture
def llcm(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written / "LLCM", tmp_path / "LLCM"))


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four drawn people, one image by each of SYSU-MM01's cameras; tests leave it as it is."""
    root = tmp_path_factory.mktemp("data") / "drawn"
    return generate_synthetic(root, identities=4, images_per_camera=1, size=(32, 16))
