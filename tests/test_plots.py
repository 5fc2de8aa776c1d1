import subprocess
import sys

import numpy as np
import pytest
import torch

from vireid import plots
from vireid.metrics import affinity_quality, feature_margin
from vireid.plots import embedding
from vireid.plots._drawing import BLUE, COLORS, GREEN, RED

pytest.importorskip("matplotlib")
from matplotlib.colors import to_hex


def images(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def read_png(path):
    from matplotlib.image import imread

    return (imread(path)[..., :3] * 255).round().astype(np.uint8)


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


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, "at least one curve"),
        ({"a": torch.rand(2, 2)}, r"curves\['a'\] must have shape \(R,\)"),
        ({"a": torch.tensor([])}, "R >= 1"),
        ({"a": torch.tensor([50.0, 60.0])}, r"must lie in \[0, 1\], got 50.0 to 60.0"),
        ({"a": torch.tensor([float("nan")])}, r"must lie in \[0, 1\]"),
    ],
)
def test_cmc_curves_checks_its_curves(curves, message):
    with pytest.raises(ValueError, match=message):
        plots.cmc_curves(curves)


def test_cmc_curves_checks_max_rank():
    with pytest.raises(ValueError, match="max_rank must be at least 1, got 0"):
        plots.cmc_curves({"a": torch.ones(1)}, max_rank=0)


def test_ranked_lists_frames_show_what_is_right():
    (axes,) = lists().axes
    colors = [to_hex(frame.get_edgecolor()) for frame in axes.patches]
    assert colors == [BLUE, GREEN, RED, GREEN, BLUE, RED, RED, GREEN]
    dashed = [frame.get_linestyle() not in ("-", "solid") for frame in axes.patches]
    assert dashed == [color == RED for color in colors]


def test_ranked_lists_shows_the_images_themselves_in_order():
    queries, hits = images(2, 3, 8, 4), images(2, 3, 3, 8, 4, seed=1)
    before = queries.clone(), hits.clone()
    (axes,) = plots.ranked_lists(queries, hits, torch.zeros(2, 3, dtype=torch.bool)).axes
    expected = [picture for q in range(2) for picture in (queries[q], *hits[q])]
    assert len(axes.images) == len(expected)
    for drawn, image in zip(axes.images, expected, strict=True):
        np.testing.assert_array_equal(drawn.get_array(), image.permute(1, 2, 0))
    lefts = [drawn.get_extent()[0] for drawn in axes.images]
    tops = [drawn.get_extent()[3] for drawn in axes.images]
    assert lefts[:4] == sorted(set(lefts)) == lefts[4:]
    assert tops[0] == tops[3] < tops[4] == tops[7]
    assert torch.equal(queries, before[0])
    assert torch.equal(hits, before[1])


def test_ranked_lists_writes_distance_modality_and_title_without_overlap():
    distance = torch.tensor([[0.1, 0.25, 1.0], [2.0, 3.0, 9.5]])
    figure = lists(distance=distance, modality=torch.tensor([1, 0]), title="a title")
    (axes,) = figure.axes
    shown = [text.get_text() for text in axes.texts]
    assert {"infrared", "visible", "a title", "query", "1", "2", "3", "0.250", "9.500"} <= set(shown)
    assert shown.index("infrared") < shown.index("visible")
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    boxes += [frame.get_window_extent() for frame in axes.patches]
    whole = figure.bbox
    for i, box in enumerate(boxes):
        assert whole.x0 <= box.x0 <= box.x1 <= whole.x1, i
        assert whole.y0 <= box.y0 <= box.y1 <= whole.y1, i
        assert not any(box.overlaps(other) for other in boxes[i + 1 :]), i


