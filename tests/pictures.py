"""Inputs of the pictures, and readers of the figures."""

import itertools

import numpy as np
import torch

from vireid import plots
from vireid.nn.skeleton import PERSON_13

NAMES = [*PERSON_13.names, "global"]
GREEN, ORANGE = "#009e73", "#d55e00"


def random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def images(*shape, seed=0):
    return (random(*shape, seed=seed) * 256).byte()


def people(count, height=16, width=8, nodes=13, seed=1):
    """Key points (count, nodes, 3) inside of the image, all visible."""
    points = random(count, nodes, 3, seed=seed) * torch.tensor([width, height, 0.0])
    points[..., 2] = 1
    return points


def inputs():
    """Valid arguments of every picture: name -> (function, arguments)."""
    modality = torch.tensor([0, 1])
    pair = {"visible": images(3, 16, 8), "infrared": images(3, 16, 8, seed=1), "plan": torch.eye(3) / 3}
    points = {"points_visible": people(1, nodes=2)[0], "points_infrared": people(1, nodes=2, seed=2)[0]}
    lists = {"queries": images(2, 3, 8, 4), "hits": images(2, 3, 3, 8, 4, seed=1), "correct": random(2, 3) > 0.5}
    features = {"visible": random(3, 5), "infrared": random(3, 5, seed=1), "plan": torch.eye(3) / 3}
    embedded = {"labels": torch.arange(24) // 8, "modality": torch.arange(24) % 2}
    return {
        "attention_maps": (plots.attention_maps, {"images": images(2, 3, 8, 4), "attention": random(2, 3, 4, 2)}),
        "cmc_curves": (plots.cmc_curves, {"curves": {"a": random(4)}}),
        "cost_matrices": (plots.cost_matrices, features),
        "embedding_map": (plots.embedding_map, {"points": random(24, 2), **embedded}),
        "ranked_lists": (plots.ranked_lists, {**lists, "distance": random(2, 3), "modality": modality}),
        "skeleton_graph": (plots.skeleton_graph, {"images": images(2, 3, 16, 8), "keypoints": people(2)}),
        "transport_plan": (plots.transport_plan, pair | points),
        "tsne": (plots.tsne, {"features": random(24, 4), **embedded, "perplexity": 5}),
    }


def draw(name, path=None, **change):
    """The picture ``name`` of its valid arguments, some of them changed."""
    function, given = inputs()[name]
    return function(**(given | change), path=path)


def read_png(path):
    from matplotlib.image import imread

    return (imread(path)[..., :3] * 255).round().astype(int)


def pixels(picture, xy):
    """Places on the canvas as pixels of a picture that is drawn there."""
    left, right, bottom, top = picture.get_extent()
    rows, columns = picture.get_array().shape[:2]
    xy = np.asarray(xy, dtype=float)
    return np.stack([(xy[..., 0] - left) / (right - left) * columns, (xy[..., 1] - top) / (bottom - top) * rows], -1)


def inside(picture, xy):
    left, right, bottom, top = picture.get_extent()
    return left <= xy[0] <= right and top <= xy[1] <= bottom


def same_rows(actual, expected):
    """Whether two sets of rows are one, in any order."""
    actual, expected = (sorted(np.round(np.asarray(x, dtype=float), 3).tolist()) for x in (actual, expected))
    np.testing.assert_allclose(actual, expected, atol=2e-3)


def check_layout(figure, pictures=None):
    """No text leaves the figure, none lies on another, on a picture or on the color bar."""
    axes = figure.axes[0]
    for text in axes.texts:
        text.set_visible(text.get_fontsize() != 6)  # the numbers in the cells have a test of their own
    figure.draw_without_rendering()
    boxes = [(t.get_text(), t.get_window_extent()) for t in axes.texts if t.get_visible() and t.get_text()]
    boxes += [("picture", p.get_window_extent()) for p in (axes.images if pictures is None else pictures)]
    boxes += [("bar", other.get_tightbbox()) for other in figure.axes[1:]]
    whole = figure.bbox
    for name, box in boxes:
        assert whole.x0 <= box.x0 <= box.x1 <= whole.x1, name
        assert whole.y0 <= box.y0 <= box.y1 <= whole.y1, name
    for (name, box), (other, second) in itertools.combinations(boxes, 2):
        assert not box.overlaps(second), (name, other)
