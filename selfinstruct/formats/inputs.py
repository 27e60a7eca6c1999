"""Rows out of data files: what a file is, told by its content and never by its name."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Literal, cast

from selfinstruct.errors import InputError
from selfinstruct.formats import scan
from selfinstruct.formats.scan import Item

HEAD = 1 << 20
"""Bytes looked at to tell what a file is."""

Container = Literal["JSON lines", "JSON array", "JSON values", "CSV", "Parquet"]
Source = str | os.PathLike[str] | IO[bytes]


class _Chained(io.RawIOBase):
    """Bytes already read, then the rest of a stream; damage of a compressed one ends it, and is remembered."""

    def __init__(self, head: bytes, rest: IO[bytes], damage: str = "") -> None:
        self._head = memoryview(head)
        self._rest = rest
        self.damage = damage

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._head:
            count = min(len(buffer), len(self._head))
            buffer[:count] = self._head[:count]
            self._head = self._head[count:]
            return count
        if self.damage:
            return 0
        data, self.damage = _read(self._rest, len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _read(stream: IO[bytes], size: int) -> tuple[bytes, str]:
    """Read from a stream, and what is wrong with it when it is compressed and damaged."""
    # read1 gives what there is; read would lose what comes before the damage.
    read = getattr(stream, "read1", stream.read)
    damages: tuple[type[Exception], ...] = (EOFError, gzip.BadGzipFile, zlib.error, *_zstd_errors())
    try:
        return read(size), ""
    except damages as error:
        return b"", f"the compressed file is damaged or cut: {error}"


@dataclass(frozen=True, slots=True)
class OpenFile:
    """An input being read: its first bytes (decompressed), what holds its rows, and the rows."""

    name: str
    head: bytes
    container: Container
    stream: io.BufferedReader

    def items(self, container: Container | None = None) -> Iterator[Item]:
        """Read the rows; what can't be read, and a damaged end, is an item with a fault."""
        readers: dict[Container, Callable[[io.BufferedReader], Iterator[Item]]]
        readers = {"JSON lines": scan.lines, "CSV": _csv_items, "Parquet": _parquet_items}
        last = Item(0)
        for last in readers.get(container or self.container, scan.values)(self.stream):
            yield last
        if damage := cast(_Chained, self.stream.raw).damage:
            yield Item(last.place + 1, fault=damage)


