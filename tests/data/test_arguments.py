"""Every argument of the public callables of `vireid.data`, with values of wrong kinds: errors name the argument."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vireid.data import (
    ChannelExchange,
    EvalTransform,
    HeatmapFolder,
    Keypoints,
    LLCMDataset,
    RegDBDataset,
    SYSUMM01Dataset,
    TrainAugmentation,
    cache_heatmaps,
    channel_exchange,
    estimate_heatmaps,
    generate_synthetic,
    load_heatmaps,
    load_keypoints,
    move_heatmaps,
    move_keypoints,
    normalize,
    save_heatmaps,
    save_keypoints,
)
from vireid.nn import PERSON_13

EXOTIC = (
    *(torch.ones(2, 3).to_sparse(), torch.ones(2, 3).to(torch.float8_e4m3fn), torch.ones(2, 3) + 1j),
    torch.nested.nested_tensor([torch.ones(3), torch.ones(2)], layout=torch.jagged),
)
NO_TENSOR = (None, True, 3, "3", [[0.5]], np.ones((2, 3)), torch.ones(()), torch.ones(2), *EXOTIC)
# Values that no argument of the kind may have.
WRONG = {
    "path": (None, True, 3, math.nan, b"x", [], ["x"], object()),
    "integer": (True, np.True_, "3", 2.0, np.float32(2), math.nan, -10, [2], np.array([2]), torch.tensor(2)),
    "fraction": (None, True, "0.5", math.nan, math.inf, -0.1, 1.5, 10**400, 1j, [0.5], torch.tensor(0.5)),
    "size": (
        *(None, 8, "86", (8,), (8, 6, 3), (8, math.nan), (8.0, 6), (0, 6), (8, -1), (True, 6), ("8", 6), (10**30, 6)),
    ),
    "area": (None, 0.5, "ab", (0.1,), (0.2, 0.1), (0, 0.1), (0.1, math.nan), (0.1, 2), ("0", 1)),
    "statistics": (
        *(None, 0.5, "abc", (1, 1), (1, math.nan, 1), (1, math.inf, 1), (1, "1", 1), (1, None, 1), (1, 1, 10**400)),
        *(np.ones(2), torch.ones(3, device="meta"), *EXOTIC),
    ),
    "images": (*NO_TENSOR, torch.ones(2, 3, 8, 6, dtype=torch.int64), torch.ones(2, 1, 8, 6), torch.ones(2, 3, 0, 6)),
    "modality": (*NO_TENSOR, torch.tensor([0.0, 1.0]), torch.tensor([0, 1, 0]), torch.tensor([1, 2])),
    "points": (*NO_TENSOR, torch.ones(2, 12, 3), torch.ones(2, 13, 4), torch.ones(2, 13, 3, dtype=torch.int64)),
    "maps": (*NO_TENSOR, torch.ones(2, 12, 4, 4), torch.ones(2, 13, 0, 4), torch.ones(2, 13, 4, 4, dtype=torch.int64)),
    "corner": (*NO_TENSOR, torch.zeros(2, 2), torch.tensor([[math.nan] * 2] * 2), torch.zeros(2, 3, dtype=torch.int64)),
    "flipped": (*NO_TENSOR, torch.tensor([0, 1]), torch.tensor([True])),
    "skeleton": (None, True, "PERSON_13", 13, PERSON_13.names, SimpleNamespace(names=("a",) * 13)),
    "option": (None, True, 3, "", "CAJ", b"caj", math.nan, ["caj"]),
    "names": (None, True, 3, "ab", ["a", 3], ["a", None], ["a", "/b"], ["a", "b\n"], {"a": 1}),
    "array": (None, "x", [["x"]], [[None]], np.ones((2, 3)) + 1j, *EXOTIC, torch.ones(2, 3, device="meta")),
    "source": (True, 3, "x", ["x"], {"a": math.nan}, {"a": object()}, {"a": b"x"}),
    "digest": (True, 3, "", "3", "g" * 64, "A" * 64, b"a" * 64, math.nan, ["x"], 10**30),
    "margin": (None, True, "1", math.nan, math.inf, 0.5, 10**400, [2]),
    "model": (None, True, 3, torch.nn.Linear(1, 1)),
    "images or paths": (None, True, 3, "x", [3], [None], {"x": 1}),
}
READER = dict.fromkeys(("root", "keypoints"), "path") | dict.fromkeys(("modality", "max_pixels"), "integer")
READER |= {"split": "option", "size": "size"}
PROBABILITIES = dict.fromkeys(("visible", "infrared"), "fraction")
STATISTICS = dict.fromkeys(("mean", "std"), "statistics")
MOVES = {"corner": "corner", "size": "size", "flipped": "flipped", "skeleton": "skeleton"}
HEATMAPS = dict.fromkeys(("folder", "image", "root"), "path") | {"source": "source", "digest": "digest"}
ESTIMATION = {"size": "size", "margin": "margin", "batch": "integer", "model": "model"}
CALLS = {
    SYSUMM01Dataset: READER,
    RegDBDataset: READER | {"trial": "integer"},
    LLCMDataset: READER,
    normalize: {"images": "images"} | STATISTICS,
    EvalTransform: STATISTICS,
    channel_exchange: {"images": "images", "modality": "modality"} | PROBABILITIES,
    ChannelExchange: PROBABILITIES,
    TrainAugmentation: {
        **dict.fromkeys(("flip", "erasing", "grayscale", "erasing_aspect"), "fraction"),
        **dict.fromkeys(("exchange_visible", "exchange_infrared"), "fraction"),
        **{"size": "size", "padding": "integer", "erasing_area": "area", "exchange": "option", "skeleton": "skeleton"},
        **STATISTICS,
    },
    TrainAugmentation.forward: {"images": "images", "modality": "modality", "keypoints": "points"},
    move_keypoints: {"keypoints": "points"} | MOVES,
    move_heatmaps: {"heatmaps": "maps", "image_size": "size"} | MOVES,
    Keypoints.at: {"paths": "names", "size": "size"},
    save_keypoints: {"path": "path", "paths": "names", "keypoints": "array", "sizes": "array"},
    load_keypoints: {"path": "path"},
    save_heatmaps: HEATMAPS | {"heatmaps": "array"},
    load_heatmaps: HEATMAPS,
    HeatmapFolder: {"folder": "path", "root": "path"},
    generate_synthetic: {
        **{"root": "path", "layout": "option", "identities": "integer", "images_per_camera": "integer"},
        **{"size": "size", "seed": "integer"},
    },
    estimate_heatmaps: {"images": "images"} | ESTIMATION,
    cache_heatmaps: {"images": "images or paths", "folder": "path", "root": "path"} | ESTIMATION,
}
MAY_BE_NONE = {
    *((reader, name) for reader in (SYSUMM01Dataset, RegDBDataset, LLCMDataset) for name in ("modality", "keypoints")),
    *((save_heatmaps, "digest"), (load_heatmaps, "digest"), (TrainAugmentation.forward, "keypoints")),
    *((cache_heatmaps, "folder"), (generate_synthetic, "images_per_camera")),
}


@pytest.fixture
def valid(sysu, regdb, llcm, tmp_path):
    """Return arguments that each callable takes."""
    keypoints = np.full((2, 13, 3), 3, np.float32)
    sizes = np.array([[8, 6], [8, 6]])
    image = sysu / "cam1" / "0002" / "0001.jpg"
    heatmaps = {"folder": tmp_path / "heatmaps", "image": image, "root": sysu, "source": {"a": 1}}
    save_heatmaps(heatmaps=np.ones((2, 3, 3)), **heatmaps)
    save_keypoints(tmp_path / "k.npz", ["a", "b"], keypoints, sizes)
    images, modality, points = torch.rand(2, 3, 8, 6), torch.tensor([0, 1]), torch.from_numpy(keypoints)
    moves = {"corner": torch.zeros(2, 2).long(), "size": (4, 4), "flipped": torch.tensor([True, False])}
    return {
        SYSUMM01Dataset: {"root": sysu},
        RegDBDataset: {"root": regdb},
        LLCMDataset: {"root": llcm},
        normalize: {"images": images},
        channel_exchange: {"images": images, "modality": modality},
        TrainAugmentation: {"size": (8, 6)},
        TrainAugmentation.forward: {
            **{"self": TrainAugmentation((8, 6)), "images": images, "modality": modality, "keypoints": points}
        },
        move_keypoints: {"keypoints": points} | moves,
        move_heatmaps: {"heatmaps": torch.rand(2, 13, 4, 4), "image_size": (8, 6)} | moves,
        Keypoints.at: {"self": Keypoints(["a", "b"], keypoints, sizes), "paths": ["a"], "size": (4, 4)},
        save_keypoints: {"path": tmp_path / "n.npz", "paths": ["a", "b"], "keypoints": keypoints, "sizes": sizes},
        load_keypoints: {"path": tmp_path / "k.npz"},
        save_heatmaps: heatmaps | {"heatmaps": np.ones((2, 3, 3))},
        load_heatmaps: heatmaps,
        HeatmapFolder: {"folder": tmp_path / "heatmaps", "paths": [image], "root": sysu},
        generate_synthetic: {"root": tmp_path / "new", "identities": 4, "images_per_camera": 1, "size": (32, 16)},
        estimate_heatmaps: {"images": images},
        cache_heatmaps: {"images": [image], "root": sysu, "progress": False},
    }


def message_of(call, arguments):
    try:
        call(**arguments)
    except (TypeError, ValueError) as error:
        return str(error)
    return "it was taken"


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__qualname__)
def test_a_wrong_value_is_refused_and_its_argument_named(call, valid):
    arguments = valid.get(call, {})
    if "model" not in CALLS[call]:  # others need a pose estimator
        call(**arguments)
    for name, kind in CALLS[call].items():
        for value in WRONG[kind]:
            if value is None and (call, name) in MAY_BE_NONE:
                continue
            text = message_of(call, arguments | {name: value})
            assert re.search(rf"\b{name}\b", text), (name, value, text)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int32])
def test_integers_of_numpy_are_those_of_python(kind, regdb, tmp_path):
    side, four, one = (kind(32), kind(16)), kind(4), kind(1)
    root = generate_synthetic(tmp_path / "a", identities=four, images_per_camera=one, size=side, seed=one)
    # The very same call, as the manifest says.
    assert generate_synthetic(root, identities=4, images_per_camera=1, size=(32, 16), seed=1) == root
    data = RegDBDataset(regdb, trial=one, modality=one, size=side, max_pixels=kind(99))
    assert (type(data.trial), data.size, set(data.modality.tolist())) == (int, (32, 16), {1})
    assert data[0].image.shape == (3, 32, 16)
    augment = TrainAugmentation(side, padding=kind(2), flip=np.float32(0.5), mean=np.zeros(3), std=torch.ones(3))
    assert augment(torch.zeros(2, 3, 32, 16), torch.tensor([0, 1])).shape == (2, 3, 32, 16)
    assert repr(augment.normalize) == "EvalTransform(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))"
