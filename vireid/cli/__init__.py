"""The command line, ``vireid``: evaluate a feature file, re-rank it, time the re-rankers. Needs the extra ``cli``."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line and leave: 0 when all went well, 1 for bad data, 2 for a wrong option."""
    try:
        import click  # noqa: F401
        import tqdm  # noqa: F401
    except ModuleNotFoundError as error:
        print(f"Error: the command line needs {error.name}: pip install 'vireid[cli]'", file=sys.stderr)
        sys.exit(1)
    from vireid.cli.app import vireid

    vireid(prog_name="vireid")
