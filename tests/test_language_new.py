"""`language new`: a pack drafted over a real socket, held against itself, marked as a draft, never paid for twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from selfinstruct import seeds
from selfinstruct.cli import cli
from selfinstruct.draft import compose
from selfinstruct.errors import ConfigError, InputError, SelfInstructError
from selfinstruct.languages import load_pack, parse_pack
from selfinstruct.plan import plan
from selfinstruct.recipes.language_pack import GROUPS, group_record, read, read_words, words_in, words_of
from selfinstruct.store import RunView
from selfinstruct.values import Dialogue, Instance, Message, Record, Task
from tests.backends.endpoint import Endpoint, Reply, Seen
from tests.program import RPM, environment, kill
from tests.translator import WORDS, drafter

EN = load_pack("en")
LIMIT = 12
SEEDS = seeds.load_tasks(Path(__file__).resolve().parents[1] / "seeds/en/tasks.jsonl")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the person's own folder, in which nothing is yet."""
    monkeypatch.setenv("SELFINSTRUCT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def new(endpoint: Endpoint, tag: str = "sw", *more: object, limit: int = LIMIT) -> Result:
    options = ["-m", "openai/test", "--base-url", endpoint.base_url, "--rpm", RPM, "--limit", limit, "--json", *more]
    return CliRunner().invoke(cli, ["language", "new", tag, *map(str, options)])


def review(result: Result) -> dict[str, str]:
    assert result.exit_code == 0, (result.exception, result.output)
    return {each["where"]: each["what"] for each in json.loads(result.stdout)["review"]}


def files(home: Path, tag: str = "sw") -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in (home / "seeds" / tag).iterdir()}


def test_a_pack_is_drafted_checked_and_marked(home: Path) -> None:
    with Endpoint(drafter()) as server:
        done = new(server)
        found = json.loads(done.stdout)
        asked = [request.json["messages"][0]["content"] for request in server.requests]
    assert (found["tag"], found["draft"], found["tasks"], found["topics"]) == ("sw", True, LIMIT, LIMIT)
    assert review(done) == {}
    assert set(files(home)) == {"pack.yaml", "tasks.jsonl", "topics.jsonl"}

    pack = load_pack("sw")
    assert (pack.draft, pack.name, pack.native_name, pack.scripts) == (True, "Swahili", "Kiswahili", ("Latn",))
    assert (pack.direction, pack.unit, pack.confusions) == ("ltr", "words", ("en",))
    assert pack.labels.instruction == ("Agizo", "Maagizo")
    assert pack.roles.assistant == ("Msaidizi", "AI")
    assert pack.no_input == ("<hakuna ingizo>", "hakuna ingizo", "hakuna")
    assert pack.refusals.phrases == ("Samahani, siwezi", "Pole, siwezi", "Siwezi kusaidia")
    assert pack.blocked_words.phrases == ("picha", "video", "faili")
    assert "no speaker has read it yet" in files(home)["pack.yaml"]

    tasks = seeds.load_tasks(home / "seeds/sw/tasks.jsonl")
    for task, original in zip(tasks, SEEDS[:LIMIT], strict=True):
        assert task.id == original.id.replace("en-", "sw-")
        assert (task.name, task.is_classification) == (original.name, original.is_classification)
        assert [bool(case.input) for case in task.instances] == [bool(case.input) for case in original.instances]
        assert task.instruction != original.instruction
    # Outputs are written anew: no prompt shows an old one that is more than a label.
    outputs = [case.output for task in SEEDS[:LIMIT] for case in task.instances if len(case.output) > 40]
    assert outputs
    assert not any(output in text for output in outputs for text in asked)
    assert len(seeds.load_topics(home / "seeds/sw/topics.jsonl")) == LIMIT


def test_a_draft_is_shown_as_one_wherever_it_is_used(home: Path) -> None:
    with Endpoint(drafter()) as server:
        assert new(server).exit_code == 0
        settings = {"recipe": "alpaca", "model": "openai/test", "backend": {"base_url": server.base_url}}
        planned = plan([settings, {"language": "sw"}])
        (notice,) = [notice for notice in planned.notices if "draft" in notice]
        assert str(home / "seeds/sw/pack.yaml") in notice
        assert planned.lanes[0].brief.seeds[0].id == "sw-001"
        rows = json.loads(CliRunner().invoke(cli, ["list", "languages", "--json"]).stdout)
        assert [row["tag"] for row in rows if row["draft"] == "yes"] == ["sw"]
        checked = CliRunner().invoke(cli, ["language", "check", "sw"])
        assert checked.stdout.strip().endswith("ok, a draft"), checked.stdout

        # Once a speaker has read it and taken the line out, runs made with the draft go on.
        path = home / "seeds/sw/pack.yaml"
        path.write_text(path.read_text(encoding="utf-8").replace("draft: true\n", ""), encoding="utf-8")
        read_by_now = plan([settings, {"language": "sw"}])
        assert not [notice for notice in read_by_now.notices if "draft" in notice]
        assert read_by_now.fingerprint == planned.fingerprint
        refused = new(server)
        assert isinstance(refused.exception, ConfigError)
        assert "is no draft" in str(refused.exception)


