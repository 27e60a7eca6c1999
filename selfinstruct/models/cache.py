"""The folder of model files: atomic, one writer at a time, and never trusted without a hash."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from selfinstruct.errors import ModelFileError
from selfinstruct.resources import cache_dir

_CHUNK = 1 << 20


def models_dir() -> Path:
    """Return the folder that holds the model files."""
    return cache_dir() / "models"


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sampled_digest(path: Path) -> str:
    """Return a digest of a file's size and of its first, middle and last MiB: tells files apart, proves nothing."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in (0, size // 2, max(0, size - _CHUNK)):
            file.seek(start)
            digest.update(file.read(_CHUNK))
    return digest.hexdigest()


def intact(path: Path, sha256: str, size: int | None = None, *, recheck: bool = False) -> bool:
    """Tell whether the file is there with that content.

    A file is hashed once; then a stamp remembers its size and time of change and spares the hashing for as
    long as both stay. `recheck` hashes it all the same.
    """
    try:
        state = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    if size is not None and state.st_size != size:
        return False
    stamp = models_dir() / f"{sha256}.stamp"
    known = json.dumps({"path": str(path), "size": state.st_size, "mtime_ns": state.st_mtime_ns})
    with suppress(OSError):  # no stamp: never checked on this machine, or by someone whose files are not ours to read
        if not recheck and stamp.read_text(encoding="utf-8") == known:
            return True
    if sha256_of(path) != sha256:
        with suppress(OSError):
            stamp.unlink()  # it may vouch for this very file: one changed without a change of size and time
        return False
    with suppress(OSError):  # a read-only or full disk: without a stamp the file is hashed at every start
        _write_atomically(stamp, known)
    return True


def place(staged: Path, target: Path, sha256: str) -> None:
    """Move a fetched file into the cache when its content is the expected one.

    Raises:
        ModelFileError: the content has another sha256.
    """
    found = sha256_of(staged)
    if found != sha256:
        raise ModelFileError(
            f"{target.name}: the fetched file is damaged or not the expected one: sha256 {found}, expected {sha256}. "
            "Nothing was kept; fetch it again, or from another index."
        )
    with staged.open("rb") as file:
        os.fsync(file.fileno())
    staged.replace(target)
    intact(target, sha256)


def require_space(folder: Path, needed: int, variable: str = "SELFINSTRUCT_CACHE") -> None:
    """Raise unless the disk of `folder`, which the environment `variable` chooses, has `needed` bytes free.

    Raises:
        ModelFileError: it has not.
    """
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ModelFileError(
            f"{folder}: {needed / 1e6:,.0f} MB of free disk space are needed and {free / 1e6:,.0f} MB are left. "
            f"Free some, or set {variable} to a folder on another disk."
        )


@contextmanager
def exclusive(target: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the right to write `target`; wait while another process does. The lock ends with its holder."""
    from filelock import FileLock, Timeout

    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.with_name(target.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another process is fetching {target.name}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Give an empty folder beside `target`, on the same disk so that moving is atomic; remove it after.

    Call it while holding `exclusive(target)`: what a killed predecessor left is removed first.
    """
    prefix = f".{target.name}-"
    for left in target.parent.glob(prefix + "*"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as folder:
        yield Path(folder)


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    staged.write_text(text, encoding="utf-8")
    staged.replace(path)
