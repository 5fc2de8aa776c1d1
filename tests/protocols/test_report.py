"""The report: bootstrap intervals, LaTeX, and saved files."""

import csv
import dataclasses
import json
import math

import numpy as np
import pytest
import scipy.stats

from vireid.metrics import rank_metrics
from vireid.protocols import SYSUMM01, RegDB, Report, ReportRow
from vireid.protocols import _report_row as module
from vireid.protocols.report import METRICS, QueryResults

DIRECTION = "infrared_to_visible"


def results(trials, queries, seed=0, unmatched=0):
    """Random per-query results; the first ``unmatched`` queries have no true match."""
    r = np.random.default_rng(seed)
    first = r.integers(1, 30, (trials, queries))
    ap, inp = r.random((2, trials, queries))
    first[:, :unmatched] = 0
    ap[:, :unmatched] = inp[:, :unmatched] = np.nan
    return QueryResults(first, ap, inp)


def row_of(*queries, **names):
    """A row whose trials are the means of the per-query results."""
    trials = []
    for q in queries:
        for first, ap, inp in zip(q.first_match, q.average_precision, q.inverse_negative_penalty, strict=True):
            valid = first > 0
            ranks = {f"rank{r}": 100 * np.mean(first[valid] <= r) for r in (1, 5, 10, 20)}
            trials.append(ranks | {"mAP": 100 * ap[valid].mean(), "mINP": 100 * inp[valid].mean()})
    names = {"direction": "infrared_to_visible", "features": "backbone", "rerank": "none", "uses": "query"} | names
    return ReportRow(**names, trials=tuple(trials), cmcs=((0.5, 1.0),) * len(trials), queries=queries)


def metric_of(name, first, ap, inp):
    if name == "mAP":
        return ap
    return inp if name == "mINP" else float(first <= int(name[4:]))


def interval_by_loops(queries, metric, level, resamples, seed):
    """The documented procedure in plain loops, with the documented draws."""
    generator = np.random.default_rng(seed)
    trials = sum(len(q) for q in queries)
    means = [0.0] * resamples
    for q in queries:
        there = [j for j in range(q.first_match.shape[1]) if any(q.first_match[t][j] > 0 for t in range(len(q)))]
        draws = generator.integers(0, len(there), (resamples, len(there)))
        for b in range(resamples):
            of_trials = []
            for t in range(len(q)):
                drawn = [there[j] for j in draws[b] if q.first_match[t][there[j]] > 0]
                values = [
                    metric_of(metric, q.first_match[t][j], q.average_precision[t][j], q.inverse_negative_penalty[t][j])
                    for j in drawn
                ]
                if values:
                    of_trials.append(sum(values) / len(values))
            means[b] += len(q) / trials * sum(of_trials) / len(of_trials)
    means = sorted(100 * m for m in means)

    def quantile(share):
        at = share * (resamples - 1)
        low = math.floor(at)
        high = min(low + 1, resamples - 1)
        return means[low] + (at - low) * (means[high] - means[low])

    return quantile((1 - level) / 2), quantile((1 + level) / 2)


def partly_unmatched():
    """Two trials in which different queries have a true match, few enough that a resample may hold none of a trial."""
    q = results(2, 4, seed=5)
    q.first_match[0, 1:3] = 0
    q.first_match[1, 0] = 0
    for x in (q.average_precision, q.inverse_negative_penalty):
        x[q.first_match == 0] = np.nan
    return q


