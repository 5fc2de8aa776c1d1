"""RankingMetric against `rank_metrics` of all blocks stacked, on one process, on two and inside torchmetrics."""

import importlib.util
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from places import ROOT
from reference.metrics import draw_images as images
from vireid.metrics import RankingMetric, rank_metrics
from vireid.neighbors._scores import cosine_distance


def scene(seed=0, nq=40, ng=60):
    r = np.random.default_rng(seed)
    distance = torch.from_numpy(r.integers(0, 40, (nq, ng)) / 7).float()  # with ties
    draw = lambda high, n: torch.from_numpy(r.integers(high, size=n))  # noqa: E731
    return distance, draw(9, nq), draw(8, ng), draw(3, nq), draw(3, ng)


def same(a, b):
    for name in ("cmc", "average_precision", "inverse_negative_penalty", "first_match"):
        np.testing.assert_array_equal(np.asarray(getattr(a, name)), np.asarray(getattr(b, name)))
    assert (a.mAP, a.mINP, a.queries, a.valid_queries) == (b.mAP, b.mINP, b.queries, b.valid_queries)


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
    same(metric.compute(), rank_metrics(distance, q, g, qc, gc, exclude=exclude, cmc_over=cmc_over))


def test_compute_twice_update_after_compute_and_reset():
    distance, q, g, qc, gc = scene(1)
    metric = RankingMetric(g, gc, exclude="same_camera")
    metric.update(distance[:30], q[:30], qc[:30])
    part = rank_metrics(distance[:30], q[:30], g, qc[:30], gc, exclude="same_camera")
    same(metric.compute(), part)
    same(metric.compute(), part)
    block = metric(distance[30:], q[30:], qc[30:])
    same(block, rank_metrics(distance[30:], q[30:], g, qc[30:], gc, exclude="same_camera"))
    same(metric.compute(), rank_metrics(distance, q, g, qc, gc, exclude="same_camera"))
    metric.reset()
    with pytest.raises(RuntimeError, match=r"call update\(\) first"):
        metric.compute()
    metric.update(distance[:30], q[:30], qc[:30])
    same(metric.compute(), part)


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
    same(metric.to("cpu").compute(), rank_metrics(distance, q, g))


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
    with pytest.raises(ValueError, match="exclude='same_camera' needs gallery_cameras, got None"):
        RankingMetric(ids, exclude="same_camera")
    with pytest.raises(ValueError, match="cmc_over must be one of"):
        RankingMetric(ids, cmc_over="id")
    with pytest.raises(ValueError, match="gallery_ids must name at least one"):
        RankingMetric(ids[:0])
    with pytest.raises(TypeError, match="gallery_ids must hold integers"):
        RankingMetric(ids.float())
    with pytest.raises(TypeError, match="gallery_ids must be dense"):
        RankingMetric(ids.to_sparse())
    with pytest.raises(ValueError, match=r"gallery_cameras must have shape \(3,\)"):
        RankingMetric(ids, ids[:2], exclude="same_camera")
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
    with pytest.raises(ImportError, match="pip install torchmetrics"):
        RankingMetric(torch.tensor([1])).as_torchmetrics()


WORKER = """
import os
import sys
import numpy as np
import torch
import torch.distributed as dist
from vireid.metrics import RankingMetric, RetrievalMetric

rank, folder, with_torchmetrics = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "True"
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
distance, q, g, qc, gc, x, ids, m, c = (torch.from_numpy(a) for a in np.load(folder + "/scene.npz").values())
ranking = lambda: RankingMetric(g, gc, exclude="same_camera"), (distance, q, qc), "ranking", 40
kinds = [ranking]
for dtype in (torch.bfloat16, torch.float64):
    kinds.append((lambda: RetrievalMetric(exclude="same_camera"), (x.to(dtype), ids, m, c), "retrieval", 48))

def add(metric, inputs, cut):
    mine = slice(0, cut) if rank == 0 else slice(cut, len(inputs[0]))
    for part in torch.arange(len(inputs[0]))[mine].split(20):  # none if it has no share: then it never updates
        metric.update(*(t[part] for t in inputs))
    return metric

for make, inputs, name, n in kinds:
    wanted = np.load(f"{folder}/{name}.npz")
    for cut in (n // 2, n - 11, n):  # equal and unequal shares, one of them empty
        metric = add(make(), inputs, cut)
        for _ in range(2):
            found = metric.compute()
            for field in wanted:
                np.testing.assert_array_equal(np.asarray(getattr(found, field)), wanted[field])
        if with_torchmetrics:
            assert float(add(make().as_torchmetrics(), inputs, cut).compute()["mAP"]) == wanted["mAP"]
    if with_torchmetrics:
        assert make().as_torchmetrics().compute()["mAP"].isnan()  # no process has any
    try:
        make().compute()
    except RuntimeError as error:
        assert "call update() first" in str(error), error
    else:
        raise SystemExit("no error without queries")
metric = RetrievalMetric()
metric.update(x[:, : 3 + rank], ids, m)
try:
    metric.compute()
except ValueError as error:
    assert "features must have one dimension" in str(error), error
else:
    raise SystemExit("no error for features of two dimensions")
dist.destroy_process_group()
os._exit(0)  # gloo's threads still release tensors, which aborts an interpreter that is being taken down
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_two_processes_equal_one(tmp_path):
    distance, q, g, qc, gc = scene(4)
    x, ids, m, c = images(5)
    np.savez(tmp_path / "scene.npz", *(t.numpy() for t in (distance, q, g, qc, gc, x, ids, m, c)))
    visible = m == 0
    between = cosine_distance(x[visible], x[~visible])
    wholes = {
        "ranking": rank_metrics(distance, q, g, qc, gc, exclude="same_camera"),
        "retrieval": rank_metrics(between, ids[visible], ids[~visible], c[visible], c[~visible], exclude="same_camera"),
    }
    names = ("cmc", "mAP", "mINP", "queries", "average_precision", "inverse_negative_penalty", "first_match")
    for kind, whole in wholes.items():
        np.savez(tmp_path / f"{kind}.npz", **{name: np.asarray(getattr(whole, name)) for name in names})
    with_torchmetrics = importlib.util.find_spec("torchmetrics") is not None
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", WORKER]
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path), str(with_torchmetrics)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)
