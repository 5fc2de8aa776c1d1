"""Re-rankers side by side: ours, those of other packages, and the bare work that none can do without.

Every contender is called as ``run(name, query, gallery, top)``. torchreid and fastreid (``pip install --no-deps
torchreid fastreid``) share the published NumPy form of k-reciprocal encoding; of either only that one file is loaded,
so what else they import need not be there.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.speed import postprocessing as dense
from vireid import rerank as ours
from vireid._ops import normalize_rows
from vireid.neighbors import topk

AIM_PARAMETERS: dict[str, Any] = {"k1": 20, "k2": 6}
K_RECIPROCAL_PARAMETERS: dict[str, Any] = {"k1": 20, "k2": 6, "lambda_value": 0.3}
GNN_PARAMETERS: dict[str, Any] = {"k1": 26, "k2": 7}
PASS_K = 26
"""Neighbors of the exact top-k pass that k-reciprocal (it needs 21) and GNN (26) are compared with."""

FILES = {"torchreid": "reid/utils/rerank.py", "fastreid": "evaluation/rerank.py"}

Result = Tensor | tuple[Tensor, Tensor] | None
"""Distance (Nq, Ng); or the ``top`` nearest: distances and indices; or nothing, of work that is thrown away."""


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


def aim(query: Tensor, gallery: Tensor, top: int | None, variant: Literal["paper", "released"] = "released") -> Result:
    """Rank by our AIM."""
    fitted = ours.AIM(**AIM_PARAMETERS, variant=variant).fit(gallery)
    return fitted.distance(query) if top is None else fitted.topk(query, top)


def aim_paper(query: Tensor, gallery: Tensor, top: int | None) -> Result:
    """Rank by our AIM, as printed in the paper."""
    return aim(query, gallery, top, "paper")


def k_reciprocal(query: Tensor, gallery: Tensor, top: int | None) -> Result:
    """Rank by our k-reciprocal encoding."""
    return ours.k_reciprocal(query, gallery, **K_RECIPROCAL_PARAMETERS, top=top)


def gnn(query: Tensor, gallery: Tensor, top: int | None) -> Result:
    """Rank by our GNN re-ranking."""
    return ours.gnn(query, gallery, **GNN_PARAMETERS, top=top)


def sim(query: Tensor, gallery: Tensor, top: int | None) -> Result:
    """Rank by our SIM."""
    fitted = ours.SIM().fit(gallery)
    return fitted.distance(query) if top is None else fitted.topk(query, top)


def query_expansion(query: Tensor, gallery: Tensor, top: int | None) -> Result:
    """Rank by our query expansion."""
    fitted = ours.QueryExpansion().fit(gallery)
    return fitted.distance(query) if top is None else fitted.topk(query, top)


def dense_aim(query: Tensor, gallery: Tensor, top: int | None) -> Result:
    """Rank by AIM as released, with whole matrices."""
    return dense.aim(query, gallery, **AIM_PARAMETERS, variant="released")


def dense_gnn(query: Tensor, gallery: Tensor, top: int | None) -> Result:
    """Rank by GNN with whole matrices, in torch."""
    return dense.gnn(query, gallery, **GNN_PARAMETERS)


def torchreid_k_reciprocal(query: Tensor, gallery: Tensor, top: int | None) -> Result:
    """Rank by ``re_ranking`` of torchreid, its distances included."""
    return _numpy_k_reciprocal("torchreid", query, gallery)


def fastreid_k_reciprocal(query: Tensor, gallery: Tensor, top: int | None) -> Result:
    """Rank by ``re_ranking`` of fastreid, its distances included."""
    return _numpy_k_reciprocal("fastreid", query, gallery)


CONTENDERS: dict[str, Callable[[Tensor, Tensor, int | None], Result]] = {
    function.__name__: function
    for function in (
        products,
        top_k_pass,
        search,
        aim,
        aim_paper,
        k_reciprocal,
        gnn,
        sim,
        query_expansion,
        dense_aim,
        dense_gnn,
        torchreid_k_reciprocal,
        fastreid_k_reciprocal,
    )
}
LABELS = {
    "products": "bare q·g and g·g",
    "top_k_pass": f"exact top-{PASS_K} pass",
    "search": "exact search, no re-ranking",
    "aim": "AIM (vireid)",
    "aim_paper": "AIM, paper (vireid)",
    "k_reciprocal": "k-reciprocal (vireid)",
    "gnn": "GNN (vireid)",
    "sim": "SIM (vireid)",
    "query_expansion": "query expansion (vireid)",
    "dense_aim": "AIM (dense)",
    "dense_gnn": "GNN (dense)",
    "torchreid_k_reciprocal": "k-reciprocal (torchreid)",
    "fastreid_k_reciprocal": "k-reciprocal (fastreid)",
}
FLOORS = {
    "sim": "products",
    "query_expansion": "products",
    "aim": "products",
    "aim_paper": "products",
    "dense_aim": "products",
    "k_reciprocal": "top_k_pass",
    "torchreid_k_reciprocal": "top_k_pass",
    "fastreid_k_reciprocal": "top_k_pass",
    "gnn": "top_k_pass",
    "dense_gnn": "top_k_pass",
}
SAME = {
    "dense_aim": "aim",
    "dense_gnn": "gnn",
    "torchreid_k_reciprocal": "k_reciprocal",
    "fastreid_k_reciprocal": "k_reciprocal",
}
"""Other people's form -> ours: the two must compute the same."""


def run(name: str, query: Tensor, gallery: Tensor, top: int | None) -> Result:
    """Return the contender's answer; ``top``: only so many gallery images of each query, where it can."""
    return CONTENDERS[name](query, gallery, top)


def installed(name: str) -> bool:
    """Return whether what the contender needs is there."""
    package = name.removesuffix("_k_reciprocal")
    return package not in FILES or _source(package) is not None


def _source(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder) / FILES[package]).is_file():
            return path
    return None


def _numpy_k_reciprocal(package: str, query: Tensor, gallery: Tensor) -> Tensor:
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
