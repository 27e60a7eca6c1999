"""Translating whole datasets over a real socket: what must not change does not, and nothing is asked twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from selfinstruct import formats
from selfinstruct.cli import cli
from selfinstruct.errors import ConfigError
from selfinstruct.languages import load_pack
from selfinstruct.plan import Plan, open_run, plan, resume_plan
from selfinstruct.recipes.translate import is_in, labels_of
from selfinstruct.replay import refilter, replay
from selfinstruct.run import Session
from selfinstruct.store import RunStore, RunView, Summary
from selfinstruct.values import Comparison, Dialogue, Instance, Message, Record, Response, Task, ToolCall
from tests.backends.endpoint import Endpoint
from tests.program import RPM, kill
from tests.translator import translated, translator, word_for

EN, ZH, SW = load_pack("en"), load_pack("zh"), load_pack("sw")

TEXT = (
    "Write to jo@example.org or see https://example.org/a?b=1 about <b>twelve</b> loaves for $5.50, {name}.\n"
    "1. Call `bake(12)`; it takes $t^2 + 1$ hours.\n"
    "2. Then run\n```python\ndef bake(n):\n    return n * 2  # loaves\n```\n"
    "and print %d of {{ loaves }}."
)
KEPT = [
    "jo@example.org",
    "https://example.org/a?b=1",
    "<b>",
    "</b>",
    "$5.50",
    "{name}",
    "`bake(12)`",
    "$t^2 + 1$",
    "```python\ndef bake(n):\n    return n * 2  # loaves\n```",
    "%d",
    "{{ loaves }}",
    "\n1. ",
    "\n2. ",
]


@pytest.fixture
def swahili() -> Iterator[Endpoint]:
    with Endpoint(translator("sw")) as server:
        yield server


def rows(*tasks: tuple[str, str, str]) -> list[dict[str, str]]:
    return [dict(zip(("instruction", "input", "output"), task, strict=True)) for task in tasks]


def planned(endpoint: Endpoint, data: Path, language: str = "sw", **options: Any) -> Plan:
    settings: dict[str, Any] = {"recipe": "translate", "language": language, "input": str(data), "options": options}
    return plan([settings, {"model": "openai/test", "backend": {"base_url": endpoint.base_url}, "rpm": RPM}])


def translate(
    endpoint: Endpoint, records: Sequence[Any], folder: Path, language: str = "sw", **options: Any
) -> list[Record]:
    """Translate rows, or records written as `messages` or `preference` files, and return what was accepted."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "data.jsonl"
    if records and not isinstance(records[0], Mapping):
        formats.write("preference" if isinstance(records[0], Comparison) else "messages", records, str(data))
    else:
        data.write_text("".join(json.dumps(row) + "\n" for row in records), encoding="utf-8")
    planning = planned(endpoint, data, language, **options)
    with open_run(folder / "run", planning) as store:
        asyncio.run(Session(planning, store).work(lambda _: None))
        return [record for _, record in store.view.dataset()]


def rejections(folder: Path) -> dict[str, str]:
    with RunView.open(folder / "run") as view:
        return dict(view._rows("SELECT id, reason FROM candidates WHERE accepted IS NULL AND filter = 'translation'"))


def prompts(endpoint: Endpoint) -> list[str]:
    return [request.json["messages"][-1]["content"] for request in endpoint.requests]


def test_fields_are_translated_and_what_must_not_change_does_not(swahili: Endpoint, tmp_path: Path) -> None:
    found = translate(swahili, rows((TEXT, "", "Two loaves."), ("Say it.", TEXT, TEXT)), tmp_path)
    assert len(found) == 2
    for record, fields in zip(found, (["instruction"], ["input", "output"]), strict=True):
        assert isinstance(record, Task)
        case = record.instances[0]
        texts = {"instruction": record.instruction, "input": case.input, "output": case.output}
        for text in (texts[field] for field in fields):
            assert all(span in text for span in KEPT), text
            assert "loaves for" not in text
    assert isinstance(found[0], Task)
    assert found[0].instances == (Instance("", translated("Two loaves.", "sw")),)
    # Masked, none of it was ever shown.
    asked = [text.partition("<text>")[2] for text in prompts(swahili)]
    assert not any(span in text for text in asked for span in ("jo@", "https:", "<b>", "bake(", "t^2"))


