"""Conversations out of seed tasks, of several kinds and in several languages, over a real socket."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfinstruct import formats
from selfinstruct.errors import ConfigError
from selfinstruct.formats.shape import user_text
from selfinstruct.languages import load_pack
from selfinstruct.markers import voices
from selfinstruct.plan import plan
from selfinstruct.recipes.guanaco import KINDS
from selfinstruct.seeds import load_tasks, path_for
from selfinstruct.values import Dialogue
from tests.backends.endpoint import Endpoint
from tests.recipes.talk import model, work


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    with Endpoint(model()) as server:
        yield server


def test_every_kind_comes_out_of_seed_tasks(endpoint: Endpoint, tmp_path: Path) -> None:
    found = work("guanaco", endpoint, tmp_path / "r", target=24)
    assert {dialogue.extra["kind"] for dialogue in found} == set(KINDS)
    across = {each.extra["across"] for each in found if each.extra["kind"] == "crosslingual"}
    assert across <= {"zh", "ja", "es", "ar"}
    assert not any("across" in each.extra for each in found if each.extra["kind"] != "crosslingual")
    path = path_for("en")
    assert path is not None
    texts = [user_text(task.instruction, task.instances[0].input) for task in load_tasks(path)]
    for request in endpoint.requests:
        assert any(text in request.json["messages"][0]["content"] for text in texts)


def test_several_languages_share_a_dataset(endpoint: Endpoint, tmp_path: Path) -> None:
    shares = {"en": 0.4, "zh": 0.3, "ja": 0.3}
    found = work(
        "guanaco",
        endpoint,
        tmp_path / "r",
        target=10,
        quota=shares,
        filters={"language_script": False, "language": False},
    )
    assert Counter(dialogue.extra["language"] for dialogue in found) == {"en": 4, "zh": 3, "ja": 3}
    prompts = [request.json["messages"][0]["content"] for request in endpoint.requests]
    assert any("[用户]" in text for text in prompts)
    assert any("in Japanese" in text and "[ユーザー]" in text for text in prompts)


def test_the_export_packs_the_history(endpoint: Endpoint, tmp_path: Path) -> None:
    found = work("guanaco", endpoint, tmp_path / "r", target=6)
    formats.write(formats.get("guanaco"), found, tmp_path / "out.json")
    for dialogue, row in zip(found, json.loads((tmp_path / "out.json").read_text(encoding="utf-8")), strict=True):
        *history, asked, answered = dialogue.messages
        names = {"user": "User", "assistant": "Assistant"}
        assert row == {
            "instruction": "\n".join(f"{names[each.role]}: {each.content}" for each in history),
            "input": f"User: {asked.content}",
            "output": answered.content,
        }
    back = [each.messages for each in formats.read(tmp_path / "out.json") if isinstance(each, Dialogue)]
    assert back == [each.messages for each in found]


@pytest.mark.parametrize("tag", ["en", "zh"])
def test_a_small_model_goes_on_with_a_transcript_about_a_seed_task(
    tag: str, endpoint: Endpoint, tmp_path: Path
) -> None:
    found = work("guanaco", endpoint, tmp_path / "r", {"model": "vllm/test"}, target=5, style="stepwise", language=tag)
    assert {dialogue.extra["kind"] for dialogue in found} == {"chat"}
    path, pack = path_for(tag), load_pack(tag)
    assert path is not None
    topics = [" ".join(t.instruction.split())[:200] for t in load_tasks(path) if not any(c.input for c in t.instances)]
    raw = [request.json["prompt"] for request in endpoint.requests if "prompt" in request.json]
    assert all(any(topic in text for topic in topics) for text in raw)
    begun = {text.rpartition(voices(pack).marker("user"))[2].strip() for text in raw}
    assert begun <= {"", *pack.first_words}
    assert len(begun) > 2, "the person begins in one way alone"
    for dialogue in found:
        assert any(dialogue.messages[0].content.startswith(word) for word in begun if word)
        assert not any(dialogue.messages[2].content.startswith(word) for word in begun if word)


@pytest.mark.parametrize("tag", ["en", "zh", "ja", "sw"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_prompt_of_every_kind_says_what_it_must(kind: str, tag: str) -> None:
    options = {"kinds": [kind], "across": [tag, "ko"], "turns": 3, "min_turns": 2}
    planned = plan([{"recipe": "guanaco", "model": "openai/x", "language": tag, "options": options}], fetch=False)
    (lane,) = planned.lanes
    text = planned.recipe.preview(lane.brief)
    pack = load_pack(tag)
    assert f"[{pack.roles.user[0]}]" in text
    assert f"[{pack.roles.assistant[0]}]" in text
    assert "[END]" in text
    assert "3" in text
    assert ("Korean" in text or "韩语" in text) == (kind == "crosslingual")
    assert tag in ("en", "zh") or pack.name in text
    assert "\n\n\n" not in text


def test_kinds_are_checked_before_anything_is_asked() -> None:
    for wanted, words in ((["gramar"], "did you mean grammar"), ([], "at least one")):
        with pytest.raises(ConfigError, match=rf"options\.kinds: .*{words}"):
            plan([{"recipe": "guanaco", "model": "openai/x", "options": {"kinds": wanted}}])
    with pytest.raises(ConfigError, match="across"):
        plan([{"recipe": "guanaco", "model": "openai/x", "options": {"kinds": ["crosslingual"], "across": ["en"]}}])
    with pytest.raises(ConfigError, match=r"options\.kinds: the style stepwise knows only chat"):
        plan([{"recipe": "guanaco", "model": "vllm/x", "style": "stepwise", "options": {"kinds": ["grammar"]}}])
