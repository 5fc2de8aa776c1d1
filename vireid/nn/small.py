"""The embedded default backbone: small enough to train on two CPU cores."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vireid._checks import check_count


class _HalfInstanceNorm(nn.Module):
    """Instance normalisation of one half of the channels, batch normalisation of the other.

    IBN-a of Pan et al., ECCV 2018. Instance normalisation takes out what differs most between the modalities, contrast
    and brightness of a map, and the other half keeps what it would lose.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.half = channels // 2
        self.instance = nn.InstanceNorm2d(self.half, affine=True)
        self.batch = nn.BatchNorm2d(channels - self.half)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.instance(x[:, : self.half]), self.batch(x[:, self.half :])], 1)


class _Block(nn.Module):
    """Basic residual block with half instance normalisation."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = _HalfInstanceNorm(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.shortcut(x) + self.second_norm(self.second(y)))


class SmallBackbone(nn.Module):
    """A residual network of 0.4 million weights that keeps where things are (ours).

    A stem of stride 2, three residual blocks with half instance normalisation, the last two of stride 2, a 1 × 1
    convolution, and means over a grid of cells whose channels are stacked: with images of a few thousand pixels, what
    lies where says more than it does in ResNet-50's 2,048 channels.

    Args:
        width: channels of the stem; the blocks have 1, 2 and 4 times as many.
        grid: (rows, columns) of cells. (1, 1) is global average pooling.
        cell: channels of a cell.

    Shape:
        (B, 3, H, W) -> (B, cell · rows · columns, 1, 1) for any H, W of at least 8.

    Attributes:
        out_channels: channels of the result.
    """

    def __init__(self, *, width: int = 32, grid: tuple[int, int] = (4, 2), cell: int = 64) -> None:
        super().__init__()
        for name, value in (("width", width), ("cell", cell), ("grid[0]", grid[0]), ("grid[1]", grid[1])):
            check_count(name, value)
        self.grid = grid
        self.out_channels = cell * grid[0] * grid[1]
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.InstanceNorm2d(width, affine=True), nn.ReLU()
        )
        self.blocks = nn.Sequential(
            _Block(width, width, 1), _Block(width, 2 * width, 2), _Block(2 * width, 4 * width, 2)
        )
        self.reduce = nn.Sequential(nn.Conv2d(4 * width, cell, 1, bias=False), nn.BatchNorm2d(cell), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        """Map ``images`` (B, 3, H, W) to (B, out_channels, 1, 1)."""
        cells = F.adaptive_avg_pool2d(self.reduce(self.blocks(self.stem(images))), self.grid)
        return cells.flatten(1)[:, :, None, None]
