"""Runs of the tables that are written instead of trained, or trained in this process."""

import itertools
import json
from contextlib import contextmanager

import pytest
import torch

from vireid import INFRARED, VISIBLE
from vireid.data import generate_synthetic
from vireid.data.features import save_features
from vireid.data.synthetic.generate import _write_sysu_split

pytest.importorskip("lightning_fabric", reason="the tables need the extra train")
pytest.importorskip("tqdm", reason="the tables need the extra train")

from benchmarks.tables import runs, train
from vireid.training import build, open_dataset

TINY = ["--epochs", "1", "--batches", "2", "--identities", "2", "--per-modality", "2"]


@pytest.fixture(autouse=True)
def threads():
    """Keep the number of threads, which the benchmarks set."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny():
    """Options of a training that takes no time."""
    return TINY


@pytest.fixture(scope="session")
def people(tmp_path_factory):
    """Folder of a few drawn people in RegDB's layout, which no test writes to."""
    root = tmp_path_factory.mktemp("people") / "data"
    generate_synthetic(root, layout="regdb", identities=8, images_per_camera=4, size=(64, 32))
    return root


def write_run(run, *, replaced=0):
    """Write the files of a training without one: a model as built, and features drawn from the run's name.

    Args:
        run: to write.
        replaced: nodes of a graph whose channels are below θ.
    """
    torch.manual_seed(sum(map(ord, f"{run.row}{run.trial}")))
    model, criterion = build(run.method, 4, run.recipe.size, run.settings)
    if getattr(model, "attention", None) is not None:
        with torch.no_grad():
            model.attention.norm.weight[: 945 * replaced] = 0.01
            model.aggregation.weight.copy_(0.1 * torch.arange(model.attention.nodes) - 0.2)
    run.folder.mkdir(parents=True, exist_ok=True)
    state = {"model": model.state_dict(), "criterion": criterion.state_dict(), "optimizer": {}, "num_classes": 4}
    state |= {"recipe": run.recipe.to_dict(), "settings": run.kept, "images": 9, "epoch": run.recipe.epochs}
    torch.save(state, run.folder / "checkpoint.pt")
    transfer = getattr(model, "transfer", None)
    ids, modality = torch.arange(4).repeat_interleave(6), torch.tensor([VISIBLE, INFRARED]).repeat(12)
    cameras, numbers = modality, None
    if run.data.dataset == "sysu":
        test = open_dataset("sysu", "test", root=run.data.root)
        about = (test.ids, test.modality, test.cameras, test.image_numbers)
        ids, modality, cameras, numbers = map(torch.from_numpy, about)
    dim = 8 if transfer is None else transfer.dim
    features = torch.randn(100, dim)[ids] + 2.5 * torch.randn(len(ids), dim)
    save_features(run.folder / "features.npz", features, ids, modality, cameras, image_numbers=numbers)


@contextmanager
def in_place_of_training(train):
    """Train by ``train`` within the block; yield the list of runs and of drawn data."""
    done = []

    def note(run, **_):
        done.append((run.row, run.trial))
        train(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "train", note)
        patch.setattr(runs, "generate_synthetic", lambda root, **options: done.append(("drawn", str(root))))
        yield done


def train_here(run):
    """Train in this process: importing torch once is enough."""
    run.folder.mkdir(parents=True, exist_ok=True)
    train.train(json.loads(json.dumps(runs.job_of(run))), "cpu")


@pytest.fixture(scope="session")
def writing():
    """Context manager in which runs are written instead of trained."""
    return lambda: in_place_of_training(lambda run: write_run(run, replaced=run.trial + 1 if run.row == "g2da" else 0))


@pytest.fixture(scope="session")
def training_here():
    """Context manager in which runs are trained in this process."""
    return lambda: in_place_of_training(train_here)


@pytest.fixture
def written(writing):
    with writing() as done:
        yield done


@pytest.fixture
def trained_here(training_here):
    with training_here() as done:
        yield done


@pytest.fixture(scope="session")
def sysu(tmp_path_factory):
    """Folder in SYSU-MM01's layout: its lists, permutations and empty files instead of images; no test writes to it."""
    root = tmp_path_factory.mktemp("sysu")
    _write_sysu_split(root, 6, 10, 0)
    for camera, person, number in itertools.product(range(1, 7), range(1, 7), range(1, 11)):
        path = root / f"cam{camera}" / f"{person:04d}" / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root
