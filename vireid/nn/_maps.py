"""The part of a library's network that computes the feature map, and the stride of its last stage."""

from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Behind the map, in torchvision's networks.
_HEAD = {"avgpool", "flatten", "dropout", "fc", "head", "heads", "classifier", "AuxLogits", "aux1", "aux2"}

_CHANNELS_FIRST = "b h w c -> b c h w"
_Pool = nn.MaxPool2d | nn.AvgPool2d

Layers = dict[str, nn.Module]


class Renormalize(nn.Module):
    """Bring images that are normalized with ImageNet's mean and standard deviation to those of the network."""

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        ours, theirs = torch.tensor([IMAGENET_MEAN, IMAGENET_STD]), torch.tensor([mean, std])
        self.register_buffer("scale", (ours[1] / theirs[1])[:, None, None], persistent=False)
        self.register_buffer("shift", ((ours[0] - theirs[0]) / theirs[1])[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift


class _VisionTransformer(nn.Module):
    """torchvision's vision transformer up to its last norm, for images of any size."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.conv_proj, self.class_token, self.encoder = net.conv_proj, net.class_token, net.encoder

    def forward(self, images: Tensor) -> Tensor:
        height, width = self.conv_proj.stride
        # filled up to whole patches, at the right and at the bottom
        patch = self.conv_proj(F.pad(images, (0, -images.shape[3] % width, 0, -images.shape[2] % height)))
        h, w = patch.shape[-2:]
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), rearrange(patch, "b c h w -> b (h w) c")], 1)
        encoder = self.encoder
        tokens = encoder.ln(encoder.layers(encoder.dropout(tokens + self._positions(h, w))))
        return rearrange(tokens[:, 1:], "b (h w) c -> b c h w", h=h)

    def _positions(self, h: int, w: int) -> Tensor:
        """Return the position embedding, resized to a grid of ``h`` × ``w`` tokens, behind that of the class."""
        first, grid = self.encoder.pos_embedding.split([1, self.encoder.pos_embedding.shape[1] - 1], 1)
        side = isqrt(grid.shape[1])
        if (h, w) != (side, side):
            grid = rearrange(grid, "b (h w) c -> b c h w", h=side)
            grid = F.interpolate(grid, (h, w), mode="bicubic", antialias=True)
            grid = rearrange(grid, "b c h w -> b (h w) c")
        return torch.cat([first, grid], 1)


class _TimmFeatures(nn.Module):
    """Features of a network of timm as a map: tokens are folded back, channels come first."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        features = self.net.forward_features(images)
        if features.ndim == 4:
            return rearrange(features, _CHANNELS_FIRST) if _channels_last(self.net, features) else features
        stride = self.net.feature_info[-1]["reduction"]
        h, w = (-(-side // stride) for side in images.shape[-2:])
        return rearrange(features[:, getattr(self.net, "num_prefix_tokens", 0) :], "b (h w) c -> b c h w", h=h, w=w)


def _channels_last(net: Any, maps: Tensor) -> bool:
    return bool(maps.shape[1] != net.num_features == maps.shape[3])


def torchvision_layers(net: nn.Module) -> Layers:
    """Return the layers that compute the map, one after the other, of a network of torchvision."""
    if type(net).__name__ == "VisionTransformer":
        return {"features": _VisionTransformer(net)}
    layers: Layers = {name: layer for name, layer in net.named_children() if name not in _HEAD}
    if type(net).__name__ == "DenseNet":
        layers["relu"] = nn.ReLU()  # its forward pass calls the function
    return layers


def timm_layers(net: Any, image: Tensor) -> Layers:
    """Return the layers that compute the map, one after the other, of a network of timm; one layer if it is no chain.

    Args:
        net: the network, in evaluation mode.
        image: (1, 3, H, W) to run it on.
    """
    called: dict[nn.Module, None] = {}  # in order
    hooks = [module.register_forward_hook(lambda module, *_: called.setdefault(module)) for module in net.modules()]
    try:
        features = net.forward_features(image)
    finally:
        for hook in hooks:
            hook.remove()
    names = {layer: name for name, layer in net.named_children()}
    layers = {names[layer]: layer for layer in called if layer in names}
    if features.ndim == 4 and _is_chain(layers, image, features):
        layers = {"relu" if name == "act1" else name: layer for name, layer in layers.items()}  # as in torchvision
        return layers | ({"permute": Rearrange(_CHANNELS_FIRST)} if _channels_last(net, features) else {})
    for layer, name in names.items():
        if list(layer.parameters()) and called.keys().isdisjoint(layer.modules()):  # the classifier, and its norm
            setattr(net, name, nn.Identity())
    return {"features": _TimmFeatures(net)}


def _is_chain(layers: Layers, image: Tensor, features: Tensor) -> bool:
    try:
        return torch.equal(nn.Sequential(*layers.values())(image), features)
    except (RuntimeError, TypeError, NotImplementedError):
        return False


def _pad_windows(module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    """Let each place of a map be the first of a window."""
    assert isinstance(module, nn.Conv2d)
    return F.pad(inputs[0], (0, module.kernel_size[1] - 1, 0, module.kernel_size[0] - 1))


def widen(net: nn.Module, image: Tensor) -> None:
    """Let ``net`` leave out the last halving of its map, without a change of its parameters.

    Convolutions get stride 1: each second of their outputs is one that they have with stride 2. Pooling of windows that
    do not overlap is left out.

    Raises:
        ValueError: if the map does not become twice as large.
    """
    halving: dict[nn.Module, int] = {}

    def see(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if module.stride in (2, (2, 2)):
            halving[module] = output.shape[-1]

    hooks = [m.register_forward_hook(see) for m in net.modules() if isinstance(m, nn.Conv2d | _Pool)]
    last = net(image).shape[-1]
    for hook in hooks:
        hook.remove()
    for name, module in [(name, module) for name, module in net.named_modules() if halving.get(module) == last]:
        if isinstance(module, _Pool) and module.kernel_size in (2, (2, 2)):
            parent, _, child = name.rpartition(".")
            setattr(net.get_submodule(parent), child, nn.Identity())
            continue
        module.stride = (1, 1)
        if isinstance(module, nn.Conv2d) and module.kernel_size[0] % 2 == 0:
            module.register_forward_pre_hook(_pad_windows)
    try:
        size = net(image).shape[-1]
    except RuntimeError:
        size = 0
    if size < 2 * last - 1:
        raise ValueError("last_stride=1 needs a last stage whose stride is that of convolutions or pooling: give 2")
