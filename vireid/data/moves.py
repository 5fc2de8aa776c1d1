"""Key points after the crop and the flip of their images: coordinates and heatmaps.

Coordinates are in pixels between the image's edges, as in `vireid.data.keypoints`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vireid._checks import check_size, check_tensor
from vireid._ops import at_least_float32
from vireid.nn.skeleton import PERSON_13, Skeleton


def move_keypoints(
    keypoints: Tensor, *, corner: Tensor, size: tuple[int, int], flipped: Tensor, skeleton: Skeleton = PERSON_13
) -> Tensor:
    """Move coordinates of key points along with the crop and the flip of their images.

    Args:
        keypoints: (B, K, 3) floating point: x and y in pixels, and a number above 0 where visible.
        corner: (B, 2) integer y, x of the crop's upper left pixel; negative in the padding.
        size: (h, w) of the crop.
        flipped: (B,) bool, whether the crop was mirrored left to right.
        skeleton: names the mirror image of each key point: left and right change places.

    Returns:
        (B, K, 3) in the same dtype; the third number is 0 for a key point outside the crop.

    Raises:
        ValueError: if a shape does not fit or a size is below 1.
        TypeError: if a tensor is of another kind or a size not an integer.
    """
    check_tensor("keypoints", keypoints, "B K 3", K=len(check_skeleton(skeleton).names))
    size = _check_moves(len(keypoints), corner, size, flipped)
    flip = flipped[:, None].to(keypoints.device)
    x = keypoints[..., 0] - corner[:, 1:].to(keypoints)
    y = keypoints[..., 1] - corner[:, :1].to(keypoints)
    x = torch.where(flip, size[1] - x, x)
    inside = (x >= 0) & (x <= size[1]) & (y >= 0) & (y <= size[0])
    moved = torch.stack([x, y, torch.where(inside, keypoints[..., 2], 0)], -1)
    return torch.where(flip[..., None], moved[:, skeleton.mirror()], moved)


def move_heatmaps(
    heatmaps: Tensor,
    *,
    image_size: tuple[int, int],
    corner: Tensor,
    size: tuple[int, int],
    flipped: Tensor,
    skeleton: Skeleton = PERSON_13,
) -> Tensor:
    """Move heatmaps along with the crop and the flip of their images.

    The result has as many cells as before, now over the crop; a crop moves by shares of a cell, so values are
    interpolated (bilinear) between cells. Outside the image they are 0.

    Args:
        heatmaps: (B, K, h', w') floating point, over the whole image.
        image_size: (H, W) of the image.
        corner: as in `move_keypoints`.
        size: (h, w) of the crop.
        flipped: as in `move_keypoints`.
        skeleton: as in `move_keypoints`.

    Returns:
        (B, K, h', w'), float32 or the input's float64.

    Raises:
        ValueError: if a shape does not fit or a size is below 1.
        TypeError: if a tensor is of another kind or a size not an integer.
    """
    check_tensor("heatmaps", heatmaps, "B K h w", K=len(check_skeleton(skeleton).names))
    image_size = check_size("image_size", image_size)
    size = _check_moves(len(heatmaps), corner, size, flipped)
    maps = at_least_float32(heatmaps)
    flip = flipped[:, None].to(maps.device)
    # Place of each new cell's center in the image, where its left edge is -1 and its right edge is 1.
    y, x = (
        (centers(cells, maps) * length + start[:, None]) / whole * 2 - 1
        for cells, length, start, whole in zip(maps.shape[2:], size, corner.to(maps).unbind(1), image_size, strict=True)
    )
    moved = sample(maps, torch.where(flip, x.flip(1), x), y)
    return torch.where(flip[..., None, None], moved[:, skeleton.mirror()], moved)


def centers(cells: int, like: Tensor) -> Tensor:
    """Return the centers (cells,) of equal cells that fill the length from 0 to 1."""
    return (torch.arange(cells, device=like.device, dtype=like.dtype) + 0.5) / cells


def sample(maps: Tensor, x: Tensor, y: Tensor, *, corners: bool = False) -> Tensor:
    """Return the values (B, C, h, w) of ``maps`` (B, C, H, W) at columns x (B, w) and rows y (B, h), 0 outside.

    Values are interpolated (bilinear). -1 and 1 are the maps' edges or, with ``corners``, the centers of the first and
    the last cell.
    """
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), -1)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=corners)


def check_skeleton(skeleton: object) -> Skeleton:
    """Return ``skeleton``; raise unless it is a `vireid.nn.Skeleton`."""
    if not isinstance(skeleton, Skeleton):
        raise TypeError(f"skeleton must be a vireid.nn.Skeleton, got {type(skeleton).__name__}")
    return skeleton


def _check_moves(count: int, corner: Tensor, size: tuple[int, int], flipped: Tensor) -> tuple[int, int]:
    """Return ``size``; raise unless the arguments describe the crop and the flip of ``count`` images."""
    check_tensor("corner", corner, "B 2", kind="integer", B=count)
    check_tensor("flipped", flipped, "B", kind="bool", B=count)
    return check_size("size", size)
