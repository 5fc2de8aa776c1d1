"""What the example scripts share: options, data, features, evaluation, checkpoints and their files."""

import argparse
import hashlib
import json
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from vireid import INFRARED, VISIBLE
from vireid.data import EvalTransform, KeypointSample, RegDBDataset, SYSUMM01Dataset, generate_synthetic
from vireid.data.features import save_features
from vireid.neighbors import topk
from vireid.nn import PERSON_13, SmallBackbone, gaussian_heatmaps, resnet50
from vireid.plots import cmc_curves, ranked_lists
from vireid.protocols import DIRECTIONS, SYSUMM01, RegDB, Report

Dataset = SYSUMM01Dataset | RegDBDataset
Distance = Callable[[Tensor, Tensor], Tensor]


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Options that say which images are read."""
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", choices=["synthetic", "sysu", "regdb"], default="synthetic")
    group.add_argument(
        "--root", type=Path, help="folder of the data set; synthetic data are made there (default: runs/synthetic)"
    )
    group.add_argument("--trial", type=int, default=1, help="RegDB's and the synthetic data's split, 1-10")
    group.add_argument("--workers", type=int, default=0, help="processes that read images")
    group.add_argument("--no-cache", action="store_true", help="read images again each epoch instead of keeping them")
    group = parser.add_argument_group("evaluation (SYSU-MM01)")
    group.add_argument("--mode", choices=["all", "indoor"], default="all")
    group.add_argument("--shots", type=int, choices=[1, 10], default=1)
    group.add_argument("--sampling", choices=["official", "agw"], default="official")


def open_dataset(arguments: argparse.Namespace, split: str, size: tuple[int, int]) -> Dataset:
    """The data set that the options name; synthetic data are drawn first where they are not there yet."""
    root, cache, keypoints = arguments.root, not arguments.no_cache, getattr(arguments, "keypoints", None)
    if arguments.dataset == "synthetic":
        root = root or Path("runs/synthetic")
        generate_synthetic(root, layout="regdb", progress=True)
    elif root is None:
        raise ValueError(f"--root must name the folder of --dataset {arguments.dataset}")
    if arguments.dataset == "sysu":
        # As published: 395 training identities, those of train_id.txt and val_id.txt.
        split = "trainval" if split == "train" else split
        dataset: Dataset = SYSUMM01Dataset(root, split, size=size, cache=cache, keypoints=keypoints)
    else:
        dataset = RegDBDataset(root, split, trial=arguments.trial, size=size, cache=cache, keypoints=keypoints)
    if keypoints is not None and isinstance(sample := dataset[0], KeypointSample):
        count, expected = len(sample.keypoints), len(PERSON_13.names)
        if count != expected:
            raise ValueError(
                f"--keypoints {keypoints} must hold the {expected} key points of vireid.nn.PERSON_13, got {count}; "
                "vireid.nn.merge_coco_keypoints and merge_coco_heatmaps make them of COCO's 17"
            )
    if cache and arguments.workers:
        dataset.preload(progress=True)  # what a worker reads would be kept by it alone, and for one epoch
    return dataset


def find_keypoints(arguments: argparse.Namespace, part_grid: list[int] | None) -> None:
    """Fill in ``--keypoints`` of the synthetic data; a fixed grid of parts needs none.

    Raises:
        ValueError: if there is a grid and ``--keypoints``, or neither, and the data have no key points of their own.
    """
    if part_grid:
        if arguments.keypoints is not None:
            raise ValueError(f"--keypoints must be left out with a grid of parts, got {arguments.keypoints}")
    elif arguments.keypoints is None:
        if arguments.dataset != "synthetic":
            raise ValueError(
                "--keypoints must name the key points of the images (vireid keypoints makes them), or "
                "--part-grid ROWS COLUMNS must be given instead"
            )
        arguments.keypoints = (arguments.root or Path("runs/synthetic")) / "keypoints.npz"


def digest_keypoints(path: Path) -> str:
    """SHA-256 of a file of coordinates, or of the first file of a folder of heatmaps."""
    first = path if path.is_file() else min(path.rglob("*.npz"))
    return hashlib.sha256(first.read_bytes()).hexdigest()


def draw_heatmaps(keypoints: Tensor, size: tuple[int, int]) -> Tensor:
    """Heatmaps (B, K, h, w) of coordinates (B, K, 3) in images of ``size`` (H, W); heatmaps stay as they are.

    As high as those that G2DA's pose estimator gives, 64, with its σ of 2.
    """
    if keypoints.ndim == 4:
        return keypoints
    return gaussian_heatmaps(keypoints, (64, max(1, round(64 * size[1] / size[0]))), image_size=size)


def build_backbone(name: str, weights: str | None) -> nn.Module:
    """``small``, or ``torchvision`` / ``timm`` for their ResNet-50."""
    if name == "small":
        if weights:
            raise ValueError("--weights goes with --backbone torchvision or timm, not with small")
        return SmallBackbone()
    return resnet50(source=name, weights=weights)


@torch.no_grad()
def extract_features(model: nn.Module, dataset: Dataset, *, workers: int = 0, batch: int = 128) -> Tensor:
    """Backbone features (N, d) of all images in evaluation mode, in the data set's order, on the model's device."""
    device = next(model.parameters()).device
    transform = EvalTransform()
    model.eval()
    loader = DataLoader(dataset, batch_size=batch, num_workers=workers)
    features = []
    for sample in tqdm(loader, desc="features", leave=False):
        inputs = [transform(sample.image.to(device)), sample.modality.to(device)]
        if isinstance(sample, KeypointSample):
            inputs.append(draw_heatmaps(sample.keypoints.to(device), dataset.size))
        features.append(model(*inputs).features.float())
    return torch.cat(features)


def evaluate(
    dataset: Dataset, features: Tensor, distances: Mapping[str, Distance | None], arguments: argparse.Namespace
) -> Report:
    """Rows of all directions and of all ways to rank.

    ``distances`` names each way by its features and, where there is one, its re-ranking, as in "backbone + AIM"; None
    is the cosine distance.
    """
    reports = []
    for name, distance in distances.items():
        kind, _, rerank_name = name.partition(" + ")
        if isinstance(dataset, SYSUMM01Dataset):
            permutations = arguments.root / "exp" / "rand_perm_cam.mat" if arguments.sampling == "official" else None
            sysu = SYSUMM01(arguments.mode, arguments.shots, arguments.sampling, permutations=permutations)
            reports.append(
                sysu.evaluate(
                    features,
                    dataset.ids,
                    dataset.modality,
                    dataset.cameras,
                    dataset.image_numbers,
                    rerank=distance,
                    features_name=kind,
                    rerank_name=rerank_name or "none",
                )
            )
            continue
        for direction in DIRECTIONS:
            reports.append(
                RegDB(direction).evaluate(
                    features,
                    dataset.ids,
                    dataset.modality,
                    rerank=distance,
                    features_name=kind,
                    rerank_name=rerank_name or "none",
                )
            )
    return Report.merge(reports)


def write_results(
    report: Report,
    dataset: Dataset,
    features: Tensor,
    distance: Distance | None,
    arguments: argparse.Namespace,
    trained_on: str,
    queries: int = 8,
) -> None:
    """Print the table; write metrics.json, cmc.png and ranked.png into ``--output``."""
    print(report)
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    names = {"dataset": arguments.dataset, "protocol": report.dataset, "trained_on": trained_on}
    text = json.dumps(names | {"rows": report.to_dict()["rows"]}, indent=1) + "\n"
    write_whole(output / "metrics.json", lambda file: file.write(text.encode()))
    curves = {}
    for row in report.rows:
        way = row.features if row.rerank == "none" else f"{row.features} + {row.rerank}"
        curves[f"{row.direction.replace('_', ' ')}, {way}"] = torch.tensor(row.cmc)
    cmc_curves(curves, output / "cmc.png")
    draw_ranked(dataset, features, distance, output / "ranked.png", queries)
    print(f"wrote {output / 'metrics.json'}, cmc.png and ranked.png")


def write_features(path: Path, dataset: Dataset, features: Tensor, trained_on: str) -> None:
    """Write a feature file of the data set's images for ``vireid evaluate`` and ``vireid rerank``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_features(
        path,
        features,
        dataset.ids,
        dataset.modality,
        dataset.cameras,
        names=["/".join(image.parts[-3:]) for image in dataset.paths],  # as in cam1/0005/0001.jpg
        image_numbers=dataset.image_numbers,
        metadata={"trained_on": trained_on},
    )
    print(f"wrote {path}")