def test_again_it_asks_for_nothing_and_for_more_only_what_is_new(home: Path) -> None:
    with Endpoint(drafter()) as server:
        assert new(server, limit=3).exit_code == 0
        first, paid = files(home), len(server.requests)
        assert new(server, limit=3).exit_code == 0
        assert files(home) == first
        assert len(server.requests) == paid
        assert new(server, limit=4).exit_code == 0
        assert len(server.requests) - paid == 1 + 2  # a topic; a task and its answer
        assert files(home)["tasks.jsonl"].startswith(first["tasks.jsonl"])


def test_what_a_person_has_changed_is_theirs(home: Path) -> None:
    with Endpoint(drafter()) as server:
        assert new(server, limit=3).exit_code == 0
        path = home / "seeds/sw/tasks.jsonl"
        mended = path.read_text(encoding="utf-8").replace("andika", "mend")
        path.write_text(mended, encoding="utf-8")
        done = new(server, "sw", limit=4)
    assert done.exit_code == 0
    assert "was changed since it was drafted" in done.stderr
    assert path.read_text(encoding="utf-8") == mended
    drafted = Path("runs/language-sw/export/tasks.jsonl").read_text(encoding="utf-8")
    assert len(drafted.splitlines()) == 4
    assert len(files(home)["topics.jsonl"].splitlines()) == 4, "the other files go on"


