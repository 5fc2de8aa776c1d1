"""The data sets' evaluation protocols: who is query, who is gallery, and what is skipped."""

import functools
import os
import random
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vireid import INFRARED, VISIBLE
from vireid._arrays import Array, to_integers, to_matrix
from vireid._checks import check_count, check_finite, check_option
from vireid._ops import at_least_float32
from vireid.metrics import RankMetrics, rank_metrics
from vireid.report import Report, ReportRow

__all__ = ["SYSUMM01", "RegDB", "Report", "ReportRow"]

Rerank = Callable[[Tensor, Tensor], Any]
"""(query (Nq, d), gallery (Ng, d)) -> distance (Nq, Ng)."""


class SYSUMM01:
    """Protocol of SYSU-MM01 (Wu et al., ICCV 2017): infrared queries, a visible gallery drawn anew in each trial.

    Query: all test images of cameras 3 and 6. Gallery: of each test identity ``shots`` images from each visible
    camera, 1, 2, 4, 5 ("all") or 1, 2 ("indoor"). Cameras 2 and 3 stand in one place, so a camera-3 query skips every
    camera-2 image. CMC is over identities, mAP and mINP over images; the mean over the trials is reported.

    ``sampling="official"`` takes the first ``shots`` image numbers of the authors' ``rand_perm_cam.mat``.
    ``sampling="agw"`` draws what the AGW family of code bases draws from files sorted by name, identity by identity and
    camera by camera: single-shot the same images as ``random.seed(trial)`` and ``random.choice`` give them. Their
    multi-shot draw, ``numpy.random.choice(files, 10, replace=False)``, is not seeded by that; here it is that draw
    after ``numpy.random.seed(trial)`` **[ours]**. The caller's random state is neither used nor changed.

    Args:
        mode: "all" or "indoor".
        shots: 1 or 10 gallery images of each identity and camera.
        sampling: "official" or "agw".
        permutations: path of ``rand_perm_cam.mat``, needed for "official".
        trials: number of trials, 10 in print.

    Raises:
        ValueError: for an unknown option, ``permutations`` missing with "official" or not such a file, or with fewer
            rows than ``trials``.
        FileNotFoundError: if there is no file at ``permutations``.
    """

    query_cameras = (3, 6)

    def __init__(
        self,
        mode: Literal["all", "indoor"] = "all",
        shots: int = 1,
        sampling: Literal["official", "agw"] = "official",
        *,
        permutations: str | os.PathLike[str] | None = None,
        trials: int = 10,
    ) -> None:
        check_option("mode", mode, ("all", "indoor"))
        check_option("shots", shots, (1, 10))
        check_option("sampling", sampling, ("official", "agw"))
        check_count("trials", trials)
        if sampling == "official" and permutations is None:
            raise ValueError("permutations must be the path of rand_perm_cam.mat for sampling='official', got None")
        self.mode, self.shots, self.sampling, self.trials = mode, shots, sampling, trials
        self.gallery_cameras = (1, 2, 4, 5) if mode == "all" else (1, 2)
        self._permutations = None
        if sampling == "official" and permutations is not None:
            self._permutations = _read_permutations(Path(permutations), trials)

    @property
    def name(self) -> str:
        """Data set and protocol, as reports name them."""
        return f"SYSU-MM01 {self.mode} {'single' if self.shots == 1 else 'multi'}-shot {self.sampling}"

    def query(self, cameras: Array) -> Tensor:
        """Indices (Nq,), on the CPU, of the query images: cameras 3 and 6, in the order given.

        Args:
            cameras: (N,) camera numbers 1 to 6 of all test images.

        Raises:
            ValueError: if a camera number is none of the data set's, or camera 3 or 6 has no image.
        """
        return torch.from_numpy(np.flatnonzero(np.isin(self._check_cameras(cameras), self.query_cameras)))

    def gallery(self, trial: int, ids: Array, cameras: Array, image_numbers: Array) -> Tensor:
        """Indices (Ng,), on the CPU, of one trial's gallery, by identity, then camera, then in the order drawn.

        Args:
            trial: 0 to ``trials`` - 1.
            ids: (N,) identities of all test images.
            cameras: (N,) their camera numbers.
            image_numbers: (N,) their numbers as in the file names (0001.jpg is 1), unique within identity and camera.

        Raises:
            ValueError: for a trial out of range, an image that appears twice, a drawn image that was not given, or
                an identity and camera with fewer images than ``shots`` (but more than none).
        """
        cams = self._check_cameras(cameras)
        people, numbers = (
            _numpy_integers(n, x, len(cams)) for n, x in (("ids", ids), ("image_numbers", image_numbers))
        )
        return self._gallery(trial, people, cams, numbers)

    def _gallery(self, trial: int, ids: np.ndarray, cameras: np.ndarray, numbers: np.ndarray) -> Tensor:
        check_count("trial", trial, minimum=0)
        if trial >= self.trials:
            raise ValueError(f"trial must be below trials={self.trials}, got {trial}")
        order = np.lexsort((numbers, cameras, ids))
        table = np.stack([ids, cameras, numbers])[:, order]
        twice = np.flatnonzero((np.diff(table, axis=1) == 0).all(0))
        if len(twice):
            raise ValueError(
                f"image_numbers must be unique within identity and camera, got twice: {_image(table[:, twice[0]])}"
            )
        groups, starts, sizes = np.unique(table[:2], axis=1, return_index=True, return_counts=True)
        visible = np.isin(groups[1], self.gallery_cameras)
        single, multi = random.Random(trial), np.random.RandomState(trial)
        drawn = []
        for (person, camera), start, size in zip(groups[:, visible].T, starts[visible], sizes[visible], strict=True):
            if size < self.shots:
                raise ValueError(
                    f"image_numbers must hold {self.shots} images of identity {person} in camera {camera}, got {size}"
                )
            if self._permutations is not None:
                wanted = self._wanted(trial, person, camera)
                at = start + np.searchsorted(numbers[order[start : start + size]], wanted)
                there = (at < start + size) & (table[2, np.minimum(at, start + size - 1)] == wanted)
                if not there.all():
                    missing = _image((person, camera, wanted[~there][0]))
                    raise ValueError(f"image_numbers must hold the images that permutations draws, got no {missing}")
            elif self.shots == 1:
                at = np.array([start + single.choice(range(size))])
            else:
                at = start + multi.choice(size, self.shots, replace=False)
            drawn.append(order[at])
        return torch.from_numpy(np.concatenate(drawn))

    def _wanted(self, trial: int, person: int, camera: int) -> np.ndarray:
        cells = self._permutations[camera - 1] if self._permutations is not None else []
        if not 1 <= person <= len(cells) or cells[person - 1].shape[1] < self.shots:
            raise ValueError(
                f"permutations must hold {self.shots} images of identity {person} in camera {camera}: ids must be "
                "the data set's own numbers, and the file its rand_perm_cam.mat"
            )
        return np.asarray(cells[person - 1][trial, : self.shots], dtype=np.int64)

    def _check_cameras(self, cameras: Array, length: int | None = None) -> np.ndarray:
        cams = _numpy_integers("cameras", cameras, length)
        unknown = np.setdiff1d(cams, range(1, 7))
        if len(unknown):
            raise ValueError(f"cameras must be the data set's numbers 1 to 6, got {unknown[0]}")
        for camera in (*self.query_cameras, *self.gallery_cameras):
            if camera not in cams:
                kind = "query" if camera in self.query_cameras else "gallery"
                raise ValueError(f"cameras must hold {kind} images of camera {camera}, got none")
        return cams

    def evaluate(
        self,
        features: Array,
        ids: Array,
        cameras: Array,
        image_numbers: Array,
        *,
        rerank: Rerank | None = None,
        features_name: str = "backbone",
        rerank_name: str | None = None,
    ) -> Report:
        """Rank every trial's gallery for all queries and report the metrics.

        Args:
            features: (N, d) of all test images, visible and infrared in any order. Ranked by cosine distance.
            ids: (N,) the data set's own identity numbers.
            cameras: (N,) camera numbers 1 to 6.
            image_numbers: (N,) numbers as in the file names.
            rerank: function (query (Nq, d), gallery (Ng, d)) -> distance (Nq, Ng), called once a trial with the
                features as given; None compares by cosine distance.
            features_name: name of the features in the report.
            rerank_name: name of the re-ranking in the report. Default: the function's own, "none" without one.

        Returns:
            A `Report` of one row with ``trials`` trials.

        Raises:
            ValueError: for sizes that do not match, NaN or an infinity, missing cameras or images, or a distance of
                the wrong shape.
            TypeError: for features that are not floating point or labels that are not integers.
        """
        x, people = _features(features, ids)
        cams = self._check_cameras(cameras, len(x))
        numbers = _numpy_integers("image_numbers", image_numbers, len(x))
        owners = people.cpu().numpy()
        place = torch.from_numpy(np.where(cams == 2, 3, cams)).to(x.device)
        query = self.query(cams).to(x.device)
        results = []
        for trial in range(self.trials):
            gallery = self._gallery(trial, owners, cams, numbers).to(x.device)
            results.append(
                rank_metrics(
                    _distance(x[query], x[gallery], rerank),
                    people[query],
                    people[gallery],
                    place[query],
                    place[gallery],
                    exclude="same_camera",
                    cmc_over="identities",
                )
            )
        return _report(self.name, "infrared_to_visible", results, rerank, features_name, rerank_name)


