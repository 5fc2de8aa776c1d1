"""Hostile values for the arguments of protocols and reports: refused by the argument's name."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from vireid.metrics import rank_metrics
from vireid.protocols import LLCM, SYSUMM01, RegDB, Report, ReportRow, dataset_name
from vireid.protocols.report import METRICS, QueryResults

HOSTILE = {
    "none": None,
    "bool": True,
    "integer": 3,
    "nan": math.nan,
    "text": "3",
    "bytes": b"3",
    "list": ["3"],
    "dict": {"a": [3]},
    "function": len,
    "array": np.array([3.0]),
    "tensor": torch.tensor([3.0, 1.0]),
    "object": object(),
}


def row(**change):
    values = (dict.fromkeys(METRICS, 50.0),)
    queries = (QueryResults(np.ones((1, 4), int), np.full((1, 4), 0.5), np.full((1, 4), 0.5)),)
    plain = {"direction": "visible_to_infrared", "features": "x", "rerank": "none", "uses": "query"}
    return ReportRow(**(plain | {"trials": values, "cmcs": ((0.5, 1.0),), "queries": queries} | change))


def report(**change):
    ids = np.arange(6) // 2
    found = rank_metrics(np.random.default_rng(0).random((6, 6)), ids, ids)
    return Report.from_metrics(**({"metrics": [found]} | change))


def regdb(**change):
    features = np.random.default_rng(0).normal(size=(8, 3))
    return RegDB().evaluate(features, np.arange(8) // 4, np.arange(8) % 2, **change)


def of(make, name, *taken):
    """Return the case of an argument of ``make``, and the hostile values that it takes."""
    return pytest.param(name, lambda x: make(**{name: x}), taken, id=f"{getattr(make, '__qualname__', make)} {name}")


CASES = [
    of(lambda rows: Report("x", rows), "rows"),
    of(lambda dataset: Report(dataset, ()), "dataset", "text"),
    of(report, "metrics"),
    of(report, "dataset", "text"),
    of(report, "direction"),
    of(report, "features_name", "text"),
    of(report, "rerank_name", "text"),
    of(report, "uses", "none"),
    of(report, "parameters", "none"),
    of(Report.merge, "reports"),
    of(Report.load, "path"),
    of(Report("x", (row(),)).save, "path"),
    of(Report("x", (row(),)).to_latex, "metrics"),
    of(row().to_latex, "metrics"),
    of(row().to_latex, "name", "none", "text"),
    of(row().interval, "metric"),
    of(row().interval, "level"),
    of(row().interval, "resamples", "integer"),
    of(row().interval, "seed", "integer"),
    *(of(row, name) for name in ("direction", "uses", "trials", "cmcs", "parameters", "queries")),
    *(of(row, name, "text") for name in ("features", "rerank")),
    of(lambda first_match: QueryResults(first_match, np.ones((1, 1)), np.ones((1, 1))), "first_match"),
    of(RegDB, "direction"),
    of(LLCM, "direction"),
    of(LLCM, "trials", "integer"),
    *(of(lambda **given: SYSUMM01(**({"sampling": "agw"} | given)), name) for name in ("mode", "shots", "sampling")),
    of(lambda trials: SYSUMM01(sampling="agw", trials=trials), "trials", "integer"),
    of(SYSUMM01, "permutations"),
    of(dataset_name, "name"),
    of(regdb, "features_name", "text"),
    of(regdb, "rerank_name", "none", "text"),
]


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize(("argument", "call", "taken"), CASES)
def test_hostile_arguments_are_named(argument, call, taken, kind):
    if kind in taken:
        call(HOSTILE[kind])
        return
    with pytest.raises((TypeError, ValueError, FileNotFoundError), match=argument):
        call(HOSTILE[kind])


def test_integers_of_numpy_are_those_of_python():
    for number in (np.int8(3), np.uint64(3), np.int64(3)):
        assert row().interval(resamples=number, seed=number) == row().interval(resamples=3, seed=3)
        assert type(LLCM(trials=number).trials) is type(SYSUMM01(sampling="agw", trials=number).trials) is int
    assert row().interval(resamples=np.int8(100)) == row().interval(resamples=100)
    with pytest.raises(ValueError, match="trials and cmcs must hold one or more"):
        dataclasses.replace(row(), trials=(), queries=())
