"""train_saai.py as a user runs it, on a few drawn people, and evaluate.py on its checkpoints; see test_examples.py."""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_examples import DRAWN, EXAMPLES, assert_same, load, read_metrics, run, tiny
from torch import Tensor

import common
import evaluate
import train_cift
import train_saai
import training
from reference.reranking import aim as aim_by_loops
from vireid.data import generate_synthetic

IDENTITY = {"id", "specific", "mutual", "total"}
SAAI = IDENTITY | {"part_diversity", "center_separation"}
GRAPH = {"graph_ce", "graph_hcc", "tie"}
REGDB = {"k1": 8, "k2": 2, "variant": "paper"}
WAYS = [("backbone", "none"), ("backbone", "AIM"), ("transferred", "none"), ("transferred", "AIM")]


@pytest.fixture(scope="module")
def regdb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_synthetic(tmp_path_factory.mktemp("data") / "regdb", layout="regdb", identities=8, **DRAWN)


@pytest.fixture(scope="module")
def trained(regdb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a run of two epochs with everything that may be added; not to be written into."""
    output = tmp_path_factory.mktemp("runs") / "saai"
    run(train_saai, *tiny(regdb, output, "--transfer", "--affinity-loss", 0.5), pictures=True)
    return output


def parsed(*options: object) -> Any:
    """The options as train_saai.py reads them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train_saai.py", *map(str, options)])
        return train_saai.parse_arguments()


def test_the_command_line_trains_then_evaluates(regdb, tmp_path):
    """Both as processes, every warning an error; the same bytes."""
    for script, options in (
        ("train_saai.py", tiny(regdb, tmp_path / "run", "--epochs", 1, "--trial", 2)),
        ("evaluate.py", ["--checkpoint", "run/checkpoint.pt", "--root", regdb, "--device", "cpu"]),
    ):
        command = [sys.executable, "-W", "error", str(EXAMPLES / script), *map(str, options)]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert "backbone  AIM (k1=8, k2=2, variant=paper)  gallery" in result.stdout
    metrics = (tmp_path / "run" / "metrics.json").read_bytes()
    assert (tmp_path / "runs" / "evaluation" / "metrics.json").read_bytes() == metrics


def test_metrics_say_which_row_is_which(trained):
    rows = read_metrics(trained)["rows"]
    directions = ["visible_to_infrared", "infrared_to_visible"]
    assert [(row["features"], row["rerank"], row["direction"]) for row in rows] == [
        (*way, direction) for way in WAYS for direction in directions
    ]
    for row in rows:
        assert row["uses"] == ("query" if (row["features"], row["rerank"]) == ("backbone", "none") else "gallery")
        assert row["parameters"] == (REGDB if row["rerank"] == "AIM" else {})
        assert 25 <= row["mINP"] <= row["mAP"] <= 100
    assert {path.name for path in trained.iterdir()} == {
        *("checkpoint.pt", "logs", "metrics.json", "cmc.png", "ranked.png")
    }


def test_metrics_equal_a_loop_over_the_queries(trained, regdb):
    state = load(trained)
    model, _ = train_saai.build_model(state["config"], state["identities"])
    model.load_state_dict(state["model"])
    model.eval()
    data = common.RegDBDataset(regdb, "test", size=(32, 16))
    images = common.EvalTransform()(torch.stack([data[i].image for i in range(len(data))]))
    with torch.no_grad():
        x = model(images, torch.from_numpy(data.modality)).features
    found = {(row["direction"], row["features"], row["rerank"]): row for row in read_metrics(trained)["rows"]}
    kinds = [np.flatnonzero(data.modality == kind) for kind in (0, 1)]
    for direction, (query, gallery) in zip(
        ("visible_to_infrared", "infrared_to_visible"), (kinds, kinds[::-1]), strict=True
    ):
        for features in ("backbone", "transferred"):
            q, g = x[query], x[gallery]
            if features == "transferred":  # each query alone with the gallery
                alone = [model.transfer.transfer(row[None], g) for row in q]
                q, g = torch.cat([f_q for f_q, _ in alone]), alone[0][1]
            for rerank in ("none", "AIM"):
                if rerank == "AIM":
                    distance = torch.as_tensor(aim_by_loops(q, g, **REGDB))
                else:
                    distance = -torch.nn.functional.cosine_similarity(q[:, None], g[None], dim=2)
                precision, first = [], []
                for i, row in enumerate(distance.tolist()):
                    order = sorted(range(len(row)), key=row.__getitem__)
                    right = [data.ids[gallery[j]] == data.ids[query[i]] for j in order]
                    precision.append(np.mean([sum(right[: n + 1]) / (n + 1) for n in range(len(row)) if right[n]]))
                    first.append(right[0])
                row = found[direction, features, rerank]
                assert row["mAP"] == pytest.approx(100 * np.mean(precision), abs=1e-3)
                assert row["rank1"] == pytest.approx(100 * np.mean(first), abs=1e-3)


# -- What is trained -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "losses", "parts"),
    [
        (["--ablation", "baseline"], IDENTITY, 0),
        (["--ablation", "baseline", "--affinity-loss", 1, "--transfer"], IDENTITY | GRAPH | {"affinity"}, 0),
        ([], SAAI, 7),
        (["--parts", 3, "--position-in-values"], SAAI, 3),
        (["--parts", 0], SAAI - {"part_diversity"}, 0),
        (["--part-diversity", 0], SAAI - {"part_diversity"}, 7),
        (["--center-separation", 0], SAAI - {"center_separation"}, 7),
        (["--affinity-loss", 0.5], SAAI | {"affinity"}, 7),
        (["--affinity-loss", 0.5, "--no-amendment"], SAAI | {"affinity"}, 7),
        (["--transfer", "--samples", 2, "--k", 3], SAAI | GRAPH, 7),
        (["--optimizer", "adam", "--schedule", "steps", "--milestones", "1/2", 0.75], SAAI, 7),
    ],
)
def test_every_switch_trains_what_it_says(options, losses, parts, regdb, tmp_path, monkeypatch):
    seen: list[tuple[training.Step, set[str]]] = []
    forward = training.Step.forward

    def recorded(self: Any, *batch: Tensor) -> dict[str, Tensor]:
        found = forward(self, *batch)
        seen.append((self, set(found)))
        return found

    monkeypatch.setattr(training.Step, "forward", recorded)
    run(train_saai, *tiny(regdb, tmp_path, "--epochs", 1, *options))
    step, names = seen[-1]
    assert names == losses
    model, affinity = step.model, step.criterion.affinity
    cells = model.backbone.grid[0] * model.backbone.grid[1]
    assert model.dim == model.backbone.out_channels * (parts + cells)
    assert type(model.neck).__name__ == ("BNNeck" if "baseline" in options else "DualBNNeck")
    if parts:
        assert model.pooling.prototypes.shape == (parts, model.backbone.out_channels)
        assert model.pooling.position.shape[1:] == model.backbone.grid
        assert model.pooling.position_in_values == ("--position-in-values" in options)
    assert (affinity is not None) == ("affinity" in losses)
    assert affinity is None or affinity.amend == ("--no-amendment" not in options)
    if "--samples" in options:
        assert (model.transfer.k, step.criterion.cri.samples) == (3, 2)
    kinds = {row["features"] for row in read_metrics(tmp_path)["rows"]}
    assert kinds == ({"backbone", "transferred"} if "--transfer" in options else {"backbone"})
    config = load(tmp_path)["config"]
    assert config["method"] == "saai"
    assert config.keys() <= {*train_saai.SETTINGS, "images", "method"}
    assert config.get("milestones") == (["1/2", "3/4"] if "--milestones" in options else None)


