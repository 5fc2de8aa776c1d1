"""Data and runs that the tests of the training share; not to be written into."""

from pathlib import Path
from typing import Any

import pytest

from vireid.data import generate_synthetic

DRAWN: dict[str, Any] = {"images_per_camera": 3, "size": (48, 24), "identities": 8}


@pytest.fixture(scope="session")
def regdb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_synthetic(tmp_path_factory.mktemp("data") / "regdb", layout="regdb", **DRAWN)
