"""LLCM's protocol."""

import random

import numpy as np
import pytest
import torch

from reference.protocols import llcm_gallery, metrics
from vireid.protocols import LLCM


@pytest.fixture(scope="module")
def images():
    """Ids, cameras, modality, numbers of test images in random order; not every camera sees every identity."""
    r = np.random.default_rng(0)
    table = np.array(
        [
            (identity, camera, kind, number)
            for identity in range(3, 13)
            for camera in range(1, 10)
            for kind in (0, 1)
            if r.random() < 0.5
            for number in range(1, r.integers(2, 6))
        ]
    )
    # only camera 5 sees identity 20: its queries have no true match left
    table = np.concatenate([table, [(20, 5, 0, 1), (20, 5, 1, 1), (20, 5, 1, 2)]])
    return r.permutation(table).T


@pytest.mark.parametrize("direction", ["infrared_to_visible", "visible_to_infrared"])
def test_draw_and_metrics_equal_plain_loops(images, direction, device):
    ids, cameras, modality, numbers = images
    r = np.random.default_rng(1)
    features = r.normal(size=(len(ids), 6)) + r.normal(size=(30, 6))[ids]
    protocol = LLCM(direction, trials=3)
    report = protocol.evaluate(features, ids, modality, cameras, numbers)
    asks = 1 if direction == "infrared_to_visible" else 0
    query = np.flatnonzero(modality == asks)
    assert protocol.query(modality).tolist() == query.tolist()
    keys = zip(zip(ids.tolist(), cameras.tolist(), numbers.tolist(), strict=True), modality.tolist(), strict=True)
    at = {key: k for k, key in enumerate(keys)}
    row = report.rows[0]
    assert (report.dataset, row.direction, row.uses, len(row.trials)) == ("LLCM", direction, "query", 3)
    for trial in range(3):
        there = np.flatnonzero(modality != asks)
        drawn = llcm_gallery(trial, ids[there], cameras[there], numbers[there])
        gallery = [at[image, 1 - asks] for image in drawn]
        state = random.getstate()
        assert protocol.gallery(trial, ids, modality, cameras, numbers).tolist() == gallery
        assert random.getstate() == state
        wanted, left_out = metrics(
            features, ids, query, gallery, lambda q, g: ids[q] == ids[g] and cameras[q] == cameras[g]
        )
        assert row.trials[trial] == pytest.approx(wanted, abs=1e-9)
        assert left_out >= (2 if asks else 1)
        assert (row.queries[0].first_match[trial] == 0).sum() == left_out
    assert row.trials[0] != row.trials[1]
    tensors = [torch.tensor(x, device=device) for x in (features, ids, modality, cameras, numbers)]
    assert protocol.evaluate(*tensors).to_dict() == report.to_dict()


def test_ten_trials_by_default_and_more_on_demand(images):
    ids, cameras, modality, numbers = images
    ten, more = LLCM(), LLCM(trials=12)
    assert (ten.direction, ten.trials) == ("infrared_to_visible", 10)
    drawn = {tuple(more.gallery(t, ids, modality, cameras, numbers).tolist()) for t in range(12)}
    assert len(drawn) == 12
    assert tuple(ten.gallery(9, ids, modality, cameras, numbers).tolist()) in drawn


def test_only_the_same_identity_in_the_same_camera_is_skipped():
    """By hand: the query skips its own identity in its camera, not another identity in it."""
    ids, cameras = torch.tensor([1, 1, 1, 2]), torch.tensor([4, 4, 5, 4])
    modality, numbers = torch.tensor([1, 0, 0, 0]), torch.ones(4).long()
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
    row = LLCM(trials=1).evaluate(features, ids, modality, cameras, numbers).rows[0]
    assert row.mean["rank1"] == 0  # identity 2 in camera 4 comes first, the twin in camera 4 does not count
    assert row.mean["mAP"] == pytest.approx(50)
