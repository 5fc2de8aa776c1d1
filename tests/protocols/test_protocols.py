"""SYSU-MM01's and RegDB's protocols: galleries, metrics, re-rankings and joined reports."""

import csv
import functools
import json
import random
import weakref

import numpy as np
import pytest
import torch

from places import SHARED
from reference.protocols import metrics, sysu_gallery
from vireid.data import Features
from vireid.protocols import LLCM, SYSUMM01, RegDB, Report
from vireid.rerank.aim import AIM, aim

SPLIT = SHARED / "data" / "sysu-mm01-split"
PERMUTATIONS = SPLIT / "rand_perm_cam.mat"
needs_split = pytest.mark.skipif(not PERMUTATIONS.is_file(), reason="needs SYSU-MM01's split files")
METRICS = ("rank1", "rank5", "rank10", "rank20", "mAP", "mINP")


@pytest.fixture(scope="module")
def table():
    """Every test image of SYSU-MM01 as (ids, cameras, image numbers), and the permutation cells."""
    from scipy.io import loadmat

    ids = loadmat(SPLIT / "test_id.mat")["id"].ravel().astype(int)
    cells = [camera.ravel() for camera in loadmat(PERMUTATIONS)["rand_perm_cam"].ravel()]
    rows = [(i, c, n) for i in ids for c in range(1, 7) for n in range(1, cells[c - 1][i - 1].shape[1] + 1)]
    return (*np.array(rows).T, cells)


def small(people=5, images=3, seed=0):
    """Ids, cameras, image numbers of a small set of images in random order, and features with many ties."""
    r = np.random.default_rng(seed)
    rows = np.array([(i, c, n) for i in range(people) for c in range(1, 7) for n in range(images)])
    r.shuffle(rows)
    return r.integers(-1, 2, (len(rows), 4)).astype(np.float64), *(rows.T + np.array([[1], [0], [1]]))


@needs_split
@pytest.mark.parametrize("sampling", ["official", "agw"])
@pytest.mark.parametrize(
    ("mode", "shots", "count"), [("all", 1, 301), ("all", 10, 3010), ("indoor", 1, 112), ("indoor", 10, 1120)]
)
def test_published_counts(table, sampling, mode, shots, count):
    ids, cameras, numbers, _ = table
    protocol = SYSUMM01(mode, shots, sampling, permutations=PERMUTATIONS)
    query = protocol.query(cameras=cameras).numpy()
    assert len(query) == 3803
    assert set(cameras[query]) == {3, 6}
    drawn = set()
    for trial in range(10):
        gallery = protocol.gallery(trial, ids, None, cameras, numbers).numpy()
        assert len(gallery) == len(set(gallery)) == count
        assert set(cameras[gallery]) == ({1, 2, 4, 5} if mode == "all" else {1, 2})
        pairs, each = np.unique(np.stack([ids[gallery], cameras[gallery]]), axis=1, return_counts=True)
        assert set(each) == {shots}
        assert mode == "indoor" or len(np.unique(pairs[0])) == 96
        drawn.add(tuple(gallery))
    assert len(drawn) == 10


@needs_split
def test_official_gallery_is_the_permutations_row(table):
    ids, cameras, numbers, cells = table
    shuffle = np.random.default_rng(0).permutation(len(ids))
    ids, cameras, numbers = ids[shuffle], cameras[shuffle], numbers[shuffle]
    for mode, shots, trial in (("all", 10, 0), ("indoor", 1, 9)):
        wanted = [
            (i, c, n)
            for i in sorted(set(ids))
            for c in ((1, 2, 4, 5) if mode == "all" else (1, 2))
            for n in (cells[c - 1][i - 1][trial, :shots] if cells[c - 1][i - 1].size else [])
        ]
        at = SYSUMM01(mode, shots, permutations=PERMUTATIONS).gallery(trial, ids, None, cameras, numbers).numpy()
        assert list(zip(ids[at], cameras[at], numbers[at], strict=True)) == wanted


