r"""MOSS's conversations (OpenLMLab/MOSS c810e0b, SFT_data): five marked fields a turn.

A turn is the person's message, the model's inner thoughts, its commands, the tools' answers and the
reply. Here the thoughts and commands are one assistant message, the answer of each tool is a tool
message that holds what the tool said and is named after it, and the reply is another assistant message;
without a command there is one assistant message. Whatever does not come back from these (dirty commands,
a second space) is kept beside them, so that all of their samples are written back byte for byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from selfinstruct.errors import InputError
from selfinstruct.formats.format import Format, Row, fields, has, kind, rest, text
from selfinstruct.formats.messages import arguments
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
_CALL = re.compile(r'(\w+)\("((?:[^"\\]|\\.)*)"\)', re.DOTALL)
_CALLS = re.compile(rf"{_CALL.pattern}(?:, {_CALL.pattern})*", re.DOTALL)
_LISTING = frozenset({"Search", "Solve"})
"""APIs whose results stand on lines of their own; those of the others are one quoted text."""
NONE = "None"

Turn = Mapping[str, str]


def parse_commands(commands: str) -> tuple[ToolCall, ...] | None:
    """Read `Name("arg"), Name("arg")`; None when the text is anything else (it is never run)."""
    if not _CALLS.fullmatch(commands):
        return None
    return tuple(
        ToolCall(
            name,
            json.dumps({ARGUMENTS.get(name, "input"): re.sub(r'\\(["\\])', r"\1", argument)}, ensure_ascii=False),
        )
        for name, argument in _CALL.findall(commands)
    )


def render_command(call: ToolCall) -> str:
    """Write a call of one string argument as `Name("arg")`.

    Raises:
        InputError: the arguments are not one string of the name that the API gives it.
    """
    wanted = ARGUMENTS.get(call.name, "input")
    given = arguments(call)
    argument = given.get(wanted)
    if len(given) != 1 or not isinstance(argument, str):
        raise InputError(f'MOSS\'s {call.name} takes one string, named "{wanted}", found {call.arguments[:80]}')
    quoted = re.sub(r'(["\\])', r"\\\1", argument)
    return f'{call.name}("{quoted}")'


def _render_results(calls: Sequence[ToolCall], said: Sequence[str]) -> str:
    """Write what the tools said below each command; one text of a picture, or for several commands, as it is."""
    if len(said) == 1 and (len(calls) > 1 or calls[0].name == "Text2Image"):
        return said[0]
    if len(said) != len(calls):
        raise InputError(f"{len(calls)} commands have {len(said)} results: one for each, or one for all")
    return "\n".join(
        f"{render_command(call)} =>\n{answer}" if call.name in _LISTING else f"{render_command(call)} => '{answer}'"
        for call, answer in zip(calls, said, strict=True)
    )


def _read_results(calls: Sequence[ToolCall], body: str) -> list[Message]:
    """Split a body into what each tool said; whole when the commands are not written above their results."""
    heads = [f"{render_command(call)} =>" for call in calls]
    pattern = r"\n".join(f"{re.escape(head)}(.*)" for head in heads)
    found = re.fullmatch(pattern, body, re.DOTALL) if heads else None
    if found is None:
        return [Message("tool", body, name=calls[0].name if len(calls) == 1 else "")]
    said = []
    for call, answer in zip(calls, found.groups(), strict=True):
        quoted = re.fullmatch(r" '(.*)'", answer, re.DOTALL)
        inner = answer[1:] if call.name in _LISTING or not quoted else quoted[1]
        said.append(Message("tool", inner, name=call.name))
    return said


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
    answers = _read_results(calls, body) if body else []
    return [asked, Message("assistant", "", thoughts, calls), *answers, Message("assistant", reply)]


def _encode_turn(messages: Sequence[Message], plugins: bool) -> dict[str, str]:
    asked, call, reply = messages[0], messages[1 % len(messages)], messages[-1]
    results = messages[2:-1]
    calls = call.tool_calls
    roles = [message.role for message in messages]
    plain = roles == ["user", "assistant"] and not calls
    called = roles == ["user", "assistant", *("tool" for _ in results), "assistant"] and len(messages) > 2
    if not plain and not (called and calls and not call.content and not reply.tool_calls and not reply.thoughts):
        raise InputError(
            "a MOSS turn is user, assistant; or user, assistant calling tools, tool answers, assistant "
            f"(thoughts before the calls only); found {', '.join(roles)}"
        )
    if not asked.content.strip() or not reply.content.strip():
        raise InputError("a message of the turn is empty")
    body = _render_results(calls, [message.content for message in results]) if results else NONE
    one_line = not plugins or (calls and all(call.name == "Text2Image" for call in calls))
    inner = {
        "Human": asked.content,
        "Inner Thoughts": call.thoughts or NONE,
        "Commands": ", ".join(map(render_command, calls)) or NONE,
        "MOSS": reply.content,
    }
    turn = {key: start + inner[key] + end for key, (start, end) in _SHELLS.items()}
    turn["Tool Responses"] = f"<|Results|>: {body}<eor>\n" if one_line else f"<|Results|>:\n{body}\n<eor>\n"
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


_KEPT = (
    *("conversation_id", "meta_instruction", "num_turns", "category"),
    *("chat", "chat.turn_N", *(f"chat.turn_N.{key}" for key in _KEYS)),
)
_EXAMPLE = Dialogue(
    (
        Message("user", "What is 12 times 12?"),
        Message("assistant", "", "The person wants a product.", (ToolCall("Calculate", '{"expression": "12*12"}'),)),
        Message("tool", "144", name="Calculate"),
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
