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
    BLUE,
    GRAY,
    MODALITIES,
    check_images,
    check_limits,
    check_modality,
    finish,
    framed,
    new_canvas,
    to_numpy,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["attention_maps"]

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_STRENGTH = 0.6  # of the colours over the image


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
    """Draw what each prototype looks at: a row for each image, the image first, then its maps laid over it in grey.

    A map is enlarged to its image bilinearly, so that no value leaves the range of the map's own. The colours' scale
    stands beside them. Sigmoid maps of a trained model may differ by little: ``scale="map"`` shows where each map is
    large, and writes its range below it, since colours can then no longer be compared between maps.

    Args:
        images: (B, 3, H, W) RGB, uint8 or floating point in [0, 1]; not normalised.
        attention: (B, p, h, w), of any h and w, or (B, p, h·w) with ``size``; any finite numbers.
        path: where to write the figure as well.
        size: (h, w) of flattened maps, which are read row by row.
        names: of the p prototypes, written above the columns; "part 1" and on if None.
        modality: (B,) `vireid.VISIBLE` or `vireid.INFRARED`, written beside each image.
        combined: the last column, over the prototypes: their largest value at each place, or their mean (the sum on
            the scale of one map); None leaves it out.
        scale: "common": one for all maps, from the least to the largest value; (low, high): one with these ends, such
            as (0, 1) for sigmoid maps, values outside take the colour of the end; "map": one for each map, from its
            least to its largest value.
        title: line above the picture.

    Raises:
        TypeError: if the images are neither uint8 nor floating point, or the attention is not floating point.
        ValueError: if shapes do not go together or are empty, a number is not finite, an image leaves [0, 1], an option
            or a modality is unknown, or ``scale`` does not rise.
        ImportError: if matplotlib is not installed.
    """
    pictures = check_images("images", images)
    count, _, height, width = pictures.shape
    maps = _maps(attention, size, count)
    prototypes = maps.shape[1]
    titles = [f"part {i}" for i in range(1, prototypes + 1)] if names is None else list(names)
    if len(titles) != prototypes:
        raise ValueError(f"names must hold {prototypes} names, one a prototype, got {len(titles)}")
    if modality is not None:
        modality = check_modality(modality, count)
    if combined is not None:
        check_option("combined", combined, ("max", "mean"))
        maps = torch.cat([maps, maps.amax(1, keepdim=True) if combined == "max" else maps.mean(1, keepdim=True)], 1)
        titles.append(combined)
    limits = _limits(scale, maps)
    digits = _digits(float((maps.amax((2, 3)) - maps.amin((2, 3))).median()))  # of each map's range
    drawn = F.interpolate(maps, size=(height, width), mode="bilinear").numpy()
    grey = np.einsum("bchw,c->bhw", pictures, _LUMA)

    cell_w, gap, image_gap = 0.72, 0.10, 0.22
    cell_h = cell_w * height / width
    row_h = cell_h + (0.24 if limits is None else gap)
    left, top, bar_w = (0.0 if modality is None else 0.24), (0.50 if title else 0.26), 0.95
    grid_w = left + cell_w + image_gap + len(titles) * (cell_w + gap) - gap
    grid_w += 0 if combined is None else image_gap - gap
    total_w, total_h = grid_w + bar_w, max(top + count * row_h, 1.6)
    figure, axes = new_canvas(total_w, total_h)
    columns = left + cell_w + image_gap + np.arange(len(titles)) * (cell_w + gap)
    columns[prototypes:] += image_gap - gap
    small: dict[str, Any] = {"ha": "center", "fontsize": 8, "color": GRAY}
    if title:
        axes.text(grid_w / 2, 0.12, title, ha="center", va="center", fontsize=10)
    for x, name in zip((left, *columns), ("image", *titles), strict=True):
        axes.text(x + cell_w / 2, top - 0.06, name, va="bottom", **small)
    for b in range(count):
        y = top + b * row_h
        framed(axes, pictures[b], left, y, cell_w, cell_h, BLUE, "-")
        if modality is not None:
            name = MODALITIES[int(modality[b])]
            axes.text(left - 0.07, y + cell_h / 2, name, rotation=90, ha="right", va="center", fontsize=8, color=BLUE)
        for x, values, own in zip(columns, drawn[b], maps[b], strict=True):
            low, high = limits or _ends(own)
            place: dict[str, Any] = {"extent": (x, x + cell_w, y + cell_h, y), "aspect": "auto"}
            axes.imshow(grey[b], cmap="gray", vmin=0, vmax=1, interpolation="nearest", **place)
            axes.imshow(values, cmap="turbo", vmin=low, vmax=high, alpha=_STRENGTH, interpolation="nearest", **place)
            if limits is None:
                ends = f"{own.min():.{digits}f}…{own.max():.{digits}f}"
                axes.text(x + cell_w / 2, y + cell_h + 0.04, ends, va="top", **small | {"fontsize": 6.5})
    bar_h, whole_w, whole_h = min(total_h - top - 0.1, 2.2), total_w + 0.2, total_h + 0.1  # new_canvas adds a margin
    bar_y = total_h + 0.05 - top - bar_h  # from below
    bar = figure.add_axes(((grid_w + 0.30) / whole_w, bar_y / whole_h, 0.12 / whole_w, bar_h / whole_h))
    _draw_scale(figure, bar, limits)
    return finish(figure, path)


