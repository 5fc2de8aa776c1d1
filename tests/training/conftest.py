"""Data and runs that the tests of the training share; not to be written into."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from vireid.data import generate_synthetic
from vireid.training import Recipe, build, fit, launch, open_dataset
from vireid.training.loop import Step

DRAWN: dict[str, Any] = {"images_per_camera": 3, "size": (48, 24), "identities": 8}


@pytest.fixture(scope="session")
def regdb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_synthetic(tmp_path_factory.mktemp("data") / "regdb", layout="regdb", **DRAWN)


@pytest.fixture(scope="session")
def sysu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_synthetic(tmp_path_factory.mktemp("data") / "sysu", layout="sysu", seed=5, **DRAWN)


@pytest.fixture(scope="session")
def llcm(regdb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same people as in ``regdb``, four to train on and four to test."""
    root = tmp_path_factory.mktemp("data") / "llcm"
    (root / "idx").mkdir(parents=True)
    for source, kind in (("Visible", "vis"), ("Thermal", "nir")):
        lines = []
        for folder in sorted((regdb / source).iterdir()):
            person = int(folder.name)
            for number, image in enumerate(sorted(folder.iterdir())):
                name = f"{person:04d}_c0{1 + number % 2}_s{number}.jpg"
                place = root / kind / f"{person:04d}" / name
                if person > 4:
                    place = root / f"test_{kind}" / f"cam{1 + number % 2}" / f"{person:04d}" / name
                else:
                    lines.append(f"{place.relative_to(root)} {person - 1}")
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(image, place)
        (root / "idx" / f"train_{kind}.txt").write_text("\n".join(lines) + "\n")
    (root / "idx" / "test_id.txt").write_text("5,6,7,8\n")
    return root


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """A training that takes a moment."""
    return Recipe(size=(32, 16), epochs=2, batches=2, identities=2, per_modality=2)


@pytest.fixture(scope="session")
def train(regdb: Path, recipe: Recipe) -> Callable[..., nn.Module]:
    """Trains a method into a folder; keywords beside those named are settings of the method."""

    def run(
        output: Path | None, method: str = "cift", *, recipe: Recipe = recipe, keypoints: bool = False,
        resume: bool = False, workers: int = 0, kept: dict[str, Any] | None = None, **settings: Any,
    ) -> nn.Module:  # fmt: skip
        fabric = launch(recipe, output=output, accelerator="cpu")
        points = regdb / "keypoints.npz" if keypoints else None
        data = open_dataset("regdb", "train", root=regdb, size=recipe.size, keypoints=points)
        kept = {"method": method, "dataset": "regdb", **settings, **(kept or {})}
        return fit(*build(method, data.num_classes, recipe.size, settings), data, recipe=recipe, fabric=fabric,
                   output=output, resume=resume, workers=workers, settings=kept)  # fmt: skip

    return run


@pytest.fixture(scope="session")
def trained(train: Callable[..., nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of an uninterrupted run of CIFT over two epochs."""
    output = tmp_path_factory.mktemp("runs") / "cift"
    train(output)
    return output


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Step, tuple[Tensor, ...], dict[str, Tensor]]]:
    """Each training step, its batch and its losses."""
    seen = []
    forward = Step.forward

    def recorded(self: Step, *batch: Tensor) -> dict[str, Tensor]:
        losses = forward(self, *batch)
        seen.append((self, batch, losses))
        return losses

    monkeypatch.setattr(Step, "forward", recorded)
    return seen