@needs_split
def test_the_random_state_of_the_caller_does_not_change(table):
    ids, cameras, numbers, _ = table
    states = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    for shots in (1, 10):
        SYSUMM01("all", shots, "agw").gallery(3, ids, None, cameras, numbers)
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002


def same_place(cameras):
    """Whether a query skips a gallery image: cameras 2 and 3 stand in one place."""
    return lambda q, g: cameras[q] == 3 and cameras[g] == 2


@needs_split
def test_official_evaluation_of_features_that_know_the_identity(table):
    ids, cameras, numbers, _ = table
    features = np.eye(334, dtype=np.float32)[ids]
    report = SYSUMM01(permutations=PERMUTATIONS, trials=2).evaluate(features, ids, None, cameras, numbers)
    assert report.rows[0].mean == dict.fromkeys(METRICS, 100.0)


@needs_split
@pytest.mark.parametrize("sampling", ["official", "agw"])
@pytest.mark.parametrize("shots", [1, 10])
@pytest.mark.parametrize("mode", ["all", "indoor"])
def test_each_of_the_eight_settings_equals_plain_loops(table, mode, shots, sampling):
    """Draw and metrics on a few true test identities, among them some that not every camera saw."""
    ids, cameras, numbers, cells = table
    seen = [len(set(cameras[ids == i])) for i in np.unique(ids)]
    few = np.unique(ids)[np.argsort(seen, kind="stable")[[0, 1, 2, 40, 95]]]
    keep = np.random.default_rng(1).permutation(np.flatnonzero(np.isin(ids, few)))
    ids, cameras, numbers = ids[keep], cameras[keep], numbers[keep]
    r = np.random.default_rng(2)
    features = r.normal(size=(len(ids), 5)) + 0.7 * r.normal(size=(334, 5))[ids]
    protocol = SYSUMM01(mode, shots, sampling, permutations=PERMUTATIONS, trials=2)
    row = protocol.evaluate(features, ids, None, cameras, numbers).rows[0]
    at = {image: k for k, image in enumerate(zip(ids.tolist(), cameras.tolist(), numbers.tolist(), strict=True))}
    query = [k for k in range(len(ids)) if cameras[k] in (3, 6)]
    galleries = [sysu_gallery(mode, shots, sampling, t, ids, cameras, numbers, cells) for t in range(2)]
    for trial, gallery in enumerate(galleries):
        places = [at[image] for image in gallery]
        assert protocol.gallery(trial, ids, None, cameras, numbers).tolist() == places
        wanted, _ = metrics(features, ids, query, places, same_place(cameras))
        assert row.trials[trial] == pytest.approx(wanted, abs=1e-9)
        assert wanted["mAP"] < 99
    assert row.trials[0] != row.trials[1]


@pytest.mark.parametrize("mode", ["all", "indoor"])
@pytest.mark.parametrize("shots", [1, 10])
def test_evaluation_equals_a_loop(mode, shots):
    _, ids, cameras, numbers = small(people=3, images=2 if shots == 1 else 11)
    features = np.random.default_rng(4).normal(size=(len(ids), 6))
    protocol = SYSUMM01(mode, shots, "agw", trials=3)
    query = protocol.query(cameras=cameras).tolist()
    report = protocol.evaluate(features, ids, None, cameras, numbers)
    for trial, got in enumerate(report.rows[0].trials):
        gallery = protocol.gallery(trial, ids, None, cameras, numbers).tolist()
        wanted, _ = metrics(features, ids, query, gallery, same_place(cameras))
        assert got == pytest.approx(wanted, abs=1e-9)


