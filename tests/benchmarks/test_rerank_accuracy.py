"""The table of accuracy beside cost: the validation split, choosing, measuring."""

import argparse
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from benchmarks.speed import rerank
from benchmarks.tables import rerank_accuracy as accuracy
from benchmarks.tables.cift import Method, grid
from vireid._ops import normalize_rows
from vireid.data import RegDBDataset
from vireid.protocols import RegDB

# -------------------------------------------------------------------------------------------------- accuracy


@pytest.fixture
def layout(tmp_path):
    """Lists of a data set in RegDB's layout: six training identities in each of two trials, two images a modality."""
    root = tmp_path / "data"
    (root / "idx").mkdir(parents=True)
    for trial, people in ((1, (9, 2, 30, 4, 11, 6)), (2, (1, 3, 5, 7, 8, 10))):
        for kind in ("Visible", "Thermal"):
            lines = []
            for label, person in enumerate(people):
                (root / kind / str(person)).mkdir(parents=True, exist_ok=True)
                for n in range(2):
                    path = f"{kind}/{person}/{n}.jpg"
                    (root / path).write_bytes(b"")
                    lines.append(f"{path} {label}")
            (root / "idx" / f"train_{kind.lower()}_{trial}.txt").write_text("\n".join(lines) + "\n")
    return root


def test_the_validation_split_is_made_of_training_identities_alone(layout, tmp_path):
    folder = tmp_path / "validation"
    accuracy.write_validation_split(layout, folder, [1, 2], 0.5)
    train, test = (RegDBDataset(folder, split, trial=1) for split in ("train", "test"))
    assert sorted(set(train.ids.tolist())) == [2, 4, 6]
    assert sorted(set(test.ids.tolist())) == [9, 11, 30]
    assert len(train) == len(test) == 12
    assert sorted(set(RegDBDataset(folder, "test", trial=2).ids.tolist())) == [7, 8, 10]
    accuracy.write_validation_split(layout, folder, [1, 2], 0.5)  # once more is no change
    with pytest.raises(ValueError, match="another --root or --share"):
        accuracy.write_validation_split(layout, folder, [1], 0.34)
    assert sorted(set(RegDBDataset(folder, "test", trial=1).ids.tolist())) == [9, 11, 30]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_validation_split_has_two_sides(layout, tmp_path, share):
    with pytest.raises(ValueError, match="both sides"):
        accuracy.write_validation_split(layout, tmp_path / "validation", [1], share)


@pytest.fixture
def features():
    data = rerank.clustered_features(50, 50, 16, noise=1.2)
    ids = torch.cat([data.query_ids, data.gallery_ids]).numpy()
    return accuracy.Features(torch.cat([data.query, data.gallery]), ids, np.repeat([0, 1], 50))


def test_evaluate_is_the_protocol_in_both_directions(features):
    found = accuracy.evaluate(features, None)
    for direction in ("visible_to_infrared", "infrared_to_visible"):
        row = RegDB(direction).evaluate(*features).rows[0].mean
        assert found[direction]["mAP"] == row["mAP"]
    assert accuracy.mean_map([found]) == pytest.approx(sum(v["mAP"] for v in found.values()) / 2)


def test_the_best_mean_map_is_chosen_and_the_first_of_equals(features):
    def toward(query, gallery, *, weight, unused):
        distance = 1 - normalize_rows(query) @ normalize_rows(gallery).T
        return weight * distance

    method = Method("toward", toward, None, grid(weight=(-1, 2, 1), unused=(0, 1)))
    found = accuracy.search_grid(method, [features, features])
    assert found[0]["parameters"] == {"weight": 2, "unused": 0}
    assert [entry["mAP"] for entry in found] == sorted((entry["mAP"] for entry in found), reverse=True)
    assert found[0]["mAP"] == pytest.approx(accuracy.mean_map([accuracy.evaluate(features, None)]))
    assert {entry["parameters"]["weight"] for entry in found[-2:]} == {-1}


def test_measure_counts_every_query_once(features):
    calls = []

    def rank(query, gallery):
        calls.append((len(query), len(gallery)))
        return query @ gallery.T

    found = accuracy.measure(rank, features, 3)
    assert calls[0] == (8, 50)  # warms up
    assert set(calls[1:]) == {(50, 50)}
    assert len(found["seconds"]) == 3
    assert found["ms_per_query"] == pytest.approx(1e3 * sorted(found["seconds"])[1] / 50)


def test_cached_features_are_those_of_the_checkpoint(tmp_path, monkeypatch):
    run = SimpleNamespace(folder=tmp_path, config={"size": [8, 4]}, arguments=argparse.Namespace(workers=0))
    dataset = SimpleNamespace(ids=np.array([3, 5]), modality=np.array([0, 1]))
    extracted = []

    def extract(model, given, workers):
        assert given is dataset
        extracted.append(torch.randn(2, 3))
        return extracted[-1]

    monkeypatch.setattr(accuracy, "load_model", lambda run, device: None)
    monkeypatch.setattr(accuracy.common, "open_dataset", lambda arguments, split, size: dataset)
    monkeypatch.setattr(accuracy.common, "extract_features", extract)
    (tmp_path / "checkpoint.pt").write_bytes(b"one")
    first = accuracy.cached_features(run, tmp_path / "features/a.npz", "cpu")
    again = accuracy.cached_features(run, tmp_path / "features/a.npz", "cpu")
    assert len(extracted) == 1
    assert_close(first.features, again.features, rtol=0, atol=0)
    assert again.identities.tolist() == [3, 5]
    assert again.modality.tolist() == [0, 1]
    (tmp_path / "checkpoint.pt").write_bytes(b"other")
    accuracy.cached_features(run, tmp_path / "features/a.npz", "cpu")
    assert len(extracted) == 2


def test_the_table_shows_parameters_class_accuracy_and_cost():
    values = {"per_trial": [80.0, 82.0], "mean": 81.0, "std": math.sqrt(2)}
    results = {direction: {"rank1": values, "mAP": values} for direction in accuracy.DIRECTIONS}
    cost = {"ms_per_query": 0.123, "peak_bytes": 5 * 2**20}
    row = {"name": "αQE", "uses": "gallery", "parameters": {"n": 5, "alpha": 3}, "results": results, "cost": cost}
    table = accuracy.make_table({"rows": [row]})
    shown = "81.00 ± 1.41"
    assert f"| αQE | n 5, α 3 | gallery | {shown} | {shown} | {shown} | {shown} | 0.12 | 5 |" in table


def test_options_after_the_dashes_go_to_training():
    own, extra = accuracy.parse_arguments(["--root", "a", "--trials", "1", "--", "--epochs", "3"])
    assert (own.root, own.trials, extra) == (Path("a"), [1], ["--epochs", "3"])
    runs = accuracy.plan(own, extra, own.root, ("baseline", "cri"), Path("models"))
    assert [(run.row, run.trial, run.arguments.epochs) for run in runs] == [("baseline", 1, 3), ("cri", 1, 3)]
