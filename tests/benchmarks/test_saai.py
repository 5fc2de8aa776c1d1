"""SAAI's tables: numbers from the checkpoints, Table 6's corners by hand, choosing, resuming, sweeps."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from benchmarks.tables import runs, saai, saai_table
from benchmarks.tables.data import REGDB, Data
from benchmarks.tables.records import read_rows
from vireid.nn import H2FT
from vireid.protocols import DIRECTIONS

TRAINED = ("saai", "saai_cift")


@pytest.fixture(scope="module")
def table(people, tmp_path_factory, training_here, tiny):
    """Return the folder of the whole benchmark, its rows by key, and the options that were given."""
    output = tmp_path_factory.mktemp("out")
    given = ["--root", str(people), "--output", str(output), "--trials", "1", "2", "--jobs", "1", "--rows", *TRAINED]
    with training_here(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(saai, "GRIDS", {v: entries[:2] for v, entries in saai.GRIDS.items()})
        saai.main([*given, "--", *tiny])
    rows = {row.key: row for row in read_rows(output / "results.csv")[1] if row.table == "accuracy"}
    return output, rows, given


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
        first.append(bool(hits[0]))
        ranks = [n for n, hit in enumerate(hits, 1) if hit]
        precisions.append(sum(n / rank for n, rank in enumerate(ranks, 1)) / len(ranks))
    return 100 * sum(first) / len(first), 100 * sum(precisions) / len(precisions)


def parameters_in(name):
    """k1, k2 and variant of a row's name; None without AIM."""
    found = re.search(r"\(k1 (\w+), k2 (\d+), (\w+) form", name)
    return found and (None if found[1] == "all" else int(found[1]), int(found[2]), found[3])


def test_every_row_is_what_the_checkpoints_give(table, tiny):
    output, rows, given = table
    plans = {row: saai.ROWS[row] for row in TRAINED}
    made = runs.make_runs(plans, tiny, data=Data("regdb", runs.Path(given[1])), output=output, trials=[1, 2])
    trained = {(run.row, run.trial): run for run in made}
    assert {key.split("/")[0] for key in rows} == set(TRAINED)
    for key, row in rows.items():
        model, kind, form = key.split("/")
        parameters = parameters_in(row.name)
        assert (parameters is None) == (form == "none")
        assert row.uses == ("query" if form == "none" and kind == "backbone" else "gallery")
        for direction, query in zip(DIRECTIONS, (0, 1), strict=True):
            for trial in (1, 2):
                run = trained[model, trial]
                x, ids, modality, *_ = run.features
                q, g = x[modality == query].double(), x[modality != query].double()
                if kind == "transferred":
                    assert isinstance(run.model.transfer, H2FT)
                    q, g = (part.double() for part in run.model.transfer.transfer(q.float(), g.float()))
                distance = plain_aim(q, g, *parameters) if parameters else 1 - normalized(q) @ normalized(g).T
                rank1, mean_ap = rank1_and_map(distance, ids[modality == query], ids[modality != query])
                two = distance.topk(2, dim=1, largest=False).values
                tied = int((two.diff(dim=1) < 1e-6).sum())  # these may fall either way in float32
                assert tied <= 2
                number = row.numbers(direction, "rank1")[trial - 1]
                assert number == pytest.approx(rank1, abs=(tied + 0.51) * 100 / len(q))
                assert row.numbers(direction, "mAP")[trial - 1] == pytest.approx(mean_ap, abs=0.3 + tied)


def test_rows_and_their_forms(table):
    _, rows, _ = table
    assert len(rows) == 3 * 5 + 10  # each kind of features, and Table 6
    assert parameters_in(rows["saai_cift/backbone/paper, released"].name) == (8, 2, "released")
    assert parameters_in(rows["saai/backbone/paper, paper, no removing, no expanding"].name) == (None, 1, "paper")
    assert rows["saai/backbone/chosen, paper"].name.endswith("paper form, chosen)")


def test_the_first_of_the_best_is_chosen(monkeypatch):
    reached = {1: 50.0, 2: 60.0, 4: 60.0, 6: 55.0}

    def evaluate(features, rerank, columns):
        return {direction: {"mAP": reached[rerank.keywords["k2"]]} for direction in DIRECTIONS}

    monkeypatch.setattr(saai, "evaluate", evaluate)
    run = SimpleNamespace(
        row="saai",
        features=None,
        method="saai",
        model=SimpleNamespace(transfer=None),
        data=SimpleNamespace(columns=REGDB),
    )
    assert saai.choose([run]) == {
        ("saai", "backbone", variant): {"k1": 4, "k2": 2} for variant in ("paper", "released")
    }


