"""LLCM: the reader of its published layout, and its protocol."""

import random
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from vireid.data import LLCMDataset
from vireid.protocols import LLCM

# identity -> camera -> frames, of the test; 12 was seen by one camera only, in one modality
TEST = {
    "test_vis": {3: {1: [30, 4], 2: [7]}, 5: {2: [1, 2, 3], 9: [8]}, 12: {}},
    "test_nir": {3: {1: [5], 4: [6, 9, 2]}, 5: {2: [1]}, 12: {8: [1]}},
}
TRAIN = {"vis": [(7, 1, 20), (7, 1, 3), (2, 9, 1)], "nir": [(2, 4, 8), (7, 5, 6), (7, 3, 1)]}


def save(path, color):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 8), color).save(path)


def named(identity, camera, frame, kind):
    return f"{identity:04d}_c{camera:02d}_s100_f{frame:03d}_{kind}.jpg"


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "LLCM"
    (root / "idx").mkdir(parents=True)
    for kind, images in TRAIN.items():
        lines = []
        for identity, camera, frame in images:
            name = f"{kind}/{identity:04d}/{named(identity, camera, frame, kind)}"
            save(root / name, (identity, camera, frame))
            lines.append(f"{name} {int(identity == 7)}\n")
        (root / "idx" / f"train_{kind}.txt").write_text("".join(lines))
    for folder, people in TEST.items():
        for identity, cameras in people.items():
            for camera, frames in cameras.items():
                for frame in frames:
                    name = named(identity, camera, frame, folder[-3:])
                    save(root / folder / f"cam{camera}" / f"{identity:04d}" / name, (identity, camera, frame))
    (root / "idx" / "test_id.txt").write_text("12,3,5\n")
    return root


def rows(data):
    frames = [int(re.search(r"_f(\d+)_", path.name)[1]) for path in data.paths]
    columns = (data.ids, data.modality, data.cameras, data.image_numbers, frames)
    return [tuple(map(int, row)) for row in zip(*columns, strict=True)]


def test_training_images_are_those_of_the_lists(root):
    data = LLCMDataset(root, size=(4, 4))
    # identity, modality, camera, place by name within identity and camera, frame
    assert rows(data) == [
        (7, 0, 1, 2, 20),
        (7, 0, 1, 1, 3),
        (2, 0, 9, 1, 1),
        (2, 1, 4, 1, 8),
        (7, 1, 5, 1, 6),
        (7, 1, 3, 1, 1),
    ]
    assert data.labels.tolist() == [1, 1, 0, 0, 1, 1]
    assert (data.num_classes, data.name, len(data)) == (2, "llcm", 6)
    sample = data[0]
    assert sample.image.shape == (3, 4, 4)
    assert sample[1:] == (1, 0, 1, 0)
    assert (sample.image[:, 0, 0].int() - torch.tensor([7, 1, 20])).abs().max() <= 3
    assert LLCMDataset(root, modality=1).labels.tolist() == [0, 1, 1]


def test_test_images_are_those_of_the_cameras_folders(root):
    save(
        root / "test_nir" / "cam3" / "0003" / named(3, 3, 1, "nir"), (0, 0, 0)
    )  # the authors' evaluation leaves it out
    save(root / "test_vis" / "cam1" / "0099" / named(99, 1, 1, "vis"), (0, 0, 0))  # not listed
    for hidden in ("test_vis/.DS_Store", "test_vis/cam1/Thumbs.db", "test_nir/cam4/0003/.x.jpg"):
        (root / hidden).write_bytes(b"x")
    shutil.rmtree(root / "vis")  # the test alone needs no training images
    data = LLCMDataset(str(root), "test")
    wanted = [
        (identity, kind, camera, number, frame)
        for kind, folder in enumerate(("test_vis", "test_nir"))
        for identity in (3, 5, 12)
        for camera in range(1, 10)
        for number, frame in enumerate(sorted(TEST[folder][identity].get(camera, [])), 1)
    ]
    assert rows(data) == wanted
    assert data.labels.tolist() == [(3, 5, 12).index(row[0]) for row in wanted]
    assert data.paths[0] == root / "test_vis" / "cam1" / "0003" / named(3, 1, 4, "vis")
    assert len(LLCMDataset(root, "test", modality=1)) == 6


