"""The drawn data set: same bytes for the same arguments, the published layouts, and nothing half-written."""

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from places import SHARED
from standins import bytes_of
from vireid.data.keypoints import load_keypoints
from vireid.data.synthetic import _rendering, generate_synthetic
from vireid.data.synthetic import generate as synthetic
from vireid.data.synthetic._pedestrian import JOINTS, Label, Person

OFFICIAL = SHARED / "data" / "sysu-mm01-split" / "rand_perm_cam.mat"
SMALL: dict[str, Any] = {"identities": 5, "images_per_camera": 3, "size": (48, 24)}


@pytest.fixture(scope="module")
def sysu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_synthetic(tmp_path_factory.mktemp("data") / "sysu", layout="sysu", **SMALL)


@pytest.fixture(scope="module")
def regdb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_synthetic(tmp_path_factory.mktemp("data") / "regdb", layout="regdb", **SMALL)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image).astype(int)


@pytest.mark.parametrize("layout", ["sysu", "regdb"])
def test_same_arguments_give_the_same_bytes(layout, request, tmp_path):
    again = generate_synthetic(tmp_path / "again", layout=layout, **SMALL)
    assert bytes_of(request.getfixturevalue(layout)) == bytes_of(again)


def test_another_seed_gives_other_pictures_and_splits(regdb, tmp_path):
    first, second = bytes_of(regdb), bytes_of(generate_synthetic(tmp_path / "other", layout="regdb", seed=1, **SMALL))
    images = [name for name in first if name.endswith(".jpg")]
    assert first.keys() == second.keys()
    assert all(first[name] != second[name] for name in images)
    assert any(first[name] != second[name] for name in first if name.startswith("idx/"))


def test_an_image_does_not_depend_on_how_many_others_are_drawn(sysu, tmp_path):
    other = generate_synthetic(tmp_path / "fewer", layout="sysu", identities=4, images_per_camera=2, size=(48, 24))
    images = [path.relative_to(other) for path in other.glob("cam*/*/*.jpg")]
    assert len(images) == 6 * 4 * 2
    assert all((other / path).read_bytes() == (sysu / path).read_bytes() for path in images)


def test_sysu_layout(sysu):
    images = {f"cam{c}/{i:04d}/{k:04d}.jpg" for c in range(1, 7) for i in range(1, 6) for k in range(1, 4)}
    lists = {f"exp/{name}_id.txt" for name in ("train", "val", "test", "available")}
    assert bytes_of(sysu).keys() == images | lists | {"exp/rand_perm_cam.mat", "keypoints.npz", "synthetic.json"}

    ids = {}
    for name in ("train", "val", "test", "available"):
        text = (sysu / "exp" / f"{name}_id.txt").read_text()
        assert text.count("\n") == 1
        assert text.endswith("\n")
        ids[name] = [int(number) for number in text.split(",")]
        assert ids[name] == sorted(set(ids[name]))
    assert ids["available"] == [1, 2, 3, 4, 5]
    assert sorted(ids["train"] + ids["val"] + ids["test"]) == ids["available"]  # disjoint, and nobody left out
    assert [len(ids[name]) for name in ("train", "val", "test")] == [2, 1, 2]


def test_sysu_permutations(sysu):
    cameras = loadmat(sysu / "exp" / "rand_perm_cam.mat")["rand_perm_cam"]
    drawn = []
    for camera in range(6):
        for identity in range(5):
            trials = cameras[camera, 0][identity, 0]
            assert trials.shape == (10, 3)
            assert (np.sort(trials, axis=1) == [1, 2, 3]).all()
            drawn.append(trials)
    assert len({trials.tobytes() for trials in drawn}) > 20  # not one permutation for all


