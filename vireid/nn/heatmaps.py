"""Key points as heatmaps, and the features of a map under them (G2DA, Wan et al., 2021)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vireid._checks import check_count, check_number, check_positive, check_size
from vireid._ops import at_least_float32
from vireid.nn.skeleton import COCO_17, skeleton_adjacency

__all__ = [
    "gaussian_heatmaps",
    "keypoint_pooling",
    "merge_coco_heatmaps",
    "merge_coco_keypoints",
    "part_grid",
    "present_keypoints",
]

_FACE = 5  # the first five key points of COCO are nose, eyes and ears; the other twelve are those of `PERSON_13`


def keypoint_pooling(feature_map: Tensor, heatmaps: Tensor, *, grid: tuple[int, int] = (1, 1)) -> Tensor:
    """A feature for each key point: the map's mean under the key point's heatmap (G2DA, Eq. 2).

        v_k = (1/hw) Σ_yx F[:, y, x] · heat_k[y, x]

    A heatmap of another size is brought to the map's grid by area: a cell gets the mean of the heatmap over just the
    part of the image that the cell covers, whole pixels and shares of pixels (ours; the paper does not say). So the
    result is that of the full-size heatmap on a map whose cells are blown up to its size, no pixel of it is skipped or
    counted twice however small a peak is, and its mean is kept. Bilinear weights would keep neither.

    Args:
        feature_map: (B, c, h, w).
        heatmaps: (B, K, H, W), any size and any dtype, integers at their value.
        grid: (rows, columns) of the means that a feature is made of; (1, 1) is the paper's. Where a model stacks the
            cells of its map instead of taking one mean, so are those of the map under a heatmap (ours).

    Returns:
        (B, K, c · rows · columns) in the dtype of ``feature_map``, or that of autocast; channels first, in the order of
        ``adaptive_avg_pool2d(feature_map, grid).flatten(1)``. An absent key point, whose heatmap is zero, has the
        feature zero.

    Raises:
        ValueError: if a shape is wrong, the two do not hold as many images, or the grid is not two numbers above 0.
        TypeError: if one is no tensor, or ``feature_map`` not floating point.
    """
    _check_maps("feature_map", feature_map)
    _check_maps("heatmaps", heatmaps)
    if not feature_map.is_floating_point():
        raise TypeError(f"feature_map must be floating point, got {feature_map.dtype}")
    if heatmaps.is_complex():
        raise TypeError(f"heatmaps must hold real numbers, got {heatmaps.dtype}")
    if feature_map.shape[0] != heatmaps.shape[0]:
        raise ValueError(
            f"heatmaps must hold one image for each of the {feature_map.shape[0]} in feature_map, "
            f"got {heatmaps.shape[0]}"
        )
    check_size("grid", grid)
    height, width = feature_map.shape[2:]
    with torch.autocast(heatmaps.device.type, enabled=False):
        heat = at_least_float32(heatmaps)
        if heat.shape[3] != width:
            heat = heat @ _area_weights(heat.shape[3], width, heat).T
        if heat.shape[2] != height:
            heat = _area_weights(heat.shape[2], height, heat) @ heat
    heat = heat.to(feature_map.dtype)
    if tuple(grid) == (height, width):
        return (heat[:, :, None] * feature_map[:, None]).flatten(2)
    if tuple(grid) == (1, 1):
        # 1/n inside the product: a sum over the pixels may be more than half precision can hold.
        weights, pixels = heat.flatten(2), feature_map.flatten(2)
        return torch.baddbmm(weights.new_zeros(()), weights, pixels.mT, beta=0, alpha=1 / (height * width))
    parts = heat[:, :, None] * feature_map[:, None]
    return F.adaptive_avg_pool2d(parts.flatten(1, 2), grid).unflatten(1, parts.shape[1:3]).flatten(2)


def _area_weights(pixels: int, cells: int, like: Tensor) -> Tensor:
    """(cells, pixels): the share of each cell that lies in each pixel, where both divide one length; rows sum to 1."""
    # A cell is `pixels` long and a pixel `cells`: the lengths are whole numbers.
    cell = torch.arange(cells, device=like.device)[:, None] * pixels
    pixel = torch.arange(pixels, device=like.device) * cells
    overlap = torch.minimum(cell + pixels, pixel + cells) - torch.maximum(cell, pixel)
    return overlap.clamp_min(0).to(like.dtype) / pixels


def part_grid(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Parts in a fixed grid, for images of which no key points are known (ours).

    The windows overlap: each is 1 in its centre and falls linearly to 0 at the centres of its neighbours, so that what
    lies between two parts belongs to both.

    Args:
        rows: of the grid.
        columns: of the grid.

    Returns:
        heatmaps (K, H, W) of the K = rows · columns parts, row by row, which `keypoint_pooling` brings to any size; and
        their adjacency (K + 1, K + 1) as `skeleton_adjacency` makes it, where neighbours share an edge of the grid.

    Raises:
        ValueError: if a number is below 1.
        TypeError: if one is not an integer.
    """
    check_count("rows", rows)
    check_count("columns", columns)
    down, across = (_windows(count) for count in (rows, columns))
    heatmaps = torch.einsum("iy,jx->ijyx", down, across).flatten(0, 1)
    place = torch.arange(rows * columns).view(rows, columns)
    edges = [*zip(place[:-1].flatten(), place[1:].flatten(), strict=True)]
    edges += zip(place[:, :-1].flatten(), place[:, 1:].flatten(), strict=True)
    return heatmaps, skeleton_adjacency([(int(i), int(j)) for i, j in edges], rows * columns)