def _maps(attention: Any, size: tuple[int, int] | None, count: int) -> Tensor:
    """Checked maps (B, p, h, w), float32 on the CPU."""
    values = to_numpy(attention)
    if values.dtype.kind != "f":
        raise TypeError(f"attention must be floating point, got {values.dtype}")
    if size is not None:
        check_size("size", size)
        h, w = size
        if values.ndim != 3 or len(values) != count or values.shape[1] == 0 or values.shape[2] != h * w:
            raise ValueError(f"attention must have shape ({count}, p, {h * w}) for size ({h}, {w}), got {values.shape}")
        values = values.reshape(*values.shape[:2], h, w)
    if values.ndim != 4 or len(values) != count or 0 in values.shape:
        flat = ", or (B, p, h·w) with size" if values.ndim == 3 else ""
        raise ValueError(f"attention must have shape ({count}, p, h, w){flat}, got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("attention must be finite, got NaN or an infinity")
    return torch.from_numpy(np.array(values, dtype=np.float32))


def _ends(values: Tensor) -> tuple[float, float]:
    """Least and largest value; where they are one, a scale of length 1, so that all has its lowest colour."""
    low, high = values.min().item(), values.max().item()
    return low, high if high > low else low + 1


def _limits(scale: Any, maps: Tensor) -> tuple[float, float] | None:
    """Ends of the scale of all maps, None if each map has its own."""
    if isinstance(scale, str):
        check_option("scale", scale, ("common", "map"))
        return _ends(maps) if scale == "common" else None
    return check_limits("scale", scale, "'common', 'map' or (low, high)")


def _digits(span: float) -> int:
    """Decimals that tell values apart which lie ``span`` from each other at most."""
    return int(np.clip(1 - np.floor(np.log10(span)), 1, 4)) if span > 0 else 2


def _draw_scale(figure: "Figure", axes: Any, limits: tuple[float, float] | None) -> None:
    """The colour bar, its ends and what lies between them written beside it."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    low, high = limits or (0.0, 1.0)
    digits = _digits((high - low) / 4)
    bar = figure.colorbar(ScalarMappable(Normalize(low, high), "turbo"), cax=axes)
    ticks = np.linspace(low, high, 5).tolist() if limits else [low, high]
    bar.set_ticks(ticks, labels=[f"{t:.{digits}f}" for t in ticks] if limits else ["least", "largest"])
    bar.ax.tick_params(labelsize=8, length=2)
    bar.set_label("attention" if limits else "attention in each map", fontsize=8, color=GRAY)
