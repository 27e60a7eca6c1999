"""Placeholder."""

from __future__ import annotations
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
import subprocess

import pytest


@contextmanager
def mounted(place: Path, options: str) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """Mount a small disk, where this user may (root in a container that lets him); skip elsewhere."""
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"can't mount a disk here: {made.stderr.decode(errors='replace').strip()}")
    try:
        yield place, lambda how: subprocess.run(["mount", "-o", f"remount,{how}", place], check=True) and None
    finally:
        subprocess.run(["umount", place], check=True)
