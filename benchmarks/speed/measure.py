"""Shared helpers of the benchmarks: options, seconds and memory of a call, tables on the terminal and on disk."""

import argparse
import csv
import io
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import torch

import vireid

Name = TypeVar("Name")
# ---------------------------------------------------------------------------------------------------- options


def options_parser(doc: str | None, *, repeats: int, threads: int = 1) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark of speed."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help="timed calls of each contender")
    parser.add_argument("--threads", type=int, default=threads, help="CPU threads of every contender")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--output", type=Path, help="CSV file to write")
    return parser


def parse(parser: argparse.ArgumentParser, given: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options, whose numbers must all be above 0, and set PyTorch's threads."""
    arguments = parser.parse_args(given)
    for name, value in vars(arguments).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not isinstance(number, bool) and not number > 0:
                parser.error(f"--{name.replace('_', '-')} must be above 0, got {number}")
    torch.set_num_threads(arguments.threads)
    arguments.given = list(sys.argv[1:] if given is None else given)
    return arguments


def command_of(module: str, given: Sequence[str] | None) -> str:
    """Return the command line of a benchmark, as its table records it."""
    return shlex.join(["python", "-m", module, *(sys.argv[1:] if given is None else given)])


def announce(arguments: argparse.Namespace, device: torch.device, packages: Sequence[str] = ()) -> dict[str, object]:
    """Return the `environment`, after printing it with the number of repeats."""
    about = environment(device, packages)
    print(f"{about['hardware']}, {about['threads']} thread(s), {about['versions']}, {arguments.repeats} repeats")
    return about


def save(
    arguments: argparse.Namespace, module: str, rows: Sequence[Mapping[str, object]], about: Mapping[str, object]
) -> None:
    """Write the table of a benchmark where ``--output`` asks for it."""
    if arguments.output:
        write_table(arguments.output, rows, {"command": command_of(module, arguments.given), **about})


# ---------------------------------------------------------------------------------------------------- the machine


def hardware(device: torch.device) -> str:
    """Return the name of the processor or GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def environment(device: torch.device, packages: Sequence[str] = ()) -> dict[str, object]:
    """Return the conditions of a figure: hardware, threads, versions (those of ``packages`` if installed)."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "vireid": vireid.__version__}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "hardware": hardware(device),
        "cpus": os.cpu_count(),
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": ", ".join(f"{name} {number}" for name, number in found.items()),
    }


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; do nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ---------------------------------------------------------------------------------------------------- seconds, bytes


def measure_in_turns(
    cases: Mapping[Name, Callable[[], object]], repeats: int, device: torch.device, *, warm_up: int = 1
) -> dict[Name, list[float]]:
    """Return the seconds of each call; the cases take turns, so that a slow spell of the machine hits all of them."""
    seconds: dict[Name, list[float]] = {name: [] for name in cases}
    for turn in range(repeats + warm_up):
        for name, call in cases.items():
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def can_measure_memory(device: torch.device) -> bool:
    """Return whether `PeakMemory` works: on a GPU, and where Linux lets a process reset its peak."""
    return device.type == "cuda" or os.access("/proc/self/clear_refs", os.W_OK)


class PeakMemory:
    """Bytes that the block takes at its peak beyond what was held before it; the result is in ``bytes``.

    On the CPU this is the resident size of the process: take a fresh one for each figure, or what was freed before
    hides what is taken now.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, 0

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the peak so far is not this block's
            self._before = _resident("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._before
        else:
            self.bytes = _resident("VmHWM") - self._before


def run_self(module: str, options: Sequence[str]) -> str:
    """Return the standard output of ``module`` in a fresh process of this interpreter."""
    command = [sys.executable, "-m", module, *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=child_environment())
    return done.stdout


def child_environment() -> dict[str, str]:
    """Return the environment of a fresh process that imports what this one imports."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _resident(field: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (peak) of this process; Linux only. A peak from getrusage would be the parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


# ---------------------------------------------------------------------------------------------------- tables


def figures(
    what: str, size: str, method: str, times: Sequence[float] = (), **metrics: object
) -> list[dict[str, object]]:
    """Return a row per metric of one contender; a metric that is None has no row.

    The row "median_s" holds the median of ``times``, in seconds, and its ``iqr`` the distance between their quartiles.
    """
    about = {"what": what, "size": size, "method": method}
    rows: list[dict[str, object]] = []
    if times:
        quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else []
        iqr = quartiles[2] - quartiles[0] if quartiles else ""
        rows.append({**about, "metric": "median_s", "value": statistics.median(times), "iqr": iqr})
    found = [{**about, "metric": name, "value": value, "iqr": ""} for name, value in metrics.items()]
    return rows + [row for row in found if row["value"] is not None]


def show(rows: Sequence[Mapping[str, object]], *bases: str | Mapping[str, str]) -> None:
    """Print a table per ``what`` and ``size``: seconds in ms, bytes in MiB.

    Args:
        rows: of `figures`.
        bases: contenders whose seconds the others' are divided by; a mapping names that contender for each.
    """
    groups: dict[tuple[object, object], dict[str, dict[str, object]]] = {}
    for row in rows:
        group = groups.setdefault((row["what"], row["size"]), {})
        group.setdefault(str(row["method"]), {})[str(row["metric"])] = row["value"]
        if row["iqr"]:
            group[str(row["method"])]["iqr_s"] = row["iqr"]
    for (what, size), methods in groups.items():
        metrics = list(dict.fromkeys(metric for found in methods.values() for metric in found))
        head = [f"{m.removesuffix('_s')} ms" if m.endswith("_s") else m.replace("_bytes", " MiB") for m in metrics]
        head += [f"x {base}" if isinstance(base, str) else "x floor" for base in bases]
        print(f"\n{what}, {size}\n{'':42}{''.join(f'{title:>12}  ' for title in head)}".rstrip())
        for method, found in methods.items():
            cells = [_shown(metric, found.get(metric)) for metric in metrics]
            for base in bases:
                floor = methods.get(base if isinstance(base, str) else base.get(method, ""), {}).get("median_s")
                own = found.get("median_s")
                known = isinstance(own, float) and isinstance(floor, float)
                cells.append(f"{own / floor:.2f}" if known else "-")  # type: ignore[operator]
            shown = (f"{cell:>{max(12, len(title))}}  " for cell, title in zip(cells, head, strict=True))
            print(f"{method:42}{''.join(shown)}".rstrip())


def _shown(metric: str, value: object) -> str:
    if not isinstance(value, int | float):
        return str(value or "-")
    if metric.endswith("_s"):
        return f"{1e3 * value:.2f}"
    return f"{value / 2**20:,.0f}" if metric.endswith("_bytes") else f"{value:.4g}"


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, with the folder it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_table(path: Path, rows: Sequence[Mapping[str, object]], about: Mapping[str, object]) -> None:
    """Write rows of equal keys as CSV, below a comment line ``# name: text`` for each entry of ``about``."""
    text = io.StringIO()
    for name, value in about.items():
        text.write(f"# {name}: {value}\n")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_table(path: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Read a file of `write_table`; return ``about`` and the rows, all of it text."""
    lines = path.read_text(encoding="utf-8").splitlines()
    about = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    return about, list(csv.DictReader(line for line in lines if not line.startswith("# ")))


def value_of(rows: Sequence[Mapping[str, str]], metric: str, **wanted: str) -> float | None:
    """Return the figure of the first row with that metric and the ``wanted`` columns, or None."""
    for row in rows:
        if row["metric"] == metric and all(row[name] == text for name, text in wanted.items()):
            return float(row["value"])
    return None
