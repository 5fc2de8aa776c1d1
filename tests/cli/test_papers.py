"""The papers' recipes as their readers run them: each command on SYSU-MM01's and RegDB's layout, for two steps.

The images are drawn. The network has the structure of ResNet-50, with an eighth of its channels but for one run, and
random numbers in the place of ImageNet's weights; image size, batch, optimizer, augmentation and losses are the
recipe's.
"""

import json

import pytest

import libraries

pytest.importorskip("kornia", reason="needs the extra train")
pytest.importorskip("lightning_fabric", reason="needs the extra train")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_pictures", "standins")]

from vireid.data import generate_synthetic
from vireid.training import METHODS, RECIPES, read_checkpoint


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Enough people for the recipes' batches, which hold up to 16 with four images of each modality."""
    folder, drawn = tmp_path_factory.mktemp("data"), {"identities": 34, "size": (64, 32)}
    return {
        "sysu": generate_synthetic(folder / "sysu", layout="sysu", images_per_camera=1, **drawn),
        "regdb": generate_synthetic(folder / "regdb", layout="regdb", images_per_camera=2, **drawn),
    }


@pytest.fixture
def downloads(monkeypatch):
    """Record the weights that torchvision's server is asked for, and answer with random ones."""
    asked = []

    def get_state_dict(member, **options):
        asked.append(member.name)
        return libraries.TORCHVISION["resnet50"]().state_dict()

    monkeypatch.setattr(libraries.ResNet50_Weights, "get_state_dict", get_state_dict)
    return asked


RUNS = {
    "cift": [],
    "cift gft": ["--ablation", "gft"],
    "saai": [],
    "saai transfer": ["--transfer"],
    "g2da": ["--keypoints"],
    "g2da grid": ["--part-grid", 4, 3],
    "g2da transfer": ["--part-grid", 4, 3, "--transfer"],
    "agw": [],
    "agw hc": ["--ablation", "hc"],
    "agw hct": ["--ablation", "hct"],
    "agw shared": ["--transfer", "shared"],
}
BOTH = ("cift", "saai", "g2da", "agw")  # on both layouts


def keypoints(name, root):
    return ["--keypoints", root / "keypoints.npz"] if "--keypoints" in RUNS[name] else []


def train(run, name, dataset, root, output, *changes):
    method, options = name.split()[0], keypoints(name, root) or RUNS[name]
    changes = [x for change in ("epochs=1", "batches=2", *changes) for x in ("--set", change)]
    rules = ["--sampling", "agw"] if dataset == "sysu" else []
    where = ["--dataset", dataset, "--root", root, *rules, "--accelerator", "cpu", "--output", output]
    run("train", method, "--recipe", method, *where, *options, *changes)
    return json.loads((output / "metrics.json").read_text())


@pytest.mark.parametrize(("name", "dataset"), [(name, "regdb") for name in RUNS] + [(name, "sysu") for name in BOTH])
def test_a_paper_is_trained_and_evaluated_by_one_command(name, dataset, roots, run, downloads, tmp_path):
    method = name.split()[0]
    found = train(run, name, dataset, roots[dataset], tmp_path / "run")
    assert downloads == ["IMAGENET1K_V1"]
    assert found["recipe"]["size"] == [288, 144]
    assert found["rows"]
    state = read_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert state["recipe"] == RECIPES[method].replace(epochs=1, batches=2).to_dict()
    assert all(tensor.isfinite().all() for tensor in state["model"].values())

    if name in BOTH and dataset == "regdb":
        where = ["--root", roots[dataset], *keypoints(name, roots[dataset])]
        run("evaluate", tmp_path / "run" / "checkpoint.pt", *where, "--output", tmp_path / "again")
        assert json.loads((tmp_path / "again" / "metrics.json").read_text()) == found
        assert len(downloads) == 1  # the weights are the checkpoint's


def test_a_resnet50_of_full_size(roots, run, downloads, monkeypatch, tmp_path):
    monkeypatch.setattr(libraries, "WIDTH", 64)
    found = train(run, "cift", "regdb", roots["regdb"], tmp_path, "identities=2", "per_modality=2")
    assert found["rows"]
    assert read_checkpoint(tmp_path / "checkpoint.pt")["model"]["baseline.neck.weight"].shape == (2048,)


def test_every_method_has_its_recipe():
    assert METHODS.keys() == RECIPES.keys() - {"small"} == set(BOTH)