@pytest.mark.skipif(not OFFICIAL.exists(), reason="the official split is not here")
def test_sysu_permutations_are_nested_as_in_the_official_file(sysu):
    official, ours = loadmat(OFFICIAL), loadmat(sysu / "exp" / "rand_perm_cam.mat")
    assert {key for key in official if key[0] != "_"} == {key for key in ours if key[0] != "_"} == {"rand_perm_cam"}
    official, ours = official["rand_perm_cam"], ours["rand_perm_cam"]
    assert (ours.shape, ours.dtype) == (official.shape, official.dtype) == ((6, 1), np.dtype(object))
    for camera in range(6):
        theirs, mine = official[camera, 0], ours[camera, 0]
        assert (theirs.ndim, theirs.shape[1]) == (2, 1)
        assert mine.shape == (5, 1)
        assert mine.dtype == theirs.dtype == np.dtype(object)
        for cell in mine[:, 0]:
            assert type(cell) is type(theirs[0, 0])
            assert (cell.ndim, cell.dtype, cell.shape[0]) == (2, theirs[0, 0].dtype, theirs[0, 0].shape[0])


def test_regdb_layout(regdb):
    def name(modality: str, identity: int, number: int) -> str:
        return f"{modality}/{identity}/drawn_{modality[0].lower()}_{number:05d}_{identity}.jpg"

    images = {name(m, i, k) for m in ("Visible", "Thermal") for i in range(1, 6) for k in (1, 2, 3)}
    lists = {f"idx/{p}_{m}_{t}.txt" for p in ("train", "test") for m in ("visible", "thermal") for t in range(1, 11)}
    assert bytes_of(regdb).keys() == images | lists | {"keypoints.npz", "synthetic.json"}

    splits = set()
    for trial in range(1, 11):
        ids: dict[str, list[int]] = {}
        for part in ("train", "test"):
            for modality in ("Visible", "Thermal"):
                lines = (regdb / "idx" / f"{part}_{modality.lower()}_{trial}.txt").read_text().splitlines()
                people = sorted({int(line.split("/")[1]) for line in lines})
                expected = [f"{name(modality, i, k)} {label}" for label, i in enumerate(people) for k in (1, 2, 3)]
                assert lines == expected
                assert ids.setdefault(part, people) == people  # both modalities hold the same people
        assert sorted(ids["train"] + ids["test"]) == [1, 2, 3, 4, 5]
        assert len(ids["test"]) == 2
        splits.add(tuple(ids["test"]))
    assert len(splits) > 1


def test_pictures_differ_and_infrared_ones_are_gray(sysu):
    for camera in range(1, 7):
        paths = sorted((sysu / f"cam{camera}").glob("*/*.jpg"))
        images = [pixels(path) for path in paths]
        assert {image.shape for image in images} == {(48, 24, 3)}
        for image in images:
            gray = (image == image[..., :1]).all()
            assert gray == (camera in (3, 6))
            assert image.std() > 8  # not an empty frame
        different = [np.abs(a - b).mean() > 4 for k, a in enumerate(images) for b in images[:k]]
        assert all(different)  # also within an identity


def test_warm_is_bright_for_camera_3_and_dark_for_camera_6(tmp_path):
    root = generate_synthetic(tmp_path / "large", identities=6, images_per_camera=4, size=(64, 32))
    inside = np.s_[20:44, 13:19]
    brighter = {}
    for camera in (3, 6):
        images = np.stack([pixels(path)[..., 0] for path in (root / f"cam{camera}").glob("*/*.jpg")])
        border = np.concatenate([images[:, :, :3], images[:, :, -3:]], axis=2)
        brighter[camera] = images[(slice(None), *inside)].mean() - border.mean()
    assert brighter[3] > 10
    assert brighter[6] < -10


def test_joints_lie_on_the_body():
    person = Person.draw(np.random.default_rng(0))
    camera = _rendering.Camera.draw(np.random.default_rng(1), inverted=False)
    heights = []
    for k in range(20):
        image, joints = _rendering.render(person, camera, (128, 64), False, np.random.default_rng(k))
        assert image.size == (64, 128)
        assert joints.shape == (len(JOINTS), 3) == (13, 3)
        named = dict(zip(JOINTS, joints[:, :2], strict=True))
        assert (np.abs(joints[:, 0] - 32) < 40).all()
        for side in ("left", "right"):
            column = [named["head"][1], *(named[f"{side}_{part}"][1] for part in ("shoulder", "hip", "ankle"))]
            assert column == sorted(column)  # y grows downwards
        heights.append(joints[11:, 1].max() - named["head"][1])
    assert 75 < min(heights) <= max(heights) < 125


