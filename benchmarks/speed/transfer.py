"""Time and memory of CIFT's inference as the gallery grows: each query alone with the gallery, `H2FT` and `GFT`.

- ``H2FT.transfer``, ``GFT.distance``: the library's.
- ``products``: the floor, the bare products q·g and g·g in blocks, nothing kept. ``GFT.distance`` needs four more q·g.
- ``dense``: H2FT with the Ng × Ng affinity matrix in memory, as graph code is usually written.

Run ``python -m benchmarks.speed.transfer --gallery 1000 10000 50000``. Each figure is one call in a process of its own.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.speed.measure import PeakMemory, can_measure_memory, hardware, record, run_self, write_json
from vireid._ops import normalize_rows
from vireid.nn import GFT, H2FT

BLOCK = 1 << 22  # entries of a block of the floor's products


def products(query: Tensor, gallery: Tensor) -> None:
    """q·g and g·g, block by block."""
    step = max(1, BLOCK // len(gallery))
    for rows in (query, gallery):
        for start in range(0, len(rows), step):
            rows[start : start + step] @ gallery.T


def dense(query: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
    """H2FT's inference with whole matrices, v left out."""
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
    """What is measured, by name."""
    identity = torch.nn.Identity()
    return {
        "H2FT.transfer": H2FT(dim, value=identity).to(device).transfer,
        "GFT.distance": GFT(dim, value=identity).to(device).distance,
        "products": products,
        "dense": dense,
    }


def measure(name: str, queries: int, gallery: int, dim: int, device: torch.device, repeats: int) -> tuple[float, int]:
    """Median seconds of a call, and the bytes that the first one takes at its peak."""
    call = contenders(dim, device)[name]
    torch.manual_seed(0)
    centres = torch.randn(gallery // 10 + 1, dim, device=device)  # ten images around each identity's centre
    g = centres[torch.arange(gallery, device=device) // 10] + torch.randn(gallery, dim, device=device)
    q = centres[torch.randint(len(centres), (queries,), device=device)] + torch.randn(queries, dim, device=device)
    call(q[:8], g[:64])  # libraries and threads
    seconds = []
    with PeakMemory(device) as peak:
        for _ in range(repeats):
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            call(q, g)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), peak.bytes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gallery", type=int, nargs="+", default=[1000, 5000, 20000])
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--dense-up-to", type=int, default=20000, help="the largest that the dense form is tried on")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    if arguments.only:
        size = (arguments.queries, arguments.gallery[0], arguments.dim)
        print(*measure(arguments.only, *size, device, arguments.repeats))
        return
    if not can_measure_memory(device):
        parser.error("this system does not tell a process its peak memory")

    q, g = torch.randn(20, 32, device=device), torch.randn(50, 32, device=device)
    for ours, plain in zip(H2FT(32, value=torch.nn.Identity()).transfer(q, g), dense(q, g), strict=True):
        torch.testing.assert_close(ours, plain)
    print(f"{hardware(device)}, {arguments.threads} thread(s), {arguments.queries} queries, d = {arguments.dim}")
    print(f"{'gallery':>9}  {'':14}{'seconds':>9}{'x products':>12}{'peak MiB':>10}")
    rows = []
    for gallery in arguments.gallery:
        results = {}
        for name in contenders(1, device):
            if name == "dense" and gallery > arguments.dense_up_to:
                continue
            options = {key: getattr(arguments, key) for key in ("queries", "dim", "repeats", "threads", "device")}
            flags = [word for key, value in options.items() for word in (f"--{key}", str(value))]
            answer = run_self("benchmarks.speed.transfer", ["--only", name, "--gallery", str(gallery), *flags]).split()
            results[name] = {"seconds": float(answer[0]), "peak_bytes": int(answer[1])}
        for name, result in results.items():
            ratio = result["seconds"] / results["products"]["seconds"]
            memory = result["peak_bytes"] / 2**20
            print(f"{gallery:9}  {name:14}{result['seconds']:9.3f}{ratio:12.2f}{memory:10.0f}")
        rows.append({"gallery": gallery, "results": results})
    if arguments.output:
        sizes = {"queries": arguments.queries, "dim": arguments.dim, "repeats": arguments.repeats}
        write_json(arguments.output, {"benchmark": "CIFT inference", **record(device), **sizes, "rows": rows})


if __name__ == "__main__":
    main()
