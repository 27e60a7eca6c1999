"""MOSS: tools really run, what fails or is made up is never kept, and the record is MOSS's own."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from selfinstruct import formats
from selfinstruct.plan import plan, resume_plan
from selfinstruct.recipes.moss import in_grammar, read_commands, read_reply, recent
from selfinstruct.replay import refilter, replay
from selfinstruct.store import RunStore, RunView
from selfinstruct.testing import Answer, Scripted
from selfinstruct.values import Capabilities, Completion, Dialogue, Message, Rejection, Request, ToolCall, Usage
from tests.program import RPM
from tests.recipes.runs import work

TASKS = [
    ("A jacket of 240 euros is 15 % off; what is the price at the till?", "240*0.85", [Fraction(204)]),
    ("I read 37 pages on each of 19 evenings; how many pages was that?", "37*19", [Fraction(703)]),
    ("What is left of 1000 litres after 7 buckets of 12.5 litres each?", "1000-7*12.5", [Fraction("912.5")]),
    ("How much is one seventh of 1001 grams of flour?", "1001/7", [Fraction(143)]),
    ("A square field measures 2809 square metres; how long is a side?", "sqrt(2809)", [Fraction(53)]),
    ("Doubling a grain of rice on 16 squares of the board, how many lie on the last?", "2^15", [Fraction(32768)]),
    ("In how many orders can 7 books stand on a shelf?", "7!", [Fraction(5040)]),
    ("What do 3/8 of a mile and 5/12 of a mile make together?", "3/8+5/12", [Fraction(19, 24)]),
    ("What is the average of 61, 74, 82 and 95 points?", "(61+74+82+95)/4", [Fraction(78)]),
    ("A loan of 1500 grows by 4 % a year; what is owed after two years?", "1500*1.04^2", [Fraction("1622.4")]),
    ("Two numbers make 30 and differ by 8; which are they?", "x + y = 30; x - y = 8", [Fraction(19), Fraction(11)]),
    ("Three times my age less 12 is 60; how old am I?", "3x - 12 = 60", [Fraction(24)]),
    ("A rectangle is 3 longer than wide and has an area of 70; how wide is it?", "x^2 + 3x = 70", [Fraction(7)]),
    ("Tickets cost 5 and 8 euros; 40 brought 245: how many at 5?", "a + b = 40; 5a + 8b = 245", [Fraction(25)]),
    ("Half of a number and a third of it make 35; which number?", "x/2 + x/3 = 35", [Fraction(42)]),
    ("Four less than seven times a number is 59; which number?", "7x - 4 = 59", [Fraction(9)]),
    ("The product of a number with itself is 144; which positive number?", "x^2 = 144", [Fraction(12)]),
    ("Tea at 9 and coffee at 6: 10 bags for 75; how many of tea?", "t + c = 10; 9t + 6c = 75", [Fraction(5)]),
    ("A train needs 2.5 hours at speed v for 310 kilometres; what is v?", "2.5v = 310", [Fraction(124)]),
    ("A number less a quarter of it leaves 57; which number?", "x - x/4 = 57", [Fraction(76)]),
]  # fmt: skip
BY_QUESTION = {question: (command, values) for question, command, values in TASKS}


def command_of(question: str) -> str:
    command = BY_QUESTION[question][0]
    return f'{"Solve" if "=" in command else "Calculate"}("{command}")'


def values_in(results: str) -> list[str]:
    return [one or other for one, other in re.findall(r"=> '(.*)'|^\w+ = (.*)$", results, re.MULTILINE)]


def reply_to(question: str, values: Sequence[str]) -> str:
    return f"{' and '.join(values)}: that answers the question how it is with {' '.join(question.split()[:6])}."


def asked(request: Request) -> str:
    """Return the person's last message of a request."""
    found = [re.search(r"<\|Human\|>: (.*)<eoh>", message.content) for message in request.messages]
    return next(each[1] for each in reversed(found) if each)


def model(request: Request) -> Answer:
    """Answer as a good model does."""
    text = request.messages[-1].content
    if text.startswith("<|Human|>"):
        command = command_of(asked(request))
        return f"<|Inner Thoughts|>: A tool helps with this.<eot>\n<|Commands|>: {command}"
    if text.startswith("<|Results|>"):
        return f"<|MOSS|>: {reply_to(asked(request), values_in(text))}"
    raise AssertionError(text)


def write(path: Path, questions: Sequence[str]) -> Path:
    rows = [{"instruction": question, "input": "", "output": "old"} for question in questions]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


