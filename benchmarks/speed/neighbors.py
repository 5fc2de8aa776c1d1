"""Time of exact and approximate nearest-neighbor search: ours, its peers, and the bare matrix product.

Everything is by cosine, on the same random unit rows around random centers, in one process on one number of threads.

- exact search of queries in a gallery: ``vireid torch`` and ``vireid faiss`` (`topk` with either backend),
  ``product`` (PyTorch's bare product in blocks, thrown away), ``product + topk`` (what one writes without a library: no
  defined order of ties), ``faiss flat`` (`IndexFlatIP`, built beforehand), ``scikit-learn`` (brute force) and
  ``pytorch-metric-learning`` (its faiss inference), where they are installed;
- single queries against a gallery that is prepared once, as the re-rankers search;
- the k-NN graph of a gallery: ``NeighborGraph.build``, ``topk(g, g, k)``, half of the product (the floor), and
  ``NeighborGraph.extend`` by one image and by a tenth;
- approximate search: time to build, time of a query, recall of the true 20 neighbors.

    python -m benchmarks.speed.neighbors --threads 2 --repeats 3 --output neighbors.csv
"""

import importlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed.measure import announce, figures, measure_in_turns, options_parser, parse, save, show
from vireid.neighbors import ApproximateIndex, NeighborGraph, recall, topk
from vireid.neighbors._exact import search
from vireid.neighbors._scores import prepare

MODULE = "benchmarks.speed.neighbors"
SEED, BLOCK_BYTES = 0, 2**25
PARTS = ("exact", "prepared", "graph", "approximate")
# queries, gallery, d, k, type of the input
EXACT = (
    (3803, 3010, 2048, 20, "float32"),
    (1000, 15_913, 2048, 20, "float32"),
    (1000, 15_913, 2048, 20, "float16"),
    (200, 100_000, 512, 20, "float32"),
    (200, 100_000, 512, 100, "float32"),
    (200, 100_000, 512, 2000, "float32"),
    (1, 100_000, 512, 20, "float32"),
    (1, 100_000, 512, 100, "float32"),
    (1, 100_000, 512, 2000, "float32"),
)
PREPARED = tuple((100_000, 512, k) for k in (20, 100, 2000))
GRAPHS = ((3010, 2048, 20), (15_913, 2048, 20), (20_000, 512, 20))
APPROXIMATE = (100_000, 512, 500, (("HNSW32", ""), ("HNSW32", "efSearch=128"), ("IVF1024,Flat", "nprobe=16")))
QUICK = (((20, 300, 16, 5, "float32"), (1, 300, 16, 5, "float16")), ((300, 16, 5),), ((300, 16, 5),))
QUICK_APPROXIMATE = (600, 16, 20, (("HNSW8", ""), ("IVF8,Flat", "nprobe=4")))

PACKAGES = ("faiss-cpu", "faiss-gpu", "scikit-learn", "pytorch-metric-learning", "numpy", "scipy")

Cases = dict[str, Callable[[], Any]]