def test_camera_3_skips_camera_2_and_camera_6_does_not():
    ids = torch.tensor([1] * 6 + [2] * 6)
    cameras = torch.arange(1, 7).repeat(2)
    features = torch.eye(2)[ids - 1]
    features[1] = torch.tensor([-1.0, 0.0])  # identity 1 in camera 2 is the farthest of all
    rows = SYSUMM01(sampling="agw", trials=1).evaluate(features, ids, None, cameras, torch.ones(12).long()).rows
    # 3 of 4 queries are perfect; identity 1's camera-6 query finds three matches first and the last at rank 8
    assert rows[0].mean["mAP"] == pytest.approx(100 * (3 + (3 + 4 / 8) / 4) / 4)
    assert rows[0].mean["mINP"] == pytest.approx(100 * (3 + 4 / 8) / 4)


@pytest.mark.parametrize("direction", ["visible_to_infrared", "infrared_to_visible"])
def test_regdb_directions_by_hand(direction):
    # visible: A, B; infrared: A, A, B
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.0, 1.0], [0.6, 0.4]])
    ids, modality = torch.tensor([4, 6, 4, 4, 6]), torch.tensor([0, 0, 1, 1, 1])
    row = RegDB(direction).evaluate(features, ids, modality).rows[0]
    assert (row.direction, row.features, row.rerank, row.uses) == (direction, "backbone", "none", "query")
    if direction == "visible_to_infrared":
        # A ranks A, B, A; B ranks A, B, A
        assert row.mean["mAP"] == pytest.approx(100 * ((1 + 2 / 3) / 2 + 1 / 2) / 2)
        assert row.mean["rank1"] == pytest.approx(50)
        assert row.cmc == [0.5, 1.0, 1.0]
    else:
        # A finds A, the other A finds B first, B finds A first
        assert row.mean["mAP"] == pytest.approx(100 * (1 + 1 / 2 + 1 / 2) / 3)
        assert row.mean["mINP"] == pytest.approx(100 * 2 / 3)
    assert row.std == dict.fromkeys(METRICS, 0.0)


def negative_dot(query, gallery):
    return -(query @ gallery.T)


def test_rerank_replaces_the_distance_and_is_named():
    features, ids, cameras, numbers = small()
    features = torch.tensor(features)
    protocol = SYSUMM01("indoor", 1, "agw", trials=2)
    seen = []

    def rerank(query, gallery):
        seen.append((tuple(query.shape), tuple(gallery.shape)))
        return np.asarray(negative_dot(query, gallery))

    rerank.uses = "gallery"
    row = protocol.evaluate(features, ids, None, cameras, numbers, rerank=rerank, features_name="transferred").rows[0]
    assert seen == [((30, 4), (10, 4))] * 2
    assert (row.features, row.rerank, row.uses) == ("transferred", "rerank", "gallery")
    partial = functools.partial(negative_dot)
    other = protocol.evaluate(features, ids, None, cameras, numbers, rerank=partial).rows[0]
    assert (other.rerank, other.uses) == ("negative_dot", "unknown")
    assert other.trials == row.trials
    named = protocol.evaluate(features, ids, None, cameras, numbers, rerank=rerank, rerank_name="AIM").rows[0]
    assert named.rerank == "AIM"


class Shifted:
    """A re-ranker like the fitted ones: readable settings, called with (query, gallery)."""

    uses = "gallery"

    def __init__(self, *, shift):
        self.settings = {"shift": shift}

    def __call__(self, query, gallery):
        return self.settings["shift"] + negative_dot(query, gallery)


def with_relations(query, gallery, *, k1=1, use_query_relations=False, module=None):
    return negative_dot(query, gallery)


with_relations.uses = "gallery"


class Ranker:
    uses = "gallery"

    def parameters(self):  # like a torch module's, which reports ignore
        raise AssertionError

    def distance(self, query, gallery, *, k1=1):
        return negative_dot(query, gallery)


