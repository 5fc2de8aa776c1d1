"""The benchmarks' own code: post-processing against plain loops written from the papers, and the CIFT table's parts."""

import json
import math
import os
import re
from functools import partial

import pytest
import torch
from torch.testing import assert_close

import common
from benchmarks.speed import postprocessing as pp
from benchmarks.tables import cift, cift_table, runs
from vireid.data import generate_synthetic
from vireid.models import CIFT, Baseline
from vireid.nn import GFT, H2FT


@pytest.fixture(params=["random", "clustered", "tiny", "one query"])
def features(request, seed):
    nq, ng = {"random": (7, 11), "clustered": (15, 20), "tiny": (2, 3), "one query": (1, 9)}[request.param]
    q, g = torch.randn(nq, 6, dtype=torch.double), torch.randn(ng, 6, dtype=torch.double)
    if request.param == "clustered":
        centers = 2 * torch.randn(5, 6, dtype=torch.double)
        q, g = q + centers[torch.arange(nq) % 5], g + centers[torch.arange(ng) % 5]
    return q, g


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def rank(scores, first=None):
    """Indices by descending score, ties by index; ``first`` before all others."""
    return sorted(range(len(scores)), key=lambda j: (j != first, -scores[j], j))


def loop_aim(q, g, k1, k2, variant):
    def keep(row, order):
        return [row[j] if j in order[:k1] else 0.0 for j in range(len(row))]

    a_gg = [[cosine(x, y) for y in g] for x in g]
    orders = [rank(row, i) for i, row in enumerate(a_gg)]
    kept = [keep(row, order) for row, order in zip(a_gg, orders, strict=True)]
    expanded = []
    for order in orders:
        near = order[:k2]
        expanded.append([sum(kept[l][j] for l in near) / len(near) for j in range(len(g))])  # noqa: E741
    result = []
    for x in q:
        row = [cosine(x, y) for y in g]
        noise_free = keep(row, rank(row))
        out = []
        for j in range(len(g)):
            if variant == "paper":
                star = sum(noise_free[l] * expanded[l][j] for l in range(len(g)))  # noqa: E741
            else:
                star = cosine(*torch.tensor([noise_free, expanded[j]], dtype=torch.double))
            out.append(1 - row[j] - star)
        result.append(out)
    return torch.tensor(result, dtype=torch.double)


def loop_k_reciprocal(q, g, k1, k2, lambda_value):
    x = [row / row.norm() for row in [*q, *g]]
    n = len(x)
    distance = [[float((a - b).square().sum()) for b in x] for a in x]
    distance = [[value / max(row) for value in row] for row in distance]
    ranking = [rank([-value for value in row], i) for i, row in enumerate(distance)]

    def reciprocal(i, k):
        return {j for j in ranking[i][: k + 1] if i in ranking[j][: k + 1]}

    v = []
    for i in range(n):
        members = set(reciprocal(i, k1))
        for c in reciprocal(i, k1):
            extra = reciprocal(c, round(k1 / 2))
            if len(extra & reciprocal(i, k1)) > 2 / 3 * len(extra):
                members |= extra
        weights = [math.exp(-distance[i][j]) if j in members else 0.0 for j in range(n)]
        v.append([w / sum(weights) for w in weights])
    near = [ranking[i][:k2] for i in range(n)]
    v = [[sum(v[j][c] for j in near[i]) / len(near[i]) for c in range(n)] for i in range(n)]
    result = []
    for i in range(len(q)):
        out = []
        for j in range(len(q), n):
            smaller = sum(min(a, b) for a, b in zip(v[i], v[j], strict=True))
            out.append((1 - lambda_value) * (1 - smaller / (2 - smaller)) + lambda_value * distance[i][j])
        result.append(out)
    return torch.tensor(result, dtype=torch.double)


def loop_gnn(q, g, k1, k2, layers, alpha):
    x = [*q, *g]
    n = len(x)
    s = [[cosine(a, b) for b in x] for a in x]
    ranking = [rank(row, i) for i, row in enumerate(s)]
    a = torch.tensor([[float(j in ranking[i][:k1]) for j in range(n)] for i in range(n)], dtype=torch.double)
    for _ in range(layers):
        a = a + a.T
        rows = [sum(abs(s[i][j]) ** alpha * a[j] for j in ranking[i][:k2]) for i in range(n)]
        a = torch.stack([row / row.norm() for row in rows])
    result = [[1 - cosine(a[i], a[j]) for j in range(len(q), n)] for i in range(len(q))]
    return torch.tensor(result, dtype=torch.double)