def test_the_format_it_came_in_is_the_one_it_is_written_in(swahili: Endpoint, tmp_path: Path) -> None:
    translate(swahili, rows(("Name two rivers.", "", "The Nile and the Congo.")), tmp_path)
    assert CliRunner().invoke(cli, ["export", str(tmp_path / "run"), "-o", str(tmp_path / "out.jsonl")]).exit_code == 0
    (row,) = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))
    assert row == {
        "instruction": translated("Name two rivers.", "sw").capitalize(),
        "input": "",
        "output": translated("The Nile and the Congo.", "sw"),
    }
    again = resume_plan(tmp_path / "run", [], fetch=False)
    assert asyncio.run(replay(tmp_path / "run", again, tmp_path / "again")) == (1, True)
    with RunStore.open(tmp_path / "run") as store:
        difference = asyncio.run(refilter(again, store, dry_run=False))
    assert (difference.before, difference.after) == (1, 1)
    assert len(swahili.requests) == 2


def test_a_dialogue_keeps_roles_calls_and_results(swahili: Endpoint, tmp_path: Path) -> None:
    call = ToolCall("search", '{"query": "bread in Nairobi", "limit": 3}', "c1")
    dialogue = Dialogue(
        (
            Message("user", "Where is there good bread?"),
            Message("assistant", "", tool_calls=(call,)),
            Message("tool", "Three bakeries: Uhuru, Soko and Mlima.", name="search", tool_call_id="c1"),
            Message("assistant", "There are three bakeries."),
            Message("user", "Where is there good bread?"),
            Message("assistant", "Try the second of the 3."),
        ),
        system="You are a baker of few words.",
    )
    (found,) = translate(swahili, [dialogue], tmp_path)
    assert isinstance(found, Dialogue)
    assert found.system == translated(dialogue.system, "sw")
    assert [(m.role, m.tool_calls, m.tool_call_id) for m in found.messages] == [
        (m.role, m.tool_calls, m.tool_call_id) for m in dialogue.messages
    ]
    assert found.messages[2].content == dialogue.messages[2].content
    assert found.messages[0].content == found.messages[4].content == translated("Where is there good bread?", "sw")
    assert found.messages[5].content == translated("Try the second of the 3.", "sw")


def test_a_comparison_keeps_its_order(swahili: Endpoint, tmp_path: Path) -> None:
    asked = Dialogue((Message("user", "Hello there."), Message("assistant", "Good day."), Message("user", "Why so?")))
    given = Comparison(asked, (Response("Because of the rain.", rank=0), Response("It is what it is.", rank=1)))
    (found,) = translate(swahili, [given], tmp_path)
    assert isinstance(found, Comparison)
    assert isinstance(found.prompt, Dialogue)
    assert [m.content for m in found.prompt.messages] == [translated(m.content, "sw") for m in asked.messages]
    assert [(r.content, r.rank) for r in found.responses] == [
        (translated(r.content, "sw"), r.rank) for r in given.responses
    ]


LONG = "a long text about the harvest and all that follows from it when the rains are late this year"


