"""Rows into data files, whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Protocol, cast

from selfinstruct.errors import InputError
from selfinstruct.formats import columns
from selfinstruct.formats.format import Format, Layout, Row, kind
from selfinstruct.formats.inputs import pyarrow, zstd


class RowWriter(Protocol):
    """Takes the rows of one record at a time; `close` ends the file."""

    def add(self, rows: list[Row]) -> None:
        """Write the rows, all or, when one can't be written, none."""

    def close(self) -> None:
        """Write what ends the file."""


def _json(row: Row, format: Format, indent: int | None = None) -> str:
    return json.dumps(row, ensure_ascii=format.ascii, allow_nan=False, indent=indent)


class _Lines:
    def __init__(self, stream: IO[bytes], format: Format) -> None:
        self._stream, self._format = stream, format

    def add(self, rows: list[Row]) -> None:
        self._stream.write("".join(_json(row, self._format) + "\n" for row in rows).encode())

    def close(self) -> None:
        pass


class _Array:
    """An array that is byte for byte what `json.dump` of the whole list writes, and a newline when indented."""

    def __init__(self, stream: IO[bytes], format: Format) -> None:
        self._stream, self._format = stream, format
        self._margin = "" if format.indent is None else "\n" + " " * format.indent
        self._between = "," + (self._margin or " ")
        self._count = 0

    def add(self, rows: list[Row]) -> None:
        bodies = [_json(row, self._format, self._format.indent) for row in rows]
        if self._margin:
            bodies = [body.replace("\n", self._margin) for body in bodies]
        lead = self._between if self._count else "[" + self._margin
        self._stream.write((lead + self._between.join(bodies)).encode())
        self._count += len(rows)

    def close(self) -> None:
        end = "[]" if not self._count else "\n]" if self._margin else "]"
        self._stream.write((end + ("\n" if self._margin else "")).encode())


class _Object:
    def __init__(self, stream: IO[bytes], format: Format) -> None:
        self._stream, self._format = stream, format
        self._count = 0

    def add(self, rows: list[Row]) -> None:
        if self._count + len(rows) > 1:
            raise InputError("this format is one record a file; the JSON lines form holds many")
        self._stream.write(_json(rows[0], self._format, self._format.indent).encode())
        self._count += 1

    def close(self) -> None:
        pass


class _Csv:
    def __init__(self, stream: IO[bytes], format: Format) -> None:
        self._stream = stream
        self._header: list[str] = []

    def add(self, rows: list[Row]) -> None:
        header = self._header or list(rows[0])
        for row in rows:
            if not isinstance(row, dict) or not all(isinstance(value, str) for value in row.values()):
                raise InputError("CSV holds plain text columns only; write JSON lines or Parquet")
            if list(row) != header:
                raise InputError(f"CSV rows have the same columns: {', '.join(header)}, found {', '.join(row)}")
        text = io.StringIO(newline="")
        # A lone carriage return would read back as a row's end in some readers; csv quotes it.
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([*([] if self._header else [header]), *(row.values() for row in rows)])
        self._stream.write(text.getvalue().encode())
        self._header = header

    def close(self) -> None:
        pass


class _Parquet:
    """Rows laid down as JSON lines until all column types are known, then written in groups of 1024."""

    def __init__(self, stream: IO[bytes], laid: IO[bytes]) -> None:
        self._arrow = pyarrow()
        self._stream = stream
        self._laid = laid
        self._columns = columns.NOTHING

    def add(self, rows: list[Row]) -> None:
        lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()
        found = self._columns
        for row in rows:
            if not isinstance(row, dict):
                raise InputError(f"a Parquet row has named columns, here a row is an {kind(row)}: write JSON lines")
            found = columns.merged(found, columns.type_of(row))
        self._columns = found
        self._laid.write(lines)

    def close(self) -> None:
        self._laid.seek(0)
        schema = columns.schema(self._columns)
        with self._arrow.parquet.ParquetWriter(self._stream, schema, compression="zstd") as file:
            while lines := list(itertools.islice(self._laid, 1024)):
                file.write_table(columns.table([json.loads(line) for line in lines], self._columns))


def row_writer(stack: contextlib.ExitStack, stream: IO[bytes], format: Format, layout: Layout) -> RowWriter:
    """Return the writer of a layout on a stream; what it needs meanwhile is closed with `stack`."""
    if layout == "parquet":
        return _Parquet(stream, stack.enter_context(tempfile.TemporaryFile()))
    writers: dict[Layout, Callable[[IO[bytes], Format], RowWriter]]
    writers = {"json": _Array, "jsonl": _Lines, "object": _Object, "csv": _Csv}
    return writers[layout](stream, format)


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
        module = zstd(str(target))
        with module.ZstdFile(raw, "w", options={module.CompressionParameter.checksum_flag: True}) as packed:
            yield cast(IO[bytes], packed)
    else:
        yield raw


def apart(side: str | os.PathLike[str], **others: str | os.PathLike[str]) -> None:
    """Check that a file written on the side would replace none of the others, given by what they are.

    Raises:
        InputError: it is one of them.
    """
    for what, path in others.items():
        if str(path) != "-" and os.path.realpath(side) == os.path.realpath(path):
            raise InputError(f"{side}: the list of what was found can't be the {what} itself; name another file")


def layout_of(format: Format, target: Path) -> Layout:
    """Return the layout to write: Parquet when the name says so, else the format's own."""
    return "parquet" if target.suffix == ".parquet" else format.layout


def save(target: Path, texts: Iterable[tuple[str, str]]) -> None:
    """Write small files beside `target`, each whole or not at all."""
    for name, content in texts:
        with created(target.parent / name) as stream:
            stream.write(content.encode())
