"""The table of accuracy beside cost: the validation split, choosing, measuring, the whole of it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks.speed import rerank
from benchmarks.tables import rerank_accuracy as accuracy
from benchmarks.tables import validation
from benchmarks.tables.cift import Method, grid
from benchmarks.tables.data import METRICS, REGDB, Data, Features, evaluate
from benchmarks.tables.records import read_rows
from vireid._ops import normalize_rows
from vireid.data import RegDBDataset
from vireid.protocols import DIRECTIONS, RegDB


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
    data = Data("regdb", layout)
    assert validation.write_validation_split(data, folder, [1, 2], 0.5) == (Data("regdb", folder), 3)
    train, test = (RegDBDataset(folder, split, trial=1) for split in ("train", "test"))
    assert sorted(set(train.ids.tolist())) == [2, 4, 6]
    assert sorted(set(test.ids.tolist())) == [9, 11, 30]
    assert len(train) == len(test) == 12
    assert sorted(set(RegDBDataset(folder, "test", trial=2).ids.tolist())) == [7, 8, 10]
    validation.write_validation_split(data, folder, [1, 2], 0.5)  # once more is no change
    with pytest.raises(ValueError, match="another --root or --share"):
        validation.write_validation_split(data, folder, [1], 0.34)
    assert sorted(set(RegDBDataset(folder, "test", trial=1).ids.tolist())) == [9, 11, 30]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_validation_split_has_two_sides(layout, tmp_path, share):
    with pytest.raises(ValueError, match="both sides"):
        validation.write_validation_split(Data("regdb", layout), tmp_path / "validation", [1], share)


@pytest.fixture
def features():
    data = rerank.clustered_features(50, 50, 16, noise=1.2)
    ids = torch.cat([data.query_ids, data.gallery_ids])
    return Features(torch.cat([data.query, data.gallery]), ids, torch.arange(2).repeat_interleave(50))


def test_evaluate_is_the_protocol_in_both_directions(features):
    found = evaluate(features)
    for direction in DIRECTIONS:
        mean = RegDB(direction).evaluate(*features).rows[0].mean
        assert found[direction] == {metric: mean[metric] for metric in METRICS}
    assert validation.mean_map([found]) == pytest.approx(sum(v["mAP"] for v in found.values()) / 2)


def test_the_best_mean_map_is_chosen_and_the_first_of_equals(features):
    def toward(query, gallery, *, weight, unused):
        distance = 1 - normalize_rows(query) @ normalize_rows(gallery).T
        return weight * distance

    method = Method("toward", toward, None, grid(weight=(-1, 2, 1), unused=(0, 1)))
    run = SimpleNamespace(features=features, data=SimpleNamespace(columns=REGDB))
    assert validation.choose(method, [run, run]) == {"weight": 2, "unused": 0}


def test_measure_counts_every_query_once(features):
    calls = []

    def rank(query, gallery):
        calls.append((len(query), len(gallery)))
        return query @ gallery.T

    run = SimpleNamespace(features=features, data=SimpleNamespace(columns=REGDB))
    found = accuracy.measure(rank, run, 3)
    assert calls[0] == (8, 50)  # warms up
    assert set(calls[1:]) == {(50, 50)}
    assert len(calls) == 1 + 3 + ("peak_bytes" in found)
    assert found["ms_per_query"] > 0


def test_the_whole_table_on_drawn_people(people, tmp_path, monkeypatch, capsys, trained_here, tiny):
    output = tmp_path / "out"
    methods = tuple(replace(m, grid=m.grid[:2]) for m in accuracy.METHODS if m.name in ("αQE", "AIM, paper"))
    monkeypatch.setattr(accuracy, "METHODS", methods)

    def run_self(module, options):  # as the fresh process does it, without the process
        assert module == accuracy.MODULE
        capsys.readouterr()
        accuracy.main(options)
        return capsys.readouterr().out.splitlines()[-1]

    monkeypatch.setattr(accuracy, "run_self", run_self)
    threads = str(torch.get_num_threads())
    given = ["--root", str(people), "--output", str(output), "--trials", "1", "--repeats", "1", "--threads", threads]
    accuracy.main([*given, "--", *tiny])
    assert trained_here == [("baseline", 1), ("cri", 1), ("baseline", 1)]
    about, rows = read_rows(output / "results.csv")
    names = ["none", "αQE", "AIM, paper", accuracy.OWN_FEATURES, "CIFT"]
    assert [row.key for row in rows if row.table == "accuracy"] == names
    assert [row.uses for row in rows if row.table == "accuracy"] == ["query", "gallery", "gallery", "query", "gallery"]
    assert about["chosen_on"] == "2 training identities per trial, by mean mAP"
    table = (output / "table.md").read_text(encoding="utf-8")
    assert accuracy.make_table(rows) == table
    found = {line.split(" | ")[0].removeprefix("| "): line.split(" | ") for line in table.splitlines()[2:]}
    assert [line[1] for line in found.values()][:2] == ["-", found["αQE"][1]]
    assert found["αQE"][1] in ("n 3, α 3", "n 5, α 3")
    assert found["CIFT"][1] == "k 4, tau_hom 0.4, tau_het 0.2"
    for line in found.values():
        assert float(line[7]) > 0  # ms per query
