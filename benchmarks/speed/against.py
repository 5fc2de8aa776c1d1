"""A speed benchmark with two versions of the library in one run: this one, and that of another checkout.

The versions take turns, so that a slow spell of the machine hits both, and the least time of each is compared. Both run
this checkout's benchmark; where the other version does not know what it calls, ``--theirs`` names the command of the
other checkout's own script, whose contenders are matched by name, those of one name in order.

    python -m benchmarks.speed.against ../old heads -- --method saai --repeats 5
    python -m benchmarks.speed.against ../old heads --theirs "python benchmarks/heads.py --repeats 5" -- --repeats 5

Only seconds are compared, no memory; and only contenders that both versions have, equally often.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed.measure import child_environment, read_table
from benchmarks.speed.peers import LABELS

ROOT = Path(__file__).resolve().parents[2]
Key = tuple[str, str, str]


def run(package: Path, module: str, options: Sequence[str], folder: Path) -> dict[Key, float]:
    """Run this checkout's benchmark with a version of the library; return the median seconds by (what, size, method).

    Args:
        package: folder "vireid" of the version.
        module: of the benchmark.
        options: of the benchmark.
        folder: for its output, and for a link that puts only the package on the path.
    """
    link, output = folder / "vireid", folder / "found.csv"
    link.unlink(missing_ok=True)
    link.symlink_to(package.resolve(), target_is_directory=True)
    path = os.pathsep.join([str(folder), str(ROOT), child_environment()["PYTHONPATH"]])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}  # not the folder that it is started in
    command = [sys.executable, "-m", module, *options, "--output", str(output)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    rows = [row for row in read_table(output)[1] if row["metric"] == "median_s"]
    return {(row["what"], row["size"], row["method"]): float(row["value"]) for row in rows}


def run_theirs(checkout: Path, command: str, folder: Path) -> list[tuple[str, float]]:
    """Run a script of another checkout, which takes --output; return (method, median seconds) in its order."""
    output = folder / "theirs"
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
    given = [*words, "--output", str(output)]
    subprocess.run(given, check=True, cwd=checkout, env=environment, stdout=subprocess.DEVNULL)
    if output.read_text(encoding="utf-8").startswith("{"):
        return list(times_in(json.loads(output.read_text(encoding="utf-8"))))
    return [(row["method"], float(row["value"])) for row in read_table(output)[1] if row["metric"] == "median_s"]


def times_in(node: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield (method, median seconds) of all "seconds" in the JSON that the benchmarks wrote before version 0.2.0."""
    if isinstance(node, list):
        for entry in node:
            yield from times_in(entry, name)
    elif isinstance(node, dict):
        times = node.get("seconds") or [run["seconds"] for run in node.get("runs", ()) if "seconds" in run]
        if not times:
            for key, entry in node.items():
                yield from times_in(entry, key)
            return
        if "loss" in node:  # of graph_ot, which has two ways
            name = node["name"] if node["name"] == "products" else f"{node['name']}, {node['loss']}"
        for found in times.values() if isinstance(times, dict) else [times]:
            yield name, statistics.median(found if isinstance(found, list) else [found])


def matched(theirs: Sequence[tuple[str, float]], ours: Iterable[Key]) -> dict[Key, float]:
    """Return their seconds by our keys, for the methods that both have equally often."""
    keys: dict[str, list[Key]] = {}
    for key in ours:
        keys.setdefault(key[2], []).append(key)
    found: dict[Key, float] = {}
    for method, own in keys.items():
        times = [seconds for name, seconds in theirs if method in (name, LABELS.get(name))]
        if len(times) == len(own):
            found |= dict(zip(own, times, strict=True))
    return found


def main(given: Sequence[str] | None = None) -> None:
    """Measure both in turns, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder that holds the other version's vireid/")
    parser.add_argument("benchmark", help="module of benchmarks/speed, such as heads")
    parser.add_argument("--theirs", help="command of the other checkout's own script, run there, without --output")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each version")
    given = list(sys.argv[1:] if given is None else given)
    at = given.index("--") if "--" in given else len(given)
    arguments = parser.parse_args(given[:at])
    checkout: Path = arguments.checkout
    if not (checkout / "vireid").is_dir() or arguments.rounds < 1:
        parser.error(f"checkout must hold vireid/ and --rounds be at least 1, got {given[:at]}")
    module, options = f"benchmarks.speed.{arguments.benchmark}", given[at + 1 :]
    least: dict[str, dict[Key, float]] = {"other": {}, "this": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(arguments.rounds):
            theirs = run_theirs(checkout, arguments.theirs, folder) if arguments.theirs else []
            other = {} if arguments.theirs else run(checkout / "vireid", module, options, folder)
            this = run(ROOT / "vireid", module, options, folder)
            for version, found in (("other", other | matched(theirs, this)), ("this", this)):
                for key, seconds in found.items():
                    least[version][key] = min(seconds, least[version].get(key, seconds))
    print(f"{'':80}{'other ms':>12}{'this ms':>12}{'this/other':>12}")
    for key, seconds in least["this"].items():
        before = least["other"].get(key)
        shown = f"{'-':>12}{1e3 * seconds:12.2f}" if before is None else f"{1e3 * before:12.2f}{1e3 * seconds:12.2f}"
        print(f"{', '.join(key):80}{shown}{'' if before is None else f'{seconds / before:12.2f}'}")


if __name__ == "__main__":
    main()