@pytest.mark.slow
def test_killed_in_the_middle_it_gives_the_same_pack_and_pays_nothing_twice(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Endpoint(drafter(delay=0.05)) as server:
        assert new(server, "sw", "-o", tmp_path / "whole", limit=6).exit_code == 0
        undisturbed, whole = files(home), len(server.requests)
        other = tmp_path / "other"
        flags = ["-m", "openai/test", "--base-url", server.base_url, "--rpm", RPM, "--limit", "6", "--concurrency", "4"]
        command = ["language", "new", "sw", "-q", *flags, "-o", tmp_path / "r"]
        for sends in (6, 14):
            kill(*command, server=server, at=whole + sends, env=environment(SELFINSTRUCT_HOME=str(other)))
            assert not other.exists(), "half a pack was written"
        monkeypatch.setenv("SELFINSTRUCT_HOME", str(other))
        assert new(server, "sw", "-o", tmp_path / "r", limit=6).exit_code == 0
    assert files(other) == undisturbed
    with RunView.open(tmp_path / "r") as view:
        summary = view.summary()
    assert summary.requests - summary.lost == whole
    assert summary.lost <= 2 * 5


def test_what_the_model_gives_badly_is_english_and_listed(home: Path) -> None:
    spoilt = {
        "front of the parts": "labels.instruction: Agizo\nlabels.input: Agizo\nlabels.output: Jibu\nlabels.task: Kazi",
        "who speaks": "roles.user: User | Human\nroles.assistant: {Msaidizi}\nroles.doctor: \nroles.patient: x=1",
        "declines to answer": "I can't.\n" + "Samahani " * 20,
        "speaks of itself": "kitabu\nmimi ni programu tu\nkama programu\nkama akili bandia",
        "examples of an exercise": "example: Mfano\nclass_label: Aina\nyes: Ndiyo\nno: Ndiyo\nno_input: hakuna\n"
        "no_output: hakuna tokeo",
    }
    with Endpoint(drafter(spoilt=spoilt)) as server:
        found = review(new(server))
    pack = load_pack("sw")
    assert pack.labels == EN.labels, "a word that stands for two things"
    assert pack.roles.user == ("User", "Human")
    assert pack.roles.doctor == EN.roles.doctor
    assert pack.refusals.phrases == EN.refusals.phrases
    assert (pack.yes, pack.no) == (EN.yes, EN.no)
    assert (pack.example, pack.no_input) == (("Mfano",), ("<hakuna>", "hakuna"))
    assert pack.self_reference.phrases == ("mimi ni programu tu", "kama programu", "kama akili bandia")
    assert set(found) >= {*GROUPS["labels"], *GROUPS["roles"], "refusals", "yes", "no", "self_reference"}
    assert "'kitabu' is taken out: it would reject the seed task" in found["self_reference"]
    assert "the words of English" in found["labels.input"]


def test_seeds_that_do_not_come_out_are_listed_and_asked_about_once_more(home: Path) -> None:
    """English, an unnamed label, a form that is not kept: asked again, and then left out by name."""
    written = drafter()

    def careless(seen: Seen) -> Reply:
        asked = seen.json["messages"][0]["content"]
        reply = written(seen)
        if "two agree" in asked:  # en-001
            return Reply(body=reply.body.replace(b"<input>", b"").replace(b"</input>", b""))
        if "Shakespearean sonnet" in asked:  # en-002
            text = "<instruction>List the many things that a sonnet should have, in short sentences.</instruction>"
            return Reply(body=json.dumps(_completion(text)).encode())
        if "spelled just as" in asked:
            return Reply(body=json.dumps(_completion("haijulikani")).encode())
        return reply

    with Endpoint(careless) as server:
        found = review(new(server, limit=5))
        again = [request.json["messages"][-1]["content"] for request in server.requests]
    left_out = {where: what for where, what in found.items() if where.startswith("en-")}
    assert left_out == {
        "en-001": "rejected by adaptation: unmarked",
        "en-002": "rejected by adaptation: other_language",
        "en-003": "rejected by adaptation: label_missing",
    }
    assert len(files(home)["tasks.jsonl"].splitlines()) == 2
    for words in ("the form is not kept", "it is not in", "one of those that the exercise names"):
        assert any(words in text for text in again)


def _completion(text: str) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


def test_another_script_is_found_by_its_letters(home: Path) -> None:
    """No key says how a language is written; a few letters of the tag may."""
    with Endpoint(drafter("zh", spoilt={"language called": "name: Test\nnative_name: 测试"})) as server:
        found = review(new(server, "qaa", "--name", "Testish", limit=6))
    pack = load_pack("qaa")
    assert (pack.name, pack.native_name) == ("Testish", "测试")
    assert (pack.scripts, pack.unit, pack.direction) == (("Hani",), "characters", "ltr")
    assert pack.refusals.match == "substring"
    assert pack.maximum_length == 300
    assert pack.labels == EN.labels, "Latin words are none of a language written in Han letters"
    assert "labels.instruction" in found


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fr"], "there is a language pack already"),
        (["??"], "is not a language tag"),
        (["sw", "--from", "qya"], "'qya' is no language with a pack"),
        (["sw", "-m", "llama.cpp/smollm2-135m"], "--unspoken drafts all the same"),
    ],
)
def test_what_can_not_be_drafted_is_told_before_anything_is_asked(
    arguments: Sequence[str], words: str, home: Path
) -> None:
    model = [] if "-m" in arguments else ["-m", "openai/test", "--base-url", "http://127.0.0.1:9/v1"]
    refused = CliRunner().invoke(cli, ["language", "new", *arguments, *model])
    assert isinstance(refused.exception, SelfInstructError)
    assert refused.exception.exit_code == 2
    assert words in str(refused.exception)
    assert not (home / "seeds").exists()
    assert not Path("runs").exists()


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_the_embedded_model_it_is_resumable_and_no_more_than_a_draft(home: Path) -> None:
    flags = ["--limit", "1", "--json", "--set", "sampling.max_tokens=24", "--unspoken"]
    command = ["language", "new", "sw", *flags]
    stopped = CliRunner().invoke(cli, [*command, "--max-requests", "4"])
    assert isinstance(stopped.exception, SelfInstructError)
    assert stopped.exception.exit_code == 5
    assert "would be noise" in stopped.stderr
    assert not home.exists()
    done = CliRunner().invoke(cli, [*command, "--max-requests", "100"])
    assert json.loads(done.stdout)["draft"] is True
    text = files(home)["pack.yaml"]
    assert "draft: true" in text
    assert "this is noise, not for use" in text
    with RunView.open(Path("runs/language-sw")) as view:
        summary = view.summary()
        keys = {key for number in range(12) for key in (view.draw("pack", number) or {})["requests"]}
    assert summary.requests == summary.completions == len(keys)
    again = CliRunner().invoke(cli, [*command, "--max-requests", "100"])
    assert again.stdout == done.stdout
    assert files(home)["pack.yaml"] == text
    with RunView.open(Path("runs/language-sw")) as view:
        assert view.summary().requests == summary.requests


