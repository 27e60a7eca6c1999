"""Baize's self-chat, in one completion and in turn, over a real socket."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfinstruct import formats
from selfinstruct.errors import ConfigError
from selfinstruct.filters import DEFAULT_FILTERS, build_filters
from selfinstruct.languages import load_pack
from selfinstruct.markers import voices
from selfinstruct.plan import plan
from selfinstruct.recipes.dialogue import STOPS, exchanges, render
from selfinstruct.store import RunView
from selfinstruct.testing import Scripted
from selfinstruct.values import Candidate, Completion, Dialogue, Request, Usage
from tests.backends.endpoint import Endpoint, Reply, Seen, chat
from tests.program import selfinstruct
from tests.recipes.runs import grow
from tests.recipes.talk import ask, model, say, work

STYLES = ["v1", "v2", "stepwise"]


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    with Endpoint(model()) as server:
        yield server


@pytest.fixture
def damaged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    with Endpoint(model(damage=0.5)) as server:
        yield server


def sound(dialogue: Dialogue, tag: str = "en") -> bool:
    return all(
        check(Candidate(dialogue)) is None for _, check in build_filters(DEFAULT_FILTERS["dialogues"], load_pack(tag))
    )


@pytest.mark.parametrize("style", STYLES)
def test_topics_become_dialogues(style: str, endpoint: Endpoint, tmp_path: Path) -> None:
    found = work(
        "baize", endpoint, tmp_path / "r", target=12, style=style, options={"personas": ["a baker", "a nurse"]}
    )
    assert len(found) == 12
    for dialogue in found:
        assert sound(dialogue)
        assert dialogue.topic
        assert dialogue.extra["category"]
        assert dialogue.extra["persona"] in ("a baker", "a nurse")
        assert dialogue.extra["stop"] in STOPS
        assert dialogue.extra["turns"] == exchanges(dialogue.messages) <= 4
    prompts = [request.json["messages"][0]["content"] for request in endpoint.requests]
    assert any("a baker" in text for text in prompts if "Topic: " in text)
    assert all("[User]" not in text for text in prompts if "Topic: " not in text), "the assistant sees no transcript"


@pytest.mark.parametrize("style", STYLES)
def test_damage_costs_what_is_damaged_and_no_more(style: str, damaged: Endpoint, tmp_path: Path) -> None:
    found = work("baize", damaged, tmp_path / "r", target=20, style=style)
    assert len(found) == 20
    assert all(sound(dialogue) for dialogue in found)
    assert len({dialogue.extra["stop"] for dialogue in found}) > 1
    with RunView.open(tmp_path / "r") as view:
        rejected = view.summary().rejected
    assert rejected
    assert not set(rejected) - {"parse", "novelty", "novelty_whole", *DEFAULT_FILTERS["dialogues"]}


def test_chinese_topics_and_markers(endpoint: Endpoint, tmp_path: Path) -> None:
    found = work("baize", endpoint, tmp_path / "r", target=6, language="zh")
    assert all(sound(dialogue, "zh") for dialogue in found)
    assert "[用户]" in endpoint.requests[0].json["messages"][0]["content"]


def test_a_language_without_a_pack_gets_the_english_frame_that_names_it(endpoint: Endpoint, tmp_path: Path) -> None:
    english = {"filters": {"language": False}}  # what the endpoint answers
    found = work("baize", endpoint, tmp_path / "r", english, target=2, language="sw")
    assert len(found) == 2
    assert "in sw" in endpoint.requests[0].json["messages"][0]["content"]


def test_shares_by_category(endpoint: Endpoint, tmp_path: Path) -> None:
    found = work("baize", endpoint, tmp_path / "r", target=10, quota={"law": 0.3, "food": 0.7})
    assert Counter(dialogue.extra["category"] for dialogue in found) == {"law": 3, "food": 7}


def test_the_person_s_sight_of_the_talk_is_bounded(endpoint: Endpoint, tmp_path: Path) -> None:
    options = {"turns": 4, "min_turns": 4, "history_tokens": 90}
    found = work("baize", endpoint, tmp_path / "r", target=3, style="v2", options=options)
    assert all(dialogue.extra["turns"] == 4 for dialogue in found)
    assert all(dialogue.extra["history_trimmed"] > 0 for dialogue in found)
    assert all("[END]" not in request.json["messages"][-1]["content"] for request in endpoint.requests)


def test_v2_may_stop_after_any_exchange_but_not_before_min_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")

    def eager(seen: Seen) -> Reply:
        text = seen.json["messages"][-1]["content"]
        rng = random.Random(seen.json["seed"])
        if "[END]" in text:
            return chat("Thanks, that helps. [END]")
        return chat(ask(rng) if text.startswith("You play") else say(rng))

    with Endpoint(eager) as server:
        found = work("baize", server, tmp_path / "r", target=4, style="v2", options={"turns": 5, "min_turns": 2})
    assert [(each.extra["turns"], each.extra["stop"]) for each in found] == [(2, "natural_close")] * 4


@pytest.mark.parametrize("tag", ["en", "zh"])
def test_a_small_model_goes_on_with_a_transcript(tag: str, endpoint: Endpoint, tmp_path: Path) -> None:
    found = work("baize", endpoint, tmp_path / "r", {"model": "vllm/test"}, target=3, style="stepwise", language=tag)
    who = voices(load_pack(tag))
    raw = [request.json["prompt"] for request in endpoint.requests if "prompt" in request.json]
    assert all(text.endswith(f"\n{who.marker('user')}") for text in raw)
    assert any(render(found[0].messages[:2], who) in text for text in raw)
    assert {tuple(request.json["stop"]) for request in endpoint.requests if "prompt" in request.json} == {("\n",)}
    assert all(sound(dialogue, tag) and dialogue.extra["stop"] == "max_turns" for dialogue in found)


@pytest.mark.parametrize(("unsure", "turns"), [(0, None), (1, 1), (2, 2), (9, 3)])
def test_what_a_small_model_is_unsure_of_ends_the_talk_and_costs_nothing_before_it(
    unsure: int, turns: int | None, tmp_path: Path
) -> None:
    who = voices(load_pack("en"))

    def answer(request: Request) -> Completion:
        rng = random.Random(request.seed)
        if request.prompt is None:
            return Completion(say(rng), "stop", Usage(9, 9), "m")
        asked = request.prompt.rpartition("\nTopic: ")[2].count(who.marker("user")) - 1
        return Completion(f" {ask(rng)}", "stop", Usage(9, 9), "m", logprob=-3.0 if asked == unsure else -1.0)

    (tmp_path / "t.txt").write_text("Why do tides come twice a day?", encoding="utf-8")
    settings: dict[str, Any] = {"style": "stepwise", "options": {"turns": 3}, "input": str(tmp_path / "t.txt")}
    found = grow(tmp_path / "r", "baize", Scripted(answer), filters={"low_logprob": {"minimum": -1.75}}, **settings)
    if turns is None:
        with RunView.open(tmp_path / "r") as view:
            assert view.summary().rejected == {"low_logprob": 1}
        return
    ((_, dialogue),) = found
    assert isinstance(dialogue, Dialogue)
    assert exchanges(dialogue.messages) == turns
    assert dialogue.extra["stop"] == ("max_turns" if turns == 3 else "unsure_turn")


def test_a_line_behind_which_more_was_to_follow_is_no_turn(tmp_path: Path) -> None:
    def answer(request: Request) -> str:
        rng = random.Random(request.seed)
        if request.prompt is None:
            return say(rng)
        return " So the answer is:" if "[Assistant] Since" in request.prompt else f" {ask(rng)}"

    (tmp_path / "t.txt").write_text("Why do tides come twice a day?", encoding="utf-8")
    ((_, dialogue),) = grow(
        tmp_path / "r", "baize", Scripted(answer), style="stepwise", input=str(tmp_path / "t.txt"), options={"turns": 3}
    )
    assert isinstance(dialogue, Dialogue)
    assert (dialogue.extra["turns"], dialogue.extra["stop"]) == (1, "empty_turn")


def test_a_base_model_goes_on_behind_the_first_marker(endpoint: Endpoint, tmp_path: Path) -> None:
    backend = {"base_url": endpoint.base_url, "endpoint": "completions"}
    found = work("baize", endpoint, tmp_path / "r", {"model": "vllm/test", "backend": backend}, target=2)
    assert len(found) == 2
    assert all(request.json["prompt"].endswith("\n[User]") for request in endpoint.requests)


@pytest.mark.parametrize(
    ("name", "content", "field", "topics"),
    [
        ("t.txt", "How do tides work?\nWhy is bread sour?\n", "", ["How do tides work?", "Why is bread sour?"]),
        ("t.json", '[{"instruction": "Explain tides.", "input": "", "output": "The moon does it."}]', "output",
         ["The moon does it."]),
        ("t.jsonl", '{"topic": "tides", "category": "nature"}\n', "", ["tides"]),
    ],
)  # fmt: skip
def test_topics_of_one_s_own(
    name: str, content: str, field: str, topics: list[str], endpoint: Endpoint, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    found = work("baize", endpoint, tmp_path / "r", input=str(tmp_path / name), options={"field": field})
    assert [dialogue.topic for dialogue in found] == topics


def test_a_field_that_is_not_there_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('[{"instruction": "Explain.", "input": "", "output": "So."}]', encoding="utf-8")
    planned = {"recipe": "baize", "model": "openai/x", "input": str(tmp_path / "t.json"), "options": {"field": "title"}}
    with pytest.raises(ConfigError, match=r"options\.field: the task has no text under 'title'"):
        plan([planned])


@pytest.mark.slow
def test_the_export_is_byte_for_byte_what_baize_trains_on(damaged: Endpoint, tmp_path: Path) -> None:
    found = work("baize", damaged, tmp_path / "r", target=8)
    done = selfinstruct("export", tmp_path / "r", "-o", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    rows = [
        {
            "topic": dialogue.topic,
            "input": "The conversation between human and AI assistant.\n"
            + "\n".join(
                f"[|{'Human' if message.role == 'user' else 'AI'}|] {message.content}" for message in dialogue.messages
            )
            + "\n[|Human|] ",
        }
        for dialogue in found
    ]
    assert (tmp_path / "out.json").read_text(encoding="utf-8") == json.dumps(rows)
    assert [each.messages for each in formats.read(tmp_path / "out.json") if isinstance(each, Dialogue)] == [
        each.messages for each in found
    ]


def test_whatever_holds_dialogues_takes_them_whole(endpoint: Endpoint, tmp_path: Path) -> None:
    found = [
        replace(each, id=f"dialogues-{n}-0") for n, each in enumerate(work("baize", endpoint, tmp_path / "r", target=3))
    ]
    taking = [name for name in formats.names() if Dialogue in formats.get(name).kinds]
    assert {"baize", "guanaco", "sharegpt", "messages", "llama-factory-sharegpt", "axolotl", "moss"} <= set(taking)
    for name in taking:
        if name == "moss-object":  # one dialogue a file
            continue
        report = formats.write(formats.get(name), found, tmp_path / f"{name}.{formats.get(name).layout}", lossy=False)
        assert (report.written, report.refused_count) == (3, 0), name
