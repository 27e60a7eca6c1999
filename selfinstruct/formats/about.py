"""What there is to say about a format, measured by writing and reading: for `list formats` and the docs."""

from __future__ import annotations

import json
from typing import Any

from selfinstruct.errors import InputError
from selfinstruct.formats import shape
from selfinstruct.formats.format import Format
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
            Message("assistant", "", "", (ToolCall("Calculate", '{"expression": "2*3"}', "a1"),)),
            Message("tool", "6", name="Calculate", tool_call_id="a1"),
            Message("assistant", "It is 6."),
        ),
        id="d1",
    ),
    "parallel tool calls": Dialogue(
        (
            Message("user", "2*3, and who wrote Faust?"),
            Message(
                "assistant",
                "",
                "One sum, one search.",
                (ToolCall("Calculate", '{"expression": "2*3"}'), ToolCall("Search", '{"query": "Faust author"}')),
            ),
            Message("tool", "6", name="Calculate"),
            Message("tool", "<|1|>: 'Goethe'", name="Search"),
            Message("assistant", "6; Goethe."),
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
        loss = shape.compare(record, format.records(format.rows(parts)))
    except InputError as error:
        return f"refused: {error}"
    if loss.corrupt:
        return f"refused: {loss.corrupt}"
    if loss.content:
        return f"only with --lossy, without {', '.join(loss.content)}"
    return f"without {', '.join(loss.labels)}" if loss.labels else "whole"


LAYOUTS = {
    "json": "JSON array",
    "jsonl": "JSON lines",
    "object": "one JSON object",
    "csv": "CSV",
    "parquet": "Parquet",
}


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
        "example": format.rows([format.example]),
        "becomes": {name: becomes(format, record) for name, record in PROBES.items()},
    }


def card(format: Format) -> str:
    """Return what `describe` says as lines of text."""
    told = describe(format)
    shape = LAYOUTS[format.layout] + (" (a folder with train.json and eval.json)" if format.directory else "")
    lines = {
        "shape": f"{shape} of {', '.join(f'{kind}s' for kind in told['holds'])}",
        "keys": ", ".join(told["keys"]),
        "rules": told["rules"],
        "example": "\n".join(json.dumps(row, ensure_ascii=False) for row in told["example"]),
        **told["becomes"],
    }
    width = max(map(len, lines)) + 2
    body = [
        f"  {name if first else '':<{width}}{line}"
        for name, text in lines.items()
        for first, line in zip((True, *(False for _ in text)), text.split("\n"), strict=False)
    ]
    return "\n".join([f"{format.name}: {format.summary}", *body])
