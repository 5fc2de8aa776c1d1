"""Skeletons over images: what is drawn where, and that nothing overlaps."""

import numpy as np
import pytest
import torch

from pictures import check_layout, images, inside, people, pixels, read_png, same_rows
from vireid.nn.skeleton import COCO_17, PERSON_13, Skeleton
from vireid.plots.skeleton import LEFT, MIDDLE, RIGHT, skeleton_graph

pytest.importorskip("matplotlib")
from matplotlib.colors import to_hex


def bones_of(figure):
    """Of each picture: [(color, pixels of the two ends)], without rims and frames."""
    axes = figure.axes[0]
    found = [[] for _ in axes.images]
    for line in axes.lines:
        if line.get_linewidth() == 1.5:
            place = next(i for i, p in enumerate(axes.images) if inside(p, line.get_xydata()[0]))
            found[place].append((to_hex(line.get_color()), pixels(axes.images[place], line.get_xydata())))
    return found


def points_of(figure):
    """Of each picture: [(color, pixels)] of the key points."""
    axes = figure.axes[0]
    found = [[] for _ in axes.images]
    for scatter in axes.collections:
        colors = scatter.get_facecolors()
        for n, xy in enumerate(scatter.get_offsets()):
            for i, picture in enumerate(axes.images):
                if inside(picture, xy):
                    found[i].append((to_hex(colors[n]), pixels(picture, xy)))
    return found


def test_bones_and_key_points_lie_where_they_are_and_the_unseen_are_left_out():
    keypoints = people(3)
    keypoints[1, 3, 2] = 0  # not visible
    keypoints[1, 4, 0] = 8.01  # beyond the right edge
    keypoints[1, 5, 1] = -0.01
    keypoints[1, 6, 0] = float("nan")
    keypoints[1, 7, :2] = torch.tensor([8.0, 16.0])  # on the corner
    keypoints[2, :, 2] = 0
    figure = skeleton_graph(images(3, 3, 16, 8), keypoints)
    for b, (bones, points) in enumerate(zip(bones_of(figure), points_of(figure), strict=True)):
        gone = ((), (3, 4, 5, 6), range(13))[b]
        here = [n for n in range(13) if n not in gone]
        same_rows([xy for _, xy in points], keypoints[b, here, :2])
        expected = [
            [*keypoints[b, i, :2].tolist(), *keypoints[b, j, :2].tolist()]
            for i, j in PERSON_13.bones
            if i in here and j in here
        ]
        same_rows([xy.reshape(4) for _, xy in bones], expected)


def test_sides_are_told_apart_by_color():
    names = ("head", "left_hand", "right_hand", "left_foot", "lefty")
    bones = ((0, 1), (2, 0), (1, 2), (1, 3), (0, 4))
    keypoints = people(1, nodes=5)
    figure = skeleton_graph(images(1, 3, 16, 8), keypoints, skeleton=Skeleton(names, bones))
    white = to_hex(MIDDLE)
    expected = dict(zip(bones, (LEFT, RIGHT, white, LEFT, white), strict=True))
    for color, xy in bones_of(figure)[0]:
        near = [int((keypoints[0, :, :2] - torch.tensor(end)).norm(dim=1).argmin()) for end in xy]
        assert expected.pop(tuple(near)) == color
    assert not expected
    colors = {tuple(np.round(xy, 3)): color for color, xy in points_of(figure)[0]}
    ordered = [colors[tuple(np.round(xy.tolist(), 3))] for xy in keypoints[0, :, :2].double().numpy()]
    assert ordered == [white, LEFT, RIGHT, LEFT, white]
    assert [t.get_text() for t in figure.axes[0].texts] == ["● left", "● right"]