def loop_query_expansion(q, g, n, alpha):
    result = []
    for x in q:
        scores = [cosine(x, y) for y in g]
        mean = x / x.norm()
        for j in rank(scores)[:n]:
            mean = mean + max(scores[j], 0.0) ** alpha * g[j] / g[j].norm()
        result.append([1 - cosine(mean, y) for y in g])
    return torch.tensor(result, dtype=torch.double)


def close(actual, expected):
    assert_close(actual, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("variant", ["released", "paper"])
@pytest.mark.parametrize(("k1", "k2"), [(4, 1), (3, 2), (5, 4), (100, 100)])
def test_aim(features, k1, k2, variant):
    close(pp.aim(*features, k1=k1, k2=k2, variant=variant), loop_aim(*features, k1, k2, variant))


@pytest.mark.parametrize(("k1", "k2", "lambda_value"), [(4, 2, 0.3), (5, 1, 0.0), (7, 3, 0.5), (60, 60, 1.0)])
def test_k_reciprocal(features, k1, k2, lambda_value):
    expected = loop_k_reciprocal(*features, k1, k2, lambda_value)
    close(pp.k_reciprocal(*features, k1=k1, k2=k2, lambda_value=lambda_value), expected)


def test_k_reciprocal_in_small_blocks(features, monkeypatch):
    expected = loop_k_reciprocal(*features, 6, 3, 0.3)
    monkeypatch.setattr(pp, "_PAIRS", 5)
    close(pp.k_reciprocal(*features, k1=6, k2=3), expected)


@pytest.mark.parametrize(
    ("k1", "k2", "layers", "alpha"), [(5, 2, 2, 2.0), (4, 3, 1, 3.0), (6, 1, 3, 0.5), (60, 60, 2, 2.0)]
)
def test_gnn(features, k1, k2, layers, alpha):
    expected = loop_gnn(*features, k1, k2, layers, alpha)
    close(pp.gnn(*features, k1=k1, k2=k2, layers=layers, alpha=alpha), expected)


@pytest.mark.parametrize(("n", "alpha"), [(1, 0.0), (3, 0.0), (3, 3.0), (50, 1.5)])
def test_query_expansion(features, n, alpha):
    close(pp.query_expansion(*features, n=n, alpha=alpha), loop_query_expansion(*features, n, alpha))


METHODS = [
    partial(pp.aim, k1=4, k2=2),
    partial(pp.k_reciprocal, k1=4, k2=2),
    partial(pp.gnn, k1=4, k2=2),
    partial(pp.query_expansion, n=2),
]


@pytest.mark.parametrize("method", METHODS)
def test_duplicates_and_zero_rows_stay_finite_and_inputs_unchanged(method):
    q = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    g = torch.tensor([[1.0, 0.0]] * 8 + [[0.0, 1.0], [0.0, 0.0]])
    before = q.clone(), g.clone()
    assert torch.isfinite(method(q, g)).all()
    assert torch.equal(q, before[0])
    assert torch.equal(g, before[1])


@pytest.mark.parametrize("method", METHODS)
def test_gallery_methods_do_not_see_other_queries(method):
    q, g = torch.randn(9, 5, dtype=torch.double), torch.randn(12, 5, dtype=torch.double)
    alone = torch.cat([method(row[None], g) for row in q])
    together = method(q, g)
    if method.func.uses == "gallery":
        close(together, alone)
    else:
        assert method.func.uses == "transductive"
        assert (together - alone).abs().max() > 1e-3


def test_nearest_breaks_ties_by_index():
    similarity = torch.tensor([[1.0, 2.0, 2.0, 2.0], [3.0, 0.0, 0.0, 0.0], [4.0, 3.0, 2.0, 1.0]])
    expected = [[0, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert pp._nearest(similarity, 2).int().tolist() == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q, g: pp.aim(q, g, k1=0, k2=1), "k1 must be at least 1, got 0"),
        (lambda q, g: pp.aim(q, g, k1=1, k2=1, variant="new"), "variant must be one of"),
        (lambda q, g: pp.aim(q, g[:, :2], k1=1, k2=1), "gallery must have shape"),
        (lambda q, g: pp.gnn(q, g[:0]), "gallery must hold at least one image"),
        (lambda q, g: pp.gnn(q * torch.nan, g), "query must be finite"),
        (lambda q, g: pp.k_reciprocal(q, g, lambda_value=1.5), "lambda_value must be in"),
        (lambda q, g: pp.query_expansion(q, g, n=1, alpha=-1), "alpha must be at least 0"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.randn(2, 3), torch.randn(4, 3))


def plan(tmp_path, *given, extra=()):
    arguments, after = cift.parse_arguments(["--root", "data", "--output", str(tmp_path), *given, "--", *extra])
    return cift.plan_runs(arguments, after)


def test_plan_has_every_row_of_every_trial_with_its_options(tmp_path):
    labels, runs = plan(
        tmp_path,
        "--trials",
        "2",
        "5",
        "--rows",
        "baseline",
        "cri",
        "--variant",
        "Other τ=--tau-hom 0.2",
        extra=["--k", "3"],
    )
    assert labels == {"baseline": "Baseline", "cri": "CIFT", "other_τ": "Other τ"}
    assert [(run.trial, run.row) for run in runs] == [(trial, row) for trial in (2, 5) for row in labels]
    assert {run.folder for run in runs} == {tmp_path / row / str(trial) for row in labels for trial in (2, 5)}
    for run in runs:
        assert (run.config["dataset"], run.config["trial"], run.config["k"]) == ("regdb", run.trial, 3)
        assert run.config["ablation"] == ("baseline" if run.row == "baseline" else "cri")
        assert run.config["tau_hom"] == (0.2 if run.row == "other_τ" else 0.4)


@pytest.mark.parametrize(
    ("given", "extra", "message"),
    [
        (["--variant", "no options"], [], "a variant must be name=options"),
        (["--variant", "CRI=--k 2"], [], "a folder of its own, got 'CRI'"),
        (["--variant", "x=--trial 2"], [], "--trial is set by this benchmark"),
        ([], ["--output=here"], "--output=here is set by this benchmark"),
    ],
)
def test_plan_refuses(tmp_path, given, extra, message):
    with pytest.raises(ValueError, match=message):
        plan(tmp_path, *given, extra=extra)


def test_state_of_a_run(tmp_path):
    run = plan(tmp_path, "--rows", "gft", "--trials", "1", extra=["--epochs", "3"])[1][0]
    assert runs.state_of(run) == "new"
    checkpoint = {"model": {}, "criterion": {}, "optimizer": {}, "identities": 2, "config": run.config}
    common.save_checkpoint(run.folder / "checkpoint.pt", checkpoint | {"epoch": 2})
    (run.folder / "source.json").write_text(json.dumps(runs.source_of(run)))
    (run.folder / "metrics.json").write_text("{}")
    assert runs.state_of(run) == "interrupted"  # an epoch is missing
    common.save_checkpoint(run.folder / "checkpoint.pt", checkpoint | {"epoch": 3})
    os.utime(run.folder / "metrics.json", (1, 1))
    assert runs.state_of(run) == "interrupted"  # metrics older than the checkpoint
    (run.folder / "metrics.json").write_text("{}")
    os.utime(run.folder / "checkpoint.pt", (1, 1))
    assert runs.state_of(run) == "complete"
    changed = plan(tmp_path, "--rows", "gft", "--trials", "1", extra=["--epochs", "4", "--k", "7"])[1][0]
    with pytest.raises(ValueError, match=r"other settings \(epochs 3 -> 4, k 4 -> 7\)"):
        runs.state_of(changed)
    (run.folder / "source.json").write_text(json.dumps({"root": "/elsewhere"}))
    with pytest.raises(ValueError, match=r"other settings \(root '/elsewhere' -> "):
        runs.state_of(run)


def both_ways(vi, vi_map, iv, iv_map):
    return {
        "visible_to_infrared": {"rank1": vi, "mAP": vi_map},
        "infrared_to_visible": {"rank1": iv, "mAP": iv_map},
    }


def test_summary_and_the_best_of_the_grid_for_each_column():
    method = cift.Method("x", pp.aim, {"k1": 1}, cift.grid(k1=(1, 2)))
    trials = [
        [both_ways(10, 50, 30, 7), both_ways(20, 40, 30, 8)],
        [both_ways(14, 52, 34, 7), both_ways(22, 44, 34, 8)],
    ]
    results, parameters = cift.best_of_grid(method, trials)
    assert results["visible_to_infrared"]["rank1"] == {"per_trial": [20, 22], "mean": 21, "std": pytest.approx(2**0.5)}
    assert results["visible_to_infrared"]["mAP"]["per_trial"] == [50, 52]
    assert parameters == {
        "visible_to_infrared": {"rank1": {"k1": 2}, "mAP": {"k1": 1}},
        "infrared_to_visible": {"rank1": {"k1": 1}, "mAP": {"k1": 2}},  # equal means: the first
    }
    assert cift_table.cell(results["visible_to_infrared"]["rank1"]) == "21.00 ± 1.41"
    assert cift_table.cell(runs.summary([3.0])) == "3.00"


def test_every_default_is_in_its_grid():
    for method in cift.METHODS:
        assert method.default is None or method.default in method.grid
        assert method.function.uses in ("gallery", "transductive")


def test_shared_jaccard_is_k_reciprocal():
    q, g = torch.randn(6, 4, dtype=torch.double), torch.randn(8, 4, dtype=torch.double)
    shared = cift.SharedJaccard()
    for parameters in cift.grid(k1=(2, 4), k2=(1, 3), lambda_value=(0.1, 0.5)):
        close(shared(q, g, **parameters), pp.k_reciprocal(q, g, **parameters))


class Images:
    """What `diagnose` reads of a data set: 4 identities, 3 images in each modality."""

    ids = torch.arange(4).repeat_interleave(6).numpy()
    modality = torch.arange(24).remainder(2).numpy()


@pytest.mark.parametrize("transfer", [None, H2FT(5, k=3), GFT(5, k=3, tau=0.3)])
def test_diagnostics_by_loops(transfer):
    backbone = torch.nn.Identity()
    model = Baseline(backbone, 4, dim=5) if transfer is None else CIFT(backbone, 4, dim=5, transfer=transfer)
    model.eval()
    x = (torch.randn(4, 5).repeat_interleave(6, 0) + 0.7 * torch.randn(24, 5)).double()
    model.double()
    found = runs.diagnose(model, x, Images.ids, Images.modality)
    ids, modality = Images.ids, Images.modality
    v = x if transfer is None else transfer.value(x).detach()
    right, wrong, margins = [], [], []
    for i in range(24):
        others = [j for j in range(24) if modality[j] != modality[i]]
        scores = {j: cosine(v[i], v[j]) for j in others}
        weakest = min(scores[j] for j in others if ids[j] == ids[i])
        right.append(weakest > max(scores[j] for j in others if ids[j] != ids[i]))
        near = sorted(others, key=lambda j: -scores[j])[:4]
        wrong += [(j in near) != (ids[j] == ids[i]) for j in others]
        gaps = [float((v[i] / v[i].norm() - v[j] / v[j].norm()).norm()) for j in range(24)]
        margins.append(
            sum(d for d, j in zip(gaps, ids, strict=True) if j != ids[i]) / 18
            - sum(d for d, j in zip(gaps, ids, strict=True) if j == ids[i]) / 5
        )
    assert found["Q_A"] == pytest.approx(100 * sum(right) / 24)
    assert found["error_rate"] == pytest.approx(100 * sum(wrong) / len(wrong))
    assert found["Q_X"] == pytest.approx(sum(margins) / 24)
    assert ("Q_Y" in found) == (transfer is not None)


def test_the_whole_benchmark_on_drawn_people(tmp_path, capsys):
    root, output = tmp_path / "data", tmp_path / "out"
    generate_synthetic(root, layout="regdb", identities=8, images_per_camera=4, size=(64, 32))
    given = ["--root", str(root), "--output", str(output), "--trials", "1", "--rows", "baseline", "cri"]
    options = ["--", "--epochs", "1", "--batches", "1", "--identities", "2", "--per-modality", "2"]
    options += ["--accelerator", "cpu"]
    cift.main(given + options)
    table = (output / "table.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    names = re.findall(r"^\| ([^|]+?) \| (query|gallery|transductive) \|", table, flags=re.MULTILINE)
    assert names[:3] == [("Baseline", "query"), ("CIFT†", "query"), ("CIFT", "gallery")]
    assert ("Baseline + k-reciprocal (k1 20, k2 6, λ 0.3)", "transductive") in names
    assert ("CIFT† + AIM, best of the grid", "gallery") in names

    content = json.loads((output / "results.json").read_text(encoding="utf-8"))
    by_name = {(row["name"], row.get("choice")): row["results"] for row in content["rows"]}
    metrics = json.loads((output / "cri" / "1" / "metrics.json").read_text(encoding="utf-8"))
    for row in metrics["rows"]:
        name = "CIFT" if row["features"] == "transferred" else "CIFT†"
        assert by_name[name, None][row["direction"]]["mAP"]["mean"] == row["mAP"]
    for direction, metric in cift_table.COLUMNS:
        default = by_name["Baseline + AIM", "default"][direction][metric]["mean"]
        best = by_name["Baseline + AIM", "best of the grid"][direction][metric]["mean"]
        assert (
            best == max(e["results"][direction][metric]["mean"] for e in content["grids"]["baseline"]["AIM"]) >= default
        )

    logs = {path: path.stat().st_mtime_ns for path in output.glob("*/1/log.txt")}
    assert len(logs) == 2
    (output / "baseline" / "1" / "metrics.json").unlink()  # as if stopped before the evaluation
    cift.main(given + options)
    again = {path.parts[-3]: path.stat().st_mtime_ns > time for path, time in logs.items()}
    assert again == {"baseline": True, "cri": False}
    assert (output / "table.md").read_text(encoding="utf-8") == table
