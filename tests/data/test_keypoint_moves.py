"""Key points through crop, flip and augmentation, against plain loops and images that carry marks."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vireid.data.keypoints import Keypoints
from vireid.data.moves import move_heatmaps, move_keypoints
from vireid.data.transforms import TrainAugmentation
from vireid.nn import COCO_17, PERSON_13, gaussian_heatmaps

OFF: dict[str, Any] = {"padding": 0, "flip": 0.0, "erasing": 0.0, "exchange": "none"}
RAW = OFF | {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def crop_by_hand(plane: np.ndarray, corner: list[int], size: tuple[int, int], flipped: bool) -> np.ndarray:
    """One plane cropped, 0 outside, and mirrored, pixel by pixel."""
    out = np.zeros(size, plane.dtype)
    for i in range(size[0]):
        for j in range(size[1]):
            y, x = i + corner[0], (size[1] - 1 - j if flipped else j) + corner[1]
            if 0 <= y < plane.shape[0] and 0 <= x < plane.shape[1]:
                out[i, j] = plane[y, x]
    return out


def random_moves(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, (count, 2), generator=g), torch.rand(count, generator=g) < 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_heatmaps_as_fine_as_the_image_move_pixel_by_pixel(dtype, device):
    corner, flipped = random_moves(12)
    maps = torch.rand(12, 13, 9, 7, dtype=dtype, device=device)
    before = maps.clone()
    moved = move_heatmaps(maps, image_size=(9, 7), corner=corner.to(device), size=(9, 7), flipped=flipped.to(device))
    assert torch.equal(maps, before)
    assert (moved.dtype, moved.device) == (dtype, maps.device)
    assert 0 < flipped.sum() < 12
    for b in range(12):
        for k, name in enumerate(PERSON_13.names):
            if flipped[b]:  # left in the mirror was right
                name = name.replace("left", "?").replace("right", "left").replace("?", "right")
            plane = maps[b, PERSON_13.names.index(name)].cpu().numpy()
            expected = crop_by_hand(plane, corner[b].tolist(), (9, 7), bool(flipped[b]))
            np.testing.assert_allclose(
                moved[b, k].cpu().numpy(), expected, atol=1e-5 if dtype == torch.float32 else 1e-12
            )


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), crop=st.sampled_from([(40, 24), (36, 30), (50, 20)]))
def test_heatmaps_and_coordinates_move_alike(seed, crop):
    """Drawing the moved coordinates is moving the drawn ones, at another resolution than the image's."""
    g = torch.Generator().manual_seed(seed)
    corner, flipped = random_moves(4, seed)
    points = torch.rand(4, 13, 3, generator=g, dtype=torch.double) * torch.tensor([10, 20, 0]) + torch.tensor(
        [7, 10, 1.0]
    )
    moved_points = move_keypoints(points, corner=corner, size=crop, flipped=flipped)
    moved_maps = move_heatmaps(
        gaussian_heatmaps(points, (120, 72), image_size=(40, 24), sigma=9.0),
        image_size=(40, 24),
        corner=corner,
        size=crop,
        flipped=flipped,
    )
    assert moved_maps.shape == (4, 13, 120, 72)
    assert (moved_points[..., 2] == 1).all()  # none is near an edge
    # The crop's cells are crop/image as large as the image's, so sigma is that much smaller.
    x, y = moved_points[..., 0] / crop[1], moved_points[..., 1] / crop[0]
    cell_y, cell_x = (torch.arange(n, dtype=torch.double).add(0.5) / n for n in (120, 72))
    sigma_y, sigma_x = 9.0 / 120 * 40 / crop[0], 9.0 / 72 * 24 / crop[1]
    expected = torch.exp(
        -(((cell_y - y[..., None]) / sigma_y) ** 2)[..., :, None] / 2
        - (((cell_x - x[..., None]) / sigma_x) ** 2)[..., None, :] / 2
    )
    known = move_heatmaps(
        torch.ones(4, 13, 120, 72, dtype=torch.double), image_size=(40, 24), corner=corner, size=crop, flipped=flipped
    )
    inside = known > 0.999
    assert inside.float().mean() > 0.5
    assert (moved_maps - expected)[inside].abs().max() < 0.01


