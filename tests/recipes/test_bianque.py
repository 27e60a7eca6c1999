"""BianQue: a chain of questioning by two sides that speak in turn, however badly the model plays them."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import pytest

from selfinstruct import formats
from selfinstruct.errors import ConfigError
from selfinstruct.filters.dialogues import questions
from selfinstruct.languages import load_pack
from selfinstruct.markers import voices
from selfinstruct.plan import plan
from selfinstruct.store import RunView
from selfinstruct.values import Dialogue, Message
from tests.backends.endpoint import Endpoint
from tests.program import kill, run_options, selfinstruct
from tests.recipes.runs import Dataset, Speak, grow, judged_again, rebuilt, rejected, scripted, served, written
from tests.recipes.talk import model, work
from tests.recipes.test_chatdoctor import LINES, WORDS, table


def speak(tag: str = "zh", damaged: float = 0.15) -> Speak:
    """Return a model that plays the patient and the doctor, and now and then forgets its part."""
    asks, digs, advises = LINES[tag]
    roles = load_pack(tag).roles
    comma = "、" if tag == "zh" else ", "

    def line(pattern: str, rng: random.Random) -> str:
        words = rng.sample(WORDS[tag], 9)
        return pattern.format(comma.join(words[:7]), comma.join(words[7:]))

    def answer(messages: tuple[Message, ...], rng: random.Random) -> str | tuple[str, str]:
        text, odd = messages[-1].content, rng.random() < damaged
        if '"""' in text:
            return "[NONE]"
        if "Only the patient's words" in text or "只写病人说的话" in text:
            said = line(asks, rng)
            kinds = ["[END]", "", f"{said}\n[{roles.doctor[0]}] {line(digs, rng)}", f'"{said}"']
            return rng.choice(kinds) if odd and rng.random() < 0.5 else said
        advising = "Now advise" in text or "现在请给出建议" in text
        if odd:
            cut = (line(advises, rng)[:20], "length")
            return cut if advising else f"[{roles.doctor[0]}] {line(advises, rng)}"
        return line(advises if advising else digs, rng)

    return answer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("bianque") / "run"
    return folder, grow(folder, "bianque", scripted(speak()), target=16, concurrency=1)


def test_every_reply_but_the_last_asks_and_the_last_advises(run: tuple[Path, Dataset]) -> None:
    folder, dataset = run
    pack, lengths = load_pack("zh"), set()
    for _, record in dataset:
        assert isinstance(record, Dialogue)
        replies = [message.content for message in record.messages if message.role == "assistant"]
        lengths.add(len(replies))
        assert questions(replies[0], pack)
        assert sum(questions(reply, pack) > 0 for reply in replies[:-1]) >= 2
        assert not questions(replies[-1], pack)
        assert record.extra["stop"] == "max_turns"
        assert "不构成医疗建议" in record.extra["note"]
        assert record.topic
        assert record.extra["category"]
    assert lengths == {3, 4, 5}, "chains are of different lengths"
    lost = rejected(folder, "dialogues")
    assert lost.keys() >= {"advises_first", "min_turns"}, lost


