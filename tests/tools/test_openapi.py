"""An operation of an OpenAPI document, called on a real server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfinstruct.errors import ConfigError, InputError, WrongKey
from selfinstruct.tools import Tool, ToolResult, open_tools
from tests.backends.endpoint import Endpoint, Reply, Seen, as_json

SPEC: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "Rates", "version": "1"},
    "servers": [{"url": "http://{host}/v1", "variables": {"host": {"default": "127.0.0.1:1"}}}],
    "paths": {
        "/rates/{currency}": {
            "parameters": [{"$ref": "#/components/parameters/Currency"}],
            "get": {
                "operationId": "getRate",
                "summary": "The rate of a\n currency.",
                "parameters": [
                    {"name": "day", "in": "query", "schema": {"type": "string"}, "description": "As 2024-05-01."},
                    {"name": "to", "in": "query", "schema": {"type": "array", "items": {"type": "string"}}},
                    {"name": "X-Trace", "in": "header", "schema": {"type": "string"}},
                ],
            },
        },
        "/orders": {
            "post": {
                "description": "Place an order.",
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Order"}}},
                },
            },
            "put": {"requestBody": {"content": {"application/xml": {}}}},
        },
        "/tags": {
            "post": {
                "operationId": "tag",
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"type": "array", "items": {"type": "string"}}}},
                },
            },
        },
    },
    "components": {
        "parameters": {"Currency": {"name": "currency", "in": "path", "required": True, "schema": {"type": "string"}}},
        "schemas": {
            "Order": {
                "type": "object",
                "required": ["item"],
                "properties": {
                    "item": {"type": "string"},
                    "count": {"$ref": "#/components/schemas/Count"},
                    "next": {"$ref": "#/components/schemas/Order"},
                },
            },
            "Count": {"type": "integer", "minimum": 1},
        },
    },
}  # fmt: skip


@pytest.fixture
def spec(tmp_path: Path) -> str:
    path = tmp_path / "rates.yaml"
    path.write_text(yaml.safe_dump(SPEC))
    return str(path)


def called(
    endpoint: Endpoint, spec: str, operation: str, *arguments: dict[str, Any], **options: Any
) -> list[ToolResult]:
    async def main() -> list[ToolResult]:
        given = {"spec": spec, "operation": operation, "base_url": endpoint.base_url} | options
        async with open_tools([{"openapi": given}]) as (tool,):
            return [await tool.call(each) for each in arguments]

    return asyncio.run(main())


def opened(spec: str, operation: str, **options: Any) -> Tool:
    async def main() -> Tool:
        async with open_tools([{"openapi": {"spec": spec, "operation": operation} | options}]) as (tool,):
            return tool

    return asyncio.run(main())


def test_an_operation_describes_the_tool(spec: str) -> None:
    tool = opened(spec, "getRate")
    assert (tool.name, tool.api, tool.title) == ("getRate", "GetRate", "GetRate")
    assert tool.description == "The rate of a currency."
    assert tool.signature == "GetRate(currency, day, to, X-Trace)"
    assert tool.parameters["required"] == ["currency"]
    assert tool.parameters["properties"]["day"] == {"type": "string", "description": "As 2024-05-01."}
    order = opened(spec, "POST /orders")
    assert (order.name, order.api) == ("post_orders", "PostOrders")
    assert order.parameters["required"] == ["item"]
    assert order.parameters["properties"]["count"] == {"type": "integer", "minimum": 1}
    json.dumps(order.parameters)  # a schema that contains itself ends somewhere


def test_arguments_go_where_they_belong(spec: str) -> None:
    with Endpoint(as_json({"rate": 1.5})) as endpoint:
        arguments = {"currency": "EUR/x?", "day": "2024 & more", "to": ["USD", "JPY"], "X-Trace": "t"}
        (result,) = called(endpoint, spec, "getRate", arguments, result="rate")
    assert result == ToolResult("1.5", values=("1.5",))
    (seen,) = endpoint.requests
    assert seen.method == "GET"
    assert seen.path.replace("+", "%20") == "/v1/rates/EUR%2Fx%3F?day=2024%20%26%20more&to=USD&to=JPY"
    assert seen.headers["x-trace"] == "t"


def test_a_body_is_made_of_the_arguments(spec: str) -> None:
    with Endpoint(as_json({"ok": True})) as endpoint:
        results = called(
            endpoint, spec, "POST /orders", {"item": "tea", "count": 2}, {"count": 2}, {"item": "x", "y": 1}
        )
        assert results[0].text == '{"ok": true}'
        assert [result.reason for result in results[1:]] == ["wrong arguments"] * 2
        assert [seen.json for seen in endpoint.requests] == [{"item": "tea", "count": 2}]
        called(endpoint, spec, "tag", {"body": ["a", "b"]})
        assert endpoint.requests[-1].json == ["a", "b"]


@pytest.mark.parametrize("currency", ["..", ".", ""])
def test_a_path_can_not_be_left(currency: str, spec: str) -> None:
    with Endpoint(as_json({})) as endpoint:
        (result,) = called(endpoint, spec, "getRate", {"currency": currency})
    assert result.reason == "wrong arguments"
    assert endpoint.requests == []


def test_a_header_can_not_be_split(spec: str) -> None:
    with Endpoint(as_json({})) as endpoint:
        (result,) = called(endpoint, spec, "getRate", {"currency": "x", "X-Trace": "a\r\nHost: evil"})
    assert result.reason == "wrong arguments"


@pytest.mark.parametrize(
    ("reply", "options", "reason"),
    [
        (Reply(404, b"no"), {}, "HTTP 404"),
        (Reply(500, b"no"), {}, "HTTP 500"),
        (as_json({"other": 1}), {"result": "rate"}, "unreadable answer"),
        (Reply(200, b"  "), {}, "nothing found"),
        (Reply(200, b"x", delay=5), {}, "out of time"),
        (Reply(200, b"x" * (5 << 20)), {}, "answer too long"),
    ],
)
def test_what_a_server_does_wrong_is_a_failed_call(
    reply: Reply, options: dict[str, Any], reason: str, spec: str
) -> None:
    with Endpoint(reply) as endpoint:
        (result,) = called(
            endpoint, spec, "getRate", {"currency": "x"}, seconds=1 if reason == "out of time" else 60, **options
        )
    assert (result.failed, result.reason) == (True, reason)


def test_an_answer_that_is_no_json_is_text_and_long_ones_are_cut(spec: str) -> None:
    def script(seen: Seen) -> Reply:
        return Reply(200, b"1.5 EUR" if seen.number == 0 else b"y" * 100_000)

    with Endpoint(script) as endpoint:
        first, second = called(endpoint, spec, "getRate", {"currency": "x"}, {"currency": "x"})
    assert first == ToolResult("1.5 EUR")
    assert len(second.text) == 4000


def test_a_key_travels_in_its_header_and_a_refused_one_ends_the_matter(
    spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATES_KEY", "r-123456")
    with Endpoint(Reply(403, b"no")) as endpoint, pytest.raises(WrongKey, match="HTTP 403") as caught:
        called(endpoint, spec, "getRate", {"currency": "x"}, api_key_env="RATES_KEY", header="X-Key")
    assert endpoint.requests[0].headers["x-key"] == "r-123456"
    assert "r-123456" not in str(caught.value)


def with_parameter(parameter: dict[str, Any]) -> dict[str, Any]:
    return {"paths": {"/a": {"get": {"operationId": "a", "parameters": [parameter]}}}}


@pytest.mark.parametrize(
    ("change", "operation", "message"),
    [
        ({}, "getRates", "no operation 'getRates': did you mean 'getRate'"),
        ({}, "PUT /orders", "application/xml, expected application/json"),
        ({"servers": [{"url": "/v1"}]}, "getRate", "give base_url"),
        ({"servers": []}, "getRate", "give base_url"),
        ({"openapi": "2.0"}, "getRate", "expected OpenAPI 3"),
        ({"paths": None}, "getRate", "has no paths"),
        (with_parameter({"$ref": "#/nowhere"}), "a", "leads nowhere"),
        (with_parameter({"$ref": "other.yaml#/x"}), "a", "leads nowhere"),
        (with_parameter({"name": "c", "in": "cookie"}), "a", "cookie"),
        ({"paths": {"/a": {"$ref": "#/paths/~1a"}}}, "a", "in a circle"),
    ],
)
def test_a_document_that_does_not_serve_is_refused(
    change: dict[str, Any], operation: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(SPEC | change))
    with pytest.raises(ConfigError, match=message):
        opened(str(path), operation)


@pytest.mark.parametrize("content", [b"{", b"\xff", b"a: b: c", b"3"])
def test_what_is_no_document_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"spec.json: "):
        opened(str(path), "a")
    with pytest.raises(InputError, match="No such file"):
        opened(str(tmp_path / "no.json"), "a")
