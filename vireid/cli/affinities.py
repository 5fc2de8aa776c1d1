"""Queries whose neighbors by affinity differ between two models (CIFT, Fig. 4-7)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from vireid.cli.options import Data

if TYPE_CHECKING:  # imported where they are used: the help needs no torch
    from torch import Tensor

    from vireid.cli.trained import Trained

CHANGES = {
    "positives": "more right neighbors (Fig. 4)",
    "easy": "larger affinities of neighbors that are all right in both (Fig. 5)",
    "hard": "smaller affinities of wrong neighbors, as many of which are right (Fig. 6)",
    "both": "larger affinities of right neighbors and smaller ones of wrong neighbors (Fig. 7)",
}
"""Changes from the first model to the second by which queries are chosen."""


class Rows(NamedTuple):
    """Nearest gallery images of each query, their affinities, and whether they show its identity; all (Nq, k - 1)."""

    nearest: "Tensor"
    affinity: "Tensor"
    right: "Tensor"


def rows_of(found: "Trained", data: Data, query: Any, gallery: Any) -> Rows:
    """Return the queries' rows of A_het without the query itself, each query alone with the gallery (CIFT, Eq. 4)."""
    import torch

    from vireid.neighbors import topk
    from vireid.nn import H2FT
    from vireid.training import extract_features

    transfer: Any = getattr(found.model, "transfer", None)
    if not isinstance(transfer, H2FT) or transfer.k < 2:
        raise click.UsageError("CHECKPOINTS must be models with CIFT's H2FT, k 2 at least, such as vireid train cift.")
    features = extract_features(found.model, found.images, workers=data.workers)
    q, g = (transfer.embed(name, features[rows]) for name, rows in (("query", query), ("gallery", gallery)))
    cosine, index = topk(q, g, transfer.k - 1)
    both = torch.cat([torch.ones_like(cosine[:, :1]), cosine], 1)
    affinity = (both / transfer.tau_het).softmax(1)[:, 1:].cpu()
    index = index.cpu()
    ids = torch.from_numpy(found.images.ids)
    return Rows(index, affinity, ids[gallery][index] == ids[query][:, None])


def gain_of(change: str, first: Rows, second: Rows) -> "Tensor":
    """Return by how much each query (Nq,) changes in the sense of a key of `CHANGES`; 0 or less is no such change."""
    import torch

    count = second.right.sum(1) - first.right.sum(1)
    positive, negative = (
        (second.affinity * kind(second.right)).sum(1) - (first.affinity * kind(first.right)).sum(1)
        for kind in (lambda right: right, torch.logical_not)
    )
    if change == "positives":
        return count.to(positive.dtype)
    if change == "easy":
        return torch.where((first.right & second.right).all(1), positive, 0)
    if change == "hard":
        return torch.where(count == 0, -negative, 0)
    return torch.minimum(positive, -negative)


def draw_affinities(
    checkpoints: tuple[Path, ...], names: tuple[str, ...], queries: int, change: str, data: Data, output: Path
) -> None:
    """Draw the queries with most of a change, a row for each of the two models."""
    import numpy as np
    import torch

    from vireid import INFRARED, VISIBLE
    from vireid.cli.trained import open_trained
    from vireid.plots import ranked_lists

    opened = [open_trained(path, data) for path in checkpoints]
    images = opened[0].images
    if opened[1].recipe.size != opened[0].recipe.size or len(opened[1].images) != len(images):
        raise click.UsageError("CHECKPOINTS must be trained on images of one size, and on one split of one data set.")
    kind = INFRARED if opened[0].dataset == "sysu" else VISIBLE
    query, gallery = (
        torch.from_numpy(np.flatnonzero(rows)) for rows in (images.modality == kind, images.modality != kind)
    )
    first, second = (rows_of(found, data, query, gallery) for found in opened)
    if first.nearest.shape != second.nearest.shape:
        raise click.UsageError("CHECKPOINTS must have graphs of one k.")
    gain = gain_of(change, first, second)
    order = gain.argsort(descending=True, stable=True)
    chosen = order[gain[order] > 0][:queries]
    if not len(chosen):
        raise click.UsageError(f"--change {change} must be one that some query has: take another one.")
    shown, hits, right, affinity = [], [], [], []
    for row in chosen.tolist():
        for found in (first, second):
            shown.append(images[int(query[row])].image)
            hits.append(torch.stack([images[int(i)].image for i in gallery[found.nearest[row]]]))
            right.append(found.right[row])
            affinity.append(found.affinity[row])
    written: dict[str, Any] = {"distance": torch.stack(affinity), "names": list(names) * len(chosen)}
    ranked_lists(torch.stack(shown), torch.stack(hits), torch.stack(right), output, **written)
