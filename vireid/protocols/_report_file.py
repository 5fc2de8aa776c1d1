"""Read the rows of reports saved as JSON: keys and types are checked, the figures are not."""

import json
from pathlib import Path
from types import UnionType
from typing import Any

import numpy as np

from vireid._checks import check_option
from vireid._files import parse_json
from vireid.protocols._report_row import LEVEL, METRICS, RESAMPLES, SEED, USES, QueryResults, ReportRow
from vireid.protocols.names import DIRECTIONS

_JSON_BYTES = 2**30
_SETTINGS = {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED}


def read_json(path: Path) -> Any:
    """Return the content of a JSON file as `parse_json` does; one above 1 GiB is refused."""
    size = path.stat().st_size
    if size > _JSON_BYTES:
        raise ValueError(f"must be of at most {_JSON_BYTES} bytes, got {size}")
    return parse_json(path.read_text(encoding="utf-8"))


def part(content: Any, name: str, kind: type | UnionType) -> Any:
    """Return the entry ``name`` of a dict read from JSON, which must be of ``kind``."""
    if not isinstance(content, dict) or name not in content:
        raise ValueError(f"{name!r} is missing")
    if not isinstance(content[name], kind):
        raise ValueError(f"{name!r} must not be {json.dumps(content[name])[:60]}")
    return content[name]


def _numbers(content: Any, name: str, length: int | None = None) -> tuple[float, ...]:
    """Return a list of numbers, ``length`` or at least one."""
    values = part(content, name, list)
    if not values or not all(type(v) in (int, float) for v in values) or len(values) != (length or len(values)):
        count = f"{length} number{'s' * (length != 1)}" if length else "one number or more"
        raise ValueError(f"{name!r} must hold {count}, got {json.dumps(values)[:60]}")
    return tuple(map(float, values))


def _metrics(content: Any) -> dict[str, float]:
    """Return the values of the metrics in a dict of one trial."""
    return {name: _numbers({name: [part(content, name, int | float)]}, name)[0] for name in METRICS}


def read_row(content: Any) -> ReportRow:
    """Return the row that `ReportRow.to_dict` wrote.

    Raises:
        ValueError, TypeError, OverflowError: for anything else.
    """
    names = {name: part(content, name, str) for name in ("direction", "features", "rerank", "uses")}
    for name, words in (("direction", DIRECTIONS), ("uses", USES)):
        check_option(repr(name), names[name], words)
    parameters = part(content, "parameters", dict) if "parameters" in content else {}
    if not all(isinstance(value, bool | int | float | str | None) for value in parameters.values()):
        raise ValueError("'parameters' must hold only numbers and text")
    trials = tuple(map(_metrics, part(content, "per_trial", list)))
    if not trials or len(trials) != part(content, "trials", int):
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
        cmcs=(_numbers(content, "cmc"),) * len(trials),
        parameters=parameters,
        queries=tuple(map(_read_queries, content.get("per_query", ()))),
        saved_intervals=intervals,
        saved_counts=counts,
    )


def _read_queries(content: Any) -> QueryResults:
    """Return the results of each query; None in a list of shares becomes NaN."""
    kinds = {"first_match": np.int64, "average_precision": np.float64, "inverse_negative_penalty": np.float64}
    arrays = [np.array(part(content, name, list), dtype=kind) for name, kind in kinds.items()]
    if (arrays[0] != np.array(content["first_match"], dtype=np.float64)).any():
        raise ValueError("'first_match' must hold integers")
    return QueryResults(*arrays)
