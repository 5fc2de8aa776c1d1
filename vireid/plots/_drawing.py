"""Shared helpers of the pictures: colors, checks, a canvas in inches, images on it, and the file at the end."""

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from vireid import INFRARED, VISIBLE
from vireid._checks import check_modality, check_number, check_tensor, extra
from vireid._files import check_output, written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, GREEN, RED, GRAY = "#1f4e9c", "#1a8f3c", "#d1242f", "#57606a"
# Safe for the color-blind; lines and markers tell them apart in gray print.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
LINES = ("-", "--", "-.", ":")
MARKERS = "osD^vPX"
_LARGEST = 1e30
MODALITIES = {VISIBLE: "visible", INFRARED: "infrared"}

_KINDS = {
    "float": ("f", "be floating point"),
    "integer": ("iu", "hold integers"),
    "bool": ("b", "be bool"),
    "number": ("fiu", "hold real numbers"),
}

# -- checks --------------------------------------------------------------------------------------------------------


def to_numpy(name: str, values: Any) -> np.ndarray:
    """Return ``values`` as an array on the CPU, without gradient."""
    if not isinstance(values, Tensor):
        return np.asarray(values)
    check_tensor(name, values, " ".join(["N"] * values.ndim), kind="any")
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()  # NumPy has no bfloat16


def to_array(
    name: str,
    values: Any,
    shape: str,
    kind: Literal["float", "integer", "bool", "number", "any"] = "number",
    *,
    finite: bool = False,
    **sizes: int,
) -> np.ndarray:
    """Return ``values`` as an array; raise unless it has ``shape``, as in `vireid._checks.check_tensor`, not empty."""
    array = to_numpy(name, values)
    axes = [str(sizes.get(axis, axis)) for axis in shape.split()]
    fits = array.ndim == len(axes) and all(
        not axis.isdigit() or size == int(axis) for axis, size in zip(axes, array.shape, strict=True)
    )
    if not fits or 0 in array.shape:
        expected = f"({', '.join(axes)}{',' * (len(axes) == 1)})"
        empty = ", not empty" if fits else ""
        raise ValueError(f"{name} must have shape {expected}{empty}, got {array.shape}")
    if kind != "any" and array.dtype.kind not in _KINDS[kind][0]:
        raise TypeError(f"{name} must {_KINDS[kind][1]}, got {array.dtype}")
    if finite and not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got NaN or an infinity")
    return array


def to_images(name: str, images: Any, shape: str = "B 3 H W", **sizes: int) -> np.ndarray:
    """Return checked images of ``shape`` as float32 in [0, 1]."""
    images = to_array(name, images, shape, "any", finite=False, **sizes)
    if images.dtype == np.uint8:
        return images.astype(np.float32) / 255
    if images.dtype.kind != "f":
        raise TypeError(f"{name} must be uint8 or floating point, got {images.dtype}")
    if not ((images >= 0) & (images <= 1)).all():
        raise ValueError(f"{name} must lie in [0, 1], not normalized, got {images.min()} to {images.max()}")
    return images.astype(np.float32)


def to_modality(modality: Any, count: int) -> np.ndarray:
    """Return checked ``modality`` (count,) of `MODALITIES`."""
    codes = to_array("modality", modality, "N", "integer", N=count).astype(np.int64)
    check_modality("modality", torch.from_numpy(codes))
    return codes


