"""ResNet-50 of torchvision or timm as a feature extractor, the backbone of CIFT, SAAI and G2DA."""

import os
import pickle
import re
from collections import OrderedDict
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vireid._checks import check_option, extra
from vireid._files import check_not_compressed

_STAGES = ("layer1", "layer2", "layer3", "layer4")


class _ResNet50(nn.Sequential):
    """conv1, bn1, relu, maxpool, layer1 to layer4, one after the other; children named as in torchvision."""

    out_channels = 2048
    shared_from = "layer1"


def resnet50(
    *, source: str = "torchvision", weights: str | os.PathLike[str] | Enum | None = None, last_stride: int = 1
) -> nn.Module:
    """Build ResNet-50 without its pooling and classifier: images (B, 3, H, W) -> feature map (B, 2048, H/16, W/16).

    The result is an ``nn.Sequential`` with the children ``conv1``, ``bn1``, ``relu``, ``maxpool``, ``layer1`` to
    ``layer4`` for both sources, so that it can be split anywhere; its state dict has the libraries' own keys without
    ``fc.*``, the same for both. ``.out_channels`` is 2048; ``.shared_from``, the child where `TwoStream` splits it,
    is ``"layer1"``. Pre-trained weights expect RGB in [0, 1], normalized with ImageNet's mean (0.485, 0.456, 0.406) and
    standard deviation (0.229, 0.224, 0.225).

    Args:
        source: library that builds the network, ``"torchvision"`` or ``"timm"``.
        weights: None, random initial weights; ``"imagenet"``, ImageNet-1k weights that the library downloads and
            caches (torchvision: ``IMAGENET1K_V1``, those of the papers' time; timm: its default for ``resnet50``); with
            torchvision also a member of its ``ResNet50_Weights``, or its name, such as ``"IMAGENET1K_V2"`` or
            ``"DEFAULT"``; or the path of a local state dict, ``.safetensors`` or a file for
            ``torch.load(weights_only=True)``, whose ``fc.*`` entries are left out.
        last_stride: stride of layer4: 1 for a map of H/16 × W/16 (all three papers), 2 for H/32 × W/32
            (classification). The weights are the same for both.

    Raises:
        ImportError: if the source is not installed (``pip install 'vireid[backbones]'``).
        TypeError: if ``weights`` is of another type.
        ValueError: if an option is unknown, ``weights`` names those of another network, or a weight file is not a state
            dict or does not fit; the message names the keys that are missing, unexpected or of another shape.
        FileNotFoundError: if there is no file at the path ``weights``.
    """
    check_option("source", source, ("torchvision", "timm"))
    check_option("last_stride", last_stride, (1, 2))
    name = _published(source, weights)
    state = None if weights is None or name is not None else _read_state(Path(weights))  # type: ignore[arg-type]
    net = _from_torchvision(name) if source == "torchvision" else _from_timm(name is not None)
    if state is not None:
        try:
            net.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"weights: {weights} does not fit ResNet-50: {error}") from error
    if last_stride == 1:
        first = net.layer4[0]
        first.conv2.stride = first.downsample[0].stride = (1, 1)
    return net


def _published(source: str, weights: object) -> str | None:
    """Return the name of weights that the source downloads, None for others."""
    if weights is None or weights == "imagenet":
        return None if weights is None else "IMAGENET1K_V1"
    if not isinstance(weights, str | os.PathLike | Enum):
        raise TypeError(f"weights must be None, a name, a path or torchvision's ResNet50_Weights, got {weights!r}")
    text = str(weights)  # of a member: its class and its name
    if not isinstance(weights, Enum) and not re.fullmatch(r"DEFAULT|IMAGENET1K_V[12]|\w+_Weights\.[A-Z0-9_]+", text):
        return None  # a path
    if source != "torchvision":
        raise ValueError(f"weights must be None, 'imagenet' or a path for source={source!r}, got {text!r}")
    name = text.removeprefix("ResNet50_Weights.")
    check_option("weights", name, ("imagenet", "DEFAULT", "IMAGENET1K_V1", "IMAGENET1K_V2"))
    return name


def _from_torchvision(weights: str | None) -> Any:
    with extra("backbones", "source='torchvision' needs torchvision"):
        from torchvision import models
    net = models.resnet50(weights=None)
    if weights is not None:
        chosen = models.ResNet50_Weights[weights]
        net.load_state_dict(chosen.get_state_dict(progress=True, check_hash=True, weights_only=True))
    return _trunk(net, net.relu)


def _from_timm(pretrained: bool) -> Any:
    with extra("backbones", "source='timm' needs timm"):
        import timm
    net = timm.create_model("resnet50", pretrained=pretrained)
    return _trunk(net, net.act1)


def _trunk(net: Any, relu: nn.Module) -> _ResNet50:
    start = {"conv1": net.conv1, "bn1": net.bn1, "relu": relu, "maxpool": net.maxpool}
    return _ResNet50(OrderedDict(start | {name: getattr(net, name) for name in _STAGES}))


def _read_state(path: Path) -> dict[str, Tensor]:
    """Read the state dict in the file ``path``, without ``fc.*``; no pickled code is run."""
    if not path.is_file():
        raise FileNotFoundError(f"weights must be None, 'imagenet' or the path of a state dict, found no file {path}")
    if path.suffix == ".safetensors":
        state = _read_safetensors(path)
    else:
        try:
            check_not_compressed(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
            raise ValueError(f"weights: {path} is not a state dict that torch.load(weights_only=True) reads") from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        keys = f" with the keys {', '.join(map(repr, list(state)[:5]))}" if isinstance(state, dict) else ""
        raise ValueError(f"weights: {path} must hold a state dict (name -> tensor), got {type(state).__name__}{keys}")
    # without the version that comes with a state dict, counters that old files lack are no error
    return {name: value for name, value in state.items() if not name.startswith("fc.")}


def _read_safetensors(path: Path) -> Any:
    with extra("backbones", "a .safetensors file needs safetensors"):
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"weights: {path} is not a safetensors file: {error}") from error