def test_ranked_lists_pixels_reach_the_file(tmp_path):
    path = tmp_path / "lists.png"
    red = torch.zeros(1, 3, 8, 4, dtype=torch.uint8)
    red[:, 0] = 255
    plots.ranked_lists(red, red[:, None], torch.ones(1, 1, dtype=torch.bool), path)
    pixels = read_png(path)
    assert ((pixels == (255, 0, 0)).all(2)).mean() > 0.2
    green = np.array([int(GREEN[i : i + 2], 16) for i in (1, 3, 5)])
    assert (pixels == green).all(2).any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"queries": torch.rand(2, 3, 8, 4)}, TypeError, "queries must be uint8 images, got float32"),
        ({"correct": torch.ones(2, 3)}, TypeError, "correct must be bool, got float32"),
        ({"queries": images(2, 1, 8, 4)}, ValueError, r"queries must have shape \(Q, 3, H, W\)"),
        ({"hits": images(2, 3, 3, 8, 5)}, ValueError, r"hits must have shape \(2, R, 3, 8, 4\)"),
        ({"hits": images(2, 0, 3, 8, 4)}, ValueError, "R >= 1"),
        (
            {"correct": torch.ones(2, 4, dtype=torch.bool)},
            ValueError,
            r"correct must have shape \(2, 3\), got \(2, 4\)",
        ),
        ({"distance": torch.ones(2, 4)}, ValueError, r"distance must have shape \(2, 3\)"),
        ({"modality": torch.ones(3)}, ValueError, r"modality must have shape \(2,\)"),
        ({"modality": torch.tensor([0, 2])}, ValueError, r"modality must hold 0 \(visible\) or 1"),
    ],
)
def test_ranked_lists_checks_its_input(change, error, message):
    given = {
        "queries": images(2, 3, 8, 4),
        "hits": images(2, 3, 3, 8, 4),
        "correct": torch.ones(2, 3, dtype=torch.bool),
    }
    with pytest.raises(error, match=message):
        plots.ranked_lists(**(given | change))


def draw_sweep(seed=0, repeats=5, **options):
    generator = torch.Generator().manual_seed(seed)
    return plots.feature_affinity_sweep(steps=4, repeats=repeats, generator=generator, **options)


def test_sweep_runs_from_chance_to_perfect_and_back_to_the_same_numbers():
    sweep = draw_sweep(affinity_signal=12.0)
    assert sweep.feature.shape == sweep.affinity.shape == sweep.transferred.shape == (4, 4)
    # features are the rows, affinities the columns
    assert torch.equal(sweep.feature, sweep.feature[:, :1].expand(4, 4))
    assert torch.equal(sweep.affinity, sweep.affinity[:1].expand(4, 4))
    assert abs(sweep.feature[0, 0]) < 0.02
    assert sweep.affinity[0, 0] == 0
    assert sweep.affinity[0, -1] == 1
    # every image on its identity's centre: the margin is the mean distance of random directions, about sqrt(2)
    assert abs(sweep.feature[-1, 0] - 2**0.5) < 0.05
    assert abs(sweep.transferred[-1, -1] - sweep.feature[-1, -1]) < 0.02
    assert (sweep.feature.diff(dim=0) > 0).all()
    assert (sweep.affinity.diff(dim=1) >= 0).all()
    assert (sweep.transferred[:, 1:].diff(dim=1) > 0).all()
    again, other = draw_sweep(affinity_signal=12.0), draw_sweep(1, affinity_signal=12.0)
    assert torch.equal(sweep.transferred, again.transferred)
    assert not torch.equal(sweep.transferred, other.transferred)


def test_sweep_equals_one_draw_by_hand():
    """One draw of the docstring's recipe, setting by setting, row by row."""
    sweep = draw_sweep(repeats=1, identities=3, per_identity=2, dim=5, affinity_signal=4.0)
    g = torch.Generator().manual_seed(0)
    centers, own = torch.randn(3, 5, generator=g), torch.randn(6, 5, generator=g)
    noise = torch.randn(6, 6, generator=g)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    for s, t in enumerate([1.0, 2 / 3, 1 / 3, 0.0]):
        rows = []
        for i in range(6):
            c = centers[labels[i]] / centers[labels[i]].norm()
            row = (1 - t * t) ** 0.5 * c + t * own[i] / own[i].norm()
            rows.append(row / row.norm())
        x = torch.stack(rows)
        assert sweep.feature[s, 0].item() == pytest.approx(feature_margin(x, labels), abs=1e-5)
        for column, signal in enumerate([0.0, 4 / 3, 8 / 3, 4.0]):
            a = torch.empty(6, 6)
            for i in range(6):
                for j in range(6):
                    a[i, j] = (signal * (labels[i] == labels[j]) + noise[i, j]).exp()
                a[i] /= a[i].sum()
            y = torch.stack([row / row.norm() for row in (sum(a[i, j] * x[j] for j in range(6)) for i in range(6))])
            assert sweep.affinity[s, column].item() == pytest.approx(affinity_quality(a, labels))
            assert sweep.transferred[s, column].item() == pytest.approx(feature_margin(y, labels), abs=1e-5)


