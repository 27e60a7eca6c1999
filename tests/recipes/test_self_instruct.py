"""Self-Instruct's pipeline: what models write read back, its laws over several stages, its files."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from selfinstruct import formats, resources, seeds
from selfinstruct.cli.data import export as export_command
from selfinstruct.cli.inspect import trace as trace_command
from selfinstruct.config import build
from selfinstruct.errors import ConfigError
from selfinstruct.filters import build_filters
from selfinstruct.formats import self_instruct as original
from selfinstruct.instances import LIMIT, parse_instances, render_instances
from selfinstruct.languages import load_pack
from selfinstruct.plan import Plan, plan, resume_plan
from selfinstruct.recipes.self_instruct import PARTS, read_list, read_verdict
from selfinstruct.replay import refilter, replay
from selfinstruct.report import trace_record
from selfinstruct.store import RunStore, RunView
from selfinstruct.testing import Scripted
from selfinstruct.values import Candidate, Capabilities, Completion, Instance, Request, Task, Usage
from tests.backends.endpoint import Endpoint, Reply, Seen, chat, continuation
from tests.program import RPM, kill, run_options, selfinstruct
from tests.recipes.runs import Dataset, work

EN, ZH = load_pack("en"), load_pack("zh")
TAGS = [tag for tag in resources.folders("seeds") if load_pack(tag).shipped]


# Reading: instructions


def read(text: str, first: int | None = None, truncated: bool = False, tag: str = "en") -> list[str]:
    """Return what was read: instructions, "(cut)" behind one that was cut off, rejections as "reason: text"."""
    found = []
    for candidate in read_list(text, load_pack(tag), first=first, truncated=truncated):
        if candidate.rejection is not None:
            found.append(f"{candidate.rejection.reason}: {candidate.text}")
        else:
            assert isinstance(candidate.record, Task)
            found.append(candidate.record.instruction + (" (cut)" if candidate.truncated else ""))
    return found


@pytest.mark.parametrize(
    ("text", "first", "expected"),
    [
        (
            " Name a river.\n10. Explain NASA.\n11. Sum up 3 notes.",
            9,
            "Name a river. | Explain NASA. | Sum up 3 notes.",
        ),
        (" 9. Name a river.\n10.Explain NASA.", 9, "Name a river. | Explain NASA."),
        ("Name a river.\n10) Explain NASA.\n11 . Sum up.", 9, "Name a river. | Explain NASA. | Sum up."),
        # the list starts again
        (" Name a river.\n1. Explain NASA.\n2. Sum up.", 9, "Name a river. | Explain NASA. | Sum up."),
        # numbers are missing
        (" Name a river.\nExplain NASA.\nSum up.", 9, "Name a river. | Explain NASA. | Sum up."),
        (" Name a river.\n10. Explain NASA.\nSum up.", 9, "Name a river. | Explain NASA. | no_number: Sum up."),
        ("- Name a river.\n- Explain NASA.", None, "Name a river. | Explain NASA."),
        # an instruction over several lines, and with its material
        ("9. Name a river that\nflows north.\n10. Go.", None, "Name a river that flows north. | Go."),
        ("9. Name a river.\nexplain NASA.\n10. Go.", None, "Name a river. | Go. | no_number: explain NASA."),
        ("9. Mend this:\nHe go home.\n10. Sum up.", None, "Mend this: He go home. | Sum up."),
        ("9. Order these:\n1. bee\n2. ant\n10. Sum up.", None, "Order these: 1. bee 2. ant | Sum up."),
        ("9. Order these:\n- bee\n- ant\n10. Sum up.", None, "Order these: - bee - ant | Sum up."),
        # what chat adds
        ("Sure! Here they are:\n\n9. Name a river.\n\n10. Sum up.", None, "Name a river. | Sum up."),
        ("Here you go:\nName a river.\nSum up.", None, "Name a river. | Sum up."),
        ("**9.** **Name a river.**\n### 10. Sum up.", None, "Name a river. | Sum up."),
        ('Task 9: "Name a river."\nTask 10: Sum up:', None, "Name a river. | Sum up"),
        ("9. Instruction: Name a river.", None, "Name a river."),
        ("<think>nine more</think>\n9. Name a river.", None, "Name a river."),
        ("9. Name a river.\nShall I go on?", None, "Name a river. | no_number: Shall I go on?"),
        # a label's word that begins an instruction is none; a year or a time is no number
        ("9. Task lists need order; write one.", None, "Task lists need order; write one."),
        ("9. In 1984. Or was it?\n10. At 10:30 write.", None, "In 1984. Or was it? | At 10:30 write."),
        (" \n\n", 9, ""),
        ("14.", None, ""),
        ("", None, ""),
    ],
)
def test_lists_of_instructions(text: str, first: int | None, expected: str) -> None:
    assert " | ".join(read(text, first)) == expected


def test_lists_of_instructions_in_chinese() -> None:
    found = read("9、写一首诗。\n１０．解释光合作用。\n任务11：概括全文\n12。排序：\n1、蚂蚁\n2、蜜蜂", tag="zh")
    assert found == ["写一首诗。", "解释光合作用。", "概括全文", "排序： 1、蚂蚁 2、蜜蜂"]


def test_only_the_last_instruction_is_cut_off() -> None:
    assert read("9. Name a river.\n10. Sum", truncated=True) == ["Name a river.", "Sum (cut)"]
    assert read("9. Name a river.\n10.", truncated=True) == ["Name a river."]
    assert read("9. Name a river.\n", truncated=True) == ["Name a river."]
    assert read("Name a river.", 9, truncated=True) == ["Name a river. (cut)"]


# Reading: verdicts


@pytest.mark.parametrize(
    ("tag", "yes", "no", "neither"),
    [
        (
            "en",
            "Yes| yes\n|YES.|**Yes**|Yes, it picks a label|Classification: Yes",
            "No|no.|No — it writes|“No”",
            "Maybe|",
        ),
        ("en", "Yes\nTask: Write", "No\n\nTask", "Yes it is|No idea|Yes/No|Yesterday|Not sure|1|<think>Yes"),
        ("zh", "是|是。|是的，|是否分类：是", "否|不是。|否，要写文章|no", "是分类任务|不一定|"),
        ("hi", "हाँ|हां।|जी हाँ", "नहीं|जी नहीं।", "हाँलाकि|शायद"),
        ("th", "ใช่", "ไม่ใช่|ไม่", "ไม่แน่ใจ"),
        ("ar", "نعم.|نعم، لأن", "لا|لا.", "لا يمكن القول"),
        ("es", "Sí|si.", "No.", "Sin duda"),
    ],
)
def test_verdicts_are_read_strictly(tag: str, yes: str, no: str, neither: str) -> None:
    pack = load_pack(tag)
    found = {text: read_verdict(text, pack) for text in f"{yes}|{no}|{neither}".split("|")}
    wanted = dict.fromkeys(yes.split("|"), True) | dict.fromkeys(no.split("|"), False)
    assert found == wanted | dict.fromkeys(neither.split("|"))


@pytest.mark.parametrize("tag", TAGS)
def test_every_spelling_of_yes_and_no_is_its_own(tag: str) -> None:
    pack = load_pack(tag)
    assert all(read_verdict(f" {word}.", pack) is True for word in pack.yes)
    assert all(read_verdict(f"{word}\n", pack) is False for word in pack.no)


# Reading: instances


def cases(text: str, tag: str = "en", *, labelled: bool = False, truncated: bool = False) -> str:
    found = parse_instances(text, Task("Do it.", (), labelled), load_pack(tag), truncated=truncated)
    return " | ".join(f"{case.input} -> {case.output}" for case in found).replace("\n", "⏎")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Example 1\nInput: a\nOutput: b\nExample 2\nInput: c\nOutput: d", "a -> b | c -> d"),
        ("Example 1\nOutput: b", " -> b"),
        ("Output: b", " -> b"),
        ("\nInput: a\nOutput: b\n\nInput: c\nOutput: d", "a -> b | c -> d"),
        ("Example 1:\nInput:\na\nstill a\nOutput:\nb\n\nstill b\n", "a⏎still a -> b⏎⏎still b"),
        ("example 1.\nINPUT: a\noutput: b", "a -> b"),
        (
            "**Example 1**\n\n**Input:** a\n\n**Output:** b\n\n---\n\n**Example 2**\n**Input**: c\n**Output**: d",
            "a -> b | c -> d",
        ),
        ("### Example 1\n- Input: a\n- Output: b", "a -> b"),
        ("Example 1: Input: a\nOutput: b", "a -> b"),
        ("Example 1: a short one\nInput: a\nOutput: b", "a -> b"),
        ("Input 1: a\nOutput 1: b\nInput 2: c\nOutput 2: d", "a -> b | c -> d"),
        ("Sure!\nTask: Do it\nExample 1\nInput: a\nOutput: b", "a -> b"),
        ("Example 1\nInput: a\nOutput: b\n\nTask: Another\nExample 1\nOutput: no", "a -> b"),
        ("Sure!\nTask: Do something else\nExample 1\nInput: a\nOutput: b", ""),
        ("Example 1\nInput: none\nOutput: b", " -> b"),
        ("Example 1\nInput: <noinput>\nOutput: b", " -> b"),
        ("Example 1\nInput: a\nOutput: b\nExample 2\nInput: a\nOutput: b", "a -> b"),
        ("```\nExample 1\nInput: a\nOutput: b\n```", "a -> b"),
        ("Example 1\nOutput:\n```python\nInput: x\nOutput: y\n```", " -> ```python⏎Input: x⏎Output: y⏎```"),
        (
            "Example 1\nOutput: ```\nTask: x\n```\nExample 2\nOutput: c",
            " -> ```⏎Task: x⏎``` | -> c".replace("| ->", "|  ->"),
        ),
        # in the middle of a line, or without a colon, a label is text
        ("Example 1\nOutput: see Output: 3\nInput is low", " -> see Output: 3⏎Input is low"),
        ("Example 1\nOutput: a\nExample sentences help.", " -> a⏎Example sentences help."),
        # labels of classes are no labels here
        ("Example 1\nOutput: a\nLabel: b", " -> a⏎Label: b"),
        ("Example 1\nInput: a", ""),
        ("Example 1\nInput: a\nOutput:", "a -> "),
        ("It can't be done.", ""),
        ("", ""),
    ],
)
def test_instances_input_first(text: str, expected: str) -> None:
    assert cases(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Class label: good\nInput: a\nClass label: bad\nInput: b", "a -> good | b -> bad"),
        ("class label: Good\nSentence: a\nstill a\nCLASS LABEL: bad\nb", "Sentence: a⏎still a -> Good | b -> bad"),
        ("Class label: good", " -> good"),
        ("Class label: good\nClass label: bad", " -> good |  -> bad"),
        ("Class label:\ngood\nInput: a", "a -> good"),
        ("**Class label:** good\n**Input:** a", "a -> good"),
        ("Label: good\nInput: a", "a -> good"),
        ("Example 1\nInput: a\nOutput: good\nExample 2\nInput: b\nOutput: bad", "a -> good | b -> bad"),
        ("Input: a\nClass label: good\nInput: b\nClass label: bad", "a -> good | b -> bad"),
        ("Class label: good\nInput: a\nTask: Other\nClass label: x", "a -> good"),
        ("I think it is good.", ""),
    ],
)
def test_instances_output_first(text: str, expected: str) -> None:
    assert cases(text, labelled=True) == expected


def test_instances_in_chinese_with_both_colons() -> None:
    assert cases("示例1：\n输入：甲\n输出: 乙\n示例二\n输出：丙", "zh") == "甲 -> 乙 |  -> 丙"
    assert (
        cases("类别标签：正面\n很好吃\n类别标签: 负面\n输入：难吃", "zh", labelled=True)
        == "很好吃 -> 正面 | 难吃 -> 负面"
    )
    assert cases("【示例 1】\n**输入：**甲\n**输出**：乙", "zh") == "甲 -> 乙"
    assert cases("Example 1\nInput: 甲\nOutput: 乙", "zh") == "甲 -> 乙"


def test_a_cut_completion_loses_the_instance_it_was_cut_in() -> None:
    whole = "Example 1\nInput: a\nOutput: b\nExample 2\nInput: c\nOutput: d"
    assert cases(whole, truncated=True) == "a -> b"
    assert cases(f"{whole}\nExample 3\nInput: e", truncated=True) == "a -> b | c -> d"
    assert cases(f"{whole}\nExample 3", truncated=True) == "a -> b | c -> d"
    assert cases(f"{whole}\nTask: And", truncated=True) == "a -> b | c -> d"
    assert cases("Class label: good\nInput: a\nClass label: b", labelled=True, truncated=True) == "a -> good"
    assert cases("Output: b", truncated=True) == ""


def test_five_instances_are_read_at_most() -> None:
    seven = "\n".join(f"Example {number}\nInput: {number}\nOutput: o" for number in range(1, 8))
    assert cases(seven).count("->") == LIMIT == 5


@pytest.mark.parametrize("tag", TAGS)
def test_the_instances_of_every_seed_are_read_back(tag: str) -> None:
    pack = load_pack(tag)
    for task in seeds.load_tasks(Path(str(seeds.path_for(tag)))):
        text = render_instances(task, pack)
        for form in (text, text.replace(": ", "：").replace(":\n", "：\n")):
            found = parse_instances(form, task, pack)
            if form is text:
                assert tuple(found) == task.instances, task.id
            else:
                assert len(found) == len(task.instances), task.id


# The law of the renderer: a text is normal when no line of it could be taken for the format's own.
_WORD = st.text(
    st.one_of(
        st.characters(codec="utf-8", categories=("L", "N")),
        st.sampled_from(
            list("输入出示例类别标签InputOutpExampleClasslabelTask,.;!?()[]{}+*/'\"“”，：:#-_>|`~ é한ไع👩‍🚀")
        ),
    ),
    min_size=1,
    max_size=6,
)
_OWN = re.compile(
    r"instruction|input|output|response|task|example|label|指令|输入|输出|响应|任务|示例|例子|类别|标签|"
    r"مثال|تصنيف|الفئة|مدخل|مخرج|مهمة|تعليم|المدخل|المخرج|المهمة|التعليمة|إدخال|إخراج",
    re.IGNORECASE,
)


def normal(line: str) -> bool:
    return (
        not (_OWN.search(line) or _OWN.search(line.casefold()) or re.fullmatch(r"[\W_\d]*", line)) and "``" not in line
    )


_LINE = st.lists(_WORD, min_size=1, max_size=4).map(" ".join).map(str.strip).filter(bool).filter(normal)
_TEXT = st.lists(_LINE, min_size=1, max_size=3).map("\n".join)
_BLOCK = st.tuples(_TEXT, st.sampled_from(["", "python"])).map(
    lambda it: f"{it[0]}\n```{it[1]}\nInput: x\nOutput: {it[0]}\nTask: y\n```"
)
_RULED = st.tuples(_TEXT, _TEXT).map("\n\n---\n".join)
_FIELD = st.one_of(_TEXT, _BLOCK, _RULED)
_NONE = {
    re.sub(r"[^\w/]|_", "", word).casefold() for tag in ("en", "zh", "ar", "qya") for word in load_pack(tag).no_input
}
_GIVEN = st.one_of(st.just(""), _FIELD).filter(
    lambda text: re.sub(r"[^\w/]|_", "", text).casefold() not in _NONE - {""}
)
_INSTANCES = st.lists(st.builds(Instance, _GIVEN, _FIELD), min_size=1, max_size=5, unique=True)
_LABELLED = st.lists(st.builds(Instance, _GIVEN, _LINE), min_size=1, max_size=5, unique=True)
_TAGS = st.sampled_from(["en", "zh", "ar", "qya"])  # the last has no pack


@given(st.one_of(st.tuples(st.just(False), _INSTANCES), st.tuples(st.just(True), _LABELLED)), _TAGS, st.data())
@settings(max_examples=150, deadline=None)
def test_rendered_instances_are_read_back_and_a_cut_loses_the_last_at_most(
    made: tuple[bool, list[Instance]], tag: str, data: st.DataObject
) -> None:
    labelled, instances = made
    pack = load_pack(tag)
    task = Task("Do it.", tuple(instances), labelled)
    text = render_instances(task, pack)
    assert parse_instances(text, task, pack) == instances
    # The end of a completion hardly ever falls on the end of an instance, and then the last is lost without need.
    at = data.draw(st.integers(0, len(text)))
    found = parse_instances(text[:at], task, pack, truncated=True)
    assert found == instances[: len(found)]
    assert len(found) >= text[:at].count("\n" + _first_label(tag, labelled)) - 1


def _first_label(tag: str, labelled: bool) -> str:
    pack = load_pack(tag)
    return f"{pack.class_label[0]}:" if labelled else f"{pack.example[0]} "


@given(
    st.text(st.one_of(st.characters(), st.sampled_from("\n:：*#`1 ")), max_size=80), _TAGS, st.booleans(), st.booleans()
)
@example("Example 1\nInput:\n```", "en", False, True)
@example("Class label:", "en", True, True)
@settings(deadline=None)
def test_nothing_a_model_writes_raises(text: str, tag: str, one: bool, other: bool) -> None:
    pack = load_pack(tag)
    for candidate in read_list(text, pack, first=9 if one else None, truncated=other):
        assert (candidate.record is None) == (candidate.rejection is not None)
    assert read_verdict(text, pack) in (True, False, None)
    assert len(parse_instances(text, Task(text, (), one), pack, truncated=other)) <= LIMIT


@pytest.mark.parametrize("unit", ["Example 1 ", "Input:\n", "* ", "\t", "# ", "\u200f", "1. ", "```\n", "Class label:"])
def test_long_answers_take_time_in_proportion(unit: str) -> None:
    text = unit * (400_000 // len(unit))
    begun = time.process_time()
    parse_instances(text, Task(text, (), True), EN)
    read_list(text, EN, first=9, truncated=False)
    read_verdict(text, EN)
    assert time.process_time() - begun < 20


# The conflict rule


def test_one_input_with_several_outputs_is_a_conflict() -> None:
    ((_, rule),) = build_filters(["conflicting_outputs"], EN)

    def objection(*instances: tuple[str, str]) -> str | None:
        found = rule(Candidate(Task("Do it.", tuple(Instance(*each) for each in instances))))
        return found.reason if found else None

    assert objection(("a", "x"), ("b", "x")) is None
    assert objection(("", "x"), ("", "y")) is None
    assert objection(("a", "x"), ("b", "x"), ("a", "y")) == "conflicting_outputs"


# A model: a function of what it is asked, as careless as they are.

_VERBS = "Explain Describe Compare Rewrite Summarise Translate Estimate Plan Criticise Sort".split()
_THINGS = (
    "harvest bridge contract recipe poem market timetable lighthouse budget orchard violin tram glacier notebook "
    "kettle parliament beehive sonnet warehouse canal lantern dialect compass vaccine loom quarry ferry anthem"
).split()
_LABELS = ("old", "new", "unclear")
_CHOICES = (
    "is {} or {} near {} old, new or unclear",
    "tell whether {} can be old, new or unclear by {} and {}",
    "old, new or unclear: which would {} call {} without {}",
    "judge {} beside {} as old, new or unclear, leaving {} aside",
)
_TURNS = "for a child|in two sentences|as a list|without jargon|to a colleague|step by step|in a letter".split("|")


def answer(text: str, seed: object, *, raw: bool) -> tuple[str, str]:
    """Return what the model replies and why it stopped; the wording of the prompt does not count."""
    last = text.rpartition("\n")[2]
    asked = text.rpartition("\nTask: ")[2].partition("\n")[0]
    rng = random.Random(hashlib.sha256(f"{asked if 'Task: ' in text else ''}/{seed}".encode()).digest())
    if last == "Classification:":
        return _verdict(asked, rng, raw), "stop"
    if last == "Class label:" or 'starting with "Class label:"' in text:
        return _labelled(asked, rng, raw)
    if last == "Example 1" or 'starting with "Example 1"' in text:
        return _worked(asked, rng, raw)
    return _list(rng, int(re.findall(r"^(\d+)\. ", text, re.MULTILINE)[-1]) + 1, raw)


def _list(rng: random.Random, first: int, raw: bool) -> tuple[str, str]:
    tasks = []
    for _ in range(6):
        a, b, c = rng.sample(_THINGS, 3)
        labelled = rng.choice(_CHOICES) if rng.random() < 0.5 else f"{rng.choice(_VERBS)} {{}}, {{}} and {{}}"
        ending = "?" if labelled in _CHOICES else "."
        tasks.append(f"{labelled.format(f'the {a}', f'the {b}', f'the {c}')} {rng.choice(_TURNS)}{ending}")
    tasks[rng.randrange(6)] = rng.choice(["Draw a map of the canal.", "Go.", "Write a program that sorts.", tasks[0]])
    restart = first if rng.random() < 0.7 else 1
    marks = [f"{number}. " for number in range(restart, restart + 6)]
    if rng.random() < 0.3:
        marks[rng.randrange(1, 6)] = ""
    if rng.random() < 0.2:
        marks = [f"**Task {mark[:-2]}:** " if mark else "" for mark in marks]
    text = "\n".join(mark + task for mark, task in zip(marks, tasks, strict=True))
    if raw and restart == first:
        text = text.partition(marks[0])[2]
    elif not raw and rng.random() < 0.5:
        text = "Sure! Here are more tasks:\n\n" + text.replace("\n", "\n\n")
    return (text[:-9], "length") if rng.random() < 0.2 else (text, "stop")


def _verdict(asked: str, rng: random.Random, raw: bool) -> str:
    right = "Yes" if "unclear" in asked else "No"
    said = rng.choice([right, f"{right}.", right.lower(), f"{right}, it", f"{right}\nTask", right])
    return rng.choice([f" {said}" if raw else said] * 9 + ["It depends"])


def _labelled(asked: str, rng: random.Random, raw: bool) -> tuple[str, str]:
    things = re.findall(r"the (\w+)", asked)
    mark = rng.choice(["Input: ", "", "Text: "])
    made = [
        f"{label}\n{mark}The {thing} of {rng.randint(1, 99)}" for label, thing in zip(_LABELS, things, strict=False)
    ]
    if rng.random() < 0.3:
        made.append(made[0].replace(_LABELS[0], _LABELS[1]))  # the same input, another label
    text = "\n".join(f"{rng.choice(['Class label', 'class label', '**Class label**'])}: {each}" for each in made)
    if not raw and rng.random() < 0.1:
        text = "\n".join(
            f"Example {n}\nInput: {each.partition(chr(10))[2]}\nOutput: {each.partition(chr(10))[0]}"
            for n, each in enumerate(made, 1)
        )
    if rng.random() < 0.1:
        text = "I can't tell."
    text = text.partition(":")[2].lstrip("*") if raw else text
    return (text[:-3], "length") if rng.random() < 0.15 else (text, "stop")


def _worked(asked: str, rng: random.Random, raw: bool) -> tuple[str, str]:
    a, b = (rng.choice(_THINGS) for _ in range(2))
    output = f"The {a} comes first, since the {b} depends on it; number {rng.randint(1, 99)} settles the rest."
    made = [rng.choice([("", output), (f"{a} and {b}", output)])]
    if made[0][0]:
        made += [
            (f"{b} {number}", f"Of {b} {number} nothing more is known than its year.")
            for number in range(rng.randint(0, 5))
        ]
    if rng.random() < 0.3:
        made.append(
            rng.choice([("same", "same"), ("more", "It goes on:"), ("empty", ""), (f"{a} and {b}", "Another.")])
        )
    lines = []
    for number, (given_, said) in enumerate(made, 1):
        lines.append(rng.choice([f"Example {number}", f"**Example {number}**", f"Example {number}:"]))
        lines += [f"Input: {given_}"] if given_ else []
        lines += [f"{rng.choice(['Output', 'output', 'Output 1'])}: {said}"]
    text = "\n".join(lines)
    if rng.random() < 0.1:
        text = "As an exercise, try it yourself."
    if raw:
        text = text.partition("\n")[2]
        text = f"\n{text}\n\nTask: Something else\nExample 1\nOutput: no" if rng.random() < 0.2 else f"\n{text}"
    return (text[:-5], "length") if rng.random() < 0.15 else (text, "stop")


def scripted(request: Request) -> Completion:
    raw = request.prompt is not None
    text = request.prompt if request.prompt is not None else request.messages[-1].content
    reply, reason = answer(text, request.seed, raw=raw)
    return Completion(reply, reason, Usage(len(text) // 4, len(reply) // 4), "scripted/model")


def endpoint_model(seen: Seen) -> Reply:
    body = seen.json
    raw = "prompt" in body
    reply, reason = answer(body["prompt"] if raw else body["messages"][-1]["content"], body["seed"], raw=raw)
    return continuation(reply, finish_reason=reason) if raw else chat(reply, finish_reason=reason)


TARGET = 18
_RAW: dict[str, Any] = {"backend": {"endpoint": "completions"}}


def planned(**changes: Any) -> Plan:
    base = {"recipe": "self-instruct", "model": "openai/m", "target": TARGET, "rpm": RPM}
    return plan([base, {"novelty": {"engine": "numpy"}}, changes])


def grow(folder: Path, model: Scripted | None = None, stop_after: int | None = None, **changes: Any) -> Dataset:
    """Run until done, or until so many commits are made; return the dataset."""
    return work(planned(**changes), folder, model or Scripted(scripted), stop_after)


def late(seed: int) -> Callable[[object], float]:
    rng = random.Random(seed)
    return lambda _: rng.random() * 0.003


def tasks(dataset: Dataset) -> list[Task]:
    found = [record for _, record in dataset if isinstance(record, Task)]
    assert len(found) == len(dataset)
    return found


@pytest.fixture(scope="module", params=["chat", "completion"])
def run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Dataset, Mapping[str, Any]]:
    """A run of 30 records in either style, its dataset and its settings."""
    changes: Mapping[str, Any] = _RAW if request.param == "completion" else {}
    folder = tmp_path_factory.mktemp(request.param) / "r"
    return folder, grow(folder, concurrency=1, **changes), changes


def test_the_dataset_is_what_the_paper_says(run: tuple[Path, Dataset, Mapping[str, Any]]) -> None:
    folder, dataset, changes = run
    found = tasks(dataset)
    assert len(found) == TARGET
    assert planned(**changes).config.style == ("completion" if changes else "chat")
    kinds = Counter(task.is_classification for task in found)
    assert min(kinds[True], kinds[False]) >= 3
    for task in found:
        assert task.instruction[0].isupper()
        assert 1 <= len(task.instances) <= LIMIT
        assert len(set(task.instances)) == len(task.instances)
        outputs: dict[str, set[str]] = {}
        for case in task.instances:
            assert case.output
            assert case.input != case.output
            assert not case.input.endswith(":")
            assert not case.output.endswith(":")
            outputs.setdefault(case.input, set()).add(case.output)
        assert all(len(set_) == 1 for given_, set_ in outputs.items() if given_)
        if task.is_classification:
            assert {case.output for case in task.instances} <= set(_LABELS)
    assert len({len(task.instances) for task in found}) > 2
    with RunView.open(folder) as view:
        summary = view.summary()
        assert list(summary.stages) == ["instructions", "classification", "tasks"]
        assert (summary.accepted, summary.state) == (TARGET, "done")
        for name, stage in summary.stages.items():
            rows = view._one("SELECT count(*) FROM candidates WHERE stage = ?", (name,))[0]
            assert rows == stage.accepted + sum(stage.rejected.values()), name
        assert set(summary.stages["instructions"].rejected) & {"blocked_words", "blocked_opening", "instruction_length"}
        assert set(summary.stages["classification"].rejected) <= {"parse"}
        assert "parse" in summary.stages["tasks"].rejected
        assert summary.stages["instructions"].accepted < 60, "an earlier stage makes what the later need, not far more"


def test_the_prompts_show_six_seeds_and_two_machine_tasks_once_there_are_some(tmp_path: Path) -> None:
    backend = Scripted(scripted)
    grow(tmp_path / "r", backend, window=1, target=12)
    with RunView.open(tmp_path / "r") as view:
        first, *later = [view.draw("instructions", number) for number in range(view.next_draw("instructions")[0])]
    assert first
    assert [id.partition("-")[0] for id in first["demonstrations"]] == ["en"] * 8
    assert later
    for row in later:
        assert row
        assert sum(id.startswith("instructions-") for id in row["demonstrations"]) == 2
        assert len(row["demonstrations"]) == 8
    lists = [r for r in backend.asked if "numbered lines" in r.messages[-1].content]
    assert all(request.sampling.stop == ("\n16.",) for request in lists)


def test_the_papers_decoding_is_sent(tmp_path: Path) -> None:
    backend = Scripted(scripted)
    grow(tmp_path / "r", backend, target=10, **_RAW)
    sent = {}
    for request in backend.asked:
        assert request.prompt is not None
        kind = re.sub(r"\d+", "N", request.prompt.rpartition("\n")[2])
        one = request.sampling
        sent[kind] = (one.max_tokens, one.temperature, one.top_p, one.presence_penalty, one.stop)
    assert sent == {
        "N.": (1024, 0.7, 0.5, 2.0, ("\n16.", "\n\n")),
        "Classification:": (3, 0.0, None, None, ("\n",)),
        "Example N": (350, 0.0, None, 1.5, ("\nExample 6", "\nTask:")),
        "Class label:": (300, 0.0, None, 1.5, ("\nExample 6", "\nTask:")),
    }


def test_what_a_person_sets_changes_the_sampling_but_not_the_temperature_of_verdicts(tmp_path: Path) -> None:
    backend = Scripted(scripted)
    grow(tmp_path / "r", backend, target=5, sampling={"temperature": 1.1, "max_tokens": 900}, **_RAW)
    verdicts = [r.sampling for r in backend.asked if str(r.prompt).endswith("Classification:")]
    others = [r.sampling for r in backend.asked if not str(r.prompt).endswith("Classification:")]
    assert {(one.temperature, one.max_tokens) for one in verdicts} == {(0.0, 900)}
    assert {(one.temperature, one.max_tokens) for one in others} == {(1.1, 900)}


@pytest.mark.slow
def test_concurrency_and_interruption_change_nothing_and_nothing_is_paid_twice(
    run: tuple[Path, Dataset, Mapping[str, Any]], tmp_path: Path
) -> None:
    _, plain, changes = run
    backend = Scripted(scripted, delay=late(1))
    assert grow(tmp_path / "eight", backend, concurrency=8, **changes) == plain
    asked = []
    for stop_after in (3, 40, 1000):
        backend = Scripted(scripted, delay=late(stop_after))
        found = grow(tmp_path / "cut", backend, stop_after=stop_after, concurrency=8, **changes)
        asked += backend.asked
    assert found == plain
    assert len(asked) == len({request.nonce for request in asked}), "a completion was asked for twice"


@pytest.mark.slow
def test_a_raised_target_comes_to_what_a_fresh_run_comes_to(
    run: tuple[Path, Dataset, Mapping[str, Any]], tmp_path: Path
) -> None:
    _, plain, changes = run
    for target in (1, 11, TARGET):
        found = grow(tmp_path / "r", target=target, **changes)
        assert len(found) == target
    assert found == plain


@pytest.mark.slow
def test_another_filter_of_instructions_is_judged_again_through_all_stages(tmp_path: Path) -> None:
    alone: dict[str, Any] = {"demonstrations": {"machine": 0}}  # else other tasks are shown, and other things asked
    strict = alone | {"filters": {"instruction_length": {"minimum": 11}}}
    grow(tmp_path / "r", **strict)
    loose = alone | {"filters": {"instruction_length": {"minimum": 4}}}
    with RunStore.open(tmp_path / "r") as store:
        asyncio.run(refilter(resume_plan(tmp_path / "r", [loose]), store, dry_run=False))
        rejected = store.view.summary().stages["classification"].rejected
    assert rejected["unanswered"] > 0, "instructions let in are said to lack an answer"
    backend = Scripted(scripted)
    resumed = grow(tmp_path / "r", backend, target=TARGET + 10, **loose)
    assert backend.asked, "what was let in is asked for when the run goes on"
    assert resumed == grow(tmp_path / "fresh", target=TARGET + 10, **loose)


@pytest.mark.slow
def test_a_filter_of_instances_drops_them_alone_and_is_judged_again_for_nothing(tmp_path: Path) -> None:
    off = dict.fromkeys(("conflicting_outputs", "ends_with_colon", "empty_output", "output_equals_input"), False)
    loose = grow(tmp_path / "r", filters=off)
    cases = [case for task in tasks(loose) for case in task.instances]
    assert any(case.output.endswith(":") for case in cases)
    assert any(case.output == case.input for case in cases)
    with RunStore.open(tmp_path / "r") as store:
        change = asyncio.run(
            refilter(resume_plan(tmp_path / "r", [{"filters": dict.fromkeys(off, True)}]), store, dry_run=False)
        )
        strict = tasks(list(store.view.dataset()))
        rejected = store.view.summary().stages["tasks"].rejected
    assert all(each.why.startswith("conflicting_outputs") for each in change.leaving[: rejected["conflicting_outputs"]])
    known = {task.instruction: task for task in tasks(loose)}
    for task in strict:
        before = known[task.instruction].instances
        gone = [case for case in before if case not in task.instances]
        assert [case for case in before if case in task.instances] == list(task.instances)
        assert all(not case.output or case.output.endswith(":") or case.output == case.input for case in gone)
    assert any(len(task.instances) < len(known[task.instruction].instances) for task in strict)


def test_a_record_is_traced_through_all_stages(run: tuple[Path, Dataset, Mapping[str, Any]], tmp_path: Path) -> None:
    folder, dataset, _ = run
    with RunView.open(folder) as view:
        made = dict(view.accepted("instructions"))
    for id, record in (dataset[0], dataset[-1]):
        assert isinstance(record, Task)
        classified, instruction = trace_record(folder, id)["sources"]
        assert classified.startswith("classification-")
        grown = made[instruction]
        assert isinstance(grown, Task)
        assert grown.instruction == record.instruction
        assert trace_record(folder, classified)["sources"] == [instruction]
        assert trace_record(folder, instruction)["sources"] == []
    shown = CliRunner().invoke(trace_command, [str(folder), id]).output
    assert f"made from: {classified}, {instruction}\n" in shown


@pytest.mark.slow
def test_the_journal_alone_rebuilds_the_dataset(run: tuple[Path, Dataset, Mapping[str, Any]], tmp_path: Path) -> None:
    folder, _, _ = run
    assert asyncio.run(replay(folder, resume_plan(folder, []), tmp_path / "again")) == (TARGET, True)


# Prompts, styles, seeds


@pytest.mark.parametrize("tag", [*TAGS, "sw"])
@pytest.mark.parametrize("style", ["chat", "completion"])
def test_every_language_has_its_own_labels_and_examples(tag: str, style: str) -> None:
    pack = load_pack(tag)
    changes = {"language": tag, "style": style} | (_RAW if style == "completion" else {})
    made = planned(**changes)
    shown = made.recipe.preview(made.lanes[0].brief)
    assert set(re.findall(r"^──── (.+)$", shown, re.MULTILINE)) == set(PARTS)
    for label in (pack.labels.task, pack.labels.input, pack.labels.output, pack.example, pack.class_label):
        assert re.search(rf"^{re.escape(label[0])}\b", shown, re.MULTILINE) or tag in ("hi", "th"), label
        assert label[0] in shown
    assert pack.yes[0] in shown
    assert pack.no[0] in shown
    if tag not in ("en", "zh"):
        assert pack.name in shown, "the English frame names the language"
    if tag == "zh":
        assert not re.search("[A-Za-z]{3,} [a-z]{3,} [a-z]{3,}", shown.replace("CREATE TABLE", "")), "English in it"


@pytest.mark.parametrize(
    ("model", "more", "style"),
    [
        ("openai/gpt", {}, "chat"),
        ("openai/base", _RAW, "completion"),
        ("deepseek/deepseek-chat", {}, "chat"),
        ("ollama/any", {}, "chat"),
        ("vllm/any", {}, "completion"),
        ("vllm/any", {"backend": {"endpoint": "chat"}}, "chat"),
        ("llama-server/any", {}, "completion"),
        ("llama.cpp/smollm2-135m", {}, "completion"),
        ("vllm/any", {"style": "chat"}, "chat"),
    ],
)
def test_the_style_suits_the_endpoint(model: str, more: Mapping[str, Any], style: str) -> None:
    assert plan([{"recipe": "self-instruct", "model": model}, more], fetch=False).config.style == style


@pytest.mark.parametrize("more", [{"model": "openai/gpt"}, {"model": "vllm/any", "backend": {"endpoint": "chat"}}])
def test_raw_prompts_to_an_endpoint_of_chat_are_refused_before_anything_is_sent(more: Mapping[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"style: completion .*backend\.endpoint=completions"):
        plan([{"recipe": "self-instruct", "style": "completion"}, more], fetch=False)


def test_seeds_of_one_kind_alone_are_refused(tmp_path: Path) -> None:
    row = {"instruction": "Name a river.", "instances": [{"input": "", "output": "The Ebro."}]}
    path = tmp_path / "seeds.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | {"is_classification": False}) + "\n")
    with pytest.raises(ConfigError, match=r"seeds: .*is_classification.*found 0 and 1"):
        planned(seeds=str(path))
    path.write_text(
        json.dumps(row | {"is_classification": True}) + "\n" + json.dumps(row | {"is_classification": False})
    )
    assert planned(seeds=str(path)).lanes[0].brief.seeds


# Files


def export(folder: Path, target: Path, *more: str) -> Any:
    result = CliRunner().invoke(
        export_command, [str(folder), "-o", str(target), "--json", *more], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_export_writes_rows_and_the_originals_five_files(
    run: tuple[Path, Dataset, Mapping[str, Any]], tmp_path: Path
) -> None:
    folder, dataset, changes = run
    found = tasks(dataset)
    rows = sum(len(task.instances) for task in found)
    assert export(folder, tmp_path / "alpaca.json")["rows"] == rows
    assert len(json.loads((tmp_path / "alpaca.json").read_text())) == rows
    assert export(folder, tmp_path / "tasks.jsonl", "--format", "self-instruct")["written"] == TARGET
    assert [record for record in formats.read(tmp_path / "tasks.jsonl") if isinstance(record, Task)][3].instances == (
        found[3].instances
    )

    report = export(folder, tmp_path / "out", "--format", "self-instruct")["files"]
    style = "completion" if changes else "chat"
    names = [
        "machine_generated_instructions.jsonl",
        f"is_clf_or_not_m_{style}.jsonl",
        "machine_generated_instances.jsonl",
        "all_generated_instances.jsonl",
        "gpt3_finetuning_data.jsonl",
    ]
    assert list(report) == names
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    assert all(each["refused_count"] == each["reduced_count"] == 0 for each in report.values())
    instructions, verdicts, instances, triples, prompts = (lines(tmp_path / "out" / name) for name in names)
    with RunView.open(folder) as view:
        stages = view.summary().stages
        texts = {task.instruction for task in view.seeds()} | {row["instruction"] for row in instructions}
    assert [len(instructions), len(verdicts)] == [stages["instructions"].accepted, stages["classification"].accepted]
    for row in instructions:
        ((near, score),) = row["most_similar"].items()
        assert near in texts
        assert 0 <= score <= 0.7
        assert near != row["instruction"]
    numbers = [row["request_idx"] for row in instructions]
    assert numbers == sorted(numbers)
    known = {row["instruction"]: original.verdict(row["is_classification"]) for row in verdicts}
    assert [known[task.instruction] for task in found] == [task.is_classification for task in found]
    for row, task in zip(instances, found, strict=True):
        assert row["instruction"] == task.instruction
        assert original.parse_instances(row["raw_instances"]) == task.instances
        assert ("Class label:" in row["raw_instances"]) is task.is_classification
        # A reader drops the last instance of what was cut off: so nothing that is written may be said to be.
        assert row["instance_metadata"] == {"response": {"choices": [{"finish_reason": "stop"}]}}
        assert (
            row["most_similar"] == next(r for r in instructions if r["instruction"] == task.instruction)["most_similar"]
        )
    assert [(row["instruction"], row["input"], row["output"]) for row in triples] == [
        (task.instruction, case.input, case.output) for task in found for case in task.instances
    ]
    assert len(prompts) == rows
    for row, triple in zip(prompts, triples, strict=True):
        assert triple["instruction"] in row["prompt"]
        assert triple["input"] in row["prompt"]
        assert row["completion"].removesuffix(original.END_OF_TEXT).lstrip(" ") == triple["output"]
        assert row["completion"].startswith(" ") == row["prompt"].endswith("Output:")
    assert (
        len(
            {
                row["prompt"].replace(t["instruction"], "I").replace(t["input"] or "\0", "X")
                for row, t in zip(prompts, triples, strict=True)
            }
        )
        > 4
    )
    again = export(folder, tmp_path / "again", "--format", "self-instruct")["files"]
    assert again == report
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


@pytest.mark.slow
def test_several_languages_are_in_the_same_files(tmp_path: Path) -> None:
    def bilingual(request: Request) -> Completion:
        text = request.messages[-1].content
        if "任务" not in text and "第 9 条" not in text:
            return scripted(request)
        rng = random.Random(hashlib.sha256(f"{text}{request.seed}".encode()).digest())
        if "是否分类:" in text:
            reply = rng.choice(["是", "否。"])
        elif "从“类别标签:”写起" in text:
            reply = (
                f"类别标签：正面\n输入：这家店的第{rng.randint(1, 999)}道菜很好吃。\n类别标签: 负面\n难吃，再也不来了。"
            )
        elif "从“示例 1”写起" in text:
            reply = f"示例1：\n输入：第{rng.randint(1, 999)}页的笔记\n输出：先记日期，再记地点。"
        else:
            things = rng.sample("石桥 渡船 灯笼 茶壶 古琴 围棋 毛笔 国画 梯田 水井 铜钟 腰鼓 纸伞 蒲扇".split(), 14)
            verbs = rng.sample("请向外地游客介绍 写一段话赞美 用三个要点说明怎样保养 编一则寓言，主角是".split(), 4)
            asked = [f"{verb}{one}，并提到{two}" for verb, one, two in zip(verbs, things, things[7:], strict=False)]
            reply = "\n".join(f"{number}. {each}" for number, each in enumerate(asked, 9))
        return Completion(reply, "stop", Usage(10, 10))

    backend = Scripted(bilingual, capabilities=Capabilities())
    dataset = grow(tmp_path / "r", backend, quota={"en": 0.5, "zh": 0.5}, target=12)
    assert len(dataset) == 12
    report = export(tmp_path / "r", tmp_path / "out", "--format", "self-instruct")["files"]
    assert all(each["refused_count"] == 0 for each in report.values())
    verdicts = lines(tmp_path / "out" / "is_clf_or_not_m_chat.jsonl")
    known = {row["instruction"]: original.verdict(row["is_classification"]) for row in verdicts}
    assert {known[task.instruction] == task.is_classification for task in tasks(dataset)} == {True}
    raw = {
        row["instruction"]: row["raw_instances"]
        for row in lines(tmp_path / "out" / "machine_generated_instances.jsonl")
    }
    assert all(original.parse_instances(raw[task.instruction]) == task.instances for task in tasks(dataset))
    prompts = [row["prompt"] for row in lines(tmp_path / "out" / "gpt3_finetuning_data.jsonl")]
    assert any("输入: " in prompt or "输出:" in prompt for prompt in prompts)


# The program, over a real socket


@pytest.mark.slow
def test_from_the_command_line_killed_and_resumed(tmp_path: Path) -> None:
    extra = ["--set", "backend.endpoint=completions"]
    with Endpoint(endpoint_model) as server:
        plain = selfinstruct("run", "self-instruct", *run_options(server, tmp_path / "plain", 12), *extra)
        assert plain.returncode == 0, plain.stderr
        assert "done: 12 of 12 records" in plain.stderr
        assert {request.path for request in server.requests} == {"/v1/completions"}
        asked = len(server.requests)
    status = selfinstruct("status", tmp_path / "plain")
    assert re.search(r"instructions: \d+ accepted", status.stdout)
    assert re.search(r"classification: \d+ accepted", status.stdout)
    assert "tasks: 12 accepted" in status.stdout

    def slow(seen: Seen) -> Reply:
        reply = endpoint_model(seen)
        return Reply(reply.status, reply.body, reply.headers, delay=0.05)

    with Endpoint(slow) as server:
        options = [*run_options(server, tmp_path / "cut", 12, concurrency=4), *extra]
        for requests in (asked // 3, asked - 8):
            kill("run", "self-instruct", "-q", *options, server=server, at=requests)
        done = selfinstruct("resume", tmp_path / "cut", "-q")
        assert done.returncode == 0, done.stderr
    with RunView.open(tmp_path / "plain") as one, RunView.open(tmp_path / "cut") as other:
        assert list(one.dataset()) == list(other.dataset())
    database = sqlite3.connect(tmp_path / "cut" / "run.sqlite")
    sends, lost = database.execute("SELECT count(*), sum(state = 'lost') FROM sends").fetchone()
    completions = database.execute("SELECT count(*) FROM completions").fetchone()[0]
    database.close()
    assert sends == completions + lost


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_the_embedded_model_through_raw_prompts(tmp_path: Path) -> None:
    done = selfinstruct("run", "self-instruct", "-n", "1", "-o", tmp_path / "r", env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    with RunView.open(tmp_path / "r") as view:
        assert view.meta("config")["style"] == "completion"
        found = tasks(list(view.dataset()))
        assert view.summary().stages["instructions"].accepted >= 1
    assert len(found) == 1
    assert all(task.is_classification is not None and task.instances for task in found)
    report = export(tmp_path / "r", tmp_path / "out", "--format", "self-instruct")["files"]
    assert report["machine_generated_instances.jsonl"]["written"] == 1


def test_the_config_of_a_run_says_its_style() -> None:
    assert build([{"recipe": "self-instruct"}]).style == "auto"
    assert planned().config.tasks_per_request == 7
    assert (planned().config.demonstrations.seed, planned().config.demonstrations.machine) == (6, 2)