@pytest.mark.parametrize("layout", ["sysu", "regdb"])
def test_every_image_has_its_key_points(layout, request):
    root = request.getfixturevalue(layout)
    table = load_keypoints(root / "keypoints.npz")
    assert set(table.paths) == {name for name in bytes_of(root) if name.endswith(".jpg")}
    assert table.keypoints.shape == (len(table.paths), 13, 3)
    assert (table.sizes == [48, 24]).all()
    assert set(np.unique(table.keypoints[..., 2])) <= {0, 1}
    assert table.keypoints[..., 2].mean() > 0.9
    # An image's key points are its own: those of its drawing.
    name = "cam6/0004/0002.jpg" if layout == "sysu" else "Thermal/4/drawn_t_00002_4.jpg"
    camera = 6 if layout == "sysu" else 3
    person = Person.draw(synthetic._rng(0, 0, 4))
    view = _rendering.Camera.draw(synthetic._rng(0, 1, camera), inverted=camera == 6)
    _, joints = _rendering.render(person, view, (48, 24), True, synthetic._rng(0, 2, 4, camera, 2))
    np.testing.assert_array_equal(table.keypoints[table.paths.index(name)], joints)


@pytest.mark.parametrize("aside", [0.0, 0.2])
def test_a_joint_behind_an_obstacle_or_outside_is_not_visible(aside, monkeypatch):
    """Compare with the map of labels, three times as large; an occluder is also looked for around the joint."""
    walk = _rendering.pose
    monkeypatch.setattr(_rendering, "pose", lambda *arguments: walk(*arguments) + np.array([aside, 0, 0]))
    camera = _rendering.Camera.draw(np.random.default_rng(1), inverted=False)
    hidden = outside = 0
    for k in range(75):
        rng = np.random.default_rng(k)
        labels, joints = _rendering._draw_labels(Person.draw(rng), camera, (48, 16), rng)
        canvas = np.asarray(labels)
        for x, y, visible in joints:
            if not (0 <= x < 16 and 0 <= y < 48):
                outside += 1
                assert visible == 0
                continue
            column, row = int(x * 3), int(y * 3)
            around = canvas[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] == Label.OCCLUDER
            hidden += bool(around.all())
            assert visible or around.any()
            assert not (visible and around.all())
    assert hidden > 2
    assert (outside > 0) == (aside > 0)


def test_a_joint_is_where_it_is_drawn():
    """The middle of a disc painted at a joint, in pixels from the edges; Pillow rounds by up to one of the map's."""
    person, camera = (
        Person.draw(np.random.default_rng(0)),
        _rendering.Camera.draw(np.random.default_rng(1), inverted=True),
    )
    painted: list[tuple[float, float]] = []

    def paint(painter: Any, _: Person) -> None:
        for label, point in enumerate(painter.points, 20):
            painter.disc(point, 0.012, label)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_rendering, "paint_person", paint)
        labels, joints = _rendering._draw_labels(person, camera, (512, 256), np.random.default_rng(3))
    canvas = np.asarray(labels)
    for k in range(13):
        rows, columns = np.nonzero(canvas == 20 + k)
        if len(rows) > 150:  # not under another joint's disc
            painted.append((columns.mean() + 0.5 - joints[k, 0] * 3, rows.mean() + 0.5 - joints[k, 1] * 3))
    assert len(painted) >= 8
    np.testing.assert_allclose(np.mean(painted, 0), 0, atol=0.15)
    np.testing.assert_allclose(painted, 0, atol=1)


CHANGED = "the drawing has changed: raise synthetic._VERSION, then renew the numbers of this test"


