"""``vireid info``: what is in a file of this library."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from vireid import INFRARED, VISIBLE
from vireid.cli.options import InputFile

__all__ = ["info"]

_EXAMPLES = """\b
Examples:
  vireid info features.npz
  vireid info checkpoint.pt
"""


@click.command(short_help="Say what is in a file.", epilog=_EXAMPLES)
@click.argument("file", type=InputFile(".pt", ".npz", ".safetensors", ".json"))
def info(file: Path) -> None:
    """Say what is in FILE: a feature file, a checkpoint, a report, a saved re-ranker or graph, key points."""
    if file.suffix == ".json":
        from vireid.protocols import Report

        click.echo(Report.load(file))
        return
    read = _checkpoint if file.suffix == ".pt" else _features
    if file.suffix == ".npz":
        from vireid._files import read_npz

        with suppress(ValueError):  # of a damaged file, which its reader names
            if read_npz(file, ["header"]):  # feature files have none
                read = _arrays
    lines = dict(read(file))
    for name, value in lines.items():
        click.echo(f"{name:{max(map(len, lines))}}  {value}")


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _checkpoint(file: Path) -> Iterator[tuple[str, Any]]:
    from vireid.training import read_checkpoint
    from vireid.training.checkpoint import trained_on

    state = read_checkpoint(file)
    settings, model = state["settings"], state["model"]
    data = ("method", "dataset", "trial", "keypoints")
    yield "file", "checkpoint"
    yield "method", settings.get("method", "a model of one's own")
    yield "epoch", f"{state['epoch']} of {state['recipe']['epochs']}"
    yield "trained on", f"{trained_on(settings)}: {state['images']} images of {state['num_classes']} identities"
    yield "settings", _listed({name: value for name, value in settings.items() if name not in data})
    recipe = {"name": "small"} | state["recipe"]
    yield "recipe", f"{recipe.pop('name')}: {_listed(recipe)}"
    yield "model", f"{sum(x.numel() for x in model.values()):,} numbers in {len(model)} tensors, buffers included"


def _features(file: Path) -> Iterator[tuple[str, Any]]:
    import numpy as np

    from vireid.data import load_features

    found = load_features(file)
    yield "file", "features"
    yield "features", f"{len(found)} x {found.features.shape[1]}, {found.features.dtype}"
    yield "modality", f"{(found.modality == VISIBLE).sum()} visible, {(found.modality == INFRARED).sum()} infrared"
    yield "identities", len(np.unique(found.ids))
    for name, values in (("cameras", found.cameras), ("image numbers", found.image_numbers)):
        if values is not None:
            listed, counts = np.unique(values, return_counts=True)
            each = ", ".join(f"{x} ({n})" for x, n in zip(listed, counts, strict=True))
            yield name, each if name == "cameras" else f"{listed[0]} to {listed[-1]}"
    yield "names", "none" if found.names is None else f"{found.names[0]} … {found.names[-1]}"
    yield from found.metadata.items()


def _arrays(file: Path) -> Iterator[tuple[str, Any]]:
    from vireid._files import parse_json, read_npz

    try:
        arrays = read_npz(file)
        header = parse_json(bytes(arrays.pop("header")))
        kind, settings = f"{header['kind']}, version {header['version']}", _listed(header["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: is no whole file of this library: {error}") from error
    yield "file", kind
    yield "settings", settings or "none"
    for name, x in arrays.items():
        yield name, f"{x.shape}, {x.dtype}"
