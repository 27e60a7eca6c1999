"""Results in MOSS's bytes."""

from __future__ import annotations

import ast
import re

import pytest

from selfinstruct.formats import get
from selfinstruct.tools import Call, ToolResult, citations, failure, parse_commands, render_results
from selfinstruct.values import Dialogue, Message, Rejection, ToolCall
from tests.tools.samples import TOOLS, inner, real, turns


def calls(text: str) -> tuple[Call, ...]:
    found = parse_commands(text, TOOLS)
    assert not isinstance(found, Rejection), found
    return found


def rendered(commands: str, *results: ToolResult) -> str:
    return render_results(zip(calls(commands), results, strict=True))


def test_nothing_called_is_none() -> None:
    assert render_results([]) == "None"


def test_a_value() -> None:
    assert rendered('Calculate("60*0.85")', ToolResult("51")) == "Calculate(\"60*0.85\") => '51'"
    assert rendered('Calculate("1/0")', failure("division by zero")) == "Calculate(\"1/0\") => 'No result.'"


def test_lines() -> None:
    assert rendered('Solve("x^2=4")', ToolResult("x_0 = -2\nx_1 = 2")) == 'Solve("x^2=4") =>\nx_0 = -2\nx_1 = 2'
    assert rendered('Solve("x")', failure("not an equation")) == 'Solve("x") =>\nNo result.'


def test_items_are_counted_through_the_turn_and_written_as_python_does() -> None:
    body = rendered(
        'Search("tides"), Calculate("2*3"), Search("moon"), Search("nothing")',
        ToolResult("", items=("Twice a day.", "It's the moon.")),
        ToolResult("6"),
        ToolResult("", items=('A "quoted"\nline',)),
        failure("nothing found"),
    )
    assert body == (
        'Search("tides") =>\n'
        "<|1|>: 'Twice a day.'\n"
        '<|2|>: "It\'s the moon."\n'
        "Calculate(\"2*3\") => '6'\n"
        'Search("moon") =>\n'
        "<|3|>: 'A \"quoted\"\\nline'\n"
        'Search("nothing") =>\n'
        "No result."
    )


def test_a_picture_is_a_sentence() -> None:
    assert rendered('Text2Image("a fox")', ToolResult("x", items=("a.png",))) == "Image generated successfully."
    assert rendered('Text2Image("a fox")', failure("refused")) == "No result."


@pytest.mark.parametrize("marker", ["<eor>", "<eom>", "<|9|>", "<|Results|>", "<|MOSS|>"])
def test_a_snippet_can_not_end_the_turn(marker: str) -> None:
    body = rendered('Search("a")', ToolResult("", items=(f"x {marker}: y",)))
    assert marker not in body
    assert "x : y" in body
    assert marker not in rendered('Calculate("1")', ToolResult(f"{marker}1"))
    assert marker not in rendered('Solve("x=1")', ToolResult(f"{marker}1"))


def test_citations() -> None:
    assert citations("Twice a day<sup><|1|></sup>, by the moon<sup><|3|></sup>.") == (1, 3)


def test_a_turn_goes_through_the_format(tmp_path: object) -> None:
    (call,) = calls('Calculate("60*0.85")')
    dialogue = Dialogue(
        (
            Message("user", "What is 85% of 60?"),
            Message("assistant", "", "A product.", (ToolCall(call.tool.api, '{"expression": "60*0.85"}'),)),
            Message("tool", "51"),
            Message("assistant", "It is 51."),
        ),
        system="- Inner thoughts: enabled.\n",
    )
    (row,) = get("moss").encode(dialogue)
    assert row["chat"]["turn_1"]["Commands"] == f"<|Commands|>: {call.text}<eoc>\n"
    body = render_results([(call, ToolResult("51"))])
    assert row["chat"]["turn_1"]["Tool Responses"] == f"<|Results|>:\n{body}\n<eor>\n"


@real
def test_the_samples_of_moss_are_written_again() -> None:
    """Parse the results of each clean turn into `ToolResult`s and write them: the bytes must be the same."""
    same: dict[str, int] = {}
    for name, turn in turns("calculator", "equation_solver", "text2img", "web_search", "mix"):
        found = parse_commands(inner(turn["Commands"]), TOOLS)
        if isinstance(found, Rejection):
            continue
        body = inner(turn["Tool Responses"])
        results = [_parsed(call, body) for call in found]
        if None in results or (found and body == "None"):
            continue  # cut off in the sample, or never run
        again = render_results((call, result) for call, result in zip(found, results, strict=True) if result)
        assert again == body, name
        for call in found or (None,):
            style = call.tool.api if call else "None"
            same[style] = same.get(style, 0) + 1
    assert same["Calculate"] > 40, same
    assert same["Solve"] > 20, same
    assert same["Search"] > 50, same
    assert same["Text2Image"] == 25, same
    assert same["None"] >= 10, same


def _parsed(call: Call, body: str) -> ToolResult | None:
    if call.tool.style == "sentence":
        return ToolResult("")
    _, found, rest = body.partition(f"{call.text} =>")
    if not found:
        return None
    if call.tool.style == "value":
        text = rest.partition("\n")[0].strip()
        if not text.startswith("'"):
            return None  # their mix has some without quotes
        value = ast.literal_eval(text)
        return failure("x") if value == "No result." else ToolResult(value)
    block = re.split(r"\n(?=\w+\()", rest.removeprefix("\n"))[0]
    if call.tool.style == "lines":
        return failure("x") if block == "No result." else ToolResult(block)
    snippets = [re.fullmatch(r"<\|\d+\|>: (.*)", line) for line in block.split("\n")]
    try:
        items = tuple(ast.literal_eval(snippet[1]) for snippet in snippets if snippet)
    except (SyntaxError, ValueError):
        return None
    whole = len(items) == len(snippets) and all(repr(item) in block for item in items)
    return ToolResult("", items=items) if whole else None
