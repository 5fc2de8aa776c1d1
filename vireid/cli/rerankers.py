"""The re-rankers as options of a command: --rerank and the settings of each method."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from vireid.cli.options import Command, flags, grouped
from vireid.cli.signatures import NEEDED, keyword_arguments

if TYPE_CHECKING:  # imported where they are used: the help needs no torch
    from torch import Tensor

METHODS = {
    "aim": "AIM",
    "sim": "SIM",
    "query_expansion": "QueryExpansion",
    "k_reciprocal": "KReciprocal",
    "gnn": "GNN",
    "ecn": "ECN",
    "cmkr": None,
    "mser": None,
}
"""Functions of `vireid.rerank`, each in the file of its name, and the classes that rank a query with the gallery only.

A function with the setting ``queries`` is transductive unless it is "alone".
"""

_LEFT_OUT = {"top", "use_query_relations", "query_spectra", "gallery_spectra"}  # no settings of a ranking of one file
_BLOCK = 256  # queries between two steps of a bar


class CountOrAll(click.IntRange):
    """An integer of at least 1, or all."""

    name = "integer or all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, or "all"."""
        return value if value == "all" else super().convert(value, param, ctx)


_OPTIONS: dict[str, tuple[click.ParamType, str]] = {
    "k1": (CountOrAll(min=1), "Neighbors of the affinities or the graph; aim also takes all, the whole gallery."),
    "k2": (click.IntRange(min=1), "Neighbors averaged over (sim: in a gallery image's set)."),
    "k3": (click.IntRange(min=0), "Gallery images among the k2; unless given, as they come."),
    "neighbors": (
        click.Choice(["joint", "constrained", "extended", "divided"]),
        "Images of which modality may be neighbors.",
    ),
    "queries": (click.Choice(["all", "alone"]), "Rank each query with all others, or alone with the gallery."),
    "t": (click.IntRange(min=1), "Nearest images of the neighborhood."),
    "q": (click.IntRange(min=1), "Nearest images of each of these."),
    "k": (click.IntRange(min=1), "Places of a ranking that are compared."),
    "metric": (click.Choice(["rank", "cosine"]), "Distance of rankings or of features."),
    "variant": (click.Choice(["paper", "released"]), "Equation of the paper, or of the authors' code."),
    "lambda_value": (click.FloatRange(0, 1), "Weight of the original distance."),
    "layers": (click.IntRange(min=1), "Rounds of propagation."),
    "alpha": (click.FloatRange(min=0), "Exponent of the weights."),
    "n": (click.IntRange(min=1), "Gallery images that join the query."),
}


def settings_of(method: str) -> dict[str, Any]:
    """Return the settings of a method with their defaults, `NEEDED` for one that must be given."""
    found = {} if method == "none" else keyword_arguments(f"rerank/{method}.py", method)
    return {name: argument.default for name, argument in found.items() if name not in _LEFT_OUT}


