"""Properties that every protocol has."""

import numpy as np
import pytest
import torch

from vireid.data import Features
from vireid.protocols import DIRECTIONS, LLCM, SYSUMM01, RegDB, dataset_name

PROTOCOLS = [SYSUMM01(sampling="agw", trials=2), *(make(way) for make in (RegDB, LLCM) for way in DIRECTIONS)]
each = pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda p: f"{type(p).__name__}-{p.direction}")


@pytest.fixture(scope="module")
def arrays():
    """Annotations that suit every data set, in random order."""
    rows = np.array([(i, c in (3, 6), c, n) for i in range(4) for c in range(1, 7) for n in (1, 2)])
    r = np.random.default_rng(0)
    rows = r.permutation(rows)
    return {
        "features": r.normal(size=(len(rows), 5)),
        **dict(zip(("ids", "modality", "cameras"), rows.T, strict=False)),
    }


@pytest.fixture(scope="module")
def numbers(arrays):
    """Each image's number within its identity and camera."""
    seen: dict[tuple[int, int], int] = {}
    found = []
    for key in zip(arrays["ids"].tolist(), arrays["cameras"].tolist(), strict=True):
        seen[key] = seen.get(key, 0) + 1
        found.append(seen[key])
    return np.array(found)


@each
def test_one_call_and_a_feature_file_serve_every_protocol(protocol, arrays, numbers):
    report = protocol.evaluate(*arrays.values(), numbers).to_dict()
    file = Features(**arrays, image_numbers=numbers)
    assert protocol.evaluate(file).to_dict() == report
    assert (
        protocol.evaluate(*(torch.from_numpy(x) for x in arrays.values()), torch.from_numpy(numbers)).to_dict()
        == report
    )
    other = protocol.evaluate(file, ids=arrays["ids"] // 2 * 2, image_numbers=np.arange(len(numbers))).to_dict()
    assert other != report


@each
def test_query_and_gallery_are_of_other_modalities(protocol, arrays, numbers):
    given = {name: arrays[name] for name in ("modality", "cameras")}
    query = protocol.query(**given).tolist()
    gallery = protocol.gallery(0, arrays["ids"], **given, image_numbers=numbers).tolist()
    asks = int(protocol.direction == "infrared_to_visible")
    assert query == np.flatnonzero(arrays["modality"] == asks).tolist()
    assert set(arrays["modality"][gallery]) == {1 - asks}
    assert len(gallery) == len(set(gallery)) > 1
    with pytest.raises(ValueError, match=f"trial must be below trials={protocol.trials}, got {protocol.trials}"):
        protocol.gallery(protocol.trials, arrays["ids"], **given, image_numbers=numbers)


@each
def test_arrays_that_are_needed_are_named(protocol, arrays, numbers):
    needed = {"SYSUMM01": "cameras"}.get(type(protocol).__name__, "modality")
    with pytest.raises(TypeError, match=f"{needed} must be given for {protocol.name}, got None"):
        protocol.query()
    with pytest.raises(TypeError, match=f"ids must be given for {protocol.name}, got None"):
        protocol.evaluate(arrays["features"])
    if protocol.name != "RegDB":
        with pytest.raises(TypeError, match="image_numbers must be given"):
            protocol.evaluate(*arrays.values())


def test_a_modality_that_contradicts_the_cameras_is_named(arrays, numbers):
    with pytest.raises(ValueError, match=r"modality must be 1 \(infrared\) for SYSU-MM01's cameras 3 and 6 and 0"):
        PROTOCOLS[0].evaluate(**(arrays | {"modality": 1 - arrays["modality"]}), image_numbers=numbers)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("sysu", "sysu"), ("SYSU-MM01", "sysu"), ("sysu_mm01", "sysu"), ("RegDB", "regdb"), ("LLCM", "llcm"),
     ("Synthetic", "synthetic")],
)  # fmt: skip
def test_spellings_of_a_data_set(spelling, name):
    assert dataset_name(spelling) == name


def test_unknown_data_sets_are_named():
    with pytest.raises(ValueError, match=r"name must be one of 'sysu', 'regdb', 'llcm', 'synthetic'.*got 'market'"):
        dataset_name("market")
