"""LLCM's protocol."""

import random
from collections.abc import Callable

import numpy as np

from vireid._checks import check_count, check_option
from vireid.data.features import Features
from vireid.protocols._protocol import Images, Protocol, group_images, split_modalities
from vireid.protocols.names import DIRECTIONS, Direction

__all__ = ["LLCM"]


class LLCM(Protocol):
    """Protocol of LLCM (Zhang and Wang, CVPR 2023): a gallery of one random image per identity and camera.

    Query: every test image of one modality. Gallery: of each identity one image from each camera of the other
    modality, drawn anew in each trial. A query skips the gallery images that show its identity in its own camera.
    CMC is over identities, mAP and mINP over images; the mean over the trials is reported.

    Trial t draws as the authors' code does: ``random.seed(t)``, then ``random.choice`` among the files sorted by
    name, identity by identity and camera by camera. The caller's random state is neither used nor changed.

    Both directions follow the paper's text. The authors' code agrees only from infrared to visible: asked for visible
    to infrared it draws the infrared images and then ranks all visible images for each of them, so that figures in
    print for that direction stand for different tasks.

    `evaluate` needs ``ids``, ``modality``, ``cameras`` (1 to 9) and ``image_numbers``: each image's place among the
    files of its identity, camera and modality sorted by name, as `vireid.data.LLCMDataset` numbers them.

    Args:
        direction: "infrared_to_visible" or "visible_to_infrared", query to gallery.
        trials: number of trials, 10 in print.

    Raises:
        ValueError: for another direction, or ``trials`` below 1.
        TypeError: if ``trials`` is not an integer.
    """

    name = "LLCM"
    _dataset = "llcm"
    _needs = ("modality", "cameras", "image_numbers")
    _cameras = range(1, 10)
    _exclude = "same_id_same_camera"
    _cmc_over = "identities"
    _numbers = staticmethod(Features.places)

    def __init__(self, direction: Direction = "infrared_to_visible", *, trials: int = 10) -> None:
        check_option("direction", direction, DIRECTIONS)
        trials = check_count("trials", trials)
        self.direction, self.trials = direction, trials

    def _drawing(self, images: Images) -> Callable[[int], np.ndarray]:
        groups = group_images(images, split_modalities(images.modality, self.direction)[1])

        def draw(trial: int) -> np.ndarray:
            choose = random.Random(trial)
            sizes = zip(groups.starts, groups.sizes, strict=True)
            return groups.order[[start + choose.choice(range(size)) for start, size in sizes]]

        return draw
