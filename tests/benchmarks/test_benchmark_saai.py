"""SAAI's tables: numbers from the checkpoints alone, Table 6's corners by hand, options, resuming, sweeps."""

import json
import math
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import common
import train_saai
from benchmarks.tables import runs, saai, saai_table
from vireid.data import generate_synthetic
from vireid.models import SAAI
from vireid.nn import H2FT

TINY = ["--epochs", "1", "--batches", "2", "--identities", "2", "--per-modality", "2", "--accelerator", "cpu"]
TRAINED = ("saai", "saai_cift")


def train_here(run, *, single_thread):
    """As `runs.train`, in this process: importing torch once is enough."""
    saved = sys.argv
    sys.argv = ["train_saai.py", *run.flags, *(["--resume"] if runs.state_of(run) == "interrupted" else [])]
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "source.json").write_text(json.dumps(runs.source_of(run)))
    with open(run.folder / "log.txt", "a") as log:
        log.write("a run\n")
    try:
        train_saai.main()
    finally:
        sys.argv = saved


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """What the whole benchmark leaves: (folder, its content, the options it was given)."""
    root, output = tmp_path_factory.mktemp("saai") / "data", tmp_path_factory.mktemp("out")
    generate_synthetic(root, layout="regdb", identities=12, images_per_camera=4, size=(64, 32))
    given = ["--root", str(root), "--output", str(output), "--trials", "1", "2", "--jobs", "1", "--rows", *TRAINED]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "train", train_here)
        patch.setattr(common, "cmc_curves", lambda *args: None)  # pictures take longer than the training
        patch.setattr(common, "draw_ranked", lambda *args: None)
        patch.setattr(saai, "GRIDS", {v: entries[:2] for v, entries in saai.GRIDS.items()})
        saai.main([*given, "--", *TINY])
    return output, json.loads((output / "results.json").read_text(encoding="utf-8")), given


def normalized(x):
    return x / x.norm(dim=1, keepdim=True)


def plain_aim(q, g, k1, k2, variant):
    """Distance by whole matrices, from Eq. 6-10."""

    def keep(a):
        if k1 is None:
            return a
        order = a.sort(dim=1, descending=True, stable=True).indices[:, :k1]
        return torch.zeros_like(a).scatter(1, order, a.gather(1, order))

    a_qg, a_gg = normalized(q) @ normalized(g).T, normalized(g) @ normalized(g).T
    near = a_gg.clone().fill_diagonal_(2).sort(dim=1, descending=True, stable=True).indices[:, :k2]
    kept, expanded = keep(a_qg), keep(a_gg)[near].mean(1)
    star = kept @ expanded if variant == "paper" else normalized(kept) @ normalized(expanded).T
    return 1 - a_qg - star


def rank1_and_map(distance, query_ids, gallery_ids):
    first, precisions = [], []
    for row, person in zip(distance, query_ids, strict=True):
        order = sorted(range(len(gallery_ids)), key=lambda j: (float(row[j]), j))
        hits = [gallery_ids[j] == person for j in order]
        first.append(hits[0])
        ranks = [n for n, hit in enumerate(hits, 1) if hit]
        precisions.append(sum(n / rank for n, rank in enumerate(ranks, 1)) / len(ranks))
    return 100 * sum(first) / len(first), 100 * sum(precisions) / len(precisions)


@pytest.fixture(scope="module")
def trained(table):
    """(row, trial) -> model, features in double, identities, modality, computed here from the checkpoints."""
    output, content, given = table
    found = {}
    for trial in (1, 2):
        config = content["settings"]["saai"] | {"root": Path(given[1]), "trial": trial, "no_cache": False, "workers": 0}
        dataset = common.open_dataset(saai.argparse.Namespace(**config), "test", (64, 32))
        for row in TRAINED:
            state = torch.load(output / row / str(trial) / "checkpoint.pt", weights_only=True)
            model, _ = train_saai.build_model(state["config"], state["identities"])
            model.load_state_dict(state["model"])
            x = common.extract_features(model.eval(), dataset).double()
            found[row, trial] = model, x, dataset.ids, dataset.modality
    return found


