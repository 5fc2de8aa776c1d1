"""Shared parts of the models: the backbone and its map, classifiers, and the sum of weighted losses."""

from functools import reduce
from operator import add

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vireid._checks import check_count, check_module, check_size, check_tensor
from vireid.losses._common import check_rows
from vireid.nn.transfer import FeatureTransfer, H2FTOutput
from vireid.nn.two_stream import declared, feature_map


class Embedder(nn.Module):
    """Base class of the models: a backbone and the grid that its map is averaged to."""

    def __init__(self, backbone: nn.Module, num_classes: int, grid: tuple[int, int] | None) -> None:
        super().__init__()
        check_module("backbone", backbone)
        self.grid = _feature_grid(backbone) if grid is None else check_size("grid", grid)
        self.backbone, self.num_classes = backbone, check_count("num_classes", num_classes)

    @property
    def cells(self) -> int:
        """Number of cells of the grid."""
        return self.grid[0] * self.grid[1]

    def feature_size(self, dim: int | None) -> int:
        """Return ``dim``, a multiple of the cells, or by default the size d of the stacked cells."""
        dim = feature_size(self.backbone, self.grid) if dim is None else check_count("dim", dim)
        if dim % self.cells:
            raise ValueError(f"dim must be a multiple of the {self.cells} cells of the grid, got {dim}")
        return dim

    def feature_map(self, images: Tensor, modality: Tensor, channels: int) -> Tensor:
        """Compute the backbone's map (B, channels, h, w); only one with ``takes_modality`` is given ``modality``."""
        check_tensor("images", images, "B channels H W", kind="any")
        check_rows(images.shape[0], modality=modality)
        maps = feature_map(self.backbone, images, modality)
        if maps.ndim != 4 or maps.shape[1] != channels:
            raise ValueError(f"backbone must return (B, {channels}, h, w), got {tuple(maps.shape)}")
        return maps

    def stack_cells(self, maps: Tensor) -> Tensor:
        """Average ``maps`` (B, c, h, w) to the grid and stack the cells, as (B, c · rows · columns)."""
        check_tensor("maps", maps, "B c h w")
        return rearrange(F.adaptive_avg_pool2d(maps, self.grid), "b c rows columns -> b (c rows columns)")


def linear_classifier(dim: int, num_classes: int) -> nn.Linear:
    """Build a linear classifier without bias, to follow a BNNeck, initialized near zero."""
    layer = nn.Linear(dim, num_classes, bias=False)
    nn.init.normal_(layer.weight, std=0.001)
    return layer


def check_transfer(transfer: FeatureTransfer, dim: int) -> None:
    """Raise unless ``transfer`` is a transfer of features of size ``dim``."""
    check_module("transfer", transfer, FeatureTransfer)
    if transfer.dim != dim:
        raise ValueError(f"transfer must be of size {dim} as the features, got {transfer.dim}")


def transfer_classifier(transfer: FeatureTransfer | None, dim: int, num_classes: int) -> nn.Linear | None:
    """Build the classifier W_g of a transfer of features of size ``dim``; None without a transfer."""
    if transfer is None:
        return None
    check_transfer(transfer, dim)
    return linear_classifier(dim, num_classes)


def transferred(
    transfer: FeatureTransfer | None, classifier: nn.Module | None, features: Tensor, modality: Tensor
) -> tuple[H2FTOutput | None, Tensor | None, Tensor | None]:
    """Compute f_q and F_G of a model's features and the logits Y_g of both; three times None without a transfer."""
    if transfer is None or classifier is None:
        return None, None, None
    output = transfer(features, modality)
    return output, classifier(output.query), classifier(output.gallery)


def _feature_grid(backbone: nn.Module) -> tuple[int, int]:
    """Return the backbone's own ``grid``, or (1, 1)."""
    return check_size("backbone.grid", declared(backbone, "grid", (1, 1)))


def feature_size(backbone: nn.Module, grid: tuple[int, int] | None = None, *, name: str = "dim") -> int:
    """Compute the size d of the features made from the backbone's map: its channels times the cells of the grid.

    Args:
        backbone: a module with the attribute ``out_channels``, and ``grid`` if its cells are to be stacked.
        grid: (rows, columns) instead of the backbone's own.
        name: of the missing argument, for the message.

    Raises:
        ValueError: if the backbone has no ``out_channels``, or a size is below 1.
        TypeError: if the backbone is not a module, or a size is not an integer.
    """
    check_module("backbone", backbone)
    channels = declared(backbone, "out_channels")
    if channels is None:
        raise ValueError(f"{name} must be given for a backbone without the attribute out_channels, got None")
    rows, columns = _feature_grid(backbone) if grid is None else check_size("grid", grid)
    return check_count("backbone.out_channels", channels) * rows * columns


def add_total(losses: dict[str, Tensor], weights: dict[str, float] | None = None) -> dict[str, Tensor]:
    """Multiply the named losses by their weights, where given, and add their sum ``"total"``."""
    weights = weights or {}
    losses = {name: weights[name] * loss if name in weights else loss for name, loss in losses.items()}
    return losses | {"total": reduce(add, losses.values())}
