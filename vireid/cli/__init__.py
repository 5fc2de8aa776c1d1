"""The command line, ``vireid``: train, extract, evaluate, rerank, draw, keypoints, info. Needs the extra ``cli``."""

import signal
import sys
import threading
from typing import Any

__all__ = ["main"]


def main() -> None:
    """Run the command line and leave: 0 when all went well, 1 for bad data, 2 for a wrong option.

    SIGTERM ends it with 143, after what is being written has been removed.
    """
    try:
        import click  # noqa: F401
        import tqdm  # noqa: F401
    except ModuleNotFoundError as error:
        print(f"Error: the command line needs {error.name}: pip install 'vireid[cli]'", file=sys.stderr)
        sys.exit(1)
    from vireid.cli.app import vireid

    handled = threading.current_thread() is threading.main_thread()
    handled = handled and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if handled:
        signal.signal(signal.SIGTERM, _leave)
    try:
        vireid(prog_name="vireid")
    finally:
        if handled:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave(*_: Any) -> None:
    """Leave through every ``finally``, which removes temporary files."""
    raise SystemExit(143)
