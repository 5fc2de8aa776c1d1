"""Heatmaps of key points from a pose estimator, ViTPose as maintained in Hugging Face ``transformers``, for G2DA.

`estimate_heatmaps` takes a batch of images; `cache_heatmaps` takes a data set and stores its heatmaps on disk, for a
dataset's argument ``keypoints``. Both need ``pip install 'vireid[pose]'``. An image shows one person, visible or
infrared: an estimator trained on visible images works on both (G2DA, Fig. 3). The paper uses HRNet; ViTPose (Xu et al.,
NeurIPS 2022) has the same 17 key points of COCO, which are merged to the paper's 13.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from vireid._checks import check_count, check_number, check_path, check_size, extra
from vireid._ops import evaluated
from vireid.data._layouts import MAX_PIXELS, decode_image
from vireid.data.dataset import ImageDataset
from vireid.data.keypoints import HeatmapFolder, heatmap_path, image_digest, load_heatmaps, save_heatmaps
from vireid.data.llcm import LLCMDataset
from vireid.data.moves import centers, sample
from vireid.data.regdb import RegDBDataset
from vireid.data.sysu import SYSUMM01Dataset
from vireid.data.transforms import check_images, normalize, unit_range
from vireid.nn.heatmaps import merge_coco_heatmaps

_MODEL = "usyd-community/vitpose-base-simple"


def estimate_heatmaps(
    images: Tensor,
    *,
    model: str | nn.Module = _MODEL,
    size: tuple[int, int] = (64, 32),
    margin: float = 1.25,
    batch: int = 64,
    device: torch.device | str | None = None,
) -> Tensor:
    """Estimate heatmaps of the 13 key points of `vireid.nn.PERSON_13` in images of one person each.

    As the estimator's own processor does, an image is enlarged by ``margin`` and to the network's aspect, with black
    around it, and resized to its input size, rows and columns by one factor. The heatmaps are resized back to the
    image's frame (bilinear, 0 where the network did not look), COCO's 17 merged to 13, values clamped to 0 … 1.

    Args:
        images: (B, 3, H, W); uint8 in 0 … 255, or floating point in 0 … 1. RGB, not normalized.
        model: a name or folder that ``transformers`` loads a ``VitPoseForPoseEstimation`` from (only from safetensors;
            a name is downloaded at the first use), or a loaded one. It is evaluated, whatever its own mode.
        size: (h, w) of the heatmaps. For images twice as high as wide the default is at least as fine as the network's.
        margin: enlargement of the image's frame that the network sees; the estimator is trained with 1.25.
        batch: images per forward pass.
        device: of a model loaded by name; default: CUDA if available. A loaded model stays where it is.

    Returns:
        (B, 13, h, w) float32 in [0, 1], on the images' device.

    Raises:
        ValueError: if a shape or a number does not fit, the model does not have COCO's 17 key points, or the name
            stands for another model or one that lacks weights.
        TypeError: if ``images`` is no tensor of a type above, or ``model`` is neither a name nor a pose estimator.
        ImportError: if a name is given and ``transformers``, of the extra ``pose``, is not installed.
        OSError: if the model is neither on this machine nor can be downloaded.
    """
    check_images(images)
    size, margin, batch = _check_settings(size, margin, batch)
    estimator = evaluated(_load(model, device))
    lengths = torch.tensor([images.shape[2:]])
    maps = [images.new_zeros(0, 13, *size, dtype=torch.float32)]
    with torch.no_grad():  # inference_mode's tensors cannot take part in training
        for part in images.split(min(batch, max(1, len(images)))):
            pixels = _to_network(part, _input_size(estimator), margin)
            maps.append(_predict(estimator, pixels, lengths.expand(len(part), 2), size, margin).to(images.device))
    return torch.cat(maps)


def cache_heatmaps(
    images: ImageDataset | Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str] | None = None,
    *,
    root: str | os.PathLike[str] | None = None,
    model: str | nn.Module = _MODEL,
    size: tuple[int, int] = (64, 32),
    margin: float = 1.25,
    batch: int = 64,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Path:
    """Estimate the heatmaps of a data set's images as `estimate_heatmaps` does, and store them on disk.

    Every image gets a file of its own, named after its path, written whole or not at all. A further call makes only
    the missing ones: after an interruption, for other splits of the same data set, for damaged files, changed images,
    or another model (its weights are compared, not its name), size or margin. Images are read ahead, at their full
    size. A file takes 2·13·h·w bytes.

    Args:
        images: a dataset of `vireid.data`, or paths of image files.
        folder: for the heatmaps; made if missing. Default: beside the data set's, ``<root>-heatmaps``.
        root: folder of the data set, below which every image lies. Default: the dataset's own.
        model: as in `estimate_heatmaps`.
        size: as in `estimate_heatmaps`.
        margin: as in `estimate_heatmaps`.
        batch: as in `estimate_heatmaps`.
        device: as in `estimate_heatmaps`.
        progress: show a progress bar (tqdm).

    Returns:
        the folder, for a dataset's argument ``keypoints``.

    Raises:
        FileNotFoundError: if an image is missing; nothing is estimated then.
        ValueError: if an image cannot be read or does not lie below ``root``, ``folder`` is ``root``, a setting does
            not fit, or the name stands for another model or one that lacks weights.
        TypeError: if ``images`` is neither a dataset nor paths, or ``model`` is neither a name nor a pose estimator.
        ImportError: if ``transformers``, ``tqdm`` or Pillow, of the extra ``pose``, is needed and not installed.
        OSError: if the model is neither on this machine nor can be downloaded, or a file cannot be written.
    """
    paths, root = _image_files(images, root)
    max_pixels = images.max_pixels if isinstance(images, ImageDataset) else MAX_PIXELS
    size, margin, batch = _check_settings(size, margin, batch)
    place = root.resolve()
    folder = place.parent / f"{place.name}-heatmaps" if folder is None else check_path("folder", folder)
    if folder.resolve() == place:
        raise ValueError(f"folder must be another one than the data set's, got {str(folder)!r}")
    for path in paths:
        heatmap_path(folder, path, root)  # raises for an image that lies elsewhere
    if missing := [path for path in paths if not path.is_file()]:
        raise FileNotFoundError(f"{len(missing)} of {len(paths)} images do not exist, first {missing[0]}")
    with extra("pose", "cache_heatmaps needs tqdm"):
        from tqdm import tqdm
    paths = list(dict.fromkeys(paths))  # two threads must not write one file
    estimator = evaluated(_load(model, device))
    source = {"model": _fingerprint(estimator), "size": list(size), "margin": margin}
    network = _input_size(estimator)
    folder.mkdir(parents=True, exist_ok=True)

    def read(path: Path) -> tuple[Path, str, Tensor, tuple[int, int]] | None:
        """Return an image's path, digest, pixels for the network and size; None if its heatmaps are stored."""
        digest = image_digest(path)  # of the file before it is decoded: a change in between is noticed later
        try:
            load_heatmaps(folder, path, root=root, source=source, digest=digest)
        except (FileNotFoundError, ValueError):
            image = decode_image(path, None, max_pixels)[None]
            return path, digest, _to_network(image, network, margin)[0], (image.shape[2], image.shape[3])
        return None

    bar = tqdm(total=len(paths), desc="key points", unit="image", disable=not progress)
    with torch.no_grad(), bar, ThreadPoolExecutor() as pool:
        try:
            ahead = [pool.submit(read, path) for path in paths[:batch]]
            for start in range(0, len(paths), batch):
                current, ahead = ahead, [pool.submit(read, path) for path in paths[start + batch : start + 2 * batch]]
                if todo := [found for task in current if (found := task.result()) is not None]:
                    names, digests, pixels, lengths = zip(*todo, strict=True)
                    maps = _predict(estimator, torch.stack(pixels), torch.tensor(lengths), size, margin).cpu()
                    for saved in [
                        pool.submit(save_heatmaps, folder, name, x, root=root, source=source, digest=digest)
                        for name, x, digest in zip(names, maps, digests, strict=True)
                    ]:
                        saved.result()
                bar.update(len(current))
        finally:
            pool.shutdown(cancel_futures=True)
    return folder