@pytest.mark.parametrize(
    ("word", "text", "named"),
    [
        ("DROPS", "DROPS {name} here.", "⟦1⟧ is missing"),
        ("DOUBLES", "DOUBLES {name} here.", "⟦1⟧ stands there more than once"),
        ("MISCOUNTS", "MISCOUNTS 12 of them.", "the number 12 "),
        ("ECHOES", "ECHOES what was said to it.", "came back as it was"),
        ("CUTS", f"CUTS {LONG}.", "much shorter"),
        ("CHATTERS", "CHATTERS a bit too much.", "between <text> and </text>"),
        ("FORGETS", "FORGETS to speak of bread.", "bread → mkate"),
        ("TRUNCATES", f"TRUNCATES {LONG}.", ""),
    ],
)
def test_a_fault_is_named_and_asked_about_once_more(
    word: str, text: str, named: str, swahili: Endpoint, tmp_path: Path
) -> None:
    (found,) = translate(swahili, rows((text, "", "Yes.")), tmp_path, glossary={"bread": "mkate"})
    assert isinstance(found, Task)
    assert len(swahili.requests) == 3
    again = [request.json for request in swahili.requests if len(request.json["messages"]) > 1]
    if named:
        assert named in again[0]["messages"][-1]["content"]
        assert again[0]["messages"][1]["role"] == "assistant"
    else:
        assert not again, "an answer that was cut is asked for afresh, with more room"
    assert word == "DROPS" or "{name}" not in text or found.instruction.count("{name}") == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [("BREAKS {name} always.", "mark_lost"), ("NEVER speaks of bread.", "term_missing")],
)
def test_what_stays_damaged_is_rejected_and_the_others_go_on(
    text: str, reason: str, swahili: Endpoint, tmp_path: Path
) -> None:
    given = rows(("Say something nice.", "", "Nice."), (text, "", "An answer."), ("Say it again.", "", "Nice."))
    found = translate(swahili, given, tmp_path, glossary={"bread": "mkate"})
    assert len(found) == 2
    assert list(rejections(tmp_path).values()) == [reason]
    # The rest of a lost record is not paid for, and "Nice." of another instruction is another request.
    assert len(swahili.requests) == 2 + 2 + 2


def test_a_label_is_translated_once_for_the_whole_dataset(tmp_path: Path) -> None:
    """The endpoint has a translation of its own for each request: only asking once keeps labels alike."""
    count = 0

    def moody(seen: Any) -> Any:
        nonlocal count
        count += 1
        reply = translator("sw")(seen)
        label = "possible answers" in seen.json["messages"][0]["content"]
        return type(reply)(body=reply.body.replace(b"\\n</text>", f" {count}\\n</text>".encode())) if label else reply

    given = [
        Task("Is it good or bad?", (Instance("Rain again.", "bad"), Instance("Sun!", "good")), True),
        Task("Judge it: good, bad or mixed?", (Instance("Some of both.", "mixed"),), True),
        Task("Say whether it is good or bad.", (Instance("A fine day.", "good"),), True),
        Task("What would be good?", (Instance("", "Bread would be good."),), False),
    ]
    with Endpoint(moody) as server:
        data = tmp_path / "tasks.jsonl"
        formats.write("self-instruct", given, str(data))
        planning = planned(server, data)
        with open_run(tmp_path / "run", planning) as store:
            asyncio.run(Session(planning, store).work(lambda _: None))
            found = [record for _, record in store.view.dataset() if isinstance(record, Task)]
        labels = [request for request in server.requests if "possible answers" in request.body.decode()]
    outputs = [case.output for task in found[:3] for case in task.instances]
    assert len(labels) == 3
    assert len(set(outputs)) == 3
    assert [each.split()[0] for each in outputs] == [word_for(w, "sw") for w in ("bad", "good", "mixed", "good")]


def test_what_counts_as_a_label() -> None:
    def labels(instruction: str, output: str, known: bool | None = None, **extra: Any) -> list[str]:
        return labels_of(Task(instruction, (Instance("x", output),), known, extra=extra))

    assert labels("Is it good or bad?", "good") == ["good"]
    assert labels("Is it good or bad?", "good", False) == []
    assert labels("Is it good or bad?", "goo") == []
    assert labels("Which one?", "the third", True) == ["the third"]
    assert labels("这句话是褒义还是贬义？", "褒义") == ["褒义"]
    assert labels("Choose.", "b", None, answer_choices=["a", "b"]) == ["a", "b"]
    assert labels("Choose.", "neither", None, answer_choices=["a", "b"]) == ["a", "b"]
    assert labels("Write an essay on good.", "Good is what\nwe do.") == []


