"""Layers: feature maps (B, c, h, w) or features (B, d) in, features out; each usable alone."""

from vireid.nn.necks import BNNeck
from vireid.nn.resnet import resnet50
from vireid.nn.small import SmallBackbone
from vireid.nn.transfer import GFT, H2FT, H2FTOutput

__all__ = ["GFT", "H2FT", "BNNeck", "H2FTOutput", "SmallBackbone", "resnet50"]
