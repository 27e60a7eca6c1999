"""Tools without a process behind them, and the real samples where they are at hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from selfinstruct.tools import Tool, ToolResult
from selfinstruct.tools.tool import Style, text_parameters

MOSS = Path(__file__).resolve().parents[3] / "shared" / "data" / "moss"
real = pytest.mark.skipif(not MOSS.is_dir(), reason="the samples of MOSS are not here")


async def echo(arguments: Mapping[str, Any]) -> ToolResult:
    return ToolResult(str(dict(arguments)))


def tool(name: str, api: str, style: Style, **parameters: str) -> Tool:
    return Tool(name, name.capitalize(), api, "", text_parameters(**parameters), echo, style=style)


TOOLS = (
    tool("calculator", "Calculate", "value", expression="e"),
    tool("solver", "Solve", "lines", equation="e"),
    tool("search", "Search", "items", query="q"),
    tool("text_to_image", "Text2Image", "sentence", description="d"),
    Tool(
        "exchange",
        "Exchange",
        "Exchange",
        "",
        {
            "type": "object",
            "properties": {"amount": {"type": "number"}, "currency": {"type": "string"}, "days": {"type": "array"}},
            "required": ["amount"],
        },
        echo,
    ),
)


def turns(*folders: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yield (file and turn, turn) of MOSS's samples."""
    for folder in folders:
        for path in sorted((MOSS / folder).glob("*.json")):
            for number, turn in json.loads(path.read_text(encoding="utf-8"))["chat"].items():
                yield f"{path.name} {number}", turn


def inner(text: str) -> str:
    """Return a field without its markers."""
    return text.partition("|>:")[2].rpartition("<eo")[0].strip()
