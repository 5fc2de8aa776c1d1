"""RegDB's protocol."""

from collections.abc import Callable

import numpy as np

from vireid._checks import check_option
from vireid.protocols._protocol import Images, Protocol, split_modalities
from vireid.protocols.names import DIRECTIONS, Direction

__all__ = ["RegDB"]


class RegDB(Protocol):
    """Protocol of RegDB (Nguyen et al., Sensors 2017): all test images of one modality query all of the other.

    No camera rule; CMC, mAP and mINP over images. The data set's ten trials are ten splits with a model each: evaluate
    each model on its own test images and join the reports with `Report.merge`.

    `evaluate` needs ``ids`` and ``modality``.

    Args:
        direction: "visible_to_infrared" or "infrared_to_visible", query to gallery.

    Raises:
        ValueError: for another direction.
    """

    name = "RegDB"
    _dataset = "regdb"

    def __init__(self, direction: Direction = "visible_to_infrared") -> None:
        check_option("direction", direction, DIRECTIONS)
        self.direction = direction

    def _drawing(self, images: Images) -> Callable[[int], np.ndarray]:
        gallery = split_modalities(images.modality, self.direction)[1]
        return lambda trial: gallery
