"""Shared base of the protocols: checked inputs, the order in which galleries are drawn, distances and the report."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from vireid import INFRARED, VISIBLE
from vireid._checks import Array, check_count, check_finite, check_modality, check_option, to_integers, to_matrix
from vireid.data.features import Features
from vireid.metrics import rank_metrics
from vireid.neighbors._scores import cosine_distance
from vireid.protocols._report_row import Parameter, check_text
from vireid.protocols.names import Direction, dataset_name
from vireid.protocols.report import Report

Rerank: TypeAlias = Callable[[Tensor, Tensor], Array]
"""(query (Nq, d), gallery (Ng, d)) -> distance (Nq, Ng)."""


class Images(NamedTuple):
    """Annotations of N images, int64 arrays (N,), those not given empty."""

    ids: np.ndarray
    modality: np.ndarray
    cameras: np.ndarray
    image_numbers: np.ndarray


class Protocol:
    """Base of the protocols: a query, a gallery for each trial, and the metrics of their ranking."""

    name: str
    direction: Direction
    trials = 1
    _dataset = ""  # by the standard name
    _needs: tuple[str, ...] = ("modality",)  # besides the ids
    _query_needs: tuple[str, ...] = ("modality",)
    _cameras = range(0)  # the data set's numbers, empty if cameras do not matter
    _exclude: Literal["same_camera", "same_id_same_camera"] | None = None
    _cmc_over: Literal["images", "identities"] = "images"
    _numbers = staticmethod(Features.numbers)  # image numbers of a feature file

    def evaluate(
        self,
        features: Array | Features,
        ids: Array | None = None,
        modality: Array | None = None,
        cameras: Array | None = None,
        image_numbers: Array | None = None,
        *,
        rerank: Rerank | None = None,
        features_name: str = "backbone",
        rerank_name: str | None = None,
    ) -> Report:
        """Rank every trial's gallery for all queries and report the metrics.

        The class says which of the arrays its protocol needs; the others are only checked.

        Args:
            features: (N, d) of all test images, visible and infrared in any order, ranked by cosine distance. Or a
                feature file (`vireid.data.load_features`), whose arrays stand in for those that are not given.
            ids: (N,) the data set's own identity numbers.
            modality: (N,) 0 visible, 1 infrared.
            cameras: (N,) the data set's own camera numbers.
            image_numbers: (N,) numbers of the images within identity, camera and modality, as the data set's reader
                gives them.
            rerank: function or object (query (Nq, d), gallery (Ng, d)) -> distance (Nq, Ng), called once per trial
                with the features as given; None compares by cosine distance.
            features_name: name of the features in the report.
            rerank_name: name of the re-ranking in the report. Default: its own, "none" without one.

        Returns:
            A `Report` of one row with ``trials`` trials.

        Raises:
            ValueError: for sizes that do not match, NaN or an infinity, values unknown to the data set, images that are
                missing or given twice, a distance of the wrong shape, or a feature file whose metadata name another
                data set.
            TypeError: for an array that is needed and not given, features that are not floating point, other arrays
                that are not integers or a ``rerank`` that cannot be called.
        """
        _check_rerank(rerank)
        check_text("features_name", features_name)
        check_text("rerank_name", "" if rerank_name is None else rerank_name)
        arrays = {"ids": ids, "modality": modality, "cameras": cameras, "image_numbers": image_numbers}
        if isinstance(features, Features):
            self._check_dataset(features.metadata.get("dataset", ""))
            for name in ("ids", *self._needs):
                if arrays[name] is None:
                    arrays[name] = self._numbers(features) if name == "image_numbers" else getattr(features, name)
            features = features.features
        x = to_matrix("features", features)
        if not x.shape[1]:
            raise ValueError(f"features must have at least one column, got shape {tuple(x.shape)}")
        check_finite("features", x)
        images = self._images(("ids", *self._needs), arrays, len(x))
        draw = self._drawing(images)
        query = torch.from_numpy(self._query(images)).to(x.device)
        people, places = (torch.from_numpy(y).to(x.device) for y in (images.ids, self._places(images)))
        asking, results = x[query], []
        for trial in range(self.trials):
            gallery = torch.from_numpy(draw(trial)).to(x.device)
            cams = (places[query], places[gallery]) if self._exclude else (None, None)
            results.append(
                rank_metrics(  # frees the distances before the next trial's are computed
                    compare(asking, x[gallery], rerank),
                    people[query],
                    people[gallery],
                    *cams,
                    exclude=self._exclude,
                    cmc_over=self._cmc_over,
                )
            )
        name, uses, parameters = _describe(rerank)
        return Report.from_metrics(
            results,
            self.name,
            direction=self.direction,
            features_name=features_name,
            rerank_name=name if rerank_name is None else rerank_name,
            uses=uses,
            parameters=parameters,
        )

    def query(self, modality: Array | None = None, cameras: Array | None = None) -> Tensor:
        """Return the indices (Nq,), on the CPU, of the query images, in the order given.

        Args:
            modality: (N,) 0 visible, 1 infrared, of all test images.
            cameras: (N,) camera numbers of all test images.

        Raises:
            ValueError: if there is no query image, or for a value unknown to the data set.
            TypeError: if the array that the protocol needs is not given.
        """
        images = self._images(self._query_needs, {"modality": modality, "cameras": cameras})
        return torch.from_numpy(self._query(images))

    def gallery(
        self,
        trial: int,
        ids: Array | None = None,
        modality: Array | None = None,
        cameras: Array | None = None,
        image_numbers: Array | None = None,
    ) -> Tensor:
        """Return the indices (Ng,), on the CPU, of one trial's gallery; the arrays are those of `evaluate`.

        A drawn gallery is in the order of identity, camera, draw; one of all images in the order given.

        Raises:
            ValueError: for a trial out of range, values unknown to the data set, or images that are missing or given
                twice.
            TypeError: if an array that the protocol needs is not given.
        """
        trial = check_count("trial", trial, minimum=0)
        if trial >= self.trials:
            raise ValueError(f"trial must be below trials={self.trials}, got {trial}")
        arrays = {"ids": ids, "modality": modality, "cameras": cameras, "image_numbers": image_numbers}
        draw = self._drawing(self._images(("ids", *self._needs), arrays))
        return torch.from_numpy(draw(trial))

    def _check_dataset(self, known: str) -> None:
        """Raise if a feature file's data set ``known`` is another; the synthetic one has no rules of its own."""
        try:
            name = dataset_name(known)
        except ValueError:  # own data
            return
        if self._dataset and name not in (self._dataset, "synthetic"):
            hint = "given as arrays they are evaluated by any protocol's rules"
            raise ValueError(f"features must be of {self.name}, got a file of the data set {known!r}; {hint}")

    def _query(self, images: Images) -> np.ndarray:
        """Return the indices of the query images."""
        return split_modalities(images.modality, self.direction)[0]

    def _drawing(self, images: Images) -> Callable[[int], np.ndarray]:
        """Return the function that draws the indices of a trial's gallery."""
        raise NotImplementedError

    def _places(self, images: Images) -> np.ndarray:
        """Return the number of each image's place, which exclusion compares."""
        return images.cameras

    def _images(self, needs: Sequence[str], given: Mapping[str, Array | None], length: int | None = None) -> Images:
        """Return the annotations, all of ``length`` or, by default, of the length of the first."""
        arrays = {}
        for name in Images._fields:
            x = given.get(name)
            if x is None:
                if name in needs:
                    raise TypeError(f"{name} must be given for {self.name}, got None")
                arrays[name] = np.empty(0, dtype=np.int64)
                continue
            if length is None:
                strided = isinstance(x, np.ndarray) or (isinstance(x, Tensor) and not x.is_nested)
                length = len(x) if strided and x.ndim else 0
            arrays[name] = _integers(name, x, length)
        check_modality("modality", torch.from_numpy(arrays["modality"]))
        if len(self._cameras):
            unknown = np.setdiff1d(arrays["cameras"], self._cameras)
            if len(unknown):
                expected = f"the data set's numbers {self._cameras[0]} to {self._cameras[-1]}"
                raise ValueError(f"cameras must be {expected}, got {unknown[0]}")
        return Images(**arrays)


