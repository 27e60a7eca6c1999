# ruff: noqa: T201
"""Write the files that the trainers are run on: a hundred records of each kind, Chinese and English, with tools.

Where the real samples lie beside the checkout (`../shared/data`), a hundred of each of them too.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from selfinstruct import formats
from selfinstruct.values import Comparison, Dialogue, Instance, Message, Record, Response, Task, ToolCall

COUNT = 100
SAMPLES = Path(__file__).resolve().parents[2] / "shared" / "data"
SCHEMAS = [
    {
        "name": "multiply",
        "description": "Multiply two whole numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
    {
        "name": "look_up",
        "description": "Look a word up.",
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string"}, "exact": {"type": "boolean"}},
            "required": ["word"],
        },
    },
]


def tasks() -> list[Record]:
    """Tasks with and without input, in two languages."""
    return [
        Task(f"把数字{n}写成英文。", (Instance("", f"The number is {n}."),))
        if n % 2
        else Task("Double the number.", (Instance(str(n), f"{2 * n}"),))
        for n in range(COUNT)
    ]


def dialogues() -> list[Record]:
    """Dialogues of one to three turns."""
    found: list[Record] = []
    for n in range(COUNT):
        turns = [(f"What comes after {n + i}?", f"{n + i + 1} comes after it.") for i in range(n % 3 + 1)]
        messages = [m for asked, said in turns for m in (Message("user", asked), Message("assistant", said))]
        found.append(Dialogue(tuple(messages), id=f"d{n}"))
    return found


def tool_dialogues() -> list[Record]:
    """Dialogues in which the assistant thinks, calls one tool or two at once, or none, and answers."""
    found: list[Record] = []
    for n in range(COUNT):
        calls = (
            ToolCall("multiply", json.dumps({"a": n, "b": 7}), f"call_{n}_0"),
            ToolCall("look_up", json.dumps({"word": f"product {n}", "exact": True}), f"call_{n}_1"),
        )[: n % 3]
        said = (json.dumps({"product": 7 * n}), f"The product of {n} and 7.")
        reply = Message("assistant", f"It is {7 * n}.", "" if calls else "No tool is needed.")
        asking = (Message("assistant", "", "A product: I use the tool." if n % 2 else "", calls),) if calls else ()
        results = (Message("tool", text, "", (), c.name, c.id) for text, c in zip(said, calls, strict=False))
        messages = (Message("user", f"What is {n} times 7?"), *asking, *results, reply)
        found.append(Dialogue(messages, "You are careful." if n % 2 else "", extra={"tools": SCHEMAS}))
    return found


def comparisons() -> list[Record]:
    """Comparisons after a question or a dialogue."""
    found: list[Record] = []
    for n in range(COUNT):
        responses = (Response(f"{n + 1}.", rank=0), Response("I would rather not count.", rank=1))
        before = (Message("user", "Can you count?"), Message("assistant", "Yes."), Message("user", f"After {n}?"))
        found.append(Comparison(f"What comes after {n}?" if n % 2 else Dialogue(before), responses))
    return found


def plain_comparisons(records: Sequence[Record]) -> list[Record]:
    """Return the comparisons after a question."""
    return [record for record in records if isinstance(record, Comparison) and isinstance(record.prompt, str)]


def real(*files: str) -> list[Record]:
    """Return the first hundred records of each real sample that is here."""
    paths = [path for file in files if (path := SAMPLES / file).exists()]
    return [record for path in paths for record in itertools.islice(formats.read(path), COUNT)]


def main(folder: Path) -> None:
    """Write everything; a single refused record is a failure."""
    single = tasks() + real("alpaca_en_demo.json", "alpaca_zh_demo.json")
    chats = dialogues() + real("alpaca_en_demo.json", "alpaca_zh_demo.json")
    tools = tool_dialogues() + real("glaive_toolcall_en_demo.json")
    preferences = comparisons() + real("dpo_zh_demo.json")
    plain = plain_comparisons(preferences)
    plan: Sequence[tuple[str, str, list[Record]]] = (
        ("messages", "trl/messages.jsonl", chats),
        ("messages", "trl/tools.jsonl", tools),
        ("prompt-completion", "trl/prompt_completion.jsonl", single),
        ("preference", "trl/preference.jsonl", preferences),
        ("kto", "trl/kto.jsonl", preferences),
        ("messages", "trl/messages.parquet", chats),
        ("messages", "trl/tools.parquet", tools),
        ("preference-text", "trl/preference_text.jsonl", plain),
        ("kto-text", "trl/kto_text.jsonl", plain),
        ("llama-factory", "llama-factory/alpaca.json", single + dialogues()),
        ("llama-factory-sharegpt", "llama-factory/tools.json", tools),
        ("llama-factory-sharegpt", "llama-factory/columns.parquet", tools),
        ("llama-factory-ranking", "llama-factory/ranking.json", preferences),
        ("llama-factory-kto", "llama-factory/kto.json", preferences),
        ("axolotl", "axolotl/tools.jsonl", tools),
        ("axolotl-dpo", "axolotl/dpo.jsonl", preferences),
        ("alpaca", "axolotl/alpaca.json", single),
        ("gpteacher", "axolotl/gpteacher.json", single),
        ("sharegpt", "fastchat/sharegpt.json", dialogues()),
        ("deepspeed-chat", "deepspeed-chat/sft", chats),
        ("deepspeed-chat", "deepspeed-chat/ranking", comparisons()),
    )
    for name, path, records in plan:
        report = formats.write(name, records, folder / path)
        assert report.written == len(records), (name, report.refused[:3])
        assert not report.refused, report.refused
        print(f"{path}: {report.written} records, {report.rows} rows")
    print(f"of them real samples: {'yes' if SAMPLES.is_dir() else 'none here'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
