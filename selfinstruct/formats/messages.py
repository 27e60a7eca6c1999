"""Chat messages of role and content: what TRL, Axolotl and Parquet loaders of them read.

Sources: trl docs/source/dataset_formats.md and trl/data_utils.py; axolotl docs/dataset-formats.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfinstruct.errors import InputError
from selfinstruct.formats import alpaca
from selfinstruct.formats.format import Format, Row, fields, has, kind, text
from selfinstruct.formats.shape import dialogues, user_text
from selfinstruct.formats.turns import checked
from selfinstruct.values import Dialogue, Instance, Message, Record, Role, Task, ToolCall


def message_rows(system: str, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Write messages as objects of role and content, tool calls in OpenAI's shape, thoughts as reasoning_content."""
    rows: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for message in messages:
        row: dict[str, Any] = {"role": message.role}
        if message.name:
            row["name"] = message.name
        if message.tool_call_id:
            row["tool_call_id"] = message.tool_call_id
        row["content"] = message.content
        if message.thoughts:
            row["reasoning_content"] = message.thoughts
        if message.tool_calls:
            row["tool_calls"] = [call_row(call) for call in message.tool_calls]
        rows.append(row)
    return rows


def call_row(call: ToolCall) -> dict[str, Any]:
    """Write a tool call with its arguments as an object.

    Raises:
        InputError: the arguments are not JSON text of an object.
    """
    identity = {"id": call.id} if call.id else {}
    return identity | {"type": "function", "function": {"name": call.name, "arguments": arguments(call)}}


def arguments(call: ToolCall) -> dict[str, Any]:
    """Return a call's arguments as an object.

    Raises:
        InputError: they are not JSON text of an object.
    """
    try:
        value = json.loads(call.arguments)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputError(
            f"the arguments of {call.name or 'a tool call'} must be a JSON object, found {call.arguments[:80]}"
        )
    return value