def test_bianques_own_file_and_those_of_trainers(run: tuple[Path, Dataset], tmp_path: Path) -> None:
    _, dataset = run
    written("bianque", dataset, tmp_path / "bianque.csv")
    with (tmp_path / "bianque.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(dataset)
    for row in rows:
        assert row["input"].startswith("病人：")
        assert row["input"].endswith(r"\n医生：")
        assert "\n" not in row["input"], "turns are joined by a literal backslash-n"
        assert row["input"].count(r"\n医生：") - 1 == row["input"].count("病人：") - 1 >= 2
        assert (row["answer_choice"], row["type"]) == ("[]", "medical_qa")
    again = list(formats.read(tmp_path / "bianque.csv"))
    assert [r.messages for r in again if isinstance(r, Dialogue)] == [
        record.messages for _, record in dataset if isinstance(record, Dialogue)
    ]
    for format in ("messages", "sharegpt", "huatuo", "baize", "moss", "belle-3.5m", "colossalai", "llama-factory"):
        if Dialogue in formats.get(format).kinds:
            assert written(format, dataset, tmp_path / f"{format}.json")


def test_neither_concurrency_nor_interruption_changes_a_consultation(run: tuple[Path, Dataset], tmp_path: Path) -> None:
    assert grow(tmp_path / "c8", "bianque", scripted(speak(), late=True), target=16, concurrency=8) == run[1]
    asked = []
    for stop_after in (2, 9, None):
        backend = scripted(speak(), late=True)
        found = grow(tmp_path / "cut", "bianque", backend, stop_after, target=16, concurrency=4)
        asked += backend.asked
    assert found == run[1]
    assert len(asked) == len({request.nonce for request in asked}), "a completion was asked for twice"


def test_judged_again_and_rebuilt_from_the_journal(run: tuple[Path, Dataset], tmp_path: Path) -> None:
    folder, _ = run
    assert rebuilt(folder, tmp_path / "again")
    before = grow(tmp_path / "r", "bianque", scripted(speak()), target=12)
    assert judged_again(tmp_path / "r") == before
    with pytest.raises(ConfigError, match="min_turns"):
        judged_again(tmp_path / "r", filters={"advises_first": {"minimum": 3}})
    loose = judged_again(tmp_path / "r", filters={"advises_first": False})
    assert len(loose) == 12
    assert {id for id, _ in loose} - {id for id, _ in before}, "who advises first is let in"
    strict = judged_again(tmp_path / "r", filters={"advises_first": {"minimum": 2}})
    assert strict == before[: len(strict)]


@pytest.mark.parametrize("tag", ["en", "sw"])
def test_other_languages(tag: str, tmp_path: Path) -> None:
    backend = scripted(speak(tag, damaged=0))
    dataset = grow(tmp_path / "r", "bianque", backend, target=4, language=tag)
    pack = load_pack(tag)
    asked = [request.messages[-1].content for request in backend.asked]
    assert any(f"[{pack.roles.doctor[0]}] " in text and f"[{pack.roles.patient[0]}] " in text for text in asked)
    assert tag == "en" or all("in sw" in text for text in asked)
    assert all(questions(r.messages[1].content, pack) for _, r in dataset if isinstance(r, Dialogue))


@pytest.mark.parametrize("tag", ["en", "zh"])
def test_a_small_model_asks_by_going_on_with_a_transcript(
    tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    data, pack = table(tmp_path / "rows.csv"), load_pack(tag)
    settings: dict[str, Any] = {"language": tag, "style": "stepwise", "filters": {"ungrounded": False}}
    with Endpoint(model()) as server:
        found = work("bianque", server, tmp_path / "r", {"model": "vllm/test"}, settings, input=str(data))
        sent = [request.json for request in server.requests]
    assert len(found) == 8
    who = voices(pack, "patient", "doctor")
    raw = [each["prompt"] for each in sent if "prompt" in each]
    lines = {
        side: [text for text in raw if text.splitlines()[-1].startswith(side)]
        for side in (who.marker("user"), who.marker("assistant"))
    }
    assert all(text.endswith(who.marker("user")) for text in lines[who.marker("user")])
    begun = [text.rpartition(who.marker("assistant"))[2].strip() for text in lines[who.marker("assistant")]]
    assert all(begun)
    assert {reply.content for reply in found[0].messages if reply.content.startswith(begun[0])}
    assert all("Gout" not in text and "Colchicine" not in text for text in lines[who.marker("assistant")])
    assert any("Gout pain; fever; tiredness" in text or "Gout pain；" in text for text in lines[who.marker("user")])
    advising = [each["messages"] for each in sent if "messages" in each]
    assert [each[-1]["role"] for each in advising] == ["user"] * 8
    assert all("Colchicine" in each[0]["content"] for each in advising if "Gout" in each[0]["content"])
    for record in found:
        replies = [message.content for message in record.messages if message.role == "assistant"]
        assert all(questions(reply, pack) for reply in replies[:-1])
        assert not questions(replies[-1], pack)


def test_rows_of_knowledge_are_what_the_patient_has(tmp_path: Path) -> None:
    data = table(tmp_path / "rows.csv")
    backend = scripted(speak("en", damaged=0))
    dataset = grow(tmp_path / "r", "bianque", backend, target=None, language="en", input=str(data))
    assert len(dataset) == 8
    texts = [request.messages[-1].content for request in backend.asked]
    assert any("You play a patient" in text and "Symptom: Gout pain; fever; tiredness" in text for text in texts)
    assert not any("asks before advising" in text and "Gout" in text for text in texts), "who asks does not know yet"
    assert any("Now advise" in text and "commonMedications: Colchicine" in text for text in texts)
    assert all(record.extra["knowledge"] and record.extra["named"] == [] for _, record in dataset)


@pytest.mark.parametrize(
    "settings",
    [{"options": {"turns": 2}}, {"options": {"min_turns": 2}}, {"options": {"turns": 0}}],
)
def test_options_that_leave_no_room_to_ask_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"options\.(min_)?turns"):
        plan([{"recipe": "bianque", "model": "openai/m"}, settings])
    plan(
        [{"recipe": "bianque", "model": "openai/m"}, {"options": {"min_turns": 2}, "filters": {"advises_first": True}}]
    )


@pytest.mark.slow
def test_over_a_socket_and_killed_it_is_the_same(run: tuple[Path, Dataset], tmp_path: Path) -> None:
    with Endpoint(served(speak())) as server:
        flags = run_options(server, tmp_path / "r", 16, concurrency=4)
        kill("run", "bianque", "-q", *flags, server=server, at=31)
        done = selfinstruct("run", "bianque", *flags)
        assert done.returncode == 0, done.stderr
    with RunView.open(tmp_path / "r") as view:
        assert list(view.dataset()) == run[1]
    exported = selfinstruct("export", tmp_path / "r", "-o", tmp_path / "bianque.csv")
    assert exported.returncode == 0, exported.stderr
    assert "16 records" in exported.stderr
