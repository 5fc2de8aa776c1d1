"""Re-ranking: better distances from the neighbors of queries and gallery, in memory linear in their number.

``uses`` of each method names the data that a ranking depends on besides the query: "gallery", or "transductive", the
other queries too. Published tables mix the two; reports print it beside each row. A "gallery" method also exists as an
object that is fitted once and then answers any number of queries.
"""

from vireid.rerank.aim import AIM, AIM_SETTINGS, aim
from vireid.rerank.cmkr import cmkr
from vireid.rerank.ecn import ECN, ecn
from vireid.rerank.gnn import GNN, gnn
from vireid.rerank.graph_transfer import AfterTransfer, GraphTransfer, graph_transfer
from vireid.rerank.k_reciprocal import KReciprocal, k_reciprocal
from vireid.rerank.mser import mser
from vireid.rerank.query_expansion import QueryExpansion, query_expansion
from vireid.rerank.sim import SIM, sim

__all__ = [
    "AIM",
    "AIM_SETTINGS",
    "ECN",
    "GNN",
    "SIM",
    "AfterTransfer",
    "GraphTransfer",
    "KReciprocal",
    "QueryExpansion",
    "aim",
    "cmkr",
    "ecn",
    "gnn",
    "graph_transfer",
    "k_reciprocal",
    "mser",
    "query_expansion",
    "sim",
]
