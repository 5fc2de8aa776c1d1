"""CMC curves and ranked lists: what is drawn where."""

import numpy as np
import pytest
import torch

from pictures import check_layout, images, read_png
from vireid import plots
from vireid.plots._drawing import BLUE, GREEN, RED

pytest.importorskip("matplotlib")
from matplotlib.colors import to_hex


def lists(q=2, r=3, **options):
    correct = torch.tensor([[True, False, True], [False, False, True]])[:q, :r]
    return plots.ranked_lists(images(q, 3, 8, 4), images(q, r, 3, 8, 4, seed=1), correct, **options)


def test_cmc_curves_draws_each_curve_in_percent_up_to_max_rank():
    figure = plots.cmc_curves({"one": torch.tensor([0.2, 0.5, 0.9, 1.0]), "two": np.array([0.4, 0.6])}, max_rank=3)
    (axes,) = figure.axes
    one, two = axes.lines
    np.testing.assert_allclose(one.get_xydata(), [[1, 20], [2, 50], [3, 90]], rtol=1e-6)
    np.testing.assert_allclose(two.get_xydata(), [[1, 40], [2, 60]])
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["one (20.0)", "two (40.0)"]
    assert one.get_color() != two.get_color()
    assert one.get_linestyle() != two.get_linestyle()
    assert axes.get_ylim()[1] == 100


def test_a_legend_of_long_names_stands_beside_the_curves():
    figure = plots.cmc_curves({"AIM (k1=8, k2=2, variant=released)": [0.2, 0.5], "none": [0.1, 0.6]})
    figure.draw_without_rendering()
    axes = figure.axes[0]
    assert axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1
    assert axes.get_legend().get_window_extent().x1 <= figure.bbox.x1


def test_cmc_curves_takes_half_precision_and_a_single_rank():
    figure = plots.cmc_curves({"a": torch.tensor([0.5], dtype=torch.bfloat16, requires_grad=True)})
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[1, 50]]


def test_ranked_lists_frame_right_and_wrong_images_differently():
    (axes,) = lists().axes
    colors = [to_hex(frame.get_edgecolor()) for frame in axes.patches]
    assert colors == [BLUE, GREEN, RED, GREEN, BLUE, RED, RED, GREEN]
    dashed = [frame.get_linestyle() not in ("-", "solid") for frame in axes.patches]
    assert dashed == [color == RED for color in colors]


def test_ranked_lists_shows_the_images_themselves_in_order():
    queries, hits = images(2, 3, 8, 4), images(2, 3, 3, 8, 4, seed=1)
    (axes,) = plots.ranked_lists(queries, hits, torch.zeros(2, 3, dtype=torch.bool)).axes
    expected = [picture for q in range(2) for picture in (queries[q], *hits[q])]
    assert len(axes.images) == len(expected)
    for drawn, image in zip(axes.images, expected, strict=True):
        np.testing.assert_allclose(drawn.get_array(), image.permute(1, 2, 0) / 255, atol=1e-6)
    lefts = [drawn.get_extent()[0] for drawn in axes.images]
    tops = [drawn.get_extent()[3] for drawn in axes.images]
    assert lefts[:4] == sorted(set(lefts)) == lefts[4:]
    assert tops[0] == tops[3] < tops[4] == tops[7]


def test_ranked_lists_writes_distance_modality_and_title_without_overlap():
    distance = torch.tensor([[0.1, 0.25, 1.0], [2.0, 3.0, 9.5]])
    figure = lists(distance=distance, modality=torch.tensor([1, 0]), title="a title")
    (axes,) = figure.axes
    shown = [text.get_text() for text in axes.texts]
    assert {"infrared", "visible", "a title", "query", "1", "2", "3", "0.250", "9.500"} <= set(shown)
    assert shown.index("infrared") < shown.index("visible")
    check_layout(figure, axes.patches)


def test_ranked_lists_pixels_reach_the_file(tmp_path):
    path = tmp_path / "lists.png"
    red = torch.zeros(1, 3, 8, 4, dtype=torch.uint8)
    red[:, 0] = 255
    plots.ranked_lists(red, red[:, None], torch.ones(1, 1, dtype=torch.bool), path)
    pixels = read_png(path)
    assert ((pixels == (255, 0, 0)).all(2)).mean() > 0.2
    green = np.array([int(GREEN[i : i + 2], 16) for i in (1, 3, 5)])
    assert (pixels == green).all(2).any()


def test_names_of_rows_stand_in_place_of_the_modality():
    figure = lists(names=["one", "other"])
    assert {"one", "other"} <= {text.get_text() for text in figure.axes[0].texts}
    check_layout(figure, figure.axes[0].patches)
    for wrong in ({"names": ["one"]}, {"names": ["a", "b"], "modality": torch.tensor([0, 1])}):
        with pytest.raises(ValueError, match="names must hold 2 names, one per row, without modality"):
            lists(**wrong)
