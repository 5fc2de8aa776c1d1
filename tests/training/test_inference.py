"""Features of a data set, their evaluation by its protocol, and the files of results."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.testing import assert_close

from places import SHARED
from vireid.data import EvalTransform, KeypointSample, move_keypoints
from vireid.nn import gaussian_heatmaps
from vireid.protocols import DIRECTIONS, SYSUMM01
from vireid.rerank import AIM, aim
from vireid.training import (
    build,
    evaluate,
    extract_features,
    load_model,
    open_dataset,
    ranking_ways,
    write_results,
)

OFFICIAL = SHARED / "data" / "sysu-mm01-split" / "rand_perm_cam.mat"
SIZE = (32, 16)


@pytest.fixture(scope="module")
def model(trained):
    return load_model(trained / "checkpoint.pt")


@pytest.fixture(scope="module")
def people(regdb):
    return open_dataset("regdb", "test", root=regdb, size=SIZE)


def images_of(data):
    return EvalTransform()(torch.stack([data[i].image for i in range(len(data))]))


# -- Features ------------------------------------------------------------------------------------------------------


def test_features_are_in_the_data_sets_order_whatever_the_batches(model, people):
    model.train()
    features = extract_features(model, people, batch_size=7)
    assert model.training  # as before
    model.eval()
    with torch.no_grad():
        output = model(images_of(people), torch.from_numpy(people.modality))
    assert_close(features, output.features)
    assert_close(features, extract_features(model, people, workers=1))
    assert features.shape == (24, model.baseline.dim)
    assert not features.requires_grad


def test_a_bar_is_shown_on_a_terminal_or_when_asked_for(model, people, capsys):
    for progress, shown in ((None, False), (False, False), (True, True)):
        extract_features(model, people, progress=progress)
        assert ("features: " in capsys.readouterr().err) == shown


def test_flip_is_the_mean_with_the_mirror_image(people):
    class Pixels(nn.Module):
        """Features that are the image itself; a plain tensor is an output too."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, images, modality):
            return (self.weight * images).flatten(1).double()

    images = images_of(people)
    assert torch.equal(extract_features(Pixels(), people), images.flatten(1))
    assert_close(extract_features(Pixels(), people, flip=True), ((images + images.flip(3)) / 2).flatten(1))


@pytest.mark.parametrize("flip", [False, True])
def test_features_are_those_of_each_images_own_key_points(flip, regdb):
    """The mirror image has its left and right key points exchanged."""
    torch.manual_seed(0)
    model = build("g2da", 4, SIZE)[0].eval()
    data = open_dataset("regdb", "test", root=regdb, size=SIZE, keypoints=regdb / "keypoints.npz")
    features = extract_features(model, data, flip=flip)
    for i in range(0, len(data), 5):
        sample = data[i]
        assert isinstance(sample, KeypointSample)
        image, points = EvalTransform()(sample.image[None]), sample.keypoints[None]
        views = [(image, points)]
        if flip:
            corner = torch.zeros(1, 2, dtype=torch.long)
            turned = move_keypoints(points, corner=corner, size=SIZE, flipped=torch.tensor([True]))
            views.append((image.flip(3), turned))
        with torch.no_grad():
            own = [
                model(x, torch.tensor([sample.modality]), gaussian_heatmaps(p, (64, 32), image_size=SIZE)).features[0]
                for x, p in views
            ]
        assert_close(features[i], torch.stack(own).mean(0), rtol=1e-3, atol=1e-4)


# -- Evaluation ----------------------------------------------------------------------------------------------------


def mean_precision_and_rank1(distance, right):
    """By a loop over the queries; ``right`` (Nq, Ng) says which gallery images are true matches."""
    precision, first = [], []
    for row, true in zip(distance.tolist(), right.tolist(), strict=True):
        order = sorted(range(len(row)), key=row.__getitem__)
        hits = [true[j] for j in order]
        precision.append(np.mean([sum(hits[: n + 1]) / (n + 1) for n in range(len(row)) if hits[n]]))
        first.append(hits[0])
    return 100 * np.mean(precision), 100 * np.mean(first)


