"""Files that are complete, or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path; its file is renamed to `path` when the block ends without an error.

    The folder is created, and the content is on the disk before the file is renamed. If the block raises,
    the temporary file is removed and an existing file is unchanged, so that `path` is never incomplete.

    Raises:
        OSError: the file cannot be written, for example because the disk is full.

    >>> with atomic_write("numbers.txt") as partial:  # doctest: +SKIP
    ...     partial.write_text("1 2 3")
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # In a separate folder with the same name, because numpy.savez adds `.npz` to a name without it.
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    partial = folder / target.name
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{target} cannot be written ({error.strerror or error}). Files that were written before are"
            " unchanged. Free space on the disk, or use another folder",
        ) from error
    finally:
        # Also on KeyboardInterrupt. The block may have written other files here (savez that failed).
        for leftover in folder.iterdir():
            leftover.unlink()
        folder.rmdir()
