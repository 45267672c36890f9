"""Files that travel with the cookbook, and files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
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

    If the block raises, `path` is as it was before. A link is kept, and what it points to replaced;
    so are the permissions of a file that is there already.

    Raises:
        OSError: the folder cannot be written, the disk is full, or `path` is no regular file.
    """
    real = Path(os.path.realpath(path))
    try:
        name = _temporary_beside(real)
        try:
            yield Path(name)
            if real.exists():
                shutil.copymode(real, name)
            else:
                os.chmod(name, 0o666 & ~_umask())  # mkstemp's 0600 is for secrets
            os.replace(name, real)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise
    except OSError as error:
        raise OSError(error.errno, f"{path} cannot be written: {error.strerror or error}") from error


def between_marks(text: str, begin: str, end: str, new: str) -> str:
    """A text with what stands between two lines of it made anew.

    Raises:
        ValueError: the lines are not there once each.
    """
    if not text.count(begin) == text.count(end) == 1:
        raise ValueError(f"the file must hold these two lines once each: {begin} and {end}")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{new}\n{end}{rest.split(end)[1]}"


def rewrite_between_marks(path: Path, begin: str, end: str, new: str) -> None:
    """The same with a file, which is written whole or not at all.

    Raises:
        ValueError: the lines are not there once each.
        OSError: it cannot be read or written.
    """
    text = between_marks(path.read_text("utf-8"), begin, end, new)
    with written_whole(path) as temporary:
        temporary.write_text(text, "utf-8")


def check_writable(path: Path) -> None:
    """Find out before the work whether its result can be written, by beginning to.

    Raises:
        ValueError: it cannot, and why.
    """
    try:
        if os.path.abspath(path).startswith(("/dev/", "/proc/")):  # these may lead to anything
            raise OSError(None, "it is no regular file")
        os.unlink(_temporary_beside(Path(os.path.realpath(path))))
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from error


def _temporary_beside(real: Path) -> str:
    """A new file in the folder of `real`, which must be a regular file or not be there."""
    if real.is_dir():
        raise OSError(None, "it is a folder")
    if real.exists() and not real.is_file():
        raise OSError(None, "it is no regular file")
    if not real.parent.is_dir():
        raise OSError(None, f"there is no folder {real.parent}")
    handle, name = tempfile.mkstemp(dir=real.parent, prefix=f".{real.name[:40]}.", suffix=real.suffix)
    os.close(handle)
    return name


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
