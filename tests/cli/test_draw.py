"""`vireid draw`: which images and checkpoints it shows, and what it says of those it cannot."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("kornia", reason="needs the extra train")
pytest.importorskip("matplotlib", reason="needs the extra plots")

from vireid import plots
from vireid.cli import draw
from vireid.data import EvalTransform, RegDBDataset, load_keypoints, save_heatmaps, save_keypoints
from vireid.losses import GraphOTLoss
from vireid.nn import PERSON_13
from vireid.training import load_model
from vireid.training.datasets import draw_heatmaps

SIZE = (32, 16)
FUNCTIONS = ["attention_maps", "tsne", "skeleton_graph", "transport_plan", "cost_matrices", "cmc_curves"]
FUNCTIONS += ["ranked_lists"]


@pytest.fixture
def calls(run, regdb, monkeypatch, tmp_path):
    """A function that draws: what the functions of `vireid.plots` are handed, and what is printed."""

    def draw(*options):
        found = []
        with monkeypatch.context() as patch:
            for name in FUNCTIONS:
                patch.setattr(plots, name, lambda *given, **named: found.append((given, named)))
            out, err = run("draw", *options)
        (((*given, path), named),) = found
        assert f"wrote {path}\n" in out
        return given, named, err

    monkeypatch.chdir(tmp_path)
    return draw


@pytest.fixture(scope="module")
def keypoints(regdb, tmp_path_factory) -> Path:
    """Return the key points of the drawn people: visible images lack the third one, infrared images the fifth."""
    table = load_keypoints(regdb / "keypoints.npz")
    visible = np.array([path.startswith("Visible") for path in table.paths])
    table.keypoints[visible, 2, 2] = 0
    table.keypoints[~visible, 4, 2] = 0
    path = tmp_path_factory.mktemp("keypoints") / "some.npz"
    save_keypoints(path, *table)
    return path


@pytest.fixture(scope="module")
def transfers(saved, tmp_path_factory) -> dict[str, Path]:
    """Return checkpoints of CIFT: one, the same once more, and one whose v weighs the features differently."""
    paths = {}
    for name in ("first", "same", "second"):
        state = torch.load(saved["cift"], weights_only=True)
        if name == "second":
            weight = state["model"]["transfer.value.weight"]
            weight.copy_(torch.rand(len(weight), generator=torch.Generator().manual_seed(0)))
        paths[name] = tmp_path_factory.mktemp("cift") / name / "checkpoint.pt"
        paths[name].parent.mkdir()
        torch.save(state, paths[name])
    return paths


@pytest.fixture
def test(regdb):
    return RegDBDataset(regdb, "test", trial=1, size=SIZE)


def rows_of(dataset, images):
    return [next(i for i in range(len(dataset)) if torch.equal(dataset[i].image, image)) for image in images]


def test_attention_is_of_pairs_of_one_person_and_of_the_saved_model(calls, regdb, saved, test):
    (images, attention), named, _ = calls(
        "attention", saved["parts3"], "--root", regdb, "--images", 5, "--output", "maps.svg"
    )
    assert named["modality"].tolist() == [0, 1, 0, 1, 0]
    assert (attention.shape, named["scale"]) == ((5, 3, 15, 7), "common")
    rows, people = rows_of(test, images), np.unique(test.ids)
    assert test.ids[rows].tolist() == [people[0], people[0], people[2], people[2], people[4]]
    assert test.modality[rows].tolist() == [0, 1, 0, 1, 0]
    with torch.no_grad():
        expected = load_model(saved["parts3"])(EvalTransform()(images), named["modality"]).similarity.sigmoid()
    torch.testing.assert_close(attention.flatten(2), expected)


def test_attention_of_several_models_is_a_map_each(calls, regdb, saved):
    both = [saved["parts0"], saved["parts3"], "--root", regdb, "--images", 3]
    (images, maps), named, _ = calls("attention", *both)
    assert (maps.shape, named["names"], named["scale"]) == ((3, 2, 15, 7), ("parts0", "parts3"), "map")
    pictures = EvalTransform()(images)
    with torch.no_grad():
        baseline, saai = (load_model(saved[name])(pictures, named["modality"]) for name in named["names"])
    torch.testing.assert_close(maps[:, 0], baseline.feature_map.square().sum(1).sqrt())
    torch.testing.assert_close(maps[:, 1].flatten(1), saai.similarity.sigmoid().max(1).values)
    (_, alone), named, _ = calls("attention", saved["parts0"], "--root", regdb, "--images", 3)
    torch.testing.assert_close(alone, maps[:, :1])
    assert named["names"] == ("parts0",)


def test_affinities_are_rows_of_a_query_by_itself_where_they_change_most(calls, regdb, transfers, test):
    pair = [transfers["first"], transfers["second"], "--root", regdb, "--queries", 2]
    images = EvalTransform()(torch.stack([test[i].image for i in range(len(test))]))
    modality, ids = torch.from_numpy(test.modality), torch.from_numpy(test.ids)
    query, gallery = (modality == 0).nonzero().flatten(), (modality == 1).nonzero().flatten()
    found = []  # of each model and query: the three nearest, their affinities, which are right
    for name in ("first", "second"):
        model = load_model(transfers[name])
        with torch.no_grad():
            values = model.transfer.value(model(images, modality).features)
        rows = []
        for q in query.tolist():
            cosines = torch.cosine_similarity(values[q][None], values[gallery]).double()
            order = cosines.argsort(descending=True, stable=True)[:3]
            weights = torch.cat([torch.ones(1).double(), cosines[order]]).div(0.2).softmax(0)[1:]
            rows.append((gallery[order], weights, ids[gallery[order]] == ids[q]))
        found.append(rows)

    def most(gain):
        gains = [gain(*rows) for rows in zip(*found, strict=True)]
        ranked = sorted((i for i in range(len(query)) if gains[i] > 1e-6), key=lambda i: -gains[i])
        return ranked[:2]

    def right(row):
        return row[1][row[2]].sum().item()

    def wrong(row):
        return row[1][~row[2]].sum().item()

    gains = {
        "positives": lambda a, b: int(b[2].sum()) - int(a[2].sum()),
        "hard": lambda a, b: wrong(a) - wrong(b) if a[2].sum() == b[2].sum() else 0,
        "both": lambda a, b: min(right(b) - right(a), wrong(a) - wrong(b)),
    }
    for change, gain in gains.items():
        chosen = most(gain)
        assert chosen, change
        (shown, hits, correct), named, _ = calls("affinities", *pair, "--change", change)
        assert rows_of(test, shown) == [int(query[i]) for i in chosen for _ in range(2)]
        assert named["names"] == ["first", "second"] * len(chosen)
        expected = [found[n][i] for i in chosen for n in range(2)]
        assert [rows_of(test, row) for row in hits] == [row[0].tolist() for row in expected]
        torch.testing.assert_close(
            named["distance"].double(), torch.stack([row[1] for row in expected]), atol=1e-5, rtol=0
        )
        assert correct.tolist() == [row[2].tolist() for row in expected]


def test_ranked_lists_show_both_directions_and_cosines(calls, run, regdb, saved, test, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr("vireid.training.inference.ranked_lists", lambda *given, **named: seen.append((given, named)))
    options = ["--root", regdb, "--queries", 2, "--direction", "both", "--cosines", "--output", tmp_path / "a.png"]
    run("draw", "ranked", saved["parts3"], *options)
    (((queries, hits, correct, _), named),) = seen
    assert named["modality"].tolist() == [0, 0, 1, 1]
    rows = rows_of(test, queries)
    assert test.modality[rows].tolist() == [0, 0, 1, 1]
    first = rows_of(test, hits[:, 0])
    pair = EvalTransform()(torch.stack([test[i].image for i in (*rows, *first)]))
    with torch.no_grad():
        features = load_model(saved["parts3"])(pair, torch.from_numpy(test.modality[[*rows, *first]])).features
    torch.testing.assert_close(named["distance"][:, 0], torch.cosine_similarity(features[:4], features[4:]))
    assert correct[:, 0].tolist() == (test.ids[rows] == test.ids[first]).tolist()


def test_tsne_shows_the_same_images_of_each_model(calls, regdb, saved, test):
    pair = [saved["parts3"], saved["parts0"], "--root", regdb, "--identities", 3, "--perplexity", 4]
    (features, ids, modality), named, err = calls("tsne", *pair)
    rows = np.flatnonzero(np.isin(test.ids, np.unique(test.ids)[[0, 2, 4]]))
    assert (named["perplexity"], named["seed"]) == (4.0, 0)
    np.testing.assert_array_equal(ids, test.ids[rows])
    np.testing.assert_array_equal(modality, test.modality[rows])
    assert list(features) == ["parts3", "parts0"]
    images = EvalTransform()(torch.stack([test[int(i)].image for i in rows]))
    for name, found in features.items():
        with torch.no_grad():
            expected = load_model(saved[name])(images, torch.as_tensor(modality)).features
        torch.testing.assert_close(found, expected)
    assert "parts0/checkpoint.pt was trained on regdb, trial 2: it may have seen" in err
    (features, *_), _, _ = calls("tsne", *pair, "--name", "SAAI", "--name", "baseline")
    assert list(features) == ["SAAI", "baseline"]


def test_panels_are_named_by_what_tells_the_checkpoints_apart():
    paths = (Path("/runs/saai/1/checkpoint.pt"), Path("/runs/baseline/1/checkpoint.pt"))
    assert draw.panel_names(paths) == ("saai/1", "baseline/1")
    assert draw.panel_names((Path("/runs/saai/checkpoint.pt"),)) == ("saai",)


def test_skeletons_are_of_pairs_of_one_person_and_need_no_checkpoint(calls, regdb, keypoints):
    data = ["--dataset", "regdb", "--root", regdb, "--keypoints", keypoints, "--images", 3, "--size", 40, 24]
    (images, points), named, _ = calls("skeleton", *data)
    assert named["modality"].tolist() == [0, 1, 0]
    assert (named["names"], named["global_node"], named["columns"]) == (False, False, None)
    test = RegDBDataset(regdb, "test", trial=1, size=(40, 24), keypoints=keypoints)
    rows, people = rows_of(test, images), np.unique(test.ids)
    assert test.ids[rows].tolist() == [people[0], people[0], people[4]]
    torch.testing.assert_close(points, torch.stack([test[i].keypoints for i in rows]), rtol=0, atol=0)
    _, named, _ = calls("skeleton", *data, "--names", "--global-node")
    assert (named["names"], named["global_node"], named["columns"]) == (True, True, 2)


def test_skeletons_of_drawn_people_need_nothing(calls, regdb, monkeypatch):
    monkeypatch.setattr("vireid.training.datasets.generate_synthetic", lambda *_, **__: None)  # they are there
    (images, points), _, _ = calls("skeleton", "--root", regdb, "--images", 2)
    assert images.shape == (2, 3, 128, 64)
    test = RegDBDataset(regdb, "test", trial=1, size=(128, 64), keypoints=regdb / "keypoints.npz")
    torch.testing.assert_close(points, torch.stack([test[i].keypoints for i in rows_of(test, images)]))


def test_the_highest_cell_of_a_heatmap_is_its_key_point(calls, regdb, saved, tmp_path):
    heatmaps = np.zeros((13, 8, 4), dtype=np.float32)
    heatmaps[0, 5, 2], heatmaps[0, 1, 1] = 0.9, 0.8
    heatmaps[1, 7, 3] = 0.2
    for image in RegDBDataset(regdb, "test", trial=1).paths:
        save_heatmaps(tmp_path / "maps", image, heatmaps, root=regdb)
    data = [saved["bones"], "--root", regdb, "--keypoints", tmp_path / "maps", "--images", 1]
    for options, visible in (((), [1, 1, 0]), (("--threshold", 0.5), [1, 0, 0])):
        (_, points), _, _ = calls("skeleton", *data, *options)
        assert points.shape == (1, 13, 3)
        assert points[0, :2, :2].tolist() == [[2.5 * 16, 5.5 * 16], [3.5 * 16, 7.5 * 16]]  # cells of 16 x 16 pixels
        assert points[0, :3, 2].tolist() == visible


def test_the_plan_is_that_of_the_loss(calls, regdb, keypoints, saved):
    options = [saved["bones"], "--root", regdb, "--keypoints", keypoints]
    (*images, plan), named, _ = calls("plan", *options)
    test = RegDBDataset(regdb, "test", trial=1, size=SIZE, keypoints=keypoints)
    rows = rows_of(test, images)
    assert test.ids[rows].tolist() == [test.ids.min()] * 2
    assert test.modality[rows].tolist() == [0, 1]
    assert list(named["names"]) == [*PERSON_13.names, "global"]
    points = torch.stack([test[i].keypoints for i in rows])
    torch.testing.assert_close(torch.stack([named["points_visible"], named["points_infrared"]]), points)

    heatmaps, modality = draw_heatmaps(points, SIZE), torch.tensor([0, 1])
    with torch.no_grad():
        seen = load_model(saved["bones"])(EvalTransform()(torch.stack(images)), modality, heatmaps)
    loss = GraphOTLoss(phi=0.3, loss="square")(seen.nodes, torch.zeros(2).long(), modality, mask=seen.mask)
    assert named["title"] == f"identity {test.ids.min()}: $D_{{ot}}$ = {loss.item():.3f} with φ = 0.3"
    present = torch.tensor([i not in (2, 4) for i in range(14)])  # what one of the two lacks, both do
    torch.testing.assert_close(plan.sum(0), present / 12)
    torch.testing.assert_close(plan.sum(1), present / 12)

    (*nodes, same), named, _ = calls("costs", *options)
    torch.testing.assert_close(torch.stack(nodes), seen.nodes)
    torch.testing.assert_close(same, plan)
    assert (named["loss"], len(named["names"])) == ("square", 14)


def test_parts_of_a_grid_are_at_their_centers(calls, regdb, saved, test):
    identity = int(np.unique(test.ids)[2])
    (*images, plan), named, _ = calls("plan", saved["cells"], "--root", regdb, "--identity", identity)
    rows = rows_of(test, images)
    assert test.ids[rows].tolist() == [identity] * 2
    assert test.modality[rows].tolist() == [0, 1]
    for side in ("points_visible", "points_infrared"):
        expected = [[x, y] for y in (32 / 6, 16, 160 / 6) for x in (4, 12)]
        torch.testing.assert_close(named[side], torch.tensor(expected))
    assert named["names"][:3] == ("row 1, column 1", "row 1, column 2", "row 2, column 1")
    assert (plan.shape, named["names"][-1]) == ((7, 7), "global")


def test_ranked_lists_are_of_the_last_way(run, regdb, saved, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr("vireid.training.inference.ranked_lists", lambda *given, **named: seen.append(given))
    run("draw", "ranked", saved["parts3"], "--root", regdb, "--queries", 3, "--output", tmp_path / "a.png")
    run("draw", "ranked", saved["parts3"], "--root", regdb, "--rerank", "none", "--output", tmp_path / "a.png")
    (queries, hits, correct, path), plain = seen
    assert (queries.shape, hits.shape, correct.shape) == ((3, 3, *SIZE), (3, 10, 3, *SIZE), (3, 10))
    assert path == tmp_path / "a.png"
    assert len(plain[0]) == 8


def test_curves_are_of_each_row_of_each_report(calls, run, file):
    for name in ("a", "b"):
        run("evaluate", file, "--protocol", "regdb", "--rerank", "aim", "--name", name, "--json", f"{name}.json")
    way = "aim (k1=8, k2=2, variant=paper)"
    (curves,), named, _ = calls("cmc", "a.json", "--max-rank", 5)
    assert list(curves) == [f"{x}, a + {way}" for x in ("visible to infrared", "infrared to visible")]
    assert named == {"max_rank": 5}
    (curves,), _, _ = calls("cmc", "a.json", "b.json")
    assert len(curves) == 4
    assert f"b: infrared to visible, b + {way}" in curves


@pytest.mark.parametrize("picture", ["skeleton", "costs", "tsne"])
def test_pictures_of_a_model_with_key_points_are_written(picture, run, regdb, keypoints, saved, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    options = ["--perplexity", 3] if picture == "tsne" else []
    run("draw", picture, saved["bones"], "--root", regdb, "--keypoints", keypoints, *options)
    assert (tmp_path / f"{picture}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["attention", "parts3", "parts0", "--name", "a"], "--name must be given per checkpoint"),
        (["affinities", "first"], "CHECKPOINTS must be two, got 1."),
        (["affinities", "first", "parts0"], "CHECKPOINTS must be models with CIFT's H2FT"),
        (["affinities", "first", "same"], "--change positives must be one that some query has"),
        (["attention", "parts3", "--output", "a.jpeg2"], "'a.jpeg2' must end in .png or .pdf or .svg."),
        (["attention", "parts3", "--images", 0], "Invalid value for '--images'"),
        (["tsne", "parts3", "--identities", 0], "Invalid value for '--identities'"),
        (["tsne", "parts3", "--name", "a", "--name", "b"], "--name must be given per checkpoint"),
        (["skeleton", "cells"], "cells/checkpoint.pt was trained with --part-grid"),
        (["skeleton", "bones"], "--keypoints must name the key points of the images"),
        (["skeleton", "--dataset", "sysu"], "--keypoints must name the key points of the images"),
        (["plan", "parts3"], "parts3/checkpoint.pt is of vireid train saai: take one of vireid train g2da."),
        (["costs", "cells", "--identity", 999], "--identity must have a visible and an infrared image"),
    ],
)
def test_what_cannot_be_drawn_is_named(options, message, wrong, saved, transfers, regdb, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    paths = saved | transfers
    assert message in wrong("draw", *[paths.get(option, option) for option in options], "--root", regdb)
