"""What a tool is, and what it answers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from selfinstruct.errors import SelfInstructError
from selfinstruct.values import ToolResult

Style = Literal["value", "lines", "items", "sentence"]

MAX_TEXT = 4000
"""Characters of a result's text."""
MAX_VALUES = 50
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def failure(reason: str, detail: str = "") -> ToolResult:
    """Return the result of a call that failed."""
    shown = reason or "unknown"
    return ToolResult(f"No result: {shown}{f' ({detail})' if detail else ''}", failed=True, reason=shown)


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that a model may call.

    `name` is for settings and native tool calling ("calculator"), `title` and `api` are MOSS's names of it
    ("Calculator", "Calculate"). `parameters` is the JSON schema of an object; the arguments of a MOSS command belong
    to its properties in order. `run` carries out a call; `style` is how MOSS writes the result (`rendering`).
    """

    name: str
    title: str
    api: str
    description: str
    parameters: Mapping[str, Any] = field(hash=False)
    run: Callable[[Mapping[str, Any]], Awaitable[ToolResult]]
    close: Callable[[], Awaitable[None]] | None = None
    style: Style = "value"
    timeout: float | None = 60.0
    """Seconds a call may take; None where the tool keeps the time itself."""

    @property
    def signature(self) -> str:
        """The call as MOSS's meta instruction names it: `Calculate(expression)`."""
        return f"{self.api}({', '.join(self.parameters.get('properties', {}))})"

    async def call(self, arguments: Mapping[str, Any]) -> ToolResult:
        """Call the tool; whatever the arguments are, and whatever its code raises, there is a result.

        Raises:
            SelfInstructError: no call can succeed until the person changes something (a wrong key, a missing package).
        """
        fault = check_arguments(self.parameters, arguments)
        if fault:
            return failure("wrong arguments", fault)
        try:
            async with asyncio.timeout(self.timeout):
                result = await self.run(arguments)
        except TimeoutError:
            return failure("out of time", f"more than {self.timeout or 0:g} s")
        except SelfInstructError:
            raise
        except Exception as error:  # a tool's own code, fed by a model: a fault is a failed call
            result = failure("tool error", f"{type(error).__name__}: {error}")
        return replace(
            result,
            text=_bounded(result.text),
            values=tuple(map(_bounded, result.values[:MAX_VALUES])),
            items=tuple(map(_bounded, result.items[:MAX_VALUES])),
        )

    async def aclose(self) -> None:
        """Let go of what the tool holds: processes, connections, files."""
        if self.close is not None:
            await self.close()


def check_arguments(parameters: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    """Say what is wrong with the arguments by the schema's names and plain types, "" when nothing is."""
    properties = parameters.get("properties", {})
    for name in parameters.get("required", ()):
        if name not in arguments:
            return f"{name} is missing"
    for name, value in arguments.items():
        if name not in properties:
            known = ", ".join(properties) or "it takes none"
            return f"there is no {str(name)[:40]!r}: {known}"
        wanted = properties[name].get("type") if isinstance(properties[name], Mapping) else None
        if isinstance(wanted, str) and wanted in _TYPES and not _is(wanted, value):
            return f"{name} must be of type {wanted}, found {type(value).__name__}"
    return ""


_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list, tuple),
    "object": (dict,),
    "null": (type(None),),
}


def _is(wanted: str, value: object) -> bool:
    if isinstance(value, bool):
        return wanted == "boolean"
    if wanted == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[wanted])


def text_parameters(**described: str) -> dict[str, Any]:
    """Return the JSON schema of an object whose properties are all required text, by their descriptions."""
    return {
        "type": "object",
        "properties": {name: {"type": "string", "description": text} for name, text in described.items()},
        "required": list(described),
        "additionalProperties": False,
    }


def _bounded(text: str) -> str:
    text = _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
