"""Pictures from an images API over a real socket: kept once, never faked."""

from __future__ import annotations

import asyncio
import base64
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from selfinstruct.errors import BackendError, ConfigError, QuotaExhausted, UnknownModel, WrongKey
from selfinstruct.tools import ToolResult, open_tools
from tests.backends.endpoint import Endpoint, Reply, Script, Seen, as_json, error


def png(red: int) -> bytes:
    """Return a picture of one pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes([0, red, 0, 0]))) + chunk(b"IEND", b"")


def picture(data: bytes) -> Reply:
    return as_json({"created": 1, "data": [{"b64_json": base64.b64encode(data).decode()}]})


def made(endpoint: Endpoint, folder: Path, *descriptions: str, **options: Any) -> list[ToolResult]:
    async def main() -> list[ToolResult]:
        given = {"folder": str(folder), "base_url": endpoint.base_url} | options
        async with open_tools([{"text_to_image": given}]) as (tool,):
            assert (tool.title, tool.signature, tool.style) == ("Text-to-image", "Text2Image(description)", "sentence")
            return list(await asyncio.gather(*(tool.call({"description": each}) for each in descriptions)))

    return asyncio.run(main())


def test_a_picture_is_asked_for_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PICTURE_KEY", "sk-123456")
    with Endpoint(picture(png(7))) as endpoint:
        (result,) = made(endpoint, tmp_path / "new", "a fox", model="sdxl", size="64x64", api_key_env="PICTURE_KEY")
    (file,) = (tmp_path / "new").iterdir()
    assert file.read_bytes() == png(7)
    assert result == ToolResult(f"Image generated successfully: {file.name}", items=(file.name,))
    (seen,) = endpoint.requests
    assert (seen.method, seen.path) == ("POST", "/v1/images/generations")
    assert seen.json == {"model": "sdxl", "prompt": "a fox", "n": 1, "size": "64x64"}
    assert seen.headers["authorization"] == "Bearer sk-123456"


def test_the_same_picture_is_not_paid_twice(tmp_path: Path) -> None:
    def script(seen: Seen) -> Reply:
        return picture(png(seen.number))

    with Endpoint(script) as endpoint:
        results = made(endpoint, tmp_path, "a fox", "a fox", "an owl", "a fox")
        again = made(endpoint, tmp_path, "a fox")
        other = made(endpoint, tmp_path, "a fox", size="32x32")
    assert len(endpoint.requests) == 3
    assert results[0] == results[1] == results[3] == again[0]
    assert len({results[0].items, results[2].items, other[0].items}) == 3
    assert len(list(tmp_path.iterdir())) == 3


def test_a_picture_behind_an_address_is_fetched(tmp_path: Path) -> None:
    def script(seen: Seen) -> Reply:
        if seen.method == "POST":
            return as_json({"data": [{"url": endpoint.base_url + "/moved.png"}]})
        if seen.path == "/v1/moved.png":
            return Reply(302, b"", {"Location": "/v1/here.png"})
        return Reply(200, png(1), {"Content-Type": "image/png"})

    with Endpoint(script) as endpoint:
        (result,) = made(endpoint, tmp_path, "a fox")
    assert (tmp_path / result.items[0]).read_bytes() == png(1)
    assert "authorization" not in endpoint.requests[-1].headers


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (error(400, "no", code="moderation_blocked"), "refused"),
        (error(422, "no"), "refused"),
        (error(500, "oops"), "HTTP 500"),
        (error(429, "slow down", headers={"Retry-After": "0.01"}), "rate limited"),
        (Reply(200, b"<html>", {"Content-Type": "text/html"}), "unreadable answer"),
        (Reply(200, b"{oops", {"Content-Type": "application/json"}), "unreadable answer"),
        (as_json({"data": []}), "unreadable answer"),
        (as_json({"data": None}), "unreadable answer"),
        (as_json([]), "unreadable answer"),
        (as_json({"data": [{"b64_json": "%%%"}]}), "unreadable answer"),
        (as_json({"data": [{"b64_json": 3}]}), "unreadable answer"),
        (as_json({"data": [{"url": "http://127.0.0.1:1/x.png"}]}), "unreachable"),
        (as_json({"data": [{"url": "nonsense"}]}), "unreachable"),
        (picture(b"<svg onload=alert(1)>"), "unreadable answer"),
        (Reply(200, b"x", delay=5), "out of time"),
        (Reply(200, b"x", cut=-1), "unreachable"),
    ],
)
def test_what_a_server_does_wrong_is_a_failed_call(
    script: Script, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openai._constants.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    with Endpoint(script) as endpoint:
        (result,) = made(endpoint, tmp_path, "a fox", seconds=0.3 if reason == "out of time" else 60)
    assert (result.failed, result.reason) == (True, reason), result
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (error(401, "wrong key"), WrongKey),
        (error(403, "no"), WrongKey),
        (error(404, "no such model"), UnknownModel),
        (error(429, "pay", code="insufficient_quota"), QuotaExhausted),
    ],
)
def test_what_only_the_person_can_change_ends_the_run(
    script: Script, kind: type[BackendError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1")
    with Endpoint(script) as endpoint, pytest.raises(kind) as caught:
        made(endpoint, tmp_path, "a fox")
    assert "sk-secret-1" not in str(caught.value)


def test_without_a_key_and_without_a_server_there_is_no_such_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    async def main(**options: Any) -> None:
        async with open_tools([{"text_to_image": {"folder": str(tmp_path)} | options}]):
            pass

    with pytest.raises(WrongKey, match="set OPENAI_API_KEY"):
        asyncio.run(main())
    for url in ("ftp://x", "nonsense"):
        with pytest.raises(ConfigError, match="is not"):
            asyncio.run(main(base_url=url))
