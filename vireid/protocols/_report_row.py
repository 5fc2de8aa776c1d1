"""A row of a report: its trials, means, deviations, intervals over the queries, and its LaTeX."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import numpy as np

from vireid._checks import check_count, check_number, check_option
from vireid.protocols.names import DIRECTIONS

METRICS = ("rank1", "rank5", "rank10", "rank20", "mAP", "mINP")
"""Metrics of each trial, in percent."""

USES = ("query", "gallery", "transductive", "unknown")
LEVEL, RESAMPLES, SEED = 0.95, 2000, 0  # of the intervals that are printed and saved
_BLOCK = 2**20  # queries drawn at once
_ESCAPES = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)

Item = TypeVar("Item")
Parameter: TypeAlias = bool | int | float | str | None


def escaped(text: str) -> str:
    """Return ``text`` with LaTeX's special characters escaped."""
    return text.translate(_ESCAPES)


@dataclass(frozen=True, eq=False)
class QueryResults:
    """Results of each query in T trials that share their queries; a query without a true match has 0 and NaN.

    Attributes:
        first_match: (T, Nq) integers, rank of the first true match, from 1.
        average_precision: (T, Nq) shares in [0, 1].
        inverse_negative_penalty: (T, Nq) shares in [0, 1].

    Raises:
        ValueError: for arrays that are not of one shape (T, Nq), or if no query of a trial has a true match.
        TypeError: for ranks that are no integers, or shares that are not floating point.
    """

    first_match: np.ndarray
    average_precision: np.ndarray
    inverse_negative_penalty: np.ndarray

    def __post_init__(self) -> None:
        shapes = [np.shape(x) for x in (self.first_match, self.average_precision, self.inverse_negative_penalty)]
        if len(set(shapes)) > 1 or len(shapes[0]) != 2:
            raise ValueError(f"{', '.join(vars(self))} must be of one shape (T, Nq), got {', '.join(map(str, shapes))}")
        for (name, x), kinds in zip(vars(self).items(), ("iu", "f", "f"), strict=True):
            if not isinstance(x, np.ndarray) or x.dtype.kind not in kinds:
                found = getattr(x, "dtype", type(x).__name__)
                raise TypeError(f"{name} must be an array of {'integers' if kinds == 'iu' else 'floats'}, got {found}")
        if not (self.first_match > 0).any(1).all():
            raise ValueError("first_match must hold a query with a true match in each trial")

    def __len__(self) -> int:
        return len(self.first_match)

    def to_dict(self) -> dict[str, list[list[float | None]]]:
        """Return each array as nested lists, None for NaN."""
        return {name: np.where(np.isnan(x), np.array(None), x).tolist() for name, x in vars(self).items()}


