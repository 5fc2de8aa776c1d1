"""``vireid extract``: the features of a checkpoint's model as a feature file."""

from pathlib import Path

import click

from vireid.cli.options import Data, InputFile, OutputFile, check_device, data_options, device_option

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
@data_options
@click.option("--split", type=click.Choice(["test", "all", "train"]), default="test", show_default=True)
@click.option("--flip", is_flag=True, help="Mean of the features of an image and of its mirror image.")
@device_option
def extract(checkpoint: Path, output: Path, data: Data, split: str, flip: bool, device: str) -> None:
    """Write the features of a CHECKPOINT's model to a feature file for vireid evaluate and vireid rerank.

    The images are the test images that it was trained for, or those of --dataset. The features are the backbone's, or
    those of G2DA's graph: CIFT's transferred features depend on the gallery, and no file can hold them.
    """
    check_device(device)
    from vireid.cli.trained import open_images, trained_on
    from vireid.data import save_features
    from vireid.training import extract_features, load_checkpoint

    found = load_checkpoint(checkpoint, device=device)
    dataset, images = open_images(found, data, split)
    save_features(
        output,
        extract_features(found.model, images, flip=flip, workers=data.workers),
        images.ids,
        images.modality,
        images.cameras,
        names=["/".join(path.parts[-3:]) for path in images.paths],  # as in cam1/0005/0001.jpg
        image_numbers=images.image_numbers,
        metadata={"dataset": dataset, "trained_on": trained_on(found.settings), "method": found.method},
    )
    click.echo(f"wrote {output}: {len(images)} images")