@dataclass(frozen=True)
class Reranking:
    """A re-ranking that was asked for.

    Attributes:
        method: one of `METHODS`, "none" (cosine distance), or None if not given.
        given: the settings that were given; k1 may be "all".
    """

    method: str | None = None
    given: dict[str, Any] = field(default_factory=dict)

    def completed(self, dataset: str | None = None, shots: str | None = None) -> "Reranking":
        """Return the re-ranking with all of its settings: those given, of AIM the paper's, the defaults.

        Args:
            dataset: whose k1 and k2 of AIM are taken; LLCM, which the paper has not, takes RegDB's (our choice).
            shots: of SYSU-MM01.

        Raises:
            click.UsageError: for a setting that the method does not have, or one that it needs and that is not known.
        """
        method = self.method or "none"
        settings = settings_of(method)
        for name in self.given:
            if name not in settings:
                has = f"its options are {flags(settings)}" if settings else "it has no options"
                raise click.UsageError(f"{flags([name])} does not go with --rerank {method}: {has}.")
        if self.given.get("k1") == "all" and method != "aim":
            raise click.UsageError(f"--k1 all does not go with --rerank {method}, only with aim.")
        if method == "aim" and dataset is not None:
            from vireid.rerank import AIM_SETTINGS

            multi = "sysu_multi_shot" if shots == "10" else "sysu_single_shot"
            settings |= AIM_SETTINGS[multi if dataset == "sysu" else "regdb"]
        settings |= self.given
        missing = [name for name, value in settings.items() if value is NEEDED]
        if missing:
            hint = "See vireid evaluate --help for the paper's values."
            raise click.UsageError(f"--rerank {method} needs {flags(missing)}. {hint}")
        return Reranking(method, {name: value for name, value in settings.items() if value is not None})

    def __str__(self) -> str:
        shown = ", ".join(f"{name}={value}" for name, value in self.given.items())
        return f"{self.method} ({shown})" if shown else str(self.method)

    @property
    def _keywords(self) -> dict[str, Any]:
        return {name: None if (name, value) == ("k1", "all") else value for name, value in self.given.items()}

    def _fitted(self) -> Any:
        """Return a re-ranker to fit to a gallery, None if the method is a transductive one."""
        from vireid import rerank

        kind = METHODS.get(str(self.method))
        if kind is None or self.given.get("queries") == "all":
            return None
        return getattr(rerank, kind)(**{name: x for name, x in self._keywords.items() if name != "queries"})

    def function(self, after: Callable[[], Any] = lambda: None) -> Callable[..., Any]:
        """Return (query, gallery) -> distance (Nq, Ng) that says its name, ``uses`` and settings, then calls ``after``.

        A report reads what it says; ``after`` may move a bar.
        """
        from vireid import rerank
        from vireid.protocols._protocol import compare

        function: Callable[..., Any] = getattr(rerank, str(self.method), compare)
        fitted = self._fitted()

        def ranked(query: "Tensor", gallery: "Tensor") -> Any:
            distance = fitted(query, gallery) if fitted else function(query, gallery, **self._keywords)
            after()
            return distance

        ranked.__name__ = str(self.method)
        vars(ranked).update(uses=getattr(fitted or function, "uses", "query"), settings=self.given)
        return ranked

    def nearest(self, query: "Tensor", gallery: "Tensor", top: int) -> Iterator[tuple[Any, Any]]:
        """Return distances and gallery indices (b, top) block by block of queries, which may interact in one only."""
        from vireid import rerank
        from vireid.neighbors import topk

        if self.method == "none":
            for block in query.split(_BLOCK):
                values, indices = topk(block, gallery, top)
                yield 1 - values, indices
        elif fitted := self._fitted():
            fitted.fit(gallery)
            for block in query.split(_BLOCK):
                yield fitted.topk(block, top)
        else:
            yield getattr(rerank, str(self.method))(query, gallery, **self.given, top=top)


def rerank_options(
    *, required: bool = False, text: str = "", without: Collection[str] = ()
) -> Callable[[Command], Command]:
    """Give a command --rerank and an option for each setting but ``without``; it is called with one ``reranking``."""
    alone = [m for m in METHODS if "queries" in settings_of(m)]
    others = [m for m, fitted in METHODS.items() if m in alone or not fitted]
    text += f" {', '.join(m for m in METHODS if m not in others)}: a query with the gallery only. "
    text += f"{', '.join(others)}: transductive, with the other queries too"
    text += "." if "queries" in without else f" ({', '.join(alone)}: unless --queries alone)."

    choice = click.Choice(["none", *METHODS])
    options = [click.option("--rerank", type=choice, required=required, help=text.strip())]
    names = [name for name in _OPTIONS if name not in without]
    for name in names:
        kind, what = _OPTIONS[name]
        takers = {method: settings_of(method)[name] for method in METHODS if name in settings_of(method)}
        defaults = ", ".join(m if value in (NEEDED, None) else f"{m} [{value}]" for m, value in takers.items())
        options.append(click.option(flags([name]), name, type=kind, help=f"{what} For {defaults}."))

    def make(rerank: str | None, **given: Any) -> Reranking:
        return Reranking(rerank, {name: value for name, value in given.items() if value is not None})

    return lambda command: grouped(command, "reranking", make, ["rerank", *names], *options)