def rows(n: int, d: int, device: torch.device, seed: int = SEED) -> Tensor:
    """Return (n, d) unit rows, about 20 per center."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(5000, d, generator=torch.Generator().manual_seed(SEED + 1))
    label = torch.randint(0, max(1, min(len(centers), n // 20)), (n,), generator=generator)
    return F.normalize(centers[label] + 1.5 * torch.randn(n, d, generator=generator)).to(device)


def installed(module: str) -> Any:
    """Return the module, or None where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def product(q: Tensor, g: Tensor, k: int | None = None) -> list[Any]:
    """Compute the product in blocks; keep only the k largest of each row, or nothing without ``k``."""
    step = max(1, BLOCK_BYTES // (4 * len(g)))
    blocks = (part @ g.T for part in q.split(step))
    return [block.topk(k, dim=1) if k else block[0, 0] for block in blocks]


def half_product(g: Tensor, step: int = 2048) -> None:
    """Compute the blocks of the upper triangle of g gᵀ."""
    for top in range(0, len(g), step):
        for left in range(top, len(g), step):
            g[top : top + step] @ g[left : left + step].T


def exact_cases(q: Tensor, g: Tensor, k: int) -> Cases:
    """Return functions that search the same arrays; those of our own return (values, indices)."""
    q32, g32 = q.float(), g.float()
    cases: Cases = {
        "vireid torch": lambda: topk(q, g, k, backend="torch"),
        "product": lambda: product(q32, g32),
        "product + topk": lambda: product(q32, g32, k),
    }
    if q.device.type != "cpu":
        return cases
    faiss = installed("faiss")
    if faiss is not None:
        flat = faiss.IndexFlatIP(g.shape[1])
        flat.add(g32.numpy())
        cases["vireid faiss"] = lambda: topk(q, g, k, backend="faiss")
        cases["faiss flat"] = lambda: flat.search(q32.numpy(), k)
        inference = installed("pytorch_metric_learning.utils.inference")
        if inference is not None:
            knn = inference.FaissKNN(index_init_fn=faiss.IndexFlatIP)
            cases["pytorch-metric-learning"] = lambda: knn(q32, k, g32)
    neighbors = installed("sklearn.neighbors")
    if neighbors is not None:
        fitted = neighbors.NearestNeighbors(n_neighbors=k, algorithm="brute").fit(g32.numpy())
        cases["scikit-learn"] = lambda: fitted.kneighbors(q32.numpy())
    return cases


def prepared_cases(one: Tensor, g: Tensor, k: int) -> Cases:
    """Return searches of one query in a gallery that is prepared beforehand."""
    gallery = prepare(g, "cosine", torch.float32, gallery=True)
    cases: Cases = {
        "vireid search": lambda: list(search(prepare(one, "cosine", torch.float32, gallery=False), gallery, k)),
        "product": lambda: one @ gallery.proposal.T,
        "reading the gallery": lambda: gallery.proposal.sum(),
    }
    faiss = installed("faiss")
    if faiss is not None and g.device.type == "cpu":
        flat = faiss.IndexFlatIP(g.shape[1])
        flat.add(g.numpy())
        cases["faiss flat"] = lambda: flat.search(one.numpy(), k)
    return cases


def graph_cases(g: Tensor, k: int) -> Cases:
    """Return the graph of a gallery, and what it could be made of."""
    tenth = len(g) * 9 // 10
    part, nearly = NeighborGraph.build(g[:tenth], k), NeighborGraph.build(g[:-1], k)
    return {
        "NeighborGraph.build": lambda: NeighborGraph.build(g, k),
        "topk(g, g, k)": lambda: topk(g, g, k),
        "half product": lambda: half_product(g),
        "product": lambda: product(g, g),
        "extend by a tenth": lambda: part.extend(g[tenth:]),
        "extend by one": lambda: nearly.extend(g[-1:]),
    }


def measure_approximate(setting: Sequence[Any], repeats: int, device: torch.device) -> list[dict[str, object]]:
    """Build and search each index, the exact search first; rows of the table with the recall."""
    n, d, queries, kinds = setting
    g, q, k = rows(n, d, device), rows(queries, d, device, SEED + 2), 20
    what, size = "approximate search", f"{queries} x {n} x {d}, k = {k}"
    true = topk(q, g, k)[1]
    exact = measure_in_turns({"exact": lambda: topk(q, g, k)}, repeats, device)["exact"]
    found = figures(what, size, "exact", exact, recall=1.0)
    for factory, parameters in kinds if installed("faiss") is not None else ():
        start = time.perf_counter()
        index = ApproximateIndex(g, factory, parameters=parameters)
        build = time.perf_counter() - start
        seconds = measure_in_turns({"search": partial(index.topk, q, k)}, repeats, device)["search"]
        share = recall(index.topk(q, k)[1], true)
        found += figures(what, size, f"{factory} {parameters}".strip(), seconds, build_s=build, recall=share)
    return found


def check_agreement(device: torch.device) -> None:
    """Raise RuntimeError unless the peers find the neighbors that `topk` finds."""
    g, q, k = rows(500, 32, device), rows(20, 32, device, SEED + 2), 5
    true = topk(q, g, k)[1]
    for name, run in exact_cases(q, g, k).items():
        if name == "product":
            continue
        found = run()
        parts = [found] if isinstance(found, tuple) else found
        share = recall(torch.cat([torch.as_tensor(part[1]) for part in parts]), true)
        if share < 1:
            raise RuntimeError(f"{name} must find the true neighbors, found {share:.3f} of them")


def main(given: Sequence[str] | None = None) -> None:
    """Check, measure, print."""
    parser = options_parser(__doc__, repeats=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    arguments = parse(parser, given)
    faiss = installed("faiss")
    if faiss is not None:
        faiss.omp_set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    exact, prepared, graphs = QUICK if arguments.quick else (EXACT, PREPARED, GRAPHS)
    approximate = QUICK_APPROXIMATE if arguments.quick else APPROXIMATE

    check_agreement(device)
    about = announce(arguments, device, PACKAGES)
    table: list[dict[str, object]] = []

    def run(what: str, size: str, cases: Cases, base: str) -> None:
        seconds = measure_in_turns(cases, arguments.repeats, device)
        found = [row for name, times in seconds.items() for row in figures(what, size, name, times)]
        show(found, base)
        table.extend(found)

    for nq, n, d, k, kind in exact if "exact" in arguments.parts else ():
        dtype = getattr(torch, kind)
        q, g = rows(nq, d, device, SEED + 2).to(dtype), rows(n, d, device).to(dtype)
        run("exact search", f"{nq} x {n} x {d}, k = {k}, {kind}", exact_cases(q, g, k), "product")
    for n, d, k in prepared if "prepared" in arguments.parts else ():
        cases = prepared_cases(rows(1, d, device, SEED + 2), rows(n, d, device), k)
        run("one query, prepared gallery", f"{n} x {d}, k = {k}", cases, "product")
    for n, d, k in graphs if "graph" in arguments.parts else ():
        run("k-NN graph", f"{n} x {d}, k = {k}", graph_cases(rows(n, d, device), k), "half product")
    if "approximate" in arguments.parts:
        found = measure_approximate(approximate, arguments.repeats, device)
        show(found, "exact")
        table.extend(found)
    save(arguments, MODULE, table, {"seed": SEED, **about})


if __name__ == "__main__":
    main()