@pytest.mark.parametrize(
    ("rerank", "name", "uses", "parameters"),
    [
        (with_relations, "with_relations", "gallery", {}),
        (functools.partial(with_relations, k1=4), "with_relations", "gallery", {"k1": 4}),
        (
            functools.partial(functools.partial(with_relations, k1=4), use_query_relations=True),
            "with_relations",
            "transductive",
            {"k1": 4, "use_query_relations": True},
        ),
        (
            functools.partial(with_relations, k1=np.int64(2), use_query_relations=False, module=torch.nn.Identity()),
            "with_relations",
            "gallery",
            {"k1": 2, "use_query_relations": False, "module": "Identity"},
        ),
        (Shifted(shift=0.5), "Shifted", "gallery", {"shift": 0.5}),
        (Ranker().distance, "Ranker", "gallery", {}),
        (functools.partial(Ranker().distance, k1=3), "Ranker", "gallery", {"k1": 3}),
    ],
)
def test_name_uses_and_parameters_of_a_rerank_are_reported(rerank, name, uses, parameters, tmp_path):
    features, ids, cameras, numbers = small()
    protocol = SYSUMM01("indoor", 1, "agw", trials=2)
    report = protocol.evaluate(features, ids, None, cameras, numbers, rerank=rerank)
    row = report.rows[0]
    assert (row.rerank, row.uses, row.parameters) == (name, uses, parameters)
    assert all(type(row.parameters[key]) is type(value) for key, value in parameters.items())
    assert row.trials == protocol.evaluate(features, ids, None, cameras, numbers, rerank=negative_dot).rows[0].trials
    shown = f"{name} ({', '.join(f'{k}={v}' for k, v in parameters.items())})" if parameters else name
    assert row.method == shown
    assert shown in " ".join(str(report).split())
    assert report.to_dict()["rows"][0]["parameters"] == parameters
    report.save(tmp_path / "r.csv")
    with (tmp_path / "r.csv").open() as file:
        line = next(csv.DictReader(file))
    assert line["parameters"] == " ".join(f"{k}={v}" for k, v in parameters.items())


def test_a_fitted_re_ranker_and_a_partial_of_its_function_agree():
    _, ids, cameras, numbers = small(images=4)
    features = np.random.default_rng(3).normal(size=(len(ids), 6))
    protocol = SYSUMM01("all", 1, "agw", trials=2)
    forms = (
        AIM(k1=4, k2=2),
        functools.partial(aim, k1=4, k2=2),
        functools.partial(aim, k1=4, k2=2, use_query_relations=True),
    )
    rows = [protocol.evaluate(features, ids, None, cameras, numbers, rerank=form).rows[0] for form in forms]
    assert [(row.rerank, row.uses) for row in rows] == [
        ("AIM", "gallery"),
        ("aim", "gallery"),
        ("aim", "transductive"),
    ]
    assert rows[0].parameters == {"k1": 4, "k2": 2, "variant": "paper"}
    assert rows[0].trials == rows[1].trials
    assert rows[0].trials != protocol.evaluate(features, ids, None, cameras, numbers).rows[0].trials


def test_the_distances_of_one_trial_are_held_at_a_time():
    features, ids, cameras, numbers = small()
    alive, most = weakref.WeakSet(), []

    def rerank(query, gallery):
        most.append(len(alive))
        distance = negative_dot(query, gallery)
        alive.add(distance)
        return distance

    SYSUMM01("all", 1, "agw", trials=4).evaluate(torch.tensor(features), ids, None, cameras, numbers, rerank=rerank)
    assert most == [0, 0, 0, 0]


def test_rows_of_other_parameters_stay_apart():
    ids, modality = torch.arange(4).repeat(2), torch.arange(8) // 4
    features = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    reports = [
        RegDB().evaluate(features, ids, modality, rerank=functools.partial(with_relations, k1=k)) for k in (1, 2, 1)
    ]
    assert [(row.parameters, len(row.trials)) for row in Report.merge(reports).rows] == [({"k1": 1}, 2), ({"k1": 2}, 1)]