def test_images_stand_in_rows_in_order_as_they_are():
    pictures = images(5, 3, 16, 8)
    modality = torch.tensor([0, 1, 1, 0, 1])
    figure = skeleton_graph(pictures, people(5), modality=modality, columns=2)
    drawn = figure.axes[0].images
    for picture, image in zip(drawn, pictures, strict=True):
        np.testing.assert_allclose(picture.get_array(), image.permute(1, 2, 0) / 255, atol=1e-6)
    lefts, tops = ([p.get_extent()[k] for p in drawn] for k in (0, 3))
    assert lefts[0] == lefts[2] == lefts[4] < lefts[1] == lefts[3]
    assert tops[0] == tops[1] < tops[2] == tops[3] < tops[4]
    words = [t.get_text() for t in figure.axes[0].texts]
    assert words == ["visible", "infrared", "infrared", "visible", "infrared", "● left", "● right"]


def test_key_points_of_any_kind_give_one_picture():
    pictures, keypoints = images(2, 3, 16, 8), people(2).round()
    expected = points_of(skeleton_graph(pictures, keypoints))
    for points in (keypoints[..., :2].numpy(), keypoints.int(), keypoints.bfloat16(), keypoints.requires_grad_()):
        found = points_of(skeleton_graph((pictures / 255).numpy(), points))
        for a, b in zip(found, expected, strict=True):
            same_rows([xy for _, xy in a], [xy for _, xy in b])


@pytest.mark.parametrize("place", ["spread", "at one point", "at the bottom"])
@pytest.mark.parametrize("skeleton", [PERSON_13, COCO_17])
def test_names_stand_beside_their_image_without_overlap(skeleton, place):
    nodes = len(skeleton.names)
    keypoints = people(2, nodes=nodes)
    if place == "at one point":
        keypoints[..., :2] = torch.tensor([3.0, 1.0])
    elif place == "at the bottom":
        keypoints[..., 1] = 16.0
    figure = skeleton_graph(
        images(2, 3, 16, 8),
        keypoints,
        skeleton=skeleton,
        names=True,
        global_node=True,
        modality=[0, 1],
        title="People",
        columns=1,
    )
    check_layout(figure)
    axes = figure.axes[0]
    words = [t.get_text() for t in axes.texts]
    for name in skeleton.names:
        assert words.count(name.replace("_", " ")) == 2
    leaders = [line for line in axes.lines if line.get_linewidth() == 0.5]
    assert len(leaders) == 2 * nodes
    for n, name in enumerate(skeleton.names):  # each name at the end of the line from its key point
        for text in (t for t in axes.texts if t.get_text() == name.replace("_", " ")):
            x, y = text.get_position()
            line = min(leaders, key=lambda a: abs(a.get_xdata()[2] - x) + abs(a.get_ydata()[2] - y))
            start = line.get_xydata()[0]
            b = next(i for i, p in enumerate(axes.images) if inside(p, start))
            np.testing.assert_allclose(pixels(axes.images[b], start), keypoints[b, n, :2], atol=1e-5)
            assert axes.images[b].get_extent()[3] < y < axes.images[b].get_extent()[2]  # beside its own image


def test_the_global_node_is_joined_to_each_key_point_that_is_seen():
    keypoints = people(1)
    keypoints[0, 2, 2] = 0
    figure = skeleton_graph(images(1, 3, 16, 8), keypoints, global_node=True)
    axes = figure.axes[0]
    (picture,) = axes.images
    edges = [line.get_xydata() for line in axes.lines if line.get_linewidth() == 0.6]
    here = [n for n in range(13) if n != 2]
    same_rows([pixels(picture, e[1]) for e in edges], keypoints[0, here, :2])
    (place,) = {tuple(e[0]) for e in edges}
    assert place[1] < picture.get_extent()[3]  # above the image
    assert any(np.allclose(place, s.get_offsets()) for s in axes.collections)
    assert "global" in [t.get_text() for t in axes.texts]


def test_colors_reach_the_file(tmp_path):
    path = tmp_path / "skeleton.png"
    skeleton_graph(torch.zeros(1, 3, 16, 8), people(1), path)
    found = read_png(path)
    for color in (LEFT, RIGHT):
        rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert (found == rgb).all(2).sum() > 50


def test_a_title_wider_than_the_pictures_is_whole():
    figure = skeleton_graph(images(1, 3, 16, 8), people(1), title="A long line above a single person")
    check_layout(figure)