def run(
    folder: Path,
    answer: Callable[[Request], Answer],
    questions: Sequence[str] = tuple(BY_QUESTION),
    *,
    stop_after: int | None = None,
    delay: Callable[[Request], float] | None = None,
    capabilities: Capabilities | None = None,
    **settings: Any,
) -> tuple[list[Dialogue], dict[str, int], Scripted]:
    """Run to the end; return the dialogues, the rejections by filter and reason, and who was asked."""
    data = write(folder.parent / "questions.jsonl", questions)
    tools = [{"calculator": {"processes": 1}}, {"solver": {"processes": 1}}]  # each imports sympy, for seconds
    fixed = {"recipe": "moss", "model": "openai/m", "input": str(data), "options": {"turns": 1}, "tools": tools}
    planned = plan([fixed, {"rpm": RPM, "novelty": {"engine": "numpy"}}, settings])
    backend = Scripted(answer, delay=delay)
    if capabilities:
        backend.capabilities = capabilities

    found = work(planned, folder, backend, stop_after)
    rejected: dict[str, int] = {}
    with RunView.open(folder) as view:
        for row in view._mappings("SELECT filter, reason FROM candidates WHERE accepted IS NULL", ()):
            key = f"{row['filter']}: {row['reason']}"
            rejected[key] = rejected.get(key, 0) + 1
    return [each for _, each in found if isinstance(each, Dialogue)], rejected, backend


@pytest.mark.slow
def test_twenty_tasks_are_solved_as_an_independent_oracle_solves_them(tmp_path: Path) -> None:
    found, rejected, _ = run(tmp_path / "r", model)
    assert (len(found), rejected) == (20, {})
    for dialogue in found:
        question, call, result, reply = dialogue.messages
        numbers = {Fraction(number) for number in re.findall(r"-?\d+(?:\.\d+|/\d+)?", reply.content)}
        assert set(BY_QUESTION[question.content][1]) <= numbers, (question.content, result.content, reply.content)
        assert call.thoughts
        assert (call.tool_calls[0].name, call.tool_calls[0].id) == (result.name, result.tool_call_id)


@pytest.mark.slow
def test_the_export_is_read_by_what_reads_their_samples_and_by_trainers(tmp_path: Path) -> None:
    found, *_ = run(tmp_path / "r", model)
    for name in ("moss", "messages", "llama-factory-sharegpt"):
        path = str(tmp_path / f"{name}.jsonl")
        report = formats.write(formats.get(name), found, path)
        assert report.written == len(found), (name, report)
    rows = [json.loads(line) for line in (tmp_path / "moss.jsonl").read_text(encoding="utf-8").splitlines()]
    turn = rows[0]["chat"]["turn_1"]
    assert list(turn) == ["Human", "Inner Thoughts", "Commands", "Tool Responses", "MOSS"]
    assert turn["Commands"] == '<|Commands|>: Calculate("240*0.85")<eoc>\n'
    assert turn["Tool Responses"] == "<|Results|>:\nCalculate(\"240*0.85\") => '204'\n<eor>\n"
    assert (
        "- Calculator: enabled. API: Calculate(expression)\n- Equation solver: enabled. API: Solve(equation)"
        in (rows[0]["meta_instruction"])
    )
    again = [each for each in formats.read(str(tmp_path / "moss.jsonl")) if isinstance(each, Dialogue)]
    assert [[m.content for m in each.messages] for each in again] == [[m.content for m in d.messages] for d in found]


BAD_COMMANDS = {
    '1. Calculate("1+1")': "commands: numbered list",
    'Count("1+1")': "commands: unknown API",
    "Non": "commands: not None",
    'Calculate("1+1"), None': "commands: call with None",
    'Calculate("1" + "1")': "commands: string concatenation",
    'Calculate("1/0")': "tool_failed: division by zero",
    "Calculate(\"__import__('os').system('id')\")": "tool_failed: ",
    'Calculate("9^9^9^9")': "tool_failed: ",
}


