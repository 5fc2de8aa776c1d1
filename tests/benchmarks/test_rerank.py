"""The benchmark of the re-rankers: features, contenders, a run."""

import json

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from benchmarks.speed import peers, rerank
from benchmarks.speed import postprocessing as dense
from benchmarks.speed.measure import read_table, value_of
from vireid._ops import normalize_rows


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


@pytest.mark.parametrize(
    "name",
    [
        "aim",
        "aim_paper",
        "k_reciprocal",
        "gnn",
        "k_reciprocal_alone",
        "gnn_alone",
        "cmkr",
        "ecn",
        "sim",
        "query_expansion",
    ],
)
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
    said = []

    def at_once(module, options, **limits):  # as the fresh process does it, without the process
        assert (module, options[:2]) == (rerank.MODULE, ["--case", "regdb"])
        rerank.main(options)
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
        said.append(lines[1]["seconds"])
        return lines[1:], None

    monkeypatch.setattr(rerank, "watched", at_once)
    output = tmp_path / "out.csv"
    rerank.main(["--settings", "regdb", "--repeats", "2", "--threads", "1", "--output", str(output)])
    about, rows = read_table(output)
    assert {row["size"] for row in rows} == {"regdb, 40 x 150 x 24, noise 1.0, distance"}
    methods = [peers.LABELS[case] for case in ("products", "aim", "dense_aim")]
    assert list(dict.fromkeys(row["method"] for row in rows)) == ["no re-ranking", *methods]
    for n, method in enumerate(methods):
        assert value_of(rows, "median_s", method=method) == pytest.approx((said[n] + said[n + 3]) / 2)
    assert value_of(rows, "difference_to_ours", method=methods[2]) < 1e-5
    assert value_of(rows, "mAP", method=methods[0]) is None
    features = rerank.clustered_features(40, 150, 24, noise=1.0)
    distance = dense.aim(*features[:2], k1=20, k2=6)[: rerank.COMPARED]
    assert value_of(rows, "mAP", method=methods[1]) == pytest.approx(rerank.mean_ap(distance, SETTING))
    assert f"numpy {np.__version__}" in about["versions"]
    assert about["command"].startswith("python -m benchmarks.speed.rerank --settings regdb")
    shown = capsys.readouterr().out
    assert "40 x 150 x 24, noise 1.0, distance" in shown
    assert "AIM (dense)" in shown


def test_a_size_of_ones_own_is_in_place_of_the_settings(monkeypatch):
    asked = []
    monkeypatch.setattr(rerank, "watched", lambda module, options, **limits: asked.append(options) or ([], "time"))
    rerank.main(["--size", "5", "9", "4", "--contenders", "sim", "aim", "--threads", "1", "--repeats", "1"])
    assert [options[1:3] for options in asked] == [["size", "aim"], ["size", "sim"]]
    assert all(options[-4:] == ["--size", "5", "9", "4"] for options in asked)


def test_latency_of_each_fitted_reranker(monkeypatch, capsys, tmp_path):
    setting = rerank.Setting(12, 120, 16, 1.0, tuple(rerank.FITTED))
    monkeypatch.setitem(rerank.LATENCIES, "latency", setting)
    found = {}
    for name in rerank.FITTED:
        rerank.measure_latency(name, setting, torch.device("cpu"), tmp_path / f"{name}.npz")
        ready, found[name] = (json.loads(line) for line in capsys.readouterr().out.splitlines())
        assert ready == {"ready": True}
        assert found[name]["median_s"] > 0
        assert found[name]["fit_s"] >= 0

    for name in rerank.ANEW:
        ours = tmp_path / f"{name.removesuffix('_anew')}.npz"
        assert rerank.difference(ours, tmp_path / f"{name}.npz") < 1e-5

    def at_once(module, options, **limits):
        return ([], "time") if options[2] == "sim" else ([found[options[2]]], None)

    monkeypatch.setattr(rerank, "watched", at_once)
    rerank.main(["--settings", "latency", "--threads", "1"])
    shown = capsys.readouterr().out
    assert "one query at a time, gallery 120 x 16, nearest 100" in shown
    assert [line.split()[-2] for line in shown.splitlines() if line.startswith("SIM")] == ["time"]


@pytest.mark.parametrize(
    "options", [["--repeats", "0"], ["--memory", "-1"], ["--settings", "none"], ["--size", "0", "1", "1"]]
)
def test_bad_options_end_the_benchmark(options, capsys):
    with pytest.raises(SystemExit):
        rerank.main(options)
    assert options[0] in capsys.readouterr().err
