"""Networks of torchvision and timm as feature extractors, images (B, 3, H, W) -> feature map (B, c, h, w)."""

import os
import re
from collections import OrderedDict
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from vireid._checks import check_option
from vireid.nn._maps import IMAGENET_MEAN, IMAGENET_STD, Layers, Renormalize, timm_layers, torchvision_layers, widen
from vireid.nn._weights import named_or_read

_LIBRARIES = ("torchvision", "timm")
# How timm's transformers are asked to take images of any size.
_ANY_SIZE = (
    {"dynamic_img_size": True, "dynamic_img_pad": True},
    {"dynamic_img_size": True},
    {"strict_img_size": False},
)
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)")  # keys of torchvision's files


class _Backbone(nn.Sequential):
    """Layers of a network up to its map, named as in its library.

    Attributes:
        out_channels: channels of the map.
        shared_from: the first layer that two streams share; None if the network cannot be split.
    """

    out_channels: int
    shared_from: str | None


def backbone(name: str, *, weights: str | os.PathLike[str] | Enum | None = None, last_stride: int = 1) -> nn.Sequential:
    """Build a network of torchvision or timm without its classifier: images (B, 3, H, W) -> map (B, c, h, w).

    The result is an ``nn.Sequential`` of the library's own layers, with its names and the keys of its state dict; a
    network that is no chain of layers is one layer, ``features``. ``.out_channels`` is c. ``.shared_from`` is the layer
    behind the first convolutions, at which `TwoStream.from_sequential` splits it, or None. The tokens of a vision
    transformer are folded back into a map without those of the class and the registers; its position embedding is
    resized to the image, which is filled up to whole patches.

    Images are RGB in [0, 1], normalized with ImageNet's mean (0.485, 0.456, 0.406) and standard deviation (0.229,
    0.224, 0.225); a network that was trained with others converts them.

    Args:
        name: such as ``"resnet50"``, ``"convnext_tiny"`` or ``"vit_b_16"``, of torchvision if it is installed and has
            the network, else of timm. ``"torchvision/…"`` and ``"timm/…"`` choose the library; a tag chooses timm's
            weights, as in ``"timm/resnet50.a1_in1k"``.
        weights: None, random initial weights; ``"imagenet"``, weights that the library downloads and caches
            (torchvision: ``IMAGENET1K_V1``, those of the papers' time, or ``DEFAULT`` if there are none; timm: those of
            the name); with torchvision also a member of the network's weights, or its name, such as
            ``"IMAGENET1K_V2"`` or ``"DEFAULT"``; or the path of a local state dict, ``.safetensors`` or a file for
            ``torch.load(weights_only=True)``, with the library's keys, those of its classifier left out.
        last_stride: 1: a map of H/32 × W/32 becomes one of H/16 × W/16 with the same weights, as the last convolutions
            that halve it get stride 1, or the last pooling is left out; finer maps stay. 2: the network as it is.

    Raises:
        ImportError: if the library is not installed (``pip install 'vireid[backbones]'``).
        TypeError: if ``name`` or ``weights`` is of another type.
        ValueError: if an option or the name is unknown, the network makes no map or has no last stride to set,
            ``weights`` names those of another network, or a weight file is not a state dict or does not fit; the
            message names the keys that are missing, unexpected or of another shape.
        FileNotFoundError: if there is no file at the path ``weights``.
    """
    check_option("last_stride", last_stride, (1, 2))
    published, state = named_or_read(weights)
    library, network = _find(name)
    if library == "torchvision":
        net, downloaded = _from_torchvision(network, published)
        state = downloaded if state is None else state
    else:
        net = _from_timm(network, published)
    whole = net.state_dict(keep_vars=True)
    net.eval()
    with torch.no_grad():
        built, image, maps = _cut(net, library, name)
        if state is not None:
            kept = set(map(id, built.state_dict(keep_vars=True).values()))
            try:
                _load(net, state, head={key for key, tensor in whole.items() if id(tensor) not in kept})
            except RuntimeError as error:
                raise ValueError(f"weights: {weights} does not fit {network}: {error}") from error
        if last_stride == 1 and maps.shape[-1] * 24 < image.shape[-1]:
            widen(built, image)
    built.out_channels, built.shared_from = maps.shape[1], _behind_first_weights(built)
    return built.train()


def resnet50(
    *, source: str = "torchvision", weights: str | os.PathLike[str] | Enum | None = None, last_stride: int = 1
) -> nn.Sequential:
    """Build ResNet-50 without its pooling and classifier: images (B, 3, H, W) -> feature map (B, 2048, H/16, W/16).

    Its layers are ``conv1``, ``bn1``, ``relu``, ``maxpool`` and ``layer1`` to ``layer4``, and its state dict is the
    same for both sources; ``.shared_from`` is ``"layer1"``.

    Args:
        source: library that builds the network, ``"torchvision"`` or ``"timm"``.
        weights: as of `backbone`.
        last_stride: stride of layer4: 1 for a map of H/16 × W/16 (all three papers), 2 for H/32 × W/32
            (classification). The weights are the same for both.

    Raises:
        ImportError, TypeError, FileNotFoundError: as `backbone`.
        ValueError: likewise, or if the source is unknown.
    """
    check_option("source", source, _LIBRARIES)
    return backbone(f"{source}/resnet50", weights=weights, last_stride=last_stride)


