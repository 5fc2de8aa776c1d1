"""Data: readers of the published layouts, key points, synthetic data, the identity sampler, batched augmentation."""

from vireid.data.keypoints import (
    HeatmapFolder,
    Keypoints,
    load_heatmaps,
    load_keypoints,
    save_heatmaps,
    save_keypoints,
)
from vireid.data.moves import move_heatmaps, move_keypoints
from vireid.data.readers import KeypointSample, LLCMDataset, RegDBDataset, Sample, SYSUMM01Dataset
from vireid.data.sampler import CrossModalIdentitySampler
from vireid.data.synthetic import generate_synthetic
from vireid.data.transforms import ChannelExchange, EvalTransform, TrainAugmentation, channel_exchange, normalize

__all__ = [
    "ChannelExchange",
    "CrossModalIdentitySampler",
    "EvalTransform",
    "HeatmapFolder",
    "KeypointSample",
    "Keypoints",
    "LLCMDataset",
    "RegDBDataset",
    "SYSUMM01Dataset",
    "Sample",
    "TrainAugmentation",
    "channel_exchange",
    "generate_synthetic",
    "load_heatmaps",
    "load_keypoints",
    "move_heatmaps",
    "move_keypoints",
    "normalize",
    "save_heatmaps",
    "save_keypoints",
]
