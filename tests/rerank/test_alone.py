"""The rankings that a query alone enters, against plain sorting of {q} ∪ G."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference.neighbors import cosines, nearest
from vireid.neighbors import NeighborGraph
from vireid.neighbors._exact import search
from vireid.neighbors._scores import prepare
from vireid.rerank._alone import Entrance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=st.integers(0, 2**31 - 1), ng=st.integers(1, 14), k=st.integers(1, 16))
def test_entrance_equals_sorting(device, dtype, seed, ng, k):
    r = torch.Generator().manual_seed(seed)
    q, g = (torch.randint(-1, 2, (n, 3), generator=r).to(device, dtype) for n in (5, ng))
    widths = (1, min(2, k), k)
    graph = NeighborGraph.build(g, k)
    queries = prepare(q, "cosine", dtype, gallery=False)
    (found,) = search(queries, graph.rows, 1, block=5)
    row, column, enters = Entrance(graph, widths)(found, queries, graph.rows)
    got = torch.zeros(5, ng, 3, dtype=torch.bool, device=device).index_put((row, column), enters)
    for i in range(5):
        x = torch.cat([q[i, None], g])
        for j, cosine in enumerate(cosines(x, x)[1:]):
            rank = nearest(cosine, ng + 1, j + 1)
            assert got[i, j].tolist() == [0 in rank[:w] for w in widths]
    key = row * ng + column
    assert bool((key.diff() > 0).all())
