"""Nearest neighbours: exact search, and the k-NN graph of a gallery."""

from vireid.neighbors.graph import NeighborGraph
from vireid.neighbors.search import topk

__all__ = ["NeighborGraph", "topk"]
