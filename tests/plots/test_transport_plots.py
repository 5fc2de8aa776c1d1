"""Transport plans and their costs: drawn amounts against plain loops, and that nothing overlaps."""

import itertools
import re

import numpy as np
import pytest
import torch
from test_skeleton_plots import GREEN, NAMES, ORANGE, check_layout, images, inside, people, pixels, random, same_rows

from vireid.ot import graph_ot
from vireid.plots.transport import cost_matrices, transport_plan

pytest.importorskip("matplotlib")
from matplotlib.colors import to_hex

# -- Transport plans -----------------------------------------------------------------------------------------------


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
    """[(ends, colour, solid, width, opacity)] from the visible to the infrared image, those of the key left out."""
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
    assert len(figure.axes) == 1  # numbers, so no colour bar


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
        ((20, 30), {"points": (13, 13)}),
        ((1, 1), {"points": (1, 1)}),
    ],
)
def test_nothing_in_a_plan_overlaps(shape, options):
    plan = random(*shape)
    check_layout(draw_plan(plan / plan.sum(), **options)[0])


def test_many_nodes_have_a_colour_bar_in_place_of_numbers():
    figure, *_ = draw_plan(torch.eye(40) / 40, points=(0, 0))
    figure.draw_without_rendering()
    axes, bar = figure.axes
    assert bar.get_ylim() == pytest.approx((0, 2.5))
    assert not [t for t in axes.texts if t.get_fontsize() == 6]


def test_a_plan_is_not_changed_and_may_be_of_any_float(tmp_path):
    plan = permutation([1, 0, 2]).requires_grad_()
    before = plan.detach().clone()
    matrices = [
        draw_plan(p, points=(3, 3))[0].axes[0].images[2].get_array()
        for p in (plan, plan.double(), plan.detach().numpy(), plan.half(), plan.bfloat16())
    ]
    for matrix in matrices:
        np.testing.assert_allclose(matrix, 100 * before, rtol=5e-3)
    assert torch.equal(plan, before)
    path = tmp_path / "plan.pdf"
    draw_plan(plan, points=(3, 3), path=path)
    assert path.read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"visible": images(1, 3, 16, 8)}, ValueError, r"visible must have shape \(3, H, W\), got \(1, 3, 16, 8\)"),
        ({"infrared": images(3, 16, 8).int()}, TypeError, "infrared must be uint8 or floating point"),
        ({"infrared": random(3, 16, 8) - 1}, ValueError, r"infrared must lie in \[0, 1\]"),
        ({"plan": torch.ones(1, 3, 3)}, ValueError, r"plan must have shape \(n, m\)"),
        ({"plan": torch.ones(0, 3)}, ValueError, r"plan must have shape \(n, m\), at least one node"),
        ({"plan": torch.ones(3, 3).int()}, TypeError, "plan must be floating point, got int32"),
        ({"plan": -torch.eye(3)}, ValueError, "plan must be finite and at least 0"),
        ({"plan": torch.eye(3) / 0}, ValueError, "plan must be finite and at least 0"),
        ({"plan": torch.zeros(3, 3)}, ValueError, "plan must carry some mass"),
        (
            {"points_visible": people(1, nodes=4)[0]},
            ValueError,
            r"points_visible must have shape \(k, 2\).*k <= 3 nodes",
        ),
        ({"points_infrared": people(1, nodes=2)}, ValueError, r"points_infrared must have .* got \(1, 2, 3\)"),
        ({"points_infrared": random(2, 4)}, ValueError, r"points_infrared must have shape \(2, 2\) or \(2, 3\)"),
        ({"names": ["a"]}, ValueError, "names must hold 3 names, one a node, got 1"),
        ({"names": list("abc"), "names_infrared": list("ab")}, ValueError, "names_infrared must hold 3 names"),
        ({"names_infrared": list("abc")}, ValueError, "names must be given where names_infrared are"),
        ({"kept": 1.5}, ValueError, r"kept must lie in \[0, 1\], got 1.5"),
        ({"kept": "all"}, TypeError, "kept must be a number"),
    ],
)
def test_transport_plan_checks_its_input(change, error, message):
    given = {"visible": images(3, 16, 8), "infrared": images(3, 16, 8), "plan": torch.eye(3) / 3}
    given |= {"points_visible": people(1, nodes=2)[0], "points_infrared": people(1, nodes=2)[0]}
    with pytest.raises(error, match=message):
        transport_plan(**(given | change))


# -- Costs ---------------------------------------------------------------------------------------------------------


def cosine_distance(a, b):
    length = np.sqrt((a * a).sum()) * np.sqrt((b * b).sum())
    return 1.0 if length == 0 else 1 - (a * b).sum() / length