@given(seed=st.integers(0, 2**31 - 1))
@settings(max_examples=10, deadline=None)
def test_coordinates_by_hand(seed):
    corner, flipped = random_moves(5, seed)
    points = torch.rand(5, 13, 3, generator=torch.Generator().manual_seed(seed)) * torch.tensor([20.0, 40.0, 1.0])
    before = points.clone()
    moved = move_keypoints(points, corner=corner, size=(36, 18), flipped=flipped)
    assert torch.equal(points, before)
    for b in range(5):
        for k, name in enumerate(PERSON_13.names):
            side, _, part = name.partition("_")
            source = {"left": f"right_{part}", "right": f"left_{part}"}.get(side, name) if flipped[b] else name
            x, y, seen = points[b, PERSON_13.names.index(source)].tolist()
            x, y = x - corner[b, 1].item(), y - corner[b, 0].item()
            x = 18 - x if flipped[b] else x
            if not (0 <= x <= 18 and 0 <= y <= 36):
                seen = 0
            assert moved[b, k].tolist() == pytest.approx([x, y, seen], abs=1e-5)


def marked(count: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images with one bright pixel per channel, and key points on them: left shoulder red, right green, head blue."""
    g = torch.Generator().manual_seed(1)
    images, points = torch.zeros(count, 3, height, width), torch.zeros(count, 13, 3)
    for b in range(count):
        left, right = sorted(torch.randperm(width, generator=g)[:2].tolist())
        rows = torch.randint(height, (3,), generator=g).tolist()
        for channel, k, column in ((0, 1, left), (1, 2, right), (2, 0, (left + right) // 2)):
            images[b, channel, rows[channel], column] = 1
            points[b, k] = torch.tensor([column + 0.5, rows[channel] + 0.5, 1])
    return images, points


@pytest.mark.parametrize(("size", "padding"), [((12, 8), 0), ((12, 8), 3), ((9, 6), 0), ((16, 12), 2), ((10, 11), 3)])
@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
def test_key_points_stay_on_their_marks(size, padding, flip, device):
    images, points = marked(60, 12, 8)
    modality = torch.arange(60) % 2
    augment = TrainAugmentation(size, **(RAW | {"padding": padding, "flip": flip}))
    moved, followed = augment(images.to(device), modality.to(device), points.to(device))
    moved, followed = moved.cpu(), followed.cpu()
    assert moved.shape == (60, 3, *size)
    flips = found = 0
    for b in range(60):
        marks = [moved[b, channel].nonzero() for channel in range(3)]
        if not len(marks[0]) or not len(marks[1]):
            assert (followed[b, 1:3, 2] == 0).any()
            continue
        flipped = marks[0][0, 1] > marks[1][0, 1]  # red was left of green
        flips, found = flips + int(flipped), found + 1
        for mark, k in ((marks[0], 2 if flipped else 1), (marks[1], 1 if flipped else 2), (marks[2], 0)):
            if len(mark):
                assert followed[b, k].tolist() == [mark[0, 1] + 0.5, mark[0, 0] + 0.5, 1]
            else:
                assert followed[b, k, 2] == 0
    assert found > 15
    assert (flips == 0) if flip == 0 else (flips == found) if flip == 1 else (0 < flips < found)


def test_heatmaps_stay_on_their_marks(device):
    images, _ = marked(40, 12, 8)
    maps = torch.zeros(40, 13, 12, 8)
    maps[:, [1, 2, 0]] = images
    augment = TrainAugmentation((12, 8), **(RAW | {"padding": 3, "flip": 0.5}))
    moved, followed = augment(images.to(device), torch.zeros(40, dtype=torch.int64, device=device), maps.to(device))
    swapped = followed[:, [2, 1, 0]]
    same = [(followed[b, [1, 2, 0]] - moved[b]).abs().max() < 1e-5 for b in range(40)]
    other = [(swapped[b] - moved[b]).abs().max() < 1e-5 for b in range(40)]
    assert all(a or b for a, b in zip(same, other, strict=True))
    assert 5 < sum(bool(a and not b) for a, b in zip(same, other, strict=True)) < 35  # both kinds, told apart
    assert 5 < sum(bool(b and not a) for a, b in zip(same, other, strict=True)) < 35


@pytest.mark.parametrize("keypoints", [torch.rand(16, 13, 3), torch.rand(16, 13, 6, 4)])
def test_images_are_the_same_with_and_without_key_points(keypoints):
    images, modality = torch.randint(256, (16, 3, 24, 12), dtype=torch.uint8), torch.arange(16) % 2
    augment = TrainAugmentation((24, 12), padding=2, grayscale=0.3)
    torch.manual_seed(3)
    expected = augment(images, modality)
    after = torch.rand(1)
    torch.manual_seed(3)
    together, followed = augment(images, modality, keypoints)
    assert torch.equal(expected, together)
    assert torch.equal(after, torch.rand(1))  # nothing more was drawn
    assert followed.shape == keypoints.shape


@pytest.mark.parametrize("count", [0, 1])
def test_tiny_batches(count):
    augment = TrainAugmentation((8, 6), padding=1, grayscale=0.5)
    images, modality = torch.zeros(count, 3, 8, 6, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64)
    assert augment(images, modality).isfinite().all()
    for keypoints in (torch.ones(count, 13, 3), torch.ones(count, 13, 5, 4), torch.ones(count, 13, 1, 1)):
        out, followed = augment(images, modality, keypoints)
        assert out.shape == (count, 3, 8, 6)
        assert followed.shape == keypoints.shape
        assert followed.isfinite().all()


def test_another_skeleton_and_half_precision():
    augment = TrainAugmentation((8, 6), **(OFF | {"flip": 1.0}), skeleton=COCO_17)
    images, modality = torch.zeros(2, 3, 8, 6), torch.zeros(2, dtype=torch.int64)
    maps = torch.zeros(2, 17, 4, 3, dtype=torch.float16)
    maps[:, 1, 0, 0] = 1  # the left eye
    _, followed = augment(images, modality, maps)
    assert followed.dtype == torch.float32
    assert followed.nonzero().tolist() == [[0, 2, 0, 2], [1, 2, 0, 2]]
    points = torch.zeros(2, 17, 3, dtype=torch.bfloat16)
    points[:, 15] = torch.tensor([1.0, 2.0, 1.0])  # the left ankle
    _, followed = augment(images, modality, points)
    assert followed.dtype == torch.bfloat16
    assert followed[:, 16].tolist() == [[5.0, 2.0, 1.0]] * 2


def test_an_image_that_padding_brings_to_the_size_is_padded():
    augment = TrainAugmentation((8, 10), **(RAW | {"padding": 2}))
    out, followed = augment(torch.ones(3, 3, 4, 6), torch.zeros(3, dtype=torch.int64), torch.ones(3, 13, 3))
    assert out.shape == (3, 3, 8, 10)
    assert out.sum() == 3 * 3 * 4 * 6
    assert (followed == torch.tensor([3.0, 3.0, 1.0])).all()


def test_bad_key_points_are_named():
    augment = TrainAugmentation((8, 6), padding=1)
    images, modality = torch.zeros(2, 3, 8, 6), torch.zeros(2, dtype=torch.int64)
    for keypoints, error, text in (
        (torch.zeros(2, 17, 3), ValueError, "keypoints must have shape (2, 13, 3), got (2, 17, 3)"),
        (torch.zeros(2, 13), ValueError, "keypoints must have shape (2, 13, 3), got (2, 13)"),
        (torch.zeros(2, 12, 4, 4), ValueError, "keypoints must have shape (2, 13, h, w), got (2, 12, 4, 4)"),
        (torch.zeros(2, 13, 3).long(), TypeError, "keypoints must be floating point, got torch.int64"),
    ):
        with pytest.raises(error, match=re.escape(text)):
            augment(images, modality, keypoints)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"corner": torch.zeros(3, 2)}, ValueError, "corner must have shape (2, 2), got (3, 2)"),
        ({"flipped": torch.tensor([True])}, ValueError, "flipped must have shape (2,), got (1,)"),
        ({"flipped": torch.zeros(2).long()}, TypeError, "flipped must be bool, got torch.int64"),
        ({"size": (0, 6)}, ValueError, "size[0] must be at least 1, got 0"),
        ({"image_size": (0, 4)}, ValueError, "image_size[0] must be at least 1, got 0"),
    ],
)
def test_bad_moves_are_named(change, error, text):
    moves = {"corner": torch.zeros(2, 2).long(), "size": (8, 6), "flipped": torch.tensor([True, False])} | change
    with pytest.raises(error, match=re.escape(text)):
        move_heatmaps(torch.ones(2, 13, 4, 4), **({"image_size": (8, 6)} | moves))
    if "image_size" not in change:
        with pytest.raises(error, match=re.escape(text)):
            move_keypoints(torch.ones(2, 13, 3), **moves)


@pytest.mark.parametrize("change", [lambda k: k / 100, lambda k: k + 1000, lambda k: -k - 1])
def test_coordinates_in_another_unit_are_refused(change):
    """Shares instead of pixels, or places outside every image."""
    keypoints = np.random.default_rng(0).uniform(5, 60, (3, 13, 3)).astype(np.float32)
    keypoints[..., 2] = 1
    moved = keypoints.copy()
    moved[..., :2] = change(keypoints[..., :2])
    sizes, names = np.full((3, 2), 64), ["a", "b", "c"]
    assert Keypoints(names, keypoints, sizes).at(names, (32, 32)).shape == (3, 13, 3)
    with pytest.raises(ValueError, match="keypoints must be in pixels of the images, which are 64 to 64 long, got x"):
        Keypoints(names, moved, sizes).at(names, (32, 32))
