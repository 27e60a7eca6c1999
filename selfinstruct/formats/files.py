"""Data files: what they are (by content, never by name), rows in, rows out."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Literal, Protocol, cast

from selfinstruct.errors import InputError
from selfinstruct.formats import scan
from selfinstruct.formats.format import Format, Layout, Row
from selfinstruct.formats.scan import Item

HEAD = 1 << 20
"""Bytes looked at to tell what a file is."""

Container = Literal["JSON lines", "JSON array", "JSON values", "CSV", "Parquet"]
Source = str | os.PathLike[str] | IO[bytes]


class _Chained(io.RawIOBase):
    """Bytes already read, then the rest of a stream."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self._head = memoryview(head)
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._head:
            count = min(len(buffer), len(self._head))
            buffer[:count] = self._head[:count]
            self._head = self._head[count:]
            return count
        data = self._rest.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


@dataclass(frozen=True, slots=True)
class OpenFile:
    """An input being read: its first bytes (decompressed), what holds its rows, and the rows."""

    name: str
    head: bytes
    container: Container
    stream: IO[bytes]

    def items(self, container: Container | None = None) -> Iterator[Item]:
        """Read the rows; a row that can't be read is an item with a fault."""
        container = container or self.container
        if container == "JSON lines":
            return scan.lines(self.stream)
        if container == "CSV":
            return _csv_items(self.stream)
        if container == "Parquet":
            return _parquet_items(self.stream)
        return scan.values(self.stream)


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
            except OSError as error:
                raise InputError(f"{name}: {error.strerror or error}") from None
        else:
            raw = sys.stdin.buffer if isinstance(source, str | os.PathLike) else source
            name = "standard input" if raw is sys.stdin.buffer else str(getattr(raw, "name", "input"))
        head, stream = _peek(raw)
        for _ in range(3):
            inner = _decompressed(name, head, stream)
            if inner is None:
                break
            try:
                head, stream = _peek(inner)
            except (OSError, EOFError) as error:
                raise InputError(f"{name}: damaged compressed file: {error}") from None
        if head.startswith(b"\xef\xbb\xbf"):
            stream.read(3)
            head = head[3:]
        yield OpenFile(name, head, container(name, head), stream)


def _peek(raw: IO[bytes]) -> tuple[bytes, IO[bytes]]:
    head = b""
    while len(head) < HEAD and (more := raw.read(HEAD - len(head))):
        head += more
    return head, io.BufferedReader(_Chained(head, raw), scan.CHUNK)


def _decompressed(name: str, head: bytes, stream: IO[bytes]) -> IO[bytes] | None:
    if head.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=stream))
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        try:
            import zstandard
        except ImportError:
            raise InputError(f"{name}: reading .zst needs: pip install 'selfinstruct[zstd]'") from None
        return cast(IO[bytes], zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True))
    return None


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
    raise InputError(f"{name}: expected JSON lines, a JSON array, CSV or Parquet, found {first[:40]!r}")


def _alone(line: bytes) -> bool:
    try:
        scan.parse(line.decode())
    except (InputError, UnicodeDecodeError):
        # Not readable: but a line that opens and closes an object is a (bad) line of its own.
        return line.startswith(b"{") and line.rstrip().endswith(b"}")
    return True


def _csv_items(stream: IO[bytes]) -> Iterator[Item]:
    csv.field_size_limit(scan.LONGEST_ROW)
    reader = csv.reader(io.TextIOWrapper(stream, "utf-8", "surrogateescape", newline=""), strict=True)
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
                raise InputError(f"line {place}: a column name is there twice in the header")
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


def _pyarrow() -> Any:
    try:
        import_module("pyarrow.parquet")
    except ImportError:
        raise InputError("Parquet needs: pip install 'selfinstruct[parquet]'") from None
    return import_module("pyarrow")


def _parquet_items(stream: IO[bytes]) -> Iterator[Item]:
    arrow = _pyarrow()
    with tempfile.TemporaryFile() as seekable:
        # The table of contents is at the end, so a stream is laid down first.
        shutil.copyfileobj(stream, seekable, scan.CHUNK)
        seekable.seek(0)
        try:
            table = arrow.parquet.ParquetFile(seekable)
        except arrow.ArrowInvalid as error:
            raise InputError(f"damaged Parquet file: {error}") from None
        place = 0
        with table:
            for batch in table.iter_batches(1024):
                for row in batch.to_pylist():
                    place += 1
                    yield Item(place, _bare(row))


