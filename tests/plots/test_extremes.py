"""Pictures of numbers at the ends of their type's range: they are drawn, or refused by name."""

import numpy as np
import pytest
import torch

from pictures import draw, inputs, random
from vireid import plots

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

SCALES = [1e300, 1e-35, 1e-310]


@pytest.mark.parametrize("scale", SCALES)
def test_tsne_sees_only_directions(scale):
    """Rows that were not scaled to length 1 ended the process (signal 11)."""
    features = random(12, 4).double() - 0.5
    about = {"labels": torch.arange(12) // 4, "modality": torch.arange(12) % 2, "perplexity": 4}
    figures = [plots.tsne(x, **about) for x in (features * 2.0**20, features * scale)]
    for figure in figures:
        assert all(np.isfinite(dots.get_offsets()).all() for dots in figure.axes[0].collections)


def test_tsne_refuses_directions_without_spread():
    x = random(24, 4).double()
    scales = torch.logspace(-300, 300, 24, dtype=torch.float64)[:, None]
    for equal in (x * 0, x * 0 + 3, x * 1e-12 + 1, x * 1e-170 + 1, x[:1] * scales):
        with pytest.raises(ValueError, match="features must differ between images"):
            draw("tsne", features=equal)


@pytest.mark.parametrize("scale", [*SCALES, 1.7e308])
def test_maps_of_any_scale_are_one_picture(scale, tmp_path):
    points = random(24, 2).double() - 0.5
    points /= points.abs().max()
    figure = draw("embedding_map", points=points * scale, path=tmp_path / "a.png")
    figure.draw_without_rendering()
    (low, high), dots = figure.axes[0].get_xlim(), figure.axes[0].collections[0].get_offsets()[:, 0]
    assert np.ptp(dots) > 0.5 * (high - low)


@pytest.mark.parametrize(
    ("name", "argument"),
    [("attention_maps", "attention"), ("transport_plan", "plan"), ("cost_matrices", "plan")],
)
def test_numbers_that_matplotlib_cannot_subtract_are_refused(name, argument):
    good = inputs()[name][1][argument].double()
    for scale in (1e31, 1e300):
        with pytest.raises(ValueError, match=rf"{argument} must be at most 1e30 in magnitude, got .*e\+3"):
            draw(name, **{argument: good / good.max() * scale})
    draw(name, **{argument: good * 1e-35}).draw_without_rendering()


@pytest.mark.parametrize(
    ("distance", "written"),
    [
        (torch.tensor([[0.25, 1.0, 2.0]]), ["0.250", "1.000", "2.000"]),
        (torch.tensor([[0.25, 12.0, 20.0]]), ["0.2", "12.0", "20.0"]),
        (torch.tensor([[0.5, 1.0, torch.inf]]), ["0.5", "1.0", "inf"]),
        (torch.tensor([[1e300, 2e300, 3e300]], dtype=torch.float64), ["1e+300", "2e+300", "3e+300"]),
        (torch.tensor([[1e-35, 2e-35, 0.0]]), ["1e-35", "2e-35", "0"]),
        (torch.zeros(1, 3), ["0.000"] * 3),
    ],
)
def test_distances_are_written_short(distance, written):
    given = {k: inputs()["ranked_lists"][1][k][:1] for k in ("queries", "hits", "correct")}
    figure = plots.ranked_lists(**given, distance=distance)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert [text for text in texts if text in written] == written


def test_costs_are_of_directions():
    def costs(scale):
        figure = draw("cost_matrices", visible=random(3, 5).double() * scale)
        return figure.axes[0].images[0].get_array()

    for scale in (2.0**1000, 2.0**-1000):
        np.testing.assert_allclose(costs(scale), costs(1.0), atol=1e-12)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_tensors_that_numpy_cannot_hold_are_named():
    for bad in (torch.eye(2).to_sparse(), torch.eye(2).to_sparse_csr(), torch.eye(2).to(torch.float8_e4m3fn)):
        with pytest.raises(TypeError, match="points_infrared must be dense"):
            draw("transport_plan", points_infrared=bad)
