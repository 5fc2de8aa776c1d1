"""A measurement in a process of its own, which is stopped when it takes too long or too much memory."""

import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.measure import child_environment


def say(**line: Any) -> None:
    """Print a line of JSON for the process that watches."""
    print(json.dumps(line), flush=True)


def guarded(function: Callable[..., None], *arguments: Any) -> None:
    """Call a measurement; say "stopped" if it asks for more memory than there is."""
    try:
        function(*arguments)
    except (MemoryError, torch.OutOfMemoryError):
        say(stopped="memory")
    except RuntimeError as error:  # torch's CPU allocator raises nothing more precise
        if "allocate memory" not in str(error):
            raise
        say(stopped="memory")


def watched(
    module: str, options: Sequence[str], *, threads: int, limit: float, memory: float
) -> tuple[list[dict[str, Any]], str | None]:
    """Run ``module`` in a fresh process of this interpreter, and stop it when it takes too much.

    Args:
        module: prints a line of JSON now and then: first one with "ready", then one per measurement.
        options: of the command line.
        threads: CPU threads of torch and NumPy.
        limit: seconds that any line but the first may be waited for.
        memory: GiB that the process may have resident, its inputs included.

    Returns:
        The lines after the first, and why it ended early: "time", "memory", "error" (which was shown), None if it
        did not.
    """
    environment = child_environment()
    environment |= {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
    # its own session, so that stopping it also ends what it may have started
    child = subprocess.Popen(
        [sys.executable, "-m", module, *options], stdout=subprocess.PIPE, env=environment, start_new_session=True
    )
    assert child.stdout is not None
    lines: list[dict[str, Any]] = []
    stopped, deadline, text = None, float("inf"), b""
    try:
        while True:
            if select.select([child.stdout], [], [], 0.02)[0]:
                read = os.read(child.stdout.fileno(), 1 << 16)
                if not read:
                    break
                *whole, text = (text + read).split(b"\n")
                lines += [json.loads(line) for line in whole]
                deadline = time.monotonic() + limit
            elif time.monotonic() > deadline:
                stopped = "time"
            elif resident_bytes(child.pid) > memory * 2**30:
                stopped = "memory"
            if stopped:
                break
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.stdout.close()
        status = child.wait()
    if lines and lines[-1].get("stopped"):  # the process noticed by itself that memory does not suffice
        stopped = lines.pop()["stopped"]
    elif status and not stopped:
        stopped = "error"  # of a contender: the others go on
    return lines[1:], stopped


def resident_bytes(process: int) -> int:
    """Return the resident bytes of another process; 0 once it has ended, or where the system does not say."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * resource.getpagesize()