def argument_text(value: Any) -> str:
    """Return arguments as JSON text; files have them as an object or as text.

    Raises:
        InputError: they are neither.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return "{}"
    if not isinstance(value, dict):
        raise InputError(f'"arguments" must be an object or a string, found {kind(value)}')
    return json.dumps(value, ensure_ascii=False)


def read_messages(rows: Any) -> tuple[str, tuple[Message, ...]]:
    """Read a list of role and content; return the leading system prompt and the rest.

    Raises:
        InputError: a message is not of that shape.
    """
    if not isinstance(rows, list):
        raise InputError(f"expected an array of messages, found {kind(rows)}")
    system, messages = "", []
    for number, row in enumerate(rows, 1):
        try:
            message = _message(fields(row))
        except InputError as error:
            raise InputError(f"message {number}: {error}") from None
        if message.role == "system" and number == 1:
            system = message.content
        else:
            messages.append(message)
    return system, tuple(messages)


MESSAGE_KEYS = (
    *("role", "content", "content.type", "content.text", "reasoning_content", "thinking", "name", "tool_call_id"),
    *("tool_calls", "tool_calls.id", "tool_calls.type", "tool_calls.name", "tool_calls.arguments"),
    *("tool_calls.function", "tool_calls.function.name", "tool_calls.function.arguments"),
)
"""What a message may hold; a call without its `function` shell is read too."""
ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


def message_keys(key: str) -> tuple[str, ...]:
    """Return the key of a list of messages and those inside it."""
    return (key, *(f"{key}.{inner}" for inner in MESSAGE_KEYS))


def _message(row: Mapping[str, Any]) -> Message:
    role = text(row, "role")
    if role not in ROLES:
        raise InputError(f'unknown role "{role}" (expected {", ".join(ROLES)})')
    content = row.get("content")
    if isinstance(content, list):
        parts = [fields(part) for part in content]
        if any(part.get("type", "text") != "text" for part in parts):
            raise InputError("pictures and other media are not text")
        content = "".join(text(part, "text") for part in parts)
    calls = []
    for call in map(fields, row.get("tool_calls") or []):
        function = fields(call.get("function", call))
        calls.append(ToolCall(text(function, "name"), argument_text(function.get("arguments")), text(call, "id", "")))
    if content is None and not calls and "content" not in row:
        raise InputError('key "content" is missing')
    if content is not None and not isinstance(content, str):
        raise InputError(f'"content" must be a string, found {kind(content)}')
    thoughts = text(row, "reasoning_content", "") or text(row, "thinking", "")
    return Message(
        ROLES[role], content or "", thoughts, tuple(calls), text(row, "name", ""), text(row, "tool_call_id", "")
    )


def tool_schemas(value: Any) -> list[Any]:
    """Read a tools column: a list of schemas, or JSON text of one; "" and null are none.

    Raises:
        InputError: it is something else.
    """
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise InputError('"tools" is not JSON') from None
    if not value:
        return []
    if not isinstance(value, list):
        raise InputError(f'"tools" must be an array, found {kind(value)}')
    return value


def _tools(row: Mapping[str, Any]) -> dict[str, Any]:
    found = tool_schemas(row.get("tools"))
    return {"tools": found} if found else {}


def _decode_messages(row: Row) -> list[Record]:
    row = fields(row)
    system, messages = read_messages(row.get("messages"))
    return [Dialogue(messages, system or text(row, "system", ""), extra=_tools(row))]


def _encode_messages(dialogue: Dialogue) -> list[Row]:
    row: dict[str, Any] = {"messages": message_rows(dialogue.system, checked(dialogue))}
    if schemas := tool_schemas(dialogue.extra.get("tools")):
        row["tools"] = schemas
    return [row]


def message_list(row: Row, key: str) -> bool:
    """Tell whether the row has a list of messages with roles under `key`."""
    value = row.get(key) if isinstance(row, dict) else None
    return isinstance(value, list) and bool(value) and all(has(message, "role") for message in value)


def _decode_completion(row: Row) -> list[Record]:
    row = fields(row)
    if isinstance(row.get("prompt"), list):
        system, asked = read_messages(row["prompt"])
        _, answered = read_messages(row.get("completion"))
        return [Dialogue(asked + answered, system or text(row, "system", ""), extra=_tools(row))]
    task = Task(text(row, "prompt"), (Instance("", text(row, "completion")),))
    system = text(row, "system", "")
    return [replace(dialogues(task)[0], system=system)] if system else [task]


def _encode_completion(record: Task | Dialogue) -> list[Row]:
    if isinstance(record, Task):
        return [
            {"prompt": user_text(record.instruction, instance.input), "completion": instance.output}
            for instance in alpaca.answered(record)
        ]
    messages = message_rows("", checked(record))
    system = message_rows(record.system, ())
    schemas = tool_schemas(record.extra.get("tools"))
    return [{"prompt": system + messages[:-1], "completion": messages[-1:]} | ({"tools": schemas} if schemas else {})]


def _axolotl_config(path: Path) -> Mapping[str, str]:
    lines = (
        "# The part of an Axolotl config that loads the file beside it.",
        "datasets:",
        f"  - path: {json.dumps(path.name)}",
        "    ds_type: json",
        "    type: chat_template",
        "    field_messages: messages",
        "    message_property_mappings:",
        "      role: role",
        "      content: content",
        "    field_tools: tools",
        "chat_template: tokenizer_default",
    )
    return {f"{path.stem}.axolotl.yaml": "\n".join(lines) + "\n"}


_CHAT = Dialogue(
    (Message("user", "Say hello in French."), Message("assistant", "Bonjour!")), system="You are a translator."
)
_TOOLS = Dialogue(
    (
        Message("user", "How warm is it in Oslo?"),
        Message("assistant", "", "I need the weather.", (ToolCall("weather", '{"city": "Oslo"}', "c1"),)),
        Message("tool", '{"celsius": 4}', name="weather", tool_call_id="c1"),
        Message("assistant", "It is 4 degrees Celsius."),
    ),
    system="You are helpful.",
    extra={
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "weather",
                    "description": "Temperature of a city.",
                    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
                },
            }
        ]
    },
)


_MESSAGES_RULES = (
    "user first, then in turn, assistant last; tool results follow their call; no empty turn; final role names "
    "(TRL does not map human and gpt)"
)


def _messages_format(**changes: Any) -> Format:
    base: dict[str, Any] = {
        "name": "messages",
        "summary": "Chat messages for TRL SFT, Axolotl chat_template, LLaMA-Factory openai: JSONL of role and content",
        "source": "trl docs/source/dataset_formats.md (conversational language modelling)",
        "layout": "jsonl",
        "kinds": frozenset({Dialogue}),
        "keys": (*message_keys("messages"), "tools", "system"),
        "decode": _decode_messages,
        "encode": _encode_messages,
        "matches": lambda row: 3 * (message_list(row, "messages") and not has(row, "chosen")),
        "example": _TOOLS,
        "works": _MESSAGES_RULES,
    }
    return Format(**(base | changes))


FORMATS = (
    _messages_format(),
    _messages_format(
        name="axolotl",
        summary="Axolotl chat_template: the messages file, and the config lines that load it beside",
        source="axolotl docs/dataset-formats/conversation",
        beside=_axolotl_config,
    ),
    _messages_format(
        name="parquet",
        summary="Chat messages as Parquet (any other format: name the output .parquet)",
        layout="parquet",
        example=_CHAT,
    ),
    Format(
        name="prompt-completion",
        summary="TRL SFT: prompt and completion, both text or both message lists; the loss is on the completion",
        source="trl docs/source/dataset_formats.md (prompt-completion)",
        layout="jsonl",
        kinds=frozenset({Task, Dialogue}),
        keys=(*message_keys("prompt"), *message_keys("completion"), "tools", "system"),
        decode=_decode_completion,
        encode=_encode_completion,
        matches=lambda row: 2 * (has(row, "prompt", "completion") and not has(row, "label")),
        example=Task("Say hello in French.", (Instance("", "Bonjour!"),)),
        works="one kind of prompt per file; " + _MESSAGES_RULES,
        uniform=True,
    ),
)
