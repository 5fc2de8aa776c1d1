"""Augmentation of batches: each step by hand or by its statistics, its seed, and bad input."""

import re
import sys

import numpy as np
import pytest
import torch

from vireid.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ChannelExchange,
    EvalTransform,
    TrainAugmentation,
    channel_exchange,
    normalize,
)
from vireid.nn import PERSON_13

OFF = {"padding": 0, "flip": 0.0, "erasing": 0.0, "exchange": "none"}


def random_images(count, height=8, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def test_normalize_by_hand():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    wanted = [(value - m) / s for value, m, s in zip((0.0, 0.2, 1.0), IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    assert normalize(images).flatten().tolist() == pytest.approx(wanted)
    assert normalize(images.double() / 255).dtype == torch.float32
    torch.testing.assert_close(normalize(images.float() / 255), normalize(images))
    own = EvalTransform(mean=(0.0, 0.1, 0.5), std=(1.0, 0.5, 0.25))
    assert own(images).flatten().tolist() == pytest.approx([0.0, 0.2, 2.0])
    assert torch.equal(EvalTransform()(images, torch.tensor([1])), normalize(images))


def test_everything_off_is_normalization():
    images, modality = random_images(4), torch.tensor([0, 1, 1, 0])
    assert torch.equal(TrainAugmentation((8, 6), **OFF)(images, modality), normalize(images))
    without = TrainAugmentation((8, 6), **OFF | {"padding": 3}, crop=False)
    assert torch.equal(without(images, modality), normalize(images))


@pytest.mark.parametrize("images", [random_images(16), random_images(16).float() / 255], ids=["uint8", "float"])
def test_inputs_do_not_change(images):
    before, modality = images.clone(), torch.zeros(16, dtype=torch.int64)
    TrainAugmentation((8, 6), padding=1, grayscale=0.5, erasing=1.0)(images, modality)
    if images.is_floating_point():
        channel_exchange(images, modality, visible=1.0)
    assert torch.equal(images, before)


def test_crop_takes_every_window_of_the_padded_image():
    # Each pixel's value names its place, so that a crop tells where it was cut.
    height, width, padding = 4, 3, 2
    plane = torch.arange(1, 1 + height * width, dtype=torch.float32).view(height, width)
    images = plane.expand(400, 3, height, width) / 100
    augment = TrainAugmentation(
        (height, width), **(OFF | {"padding": padding}), mean=(0.0, 0.0, 0.0), std=(0.01, 0.01, 0.01)
    )
    torch.manual_seed(0)
    crops = augment(images, torch.zeros(400, dtype=torch.int64))
    padded = torch.zeros(height + 2 * padding, width + 2 * padding)
    padded[padding:-padding, padding:-padding] = plane
    windows = {
        tuple(padded[y : y + height, x : x + width].round().int().flatten().tolist())
        for y in range(5)
        for x in range(5)
    }
    found = set()
    for crop in crops:
        assert torch.equal(crop[0], crop[1])
        found.add(tuple(crop[0].round().int().flatten().tolist()))
    assert found == windows  # all 25 offsets come, and nothing else


def test_padding_is_the_mean_color():
    images = torch.full((50, 3, 4, 4), 255, dtype=torch.uint8)
    out = TrainAugmentation((4, 4), **(OFF | {"padding": 3}))(images, torch.zeros(50, dtype=torch.int64))
    white = normalize(images[:1])[0, :, 0, 0]
    for pixel in out.permute(0, 2, 3, 1).reshape(-1, 3):
        assert torch.equal(pixel, white) or torch.equal(pixel, torch.zeros(3))


def test_crop_of_a_larger_image():
    images = random_images(30, 7, 9)
    out = TrainAugmentation((5, 4), **OFF)(images, torch.zeros(30, dtype=torch.int64))
    assert out.shape == (30, 3, 5, 4)
    full = normalize(images)
    places = set()
    for b in range(30):
        match = [(y, x) for y in range(3) for x in range(6) if torch.equal(out[b], full[b, :, y : y + 5, x : x + 4])]
        assert len(match) == 1
        places.add(match[0])
    assert len(places) > 5


def test_flip_is_drawn_per_image():
    images, modality = random_images(200), torch.zeros(200, dtype=torch.int64)
    torch.manual_seed(0)
    out = TrainAugmentation((8, 6), **(OFF | {"flip": 0.3}))(images, modality)
    plain = normalize(images)
    flipped = [torch.equal(a, b.flip(2)) for a, b in zip(out, plain, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(out, plain, strict=True)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True))
    assert 35 <= sum(flipped) <= 85
    assert torch.equal(TrainAugmentation((8, 6), **(OFF | {"flip": 1.0}))(images, modality), plain.flip(3))


@pytest.mark.parametrize(("area", "aspect"), [((0.02, 0.4), 0.3), ((0.1, 0.15), 0.8), ((0.2, 0.2), 0.3)])
def test_erasing_blanks_one_box_of_the_stated_area_and_aspect(area, aspect):
    count, height, width = 300, 60, 50
    images = torch.full((count, 3, height, width), 255, dtype=torch.uint8)
    torch.manual_seed(0)
    augment = TrainAugmentation((height, width), **(OFF | {"erasing": 0.5}), erasing_area=area, erasing_aspect=aspect)
    out = augment(images, torch.ones(count, dtype=torch.int64))
    white = normalize(images[:1])[0]
    boxes = []
    for image in out:
        gone = (image == 0).all(0)
        assert torch.equal(image[:, ~gone], white[:, ~gone])
        if not gone.any():
            continue
        ys, xs = gone.nonzero().T
        h, w = int(ys.max() - ys.min()) + 1, int(xs.max() - xs.min()) + 1
        assert h * w == gone.sum()  # a full rectangle
        boxes.append((int(ys.min()), int(xs.min()), h, w))
    assert 100 <= len(boxes) <= 200
    assert len(set(boxes)) > 0.8 * len(boxes)
    for _, _, h, w in boxes:
        # Sides are rounded to pixels, and cut where they exceed the image.
        assert (h - 0.5) * (w - 0.5) <= area[1] * height * width
        assert (h + 0.5) * (w + 0.5) >= area[0] * height * width or h == height or w == width
        assert (h + 0.5) / (w - 0.5) >= aspect or h == height
        assert (h - 0.5) / (w + 0.5) <= 1 / aspect or w == width
    # The ranges are used up to their ends.
    shares = [h * w / (height * width) for _, _, h, w in boxes if h < height and w < width]
    assert min(shares) <= area[0] + 0.02
    assert max(shares) >= area[1] - 0.1 * (area[1] - area[0]) - 0.03
    assert min(h / w for _, _, h, w in boxes) < aspect + 0.15
    assert max(h / w for _, _, h, w in boxes) > 0.75 / aspect


def test_grayscale_leaves_three_equal_channels():
    images, modality = random_images(60), torch.zeros(60, dtype=torch.int64)
    torch.manual_seed(0)
    none = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    out = TrainAugmentation((8, 6), **OFF, **none, grayscale=0.5)(images, modality)
    plain = images.float() / 255
    gray = 0
    for a, b in zip(out, plain, strict=True):
        if not torch.equal(a, b):
            gray += 1
            luma = 0.299 * b[0] + 0.587 * b[1] + 0.114 * b[2]
            torch.testing.assert_close(a, luma.expand(3, -1, -1), atol=2e-3, rtol=0)
    assert 15 <= gray <= 45


def test_visible_exchange_copies_one_of_the_three_channels():
    images = torch.rand(900, 3, 2, 2)
    modality = torch.zeros(900, dtype=torch.int64)
    torch.manual_seed(0)
    out = channel_exchange(images, modality, visible=1.0, infrared=0.0)
    source = [
        [c for c in range(3) if torch.equal(after, before[c].expand(3, -1, -1))]
        for after, before in zip(out, images, strict=True)
    ]
    assert all(len(found) == 1 for found in source)
    for c in range(3):
        assert 250 <= source.count([c]) <= 350


def test_infrared_exchange_is_one_convex_mix_of_the_channels():
    images = torch.eye(3).view(1, 3, 3, 1).expand(600, 3, 3, 1).clone()  # pixel c shows the weight of channel c
    modality = torch.ones(600, dtype=torch.int64)
    torch.manual_seed(0)
    out = channel_exchange(images, modality, visible=0.0, infrared=1.0)
    assert torch.equal(out, out[:, :1].expand_as(out))
    weights = out[:, 0, :, 0]
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(600))
    # Uniform over the simplex: each weight has mean 1/3 and variance 1/18.
    assert weights.mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.04)
    assert weights.var(0).tolist() == pytest.approx([1 / 18] * 3, abs=0.015)


def test_exchange_respects_modality_and_probability():
    images, modality = torch.rand(1200, 3, 2, 1), torch.arange(1200) % 2
    torch.manual_seed(0)
    out = channel_exchange(images, modality, visible=0.25, infrared=0.75)
    changed = (out != images).flatten(1).any(1)
    gray = (out == out[:, :1]).flatten(1).all(1)
    assert torch.equal(changed, gray)
    assert changed[modality == 0].float().mean().item() == pytest.approx(0.25, abs=0.06)
    assert changed[modality == 1].float().mean().item() == pytest.approx(0.75, abs=0.06)
    only_visible = channel_exchange(images, modality, visible=1.0, infrared=0.0)
    assert torch.equal(only_visible[modality == 1], images[modality == 1])
    only_infrared = channel_exchange(images, modality, visible=0.0, infrared=1.0)
    assert torch.equal(only_infrared[modality == 0], images[modality == 0])
    torch.manual_seed(4)
    wanted = channel_exchange(images, modality, visible=0.2, infrared=0.6)
    torch.manual_seed(4)
    assert torch.equal(ChannelExchange(visible=0.2, infrared=0.6)(images, modality), wanted)


def test_the_second_view_is_the_visible_images_again_with_one_channel():
    images, modality = random_images(60), torch.tensor([0, 1, 1]).repeat(20)
    augment = TrainAugmentation((8, 6), **(OFF | {"exchange": "caj"}), second_view=True)
    rows = augment.rows(modality)
    assert rows.tolist() == [*range(60), *range(0, 60, 3)]
    torch.manual_seed(0)
    out, plain = augment(images, modality), normalize(images)
    torch.manual_seed(0)
    assert torch.equal(augment(images, modality, rows=rows), out)
    same = [torch.equal(image, plain[row]) for image, row in zip(out, rows, strict=True)]
    assert all(same[row] for row in range(0, 60, 3))  # the first view keeps its channels
    assert not any(same[60:])
    assert 5 < sum(same[1:60:3] + same[2:60:3]) < 35  # infrared: half of them, as without a second view
    for image, row in zip(out[60:], rows[60:], strict=True):
        assert any(torch.equal(image, plain[row, [c]].expand(3, 8, 6)) for c in range(3))
    assert TrainAugmentation((8, 6), **OFF).rows(modality).tolist() == list(range(60))
    empty = augment(images[:0], modality[:0])
    assert empty.shape == (0, 3, 8, 6)


def test_the_second_view_has_a_crop_and_a_flip_of_its_own_which_its_key_points_follow():
    names = len(PERSON_13.names)
    images = torch.zeros(40, 3, 16, 16, dtype=torch.uint8)
    x, y = torch.randint(2, 14, (2, 40))
    images[torch.arange(40), :, y, x] = 255
    keypoints = torch.ones(40, names, 3)
    keypoints[..., 0], keypoints[..., 1] = x[:, None] + 0.5, y[:, None] + 0.5  # centers of pixels
    augment = TrainAugmentation((16, 16), padding=2, erasing=0.0, second_view=True, exchange_infrared=0.0)
    modality = torch.zeros(40, dtype=torch.int64)
    out, moved = augment(images, modality, keypoints)
    assert (len(out), len(moved)) == (80, 80)
    for image, point in zip(out, moved[:, 0].int().tolist(), strict=True):
        assert image[0].argmax() == point[1] * 16 + point[0]
    assert (moved[:40] != moved[40:]).flatten(1).any(1).sum() > 20


def test_an_image_is_augmented_independently_of_the_others():
    images = torch.rand(40, 3, 4, 4)
    other = images.clone()
    other[7:] = torch.rand(33, 3, 4, 4)
    modality = torch.arange(40) % 2
    changed = modality.clone()
    changed[7:] = 1 - changed[7:]
    results = []
    for batch, kinds in ((images, modality), (other, changed)):
        torch.manual_seed(5)
        results.append(TrainAugmentation((4, 4), padding=1, grayscale=0.3)(batch, kinds))
    assert torch.equal(results[0][:7], results[1][:7])


def test_seed_decides_everything():
    images, modality = random_images(32), torch.arange(32) % 2
    augment = TrainAugmentation((8, 6), padding=2, grayscale=0.3)
    torch.manual_seed(1)
    first, second = augment(images, modality), augment(images, modality)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(TrainAugmentation((8, 6), padding=2, grayscale=0.3)(images, modality), first)
    assert first.dtype == torch.float32
    assert first.shape == images.shape


def test_erased_and_padded_pixels_stay_the_mean_through_the_exchange():
    images = torch.full((60, 3, 12, 12), 255, dtype=torch.uint8)
    modality = torch.arange(60) % 2
    augment = TrainAugmentation((12, 12), padding=3, erasing=1.0, exchange_visible=1.0, exchange_infrared=1.0)
    out = augment(images, modality)
    assert ((out == 0).all(1).flatten(1).sum(1) > 0).all()
    low = normalize(images[:1]).min()
    assert ((out == 0) | (out >= low - 1e-5)).all()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"flip": 1.5}, "flip must be at least 0 and at most 1, got 1.5"),
        ({"erasing_area": (0.5, 0.2)}, "erasing_area must be (low, high)"),
        ({"erasing_aspect": 0.0}, "erasing_aspect must be above 0"),
        ({"exchange": "CAJ"}, "exchange must be one of 'caj', 'none', got 'CAJ'"),
        ({"second_view": True, "exchange": "none"}, "second_view=True goes with exchange='caj', got 'none'"),
        ({"second_view": 1.5}, "second_view must be one of True, False, got 1.5"),
        ({"crop": "no"}, "crop must be one of True, False, got 'no'"),
        ({"std": (1.0, 0.0, 1.0)}, "std above 0"),
        ({"mean": (1.0, 0.0)}, "mean must be three numbers, got (1.0, 0.0)"),
    ],
)
def test_bad_settings_are_named(change, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        TrainAugmentation(**({"size": (8, 4)} | change))


def test_bad_batches_are_named():
    augment, images = TrainAugmentation((8, 6), padding=1), random_images(4)
    modality = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(TypeError, match=re.escape("images must be uint8 or floating point, got torch.int64")):
        augment(images.long(), modality)
    with pytest.raises(TypeError, match="images must be floating point"):
        channel_exchange(images, modality)
    with pytest.raises(ValueError, match=re.escape("images must be at least (8, 6) after padding by 1, got (7, 8)")):
        augment(images[:, :, :5], modality)
    with pytest.raises(ValueError, match=re.escape("images must be (8, 6) without crop, got (9, 6)")):
        TrainAugmentation((8, 6), crop=False)(random_images(4, 9), modality)
    with pytest.raises(ValueError, match="modality must be 0"):
        augment.rows(modality + 2)


def test_a_missing_kornia_is_named_where_it_is_needed(hidden, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "kornia"]:
        monkeypatch.delitem(sys.modules, name)
    hidden("kornia")
    TrainAugmentation((4, 4), flip=0.0, erasing=0.0)
    with pytest.raises(ImportError, match=r"pip install 'vireid\[train\]'"):
        TrainAugmentation((4, 4))


def test_statistics_are_shown_as_given():
    assert repr(EvalTransform()) == "EvalTransform(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))"
    for given in ([0.485, 0.456, 0.406], np.array([0.485, 0.456, 0.406]), torch.tensor([0.25, 0.5, 0.75])):
        assert EvalTransform(mean=given).mean == tuple(given.tolist() if hasattr(given, "tolist") else given)
    for std in ((1, 1, 1e-40), (1, 1, 1e39)):  # zero and infinite in float32
        with pytest.raises(ValueError, match="mean and std must be finite in float32, std above 0"):
            normalize(torch.zeros(1, 3, 2, 2), std=std)
