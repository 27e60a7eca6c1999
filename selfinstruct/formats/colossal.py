"""ColossalChat: from with user and assistant, text in content.

Source: ColossalAI applications/ColossalChat, coati/dataset/tokenization_utils.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfinstruct.errors import InputError
from selfinstruct.formats.format import Format, Row, boolean, fields, has, kind, text
from selfinstruct.formats.messages import MESSAGE_KEYS, message_rows, read_messages
from selfinstruct.formats.preferences import labelled
from selfinstruct.formats.shape import pairs, plain_prompt, prompt_dialogue, rated, said, two
from selfinstruct.formats.turns import alternating
from selfinstruct.values import Comparison, Dialogue, Message, Record, Response


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
        elif role in ("user", "human", "assistant"):  # human: before they took system prompts
            messages.append(Message("assistant" if role == "assistant" else "user", text(row, "content")))
        else:
            raise InputError(f'message {number}: "from" must be user or assistant (system first only), found "{role}"')
    return system, tuple(messages)


def _decode_colossal(row: Row) -> list[Record]:
    system, messages = _read_colossal(fields(row).get("messages"))
    return [Dialogue(messages, system)]


def _encode_colossal(dialogue: Dialogue) -> list[Row]:
    return [{"messages": _colossal_rows(dialogue.system, alternating(dialogue))}]


def _colossal_context(comparison: Comparison) -> list[dict[str, str]]:
    prompt = prompt_dialogue(comparison.prompt)
    return _colossal_rows(prompt.system, alternating(prompt, "user"))


def _colossal_prompt(value: Any) -> str | Dialogue:
    system, messages = _read_colossal(value)
    return plain_prompt(Dialogue(messages, system))


def _colossal_answer(value: Any) -> str:
    _, messages = _read_colossal(value)
    if len(messages) != 1 or messages[0].role != "assistant":
        raise InputError("expected one assistant message")
    return messages[0].content


def _reply(response: Response) -> dict[str, str]:
    return {"from": "assistant", "content": said(response)}


def _decode_colossal_preference(row: Row) -> list[Record]:
    row = fields(row)
    responses = two(_colossal_answer(row.get("chosen")), _colossal_answer(row.get("rejected")))
    return [Comparison(_colossal_prompt(row.get("context")), responses)]


def _encode_colossal_preference(comparison: Comparison) -> list[Row]:
    # The docstring of their tokenizer says object, its code iterates a list.
    context = _colossal_context(comparison)
    return [{"context": context, "chosen": [_reply(b)], "rejected": [_reply(w)]} for b, w in pairs(comparison)]


def _decode_colossal_kto(row: Row) -> list[Record]:
    row = fields(row)
    response = rated(_colossal_answer(row.get("completion")), boolean(row, "label"))
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


def _keys(*names: str) -> tuple[str, ...]:
    return tuple(key for name in names for key in (name, f"{name}.from", f"{name}.content"))


_CHAT = Dialogue(
    (Message("user", "Say hello in French."), Message("assistant", "Bonjour!")), system="You are a translator."
)
_BETTER = Comparison("Name a planet.", two("Mars.", "The Sun."))
_GOOD = Comparison("Name a planet.", (Response("Mars.", score=1.0),))
FORMATS = (
    Format(
        name="colossalai",
        summary="ColossalChat SFT: JSONL of messages [{from: user|assistant|system, content}]",
        source="ColossalAI applications/ColossalChat coati/dataset/tokenization_utils.py",
        layout="jsonl",
        kinds=frozenset({Dialogue}),
        keys=_keys("messages"),
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
        keys=_keys("context", "chosen", "rejected"),
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
        keys=(*_keys("prompt", "completion"), "label"),
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
        keys=MESSAGE_KEYS,
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
