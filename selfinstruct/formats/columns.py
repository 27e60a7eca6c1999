"""The column types of rows that become a Parquet table.

Parquet has one type for each column, inside nested objects too, and can't tell null from absent. Rows are
JSON, so the types are merged row by row: an object has every key that any row has, whole numbers and
others are numbers. What does not fit is refused where it comes up, instead of being cast or left out.
Where every row has keys of its own (`FREE_FORM`) the column is of Parquet's JSON type, which `datasets`
gives back as the same object from 4.7 on; columns of all keys would be full of nulls, and a chat template
would print them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from selfinstruct.errors import InputError
from selfinstruct.formats.format import kind
from selfinstruct.formats.inputs import pyarrow

FREE_FORM = frozenset({"tools", "arguments"})
"""Keys whose objects and arrays are kept as JSON: tool schemas, and the arguments of a tool call."""
EXACT = 1 << 53
"""Whole numbers up to here are the same as floating-point numbers."""


@dataclass(frozen=True, slots=True)
class Type:
    """A JSON type: "null" (nothing known), "boolean", "integer", "number", "string", "array", "object", or "json".

    `largest` is the largest magnitude among the integers, `inner` holds an object's keys, or an array's
    element under "".
    """

    name: str
    largest: int = 0
    inner: Mapping[str, Type] = field(default_factory=dict)


NOTHING = Type("null")
_JSON = Type("json")


def type_of(value: Any) -> Type:
    """Return the type of a JSON value.

    Raises:
        InputError: the elements of an array have no type in common, or a whole number needs more than 64 bits.
    """
    if isinstance(value, dict):
        return Type("object", inner={key: _JSON if _free(key, each) else type_of(each) for key, each in value.items()})
    if isinstance(value, list):
        element = NOTHING
        for each in value:
            element = merged(element, type_of(each))
        return Type("array", inner={"": element})
    if isinstance(value, int) and not isinstance(value, bool):
        if not -(1 << 63) <= value < 1 << 63:
            raise InputError("a whole number beyond 64 bits does not fit a Parquet column")
        return Type("integer", abs(value))
    if value is None:
        return NOTHING
    return Type("number" if isinstance(value, float) else kind(value))


def _free(key: str, value: Any) -> bool:
    return key in FREE_FORM and isinstance(value, dict | list)


def cells(value: Any, type: Type) -> Any:
    """Return a value of a type with its free-form parts as JSON text, and null for an object where none has a key."""
    if type.name == "json" and value is not None:
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        return {key: cells(each, type.inner[key]) for key, each in value.items()} if type.inner else None
    return [cells(each, type.inner[""]) for each in value] if isinstance(value, list) else value


def merged(one: Type, other: Type, place: str = "") -> Type:
    """Return the type that holds the values of both; `place` is where they are, for the message.

    Raises:
        InputError: there is none.
    """
    if one.name == "null" or other.name == "null":
        return other if one.name == "null" else one
    if {one.name, other.name} <= {"integer", "number"}:
        largest = max(one.largest, other.largest)
        if one.name == other.name or largest <= EXACT:
            return Type("number" if "number" in (one.name, other.name) else "integer", largest)
    if one.name != other.name:
        raise InputError(
            f"{place or 'an element'} is {_a(other.name)} here and {_a(one.name)} elsewhere: a Parquet column has one "
            "type; write JSON lines"
        )
    if not one.inner and not other.inner:
        return one
    inner = {
        key: merged(one.inner.get(key, NOTHING), other.inner.get(key, NOTHING), f"{place}.{key}".strip("."))
        for key in dict.fromkeys((*one.inner, *other.inner))
    }
    return Type(one.name, inner=inner)


def _a(name: str) -> str:
    return f"an {name}" if name[0] in "aio" else f"a {name}"


def table(rows: list[Any], row: Type) -> Any:
    """Return the pyarrow table of rows of an object type."""
    arrow = pyarrow()
    # JSON columns are made of text columns: pyarrow can't build them from Python values.
    plain = arrow.Table.from_pylist([cells(each, row) or {} for each in rows], _schema(row, arrow.string()))
    return plain.cast(schema(row))


def schema(row: Type) -> Any:
    """Return the pyarrow schema of rows of an object type; rows without a key make a table without columns."""
    return _schema(row, pyarrow().json_())


def _schema(row: Type, json: Any) -> Any:
    return pyarrow().schema([(key, _column(each, json)) for key, each in row.inner.items()])


def _column(type: Type, json: Any) -> Any:
    arrow = pyarrow()
    if type.name == "json":
        return json
    if type.name == "array":
        return arrow.list_(_column(type.inner[""], json))
    # Parquet has no object without keys. Arrow's null type would do for it and for what is always null, but pyarrow
    # 26 can't cast a null column in objects in arrays, such as the ranks of a tree.
    if type.name == "object" and type.inner:
        return arrow.struct([(key, _column(each, json)) for key, each in type.inner.items()])
    plain = {"boolean": arrow.bool_, "integer": arrow.int64, "number": arrow.float64, "string": arrow.string}
    return plain.get(type.name, arrow.string)()
