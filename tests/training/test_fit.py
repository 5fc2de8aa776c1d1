"""The training loop: its files, seeds, resuming, other precisions, and runs that end early."""

import errno
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F

from vireid.data import CrossModalIdentitySampler, TrainAugmentation
from vireid.nn import gaussian_heatmaps
from vireid.training import evaluate, extract_features, fit, load_checkpoint, open_dataset, read_checkpoint
from vireid.training.loop import Step

LOSSES = {"ce", "hcc_features", "hcc_logits", "graph_ce", "graph_hcc", "tie", "total"}


def read(output):
    return read_checkpoint(output / "checkpoint.pt")


def same(a, b):
    """Equal to the last bit, types included."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


# -- What a run leaves ---------------------------------------------------------------------------------------------


def test_tensorboard_holds_every_loss_of_every_epoch(trained):
    events = EventAccumulator(str(trained / "logs"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {f"loss/{name}" for name in LOSSES} | {"learning_rate"}
    values = {name: [event.value for event in events.Scalars(f"loss/{name}")] for name in LOSSES}
    for epoch in range(2):
        assert values["total"][epoch] == pytest.approx(sum(values[n][epoch] for n in LOSSES - {"total"}), rel=1e-5)
    assert [event.step for event in events.Scalars("loss/total")] == [0, 1]


def test_checkpoint_is_plain_whole_and_readable_by_others(trained, tmp_path):
    state = read(trained)
    assert (state["epoch"], state["num_classes"], state["images"]) == (2, 4, 24)
    assert {name for name in state["criterion"] if "X_" in name} == {"cri.X_mu", "cri.X_rho"}
    (tmp_path / "other").touch()
    assert (trained / "checkpoint.pt").stat().st_mode == (tmp_path / "other").stat().st_mode
    assert {path.name for path in trained.iterdir()} == {"checkpoint.pt", "logs"}


def test_the_model_comes_back_in_evaluation_mode_with_the_checkpoints_weights(train, tmp_path):
    model = train(tmp_path)
    assert not any(part.training for part in model.modules())
    assert same(dict(model.state_dict()), dict(read(tmp_path)["model"]))


def test_without_an_output_nothing_is_written(train, tmp_path, monkeypatch, recipe):
    monkeypatch.chdir(tmp_path)
    train(None, recipe=recipe.replace(epochs=1))
    assert not list(tmp_path.iterdir())


# -- Repeating, interrupting, resuming -----------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_run_and_another_does_not(train, trained, tmp_path, recipe):
    torch.randn(3)  # numbers that the caller drew before do not matter
    train(tmp_path / "again", workers=1)  # nor do processes that read images
    assert same(read(tmp_path / "again"), read(trained))
    train(tmp_path / "other", recipe=recipe.replace(seed=1))
    a, b = read(tmp_path / "other")["model"], read(trained)["model"]
    assert not torch.equal(a["baseline.classifier.weight"], b["baseline.classifier.weight"])


@pytest.mark.parametrize(
    ("method", "changes", "settings"),
    [
        ("cift", {}, {}),
        ("cift", {"optimizer": "sgd", "schedule": "steps"}, {"ablation": "baseline"}),
        ("saai", {}, {"transfer": True, "affinity_loss": 0.5}),
        ("g2da", {}, {"keypoints": True}),
    ],
    ids=["cift", "sgd", "saai", "g2da"],
)
def test_an_interrupted_run_resumes_to_the_same_bits(method, changes, settings, train, recipe, tmp_path, monkeypatch):
    recipe = recipe.replace(**changes)
    train(tmp_path / "whole", method, recipe=recipe, **settings)
    whole = read(tmp_path / "whole")
    calls, forward = [], Step.forward

    def interrupted(self, *batch):
        calls.append(1)
        if len(calls) == 4:  # the second batch of the second epoch
            raise KeyboardInterrupt
        return forward(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(Step, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", method, recipe=recipe, **settings)
    first = read(tmp_path / "parts")
    assert first["epoch"] == 1
    train(tmp_path / "parts", method, recipe=recipe, resume=True, **settings)
    assert same(read(tmp_path / "parts"), whole)
    assert not same(first["model"], whole["model"])  # the second epoch did something
    if method == "saai":  # moving averages too
        averaged, specific = whole["criterion"]["identity.averaged"], whole["criterion"]["identity.specific"]
        assert not torch.equal(averaged, specific)
        assert not torch.equal(averaged, first["criterion"]["identity.averaged"])


def test_a_finished_run_is_left_as_it_is_and_epochs_may_be_added(train, recipe, tmp_path, monkeypatch):
    drawn, draw = [], CrossModalIdentitySampler.__iter__

    def recorded(self):
        drawn.append(self.state_dict()["epoch"])
        return draw(self)

    monkeypatch.setattr(CrossModalIdentitySampler, "__iter__", recorded)
    train(tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    model = train(tmp_path, resume=True)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert same(dict(model.state_dict()), dict(read(tmp_path)["model"]))
    train(tmp_path, recipe=recipe.replace(epochs=0), resume=True)
    assert read(tmp_path)["epoch"] == 2
    train(tmp_path, recipe=recipe.replace(epochs=4), resume=True)
    assert read(tmp_path)["epoch"] == 4
    assert drawn == [0, 1, 2, 3]  # each epoch draws its own batches, a resumed one too


def test_no_epoch_keeps_the_model_as_it_is_built(train, recipe, tmp_path):
    model = train(tmp_path, recipe=recipe.replace(epochs=0))
    assert read(tmp_path)["epoch"] == 0
    assert same(dict(load_checkpoint(tmp_path / "checkpoint.pt").model.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    ("changes", "settings", "text"),
    [
        ({"seed": 7}, {"k": 3}, r"trained with other settings \(k None -> 3, seed 0 -> 7\); name another output"),
        ({}, {"kept": {"keypoints": "digest"}}, r"other settings \(keypoints None -> 'digest'\)"),
        ({}, {"method": "saai"}, r"is a checkpoint of 'cift', not of 'saai'; name another output"),
        ({}, {"kept": {"method": None}}, r"is a checkpoint of 'cift', not of a model of one's own"),
    ],
)
def test_a_checkpoint_of_other_settings_is_neither_mixed_up_nor_overwritten(
    resume, changes, settings, text, train, trained, recipe
):
    before = (trained / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match=text):
        train(trained, recipe=recipe.replace(**changes), resume=resume, **settings)
    assert (trained / "checkpoint.pt").read_bytes() == before


def test_how_it_is_evaluated_may_change_and_fields_of_a_newer_version_may_be_absent(train, recipe, tmp_path):
    train(tmp_path, "saai", recipe=recipe.replace(epochs=1))
    state = read(tmp_path)
    new = ("name", "crop", "second_view", "settings", "flip_test", "rerank")
    state["recipe"] = {key: value for key, value in state["recipe"].items() if key not in new}
    torch.save(state, tmp_path / "checkpoint.pt")
    assert load_checkpoint(tmp_path / "checkpoint.pt").recipe == recipe.replace(epochs=1, rerank="aim")
    train(tmp_path, "saai", recipe=recipe.replace(rerank="aim", flip_test=True), resume=True)
    assert load_checkpoint(tmp_path / "checkpoint.pt").epoch == 2


def test_there_must_be_something_to_resume(train, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*run.checkpoint\.pt"):
        train(tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="output must name the folder of the checkpoint for resume=True"):
        train(None, resume=True)


# -- Runs that end early ---------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_last_epoch_to_resume(train, trained, tmp_path, monkeypatch):
    save, calls = torch.save, []

    def full(state, file, *rest, **options):
        calls.append(1)
        if len(calls) == 2:
            file.write(b"half a checkpoint")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(state, file, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match=r"No space left.*checkpoint\.pt"):
            train(tmp_path)
    assert read(tmp_path)["epoch"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "logs"}
    train(tmp_path, resume=True)
    assert same(read(tmp_path), read(trained))


def test_a_loss_that_is_not_finite_ends_training_and_is_not_saved(train, recipe, tmp_path):
    with pytest.raises(FloatingPointError, match=r"not finite in epoch \d .*total nan.*: nothing of it was saved"):
        train(tmp_path, recipe=recipe.replace(lr=1e30, epochs=3))
    assert not (tmp_path / "checkpoint.pt").exists() or read(tmp_path)["epoch"] < 3


def test_parameters_that_are_not_finite_are_not_saved(train, recipe, tmp_path, monkeypatch):
    """The last step of an epoch is seen in no loss of it."""
    forward, calls = Step.forward, []

    def poisoned(self, *batch):
        calls.append(1)
        losses = forward(self, *batch)
        weight = self.model.baseline.neck.weight
        zero = (weight - weight.detach()).abs().sqrt().sum()  # whose gradient is NaN
        return {**losses, "total": losses["total"] + (zero if len(calls) == 2 else 0)}

    train(tmp_path, recipe=recipe.replace(epochs=1))
    good = (tmp_path / "checkpoint.pt").read_bytes()
    monkeypatch.setattr(Step, "forward", poisoned)
    with pytest.raises(FloatingPointError, match="the loss or a parameter is not finite in epoch 2"):
        train(tmp_path, resume=True)
    assert (tmp_path / "checkpoint.pt").read_bytes() == good


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"identities": 9}, "identities must be at most 4, the number with images of both"),
        ({"lr_shares": {"backbones": 0.1}}, "lr_shares must name parts of the model, got 'backbones'"),
        ({"exchange": "cam"}, "exchange must be one of"),
        ({"flip": 2}, "flip must be at least 0 and at most 1, got 2"),
    ],
)
def test_a_wrong_recipe_is_named_before_anything_is_trained(changes, text, train, recipe, tmp_path):
    with pytest.raises(ValueError, match=text):
        train(tmp_path, recipe=recipe.replace(**changes))
    assert not (tmp_path / "checkpoint.pt").exists()


def test_images_of_another_size_and_an_output_that_is_a_file_are_named(train, regdb, recipe, tmp_path):
    data = open_dataset("regdb", root=regdb, size=(48, 24))
    with pytest.raises(ValueError, match=r"images of the recipe's size \(32, 16\), got \(48, 24\)"):
        fit(nn.Linear(2, 2), nn.Identity(), data, recipe=recipe)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="file"):
        train(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


# -- Precision, processes, key points, models of one's own -----------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions_train_and_evaluate_alike(precision, train, regdb, recipe, tmp_path):
    train(tmp_path, recipe=recipe.replace(precision=precision, epochs=1))
    model = load_checkpoint(tmp_path / "checkpoint.pt").model
    assert extract_features(model, open_dataset("regdb", "test", root=regdb, size=recipe.size)).isfinite().all()
    dtype = {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(precision, torch.float32)
    assert read(tmp_path)["model"]["baseline.classifier.weight"].dtype == dtype


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cift", "saai", "g2da"])
def test_two_processes_train_one_model_and_resume(method, regdb, tmp_path):
    """Both draw batches of their own, one writes; the script runs in each."""
    script, points = tmp_path / "script.py", str(regdb / "keypoints.npz") if method == "g2da" else None
    script.write_text(f"""