def to_points(name: str, points: Any, shape: tuple[int, ...], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return checked x and y (*shape, 2), float64, and whether each (*shape) is seen in an image of ``size``."""
    points = to_numpy(name, points)
    if points.shape not in ((*shape, 2), (*shape, 3)):
        raise ValueError(f"{name} must have shape {(*shape, 2)} or {(*shape, 3)}, got {points.shape}")
    if points.dtype.kind not in "fiu":
        raise TypeError(f"{name} must hold real numbers, got {points.dtype}")
    place = points[..., :2].astype(np.float64)
    height, width = size
    seen = ((place >= 0) & (place <= (width, height))).all(-1)  # False for NaN
    return place, seen & (points[..., 2] > 0) if points.shape[-1] == 3 else seen


def check_range(name: str, values: np.ndarray) -> None:
    """Raise if ``values`` are too large to be drawn: Matplotlib computes with their differences."""
    largest = float(np.abs(values).max())
    if largest > _LARGEST:
        raise ValueError(f"{name} must be at most 1e30 in magnitude, got {largest:.3g}")


def show_numbers(values: Sequence[float], digits: int) -> list[str]:
    """Return ``values`` with so many decimals, or in scientific form if these would be long or all zero."""
    finite = [abs(value) for value in values if math.isfinite(value)] or [0.0]
    scientific = max(finite) >= 1e5 or (any(finite) and not any(round(value, digits) for value in finite))
    form = ".2g" if scientific else f".{digits}f"
    return [f"{value:{form}}" for value in values]


def check_limits(name: str, limits: Any, expected: str = "(low, high)") -> tuple[float, float]:
    """Return checked ``limits``, the two ends of a color scale."""
    if not isinstance(limits, Sequence) or isinstance(limits, str) or len(limits) != 2:
        raise ValueError(f"{name} must be {expected}, got {limits!r}")
    low, high = (check_number(name, end) for end in limits)
    if not -_LARGEST <= low < high <= _LARGEST:
        raise ValueError(f"{name} must rise from low to high, both at most 1e30 in magnitude, got {limits!r}")
    return low, high


# -- figures -------------------------------------------------------------------------------------------------------


def new_figure(width: float, height: float, layout: Any = "constrained") -> "Figure":
    """Return a figure of ``width`` × ``height`` inches."""
    with extra("plots", "vireid.plots needs matplotlib"):
        from matplotlib.figure import Figure
    return Figure(figsize=(width, height), layout=layout, dpi=150)


def new_canvas(width: float, height: float, title: str | None, middle: float | None = None) -> tuple["Figure", Any]:
    """Return a figure and its axes in inches, y downwards, from (0, 0) to (width, height), titled at the top."""
    figure = new_figure(width + 0.2, height + 0.1, layout=None)
    axes: Any = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.1, width + 0.1), ylim=(height + 0.05, -0.05))
    axes.axis("off")
    if title:
        axes.text(width / 2 if middle is None else middle, 0.1, title, ha="center", va="center", fontsize=10)
    return figure, axes


def draw_bar(figure: "Figure", x: float, y: float, width: float, height: float, scale: tuple[float, float, str]) -> Any:
    """Draw a color bar with its upper left corner at (x, y) of the canvas; ``scale`` holds its ends and colors."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    low, high, colors = scale
    wide, tall = figure.get_size_inches()  # `new_canvas` leaves a margin of 0.1 left and 0.05 above
    axes = figure.add_axes(((x + 0.1) / wide, 1 - (y + height + 0.05) / tall, width / wide, height / tall))
    bar = figure.colorbar(ScalarMappable(Normalize(low, high), colors), cax=axes)
    bar.ax.tick_params(labelsize=7, length=2)
    return bar


def draw_image(axes: Any, image: np.ndarray, x: float, y: float, width: float, height: float, **style: Any) -> None:
    """Draw ``image`` (3, H, W), or a map (H, W), with its upper left corner at (x, y)."""
    image = image.transpose(1, 2, 0) if image.ndim == 3 else image
    axes.imshow(image, extent=(x, x + width, y + height, y), aspect="auto", interpolation="nearest", **style)


def draw_outline(axes: Any, x: float, y: float, width: float, height: float) -> None:
    """Draw a thin line around an image or a matrix."""
    corners = (x, x + width, x + width, x, x), (y, y, y + height, y + height, y)
    axes.plot(*corners, color=GRAY, linewidth=0.8, solid_joinstyle="miter", zorder=3)


def draw_frame(
    axes: Any, x: float, y: float, width: float, height: float, color: str, line: Any = "-", inches: float = 0.036
) -> None:
    """Draw a frame, ``inches`` wide, around the outside of a box."""
    from matplotlib.patches import Rectangle

    half = inches / 2
    style: dict[str, Any] = {"fill": False, "edgecolor": color, "linestyle": line, "linewidth": 72 * inches}
    corner, size = (x - half, y - half), (width + inches, height + inches)
    axes.add_patch(Rectangle(corner, *size, clip_on=False, zorder=3, **style))


def draw_first(axes: Any, image: np.ndarray, x: float, y: float, size: tuple[float, float], name: str | None) -> None:
    """Draw the first image of a row, framed blue, with its name, if any, beside it."""
    draw_image(axes, image, x, y, *size)
    draw_frame(axes, x, y, *size, BLUE)
    if name is not None:
        axes.text(x - 0.07, y + size[1] / 2, name, rotation=90, ha="right", va="center", fontsize=8, color=BLUE)


def draw_nodes(axes: Any, places: np.ndarray, colors: list[str], marker: str = "o") -> None:
    """Draw nodes of a graph at ``places`` (n, 2), above all lines."""
    if len(places):
        axes.scatter(*places.T, s=13, c=colors, marker=marker, edgecolors="#202020", linewidths=0.6, zorder=6)


def text_width(names: Sequence[str], size: float) -> float:
    """Return the width in inches of the longest of the names at ``size`` points."""
    new_figure(1, 1)  # raises without matplotlib, naming the extra
    from matplotlib.cbook import is_math_text
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font, shown = FontProperties(size=size), [show_name(name) for name in names]
    widths = [text_to_path.get_text_width_height_descent(text, font, is_math_text(text))[0] for text in shown if text]
    return float(max(widths, default=0)) / 72


def show_name(name: str) -> str:
    """Return a node's name as shown in a picture."""
    return name.replace("_", " ").strip()


def finish(figure: "Figure", path: str | os.PathLike[str] | None) -> "Figure":
    """Write ``figure`` to ``path``, if given, whole or not at all, and return it."""
    if path is None:
        return figure
    target = check_output(path)
    formats = figure.canvas.get_supported_filetypes()
    suffix = target.suffix.lstrip(".").lower()
    if suffix not in formats:
        raise ValueError(f"path must end in one of {', '.join(sorted(formats))}, got {target}")
    with written_whole(target) as temporary:
        figure.savefig(temporary, format=suffix, dpi=200)
    return figure
