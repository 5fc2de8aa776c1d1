"""The libraries that backbones come from."""

import importlib.util
import sys
import warnings

import pytest
import torch

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


@pytest.fixture(scope="module", params=["torchvision", "timm"])
def source(request: pytest.FixtureRequest) -> str:
    """A library that is installed, and can be imported from now on."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"needs {request.param}")
    if importlib.util.find_spec("torchvision") is not None:
        import_torchvision()  # timm imports it as well
    pytest.importorskip(request.param)
    return request.param
