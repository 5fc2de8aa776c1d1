"""Time of exact and approximate nearest-neighbour search: ours, its peers, and the bare matrix product.

Everything is by cosine, on the same random unit rows around random centres, in one process on one number of threads.

- exact search of queries in a gallery: ``vireid torch`` and ``vireid faiss`` (`topk` with either backend),
  ``product`` (PyTorch's bare product in blocks, thrown away), ``product + topk`` (what one writes without a library: no
  defined order of ties), ``faiss flat`` (`IndexFlatIP`, built beforehand), ``scikit-learn`` (brute force) and
  ``pytorch-metric-learning`` (its faiss inference), where they are installed;
- single queries against a gallery that is prepared once, as the re-rankers search;
- the k-NN graph of a gallery: ``NeighborGraph.build``, ``topk(g, g, k)``, half of the product (the floor), and
  ``NeighborGraph.extend`` by one image and by a tenth;
- approximate search: time to build, time of a query, recall of the true 20 neighbours.

Run ``python -m benchmarks.speed.neighbors``; tables go to the terminal and, with ``--output``, all figures to a file.
"""

import argparse
import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed.measure import hardware, record, write_json
from vireid.neighbors import ApproximateIndex, NeighborGraph, recall, topk
from vireid.neighbors._exact import prepare, search

SEED, BLOCK_BYTES = 0, 2**25
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

Cases = dict[str, Callable[[], Any]]


