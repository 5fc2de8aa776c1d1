"""The report of an evaluation: each trial, means, deviations and intervals, as a table, JSON, CSV or LaTeX."""

import csv
import io
import json
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vireid._checks import check_path
from vireid._files import check_file, check_output, parse_json, written_whole
from vireid.metrics import RankMetrics
from vireid.protocols._report_file import part, read_row
from vireid.protocols._report_row import (
    METRICS,
    Parameter,
    QueryResults,
    ReportRow,
    check_all,
    check_metrics,
    check_text,
    escaped,
)
from vireid.protocols.names import Direction

__all__ = ["METRICS", "QueryResults", "Report", "ReportRow"]

_WIDTH = 79  # columns of a printed report


@dataclass(frozen=True)
class Report:
    """Results on one data set: printed as a table, saved as JSON or CSV, joined with ``+``.

    Attributes:
        dataset: data set and protocol, e.g. "SYSU-MM01 all single-shot official".
        rows: one `ReportRow` for each direction, feature and re-ranking.

    Raises:
        TypeError: for values of another type; `from_metrics` makes a report of `vireid.metrics.RankMetrics`.
    """

    dataset: str
    rows: tuple[ReportRow, ...]

    def __post_init__(self) -> None:
        check_text("dataset", self.dataset)
        hint = "; Report.from_metrics takes RankMetrics"
        object.__setattr__(self, "rows", check_all("rows", self.rows, ReportRow, hint))

    @staticmethod
    def from_metrics(
        metrics: Sequence[RankMetrics],
        dataset: str = "own data",
        *,
        direction: Direction = "infrared_to_visible",
        features_name: str = "backbone",
        rerank_name: str = "none",
        uses: str | None = None,
        parameters: Mapping[str, Parameter] | None = None,
        same_queries: bool = True,
    ) -> "Report":
        """Make a report of one row from the results of `vireid.metrics.rank_metrics` or a streaming metric.

        Args:
            metrics: one per trial.
            dataset: name of the data and the protocol.
            direction: query to gallery.
            features_name: name of the features.
            rerank_name: name of the re-ranking, "none" without.
            uses: data used to rank a query, as in `ReportRow`. Default: "query" without a re-ranking, else "unknown".
            parameters: of the re-ranking.
            same_queries: the trials rank the same queries in the same order, as SYSU-MM01's and LLCM's do, which the
                intervals rest on; False: each has its own, as RegDB's.

        Raises:
            ValueError: for no result, results without a valid query or, with ``same_queries``, of different numbers of
                queries, or an unknown direction or ``uses``.
            TypeError: for anything but a sequence of `RankMetrics`.

        Example:
            >>> from vireid.metrics import rank_metrics
            >>> ids = torch.arange(4) // 2
            >>> found = rank_metrics(torch.eye(4), ids, ids)
            >>> Report.from_metrics([found, found], "own cameras").rows[0].mean["mAP"] == 100 * found.mAP
            True
        """
        check_all("metrics", metrics, RankMetrics)
        if not metrics:
            raise ValueError("metrics must hold the results of one trial or more, got none")
        check_text("features_name", features_name)
        check_text("rerank_name", rerank_name)
        trials = tuple(
            {f"rank{r}": 100 * m.rank(r) for r in (1, 5, 10, 20)} | {"mAP": 100 * m.mAP, "mINP": 100 * m.mINP}
            for m in metrics
        )
        cmcs = tuple(tuple(torch.as_tensor(m.cmc).tolist()) for m in metrics)
        fields = ("first_match", "average_precision", "inverse_negative_penalty")
        results = [[torch.as_tensor(getattr(m, name)).cpu().numpy() for name in fields] for m in metrics]
        if same_queries and len({len(first) for first, *_ in results}) > 1:
            counts = ", ".join(str(len(first)) for first, *_ in results)
            raise ValueError(f"same_queries must be False for trials of different numbers of queries, got {counts}")
        groups = [results] if same_queries and results else [[one] for one in results]
        queries = tuple(QueryResults(*(np.stack(x) for x in zip(*group, strict=True))) for group in groups)
        uses = ("query" if rerank_name == "none" else "unknown") if uses is None else uses
        names = (direction, features_name, rerank_name, uses)
        return Report(dataset, (ReportRow(*names, trials, cmcs, {} if parameters is None else parameters, queries),))

    @staticmethod
    def merge(reports: Sequence["Report"]) -> "Report":
        """Join reports of one data set; trials of one direction, features and re-ranking share a row.

        RegDB's ten trials are ten models: evaluate each and merge the ten reports. Joined trials count as trials of
        different queries; the row has intervals if all of them hold per-query results.

        Raises:
            ValueError: for no report, or reports of different data sets or protocols.
        """
        check_all("reports", reports, Report)
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

    def to_dict(self, *, per_query: bool = False) -> dict[str, object]:
        """Return ``{"dataset": …, "rows": […]}``, with `ReportRow.to_dict` of each row."""
        return {"dataset": self.dataset, "rows": [row.to_dict(per_query=per_query) for row in self.rows]}

    def curves(self) -> dict[str, list[float]]:
        """Return the CMC curve of each row by its direction and method, as `vireid.plots.cmc_curves` draws them."""
        return {f"{row.direction.replace('_', ' ')}, {row.title}": row.cmc for row in self.rows}

    def to_latex(self, metrics: Sequence[str] = ("rank1", "mAP"), *, std: bool = False) -> str:
        r"""Return a ``tabular`` for the package booktabs, one line per row; a column shows the direction if it differs.

        Args:
            metrics: some of `METRICS`, in order.
            std: add the sample standard deviations over the trials.

        Raises:
            ValueError: for an unknown metric.
            TypeError: for ``metrics`` that are one string.
        """
        check_metrics(metrics)
        directed = len({row.direction for row in self.rows}) > 1
        titles = [m.replace("rank", "Rank-") for m in metrics]
        lines = [
            rf"\begin{{tabular}}{{{'l' * (2 + directed)}{'r' * len(metrics)}}}",
            r"\toprule",
            " & ".join(["Direction"] * directed + ["Method", "Uses", *titles]) + r" \\",
            r"\midrule",
            *(
                f"{escaped(row.direction.replace('_', ' '))} & " * directed + row.to_latex(metrics, std=std)
                for row in self.rows
            ),
            r"\bottomrule",
            r"\end{tabular}",
        ]
        return "\n".join(lines)

    def save(self, path: str | os.PathLike[str], *, per_query: bool = False) -> None:
        """Write the report whole or not at all.

        Args:
            path: "*.json" holds `to_dict`, which `load` reads; "*.csv" has one line per row: names, means, number of
                trials, deviations, ends of the intervals, and numbers of queries and of those with a true match (empty
                if unknown; one number, or one per trial if they differ).
            per_query: only JSON: save each query's results too, about 50 bytes per query and trial. From them a loaded
                report can compute any interval.

        Raises:
            ValueError: for another ending, or ``per_query`` with CSV.
            FileNotFoundError: if the folder does not exist.
        """
        path = check_output(path, ".json", ".csv")
        if path.suffix == ".json":
            text = json.dumps(self.to_dict(per_query=per_query), indent=None if per_query else 1) + "\n"
        elif per_query:
            raise ValueError(f"per_query must be False unless path ends in .json, got {str(path)!r}")
        else:
            text = self._csv()
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

        The file holds the mean of the trials' CMC curves, which each trial gets. Intervals are the saved ones; others
        need ``save(…, per_query=True)``.

        Args:
            path: "*.json".

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it holds anything but such a report; the message names the file and the fault.
        """
        path = check_path("path", path)
        check_file(path, "path must be a saved report")
        try:
            content = parse_json(path.read_text(encoding="utf-8"))
            rows = part(content, "rows", list)
            return Report(part(content, "dataset", str), tuple(read_row(row) for row in rows))
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(f"path must be a report saved as JSON, cannot read {str(path)!r}: {error}") from error

    def __str__(self) -> str:
        known = any(row.intervals is not None for row in self.rows)
        below = "; 95 %: bootstrap over queries" if known else ""
        lines = [f"{self.dataset}, percent{below}", " " * 16 + "".join(f"{name:>9}" for name in METRICS)]
        for row in self.rows:
            count = "1 trial" if len(row.trials) == 1 else f"{len(row.trials)} trials"
            name = f"{row.direction}: {row.title}; uses {row.uses}; {count}"
            lines += textwrap.wrap(name, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)
            figures = {"mean": row.mean} | ({"± over trials": row.std} if len(row.trials) > 1 else {})
            if row.intervals is not None:
                for i, end in enumerate(("from", "to")):
                    figures[f"95 % {end}"] = {name: ends[i] for name, ends in row.intervals.items()}
            for title, values in figures.items():
                lines.append(f"  {title:14}" + "".join(f"{values[name]:9.2f}" for name in METRICS))
        for row in self.rows:
            lines += textwrap.wrap(_left_out(row), _WIDTH, subsequent_indent="  ", break_on_hyphens=False)
        return "\n".join(lines)


def _left_out(row: ReportRow) -> str:
    """Return how many queries have no true match, as text; empty if all have one or the number is unknown."""
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
