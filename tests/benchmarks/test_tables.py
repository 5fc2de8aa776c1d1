"""The papers' tables by one command: lines and columns, one training for all of SYSU-MM01's settings, resuming."""

import pytest

from benchmarks.tables import __main__ as command
from benchmarks.tables import papers, reproduce
from benchmarks.tables.cift import Method
from benchmarks.tables.data import GALLERIES, Data
from benchmarks.tables.papers import PLANS, SYSU, TABLES
from benchmarks.tables.records import read_rows
from benchmarks.tables.runs import make_runs
from places import ROOT
from vireid.data import generate_synthetic
from vireid.protocols import DIRECTIONS, SYSUMM01
from vireid.rerank import AIM_SETTINGS, aim

SLOW = (("cift", "table2"), ("saai", "table5"))  # many models
EVERY = [
    pytest.param(paper, name, marks=pytest.mark.slow if (paper, name) in SLOW else ())
    for paper, tables in TABLES.items()
    for name in tables
]


def run_table(paper, name, root, output, tiny, *options, recipe="small"):
    given = [paper, name, "--root", str(root), "--output", str(output), "--recipe", recipe, "--jobs", "1", *options]
    command.main([*given, "--", *tiny])
    folder = output / ("sysu" if (root / "cam1").exists() else "regdb")
    about, rows = read_rows(folder / f"{paper}_{name}.csv")
    text = (folder / f"{paper}_{name}.md").read_text(encoding="utf-8")
    assert command.make_table(about, rows) == text
    return about, rows


@pytest.fixture
def small_grids(monkeypatch):
    small = {
        way: Method(m.name, m.function, None, tuple(m.grid[:1]) + tuple(m.grid[-1:]))
        for way, m in papers.RERANKERS.items()
    }
    monkeypatch.setattr(command, "RERANKERS", small)


def check_lines(paper, name, rows, known):
    table = TABLES[paper][name]
    lines = [line for block in table.blocks.values() for line in block]
    shown = [row for row in rows if row.table != "parameters"]
    assert [(row.key, row.name) for row in shown] == [(f"{line.plan}/{line.way}", line.label) for line in lines]
    columns = [column for column in known if column in (*table.columns, *DIRECTIONS)]
    for row in shown:
        assert list(row.values) == [(column, metric) for column in columns for metric in table.metrics]
    chosen = [row for row in rows if row.table == "parameters"]
    assert {row.key for row in chosen} == {f"{x.plan}/{x.way}" for x in lines if x.way in papers.RERANKERS}


@pytest.mark.parametrize(("paper", "name"), EVERY)
@pytest.mark.parametrize("layout", ["people", "sysu"])
def test_every_table_has_its_lines_and_columns(
    paper, name, layout, request, tmp_path, written, tiny, small_grids, monkeypatch
):
    plans = {line.plan for block in TABLES[paper][name].blocks.values() for line in block}
    monkeypatch.setitem(GALLERIES, "official", 1)
    root = request.getfixturevalue(layout)
    trials = ["--trials", "2"] if layout == "people" else []
    about, rows = run_table(paper, name, root, tmp_path, tiny, *trials)
    assert about["trials"] == ("2" if layout == "people" else "0")
    check_lines(paper, name, rows, DIRECTIONS if layout == "people" else SYSU)
    assert plans <= {row for row, _ in written}  # each model once for all columns


def test_aim_ranks_each_of_sysus_columns_with_its_own_parameters(sysu, tmp_path, written, tiny):
    _, rows = run_table("saai", "table1", sysu, tmp_path, tiny)
    assert written == [("saai", 0)]
    run = make_runs({"saai": PLANS["saai"]}, tiny, data=Data("sysu", sysu), output=tmp_path / "sysu", trials=[0])[0]
    for column in SYSU[1:3]:
        mode, shot = column.split()
        protocol = SYSUMM01(mode, 1 if shot == "single-shot" else 10, permutations=sysu / "exp" / "rand_perm_cam.mat")
        own = AIM_SETTINGS["sysu_single_shot" if shot == "single-shot" else "sysu_multi_shot"]
        reports = (
            protocol.evaluate(*run.features),
            protocol.evaluate(*run.features, rerank=lambda q, g, own=own: aim(q, g, **own)),
        )
        for row, report in zip(rows, reports, strict=True):
            for metric in ("rank1", "mAP"):
                assert row.numbers(column, metric) == pytest.approx([report.rows[0].mean[metric]])


def test_ten_trials_and_what_is_complete_is_not_run_again(people, tmp_path, written, tiny):
    about, rows = run_table("cift", "table1", people, tmp_path, tiny)
    assert written == [("cift", trial) for trial in range(1, 11)]
    assert about["trials"] == "1, 2, 3, 4, 5, 6, 7, 8, 9, 10"
    assert len(rows[0].numbers(DIRECTIONS[0], "rank1")) == 10
    (tmp_path / "regdb" / "cift" / "4" / "features.npz").unlink()
    written.clear()
    assert run_table("cift", "table1", people, tmp_path, tiny)[1] == rows
    assert written == [("cift", 4)]
    written.clear()
    run_table("cift", "table3", people, tmp_path, tiny, "--rows", "cift", "cift_h2g", "--trials", "4")
    assert written == [("cift_h2g", 4)]  # tables share their models


