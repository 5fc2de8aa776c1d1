"""Costs of a transport plan: drawn amounts against plain loops, and that nothing overlaps."""

import itertools
import re

import numpy as np
import pytest
import torch

from pictures import GREEN, NAMES, ORANGE, check_layout, images, inside, people, pixels, random
from vireid.ot import graph_ot
from vireid.plots import cost_matrices, transport_plan

pytest.importorskip("matplotlib")
from matplotlib.colors import to_hex


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


def test_absent_nodes_are_gray():
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
    points = {"points_visible": people(1)[0], "points_infrared": people(1)[0]}
    figures = [
        transport_plan(images(3, 16, 8), images(3, 16, 8), plan, **points),
        cost_matrices(random(14, 3), random(14, 3, seed=1), plan),
    ]
    for figure in figures:
        axes = figure.axes[0]
        numbers = [t for t in axes.texts if t.get_fontsize() == 6]
        assert len(numbers) >= 2
        shown = {len(t.get_text()): t for t in numbers}.values()  # one of each length
        side = axes.images[-1].get_window_extent().width / 14
        for text in shown:
            box = text.get_window_extent()
            assert max(box.width, box.height) < 0.95 * side, text.get_text()


def test_cells_of_the_plan_are_framed_in_the_color_of_its_lines():
    plan = torch.eye(4)[[0, 2, 1, 3]] / 4
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
        ((6, 22), {}),  # too many for a number in each cell or a name at each
    ],
)
def test_nothing_among_the_costs_overlaps(shape, options):
    plan = random(*shape)
    features = random(shape[0], 5), random(shape[1], 5, seed=1)
    check_layout(cost_matrices(*features, plan / plan.sum(), **options))


def test_limits_are_the_ends_of_the_colors_and_of_the_bar():
    features = random(20, 5), random(20, 5, seed=1)
    figure = cost_matrices(*features, torch.eye(20) / 20, limits=(0, 2))
    axes, bar = figure.axes
    assert {p.get_clim() for p in axes.images} == {(0.0, 2.0)}
    assert bar.get_ylim() == (0.0, 2.0)
    same = torch.ones(3, 4)  # rounding must not become color
    figure = cost_matrices(same, same, torch.eye(3) / 3)
    assert {p.get_clim() for p in figure.axes[0].images} == {(0.0, 1.0)}
    assert amounts(figure) == [0.0, 0.0]
