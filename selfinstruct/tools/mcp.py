"""Tools of an MCP server (Model Context Protocol), by the protocol's own package."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Mapping
from typing import IO, Any

from selfinstruct.errors import ConfigError, PluginError
from selfinstruct.languages import closest
from selfinstruct.tools.function import camel, numeric_values, spoken
from selfinstruct.tools.tool import Tool, failure
from selfinstruct.values import ToolResult

_START_SECONDS = 60.0
_PAGES = 50


async def mcp(
    *,
    command: tuple[str, ...] = (),
    url: str = "",
    tools: tuple[str, ...] = (),
    environment: tuple[str, ...] = (),
    folder: str | None = None,
    seconds: float = 60.0,
) -> tuple[Tool, ...]:
    """The tools of an MCP server: a program of yours, or an address.

    Args:
        command: the program that serves over stdin and stdout, with its arguments: [npx, -y, some-server].
        url: address of a server that speaks streamable HTTP, http://127.0.0.1:8000/mcp.
        tools: names of those that are wanted; all where none is named.
        environment: names of environment variables that the program is given beside PATH, HOME and such.
        folder: where the program runs.
        seconds: how long a call may take.
    """
    if bool(command) == bool(url):
        raise ConfigError("tool 'mcp': give either command, such as [python, server.py], or url")
    try:
        import mcp as package
    except ImportError:
        raise PluginError("the tools of MCP servers need: pip install 'selfinstruct[mcp]'") from None
    missing = [name for name in environment if name not in os.environ]
    if missing:
        raise ConfigError(f"tool 'mcp': the environment variable {missing[0]} is not set")
    server: Any = url
    if command:
        given = {name: os.environ[name] for name in environment}
        server = package.StdioServerParameters(command=command[0], args=list(command[1:]), env=given, cwd=folder)
    connection = _Connection(server, " ".join(command) or url)
    await connection.open()
    try:
        listed = await connection.tools()
        names = [each.name for each in listed]
        for name in tools:
            if name not in names:
                raise ConfigError(f"tool 'mcp': {connection.name} has no tool {name!r}: {closest(name, names)}")
        chosen = [each for each in listed if not tools or each.name in tools]
        if not chosen:
            raise ConfigError(f"tool 'mcp': {connection.name} offers no tools")
    except BaseException:
        await connection.close()
        raise
    return tuple(_tool(connection, each, seconds) for each in chosen)


def _tool(connection: _Connection, listed: Any, seconds: float) -> Tool:
    async def run(arguments: Mapping[str, Any]) -> ToolResult:
        return await connection.call(listed.name, arguments)

    return Tool(
        name=listed.name,
        title=listed.title or spoken(listed.name),
        api=camel(listed.name),
        description=" ".join((listed.description or "").split()),
        parameters=listed.input_schema,
        run=run,
        close=connection.close,
        timeout=seconds,
    )


class _Connection:
    """A session with a server, kept in a task of its own: the package wants it closed where it was opened."""

    def __init__(self, server: Any, name: str) -> None:
        self.name = name
        self._server = server
        self._client: Any = None
        self._task: asyncio.Task[None] | None = None
        self._done = asyncio.Event()
        self._opening = asyncio.Lock()

    async def open(self) -> None:
        """Start the server, or connect to it; nothing to do while it stands.

        Raises:
            PluginError: it does not start, or does not speak MCP.
        """
        async with self._opening:
            if self._client is None:
                await self._open()

    async def _open(self) -> None:
        self._done.clear()
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
            self._task = asyncio.create_task(self._keep(ready, log))
            try:
                async with asyncio.timeout(_START_SECONDS):
                    await asyncio.wait([ready, self._task], return_when=asyncio.FIRST_COMPLETED)
            except BaseException as error:
                await self.close()
                if isinstance(error, TimeoutError):
                    raise PluginError(
                        f"tool 'mcp': {self.name} did not answer within {_START_SECONDS:.0f} s{_tail(log)}"
                    ) from None
                raise
            if not ready.done():
                reason = self._task.exception()
                raise PluginError(f"tool 'mcp': {self.name} does not start: {_cause(reason)}{_tail(log)}") from reason

    async def _keep(self, ready: asyncio.Future[None], log: IO[str]) -> None:
        import mcp as package

        server = self._server if isinstance(self._server, str) else package.stdio_client(self._server, errlog=log)
        async with package.Client(server) as client:
            self._client = client
            ready.set_result(None)
            await self._done.wait()

    async def tools(self) -> list[Any]:
        """Return what the server lists, page by page."""
        found: list[Any] = []
        cursor = None
        for _ in range(_PAGES):
            page = await self._client.list_tools(cursor=cursor)
            found += page.tools
            cursor = page.next_cursor
            if cursor is None:
                break
        return found

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Call a tool of the server, which is started anew when it has ended."""
        import mcp as package
        from mcp import types

        await self.open()
        client = self._client
        try:
            answer = await client.call_tool(name, dict(arguments))
        except package.MCPError as error:
            if error.code == types.CONNECTION_CLOSED:
                if self._client is client:  # nobody else has noticed yet
                    await self.close()
                return failure("unreachable", "the server has ended")
            return failure("tool error", str(error))
        text = "\n".join(_shown(part) for part in answer.content).strip()
        if not text and answer.structured_content not in (None, {"result": None}):
            text = json.dumps(answer.structured_content, ensure_ascii=False)
        if answer.is_error:
            return failure("tool error", text)
        return ToolResult(text, values=numeric_values(text)) if text else failure("nothing found")

    async def close(self) -> None:
        """End the session; the tools of one server share it, so it may be closed more than once."""
        task, self._task = self._task, None
        if task is None:
            return
        self._done.set()
        if self._client is None:  # it is still being opened
            task.cancel()
        self._client = None
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # what went wrong on the way out concerns nobody any more


def _shown(part: Any) -> str:
    return part.text if part.type == "text" else f"[{part.type}]"


def _cause(error: BaseException | None) -> str:
    """Return the first reason inside of groups of exceptions."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}" if error else "it ended"


def _tail(log: IO[str]) -> str:
    log.seek(0)
    lines = log.read()[-3000:].splitlines()[-8:]
    return "\nIt says:\n" + "\n".join(f"  {line}" for line in lines) if lines else ""