def test_figures_equal_a_loop_over_the_queries(model, people):
    x = extract_features(model, people)
    report = evaluate(people, x, ranking_ways(model, {"AIM": AIM(k1=8, k2=2)}))
    ways = [("backbone", "none"), ("backbone", "AIM"), ("transferred", "none"), ("transferred", "AIM")]
    assert [(r.features, r.rerank, r.direction) for r in report.rows] == [(*w, d) for w in ways for d in DIRECTIONS]
    kinds = [np.flatnonzero(people.modality == kind) for kind in (0, 1)]
    for row in report.rows:
        query, gallery = kinds if row.direction == DIRECTIONS[0] else kinds[::-1]
        q, g = x[query], x[gallery]
        if row.features == "transferred":  # each query alone with the gallery
            alone = [model.transfer.transfer(single[None], g) for single in q]
            q, g = torch.cat([f_q for f_q, _ in alone]), alone[0][1]
        distance = -nn.functional.cosine_similarity(q[:, None], g[None], dim=2)
        if row.rerank == "AIM":
            distance = aim(q, g, k1=8, k2=2)
        mAP, rank1 = mean_precision_and_rank1(distance, people.ids[query][:, None] == people.ids[gallery])
        assert row.mean["mAP"] == pytest.approx(mAP, abs=1e-3)
        assert row.mean["rank1"] == pytest.approx(rank1, abs=1e-3)
        assert row.parameters == ({"k1": 8, "k2": 2, "variant": "paper"} if row.rerank == "AIM" else {})
        assert row.uses == ("query" if (row.features, row.rerank) == ways[0] else "gallery")
        # Chance: 3 of 12 right. In percent nothing right can be below 3 / 12 at the last rank.
        assert 25 <= row.mean["mINP"] <= row.mean["mAP"] <= 100


@pytest.mark.parametrize("split", ["test", "all"])
@pytest.mark.parametrize("sampling", ["official", "agw"])
@pytest.mark.parametrize("mode", ["all", "indoor"])
def test_sysu_is_evaluated_by_its_protocol(mode, sampling, split, model, sysu):
    data = open_dataset("sysu", split, root=sysu, size=SIZE)
    protocol = SYSUMM01(mode, sampling=sampling, permutations=sysu / "exp" / "rand_perm_cam.mat")
    report = evaluate(data, extract_features(model, data), ranking_ways(model), [protocol])
    assert report.dataset == f"SYSU-MM01 {mode} single-shot {sampling}"
    if (mode, sampling) == ("all", "official"):
        assert evaluate(data, extract_features(model, data), ranking_ways(model)).to_dict() == report.to_dict()
    assert [(r.direction, r.features) for r in report.rows] == [
        ("infrared_to_visible", "backbone"), ("infrared_to_visible", "transferred")
    ]  # fmt: skip
    for row in report.rows:
        assert len(row.trials) == 10
        assert len(row.cmc) == (4 if split == "test" else 8)  # over identities
        assert row.cmc[-1] == pytest.approx(1)


def test_llcm_is_evaluated_in_both_directions(model, llcm):
    data = open_dataset("llcm", "test", root=llcm, size=SIZE)
    report = evaluate(data, extract_features(model, data), {"backbone": None})
    assert (report.dataset, [row.direction for row in report.rows]) == ("LLCM", list(DIRECTIONS))
    assert all(len(row.trials) == 10 for row in report.rows)


def test_what_sysus_protocol_lacks_is_named(sysu, tmp_path):
    data = open_dataset("sysu", "test", root=sysu, size=SIZE)
    features = torch.randn(len(data), 4)
    with pytest.raises(ValueError, match="must hold 10 images of identity"):
        evaluate(data, features, {"backbone": None}, [SYSUMM01(shots=10, sampling="agw")])
    shutil.copytree(sysu, tmp_path / "sysu")
    data = open_dataset("sysu", "test", root=tmp_path / "sysu", size=SIZE)
    (tmp_path / "sysu" / "exp" / "rand_perm_cam.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"rand_perm_cam\.mat"):
        evaluate(data, features, {"backbone": None})
    if not OFFICIAL.is_file():
        pytest.skip("needs SYSU-MM01's split files")
    shutil.copy(OFFICIAL, tmp_path / "sysu" / "exp")
    with pytest.raises(ValueError, match=r"the images that permutations draws, got no image \d+ of identity"):
        evaluate(data, features, {"backbone": None})


# -- Files ---------------------------------------------------------------------------------------------------------


def test_results_are_written_with_pictures_that_are_whole_and_not_blank(model, people, sysu, tmp_path):
    sysu = open_dataset("sysu", "test", root=sysu, size=SIZE)
    for data, way in ((people, "transferred"), (sysu, "backbone")):
        features, ways = extract_features(model, data), ranking_ways(model)
        report = evaluate(data, features, ways)
        write_results(tmp_path / way, report, data, features, ways[way], name=data.name, settings={"dataset": "regdb"})
        content = json.loads((tmp_path / way / "metrics.json").read_text())
        assert (content["dataset"], content["protocol"]) == (data.name, report.dataset)
        assert content["trained_on"] == "regdb, trial 1"
        assert [row["mAP"] for row in content["rows"]] == [row.mean["mAP"] for row in report.rows]
        assert {path.name for path in (tmp_path / way).iterdir()} == {"metrics.json", "cmc.png", "ranked.png"}
        for name in ("cmc.png", "ranked.png"):
            with Image.open(tmp_path / way / name) as image:
                assert image.format == "PNG"
                pixels = np.asarray(image.convert("RGB"))
            assert min(pixels.shape[:2]) > 200
            assert pixels.reshape(-1, 3).std(0).min() > 5
