"""The re-ranking benchmarks' own code: features, contenders, the process that watches, the validation split."""

import argparse
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from benchmarks.speed import peers, rerank
from benchmarks.speed import postprocessing as dense
from benchmarks.tables import rerank_accuracy as accuracy
from benchmarks.tables.cift import Method, grid
from vireid._ops import normalize_rows
from vireid.data import RegDBDataset
from vireid.protocols import RegDB

WATCHED = """
import json, sys, time
print(json.dumps({"ready": True}), flush=True)
exec(sys.argv[1])
"""


@pytest.fixture
def data():
    return rerank.clustered_features(40, 150, 24, noise=1.0)


# -------------------------------------------------------------------------------------------------- features


def test_clustered_features_are_the_same_each_time_and_of_their_identities(data):
    again = rerank.clustered_features(40, 150, 24, noise=1.0)
    for one, other in zip(data, again, strict=True):
        assert_close(one, other, rtol=0, atol=0)
    other = rerank.clustered_features(40, 150, 24, noise=1.0, seed=1)
    assert not torch.equal(data.gallery, other.gallery)
    assert data.query.shape == (40, 24)
    assert data.gallery.shape == (150, 24)
    assert data.gallery_ids.bincount().tolist() == [25] * 6
    assert set(data.query_ids.tolist()) == set(range(6))


def test_clustered_features_without_noise_are_their_identities(data):
    exact = rerank.clustered_features(40, 150, 24, noise=0.0)
    assert_close(exact.query, exact.gallery[exact.query_ids])  # the first gallery images are one of each identity
    assert rerank.mean_ap(1 - normalize_rows(exact.query) @ normalize_rows(exact.gallery).T, SETTING) == 100
    noisy = rerank.clustered_features(40, 150, 24, noise=3.0)
    assert rerank.mean_ap(1 - normalize_rows(noisy.query) @ normalize_rows(noisy.gallery).T, SETTING) < 60


SETTING = rerank.Setting(40, 150, 24, 1.0)


def test_a_setting_asks_for_the_nearest_alone_where_all_distances_would_be_too_many():
    assert SETTING.top is None
    assert rerank.SETTINGS["market"].top is None
    assert rerank.SETTINGS["msmt17"].top == rerank.TOP


# -------------------------------------------------------------------------------------------------- contenders


