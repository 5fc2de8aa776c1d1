"""Optimal transport between the node sets of graphs, for a whole batch of pairs at once."""

from vireid.ot.graph import GraphOT, graph_ot

__all__ = ["GraphOT", "graph_ot"]