def _find(name: str) -> tuple[str, str]:
    """Return the library that has the network and its name there."""
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, got {name!r}")
    given, _, network = name.rpartition("/")
    check_option("the part of name before /", given, ("", *_LIBRARIES))
    libraries, absent = (given,) if given else _LIBRARIES, None
    for library in libraries:
        try:
            if _has(library, network):
                return library, network
        except ImportError as error:
            absent = error
    if absent is not None:
        raise ImportError(f"{name} needs {' or '.join(libraries)}: pip install 'vireid[backbones]'") from absent
    raise ValueError(f"name must be a network of {' or '.join(libraries)}, got {network!r}")


def _has(library: str, network: str) -> bool:
    if library == "torchvision":
        from torchvision import models

        return network in models.list_models(module=models)
    import timm

    return bool(timm.is_model(network))


def _from_torchvision(network: str, published: str | None) -> tuple[nn.Module, dict[str, Tensor] | None]:
    """Return the whole network, and the state dict of the weights that are asked for by name."""
    from torchvision import models

    members = models.get_model_weights(network)
    names = list(members.__members__)
    if published == "imagenet":
        published = "IMAGENET1K_V1" if "IMAGENET1K_V1" in names else "DEFAULT"
    if published is None:
        return models.get_model(network, weights=None), None
    published = published.removeprefix(f"{members.__name__}.")
    check_option("weights", published, ("imagenet", *names))
    state = members[published].get_state_dict(progress=True, check_hash=True, weights_only=True)
    return models.get_model(network, weights=None), state


def _from_timm(network: str, published: str | None) -> nn.Module:
    import timm

    if published not in (None, "imagenet"):
        raise ValueError(
            f"weights must be None, 'imagenet' or a path for a network of timm, got {published!r}: a tag in name says "
            "which, as in 'timm/resnet50.a1_in1k'"
        )
    for options in _ANY_SIZE:
        try:
            return timm.create_model(network, pretrained=published is not None, **options)
        except TypeError:  # a convolutional network, as a rule
            continue
    return timm.create_model(network, pretrained=published is not None)


def _cut(net: Any, library: str, name: str) -> tuple[_Backbone, Tensor, Tensor]:
    """Return the layers up to the map, an image that they take, and its map.

    The image is small, or else of the size that the network is made for.
    """
    first = next(net.parameters())
    for side in (112, getattr(net, "pretrained_cfg", {}).get("input_size", (224,))[-1]):
        values = torch.linspace(-2, 2, 3 * side**2, device=first.device, dtype=first.dtype)
        image = values.view(1, 3, side, side)
        try:
            layers = torchvision_layers(net) if library == "torchvision" else timm_layers(net, image)
            built = _Backbone(OrderedDict(_renormalize(net) | layers))
            return built, image, built(image)
        except Exception as error:  # whatever a network makes of a size that is not its own
            failed = error
    raise ValueError(f"name must be a network that makes a map of an image, got {name!r}") from failed


def _renormalize(net: Any) -> Layers:
    """Return a first layer for networks that were not trained with ImageNet's mean and standard deviation."""
    half = (0.5, 0.5, 0.5) if hasattr(net, "transform_input") else None  # torchvision's Inceptions
    config = getattr(net, "pretrained_cfg", {})  # timm's
    mean, std = tuple(config.get("mean", half or IMAGENET_MEAN)), tuple(config.get("std", half or IMAGENET_STD))
    return {} if (mean, std) == (IMAGENET_MEAN, IMAGENET_STD) else {"renormalize": Renormalize(mean, std)}


def _load(net: nn.Module, state: dict[str, Tensor], head: set[str]) -> None:
    """Load ``state`` but for the keys of the ``head``; counters, which old files lack, may be missing."""
    own = {key: x for key, x in net.state_dict().items() if key in head or key.endswith("num_batches_tracked")}
    given = {_OLD_DENSENET.sub(r"\1", key): x for key, x in state.items()}
    net.load_state_dict(own | {key: x for key, x in given.items() if key not in head})


def _behind_first_weights(net: nn.Sequential, prefix: str = "") -> str | None:
    """Return the name of the second layer with convolutions or products, also inside a chain."""
    names = [name for name, layer in net.named_children() if any(p.ndim > 1 for p in layer.parameters())]
    if len(names) > 1:
        return prefix + names[1]
    inner = net.get_submodule(names[0]) if names else None
    if isinstance(inner, nn.Sequential) and type(inner).forward is nn.Sequential.forward:
        return _behind_first_weights(inner, f"{prefix}{names[0]}.")
    return None
