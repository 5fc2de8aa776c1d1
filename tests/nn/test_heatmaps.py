"""Key points as heatmaps, and the features under them, against plain loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from reference import g2da as ref
from vireid.nn import (
    COCO_17,
    PERSON_13,
    gaussian_heatmaps,
    keypoint_pooling,
    merge_coco_heatmaps,
    merge_coco_keypoints,
    part_grid,
    present_keypoints,
)

# -- Pooling -------------------------------------------------------------------------------------------------------


def blown_up(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return maps.repeat_interleave(size[0] // maps.shape[2], 2).repeat_interleave(size[1] // maps.shape[3], 3)


SIZES = [(3, 2), (6, 8), (4, 5), (1, 1), (2, 7), (1, 4)]


@pytest.mark.parametrize("size", SIZES)
def test_pooling_equals_the_loop_on_a_grid_that_both_sizes_divide(size, device):
    features, heat = torch.randn(2, 5, 3, 2).double(), torch.rand(2, 4, *size).double()
    common = (math.lcm(3, size[0]), math.lcm(2, size[1]))
    expected = ref.keypoint_pooling(blown_up(features, common), blown_up(heat, common))
    assert_close(keypoint_pooling(features.to(device), heat.to(device)).cpu(), expected, rtol=0, atol=1e-12)


def test_pooling_is_plain_averaging_where_the_sizes_divide(device):
    features, heat = torch.randn(2, 5, 18, 9, device=device), torch.rand(2, 13, 72, 36, device=device)
    small = F.adaptive_avg_pool2d(heat, (18, 9))
    expected = torch.einsum("bchw,bkhw->bkc", features, small) / (18 * 9)
    assert_close(keypoint_pooling(features, heat), expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=25)
@given(size=st.tuples(*[st.integers(1, 40)] * 2), grid=st.tuples(*[st.integers(1, 20)] * 2), seed=st.integers(0, 999))
def test_a_heatmaps_mean_is_kept_whatever_the_sizes(size, grid, seed):
    heat = torch.rand(1, 2, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    pooled = keypoint_pooling(torch.ones(1, 1, *grid, dtype=torch.double), heat)
    assert_close(pooled[..., 0], heat.mean((2, 3)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("grid", [(3, 2), (1, 1), (3, 1), (2, 2), (1, 2)])
def test_pooling_on_a_grid_stacks_the_means_of_its_cells(grid, device):
    """A cell of adaptive pooling is the mean of the pixels that it touches."""
    features, heat = torch.randn(2, 5, 3, 2).double(), torch.rand(2, 4, 3, 2).double()
    expected = torch.zeros(2, 4, 5, *grid).double()
    for i in range(grid[0]):
        for j in range(grid[1]):
            rows = range(i * 3 // grid[0], -(-(i + 1) * 3 // grid[0]))
            columns = range(j * 2 // grid[1], -(-(j + 1) * 2 // grid[1]))
            pixels = [features[:, None, :, y, x] * heat[:, :, None, y, x] for y in rows for x in columns]
            expected[..., i, j] = sum(pixels) / len(pixels)
    pooled = keypoint_pooling(features.to(device), heat.to(device), grid=grid)
    assert_close(pooled.cpu(), expected.flatten(2), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (4, 3), (1, 3), (6, 1)])
def test_a_grid_of_parts(rows, columns):
    heatmaps, adjacency = part_grid(rows, columns)
    count = rows * columns
    assert heatmaps.shape[0] == count
    height, width = heatmaps.shape[1:]
    for k in range(count):
        i, j = divmod(k, columns)
        down = [max(0, 1 - abs((y + 0.5) / height * rows - i - 0.5)) if rows > 1 else 1 for y in range(height)]
        across = [max(0, 1 - abs((x + 0.5) / width * columns - j - 0.5)) if columns > 1 else 1 for x in range(width)]
        assert_close(heatmaps[k], torch.tensor([[float(a * b) for b in across] for a in down]), rtol=0, atol=1e-6)
        for other in range(count):
            a, b = divmod(other, columns)
            assert adjacency[k, other] == (abs(i - a) + abs(j - b) <= 1)
    assert adjacency[-1].all()
    assert adjacency[:, -1].all()


def test_a_key_point_pools_the_features_at_its_place(device):
    features = torch.randn(1, 6, 4, 4, device=device)
    heat = torch.zeros(1, 2, 32, 32, device=device)
    heat[0, 0, 17, 9] = 64.0  # one pixel of the 64 that a cell covers: row 2, column 1
    pooled = keypoint_pooling(features, heat)
    assert_close(pooled[0, 0], features[0, :, 2, 1] / 16)
    assert (pooled[0, 1] == 0).all()  # absent


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("size", [(3, 2), (7, 8)])
def test_heatmaps_of_any_dtype(dtype, size, device):
    features, heat = torch.randn(2, 5, 3, 2, device=device), (torch.rand(2, 4, *size, device=device) * 3).to(dtype)
    kept = heat.clone()
    pooled = keypoint_pooling(features, heat)
    assert pooled.dtype == torch.float32
    assert_close(pooled, keypoint_pooling(features.double(), heat.double()).float())
    assert torch.equal(heat, kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pooling_in_half_precision(dtype, device):
    # Large enough that their sum is more than float16 can hold.
    features, heat = torch.rand(2, 8, 18, 9, device=device) * 3e4, torch.rand(2, 13, 64, 48, device=device)
    exact = keypoint_pooling(features.double(), heat.double())
    close = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 0}
    with torch.autocast(device.type, dtype=dtype):
        for maps in (features, features.to(dtype)):
            pooled = keypoint_pooling(maps, heat)
            assert pooled.dtype == dtype
            assert_close(pooled.double(), exact, **close)
        double = keypoint_pooling(features.double(), heat.double())
    assert_close(keypoint_pooling(features.to(dtype), heat.to(dtype)).double(), exact, **close)
    assert_close(double, exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grid", [(1, 1), (3, 2), (3, 1)])
def test_heatmaps_are_resized_in_full_precision_under_autocast(grid, dtype, device):
    """Beside a map in float64, which autocast leaves alone."""
    features = torch.randn(2, 5, 3, 2, device=device).double()
    heat = torch.randint(90_000, 100_000, (2, 4, 7, 8), device=device)  # more than float16 can hold
    with torch.autocast(device.type, dtype=dtype):
        pooled = keypoint_pooling(features, heat, grid=grid)
    assert_close(pooled, keypoint_pooling(features, heat.double(), grid=grid), rtol=1e-5, atol=1e-2)


def test_a_peak_beyond_half_precision_is_resized_before_it_is_rounded(device):
    features = torch.randn(1, 6, 4, 4, device=device).half()
    heat = torch.zeros(1, 1, 32, 32, device=device)
    heat[0, 0, 17, 9] = 64e4  # 1e4 in the cell's mean
    assert_close(keypoint_pooling(features, heat)[0, 0], features[0, :, 2, 1] * (1e4 / 16))


def test_pooling_has_a_second_derivative():
    features, heat = torch.randn(2, 2, 2, 2).double().requires_grad_(), torch.rand(2, 2, 3, 2).double().requires_grad_()
    assert torch.autograd.gradgradcheck(keypoint_pooling, (features, heat))


def test_pooling_takes_any_memory_format_and_count():
    features, heat = torch.randn(2, 5, 6, 4), torch.rand(2, 3, 12, 8)
    expected = keypoint_pooling(features, heat)
    assert_close(keypoint_pooling(features.to(memory_format=torch.channels_last), heat), expected)
    assert keypoint_pooling(features, heat[:, :0]).shape == (2, 0, 5)
    with pytest.raises(ValueError, match=r"must have shape \(2, K, H, W\) with at least one pixel, got \(2, 3, 0, 8\)"):
        keypoint_pooling(features, heat[:, :, :0])
    with pytest.raises(TypeError, match="heatmaps must hold real numbers, got"):
        keypoint_pooling(features, heat.to(torch.cfloat))


# -- Heatmaps ------------------------------------------------------------------------------------------------------

POINTS = torch.tensor([[[3.5, 7.5, 1.0], [0.0, 16.0, 0.3], [2.0, 2.0, 0.0]], [[8.0, 1.2, 2.0]] * 3]).double()


@pytest.mark.parametrize("sigma", [0.7, 2.0])
@pytest.mark.parametrize("size", [(16, 8), (8, 4), (5, 12)])
def test_gaussians_equal_the_loop(size, sigma, device):
    heat = gaussian_heatmaps(POINTS.to(device), size, image_size=(16, 8), sigma=sigma).cpu()
    for b in range(2):
        for k in range(3):
            x, y, visible = POINTS[b, k].tolist()
            for row in range(size[0]):
                for column in range(size[1]):
                    dx, dy = column + 0.5 - x / 8 * size[1], row + 0.5 - y / 16 * size[0]
                    expected = math.exp(-(dx**2 + dy**2) / (2 * sigma**2)) if visible > 0 else 0.0
                    assert float(heat[b, k, row, column]) == pytest.approx(expected, abs=1e-12)


def test_the_peak_is_in_the_pixel_that_the_key_point_is_in():
    heat = gaussian_heatmaps(torch.tensor([[[3.5, 7.5]]]), (16, 8))
    assert heat.flatten().argmax() == 7 * 8 + 3
    assert heat.max() == 1
    assert heat.dtype == torch.float32


def test_invisible_key_points_have_zero_heatmaps():
    points = torch.tensor(
        [[[4.0, 4, 1], [4, 4, 0], [4, 4, -1], [-0.1, 4, 1], [4, 8.1, 1], [torch.nan, 4, 1], [8, 0, 1]]]
    )
    heat = gaussian_heatmaps(points, (8, 8))
    assert torch.isfinite(heat).all()
    assert present_keypoints(heat).tolist() == [[True, False, False, False, False, False, True]]
    assert present_keypoints(heat * 0.3, threshold=0.3).tolist() == [[False] * 7]
    assert gaussian_heatmaps(points[..., :2], (8, 8)).amax((2, 3)).gt(0).sum() == 4  # all that are in the image


@pytest.mark.parametrize("skeleton", [PERSON_13, COCO_17], ids=["13", "17"])
def test_mirrored_heatmaps_are_those_of_the_mirrored_image(skeleton):
    points = torch.rand(3, len(skeleton.names), 2).double() * 8
    mirrored = points[:, skeleton.mirror()] * torch.tensor([-1, 1]) + torch.tensor([8, 0])
    heat = gaussian_heatmaps(points, (8, 8))
    assert_close(heat.flip(-1)[:, skeleton.mirror()], gaussian_heatmaps(mirrored, (8, 8)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gaussians_in_half_precision(dtype, device):
    points = (torch.rand(2, 4, 2, device=device) * 8).to(dtype)
    with torch.autocast(device.type, dtype=dtype):
        heat = gaussian_heatmaps(points, (8, 8))
    assert heat.dtype == torch.float32
    assert_close(heat, gaussian_heatmaps(points.double(), (8, 8)).float())


@pytest.mark.gpu
def test_gaussians_do_not_wait_for_the_gpu():
    points = torch.rand(4, 13, 3, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        gaussian_heatmaps(points, (16, 8), image_size=(1, 1))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_gaussians_of_an_empty_batch():
    assert gaussian_heatmaps(torch.zeros(0, 13, 3), (8, 4)).shape == (0, 13, 8, 4)
    assert gaussian_heatmaps(torch.zeros(2, 0, 2), (8, 4)).shape == (2, 0, 8, 4)


def test_gaussians_bad_input():
    points = torch.rand(1, 2, 3)
    with pytest.raises(TypeError, match=r"keypoints must be a torch\.Tensor, got list"):
        gaussian_heatmaps([[1.0, 2.0]], (8, 8))
    with pytest.raises(TypeError, match=r"keypoints must be floating point, got torch\.int64"):
        gaussian_heatmaps(points.long(), (8, 8))
    for wrong in (points[0], torch.rand(1, 2, 4)):
        with pytest.raises(ValueError, match=r"keypoints must have shape \(B, K, 2\|3\), got"):
            gaussian_heatmaps(wrong, (8, 8))


def test_merging_cocos_heatmaps():
    heat = torch.rand(2, 17, 3, 4)
    merged = merge_coco_heatmaps(heat)
    assert merged.shape == (2, 13, 3, 4)
    for k, name in enumerate(PERSON_13.names):
        if name == "head":
            parts = [
                heat[:, COCO_17.names.index(p)] for p in ("nose", "left_eye", "right_eye", "left_ear", "right_ear")
            ]
            expected = torch.stack(parts).max(0).values
        else:
            expected = heat[:, COCO_17.names.index(name)]
        assert torch.equal(merged[:, k], expected)
    with pytest.raises(ValueError, match=r"heatmaps must have shape \(B, 17, H, W\), got \(2, 13, 3, 4\)"):
        merge_coco_heatmaps(merged)


def test_merging_cocos_key_points(device):
    points = torch.rand(3, 17, 3, device=device)
    points[0, :, 2] = 1.0  # all of one score: the nose
    points[1, :5, 2] = torch.tensor([0.0, 0.2, 0.1, 0.7, 0.7])  # the left ear, before the right one
    points[2, :5, 2] = 0.0
    merged = merge_coco_keypoints(points)
    assert torch.equal(merged[:, 1:], points[:, 5:])
    assert torch.equal(merged[:, 0], torch.stack([points[0, 0], points[1, 3], points[2, 0]]))
    with pytest.raises(ValueError, match=r"keypoints must have shape \(B, 17, 3\), got \(3, 17, 2\)"):
        merge_coco_keypoints(points[..., :2])
