"""RankingMetric against `rank_metrics` of all blocks stacked, on one process, on two and inside torchmetrics."""

import itertools
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from processes import run_in_two
from reference.metrics import assert_same, draw_images, of_images
from vireid import metrics
from vireid.metrics import RankingMetric, rank_metrics


def scene(seed=0, nq=40, ng=60):
    r = np.random.default_rng(seed)
    distance = torch.from_numpy(r.integers(0, 40, (nq, ng)) / 7).float()  # with ties
    draw = lambda high, n: torch.from_numpy(r.integers(high, size=n))  # noqa: E731
    return distance, draw(9, nq), draw(8, ng), draw(3, nq), draw(3, ng)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    cuts=st.lists(st.integers(0, 40), max_size=5),
    exclude=st.sampled_from([None, "same_camera", "same_id_same_camera"]),
    cmc_over=st.sampled_from(["images", "identities"]),
)
def test_blocks_equal_the_whole(seed, cuts, exclude, cmc_over):
    distance, q, g, qc, gc = scene(seed)
    metric = RankingMetric(g, gc, exclude=exclude, cmc_over=cmc_over)
    bounds = [0, *sorted(cuts), len(q)]  # some blocks are empty
    for a, b in itertools.pairwise(bounds):
        metric.update(distance[a:b], q[a:b], qc[a:b])
    assert_same(metric.compute(), rank_metrics(distance, q, g, qc, gc, exclude=exclude, cmc_over=cmc_over))


def test_compute_twice_update_after_compute_and_reset():
    distance, q, g, qc, gc = scene(1)
    metric = RankingMetric(g, gc, exclude="same_camera")
    metric.update(distance[:30], q[:30], qc[:30])
    part = rank_metrics(distance[:30], q[:30], g, qc[:30], gc, exclude="same_camera")
    assert_same(metric.compute(), part)
    assert_same(metric.compute(), part)
    block = metric(distance[30:], q[30:], qc[30:])
    assert_same(block, rank_metrics(distance[30:], q[30:], g, qc[30:], gc, exclude="same_camera"))
    assert_same(metric.compute(), rank_metrics(distance, q, g, qc, gc, exclude="same_camera"))
    metric.reset()
    with pytest.raises(RuntimeError, match=r"call update\(\) first"):
        metric.compute()
    metric.update(distance[:30], q[:30], qc[:30])
    assert_same(metric.compute(), part)


def test_kinds_and_devices(device):
    distance, q, g, _, _ = scene(2)
    metric = RankingMetric(g.numpy())
    metric.update(distance.numpy(), q.numpy())
    assert isinstance(metric.compute().cmc, np.ndarray)
    metric = RankingMetric(g)
    metric.update(distance[:20], q[:20])
    metric.update(distance[20:].to(device), q[20:].to(device))
    m = metric.compute()
    assert m.cmc.device.type == metric.device.type == torch.device(device).type
    assert_same(metric.to("cpu").compute(), rank_metrics(distance, q, g))


def test_a_block_without_a_match_is_no_error_unless_it_is_all():
    metric = RankingMetric(torch.tensor([1, 2]))
    block = metric(torch.ones(1, 2), torch.tensor([5]))
    assert np.isnan([block.mAP, block.mINP]).all()
    assert (block.queries, block.valid_queries, block.skipped) == (1, 0, 1)
    with pytest.raises(ValueError, match="no query has a true match left"):
        metric.compute()
    metric.update(torch.ones(1, 2), torch.tensor([2]))
    assert metric.compute().mAP == 0.5