def rows(n: int, d: int, device: torch.device, seed: int = SEED) -> Tensor:
    """(n, d) unit rows, about 20 to a centre."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(5000, d, generator=torch.Generator().manual_seed(SEED + 1))
    label = torch.randint(0, max(1, min(len(centres), n // 20)), (n,), generator=generator)
    return F.normalize(centres[label] + 1.5 * torch.randn(n, d, generator=generator)).to(device)


def installed(module: str) -> Any:
    """The module, or None where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def product(q: Tensor, g: Tensor, k: int | None = None) -> list[Any]:
    """The product in blocks, of which nothing is kept but the k largest of each row, if ``k`` is given."""
    step = max(1, BLOCK_BYTES // (4 * len(g)))
    blocks = (part @ g.T for part in q.split(step))
    return [block.topk(k, dim=1) if k else block[0, 0] for block in blocks]


def half_product(g: Tensor, step: int = 2048) -> None:
    """The blocks of the upper triangle of g gᵀ."""
    for top in range(0, len(g), step):
        for left in range(top, len(g), step):
            g[top : top + step] @ g[left : left + step].T


def exact_cases(q: Tensor, g: Tensor, k: int) -> Cases:
    """Functions that search the same arrays; those of our own return (values, indices)."""
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
    """One query against a gallery that is prepared beforehand."""
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
    """The graph of a gallery, and what it could be made of."""
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


def measure(cases: Cases, repeats: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """Seconds of each; they take turns, so that a slow spell of the machine hits all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(repeats + 1):
        for name, run in cases.items():
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            if turn:  # the first is warm-up
                seconds[name].append(time.perf_counter() - start)
    return {
        name: {"seconds": times, "median_s": statistics.median(times), "min_s": min(times)}
        for name, times in seconds.items()
    }


def measure_approximate(size: Sequence[Any], repeats: int, device: torch.device) -> list[dict[str, Any]]:
    """Build, search and recall of each index; the exact search is the first row."""
    n, d, queries, kinds = size
    g, q, k = rows(n, d, device), rows(queries, d, device, SEED + 2), 20
    true = topk(q, g, k)[1]
    exact = measure({"exact": lambda: topk(q, g, k)}, repeats, device)["exact"]
    results = [{"index": "exact", "parameters": "", "build_s": 0.0, "recall": 1.0, **exact}]
    if installed("faiss") is None:
        return results
    for factory, parameters in kinds:
        start = time.perf_counter()
        index = ApproximateIndex(g, factory, parameters=parameters)
        build = time.perf_counter() - start
        timed = measure({"search": lambda index=index: index.topk(q, k)}, repeats, device)["search"]  # type: ignore[misc]
        share = recall(index.topk(q, k)[1], true)
        results.append({"index": factory, "parameters": parameters, "build_s": build, "recall": share, **timed})
    return results


def check_agreement(device: torch.device) -> None:
    """The peers must find the neighbours that `topk` finds; RuntimeError otherwise."""
    g, q, k = rows(500, 32, device), rows(20, 32, device, SEED + 2), 5
    true = topk(q, g, k)[1]
    for name, run in exact_cases(q, g, k).items():
        if name == "product":
            continue
        found = run()
        parts = [found] if isinstance(found, tuple) else found
        share = recall(torch.cat([torch.as_tensor(part[1]) for part in parts]), true)
        if share < 1:
            raise RuntimeError(f"{name} must find the true neighbours, found {share:.3f} of them")


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; nothing to wait for on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def show(title: str, base: str, results: dict[str, dict[str, Any]]) -> None:
    """A table: milliseconds, and how many times ``base`` they are."""
    print(f"\n{title}\n{'':26}{'median ms':>12}{'best ms':>12}{'x ' + base:>16}")
    floor = results[base]["median_s"]
    for name, result in results.items():
        median, best = result["median_s"], result["min_s"]
        print(f"{name:26}{median * 1e3:12.2f}{best * 1e3:12.2f}{median / floor:16.2f}")


def versions() -> dict[str, str]:
    """Of the peers that are installed."""
    found = {}
    for name in ("faiss-cpu", "faiss-gpu-cu12", "scikit-learn", "pytorch-metric-learning", "numpy", "scipy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main(given: Sequence[str] | None = None) -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each contender")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--parts", nargs="+", choices=("exact", "prepared", "graph", "approximate"), default=None)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args(given)
    if arguments.repeats < 1 or arguments.threads < 1:
        parser.error("--repeats and --threads must be at least 1")
    parts = arguments.parts or ("exact", "prepared", "graph", "approximate")
    torch.set_num_threads(arguments.threads)
    faiss = installed("faiss")
    if faiss is not None:
        faiss.omp_set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    exact, prepared, graphs = QUICK if arguments.quick else (EXACT, PREPARED, GRAPHS)
    approximate = QUICK_APPROXIMATE if arguments.quick else APPROXIMATE

    check_agreement(device)
    print(f"{hardware(device)}, {arguments.threads} thread(s), torch {torch.__version__}, {arguments.repeats} repeats")
    results: dict[str, list[Any]] = {part: [] for part in parts}

    def run(part: str, title: str, size: dict[str, Any], cases: Cases, base: str) -> None:
        measured = measure(cases, arguments.repeats, device)
        show(title, base, measured)
        results[part].append({**size, "results": measured})

    for nq, n, d, k, kind in exact if "exact" in parts else ():
        dtype = getattr(torch, kind)
        q, g = rows(nq, d, device, SEED + 2).to(dtype), rows(n, d, device).to(dtype)
        size = {"queries": nq, "gallery": n, "d": d, "k": k, "dtype": kind}
        run("exact", f"{nq} x {n} x {d}, k = {k}, {kind}", size, exact_cases(q, g, k), "product")
    for n, d, k in prepared if "prepared" in parts else ():
        cases = prepared_cases(rows(1, d, device, SEED + 2), rows(n, d, device), k)
        run("prepared", f"one query, prepared {n} x {d}, k = {k}", {"gallery": n, "d": d, "k": k}, cases, "product")
    for n, d, k in graphs if "graph" in parts else ():
        cases = graph_cases(rows(n, d, device), k)
        run("graph", f"k-NN graph of {n} x {d}, k = {k}", {"gallery": n, "d": d, "k": k}, cases, "half product")
    if "approximate" in parts:
        found = measure_approximate(approximate, arguments.repeats, device)
        n, d, queries, _ = approximate
        print(f"\napproximate search, {queries} x {n} x {d}, k = 20")
        print(f"{'index':16}{'parameters':16}{'build s':>10}{'ms a query':>12}{'recall':>9}")
        for row in found:
            per_query = row["median_s"] / queries * 1e3
            print(f"{row['index']:16}{row['parameters']:16}{row['build_s']:10.2f}{per_query:12.3f}{row['recall']:9.4f}")
        results["approximate"].append({"queries": queries, "gallery": n, "d": d, "k": 20, "results": found})
    if arguments.output:
        content = record(device)
        content["versions"] |= versions()
        content["threads"] = arguments.threads
        write_json(arguments.output, {"benchmark": "nearest neighbours", "seed": SEED, **content, "results": results})


if __name__ == "__main__":
    main()
