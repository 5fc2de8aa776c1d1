"""The report of an evaluation: each trial, means, deviations and intervals, as a table, JSON, CSV or LaTeX."""

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vireid._checks import check_count, check_option
from vireid._files import check_file, written_whole
from vireid.protocols.names import DIRECTIONS

__all__ = ["METRICS", "QueryResults", "Report", "ReportRow"]

METRICS = ("rank1", "rank5", "rank10", "rank20", "mAP", "mINP")
"""What a row holds of each trial, in percent."""

_LEVEL, _RESAMPLES, _SEED = 0.95, 2000, 0  # of the intervals that are printed and saved
_USES = ("query", "gallery", "transductive", "unknown")
_BLOCK = 2**20  # queries drawn at once
_ESCAPES = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)


@dataclass(frozen=True, eq=False)
class QueryResults:
    """Results of each query in T trials that share their queries; a query without a true match has 0 and NaN.

    Attributes:
        first_match: (T, Nq) integers, rank of the first true match, from 1.
        average_precision: (T, Nq) shares in [0, 1].
        inverse_negative_penalty: (T, Nq) shares in [0, 1].

    Raises:
        ValueError: for arrays that are not of one shape (T, Nq), or if no query of a trial has a true match.
    """

    first_match: np.ndarray
    average_precision: np.ndarray
    inverse_negative_penalty: np.ndarray

    def __post_init__(self) -> None:
        shapes = [np.shape(x) for x in (self.first_match, self.average_precision, self.inverse_negative_penalty)]
        if len(set(shapes)) > 1 or len(shapes[0]) != 2:
            raise ValueError(f"the three arrays must be of one shape (T, Nq), got {', '.join(map(str, shapes))}")
        if not (self.first_match > 0).any(1).all():
            raise ValueError("first_match must hold a query with a true match in each trial")

    def __len__(self) -> int:
        return len(self.first_match)

    def to_dict(self) -> dict[str, list[list[float | None]]]:
        """Each array as nested lists, None for NaN."""
        return {name: np.where(np.isnan(x), np.array(None), x).tolist() for name, x in vars(self).items()}


