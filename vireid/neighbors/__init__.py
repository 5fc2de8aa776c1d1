"""Nearest neighbours: exact and approximate search, and the k-NN graph of a gallery."""

from vireid.neighbors.approximate import ApproximateIndex, recall
from vireid.neighbors.graph import NeighborGraph
from vireid.neighbors.search import topk

__all__ = ["ApproximateIndex", "NeighborGraph", "recall", "topk"]
