"""Transport plans: which line and which number is drawn where, and that nothing overlaps."""

import numpy as np
import pytest
import torch

from pictures import GREEN, NAMES, ORANGE, check_layout, images, inside, people, pixels, random, same_rows
from vireid.plots import transport_plan

pytest.importorskip("matplotlib")
from matplotlib.colors import to_hex


def permutation(order):
    return torch.eye(len(order))[order] / len(order)


def draw_plan(plan, points=(13, 13), path=None, sizes=((16, 8), (16, 8)), **options):
    sides = [images(3, *size, seed=s) for s, size in enumerate(sizes)]
    places = [
        people(1, *size, nodes=13, seed=s + 2)[0, :n] for s, (size, n) in enumerate(zip(sizes, points, strict=True))
    ]
    places = [options.pop(f"points_{side}", p) for side, p in zip(("visible", "infrared"), places, strict=True)]
    figure = transport_plan(*sides, plan, path, points_visible=places[0], points_infrared=places[1], **options)
    return figure, sides, places


def plan_lines(figure):
    """[(ends, color, solid, width, opacity)] from the visible to the infrared image, those of the key left out."""
    axes = figure.axes[0]
    below = axes.images[0].get_extent()[2]
    lines = [line for line in axes.lines if to_hex(line.get_color()) in (GREEN, ORANGE)]
    lines = [line for line in lines if line.get_ydata().max() <= max(below, axes.images[1].get_extent()[2])]
    return [
        (x.get_xydata()[[0, -1]], to_hex(x.get_color()), x.get_linestyle() == "-", x.get_linewidth(), x.get_alpha())
        for x in lines
    ]


def test_lines_join_the_nodes_of_the_plan():
    order = [0, 2, 1, *range(3, 13), 13]
    plan = permutation(order)
    figure, sides, places = draw_plan(plan, names=NAMES)
    pictures = figure.axes[0].images
    for picture, image in zip(pictures, sides, strict=False):
        np.testing.assert_allclose(picture.get_array(), image.permute(1, 2, 0) / 255, atol=1e-6)
    found = plan_lines(figure)
    assert len(found) == 14
    body = [f for f in found if inside(pictures[0], f[0][0])]
    ends = [[*pixels(pictures[0], f[0][0]), *pixels(pictures[1], f[0][1])] for f in body]
    same_rows(ends, [[*places[0][i, :2].tolist(), *places[1][order[i], :2].tolist()] for i in range(13)])
    for ends, color, solid, *_ in body:
        i = int((places[0][:, :2] - torch.tensor(pixels(pictures[0], ends[0]))).norm(dim=1).argmin())
        same = order[i] == i
        assert (color, solid) == ((GREEN, True) if same else (ORANGE, False)), i
    (whole,) = [f for f in found if not inside(pictures[0], f[0][0])]
    assert whole[1] == GREEN
    assert (whole[0][:, 1] < pictures[0].get_extent()[3]).all()  # the global nodes stand above both
    assert whole[0][0, 0] < whole[0][1, 0]


def test_lines_between_parts_of_one_row_lie_apart():
    points = torch.tensor([[x, 8.0] for x in (1.5, 4.0, 6.5)])
    figure, *_ = draw_plan(permutation([0, 1, 2]), points_visible=points, points_infrared=points)
    lines = [x.get_xydata() for x in figure.axes[0].lines if to_hex(x.get_color()) == GREEN and len(x.get_xydata()) > 2]
    assert len(lines) == 3
    ends = [line[end] for line in lines for end in (0, -1)]
    for line in lines:
        for x, y in ends:  # in inches; a line is 0.03 wide, a node 0.06
            if line[0, 0] < x < line[-1, 0]:
                assert y - np.interp(x, *line.T) > 0.05


def test_width_and_opacity_follow_the_mass():
    plan = torch.tensor([[0.30, 0.15, 0.05], [0.20, 0.29, 0.01]])  # no node can give more than 0.5, take more than 0.5
    options = {"points_visible": people(1, nodes=2)[0], "points_infrared": people(1, nodes=3, seed=4)[0]}
    for kept, count in ((0.05, 5), (0.0, 6), (0.62, 0)):
        found = plan_lines(draw_plan(plan, kept=kept, **options)[0])
        most = 0.5  # min(max row sum 0.5, max column sum 0.5)
        shares = sorted(p / most for p in plan.flatten().tolist() if p / most >= kept)
        assert len(shares) == count
        np.testing.assert_allclose(sorted(f[3] for f in found), [0.4 + 1.6 * s for s in shares], atol=1e-6)
        np.testing.assert_allclose(sorted(f[4] for f in found), [0.25 + 0.75 * s for s in shares], atol=1e-6)
    (line,) = plan_lines(draw_plan(torch.ones(1, 1), points=(1, 1))[0])
    assert line[3:] == (2.0, 1.0)


def test_a_node_that_gives_to_one_of_many_is_drawn_in_full():
    """Uniform weights of 14 and 1 nodes: each of the 14 gives all that it has."""
    found = plan_lines(draw_plan(torch.full((14, 1), 1 / 14), points=(13, 1))[0])
    assert len(found) == 14
    assert {round(f[3], 4) for f in found} == {2.0}