def test_every_row_is_what_the_checkpoints_give(table, trained):
    rows = table[1]["rows"]
    assert {row["row"] for row in rows} == set(TRAINED)
    checked = 0
    for row in rows:
        for direction, kind in (("visible_to_infrared", 0), ("infrared_to_visible", 1)):
            for number, trial in enumerate((1, 2)):
                model, x, ids, modality = trained[row["row"], trial]
                q, g = x[modality == kind], x[modality != kind]
                if row["features"] == "transferred":
                    assert isinstance(model.transfer, H2FT)
                    q, g = (part.double() for part in model.transfer.transfer(q.float(), g.float()))
                form = row["aim"]
                distance = 1 - normalized(q) @ normalized(g).T
                if form is not None:
                    distance = plain_aim(q, g, form["k1"], form["k2"], form["variant"])
                rank1, mean_ap = rank1_and_map(distance, ids[modality == kind], ids[modality != kind])
                results = row["results"][direction]
                two = distance.topk(2, dim=1, largest=False).values
                tied = int((two.diff(dim=1) < 1e-6).sum())  # these may fall either way in float32
                assert results["rank1"]["per_trial"][number] == pytest.approx(rank1, abs=(tied + 0.51) * 100 / len(q))
                assert tied <= 2
                assert results["mAP"]["per_trial"][number] == pytest.approx(mean_ap, abs=0.3 + tied)
                checked += 1
        assert row["uses"] == ("query" if row["aim"] is None and row["features"] == "backbone" else "gallery")
        mean_ap = row["results"]["infrared_to_visible"]["mAP"]
        assert mean_ap["mean"] == pytest.approx(sum(mean_ap["per_trial"]) / 2)
        assert mean_ap["std"] == pytest.approx(abs(np.subtract(*mean_ap["per_trial"])) / math.sqrt(2))
    assert checked == 4 * len(rows)


def test_rows_and_their_forms(table):
    found = saai_table.index(table[1]["rows"])
    assert len(found) == len(table[1]["rows"]) == 3 * 5 + 10  # each kind of features, and Table 6
    assert found["saai_cift", "backbone", "paper, released"]["aim"]["k1"] == 8
    neither = found["saai", "backbone", "paper, paper, no removing, no expanding"]
    assert (neither["aim"]["k1"], neither["aim"]["k2"]) == (None, 1)
    best = {
        (e["row"], e["features"], e["variant"]): max(e["grid"], key=lambda entry: entry["mAP"])
        for e in table[1]["validation"]
    }
    assert len(best) == 6
    for (row, kind, form), entry in found.items():
        if form in ("chosen, paper", "chosen, released"):
            pick = best[row, kind, form.split(", ")[1]]
            assert (entry["aim"]["k1"], entry["aim"]["k2"]) == (pick["k1"], pick["k2"])


def test_who_chooses(tmp_path):
    rows = {row: options for row, (_, options) in saai.ROWS.items()}
    planned = saai.make_runs(train_saai, rows, [], root=tmp_path, output=tmp_path, trials=[1])
    own = {"baseline": "baseline", "saai_cift": "saai_cift"}
    assert {run.row: saai.chooser_of(run) for run in planned} == {row: own.get(row, "saai") for row in rows}
    chosen = {("saai", "backbone", "paper"): {"k1": 5, "k2": 3}}
    for form, k1, k2 in (
        (saai.Form("paper", "paper"), 8, 2),
        (saai.Form("chosen", "paper"), 5, 3),
        (saai.Form("chosen", "paper", removing=False), None, 3),
        (saai.Form("chosen", "paper", expanding=False), 5, 1),
    ):
        assert saai.parameters_of(form, "backbone", "saai", chosen) == {"k1": k1, "k2": k2, "variant": "paper"}


