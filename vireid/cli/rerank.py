"""``vireid rerank``: the nearest gallery images of every query, as a file."""

import csv
from pathlib import Path

import click

from vireid.cli.options import InputFile, OutputFile, bar, device_option, progress_option, read_features
from vireid.cli.rerankers import Reranking, rerank_options
from vireid.protocols.names import Direction

__all__ = ["rerank"]

_EXAMPLES = """\b
An .npz holds, counted in rows of FILE:
  query (Nq,)            row of each query
  indices (Nq, top)      rows of its nearest gallery images, nearest first
  distances (Nq, top)    their distances
  names (N,)             FILE's names, if it has any: names[indices]
A .csv holds the same as lines: query, rank, gallery, distance, and the two names.

\b
Examples:
  vireid rerank features.npz --rerank aim --k1 20 --k2 6 --output ranking.npz
  vireid rerank features.npz --rerank k_reciprocal --query visible --top 10 --output ranking.csv
"""


@click.command(short_help="Rank the gallery for every query and write the nearest images.", epilog=_EXAMPLES)
@click.argument("file", type=InputFile())
@rerank_options(required=True, text="none: cosine distance.")
@click.option(
    "--query",
    type=click.Choice(["infrared", "visible"]),
    default="infrared",
    help="Query modality; all images of the other one are the gallery.",
)
@click.option("--top", type=click.IntRange(min=1), default=100, help="Gallery images of each query.")
@click.option("--output", type=OutputFile(".npz", ".csv"), required=True, help="File to write, .npz or .csv.")
@device_option
@progress_option
def rerank(
    file: Path,
    reranking: Reranking,
    query: str,
    top: int,
    output: Path,
    device: str,
    progress: bool | None,
) -> None:
    """Rank the gallery for every query of the feature FILE and write the nearest images.

    All images of one modality are queries, all of the other the gallery. No camera rule and no drawn gallery: for a
    data set's protocol there is vireid evaluate. The whole matrix of distances is never made.
    """
    reranking = reranking.completed()
    found = read_features(file, output)

    import numpy as np
    import torch

    from vireid._files import write_npz, written_whole
    from vireid.protocols._protocol import split_modalities

    direction: Direction = "infrared_to_visible" if query == "infrared" else "visible_to_infrared"
    query_rows, gallery_rows = split_modalities(found.modality, direction)
    x = torch.from_numpy(found.features).to(device)
    q, g = x[query_rows], x[gallery_rows]
    del x
    with bar(len(q), "queries", progress) as shown:
        parts = []
        for distances, indices in reranking.nearest(q, g, top):
            parts.append((distances.cpu().numpy(), indices.cpu().numpy()))
            shown.update(len(distances))
    distances, indices = (np.concatenate(part) for part in zip(*parts, strict=True))
    indices = gallery_rows[indices]
    if output.suffix == ".npz":
        arrays = {"query": query_rows, "indices": indices, "distances": distances}
        if found.names is not None:
            arrays["names"] = np.array(found.names, dtype=np.str_)
        write_npz(output, arrays)
    else:
        with written_whole(output) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            named = [] if found.names is None else ["query_name", "gallery_name"]
            writer.writerow(["query", "rank", "gallery", "distance", *named])
            for row, near, values in zip(query_rows.tolist(), indices.tolist(), distances.tolist(), strict=True):
                for rank, (index, value) in enumerate(zip(near, values, strict=True), 1):
                    texts = [] if found.names is None else [found.names[row], found.names[index]]
                    writer.writerow([row, rank, index, f"{value:.6g}", *texts])
    click.echo(f"{reranking}: {len(indices)} queries, {indices.shape[1]} of {len(g)} gallery images each: {output}")
