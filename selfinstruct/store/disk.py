"""The files of a run on the disk: opening the database, what can be wrong with it, and saying so."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

from selfinstruct.errors import StoreError

SCHEMA_VERSION = 1
DATABASE = "run.sqlite"
RESERVE = "run.reserve"
_RESERVED = 4 << 20
"""Bytes set aside: about 64 answers in flight, each of some ten database pages, and the closing notes."""


def connect(path: Path) -> sqlite3.Connection:
    """Open a database for writing; what is committed survives a power cut."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=10)
    try:
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "wal_autocheckpoint = 1000",
            "journal_size_limit = 67108864",
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open a database for reading, also in a folder that can't be written.

    Raises:
        StoreError: only a writer could read it.
    """
    address = f"{path.resolve().as_uri()}?mode=ro"
    connection = sqlite3.connect(address, uri=True, timeout=10)
    try:
        connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
    except sqlite3.Error as error:
        connection.close()
        # Where the folder can't be written SQLite has no place for its index of the WAL; without a WAL it needs none.
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CANTOPEN:
            raise
        if size_of(path, "-wal"):
            raise StoreError(
                f"{path}: can't be read where it is: the folder can't be written, and the run was not closed properly. "
                "Copy the whole folder to where you may write, and use the copy"
            ) from error
        connection = sqlite3.connect(f"{address}&immutable=1", uri=True)
    return connection


def refuse_leftovers(path: Path) -> None:
    """Refuse to put a new database where one is, or beside another's WAL, which SQLite would play back into it."""
    if path.exists():
        raise StoreError(
            f"{path}: there is a run here already; go on with `selfinstruct resume`, or use another folder"
        )
    if size_of(path, "-wal"):
        raise StoreError(
            f"{path} is gone, but what was written last is still beside it ({path.name}-wal): restore {path.name}, "
            f"or remove {path.name}-wal as well, or use another folder"
        )
    own = path.with_name("config.yaml")
    if own.exists():
        raise StoreError(
            f"{own} is there without a run, and a run would write its own over it; move it or use another folder"
        )


def remove_database(path: Path) -> None:
    """Remove a database with the files that SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def size_of(path: Path, suffix: str) -> int:
    """Return the bytes of a file that belongs to a database, 0 when there is none."""
    try:
        return path.with_name(path.name + suffix).stat().st_size
    except FileNotFoundError:
        return 0


def identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from another that takes its name, None when there is none."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def set_aside(path: Path) -> None:
    """Take up room on the disk, so that it can be given back when there is no other left."""
    with path.open("wb") as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, _RESERVED)
            else:
                file.write(bytes(_RESERVED))
                file.flush()
        except OSError:
            path.unlink(missing_ok=True)
            raise


def sync_folder(folder: Path) -> None:
    """Make a new name in a folder durable, and the folder's own in its parent."""
    if os.name == "nt":
        return  # has no such thing
    for each in (folder, folder.resolve().parent):
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_version(path: Path, connection: sqlite3.Connection) -> None:
    """Refuse what a newer version wrote, and what is no run at all.

    Raises:
        StoreError: says which.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{path}: written by a newer selfinstruct (format {version}, this one reads up to {SCHEMA_VERSION}); "
            "upgrade selfinstruct"
        )
    if version < 1:
        raise StoreError(f"{path}: not a selfinstruct run database; move it away or choose another folder")


class explained:
    """Turn SQLite's and the system's errors into a StoreError that says what to do."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, sqlite3.Error):
            code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
            advice = _ADVICE.get(code, "the database gave an error; everything committed is safe")
            raise StoreError(f"{self._path}: {advice} ({error})") from error
        if isinstance(error, UnicodeDecodeError):  # of SQLite's own complaint, when it quotes garbage
            raise StoreError(f"{self._path}: {_ADVICE[sqlite3.SQLITE_CORRUPT]}") from error
        if isinstance(error, OSError):
            advice = _OS_ADVICE.get(error.errno or 0, "everything committed is safe; mend this and try again")
            raise StoreError(f"{error.filename or self._path.parent}: {error.strerror or error}: {advice}") from error


_ADVICE = {
    sqlite3.SQLITE_FULL: "the disk is full; everything committed is safe: free some space and resume",
    sqlite3.SQLITE_READONLY: "the run can't be written (read-only file or folder); make it writable and resume",
    sqlite3.SQLITE_CANTOPEN: "can't be opened; check that the folder exists and may be read and written",
    sqlite3.SQLITE_CORRUPT: "the database is damaged; restore it from a copy, or start a new folder",
    sqlite3.SQLITE_NOTADB: "this is not a run database (damaged, or another file); restore it from a copy",
    sqlite3.SQLITE_BUSY: "another program keeps the database locked; close it and try again",
    sqlite3.SQLITE_IOERR: (
        "the disk could not be read or written (broken, gone, or a limit on space or file size is reached); everything "
        "committed is safe: mend that and resume"
    ),
}
_FREE = "free some space and try again; everything committed is safe"
_MAKE_WRITABLE = "make the folder readable and writable, or choose another with --output"
_NO_FOLDER = "choose another folder with --output"
_OS_ADVICE = {
    errno.ENOSPC: _FREE,
    errno.EDQUOT: _FREE,
    errno.EFBIG: "a limit on the size of files (ulimit -f) is reached; raise it and try again",
    errno.EACCES: _MAKE_WRITABLE,
    errno.EPERM: _MAKE_WRITABLE,
    errno.EROFS: _MAKE_WRITABLE,
    errno.EEXIST: _NO_FOLDER,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EISDIR: _NO_FOLDER,
    errno.ENAMETOOLONG: _NO_FOLDER,
    errno.ENOENT: "it is gone; check the path",
}
NO_ROOM = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
"""Codes that a full disk gives; a quota's or a network disk's end looks like an I/O error."""
DISK = NO_ROOM | {
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_NOMEM,
}
"""Codes that say nothing of the statement: whatever else is written fails the same way."""


def error_code(error: BaseException) -> int:
    """Return SQLite's primary code behind an error, 0 when it has none."""
    return (getattr(error.__cause__, "sqlite_errorcode", None) or 0) & 0xFF


def born(pid: int) -> str | None:
    """Return when a process started (Linux clock ticks), so that a reused pid is not taken for the old one."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
