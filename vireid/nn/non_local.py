"""Non-local block (Wang et al., CVPR 2018) in the form of AGW (Ye et al., TPAMI 2021), and its place in a network."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from vireid._checks import check_count, check_module, check_size, check_tensor
from vireid._ops import evaluated
from vireid.nn.two_stream import feature_map as run


class NonLocal(nn.Module):
    """Non-local attention: every pixel takes in all pixels of its image, by their products and without a softmax.

        z = x + BN( W · (1/n) θ(x) φ(x)ᵀ g(x) ),   n the number of pixels

    θ, φ, g and W are 1 × 1 convolutions; the first three halve the channels. The batch normalization starts with scale
    and shift 0, so that the block starts as the identity.

    What is normalized is cubic in x. In evaluation mode, a network whose running statistics do not fit its weights yet
    may make it overflow, and scale 0 does not hide it: 0 · ∞ is NaN.

    Args:
        channels: c of the map, at least 2.

    Shape:
        (B, c, h, w) -> (B, c, h, w).

    Raises:
        ValueError: if ``channels`` is below 2, or the map is not (B, c, h, w).
        TypeError: if ``channels`` is not an integer, or the map is not floating point.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = check_count("channels", channels, minimum=2)
        inner = self.channels // 2
        self.theta, self.phi, self.g = (nn.Conv2d(self.channels, inner, 1) for _ in range(3))
        self.out, self.norm = nn.Conv2d(inner, self.channels, 1), nn.BatchNorm2d(self.channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, feature_map: Tensor) -> Tensor:
        """Add to ``feature_map`` (B, c, h, w) what each pixel takes in."""
        check_tensor("feature_map", feature_map, "B c h w", c=self.channels)
        theta, phi, g = (layer(feature_map).flatten(2) for layer in (self.theta, self.phi, self.g))
        n = theta.shape[2]
        phi = phi / n
        # one product of three: over the pixels first or over the channels first, whichever is smaller
        if n < theta.shape[1]:
            y = g @ (phi.transpose(1, 2) @ theta)
        else:
            y = (g @ phi.transpose(1, 2)) @ theta
        refined: Tensor = self.norm(self.out(y.unflatten(2, feature_map.shape[2:])))
        return feature_map + refined


def insert_non_local(net: nn.Module, blocks: Mapping[str, int], *, size: tuple[int, int] = (64, 64)) -> nn.Module:
    """Put a `NonLocal` behind each of the last blocks of stages of a network, in place.

    AGW has ``{"layer2": 2, "layer3": 3}`` of a ResNet-50. The channels are found by one run on an image of zeros.

    Args:
        net: such as `resnet50`, or a `TwoStream` of one, in both of whose stems a stage is changed if it stands there.
        blocks: number of blocks by the name of the stage, an ``nn.Sequential`` anywhere in the network. A stage of
            fewer blocks has one behind each.
        size: (H, W) of that image, for a network that takes no other.

    Returns:
        ``net``.

    Raises:
        ValueError: if the network has no such stage.
        TypeError: if ``net`` is not a module, ``blocks`` no mapping, or a number not an integer.

    Example:
        >>> from vireid.nn import SmallBackbone
        >>> net = insert_non_local(SmallBackbone(), {"refinements": 1})
        >>> net.refinements[-1][1].channels
        9
    """
    check_module("net", net)
    if not isinstance(blocks, Mapping):
        raise TypeError(f"blocks must map names of stages to numbers of blocks, got {blocks!r}")
    height, width = check_size("size", size)
    places: list[tuple[nn.Sequential, str]] = []
    for name, count in blocks.items():
        count = check_count(f"blocks[{name!r}]", count)
        found = [m for path, m in net.named_modules() if path.split(".")[-1] == name and isinstance(m, nn.Sequential)]
        if not found:
            raise ValueError(f"blocks must name stages of net, each an nn.Sequential, got {name!r}")
        places += [(stage, key) for stage in found for key in list(stage._modules)[-count:]]
    channels: dict[int, int] = {}

    def note(place: int, block: nn.Module, given: object, out: Tensor) -> None:
        channels[place] = out.shape[1]

    hooks = [stage.get_submodule(key).register_forward_hook(partial(note, i)) for i, (stage, key) in enumerate(places)]
    try:
        images = next(net.parameters(), torch.empty(0)).new_zeros(2, 3, height, width)
        with torch.no_grad():
            run(evaluated(net), images, torch.arange(2))
    finally:
        for hook in hooks:
            hook.remove()
    for i, (stage, key) in enumerate(places):
        block = stage.get_submodule(key)
        setattr(stage, key, nn.Sequential(block, NonLocal(channels[i]).to(images).train(block.training)))
    return net
