"""Pose estimators for tests: a stand-in with ViTPose's interface, and a tiny one of the real class."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from vireid.data.transforms import IMAGENET_MEAN, IMAGENET_STD


class Shared(list[int]):
    """A list that copies of a module share."""


class StandIn(nn.Module):
    """Interface of a VitPoseForPoseEstimation; key point k sees (k + 1)/17 of the brightness of a channel."""

    def __init__(self, image_size: tuple[int, int] = (32, 24), experts: int = 1, keypoints: int = 17) -> None:
        super().__init__()
        backbone = SimpleNamespace(image_size=list(image_size), num_attention_heads=1, num_experts=experts)
        self.config = SimpleNamespace(backbone_config=backbone, scale_factor=4)
        self.config.to_dict = lambda: {"backbone_config": dict(vars(backbone)), "scale_factor": 4}
        self.weight = nn.Parameter(torch.arange(1.0, keypoints + 1) / keypoints)
        self.drop = nn.Dropout(0.5)
        self.batches = Shared()

    def forward(self, pixel_values: Tensor, dataset_index: Tensor | None = None) -> SimpleNamespace:
        assert (dataset_index is not None) == (self.config.backbone_config.num_experts > 1)
        assert tuple(pixel_values.shape[1:]) == (3, *self.config.backbone_config.image_size)
        self.batches.append(len(pixel_values))
        brightness = pixel_values[:, :1] * IMAGENET_STD[0] + IMAGENET_MEAN[0]
        return SimpleNamespace(heatmaps=self.drop(brightness * self.weight[:, None, None].to(pixel_values.dtype)))


def tiny(transformers: Any, seed: int = 0, **settings: Any) -> nn.Module:
    torch.manual_seed(seed)
    backbone = transformers.VitPoseBackboneConfig(
        image_size=(64, 48),
        patch_size=(16, 16),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        mlp_ratio=2,
        out_indices=[1],
        **settings,
    )
    labels = {k: f"{k}" for k in range(17)}
    config = transformers.VitPoseConfig(backbone_config=backbone, id2label=labels)
    model: nn.Module = transformers.VitPoseForPoseEstimation(config)
    return model


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Content of every file below a folder, by its path there."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