def test_the_weights_of_the_losses_are_the_options(regdb, tmp_path):
    """Weights 2 and 3 and 5 make the terms of the first batch as many times as large."""
    terms = []
    for factors in ((1, 1, 1), (2, 3, 5)):
        names = ("part_diversity", "center_separation", "affinity_loss")
        options = [x for name, f in zip(names, factors, strict=True) for x in (f"--{name.replace('_', '-')}", f)]
        arguments = parsed(*tiny(regdb, tmp_path, *options))
        torch.manual_seed(0)
        model, criterion = train_saai.build_model(vars(arguments), 3)
        torch.manual_seed(1)
        modality, labels = torch.tensor([0, 1] * 4), torch.arange(8) % 3
        terms.append(criterion(model(torch.rand(8, 3, 32, 16), modality), labels, modality))
    for name, factor in (("part_diversity", 2), ("center_separation", 3), ("affinity", 5), ("id", 1)):
        assert float(terms[1][name].detach()) == pytest.approx(factor * float(terms[0][name].detach()), rel=1e-4)
        assert float(terms[0][name].detach()) != 0


def test_a_backbone_without_a_grid_has_six_parts_in_the_baseline_and_none_beside_prototypes(monkeypatch):
    def backbone(*_: object) -> torch.nn.Module:
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, stride=2, padding=1), torch.nn.BatchNorm2d(4))
        net.out_channels = 4
        return net

    monkeypatch.setattr(common, "build_backbone", backbone)
    for ablation, grid, dim in (("baseline", (6, 1), 4 * 6), ("saai", (1, 1), 4 * 8)):
        config = vars(parsed("--ablation", ablation, "--size", 32, 20, "--transfer"))
        model, _ = train_saai.build_model(config, 3)
        assert (model.grid, model.dim, model.transfer.dim) == (grid, dim, dim)
        assert model.backbone.training
        assert int(model.backbone[1].num_batches_tracked) == 0  # looking for the map's size leaves no trace
    assert model.pooling.position.shape == (4, 16, 10)


