"""The command run in this process, and feature files for it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

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


OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "aim": {"k1": 4, "k2": 2, "variant": "released"},
    "k_reciprocal": {"k1": 5, "k2": 3, "lambda_value": 0.2, "queries": "all"},
    "k_reciprocal alone": {"k1": 5, "k2": 3, "lambda_value": 0.2, "queries": "alone"},
    "gnn": {"k1": 6, "k2": 3, "layers": 1, "alpha": 1.0, "queries": "alone"},
    "ecn": {"t": 2, "q": 3, "k": 9, "metric": "cosine", "queries": "all"},
    "ecn alone": {"t": 2, "q": 3, "k": 9, "metric": "rank", "queries": "alone"},
    "cmkr": {"neighbors": "extended", "k1": 6, "k2": 4, "k3": 1, "lambda_value": 0.1},
    "mser": {"k1": 6, "k2": 4, "lambda_value": 0.2},
    "sim": {"k1": 6, "k2": 4, "lambda_value": 0.1},
    "query_expansion": {"n": 3, "alpha": 3.0},
}


@pytest.fixture(params=OPTIONS)
def reranking(request):
    """A method, its settings other than the defaults, and these as options."""
    settings = OPTIONS[request.param]
    options = [x for name, value in settings.items() for x in ("--" + name.replace("_", "-"), value)]
    return request.param.split()[0], settings, options


SIZE = (32, 16)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "cift": ("cift", {}),
    "parts3": ("saai", {"parts": 3}),
    "parts0": ("saai", {"ablation": "baseline", "trial": 2}),
    "bones": ("g2da", {"phi": 0.3, "structure": "square"}),
    "cells": ("g2da", {"part_grid": (3, 2)}),
}


@pytest.fixture(scope="session")
def regdb(tmp_path_factory) -> Path:
    """Drawn people in RegDB's layout; not to be written into."""
    pytest.importorskip("PIL", reason="needs the extra train")
    from vireid.data import generate_synthetic

    root = tmp_path_factory.mktemp("data") / "regdb"
    return generate_synthetic(root, layout="regdb", identities=10, images_per_camera=2, size=(48, 24))


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> dict[str, Path]:
    """An untrained checkpoint of each of `MODELS`, as of trial 1 of RegDB."""
    pytest.importorskip("kornia", reason="needs the extra train")
    from vireid.training import build, recipe_of

    paths = {}
    for number, (name, (method, changes)) in enumerate(MODELS.items()):
        torch.manual_seed(number)
        own = {key: x for key, x in changes.items() if key != "trial"}  # others are a checkpoint's by default
        model, _ = build(method, 5, SIZE, own)
        settings = {"method": method, "dataset": "regdb", "trial": 1, **changes}
        paths[name] = tmp_path_factory.mktemp("runs") / name / "checkpoint.pt"
        paths[name].parent.mkdir()
        state = {"model": model.state_dict(), "criterion": {}, "optimizer": {}}
        state["recipe"] = recipe_of(method).replace(size=SIZE).to_dict()
        torch.save({**state, "settings": settings, "epoch": 1, "images": 20, "num_classes": 5}, paths[name])
    return paths


@pytest.fixture(scope="session")
def llcm(tmp_path_factory) -> Path:
    """Two identities to train with and two to test, each seen once by either modality."""
    from PIL import Image

    root = tmp_path_factory.mktemp("data") / "llcm"
    rng = np.random.default_rng(0)
    (root / "idx").mkdir(parents=True)
    for kind, camera in (("vis", 4), ("nir", 5)):
        lines = []
        for identity in (1, 2, 3, 4):
            name = f"{identity:04d}/{identity:04d}_c0{camera}_s1_f{identity}_{kind}.jpg"
            name = f"{kind}/{name}" if identity < 3 else f"test_{kind}/cam{camera}/{name}"
            (root / name).parent.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 255, (32, 16, 3), np.uint8)).save(root / name)
            lines += [f"{name} {identity - 1}\n"] if identity < 3 else []
        (root / "idx" / f"train_{kind}.txt").write_text("".join(lines))
    (root / "idx" / "test_id.txt").write_text("3,4")
    return root


@pytest.fixture
def without_pictures(monkeypatch):
    """Leaves out the pictures of an evaluation, which other tests draw."""
    from vireid.training import inference

    for name in ("cmc_curves", "ranked_lists"):
        monkeypatch.setattr(inference, name, lambda *_, **__: None)