def regdb_report(seed, **settings):
    r = torch.Generator().manual_seed(seed)
    ids = torch.arange(4).repeat(4)
    return RegDB(**settings).evaluate(torch.randn(16, 3, generator=r), ids, torch.arange(16) // 8)


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e-13, 1e19, 1e36])
def test_features_of_any_scale_are_compared_by_angle(scale):
    r = torch.Generator().manual_seed(0)
    x, ids = torch.randn(40, 8, generator=r), torch.arange(40) // 4
    expected, found = (RegDB().evaluate(y, ids, torch.arange(40) % 2).rows[0].trials[0] for y in (x, x * scale))
    assert found == pytest.approx(expected)


def test_reports_join_print_and_save(tmp_path):
    reports = [regdb_report(seed) for seed in range(3)]
    back = regdb_report(9, direction="infrared_to_visible")
    joined = Report.merge([*reports, back])
    assert [len(row.trials) for row in joined.rows] == [3, 1]
    assert (reports[0] + reports[1] + reports[2] + back).to_dict() == joined.to_dict()
    row, values = joined.rows[0], [r.rows[0].mean["mAP"] for r in reports]
    assert row.mean["mAP"] == pytest.approx(np.mean(values))
    assert row.std["mAP"] == pytest.approx(np.std(values, ddof=1))
    assert row.cmc == pytest.approx(np.mean([r.rows[0].cmc for r in reports], axis=0))

    text = str(joined)
    assert "RegDB" in text
    shown = [line.split()[-2] for line in text.splitlines()[3:7]]
    assert shown == [f"{value:.2f}" for value in (row.mean["mAP"], row.std["mAP"], *row.interval("mAP"))]
    assert len(text.splitlines()) == 11

    joined.save(tmp_path / "r.json")
    saved = json.loads((tmp_path / "r.json").read_text())
    assert saved == joined.to_dict()
    assert saved["dataset"] == "RegDB"
    assert {"direction", "features", "rerank", *METRICS, "trials", "std"} <= set(saved["rows"][0])
    assert saved["rows"][0]["trials"] == 3
    joined.save(str(tmp_path / "r.csv"))
    with (tmp_path / "r.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["direction"] for line in lines] == ["visible_to_infrared", "infrared_to_visible"]
    assert float(lines[0]["mAP"]) == row.mean["mAP"]
    assert float(lines[0]["mAP_std"]) == row.std["mAP"]
    assert (float(lines[0]["rank5_low"]), float(lines[0]["rank5_high"])) == row.interval("rank5")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.csv", "r.json"]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    path.write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        regdb_report(0).save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
    assert path.read_text() == "old"


def test_curves_of_different_length_join_at_their_last_value():
    first = RegDB().evaluate(torch.eye(2).repeat(2, 1), torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1]))
    second = RegDB().evaluate(torch.eye(3).repeat(2, 1), torch.arange(3).repeat(2), torch.tensor([0, 0, 0, 1, 1, 1]))
    assert (first + second).rows[0].cmc == [1.0, 1.0, 1.0]


