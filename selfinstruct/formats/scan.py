"""JSON values out of a byte stream, one at a time, in constant memory, going on after a bad one.

A library such as ijson stops for good at the first fault; a data file of ten gigabytes has faults, and
a person wants the line of each and the rest of the rows. So the boundaries of the values are found
here (strings and brackets only) and the standard library reads each value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from selfinstruct.errors import InputError

CHUNK = 1 << 20
LONGEST_ROW = 64 << 20
"""Bytes (JSON lines) or characters (JSON) of one row; a longer one is a fault of the file, not a record."""


@dataclass(frozen=True, slots=True)
class Item:
    """One value of a file, or why it can't be read; `place` is its line or row number, from 1."""

    place: int
    value: Any = None
    fault: str = ""


def _unique_keys(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(entries)
    if len(found) != len(entries):
        seen: set[str] = set()
        double = next(key for key, _ in entries if key in seen or seen.add(key))
        raise ValueError(f'key "{double}" is there twice')
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse(source: str) -> Any:
    """Read one JSON value.

    Raises:
        InputError: with the reason: not JSON, a key twice, NaN, nested too deep, not Unicode, not UTF-8.
    """
    try:
        # Undecodable bytes come here as lone surrogates (surrogateescape); they can't be encoded.
        source.encode()
    except UnicodeEncodeError as error:
        byte = ord(source[error.start]) - 0xDC00
        raise InputError(
            f"not UTF-8 (byte 0x{byte & 0xFF:02x} at character {error.start + 1}); "
            "convert the file first, for Chinese text often: iconv -f GB18030 -t UTF-8"
        ) from None
    try:
        value = _DECODER.decode(source)
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise InputError("nested too deep to be a record") from None
    except ValueError as error:
        raise InputError(str(error)) from None
    if _ESCAPED_SURROGATE.search(source):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise InputError("holds half of a surrogate pair (\\ud800 to \\udfff), which is not Unicode text") from None
    return value


def item(place: int, source: str) -> Item:
    """Return the value of one piece of JSON text, or its fault."""
    try:
        return Item(place, parse(source))
    except InputError as error:
        return Item(place, fault=str(error))


def lines(stream: IO[bytes], longest: int | None = None) -> Iterator[Item]:
    """Read JSON lines; blank lines are no rows. Only a newline ends a line (U+2028 is text)."""
    longest = LONGEST_ROW if longest is None else longest
    place = 0
    while line := stream.readline(longest + 1):
        place += 1
        if len(line) > longest and not line.endswith(b"\n"):
            size = len(line)
            while (more := stream.readline(CHUNK)) and not more.endswith(b"\n"):
                size += len(more)
            yield Item(place, fault=f"a line of more than {size >> 20} MiB: a row can't be longer than {longest >> 20} MiB")
            continue
        if not line.isspace():
            cut = "" if line.endswith(b"\n") else " (the last line has no newline: the file may be cut)"
            found = item(place, line.decode(errors="surrogateescape").rstrip("\r\n"))
            yield Item(place, fault=found.fault + cut) if found.fault and cut else found


_STRUCTURE = re.compile(r'["\[\]{}]')
_STRING_END = re.compile(r'(?:[^"\\]|\\.)*+"', re.DOTALL)
_GAP = re.compile(r"[\s,]*")


class _Text:
    """A window of decoded text over a byte stream."""

    def __init__(self, stream: IO[bytes]) -> None:
        import codecs

        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape").decode
        self.window = ""
        self.line = 1
        self.ended = False

    def more(self) -> bool:
        """Add a chunk to the window; False at the end of the file."""
        if self.ended:
            return False
        chunk = self._stream.read(CHUNK)
        self.ended = not chunk
        self.window += self._decode(chunk, not chunk)
        return not self.ended

    def drop(self, count: int) -> None:
        """Forget the first characters of the window."""
        self.line += self.window.count("\n", 0, count)
        self.window = self.window[count:]


def values(stream: IO[bytes], longest: int | None = None) -> Iterator[Item]:
    """Read the elements of one JSON array, or JSON values one after another, on any number of lines."""
    longest = LONGEST_ROW if longest is None else longest
    source = _Text(stream)
    source.more()
    _skip(source)
    array = source.window.startswith("[")
    if array:
        source.drop(1)
    while True:
        _skip(source)
        if not source.window:
            if array:
                yield Item(source.line, fault="the array is not closed: the file may be cut")
            return
        if source.window[0] == "]":
            if not array:
                yield Item(source.line, fault="a closing ] that nothing opened")
                source.drop(1)
                continue
            source.drop(1)
            _skip(source)
            if source.window:
                yield Item(source.line, fault="text after the end of the array")
            return
        yield from _next(source, longest)


def _skip(source: _Text) -> None:
    while True:
        gap = _GAP.match(source.window)
        source.drop(gap.end() if gap else 0)
        if source.window or not source.more():
            return


def _next(source: _Text, longest: int) -> Iterator[Item]:
    """Yield the value at the start of the window and drop it."""
    place = source.line
    scan = _Scan()
    dropped = 0
    while True:
        end = scan.feed(source.window)
        if end is not None:
            break
        if len(source.window) > longest:
            # Too long to be a row: keep what the scan has not looked at, go on to find the end.
            dropped += scan.position
            source.drop(scan.position)
            scan.position = 0
        if not source.more():
            yield Item(place, fault="the file ends inside a record: it may be cut")
            source.drop(len(source.window))
            return
    if dropped:
        yield Item(place, fault=f"a record of more than {dropped >> 20} MiB: a row can't be longer than {longest >> 20} MiB")
    else:
        yield item(place, source.window[:end])
    source.drop(end)


class _Scan:
    """Finds where the value at the start of a growing window ends."""

    def __init__(self) -> None:
        self.position = 0
        self._depth = 0
        self._in_string = False
        self._started = False

    def feed(self, window: str) -> int | None:
        """Return the end of the value, or None when the window does not hold it yet."""
        if not self._started and window[0] not in '"[{':
            # A bare word or number, or garbage: up to the next separator.
            end = re.search(r"[,\]\n]", window)
            return max(end.start(), 1) if end else None
        self._started = True
        while True:
            if self._in_string:
                closing = _STRING_END.match(window, self.position)
                if closing is None:
                    # Stay before a lone backslash at the end, and skip the whole of what was seen.
                    tail = re.compile(r"(?:[^\"\\]|\\.)*+", re.DOTALL).match(window, self.position)
                    self.position = tail.end() if tail else self.position
                    return None
                self.position = closing.end()
                self._in_string = False
                if self._depth == 0:
                    return self.position
                continue
            found = _STRUCTURE.search(window, self.position)
            if found is None:
                self.position = len(window)
                return None
            self.position = found.end()
            if found[0] == '"':
                self._in_string = True
            elif found[0] in "[{":
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth <= 0:
                    return self.position
