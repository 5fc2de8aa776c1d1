"""A backbone whose first layers are each modality's own (two-stream network of AGW, DDAG and G2DA)."""

import copy
from collections import OrderedDict

import torch
from torch import Tensor, nn

from vireid import INFRARED, VISIBLE
from vireid._checks import check_integers, check_module, check_option

__all__ = ["TwoStream"]

_RESNET_END = "layer4"  # pooling and classifier come after it


class TwoStream(nn.Module):
    """A stem for each modality, then a trunk that both share (G2DA §III-A).

    Each image goes through the stem of its modality, in batches of one modality: the statistics that a stem's batch
    normalisation sees are that modality's own. A modality that is not in the batch leaves its stem alone.

    Args:
        stem: the visible images' first layers, (B, 3, H, W) -> (B, …).
        trunk: what follows, for both.
        infrared_stem: the infrared images' first layers. Default: a copy of ``stem``, with its weights.
        out_channels: channels of the trunk's map. Default: the trunk's own ``out_channels``, if it has them.
        grid: (rows, columns) of the trunk's map, for models that stack its cells. Default: the trunk's own ``grid``, or
            (1, 1), which asks for global pooling.

    Attributes:
        stems: the two stems, visible first.
        trunk: the shared layers.
        out_channels: as above; None where nobody knows.
        grid: as above.

    Raises:
        TypeError: if a stem or the trunk is not a module.
        ValueError: if ``infrared_stem`` is ``stem`` itself, which would not be two.
    """

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
        self.out_channels: int | None = getattr(trunk, "out_channels", None) if out_channels is None else out_channels
        self.grid: tuple[int, int] = getattr(trunk, "grid", (1, 1)) if grid is None else grid

    @classmethod
    def from_sequential(cls, net: nn.Sequential, *, shared_from: str) -> "TwoStream":
        """Cut ``net`` in two at one of its children.

        The network's own layers become the visible stem and the trunk: nothing is copied but the infrared stem.

        Args:
            net: such as `SmallBackbone`, whose children are ``cells``, ``norm`` and ``refinements``, or `resnet50`.
                Its ``out_channels`` and ``grid``, where it has them, are kept.
            shared_from: name of the first child of the trunk; not the first of all, which would leave no stem.

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
    def from_resnet(cls, net: nn.Module, *, shared_from: str = "layer1") -> "TwoStream":
        """Cut a ResNet in two; its pooling and classifier are left out.

        The network's own layers become the visible stem and the trunk: nothing is copied but the infrared stem.

        Args:
            net: `resnet50` of this package, or a ResNet of torchvision or timm as it is, of any depth.
            shared_from: name of the first layer of the trunk. ``"layer1"``: the first convolution is each modality's
                own and the four stages are shared, the paper's five blocks, as in AGW and DDAG.

        Raises:
            ValueError: if ``net`` has not ``conv1`` to ``layer4``, or ``shared_from`` is not one of what follows the
                first.
        """
        layers: dict[str, nn.Module] = {}
        for name, layer in net.named_children():
            layers[name] = layer
            if name == _RESNET_END:
                break
        missing = [name for name in ("conv1", "layer1", "layer2", "layer3", _RESNET_END) if name not in layers]
        if missing:
            raise ValueError(f"net must be a ResNet with children conv1 to {_RESNET_END}, got one without {missing}")
        channels = getattr(net, "out_channels", None) or getattr(net, "num_features", None)  # ours; timm's
        if channels is None and isinstance(classifier := getattr(net, "fc", None), nn.Linear):  # torchvision's
            channels = classifier.in_features
        return cls._cut(net, layers, shared_from, channels)

    @classmethod
    def _cut(
        cls, net: nn.Module, layers: dict[str, nn.Module], shared_from: str, out_channels: int | None
    ) -> "TwoStream":
        names = list(layers)
        check_option("shared_from", shared_from, names[1:])
        at = names.index(shared_from)
        stem, trunk = (nn.Sequential(OrderedDict((n, layers[n]) for n in part)) for part in (names[:at], names[at:]))
        return cls(stem, trunk, out_channels=out_channels, grid=getattr(net, "grid", None))

    def stream(self, modality: int) -> nn.Sequential:
        """The stem of one modality and the trunk, a module of images alone: for batches of one kind, or an export.

        Raises:
            ValueError: if ``modality`` is not 0, visible, or 1, infrared.
        """
        check_option("modality", modality, (VISIBLE, INFRARED))
        return nn.Sequential(self.stems[modality], self.trunk)

    def forward(self, images: Tensor, modality: Tensor) -> Tensor:
        """The trunk's map of each image, in the images' order.

        The sizes of the two parts of a batch are needed on the host, which waits for a ``modality`` that is on a GPU.
        It may stay in main memory instead; then nothing waits.

        Args:
            images: (B, 3, H, W).
            modality: (B,) integers, 0 visible, 1 infrared, in any order.

        Returns:
            What the trunk returns, (B, c, h, w) for a backbone.

        Raises:
            ValueError: if ``modality`` is not (B,) or holds another number.
            TypeError: if it holds no integers.
        """
        check_integers("modality", modality, len(images))
        counts = torch.stack([(modality == VISIBLE).sum(), (modality == INFRARED).sum()]).tolist()
        if sum(counts) != len(images):
            raise ValueError(
                f"modality must hold {VISIBLE}, visible, or {INFRARED}, infrared, got another number in "
                f"{len(images) - sum(counts)} of {len(images)} rows"
            )
        if 0 in counts:  # one modality, or no image
            return self.trunk(self.stems[int(counts[VISIBLE] == 0 and counts[INFRARED] > 0)](images))
        order = modality.argsort(stable=True)
        grouped, back = images[order.to(images.device)].split(counts), order.argsort().to(images.device)
        maps = torch.cat([stem(part) for stem, part in zip(self.stems, grouped, strict=True)])
        return self.trunk(maps[back])
