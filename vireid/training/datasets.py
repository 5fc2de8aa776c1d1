"""Data sets opened by name, and the key points of their images as heatmaps."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from vireid._checks import extra
from vireid.data import KeypointSample, LLCMDataset, RegDBDataset, SYSUMM01Dataset, generate_synthetic
from vireid.nn import PERSON_13, gaussian_heatmaps
from vireid.protocols import dataset_name

Dataset = SYSUMM01Dataset | RegDBDataset | LLCMDataset

SYNTHETIC_ROOT = Path("runs/synthetic")


def open_dataset(
    name: str,
    split: str = "train",
    *,
    root: str | Path | None = None,
    size: tuple[int, int] = (64, 32),
    trial: int = 1,
    keypoints: str | Path | None = None,
    cache: bool = True,
    preload: bool = False,
) -> Dataset:
    """Open a data set by its name; synthetic pedestrians are drawn first if they are not there yet.

    Args:
        name: "sysu", "regdb", "llcm" or "synthetic", in any spelling of `vireid.protocols.dataset_name`.
        split: "train", "test" or "all". "train" of SYSU-MM01 is its "trainval", as published: 395 identities.
        root: folder of the data set. Default: runs/synthetic, for the synthetic one only.
        size: (H, W) of the images.
        trial: split of RegDB and of the synthetic data, 1 … 10.
        keypoints: file or folder of the 13 key points of `vireid.nn.PERSON_13`, see `vireid.data.RegDBDataset`.
        cache: keep the images in memory.
        preload: read them now; for a loader with workers, each of which would keep its own.

    Raises:
        ValueError: if the name is unknown, the root is missing, the key points are not 13, or as the reader says.
        FileNotFoundError: if a file is missing.
    """
    name = dataset_name(name)
    if name == "synthetic":
        root = SYNTHETIC_ROOT if root is None else root
        generate_synthetic(root, layout="regdb", progress=True)
    elif root is None:
        raise ValueError(f"root must name the folder of the data set {name}, got None")
    options: dict[str, Any] = {"size": size, "cache": cache, "keypoints": keypoints}
    dataset: Dataset
    if name == "sysu":
        dataset = SYSUMM01Dataset(root, "trainval" if split == "train" else split, **options)
    elif name == "llcm":
        dataset = LLCMDataset(root, split, **options)
    else:
        dataset = RegDBDataset(root, split, trial=trial, **options)
    if keypoints is not None and isinstance(sample := dataset[0], KeypointSample):
        count, expected = len(sample.keypoints), len(PERSON_13.names)
        if count != expected:
            hint = "vireid.nn.merge_coco_keypoints and merge_coco_heatmaps make them of COCO's 17"
            names = f"the {expected} key points of vireid.nn.PERSON_13"
            raise ValueError(f"keypoints must be {names}, got {count} in {keypoints}; {hint}")
    if preload and cache:
        dataset.preload(progress=True)
    return dataset


def digest_keypoints(path: str | Path) -> str:
    """Return the SHA-256 of a file of coordinates, or of the first file of a folder of heatmaps."""
    path = Path(path)
    first = path if path.is_file() else min(file for file in path.rglob("*.npz") if not file.name.startswith("."))
    return hashlib.sha256(first.read_bytes()).hexdigest()


def draw_heatmaps(keypoints: Tensor, size: tuple[int, int]) -> Tensor:
    """Return heatmaps (B, K, h, w) of coordinates (B, K, 3) in images of ``size`` (H, W); heatmaps stay as they are.

    They are 64 high, with the σ of 2 of the pose estimator in G2DA.
    """
    if keypoints.ndim == 4:
        return keypoints
    return gaussian_heatmaps(keypoints, (64, max(1, round(64 * size[1] / size[0]))), image_size=size)


def progress_bar(values: Iterable[Any], what: str, shown: bool | None, **options: Any) -> Any:
    """Return the values with a bar of tqdm on standard error; ``shown`` None: only on a terminal."""
    with extra("train", "training and its features need tqdm"):
        from tqdm import tqdm
    return tqdm(values, desc=what, disable=None if shown is None else not shown, **options)