def test_learning_rate_falls_at_the_milestones():
    """SAAI's: a tenth from epoch 80 of 160, a hundredth from 120."""
    factors = [training.learning_rate(step, 160, 10, "steps", ["1/2", "3/4"]) for step in range(160)]
    assert factors[10:] == pytest.approx([1.0] * 70 + [0.1] * 40 + [0.01] * 40)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_is_adam(name):
    step = training.Step(torch.nn.Linear(2, 2), torch.nn.Identity())
    options = parsed("--optimizer", name, "--lr", 3.5e-4)
    assert type(training.build_optimizer(step, options)) is {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]


# -- Resuming, evaluating ------------------------------------------------------------------------------------------


def test_an_interrupted_run_resumes_to_the_same_bits_with_its_moving_averages(trained, regdb, tmp_path, monkeypatch):
    calls = []
    forward = training.Step.forward

    def interrupted(self: Any, *batch: Tensor) -> dict[str, Tensor]:
        calls.append(1)
        if len(calls) == 4:  # the second batch of the second epoch
            raise KeyboardInterrupt
        return forward(self, *batch)

    options = tiny(regdb, tmp_path, "--transfer", "--affinity-loss", 0.5)
    with monkeypatch.context() as patch:
        patch.setattr(training.Step, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(train_saai, *options)
    first = load(tmp_path)
    assert first["epoch"] == 1
    run(train_saai, *options, "--resume")
    whole = load(trained)
    assert_same(load(tmp_path), whole)
    assert read_metrics(tmp_path) == read_metrics(trained)
    averaged, specific = whole["criterion"]["identity.averaged"], whole["criterion"]["identity.specific"]
    assert not torch.equal(averaged, specific)
    assert not torch.equal(averaged, first["criterion"]["identity.averaged"])


def test_options_of_aim_only_change_the_evaluation(trained, regdb, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    aim = ["--no-removing", "--no-expanding", "--aim-variant", "released"]
    options = tiny(regdb, tmp_path / "run", "--transfer", "--affinity-loss", 0.5)
    run(train_saai, *options, *aim, "--resume")
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    rows, old = read_metrics(tmp_path / "run")["rows"], read_metrics(trained)["rows"]
    parameters = {"k1": "all", "k2": 1, "variant": "released"}
    assert [row["parameters"] for row in rows] == ([{}] * 2 + [parameters] * 2) * 2
    for row, plain in zip(rows, old, strict=True):
        assert (row == plain) == (row["rerank"] == "none")
    base = ["--checkpoint", trained / "checkpoint.pt", "--root", regdb, "--device", "cpu", "--output", tmp_path / "out"]
    run(evaluate, *base, *aim)
    assert (tmp_path / "out" / "metrics.json").read_bytes() == (tmp_path / "run" / "metrics.json").read_bytes()
    run(evaluate, *base, "--k1", 12, "--k2", 1, "--aim-variant", "released")  # 12 images are the whole gallery
    for row, whole in zip(read_metrics(tmp_path / "out")["rows"], rows, strict=True):
        assert row["mAP"] == pytest.approx(whole["mAP"], abs=1e-9)


def test_aim_has_the_papers_neighbours_for_each_protocol():
    for options, k1, k2 in (
        ([], 8, 2),
        (["--dataset", "regdb"], 8, 2),
        (["--dataset", "sysu"], 4, 1),
        (["--dataset", "sysu", "--shots", 10], 20, 6),
        (["--k1", 5], 5, 2),
        (["--k2", 3], 8, 3),
    ):
        settings = train_saai.affinity_inference(parsed(*options)).settings
        assert settings == {"k1": k1, "k2": k2, "variant": "paper"}


def test_evaluate_on_sysu(trained, tmp_path):
    sysu = generate_synthetic(tmp_path / "sysu", layout="sysu", identities=8, seed=5, **DRAWN)
    run(evaluate, "--checkpoint", trained / "checkpoint.pt", "--dataset", "sysu", "--root", sysu, "--device", "cpu",
        "--output", tmp_path / "out")  # fmt: skip
    rows = read_metrics(tmp_path / "out")["rows"]
    assert [(row["features"], row["rerank"]) for row in rows] == WAYS
    assert all(row["parameters"] == {"k1": 4, "k2": 1, "variant": "paper"} for row in rows if row["rerank"] == "AIM")


# -- Messages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--k1", 0], "k1 must be at least 1, got 0"),
        (["--k2", -1], "k2 must be at least 1, got -1"),
        (["--parts", -1], "--parts must be at least 0, got -1"),
        (["--part-diversity", -0.5], "--part-diversity must be at least 0, got -0.5"),
        (["--no-amendment"], "--no-amendment goes with --affinity-loss"),
        (["--center-separation", "nan"], "--center-separation must be at least 0, got nan"),
        (["--affinity-loss", -1], "--affinity-loss must be at least 0, got -1"),
        (["--transfer", "--k", 0], "k must be at least 1, got 0"),
        (["--milestones", "1/2"], "--milestones goes with --schedule steps, not with cosine"),
    ],
)
def test_wrong_options_are_named_before_anything_is_trained(options, text, regdb, tmp_path):
    with pytest.raises(ValueError, match=text):
        run(train_saai, *tiny(regdb, tmp_path, *options))
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    "options", [["--ablation", "cri"], ["--k1", 3, "--no-removing"], ["--k2", 3, "--no-expanding"],
                ["--milestones", "3/2"], ["--milestones", "1/0"], ["--milestones", "half"]]
)  # fmt: skip
def test_unknown_and_contradictory_options_end_the_script_with_its_usage(options, capsys):
    with pytest.raises(SystemExit) as caught:
        run(train_saai, *options)
    assert caught.value.code == 2
    assert str(options[0]) in capsys.readouterr().err


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_checkpoint_of_the_other_method_is_refused(resume, trained, regdb, tmp_path):
    run(train_cift, *tiny(regdb, tmp_path / "cift", "--epochs", 0))
    shutil.copytree(trained, tmp_path / "saai")
    for script, other in ((train_cift, "saai"), (train_saai, "cift")):
        before = (tmp_path / other / "checkpoint.pt").read_bytes()
        text = rf"checkpoint\.pt was written by train_{other}\.py, not {script.__name__}\.py; name another --output"
        with pytest.raises(ValueError, match=text):
            run(script, *tiny(regdb, tmp_path / other, *resume))
        assert (tmp_path / other / "checkpoint.pt").read_bytes() == before


