"""The libraries that backbones come from."""

import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import nn

from libraries import STANDINS

KEPT_ALIVE = []  # a torch.library.Library takes its operators with it when it is collected


def import_torchvision() -> None:
    """Import torchvision, also its CUDA build beside a CPU build of torch, whose compiled operators cannot load."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import torchvision
        except RuntimeError as error:
            if "operator torchvision::" not in str(error):
                raise
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]
            library = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            KEPT_ALIVE.append(library)
            import torchvision  # noqa: F401


@pytest.fixture(scope="module", params=["torchvision stand-in", "timm stand-in", "torchvision", "timm"])
def source(request: pytest.FixtureRequest) -> Iterator[str]:
    """A library that can be imported from now on: a stand-in, or the library if it is installed."""
    library, _, standin = request.param.partition(" ")
    with pytest.MonkeyPatch.context() as patch:
        if standin:
            for name, make in STANDINS.items():
                patch.setitem(sys.modules, name, make())
        elif importlib.util.find_spec(library) is None:
            pytest.skip(f"needs {library}")
        else:
            if importlib.util.find_spec("torchvision") is not None:
                import_torchvision()  # timm imports it as well
            pytest.importorskip(library)
        yield library


@pytest.fixture(scope="module")
def library_net(source: str) -> Callable[[str], nn.Module]:
    """The library's function from a network's name to the network, with random weights."""
    if source == "torchvision":
        from torchvision import models

        return partial(models.get_model, weights=None)
    import timm

    return partial(timm.create_model, pretrained=False)