def _bare(value: Any) -> Any:
    """Take out the nulls that Parquet puts where an object of the list had no such key."""
    if isinstance(value, dict):
        return {key: _bare(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_bare(inner) for inner in value]
    return value.isoformat() if hasattr(value, "isoformat") else value


class RowWriter(Protocol):
    """Takes rows one at a time; `close` ends the file."""

    def add(self, row: Row) -> None:
        """Write one row."""

    def close(self) -> None:
        """Write what ends the file."""


class _Lines:
    def __init__(self, stream: IO[bytes], format: Format) -> None:
        self._stream, self._ascii = stream, format.ascii

    def add(self, row: Row) -> None:
        self._stream.write(json.dumps(row, ensure_ascii=self._ascii, allow_nan=False).encode() + b"\n")

    def close(self) -> None:
        pass


class _Array:
    """An array that is byte for byte what `json.dump` of the whole list writes, and a newline when indented."""

    def __init__(self, stream: IO[bytes], format: Format) -> None:
        self._stream, self._ascii, self._indent = stream, format.ascii, format.indent
        self._count = 0

    def add(self, row: Row) -> None:
        body = json.dumps(row, ensure_ascii=self._ascii, allow_nan=False, indent=self._indent)
        if self._indent is None:
            lead = ", " if self._count else "["
        else:
            margin = "\n" + " " * self._indent
            lead = ("," if self._count else "[") + margin
            body = body.replace("\n", margin)
        self._stream.write((lead + body).encode())
        self._count += 1

    def close(self) -> None:
        if not self._count:
            self._stream.write(b"[]")
        else:
            self._stream.write(b"]" if self._indent is None else b"\n]")
        if self._indent is not None:
            self._stream.write(b"\n")


class _Object:
    def __init__(self, stream: IO[bytes], format: Format) -> None:
        self._stream, self._format = stream, format
        self._count = 0

    def add(self, row: Row) -> None:
        if self._count:
            raise InputError("this format is one record a file; the JSON lines form holds many")
        self._count += 1
        body = json.dumps(row, ensure_ascii=self._format.ascii, allow_nan=False, indent=self._format.indent)
        self._stream.write(body.encode())

    def close(self) -> None:
        pass


class _Csv:
    def __init__(self, stream: IO[bytes], format: Format) -> None:
        self._text = io.TextIOWrapper(stream, "utf-8", newline="", write_through=True)
        self._writer = csv.writer(self._text, lineterminator="\n")
        self._header: list[str] | None = None

    def add(self, row: Row) -> None:
        if not isinstance(row, dict) or not all(isinstance(value, str) for value in row.values()):
            raise InputError("CSV holds plain text columns only; write JSON lines or Parquet")
        if self._header is None:
            self._header = list(row)
            self._writer.writerow(self._header)
        if list(row) != self._header:
            raise InputError(f"CSV rows have the same columns: {', '.join(self._header)}, found {', '.join(row)}")
        # A lone carriage return would read back as a row's end in some readers; csv quotes it.
        self._writer.writerow(row.values())

    def close(self) -> None:
        self._text.detach()


class _Parquet:
    """Row groups of 1024; the columns are those of the first group."""

    def __init__(self, stream: IO[bytes], format: Format) -> None:
        self._arrow = _pyarrow()
        self._stream = stream
        self._rows: list[Row] = []
        self._table: Any = None

    def add(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) == 1024:
            self._flush()

    def _flush(self) -> None:
        schema = self._table.schema if self._table else None
        try:
            table = self._arrow.Table.from_pylist(self._rows, schema=schema)
        except (self._arrow.ArrowInvalid, self._arrow.ArrowTypeError) as error:
            raise InputError(f"these rows do not make one Parquet table: {error}") from None
        if schema is not None and any(set(row) - set(schema.names) for row in self._rows):
            raise InputError("a later row has columns that the first 1024 rows have not; write JSON lines instead")
        if self._table is None:
            self._table = self._arrow.parquet.ParquetWriter(self._stream, table.schema, compression="zstd")
        self._table.write_table(table)
        self._rows.clear()

    def close(self) -> None:
        if self._rows or self._table is None:
            self._flush()
        self._table.close()


_WRITERS: dict[Layout, Callable[[IO[bytes], Format], RowWriter]] = {
    "json": _Array,
    "jsonl": _Lines,
    "object": _Object,
    "csv": _Csv,
    "parquet": _Parquet,
}


def row_writer(stream: IO[bytes], format: Format, layout: Layout | None = None) -> RowWriter:
    """Return the writer of a format's layout on a stream."""
    return _WRITERS[layout or format.layout](stream, format)


@contextlib.contextmanager
def created(target: Path) -> Iterator[IO[bytes]]:
    """Open a new file that replaces `target` when everything went well, and is gone when not.

    A name in .gz or .zst is compressed, without a time stamp: equal rows, equal bytes.

    Raises:
        InputError: the folder can't be written, or the compression is not installed.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    except OSError as error:
        raise InputError(f"{target}: {error.strerror or error}") from None
    try:
        with os.fdopen(handle, "wb") as raw:
            with _compressed(target, raw) as stream:
                yield stream
            raw.flush()
            os.fsync(raw.fileno())
        # mkstemp makes private files; a data file has the permissions that open() would have given.
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _compressed(target: Path, raw: IO[bytes]) -> Iterator[IO[bytes]]:
    if target.suffix == ".gz":
        with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as zipped:
            yield cast(IO[bytes], zipped)
    elif target.suffix == ".zst":
        try:
            import zstandard
        except ImportError:
            raise InputError(f"{target}: writing .zst needs: pip install 'selfinstruct[zstd]'") from None
        with zstandard.ZstdCompressor().stream_writer(raw, closefd=False) as packed:
            yield cast(IO[bytes], packed)
    else:
        yield raw


def layout_of(format: Format, target: Path) -> Layout:
    """Return the layout to write: Parquet when the name says so, else the format's own."""
    return "parquet" if target.suffix == ".parquet" else format.layout


def save(target: Path, texts: Iterable[tuple[str, str]]) -> None:
    """Write small files beside `target`, each whole or not at all."""
    for name, content in texts:
        with created(target.parent / name) as stream:
            stream.write(content.encode())