def names_above(figure):
    top = figure.axes[0].images[0].get_extent()[3]
    return sorted(t.get_text() for t in figure.axes[0].texts if t.get_position()[1] < top - 0.1)


def test_nodes_without_a_place_stand_above_if_they_carry_mass():
    points = people(1)[0]
    points[4, 2] = 0
    points[9, 0] = -1
    plan = permutation(list(range(14)))
    figure, *_ = draw_plan(plan, points_visible=points, names=NAMES)
    assert names_above(figure) == ["global", "global", "left knee", "right elbow"]
    top = figure.axes[0].images[0].get_extent()[3]
    assert sum(f[0][0, 1] < top for f in plan_lines(figure)) == 3
    check_layout(figure)
    plan[[4, 9]] = 0
    figure, *_ = draw_plan(plan, points_visible=points, names=NAMES)
    assert names_above(figure) == ["global", "global"]
    assert len(plan_lines(figure)) == 12


def test_the_matrix_shows_the_plan_in_percent():
    plan = torch.tensor([[0.25, 0.0004, 0.0, 0.1], [0.0, 0.0, 0.0, 0.0], [0.0996, 0.5496, 0.0, 0.0004]])
    figure, *_ = draw_plan(plan, points=(3, 4))
    axes = figure.axes[0]
    matrix = axes.images[2]
    expected = 100 * plan.double().numpy()
    expected[1], expected[:, 2] = np.nan, np.nan  # nodes without mass
    shown = np.ma.filled(matrix.get_array().astype(float), np.nan)
    np.testing.assert_allclose(shown, expected)
    assert matrix.get_clim() == pytest.approx((0, 54.96))
    cells = {}
    for text in axes.texts:
        if text.get_fontsize() == 6 and inside(matrix, text.get_position()):
            j, i = pixels(matrix, text.get_position())
            cells[int(i), int(j)] = text.get_text()
            assert (i % 1, j % 1) == (pytest.approx(0.5), pytest.approx(0.5))
    assert cells == {(0, 0): "25", (0, 3): "10", (2, 0): "10", (2, 1): "55"}
    words = [t.get_text() for t in axes.texts]
    assert words.count("visible") == words.count("infrared") == 2
    assert len(figure.axes) == 1  # numbers, so no color bar


def test_names_of_rows_and_columns_stand_at_theirs():
    first, second = ["a", "left_b", "c"], ["d", "e", "f", "g"]
    plan = torch.full((3, 4), 1 / 12)
    axes = draw_plan(plan, points=(3, 4), names=first, names_infrared=second)[0].axes[0]
    left, right, bottom, top = axes.images[2].get_extent()
    at = {t.get_text(): t.get_position() for t in axes.texts if t.get_fontsize() == 7}
    for i, name in enumerate(("a", "left b", "c")):
        assert at[name][0] < left
        assert at[name][1] == pytest.approx(top + (i + 0.5) * (bottom - top) / 3)
    for j, name in enumerate(second):
        assert at[name][1] > bottom
        assert at[name][0] == pytest.approx(left + (j + 0.5) * (right - left) / 4)


def test_names_are_numbers_unless_given_and_the_last_is_global_where_it_has_no_point():
    texts = draw_plan(torch.eye(3) / 3, points=(2, 3))[0].axes[0].texts
    assert sorted(t.get_text() for t in texts if t.get_fontsize() == 7) == ["1", "1", "2", "2", "3", "global", "global"]


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((14, 14), {"names": NAMES, "title": "A pair"}),
        ((14, 14), {"names": NAMES, "sizes": ((40, 6), (20, 4)), "points": (0, 0)}),  # narrow images
        ((14, 14), {"names": NAMES, "sizes": ((10, 30), (16, 8))}),  # a wide one
        ((14, 1), {"names": NAMES, "names_infrared": ["global"], "points": (13, 0)}),
        ((1, 14), {"names": ["global"], "names_infrared": NAMES, "points": (0, 13)}),
        ((6, 6), {"names": [f"the_left_side_of_node_{i}" for i in range(6)], "points": (0, 2)}),
        ((6, 22), {"points": (6, 13)}),  # too many for a number in each cell or a name at each
        ((1, 1), {"points": (1, 1)}),
    ],
)
def test_nothing_in_a_plan_overlaps(shape, options):
    plan = random(*shape)
    check_layout(draw_plan(plan / plan.sum(), **options)[0])


def test_many_nodes_have_a_color_bar_in_place_of_numbers():
    figure, *_ = draw_plan(torch.eye(40) / 40, points=(0, 0))
    figure.draw_without_rendering()
    axes, bar = figure.axes
    assert bar.get_ylim() == pytest.approx((0, 2.5))
    assert not [t for t in axes.texts if t.get_fontsize() == 6]


def test_a_plan_may_be_of_any_float():
    plan = permutation([1, 0, 2])
    for given in (plan, plan.double(), plan.half(), plan.bfloat16()):
        matrix = draw_plan(given, points=(3, 3))[0].axes[0].images[2].get_array()
        np.testing.assert_allclose(matrix, 100 * plan, rtol=5e-3)
