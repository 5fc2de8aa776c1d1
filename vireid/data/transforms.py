"""Augmentation of whole batches on their device: every draw is per image, no loop runs over images.

All randomness comes from PyTorch's global CPU generator, on any device, so ``torch.manual_seed`` reproduces it.
"""

from collections.abc import Sequence
from functools import partial
from typing import overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vireid import VISIBLE
from vireid._checks import (
    check_count,
    check_flag,
    check_fraction,
    check_modality,
    check_number,
    check_option,
    check_size,
    check_tensor,
    extra,
)
from vireid.data.moves import check_skeleton, move_heatmaps, move_keypoints
from vireid.nn._maps import IMAGENET_MEAN, IMAGENET_STD
from vireid.nn.skeleton import PERSON_13, Skeleton


def normalize(images: Tensor, *, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """Return images in float32 with ``mean`` subtracted and divided by ``std``, channel by channel.

    Args:
        images: (B, 3, H, W); uint8 in 0 … 255, or floating point in 0 … 1.
        mean: of the three channels on the scale 0 … 1; ImageNet's by default.
        std: of the three channels on that scale.

    Returns:
        (B, 3, H, W) float32.

    Raises:
        ValueError: if the shape is another, or mean and std are not three numbers each, std above 0.
        TypeError: if the images are neither uint8 nor floating point.
    """
    offset, scale = _channel_statistics(mean, std)
    check_images(images)
    return (unit_range(images) - offset.to(images.device)) / scale.to(images.device)


def channel_exchange(images: Tensor, modality: Tensor, *, visible: float = 0.5, infrared: float = 0.5) -> Tensor:
    """Exchange channels as CAJ does (Ye et al., ICCV 2021), drawn independently per image.

    - A visible image becomes, with probability ``visible``, one of its own channels copied to all three; R, G and B are
      equally likely. CAJ trains on two visible views, the original and the exchanged: 1.0 is its second view, 0.5 gives
      each of the two half of the images (our choice).
    - An infrared image becomes, with probability ``infrared`` (CAJ: 0.5), a random grayscale: a mixture of its channels
      copied to all three. The weights are uniform over the simplex, w ≥ 0, Σw = 1 (our choice). The three channels of
      an infrared image are equal as stored, so the mixture matters after normalization, which shifts them apart.

    Args:
        images: (B, 3, H, W) floating point, normalized or not.
        modality: (B,) integer, 0 visible, 1 infrared, in any order.
        visible: probability for a visible image.
        infrared: probability for an infrared image.

    Returns:
        (B, 3, H, W), a new tensor.

    Raises:
        ValueError: if a shape or a probability does not fit.
        TypeError: if the images are not floating point or the modality is not integer.
    """
    check_tensor("images", images, "B 3 H W")
    check_tensor("modality", modality, "B", kind="integer", B=len(images))
    check_modality("modality", modality)
    return _exchange(images, modality, check_fraction("visible", visible), check_fraction("infrared", infrared))


def _exchange(images: Tensor, modality: Tensor, visible: float | Tensor, infrared: float) -> Tensor:
    """Exchange channels of checked images; the probability of the visible is one number, or (B,)."""
    count, device = len(images), images.device
    # Everything is drawn on the CPU and for every image, so that the draws depend neither on the device nor on which
    # images are visible.
    copied = F.one_hot(torch.randint(3, (count,)), 3).float().to(device)
    mixed = torch.empty(count, 3).exponential_()  # normalized exponentials are uniform over the simplex
    mixed = (mixed / mixed.sum(1, keepdim=True)).to(device)
    draw = torch.rand(count).to(device)

    is_visible = modality.to(device) == VISIBLE
    weights = torch.where(is_visible[:, None], copied, mixed).to(images.dtype)
    chosen = draw < torch.where(is_visible, visible, infrared)
    gray = (images * weights[:, :, None, None]).sum(1, keepdim=True)
    return torch.where(chosen[:, None, None, None], gray, images)


class ChannelExchange(nn.Module):
    """`channel_exchange` with its settings: ``(images, modality) -> images``."""

    def __init__(self, *, visible: float = 0.5, infrared: float = 0.5) -> None:
        super().__init__()
        self.visible, self.infrared = check_fraction("visible", visible), check_fraction("infrared", infrared)

    def forward(self, images: Tensor, modality: Tensor) -> Tensor:
        """Exchange the channels of ``images`` (B, 3, H, W); see `channel_exchange`."""
        return channel_exchange(images, modality, visible=self.visible, infrared=self.infrared)

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return f"visible={self.visible}, infrared={self.infrared}"


class EvalTransform(nn.Module):
    """`normalize` with its settings; called like `TrainAugmentation`, so that either can replace the other."""

    def __init__(self, *, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        super().__init__()
        _channel_statistics(mean, std)
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))

    def forward(self, images: Tensor, modality: Tensor | None = None) -> Tensor:
        """Normalize ``images`` (B, 3, H, W); ``modality`` is ignored."""
        return normalize(images, mean=self.mean, std=self.std)

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return f"mean={self.mean}, std={self.std}"


