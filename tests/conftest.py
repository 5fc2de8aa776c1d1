"""Shared by all tests: a fixed seed, the device, packages that seem absent, and the switch for the slow tests."""

import builtins
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings

from libraries import STANDINS

# The same examples in every run, so that no test is red by chance; --hypothesis-profile=slow explores new ones.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("slow", deadline=None, max_examples=500, print_blob=True)
settings.load_profile("fixed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device the tests run on, such as cpu or cuda:0")
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skips = {}
    if not config.getoption("--slow") and "slow" not in config.getoption("-m", ""):
        skips["slow"] = pytest.mark.skip(reason="slow: run with --slow")
    if not torch.cuda.is_available():
        skips["gpu"] = pytest.mark.skip(reason="gpu: there is no CUDA device")
    for item in items:
        for name, skip in skips.items():
            if item.get_closest_marker(name):
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def seed() -> int:
    """Draw the same random numbers in every run, in any order of the tests."""
    torch.manual_seed(0)
    return 0


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    device = torch.device(pytestconfig.getoption("--device"))
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.exit("--device asks for CUDA and there is no CUDA device", returncode=2)
    return device


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that makes imports of the named packages fail, as if they were not installed."""

    def hide(*packages: str) -> None:
        real = builtins.__import__

        def load(name: str, *rest: Any, **named: Any) -> Any:
            if name.split(".")[0] in packages:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return real(name, *rest, **named)

        monkeypatch.setattr(builtins, "__import__", load)

    return hide


@pytest.fixture
def standins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put stand-ins in the place of torchvision and timm."""
    for name, make in STANDINS.items():
        monkeypatch.setitem(sys.modules, name, make())


@pytest.fixture
def pairs_of_any_number() -> Iterator[None]:
    """Let the compiler take a size that depends on data, such as the number of pairs in the groups of GFT."""
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        yield