@dataclass(frozen=True)
class ReportRow:
    """Results of one direction, feature and re-ranking, trial by trial.

    Attributes:
        direction: "infrared_to_visible" or "visible_to_infrared": query to gallery.
        features: name of the features that were compared.
        rerank: name of the re-ranking, "none" without.
        uses: what a query's ranking looks at beyond itself: "query" (nothing), "gallery", "transductive" (other
            queries too) or "unknown", as the re-ranking's ``uses`` says. Tables in print often mix the three.
        trials: one dict a trial with the metrics rank1, rank5, rank10, rank20, mAP, mINP in percent.
        cmcs: one CMC curve a trial, shares in [0, 1]. Their lengths may differ.
        parameters: the re-ranking's parameters, as far as they are known.
        queries: per-query results, which intervals need: one `QueryResults` for each set of queries, its trials
            together those of ``trials``, in order. SYSU-MM01 has one of ten trials, RegDB ten of one. May be empty.
        saved_intervals: the intervals that a report without per-query results was saved with, percent.
        saved_counts: its `query_counts`.

    Raises:
        ValueError: if ``queries`` are of another number of trials.
    """

    direction: str
    features: str
    rerank: str
    uses: str
    trials: tuple[dict[str, float], ...]
    cmcs: tuple[tuple[float, ...], ...]
    parameters: dict[str, Any] = field(default_factory=dict)
    queries: tuple[QueryResults, ...] = field(default=(), compare=False, repr=False)
    saved_intervals: dict[str, tuple[float, float]] | None = field(default=None, compare=False, repr=False)
    saved_counts: tuple[tuple[int, int], ...] | None = field(default=None, compare=False, repr=False)
    _resampled: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.queries and sum(map(len, self.queries)) != len(self.trials):
            count = sum(map(len, self.queries))
            raise ValueError(f"queries must be of the {len(self.trials)} trials, got results of {count}")

    @property
    def method(self) -> str:
        """The re-ranking's name with its parameters, such as "aim (k1=4, k2=1)"."""
        given = ", ".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"{self.rerank} ({given})" if given else self.rerank

    @property
    def mean(self) -> dict[str, float]:
        """Each metric's mean over the trials, percent."""
        return {name: float(np.mean([t[name] for t in self.trials])) for name in METRICS}

    @property
    def std(self) -> dict[str, float]:
        """Each metric's sample standard deviation over the trials (n - 1), percent; 0 for a single trial."""
        if len(self.trials) == 1:
            return dict.fromkeys(METRICS, 0.0)
        return {name: float(np.std([t[name] for t in self.trials], ddof=1)) for name in METRICS}

    @property
    def query_counts(self) -> tuple[tuple[int, int], ...] | None:
        """(queries, those with a true match) of each trial, None if unknown. The metrics are over the latter."""
        if not self.queries:
            return self.saved_counts
        return tuple((len(first), int((first > 0).sum())) for q in self.queries for first in q.first_match)

    @property
    def cmc(self) -> list[float]:
        """Mean CMC curve over the trials, shares in [0, 1]; a shorter curve goes on at its last value."""
        length = max(len(c) for c in self.cmcs)
        return np.mean([np.pad(c, (0, length - len(c)), mode="edge") for c in self.cmcs], axis=0).tolist()

    def interval(
        self, metric: str = "mAP", *, level: float = _LEVEL, resamples: int = _RESAMPLES, seed: int = _SEED
    ) -> tuple[float, float]:
        """Percentile bootstrap interval of a metric's mean over the trials, percent: how much the queries matter.

        Each resample draws as many queries as there are, with replacement, from those with a true match. Trials that
        share their queries (SYSU-MM01, LLCM) get the same draw, merged trials (RegDB's ten models) one each
        **[ours]**. The galleries and the models are not resampled: ``std`` shows what the trials add. Queries of one
        identity or camera are alike, which independent draws do not see: the interval is on the narrow side. The
        draws are those of ``numpy.random.default_rng(seed).integers`` and are made once; rows of the same queries
        get the same draws.

        Args:
            metric: one of `METRICS`.
            level: share of the resamples inside, half of the rest on each side, in (0, 1).
            resamples: number of resamples.
            seed: of the draws.

        Returns:
            (low, high) in percent.

        Raises:
            ValueError: for an unknown metric, a level outside (0, 1), ``resamples`` below 1, or a row without
                per-query results (one loaded from a file, unless saved with them, answers the defaults alone).
        """
        check_option("metric", metric, METRICS)
        check_count("resamples", resamples)
        check_count("seed", seed, minimum=0)
        if not 0 < level < 1:
            raise ValueError(f"level must be between 0 and 1, got {level}")
        if not self.queries:
            if self.saved_intervals is not None and (level, resamples, seed) == (_LEVEL, _RESAMPLES, _SEED):
                return self.saved_intervals[metric]
            raise ValueError("interval needs per-query results, which this row does not hold: save with per_query=True")
        if (resamples, seed) not in self._resampled:
            self._resampled[resamples, seed] = _bootstrap(self.queries, resamples, seed)
        means = self._resampled[resamples, seed][:, METRICS.index(metric)]
        low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    @property
    def intervals(self) -> dict[str, tuple[float, float]] | None:
        """Each metric's `interval` with its defaults; None where the row does not hold what they need."""
        if not self.queries and self.saved_intervals is None:
            return None
        return {name: self.interval(name) for name in METRICS}

    def to_dict(self, *, per_query: bool = False) -> dict[str, Any]:
        """Names, the mean of each metric, their ``std``, number of ``trials``, ``per_trial`` values and ``cmc``.

        ``queries`` and, of them, ``valid_queries`` (with a true match) are lists, a number a trial, or None if unknown.
        ``interval`` holds ``level``, ``resamples``, ``seed`` and [low, high] of each metric, or is None.

        Args:
            per_query: add ``per_query``, a dict of nested lists for each `QueryResults` (None where one is NaN).
        """
        known, counts = self.intervals, self.query_counts
        settings = {"level": _LEVEL, "resamples": _RESAMPLES, "seed": _SEED}
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
        r"""A table's line: method, what it uses, and the means in percent.

        Args:
            metrics: which of `METRICS`, in order.
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
        _check_metrics(metrics)
        if name is None:
            name = self.features if self.rerank == "none" else f"{self.features} + {self.method}"
        mean, deviation = self.mean, self.std
        cells = [f"${mean[m]:.2f} \\pm {deviation[m]:.2f}$" if std else f"{mean[m]:.2f}" for m in metrics]
        return " & ".join([name.translate(_ESCAPES), self.uses.translate(_ESCAPES), *cells]) + r" \\"


@dataclass(frozen=True)
class Report:
    """Results on one data set: printed as a table, saved as JSON or CSV, joined with ``+``.

    Attributes:
        dataset: data set and protocol, e.g. "SYSU-MM01 all single-shot official".
        rows: one `ReportRow` for each direction, feature and re-ranking.
    """

    dataset: str
    rows: tuple[ReportRow, ...]

    @staticmethod
    def merge(reports: Sequence["Report"]) -> "Report":
        """Join reports of one data set; trials of one direction, features and re-ranking become one row's.

        RegDB's ten trials are ten models: evaluate each and merge the ten reports. Joined trials count as trials of
        different queries; the row has intervals if all of them hold per-query results.

        Raises:
            ValueError: for no report, or reports of different data sets or protocols.
        """
        if not reports:
            raise ValueError("reports must hold at least one report, got none")
        names = sorted({r.dataset for r in reports})
        if len(names) > 1:
            raise ValueError(f"reports must be of one data set and protocol, got {', '.join(map(repr, names))}")
        rows: dict[tuple[str, ...], ReportRow] = {}
        for row in (row for report in reports for row in report.rows):
            key = (row.direction, row.features, row.method, row.uses)
            old = rows.get(key)
            rows[key] = row if old is None else _joined(old, row)
        return Report(names[0], tuple(rows.values()))

    def __add__(self, other: "Report") -> "Report":
        return Report.merge([self, other]) if isinstance(other, Report) else NotImplemented

    def to_dict(self, *, per_query: bool = False) -> dict[str, Any]:
        """``{"dataset": …, "rows": […]}``, each row as `ReportRow.to_dict` gives it."""
        return {"dataset": self.dataset, "rows": [row.to_dict(per_query=per_query) for row in self.rows]}

    def to_latex(self, metrics: Sequence[str] = ("rank1", "mAP"), *, std: bool = False) -> str:
        r"""A ``tabular`` for the package booktabs, a line a row; with a column for the direction if it differs.

        Args:
            metrics: which of `METRICS`, in order.
            std: add the sample standard deviations over the trials.

        Raises:
            ValueError: for an unknown metric.
            TypeError: for ``metrics`` that are one string.
        """
        _check_metrics(metrics)
        directed = len({row.direction for row in self.rows}) > 1
        titles = [m.replace("rank", "Rank-") for m in metrics]
        lines = [
            rf"\begin{{tabular}}{{{'l' * (2 + directed)}{'r' * len(metrics)}}}",
            r"\toprule",
            " & ".join(["Direction"] * directed + ["Method", "Uses", *titles]) + r" \\",
            r"\midrule",
            *(
                f"{row.direction.replace('_', ' ').translate(_ESCAPES)} & " * directed + row.to_latex(metrics, std=std)
                for row in self.rows
            ),
            r"\bottomrule",
            r"\end{tabular}",
        ]
        return "\n".join(lines)

    def save(self, path: str | os.PathLike[str], *, per_query: bool = False) -> None:
        """Write the report whole or not at all.

        Args:
            path: "*.json" holds `to_dict`, which `load` reads; "*.csv" one line a row: names, means, number of trials,
                deviations, the ends of the intervals and the numbers of queries and of those with a true match (empty
                where there are none; one number, or one a trial if they differ).
            per_query: JSON alone: save each query's results too, from which a loaded report can compute any interval;
                about 50 bytes a query and trial.

        Raises:
            ValueError: for another ending, or ``per_query`` with CSV.
            FileNotFoundError: if the folder does not exist.
        """
        path = Path(path)
        if path.suffix == ".json":
            text = json.dumps(self.to_dict(per_query=per_query), indent=None if per_query else 1) + "\n"
        elif path.suffix == ".csv":
            if per_query:
                raise ValueError(f"per_query must be False unless path ends in .json, got {str(path)!r}")
            text = self._csv()
        else:
            raise ValueError(f"path must end in .json or .csv, got {str(path)!r}")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"path must be in an existing folder, got {str(path)!r}")
        with written_whole(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def _csv(self) -> str:
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        more = [f"{name}_std" for name in METRICS] + [f"{name}_{end}" for name in METRICS for end in ("low", "high")]
        more += ["queries", "valid_queries"]
        writer.writerow(["dataset", "direction", "features", "rerank", "parameters", "uses", *METRICS, "trials", *more])
        for row in self.rows:
            given = " ".join(f"{name}={value}" for name, value in row.parameters.items())
            known = row.intervals
            ends = [""] * (2 * len(METRICS)) if known is None else [end for name in METRICS for end in known[name]]
            names = [self.dataset, row.direction, row.features, row.rerank, given, row.uses]
            counts = list(zip(*row.query_counts, strict=True)) if row.query_counts else [(), ()]
            numbers = [" ".join(map(str, c if len(set(c)) > 1 else c[:1])) for c in counts]
            writer.writerow([*names, *row.mean.values(), len(row.trials), *row.std.values(), *ends, *numbers])
        return stream.getvalue()

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Report":
        """Read a report that `save` wrote as JSON.

        The trials' CMC curves are not in the file: each becomes their mean. Means, deviations and intervals are those
        that were saved; other intervals need ``save(…, per_query=True)``.

        Args:
            path: "*.json".

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it holds anything but such a report; the message names the file and the fault.
        """
        path = Path(path)
        check_file(path, "path must be a saved report")
        try:
            content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
            rows = _part(content, "rows", list)
            return Report(_part(content, "dataset", str), tuple(_read_row(row) for row in rows))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"path must be a report saved as JSON, cannot read {str(path)!r}: {error}") from error

    def __str__(self) -> str:
        head = ["direction", "features", "re-ranking", "uses", *METRICS, "trials"]
        lines = [head]
        for row in self.rows:
            mean, std, known = row.mean, row.std, row.intervals
            cells = [f"{mean[n]:.2f}" + (f" ± {std[n]:.2f}" if len(row.trials) > 1 else "") for n in METRICS]
            lines.append([row.direction, row.features, row.method, row.uses, *cells, str(len(row.trials))])
            if known is not None:
                cells = [f"[{known[n][0]:.2f}, {known[n][1]:.2f}]" for n in METRICS]
                lines.append(["", "", "", "", *cells, ""])
        width = [max(len(line[i]) for line in lines) for i in range(len(head))]
        table = "\n".join("  ".join(c.ljust(w) for c, w in zip(line, width, strict=True)).rstrip() for line in lines)
        below = "; in brackets 95 % bootstrap interval over queries" if len(lines) > 1 + len(self.rows) else ""
        title = f"{self.dataset} (percent, mean ± sample standard deviation over trials{below})"
        return "\n".join([title, table, *(_left_out(row) for row in self.rows if _left_out(row))])


def _check_metrics(metrics: Sequence[str]) -> None:
    if isinstance(metrics, str):
        raise TypeError(f"metrics must be a sequence of names, got the string {metrics!r}")
    for name in metrics:
        check_option("metrics", name, METRICS)


def _left_out(row: ReportRow) -> str:
    """A line below the table that says how many queries have no true match; empty if all have or it is unknown."""
    queries, valid = (sum(c) for c in zip(*row.query_counts, strict=True)) if row.query_counts else (0, 0)
    if queries == valid:
        return ""
    all_trials = " (all trials together)" if len(row.trials) > 1 else ""
    name = f"{row.direction}, {row.features}, {row.method}"
    return f"{name}: {queries - valid} of {queries} queries{all_trials} have no true match and are left out"


def _joined(a: ReportRow, b: ReportRow) -> ReportRow:
    queries = a.queries + b.queries if a.queries and b.queries else ()
    counts = None if a.query_counts is None or b.query_counts is None else a.query_counts + b.query_counts
    trials, cmcs = a.trials + b.trials, a.cmcs + b.cmcs
    names = (a.direction, a.features, a.rerank, a.uses)
    return ReportRow(*names, trials, cmcs, a.parameters, queries, saved_counts=counts)


def _bootstrap(queries: Sequence[QueryResults], resamples: int, seed: int) -> np.ndarray:
    """(resamples, metrics) means over all trials in percent, of queries drawn with replacement."""
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


def _no_number(text: str) -> float:
    raise ValueError(f"expected a finite number, got {text}")


def _part(content: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """The entry ``name`` of a dict read from JSON, which must be of ``kind``."""
    if not isinstance(content, dict) or name not in content:
        raise ValueError(f"{name!r} is missing")
    if not isinstance(content[name], kind):
        raise ValueError(f"{name!r} must not be {json.dumps(content[name])[:60]}")
    return content[name]


def _numbers(name: str, values: Any, most: float) -> tuple[float, ...]:
    """Numbers from 0 to ``most``, as read from JSON."""
    if not isinstance(values, list) or not all(
        isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v <= most for v in values
    ):
        raise ValueError(f"{name!r} must hold numbers from 0 to {most:g}")
    return tuple(map(float, values))


def _read_row(content: Any) -> ReportRow:
    names = {name: _part(content, name, str) for name in ("direction", "features", "rerank", "uses")}
    for name, words in (("direction", DIRECTIONS), ("uses", _USES)):
        check_option(repr(name), names[name], words)
    parameters = _part(content, "parameters", dict) if "parameters" in content else {}
    if not all(isinstance(value, bool | int | float | str | None) for value in parameters.values()):
        raise ValueError("'parameters' must hold numbers and text alone")
    trials = []
    for trial in _part(content, "per_trial", list):
        values = [_part(trial, name, (int, float)) for name in METRICS]
        trials.append(dict(zip(METRICS, _numbers("per_trial", values, 100 + 1e-9), strict=True)))
    if not trials or len(trials) != _part(content, "trials", int):
        raise ValueError(f"'per_trial' must hold the values of {content['trials']} trials, got {len(trials)}")
    cmc = _numbers("cmc", _part(content, "cmc", list), 1 + 1e-9)
    if not cmc:
        raise ValueError("'cmc' is empty")
    if (np.diff(cmc) < -1e-9).any():
        raise ValueError("'cmc' must not fall")
    saved = None
    if content.get("interval") is not None:
        found = _part(content, "interval", dict)
        if any(found.get(k) != v for k, v in {"level": _LEVEL, "resamples": _RESAMPLES, "seed": _SEED}.items()):
            raise ValueError(f"'interval' must be of level {_LEVEL}, {_RESAMPLES} resamples, seed {_SEED}")
        saved = {}
        for name in METRICS:
            ends = _numbers("interval", _part(found, name, list), 100 + 1e-9)
            if len(ends) != 2 or ends[0] > ends[1]:
                raise ValueError(f"'interval' of {name} must be two ends in order, got {list(ends)}")
            saved[name] = (ends[0], ends[1])
    per_query = _part(content, "per_query", list) if "per_query" in content else []
    queries = tuple(_read_queries(part) for part in per_query)
    row = ReportRow(**names, trials=tuple(trials), cmcs=(cmc,) * len(trials), parameters=parameters, queries=queries,
                    saved_intervals=saved, saved_counts=_read_counts(content, len(trials)))  # fmt: skip
    _check_agreement(row, content)
    return row


def _read_counts(content: Any, trials: int) -> tuple[tuple[int, int], ...] | None:
    """Queries and valid queries of each trial; None where a report does not hold them."""
    if content.get("queries") is None and content.get("valid_queries") is None:
        return None
    counts = [_part(content, name, list) for name in ("queries", "valid_queries")]
    if not all(type(n) is int for c in counts for n in c) or not all(len(c) == trials for c in counts):
        raise ValueError(f"'queries' and 'valid_queries' must hold {trials} integers, one a trial")
    if not all(1 <= valid <= queries for queries, valid in zip(*counts, strict=True)):
        raise ValueError("'valid_queries' must be from 1 to 'queries'")
    return tuple(zip(*counts, strict=True))


def _check_agreement(row: ReportRow, content: Any) -> None:
    """Raise if what a file says of all trials is not what follows from each, or that not from the queries."""
    deviations = _part(content, "std", dict)
    for kind, saved, expected in (("mean", content, row.mean), ("std", deviations, row.std)):
        found = _numbers(kind, [_part(saved, name, (int, float)) for name in METRICS], 100 + 1e-9)
        for name, value in zip(METRICS, found, strict=True):
            if abs(value - expected[name]) > 1e-6:
                raise ValueError(f"the {kind} of {name} must be that of 'per_trial', {expected[name]:.6g}")
    if not row.queries:
        return
    if row.saved_counts not in (None, row.query_counts):
        raise ValueError("'queries' and 'valid_queries' must be those of 'per_query'")
    trial = iter(row.trials)
    for q in row.queries:
        for first, *shares in zip(q.first_match, q.average_precision, q.inverse_negative_penalty, strict=True):
            means = [(first[first > 0] <= r).mean() for r in (1, 5, 10, 20)] + [np.nanmean(x) for x in shares]
            if not np.allclose(100 * np.array(means), [*next(trial).values()], rtol=0, atol=1e-3):
                raise ValueError("'per_trial' must be the means of 'per_query'")


def _number_or_none(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and abs(value) <= 2**53)


def _read_queries(content: Any) -> QueryResults:
    names = ("first_match", "average_precision", "inverse_negative_penalty")
    for name in names:
        rows = _part(content, name, list)
        if not all(isinstance(row, list) and all(map(_number_or_none, row)) for row in rows):
            raise ValueError(f"{name!r} of 'per_query' must hold a number or null for each query and trial")
    first, *shares = (np.array(content[name], dtype=np.float64) for name in names)  # None becomes NaN
    if not ((first >= 0) & (first == np.floor(first))).all():
        raise ValueError("'first_match' must hold ranks from 1, or 0")
    results = QueryResults(first.astype(np.int64), *shares)
    if not all(np.where(first == 0, np.isnan(x), (x >= 0) & (x <= 1)).all() for x in shares):
        raise ValueError("'per_query' must hold shares from 0 to 1, null where 'first_match' is 0")
    return results
