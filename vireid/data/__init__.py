"""Data: readers of the published layouts, key points, synthetic data, the identity sampler, batched augmentation."""

from vireid.data.dataset import ImageDataset, KeypointSample, Sample
from vireid.data.features import Features, load_features, save_features
from vireid.data.keypoints import (
    HeatmapFolder,
    Keypoints,
    load_heatmaps,
    load_keypoints,
    save_heatmaps,
    save_keypoints,
)
from vireid.data.llcm import LLCMDataset
from vireid.data.moves import move_heatmaps, move_keypoints
from vireid.data.pose import cache_heatmaps, estimate_heatmaps
from vireid.data.regdb import RegDBDataset
from vireid.data.sampler import CrossModalIdentitySampler
from vireid.data.synthetic import generate_synthetic
from vireid.data.sysu import SYSUMM01Dataset
from vireid.data.transforms import ChannelExchange, EvalTransform, TrainAugmentation, channel_exchange, normalize

__all__ = [
    "ChannelExchange",
    "CrossModalIdentitySampler",
    "EvalTransform",
    "Features",
    "HeatmapFolder",
    "ImageDataset",
    "KeypointSample",
    "Keypoints",
    "LLCMDataset",
    "RegDBDataset",
    "SYSUMM01Dataset",
    "Sample",
    "TrainAugmentation",
    "cache_heatmaps",
    "channel_exchange",
    "estimate_heatmaps",
    "generate_synthetic",
    "load_features",
    "load_heatmaps",
    "load_keypoints",
    "move_heatmaps",
    "move_keypoints",
    "normalize",
    "save_features",
    "save_heatmaps",
    "save_keypoints",
]