def test_all_is_both(root):
    both, train, test = (LLCMDataset(root, split) for split in ("all", "train", "test"))
    assert sorted(both.paths) == sorted(train.paths + test.paths)
    assert both.num_classes == 5
    assert both.modality.tolist() == sorted(both.modality.tolist())
    assert np.unique(both.labels).tolist() == [0, 1, 2, 3, 4]


def rewrite(name, change):
    def spoil(root):
        path = root / "idx" / name
        path.write_text(change(path.read_text()))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "error", "text"),
    [
        (lambda r: shutil.rmtree(r), FileNotFoundError, "LLCM does not exist"),
        (lambda r: (r / "idx/train_nir.txt").unlink(), FileNotFoundError, "train_nir.txt does not exist"),
        (lambda r: (r / "idx/test_id.txt").unlink(), FileNotFoundError, "test_id.txt does not exist"),
        (lambda r: shutil.rmtree(r / "test_nir"), FileNotFoundError, "test_nir does not exist"),
        (lambda r: shutil.rmtree(r / "nir"), FileNotFoundError, "train_nir.txt, line 1: file .*_f008_nir.jpg does not"),
        (rewrite("train_vis.txt", lambda t: ""), ValueError, "train_vis.txt is empty"),
        (rewrite("train_vis.txt", lambda t: t.replace("vis/0002", "../0002")), ValueError, "line 3: .* relative"),
        (rewrite("train_vis.txt", lambda t: t.replace("vis/0002", "nir/0002")), ValueError, "line 3: expected vis/"),
        (
            rewrite("train_vis.txt", lambda t: t.replace("0002_", "0002_" + "a" * 5000)),
            ValueError,
            "line 3: cannot look",
        ),
        (
            rewrite("train_vis.txt", lambda t: t.replace(" 1\n", f" {'9' * 5000}\n", 1)),
            ValueError,
            "vis.txt, line 1: exp",
        ),
        (
            rewrite("train_vis.txt", lambda t: t.replace("vis/0002", "vis/" + "9" * 30)),
            ValueError,
            "vis.txt, line 3: exp",
        ),
        (rewrite("test_id.txt", lambda t: "3," + "9" * 30), ValueError, "test_id.txt must hold comma-separated"),
        (rewrite("train_vis.txt", lambda t: t + t), ValueError, "train_vis.txt lists a file twice"),
        (rewrite("train_vis.txt", lambda t: t.replace(" 1\n", " 2\n", 1)), ValueError, "7 has the labels 2 and 1"),
        (
            rewrite("train_nir.txt", lambda t: t.replace(" 1\n", " 3\n")),
            ValueError,
            "train_nir.txt: identity 7 has the labels 1 and 3",
        ),
        (rewrite("train_vis.txt", lambda t: t.replace(" 0\n", " 1\n")), ValueError, "one label to several identities"),
        (
            lambda r: [
                rewrite("train_vis.txt", lambda t: t.splitlines(keepends=True)[0])(r),
                rewrite("train_nir.txt", lambda t: t.splitlines()[0].replace(" 0", " 1"))(r),
            ],
            ValueError,
            "the training lists give one label to several identities",
        ),
        (rewrite("test_id.txt", lambda t: "3 5"), ValueError, "test_id.txt must hold .* got '3 5'"),
        (rewrite("test_id.txt", lambda t: "3,77"), ValueError, "no test image of 1 listed identities, first 0077"),
        (lambda r: (r / "test_vis/cam10").mkdir(), ValueError, "cam10 must be a folder named cam1"),
        (lambda r: (r / "test_vis/cam8").write_text(""), ValueError, "cam8 must be a folder named cam1"),
        (lambda r: (r / "test_vis/cam1/3").mkdir(), ValueError, "cam1/3 must be a folder named by a four-digit"),
        (
            lambda r: [
                (r / "vis/0002").joinpath(named(2, 9, 1, "vis")).rename(r / "vis/0002/0002_c10_x.jpg"),
                rewrite("train_vis.txt", lambda t: t.replace(named(2, 9, 1, "vis"), "0002_c10_x.jpg"))(r),
            ],
            ValueError,
            "expected a file named <identity>_c<camera 1 … 9>_…, got '0002_c10_x.jpg'",
        ),
        (
            lambda r: [
                save(r / "test_vis/cam1/0007/a.jpg", (0, 0, 0)),
                rewrite("test_id.txt", lambda t: "3,5,7")(r),
            ],
            ValueError,
            "1 identities both train and test, first 0007",
        ),
    ],
)
def test_faults_are_named(root, spoil, error, text):
    spoil(root)
    with pytest.raises(error, match=text):
        LLCMDataset(root, "all")


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"split": "val"}, ValueError, "split must be one of 'train', 'test', 'all', got 'val'"),
        ({"modality": 2}, ValueError, "modality must be one of 0, 1, got 2"),
        ({"size": (4, 0)}, ValueError, re.escape("size[1] must be at least 1, got 0")),
    ],
)
def test_bad_arguments_are_named(root, arguments, error, text):
    with pytest.raises(error, match=text):
        LLCMDataset(root, **arguments)