def test_sweep_uses_torch_s_own_generator_when_none_is_given():
    torch.manual_seed(3)
    a = plots.feature_affinity_sweep(steps=2, repeats=1)
    torch.manual_seed(3)
    b = plots.feature_affinity_sweep(steps=2, repeats=1)
    assert torch.equal(a.transferred, b.transferred)


@pytest.mark.parametrize("name", ["identities", "per_identity", "steps", "dim", "repeats", "affinity_signal"])
def test_sweep_checks_its_numbers(name):
    with pytest.raises(ValueError, match=f"{name} must be"):
        plots.feature_affinity_sweep(**{name: 0})


def test_surface_has_both_views_and_its_parts_are_checked():
    sweep = draw_sweep(repeats=1)
    figure = plots.affinity_quality_surface(sweep)
    assert {axes.name for axes in figure.axes} == {"rectilinear", "3d"}
    short = plots.AffinitySweep(sweep.feature[:2], sweep.affinity, sweep.transferred)
    with pytest.raises(ValueError, match=r"sweep.feature must have shape \(4, 4\), got \(2, 4\)"):
        plots.affinity_quality_surface(short)
    line = plots.AffinitySweep(*(part[:1] for part in (sweep.feature, sweep.affinity, sweep.transferred)))
    with pytest.raises(ValueError, match=r"\(S, T\) with S, T >= 2, got \(1, 4\)"):
        plots.affinity_quality_surface(line)


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_the_suffix_chooses_the_format(suffix, start, tmp_path):
    path = tmp_path / f"figure.{suffix}"
    lists(path=path)
    assert path.read_bytes().startswith(start)
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    path = tmp_path / "figure.png"
    path.write_bytes(b"old")

    def fail(self, file, **options):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        lists(path=path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none at .*missing"):
        lists(path=tmp_path / "missing" / "figure.png")
    with pytest.raises(ValueError, match=r"path must end in one of .*png.*, got .*figure\.xyz"):
        lists(path=tmp_path / "figure.xyz")


def test_missing_matplotlib_names_the_extra(hidden):
    hidden("matplotlib")
    with pytest.raises(ImportError, match=r"pip install 'vireid\[plots\]'"):
        plots.cmc_curves({"a": torch.ones(1)})


def test_no_pyplot_and_no_display_is_needed(tmp_path):
    code = (
        "import sys, torch; from vireid import plots; assert 'matplotlib' not in sys.modules;"
        f"plots.cmc_curves({{'a': torch.ones(3)}}, {str(tmp_path / 'a.png')!r});"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "a.png").stat().st_size > 0


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
    figure = plots.cost_curves(records, title="of a test")
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


def test_cost_curves_of_one_group_share_a_colour():
    records = [cost(name, 10, 1, 1, group=group) for name, group in (("a", "x"), ("b", "y"), ("c", "x"))]
    a, b, c = plots.cost_curves([*records, cost("d", 10, 1, 1)]).axes[0].lines[:3]
    assert a.get_color() == c.get_color() != b.get_color()
    assert a.get_linestyle() != c.get_linestyle()
    assert a.get_marker() != c.get_marker()


def test_cost_curves_without_memory_or_without_any_figure(tmp_path):
    records = [cost("a", 10, 1), cost("a", 20, 2), cost("b", 10, stopped="time")]
    figure = plots.cost_curves(records, tmp_path / "cost.png")
    (axes,) = figure.axes
    assert axes.get_ylabel() == "Time (s)"
    assert [len(line.get_xydata()) for line in axes.lines] == [2, 0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b  × time at 10"]
    assert read_png(tmp_path / "cost.png").std() > 0


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
        plots.cost_curves(records)


# -- Attention maps ------------------------------------------------------------------------------------------------


def attention(*shape, seed=3):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def overlays(figure):
    """Pictures of the attention axes as rows: of each row the image, then (grey image, map) of each column."""
    drawn = list(figure.axes[0].images)
    firsts = [i for i, picture in enumerate(drawn) if picture.get_array().ndim == 3]
    rows = [drawn[a:b] for a, b in zip(firsts, [*firsts[1:], len(drawn)], strict=True)]
    return [(row[0], list(zip(row[1::2], row[2::2], strict=True))) for row in rows]


def bilinear(values, height, width):
    """Each pixel from the four values around its centre, edges held; pixel by pixel."""
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
    pictures, maps = images(2, 3, 12, 6), attention(2, 3, 4, 2)
    before = pictures.clone(), maps.clone()
    rows = overlays(plots.attention_maps(pictures, maps))
    assert len(rows) == 2
    for b, (image, cells) in enumerate(rows):
        np.testing.assert_allclose(image.get_array(), pictures[b].permute(1, 2, 0) / 255, atol=1e-6)
        expected = [*maps[b].numpy(), maps[b].numpy().max(0)]
        assert len(cells) == 4
        for (grey, over), values in zip(cells, expected, strict=True):
            assert grey.get_extent() == over.get_extent()
            np.testing.assert_allclose(over.get_array(), bilinear(values, 12, 6), atol=1e-6)
            luma = sum(w * pictures[b, c] / 255 for c, w in enumerate((0.299, 0.587, 0.114)))
            np.testing.assert_allclose(grey.get_array(), luma, atol=1e-6)
            assert over.get_clim() == (maps.min().item(), maps.max().item())
            assert 0 < over.get_alpha() < 1
    lefts = [[image.get_extent()[0], *(over.get_extent()[0] for _, over in cells)] for image, cells in rows]
    assert lefts[0] == lefts[1] == sorted(set(lefts[0]))
    assert torch.equal(pictures, before[0])
    assert torch.equal(maps, before[1])


def test_attention_maps_read_flattened_maps_row_by_row_and_float_images():
    pictures, maps = images(1, 3, 6, 4), attention(1, 2, 3, 2)
    square = overlays(plots.attention_maps(pictures, maps))
    flat = overlays(plots.attention_maps(pictures / 255, maps.flatten(2), size=(3, 2)))
    half = overlays(plots.attention_maps((pictures / 255).numpy(), maps.bfloat16().requires_grad_()))
    for (_, a), (_, b), (_, c) in zip(square, flat, half, strict=True):
        for (grey, over), (grey_flat, over_flat), (_, over_half) in zip(a, b, c, strict=True):
            np.testing.assert_allclose(grey_flat.get_array(), grey.get_array(), atol=1e-6)
            np.testing.assert_array_equal(over_flat.get_array(), over.get_array())
            np.testing.assert_allclose(over_half.get_array(), over.get_array(), atol=4e-3)


@pytest.mark.parametrize(
    ("combined", "names"), [("max", ["a", "b", "max"]), ("mean", ["a", "b", "mean"]), (None, "ab")]
)
def test_attention_maps_last_column_combines_the_prototypes(combined, names):
    maps = attention(1, 2, 6, 3)
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
    pictures, maps = images(2, 3, 6, 3), attention(2, 2, 3, 2) * 0.1 + 0.5
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
    assert limits[3] == (0.5, 1.5)  # a flat map has its lowest colour everywhere
    shown = [text.get_text() for text in own.axes[0].texts]
    assert "0.500…0.600" in shown
    assert "0.500…0.500" in shown


def test_attention_maps_write_modality_and_title_without_overlap():
    figure = plots.attention_maps(
        images(2, 3, 8, 4), attention(2, 3, 4, 2), modality=torch.tensor([1, 0]), title="a title", scale="map"
    )
    axes, bar = figure.axes
    shown = [text.get_text() for text in axes.texts]
    assert {"a title", "image", "part 1", "part 2", "part 3", "max"} <= set(shown)
    assert shown.index("infrared") < shown.index("visible")
    figure.draw_without_rendering()
    boxes = [item.get_window_extent() for item in (*axes.texts, *axes.patches)]
    boxes += [over.get_window_extent() for _, cells in overlays(figure) for _, over in cells]
    boxes.append(bar.get_tightbbox())
    whole = figure.bbox
    for i, box in enumerate(boxes):
        assert whole.x0 <= box.x0 <= box.x1 <= whole.x1, i
        assert whole.y0 <= box.y0 <= box.y1 <= whole.y1, i
        assert not any(box.overlaps(other) for other in boxes[i + 1 :]), i


def test_attention_maps_colours_reach_the_file(tmp_path):
    """Over a black image a map's colour is the strength's share of the colour bar's."""
    from matplotlib import colormaps

    path = tmp_path / "maps.png"
    maps = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand(1, 2, 4, 2)
    figure = plots.attention_maps(torch.zeros(1, 3, 8, 4, dtype=torch.uint8), maps, path, combined=None)
    pixels = read_png(path).astype(int)
    strength = overlays(figure)[0][1][0][1].get_alpha()
    for value in (0.0, 1.0):
        color = 255 * strength * np.array(colormaps["turbo"](value)[:3])
        assert (np.abs(pixels - color).max(2) <= 2).mean() > 0.05, value


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": images(2, 3, 8, 4).int()}, TypeError, "images must be uint8 or floating point, got int32"),
        ({"images": images(2, 1, 8, 4)}, ValueError, r"images must have shape \(B, 3, H, W\) with B >= 1"),
        ({"images": images(0, 3, 8, 4)}, ValueError, "B >= 1"),
        (
            {"images": torch.full((2, 3, 8, 4), 1.5)},
            ValueError,
            r"images must lie in \[0, 1\], not normalised, got 1.5",
        ),
        ({"images": torch.full((2, 3, 8, 4), float("nan"))}, ValueError, r"images must lie in \[0, 1\]"),
        ({"attention": torch.ones(2, 3, 4, 2, dtype=torch.int64)}, TypeError, "attention must be floating point"),
        ({"attention": attention(1, 3, 4, 2)}, ValueError, r"attention must have shape \(2, p, h, w\), got \(1, 3"),
        ({"attention": attention(2, 0, 4, 2)}, ValueError, r"attention must have shape \(2, p, h, w\)"),
        ({"attention": attention(2, 3, 8)}, ValueError, r"or \(B, p, h·w\) with size, got \(2, 3, 8\)"),
        ({"attention": attention(2, 3, 8), "size": (3, 2)}, ValueError, r"shape \(2, p, 6\) for size \(3, 2\)"),
        ({"size": (4, 2)}, ValueError, r"shape \(2, p, 8\) for size \(4, 2\), got \(2, 3, 4, 2\)"),
        ({"attention": attention(2, 3, 8), "size": (0, 8)}, ValueError, "size must be at least 1"),
        ({"attention": attention(2, 3, 4, 2) / 0}, ValueError, "attention must be finite"),
        ({"names": ["a", "b"]}, ValueError, "names must hold 3 names, one a prototype, got 2"),
        ({"modality": torch.tensor([0, 2])}, ValueError, r"modality must hold 0 \(visible\) or 1"),
        ({"combined": "sum"}, ValueError, "combined must be one of 'max', 'mean', got 'sum'"),
        ({"scale": "row"}, ValueError, "scale must be one of 'common', 'map', got 'row'"),
        ({"scale": (1,)}, ValueError, r"scale must be 'common', 'map' or \(low, high\), got \(1,\)"),
        ({"scale": (1, 1)}, ValueError, "scale must rise from low to high"),
        ({"scale": (0, float("inf"))}, ValueError, "scale must rise from low to high, both finite"),
        ({"scale": (0, "1")}, TypeError, "scale must be a number"),
    ],
)
def test_attention_maps_check_their_input(change, error, message):
    given = {"images": images(2, 3, 8, 4), "attention": attention(2, 3, 4, 2)}
    with pytest.raises(error, match=message):
        plots.attention_maps(**(given | change))


