"""Rows into data files, whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol, cast

from selfinstruct.errors import InputError
from selfinstruct.formats.format import Format, Layout, Row
from selfinstruct.formats.inputs import pyarrow, zstd


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
        self._arrow = pyarrow()
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

    A link stays one: the file it leads to is replaced.
    A name in .gz or .zst is compressed, without a time stamp: equal rows, equal bytes.

    Raises:
        InputError: the folder can't be written, `target` is a folder, device or pipe, or the compression is not
            installed.
    """
    try:
        place = target.resolve()
        # A device can't be replaced by a file: for root the rename would succeed, and /dev/null be a file for all.
        if place.exists() and (not place.is_file() or _is_open(place)):
            raise InputError(f'{target} is not a regular file: name a file, or "-" for stdout')
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{place.name}.", suffix=".part", dir=place.parent)
    except OSError as error:
        raise InputError(f"{target}: {error.strerror or error}") from None
    except RuntimeError:
        raise InputError(f"{target}: the link leads in a circle") from None
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
        Path(temporary).replace(place)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _is_open(place: Path) -> bool:
    """Tell whether the file is where our own stdout or stderr goes: `-o /dev/stdout >log`."""
    state = place.stat()
    for number in (1, 2):
        with contextlib.suppress(OSError):  # that stream is closed
            if os.path.samestat(state, os.fstat(number)):
                return True
    return False


@contextlib.contextmanager
def _compressed(target: Path, raw: IO[bytes]) -> Iterator[IO[bytes]]:
    if target.suffix == ".gz":
        with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as zipped:
            yield cast(IO[bytes], zipped)
    elif target.suffix == ".zst":
        with zstd(str(target)).ZstdFile(raw, "w") as packed:
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
