"""Files are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_file(path: Path, expected: str) -> None:
    """Raise unless there is a file at ``path``; the message begins with what was ``expected``."""
    if not path.is_file():
        fault = "is a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{expected}, got {str(path)!r}: {fault}")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder, which takes the name of ``path`` when the block ends well, else vanishes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:  # of a full disk, say, which names no file, or the temporary one
        if error.errno is None:
            raise OSError(f"cannot write {str(path)!r}: {error}") from error
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