# -- Features in the plane -----------------------------------------------------------------------------------------


def points_of(axes):
    """What a panel shows: {(x, y, colour, number of the marker's corners)}."""
    return {
        (*map(float, xy), to_hex(color), len(scatter.get_paths()[0]))
        for scatter in axes.collections
        for xy, color in zip(scatter.get_offsets(), scatter.get_facecolors(), strict=True)
    }


def corners(marker):
    from matplotlib.markers import MarkerStyle

    return len(MarkerStyle(marker).get_path())


def test_embedding_map_shows_each_point_in_its_colour_and_shape():
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
def test_embedding_map_has_a_colour_for_each_of_many_identities(count):
    figure = plots.embedding_map(attention(count, 2), torch.arange(count), torch.zeros(count, dtype=torch.long))
    assert len({color for *_, color, _ in points_of(figure.axes[0])}) == count
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["visible", f"{count} identities"]


def test_embedding_map_draws_panels_of_the_same_images():
    xy = {name: attention(6, 2, seed=seed) for seed, name in enumerate(["a", "b", "c", "d"])}
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": {}}, "points must hold at least one panel, got none"),
        ({"points": attention(4, 3)}, r"points must have shape \(4, 2\), got \(4, 3\)"),
        ({"points": {"a": attention(3, 2)}}, r"points\['a'\] must have shape \(4, 2\), got \(3, 2\)"),
        ({"points": attention(4, 2) / 0}, "points must be finite"),
        ({"labels": torch.ones(4, 1)}, r"labels must have shape \(N,\) with N >= 1, got \(4, 1\)"),
        ({"labels": torch.ones(0)}, "N >= 1"),
        ({"modality": torch.ones(3)}, r"modality must have shape \(4,\)"),
        ({"modality": torch.full((4,), 2)}, "modality must hold 0"),
    ],
)
def test_embedding_map_checks_its_input(change, message):
    given = {"points": attention(4, 2), "labels": torch.arange(4), "modality": torch.zeros(4, dtype=torch.long)}
    with pytest.raises(ValueError, match=message):
        plots.embedding_map(**(given | change))