def test_bad_input_is_named_and_adds_nothing():
    ids = torch.tensor([1, 2, 3])
    for arguments, options, error, text in (
        ((ids,), {"exclude": "same_camera"}, ValueError, "exclude='same_camera' needs gallery_cameras, got None"),
        ((ids,), {"cmc_over": "id"}, ValueError, "cmc_over must be one of"),
        ((ids[:0],), {}, ValueError, "gallery_ids must name at least one"),
        ((ids.float(),), {}, TypeError, "gallery_ids must hold integers"),
        ((ids.to_sparse(),), {}, TypeError, "gallery_ids must be dense"),
        ((ids, ids[:2]), {"exclude": "same_camera"}, ValueError, r"gallery_cameras must have shape \(3,\)"),
    ):
        with pytest.raises(error, match=text):
            RankingMetric(*arguments, **options)
    metric = RankingMetric(ids, ids, exclude="same_camera")
    for arguments, error, text in (
        ((torch.ones(2, 4), ids[:2], ids[:2]), ValueError, r"distance must have shape \(N, 3\)"),
        ((torch.ones(2, 3), ids, ids[:2]), ValueError, r"query_ids must have shape \(2,\)"),
        ((torch.ones(2, 3), ids[:2]), ValueError, "exclude='same_camera' needs query_cameras, got None"),
        ((torch.full((2, 3), torch.nan), ids[:2], ids[:2]), ValueError, "distance must be finite"),
        ((torch.ones(2, 3).long(), ids[:2], ids[:2]), TypeError, "distance must be floating point"),
    ):
        with pytest.raises(error, match=text):
            metric.update(*arguments)
    with pytest.raises(RuntimeError, match="got none so far"):
        metric.compute()


def test_torchmetrics_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.delitem(sys.modules, "vireid.metrics._torchmetrics", raising=False)
    monkeypatch.delattr(metrics, "_torchmetrics", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'vireid\[train\]'"):
        RankingMetric(torch.tensor([1])).as_torchmetrics()


PROCESS = """
import importlib.util
import pytest
from vireid.metrics import RankingMetric, RetrievalMetric

(distance, q, g, qc, gc), (x, ids, m, c) = torch.load(folder + "/scenes.pt")
makes = {"ranking": lambda: RankingMetric(g, gc, exclude="same_camera")}
makes["retrieval"] = makes["double"] = lambda: RetrievalMetric(exclude="same_camera")
cases = {"ranking": (distance, q, qc), "retrieval": (x.bfloat16(), ids, m, c), "double": (x.double(), ids, m, c)}
forms = importlib.util.find_spec("torchmetrics") is not None

def add(metric, inputs, cut):
    mine = slice(0, cut) if rank == 0 else slice(cut, len(inputs[0]))
    for part in torch.arange(len(inputs[0]))[mine].split(20):  # none if it has no share: then it never updates
        metric.update(*(t[part] for t in inputs))
    return metric

found = []
for name, inputs in cases.items():
    make, n = makes[name], len(inputs[0])
    for cut in (n // 2, n - 11, n):  # equal and unequal shares, one of them empty
        metric = add(make(), inputs, cut)
        results = [metric.compute(), metric.compute()]
        found.append((name, results))
        if forms:
            assert float(add(make().as_torchmetrics(), inputs, cut).compute()["mAP"]) == results[0].mAP
    if forms:
        assert make().as_torchmetrics().compute()["mAP"].isnan()  # no process has any
    with pytest.raises(RuntimeError, match=r"call update\\(\\) first"):
        make().compute()
metric = RetrievalMetric()
metric.update(x[:, : 3 + rank], ids, m)
with pytest.raises(ValueError, match="features must have one dimension"):
    metric.compute()
torch.save(found, f"{folder}/{rank}.pt")
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_two_processes_equal_one(tmp_path):
    blocks, images = scene(4), draw_images(5)
    torch.save((blocks, images), tmp_path / "scenes.pt")
    run_in_two(PROCESS, tmp_path)
    whole = of_images(*images, exclude="same_camera")
    wholes = {"ranking": rank_metrics(*blocks, exclude="same_camera"), "retrieval": whole, "double": whole}
    for rank in range(2):
        for name, results in torch.load(tmp_path / f"{rank}.pt", weights_only=False):
            for found in results:
                assert_same(found, wholes[name])
