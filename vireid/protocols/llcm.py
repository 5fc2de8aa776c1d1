"""LLCM's protocol."""

import random
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vireid._checks import Array, check_count, check_option
from vireid.metrics import rank_metrics
from vireid.protocols._shared import (
    DIRECTIONS,
    Rerank,
    check_rerank,
    compare,
    features_and_ids,
    group_images,
    make_report,
    numpy_integers,
    query_and_gallery,
)
from vireid.protocols.report import Report

__all__ = ["LLCM"]


class LLCM:
    """Protocol of LLCM (Zhang and Wang, CVPR 2023): a gallery of one random image per identity and camera.

    Query: every test image of one modality. Gallery: of each identity one image from each camera of the other
    modality, drawn anew in each trial. A query skips the gallery images that show its identity in its own camera.
    CMC is over identities, mAP and mINP over images; the mean over the trials is reported.

    Trial t draws what the authors' code draws: ``random.seed(t)``, then ``random.choice`` among the files sorted by
    name, identity by identity and camera by camera. The caller's random state is neither used nor changed.

    Both directions follow the paper's text. The authors' code agrees from infrared to visible only: asked for visible
    to infrared it draws the infrared images and then ranks all visible images for each of them, so that figures in
    print for that direction stand for different tasks.

    Args:
        direction: "infrared_to_visible" or "visible_to_infrared", query to gallery.
        trials: number of trials, 10 in print.

    Raises:
        ValueError: for another direction, or ``trials`` below 1.
    """

    name = "LLCM"

    def __init__(
        self,
        direction: Literal["infrared_to_visible", "visible_to_infrared"] = "infrared_to_visible",
        *,
        trials: int = 10,
    ) -> None:
        check_option("direction", direction, DIRECTIONS)
        check_count("trials", trials)
        self.direction, self.trials = direction, trials

    def query(self, modality: Array) -> Tensor:
        """Indices (Nq,), on the CPU, of the query images, in the order given.

        Args:
            modality: (N,) 0 visible, 1 infrared, of all test images.

        Raises:
            ValueError: if a modality has no image, or for a value other than 0 and 1.
        """
        return query_and_gallery(torch.from_numpy(numpy_integers("modality", modality)), self.direction)[0]

    def gallery(self, trial: int, ids: Array, cameras: Array, modality: Array, image_numbers: Array) -> Tensor:
        """Indices (Ng,), on the CPU, of one trial's gallery, by identity, then camera.

        Args:
            trial: 0 to ``trials`` - 1.
            ids: (N,) identities of all test images.
            cameras: (N,) their camera numbers, 1 to 9.
            modality: (N,) 0 visible, 1 infrared.
            image_numbers: (N,) each image's place among the files of its identity, camera and modality sorted by
                name, as `vireid.data.LLCMDataset` numbers them.

        Raises:
            ValueError: for a trial out of range, an unknown camera or modality, or an image that appears twice.
        """
        kind = numpy_integers("modality", modality)
        people, cams, numbers = self._check(ids, cameras, image_numbers, len(kind))
        other = query_and_gallery(torch.from_numpy(kind), self.direction)[1].numpy()
        return self._gallery(trial, other, people, cams, numbers)

    def _gallery(
        self, trial: int, other: np.ndarray, ids: np.ndarray, cameras: np.ndarray, numbers: np.ndarray
    ) -> Tensor:
        check_count("trial", trial, minimum=0)
        if trial >= self.trials:
            raise ValueError(f"trial must be below trials={self.trials}, got {trial}")
        groups = group_images(ids[other], cameras[other], numbers[other])
        choose = random.Random(trial)
        drawn = [start + choose.choice(range(size)) for start, size in zip(groups.starts, groups.sizes, strict=True)]
        return torch.from_numpy(other[groups.order[drawn]])

    def _check(self, ids: Array, cameras: Array, image_numbers: Array, length: int) -> tuple[np.ndarray, ...]:
        people, cams, numbers = (
            numpy_integers(name, x, length)
            for name, x in (("ids", ids), ("cameras", cameras), ("image_numbers", image_numbers))
        )
        unknown = np.setdiff1d(cams, range(1, 10))
        if len(unknown):
            raise ValueError(f"cameras must be the data set's numbers 1 to 9, got {unknown[0]}")
        return people, cams, numbers

    def evaluate(
        self,
        features: Array,
        ids: Array,
        cameras: Array,
        modality: Array,
        image_numbers: Array,
        *,
        rerank: Rerank | None = None,
        features_name: str = "backbone",
        rerank_name: str | None = None,
    ) -> Report:
        """Rank every trial's gallery for all queries and report the metrics.

        Args:
            features: (N, d) of all test images, visible and infrared in any order. Ranked by cosine distance.
            ids: (N,) identities.
            cameras: (N,) camera numbers 1 to 9.
            modality: (N,) 0 visible, 1 infrared.
            image_numbers: (N,) each image's place among the files of its identity, camera and modality sorted by
                name, as `vireid.data.LLCMDataset` numbers them.
            rerank: function or object (query (Nq, d), gallery (Ng, d)) -> distance (Nq, Ng), called once a trial
                with the features as given; None compares by cosine distance.
            features_name: name of the features in the report.
            rerank_name: name of the re-ranking in the report. Default: its own, "none" without one.

        Returns:
            A `Report` of one row with ``trials`` trials.

        Raises:
            ValueError: for sizes that do not match, NaN or an infinity, a modality without images, an unknown camera
                or modality, an image that appears twice, or a distance of the wrong shape.
            TypeError: for features that are not floating point, labels that are not integers or a ``rerank`` that
                cannot be called.
        """
        check_rerank(rerank)
        x, people = features_and_ids(features, ids)
        owners, cams, numbers = self._check(ids, cameras, image_numbers, len(x))
        kind = torch.from_numpy(numpy_integers("modality", modality, len(x)))
        query, other = query_and_gallery(kind, self.direction)
        place = torch.from_numpy(cams).to(x.device)
        query = query.to(x.device)
        asking = x[query]
        results = []
        for trial in range(self.trials):
            gallery = self._gallery(trial, other.numpy(), owners, cams, numbers).to(x.device)
            results.append(
                rank_metrics(
                    compare(asking, x[gallery], rerank),
                    people[query],
                    people[gallery],
                    place[query],
                    place[gallery],
                    exclude="same_id_same_camera",
                    cmc_over="identities",
                )
            )
        return make_report(self.name, self.direction, results, rerank, features_name, rerank_name)
