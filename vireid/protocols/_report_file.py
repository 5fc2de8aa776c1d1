"""Read the rows of reports saved as JSON: keys and types are checked, figures only by `ReportRow`."""

import json
from types import UnionType
from typing import Any

import numpy as np

from vireid.protocols._report_row import LEVEL, METRICS, RESAMPLES, SEED, QueryResults, ReportRow

_SETTINGS = {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED}


def part(content: Any, name: str, kind: type | UnionType) -> Any:
    """Return the entry ``name`` of a dict read from JSON, which must be of ``kind``."""
    if not isinstance(content, dict) or name not in content:
        raise ValueError(f"{name!r} is missing")
    if not isinstance(content[name], kind):
        raise ValueError(f"{name!r} must not be {json.dumps(content[name])[:60]}")
    return content[name]


def _numbers(content: Any, name: str, length: int) -> tuple[float, ...]:
    """Return a list of ``length`` numbers."""
    values = part(content, name, list)
    if len(values) != length or not all(type(v) in (int, float) for v in values):
        count = f"{length} number{'s' * (length != 1)}"
        raise ValueError(f"{name!r} must hold {count}, got {json.dumps(values)[:60]}")
    return tuple(map(float, values))


def read_row(content: Any) -> ReportRow:
    """Return the row that `ReportRow.to_dict` wrote.

    Raises:
        ValueError, TypeError, OverflowError: for anything else.
    """
    names = {name: part(content, name, str) for name in ("direction", "features", "rerank", "uses")}
    parameters = part(content, "parameters", dict) if "parameters" in content else {}
    trials = tuple({name: part(t, name, object) for name in METRICS} for t in part(content, "per_trial", list))
    if len(trials) != part(content, "trials", int):
        raise ValueError(f"'per_trial' must hold the values of {content['trials']} trials, got {len(trials)}")
    intervals = None
    if content.get("interval") is not None:
        found = part(content, "interval", dict)
        if any(found.get(name) != value for name, value in _SETTINGS.items()):
            raise ValueError(f"'interval' must be of level {LEVEL}, {RESAMPLES} resamples, seed {SEED}")
        ends = {name: _numbers(found, name, 2) for name in METRICS}
        intervals = {name: (low, high) for name, (low, high) in ends.items()}
    counts = None
    if content.get("queries") is not None:
        lists = (map(int, _numbers(content, name, len(trials))) for name in ("queries", "valid_queries"))
        counts = tuple(zip(*lists, strict=True))
    return ReportRow(
        **names,
        trials=trials,
        cmcs=(tuple(part(content, "cmc", list)),) * len(trials),
        parameters=parameters,
        queries=tuple(map(_read_queries, content.get("per_query", ()))),
        saved_intervals=intervals,
        saved_counts=counts,
    )


def _read_queries(content: Any) -> QueryResults:
    """Return the results of each query; None in a list of shares becomes NaN."""
    first = np.array(part(content, "first_match", list))
    names = ("average_precision", "inverse_negative_penalty")
    return QueryResults(first, *(np.array(part(content, name, list), dtype=np.float64) for name in names))
