"""Stand-ins with the interfaces of torchvision and timm: small networks of the kinds that backbones are made of."""

import enum
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, act: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        setattr(self, act, nn.ReLU(inplace=True))
        self.act = act
        self.downsample = None
        if stride > 1 or inputs != 4 * width:
            conv = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        act = getattr(self, self.act)
        out = act(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(act(self.bn2(self.conv2(out)))))
        return act(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Structure of ResNet-50; layers named as in torchvision, or with ``act`` "act1" as in timm."""

    def __init__(self, width: int = 64, blocks: tuple[int, ...] = (3, 4, 6, 3), act: str = "relu") -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        setattr(self, act, nn.ReLU(inplace=True))
        self.maxpool, self.act = nn.MaxPool2d(3, 2, 1), act
        inputs = width
        for stage, depth in enumerate(blocks):
            layers = []
            for block in range(depth):
                stride = 2 if stage and not block else 1
                layers.append(Bottleneck(inputs, width << stage, stride, "relu" if act == "relu" else "act2"))
                inputs = 4 * width << stage
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(inputs, 10)
        self.num_features = inputs
        if act != "relu":
            self.pretrained_cfg = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.maxpool(getattr(self, self.act)(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.avgpool(self.forward_features(x)).flatten(1))


class DenseNet(nn.Module):
    """Layout of torchvision's, whose forward pass ends with a function: down to 1/32, last by pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential()
        self.features.conv0, self.features.pool0 = nn.Conv2d(3, 4, 7, 2, 3), nn.MaxPool2d(3, 2, 1)
        self.features.denseblock1, self.features.transition1 = nn.Sequential(), nn.AvgPool2d(4, 4)
        self.features.denseblock1.denselayer1 = nn.Sequential()
        self.features.denseblock1.denselayer1.norm1 = nn.BatchNorm2d(4)
        self.features.denseblock1.denselayer1.conv1 = nn.Conv2d(4, 6, 1)
        self.features.transition2, self.features.norm5 = nn.AvgPool2d(2, 2), nn.BatchNorm2d(6)
        self.classifier = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.relu(self.features(x)).mean((2, 3)))