@dataclass(frozen=True)
class ReportRow:
    """Results of one direction, feature and re-ranking, trial by trial.

    Attributes:
        direction: "infrared_to_visible" or "visible_to_infrared": query to gallery.
        features: name of the features that were compared.
        rerank: name of the re-ranking, "none" without.
        uses: data used to rank a query: "query" (only itself), "gallery", "transductive" (other queries too) or
            "unknown", as the re-ranking's ``uses`` says. Tables in print often mix the three.
        trials: one dict per trial with the metrics rank1, rank5, rank10, rank20, mAP, mINP in percent.
        cmcs: one CMC curve per trial, shares in [0, 1]. Their lengths may differ.
        parameters: the re-ranking's parameters, if known.
        queries: per-query results, needed for intervals; may be empty. One `QueryResults` per set of queries, in the
            order of ``trials``: SYSU-MM01 has one of ten trials, RegDB ten of one.
        saved_intervals: intervals of a report saved without per-query results, percent.
        saved_counts: its `query_counts`.

    Raises:
        ValueError: for an unknown direction or ``uses``, no trial, a metric that is missing, a number that is not
            finite, or curves or ``queries`` of another number of trials.
        TypeError: for values of another type.
    """

    direction: str
    features: str
    rerank: str
    uses: str
    trials: tuple[dict[str, float], ...]
    cmcs: tuple[tuple[float, ...], ...]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    queries: tuple[QueryResults, ...] = field(default=(), compare=False, repr=False)
    saved_intervals: dict[str, tuple[float, float]] | None = field(default=None, compare=False, repr=False)
    saved_counts: tuple[tuple[int, int], ...] | None = field(default=None, compare=False, repr=False)
    _resampled: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_option("direction", self.direction, DIRECTIONS)
        check_option("uses", self.uses, USES)
        for name in ("features", "rerank"):
            check_text(name, getattr(self, name))
        for name, kind in (("trials", Mapping), ("cmcs", Sequence), ("queries", QueryResults)):
            object.__setattr__(self, name, check_all(name, getattr(self, name), kind))
        if not isinstance(self.parameters, Mapping):
            raise TypeError(f"parameters must be a dict, got {type(self.parameters).__name__}")
        if not self.trials or len(self.cmcs) != len(self.trials):
            raise ValueError(f"trials and cmcs must hold one or more, got {len(self.trials)} and {len(self.cmcs)}")
        for trial in self.trials:
            if set(trial) != set(METRICS):
                raise ValueError(f"trials must hold the metrics {', '.join(METRICS)}, got {', '.join(map(str, trial))}")
        plain = tuple({name: _finite(name, trial[name]) for name in METRICS} for trial in self.trials)
        object.__setattr__(self, "trials", plain)
        curves = [np.asarray(cmc) for cmc in self.cmcs]
        if not all(c.ndim == 1 and c.size and c.dtype.kind in "iuf" and np.isfinite(c).all() for c in curves):
            raise ValueError("cmcs must be curves of one finite number or more")
        for name, value in self.parameters.items():
            if not isinstance(value, bool | int | float | str | None):
                raise TypeError(f"parameters must be numbers or str, got {name}={value!r}")
            if isinstance(value, float):
                _finite(f"parameters[{name!r}]", value)
        if self.queries and sum(map(len, self.queries)) != len(self.trials):
            count = sum(map(len, self.queries))
            raise ValueError(f"queries must be of the {len(self.trials)} trials, got results of {count}")

    @property
    def method(self) -> str:
        """Return the re-ranking's name with its parameters, such as "aim (k1=4, k2=1)"."""
        given = ", ".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"{self.rerank} ({given})" if given else self.rerank

    @property
    def title(self) -> str:
        """Return the names of features and re-ranking, such as "backbone + aim (k1=4, k2=1)"."""
        return self.features if self.rerank == "none" else f"{self.features} + {self.method}"

    @property
    def mean(self) -> dict[str, float]:
        """Return each metric's mean over the trials, percent."""
        return {name: float(np.mean([t[name] for t in self.trials])) for name in METRICS}

    @property
    def std(self) -> dict[str, float]:
        """Return each metric's sample standard deviation over the trials (n - 1), percent; 0 for a single trial."""
        if len(self.trials) == 1:
            return dict.fromkeys(METRICS, 0.0)
        return {name: float(np.std([t[name] for t in self.trials], ddof=1)) for name in METRICS}

    @property
    def query_counts(self) -> tuple[tuple[int, int], ...] | None:
        """Return (queries, those with a true match) of each trial, None if unknown. The metrics are over the latter."""
        if not self.queries:
            return self.saved_counts
        return tuple((len(first), int((first > 0).sum())) for q in self.queries for first in q.first_match)

    @property
    def cmc(self) -> list[float]:
        """Return the mean CMC curve over the trials, shares in [0, 1]; a shorter curve goes on at its last value."""
        length = max(len(c) for c in self.cmcs)
        return np.mean([np.pad(c, (0, length - len(c)), mode="edge") for c in self.cmcs], axis=0).tolist()

    def interval(
        self, metric: str = "mAP", *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = SEED
    ) -> tuple[float, float]:
        """Compute the percentile bootstrap interval of a metric's mean over the trials: how much the queries matter.

        Each resample draws as many queries as there are, with replacement, from those with a true match. Trials that
        share their queries (SYSU-MM01, LLCM) get the same draw, merged trials (RegDB's ten models) one each
        (our choice). The galleries and the models are not resampled: ``std`` shows what the trials add. Queries of one
        identity or camera are alike, which independent draws ignore: the interval is on the narrow side. The draws are
        those of ``numpy.random.default_rng(seed).integers``, the same for rows of the same queries.

        Args:
            metric: one of `METRICS`.
            level: share of the resamples inside, half of the rest on each side, in (0, 1).
            resamples: number of resamples.
            seed: of the draws.

        Returns:
            (low, high) in percent.

        Raises:
            ValueError: for an unknown metric, a level outside (0, 1), ``resamples`` below 1, or a row without
                per-query results (one loaded from a file saved without them has only the default intervals).
        """
        check_option("metric", metric, METRICS)
        resamples, seed = check_count("resamples", resamples), check_count("seed", seed, minimum=0)
        if not 0 < check_number("level", level) < 1:
            raise ValueError(f"level must be between 0 and 1, got {level}")
        if not self.queries:
            if self.saved_intervals is not None and (level, resamples, seed) == (LEVEL, RESAMPLES, SEED):
                return self.saved_intervals[metric]
            raise ValueError("interval needs per-query results, which this row does not hold: save with per_query=True")
        if (resamples, seed) not in self._resampled:
            self._resampled[resamples, seed] = _bootstrap(self.queries, resamples, seed)
        means = self._resampled[resamples, seed][:, METRICS.index(metric)]
        low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    @property
    def intervals(self) -> dict[str, tuple[float, float]] | None:
        """Return each metric's default `interval`; None if the row holds neither them nor per-query results."""
        if not self.queries and self.saved_intervals is None:
            return None
        return {name: self.interval(name) for name in METRICS}

    def to_dict(self, *, per_query: bool = False) -> dict[str, object]:
        """Return names, the mean of each metric, their ``std``, number of ``trials``, ``per_trial`` values and ``cmc``.

        ``queries`` and, of them, ``valid_queries`` (with a true match) are lists, one number per trial, or None.
        ``interval`` holds ``level``, ``resamples``, ``seed`` and [low, high] of each metric, or is None.

        Args:
            per_query: add ``per_query``, a dict of nested lists for each `QueryResults` (None where one is NaN).
        """
        known, counts = self.intervals, self.query_counts
        settings = {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED}
        content: dict[str, Any] = {
            "direction": self.direction,
            "features": self.features,
            "rerank": self.rerank,
            "parameters": dict(self.parameters),
            "uses": self.uses,
            **self.mean,
            "trials": len(self.trials),
            "queries": None if counts is None else [queries for queries, _ in counts],
            "valid_queries": None if counts is None else [valid for _, valid in counts],
            "std": self.std,
            "interval": None if known is None else settings | {name: list(known[name]) for name in METRICS},
            "per_trial": [dict(t) for t in self.trials],
            "cmc": self.cmc,
        }
        if per_query:
            content["per_query"] = [q.to_dict() for q in self.queries]
        return content

    def to_latex(self, metrics: Sequence[str] = ("rank1", "mAP"), *, std: bool = False, name: str | None = None) -> str:
        r"""Return a row of a table: method, the data it uses, and the means in percent.

        Args:
            metrics: some of `METRICS`, in order.
            std: add the sample standard deviation over the trials.
            name: the method's name; None: features and re-ranking with its parameters. Special characters are escaped.

        Raises:
            ValueError: for an unknown metric.
            TypeError: for ``metrics`` that are one string.

        Example:
            >>> values = dict.fromkeys(METRICS, 50.0) | {"rank1": 71.77, "mAP": 67.64}
            >>> row = ReportRow("infrared_to_visible", "CIFT_b", "none", "query", (values,), ((1.0,),))
            >>> print(row.to_latex())
            CIFT\_b & query & 71.77 & 67.64 \\
        """
        check_metrics(metrics)
        check_text("name", "" if name is None else name)
        mean, deviation = self.mean, self.std
        cells = [f"${mean[m]:.2f} \\pm {deviation[m]:.2f}$" if std else f"{mean[m]:.2f}" for m in metrics]
        return " & ".join([escaped(self.title if name is None else name), escaped(self.uses), *cells]) + r" \\"


