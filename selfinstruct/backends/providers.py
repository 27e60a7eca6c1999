"""Providers: what stands before the slash of `--model PROVIDER/MODEL`.

A provider is an async function `(model, config) -> Backend`. All of these speak the OpenAI protocol;
they differ in the address, the name of the key and what is known of the server.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field, replace

from selfinstruct.backends.llamacpp import LlamaServer
from selfinstruct.backends.openai import OpenAIBackend
from selfinstruct.config import RunConfig
from selfinstruct.errors import ServerDied, Unavailable, WrongKey
from selfinstruct.models import resolve
from selfinstruct.plugins import split_model
from selfinstruct.values import Capabilities, Completion, Request

_GLANCE = 0.02
"""Seconds between two looks at whether a prompt has been read."""

_LLAMA = Capabilities(completions=True, json_schema=True, seed=True, logprobs=True, llama_sampling=True)

_KNOWN = {
    "openai": Capabilities(),
    "deepseek": Capabilities(seed=False),
    "vllm": Capabilities(completions=True, json_schema=True, logprobs=True),
    "ollama": Capabilities(json_schema=True),
    "llama-server": _LLAMA,
    "llama.cpp": _LLAMA,
}
"""What each provider's endpoint understands, as far as that does not hang on the settings."""


def takes_raw_prompts(config: RunConfig) -> bool | None:
    """Tell whether a run's endpoint continues raw prompts; None for the provider of a plugin, who alone knows."""
    if config.backend.endpoint != "auto":
        return config.backend.endpoint == "completions"
    known = _KNOWN.get(split_model(config.model)[0])
    return None if known is None else known.completions


async def openai(model: str, config: RunConfig) -> OpenAIBackend:
    """Any OpenAI-compatible server: api.openai.com, or the one of --base-url."""
    own = config.backend.base_url is None
    return _hosted(model, config, None, replace(_KNOWN["openai"], json_schema=own, tools=own))


async def deepseek(model: str, config: RunConfig) -> OpenAIBackend:
    """DeepSeek's own API; the key is read from DEEPSEEK_API_KEY unless --api-key-env names another."""
    return _hosted(model, config, "https://api.deepseek.com", _KNOWN["deepseek"], key_name="DEEPSEEK_API_KEY")


async def vllm(model: str, config: RunConfig) -> OpenAIBackend:
    """A vLLM server, by default on this machine's port 8000; no key needed."""
    return _hosted(model, config, "http://127.0.0.1:8000/v1", _KNOWN["vllm"], keyless=True)


async def ollama(model: str, config: RunConfig) -> OpenAIBackend:
    """An Ollama server, by default on this machine's port 11434; no key needed."""
    return _hosted(model, config, "http://127.0.0.1:11434/v1", _KNOWN["ollama"], keyless=True)


async def llama_server(model: str, config: RunConfig) -> OpenAIBackend:
    """llama.cpp's own HTTP server, by default on this machine's port 8080; no key needed."""
    return _hosted(model, config, "http://127.0.0.1:8080/v1", _LLAMA, keyless=True)


async def llama_cpp(model: str, config: RunConfig) -> Embedded:
    """A model file on this machine, served by llama.cpp in a child process."""
    settings = config.backend
    server = LlamaServer(resolve(model), slots=settings.slots, context=settings.context, threads=settings.threads)
    await server.__aenter__()
    try:
        return Embedded(server, _client(server.model.alias, config, server.base_url, server.api_key, _LLAMA))
    except BaseException:
        server.stop()
        raise


@dataclass(slots=True)
class Embedded:
    """A backend whose server is our child: when it dies, the reason is in its log.

    Prompts enter one at a time, answers are decoded together. llama.cpp cuts prompts that arrive
    together into pieces that depend on one another's lengths, and the piece's size changes the order of
    additions; alone, the same prompt and seed give the same text at any concurrency.
    """

    server: LlamaServer
    client: OpenAIBackend
    name: str = field(init=False)
    capabilities: Capabilities = field(init=False)
    _prompts: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _decoding: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        """Take name and capabilities from the client."""
        self.name, self.capabilities = self.client.name, self.client.capabilities

    async def complete(self, request: Request) -> Completion:
        """Ask the child.

        Raises:
            BackendError: as the client; a dead child is named as such, with the end of its log.
        """
        try:
            return await self._complete(request)
        except Unavailable:
            try:
                self.server.check()
            except Unavailable as died:
                raise ServerDied(str(died)) from died
            raise

    async def _complete(self, request: Request) -> Completion:
        async with self._prompts:
            answer = asyncio.ensure_future(self.client.complete(request))
            try:
                while not answer.done():
                    busy, past_prompt = await asyncio.to_thread(self.server.decoding)
                    if busy == past_prompt > self._decoding:
                        break
                    await asyncio.wait([answer], timeout=_GLANCE)
            except BaseException:
                answer.cancel()
                raise
            self._decoding += 1
        try:
            return await answer
        finally:
            answer.cancel()
            self._decoding -= 1

    async def aclose(self) -> None:
        """Close the connections and end the child."""
        await self.client.aclose()
        await asyncio.to_thread(self.server.stop)


def _hosted(
    model: str,
    config: RunConfig,
    address: str | None,
    known: Capabilities,
    *,
    key_name: str = "OPENAI_API_KEY",
    keyless: bool = False,
) -> OpenAIBackend:
    chosen = config.backend.api_key_env
    name = key_name if chosen == "OPENAI_API_KEY" else chosen
    key = os.environ.get(name, "").strip()
    local = keyless or config.backend.base_url is not None
    if not key and (not local or chosen != "OPENAI_API_KEY"):
        raise WrongKey(
            f"{config.model} needs a key: set the environment variable {name}, or name another with --api-key-env"
        )
    return _client(model, config, config.backend.base_url or address, key or "none", known)


def _client(model: str, config: RunConfig, address: str | None, key: str, known: Capabilities) -> OpenAIBackend:
    settings = config.backend
    if settings.endpoint != "auto":
        known = replace(known, completions=settings.endpoint == "completions")
    if settings.json_schema is not None:
        known = replace(known, json_schema=settings.json_schema)
    if settings.tools is not None:
        known = replace(known, tools=settings.tools)
    return OpenAIBackend(
        model,
        name=config.model,
        base_url=address,
        api_key=key,
        capabilities=known,
        connections=config.concurrency,
        timeout=settings.timeout,
        extra_body=config.sampling.extra_body,
    )
