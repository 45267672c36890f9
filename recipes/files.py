"""Files that travel with the cookbook, and files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def shipped(folder: str, name: str = "") -> Path:
    """Path of a file of the top-level `datasets` or `models` folder.

    The wheel carries both folders inside the package; a checkout keeps them beside it.
    """
    package = Path(__file__).parent
    inside = package / folder
    return (inside if inside.is_dir() else package.parent / folder) / name


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block succeeds.

    If the block raises, `path` is as it was before. A path that is no regular file, such as
    /dev/stdout, is written directly: it must not be replaced by a file.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    path = path.resolve()  # replace what a symbolic link points to, not the link
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o666 & ~_umask())  # mkstemp's 0600 is for secrets
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