def costs_by_loops(x, y, plan, square):
    """The four matrices and D_w, D_gw, node by node from the equations."""
    x, y, plan = (np.asarray(a, dtype=np.float64) for a in (x, y, plan))
    n, m = plan.shape
    between = [[cosine_distance(x[i], y[j]) for j in range(m)] for i in range(n)]
    first = [[0.0 if i == k else cosine_distance(x[i], x[k]) for k in range(n)] for i in range(n)]
    second = [[0.0 if j == k else cosine_distance(y[j], y[k]) for k in range(m)] for j in range(m)]
    d_w = sum(plan[i, j] * between[i][j] for i in range(n) for j in range(m))
    difference, d_gw = np.full((n, n), np.nan), 0.0
    for i, k in itertools.product(range(n), range(n)):
        paid = 0.0
        for j, r in itertools.product(range(m), range(m)):
            gap = abs(first[i][k] - second[j][r])
            paid += plan[i, j] * plan[k, r] * (gap**2 if square else gap)
        d_gw += paid
        if plan[i].sum() > 0 and plan[k].sum() > 0:
            difference[i, k] = paid / (plan[i].sum() * plan[k].sum())
    return np.array(between), difference, np.array(first), np.array(second), d_w, d_gw


def matrices_of(figure):
    return [np.ma.filled(p.get_array().astype(float), np.nan) for p in figure.axes[0].images]


def amounts(figure):
    """D_w and D_gw as they are written."""
    words = " ".join(t.get_text() for t in figure.axes[0].texts)
    return [float(re.search(rf"\$D_\{{?{name}\}}?\$ = ([\d.]+)", words)[1]) for name in ("w", "gw")]


@pytest.mark.parametrize("loss", ["abs", "square"])
def test_cost_matrices_equal_plain_loops_and_what_the_solver_pays(loss):
    x, y = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(5)).double()
    y = y[:4].clone()
    x[3] = 0
    found = graph_ot(x[None], y[None], loss=loss, phi=0.3)
    figure = cost_matrices(x, y, found.plan[0], loss=loss)
    *expected, d_w, d_gw = costs_by_loops(x, y, found.plan[0], loss == "square")
    for matrix, reference in zip(matrices_of(figure), expected, strict=True):
        np.testing.assert_allclose(matrix, reference, atol=1e-9)
    assert amounts(figure) == [pytest.approx(d_w, abs=6e-4), pytest.approx(d_gw, abs=6e-4)]
    assert 0.3 * d_w + 0.7 * d_gw == pytest.approx(found.cost.item(), abs=1e-6)
    for picture in figure.axes[0].images:
        assert picture.get_clim() == pytest.approx((0, max(map(np.max, expected))))


def test_absent_nodes_are_grey():
    x, y = random(1, 4, 6), random(1, 5, 6, seed=1)
    here = [torch.tensor([[True, False, True, True]]), torch.tensor([[True, True, False, True, False]])]
    plan = graph_ot(x, y, mask_x=here[0], mask_y=here[1]).plan[0]
    figure = cost_matrices(x[0], y[0], plan)
    first, second = here[0][0].numpy(), here[1][0].numpy()
    masks = [np.outer(a, b) for a, b in ((first, second), (first, first), (first, first), (second, second))]
    *expected, d_w, d_gw = costs_by_loops(x[0], y[0], plan, False)
    for matrix, reference, mask in zip(matrices_of(figure), expected, masks, strict=True):
        np.testing.assert_array_equal(np.isfinite(matrix), mask)
        np.testing.assert_allclose(matrix[mask], reference[mask], atol=1e-6)
    assert amounts(figure) == [pytest.approx(d_w, abs=6e-4), pytest.approx(d_gw, abs=6e-4)]


def test_numbers_are_the_costs_of_their_cells():
    angles = torch.tensor([0.0, 1.567, 3.0, 0.02])  # distances from 0 to 1.99, one of them 0.996
    x = torch.stack([angles.cos(), angles.sin()], 1)
    figure = cost_matrices(x, x[:3], torch.eye(4)[:, [0, 1, 2]] / 4 + 0.01)
    axes = figure.axes[0]
    numbers = [t for t in axes.texts if t.get_fontsize() == 6]
    for picture, matrix in zip(axes.images, matrices_of(figure), strict=True):
        cells = {}
        for text in numbers:
            if inside(picture, text.get_position()):
                j, i = pixels(picture, text.get_position())
                cells[int(i), int(j)] = text.get_text()
        assert set(cells) == set(np.ndindex(matrix.shape))
        for place, written in cells.items():
            assert float(written) == pytest.approx(matrix[place], abs=0.0501 if matrix[place] >= 1 else 0.00501)
            assert written == "0" or "." in written
            assert len(written) <= 3