import sys
import warnings
from pathlib import Path
from vireid.training import Recipe, build, fit, launch, open_dataset
recipe = Recipe(size=(32, 16), epochs=int(sys.argv[1]), batches=2, identities=2, per_modality=2)
output = Path({str(tmp_path)!r}) / "run"
fabric = launch(recipe, output=output, accelerator="cpu", devices=2)
warnings.filterwarnings("error", ".*outside of DistributedDataParallel")
with fabric.rank_zero_first():
    data = open_dataset("regdb", root={str(regdb)!r}, size=recipe.size, keypoints={points!r})
model, criterion = build({method!r}, data.num_classes, recipe.size)
fit(model, criterion, data, recipe=recipe, fabric=fabric, output=output, settings={{"method": {method!r}}},
    resume=recipe.epochs > 1)
total = sum(float(x.double().sum()) for part in (model, criterion) for x in part.parameters())
sys.stdout.write(f"process {{fabric.global_rank}}: {{total:.6f}}\\n")  # in one piece: both write to one pipe
""")
    for epochs in (1, 2):
        command = [sys.executable, str(script), str(epochs)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert result.returncode == 0, result.stderr
        sums = dict(line.split(": ") for line in result.stdout.splitlines() if line.startswith("process"))
        assert sums.keys() == {"process 0", "process 1"}
        assert sums["process 0"] == sums["process 1"]
        assert read(tmp_path / "run")["epoch"] == epochs


def test_key_points_follow_the_augmentation_into_the_model(train, recipe, tmp_path, steps, monkeypatch):
    moved, forward = [], TrainAugmentation.forward

    def recorded(self, *batch, rows):
        moved.append(forward(self, *batch, rows=rows))
        return moved[-1]

    monkeypatch.setattr(TrainAugmentation, "forward", recorded)
    train(tmp_path, "g2da", recipe=recipe.replace(epochs=1), keypoints=True)
    assert len(moved) == len(steps) == 2
    for (images, keypoints), (_, batch, _) in zip(moved, steps, strict=True):
        assert torch.equal(batch[0], images)
        assert torch.equal(batch[3], gaussian_heatmaps(keypoints, (64, 32), image_size=(32, 16)))
        assert not torch.equal(keypoints[..., :2], keypoints[..., :2].round())


@pytest.mark.parametrize("keypoints", [False, True])
def test_a_second_view_adds_rows_with_their_labels_and_key_points(keypoints, train, recipe, steps):
    method = "g2da" if keypoints else "cift"
    train(None, method, recipe=recipe.replace(epochs=1, second_view=True), keypoints=keypoints)
    train(None, method, recipe=recipe.replace(epochs=1), keypoints=keypoints)
    (_, doubled, losses), (_, plain, _) = steps[0], steps[2]
    assert (len(doubled[0]), len(plain[0])) == (12, 8)
    visible = plain[2] == 0
    for name, whole, first in zip(("label", "modality"), doubled[1:3], plain[1:3], strict=True):
        assert torch.equal(whole, torch.cat([first, first[visible]])), name
    assert all(len(x) == 12 for x in doubled)
    assert losses["total"].isfinite()


class Output(NamedTuple):
    features: Tensor
    logits: Tensor


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.classifier = nn.Conv2d(3, 4, 8, stride=8), nn.Linear(4, 4)

    def forward(self, images, modality):
        features = self.backbone(images).mean((2, 3))
        return Output(features, self.classifier(features))


class Entropy(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, output, labels, modality):
        loss = F.cross_entropy(self.scale * output.logits, labels)
        return {"total": loss}


def test_a_model_of_ones_own_is_trained_with_its_criterion_and_read_again(regdb, recipe, tmp_path):
    model, criterion = Own(), Entropy()
    data = open_dataset("regdb", root=regdb, size=recipe.size)
    parameters = [*model.parameters(), *criterion.parameters()]
    before = [x.detach().clone() for x in parameters]
    assert fit(model, criterion, data, recipe=recipe, output=tmp_path) is model
    assert not any(
        torch.equal(a, b) for a, b in zip(before, (*model.parameters(), *criterion.parameters()), strict=True)
    )
    path = tmp_path / "checkpoint.pt"
    again = Own()
    again.load_state_dict(read_checkpoint(path)["model"])
    test = open_dataset("regdb", "test", root=regdb, size=recipe.size)
    features = extract_features(again, test)
    assert torch.equal(features, extract_features(model, test))
    assert evaluate(test, features, {"backbone": None}).rows[0].features == "backbone"
    text = r"must be of cift, saai, g2da, agw, got a checkpoint of a model of one's own: build that model, then call"
    with pytest.raises(ValueError, match=text):
        load_checkpoint(path)


@pytest.mark.parametrize("package", ["lightning_fabric", "tqdm", "kornia"])
def test_a_missing_extra_is_named(package, regdb, recipe, hidden):
    data = open_dataset("regdb", root=regdb, size=recipe.size)
    hidden(package)
    with pytest.raises(ImportError, match=r"pip install 'vireid\[train\]'"):
        fit(Own(), Entropy(), data, recipe=recipe)


def test_learning_rates_follow_the_recipe_group_by_group(regdb, recipe, monkeypatch):
    """Warm-up, milestones and a part's share, as the optimizer has them in each step."""
    rates, step = [], torch.optim.SGD.step

    def recorded(self, *rest, **options):
        rates.append({group["lr"] for group in self.param_groups})
        return step(self, *rest, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", recorded)
    rate = {"lr": 0.1, "lr_shares": {"backbone": 0.5}, "warmup": 1 / 4, "schedule": "steps", "milestones": [3 / 4]}
    recipe = recipe.replace(optimizer="sgd", epochs=4, **rate)
    fit(Own(), Entropy(), open_dataset("regdb", root=regdb, size=recipe.size), recipe=recipe)
    factors = [1 / 2, 1, 1, 1, 1, 1, 0.1, 0.1]
    for found, factor in zip(rates, factors, strict=True):
        assert sorted(found) == pytest.approx([0.05 * factor, 0.1 * factor])


@pytest.mark.parametrize(("name", "images"), [("sysu", 3 * 4 * 4 + 3 * 2 * 4), ("llcm", 2 * 4 * 3)])
def test_other_data_sets_train(name, images, sysu, llcm, recipe, tmp_path):
    """SYSU-MM01 with the identities of train and val together."""
    data = open_dataset(name, root={"sysu": sysu, "llcm": llcm}[name], size=recipe.size)
    fit(Own(), Entropy(), data, recipe=recipe.replace(epochs=1), output=tmp_path)
    assert read(tmp_path)["num_classes"] == data.num_classes == 4
    assert read(tmp_path)["images"] == len(data) == images
    assert np.unique(data.labels).tolist() == [0, 1, 2, 3]
