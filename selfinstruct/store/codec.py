"""How values are kept as text: records, completions and requests to JSON and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any, TypeVar

from selfinstruct.errors import StoreError
from selfinstruct.store.disk import DATABASE
from selfinstruct.values import (
    Candidate,
    Comparison,
    Completion,
    Decision,
    Dialogue,
    Instance,
    Message,
    Neighbour,
    Record,
    Rejection,
    Request,
    Response,
    Sampling,
    Task,
    ToolCall,
    ToolResult,
    Usage,
    members,
)

_T = TypeVar("_T")


def record_from(text: str) -> Record:
    """Turn stored JSON back into the record it was.

    Raises:
        StoreError: it is damaged.
    """
    kind, _, body = str(text).partition(" ")  # a damaged row may hold anything, also nothing
    decode = _RECORDS.get(kind)
    if decode is None:
        raise StoreError(f"{DATABASE} is damaged: a record of an unknown kind {kind[:20]!r}; restore it from a copy")
    return parsed(body, decode)


def decision_from(row: Mapping[str, Any]) -> Decision:
    """Turn a candidate's row into the decision it stores.

    A candidate's own rejection and the judge's are one in the row; its demonstrations are in the draw's.
    """
    with legible():
        record = None if row["record"] is None else record_from(row["record"])
        rejection = None
        if row["accepted"] is None:
            rejection = Rejection(row["filter"], row["reason"], parsed(row["measured"], dict))
        nearest = None if row["nearest"] is None else Neighbour(row["nearest"], row["similarity"])
        candidate = Candidate(record, row["text"], rejection, bool(row["truncated"]), row["logprob"])
        return Decision(row["id"], candidate, rejection, nearest)


def number(value: object) -> int:
    """Return a stored number.

    Raises:
        StoreError: it is something else.
    """
    if not isinstance(value, int):
        raise StoreError(f"{DATABASE} is damaged: {value!r} where a number was stored; restore it from a copy")
    return value


def parsed(text: str, decode: Callable[[Any], _T]) -> _T:
    """Return what `decode` makes of stored JSON.

    Raises:
        StoreError: it is damaged.
    """
    with legible():
        return decode(json.loads(text))


@contextmanager
def legible() -> Iterator[None]:
    """Say of what can't be read back, in whichever way it fails, that the database is damaged."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise StoreError(
            f"{DATABASE} is damaged: what was stored can't be read ({type(error).__name__}: {error}); "
            "restore it from a copy"
        ) from error


def task_from(row: Mapping[str, Any]) -> Task:
    """Turn a stored mapping back into the task it was."""
    return Task(**{**row, "instances": tuple(Instance(**instance) for instance in row["instances"])})


def _message(row: Mapping[str, Any]) -> Message:
    return Message(**{**row, "tool_calls": tuple(ToolCall(**call) for call in row["tool_calls"])})


def _dialogue(row: Mapping[str, Any]) -> Dialogue:
    return Dialogue(**{**row, "messages": tuple(_message(message) for message in row["messages"])})


def _comparison(row: Mapping[str, Any]) -> Comparison:
    prompt = row["prompt"] if isinstance(row["prompt"], str) else _dialogue(row["prompt"])
    return Comparison(**{**row, "prompt": prompt, "responses": tuple(Response(**r) for r in row["responses"])})


_RECORDS: Mapping[str, Callable[[Any], Record]] = {"task": task_from, "dialogue": _dialogue, "comparison": _comparison}


def completion_from(row: Mapping[str, Any]) -> Completion:
    """Turn a stored mapping back into the completion it was."""
    calls = tuple(ToolCall(**call) for call in row["tool_calls"])
    return Completion(**{**row, "usage": Usage(**row["usage"]), "tool_calls": calls})


def result_from(row: Mapping[str, Any]) -> ToolResult:
    """Turn a stored mapping back into the tool result it was."""
    return ToolResult(**{**row, "values": tuple(row["values"]), "items": tuple(row["items"])})


def record_text(record: Record) -> str:
    """Return the text that `record_from` turns back into `record`."""
    return f"{type(record).__name__.lower()} {dumps(record)}"


_UNSET = members(Request(Sampling(0))) | {"sampling": None}


def compact(request: Request) -> dict[str, Any]:
    """Leave out what is unset: a request is stored once per completion."""
    full = {key: value for key, value in members(request).items() if value != _UNSET[key]}
    full["sampling"] = {key: value for key, value in members(request.sampling).items() if value not in (None, ())}
    if request.messages:
        full["messages"] = [{key: value for key, value in members(m).items() if value} for m in request.messages]
    return full


def dumps(value: Any) -> str:
    """Return JSON that SQLite can hold; one of our values becomes an object of its fields."""
    # Lone surrogates (cut emoji) can't be stored as UTF-8; they are kept as escapes.
    text = _READABLE.encode(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = _ESCAPED.encode(value)
    return text


def _object(value: object) -> object:
    return members(value) if is_dataclass(value) else str(value)


_READABLE, _ESCAPED = (
    json.JSONEncoder(ensure_ascii=escaped, separators=(",", ":"), default=_object) for escaped in (False, True)
)


def plain(text: str) -> str:
    """Put U+FFFD in the place of lone surrogates, for columns of plain text; JSON keeps them as escapes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
