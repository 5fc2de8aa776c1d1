"""Key points as heatmaps, and the features of a map under them (G2DA, Wan et al., 2021)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor

from vireid._checks import check_count, check_number, check_positive, check_size, check_tensor
from vireid._ops import at_least_float32
from vireid.nn.skeleton import skeleton_adjacency

_FACE = 5  # the first five key points of COCO are nose, eyes and ears; the other twelve are those of `PERSON_13`


def keypoint_pooling(feature_map: Tensor, heatmaps: Tensor, *, grid: tuple[int, int] = (1, 1)) -> Tensor:
    """Pool one feature per key point: the mean of the map under the key point's heatmap (G2DA, Eq. 2).

        v_k = (1/hw) Σ_yx F[:, y, x] · heat_k[y, x]

    A heatmap of another size is resized to the map by area: a cell gets the mean of the heatmap over exactly the part
    of the image that the cell covers, whole pixels and fractions of pixels (our choice; the paper does not say). The
    result is that of the full-size heatmap on a map enlarged to its size: however small a peak is, no pixel is skipped
    or counted twice, and the heatmap's mean is kept. Bilinear weights would keep neither.

    Args:
        feature_map: (B, c, h, w).
        heatmaps: (B, K, H, W), any size and any dtype, integers at their value.
        grid: (rows, columns) of the means that make a feature; (1, 1) is the paper's. Other grids are for models that
            stack the cells of their map instead of taking one mean (our choice).

    Returns:
        (B, K, c · rows · columns) in the dtype of ``feature_map``, or that of autocast; channels first, in the order of
        ``adaptive_avg_pool2d(feature_map, grid).flatten(1)``. The feature of an absent key point, whose heatmap is
        zero, is zero.

    Raises:
        ValueError: if a shape is wrong, the numbers of images differ, or the grid is not two numbers above 0.
        TypeError: if an argument is not a tensor, or ``feature_map`` not floating point.
    """
    check_tensor("feature_map", feature_map, "B c h w")
    check_tensor("heatmaps", heatmaps, "B K H W", kind="any", B=feature_map.shape[0])
    grid = check_size("grid", grid)
    height, width = feature_map.shape[2:]
    with torch.autocast(heatmaps.device.type, enabled=False):
        heat = at_least_float32(heatmaps)
        if heat.shape[3] != width:
            heat = heat @ _area_weights(heat.shape[3], width, heat).T
        if heat.shape[2] != height:
            heat = _area_weights(heat.shape[2], height, heat) @ heat
    heat = heat.to(feature_map.dtype)
    if grid == (1, 1):
        # 1/n inside the product: a sum over the pixels may be more than half precision can hold.
        weights, pixels = heat.flatten(2), feature_map.flatten(2)
        return torch.baddbmm(weights.new_zeros(()), weights, pixels.mT, beta=0, alpha=1 / (height * width))
    cells = heat[:, :, None] * feature_map[:, None]
    if grid != (height, width):
        cells = F.adaptive_avg_pool2d(cells.flatten(1, 2), grid).unflatten(1, cells.shape[1:3])
    return rearrange(cells, "b k c y x -> b k (c y x)")


def _area_weights(pixels: int, cells: int, like: Tensor) -> Tensor:
    """Return the share of each cell in each pixel (cells, pixels), where both divide one length; rows sum to 1."""
    # A cell is `pixels` long and a pixel `cells`: the lengths are whole numbers.
    cell = torch.arange(cells, device=like.device)[:, None] * pixels
    pixel = torch.arange(pixels, device=like.device) * cells
    overlap = torch.minimum(cell + pixels, pixel + cells) - torch.maximum(cell, pixel)
    return overlap.clamp_min(0).to(like.dtype) / pixels


def part_grid(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Make parts in a fixed grid, for images without key points (our choice).

    The windows overlap: each is 1 at its center and falls linearly to 0 at the centers of its neighbors, so that the
    area between two parts belongs to both.

    Args:
        rows: of the grid.
        columns: of the grid.

    Returns:
        heatmaps (K, H, W) of the K = rows · columns parts, row by row, which `keypoint_pooling` resizes to any map; and
        their adjacency (K + 1, K + 1) as in `skeleton_adjacency`, where neighbors share an edge of the grid.

    Raises:
        ValueError: if a number is below 1.
        TypeError: if a number is not an integer.
    """
    rows, columns = check_count("rows", rows), check_count("columns", columns)
    windows = einsum(_windows(rows), _windows(columns), "i y, j x -> i j y x")
    place = torch.arange(rows * columns).view(rows, columns)
    edges = [*zip(place[:-1].flatten(), place[1:].flatten(), strict=True)]
    edges += zip(place[:, :-1].flatten(), place[:, 1:].flatten(), strict=True)
    adjacency = skeleton_adjacency([(int(i), int(j)) for i, j in edges], rows * columns)
    return rearrange(windows, "i j y x -> (i j) y x"), adjacency


