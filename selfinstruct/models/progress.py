"""Show how far a download is: a bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all, from any thread, as often as it pleases."""


def say_on_stderr(message: str) -> None:
    """Write one line of talk."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


@contextmanager
def shown(label: str, progress: Progress | None, say: Callable[[str], None]) -> Iterator[Progress]:
    """Give the caller's own `progress`, else one that draws on stderr."""
    if progress is not None:
        yield progress
    elif sys.stderr.isatty():
        with _bar(label) as drawn:
            yield drawn
    else:
        yield _lines(label, say)


@contextmanager
def _bar(label: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield update


def _lines(label: str, say: Callable[[str], None]) -> Progress:
    quarter = -1

    def update(done: int, total: int) -> None:
        nonlocal quarter
        reached = done * 4 // max(total, 1)
        if reached > quarter:
            quarter = reached
            say(f"{label}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB")

    return update
