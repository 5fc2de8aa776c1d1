"""What the pictures share: colours, a figure to draw on, a framed image, checks, and the file at the end."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vireid import INFRARED, VISIBLE
from vireid._checks import check_number
from vireid._files import written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, GREEN, RED, GRAY = "#1f4e9c", "#1a8f3c", "#d1242f", "#57606a"
# Colour-blind safe, and told apart by line and marker in print as well.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
LINES = ("-", "--", "-.", ":")
MARKERS = "osD^vPX"
MODALITIES = {VISIBLE: "visible", INFRARED: "infrared"}


def to_numpy(values: Any) -> np.ndarray:
    """``values`` as an array on the CPU, without gradient."""
    if not isinstance(values, Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()  # NumPy has no bfloat16


def check_shape(name: str, values: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raise unless ``values`` are of ``shape``."""
    if values.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {values.shape}")


def check_modality(modality: Any, count: int) -> np.ndarray:
    """``modality`` (count,) as an array of `MODALITIES`."""
    modality = to_numpy(modality)
    check_shape("modality", modality, (count,))
    if not np.isin(modality, (VISIBLE, INFRARED)).all():
        raise ValueError(f"modality must hold {VISIBLE} (visible) or {INFRARED} (infrared), got {modality}")
    return modality


def check_images(name: str, images: Any, dimensions: int = 4) -> np.ndarray:
    """Checked images (B, 3, H, W), or (3, H, W) for three ``dimensions``, as float32 in [0, 1]."""
    images = to_numpy(images)
    if images.ndim != dimensions or images.shape[-3] != 3 or 0 in images.shape:
        expected = "(B, 3, H, W) with B >= 1" if dimensions == 4 else "(3, H, W)"
        raise ValueError(f"{name} must have shape {expected}, got {images.shape}")
    if images.dtype == np.uint8:
        return images.astype(np.float32) / 255
    if images.dtype.kind != "f":
        raise TypeError(f"{name} must be uint8 or floating point, got {images.dtype}")
    if not ((images >= 0) & (images <= 1)).all():
        raise ValueError(f"{name} must lie in [0, 1], not normalised, got {images.min()} to {images.max()}")
    return images.astype(np.float32)


def check_limits(name: str, limits: Any, expected: str = "(low, high)") -> tuple[float, float]:
    """``limits`` as the two ends of a scale of colours."""
    if not isinstance(limits, Sequence) or isinstance(limits, str) or len(limits) != 2:
        raise ValueError(f"{name} must be {expected}, got {limits!r}")
    low, high = limits
    check_number(name, low)
    check_number(name, high)
    if not low < high or np.isinf([low, high]).any():
        raise ValueError(f"{name} must rise from low to high, both finite, got {limits!r}")
    return float(low), float(high)


def new_figure(width: float, height: float, layout: Any = "constrained") -> "Figure":
    """Figure of ``width`` × ``height`` inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("vireid.plots needs matplotlib: pip install 'vireid[plots]'") from error
    return Figure(figsize=(width, height), layout=layout, dpi=150)


def new_canvas(width: float, height: float) -> tuple["Figure", Any]:
    """Figure with one axes in units of inches, y downwards, that holds all of (0, 0) to (width, height)."""
    figure = new_figure(width + 0.2, height + 0.1, layout=None)
    axes: Any = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.1, width + 0.1), ylim=(height + 0.05, -0.05))
    axes.axis("off")
    return figure, axes


def framed(
    axes: Any, image: np.ndarray, x: float, y: float, width: float, height: float, color: str, line: Any
) -> None:
    """Draw ``image`` (3, H, W) with its upper left corner at (x, y), a frame around it."""
    from matplotlib.patches import Rectangle

    axes.imshow(image.transpose(1, 2, 0), extent=(x, x + width, y + height, y), aspect="auto", interpolation="nearest")
    edge = 0.018  # half the frame's width, so that it lies around the image, not on it
    axes.add_patch(
        Rectangle(
            (x - edge, y - edge),
            width + 2 * edge,
            height + 2 * edge,
            fill=False,
            edgecolor=color,
            linestyle=line,
            linewidth=2 * edge * 72,
            clip_on=False,
            zorder=3,
        )
    )


def finish(figure: "Figure", path: str | os.PathLike[str] | None) -> "Figure":
    """Write ``figure`` to ``path``, if there is one, through a temporary file in the same folder."""
    if path is None:
        return figure
    target = Path(path)
    formats = figure.canvas.get_supported_filetypes()
    suffix = target.suffix.lstrip(".").lower()
    if suffix not in formats:
        raise ValueError(f"path must end in one of {', '.join(sorted(formats))}, got {target}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path must lie in an existing folder, there is none at {target.parent}")
    with written_whole(target) as temporary:
        figure.savefig(temporary, format=suffix, dpi=200)
    return figure