class RegDB:
    """Protocol of RegDB (Nguyen et al., 2017): all test images of one modality query all of the other.

    No camera rule; CMC, mAP and mINP over images. The data set's ten trials are ten splits with a model each: evaluate
    each model on its own test images and join the reports with `Report.merge`.

    Args:
        direction: "visible_to_infrared" or "infrared_to_visible", query to gallery.

    Raises:
        ValueError: for another direction.
    """

    def __init__(
        self, direction: Literal["visible_to_infrared", "infrared_to_visible"] = "visible_to_infrared"
    ) -> None:
        check_option("direction", direction, ("visible_to_infrared", "infrared_to_visible"))
        self.direction = direction

    name = "RegDB"

    def evaluate(
        self,
        features: Array,
        ids: Array,
        modality: Array,
        *,
        rerank: Rerank | None = None,
        features_name: str = "backbone",
        rerank_name: str | None = None,
    ) -> Report:
        """Rank one modality's images for each image of the other and report the metrics.

        Args:
            features: (N, d) of all test images of one trial, both modalities in any order. Ranked by cosine distance.
            ids: (N,) identities.
            modality: (N,) 0 visible, 1 infrared (thermal).
            rerank: function (query (Nq, d), gallery (Ng, d)) -> distance (Nq, Ng), called with the features as given;
                None compares by cosine distance.
            features_name: name of the features in the report.
            rerank_name: name of the re-ranking in the report. Default: the function's own, "none" without one.

        Returns:
            A `Report` of one row with one trial.

        Raises:
            ValueError: for sizes that do not match, NaN or an infinity, a modality without images or other than 0
                and 1, or a distance of the wrong shape.
            TypeError: for features that are not floating point or labels that are not integers.
        """
        x, people = _features(features, ids)
        kind = to_integers("modality", modality, len(x), x.device)
        visible, infrared = (kind == VISIBLE).nonzero().flatten(), (kind == INFRARED).nonzero().flatten()
        if len(visible) + len(infrared) != len(kind):
            raise ValueError(f"modality must be 0 (visible) or 1 (infrared), got {kind.unique().tolist()}")
        if not len(visible) or not len(infrared):
            raise ValueError(
                f"modality must hold both, got {len(visible)} visible (0) and {len(infrared)} infrared (1) images"
            )
        query, gallery = (visible, infrared) if self.direction == "visible_to_infrared" else (infrared, visible)
        result = rank_metrics(_distance(x[query], x[gallery], rerank), people[query], people[gallery])
        return _report(self.name, self.direction, [result], rerank, features_name, rerank_name)


