"""``vireid extract``: the features of a checkpoint's model as a feature file."""

from pathlib import Path

import click

from vireid.cli.options import Data, InputFile, OutputFile, data_options, progress_option

__all__ = ["extract"]

_EXAMPLES = """\b
Examples:
  vireid extract checkpoint.pt --output features.npz
  vireid extract checkpoint.pt --dataset llcm --root LLCM --flip --output features.npz
  vireid evaluate features.npz --protocol regdb --rerank k_reciprocal
"""


@click.command(short_help="Write the features of a checkpoint's model to a feature file.", epilog=_EXAMPLES)
@click.argument("checkpoint", type=InputFile(".pt"))
@click.option("--output", type=OutputFile(".npz", ".safetensors"), required=True, help="Feature file to write.")
@data_options("test", "all", "train")
@click.option("--flip", is_flag=True, help="Mean of the features of an image and of its mirror image.")
@progress_option
def extract(checkpoint: Path, output: Path, data: Data, flip: bool, progress: bool | None) -> None:
    """Write the features of a CHECKPOINT's model to a feature file for vireid evaluate and vireid rerank.

    The images are the test images that it was trained for, or those of --dataset. The features are the backbone's, or
    those of G2DA's graph: CIFT's transferred features depend on the gallery, and no file can hold them.
    """
    from vireid.cli.trained import open_trained
    from vireid.data import save_features
    from vireid.training import extract_features
    from vireid.training.checkpoint import trained_on

    found = open_trained(checkpoint, data)
    images = found.images
    save_features(
        output,
        extract_features(found.model, images, flip=flip, workers=data.workers, progress=progress),
        images.ids,
        images.modality,
        images.cameras,
        names=["/".join(path.parts[-3:]) for path in images.paths],  # as in cam1/0005/0001.jpg
        image_numbers=images.image_numbers,
        metadata={"dataset": found.dataset, "trained_on": trained_on(found.settings), "method": found.method},
    )
    click.echo(f"wrote {output}: {len(images)} images")
