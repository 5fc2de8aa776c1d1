"""Features as points in the plane, colored by identity (SAAI, Fig. 5)."""

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from vireid import INFRARED, VISIBLE
from vireid._checks import check_count, check_finite, check_positive, extra, to_matrix
from vireid._ops import normalize_rows
from vireid.plots._drawing import COLORS, GRAY, MODALITIES, finish, new_figure, to_array, to_modality

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHAPES = {VISIBLE: ("o", 26.0), INFRARED: ("^", 16.0)}  # marker and its area: small triangles leave circles visible
_LEAST_SPREAD = 1e-7  # of unit rows: below it is float32's rounding


def tsne(
    features: Tensor | np.ndarray | Mapping[str, Tensor | np.ndarray],
    labels: Tensor | np.ndarray,
    modality: Tensor | np.ndarray,
    path: str | os.PathLike[str] | None = None,
    *,
    identities: int = 20,
    perplexity: float = 30.0,
    seed: int = 0,
    title: str | None = None,
) -> "Figure":
    """Draw features by t-SNE: colors are identities, circles visible, triangles infrared images (SAAI, Fig. 5).

    Rows are scaled to length 1, so that distances go with the cosine (a squared one is twice 1 - cos). The projection
    starts from the first two principal components: on one machine, the same features and seed give the same picture.
    Points near each other in a picture are near in the features. Size, place and distance of groups mean nothing,
    neither within one panel nor between panels.

    Args:
        features: (N, d), or name -> (N, d) of one panel each, such as a baseline beside SAAI; d may differ, all show
            the same images.
        labels: (N,) identities.
        modality: (N,) `vireid.VISIBLE` or `vireid.INFRARED`.
        path: where to write the figure as well.
        identities: shown at most, chosen evenly among those of ``labels`` in ascending order (our choice: the paper
            does not say which it shows). The others take no part in the projection.
        perplexity: of t-SNE, about the number of neighbors of an image; below the number of images shown.
        seed: of t-SNE's draws.
        title: line above the picture.

    Raises:
        TypeError: if the features are not floating point.
        ValueError: if shapes do not go together, no row is left or all are equal, a number is out of range, features
            are not finite, or a modality is unknown.
    """
    check_count("identities", identities)
    check_positive("perplexity", perplexity)
    check_count("seed", seed, minimum=0, maximum=2**32 - 1)
    given = dict(features) if isinstance(features, Mapping) else {"": features}
    labels = to_array("labels", labels, "N", "integer")
    modality = to_modality(modality, len(labels))
    found = np.unique(labels)
    chosen = found[np.linspace(0, len(found) - 1, min(identities, len(found))).round().astype(int)]
    rows = np.flatnonzero(np.isin(labels, chosen))
    if not perplexity < len(rows):
        raise ValueError(f"perplexity must be below the number of images shown, {len(rows)}, got {perplexity}")
    points = {}
    for name, values in given.items():
        argument = f"features[{name!r}]" if isinstance(features, Mapping) else "features"
        matrix = to_matrix(argument, values)
        if len(matrix) != len(labels) or matrix.shape[1] < 2:
            raise ValueError(f"{argument} must have shape ({len(labels)}, d) with d >= 2, got {tuple(matrix.shape)}")
        check_finite(argument, matrix)
        points[name] = _project(argument, normalize_rows(matrix[rows].cpu().double()).numpy(), perplexity, seed)
    shown = points if isinstance(features, Mapping) else points[""]
    return embedding_map(shown, labels[rows], modality[rows], path, title=title)