def test_the_rows_train_what_they_say(tmp_path):
    rows = {row: options for row, (_, options) in saai.ROWS.items()}
    planned = saai.make_runs(train_saai, rows, [], root=tmp_path, output=tmp_path, trials=[1])
    default = runs.parse_training(train_saai, [])
    pd, cs, weight = default.part_diversity, default.center_separation, float(saai.AFFINITY[1])
    assert min(pd, cs, weight) > 0
    names = ("ablation", "part_diversity", "center_separation", "affinity_loss", "amend", "transfer")
    assert {run.row: tuple(run.config[name] for name in names) for run in planned} == {
        "baseline": ("baseline", pd, cs, 0, True, False),  # the ablation leaves the losses out
        "saai_id": ("saai", 0, 0, 0, True, False),
        "saai_id_pd": ("saai", pd, 0, 0, True, False),
        "saai_id_cs": ("saai", 0, cs, 0, True, False),
        "saai": ("saai", pd, cs, 0, True, False),
        "saai_affinity": ("saai", pd, cs, weight, True, False),
        "saai_affinity_control": ("saai", pd, cs, weight, False, False),
        "saai_cift": ("saai", pd, cs, 0, True, True),
    }


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_without_both_steps_is_the_dense_formula(variant):
    q, g = torch.randn(5, 6, dtype=torch.double), torch.randn(9, 6, dtype=torch.double)
    form = saai.Form("paper", variant, removing=False, expanding=False)
    parameters = saai.parameters_of(form, "backbone", "saai", {})
    a_qg, a_gg = normalized(q) @ normalized(g).T, normalized(g) @ normalized(g).T
    star = a_qg @ a_gg if variant == "paper" else normalized(a_qg) @ normalized(a_gg).T
    model = SAAI(torch.nn.Identity(), 3, channels=6)
    assert_close(saai.rank_by(parameters, "backbone", model)(q, g), 1 - a_qg - star)


def test_differences_and_table(table):
    output, content, _ = table
    rows = saai_table.index(content["rows"])
    entry = next(e for e in content["differences"] if (e["row"], e["minus"]) == ("CIFT ∘ SAAI", "SAFL"))
    ours, other = (
        rows[row, "backbone", "none"]["results"]["visible_to_infrared"]["mAP"]["per_trial"]
        for row in ("saai_cift", "saai")
    )
    found = entry["results"]["visible_to_infrared"]["mAP"]
    assert found["per_trial"] == pytest.approx(np.subtract(ours, other).tolist())
    assert found["above"] == sum(a > b for a, b in zip(ours, other, strict=True))
    text = (output / "table.md").read_text(encoding="utf-8")
    names = re.findall(r"^\| ([^|]+?) \| (query|gallery) \|", text, flags=re.MULTILINE)
    assert names[:2] == [("SAFL", "query"), ("SAFL + AIM (k1 8, k2 2, paper form)", "gallery")]
    assert ("SAFL + AIM (k1 all, k2 1, released form)", "gallery") in names
    assert ("CIFT ∘ SAAI, transferred", "gallery") in names
    assert "Quoted" not in text  # of other data
    assert content["quoted"] is None


def test_what_is_complete_is_not_trained_again(table, monkeypatch):
    output, content, given = table
    trained = []
    monkeypatch.setattr(runs, "train", lambda run, **_: trained.append((run.row, run.trial)))
    monkeypatch.setattr(saai, "evaluate_all", lambda *args: {"rows": [], "differences": [], "diagnostics": {}})
    monkeypatch.setattr(saai, "choose", lambda choosers: ({}, []))
    before = (output / "results.json").read_bytes(), (output / "table.md").read_bytes()
    saai.main([*given, "--", *TINY])
    assert trained == []
    metrics = output / "saai" / "2" / "metrics.json"
    text = metrics.read_text()
    metrics.unlink()  # as if stopped before the evaluation
    saai.main([*given, "--", *TINY])
    assert trained == [("saai", 2)]
    metrics.write_text(text)
    with pytest.raises(ValueError, match=r"holds a run with other settings \(lr 0\.001 -> 0\.002\)"):
        saai.main([*given, "--", *TINY, "--lr", "2e-3"])
    for name, content in zip(("results.json", "table.md"), before, strict=True):
        (output / name).write_bytes(content)


