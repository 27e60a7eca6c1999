r"""MOSS's conversations (OpenLMLab/MOSS c810e0b, SFT_data): five marked fields a turn.

A turn is the person's message, the model's inner thoughts, its commands, the tools' answers and the
reply. Here the thoughts and commands are one assistant message, the tools' answer a tool message and
the reply another assistant message; without a command there is one assistant message. Whatever does
not come back from these (dirty commands, a second space) is kept beside them, so that all of their
samples are written back byte for byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from selfinstruct.errors import InputError
from selfinstruct.formats.format import Format, Row, fields, has, kind, rest, text
from selfinstruct.values import Dialogue, Message, Record, ToolCall

ARGUMENTS = {"Search": "query", "Calculate": "expression", "Solve": "equation", "Text2Image": "description"}
"""Each API's one argument, as the meta instruction names it."""
_KEYS = ("Human", "Inner Thoughts", "Commands", "Tool Responses", "MOSS")
_SHELLS = {
    "Human": ("<|Human|>: ", "<eoh>\n"),
    "Inner Thoughts": ("<|Inner Thoughts|>: ", "<eot>\n"),
    "Commands": ("<|Commands|>: ", "<eoc>\n"),
    "MOSS": ("<|MOSS|>: ", "<eom>\n"),
}
_RESULTS = re.compile(r"<\|Results\|>:(?P<lead>[ \n])(?P<body>.*?)(?P<end>\n?)<eor>\n\Z", re.DOTALL)
_CALL = re.compile(r'(\w+)\("((?:[^"\\]|\\.)*)"\)')
_CALLS = re.compile(r'\w+\("(?:[^"\\]|\\.)*"\)(?:, \w+\("(?:[^"\\]|\\.)*"\))*')
NONE = "None"

Turn = Mapping[str, str]


def parse_commands(commands: str) -> tuple[ToolCall, ...] | None:
    """Read `Name("arg"), Name("arg")`; None when the text is anything else (it is never run)."""
    if not _CALLS.fullmatch(commands):
        return None
    return tuple(
        ToolCall(name, json.dumps({ARGUMENTS.get(name, "input"): argument}, ensure_ascii=False))
        for name, argument in _CALL.findall(commands)
    )


def render_commands(calls: Sequence[ToolCall]) -> str:
    """Write calls of one string argument as `Name("arg")`, joined by comma and space.

    Raises:
        InputError: a call's arguments are not one string that can stand between double quotes.
    """
    rendered = []
    for call in calls:
        try:
            arguments = json.loads(call.arguments)
        except ValueError:
            arguments = None
        if (
            not isinstance(arguments, dict)
            or len(arguments) != 1
            or list(arguments) != [ARGUMENTS.get(call.name, "input")]
        ):
            wanted = ARGUMENTS.get(call.name, "input")
            raise InputError(f'MOSS\'s {call.name} takes one string, named "{wanted}", found {call.arguments[:80]}')
        (argument,) = arguments.values()
        if not isinstance(argument, str):
            raise InputError(f"MOSS's {call.name} takes a string, found {kind(argument)}")
        rendered.append(f'{call.name}("{argument}")')
    return ", ".join(rendered)


def _open(turn: Turn, key: str) -> str:
    value = text(turn, key)
    start, end = _SHELLS[key]
    if not value.startswith(start) or not value.endswith(end) or len(value) < len(start) + len(end):
        raise InputError(f'"{key}" must start with {start!r} and end with {end!r}, found {value[:30]!r}')
    return value[len(start) : len(value) - len(end)]


def _decode_turn(turn: Turn) -> list[Message]:
    thoughts, commands = _open(turn, "Inner Thoughts"), _open(turn, "Commands")
    thoughts = "" if thoughts == NONE else thoughts
    results = _RESULTS.match(text(turn, "Tool Responses"))
    if results is None:
        raise InputError(f'"Tool Responses" must be <|Results|>: ... <eor>, found {turn["Tool Responses"][:30]!r}')
    body = "" if results["body"] == NONE else results["body"]
    asked, reply = Message("user", _open(turn, "Human")), _open(turn, "MOSS")
    calls = parse_commands(commands) or ()
    if not calls and not body:
        return [asked, Message("assistant", reply, thoughts)]
    answer = [Message("tool", body)] if body else []
    return [asked, Message("assistant", "", thoughts, calls), *answer, Message("assistant", reply)]


def _encode_turn(messages: Sequence[Message], plugins: bool) -> dict[str, str]:
    roles = tuple(message.role for message in messages)
    asked, call, reply = messages[0], messages[1 % len(messages)], messages[-1]
    calls = call.tool_calls
    plain = roles == ("user", "assistant") and not calls
    called = roles in (("user", "assistant", "assistant"), ("user", "assistant", "tool", "assistant"))
    if not plain and not (called and calls and not call.content and not reply.tool_calls and not reply.thoughts):
        raise InputError(
            "a MOSS turn is user, assistant; or user, assistant calling tools, tool, assistant "
            f"(thoughts before the calls only); found {', '.join(roles)}"
        )
    thoughts, body = call.thoughts, messages[2].content if len(messages) == 4 else ""
    if not asked.content.strip() or not reply.content.strip():
        raise InputError("a message of the turn is empty")
    one_line = not plugins or (calls and all(call.name == "Text2Image" for call in calls))
    results = f" {body or NONE}" if one_line else f"\n{body or NONE}\n"
    inner = {
        "Human": asked.content,
        "Inner Thoughts": thoughts or NONE,
        "Commands": render_commands(calls) or NONE,
        "MOSS": reply.content,
    }
    turn = {key: start + inner[key] + end for key, (start, end) in _SHELLS.items()}
    turn["Tool Responses"] = f"<|Results|>:{results}<eor>\n"
    return {key: turn[key] for key in _KEYS}


