"""The client of any OpenAI-compatible endpoint: one `complete`, one HTTP request, typed errors.

Retries, rate limits, budget and journal are wrappers around it. The wire format is in `wire`, what servers say of
their troubles in `faults`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import replace
from socket import gaierror
from typing import TYPE_CHECKING, Any

from selfinstruct.backends import faults, wire
from selfinstruct.errors import BackendError, ConfigError, Unavailable, WrongKey
from selfinstruct.values import Capabilities, Completion, Request

if TYPE_CHECKING:
    import httpx2

_MIN_SECRET = 4  # shorter than that is a placeholder, and hiding "x" would garble every message


class OpenAIBackend:
    """An OpenAI-compatible endpoint and one of its models.

    A parameter that the server says it does not know is left out from then on (`max_tokens`
    becomes `max_completion_tokens`); `adapted` tells which. Such an answer costs one more request
    for each parameter, once; what `extra_body` holds was asked for by name and is never left out.
    """

    def __init__(
        self,
        model: str,
        *,
        name: str,
        base_url: str | None,
        api_key: str,
        capabilities: Capabilities,
        connections: int = 64,
        timeout: float = 600,
        connect_timeout: float = 10,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepare a client; nothing is sent.

        Args:
            model: the model's name at the endpoint.
            name: the name the person wrote, "openai/gpt-4o-mini".
            base_url: address with the version ("http://127.0.0.1:8000/v1"); None, as for the
                openai package, is $OPENAI_BASE_URL, else https://api.openai.com/v1.
            api_key: the key itself; any word for a server that needs none.
            capabilities: what the endpoint understands; nothing else is sent.
            connections: most requests in flight.
            timeout: seconds for one whole answer, however slowly it trickles in.
            connect_timeout: seconds until the connection stands.
            extra_body: fields added to every request's JSON.

        Raises:
            WrongKey: the key is empty or has characters that no HTTP header can carry.
            ConfigError: the base URL or a proxy variable of the environment is not usable.
        """
        import httpx2
        import openai

        key = api_key.strip()
        if not key or not key.isascii() or not key.isprintable():
            raise WrongKey(
                f"the API key is {'empty' if not key else 'damaged: it has characters that no key has'}; set the "
                "environment variable that --api-key-env names (OPENAI_API_KEY unless you chose another)"
            )
        self.name = name
        self.capabilities = capabilities
        self._model = model
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._extra = dict(extra_body or {})
        self._secret = key if len(key) >= _MIN_SECRET else ""
        self._changes: dict[str, str | None] = {}
        address = base_url or os.environ.get("OPENAI_BASE_URL", "").strip() or "https://api.openai.com/v1"
        try:
            url = httpx2.URL(address)
        except httpx2.InvalidURL as error:
            raise ConfigError(f"base URL {address!r} is not an address: {error}") from None
        if url.scheme not in ("http", "https") or not url.host or (url.port or 1) > 65535:
            raise ConfigError(f"base URL {address!r} is not an address; expected one like http://127.0.0.1:8000/v1")
        try:
            # Proxies of the environment are meant for the outside, and hide a server on this machine.
            # A redirect would turn the POST into a GET: it is reported instead of followed.
            http = _client_class()(
                limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
                mounts={f"all://{url.host}": None} if _is_loopback(url.host) else None,
                follow_redirects=False,
            )
        except (ValueError, ImportError, httpx2.InvalidURL) as error:
            raise ConfigError(
                f"a proxy variable of the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) can't be used: {error}"
            ) from None
        self._client = openai.AsyncOpenAI(
            api_key=key,
            base_url=url,
            max_retries=0,
            timeout=httpx2.Timeout(timeout, connect=connect_timeout),
            http_client=http,
        )
        self._address = str(self._client.base_url).rstrip("/")
        shown = self._client.base_url.copy_with(userinfo=b"")
        self._base_url = str(shown).rstrip("/")

    def __repr__(self) -> str:
        return f"OpenAIBackend({self.name!r}, base_url={self._base_url!r})"

    @property
    def adapted(self) -> tuple[str, ...]:
        """What was changed for this server: "seed" (left out), "max_tokens -> max_completion_tokens"."""
        return tuple(sorted(f"{old} -> {new}" if new else old for old, new in self._changes.items()))

    async def complete(self, request: Request) -> Completion:
        """Ask once and return the answer.

        Raises:
            BackendError: of the class that says what went wrong, and nothing else.
        """
        path, body = wire.encode(request, self._model, self.capabilities)
        stop = request.sampling.stop
        while True:
            sent = self._adapt(body)
            response = await self._post(path, sent | self._extra)
            if response.status_code in (400, 422):
                # Each round takes a parameter out of `sent`, and only what is in it can be named.
                changeable = sent.keys() - self._extra.keys()
                unknown = faults.unsupported_parameter(response.content, changeable)
                if unknown is not None:
                    self._changes[unknown] = faults.RENAMED.get(unknown)
                    continue
            if not 200 <= response.status_code < 300:
                raise faults.fault(
                    response.status_code,
                    response.headers,
                    response.content,
                    model=self._model,
                    url=self._base_url + path,
                    secret=self._secret,
                )
            completion = wire.decode(response.content, request, secret=self._secret)
            return _stopped(completion, stop) if "stop" in body and "stop" not in sent else completion

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _adapt(self, body: Mapping[str, Any]) -> dict[str, Any]:
        changes = self._changes
        return {changes.get(name) or name: value for name, value in body.items() if changes.get(name, name) is not None}

    async def _post(self, path: str, body: Mapping[str, Any]) -> httpx2.Response:
        """Send one request; return whatever answer came.

        The low-level call of the SDK ("undocumented endpoints" in its README) leaves building and
        reading JSON to us, at three quarters of the processor time. A whole address is not put together anew.
        """
        import httpx2
        import openai

        try:
            async with asyncio.timeout(self._timeout):
                return await self._client.post(
                    self._address + path,
                    cast_to=httpx2.Response,
                    body=body,
                    options={"security": {"bearer_auth": True}},
                )
        except openai.APIStatusError as error:
            return error.response
        except TimeoutError:
            raise Unavailable(f"{self._base_url}{path} gave no complete answer in {self._timeout:g} s") from None
        except openai.APIConnectionError as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: BaseException) -> BackendError:
        """Name in plain words why there was no answer; `error` carries the reasons as its causes."""
        import httpx2

        where = self._base_url
        causes = list(_causes(error))

        def found(*classes: type[BaseException]) -> BaseException | None:
            return next((cause for cause in causes if isinstance(cause, classes)), None)

        if reason := found(ssl.SSLError):
            return Unavailable(
                f"{where}: no secure connection (TLS): {getattr(reason, 'verify_message', '') or reason}; "
                "for a private certificate set SSL_CERT_FILE to its authority"
            )
        if found(gaierror):
            return Unavailable(
                f"{where}: the host name {self._client.base_url.host!r} can't be resolved (DNS); check --base-url"
            )
        if found(ConnectionRefusedError):
            return Unavailable(f"{where}: connection refused; is the server running, and is this its port?")
        if found(httpx2.ProxyError):
            return Unavailable(f"{where}: the proxy of HTTP_PROXY/HTTPS_PROXY/ALL_PROXY refuses the connection")
        # Before the time-outs: the SDK's aiohttp transport calls a connection that broke one of them.
        broke = found(httpx2.ReadError, httpx2.RemoteProtocolError, httpx2.WriteError, ConnectionError)
        if broke or any(type(cause).__name__ == "ServerDisconnectedError" for cause in causes):
            return Unavailable(f"{where}: the connection broke before the answer was complete")
        if found(httpx2.ConnectTimeout):
            return Unavailable(f"{where}: no connection in {self._connect_timeout:g} s")
        if found(httpx2.TimeoutException):
            return Unavailable(f"{where} gave no complete answer in {self._timeout:g} s")
        if found(httpx2.DecodingError):
            return Unavailable(f"{where}: the answer's compression is damaged")
        return Unavailable(f"{where}: no answer ({type(causes[-1]).__name__})")


def _client_class() -> type[httpx2.AsyncClient]:
    """Return the SDK's client on aiohttp where that is installed (extra `fast`): half the processor time a request."""
    import openai

    try:
        import aiohttp  # noqa: F401
    except ImportError:
        return openai.DefaultAsyncHttpxClient
    return openai.DefaultAioHttpClient


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield `error` and everything that led to it, members of exception groups included."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        cause = waiting.pop(0)
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        waiting += [cause.__cause__, cause.__context__]
        if isinstance(cause, BaseExceptionGroup):
            waiting += cause.exceptions


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _stopped(completion: Completion, stop: tuple[str, ...]) -> Completion:
    """Cut the text at the first stop sequence, for a server that would not take them."""
    ends = [end for text in stop if text and (end := completion.text.find(text)) >= 0]
    return replace(completion, text=completion.text[: min(ends)], finish_reason="stop") if ends else completion
