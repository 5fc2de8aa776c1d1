"""RegDB's protocol."""

from typing import Literal

from vireid._checks import Array, check_option
from vireid.metrics import rank_metrics
from vireid.protocols._shared import (
    DIRECTIONS,
    Rerank,
    check_rerank,
    compare,
    features_and_ids,
    integers,
    make_report,
    query_and_gallery,
)
from vireid.protocols.report import Report

__all__ = ["RegDB"]


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
        check_option("direction", direction, DIRECTIONS)
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
            rerank: function or object (query (Nq, d), gallery (Ng, d)) -> distance (Nq, Ng), called with the features
                as given; None compares by cosine distance.
            features_name: name of the features in the report.
            rerank_name: name of the re-ranking in the report. Default: its own, "none" without one.

        Returns:
            A `Report` of one row with one trial.

        Raises:
            ValueError: for sizes that do not match, NaN or an infinity, a modality without images or other than 0
                and 1, or a distance of the wrong shape.
            TypeError: for features that are not floating point, labels that are not integers or a ``rerank`` that
                cannot be called.
        """
        check_rerank(rerank)
        x, people = features_and_ids(features, ids)
        query, gallery = query_and_gallery(integers("modality", modality, len(x), x.device), self.direction)
        result = rank_metrics(compare(x[query], x[gallery], rerank), people[query], people[gallery])
        return make_report(self.name, self.direction, [result], rerank, features_name, rerank_name)