def draw_ranked(dataset: Dataset, features: Tensor, distance: Distance | None, path: Path, queries: int) -> None:
    """Evenly chosen queries of the first direction with their top-10 among all images of the other modality."""
    kind = INFRARED if isinstance(dataset, SYSUMM01Dataset) else VISIBLE
    query_rows = np.flatnonzero(dataset.modality == kind)
    gallery_rows = np.flatnonzero(dataset.modality != kind)
    query_rows = query_rows[np.linspace(0, len(query_rows) - 1, min(queries, len(query_rows))).astype(int)]
    query, gallery = features[query_rows], features[gallery_rows]
    if distance is None:
        values, index = topk(query, gallery, 10)
        values = 1 - values
    else:
        values, index = distance(query, gallery).sort(dim=1, stable=True)
        values, index = values[:, :10], index[:, :10]
    hits = gallery_rows[index.cpu().numpy()]
    ranked_lists(
        torch.stack([dataset[int(i)].image for i in query_rows]),
        torch.stack([torch.stack([dataset[int(i)].image for i in row]) for row in hits]),
        dataset.ids[hits] == dataset.ids[query_rows][:, None],
        path,
        distance=values.cpu(),
        modality=dataset.modality[query_rows],
    )


def trained_on(config: Mapping[str, Any]) -> str:
    """The data that a checkpoint's training identities come from, in words."""
    return str(config["dataset"]) + ("" if config["dataset"] == "sysu" else f", trial {config['trial']}")


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: torch.save(dict(state), file))


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a file beside ``path``, then put it in its place; if it fails, ``path`` stays as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of these examples; tensors and plain values only, nothing is executed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no checkpoint of these examples.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError:  # without torch's own text, which advises to let the file's code run
        raise ValueError(f"{path} is not a readable checkpoint: it must hold tensors and plain values alone") from None
    except Exception as error:  # whatever torch.load makes of a damaged file
        raise ValueError(f"{path} is not a readable checkpoint: {error}") from error
    expected = {"config", "model", "criterion", "optimizer", "epoch", "identities"}
    if not isinstance(state, dict) or not expected <= state.keys():
        raise ValueError(f"{path} is not a checkpoint of these examples: it must hold {', '.join(sorted(expected))}")
    return state


def method_of(config: Mapping[str, Any]) -> str:
    """Name of the method that a checkpoint is of; before there was a second one, they did not say."""
    return str(config.get("method", "cift"))


def resumable(path: Path, config: Mapping[str, Any], *, resume: bool) -> dict[str, Any] | None:
    """The checkpoint to go on from, or None to start anew.

    Raises:
        FileNotFoundError: if there is nothing to resume.
        ValueError: if the checkpoint there is another method's or was trained with other settings: it is neither mixed
            up nor overwritten.
    """
    if not resume and not path.exists():
        return None
    state = load_checkpoint(path)
    old = state["config"]
    trained_by, method = method_of(old), method_of(config)
    if trained_by != method:
        raise ValueError(f"{path} was written by train_{trained_by}.py, not train_{method}.py; name another --output")
    old = {**old, "method": trained_by}
    differing = sorted(key for key in old.keys() | config.keys() if key != "epochs" and old.get(key) != config.get(key))
    if differing:
        changes = ", ".join(f"{key} {old.get(key)!r} -> {config.get(key)!r}" for key in differing)
        raise ValueError(f"{path} was trained with other settings ({changes}); name another --output")
    return state if resume else None
