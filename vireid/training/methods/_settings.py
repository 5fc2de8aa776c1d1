"""Settings shared by the methods, and the backbones that they build."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from vireid import models
from vireid._checks import check_option, check_positive, check_size
from vireid._ops import evaluated
from vireid.losses import CRILoss
from vireid.nn import H2FT, SmallBackbone, TwoStream, backbone

Built = tuple[nn.Module, nn.Module]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of every method; each class below adds its own.

    Attributes:
        backbone: "small", or a network of `vireid.nn.backbone`, such as "resnet50".
        weights: of that network: "imagenet", a local file, or "none".
        last_stride: of that network: 1, a map of H/16 × W/16, or 2, as it is; Swin transformers need 2.
    """

    backbone: str = "small"
    weights: str | None = None
    last_stride: int = 1

    def build(self, num_classes: int, size: tuple[int, int]) -> Built:
        """Return the model and the criterion for images of ``size`` (H, W)."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class TransferSettings(Settings):
    """Settings of CIFT's transfer and its intervention.

    Attributes:
        k: neighbors of the graph, the image itself included.
        tau_hom: temperature within a modality.
        tau_het: temperature across modalities, and GFT's only one.
        samples: draws of CRI's counterfactual.
        detach_values: whether CRI trains the affinities only.
        intervention: CRI's X_μ and X_σ are parameters, or predicted for each image.
    """

    k: int = 4
    tau_hom: float = 0.4
    tau_het: float = 0.2
    samples: int = 1
    detach_values: bool = False
    intervention: Literal["free", "predicted"] = "free"

    def transfer_of(self, dim: int) -> tuple[H2FT, CRILoss]:
        """Return CIFT's layer for features of size ``dim`` and the loss of its intervention."""
        layer = H2FT(dim, k=self.k, tau_hom=self.tau_hom, tau_het=self.tau_het)
        cri = CRILoss(dim, samples=self.samples, detach_values=self.detach_values, intervention=self.intervention)
        return layer, cri


@dataclass(frozen=True, kw_only=True)
class AlignedSettings(TransferSettings):
    """Settings of a method that G2DA's alignment of parts may be added to.

    Attributes:
        alignment: weight of G2DA's D_ot between parts of a person's images (our choice); none leaves it out.
        part_grid: (rows, columns) of those parts. Default: (4, 3).
    """

    alignment: float | None = None
    part_grid: Sequence[int] | None = None

    def aligned(self, criterion: nn.Module) -> nn.Module:
        """Return the criterion, with G2DA's alignment added if there is a weight."""
        if self.alignment is None:
            if self.part_grid is not None:
                raise ValueError("part_grid goes with alignment, which was not given")
            return criterion
        check_positive("alignment", self.alignment)
        grid = check_size("part_grid", self.part_grid or (4, 3))
        return models.AlignedCriterion(criterion, weight=self.alignment, grid=grid)


def build_backbone(name: str, weights: str | None, last_stride: int = 1) -> nn.Module:
    """Return the small backbone ("small") or another by its name, "torchvision" and "timm" for their ResNet-50."""
    weights = None if weights == "none" else weights
    if name != "small":
        name = f"{name}/resnet50" if name in ("torchvision", "timm") else name
        return backbone(name, weights=weights, last_stride=last_stride)
    if weights:
        raise ValueError(f"weights must be 'none' with backbone 'small', got {weights!r}")
    check_option("last_stride", last_stride, (1,))
    return SmallBackbone()


def in_two_streams(network: nn.Module, shared_from: str | None = None) -> TwoStream:
    """Return a backbone whose first layers, those before ``shared_from``, are each modality's own."""
    shared_from = shared_from or getattr(network, "shared_from", None)
    if shared_from is None or not isinstance(network, nn.Sequential):
        raise ValueError("two_stream must be False with a backbone that is no chain of layers, got True")
    return TwoStream.from_sequential(network, shared_from=shared_from)


@torch.no_grad()
def map_size(backbone: nn.Module, size: tuple[int, int]) -> tuple[int, int]:
    """Return (h, w) of the backbone's map of images of ``size`` (H, W)."""
    maps = evaluated(backbone)(torch.zeros(1, 3, *check_size("size", size)))
    return maps.shape[2], maps.shape[3]
