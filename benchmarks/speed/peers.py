"""Re-rankers side by side: ours, those of other packages, and the least work of each method.

Every contender is called as ``run(name, query, gallery, top)``. torchreid and fastreid (``pip install --no-deps
torchreid fastreid``) share the published NumPy form of k-reciprocal encoding; only that file of each is loaded, so
their other dependencies are not needed.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed import postprocessing as dense
from vireid import rerank as ours
from vireid._ops import normalize_rows
from vireid.neighbors import topk

AIM_PARAMETERS: dict[str, Any] = {"k1": 20, "k2": 6}
K_RECIPROCAL_PARAMETERS: dict[str, Any] = {"k1": 20, "k2": 6, "lambda_value": 0.3}
CMKR_PARAMETERS: dict[str, Any] = {"k1": 20, "k2": 6, "k3": 2, "lambda_value": 0.3}
ECN_PARAMETERS: dict[str, Any] = {"t": 3, "q": 8, "k": 25}
GNN_PARAMETERS: dict[str, Any] = {"k1": 26, "k2": 7}
PASS_K = 26
"""Neighbors of the exact top-k pass that k-reciprocal (it needs 21) and GNN (26) are compared with."""

FILES = {"torchreid": "reid/utils/rerank.py", "fastreid": "evaluation/rerank.py"}

Result = Tensor | tuple[Tensor, Tensor] | None
"""Distance (Nq, Ng); or the ``top`` nearest: distances and indices; or nothing, of work that is thrown away."""
Contender = Callable[[Tensor, Tensor, int | None], Result]


def products(query: Tensor, gallery: Tensor, top: int | None) -> Result:
    """Compute the products q·g and g·g of the normalized rows, block by block into one buffer: AIM's floor."""
    q, g = normalize_rows(query), normalize_rows(gallery)
    step = max(1, 2**25 // (4 * len(g)))
    buffer = q.new_empty(step, len(g))
    for rows in (q, g):
        for part in rows.split(step):
            torch.mm(part, g.T, out=buffer[: len(part)])
    return None


def top_k_pass(query: Tensor, gallery: Tensor, top: int | None) -> Result:
    """Run one exact top-k pass over queries and gallery together: the floor of k-reciprocal and GNN."""
    both = torch.cat([query, gallery])
    topk(both, both, PASS_K)
    return None


def search(query: Tensor, gallery: Tensor, top: int | None) -> Result:
    """Search exactly, without re-ranking."""
    values, indices = topk(query, gallery, top or len(gallery))
    return 1 - values, indices


def by_fitted(make: Callable[[], Any]) -> Contender:
    """Return a contender of our own that fits the gallery, then ranks."""

    def rank(query: Tensor, gallery: Tensor, top: int | None) -> Result:
        fitted = make().fit(gallery)
        return fitted.distance(query) if top is None else fitted.topk(query, top)

    return rank


def by_function(function: Callable[..., Any], *, takes_top: bool = False, **parameters: Any) -> Contender:
    """Return a contender of (query, gallery) and parameters; one that takes no ``top`` gives all distances."""

    def rank(query: Tensor, gallery: Tensor, top: int | None) -> Result:
        result: Result = function(query, gallery, **parameters, **({"top": top} if takes_top else {}))
        return result

    return rank


def numpy_k_reciprocal(query: Tensor, gallery: Tensor, *, package: str) -> Tensor:
    """Rank by ``re_ranking`` of a package in `FILES`, its distances included."""
    path = _source(package)
    if path is None:
        raise ImportError(f"{package}'s re-ranking is not installed: pip install --no-deps {package}")
    spec = importlib.util.spec_from_file_location(f"{package}_re_ranking", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    q, g = normalize_rows(query), normalize_rows(gallery)
    distances = [(2 - 2 * (a @ b.T)).clamp_min_(0).sqrt_() for a, b in ((q, g), (q, q), (g, g))]  # they square it
    for square in distances[1:]:
        square.fill_diagonal_(0)  # so that rounding does not put another image before the image itself
    q_g, q_q, g_g = (distance.numpy() for distance in distances)
    del distances
    return torch.from_numpy(module.re_ranking(q_g, q_q, g_g, **K_RECIPROCAL_PARAMETERS))


CONTENDERS: dict[str, Contender] = {
    "products": products,
    "top_k_pass": top_k_pass,
    "search": search,
    "aim": by_fitted(partial(ours.AIM, **AIM_PARAMETERS, variant="released")),
    "aim_paper": by_fitted(partial(ours.AIM, **AIM_PARAMETERS, variant="paper")),
    "k_reciprocal": by_function(ours.k_reciprocal, takes_top=True, **K_RECIPROCAL_PARAMETERS),
    "gnn": by_function(ours.gnn, takes_top=True, **GNN_PARAMETERS),
    "k_reciprocal_alone": by_fitted(partial(ours.KReciprocal, **K_RECIPROCAL_PARAMETERS)),
    "gnn_alone": by_fitted(partial(ours.GNN, **GNN_PARAMETERS)),
    "cmkr": by_function(ours.cmkr, takes_top=True, neighbors="extended", **CMKR_PARAMETERS),
    "ecn": by_function(ours.ecn, takes_top=True, **ECN_PARAMETERS),
    "sim": by_fitted(ours.SIM),
    "query_expansion": by_fitted(ours.QueryExpansion),
    "dense_aim": by_function(dense.aim, **AIM_PARAMETERS, variant="released"),
    "dense_gnn": by_function(dense.gnn, **GNN_PARAMETERS),
    "dense_cmkr": by_function(dense.cmkr, **CMKR_PARAMETERS),
    "dense_ecn": by_function(dense.ecn, **ECN_PARAMETERS),
    "torchreid_k_reciprocal": by_function(numpy_k_reciprocal, package="torchreid"),
    "fastreid_k_reciprocal": by_function(numpy_k_reciprocal, package="fastreid"),
}
LABELS = {
    "products": "bare q·g and g·g",
    "top_k_pass": f"exact top-{PASS_K} pass",
    "search": "exact search, no re-ranking",
    "aim": "AIM (vireid)",
    "aim_paper": "AIM, paper (vireid)",
    "k_reciprocal": "k-reciprocal (vireid)",
    "gnn": "GNN (vireid)",
    "k_reciprocal_alone": "KReciprocal, queries alone (vireid)",
    "gnn_alone": "GNN, queries alone (vireid)",
    "cmkr": "CMKR (vireid)",
    "ecn": "ECN (vireid)",
    "sim": "SIM (vireid)",
    "query_expansion": "query expansion (vireid)",
    "dense_aim": "AIM (dense)",
    "dense_gnn": "GNN (dense)",
    "dense_cmkr": "CMKR (dense)",
    "dense_ecn": "ECN (dense)",
    "torchreid_k_reciprocal": "k-reciprocal (torchreid)",
    "fastreid_k_reciprocal": "k-reciprocal (fastreid)",
}
FLOORS = dict.fromkeys(
    ("sim", "query_expansion", "aim", "aim_paper", "dense_aim", "k_reciprocal_alone", "gnn_alone"), "products"
) | dict.fromkeys(
    (
        "k_reciprocal",
        "torchreid_k_reciprocal",
        "fastreid_k_reciprocal",
        "gnn",
        "dense_gnn",
        "cmkr",
        "dense_cmkr",
        "ecn",
        "dense_ecn",
    ),
    "top_k_pass",
)
SAME = {
    "dense_aim": "aim",
    "dense_gnn": "gnn",
    "dense_cmkr": "cmkr",
    "dense_ecn": "ecn",
    "torchreid_k_reciprocal": "k_reciprocal",
    "fastreid_k_reciprocal": "k_reciprocal",
}
"""Another form of a method -> ours, which must compute the same."""


def run(name: str, query: Tensor, gallery: Tensor, top: int | None) -> Result:
    """Return the contender's answer; ``top``: only so many gallery images of each query, where it can."""
    return CONTENDERS[name](query, gallery, top)


def installed(name: str) -> bool:
    """Return whether the contender's package is installed."""
    package = name.removesuffix("_k_reciprocal")
    return package not in FILES or _source(package) is not None


def _source(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder) / FILES[package]).is_file():
            return path
    return None
