"""Tools behind HTTP: one way to ask, with limits on time and size, and a search by any JSON API."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from selfinstruct.errors import ConfigError, WrongKey
from selfinstruct.tools.search import found, search_tool
from selfinstruct.tools.tool import Tool, failure
from selfinstruct.values import ToolResult

if TYPE_CHECKING:
    import httpx2

MAX_BYTES = 4 << 20
"""Of an answer; what is longer is a failed call."""
_TAG = re.compile(r"<[^<>]{0,200}>")


def web_search(
    *,
    url: str,
    items: str = "results",
    title: str = "title",
    snippet: str = "content",
    api_key_env: str = "",
    header: str = "Authorization",
    results: int = 3,
    seconds: float = 20.0,
) -> Tool:
    """Search by an HTTP API that answers in JSON, such as a SearXNG of your own.

    Args:
        url: the address with {query} in it, http://127.0.0.1:8080/search?format=json&q={query}.
        items: where the hits are in the answer, by keys between points.
        title: key of a hit's title.
        snippet: key of a hit's text.
        api_key_env: name of the environment variable that holds the key, if there is one.
        header: the header that carries it; in Authorization it follows the word Bearer.
        results: most snippets of one search.
        seconds: how long an answer may take.
    """
    if "{query}" not in url:
        raise ConfigError(f"tool 'web_search': url: expected an address with {{query}} in it, found {url!r}")
    client = http_client(url.replace("{query}", "x"), "web_search", api_key_env, header, seconds)

    async def run(arguments: Mapping[str, Any]) -> ToolResult:
        answer = await fetch(client, "GET", url.replace("{query}", quote(arguments["query"], safe="")))
        if isinstance(answer, ToolResult):
            return answer
        try:
            hits = at(answer.json(), items)
        except (ValueError, KeyError):
            return failure("unreadable answer", f"expected JSON with a list at {items!r}")
        snippets = [_snippet(hit, title, snippet) for hit in hits] if isinstance(hits, list) else []
        return found([text for text in snippets if text][:results])

    return search_tool("web_search", "Searches the web and returns snippets of pages.", run, client.aclose)


def http_client(url: str, tool: str, api_key_env: str, header: str, timeout: float) -> httpx2.AsyncClient:
    """Return a client for the server of `url`, with the key of an environment variable in its header.

    Raises:
        ConfigError: the address is not one.
        WrongKey: the variable is not set.
    """
    import httpx2

    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ConfigError(f"tool {tool!r}: {url!r} is not an address: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"tool {tool!r}: {url!r} is not an address; expected one like http://127.0.0.1:8080/search")
    headers = {"User-Agent": "selfinstruct"}
    if api_key_env:
        key = os.environ.get(api_key_env, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            raise WrongKey(f"tool {tool!r}: the environment variable {api_key_env} must hold its key")
        headers[header] = f"Bearer {key}" if header.casefold() == "authorization" else key
    return httpx2.AsyncClient(headers=headers, timeout=timeout, trust_env=not is_local(parsed.host))


def is_local(host: str) -> bool:
    """Tell whether a server is on this machine: a proxy of the environment is meant for the outside."""
    return host in ("localhost", "127.0.0.1", "::1")


async def fetch(
    client: httpx2.AsyncClient, method: str, url: str, *, most: int = MAX_BYTES, **more: Any
) -> httpx2.Response | ToolResult:
    """Ask once; return an answer of at most `most` bytes, or the failed result that stands for it.

    Raises:
        WrongKey: the server refuses the key: no further call would fare better.
    """
    import httpx2

    try:
        async with client.stream(method, url, **more) as response:
            body = b""
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > most:
                    return failure("answer too long", f"more than {most >> 20} MiB")
    except httpx2.TimeoutException:
        return failure("out of time")
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return failure("unreachable", type(error).__name__)
    if response.status_code in (401, 403):
        where = response.url.copy_with(query=None, userinfo=b"")
        raise WrongKey(f"{where} refuses access (HTTP {response.status_code}): a wrong key, or its API is switched off")
    if not response.is_success:
        return failure(f"HTTP {response.status_code}")
    kind = {"Content-Type": response.headers.get("Content-Type", "")}
    return httpx2.Response(response.status_code, headers=kind, content=body)


def at(value: Any, path: str) -> Any:
    """Return what stands in JSON under keys between points, "query.search"; the value itself for "".

    Raises:
        KeyError: there is no such thing.
    """
    for key in filter(None, path.split(".")):
        if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        elif isinstance(value, dict):
            value = value[key]
        else:
            raise KeyError(key)
    return value


def _snippet(hit: Any, title: str, snippet: str) -> str:
    if not isinstance(hit, dict):
        return ""
    texts = (hit.get(key) for key in (title, snippet))
    parts = [" ".join(html.unescape(_TAG.sub("", text)).split()) for text in texts if isinstance(text, str)]
    return ": ".join(part for part in parts if part)
