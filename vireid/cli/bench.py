"""``vireid bench rerank``: time and memory of the re-rankers on this machine, beside the bare products they need."""

import functools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vireid import __version__
from vireid.cli.options import METHODS, OutputFile, bar, check_device, common_options

if TYPE_CHECKING:  # imported where they are used: the help needs no torch
    from torch import Tensor

__all__ = ["bench"]

_NEEDED: dict[str, dict[str, Any]] = {"aim": {"k1": 20, "k2": 6}}
"""Options of the methods that lack defaults, as for SYSU-MM01 multi-shot; else the defaults are timed."""

_BLOCK = 1024  # rows of the bare products, which are not kept


@click.group()
def bench() -> None:
    """Time parts of the library on this machine."""


def _parse_methods(context: click.Context, option: click.Parameter, value: str) -> list[str]:
    names = [name.strip() for name in value.split(",")]
    for name in names:
        if name not in METHODS:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(METHODS)}.", context, option)
    return names


_EXAMPLES = """\b
Examples:
  vireid bench rerank --threads 2
  vireid bench rerank --queries 3803 --gallery 3010 --dim 2048 --methods aim,k_reciprocal --json bench.json
"""


@bench.command(short_help="Time the re-rankers on generated features.", epilog=_EXAMPLES)
@click.option("--queries", type=click.IntRange(min=1), default=1000, show_default=True)
@click.option("--gallery", type=click.IntRange(min=1), default=10000, show_default=True)
@click.option("--dim", type=click.IntRange(min=1), default=512, show_default=True, help="Size of a feature.")
@click.option("--top", type=click.IntRange(min=1), default=100, show_default=True, help="Images found for each query.")
@click.option("--methods", default=",".join(METHODS), show_default=True, callback=_parse_methods)
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="The median is shown.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of PyTorch on the CPU. Default: its own choice.")
@click.option("--json", "json_file", type=OutputFile(".json"), help="Also write figures, versions and hardware.")
@common_options
def rerank(
    queries: int,
    gallery: int,
    dim: int,
    top: int,
    methods: list[str],
    repeats: int,
    threads: int | None,
    json_file: Path | None,
    device: str,
    progress: bool | None,
) -> None:
    """Time the re-rankers on generated features: 20 images an identity, in clusters.

    Each finds the nearest images of all queries; a method that is fitted to the gallery is fitted anew each time.
    The first row is, for comparison, the two bare matrix products q·g and g·g, in blocks; "x products" is the time as
    a multiple of theirs. Peak MiB is what a method takes beyond the features
    (on the CPU only where Linux tells it).
    """
    check_device(device)
    import torch

    from vireid import rerank as rerankers

    if threads is not None:
        torch.set_num_threads(threads)
    q, g = _clusters(queries, gallery, dim, device)
    rows = []
    with bar(repeats * (len(methods) + 1), "runs", progress) as shown:
        figures = _measure(functools.partial(_products, q, g), device, repeats, shown.update)
        rows.append({"method": "bare products", "uses": "-", "settings": "-", **figures})
        for name in methods:
            entry, options = METHODS[name], _NEEDED.get(name, {})
            work = functools.partial(_rank, name, q, g, options, top)
            figures = _measure(work, device, repeats, shown.update)
            uses = getattr(rerankers, name).uses
            rows.append({"method": name, "uses": uses, "settings": entry.settings(options), **figures})
    for row in rows:
        row["ms_per_query"] = 1000 * row["seconds"] / queries
        row["times_products"] = row["seconds"] / rows[0]["seconds"]
    threads = torch.get_num_threads()
    size = {"queries": queries, "gallery": gallery, "dim": dim, "top": top}
    if json_file is not None:
        versions = {"python": platform.python_version(), "torch": str(torch.__version__), "vireid": __version__}
        place = {"hardware": _hardware(device), "device": device, "threads": threads, "versions": versions}
        from vireid._files import written_whole

        with written_whole(json_file) as temporary:
            temporary.write_text(json.dumps({**size, **place, "repeats": repeats, "rows": rows}, indent=1) + "\n")
    click.echo(f"{queries} x {gallery} x {dim}, top {top}, {_hardware(device)}, {threads} threads")
    click.echo(_table(rows))


def _clusters(queries: int, gallery: int, dim: int, device: str) -> tuple["Tensor", "Tensor"]:
    """Features (Nq, d), (Ng, d) around one centre an identity, the same in every run."""
    import torch

    seeded = torch.Generator().manual_seed(0)
    centers = torch.randn(max(1, (queries + gallery) // 20), dim, generator=seeded)
    owner = torch.randint(len(centers), (queries + gallery,), generator=seeded)
    x = torch.randn(queries + gallery, dim, generator=seeded).add_(centers[owner])
    return x[:queries].to(device), x[queries:].to(device)


def _products(q: "Tensor", g: "Tensor") -> None:
    for part in (*q.split(_BLOCK), *g.split(_BLOCK)):
        part @ g.T


def _rank(name: str, q: "Tensor", g: "Tensor", options: dict[str, Any], top: int) -> None:
    from vireid import rerank as rerankers

    fitted = METHODS[name].fitted
    if fitted is None:
        getattr(rerankers, name)(q, g, **options, top=top)
    else:
        getattr(rerankers, fitted)(**options).fit(g).topk(q, top)


def _measure(work: Callable[[], None], device: str, repeats: int, step: Callable[[], Any]) -> dict[str, Any]:
    """Median seconds, and bytes at the peak beyond what was held before (None where that cannot be told)."""
    import torch

    seconds, peaks = [], []
    for _ in range(repeats):
        before = _reset_peak(device)
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        if before is not None:
            peaks.append(_peak(device) - before)
        step()
    return {"seconds": statistics.median(seconds), "peak_bytes": max(peaks) if peaks else None}


def _reset_peak(device: str) -> int | None:
    """Bytes that are held now; the peak counts from here."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if not os.access("/proc/self/clear_refs", os.W_OK):
        return None
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def _peak(device: str) -> int:
    import torch

    return torch.cuda.max_memory_allocated() if device == "cuda" else _resident("VmHWM")


def _resident(name: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (peak) of this process in bytes; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def _hardware(device: str) -> str:
    """Name of the processor or GPU."""
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [["method", "uses", "settings", "seconds", "ms/query", "x products", "peak MiB"]]
    for row in rows:
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}"
        figures = [f"{row['seconds']:.3f}", f"{row['ms_per_query']:.3f}", f"{row['times_products']:.2f}", peak]
        lines.append([row["method"], row["uses"], row["settings"], *figures])
    if all(row["peak_bytes"] is None for row in rows):
        lines = [line[:-1] for line in lines]
    width = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, width, strict=True)).rstrip() for line in lines)