def test_a_picture_is_as_it_was():
    """Means over a 4 × 4 grid: no JPEG in between, and alike for every supported version of NumPy and Pillow."""
    assert synthetic._VERSION == 1, "renew the numbers below"
    expected = {
        False: [
            *([149.3, 151.0, 146.9, 163.8], [155.3, 159.2, 128.4, 166.7]),
            *([181.3, 175.5, 184.6, 188.0], [174.2, 158.9, 179.0, 183.7]),
        ],
        True: [
            *([30.4, 8.8, 84.7, 13.2], [35.7, 74.7, 201.9, 30.5]),
            *([42.0, 97.1, 122.9, 38.9], [46.4, 71.8, 32.3, 73.3]),
        ],
    }
    person = Person.draw(np.random.default_rng(0))
    camera = _rendering.Camera.draw(np.random.default_rng(1), inverted=False)
    for infrared, means in expected.items():
        image, _ = _rendering.render(person, camera, (64, 32), infrared, np.random.default_rng(2))
        drawn = np.asarray(image, dtype=float)[..., 0].reshape(4, 16, 4, 8).mean((1, 3))
        np.testing.assert_allclose(drawn, means, atol=0.2, err_msg=CHANGED)


def test_every_garment_is_as_it_was():
    """Pixels of each label over enough people to wear and carry everything there is."""
    expected = [760023, 31480, 17546, 2692, 53392, 21150, 2860, 73228, 80674, 5139, 12669, 21247, 5098, 2018, 16704]
    camera = _rendering.Camera.draw(np.random.default_rng(1), inverted=False)
    counts = np.zeros(len(Label), dtype=int)
    for k in range(60):
        rng = np.random.default_rng(k)
        labels, _ = _rendering._draw_labels(Person.draw(rng), camera, (64, 32), rng)
        counts += np.bincount(np.asarray(labels).ravel(), minlength=len(Label))
    np.testing.assert_allclose(counts, expected, rtol=0.005, err_msg=CHANGED)  # the oldest Pillow: 0.002 apart


def test_finished_folder_is_left_alone(sysu, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in sysu.rglob("*")}
    monkeypatch.setattr(synthetic, "render", None)  # nothing is drawn
    assert generate_synthetic(str(sysu), layout="sysu", **SMALL) == sysu
    assert {path: path.stat().st_mtime_ns for path in sysu.rglob("*")} == before


def test_other_arguments_do_not_touch_a_finished_folder(sysu):
    before = bytes_of(sysu)
    with pytest.raises(FileExistsError, match=r"seed=0, asked for 3") as error:
        generate_synthetic(sysu, layout="sysu", seed=3, **SMALL)
    assert str(sysu) in str(error.value)
    assert "identities" not in str(error.value)
    assert bytes_of(sysu) == before


@pytest.mark.parametrize("manifest", [None, "[]", "{", '"text"'])
def test_a_foreign_folder_is_not_touched(manifest, tmp_path):
    root = tmp_path / "mine"
    root.mkdir()
    (root / "thesis.txt").write_text("years of work")
    if manifest:
        (root / "synthetic.json").write_text(manifest)
    before = bytes_of(root)
    with pytest.raises(FileExistsError, match="holds something else") as error:
        generate_synthetic(root, **SMALL)
    assert str(root) in str(error.value)
    assert bytes_of(root) == before
    assert list(tmp_path.iterdir()) == [root]


def test_a_file_is_not_touched(tmp_path):
    root = tmp_path / "file"
    root.write_text("text")
    with pytest.raises(FileExistsError, match="something else"):
        generate_synthetic(root, **SMALL)
    assert root.read_text() == "text"


