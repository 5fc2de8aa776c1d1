"""The embedded default backbone: small enough for two CPU cores, and designed for the gap between the modalities."""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vireid._checks import check_count, check_size


class OrientedGradients(nn.Module):
    """Strength of the edges in each direction, the same whichever side of an edge is brighter (our choice).

    An object that is bright to a visible-light camera may be dark to an infrared one, but both see an edge where it
    ends. So the sign of a gradient is ignored, and its strength is relative to that of its surroundings, as in
    histograms of oriented gradients (Dalal and Triggs, CVPR 2005). Nothing is learned.

    Args:
        directions: n, bins of the half circle; the strength of a gradient is divided between the two nearest.

    Shape:
        (B, c, H, W) -> (B, n, H, W), of the mean over the channels.
    """

    def __init__(self, directions: int = 9) -> None:
        super().__init__()
        self.directions = check_count("directions", directions)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the edge maps of ``images``: at least 0, about 1 for an edge as strong as its surroundings."""
        padded = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
        dx = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
        dy = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
        strength = (dx.square() + dy.square()).clamp_min(1e-12).sqrt()  # hypot has no gradient on a flat patch
        reach = max(1, images.shape[-2] // 16)
        around = F.avg_pool2d(strength, 2 * reach + 1, 1, reach, count_include_pad=False)
        position = torch.atan2(dy, dx) * (self.directions / math.pi)
        bins = torch.arange(self.directions, device=images.device, dtype=images.dtype)[:, None, None]
        offset = (position - bins).remainder(self.directions)
        share = (1 - torch.minimum(offset, self.directions - offset)).clamp_min(0)
        return share * (strength / (around + 0.04))  # 0.04: a flat patch must not amplify its noise


class _Refinement(nn.Module):
    """Learned residual on a map of cells, initially the identity."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        last = nn.BatchNorm2d(channels)
        nn.init.zeros_(last.weight)
        self.branch = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, channels, 3, padding=1, bias=False),
            last,
        )

    def forward(self, x: Tensor) -> Tensor:
        # A tenth: with a few thousand training images, a branch as strong as the edges it refines overfits.
        return x + 0.1 * self.branch(x)


class _Cells(nn.Module):
    """Edges in a grid of overlapping cells, (B, 3, H, W) -> (B, directions, rows, columns), without parameters."""

    def __init__(self, directions: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.gradients = OrientedGradients(directions)

    def forward(self, images: Tensor) -> Tensor:
        rows, columns = self.grid
        if images.ndim != 4 or images.shape[2] <= rows or images.shape[3] <= columns:
            raise ValueError(f"images must be (B, 3, H > {rows}, W > {columns}), got {tuple(images.shape)}")
        # Half-cells first, then each cell as the mean of the four half-cells in it.
        halves = F.adaptive_avg_pool2d(self.gradients(images), (rows + 1, columns + 1))
        return F.avg_pool2d(halves, 2, 1).clamp_min(1e-6).sqrt()


class SmallBackbone(nn.Sequential):
    """Oriented gradients in a grid of overlapping cells, refined by a small residual network (our choice).

    With a few thousand images and no pre-training, a network that first has to learn which differences between the
    modalities do not matter overfits its training identities. This one starts from edges, which both modalities share,
    and ranks well even before training. It is an ``nn.Sequential`` with the children ``cells``, without parameters,
    ``norm`` and ``refinements``, so that `TwoStream` can split it.

    Args:
        directions: number of directions of the gradients; see `OrientedGradients`.
        grid: (rows, columns) of cells. A cell overlaps half of the next.
        width: channels inside the residual branches.
        depth: number of residual branches.

    Shape:
        (B, 3, H, W) -> (B, directions, rows, columns), for any H > rows and W > columns.

    Attributes:
        out_channels: channels of the map.
        grid: (rows, columns) of the map; models stack its cells, because the place of an edge tells more than its
            presence.
        shared_from: the first child that two streams share; see `TwoStream.from_sequential`.

    Raises:
        ValueError: if the images are not (B, c, H, W) or smaller than the grid.
    """

    shared_from = "refinements"

    def __init__(
        self, *, directions: int = 9, grid: tuple[int, int] = (15, 7), width: int = 64, depth: int = 2
    ) -> None:
        cells, directions = check_size("grid", grid), check_count("directions", directions)
        width, depth = check_count("width", width), check_count("depth", depth, minimum=0)
        layers = OrderedDict[str, nn.Module](
            cells=_Cells(directions, cells),
            norm=nn.BatchNorm2d(directions),
            refinements=nn.Sequential(*(_Refinement(directions, width) for _ in range(depth))),
        )
        super().__init__(layers)
        self.grid, self.out_channels = cells, directions