@pytest.mark.slow
def test_a_command_that_fails_is_tried_again_and_then_rejected(tmp_path: Path) -> None:
    questions = [question for question, *_ in TASKS[: len(BAD_COMMANDS)]]

    def always(request: Request) -> Answer:
        commands = list(BAD_COMMANDS)[questions.index(asked(request))]
        return f"<|Inner Thoughts|>: Hm.<eot>\n<|Commands|>: {commands}<eoc>"

    def at_first(request: Request) -> Answer:
        return always(request) if request.nonce.endswith("/0") else model(request)

    found, rejected, backend = run(tmp_path / "never", always, questions)
    assert found == []
    assert sum(rejected.values()) == len(questions)
    for reason in BAD_COMMANDS.values():
        assert any(key.startswith(reason) for key in rejected), (reason, rejected)
    assert len(backend.asked) == 2 * len(questions), "two attempts, and no reply is asked for"
    found, rejected, _ = run(tmp_path / "again", at_first, questions)
    assert (len(found), rejected) == (len(questions), {})
    assert not any(message.thoughts == "Hm." for dialogue in found for message in dialogue.messages)


@pytest.mark.parametrize(("cut", "kept"), [("Let me think of what", ""), (f"{TASKS[1][0]} And", TASKS[1][0])])
def test_a_question_that_was_cut_off_is_asked_up_to_its_last_whole_sentence(
    cut: str, kept: str, tmp_path: Path
) -> None:
    def answer(request: Request) -> Answer:
        if request.messages[-1].content.startswith(("<|Human|>", "<|Results|>")):
            return model(request)
        return Completion(cut, "length", Usage(9, 9), "m")

    options = {"turns": 2, "min_turns": 2}
    found, rejected, _ = run(tmp_path / "r", answer, [TASKS[0][0]], options=options)
    assert [message.content for each in found for message in each.messages if message.role == "user"][1:] == [
        kept
    ] * bool(kept)
    assert rejected == ({} if kept else {"min_turns: too_few_turns": 1})


REPLIES = {
    "You pay 204 euros at the till.": "",
    "You pay 204.00 euros, with 15 % off the 240.": "",
    "It comes to two hundred and four, that is 204 euros.<eom>\n<|Human|>: And now?": "",
    "You pay 214 euros at the till.": "reply: ",
    "The price falls from 240 to a good deal less.": "reply: ",
    "204 euros are due, and 17 points go to your card.": "reply: ",
    "": "parse: no reply",
    'You owe 204 euros. <|Commands|>: Calculate("1")': "leak: marker",
}


@pytest.mark.slow
def test_a_reply_says_what_the_tool_gave_and_no_other_number(tmp_path: Path) -> None:
    questions = [f"A {thing} of 240 euros is 15 % off; what do I pay for this {thing} then, all told?"
                 for thing in "jacket saddle carpet guitar lamp tent clock blender".split()]  # fmt: skip
    BY_QUESTION.update({question: ("240*0.85", [Fraction(204)]) for question in questions})

    def answer(request: Request) -> Answer:
        if request.messages[-1].content.startswith("<|Results|>"):
            return list(REPLIES)[questions.index(asked(request))]
        return model(request)

    found, rejected, _ = run(tmp_path / "r", answer, questions, novelty={"threshold": 1, "engine": "numpy"})
    kept = {dialogue.messages[-1].content for dialogue in found}
    assert kept == {reply.partition("<eom>")[0] for reply, reason in REPLIES.items() if not reason}, rejected
    for reason in filter(None, REPLIES.values()):
        assert any(key.startswith(reason) for key in rejected), (reason, rejected)


@pytest.mark.slow
def test_native_tool_calling_comes_to_the_same_record(tmp_path: Path) -> None:
    def native(request: Request) -> Answer:
        last = request.messages[-1]
        if last.role == "user":
            assert [each["function"]["name"] for each in json.loads(request.tools)] == ["calculator", "solver"]
            command, _ = BY_QUESTION[last.content]
            name, key = ("solver", "equation") if "=" in command else ("calculator", "expression")
            call = ToolCall(name, json.dumps({key: command}), "call_abc")
            return Completion("", "tool_calls", Usage(9, 9), reasoning="A tool helps with this.", tool_calls=(call,))
        assert (last.role, request.messages[-2].tool_calls[0].id) == ("tool", last.tool_call_id)
        values = re.findall(r"= (.*)", last.content) or [last.content]
        question = next(message.content for message in request.messages if message.role == "user")
        return reply_to(question, values)

    capabilities = Capabilities(tools=True)
    found, rejected, _ = run(tmp_path / "native", native, capabilities=capabilities, style="native")
    plain, *_ = run(tmp_path / "text", model)
    assert (len(found), rejected) == (20, {})
    assert [each.messages for each in found] == [each.messages for each in plain]