@pytest.mark.parametrize(
    "queries",
    [
        (results(3, 11),),  # SYSU-MM01, LLCM: trials of the same queries
        (results(1, 9), results(1, 12, seed=1), results(1, 7, seed=2)),  # RegDB's models
        (results(2, 12, seed=3, unmatched=4),),
        (partly_unmatched(),),
        (results(1, 1),),
    ],
    ids=["shared", "merged", "unmatched", "partly", "single"],
)
@pytest.mark.parametrize("block", [1, 30])
def test_intervals_equal_plain_loops_with_the_same_draws(queries, block, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", block)
    for metric, level, resamples, seed in (("mAP", 0.95, 60, 0), ("rank5", 0.5, 31, 3), ("mINP", 0.9, 1, 1)):
        got = row_of(*queries).interval(metric, level=level, resamples=resamples, seed=seed)
        assert got == pytest.approx(interval_by_loops(queries, metric, level, resamples, seed), abs=1e-9)


@pytest.mark.parametrize("metric", ["mAP", "rank1"])
def test_intervals_agree_with_scipy(metric):
    q = results(4, 300)
    of_queries = [[metric_of(metric, f, a, i) for f, a, i in zip(*t, strict=True)] for t in zip(*vars(q).values())]  # noqa: B905
    mean = 100 * np.mean(of_queries, axis=0)  # trials share the queries: the mean over trials is a mean over queries
    wanted = scipy.stats.bootstrap(
        (mean,), np.mean, n_resamples=10000, method="percentile", rng=np.random.default_rng(9)
    ).confidence_interval
    low, high = row_of(q).interval(metric, resamples=10000)
    width = wanted.high - wanted.low
    assert low == pytest.approx(wanted.low, abs=0.05 * width)
    assert high == pytest.approx(wanted.high, abs=0.05 * width)


def test_merged_rows_resample_the_queries_of_each_model():
    """Independent strata: the deviation of the mean is that of the sum of the strata's means."""
    parts = [results(1, 80, seed=s) for s in range(5)]
    merged = row_of(*parts).interval("mAP", level=0.6827, resamples=8000)
    error = math.sqrt(sum(q.average_precision.var() / q.average_precision.size for q in parts)) / len(parts)
    assert (merged[1] - merged[0]) / 2 == pytest.approx(100 * error, rel=0.05)
    shared = QueryResults(*(np.concatenate([getattr(p, n) for p in parts]) for n in vars(parts[0])))
    error = shared.average_precision.mean(0).std() / math.sqrt(80)
    low, high = row_of(shared).interval("mAP", level=0.6827, resamples=8000)
    assert (high - low) / 2 == pytest.approx(100 * error, rel=0.05)


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Of 200 evaluations of 100 queries with a known chance of success, about 90 % of the intervals hold it."""
    r = np.random.default_rng(0)
    inside = 0
    for seed in range(200):
        success = r.random((1, 100)) < 0.6
        row = row_of(QueryResults(np.where(success, 1, 2), success * 1.0, success * 1.0))
        low, high = row.interval("rank1", level=0.9, resamples=300, seed=seed)
        inside += low <= 60 <= high
    assert 0.85 < inside / 200 < 0.96  # the standard error is 0.02; the values are whole percents, so a bit above


def test_draws_are_made_once_and_when_asked_for(monkeypatch):
    made = []
    real = module._bootstrap
    monkeypatch.setattr(module, "_bootstrap", lambda *a: made.append(a[1:]) or real(*a))
    row = row_of(results(2, 20))
    assert row.mean
    assert made == []
    assert row.intervals == {name: row.interval(name) for name in METRICS}
    row.interval("mAP", level=0.5)
    assert made == [(2000, 0)]
    assert row.interval("mAP", seed=1) != row.interval("mAP")
    assert row.interval("mAP", level=0.5)[0] > row.interval("mAP")[0]
    assert made == [(2000, 0), (2000, 1)]


def sysu(trials=3, **change):
    r = np.random.default_rng(0)
    rows = np.array([(i, c, n) for i in range(1, 7) for c in range(1, 7) for n in (1, 2)])
    features = r.normal(size=(len(rows), 5)) + r.normal(size=(7, 5))[rows[:, 0]]
    return SYSUMM01("all", 1, "agw", trials=trials).evaluate(features, rows[:, 0], None, *rows.T[1:], **change)


def regdb(seed, **change):
    r = np.random.default_rng(seed)
    ids = np.arange(6).repeat(4)
    features = r.normal(size=(24, 5)) + r.normal(size=(6, 5))[ids]
    return RegDB().evaluate(features, ids, np.arange(24) % 2, **change)


def test_protocols_report_the_results_of_each_query():
    row = sysu().rows[0]
    (q,) = row.queries
    assert q.first_match.shape == (3, 24)
    for t in range(3):
        assert row.trials[t]["mAP"] == pytest.approx(100 * np.nanmean(q.average_precision[t]))
        assert row.trials[t]["mINP"] == pytest.approx(100 * np.nanmean(q.inverse_negative_penalty[t]))
        assert row.trials[t]["rank5"] == pytest.approx(100 * np.mean(q.first_match[t] <= 5))
    low, high = row.interval("mAP")
    assert low < row.mean["mAP"] < high
    merged = (regdb(0) + regdb(1)).rows[0]
    assert [len(q) for q in merged.queries] == [1, 1]
    assert merged.interval("mINP") == pytest.approx(interval_by_loops(merged.queries, "mINP", 0.95, 2000, 0))


def plain_row():
    """A row without per-query results."""
    return ReportRow("visible_to_infrared", "backbone", "none", "query", (dict.fromkeys(METRICS, 50.0),), ((0.5, 1.0),))


def test_rows_without_query_results_have_no_interval():
    plain = plain_row()
    assert plain.intervals is None
    assert plain.to_dict()["interval"] is None
    with pytest.raises(ValueError, match="interval needs per-query results"):
        plain.interval("mAP")
    assert "95 %" not in str(Report("RegDB", (plain,)))
    joined = (Report("RegDB", (plain,)) + regdb(0)).rows[0]
    assert (len(joined.trials), joined.queries, joined.intervals) == (2, (), None)
    titles = [line[:16].split() for line in str(Report("RegDB", (joined, regdb(0).rows[0]))).splitlines()[2:]]
    assert titles[1:3] == [["mean"], ["±", "over", "trials"]]
    assert titles[4:] == [["mean"], ["95", "%", "from"], ["95", "%", "to"]]


def test_table_shows_figures_and_intervals_in_80_columns():
    row = sysu().rows[0]
    title, head, name, *lines = str(sysu()).splitlines()
    assert name == "infrared_to_visible: backbone; uses query; 3 trials"
    ends = {metric: row.interval(metric) for metric in METRICS}
    figures = [row.mean, row.std, *({metric: ends[metric][i] for metric in METRICS} for i in (0, 1))]
    assert len(lines) == len(figures)
    for line, values in zip(lines, figures, strict=True):
        for metric in METRICS:
            until = head.index(metric) + len(metric)
            assert line[:until].split()[-1] == f"{values[metric]:.2f}"
    assert max(map(len, [title, head, name, *lines])) < 80


def test_latex_by_hand():
    values = dict.fromkeys(METRICS, 50.0) | {"rank1": 71.774, "mAP": 67.636, "rank5": 9.0}
    row = ReportRow(
        "infrared_to_visible", "a_b&c", "aim", "gallery", (values, values), ((1.0,),) * 2, parameters={"k1": 4, "k2": 1}
    )
    assert row.to_latex() == r"a\_b\&c + aim (k1=4, k2=1) & gallery & 71.77 & 67.64 \\"
    assert row.to_latex(["rank5", "mAP"], std=True, name="x^2 ~ 5%$#{}\\") == (
        r"x\textasciicircum{}2 \textasciitilde{} 5\%\$\#\{\}\textbackslash{} & gallery & "
        r"$9.00 \pm 0.00$ & $67.64 \pm 0.00$ \\"
    )
    table = Report("RegDB", (row,)).to_latex()
    assert table.splitlines() == [
        r"\begin{tabular}{llrr}",
        r"\toprule",
        r"Method & Uses & Rank-1 & mAP \\",
        r"\midrule",
        row.to_latex(),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    back = ReportRow("visible_to_infrared", "b", "none", "query", (values,), ((1.0,),))
    table = Report("RegDB", (row, back)).to_latex(("mINP",)).splitlines()
    assert table[0] == r"\begin{tabular}{lllr}"
    assert table[2] == r"Direction & Method & Uses & mINP \\"
    assert table[5] == r"visible to infrared & b & query & 50.00 \\"
    assert row.to_latex(()) == r"a\_b\&c + aim (k1=4, k2=1) & gallery \\"


@pytest.mark.parametrize("per_query", [False, True])
@pytest.mark.parametrize("make", [sysu, lambda: regdb(0) + regdb(1)], ids=["sysu", "regdb"])
def test_a_saved_report_is_read_back(make, per_query, tmp_path):
    report = make()
    report.save(tmp_path / "r.json", per_query=per_query)
    read = Report.load(str(tmp_path / "r.json"))
    row, old = read.rows[0], report.rows[0]
    assert read.dataset == report.dataset
    assert (row.direction, row.features, row.rerank, row.uses) == (old.direction, old.features, old.rerank, old.uses)
    assert row.trials == old.trials
    assert (row.mean, row.std, row.intervals) == (old.mean, old.std, old.intervals)
    assert row.cmc == pytest.approx(old.cmc)
    assert str(read) == str(report)
    assert (read + report).rows[0].cmc == pytest.approx(old.cmc)
    if per_query:
        assert row.interval("mAP", seed=4) == old.interval("mAP", seed=4)
        assert all(
            np.array_equal(getattr(a, n), getattr(b, n), equal_nan=True)
            for a, b in zip(row.queries, old.queries, strict=True)
            for n in vars(b)
        )
        assert (read + report).rows[0].intervals is not None
    else:
        with pytest.raises(ValueError, match="save with per_query=True"):
            row.interval("mAP", seed=4)
        with pytest.raises(ValueError, match="save with per_query=True"):
            row.interval("mAP", level=0.5)
        assert (read + report).rows[0].intervals is None


def test_parameters_and_unmatched_queries_are_read_back(tmp_path):
    row = row_of(results(2, 6, unmatched=2), rerank="aim", uses="gallery", parameters={"k1": 4, "variant": "paper"})
    Report("x", (row,)).save(tmp_path / "r.json", per_query=True)
    text = (tmp_path / "r.json").read_text()
    assert "NaN" not in text
    read = Report.load(tmp_path / "r.json").rows[0]
    assert read.parameters == row.parameters
    assert np.isnan(read.queries[0].average_precision[:, :2]).all()
    assert read.intervals == row.intervals


def test_a_file_of_ten_trials_is_small(tmp_path):
    q = results(10, 380)
    row = row_of(q)
    row = ReportRow(
        *("infrared_to_visible", "b", "c", "query"), row.trials, ((0.123456789012345,) * 301,) * 10, queries=(q,)
    )
    Report("x", (row,)).save(tmp_path / "r.json")
    assert (tmp_path / "r.json").stat().st_size < 20_000
    Report("x", (row,)).save(tmp_path / "q.json", per_query=True)
    assert (tmp_path / "q.json").stat().st_size < 60 * 3800


def test_a_report_saved_without_the_newer_entries_is_read(tmp_path):
    content = regdb(0).to_dict()
    for name in ("parameters", "interval", "queries", "valid_queries"):
        del content["rows"][0][name]
    (tmp_path / "r.json").write_text(json.dumps(content))
    read = Report.load(tmp_path / "r.json")
    row = read.rows[0]
    assert (row.parameters, row.intervals, row.trials) == ({}, None, regdb(0).rows[0].trials)
    assert row.query_counts is None
    assert (read + regdb(0)).rows[0].query_counts is None
    assert read.to_dict()["rows"][0]["queries"] is None
    read.save(tmp_path / "r.csv")


def spoiled(change, per_query=True):
    content = regdb(0).to_dict(per_query=per_query)
    change(content["rows"][0])
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "Expecting value"),
        ("{", "Expecting"),
        ("[" * 100_000, "."),
        ("[]", "'rows' is missing"),
        ("{}", "'rows' is missing"),
        ('{"rows": {}, "dataset": "x"}', r"'rows' must not be \{\}"),
        ('{"rows": [], "dataset": 3}', "'dataset' must not be 3"),
        ('{"rows": [3], "dataset": "x"}', "'direction' is missing"),
        (spoiled(lambda r: r.pop("uses")), "'uses' is missing"),
        (spoiled(lambda r: r.update(rerank=None)), "'rerank' must not be null"),
        (spoiled(lambda r: r.update(parameters=[])), "'parameters' must not be"),
        (spoiled(lambda r: r.update(parameters={"k1": [4]})), r"parameters must be numbers or str, got k1=\[4\]"),
        (spoiled(lambda r: r.update(trials=2)), "'per_trial' must hold the values of 2 trials, got 1"),
        (
            spoiled(lambda r: r.update(per_trial=[], trials=0, queries=None)),
            "trials and cmcs must hold one or more, got 0",
        ),
        (spoiled(lambda r: r["per_trial"][0].pop("mAP")), "'mAP' is missing"),
        (spoiled(lambda r: r["per_trial"][0].update(mAP="12")), "mAP must be a number, got '12'"),
        (spoiled(lambda r: r["per_trial"][0].update(mAP=True)), "mAP must be a number, got True"),
        (spoiled(lambda r: r["per_trial"][0].update(mAP=math.nan)), "expected a finite number, got NaN"),
        (spoiled(lambda r: r["per_trial"][0].update(mAP=10**400)), "mAP must be a number within float64"),
        (spoiled(lambda r: r.update(cmc=[])), "cmcs must be curves of one finite number or more"),
        (spoiled(lambda r: r.update(cmc=[0.5, "1"])), "cmcs must be curves of one finite number or more"),
        (spoiled(lambda r: r.update(uses="magic")), "uses must be one of 'query', .* got 'magic'"),
        (spoiled(lambda r: r.update(direction="up")), "direction must be one of .* got 'up'"),
        (spoiled(lambda r: r.update(queries=[12, 12])), "'queries' must hold 1 number, got "),
        (spoiled(lambda r: r.update(valid_queries=["12"])), "'valid_queries' must hold 1 number, got "),
        *(
            (spoiled(lambda r, v=v: r["per_query"][0]["first_match"][0].__setitem__(0, v)), fault)
            for v, fault in ((10**400, "got object"), ("one", "got <U"), ([1], "sequence"), (None, "got object"))
        ),
        (spoiled(lambda r: r["interval"].update(level=0.9)), "'interval' must be of level 0.95, 2000 resamples, seed"),
        (spoiled(lambda r: r["interval"].update(mAP=[3])), "'mAP' must hold 2 numbers, got "),
        (spoiled(lambda r: r.update(interval=5)), "'interval' must not be 5"),
        (spoiled(lambda r: r.update(parameters={"a": math.inf})), "expected a finite number, got Infinity"),
        (spoiled(lambda r: r["per_query"][0]["first_match"][0].__setitem__(0, 1.5)), "be an array of integers"),
        ('{"dataset": "x", "dataset": "y", "rows": []}', "'dataset', 'rows' is given twice"),
        (spoiled(lambda r: r.update(per_query=r["per_query"] * 2)), "queries must be of the 1 trials, got results of"),
        (spoiled(lambda r: r.update(per_query=3)), "not iterable"),
        (spoiled(lambda r: r["per_query"][0].pop("first_match")), "'first_match' is missing"),
        (spoiled(lambda r: r["per_query"][0]["first_match"][0].pop()), r"one shape \(T, Nq\)"),
        (spoiled(lambda r: r["per_query"][0].update(first_match=[[0] * 12])), "with a true match in each trial"),
        (spoiled(lambda r: r["per_query"][0]["average_precision"][0].__setitem__(0, {})), "'dict'"),
    ],
)
def test_files_that_hold_no_report_are_named(text, fault, tmp_path):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"(?s)must be a report saved as JSON, cannot read .*r\.json'.*{fault}"):
        Report.load(path)


def test_other_files_and_folders_are_named(tmp_path):
    path = tmp_path / "r.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"cannot read .*r\.json"):
        Report.load(path)
    with pytest.raises(FileNotFoundError, match=r"path must be a saved report, got '.*no.json': no such file"):
        Report.load(tmp_path / "no.json")
    with pytest.raises(FileNotFoundError, match=r"path must be a saved report, got .*: is a folder"):
        Report.load(tmp_path)


PLAIN = {"direction": "visible_to_infrared", "features": "x", "rerank": "none", "uses": "query"}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"uses": "bogus"}, ValueError, "uses must be one of 'query', .* got 'bogus'"),
        ({"direction": "up"}, ValueError, "direction must be one of .* got 'up'"),
        ({"features": 3}, TypeError, "features must be a str, got 3"),
        ({"rerank": None}, TypeError, "rerank must be a str, got None"),
        ({"trials": (), "cmcs": ()}, ValueError, "trials and cmcs must hold one or more, got 0 and 0"),
        ({"cmcs": ((0.5,), (0.5,))}, ValueError, "trials and cmcs must hold one or more, got 1 and 2"),
        ({"cmcs": ((),)}, ValueError, "cmcs must be curves of one finite number or more"),
        ({"cmcs": ((math.nan,),)}, ValueError, "cmcs must be curves of one finite number or more"),
        ({"trials": ({"mAP": 3.0},)}, ValueError, "trials must hold the metrics rank1, .* got mAP"),
        ({"trials": (dict.fromkeys(METRICS, math.inf),)}, ValueError, "rank1 must be finite, got inf"),
        ({"trials": (dict.fromkeys(METRICS, "50"),)}, TypeError, "rank1 must be a number, got '50'"),
        ({"parameters": {"a": math.inf}}, ValueError, r"parameters\['a'\] must be finite, got inf"),
        ({"parameters": {"a": [4]}}, TypeError, r"parameters must be numbers or str, got a=\[4\]"),
    ],
)
def test_rows_that_could_not_be_loaded_again_are_refused(change, error, text):
    row = PLAIN | {"trials": (dict.fromkeys(METRICS, 50.0),), "cmcs": ((0.5, 1.0),)}
    ReportRow(**row)
    with pytest.raises(error, match=text):
        ReportRow(**(row | change))


def test_values_of_numpy_are_saved(tmp_path):
    row = ReportRow(**PLAIN, trials=(dict.fromkeys(METRICS, np.float32(50)),), cmcs=((0.5, 1.0),))
    Report("x", [row]).save(tmp_path / "r.json")
    assert Report.load(tmp_path / "r.json").rows == (row,)


def ranked(queries=12, seed=0):
    r = np.random.default_rng(seed)
    ids = np.arange(queries) // 2
    return rank_metrics(r.random((queries, 20)), ids, np.arange(20) // 2 % (queries // 2))


def test_a_report_of_metrics_is_that_of_a_protocol(tmp_path):
    trials = [ranked(seed=seed) for seed in range(3)]
    report = Report.from_metrics(trials, "own cameras", rerank_name="aim", uses="gallery", parameters={"k1": 4})
    row = report.rows[0]
    assert report.dataset == "own cameras"
    assert (row.features, row.method, row.uses, row.direction) == ("backbone", "aim (k1=4)", "gallery", DIRECTION)
    assert [t["mAP"] for t in row.trials] == [100 * m.mAP for m in trials]
    assert [t["rank5"] for t in row.trials] == [100 * m.rank(5) for m in trials]
    np.testing.assert_allclose(row.cmc, np.mean([m.cmc for m in trials], 0))
    assert len(row.queries) == 1
    report.save(tmp_path / "r.json")
    assert str(Report.load(tmp_path / "r.json")) == str(report)
    assert Report.from_metrics(trials).rows[0].uses == "query"
    assert Report.from_metrics(trials, rerank_name="own").rows[0].uses == "unknown"


def test_trials_of_different_queries_are_told_apart():
    trials = [ranked(12), ranked(14)]
    with pytest.raises(ValueError, match=r"same_queries must be False for trials of different numbers .*, got 12, 14"):
        Report.from_metrics(trials)
    row = Report.from_metrics(trials, same_queries=False).rows[0]
    assert [q.first_match.shape for q in row.queries] == [(1, 12), (1, 14)]
    assert row.intervals == (Report.from_metrics(trials[:1]) + Report.from_metrics(trials[1:])).rows[0].intervals


ONES = np.ones((1, 3))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda r, m: r.rows[0].interval("map"), ValueError, "metric must be one of 'rank1', .* got 'map'"),
        (lambda r, m: r.rows[0].interval(level=95), ValueError, "level must be between 0 and 1, got 95"),
        (lambda r, m: r.rows[0].interval(level=math.nan), ValueError, "level must be between 0 and 1, got nan"),
        (lambda r, m: r.rows[0].interval(resamples=0), ValueError, "resamples must be at least 1, got 0"),
        (lambda r, m: r.rows[0].interval(resamples=10.0), TypeError, "resamples must be an integer, got 10.0"),
        (lambda r, m: r.rows[0].interval(seed=-1), ValueError, "seed must be at least 0, got -1"),
        (lambda r, m: r.rows[0].to_latex(["map"]), ValueError, "metrics must be one of 'rank1'"),
        (lambda r, m: r.to_latex(["map"]), ValueError, "metrics must be one of 'rank1'"),
        (lambda r, m: r.to_latex("mAP"), TypeError, "metrics must be a sequence of str, got str"),
        (lambda r, m: r.save("r.csv", per_query=True), ValueError, "per_query must be False unless path ends in .json"),
        (lambda r, m: QueryResults(ONES, ONES[:, :2], ONES), ValueError, r"one shape \(T, Nq\), got \(1, 3\), \(1, 2"),
        (lambda r, m: QueryResults(ONES[0], ONES[0], ONES[0]), ValueError, r"one shape \(T, Nq\), got \(3,\)"),
        (lambda r, m: QueryResults(np.array([[1], [0]]), ONES[:, :2].T, ONES[:, :2].T), ValueError,
         "first_match must hold a query with a true match in each trial"),
        (lambda r, m: QueryResults(ONES, ONES, ONES), TypeError, "first_match must be an array of integers, got"),
        (lambda r, m: QueryResults(ONES.astype(int), [[1.0] * 3], ONES), TypeError,
         "average_precision must be an array of floats, got list"),
        (lambda r, m: dataclasses.replace(r.rows[0], queries=(results(2, 3),)), ValueError,
         "queries must be of the 1 trials, got results of 2"),
        (lambda r, m: Report(3, ()), TypeError, "dataset must be a str, got 3"),
        (lambda r, m: Report("x", 3), TypeError, "rows must be a sequence of ReportRow, got int"),
        (lambda r, m: Report("SYSU", [m]), TypeError, "got RankMetrics; Report.from_metrics takes RankMetrics"),
        (lambda r, m: Report.from_metrics(m), TypeError, "a sequence of RankMetrics, got RankMetrics"),
        (lambda r, m: Report.from_metrics("SYSU", [m]), TypeError, "metrics must be a sequence of RankMetrics"),
        (lambda r, m: Report.from_metrics([m, 3]), TypeError, "metrics must be a sequence of RankMetrics, got int"),
        (lambda r, m: Report.from_metrics([]), ValueError, "metrics must hold the results of one trial or more"),
        (lambda r, m: Report.from_metrics([m], uses="magic"), ValueError, "uses must be one of"),
        (lambda r, m: Report.from_metrics([m], rerank_name=3), TypeError, "rerank_name must be a str, got 3"),
        (lambda r, m: Report.from_metrics([m], parameters={"a": math.nan}), ValueError, "parameters.* must be finite"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(call, error, text):
    with pytest.raises(error, match=text):
        call(regdb(0), ranked())


def test_csv_leaves_unknown_intervals_empty(tmp_path):
    Report("RegDB", (plain_row(), regdb(0).rows[0])).save(tmp_path / "r.csv")
    with (tmp_path / "r.csv").open() as file:
        first, second = csv.DictReader(file)
    assert [first[f"mAP_{end}"] for end in ("low", "high")] == ["", ""]
    assert float(second["mAP_low"]) < float(second["mAP"]) < float(second["mAP_high"])


def test_queries_without_a_true_match_are_counted(tmp_path):
    rows = (row_of(results(2, 6, unmatched=2), results(1, 8)), row_of(results(1, 5), rerank="aim"))
    report = Report("x", rows)
    assert rows[0].query_counts == ((6, 4), (6, 4), (8, 8))
    found = report.to_dict()["rows"]
    assert [r["queries"] for r in found] == [[6, 6, 8], [5]]
    assert [r["valid_queries"] for r in found] == [[4, 4, 8], [5]]
    text = (
        "infrared_to_visible, backbone, none: 4 of 20 queries (all trials together) have no true match and are left out"
    )
    assert " ".join(str(report).split()).endswith(text)
    assert max(map(len, str(report).splitlines())) < 80
    assert "left out" not in str(Report("x", rows[1:]))
    report.save(tmp_path / "r.json")
    read = Report.load(tmp_path / "r.json")
    assert [row.query_counts for row in read.rows] == [row.query_counts for row in rows]
    assert str(read) == str(report)
    assert (read + report).rows[0].query_counts == 2 * rows[0].query_counts
    report.save(tmp_path / "r.csv")
    with (tmp_path / "r.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["queries"], line["valid_queries"]) for line in lines] == [("6 6 8", "4 4 8"), ("5", "5")]
