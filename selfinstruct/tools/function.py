"""A typed Python function as a tool: the signature is the schema, the docstring the description."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import pydantic

from selfinstruct.errors import PluginError
from selfinstruct.tools.tool import Tool, failure
from selfinstruct.values import ToolResult

_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?:/\d+)?")
_PARAMETER = re.compile(r"\s+(\*{0,2}\w+)(?: \([^)]*\))?: (.*)")


def function_tool(function: Callable[..., Any], *, timeout: float = 30.0) -> Tool:
    """Return the tool that calls `function`, plain or async.

    A plain function runs in a thread, which a time-out leaves behind. What the model gives is checked and converted
    by the annotations. A number that comes back is a value to be stated; a `ToolResult` is passed on as it is.

    Raises:
        PluginError: the signature can't be described as a JSON object.
    """
    name = function.__name__
    try:
        signature = inspect.signature(function, eval_str=True)
        model = _model(name, signature)
        schema = model.model_json_schema()
    except (NameError, TypeError, pydantic.PydanticUserError, pydantic.errors.PydanticInvalidForJsonSchema) as error:
        raise PluginError(
            f"tool {name!r}: every parameter needs a type that JSON can carry, such as str or list[int]: {error}"
        ) from error
    description, parameters = _documentation(function)
    for parameter, text in parameters.items():
        if parameter in schema.get("properties", {}):
            schema["properties"][parameter].setdefault("description", text)
    schema = {key: value for key, value in schema.items() if key != "title"} | {"additionalProperties": False}

    async def run(arguments: Mapping[str, Any]) -> ToolResult:
        try:
            checked = model.model_validate(dict(arguments))
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False)[0]
            return failure("wrong arguments", f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
        given = {parameter: getattr(checked, parameter) for parameter in model.model_fields}
        if inspect.iscoroutinefunction(function):
            returned = await function(**given)
        else:
            returned = await asyncio.to_thread(function, **given)
        return result_of(returned)

    return Tool(name, spoken(name), camel(name), description, schema, run, timeout=timeout)


def result_of(returned: object) -> ToolResult:
    """Return what a function returned as a result: text as it is, other values as JSON."""
    if isinstance(returned, ToolResult):
        return returned
    if returned is None:
        return failure("nothing found")
    text = returned if isinstance(returned, str) else _text(returned)
    return ToolResult(text, values=numeric_values(text))


def numeric_values(text: str) -> tuple[str, ...]:
    """Return the text itself where it is one number: an answer should state that."""
    return (text.strip(),) if _NUMBER.fullmatch(text.strip()) else ()


def camel(name: str) -> str:
    """Return a name as MOSS's APIs are written: exchange_rate becomes ExchangeRate."""
    parts = [part for part in re.split(r"\W+|_+", name) if part]
    joined = "".join(part[:1].upper() + part[1:] for part in parts)
    return joined if joined.isidentifier() and joined.isascii() else f"Tool{joined}"


def spoken(name: str) -> str:
    """Return a name as MOSS's meta instruction lists tools: exchange_rate becomes "Exchange rate"."""
    words = re.sub(r"[\W_]+", " ", name).strip()
    return words[:1].upper() + words[1:]


def _text(value: object) -> str:
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump_json()
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError):  # keys that are no text, a cycle
        return str(value)


def _model(name: str, signature: inspect.Signature) -> type[pydantic.BaseModel]:
    fields: dict[str, Any] = {}
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise TypeError(f"{parameter} can't be named by a model")
        if parameter.annotation is parameter.empty:
            raise TypeError(f"{parameter.name} has no annotation")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (parameter.annotation, default)
    return pydantic.create_model(name, __config__=pydantic.ConfigDict(extra="forbid"), **fields)


def _documentation(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """Return the first paragraph of a docstring, and the descriptions of its Google-style `Args:`."""
    lines = (inspect.getdoc(function) or "").splitlines()
    ends = [place for place, line in enumerate(lines) if not line.strip()]
    description = " ".join(line.strip() for line in lines[: ends[0] if ends else None])
    found: dict[str, str] = {}
    current = ""
    inside = False
    for line in lines:
        if re.fullmatch(r"(Args|Arguments|Parameters):\s*", line):
            inside = True
        elif inside and line and not line[0].isspace():
            inside = False
        elif inside and (match := _PARAMETER.fullmatch(line)):
            current = match[1].lstrip("*")
            found[current] = match[2].strip()
        elif inside and current and line.strip():
            found[current] += f" {line.strip()}"
    return description, found
