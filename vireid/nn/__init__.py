"""Layers from feature maps (B, c, h, w) or features (B, d) to features, each usable without the others."""

from vireid.nn.backbones import backbone, resnet50
from vireid.nn.fusion import MessageFusionAttention
from vireid.nn.gem import GeM
from vireid.nn.gft import GFT
from vireid.nn.h2ft import H2FT
from vireid.nn.heatmaps import (
    gaussian_heatmaps,
    keypoint_pooling,
    merge_coco_heatmaps,
    merge_coco_keypoints,
    part_grid,
    present_keypoints,
)
from vireid.nn.necks import BNNeck, DualBNNeck
from vireid.nn.non_local import NonLocal, insert_non_local
from vireid.nn.prototypes import PrototypePooling
from vireid.nn.shared_transfer import SharedFeatureTransfer
from vireid.nn.skeleton import COCO_17, PERSON_13, Skeleton, SkeletonAggregation, skeleton_adjacency
from vireid.nn.small import SmallBackbone
from vireid.nn.transfer import FeatureTransfer, H2FTOutput
from vireid.nn.two_stream import TwoStream

__all__ = [
    "COCO_17",
    "GFT",
    "H2FT",
    "PERSON_13",
    "BNNeck",
    "DualBNNeck",
    "FeatureTransfer",
    "GeM",
    "H2FTOutput",
    "MessageFusionAttention",
    "NonLocal",
    "PrototypePooling",
    "SharedFeatureTransfer",
    "Skeleton",
    "SkeletonAggregation",
    "SmallBackbone",
    "TwoStream",
    "backbone",
    "gaussian_heatmaps",
    "insert_non_local",
    "keypoint_pooling",
    "merge_coco_heatmaps",
    "merge_coco_keypoints",
    "part_grid",
    "present_keypoints",
    "resnet50",
    "skeleton_adjacency",
]
