"""The border of the package: whatever a library says of a bad file becomes one kind of error."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten

_NO_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


@contextmanager
def reading(path: Path, expected: str, remedy: str = "") -> Iterator[None]:
    """Any error inside the block, of a library, becomes ValueError "path: what was found, expected …; remedy".

    What says nothing about the file passes: a MemoryError, and an OSError with a number, which is the disk's or the
    network's, unless there is no file.
    """
    try:
        yield
    except Exception as error:
        is_fault = isinstance(error, MemoryError) or isinstance(error, OSError) and error.errno
        if is_fault and not isinstance(error, _NO_FILE):
            raise
        found = "no such file" if isinstance(error, _NO_FILE) else shorten(str(error) or type(error).__name__, 300)
        ways = f"; {remedy}" if remedy else ""
        raise ValueError(f"{path}: {found}, expected {expected}{ways}") from error