def test_checkpoints_of_another_run_are_noticed(table):
    output, _, given = table
    run = saai.make_runs(train_saai, {"saai": ()}, TINY, root=Path(given[1]), output=output, trials=[1])[0]
    data = saai.features_of(run, output / "features", "cpu")
    wrong = {"backbone": {d: {"rank1": -50.0, "mAP": -50.0} for d in saai.DIRECTIONS}}
    with pytest.raises(RuntimeError, match=r"metrics\.json and checkpoint\.pt disagree"):
        runs.check_features(run, wrong, *data)


def test_sweep_takes_the_run_that_the_table_has(table, tmp_path, monkeypatch):
    output, content, given = table
    trained = []

    def note(run, **options):
        trained.append(run.row)
        train_here(run, **options)

    monkeypatch.setattr(runs, "train", note)
    monkeypatch.setattr(common, "cmc_curves", lambda *args: None)
    monkeypatch.setattr(common, "draw_ranked", lambda *args: None)
    options = ["--root", given[1], "--trials", "1", "--jobs", "1", "--table", str(output)]
    options += ["--output", str(tmp_path), "--figure", str(tmp_path / "parts.svg")]
    saai.main(["sweep", "--parameter", "parts", "--values", "3", "7", *options, "--", *TINY])
    assert trained == ["parts_3"]  # 7 is the default
    found = json.loads((tmp_path / "results.json").read_text())
    assert [(r["value"], r["trial"], r["direction"]) for r in found["records"]] == [
        (value, 1, direction) for value in (3, 7) for direction in saai.DIRECTIONS
    ]
    rows = saai_table.index(content["rows"])
    for record in found["records"][2:]:
        for name, form in (("mAP", "none"), ("mAP + AIM", "paper, paper")):
            expected = rows["saai", "backbone", form]["results"][record["direction"]]["mAP"]["per_trial"][0]
            assert record[name] == pytest.approx(expected)
    assert (tmp_path / "parts.svg").stat().st_size > 1000
    assert sorted(os.listdir(tmp_path)) == ["features", "parts.svg", "parts_3", "results.json"]


def test_quotes_only_what_is_of_the_same_data(tmp_path):
    quoted = saai.quote(saai.QUOTED, Path("elsewhere/roadscene-dev"), [1, 2, 3])
    names = [(row["name"], row["uses"]) for row in quoted["rows"]]
    assert names == [("Baseline", "query"), ("CIFT†", "query"), ("CIFT", "gallery"), ("Baseline + AIM", "gallery")]
    content = json.loads(saai.QUOTED.read_text(encoding="utf-8"))
    cift = next(r for r in content["rows"] if (r["row"], r["features"]) == ("cri", "transferred"))
    assert quoted["rows"][2]["results"] == cift["results"]
    assert saai_table.quoted_name(quoted["rows"][3]) == "Baseline + AIM (k1 8, k2 2, released form)"
    assert saai.quote(saai.QUOTED, Path("RegDB"), [1, 2, 3]) is None
    assert saai.quote(saai.QUOTED, Path("roadscene-dev"), [1, 2]) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["--trials", "1", "1"], r"--trials must name each once, got \[1, 1\]"),
        (["--rows", "none"], "invalid choice: 'none'"),
        (["sweep", "--parameter", "colour", "--values", "1"], "--parameter must be an option of train_saai.py"),
        (["sweep", "--parameter", "parts", "--values", "few"], "--values must be numbers, got 'few'"),
        (["sweep", "--parameter", "parts", "--values", "3", "3"], "--values must name each once"),
        (["--", "--parts", "x"], "argument --parts: invalid int value: 'x'"),
    ],
)
def test_bad_options(tmp_path, capsys, given, message):
    at = given.index("--") if "--" in given else len(given)
    with pytest.raises(SystemExit):
        saai.main([*given[:at], "--root", str(tmp_path), *given[at:]])
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--variant", "Features=--parts 3"], "a folder of its own, got 'Features'"),
        (["--variant", "only a name"], "a variant must be name=options of train_saai.py"),
        (["--", "--trial", "2"], "--trial is set by this benchmark"),
    ],
)
def test_bad_rows(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        saai.main(["--root", str(tmp_path), "--output", str(tmp_path / "out"), *given])
