"""Reliability: the judge of the fuzzed calls finds each kind of fault; tiny runs of all checks find none."""

import subprocess
import sys
import time

import numpy as np
import pytest
import torch

pytest.importorskip("click", reason="kills the command line, of the extra cli")

from benchmarks.reliability import calls, fuzz, memory
from benchmarks.reliability.calls import Call
from places import ROOT

NUMBERS = range(40)


def kinds(function, monkeypatch, tmp_path, **options):
    """Return the kinds of outcomes of random calls of ``function``."""

    def make(draw, world):
        return function, {"x": draw.floats(3, 2), "k": draw.count(1, 9)}

    monkeypatch.setitem(calls.CALLS, "fake", Call("fake", make, **options))
    runner = fuzz.Runner(0, tmp_path, ["fake"])
    return {runner.outcome(number).kind for number in NUMBERS}


def checked(x, k):
    """Raise unless the arguments are of their kinds."""
    if not isinstance(x, torch.Tensor) or x.layout != torch.strided or x.is_nested or x.is_meta or x.is_quantized:
        raise TypeError("x must be a dense tensor")
    if not x.dtype.is_floating_point or x.itemsize < 2 or x.ndim != 2 or not x.isfinite().all():
        raise TypeError("x must be a finite matrix")
    if isinstance(k, bool) or not isinstance(k, int | np.integer):
        raise TypeError("k must be an integer")
    return int(k)


def sound(x: torch.Tensor, k: int):
    k = checked(x, k)
    return x.double().sum(1) * min(max(k, 1), 9)


def bare(x: torch.Tensor, k: int):
    return (x @ torch.ones(2, dtype=x.dtype))[: int(k)].double()


def unchecked(x: torch.Tensor, k: int):
    return 3.0


def changing(x: torch.Tensor, k: int):
    checked(x, k)
    x.detach().add_(1)


def random(x: torch.Tensor, k: int):
    checked(x, k)
    return torch.rand(3)


def counting(x: torch.Tensor, k: int):
    k = checked(x, k)
    return torch.ones(1) * (k if type(k) is int else 0) + time.perf_counter()


def rough(x: torch.Tensor, k: int):
    checked(x, k)
    return (x * x * x.abs().clamp_max(1e-30)).sum() * 1e30 if x.dtype == torch.float32 else x.sum()


def test_a_sound_function_has_no_fault(monkeypatch, tmp_path):
    assert kinds(sound, monkeypatch, tmp_path) == {"ok", "refused"}


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (bare, "error unnamed"),
        (unchecked, "let through"),
        (changing, "changed input"),
        (random, "ok"),  # the same seed, the same numbers
        (counting, "not the same"),
        (rough, "difference"),
    ],
)
def test_each_kind_of_fault_is_found(function, kind, monkeypatch, tmp_path):
    assert kind in kinds(function, monkeypatch, tmp_path)


def test_a_call_is_the_same_each_time(monkeypatch, tmp_path):
    monkeypatch.setitem(
        calls.CALLS, "fake", Call("fake", lambda draw, world: (sound, {"x": draw.floats(2, 2), "k": 3}))
    )
    runner = fuzz.Runner(3, tmp_path, ["fake"])
    assert [runner.outcome(n) for n in NUMBERS] == [runner.outcome(n) for n in NUMBERS]


def test_results_are_compared_leaf_by_leaf():
    one = {"a": [torch.ones(2), 3], "b": "text"}
    assert fuzz.differ(one, {"a": [torch.ones(2), 3], "b": "text"}, 0) == 0
    assert fuzz.differ(one, {"a": [torch.ones(2), 3], "b": "other"}, 0) == np.inf
    assert fuzz.differ(one, {"a": [torch.ones(3), 3], "b": "text"}, 0) == np.inf
    assert fuzz.differ(torch.tensor([1.0, np.nan]), torch.tensor([1.1, np.nan]), 0) == pytest.approx(1 / 11, abs=1e-6)
    assert fuzz.differ(torch.tensor(np.nan), torch.tensor(1.0), 0) == np.inf


@pytest.mark.parametrize("part", ["topk", "metric", "protocol", "exact graph"])
def test_memory_is_measured(part):
    seconds, peak = memory.measure(part, 2000)
    assert seconds > 0
    assert 0.01 < peak < 64


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["fuzz", "--calls", "300"],
        ["kill", "--moments", "2"],
        ["memory", "--rows", "20000", "--parts", "topk", "metric"],
    ],
)
def test_a_tiny_check_finds_no_fault(options):
    command = [sys.executable, "-m", "benchmarks.reliability", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
