"""Given prompts and dialogues are gone on with, over a real socket."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from selfinstruct.errors import ConfigError
from selfinstruct.languages import load_pack
from selfinstruct.markers import voices
from selfinstruct.plan import plan
from selfinstruct.recipes.dialogue import render
from selfinstruct.report import outlook
from selfinstruct.store import RunView
from selfinstruct.values import Dialogue, Message
from tests.backends.endpoint import Endpoint, Reply, Seen, chat
from tests.program import selfinstruct
from tests.recipes.talk import model, work


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    with Endpoint(model()) as server:
        yield server


def rows(path: Path, *conversations: Sequence[tuple[str, str]]) -> str:
    written = [{"messages": [{"role": who, "content": said} for who, said in each]} for each in conversations]
    path.write_text("\n".join(json.dumps(row) for row in written), encoding="utf-8")
    return str(path)


def roles(dialogue: Dialogue) -> str:
    return "".join(message.role[0] for message in dialogue.messages)


PAIR = [("user", "What keeps a beehive warm in winter?"), ("assistant", "The bees shiver in a ball around the queen.")]


def test_a_prompt_is_answered_and_asked_about_again(endpoint: Endpoint, tmp_path: Path) -> None:
    data = tmp_path / "in.json"
    data.write_text(
        '[{"instruction": "Explain the tides.", "input": "For a child.", "output": "Old."}]', encoding="utf-8"
    )
    (found,) = work("vicuna", endpoint, tmp_path / "r", input=str(data), options={"turns": 2, "min_turns": 2})
    assert roles(found) == "uaua"
    assert found.messages[0] == Message("user", "Explain the tides.\nFor a child.")
    assert "Old." not in [message.content for message in found.messages]
    assert found.extra == {"stop": "max_turns", "turns": 2, "given": 1}
    first, second, _ = endpoint.requests
    assert first.json["messages"] == [{"role": "user", "content": "Explain the tides.\nFor a child."}]
    assert "[User] Explain the tides.\nFor a child.\n[Assistant] " in second.json["messages"][0]["content"]


def test_dialogues_are_gone_on_with_from_whoever_spoke_last(endpoint: Endpoint, tmp_path: Path) -> None:
    asked = [*PAIR, ("user", "And without a queen?")]
    data = rows(tmp_path / "in.jsonl", PAIR, asked)
    found = work("vicuna", endpoint, tmp_path / "r", input=data, options={"turns": 1})
    assert [roles(dialogue) for dialogue in found] == ["uaua", "uaua"]
    assert [dialogue.extra["given"] for dialogue in found] == [2, 3]
    assert [message.content for message in found[1].messages[:3]] == [said for _, said in asked]
    assert len(endpoint.requests) == 3, "a question was asked for where one was given"


def test_the_system_prompt_goes_with_every_reply_and_into_the_record(endpoint: Endpoint, tmp_path: Path) -> None:
    data = rows(tmp_path / "in.jsonl", [("system", "Speak like a beekeeper."), PAIR[0]])
    (found,) = work("vicuna", endpoint, tmp_path / "r", input=data, options={"turns": 2, "min_turns": 2})
    assert found.system == "Speak like a beekeeper."
    heads = [request.json["messages"][0] for request in endpoint.requests]
    assert [head["role"] for head in heads] == ["system", "user", "system"]


def test_nothing_is_forecast_where_the_rows_are_used_up(endpoint: Endpoint, tmp_path: Path) -> None:
    data = rows(tmp_path / "in.jsonl", PAIR[:1], [("user", "What is wax?")], [("user", "???")])
    assert len(work("vicuna", endpoint, tmp_path / "r", input=data, options={"turns": 1})) == 2
    with RunView.open(tmp_path / "r") as view:
        assert view.summary().rejected == {"no_tokens": 1}
        ahead = outlook(view, None)
    assert ahead["wanted"] == 0
    assert "more records" not in selfinstruct("status", tmp_path / "r").stdout


def test_long_given_dialogues_are_shown_in_part_and_kept_whole(endpoint: Endpoint, tmp_path: Path) -> None:
    long = [
        (who, f"{said} Story {number}, told at length and then once more.") for number in range(9) for who, said in PAIR
    ]
    options = {"turns": 1, "history_tokens": 200}
    (found,) = work("vicuna", endpoint, tmp_path / "r", input=rows(tmp_path / "in.jsonl", long), options=options)
    assert len(found.messages) == 20
    assert found.extra["history_trimmed"] > 8
    assert all("Story 0" not in json.dumps(request.json) for request in endpoint.requests)


@pytest.mark.parametrize(
    ("row", "filter"),
    [
        ([("user", "One?"), ("user", "Two?")], "alternation"),
        ([("assistant", "Hello!"), ("user", "What is a hive?")], "alternation"),
        ([("user", "What is a hive?"), ("assistant", "I'm sorry, but I can't say."), ("user", "Why?")], "refusal"),
    ],
)
def test_what_is_lost_already_costs_nothing(
    row: list[tuple[str, str]], filter: str, endpoint: Endpoint, tmp_path: Path
) -> None:
    assert work("vicuna", endpoint, tmp_path / "r", input=rows(tmp_path / "in.jsonl", row)) == []
    assert not endpoint.requests
    with RunView.open(tmp_path / "r") as view:
        assert view.summary().rejected == {filter: 1}


def test_dialogues_with_tools_are_turned_away_by_name(endpoint: Endpoint, tmp_path: Path) -> None:
    call: Mapping[str, Any] = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}],
    }
    messages = [
        {"role": "user", "content": "What time is it?"},
        call,
        {"role": "tool", "tool_call_id": "1", "content": "12"},
    ]
    data = tmp_path / "in.jsonl"
    data.write_text(json.dumps({"messages": [*messages, {"role": "assistant", "content": "Noon."}]}), encoding="utf-8")
    assert work("vicuna", endpoint, tmp_path / "r", input=str(data)) == []
    with RunView.open(tmp_path / "r") as view:
        assert view.summary().rejected == {"parse": 1}


def test_a_reply_that_never_comes_is_a_rejection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")

    def silent(seen: Seen) -> Reply:
        return chat("")

    with Endpoint(silent) as server:
        assert work("vicuna", server, tmp_path / "r", input=rows(tmp_path / "in.jsonl", PAIR, PAIR[:1])) == []
    with RunView.open(tmp_path / "r") as view:
        assert view.summary().rejected == {"parse": 2}


def test_a_sharegpt_dump_keeps_its_ids(endpoint: Endpoint, tmp_path: Path) -> None:
    turns = [{"from": who, "value": said} for who, said in zip(("human", "gpt"), dict(PAIR).values(), strict=True)]
    (tmp_path / "in.json").write_text(json.dumps([{"id": "hive_0", "conversations": turns}]), encoding="utf-8")
    (found,) = work("vicuna", endpoint, tmp_path / "r", input=str(tmp_path / "in.json"), options={"turns": 1})
    assert (found.id, roles(found)) == ("hive_0", "uaua")


def test_it_needs_an_input() -> None:
    with pytest.raises(ConfigError, match="--input"):
        plan([{"recipe": "vicuna", "model": "openai/x"}])


@pytest.mark.parametrize("tag", ["en", "zh"])
def test_a_small_model_goes_on_with_a_transcript(tag: str, endpoint: Endpoint, tmp_path: Path) -> None:
    asked = "What keeps a beehive warm in winter?" if tag == "en" else "冬天这么冷，蜂箱里的蜜蜂怎么保暖？"
    data = rows(tmp_path / "in.jsonl", [("user", f"{asked}\n{'？' * 300}")])
    style = {"model": "vllm/test", "style": "stepwise", "options": {"turns": 3}}
    (found,) = work("vicuna", endpoint, tmp_path / "r", style, input=data, language=tag)
    assert roles(found) == "uauaua"
    who = voices(load_pack(tag))
    raw = [request.json["prompt"] for request in endpoint.requests if "prompt" in request.json]
    assert len(raw) == 2, "the first prompt was given"
    assert all(text.endswith(f"\n{who.marker('user')}") for text in raw)
    assert all(render(found.messages[:2], who) in text for text in raw)
    topic = raw[0].rpartition(f"\n{who.marker('user')} {asked}")[0].splitlines()[-1]
    assert topic.endswith("？？"), "a long first prompt is shown in one line"
    assert len(topic) < 220
