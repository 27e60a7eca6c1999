"""Each planted defect is found, a clean file passes, and the gate's exit code says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from selfinstruct import formats
from selfinstruct.checks import Thresholds, wrong_sums
from selfinstruct.cli.data import verify as command
from selfinstruct.errors import ConfigError
from selfinstruct.values import Comparison, Dialogue, Instance, Message, Record, Response, Task
from selfinstruct.verify import CHECKS, Verifier, verify
from tests.formats.records import any_record

LONG = "Rivers carry water from the mountains to the sea. On their way they are joined by streams. " * 2
CLEAN = [
    Task("Explain how a river is fed.", (Instance("", LONG + "In the end they slow down and spread out."),)),
    Task("Add the numbers.", (Instance("2 and 3", "2 + 3 = 5, and 10 / 4 = 2.5, about 3 × 0.333 = 1."),)),
    Task("Translate to Chinese.", (Instance("Good morning.", "大家早上好，祝你们今天一切顺利，也祝你们的家人都好。"),)),
    Task("写一首关于春天的短诗", (Instance("", "春风吹绿岸边柳，\n燕子归来唱新歌。"),)),
    Task("Write a Python function that adds.", (Instance("", "```python\ndef add(a, b):\n    return a + b\n```"),)),
    Task("List three fruits", (Instance("", "1. Apple\n2. Pear\n3. Plum"),)),
]  # fmt: skip
SAY = "Say something about the weather in spring."


def answered(output: str, instruction: str = SAY, given: str = "") -> Task:
    return Task(instruction, (Instance(given, output),))


PLANTED: list[tuple[str, Record]] = [
    ("empty", answered(" ")),
    ("empty", Dialogue((Message("user", "Hi"), Message("assistant", "")))),
    ("placeholder", answered("It rains.", given="<noinput>")),
    ("placeholder", answered("N/A")),
    ("truncated", answered(LONG + "After that the river reaches the wide and")),
    ("truncated", answered("Here you are:\n```python\nprint(1)\n")),
    ("truncated", answered(LONG + "Then it goes on. After many days the water in it reaches the sea where the ships")),
    ("truncated", answered("江河的水来自高山的冰雪，也来自天上的雨水。" * 9 + "它们一路向东，", "江河的水从哪里来？")),
    ("refusal", answered("I'm sorry, but I cannot help with that.")),
    ("refusal", answered("很抱歉，我无法回答这个问题。", "今天春天的天气怎么样？")),
    ("leak", answered("It rains.\n### Instruction:\nSay more.")),
    ("leak", answered("It rains.<|im_end|>")),
    ("leak", answered("下雨。\n5. 指令：写诗", "说说春天的天气。")),
    ("leak", Dialogue((Message("user", "Hi"), Message("assistant", "Hello.\nHuman: And?\nAssistant: Well.")))),
    ("language", answered("春天的天气常常变化，有时下雨，有时晴朗，大家都很喜欢这个季节。")),
    ("arithmetic", answered("We see that 2 + 2 * 3 = 12.")),
    ("arithmetic", answered("1,200 ÷ 4 = 3,000 in all.")),
    ("personal", answered("Write to jane.roe@mail-box.org today.")),
    ("personal", answered("Call +44 20 7946 0958 now.")),
    ("personal", answered("电话：13812345678。", "说说春天的天气。")),
    ("personal", answered("The key is sk-" + "a1B2" * 8 + ".")),
    ("characters", answered("It\x00rains.")),
    ("characters", answered("It rains\ufffd.")),
    ("choices", Task("a：甲，乙", (Instance("", "丙"),), True, extra={"answer_choices": ["甲", "乙"]})),
]  # fmt: skip


@pytest.mark.parametrize(("check", "record"), PLANTED, ids=[f"{name}-{i}" for i, (name, _) in enumerate(PLANTED)])
def test_each_planted_defect_is_found_and_nothing_else(check: str, record: Record) -> None:
    assert {name for name, _ in Verifier()(record, "file:1")} == {check}


def test_a_clean_file_passes(tmp_path: Path) -> None:
    formats.write("alpaca", CLEAN, tmp_path / "clean.json")
    result = verify(tmp_path / "clean.json")
    assert result.examples == []
    assert result.fit
    assert (result.records, result.format) == (len(CLEAN), "alpaca")


ENGLISH = "Rivers carry water from the mountains to the sea, and on their way they are joined by streams."
GERMAN = "Die Flüsse tragen das Wasser von den Bergen ins Meer, und unterwegs münden viele Bäche in sie."


@pytest.mark.parametrize(
    ("language", "record", "found"),
    [
        ("de", answered(ENGLISH, "Woher kommt das Wasser der Flüsse?"), ["language"]),
        ("de", answered(GERMAN, "Woher kommt das Wasser der Flüsse?"), []),
        ("de", answered(ENGLISH, "Übersetze den Satz ins Englische.", GERMAN), []),
        ("de", answered("Moby Dick; or, The Whale", "Welches Buch meine ich?"), []),
        ("en", answered(GERMAN, "Where does the water of rivers come from?"), ["language"]),
        ("zh", answered(f"{ENGLISH} {ENGLISH}", "河流的水从哪里来？"), ["language"]),
        (None, answered(GERMAN, "Where does the water of rivers come from?"), []),
    ],
)
def test_an_answer_in_another_language_than_the_one_named(language: str | None, record: Task, found: list[str]) -> None:
    pytest.importorskip("py3langid")
    assert sorted({name for name, _ in Verifier(language=language)(record, "1")}) == found


def test_duplicates_near_and_exact(tmp_path: Path) -> None:
    texts = ["Name three long rivers of Africa.", "Name three long rivers in Africa.", "Write a haiku about snow."]
    records = [answered(f"Answer {n}.", text) for n, text in enumerate(texts)]
    formats.write("alpaca", [*records, records[2]], tmp_path / "x.json")
    result = verify(tmp_path / "x.json")
    assert {name: count for name, count in result.counts.items() if count} == {
        "near-duplicate": 1,
        "exact-duplicate": 1,
    }
    assert result.failed == ["exact-duplicate", "near-duplicate"]
    assert verify(tmp_path / "x.json", allowed={"exact-duplicate": 0.25, "near-duplicate": 0.3}).fit
    strict = Verifier(thresholds=Thresholds(near_duplicate=0.95))
    assert verify(tmp_path / "x.json", verifier=strict).failed == ["exact-duplicate"]


def test_overlap_with_a_benchmark(tmp_path: Path) -> None:
    long = "one two three four five six seven eight nine ten eleven twelve thirteen"
    verifier = Verifier(against=["How many legs has a spider?", f"Question: {long}?"])
    found = [name for text in ("How many legs has a spider", f"{'Other words come first here. ' * 9}{long}", SAY)
             for name, _ in verifier(answered("Eight.", text), text)]  # fmt: skip
    assert found == ["overlap", "overlap"]


def test_rows_that_break_the_formats_own_rules(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"messages": [{"role": "user", "content": "c"}]},
        {"messages": 7},
    ]
    (tmp_path / "x").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = verify(tmp_path / "x")
    assert result.counts["schema"] == 2
    assert [finding.place for finding in result.examples] == [f"{tmp_path / 'x'}:2", f"{tmp_path / 'x'}:3"]


@pytest.mark.parametrize(
    "text",
    [
        "2 + 2 = 4", "7 / 2 = 3.5", "10 / 3 = 3.33", "2 + 3 * 4 = 14", "1,000 - 1 = 999", "5/9 × (F − 32) = C",
        "x + 2 = 5", "(1 + 2) * 3 = 9", "2 + 2 = x", "7 / 2 = 3 remainder 1", "2^3 + 1 = 9", "10 mod 3 + 1 = 2",
        "37 × 9/5 = 66.6", "12 ÷ 5 = 2 余 2", "3 + 4 = 7 + 0", "2 + 2 = 4.0", "1 / 0 = 7", "50% + 1 = 51",
        "1e3 + 1 = 1001", "a1 + 2 = 4", "2023-01-02 = 7", "3,5 + 1 = 4,5", "2 + 3,5 = 5,5",
    ],
)  # fmt: skip
def test_sums_that_come_out_or_can_not_be_checked(text: str) -> None:
    assert wrong_sums(text) == []


@pytest.mark.parametrize("text", ["2 + 2 = 5", "so 3*3=10.", "1,000 - 1 = 99", "7 / 2 = 3", "12 × 12 = 124 apples"])
def test_sums_that_do_not_come_out(text: str) -> None:
    assert len(wrong_sums(text)) == 1


@settings(max_examples=150, deadline=None)
@given(left=st.integers(0, 999), right=st.integers(0, 999), off=st.integers(-9, 9))
def test_sums_agree_with_arithmetic(left: int, right: int, off: int) -> None:
    assert bool(wrong_sums(f"So {left} + {right} = {left + right + off}.")) == bool(off)
    assert bool(wrong_sums(f"So {left} * {right} = {left * right + off * 10}.")) == bool(off)


@settings(max_examples=100, deadline=None)
@given(records=st.lists(any_record, max_size=4))
def test_no_record_breaks_a_check(records: list[Record]) -> None:
    verifier = Verifier(against=["a b c"])
    for number, record in enumerate(records):
        assert {name for name, _ in verifier(record, str(number))} <= set(CHECKS)


def run(path: Path, *more: str) -> tuple[int, str]:
    result = CliRunner().invoke(command, [str(path), *more])
    return result.exit_code, result.output


def test_the_gate(tmp_path: Path) -> None:
    formats.write("alpaca", CLEAN, tmp_path / "clean.json")
    formats.write("alpaca", [*CLEAN, answered("I'm sorry, but I cannot help with that.")], tmp_path / "bad.json")
    assert run(tmp_path / "clean.json")[0] == 0
    code, output = run(tmp_path / "bad.json")
    assert code == 1
    assert "bad.json:32: the answer opens with" in output
    code, output = run(tmp_path / "bad.json", "--json", "--findings", str(tmp_path / "all.jsonl"))
    assert code == 1
    assert json.loads(output)["failed"] == ["refusal"]
    assert json.loads((tmp_path / "all.jsonl").read_text(encoding="utf-8"))["check"] == "refusal"
    assert run(tmp_path / "bad.json", "--skip", "refusal")[0] == 0
    assert run(tmp_path / "bad.json", "--allow", "refusal=0.2")[0] == 0
    (tmp_path / "c.yaml").write_text("verify:\n  near_duplicate: 0.9\n  allow: {refusal: 0.2}\n", encoding="utf-8")
    assert run(tmp_path / "bad.json", "--config", str(tmp_path / "c.yaml"))[0] == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--only", "refusals"), 'no check "refusals"; there is refusal'),
        (("--set", "near=1"), r"verify\.near: no such threshold; there is near_duplicate"),
        (("--set", "overlap=2"), r"verify\.overlap: expected a number from 0 to 1"),
        (("--allow", "refusal=x"), "expected a number"),
        (("--allow", "refusl=0.1"), 'no check "refusl"'),
    ],
)
def test_wrong_settings_are_told(more: tuple[str, ...], message: str, tmp_path: Path) -> None:
    formats.write("alpaca", CLEAN, tmp_path / "x.json")
    with pytest.raises(ConfigError, match=message):
        CliRunner().invoke(command, [str(tmp_path / "x.json"), *more], catch_exceptions=False)


def test_a_worse_response_may_be_wrong_but_not_leak() -> None:
    wrong = Comparison("What is 2 + 2?", (Response("2 + 2 = 4.", rank=0), Response("2 + 2 = 5.", rank=1)))
    assert list(Verifier()(wrong, "1")) == []
    leaking = replace(wrong, responses=(*wrong.responses, Response("4</s>", rank=2)))
    assert [name for name, _ in Verifier()(leaking, "1")] == ["leak"]