def check_all(name: str, values: Sequence[Item], kind: type[object], hint: str = "") -> tuple[Item, ...]:
    """Return ``values`` as a tuple; raise unless it is a sequence of ``kind``, itself no str."""
    several = isinstance(values, Sequence) and not isinstance(values, str)
    for value in values if several else (values,):
        if not (several and isinstance(value, kind)):
            raise TypeError(f"{name} must be a sequence of {kind.__name__}, got {type(value).__name__}{hint}")
    return tuple(values)


def check_text(name: str, value: object) -> None:
    """Raise unless ``value`` is a str."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {value!r}")


def _finite(name: str, value: object) -> float:
    number = check_number(name, value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value}")
    return number


def check_metrics(metrics: Sequence[str]) -> None:
    """Raise unless ``metrics`` are some of `METRICS`."""
    for name in check_all("metrics", metrics, str):
        check_option("metrics", name, METRICS)


def _bootstrap(queries: Sequence[QueryResults], resamples: int, seed: int) -> np.ndarray:
    """Return the means over all trials in percent, (resamples, metrics), of queries drawn with replacement."""
    generator = np.random.default_rng(seed)
    total = np.zeros((resamples, len(METRICS)))
    for results in queries:
        matched = (results.first_match > 0).any(0)
        first, ap, inp = (
            x[:, matched] for x in (results.first_match, results.average_precision, results.inverse_negative_penalty)
        )
        valid = first > 0
        trials, count = valid.shape
        ranked = [(first <= r) & valid for r in (1, 5, 10, 20)]
        values = np.stack([*ranked, *(np.where(valid, x, 0) for x in (ap, inp)), valid]).astype(np.float64)
        values = values.reshape(-1, count).T
        step = max(1, _BLOCK // count)
        for start in range(0, resamples, step):
            rows = min(step, resamples - start)
            drawn = generator.integers(0, count, (rows, count)) + count * np.arange(rows)[:, None]
            times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
            sums = (times.astype(np.float64) @ values).reshape(rows, -1, trials)
            # Every drawn query has a match in some trial; a trial without one is left out of the resample's mean.
            there = sums[:, -1:] > 0
            shares = np.divide(sums[:, :-1], sums[:, -1:], out=np.zeros_like(sums[:, :-1]), where=there)
            total[start : start + rows] += trials * shares.sum(2) / there.sum(2)
    return 100 * total / sum(map(len, queries))
