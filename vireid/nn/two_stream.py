"""A backbone with separate first layers per modality (two-stream network of AGW, DDAG and G2DA)."""

import copy
from collections import OrderedDict
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vireid._checks import check_count, check_modality, check_module, check_option, check_size, check_tensor


def declared(backbone: nn.Module, name: str, default: object = None) -> Any:
    """Return an attribute of the backbone, or of the module that a wrapper such as `DataParallel` holds."""
    while not hasattr(backbone, name) and isinstance(inner := getattr(backbone, "module", None), nn.Module):
        backbone = inner
    return getattr(backbone, name, default)


def feature_map(backbone: nn.Module, images: Tensor, modality: Tensor) -> Tensor:
    """Compute the backbone's map; a backbone that declares ``takes_modality`` is also given ``modality`` (B,)."""
    maps: Tensor = backbone(images, modality) if declared(backbone, "takes_modality", False) else backbone(images)
    return maps


class TwoStream(nn.Module):
    """One stem per modality and a trunk shared by both (G2DA §III-A).

    A stem processes the images of its modality as one batch, so that the statistics of its batch normalization are that
    modality's own. If a modality is missing from the batch, its stem does not change. Where a network is split, its own
    layers become the visible stem and the trunk; only the infrared stem is a copy.

    Args:
        stem: first layers of the visible images, (B, 3, H, W) -> (B, …).
        trunk: the shared layers that follow.
        infrared_stem: first layers of the infrared images. Default: a copy of ``stem``, with its weights.
        out_channels: channels of the trunk's map. Default: the trunk's own ``out_channels``, if it has them.
        grid: (rows, columns) of the trunk's map, for models that stack its cells. Default: the trunk's own ``grid``, or
            (1, 1), which stands for global pooling.

    Attributes:
        takes_modality: True: models give such a backbone the modality, too. Any network may declare it.
        stems: the two stems, visible first.
        trunk: the shared layers.
        out_channels: as above; None if unknown.
        grid: as above.

    Raises:
        TypeError: if a stem or the trunk is not a module.
        ValueError: if ``infrared_stem`` is ``stem`` itself.
    """

    takes_modality = True

    def __init__(
        self,
        stem: nn.Module,
        trunk: nn.Module,
        *,
        infrared_stem: nn.Module | None = None,
        out_channels: int | None = None,
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        infrared_stem = copy.deepcopy(stem) if infrared_stem is None else infrared_stem
        for name, part in (("stem", stem), ("trunk", trunk), ("infrared_stem", infrared_stem)):
            check_module(name, part)
        if infrared_stem is stem:
            raise ValueError("infrared_stem must be another module than stem, got the same")
        self.stems = nn.ModuleList([stem, infrared_stem])
        self.trunk = trunk
        known = getattr(trunk, "out_channels", None)
        self.out_channels: int | None = known if out_channels is None else check_count("out_channels", out_channels)
        self.grid: tuple[int, int] = getattr(trunk, "grid", (1, 1)) if grid is None else check_size("grid", grid)

    @classmethod
    def from_sequential(cls, net: nn.Sequential, *, shared_from: str) -> "TwoStream":
        """Split ``net`` at one of its children.

        Args:
            net: such as `SmallBackbone`, whose children are ``cells``, ``norm`` and ``refinements``, or a `backbone`.
                Its ``out_channels`` and ``grid``, if any, are kept.
            shared_from: name of the first child of the trunk; any but the first of ``net``. ``"a.b"`` splits the child
                a, an ``nn.Sequential``, before its child b. A `backbone` suggests its ``shared_from``.

        Raises:
            TypeError: if ``net`` is not an ``nn.Sequential``.
            ValueError: if ``shared_from`` is not one of its children.

        Example:
            >>> from vireid.nn import SmallBackbone
            >>> net = TwoStream.from_sequential(SmallBackbone(), shared_from="refinements")
            >>> net(torch.rand(3, 3, 64, 32), torch.tensor([1, 0, 1])).shape
            torch.Size([3, 9, 15, 7])
        """
        if not isinstance(net, nn.Sequential):
            raise TypeError(f"net must be a torch.nn.Sequential, got {type(net).__name__}")
        return cls._cut(net, dict(net.named_children()), shared_from, getattr(net, "out_channels", None))

    @classmethod
    def from_resnet(cls, net: nn.Module, *, shared_from: str = "layer1", last_stride: Literal[1, 2] = 1) -> "TwoStream":
        """Split a ResNet; its pooling and classifier are left out.

        Args:
            net: `resnet50` of this package, or an unchanged ResNet of torchvision or timm, of any depth.
            shared_from: name of the first layer of the trunk. ``"layer1"``: the first convolution is separate and the
                four stages are shared, the paper's five blocks, as in AGW and DDAG.
            last_stride: stride of layer4: 1 for a map of H/16 × W/16 (all three papers); 2 leaves ``net``'s, which is 2
                in torchvision and timm. Where it has to change, the trunk has layers of its own with ``net``'s weights,
                and those of ``net`` keep their stride.

        Raises:
            TypeError: if ``net`` is not a module.
            ValueError: if ``net`` lacks one of ``conv1`` to ``layer4``, ``shared_from`` is not one of its layers after
                the first, or layer4 takes its stride from another layer than a convolution.
        """
        check_module("net", net)
        check_option("last_stride", last_stride, (1, 2))
        layers = dict(net.named_children())
        missing = [name for name in ("conv1", "layer1", "layer2", "layer3", "layer4") if name not in layers]
        if missing:
            raise ValueError(f"net must be a ResNet with children conv1 to layer4, got one without {missing}")
        names = list(layers)
        layers = {name: layers[name] for name in names[: names.index("layer4") + 1]}
        if last_stride == 1:
            layers["layer4"] = _without_stride(layers["layer4"])
        channels = getattr(net, "out_channels", None) or getattr(net, "num_features", None)  # vireid's; timm's
        if channels is None and isinstance(classifier := getattr(net, "fc", None), nn.Linear):  # torchvision's
            channels = classifier.in_features
        return cls._cut(net, layers, shared_from, channels)

    @classmethod
    def _cut(
        cls, net: nn.Module, layers: dict[str, nn.Module], shared_from: str, out_channels: int | None
    ) -> "TwoStream":
        stem, trunk = _halves(layers, shared_from)
        return cls(stem, trunk, out_channels=out_channels, grid=getattr(net, "grid", None))

    def stream(self, modality: int) -> nn.Sequential:
        """Return the stem of one modality and the trunk as a module of images only, for an export, for instance.

        Raises:
            ValueError: if ``modality`` is not 0, visible, or 1, infrared.
            TypeError: if it is not an integer.
        """
        return nn.Sequential(self.stems[check_count("modality", modality, minimum=0, maximum=1)], self.trunk)

    def forward(self, images: Tensor, modality: Tensor) -> Tensor:
        """Compute the trunk's map of each image, in the order of the images.

        The host needs the sizes of the two parts of a batch, and waits for a ``modality`` that is on a GPU. It may be
        in main memory instead; then nothing waits. For the same reason it is `stream` that exports and compiles as one
        graph.

        Args:
            images: (B, 3, H, W).
            modality: (B,) integers, 0 visible, 1 infrared, in any order.

        Returns:
            Output of the trunk, (B, c, h, w) for a backbone.

        Raises:
            ValueError: if ``images`` has not four axes, or ``modality`` is not (B,) or holds another number.
            TypeError: if ``images`` is not floating point or ``modality`` does not hold integers.
        """
        check_tensor("images", images, "B C H W")
        check_tensor("modality", modality, "B", kind="integer", B=images.shape[0])
        modality = modality.cpu()
        check_modality("modality", modality, wait=True)
        infrared = int(modality.sum())
        counts = [len(images) - infrared, infrared]
        if 0 in counts:  # one modality, or no image
            return self.trunk(self.stems[int(infrared > 0)](images))
        order = modality.argsort(stable=True)
        grouped, back = images[order.to(images.device)].split(counts), order.argsort().to(images.device)
        maps = torch.cat([stem(part) for stem, part in zip(self.stems, grouped, strict=True)])
        return self.trunk(maps[back])


def _halves(layers: dict[str, nn.Module], shared_from: str) -> tuple[nn.Sequential, nn.Sequential]:
    """Cut ``layers`` before one of them, or inside it: before "a.b", the layer b of the chain a."""
    names = list(layers)
    if not isinstance(shared_from, str):
        raise TypeError(f"shared_from must be a str, got {shared_from!r}")
    cut, _, inside = shared_from.partition(".")
    check_option("shared_from", cut, names if inside else names[1:])
    at = names.index(cut)
    stem, trunk = (OrderedDict((name, layers[name]) for name in half) for half in (names[:at], names[at:]))
    if inside:
        part = layers[cut]
        if not isinstance(part, nn.Sequential):
            raise ValueError(f"shared_from must not be inside {cut!r}, which is no torch.nn.Sequential")
        stem[cut], trunk[cut] = _halves(dict(part.named_children()), inside)
    return nn.Sequential(stem), nn.Sequential(trunk)


def _without_stride(stage: nn.Module) -> nn.Module:
    """Return a stage of a ResNet whose convolutions have stride 1; it shares all tensors with ``stage``."""
    leaves = [(name, layer) for name, layer in stage.named_modules() if not list(layer.children())]
    strided = {name: layer for name, layer in leaves if getattr(layer, "stride", 1) not in (1, (1, 1))}
    others = [name for name, layer in strided.items() if not isinstance(layer, nn.Conv2d)]
    if others:
        raise ValueError(
            f"last_stride=1 needs strides of convolutions, got {', '.join(others)} in layer4 as well: build net with "
            "stride 1 (timm: output_stride=16), or give last_stride=2"
        )
    if strided:
        shared = {id(tensor): tensor for tensor in chain(stage.parameters(), stage.buffers())}
        stage = copy.deepcopy(stage, dict[int, object](shared))
        for layer in stage.modules():
            if isinstance(layer, nn.Conv2d):
                layer.stride = (1, 1)
    return stage
