"""The rules of trainers, restated from their sources and tried on records that nobody would think of.

TRL, Axolotl, FastChat and LLaMA-Factory run themselves in `.ci/trainers`; ColossalChat is on no package index.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from selfinstruct import formats
from selfinstruct.errors import InputError
from selfinstruct.formats import shape
from selfinstruct.values import Comparison, Dialogue, Message, Record, Response
from tests.formats.records import any_record, dialogues, good_or_bad, preferences, tool_dialogues


def deepspeed_keeps(row: dict[str, Any]) -> bool:
    """dschat LocalJsonFileDataset: a row without prompt or chosen gives None, and the sample is skipped."""
    return (
        row.get("prompt") is not None
        and row.get("chosen") is not None
        and row["prompt"].startswith("Human:")
        and row["prompt"].endswith("Assistant:")
    )


def colossal_keeps(messages: list[dict[str, str]]) -> bool:
    """coati supervised_tokenize_sft: user and assistant in strict turn after a system message, even length."""
    turns = messages[1:] if messages and messages[0]["from"] == "system" else messages
    return (
        len(turns) > 0
        and len(turns) % 2 == 0
        and all(turn["from"] == ("user", "assistant")[i % 2] for i, turn in enumerate(turns))
        and all(turn["content"] for turn in turns)
    )


def colossal_kto_keeps(row: dict[str, Any]) -> bool:
    """coati tokenize_kto: the prompt starts with the user after a system message, the completion is one object."""
    return (
        colossal_keeps([*row["prompt"], row["completion"]])
        and row["completion"]["from"] == "assistant"
        and isinstance(row["label"], bool)
    )


def colossal_lora_keeps(row: Any) -> bool:
    """coati RawConversationDataset, for lora_finetune.py: each line a list that `apply_chat_template` takes."""
    turns = row[1:] if row[0]["role"] == "system" else row
    in_turn = all(turn["role"] == ("user", "assistant")[i % 2] for i, turn in enumerate(turns))
    return in_turn and len(turns) % 2 == 0 and all({"role", "content"} <= set(turn) for turn in row)


def fastchat_keeps(conversation: list[dict[str, str]]) -> bool:
    """fastchat train.py preprocess: roles human and gpt only, human first, strictly in turn."""
    return all(turn["from"] == ("human", "gpt")[i % 2] for i, turn in enumerate(conversation)) and bool(conversation)


def llama_factory_keeps(conversation: list[dict[str, str]], ranking: bool = False) -> bool:
    """converter.py SharegptDatasetConverter: odd places human or observation, even gpt or function_call."""
    places = (("human", "observation"), ("gpt", "function_call"))
    in_turn = all(turn["from"] in places[i % 2] for i, turn in enumerate(conversation))
    return in_turn and len(conversation) % 2 == (1 if ranking else 0) and len(conversation) > 0


def written_rows(name: str, record: Record) -> list[dict[str, Any]]:
    format = formats.get(name)
    try:
        parts = shape.split(record, format.kinds)
        return [row for part in parts for row in format.encode(part)]
    except InputError:
        return []


@settings(max_examples=200, deadline=None)
@given(record=st.one_of(any_record, tool_dialogues(ids=False), dialogues(), preferences, good_or_bad))
def test_every_row_we_write_is_one_the_trainer_keeps(record: Record) -> None:
    for row in written_rows("deepspeed-chat", record):
        assert deepspeed_keeps(row)
    for row in written_rows("colossalai", record):
        assert colossal_keeps(row["messages"])
    for row in written_rows("colossalai-preference", record):
        assert row["context"][-1]["from"] == "user"
        assert colossal_keeps(row["context"] + row["chosen"])
        assert colossal_keeps(row["context"] + row["rejected"])
    for row in written_rows("colossalai-kto", record):
        assert colossal_kto_keeps(row)
    for lora in written_rows("colossalai-lora", record):
        assert colossal_lora_keeps(lora)
    for row in written_rows("sharegpt", record):
        assert fastchat_keeps(row["conversations"])
    for row in written_rows("llama-factory-sharegpt", record):
        assert llama_factory_keeps(row["conversations"]) or row["conversations"][-1]["from"] == "function_call"
        assert all(isinstance(row[key], str) for key in ("system", "tools"))
        for turn in row["conversations"]:
            if turn["from"] == "function_call":
                json.loads(turn["value"].rpartition("</think>\n\n")[2])
    for row in written_rows("llama-factory-ranking", record):
        assert llama_factory_keeps(row["conversations"], ranking=True)
        assert row["chosen"]["from"] == row["rejected"]["from"] == "gpt"
    for row in written_rows("llama-factory-kto", record):
        assert llama_factory_keeps(row["conversations"])
        assert isinstance(row["kto_tag"], bool)


@pytest.mark.parametrize("name", ["colossalai", "colossalai-preference", "colossalai-kto", "colossalai-lora"])
def test_the_rows_that_colossalchat_is_told_of_are_written_at_all(name: str) -> None:
    assert written_rows(name, formats.get(name).example)


@pytest.mark.parametrize("name", ["axolotl", "axolotl-dpo"])
def test_axolotls_config_lines_name_the_file_and_its_fields(name: str, tmp_path: Path) -> None:
    format = formats.get(name)
    formats.write(name, [format.example], tmp_path / "data.jsonl")
    config = yaml.safe_load((tmp_path / "data.axolotl.yaml").read_text(encoding="utf-8"))
    (entry,) = config["datasets"]
    row = json.loads((tmp_path / entry["path"]).read_text(encoding="utf-8"))
    assert entry["type"].startswith("chat_template")
    assert {value for key, value in entry.items() if key.startswith("field_")} <= set(row) | {"tools"}
    assert all({"role", "content"} <= set(message) for message in row["messages"])


def test_deepspeed_needs_both_files(tmp_path: Path) -> None:
    pair = (Response("a", rank=0), Response("b", rank=1))
    with pytest.raises(InputError, match="at least two records"):
        formats.write("deepspeed-chat", [Comparison("q", pair)], tmp_path / "data")
    assert not list(tmp_path.glob("data/*.json"))
    report = formats.write("deepspeed-chat", [Comparison(f"q{n}", pair) for n in range(41)], tmp_path / "data")
    assert report.written == 41
    train, held_out = (json.loads((tmp_path / "data" / f"{part}.json").read_bytes()) for part in ("train", "eval"))
    assert (len(train), len(held_out)) == (38, 3)
    assert {row["prompt"] for row in train} & {row["prompt"] for row in held_out} == set()


def test_deepspeeds_files_are_for_one_step_only(tmp_path: Path) -> None:
    chat = Dialogue((Message("user", "q"), Message("assistant", "a")))
    pair = Comparison("q", (Response("a", rank=0), Response("b", rank=1)))
    report = formats.write("deepspeed-chat", [chat, chat, pair], tmp_path / "data")
    assert (report.written, report.refused_count) == (2, 1)
    assert "one key family" in report.refused[0][1]