def embedding_map(
    points: Tensor | np.ndarray | Mapping[str, Tensor | np.ndarray],
    labels: Tensor | np.ndarray,
    modality: Tensor | np.ndarray,
    path: str | os.PathLike[str] | None = None,
    *,
    title: str | None = None,
) -> "Figure":
    """Draw points of any projection to the plane, in the style of `tsne`.

    Args:
        points: (N, 2) coordinates, or name -> (N, 2) of one panel each. Axes have no ticks, and one scale for x and y.
        labels: (N,) identities, one color each.
        modality: (N,) `vireid.VISIBLE`, drawn as circles, or `vireid.INFRARED`, drawn as triangles.
        path: where to write the figure as well.
        title: line above the picture.

    Raises:
        ValueError: if there is no panel or no point, shapes do not go together, a coordinate is not finite, or a
            modality is unknown.
    """
    panels = dict(points) if isinstance(points, Mapping) else {"": points}
    if not panels:
        raise ValueError("points must hold at least one panel, got none")
    labels = to_array("labels", labels, "N", "any")
    modality = to_modality(modality, len(labels))
    for name, xy in panels.items():
        argument = f"points[{name!r}]" if isinstance(points, Mapping) else "points"
        panels[name] = _in_range(to_array(argument, xy, "N 2", finite=True, N=len(labels)))
    found, identity = np.unique(labels, return_inverse=True)
    kinds = [kind for kind in _SHAPES if (modality == kind).any()]

    columns = min(len(panels), 3)
    lines = math.ceil(len(panels) / columns)
    side = {1: 4.6, 2: 3.6, 3: 2.8}[columns]  # two or three fill the width of a page
    figure = new_figure(side * columns, side * lines + 0.3)
    colors = _colors(len(found))
    style: dict[str, Any] = {"linewidths": 0.4, "edgecolors": "white", "alpha": 0.9}
    grid: Any = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes, (name, xy) in zip(grid.flat, panels.items(), strict=False):
        for kind in kinds:
            shown, (shape, area) = modality == kind, _SHAPES[kind]
            axes.scatter(*xy[shown].T, c=colors[identity[shown]], marker=shape, s=area, **style)
        axes.set(xticks=[], yticks=[])
        axes.set_title(name, fontsize=10)
        axes.set_aspect("equal", adjustable="datalim")
    if title:
        figure.suptitle(title, fontsize=10)
    _legend(figure, colors, kinds)
    return finish(figure, path)


def _in_range(points: np.ndarray) -> np.ndarray:
    """Return ``points`` (N, 2), scaled if Matplotlib could not: axes have no numbers."""
    largest = np.abs(points.astype(np.float64)).max()
    return points if largest == 0 or 1e-30 < largest < 1e30 else points / largest


def _project(argument: str, rows: np.ndarray, perplexity: float, seed: int) -> np.ndarray:
    """Return the t-SNE (N, 2) of ``rows`` (N, d)."""
    with extra("plots", "vireid.plots.tsne needs scikit-learn"):
        from sklearn.manifold import TSNE
    # Without spread there are no principal components to start from: scikit-learn's tree then ends the process.
    if np.ptp(rows, axis=0).max() < _LEAST_SPREAD:
        raise ValueError(f"{argument} must differ between images, the directions of all that are shown are equal")
    # Euclidean: sklearn squares what it is given, and a squared distance of rows of length 1 is 2 (1 - cos).
    return np.asarray(TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(rows))


def _colors(count: int) -> np.ndarray:
    """Return (count, 3) colors: those of the other pictures, or hues whose neighbors differ in lightness."""
    from matplotlib.colors import hsv_to_rgb, to_rgb

    if count <= len(COLORS):
        return np.array([to_rgb(color) for color in COLORS[:count]])
    index = np.arange(count)
    saturation, value = np.array([(0.95, 0.80), (0.60, 0.95), (0.90, 0.50)])[index % 3].T
    return hsv_to_rgb(np.stack([index / count, saturation, value], axis=1))


def _legend(figure: "Figure", colors: np.ndarray, kinds: list[int]) -> None:
    """Draw a legend of shapes and colors below the panels."""
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {"linestyle": "none", "color": GRAY, "markersize": 5}
    handles: list[Any] = [Line2D([], [], marker=_SHAPES[kind][0], label=MODALITIES[kind], **style) for kind in kinds]
    labels = [handle.get_label() for handle in handles]
    handles.append(tuple(Line2D([], [], marker="s", **style | {"color": color}) for color in colors[:3]))
    labels.append("1 identity" if len(colors) == 1 else f"{len(colors)} identities")
    style = {"frameon": False, "fontsize": 9, "handler_map": {tuple: HandlerTuple(ndivide=None, pad=0.4)}}
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), **style)
