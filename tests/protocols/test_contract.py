"""Contract of all protocols."""

import functools

import numpy as np
import pytest
import torch

from vireid.data import Features
from vireid.neighbors import topk
from vireid.protocols import DIRECTIONS, LLCM, SYSUMM01, RegDB, dataset_name
from vireid.protocols._protocol import compare
from vireid.rerank import AIM

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
def test_query_and_gallery_are_of_different_modalities(protocol, arrays, numbers):
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


def claims(uses):
    rerank = functools.partial(lambda q, g: -(q @ g.T))
    rerank.uses = uses
    return rerank


@each
@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"ids": np.ones(3, dtype=int)}, ValueError, r"ids must have shape \(48,\), got \(3,\)"),
        ({"ids": np.ones(48)}, TypeError, r"ids must hold integers.*; integers are needed, e.g. ids.astype\(int\)"),
        ({"ids": torch.ones(48)}, TypeError, r"integers are needed, e.g. ids.long\(\)"),
        ({"modality": np.ones(48, bool)}, TypeError, r"got bool; integers are needed, e.g. modality.astype\(int\)"),
        ({"features": np.full((48, 2), np.nan)}, ValueError, "features must be finite"),
        ({"features": np.ones((48, 0))}, ValueError, r"at least one column, got shape \(48, 0\)"),
        ({"features": np.ones((48, 2), int)}, TypeError, "features must be floating point"),
        ({"rerank": AIM}, TypeError, r"an object such as AIM\(k1=…, k2=…\), got the class AIM"),
        ({"rerank": "aim"}, TypeError, r"rerank must be None or callable with \(query, gallery\), got str"),
        ({"rerank": lambda q, g: None}, TypeError, "rerank's distance must be .*got NoneType"),
        ({"rerank": lambda q, g: (q @ g.T, None)}, TypeError, "rerank's distance must be .*got tuple"),
        ({"rerank": lambda q, g: q @ g.T * np.nan}, ValueError, "distance must be finite"),
        ({"rerank": lambda q, g: q[:1] @ g.T}, ValueError, r"rerank must return a distance \(\d+, \d+\), got \(1, "),
        ({"rerank": claims("everything")}, ValueError, "rerank's uses must be one of 'query', .*'everything'"),
    ],
)
def test_bad_input_is_named(protocol, change, error, text, arrays, numbers):
    with pytest.raises(error, match=text):
        protocol.evaluate(**(arrays | {"image_numbers": numbers} | change))


@pytest.mark.parametrize("protocol", PROTOCOLS[1:], ids=lambda p: f"{p.name}-{p.direction}")
def test_modalities_that_are_missing_or_unknown_are_named(protocol, arrays, numbers):
    given = arrays | {"image_numbers": numbers}
    with pytest.raises(ValueError, match=r"modality must hold both, got 48 visible \(0\) and 0 infrared \(1\) images"):
        protocol.evaluate(**(given | {"modality": arrays["modality"] * 0}))
    with pytest.raises(ValueError, match=r"modality must be 0 \(visible\) or 1 \(infrared\), got 2"):
        protocol.evaluate(**(given | {"modality": arrays["modality"] + 1}))


@pytest.mark.parametrize("protocol", [PROTOCOLS[0], *PROTOCOLS[3:]], ids=lambda p: f"{p.name}-{p.direction}")
def test_bad_cameras_and_numbers_are_named(protocol, arrays, numbers):
    given = arrays | {"image_numbers": numbers}
    last = 6 if protocol.name.startswith("SYSU") else 9
    with pytest.raises(ValueError, match=f"cameras must be the data set's numbers 1 to {last}, got {last + 1}"):
        protocol.evaluate(**(given | {"cameras": arrays["cameras"] * 0 + last + 1}))
    with pytest.raises(ValueError, match="image_numbers must be unique within identity and camera, got twice: image 1"):
        protocol.evaluate(**(given | {"image_numbers": numbers * 0 + 1}))


def test_bad_options_are_named():
    for make in (RegDB, LLCM):
        with pytest.raises(
            ValueError, match="direction must be one of 'visible_to_infrared', 'infrared_to_visible', g"
        ):
            make("vis_to_nir")
    for make in (LLCM, functools.partial(SYSUMM01, sampling="agw")):
        with pytest.raises(ValueError, match="trials must be at least 1, got 0"):
            make(trials=0)


