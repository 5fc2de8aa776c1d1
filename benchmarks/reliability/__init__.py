"""Reliability of the library: fuzzed calls, killed processes, and the memory of a million images."""

import argparse
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a check; return 1 if it finds a fault, else 0."""
    parser = argparse.ArgumentParser(prog="benchmarks.reliability", description=__doc__)
    checks = parser.add_subparsers(dest="check", required=True)
    fuzz = checks.add_parser("fuzz", help="random calls, valid and hostile, of every public callable")
    fuzz.add_argument("--calls", type=int, default=40_000, help="number of calls")
    fuzz.add_argument("--seed", type=int, default=0, help="of the calls")
    fuzz.add_argument("--only", type=int, nargs="+", default=[], help="numbers of calls to repeat")
    fuzz.add_argument("--names", default="", help="regular expression of the callables; changes the numbers")
    fuzz.add_argument("--processes", type=int, default=2)
    kill = checks.add_parser("kill", help="kill -9 at random moments of the training and of each saver")
    kill.add_argument("--moments", type=int, default=50, help="of the training, and of each saver")
    kill.add_argument("--seed", type=int, default=0, help="of the moments")
    memory = checks.add_parser("memory", help="peak memory of a large gallery, each part in its own process")
    memory.add_argument("--rows", type=int, default=1_000_000, help="of the gallery, with 64 columns")
    memory.add_argument("--parts", nargs="+", default=None, help="some of the parts")
    memory.add_argument("--limit", type=float, default=6.0, help="GiB")
    given = parser.parse_args(arguments)
    if given.check == "fuzz":
        from benchmarks.reliability import fuzz as fuzzing

        return int(fuzzing.main(given.calls, given.seed, given.only, given.names, given.processes) > 0)
    if given.check == "kill":
        from benchmarks.reliability import kill as killing

        return int(killing.main(given.moments, given.seed) > 0)
    from benchmarks.reliability import memory as measuring

    return int(measuring.main(given.rows, given.parts, given.limit) > 0)
