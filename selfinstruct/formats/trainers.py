"""What trainers load: TRL, Axolotl, DeepSpeed-Chat, ColossalChat, Parquet.

Sources: trl docs/source/dataset_formats.md and trl/data_utils.py; axolotl docs/dataset-formats;
DeepSpeedExamples applications/DeepSpeed-Chat; ColossalAI applications/ColossalChat.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfinstruct.errors import InputError
from selfinstruct.formats import alpaca
from selfinstruct.formats.format import Format, Row, fields, has, kind, strings, text
from selfinstruct.formats.shape import pairs, tiers, user_text
from selfinstruct.formats.transcript import alternating, turns
from selfinstruct.values import Comparison, Dialogue, Instance, Message, Record, Response, Role, Task, ToolCall

# --- messages of role and content


def checked(dialogue: Dialogue, last: Role = "assistant") -> tuple[Message, ...]:
    """Return the messages, checked for a chat template: user first, turns in order, `last` at the end.

    After a tool call come its results and then the assistant again; no turn is empty.

    Raises:
        InputError: which message breaks which rule.
    """
    if not dialogue.messages:
        raise InputError("the dialogue is empty")
    before: Message | None = None
    for number, message in enumerate(dialogue.messages, 1):
        calling = before is not None and before.role == "assistant" and bool(before.tool_calls)
        if before is None:
            allowed: tuple[str, ...] = ("user",)
        elif before.role == "user":
            allowed = ("assistant",)
        elif before.role == "tool":
            allowed = ("assistant", "tool")
        else:
            allowed = ("tool",) if calling else ("user",)
        if message.role not in allowed:
            after = f" after the {before.role}'s" if before else ""
            raise InputError(f"message {number}{after} must be of {' or '.join(allowed)}, found {message.role}")
        if message.role != "tool" and not message.content.strip() and not message.tool_calls:
            raise InputError(f"message {number} ({message.role}) is empty")
        if message.tool_calls and message.role != "assistant":
            raise InputError(f"message {number}: only the assistant calls tools, found {message.role}")
        before = message
    if dialogue.messages[-1].role != last:
        raise InputError(f"the dialogue must end with the {last}, it ends with the {dialogue.messages[-1].role}")
    return dialogue.messages


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


_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


def _message(row: Mapping[str, Any]) -> Message:
    role = text(row, "role")
    if role not in _ROLES:
        raise InputError(f'unknown role "{role}" (expected {", ".join(_ROLES)})')
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
        _ROLES[role], content or "", thoughts, tuple(calls), text(row, "name", ""), text(row, "tool_call_id", "")
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
    return [Dialogue(messages, system, extra=_tools(row))]


def _encode_messages(dialogue: Dialogue) -> list[Row]:
    row: dict[str, Any] = {"messages": message_rows(dialogue.system, checked(dialogue))}
    if schemas := tool_schemas(dialogue.extra.get("tools")):
        row["tools"] = schemas
    return [row]


def _message_list(row: Row, key: str) -> bool:
    value = row.get(key) if isinstance(row, dict) else None
    return isinstance(value, list) and bool(value) and all(has(message, "role") for message in value)


# --- prompt and completion


def _decode_completion(row: Row) -> list[Record]:
    row = fields(row)
    if isinstance(row.get("prompt"), list):
        system, asked = read_messages(row["prompt"])
        _, answered = read_messages(row.get("completion"))
        return [Dialogue(asked + answered, system, extra=_tools(row))]
    return [Task(text(row, "prompt"), (Instance("", text(row, "completion")),))]


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


# --- preferences


def _asked(prompt: str | Dialogue) -> list[dict[str, Any]]:
    dialogue = as_dialogue(prompt)
    return message_rows(dialogue.system, checked(dialogue, "user"))


def _answer(response: Response) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": _said(response)}]


def _said(response: Response) -> str:
    if not response.content.strip():
        raise InputError("a response is empty")
    return response.content


def _plain(prompt: str | Dialogue) -> str:
    if not isinstance(prompt, str):
        raise InputError("a plain prompt can't hold a dialogue; the format of message lists can")
    if not prompt.strip():
        raise InputError("the prompt is empty")
    return prompt


def _read_prompt(value: Any) -> str | Dialogue:
    if isinstance(value, str):
        return value
    system, messages = read_messages(value)
    return plain_prompt(Dialogue(messages, system))


def _read_answer(value: Any, key: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        value = [value]
    _, messages = read_messages(value)
    if len(messages) != 1 or messages[0].role != "assistant" or messages[0].tool_calls or messages[0].thoughts:
        raise InputError(f'"{key}" must be one plain assistant message')
    return messages[0].content


def _two(better: str, worse: str) -> tuple[Response, Response]:
    return Response(better, rank=0), Response(worse, rank=1)


def _decode_preference(row: Row) -> list[Record]:
    row = fields(row)
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if row.get("prompt") is not None:
        prompt = _read_prompt(row["prompt"])
    elif isinstance(chosen, list) and isinstance(rejected, list):
        # An implicit prompt is what both share; the answers are what is left.
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        prompt, chosen, rejected = _read_prompt(chosen[:shared]), chosen[shared:], rejected[shared:]
    else:
        prompt = ""
    responses = _two(_read_answer(chosen, "chosen"), _read_answer(rejected, "rejected"))
    return [Comparison(prompt, responses)]


def _encode_preference(comparison: Comparison) -> list[Row]:
    asked = _asked(comparison.prompt)
    return [{"prompt": asked, "chosen": _answer(b), "rejected": _answer(w)} for b, w in pairs(comparison)]


def _encode_preference_text(comparison: Comparison) -> list[Row]:
    asked = _plain(comparison.prompt)
    return [{"prompt": asked, "chosen": _said(b), "rejected": _said(w)} for b, w in pairs(comparison)]


def labelled(comparison: Comparison) -> list[tuple[Response, bool]]:
    """Return the responses with KTO's label: one alone is good above score 0, of several the best are.

    Raises:
        InputError: nothing tells good from bad.
    """
    responses = comparison.responses
    if len(responses) == 1 and responses[0].score is not None:
        return [(responses[0], responses[0].score > 0)]
    levels = tiers(comparison)
    if len(levels) < 2 or sum(map(len, levels)) != len(responses):
        raise InputError("nothing tells a good response from a bad one: needs scores or ranks that differ")
    return [(response, depth == 0) for depth, level in enumerate(levels) for response in level]


def _decode_kto(row: Row) -> list[Record]:
    row = fields(row)
    label = row.get("label")
    if not isinstance(label, bool):
        raise InputError(f'"label" must be true or false, found {kind(label)}')
    response = Response(_read_answer(row.get("completion"), "completion"), score=1.0 if label else -1.0)
    return [Comparison(_read_prompt(row.get("prompt")), (response,))]


def _encode_kto(comparison: Comparison) -> list[Row]:
    asked = _asked(comparison.prompt)
    return [{"prompt": asked, "completion": _answer(r), "label": good} for r, good in labelled(comparison)]


def _encode_kto_text(comparison: Comparison) -> list[Row]:
    asked = _plain(comparison.prompt)
    return [{"prompt": asked, "completion": _said(r), "label": good} for r, good in labelled(comparison)]


def _matches_kto(row: Row) -> int:
    return 4 * (has(row, "prompt", "completion") and isinstance(row.get("label"), bool))


# --- Axolotl: messages, and the lines that make it load them


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


def _axolotl_dpo_config(path: Path) -> Mapping[str, str]:
    lines = (
        "# The part of an Axolotl config that loads the file beside it.",
        "rl: dpo",
        "datasets:",
        f"  - path: {json.dumps(path.name)}",
        "    ds_type: json",
        "    split: train",
        "    type: chat_template.default",
        "    field_messages: messages",
        "    field_chosen: chosen",
        "    field_rejected: rejected",
        "chat_template: tokenizer_default",
    )
    return {f"{path.stem}.axolotl.yaml": "\n".join(lines) + "\n"}


def _decode_axolotl_dpo(row: Row) -> list[Record]:
    row = fields(row)
    if isinstance(row.get("messages"), str):
        raise InputError('"messages" must be an array of messages')
    responses = _two(_read_answer(row.get("chosen"), "chosen"), _read_answer(row.get("rejected"), "rejected"))
    return [Comparison(_read_prompt(row.get("messages")), responses)]


def plain_prompt(prompt: Dialogue) -> str | Dialogue:
    """Return a prompt of one bare user message as its text."""
    match prompt:
        case Dialogue(messages=(Message(role="user", content=content),), system=""):
            return content
    return prompt


def as_dialogue(prompt: str | Dialogue) -> Dialogue:
    """Return a prompt as a dialogue."""
    return Dialogue((Message("user", prompt),)) if isinstance(prompt, str) else prompt


def _encode_axolotl_dpo(comparison: Comparison) -> list[Row]:
    asked = _asked(comparison.prompt)
    return [
        {"messages": asked, "chosen": _answer(better)[0], "rejected": _answer(worse)[0]}
        for better, worse in pairs(comparison)
    ]


# --- DeepSpeed-Chat: a flat prompt; its loader puts the spaces and the eos

_DEEPSPEED = re.compile(r"(?:\A\s*|\n\n| )(Human|Assistant):(?: |\Z)")


def _decode_deepspeed(row: Row) -> list[Record]:
    row = fields(row)
    messages = turns(text(row, "prompt"), _DEEPSPEED, ("Human",))
    if messages is None or messages[-1].role != "assistant" or messages[-1].content:
        raise InputError('"prompt" must start with "Human:" and end with "Assistant:"')
    asked, chosen = tuple(messages[:-1]), text(row, "chosen")
    if row.get("rejected") is None:
        return [Dialogue((*asked, Message("assistant", chosen)))]
    return [Comparison(plain_prompt(Dialogue(asked)), _two(chosen, text(row, "rejected")))]


def _flat(messages: Sequence[Message]) -> str:
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"{names[message.role]}: {message.content}\n\n" for message in messages) + "Assistant:"


def _encode_deepspeed(record: Dialogue | Comparison) -> list[Row]:
    if isinstance(record, Dialogue):
        messages = alternating(record)
        return [{"prompt": _flat(messages[:-1]), "chosen": messages[-1].content, "rejected": None}]
    rows = []
    for better, worse in pairs(record):
        asked = as_dialogue(record.prompt).messages
        alternating(Dialogue((*asked, Message("assistant", better.content))))
        alternating(Dialogue((*asked, Message("assistant", worse.content))))
        rows.append({"prompt": _flat(asked), "chosen": better.content, "rejected": worse.content})
    return rows


def _matches_deepspeed(row: Row) -> int:
    if not strings(row, "prompt", "chosen") or "rejected" not in row:
        return 0
    return 4 * bool(_DEEPSPEED.match(row["prompt"]) and row["prompt"].endswith("Assistant:"))


# --- ColossalChat: from with user and assistant, content


def _colossal_rows(system: str, messages: Sequence[Message]) -> list[dict[str, str]]:
    lead = [{"from": "system", "content": system}] if system else []
    return lead + [{"from": message.role, "content": message.content} for message in messages]


def _read_colossal(value: Any) -> tuple[str, tuple[Message, ...]]:
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise InputError(f"expected an array of messages, found {kind(value)}")
    system, messages = "", []
    for number, row in enumerate(map(fields, value), 1):
        role = text(row, "from")
        if role == "system" and number == 1:
            system = text(row, "content")
        elif role in ("user", "assistant"):
            messages.append(Message(_ROLES[role], text(row, "content")))
        else:
            raise InputError(f'message {number}: "from" must be user or assistant (system first only), found "{role}"')
    return system, tuple(messages)


def _decode_colossal(row: Row) -> list[Record]:
    system, messages = _read_colossal(fields(row).get("messages"))
    return [Dialogue(messages, system)]


def _encode_colossal(dialogue: Dialogue) -> list[Row]:
    return [{"messages": _colossal_rows(dialogue.system, alternating(dialogue))}]


def _colossal_context(comparison: Comparison) -> list[dict[str, str]]:
    prompt = as_dialogue(comparison.prompt)
    alternating(Dialogue((*prompt.messages, Message("assistant", "-"))))
    return _colossal_rows(prompt.system, prompt.messages)


def _colossal_prompt(value: Any) -> str | Dialogue:
    system, messages = _read_colossal(value)
    return plain_prompt(Dialogue(messages, system))


def _colossal_answer(value: Any) -> str:
    _, messages = _read_colossal(value)
    if len(messages) != 1 or messages[0].role != "assistant":
        raise InputError("expected one assistant message")
    return messages[0].content


def _reply(response: Response) -> dict[str, str]:
    if not response.content.strip():
        raise InputError("a response is empty")
    return {"from": "assistant", "content": response.content}


def _decode_colossal_preference(row: Row) -> list[Record]:
    row = fields(row)
    responses = _two(_colossal_answer(row.get("chosen")), _colossal_answer(row.get("rejected")))
    return [Comparison(_colossal_prompt(row.get("context")), responses)]


def _encode_colossal_preference(comparison: Comparison) -> list[Row]:
    # The docstring of their tokenizer says object, its code iterates a list.
    context = _colossal_context(comparison)
    return [{"context": context, "chosen": [_reply(b)], "rejected": [_reply(w)]} for b, w in pairs(comparison)]


def _decode_colossal_kto(row: Row) -> list[Record]:
    row = fields(row)
    label = row.get("label")
    if not isinstance(label, bool):
        raise InputError(f'"label" must be true or false, found {kind(label)}')
    response = Response(_colossal_answer(row.get("completion")), score=1.0 if label else -1.0)
    return [Comparison(_colossal_prompt(row.get("prompt")), (response,))]


def _encode_colossal_kto(comparison: Comparison) -> list[Row]:
    context = _colossal_context(comparison)
    return [{"prompt": context, "completion": _reply(r), "label": good} for r, good in labelled(comparison)]


def _decode_colossal_lora(row: Row) -> list[Record]:
    system, messages = read_messages(row)
    return [Dialogue(messages, system)]


def _encode_colossal_lora(dialogue: Dialogue) -> list[Row]:
    return [message_rows(dialogue.system, alternating(dialogue))]


def _from_content(row: Row, key: str) -> bool:
    value = row.get(key) if isinstance(row, dict) else None
    return isinstance(value, list) and bool(value) and all(has(turn, "from", "content") for turn in value)


# --- the formats

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
_BETTER = Comparison("Name a planet.", _two("Mars.", "The Sun."))
_GOOD = Comparison("Name a planet.", (Response("Mars.", score=1.0),))
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
        "keys": ("messages", "tools"),
        "decode": _decode_messages,
        "encode": _encode_messages,
        "matches": lambda row: 3 * (_message_list(row, "messages") and not has(row, "chosen")),
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
        keys=("prompt", "completion", "tools"),
        decode=_decode_completion,
        encode=_encode_completion,
        matches=lambda row: 2 * (has(row, "prompt", "completion") and not has(row, "label")),
        example=Task("Say hello in French.", (Instance("", "Bonjour!"),)),
        works="one kind of prompt per file; " + _MESSAGES_RULES,
        uniform=True,
    ),
    Format(
        name="preference",
        summary="TRL DPO, ORPO, CPO, Reward: prompt, chosen, rejected as message lists (text is read too)",
        source="trl docs/source/dataset_formats.md (preference)",
        layout="jsonl",
        kinds=frozenset({Comparison}),
        keys=("prompt", "chosen", "rejected"),
        decode=_decode_preference,
        encode=_encode_preference,
        matches=lambda row: (
            3
            * (
                has(row, "prompt", "chosen", "rejected")
                or (_message_list(row, "chosen") and _message_list(row, "rejected") and not has(row, "messages"))
            )
        ),
        example=_BETTER,
        works="prompt ends on the user; chosen strictly better than rejected; at most ten pairs a comparison",
    ),
    Format(
        name="preference-text",
        summary="TRL DPO, Reward without a chat template: prompt, chosen, rejected as text",
        source="trl docs/source/dataset_formats.md (preference, standard)",
        layout="jsonl",
        kinds=frozenset({Comparison}),
        keys=("prompt", "chosen", "rejected"),
        decode=_decode_preference,
        encode=_encode_preference_text,
        matches=lambda row: 3 * strings(row, "prompt", "chosen", "rejected"),
        example=_BETTER,
        works="a plain prompt; chosen strictly better than rejected; at most ten pairs a comparison",
    ),
    Format(
        name="kto",
        summary="TRL KTO: prompt and completion as message lists, label true or false (text is read too)",
        source="trl docs/source/dataset_formats.md (unpaired preference)",
        layout="jsonl",
        kinds=frozenset({Comparison}),
        keys=("prompt", "completion", "label"),
        decode=_decode_kto,
        encode=_encode_kto,
        matches=_matches_kto,
        example=_GOOD,
        works="prompt ends on the user; label a boolean; of several responses the best are good",
    ),
    Format(
        name="kto-text",
        summary="TRL KTO without a chat template: prompt and completion as text, label true or false",
        source="trl docs/source/dataset_formats.md (unpaired preference, standard)",
        layout="jsonl",
        kinds=frozenset({Comparison}),
        keys=("prompt", "completion", "label"),
        decode=_decode_kto,
        encode=_encode_kto_text,
        matches=lambda row: 4 * (strings(row, "prompt", "completion") and isinstance(row.get("label"), bool)),
        example=_GOOD,
        works="a plain prompt; label a boolean; of several responses the best are good",
    ),
    Format(
        name="axolotl-dpo",
        summary="Axolotl DPO chat_template.default: messages, chosen and rejected objects, and its config lines",
        source="axolotl docs/dataset-formats, prompt_strategies/dpo/chat_template.py",
        layout="jsonl",
        kinds=frozenset({Comparison}),
        keys=("messages", "chosen", "rejected"),
        decode=_decode_axolotl_dpo,
        encode=_encode_axolotl_dpo,
        matches=lambda row: 4 * (_message_list(row, "messages") and has(row, "chosen", "rejected")),
        example=_BETTER,
        works="messages end on the user; chosen strictly better",
        beside=_axolotl_dpo_config,
    ),
    Format(
        name="deepspeed-chat",
        summary="DeepSpeed-Chat local/jsonfile: a folder with train.json and eval.json of prompt, chosen, rejected",
        source="DeepSpeedExamples applications/DeepSpeed-Chat dschat/utils/data/raw_datasets.py",
        layout="json",
        kinds=frozenset({Dialogue, Comparison}),
        keys=("prompt", "chosen", "rejected"),
        decode=_decode_deepspeed,
        encode=_encode_deepspeed,
        matches=_matches_deepspeed,
        example=_BETTER,
        works='prompt from "Human:" to "Assistant:"; rejected null for SFT, text for all rows or none; both files hold '
        "rows (every 20th is for evaluation). Train with --data_split 10,0,0 and a new --data_output_path: its cache "
        "does not notice new content",
        uniform=True,
        directory="train/eval",
    ),
    Format(
        name="colossalai",
        summary="ColossalChat SFT: JSONL of messages [{from: user|assistant|system, content}]",
        source="ColossalAI applications/ColossalChat coati/dataset/tokenization_utils.py",
        layout="jsonl",
        kinds=frozenset({Dialogue}),
        keys=("messages",),
        decode=_decode_colossal,
        encode=_encode_colossal,
        matches=lambda row: 4 * _from_content(row, "messages"),
        example=_CHAT,
        works="strict alternation, even length after the system message, no empty turn",
    ),
    Format(
        name="colossalai-preference",
        summary="ColossalChat preference: context (ends on the user), chosen and rejected lists of one message",
        source="ColossalAI applications/ColossalChat coati/dataset/tokenization_utils.py",
        layout="jsonl",
        kinds=frozenset({Comparison}),
        keys=("context", "chosen", "rejected"),
        decode=_decode_colossal_preference,
        encode=_encode_colossal_preference,
        matches=lambda row: 4 * (_from_content(row, "context") and has(row, "chosen", "rejected")),
        example=_BETTER,
        works="strict alternation, context ends on the user, chosen strictly better",
    ),
    Format(
        name="colossalai-kto",
        summary="ColossalChat KTO: prompt list, completion object, label",
        source="ColossalAI applications/ColossalChat coati/dataset/tokenization_utils.py",
        layout="jsonl",
        kinds=frozenset({Comparison}),
        keys=("prompt", "completion", "label"),
        decode=_decode_colossal_kto,
        encode=_encode_colossal_kto,
        matches=lambda row: 5 * (_from_content(row, "prompt") and has(row, "completion", "label")),
        example=_GOOD,
        works="strict alternation, prompt ends on the user, label a boolean",
    ),
    Format(
        name="colossalai-lora",
        summary="ColossalAI lora_finetune: each line is a list of role and content",
        source="ColossalAI applications/ColossalChat examples/training_scripts/lora_finetune.py",
        layout="jsonl",
        kinds=frozenset({Dialogue}),
        keys=(),
        decode=_decode_colossal_lora,
        encode=_encode_colossal_lora,
        matches=lambda row: (
            3 * (isinstance(row, list) and bool(row) and all(has(message, "role", "content") for message in row))
        ),
        example=_CHAT,
        works="strict alternation, no empty turn",
        list_rows=True,
    ),
)
