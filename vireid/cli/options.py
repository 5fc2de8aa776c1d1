"""Options shared by the commands: data sets and protocols, input and output files, device, progress bars."""

import functools
import itertools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vireid.protocols.names import DATASETS, DIRECTIONS, dataset_name, protocols_of

if TYPE_CHECKING:  # imported where they are used: the help needs no torch
    from vireid.data.features import Features
    from vireid.protocols import LLCM, SYSUMM01, RegDB

Command = TypeVar("Command", bound=Callable[..., Any])


class DatasetName(click.Choice):
    """Name of a data set in any spelling: sysu, SYSU-MM01, sysu-mm01."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the canonical name."""
        try:
            name: str = dataset_name(value)
        except ValueError:
            name = value
        if name not in self.choices:
            self.fail(f"{value!r} is not one of {', '.join(self.choices)} (any case; SYSU-MM01 is sysu).", param, ctx)
        return name


class InputFile(click.Path):
    """A file that exists, with one of these endings if there are any."""

    def __init__(self, *endings: str) -> None:
        super().__init__(exists=True, dir_okay=False, path_type=Path)
        self.endings = endings

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        path = Path(str(super().convert(value, param, ctx)))
        if self.endings and path.suffix not in self.endings:
            self.fail(f"{str(path)!r} must end in {' or '.join(self.endings)}.", param, ctx)
        return path


class OutputFile(click.ParamType):
    """A file that can be written, as far as that can be told before the work is done."""

    name = "file"

    def __init__(self, *endings: str) -> None:
        self.endings = endings

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path, if its ending is one of ours and its folder exists and can be written to."""
        path = Path(value)
        for wrong, text in (
            (path.suffix not in self.endings, f"must end in {' or '.join(self.endings)}"),
            (not path.parent.is_dir(), "must be in an existing folder"),
            (not os.access(path.parent, os.W_OK), "must be in a folder that can be written to"),
            (path.is_dir(), "is a folder"),
        ):
            if wrong:
                self.fail(f"{str(value)!r} {text}.", param, ctx)
        return path


FOLDER = click.Path(file_okay=False, path_type=Path)
"""A folder, which need not exist."""


@dataclass(frozen=True)
class Data:
    """Images that a command reads, and the device that it computes on; None is the command's default."""

    dataset: str | None
    root: Path | None
    trial: int | None
    keypoints: Path | None
    workers: int
    split: str = "test"
    device: str = "cpu"


@dataclass(frozen=True)
class Rules:
    """Settings of the protocols; None is a protocol's default, and "both" means one table each."""

    mode: str | None = None
    shots: str | None = None
    sampling: str | None = None
    direction: str | None = None

    def check(self, switch: str, dataset: str) -> None:
        """Raise for settings that the protocol of ``dataset`` does not have; ``switch`` is the option that named it."""
        others = ("direction",) if dataset == "sysu" else ("mode", "shots", "sampling")
        refuse(switch, dataset, {name: getattr(self, name) for name in others})

    def each(self) -> "dict[str, Rules]":
        """Return the rules of each table by a name for its files, such as "indoor_multi"; a single table has none."""
        both = {"mode": ("all", "indoor"), "shots": ("1", "10")}
        modes, shots = (both[name] if getattr(self, name) == "both" else (getattr(self, name),) for name in both)
        found = {}
        for mode, number in itertools.product(modes, shots):
            name = f"{mode or 'all'}_{'multi' if number == '10' else 'single'}"
            found[name if "both" in (self.mode, self.shots) else ""] = replace(self, mode=mode, shots=number)
        return found

    def protocols(self, dataset: str, permutations: Path | None) -> "list[SYSUMM01 | RegDB | LLCM]":
        """Return the protocols of a data set, one per direction; ``permutations`` are SYSU-MM01's."""
        given: dict[str, Any] = {name: value for name, value in vars(self).items() if value is not None}
        return protocols_of(dataset, permutations, **given | {"shots": int(self.shots or 1)})


