"""Nearest neighbors: exact and approximate search, and the k-NN graph of a gallery."""

from vireid.neighbors._topk import topk
from vireid.neighbors.approximate import ApproximateIndex, recall
from vireid.neighbors.graph import NeighborGraph

__all__ = ["ApproximateIndex", "NeighborGraph", "recall", "topk"]
