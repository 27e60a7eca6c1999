"""What there is to say about a format, measured by writing and reading: for `list formats` and the docs."""

from __future__ import annotations

from typing import Any

from selfinstruct.errors import InputError
from selfinstruct.formats import shape
from selfinstruct.formats.format import Format, Row
from selfinstruct.values import Comparison, Dialogue, Instance, Message, Record, Response, Task, ToolCall

# One record of each kind with everything that may be lost; what a format does with them is measured, not told.
PROBES: dict[str, Record] = {
    "task": Task("Add.", (Instance("1 2", "3"),), True, "t1", "add"),
    "dialogue": Dialogue(
        (Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "Bye"), Message("assistant", "Bye!")),
        topic="greetings",
        id="d1",
    ),
    "system prompt": Dialogue((Message("user", "Hi"), Message("assistant", "Hello.")), system="Be brief.", id="d1"),
    "thoughts": Dialogue((Message("user", "Hi"), Message("assistant", "Hello.", "A greeting.")), id="d1"),
    "tool turns": Dialogue(
        (
            Message("user", "2*3?"),
            Message("assistant", "", "", (ToolCall("Calculate", '{"expression": "2*3"}'),)),
            Message("tool", "6"),
            Message("assistant", "It is 6."),
        ),
        id="d1",
    ),
    "two responses": Comparison("Hi", (Response("Hello.", 2.0), Response("What?", -1.0)), "c1"),
    "ranks": Comparison("Hi", (Response("Hello.", rank=0), Response("Hm.", rank=1), Response("No.", rank=2)), "c1"),
}


def becomes(format: Format, record: Record) -> str:
    """Return what writing the record in the format loses: "whole", labels, parts, or "refused"."""
    try:
        parts = shape.split(record, format.kinds)
        rows = format.encode(parts) if format.group_records else [row for part in parts for row in format.encode(part)]
        back = format.decode(rows) if format.group_rows else [found for row in rows for found in format.decode(row)]
        loss = shape.compare(record, back)
    except InputError as error:
        return f"refused: {error}"
    if loss.corrupt:
        return f"refused: {loss.corrupt}"
    if loss.content:
        return f"only with --lossy, without {', '.join(loss.content)}"
    return f"without {', '.join(loss.labels)}" if loss.labels else "whole"


def example_rows(format: Format) -> list[Row]:
    """Return the format's example as rows."""
    return format.encode([format.example] if format.group_records else format.example)


def describe(format: Format) -> dict[str, Any]:
    """Return plain JSON values: name, summary, layout, what it holds, keys, rules, source, example rows, losses."""
    return {
        "format": format.name,
        "summary": format.summary,
        "layout": format.layout,
        "holds": sorted(kind.__name__.lower() for kind in format.kinds),
        "keys": list(format.keys),
        "rules": format.works,
        "source": format.source,
        "example": example_rows(format),
        "becomes": {name: becomes(format, record) for name, record in PROBES.items()},
    }
