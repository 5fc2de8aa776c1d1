"""What the protocols share: checked inputs, the order in which galleries are drawn, distances and the report."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vireid import INFRARED, VISIBLE
from vireid._checks import Array, check_finite, check_option, to_integers, to_matrix
from vireid._ops import at_least_float32, normalize_rows
from vireid.metrics import RankMetrics
from vireid.protocols.report import QueryResults, Report, ReportRow

DIRECTIONS = ("visible_to_infrared", "infrared_to_visible")

Rerank = Callable[[Tensor, Tensor], Any]
"""(query (Nq, d), gallery (Ng, d)) -> distance (Nq, Ng)."""


def features_and_ids(features: Array, ids: Array) -> tuple[Tensor, Tensor]:
    """Checked features (N, d) and ids (N,) on their device."""
    x = to_matrix("features", features)
    if not x.shape[1]:
        raise ValueError(f"features must have at least one column, got shape {tuple(x.shape)}")
    check_finite("features", x)
    return x, integers("ids", ids, len(x), x.device)


def integers(name: str, x: Array, length: int, device: torch.device) -> Tensor:
    """``x`` as an int64 tensor (``length``,) on ``device``; a wrong type's message says how to convert."""
    try:
        return to_integers(name, x, length, device)
    except TypeError as error:
        if not isinstance(x, Tensor | np.ndarray):
            raise
        how = "long()" if isinstance(x, Tensor) else "astype(int)"
        raise TypeError(f"{error}; integers are needed, e.g. {name}.{how}") from error


def numpy_integers(name: str, x: Any, length: int | None = None) -> np.ndarray:
    """``x`` as an int64 array (``length``,), of its own length where none is given."""
    if length is None:
        length = len(x) if isinstance(x, Tensor | np.ndarray) and x.ndim else 0
    return integers(name, x, length, torch.device("cpu")).numpy()


def query_and_gallery(modality: Tensor, direction: str) -> tuple[Tensor, Tensor]:
    """Indices of the images of the query's and of the gallery's modality; both must be there."""
    visible, infrared = (modality == VISIBLE).nonzero().flatten(), (modality == INFRARED).nonzero().flatten()
    if len(visible) + len(infrared) != len(modality):
        raise ValueError(f"modality must be 0 (visible) or 1 (infrared), got {modality.unique().tolist()}")
    if not len(visible) or not len(infrared):
        raise ValueError(
            f"modality must hold both, got {len(visible)} visible (0) and {len(infrared)} infrared (1) images"
        )
    return (visible, infrared) if direction == "visible_to_infrared" else (infrared, visible)


class Groups(NamedTuple):
    """Images by identity, then camera, then number: the order in which published code draws a gallery.

    Attributes:
        order: (N,) indices of the images in that order.
        keys: (2, G) identity and camera of each group.
        starts: (G,) where a group begins in ``order``.
        sizes: (G,) its number of images.
    """

    order: np.ndarray
    keys: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray


def group_images(ids: np.ndarray, cameras: np.ndarray, numbers: np.ndarray) -> Groups:
    """The groups of identity and camera; an image must not appear twice."""
    order = np.lexsort((numbers, cameras, ids))
    table = np.stack([ids, cameras, numbers])[:, order]
    twice = np.flatnonzero((np.diff(table, axis=1) == 0).all(0))
    if len(twice):
        raise ValueError(
            f"image_numbers must be unique within identity and camera, got twice: {image_name(table[:, twice[0]])}"
        )
    keys, starts, sizes = np.unique(table[:2], axis=1, return_index=True, return_counts=True)
    return Groups(order, keys, starts, sizes)


def image_name(key: Any) -> str:
    """What messages call the image of (identity, camera, number)."""
    return "image {2} of identity {0} in camera {1}".format(*(int(part) for part in key))


def check_rerank(rerank: Any) -> None:
    """Raise unless ``rerank`` is None or can be called, and no class."""
    if isinstance(rerank, type):
        raise TypeError(f"rerank must be an object such as AIM(k1=…, k2=…), got the class {rerank.__name__}")
    if rerank is not None and not callable(rerank):
        raise TypeError(f"rerank must be None or callable with (query, gallery), got {type(rerank).__name__}")


def compare(query: Tensor, gallery: Tensor, rerank: Rerank | None) -> Tensor:
    """Distance (Nq, Ng): what ``rerank`` answers, or the cosine distance without it."""
    if rerank is not None:
        distance = to_matrix("rerank's distance", rerank(query, gallery))
        if distance.shape != (len(query), len(gallery)):
            raise ValueError(
                f"rerank must return a distance ({len(query)}, {len(gallery)}), got {tuple(distance.shape)}"
            )
        return distance.to(query.device)
    with torch.autocast(query.device.type, enabled=False):
        q, g = (normalize_rows(at_least_float32(x)) for x in (query, gallery))
        return 1 - q @ g.T


def make_report(
    dataset: str,
    direction: str,
    results: Sequence[RankMetrics],
    rerank: Rerank | None,
    features_name: str,
    rerank_name: str | None,
) -> Report:
    """Report of one row; ``results`` are one a trial, all of the same queries."""
    name, uses, parameters = _describe(rerank)
    trials = tuple(
        {f"rank{r}": 100 * m.rank(r) for r in (1, 5, 10, 20)} | {"mAP": 100 * m.mAP, "mINP": 100 * m.mINP}
        for m in results
    )
    cmcs = tuple(tuple(torch.as_tensor(m.cmc).tolist()) for m in results)
    queries = QueryResults(
        *(
            np.stack([torch.as_tensor(getattr(m, field)).cpu().numpy() for m in results])
            for field in ("first_match", "average_precision", "inverse_negative_penalty")
        )
    )
    row = ReportRow(
        direction,
        features_name,
        name if rerank_name is None else rerank_name,
        uses,
        trials,
        cmcs,
        parameters=parameters,
        queries=(queries,),
    )
    return Report(dataset, (row,))


def _describe(rerank: Rerank | None) -> tuple[str, str, dict[str, Any]]:
    """Name, ``uses`` and parameters of a re-ranking: a function, a partial of one, an object or one's bound method."""
    if rerank is None:
        return "none", "query", {}
    function, keywords = (rerank.func, rerank.keywords) if isinstance(rerank, functools.partial) else (rerank, {})
    owner = getattr(function, "__self__", function)  # a bound method, such as H2FT's distance, speaks for its object
    settings = getattr(owner, "settings", None)
    given = (dict(settings) if isinstance(settings, Mapping) else {}) | keywords
    uses = next((u for u in (getattr(x, "uses", None) for x in (rerank, function, owner)) if u is not None), "unknown")
    check_option("rerank's uses", uses, ("query", "gallery", "transductive", "unknown"))
    if given.get("use_query_relations"):
        uses = "transductive"
    return (
        getattr(owner, "__name__", type(owner).__name__),
        uses,
        {name: _plain(value) for name, value in given.items()},
    )


def _plain(value: Any) -> bool | int | float | str | None:
    """A parameter as reports hold it: a number, text or None as it is, anything else by the name of its type."""
    value = value.item() if isinstance(value, np.generic) else value
    return value if isinstance(value, bool | int | float | str | None) else type(value).__name__