def _integers(name: str, x: Array, length: int) -> np.ndarray:
    """Return ``x`` as an int64 array (``length``,); the error for another type tells how to convert it."""
    try:
        return to_integers(name, x, length, torch.device("cpu")).numpy()
    except TypeError as error:
        if not isinstance(x, Tensor | np.ndarray):
            raise
        how = "long()" if isinstance(x, Tensor) else "astype(int)"
        raise TypeError(f"{error}; integers are needed, e.g. {name}.{how}") from error


def split_modalities(modality: np.ndarray, direction: Direction) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the images of the query's and of the gallery's modality; neither may be empty."""
    visible, infrared = np.flatnonzero(modality == VISIBLE), np.flatnonzero(modality == INFRARED)
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


def group_images(images: Images, rows: np.ndarray) -> Groups:
    """Return the groups of identity and camera among these ``rows``; an image must not appear twice."""
    order = rows[np.lexsort((images.image_numbers[rows], images.cameras[rows], images.ids[rows]))]
    table = np.stack([images.ids, images.cameras, images.image_numbers])[:, order]
    twice = np.flatnonzero((np.diff(table, axis=1) == 0).all(0))
    if len(twice):
        shown = image_name(*table[:, twice[0]].tolist())
        raise ValueError(f"image_numbers must be unique within identity and camera, got twice: {shown}")
    keys, starts, sizes = np.unique(table[:2], axis=1, return_index=True, return_counts=True)
    return Groups(order, keys, starts, sizes)


def image_name(person: int, camera: int, number: int) -> str:
    """Return the name of an image in messages."""
    return f"image {number} of identity {person} in camera {camera}"


def _check_rerank(rerank: object) -> None:
    """Raise unless ``rerank`` is None or callable, but not a class."""
    if isinstance(rerank, type):
        raise TypeError(f"rerank must be an object such as AIM(k1=…, k2=…), got the class {rerank.__name__}")
    if rerank is not None and not callable(rerank):
        raise TypeError(f"rerank must be None or callable with (query, gallery), got {type(rerank).__name__}")


def compare(query: Tensor, gallery: Tensor, rerank: Rerank | None = None) -> Tensor:
    """Return the distance (Nq, Ng) of ``rerank``, or the cosine distance without it."""
    if rerank is not None:
        distance = to_matrix("rerank's distance", rerank(query, gallery))
        if distance.shape != (len(query), len(gallery)):
            raise ValueError(
                f"rerank must return a distance ({len(query)}, {len(gallery)}), got {tuple(distance.shape)}"
            )
        return distance.to(query.device)
    with torch.autocast(query.device.type, enabled=False):
        return cosine_distance(query, gallery)


def _describe(rerank: Rerank | None) -> tuple[str, str, dict[str, Parameter]]:
    """Return name, ``uses`` and parameters of a function, a partial of one, an object or a bound method."""
    if rerank is None:
        return "none", "query", {}
    function, keywords = (rerank.func, rerank.keywords) if isinstance(rerank, functools.partial) else (rerank, {})
    owner = getattr(function, "__self__", function)  # a bound method, such as H2FT's distance, stands for its object
    settings = getattr(owner, "settings", None)
    given = (dict(settings) if isinstance(settings, Mapping) else {}) | keywords
    uses = next((u for u in (getattr(x, "uses", None) for x in (rerank, function, owner)) if u is not None), "unknown")
    check_option("rerank's uses", uses, ("query", "gallery", "transductive", "unknown"))
    if given.get("use_query_relations"):
        uses = "transductive"
    if given.get("queries") == "alone":
        uses = "gallery"
    return (
        getattr(owner, "__name__", type(owner).__name__),
        uses,
        {name: _plain(value) for name, value in given.items()},
    )


def _plain(value: object) -> Parameter:
    """Return a parameter as a report stores it: a finite number, str or None unchanged, else a text."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such number
    return value if isinstance(value, bool | int | float | str | None) else type(value).__name__