def sysu(**change):
    features, ids, cameras, numbers = small()
    return SYSUMM01("all", 1, "agw", trials=1).evaluate(
        **({"features": features, "ids": ids, "cameras": cameras, "image_numbers": numbers} | change)
    )


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: sysu(cameras=np.full(90, 3)), ValueError, "cameras must hold query images of camera 6, got none"),
        (lambda: sysu(cameras=np.arange(90) % 4 + 3), ValueError, "cameras must hold gallery images of camera 1"),
        (lambda: SYSUMM01("outdoor", sampling="agw"), ValueError, "mode must be one of"),
        (lambda: SYSUMM01(shots=5, sampling="agw"), ValueError, "shots must be one of 1, 10, got 5"),
        (lambda: SYSUMM01(shots=1.0, sampling="agw"), TypeError, "shots must be an integer, got 1.0"),
        (lambda: SYSUMM01(shots=True, sampling="agw"), TypeError, "shots must be an integer, got True"),
        (lambda: SYSUMM01(permutations="."), FileNotFoundError, "got '.': is a folder"),
        (lambda: SYSUMM01(sampling="random"), ValueError, "sampling must be one of"),
        (lambda: SYSUMM01(), ValueError, "permutations must be the path of rand_perm_cam.mat"),
        (lambda: SYSUMM01(permutations="no/such.mat"), FileNotFoundError, "got 'no/such.mat': no such file"),
        (lambda: Report.merge([]), ValueError, "reports must hold at least one report"),
        (lambda: Report("a", ()) + Report("b", ()), ValueError, "one data set and protocol, got 'a', 'b'"),
        (lambda: Report("a", ()).save("report.txt"), ValueError, r"path must end in .json or .csv, got 'report.txt'"),
        (lambda: Report("a", ()).save("no/such/r.json"), FileNotFoundError, "path must be in an existing folder"),
    ],
)
def test_bad_input_is_named(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_too_few_images_for_multi_shot_are_named():
    features, ids, cameras, numbers = small()
    with pytest.raises(ValueError, match="must hold 10 images of identity 1 in camera 1, got 3"):
        SYSUMM01("all", 10, "agw").evaluate(features, ids, None, cameras, numbers)


@needs_split
def test_images_that_the_permutations_do_not_fit_are_named(table):
    ids, cameras, numbers, cells = table
    protocol = SYSUMM01(permutations=PERMUTATIONS, trials=1)
    first = np.flatnonzero((ids == ids.min()) & (cameras == 1))
    drawn = int(cells[0][ids.min() - 1][0, 0])
    left = np.delete(np.arange(len(ids)), first[numbers[first] == drawn])
    with pytest.raises(ValueError, match=f"got no image {drawn} of identity {ids.min()} in camera 1"):
        protocol.gallery(0, ids[left], None, cameras[left], numbers[left])
    with pytest.raises(ValueError, match="ids must be the data set's own numbers"):
        protocol.gallery(0, ids + 1000, None, cameras, numbers)
    with pytest.raises(ValueError, match=r"a row for each of trials=11, got 10"):
        SYSUMM01(permutations=PERMUTATIONS, trials=11)
    with pytest.raises(ValueError, match=r"cannot read .*test_id\.mat"):
        SYSUMM01(permutations=SPLIT / "test_id.mat")


def known(dataset):
    """Return a feature file's content that could be of any data set."""
    rows = np.array([(i, c, n) for i in (1, 2, 3) for c in range(1, 7) for n in (1, 2)])
    features = np.random.default_rng(0).normal(size=(len(rows), 4))
    modality = np.isin(rows[:, 1], (3, 6)).astype(np.int64)
    return Features(
        features, rows[:, 0], modality, rows[:, 1], None, rows[:, 2], {} if dataset is None else {"dataset": dataset}
    )


OF_EACH = {"sysu": SYSUMM01(sampling="agw"), "regdb": RegDB(), "llcm": LLCM()}


@pytest.mark.parametrize("dataset", ["sysu", "SYSU-MM01", "regdb", "RegDB", "llcm", "synthetic", "own data", "", None])
@pytest.mark.parametrize("name", OF_EACH)
def test_features_of_another_data_set_are_refused(name, dataset):
    protocol, features = OF_EACH[name], known(dataset)
    same = {"SYSU-MM01": "sysu", "RegDB": "regdb"}.get(dataset, dataset)
    if same in OF_EACH and same != name:
        with pytest.raises(
            ValueError, match=rf"features must be of {protocol.name}, got a file of the data set '{dataset}'"
        ):
            protocol.evaluate(features)
        features = features.features, features.ids, features.modality, features.cameras, features.image_numbers
        assert protocol.evaluate(*features).rows
    else:
        assert protocol.evaluate(features).rows
