"""Pictures of a model's rankings, attention and features.

`cmc_curves` and `ranked_lists` show a ranking, `tsne` and `attention_maps` SAAI's Fig. 5 and 6, `skeleton_graph`,
`transport_plan` and `cost_matrices` G2DA's graphs, their alignment and its cost, `embedding_map` any projection of
features.

Every function returns a ``matplotlib.figure.Figure`` that belongs to the caller (no pyplot, no global state, no display
needed) and, where a ``path`` is given, also writes it: the suffix chooses the format (png, pdf, svg, …), and the file
appears whole or not at all. All of them need ``pip install 'vireid[plots]'`` and raise ImportError without.
"""

from vireid.plots.attention import attention_maps
from vireid.plots.costs import cost_matrices
from vireid.plots.embedding import embedding_map, tsne
from vireid.plots.retrieval import cmc_curves, ranked_lists
from vireid.plots.skeleton import skeleton_graph
from vireid.plots.transport import transport_plan

__all__ = [
    "attention_maps",
    "cmc_curves",
    "cost_matrices",
    "embedding_map",
    "ranked_lists",
    "skeleton_graph",
    "transport_plan",
    "tsne",
]
