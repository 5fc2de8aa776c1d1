"""Time and memory of CIFT's inference as the gallery grows: each query alone with the gallery, `H2FT` and `GFT`.

- ``H2FT.transfer``, ``GFT.distance``: the library's.
- ``products``: the floor, the bare products q·g and g·g in blocks, nothing kept. ``GFT.distance`` needs four more q·g.
- ``dense``: H2FT with the Ng × Ng affinity matrix in memory, as graph code is usually written.

Run ``python -m benchmarks.speed.transfer --gallery 1000 10000 50000``. Each contender has a process of its own.
"""

import argparse
import json
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.speed import measure
from vireid._ops import normalize_rows
from vireid.nn import GFT, H2FT

MODULE = "benchmarks.speed.transfer"
BLOCK = 1 << 22  # entries of a block of the floor's products


def products(query: Tensor, gallery: Tensor) -> None:
    """Compute q·g and g·g, block by block."""
    step = max(1, BLOCK // len(gallery))
    for rows in (query, gallery):
        for start in range(0, len(rows), step):
            rows[start : start + step] @ gallery.T


def dense(query: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
    """Compute H2FT's inference with whole matrices, v left out."""
    k, tau_hom, tau_het = 4, 0.4, 0.2
    q, g = normalize_rows(query), normalize_rows(gallery)
    affinity, index = (g @ g.T / tau_hom).topk(k, dim=1)
    matrix = torch.zeros(len(g), len(g), device=g.device).scatter(1, index, affinity.softmax(1))
    f_g = matrix @ gallery
    affinity, index = (q @ g.T / tau_het).topk(k - 1, dim=1)
    weights = torch.cat([torch.full_like(affinity[:, :1], 1 / tau_het), affinity], 1).softmax(1)
    matrix = torch.zeros(len(q), len(g), device=g.device).scatter(1, index, weights[:, 1:])
    return weights[:, :1] * query + matrix @ gallery, f_g


def contenders(dim: int, device: torch.device) -> dict[str, Callable[[Tensor, Tensor], object]]:
    """Return what is measured, by name."""
    identity = torch.nn.Identity()
    return {
        "H2FT.transfer": H2FT(dim, value=identity).to(device).transfer,
        "GFT.distance": GFT(dim, value=identity).to(device).distance,
        "products": products,
        "dense": dense,
    }


def measure_case(
    name: str, queries: int, gallery: int, dim: int, device: torch.device, repeats: int
) -> dict[str, object]:
    """Return the seconds of each call, and the bytes at the peak of all."""
    call = contenders(dim, device)[name]
    torch.manual_seed(0)
    centers = torch.randn(gallery // 10 + 1, dim, device=device)  # ten images around each identity's center
    g = centers[torch.arange(gallery, device=device) // 10] + torch.randn(gallery, dim, device=device)
    q = centers[torch.randint(len(centers), (queries,), device=device)] + torch.randn(queries, dim, device=device)
    call(q[:8], g[:64])  # libraries and threads
    with measure.PeakMemory(device) as peak:
        seconds = measure.measure_in_turns({name: lambda: call(q, g)}, repeats, device, warm_up=0)[name]
    return {"times": seconds, "peak_bytes": peak.bytes}


def main(given: Sequence[str] | None = None) -> None:
    """Check against the dense form, measure, print."""
    parser = measure.options_parser(__doc__, repeats=3)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--gallery", type=int, nargs="+", default=[1000, 5000, 20_000], help="images")
    parser.add_argument("--dim", type=int, default=512, help="feature size")
    parser.add_argument("--dense-up-to", type=int, default=20_000, help="largest gallery of the dense form")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = measure.parse(parser, given)
    device = torch.device(arguments.device)
    if arguments.only:
        shape = (arguments.queries, arguments.gallery[0], arguments.dim)
        print(json.dumps(measure_case(arguments.only, *shape, device, arguments.repeats)))
        return
    if not measure.can_measure_memory(device):
        parser.error("this system does not tell a process its peak memory")

    q, g = torch.randn(20, 32, device=device), torch.randn(50, 32, device=device)
    for ours, plain in zip(H2FT(32, value=torch.nn.Identity()).transfer(q, g), dense(q, g), strict=True):
        torch.testing.assert_close(ours, plain)
    about = measure.announce(arguments, device)
    rows = []
    for gallery in arguments.gallery:
        for name in contenders(1, device):
            if name == "dense" and gallery > arguments.dense_up_to:
                continue
            found = json.loads(measure.run_self(MODULE, [*arguments.given, "--only", name, "--gallery", str(gallery)]))
            size = f"{arguments.queries} queries, gallery {gallery}, d {arguments.dim}"
            rows += measure.figures("CIFT inference", size, name, **found)
    measure.show(rows, "products")
    measure.save(arguments, MODULE, rows, about)


if __name__ == "__main__":
    main()
