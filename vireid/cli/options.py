"""What the commands share: the re-rankers and their options, input and output files, progress bars."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:  # imported where they are used: the help needs no torch
    from vireid.data.features import Features

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Method:
    """A re-ranker of ``vireid.rerank``.

    Attributes:
        fitted: name of the class that is fitted to a gallery once, for a method whose ``uses`` is "gallery"; None for
            a transductive one, which is a function alone.
        options: keyword arguments and their defaults, None where one must be given.
    """

    fitted: str | None
    options: dict[str, Any]

    def settings(self, given: dict[str, Any]) -> str:
        """All options as reports show them: "k1=20, k2=6"."""
        return ", ".join(f"{name}={given.get(name, default)}" for name, default in self.options.items())


METHODS = {
    "aim": Method("AIM", {"k1": None, "k2": None, "variant": "paper"}),
    "k_reciprocal": Method(None, {"k1": 20, "k2": 6, "lambda_value": 0.3}),
    "gnn": Method(None, {"k1": 26, "k2": 7, "layers": 2, "alpha": 2.0}),
    "sim": Method("SIM", {"k1": 20, "k2": 20, "lambda_value": 0.3}),
    "query_expansion": Method("QueryExpansion", {"n": 5, "alpha": 0.0}),
}
"""The re-rankers by their names in ``vireid.rerank``."""

_OPTIONS: dict[str, tuple[click.ParamType, str]] = {
    "k1": (click.IntRange(min=1), "Neighbours of the affinities or the graph."),
    "k2": (click.IntRange(min=1), "Neighbours averaged over (sim: in a gallery image's set)."),
    "variant": (click.Choice(["paper", "released"]), "Equation of the paper, or of the authors' code."),
    "lambda_value": (click.FloatRange(0, 1), "Weight of the original distance."),
    "layers": (click.IntRange(min=1), "Rounds of propagation."),
    "alpha": (click.FloatRange(min=0), "Exponent of the weights."),
    "n": (click.IntRange(min=1), "Gallery images that join the query."),
}


METHODS_HELP = (
    f"{', '.join(m for m, entry in METHODS.items() if entry.fitted)}: a query with the gallery alone. "
    f"{', '.join(m for m, entry in METHODS.items() if not entry.fitted)}: transductive, with the other queries too."
)


def rerank_options(command: Command) -> Command:
    """Give ``command`` an option for each keyword argument of the re-rankers, None where it is not given."""
    for name, (kind, text) in reversed(_OPTIONS.items()):
        takers = {method: entry.options[name] for method, entry in METHODS.items() if name in entry.options}
        if not takers:
            continue
        defaults = ", ".join(m if default is None else f"{m} [{default}]" for m, default in takers.items())
        command = click.option(f"--{name.replace('_', '-')}", name, type=kind, help=f"{text} For {defaults}.")(command)
    return command


def check_method(switch: str, method: str, given: dict[str, Any]) -> dict[str, Any]:
    """Those of the re-ranking options that were given.

    Args:
        switch: the option that names the method, "--rerank" or "--method".
        method: its value, one of `METHODS` or "none".
        given: all of a command's keyword arguments.

    Raises:
        click.UsageError: for an option that the method does not have, or one that it needs and that is not given.
    """
    options = METHODS[method].options if method in METHODS else {}
    given = {name: given[name] for name in _OPTIONS if given.get(name) is not None}
    for name in given:
        if name not in options:
            has = f"its options are {_flags(options)}" if options else "it has no options"
            raise click.UsageError(f"{_flags([name])} does not go with {switch} {method}: {has}.")
    missing = [name for name, default in options.items() if default is None and name not in given]
    if missing:
        hint = " See vireid evaluate --help for the papers' values."
        raise click.UsageError(f"{switch} {method} needs {_flags(missing)}.{hint if method == 'aim' else ''}")
    return given


def _flags(names: Any) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)


def check_owner(switch: str, value: str, given: dict[str, Any]) -> None:
    """Raise for an option in ``given`` (name -> value, None where not given) that does not go with ``switch value``."""
    for name, content in given.items():
        if content is not None:
            raise click.UsageError(f"{_flags([name])} does not go with {switch} {value}.")


class OutputFile(click.ParamType):
    """A file that can be written, as far as that can be told before the work is done."""

    name = "file"

    def __init__(self, *endings: str) -> None:
        self.endings = endings

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path, if its ending is one of ours and its folder exists and can be written to."""
        path = Path(value)
        if path.suffix not in self.endings:
            self.fail(f"{value!r} must end in {' or '.join(self.endings)}.", param, ctx)
        if not path.parent.is_dir():
            self.fail(f"{value!r} must be in an existing folder.", param, ctx)
        if not os.access(path.parent, os.W_OK):
            self.fail(f"{value!r} must be in a folder that can be written to.", param, ctx)
        if path.is_dir():
            self.fail(f"{value!r} is a folder.", param, ctx)
        return path


def common_options(command: Command) -> Command:
    """Give ``command`` the options --device and --progress."""
    command = click.option(
        "--progress/--no-progress", default=None, help="Bar on standard error. Default: only on a terminal."
    )(command)
    return click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)(command)


def check_device(device: str) -> None:
    """Raise if there is no such device."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("--device cuda needs a GPU that PyTorch can use, there is none.")


def read_features(file: Path, *outputs: Path | None) -> "Features":
    """The feature file, which none of the outputs may overwrite."""
    from vireid.data.features import load_features

    for output in outputs:
        if output is not None and output.exists() and output.samefile(file):
            raise click.UsageError(f"{output} is the feature file: name another output.")
    return load_features(file)


@contextmanager
def bar(total: int, what: str, wanted: bool | None) -> Iterator[Any]:
    """A tqdm bar of ``total`` steps on standard error; ``wanted`` None: only on a terminal."""
    from tqdm import tqdm

    with tqdm(total=total, desc=what, disable=None if wanted is None else not wanted, leave=False) as shown:
        yield shown
