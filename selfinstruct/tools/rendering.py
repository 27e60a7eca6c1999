r"""Results as MOSS writes them, byte for byte (OpenLMLab/MOSS c810e0b, SFT_data/conversations).

    Calculate("60*0.85") => '51.0'                       a value
    Solve("x+y=30;x-y=8") =>                             lines
    x = 19
    y = 11
    Search("tides") =>                                   items; the counter runs on through the turn
    <|1|>: 'snippet, as Python writes a string'
    Image generated successfully.                        a sentence, without its command

What stands here is the body between `<|Results|>:` and `<eor>`, which `formats.moss` writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from selfinstruct.tools.commands import NONE, Call
from selfinstruct.values import ToolResult

NO_RESULT = "No result."
PICTURE = "Image generated successfully."

_MARKER = re.compile(r"<\|[^<>|\n]{1,20}\|>|<eo[htcrm]>")
_CITATION = re.compile(r"<\|(\d{1,3})\|>")


def render_results(answered: Iterable[tuple[Call, ToolResult]]) -> str:
    """Return the results of a turn's commands, in their order; `None` when there are none."""
    blocks: list[str] = []
    items = 0
    for call, result in answered:
        if call.tool.style == "items":
            blocks.append(render_items(call.text, result, items + 1))
            items += len(result.items)
        elif call.tool.style == "lines":
            blocks.append(render_lines(call.text, result))
        elif call.tool.style == "sentence":
            blocks.append(render_sentence(result))
        else:
            blocks.append(render_value(call.text, result))
    return "\n".join(blocks) or NONE


def render_value(command: str, result: ToolResult) -> str:
    """Return `Calculate("60*0.85") => '51.0'`."""
    return f"{command} => {(NO_RESULT if result.failed else plain(result.text))!r}"


def render_lines(command: str, result: ToolResult) -> str:
    """Return `Solve("2x=52") =>` and the lines of the result."""
    return f"{command} =>\n{NO_RESULT if result.failed else plain(result.text)}"


def render_items(command: str, result: ToolResult, first: int = 1) -> str:
    """Return `Search("tides") =>` and a line per snippet, numbered from `first`."""
    lines = [f"<|{number}|>: {plain(item)!r}" for number, item in enumerate(result.items, first)]
    return "\n".join([f"{command} =>", *(lines or [NO_RESULT])])


def render_sentence(result: ToolResult) -> str:
    """Return the sentence that stands for a picture."""
    return NO_RESULT if result.failed else PICTURE


def plain(text: str) -> str:
    """Return text without MOSS's markers: in a result they would end the turn, or pose as another snippet."""
    return _MARKER.sub("", text)


def citations(answer: str) -> tuple[int, ...]:
    """Return the numbers of the snippets that an answer cites, `<sup><|2|></sup>`."""
    return tuple(int(number) for number in _CITATION.findall(answer))
