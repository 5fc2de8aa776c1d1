"""Forms of the metrics for torchmetrics: what a MetricCollection, Lightning and pickling do to them."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch

from reference.metrics import draw_images, of_images
from vireid.metrics import RankingMetric, RetrievalMetric, rank_metrics
from vireid.neighbors._scores import cosine_distance

torchmetrics = pytest.importorskip("torchmetrics")
NAMES = ("rank1", "rank5", "rank10", "rank20", "mAP", "mINP")


def named(m):
    return {f"rank{r}": m.rank(r) for r in (1, 5, 10, 20)} | {"mAP": m.mAP, "mINP": m.mINP}


def assert_same(found, expected):
    assert set(found) == set(NAMES)
    for name, value in found.items():
        assert value.ndim == 0
        torch.testing.assert_close(float(value), expected[name], rtol=0, atol=1e-12, equal_nan=True, msg=name)


def test_metrics_of_one_collection_stay_apart_although_their_first_states_agree():
    g, gc, q = torch.arange(40) % 8, torch.arange(40) % 3, torch.arange(24) % 8
    distance = torch.rand(24, 40, generator=torch.Generator().manual_seed(0))
    distance[:8] += 5 * (q[:8, None] != g)  # in the first block all are right, from a camera that the gallery lacks
    qc = torch.cat([torch.full((8,), 5), torch.arange(16) % 3])
    kinds = {
        "images": (g, {}),
        "identities": (g, {"cmc_over": "identities"}),
        "same_camera": (g, {"exclude": "same_camera"}),
        "same_id": (g, {"exclude": "same_id_same_camera"}),
        "gallery": (torch.where(torch.arange(40) < 35, g, 99), {}),
    }
    collection = torchmetrics.MetricCollection(
        {name: RankingMetric(ids, gc, **options).as_torchmetrics() for name, (ids, options) in kinds.items()}
    )
    for start in (0, 8, 16):
        part = slice(start, start + 8)
        collection.update(distance=distance[part], query_ids=q[part], query_cameras=qc[part], other="not for these")
    found = collection.compute()
    for name, (ids, options) in kinds.items():
        expected = named(rank_metrics(distance, q, ids, qc, gc, **options))
        assert_same({key: found[f"{name}_{key}"] for key in NAMES}, expected)


def test_both_directions_in_a_collection_fed_as_lightning_does():
    directions = {"v2i": "visible_to_infrared", "i2v": "infrared_to_visible"}
    options = {"exclude": "same_id_same_camera", "cmc_over": "identities"}
    collection = torchmetrics.MetricCollection(
        {name: RetrievalMetric(d, **options).as_torchmetrics() for name, d in directions.items()}, prefix="val/"
    )
    x, y, m, c = draw_images()
    visible = m == 0
    collection.update(x[visible][:4], y[visible][:4], m[visible][:4], c[visible][:4])  # the sanity check
    assert all(value.isnan() for value in collection.compute().values())
    collection.reset()
    for seed in (0, 1):
        x, y, m, c = draw_images(seed)
        for part in torch.arange(len(x)).split(7):
            collection.update(x[part], y[part], m[part], c[part])
        found = collection.compute()
        for name, direction in directions.items():
            values = {key: found[f"val/{name}_{key}"] for key in NAMES}
            assert_same(values, named(of_images(x, y, m, c, direction, **options)))
        collection.reset()


@pytest.mark.parametrize("kind", ["ranking", "retrieval"])
def test_life_of_a_metric(kind):
    x, y, m, c = draw_images(2)
    q = m == 0
    distance = cosine_distance(x[q], x[~q])
    if kind == "ranking":
        metric, inputs = RankingMetric(y[~q]).as_torchmetrics(), (distance, y[q])
    else:
        metric, inputs = RetrievalMetric().as_torchmetrics(), (x, y, m)
    expected = named(of_images(x, y, m, c))
    with pytest.warns(UserWarning, match="was called before"):
        assert_same(metric.compute(), dict.fromkeys(NAMES, np.nan))
    batch = metric(*(t[:5] for t in inputs))  # forward: the batch's own values
    assert set(batch) == set(NAMES)
    metric.update(*(t[5:5] for t in inputs))
    clone = pickle.loads(pickle.dumps(copy.deepcopy(metric.clone())))
    for one in (metric, clone):
        one.update(*(t[5:] for t in inputs))
        assert_same(one.compute(), expected)
        for cast in (one.half(), one.to(torch.bfloat16), one.to("cpu"), one.set_dtype(torch.float64)):
            cast.update(*(t[:0] for t in inputs))  # so that it computes again
            assert_same(cast.compute(), expected)
    halves = metric, clone
    for half, part in zip(halves, (slice(0, 9), slice(9, None)), strict=True):
        half.reset()
        half.update(*(t[part] for t in inputs))
    clone.merge_state(metric)  # puts what it is given first
    assert_same(clone.compute(), expected)


def test_lightning_logs_it(tmp_path):
    lightning = pytest.importorskip("pytorch_lightning")
    x, y, m, c = draw_images(4, n=32)
    order = m.argsort(stable=True)  # the sanity check sees one modality
    x, y, m, c = x[order], y[order], m[order], c[order]

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(6, 6)
            self.metric = RetrievalMetric("infrared_to_visible").as_torchmetrics()
            self.seen = []

        def training_step(self, batch, _):
            return self.layer(batch[0]).square().mean()

        def validation_step(self, batch, _):
            self.metric.update(*batch)

        def on_validation_epoch_end(self):
            self.log_dict(self.metric.compute())
            self.seen.append(float(self.metric.compute()["mAP"]))
            self.metric.reset()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    module = Module()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y, m, c), 8)
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own, about workers and the like
        trainer = lightning.Trainer(
            max_epochs=2, accelerator="cpu", devices=1, num_sanity_val_steps=1, default_root_dir=tmp_path, **off
        )
        trainer.fit(module, loader, torch.utils.data.DataLoader(loader.dataset, 8))
    assert np.isnan(module.seen[0])
    assert float(trainer.callback_metrics["mAP"]) == module.seen[-1]