def find_images(dataset: str, root: Path) -> dict[Path, int]:
    """Return every image of a data set, of all splits, and its modality."""
    opened: list[ImageDataset]
    if dataset == "regdb":
        trials = [trial for trial in range(1, 11) if (root / "idx" / f"train_visible_{trial}.txt").is_file()]
        opened = [RegDBDataset(root, "all", trial=trial) for trial in trials or [1]]  # without any, the reader raises
    else:
        opened = [SYSUMM01Dataset(root, "all") if dataset == "sysu" else LLCMDataset(root, "all")]
    return {path: kind for data in opened for path, kind in zip(data.paths, data.modality.tolist(), strict=True)}


def read_scores(folder: Path, paths: list[Path], root: Path) -> np.ndarray:
    """Return (N, 13) scores, the highest value of each heatmap, as a dataset reads them."""
    from tqdm import tqdm

    heatmaps = HeatmapFolder(folder, paths, root)
    with ThreadPoolExecutor() as pool:
        scores = pool.map(lambda row: heatmaps[row].amax((1, 2)).numpy(), range(len(paths)))
        return np.stack(list(tqdm(scores, total=len(paths), desc="scores", unit="image")))


def _image_files(
    images: ImageDataset | Sequence[str | os.PathLike[str]], root: str | os.PathLike[str] | None
) -> tuple[list[Path], Path]:
    """Return the images' files and the data set's folder."""
    if isinstance(images, ImageDataset):
        return images.paths, images.root if root is None else check_path("root", root)
    if isinstance(images, str | os.PathLike) or not isinstance(images, Sequence):
        raise TypeError(f"images must be a dataset or a list of paths, got {type(images).__name__}")
    if root is None:
        raise ValueError("root must be the data set's folder where images is a list of paths, got None")
    return [check_path(f"images[{i}]", path) for i, path in enumerate(images)], check_path("root", root)


