"""Curves of time and memory: lines, ends, legends, and what the records must hold."""

import numpy as np
import pytest

from benchmarks.speed.cost_plot import cost_curves

pytest.importorskip("matplotlib")


def cost(method, size, seconds=None, peak=None, stopped=None, **others):
    return {"method": method, "size": size, "seconds": seconds, "peak_bytes": peak, "stopped": stopped, **others}


def test_cost_curves_end_where_a_method_was_stopped():
    records = [
        cost("sparse", 1000, 0.5, 2**20),
        cost("dense", 10_000, stopped="memory"),
        cost("dense", 1000, 2, 2**23),
        cost("sparse", 10_000, 5, 2**22),
        cost("dense", 100, 0.25, 2**21),
    ]
    figure = cost_curves(records, title="of a test")
    time, memory = figure.axes
    sparse, dense, end = time.lines
    np.testing.assert_allclose(sparse.get_xydata(), [[1000, 0.5], [10_000, 5]])
    np.testing.assert_allclose(dense.get_xydata(), [[100, 0.25], [1000, 2]])
    np.testing.assert_allclose(end.get_xydata(), [[1000, 2]])
    assert end.get_marker() == "x"
    np.testing.assert_allclose(memory.lines[0].get_xydata(), [[1000, 1], [10_000, 4]])
    np.testing.assert_allclose(memory.lines[1].get_xydata(), [[100, 2], [1000, 8]])
    np.testing.assert_allclose(memory.lines[2].get_xydata(), [[1000, 8]])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["sparse", "dense  × memory at 10,000"]
    assert {axes.get_xscale() for axes in figure.axes} == {axes.get_yscale() for axes in figure.axes} == {"log"}
    assert figure.get_suptitle() == "of a test"


def test_cost_curves_of_one_group_share_a_color():
    records = [cost(name, 10, 1, 1, group=group) for name, group in (("a", "x"), ("b", "y"), ("c", "x"))]
    a, b, c = cost_curves([*records, cost("d", 10, 1, 1)]).axes[0].lines[:3]
    assert a.get_color() == c.get_color() != b.get_color()
    assert a.get_linestyle() != c.get_linestyle()
    assert a.get_marker() != c.get_marker()


def test_cost_curves_without_memory_or_without_any_figure(tmp_path):
    records = [cost("a", 10, 1), cost("a", 20, 2), cost("b", 10, stopped="time")]
    figure = cost_curves(records, tmp_path / "cost.png")
    (axes,) = figure.axes
    assert axes.get_ylabel() == "Time (s)"
    assert [len(line.get_xydata()) for line in axes.lines] == [2, 0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b  × time at 10"]
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "at least one record"),
        ([{"method": "a", "size": 1, "seconds": 1, "peak_bytes": 1}], r"records\[0\] must have the key 'stopped'"),
        ([cost("a", 0, 1)], r"records\[0\]\['size'\] must be above 0"),
        ([cost("a", 1, float("nan"))], r"records\[0\]\['seconds'\] must be above 0 and finite"),
        ([cost("a", 1, 1, 0)], r"records\[0\]\['peak_bytes'\] must be above 0"),
        ([cost("a", 1)], "a time or a reason"),
        ([cost("a", 1, stopped="time")], "at least one time or peak"),
        ([cost("a", 1, 1), cost("a", 1, 2)], r"each size of a method once, got \[1, 1\] for 'a'"),
    ],
)
def test_cost_curves_checks_its_records(records, message):
    with pytest.raises(ValueError, match=message):
        cost_curves(records)
