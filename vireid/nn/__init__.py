"""Layers: feature maps (B, c, h, w) or features (B, d) in, features out; each usable alone."""

from vireid.nn.gft import GFT
from vireid.nn.h2ft import H2FT
from vireid.nn.necks import BNNeck, DualBNNeck
from vireid.nn.parts import PrototypePooling
from vireid.nn.resnet import resnet50
from vireid.nn.small import SmallBackbone
from vireid.nn.transfer import FeatureTransfer, H2FTOutput

__all__ = [
    "GFT",
    "H2FT",
    "BNNeck",
    "DualBNNeck",
    "FeatureTransfer",
    "H2FTOutput",
    "PrototypePooling",
    "SmallBackbone",
    "resnet50",
]
