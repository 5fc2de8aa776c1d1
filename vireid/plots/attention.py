"""Attention maps laid over their images (SAAI, Fig. 6)."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vireid._checks import check_option, check_size
from vireid.plots._drawing import (
    GRAY,
    MODALITIES,
    check_limits,
    check_range,
    draw_bar,
    draw_first,
    draw_image,
    finish,
    new_canvas,
    show_numbers,
    to_array,
    to_images,
    to_modality,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_STRENGTH = 0.6  # of the colors over the image


def attention_maps(
    images: Tensor | np.ndarray,
    attention: Tensor | np.ndarray,
    path: str | os.PathLike[str] | None = None,
    *,
    size: tuple[int, int] | None = None,
    names: Sequence[str] | None = None,
    modality: Tensor | np.ndarray | None = None,
    combined: Literal["max", "mean"] | None = "max",
    scale: Literal["common", "map"] | tuple[float, float] = "common",
    title: str | None = None,
) -> "Figure":
    """Draw the attention of each prototype: one row per image, the image first, then its maps laid over it in gray.

    A map is enlarged to its image bilinearly, so that no value leaves the map's own range. The color scale stands
    beside the rows. Sigmoid maps of a trained model may differ little: ``scale="map"`` shows where each map is large,
    with its range below it, since colors then cannot be compared between maps.

    Args:
        images: (B, 3, H, W) RGB, uint8 or floating point in [0, 1]; not normalized.
        attention: (B, p, h, w), of any h and w, or (B, p, h·w) with ``size``; any finite numbers.
        path: where to write the figure as well.
        size: (h, w) of flattened maps, which are read row by row.
        names: of the p prototypes, written above the columns; "part 1" and on if None.
        modality: (B,) `vireid.VISIBLE` or `vireid.INFRARED`, written beside each image.
        combined: the last column, over the prototypes: their largest value at each place, or their mean (the sum on
            the scale of one map); None leaves it out.
        scale: "common": one for all maps, from the least to the largest value; (low, high): one with these ends, such
            as (0, 1) for sigmoid maps, where values outside take the color of the end; "map": one per map, from its
            least to its largest value.
        title: line above the picture.

    Raises:
        TypeError: if the images are neither uint8 nor floating point, or the attention is not floating point.
        ValueError: if shapes do not go together or are empty, a number is not finite, an image leaves [0, 1], an option
            or a modality is unknown, or ``scale`` does not rise.
    """
    pictures = to_images("images", images)
    count, _, height, width = pictures.shape
    maps = _maps(attention, size, count)
    prototypes = maps.shape[1]
    titles = [f"part {i}" for i in range(1, prototypes + 1)] if names is None else list(names)
    if len(titles) != prototypes:
        raise ValueError(f"names must hold {prototypes} names, one per prototype, got {len(titles)}")
    if modality is not None:
        modality = to_modality(modality, count)
    if combined is not None:
        check_option("combined", combined, ("max", "mean"))
        maps = torch.cat([maps, maps.amax(1, keepdim=True) if combined == "max" else maps.mean(1, keepdim=True)], 1)
        titles.append(combined)
    limits = _limits(scale, maps)
    digits = _digits(float((maps.amax((2, 3)) - maps.amin((2, 3))).median()))  # of each map's range
    drawn = F.interpolate(maps, size=(height, width), mode="bilinear").numpy()
    gray = np.einsum("bchw,c->bhw", pictures, _LUMA)

    cell_w, gap, image_gap = 0.72, 0.10, 0.22
    cell_h = cell_w * height / width
    row_h = cell_h + (0.24 if limits is None else gap)
    left, top, bar_w = (0.0 if modality is None else 0.24), (0.50 if title else 0.26), 0.95
    grid_w = left + cell_w + image_gap + len(titles) * (cell_w + gap) - gap
    grid_w += 0 if combined is None else image_gap - gap
    total_w, total_h = grid_w + bar_w, max(top + count * row_h, 1.6)
    figure, axes = new_canvas(total_w, total_h, title, grid_w / 2)
    columns = left + cell_w + image_gap + np.arange(len(titles)) * (cell_w + gap)
    columns[prototypes:] += image_gap - gap
    small: dict[str, Any] = {"ha": "center", "fontsize": 8, "color": GRAY}
    for x, name in zip((left, *columns), ("image", *titles), strict=True):
        axes.text(x + cell_w / 2, top - 0.06, name, va="bottom", **small)
    for b in range(count):
        y = top + b * row_h
        kind = None if modality is None else MODALITIES[int(modality[b])]
        draw_first(axes, pictures[b], left, y, (cell_w, cell_h), kind)
        for x, values, own in zip(columns, drawn[b], maps[b], strict=True):
            low, high = limits or _ends(own)
            draw_image(axes, gray[b], x, y, cell_w, cell_h, cmap="gray", vmin=0, vmax=1)
            draw_image(axes, values, x, y, cell_w, cell_h, cmap="turbo", vmin=low, vmax=high, alpha=_STRENGTH)
            if limits is None:
                ends = "…".join(show_numbers([own.min().item(), own.max().item()], digits))
                axes.text(x + cell_w / 2, y + cell_h + 0.04, ends, va="top", **small | {"fontsize": 6.5})
    low, high = limits or (0.0, 1.0)
    bar = draw_bar(figure, grid_w + 0.2, top, 0.12, min(total_h - top - 0.1, 2.2), (low, high, "turbo"))
    ticks, digits = np.linspace(low, high, 5).tolist() if limits else [low, high], _digits((high - low) / 4)
    bar.set_ticks(ticks, labels=show_numbers(ticks, digits) if limits else ["least", "largest"])
    bar.ax.tick_params(labelsize=8)
    bar.set_label("attention" if limits else "attention in each map", fontsize=8, color=GRAY)
    return finish(figure, path)


def _maps(attention: Any, size: tuple[int, int] | None, count: int) -> Tensor:
    """Return checked maps (B, p, h, w), float32 on the CPU."""
    if size is not None:
        h, w = check_size("size", size)
        values = to_array("attention", attention, "B p h*w", "float", finite=True, **{"B": count, "h*w": h * w})
        values = values.reshape(*values.shape[:2], h, w)
    else:
        if np.ndim(attention) == 3:
            raise ValueError(f"size must be given with attention of shape (B, p, h*w), got {tuple(attention.shape)}")
        values = to_array("attention", attention, "B p h w", "float", finite=True, B=count)
    check_range("attention", values)
    return torch.from_numpy(np.array(values, dtype=np.float32))


def _ends(values: Tensor) -> tuple[float, float]:
    """Return the least and the largest value; if they are equal, the second is larger by 1."""
    low, high = values.min().item(), values.max().item()
    return low, high if high > low else low + 1


def _limits(scale: Any, maps: Tensor) -> tuple[float, float] | None:
    """Return the ends of the scale of all maps, None if each map has its own."""
    if isinstance(scale, str):
        check_option("scale", scale, ("common", "map"))
        return _ends(maps) if scale == "common" else None
    return check_limits("scale", scale, "'common', 'map' or (low, high)")


def _digits(span: float) -> int:
    """Return the number of decimals that tells values within ``span`` apart."""
    return int(np.clip(1 - np.floor(np.log10(span)), 1, 4)) if span > 0 else 2