def clusters(identities=3, per=8, dim=16, noise=0.1, seed=0):
    """Features around a random centre of each identity, identities and modalities in turn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(identities).repeat(per)
    centers = torch.randn(identities, dim, generator=generator)
    features = centers[labels] + noise * torch.randn(len(labels), dim, generator=generator)
    return features, labels * 10, torch.arange(per).repeat_interleave(identities) % 2


@pytest.fixture
def sklearn():
    return pytest.importorskip("sklearn")


def test_tsne_puts_an_identity_s_images_together(sklearn):
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


def test_tsne_equals_the_library_on_normalised_rows_and_repeats_itself(sklearn):
    from sklearn.manifold import TSNE

    features, labels, modality = clusters(noise=2.0)
    before = features.clone()
    drawn = [points_of(plots.tsne(features, labels, modality, perplexity=6, seed=s).axes[0]) for s in (4, 4)]
    assert drawn[0] == drawn[1]
    rows = features.double().numpy()
    rows /= np.sqrt((rows**2).sum(1, keepdims=True))
    expected = TSNE(2, perplexity=6, init="pca", random_state=4).fit_transform(rows)
    assert {(x, y) for x, y, *_ in drawn[0]} == {tuple(map(float, xy)) for xy in expected}
    assert torch.equal(features, before)


def test_tsne_draws_few_identities_chosen_evenly_the_same_in_each_panel(sklearn, monkeypatch):
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


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": torch.ones(24, 16, dtype=torch.int64)}, TypeError, "features must be floating point"),
        ({"features": {"a": torch.rand(24)}}, ValueError, r"features\['a'\] must have shape \(N, d\)"),
        ({"features": torch.rand(23, 4)}, ValueError, r"features must have shape \(24, d\) with d >= 2, got \(23, 4\)"),
        ({"features": torch.rand(24, 1)}, ValueError, "d >= 2"),
        ({"features": torch.rand(24, 4) / 0}, ValueError, "features must be finite"),
        ({"features": torch.ones(24, 4)}, ValueError, "features must differ between images"),
        ({"features": {}}, ValueError, "at least one panel"),
        ({"labels": torch.ones(24)}, ValueError, "labels must be integers"),
        ({"labels": torch.ones(24, 1, dtype=torch.int64)}, ValueError, r"labels must be integers of shape \(N,\)"),
        ({"modality": torch.ones(23)}, ValueError, r"modality must have shape \(24,\)"),
        ({"identities": 0}, ValueError, "identities must be at least 1"),
        ({"perplexity": 24}, ValueError, "perplexity must be below the number of images shown, 24, got 24"),
        ({"perplexity": 9, "identities": 1}, ValueError, "images shown, 8, got 9"),
        ({"perplexity": 0}, ValueError, "perplexity must be above 0"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
    ],
)
def test_tsne_checks_its_input(sklearn, change, error, message):
    features, labels, modality = clusters()
    given = {"features": features, "labels": labels, "modality": modality, "perplexity": 5}
    with pytest.raises(error, match=message):
        plots.tsne(**(given | change))


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(ImportError, match=r"vireid.plots.tsne needs scikit-learn: pip install 'vireid\[plots\]'"):
        plots.tsne(*clusters(), perplexity=5)


# -- Sensitivity ---------------------------------------------------------------------------------------------------


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
    figure = plots.sensitivity_curves(records, parameter="λ", title="a title")
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
    far = plots.sensitivity_curves(records, parameter="λ", spacing="value")
    np.testing.assert_allclose(lines_of(far.axes[0])["rank-1"][0], [[0, 50], [0.5, 50.5], [2, 52]])
    np.testing.assert_allclose(lines_of(far.axes[0])["mAP"][2], [0, 40])  # the first of equal means
    named = plots.sensitivity_curves([trial(v, 1, 2) for v in ("sigmoid", "logits")], parameter="maps", metrics=["mAP"])
    (axes,) = named.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["sigmoid", "logits"]
    assert list(lines_of(axes)) == ["mAP"]
    with pytest.raises(ValueError, match=r"spacing='value' needs numbers, got \['sigmoid'\]"):
        plots.sensitivity_curves([trial("sigmoid", 1, 2)], parameter="maps", spacing="value")


@pytest.mark.parametrize("panels", [1, 2])
def test_sensitivity_curves_legend_and_labels_are_whole(panels, tmp_path):
    directions = ("visible_to_infrared", "infrared_to_visible")[:panels]
    more = {"rank1 + AIM": 60, "mAP + AIM": 40}
    records = [trial(v, 50 + v, 30, direction=d, **more) for v in range(9) for d in directions]
    figure = plots.sensitivity_curves(
        records, tmp_path / "s.png", parameter="p, number of learned prototypes", metrics=["rank1", "mAP", *more]
    )
    figure.draw_without_rendering()
    whole, legend = figure.bbox, figure.legends[0].get_window_extent()
    for box in (legend, *(axes.get_tightbbox() for axes in figure.axes)):
        assert whole.x0 <= box.x0 <= box.x1 <= whole.x1
        assert whole.y0 <= box.y0 <= box.y1 <= whole.y1
    for axes in figure.axes:
        assert not legend.overlaps(axes.get_tightbbox())
    assert read_png(tmp_path / "s.png").std() > 0


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
        plots.sensitivity_curves(records, parameter="p", **options)


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: plots.attention_maps(images(1, 3, 4, 2), attention(1, 1, 2, 1), path),
        lambda path: plots.embedding_map(attention(2, 2), torch.arange(2), torch.arange(2), path),
        lambda path: plots.sensitivity_curves([trial(1, 1, 1)], path, parameter="p"),
    ],
)
def test_every_picture_is_written_whole(draw, tmp_path):
    path = tmp_path / "figure.pdf"
    draw(path)
    assert path.read_bytes().startswith(b"%PDF")
    assert list(tmp_path.iterdir()) == [path]
