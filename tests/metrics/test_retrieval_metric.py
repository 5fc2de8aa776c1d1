"""RetrievalMetric against `rank_metrics` of all images at once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import NoFloat64
from measuring import LargestTensor
from reference.metrics import assert_same, draw_images, of_images
from vireid.metrics import RankingMetric, RetrievalMetric, feature_margin, rank_metrics, streaming
from vireid.rerank import AIM, k_reciprocal


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    size=st.integers(3, 40),
    direction=st.sampled_from(["visible_to_infrared", "infrared_to_visible"]),
    exclude=st.sampled_from([None, "same_camera", "same_id_same_camera"]),
    cmc_over=st.sampled_from(["images", "identities"]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    block=st.sampled_from([90, 2**24]),
)
def test_mixed_batches_equal_the_whole(seed, size, direction, exclude, cmc_over, dtype, block):
    x, y, m, c = draw_images(seed, n=30)
    x = x.to(dtype)
    metric = RetrievalMetric(direction, exclude=exclude, cmc_over=cmc_over)
    for part in torch.arange(len(x)).split(size):
        metric.update(x[part], y[part], m[part], c[part])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "_BLOCK", block)
        assert_same(metric.compute(), of_images(x, y, m, c, direction, exclude=exclude, cmc_over=cmc_over))


def test_numpy_and_devices(device):
    x, y, m, c = draw_images(1)
    metric = RetrievalMetric()
    metric.update(*(t.numpy() for t in (x, y, m)))
    assert isinstance(metric.compute().cmc, np.ndarray)
    metric.reset()
    metric.update(x[:20], y[:20], m[:20])
    metric.compute()
    metric.update(*(t[20:].to(device) for t in (x, y, m)))
    assert metric.compute().cmc.device.type == metric.device.type == torch.device(device).type
    assert_same(metric.to("cpu").compute(), of_images(x, y, m, c))


def test_a_buffer_of_the_caller_may_be_used_again():
    x, y, m, c = draw_images(6)
    metric, buffers = RetrievalMetric(), [t[:12].numpy().copy() for t in (x, y, m)]
    for part in torch.arange(48).split(12):
        for buffer, t in zip(buffers, (x, y, m), strict=True):
            buffer[:] = t[part]
        metric.update(*buffers)
    assert_same(metric.compute(), of_images(x, y, m, c))


def test_a_distance_of_ones_own():
    x, y, m, _ = draw_images(2)
    q = m == 0
    for distance in (torch.cdist, AIM(k1=4, k2=2)):
        metric = RetrievalMetric(distance=distance)
        metric.update(x, y, m)
        whole = distance(x[q], x[~q])
        assert metric.compute().mAP == rank_metrics(whole, y[q], y[~q]).mAP
    for wrong, error, text in (
        (lambda q, g: torch.cdist(q, g)[:, 1:], ValueError, "distance's result must have shape"),
        (lambda q, g: torch.cdist(q, g)[1:], ValueError, "distance's result must have shape"),
        (lambda q, g: torch.cdist(q, g) / 0, ValueError, "distance must be finite"),
        (lambda q, g: None, TypeError, "distance's result must be a torch.Tensor"),
    ):
        metric = RetrievalMetric(distance=wrong)
        metric.update(x, y, m)
        with pytest.raises(error, match=text):
            metric.compute()
    with pytest.raises(ValueError, match="distance must rank each query by itself"):
        RetrievalMetric(distance=k_reciprocal)
    for bad in ("l2", AIM, None):
        with pytest.raises(ValueError, match="distance must be one of 'cosine'"):
            RetrievalMetric(distance=bad)


def test_bad_input_is_named_and_adds_nothing():
    x, y, m, c = draw_images(3)
    with pytest.raises(ValueError, match="direction must be one of"):
        RetrievalMetric("rgb_to_ir")
    metric = RetrievalMetric(exclude="same_camera")
    for inputs, error, text in (
        ((x, y, m), ValueError, "exclude='same_camera' needs cameras, got None"),
        ((x, y[1:], m, c), ValueError, "labels must have shape"),
        ((x, y.float(), m, c), TypeError, "labels must hold integers"),
        ((x, y, m + 1, c), ValueError, r"modality must be 0 \(visible\) or 1 \(infrared\), got 2"),
        ((x, y, m, c[None]), ValueError, "cameras must have shape"),
        ((x / 0, y, m, c), ValueError, "features must be finite"),
        ((x[:, :0], y, m, c), ValueError, "features must have at least one column"),
        ((x.long(), y, m, c), TypeError, "features must be floating point"),
        ((x.numpy(), y.numpy().astype(np.uint64) + 2**63, m, c), ValueError, "labels must be below 2"),
    ):
        with pytest.raises(error, match=text):
            metric.update(*inputs)
    with pytest.raises(RuntimeError, match="got none so far"):
        metric.compute()
    metric.update(x, y, m, c)
    metric.update(x.double(), y, m, c)
    with pytest.raises(ValueError, match="features must have one dimension and dtype"):
        metric.compute()
    metric.reset()
    metric.update(x, y, m, c * 0)
    with pytest.raises(ValueError, match="query_cameras must differ from gallery_cameras in some true match"):
        metric.compute()


def test_memory_is_that_of_the_features_and_a_block(monkeypatch):
    monkeypatch.setattr(streaming, "_BLOCK", 10000)
    x, y, m, c = draw_images(4, n=400)
    metric = RetrievalMetric(cmc_over="identities")
    metric.update(x, y, m, c)
    with LargestTensor() as largest:
        metric.compute()
    assert largest.elements <= 400 * (6 * 4 + 32)  # bytes


def test_metrics_on_a_device_without_float64():
    x, y, m, c = draw_images(5)
    q = m == 0
    whole = of_images(x, y, m, c)
    margin = feature_margin(x, y)
    with NoFloat64():
        distance = torch.cdist(x[q], x[~q])
        blocks, metric = RankingMetric(y[~q]), RetrievalMetric()
        blocks.update(distance, y[q])
        metric.update(x, y, m)
        found = metric.compute()
        assert blocks.compute().mAP == rank_metrics(distance, y[q], y[~q]).mAP
        assert feature_margin(x, y) == pytest.approx(margin, abs=1e-5)
    assert found.cmc.dtype == torch.float32
    assert found.mAP == pytest.approx(whole.mAP, abs=1e-6)
