"""Curves over a swept value: means, deviations and the best."""

import numpy as np
import pytest

from benchmarks.tables.sensitivity_plot import sensitivity_curves

pytest.importorskip("matplotlib")


def trial(value, rank1, m_ap, **others):
    return {"value": value, "rank1": rank1, "mAP": m_ap, **others}


def lines_of(axes):
    """{metric: (points, ends of the bars, point of the star)} of a panel."""
    stars = [line for line in axes.lines if line.get_marker() == "*"]
    found = {}
    for container, star in zip(axes.containers, stars, strict=True):
        line, _, bars = container.lines
        segments = [segment for bar in bars for segment in bar.get_segments() if len(segment)]
        found[container.get_label()] = (line.get_xydata(), segments, star.get_xydata()[0])
    return found


def test_sensitivity_curves_are_means_with_deviations_and_a_star_at_the_best():
    both = ["visible_to_infrared", "infrared_to_visible"]
    records = [
        *(trial(5, r, m, direction=both[0]) for r, m in ((60, 40), (64, 41))),
        *(trial(0, r, m, direction=both[0]) for r, m in ((50, 46), (53, 44), (56, 42))),
        trial(0.5, 55, 43, direction=both[0]),
        trial(5, 70, 50, direction=both[1]),
        trial(0, 72, 48, direction=both[1]),
    ]
    figure = sensitivity_curves(records, parameter="λ", title="a title")
    one, two = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["visible to infrared", "infrared to visible"]
    assert {axes.get_xlabel() for axes in figure.axes} == {"λ"}
    assert [label.get_text() for label in one.get_xticklabels()] == ["0", "0.5", "5"]
    assert list(one.get_xticks()) == [0, 1, 2]
    found = lines_of(one)
    assert list(found) == ["rank-1", "mAP"]
    points, bars, star = found["rank-1"]
    np.testing.assert_allclose(points, [[0, 53], [1, 55], [2, 62]])
    np.testing.assert_allclose(star, [2, 62])
    np.testing.assert_allclose(bars[0], [[0, 53 - 3], [0, 53 + 3]])  # sqrt((9 + 0 + 9) / 2)
    np.testing.assert_allclose(bars[-1], [[2, 62 - 8**0.5], [2, 62 + 8**0.5]])
    np.testing.assert_allclose(found["mAP"][0], [[0, 44], [1, 43], [2, 40.5]])
    np.testing.assert_allclose(found["mAP"][2], [0, 44])
    other = lines_of(two)
    np.testing.assert_allclose(other["rank-1"][0], [[0, 72], [2, 70]])
    assert other["rank-1"][1] == []  # single trials have no bars
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["rank-1", "mAP", "best mean"]
    assert figure.get_suptitle() == "a title"
    assert one.get_ylim() == two.get_ylim()


def test_sensitivity_curves_space_values_as_asked():
    records = [trial(value, 50 + value, 40) for value in (2, 0, 0.5)]
    far = sensitivity_curves(records, parameter="λ", spacing="value")
    np.testing.assert_allclose(lines_of(far.axes[0])["rank-1"][0], [[0, 50], [0.5, 50.5], [2, 52]])
    np.testing.assert_allclose(lines_of(far.axes[0])["mAP"][2], [0, 40])  # the first of equal means
    named = sensitivity_curves([trial(v, 1, 2) for v in ("sigmoid", "logits")], parameter="maps", metrics=["mAP"])
    (axes,) = named.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["sigmoid", "logits"]
    assert list(lines_of(axes)) == ["mAP"]
    with pytest.raises(ValueError, match=r"spacing='value' needs numbers, got \['sigmoid'\]"):
        sensitivity_curves([trial("sigmoid", 1, 2)], parameter="maps", spacing="value")


@pytest.mark.parametrize("panels", [1, 2])
def test_sensitivity_curves_legend_and_labels_are_whole(panels, tmp_path):
    directions = ("visible_to_infrared", "infrared_to_visible")[:panels]
    more = {"rank1 + AIM": 60, "mAP + AIM": 40}
    records = [trial(v, 50 + v, 30, direction=d, **more) for v in range(9) for d in directions]
    figure = sensitivity_curves(
        records, tmp_path / "s.png", parameter="p, number of learned prototypes", metrics=["rank1", "mAP", *more]
    )
    figure.draw_without_rendering()
    whole, legend = figure.bbox, figure.legends[0].get_window_extent()
    for box in (legend, *(axes.get_tightbbox() for axes in figure.axes)):
        assert whole.x0 <= box.x0 <= box.x1 <= whole.x1
        assert whole.y0 <= box.y0 <= box.y1 <= whole.y1
    for axes in figure.axes:
        assert not legend.overlaps(axes.get_tightbbox())
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("records", "options", "error", "message"),
    [
        ([], {}, ValueError, "records must hold at least one record, got none"),
        ([{"value": 1, "rank1": 1}], {}, ValueError, r"records\[0\] must have the key 'mAP', got \['rank1', 'value'\]"),
        (
            [trial(1, 1, 1, direction="a"), trial(1, 1, 1)],
            {},
            ValueError,
            r"records\[1\] must have the key 'direction'",
        ),
        (
            [trial(1, 1, 1), trial(1, 1, 1, direction="a")],
            {},
            ValueError,
            r"records\[1\] has a direction, records\[0\]",
        ),
        ([trial(1, 1, 101)], {}, ValueError, r"records\[0\]\['mAP'\] must lie in \[0, 100\] percent, got 101"),
        ([trial(1, float("nan"), 1)], {}, ValueError, r"records\[0\]\['rank1'\] must lie in"),
        ([trial(1, "1", 1)], {}, TypeError, r"records\[0\]\['rank1'\] must be a number"),
        ([trial(1, 1, 1)], {"metrics": []}, ValueError, "metrics must hold at least one name"),
        ([trial(1, 1, 1)], {"metrics": "mAP"}, ValueError, "metrics must hold at least one name, got 'mAP'"),
        ([trial(1, 1, 1)], {"spacing": "log"}, ValueError, "spacing must be one of 'equal', 'value', got 'log'"),
    ],
)
def test_sensitivity_curves_check_their_records(records, options, error, message):
    with pytest.raises(error, match=message):
        sensitivity_curves(records, parameter="p", **options)