# Reading and putting together


lines = st.lists(
    st.sampled_from(
        ["labels.input: ", "input", "**output**：", "- ", "3. ", "Agizo", " | ", "｜", '"x"', "<y>", ":", "\n"]
    )
    | st.text(max_size=10),
    max_size=12,
).map("".join)


@settings(deadline=None)
@given(lines, st.sampled_from(sorted(GROUPS)))
def test_whatever_is_said_is_read_as_words_or_left_out(reply: str, group: str) -> None:
    keys = GROUPS[group]
    found = read_words(reply, keys)
    assert set(found) <= set(keys)
    for words in found.values():
        assert words
        assert all(0 < len(word) <= 60 and "\n" not in word and "|" not in word for word in words)
    assert words_in(group_record(group, found)) == found or not found


@pytest.mark.parametrize(
    ("reply", "keys", "expected"),
    [
        ("labels.input: Ingizo | Data\nlabels.output: Jibu", GROUPS["labels"], {"input": ("Ingizo", "Data")}),
        ("**Input**： “Ingizo”", GROUPS["labels"], {"input": ("Ingizo",)}),
        ("1. input: Ingizo｜Ingizo", GROUPS["labels"], {"input": ("Ingizo",)}),
        ("Sure! Here you are:\ninput: Ingizo", GROUPS["labels"], {"input": ("Ingizo",)}),
        ("input: {x} | a: b | #", GROUPS["labels"], {}),
    ],
)
def test_words_are_read(reply: str, keys: Sequence[str], expected: dict[str, tuple[str, ...]]) -> None:
    found = {key.rpartition(".")[2]: words for key, words in read_words(reply, keys).items()}
    assert {key: found[key] for key in expected} == expected
    assert set(found) <= {*expected, "output"}


def test_a_list_is_a_phrase_a_line() -> None:
    assert read_words('- "Siwezi"\n2) Pole, siwezi\n\n* Samahani', ("refusals",)) == {
        "refusals": ("Siwezi", "Pole, siwezi", "Samahani")
    }


def test_the_words_of_a_pack_are_all_asked_for() -> None:
    records = list(read("en:2"))
    groups = [words for record in records if (words := words_in(record))]
    assert [record for record in records if isinstance(record, Task)] == list(
        seeds.load_tasks(Path("seeds/en/tasks.jsonl"))
    )[:2]
    assert len(records) == len(GROUPS) + 4
    for words in groups:
        assert words == {key: words_of(EN, key) for key in words}
    with pytest.raises(InputError, match="TAG:N"):
        list(read("en:x"))


words = st.text(st.characters(codec="utf-8", exclude_characters="|\n:："), min_size=1, max_size=20).filter(
    lambda text: text.strip() == text and any(map(str.isalpha, text))
)
records = st.lists(
    st.builds(
        group_record,
        st.just("any"),
        st.dictionaries(
            st.sampled_from([key for keys in GROUPS.values() for key in keys]),
            st.lists(words, min_size=1, max_size=6, unique=True).map(tuple),
            max_size=24,
        ),
    )
    | st.builds(
        lambda text, output: Task(text, (Instance("", output),), id="xx-1", name="x"),
        st.text(min_size=1),
        st.text(min_size=1),
    )
    | st.builds(lambda text: Dialogue((Message("user", text),), topic=text), st.text(min_size=1)),
    max_size=5,
)


@settings(deadline=None)
@given(records)
def test_whatever_a_run_brings_makes_a_pack_that_reads(found: list[Record]) -> None:
    draft = compose("qaa", "", EN, found, "a test")
    pack = parse_pack(draft.files["pack.yaml"], Path("pack.yaml"), "qaa")
    assert pack.draft
    assert (
        len(
            {
                label.casefold()
                for each in ("instruction", "input", "output")
                for label in getattr(pack.labels, each)[:1]
            }
        )
        == 3
    )
    assert draft.tasks <= sum(isinstance(record, Task) for record in found)


def test_the_words_we_test_with_are_those_of_the_groups() -> None:
    lists = {"refusals", "self_reference", "needs_context", "other_language", "first_words"}
    assert {key for keys in GROUPS.values() for key in keys} == set(WORDS) | lists
