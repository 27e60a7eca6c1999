"""The turns of a dialogue: their order, and dialogues written inside one string with a label before each turn."""

from __future__ import annotations

import re
from collections.abc import Sequence

from selfinstruct.errors import InputError
from selfinstruct.values import Dialogue, Message, Role

_WHOSE = {"user": "the user's", "assistant": "the assistant's", "tool": "a tool's", "system": "a system prompt"}


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
        allowed = _after(before)
        if message.role not in allowed:
            wanted = " or ".join(_WHOSE[role] for role in allowed)
            raise InputError(f"message {number} must be {wanted}, found {_WHOSE[message.role]}")
        if message.tool_calls and message.role != "assistant":
            raise InputError(f"message {number} ({message.role}) calls a tool: only the assistant does")
        if message.role != "tool" and not message.content.strip() and not message.tool_calls:
            raise InputError(f"message {number} ({message.role}) is empty")
        before = message
    if dialogue.messages[-1].role != last:
        raise InputError(f"the dialogue must end with the {last}, it ends with the {dialogue.messages[-1].role}")
    return dialogue.messages


def _after(before: Message | None) -> tuple[Role, ...]:
    if before is None:
        return ("user",)
    if before.role == "assistant":
        return ("tool",) if before.tool_calls else ("user",)
    return ("assistant", "tool") if before.role == "tool" else ("assistant",)


def alternating(dialogue: Dialogue, last: Role = "assistant") -> tuple[Message, ...]:
    """Return the messages, checked: user first, `last` at the end, strictly in turn, none empty, no tools.

    Raises:
        InputError: which message breaks which rule.
    """
    for number, message in enumerate(dialogue.messages, 1):
        if message.tool_calls:
            raise InputError(f"message {number} calls a tool, which this format can't hold")
    return checked(dialogue, last)


def turns(transcript: str, label: re.Pattern[str], people: Sequence[str]) -> list[Message] | None:
    """Split a transcript at its labels; None when it does not start with one.

    `label` matches from the separator to the text and captures the name; the names in `people` are the
    user's, others the assistant's. The text of a turn is kept as it stands.
    """
    if label.match(transcript) is None:
        return None
    parts = label.split(transcript)
    return [
        Message("user" if name in people else "assistant", content)
        for name, content in zip(parts[1::2], parts[2::2], strict=True)
    ]
