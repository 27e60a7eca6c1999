"""ShareGPT as FastChat trains Vicuna on it: conversations of from and value."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from selfinstruct.errors import InputError
from selfinstruct.formats.format import Format, Row, compact, fields, has, identity, items, rest, text
from selfinstruct.formats.turns import alternating
from selfinstruct.values import Dialogue, Message, Record, Role

ROLES: Mapping[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "system": "system",
}
"""The names met in ShareGPT dumps; FastChat itself knows human and gpt only."""
TURN_KEYS = ("conversations", "conversations.from", "conversations.value")


def conversation(row: Mapping[str, Any], roles: Mapping[str, Role]) -> tuple[Message, ...]:
    """Read the turns under `conversations`.

    Raises:
        InputError: it is not a list of from and value, or a role is not in `roles`.
    """
    messages = []
    for number, turn in enumerate(items(row, "conversations"), 1):
        turn = fields(turn)
        name = text(turn, "from")
        if name not in roles:
            raise InputError(f'turn {number}: unknown role "{name}" (expected {", ".join(roles)})')
        messages.append(Message(roles[name], text(turn, "value")))
    return tuple(messages)


def turn_rows(messages: Sequence[Message], names: Mapping[str, str]) -> list[dict[str, str]]:
    """Write messages as objects of from and value."""
    return [{"from": names[message.role], "value": message.content} for message in messages]


def content_id(rows: Any) -> str:
    """Return a short id made of the content, for records that came without one."""
    return hashlib.sha256(compact(rows).encode(errors="surrogatepass")).hexdigest()[:16]


def _decode(row: Row) -> list[Record]:
    row = fields(row)
    messages = conversation(row, ROLES)
    # A column, which LLaMA-Factory's files have too; a turn goes before it, as there.
    system = text(row, "system", "")
    if messages and messages[0].role == "system":
        system, messages = messages[0].content, messages[1:]
    return [Dialogue(messages, system=system, id=identity(row, "id"), extra=rest(row, "model", "plugins"))]


def _encode(dialogue: Dialogue) -> list[Row]:
    turns = turn_rows(alternating(dialogue), {"user": "human", "assistant": "gpt"})
    identity = dialogue.id or content_id(turns)
    return [{"id": identity, "conversations": turns} | rest(dialogue.extra, "model", "plugins")]


def _matches(row: Row) -> int:
    if not has(row, "conversations") or not isinstance(row["conversations"], list) or not row["conversations"]:
        return 0
    if any(key in row for key in ("chosen", "rejected", "tools", "label", "kto_tag")):
        return 0
    turns = row["conversations"]
    if not all(has(turn, "from", "value") for turn in turns):
        return 0
    roles = {turn["from"] for turn in turns if isinstance(turn["from"], str)}
    return 3 * bool(roles <= set(ROLES) and "gpt" in roles)


FORMATS = (
    Format(
        name="sharegpt",
        summary="ShareGPT / Vicuna: array of id, conversations [{from: human|gpt, value}]",
        source="lm-sys/FastChat fastchat/data and fastchat/train/train.py; FreedomIntelligence/LLMZoo",
        layout="json",
        kinds=frozenset({Dialogue}),
        keys=("id", *TURN_KEYS, "model", "plugins", "system"),
        decode=_decode,
        encode=_encode,
        matches=_matches,
        example=Dialogue(
            (
                Message("user", "Name a river in Africa."),
                Message("assistant", "The Nile."),
                Message("user", "And a longer one?"),
                Message("assistant", "None is clearly longer."),
            ),
            id="nile_0",
        ),
        works="human first, gpt last, strict alternation, no empty turn, unique ids (made of content when missing, "
        "with the record's number behind them when there before); "
        "no system prompt: FastChat skips or fails on it",
        unique="id",
    ),
)
