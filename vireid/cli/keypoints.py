"""``vireid keypoints``: heatmaps of the key points of all images of a data set, made once, for G2DA."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vireid import INFRARED, VISIBLE
from vireid.cli.options import FOLDER, DatasetName, device_option

if TYPE_CHECKING:  # imported where they are used: the help needs no torch
    import numpy as np

__all__ = ["keypoints"]

_EXAMPLES = """\b
Examples:
  vireid keypoints --dataset sysu --root SYSU-MM01
  vireid keypoints --dataset regdb --root RegDB --model ./vitpose --output heatmaps
  vireid train g2da --dataset sysu --root SYSU-MM01 --keypoints SYSU-MM01-heatmaps
"""


@click.command(short_help="Estimate the key points of a data set's images.", epilog=_EXAMPLES)
@click.option("--dataset", type=DatasetName(["sysu", "regdb", "llcm"]), required=True)
@click.option("--root", type=FOLDER, required=True, help="Folder of the data set, in its published layout.")
@click.option("--output", type=FOLDER, help="Folder for the heatmaps. Default: beside --root, ROOT-heatmaps.")
@click.option(
    "--model",
    default="usyd-community/vitpose-base-simple",
    help="A ViTPose: a name that transformers downloads, or a folder with config.json and model.safetensors.",
)
@click.option("--batch", type=click.IntRange(min=1), default=64, help="Images per batch.")
@click.option("--score", type=click.FloatRange(0, 1), default=0.3, help="Count key points with a lower score.")
@device_option
def keypoints(dataset: str, root: Path, output: Path | None, model: str, batch: int, score: float, device: str) -> None:
    """Estimate the key points of all images of a data set, once, for vireid train g2da --keypoints FOLDER.

    Every image, whatever its split, gets a file of its own with the heatmaps of 13 key points. The same command goes on
    where it was interrupted, and makes again what is damaged, what belongs to an image that changed, and all of it for
    another model. At the end it says how often a score, the highest value of a heatmap, is below --score. Needs
    pip install 'vireid[pose]'.
    """
    import numpy as np

    from vireid.data.keypoints import heatmap_path
    from vireid.data.pose import cache_heatmaps, find_images, read_scores

    output = output or root.resolve().with_name(f"{root.resolve().name}-heatmaps")
    images = find_images(dataset, root)
    paths, modality = list(images), np.array(list(images.values()))
    counts = f"{(modality == VISIBLE).sum()} visible, {(modality == INFRARED).sum()} infrared"
    click.echo(f"{root}: {len(paths)} images ({counts}); heatmaps go into {output}")
    files = [heatmap_path(output, path, root) for path in paths]
    before = [_state(file) for file in files]
    try:
        cache_heatmaps(paths, output, root=root, model=model, batch=batch, device=device)
        scores = read_scores(output, paths, root)
    except KeyboardInterrupt:
        text = f"stopped: what was made stays in {output}, and the same command goes on from there"
        raise click.ClickException(text) from None
    made = sum(_state(file) != old for file, old in zip(files, before, strict=True))
    click.echo(f"{output}: heatmaps of {len(paths)} images, {made} made now, {len(paths) - made} there already")
    click.echo(_describe(scores, modality, score))


def _state(file: Path) -> tuple[int, int] | None:
    """Return the inode and modification time of a file, by which a replacement is told from it, or None without one."""
    found = file.stat() if file.is_file() else None
    return None if found is None else (found.st_ino, found.st_mtime_ns)


def _describe(scores: "np.ndarray", modality: "np.ndarray", least: float) -> str:
    """Return the share of key points with a score below ``least``, by modality, and the worst key point."""
    from vireid.nn import PERSON_13

    lines = [f"key points with a score (the highest value of the heatmap) below {least:g}:"]
    rows = {"all": modality >= 0, "visible": modality == VISIBLE, "infrared": modality == INFRARED}
    for name, chosen in rows.items():
        low = 100 * (scores[chosen] < least).mean(0)
        worst = int(low.argmax())
        lines.append(f"  {name:8} {low.mean():5.1f} %, most often {PERSON_13.names[worst]} ({low[worst]:.1f} %)")
    return "\n".join(lines)
