"""The command run in this process, and feature files for it."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("click", reason="needs the extra cli")
pytest.importorskip("tqdm", reason="needs the extra cli")

from click.testing import CliRunner

from vireid.cli.app import vireid as command
from vireid.data.features import save_features


@pytest.fixture(scope="session")
def run():
    """A function that runs the command: standard output and error; the exit code must be ``code``."""

    def invoke(*arguments, code=0):
        result = CliRunner().invoke(command, [str(a) for a in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result.stdout, result.stderr

    return invoke


@pytest.fixture(scope="session")
def wrong(run):
    """A function that runs a command with a wrong option: the message, on one line."""
    return lambda *arguments: " ".join(run(*arguments, code=2)[1].split())


@pytest.fixture(scope="session")
def error(run):
    """A function that runs a command that fails: its one line on standard error."""

    def invoke(*arguments):
        out, err = run(*arguments, code=1)
        assert out == ""
        assert err.count("\n") == 1
        assert err.startswith("Error: ")
        return err

    return invoke


@pytest.fixture(scope="session")
def file(tmp_path_factory) -> Path:
    """A SYSU-MM01 in small: 6 people, 6 cameras, 10 images each, in any order."""
    rng = np.random.default_rng(0)
    rows = np.array([(p, c, n) for p in range(1, 7) for c in range(1, 7) for n in range(1, 11)])
    ids, cameras, numbers = rng.permutation(rows).T
    x = rng.normal(size=(7, 16))[ids] + 1.2 * rng.normal(size=(len(ids), 16))
    names = [f"cam{c}/{p:04}/{n:04}.jpg" for p, c, n in zip(ids, cameras, numbers, strict=True)]
    path = tmp_path_factory.mktemp("features") / "strong_features.npz"
    modality = np.isin(cameras, (3, 6)).astype(np.int64)
    save_features(path, x.astype(np.float32), ids, modality, cameras, names=names)
    return path


@pytest.fixture
def changed(file, tmp_path):
    """A function that writes the file with other arrays (None: without)."""

    def write(**arrays):
        with np.load(file) as stored:
            content = {**stored} | arrays
        path = tmp_path / "changed.npz"
        np.savez(path, **{name: x for name, x in content.items() if x is not None})
        return path

    return write
