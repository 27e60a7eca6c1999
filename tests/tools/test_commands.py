"""MOSS's commands: what is clean is read, what is not is refused with its own reason."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfinstruct.tools import Call, parse_commands, render_command
from selfinstruct.values import Rejection
from tests.tools.samples import TOOLS, inner, real, turns


def read(text: str) -> list[tuple[str, dict[str, Any]]] | str:
    found = parse_commands(text, TOOLS)
    if isinstance(found, Rejection):
        assert found.filter == "commands"
        return found.reason
    return [(call.tool.api, dict(call.arguments)) for call in found]


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("None", []),
        (" None\n", []),
        ('Calculate("60*0.85")', [("Calculate", {"expression": "60*0.85"})]),
        ("Calculate('60*0.85')", [("Calculate", {"expression": "60*0.85"})]),
        ('Calculate(expression="1+1")', [("Calculate", {"expression": "1+1"})]),
        ('Search("世界上 最大 3D打印建筑")', [("Search", {"query": "世界上 最大 3D打印建筑"})]),
        ('Search("a"), Calculate("1")', [("Search", {"query": "a"}), ("Calculate", {"expression": "1"})]),
        ('Search("a, b"), Search("None")', [("Search", {"query": "a, b"}), ("Search", {"query": "None"})]),
        ('Search("C# and 1. x")', [("Search", {"query": "C# and 1. x"})]),
        (r'Search("a \"b\" \\ \u00e9\n")', [("Search", {"query": 'a "b" \\ é\n'})]),
        ('Exchange(-3.5, currency="EUR")', [("Exchange", {"amount": -3.5, "currency": "EUR"})]),
        ('Exchange(3, days=[1, "b", {"c": None}])', [("Exchange", {"amount": 3, "days": [1, "b", {"c": None}]})]),
    ],
)  # fmt: skip
def test_clean_commands_are_read(text: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    assert read(text) == calls


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("None.", "not None"),
        ("Non", "not None"),
        ("none", "not None"),
        ("yes", "not None"),
        ('"None"', "not None"),
        ('1. Search("a")\n2. Search("b")', "numbered list"),
        ('1) Search("a")', "numbered list"),
        ('- Search("a")', "numbered list"),
        ('Search("a") # to find it', "comment"),
        ('# first\nSearch("a")', "comment"),
        ('Search("a"),', "trailing comma"),
        ('Search("a"), None', "call with None"),
        ('None, Search("a")', "call with None"),
        ('Search("a" + "b")', "string concatenation"),
        ('Search("a" + str(3))', "string concatenation"),
        ('Search("a" "b")', "string concatenation"),
        ('Search("a{}".format(3))', "format"),
        ('Search("a").format(3)', "format"),
        ('Search(f"{3}")', "f-string"),
        ('Search(rate)', "not a literal"),
        ("Calculate(1+1)", "not a literal"),
        ('Search(open("/etc/passwd").read())', "not a literal"),
        ('Search(r"a")', "not a literal"),
        ('Search(b"a")', "not a literal"),
        ("Exchange(1j)", "not a literal"),
        ("Exchange(...)", "not a literal"),
        ("Exchange(*[1])", "not a literal"),
        ('Search("""a""")', "string concatenation"),
        (r'Calculate("\frac{1}{2}")', "bad escape"),
        (r'Search("a\d")', "bad escape"),
        ("Count()", "unknown API"),
        ('search("a")', "unknown API"),
        ('Ｓearch("a")', "unknown API"),
        ('ſearch("a")', "unknown API"),
        ('__import__("os").system("ls")', "unknown API"),
        ("Exchange(3, rate=4)", "unknown argument"),
        ("Exchange(**{})", "unknown argument"),
        ('Solve("4/3*pi*r^3=13*x^3", "x")', "wrong arity"),
        ("Search()", "wrong arity"),
        ("Exchange(3, amount=4)", "wrong arity"),
        ("Calculate(42)", "wrong type"),
        ('Exchange("3")', "wrong type"),
        ("Exchange(True)", "wrong type"),
        ('Search("a"),Search("b")', "separator"),
        ('Search("a") \nSearch("b")', "separator"),
        ('Search("a"); Search("b")', "separator"),
        (", ".join(['Search("a")'] * 9), "too many calls"),
        ('Search("' + "a" * 9000 + '")', "too long"),
        ('Search("a"', "syntax"),
        ('Search（"a"）', "syntax"),
        ("Search(“a”)", "syntax"),
        ('Search("a\nb")', "syntax"),
        ('Search("a\x00b")', "syntax"),
        ('Search("\ud800")', "syntax"),
        ('[Search("a")]', "syntax"),
        ('(Search("a"))', "syntax"),
        ("(" * 3000, "syntax"),
        ("-" * 3000 + "1", "syntax"),
        ("Search(" * 900 + '"a"' + ")" * 900, "syntax"),
        ("Exchange(" + "9" * 5000 + ")", "syntax"),
    ],
)  # fmt: skip
def test_what_is_not_clean_is_refused_with_its_reason(text: str, reason: str) -> None:
    assert read(text) == reason


literals = st.recursive(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\t\"'\\"), max_size=20),
        st.integers(-(10**9), 10**9),
        st.floats(allow_nan=False, allow_infinity=False),
        st.booleans(),
        st.none(),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_a_command_that_we_write_is_read_back(query: str) -> None:
    text = render_command("Search", {"query": query})
    found = read(text)
    assert found == [("Search", {"query": query})], text


@settings(max_examples=300, deadline=None)
@given(st.lists(literals, max_size=4), st.integers(-5, 5))
def test_every_literal_is_read_back(days: list[Any], amount: int) -> None:
    text = render_command("Exchange", {"amount": amount, "currency": "€", "days": days})
    if len(text) > 8000:
        return
    found = parse_commands(text, TOOLS)
    if isinstance(found, Rejection):
        assert found.reason == "bad escape", text  # repr of a string inside a list has escapes of its own
        return
    (call,) = found
    assert call.arguments["days"] == days
    assert call.text == text


@settings(max_examples=1500, deadline=None)
@given(st.one_of(st.text(max_size=50), st.text("Search(\"a1), None#.f+\\\n'", max_size=30)))
def test_whatever_text_comes_there_is_an_answer(text: str) -> None:
    found = parse_commands(text, TOOLS)
    if isinstance(found, Rejection):
        assert found.reason
        return
    for call in found:
        assert isinstance(call, Call)
        assert not any(isinstance(value, float) and math.isnan(value) for value in call.arguments.values())


@real
def test_the_samples_of_moss() -> None:
    reasons: dict[str, int] = {}
    for name, turn in turns("calculator", "equation_solver", "text2img", "web_search", "mix"):
        found = read(inner(turn["Commands"]))
        key = "clean" if isinstance(found, list) else found
        reasons[key] = reasons.get(key, 0) + 1
        if isinstance(found, list) and found:
            assert turn["Tool Responses"].count("None") < 3, name
    dirty = {reason: count for reason, count in reasons.items() if reason != "clean"}
    assert reasons["clean"] > 200
    assert dirty == {"not None": 1, "wrong arity": 2, "separator": 1}