class TrainAugmentation(nn.Module):
    """The usual augmentation of VI-ReID for a batch: ``(images, modality) -> normalized images``.

    In this order: random grayscale, normalization, padding and random crop, random horizontal flip, random erasing,
    channel exchange. Padding and erased boxes are 0 after normalization, the mean color. The defaults are AGW's crop
    and flip with CAJ's erasing and channel exchange; each can be switched off. ``eval()`` does not switch it off: use
    `EvalTransform`.

    With ``second_view`` each visible image is there twice, as CAJ trains: once with its channels as they are, once with
    one of them copied to all three, each with a crop, a flip and a box of its own. The batch grows, and its labels are
    ``labels[rows]``, by the method `rows`.

    Key points, if given, follow the crop and the flip; the images are the same with and without them. Erasing does not
    change key points.

    Args:
        size: (h, w) of the result.
        crop: whether windows are cut from the padded images; False: the images have ``size`` already.
        padding: pixels of mean color added on each side before the crop.
        flip: probability of a horizontal flip.
        erasing: probability that a box is erased.
        erasing_area: range of the box's share of the image, drawn uniformly.
        erasing_aspect: height / width of the box lies between this and its inverse (0 < erasing_aspect ≤ 1).
        grayscale: probability of a grayscale image, in either modality; off by default.
        exchange: "caj" for `channel_exchange`, or "none".
        exchange_visible: its probability for a visible image.
        exchange_infrared: its probability for an infrared image.
        second_view: add the visible images once more, all with exchanged channels, and exchange none of the others.
        mean: of the three channels on the scale 0 … 1.
        std: of the three channels on that scale.
        skeleton: of the key points; a flip exchanges its left and right.

    Raises:
        ValueError: if an argument is out of its range.
        ImportError: if flip, erasing or grayscale is on and kornia, of the extra ``train``, is not installed.

    Example:
        >>> augment = TrainAugmentation((8, 4), padding=2)
        >>> augment(torch.zeros(5, 3, 8, 4, dtype=torch.uint8), torch.tensor([0, 1, 0, 1, 1])).shape
        torch.Size([5, 3, 8, 4])
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        crop: bool = True,
        padding: int = 10,
        flip: float = 0.5,
        erasing: float = 0.5,
        erasing_area: tuple[float, float] = (0.02, 0.4),
        erasing_aspect: float = 0.3,
        grayscale: float = 0.0,
        exchange: str = "caj",
        exchange_visible: float = 0.5,
        exchange_infrared: float = 0.5,
        second_view: bool = False,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        skeleton: Skeleton = PERSON_13,
    ) -> None:
        super().__init__()
        self.size, self.padding = check_size("size", size), check_count("padding", padding, minimum=0, maximum=2**30)
        flip, erasing = check_fraction("flip", flip), check_fraction("erasing", erasing)
        grayscale = check_fraction("grayscale", grayscale)
        visible = check_fraction("exchange_visible", exchange_visible)
        infrared = check_fraction("exchange_infrared", exchange_infrared)
        if not isinstance(erasing_area, Sequence) or len(erasing_area) != 2:
            raise ValueError(f"erasing_area must be (low, high), got {erasing_area!r}")
        low, high = (check_fraction(f"erasing_area[{i}]", erasing_area[i], zero=False) for i in range(2))
        if low > high:
            raise ValueError(f"erasing_area must be (low, high) with 0 < low <= high <= 1, got {erasing_area!r}")
        erasing_aspect = check_fraction("erasing_aspect", erasing_aspect, zero=False)
        check_option("exchange", exchange, ("caj", "none"))
        self.crop, self.second_view = check_flag("crop", crop), check_flag("second_view", second_view)
        if second_view and exchange == "none":
            raise ValueError("second_view=True goes with exchange='caj', got 'none'")
        self.skeleton = check_skeleton(skeleton)
        self.normalize = EvalTransform(mean=mean, std=std)
        self.grayscale = _kornia("RandomGrayscale", p=grayscale) if grayscale else None
        self.flip = _kornia("RandomHorizontalFlip", p=flip) if flip else None
        ratio = (erasing_aspect, 1 / erasing_aspect)
        self.erasing = _kornia("RandomErasing", p=erasing, scale=(low, high), ratio=ratio) if erasing else None
        self.exchange = ChannelExchange(visible=visible, infrared=infrared) if exchange == "caj" else None

    def rows(self, modality: Tensor) -> Tensor:
        """Return the rows of a batch that the augmented one holds: all, then with ``second_view`` the visible again.

        Args:
            modality: (B,) integer, 0 visible, 1 infrared, in any order. A tensor on the CPU saves a wait for the GPU.

        Returns:
            (B',) int64, B' = B without ``second_view``.
        """
        check_tensor("modality", modality, "B", kind="integer")
        check_modality("modality", modality)
        every = torch.arange(len(modality), device=modality.device)
        return torch.cat([every, every[modality == VISIBLE]]) if self.second_view else every

    @overload
    def forward(self, images: Tensor, modality: Tensor, *, rows: Tensor | None = None) -> Tensor: ...

    @overload
    def forward(
        self, images: Tensor, modality: Tensor, keypoints: Tensor, *, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...

    def forward(
        self, images: Tensor, modality: Tensor, keypoints: Tensor | None = None, *, rows: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Augment a batch; the input does not change.

        Args:
            images: (B, 3, H, W); uint8 in 0 … 255, or floating point in 0 … 1.
            modality: (B,) integer, 0 visible, 1 infrared, in any order.
            keypoints: coordinates (B, K, 3), pixels x, y of the images and a number above 0 where visible; or heatmaps
                (B, K, h', w') over the images, of any resolution.
            rows: result of `rows`, if computed already; used with ``second_view`` only.

        Returns:
            (B', 3, h, w) float32, in the order of `rows`; with key points, also those, in pixels of the new images or
            as heatmaps (B', K, h', w') over them.

        Raises:
            ValueError: if a shape does not fit, the padded images are smaller than ``size``, or without ``crop`` the
                images are not of ``size``.
            TypeError: if the images are neither uint8 nor floating point, the modality is not integer, or the key
                points are not floating point.
        """
        check_images(images)
        check_tensor("modality", modality, "B", kind="integer", B=len(images))
        check_modality("modality", modality)
        if keypoints is not None:
            shape = "B K h w" if isinstance(keypoints, Tensor) and keypoints.ndim == 4 else "B K 3"
            check_tensor("keypoints", keypoints, shape, B=len(images), K=len(self.skeleton.names))
        image_size, count = (images.shape[2], images.shape[3]), len(images)
        if not self.crop and image_size != self.size:
            raise ValueError(f"images must be {self.size} without crop, got {image_size}")
        if self.second_view:
            rows = self.rows(modality) if rows is None else rows
            check_tensor("rows", rows, "B'", kind="integer")
            images, modality = images[rows], modality[rows]
            keypoints = None if keypoints is None else keypoints[rows]
        if self.grayscale is not None and len(images):
            images = self.grayscale(unit_range(images))
        images, corner = _random_crop(self.normalize(images), self.size, self.padding if self.crop else 0)
        flipped = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        if self.flip is not None and len(images):
            images = self.flip(images)
            if keypoints is not None:
                matrix: Tensor = self.flip.transform_matrix  # type: ignore[assignment]  # of each image's flip
                flipped = matrix[:, 0, 0] < 0
        if self.erasing is not None and len(images):
            images = self.erasing(images)
        if self.exchange is not None and self.second_view:
            second = torch.arange(len(images), device=images.device) >= count
            images = _exchange(images, modality, second.float(), self.exchange.infrared)
        elif self.exchange is not None:
            images = self.exchange(images, modality)
        if keypoints is None:
            return images
        move = partial(move_heatmaps, image_size=image_size) if keypoints.ndim == 4 else move_keypoints
        return images, move(keypoints, corner=corner, size=self.size, flipped=flipped, skeleton=self.skeleton)


def _random_crop(images: Tensor, size: tuple[int, int], padding: int) -> tuple[Tensor, Tensor]:
    """Pad with 0, cut a (h, w) window from each image, all equally likely, and return them with their y, x (B, 2).

    The windows are views (``unfold``) and one gather picks a window per image. kornia's RandomCrop cuts the images one
    after the other (``cropping_mode="slice"``) or warps them, which is slower and blurs.
    """
    height, width = images.shape[2] + 2 * padding, images.shape[3] + 2 * padding
    if height < size[0] or width < size[1]:
        raise ValueError(f"images must be at least {size} after padding by {padding}, got {(height, width)}")
    count, device = len(images), images.device
    if padding == 0 and (height, width) == size:
        return images, torch.zeros(count, 2, dtype=torch.int64, device=device)
    windows = F.pad(images, (padding,) * 4).unfold(2, size[0], 1).unfold(3, size[1], 1)
    top = torch.randint(height - size[0] + 1, (count,)).to(device)
    left = torch.randint(width - size[1] + 1, (count,)).to(device)
    return windows[torch.arange(count, device=device), :, top, left], torch.stack([top, left], 1) - padding


def _kornia(name: str, **settings: object) -> nn.Module:
    with extra("train", "augmentation needs kornia"):
        import kornia.augmentation
    module: nn.Module = getattr(kornia.augmentation, name)(**settings)
    return module


def check_images(images: Tensor) -> None:
    """Raise unless ``images`` are (B, 3, H, W), uint8 or floating point."""
    check_tensor("images", images, "B 3 H W", kind="any")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"images must be uint8 or floating point, got {images.dtype}")


def unit_range(images: Tensor) -> Tensor:
    """Return checked images in float32, uint8 ones scaled to 0 … 1."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def _channel_statistics(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return both as tensors (3, 1, 1) float32; raise unless they are three finite numbers each, std above 0."""
    found, most = [], torch.finfo(torch.float32).max
    for name, x in (("mean", mean), ("std", std)):
        if isinstance(x, Tensor):
            check_tensor(name, x, "3", kind="any")
        values = x.tolist() if isinstance(x, Tensor | np.ndarray) else x
        if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != 3:
            raise ValueError(f"{name} must be three numbers, got {x!r}")
        numbers = [check_number(f"{name}[{i}]", value) for i, value in enumerate(values)]
        if not all(abs(v) <= most and (v > 1 / most or name == "mean") for v in numbers):
            raise ValueError(f"mean and std must be finite in float32, std above 0, got {mean!r} and {std!r}")
        found.append(torch.tensor(numbers, dtype=torch.float32).view(3, 1, 1))
    return found[0], found[1]