def data_options(*splits: str) -> Callable[[Command], Command]:
    """Give a command the options that say which images are read; it is called with one ``data``.

    With ``splits``, the first of which is the default, it also has --split and --device.
    """
    options = [
        click.option(
            "--dataset", type=DatasetName(DATASETS), help="In any spelling. Default: synthetic, or the checkpoint's."
        ),
        click.option("--root", type=FOLDER, help="Folder of the data set. The synthetic one is drawn there."),
        click.option("--trial", type=click.IntRange(1, 10), help="Split of RegDB and of the synthetic data [1]."),
        click.option(
            "--keypoints", type=click.Path(path_type=Path), help="G2DA: key points of the images, a file or a folder."
        ),
        click.option("--workers", type=click.IntRange(min=0), default=0, help="Processes that read images."),
    ]
    if splits:
        text = "Identities; all takes every one as a test identity."
        options += [
            click.option("--split", type=click.Choice(splits), default=splits[0], help=text),
            device_option,
        ]
    return lambda command: grouped(command, "data", Data, Data.__annotations__, *options)


def protocol_options(command: Command) -> Command:
    """Give a command the options of the protocols; it is called with one ``rules``."""
    directions = click.Choice([*DIRECTIONS, "both"])
    sampling = "SYSU-MM01: the published galleries [official], or the AGW family's. They differ: do not mix them."
    return grouped(
        command,
        "rules",
        Rules,
        Rules.__annotations__,
        click.option(
            "--mode",
            type=click.Choice(["all", "indoor", "both"]),
            help="SYSU-MM01: all-search [default], indoor-search or both.",
        ),
        click.option(
            "--shots", type=click.Choice(["1", "10", "both"]), help="SYSU-MM01: gallery images per camera [1], or both."
        ),
        click.option("--sampling", type=click.Choice(["official", "agw"]), help=sampling),
        click.option("--direction", type=directions, help="RegDB, LLCM: query to gallery [both]."),
    )


def grouped(
    command: Command, name: str, make: Callable[..., Any], names: Iterable[str], *options: Callable[[Any], Any]
) -> Command:
    """Give a command options; it is called with one object ``name``, made of those of them in ``names``."""
    names = list(names)

    @functools.wraps(command)
    def run(**given: Any) -> Any:
        made = make(**{each: given.pop(each) for each in names if each in given})
        return command(**{name: made}, **given)

    wrapped: Any = run
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


progress_option = click.option(
    "--progress/--no-progress", default=None, help="Bar on standard error. Default: only on a terminal."
)


def _check_device(context: click.Context, option: click.Parameter, device: str) -> str:
    """Return the device, if there is one; the CPU always is, and needs no torch."""
    if device != "cpu":
        import torch

        if not {"cuda": torch.cuda, "mps": torch.backends.mps}[device].is_available():
            raise click.UsageError(f"--device {device} needs a GPU that PyTorch can use; none was found.")
    return device


_devices = click.Choice(["cpu", "cuda", "mps"])
device_option = click.option("--device", type=_devices, default="cpu", callback=_check_device)


def flags(names: Any) -> str:
    """Return the options of these arguments."""
    return ", ".join("--" + name.replace("_", "-") for name in names)


def refuse(switch: str, value: str, given: dict[str, Any]) -> None:
    """Raise for an option in ``given`` (name -> value, None if not given) that does not go with ``switch value``."""
    for name, content in given.items():
        if content is not None:
            raise click.UsageError(f"{flags([name])} does not go with {f'{switch} {value}'.strip()}.")


def read_features(file: Path, *outputs: Path | None) -> "Features":
    """Return the content of a feature file, which none of the outputs may overwrite."""
    from vireid.data.features import load_features

    for output in outputs:
        if output is not None and output.exists() and output.samefile(file):
            raise click.UsageError(f"{output} is the feature file: name another output.")
    return load_features(file)


def bar(total: int, what: str, wanted: bool | None) -> Any:
    """Return a bar of ``total`` steps on standard error; ``wanted`` None: only on a terminal."""
    from tqdm import tqdm

    return tqdm(total=total, desc=what, disable=None if wanted is None else not wanted, leave=False)
