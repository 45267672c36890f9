"""What takes longer than a moment says what it does and how far it is: on a terminal and in a notebook.

Where standard error is neither, nothing is said. `TQDM_DISABLE=1` keeps quiet everywhere.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any

_open: list[Any] = []
"""Bars that are drawn, the outermost first."""


def bar(steps: Iterable | None = None, what: str = "", *, unit: str = "step", **options: Any) -> Any:
    """A tqdm bar, over `steps` or to be updated by hand, which is gone when it is done.

    Args:
        steps: what to go through; None: the caller updates the bar.
        what: what is being done, in a word or two.
        unit: what is counted.
        options: of tqdm, such as `total` and `initial`.
    """
    from tqdm.auto import tqdm

    if not shown():
        return tqdm(steps, disable=True, **options)

    return _ticking(tqdm)(steps, desc=what, unit=unit, leave=False, dynamic_ncols=True, **options)


@functools.cache
def _ticking(tqdm: type) -> type:
    """A kind of bar of our own."""

    class Ticking(tqdm):
        """Drawn every second, also while nothing moves."""

        monitor_interval = 0  # tqdm's own thread, which looks after bars that stand still

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            _open.append(self)
            self.closed = threading.Event()
            self.ticker = threading.Thread(target=self.tick, daemon=True)
            self.ticker.start()

        def tick(self) -> None:
            while not self.closed.wait(1.0):
                if self in _open:
                    self.refresh()

        def close(self) -> None:
            if hasattr(self, "ticker"):
                self.closed.set()
                self.ticker.join()  # it may be drawing, and would after us
            if self in _open:
                _open.remove(self)
            super().close()

    return Ticking


def bytes_bar(what: str, total: int = 1) -> Any:
    """A bar of bytes, which appears after a second."""
    return bar(what=what, unit="B", total=total, unit_scale=True, delay=1)


def shown() -> bool:
    """Whether anybody looks: at a terminal, or at a notebook."""
    if os.environ.get("TQDM_DISABLE"):
        return False
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return sys.stderr.isatty() or "IPKernelApp" in getattr(shell, "config", ())


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Draw nothing for as long as other processes have the terminal."""
    waiting, _open[:] = list(_open), []
    for one in waiting:
        one.clear()
    try:
        yield
    finally:
        _open[:] = waiting
