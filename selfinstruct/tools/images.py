"""Text to image: pictures that are really made, by a server that speaks OpenAI's images API."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfinstruct.errors import ConfigError, QuotaExhausted, UnknownModel, WrongKey
from selfinstruct.tools.tool import Tool, failure, text_parameters
from selfinstruct.tools.web import fetch, is_local
from selfinstruct.values import ToolResult

if TYPE_CHECKING:
    import openai

MAX_BYTES = 64 << 20
"""Of a picture."""
_KINDS = {b"\x89PNG\r\n\x1a\n": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp"}


def text_to_image(
    *,
    folder: str,
    model: str = "gpt-image-1",
    size: str = "1024x1024",
    base_url: str | None = None,
    api_key_env: str = "OPENAI_API_KEY",
    seconds: float = 180.0,
) -> Tool:
    """Pictures from a description, by OpenAI's images API or a server that speaks it.

    A picture is kept under the hash of what was asked: asked again, it is not made, nor paid, again.

    Args:
        folder: where the pictures go.
        model: name of the model at the endpoint.
        size: width and height, as the model knows them.
        base_url: address with the version, http://127.0.0.1:8000/v1; OpenAI's own where there is none.
        api_key_env: name of the environment variable that holds the key; a server of your own may need none.
        seconds: how long a picture may take.
    """
    target = Path(folder).expanduser()
    client = _client(base_url, api_key_env, seconds)
    locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def run(arguments: Mapping[str, Any]) -> ToolResult:
        prompt = arguments["description"]
        name = hashlib.sha256(json.dumps([model, size, prompt]).encode()).hexdigest()[:24]
        async with locks[name]:
            made = next((path for suffix in _KINDS.values() if (path := target / f"{name}{suffix}").is_file()), None)
            if made is None:
                picture = await _made(client, model, size, prompt)
                if isinstance(picture, ToolResult):
                    return picture
                suffix = next((suffix for start, suffix in _KINDS.items() if picture.startswith(start)), "")
                if not suffix:
                    return failure("unreadable answer", "the data is no PNG, JPEG, WebP or GIF")
                made = target / f"{name}{suffix}"
                await asyncio.to_thread(_keep, made, picture)
        return ToolResult(f"Image generated successfully: {made.name}", items=(made.name,))

    return Tool(
        name="text_to_image",
        title="Text-to-image",
        api="Text2Image",
        description="Makes a picture from a description.",
        parameters=text_parameters(description="What the picture shows, in a sentence with detail."),
        run=run,
        close=client.close,
        style="sentence",
        timeout=None,
    )


def _client(base_url: str | None, api_key_env: str, timeout: float) -> openai.AsyncOpenAI:
    import httpx2
    import openai

    key = os.environ.get(api_key_env, "").strip()
    if not key and not base_url:
        raise WrongKey(
            f"tool 'text_to_image': set {api_key_env} to the key of OpenAI's images API, or name a server by base_url, "
            "or leave the tool out"
        )
    try:
        url = httpx2.URL(base_url) if base_url else None
    except httpx2.InvalidURL as error:
        raise ConfigError(f"tool 'text_to_image': base_url: {base_url!r} is not an address: {error}") from None
    if url is not None and (url.scheme not in ("http", "https") or not url.host):
        raise ConfigError(f"tool 'text_to_image': base_url: {base_url!r} is not one like http://127.0.0.1:8000/v1")
    http = openai.DefaultAsyncHttpxClient(trust_env=not (url is not None and is_local(url.host)))
    return openai.AsyncOpenAI(api_key=key or "none", base_url=url, timeout=timeout, max_retries=3, http_client=http)


async def _made(client: openai.AsyncOpenAI, model: str, size: str, prompt: str) -> bytes | ToolResult:
    """Have a picture made; return its bytes, or why there is none."""
    import openai

    where = client.base_url.copy_with(userinfo=b"")
    try:
        # The body is written here: the sizes that the SDK's types allow are OpenAI's own.
        answer = await client.images.generate(model=model, prompt=prompt, n=1, extra_body={"size": size})
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        raise WrongKey(f"tool 'text_to_image': {where} refuses the key (HTTP {error.status_code})") from None
    except openai.NotFoundError:
        raise UnknownModel(f"tool 'text_to_image': {where} has no image model {model!r}") from None
    except openai.RateLimitError as error:
        if error.code == "insufficient_quota":
            raise QuotaExhausted(f"tool 'text_to_image': no credit left at {where}") from None
        return failure("rate limited")
    except openai.APIStatusError as error:
        if error.status_code in (400, 422):
            return failure("refused", error.code or "")
        return failure(f"HTTP {error.status_code}")
    except openai.APITimeoutError:
        return failure("out of time")
    except openai.APIConnectionError:
        return failure("unreachable")
    except (ValueError, openai.APIError) as error:  # the body is no JSON, or not this API's
        return failure("unreadable answer", type(error).__name__)
    data = getattr(answer, "data", None)  # a server that is no images API may answer with anything
    picture = data[0] if isinstance(data, list) and data else None
    if encoded := getattr(picture, "b64_json", None):
        try:
            return base64.b64decode(encoded, validate=True)
        except (binascii.Error, TypeError, ValueError):
            return failure("unreadable answer", "the data is no base64")
    if url := getattr(picture, "url", None):
        return await _downloaded(url)
    return failure("unreadable answer", "there is no picture in it")


async def _downloaded(url: str) -> bytes | ToolResult:
    import httpx2

    address = httpx2.URL(url)
    async with httpx2.AsyncClient(timeout=60, follow_redirects=True, trust_env=not is_local(address.host)) as client:
        try:
            found = await fetch(client, "GET", url, most=MAX_BYTES)
        except WrongKey as error:  # no key was sent: the address has expired, say
            return failure("unreachable", str(error))
    return found if isinstance(found, ToolResult) else found.content


def _keep(path: Path, picture: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_bytes(picture)
    unfinished.replace(path)
