"""Table of all public callables with a maker of valid arguments for each: `CALLS`.

A name is that of a class, of a function or, with the class before it, of a public method.
"""

import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.reliability.draw import Draw

Maker = Callable[[Draw, Path], tuple[Callable[..., Any], dict[str, Any]]]
"""(draw, folder of `make_world`) -> a function and valid arguments by name."""

PARTS = (
    *("vireid", "vireid.cli", "vireid.data", "vireid.losses", "vireid.metrics", "vireid.models", "vireid.neighbors"),
    *("vireid.nn", "vireid.ot", "vireid.plots", "vireid.protocols", "vireid.rerank", "vireid.training"),
)


@dataclass(frozen=True)
class Call:
    """A public callable.

    Attributes:
        name: such as "vireid.rerank.AIM.fit".
        make: a maker of the function and its arguments.
        weight: how often it is drawn.
        comparable: whether float32 and float64 are compared.
        tolerance: of that comparison.
        any_size: its features may be of any size, denormal numbers and 10³⁷ included; those of others up to 10¹⁵.
        free: arguments that may be anything.
        holder: it only holds what it is given, and checks little.
    """

    name: str
    make: Maker
    weight: float = 1.0
    comparable: bool = True
    tolerance: float = 1e-3
    any_size: bool = False
    free: tuple[str, ...] = ()
    holder: bool = False


CALLS: dict[str, Call] = {}


def call(*names: str, **options: Any) -> Callable[[Any], Any]:
    """Enter a maker into the table under ``names``, with the options of `Call`; one of several is told its name."""

    def enter(make: Any) -> Any:
        several = "name" in inspect.signature(make).parameters and len(names) > 1
        for name in names:
            one = functools.partial(make, name=name.rpartition(".")[2]) if several else make
            CALLS[f"vireid.{name}"] = Call(f"vireid.{name}", one, **options)
        return make

    return enter


def method(part: str, kind: str, name: str, make: Maker, arguments: Callable[[Draw, Any, Path], dict[str, Any]],
           **options: Any) -> None:  # fmt: skip
    """Enter a method of an object that ``make`` constructs."""

    def bound(draw: Draw, world: Path) -> tuple[Callable[..., Any], dict[str, Any]]:
        function, given = make(draw, world)
        made = function(**given)
        return getattr(made, name), arguments(draw, made, world)

    call(f"{part}.{kind}.{name}", **options)(bound)


# Callables without a maker, and why.
LEFT_OUT = {
    "vireid.data.ImageDataset": "abstract: the data sets are its subclasses",
    "vireid.data.ImageDataset.preload": "abstract: the data sets are its subclasses",
    "vireid.data.cache_heatmaps": "needs the weights of a pose estimator",
    "vireid.data.estimate_heatmaps": "needs the weights of a pose estimator",
    "vireid.metrics.RankMetrics": "holds results",
    **{
        f"vireid.nn.FeatureTransfer{name}": "abstract: H2FT and GFT are its subclasses"
        for name in ("", ".affinities", ".distance", ".embed", ".forward", ".prepare_gallery", ".transfer")
    },
    "vireid.cli.main": "reads the command line; the commands' own tests try their options",
    "vireid.training.launch": "starts processes",
}


def public_callables() -> Iterator[tuple[str, Any]]:
    """Yield (name, object) of everything that a user can call: functions, classes and their own public methods."""
    for part in PARTS:
        module = importlib.import_module(part)
        for name in getattr(module, "__all__", ()):
            found = getattr(module, name)
            if not callable(found) or (inspect.isclass(found) and issubclass(found, tuple)):
                continue  # constants, and named tuples that hold results
            yield f"{part}.{name}", found
            if inspect.isclass(found):
                for key, _ in inspect.getmembers(found):
                    static = inspect.getattr_static(found, key)
                    own = getattr(getattr(static, "__func__", static), "__module__", None) or ""
                    is_method = inspect.isfunction(static) or isinstance(static, classmethod | staticmethod)
                    if is_method and own.startswith("vireid") and key != "extra_repr":
                        if not key.startswith("_") or key == "__call__":
                            yield f"{part}.{name}.{key}", getattr(found, key)


from benchmarks.reliability import _files, _learning, _ranking  # noqa: E402, F401 (they fill the table)
