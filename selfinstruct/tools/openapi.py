"""One operation of an OpenAPI document as a tool, called over HTTP."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import yaml

from selfinstruct.errors import ConfigError, InputError
from selfinstruct.languages import closest
from selfinstruct.tools.function import camel, numeric_values, spoken
from selfinstruct.tools.tool import Tool, failure
from selfinstruct.tools.web import at, fetch, http_client
from selfinstruct.values import ToolResult

_METHODS = ("get", "put", "post", "delete", "patch", "head", "options")
_BODY = "body"


@dataclass(frozen=True, slots=True)
class _Operation:
    method: str
    path: str
    name: str
    description: str
    parameters: Mapping[str, Any]
    places: Mapping[str, str]
    """Where each argument goes: path, query, header, or body (one of its keys, or the whole under "body")."""


def openapi(
    *,
    spec: str,
    operation: str,
    base_url: str = "",
    result: str = "",
    api_key_env: str = "",
    header: str = "Authorization",
    seconds: float = 30.0,
) -> Tool:
    """One operation of a web service that an OpenAPI document describes.

    Args:
        spec: the document, a JSON or YAML file (OpenAPI 3).
        operation: its operationId, or such as "GET /rates/{currency}".
        base_url: address of the service; otherwise the document's first server.
        result: keys between points to the part of the answer that is wanted; the whole where there are none.
        api_key_env: name of the environment variable that holds the key, if there is one.
        header: the header that carries it; in Authorization it follows the word Bearer.
        seconds: how long an answer may take.
    """
    document = _document(Path(spec).expanduser())
    found = _operation(document, spec, operation)
    base = _base(document, spec, base_url)
    client = http_client(base, "openapi", api_key_env, header, seconds)

    async def run(arguments: Mapping[str, Any]) -> ToolResult:
        request = _request(found, base, arguments)
        if isinstance(request, ToolResult):
            return request
        answer = await fetch(client, found.method, **request)
        if isinstance(answer, ToolResult):
            return answer
        try:
            value = at(answer.json(), result)
        except ValueError:
            value = answer.text
        except KeyError:
            return failure("unreadable answer", f"it has nothing at {result!r}")
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return ToolResult(text, values=numeric_values(text)) if text.strip() else failure("nothing found")

    return Tool(
        name=found.name,
        title=spoken(found.name),
        api=camel(found.name),
        description=found.description,
        parameters=found.parameters,
        run=run,
        close=client.aclose,
        timeout=seconds + 5,
    )


def _document(path: Path) -> Mapping[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8-sig"))  # JSON is YAML
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: neither JSON nor YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(document, Mapping) or not isinstance(document.get("paths"), Mapping):
        raise InputError(f"{path}: not an OpenAPI document: it has no paths")
    if not str(document.get("openapi", "")).startswith("3."):
        raise InputError(f"{path}: expected OpenAPI 3, found {document.get('openapi') or document.get('swagger')!r}")
    return document


def _operation(document: Mapping[str, Any], spec: str, wanted: str) -> _Operation:
    known = {}
    for path, method, shared, described in _operations(document, spec):
        names = [f"{method.upper()} {path}", *([described["operationId"]] if "operationId" in described else [])]
        known.update(dict.fromkeys(names, (path, method, shared, described)))
    if wanted not in known:
        raise ConfigError(f"{spec}: there is no operation {wanted!r}: {closest(wanted, list(known))}")
    path, method, shared, described = known[wanted]
    properties: dict[str, Any] = {}
    places: dict[str, str] = {}
    required: list[str] = []
    for parameter in [*shared, *described.get("parameters", [])]:
        parameter = _resolved(document, spec, parameter)
        name, place = parameter["name"], parameter["in"]
        if place == "cookie":
            raise ConfigError(f"{spec}: {wanted}: the parameter {name!r} is a cookie; a tool has none")
        schema = _whole(document, spec, parameter.get("schema", {"type": "string"}))
        properties[name] = schema | ({"description": text} if (text := parameter.get("description")) else {})
        places[name] = place
        if parameter.get("required") and name not in required:
            required.append(name)
    body = _body(document, spec, wanted, described)
    if body is not None:
        needed = bool(_resolved(document, spec, described["requestBody"]).get("required"))
        parts = body.get("properties") if body.get("type") == "object" else None
        if parts and not set(parts) & set(places):
            properties |= parts
            places |= dict.fromkeys(parts, _BODY)
            required += [name for name in body.get("required", []) if needed]
        else:
            properties[_BODY], places[_BODY] = body, "whole body"
            required += [_BODY] if needed else []
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    description = " ".join((described.get("summary") or described.get("description") or "").split())
    name = described.get("operationId") or "_".join([method, *re.findall(r"\w+", path)])
    return _Operation(method.upper(), path, name, description, schema, places)


def _operations(document: Mapping[str, Any], spec: str) -> Iterator[tuple[str, str, list[Any], Mapping[str, Any]]]:
    for path, item in document["paths"].items():
        item = _resolved(document, spec, item)
        for method in _METHODS:
            if isinstance(item.get(method), Mapping):
                yield path, method, item.get("parameters", []), item[method]


def _body(document: Mapping[str, Any], spec: str, wanted: str, described: Mapping[str, Any]) -> dict[str, Any] | None:
    if "requestBody" not in described:
        return None
    content = _resolved(document, spec, described["requestBody"]).get("content", {})
    kind = next((each for each in content if each.partition(";")[0].strip() == "application/json"), None)
    if kind is None:
        raise ConfigError(
            f"{spec}: {wanted}: its body is {', '.join(content) or 'of no kind'}, expected application/json"
        )
    return _whole(document, spec, content[kind].get("schema", {}))


def _resolved(document: Mapping[str, Any], spec: str, value: Any) -> Mapping[str, Any]:
    """Return what a value, or the `$ref` in its place, stands for."""
    for _ in range(20):
        if not isinstance(value, Mapping):
            raise InputError(f"{spec}: expected an object, found {str(value)[:60]!r}")
        if "$ref" not in value:
            return value
        reference = str(value["$ref"])
        value = document
        for part in reference.removeprefix("#/").split("/"):
            key = part.replace("~1", "/").replace("~0", "~")
            if not reference.startswith("#/") or not isinstance(value, Mapping) or key not in value:
                raise InputError(f"{spec}: {reference} leads nowhere in this document")
            value = value[key]
    raise InputError(f"{spec}: references that lead in a circle")


def _whole(document: Mapping[str, Any], spec: str, schema: Any, depth: int = 0) -> dict[str, Any]:
    """Return a schema with its references filled in; one that contains itself is cut off at some depth."""
    if depth > 8:
        return {}
    found: dict[str, Any] = {}
    for key, value in _resolved(document, spec, schema).items():
        if isinstance(value, Mapping) and key in ("properties", "patternProperties", "$defs"):
            found[key] = {name: _whole(document, spec, part, depth + 1) for name, part in value.items()}
        elif isinstance(value, Mapping):
            found[key] = _whole(document, spec, value, depth + 1) if key in ("items", "additionalProperties") else value
        elif isinstance(value, list) and key in ("anyOf", "oneOf", "allOf"):
            found[key] = [_whole(document, spec, part, depth + 1) for part in value]
        else:
            found[key] = value
    return found


def _base(document: Mapping[str, Any], spec: str, base_url: str) -> str:
    if base_url:
        return base_url
    servers = document.get("servers") or [{}]
    url = str(servers[0].get("url", "")) if isinstance(servers[0], Mapping) else ""
    for name, variable in (servers[0].get("variables") or {}).items() if isinstance(servers[0], Mapping) else ():
        url = url.replace(f"{{{name}}}", str(variable.get("default", "")))
    if urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError(f"{spec}: it names no server with an address of its own; give base_url")
    return url


def _request(operation: _Operation, base: str, arguments: Mapping[str, Any]) -> dict[str, Any] | ToolResult:
    path = operation.path
    query: dict[str, Any] = {}
    headers: dict[str, str] = {}
    body: dict[str, Any] = {}
    more: dict[str, Any] = {}
    for name, value in arguments.items():
        place = operation.places[name]
        if place == "path":
            segment = quote(_text(value), safe="")
            if segment in ("", ".", ".."):  # would be another path
                return failure("wrong arguments", f"{name} can't be {value!r}")
            path = path.replace(f"{{{name}}}", segment)
        elif place == "query":
            query[name] = [_text(each) for each in value] if isinstance(value, list | tuple) else _text(value)
        elif place == "header":
            text = _text(value)
            if not text.isascii() or not text.isprintable():
                return failure("wrong arguments", f"{name} can't stand in a header")
            headers[name] = text
        elif place == _BODY:
            body[name] = value
        else:
            more["json"] = value
    if body:
        more["json"] = body
    url = urljoin(base.rstrip("/") + "/", path.lstrip("/"))
    return {"url": url, "params": query, "headers": headers, **more}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
