"""JSON values out of a byte stream, one at a time, in constant memory, going on after a bad one.

A library such as ijson stops for good at the first fault; a data file of ten gigabytes has faults, and
a person wants the line of each and the rest of the rows. So the boundaries of the values are found
here (strings and brackets only) and the standard library reads each value.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from selfinstruct.errors import InputError

CHUNK = 1 << 20
LONGEST_ROW = 64 << 20
"""Bytes (JSON lines) or characters (JSON) of one row; a longer one is a fault of the file, not a record."""
DEEPEST_ROW = 250
"""Arrays and objects inside one another; a tree of replies takes two a message."""


@dataclass(frozen=True, slots=True)
class Item:
    """One value of a file, or why it can't be read; `place` is its line or row number, from 1."""

    place: int
    value: Any = None
    fault: str = ""


def _unique_keys(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(entries)
    if len(found) != len(entries):
        names = [key for key, _ in entries]
        double = next(key for key in names if names.count(key) > 1)
        raise ValueError(f'key "{double}" is there twice')
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"the number {number} is too large")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_float=_finite)
_TOO_DEEP = f"nested deeper than {DEEPEST_ROW} levels: no record"
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse(source: str) -> Any:
    """Read one JSON value.

    Raises:
        InputError: with the reason: not JSON, a key twice, NaN, a number too large, nested too deep, not Unicode,
            not UTF-8.
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
        raise InputError(f"not JSON: {error.msg.removesuffix(' at')} at character {error.pos + 1}") from None
    except RecursionError:
        raise InputError(_TOO_DEEP) from None
    except ValueError as error:
        # Python's own limit on the digits of a whole number, whose message is for programmers.
        reason = "a whole number of thousands of digits" if "int_max_str_digits" in str(error) else str(error)
        raise InputError(reason) from None
    if source.count("{") + source.count("[") > DEEPEST_ROW and depth(value) > DEEPEST_ROW:
        raise InputError(_TOO_DEEP)
    if _ESCAPED_SURROGATE.search(source):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise InputError("holds half of a surrogate pair (\\ud800 to \\udfff), which is not Unicode text") from None
    return value


def after_first(source: str) -> str:
    """Return what follows the JSON value that a text starts with; "" where it starts with none, or not a whole one."""
    try:
        return source[_DECODER.raw_decode(source)[1] :]
    except (ValueError, RecursionError):
        return ""


def depth(value: Any) -> int:
    """Return how many arrays and objects are inside one another at the deepest place."""
    level, found = [value], 0
    while level := [each for each in level if isinstance(each, dict | list)]:
        found += 1
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return found


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
            yield Item(
                place, fault=f"a line of more than {size >> 20} MiB: a row can't be longer than {longest >> 20} MiB"
            )
            continue
        if not line.isspace():
            cut = "" if line.endswith(b"\n") else " (the last line has no newline: the file may be cut)"
            found = item(place, line.decode(errors="surrogateescape").rstrip("\r\n"))
            yield Item(place, fault=found.fault + cut) if found.fault and cut else found


_STRUCTURE = re.compile(r'["\[\]{}]')
_STRING = re.compile(r'(?:[^"\\]++|\\.)*+', re.DOTALL)
_SEPARATOR = re.compile(r"[,\]\n]")
_GAP = re.compile(r"[\s,]*")


class _Text:
    """A window of decoded text over a byte stream, read from `at` on."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape").decode
        self._ended = False
        self._line = 1
        self._counted = 0
        self.window = ""
        self.at = 0
        self.cut = False
        """The file ended inside a value."""

    def more(self) -> bool:
        """Add a chunk to the window, whose used part is forgotten; False at the end of the file."""
        if self._ended:
            return False
        chunk = self._stream.read(CHUNK)
        self._ended = not chunk
        self.line()
        self.window = self.window[self.at :] + self._decode(chunk, not chunk)
        self.at = self._counted = 0
        return not self._ended

    def line(self) -> int:
        """Return the number of the line that `at` is on."""
        self._line += self.window.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line

    def skip(self) -> str:
        """Go past spaces and commas and return the character there, "" at the end of the file."""
        while True:
            gap = _GAP.match(self.window, self.at)
            self.at = gap.end() if gap else self.at
            if self.at < len(self.window):
                return self.window[self.at]
            if not self.more():
                return ""


def values(stream: IO[bytes], longest: int | None = None) -> Iterator[Item]:
    """Read the elements of one JSON array, or JSON values one after another, on any number of lines."""
    longest = LONGEST_ROW if longest is None else longest
    source = _Text(stream)
    array = source.skip() == "["
    source.at += array
    while first := source.skip():
        if first != "]":
            yield _next(source, longest)
            continue
        source.at += 1
        if not array:
            yield Item(source.line(), fault="a closing ] that nothing opened")
        elif source.skip():
            yield Item(source.line(), fault="text after the end of the array")
            return
        else:
            return
    if array and not source.cut:
        yield Item(source.line(), fault="the array is not closed: the file may be cut")


def _next(source: _Text, longest: int) -> Item:
    """Return the value that starts at `source.at` and go past it."""
    place = source.line()
    try:
        end = _DECODER.raw_decode(source.window, source.at)[1]
    except (ValueError, RecursionError):
        # Not whole yet, or bad: only its brackets and strings tell where it ends.
        end = 0
    # A bare number or word may go on in the next chunk, and after a dot.
    if end and source.window[end - 1] in "]}":
        found = item(place, source.window[source.at : end])
        source.at = end
        return found
    start = source.at
    scan = _Scan(source.at)
    passed = 0
    while True:
        scanned = scan.feed(source.window, start)
        if scanned is not None:
            break
        if passed or len(source.window) - source.at > longest:
            # Too long to be a row: forget what was looked at, go on only to find the end.
            passed += scan.position - source.at
            source.at = scan.position
        before = source.at
        if not source.more():
            source.at = len(source.window)
            source.cut = True
            return Item(place, fault="the file ends inside a record: it may be cut")
        scan.position -= before
        start = 0
    found = (
        Item(place, fault=f"a record of more than {passed >> 20} MiB: a row can't be longer than {longest >> 20} MiB")
        if passed
        else item(place, source.window[source.at : scanned])
    )
    source.at = scanned
    return found


class _Scan:
    """Finds where a value ends in a growing window, looking at each character once."""

    def __init__(self, position: int) -> None:
        self.position = position
        self._depth = 0
        self._in_string = False
        self._started = False

    def feed(self, window: str, start: int) -> int | None:
        """Return the end of the value that starts at `start`, or None when the window does not hold it yet."""
        if not self._started and window[start] not in '"[{':
            # A bare word or number, or garbage: up to the next separator.
            end = _SEPARATOR.search(window, start + 1)
            return end.start() if end else None
        self._started = True
        while True:
            if self._in_string:
                inside = _STRING.match(window, self.position)
                self.position = inside.end() if inside else self.position
                if window[self.position : self.position + 1] != '"':
                    return None
                self.position += 1
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