def test_parameters_are_chosen_on_training_identities(sysu, tmp_path, written, tiny, small_grids, monkeypatch):
    monkeypatch.setitem(GALLERIES, "official", 1)
    about, rows = run_table("cift", "table2", sysu, tmp_path, tiny, "--rows", "cift_baseline")
    assert written == [("cift_baseline", 0)] * 2
    assert about["chosen_on"] == "1 training identities, by mean mAP"
    text = (tmp_path / "sysu" / "cift_table2.md").read_text(encoding="utf-8")
    assert "| CIFT's backbone + k-reciprocal | k1 " in text
    assert "All queries together, which is another class of information:" in text
    uses = {row.key: row.uses for row in rows if row.table != "parameters"}
    assert uses["cift_baseline/k-reciprocal"] == "gallery"
    assert uses["cift_baseline/GNN, all queries"] == "transductive"
    split = tmp_path / "sysu" / "validation" / "data"
    lists = [(split / "exp" / f"{name}_id.txt").read_text().split(",") for name in ("train", "val", "test")]
    test = set((sysu / "exp" / "test_id.txt").read_text().strip().split(","))
    assert not test & {number.strip() for numbers in lists for number in numbers}


def test_what_the_papers_print_twice_is_the_same():
    def printed(paper, name, label):
        lines = [line for block in TABLES[paper][name].blocks.values() for line in block]
        return next(line.printed for line in lines if line.label == label)

    whole = printed("cift", "table1", "CIFT")
    assert printed("cift", "table3", "CIFT")[SYSU[0]] == whole[SYSU[0]]
    assert printed("cift", "table2", "Our backbone + CIFT")[SYSU[0]] == whole[SYSU[0]]
    assert printed("cift", "table2", "Our backbone") == printed("cift", "table3", "Backbone")
    whole = printed("saai", "table1", "SAAI")
    for name, label in (("table3", "+ SAFL + AIM"), ("table4", "L_id + L_pd + L_cs")):
        assert printed("saai", name, label)[SYSU[0]] == whole[SYSU[0]]
    assert printed("saai", "table6", "AIM⁻ + removing + expanding")[SYSU[1]] == whole[SYSU[1]]
    whole = printed("g2da", "table1", "G2DA")
    ablation = printed("g2da", "table3", PLANS["g2da"].label)
    assert all(ablation[column] == whole[column] for column in ablation)
    for tables in TABLES.values():
        for table in tables.values():
            for line in (line for block in table.blocks.values() for line in block):
                assert line.plan in PLANS
                width = 1 if "error_rate" in table.metrics else len(table.metrics)  # Q_A is printed nowhere
                assert {len(values) for values in line.printed.values()} <= {width}


def test_synthetic_people_are_trained_with_each_seed_and_split_once(people, tmp_path, written, tiny, small_grids):
    given = ["--synthetic", str(people), "--seeds", "3", "4", "--output", str(tmp_path), "--recipe", "small"]
    command.main(["cift", "table2", *given, "--jobs", "1", "--rows", "cift_baseline", "--", *tiny])
    assert [run for run in written if run[0] != "drawn"] == [("cift_baseline", seed) for seed in (3, 4, 3, 4)]
    folder = tmp_path / "synthetic"
    lists = sorted(path.name for path in (folder / "validation" / "data" / "idx").iterdir())
    assert lists == [f"{split}_{kind}_1.txt" for split in ("test", "train") for kind in ("thermal", "visible")]
    about, rows = read_rows(folder / "cift_table2.csv")
    assert (about["trials"], about["data"], about["runs"]) == ("3, 4", "synthetic", "seeds")
    assert (folder / "cift_table2.md").read_text(encoding="utf-8") == command.make_table(about, rows)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["cift", "table9"], "table must be one of table1, table2, table3, table4, got 'table9'"),
        (["saai", "table3", "--rows", "cift"], "--rows must be models of saai table3, got cift"),
        (["g2da", "table1", "--", "--color", "1"], "unrecognized arguments: --color 1"),
    ],
)
def test_wrong_options(given, message, written, tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main([*given[:2], "--root", str(tmp_path), "--recipe", "small", *given[2:]])
    assert message in capsys.readouterr().err
    assert written == []


def test_the_page_has_every_row_and_what_the_paper_prints():
    text = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    assert reproduce.page() in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "backbone", "layout"),
    [
        ("small", "small", "regdb"),
        ("paper", "small", "sysu"),
        ("paper", "resnet50", "regdb"),
        ("paper", "resnet50", "sysu"),
    ],
)
def test_every_table_is_trained(
    recipe, backbone, layout, tmp_path, trained_here, tiny, small_grids, standins, monkeypatch
):
    """By the papers' recipes on a network of ResNet-50's structure, with an eighth of its channels, too."""
    monkeypatch.setitem(GALLERIES, "official", 1)
    root = generate_synthetic(
        tmp_path / "data", layout=layout, identities=8, images_per_camera=10 if layout == "sysu" else 4, size=(64, 32)
    )
    trials = ["--trials", "1"] if layout == "regdb" else []
    trials += ["--keypoints", str(root / "keypoints.npz")] if layout == "sysu" else []
    # The papers' rates are for pretrained networks: a random one would leave its running statistics behind.
    shown = ["--backbone", backbone, "--weights", "none", "--size", "64", "32", "--lr", "1e-4"]
    for paper, tables in TABLES.items():
        for name in tables:
            about, rows = run_table(paper, name, root, tmp_path, [*tiny, *shown], *trials, recipe=recipe)
            assert about.get("recipe", "small") == recipe
            check_lines(paper, name, rows, DIRECTIONS if layout == "regdb" else SYSU)
    assert {row for row, _ in trained_here} == set(PLANS)
