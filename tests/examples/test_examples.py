"""The example scripts as a user runs them, on a few drawn people: their files, resuming, safe loading, messages."""

import argparse
import errno
import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import common
import evaluate
import train_cift
import training
from places import EXAMPLES, SHARED
from vireid.data import SYSUMM01Dataset, generate_synthetic

OFFICIAL = SHARED / "data" / "sysu-mm01-split" / "rand_perm_cam.mat"
LOSSES = {"ce", "hcc_features", "hcc_logits", "graph_ce", "graph_hcc", "tie", "total"}
METRICS = ("rank1", "rank5", "rank10", "mAP", "mINP")
DRAWN: dict[str, Any] = {"images_per_camera": 3, "size": (48, 24)}


def run(script: Any, *options: object, pictures: bool = False) -> None:
    """The script's ``main`` with these options, in this process; pictures take longer than all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        if not pictures:
            for name in ("cmc_curves", "ranked_lists"):
                patch.setattr(common, name, lambda *_, **__: None)
        patch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, options)])
        script.main()


def tiny(root: Path, output: Path, *options: object) -> list[object]:
    """Options of a training run that takes a moment; later options win."""
    sizes = ["--size", 32, 16, "--epochs", 2, "--batches", 2, "--identities", 2, "--per-modality", 2]
    base = ["--dataset", "regdb", "--root", root, "--output", output, "--accelerator", "cpu"]
    return [*base, *sizes, *options]


def load(output: Path) -> dict[str, Any]:
    return torch.load(output / "checkpoint.pt", weights_only=True)


def read_metrics(output: Path) -> dict[str, Any]:
    return json.loads((output / "metrics.json").read_text())


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Equal to the last bit."""
    assert type(a) is type(b), where
    if isinstance(a, Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


@pytest.fixture(scope="module")
def regdb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_synthetic(tmp_path_factory.mktemp("data") / "regdb", layout="regdb", identities=8, **DRAWN)


@pytest.fixture(scope="module")
def sysu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "sysu"
    return generate_synthetic(root, layout="sysu", identities=8, seed=5, **DRAWN)


@pytest.fixture(scope="module")
def trained(regdb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of an uninterrupted run of two epochs; not to be written into."""
    output = tmp_path_factory.mktemp("runs") / "cift"
    run(train_cift, *tiny(regdb, output), pictures=True)
    return output


def test_the_command_line_trains_then_evaluates(regdb, tmp_path):
    """Both as processes, every warning an error."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / "train_cift.py")]
    command += map(str, tiny(regdb, tmp_path / "run", "--epochs", 1, "--ablation", "baseline"))
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert re.search(r"visible_to_infrared +backbone +none +query +\d", result.stdout)
    command = [sys.executable, "-W", "error", str(EXAMPLES / "evaluate.py"), "--checkpoint", "run/checkpoint.pt"]
    command += ["--root", str(regdb), "--device", "cpu"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert read_metrics(tmp_path / "runs" / "evaluation") == read_metrics(tmp_path / "run")


# -- What a run leaves ---------------------------------------------------------------------------------------------


def test_metrics_hold_both_directions_and_both_kinds_of_features(trained):
    found = read_metrics(trained)
    assert found["dataset"] == "regdb"
    assert {(row["direction"], row["features"]) for row in found["rows"]} == {
        (direction, kind)
        for direction in ("visible_to_infrared", "infrared_to_visible")
        for kind in ("backbone", "transferred")
    }
    assert len(found["rows"]) == 4
    for row in found["rows"]:
        assert row["rerank"] == "none"
        assert row["trials"] == 1
        assert 0 <= row["rank1"] <= row["rank5"] <= row["rank10"] == 100  # percent; 12 in the gallery, 3 of them right
        # Chance: 3 of 12 right. In percent nothing right can be below 3 / 12 at the last rank.
        assert 25 <= row["mINP"] <= row["mAP"] <= 100


def test_metrics_equal_a_loop_over_the_queries(trained, regdb):
    state = load(trained)
    model, _ = train_cift.build_model(state["config"], state["identities"])
    model.load_state_dict(state["model"])
    model.eval()
    data = common.RegDBDataset(regdb, "test", size=(32, 16))
    images = common.EvalTransform()(torch.stack([data[i].image for i in range(len(data))]))
    with torch.no_grad():
        x = model(images, torch.from_numpy(data.modality)).features
    visible, infrared = np.flatnonzero(data.modality == 0), np.flatnonzero(data.modality == 1)
    rows = {(row["direction"], row["features"]): row for row in read_metrics(trained)["rows"]}
    for direction, query, gallery in (
        ("visible_to_infrared", visible, infrared),
        ("infrared_to_visible", infrared, visible),
    ):
        cosine = torch.nn.functional.cosine_similarity(x[query][:, None], x[gallery][None], dim=2)
        for kind, distance in (("backbone", -cosine), ("transferred", model.transfer.distance(x[query], x[gallery]))):
            precision, first = [], []
            for i, row in enumerate(distance.tolist()):
                order = sorted(range(len(row)), key=row.__getitem__)
                right = [data.ids[gallery[j]] == data.ids[query[i]] for j in order]
                precision.append(np.mean([sum(right[: n + 1]) / (n + 1) for n in range(len(row)) if right[n]]))
                first.append(right[0])
            assert rows[direction, kind]["mAP"] == pytest.approx(100 * np.mean(precision), abs=1e-3)
            assert rows[direction, kind]["rank1"] == pytest.approx(100 * np.mean(first), abs=1e-3)


@pytest.mark.parametrize("name", ["cmc.png", "ranked.png"])
def test_pictures_are_whole_and_not_blank(trained, name):
    with Image.open(trained / name) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) > 200
    assert pixels.reshape(-1, 3).std(0).min() > 5


def test_tensorboard_holds_every_loss_of_every_epoch(trained):
    events = EventAccumulator(str(trained / "logs"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {f"loss/{name}" for name in LOSSES} | {"learning_rate"}
    values = {name: [event.value for event in events.Scalars(f"loss/{name}")] for name in LOSSES}
    for epoch in range(2):
        assert values["total"][epoch] == pytest.approx(sum(values[n][epoch] for n in LOSSES - {"total"}), rel=1e-5)
    assert [event.step for event in events.Scalars("loss/total")] == [0, 1]


def test_checkpoint_is_plain_whole_and_readable_by_others(trained, tmp_path):
    state = load(trained)
    assert state["epoch"] == 2
    assert state["identities"] == 4
    assert state["config"].keys() <= {*train_cift.SETTINGS, "images", "method"}
    assert {name for name in state["criterion"] if "X_" in name} == {"cri.X_mu", "cri.X_rho"}
    other = tmp_path / "other"
    other.touch()
    assert (trained / "checkpoint.pt").stat().st_mode == other.stat().st_mode
    assert {path.name for path in trained.iterdir()} == {
        *("checkpoint.pt", "logs", "metrics.json", "cmc.png", "ranked.png")
    }


# -- Repeating, interrupting, resuming -----------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_run_and_another_does_not(trained, regdb, tmp_path):
    torch.randn(3)  # what the caller drew before does not matter
    run(train_cift, *tiny(regdb, tmp_path / "again"))
    assert_same(load(tmp_path / "again"), load(trained))
    assert read_metrics(tmp_path / "again") == read_metrics(trained)
    run(train_cift, *tiny(regdb, tmp_path / "other", "--seed", 1))
    a, b = load(tmp_path / "other")["model"], load(trained)["model"]
    assert not torch.equal(a["baseline.classifier.weight"], b["baseline.classifier.weight"])


def test_data_workers_change_nothing(trained, regdb, tmp_path):
    run(train_cift, *tiny(regdb, tmp_path, "--workers", 1))
    assert_same(load(tmp_path)["model"], load(trained)["model"])


@pytest.mark.parametrize("ablation", ["cri", "baseline"])
def test_an_interrupted_run_resumes_to_the_same_bits(ablation, regdb, tmp_path, monkeypatch):
    options = ["--ablation", ablation, "--optimizer", "sgd" if ablation == "baseline" else "adamw"]
    run(train_cift, *tiny(regdb, tmp_path / "whole", *options))
    whole = load(tmp_path / "whole")

    calls = []
    forward = training.Step.forward

    def interrupted(self: Any, *batch: Tensor) -> dict[str, Tensor]:
        calls.append(1)
        if len(calls) == 4:  # the second batch of the second epoch
            raise KeyboardInterrupt
        return forward(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(training.Step, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(train_cift, *tiny(regdb, tmp_path / "parts", *options))
    first = common.load_checkpoint(tmp_path / "parts" / "checkpoint.pt")
    assert first["epoch"] == 1
    assert not (tmp_path / "parts" / "metrics.json").exists()

    run(train_cift, *tiny(regdb, tmp_path / "parts", *options, "--resume"))
    assert_same(load(tmp_path / "parts"), whole)
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")
    weight = next(name for name in whole["model"] if name.endswith("classifier.weight"))
    assert not torch.equal(first["model"][weight], whole["model"][weight])  # the second epoch did something


def test_resuming_a_finished_run_only_evaluates_again(trained, regdb, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    run(train_cift, *tiny(regdb, tmp_path / "run", "--resume"))
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    assert read_metrics(tmp_path / "run") == read_metrics(trained)


def test_no_epoch_evaluates_the_model_as_it_is_built(trained, regdb, tmp_path):
    run(train_cift, *tiny(regdb, tmp_path / "new", "--epochs", 0))
    assert load(tmp_path / "new")["epoch"] == 0
    options = ["--checkpoint", tmp_path / "new" / "checkpoint.pt", "--root", regdb, "--device", "cpu"]
    run(evaluate, *options, "--output", tmp_path / "out")
    assert read_metrics(tmp_path / "out") == read_metrics(tmp_path / "new")
    shutil.copytree(trained, tmp_path / "run")
    run(train_cift, *tiny(regdb, tmp_path / "run", "--epochs", 0, "--resume"))
    assert load(tmp_path / "run")["epoch"] == 2


def test_more_epochs_may_be_added(trained, regdb, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    run(train_cift, *tiny(regdb, tmp_path / "run", "--resume", "--epochs", 3))
    assert load(tmp_path / "run")["epoch"] == 3


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_checkpoint_of_other_settings_is_neither_mixed_up_nor_overwritten(resume, trained, regdb, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    text = r"trained with other settings \(k 4 -> 3, seed 0 -> 7\); name another --output"
    with pytest.raises(ValueError, match=text):
        run(train_cift, *tiny(regdb, tmp_path / "run", "--k", 3, "--seed", 7, *resume))
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


def test_each_epoch_draws_its_own_batches_also_when_resumed(trained, regdb, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "run")
    drawn = []
    draw = training.CrossModalIdentitySampler.__iter__

    def recorded(self: Any) -> Any:
        drawn.append(self._epoch)
        return draw(self)

    monkeypatch.setattr(training.CrossModalIdentitySampler, "__iter__", recorded)
    run(train_cift, *tiny(regdb, tmp_path / "run", "--resume", "--epochs", 4))
    assert drawn == [2, 3]


def test_there_must_be_something_to_resume(regdb, tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"no checkpoint at {tmp_path / 'run' / 'checkpoint.pt'}")):
        run(train_cift, *tiny(regdb, tmp_path / "run", "--resume"))


# -- Checkpoints: written whole, read safely -----------------------------------------------------------------------


def test_a_save_that_fails_midway_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    common.save_checkpoint(path, {"epoch": 1})
    before = path.read_bytes()

    def full(state: Any, file: Any) -> None:
        file.write(b"half a checkpoint")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        common.save_checkpoint(path, {"epoch": 2})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_in_training_leaves_the_last_epoch_to_resume(regdb, trained, tmp_path, monkeypatch):
    save, calls = torch.save, []

    def full(state: Any, file: Any, *rest: Any, **options: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            file.write(b"half a checkpoint")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(state, file, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="No space left"):
            run(train_cift, *tiny(regdb, tmp_path))
    assert load(tmp_path)["epoch"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "logs"}
    run(train_cift, *tiny(regdb, tmp_path, "--resume"))
    assert_same(load(tmp_path), load(trained))


class Payload:
    """Pickles to a call that creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("way", ["evaluate", "resume", "overwrite"])
@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "foreign", "pickled code", "pickled code beside"])
def test_a_damaged_foreign_or_hostile_checkpoint_is_refused(kind, way, trained, regdb, tmp_path):
    if kind == "pickled code" and way == "overwrite":
        assert Payload(tmp_path / "proof").__reduce__()[0](tmp_path / "proof") is None  # the payload would work
        (tmp_path / "proof").unlink()
    path = tmp_path / "checkpoint.pt"
    whole = (trained / "checkpoint.pt").read_bytes()
    if kind in ("truncated", "empty"):
        path.write_bytes(whole[: len(whole) // 2 if kind == "truncated" else 0])
    elif kind == "text":
        path.write_text("<html>404: not found</html>")
    elif kind == "foreign":
        torch.save({"state_dict": {"weight": torch.zeros(2)}}, path)
    elif kind == "pickled code":
        torch.save(Payload(tmp_path / "executed"), path)
    else:
        torch.save(load(trained) | {"more": Payload(tmp_path / "executed")}, path)
    before = path.read_bytes()
    expected = "is not a checkpoint of these examples" if kind == "foreign" else "is not a readable checkpoint"
    script, options = train_cift, tiny(regdb, tmp_path, *(["--resume"] if way == "resume" else []))
    if way == "evaluate":
        script, options = evaluate, ["--checkpoint", path, "--dataset", "regdb", "--root", regdb]
    with pytest.raises(ValueError, match=re.escape(f"{path} {expected}")) as caught:
        run(script, *options)
    assert "False" not in str(caught.value)  # torch's own advice: load it without the safety
    assert not (tmp_path / "executed").exists()
    assert path.read_bytes() == before


# -- The ablation, precision ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", list(train_cift.ABLATION))
def test_every_row_of_the_ablation_trains_and_evaluates(row, regdb, tmp_path):
    run(train_cift, *tiny(regdb, tmp_path, "--ablation", row, "--epochs", 1))
    kinds = {"backbone"} if row == "baseline" else {"backbone", "transferred"}
    assert {line["features"] for line in read_metrics(tmp_path)["rows"]} == kinds
    names = load(tmp_path)["model"]
    assert any(name.startswith("transfer.value") for name in names) == (row != "baseline")
    assert bool(load(tmp_path)["criterion"]) == (row == "cri")


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions_train_and_evaluate_alike(precision, regdb, tmp_path):
    run(train_cift, *tiny(regdb, tmp_path, "--precision", precision, "--epochs", 1))
    run(evaluate, "--checkpoint", tmp_path / "checkpoint.pt", "--root", regdb, "--device", "cpu", "--output", tmp_path)
    assert all(np.isfinite(row[name]) for row in read_metrics(tmp_path)["rows"] for name in METRICS)
    dtype = {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(precision, torch.float32)
    assert load(tmp_path)["model"]["baseline.classifier.weight"].dtype == dtype


@pytest.mark.parametrize("schedule", ["cosine", "steps"])
def test_learning_rate_warms_up_then_falls(schedule):
    factors = [training.learning_rate(step, 120, 10, schedule) for step in range(120)]
    assert factors[:10] == pytest.approx(np.arange(1, 11) / 10)
    if schedule == "steps":
        assert factors[10:] == pytest.approx([1.0] * 50 + [0.1] * 40 + [0.01] * 20)
    else:
        assert factors[10] == 1
        assert all(a > b for a, b in itertools.pairwise(factors[10:]))
        assert factors[65] == pytest.approx(0.5)
        assert 0 < factors[-1] < 1e-3


def test_optimizer_spares_norms_from_decay_and_slows_the_backbone():
    config = {"backbone": "small", "ablation": "cri", "k": 4, "tau_hom": 0.4, "tau_het": 0.2}
    model, criterion = train_cift.build_model(config | {"samples": 1, "detach_values": False}, 3)
    step = training.Step(model, criterion)
    options = argparse.Namespace(lr=1e-2, backbone_lr=0.1, weight_decay=5e-4, optimizer="sgd")
    setting = {
        id(parameter): (group["full_lr"], group["weight_decay"])
        for group in training.build_optimizer(step, options).param_groups
        for parameter in group["params"]
    }
    assert setting.keys() == {id(p) for p in step.parameters() if p.requires_grad}
    named = {name: setting[id(p)] for name, p in step.named_parameters() if id(p) in setting}
    assert named["model.graph_classifier.weight"] == (1e-2, 5e-4)
    assert named["model.transfer.value.weight"] == (1e-2, 0)
    assert named["criterion.cri.X_mu"] == (1e-2, 0)
    assert named["model.baseline.backbone.norm.weight"] == (pytest.approx(1e-3), 0)
    assert named["model.baseline.backbone.refinements.0.branch.0.weight"] == (pytest.approx(1e-3), 5e-4)


# -- evaluate.py ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [[], ["--dataset", "regdb"]])
def test_evaluate_reproduces_what_training_reported(named, regdb, tmp_path):
    """Also for a trial other than the first: its own test split is taken, not one it was trained on."""
    run(train_cift, *tiny(regdb, tmp_path / "run", "--trial", 3))
    options = ["--checkpoint", tmp_path / "run" / "checkpoint.pt", "--root", regdb, "--device", "cpu"]
    run(evaluate, *options, *named, "--output", tmp_path / "out")
    assert read_metrics(tmp_path / "out") == read_metrics(tmp_path / "run")
    run(evaluate, *options, *named, "--trial", 1, "--output", tmp_path / "first")
    assert read_metrics(tmp_path / "first") != read_metrics(tmp_path / "run")


def test_evaluate_on_another_data_set_of_the_same_layout(trained, tmp_path):
    other = generate_synthetic(tmp_path / "other", layout="regdb", identities=6, seed=3, **DRAWN)
    for split, people in (("test", 3), ("all", 6)):
        out = tmp_path / split
        options = ["--checkpoint", trained / "checkpoint.pt", "--dataset", "regdb", "--root", other, "--device", "cpu"]
        run(evaluate, *options, "--split", split, "--output", out, pictures=split == "all")
        rows = read_metrics(out)["rows"]
        assert len(rows) == 4
        assert all(len(row["cmc"]) == 3 * people for row in rows)  # the whole gallery
    for name in ("cmc.png", "ranked.png"):
        with Image.open(out / name) as image:
            image.verify()


@pytest.mark.parametrize("split", ["test", "all"])
@pytest.mark.parametrize("sampling", ["official", "agw"])
@pytest.mark.parametrize("mode", ["all", "indoor"])
def test_evaluate_on_sysu(mode, sampling, split, trained, sysu, tmp_path):
    options = ["--checkpoint", trained / "checkpoint.pt", "--dataset", "sysu", "--root", sysu, "--device", "cpu"]
    options += ["--sampling", sampling, "--mode", mode, "--split", split, "--output", tmp_path]
    pictures = (mode, sampling, split) == ("all", "official", "test")
    run(evaluate, *options, pictures=pictures)
    assert (tmp_path / "ranked.png").exists() == pictures
    found = read_metrics(tmp_path)
    assert found["dataset"] == "sysu"
    assert [(row["direction"], row["features"]) for row in found["rows"]] == [
        ("infrared_to_visible", "backbone"),
        ("infrared_to_visible", "transferred"),
    ]
    for row in found["rows"]:
        assert row["trials"] == 10
        assert len(row["cmc"]) == (4 if split == "test" else 8)  # over identities
        assert row["cmc"][-1] == pytest.approx(1)


def test_train_on_sysu_takes_train_and_val_identities(sysu, tmp_path):
    run(train_cift, *tiny(sysu, tmp_path, "--dataset", "sysu", "--epochs", 1, "--ablation", "h2g"))
    assert load(tmp_path)["identities"] == SYSUMM01Dataset(sysu, "trainval").num_classes == 4
    assert [row["direction"] for row in read_metrics(tmp_path)["rows"]] == ["infrared_to_visible"] * 2


@pytest.mark.skipif(not OFFICIAL.is_file(), reason="needs SYSU-MM01's split files")
def test_another_data_sets_permutations_are_named(trained, sysu, tmp_path):
    shutil.copytree(sysu, tmp_path / "sysu")
    shutil.copy(OFFICIAL, tmp_path / "sysu" / "exp")
    options = ["--checkpoint", trained / "checkpoint.pt", "--dataset", "sysu", "--root", tmp_path / "sysu"]
    with pytest.raises(ValueError, match=r"the images that permutations draws, got no image \d+ of identity"):
        run(evaluate, *options, "--device", "cpu", "--output", tmp_path / "out")


# -- Messages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        (["--root", "nowhere"], FileNotFoundError, "folder nowhere does not exist"),
        (["--dataset", "sysu"], FileNotFoundError, "exp/train_id.txt does not exist"),
        (["--trial", 11], ValueError, "trial must be 1 … 10, got 11"),
        (["--trial", 0], ValueError, "trial must be at least 1, got 0"),
        (["--k", 0], ValueError, "k must be at least 1, got 0"),
        (["--tau-het", 0], ValueError, "tau_het must be above 0"),
        (["--samples", 0], ValueError, "samples must be at least 1, got 0"),
        (["--epochs", -1], ValueError, "--epochs must be at least 0, got -1"),
        (["--seed", -1], ValueError, "--seed must be at least 0, got -1"),
        (["--batches", 0], ValueError, "batches must be at least 1, got 0"),
        (["--identities", 9], ValueError, "identities must be at most 4, the number with images of both"),
        (["--size", 0, 16], ValueError, r"size\[0\] must be at least 1, got 0"),
        (["--lr", "nan"], ValueError, "Invalid learning rate: nan"),
        (["--weights", "x.pth"], ValueError, "--weights goes with --backbone torchvision or timm, not with small"),
        (["--dataset", "synthetic"], FileExistsError, "identities=8, asked for 96"),
    ],
)
def test_wrong_options_are_named_before_anything_is_trained(options, error, text, regdb, tmp_path):
    with pytest.raises(error, match=text):
        run(train_cift, *tiny(regdb, tmp_path / "run", *options))
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_root_of_the_other_layout_or_none_is_named(sysu, trained, tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"{sysu / 'idx' / 'train_visible_1.txt'} does not exist")):
        run(train_cift, *tiny(sysu, tmp_path))
    for script, options in ((train_cift, []), (evaluate, ["--checkpoint", trained / "checkpoint.pt"])):
        with pytest.raises(ValueError, match="--root must name the folder of --dataset regdb"):
            run(script, *options, "--dataset", "regdb", "--output", tmp_path)


def test_evaluate_names_what_is_wrong(trained, sysu, tmp_path):
    base = ["--dataset", "sysu", "--root", sysu, "--output", tmp_path / "out", "--device", "cpu"]
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at nowhere\.pt"):
        run(evaluate, *base, "--checkpoint", "nowhere.pt")
    base += ["--checkpoint", trained / "checkpoint.pt"]
    with pytest.raises(ValueError, match="must hold 10 images of identity"):
        run(evaluate, *base, "--shots", 10)
    shutil.copytree(sysu, tmp_path / "sysu")
    (tmp_path / "sysu" / "exp" / "rand_perm_cam.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"rand_perm_cam\.mat"):
        run(evaluate, *base, "--root", tmp_path / "sysu")
    state = load(trained)
    common.save_checkpoint(tmp_path / "odd.pt", state | {"config": state["config"] | {"ablation": "best"}})
    with pytest.raises(ValueError, match="ablation must be one of baseline, gft, ubs, h2g, cri, got 'best'"):
        run(evaluate, *base, "--checkpoint", tmp_path / "odd.pt")


@pytest.mark.parametrize("option", [["--dataset", "llcm"], ["--ablation", "best"], ["--shots", 3], ["--nonsense"]])
def test_unknown_options_end_the_script_with_its_usage(option, capsys):
    with pytest.raises(SystemExit) as caught:
        run(train_cift, *option)
    assert caught.value.code == 2
    assert option[0] in capsys.readouterr().err


def test_synthetic_is_the_default_and_drawn_once(tmp_path, monkeypatch):
    """The embedded default in small: drawn where --root says, then used as it is."""
    draw = generate_synthetic
    monkeypatch.setattr(
        common, "generate_synthetic", lambda root, **options: draw(root, identities=8, **DRAWN, **options)
    )
    options = tiny(tmp_path / "drawn", tmp_path / "run", "--epochs", 1)[2:]
    run(train_cift, *options)
    stamp = (tmp_path / "drawn" / "synthetic.json").stat().st_mtime_ns
    run(evaluate, "--checkpoint", tmp_path / "run" / "checkpoint.pt", "--root", tmp_path / "drawn", "--device", "cpu",
        "--output", tmp_path / "out")  # fmt: skip
    assert (tmp_path / "drawn" / "synthetic.json").stat().st_mtime_ns == stamp
    assert read_metrics(tmp_path / "out") == read_metrics(tmp_path / "run")
    assert read_metrics(tmp_path / "out")["dataset"] == "synthetic"


def test_training_returns_a_model_in_evaluation_mode(regdb, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_cift.py", *map(str, tiny(regdb, tmp_path))])
    model = training.train(train_cift.parse_arguments(), Fabric(accelerator="cpu", devices=1), train_cift.METHOD)
    assert not any(part.training for part in model.modules())
    assert_same(dict(model.state_dict()), dict(load(tmp_path)["model"]))
