"""docs/tools.md is true: its settings pass, its tools work, its lists are those of the program."""

from __future__ import annotations

import asyncio
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from selfinstruct import plugins
from selfinstruct.tools import Setting, algebra, check_tools, grammar, open_tools, worker

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tools.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the files of the page."""
    for language, text in BLOCKS:
        if language == "python":
            said = re.match(r"# ([\w/.]+)", text)
            assert said is not None, text[:60]
            (tmp_path / said[1]).write_text(text, encoding="utf-8")
    (tmp_path / "tides.txt").write_text("Brest 14:05\nCadiz 16:20\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for module in {"turn", "tides", "rates"} & set(sys.modules):
        del sys.modules[module]


def test_every_setting_of_the_page_is_one(here: Path) -> None:
    found = [yaml.safe_load(text)["tools"] for language, text in BLOCKS if language == "yaml"]
    assert len(found) == 5
    for tools in found:
        check_tools(tools)


def test_the_tools_of_the_page_work(here: Path) -> None:
    async def main() -> None:
        settings: list[Setting] = ["rates.py:exchange_rate", {"tides.py:tides": {"table": "tides.txt"}}]
        async with open_tools(settings) as (rates, tides):
            assert rates.signature == "ExchangeRate(currency, amount)"
            assert (await rates.call({"currency": "JPY", "amount": 20})).values == ("3390.0",)
            assert (await rates.call({"currency": "XYZ"})).reason == "tool error"
            assert rates.parameters["properties"]["amount"]["description"] == "how many euros."
            assert (await tides.call({"harbour": "Brest"})).text == "High tide at 14:05"
            assert (await tides.call({"harbour": "Bern"})).reason == "unknown harbour"

    asyncio.run(main())


@pytest.mark.slow
def test_the_turn_of_the_page_works(here: Path) -> None:
    turn = importlib.import_module("turn").turn
    assert asyncio.run(turn('Calculate("60*0.85")', "You pay 51 euros.")) == "Calculate(\"60*0.85\") => '51'"
    assert asyncio.run(turn('Calculate("60*0.85")', "You pay 52 euros.")) == "result not stated"
    assert asyncio.run(turn('Calculate("60*0.85"),', "You pay 51 euros.")) == "trailing comma"


def test_the_page_lists_what_there_is() -> None:
    table = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    assert table == set(plugins.BUILT_IN["tools"])
    functions = re.search(r"^\| functions \| `([^`]*)` \|", PAGE, re.MULTILINE)
    assert functions is not None
    assert set(functions[1].split()) - {"lg"} == set(grammar.FUNCTIONS)
    assert grammar.ALIASES["lg"] == "log10"


def test_the_reasons_on_the_page_are_those_of_the_code() -> None:
    written = set(
        re.findall(r"`([^`]+)`", " ".join(PAGE.partition("Reasons of a refusal, ")[2].partition("##")[0].split()))
    )
    sources = [Path(module.__file__ or "").read_text(encoding="utf-8") for module in (grammar, algebra, worker)]
    used = {reason for text in sources for reason in re.findall(r'(?:BadExpression|Refused)\(\s*"([^"]+)"', text)}
    used |= {reason for text in sources for reason in re.findall(r'"reason": "([^"]+)"', text)}
    assert used == written


def test_the_reasons_of_commands_on_the_page_are_those_of_the_code() -> None:
    from selfinstruct.tools import commands

    said = " ".join(PAGE.partition("Everything else\nis refused with its reason: ")[2].partition("\n\n")[0].split())
    text = Path(commands.__file__).read_text(encoding="utf-8")
    listed = re.search(r"A rejection's reason is one of: ([^.]*)\.", text)
    assert listed is not None
    assert set(re.findall(r"`([^`]+)`", said)) == {each.strip() for each in " ".join(listed[1].split()).split(",")}