def test_parents_are_made_and_an_empty_folder_is_filled(tmp_path):
    new = tmp_path / "a" / "b"
    empty = tmp_path / "empty"
    empty.mkdir()
    arguments: dict[str, Any] = {"layout": "regdb", "identities": 4, "images_per_camera": 1, "size": (32, 16)}
    for root in (new, empty):
        assert generate_synthetic(root, **arguments) == root
        assert json.loads((root / "synthetic.json").read_text())["identities"] == 4
        assert len(list(root.glob("*/*/*.jpg"))) == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "empty"]  # no temporary folder is left
    assert [path.name for path in new.parent.iterdir()] == ["b"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_run_leaves_nothing(error, tmp_path, monkeypatch):
    render, calls = synthetic.render, []

    def failing(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 20:
            raise error("stop")
        return render(*arguments)

    monkeypatch.setattr(synthetic, "render", failing)
    with pytest.raises(error, match="stop"):
        generate_synthetic(tmp_path / "root", **SMALL)
    assert len(calls) == 20
    assert list(tmp_path.iterdir()) == []


def test_threads_and_processes_may_draw_one_data_set_at_once(tmp_path):
    arguments = {"layout": "regdb", "identities": 4, "images_per_camera": 1, "size": (32, 16)}
    wanted = bytes_of(generate_synthetic(tmp_path / "a", **arguments))
    for _ in range(3):
        with ThreadPoolExecutor(4) as pool:
            tasks = [pool.submit(generate_synthetic, tmp_path / "b", **arguments) for _ in range(4)]
        assert [task.result() for task in tasks] == [tmp_path / "b"] * 4
        assert bytes_of(tmp_path / "b") == wanted
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
        shutil.rmtree(tmp_path / "b")


def test_what_a_killed_process_left_goes_with_the_next_run(tmp_path, monkeypatch):
    root, arguments = tmp_path / "root", {"identities": 4, "images_per_camera": 1, "size": (32, 16)}

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:  # a killed process removes nothing, and its locks end
        patched.setattr(synthetic, "save_keypoints", killed)
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)
        patched.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            generate_synthetic(root, **arguments)
    left = sorted(tmp_path.iterdir())
    assert [path.is_dir() for path in left] == [True, False]
    assert len(list(left[0].rglob("*.jpg"))) == 24
    shutil.copytree(left[0], left[0].with_name(left[0].name.replace(".folder", "7.folder")))  # of another killed one
    assert generate_synthetic(root, **arguments) == root
    assert list(tmp_path.iterdir()) == [root]


def test_a_faster_process_wins(tmp_path, sysu, monkeypatch):
    """Another process finishes the same data set while this one draws: its folder stays, ours goes."""
    root, write = tmp_path / "root", synthetic._write_sysu_split

    def and_elsewhere(*arguments: Any) -> None:
        write(*arguments)
        root.mkdir()
        (root / "synthetic.json").write_bytes((sysu / "synthetic.json").read_bytes())

    monkeypatch.setattr(synthetic, "_write_sysu_split", and_elsewhere)
    assert generate_synthetic(root, layout="sysu", **SMALL) == root
    assert list(bytes_of(root)) == ["synthetic.json"]
    assert list(tmp_path.iterdir()) == [root]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"layout": "llcm"}, ValueError, "layout must be one of 'sysu', 'regdb', got 'llcm'"),
        ({"identities": 3}, ValueError, "identities must be at least 4, got 3"),
        ({"size": (31, 16)}, ValueError, r"size\[0\] must be at least 32, got 31"),
        ({"size": (128, 8)}, ValueError, r"size\[1\] must be at least 16, got 8"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message, tmp_path):
    with pytest.raises(error, match=message):
        generate_synthetic(tmp_path / "root", **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("module", "name", "arguments"), [("PIL", "Pillow", {}), ("tqdm", "tqdm", {"progress": True})])
def test_missing_extra_is_named(module, name, arguments, tmp_path, hidden, monkeypatch):
    monkeypatch.delitem(sys.modules, module, raising=False)
    hidden(module)
    with pytest.raises(ImportError, match=rf"needs .*{name}.*: pip install 'vireid\[train\]'"):
        generate_synthetic(tmp_path / "root", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_progress_and_odd_sizes(tmp_path, capsys):
    root = generate_synthetic(tmp_path / "wide", identities=4, images_per_camera=1, size=(40, 90), progress=True)
    assert "4/4" in capsys.readouterr().err
    assert pixels(root / "cam1" / "0001" / "0001.jpg").shape == (40, 90, 3)
