"""SYSU-MM01's protocol."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from vireid import INFRARED
from vireid._checks import check_count, check_option, check_path
from vireid._files import check_file
from vireid.protocols._mat_file import read_mat
from vireid.protocols._protocol import Groups, Images, Protocol, group_images, image_name
from vireid.protocols.names import Direction

__all__ = ["SYSUMM01"]


class SYSUMM01(Protocol):
    """Protocol of SYSU-MM01 (Wu et al., ICCV 2017): infrared queries, a visible gallery drawn anew in each trial.

    Query: all test images of cameras 3 and 6. Gallery: of each test identity ``shots`` images from each visible
    camera, 1, 2, 4, 5 ("all") or 1, 2 ("indoor"). Cameras 2 and 3 stand in one place, so a camera-3 query skips every
    camera-2 image. CMC is over identities, mAP and mINP over images; the mean over the trials is reported.

    ``sampling="official"`` takes the first ``shots`` image numbers of the authors' ``rand_perm_cam.mat``.
    ``sampling="agw"`` draws as the AGW family of code bases does from files sorted by name, identity by identity and
    camera by camera: single-shot the same images as ``random.seed(trial)`` and ``random.choice`` give them. Their
    multi-shot draw, ``numpy.random.choice(files, 10, replace=False)``, is not seeded by that; here it is that draw
    after ``numpy.random.seed(trial)`` (our choice). The caller's random state is neither used nor changed.

    `evaluate` needs ``ids``, ``cameras`` (1 to 6) and ``image_numbers``, the numbers in the file names (0001.jpg is
    1), unique within identity and camera. ``modality`` follows from the cameras; where given, it must agree.

    Args:
        mode: "all" or "indoor".
        shots: 1 or 10 gallery images of each identity and camera.
        sampling: "official" or "agw".
        permutations: path of ``rand_perm_cam.mat``, needed for "official".
        trials: number of trials, 10 in print.

    Raises:
        ValueError: for an unknown option, ``permutations`` missing with "official" or not such a file, or with fewer
            rows than ``trials``.
        TypeError: if ``shots`` or ``trials`` is not an integer.
        FileNotFoundError: if there is no file at ``permutations``.
    """

    direction: Direction = "infrared_to_visible"
    query_cameras = (3, 6)
    _dataset = "sysu"
    _needs = ("cameras", "image_numbers")
    _query_needs = ("cameras",)
    _cameras = range(1, 7)
    _exclude = "same_camera"
    _cmc_over = "identities"

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
        shots = check_count("shots", shots)
        check_option("shots", shots, (1, 10))
        check_option("sampling", sampling, ("official", "agw"))
        trials = check_count("trials", trials)
        if sampling == "official" and permutations is None:
            raise ValueError("permutations must be the path of rand_perm_cam.mat for sampling='official', got None")
        self.mode, self.shots, self.sampling, self.trials = mode, shots, sampling, trials
        self.name = f"SYSU-MM01 {mode} {'single' if shots == 1 else 'multi'}-shot {sampling}"
        self.gallery_cameras = (1, 2, 4, 5) if mode == "all" else (1, 2)
        self._permutations = None
        if sampling == "official" and permutations is not None:
            self._permutations = _read_permutations(check_path("permutations", permutations), trials)

    def _query(self, images: Images) -> np.ndarray:
        self._check(images)
        return np.flatnonzero(np.isin(images.cameras, self.query_cameras))

    def _drawing(self, images: Images) -> Callable[[int], np.ndarray]:
        self._check(images)
        groups = group_images(images, np.arange(len(images.cameras)))
        visible = np.isin(groups.keys[1], self.gallery_cameras)
        groups = Groups(groups.order, groups.keys[:, visible], groups.starts[visible], groups.sizes[visible])
        for (person, camera), size in zip(groups.keys.T, groups.sizes, strict=True):
            if size < self.shots:
                raise ValueError(
                    f"image_numbers must hold {self.shots} images of identity {person} in camera {camera}, got {size}"
                )
        if self._permutations is not None:
            return lambda trial: self._draw_official(trial, groups, images.image_numbers)
        return lambda trial: self._draw_agw(trial, groups)

    def _draw_agw(self, trial: int, groups: Groups) -> np.ndarray:
        single, multi = random.Random(trial), np.random.RandomState(trial)
        drawn = [
            [start + single.choice(range(size))] if self.shots == 1 else start + multi.choice(size, self.shots, False)
            for start, size in zip(groups.starts, groups.sizes, strict=True)
        ]
        return groups.order[np.concatenate(drawn)]

    def _draw_official(self, trial: int, groups: Groups, numbers: np.ndarray) -> np.ndarray:
        drawn = []
        for (person, camera), start, size in zip(groups.keys.T, groups.starts, groups.sizes, strict=True):
            wanted, rows = self._wanted(trial, person, camera), groups.order[start : start + size]
            at = np.minimum(np.searchsorted(numbers[rows], wanted), size - 1)
            absent = numbers[rows[at]] != wanted
            if absent.any():
                missing = image_name(person, camera, wanted[absent][0])
                raise ValueError(f"image_numbers must hold the images that permutations draws, got no {missing}")
            drawn.append(rows[at])
        return np.concatenate(drawn)

    def _wanted(self, trial: int, person: int, camera: int) -> np.ndarray:
        """Return the image numbers that the official permutations draw."""
        cells = self._permutations[camera - 1] if self._permutations is not None else []
        if not 1 <= person <= len(cells) or cells[person - 1].shape[1] < self.shots:
            raise ValueError(
                f"permutations must hold {self.shots} images of identity {person} in camera {camera}: ids must be "
                "the data set's own numbers, and the file its rand_perm_cam.mat"
            )
        return np.asarray(cells[person - 1][trial, : self.shots], dtype=np.int64)

    def _places(self, images: Images) -> np.ndarray:
        return np.where(images.cameras == 2, 3, images.cameras)

    def _check(self, images: Images) -> None:
        """Raise unless every camera of the protocol has images, and the modality agrees with the cameras."""
        cameras = images.cameras
        for camera in (*self.query_cameras, *self.gallery_cameras):
            if camera not in cameras:
                kind = "query" if camera in self.query_cameras else "gallery"
                raise ValueError(f"cameras must hold {kind} images of camera {camera}, got none")
        infrared = images.modality == INFRARED
        wrong = np.flatnonzero(infrared != np.isin(cameras, self.query_cameras)) if len(infrared) else infrared
        if len(wrong):
            raise ValueError(
                "modality must be 1 (infrared) for SYSU-MM01's cameras 3 and 6 and 0 for the others, "
                f"got {images.modality[wrong[0]]} for camera {cameras[wrong[0]]} in row {wrong[0]}"
            )


def _read_permutations(path: Path, trials: int) -> list[list[np.ndarray]]:
    """Return [camera][identity] -> (trials, n) image numbers."""
    check_file(path, "permutations must be the path of rand_perm_cam.mat")
    try:
        table: list[list[np.ndarray]] = read_mat(path, "rand_perm_cam")
        if not all(isinstance(cell, np.ndarray) and cell.ndim == 2 for camera in table for cell in camera):
            raise ValueError("it must hold cells of cells of matrices")
    except ValueError as error:
        raise ValueError(
            f"permutations must be the data set's rand_perm_cam.mat, cannot read {str(path)!r}: {error}"
        ) from error
    if len(table) != 6:
        raise ValueError(f"permutations must hold 6 cameras, got {len(table)} in {str(path)!r}")
    rows = min((cell.shape[0] for camera in table for cell in camera if cell.size), default=0)
    if rows < trials:
        raise ValueError(f"permutations must hold a row for each of trials={trials}, got {rows} in {str(path)!r}")
    return table
