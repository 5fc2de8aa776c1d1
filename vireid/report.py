"""The report of an evaluation: results trial by trial, their means and deviations, as a table, JSON or CSV."""

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vireid._files import written_whole

__all__ = ["METRICS", "Report", "ReportRow"]

METRICS = ("rank1", "rank5", "rank10", "rank20", "mAP", "mINP")
"""What a row holds of each trial, in percent."""


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
    """

    direction: str
    features: str
    rerank: str
    uses: str
    trials: tuple[dict[str, float], ...]
    cmcs: tuple[tuple[float, ...], ...]

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
    def cmc(self) -> list[float]:
        """Mean CMC curve over the trials, shares in [0, 1]; a shorter curve goes on at its last value."""
        length = max(len(c) for c in self.cmcs)
        return np.mean([np.pad(c, (0, length - len(c)), mode="edge") for c in self.cmcs], axis=0).tolist()

    def to_dict(self) -> dict[str, Any]:
        """Names, the mean of each metric, their ``std``, number of ``trials``, ``per_trial`` values and ``cmc``."""
        names = {"direction": self.direction, "features": self.features, "rerank": self.rerank, "uses": self.uses}
        return {
            **names,
            **self.mean,
            "trials": len(self.trials),
            "std": self.std,
            "per_trial": [dict(t) for t in self.trials],
            "cmc": self.cmc,
        }


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
        """Join reports of one data set; rows of one (direction, features, rerank, uses) get their trials appended.

        RegDB's ten trials are ten models: evaluate each and merge the ten reports.

        Raises:
            ValueError: for no report, or reports of different data sets or protocols.
        """
        if not reports:
            raise ValueError("reports must hold at least one report, got none")
        names = sorted({r.dataset for r in reports})
        if len(names) > 1:
            raise ValueError(f"reports must be of one data set and protocol, got {', '.join(map(repr, names))}")
        rows: dict[tuple[str, str, str, str], ReportRow] = {}
        for row in (row for report in reports for row in report.rows):
            key = (row.direction, row.features, row.rerank, row.uses)
            old = rows.get(key)
            rows[key] = ReportRow(*key, old.trials + row.trials, old.cmcs + row.cmcs) if old else row
        return Report(names[0], tuple(rows.values()))

    def __add__(self, other: "Report") -> "Report":
        return Report.merge([self, other]) if isinstance(other, Report) else NotImplemented

    def to_dict(self) -> dict[str, Any]:
        """``{"dataset": …, "rows": [{"direction", "features", "rerank", "uses", metrics, "trials", "std", …}]}``."""
        return {"dataset": self.dataset, "rows": [row.to_dict() for row in self.rows]}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report whole or not at all.

        Args:
            path: "*.json" holds `to_dict`; "*.csv" one line a row: names, means, number of trials, deviations.

        Raises:
            ValueError: for another ending.
            FileNotFoundError: if the folder does not exist.
        """
        path = Path(path)
        if path.suffix == ".json":
            text = json.dumps(self.to_dict(), indent=1) + "\n"
        elif path.suffix == ".csv":
            stream = io.StringIO()
            writer = csv.writer(stream, lineterminator="\n")
            std = [f"{name}_std" for name in METRICS]
            writer.writerow(["dataset", "direction", "features", "rerank", "uses", *METRICS, "trials", *std])
            for row in self.rows:
                names = [self.dataset, row.direction, row.features, row.rerank, row.uses]
                writer.writerow([*names, *row.mean.values(), len(row.trials), *row.std.values()])
            text = stream.getvalue()
        else:
            raise ValueError(f"path must end in .json or .csv, got {str(path)!r}")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"path must be in an existing folder, got {str(path)!r}")
        with written_whole(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def __str__(self) -> str:
        head = ["direction", "features", "re-ranking", "uses", *METRICS, "trials"]
        lines = [head]
        for row in self.rows:
            mean, std = row.mean, row.std
            cells = [f"{mean[n]:.2f}" + (f" ± {std[n]:.2f}" if len(row.trials) > 1 else "") for n in METRICS]
            lines.append([row.direction, row.features, row.rerank, row.uses, *cells, str(len(row.trials))])
        width = [max(len(line[i]) for line in lines) for i in range(len(head))]
        table = "\n".join("  ".join(c.ljust(w) for c, w in zip(line, width, strict=True)).rstrip() for line in lines)
        return f"{self.dataset} (percent, mean ± sample standard deviation over trials)\n{table}"
