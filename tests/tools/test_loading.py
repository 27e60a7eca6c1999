"""From settings to tools: names, options, functions, files, and what is wrong with them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from selfinstruct.errors import ConfigError, PluginError, WrongKey
from selfinstruct.tools import Tool, ToolResult, check_tools, describe_tools, failure, open_tools
from selfinstruct.tools.function import camel, function_tool, spoken
from selfinstruct.tools.tool import MAX_TEXT, check_arguments, text_parameters
from tests.tools.samples import TOOLS, tool


def call(made: Tool, **arguments: Any) -> ToolResult:
    return asyncio.run(made.call(arguments))


def written(folder: Path, text: str) -> str:
    path = folder / "mine.py"
    path.write_text(textwrap.dedent(text))
    return str(path)


# Functions


def area(width: float, height: float = 1.0, unit: Literal["m", "cm"] = "m") -> float:
    """Compute the area of a rectangle,
    in square units.

    Args:
        width: how wide it is,
            from side to side.
        height: how high it is.
    """
    return width * height


def test_a_functions_signature_and_docstring_describe_the_tool() -> None:
    made = function_tool(area)
    assert (made.name, made.title, made.api) == ("area", "Area", "Area")
    assert made.description == "Compute the area of a rectangle, in square units."
    assert made.signature == "Area(width, height, unit)"
    assert made.parameters["required"] == ["width"]
    assert made.parameters["properties"]["width"]["type"] == "number"
    assert made.parameters["properties"]["width"]["description"] == "how wide it is, from side to side."
    assert made.parameters["properties"]["unit"]["enum"] == ["m", "cm"]
    assert made.parameters["additionalProperties"] is False
    json.dumps(made.parameters)


def test_a_function_is_called_with_what_fits_and_nothing_else() -> None:
    made = function_tool(area)
    assert call(made, width=3, height=2) == ToolResult("6.0", values=("6.0",))
    assert call(made, height=2).reason == "wrong arguments"
    assert call(made, width="three").reason == "wrong arguments"
    assert call(made, width=1, unit="km").reason == "wrong arguments"
    assert call(made, width=1, depth=2).reason == "wrong arguments"


def test_what_a_function_returns_becomes_text() -> None:
    def back(kind: str) -> object:
        return {
            "text": "warm",
            "number": 42,
            "text number": "-1/3",
            "list": [1, {"ä": None}],
            "nothing": None,
            "truth": True,
            "result": failure("closed"),
            "strange": object,
            "cycle": _cycle(),
        }[kind]

    made = function_tool(back)
    assert call(made, kind="text") == ToolResult("warm")
    assert call(made, kind="number") == ToolResult("42", values=("42",))
    assert call(made, kind="text number").values == ("-1/3",)
    assert call(made, kind="list") == ToolResult('[1, {"ä": null}]')
    assert call(made, kind="nothing").reason == "nothing found"
    assert call(made, kind="truth") == ToolResult("true")
    assert call(made, kind="result").reason == "closed"
    assert not call(made, kind="strange").failed
    assert not call(made, kind="cycle").failed


def _cycle() -> list[object]:
    found: list[object] = []
    found.append(found)
    return found


def test_a_function_that_fails_floods_or_hangs_is_a_failed_or_cut_result() -> None:
    def broken(what: str) -> str:
        if what == "raise":
            raise ZeroDivisionError("by zero")
        if what == "sleep":
            time.sleep(0.6)
        return "x\x00\ud800" * 1_000_000

    made = function_tool(broken)
    failed = call(made, what="raise")
    assert (failed.reason, failed.text) == ("tool error", "No result: tool error (ZeroDivisionError: by zero)")
    assert call(replace(made, timeout=0.1), what="sleep").reason == "out of time"
    flood = call(made, what="flood")
    assert len(flood.text) == MAX_TEXT
    flood.text.encode()


def test_an_async_function_and_one_that_needs_the_person() -> None:
    async def wait(seconds: float) -> str:
        await asyncio.sleep(seconds)
        if seconds == 0:
            raise WrongKey("set TIDES_KEY")
        return "done"

    made = function_tool(wait)
    assert call(made, seconds=0.01).text == "done"
    assert call(replace(made, timeout=0.1), seconds=90).reason == "out of time"
    with pytest.raises(WrongKey, match="TIDES_KEY"):
        call(made, seconds=0)


def test_a_function_that_blocks_does_not_block_the_loop() -> None:
    all_there = threading.Barrier(4, timeout=60)

    def patient() -> str:
        """Wait for the others."""
        all_there.wait()
        return "up"

    async def main() -> None:
        made = function_tool(patient, timeout=120)
        results = await asyncio.gather(*(made.call({}) for _ in range(4)))
        assert [result.text for result in results] == ["up"] * 4

    asyncio.run(main())


def no_annotation(x):  # type: ignore[no-untyped-def]
    return x


def stars(*x: int) -> int:
    return sum(x)


def no_json(x: Callable[[], int]) -> int:
    return x()


@pytest.mark.parametrize("function", [no_annotation, stars, no_json])
def test_a_signature_that_json_can_not_carry_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(PluginError, match="needs a type that JSON can carry"):
        function_tool(function)


@pytest.mark.parametrize(
    ("name", "api", "title"),
    [
        ("exchange_rate", "ExchangeRate", "Exchange rate"),
        ("get-weather.now", "GetWeatherNow", "Get weather now"),
        ("2fast", "Tool2fast", "2fast"),
        ("wetter_für", "ToolWetterFür", "Wetter für"),
    ],
)
def test_names(name: str, api: str, title: str) -> None:
    assert (camel(name), spoken(name)) == (api, title)


# Arguments


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"amount": 3}, ""),
        ({"amount": 3.5, "currency": "EUR", "days": []}, ""),
        ({}, "amount is missing"),
        ({"amount": True}, "amount must be of type number, found bool"),
        ({"amount": "3"}, "amount must be of type number, found str"),
        ({"amount": 3, "rate": 1}, "there is no 'rate': amount, currency, days"),
    ],
)
def test_arguments_are_checked_before_anything_runs(arguments: Mapping[str, Any], fault: str) -> None:
    assert check_arguments(TOOLS[-1].parameters, arguments) == fault
    assert asyncio.run(TOOLS[-1].call(arguments)).failed == bool(fault)


# Settings


def test_tools_from_a_file_open_in_order_and_close(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        """
        from pathlib import Path
        from selfinstruct.tools import Tool, ToolResult
        from selfinstruct.tools.tool import text_parameters

        def twice(number: int) -> int:
            "Double a number."
            return 2 * number

        async def run(arguments):
            return ToolResult("tick")

        clock = Tool("clock", "Clock", "Clock", "Tells the time.", text_parameters(), run)

        def opened(*, folder: Path, count: int = 1) -> tuple[Tool, ...]:
            "Several tools of one kind."
            async def close():
                (folder / "closed").touch()
            return tuple(
                Tool(f"t{n}", f"T{n}", f"T{n}", "", text_parameters(), run, close) for n in range(count)
            )

        async def later(*, name: str) -> Tool:
            "A tool that takes a while to open."
            return Tool(name, name, name, "", text_parameters(), run)
        """,
    )

    async def main() -> list[str]:
        settings: list[Any] = [
            f"{file}:twice", {f"{file}:opened": {"folder": str(tmp_path), "count": 2}}, f"{file}:clock",
            {f"{file}:later": {"name": "late"}},
        ]  # fmt: skip
        check_tools(settings)
        assert not (tmp_path / "closed").exists()
        async with open_tools(settings) as tools:
            assert (await tools[0].call({"number": 21})).values == ("42",)
            assert not (tmp_path / "closed").exists()
            return [each.name for each in tools]

    assert asyncio.run(main()) == ["twice", "t0", "t1", "clock", "late"]
    assert (tmp_path / "closed").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("calculator", "expected a list"),
        (["calculater"], "did you mean 'calculator'"),
        ([{"calculator": {"second": 3}}], "has no option 'second': did you mean 'seconds'"),
        ([{"calculator": {"seconds": "long"}}], "'calculator': seconds: .*number.*found 'long'"),
        ([{"calculator": "fast"}], "expected options"),
        ([{"calculator": {}, "solver": {}}], "one name with options"),
        ([3], "expected a name"),
        (["nowhere.py:tool"], "does not exist"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_opens(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_tools(settings)


def test_two_tools_of_one_name_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path, "def calculator(x: str) -> str:\n    return x\n")

    async def main() -> None:
        async with open_tools(["calculator", f"{file}:calculator"]):
            pass

    with pytest.raises(ConfigError, match="two tools have the name 'calculator'"):
        asyncio.run(main())


@pytest.mark.parametrize("text", ["number = 3", "def f(x: Missing) -> int:\n    return 1\nnumber = f"])
def test_what_is_no_tool_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(PluginError):
        check_tools([f"{written(tmp_path, text)}:number"])


def test_without_sympy_the_calculator_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    async def main() -> None:
        async with open_tools(["calculator"]):
            pass

    with pytest.raises(PluginError, match=r"pip install 'selfinstruct\[tools\]'"):
        asyncio.run(main())


def test_every_tool_is_described() -> None:
    rows = {row["tool"]: row for row in describe_tools()}
    assert {"calculator", "solver"} <= set(rows)
    assert "seconds=" in rows["calculator"]["options"]
    assert all(row["what"] for row in rows.values())


def test_the_package_imports_nothing_heavy() -> None:
    heavy = "sympy|openai|mcp|httpx2|numpy|sqlite3"
    script = f"import sys, selfinstruct.tools; print([m for m in {heavy.split('|')!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_schema_of_texts() -> None:
    assert text_parameters(query="What to look for.") == {
        "type": "object",
        "properties": {"query": {"type": "string", "description": "What to look for."}},
        "required": ["query"],
        "additionalProperties": False,
    }
    assert tool("search", "Search", "items", query="q").signature == "Search(query)"
