"""Contract of the arguments of all public callables: numbers that are none are refused by name, NumPy's are numbers."""

import inspect

import numpy as np
import pytest
import torch

pytest.importorskip("PIL", reason="needs the extra train")
pytest.importorskip("lightning_fabric", reason="needs the extra train")
pytest.importorskip("matplotlib", reason="needs the extra plots")

from benchmarks.reliability._files import make_world
from benchmarks.reliability.calls import CALLS, LEFT_OUT, public_callables
from benchmarks.reliability.draw import Draw
from benchmarks.reliability.fuzz import differ, named
from benchmarks.reliability.hostile import hostile_values

SLOW = {
    "vireid.nn.backbone",
    "vireid.nn.resnet50",
    "vireid.training.write_results",
    "vireid.training.fit",
    "vireid.plots.tsne",
    "vireid.data.generate_synthetic",
}
KINDS = {"True", "'3'", "nan", "inf", "complex", "list", "None"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reliability") / "world"
    make_world(folder)
    return folder


def test_every_public_callable_is_in_the_table():
    public = dict(public_callables())
    assert CALLS.keys() | LEFT_OUT.keys() <= public.keys()
    assert not CALLS.keys() & LEFT_OUT.keys()
    for name in public.keys() - CALLS.keys() - LEFT_OUT.keys():
        assert not [p for p in inspect.signature(public[name]).parameters if p != "self"], name


def made(call, world):
    torch.manual_seed(0)
    return call.make(Draw(np.random.default_rng(5)), world)


def error_of(function, given):
    """Return the error of a call, None if it has none."""
    try:
        function(**given)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("name", sorted(CALLS.keys() - SLOW))
def test_numbers_are_checked_by_name(name, world):
    call = CALLS[name]
    function, given = made(call, world)
    parameters = inspect.signature(function).parameters.values()
    numbers = [
        p for p in parameters if p.name not in call.free and isinstance(given.get(p.name, p.default), int | float)
    ]
    for parameter in numbers if not call.holder else []:
        for label, value, must in hostile_values(given.get(parameter.name, parameter.default), parameter):
            if must == "refused" and label in KINDS:
                function, valid = made(call, world)
                error = error_of(function, {**valid, parameter.name: value})
                assert isinstance(error, TypeError | ValueError), f"{parameter.name}={label}: {error!r}"
                assert named(error, parameter.name, function, valid), f"{parameter.name}={label}: {error}"


@pytest.mark.parametrize("name", sorted(name for name in CALLS.keys() - SLOW if not name.startswith("vireid.plots")))
def test_numbers_of_numpy_are_numbers(name, world):
    call = CALLS[name]
    function, given = made(call, world)
    parameters = inspect.signature(function).parameters
    changed = {}
    for key, value in given.items():
        if (
            key in parameters
            and key not in call.free
            and isinstance(value, int | float)
            and not isinstance(value, bool)
        ):
            changed[key] = np.int64(value) if isinstance(value, int) else np.float64(value)
    if changed and not call.holder:
        torch.manual_seed(1)
        expected = function(**given)
        function, valid = made(call, world)
        torch.manual_seed(1)
        assert differ(function(**{**valid, **changed}), expected, 0) == 0