def test_who_chooses_and_what_a_form_is(tmp_path):
    made = runs.make_runs(saai.ROWS, [], data=Data("regdb", tmp_path), output=tmp_path, trials=[1])
    own = {"baseline": "baseline", "saai_cift": "saai_cift"}
    assert {run.row: saai.chooser_of(run) for run in made} == {row: own.get(row, "saai") for row in saai.ROWS}
    chosen = {("saai", "backbone", "paper"): {"k1": 5, "k2": 3}}
    for form, k1, k2 in (
        (saai.Form("paper", "paper"), 8, 2),
        (saai.Form("chosen", "paper"), 5, 3),
        (saai.Form("chosen", "paper", removing=False), None, 3),
        (saai.Form("chosen", "paper", expanding=False), 5, 1),
    ):
        assert saai.parameters_of(form, "backbone", "saai", chosen) == {"k1": k1, "k2": k2, "variant": "paper"}


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_without_both_steps_is_the_dense_formula(variant):
    q, g = torch.randn(5, 6, dtype=torch.double), torch.randn(9, 6, dtype=torch.double)
    form = saai.Form("paper", variant, removing=False, expanding=False)
    parameters = saai.parameters_of(form, "backbone", "saai", {})
    a_qg, a_gg = normalized(q) @ normalized(g).T, normalized(g) @ normalized(g).T
    star = a_qg @ a_gg if variant == "paper" else normalized(a_qg) @ normalized(a_gg).T
    assert_close(saai.rank_by(parameters, "backbone", None)(q, g), 1 - a_qg - star)


def test_the_text_of_the_table(table):
    output, *_ = table
    text = (output / "table.md").read_text(encoding="utf-8")
    about, read = read_rows(output / "results.csv")
    assert saai_table.make_table(about, read) == text
    assert about["chosen_on"].startswith("2 training identities per trial")
    names = re.findall(r"^\| ([^|]+?) \| (query|gallery) \|", text, flags=re.MULTILINE)
    assert names[:2] == [("SAFL", "query"), ("SAFL + AIM (k1 8, k2 2, paper form)", "gallery")]
    assert ("SAFL + AIM (k1 all, k2 1, released form)", "gallery") in names
    assert ("CIFT ∘ SAAI, transferred", "gallery") in names
    pairs = re.findall(r"^\| ([^|]+?) \| ([^|]+?) \| [+-]\d", text, flags=re.MULTILINE)
    assert ("CIFT ∘ SAAI", "SAFL") in pairs
    assert ("CIFT ∘ SAAI, transferred", "CIFT ∘ SAAI") in pairs
    assert "Quoted" not in text  # of other data


def test_what_is_complete_is_not_trained_again(table, monkeypatch, tiny):
    output, _, given = table
    trained = []
    monkeypatch.setattr(runs, "train", lambda run, **_: trained.append((run.row, run.trial)))
    monkeypatch.setattr(saai, "evaluate_all", lambda *args: [saai.Row("accuracy", "a/backbone/none", "A")])
    monkeypatch.setattr(saai, "choose", lambda choosers: {})
    monkeypatch.setattr(saai, "write_results", lambda *args, **about: None)
    monkeypatch.setattr(saai, "make_table", lambda *args: "")
    saai.main([*given, "--", *tiny])
    assert trained == []
    features = output / "saai" / "2" / "features.npz"
    kept = features.read_bytes()
    features.unlink()  # as if stopped before the evaluation
    saai.main([*given, "--", *tiny])
    assert trained == [("saai", 2)]
    features.write_bytes(kept)
    with pytest.raises(ValueError, match=r"holds a run with other settings \(lr 0\.001 -> 0\.002\)"):
        saai.main([*given, "--", *tiny, "--lr", "2e-3"])


def test_sweep_takes_the_run_that_the_table_has(table, tmp_path, trained_here, tiny):
    pytest.importorskip("matplotlib")
    output, rows, given = table
    options = ["--root", given[1], "--trials", "1", "--jobs", "1", "--table", str(output)]
    options += ["--output", str(tmp_path), "--figure", str(tmp_path / "parts.svg")]
    saai.main(["sweep", "--parameter", "parts", "--values", "3", "7", *options, "--", *tiny])
    assert trained_here == [("parts_3", 1)]  # 7 is the default
    about, found = read_rows(tmp_path / "results.csv")
    assert about["parameter"] == "parts"
    assert [(row.key, row.name) for row in found] == [("3", "--parts 3"), ("7", "--parts 7")]
    for direction in DIRECTIONS:
        for metric, form in (("mAP", "none"), ("mAP + AIM", "paper, paper")):
            expected = rows[f"saai/backbone/{form}"].numbers(direction, "mAP")[0]
            assert found[1].numbers(direction, metric) == pytest.approx([expected])
    assert (tmp_path / "parts.svg").stat().st_size > 1000


def test_quotes_only_what_is_of_the_same_data():
    quoted = saai.quote(saai.QUOTED, "roadscene-dev", "1, 2, 3")
    assert [(row.name, row.uses) for row in quoted] == [
        ("Baseline", "query"),
        ("CIFT†", "query"),
        ("CIFT", "gallery"),
        ("Baseline + AIM (k1 8, k2 2, released form)", "gallery"),
    ]
    assert saai.quote(saai.QUOTED, "RegDB", "1, 2, 3") == []
    assert saai.quote(saai.QUOTED, "roadscene-dev", "1, 2") == []
