"""SYSU-MM01's protocol."""

import os
import random
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vireid._checks import Array, check_count, check_option
from vireid._files import check_file
from vireid.metrics import rank_metrics
from vireid.protocols._shared import (
    Rerank,
    check_rerank,
    compare,
    features_and_ids,
    group_images,
    image_name,
    make_report,
    numpy_integers,
)
from vireid.protocols.report import Report

__all__ = ["SYSUMM01"]


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
        TypeError: for ``shots`` or ``trials`` that are no integers.
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
        check_count("shots", shots)
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
        people, numbers = (numpy_integers(n, x, len(cams)) for n, x in (("ids", ids), ("image_numbers", image_numbers)))
        return self._gallery(trial, people, cams, numbers)

    def _gallery(self, trial: int, ids: np.ndarray, cameras: np.ndarray, numbers: np.ndarray) -> Tensor:
        check_count("trial", trial, minimum=0)
        if trial >= self.trials:
            raise ValueError(f"trial must be below trials={self.trials}, got {trial}")
        order, keys, starts, sizes = group_images(ids, cameras, numbers)
        visible = np.isin(keys[1], self.gallery_cameras)
        single, multi = random.Random(trial), np.random.RandomState(trial)
        drawn = []
        for (person, camera), start, size in zip(keys[:, visible].T, starts[visible], sizes[visible], strict=True):
            if size < self.shots:
                raise ValueError(
                    f"image_numbers must hold {self.shots} images of identity {person} in camera {camera}, got {size}"
                )
            if self._permutations is not None:
                wanted = self._wanted(trial, person, camera)
                held = numbers[order[start : start + size]]
                at = np.searchsorted(held, wanted)
                there = held[np.minimum(at, size - 1)] == wanted
                if not there.all():
                    missing = image_name((person, camera, wanted[~there][0]))
                    raise ValueError(f"image_numbers must hold the images that permutations draws, got no {missing}")
                at += start
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
        cams = numpy_integers("cameras", cameras, length)
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
            rerank: function or object (query (Nq, d), gallery (Ng, d)) -> distance (Nq, Ng), called once a trial
                with the features as given; None compares by cosine distance.
            features_name: name of the features in the report.
            rerank_name: name of the re-ranking in the report. Default: its own, "none" without one.

        Returns:
            A `Report` of one row with ``trials`` trials.

        Raises:
            ValueError: for sizes that do not match, NaN or an infinity, missing cameras or images, or a distance of
                the wrong shape.
            TypeError: for features that are not floating point, labels that are not integers or a ``rerank`` that
                cannot be called.
        """
        check_rerank(rerank)
        x, people = features_and_ids(features, ids)
        cams = self._check_cameras(cameras, len(x))
        numbers = numpy_integers("image_numbers", image_numbers, len(x))
        owners = people.cpu().numpy()
        place = torch.from_numpy(np.where(cams == 2, 3, cams)).to(x.device)
        query = self.query(cams).to(x.device)
        asking = x[query]
        results = []
        for trial in range(self.trials):
            gallery = self._gallery(trial, owners, cams, numbers).to(x.device)
            results.append(
                rank_metrics(
                    compare(asking, x[gallery], rerank),
                    people[query],
                    people[gallery],
                    place[query],
                    place[gallery],
                    exclude="same_camera",
                    cmc_over="identities",
                )
            )
        return make_report(self.name, "infrared_to_visible", results, rerank, features_name, rerank_name)


def _read_permutations(path: Path, trials: int) -> list[list[np.ndarray]]:
    """[camera][identity] -> (trials, n) image numbers; MATLAB's format holds arrays only, nothing that runs."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    # What loadmat, and what is made of its answer, raise for a damaged or foreign file.
    damaged = (KeyError, ValueError, TypeError, NotImplementedError, AttributeError, OSError, MatReadError, zlib.error)
    check_file(path, "permutations must be the path of rand_perm_cam.mat")
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
