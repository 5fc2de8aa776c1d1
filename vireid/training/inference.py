"""A trained model at work: features of a data set, their evaluation by its protocol, and the files of results."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vireid import INFRARED, VISIBLE
from vireid._checks import check_count, check_module, check_path
from vireid._files import written_whole
from vireid._ops import evaluated
from vireid.data import EvalTransform, KeypointSample, SYSUMM01Dataset, move_heatmaps
from vireid.models import G2DA
from vireid.neighbors import topk
from vireid.nn import H2FT
from vireid.nn.transfer import FeatureTransfer
from vireid.plots import cmc_curves, ranked_lists
from vireid.protocols import LLCM, SYSUMM01, RegDB, Report
from vireid.protocols.names import protocols_of
from vireid.rerank import AfterTransfer
from vireid.training.checkpoint import trained_on
from vireid.training.datasets import Dataset, draw_heatmaps, progress_bar
from vireid.training.recipe import Recipe

Distance = Callable[[Tensor, Tensor], Tensor]
"""(query (Nq, d), gallery (Ng, d)) -> distance (Nq, Ng)."""


@torch.no_grad()
def extract_features(
    model: nn.Module,
    dataset: Dataset,
    *,
    flip: bool = False,
    batch_size: int = 128,
    workers: int = 0,
    progress: bool | None = None,
) -> Tensor:
    """Compute the features of all images with the model in evaluation mode.

    Args:
        model: ``model(images, modality)`` -> features (B, d), or an output with ``features``; with key points in the
            data ``model(images, modality, heatmaps)``. Its mode is left alone.
        dataset: of `vireid.data`, or any with its samples.
        flip: mean of the features of an image and of its mirror image.
        batch_size: images per batch.
        workers: processes that read images.
        progress: show a bar on standard error. Default: only on a terminal.

    Returns:
        (N, d) float32 in the data set's order, on the model's device.

    Raises:
        ImportError: if tqdm, of the extra ``train``, is not installed.
    """
    batch_size, workers = check_count("batch_size", batch_size), check_count("workers", workers, minimum=0)
    loader = DataLoader(dataset, batch_size, num_workers=workers)
    check_module("model", model)
    device = next(model.parameters(), torch.empty(0)).device
    transform = EvalTransform()
    features = []
    model = evaluated(model)
    for sample in progress_bar(loader, "features", progress, leave=False):
        if not hasattr(sample, "image"):
            raise TypeError(f"dataset must hold samples of vireid.data, got {type(sample).__name__}")
        inputs = [transform(sample.image.to(device)), sample.modality.to(device)]
        if isinstance(sample, KeypointSample):
            size = (sample.image.shape[2], sample.image.shape[3])
            inputs.append(draw_heatmaps(sample.keypoints.to(device), size))
        found = _features(model, inputs)
        if flip:
            found = (found + _features(model, _mirrored(inputs))) / 2
        features.append(found)
    return torch.cat(features)


def _features(model: nn.Module, inputs: list[Tensor]) -> Tensor:
    output = model(*inputs)
    features: Tensor = output if isinstance(output, Tensor) else output.features
    return features.float()


def _mirrored(inputs: list[Tensor]) -> list[Tensor]:
    images, modality, *heatmaps = inputs
    size = (images.shape[2], images.shape[3])
    corner = torch.zeros(len(images), 2, dtype=torch.int64, device=images.device)
    flipped = torch.ones(len(images), dtype=torch.bool, device=images.device)
    turned = [move_heatmaps(x, image_size=size, corner=corner, size=size, flipped=flipped) for x in heatmaps]
    return [images.flip(3), modality, *turned]


def ranking_ways(model: nn.Module, rerank: Mapping[str, Distance] | None = None) -> dict[str, Distance | None]:
    """Return the ways in which a model ranks, by name.

    A name says the features, and the re-ranking if there is one, as in "backbone + AIM". The features are "backbone",
    or "graph" of a `G2DA` with its graph, and "transferred" of a model with CIFT's transfer.

    Args:
        model: any.
        rerank: re-rankings by name, each (query, gallery) -> distance. GFT's transferred features depend on the query,
            so that they cannot be re-ranked.

    Returns:
        Functions (query, gallery) -> distance (Nq, Ng); None is the cosine distance.
    """
    if not isinstance(rerank, Mapping | None):
        raise TypeError(f"rerank must map names to functions, got {type(rerank).__name__}")
    rerank = rerank or {}
    kind = "graph" if isinstance(model, G2DA) and model.attention is not None else "backbone"
    ways: dict[str, Distance | None] = {kind: None}
    ways |= {f"{kind} + {name}": function for name, function in rerank.items()}
    transfer = getattr(model, "transfer", None)
    if isinstance(transfer, FeatureTransfer):
        ways["transferred"] = transfer.distance
        if isinstance(transfer, H2FT):
            ways |= {f"transferred + {name}": AfterTransfer(transfer, f) for name, f in rerank.items()}
    return ways


def evaluate(
    dataset: Dataset,
    features: Tensor,
    ways: Mapping[str, Distance | None],
    protocols: list[SYSUMM01 | RegDB | LLCM] | None = None,
) -> Report:
    """Evaluate features by each protocol and each way to rank.

    Args:
        dataset: whose images they are of, in its order.
        features: (N, d).
        ways: as `ranking_ways` gives them.
        protocols: of `vireid.protocols`. Default: of SYSU-MM01 all-search, single-shot, with the permutations in its
            folder; of the others both directions.

    Returns:
        A `vireid.protocols.Report` of one row per way and direction.
    """
    if not isinstance(ways, Mapping):
        raise TypeError(f"ways must map names to distances, got {type(ways).__name__}")
    if not hasattr(dataset, "image_numbers"):
        raise TypeError(f"dataset must be one of vireid.data, got {type(dataset).__name__}")
    if not isinstance(protocols, list | tuple | None):
        raise TypeError(f"protocols must be a list of those of vireid.protocols, got {type(protocols).__name__}")
    protocols = protocols or protocols_of(dataset.name, dataset.root / "exp" / "rand_perm_cam.mat")
    about = dataset.ids, dataset.modality, dataset.cameras, dataset.image_numbers
    reports = []
    for name, distance in ways.items():
        kind, _, rerank = name.partition(" + ")
        named: dict[str, Any] = {"features_name": kind, "rerank_name": rerank or "none"}
        reports += [protocol.evaluate(features, *about, rerank=distance, **named) for protocol in protocols]
    return Report.merge(reports)


def write_results(
    output: Path,
    report: Report,
    dataset: Dataset,
    features: Tensor,
    distance: Distance | None = None,
    *,
    settings: Mapping[str, object],
    name: str | None = None,
    recipe: Recipe | None = None,
) -> None:
    """Write metrics.json, cmc.png and ranked.png, the latter with the images that are ranked best.

    Args:
        output: folder, which is made.
        report: of `evaluate`.
        dataset: whose images were evaluated.
        features: (N, d) of its images.
        distance: the way to rank in the picture; None is the cosine distance.
        settings: of the training, which name the data that the model was trained on.
        name: of the data set that was evaluated. Default: that of the training.
        recipe: of the training, for metrics.json.
    """
    output = check_path("output", output)
    if not isinstance(recipe, Recipe | None):
        raise TypeError(f"recipe must be a Recipe, got {type(recipe).__name__}")
    output.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"dataset": name or settings.get("dataset"), "protocol": report.dataset}
    content |= {"trained_on": trained_on(settings), "rows": report.to_dict()["rows"]}
    if recipe is not None:
        content["recipe"] = recipe.to_dict()
    with written_whole(output / "metrics.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    cmc_curves(report.curves(), output / "cmc.png")
    draw_ranked(output / "ranked.png", dataset, features, distance)


def draw_ranked(
    path: Path,
    dataset: Dataset,
    features: Tensor,
    distance: Distance | None = None,
    *,
    queries: int = 8,
    kinds: Sequence[int] | None = None,
    cosines: bool = False,
) -> None:
    """Draw evenly chosen queries with their ten nearest images among all of the other modality.

    Args:
        path: of the picture.
        dataset: whose images they are.
        features: (N, d) of its images.
        distance: the way to rank; None is the cosine distance.
        queries: number of queries of each kind.
        kinds: modalities of the queries. Default: infrared on SYSU-MM01, else visible.
        cosines: write the cosines of the features below the images, not the distances.
    """
    if kinds is None:
        kinds = [INFRARED if isinstance(dataset, SYSUMM01Dataset) else VISIBLE]
    asked, found, written = [], [], []
    for kind in kinds:
        rows, gallery = np.flatnonzero(dataset.modality == kind), np.flatnonzero(dataset.modality != kind)
        rows = rows[np.linspace(0, len(rows) - 1, min(queries, len(rows))).astype(int)]
        q, g = features[rows], features[gallery]
        if distance is None:
            values, index = topk(q, g, 10)
            values = 1 - values
        else:
            values, index = distance(q, g).sort(dim=1, stable=True)
            values, index = values[:, :10], index[:, :10]
        if cosines:
            values = torch.cosine_similarity(q[:, None], g[index], dim=2)
        asked.append(rows)
        found.append(gallery[index.cpu().numpy()])
        written.append(values.cpu())
    rows, hits = np.concatenate(asked), np.concatenate(found)
    images = [torch.stack([dataset[int(i)].image for i in row]) for row in (rows, *hits)]
    right, modality = dataset.ids[hits] == dataset.ids[rows][:, None], dataset.modality[rows]
    ranked_lists(images[0], torch.stack(images[1:]), right, path, distance=torch.cat(written), modality=modality)
