"""Each cleaning step on what it is for, and on what it must leave alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfinstruct.cleaning import STEPS, cleaner, length, texts
from selfinstruct.errors import ConfigError
from selfinstruct.values import Dialogue, Instance, Message, Record, Task
from tests.formats.records import any_record, dialogues


def chat(*contents: str, id: str = "") -> Dialogue:
    roles = ("user", "assistant")
    return Dialogue(tuple(Message(roles[i % 2], c) for i, c in enumerate(contents)), id=id)  # type: ignore[arg-type]


def task(output: str, instruction: str = "Say something.", given: str = "") -> Task:
    return Task(instruction, (Instance(given, output),))


def outputs(step: str, record: Record) -> list[list[str]]:
    return [list(texts(found)) for found in cleaner([step])(record)]


@pytest.mark.parametrize(
    ("step", "dropped", "kept"),
    [
        ("empty-output", task(" \n"), task("x")),
        ("na-output", task("N/A."), task("N/A is an abbreviation.")),
        ("merged-instructions", task("Yes.\n5. Instruction: Write a poem."), task("The instruction: be brief.")),
        ("merged-instructions", task("好的。\n###\n指令：写诗"), task("Use ### for a heading.")),
        ("urls", task("x", "Summarise https://example.org/a"), task("See https://example.org", "Name a site.")),
        ("blocked-phrases", chat("Hi", "I am ChatGPT."), chat("Hi", "I am a program.")),
        ("blocked-phrases=Zebra", task("a zebra crossing"), task("ChatGPT")),
        (
            "blocked-replies",
            chat("Hi", "Too many requests in 1 hour. Try again later."),
            chat("Too many requests?", "No."),
        ),
        ("too-short", chat("Hi", "Hello."), chat("Say hello to everyone.", "Hello, everyone!")),
        ("repeated-digits", task("111111111"), task("11111111 22222222")),
        ("wrong-numbering", task("List:\n1. a\n1. b"), task("List:\n1. a\n2. b\n3. c\n\nAgain:\n1. d")),
        ("keep-language=zh", task("Hello there, everyone.", "Speak."), task("大家好，很高兴见到你们。", "说话")),
        ("skip-language=zh", task("大家好，很高兴见到你们。", "说话"), task("Hello there, everyone.", "Speak.")),
        (
            "failed-tools",
            Dialogue((Message("tool", "Calculate(\"1/0\") => 'No result.'"),)),
            Dialogue((Message("tool", "Calculate(\"1/1\") => '1'"),)),
        ),
        (
            "oasst-ready",
            Dialogue((), extra={"oasst": {"tree": {}, "nodes": [{"message_id": "a", "deleted": True}]}}),
            Dialogue((), extra={"oasst": {"tree": {}, "nodes": [{"message_id": "a", "review_result": True}]}}),
        ),
    ],
)
def test_steps_that_drop(step: str, dropped: Record, kept: Record) -> None:
    clean = cleaner([step])
    assert clean(dropped) == []
    assert clean(kept) == [kept]
    (count,) = clean.counts.values()
    assert (count.taken, count.dropped, count.changed, count.added) == (2, 1, 0, 0)


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        ("strip", " a\n", "a"),
        ("literal-newlines", r"a\nb\n\nc", "a\nb\n\nc"),
        ("literal-newlines", 'print("a\\n")\nprint("b")', 'print("a\\n")\nprint("b")'),
        ("literal-newlines", r"C:\\new", r"C:\\new"),
        ("control-characters", "a\x00b\x1f\ufeffc\td\n", "abc\td\n"),
    ],
)
def test_steps_that_change_texts(step: str, before: str, after: str) -> None:
    assert outputs(step, task(before)) == [["Say something.", "", after]]


@pytest.mark.parametrize("spelling", ["<noinput>", "No input", "N/A", "none.", "无输入"])
def test_no_input_spellings(spelling: str) -> None:
    (found,) = cleaner(["no-input=en,zh"])(task("x", given=spelling))
    assert found == task("x")
    assert cleaner(["no-input"])(task("x", given="No input was lost."))[0] == task("x", given="No input was lost.")


def test_html_becomes_markdown_and_a_less_than_sign_stays() -> None:
    pytest.importorskip("markdownify")
    html = (
        '<div class="x"><p>Use <strong>this</strong> a_b * c:</p><pre><div><span>python</span><button>Copy code'
        '</button></div><div><code class="hljs">  <span>if</span> a &lt; b:\n      pass_it_on()\n</code></div></pre>'
        "<ol><li>one</li><li>two</li></ol></div><p>2 / 3</p>"
    )
    assert outputs("html-to-markdown", task(html)) == [
        [
            "Say something.",
            "",
            "Use **this** a_b * c:\n\n```python\n  if a < b:\n      pass_it_on()\n```\n\n1. one\n2. two",
        ]
    ]
    assert outputs("html-to-markdown", task("if a <b> c: 3 < 4 & 5")) == [
        ["Say something.", "", "if a <b> c: 3 < 4 & 5"]
    ]


def test_ends_are_trimmed_and_empty_turns_cut() -> None:
    first = Dialogue((Message("assistant", "x"), *chat("a", "b", "c").messages))
    assert cleaner(["trim-ends"])(first) == [chat("a", "b")]
    assert cleaner(["trim-ends"])(chat("a")) == []
    assert cleaner(["cut-at-empty"])(chat("a", "b", "c", " ", "d", "e")) == [chat("a", "b")]


def test_duplicates_by_id_and_by_first_exchange() -> None:
    clean = cleaner(["duplicates"])
    records = [chat("a", "b", id="1"), chat("a", "b", "c", "d", id="2"), chat("e", "f", id="1"), chat("g", "h", id="3")]
    assert [record.id for found in map(clean, records) for record in found] == ["1", "3"]


@settings(max_examples=100, deadline=None)
@given(dialogue=dialogues(least=2), limit=st.integers(1, 60))
def test_a_split_loses_no_turn(dialogue: Dialogue, limit: int) -> None:
    named = Dialogue(dialogue.messages, id="x")
    parts = cleaner([f"split-long={limit}"])(named)
    assert tuple(message for part in parts for message in part.messages) == dialogue.messages  # type: ignore[union-attr]
    for part in parts:
        assert isinstance(part, Dialogue)
        assert part.messages[0].role == "user"
        # Only a single turn may be longer than the limit.
        assert len(part.messages) == 2 or sum(map(length, part.messages)) <= limit
    if len(parts) > 1:
        starts = [int(part.id.removeprefix("x_")) for part in parts]
        assert starts == sorted(set(starts))


@settings(max_examples=150, deadline=None)
@given(records=st.lists(any_record, max_size=4), step=st.sampled_from(sorted(STEPS)))
def test_every_step_accounts_for_every_record(records: list[Record], step: str) -> None:
    if step in ("keep-language", "skip-language"):
        step += "=en"
    if step == "html-to-markdown":
        pytest.importorskip("markdownify")
    dropped: list[Record] = []
    clean = cleaner([step])
    clean.on_dropped = lambda record, _: dropped.append(record)
    found = [left for record in records for left in clean(record)]
    if records:
        count = clean.counts[step]
        assert count.taken == len(records)
        assert count.taken - count.dropped + count.added == len(found)
        assert count.dropped == len(dropped)


@pytest.mark.parametrize(
    "wanted", ["strip=1", "split-long=many", "too-short=0", "keep-language", "blocked-phrases=", "nope"]
)
def test_wrong_steps_are_told(wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted.partition("=")[0]):
        cleaner([wanted])