@contextlib.contextmanager
def opened(source: Source) -> Iterator[OpenFile]:
    """Open a file ("-": standard input), through gzip or zstd where the content is that.

    Raises:
        InputError: it can't be opened, or its content is not a data file.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(source, str | os.PathLike) and str(source) != "-":
            name = str(source)
            try:
                raw: IO[bytes] = stack.enter_context(Path(source).open("rb"))
            except IsADirectoryError:
                raise InputError(f"{name} is a folder: name a file in it") from None
            except OSError as error:
                raise InputError(f"{name}: {error.strerror or error}") from None
        else:
            raw = sys.stdin.buffer if isinstance(source, str | os.PathLike) else source
            name = "standard input" if raw is sys.stdin.buffer else str(getattr(raw, "name", "input"))
        head, stream = _peek(raw)
        # Not without end: there are archives that hold themselves.
        for _ in range(3):
            if (inner := _decompressed(name, head, stream)) is not None:
                head, stream = _peek(inner)
        if not head and (damage := cast(_Chained, stream.raw).damage):
            raise InputError(f"{name}: {damage}")
        if head.startswith(b"\xef\xbb\xbf"):
            stream.read(3)
            head = head[3:]
        yield OpenFile(name, head, container(name, head), stream)


def _peek(raw: IO[bytes]) -> tuple[bytes, io.BufferedReader]:
    head, more, damage = b"", b"?", ""
    while more and len(head) < HEAD:
        more, damage = _read(raw, HEAD - len(head))
        head += more
    return head, io.BufferedReader(_Chained(head, raw, damage), scan.CHUNK)


def _decompressed(name: str, head: bytes, stream: io.BufferedReader) -> IO[bytes] | None:
    if head.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=stream))
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return cast(IO[bytes], zstd(name).ZstdFile(stream))
    return None


def zstd(name: str) -> Any:
    """Return the standard library's zstd, or its backport.

    Raises:
        InputError: this Python has neither.
    """
    for module in ("compression.zstd", "backports.zstd"):
        with contextlib.suppress(ImportError):
            return import_module(module)
    raise InputError(f"{name}: .zst needs: pip install 'selfinstruct[zstd]'")


def _zstd_errors() -> tuple[type[Exception], ...]:
    loaded = [sys.modules.get(module) for module in ("compression.zstd", "backports.zstd")]
    return tuple(module.ZstdError for module in loaded if module is not None)


def container(name: str, head: bytes) -> Container:
    """Tell what holds the rows, from the first bytes.

    Raises:
        InputError: empty, UTF-16, a web page or another thing that holds no rows.
    """
    if head.startswith(b"PAR1"):
        return "Parquet"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in head[:2]:
        raise InputError(f"{name}: not UTF-8 text (UTF-16?); convert it first: iconv -f UTF-16 -t UTF-8")
    start = head.lstrip()
    if not start:
        raise InputError(f"{name}: the file is empty; expected JSON lines, a JSON array, CSV or Parquet")
    if start[:1] == b"[":
        first, _, rest = start.partition(b"\n")
        second = rest.lstrip().partition(b"\n")[0]
        both = _alone(first) and second[:1] == b"[" and _alone(second)
        return "JSON lines" if both else "JSON array"
    if start[:1] == b"{":
        first, newline, rest = start.partition(b"\n")
        if not newline and _followed(first):
            return "JSON values"
        if _alone(first) or (not newline and len(head) >= HEAD):
            return "JSON lines"
        # A broken first line of a JSON lines file: the second line decides.
        second = rest.lstrip().partition(b"\n")[0]
        return "JSON lines" if second[:1] == b"{" and _alone(second) else "JSON values"
    if start[:1] == b"<":
        raise InputError(f"{name}: looks like a web page, not a data file")
    first = start.partition(b"\n")[0]
    if b"," in first or b"\t" in first:
        return "CSV"
    found = first[:40].decode(errors="replace")
    raise InputError(f"{name}: expected JSON lines, a JSON array, CSV or Parquet, found {found!r}")


def _alone(line: bytes) -> bool:
    try:
        scan.parse(line.decode())
    except (InputError, UnicodeDecodeError):
        # Not readable: but a line that opens and closes an object is a (bad) line of its own.
        return line.startswith(b"{") and line.rstrip().endswith(b"}")
    return True


def _followed(text: bytes) -> bool:
    """Tell whether a text starts with one whole object and goes on with another: rows with no newline between."""
    return scan.after_first(text.decode(errors="surrogateescape")).lstrip(" \t\r,").startswith("{")


def _csv_items(stream: io.BufferedReader) -> Iterator[Item]:
    csv.field_size_limit(scan.LONGEST_ROW)
    header_line = stream.peek().partition(b"\n")[0]
    delimiter = "," if b"," in header_line else "\t"
    text = io.TextIOWrapper(stream, "utf-8", "surrogateescape", newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        place = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Item(place, fault=f"not CSV: {error}")
            continue
        if header is None:
            header = row
            if len(set(header)) != len(header):
                yield Item(place, fault=f"a column name is there twice in the header: {', '.join(header)}")
                return
            continue
        if not row:
            continue
        if len(row) != len(header):
            yield Item(place, fault=f"expected {len(header)} columns ({', '.join(header)}), found {len(row)}")
            continue
        try:
            "".join(row).encode()
        except UnicodeEncodeError:
            yield Item(place, fault="not UTF-8; convert the file first (Chinese: iconv -f GB18030 -t UTF-8)")
            continue
        yield Item(place, dict(zip(header, row, strict=True)))


def pyarrow() -> Any:
    """Return pyarrow with its Parquet part.

    Raises:
        InputError: it is not installed.
    """
    try:
        import_module("pyarrow.parquet")
    except ImportError:
        raise InputError("Parquet needs: pip install 'selfinstruct[parquet]'") from None
    return import_module("pyarrow")


def _parquet_items(stream: io.BufferedReader) -> Iterator[Item]:
    arrow = pyarrow()
    place = 0
    with tempfile.TemporaryFile() as seekable:
        # The table of contents is at the end, so a stream is laid down first.
        shutil.copyfileobj(stream, seekable, scan.CHUNK)
        seekable.seek(0)
        try:
            # Read ahead, as it does by default, it would keep all that was read: the file's size in memory.
            with arrow.parquet.ParquetFile(seekable, pre_buffer=False, buffer_size=scan.CHUNK) as table:
                for batch in table.iter_batches(1024, use_threads=False):
                    for row in batch.to_pylist():
                        place += 1
                        yield Item(place, _bare(row))
        except (arrow.ArrowException, OSError, ValueError) as error:  # a column's name is no UTF-8, say
            yield Item(place + 1, fault=f"damaged Parquet file: {error}")


def _bare(value: Any) -> Any:
    """Take out the nulls that Parquet puts where an object of the list had no such key."""
    if isinstance(value, dict):
        return {key: _bare(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_bare(inner) for inner in value]
    return value.isoformat() if hasattr(value, "isoformat") else value
