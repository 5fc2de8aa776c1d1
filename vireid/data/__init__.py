"""Data: readers of the published layouts, a synthetic dataset, the identity sampler and batched augmentation."""

from vireid.data.readers import LLCMDataset, RegDBDataset, Sample, SYSUMM01Dataset
from vireid.data.sampler import CrossModalIdentitySampler
from vireid.data.synthetic import generate_synthetic
from vireid.data.transforms import ChannelExchange, EvalTransform, TrainAugmentation, channel_exchange, normalize

__all__ = [
    "ChannelExchange",
    "CrossModalIdentitySampler",
    "EvalTransform",
    "LLCMDataset",
    "RegDBDataset",
    "SYSUMM01Dataset",
    "Sample",
    "TrainAugmentation",
    "channel_exchange",
    "generate_synthetic",
    "normalize",
]