@pytest.mark.parametrize(("other", "ours"), peers.SAME.items())
def test_contenders_of_one_method_agree(data, other, ours):
    if not peers.installed(other):
        pytest.skip(f"{other} is not installed")
    assert_close(
        peers.run(other, data.query, data.gallery, None),
        peers.run(ours, data.query, data.gallery, None),
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize("name", ["aim", "aim_paper", "k_reciprocal", "gnn"])
def test_our_contenders_answer_with_the_nearest_where_asked(data, name):
    distance = peers.run(name, data.query, data.gallery, None)
    values, indices = peers.run(name, data.query, data.gallery, 5)
    assert_close(values, distance.sort(dim=1).values[:, :5], rtol=0, atol=1e-5)
    assert_close(values, distance.gather(1, indices), rtol=0, atol=1e-5)


def test_floors_throw_their_work_away(data):
    assert peers.run("products", data.query, data.gallery, None) is None
    assert peers.run("top_k_pass", data.query, data.gallery, None) is None


def test_every_contender_has_a_label_and_a_floor_among_the_contenders():
    assert peers.CONTENDERS.keys() == peers.LABELS.keys()
    assert set(peers.FLOORS) == set(rerank.ALL) - {"products", "top_k_pass"}
    assert set(peers.FLOORS.values()) == {"products", "top_k_pass"}


def test_a_peer_is_loaded_from_its_file_alone(tmp_path, monkeypatch, data):
    package = tmp_path / "torchreid"
    (package / "reid/utils").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('its package needs much that is not here')")
    (package / "reid/utils/rerank.py").write_text(
        "def re_ranking(q_g, q_q, g_g, k1, k2, lambda_value):\n"
        "    assert q_q.shape == (40, 40) and (q_q.diagonal() == 0).all()\n"
        "    assert g_g.shape == (150, 150) and (k1, k2, lambda_value) == (20, 6, 0.3)\n"
        "    return q_g ** 2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert peers.installed("torchreid_k_reciprocal")
    squared = 2 - 2 * normalize_rows(data.query) @ normalize_rows(data.gallery).T
    assert_close(peers.run("torchreid_k_reciprocal", data.query, data.gallery, None), squared, rtol=0, atol=1e-5)


def test_a_missing_peer_is_told(monkeypatch, data):
    monkeypatch.setattr(peers, "FILES", {"torchreid": "no/such/file.py", "fastreid": "no/such/file.py"})
    assert not peers.installed("torchreid_k_reciprocal")
    assert peers.installed("gnn")
    with pytest.raises(ImportError, match="pip install --no-deps fastreid"):
        peers.run("fastreid_k_reciprocal", data.query, data.gallery, None)


# -------------------------------------------------------------------------------------------------- watching


@pytest.fixture
def watch(tmp_path, monkeypatch):
    script = tmp_path / "watched.py"
    script.write_text(WATCHED)
    monkeypatch.syspath_prepend(str(tmp_path))
    limits = {"threads": 1, "limit": 60.0, "memory": 4.0}
    return lambda code, **others: rerank.watched("watched", [code], **(limits | others))


def test_watched_returns_the_lines_after_the_first(watch):
    code = "import os\nfor n in range(2): print(json.dumps({'n': n, 'threads': os.environ['OMP_NUM_THREADS']}))"
    assert watch(code) == ([{"n": 0, "threads": "1"}, {"n": 1, "threads": "1"}], None)


def test_watched_stops_what_takes_too_long_and_keeps_what_was_said(watch):
    lines, stopped = watch("print(json.dumps({'n': 1}), flush=True); time.sleep(60)", limit=0.3)
    assert (lines, stopped) == ([{"n": 1}], "time")


def test_watched_stops_what_takes_too_much_memory(watch):
    lines, stopped = watch("x = bytearray(b'1') * 2**29; time.sleep(60)", memory=0.25)
    assert (lines, stopped) == ([], "memory")


def test_watched_says_what_failed(watch, capfd):
    assert watch("raise KeyError('mine')") == ([], "error")
    assert "mine" in capfd.readouterr().err


def test_what_notices_itself_that_memory_does_not_suffice(watch):
    assert watch("print(json.dumps({'stopped': 'memory'}))") == ([], "memory")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9")])
def test_guarded_says_that_memory_does_not_suffice(capsys, error):
    def fail():
        raise error

    rerank.guarded(fail)
    assert json.loads(capsys.readouterr().out) == {"stopped": "memory"}


def test_guarded_lets_other_errors_through():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        rerank.guarded(lambda: torch.ones(2, 2) @ torch.ones(3, 3))


# -------------------------------------------------------------------------------------------------- results


def test_difference_compares_the_same_pairs(tmp_path):
    whole = np.array([[0.1, 0.2, 0.3], [0.6, 0.5, 0.4]])
    np.savez(tmp_path / "whole.npz", values=whole)
    np.savez(tmp_path / "other.npz", values=whole + np.array([[0, 0, 0.25], [0, 0, 0]]))
    np.savez(tmp_path / "nearest.npz", values=[[0.1, 0.2], [0.4, 0.5 + 0.125]], indices=[[0, 1], [2, 1]])
    assert rerank.difference(tmp_path / "whole.npz", tmp_path / "other.npz") == pytest.approx(0.25)
    assert rerank.difference(tmp_path / "nearest.npz", tmp_path / "whole.npz") == pytest.approx(0.125)
    assert rerank.difference(tmp_path / "whole.npz", tmp_path / "none.npz") is None
    assert rerank.difference(tmp_path / "whole.npz", tmp_path / "nearest.npz") is None


def test_the_benchmark_runs_whole(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(rerank.SETTINGS, "regdb", rerank.Setting(40, 150, 24, 1.0, ("products", "aim", "dense_aim")))

    def at_once(script, options, **limits):  # as the fresh process does it, without the process
        assert options[:2] == ["--case", "regdb"]
        rerank.main(options)
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
        return lines[1:], None

    monkeypatch.setattr(rerank, "watched", at_once)
    rerank.main(["--settings", "regdb", "--repeats", "2", "--threads", "1", "--output", str(tmp_path / "out.json")])
    content = json.loads((tmp_path / "out.json").read_text())
    found = content["results"]["regdb"]
    assert (found["queries"], found["gallery"], found["dim"]) == (40, 150, 24)
    cases = found["cases"]
    assert list(cases) == ["products", "aim", "dense_aim"]
    for case in cases.values():
        assert len(case["runs"]) == 2
        seconds = [run["seconds"] for run in case["runs"]]
        assert case["median_s"] == pytest.approx(sum(seconds) / 2)
    assert cases["aim"]["times_floor"] == pytest.approx(cases["aim"]["median_s"] / cases["products"]["median_s"])
    assert cases["dense_aim"]["difference_to_ours"] < 1e-5
    assert cases["products"]["mAP"] is None
    expected = rerank.mean_ap(
        dense.aim(*rerank.clustered_features(40, 150, 24, noise=1.0)[:2], k1=20, k2=6)[: rerank.COMPARED],
        rerank.SETTINGS["regdb"],
    )
    assert cases["aim"]["mAP"] == pytest.approx(expected)
    assert content["versions"]["numpy"] == np.__version__
    assert content["command"].startswith("python -m benchmarks.speed.rerank --settings regdb")
    shown = capsys.readouterr().out
    assert "40 × 150 × 24, distance" in shown
    assert "AIM (dense)" in shown


def test_latency_of_each_fitted_reranker(monkeypatch, capsys):
    monkeypatch.setattr(rerank, "LATENCY", rerank.Setting(12, 120, 16, 1.0))
    for name in rerank.FITTED:
        rerank.measure_latency(name, torch.device("cpu"))
        ready, found = (json.loads(line) for line in capsys.readouterr().out.splitlines())
        assert ready == {"ready": True}
        assert found["seconds"] > 0
        assert found["fit_seconds"] >= 0
    shown = rerank.show_latency(
        {
            "gallery": 120,
            "dim": 16,
            "answer": "nearest 100",
            "cases": {"aim": {"stopped": None, "seconds": 0.0025, "fit_seconds": 1.25}, "sim": {"stopped": "time"}},
        }
    )
    assert "2.50" in shown
    assert "stopped: time" in shown


@pytest.mark.parametrize("options", [["--threads", "0"], ["--limit", "-1"], ["--settings", "other"]])
def test_bad_options_end_the_benchmark(options, capsys):
    with pytest.raises(SystemExit):
        rerank.parse_arguments(options)
    assert options[0] in capsys.readouterr().err


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
