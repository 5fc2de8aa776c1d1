"""Measure the peak memory of a large gallery, each part in a process of its own.

The exact graph of a million rows takes more than an hour of two cores; here faiss proposes the neighbors, as it would
for a gallery of this size, and the graph is then extended by the exact search, over all rows. "exact graph" builds the
exact one of a tenth of the rows, whose memory grows with the rows.
"""

import multiprocessing
import resource
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor

COLUMNS, QUERIES, K = 64, 1000, 20


def random(rows: int, seed: int) -> Tensor:
    """Draw normal rows."""
    return torch.randn(rows, COLUMNS, generator=torch.Generator().manual_seed(seed))


def topk(rows: int) -> None:
    """Search the neighbors of some queries."""
    from vireid import neighbors

    values, _ = neighbors.topk(random(QUERIES, 1), random(rows, 0), K)
    assert values.shape == (QUERIES, min(K, rows))


def metric(rows: int) -> None:
    """Evaluate in blocks of distances."""
    from vireid.metrics import RankingMetric

    gallery, ids = random(rows, 0), torch.arange(rows) % max(256, rows // 10)
    found = RankingMetric(ids)
    for start in range(0, 256, 64):
        query = random(64, 1 + start)
        found.update(torch.cdist(query, gallery), torch.arange(start, start + 64))
    assert found.compute().valid_queries == 256


def protocol(rows: int) -> None:
    """Evaluate by a protocol, whose gallery is every infrared image."""
    from vireid.protocols import RegDB

    ids = torch.cat([torch.arange(QUERIES), torch.arange(rows) % (rows // 10)])
    modality = torch.cat([torch.zeros(QUERIES), torch.ones(rows)]).long()
    report = RegDB("visible_to_infrared").evaluate(random(QUERIES + rows, 0), ids, modality)
    assert report.rows


def graph(rows: int) -> None:
    """Build a graph of proposed neighbors, and extend it exactly."""
    from vireid.neighbors import ApproximateIndex, NeighborGraph

    gallery = random(rows, 0)
    index = ApproximateIndex(gallery, f"IVF{min(1024, rows // 100)},Flat", parameters="nprobe=4")
    values, indices = index.topk(gallery, K)
    extended = NeighborGraph(gallery, indices, values).extend(random(QUERIES, 1))
    assert extended.indices.shape == (rows + QUERIES, K)


def exact_graph(rows: int) -> None:
    """Build the exact graph of a tenth of the rows."""
    from vireid.neighbors import NeighborGraph

    assert len(NeighborGraph.build(random(rows // 10, 0), K)) == rows // 10


PARTS = {"topk": topk, "metric": metric, "protocol": protocol, "graph": graph, "exact graph": exact_graph}


def measure(name: str, rows: int) -> tuple[float, float]:
    """Run a part; return its seconds and this process's peak memory in GiB."""
    start = time.monotonic()
    PARTS[name](rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return time.monotonic() - start, peak * (1 if sys.platform == "darwin" else 1024) / 2**30


def main(rows: int, parts: Sequence[str] | None, limit: float) -> int:
    """Measure the parts, print their peaks and return the number of those above ``limit`` GiB."""
    above = 0
    print(f"{rows} x {COLUMNS}, limit {limit:g} GiB\n{'part':16}{'seconds':>10}{'peak GiB':>10}")
    for name in parts or PARTS:
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            seconds, peak = pool.apply(measure, (name, rows))
        above += peak >= limit
        print(f"{name:16}{seconds:10.1f}{peak:10.2f}", flush=True)
    return above