def test_answer_choices_are_translated_with_the_answer(tmp_path: Path) -> None:
    row = {
        "input": "Sport or trade?\nAnswer:",
        "target": "trade",
        "type": "classify",
        "answer_choices": ["sport", "trade"],
    }
    with Endpoint(translator("zh")) as server:
        (found,) = translate(server, [row], tmp_path, "zh")
    assert isinstance(found, Task)
    assert found.extra["answer_choices"] == [word_for("sport", "zh"), word_for("trade", "zh")]
    assert found.instances[0].output == word_for("trade", "zh")
    assert found.extra["type"] == "classify"


def test_the_glossary_decides_labels_too(swahili: Endpoint, tmp_path: Path) -> None:
    given = rows(("Is the bread good or bad?", "The bread rose well.", "good"))
    (found,) = translate(swahili, given, tmp_path, glossary={"bread": "mkate", "good": "nzuri"})
    assert isinstance(found, Task)
    assert found.instances[0].output == "nzuri"
    assert "nzuri" in found.instruction.lower()
    assert "mkate" in found.instances[0].input.lower()


def test_what_says_nothing_or_is_in_the_language_already_is_left_alone(tmp_path: Path) -> None:
    with Endpoint(translator("zh")) as server:
        given = rows(("请解释为什么天空是蓝色的。", "", "因为空气散射蓝光。"), ("Explain it.", "12 + 3 = 15", "`x`"))
        first, second = translate(server, given, tmp_path, "zh")
        assert isinstance(first, Task)
        assert isinstance(second, Task)
        assert (first.instruction, first.instances[0]) == (
            "请解释为什么天空是蓝色的。",
            Instance("", "因为空气散射蓝光。"),
        )
        assert second.instances[0] == Instance("12 + 3 = 15", "`x`")
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("text", "tag", "source", "expected"),
    [
        ("Ni kwa nini mbingu ni ya buluu wakati wa mchana? Eleza kwa maneno rahisi.", "sw", "en", True),
        ("Why is the sky blue during the day? Explain it in simple words.", "sw", "en", False),
        ("Eleza. Why is the sky blue during the day? Explain it in simple words.", "sw", "en", False),
        ("Jambo", "sw", "en", False),
        ("天空为什么是蓝色的？", "zh", "en", True),
        ("天空為什麼是藍色的？", "zh-Hant", "zh", True),
        ("天空为什么是蓝色的？", "zh-Hant", "zh", False),
        ("Почему небо голубое?", "ru", "en", True),
        ("Чому небо блакитне вдень? Поясни простими словами.", "ru", "uk", False),
        ("", "zh", "en", True),
        ("12 × 3 = {x}", "zh", "en", True),
        ("See `x` and https://example.org/зачем", "ru", "en", False),
    ],
)
def test_being_in_the_language_already(text: str, tag: str, source: str, expected: bool) -> None:
    assert is_in(text, load_pack(tag), load_pack(source)) is expected


def test_only_what_is_too_long_is_split_and_at_paragraphs(swahili: Endpoint, tmp_path: Path) -> None:
    paragraphs = [f"Part {n} tells {LONG}." for n in range(1, 7)]
    text = "\n\n".join([*paragraphs[:3], "```\ncode\n\n\ncode\n```", *paragraphs[3:]]) + "\n"
    whole, pieces = (
        translate(swahili, rows(("Go on.", text, "Yes.")), tmp_path / str(limit), split_tokens=limit)
        for limit in (1500, 80)
    )
    assert whole == pieces
    assert isinstance(whole[0], Task)
    assert (
        whole[0].instances[0].input
        == "\n\n".join(
            [*(translated(p, "sw") for p in paragraphs[:3]), "```\ncode\n\n\ncode\n```"]
            + [translated(p, "sw") for p in paragraphs[3:]]
        )
        + "\n"
    )
    assert len(swahili.requests) == 3 + (2 + 3)


