"""Tools that the turns of a dialogue really call.

    async with open_tools(["calculator", {"search": {"corpus": "docs"}}]) as tools:
        calls = parse_commands('Calculate("60*0.85")', tools)      # or a Rejection with its reason
        results = [(call, await call.tool.call(call.arguments)) for call in calls]
        body = render_results(results)                             # as MOSS writes it
    check_answer(answer, results, known=question)       # a Rejection where it leaves out what they gave, or invents

`docs/tools.md` says how to write one.
"""

from __future__ import annotations

from selfinstruct.tools.answers import check_answer, unstated, unsupported
from selfinstruct.tools.commands import Call, parse_commands, render_command
from selfinstruct.tools.loading import Setting, check_tools, describe_tools, open_tools
from selfinstruct.tools.rendering import citations, render_results
from selfinstruct.tools.tool import Tool, failure
from selfinstruct.values import ToolResult

__all__ = [
    "Call",
    "Setting",
    "Tool",
    "ToolResult",
    "check_answer",
    "check_tools",
    "citations",
    "describe_tools",
    "failure",
    "open_tools",
    "parse_commands",
    "render_command",
    "render_results",
    "unstated",
    "unsupported",
]