def _windows(count: int, pixels: int = 8) -> Tensor:
    """Return (count, count · pixels) weights of equal parts of a length; all 1 for a single part."""
    if count == 1:
        return torch.ones(1, pixels)
    position = (torch.arange(count * pixels) + 0.5) / pixels
    return (1 - (position - torch.arange(count)[:, None] - 0.5).abs()).clamp_min(0)


def present_keypoints(heatmaps: Tensor, *, threshold: float = 0.0) -> Tensor:
    """Mark the key points of each image: those whose heatmap (B, K, H, W) rises above ``threshold``.

    Returns:
        (B, K) bool. ``torch.nn.functional.pad(mask, (0, 1), value=True)`` adds the global node, which is always there.

    Raises:
        ValueError: if ``heatmaps`` is not (B, K, H, W), or ``threshold`` is NaN.
        TypeError: if ``heatmaps`` is not a tensor, or ``threshold`` not a number.
    """
    check_tensor("heatmaps", heatmaps, "B K H W", kind="any")
    if math.isnan(threshold := check_number("threshold", threshold)):
        raise ValueError(f"threshold must be a number or an infinity, got {threshold}")
    return heatmaps.amax((2, 3)) > threshold


def gaussian_heatmaps(
    keypoints: Tensor,
    size: Sequence[int],
    *,
    image_size: Sequence[int] | None = None,
    sigma: float = 2.0,
) -> Tensor:
    """Draw key points as heatmaps like a pose estimator's: a Gaussian of height 1 around each.

    Args:
        keypoints: (B, K, 2) x and y, or (B, K, 3) with a third number that is above 0 if the key point is visible: a
            mark or a score. The left and top edges of the image are 0, its right edge W and its bottom H, so that the
            center of the first pixel is (0.5, 0.5).
        size: (H, W) of the heatmaps.
        image_size: (H, W) of the image in whose pixels x and y are given. Default: ``size``.
        sigma: standard deviation in pixels of the heatmaps; 2 for maps of 64 × 48 is what HRNet, the paper's
            estimator, is trained on.

    Returns:
        (B, K, H, W) in [0, 1], float32 or the input's float64. All zero for a key point that is not visible, outside
        the image or NaN.

    Raises:
        ValueError: if a shape or a number is out of range.
        TypeError: if ``keypoints`` is not a floating-point tensor or a size not an integer.
    """
    check_tensor("keypoints", keypoints, "B K 2|3")
    if keypoints.shape[2] not in (2, 3):
        raise ValueError(f"keypoints must have shape (B, K, 2|3), got {tuple(keypoints.shape)}")
    sigma, size = check_positive("sigma", sigma), check_size("size", size)
    image_size = size if image_size is None else check_size("image_size", image_size)
    points = at_least_float32(keypoints)
    height, width = image_size
    x, y = points[..., 0] / width, points[..., 1] / height
    seen = (x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)
    if keypoints.shape[2] == 3:
        seen = seen & (points[..., 2] > 0)
    # A Gaussian in the plane is the product of a vertical and a horizontal one.
    down, across = (_bell(torch.where(seen, at, 0), n, sigma) for at, n in zip((y, x), size, strict=True))
    return (down * seen[..., None])[..., :, None] * across[..., None, :]


def _bell(position: Tensor, pixels: int, sigma: float) -> Tensor:
    """Return a Gaussian around ``position`` (…), a share of the length, at the centers of the pixels (…, pixels)."""
    centers = torch.arange(pixels, device=position.device, dtype=position.dtype) + 0.5
    return (-((centers - position[..., None] * pixels) / sigma).square() / 2).exp()


def merge_coco_heatmaps(heatmaps: Tensor) -> Tensor:
    """Turn COCO's 17 heatmaps (B, 17, H, W) into those of `PERSON_13` (B, 13, H, W).

    "head" is the maximum over nose, eyes and ears, pixel by pixel; the others are unchanged.

    Raises:
        ValueError: if ``heatmaps`` is not (B, 17, H, W).
        TypeError: if ``heatmaps`` is not a tensor.
    """
    check_tensor("heatmaps", heatmaps, "B 17 H W", kind="any")
    return torch.cat([heatmaps[:, :_FACE].amax(1, keepdim=True), heatmaps[:, _FACE:]], 1)


def merge_coco_keypoints(keypoints: Tensor) -> Tensor:
    """Turn COCO's 17 key points (B, 17, 3), each x, y and a score, into those of `PERSON_13` (B, 13, 3).

    "head" is the one of nose, eyes and ears, in this order, that has the highest score.

    Raises:
        ValueError: if ``keypoints`` is not (B, 17, 3).
        TypeError: if ``keypoints`` is not a tensor.
    """
    check_tensor("keypoints", keypoints, "B 17 3", kind="any")
    face = keypoints[:, :_FACE]
    scores = face[..., 2].nan_to_num(nan=-torch.inf)
    best = scores.sort(dim=1, descending=True, stable=True).indices[:, :1]  # ties: the first
    return torch.cat([face.gather(1, best[..., None].expand(-1, -1, 3)), keypoints[:, _FACE:]], 1)