def test_a_modality_that_contradicts_the_cameras_is_named(arrays, numbers):
    with pytest.raises(ValueError, match=r"modality must be 1 \(infrared\) for SYSU-MM01's cameras 3 and 6 and 0"):
        PROTOCOLS[0].evaluate(**(arrays | {"modality": 1 - arrays["modality"]}), image_numbers=numbers)


def test_spellings_of_a_data_set():
    for spelling in ("sysu", "SYSU-MM01", "sysu_mm01"):
        assert dataset_name(spelling) == "sysu"
    assert [dataset_name(x) for x in ("RegDB", "LLCM", "Synthetic")] == ["regdb", "llcm", "synthetic"]
    with pytest.raises(ValueError, match=r"name must be one of 'sysu', 'regdb', 'llcm', 'synthetic'.*got 'market'"):
        dataset_name("market")


KINDS_OF_TIES = {
    "all rows equal": lambda q, g: (q, g[:1].expand_as(g)),
    "each row twice": lambda q, g: (q, torch.cat([g[:65], g[:65]])),
    "twice, scaled": lambda q, g: (q, torch.cat([g[:65], 2 * g[:65]])),
    "twice, scaled far": lambda q, g: (q, torch.cat([g[:65] * 2.0**-90, 2.0**90 * g[:65]])),
    "three rows": lambda q, g: (q, g[:3].repeat(43, 1)),
    "zero rows": lambda q, g: (q, g * (torch.arange(len(g)) % 3 == 0)[:, None]),
    "zero queries": lambda q, g: (0 * q, g),
    "zeros of both signs": lambda q, g: (q, torch.cat([g[:65].relu(), -(-g[:65]).clamp_max(0)])),
    "binary codes": lambda q, g: (q.sign(), g.sign()),
    "sets": lambda q, g: ((q > 0).float(), (g > 0).float()),
    "few integers": lambda q, g: ((1.5 * q[:, :12]).round(), (1.5 * g[:, :12]).round()),
    "small integers": lambda q, g: ((2 * q).round(), (2 * g).round()),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS_OF_TIES)
def test_ties_are_ranked_by_index_as_in_topk(kind, dtype):
    if dtype == torch.float16 and kind == "twice, scaled far":
        pytest.skip("not in the range of float16")
    for d, (nq, ng) in ((100, (33, 9)), (128, (3, 33)), (768, (5, 130))):
        generator = torch.Generator().manual_seed(d)
        q, g = (torch.randn(n, d, generator=generator, dtype=torch.float64) for n in (nq, ng))
        q, g = (x.to(dtype) for x in KINDS_OF_TIES[kind](q, g))
        ids, modality = torch.arange(nq + len(g)) % min(nq, len(g), 9), (torch.arange(nq + len(g)) >= nq).long()
        order = topk(q, g, len(g))[1]
        assert torch.equal(compare(q, g).argsort(dim=1, stable=True), order)
        evaluate = functools.partial(RegDB("visible_to_infrared").evaluate, torch.cat([q, g]), ids, modality)
        by_rank = evaluate(rerank=lambda *_, order=order: order.argsort(dim=1).float())
        assert evaluate().rows[0].trials == by_rank.rows[0].trials


def test_the_default_distance_is_the_cosine_distance():
    q, g = (torch.randn(n, 20, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (7, 12))
    g[4] = 0
    wanted = 1 - torch.nn.functional.cosine_similarity(q[:, None], g[None], dim=2)
    for scale in (1e-300, 1e-160, 1.0, 1e160, 1e300):
        torch.testing.assert_close(compare(q * scale, g * scale), wanted, rtol=0, atol=1e-14)
        torch.testing.assert_close(compare(q, g * scale), wanted, rtol=0, atol=1e-14)
    for scale in (1e-37, 1.0, 1e37):
        torch.testing.assert_close(compare(q.float() * scale, g.float() * scale), wanted.float(), rtol=0, atol=1e-6)
    assert compare(q[:0], g).shape == (0, 12)
    assert compare(q.half(), g.float()).dtype == torch.float32
