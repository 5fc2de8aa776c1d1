"""CIFT's table: the best of a grid, the diagnostics by loops, and the whole of it on drawn people."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from benchmarks.speed import postprocessing as pp
from benchmarks.tables import cift, runs
from benchmarks.tables.data import Data, Features
from benchmarks.tables.diagnose import diagnose
from benchmarks.tables.records import read_rows
from reference.postprocessing import cosine
from vireid.models import CIFT, Baseline
from vireid.nn import GFT, H2FT
from vireid.protocols import RegDB


def both_ways(vi, vi_map, iv, iv_map):
    return {
        "visible_to_infrared": {"rank1": vi, "mAP": vi_map},
        "infrared_to_visible": {"rank1": iv, "mAP": iv_map},
    }


def test_the_best_of_the_grid_is_chosen_for_each_column(monkeypatch):
    method = cift.Method("x", pp.aim, {"k1": 1}, cift.grid(k1=(1, 2)))
    monkeypatch.setitem(cift.PROCESSED, "baseline", (method,))
    trials = {
        1: {"x": [both_ways(10, 50, 30, 7), both_ways(20, 40, 30, 8)]},
        3: {"x": [both_ways(14, 52, 34, 7), both_ways(22, 44, 34, 8)]},
    }
    default, best, chosen = cift.post_processing_rows("baseline", "B", trials)
    assert [row.name for row in (default, best, chosen)] == ["B + x (k1 1)", "B + x, best of the grid", "B + x"]
    assert (default.uses, default.numbers("visible_to_infrared", "rank1")) == ("gallery", [10, 14])
    assert list(best.values.values()) == [
        {"1": 20, "3": 22},
        {"1": 50, "3": 52},
        {"1": 30, "3": 34},  # equal means: the first
        {"1": 8, "3": 8},
    ]
    assert [choice["all"] for choice in chosen.values.values()] == ["k1 2", "k1 1", "k1 1", "k1 2"]


def test_every_default_is_in_its_grid():
    for method in cift.METHODS:
        assert method.default is None or method.default in method.grid
        assert method.function.uses in ("gallery", "transductive")


def test_shared_jaccard_is_k_reciprocal():
    q, g = torch.randn(6, 4, dtype=torch.double), torch.randn(8, 4, dtype=torch.double)
    shared = cift.SharedJaccard()
    for parameters in cift.grid(k1=(2, 4), k2=(1, 3), lambda_value=(0.1, 0.5)):
        assert_close(shared(q, g, **parameters), pp.k_reciprocal(q, g, **parameters), rtol=0, atol=1e-9)


@pytest.mark.parametrize("transfer", [None, H2FT(5, k=3), GFT(5, k=3, tau=0.3)])
def test_diagnostics_by_loops(transfer):
    backbone = torch.nn.Identity()
    model = Baseline(backbone, 4, dim=5) if transfer is None else CIFT(backbone, 4, dim=5, transfer=transfer)
    model.eval().double()
    x = (torch.randn(4, 5).repeat_interleave(6, 0) + 0.7 * torch.randn(24, 5)).double()
    ids, modality = torch.arange(4).repeat_interleave(6), torch.arange(24) % 2
    run = SimpleNamespace(model=model, features=Features(x, ids, modality), data=Data("regdb", None))
    columns = list(diagnose(run).values())
    found = {name: sum(column[name] for column in columns) / 2 for name in columns[0]}
    v = x if transfer is None else transfer.value(x).detach()
    right, wrong, margins = [], [], []
    for i in range(24):
        others = [j for j in range(24) if modality[j] != modality[i]]
        scores = {j: cosine(v[i], v[j]) for j in others}
        weakest = min(scores[j] for j in others if ids[j] == ids[i])
        right.append(weakest > max(scores[j] for j in others if ids[j] != ids[i]))
        near = sorted(others, key=lambda j: -scores[j])[:4]
        wrong += [bool((j in near) != (ids[j] == ids[i])) for j in others]
        gaps = [float((v[i] / v[i].norm() - v[j] / v[j].norm()).norm()) for j in range(24)]
        margins.append(
            sum(d for d, j in zip(gaps, ids, strict=True) if j != ids[i]) / 18
            - sum(d for d, j in zip(gaps, ids, strict=True) if j == ids[i]) / 5
        )
    assert found["Q_A"] == pytest.approx(100 * sum(right) / 24)
    assert found["error_rate"] == pytest.approx(100 * sum(wrong) / len(wrong))
    assert found["Q_X"] == pytest.approx(sum(margins) / 24)
    assert ("Q_Y" in found) == (transfer is not None)


def test_the_whole_table_on_drawn_people(people, tmp_path, capsys, trained_here, tiny, monkeypatch):
    root, output = people, tmp_path / "out"
    small = tuple(replace(m, grid=m.grid[:1] + ((m.default,) if m.default else ())) for m in cift.METHODS)
    monkeypatch.setattr(cift, "PROCESSED", {"baseline": small, "cri": tuple(m for m in small if m.name == "AIM")})
    given = ["--root", str(root), "--output", str(output), "--trials", "1", "--rows", "baseline", "cri"]
    cift.main([*given, "--", *tiny])
    table = (output / "table.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    names = re.findall(r"^\| ([^|]+?) \| (query|gallery|transductive) \|", table, flags=re.MULTILINE)
    assert names[:3] == [("Baseline", "query"), ("CIFT†", "query"), ("CIFT", "gallery")]
    assert ("Baseline + k-reciprocal (k1 20, k2 6, λ 0.3)", "transductive") in names
    assert ("CIFT† + AIM, best of the grid", "gallery") in names

    about, rows = read_rows(output / "results.csv")
    assert (about["trials"], about["data"]) == ("1", "data")
    assert about["command"].startswith(f"python -m benchmarks.tables.cift --root {root}")
    assert cift.make_table(about, rows) == table
    found = {row.key: row for row in rows if row.table in ("accuracy", "post-processing")}
    run = runs.make_runs({"cri": cift.ROWS["cri"]}, tiny, data=Data("regdb", root), output=output, trials=[1])[0]
    for kind, rerank in (("backbone", None), ("transferred", run.model.transfer.distance)):
        for direction, metric in found[f"cri/{kind}"].values:
            report = RegDB(direction).evaluate(*run.features, rerank=rerank)
            assert found[f"cri/{kind}"].numbers(direction, metric) == [report.rows[0].mean[metric]]
    for column in found["baseline/AIM/best"].values:
        best, default = (found[f"baseline/AIM/{choice}"].numbers(*column) for choice in ("best", "default"))
        assert best >= default

    assert sorted(trained_here) == [("baseline", 1), ("cri", 1)]
    (output / "baseline" / "1" / "features.npz").unlink()  # as if stopped before the evaluation
    cift.main([*given, "--", *tiny])
    assert trained_here[2:] == [("baseline", 1)]
    assert (output / "table.md").read_text(encoding="utf-8") == table


@pytest.mark.slow
def test_a_run_in_a_process_of_its_own(people, tmp_path, tiny):
    plans = {"h2g": cift.ROWS["h2g"]}
    run = runs.make_runs(plans, tiny, data=Data("regdb", people), output=tmp_path / "out", trials=[1])[0]
    runs.train_all([run], 2)
    assert runs.state_of(run) == "complete"
    assert sorted(path.name for path in run.folder.iterdir() if path.is_file()) == [
        "checkpoint.pt",
        "features.npz",
        "log.txt",
        "run.json",
    ]
