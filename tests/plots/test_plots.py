"""CMC curves, ranked lists, and what holds for the file of every picture."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from vireid import plots
from vireid.plots._drawing import BLUE, GREEN, RED

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


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: plots.attention_maps(images(1, 3, 4, 2), torch.rand(1, 1, 2, 1), path),
        lambda path: plots.embedding_map(torch.rand(2, 2), torch.arange(2), torch.arange(2), path),
    ],
)
def test_every_picture_is_written_whole(draw, tmp_path):
    path = tmp_path / "figure.pdf"
    draw(path)
    assert path.read_bytes().startswith(b"%PDF")
    assert list(tmp_path.iterdir()) == [path]