def _windows(count: int, pixels: int = 8) -> Tensor:
    """(count, count · pixels) weights of equal parts of a length; 1 in all where there is one part."""
    if count == 1:
        return torch.ones(1, pixels)
    position = (torch.arange(count * pixels) + 0.5) / pixels
    return (1 - (position - torch.arange(count)[:, None] - 0.5).abs()).clamp_min(0)


def present_keypoints(heatmaps: Tensor, *, threshold: float = 0.0) -> Tensor:
    """Which key points an image has: those whose heatmap (B, K, H, W) rises above ``threshold``.

    Returns:
        (B, K) bool. ``torch.nn.functional.pad(mask, (0, 1), value=True)`` adds the global node, which is always there.

    Raises:
        ValueError: if ``heatmaps`` is not (B, K, H, W).
        TypeError: if it is no tensor, or ``threshold`` no number.
    """
    _check_maps("heatmaps", heatmaps)
    check_number("threshold", threshold)
    return heatmaps.amax((2, 3)) > threshold


def gaussian_heatmaps(
    keypoints: Tensor,
    size: Sequence[int],
    *,
    image_size: Sequence[int] | None = None,
    sigma: float = 2.0,
) -> Tensor:
    """Draw key points as a pose estimator would give them: a Gaussian around each, of height 1.

    Args:
        keypoints: (B, K, 2) x and y, or (B, K, 3) with a third number that is above 0 where the key point is visible:
            a mark or a score. The left and top edge of the image is 0, its right edge W and its bottom H, so that the
            centre of the first pixel is (0.5, 0.5).
        size: (H, W) of the heatmaps.
        image_size: (H, W) of the image that x and y are pixels of. Default: ``size``.
        sigma: standard deviation in pixels of the heatmaps; 2 for maps of 64 × 48 is what HRNet, the paper's
            estimator, is trained on.

    Returns:
        (B, K, H, W) in [0, 1], float32 or the input's float64. Zero throughout for a key point that is not visible,
        outside the image or NaN.

    Raises:
        ValueError: if a shape or a number is out of range.
        TypeError: if ``keypoints`` is not a floating-point tensor or a size no integer.
    """
    if not isinstance(keypoints, Tensor):
        raise TypeError(f"keypoints must be a torch.Tensor, got {type(keypoints).__name__}")
    if keypoints.ndim != 3 or keypoints.shape[2] not in (2, 3):
        raise ValueError(f"keypoints must have shape (B, K, 2) or (B, K, 3), got {tuple(keypoints.shape)}")
    if not keypoints.is_floating_point():
        raise TypeError(f"keypoints must be floating point, got {keypoints.dtype}")
    check_positive("sigma", sigma)
    check_size("size", size)
    image_size = size if image_size is None else image_size
    check_size("image_size", image_size)
    points = at_least_float32(keypoints)
    height, width = image_size
    x, y = points[..., 0] / width, points[..., 1] / height
    seen = (x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)
    if keypoints.shape[2] == 3:
        seen = seen & (points[..., 2] > 0)
    # A Gaussian in the plane is the product of one down and one across.
    down, across = (_bell(torch.where(seen, at, 0), n, sigma) for at, n in zip((y, x), size, strict=True))
    return (down * seen[..., None])[..., :, None] * across[..., None, :]


def _bell(position: Tensor, pixels: int, sigma: float) -> Tensor:
    """(…, pixels) values of a Gaussian around ``position`` (…), a share of the length, at the pixels' centres."""
    centres = torch.arange(pixels, device=position.device, dtype=position.dtype) + 0.5
    return (-((centres - position[..., None] * pixels) / sigma).square() / 2).exp()


def merge_coco_heatmaps(heatmaps: Tensor) -> Tensor:
    """COCO's 17 heatmaps (B, 17, H, W) as those of `PERSON_13` (B, 13, H, W).

    "head" is the maximum over nose, eyes and ears, pixel by pixel; the others are as they were.

    Raises:
        ValueError: if ``heatmaps`` is not (B, 17, H, W).
        TypeError: if it is no tensor.
    """
    _check_maps("heatmaps", heatmaps, len(COCO_17.names))
    return torch.cat([heatmaps[:, :_FACE].amax(1, keepdim=True), heatmaps[:, _FACE:]], 1)


def merge_coco_keypoints(keypoints: Tensor) -> Tensor:
    """COCO's 17 key points (B, 17, 3), each x, y and a score, as those of `PERSON_13` (B, 13, 3).

    "head" is the one of nose, eyes and ears, in this order, that has the highest score.

    Raises:
        ValueError: if ``keypoints`` is not (B, 17, 3).
        TypeError: if it is no tensor.
    """
    if not isinstance(keypoints, Tensor):
        raise TypeError(f"keypoints must be a torch.Tensor, got {type(keypoints).__name__}")
    if keypoints.ndim != 3 or keypoints.shape[1:] != (len(COCO_17.names), 3):
        raise ValueError(f"keypoints must have shape (B, 17, 3), got {tuple(keypoints.shape)}")
    face = keypoints[:, :_FACE]
    scores = face[..., 2].nan_to_num(nan=-torch.inf)
    best = scores.sort(dim=1, descending=True, stable=True).indices[:, :1]  # of equals the first
    return torch.cat([face.gather(1, best[..., None].expand(-1, -1, 3)), keypoints[:, _FACE:]], 1)


def _check_maps(name: str, x: Any, channels: int | None = None) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.ndim != 4 or 0 in x.shape[2:] or (channels is not None and x.shape[1] != channels):
        expected = f"(B, {'channels' if channels is None else channels}, height, width) and a pixel at least"
        raise ValueError(f"{name} must have shape {expected}, got {tuple(x.shape)}")
