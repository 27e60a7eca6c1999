"""The parsers: golden completions with every fault seen in the wild, and laws over arbitrary texts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfinstruct.errors import ConfigError
from selfinstruct.languages import load_pack
from selfinstruct.parsing import parse_task_json, parse_tasks, render_tasks
from selfinstruct.values import Candidate, Instance, Task

GOLDEN = Path(__file__).parent / "golden" / "parsing"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.txt"))
EN = load_pack("en")
ZH = load_pack("zh")
TAGS = st.sampled_from(["en", "zh", "qya"])  # the last has no pack


def shown(candidate: Candidate) -> dict[str, Any]:
    """Return a candidate in the shape of the golden files, its piece whole."""
    if candidate.rejection is not None:
        assert candidate.record is None
        assert candidate.rejection.filter == "parse"
        assert candidate.truncated == (candidate.rejection.reason == "truncated")
        return {"rejection": candidate.rejection.reason, "starts": candidate.text}
    assert isinstance(candidate.record, Task)
    (case,) = candidate.record.instances
    found: dict[str, Any] = {"instruction": candidate.record.instruction, "input": case.input, "output": case.output}
    if candidate.record.is_classification is not None:
        found["is_classification"] = candidate.record.is_classification
    return found


@pytest.mark.parametrize("name", NAMES)
def test_golden(name: str) -> None:
    # Bytes, for reading in text mode would mend the line ends that one of the files is about.
    text = (GOLDEN / f"{name}.txt").read_bytes().decode("utf-8")
    case = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    pack = load_pack(case["language"])
    if case["style"] == "json":
        candidates = parse_task_json(text, pack, truncated=case["truncated"])
    else:
        candidates = parse_tasks(text, pack, truncated=case["truncated"], continues=case["continues"])
    found = [shown(candidate) for candidate in candidates]
    for got, wanted in zip(found, case["expected"], strict=False):
        if "rejection" in wanted and str(got.get("starts", "")).startswith(wanted["starts"]):
            got["starts"] = wanted["starts"]
    assert found == case["expected"], case["about"]


def test_every_golden_text_has_its_answer() -> None:
    assert NAMES
    assert sorted(path.stem for path in GOLDEN.glob("*.json")) == NAMES


# The law of the renderer. A text is normal when none of its lines could be taken for the format's own; this is
# written here without the parser's own expressions, and a little stricter than need be.

WORD = st.text(
    st.one_of(
        st.characters(codec="utf-8", categories=("L", "N")),
        st.sampled_from(list("输入出指令InputOutpInstructionTask,.;!?()[]{}+*/'\"“”《》。，：:#-_>|`~ é한ไ👩‍🚀")),
    ),
    min_size=1,
    max_size=6,
)
LABEL_WORD = re.compile(r"instruction|input|output|response|task|指令|输入|输出|响应|任务", re.IGNORECASE)


def normal_line(line: str) -> bool:
    start = line.strip(" \t\u3000")
    if LABEL_WORD.search(start[:60].casefold()) or LABEL_WORD.search(start[:60]):
        return False
    return not re.fullmatch(r"[\W_\d]*", start) and "```" not in start and "~~~" not in start


def normal(text: str) -> bool:
    return text == text.strip() and all(not line or normal_line(line) for line in text.split("\n"))


LINE = st.lists(WORD, min_size=1, max_size=4).map(" ".join)
TEXT = (
    st.lists(st.one_of(LINE, st.just("")), min_size=1, max_size=4)
    .map("\n".join)
    .map(str.strip)
    .filter(bool)
    .filter(normal)
)
BLOCK = st.tuples(TEXT, TEXT, st.sampled_from(["python", "", "json"])).map(
    lambda it: f"{it[0]}\n```{it[2]}\n{it[1]}\n```"
)
HEADED = st.tuples(TEXT, TEXT, st.sampled_from(["### Title", "# 标题", "## 1 Overview"])).map("\n".join)
CASES = st.tuples(TEXT, st.integers(0, 99)).map(
    lambda it: f"{it[0]}\nInput: {it[1]}\nOutput: {it[1] ** 2}\n输入：{it[1]}"
)
NONE = {re.sub(r"[^\w/]|_", "", word).casefold() for pack in (EN, ZH, load_pack("qya")) for word in pack.no_input}


def one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(":： ")


TASKS = st.lists(
    st.builds(
        lambda instruction, given, output: Task(instruction, (Instance(given, output),)),
        TEXT.map(one_line).filter(lambda text: bool(text) and normal_line(text) and not re.match(r"\W*\d", text)),
        st.one_of(st.just(""), TEXT, BLOCK)
        .map(str.strip)
        .filter(lambda text: re.sub(r"[^\w/]|_", "", text).casefold() not in NONE - {""}),
        st.one_of(st.just(""), TEXT, BLOCK, HEADED, CASES).map(str.strip),
    ),
    min_size=1,
    max_size=3,
)


@given(TASKS, TAGS, st.integers(0, 500))
@settings(max_examples=150, deadline=None)
def test_rendered_tasks_parse_back(tasks: list[Task], tag: str, first: int) -> None:
    pack = load_pack(tag)
    text = render_tasks(tasks, pack, first)
    whole = parse_tasks(text, pack, truncated=False, continues=False)
    assert [candidate.record for candidate in whole] == tasks
    behind_label = text[len(f"{first}. {pack.labels.instruction[0]}:") :]
    continued = parse_tasks(behind_label, pack, truncated=False, continues=True)
    assert [candidate.record for candidate in continued] == tasks


@given(TASKS, TAGS, st.data())
@settings(max_examples=100, deadline=None)
def test_a_cut_completion_loses_only_its_end(tasks: list[Task], tag: str, data: st.DataObject) -> None:
    pack = load_pack(tag)
    text = render_tasks(tasks, pack)
    cut = data.draw(st.integers(1, len(text)))
    found = parse_tasks(text[:cut], pack, truncated=True, continues=False)
    kept = [candidate.record for candidate in found if candidate.rejection is None]
    assert kept == tasks[: len(kept)]
    # All but the record that was being written are there.
    starts = [match.start() for match in re.finditer(rf"(?m)^\d+\. {pack.labels.instruction[0]}:", text)]
    assert len(kept) >= sum(start < cut for start in starts) - 1


FAULTS: dict[str, Callable[[str], str]] = {
    "no input": lambda block: re.sub(r"(?s)\n\d+\. (Input|输入):.*?(?=\n\d+\. (?:Output|输出):)", "", block),
    "no output label": lambda block: re.sub(r"\n\d+\. (Output|输出):", "", block),
    "no instruction": lambda block: block.partition("\n")[2],
    "no instruction label": lambda block: re.sub(r"^(\d+\. )(Instruction|指令): ", r"\1", block),
    "nothing behind output": lambda block: re.sub(r"(?s)((Output|输出):).*", r"\1", block),
    "number 1": lambda block: re.sub(r"(?m)^\d+\. (?=Ins|Inp|Out|指令|输)", "1. ", block),
    "number 77": lambda block: re.sub(r"(?m)^\d+\. (?=Ins|Inp|Out|指令|输)", "77. ", block),
    "output number off by one": lambda block: re.sub(
        r"(?m)^(\d+)(?=\. (Output|输出))", lambda found: str(int(found[1]) + 1), block
    ),
    "bold": lambda block: re.sub(r"(?m)^(\d+\. (Instruction|Input|Output|指令|输入|输出):)", r"**\1**", block),
    "heading": lambda block: re.sub(r"(?m)^(\d+\. (Instruction|Input|Output|指令|输入|输出):)", r"### \1", block),
    "full width": lambda block: re.sub(
        r"(?m)^(\d+)\. (Instruction|Input|Output|指令|输入|输出):",
        lambda found: "".join(chr(ord(digit) + 0xFEE0) for digit in found[1]) + f"．{found[2]}：",
        block,
    ),
    "Markdown heading in output": lambda block: block + "\n\n### More\n\ntext",
    "list in output": lambda block: block + "\n1. Input: one\n2. Process: two\n3. Output: three",
    "open code": lambda block: block + "\n```python\nx = 1",
    "label again": lambda block: re.sub(r"^((\d+)\. (Instruction|指令):)", r"\1\n\1", block),
    "line ends": lambda block: block.replace("\n", "\r\n"),
    "no fault": lambda block: block,
}
FOUND_WORDS = ["moon", "bridge", "clock", "garden", "letter", "river"]


@given(
    tag=st.sampled_from(["en", "zh"]),
    count=st.integers(2, 6),
    hit=st.integers(0, 5),
    fault=st.sampled_from(sorted(FAULTS)),
    separator=st.sampled_from(["\n###\n", "\n##\n", "\n---\n", "\n\n", "\n", "\n\n###\n\n", "\n#### \n"]),
    first=st.integers(1, 30),
    with_input=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_no_record_is_lost_to_a_fault_in_another(
    tag: str, count: int, hit: int, fault: str, separator: str, first: int, with_input: bool
) -> None:
    pack = load_pack(tag)
    tasks = [
        Task(f"Write about a {word}.", (Instance(f"an old {word}" if with_input else "", f"A {word}.\n\nIt was old."),))
        for word in FOUND_WORDS[:count]
    ]
    hit %= count
    blocks = render_tasks(tasks, pack, first).split("\n###\n")
    blocks[hit] = FAULTS[fault](blocks[hit])
    found = parse_tasks(separator.join(blocks), pack, truncated=False, continues=False)
    records = [candidate.record for candidate in found if candidate.record is not None]
    others = [task for task in tasks if task is not tasks[hit]]
    assert [record for record in records if record in others] == others
    # Whatever became of the damaged one, it made no second record out of itself.
    assert len(records) <= count
    assert len(records) == count or any(candidate.rejection for candidate in found)


PIECES = st.sampled_from(
    [
        "###", "\n", "4.", "５．", "Instruction", "Input:", "Output", "指令：", "输出", ":", "**", "```", "---",
        "<noinput>", " ", "<think>", "</think>", "Task 7:", "\r\n", "\x00", "\ud800", "\u200d", "[", "】", "最后。",
        "\u0131nstruction:", "1" * 30,
    ]
)  # fmt: skip
NOISE = st.one_of(st.text(max_size=200), st.lists(st.one_of(PIECES, st.text(max_size=5)), max_size=60).map("".join))


@given(NOISE, TAGS, st.sampled_from([True, False, None]), st.booleans())
@settings(max_examples=300, deadline=None)
def test_no_text_makes_the_list_parser_raise(text: str, tag: str, truncated: bool | None, continues: bool) -> None:
    pack = load_pack(tag)
    for candidate in parse_tasks(text, pack, truncated=truncated, continues=continues):
        shown(candidate)
        if isinstance(candidate.record, Task):
            assert candidate.record.instruction.strip()
            # What is kept can be written to a file, and was in the text.
            for part in (candidate.record.instruction, *vars_of(candidate.record)):
                part.encode("utf-8")
                assert set(part) - set(" \n?") <= set(text)


def vars_of(task: Task) -> list[str]:
    return [text for case in task.instances for text in (case.input, case.output)]


JSON_PIECES = st.sampled_from(
    [
        '{"tasks": [', '{"instruction": "a"', ', "output": "b"}', "]}", "{", "[", '"', "\\", ",", "null", "1e999", "-",
        "\ud800", "```json\n",
    ]
)  # fmt: skip


@given(st.one_of(st.text(max_size=200), st.lists(JSON_PIECES, max_size=60).map("".join)), st.booleans())
@settings(max_examples=200, deadline=None)
def test_no_text_makes_the_json_parser_raise(text: str, truncated: bool) -> None:
    for candidate in parse_task_json(text, EN, truncated=truncated):
        shown(candidate)


@given(st.lists(st.tuples(TEXT.filter(one_line), TEXT, TEXT), max_size=4), st.data())
@settings(deadline=None)
def test_json_keeps_the_complete_items_of_a_cut_list(rows: list[tuple[str, str, str]], data: st.DataObject) -> None:
    items = [json.dumps(dict(zip(("instruction", "input", "output"), row, strict=True))) for row in rows]
    text = '{"tasks": [' + ", ".join(items) + "]}"
    cut = data.draw(st.integers(len('{"tasks": ['), len(text)))
    found = parse_task_json(text[:cut], EN, truncated=True)
    ends = [len('{"tasks": [') + len(", ".join(items[: at + 1])) for at in range(len(items))]
    assert sum(candidate.rejection is None for candidate in found) == sum(end <= cut for end in ends)


@pytest.mark.parametrize(
    "text",
    [
        '{"tasks": ' + "[" * 100_000,
        '{"tasks": [{"instruction": "x", "output": ' + "[" * 100_000,
        '{"tasks": [{"instruction": "x", "output": ' + '{"a":' * 100_000,
        '{"tasks": [{"instruction": "x", "output": ' + "9" * 10_000 + "}]}",
        '{"instruction": ' * 2_000,
    ],
    ids=["lists", "nested-lists", "nested-objects", "huge-number", "item-starts"],
)
def test_deep_or_huge_json_is_rejected(text: str) -> None:
    found = parse_task_json(text, EN, truncated=False)
    assert found
    assert {candidate.rejection.reason for candidate in found if candidate.rejection} <= {"not_json", "wrong_type"}
    assert all(candidate.rejection for candidate in found)


@pytest.mark.parametrize(
    "text",
    ["Input:\n" * 5_000, "```\n4. Output: x\n" * 3_000, " " * 500_000, "*" * 200_000, "4" * 200_000, "\n" * 200_000],
    ids=["labels", "fences", "blanks", "stars", "digits", "lines"],
)
@pytest.mark.timeout(30)
def test_hostile_completions_take_no_time(text: str) -> None:
    parse_tasks(text, EN, truncated=False)


def test_pieces_account_for_the_whole_completion() -> None:
    text = (GOLDEN / "en_output_missing.txt").read_text(encoding="utf-8")
    pieces = [candidate.text for candidate in parse_tasks(text, EN, truncated=False)]
    assert "".join("".join(pieces).split()) == "".join(text.split())


def test_the_prompts_first_number_may_be_any() -> None:
    tasks = [Task("Name a moon of Mars.", (Instance("", "Phobos."),))]
    assert render_tasks(tasks, EN, 17).startswith("17. Instruction: Name a moon of Mars.\n17. Input:\n<noinput>\n")
    assert render_tasks(tasks, ZH).startswith("1. 指令: Name a moon of Mars.\n1. 输入:\n<无输入>\n1. 输出:\nPhobos.")


def test_a_task_without_instance_is_no_demonstration() -> None:
    with pytest.raises(ConfigError, match=r"Sort the words.*no instance"):
        render_tasks([Task("Sort the words.")], EN)


@pytest.mark.parametrize("tag", ["en", "zh"])
def test_shipped_seeds_survive_rendering(tag: str) -> None:
    pack = load_pack(tag)
    path = Path(__file__).parents[1] / "seeds" / tag / "tasks.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    assert len(rows) >= 100
    tasks = [Task(row["instruction"], tuple(Instance(**case) for case in row["instances"])) for row in rows]
    for at in range(0, len(tasks), 3):
        shown_tasks = tasks[at : at + 3]
        found = parse_tasks(render_tasks(shown_tasks, pack), pack, truncated=False, continues=False)
        for task, candidate in zip(shown_tasks, found, strict=True):
            assert isinstance(candidate.record, Task)
            assert candidate.record.instances == task.instances[:1]
            assert candidate.record.instruction == one_line(task.instruction)
