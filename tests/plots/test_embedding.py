"""Features in the plane, and t-SNE against scikit-learn's."""

import sys

import numpy as np
import pytest
import torch

from pictures import random
from vireid import plots
from vireid.plots import embedding
from vireid.plots._drawing import COLORS

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
from matplotlib.colors import to_hex


def points_of(axes):
    """Points of a panel: {(x, y, color, number of the marker's corners)}."""
    return {
        (*map(float, xy), to_hex(color), len(scatter.get_paths()[0]))
        for scatter in axes.collections
        for xy, color in zip(scatter.get_offsets(), scatter.get_facecolors(), strict=True)
    }


def corners(marker):
    from matplotlib.markers import MarkerStyle

    return len(MarkerStyle(marker).get_path())


def test_embedding_map_shows_each_point_in_its_color_and_shape():
    xy = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0], [8.0, 9.0]])
    figure = plots.embedding_map(xy, torch.tensor([7, 3, 7, 9, 3]), torch.tensor([0, 0, 1, 1, 1]), title="a title")
    (axes,) = figure.axes
    colors = dict(zip((3, 7, 9), COLORS, strict=False))
    circle, triangle = corners("o"), corners("^")
    assert circle != triangle
    assert points_of(axes) == {
        (0.0, 1.0, colors[7], circle),
        (2.0, 3.0, colors[3], circle),
        (4.0, 5.0, colors[7], triangle),
        (6.0, 7.0, colors[9], triangle),
        (8.0, 9.0, colors[3], triangle),
    }
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["visible", "infrared", "3 identities"]
    assert figure.get_suptitle() == "a title"
    assert axes.get_aspect() == 1
    assert not axes.get_xticks().size


@pytest.mark.parametrize("count", [8, 20, 60])
def test_embedding_map_has_a_color_for_each_of_many_identities(count):
    figure = plots.embedding_map(random(count, 2), torch.arange(count), torch.zeros(count, dtype=torch.long))
    assert len({color for *_, color, _ in points_of(figure.axes[0])}) == count
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["visible", f"{count} identities"]


def test_embedding_map_draws_panels_of_the_same_images():
    xy = {name: random(6, 2, seed=seed) for seed, name in enumerate(["a", "b", "c", "d"])}
    figure = plots.embedding_map(xy, np.arange(6) // 2, np.arange(6) % 2)
    assert [axes.get_title() for axes in figure.axes] == list(xy)
    for axes, expected in zip(figure.axes, xy.values(), strict=True):
        assert {(x, y) for x, y, *_ in points_of(axes)} == {tuple(map(float, row)) for row in expected}
        assert {(color, n) for *_, color, n in points_of(axes)} == {
            (color, n) for color in COLORS[:3] for n in (corners("o"), corners("^"))
        }
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    for axes in figure.axes:
        assert not legend.overlaps(axes.get_window_extent())


def clusters(identities=3, per=8, dim=16, noise=0.1, seed=0):
    """Features around a random center of each identity, identities and modalities in turn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(identities).repeat(per)
    centers = torch.randn(identities, dim, generator=generator)
    features = centers[labels] + noise * torch.randn(len(labels), dim, generator=generator)
    return features, labels * 10, torch.arange(per).repeat_interleave(identities) % 2


def test_tsne_puts_the_images_of_an_identity_together():
    features, labels, modality = clusters()
    features *= torch.logspace(-3, 3, len(features))[:, None]  # only the direction counts
    (axes,) = plots.tsne(features, labels, modality, perplexity=5).axes
    shown = np.array([(x, y) for x, y, *_ in sorted(points_of(axes))])
    colors = np.array([color for *_, color, _ in sorted(points_of(axes))])
    assert len(shown) == len(features)
    distance = np.linalg.norm(shown[:, None] - shown, axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (colors[distance.argmin(1)] == colors).all()
    assert sorted(n for *_, n in points_of(axes)) == sorted([corners("o"), corners("^")] * 12)


def test_tsne_equals_the_library_on_normalized_rows_and_repeats_itself():
    from sklearn.manifold import TSNE

    features, labels, modality = clusters(noise=2.0)
    drawn = [points_of(plots.tsne(features, labels, modality, perplexity=6, seed=s).axes[0]) for s in (4, 4)]
    assert drawn[0] == drawn[1]
    rows = features.double().numpy()
    rows /= np.sqrt((rows**2).sum(1, keepdims=True))
    expected = TSNE(2, perplexity=6, init="pca", random_state=4).fit_transform(rows)
    assert {(x, y) for x, y, *_ in drawn[0]} == {tuple(map(float, xy)) for xy in expected}


def test_tsne_draws_few_identities_chosen_evenly_the_same_in_each_panel(monkeypatch):
    seen = []
    monkeypatch.setattr(embedding, "_project", lambda name, rows, *_: seen.append(rows) or rows[:, :2])
    features, labels, modality = clusters(identities=7, per=4)
    wide = torch.cat([features, features], 1).half()
    figure = plots.tsne({"a": features, "b": wide}, labels, modality, identities=3, perplexity=5)
    chosen = torch.tensor([int(label) in (0, 30, 60) for label in labels])
    assert [rows.shape for rows in seen] == [(12, 16), (12, 32)]
    np.testing.assert_allclose(seen[0], features[chosen].double() / features[chosen].double().norm(dim=1)[:, None])
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    assert figure.legends[0].get_texts()[-1].get_text() == "3 identities"
    plots.tsne(features, labels, modality, identities=20, perplexity=5)
    assert len(seen[-1]) == len(features)


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(ImportError, match=r"vireid.plots.tsne needs scikit-learn: pip install 'vireid\[plots\]'"):
        plots.tsne(*clusters(), perplexity=5)