def _split(messages: Sequence[Message]) -> list[list[Message]]:
    found: list[list[Message]] = []
    for message in messages:
        if message.role == "user" or not found:
            found.append([])
        found[-1].append(message)
    return found


def _plugins(system: str) -> bool:
    return "- Inner thoughts: enabled" in system


def _decode(row: Row) -> list[Record]:
    row = fields(row)
    chat = fields(row.get("chat"))
    expected = [f"turn_{number}" for number in range(1, len(chat) + 1)]
    if list(chat) != expected or not chat:
        raise InputError(f'"chat" must hold turn_1, turn_2, ... in order, found {", ".join(chat) or "nothing"}')
    if row.get("num_turns", len(chat)) != len(chat):
        raise InputError(f'"num_turns" is {row["num_turns"]}, but "chat" holds {len(chat)} turns')
    system = text(row, "meta_instruction", "")
    messages: list[Message] = []
    raw: dict[str, dict[str, str]] = {}
    for name, turn in chat.items():
        try:
            decoded = _decode_turn(fields(turn))
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        messages += decoded
        try:
            same = _encode_turn(decoded, _plugins(system)) == turn and list(turn) == list(_KEYS)
        except InputError:
            same = False
        if not same:
            raw[name] = dict(turn)
    identity = row.get("conversation_id", "")
    if isinstance(identity, bool) or not isinstance(identity, int | str):
        raise InputError(f'"conversation_id" must be a number or a string, found {kind(identity)}')
    extra: dict[str, Any] = rest(row, "category")
    if isinstance(identity, int):
        extra["id_is_number"] = True
    if raw:
        extra["moss_turns"] = raw
    return [Dialogue(tuple(messages), system, id=str(identity), extra=extra)]


def _encode(dialogue: Dialogue) -> list[Row]:
    raw = dialogue.extra.get("moss_turns")
    raw = raw if isinstance(raw, dict) else {}
    chat: dict[str, dict[str, str]] = {}
    turns = _split(dialogue.messages)
    if not turns:
        raise InputError("the dialogue is empty")
    for number, messages in enumerate(turns, 1):
        name = f"turn_{number}"
        kept = raw.get(name)
        # A kept turn is used only while the messages are still those it was read as.
        try:
            if kept and _decode_turn(fields(kept)) == messages:
                chat[name] = dict(kept)
            else:
                chat[name] = _encode_turn(messages, _plugins(dialogue.system))
        except InputError as error:
            raise InputError(f"turn {number}: {error}") from None
    identity: int | str = dialogue.id
    if dialogue.extra.get("id_is_number") and re.fullmatch(r"-?\d{1,18}", dialogue.id):
        identity = int(dialogue.id)
    row = {
        "conversation_id": identity,
        "meta_instruction": dialogue.system,
        "num_turns": len(chat),
        "chat": chat,
    }
    return [row | rest(dialogue.extra, "category")]


_KEPT = ("conversation_id", "meta_instruction", "num_turns", "chat", "category")
_EXAMPLE = Dialogue(
    (
        Message("user", "What is 12 times 12?"),
        Message("assistant", "", "The person wants a product.", (ToolCall("Calculate", '{"expression": "12*12"}'),)),
        Message("tool", "Calculate(\"12*12\") => '144'"),
        Message("assistant", "12 times 12 is 144."),
    ),
    system="You are an assistant.\n- Inner thoughts: enabled.\n- Calculator: enabled. API: Calculate(expression)\n",
    id="1",
    extra={"category": "tool", "id_is_number": True},
)
_RULES = (
    "num_turns equals the turns; five marked fields a turn; tool answers on lines of their own with plugins, on one "
    "line without and for pictures; byte-exact for their samples"
)

FORMATS = (
    Format(
        name="moss",
        summary="MOSS: JSONL (train.jsonl, val.jsonl) of conversation_id, meta_instruction, num_turns, chat, category",
        source="OpenLMLab/MOSS SFT_data, finetune_moss.py",
        layout="jsonl",
        kinds=frozenset({Dialogue}),
        keys=_KEPT,
        decode=_decode,
        encode=_encode,
        matches=lambda row: 4 * (has(row, "chat", "meta_instruction") and isinstance(row["chat"], dict)),
        example=_EXAMPLE,
        works=_RULES,
    ),
    Format(
        name="moss-object",
        summary="MOSS as in their repository: one conversation a file",
        source="OpenLMLab/MOSS SFT_data/conversations",
        layout="object",
        kinds=frozenset({Dialogue}),
        keys=_KEPT,
        decode=_decode,
        encode=_encode,
        matches=lambda row: 4 * (has(row, "chat", "meta_instruction") and isinstance(row["chat"], dict)),
        example=_EXAMPLE,
        works=_RULES,
        indent=4,
    ),
)
