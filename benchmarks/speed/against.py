"""A speed benchmark with two versions of the library in one run: this one, and that of another checkout.

The benchmark is always this checkout's; the versions take turns, so that a slow spell of the machine hits both, and the
least time of each is compared.

    python -m benchmarks.speed.against ../old heads -- --method saai --repeats 5
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.speed.measure import child_environment, read_table

ROOT = Path(__file__).resolve().parents[2]
Key = tuple[str, str, str]


def run(package: Path, module: str, options: Sequence[str], folder: Path) -> dict[Key, float]:
    """Run a benchmark with a version of the library; return the median seconds by (what, size, method).

    Args:
        package: folder "vireid" of the version.
        module: of the benchmark.
        options: of the benchmark.
        folder: for what it writes; the package alone is on the path through a link in it.
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


def main(given: Sequence[str] | None = None) -> None:
    """Measure both in turns, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder that holds the other version's vireid/")
    parser.add_argument("benchmark", help="module of benchmarks/speed, such as heads")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each version")
    given = list(sys.argv[1:] if given is None else given)
    at = given.index("--") if "--" in given else len(given)
    arguments = parser.parse_args(given[:at])
    versions = {"other": arguments.checkout / "vireid", "this": ROOT / "vireid"}
    if not versions["other"].is_dir() or arguments.rounds < 1:
        parser.error(f"checkout must hold vireid/ and --rounds be at least 1, got {given[:at]}")
    least: dict[str, dict[Key, float]] = {name: {} for name in versions}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.rounds):
            for name, package in versions.items():
                module = f"benchmarks.speed.{arguments.benchmark}"
                for key, seconds in run(package, module, given[at + 1 :], Path(folder)).items():
                    least[name][key] = min(seconds, least[name].get(key, seconds))
    print(f"{'':80}{'other ms':>12}{'this ms':>12}{'this/other':>12}")
    for key, seconds in least["this"].items():
        other = least["other"].get(key)
        shown = f"{'-':>12}{1e3 * seconds:12.2f}" if other is None else f"{1e3 * other:12.2f}{1e3 * seconds:12.2f}"
        print(f"{', '.join(key):80}{shown}{'' if other is None else f'{seconds / other:12.2f}'}")


if __name__ == "__main__":
    main()