def _features(features: Array, ids: Array) -> tuple[Tensor, Tensor]:
    x = to_matrix("features", features)
    check_finite("features", x)
    return x, to_integers("ids", ids, len(x), x.device)


def _numpy_integers(name: str, x: Any, length: int | None = None) -> np.ndarray:
    if length is None:
        length = len(x) if isinstance(x, Tensor | np.ndarray) and x.ndim else 0
    return to_integers(name, x, length, torch.device("cpu")).numpy()


def _image(key: Any) -> str:
    return "image {2} of identity {0} in camera {1}".format(*(int(part) for part in key))


def _read_permutations(path: Path, trials: int) -> list[list[np.ndarray]]:
    """[camera][identity] -> (trials, n) image numbers; MATLAB's format holds arrays only, nothing that runs."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    # What loadmat, and what is made of its answer, raise for a damaged or foreign file.
    damaged = (KeyError, ValueError, TypeError, NotImplementedError, AttributeError, OSError, MatReadError, zlib.error)
    if not path.is_file():
        raise FileNotFoundError(f"permutations must be the path of rand_perm_cam.mat, got {str(path)!r}: no such file")
    try:
        cells = loadmat(path)["rand_perm_cam"]
        table = [[np.atleast_2d(cell) for cell in camera.ravel()] for camera in cells.ravel()]
    except damaged as error:
        raise ValueError(
            f"permutations must be the data set's rand_perm_cam.mat, cannot read {str(path)!r}: {error}"
        ) from error
    if len(table) != 6:
        raise ValueError(f"permutations must hold 6 cameras, got {len(table)} in {str(path)!r}")
    rows = min((cell.shape[0] for camera in table for cell in camera if cell.size), default=0)
    if rows < trials:
        raise ValueError(f"permutations must hold a row for each of trials={trials}, got {rows} in {str(path)!r}")
    return table


def _distance(query: Tensor, gallery: Tensor, rerank: Rerank | None) -> Tensor:
    if rerank is not None:
        distance = to_matrix("rerank's distance", rerank(query, gallery))
        if distance.shape != (len(query), len(gallery)):
            raise ValueError(
                f"rerank must return a distance ({len(query)}, {len(gallery)}), got {tuple(distance.shape)}"
            )
        return distance.to(query.device)
    with torch.autocast(query.device.type, enabled=False):
        q, g = (torch.nn.functional.normalize(at_least_float32(x), eps=1e-12) for x in (query, gallery))
        return 1 - q @ g.T


def _report(
    dataset: str,
    direction: str,
    results: Sequence[RankMetrics],
    rerank: Rerank | None,
    features_name: str,
    rerank_name: str | None,
) -> Report:
    function = rerank.func if isinstance(rerank, functools.partial) else rerank
    owner = getattr(function, "__self__", function)  # a bound method, such as H2FT's distance, speaks for its object
    if rerank_name is None:
        rerank_name = "none" if rerank is None else getattr(owner, "__name__", type(owner).__name__)
    uses = "query" if rerank is None else getattr(owner, "uses", "unknown")
    trials = tuple(
        {f"rank{r}": 100 * m.rank(r) for r in (1, 5, 10, 20)} | {"mAP": 100 * m.mAP, "mINP": 100 * m.mINP}
        for m in results
    )
    cmcs = tuple(tuple(torch.as_tensor(m.cmc).tolist()) for m in results)
    return Report(dataset, (ReportRow(direction, features_name, rerank_name, uses, trials, cmcs),))