def test_outputs_may_be_written_anew(swahili: Endpoint, tmp_path: Path) -> None:
    given = rows(("Describe a market.", "", "OLD"), ("Is it good or bad?", "Rain.", "bad"))
    first, second = translate(swahili, given, tmp_path, outputs="regenerate")
    assert isinstance(first, Task)
    assert isinstance(second, Task)
    assert first.instances[0].output not in ("", translated("OLD", "sw"))
    assert second.instances[0].output == word_for("bad", "sw"), "a label is translated all the same"
    anew = [request.json["messages"] for request in swahili.requests if "<text>" not in request.body.decode()]
    assert anew == [[{"role": "user", "content": translated("Describe a market.", "sw")}]]

    talk = Dialogue((Message("user", "Hello there."), Message("assistant", "OLD"), Message("user", "And then?"),
                     Message("assistant", "OLD")), system="Be brief.")  # fmt: skip
    (third,) = translate(swahili, [talk], tmp_path / "talk", outputs="regenerate")
    assert isinstance(third, Dialogue)
    assert [m.role for m in third.messages] == ["user", "assistant"] * 2
    last = swahili.requests[-1].json["messages"]
    assert [m["content"] for m in last] == [third.system, *(m.content for m in third.messages[:3])]


def test_the_same_words_are_translated_once(swahili: Endpoint, tmp_path: Path) -> None:
    given = rows(
        *(("If you are a doctor, answer the patient.", f"I have had {n} colds.", "Rest.") for n in range(2, 12))
    )
    found = translate(swahili, given, tmp_path)
    assert len(found) == 10
    assert len(swahili.requests) == 1 + 10 + 1


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_and_pays_nothing_twice(tmp_path: Path) -> None:
    given = rows(*((f"Task {n}: {TEXT} DROPS", f"Input number {n}.", f"Output number {n}.") for n in range(100, 112)))
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")

    def work(server: Endpoint, folder: Path) -> tuple[list[tuple[str, Record]], Summary]:
        planning = planned(server, data)
        with open_run(folder, planning) as store:
            asyncio.run(Session(planning, store).work(lambda _: None))
            return list(store.view.dataset()), store.view.summary()

    with Endpoint(translator("sw", delay=0.1)) as server:
        undisturbed, _ = work(server, tmp_path / "whole")
        whole = len(server.requests)
        assert whole == 12 * 4
        flags = ["-q", "-m", "openai/test", "--base-url", server.base_url, "-l", "sw", "--input", str(data)]
        flags += ["--rpm", str(RPM)]
        for sends in (8, 24):
            where = ["-o", str(tmp_path / "r"), "--concurrency", "4"]
            kill("run", "translate", *flags, *where, server=server, at=whole + sends)
        records, summary = work(server, tmp_path / "r")
        assert records == undisturbed
        assert summary.requests - summary.lost == whole
        assert summary.lost <= 2 * 5

        # One row more costs its own requests.
        before = len(server.requests)
        row = rows((f"Task 999: {TEXT} DROPS", "Input number 100.", "Output number 999."))[0]
        data.write_text(json.dumps(row) + "\n" + data.read_text(encoding="utf-8"), encoding="utf-8")
        more, _ = work(server, tmp_path / "r")
        assert len(server.requests) - before == 4
        assert [record for _, record in more][1:] == [record for _, record in undisturbed]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"outputs": "both"}, "options.outputs: expected translate or regenerate"),
        ({"glossary": {"bread": 5}}, "options.glossary: expected words"),
        ({"glossary": {"bread": " "}}, "options.glossary: expected words"),
        ({"split_tokens": 0}, "options.split_tokens"),
        ({"source": "??"}, "not a language tag"),
        ({"glosary": {}}, "did you mean 'glossary'"),
    ],
)
def test_bad_options_are_told_before_anything_is_asked(
    options: dict[str, Any], words: str, swahili: Endpoint, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words.replace("?", r"\?").replace(".", r"\.")):
        translate(swahili, rows(("Say it.", "", "It.")), tmp_path, **options)
    assert not swahili.requests
    assert not (tmp_path / "run").exists()


def test_the_prompt_can_be_shown_without_data() -> None:
    for tag in ("zh", "sw"):
        shown = CliRunner().invoke(cli, ["show", "prompt", "translate", "-l", tag])
        assert "Name three rivers of Spain." in shown.output
    with pytest.raises(ConfigError, match="--input"):
        plan([{"recipe": "translate", "language": "zh", "model": "openai/test"}])
