"""The benchmark of the heads: contenders that agree, a check that fails when they do not, what is written."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from benchmarks.speed import heads, heads_cift, heads_saai, measure
from benchmarks.speed.measure import read_table, value_of
from vireid import INFRARED, VISIBLE

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Sizes that take no time, centers that are pushed and centers that are not; no fresh processes."""
    for module, sizes in (
        (heads_cift, {"DIM": 8, "IDENTITIES": 9, "IDENTITIES_IN_BATCH": 3}),
        (heads_saai, {"CHANNELS": 6, "SIZE": (5, 2), "PARTS": 3, "IDENTITIES": 9, "IDENTITIES_IN_BATCH": 4}),
    ):
        for name, value in sizes.items():
            monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(heads_saai, "RHO2", 2.2)
    monkeypatch.setattr(measure, "can_measure_memory", lambda device: False)


@pytest.mark.parametrize("method", ["cift", "saai"])
def test_the_command(method, tmp_path, capsys):
    output = tmp_path / "heads.csv"
    given = ["--repeats", "2", "--output", str(output)] + (["--method", method] if method != "cift" else [])
    heads.main(given)
    (_, rows), shown = read_table(output), capsys.readouterr().out
    names = list(heads.METHODS[method].NAMES)
    assert [row["method"] for row in rows if row["metric"] == "median_s"] == names
    assert [line.split()[0] for line in shown.splitlines()[-len(names) :]] == names
    assert {row["metric"] for row in rows} == {"median_s", "difference_to_loop"}
    assert {row["size"].split()[0] for row in rows} == {{"cift": "3", "saai": "4"}[method]}
    assert value_of(rows, "difference_to_loop") < 1e-3
    differences = heads.check_agreement(method, CPU)
    expected = {"cift": {"transfer.value.weight", "cri.X_rho"}, "saai": {"pooling.position", "identity.specific"}}
    assert {"loss", "x", "neck.weight"} | expected[method] <= set(differences)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("identities", [2, 5])
@pytest.mark.parametrize("method", ["cift", "saai"])
def test_contenders_agree_for_any_number_of_identities(method, identities, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert heads.check_agreement(method, torch.device(device), identities)["x"] < 1e-3
    assert len(heads.make_heads(method, CPU, identities).x) == 8 * identities


def test_the_check_sees_both_hinges():
    saai = heads.make_heads("saai", CPU, 5)
    with torch.no_grad():
        pooled = saai.pooling.pool(saai.x)[1].flatten(1)
        centers = torch.stack([pooled[saai.labels == label].mean(0) for label in saai.labels.unique()])
    near = torch.pdist(centers) < heads_saai.RHO2
    assert near.any()
    assert not near.all()


BROKEN = {
    "part_diversity": lambda attention: attention.sum() * 1e-3,
    "center_separation": lambda rows, labels: rows.norm(dim=1).mean(),
    "identity": lambda rows, labels, modality: rows.square().mean(),
    "neck": lambda rows, modality: rows * 2,
}


@pytest.mark.parametrize("part", BROKEN)
def test_the_check_fails_when_a_component_is_broken(part, monkeypatch):
    monkeypatch.setattr(type(getattr(heads.make_heads("saai", CPU), part)), "forward", lambda _, *x: BROKEN[part](*x))
    with pytest.raises(RuntimeError, match=r"gradient|must agree to 1e-3"):
        heads.main(["--method", "saai", "--repeats", "1"])


def test_the_check_fails_when_a_value_is_off_by_a_hundredth(monkeypatch):
    monkeypatch.setattr(heads_saai, "_diversity_loop", lambda attention: 0.99 * attention.mean())
    with pytest.raises(RuntimeError, match=r"must agree to 1e-3, got relative differences .*'x'"):
        heads.check_agreement("saai", CPU)


def test_both_sides_do_the_same_to_running_statistics_and_averages():
    ours, loop = heads.make_heads("saai", CPU), heads.make_heads("saai", CPU)
    before = {name: buffer.clone() for name, buffer in ours.named_buffers()}
    heads.step(ours, "vireid")
    heads.step(loop, "loop")
    for name in ("neck.running_mean", "neck.running_var", "identity.averaged"):
        after = ours.get_buffer(name)
        assert not torch.equal(after, before[name])
        assert_close(after, loop.get_buffer(name))
    assert set(ours.modality.tolist()) == {VISIBLE, INFRARED}


def test_memory_is_asked_of_a_fresh_process_with_the_same_settings(monkeypatch, tmp_path):
    asked = []

    def run_self(script, options):
        assert script == "benchmarks.speed.heads"
        asked.append(options)
        return "12\n"

    monkeypatch.setattr(measure, "can_measure_memory", lambda device: True)
    monkeypatch.setattr(measure, "run_self", run_self)
    output = tmp_path / "heads.csv"
    given = ["--method", "saai", "--identities", "2", "--repeats", "1", "--output", str(output)]
    heads.main(given)
    assert asked == [[*given, "--peak-memory-of", name] for name in heads_saai.NAMES]
    assert value_of(read_table(output)[1], "peak_bytes", method="pass") == 12


@pytest.mark.parametrize("method", ["cift", "saai"])
def test_peak_memory_is_one_number(method, capsys):
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the system does not say")
    heads.main(["--method", method, "--peak-memory-of", "vireid"])
    assert int(capsys.readouterr().out) >= 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--repeats", "0"], "--repeats must be above 0, got 0"),
        (["--identities", "1"], "--identities must be from 2 to 9"),
        (["--method", "saai", "--identities", "10"], "--identities must be from 2 to 9"),
        (["--method", "g2da"], "invalid choice"),
        (["--peak-memory-of", "products"], "--peak-memory-of must be one of vireid, loop, classifier"),
    ],
)
def test_bad_arguments_are_named(given, message, capsys):
    with pytest.raises(SystemExit):
        heads.main(given)
    assert message in capsys.readouterr().err
