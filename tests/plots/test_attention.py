"""Attention maps over images: what is drawn where."""

import numpy as np
import pytest
import torch

from pictures import check_layout, images, random, read_png
from vireid import plots

pytest.importorskip("matplotlib")


def overlays(figure):
    """Pictures of the attention axes as rows: of each row the image, then (gray image, map) of each column."""
    drawn = list(figure.axes[0].images)
    firsts = [i for i, picture in enumerate(drawn) if picture.get_array().ndim == 3]
    rows = [drawn[a:b] for a, b in zip(firsts, [*firsts[1:], len(drawn)], strict=True)]
    return [(row[0], list(zip(row[1::2], row[2::2], strict=True))) for row in rows]


def bilinear(values, height, width):
    """Each pixel from the four values around its center, edges held; pixel by pixel."""
    h, w = values.shape
    out = np.empty((height, width))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * h / height - 0.5, 0), h - 1)
            x = min(max((j + 0.5) * w / width - 0.5, 0), w - 1)
            top, left = min(int(y), max(h - 2, 0)), min(int(x), max(w - 2, 0))
            low, right = min(top + 1, h - 1), min(left + 1, w - 1)
            up = values[top, left] * (1 - (x - left)) + values[top, right] * (x - left)
            down = values[low, left] * (1 - (x - left)) + values[low, right] * (x - left)
            out[i, j] = up * (1 - (y - top)) + down * (y - top)
    return out


def test_attention_maps_lie_over_their_images_enlarged():
    pictures, maps = images(2, 3, 12, 6), random(2, 3, 4, 2)
    rows = overlays(plots.attention_maps(pictures, maps))
    assert len(rows) == 2
    for b, (image, cells) in enumerate(rows):
        np.testing.assert_allclose(image.get_array(), pictures[b].permute(1, 2, 0) / 255, atol=1e-6)
        expected = [*maps[b].numpy(), maps[b].numpy().max(0)]
        assert len(cells) == 4
        for (gray, over), values in zip(cells, expected, strict=True):
            assert gray.get_extent() == over.get_extent()
            np.testing.assert_allclose(over.get_array(), bilinear(values, 12, 6), atol=1e-6)
            luma = sum(w * pictures[b, c] / 255 for c, w in enumerate((0.299, 0.587, 0.114)))
            np.testing.assert_allclose(gray.get_array(), luma, atol=1e-6)
            assert over.get_clim() == (maps.min().item(), maps.max().item())
            assert 0 < over.get_alpha() < 1
    lefts = [[image.get_extent()[0], *(over.get_extent()[0] for _, over in cells)] for image, cells in rows]
    assert lefts[0] == lefts[1] == sorted(set(lefts[0]))


def test_attention_maps_read_flattened_maps_row_by_row_and_float_images():
    pictures, maps = images(1, 3, 6, 4), random(1, 2, 3, 2)
    square = overlays(plots.attention_maps(pictures, maps))
    flat = overlays(plots.attention_maps(pictures / 255, maps.flatten(2), size=(3, 2)))
    half = overlays(plots.attention_maps((pictures / 255).numpy(), maps.bfloat16().requires_grad_()))
    for (_, a), (_, b), (_, c) in zip(square, flat, half, strict=True):
        for (gray, over), (gray_flat, over_flat), (_, over_half) in zip(a, b, c, strict=True):
            np.testing.assert_allclose(gray_flat.get_array(), gray.get_array(), atol=1e-6)
            np.testing.assert_array_equal(over_flat.get_array(), over.get_array())
            np.testing.assert_allclose(over_half.get_array(), over.get_array(), atol=4e-3)


@pytest.mark.parametrize(
    ("combined", "names"), [("max", ["a", "b", "max"]), ("mean", ["a", "b", "mean"]), (None, "ab")]
)
def test_attention_maps_last_column_combines_the_prototypes(combined, names):
    maps = random(1, 2, 6, 3)
    figure = plots.attention_maps(images(1, 3, 6, 3), maps, names=["a", "b"], combined=combined)
    ((_, cells),) = overlays(figure)
    assert [text.get_text() for text in figure.axes[0].texts] == ["image", *names]
    expected = [*maps[0], *({"max": [maps[0].amax(0)], "mean": [maps[0].mean(0)]}.get(combined, []))]
    for (_, over), values in zip(cells, expected, strict=True):
        np.testing.assert_allclose(over.get_array(), values, atol=1e-6)


def bar_labels(figure):
    figure.draw_without_rendering()
    return [label.get_text() for label in figure.axes[1].get_yticklabels()]


def test_attention_maps_state_their_scale():
    pictures, maps = images(2, 3, 6, 3), random(2, 2, 3, 2) * 0.1 + 0.5
    maps[1, 1] = 0.5
    maps[0, 0, 0, 0], maps[0, 0, 2, 1] = 0.5, 0.6
    figure = plots.attention_maps(pictures, maps)
    assert bar_labels(figure) == ["0.500", "0.525", "0.550", "0.575", "0.600"]
    assert figure.axes[1].get_ylabel() == "attention"
    fixed = plots.attention_maps(pictures, maps, scale=(0, 1))
    assert {over.get_clim() for _, cells in overlays(fixed) for _, over in cells} == {(0.0, 1.0)}
    assert bar_labels(fixed) == ["0.00", "0.25", "0.50", "0.75", "1.00"]
    own = plots.attention_maps(pictures, maps, scale="map", combined=None)
    assert bar_labels(own) == ["least", "largest"]
    limits = [over.get_clim() for _, cells in overlays(own) for _, over in cells]
    assert limits[:3] == [(m.min().item(), m.max().item()) for m in (maps[0, 0], maps[0, 1], maps[1, 0])]
    assert limits[3] == (0.5, 1.5)  # a flat map has its lowest color everywhere
    shown = [text.get_text() for text in own.axes[0].texts]
    assert "0.500…0.600" in shown
    assert "0.500…0.500" in shown


def test_attention_maps_write_modality_and_title_without_overlap():
    figure = plots.attention_maps(
        images(2, 3, 8, 4), random(2, 3, 4, 2), modality=torch.tensor([1, 0]), title="a title", scale="map"
    )
    axes, _ = figure.axes
    shown = [text.get_text() for text in axes.texts]
    assert {"a title", "image", "part 1", "part 2", "part 3", "max"} <= set(shown)
    assert shown.index("infrared") < shown.index("visible")
    overlaid = [over for _, cells in overlays(figure) for _, over in cells]
    check_layout(figure, [*axes.patches, *overlaid])


def test_attention_maps_colors_reach_the_file(tmp_path):
    """Over a black image a map's color is the strength's share of the color bar's."""
    from matplotlib import colormaps

    path = tmp_path / "maps.png"
    maps = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand(1, 2, 4, 2)
    figure = plots.attention_maps(torch.zeros(1, 3, 8, 4, dtype=torch.uint8), maps, path, combined=None)
    pixels = read_png(path)
    strength = overlays(figure)[0][1][0][1].get_alpha()
    for value in (0.0, 1.0):
        color = 255 * strength * np.array(colormaps["turbo"](value)[:3])
        assert (np.abs(pixels - color).max(2) <= 2).mean() > 0.05, value