@pytest.mark.slow
def test_neither_concurrency_nor_interruption_changes_the_dialogues(tmp_path: Path) -> None:
    """Two turns each, with questions that the model makes up, one tool of three failing at its first attempt."""

    def talk(request: Request) -> Answer:
        text, seed = request.messages[-1].content, request.seed or 0
        if text.startswith("<|Results|>"):
            return model(request)
        if text.startswith("<|Human|>"):
            a, b = re.findall(r"\d+", asked(request))[:2]
            broken = seed % 3 == 0
            return f'<|Inner Thoughts|>: A product.<eot>\n<|Commands|>: Calculate("{a}{"/0" if broken else f"*{b}"}")'
        things = "boards lamps tiles spoons ropes maps bricks coins shells seeds nails cards".split()
        one, two = things[seed % 12], things[seed // 12 % 12]
        return (
            f"{seed % 997 + 3} {one} for {seed % 89 + 2} sorts of {two}, crate {seed % 7919}: how many {one} is that?"
        )

    def settings(n: int) -> dict[str, Any]:
        return {"input": None, "options": {"turns": 3}, "target": 12, "concurrency": n}

    plain, rejected, _ = run(tmp_path / "one", talk, **settings(1))
    assert len(plain) == 12
    assert any(len(dialogue.messages) > 4 for dialogue in plain)
    assert any(key.startswith("tool_failed") for key in rejected) or any(
        "rejected_turn" in d.extra["stop"] for d in plain
    )
    many, *_ = run(tmp_path / "many", talk, delay=lambda request: (request.seed or 0) % 5 / 1000, **settings(8))
    assert many == plain
    nonces: list[str] = []
    for _ in range(20):
        found, _, backend = run(tmp_path / "cut", talk, stop_after=9, **settings(4))
        nonces += [request.nonce for request in backend.asked]
        if len(found) == 12:
            break
    assert found == plain
    assert len(nonces) == len(set(nonces))
    with RunStore.open(tmp_path / "cut") as store:
        same = asyncio.run(refilter(resume_plan(tmp_path / "cut", []), store, dry_run=False))
        assert (same.after, same.leaving) == (12, [])
    count, equal = asyncio.run(replay(tmp_path / "cut", resume_plan(tmp_path / "cut", []), tmp_path / "again"))
    assert (count, equal) == (12, True)
    with RunView.open(tmp_path / "cut") as view:
        assert view._one("SELECT count(*) FROM tool_results")[0] > 0


def completion(text: str, finish_reason: str = "stop") -> Completion:
    return Completion(text, finish_reason, Usage(1, 1))


@pytest.mark.parametrize(
    "text",
    [
        '<|Inner Thoughts|>: It is a sum.<eot>\n<|Commands|>: Calculate("1+1")<eoc>',
        'It is a sum.<eot>\n<|Commands|>: Calculate("1+1")',
        '**Inner Thoughts:** It is a sum.\n**Commands:** Calculate("1+1")',
        'Inner thoughts: It is a sum.\n\nCommands: Calculate("1+1")<eoc>\n<|Results|>: 2<eor>\n<|MOSS|>: 2<eom>',
        '<|Inner Thoughts|>：It is a sum.<eot>\n<|Commands|>：Calculate("1+1")\n<|Results|>:\n2',
    ],
)
def test_thoughts_and_commands_are_read_however_they_are_marked(text: str) -> None:
    assert read_commands(completion(text)) == ("It is a sum.", 'Calculate("1+1")')


def test_what_is_cut_off_or_has_no_commands_is_said_so() -> None:
    assert read_commands(completion("It is a sum.")) == Rejection("parse", "no commands")
    assert read_commands(completion('<|Commands|>: Calculate("1+', "length")) == Rejection("parse", "truncated")
    assert read_reply(completion("The sum is", "length")) == Rejection("parse", "truncated")
    assert read_reply(completion("<|MOSS|>: Two.<eom> and so on", "length")) == "Two."


def test_a_history_is_shown_from_its_newest_turns() -> None:
    turn = [
        Message("user", "How much is 1+1?"),
        Message("assistant", "", "A sum.", (ToolCall("Calculate", '{"expression": "1+1"}', "c"),)),
        Message("tool", "2", name="Calculate", tool_call_id="c"),
        Message("assistant", "It is 2."),
    ]
    plain = [Message("user", "Thanks."), Message("assistant", "Gladly.")]
    assert recent([*turn, *plain], 0) == [turn, plain]
    assert recent([*turn, *plain], 10) == [plain]
    assert [message.content for message in in_grammar(turn)][1:3] == [
        '<|Inner Thoughts|>: A sum.<eot>\n<|Commands|>: Calculate("1+1")<eoc>',
        "<|Results|>:\n2\n<eor>",
    ]