class ConvNeXt(nn.Module):
    """Patches of 16 and a last convolution of stride 2 whose windows do not overlap."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 16, 16), nn.Sequential(nn.Conv2d(4, 5, 2, 2), nn.GELU()))
        self.classifier = nn.Linear(5, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class PatchMerging(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[..., ::2, ::2, :]


class SwinTransformer(nn.Module):
    """Maps whose channels come last, halved by slicing."""

    def __init__(self) -> None:
        super().__init__()
        first = nn.Sequential(nn.Conv2d(3, 6, 16, 16))
        self.features = nn.Sequential(first, nn.Sequential(Permute(0, 2, 3, 1), nn.Linear(6, 6)), PatchMerging())
        self.norm, self.permute = nn.LayerNorm(6), Permute(0, 3, 1, 2)
        self.avgpool, self.flatten, self.head = nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.flatten(self.avgpool(self.permute(self.norm(self.features(x))))))


class Permute(nn.Module):
    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


class VisionTransformer(nn.Module):
    """Layout of torchvision's, for images of 64 × 64."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_proj, self.class_token = nn.Conv2d(3, 6, 16, 16), nn.Parameter(torch.randn(1, 1, 6))
        self.encoder = nn.Module()
        self.encoder.pos_embedding = nn.Parameter(torch.randn(1, 17, 6))
        self.encoder.dropout, self.encoder.layers, self.encoder.ln = nn.Dropout(0), Mixer(), nn.LayerNorm(6)
        self.heads = nn.Linear(6, 10)

    def tokens(self, x: Tensor) -> Tensor:
        assert x.shape[2:] == (64, 64)
        x = self.conv_proj(x).flatten(2).mT
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.encoder.pos_embedding
        return self.encoder.ln(self.encoder.layers(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.heads(self.tokens(x)[:, 0])


class Mixer(nn.Module):
    """A layer in which each token sees all."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x.mean(1, keepdim=True))


class TimmTransformer(nn.Module):
    """Interface of timm's: a class token and a register, images of any size if asked for, pooled by a norm."""

    num_prefix_tokens, num_features = 2, 6

    def __init__(self, *, dynamic_img_size: bool = False, dynamic_img_pad: bool = False) -> None:
        super().__init__()
        self.feature_info = [{"reduction": 16}]
        self.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
        self.any_size = dynamic_img_size and dynamic_img_pad
        self.patch_embed, self.prefix = nn.Conv2d(3, 6, 16, 16), nn.Parameter(torch.randn(1, 2, 6))
        self.blocks = nn.ModuleList([Mixer()])
        self.rope = nn.Module()  # used, but not called
        self.fc_norm, self.head = nn.LayerNorm(6), nn.Linear(6, 10)

    def forward_features(self, x: Tensor) -> Tensor:
        assert self.any_size
        assert not list(self.rope.parameters())
        x = nn.functional.pad(x, (0, -x.shape[3] % 16, 0, -x.shape[2] % 16))
        return self.blocks[0](torch.cat([self.prefix.expand(len(x), -1, -1), self.patch_embed(x).flatten(2).mT], 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc_norm(self.forward_features(x).mean(1)))


class TimmSwin(nn.Module):
    """Interface of timm's: channels last, images of any size only if asked for."""

    num_features = 6

    def __init__(self, *, strict_img_size: bool = True) -> None:
        super().__init__()
        self.strict, self.pretrained_cfg = strict_img_size, {"input_size": (3, 96, 96)}
        self.patch_embed = nn.Sequential(nn.Conv2d(3, 6, 32, 32), Permute(0, 2, 3, 1))
        self.layers, self.head = nn.Sequential(nn.Linear(6, 6)), nn.Linear(6, 10)

    def forward_features(self, x: Tensor) -> Tensor:
        assert not self.strict
        return self.layers(self.patch_embed(x))


class FixedSize(nn.Module):
    """Takes images of one size only."""

    num_features = 4

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 16, 16), nn.Linear(4, 10)
        self.pretrained_cfg = {"input_size": (3, 96, 96), "mean": (0.485, 0.456, 0.406)}

    def forward_features(self, x: Tensor) -> Tensor:
        assert x.shape[2:] == (96, 96), "Input height doesn't match model (96)."
        return 2 * self.conv(x)


class NoMap(nn.Module):
    """Has no features to give."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)


class ResNet50_Weights(enum.Enum):
    """Interface of torchvision's; a test says where its members come from."""

    IMAGENET1K_V1 = 1
    IMAGENET1K_V2 = 2
    DEFAULT = 2

    def get_state_dict(self, **options: Any) -> dict[str, Tensor]:
        raise NotImplementedError


class ViT_Weights(enum.Enum):
    """Weights of a network that has none with the usual name."""

    SWAG = 1
    DEFAULT = 1
    get_state_dict = ResNet50_Weights.get_state_dict


WIDTH = 8
TORCHVISION: dict[str, Callable[..., nn.Module]] = {
    "resnet50": lambda: ResNet(WIDTH),
    "densenet121": DenseNet,
    "convnext_tiny": ConvNeXt,
    "swin_t": SwinTransformer,
    "vit_b_16": VisionTransformer,
    "no_map": NoMap,
}
TIMM: dict[str, Callable[..., nn.Module]] = {
    "resnet50": lambda: ResNet(WIDTH, act="act1"),
    "vit_small": TimmTransformer,
    "swin_tiny": TimmSwin,
    "fixed": FixedSize,
    "no_map": NoMap,
}


def torchvision_standin() -> ModuleType:
    def get_model(name: str, *, weights: None) -> nn.Module:
        return TORCHVISION[name]()

    module = ModuleType("torchvision")
    module.models = SimpleNamespace(  # type: ignore[attr-defined]
        list_models=lambda module: list(TORCHVISION),
        get_model=get_model,
        get_model_weights=lambda name: ViT_Weights if name == "vit_b_16" else ResNet50_Weights,
    )
    return module


def timm_standin() -> ModuleType:
    def create_model(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
        return TIMM[name.split(".")[0]](**options)

    module = ModuleType("timm")
    module.is_model = lambda name: name.split(".")[0] in TIMM  # type: ignore[attr-defined]
    module.create_model = create_model  # type: ignore[attr-defined]
    return module


STANDINS = {"torchvision": torchvision_standin, "timm": timm_standin}
