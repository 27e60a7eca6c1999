"""Tools of a real MCP server in a process of its own, over stdio and over HTTP."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import pytest

from selfinstruct.errors import ConfigError, PluginError
from selfinstruct.tools import Tool, open_tools

pytestmark = pytest.mark.slow

SERVER = [sys.executable, str(Path(__file__).with_name("mcp_server.py"))]

Use = Callable[[Mapping[str, Tool]], Coroutine[Any, Any, None]]


def with_tools(use: Use, **options: Any) -> None:
    async def main() -> None:
        async with open_tools([{"mcp": options}]) as tools:
            await use({tool.name: tool for tool in tools})

    asyncio.run(main())


def test_the_tools_of_a_server_over_stdio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDES_KEY", "t-123")
    monkeypatch.setenv("OTHER_KEY", "o-123")

    async def use(tools: Mapping[str, Tool]) -> None:
        add = tools["add"]
        assert (add.title, add.api, add.signature) == ("Adding up", "Add", "Add(first, second)")
        assert add.description == "Add two numbers."
        assert add.parameters["properties"]["first"]["type"] == "integer"
        result = await add.call({"first": 2, "second": 3})
        assert (result.text, result.values, result.failed) == ("5", ("5",), False)
        assert (await add.call({"first": "x", "second": 3})).reason == "wrong arguments"
        assert (await add.call({"first": 2})).reason == "wrong arguments"
        failed = await tools["fail"].call({})
        assert (failed.failed, failed.reason) == (True, "tool error")
        assert (await tools["nothing"].call({})).reason == "nothing found"
        assert '"a": 1' in (await tools["table"].call({})).text
        assert len((await tools["flood"].call({"size": 1_000_000})).text) == 4000
        # Of the environment the server has what it was given by name.
        assert (await tools["variable"].call({"name": "TIDES_KEY"})).text == "t-123"
        assert (await tools["variable"].call({"name": "OTHER_KEY"})).text == "not set"
        # Several calls at once, from tasks other than the one that opened it.
        started = time.monotonic()
        results = await asyncio.gather(*(tools["wait"].call({"seconds": 3}) for _ in range(12)))
        assert [each.text for each in results] == ["awake"] * 12
        assert time.monotonic() - started < 30
        # A server that dies is started again.
        assert (await tools["die"].call({})).reason == "unreachable"
        both = await asyncio.gather(add.call({"first": 1, "second": 1}), add.call({"first": 2, "second": 2}))
        assert [each.text for each in both] == ["2", "4"]

    with_tools(use, command=SERVER, environment=["TIDES_KEY"])


def test_a_call_that_takes_too_long_is_left() -> None:
    async def use(tools: Mapping[str, Tool]) -> None:
        assert list(tools) == ["wait"]
        assert (await tools["wait"].call({"seconds": 250})).reason == "out of time"
        assert (await tools["wait"].call({"seconds": 0})).text == "awake"

    started = time.monotonic()
    with_tools(use, command=SERVER, tools=["wait"], seconds=5)
    assert time.monotonic() - started < 200


def test_the_tools_of_a_server_over_http() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([*SERVER, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)

        async def use(tools: Mapping[str, Tool]) -> None:
            assert (await tools["add"].call({"first": 20, "second": 22})).values == ("42",)

        with_tools(use, url=f"http://127.0.0.1:{port}/mcp")
    finally:
        server.kill()
        server.wait()


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({}, ConfigError, "give either command"),
        ({"command": SERVER, "url": "http://x"}, ConfigError, "give either command"),
        ({"command": SERVER, "environment": ["NOT_SET_HERE"]}, ConfigError, "NOT_SET_HERE is not set"),
        ({"command": SERVER, "tools": ["ad"]}, ConfigError, "has no tool 'ad': did you mean 'add'"),
        ({"command": ["no-such-program"]}, PluginError, "no-such-program does not start: FileNotFoundError"),
        ({"command": [sys.executable, "-c", "raise SystemExit('boom')"]}, PluginError, "(?s)does not start.*boom"),
        ({"url": "http://127.0.0.1:1/mcp"}, PluginError, "does not start"),
    ],
)
def test_what_can_not_be_opened_says_why(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    async def use(tools: Mapping[str, Tool]) -> None:
        raise AssertionError(tools)

    with pytest.raises(kind, match=message):
        with_tools(use, **options)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)

    async def use(tools: Mapping[str, Tool]) -> None:
        raise AssertionError(tools)

    with pytest.raises(PluginError, match=r"pip install 'selfinstruct\[mcp\]'"):
        with_tools(use, command=SERVER)