@pytest.fixture(scope="module")
def images():
    """Ids, cameras, modality, numbers of test images in random order; not every camera sees every identity."""
    r = np.random.default_rng(0)
    table = np.array(
        [
            (identity, camera, kind, number)
            for identity in range(3, 13)
            for camera in range(1, 10)
            for kind in (0, 1)
            if r.random() < 0.5
            for number in range(1, r.integers(2, 6))
        ]
    )
    # identity 20 is seen by camera 5 alone: its queries have no true match left
    table = np.concatenate([table, [(20, 5, 0, 1), (20, 5, 1, 1), (20, 5, 1, 2)]])
    return r.permutation(table).T


def published_draw(trial, ids, cameras, numbers, there):
    """The gallery as published code draws it: random.seed(trial), one of the sorted names of each folder."""
    state = random.getstate()
    random.seed(trial)
    gallery = []
    for identity in sorted(set(ids[there].tolist())):
        for camera in range(1, 10):
            files = [
                (f"name {numbers[i]:03d}", i) for i in np.flatnonzero(there & (ids == identity) & (cameras == camera))
            ]
            if files:
                gallery.append(random.choice(sorted(files))[1])
    random.setstate(state)
    return gallery


def loop(features, ids, cameras, query, gallery):
    """LLCM's metrics of one trial, in plain loops from the paper's text."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    ranks, aps, inps = [], [], []
    for q in query:
        kept = [g for g in gallery if not (ids[g] == ids[q] and cameras[g] == cameras[q])]
        kept = sorted(kept, key=lambda g: 1 - float(unit[q] @ unit[g]))
        listed = [ids[g] for g in kept]
        if ids[q] not in listed:
            continue
        places = [i + 1 for i, identity in enumerate(listed) if identity == ids[q]]
        aps.append(np.mean([(j + 1) / p for j, p in enumerate(places)]))
        inps.append(len(places) / places[-1])
        ranks.append(1 + len(set(listed[: places[0] - 1])))
    values = {f"rank{r}": 100 * np.mean(np.array(ranks) <= r) for r in (1, 5, 10, 20)}
    return values | {"mAP": 100 * np.mean(aps), "mINP": 100 * np.mean(inps)}, len(query) - len(ranks)


@pytest.mark.parametrize("direction", ["infrared_to_visible", "visible_to_infrared"])
def test_draw_and_metrics_equal_plain_loops(images, direction, device):
    ids, cameras, modality, numbers = images
    r = np.random.default_rng(1)
    features = r.normal(size=(len(ids), 6)) + r.normal(size=(30, 6))[ids]
    protocol = LLCM(direction, trials=3)
    report = protocol.evaluate(features, ids, modality, cameras, numbers)
    asks = 1 if direction == "infrared_to_visible" else 0
    query = np.flatnonzero(modality == asks)
    assert protocol.query(modality).tolist() == query.tolist()
    row = report.rows[0]
    assert (report.dataset, row.direction, row.uses, len(row.trials)) == ("LLCM", direction, "query", 3)
    for trial in range(3):
        gallery = published_draw(trial, ids, cameras, numbers, modality != asks)
        state = random.getstate()
        assert protocol.gallery(trial, ids, modality, cameras, numbers).tolist() == gallery
        assert random.getstate() == state
        wanted, left_out = loop(features, ids, cameras, query, gallery)
        assert row.trials[trial] == pytest.approx(wanted, abs=1e-9)
        assert left_out >= (2 if asks else 1)
        assert (row.queries[0].first_match[trial] == 0).sum() == left_out
    assert row.trials[0] != row.trials[1]
    tensors = [torch.tensor(x, device=device) for x in (features, ids, modality, cameras, numbers)]
    assert protocol.evaluate(*tensors).to_dict() == report.to_dict()


def test_ten_trials_by_default_and_more_on_demand(images):
    ids, cameras, modality, numbers = images
    ten, more = LLCM(), LLCM(trials=12)
    assert (ten.direction, ten.trials) == ("infrared_to_visible", 10)
    drawn = {tuple(more.gallery(t, ids, modality, cameras, numbers).tolist()) for t in range(12)}
    assert len(drawn) == 12
    assert tuple(ten.gallery(9, ids, modality, cameras, numbers).tolist()) in drawn
    with pytest.raises(ValueError, match="trial must be below trials=10, got 10"):
        ten.gallery(10, ids, modality, cameras, numbers)


def test_same_identity_and_camera_alone_is_skipped():
    """By hand: the query skips its own identity in its camera, not another identity in it."""
    ids, cameras = torch.tensor([1, 1, 1, 2]), torch.tensor([4, 4, 5, 4])
    modality, numbers = torch.tensor([1, 0, 0, 0]), torch.ones(4).long()
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
    row = LLCM(trials=1).evaluate(features, ids, modality, cameras, numbers).rows[0]
    assert row.mean["rank1"] == 0  # identity 2 in camera 4 comes first, the twin in camera 4 does not count
    assert row.mean["mAP"] == pytest.approx(50)


def test_the_reader_s_arrays_are_what_the_protocol_takes(root):
    data = LLCMDataset(root, "test")
    features = np.random.default_rng(0).normal(size=(len(data), 4)).astype(np.float32)
    for direction, valid in (("infrared_to_visible", 5), ("visible_to_infrared", 4)):
        row = LLCM(direction).evaluate(features, data.ids, data.modality, data.cameras, data.image_numbers).rows[0]
        # identity 12 has no visible image; 5 has infrared ones in camera 2 alone, where three of its visible ones are
        assert (row.queries[0].first_match > 0).sum(1).tolist() == [valid] * 10


def evaluate(images, **change):
    ids, cameras, modality, numbers = images
    given = {"features": np.ones((len(ids), 2)), "ids": ids, "cameras": cameras, "modality": modality}
    return LLCM(trials=1).evaluate(**(given | {"image_numbers": numbers} | change))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"ids": np.ones(3, dtype=int)}, ValueError, r"ids must have shape \(\d+,\).*got \(3,\)"),
        ({"image_numbers": np.ones(3, dtype=int)}, ValueError, "image_numbers must have shape"),
        ({"modality": lambda m: m * 0}, ValueError, "modality must hold both, got .* and 0 infrared"),
        ({"modality": lambda m: m + 1}, ValueError, r"modality must be 0 .*got \[1, 2\]"),
        ({"cameras": lambda c: c + 1}, ValueError, "cameras must be the data set's numbers 1 to 9, got 10"),
        ({"image_numbers": lambda n: n * 0 + 1}, ValueError, "got twice: image 1 of identity"),
        ({"features": lambda x: x * np.nan}, ValueError, "features must be finite"),
        ({"features": lambda x: x.astype(int)}, TypeError, "features must be floating point"),
        ({"cameras": lambda c: c.astype(float)}, TypeError, "cameras must hold integers"),
        ({"rerank": 3}, TypeError, "rerank must be None or callable"),
    ],
)
def test_bad_input_is_named(images, change, error, text):
    (name, value), *_ = change.items()
    if callable(value):
        given = dict(zip(("ids", "cameras", "modality", "image_numbers"), images, strict=True))
        change = {name: value(given.get(name, np.ones((images.shape[1], 2))))}
    with pytest.raises(error, match=text):
        evaluate(images, **change)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="direction must be one of 'visible_to_infrared', 'infrared_to_visible', got"):
        LLCM("vis_to_nir")
    with pytest.raises(ValueError, match="trials must be at least 1, got 0"):
        LLCM(trials=0)
