"""A real MCP server for the tests: `python mcp_server.py`, over stdin and stdout, or `python mcp_server.py PORT`."""

from __future__ import annotations

import asyncio
import os
import sys

from mcp.server.mcpserver import MCPServer


def add(first: int, second: int) -> int:
    """Add two numbers."""
    return first + second


def variable(name: str) -> str:
    """Tell an environment variable."""
    return os.environ.get(name, "not set")


def fail() -> str:
    """Always fail."""
    raise RuntimeError("as promised")


async def wait(seconds: float) -> str:
    """Wait."""
    await asyncio.sleep(seconds)
    return "awake"


def flood(size: int) -> str:
    """Say much."""
    return "x" * size


def die() -> str:
    """End the server at once."""
    os._exit(3)


def nothing() -> None:
    """Say nothing."""


def table() -> dict[str, int]:
    """Return data."""
    return {"a": 1}


if __name__ == "__main__":
    server = MCPServer("sums")
    server.add_tool(add, title="Adding up")
    for function in (variable, fail, wait, flood, die, nothing, table):
        server.add_tool(function)
    if len(sys.argv) > 1:
        server.run(transport="streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
    else:
        server.run(transport="stdio")