def test_numbers_fit_their_cells():
    """The widest there are, of a graph of 14 nodes."""
    plan = torch.zeros(14, 14)
    plan[0, 0], plan[0, 1] = 0.9, 0.0888
    figures = [draw_plan(plan)[0], cost_matrices(random(14, 3), random(14, 3, seed=1), plan)]
    for figure in figures:
        axes = figure.axes[0]
        numbers = [t for t in axes.texts if t.get_fontsize() == 6]
        assert len(numbers) >= 2
        shown = {len(t.get_text()): t for t in numbers}.values()  # one of each length
        side = axes.images[-1].get_window_extent().width / 14
        for text in shown:
            box = text.get_window_extent()
            assert max(box.width, box.height) < 0.95 * side, text.get_text()


def test_cells_of_the_plan_are_framed_in_the_colour_of_its_lines():
    plan = permutation([0, 2, 1, 3])
    plan[3, 3], plan[3, 0], plan[0, 0], plan[0, 3] = 0.20, 0.05, 0.20, 0.05
    figure = cost_matrices(random(4, 6), random(4, 6, seed=1), plan)
    axes = figure.axes[0]
    found = {}
    for frame in axes.patches:
        j, i = pixels(axes.images[0], frame.get_xy())
        found[int(i), int(j)] = to_hex(frame.get_edgecolor())
    assert found == {(0, 0): GREEN, (1, 2): ORANGE, (2, 1): ORANGE, (3, 3): GREEN}


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((14, 14), {"names": NAMES, "title": "A pair"}),
        ((14, 1), {"names": NAMES, "names_infrared": ["global"]}),
        ((1, 14), {"names": ["global"], "names_infrared": NAMES}),
        ((2, 3), {"names": ["a", "b"], "names_infrared": ["a very long name", "of a node", "c"]}),
        ((1, 1), {}),
        ((18, 30), {}),
    ],
)
def test_nothing_among_the_costs_overlaps(shape, options):
    plan = random(*shape)
    features = random(shape[0], 5), random(shape[1], 5, seed=1)
    check_layout(cost_matrices(*features, plan / plan.sum(), **options))


def test_limits_are_the_ends_of_the_colours_and_of_the_bar():
    features = random(20, 5), random(20, 5, seed=1)
    figure = cost_matrices(*features, torch.eye(20) / 20, limits=(0, 2))
    axes, bar = figure.axes
    assert {p.get_clim() for p in axes.images} == {(0.0, 2.0)}
    assert bar.get_ylim() == (0.0, 2.0)
    same = torch.ones(3, 4)  # rounding must not become colour
    figure = cost_matrices(same, same, torch.eye(3) / 3)
    assert {p.get_clim() for p in figure.axes[0].images} == {(0.0, 1.0)}
    assert amounts(figure) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"visible": torch.ones(3)}, ValueError, r"visible must have shape \(nodes, d\), got \(3,\)"),
        ({"visible": random(4, 5)}, ValueError, r"visible must have shape \(3, 5\), got \(4, 5\)"),
        ({"infrared": random(3, 6)}, ValueError, r"infrared must have shape \(3, 5\), got \(3, 6\)"),
        ({"infrared": torch.ones(3, 5).int()}, TypeError, "infrared must be floating point, got int32"),
        ({"infrared": random(3, 5) / 0}, ValueError, "infrared must be finite"),
        ({"plan": torch.zeros(3, 3)}, ValueError, "plan must carry some mass"),
        ({"loss": "cube"}, ValueError, "loss must be one of 'abs', 'square', got 'cube'"),
        ({"names": ["a"]}, ValueError, "names must hold 3 names, one a node, got 1"),
        ({"limits": 2}, ValueError, r"limits must be \(low, high\), got 2"),
        ({"limits": (2, 2)}, ValueError, "limits must rise from low to high"),
        ({"limits": (0, float("inf"))}, ValueError, "both finite"),
        ({"limits": (0, "2")}, TypeError, "limits must be a number"),
    ],
)
def test_cost_matrices_check_their_input(change, error, message):
    given = {"visible": random(3, 5), "infrared": random(3, 5, seed=1), "plan": torch.eye(3) / 3}
    with pytest.raises(error, match=message):
        cost_matrices(**(given | change))


@pytest.mark.parametrize("picture", ["plan", "costs"])
def test_missing_matplotlib_names_the_extra(picture, hidden):
    hidden("matplotlib")
    draw = {
        "plan": lambda: draw_plan(torch.eye(3) / 3, points=(3, 3)),
        "costs": lambda: cost_matrices(random(3, 5), random(3, 5), torch.eye(3) / 3),
    }[picture]
    with pytest.raises(ImportError, match=r"pip install 'vireid\[plots\]'"):
        draw()