def _check_settings(size: tuple[int, int], margin: float, batch: int) -> tuple[tuple[int, int], float, int]:
    margin = check_number("margin", margin)
    if not 1 <= margin <= 1e6:
        raise ValueError(f"margin must be at least 1 and at most 1e6, got {margin}")
    return check_size("size", size), margin, check_count("batch", batch)


def _load(model: str | nn.Module, device: torch.device | str | None) -> nn.Module:
    if not isinstance(model, str):
        if not isinstance(model, nn.Module) or not hasattr(getattr(model, "config", None), "backbone_config"):
            raise TypeError(f"model must be a name or a VitPoseForPoseEstimation, got {type(model).__name__}")
        return model
    with extra("pose", "pose estimation needs transformers"):
        from transformers import VitPoseForPoseEstimation
    loaded: nn.Module
    try:
        loaded, found = VitPoseForPoseEstimation.from_pretrained(model, use_safetensors=True, output_loading_info=True)
    except OSError as error:
        expected = "a folder with a config.json and a model.safetensors, or a name that can be downloaded or has been"
        raise OSError(f"model must be {expected}, got {model!r}: {error}") from error
    except Exception as error:  # transformers raises errors of many kinds for other or damaged models
        raise ValueError(f"model must be a VitPoseForPoseEstimation, cannot load {model!r}: {error}") from error
    if missing := sorted(found["missing_keys"]):  # transformers fills them with random numbers
        lacks = f"{len(missing)} of them, first {missing[0]}"
        raise ValueError(f"model must hold all weights of a VitPoseForPoseEstimation, but {model!r} lacks {lacks}")
    return loaded.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _input_size(model: nn.Module) -> tuple[int, int]:
    config: Any = model.config
    height, width = config.backbone_config.image_size
    return height, width


def _fingerprint(model: nn.Module) -> str:
    """Return a digest of everything that determines the heatmaps of an image."""
    config: Any = model.config
    digest = hashlib.sha256(json.dumps(_settings(config.to_dict()), sort_keys=True, default=str).encode())
    for name, x in sorted(model.state_dict().items()):
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        digest.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without its origin, which saving and loading a model changes."""
    origin = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"}
    return {k: _settings(v) if isinstance(v, dict) else v for k, v in config.items() if k not in origin}


def _seen(lengths: Tensor, network: tuple[int, int], margin: float) -> Tensor:
    """Return height and width (B, 2) of the network's view of images of ``lengths`` (B, 2), in those lengths."""
    lengths = lengths.float()
    height = torch.maximum(lengths[:, 0], lengths[:, 1] * network[0] / network[1]) * margin
    return torch.stack([height, height * network[1] / network[0]], 1) / lengths


# ViTPose counts pixels as UDP does (Huang et al., CVPR 2020): the first and the last pixel of the input, and of the
# heatmaps, have their centers on the edges of its view; in the image, a coordinate is a pixel's number and the
# middle is W/2, half a pixel right of the middle between the edges.


def _to_network(images: Tensor, network: tuple[int, int], margin: float) -> Tensor:
    """Return images (B, 3, H, W) as the network sees them, (B, 3, h, w) float32 in 0 … 1."""
    lengths = torch.tensor([images.shape[2:]])
    seen = _seen(lengths, network, margin)
    y, x = (
        (seen[:, i, None] * torch.linspace(-1, 1, network[i]) + 1 / lengths[:, i, None])
        .expand(len(images), -1)
        .to(images.device)
        for i in (0, 1)
    )
    return sample(unit_range(images), x, y)


def _predict(model: nn.Module, pixels: Tensor, lengths: Tensor, size: tuple[int, int], margin: float) -> Tensor:
    """Return heatmaps (B, 13, h, w) of images of ``lengths`` (B, 2) from the ``pixels`` of `_to_network`."""
    weight, config = next(model.parameters()), cast(Any, model.config)
    inputs = {"pixel_values": normalize(pixels.to(weight.device)).to(weight.dtype)}
    if getattr(config.backbone_config, "num_experts", 1) > 1:
        inputs["dataset_index"] = torch.zeros(len(pixels), dtype=torch.int64, device=weight.device)  # COCO's expert
    maps = merge_coco_heatmaps(model(**inputs).heatmaps.float())
    seen = _seen(lengths, _input_size(model), margin).to(maps)
    y, x = (((centers(size[i], maps) * 2 - 1) - 1 / lengths[:, i, None].to(maps)) / seen[:, i, None] for i in (0, 1))
    return sample(maps, x, y, corners=True).clamp(0, 1)
