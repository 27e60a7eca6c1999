"""What a format is: rows of a file on one side, records on the other, and the rules between them.

A **row** is one JSON value of a file (nearly always an object). `decode` turns a row into records,
`encode` a record into rows; both raise `InputError` with the reason alone, and whoever holds the
file adds the place. Family modules list their formats in `FORMATS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from selfinstruct.errors import InputError
from selfinstruct.values import Record

Row = Any
Layout = Literal["json", "jsonl", "object", "csv", "parquet"]


@dataclass(frozen=True, slots=True)
class Format:
    """One layout of the field, both ways.

    `layout` is what is written: "json" (an array), "jsonl", "object" (a file of one record), "csv" or
    "parquet"; every layout is read whatever the format. `kinds` are the record types held, `keys` all
    the keys that mean something (others are counted when read): "messages.role" is a key of the object, or
    of the objects in the array, under `messages`, "human_N" any of human_0, human_1, ... `matches` scores a
    row: 0 can't be ours, 1 can be, more is more telling. `example` is a record that the format holds whole.
    """

    name: str
    summary: str
    source: str
    """Paper, repository file or card that the shape comes from."""
    layout: Layout
    kinds: frozenset[type[Record]]
    keys: tuple[str, ...]
    decode: Callable[[Row], list[Record]]
    encode: Callable[[Any], list[Row]]
    matches: Callable[[Row], int]
    example: Record
    works: str = ""
    """What a user of the format checks: the rules `encode` applies before a row is written."""
    indent: int | None = 2
    ascii: bool = False
    group_rows: Callable[[Row], Hashable] | None = None
    """Adjacent rows with one key are decoded together, as a list (messages of one tree)."""
    group_records: Callable[[Record], Hashable] | None = None
    """Adjacent records with one key are encoded together, as a list (threads of one tree)."""
    unique: str = ""
    """The row key that must not repeat in a file; the rows of a group share it."""
    uniform: bool = False
    """All rows of a file have the same keys with the same types (one key family per file)."""
    list_rows: bool = False
    """Each row is itself an array, so a file of one line is one row."""
    directory: Literal["", "train/eval"] = ""
    """Not "": the target is a folder with train.json and eval.json."""
    beside: Callable[[Path], Mapping[str, str]] | None = None
    """Files that go with the data file: name -> text, given the data file's path."""

    def rows(self, records: Sequence[Record]) -> list[Row]:
        """Return the rows of records (of one group, where records are grouped).

        Raises:
            InputError: the format can't hold one of them.
        """
        if self.group_records is not None:
            return self.encode(records)
        return [row for record in records for row in self.encode(record)]

    def records(self, rows: Sequence[Row]) -> list[Record]:
        """Return the records of rows (of one group, where rows are grouped).

        Raises:
            InputError: a row is not of this format.
        """
        if self.group_rows is not None:
            return self.decode(rows)
        return [record for row in rows for record in self.decode(row)]

    def unknown(self, row: Row) -> Iterator[str]:
        """Yield the keys of a row that mean nothing in the format."""
        return _unknown(*_known(self.keys), row, "")


@cache
def _known(keys: tuple[str, ...]) -> tuple[frozenset[str], frozenset[str]]:
    return frozenset(keys), frozenset(key.rpartition(".")[0] for key in keys)


def _unknown(keys: frozenset[str], containers: frozenset[str], value: Any, place: str) -> Iterator[str]:
    for each in value if isinstance(value, list) else [value]:
        for key, inner in each.items() if isinstance(each, dict) else ():
            path = place + key
            if path not in keys:
                path = path.rstrip("0123456789") + "N"
            if path not in keys:
                yield place + key
            elif path in containers:
                yield from _unknown(keys, containers, inner, f"{path}.")


def kind(value: Any) -> str:
    """Return the JSON name of a value's type, for messages."""
    if value is None:
        return "null"
    names = {bool: "boolean", str: "string", int: "number", float: "number", list: "array", dict: "object"}
    return names.get(type(value), type(value).__name__)


def fields(row: Row) -> Mapping[str, Any]:
    """Return the row as an object.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(row, dict):
        raise InputError(f"expected an object, found {kind(row)}")
    return row


def text(row: Mapping[str, Any], key: str, default: str | None = None) -> str:
    """Return the string under `key`; null counts as absent, and absent as `default` when there is one.

    Raises:
        InputError: there is no such key, or its value is not a string.
    """
    value = row.get(key)
    if value is None and default is not None:
        return default
    if value is None and key not in row:
        near = ", ".join(map(str, list(row)[:8])) or "none"
        raise InputError(f'key "{key}" is missing (keys here: {near})')
    if not isinstance(value, str):
        raise InputError(f'"{key}" must be a string, found {kind(value)}')
    return value


def identity(row: Mapping[str, Any], key: str) -> str:
    """Return the id under `key` as text, "" when it is absent or null; files have numbers as well as strings.

    Raises:
        InputError: the value is something else.
    """
    value = row.get(key)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise InputError(f'"{key}" must be a number or a string, found {kind(value)}')
    return str(value)


def boolean(row: Mapping[str, Any], key: str) -> bool:
    """Return the boolean under `key`.

    Raises:
        InputError: it is missing or something else.
    """
    value = row.get(key)
    if not isinstance(value, bool):
        raise InputError(f'"{key}" must be true or false, found {kind(value)}')
    return value


def integer(row: Mapping[str, Any], key: str) -> int | None:
    """Return the whole number under `key`, or None when it is absent or null.

    Raises:
        InputError: the value is something else.
    """
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f'"{key}" must be a whole number, found {kind(value)}')
    return value


def number(row: Mapping[str, Any], key: str) -> float | None:
    """Return the number under `key`, or None when it is absent or null.

    Raises:
        InputError: the value is something else.
    """
    value = row.get(key)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InputError(f'"{key}" must be a number, found {kind(value)}')
    return float(value)


def items(row: Mapping[str, Any], key: str) -> list[Any]:
    """Return the list under `key`.

    Raises:
        InputError: it is missing or not a list.
    """
    value = row.get(key)
    if not isinstance(value, list):
        raise InputError(f'"{key}" must be an array, found {kind(value) if key in row else "nothing"}')
    return value


def has(row: Row, *keys: str) -> bool:
    """Tell whether the row is an object with all the keys."""
    return isinstance(row, dict) and all(key in row for key in keys)


def strings(row: Row, *keys: str) -> bool:
    """Tell whether the row is an object with strings under all the keys."""
    return isinstance(row, dict) and all(isinstance(row.get(key), str) for key in keys)


def rest(row: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """Return the entries under the given keys that are there and not null: what `extra` keeps."""
    return {key: row[key] for key in keys if row.get(key) is not None}


def compact(value: Any) -> str:
    """Return one-line JSON text, the same for equal values whatever their key order."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