def test_a_checkpoint_without_a_method_is_cifts(regdb, tmp_path):
    """As those written before train_saai.py: they go on, and evaluate as they did."""
    run(train_cift, *tiny(regdb, tmp_path, "--epochs", 1))
    state, metrics = load(tmp_path), read_metrics(tmp_path)
    assert state["config"].pop("method") == "cift"
    common.save_checkpoint(tmp_path / "checkpoint.pt", state)
    run(train_cift, *tiny(regdb, tmp_path, "--epochs", 1, "--resume"))
    base = [
        "--checkpoint",
        tmp_path / "checkpoint.pt",
        "--root",
        regdb,
        "--device",
        "cpu",
        "--output",
        tmp_path / "out",
    ]
    run(evaluate, *base)
    assert read_metrics(tmp_path / "out") == read_metrics(tmp_path) == metrics
    text = r"--k1, --aim-variant must be left out: AIM goes with a checkpoint of train_saai\.py, not train_cift\.py"
    with pytest.raises(ValueError, match=text):
        run(evaluate, *base, "--k1", 4, "--aim-variant", "released")
    common.save_checkpoint(tmp_path / "checkpoint.pt", state | {"config": state["config"] | {"method": "other"}})
    with pytest.raises(
        ValueError, match=r"checkpoint\.pt must be of cift or saai or g2da, got a checkpoint of 'other'"
    ):
        run(evaluate, *base)


def test_both_necks_scales_are_spared_from_decay():
    """The scale of the neck for each modality has two rows, and is a norm's all the same."""
    options = argparse.Namespace(lr=1e-2, backbone_lr=1.0, weight_decay=5e-4, optimizer="adam")
    for ablation in ("baseline", "saai"):
        step = training.Step(*train_saai.build_model(vars(parsed("--ablation", ablation)), 3))
        groups = training.build_optimizer(step, options).param_groups
        decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
        assert decay[id(step.model.neck.weight)] == 0
        assert decay[id(step.criterion.identity.shared)] == 5e-4


def test_an_output_that_is_a_file_is_named_before_anything_is_trained(regdb, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="file"):
        run(train_saai, *tiny(regdb, tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_loss_that_is_not_finite_ends_training_and_is_not_saved(regdb, tmp_path):
    with pytest.raises(RuntimeError, match=r"not finite in epoch \d .*total nan"):
        run(train_saai, *tiny(regdb, tmp_path / "run", "--lr", 1e30, "--epochs", 3))
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    assert not checkpoint.exists() or load(tmp_path / "run")["epoch"] < 3
