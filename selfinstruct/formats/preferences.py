"""Preferences: TRL's paired and unpaired files, Axolotl's DPO.

Sources: trl docs/source/dataset_formats.md; axolotl prompt_strategies/dpo/chat_template.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfinstruct.errors import InputError
from selfinstruct.formats.format import Format, Row, boolean, fields, has, strings, text
from selfinstruct.formats.messages import message_keys, message_list, message_rows, read_messages
from selfinstruct.formats.shape import pairs, plain_prompt, prompt_dialogue, rated, said, tiers, two
from selfinstruct.formats.turns import checked
from selfinstruct.values import Comparison, Dialogue, Record, Response


def _asked(prompt: str | Dialogue) -> list[dict[str, Any]]:
    dialogue = prompt_dialogue(prompt)
    return message_rows(dialogue.system, checked(dialogue, "user"))


def _answer(response: Response) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": said(response)}]


def _plain(prompt: str | Dialogue) -> str:
    if not isinstance(prompt, str):
        raise InputError("a plain prompt can't hold a dialogue; the format of message lists can")
    if not prompt.strip():
        raise InputError("the prompt is empty")
    return prompt


def _read_prompt(value: Any, column: str) -> str | Dialogue:
    """Read a prompt, text or messages; `column` is the system prompt that some files have beside it."""
    if isinstance(value, str):
        return plain_prompt(replace(prompt_dialogue(value), system=column))
    system, messages = read_messages(value)
    return plain_prompt(Dialogue(messages, system or column))


def _read_answer(value: Any, key: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        value = [value]
    _, messages = read_messages(value)
    if len(messages) != 1 or messages[0].role != "assistant" or messages[0].tool_calls or messages[0].thoughts:
        raise InputError(f'"{key}" must be one plain assistant message')
    return messages[0].content


def _decode_preference(row: Row) -> list[Record]:
    row = fields(row)
    chosen, rejected, system = row.get("chosen"), row.get("rejected"), text(row, "system", "")
    if row.get("prompt") is not None:
        prompt = _read_prompt(row["prompt"], system)
    elif isinstance(chosen, list) and isinstance(rejected, list):
        # An implicit prompt is what both share; the answers are what is left.
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        prompt, chosen, rejected = _read_prompt(chosen[:shared], system), chosen[shared:], rejected[shared:]
    else:
        prompt = ""
    responses = two(_read_answer(chosen, "chosen"), _read_answer(rejected, "rejected"))
    return [Comparison(prompt, responses)]


def _encode_preference(comparison: Comparison) -> list[Row]:
    asked = _asked(comparison.prompt)
    return [{"prompt": asked, "chosen": _answer(b), "rejected": _answer(w)} for b, w in pairs(comparison)]


def _encode_preference_text(comparison: Comparison) -> list[Row]:
    asked = _plain(comparison.prompt)
    return [{"prompt": asked, "chosen": said(b), "rejected": said(w)} for b, w in pairs(comparison)]


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
    response = rated(_read_answer(row.get("completion"), "completion"), boolean(row, "label"))
    return [Comparison(_read_prompt(row.get("prompt"), text(row, "system", "")), (response,))]


def _encode_kto(comparison: Comparison) -> list[Row]:
    asked = _asked(comparison.prompt)
    return [{"prompt": asked, "completion": _answer(r), "label": good} for r, good in labelled(comparison)]


def _encode_kto_text(comparison: Comparison) -> list[Row]:
    asked = _plain(comparison.prompt)
    return [{"prompt": asked, "completion": said(r), "label": good} for r, good in labelled(comparison)]


def _matches_kto(row: Row) -> int:
    return 4 * (has(row, "prompt", "completion") and isinstance(row.get("label"), bool))


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
    responses = two(_read_answer(row.get("chosen"), "chosen"), _read_answer(row.get("rejected"), "rejected"))
    return [Comparison(_read_prompt(row.get("messages"), text(row, "system", "")), responses)]


def _encode_axolotl_dpo(comparison: Comparison) -> list[Row]:
    asked = _asked(comparison.prompt)
    return [
        {"messages": asked, "chosen": _answer(better)[0], "rejected": _answer(worse)[0]}
        for better, worse in pairs(comparison)
    ]


_PAIR_KEYS = (*message_keys("prompt"), *message_keys("chosen"), *message_keys("rejected"), "system")
_LABEL_KEYS = (*message_keys("prompt"), *message_keys("completion"), "label", "system")
_BETTER = Comparison("Name a planet.", two("Mars.", "The Sun."))
_GOOD = Comparison("Name a planet.", (Response("Mars.", score=1.0),))
FORMATS = (
    Format(
        name="preference",
        summary="TRL DPO, ORPO, CPO, Reward: prompt, chosen, rejected as message lists (text is read too)",
        source="trl docs/source/dataset_formats.md (preference)",
        layout="jsonl",
        kinds=frozenset({Comparison}),
        keys=_PAIR_KEYS,
        decode=_decode_preference,
        encode=_encode_preference,
        matches=lambda row: (
            3
            * (
                has(row, "prompt", "chosen", "rejected")
                or (message_list(row, "chosen") and message_list(row, "rejected") and not has(row, "messages"))
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
        keys=_PAIR_KEYS,
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
        keys=_LABEL_KEYS,
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
        keys=_LABEL_KEYS,
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
        keys=(*message_keys("messages"), *message_keys("chosen"), *message_keys("rejected"), "system"),
        decode=_decode_axolotl_dpo,
        encode=_encode_axolotl_dpo,
        matches=lambda row: 4 * (message_list(row, "messages") and has(row, "chosen", "rejected")),
        example=_BETTER,
        works="messages end on the user; chosen strictly better",
        beside=_axolotl_dpo_config,
    ),
)
